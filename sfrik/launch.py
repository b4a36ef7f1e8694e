"""Several processes: joining the group that torchrun or SLURM has started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from sfrik.devices import pick_device

__all__ = ["process_group"]


@contextmanager
def process_group(device: str = "auto") -> Iterator[None]:
    """Join the process group that the environment describes (torchrun's variables); nothing for a single process.

    NCCL on GPUs, gloo on CPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    chosen = pick_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
