"""Names of temporary files, removal of those that dead processes left, and flushing a folder to disk.

A file is written as ``.<name>.<host>-<pid>-<random>.tmp`` beside its target (`sfrik.system.files.atomic_write`).
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

__all__ = ["remove_abandoned", "sync_folder", "temporary_path"]

TEMPORARY = re.compile(r"\..+\.(?P<host>[^/]+)-(?P<pid>\d+)-[0-9a-f]{8}\.tmp")
ABANDONED = 86400.0  # seconds after which a temporary file of another machine counts as left behind


def temporary_path(path: Path) -> Path:
    """A name beside `path` that no other writer uses."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _host() -> str:
    return re.sub(r"\W", "_", socket.gethostname())[:64]


def remove_abandoned(folder: Path) -> None:
    """Delete temporary files whose process has ended; those of another machine after a day."""
    host = _host()
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = TEMPORARY.fullmatch(entry.name)
            if found is None:
                continue
            if found["host"] == host and os.name != "nt":
                gone = not _is_alive(int(found["pid"]))
            else:
                gone = time.time() - entry.stat().st_mtime > ABANDONED
            if gone:
                os.unlink(entry.path)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


def sync_folder(folder: Path) -> None:
    """Flush a folder to disk, so that a rename in it survives a power cut."""
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # one may write into it and not list it
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that do not flush folders
            raise
    finally:
        os.close(descriptor)
