"""Features of a frozen backbone: extraction on any number of processes, and reading.

The files of an extraction::

    <split>_features.npy    float32 [n, d]
    <split>_labels.npy      int64 [n]; for the images of one folder only if each is in a subfolder, which is its class
    <split>_names.txt, <split>_classes.txt    the image of each row and the names of the classes (sfrik.evaluate.name_files)
    weights.json            the weights, the images, how they were read, and those that were skipped (skip_broken); written last

The splits are train and val; with `image_dir` all, whose record is all_weights.json.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from torch import Tensor

from sfrik.datasets import Images
from sfrik.errors import SfrikError
from sfrik.evaluate.arguments import report_untrained
from sfrik.evaluate.broken import note_broken, without_broken
from sfrik.evaluate.feature_files import (
    describe_features,
    drop_rows,
    given_folder,
    load_features,
    load_given,
    make_empty,
    naming_the_file,
    write_rows,
)
from sfrik.evaluate.forward import feature_batches
from sfrik.evaluate.inputs import Inputs
from sfrik.evaluate.name_files import RENAMED, check_same_classes, load_classes, load_names, write_names
from sfrik.networks import Backbone
from sfrik.ops.collectives import all_gather_json, barrier, broadcast_from_rank_zero, rank, world_size
from sfrik.runs.data import split_differences
from sfrik.runs.records import FeatureOrigin
from sfrik.runs.refusals import refuse_published
from sfrik.settings import FeatureSettings, KnnSettings, LogisticSettings
from sfrik.system.files import atomic_write, file_hash, write_json
from sfrik.system.locks import folder_lock
from sfrik.system.progress import track
from sfrik.system.records import read_record
from sfrik.system.terminal import print_line

__all__ = ["Features", "extract_features", "features_here", "read_features"]

PARTS = ("features.npy", "labels.npy", "names.txt", "classes.txt")
LOCK = "features.lock"
REPORTED = {"train": "train", "val": "test"}  # names of the splits in the files of features, and in scores
ATTEMPTS = 5  # extractions before a command gives up, where others replace its features before it opens them


class Features(NamedTuple):
    """The features of both splits, each (features [n, d], labels [n]), and where they came from.

    Attributes:
        weights_sha256: the SHA-256 of the weights; None where unknown.
        broken: names of the images that the extraction skipped, by split ("train", "test").
        data: what a score records of the images, by split; empty where unknown, in features of an earlier release.
    """

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    weights_sha256: str | None
    broken: dict[str, list[str]]
    data: dict[str, dict[str, Any]]


def extract_features(settings: FeatureSettings) -> Path:
    """Extract the features of the training images and of the scored split to .npy files, unless they exist.

    "val" is the test images, or the tuning split with `val_dataset` train. With `image_dir`, or with the data set image_folder
    where `data_dir` has neither train/ nor val/, the images are all below that folder, with or without labels, and the split is
    called "all". The files are those of the module's docstring. Features of the same weights and images are left as they are;
    those of other images are extracted again, with a line on stderr.

    Under `torch.distributed` (torchrun, or `sfrik.launch`) every process calls this function: each takes a range of consecutive
    batches and writes their features to their rows of the one file. The folder must be visible to all processes. The files are
    the same, byte for byte, for any number of processes; `batch_size` is therefore per process here. Memory: one batch; the
    features are never held in memory as a whole.

    A second command that needs the same features waits for the first, with a line on stdout, and uses what it wrote.

    Returns:
        The extraction folder: `extraction_dir`, or features/ in the run's folder.

    Raises:
        WriteError: the features cannot be written; no part of them is left.
        SfrikError: missing weights or images, an image that cannot be read (without `skip_broken`), test images of a grid whose
            choice is not recorded, or a folder that holds the features of another `image_dir`.
    """
    inputs = Inputs.resolve(settings)
    if type(settings) is FeatureSettings and not settings.extraction_dir:  # those of a score are checked by its name
        inputs.check_folder(inputs.score_name("features"))
    folder = Path(settings.extraction_dir) if settings.extraction_dir else _own_folder(inputs)
    _extract_if_missing(folder, inputs, named=True)
    return folder


def features_here(settings: FeatureSettings | KnnSettings | LogisticSettings) -> Path:
    """The folder with the features: `extraction_dir`, or the run's own, extracted now unless they exist.

    Raises:
        SfrikError: as `extract_features`; an `extraction_dir` is not checked here, but by `load_features`.
    """
    inputs = Inputs.resolve(settings)
    if settings.extraction_dir:
        return given_folder(settings.extraction_dir)
    _extract_if_missing(_own_folder(inputs), inputs)
    return _own_folder(inputs)


def read_features(inputs: Inputs[Any]) -> Features:
    """The features of `extraction_dir`, or the run's own, extracted now unless they exist.

    The run's own are opened under the lock of the extraction: another command that extracts another split of the same run
    replaces the files, and those that are open stay as they are.

    Raises:
        SfrikError: missing or incomplete features, splits of different dimensions or classes, or other commands that keep
            replacing them.
    """
    settings = inputs.settings
    if settings.extraction_dir:
        folder = given_folder(settings.extraction_dir)
        train, val, record = load_given(folder, inputs.split)
        digest, present = record.get("backbone_sha256"), None
    else:
        folder = _own_folder(inputs)
        for _ in range(ATTEMPTS):
            _extract_if_missing(folder, inputs)
            # another command may have replaced them by those of another split
            with folder_lock(folder, LOCK, wait=True, optional=True):
                if _exist(folder, inputs):
                    train, val = load_features(folder, "train"), load_features(folder, "val")
                    record = read_record(folder / "weights.json", FeatureOrigin)
                    break
        else:
            raise SfrikError(f"the features in {folder} were replaced or damaged {ATTEMPTS} times: evaluate one split at a time")
        digest, present = inputs.weights_sha256, inputs.present_data(record, folder / "weights.json")
    if train[0].shape[1] != val[0].shape[1]:
        raise SfrikError(
            f"{folder} has train features of {train[0].shape[1]} dimensions and val features of {val[0].shape[1]}: "
            "extract them again, from one backbone"
        )
    of_train, of_val = (load_classes(folder, split) for split in ("train", "val"))
    both = f"the train features in {folder}", f"the val features in {folder}"
    check_same_classes(of_train, of_val, *both, "extract both from folders with the same classes")
    report_untrained(train[1], val[1], folder)
    files = {"train": describe_features(folder, "train", train[1]), inputs.split: describe_features(folder, "val", val[1])}
    if present is None:  # the images were not read, and their numbers not printed
        numbers = [f"{found['images']} {split} of {found['classes']} classes" for split, found in files.items()]
        print_line(f"features: {' and '.join(numbers)}, from {folder}")
    broken = {
        name: record["broken_images"][split] for split, name in REPORTED.items() if split in record.get("broken_images", {})
    }
    data = record.get("data") or (files if settings.extraction_dir else {})
    return Features(train, val, digest, broken, dict(data))


def _own_folder(inputs: Inputs[Any]) -> Path:
    return inputs.run.folder / "features"


def _exist(folder: Path, inputs: Inputs[Any], named: bool = False) -> bool:
    """Whether a folder has the features of both splits that would be extracted, with the names of the images if `named`.

    In the run's own folder a broken file counts as missing; in an `extraction_dir` it is an error.
    """
    parts = [f"{split}_{part}" for split in ("train", "val") for part in (PARTS[:3] if named else PARTS[:2])]
    if not all((folder / name).is_file() for name in (*parts, "weights.json")) or not inputs.weights.is_file():
        return False
    try:
        for split in ("train", "val"):
            load_features(folder, split)  # checks the files
        return _fits(folder / "weights.json", inputs)
    except SfrikError:
        if inputs.settings.extraction_dir:
            raise
        return False


def _fits(record: Path, inputs: Inputs[Any]) -> bool:
    """Whether features with this record are of these weights and images, and complete unless broken images are skipped."""
    found = read_record(record, FeatureOrigin)
    complete = inputs.settings.skip_broken or not found.get("broken_images")
    if not complete or any(found.get(name) != value for name, value in _origin(inputs).items()):
        return False
    present = inputs.present_data(found, record)
    return present is None or not split_differences(found["data"], present)


def _origin(inputs: Inputs[Any]) -> dict[str, Any]:
    """Everything that features depend on, beside the images: the weights, and which images are read how."""
    names = {"dataset", "size", "arch", "stem", "precision"} | ({"arch_args"} if inputs.settings.arch_args else set())
    names |= set() if inputs.image_dir else {"subset", "val_dataset", "val_subset"}
    return {"backbone_sha256": inputs.weights_sha256, **inputs.settings.model_dump(mode="json", include=names)}


def _extracted(folder: Path, inputs: Inputs[Any]) -> bool:
    """Whether a folder has the features of the images of `image_dir`; refuses to replace those of another one."""
    path = folder / "all_weights.json"
    if not path.is_file():
        return False
    record, images = read_record(path, FeatureOrigin), inputs.images("all")
    same = "data" in record and not split_differences(record["data"], inputs.data)
    if not same and record.get("image_dir") != os.path.realpath(inputs.image_dir):
        raise SfrikError(f"{folder} holds the features of {record.get('image_dir')}: choose another --extraction-dir")
    with suppress(SfrikError, OSError, ValueError):
        names = load_names(folder, "all")
        known = without_broken(images, record, "all")
        rows = len(np.load(folder / "all_features.npy", mmap_mode="r"))
        same = rows == len(names) == len(known) and all(known.name(row) == name for row, name in enumerate(names))
        return same and _fits(path, inputs)
    return False


def _extract_if_missing(folder: Path, inputs: Inputs[Any], named: bool = False) -> None:
    """Extract the features of both splits, or of `image_dir`, by all processes, unless rank 0 finds them."""
    refuse_published(folder)

    def exist() -> bool:
        return _extracted(folder, inputs) if inputs.image_dir else _exist(folder, inputs, named)

    if broadcast_from_rank_zero(exist()):
        return
    if inputs.image_dir:
        splits = {"all": inputs.images("all")}
    else:
        splits = {"val": inputs.scored_images(), "train": inputs.images("train")}
        check_same_classes(splits["train"].classes, splits["val"].classes, "the training images", "the scored images", RENAMED)
    backbone = inputs.backbone(next(iter(splits.values())).channels)
    # two extractions into one folder would write to the same files
    with folder_lock(folder, LOCK, wait=True) if rank() == 0 else nullcontext():
        if not broadcast_from_rank_zero(exist()):
            try:
                _extract(folder, inputs, splits, backbone)
            finally:
                for split in splits:
                    _temporary(folder, split).unlink(missing_ok=True)


def _extract(folder: Path, inputs: Inputs[Any], splits: dict[str, Images], backbone: Backbone) -> None:
    settings, image_dir = inputs.settings, inputs.image_dir
    record = folder / ("all_weights.json" if image_dir else "weights.json")
    data: dict[str, Any] = {}
    if rank() == 0:
        data = {split: inputs.data[split] for split in (["all"] if image_dir else ["train", inputs.split])}
        with suppress(SfrikError):  # broken
            known = read_record(record, FeatureOrigin).get("data", {}) if record.exists() else {}
            if differences := split_differences(known, data):
                inputs.report(f"{record} is of other images ({differences}): extracted again")
        record.unlink(missing_ok=True)
        for split, images in splits.items():
            make_empty(_temporary(folder, split), (len(images), backbone.num_features))
    barrier()
    broken: dict[str, list[int]] = {}
    for split, images in splits.items():
        indices, unread = _shard(len(images), settings.batch_size), cast("list[int]", [])
        how = inputs.whole_images, settings.batch_size, inputs.device, inputs.precision, settings.workers, settings.skip_broken
        parts = feature_batches(backbone, images, indices, *how)
        parts = track(parts, -(-len(indices) // settings.batch_size), f"features of {split}", show=rank() == 0)
        write_rows(_temporary(folder, split), int(indices[0]) if len(indices) else 0, _rows(parts, unread))
        broken[split] = sorted(index for some in all_gather_json(unread) for index in some)
    barrier()
    if rank() == 0:
        for split in splits:  # a process that is killed here must not leave old and new files side by side
            for part in PARTS:
                (folder / f"{split}_{part}").unlink(missing_ok=True)
        for split, images in splits.items():
            _publish(folder, split, images, broken[split])
        names = {split: [splits[split].name(index) for index in unread] for split, unread in broken.items() if unread}
        paths = [folder / f"{split}_{part}" for split in splits for part in PARTS]
        digests = {path.name: file_hash(path) for path in paths if path.exists()}
        place = {"image_dir": os.path.realpath(image_dir)} if image_dir else {}
        write_json(record, {**_origin(inputs), **place, "data": data, **note_broken(names), "sha256": digests})
    barrier()


def _rows(parts: Iterator[tuple[Tensor, Tensor, Tensor, np.ndarray]], unread: list[int]) -> Iterator[Tensor]:
    """The features of each batch; the indices of images that cannot be read are added to `unread`."""
    for features, _, read, indices in parts:
        unread += indices[~read.numpy()].tolist()
        yield features


def _publish(folder: Path, split: str, images: Images, broken: list[int]) -> None:
    """Give the features of a split their final name, and write labels and names, without the rows of broken images."""
    if broken:
        drop_rows(_temporary(folder, split), broken)
        images = images.select(np.delete(np.arange(len(images)), broken))
    target = folder / f"{split}_features.npy"
    with naming_the_file(target, 0):
        _temporary(folder, split).replace(target)
    if images.num_classes:
        with atomic_write(folder / f"{split}_labels.npy", images.targets.nbytes) as file:  # flushes the folder too
            np.save(file, images.targets)
    write_names(folder / f"{split}_names.txt", map(images.name, range(len(images))))
    if images.classes is not None:
        write_names(folder / f"{split}_classes.txt", images.classes)


def _temporary(folder: Path, split: str) -> Path:
    """The file that all processes write a split's features to."""
    return folder / f"{split}_features.tmp.npy"


def _shard(n: int, batch_size: int) -> np.ndarray:
    """Indices of this process's images: whole batches, since rounding can depend on the batch size."""
    steps = -(-n // batch_size)
    first, last = (steps * part // world_size() for part in (rank(), rank() + 1))
    return np.arange(first * batch_size, min(last * batch_size, n))
