"""Subsets of a data set. One that it does not have is refused from the settings only, before images are read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sfrik.errors import SfrikError

__all__ = ["check_subset", "class_members", "class_subset"]

# labelled training images; those of other data sets vary
PER_CLASS = {"mnist5k": 350, "cifar10": 5000, "cifar100": 500, "stl10": 500}
MNIST5K_TUNE = 50


def check_subset(dataset: str, split: str, subset: int | None, val_subset: int | None) -> None:
    """Refuse a split that needs more images per class than the data set has.

    Args:
        dataset: as in `sfrik.datasets.load_images`.
        split: "pretrain", "train", "tune" or "test".
        subset: training images per class.
        val_subset: images per class of the tuning split.

    Raises:
        SfrikError: there are too few images, or the tuning split lacks `subset` or `val_subset`.
    """
    if split == "test" or (dataset, split) == ("stl10", "pretrain"):  # the latter has no classes
        return
    count, most = subset or 0, PER_CLASS.get(dataset)
    if split == "tune" and dataset == "mnist5k":
        count, most = val_subset or 0, MNIST5K_TUNE
    elif split == "tune":
        if subset is None or val_subset is None:
            raise SfrikError("the tuning split needs subset (images per class for training) and val_subset (for tuning)")
        count, split = subset + 1 + val_subset, "train"
    if most is not None and count > most:
        raise SfrikError(
            f"{dataset} has {most} images per class in its {split} split, but {count} are required: lower subset or val_subset"
        )


def class_subset(
    targets: Sequence[int] | np.ndarray,
    per_class: int,
    start: int = 0,
    classes: Sequence[str] | None = None,
    source: str = "",
) -> list[int]:
    """Indices of the images `start` to `start + per_class - 1` of each class, in the data set's order.

    Args:
        targets: class of each image, [n].
        per_class: number of images per class.
        start: position of the first one within its class.
        classes: class names, for the error message.
        source: the folder of the images, for the error message.

    Raises:
        SfrikError: a class has fewer than `start + per_class` images. The message names it.

    >>> class_subset([0, 0, 0, 1, 1, 1], per_class=1, start=1)
    [1, 4]
    """
    chosen = []
    for label, members in class_members(targets).items():
        if len(members) < start + per_class and label < 0:
            raise SfrikError(f"there are {len(members)} images, without labels, but subset asks for {per_class}: lower subset")
        if len(members) < start + per_class:
            name = classes[label] if classes else label
            raise SfrikError(
                f"class {name}{f' of {source}' if source else ''} has {len(members)} images, but images {start} to "
                f"{start + per_class - 1} of each class are required: {start + per_class} per class, or a lower subset or "
                "val_subset"
            )
        chosen.append(members[start : start + per_class])
    return np.sort(np.concatenate(chosen)).tolist() if chosen else []


def class_members(targets: Sequence[int] | np.ndarray) -> dict[int, np.ndarray]:
    """Indices of each class's images, int64 [m], in the data set's order."""
    order = np.argsort(targets, kind="stable")
    labels, counts = np.unique(targets, return_counts=True)
    return dict(zip(labels.tolist(), np.split(order, np.cumsum(counts))[:-1], strict=True))
