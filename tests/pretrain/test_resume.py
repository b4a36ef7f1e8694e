"""A run that is interrupted several times by signals ends with the same bytes as an uninterrupted run.

Real signals are sent to real processes, at steps drawn by a seeded generator. Each interruption is checked to be in mid-training:
the log has grown since the previous one, steps are left, and there are no weights.
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
from processes import HANG, START, descendants, last_step, named, seconds_to_end, wait_for
from toys import write_photos

from sfrik.launch.launcher import launch
from sfrik.pretrain.loop import pretrain
from sfrik.runs.checkpoints import Checkpoints
from sfrik.runs.folder import Run
from sfrik.settings import PretrainSettings
from sfrik.system.files import read_json

ROOT = Path(__file__).parents[2]
SEED = 20220800
RECIPE, CROPS = "smoke/sfrik_l2_q64", "smoke/vicreg_q64_swav"
PHOTOS = "cifar10/vicreg_q512"
EPOCHS, STEPS = 5, 8  # 240 images in batches of 30
COMMON = {"subset": 24, "batch_size": 30, "epochs": EPOCHS, "device": "cpu", "precision": "fp32", "log_every": 1, "knn_every": 4}
OFTEN = {"checkpoint_minutes": 0.0005}  # 30 ms: a checkpoint after nearly every step


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    """Sums on another number of threads differ in the last bits."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def settings(folder, recipe=RECIPE, **overrides):
    return PretrainSettings.from_recipe(recipe, **COMMON, exp_dir=str(folder), **overrides)


class Command:
    """A running `python -m sfrik pretrain` on one or more processes."""

    def __init__(self, folder: Path, recipe: str, processes: int, **overrides) -> None:
        self.folder = folder
        flags = {**COMMON, **OFTEN, "exp_dir": folder, "recipe": recipe, **overrides}
        command = [sys.executable, "-m", "sfrik", "pretrain"]
        command += [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        command += ["--nproc-per-node", str(processes)] if processes > 1 else []
        self.processes = processes
        # a worker that does not end although its caller or another worker has would be killed after the time of the test
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "SFRIK_GRACE": str(2 * HANG)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.caller = subprocess.Popen(command, env=environment, **pipes)

    def workers(self):
        """The workers in the order of their ranks, in which they were started."""
        found = named("sfrik.launch.worker", self.caller.pid)
        assert len(found) == self.processes
        return found

    def interrupt(self, step: int, number: int, rank: int | None = None) -> dict:
        """Send signal `number` to the caller, or to the worker of a rank, once `step` is logged. Returns the outcome."""
        wait_for(lambda: last_step(self.folder) >= step or self.caller.poll() is not None, START, f"step {step}")
        assert self.caller.poll() is None, f"it ended before step {step}: {self.caller.communicate()[0]}"
        processes = [*descendants(self.caller.pid)]
        os.kill(self.caller.pid if rank is None else self.workers()[rank].pid, number)
        start = time.monotonic()
        output = self.caller.communicate(timeout=HANG)[0]
        to_end = time.monotonic() - start
        to_none = to_end + seconds_to_end(processes, HANG)
        checkpoint = Checkpoints(self.folder).load()
        reached = last_step(self.folder) + 1
        assert step < reached < EPOCHS * STEPS, "it was not interrupted in mid-training"
        assert not Run(self.folder).backbone.exists()
        saved = checkpoint["place"]["epoch"] * STEPS + checkpoint["place"]["step"]
        times = {"to_end": to_end, "to_none": to_none}
        return {"status": self.caller.returncode, "output": output, "reached": reached, "saved": saved, **times}


def without_seconds(folder):
    return [{name: value for name, value in line.items() if name != "seconds"} for line in Run(folder).metrics()]


def assert_same(folder, whole):
    assert Run(folder).backbone.read_bytes() == Run(whole).backbone.read_bytes()
    assert without_seconds(folder) == without_seconds(whole)
    assert [line["step"] for line in Run(folder).metrics() if "step" in line] == list(range(EPOCHS * STEPS))
    assert not Checkpoints(folder).exist
    assert Run(folder).state() is None


def draw_steps(count: int) -> list[int]:
    """The number of steps before each interruption; some steps are left after the last one."""
    return np.random.default_rng([SEED, count]).integers(2, 8, count).tolist()


def show_steps(title: str, steps: list[int], capsys) -> None:
    with capsys.disabled():
        print(f"\n{title}: seed {SEED}, steps before each interruption {steps}")


def show(title: str, outcome: dict, capsys) -> None:
    with capsys.disabled():
        print(
            f"{title}: stopped after step {outcome['reached']}, saved at {outcome['saved']}, exit status {outcome['status']}, "
            f"{outcome['to_end']:.1f} s to the end of the command, {outcome['to_none']:.1f} s until no process was left"
        )


@pytest.fixture(scope="module", autouse=True)
def one_process(tmp_path_factory):
    """The interruptions of a run on one process, in parallel to those of the run on three: interpreters start slowly."""
    folder = tmp_path_factory.mktemp("one") / "interrupted"

    def work() -> list[tuple[signal.Signals, int, dict]]:
        outcomes = []
        for number, more in zip((signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1), draw_steps(3), strict=True):
            outcomes.append((number, more, Command(folder, CROPS, 1).interrupt(last_step(folder) + more, number)))
        return outcomes

    with ThreadPoolExecutor(1) as executor:
        yield executor.submit(work), folder


def test_three_processes_interrupted_twice_end_with_the_same_bytes_and_one_can_resume(tmp_path, capsys):
    whole, folder = tmp_path / "whole", tmp_path / "interrupted"
    steps = draw_steps(2)
    show_steps("three processes", steps, capsys)

    outcome = Command(folder, RECIPE, 3).interrupt(steps[0], signal.SIGUSR1, rank=2)
    show("SIGUSR1 to rank 2 only", outcome, capsys)
    assert outcome["status"] == 75, outcome["output"]
    assert f"stopped by SIGUSR1 (saved in {folder} at epoch" in outcome["output"]
    assert outcome["saved"] == outcome["reached"], "all ranks stop at the same step"
    other = shutil.copytree(folder, tmp_path / "other")

    outcome = Command(folder, RECIPE, 3).interrupt(last_step(folder) + steps[1], signal.SIGKILL)
    show("SIGKILL to the caller", outcome, capsys)
    assert outcome["saved"] == outcome["reached"], "the workers save after the caller is gone"

    launch("launch_targets:pretrain_each", settings(folder), settings(whole), nproc_per_node=3)
    assert_same(folder, whole)
    resumed = read_json(folder / "provenance.json")["resumed"]
    assert len(resumed) == 2

    capsys.readouterr()
    pretrain(settings(other))
    assert "trained by 3 processes so far, resumed by 1: the views will differ" in capsys.readouterr().out
    lines = Run(other).metrics()
    assert [line["step"] for line in lines if "step" in line] == list(range(EPOCHS * STEPS))
    assert Run(other).backbone.read_bytes() != Run(whole).backbone.read_bytes(), "other processes, other weights"


def test_one_process_interrupted_by_each_signal_ends_with_the_same_bytes_on_multi_crop(one_process, tmp_path, capsys):
    future, folder = one_process
    outcomes = future.result()
    show_steps("one process", [more for _, more, _ in outcomes], capsys)
    for number, _, outcome in outcomes:
        show(f"{number.name} to the only process", outcome, capsys)
        assert outcome["status"] == (-signal.SIGKILL if number == signal.SIGKILL else 75), outcome["output"]
        if number != signal.SIGKILL:
            assert outcome["saved"] == outcome["reached"], "no step is lost"
            assert f"stopped by {number.name} (saved in {folder} at epoch" in outcome["output"]
    saved = [outcome["saved"] for _, _, outcome in outcomes]
    assert any(step % STEPS for step in saved), "at least one checkpoint is within an epoch"
    capsys.readouterr()
    pretrain(settings(folder, CROPS))
    assert f"resuming after epoch {saved[-1] // STEPS}, step {saved[-1] % STEPS} of {STEPS}" in capsys.readouterr().out
    whole = tmp_path / "whole"
    pretrain(settings(whole, CROPS), progress=False)
    assert_same(folder, whole)


def test_two_processes_on_photos_in_memory_interrupted_twice_end_with_the_same_bytes(tmp_path, capsys):
    write_photos(tmp_path / "photos")
    photos = {"data_dir": str(tmp_path / "photos"), "arch": "resnet8", "mlp": "64-16", "workers": 2}
    whole, folder = tmp_path / "whole", tmp_path / "interrupted"
    outcome = Command(folder, PHOTOS, 2, **photos).interrupt(STEPS + 2, signal.SIGTERM)
    show("SIGTERM to the caller", outcome, capsys)
    assert outcome["status"] == 75, outcome["output"]
    assert f"stopped by SIGTERM (saved in {folder} at epoch" in outcome["output"]
    assert outcome["saved"] == outcome["reached"]

    outcome = Command(folder, PHOTOS, 2, **photos).interrupt(last_step(folder) + 2, signal.SIGKILL, rank=1)
    show("SIGKILL to rank 1", outcome, capsys)
    assert outcome["status"] == 2
    assert "Traceback" not in outcome["output"]
    assert "rank 1 on" in outcome["output"]
    assert "was ended by SIGKILL before it could report an error" in outcome["output"]
    both = (settings(place, PHOTOS, **photos) for place in (folder, whole))
    launch("launch_targets:pretrain_each", *both, nproc_per_node=2)
    assert_same(folder, whole)
