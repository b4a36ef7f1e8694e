"""SimCLR: the normalised temperature-scaled cross entropy, NT-Xent."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from sfrik.objectives.base import Batch, LossTerms, Objective
from sfrik.ops.autograd import rowwise_dot
from sfrik.ops.collectives import gather_remote_rows, world_size
from sfrik.ops.pairwise import row_blocks, tiles

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
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
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
        """This process's share of the value of two views, and its gradient, times `weight` and N: [2 n_local, q].

        The softmax of row i has the normaliser of row i, and the gradient has those of rows i and j. So all normalisers are
        computed first, then the gradient. The inner products are kept for the second pass if they take at most twice the memory
        of the embeddings, and computed again otherwise.
        """
        first, second = (batch.z[v] for v in pair)
        n, local = batch.n, torch.cat([first, second])
        others = [part for v in pair for part in remote[v]]
        similarity = rowwise_dot(first, second)[:, 0] / self.temperature
        kept: list[Tensor] = []
        keep = (len(local) + 2 * (2 * n - len(local))) / 2 <= 2 * local.shape[1]  # inner products per local row
        normalisers = torch.full_like(local[:, 0], -torch.inf)  # log of the sum of exp over the row
        for rows, other, columns in tiles(local, others):
            logits = self._logits(local[rows], other, columns == rows)
            _logaddexp(normalisers[rows], logits, batch.q)
            if columns is not None and columns != rows:
                _logaddexp(normalisers[columns], logits.T, batch.q)
            if keep:
                kept.append(logits)
        share = (normalisers.sum() - 2 * similarity.sum()) / (2 * n)
        if not batch.requires_grad:
            return share, None
        halves = [half[:, None] for half in normalisers.chunk(2)]
        of_others = [part[:, 0] for half in gather_remote_rows(halves, batch.counts) for part in half]
        scale = weight * world_size() / (2 * n * self.temperature)
        gradient = torch.cat([second, first]).mul_(-2 * scale)
        kept.reverse()
        for (rows, other, columns), (_, of_other, _) in zip(tiles(local, others), tiles(normalisers, of_others), strict=True):
            logits = kept.pop() if keep else self._logits(local[rows], other, columns == rows)
            with row_blocks(logits, batch.q) as blocks:
                for block in blocks:
                    weights = (logits[block] - normalisers[rows][block, None]).exp_()
                    logits[block].sub_(of_other).exp_().add_(weights)
            gradient[rows].addmm_(logits, other, alpha=scale)
            if columns is not None and columns != rows:
                gradient[columns].addmm_(logits.T, local[rows], alpha=scale)
        return share, gradient

    def _logits(self, rows: Tensor, other: Tensor, on_diagonal: bool) -> Tensor:
        logits = rows @ other.T
        with row_blocks(logits, rows.shape[1]) as blocks:
            for block in blocks:
                logits[block].div_(self.temperature)
        return logits.fill_diagonal_(-torch.inf) if on_diagonal else logits


def _logaddexp(to: Tensor, logits: Tensor, q: int) -> None:
    """Set each entry of `to` to the logarithm of its `exp` plus the sum of `exp` over a row of `logits`."""
    with row_blocks(logits, q) as blocks:
        for block in blocks:
            torch.logaddexp(to[block], torch.logsumexp(logits[block], dim=1), out=to[block])
