"""Figures: one style, and the drawings that more than one notebook shows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "style", "training_curves"]

# Okabe and Ito's palette: told apart by colour-blind readers; markers tell the same in grey.
COLOURS = {
    "SFRIK L=1": "#E69F00",
    "SFRIK L=2": "#0072B2",
    "SFRIK L=3": "#56B4E9",
    "AUH": "#009E73",
    "VICReg": "#D55E00",
    "SimCLR": "#CC79A7",
    "random weights": "#7F7F7F",
    "raw pixels": "#000000",
}
MARKERS = {"SFRIK L=1": "v", "SFRIK L=2": "o", "SFRIK L=3": "*", "AUH": "s", "VICReg": "D", "SimCLR": "^"}


def style() -> None:
    """Matplotlib's settings for every figure of the project."""
    plt.rcParams.update(
        {
            "figure.figsize": (6.4, 3.6),
            "figure.dpi": 96,
            "savefig.bbox": "tight",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "legend.frameon": False,
            "font.size": 10,
        }
    )


def training_curves(metrics: Iterable[dict[str, Any]]) -> Figure:
    """Loss by step and the signs of a collapse by epoch, from the lines of metrics.jsonl."""
    lines = list(metrics)
    steps = [line for line in lines if "step" in line]
    epochs = [line for line in lines if "effective_rank" in line]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 2.8), layout="constrained")
    left.plot([line["step"] for line in steps], [line["loss"] for line in steps], color=COLOURS["SFRIK L=2"])
    left.set(xlabel="step", ylabel="loss", title="loss")
    at = [line["epoch"] + 1 for line in epochs]
    middle.plot(at, [line["alignment"] for line in epochs], marker=".", color=COLOURS["VICReg"], label="alignment")
    middle.set(xlabel="epoch", ylabel="mean squared distance of two views", title="alignment")
    right.plot(at, [line["effective_rank"] for line in epochs], marker=".", color=COLOURS["AUH"])
    right.set(xlabel="epoch", ylabel="effective rank", title="effective rank", ylim=(0, None))
    return figure


def save(figure: Figure, stem: Path) -> None:
    """As PNG and SVG, without a date, so that the same figure gives the same file."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(stem.with_suffix(".png"), dpi=150, metadata={"Software": None})
    with plt.rc_context({"svg.hashsalt": "sfrik"}):
        figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
