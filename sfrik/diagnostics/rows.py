r"""Embeddings as rows: checks, normalisation, and the mean of :math:`P_l` over the other rows.

Legend: z embeddings of n images, [n, q]; :math:`P_l(q; \cdot)` the Legendre polynomial of degree l in dimension q.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from sfrik.kernels.polynomials import legendre_sequence
from sfrik.ops.finite import check_finite_rows
from sfrik.ops.pairwise import symmetric_product, tiles

__all__ = ["checked", "normalised", "row_means", "scaled", "unit_rows"]

LEAST, MOST = 1e-10, 1e15  # entries whose norm is computed as they are: `F.normalize` adds 1e-12, and squares overflow float32


def checked(z: Tensor, name: str = "z", least: int = 1, least_dim: int = 1) -> Tensor:
    """The embeddings, if they are a finite matrix of at least `least` images and `least_dim` dimensions.

    Raises:
        ValueError: they are not.
    """
    if not isinstance(z, Tensor):
        raise ValueError(f"{name} must be embeddings [n, q], a torch.Tensor, got {type(z).__name__}")
    if z.ndim != 2 or len(z) < least or z.shape[1] < least_dim:
        bounds = f"n at least {least} and q at least {least_dim}"
        raise ValueError(f"{name} must be embeddings [n, q], {bounds}, got shape {tuple(z.shape)}")
    check_finite_rows(z, name)
    return z


def unit_rows(z: Tensor) -> Tensor:
    """The rows divided by their norms, in float64 and without gradient, [n, q]; rows that are 0 stay 0."""
    z = z.detach().double()
    # divided by the largest entry first, since the square of 1e200 or 1e-200 is out of range
    return F.normalize(z / z.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(z.dtype).tiny), dim=1)


def normalised(z: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows divided by their norms, in `dtype`, float32 or float64, [n, q]; rows that are 0 stay 0."""
    return F.normalize(scaled(z.to(torch.promote_types(z.dtype, dtype)), dim=1).to(dtype), dim=1)


def scaled(z: Tensor, dim: int | tuple[int, int]) -> Tensor:
    """Divide z by its largest absolute value over `dim` wherever that is not between `LEAST` and `MOST`, nor 0."""
    largest = z.abs().amax(dim=dim, keepdim=True)
    far = (largest > 0) & ((largest < LEAST) | (largest > MOST))
    return z / torch.where(far, largest, 1.0) if far.any() else z  # as they are, ordinary embeddings keep their rounding


def row_means(z: Tensor, degrees: Sequence[int]) -> Tensor:
    r"""The mean over :math:`j \ne i` of :math:`P_l(q; \langle z_i, z_j \rangle)` for each degree and row, [degrees, n].

    Degrees 1 and 2 of more rows than dimensions are computed from the moments of the rows, the others in tiles of the Gram
    matrix: there is never a matrix of n x n.

    Args:
        z: `unit_rows`, [n, q], n at least 2.
        degrees: distinct degrees l, at least 1.
    """
    if not degrees:
        return z.new_zeros(0, len(z))
    sums = _sums_by_moments(z, degrees) if max(degrees) <= 2 and z.shape[1] < len(z) else _sums_by_tiles(z, degrees)
    return sums / (len(z) - 1)


def _sums_by_moments(z: Tensor, degrees: Sequence[int]) -> Tensor:
    n, q = z.shape
    squares = z.square().sum(dim=1)  # 1, but 0 for rows that are 0
    sums = [z @ z.sum(dim=0) - squares]
    if 2 in degrees:
        second = (z @ symmetric_product(z)).mul_(z).sum(dim=1) - squares.square()
        sums.append((q * second - (n - 1)) / (q - 1))  # P_2(q; t) = (q t^2 - 1) / (q - 1)
    return torch.stack([sums[degree - 1] for degree in degrees])


def _sums_by_tiles(z: Tensor, degrees: Sequence[int]) -> Tensor:
    n, q = z.shape
    sums = {degree: z.new_zeros(n) for degree in degrees}
    for rows, other, columns in tiles(z):
        polynomials = legendre_sequence(z[rows] @ other.T, q)
        for degree, values in enumerate(islice(polynomials, max(degrees) + 1)):
            if degree not in sums:
                continue
            sums[degree][rows] += values.sum(dim=1)
            if columns == rows:
                sums[degree][rows] -= values.diagonal()
            else:  # stands for its transpose too
                sums[degree][columns] += values.sum(dim=0)
    return torch.stack(list(sums.values()))
