"""Files of tensors: safetensors, and PyTorch's pickles, which are loaded with `weights_only`.

PyTorch is imported inside the functions that create tensors, so that `sfrik status`, which reads headers only, starts fast.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from sfrik.errors import SfrikError
from sfrik.system.files import UnreadableError, atomic_write, check_regular, file_hash
from sfrik.system.records import Provenance, read_record

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "check_finite",
    "check_weights",
    "is_safetensors",
    "read_header",
    "read_pickle",
    "read_safetensors",
    "write_safetensors",
]


def check_finite(
    state: Any, source: object, remedy: str = "the training diverged, or the file is damaged; use other weights"
) -> None:
    """Refuse weights with NaN or infinite values, when they are read and before they are written.

    Args:
        state: A state dict, or tensors in nested dicts, lists and tuples; other values are ignored.
        source: The file, for the message.
        remedy: The end of the message.

    Raises:
        SfrikError: The message names the source and the first such tensor.
    """
    from sfrik.ops.finite import not_finite

    if (name := not_finite(state)) is not None:
        raise SfrikError(f"{source}: tensor {name} has NaN or infinite values: {remedy}")


def write_safetensors(path: str | Path, state: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    """Write tensors and metadata. The same content gives the same bytes.

    Args:
        path: The file.
        state: The tensors by name.
        about: Metadata that JSON can represent.

    Returns:
        The SHA-256 of the file, verified by reading it back.

    Raises:
        WriteError: The file cannot be written.
        SfrikError: A tensor has NaN or infinite values, or the file reads back different bytes.
    """
    from safetensors.torch import save

    check_finite(state, path, "not written, since the training has diverged; lower its rate, or use precision fp32")
    tensors = {key: value.detach().contiguous().cpu() for key, value in state.items()}
    # a single entry, since safetensors writes several in no fixed order
    content = save(tensors, metadata={"about": json.dumps(about, sort_keys=True)})
    with atomic_write(path, len(content)) as file:
        file.write(content)
    digest = hashlib.sha256(content).hexdigest()
    if file_hash(path) != digest:
        raise SfrikError(f"{path} reads back different bytes than were written: the disk or its file system is faulty")
    return digest


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file by name, and its metadata.

    Raises:
        SfrikError: The file is missing, truncated, damaged or not in safetensors format.
    """
    read_header(path)
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, _about(file.metadata(), path)  # noqa: SIM118


def read_header(path: str | Path) -> dict[str, Any]:
    """The metadata of a safetensors file. Checks the header against the file's length and reads no tensors.

    Raises:
        SfrikError: The file is missing, truncated or not in safetensors format.
        UnreadableError: Permissions or the file system prevent reading it.
    """
    try:
        check_regular(path)
        open(path, "rb").close()  # safetensors reports an unreadable file as missing
        with safe_open(path, framework="np") as file:
            return _about(file.metadata(), path)
    except FileNotFoundError:
        raise SfrikError(f"there is no file {path}") from None
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error.strerror or error}") from None
    except (SafetensorError, ValueError) as error:
        reason = _other_kind(path) or error
        raise SfrikError(f"{path} is not a complete safetensors file ({reason}): copy it again or recreate it") from None


def is_safetensors(path: str | Path) -> bool:
    """Whether a file is in safetensors format, by its name or its first bytes: the length of the header, then a brace."""
    if Path(path).suffix == ".safetensors":
        return True
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def check_weights(path: str | Path) -> None:
    """Compare a weights file with the SHA-256 in the provenance.json of its folder, if it is recorded there.

    Raises:
        SfrikError: They differ, for example after a bit flip on the disk.
    """
    path = Path(path)
    record = path.with_name("provenance.json")
    recorded = read_record(record, Provenance).get("weights", {}).get(path.name) if record.is_file() else None
    if recorded is not None and file_hash(path) != recorded:
        raise SfrikError(
            f"{path} is not the file that was trained: its SHA-256 is not the one in {record}. Copy it again from a backup, or "
            "move it away and pretrain again"
        )


def read_pickle(path: str | Path, shown: str | Path | None = None) -> Any:
    """The content of a file written by `torch.save`: tensors, numbers, strings, lists, dicts and `argparse.Namespace`.

    NumPy's scalars, which other code stores among its settings and scores, are returned as Python's numbers and strings.

    Args:
        path: The file.
        shown: The file's name in messages, where `path` is a temporary copy.

    Raises:
        SfrikError: The file is missing, truncated, not a PyTorch file, or holds other objects, which could run code.
        OSError: The file system returned an error.
        MemoryError: The content does not fit in memory.
    """
    import torch

    shown = shown or path
    numpy_names = ("numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar")  # of NumPy 2, and of NumPy 1
    allowed = [argparse.Namespace, (_NumpyType, "numpy.dtype"), *((_numpy_scalar, name) for name in numpy_names)]
    try:
        check_regular(path)
        _check_sums(path)
        with torch.serialization.safe_globals(allowed):  # pyrefly: ignore[bad-argument-type] PyTorch's annotation lacks the pairs
            return torch.load(path, map_location="cpu", weights_only=True)
    except (SfrikError, OSError, MemoryError):
        raise
    except Exception as error:  # torch raises many types for a truncated or foreign file
        raise SfrikError(f"{shown} {_why_not_read(error, path)}") from None


class _NumpyType:
    """Takes the place of `numpy.dtype` in a pickle: no NumPy object is created from a file."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        self.code, self.byte_order = str(code), "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.byte_order = state[1]


def _numpy_scalar(kind: _NumpyType, content: bytes = b"") -> Any:
    """The number or string whose bytes a pickle holds, in the place of the function that NumPy's pickles call."""
    if not isinstance(kind, _NumpyType) or not re.fullmatch("[biufcSU][0-9]+", kind.code) or kind.byte_order not in tuple("<>=|"):
        raise pickle.UnpicklingError("GLOBAL numpy.dtype")
    return np.frombuffer(content, f"{kind.byte_order}{kind.code}", count=1)[0].item()


def _check_sums(path: str | Path) -> None:
    """Compare each record with its CRC-32, which `torch.save` writes and `torch.load` does not check."""
    if not zipfile.is_zipfile(path):  # PyTorch's format before 1.6
        return
    with zipfile.ZipFile(path) as archive:
        record = archive.testzip()
    if record is not None:
        raise ValueError(f"its record {record} does not match its checksum")


def _why_not_read(error: Exception, path: str | Path) -> str:
    """Why a pickle was not loaded. PyTorch's own text, which recommends `weights_only=False`, is not passed on."""
    text = str(error)
    if kind := _other_kind(path):
        return f"is not a complete PyTorch weights file ({kind}): copy or download it again"
    if "TorchScript" in text:
        return "is a TorchScript program, which could run code, so it is not read: get its state dict"
    if found := re.search(r"GLOBAL ([\w.]+)|class ([\w.]+)", text):
        named = found[1] or found[2]
        return (
            f"holds Python objects besides tensors ({named}), which could run code, so it is not read: get its state dict, "
            "torch.save(model.state_dict(), path) where it was made"
        )
    if re.search(r"Unsupported operand 14\d", text):  # such as 149, FRAME
        return "is a pickle of another protocol than PyTorch writes, which is not read: save it again without pickle_protocol"
    if "weights" in text.lower():
        return "is not a complete PyTorch weights file: copy or download it again"
    first = (text.splitlines() or [type(error).__name__])[0]
    return f"is not a complete PyTorch weights file ({first}): copy or download it again"


def _other_kind(path: str | Path) -> str:
    """What a file is that often has the name of a weights file; empty if it is none of these."""
    try:
        with open(path, "rb") as file:
            start = file.read(200).lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    except OSError:
        return ""
    if not start:
        return "it is empty" if not Path(path).stat().st_size else ""
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, fetch the file itself by git lfs pull"
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "it is a web page"
    return ""


def _about(metadata: Mapping[str, str] | None, path: str | Path) -> dict[str, Any]:
    try:
        about = json.loads((metadata or {}).get("about", "{}"))
    except ValueError as error:
        raise SfrikError(f"{path} has metadata that is not valid JSON ({error}): copy it again or recreate it") from None
    return about if isinstance(about, dict) else {}
