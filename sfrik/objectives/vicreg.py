"""VICReg: variance, invariance and covariance."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from sfrik.objectives.base import Batch, Objective, mean
from sfrik.objectives.loss_terms import LossTerms
from sfrik.objectives.spectra import per_squared_distance
from sfrik.ops.collectives import all_reduce_sum, gather_remote_rows, world_size
from sfrik.ops.pairwise import pair_sum, symmetric_product

__all__ = ["VICReg"]


class VICReg(Objective):
    r"""Invariance (alignment), variance and covariance of views that are not normalised (Bardes et al. 2022, equations 1 to 6).

    With the covariance matrix :math:`C = Z_c^\top Z_c / (n - 1)` of the centred rows :math:`Z_c`, [n, q], of a view:

    .. math::

        \text{sim\_coeff} \cdot \text{alignment}
        + \text{std\_coeff} \cdot \operatorname{mean}_v \frac{1}{q} \sum_k \max(0, 1 - \sqrt{C_{kk} + 10^{-4}})
        + 2 \, \text{cov\_coeff} \cdot \operatorname{mean}_v \frac{1}{q} \sum_{k \ne m} C_{km}^2

    For two views, twice the mean of the covariance term is the sum of the paper. Written as a mean it keeps its weight with
    more views.

    The squares of all entries of C add up to :math:`\|Z_c Z_c^\top\|_F^2 / (n - 1)^2`. If q > n, the Gram matrix of the rows is
    used in place of C, tile by tile, and no matrix of q x q is made.

    Args:
        sim_coeff: weight of the alignment.
        std_coeff: weight of the variance term.
        cov_coeff: weight of the covariance term.
        equal_rows: whether all processes always have the same number of rows, which saves an exchange.
    """

    normalised = False

    def __init__(
        self, sim_coeff: float = 10.0, std_coeff: float = 10.0, cov_coeff: float = 1.0, *, equal_rows: bool = False
    ) -> None:
        super().__init__(equal_rows=equal_rows)
        self.sim_coeff, self.std_coeff, self.cov_coeff = sim_coeff, std_coeff, cov_coeff

    def terms(self, batch: Batch, step: int) -> LossTerms:
        alignment = batch.alignment(self.sim_coeff)
        stds, covs = self._by_gram(batch) if batch.q > batch.n else self._by_covariance(batch)
        alignment, std, cov = batch.all_reduce(alignment, mean(stds), 2 * mean(covs))
        loss = self.sim_coeff * alignment + self.std_coeff * std + self.cov_coeff * cov
        return batch.loss_terms(loss, alignment=alignment, std=std, cov=cov)

    def _spectrum(self, q: int, n: int | None, degrees: int) -> list[float]:
        """For rows of mean 0 and standard deviation 1 in each coordinate, hence of norm sqrt(q).

        The covariance term sees the part of degree 2 off the diagonal of C, q / (q + 2) of it in random directions; the
        variance term, of which no kernel is the equivalent, sees the diagonal.
        """
        weight = 2 * self.cov_coeff * (q - 1) * per_squared_distance(self.sim_coeff)
        return [weight if degree == 2 else 0.0 for degree in range(1, degrees + 1)]

    def _by_gram(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """This process's shares of the variance and covariance term of each view; their gradients are added to the batch's."""
        n, q, rows = batch.n, batch.q, batch.regularised_rows
        remote = gather_remote_rows(rows, batch.counts)
        means = [sum(part.sum(dim=0) for part in (z, *others)) / n for z, others in zip(rows, remote, strict=True)]
        scale = 4 * self._cov_weight(batch) / (n - 1) ** 2
        stds, covs = [], []
        for z, others, mean_row, gradient in zip(rows, remote, means, batch.gradient_buffers(), strict=True):
            local, others = z - mean_row, [part.sub_(mean_row) for part in others]
            variances = sum(torch.linalg.vector_norm(part, dim=0).square() for part in (local, *others)) / (n - 1)
            variances = cast(Tensor, variances)
            squares = pair_sum(local, others, lambda t: (t.square(), t), gradient, scale) / (n - 1) ** 2
            std, factor = self._variance_term(variances, batch)
            if gradient is not None:
                factor.sub_(variances, alpha=scale * (n - 1))  # the diagonal of C is no part of the covariance term
                gradient.addcmul_(local, factor)
            stds.append(std / world_size())
            covs.append((squares - variances.square().sum() / world_size()) / q)
        return stds, covs

    def _by_covariance(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """The same as `_by_gram`, by the covariance matrix, [q, q]."""
        n, rows = batch.n, batch.regularised_rows
        means = all_reduce_sum(torch.stack([z.sum(dim=0) for z in rows])) / n
        stds, covs = [], []
        for z, mean_row, gradient in zip(rows, means, batch.gradient_buffers(), strict=True):
            covariance = None  # free that of the previous view first
            local = z - mean_row
            covariance = all_reduce_sum(symmetric_product(local)).div_(n - 1)
            std, factor = self._variance_term(covariance.diagonal(), batch)
            covariance.fill_diagonal_(0)
            if gradient is not None:
                gradient.addmm_(local, covariance, alpha=4 * self._cov_weight(batch) / (n - 1)).addcmul_(local, factor)
            stds.append(std / world_size())
            covs.append(torch.linalg.vector_norm(covariance).square() / (batch.q * world_size()))
        return stds, covs

    def _cov_weight(self, batch: Batch) -> float:
        """Weight in the loss of the sum of squares of one view, times N."""
        return 2 * self.cov_coeff / len(batch.regularised) / batch.q * world_size()

    def _variance_term(self, variances: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The variance term of a view, and the factor of each centred column, [q], in the gradient of the loss, times N."""
        deviations = torch.sqrt(variances + 1e-4)
        weight = self.std_coeff / len(batch.regularised) / len(deviations) / (batch.n - 1) * world_size()
        return torch.relu(1 - deviations).mean(), torch.where(deviations < 1, -weight / deviations, 0.0)
