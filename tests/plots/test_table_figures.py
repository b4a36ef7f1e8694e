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
