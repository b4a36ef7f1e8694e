"""Figures of the tables of scores."""

from __future__ import annotations

import math
from textwrap import fill

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sfrik.plots.costs import draw_costs
from sfrik.plots.style import as_math, look, size_axis
from sfrik.tables.collect import Table
from sfrik.tables.measured import Measured
from sfrik.tables.rows import Column

__all__ = ["draw_accuracy_against_q", "draw_rows", "draw_table"]

MAX_PANELS = 5  # side by side
TEN_CLASSES = ("smoke", "digits", "photos", "cifar10", "cifar10_quick")  # profiles, of whose images top-5 accuracy says little
RANGES = "Each panel has its own range."


def draw_table(table: Table) -> Figure:
    """The figure of a table: accuracy against q (table 1), costs (tables 5 and 6), or a point per row."""
    drawings = {"table1": draw_accuracy_against_q, "table5": draw_costs, "table6": draw_costs}
    return drawings.get(table.name, draw_rows)(table)


def _mean(measured: Measured, column: str) -> float:
    """The mean of a column that is known to be measured."""
    mean = measured.mean(column)
    assert mean is not None
    return mean


def draw_accuracy_against_q(table: Table) -> Figure:
    """Measured accuracy against the dimension q of the embeddings, one panel per column of the table.

    Points are means over seeds and bars one standard deviation; baselines without q are horizontal lines. The value axis is
    broken: its upper part is for the methods that were measured at several q, its lower part for lower accuracies.
    """
    rows = {"figsize": (3.1 * len(table.columns), 5.0), "sharex": True, "height_ratios": (3, 1)}
    figure, axes = plt.subplots(2, len(table.columns), layout="constrained", squeeze=False, **rows)
    methods = list(dict.fromkeys(m.row.method for m in table.measured))
    with_q = [method for method in methods if any(m.row.q for m in table.measured if m.row.method == method)]
    for (upper, lower), column in zip(axes.T, table.columns, strict=True):
        shown = [m for m in table.measured if m.mean(column.name) is not None]
        least = _break(upper, lower, shown, column.name)
        for axis, points in ((upper, shown), (lower, [m for m in shown if _mean(m, column.name) < least])):
            for method in dict.fromkeys(m.row.method for m in points):
                of_method = [m for m in points if m.row.method == method]
                if of_method[0].row.q is None:
                    axis.axhline(of_method[0].mean(column.name), **look(method), zorder=1)
                    continue
                shift = 2 ** (0.06 * (with_q.index(method) - (len(with_q) - 1) / 2))  # so that no point hides another
                means, spreads = [_mean(m, column.name) for m in of_method], [m.spread(column.name) or 0 for m in of_method]
                axis.errorbar([(m.row.q or 0) * shift for m in of_method], means, yerr=spreads, capsize=2.5, **look(method))
        size_axis(lower, sorted({m.row.q for m in table.measured if m.row.q}), "dimension $q$ of the embeddings")
        upper.set_title(column.title, fontsize=11)
    figure.supylabel("top-1 accuracy, %", fontsize=10)
    lines = [Line2D([], [], label=as_math(method), **look(method)) for method in methods]
    figure.legend(handles=lines, loc="outside upper center", ncols=min(4, len(lines)), handlelength=3.6)
    return _add_caption(figure, table, f"{RANGES} Value axes are broken.")


def _break(upper: Axes, lower: Axes, points: list[Measured], column: str) -> float:
    """Split the value axis: methods measured at several q above, the rest below; returns the value between the two parts."""
    several = [m for m in points if sum(other.row.method == m.row.method for other in points) > 1]

    def ends(some: list[Measured]) -> tuple[float, float]:
        bars = [(_mean(m, column), m.spread(column) or 0) for m in some]
        return min(mean - spread for mean, spread in bars), max(mean + spread for mean, spread in bars)

    low, high = ends(several or points) if points else (0.0, 100.0)
    margin = 0.07 * (high - low) or 1.0
    upper.set_ylim(low - margin, high + margin)
    least = ends(points)[0] if points else low
    room = 0.15 * max(low - least, margin)
    lower.set_ylim(least - room, low - margin + room)
    upper.spines["bottom"].set_visible(False)
    upper.tick_params(axis="x", which="both", bottom=False)
    lower.locator_params(axis="y", nbins=4)
    for axis, place in ((upper, 0), (lower, 1)):  # two short strokes mark the break
        axis.plot([-0.02, 0.02], [place - 0.012, place + 0.012], transform=axis.transAxes, color="black", lw=0.8, clip_on=False)
    return low - margin


def _columns(table: Table) -> list[Column]:
    """The columns to draw: those with a score, without top-5 accuracy where there are ten classes."""
    found = [c for c in table.columns if c.key != ("top5",) or table.profile not in TEN_CLASSES]
    return [c for c in found if any(m.mean(c.name) is not None for m in table.measured)]


def _names(rows: list[Measured]) -> tuple[list[str], str]:
    """What distinguishes each row, and what all rows share."""
    parts = [m.row.parts for m in rows]
    shared = [part for part in parts[0] if all(part in other for other in parts)] if len(parts) > 1 else []
    return [as_math(", ".join(part for part in row if part not in shared)) for row in parts], as_math(", ".join(shared))


def draw_rows(table: Table) -> Figure:
    """Each row of a table as a point with its standard deviation over seeds, one panel per measured column.

    Grids of two settings (table 9) are maps instead, one per method and q, of the column of the tuning split.
    """
    if any(", " in m.row.labels.get("setting", "") for m in table.measured):
        return _draw_grids(table)
    rows, columns = [m for m in table.measured if m.seeds], _columns(table)
    names, shared = _names(rows)
    down = -(-len(columns) // MAX_PANELS)
    across = -(-len(columns) // down)
    label_width = 0.4 + 0.075 * max(map(len, names), default=0)
    size = (label_width + across * max(1.5, min(2.4, (9 - label_width) / across)), 0.8 + down * (0.75 + 0.27 * len(rows)))
    figure, axes = plt.subplots(down, across, figsize=size, layout="constrained", sharey=True, squeeze=False)
    for axis in axes.flat[len(columns) :]:
        axis.set_visible(False)
    for axis, column in zip(axes.flat, columns, strict=False):
        for place, m in enumerate(rows):
            if m.mean(column.name) is not None:
                shape = {**look(_drawn_as(m)), "linestyle": "none"}
                axis.errorbar(m.mean(column.name), -place, xerr=m.spread(column.name) or 0, capsize=2.5, elinewidth=1.3, **shape)
        axis.set(xlabel=column.unit, ylim=(0.6 - len(rows), 0.6))
        axis.set_title(fill(column.title, round(11 * size[0] / (across + 1.5))), fontsize=9.5)
        axis.margins(x=0.12)
        axis.locator_params(axis="x", nbins=4)
        axis.tick_params(axis="y", labelsize=9, length=0)
    axes[0][0].set_yticks([-place for place in range(len(rows))], names)
    return _add_caption(figure, table, RANGES, shared)


def _drawn_as(m: Measured) -> str:
    """The method of a row; that of a kernel of table 2 with one or several degrees is SFRIK's."""
    kernel = m.row.labels.get("kernel", "")
    if kernel.startswith("degree 1"):
        return "SFRIK L=1"
    return f"SFRIK {kernel.split()[-1]}" if kernel.startswith("truncated") else m.row.method


def _draw_grids(table: Table) -> Figure:
    """The tuning score of each combination of two settings, a map per method and q on a common scale; the best one is in bold."""
    column, grids = table.columns[0], {}
    for m in table.measured:
        (first, weight), (second, rate) = (part.rsplit(" = ", 1) for part in m.row.labels["setting"].split(", "))
        grids.setdefault((m.row.method, m.row.q, first, second), {})[weight, rate] = m.mean(column.name)
    qs = list(dict.fromkeys(q for _, q, *_ in grids))
    across = len(grids) // len(qs)
    figure, axes = plt.subplots(len(qs), across, figsize=(2.6 * across, 2.5 * len(qs)), layout="constrained", squeeze=False)
    found = [value for grid in grids.values() for value in grid.values() if value is not None] or [0.0]
    by_q = sorted(grids.items(), key=lambda item: qs.index(item[0][1]))  # methods keep their order
    for axis, ((method, q, first, second), grid) in zip(axes.flat, by_q, strict=True):
        weights, rates = (list(dict.fromkeys(key[k] for key in grid)) for k in (0, 1))
        values = [[grid[weight, rate] for rate in rates] for weight in weights]
        pixels = [[math.nan if value is None else value for value in row] for row in values]
        axis.imshow(pixels, cmap="Blues", vmin=min(found) - 1, vmax=max(found) + 0.5 * (max(found) - min(found)) + 1)
        best = max((value for value in grid.values() if value is not None), default=None)
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                text = "–" if value is None else f"{value:.{column.digits}f}"
                axis.text(
                    x,
                    y,
                    text,
                    ha="center",
                    va="center",
                    fontsize=9,
                    fontweight="bold" if value is not None and value == best else "normal",
                )
        axis.set_xticks(range(len(rates)), rates)
        axis.set_yticks(range(len(weights)), weights)
        axis.tick_params(length=0, labelsize=8)
        axis.grid(False)
        axis.set_title(as_math(f"{method}, q = {q}"), fontsize=9.5, color=look(method)["color"], fontweight="bold")
        axis.set_xlabel(second, fontsize=8)
        axis.set_ylabel(fill(first, 20), fontsize=8)
    figure.suptitle(column.heading, fontsize=9)
    note = "All maps have one range; the best run of each is in bold."
    return _add_caption(figure, table, note, spread="One run per cell, seed 0.")


def _add_caption(figure: Figure, table: Table, note: str, shared: str = "", spread: str | None = None) -> Figure:
    """Add lines below the figure: the images, what the bars are, the number of seeds, and a note on how to read it."""
    about = "; ".join(filter(None, (table.title, shared)))
    text = " ".join(filter(None, (f"{about}.", as_math(table.spread_note if spread is None else spread), table.load_note, note)))
    figure.supxlabel(fill(text, round(15.5 * figure.get_figwidth())), fontsize=8, color="0.3")
    return figure
