"""A run that is cut by signals, several times, ends in the bytes of the run that was not.

Real signals to real processes, at steps that a seeded generator draws. Each cut is shown to have come in mid-training: the
log has grown since the cut before, steps are left, and there are no weights.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("psutil", reason="comes with ipykernel")
from processes import descendants, last_step, named, seconds_to_end, wait_for

from sfrik.launch.launcher import launch
from sfrik.pretrain.loop import pretrain
from sfrik.runs.checkpoints import Checkpoints
from sfrik.runs.folder import Run
from sfrik.settings import PretrainSettings
from sfrik.system.files import read_json

ROOT = Path(__file__).parents[2]
SEED = 20220800
RECIPE, CROPS = "smoke/sfrik_l2_q64", "smoke/vicreg_q64_swav"
EPOCHS, STEPS = 5, 8  # 240 images in batches of 30
COMMON = {"subset": 24, "batch_size": 30, "epochs": EPOCHS, "device": "cpu", "precision": "fp32", "log_every": 1, "knn_every": 4}
OFTEN = {"checkpoint_minutes": 0.0005}  # 30 ms: one after nearly every step
REPORT, SAVE = 20, 30  # seconds, generous: to the caller's report of a lost worker; to the end of workers that save


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    """The number of threads is part of the layout: sums in another order have other last bits."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def settings(folder):
    return PretrainSettings.from_recipe(RECIPE, **COMMON, exp_dir=str(folder))


class Command:
    """`python -m sfrik pretrain` on so many processes, started now."""

    def __init__(self, folder: Path, recipe: str, processes: int, **overrides) -> None:
        self.folder = folder
        flags = {**COMMON, **OFTEN, "exp_dir": folder, "recipe": recipe, **overrides}
        command = [sys.executable, "-m", "sfrik", "pretrain"]
        command += [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        command += ["--nproc-per-node", str(processes)] if processes > 1 else []
        self.processes = processes
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.caller = subprocess.Popen(command, env=environment, **pipes)

    def workers(self):
        """In the order of their ranks, which is the order in which they were started."""
        found = named("sfrik.launch.worker", self.caller.pid)
        assert len(found) == self.processes
        return found

    def cut(self, step: int, number: int, rank: int | None = None) -> dict:
        """Send a signal when `step` has been logged, to the caller or to the worker of a rank; what came of it."""
        wait_for(lambda: last_step(self.folder) >= step or self.caller.poll() is not None, 180, f"step {step}")
        assert self.caller.poll() is None, f"it ended before step {step}: {self.caller.communicate()[0]}"
        there = [*descendants(self.caller.pid)]
        os.kill(self.caller.pid if rank is None else self.workers()[rank].pid, number)
        begun = time.monotonic()
        said = self.caller.communicate(timeout=90)[0]
        to_end = time.monotonic() - begun
        to_none = to_end + seconds_to_end(there, SAVE)
        checkpoint = Checkpoints(self.folder).load()
        reached = last_step(self.folder) + 1
        assert step < reached < EPOCHS * STEPS, "it was not cut in mid-training"
        assert not Run(self.folder).backbone.exists()
        saved = checkpoint["place"]["epoch"] * STEPS + checkpoint["place"]["step"]
        return {"status": self.caller.returncode, "said": said, "reached": reached, "saved": saved, "to_end": to_end} | {
            "to_none": to_none
        }

    def finish(self) -> str:
        said = self.caller.communicate(timeout=120)[0]
        assert self.caller.returncode == 0, said
        return said


def without_seconds(folder):
    return [{name: value for name, value in line.items() if name != "seconds"} for line in Run(folder).metrics()]


def assert_same(folder, whole):
    assert Run(folder).backbone.read_bytes() == Run(whole).backbone.read_bytes()
    assert without_seconds(folder) == without_seconds(whole)
    assert [line["step"] for line in Run(folder).metrics() if "step" in line] == list(range(EPOCHS * STEPS))
    assert not Checkpoints(folder).exist
    assert Run(folder).state() is None


def draw_steps(count: int) -> list[int]:
    """How many steps to make before each cut; together they leave some."""
    return np.random.default_rng([SEED, count]).integers(2, 8, count).tolist()


def show_steps(title: str, steps: list[int], capsys) -> None:
    with capsys.disabled():
        print(f"\n{title}: seed {SEED}, steps before each cut {steps}")


def show(title: str, cut: dict, capsys) -> None:
    with capsys.disabled():
        print(
            f"{title}: cut after step {cut['reached']}, saved at {cut['saved']}, exit status {cut['status']}, "
            f"{cut['to_end']:.1f} s to the end of the command, {cut['to_none']:.1f} s until no process was left"
        )


@pytest.fixture(scope="module", autouse=True)
def one_process(tmp_path_factory):
    """The cuts of a run on one process, beside those of the run on three: most of the time goes to starting interpreters."""
    root = tmp_path_factory.mktemp("one")
    whole, folder = root / "whole", root / "cut"

    def work() -> list[tuple[signal.Signals | None, int, dict]]:
        Command(whole, CROPS, 1, checkpoint_minutes=10).finish()
        cuts = []
        for number, more in zip((signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1), draw_steps(3), strict=True):
            cuts.append((number, more, Command(folder, CROPS, 1).cut(last_step(folder) + more, number)))
        cuts.append((None, 0, {"said": Command(folder, CROPS, 1).finish()}))
        return cuts

    with ThreadPoolExecutor(1) as executor:
        yield executor.submit(work), whole, folder


def test_three_processes_cut_by_each_signal_end_in_the_same_bytes_and_others_may_go_on(tmp_path, capsys):
    whole, folder = tmp_path / "whole", tmp_path / "cut"
    launch("sfrik.pretrain:pretrain", settings(whole), False, nproc_per_node=3)
    steps = draw_steps(4)
    show_steps("three processes", steps, capsys)

    cut = Command(folder, RECIPE, 3).cut(steps[0], signal.SIGTERM)
    show("SIGTERM to the caller", cut, capsys)
    assert cut["status"] == 75, cut["said"]
    assert f"stopped by SIGTERM (saved in {folder} at epoch" in cut["said"]
    assert cut["saved"] == cut["reached"]
    other = shutil.copytree(folder, tmp_path / "other")

    cut = Command(folder, RECIPE, 3).cut(last_step(folder) + steps[1], signal.SIGUSR1, rank=2)
    show("SIGUSR1 to rank 2 alone", cut, capsys)
    assert cut["status"] == 75, cut["said"]
    assert f"stopped by SIGUSR1 (saved in {folder} at epoch" in cut["said"]
    assert cut["saved"] == cut["reached"], "all of them agree"

    cut = Command(folder, RECIPE, 3).cut(last_step(folder) + steps[2], signal.SIGKILL)
    show("SIGKILL to the caller", cut, capsys)
    assert cut["saved"] == cut["reached"], "the workers save by themselves"

    cut = Command(folder, RECIPE, 3).cut(last_step(folder) + steps[3], signal.SIGKILL, rank=1)
    show("SIGKILL to rank 1", cut, capsys)
    assert cut["status"] == 2
    assert "Traceback" not in cut["said"]
    assert "rank 1 on" in cut["said"]
    assert "was ended by SIGKILL before it could report an error" in cut["said"]
    assert cut["to_end"] < REPORT

    Command(folder, RECIPE, 3).finish()
    assert_same(folder, whole)
    resumed = read_json(folder / "provenance.json")["resumed"]
    assert len(resumed) == 4

    capsys.readouterr()
    pretrain(settings(other))
    assert "trained by 3 processes so far, resumed by 1: the views will differ" in capsys.readouterr().out
    lines = Run(other).metrics()
    assert [line["step"] for line in lines if "step" in line] == list(range(EPOCHS * STEPS))
    assert Run(other).backbone.read_bytes() != Run(whole).backbone.read_bytes(), "what is said to differ does"


def test_one_process_cut_by_each_signal_ends_in_the_same_bytes_here_by_vicreg_on_many_crops(one_process, capsys):
    outcome, whole, folder = one_process
    *cuts, (_, _, end) = outcome.result()
    show_steps("one process", [more for _, more, _ in cuts], capsys)
    for number, _, cut in cuts:
        show(f"{number.name} to the only process", cut, capsys)
        assert cut["status"] == (-signal.SIGKILL if number == signal.SIGKILL else 75), cut["said"]
        if number != signal.SIGKILL:
            assert cut["saved"] == cut["reached"], "no step is lost"
            assert f"stopped by {number.name} (saved in {folder} at epoch" in cut["said"]
    places = [cut["saved"] for _, _, cut in cuts]
    assert any(place % STEPS for place in places), "one at least is within an epoch"
    assert f"resuming after epoch {places[-1] // STEPS}, step {places[-1] % STEPS} of {STEPS}" in end["said"]
    assert_same(folder, whole)
