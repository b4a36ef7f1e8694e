"""Checkpoints that are not lost: written aside, flushed, renamed; the one before is kept.

    checkpoint.pt            the newest
    checkpoint.previous.pt   the one before
    checkpoint.pt.tmp        one that is being written

At every moment, a power cut included, one of the first two is complete.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sfrik.errors import SfrikError

__all__ = ["Checkpoints", "random_state", "restore_random_state"]


class Checkpoints:
    """The newest two checkpoints of one piece of work in `folder`."""

    def __init__(self, folder: str | Path, name: str = "checkpoint") -> None:
        self.folder, self.name = Path(folder), name

    @property
    def paths(self) -> list[Path]:
        """The newest first."""
        return [self.folder / f"{self.name}.pt", self.folder / f"{self.name}.previous.pt"]

    @property
    def exist(self) -> bool:
        return any(path.is_file() for path in self.paths)

    def save(self, state: dict[str, Any]) -> None:
        """Write a state of tensors, numbers, strings, lists and dicts.

        Raises:
            SfrikError: a parameter is not finite, or the file cannot be written (a full disk, for instance); the checkpoints
                that were there stay as they are.
        """
        bad = _not_finite(state)
        if bad:
            raise SfrikError(f"{bad} holds NaN or infinite values: not saved, {self.folder} keeps the checkpoint before it")
        newest, previous = self.paths
        aside = newest.with_suffix(".pt.tmp")
        needed = _bytes(state)
        try:
            with aside.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch turns an error of the file system into a RuntimeError
            aside.unlink(missing_ok=True)
            free = shutil.disk_usage(self.folder).free
            kept = next((f"; {path.name} is kept" for path in self.paths if path.is_file()), "")
            raise SfrikError(
                f"the checkpoint could not be written to {self.folder} ({str(error).splitlines()[0]}): it needs "
                f"{needed / 2**20:.0f} MiB and {free / 2**20:.0f} MiB are free, and three of them are there at a time{kept}; "
                "make room, and the same command goes on"
            ) from None
        if newest.is_file():
            newest.replace(previous)
        aside.replace(newest)
        _flush_folder(self.folder)

    def load(self) -> dict[str, Any] | None:
        """The newest checkpoint that is whole; None where there is none. A broken one is reported and renamed.

        Raises:
            SfrikError: there are checkpoints and all of them are broken. OSError: the file system does not give one.
        """
        broken = []
        for path in self.paths:
            if not path.is_file():
                continue
            try:
                _check_sums(path)
                return torch.load(path, map_location="cpu", weights_only=True)
            except (OSError, MemoryError):  # of the file system or the machine: the file may be whole, and stays
                raise
            except Exception as error:  # zipfile and torch raise several kinds for a file that is cut short
                # renamed, or the next save would put it in the place of the one before, which is whole
                aside = path.with_suffix(".broken")
                path.replace(aside)
                broken.append(str(aside))
                print(f"{path} is broken ({error}); renamed to {aside.name}", file=sys.stderr, flush=True)
        if broken:
            raise SfrikError(f"no checkpoint in {self.folder} can be read ({', '.join(broken)}); run again to begin anew")
        return None

    def drop(self) -> None:
        """Remove them: the work is done, and its result is what counts."""
        for path in self.paths:
            path.unlink(missing_ok=True)


def random_state(device: torch.device) -> dict[str, Any]:
    """This process's generators, as a checkpoint can hold them."""
    kind, key, *rest = cast("tuple[str, np.ndarray, int, int, float]", np.random.get_state())
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [kind, key.tolist(), *rest],
        "python": [version, list(internal), gauss],
    }


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Set this process's generators as `random_state` found them."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    kind, key, *rest = state["numpy"]
    np.random.set_state((kind, np.array(key, dtype=np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def _check_sums(path: Path) -> None:
    """Compare each record with its CRC-32, which torch.save writes and torch.load does not read."""
    with zipfile.ZipFile(path) as archive:
        record = archive.testzip()
    if record is not None:
        raise SfrikError(f"its record {record} does not match its checksum")


def _tensors(state: Any, name: str = "") -> list[tuple[str, Tensor]]:
    if isinstance(state, Tensor):
        return [(name, state)]
    if isinstance(state, dict):
        return [found for key, value in state.items() for found in _tensors(value, f"{name}.{key}" if name else str(key))]
    if isinstance(state, (list, tuple)):
        return [found for place, value in enumerate(state) for found in _tensors(value, f"{name}.{place}")]
    return []


def _bytes(state: dict[str, Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for _, tensor in _tensors(state))


def _not_finite(state: dict[str, Any]) -> str | None:
    """The name of the first tensor with a value that is not finite."""
    floating = ((name, tensor) for name, tensor in _tensors(state) if tensor.is_floating_point())
    return next((name for name, tensor in floating if not torch.isfinite(tensor).all()), None)


def _flush_folder(folder: Path) -> None:
    """So that the renames themselves survive a power cut."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
