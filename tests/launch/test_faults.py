"""Faults of several processes, stops at difficult moments, and progress with and without a screen.

For a single process, test_training_faults.py has a loss that is not finite, broken images and decoding processes.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("papermill", reason="comes with the extra notebooks")
import nbformat
from processes import HANG, START, descendants, lives, wait_for

from sfrik.errors import Preempted, SfrikError
from sfrik.launch.launcher import WorkerError, launch
from sfrik.pretrain import loop as module
from sfrik.pretrain.loop import pretrain
from sfrik.reproduce import notebooks
from sfrik.reproduce.notebooks import execute
from sfrik.runs.checkpoints import Checkpoints
from sfrik.runs.folder import Run
from sfrik.settings import PretrainSettings
from sfrik.system import progress
from sfrik.system.files import read_json
from sfrik.system.progress import Progress

TESTS = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def smoke(folder, **overrides):
    fixed = {"exp_dir": str(folder), "device": "cpu", "precision": "fp32", "batch_size": 64, "subset": 30, "epochs": 2}
    return PretrainSettings.from_recipe("smoke/sfrik_l2_q64", **{**fixed, **overrides})


# --- a loss that is not finite


def test_each_of_two_processes_keeps_its_images_and_embeddings_of_a_loss_that_is_not_finite(tmp_path):
    with pytest.raises(WorkerError, match=r"rank \d on .* failed:(.|\n)*epoch 0, step [1-3]: the loss is not finite"):
        launch("sfrik.pretrain:pretrain", smoke(tmp_path, base_lr=1e38), nproc_per_node=2)
    first, second = (torch.load(tmp_path / f"fault.rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["step"] == second["step"] >= 1
    assert len(first["images"]) == len(second["images"]) == 32, "each process has its shard of the 64"
    assert not set(first["images"]) & set(second["images"])
    assert [view.shape for view in first["views"]] == [(32, 64)] * 2
    assert set(first) - set(second) == {"model", "optimizer", "scaler"}, "which are the same on all"
    state = Run(tmp_path).state()
    assert state["state"] == "failed"
    assert "the loss is not finite" in state["error"]


# --- processes that decode


def photos(folder, run, **overrides):
    """The settings of a training on small images in files, with processes that decode them."""
    for part, count in (("train", 48), ("val", 1)):
        for label in "ab":
            (folder / part / label).mkdir(parents=True)
            for k in range(count):
                pixels = np.random.default_rng(k).integers(0, 255, (24, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / label / f"{k}.png")
    return PretrainSettings.parse(
        {
            **{"dataset": "image_folder", "data_dir": str(folder), "exp_dir": str(run), "arch": "resnet8", "stem": "small"},
            **{"size": 16, "mlp": "64-16", "batch_size": 16, "epochs": 100, "warmup_epochs": 0, "base_lr": 0.1, "knn_every": 0},
            **{"device": "cpu", "precision": "fp32", "workers": 2, "log_every": 1, **overrides},
        }
    )


def test_a_training_whose_decoding_process_is_killed_says_what_to_lower_and_leaves_none(tmp_path, monkeypatch):
    before, seen = descendants(), []  # other tests leave helpers of multiprocessing

    def log(self, line):
        if line.get("step") == 2:
            seen.extend(process for process in descendants() if process not in before)
            seen[0].kill()

    monkeypatch.setattr(Run, "log", log)
    with pytest.raises(SfrikError, match=r"a process that decodes images ended .*lower workers \(now 2 .*batch_size \(now 16"):
        pretrain(photos(tmp_path / "images", tmp_path / "run"), progress=False)
    assert len(seen) == 2
    assert not any(lives(process) for process in seen)
    assert "lower workers" in read_json(tmp_path / "run" / "state.json")["error"]


def test_the_error_is_that_of_the_process_that_failed_and_not_of_the_one_that_lost_it(tmp_path):
    settings = photos(tmp_path / "images", tmp_path / "run", workers=0)
    (tmp_path / "images" / "train" / "b" / "3.png").write_bytes(b"no image")
    with pytest.raises(WorkerError, match=r"rank \d on .* failed(.|\n)*cannot read image .*b/3\.png: not an image") as error:
        launch("sfrik.pretrain:pretrain", settings, nproc_per_node=2)
    assert error.value.mistake.startswith("cannot read image"), "it is marked as an error in the input"
    state = Run(tmp_path / "run").state()
    assert state["state"] == "failed"
    assert state["error"].startswith("cannot read image")


# --- awkward moments


def test_a_training_that_is_ended_after_its_last_checkpoint_returns_its_last_line_when_it_resumes(tmp_path):
    last = pretrain(smoke(tmp_path / "whole"), progress=False)
    with pytest.MonkeyPatch.context() as patch:

        def ended(*arguments):
            raise KeyboardInterrupt

        patch.setattr(module, "finish", ended)
        with pytest.raises(KeyboardInterrupt):
            pretrain(smoke(tmp_path / "cut"), progress=False)
    again = pretrain(smoke(tmp_path / "cut"), progress=False)
    assert {**again, "seconds": 0} == {**last, "seconds": 0}
    assert Run(tmp_path / "cut").backbone.read_bytes() == Run(tmp_path / "whole").backbone.read_bytes()


def test_a_training_that_is_ended_when_its_weights_are_written_removes_its_checkpoint_later(tmp_path):
    with pytest.MonkeyPatch.context() as patch:

        def ended(self):
            raise KeyboardInterrupt

        patch.setattr(Checkpoints, "delete", ended)
        with pytest.raises(KeyboardInterrupt):
            pretrain(smoke(tmp_path), progress=False)
    assert Checkpoints(tmp_path).exist
    pretrain(smoke(tmp_path), progress=False)
    assert not Checkpoints(tmp_path).exist


def run_cell(folder: Path, monkeypatch, source: str, ready) -> None:
    """Execute a notebook of one cell, and send SIGTERM to this process once the notebook has started and `ready()` is true."""
    monkeypatch.setattr(notebooks, "NOTEBOOKS", folder)
    spec = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    cells = [nbformat.v4.new_code_cell(source)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=spec), folder / "calls.ipynb")
    before = signal.getsignal(signal.SIGTERM)

    def ask() -> None:
        wait_for(lambda: signal.getsignal(signal.SIGTERM) is not before and ready(), START, "the notebook")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask, daemon=True).start()
    execute("calls", {}, folder / "out.ipynb")


def test_a_stop_request_before_the_kernel_has_started_is_not_lost(tmp_path, monkeypatch):
    for name in ("KERNEL_SIGTERM", "KERNEL_GRACE"):
        monkeypatch.setattr(notebooks, name, 2 * HANG)  # after which a cell that was not interrupted would be ended by force
    with pytest.raises(Preempted, match=r"stopped by SIGTERM \(in notebook calls\)"):
        run_cell(tmp_path, monkeypatch, f"import time\ntime.sleep({HANG})", lambda: True)
    assert not (tmp_path / "out.ipynb").exists()


def test_a_stop_request_too_late_for_one_notebook_stops_before_the_next(tmp_path, monkeypatch):
    there = tmp_path / "there"
    ends_well = f"import time\ntry:\n    open({str(there)!r}, 'w')\n    time.sleep({HANG})\nexcept KeyboardInterrupt:\n    pass"
    with pytest.raises(Preempted, match=r"stopped by SIGTERM \(notebook calls is done\)"):
        run_cell(tmp_path, monkeypatch, ends_well, there.exists)
    assert (tmp_path / "out.ipynb").exists(), "it is complete, and will not be executed again"


# --- progress


@pytest.fixture
def headless(monkeypatch):
    for name in ("JPY_SESSION_NAME", "SFRIK_BAR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)


def report(saved: list) -> None:
    progress_of_task = Progress(8, 0, save=lambda **facts: saved.append(facts), show=True)
    progress_of_task.step(3, lambda: {"epoch": 0, "epochs": 2, "loss": 0.5})
    progress_of_task.write("a line")
    progress_of_task.close()


def test_a_log_gets_a_plain_line_per_minute_and_no_bar(headless, monkeypatch, capsys):
    saved = []
    report(saved)
    assert capsys.readouterr() == ("a line\n", ""), "the first line of progress comes after a minute"
    assert (saved[0]["step"], saved[0]["steps"], saved[0]["loss"]) == (3, 8, 0.5), "state.json is written at once"
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    report(saved)
    out, err = capsys.readouterr()
    assert out == "epoch 1/2, loss 0.5000, step 3 of 8\na line\n"
    assert err == ""


@pytest.mark.parametrize("name", ["JPY_SESSION_NAME", "SFRIK_BAR"])
def test_a_bar_is_drawn_on_a_screen(headless, monkeypatch, capsys, name):
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    report([])
    out, err = capsys.readouterr()
    assert "3/8" in err
    assert "epoch 1/2, loss 0.5000" in err
    assert out == "a line\n"


def test_a_worker_sends_its_progress_and_draws_nothing(headless, monkeypatch, capsys):
    handed = []
    monkeypatch.setenv("SFRIK_BAR", "1")
    monkeypatch.setattr(progress, "progress_callback", handed.append)
    report([])
    assert handed == [{"done": 3, "total": 8, "text": "epoch 1/2, loss 0.5000"}]
    assert capsys.readouterr() == ("a line\n", "")


def test_the_caller_draws_the_bar_of_its_workers_and_their_lines_above_it(headless, monkeypatch, capfd):
    monkeypatch.setenv("JPY_SESSION_NAME", "a notebook")
    launch("launch_targets:show_progress", nproc_per_node=2)
    out, err = capfd.readouterr()
    assert [f"line {step}" in out for step in (1, 2, 3)] == [True] * 3
    assert "3/8" in err
    assert "epoch 1/2, loss 0.5000" in err
