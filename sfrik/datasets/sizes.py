"""Subsets that a data set does not have, refused from the settings only: by a run before it reads images, and by a dry run."""

from __future__ import annotations

from sfrik.errors import SfrikError

__all__ = ["check_subset"]

PER_CLASS = {"mnist5k": 350, "cifar10": 5000, "stl10": 500}  # labelled training images; those of other data sets vary
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
