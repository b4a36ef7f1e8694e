"""AUH: alignment and uniformity on the hypersphere."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sfrik.kernels.closed_forms import SMALL_RATE
from sfrik.objectives.base import Batch, Objective, mean
from sfrik.objectives.loss_terms import LossTerms
from sfrik.objectives.spectra import Floor, exponential_moments, log_mean_exponential, per_squared_distance
from sfrik.ops.collectives import all_gather_vectors, all_reduce_sum, gather_remote_rows, world_size
from sfrik.ops.log_sums import row_log_sums
from sfrik.ops.pairwise import PairFunction, max_inner_product, pair_sum

__all__ = ["AUH"]

SAFE_EXPONENT = 80.0  # exp(-80) is far from underflow in float32
MAX_BIAS = 0.01  # of the value of random rows, relative to what a collapse to one point has above it


class AUH(Objective):
    r"""Alignment and uniformity of the L2-normalised views (Wang & Isola 2020), in the form that the paper compares with.

    .. math::

        \text{sim\_coeff} \cdot \text{alignment} + \text{unif\_coeff} \cdot \operatorname{mean}_v
        \log \Big( \frac{1}{n (n - 1)} \sum_{i \ne j} \exp(-2 \, \text{scale} \, (1 - \langle z_i, z_j \rangle)) \Big)

    The mean in the logarithm is :math:`b_0 + U`. U is the unbiased estimate of the squared MMD with a Gaussian kernel, which has
    all degrees, and :math:`b_0` is the mean of this kernel over the sphere, its degree 0. The gradient is that of U divided by
    :math:`b_0 + U`, so near uniform rows, where U is near 0, it is larger by :math:`1 / b_0`: 145 times at q = 512.

    With `entropy` the regulariser is the mean of logarithms in place of the logarithm of the mean:

    .. math::

        \frac{1}{n} \sum_i
        \log \Big( \frac{1}{n - 1} \sum_{j \ne i} \exp(-2 \, \text{scale} \, (1 - \langle z_i, z_j \rangle)) \Big)

    This is minus the entropy of the embeddings by a kernel density estimate, up to the constant that normalises the kernel: the
    Kullback-Leibler divergence to the uniform distribution, up to a constant (SPHERE-JEPA, arXiv 2605.26900 and 2606.17603).

    Args:
        sim_coeff: weight of the alignment.
        unif_coeff: weight of the uniformity.
        scale: of the Gaussian kernel.
        entropy: whether the regulariser is the mean of logarithms.
        equal_rows: whether all processes always have the same number of rows, which saves an exchange.
    """

    def __init__(
        self,
        sim_coeff: float = 3000.0,
        unif_coeff: float = 1.0,
        scale: float = 2.5,
        *,
        entropy: bool = False,
        equal_rows: bool = False,
    ) -> None:
        super().__init__(equal_rows=equal_rows)
        self.sim_coeff, self.unif_coeff, self.scale, self.entropy = sim_coeff, unif_coeff, scale, entropy

    def terms(self, batch: Batch, step: int) -> LossTerms:
        if self.entropy:
            alignment, share = batch.alignment(self.sim_coeff), self._entropy(batch)
            alignment, log_sum = batch.all_reduce(alignment, share)
            uniformity = log_sum - 2 * self.scale - math.log(batch.n - 1)
            loss = self.sim_coeff * alignment + self.unif_coeff * uniformity
            return batch.loss_terms(loss, alignment=alignment, uniformity=uniformity)
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
        shifts = self._shifts(rows, remote)
        gradients = [torch.zeros_like(z) for z in rows] if batch.requires_grad else []
        sums = [
            pair_sum(z, others, _exponential(rate, shift), gradient, skip_diagonal=True)
            for z, others, shift, gradient in zip(rows, remote, shifts, gradients or [None] * len(rows), strict=True)
        ]
        sums = all_reduce_sum(torch.stack(sums))
        pairs = batch.n * (batch.n - 1)
        for gradient, total in zip(gradients, sums + pairs if rate < SMALL_RATE else sums, strict=False):
            gradient.mul_(2 * rate * self.unif_coeff * world_size() / len(rows) / total)
        if rate < SMALL_RATE:
            return (sums / pairs).log1p().mean(), gradients
        return (sums.log() + shifts).mean() - math.log(pairs), gradients

    def _entropy(self, batch: Batch) -> Tensor:
        """This process's share of the mean over rows and views of the logarithms of the sums. Adds their gradient."""
        rows, temperature, shares = batch.regularised_rows, 1 / (2 * self.scale), []
        scale = self.unif_coeff * world_size() / (len(rows) * batch.n * temperature)
        remote = gather_remote_rows(rows, batch.counts)
        for z, others, gradient in zip(rows, remote, batch.gradient_buffers(), strict=True):
            sums = row_log_sums(z, others, temperature, batch.requires_grad)
            shares.append(sums.values.sum() / batch.n)
            if gradient is not None:
                (of_others,) = gather_remote_rows([sums.values[:, None]], batch.counts)
                sums.add_gradient(gradient, [part[:, 0] for part in of_others], scale)
        return mean(shares)

    def _spectrum(self, q: int, n: int | None, degrees: int) -> list[float]:
        coefficients, eigenvalues = exponential_moments(2 * self.scale, q, degrees)
        weight = self.unif_coeff * per_squared_distance(self.sim_coeff / q)
        # the mean of log(1 + h) is that of h - h^2 / 2, and h^2 has the mean b_l^2 / N(q, l) times the MMD of degree l
        return [weight * b * (1 - e / 2 if self.entropy else 1) for b, e in zip(coefficients, eigenvalues, strict=True)]

    def _floor(self, n: int, q: int) -> Floor | None:
        r"""None if the logarithm of the mean over all rows is not close to the expectation for n of them.

        With few rows or a narrow kernel a few pairs make up the mean, and the logarithm of the mean over n rows is far below. To
        second order this is half the relative variance of the mean, over pairs or, for the entropy, over those of a row.
        """
        rate = 2 * self.scale
        log_mean = log_mean_exponential(rate, q)
        variance = math.expm1(min(log_mean_exponential(2 * rate, q) - 2 * log_mean, 700.0))  # relative, of one pair
        if variance / ((2 if self.entropy else n) * (n - 1)) > MAX_BIAS * (rate - log_mean):
            return None
        return Floor("uniformity", log_mean - rate, -rate if n <= q else None, 0.0)

    def _shifts(self, rows: list[Tensor], remote: list[list[Tensor]]) -> Tensor:
        """What is subtracted from the exponents of each view: their maximum if the scale is so large that all could underflow."""
        if 4 * self.scale <= SAFE_EXPONENT:  # the exponents are between -4 scale and 0
            return rows[0].new_zeros(len(rows))
        largest = [max_inner_product(z, others) for z, others in zip(rows, remote, strict=True)]
        return 2 * self.scale * (all_gather_vectors(torch.stack(largest)).amax(dim=0) - 1)


def _exponential(rate: float, shift: Tensor) -> PairFunction:
    """The exponential of a tile, minus 1 if the rate is small, and its derivative up to the factor `rate`."""

    def function(t: Tensor) -> tuple[Tensor, Tensor]:
        t.sub_(1).mul_(rate)
        if rate < SMALL_RATE:  # else the rounding of 1 would hide the rest
            t.expm1_()
            return t, t + 1
        t.sub_(shift).exp_()
        return t, t

    return function
