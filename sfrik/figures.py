"""Figures: one style, and the drawings that more than one notebook shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from sfrik.datasets import Images
from sfrik.tables import PROTOCOLS, Table

__all__ = ["COLOURS", "accuracy_against_q", "save", "style", "thumbnail", "training_curves", "view_grid"]

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
    middle.set(xlabel="epoch", ylabel="mean squared distance", title="alignment")
    right.plot(at, [line["effective_rank"] for line in epochs], marker=".", color=COLOURS["AUH"])
    right.set(xlabel="epoch", ylabel="effective rank", title="effective rank", ylim=(0, None))
    return figure


def view_grid(rows: Sequence[Sequence[Any]], titles: Sequence[str]) -> Figure:
    """Images in rows, one title a row; an image is an array [h, w], [h, w, 3] or a tensor [c, h, w]."""
    columns = max(len(row) for row in rows)
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(0.6 * columns + 1.0, 0.65 * len(rows)), squeeze=False, layout="constrained"
    )
    for row, images, title in zip(axes, rows, titles, strict=True):
        for axis, image in zip(row, images, strict=False):
            axis.imshow(_displayable(image), cmap="gray", interpolation="nearest")
        for axis in row:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            axis.grid(False)
        row[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
    return figure


def accuracy_against_q(table: Table) -> Figure:
    """Measured accuracy of each method against the dimension of the embeddings, one panel a protocol.

    Points are means over seeds, bars one standard deviation; the baselines that have no q are lines.
    """
    figure, axes = plt.subplots(1, len(PROTOCOLS), figsize=(10.5, 3.6), layout="constrained", sharex=True)
    for axis, (protocol, title) in zip(axes, PROTOCOLS.items(), strict=True):
        for method in dict.fromkeys(measured.row.method for measured in table.measured):
            points = [m for m in table.measured if m.row.method == method and m.mean(protocol) is not None]
            if not points:
                continue
            colour = COLOURS[method]
            if points[0].row.q is None:
                line = ":" if method == "raw pixels" else "--"
                axis.axhline(points[0].mean(protocol), color=colour, linestyle=line, label=method)
                continue
            axis.errorbar(
                [m.row.q for m in points],
                [m.mean(protocol) for m in points],
                yerr=[m.spread(protocol) or 0 for m in points],
                color=colour,
                marker=MARKERS[method],
                capsize=3,
                label=method,
            )
        dims = sorted({m.row.q for m in table.measured if m.row.q})
        axis.set_xscale("log", base=2)
        axis.set_xticks(dims, [str(q) for q in dims])
        axis.minorticks_off()
        axis.set(title=title, xlabel="dimension q of the embeddings")
    axes[0].set_ylabel("top-1 accuracy, %")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    return figure


def thumbnail(images: Images, index: int) -> Any:
    """One image of a split as it is, for drawing."""
    return images.tensor[index] if images.tensor is not None else images.open(index).convert("RGB")


def _displayable(image: Any) -> np.ndarray:
    if isinstance(image, torch.Tensor):
        image = image.detach().float().cpu()
        if image.ndim == 3:
            image = image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)
        low, high = image.min(), image.max()
        image = (image - low) / (high - low).clamp_min(1e-6)  # views are normalised: back to the range of a picture
    return np.asarray(image)


def save(figure: Figure, stem: Path) -> None:
    """As PNG and SVG, without a date, so that the same figure gives the same file."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(stem.with_suffix(".png"), dpi=150, metadata={"Software": None})
    with plt.rc_context({"svg.hashsalt": "sfrik"}):
        figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
