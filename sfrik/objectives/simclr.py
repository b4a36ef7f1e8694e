"""SimCLR: the normalised temperature-scaled cross entropy, NT-Xent."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from sfrik.objectives.base import Batch, Objective
from sfrik.objectives.loss_terms import LossTerms
from sfrik.objectives.spectra import exponential_moments, log_mean_exponential
from sfrik.ops.autograd import rowwise_dot
from sfrik.ops.collectives import gather_remote_rows, world_size
from sfrik.ops.log_sums import row_log_sums

__all__ = ["SimCLR"]


class SimCLR(Objective):
    r"""NT-Xent (Chen et al. 2020, equation 1) on L2-normalised views.

    For each pair of an anchor and another view, over the 2n embeddings of the two, with :math:`p(i)` the other view of the same
    image:

    .. math::

        -\frac{1}{2n} \sum_i \log
        \frac{\exp(\langle z_i, z_{p(i)} \rangle / \tau)}{\sum_{j \ne i} \exp(\langle z_i, z_j \rangle / \tau)}

    This is alignment and regulariser in one, so `regularise` has no effect.

    Args:
        temperature: :math:`\tau`, above 0.
        equal_rows: whether all processes always have the same number of rows, which saves an exchange.
    """

    def __init__(self, temperature: float = 0.15, *, equal_rows: bool = False) -> None:
        super().__init__(equal_rows=equal_rows)
        self.temperature = temperature

    def terms(self, batch: Batch, step: int) -> LossTerms:
        alignment = batch.alignment(0.0)
        remote = gather_remote_rows(batch.z, batch.counts)
        shares = []
        for pair, weight in batch.pairs.items():
            gradient = half = None  # free that of the previous pair first
            share, gradient = self._nt_xent(batch, remote, pair, weight)
            shares.append(weight * share)
            if gradient is not None:
                for view, half in zip(pair, gradient.chunk(2), strict=True):
                    batch.gradient_buffer(view).add_(half)
        nt_xent, alignment = batch.all_reduce(cast(Tensor, sum(shares)), alignment)
        return batch.loss_terms(nt_xent, nt_xent=nt_xent, alignment=alignment)

    def _nt_xent(
        self, batch: Batch, remote: list[list[Tensor]], pair: tuple[int, int], weight: float
    ) -> tuple[Tensor, Tensor | None]:
        """This process's share of the value of two views, and its gradient, times `weight` and N: [2 n_local, q]."""
        first, second = (batch.z[v] for v in pair)
        n, local = batch.n, torch.cat([first, second])
        others = [part for v in pair for part in remote[v]]
        similarity = rowwise_dot(first, second)[:, 0] / self.temperature
        sums = row_log_sums(local, others, self.temperature, batch.requires_grad)
        share = (sums.values.sum() - 2 * similarity.sum()) / (2 * n)
        if not batch.requires_grad:
            return share, None
        halves = [half[:, None] for half in sums.values.chunk(2)]
        of_others = [part[:, 0] for half in gather_remote_rows(halves, batch.counts) for part in half]
        scale = weight * world_size() / (2 * n * self.temperature)
        gradient = torch.cat([second, first]).mul_(-2 * scale)
        sums.add_gradient(gradient, of_others, scale)
        return share, gradient

    def _spectrum(self, q: int, n: int | None, degrees: int) -> list[float]:
        """For views that coincide, as they do near the optimum of the alignment.

        Then the pair of an image takes the fraction 1 - s of its row's softmax, which reduces the force of alignment and
        regulariser alike: to s / (2 tau) for the squared distance, and to s times that of the negatives' mean of logarithms.
        """
        if n is None:
            raise ValueError("the spectrum of SimCLR depends on the number of rows: give n")
        rate = 1 / self.temperature
        coefficients, eigenvalues = exponential_moments(rate, q, degrees)
        odds = rate - log_mean_exponential(rate, q) - math.log(2 * n - 2)  # of the pair against all negatives
        s = 0.5 - 0.5 * math.tanh(odds / 2)
        return [2 * self.temperature * b * (1 - s * e / 2) for b, e in zip(coefficients, eigenvalues, strict=True)]
