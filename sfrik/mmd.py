r"""Maximum mean discrepancy between embeddings and the uniform distribution on the sphere (section 3 of the paper).

.. math:: \mathrm{MMD}^2 = \frac{1}{n^2} \sum_{i,j} \phi(\langle z_i, z_j \rangle)

The terms that involve the uniform distribution vanish, since the kernel has no term of degree 0. The gradient is known in closed
form, so it is computed together with the value:

.. math:: \frac{\partial\, \mathrm{MMD}^2}{\partial z_i} = \frac{2}{n^2} \sum_j \phi'(\langle z_i, z_j \rangle) \, z_j

Two algorithms compute the same numbers; `choose_cost` picks the cheaper one:

- "gram", for any kernel: the inner products of all pairs, tile by tile (`sfrik.ops.pairwise`),
  at the cost of 1.5 matrix products of size n x n x q.
- "moments", for degrees 1 and 2: these depend on the rows only through their sum and :math:`M = Z^\top Z`, [q, q], since
  :math:`\sum_{i,j} \langle z_i, z_j \rangle^2 = \|M\|_F^2`. This costs 1.5 matrix products of size
  n x q x q and needs no exchange of rows between processes.

With N processes, each computes the gradient of its local rows: 1/N of the work.

Legend: n number of embeddings over all processes, q their dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sfrik.kernels import RotationInvariantKernel
from sfrik.kernels.closed_forms import Tile, horner
from sfrik.kernels.rotation_invariant import check_kernel
from sfrik.kernels.series import laplacian
from sfrik.ops.autograd import attach_gradients, requires_grad
from sfrik.ops.collectives import all_reduce_sum, gather_remote_rows, rank, row_counts, world_size
from sfrik.ops.pairwise import LOW_PRECISION, pair_sum, symmetric_product

__all__ = ["MMD", "Cost", "check_range", "choose_cost", "mmd_to_uniform"]

Cost = Literal["auto", "gram", "moments"]
MAX_HORNER_DEGREE = 4  # series of higher degree are evaluated by Horner's scheme only if that is accurate
MAX_LONG_HORNER_DEGREE = 64
MAX_CANCELLATION = 4.0  # of the terms of a series in Horner's scheme
NEGLIGIBLE = 1 / 8  # of a rounding


def mmd_to_uniform(
    z: Tensor,
    kernel: RotationInvariantKernel,
    unbiased: bool = False,
    cost: Cost = "auto",
    low_precision: bool | None = None,
) -> Tensor:
    r"""Squared MMD between the rows of `z` and the uniform distribution on the sphere.

    Args:
        z: [n, q], rows of norm 1; under `torch.distributed` the rows of this process, and n is over all processes.
        kernel: a kernel of dimension q.
        unbiased: False for the V-statistic, the mean over all pairs, which is the paper's loss and at least 0; True for the
            U-statistic, the mean over :math:`i \ne j`, which may be negative and has mean 0 under the uniform distribution.
        cost: the algorithm: "gram", "moments" (degrees 1 and 2 only), or "auto" for `choose_cost`.
        low_precision: whether rows in bfloat16 or float16 are multiplied in that precision, see `MMD`.

    Returns:
        A scalar in float32 or float64. Differentiable once with respect to `z`.

    Raises:
        ValueError: `z` is no floating-point tensor, has the wrong shape or dimension, only one row, or rows that are not of norm
            1; `cost` is "moments" for a kernel of a higher degree; the kernel's values are beyond the range of the dtype.

    >>> poles = torch.cat([torch.eye(3), -torch.eye(3)])  # mean 0 and covariance I/3: 0 in degrees 1 and 2
    >>> kernel = RotationInvariantKernel((1.0, 40.0), dim=3)
    >>> [round(mmd_to_uniform(z, kernel).item(), 4) for z in (poles, poles[:3], poles[:1].expand(6, 3))]
    [0.0, 0.3333, 41.0]
    """
    check_kernel(kernel)
    if not isinstance(z, Tensor) or not z.is_floating_point():
        raise ValueError(f"z must be a floating-point tensor, got {z.dtype if isinstance(z, Tensor) else type(z).__name__}")
    if z.ndim != 2 or z.shape[1] != kernel.dim:
        raise ValueError(f"z must have shape [n, {kernel.dim}] (the kernel's dim), got {tuple(z.shape)}")
    if z.shape[0] * world_size() < 2:
        raise ValueError(f"the MMD needs at least two rows, got {'one' if len(z) else 'none'}")
    deviation = (z.detach().float().norm(dim=1) - 1).abs().max().item()
    if not deviation <= 0.01:  # rounding to bfloat16 changes a norm by up to 0.4 %
        raise ValueError(
            f"rows of z must have norm 1 (the largest deviation is {deviation:.3g}): use torch.nn.functional.normalize"
        )
    mmd = MMD(kernel, unbiased, cost, low_precision)
    counts = row_counts(len(z), z.device)
    rows = z.detach().to(mmd.compute_dtype(z.dtype, z.device))
    sum_dtype = torch.float32 if z.dtype in LOW_PRECISION else z.dtype
    gradient = torch.zeros_like(rows, dtype=sum_dtype) if requires_grad([z]) else None
    with torch.autocast(z.device.type, enabled=False):
        value = all_reduce_sum(mmd.partial_values([rows], counts, [gradient], 1.0)[0])
    return attach_gradients(value, [z], None if gradient is None else [gradient.to(z.dtype)])


def check_range(kernel: RotationInvariantKernel, dtype: torch.dtype) -> None:
    """Raise a ValueError unless the largest value and the largest slope of the kernel's series are finite in this dtype."""
    largest = max(sum(kernel.coefficients), _largest_slope(kernel))
    if largest > torch.finfo(dtype).max:
        raise ValueError(
            f"the kernel's values reach {largest:.2g}, beyond the range of {dtype}: take a wider kernel (a smaller scale, a "
            "longer time) or smaller coefficients"
        )


def choose_cost(n: int, kernel: RotationInvariantKernel) -> Literal["gram", "moments"]:
    """The algorithm with fewer multiplications for n rows: "moments" if the kernel has degrees 1 and 2 only and q < n.

    >>> [choose_cost(n, RotationInvariantKernel((1.0, 40.0), dim=512)) for n in (256, 1024)]
    ['gram', 'moments']
    """
    return "moments" if kernel.dim < n and not any(kernel.coefficients[2:]) else "gram"


@dataclass(frozen=True)
class MMD:
    r"""The squared MMD of rows of norm 1 to the uniform distribution, with its gradient, outside of autograd.

    With low precision, rows in bfloat16 or float16 are multiplied as they are; on a CPU the products and the slopes
    :math:`\phi'` are rounded to that precision as well. Sums are in float32. With the unit roundoff :math:`\varepsilon = 2^{-8}`
    (bfloat16) or :math:`2^{-11}` (float16), against the unrounded rows:

    - The error of the gradient along the sphere is at most 1.1 :math:`\varepsilon` times the norm of the whole gradient, of which
      the pairs i = j are left out: they have no gradient along the sphere. Relative to the part along the sphere, near the
      uniform distribution, it is at most :math:`1.1 \, \varepsilon \sqrt{1 + n / q}`. With weights 1, 40, 40 it measures
      1.1 :math:`\varepsilon` at n = 256, q = 512; 0.9 at q = 8192; 1.4 at n = 2048, q = 512. This is for kernels of which
      :math:`\phi'` changes little where an inner product changes by :math:`1/\sqrt{q}`. For narrow ones it is larger: with the
      Gaussian kernel of scale 10 it is 2.5 :math:`\varepsilon` at n = 64, q = 128. Float16 loses slopes below :math:`2^{-24}` of
      :math:`\phi'(1)`, which are most of the slopes of a Gaussian kernel whose scale is above 8: take bfloat16 or float32.
    - The error of the value is at most :math:`3 \sqrt{2/q} \, \varepsilon \, \phi'(1) / \phi(1)` of it, three times its root mean
      square if all rows are equal.

    Args:
        kernel: a kernel of dimension q.
        unbiased: whether the mean is over :math:`i \ne j` only.
        cost: the algorithm. Low precision has an effect in "gram" only.
        low_precision: whether rows in bfloat16 or float16 are multiplied in that precision instead of float32. None: on a GPU
            only.
    """

    kernel: RotationInvariantKernel
    unbiased: bool = False
    cost: Cost = "auto"
    low_precision: bool | None = None

    def __post_init__(self) -> None:
        check_kernel(self.kernel)
        if self.cost not in ("auto", "gram", "moments"):
            raise ValueError(f'cost must be "auto", "gram" or "moments", got {self.cost!r}')
        if self.cost == "moments" and any(self.kernel.coefficients[2:]):
            raise ValueError(f'cost "moments" is for degrees 1 and 2; the kernel has degree {self.kernel.degree}: use "gram"')

    def compute_dtype(self, dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """The dtype in which rows that are given in `dtype` are multiplied."""
        low = device.type == "cuda" if self.low_precision is None else self.low_precision
        return torch.float32 if dtype in LOW_PRECISION and not low else dtype

    def partial_values(
        self, views: Sequence[Tensor], counts: list[int], gradients: Sequence[Tensor | None], weight: float
    ) -> list[Tensor]:
        """This process's share of the value for each view; the shares of all processes add up to the value.

        Args:
            views: each [n_local, q], rows of norm 1.
            counts: number of rows on each process (`sfrik.ops.collectives.row_counts`).
            gradients: for each view a tensor [n_local, q] to which the gradient is added, times `weight` and the number of
                processes N (by which DDP's average divides); or None.
            weight: factor of the gradient.
        """
        n = sum(counts)
        cost = choose_cost(n, self.kernel) if self.cost == "auto" else self.cost
        pairs = n * (n - 1) if self.unbiased else n * n
        scale = 2 * weight * world_size() / pairs
        if cost == "moments":
            return self._by_moments(views, n, pairs, gradients, scale)
        tile = _tile_function(self.kernel, views[0].dtype)
        share = tile.constant * counts[rank()] / n
        if tile.diagonal is not None and not self.unbiased:
            share += tile.diagonal * counts[rank()] / pairs
        skip = self.unbiased or tile.diagonal is not None
        values = []
        for z, remote, gradient in zip(views, gather_remote_rows(views, counts), gradients, strict=True):
            total = pair_sum(z, remote, tile.function, gradient, scale * tile.slope_unit, skip_diagonal=skip)
            values.append(total * (tile.unit / pairs) + share)
        return values

    def _by_moments(
        self, views: Sequence[Tensor], n: int, pairs: int, gradients: Sequence[Tensor | None], scale: float
    ) -> list[Tensor]:
        q = self.kernel.dim
        first, second = (*self.kernel.coefficients, 0.0)[:2]
        square = second * q / (q - 1)  # coefficient of t^2, since P_2(q; t) = (q t^2 - 1) / (q - 1)
        rows = [view.float() if view.dtype in LOW_PRECISION else view for view in views]
        squared_norms = [torch.linalg.vector_norm(z, dim=1).square() for z in rows]
        excesses = [(squares - 1).sum().expand(1, q) for squares in squared_norms]
        sums = [torch.cat([symmetric_product(z), z.sum(dim=0)[None], excess]) for z, excess in zip(rows, excesses, strict=True)]
        values = []
        for z, squares, moments, gradient in zip(rows, squared_norms, all_reduce_sum(torch.stack(sums)), gradients, strict=True):
            moment, total, excess = moments[:-2], moments[-2], moments[-1, 0]
            if gradient is not None:
                gradient.addmm_(z, moment, alpha=2 * square * scale).add_(total, alpha=first * scale)
                if self.unbiased:
                    gradient.addcmul_(z, (first + 2 * square * squares)[:, None], value=-scale)
            # |M|^2 = |M - c I|^2 + T^2 / q with c = trace(M) / q and T = n + excess: the n^2 / q, in which the rest would be lost
            # to rounding, and the constant of P_2 cancel
            moment.diagonal().sub_(moment.diagonal().mean())
            value = first * total.dot(total) + square * torch.linalg.vector_norm(moment).square()
            value += second / (q - 1) * (excess * (2 * n + excess) + (n if self.unbiased else 0))
            value /= world_size()
            if self.unbiased:
                value -= first * squares.sum() + square * squares.dot(squares)
            values.append(value / pairs)
        return values


@lru_cache(maxsize=64)
def _tile_function(kernel: RotationInvariantKernel, dtype: torch.dtype) -> Tile:
    """The evaluation of the kernel on tiles of inner products of rows in this dtype.

    Raises:
        ValueError: its values are beyond the range of the tiles' dtype.
    """
    check_range(kernel, torch.promote_types(dtype, torch.float32))
    tile = kernel.closed_form.tile(dtype) if kernel.closed_form else _series_tile(kernel, dtype)
    if dtype in LOW_PRECISION and tile.diagonal is None:  # phi'(1) z_i has no part along the sphere, but its rounding has
        tile = tile._replace(diagonal=kernel(torch.ones((), dtype=torch.float64)).item() - tile.constant)
    return tile


def _series_tile(kernel: RotationInvariantKernel, dtype: torch.dtype) -> Tile:
    # in low precision the slopes are divided by the largest one, phi'(1)
    unit = _largest_slope(kernel) if dtype in LOW_PRECISION else 1.0
    constant, *coefficients = _monomials(kernel, dtype)
    if coefficients:
        return Tile(horner([c / unit for c in coefficients]), constant, unit, unit)
    return Tile(lambda t: (kernel(t).div_(unit), kernel.derivative(t).div_(unit)), 0.0, unit, unit)


def _monomials(kernel: RotationInvariantKernel, dtype: torch.dtype) -> tuple[float, ...]:
    r"""The coefficients :math:`c_0, c_1, \dots` for Horner's scheme, as far as they matter in this dtype.

    (0.0,) where the Legendre recurrence is more accurate: the sum of :math:`k |c_k|`, which the rounding of Horner's scheme is
    proportional to, is far above the largest slope. A series that was cut keeps the recurrence too, so that the rounding of runs
    that were recorded with it does not change.
    """
    if kernel.degree <= MAX_HORNER_DEGREE:
        return kernel.monomials
    if kernel.degree > MAX_LONG_HORNER_DEGREE or kernel.left_out:
        return (0.0,)
    monomials = np.asarray(kernel.monomials)
    slopes = np.arange(len(monomials)) * np.abs(monomials)
    if not slopes.sum() <= MAX_CANCELLATION * _largest_slope(kernel):
        return (0.0,)
    eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    later = np.cumsum(slopes[::-1])[::-1] - slopes  # what follows each degree
    return tuple(monomials[: 1 + int((later <= NEGLIGIBLE * eps * _largest_slope(kernel)).argmax())].tolist())


def _largest_slope(kernel: RotationInvariantKernel) -> float:
    """phi'(1) of a series."""
    return float(np.dot(kernel.coefficients, laplacian(kernel.degree, kernel.dim))) / (kernel.dim - 1)
