"""What the processes exchange. Outside `torch.distributed` every function here is the identity.

No exchange is differentiated: on each process a loss is that of the whole batch, and it brings its own gradient with respect to
the local rows, scaled so that DDP's average over the N processes is the gradient of the whole batch's loss. So no collective runs
in a backward pass.

The processes may hold different numbers of rows, as in the last batch of an epoch that is not dropped: each row counts the
same. `sfrik.pretrain` never makes such a batch (it drops what does not fill one); a loop of one's own may.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "all_gather_rows",
    "all_objects",
    "all_reduce_max",
    "all_reduce_sum",
    "all_vectors",
    "barrier",
    "broadcast_from_rank_zero",
    "other_rows",
    "rank",
    "row_counts",
    "world_size",
]


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()


def broadcast_from_rank_zero(value: Any) -> Any:
    """The value that rank 0 has, on every process; one that JSON can hold."""
    return all_objects(value if rank() == 0 else None)[0]


def all_objects(value: Any, device: torch.device | None = None) -> list[Any]:
    """The values of all processes, in the order of their ranks; values that JSON can hold.

    They travel as JSON and not, as PyTorch's own functions have it, as pickles: what comes over a socket must not name what is
    imported.
    """
    if world_size() == 1:
        return [value]
    device = device or (
        torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    )
    text = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=device)
    counts = row_counts(len(text), device)
    return [json.loads(bytes(part.view(-1).tolist())) for part in _together([text[:, None]], counts).split(counts)]


def all_reduce_max(numbers: list[int], device: torch.device) -> list[int]:
    """The largest of each number over the processes: how they agree, in one exchange, on what one of them knows."""
    if world_size() == 1:
        return numbers
    together = torch.tensor(numbers, device=device)
    dist.all_reduce(together, dist.ReduceOp.MAX)
    return together.tolist()


def row_counts(rows: int, device: torch.device) -> list[int]:
    """How many rows each process holds; `rows` are this one's."""
    if world_size() == 1:
        return [rows]
    counts = torch.empty(world_size(), dtype=torch.int64, device=device)
    _gather(counts, torch.tensor([rows], device=device))
    return counts.tolist()


def other_rows(views: Sequence[Tensor], counts: list[int]) -> list[list[Tensor]]:
    """The rows of the other processes, of several views in one exchange and outside of autograd.

    Args:
        views: each [n_local, q]. counts: `row_counts` of them.

    Returns:
        For each view those of the processes before this one and those of the processes after it, without empty ones.
    """
    if world_size() == 1:
        return [[] for _ in views]
    together = _together(views, counts)
    start = sum(counts[: rank()])
    parts = together[:start], together[start + counts[rank()] :]
    columns = [part.split(views[0].shape[1], dim=1) for part in parts if len(part)]
    return [list(of_view) for of_view in zip(*columns, strict=True)]


def all_vectors(x: Tensor) -> Tensor:
    """The vector [k] of each process as a row of [N, k], outside of autograd."""
    if world_size() == 1:
        return x.detach()[None]
    out = x.new_empty((world_size(), len(x)))
    _gather(out.view(-1), x.detach().contiguous())
    return out


def all_gather_rows(views: Sequence[Tensor]) -> list[Tensor]:
    """The rows of all processes, in the order of their ranks, of several views in one exchange and outside of autograd.

    Args:
        views: each [n_local, q].

    Returns:
        Each view as [n, q], n being the sum of `row_counts`; on several processes a part of one tensor, not contiguous.
    """
    views = [view.detach() for view in views]
    if world_size() == 1 or not views:
        return views
    counts = row_counts(len(views[0]), views[0].device)
    return list(_together(views, counts).split(views[0].shape[1], dim=1))


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum over processes, outside of autograd."""
    if world_size() > 1:
        x = x.detach().clone()
        dist.all_reduce(x)
    return x


def _together(views: Sequence[Tensor], counts: list[int]) -> Tensor:
    """All processes' rows of several views side by side, [n, V q]: each view is a part of it and needs no copy of its own."""
    rows, most = torch.cat([view.detach() for view in views], dim=1), max(counts)
    padded = rows if len(rows) == most else torch.nn.functional.pad(rows, (0, 0, 0, most - len(rows)))
    out = rows.new_empty((world_size() * most, rows.shape[1]))
    _gather(out, padded)
    if min(counts) == most:
        return out
    return torch.cat([part[:count] for part, count in zip(out.split(most), counts, strict=True)])


def _gather(out: Tensor, mine: Tensor) -> None:
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # PyTorch before 2.14
    gather(out, mine)
