"""Peak memory of an objective, counted by running its own code on fake tensors: shapes without data, no GPU, no allocation.

Every tensor that an operation returns is counted; temporary memory inside an operation is not.

Legend: n rows over all processes, N processes, q dimension of the embeddings, V views.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sfrik.objectives import AUH, SFRIK, SIGReg, SimCLR
from sfrik.objectives.base import Objective
from sfrik.ops.collectives import simulated_processes

__all__ = ["MemoryCounter", "loss_peak"]

# Rows per process up to which the code is run. SimCLR and AUH's entropy visit every tile, the others two of each shape.
MOST_ROWS, MOST_ROWS_SIMCLR = 65536, 8192


class MemoryCounter(TorchDispatchMode):
    """A context that counts the bytes of the tensors allocated in it: `now`, and `peak`, the most at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak, self._known = 0, 0, weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default and any(x.fake_mode for x in args if hasattr(x, "fake_mode")):
            return 1  # a fake tensor has no value: any finite one takes the objectives' code through
        old = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in old and x.untyped_storage() not in self._known:
                storage = x.untyped_storage()
                self._known.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._free, storage.nbytes())
        return out

    def _free(self, size: int) -> None:
        self.now -= size


def loss_peak(
    objective: Objective,
    n: int,
    q: int,
    processes: int = 1,
    views: int = 2,
    anchors: Sequence[int] = (0, 1),
    regularise: str = "all",
    half: bool = False,
    device: str = "cuda",
) -> float:
    """Bytes at the peak of an objective's forward pass, which computes the gradient too; without the embeddings themselves.

    Above `MOST_ROWS` rows per process the peak is scaled linearly. The error is about 3 % for q >= 2048 (7 % at n = 2**20 and
    q = 65536 on 8 processes), and larger for SimCLR with few dimensions (47 % at 262,144 rows and q = 512).

    Args:
        n: rows over all processes, a multiple of `processes`.
        half: whether the embeddings are in bfloat16.
        device: "cuda" or "cpu"; it decides the size of the tiles and whether SFRIK multiplies in bfloat16.
    """
    local = n // processes
    every_tile = isinstance(objective, SimCLR) or (isinstance(objective, AUH) and objective.entropy)
    counted = min(local, MOST_ROWS_SIMCLR if every_tile else MOST_ROWS)
    if isinstance(objective, SIGReg) or (isinstance(objective, SFRIK) and objective.sliced):
        device = "cpu"  # random directions come from the device's generator, which needs the device; the memory is the same
    dtype = torch.bfloat16 if half else torch.float32
    with FakeTensorMode(), simulated_processes(processes):
        embeddings = [torch.empty(counted, q, dtype=dtype, device=device, requires_grad=True) for _ in range(views)]
        with MemoryCounter() as memory:
            objective(embeddings, anchors=anchors, regularise=regularise)
    return memory.peak * local / counted
