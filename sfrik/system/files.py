"""Reading and writing of files: complete or not there, on disk before anything relies on them, checked when read back.

Every file that the library writes goes through `atomic_write`: a temporary file of its own beside the target, flushed to disk,
renamed, and the folder flushed too. After a kill or a power cut the target is the old file or the new one, never a part.

    .<name>.<host>-<pid>-<random>.tmp    a file that is being written; the next write in the folder removes what a dead one left
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from sfrik.errors import SfrikError
from sfrik.system.temporary import remove_abandoned, sync_folder, temporary_path

__all__ = [
    "UnreadableError",
    "WriteError",
    "atomic_write",
    "check_regular",
    "file_hash",
    "format_bytes",
    "is_there",
    "make_folder",
    "read_bytes",
    "read_json",
    "read_text",
    "read_toml",
    "set_aside",
    "sync_file",
    "write_error",
    "write_json",
    "write_text",
]

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class WriteError(SfrikError):
    """A file could not be written; the text names it, what it needs and what is free."""


class UnreadableError(SfrikError):
    """A file could not be read for a reason that is not its content: permissions, or the file system. It may be whole."""


@contextmanager
def atomic_write(path: str | Path, needed: int = 0, keep: Path | None = None) -> Iterator[BinaryIO]:
    """A binary file to write to, which becomes `path` when the block ends without an error. The umask sets its mode.

    Args:
        needed: bytes that will be written, for the message when they do not fit; what was written so far when unset.
        keep: what was at `path` before is renamed to this.

    Raises:
        WriteError: the file cannot be written; what was at `path` is still there, and nothing is left beside it.
    """
    path = Path(path)
    temporary = temporary_path(path)
    file = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent)
        with open(temporary, "xb") as raw:
            file = _Recorder(raw)
            yield cast(BinaryIO, file)
            file.flush()
            os.fsync(raw.fileno())
        if keep is not None and path.is_file():
            os.replace(path, keep)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        # torch.save turns an error of the file system into a RuntimeError, whose text names neither file nor cause
        cause = file.error if file is not None and file.error is not None else error
        if isinstance(cause, OSError):
            raise write_error(path, cause, needed or (file.written if file else 0)) from None
        raise


class _Recorder:
    """A file that counts its bytes and keeps the first error of the system."""

    def __init__(self, file: Any) -> None:
        self.file, self.error, self.written = file, cast("OSError | None", None), 0

    def write(self, data: Any) -> int:
        try:
            count = self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise
        self.written += count
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, complete or not at all."""
    content = text.encode()
    with atomic_write(path, len(content)) as file:
        file.write(content)


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON, complete or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def sync_file(path: Path) -> None:
    """Wait until what was appended to a file, and its name, are on disk.

    Raises:
        WriteError: they cannot be written.
    """
    try:
        with path.open("rb") as file:
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from None


def make_folder(folder: str | Path) -> None:
    """Make a folder and those above it.

    Raises:
        WriteError: it cannot be made; it is named.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from None


def set_aside(path: Path, why: str) -> Path:
    """Give a file that cannot be used the suffix .broken, with a line on stderr; its new path."""
    aside = path.with_suffix(".broken")
    os.replace(path, aside)
    print(f"{path} is broken ({why}); renamed to {aside.name}", file=sys.stderr, flush=True)
    return aside


def is_there(path: str | Path) -> bool:
    """Whether a name is taken, also by a link that leads nowhere. `Path.exists` takes a folder that may not be read for none.

    Raises:
        UnreadableError: the file system does not say.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error.strerror or error}") from None
    return True


def check_regular(path: str | Path) -> None:
    """Refuse what is no regular file: opening a FIFO or a device may wait for ever.

    Raises:
        SfrikError: it names the file and what it is. FileNotFoundError, OSError: of the file system.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise SfrikError(f"{path} is {KINDS.get(stat.S_IFMT(mode), 'no regular file')} and not a regular file")


def read_bytes(path: str | Path) -> bytes:
    """The content of a regular file.

    Raises:
        SfrikError: it is missing, is no regular file or cannot be read; it is named.
    """
    try:
        check_regular(path)
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise SfrikError(f"there is no file {path}") from None
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error.strerror or error}") from None


def read_text(path: str | Path) -> str:
    """The UTF-8 text of a regular file, without a byte order mark.

    Raises:
        SfrikError: as `read_bytes`, and where its bytes are not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SfrikError(
            f"{path} is not UTF-8 text (byte {error.start} is 0x{error.object[error.start]:02x}): save it as UTF-8"
        ) from None


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        SfrikError: as `read_text`, and where it is not JSON or not an object.
    """
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "it is empty" if not text.strip() else str(error)
        raise SfrikError(f"{path} is not valid JSON ({reason}): move it away and run again") from None
    if not isinstance(content, dict):
        raise SfrikError(f"{path} holds {_json_kind(content)} where a JSON object is expected: move it away and run again")
    return content


def read_toml(path: str | Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        SfrikError: as `read_text`, and where it is not TOML.
    """
    text = read_text(path)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: a number of 5,000 digits
        raise SfrikError(f"{path} is not valid TOML: {error}") from None


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _json_kind(value: Any) -> str:
    kinds = {list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")


def write_error(path: str | Path, error: OSError, needed: int = 0) -> WriteError:
    """The error of a file that could not be written: the file, the cause, what it needs and what is free there."""
    reason, remedy = error.strerror or str(error), "check the folder"
    free = inodes = None
    with suppress(OSError, AttributeError):  # Windows has no statvfs
        there = next(folder for folder in Path(path).absolute().parents if folder.is_dir())
        found = os.statvfs(there)
        free, inodes = found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None
    needs = [f"it needs {format_bytes(needed)}"] if needed else []
    if error.errno == errno.EDQUOT:  # what is free on the disk is not free for this user
        reason, remedy = "; ".join(["your disk quota is used up", *needs]), "make room, and run the same command again"
    elif error.errno in (errno.ENOSPC, errno.EFBIG):
        remedy = "make room, and run the same command again"
        full = "the disk is full" if error.errno == errno.ENOSPC else reason.lower()
        if error.errno == errno.ENOSPC and inodes == 0:
            full, needs = "no inode is free there for another file", []
        elif free is not None:
            needs.append(f"{format_bytes(free)} are free there")
        reason = "; ".join([full, " and ".join(needs)] if needs else [full])
    return WriteError(f"{path} could not be written ({reason}): {remedy}")


def format_bytes(count: int) -> str:
    """A size for people: 512 bytes, 12 KiB, 3 MiB.

    >>> format_bytes(3 << 20)
    '3 MiB'
    """
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 1000 * size else f"{count / size:.0f} {unit}"
    return f"{count} bytes"
