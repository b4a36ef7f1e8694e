"""Crash-safe checkpoints: each is written to a temporary file, flushed and renamed, and the previous one is kept.

The files of a folder::

    checkpoint.pt            the newest checkpoint
    checkpoint.previous.pt   the one before

At any time, also after a power cut, at least one of them is complete once the first checkpoint was saved.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from sfrik.errors import SfrikError
from sfrik.ops.finite import named_tensors, not_finite
from sfrik.system.files import WriteError, atomic_write, rename_broken
from sfrik.system.tensor_files import check_finite, read_pickle

__all__ = ["Checkpoints", "explain_mismatch", "random_state", "restore_random_state"]


class Checkpoints:
    """The newest two checkpoints called `name` in `folder`."""

    def __init__(self, folder: str | Path, name: str = "checkpoint") -> None:
        self.folder, self.name = Path(folder), name

    @property
    def paths(self) -> list[Path]:
        """The paths of both, the newest first."""
        return [self.folder / f"{self.name}.pt", self.folder / f"{self.name}.previous.pt"]

    @property
    def exist(self) -> bool:
        return any(path.is_file() for path in self.paths)

    def save(self, state: dict[str, Any]) -> None:
        """Write a state of tensors, numbers, strings, lists and dicts.

        Raises:
            SfrikError: A tensor has NaN or infinite values.
            WriteError: The file cannot be written, for example because the disk is full. Existing checkpoints are unchanged.
        """
        if (bad := not_finite(state)) is not None:
            raise SfrikError(f"{bad} has NaN or infinite values: not saved, the previous checkpoint in {self.folder} is kept")
        newest, previous = self.paths
        try:
            with atomic_write(newest, _size_in_bytes(state), keep=previous) as file:
                torch.save(state, file)
        except WriteError as error:
            kept = next((f"; {path.name} is kept" for path in self.paths if path.is_file()), "")
            raise WriteError(f"{error}; up to three checkpoints are on disk at a time{kept}") from None

    def load(self) -> dict[str, Any] | None:
        """The newest complete checkpoint; None if there is no checkpoint. Broken ones are reported and renamed.

        Raises:
            SfrikError: All checkpoints are broken.
            OSError: The file system returned an error; the checkpoint may be intact and is left as it is.
        """
        broken = []
        for path in self.paths:
            if not path.is_file():
                continue
            try:
                state = read_pickle(path)
                if not isinstance(state, dict):
                    raise SfrikError(f"{path} holds a {type(state).__name__} instead of a checkpoint")
                check_finite(state, path)
                return state
            except SfrikError as error:  # not OSError or MemoryError, after which the file may be intact
                # Renamed, since the next save would otherwise replace the intact previous checkpoint by the broken one.
                broken.append(rename_broken(path, str(error)).name)
        if broken:
            raise SfrikError(f"no checkpoint in {self.folder} can be read ({', '.join(broken)}); run again to start from scratch")
        return None

    def delete(self) -> None:
        """Delete both, once the result of the work is written."""
        for path in self.paths:
            path.unlink(missing_ok=True)


@contextmanager
def explain_mismatch(path: Path) -> Iterator[None]:
    """Turn the error of a state that does not fit the model or optimizer into an `SfrikError` that names the checkpoint."""
    try:
        yield
    except SfrikError:
        raise
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise SfrikError(
            f"{path} does not fit this run ({last}): move it away, and the same command uses the previous checkpoint"
        ) from error


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of this process's random number generators (torch, CUDA, NumPy, Python), as JSON can represent them."""
    kind, key, *rest = cast("tuple[str, np.ndarray, int, int, float]", np.random.get_state())
    version, internal, gauss = random.getstate()
    return {
        "torch": _encode(torch.get_rng_state().numpy()),
        "cuda": _encode(torch.cuda.get_rng_state(device).numpy()) if device.type == "cuda" else None,
        "numpy": [kind, _encode(key), *rest],
        "python": [version, list(internal), gauss],
    }


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Set this process's random number generators to states returned by `random_state`."""
    torch.set_rng_state(torch.from_numpy(_decode(state["torch"], np.uint8)))
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(torch.from_numpy(_decode(state["cuda"], np.uint8)), device)
    kind, key, *rest = state["numpy"]
    np.random.set_state((kind, _decode(key, np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def _encode(numbers: np.ndarray) -> str:
    return base64.b64encode(numbers.tobytes()).decode()


def _decode(text: str, kind: type) -> np.ndarray:
    return np.frombuffer(bytearray(base64.b64decode(text)), dtype=kind)


def _size_in_bytes(state: dict[str, Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for _, tensor in named_tensors(state))
