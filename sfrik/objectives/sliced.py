r"""Regularisers by random directions: work linear in n, and no row is exchanged between processes.

Two laws are compared with a target through their projections on M directions w_m, uniform on the sphere and the same on all
processes; each process adds up its own rows, and M numbers a statistic are summed over the processes.

- `SlicedMMD` estimates the MMD to the uniform law. By the reproducing property (Funk-Hecke) the part of degree l is
  b_l N(q, l) E_w[ (mean_i P_l(q; <w, z_i>))^2 ]; M directions in the place of the expectation leave it unbiased.
- `EppsPulley` is the statistic of SIGReg (LeJEPA; Balestriero & LeCun 2025, arXiv 2511.08544, section 4), against the normal law:
  n int |mean_i exp(i t <w, z_i>) - exp(-t^2/2)|^2 exp(-t^2/2) dt, mean over the directions.

Their gradient lies in the span of the directions: with M far below q it misses most of the whole one (docs/speed.md has
measurements).

Legend: n rows over all processes, n_local of this one, q their dimension, M directions, N processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from sfrik.kernels import RotationInvariantKernel
from sfrik.ops.collectives import all_reduce_sum, world_size

__all__ = ["EppsPulley", "SlicedMMD", "directions"]


def directions(count: int, dim: int, seed: Sequence[int], like: Tensor) -> Tensor:
    """Directions uniform on the sphere, [dim, count], of the type and on the device of `like`; the same for the same seed.

    >>> directions(4, dim=3, seed=(0, 1), like=torch.zeros(1)).norm(dim=0)
    tensor([1.0000, 1.0000, 1.0000, 1.0000])
    """
    derived = int(np.random.SeedSequence(tuple(seed)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    generator = torch.Generator(like.device).manual_seed(derived)
    drawn = torch.randn(dim, count, dtype=like.dtype, device=like.device, generator=generator)
    return drawn.div_(torch.linalg.vector_norm(drawn, dim=0))


@dataclass(frozen=True)
class SlicedMMD:
    """An unbiased estimate of `sfrik.mmd.MMD`'s value, over the draw of the directions, with the gradient of the estimate.

    Args:
        kernel: of dimension q. slices: M.
    """

    kernel: RotationInvariantKernel
    slices: int

    def parts(
        self, views: Sequence[Tensor], n: int, gradients: Sequence[Tensor | None], weight: float, seed: Sequence[int]
    ) -> list[Tensor]:
        """As `sfrik.mmd.MMD.parts`: each process's part of the value; the weighted gradient, times N, is added to `gradients`.

        Args:
            views: each [n_local, q], rows of norm 1. n: rows over all processes. seed: of the directions.
        """
        q, degree = self.kernel.dim, self.kernel.degree
        drawn = directions(self.slices, q, seed, views[0])
        # b_l N(q, l) = b_l^2 / eigenvalue
        factors = views[0].new_tensor(
            [b * b / e if b else 0.0 for b, e in zip(self.kernel.coefficients, self.kernel.spectrum, strict=True)]
        )
        projected = [z @ drawn for z in views]  # [n_local, M]
        means = [torch.stack([p.sum(dim=0) for p, _ in _legendre(t, degree, q)]) / n for t in projected]
        values = []
        for t, mean, gradient in zip(projected, all_reduce_sum(torch.stack(means)), gradients, strict=True):
            values.append(factors.dot(mean.square().mean(dim=1)) / world_size())
            if gradient is not None:
                outer = factors[:, None] * mean * (2 * weight * world_size() / (n * self.slices))  # [L, M]
                slopes = sum(slope * row for (_, slope), row in zip(_legendre(t, degree, q), outer, strict=True))
                gradient.addmm_(cast(Tensor, slopes), drawn.T)
        return values


@dataclass(frozen=True)
class EppsPulley:
    """SIGReg's statistic, by the trapezoidal rule on 17 points of [-5, 5] as in its paper.

    Args:
        slices: M.
    """

    slices: int
    points: int = 17
    reach: float = 5.0

    def parts(
        self, views: Sequence[Tensor], n: int, gradients: Sequence[Tensor | None], weight: float, seed: Sequence[int]
    ) -> list[Tensor]:
        """As `SlicedMMD.parts`; the rows are not normalised."""
        drawn = directions(self.slices, views[0].shape[1], seed, views[0])
        step = 2 * self.reach / (self.points - 1)
        # the statistic is even in t, and 0 at t = 0
        times = [step * k for k in range(1, self.points // 2 + 1)]
        rule = [2 * step * math.exp(-(t**2) / 2) * (0.5 if t == times[-1] else 1.0) for t in times]
        projected = [z @ drawn for z in views]  # [n_local, M]
        found = [torch.stack([torch.stack([(t * x).cos().sum(0), (t * x).sin().sum(0)]) for t in times]) for x in projected]
        values = []
        for x, mean, gradient in zip(projected, all_reduce_sum(torch.stack(found)) / n, gradients, strict=True):
            mean[:, 0] -= mean.new_tensor([math.exp(-(t**2) / 2) for t in times])[:, None]  # [points, real and imaginary, M]
            integral = (mean.square().sum(dim=1) * mean.new_tensor(rule)[:, None]).sum(dim=0)  # [M]
            values.append(n * integral.mean() / world_size())
            if gradient is not None:
                slopes = torch.zeros_like(x)
                for t, w, (real, imaginary) in zip(times, rule, mean, strict=True):
                    slopes.addcmul_((t * x).sin(), real, value=-2 * w * t).addcmul_((t * x).cos(), imaginary, value=2 * w * t)
                gradient.addmm_(slopes, drawn.T, alpha=weight * world_size() / self.slices)
        return values


def _legendre(t: Tensor, degree: int, dim: int) -> Iterator[tuple[Tensor, Tensor]]:
    """`P_l(q; t)` and `P_l'(q; t)` for l = 1 to `degree`, by the recurrence of `sfrik.kernels.legendre` and its derivative."""
    before, current = torch.ones_like(t), t
    slope_before, slope = torch.zeros_like(t), torch.ones_like(t)
    yield current, slope
    for l in range(2, degree + 1):
        a, c = (2 * l + dim - 4) / (l + dim - 3), (l - 1) / (l + dim - 3)
        slope_before, slope = slope, a * (current + t * slope) - c * slope_before
        before, current = current, a * t * current - c * before
        yield current, slope
