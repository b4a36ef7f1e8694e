"""Collective communication: gathers and sums over the processes of `torch.distributed`.

On a single process they communicate nothing and return this process's values.

None of them is differentiable. On every process a loss has the value for the whole batch and comes with its own gradient with
respect to the local rows, scaled by the number of processes N, so that DDP's average over the processes is the gradient of the
loss of the whole batch. No collective runs in a backward pass.

The processes may hold different numbers of rows, as in the last batch of an epoch without `drop_last`: every row has the same
weight. `sfrik.pretrain` drops such batches; other training loops need not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "all_gather_json",
    "all_gather_rows",
    "all_gather_vectors",
    "all_reduce_max",
    "all_reduce_sum",
    "barrier",
    "broadcast_from_rank_zero",
    "gather_remote_rows",
    "rank",
    "row_counts",
    "simulated_processes",
    "world_size",
]

_simulated = 0  # number of processes within `simulated_processes`, else 0


@contextmanager
def simulated_processes(count: int) -> Iterator[None]:
    """Act as rank 0 of `count` processes without exchanging anything, to count the memory of a step on fake tensors."""
    global _simulated
    _simulated = count
    try:
        yield
    finally:
        _simulated = 0


def world_size() -> int:
    """Number of processes; 1 without `torch.distributed`."""
    if _simulated:
        return _simulated
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Rank of this process; 0 without `torch.distributed`."""
    if _simulated:
        return 0
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def barrier() -> None:
    """Wait until every process has called this."""
    if world_size() > 1:
        dist.barrier()


def broadcast_from_rank_zero(value: Any) -> Any:
    """The value of rank 0, on every process. It must be serialisable as JSON."""
    return all_gather_json(value if rank() == 0 else None)[0]


def all_gather_json(value: Any, device: torch.device | None = None) -> list[Any]:
    """The values of all processes, in the order of their ranks. They must be serialisable as JSON.

    PyTorch's own collectives for objects send pickles, and unpickling data from a socket can execute any code.

    Args:
        value: this process's value.
        device: where the encoded values are exchanged; the current CUDA device with NCCL and the CPU otherwise by default.
    """
    if world_size() == 1:
        return [value]
    device = device or (
        torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    )
    text = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=device)
    counts = row_counts(len(text), device)
    return [json.loads(bytes(part.view(-1).tolist())) for part in _gather_side_by_side([text[:, None]], counts).split(counts)]


def all_reduce_max(numbers: list[int], device: torch.device) -> list[int]:
    """The maximum over the processes of each number, in one collective."""
    if world_size() == 1:
        return numbers
    maxima = torch.tensor(numbers, device=device)
    dist.all_reduce(maxima, dist.ReduceOp.MAX)
    return maxima.tolist()


def row_counts(rows: int, device: torch.device) -> list[int]:
    """Number of rows on each process, given that of this process."""
    if world_size() == 1 or _simulated:
        return [rows] * world_size()
    counts = torch.empty(world_size(), dtype=torch.int64, device=device)
    _gather(counts, torch.tensor([rows], device=device))
    return counts.tolist()


def gather_remote_rows(views: Sequence[Tensor], counts: list[int]) -> list[list[Tensor]]:
    """The rows of the other processes, of several views in one collective.

    Args:
        views: each [n_local, q].
        counts: the number of rows on each process, `row_counts`.

    Returns:
        For each view a list of at most two tensors: the rows of the processes of lower rank and those of higher rank. Empty
        tensors are left out.
    """
    if world_size() == 1:
        return [[] for _ in views]
    gathered = _gather_side_by_side(views, counts)
    start = sum(counts[: rank()])
    parts = gathered[:start], gathered[start + counts[rank()] :]
    split = [part.split(views[0].shape[1], dim=1) for part in parts if len(part)]
    return [[of_views[v] for of_views in split] for v in range(len(views))]


def all_gather_vectors(x: Tensor) -> Tensor:
    """Gather the vector [k] of each process into the rows of a matrix [N, k]."""
    if world_size() == 1:
        return x.detach()[None]
    out = x.new_empty((world_size(), len(x)))
    _gather(out.view(-1), x.detach().contiguous())
    return out


def all_gather_rows(views: Sequence[Tensor]) -> list[Tensor]:
    """Gather the rows of several views from all processes, in rank order, with one collective.

    Args:
        views: each [n_local, q].

    Returns:
        Each view as [n, q], where n is the sum of `row_counts`. On several processes these are slices of one tensor and not
        contiguous.
    """
    views = [view.detach() for view in views]
    if world_size() == 1 or not views:
        return views
    counts = row_counts(len(views[0]), views[0].device)
    return list(_gather_side_by_side(views, counts).split(views[0].shape[1], dim=1))


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum over the processes, a new tensor if there are several."""
    if world_size() > 1:
        x = x.detach().clone()
        if not _simulated:
            dist.all_reduce(x)
    return x


def _gather_side_by_side(views: Sequence[Tensor], counts: list[int]) -> Tensor:
    """The rows of all processes with the V views side by side, [n, V q]: each view is a slice of the result, without a copy."""
    rows, longest = torch.cat([view.detach() for view in views], dim=1), max(counts)
    padded = rows if len(rows) == longest else torch.nn.functional.pad(rows, (0, 0, 0, longest - len(rows)))
    out = rows.new_empty((world_size() * longest, rows.shape[1]))
    _gather(out, padded)
    if min(counts) == longest:
        return out
    return torch.cat([part[:count] for part, count in zip(out.split(longest), counts, strict=True)])


def _gather(out: Tensor, local: Tensor) -> None:
    if _simulated:
        return
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # PyTorch before 2.14
    gather(out, local)
