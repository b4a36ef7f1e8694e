"""Bytes that an objective needs at its peak, by formula: what `sfrik.objectives` holds at a time, beyond the embeddings.

Counted are the tensors of the batch's size: copies of the rows and their gradient, the rows of other processes, tiles, moments,
projections. What PyTorch's operations allocate inside themselves is left out. tests/cost/test_memory.py compares the formulas
with counts.

Legend: n rows over all processes, m = n/N of this one, q their dimension, V views, R of them regularised, M random directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sfrik.mmd import MAX_HORNER_DEGREE, choose_cost
from sfrik.objectives import AUH, SFRIK, SIGReg, SimCLR, VICReg
from sfrik.objectives.base import Objective
from sfrik.ops.pairwise import tile_shape

__all__ = ["Case", "loss_peak"]

FLOAT, HALF = 4, 2  # bytes


@dataclass(frozen=True)
class Case:
    """n, q and N; the views and which of them are compared; whether embeddings come in half precision; "cuda" or "cpu"."""

    n: int
    q: int
    processes: int = 1
    views: int = 2
    anchors: Sequence[int] = (0, 1)
    regularise: str = "all"
    half: bool = False
    device: str = "cuda"

    @property
    def m(self) -> int:
        return self.n // self.processes

    @property
    def regularised(self) -> int:
        return self.views if self.regularise == "all" else len(self.anchors)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Of views that are aligned."""
        return list(dict.fromkeys((min(a, v), max(a, v)) for a in self.anchors for v in range(self.views) if v != a))

    @property
    def row_bytes(self) -> int:
        """Of the rows of one view in float32."""
        return FLOAT * self.m * self.q

    def others(self, views: int, size: int = FLOAT) -> int:
        """Rows of all processes, which are there in one piece; none on one process."""
        return size * views * self.n * self.q if self.processes > 1 else 0

    def sent(self, views: int, size: int = FLOAT) -> int:
        """Own rows side by side, while they are gathered."""
        return size * views * self.m * self.q if self.processes > 1 else 0


def loss_peak(objective: Objective, case: Case) -> float:
    """Bytes at the peak of the forward pass, which computes the gradient too; the embeddings themselves are left out."""
    count = next(count for kind, count in COUNTS.items() if isinstance(objective, kind))
    in_full = case.views * case.row_bytes if case.half else 0  # the embeddings in float32
    return in_full + count(objective, case)


def _of_sfrik(objective: SFRIK, case: Case) -> float:
    rows = case.views * case.row_bytes  # normalised
    gradient = case.views * case.row_bytes
    aligned = rows + gradient + _differences(case)
    low = case.half and case.device != "cpu"
    if objective.sliced:
        # of a view: the recurrence of the polynomials and of their derivatives, and a sum over the degrees
        made = (5, 7, 7, 8)[min(objective.kernel.degree, 4) - 1]
        return max(aligned, rows + gradient + _projections(case, objective.sliced.slices, made + (case.regularised > 1)))
    size = HALF if low else FLOAT
    rounded = HALF * case.regularised * case.m * case.q if low else 0
    if choose_cost(case.n, objective.kernel) == "moments":
        full = case.regularised * case.row_bytes if low else 0
        sums = FLOAT * case.q * (case.q + 1)  # and what is stacked or exchanged
        return max(aligned, rows + gradient + rounded + full + 2 * case.regularised * sums)
    # inner products, values and slopes; the Legendre series has terms besides
    made = 3 if objective.kernel.degree <= MAX_HORNER_DEGREE else 8
    meet = max(case.sent(case.regularised, size), _tiles(case, made, low))
    return max(aligned, rows + gradient + rounded + case.others(case.regularised, size) + meet)


def _of_auh(objective: AUH, case: Case) -> float:
    rows = case.views * case.row_bytes  # normalised
    meeting = case.others(case.regularised) + max(
        case.sent(case.regularised), case.regularised * case.row_bytes + _tiles(case, 1)
    )
    new = case.regularised < case.views and len(case.pairs) < case.views  # each pair brings a view without a gradient
    differences = 1 if len(case.pairs) == 1 or new else 2  # one and that of the pair before
    return rows + max(meeting, (case.views + differences) * case.row_bytes)


def _of_simclr(objective: SimCLR, case: Case) -> float:
    """The rows of two views are one batch of 2 m; their inner products are kept where they fit, else taken again."""
    there = case.views * case.row_bytes + case.others(case.views)
    sizes = [FLOAT * rows * columns for rows, columns, _ in _shapes(2 * case.m, 2 * (case.n - case.m), case.device)]
    if (2 * case.m + 2 * (2 * case.n - 2 * case.m)) / 2 <= 2 * case.q:
        left = [sum(sizes[max(0, k - 1) :]) for k in range(len(sizes))]  # kept, with the weights of the tile before
        tiles = max(kept + size for kept, size in zip(left, sizes, strict=True))
    else:  # two of logits or of weights at a time, and one of the other
        tiles = max(a + b for a, b in zip([0, *sizes], sizes, strict=False)) + max(sizes)
    peak, touched = 0.0, set()
    for pair in case.pairs:
        # both views side by side and the gradient of the pair, besides the gradients of the views of the pairs before
        peak = max(peak, (4 + len(touched)) * case.row_bytes + tiles)
        touched |= set(pair)
    return there + max(case.sent(case.views), peak)


def _of_vicreg(objective: VICReg, case: Case) -> float:
    gradient = case.views * case.row_bytes
    aligned = gradient + _differences(case)
    centred = (2 if case.regularised > 1 else 1) * case.row_bytes  # of a view, and of the one before
    if case.q > case.n:
        meet = max(case.sent(case.regularised), centred, case.row_bytes + _tiles(case, 2))
        return max(aligned, gradient + case.others(case.regularised) + meet)
    matrices = (2 if case.processes > 1 else 1) * FLOAT * case.q**2
    return max(aligned, gradient + max(centred, case.row_bytes + matrices))


def _of_sigreg(objective: SIGReg, case: Case) -> float:
    gradient = case.views * case.row_bytes
    slices = objective.statistic.slices
    statistics = FLOAT * 2 * 16 * case.regularised * slices  # real and imaginary parts at 8 points, and what is summed
    return gradient + max(_differences(case), _projections(case, slices, 3) + statistics)


COUNTS: dict[type[Objective], Callable[[Any, Case], float]] = {
    SFRIK: _of_sfrik,
    AUH: _of_auh,
    SimCLR: _of_simclr,
    VICReg: _of_vicreg,
    SIGReg: _of_sigreg,
}


def _differences(case: Case) -> float:
    """Beside the gradient of all views: that of a pair is made of its difference, which with two views becomes part of it."""
    spare = 0 if len(case.pairs) == 1 else 1 if len(case.pairs) < case.views else 2
    return spare * case.row_bytes


def _projections(case: Case, slices: int, made: int) -> float:
    """Directions [q, M], the rows of all views on them [m, M], and so many more of that size for one view."""
    return FLOAT * slices * (case.q + (case.regularised + made) * case.m)


def _tiles(case: Case, made: int, low: bool = False) -> float:
    """What `pair_sum` has besides rows and gradient: `made` tiles at a time, and the slopes of local rows if m <= q.

    In low precision the slopes are rounded, and their product with rows is a copy of it before it is added.
    """
    m, n, q = case.m, case.n, case.q
    whole = m <= q
    product = FLOAT * q if low else 0
    peak = last = 0
    for rows, columns, own in _shapes(m, n - m, case.device):
        tile = rows * columns
        added = 0 if own and whole else max(rows, columns) if own else rows  # rows of the gradient
        rounded = (2 * FLOAT + HALF) * tile + added * product if low and added else 0
        peak, last = max(peak, FLOAT * made * tile, rounded), tile
    if not whole:
        return peak
    return (HALF if low else FLOAT) * m * m + max(peak, 2 * FLOAT * last + m * product if low else 0)


def _shapes(own: int, others: int, device: str) -> list[tuple[int, int, bool]]:
    """Of the tiles of `sfrik.ops.pairwise.tiles`: rows, columns, whether these are own rows too."""
    height, width = tile_shape(torch.device(device))
    shapes = []
    for lo in range(0, own, height):
        rows = min(height, own - lo)
        shapes += [(rows, columns, True) for columns in (rows, *_split(own - lo - rows, width))]
        shapes += [(rows, columns, False) for columns in _split(others, width)]
    return shapes


def _split(count: int, size: int) -> list[int]:
    return [min(size, count - at) for at in range(0, count, size)]
