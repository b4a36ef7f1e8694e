"""Cached reads of a run's files, repeated when the size or modification time of a file changes.

`sfrik status` and `make tableN` read the files of hundreds of runs several times.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from sfrik.errors import SfrikError
from sfrik.system.files import UnreadableError, file_hash
from sfrik.system.records import Provenance, read_record
from sfrik.system.tensor_files import read_header

__all__ = ["cached_hash", "cached_header", "cached_provenance", "header_error"]


def header_error(path: Path) -> str:
    """Why a safetensors file cannot be opened; an empty string if its header is valid and fits the file's length.

    Raises:
        UnreadableError: Permissions or the file system prevent reading the file, which may be intact.
        OSError: There is no such file, or the file system returned an error.
    """
    status = path.stat()
    return _checked_header(str(path), status.st_mtime_ns, status.st_size)


def cached_header(path: Path) -> dict[str, str]:
    """The metadata in the header of a safetensors file that `header_error` finds valid."""
    status = path.stat()
    return _header(str(path), status.st_mtime_ns, status.st_size)


def cached_provenance(path: Path) -> dict[str, Any]:
    """The content of a provenance.json; `{}` if there is no such file.

    Raises:
        SfrikError: The file is broken or cannot be read.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error.strerror or error}") from None
    return _read_provenance(str(path), status.st_mtime_ns, status.st_size)


def cached_hash(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    status = path.stat()
    return _hash(str(path), status.st_mtime_ns, status.st_size)


@cache
def _header(path: str, modified: int, size: int) -> dict[str, str]:
    return read_header(path)


@cache
def _checked_header(path: str, modified: int, size: int) -> str:
    try:
        _header(path, modified, size)
    except UnreadableError:
        raise
    except SfrikError as error:
        return str(error)
    return ""


@cache
def _read_provenance(path: str, modified: int, size: int) -> dict[str, Any]:
    return read_record(path, Provenance)


@cache
def _hash(path: str, modified: int, size: int) -> str:
    return file_hash(path)
