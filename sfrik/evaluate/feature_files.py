"""The .npy files of features: reading them, and writing them by several processes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import RawIOBase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from sfrik.errors import SfrikError
from sfrik.evaluate.arguments import as_features, as_labels
from sfrik.evaluate.name_files import count_names, load_classes, load_names
from sfrik.ops.finite import format_rows
from sfrik.runs.cached import cached_hash
from sfrik.runs.records import FeatureOrigin
from sfrik.system.files import atomic_write, check_regular, write_error
from sfrik.system.records import read_record

__all__ = [
    "FeatureCounts",
    "count_features",
    "describe_features",
    "drop_rows",
    "given_folder",
    "load_features",
    "load_given",
    "make_empty",
    "naming_the_file",
    "write_rows",
]

BLOCK = 65536  # rows copied at a time: 0.5 GiB at d = 2048

ZEROS_AT_A_TIME = 4096  # rows


def given_folder(extraction_dir: str) -> Path:
    """`extraction_dir`, or features/ in it if that is the folder of a run."""
    folder = Path(extraction_dir)
    inside = folder / "features"
    return inside if not (folder / "train_features.npy").is_file() and (inside / "train_features.npy").is_file() else folder


def load_features(folder: str | Path, name: str) -> tuple[Tensor, Tensor]:
    """Features [n, d] and labels [n] of "train" or "val" from an extraction folder.

    Features of float32 or float64 are memory-mapped and read on access: ImageNet's take 10 GiB. Other types, which other tools
    write, are converted in memory (`sfrik.evaluate.arguments`).

    Raises:
        SfrikError: a file that is missing, incomplete or changed since its extraction, or is not of features or labels; features
            that are NaN or infinite; unequal numbers of features, labels and names; a label without a class name. In a file
            without a SHA-256 in weights.json also rows of zeros, and training labels of one class, which may be zeros that a
            power cut left.
    """
    folder = Path(folder).expanduser()
    paths = [folder / f"{name}_{part}.npy" for part in ("features", "labels")]
    name_of = partial(_name, folder, name) if (folder / f"{name}_names.txt").is_file() else None
    features = as_features(_open(paths[0]), paths[0], SfrikError, name_of)
    labels = as_labels(_open(paths[1]), paths[1], SfrikError)
    if len(features) != len(labels):
        raise SfrikError(f"{folder} has {len(features)} {name} features but {len(labels)} labels: extract them again")
    if name_of and (names := count_names(folder, name)) != len(features):
        raise SfrikError(f"{folder} has {len(features)} {name} features but {names} names: extract them again")
    classes, largest = load_classes(folder, name), int(labels.max())
    if classes is not None and largest >= len(classes):
        raise SfrikError(f"{paths[1]} has label {largest}, but {folder} names {len(classes)} classes: extract them again")
    known = [_as_extracted(path) for path in paths]
    if not known[0] and (zeros := _rows_of_zeros(features)):
        raise SfrikError(
            f"{paths[0]} has zeros only in {format_rows(zeros)}, as a power cut or an interrupted copy leaves them: extract the "
            "features again, or leave these images out"
        )
    if not known[1] and name == "train" and len(labels) > 1 and int(labels.min()) == int(labels.max()):
        raise SfrikError(f"{paths[1]} has the class {labels[0]} only: extract the features again, of at least two classes")
    return features, labels


def load_given(folder: Path, split: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], dict[str, Any]]:
    """The training features, the scored ones, and the content of weights.json: of features that a user names.

    Args:
        folder: of the features; those of other tools have no weights.json.
        split: what is to be scored, "test" or "tune".

    Raises:
        SfrikError: the features are of the other split, or one of those of `load_features`.
    """
    train, val = load_features(folder, "train"), load_features(folder, "val")
    path = folder / "weights.json"
    record = read_record(path, FeatureOrigin) if path.exists() else {}
    recorded = record.get("data", {})
    for there in {"test", "tune"} & set(recorded) if split not in recorded else ():
        names = {"test": ("test images", "val"), "tune": ("tuning split", "train")}
        raise SfrikError(
            f"{folder} has the features of the {names[there][0]}, and the {names[split][0]} cannot be scored with them: extract "
            f"their features into another folder, with --val-dataset {names[split][1]}"
        )
    return train, val, record


class FeatureCounts(NamedTuple):
    """Numbers of an extraction folder: of the training and the scored features, of their dimensions, and of the classes."""

    train: int
    scored: int
    dim: int
    classes: int


def count_features(extraction_dir: str) -> FeatureCounts | None:
    """The numbers of the features in a folder, from the headers of its files and the labels; None where a file is missing.

    Raises:
        SfrikError: a file is not complete, or is not of features or labels.
    """
    folder = given_folder(extraction_dir)
    splits = [[folder / f"{name}_{part}.npy" for part in ("features", "labels")] for name in ("train", "val")]
    if not all(path.is_file() for paths in splits for path in paths):
        return None
    train, scored = (np.atleast_1d(_open(features)) for features, _ in splits)
    dim = as_features(train[:1], splits[0][0], SfrikError).shape[1]
    largest = max(int(as_labels(_open(labels), labels, SfrikError).max()) for _, labels in splits)
    return FeatureCounts(len(train), len(scored), dim, largest + 1)


def describe_features(folder: Path, name: str, labels: Tensor) -> dict[str, Any]:
    """What a score records of features whose images are not known: their number, that of their classes, and a hash of both files.

    Args:
        labels: of `load_features`, [n].
    """
    files = "".join(cached_hash(folder / f"{name}_{part}.npy") for part in ("features", "labels"))
    classes = len(load_classes(folder, name) or ()) or int(labels.max()) + 1
    return {"images": len(labels), "classes": classes, "sha256": hashlib.sha256(files.encode()).hexdigest()}


def _name(folder: Path, name: str, row: int) -> str:
    """The name of a row's image, "?" if there are fewer names."""
    return dict(enumerate(load_names(folder, name))).get(row, "?")


def _open(path: Path) -> np.ndarray:
    """The array of a .npy file, mapped into memory; pickled objects are not read."""
    if not path.exists():
        others = sorted(other.name for other in path.parent.glob("*") if other.suffix in (".npz", ".npy", ".pt", ".pth", ".pkl"))
        found = f"; that folder has {', '.join(others[:4])}{', ...' if len(others) > 4 else ''}" if others else ""
        raise SfrikError(f"there are no features {path}: run extract-features first, or check --extraction-dir{found}")
    check_regular(path)
    try:
        return np.lib.format.open_memmap(path, mode="c")
    except MemoryError:
        raise
    except Exception as error:  # NumPy parses the header as Python; a damaged one can raise anything
        with path.open("rb") as file:
            start = file.read(2)
        reason = {b"PK": "it is an archive, such as .npz or .pth"}.get(start, "it is a pickle" if start[:1] == b"\x80" else error)
        reason = "it holds Python objects; convert them by .astype" if "Python objects" in str(error) else reason
        remedy = "extract the features again, or save the array by numpy.save"
        raise SfrikError(f"{path} is not a complete .npy file ({reason}): {remedy}") from None


def _as_extracted(path: Path) -> bool:
    """Whether weights.json records the SHA-256 of a file, and the file still has it.

    Raises:
        SfrikError: the file has another SHA-256, or weights.json is broken.
    """
    record = path.with_name("weights.json")
    recorded = read_record(record, FeatureOrigin).get("sha256", {}).get(path.name) if record.is_file() else None
    if recorded is not None and cached_hash(path) != recorded:
        raise SfrikError(
            f"{path} has changed since it was extracted: its SHA-256 is not the one in {record}; extract the features again (if "
            "you have changed it yourself, move weights.json away)"
        )
    return recorded is not None


def _rows_of_zeros(features: Tensor) -> list[int]:
    blocks = enumerate(features.split(ZEROS_AT_A_TIME))
    return [k * ZEROS_AT_A_TIME + row for k, part in blocks for row in (~part.any(dim=1)).nonzero().flatten().tolist()]


@contextmanager
def naming_the_file(path: Path, needed: int) -> Iterator[None]:
    """Turn an OSError into a WriteError that names the file, the bytes that it needs and the free space."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error, needed) from None


def make_empty(path: Path, shape: tuple[int, int]) -> None:
    """Create a sparse .npy file of float32 with its full length."""
    with naming_the_file(path, 4 * shape[0] * shape[1]):
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape).flush()


def write_rows(path: Path, start: int, parts: Iterable[Tensor]) -> None:
    """Write features to an existing .npy file, from row `start`.

    Plain writes, not a memory map: a map writes whole pages, and on a network file system two nodes would overwrite each other's
    rows if a page contains rows of both.
    """
    rows = np.load(path, mmap_mode="r")
    place = rows.offset + start * rows.shape[1] * rows.itemsize
    needed = rows.nbytes
    del rows
    with path.open("r+b", buffering=0) as file:
        file.seek(place)
        for features in parts:  # outside the context: an error of the extraction is not one of this file
            with naming_the_file(path, needed):
                _write_all(file, features.contiguous().numpy().data.cast("B"))
        with naming_the_file(path, needed):
            os.fsync(file.fileno())


def drop_rows(path: Path, rows: Sequence[int]) -> None:
    """Write a .npy file of features again, without some of its rows; a block of them is in memory at a time."""
    whole = np.load(path, mmap_mode="r")
    kept = np.delete(np.arange(len(whole)), rows)
    header = {"descr": whole.dtype.str, "fortran_order": False, "shape": (len(kept), whole.shape[1])}
    with atomic_write(path, whole.nbytes) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for some in np.array_split(kept, -(-len(kept) // BLOCK)):
            file.write(whole[some].tobytes())


def _write_all(file: RawIOBase, content: memoryview) -> None:
    """Write all bytes; a single call may write fewer if the disk is nearly full or there are more than 2 GiB."""
    while content:
        content = content[file.write(content) :]
