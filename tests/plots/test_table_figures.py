"""Figures of the tables, drawn from the published scores; and the colours, markers and lines that all figures share."""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from legible import assert_labels_apart
from matplotlib.colors import to_rgb

from sfrik.plots.style import COLOURS, MARKERS, OTHERS, as_math, look, method_of, style
from sfrik.plots.tables import draw_rows, draw_table
from sfrik.tables import EXPERIMENTS, build_table

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture(scope="module", params=EXPERIMENTS)
def drawn(request):
    """A table of the published scores and its figure."""
    with plt.rc_context():
        style()
        table = build_table(request.param, "digits", RESULTS)
        figure = draw_table(table)
        yield table, figure
    plt.close(figure)


def test_no_labels_of_a_table_figure_overlap(drawn):
    assert_labels_apart(drawn[1], at_least=8)


def test_no_marker_of_a_table_figure_is_on_the_frame(drawn):
    """A point beyond a broken axis is not drawn."""
    drawn[1].draw_without_rendering()
    for axis in drawn[1].axes:
        (left, bottom), (right, top) = axis.bbox.get_points()
        for line in axis.lines:
            if line.get_marker() in MARKERS.values():
                for x, y in axis.transData.transform(np.column_stack(line.get_data()).astype(float)):
                    room = min(x - left, right - x, y - bottom, top - y)
                    assert not -3 < room < 3, f"{axis.get_title()}: a marker {room:.1f} pixels from the frame"


def test_a_method_has_its_colour_and_marker_in_every_table_figure(drawn):
    methods = {m.row.method.removesuffix(" plain") for m in drawn[0].measured if m.seeds} - {"MMD"}
    if drawn[0].name == "table9":  # maps, which have the colour in their titles
        assert {axis.title.get_color() for axis in drawn[1].axes} == {COLOURS[name] for name in methods}
        return
    expected = {(COLOURS[name], MARKERS[name]) for name in methods & MARKERS.keys()}
    found = {
        (line.get_color(), line.get_marker())
        for axis in drawn[1].axes
        for line in axis.lines
        if line.get_marker() in MARKERS.values()
    }
    kernels = {(COLOURS[name], MARKERS[name]) for name in ("SFRIK L=1", "SFRIK L=3")}  # which table 2 lists as kernels of the MMD
    assert found - kernels == expected - kernels


def test_methods_differ_by_colour_and_marker_and_in_grey_by_line_or_lightness():
    methods = list(MARKERS)
    grey = {name: 255 * np.dot((0.299, 0.587, 0.114), to_rgb(COLOURS[name])) for name in methods}
    for one, other in itertools.combinations(methods, 2):
        assert COLOURS[one] != COLOURS[other]
        assert MARKERS[one] != MARKERS[other]
        assert look(one)["linestyle"] != look(other)["linestyle"] or abs(grey[one] - grey[other]) > 40
    assert not {shape["color"] for shape in OTHERS} & set(COLOURS.values())
    assert not {shape["marker"] for shape in OTHERS} & set(MARKERS.values())
    assert look("SFRIK L=3")["linewidth"] > max(look(name)["linewidth"] for name in ("AUH", "VICReg", "SimCLR", "SIGReg"))


def test_a_label_has_the_look_of_the_method_that_it_begins_with():
    assert [method_of(label) for label in ("SFRIK L=3, seed 0", "VICReg plain", "SFRIK L=30", "AUHA", "a run of AUH")] == [
        *("SFRIK L=3", "VICReg"),
        *(None, None, None),
    ]
    assert look("my run", 1)["color"] == OTHERS[1]["color"]


def test_symbols_are_mathematics():
    assert as_math("SFRIK L=3, q = 128") == "SFRIK $L$\u00a0=\u00a03, $q$\u00a0=\u00a0128"
    assert as_math("degree 1, b_1 = 41") == "degree 1, $b_1$\u00a0=\u00a041"
    assert as_math("exp(-s |u - v|^2)") == r"$e^{-s \|u - v\|^2}$"


def test_methods_are_in_the_order_of_the_table_and_top_5_of_ten_classes_is_not_drawn():
    table = build_table("table1", "digits", RESULTS)
    figure = draw_table(table)
    methods = dict.fromkeys(as_math(m.row.method) for m in table.measured)
    assert [text.get_text() for text in figure.legends[0].texts] == list(methods)
    plt.close(figure)
    figure = draw_table(build_table("table4", "digits", RESULTS))
    titles = [axis.get_title() for axis in figure.axes]
    assert len(titles) >= 4
    assert not any("top-5" in title for title in titles)
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
    assert list(texts) == [
        as_math(f"{method}, q = {q}") for q in (128, 512) for method in ("SimCLR", "AUH", "VICReg", "SFRIK L=3")
    ]
    assert texts[as_math("SimCLR, q = 128")] == [("–", "normal")] * 9
    at = next(number for number, m in enumerate(table.measured) if (m.row.method, m.row.q) == ("VICReg", 512))
    expected = [f"{score:.1f}" for score in scores[at : at + 9]]  # rows are weights, columns rates, as in the recipes
    assert texts[as_math("VICReg, q = 512")] == [*((text, "normal") for text in expected[:-1]), (expected[-1], "bold")]
    plt.close(figure)
