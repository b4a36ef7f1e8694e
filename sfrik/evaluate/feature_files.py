"""The .npy files of features: reading them, and writing them by several processes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sfrik.errors import SfrikError
from sfrik.system.files import check_regular, write_error

__all__ = ["load_features", "make_empty", "naming_the_file", "write_rows"]


def load_features(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    """Features [n, d] and labels [n] of "train" or "val" from an extraction folder.

    They are memory-mapped and read on access: ImageNet's take 10 GiB.

    Raises:
        SfrikError: a file that is missing, incomplete or has the wrong dtype or shape, or unequal numbers of features and labels.
    """
    arrays = []
    for part in ("features", "labels"):
        path = folder / f"{name}_{part}.npy"
        if not path.exists():
            raise SfrikError(f"there are no features {path}: run extract-features first, or check --extraction-dir")
        check_regular(path)
        try:
            array = np.lib.format.open_memmap(path, mode="c")
            tensor = torch.from_numpy(array)
        except MemoryError:
            raise
        except Exception as error:  # NumPy parses the header as Python; a damaged one can raise anything
            raise SfrikError(f"{path} is not a complete .npy file ({error}): extract the features again") from None
        kinds, ndim = ("f", 2) if part == "features" else ("iu", 1)
        if array.dtype.kind not in kinds or array.ndim != ndim:
            raise SfrikError(f"{path} contains {array.dtype} of shape {array.shape}, not {part}: extract them again")
        arrays.append(tensor)
    if len(arrays[0]) != len(arrays[1]):
        raise SfrikError(f"{folder} has {len(arrays[0])} {name} features but {len(arrays[1])} labels: extract them again")
    return arrays[0], arrays[1]


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


def _write_all(file: RawIOBase, content: memoryview) -> None:
    """Write all bytes; a single call may write fewer if the disk is nearly full or there are more than 2 GiB."""
    while content:
        content = content[file.write(content) :]
