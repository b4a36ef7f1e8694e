"""Real processes that tests signal, and how long they live."""

import os
import time
from pathlib import Path

import psutil


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def descendants(pid: int | None = None) -> list[psutil.Process]:
    """The processes below this one, or below another."""
    return psutil.Process(pid or os.getpid()).children(recursive=True)


def named(part: str, pid: int | None = None) -> list[psutil.Process]:
    """The living processes below one whose command holds `part`, the oldest first."""
    found = []
    for process in descendants(pid):
        try:
            if part in " ".join(process.cmdline()) and lives(process):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return sorted(found, key=lambda process: (process.create_time(), process.pid))


def seconds_to_end(processes: list[psutil.Process], most: float) -> float:
    """How long it took from now until none of them was left; an error that names the rest after `most` seconds."""
    begun = time.monotonic()
    while left := [process for process in processes if lives(process)]:
        assert time.monotonic() - begun < most, f"still there after {most} s: {left}"
        time.sleep(0.02)
    return time.monotonic() - begun


def wait_for(what, most: float, why: str):
    """The first true value of `what()`, asked for again and again."""
    deadline = time.monotonic() + most
    while not (value := what()):
        assert time.monotonic() < deadline, f"{why}: not within {most} s"
        time.sleep(0.005)
    return value


def last_step(folder: Path) -> int:
    """The last step that metrics.jsonl holds, -1 where there is none; read without the library, while it is written."""
    path = folder / "metrics.jsonl"
    found = [line.split('"step": ')[1] for line in path.read_text().splitlines() if '"step": ' in line] if path.is_file() else []
    return int(found[-1].split(",")[0]) if found else -1
