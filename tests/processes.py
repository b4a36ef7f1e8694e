"""Real processes that tests signal: finding them, and waiting for their end."""

import os
import time
from pathlib import Path

import psutil

START = 300.0  # seconds for interpreters to start and import on a busy machine
HANG = 300.0  # seconds for what should end at once; where it does not, what ends it later takes at least as long


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def descendants(pid: int | None = None) -> list[psutil.Process]:
    """The descendants of this process, or of another."""
    return psutil.Process(pid or os.getpid()).children(recursive=True)


def named(part: str, pid: int | None = None) -> list[psutil.Process]:
    """The living descendants of a process whose command contains `part`, the oldest first."""
    found = []
    for process in descendants(pid):
        try:
            if part in " ".join(process.cmdline()) and lives(process):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return sorted(found, key=lambda process: (process.create_time(), process.pid))


def seconds_to_end(processes: list[psutil.Process], most: float) -> float:
    """Wait until all processes have ended, and return the seconds; fails after `most` seconds and names those that are left."""
    started = time.monotonic()
    while left := [process for process in processes if lives(process)]:
        assert time.monotonic() - started < most, f"still there after {most} s: {left}"
        time.sleep(0.02)
    return time.monotonic() - started


def wait_for(what, most: float, why: str):
    """Call `what()` until it returns a true value, and return that."""
    deadline = time.monotonic() + most
    while not (value := what()):
        assert time.monotonic() < deadline, f"{why}: not within {most} s"
        time.sleep(0.005)
    return value


def last_step(folder: Path) -> int:
    """The last step in metrics.jsonl, or -1; read without the library, while the file is being written."""
    path = folder / "metrics.jsonl"
    found = (
        [line.split('"step": ')[1] for line in path.read_text(encoding="utf-8").splitlines() if '"step": ' in line]
        if path.is_file()
        else []
    )
    return int(found[-1].split(",")[0]) if found else -1
