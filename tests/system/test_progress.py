"""Every long task shows how much is done and how much time is left: in a bar, or in a line per minute."""

from __future__ import annotations

import itertools
import re
import time
from types import SimpleNamespace

import pytest
import torch

from sfrik.evaluate import evaluate, extract_features, knn
from sfrik.evaluate.knn import scores_by_k
from sfrik.evaluate.logistic import logistic_sgd
from sfrik.pretrain.loop import pretrain
from sfrik.runs.folder import Run
from sfrik.settings import EvaluateSettings, FeatureSettings, PretrainSettings
from sfrik.system import progress

LEFT = r"\d+ s left$"


@pytest.fixture
def every_step(monkeypatch):
    """A log that gets a line at each step, by a clock on which each look takes a second."""
    clock = itertools.count()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    for name in ("JPY_SESSION_NAME", "SFRIK_BAR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    pretrain(PretrainSettings.from_recipe("smoke/random_weights", exp_dir=str(folder), device="cpu"), progress=False)
    return str(folder)


def lines(capsys):
    """What was printed, except which images were read."""
    return [line for line in capsys.readouterr().out.splitlines() if " images: " not in line]


@pytest.mark.parametrize("protocol", [{}, {"weights": "finetune"}, {"lr_sweep": (0.1, 0.4)}])
def test_an_evaluation_prints_epoch_loss_step_and_the_time_left(every_step, weights, tmp_path, capsys, protocol):
    network = {"device": "cpu", "precision": "fp32", "workers": 0, "subset": 6, "batch_size": 32, "epochs": 2}
    given = {"exp_dir": str(tmp_path), "pretrained": f"{weights}/backbone.safetensors", **network, **protocol}
    executed = not protocol  # by `sfrik run`, which writes state.json
    if executed:
        Run(tmp_path).update_status("running", stage="linear")
    evaluate(EvaluateSettings.from_recipe("smoke/random_weights", **given))
    state = Run(tmp_path).state() or {}
    assert [state.get(key) for key in ("stage", "epochs")] == (["linear", 2] if executed else [None, None])
    found = lines(capsys)
    assert re.match(rf"epoch 1/2, loss [\d.]+, step 1 of 4, {LEFT}", found[0])
    assert re.match(r"epoch 1/2  (mean )?loss [\d.]+  top-1", found[2])
    assert re.fullmatch(r"epoch 2/2, loss [\d.]+, step 4 of 4", found[4]), "nothing is left"


def test_the_extraction_of_features_prints_the_batches_and_the_time_left(every_step, weights, capsys):
    given = {"exp_dir": weights, "device": "cpu", "precision": "fp32", "workers": 0, "subset": 6, "batch_size": 50}
    extract_features(FeatureSettings.from_recipe("smoke/random_weights", **given))
    found = lines(capsys)
    assert re.match(rf"features of val, step 1 of 20, {LEFT}", found[0])
    assert found[-1] == "features of train, step 2 of 2"


def test_logistic_regression_and_the_search_for_neighbours_print_the_time_left(every_step, capsys, monkeypatch):
    features, labels = torch.randn(40, 4), torch.arange(40) % 2
    logistic_sgd((features, labels), (features, labels), 2, epochs=3, batch_size=20)
    assert lines(capsys)[-1] == "logistic regression, epochs, step 3 of 3"
    monkeypatch.setattr(knn, "BANK_ON_CPU", 16)
    list(scores_by_k(features, labels, features, (1, 3)))
    assert lines(capsys)[-1] == "nearest neighbours, blocks, step 3 of 3"


def test_parts_are_passed_on_in_order_and_only_one_process_prints(every_step, capsys):
    assert list(progress.track("abc", 3, "letters", show=False)) == ["a", "b", "c"]
    assert lines(capsys) == []
    assert list(progress.track("abc", 3, "letters")) == ["a", "b", "c"]
    assert len(lines(capsys)) == 3


def test_a_bar_shows_the_parts_and_the_time_left(every_step, monkeypatch, capsys):
    monkeypatch.setenv("JPY_SESSION_NAME", "a notebook")
    monkeypatch.setattr(progress, "BAR_SECONDS", 0.0)
    for _ in progress.track("abc", 3, "letters"):
        time.sleep(0.15)  # tqdm draws no more often than each 0.1 s
    drawn = capsys.readouterr().err
    assert re.search(r"1/3 \[\d\d:\d\d, .*, letters, \d+ s left\]", drawn)
    assert re.search(r"3/3 \[\d\d:\d\d, .*, letters\]", drawn), "nothing is left"
