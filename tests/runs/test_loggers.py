"""TensorBoard and Weights & Biases show each number of metrics.jsonl once, and their failures do not affect training."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toys import interrupted_at

from sfrik.errors import SfrikError
from sfrik.pretrain.loop import pretrain
from sfrik.runs import loggers
from sfrik.runs.folder import Run
from sfrik.settings import PretrainSettings

ROOT = Path(__file__).parents[2]


def settings(folder, *names):
    """Two epochs of four steps."""
    fixed = {"batch_size": 64, "subset": 30, "epochs": 2, "log_every": 1, "knn_every": 0}
    fixed |= {"device": "cpu", "precision": "fp32", "workers": 0}
    return PretrainSettings.from_recipe("smoke/sfrik_l2_q64", exp_dir=str(folder), loggers=names, **fixed)


def train_until_second_epoch(folder, *names):
    """Train until the values of step 5 are logged; the last checkpoint is of step 4."""
    with interrupted_at(step=6):
        pretrain(settings(folder, *names), progress=False)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run without loggers."""
    folder = tmp_path_factory.mktemp("plain")
    pretrain(settings(folder), progress=False)
    return folder


def same_weights(first, second):
    first, second = (load_file(Run(folder).backbone) for folder in (first, second))
    return all(torch.equal(first[name], second[name]) for name in first)


def expected(folder):
    """The points of metrics.jsonl: {tag: [(step, value)]}."""
    points = {}
    for line in Run(folder).metrics():
        kind, step = ("step", line["step"]) if "step" in line else ("epoch", 4 * (line["epoch"] + 1) - 1)
        for name, value in line.items():
            if name not in ("epoch", "step"):
                points.setdefault(f"{kind}/{name}", []).append((step, value))
    return points


def test_tensorboard_shows_each_line_of_a_resumed_run_once(plain, tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train_until_second_epoch(tmp_path, "tensorboard")
    pretrain(settings(tmp_path, "tensorboard"), progress=False)
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    points = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    curves = expected(tmp_path)
    assert {"step/loss", "step/alignment", "step/mmd", "step/lr", "epoch/loss", "epoch/effective_rank"} <= curves.keys()
    assert points.keys() == curves.keys()
    for tag, found in points.items():
        assert [step for step, _ in found] == [step for step, _ in curves[tag]], tag
        assert [value for _, value in found] == pytest.approx([value for _, value in curves[tag]], rel=1e-6), "float32"
    assert same_weights(plain, tmp_path)


class FakeWandb(types.ModuleType):
    """Stands in for W&B and records its calls."""

    def __init__(self, fails=()):
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.inits, self.points, self.finished, self.fails = [], [], 0, fails

    def Settings(self, **arguments):
        return arguments

    def init(self, **arguments):
        if "init" in self.fails:
            raise OSError("no network in this test")
        self.inits.append(arguments)
        return self

    def log(self, values, step):
        if "log" in self.fails:
            raise OSError("no network in this test")
        self.points += [(name, step, value) for name, value in values.items()]

    def finish(self):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    def install(**arguments):
        fake = FakeWandb(**arguments)
        monkeypatch.setitem(sys.modules, "wandb", fake)
        return fake

    return install


def test_a_resumed_training_continues_the_same_wandb_run_and_sends_no_value_twice(wandb, plain, tmp_path):
    fake = wandb()
    train_until_second_epoch(tmp_path, "wandb")
    pretrain(settings(tmp_path, "wandb"), progress=False)
    first, second = fake.inits
    assert first["id"] == second["id"]
    assert first["resume"] == "allow"
    assert first["config"] == settings(tmp_path).what()
    assert fake.finished == 2
    points = sorted((tag, step) for tag, found in expected(tmp_path).items() for step, _ in found)
    assert sorted((name, step) for name, step, _ in fake.points) == points
    steps = [step for _, step, _ in fake.points]
    assert steps == sorted(steps), "W&B ignores values of an earlier step than the last one"
    assert same_weights(plain, tmp_path)


def test_a_run_that_is_started_from_scratch_is_a_new_wandb_run(wandb, tmp_path):
    fake = wandb()
    for _ in range(2):
        loggers.Loggers(["wandb"], tmp_path, {}, 0).close()
    assert fake.inits[0]["id"] != fake.inits[1]["id"]


@pytest.mark.parametrize("fails", ["init", "log"])
def test_a_failing_logger_is_reported_once_and_the_training_continues(wandb, plain, tmp_path, capsys, fails):
    wandb(fails=(fails,))
    pretrain(settings(tmp_path, "wandb"), progress=False)
    warnings = capsys.readouterr().err.splitlines()
    assert warnings == ["logger wandb failed and is disabled (OSError: no network in this test); the training continues"]
    assert same_weights(plain, tmp_path)


def test_a_missing_package_is_an_error_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SfrikError, match=r"loggers wandb needs the package wandb: python -m pip install wandb"):
        pretrain(settings(tmp_path / "run", "wandb"), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_that_name_is_not_the_package(monkeypatch, tmp_path):
    (tmp_path / "wandb" / "offline-run-1").mkdir(parents=True)  # as W&B leaves in the working directory
    search = [str(tmp_path), *(path for path in sys.path if not (Path(path) / "wandb").is_dir())]
    monkeypatch.setattr(sys, "path", search)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(SfrikError, match="needs the package wandb"):
        loggers.check_loggers(["wandb"])


def test_an_unknown_logger_is_an_error_that_lists_the_known_ones():
    with pytest.raises(SfrikError, match=r"loggers.*'tensorboard' or 'wandb'"):
        PretrainSettings.parse({"loggers": ("mlflow",)})


def test_a_folder_of_wandbs_files_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "wandb" / "offline-run-1").mkdir(parents=True)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    importlib.invalidate_caches()
    assert importlib.util.find_spec("wandb") is not None
    with pytest.raises(SfrikError, match="loggers wandb needs the package wandb"):
        loggers.check_loggers(["wandb"])


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb (an extra of 68 MB) is not installed")
def test_wandb_logs_offline_without_account_and_network(tmp_path):
    script = (
        "import sys; from pathlib import Path; from sfrik.runs.loggers import Loggers\n"
        "for first in (0, 2):\n"
        "    log = Loggers(['wandb'], Path(sys.argv[1]), {'epochs': 1}, first)\n"
        "    [log.log('step', {'step': k, 'loss': 0.5}, k) for k in range(first, first + 3)]\n"
        "    log.close()\n"
    )
    environment = {**os.environ, "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stderr
    record = json.loads((tmp_path / "wandb" / "sfrik.json").read_text(encoding="utf-8"))
    assert record["step"] == 4
    files = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    assert all(record["id"] in path.name for path in files)
