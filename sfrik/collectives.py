"""What the objectives exchange between processes, with the gradients that DDP expects.

Convention: on each process the loss is that of the whole batch, and its gradient with respect to the local rows is
scaled so that DDP's average over the N processes is the gradient of the whole batch's loss. No collective runs in
a backward pass. Outside `torch.distributed` every function here is the identity.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "all_objects",
    "all_rows",
    "largest_over_processes",
    "mean_over_processes",
    "rank",
    "rank_zero_says",
    "sum_over_processes",
    "world_size",
]


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def rank_zero_says(value: Any) -> Any:
    """The value that rank 0 has, on every process."""
    said = [value]
    if world_size() > 1:
        dist.broadcast_object_list(said, src=0)
    return said[0]


def all_objects(value: Any) -> list[Any]:
    """The values of all processes, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def largest_over_processes(numbers: list[int], device: torch.device) -> list[int]:
    """The largest of each number over the processes: how they agree, in one exchange, on what one of them knows."""
    if world_size() == 1:
        return numbers
    together = torch.tensor(numbers, device=device)
    dist.all_reduce(together, dist.ReduceOp.MAX)
    return together.tolist()


def all_rows(z: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks: [n_local, q] -> [N n_local, q].

    A loss that every process computes in full from these rows has, after DDP's average, the whole batch's gradient:
    the backward pass keeps the local rows' part and multiplies it by N.
    """
    return _AllRows.apply(z) if world_size() > 1 else z


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean over processes of a scalar that each computed from its own rows; DDP averages its gradients."""
    return _MeanOverProcesses.apply(x) if world_size() > 1 else x


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum over processes, outside of autograd."""
    if world_size() > 1:
        x = x.detach().clone()
        dist.all_reduce(x)
    return x


class _AllRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        ctx.rows = z.shape[0]
        out = z.new_empty((world_size() * z.shape[0], *z.shape[1:]))
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # PyTorch before 2.14
        gather(out, z.contiguous())
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        start = rank() * ctx.rows
        return grad[start : start + ctx.rows] * world_size()


class _MeanOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return sum_over_processes(x) / world_size()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad
