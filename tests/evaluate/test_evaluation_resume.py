"""An interrupted evaluation resumes from its checkpoint and ends with the same head and score, to the last bit."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import children
from PIL import Image
from toys import squares

from sfrik.datasets import describe_data
from sfrik.errors import Preempted
from sfrik.evaluate import evaluate, forward, linear_probe, sgd_loop
from sfrik.evaluate.checkpoint import EvaluationCheckpoint
from sfrik.networks import build_backbone, save_weights
from sfrik.runs.checkpoints import Checkpoints
from sfrik.runs.folder import Run
from sfrik.settings import EvaluateSettings
from sfrik.system.files import file_hash, read_json

pytest.importorskip("fcntl", reason="POSIX signals and forks")
ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
CLASSES, EPOCHS, STEPS = 3, 3, 4  # batches of 8 make 4 steps of the 30 training images, the last of 6

PROTOCOLS = {
    "linear": {"val_dataset": "val", "lr_head": 0.05},
    "linear_tune": {"val_dataset": "train", "lr_sweep": (1e-3, 0.05, 3e38), "head_norm": "batchnorm"},  # the last rate diverges
    "finetune": {"weights": "finetune", "lr_head": 0.05},
}


@pytest.fixture(autouse=True)
def one_thread():
    """As in the child processes: another number of threads changes the order of sums and so the bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An image folder of noise around one grey level per class, and untrained weights."""
    root, noise = tmp_path_factory.mktemp("evaluations"), np.random.default_rng(0)
    for split, count in (("train", 18), ("val", 6)):
        for label in range(CLASSES):
            (root / split / str(label)).mkdir(parents=True)
            for k in range(count):
                pixels = np.clip(noise.normal(90 + 20 * label, 40, (20, 20, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / str(label) / f"{k:02}.png")
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_weights(build_backbone("resnet8", "small", 3), root / f"weights{seed}.safetensors")
    return root


def settings_of(place: Path, folder: Path, protocol: str, **overrides) -> EvaluateSettings:
    """Settings of a run in `folder`; its weights are copied there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "backbone.safetensors").is_file():
        (folder / "backbone.safetensors").write_bytes((place / "weights0.safetensors").read_bytes())
    images = {"dataset": "image_folder", "data_dir": str(place), "size": 16, "subset": 10, "val_subset": 5, "workers": 0}
    network = {"arch": "resnet8", "stem": "small", "device": "cpu", "precision": "fp32"}
    given = {"exp_dir": str(folder), "epochs": EPOCHS, "batch_size": 8, **images, **network, **PROTOCOLS[protocol]}
    return EvaluateSettings(**{**given, **overrides})


def contents(folder: Path) -> dict[str, object]:
    """All files of a run except locks: weights as hashes, scores parsed, without the commit, which may change."""

    def read(path: Path) -> object:
        return {**read_json(path), "commit": ""} if path.suffix == ".json" else file_hash(path)

    return {path.name: read(path) for path in folder.iterdir() if path.suffix != ".lock"}


def after_steps(number: int, action) -> None:
    """Call `action` after that many optimiser steps in this process."""
    step, taken = torch.optim.SGD.step, []

    def counted(self, *arguments):
        step(self, *arguments)
        taken.append(0)
        if len(taken) == number:
            action()

    torch.optim.SGD.step = counted


def work(settings: EvaluateSettings, sent: int, number: int, within_epoch: float) -> None:
    """In a child process: evaluate, and receive a signal after `number` steps; exit with the status of the command line."""
    torch.set_num_threads(1)
    sgd_loop.AFTER_EPOCH, sgd_loop.WITHIN_EPOCH = 0.0, within_epoch
    if sent:
        after_steps(number, lambda: os.kill(os.getpid(), sent))
    try:
        evaluate(settings, progress=False)
    except Preempted:
        sys.exit(75)
    except KeyboardInterrupt:
        sys.exit(130)


def in_child(settings: EvaluateSettings, sent: int = 0, number: int = 0, within_epoch: float = math.inf) -> int:
    child = children.Process(target=work, args=(settings, sent, number, within_epoch))
    child.start()
    child.join()
    return child.exitcode


@pytest.fixture(scope="module")
def whole(place):
    """The files of an uninterrupted evaluation, by protocol; it runs in this process, which changes no bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for protocol in PROTOCOLS:
        evaluate(settings_of(place, place / "whole" / protocol, protocol), progress=False)
    torch.set_num_threads(threads)
    return {protocol: contents(place / "whole" / protocol) for protocol in PROTOCOLS}


# --- signals


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_evaluation_that_is_stopped_and_killed_several_times_ends_with_the_same_bits(place, whole, tmp_path, protocol):
    settings = settings_of(place, tmp_path, protocol)
    random = np.random.default_rng(len(protocol))
    for sent, status in [(signal.SIGTERM, 75), (signal.SIGKILL, -9), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]:
        # SIGKILL: with checkpoints at every step or only at the end of epochs; the other signals write their own checkpoint
        within_epoch = 0.0 if sent == signal.SIGKILL and random.random() < 0.5 else math.inf
        assert in_child(settings, sent, int(random.integers(1, 4)), within_epoch) == status
        assert not (tmp_path / f"{protocol}.json").exists()
    assert in_child(settings) == 0
    assert contents(tmp_path) == whole[protocol], "the same head, backbone and score, and no other files"
    assert set(contents(tmp_path)) == {"backbone.safetensors", f"head_{protocol}.safetensors", f"{protocol}.json"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_signal_during_scoring_stops_there_and_no_step_is_repeated(place, whole, tmp_path, protocol, monkeypatch):
    """With a frozen backbone the signal arrives during extraction, before the first step; with fine-tuning after an epoch."""
    settings, scored, steps = settings_of(place, tmp_path, protocol), [], []
    batches, step = forward.batches, torch.optim.SGD.step

    def signal_during_scoring(*arguments, **keywords):
        scored.append(len(steps))
        os.kill(os.getpid(), signal.SIGTERM)
        yield from batches(*arguments, **keywords)

    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: steps.append(0) or step(self))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "batches", signal_during_scoring)
        where = f"finetune: saved at epoch 0, step {STEPS} of {STEPS}" if protocol == "finetune" else "nothing was trained yet"
        with pytest.raises(Preempted, match=where):
            evaluate(settings, progress=False)
    assert scored == [STEPS if protocol == "finetune" else 0]
    evaluate(settings, progress=False)
    assert len(steps) == EPOCHS * STEPS
    assert contents(tmp_path) == whole[protocol]


def test_the_chosen_head_of_a_sweep_is_not_trained_again_after_a_signal_during_its_last_scoring(place, tmp_path, monkeypatch):
    settings, steps = settings_of(place, tmp_path, "linear_tune", val_dataset="val"), []
    batches, step, calls = forward.batches, torch.optim.SGD.step, []

    def signal_at_second_extraction(*arguments, **keywords):  # the first extracts the tuning split
        calls.append(0)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        yield from batches(*arguments, **keywords)

    monkeypatch.setattr(forward, "batches", signal_at_second_extraction)
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: steps.append(0) or step(self))
    with pytest.raises(Preempted, match=f"saved at epoch {EPOCHS}"):
        evaluate(settings, progress=False)
    score = evaluate(settings, progress=False)
    assert len(steps) == EPOCHS * STEPS
    assert score["images"] == 6 * CLASSES


def test_a_checkpoint_of_an_earlier_release_resumes_without_the_losses_that_it_lacks(place, whole, tmp_path, monkeypatch):
    settings, step, taken, load = settings_of(place, tmp_path, "linear"), torch.optim.SGD.step, [], EvaluationCheckpoint.load

    def signal_in_the_second_epoch(self):
        step(self)
        taken.append(0)
        if len(taken) == STEPS + 1:
            os.kill(os.getpid(), signal.SIGUSR1)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", signal_in_the_second_epoch)
        with pytest.raises(Preempted, match="saved at epoch 1, step 1"):
            evaluate(settings, progress=False)
    later = {"losses", "correct"}
    monkeypatch.setattr(EvaluationCheckpoint, "load", lambda self: {k: v for k, v in load(self).items() if k not in later})
    evaluate(settings, progress=False)
    expected, found = whole["linear"]["linear.json"], contents(tmp_path)["linear.json"]
    assert found == {**expected, "train_loss": [None, None, expected["train_loss"][2]]}


# --- errors at any step


class Fault(Exception):
    """An error that is not a signal."""


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_evaluation_resumes_after_an_error_at_any_step(place, whole, tmp_path, protocol, monkeypatch):
    """It saves after every step; each attempt but the last makes one step, and a second one that fails unsaved."""
    settings, step, counts = settings_of(place, tmp_path, protocol), torch.optim.SGD.step, []

    def fails_at_second_step(self):
        step(self)
        counts[-1] += 1
        if counts[-1] == 2 and len(counts) <= 5:
            raise Fault

    monkeypatch.setattr(torch.optim.SGD, "step", fails_at_second_step)
    monkeypatch.setattr(sgd_loop, "WITHIN_EPOCH", 0.0)
    monkeypatch.setattr(sgd_loop, "AFTER_EPOCH", 0.0)
    for done in range(5):
        counts.append(0)
        with pytest.raises(Fault):
            evaluate(settings, progress=False)
        saved = Checkpoints(tmp_path, f"checkpoint_{protocol}").load()
        assert (saved["place"]["epoch"], saved["place"]["step"]) == divmod(done + 1, STEPS)
        assert len(saved["tops"]) == saved["place"]["epoch"]
    counts.append(0)
    evaluate(settings, progress=False)
    assert counts[-1] == EPOCHS * STEPS - 5
    assert contents(tmp_path) == whole[protocol]


def test_a_diverged_rate_is_not_trained_again(place, tmp_path, monkeypatch, capsys):
    settings = settings_of(place, tmp_path, "linear_tune")
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", torch.optim.SGD.step)
        after_steps(STEPS, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Preempted):
            evaluate(settings, progress=False)
    assert capsys.readouterr().err.count("lr_head 3e+38 diverged (epoch 0, ") == 1
    score = evaluate(settings, progress=False)
    assert score["sweep"]["3e+38"] == 0
    assert "diverged" not in capsys.readouterr().err


def test_a_truncated_checkpoint_falls_back_to_the_previous_one(place, whole, tmp_path, monkeypatch):
    settings = settings_of(place, tmp_path, "finetune")
    with monkeypatch.context() as patch:
        patch.setattr(sgd_loop, "WITHIN_EPOCH", 0.0)
        patch.setattr(torch.optim.SGD, "step", torch.optim.SGD.step)
        after_steps(6, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Preempted):
            evaluate(settings, progress=False)
    newest = tmp_path / "checkpoint_finetune.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = re.sub(r"\W", "_", socket.gethostname())
    left = tmp_path / f".checkpoint_finetune.pt.{host}-{dead.pid}-0123abcd.tmp"
    left.write_bytes(b"an unfinished checkpoint")
    evaluate(settings, progress=False)
    (tmp_path / "checkpoint_finetune.broken").unlink()
    assert contents(tmp_path) == whole["finetune"]


# --- which evaluation a checkpoint belongs to


def stopped_in_second_epoch(settings: EvaluateSettings) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", torch.optim.SGD.step)
        after_steps(STEPS + 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Preempted, match=f"linear: saved at epoch 1, step 1 of {STEPS}.*the same command"):
            evaluate(settings, progress=False)
    assert (Path(settings.exp_dir) / "checkpoint_linear.pt").is_file()


@pytest.mark.parametrize("other", ["settings", "weights"])
def test_a_checkpoint_of_another_evaluation_is_ignored(place, whole, tmp_path, capsys, other):
    before = settings_of(place, tmp_path, "linear", **({"lr_head": 0.06} if other == "settings" else {}))
    if other == "weights":
        (tmp_path / "backbone.safetensors").write_bytes((place / "weights1.safetensors").read_bytes())
    stopped_in_second_epoch(before)
    (tmp_path / "backbone.safetensors").write_bytes((place / "weights0.safetensors").read_bytes())
    evaluate(settings_of(place, tmp_path, "linear"), progress=False)
    stderr = capsys.readouterr().err
    assert "linear: restarted" in stderr
    assert f"belongs to another evaluation (different {other})" in stderr
    assert contents(tmp_path) == whole["linear"]


def test_a_checkpoint_of_other_images_or_another_precision_is_ignored(place, tmp_path, capsys):
    settings, run = settings_of(place, tmp_path, "linear"), Run(tmp_path)
    images = {"train": describe_data(squares(8, 0)), "test": describe_data(squares(4, 1))}
    parts = {"models": {}, "optimizer": {}, "scaler": {}, "tops": [], "diverged": {}, "random": {}}
    place = {"epoch": 0, "step": 3, "loss": 0.5}
    EvaluationCheckpoint(run, "linear", settings, "digest", images, "fp32").save({**parts, "place": place})
    assert EvaluationCheckpoint(run, "linear", settings, "digest", images, "fp32").load()["place"] == place
    assert EvaluationCheckpoint(run, "linear", settings, "digest", images, "bf16").load() is None
    for split in images:
        for other in (replace(squares(8, 0), classes=("cat", "dog")), squares(9, 0), squares(8, 2)):
            known = {**images, split: describe_data(other)}
            assert EvaluationCheckpoint(run, "linear", settings, "digest", known, "fp32").load() is None
            assert f"(different {split} images)" in capsys.readouterr().err


# --- when checkpoints are written


def test_short_evaluations_write_no_checkpoint_and_long_ones_few(place, tmp_path, monkeypatch):
    saved, now = [], [0.0]
    monkeypatch.setattr(sgd_loop.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(EvaluationCheckpoint, "save", lambda self, state: saved.append(tuple(state["place"].values())[:2]))
    step = torch.optim.SGD.step
    for seconds, expected in [(2.4, []), (8, [(1, 0), (2, 0), (3, 0)]), (250, [(0, 3), (1, 0), (1, 3), (2, 0), (2, 3), (3, 0)])]:
        saved.clear()

        def slow(self, seconds=seconds):
            now[0] += seconds
            step(self)

        monkeypatch.setattr(torch.optim.SGD, "step", slow)
        evaluate(settings_of(place, tmp_path / str(seconds), "linear"), progress=False)
        assert saved == expected, f"steps of {seconds} s"


def test_without_a_checkpoint_nothing_is_saved_and_signal_handlers_are_unchanged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings, seen = EvaluateSettings(dataset="mnist5k", size=28, epochs=1, batch_size=16, workers=0), []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: seen.append(signal.getsignal(signal.SIGTERM)) or step(self))
    before = signal.getsignal(signal.SIGTERM)
    linear_probe(build_backbone("resnet8", "small", 1), squares(16, 0), squares(4, 1), settings, CPU, progress=False)
    assert seen == [before]
    assert list(tmp_path.iterdir()) == []


# --- notebooks


@pytest.mark.parametrize("name", ["03_linear_probing", "04_semi_supervised", "05_knn_and_logistic_regression"])
def test_notebooks_launch_long_computations_as_steps_that_receive_the_signals_of_a_job(name):
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    trees = [ast.parse("".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    long = {"evaluate", "transfer", "knn_eval", "logistic_regression", "features_here", "extract_features"}
    assert not {call.func.id for call in calls} & long
    launched = [call for call in calls if call.func.id == "launch"]
    assert {call.args[0].id for call in launched} <= long
    for call in launched:
        assert {"nproc_per_node": 1, "nodes": 1}.items() <= {
            keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords
        }.items()
    assert launched
