"""Crash-safe checkpoints: written to a temporary file, flushed, renamed; the one before is kept.

    checkpoint.pt            the newest
    checkpoint.previous.pt   the one before

At every moment, a power cut included, one of the first two is complete.
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
from torch import Tensor

from sfrik.errors import SfrikError
from sfrik.system.files import WriteError, atomic_write, set_aside
from sfrik.system.tensor_files import read_pickle

__all__ = ["Checkpoints", "random_state", "restore_random_state", "restoring"]


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
            SfrikError: a parameter is not finite. WriteError: the file cannot be written, on a full disk for instance. The
                checkpoints that were there stay as they are.
        """
        bad = _not_finite(state)
        if bad:
            raise SfrikError(f"{bad} holds NaN or infinite values: not saved, {self.folder} keeps the checkpoint before it")
        newest, previous = self.paths
        try:
            with atomic_write(newest, _bytes(state), keep=previous) as file:
                torch.save(state, file)
        except WriteError as error:
            kept = next((f"; {path.name} is kept" for path in self.paths if path.is_file()), "")
            raise WriteError(f"{error}; up to three checkpoints are there at a time{kept}") from None

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
                state = read_pickle(path)
                if not isinstance(state, dict):
                    raise SfrikError(f"{path} holds a {type(state).__name__} and no checkpoint")
                return state
            except SfrikError as error:  # of the file system or the machine (OSError, MemoryError): it may be whole, and stays
                # renamed, or the next save would put it in the place of the one before, which is whole
                broken.append(set_aside(path, str(error)).name)
        if broken:
            raise SfrikError(f"no checkpoint in {self.folder} can be read ({', '.join(broken)}); run again to start from scratch")
        return None

    def drop(self) -> None:
        """Remove them: the work is done, and its result is what counts."""
        for path in self.paths:
            path.unlink(missing_ok=True)


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Within it a state that does not fit what it is loaded into is one line that names the checkpoint."""
    try:
        yield
    except SfrikError:
        raise
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise SfrikError(
            f"{path} does not fit this run ({last}): move it away, and the same command uses the one before"
        ) from error


def random_state(device: torch.device) -> dict[str, Any]:
    """This process's generators, as JSON can hold them."""
    kind, key, *rest = cast("tuple[str, np.ndarray, int, int, float]", np.random.get_state())
    version, internal, gauss = random.getstate()
    return {
        "torch": _as_text(torch.get_rng_state().numpy()),
        "cuda": _as_text(torch.cuda.get_rng_state(device).numpy()) if device.type == "cuda" else None,
        "numpy": [kind, _as_text(key), *rest],
        "python": [version, list(internal), gauss],
    }


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Set this process's generators as `random_state` found them."""
    torch.set_rng_state(torch.from_numpy(_from_text(state["torch"], np.uint8)))
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(torch.from_numpy(_from_text(state["cuda"], np.uint8)), device)
    kind, key, *rest = state["numpy"]
    np.random.set_state((kind, _from_text(key, np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def _as_text(numbers: np.ndarray) -> str:
    return base64.b64encode(numbers.tobytes()).decode()


def _from_text(text: str, kind: type) -> np.ndarray:
    return np.frombuffer(bytearray(base64.b64decode(text)), dtype=kind)


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
