"""Processes that are forks of one clean process, which has imported PyTorch and the package: they start in milliseconds.

A spawned process imports PyTorch again, which takes seconds. As for a spawned one, what a process is given is pickled.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

children = multiprocessing.get_context("forkserver")
children.set_forkserver_preload(["pytest", "sklearn.linear_model", "sfrik.evaluate.transfer", "sfrik.pretrain", "torch._dynamo"])


def run_on(processes: int, work: Callable[..., Any], *arguments: Any) -> None:
    """Call `work(rank, *arguments)` on several processes; an error in one of them is raised here, with its traceback."""
    start_processes(work, args=arguments, nprocs=processes, start_method="forkserver")


def in_group(processes: int, folder: Path, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call `function(*arguments)` on each process of a gloo group; returns the results in the order of the ranks."""
    run_on(processes, _work, processes, str(folder), function, arguments)
    return [torch.load(folder / f"{rank}.pt") for rank in range(processes)]


def _work(rank: int, processes: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=processes)
    torch.save(function(*arguments), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
