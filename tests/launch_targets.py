"""Functions that the workers of test_launch*.py import: what runs in a fresh process must be in a module."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from sfrik.system.files import write_text
from sfrik.system.progress import Progress


def total(numbers: list[float], factor: float = 1.0) -> dict:
    """The sum over ranks of each rank's number, which every rank gets by a collective."""
    mine = torch.tensor(numbers[dist.get_rank()] * factor)
    dist.all_reduce(mine)
    print(f"rank {dist.get_rank()} of {dist.get_world_size()} was here")
    return {"total": mine.item(), "world_size": dist.get_world_size(), "threads": torch.get_num_threads()}


def method_of(settings) -> str:
    return f"{type(settings).__name__} {settings.ssl_method} {settings.epochs}"


def fail_on(rank: int) -> None:
    if dist.get_rank() == rank:
        raise ValueError("the reason of the failure")
    dist.barrier()


def die_on(rank: int) -> None:
    if dist.get_rank() == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def wait(folder: str) -> None:
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(120)


def fail_when_told(folder: str, rank: int) -> None:
    """Say that one is there, wait until the folder holds `go`; then one rank raises, and the others wait for it."""
    print(f"rank {dist.get_rank()} waits for the word")
    _until(Path(folder) / "go")
    fail_on(rank)


def chatter_until_lost(rank: int) -> None:
    """One rank raises, the others never fall silent."""
    if dist.get_rank() == rank:
        time.sleep(0.5)
        raise ValueError("the reason of the failure")
    while True:
        print("still here")
        time.sleep(0.02)


def end_silently(rank: int) -> None:
    if dist.get_rank() == rank:
        os._exit(0)


def wait_unless_told(folder: str) -> None:
    """Ignore requests to stop, as a process in the middle of a collective of NCCL does, until it is ended."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(120)


def fail_while_others_hang(folder: str, rank: int) -> None:
    if dist.get_rank() == rank:
        time.sleep(0.5)
        raise ValueError("the reason of the failure")
    wait_unless_told(folder)


def _until(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def show_progress() -> None:
    """Tell of a training's progress, as `pretrain` does, with a line between."""
    progress = Progress(8, 0, save=lambda **facts: None, show=dist.get_rank() == 0)
    for step in (1, 2, 3):
        progress.step(step, lambda: {"epoch": 0, "epochs": 2, "loss": 0.5})
        progress.write(f"line {step}")
        time.sleep(0.7)
    progress.close()


def forge_reports() -> str:
    """Print what looks like a report, to both streams and to both descriptors."""
    text = json.dumps(["result", "forged"])
    for token in ("", "0" * 32):
        line = f"{token} 0 1 1 {text}\n"
        sys.stdout.write(line)
        sys.stderr.write(line)
        for descriptor in (1, 2):
            os.write(descriptor, line.encode())
    return "the result"


def long_result(count: int) -> str:
    return "é\n" * count


def cannot_write(path: str) -> None:
    write_text(path, "text")


def length(text: str) -> int:
    return len(text)


def print_without_newlines(size: int) -> str:
    """A progress bar's returns, then much of a line that never ends."""
    for step in range(3):
        sys.stdout.write(f"step {step}\r")
    sys.stdout.flush()
    sys.stdout.write("x" * size)
    sys.stdout.flush()
    return "done"
