"""A hyperparameter at the edge of its sweep."""

from __future__ import annotations

import pytest

from sfrik.runs.folder import Run
from sfrik.runs.sweeps import sweep_edge
from sfrik.settings import EvaluateSettings


@pytest.mark.parametrize(("gain", "edge"), [(0.4, ""), (1.0, ""), (1.4, "highest"), (5.0, "highest")])
def test_a_difference_within_the_error_of_the_tuning_split_is_no_edge(gain, edge):
    """Of 500 images at 95 % the standard error is 0.97 points; of 50,000 it is 0.1."""
    score = {"lr_head": 1.0, "sweep": {"0.1": 95.0 - gain, "1.0": 95.0}}
    images = {"images": 500, "classes": 10, "sha256": ""}
    for data in ({"train": {**images, "images": 50_000}, "tune": images}, {"train": images}):
        assert sweep_edge({**score, "data": data}) == edge
    assert sweep_edge({**score, "data": {"tune": {**images, "images": 50_000}}}) == "highest"
    assert sweep_edge(score) == "highest"


@pytest.mark.parametrize(
    ("sweep", "chosen", "edge"),
    [
        ({"0.1": 80.0, "1.0": 90.0, "10.0": 85.0}, 1.0, ""),
        ({"0.1": 95.0, "1.0": 90.0, "10.0": 85.0}, 0.1, "lowest"),
        ({"0.1": 80.0, "1.0": 90.0, "10.0": 95.0}, 10.0, "highest"),
        ({"10.0": 95.0, "0.1": 80.0, "1.0": 90.0}, 10.0, "highest"),  # in any order
        ({"0.1": 90.0, "1.0": 90.0, "10.0": 85.0}, 0.1, ""),  # as good as the next one
        ({"0.1": 80.0, "1.0": 90.0, "10.0": 90.0}, 1.0, ""),  # the smallest wins a tie
        ({"1.0": 90.0}, 1.0, ""),
        ({}, 1.0, ""),
        ({"1e-05": 90.0, "1000000.0": 80.0}, 1e-5, "lowest"),
    ],
)
def test_an_edge_is_the_lowest_or_highest_value_that_is_better_than_the_next(sweep, chosen, edge):
    for name in ("lr_head", "C"):
        assert sweep_edge({name: chosen, "sweep": sweep}) == edge
    assert sweep_edge({"top1": 90.0}) == ""


def test_a_choice_at_an_edge_is_reported_when_its_score_is_written(tmp_path, capsys):
    settings = EvaluateSettings(lr_sweep=(0.1, 1.0))
    for top1, chosen in ((80.0, 0.1), (90.0, 1.0)):
        score = {"top1": 50.0, "lr_head": chosen, "sweep": {"0.1": top1, "1.0": 85.0, "10.0": 70.0}}
        Run(tmp_path).save_result("linear", settings, score, None)
        assert capsys.readouterr().err == ""
    Run(tmp_path).save_result("linear", settings, {**score, "lr_head": 0.1}, None)
    line = "linear: the chosen lr_head, 0.1, is the lowest of its sweep, and a lower one may score better: add some to lr_sweep"
    assert capsys.readouterr().err.strip() == line
