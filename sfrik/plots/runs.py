"""Figures of runs: training curves and collapse diagnoses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import cycle
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sfrik.evaluate.collapse import LEAST_RANK, LEAST_UNIFORMITY, Diagnosis

__all__ = ["draw_diagnosis", "draw_training_curves"]

LINE_STYLES: list[dict[str, Any]] = [
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#D55E00", "marker": "D", "linestyle": "--"},
    {"color": "#E69F00", "marker": "v", "linestyle": "-."},
    {"color": "#000000", "marker": "X", "linestyle": ":"},
    {"color": "#009E73", "marker": "s", "linestyle": (0, (5, 1, 1, 1, 1, 1))},
    {"color": "#CC79A7", "marker": "^", "linestyle": (0, (1, 2))},
]
LEAST_EIGENVALUE = 1e-12  # smaller eigenvalues of a covariance are round-off of float32 embeddings
LEAST_SHOWN = 1e-4  # smaller values of -uniformity are drawn here


def draw_training_curves(runs: Mapping[str, Iterable[dict[str, Any]]]) -> Figure:
    """The loss per step, and the metrics of the embeddings per epoch, with one line per run.

    Alignment and effective rank have logarithmic axes, since a collapse changes them by orders of magnitude.

    Args:
        runs: the records of metrics.jsonl by the name of the run.
    """
    panels = {
        "loss": "loss",
        "alignment": "mean squared distance",
        "uniformity": "log mean potential",
        "effective_rank": "dimensions",
        "knn": "top-1 accuracy, %",
    }
    figure, axes = plt.subplots(2, 3, figsize=(10, 5), layout="constrained")
    for (name, run), line_style in zip(runs.items(), cycle(LINE_STYLES)):
        records = list(run)
        steps, epochs = [record for record in records if "step" in record], [record for record in records if "step" not in record]
        for axis, quantity in zip(axes.flat, panels, strict=False):
            if quantity == "loss":
                x, y = [record["step"] for record in steps], [record["loss"] for record in steps]
                axis.plot(x, y, label=name, **{**line_style, "marker": ""})
            else:
                shown = [record for record in epochs if quantity in record]
                x, y = [record["epoch"] + 1 for record in shown], [record[quantity] for record in shown]
                axis.plot(x, y, label=name, markersize=4, **line_style)
    titles = {"effective_rank": "effective rank", "knn": "20-NN on training images"}
    for axis, (quantity, unit) in zip(axes.flat, panels.items(), strict=False):
        axis.set(title=titles.get(quantity, quantity), xlabel="step" if quantity == "loss" else "epoch", ylabel=unit)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if quantity in ("alignment", "effective_rank"):
            axis.set_yscale("log")
    axes.flat[-1].axis("off")
    axes.flat[-1].legend(*axes.flat[0].get_legend_handles_labels(), loc="center")
    return figure


def draw_diagnosis(diagnoses: Diagnosis | Mapping[str, Diagnosis]) -> Figure:
    """The spectrum of the covariance, the energy per degree, and the regions of the verdicts.

    A diagnosis without weights has no spectrum and no energies; only its verdict is drawn.

    Args:
        diagnoses: one diagnosis, or several by their labels.
    """
    by_label = {diagnoses.verdict: diagnoses} if isinstance(diagnoses, Diagnosis) else dict(diagnoses)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11.5, 3.4), layout="constrained")
    for (label, diagnosis), line_style in zip(by_label.items(), cycle(LINE_STYLES)):
        line_style = {"markersize": 5, **line_style}
        eigenvalues = [value for value in diagnosis.spectrum if value > LEAST_EIGENVALUE]
        marked = [2**k - 1 for k in range(16) if 2**k <= len(eigenvalues)]
        left.plot(range(1, len(eigenvalues) + 1), eigenvalues, **line_style, markevery=marked)
        middle.plot(range(1, len(diagnosis.energy_share) + 1), diagnosis.energy_share, **line_style)
        point = max(-diagnosis.uniformity, LEAST_SHOWN), diagnosis.effective_rank
        right.plot(*point, **{**line_style, "markersize": 8, "linestyle": "none"}, label=label)
    left.set(
        xscale="log", yscale="log", xlabel="index of the eigenvalue", ylabel="eigenvalue", title="spectrum of the covariance"
    )
    middle.set(
        xlabel="degree", ylabel="relative to one point", title="energy per degree", xticks=[1, 2, 3, 4], ylim=(-0.05, 1.05)
    )
    _draw_verdicts(right)
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    return figure


def _draw_verdicts(axis: Axes) -> None:
    """Draw the thresholds as lines, and name the regions between them."""
    axis.set(xscale="log", yscale="log", xlim=(LEAST_SHOWN / 2, 5), ylim=(0.8, 1000))
    axis.axvline(LEAST_UNIFORMITY, color="#7F7F7F", linewidth=1)
    axis.plot([LEAST_UNIFORMITY, 5], [LEAST_RANK, LEAST_RANK], color="#7F7F7F", linewidth=1)
    text = {"fontsize": 8, "color": "#555555", "transform": axis.get_xaxis_transform()}
    axis.set(xlabel="−uniformity", ylabel="effective rank", title="verdict")
    axis.text(LEAST_UNIFORMITY / 1.3, 0.98, "full\ncollapse", ha="right", va="top", **text)
    axis.text(LEAST_UNIFORMITY * 1.3, 0.02, "dimensional\ncollapse", va="bottom", **text)
    axis.text(LEAST_UNIFORMITY * 1.3, 0.98, "healthy", va="top", **text)
