"""Features of a frozen backbone, in the order of the data set."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from io import RawIOBase
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sfrik.datasets import Images, batches, load_images
from sfrik.errors import SfrikError
from sfrik.evaluate.inputs import evaluation_split, frozen_backbone, scored_images, weights_path
from sfrik.networks import Backbone
from sfrik.ops.collectives import broadcast_from_rank_zero, rank, world_size
from sfrik.runs.records import FeatureOrigin
from sfrik.settings import FeatureSettings
from sfrik.system.devices import autocast, channels_last, pick_device, pick_precision
from sfrik.system.files import atomic_write, check_regular, file_hash, write_error, write_json
from sfrik.system.locks import folder_lock
from sfrik.system.progress import track
from sfrik.system.records import read_record
from sfrik.views.base import Views, resize_for_test

__all__ = ["extract", "extract_features", "features_hash", "features_here", "load_features"]

FILES = tuple(f"{split}_{part}.npy" for split in ("train", "val") for part in ("features", "labels"))


def extract(
    backbone: nn.Module,
    images: Images,
    views: Views,
    batch_size: int = 500,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    workers: int = 0,
    look: Callable[[], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Features [n, d] in float32 and labels of all images, in their order. The backbone's mode is restored after.

    `look` is called after each batch; it may raise, where the work is asked to stop.
    """
    features, labels = [], []
    order = np.arange(len(images))
    for some, targets in _batches(backbone, images, order, views, batch_size, torch.device(device), precision, workers):
        features.append(some)
        labels.append(targets)
        if look is not None:
            look()
    return torch.cat(features), torch.cat(labels)


@torch.no_grad()
def _batches(
    backbone: nn.Module,
    images: Images,
    indices: np.ndarray,
    views: Views,
    batch_size: int,
    device: torch.device,
    precision: str,
    workers: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features [b, d] and labels of the images at `indices`, a batch at a time, on the host."""
    training = backbone.training
    backbone.eval()
    try:
        with closing(batches(images, indices, views, batch_size, device=device, workers=workers)) as loader:
            for (batch,), targets, _ in loader:
                with autocast(device, precision):
                    features = backbone(batch.contiguous(memory_format=torch.channels_last))
                yield features.float().cpu(), targets.cpu()
    finally:
        backbone.train(training)


def extract_features(settings: FeatureSettings) -> Path:
    """Write train_features, train_labels, val_features and val_labels as .npy to the extraction folder, and return it.

    Under `torch.distributed` (torchrun, or `sfrik.launch`) every process calls this: each takes a run of consecutive
    batches and writes their features to their place in the one file. The files are the same, byte for byte, whatever the
    number of processes; `batch_size` is therefore that of each process here. Memory: a batch; features are never held whole.
    The folder must be one that all processes see.

    weights.json beside them names the weights by their SHA-256, and what was extracted; it is written last, when the features are
    on disk. Features that are there already, of the same weights and images, are left as they are.

    Raises:
        WriteError: the features cannot be written; no part of them is left.
    """
    evaluation_split(settings)  # features of the test images are not handed out before the choice either
    folder = features_folder(settings)
    if broadcast_from_rank_zero(_are_there(folder, settings)):
        return folder
    device = pick_device(settings.device)
    precision = pick_precision(settings.precision, device)
    splits = {
        "val": scored_images(settings),
        "train": load_images(settings.dataset, "train", settings.data_dir, settings.subset),
    }
    backbone = channels_last(frozen_backbone(settings, splits["train"].channels), device)
    # two that extract into one folder would write to the same files
    with folder_lock(folder, "features.lock", wait=True) if rank() == 0 else nullcontext():
        if not broadcast_from_rank_zero(_are_there(folder, settings)):
            try:
                _extract(folder, settings, splits, backbone, device, precision)
            finally:
                for split in splits:
                    _aside(folder, split).unlink(missing_ok=True)
    return folder


def _extract(
    folder: Path, settings: FeatureSettings, splits: dict[str, Images], backbone: Backbone, device: torch.device, precision: str
) -> None:
    views = resize_for_test(settings.size, settings.dataset)
    if rank() == 0:
        (folder / "weights.json").unlink(missing_ok=True)
        for split, images in splits.items():
            _make_empty(_aside(folder, split), (len(images), backbone.num_features))
    _barrier()
    for split, images in splits.items():
        indices = _share(len(images), settings.batch_size)
        parts = _batches(backbone, images, indices, views, settings.batch_size, device, precision, settings.workers)
        parts = track(parts, -(-len(indices) // settings.batch_size), f"features of {split}", show=rank() == 0)
        _write_rows(_aside(folder, split), int(indices[0]) if len(indices) else 0, (some for some, _ in parts))
    _barrier()
    if rank() == 0:
        for name in FILES:  # a process that is ended here must not leave old and new files side by side
            (folder / name).unlink(missing_ok=True)
        for split, images in splits.items():
            target = folder / f"{split}_features.npy"
            with _writing(target, 0):
                _aside(folder, split).replace(target)
            with atomic_write(folder / f"{split}_labels.npy", images.targets.nbytes) as file:  # flushes the folder too
                np.save(file, images.targets)
        write_json(folder / "weights.json", _origin(settings))
    _barrier()


@contextmanager
def _writing(path: Path, needed: int) -> Iterator[None]:
    """Within it the error of a file that cannot be written names it, what it needs and what is free."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error, needed) from None


def _make_empty(path: Path, shape: tuple[int, int]) -> None:
    """A .npy file of float32 with its whole length, which takes no room on the disk yet."""
    with _writing(path, 4 * shape[0] * shape[1]):
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape).flush()


def _share(n: int, batch_size: int) -> np.ndarray:
    """Indices of this process's images: whole batches, since a batch of another size may round otherwise."""
    steps = -(-n // batch_size)
    first, last = (steps * part // world_size() for part in (rank(), rank() + 1))
    return np.arange(first * batch_size, min(last * batch_size, n))


def _write_rows(path: Path, start: int, parts: Iterable[Tensor]) -> None:
    """Write features to a .npy file that is there with its whole length, from row `start` on.

    By plain writes and not through mapped memory, of which whole pages go to disk: on a network file system two nodes would
    overwrite each other's rows where a page holds some of both.
    """
    rows = np.load(path, mmap_mode="r")
    place = rows.offset + start * rows.shape[1] * rows.itemsize
    needed = rows.nbytes
    del rows
    with path.open("r+b", buffering=0) as file:
        file.seek(place)
        for features in parts:  # an error of theirs is none of this file
            with _writing(path, needed):
                _write_all(file, features.contiguous().numpy().data.cast("B"))
        with _writing(path, needed):
            os.fsync(file.fileno())


def _write_all(file: RawIOBase, content: memoryview) -> None:
    """Write all bytes; a call writes only some where the disk is nearly full, or of more than 2 GiB."""
    while content:
        content = content[file.write(content) :]


def _aside(folder: Path, split: str) -> Path:
    """The features of a split while they are written, by all processes."""
    return folder / f"{split}_features.tmp.npy"


def _barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def features_here(settings: FeatureSettings) -> Path:
    """The extraction folder, its features extracted now unless they are there, of the same weights and images.

    A score may be finished where its features are not: the repository holds scores alone.
    """
    if settings.extraction_dir:
        evaluation_split(settings)
        return _given_folder(settings)
    return extract_features(settings)


def _are_there(folder: Path, settings: FeatureSettings) -> bool:
    """Whether the folder holds the features that would be extracted. Of a run's own folder a broken weights.json means no."""
    if not all((folder / name).is_file() for name in (*FILES, "weights.json")) or not weights_path(settings).is_file():
        return False
    try:
        for split in ("train", "val"):
            load_features(folder, split)  # as far as header and length show
        return read_record(folder / "weights.json", FeatureOrigin) == _origin(settings)
    except SfrikError:
        if settings.extraction_dir:
            raise
        return False


def _origin(settings: FeatureSettings) -> dict[str, Any]:
    """What features depend on: the weights, and which images were taken how."""
    names = ("dataset", "subset", "size", "arch", "stem", "precision", "val_dataset", "val_subset")
    return {"backbone_sha256": file_hash(weights_path(settings)), **{name: getattr(settings, name) for name in names}}


def features_hash(settings: FeatureSettings) -> str | None:
    """SHA-256 of the weights that the features are of; None where the extraction folder does not say."""
    folder = _given_folder(settings) if settings.extraction_dir else features_folder(settings)
    path = folder / "weights.json"
    return read_record(path, FeatureOrigin)["backbone_sha256"] if path.exists() else None


def features_folder(settings: FeatureSettings) -> Path:
    """Where features are written: `extraction_dir`, or features/ in the run's folder."""
    return Path(settings.extraction_dir) if settings.extraction_dir else Path(settings.exp_dir) / "features"


def _given_folder(settings: FeatureSettings) -> Path:
    """Where features are read that were extracted elsewhere: `extraction_dir`, or features/ in it, as --exp-dir makes it."""
    folder = Path(settings.extraction_dir)
    inside = folder / "features"
    return inside if not (folder / "train_features.npy").is_file() and (inside / "train_features.npy").is_file() else folder


def load_features(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    """Features and labels of "train" or "val" from an extraction folder."""
    arrays = []
    for part in ("features", "labels"):
        path = folder / f"{name}_{part}.npy"
        if not path.exists():
            raise SfrikError(f"there are no features {path}: run extract-features first, or check --extraction-dir")
        check_regular(path)
        try:
            array = np.lib.format.open_memmap(path, mode="c")  # read as needed: ImageNet has 10 GiB
            tensor = torch.from_numpy(array)
        except MemoryError:
            raise
        except Exception as error:  # NumPy reads the header as Python, and raises anything where it is damaged
            raise SfrikError(f"{path} is not a complete .npy file ({error}): extract the features again") from None
        kinds, ndim = ("f", 2) if part == "features" else ("iu", 1)
        if array.dtype.kind not in kinds or array.ndim != ndim:
            raise SfrikError(f"{path} holds {array.dtype} of shape {array.shape}, which are no {part}: extract them again")
        arrays.append(tensor)
    if len(arrays[0]) != len(arrays[1]):
        raise SfrikError(f"{folder} has {len(arrays[0])} {name} features but {len(arrays[1])} labels: extract them again")
    return arrays[0], arrays[1]
