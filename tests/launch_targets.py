"""Functions that the workers of test_launch.py import: what runs in a fresh process must stand in a module."""

import os
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist


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
