r"""Sums over pairs of rows of a function of their inner product, and the gradient of such sums, tile by tile.

    S = sum_{i own, j all} f(<z_i, z_j>),        g_i = sum_j f'(<z_i, z_j>) z_j

Everything that compares each row with each other is of this form: the MMD, AUH's uniformity, SimCLR's normalisers, VICReg's
covariance penalty by its Gram matrix. Own rows are compared with each other in the upper triangle of tiles alone: a tile G
of the Gram matrix serves both its rows (f'(G) Z) and its columns (f'(G)^T Z). On one process that is 1/2 + 1 products of
n x n x q, where autograd takes 3; against the rows of other processes a tile serves the own rows alone. Memory is that of
three tiles beside the gradient, and where there are no more own rows than columns the slopes of all their pairs.

Legend: n rows over all processes, q their dimension, own rows: those of this process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["LOW", "Function", "largest_pair", "pair_sum", "symmetric_product", "tile_shape", "tiles"]

LOW = (torch.bfloat16, torch.float16)

# inner products [rows, columns] -> f and f' of them; may write into them, and return one tensor for both
Function = Callable[[Tensor], tuple[Tensor, Tensor]]


def tile_shape(device: torch.device) -> tuple[int, int]:
    """Rows and columns of a tile: on a CPU what stays in its caches; more on a GPU, where each tile costs kernel starts."""
    return (256, 2048) if device.type == "cpu" else (1024, 8192)


def tiles(own: Tensor, others: Sequence[Tensor] = ()) -> Iterator[tuple[slice, Tensor, slice | None]]:
    """The tiles that together hold each pair of an own row with any row once; of two own rows, once in all.

    Yields:
        The own rows of the tile; the rows that they meet; where these are own rows too, which: equal to the first on the
        diagonal, after them elsewhere.
    """
    height, width = tile_shape(own.device)
    for lo in range(0, len(own), height):
        rows = slice(lo, min(lo + height, len(own)))
        yield rows, own[rows], rows
        for left in range(rows.stop, len(own), width):
            columns = slice(left, min(left + width, len(own)))
            yield rows, own[columns], columns
        for other in others:
            for part in other.split(width):
                yield rows, part, None


def pair_sum(
    own: Tensor,
    others: Sequence[Tensor],
    function: Function,
    gradient: Tensor | None = None,
    scale: float = 1.0,
    skip_diagonal: bool = False,
) -> Tensor:
    """S of the own rows, and `scale` times their g_i added to `gradient`.

    Args:
        own: [n_local, q]; in bfloat16 or float16 the products are taken in it, and summed up in float32.
        others: the rows of other processes, each [any, q].
        function: f and f'; it gets tiles in float32 at least.
        gradient: [n_local, q] in float32 at least, or None where only S is wanted.
        skip_diagonal: leave out the pairs of a row with itself.

    Returns:
        A scalar in float32 at least.
    """
    low = own.dtype in LOW
    total = torch.zeros((), dtype=torch.float32 if low else own.dtype, device=own.device)
    # f' of all pairs of own rows, where that takes no more memory than the rows: one large product is faster than many small
    all_slopes = None if gradient is None or len(own) > own.shape[1] else own.new_empty(len(own), len(own))
    for rows, met, columns in tiles(own, others):
        values = slopes = None  # let go of the tile before
        values, slopes = function(_product(own[rows], met.T))
        on_diagonal = columns == rows
        if on_diagonal and skip_diagonal:
            values.fill_diagonal_(0)
            slopes.fill_diagonal_(0)
        twice = columns is not None and not on_diagonal  # the mirror image of the tile
        total += values.sum() * 2 if twice else values.sum()
        if gradient is None:
            continue
        if columns is not None and all_slopes is not None:
            all_slopes[rows, columns] = slopes
            if twice:
                all_slopes[columns, rows] = slopes.T
            continue
        _add_product(gradient[rows], slopes, met, scale)
        if twice:
            _add_product(gradient[columns], slopes.T, own[rows], scale)
    if all_slopes is not None and gradient is not None:
        _add_product(gradient, all_slopes, own, scale)
    return total


def largest_pair(own: Tensor, others: Sequence[Tensor]) -> Tensor:
    """The largest inner product of an own row with another row than itself, a scalar."""
    largest = torch.full((), -torch.inf, dtype=own.dtype, device=own.device)
    for rows, met, columns in tiles(own, others):
        gram = own[rows] @ met.T
        if columns == rows:
            gram.fill_diagonal_(-torch.inf)
        largest = torch.maximum(largest, gram.max())
    return largest


def symmetric_product(rows: Tensor) -> Tensor:
    """`rows.T @ rows` [q, q] of rows [n, q], by little more than half of the multiplications."""
    q = rows.shape[1]
    height, _ = tile_shape(rows.device)
    product = rows.new_empty(q, q)
    for lo in range(0, q, height):
        hi = min(lo + height, q)
        torch.mm(rows[:, lo:hi].T, rows[:, lo:], out=product[lo:hi, lo:])
        product[hi:, lo:hi] = product[lo:hi, hi:].T
    return product


def _product(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b`, of low precision in float32."""
    if a.dtype not in LOW:
        return a @ b
    if a.is_cuda and hasattr(torch.ops.aten.mm, "dtype"):  # the sums leave the tensor cores as they are, in float32
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a @ b).float()


def _add_product(to: Tensor, a: Tensor, b: Tensor, scale: float) -> None:
    """`to += scale * a @ b`, the product taken in the precision of b."""
    if b.dtype == to.dtype:
        to.addmm_(a, b, alpha=scale)
    else:
        to.add_(_product(a.to(b.dtype), b), alpha=scale)
