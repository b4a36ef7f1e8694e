"""What is read from a run's files again and again: remembered until the file changes.

`sfrik status` and `make tableN` ask hundreds of runs for it.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

from sfrik.errors import SfrikError
from sfrik.system.files import UnreadableError, file_hash
from sfrik.system.records import Provenance, read_record
from sfrik.system.tensor_files import read_header

__all__ = ["cached_hash", "cached_provenance", "print_once", "why_not_opened"]


def why_not_opened(path: Path) -> str:
    """The reason why a safetensors file does not open, or "" if its header fits its length.

    Raises:
        UnreadableError, OSError: the file system does not give the file, which may be whole.
    """
    found = path.stat()
    return _checked_header(str(path), found.st_mtime_ns, found.st_size)


def cached_provenance(path: Path) -> dict[str, Any]:
    """The content of provenance.json, ``{}`` if there is no such file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return {}
    return _read_provenance(str(path), found.st_mtime_ns, found.st_size)


def cached_hash(path: Path) -> str:
    """The SHA-256 of a file."""
    found = path.stat()
    return _hash(str(path), found.st_mtime_ns, found.st_size)


@cache
def print_once(text: str) -> None:
    """Print a line to stderr the first time."""
    print(text, file=sys.stderr, flush=True)


@cache
def _checked_header(path: str, modified: int, size: int) -> str:
    try:
        read_header(path)
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
