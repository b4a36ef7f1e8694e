"""Figures of runs: training curves and collapse diagnoses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sfrik.evaluate.collapse import LEAST_RANK, LEAST_UNIFORMITY, Diagnosis
from sfrik.plots.style import as_math, look, plain_log_axis
from sfrik.settings import PretrainSettings
from sfrik.system.names import OBJECTIVES

__all__ = ["draw_diagnosis", "draw_training_curves", "first_and_last", "method_name"]

KEYS = {
    "loss": "loss",
    "alignment": "alignment",
    "uniformity": "uniformity",
    "effective_rank": "effective rank",
    "knn": "20-NN, %",
}
LEAST_EIGENVALUE = 1e-12  # smaller eigenvalues of a covariance are round-off of float32 embeddings
LEAST_SHOWN = 1e-4  # smaller values of -uniformity are drawn here


def draw_training_curves(runs: Mapping[str, Iterable[dict[str, Any]]]) -> Figure:
    """The loss per step, and the metrics of the embeddings per epoch, with one line per run.

    Alignment and effective rank have logarithmic axes, since a collapse changes them by orders of magnitude.

    Args:
        runs: the records of metrics.jsonl by the name of the run; a name that begins with a method has the look of that method.
    """
    panels = {
        "loss": "loss",
        "alignment": "mean squared distance",
        "uniformity": "log mean potential",
        "effective_rank": "dimensions",
        "knn": "top-1 accuracy, %",
    }
    figure, axes = plt.subplots(2, 3, figsize=(10, 5), layout="constrained")
    for place, (name, run) in enumerate(runs.items()):
        shape = look(name, place)
        records = list(run)
        steps, epochs = [record for record in records if "step" in record], [record for record in records if "step" not in record]
        for axis, quantity in zip(axes.flat, panels, strict=False):
            if quantity == "loss":
                x, y = [record["step"] for record in steps], [record["loss"] for record in steps]
                axis.plot(x, y, **{**shape, "marker": "", "linewidth": 1.4})
            else:
                shown = [record for record in epochs if quantity in record]
                x, y = [record["epoch"] + 1 for record in shown], [record[quantity] for record in shown]
                axis.plot(x, y, label=as_math(name), **{**shape, "linewidth": 1.6, "markersize": 4})
    titles = {"effective_rank": "effective rank", "knn": "20-NN on training images"}
    for axis, (quantity, unit) in zip(axes.flat, panels.items(), strict=False):
        axis.set(title=titles.get(quantity, quantity), xlabel="step" if quantity == "loss" else "epoch", ylabel=unit)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if quantity in ("alignment", "effective_rank"):
            axis.set_yscale("log")
            plain_log_axis(axis.yaxis)
    axes.flat[-1].axis("off")
    axes.flat[-1].legend(*axes.flat[1].get_legend_handles_labels(), loc="center", handlelength=3.5)
    return figure


def method_name(settings: PretrainSettings) -> str:
    """The method of a run as the tables name it, such as SFRIK L=3."""
    if settings.ssl_method != "sfrik":
        return next((name for name in OBJECTIVES if name.lower() == settings.ssl_method), "random weights")
    truncated = settings.sfrik_kernel == "truncated" and not settings.sfrik_stein
    return f"SFRIK L={len(settings.kernel_weights)}" if truncated else f"{settings.sfrik_kernel} kernel"


def first_and_last(runs: Mapping[str, Iterable[dict[str, Any]]]) -> pd.DataFrame:
    """What the curves begin and end with, a row per run; the loss by step, the rest by epoch."""
    rows: dict[str, dict[str, str]] = {}
    for name, run in runs.items():
        records = list(run)
        values = {
            key: [record[key] for record in records if key in record and ("step" in record) == (key == "loss")] for key in KEYS
        }
        rows[name] = {KEYS[key]: f"{_plain(found[0])} → {_plain(found[-1])}" for key, found in values.items() if found}
    return pd.DataFrame(rows).T.fillna("")


def _plain(value: float) -> str:
    """Three digits without an exponent."""
    return "below 0.001" if 0 < abs(value) < 0.001 else f"{value:.{max(0, 3 - len(str(int(abs(value)))))}f}"


def draw_diagnosis(diagnoses: Diagnosis | Mapping[str, Diagnosis]) -> Figure:
    """The spectrum of the covariance, the energy per degree, and the regions of the verdicts.

    A diagnosis without weights has no spectrum and no energies; only its verdict is drawn.

    Args:
        diagnoses: one diagnosis, or several by their labels.
    """
    by_label = {diagnoses.verdict: diagnoses} if isinstance(diagnoses, Diagnosis) else dict(diagnoses)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11.5, 3.4), layout="constrained")
    for place, (label, diagnosis) in enumerate(by_label.items()):
        line_style = {**look(label, place), "markersize": 5}
        eigenvalues = [value for value in diagnosis.spectrum if value > LEAST_EIGENVALUE]
        marked = [2**k - 1 for k in range(16) if 2**k <= len(eigenvalues)]
        left.plot(range(1, len(eigenvalues) + 1), eigenvalues, **line_style, markevery=marked)
        middle.plot(range(1, len(diagnosis.energy_share) + 1), diagnosis.energy_share, **line_style)
        point = max(-diagnosis.uniformity, LEAST_SHOWN), diagnosis.effective_rank
        right.plot(*point, **{**line_style, "markersize": 8, "linestyle": "none"}, label=as_math(label))
    left.set(
        xscale="log", yscale="log", xlabel="index of the eigenvalue", ylabel="eigenvalue", title="spectrum of the covariance"
    )
    middle.set(
        xlabel="degree $l$", ylabel="relative to one point", title="energy per degree", xticks=[1, 2, 3, 4], ylim=(-0.05, 1.05)
    )
    _draw_verdicts(right)
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    return figure


def _draw_verdicts(axis: Axes) -> None:
    """Draw the thresholds as lines, and name the regions between them."""
    axis.set(xscale="log", yscale="log", xlim=(LEAST_SHOWN / 4, 9), ylim=(0.55, 1000))
    axis.axvline(LEAST_UNIFORMITY, color="#7F7F7F", linewidth=1)
    axis.plot([LEAST_UNIFORMITY, 9], [LEAST_RANK, LEAST_RANK], color="#7F7F7F", linewidth=1)
    text = {"fontsize": 8, "color": "#555555", "transform": axis.get_xaxis_transform()}
    axis.set(xlabel="−uniformity", ylabel="effective rank", title="verdict")
    axis.text(LEAST_UNIFORMITY / 1.3, 0.98, "full\ncollapse", ha="right", va="top", **text)
    axis.text(LEAST_UNIFORMITY * 1.3, 0.02, "dimensional\ncollapse", va="bottom", **text)
    axis.text(LEAST_UNIFORMITY * 1.3, 0.98, "healthy", va="top", **text)
