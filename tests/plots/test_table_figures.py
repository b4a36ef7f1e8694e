"""Figures of the tables, drawn from the published scores."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from legible import assert_labels_apart

from sfrik.plots.tables import draw_accuracy_against_q, draw_costs, draw_rows, style
from sfrik.tables import EXPERIMENTS, build_table

RESULTS = Path(__file__).parents[2] / "results"
FIGURES = {"table1": draw_accuracy_against_q, "table5": draw_costs, "table6": draw_costs}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_labels_of_a_table_figure_overlap(name):
    with plt.rc_context():
        style()
        figure = FIGURES.get(name, draw_rows)(build_table(name, "digits", RESULTS))
        assert_labels_apart(figure, at_least=8)
    plt.close(figure)


def test_grids_of_two_settings_are_maps_with_their_scores_and_the_best_one_in_bold():
    table = build_table("table9", "photos", "nowhere")
    scores = [30.0 + number / 7 for number in range(len(table.measured))]
    for m, score in zip(table.measured[9:], scores[9:], strict=True):  # the first grid is not measured yet
        m.scores["tune_top1"] = {0: score}
    with plt.rc_context():
        style()
        figure = draw_rows(table)
        assert_labels_apart(figure, at_least=8)
    texts = {axis.get_title(): [(text.get_text(), text.get_fontweight()) for text in axis.texts] for axis in figure.axes}
    assert list(texts) == [f"{method}, q = {q}" for q in (128, 512) for method in ("SimCLR", "AUH", "VICReg", "SFRIK L=3")]
    assert texts["SimCLR, q = 128"] == [("–", "normal")] * 9
    at = next(number for number, m in enumerate(table.measured) if (m.row.method, m.row.q) == ("VICReg", 512))
    expected = [f"{score:.1f}" for score in scores[at : at + 9]]  # rows are weights, columns rates, as in the recipes
    assert texts["VICReg, q = 512"] == [*((text, "normal") for text in expected[:-1]), (expected[-1], "bold")]
    plt.close(figure)
