"""Temporary files and folders, removal of abandoned ones, and flushing a folder to disk.

`sfrik.system.files.atomic_write` writes to ``.<name>.<host>-<pid>-<random>.tmp`` in the folder of its target. What else is
temporary is in the system's temporary folder: TMPDIR, or where that does not exist or is not writable, /tmp and others
(`tempfile.gettempdir`).
"""

from __future__ import annotations

import errno
import multiprocessing.util
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sfrik.errors import SfrikError

__all__ = [
    "is_alive",
    "remove_abandoned",
    "short_socket_folder",
    "sync_folder",
    "temporary_folder",
    "temporary_path",
    "user_folder",
]

TEMPORARY = re.compile(r"\..+\.(?P<host>[^/]+)-(?P<pid>\d+)-[0-9a-f]{8}\.tmp")
SOCKET_FOLDER = 75  # longest path of a folder for the sockets of multiprocessing, which add 32 bytes; the system takes 107
ABANDONED_SECONDS = 86400.0  # age at which a temporary file of another machine counts as abandoned


def temporary_path(path: Path) -> Path:
    """A path in the folder of `path` that no other writer uses."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _host() -> str:
    return re.sub(r"\W", "_", socket.gethostname())[:64]


def remove_abandoned(folder: Path) -> None:
    """Delete the temporary files and folders of dead processes of this machine, and day-old ones of other machines."""
    host = _host()
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = TEMPORARY.fullmatch(entry.name)
            if match is None:
                continue
            if match["host"] == host and os.name != "nt":
                abandoned = not is_alive(int(match["pid"]))
            else:
                abandoned = time.time() - entry.stat().st_mtime > ABANDONED_SECONDS
            if abandoned and entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif abandoned:
                os.unlink(entry.path)


def is_alive(pid: int) -> bool:
    """Whether this machine has a process of that id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # a process of another user
        return True
    return True


def sync_folder(folder: Path) -> None:
    """Flush a folder to disk, so that renames in it survive a power cut."""
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # the folder is writable but not listable
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # the file system does not support flushing folders
            raise
    finally:
        os.close(descriptor)


@contextmanager
def temporary_folder() -> Iterator[str]:
    """A private folder, removed at the end.

    Raises:
        SfrikError: no temporary folder is writable.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="sfrik-", ignore_cleanup_errors=True)  # mode 0700
    except OSError as error:
        raise _no_temporary_folder(error) from None
    with folder as name:
        yield name


def user_folder() -> Path:
    """A private folder for this user's temporary files, the same for all processes unless somebody else has taken its name.

    Raises:
        SfrikError: no temporary folder is writable.
    """
    user = os.getuid() if hasattr(os, "getuid") else "user"
    try:
        folder = Path(tempfile.gettempdir()) / f"sfrik-{user}"
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        private = stat.S_ISDIR(found.st_mode) and (user == "user" or (found.st_uid == user and not found.st_mode & 0o077))
        return folder if private and os.access(folder, os.W_OK) else Path(tempfile.mkdtemp(prefix="sfrik-"))
    except OSError as error:
        raise _no_temporary_folder(error) from None


def _no_temporary_folder(error: OSError) -> SfrikError:
    return SfrikError(f"no temporary folder can be written ({error.strerror or error}): set TMPDIR to a folder with some space")


def short_socket_folder() -> None:
    """Let multiprocessing put its sockets into a folder whose path is short enough, if TMPDIR is too long for that.

    Otherwise the processes that decode images fail to send what they decoded, and the training waits for ever.

    Raises:
        SfrikError: there is no such folder.
    """
    if os.name == "nt" or len(os.fsencode(tempfile.gettempdir())) <= SOCKET_FOLDER:
        return
    usual = tempfile.tempdir
    try:
        for folder in ("/tmp", "/var/tmp", "/dev/shm"):
            with suppress(OSError):
                tempfile.tempdir = folder
                multiprocessing.util.get_temp_dir()  # made at the first call, and inherited by child processes
                return
    finally:
        tempfile.tempdir = usual
    raise SfrikError(f"the path of the temporary folder {usual} is too long for a socket: set TMPDIR to a shorter one")
