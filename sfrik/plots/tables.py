"""Figures of the tables, with the style, colours and markers that all figures share."""

from __future__ import annotations

import math
from io import BytesIO
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sfrik.system.files import atomic_write
from sfrik.system.png import smaller_png
from sfrik.tables.collect import Measured, Table
from sfrik.tables.cost_rows import PLAIN

__all__ = [
    "COLOURS",
    "MARKERS",
    "draw_accuracy_against_q",
    "draw_cost_curves",
    "draw_costs",
    "draw_rows",
    "save_figure",
    "style",
    "write_figure",
]

# Okabe and Ito's palette, which colour-blind readers can distinguish; markers distinguish the methods in greyscale.
COLOURS = {
    "SFRIK L=1": "#E69F00",
    "SFRIK L=2": "#0072B2",
    "SFRIK L=3": "#56B4E9",
    "AUH": "#009E73",
    "VICReg": "#D55E00",
    "SimCLR": "#CC79A7",
    "SIGReg": "#000000",
    "random weights": "#7F7F7F",
    "raw pixels": "#000000",
}
MARKERS = {"SFRIK L=1": "v", "SFRIK L=2": "o", "SFRIK L=3": "X", "AUH": "s", "VICReg": "D", "SimCLR": "^", "SIGReg": "P"}
MAX_PANELS = 4  # side by side


def style() -> None:
    """Apply the Matplotlib settings of the project's figures."""
    plt.rcParams.update(
        {
            "figure.figsize": (6.4, 3.6),
            "figure.dpi": 80,
            "savefig.bbox": "tight",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "legend.frameon": False,
            "font.size": 10,
        }
    )


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
    rows = {"figsize": (3.5 * len(table.columns), 4.6), "sharex": True, "height_ratios": (3, 1)}
    figure, axes = plt.subplots(2, len(table.columns), layout="constrained", squeeze=False, **rows)
    methods = list(dict.fromkeys(m.row.method for m in table.measured if m.row.q))
    for (upper, lower), column in zip(axes.T, table.columns, strict=True):
        shown = [m for m in table.measured if m.mean(column.name) is not None]
        least = _break(upper, lower, shown, column.name)
        for axis, points in ((upper, shown), (lower, [m for m in shown if _mean(m, column.name) < least])):
            for method in dict.fromkeys(m.row.method for m in points):
                of_method = [m for m in points if m.row.method == method]
                if of_method[0].row.q is None:
                    line = ":" if method == "raw pixels" else "--"
                    axis.axhline(of_method[0].mean(column.name), color=COLOURS[method], linestyle=line, label=method)
                    continue
                shift = 2 ** (0.05 * (methods.index(method) - (len(methods) - 1) / 2))  # so that no point hides another
                means, spreads = [_mean(m, column.name) for m in of_method], [m.spread(column.name) or 0 for m in of_method]
                look = {"color": COLOURS[method], "marker": MARKERS[method], "capsize": 3, "label": method}
                axis.errorbar([(m.row.q or 0) * shift for m in of_method], means, yerr=spreads, **look)
        _size_axis(lower, sorted({m.row.q for m in table.measured if m.row.q}), "dimension q of the embeddings")
        upper.set(title=column.title)
    figure.supylabel("top-1 accuracy, %", fontsize=10)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    return _add_caption(figure, table)


def _break(upper: Axes, lower: Axes, points: list[Measured], column: str) -> float:
    """Split the value axis: methods measured at several q above, the rest below; returns the value between the two parts."""
    several = [m for m in points if sum(other.row.method == m.row.method for other in points) > 1]

    def ends(some: list[Measured]) -> tuple[float, float]:
        bars = [(_mean(m, column), m.spread(column) or 0) for m in some]
        return min(mean - spread for mean, spread in bars), max(mean + spread for mean, spread in bars)

    low, high = ends(several or points) if points else (0.0, 100.0)
    margin = 0.05 * (high - low) or 1.0
    upper.set_ylim(low - margin, high + margin)
    least = ends(points)[0] if points else low
    lower.set_ylim(least - 0.15 * max(low - least, margin), low - margin)
    upper.spines["bottom"].set_visible(False)
    upper.tick_params(axis="x", which="both", bottom=False)
    lower.locator_params(axis="y", nbins=4)
    for axis, place in ((upper, 0), (lower, 1)):  # two short strokes mark the break
        axis.plot([-0.02, 0.02], [place - 0.012, place + 0.012], transform=axis.transAxes, color="black", lw=0.8, clip_on=False)
    return low - margin


def draw_rows(table: Table) -> Figure:
    """Each row of a table as a point with its standard deviation over seeds, one panel per measured column.

    Grids of two settings (table 9) are maps instead, one per method and q, of the column of the tuning split.
    """
    if any(", " in m.row.labels.get("setting", "") for m in table.measured):
        return _draw_grids(table)
    rows = [m for m in table.measured if m.seeds]
    columns = [column for column in table.columns if any(m.mean(column.name) is not None for m in rows)]
    names = [", ".join(m.row.parts) for m in rows]
    down = -(-len(columns) // MAX_PANELS)
    across = -(-len(columns) // down)
    label_width = max(2.6, 0.3 + 0.08 * max(map(len, names), default=0))
    size = (label_width + 1.8 * across, 0.4 + down * (0.9 + 0.28 * len(rows)))
    figure, axes = plt.subplots(down, across, figsize=size, layout="constrained", sharey=True, squeeze=False)
    for axis in axes.flat[len(columns) :]:
        axis.set_visible(False)
    for axis, column in zip(axes.flat, columns, strict=False):
        for place, m in enumerate(rows):
            if m.mean(column.name) is not None:
                style_ = {"color": COLOURS.get(m.row.method, "#000000"), "marker": MARKERS.get(m.row.method, "o")}
                axis.errorbar(m.mean(column.name), -place, xerr=m.spread(column.name) or 0, capsize=3, **style_)
        axis.set(xlabel=column.unit)
        axis.set_title(fill(column.title, 21), fontsize=9)
        axis.locator_params(axis="x", nbins=4)
        axis.tick_params(axis="y", labelsize=9)
    axes[0][0].set_yticks([-place for place in range(len(rows))], names)
    return _add_caption(figure, table)


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
        axis.set_title(f"{method}, q = {q}", fontsize=9)
        axis.set_xlabel(second, fontsize=8)
        axis.set_ylabel(fill(first, 20), fontsize=8)
    figure.suptitle(column.heading, fontsize=9)
    return _add_caption(figure, table)


def _add_caption(figure: Figure, table: Table) -> Figure:
    """Add a line below the figure: the images, what the bars are, how many values, and whether the machine was quiet."""
    figure.supxlabel(f"{table.title}. {table.spread_note} {table.load_note}".strip(), fontsize=8, color="0.3", wrap=True)
    return figure


def draw_costs(table: Table) -> Figure:
    """Time and memory of each method against q, or against the batch size if there is one q, on logarithmic axes.

    Points are means over repetitions and bars one standard deviation; lines are those of `draw_cost_curves`.
    """
    by_q = len({m.row.q for m in table.measured}) > 1

    def sizes(points: list[Measured]) -> list[int]:
        return [(m.row.q or 0) if by_q else int(m.row.labels["batch size"]) for m in points]

    kept = [column for column in table.columns if column.unit and column.name != "product_ms"]
    columns = [column for column in kept if any(m.mean(column.name) for m in table.measured)]
    figure, axes = plt.subplots(1, len(columns), figsize=(3.6 * len(columns) + 1.5, 3.6), layout="constrained", squeeze=False)
    for axis, column in zip(axes[0], columns, strict=True):
        for method in dict.fromkeys(m.row.method for m in table.measured):
            points = [m for m in table.measured if m.row.method == method and m.mean(column.name)]
            means, spreads = [m.mean(column.name) for m in points], [m.spread(column.name) or 0 for m in points]
            axis.errorbar(sizes(points), means, yerr=spreads, capsize=3, label=method, **_line(method))
        rows = table.measured if column.name in ("loss_ms", "loss_mib") else []
        facts = zip(
            sizes(rows), ((m.row.q or 0, int(m.row.labels["batch size"]), m.mean("product_ms")) for m in rows), strict=True
        )
        _limit(axis, column.name, dict(facts))
        _size_axis(axis, sorted(set(sizes(table.measured))), "dimension q of the embeddings" if by_q else "batch size n")
        axis.set_yscale("log")
        axis.set(title=fill(column.title, 24), ylabel=column.unit)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right center")
    return _add_caption(figure, table)


def draw_cost_curves(costs: pd.DataFrame) -> Figure:
    """Time and memory of one repetition.

    Each method has one colour and marker; its plain formula is a dashed line, the implementation of this library a solid one.
    Dotted lines are lower bounds for a loss on a Gram matrix: the time of one matrix product of size n x n x q, and the
    memory of the gradients of two views.

    Args:
        costs: a table with the columns method, q, n, product_ms, loss_ms and loss_mib.
    """
    size, title = ("q", "dimension q of the embeddings") if costs["q"].nunique() > 1 else ("n", "batch size n")
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for axis, cost, label in ((axes[0], "loss_ms", "time, ms"), (axes[1], "loss_mib", "peak memory, MiB")):
        for method, of_method in costs[costs[cost] > 0].groupby("method", sort=False):
            axis.plot(of_method[size], of_method[cost], label=method, **_line(str(method)))
        _limit(axis, cost, {row[size]: (row["q"], row["n"], row["product_ms"]) for _, row in costs.iterrows()})
        _size_axis(axis, sorted(costs[size].unique()), title)
        axis.set_yscale("log")
        axis.set(ylabel=label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def _line(method: str) -> dict[str, Any]:
    """Colour, marker and line style of a method in the tables of costs."""
    name = method.removesuffix(PLAIN)
    line = {"color": COLOURS[name], "marker": MARKERS[name]}
    return line if name == method else {**line, "linestyle": "--", "markerfacecolor": "white"}


def _limit(axis: Axes, cost: str, by_size: dict[int, tuple[int, int, float | None]]) -> None:
    """Draw the lower bound for a loss on a Gram matrix: the time of one product, or the memory of the gradients.

    Args:
        axis: where to draw.
        cost: loss_ms or loss_mib.
        by_size: q, n and the milliseconds of one product for each size.
    """
    bounds = {size: product if cost == "loss_ms" else 2 * 4 * n * q / 2**20 for size, (q, n, product) in by_size.items()}
    bounds = {size: value for size, value in sorted(bounds.items()) if value}
    label = "limit: one product n × n × q;\nin memory: the gradients"
    axis.plot(list(bounds), list(bounds.values()), color="#7F7F7F", linestyle=":", linewidth=2, label=label)


def _size_axis(axis: Axes, sizes: list[int], title: str) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.minorticks_off()
    axis.set(xlabel=title)


def save_figure(figure: Figure, stem: Path) -> None:
    """Write a figure as PNG and SVG, without a date, so that the same figure gives the same files."""
    write_figure(figure, stem.with_suffix(".png"), dpi=150, metadata={"Software": None})
    with plt.rc_context({"svg.hashsalt": "sfrik"}):
        write_figure(figure, stem.with_suffix(".svg"), metadata={"Date": None})


def write_figure(figure: Figure, path: Path, **options: Any) -> None:
    """Write a figure atomically, in the format of the path's suffix; `options` are those of `Figure.savefig`."""
    content = BytesIO()
    figure.savefig(content, format=path.suffix[1:], **options)
    written = smaller_png(content.getvalue()) if path.suffix == ".png" else content.getvalue()
    with atomic_write(path, len(written)) as file:
        file.write(written)
