r"""Maximum mean discrepancy between embeddings and the uniform law on the sphere (section 3 of the paper).

    MMD^2 = (1/n^2) sum_{i,j} phi(<z_i, z_j>)

The terms that involve the uniform law vanish since the kernel has no degree 0. The gradient is known in closed form,

    d MMD^2 / d z_i = (2/n^2) sum_j phi'(<z_i, z_j>) z_j,

so value and gradient are computed together. There are two roads to the same numbers:

- "gram", any kernel: the inner products of all pairs, tile by tile (`sfrik.ops.pairwise`): 1.5 products of n x n x q.
- "moments", degrees 1 and 2: these depend on the rows through their sum and M = Z^T Z [q, q] alone, since
  sum_{i,j} <z_i, z_j>^2 = |M|_F^2: 1.5 products of n x q x q, and across processes no row is exchanged.

`choose_cost` takes the cheaper one. Across processes each one computes the gradient of its own rows: 1/N of the work.

Legend: n number of embeddings over all processes, q their dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sfrik.kernels import RotationInvariantKernel
from sfrik.ops.autograd import requires_grad, with_gradients
from sfrik.ops.collectives import all_reduce_sum, other_rows, rank, row_counts, world_size
from sfrik.ops.pairwise import LOW, Function, pair_sum, symmetric_product

__all__ = ["MMD", "Cost", "choose_cost", "mmd_to_uniform"]

Cost = Literal["auto", "gram", "moments"]
HORNER = 4  # highest degree that is evaluated by its monomials; the Legendre series beyond


def mmd_to_uniform(
    z: Tensor,
    kernel: RotationInvariantKernel,
    unbiased: bool = False,
    cost: Cost = "auto",
    low_precision: bool | None = None,
) -> Tensor:
    """Squared MMD between the rows of `z` and the uniform law on the sphere.

    Args:
        z: [n, q], rows of norm 1; under `torch.distributed` the rows of this process.
        kernel: a kernel of dimension q.
        unbiased: False for the V-statistic (mean over all pairs, the paper's loss, >= 0); True for the
            U-statistic (mean over i != j, mean 0 under the uniform law, may be negative).
        cost: "gram", "moments" (degrees 1 and 2), or "auto" for `choose_cost`.
        low_precision: whether rows in bfloat16 or float16 are multiplied in it (`MMD`).

    Returns:
        A scalar, in float32 at least. Differentiable once with respect to `z`.

    Raises:
        ValueError: wrong shape, one row, another dimension than the kernel's, rows that are not of norm 1; `cost` "moments" for
            a kernel of a higher degree.

    >>> poles = torch.cat([torch.eye(3), -torch.eye(3)])  # mean 0, covariance I/3: all that degrees 1 and 2 see
    >>> kernel = RotationInvariantKernel((1.0, 40.0), dim=3)
    >>> [round(mmd_to_uniform(z, kernel).item(), 4) for z in (poles, poles[:3], poles[:1].expand(6, 3))]
    [0.0, 0.3333, 41.0]
    """
    if z.ndim != 2 or z.shape[1] != kernel.dim:
        raise ValueError(f"z must have shape [n, {kernel.dim}] (the kernel's dim), got {tuple(z.shape)}")
    if z.shape[0] * world_size() < 2:
        raise ValueError("the MMD needs at least two rows, got one")
    off = (z.detach().float().norm(dim=1) - 1).abs().max().item()
    if not off <= 0.01:  # bfloat16 keeps a norm to 0.4 %
        raise ValueError(f"rows of z must have norm 1 (the largest deviation is {off:.3g}): use torch.nn.functional.normalize")
    mmd = MMD(kernel, unbiased, cost, low_precision)
    counts = row_counts(len(z), z.device)
    rows = z.detach().to(mmd.precision(z.dtype, z.device))
    gradient = rows.new_zeros(rows.shape, dtype=torch.float32 if z.dtype in LOW else z.dtype) if requires_grad([z]) else None
    with torch.autocast(z.device.type, enabled=False):
        value = all_reduce_sum(mmd.parts([rows], counts, [gradient], 1.0)[0])
    return with_gradients(value, [z], None if gradient is None else [gradient.to(z.dtype)])


def choose_cost(n: int, kernel: RotationInvariantKernel) -> Literal["gram", "moments"]:
    """The road that takes fewer multiplications for n rows: "moments" where degrees 1 and 2 are all and q < n, else "gram".

    >>> [choose_cost(n, RotationInvariantKernel((1.0, 40.0), dim=512)) for n in (256, 1024)]
    ['gram', 'moments']
    """
    return "moments" if kernel.dim < n and not any(kernel.coefficients[2:]) else "gram"


@dataclass(frozen=True)
class MMD:
    r"""The squared MMD of rows of norm 1 to the uniform law, with its gradient, outside of autograd.

    With low precision the rows are multiplied as they are, in bfloat16 or float16; on a CPU the products and the slopes phi' are
    rounded to it as well. The sums are kept in float32. With eps = 2^-8 or 2^-11 the error, held by tests/test_mmd.py, is at most
    eps / 10 of the value and 4 eps of the gradient along the sphere; the most near the uniform law, where that is small.

    Args:
        kernel: of dimension q.
        unbiased: the mean over i != j.
        cost: the road; low precision is for "gram".
        low_precision: whether rows in bfloat16 or float16 are multiplied in it, else in float32; None: on a GPU alone.
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

    def precision(self, given: torch.dtype, device: torch.device) -> torch.dtype:
        """The type in which rows are multiplied that come in the type `given`."""
        low = device.type == "cuda" if self.low_precision is None else self.low_precision
        return torch.float32 if given in LOW and not low else given

    def parts(
        self, views: Sequence[Tensor], counts: list[int], gradients: Sequence[Tensor | None], weight: float
    ) -> list[Tensor]:
        """Of each view this process's part of the value: the parts of all processes add up to it.

        Args:
            views: each [n_local, q], rows of norm 1.
            counts: rows of each process (`sfrik.ops.collectives.row_counts`).
            gradients: of each view a tensor to which `weight` times the gradient is added, times N, as DDP's average wants it;
                or None.
        """
        n = sum(counts)
        cost = choose_cost(n, self.kernel) if self.cost == "auto" else self.cost
        pairs = n * (n - 1) if self.unbiased else n * n
        scale = 2 * weight * world_size() / pairs
        if cost == "moments":
            return self._by_moments(views, n, pairs, gradients, scale)
        function, constant, unit = _function(self.kernel, views[0].dtype in LOW)
        values = []
        for z, others, gradient in zip(views, other_rows(views, counts), gradients, strict=True):
            total = pair_sum(z, others, function, gradient, scale * unit, skip_diagonal=self.unbiased)
            values.append(total * (unit / pairs) + constant * counts[rank()] / n)
        return values

    def _by_moments(
        self, views: Sequence[Tensor], n: int, pairs: int, gradients: Sequence[Tensor | None], scale: float
    ) -> list[Tensor]:
        q = self.kernel.dim
        first, second = (*self.kernel.coefficients, 0.0)[:2]
        of_square = second * q / (q - 1)  # P_2(q; t) = (q t^2 - 1) / (q - 1)
        rows = [view.float() if view.dtype in LOW else view for view in views]
        sums = torch.stack([torch.cat([symmetric_product(z), z.sum(dim=0)[None]]) for z in rows])
        values = []
        for z, moments, gradient in zip(rows, all_reduce_sum(sums), gradients, strict=True):
            moment, total = moments[:-1], moments[-1]
            value = (first * total.dot(total) + of_square * torch.linalg.vector_norm(moment).square()) / world_size()
            norms = torch.linalg.vector_norm(z, dim=1).square()
            if self.unbiased:
                value -= first * norms.sum() + of_square * norms.dot(norms)
            if gradient is not None:
                gradient.addmm_(z, moment, alpha=2 * of_square * scale).add_(total, alpha=first * scale)
                if self.unbiased:
                    gradient.addcmul_(z, (first + 2 * of_square * norms)[:, None], value=-scale)
            values.append(value / pairs - second / (q - 1) / world_size())
        return values


def _function(kernel: RotationInvariantKernel, low: bool) -> tuple[Function, float, float]:
    """phi and phi' of a tile, both without a constant and in a unit: phi(t) = constant + unit * f(t).

    The unit is 1, of low precision the largest slope phi'(1), so that slopes that are rounded to float16 are at most 1.
    """
    unit = float(kernel.derivative(torch.ones((), dtype=torch.float64))) if low else 1.0
    if kernel.degree > HORNER:
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
