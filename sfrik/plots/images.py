"""Figures of images: views, nearest neighbours, mistakes of a classifier, confusion matrices.

Correct and wrong predictions differ in a mark and in the line style of the frame, not only in colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from sfrik.datasets.images import Images
from sfrik.errors import SfrikError
from sfrik.views.photos import STATISTICS

__all__ = [
    "draw_confusion",
    "image_sheet",
    "largest_confusions",
    "most_confused",
    "neighbour_grid",
    "sample_photos",
    "thumbnail",
    "view_grid",
]

MARKS = {True: "✓", False: "✗"}
FRAMES = {
    True: {"color": "#0072B2", "linewidth": 1.0, "linestyle": "-"},
    False: {"color": "#D55E00", "linewidth": 2.5, "linestyle": "--"},
}


def sample_photos() -> Images:
    """Two photos of 640 x 427 pixels that come with scikit-learn, a temple in China and a flower. No download.

    Both are licensed under CC BY 2.0. scikit-learn's images/README.txt attributes them to danielbuechele, and links to a page of
    vultilion for the flower.
    """
    try:
        from sklearn.datasets import load_sample_image
    except ImportError:
        raise SfrikError("the sample photos come with scikit-learn: pip install scikit-learn") from None
    names = ("china.jpg", "flower.jpg")
    return Images(np.zeros(2, np.int64), 1, lambda i: names[i], open=lambda i: Image.fromarray(load_sample_image(names[i])))


def thumbnail(images: Images, index: int) -> Any:
    """One image of a split, unchanged, to be drawn."""
    if images.tensor is not None:
        return images.tensor[index]
    assert images.open is not None, "images are in memory or on disk"
    return images.open(index).convert("RGB")


def view_grid(
    rows: Sequence[Sequence[Any]],
    titles: Sequence[str],
    notes: Sequence[Sequence[str]] | None = None,
    correct: Sequence[Sequence[bool | None]] | None = None,
    side: float = 0.6,
    dataset: str = "imagenet",
) -> Figure:
    """A grid of images, one title per row; rows may differ in length.

    Args:
        rows: PIL images, arrays [h, w] or [h, w, 3], tensors [c, h, w] of bytes, or normalised views (float tensors).
        titles: the title of each row.
        notes: a text below each image.
        correct: whether each image is correct, shown by its frame and a mark; None for neither.
        side: of an image, in inches.
        dataset: the data set whose mean and standard deviation normalised the views; the normalisation is undone.
    """
    columns, below = max(len(row) for row in rows), _max_lines(notes)
    figure, axes = plt.subplots(
        len(rows),
        columns,
        figsize=(max(side, _note_width(notes)) * columns + 1.0, (side + 0.05 + 0.16 * below) * len(rows)),
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        axis.grid(False)
    for y, (row, title) in enumerate(zip(rows, titles, strict=True)):
        axes[y, 0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
        for x, image in enumerate(row):
            axes[y, x].imshow(_displayable(image, dataset), cmap="gray", interpolation="nearest", vmin=0, vmax=1)
            _mark(axes[y, x], notes[y][x] if notes else "", correct[y][x] if correct else None)
    return figure


def image_sheet(
    images: Images,
    indices: Sequence[int],
    notes: Sequence[str],
    correct: Sequence[bool | None] | None = None,
    columns: int = 8,
    side: float = 1.0,
) -> Figure:
    """The images at `indices` in rows of at most `columns`, each with its note and mark; without any, a figure with "no image".

    Rows have fewer images where the notes are wider than these, as names of classes may be.
    """
    if not len(indices):
        figure = plt.figure(figsize=(2, 0.4))
        figure.text(0.5, 0.5, "no image", ha="center", va="center")
        return figure

    columns = max(1, min(columns, int(columns * side / max(side, _note_width([notes])))))

    def rows(values: Sequence[Any]) -> list[Sequence[Any]]:
        return [values[low : low + columns] for low in range(0, len(values), columns)]

    thumbnails = rows([thumbnail(images, int(i)) for i in indices])
    return view_grid(thumbnails, [""] * len(thumbnails), rows(notes), None if correct is None else rows(correct), side)


def neighbour_grid(queries: Images, bank: Images, shown: Sequence[int], near: Sequence[Sequence[int]]) -> Figure:
    """Query images, each followed by its nearest neighbours; neighbours of the query's class are marked as correct.

    Args:
        queries: the images that are classified.
        bank: the images that the neighbours come from.
        shown: indices in `queries`.
        near: for each of them, the indices of its neighbours in `bank`.
    """
    rows, titles, notes, correct = [], [], [], []
    for query, neighbours in zip(shown, near, strict=True):
        label, others = int(queries.targets[query]), [int(bank.targets[int(i)]) for i in neighbours]
        rows.append([thumbnail(queries, int(query)), *(thumbnail(bank, int(i)) for i in neighbours)])
        titles.append(f"class {_name(queries, label)}")
        notes.append(["", *(_name(bank, other) for other in others)])
        correct.append([None, *(other == label for other in others)])
    return view_grid(rows, titles, notes, correct, side=0.9)


def most_confused(counts: np.ndarray, most: int = 20) -> np.ndarray:
    """Indices of the classes to draw, in order: all, or the `most` classes with the largest counts off the diagonal."""
    if len(counts) <= most:
        return np.arange(len(counts))
    wrong = counts - np.diag(np.diag(counts))
    pairs = np.stack(np.unravel_index(np.argsort(-wrong, axis=None, kind="stable"), wrong.shape), axis=1)
    return np.sort(list(dict.fromkeys(pairs.flatten().tolist()))[:most])


def largest_confusions(counts: np.ndarray, names: Sequence[str] | None = None, most: int = 3) -> str:
    """The largest counts off the diagonal as text: "4 → 9 (12 images), 7 → 2 (5 images)"; equal ones in the order of classes."""
    wrong = counts - np.diag(np.diag(counts))
    places = np.argsort(-wrong, axis=None, kind="stable")[:most]
    found = [(*np.unravel_index(place, wrong.shape), int(wrong.flat[place])) for place in places]
    label = (lambda k: str(k)) if names is None else (lambda k: names[k])
    return ", ".join(f"{label(y)} → {label(x)} ({n} image{'s' * (n != 1)})" for y, x, n in found if n) or "none"


def draw_confusion(counts: Mapping[str, np.ndarray], names: Sequence[str] | None = None, most: int = 20) -> Figure:
    """Confusion matrices side by side, with the mistakes shaded on a common scale and the accuracy of each class.

    Args:
        counts: matrices [classes, classes] by their titles; a row is the true class, a column the predicted one.
        names: of the classes; their numbers when None.
        most: the number of classes to draw. Of more classes, the most confused ones of all matrices together are drawn.
    """
    shown = most_confused(np.sum(list(counts.values()), axis=0), most)
    labels = [str(k) if names is None else names[k] for k in shown]
    side, total = max(2.6, 0.3 * len(shown)), len(next(iter(counts.values())))
    figure, axes = plt.subplots(
        1, len(counts), figsize=((side + 1.2) * len(counts), side + 0.9), squeeze=False, layout="constrained"
    )
    largest = max((whole - np.diag(np.diag(whole)))[np.ix_(shown, shown)].max() for whole in counts.values())
    for axis, (title, whole) in zip(axes[0], counts.items(), strict=True):
        part, images = whole[np.ix_(shown, shown)], whole.sum(axis=1)[shown].clip(1)
        wrong = part - np.diag(np.diag(part))
        axis.imshow(wrong, cmap="Oranges", vmin=0, vmax=max(1, 1.4 * largest))
        for y, x in zip(*np.nonzero(part), strict=True):
            axis.text(x, y, part[y, x], ha="center", va="center", fontsize=8, fontweight="bold" if x == y else "normal")
        accuracy = np.diag(part) / images
        axis.set_yticks(range(len(shown)), [f"{name}  ({share:.0%})" for name, share in zip(labels, accuracy, strict=True)])
        axis.set_xticks(range(len(shown)), labels, rotation=90 if max(map(len, labels)) > 2 else 0)
        axis.tick_params(length=0, labelsize=8)
        axis.grid(False)
        some = f"\n(the {len(shown)} most confused of {total} classes)" if len(shown) < total else ""
        axis.set(xlabel="predicted class", title=title + some)
        axis.title.set_fontsize(10)
    axes[0][0].set_ylabel("true class (accuracy)")
    return figure


def _name(images: Images, label: int) -> str:
    return str(images.classes[label]) if images.classes else str(label)


def _max_lines(notes: Sequence[Sequence[str]] | None) -> int:
    """The number of lines of the longest note."""
    return max((text.count("\n") + 1 for row in notes for text in row), default=0) if notes else 0


def _note_width(notes: Sequence[Sequence[str]] | None) -> float:
    """The width of the longest line of the notes with a mark, in inches, at the size that `_mark` writes them in."""
    return 0.065 * max((len(line) + 2 for row in notes or () for text in row for line in text.split("\n") if line), default=0)


def _mark(axis: Axes, note: str, correct: bool | None) -> None:
    mark = "" if correct is None else MARKS[bool(correct)]
    axis.set_xlabel(f"{note} {mark}".strip(), fontsize=8, labelpad=2)
    if correct is not None:
        axis.spines[:].set(visible=True, **FRAMES[bool(correct)])


def _displayable(image: Any, dataset: str) -> np.ndarray:
    """An image as values from 0 to 1: [h, w] or [h, w, 3]."""
    if not isinstance(image, torch.Tensor):
        return np.asarray(image) / 255
    pixels = image.detach().float().cpu()
    if image.dtype == torch.uint8:
        pixels = pixels / 255
    else:
        mean, std = (torch.tensor(values)[:, None, None] for values in STATISTICS.get(dataset, STATISTICS["imagenet"]))
        pixels = pixels * std + mean
    pixels = pixels.clamp(0, 1)
    return (pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)).numpy()
