"""Figures of runs: the curves of a training, and what a diagnosis found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import cycle
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sfrik.evaluate.collapse import LEAST_RANK, LEAST_UNIFORMITY, Diagnosis

__all__ = ["draw_diagnosis", "training_curves"]

DIAGNOSIS_LINES: list[dict[str, Any]] = [
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#D55E00", "marker": "D", "linestyle": "--"},
    {"color": "#E69F00", "marker": "v", "linestyle": "-."},
    {"color": "#000000", "marker": "X", "linestyle": ":"},
    {"color": "#009E73", "marker": "s", "linestyle": (0, (5, 1, 1, 1, 1, 1))},
    {"color": "#CC79A7", "marker": "^", "linestyle": (0, (1, 2))},
]
LEAST_EIGENVALUE = 1e-12  # of a covariance: below is the round-off of float32 embeddings
LEAST_SHOWN = 1e-4  # -uniformity of a diagnosis: what is below is drawn there


def training_curves(runs: Mapping[str, Iterable[dict[str, Any]]]) -> Figure:
    """The loss by step and what the embeddings do by epoch; each run (its name, the lines of its metrics.jsonl) a line.

    Alignment and effective rank are on logarithmic axes: a collapse is a factor, not a difference.
    """
    panels = {
        "loss": "loss",
        "alignment": "mean squared distance",
        "uniformity": "log mean potential",
        "effective_rank": "dimensions",
        "knn": "top-1 accuracy, %",
    }
    figure, axes = plt.subplots(2, 3, figsize=(10, 5), layout="constrained")
    for (name, lines), look in zip(runs.items(), cycle(DIAGNOSIS_LINES)):
        kept = list(lines)
        by_step, by_epoch = [line for line in kept if "step" in line], [line for line in kept if "step" not in line]
        for axis, quantity in zip(axes.flat, panels, strict=False):
            if quantity == "loss":
                x, y, own = [line["step"] for line in by_step], [line["loss"] for line in by_step], {**look, "marker": ""}
            else:
                there = [line for line in by_epoch if quantity in line]
                x, y, own = [line["epoch"] + 1 for line in there], [line[quantity] for line in there], look
            axis.plot(x, y, label=name, markersize=4, **own)
    titles = {"effective_rank": "effective rank", "knn": "20-NN on training images"}
    for axis, (quantity, unit) in zip(axes.flat, panels.items(), strict=False):
        axis.set(title=titles.get(quantity, quantity), xlabel="step" if quantity == "loss" else "epoch", ylabel=unit)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if quantity in ("alignment", "effective_rank"):
            axis.set_yscale("log")
    axes.flat[-1].axis("off")
    axes.flat[-1].legend(*axes.flat[0].get_legend_handles_labels(), loc="center")
    return figure


def draw_diagnosis(found: Diagnosis | Mapping[str, Diagnosis]) -> Figure:
    """One diagnosis, or several by their labels: spectrum of the covariance, energy per degree, and the plane of the verdicts.

    What a diagnosis without weights lacks, its spectrum and its energies, is left out.
    """
    several = {found.verdict: found} if isinstance(found, Diagnosis) else dict(found)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11.5, 3.4), layout="constrained")
    for (label, one), look in zip(several.items(), cycle(DIAGNOSIS_LINES)):
        look = {"markersize": 5, **look}
        values = [value for value in one.spectrum if value > LEAST_EIGENVALUE]
        marked = [2**k - 1 for k in range(16) if 2**k <= len(values)]
        left.plot(range(1, len(values) + 1), values, **look, markevery=marked)
        middle.plot(range(1, len(one.energy_share) + 1), one.energy_share, **look)
        place = max(-one.uniformity, LEAST_SHOWN), one.effective_rank
        right.plot(*place, **{**look, "markersize": 8, "linestyle": "none"}, label=label)
    left.set(
        xscale="log", yscale="log", xlabel="index of the eigenvalue", ylabel="eigenvalue", title="spectrum of the covariance"
    )
    middle.set(xlabel="degree", ylabel="share of a point's", title="energy per degree", xticks=[1, 2, 3, 4], ylim=(-0.05, 1.05))
    _plane_of_verdicts(right)
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    return figure


def _plane_of_verdicts(axis: Axes) -> None:
    """The thresholds as lines, and the name of each region."""
    axis.set(xscale="log", yscale="log", xlim=(LEAST_SHOWN / 2, 5), ylim=(0.8, 1000))
    axis.axvline(LEAST_UNIFORMITY, color="#7F7F7F", linewidth=1)
    axis.plot([LEAST_UNIFORMITY, 5], [LEAST_RANK, LEAST_RANK], color="#7F7F7F", linewidth=1)
    words = {"fontsize": 8, "color": "#555555", "transform": axis.get_xaxis_transform()}
    axis.set(xlabel="−uniformity", ylabel="effective rank", title="verdict")
    axis.text(LEAST_UNIFORMITY / 1.3, 0.98, "full\ncollapse", ha="right", va="top", **words)
    axis.text(LEAST_UNIFORMITY * 1.3, 0.02, "dimensional\ncollapse", va="bottom", **words)
    axis.text(LEAST_UNIFORMITY * 1.3, 0.98, "healthy", va="top", **words)
