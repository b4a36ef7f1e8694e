"""Figures of costs (tables 5 and 6, notebook 06): small multiples, a column per method and a row per cost, on shared ranges.

In each panel the method's own lines are drawn over those of all methods, which are pale. A solid line with filled markers is the
implementation of this library, a dashed one with hollow markers the plain formula of the paper, and the dotted line a lower bound
for a loss on a Gram matrix: the time of one matrix product of size n x n x q, or the memory of the gradients of two views.
"""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sfrik.plots.style import as_math, look, plain_log_axis, size_axis
from sfrik.tables.collect import Table
from sfrik.tables.cost_rows import PLAIN
from sfrik.tables.measured import Measured

__all__ = ["draw_cost_curves", "draw_costs"]

Curve = tuple[list[int], list[float], list[float]]  # sizes, means, standard deviations
LINES = "Solid: this library; dashed: the plain formula of the paper; dotted: a lower bound; pale: the other methods."
HOLLOW = {"linestyle": (0, (4, 2)), "markerfacecolor": "white"}
Q, N = "dimension $q$", "batch size $n$"


def draw_costs(table: Table) -> Figure:
    """Time and memory of each method against q, or against the batch size if there is one q.

    Points are means over repetitions and bars one standard deviation.
    """
    by_q = len({m.row.q for m in table.measured}) > 1

    def size(m: Measured) -> int:
        return (m.row.q or 0) if by_q else int(m.row.labels["batch size"])

    kept = [column for column in table.columns if column.unit and column.name != "product_ms"]
    costs: dict[str, dict[str, Curve]] = {}
    limits: dict[str, dict[int, float]] = {}
    for column in kept:
        curves = costs.setdefault(f"{column.title}, {column.unit}", {})
        for m in table.measured:
            if (mean := m.mean(column.name)) is not None and mean > 0:
                x, y, spreads = curves.setdefault(m.row.method, ([], [], []))
                x.append(size(m)), y.append(mean), spreads.append(m.spread(column.name) or 0.0)
        sizes = {size(m): (m.row.q or 0, int(m.row.labels["batch size"]), m.mean("product_ms")) for m in table.measured}
        limits[f"{column.title}, {column.unit}"] = _limit(column.name, sizes)
    figure = _multiples({name: curves for name, curves in costs.items() if curves}, limits, Q if by_q else N)
    note = as_math(f"{table.title}. {table.spread_note} {table.load_note}".strip())
    text = f"{note} {LINES} A row has one range."
    figure.supxlabel(fill(text, round(15.5 * figure.get_figwidth())), fontsize=8, color="0.3")
    return figure


def draw_cost_curves(costs: pd.DataFrame) -> Figure:
    """Time and memory of the loss in one repetition.

    Args:
        costs: a table with the columns method, q, n, product_ms, loss_ms and loss_mib.
    """
    size, title = ("q", Q) if costs["q"].nunique() > 1 else ("n", N)
    found, limits = {}, {}
    for cost, label in (("loss_ms", "time, ms"), ("loss_mib", "peak memory, MiB")):
        groups = costs[costs[cost] > 0].groupby("method", sort=False)
        found[label] = {str(name): (list(rows[size]), list(rows[cost]), [0.0] * len(rows)) for name, rows in groups}
        limits[label] = _limit(cost, {row[size]: (row["q"], row["n"], row["product_ms"]) for _, row in costs.iterrows()})
    return _multiples(found, limits, title)


def _multiples(costs: Mapping[str, Mapping[str, Curve]], limits: Mapping[str, Mapping[int, float]], title: str) -> Figure:
    """A row of panels for each cost, a column for each method, in the order in which they are found."""
    names = dict.fromkeys(name for curves in costs.values() for name in curves)
    methods = list(dict.fromkeys(name.removesuffix(PLAIN) for name in sorted(names, key=lambda name: name.endswith(PLAIN))))
    sizes = sorted({x for curves in costs.values() for curve in curves.values() for x in curve[0]})
    figsize = (max(3.4, 0.75 + 1.42 * len(methods)), 1.0 + 1.7 * len(costs))
    figure, axes = plt.subplots(
        len(costs), len(methods), figsize=figsize, layout="constrained", sharex=True, sharey="row", squeeze=False
    )
    for row, (name, curves) in zip(axes, costs.items(), strict=True):
        for axis, method in zip(row, methods, strict=True):
            _panel(axis, curves, method, limits.get(name, {}))
        values = [value for curve in curves.values() for value in (*curve[1], *limits.get(name, {}).values())]
        row[0].set_ylim(min(values) / 1.5, max(values) * 1.7)
        plain_log_axis(row[0].yaxis)
        row[0].set_ylabel(fill(name, 20), fontsize=9)
    for axis, method in zip(axes[0], methods, strict=True):
        axis.set_title(as_math(method), fontsize=10, color=look(method)["color"], fontweight="bold")
    for axis in axes.flat:
        size_axis(axis, sizes, "")
        axis.tick_params(labelsize=8)
        axis.set_xticks(sizes, [_short(size) if k % 2 == 0 or len(sizes) < 4 else "" for k, size in enumerate(sizes)])
    for axis in axes[-1]:
        axis.set_xlabel(title, fontsize=8.5)
    for name, (x, y, _) in next(iter(costs.values())).items():
        if name.endswith(PLAIN) and len(x) > 2:  # once is enough: the caption says the rest
            where, colour = axes[0][methods.index(name.removesuffix(PLAIN))], look(name)["color"]
            place: dict[str, Any] = {"xytext": (-5, 3), "textcoords": "offset points", "ha": "right", "va": "bottom"}
            where.annotate("plain", (x[-2], y[-2]), fontsize=8, color=colour, **place)
            break
    return figure


def _panel(axis: Axes, curves: Mapping[str, Curve], method: str, limit: Mapping[int, float]) -> None:
    for name, (x, y, _) in curves.items():
        if name.removesuffix(PLAIN) != method:
            axis.plot(x, y, color="0.82", linewidth=1, linestyle="--" if name.endswith(PLAIN) else "-", zorder=1)
    axis.plot(list(limit), list(limit.values()), color="0.35", linestyle=(0, (1, 1.5)), linewidth=1.4, zorder=2, label="limit")
    for name in (f"{method}{PLAIN}", method):
        if name in curves:
            x, y, spreads = curves[name]
            plain: dict[str, Any] = HOLLOW if name != method else {"linestyle": "-"}
            shape: dict[str, Any] = {**look(method), "linewidth": 1.6, "markersize": 4.5, **plain}
            axis.errorbar(x, y, yerr=spreads if any(spreads) else None, capsize=2, elinewidth=1, zorder=3, **shape)
    axis.set_yscale("log")


def _limit(cost: str, by_size: Mapping[int, tuple[int, int, float | None]]) -> dict[int, float]:
    """A lower bound for a loss on a Gram matrix: the time of one product, or the memory of the gradients; none of a whole step.

    Args:
        cost: loss_ms or loss_mib.
        by_size: q, n and the milliseconds of one product for each size.
    """
    if cost not in ("loss_ms", "loss_mib"):
        return {}
    bounds = {size: product if cost == "loss_ms" else 2 * 4 * n * q / 2**20 for size, (q, n, product) in by_size.items()}
    return {size: float(value) for size, value in sorted(bounds.items()) if value}


def _short(size: int) -> str:
    """2048 as 2k: the ticks are close to each other."""
    return str(size) if size < 1024 else f"{size // 1024}k"
