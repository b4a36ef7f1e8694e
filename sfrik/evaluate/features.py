"""Features of a frozen backbone: extraction on any number of processes, and reading."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sfrik.datasets import Images, batches
from sfrik.errors import SfrikError
from sfrik.evaluate.feature_files import load_features, make_empty, naming_the_file, write_rows
from sfrik.evaluate.inputs import Inputs
from sfrik.networks import Backbone
from sfrik.ops.collectives import barrier, broadcast_from_rank_zero, rank, world_size
from sfrik.ops.finite import check_finite_rows
from sfrik.runs.records import FeatureOrigin
from sfrik.settings import FeatureSettings
from sfrik.system.devices import autocast
from sfrik.system.files import atomic_write, file_hash, write_json
from sfrik.system.locks import folder_lock
from sfrik.system.progress import track
from sfrik.system.records import read_record
from sfrik.views.base import Views

__all__ = ["Features", "extract", "extract_features", "features_here", "read_features"]

FILES = tuple(f"{split}_{part}.npy" for split in ("train", "val") for part in ("features", "labels"))
LOCK = "features.lock"
REMEDY = "use another --precision (fp32), and check these images and the weights"
ATTEMPTS = 5  # extractions before a command gives up, where others replace its features before it opens them


class Features(NamedTuple):
    """The features of both splits, each (features [n, d], labels [n]), and the SHA-256 of the weights, None where unknown."""

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    weights_sha256: str | None


def extract(
    backbone: nn.Module,
    images: Images,
    views: Views,
    batch_size: int = 500,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    workers: int = 0,
    after_batch: Callable[[], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the features of all images, in evaluation mode; the backbone's mode is restored afterwards.

    Args:
        backbone: images [b, c, h, w] to features [b, d].
        views: one view of each image, such as `sfrik.views.base.resize_for_test`.
        precision: "fp32", "bf16" or "fp16", for autocast.
        workers: processes that decode images.
        after_batch: called after each batch; it may raise to stop the extraction.

    Returns:
        Features [n, d], float32, and labels [n], in the order of the data set and on the CPU.

    Raises:
        SfrikError: features that are NaN or infinite; the message names the images.
    """
    features, labels = [], []
    order = np.arange(len(images))
    for some, targets in _batches(backbone, images, order, views, batch_size, torch.device(device), precision, workers):
        features.append(some)
        labels.append(targets)
        if after_batch is not None:
            after_batch()
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
    """Features [b, d] and labels [b] of the images at `indices`, one batch at a time, on the CPU."""
    training = backbone.training
    backbone.eval()
    try:
        with closing(batches(images, indices, views, batch_size, device=device, workers=workers)) as loader:
            for (batch,), targets, positions in loader:
                with autocast(device, precision):
                    features = backbone(batch.contiguous(memory_format=torch.channels_last))
                features = features.float().cpu()
                names = partial(_image_name, images, positions)
                check_finite_rows(features, "the features of a batch", REMEDY, names, SfrikError)
                yield features, targets.cpu()
    finally:
        backbone.train(training)


def _image_name(images: Images, positions: np.ndarray, row: int) -> str:
    return images.name(int(positions[row]))


def extract_features(settings: FeatureSettings) -> Path:
    """Extract the features of the training images and of the scored split to .npy files, unless they exist.

    The files are train_features, train_labels, val_features and val_labels; "val" is the test images, or the tuning split with
    `val_dataset` train. weights.json beside them records the SHA-256 of the weights and what was extracted; it is written last,
    when the features are on disk. Features of the same weights and images are left as they are.

    Under `torch.distributed` (torchrun, or `sfrik.launch`) every process calls this function: each takes a range of consecutive
    batches and writes their features to their rows of the one file. The folder must be visible to all processes. The files are
    the same, byte for byte, for any number of processes; `batch_size` is therefore per process here. Memory: one batch; the
    features are never held in memory as a whole.

    A second command that needs the same features waits for the first, with a line on stdout, and uses what it wrote.

    Returns:
        The extraction folder: `extraction_dir`, or features/ in the run's folder.

    Raises:
        WriteError: the features cannot be written; no part of them is left.
        SfrikError: missing weights or images, or test images of a grid whose choice is not recorded.
    """
    inputs = Inputs.resolve(settings)
    if type(settings) is FeatureSettings and not settings.extraction_dir:  # those of a score are checked by its name
        inputs.check_folder(inputs.score_name("features"))
    folder = Path(settings.extraction_dir) if settings.extraction_dir else _own_folder(inputs)
    _extract_if_missing(folder, inputs)
    return folder


def features_here(settings: FeatureSettings) -> Path:
    """The folder with the features: `extraction_dir`, or the run's own, extracted now unless they exist.

    Raises:
        SfrikError: as `extract_features`; an `extraction_dir` is not checked here, but by `load_features`.
    """
    if settings.extraction_dir:
        Inputs.resolve(settings)
        return _given_folder(settings)
    return extract_features(settings)


def read_features(inputs: Inputs[Any]) -> Features:
    """The features of `extraction_dir`, or the run's own, extracted now unless they exist.

    The run's own are opened under the lock of the extraction: another command that extracts another split of the same run
    replaces the files, and those that are open stay as they are.

    Raises:
        SfrikError: missing or incomplete features, splits of different dimensions, or other commands that keep replacing them.
    """
    settings: FeatureSettings = inputs.settings
    if settings.extraction_dir:
        folder = _given_folder(settings)
        train, val = load_features(folder, "train"), load_features(folder, "val")
        record = folder / "weights.json"
        digest = read_record(record, FeatureOrigin)["backbone_sha256"] if record.exists() else None
    else:
        folder = _own_folder(inputs)
        for _ in range(ATTEMPTS):
            _extract_if_missing(folder, inputs)
            # another command may have replaced them by those of another split
            with folder_lock(folder, LOCK, wait=True, optional=True):
                if _exist(folder, inputs):
                    train, val = load_features(folder, "train"), load_features(folder, "val")
                    break
        else:
            raise SfrikError(f"the features in {folder} were replaced or damaged {ATTEMPTS} times: evaluate one split at a time")
        digest = inputs.weights_sha256
    if train[0].shape[1] != val[0].shape[1]:
        raise SfrikError(
            f"{folder} has train features of {train[0].shape[1]} dimensions and val features of {val[0].shape[1]}: "
            "extract them again, from one backbone"
        )
    return Features(train, val, digest)


def _own_folder(inputs: Inputs[Any]) -> Path:
    return inputs.run.folder / "features"


def _given_folder(settings: FeatureSettings) -> Path:
    """`extraction_dir`, or features/ in it if that is the folder of a run."""
    folder = Path(settings.extraction_dir)
    inside = folder / "features"
    return inside if not (folder / "train_features.npy").is_file() and (inside / "train_features.npy").is_file() else folder


def _exist(folder: Path, inputs: Inputs[Any]) -> bool:
    """Whether a folder has the features that would be extracted.

    In the run's own folder a broken file counts as missing; in an `extraction_dir` it is an error.
    """
    if not all((folder / name).is_file() for name in (*FILES, "weights.json")) or not inputs.weights.is_file():
        return False
    try:
        for split in ("train", "val"):
            load_features(folder, split)  # checks the files
        record = read_record(folder / "weights.json", FeatureOrigin)
        return {name: value for name, value in record.items() if name != "sha256"} == _origin(inputs)
    except SfrikError:
        if inputs.settings.extraction_dir:
            raise
        return False


def _origin(inputs: Inputs[Any]) -> dict[str, Any]:
    """Everything that features depend on: the weights, the images and how they are read."""
    names = ("dataset", "subset", "size", "arch", "stem", "precision", "val_dataset", "val_subset")
    return {"backbone_sha256": inputs.weights_sha256, **{name: getattr(inputs.settings, name) for name in names}}


def _extract_if_missing(folder: Path, inputs: Inputs[Any]) -> None:
    """Extract the features of both splits, by all processes, unless rank 0 finds them."""
    if broadcast_from_rank_zero(_exist(folder, inputs)):
        return
    splits = {"val": inputs.scored_images(), "train": inputs.images("train")}
    backbone = inputs.backbone(splits["train"].channels)
    # two extractions into one folder would write to the same files
    with folder_lock(folder, LOCK, wait=True) if rank() == 0 else nullcontext():
        if not broadcast_from_rank_zero(_exist(folder, inputs)):
            try:
                _extract(folder, inputs, splits, backbone)
            finally:
                for split in splits:
                    _temporary(folder, split).unlink(missing_ok=True)


def _extract(folder: Path, inputs: Inputs[Any], splits: dict[str, Images], backbone: Backbone) -> None:
    settings = inputs.settings
    if rank() == 0:
        (folder / "weights.json").unlink(missing_ok=True)
        for split, images in splits.items():
            make_empty(_temporary(folder, split), (len(images), backbone.num_features))
    barrier()
    for split, images in splits.items():
        indices = _shard(len(images), settings.batch_size)
        how = inputs.whole_images, settings.batch_size, inputs.device, inputs.precision, settings.workers
        parts = _batches(backbone, images, indices, *how)
        parts = track(parts, -(-len(indices) // settings.batch_size), f"features of {split}", show=rank() == 0)
        write_rows(_temporary(folder, split), int(indices[0]) if len(indices) else 0, (some for some, _ in parts))
    barrier()
    if rank() == 0:
        for name in FILES:  # a process that is killed here must not leave old and new files side by side
            (folder / name).unlink(missing_ok=True)
        for split, images in splits.items():
            target = folder / f"{split}_features.npy"
            with naming_the_file(target, 0):
                _temporary(folder, split).replace(target)
            with atomic_write(folder / f"{split}_labels.npy", images.targets.nbytes) as file:  # flushes the folder too
                np.save(file, images.targets)
        digests = {name: file_hash(folder / name) for name in FILES}
        write_json(folder / "weights.json", {**_origin(inputs), "sha256": digests})
    barrier()


def _temporary(folder: Path, split: str) -> Path:
    """The file that all processes write a split's features to."""
    return folder / f"{split}_features.tmp.npy"


def _shard(n: int, batch_size: int) -> np.ndarray:
    """Indices of this process's images: whole batches, since rounding can depend on the batch size."""
    steps = -(-n // batch_size)
    first, last = (steps * part // world_size() for part in (rank(), rank() + 1))
    return np.arange(first * batch_size, min(last * batch_size, n))
