"""Features and labels from files, other tools and callers: converted, or refused in one line that names them.

Features become a matrix [n, d] of float32 (float64 stays), labels whole numbers [n] from 0. The same rules hold for the .npy
files of an extraction folder (`sfrik.evaluate.feature_files`) and for the arguments of the library's functions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sfrik.ops.finite import check_finite_rows, format_numbers, format_rows
from sfrik.system.terminal import print_line

__all__ = ["MOST_CLASSES", "as_features", "as_labels", "as_split", "check_widths", "report_untrained"]

MOST_CLASSES = 10**6  # larger labels are identifiers; the scores of 1,000 images would take 4 GB
RENUMBER = "number the classes from 0, for example by numpy.unique(labels, return_inverse=True)"
FLOATS = (torch.float32, torch.float64)


def as_features(
    values: Tensor | np.ndarray,
    source: object,
    error: type[ValueError] = ValueError,
    name_of: Callable[[int], str] | None = None,
) -> Tensor:
    """Features as a matrix [n, d].

    Args:
        values: [n, d], or [n, d, 1, 1] as a pooling layer returns them; real numbers of any type and byte order.
        source: The name of the argument or the file, for messages.
        error: The type of the exception.
        name_of: The name of a row's image, for messages.

    Returns:
        float32 or float64; a view of `values` where their type allows it.

    Raises:
        ValueError: Or `error`: another type or shape, no rows, or values that are NaN or infinite in float32.

    >>> as_features(np.array([[[1]], [[2]]], dtype=np.uint8), "train_features")
    tensor([[1.],
            [2.]])
    """
    shape, kind = tuple(values.shape), str(values.dtype).removeprefix("torch.")
    remedy = f"{source} contains {kind} of shape {shape}, not features"
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "fiu":
            raise error(f"{remedy}: save real numbers, such as float32")
        wide = values.dtype.kind == "f" and values.dtype.itemsize >= 8
        with np.errstate(over="ignore"):  # refused below, as infinite
            values = torch.from_numpy(np.ascontiguousarray(values, np.float64 if wide else np.float32))
    elif values.is_complex() or values.dtype == torch.bool or values.layout != torch.strided:
        raise error(f"{remedy}: they are real numbers, such as float32")
    if values.ndim > 2 and values[0:1].numel() == shape[1]:
        values = values.flatten(1)
    if values.ndim != 2:
        raise error(f"{remedy}: they have one row per image, [n, d]; pool or flatten what a network returns")
    if not values.numel():
        raise error(f"{remedy}: they are empty")
    values = values.detach()
    values = values if values.dtype in FLOATS else values.float()
    check_finite_rows(values, source, name_of=name_of, error=error)
    return values


def as_labels(values: Tensor | np.ndarray, source: object, error: type[ValueError] = ValueError) -> Tensor:
    """Labels as class numbers, int64 [n].

    Args:
        values: [n] or [n, 1]; whole numbers from 0 of any type and byte order, floating-point too.
        source: The name of the argument or the file, for messages.
        error: The type of the exception.

    Raises:
        ValueError: Or `error`: another type or shape, no labels, or a value that is not a class number below `MOST_CLASSES`.

    >>> as_labels(np.array([[0.0], [2.0]]), "train_labels")
    tensor([0, 2])
    """
    shape, kind = tuple(values.shape), str(values.dtype).removeprefix("torch.")
    remedy = f"{source} contains {kind} of shape {shape}, not labels"
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "fiub":
            raise error(f"{remedy}: {RENUMBER}")
        exact = values.dtype.kind in "ib" or (values.dtype.kind == "u" and values.dtype.itemsize < 8)  # in int64
        values = torch.from_numpy(np.ascontiguousarray(values, np.int64 if exact else np.float64))
    elif values.is_complex() or values.layout != torch.strided:
        raise error(f"{remedy}: {RENUMBER}")
    if len(shape) > 1 and values.numel() == shape[0]:
        values = values.flatten()
    if values.ndim != 1 or not shape:
        raise error(f"{remedy}: they have one class number per row, [n]; of one-hot labels it is .argmax(1)")
    if not values.numel():
        raise error(f"{remedy}: they are empty")
    whole = values.detach().long() if not values.is_floating_point() else values.detach().double()
    wrong = ~((whole >= 0) & (whole < MOST_CLASSES) & (whole == whole.floor() if whole.is_floating_point() else True))
    if bool(wrong.any()):
        rows = wrong.nonzero().flatten().tolist()
        raise error(
            f"{source} has label {whole[rows[0]].item():.10g} in {format_rows(rows)}: labels are whole numbers from 0 to "
            f"{MOST_CLASSES - 1}; leave out images without a label, and {RENUMBER}"
        )
    return whole.long()


def as_split(split: tuple[Tensor, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """Features [n, d] and labels [n] of a split, converted by `as_features` and `as_labels`.

    Raises:
        ValueError: As they do, or unequal numbers of features and labels.
    """
    features, labels = as_features(split[0], f"{name} features"), as_labels(split[1], f"{name} labels")
    if len(features) != len(labels):
        raise ValueError(f"{len(features)} {name} features but {len(labels)} labels")
    return features, labels


def report_untrained(train_labels: Tensor, test_labels: Tensor, source: object) -> None:
    """Print on stderr which labels of scored features no training features have, such as labels from 1 beside labels from 0."""
    counts = torch.bincount(test_labels)
    known = torch.bincount(train_labels, minlength=len(counts))[: len(counts)] > 0
    if missing := ((counts > 0) & ~known).nonzero().flatten().tolist():
        print_line(
            f"{source}: {int(counts[missing].sum())} of {len(test_labels)} val labels are of classes without training features "
            f"({format_numbers(missing)}), and count as errors: do both files number the same classes from 0?",
            error=True,
        )


def check_widths(**features: Tensor) -> None:
    """Refuse matrices of different widths; the names of the arguments are used in the message.

    Raises:
        ValueError: The message has the widths.
    """
    widths = {name: matrix.shape[1] for name, matrix in features.items()}
    if len(set(widths.values())) > 1:
        text = ", ".join(f"{name} have {width}" for name, width in widths.items())
        raise ValueError(f"features of different dimensions: {text}; they must come from one network")
