"""AUH: alignment and uniformity on the hypersphere."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sfrik.objectives.base import Batch, LossTerms, Objective
from sfrik.ops.collectives import all_gather_vectors, all_reduce_sum, gather_remote_rows, world_size
from sfrik.ops.pairwise import max_inner_product, pair_sum

__all__ = ["AUH"]

SAFE_EXPONENT = 80.0  # exp(-80) is far from underflow in float32


class AUH(Objective):
    r"""Alignment and uniformity of the L2-normalised views (Wang & Isola 2020), in the form that the paper compares with.

    .. math::

        \text{sim\_coeff} \cdot \text{alignment} + \text{unif\_coeff} \cdot \operatorname{mean}_v
        \log \Big( \frac{1}{n (n - 1)} \sum_{i \ne j} \exp(-2 \, \text{scale} \, (1 - \langle z_i, z_j \rangle)) \Big)

    The mean in the logarithm is the unbiased estimate of a squared MMD with a Gaussian kernel, a rotation-invariant kernel of all
    degrees, up to a constant.

    Args:
        sim_coeff: weight of the alignment.
        unif_coeff: weight of the uniformity.
        scale: of the Gaussian kernel.
        equal_rows: whether all processes always have the same number of rows, which saves an exchange.
    """

    def __init__(
        self, sim_coeff: float = 3000.0, unif_coeff: float = 1.0, scale: float = 2.5, *, equal_rows: bool = False
    ) -> None:
        super().__init__(equal_rows=equal_rows)
        self.sim_coeff, self.unif_coeff, self.scale = sim_coeff, unif_coeff, scale

    def terms(self, batch: Batch, step: int) -> LossTerms:
        uniformity, gradients = self._uniformity(batch)
        for view, gradient in zip(batch.regularised, gradients, strict=False):  # no gradients if none is required
            batch.add_gradient(view, gradient)
        (alignment,) = batch.all_reduce(batch.alignment(self.sim_coeff))
        loss = self.sim_coeff * alignment + self.unif_coeff * uniformity
        return batch.loss_terms(loss, alignment=alignment, uniformity=uniformity)

    def _uniformity(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """The uniformity and, if one is asked for, its gradient for each regularised view, times `unif_coeff` and N.

        The gradient has the sum of all exponentials in the denominator, so it is scaled after the sum over the processes.
        """
        rows, rate = batch.regularised_rows, 2 * self.scale
        remote = gather_remote_rows(rows, batch.counts)
        shift = self._shift(rows, remote)

        def exponential(t: Tensor) -> tuple[Tensor, Tensor]:
            t.sub_(1).mul_(rate).sub_(shift).exp_()
            return t, t  # up to the factor `rate` its own derivative

        gradients = [torch.zeros_like(z) for z in rows] if batch.requires_grad else []
        sums = [
            pair_sum(z, others, exponential, gradient, skip_diagonal=True)
            for z, others, gradient in zip(rows, remote, gradients or [None] * len(rows), strict=True)
        ]
        sums = all_reduce_sum(torch.stack(sums))
        for gradient, total in zip(gradients, sums, strict=False):
            gradient.mul_(2 * rate * self.unif_coeff * world_size() / len(rows) / total)
        return (sums.log() + shift).mean() - math.log(batch.n * (batch.n - 1)), gradients

    def _shift(self, rows: list[Tensor], remote: list[list[Tensor]]) -> Tensor | float:
        """What is subtracted from all exponents: their maximum if the scale is so large that all exponentials could underflow."""
        if 4 * self.scale <= SAFE_EXPONENT:  # the exponents are between -4 scale and 0
            return 0.0
        largest = [max_inner_product(z, others) for z, others in zip(rows, remote, strict=True)]
        return 2 * self.scale * (all_gather_vectors(torch.stack(largest)).max() - 1)
