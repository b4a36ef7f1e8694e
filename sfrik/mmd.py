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
from typing import Literal

import torch
from torch import Tensor

from sfrik.kernels import RotationInvariantKernel
from sfrik.ops.autograd import attach_gradients, requires_grad
from sfrik.ops.collectives import all_reduce_sum, gather_remote_rows, rank, row_counts, world_size
from sfrik.ops.pairwise import LOW_PRECISION, PairFunction, pair_sum, symmetric_product

__all__ = ["MMD", "Cost", "choose_cost", "mmd_to_uniform"]

Cost = Literal["auto", "gram", "moments"]
MAX_HORNER_DEGREE = 4  # kernels of higher degree are evaluated by the Legendre recurrence instead of Horner's scheme


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
        ValueError: `z` has the wrong shape or dimension, only one row, or rows that are not of norm 1; `cost` is "moments" for a
            kernel of a higher degree.

    >>> poles = torch.cat([torch.eye(3), -torch.eye(3)])  # mean 0 and covariance I/3: 0 in degrees 1 and 2
    >>> kernel = RotationInvariantKernel((1.0, 40.0), dim=3)
    >>> [round(mmd_to_uniform(z, kernel).item(), 4) for z in (poles, poles[:3], poles[:1].expand(6, 3))]
    [0.0, 0.3333, 41.0]
    """
    if z.ndim != 2 or z.shape[1] != kernel.dim:
        raise ValueError(f"z must have shape [n, {kernel.dim}] (the kernel's dim), got {tuple(z.shape)}")
    if z.shape[0] * world_size() < 2:
        raise ValueError("the MMD needs at least two rows, got one")
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
    :math:`\phi'` are rounded to that precision as well. Sums are in float32. With :math:`\varepsilon = 2^{-8}` (bfloat16) or
    :math:`2^{-11}` (float16) the error is at most :math:`\varepsilon / 10` of the value and :math:`4 \varepsilon` of the gradient
    along the sphere (tests/test_mmd.py), largest near the uniform distribution, where the gradient is small.

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
        function, constant, unit = _tile_function(self.kernel, views[0].dtype in LOW_PRECISION)
        values = []
        for z, remote, gradient in zip(views, gather_remote_rows(views, counts), gradients, strict=True):
            total = pair_sum(z, remote, function, gradient, scale * unit, skip_diagonal=self.unbiased)
            values.append(total * (unit / pairs) + constant * counts[rank()] / n)
        return values

    def _by_moments(
        self, views: Sequence[Tensor], n: int, pairs: int, gradients: Sequence[Tensor | None], scale: float
    ) -> list[Tensor]:
        q = self.kernel.dim
        first, second = (*self.kernel.coefficients, 0.0)[:2]
        square = second * q / (q - 1)  # coefficient of t^2, since P_2(q; t) = (q t^2 - 1) / (q - 1)
        rows = [view.float() if view.dtype in LOW_PRECISION else view for view in views]
        sums = torch.stack([torch.cat([symmetric_product(z), z.sum(dim=0)[None]]) for z in rows])
        values = []
        for z, moments, gradient in zip(rows, all_reduce_sum(sums), gradients, strict=True):
            moment, total = moments[:-1], moments[-1]
            value = (first * total.dot(total) + square * torch.linalg.vector_norm(moment).square()) / world_size()
            squared_norms = torch.linalg.vector_norm(z, dim=1).square()
            if self.unbiased:
                value -= first * squared_norms.sum() + square * squared_norms.dot(squared_norms)
            if gradient is not None:
                gradient.addmm_(z, moment, alpha=2 * square * scale).add_(total, alpha=first * scale)
                if self.unbiased:
                    gradient.addcmul_(z, (first + 2 * square * squared_norms)[:, None], value=-scale)
            values.append(value / pairs - second / (q - 1) / world_size())
        return values


def _tile_function(kernel: RotationInvariantKernel, low: bool) -> tuple[PairFunction, float, float]:
    r"""f and f' on a tile, and the constants c and u such that :math:`\phi(t) = c + u f(t)`.

    u is 1; in low precision it is the largest slope :math:`\phi'(1)`, so that f' is at most 1 when it is rounded to float16.
    """
    unit = float(kernel.derivative(torch.ones((), dtype=torch.float64))) if low else 1.0
    if kernel.degree > MAX_HORNER_DEGREE:
        return (lambda t: (kernel(t).div_(unit), kernel.derivative(t).div_(unit))), 0.0, unit
    constant, *rest = kernel.monomials
    coefficients = [c / unit for c in rest]  # of t, t^2, ...

    def horner(t: Tensor) -> tuple[Tensor, Tensor]:
        highest, *lower = reversed(coefficients)
        values, slopes = t * highest, None
        for c in lower:
            values.add_(c)
            slopes = torch.add(values, t, alpha=highest) if slopes is None else slopes.mul_(t).add_(values)
            values.mul_(t)
        return values, torch.full_like(t, highest) if slopes is None else slopes

    return horner, constant, unit
