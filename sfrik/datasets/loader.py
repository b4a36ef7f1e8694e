"""Batches of views: read by worker processes, drawn from seeds, robust to broken images and dead workers."""

from __future__ import annotations

import signal
from collections import abc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from sfrik.datasets.decoding import take_guesses, warn_of_guess
from sfrik.datasets.images import Images
from sfrik.errors import SfrikError
from sfrik.ops.random import derived_seed
from sfrik.system.devices import cores
from sfrik.system.signals import GRACE, SIGNALS
from sfrik.system.temporary import short_socket_folder
from sfrik.views.base import Views

__all__ = ["batches", "explain_worker_death", "keep_on_device"]

MOST_SKIPPED = 100  # consecutive broken images; more are a fault of the disk, not of the images


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
    """Iterate over batches of views.

    The random numbers depend on `seeds` and on the image or the batch only, not on the number of workers nor on what was
    drawn before: a resumed run draws the same views as an uninterrupted run.

    Args:
        images: the split.
        indices: the images to load, int64 [m], in this order.
        views: the views to draw of each image. Those of images in memory are drawn in batches, without workers; one by one where
            they have no `in_memory`, if the images can be opened too.
        batch_size: images per batch; the last batch may be smaller.
        seeds: values that seed the random numbers, such as (seed, epoch, rank).
        device: device of the views and targets.
        workers: processes that read and decode, for images on disk; at most one per core. 0: this process does. They are
            started by the default method of `multiprocessing`.
        first: number of the batch to start with.
        skip_broken: replace an image that cannot be read by the next one that can; the returned indices show which.

    Yields:
        The views, each [n, c, h, w] on `device`; the targets, int64 [n] or [n, classes]; the indices of the images shown,
        int64 [n].

    Raises:
        SfrikError: an image cannot be read (with `skip_broken`, 100 consecutive ones), or a worker process was killed.
    """
    indices, device = indices[first * batch_size :], torch.device(device)
    targets = torch.from_numpy(images.targets)
    in_memory = views.per_batch if views.per_image is None else views.in_memory
    if images.tensor is not None and in_memory is not None:
        draw, pieces = in_memory, _gathered(images.tensor, targets, indices, batch_size, device)
    else:
        if workers:
            short_socket_folder()
        loader = DataLoader(
            _SeededItems(images, views, seeds, skip_broken),
            batch_size=batch_size,
            sampler=indices.tolist(),
            num_workers=min(workers, cores()),
            collate_fn=_stack,
            pin_memory=device.type == "cuda",
            worker_init_fn=_leave_signals_to_parent,
        )
        draw, pieces = views.per_batch, _pieces(loader, targets, batch_size)
    for step, (tensors, labels, shown) in enumerate(pieces, first):
        tensors = [tensor.to(device, non_blocking=True) for tensor in tensors]
        generator = Generator().manual_seed(derived_seed("batch", *seeds, step))
        yield draw(tensors, generator), labels.to(device, non_blocking=True), shown


def keep_on_device(images: Images, device: torch.device | str) -> Images:
    """The images with their tensor in the GPU's memory, from which batches are then gathered; others unchanged.

    Images that are not in memory, or would take more than a quarter of the GPU's free memory, stay where they are: their batches
    are copied one by one.
    """
    device = torch.device(device)
    if images.tensor is None or device.type != "cuda":
        return images
    free, _ = torch.cuda.mem_get_info(device)
    return replace(images, tensor=images.tensor.to(device)) if 4 * images.tensor.nbytes <= free else images


def _gathered(
    tensor: Tensor, targets: Tensor, indices: np.ndarray, batch_size: int, device: torch.device
) -> Iterator[tuple[list[Tensor], Tensor, np.ndarray]]:
    """Batches of images in memory, [n, c, h, w], and their targets, gathered where the images are."""
    order, targets = torch.from_numpy(indices).to(tensor.device), targets.to(tensor.device)
    pinned = device.type == "cuda" and tensor.device.type == "cpu"
    for low in range(0, len(indices), batch_size):
        which = order[low : low + batch_size]
        batch = tensor[which]
        yield [batch.pin_memory() if pinned else batch], targets[which], indices[low : low + batch_size]


def _pieces(loader: DataLoader, targets: Tensor, batch_size: int) -> Iterator[tuple[list[Tensor], Tensor, np.ndarray]]:
    for *tensors, shown, guesses in _with_plain_errors(loader, batch_size):
        warn_of_guess(guesses)
        yield tensors, targets[shown], shown.numpy()


def _with_plain_errors(loader: DataLoader, batch_size: int) -> Iterator[list[Any]]:
    """The loader's batches; a worker's SfrikError is raised with its message only, without the worker's traceback."""
    with explain_worker_death(loader.num_workers, batch_size):
        try:
            yield from loader
        except SfrikError as error:
            _drop_tracebacks(error)
            raise SfrikError(str(error).strip().splitlines()[-1].split("SfrikError: ", 1)[-1]) from None
        except (EOFError, ConnectionError, FileNotFoundError) as error:  # of the pipe that a batch came through
            _drop_tracebacks(error)
            raise RuntimeError("DataLoader worker exited while it sent a batch") from None


@contextmanager
def explain_worker_death(workers: int, batch_size: int) -> Iterator[None]:
    """A context in which the death of a worker process is raised as an error that names the settings to lower.

    PyTorch raises it from a signal handler, wherever the program is at that moment: in the loader, or in code that uses its
    batches.

    Raises:
        SfrikError: a worker process died.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        _drop_tracebacks(error)
        reason = str(error).splitlines()[0].rstrip(". ")
        raise SfrikError(
            f"a process that decodes images ended ({reason}), most often because memory, or the shared memory in /dev/shm, ran "
            f"out: lower workers (now {workers} per training process) or batch_size (now {batch_size} per process), or give the "
            "job more memory"
        ) from None


def _drop_tracebacks(error: BaseException | None) -> None:
    """Drop the tracebacks of an error and its causes, which hold the loader's iterator: without them it ends its workers now.

    Where the garbage collector finds it later, it waits 5 s for each worker, and PyTorch raises the death of one of them
    again wherever the program is at that moment.
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _leave_signals_to_parent(worker: int) -> None:
    """Ignore, in a worker, the signals that stop a run: SLURM and a terminal send them to every process.

    The workers keep decoding until the training has saved and ends them. After a SIGTERM they exit once the grace time is
    over: an interpreter that exits in the middle of a loader sends it and waits for them.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(max(1, round(GRACE))))


def _stack(items: list[tuple]) -> list[Any]:
    """Stack the views of several images, [n, c, h, w] each, then their indices, [n], as PyTorch's default_collate does.

    The last element is what the process that read them has to report, a list of strings.

    Byte images with channels last in memory stay so in the batch, which is then a plain copy of the memory. Bytes take a
    quarter of the memory of floats on the way through shared and pinned memory to the device.
    """
    last = [torch.is_tensor(v) and v.dtype == torch.uint8 and not v.is_contiguous() for v in items[0]]
    turned = [[v.permute(1, 2, 0) if turn else v for v, turn in zip(item, last, strict=True)] for item in items]
    stacked = [v.permute(0, 3, 1, 2) if turn else v for v, turn in zip(default_collate(turned), last, strict=True)]
    return [*stacked, take_guesses()]


class _SeededItems(Dataset):
    """The tensors of `views.per_image` and the index of one image at a time, drawn from the image's seed."""

    def __init__(self, images: Images, views: Views, seeds: tuple[int, ...], skip_broken: bool) -> None:
        images = replace(images, tensor=None)  # which workers do not need, and which may be on a GPU
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
            torch.default_generator.manual_seed(derived_seed("image", *self.seeds, index))
            return (*self.per_image(image), index)
        finally:
            torch.default_generator.set_state(state)

    def _read(self, index: int) -> tuple[Image.Image | Tensor, int]:
        """The image, or with `skip_broken` the next one that can be read, and its index."""
        if not self.skip_broken:
            return self.read(index), index
        for other in range(index, index + MOST_SKIPPED):
            with suppress(SfrikError):
                return self.read(other % len(self)), other % len(self)
        raise SfrikError(
            f"{MOST_SKIPPED} images in a row cannot be read, from {self.images.name(index)} on: is the disk mounted? "
            "skip_broken is for single broken files"
        )
