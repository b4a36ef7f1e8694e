"""Figures of runs: the names of methods, and what the curves begin and end with."""

from __future__ import annotations

import pytest

from sfrik.plots.runs import draw_training_curves, first_and_last, method_name
from sfrik.plots.style import COLOURS, OTHERS
from sfrik.settings import PretrainSettings

LOG = [
    {"step": 0, "loss": 12.81},
    {"step": 10, "loss": 2.597},
    {"epoch": 0, "loss": 9.0, "alignment": 1.55, "uniformity": -3.349, "effective_rank": 147.2},
    {"epoch": 1, "loss": 3.0, "alignment": 0.0002, "uniformity": 0.0, "effective_rank": 84.4},
]


@pytest.mark.parametrize(
    ("recipe", "changes", "expected"),
    [
        ("digits/sfrik_l2_q512", {}, "SFRIK L=2"),
        ("digits/sfrik_l2_q512", {"sfrik_weights": "1.0"}, "SFRIK L=1"),
        ("digits/kernel_heat", {}, "heat kernel"),
        ("digits/vicreg_q512", {}, "VICReg"),
        ("digits/simclr_q512", {}, "SimCLR"),
        ("digits/random_weights", {}, "random weights"),
    ],
)
def test_a_run_is_named_as_in_the_tables(recipe, changes, expected):
    assert method_name(PretrainSettings.from_recipe(recipe, **changes)) == expected


def test_the_first_and_last_values_have_no_exponent_and_the_loss_is_that_of_the_steps():
    table = first_and_last({"a run": LOG})
    assert table.loc["a run"].to_dict() == {
        **{"loss": "12.8 → 2.60", "alignment": "1.55 → below 0.001", "uniformity": "-3.35 → 0.00"},
        **{"effective rank": "147 → 84.4"},
    }


def test_a_run_of_a_method_has_its_colour_and_another_run_none_of_a_method():
    figure = draw_training_curves({"SFRIK L=1, seed 0": LOG, "mine": LOG})
    assert [line.get_color() for line in figure.axes[1].lines] == [COLOURS["SFRIK L=1"], OTHERS[1]["color"]]
