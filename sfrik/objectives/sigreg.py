"""SIGReg: the objective of LeJEPA, with the Epps-Pulley statistic along random directions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfrik.kernels.polynomials import MAX_DIM, check_whole
from sfrik.objectives.base import Batch, NotFinite, Objective, mean
from sfrik.objectives.loss_terms import LossTerms
from sfrik.objectives.sliced import directions
from sfrik.objectives.spectra import per_squared_distance, second_moments
from sfrik.ops.collectives import all_reduce_sum, world_size
from sfrik.ops.random import MAX_SEED

__all__ = ["EppsPulley", "SIGReg"]


class SIGReg(Objective):
    r"""LeJEPA's objective (Balestriero & LeCun 2025, arXiv 2511.08544) on views that are not normalised, for comparison.

    .. math::

        (1 - \text{weight}) \cdot \operatorname{mean}_v
        \frac{1}{n q} \sum_i \Big\| z^{(v)}_i - \operatorname{mean}_u z^{(u)}_i \Big\|^2
        + \text{weight} \cdot \operatorname{mean}_v \mathrm{SIGReg}(z^{(v)})

    SIGReg is `EppsPulley`. The alignment is the distance to the centre of all views, as LeJEPA has it for ResNets, whatever the
    `anchors`. For two views it is a quarter of the mean squared error between them.

    Args:
        weight: :math:`\lambda` of the paper, from 0 to 1.
        slices: number of random directions, new ones in each call.
        seed: of the random directions, the same on all processes.
        equal_rows: whether all processes always have the same number of rows, which saves an exchange.
    """

    normalised = False

    def __init__(self, weight: float = 0.05, slices: int = 1024, *, seed: int = 0, equal_rows: bool = False) -> None:
        super().__init__(equal_rows=equal_rows)
        if not weight <= 1:
            raise ValueError(f"weight must be from 0 to 1, got {weight}")
        slices = check_whole("slices", slices, 1, MAX_DIM)
        self.weight, self.statistic, self.seed = weight, EppsPulley(slices), check_whole("seed", seed, 0, MAX_SEED)

    def terms(self, batch: Batch, step: int) -> LossTerms:
        alignment = batch.distance_to_centre(1 - self.weight)
        rows, gradients = batch.regularised_rows, batch.gradient_buffers()
        shares = self.statistic.partial_values(rows, batch.n, gradients, self.weight / len(rows), (self.seed, step))
        alignment, sigreg = batch.all_reduce(alignment, mean(shares))
        loss = (1 - self.weight) * alignment + self.weight * sigreg
        return batch.loss_terms(loss, alignment=alignment, sigreg=sigreg)

    def _not_finite(self, views: list[Tensor], terms: LossTerms) -> NotFinite:
        error = super()._not_finite(views, terms)
        if error.rows:
            return error
        return NotFinite(f"{error}; SIGReg needs projections below 1.7e6 in float32: normalise the embeddings", [])

    def _spectrum(self, q: int, n: int | None, degrees: int) -> list[float]:
        """For two views of norm sqrt(q), and in expectation over the directions."""
        if n is None:
            raise ValueError("the spectrum of SIGReg grows with the number of rows: give n")
        times, rule = self.statistic.nodes
        energies = second_moments(np.array(times) * math.sqrt(q), q, degrees) @ np.array(rule)
        return (self.weight * n * per_squared_distance((1 - self.weight) / 4) * energies).tolist()


@dataclass(frozen=True)
class EppsPulley:
    r"""The statistic of SIGReg: the distance of the projections :math:`\langle w, z_i \rangle` to the normal distribution.

    .. math::

        n \int \Big| \frac{1}{n} \sum_i e^{i t \langle w, z_i \rangle} - e^{-t^2 / 2} \Big|^2 e^{-t^2 / 2} \, dt

    averaged over the directions w (LeJEPA, section 4), by the trapezoidal rule as in the paper.

    Args:
        slices: M, the number of directions.
        points: of the trapezoidal rule, an odd number.
        reach: the rule's interval is [-reach, reach]. The value is NaN for a projection above 1 / (reach epsilon), 1.7e6 in
            float32.
    """

    slices: int
    points: int = 17
    reach: float = 5.0

    @property
    def nodes(self) -> tuple[list[float], list[float]]:
        """Nodes t > 0 of the trapezoidal rule and their weights: the integrand is even in t and 0 at t = 0."""
        step = 2 * self.reach / (self.points - 1)
        times = [step * k for k in range(1, self.points // 2 + 1)]
        return times, [2 * step * math.exp(-(t**2) / 2) * (0.5 if t == times[-1] else 1.0) for t in times]

    def partial_values(
        self, views: Sequence[Tensor], n: int, gradients: Sequence[Tensor | None], weight: float, seed: Sequence[int]
    ) -> list[Tensor]:
        """As `sfrik.objectives.sliced.SlicedMMD.partial_values`, for rows that are not normalised."""
        drawn = directions(self.slices, views[0].shape[1], seed, views[0])
        times, rule = self.nodes
        projected = [z @ drawn for z in views]  # [n_local, M]
        sums = [torch.stack([torch.stack([(t * x).cos().sum(0), (t * x).sin().sum(0)]) for t in times]) for x in projected]
        # where the rounding of t x is a radian or more, sine and cosine mean nothing: NaN, on all processes once it is summed
        largest = [torch.linalg.vector_norm(x, math.inf) * self.reach for x in projected]
        sums = [s.masked_fill_(x > 1 / torch.finfo(x.dtype).eps, math.nan) for s, x in zip(sums, largest, strict=True)]
        values = []
        # characteristic: [points, real and imaginary part, M]
        for x, characteristic, gradient in zip(projected, all_reduce_sum(torch.stack(sums)) / n, gradients, strict=True):
            characteristic[:, 0] -= characteristic.new_tensor([math.exp(-(t**2) / 2) for t in times])[:, None]
            integral = (characteristic.square().sum(dim=1) * characteristic.new_tensor(rule)[:, None]).sum(dim=0)  # [M]
            values.append(n * integral.mean() / world_size())
            if gradient is not None:
                slopes = torch.zeros_like(x)
                for t, w, (real, imaginary) in zip(times, rule, characteristic, strict=True):
                    slopes.addcmul_((t * x).sin(), real, value=-2 * w * t).addcmul_((t * x).cos(), imaginary, value=2 * w * t)
                gradient.addmm_(slopes, drawn.T, alpha=weight * world_size() / self.slices)
        return values
