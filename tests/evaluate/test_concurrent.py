"""Evaluations of one run by two processes at once: the second waits for the first and uses its features or its score."""

from __future__ import annotations

import importlib
import io
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import children

from sfrik import evaluate
from sfrik.evaluate.transfer import transfer
from sfrik.networks import build_backbone, save_weights
from sfrik.settings import EvaluateSettings, FrozenSettings, KnnSettings, LogisticSettings, TransferSettings
from sfrik.system.files import read_json

pytest.importorskip("fcntl", reason="locks between processes")
TIMEOUT = 120  # seconds; a wait that ends by it is a failure
COMMANDS = {
    "knn": (evaluate.knn_eval, KnnSettings, {"nb_knn": (5,)}),
    "logistic": (evaluate.logistic_regression, LogisticSettings, {"solver": "sgd", "epochs": 1}),
    "linear": (evaluate.evaluate, EvaluateSettings, {"epochs": 1}),
    "transfer_digits8x8": (transfer, TransferSettings, {"target": "digits8x8", "val_dataset": "val"}),
}


class Output(io.TextIOBase):
    """A stream whose text is sent over a connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def write(self, text: str) -> int:
        self.connection.send(("output", text))
        return len(text)


def work(name: str, settings: FrozenSettings, pause: tuple[str, str], connection: Connection) -> None:
    """In a child process: run a command, which stops at the function `pause` until the test answers."""
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = Output(connection)
    module, function = importlib.import_module(pause[0]), pause[1]
    original = getattr(module, function)

    def paused(*arguments: Any, **keywords: Any) -> Any:
        connection.send(("paused", ""))
        connection.recv()
        return original(*arguments, **keywords)

    setattr(module, function, paused)
    connection.send(("score", COMMANDS[name][0](settings)))


class Child:
    """A command in a process."""

    def __init__(self, name: str, folder: Path, pause: tuple[str, str]) -> None:
        kind, given = COMMANDS[name][1:]
        images = {"dataset": "mnist5k", "size": 28, "subset": 4, "val_dataset": "train", "val_subset": 10, "workers": 0}
        network = {"arch": "resnet8", "stem": "small", "device": "cpu", "precision": "fp32"}
        settings = kind(**{"exp_dir": str(folder), **images, **network, **given})
        self.connection, other = children.Pipe()
        self.process = children.Process(target=work, args=(name, settings, pause, other), daemon=True)
        self.process.start()
        other.close()
        self.output = ""
        self.pauses = 0

    def receive(self, until: str, text: str = "") -> Any:
        """Read messages up to one of a kind, or up to an output with `text`; fails if the process ends before."""
        while self.connection.poll(TIMEOUT):
            try:
                kind, content = self.connection.recv()
            except EOFError:
                pytest.fail(f"the process ended without {until} {text}: {self.output}")
            self.output += content if kind == "output" else ""
            self.pauses += kind == "paused"
            if kind == until and text in self.output:
                return content
        pytest.fail(f"no {until} {text} after {TIMEOUT} s: {self.output}")

    def resume(self) -> None:
        self.connection.send("go")

    def score(self) -> dict[str, Any]:
        found = self.receive("score")
        self.process.join(TIMEOUT)
        assert self.process.exitcode == 0
        return found


@pytest.fixture
def folder(tmp_path):
    """A run with untrained weights, without features and scores."""
    torch.manual_seed(0)
    save_weights(build_backbone("resnet8", "small", 1), tmp_path / "backbone.safetensors")
    return tmp_path


@pytest.mark.parametrize(("first", "second"), [("knn", "logistic"), ("logistic", "knn")])
def test_a_second_command_waits_for_the_extraction_of_the_first_and_uses_its_features(folder, first, second):
    pause = ("sfrik.evaluate.features", "_extract")
    one = Child(first, folder, pause)
    one.receive("paused")
    other = Child(second, folder, pause)
    other.receive("output", "waiting for")
    assert f"pid {one.process.pid}" in other.output
    one.resume()
    scores = {first: one.score(), second: other.score()}
    assert (one.pauses, other.pauses) == (1, 0), "the features were extracted once"
    for name, score in scores.items():
        assert score["images"] == 100
        assert read_json(folder / f"{name}_tune.json") == score


@pytest.mark.parametrize(
    ("name", "pause", "score_name"),
    [
        ("linear", ("sfrik.evaluate.protocols", "linear_probe"), "linear_tune"),
        ("transfer_digits8x8", ("sfrik.evaluate.transfer", "logistic_by_cross_validation"), "transfer_digits8x8"),
    ],
)
def test_a_second_process_waits_for_the_same_score_and_returns_it(folder, name, pause, score_name):
    one = Child(name, folder, pause)
    one.receive("paused")
    other = Child(name, folder, pause)
    other.receive("output", "waiting for")
    one.resume()
    assert one.score() == other.score() == read_json(folder / f"{score_name}.json")
    assert (one.pauses, other.pauses) == (1, 0), "the score was measured once"


def test_a_process_measures_the_score_itself_after_the_one_it_waited_for_was_killed(folder):
    pause = ("sfrik.evaluate.protocols", "linear_probe")
    one = Child("linear", folder, pause)
    one.receive("paused")
    other = Child("linear", folder, pause)
    other.receive("output", "waiting for")
    one.process.kill()
    other.receive("paused")
    other.resume()
    assert other.score() == read_json(folder / "linear_tune.json")


def test_another_score_of_the_run_is_measured_without_waiting(folder):
    one = Child("linear", folder, ("sfrik.evaluate.protocols", "linear_probe"))
    one.receive("paused")
    other = Child("knn", folder, ("sfrik.evaluate.protocols", "linear_probe"))
    assert other.score()["images"] == 100
    one.resume()
    one.score()
