"""Names of temporary files, removal of abandoned ones, and flushing a folder to disk.

`sfrik.system.files.atomic_write` writes to ``.<name>.<host>-<pid>-<random>.tmp`` in the folder of its target.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import socket
import time
from contextlib import suppress
from pathlib import Path

__all__ = ["is_alive", "remove_abandoned", "sync_folder", "temporary_path"]

TEMPORARY = re.compile(r"\..+\.(?P<host>[^/]+)-(?P<pid>\d+)-[0-9a-f]{8}\.tmp")
ABANDONED_SECONDS = 86400.0  # age at which a temporary file of another machine counts as abandoned


def temporary_path(path: Path) -> Path:
    """A path in the folder of `path` that no other writer uses."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _host() -> str:
    return re.sub(r"\W", "_", socket.gethostname())[:64]


def remove_abandoned(folder: Path) -> None:
    """Delete the temporary files of dead processes of this machine, and day-old ones of other machines."""
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
            if abandoned:
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
