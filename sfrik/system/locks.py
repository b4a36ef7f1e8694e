"""Locks on folders: one process writes at a time, and the operating system releases the lock of a process that died.

The locks are those of the package `filelock`. On a file system without `flock` (some network file systems) the lock is a marker
file, `<name>.soft`. There the marker of a process that died on another machine has to be deleted by hand.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from sfrik.errors import SfrikError
from sfrik.system.files import check_regular, make_folder, write_error
from sfrik.system.temporary import is_alive
from sfrik.system.terminal import print_line

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["folder_lock", "is_locked", "refuse_locked"]

# What flock answers where there is none. EIO is not among them: another process may hold a real lock there.
WITHOUT_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY}
GONE = {errno.ENOENT, errno.ESTALE}  # of a lock file, or its folder, that another process has deleted
PROBE_SECONDS = 0.05  # longest time that a check by `is_locked` in another process holds the lock
POLL_SECONDS = 0.2  # between two attempts to acquire a lock


@contextmanager
def folder_lock(
    folder: str | Path, name: str = "lock", wait: bool = False, optional: bool = False, work: str = "", remove: bool = False
) -> Iterator[None]:
    """Hold the lock `name` of a folder, which is created if it is missing.

    Args:
        folder: The folder.
        name: The name of the lock file.
        wait: Print a line that names the process holding the lock, and wait until it releases the lock.
        optional: Take no lock in a folder that this process cannot write, such as one on a read-only mount. For work that may be
            finished already, and is then only read; whatever else it tries to write is an error that names the file.
        work: What the lock is for, for the line of a process that waits: "writes <folder>" by default.
        remove: Delete the lock file at the end, and the folders that were created for it if they are empty: by this process, or
            by the one that held the lock before, whose number of them is in the file. The last process removes them all.

    Raises:
        SfrikError: Another process holds the lock; the message names it.
        WriteError: The lock file cannot be created.
    """
    if optional and Path(folder).is_dir() and not os.access(folder, os.W_OK):
        yield
        return
    path = Path(folder) / name
    places, created = (Path(folder), *Path(folder).parents), 0
    while True:
        if remove:
            created = max(created, _created_before(path), sum(not os.path.lexists(place) for place in places))
        make_folder(folder)
        if path.exists():
            check_regular(path)
        try:
            lock = _acquire(path, folder, wait, work)
            break
        except OSError as error:
            if error.errno not in GONE:
                raise
    try:
        if not isinstance(lock, SoftFileLock):  # a marker file already names its process
            job = f", SLURM job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
            with suppress(OSError):  # on a full disk the lock file stays empty
                count = f"\n{created}" if remove else ""
                path.write_text(f"pid {os.getpid()} on {socket.gethostname()}{job}{count}", encoding="utf-8")
        yield
    finally:
        if remove:  # while the lock is held: a process that gets the lock of a deleted file opens the new one
            path.unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):
            for place in places[:created]:
                place.rmdir()


def refuse_locked(folder: str | Path, name: str = "lock") -> None:
    """Raise the error of `folder_lock` if another process holds the lock; writes nothing."""
    path = Path(folder) / name
    if is_locked(path):
        lock = SoftFileLock(_marker(path)) if _marker(path).exists() else FileLock(path)
        raise _refusal(lock, folder)


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock file `path`. Writes nothing."""
    if _marker(path).exists() and not _is_abandoned(_marker(path)):
        return True
    if fcntl is None:
        return False
    with suppress(FileNotFoundError):
        check_regular(path)
        with path.open("rb") as file:
            for attempt in range(3):  # another process may hold it briefly, only to check it
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    return False
                except BlockingIOError:
                    time.sleep(0.01 * (attempt < 2))
                except OSError as error:
                    return error.errno not in WITHOUT_FLOCK
            return True
    return False


def _acquire(path: Path, folder: str | Path, wait: bool, work: str) -> BaseFileLock:
    """Acquire a lock; an OSError of `GONE` if the process that holds it removes the file's folder."""
    lock: BaseFileLock = FileLock(path, fallback_to_soft=False)
    try:
        try:
            lock.acquire(timeout=PROBE_SECONDS, poll_interval=PROBE_SECONDS / 5)
        except OSError as error:
            if error.errno not in WITHOUT_FLOCK:
                raise
            lock = SoftFileLock(_marker(path))
            lock.acquire(timeout=PROBE_SECONDS, poll_interval=PROBE_SECONDS / 5)
    except Timeout:
        if not wait:
            raise _refusal(lock, folder) from None
        remedy = f"; {_remedy(lock)}" if isinstance(lock, SoftFileLock) else ""
        print_line(f"waiting for {_holder(lock)}, which {work or f'writes {folder}'}{remedy}")
        lock.acquire(timeout=-1, poll_interval=POLL_SECONDS)
    except OSError as error:
        raise error if error.errno in GONE else write_error(path, error) from None
    return lock


def _refusal(lock: BaseFileLock, folder: str | Path) -> SfrikError:
    remedy = f", or {_remedy(lock)}" if isinstance(lock, SoftFileLock) else ""
    return SfrikError(f"{folder} is being written by another process ({_holder(lock)}): wait for it, or stop it{remedy}")


def _remedy(lock: BaseFileLock) -> str:
    return f"delete {lock.lock_file} if it has ended"


def _created_before(path: Path) -> int:
    """How many folders, the innermost first, were created for a lock by the process that holds it or was killed with it."""
    with suppress(OSError, ValueError, IndexError):
        return int(path.read_text(encoding="utf-8").split("\n")[1])
    return 0


def _marker(path: Path) -> Path:
    return path.with_name(f"{path.name}.soft")


def _is_abandoned(marker: Path) -> bool:
    """Whether a marker is of a dead process of this machine: the next process to take the lock replaces it."""
    with suppress(OSError):
        process, host, *_ = [*marker.read_text(encoding="utf-8", errors="replace").split("\n"), "", ""]
        return host == socket.gethostname() and process.isdecimal() and os.name != "nt" and not is_alive(int(process))
    return False


def _holder(lock: BaseFileLock) -> str:
    """The process that holds a lock, as written in the lock file."""
    with suppress(OSError):
        lines = Path(lock.lock_file).read_text(encoding="utf-8", errors="replace").split("\n")
        if isinstance(lock, SoftFileLock):  # filelock writes process id, host and more, one per line
            return f"pid {lines[0]} on {lines[1]}" if len(lines) > 1 else "unknown"
        return lines[0].strip() or "unknown"
    return "unknown"
