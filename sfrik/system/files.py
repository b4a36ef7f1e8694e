"""Atomic writes, and reads that name the file and the cause when they fail.

`atomic_write` writes a temporary file in the target's folder, flushes it to disk, renames it and flushes the folder. After a kill
or a power cut the target is the old file or the new one, never a part of one. (Only logs are appended to instead.) The temporary
file is called::

    .<name>.<host>-<pid>-<random>.tmp

The next write in the same folder removes those that dead processes left (`sfrik.system.temporary`).
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
from sfrik.system.terminal import print_line

__all__ = [
    "UnreadableError",
    "WriteError",
    "atomic_write",
    "check_regular",
    "check_text",
    "file_hash",
    "format_bytes",
    "make_folder",
    "path_exists",
    "read_bytes",
    "read_json",
    "read_text",
    "read_toml",
    "rename_broken",
    "sync_file",
    "write_error",
    "write_json",
    "write_text",
]

FILE_TYPES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class WriteError(SfrikError):
    """A file could not be written. The message names it, the space it needs and the space that is free."""


class UnreadableError(SfrikError):
    """A file could not be read because of permissions or the file system. Its content may be intact."""


@contextmanager
def atomic_write(path: str | Path, needed: int = 0, keep: Path | None = None) -> Iterator[BinaryIO]:
    """Open a binary file that becomes `path` when the block ends without an error. The umask sets its mode.

    Args:
        path: The target.
        needed: Bytes that will be written, for the message if they do not fit. Unset: the bytes written until the error.
        keep: New name for the existing file at `path`, if there is one.

    Raises:
        WriteError: The file cannot be written. The existing file at `path` is unchanged, and no temporary file is left.
    """
    path = Path(path)
    temporary = temporary_path(path)
    file = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent)
        with open(temporary, "xb") as raw:
            file = _CountingFile(raw)
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
        # torch.save turns an OSError into a RuntimeError whose text names neither the file nor the cause
        cause = file.error if file is not None and file.error is not None else error
        if isinstance(cause, OSError):
            raise write_error(path, cause, needed or (file.written if file else 0)) from None
        raise


class _CountingFile:
    """A file that counts the bytes written and keeps the first OSError."""

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
    r"""Write UTF-8 text atomically. The bytes of a file name that are not text become escapes, such as \udce9, as in JSON."""
    content = text.encode(errors="backslashreplace")
    with atomic_write(path, len(content)) as file:
        file.write(content)


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def sync_file(path: Path) -> None:
    """Flush a file that was appended to, and its folder, to disk.

    Raises:
        WriteError: The flush failed.
    """
    try:
        with path.open("rb") as file:
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from None


def make_folder(folder: str | Path) -> None:
    """Create a folder and its parents, unless they exist.

    Raises:
        WriteError: The folder cannot be created; the message names it.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from None


def rename_broken(path: Path, reason: str) -> Path:
    """Replace the suffix of an unusable file by ``.broken`` and print a line on stderr. Returns the new path."""
    broken = path.with_suffix(".broken")
    os.replace(path, broken)
    print_line(f"{path} is broken ({reason}); renamed to {broken.name}", error=True)
    return broken


def path_exists(path: str | Path) -> bool:
    """Whether there is a file, folder or link (also a dangling one) at `path`.

    Unlike `Path.exists`, this raises an error if the parent folder may not be read.

    Raises:
        UnreadableError: The file system returned an error.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error.strerror or error}") from None
    return True


def check_text(*names: str) -> None:
    """Refuse paths with bytes that are not text in this locale, which Jupyter kernels and safetensors cannot be given.

    Raises:
        SfrikError: a name contains such bytes.
    """
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            encoding = sys.getfilesystemencoding()
            remedy = "" if encoding == "utf-8" else ", or set LC_ALL=C.UTF-8"
            raise SfrikError(f"{name!a} has bytes that are not text in the encoding {encoding}: rename it{remedy}") from None


def check_regular(path: str | Path) -> None:
    """Refuse anything but a regular file: opening a FIFO or a device may block forever.

    Raises:
        SfrikError: `path` is a folder, FIFO, socket or device; the message says which.
        FileNotFoundError: There is nothing at `path`.
        OSError: The file system returned another error.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise SfrikError(f"{path} is {FILE_TYPES.get(stat.S_IFMT(mode), 'a special file')} and not a regular file")


def read_bytes(path: str | Path) -> bytes:
    """The content of a regular file.

    Raises:
        SfrikError: The file is missing, not a regular file or unreadable; the message names it.
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
        SfrikError: As in `read_bytes`, or the bytes are not UTF-8.
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
        SfrikError: As in `read_text`, or the text is not JSON or not an object.
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
        SfrikError: As in `read_text`, or the text is not TOML.
    """
    text = read_text(path)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also of an integer with 5,000 digits
        raise SfrikError(f"{path} is not valid TOML: {error}") from None


def file_hash(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _json_kind(value: Any) -> str:
    kinds = {list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")


def write_error(path: str | Path, error: OSError, needed: int = 0) -> WriteError:
    """A `WriteError` that states the file, the cause, the space needed and the space free."""
    reason, remedy = error.strerror or str(error), "check the folder"
    free = inodes = None
    with suppress(OSError, AttributeError):  # Windows has no statvfs
        existing = next(folder for folder in Path(path).absolute().parents if folder.is_dir())
        disk = os.statvfs(existing)
        free, inodes = disk.f_bavail * disk.f_frsize, disk.f_favail if disk.f_files else None
    needs = [f"it needs {format_bytes(needed)}"] if needed else []
    if error.errno == errno.EDQUOT:  # the free space of the disk is not free for this user
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
    """A size with its unit: 512 bytes, 12 KiB, 3 MiB.

    >>> format_bytes(3 << 20)
    '3 MiB'
    """
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 1000 * size else f"{count / size:.0f} {unit}"
    return f"{count} bytes"
