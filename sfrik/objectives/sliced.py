r"""Random directions, and the MMD estimated along them: linear in n, without exchange of rows between processes.

The distribution of the embeddings is compared with a target through its projections on M random directions :math:`w_m`, which are
uniform on the sphere and the same on all processes. Every process sums over its local rows, and M numbers per statistic are
summed over the processes. `SlicedMMD` compares with the uniform distribution on the sphere, `sfrik.objectives.sigreg.EppsPulley`
with the normal distribution.

The gradient is in the span of the directions, so with M far below q it misses most of the exact one (measured in docs/speed.md).

Legend: n rows over all processes, n_local of them on this process, q their dimension, M directions, N processes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from sfrik.kernels import RotationInvariantKernel, TruncationWarning, format_share
from sfrik.kernels.polynomials import MAX_DIM, check_whole, orthonormal_with_derivative
from sfrik.kernels.rotation_invariant import WORTH_A_WARNING
from sfrik.ops.collectives import all_reduce_sum, world_size
from sfrik.ops.random import derived_seed

__all__ = ["SlicedMMD", "directions"]


def directions(count: int, dim: int, seed: Sequence[int], like: Tensor) -> Tensor:
    """Directions that are uniform on the sphere, [dim, count], with the dtype and device of `like`. They depend on `seed` only.

    >>> directions(4, dim=3, seed=(0, 1), like=torch.zeros(1)).norm(dim=0)
    tensor([1.0000, 1.0000, 1.0000, 1.0000])
    """
    generator = torch.Generator(like.device).manual_seed(derived_seed("directions", *seed))
    drawn = torch.randn(dim, count, dtype=like.dtype, device=like.device, generator=generator)
    return drawn.div_(torch.linalg.vector_norm(drawn, dim=0))


@dataclass(frozen=True)
class SlicedMMD:
    r"""An estimate of `sfrik.mmd.MMD` by random directions, unbiased over their draw, with the gradient of the estimate.

    By the reproducing property of :math:`P_l` (Funk-Hecke) the part of degree l is

    .. math::

        b_l \, \mathbb{E}_w \Big[ \Big( \frac{1}{n} \sum_i p_l(\langle w, z_i \rangle) \Big)^2 \Big], \qquad
        p_l(t) = \sqrt{N(q, l)} \, P_l(q; t)

    and the mean over M directions estimates the expectation. Only the degrees that matter in the dtype of the rows are evaluated:
    the last ones are left out where their :math:`l \, b_l` add up to less than its rounding.

    Args:
        kernel: a kernel of dimension q; of a closed form the series is estimated, with a warning if more than 1 % is beyond it.
        slices: M, the number of directions.

    Raises:
        ValueError: a coefficient is above the range of float32.
    """

    kernel: RotationInvariantKernel
    slices: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "slices", check_whole("slices", self.slices, 1, MAX_DIM))
        for degree, b in enumerate(self.kernel.coefficients, start=1):
            if b > torch.finfo(torch.float32).max:
                raise ValueError(
                    f"random directions need coefficients in the range of float32; that of degree {degree} is {b:.3g}"
                )
        if self.kernel.closed_form and self.kernel.beyond > WORTH_A_WARNING:
            warnings.warn(
                f"random directions estimate the degrees 1 to {self.kernel.degree} of the kernel, which leave out "
                f"{format_share(self.kernel.beyond)} of it",
                TruncationWarning,
                stacklevel=3,
            )

    def degrees(self, dtype: torch.dtype) -> int:
        """The number of degrees that are evaluated for rows in this dtype."""
        weights = [l * b for l, b in enumerate(self.kernel.coefficients, start=1)]
        limit, last = torch.finfo(dtype).eps / 2 * math.fsum(weights), len(weights)
        rest = 0.0
        while last > 1 and (rest := rest + weights[last - 1]) <= limit:
            last -= 1
        return last

    def partial_values(
        self, views: Sequence[Tensor], n: int, gradients: Sequence[Tensor | None], weight: float, seed: Sequence[int]
    ) -> list[Tensor]:
        """This process's share of the value for each view; the shares of all processes add up to the value.

        Args:
            views: each [n_local, q], rows of norm 1.
            n: number of rows over all processes.
            gradients: for each view a tensor [n_local, q] to which the gradient is added, times `weight` and N; or None.
            weight: factor of the gradient.
            seed: of the directions.
        """
        q, degree = self.kernel.dim, self.degrees(views[0].dtype)
        drawn = directions(self.slices, q, seed, views[0])
        factors = views[0].new_tensor(self.kernel.coefficients[:degree])
        projected = [z @ drawn for z in views]  # [n_local, M]
        means = [torch.stack([p.sum(dim=0) for p, _ in orthonormal_with_derivative(t, degree, q)]) / n for t in projected]
        values = []
        for t, mean, gradient in zip(projected, all_reduce_sum(torch.stack(means)), gradients, strict=True):
            values.append(factors.dot(mean.square().mean(dim=1)) / world_size())
            if gradient is not None:
                outer = factors[:, None] * mean * (2 * weight * world_size() / (n * self.slices))  # [L, M]
                polynomials = orthonormal_with_derivative(t, degree, q)
                slopes = sum(slope * row for (_, slope), row in zip(polynomials, outer, strict=True))
                gradient.addmm_(cast(Tensor, slopes), drawn.T)
        return values
