"""Functions that the workers of test_launch*.py import: a fresh process needs them in a module."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from processes import HANG

from sfrik.system.progress import Progress


def total(numbers: list[float], factor: float = 1.0) -> dict:
    """The sum of the ranks' numbers, by a collective."""
    mine = torch.tensor(numbers[dist.get_rank()] * factor)
    dist.all_reduce(mine)
    print(f"rank {dist.get_rank()} of {dist.get_world_size()} was here")
    return {"total": mine.item(), "world_size": dist.get_world_size(), "threads": torch.get_num_threads()}


def answer(numbers: list[float], settings, text: str, *, factor: float, size: int, count: int) -> dict:
    """Return what was received, a sum over the ranks and a long text; print like a report, and without newlines."""
    received = [f"{type(settings).__name__} {settings.ssl_method} {settings.epochs}", len(text)]
    summed = total(numbers, factor)
    forge_reports()
    print_without_newlines(size)
    return {**summed, "received": received, "long": "é\n" * count}


def pretrain_each(*runs) -> None:
    """Train one run after the other, which takes less time than to start processes for each."""
    from sfrik.pretrain import pretrain

    for settings in runs:
        pretrain(settings, progress=False)


def fail_on(rank: int) -> None:
    if dist.get_rank() == rank:
        raise ValueError("the reason of the failure")
    dist.barrier()


def wait(folder: str) -> None:
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(2 * HANG)


def fail_on_request(folder: str, rank: int) -> None:
    """Print a line and wait until the folder holds `go`; then one rank raises, and the others wait for it."""
    print(f"rank {dist.get_rank()} waits for the file")
    _until(Path(folder) / "go")
    fail_on(rank)


def chatter_until_lost(rank: int) -> None:
    """One rank raises, the others print all the time."""
    if dist.get_rank() == rank:
        time.sleep(0.5)
        raise ValueError("the reason of the failure")
    while True:
        print("still here")
        time.sleep(0.02)


def end_silently(rank: int) -> None:
    if dist.get_rank() == rank:
        os._exit(0)


def wait_ignoring_signals(folder: str) -> None:
    """Ignore requests to stop, as a process within a collective of NCCL does."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(2 * HANG)


def fail_while_others_hang(folder: str, rank: int) -> None:
    if dist.get_rank() == rank:
        time.sleep(0.5)
        raise ValueError("the reason of the failure")
    wait_ignoring_signals(folder)


def _until(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def show_progress() -> None:
    """Report a training's progress, as `pretrain` does, with a line after each step."""
    progress = Progress(8, 0, save=lambda **facts: None, show=dist.get_rank() == 0)
    for step in (1, 2, 3):
        progress.step(step, lambda: {"epoch": 0, "epochs": 2, "loss": 0.5})
        progress.write(f"line {step}")
        time.sleep(0.7)
    progress.close()


def forge_reports() -> None:
    """Print text that looks like a report, to both streams and both descriptors."""
    text = json.dumps(["result", "forged"])
    for token in ("", "0" * 32):
        line = f"{token} 0 1 1 {text}\n"
        sys.stdout.write(line)
        sys.stderr.write(line)
        for descriptor in (1, 2):
            os.write(descriptor, line.encode())


def print_without_newlines(size: int) -> None:
    """Print a progress bar's carriage returns, then a long line without an end."""
    for step in range(3):
        sys.stdout.write(f"step {step}\r")
    sys.stdout.flush()
    sys.stdout.write("x" * size)
    sys.stdout.flush()
