r"""Sums over pairs of rows of a function of their inner product, with gradients, tile by tile.

.. math::

    S = \sum_{i \text{ local}} \sum_{j} f(\langle z_i, z_j \rangle), \qquad
    g_i = \sum_{j} f'(\langle z_i, z_j \rangle) \, z_j

The MMD, the uniformity of AUH, the normalisers of SimCLR and the covariance penalty of VICReg (as a Gram matrix) have this form.
The Gram matrix G of the local rows is symmetric, so only the tiles of its upper triangle are computed: a tile contributes to its
rows by :math:`f'(G) Z` and to its columns by :math:`f'(G)^\top Z`. On one process this takes 1/2 + 1 matrix products of size
n x n x q, whereas autograd takes 3. A tile of local and remote rows contributes to the local rows only.

f and f' of a tile are evaluated on one thread, a block of rows at a time, unless there are many threads (`row_blocks`).

Memory: a tile and three blocks of it (three tiles where it is not divided, as on a GPU) besides the gradient, and f' of all pairs
of local rows if there are no more local rows than columns.

Legend: n rows over all processes, n_local of them on this process (the local rows), q their dimension.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

__all__ = [
    "LOW_PRECISION",
    "PairFunction",
    "max_inner_product",
    "pair_sum",
    "row_blocks",
    "symmetric_product",
    "tile_shape",
    "tiles",
]

LOW_PRECISION = (torch.bfloat16, torch.float16)
BLOCK = 2**16  # elements: 256 KiB in float32

# maps inner products [rows, columns] to f and f'; may overwrite its argument and return the same tensor twice
PairFunction = Callable[[Tensor], tuple[Tensor, Tensor]]


def tile_shape(device: torch.device) -> tuple[int, int]:
    """Rows and columns of a tile: a size that fits the caches of a CPU, larger on a GPU, where each tile launches kernels."""
    return (256, 2048) if device.type == "cpu" else (1024, 8192)


def tiles(local: Tensor, remote: Sequence[Tensor] = ()) -> Iterator[tuple[slice, Tensor, slice | None]]:
    """Yield tiles that cover each pair of a local row and any row once; for two local rows, (i, j) and (j, i) are one pair.

    Args:
        local: [n_local, ...].
        remote: the rows of other processes, each [any, ...].

    Yields:
        The tile's local rows (a slice); its columns (a tensor of rows); the slice of the columns if they are local rows too,
        equal to the first one in a tile on the diagonal and behind it in any other.
    """
    height, width = tile_shape(local.device)
    for top in range(0, len(local), height):
        rows = slice(top, min(top + height, len(local)))
        yield rows, local[rows], rows
        for left in range(rows.stop, len(local), width):
            columns = slice(left, min(left + width, len(local)))
            yield rows, local[columns], columns
        for other in remote:
            for part in other.split(width):
                yield rows, part, None


@contextmanager
def row_blocks(tile: Tensor, q: int) -> Iterator[list[slice]]:
    """Slices of the rows of a tile of inner products, to evaluate a function on them; within the context on one thread.

    With several threads every elementwise operation ends when the last of them is done. On cores that other processes keep busy
    that is a wait for a time slice: milliseconds, for an operation of microseconds. Blocks stay in the cache of a core, so that
    one thread takes as long for them as two for the whole tile. More threads are faster with the whole tile. It is not divided
    then, unless one thread needs at most about 5 % of the time of the product (q / 1024 threads or fewer). On a GPU the tile is
    the only block.

    Args:
        tile: [rows, columns].
        q: dimension of the rows that were multiplied.
    """
    threads = torch.get_num_threads()
    if tile.device.type != "cpu" or threads > max(2, q // 1024):
        yield [slice(0, len(tile))]
        return
    # one thread sums up to 2**16 values at once and two threads half as many each: a batch of 256 keeps its bits
    height = max(1, BLOCK // min(2, threads) // tile.shape[1])
    torch.set_num_threads(1)
    try:
        yield [slice(top, min(top + height, len(tile))) for top in range(0, len(tile), height)]
    finally:
        torch.set_num_threads(threads)


def _tiles_to_visit(local: Tensor, remote: Sequence[Tensor]) -> Iterable[tuple[slice, Tensor, slice | None]]:
    """The tiles. For fake tensors, whose memory is counted (`sfrik.cost.loss_memory`), two of each shape and the last suffice."""
    if not isinstance(local, FakeTensor):
        return tiles(local, remote)
    *found, last = tiles(local, remote)
    visits: Counter[tuple] = Counter()
    visited = []
    for rows, other, columns in found:
        shape = rows.stop - rows.start, len(other), columns is None, columns == rows
        visits[shape] += 1
        if visits[shape] <= 2:
            visited.append((rows, other, columns))
    return [*visited, last]


def pair_sum(
    local: Tensor,
    remote: Sequence[Tensor],
    function: PairFunction,
    gradient: Tensor | None = None,
    scale: float = 1.0,
    skip_diagonal: bool = False,
) -> Tensor:
    r"""S over the local rows; adds `scale` times their :math:`g_i` to `gradient`.

    Args:
        local: [n_local, q]. Rows in bfloat16 or float16 are multiplied in that precision and summed in float32.
        remote: the rows of other processes, each [any, q].
        function: f and f', called on tiles in float32 or float64.
        gradient: [n_local, q] in float32 or float64, modified in place; None to compute S only.
        scale: factor of the gradient.
        skip_diagonal: leave out the pairs i = j.

    Returns:
        A scalar in float32 or float64.
    """
    low = local.dtype in LOW_PRECISION
    total = torch.zeros((), dtype=torch.float32 if low else local.dtype, device=local.device)
    # f' of all local pairs, if it takes no more memory than the rows: one large product is faster than many small ones
    all_slopes = None if gradient is None or len(local) > local.shape[1] else local.new_empty(len(local), len(local))
    for rows, other, columns in _tiles_to_visit(local, remote):
        tile = slopes = None  # free the previous ones first
        tile = _product(local[rows], other.T)
        on_diagonal = columns == rows
        mirrored = columns is not None and not on_diagonal  # stands for its transpose too
        with row_blocks(tile, local.shape[1]) as blocks:
            value, slopes = _evaluate(function, tile, blocks, skip_diagonal and on_diagonal)
            total += value * 2 if mirrored else value
            if columns is not None and all_slopes is not None:
                all_slopes[rows, columns] = slopes
                if mirrored:
                    all_slopes[columns, rows] = slopes.T
                continue
        if gradient is None:
            continue
        _add_product(gradient[rows], slopes, other, scale)
        if mirrored:
            _add_product(gradient[columns], slopes.T, local[rows], scale)
    if all_slopes is not None and gradient is not None:
        _add_product(gradient, all_slopes, local, scale)
    return total


def max_inner_product(local: Tensor, remote: Sequence[Tensor]) -> Tensor:
    """The largest inner product of a local row with any other row, a scalar."""
    largest = torch.full((), -torch.inf, dtype=local.dtype, device=local.device)
    for rows, other, columns in _tiles_to_visit(local, remote):
        gram = local[rows] @ other.T
        if columns == rows:
            gram.fill_diagonal_(-torch.inf)
        with row_blocks(gram, local.shape[1]) as blocks:
            for block in blocks:
                largest = torch.maximum(largest, gram[block].max())
    return largest


def symmetric_product(rows: Tensor) -> Tensor:
    """`rows.T @ rows`, [q, q], of rows [n, q]. Computes little more than the upper triangle."""
    q = rows.shape[1]
    height, _ = tile_shape(rows.device)
    product = rows.new_empty(q, q)
    for top in range(0, q, height):
        bottom = min(top + height, q)
        torch.mm(rows[:, top:bottom].T, rows[:, top:], out=product[top:bottom, top:])
        product[bottom:, top:bottom] = product[top:bottom, bottom:].T
    return product


def _evaluate(function: PairFunction, tile: Tensor, blocks: list[slice], skip_diagonal: bool) -> tuple[Tensor, Tensor]:
    """The sum of f over a tile, which is overwritten, and f' of it."""
    sums = []
    for block in blocks:
        values, slopes = function(tile[block])
        if skip_diagonal:
            values.diagonal(block.start).zero_()
            slopes.diagonal(block.start).zero_()
        sums.append(values.sum())
        if len(blocks) == 1:
            return sums[0], slopes
        tile[block] = slopes
    return torch.stack(sums).sum(), tile


def _product(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b`, in float32 if they are in low precision."""
    if a.dtype not in LOW_PRECISION:
        return a @ b
    if a.is_cuda and hasattr(torch.ops.aten.mm, "dtype"):  # returns the tensor cores' float32 sums without rounding them
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a @ b).float()


def _add_product(to: Tensor, a: Tensor, b: Tensor, scale: float) -> None:
    """`to += scale * a @ b`, multiplied in the precision of `b`."""
    if b.dtype == to.dtype:
        to.addmm_(a, b, alpha=scale)
    else:
        to.add_(_product(a.to(b.dtype), b), alpha=scale)
