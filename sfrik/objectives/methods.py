r"""The self-supervised objectives of the paper's comparison, SFRIK, AUH, SimCLR, VICReg, and a later one, SIGReg.

Each is called on a list of views, the raw outputs of the projector, and returns named loss terms:

    terms = objective(views, anchors=(0, 1), regularise="all");    terms.loss.backward()

>>> views = [torch.eye(4).requires_grad_(), torch.eye(4)]
>>> for objective in SFRIK(dim=4), AUH(), SimCLR(), VICReg(), SIGReg(slices=16):
...     print(type(objective).__name__, *objective(views).parts)
SFRIK alignment mmd
AUH alignment uniformity
SimCLR nt_xent alignment
VICReg alignment std cov
SIGReg alignment sigreg

`anchors` are the indices of the views that the others are aligned to:

    alignment = mean over anchors a of ( mean over views v != a of mse(z_a, z_v) )

and `regularise` says whether the regulariser is averaged over "all" views or over the "anchors" alone. Two views
with anchors (0, 1) give the usual formulas. Statistics are over all rows of the batch, gathered from all processes.

Where paper and authors' code differ the code is followed, since the published figures came from it: the
mean squared error is a mean over rows and coordinates, so in the paper's notation lambda = q mmd_coeff / sim_coeff.

Legend: n_local rows on this process, n rows over all processes, q embedding dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from sfrik.kernels import RotationInvariantKernel
from sfrik.mmd import MMD, Cost
from sfrik.objectives.base import Batch, Objective
from sfrik.objectives.sliced import EppsPulley, SlicedMMD
from sfrik.ops.autograd import row_products
from sfrik.ops.collectives import all_reduce_sum, all_vectors, other_rows, world_size
from sfrik.ops.pairwise import LOW, largest_pair, pair_sum, symmetric_product, tiles

__all__ = ["AUH", "SFRIK", "SIGReg", "SimCLR", "VICReg"]

EXPONENTS = 80.0  # exp(-80) is far from underflow in float32


class SFRIK(Objective):
    r"""`sim_coeff` alignment + `mmd_coeff` MMD^2 to the uniform law, on L2-normalised views (equation 5 of the paper).

    Args:
        dim: q, the dimension of the embeddings.
        weights: b_1..b_L of the truncated kernel, any number of degrees.
        sim_coeff: weight of the alignment. At a fixed trade-off it grows in proportion to `dim`.
        mmd_coeff: weight of the MMD.
        kernel: another rotation-invariant kernel of dimension `dim`, instead of `weights`.
        cost: the MMD's road, "auto", "gram" or "moments" (`sfrik.mmd`).
        slices: estimate the MMD by so many random directions instead (`sfrik.objectives.sliced`), others in each call.
        low_precision: whether views in bfloat16 or float16 are multiplied in it (`sfrik.mmd.MMD` states the error); None: on a
            GPU alone.
    """

    def __init__(
        self,
        dim: int,
        weights: Sequence[float] = (1.0, 40.0, 40.0),
        sim_coeff: float = 4000.0,
        mmd_coeff: float = 1.0,
        kernel: RotationInvariantKernel | None = None,
        cost: Cost = "auto",
        slices: int | None = None,
        low_precision: bool | None = None,
    ) -> None:
        super().__init__()
        if slices is not None and slices < 1:
            raise ValueError(f"slices must be at least 1, got {slices}")
        kernel = kernel or RotationInvariantKernel.truncated(weights, dim)
        if kernel.dim != dim:
            raise ValueError(f"the kernel is of dimension {kernel.dim}, the embeddings of dimension {dim}")
        self.mmd = MMD(kernel, cost=cost, low_precision=low_precision)
        self.sliced = None if slices is None else SlicedMMD(kernel, slices)
        self.dim, self.sim_coeff, self.mmd_coeff = dim, sim_coeff, mmd_coeff

    @property
    def kernel(self) -> RotationInvariantKernel:
        return self.mmd.kernel

    def terms(self, views, anchors, regularised, given):
        if views[0].shape[1] != self.dim:
            raise ValueError(f"views have {views[0].shape[1]} columns, but the objective was made for dim={self.dim}")
        batch = Batch(views, anchors, self.equal_rows, normalised=True)
        alignment = batch.alignment(self.sim_coeff)
        rows, gradients = [batch.z[v] for v in regularised], [batch.gradient(v) for v in regularised]
        weight = self.mmd_coeff / len(regularised)
        if self.sliced:
            parts = self.sliced.parts(rows, sum(batch.counts), gradients, weight, self.next_seed())
        else:
            precision = self.mmd.precision(given, views[0].device)
            rows = [row.to(precision) for row in rows] if precision in LOW else rows
            parts = self.mmd.parts(rows, batch.counts, gradients, weight)
        mmd = _mean(parts)
        alignment, mmd = batch.totals(alignment, mmd)
        return batch.terms(self.sim_coeff * alignment + self.mmd_coeff * mmd, alignment=alignment, mmd=mmd)


class AUH(Objective):
    r"""Alignment and uniformity on the hypersphere (Wang & Isola 2020), in the form the paper compares with.

        sim_coeff alignment + unif_coeff mean over views of log( mean over i != j of exp(-2 scale (1 - <z_i, z_j>)) )

    The mean is the unbiased MMD estimate of a Gaussian kernel, a rotation-invariant kernel of all degrees.
    """

    def __init__(self, sim_coeff: float = 3000.0, unif_coeff: float = 1.0, scale: float = 2.5) -> None:
        super().__init__()
        self.sim_coeff, self.unif_coeff, self.scale = sim_coeff, unif_coeff, scale

    def terms(self, views, anchors, regularised, given):
        batch = Batch(views, anchors, self.equal_rows, normalised=True)
        n = sum(batch.counts)
        others = other_rows([batch.z[v] for v in regularised], batch.counts)
        shift = self._shift(batch, regularised, others)
        rate = 2 * self.scale

        def function(t: Tensor) -> tuple[Tensor, Tensor]:
            t.sub_(1).mul_(rate).sub_(shift).exp_()
            return t, t

        sums = [
            pair_sum(batch.z[v], rest, function, batch.gradient(v), skip_diagonal=True)
            for v, rest in zip(regularised, others, strict=True)
        ]
        sums = all_reduce_sum(torch.stack(sums))
        uniformity = (sums.log() + shift).mean() - math.log(n * (n - 1))
        for v, total in zip(regularised, sums, strict=True):
            if batch.requires_grad:
                batch.wanted_gradient(v).mul_(2 * rate * self.unif_coeff * world_size() / len(regularised) / total)
        (alignment,) = batch.totals(batch.alignment(self.sim_coeff))
        loss = self.sim_coeff * alignment + self.unif_coeff * uniformity
        return batch.terms(loss, alignment=alignment, uniformity=uniformity)

    def _shift(self, batch: Batch, regularised: Sequence[int], others: list[list[Tensor]]) -> Tensor | float:
        """What the exponents are lowered by: at a large scale the largest, of all processes, since every term may underflow."""
        if 4 * self.scale <= EXPONENTS:  # the exponents lie between -4 scale and 0
            return 0.0
        largest = [largest_pair(batch.z[v], rest) for v, rest in zip(regularised, others, strict=True)]
        return 2 * self.scale * (all_vectors(torch.stack(largest)).max() - 1)


class SimCLR(Objective):
    """NT-Xent (Chen et al. 2020): for each pair of an anchor and another view, over the 2n embeddings of the two.

    It is alignment and regulariser in one, so `regularise` changes nothing here.
    """

    def __init__(self, temperature: float = 0.15) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.temperature = temperature

    def terms(self, views, anchors, regularised, given):
        batch = Batch(views, anchors, self.equal_rows, normalised=True)
        others = other_rows(batch.z, batch.counts)
        nt_xent = sum(weight * self._nt_xent(batch, others, pair, weight) for pair, weight in batch.pairs.items())
        nt_xent, alignment = batch.totals(cast(Tensor, nt_xent), batch.alignment(0.0))
        return batch.terms(nt_xent, nt_xent=nt_xent, alignment=alignment)

    def _nt_xent(self, batch: Batch, others: list[list[Tensor]], pair: tuple[int, int], weight: float) -> Tensor:
        """This process's part of the value of two views; `weight` times the gradient is added to theirs.

        The softmax of row i needs the normaliser of all of row i, and the gradient those of rows i and j: first all
        normalisers, then the gradient. The inner products are kept in between where they take no more than twice the
        memory of the embeddings, else computed again.
        """
        first, second = (batch.z[v] for v in pair)
        n, own = sum(batch.counts), torch.cat([first, second])
        rest = [part for v in pair for part in others[v]]
        similarity = row_products(first, second)[:, 0] / self.temperature
        kept: list[Tensor] = []
        keep = (len(own) + 2 * (2 * n - len(own))) / 2 <= 2 * own.shape[1]  # values for each own row
        normalisers = torch.full_like(own[:, 0], -torch.inf)  # log of the sum of exp over the row
        for rows, met, columns in tiles(own, rest):
            logits = self._logits(own[rows], met, columns == rows)
            _log_add(normalisers[rows], logits, dim=1)
            if columns is not None and columns != rows:
                _log_add(normalisers[columns], logits, dim=0)
            if keep:
                kept.append(logits)
        value = (normalisers.sum() - 2 * similarity.sum()) / (2 * n)
        if not batch.requires_grad:
            return value
        halves = [half[:, None] for half in normalisers.chunk(2)]
        of_rest = [part[:, 0] for half in other_rows(halves, batch.counts) for part in half]
        scale = weight * world_size() / (2 * n * self.temperature)
        gradient = torch.cat([second, first]).mul_(-2 * scale)
        kept.reverse()
        for (rows, met, columns), (_, of_met, _) in zip(tiles(own, rest), tiles(normalisers, of_rest), strict=True):
            logits = kept.pop() if keep else self._logits(own[rows], met, columns == rows)
            weights = (logits - normalisers[rows, None]).exp_().add_(logits.sub_(of_met).exp_())
            gradient[rows].addmm_(weights, met, alpha=scale)
            if columns is not None and columns != rows:
                gradient[columns].addmm_(weights.T, own[rows], alpha=scale)
        for v, half in zip(pair, gradient.chunk(2), strict=True):
            batch.wanted_gradient(v).add_(half)
        return value

    def _logits(self, rows: Tensor, met: Tensor, on_diagonal: bool) -> Tensor:
        logits = (rows @ met.T).div_(self.temperature)
        return logits.fill_diagonal_(-torch.inf) if on_diagonal else logits


class VICReg(Objective):
    r"""Variance, invariance, covariance (Bardes et al. 2022), on views that are not normalised.

        sim_coeff alignment + std_coeff mean over views of mean over coordinates of relu(1 - sqrt(var + 1e-4))
        + cov_coeff sum over the two views of (sum over i != j of C_ij^2) / q

    With more than two views the covariance term is twice its mean over the regularised views, so that the balance
    of the terms does not depend on their number.

    With C = Zc^T Zc / (n - 1) of centred rows Zc [n, q], the squares of all its entries sum up to |Zc Zc^T|^2 / (n - 1)^2: where
    q > n the Gram matrix of the rows takes the covariance's place, tile by tile, and nothing of q x q is made.
    """

    def __init__(self, sim_coeff: float = 10.0, std_coeff: float = 10.0, cov_coeff: float = 1.0) -> None:
        super().__init__()
        self.sim_coeff, self.std_coeff, self.cov_coeff = sim_coeff, std_coeff, cov_coeff

    def terms(self, views, anchors, regularised, given):
        batch = Batch(views, anchors, self.equal_rows)
        alignment = batch.alignment(self.sim_coeff)
        rows = [batch.z[v] for v in regularised]
        penalise = self._by_gram if rows[0].shape[1] > sum(batch.counts) else self._by_covariance
        stds, covs = zip(*penalise(batch, rows, [batch.gradient(v) for v in regularised]), strict=True)
        alignment, std, cov = batch.totals(alignment, _mean(stds), 2 * _mean(covs))
        loss = self.sim_coeff * alignment + self.std_coeff * std + self.cov_coeff * cov
        return batch.terms(loss, alignment=alignment, std=std, cov=cov)

    def _by_gram(self, batch, views, gradients):
        n, q = sum(batch.counts), views[0].shape[1]
        everywhere = other_rows(views, batch.counts)
        totals = (sum(part.sum(dim=0) for part in (z, *rest)) for z, rest in zip(views, everywhere, strict=True))
        means = [total / n for total in totals]
        for z, rest, mean, gradient in zip(views, everywhere, means, gradients, strict=True):
            own, others = z - mean, [part.sub_(mean) for part in rest]
            variances = sum(torch.linalg.vector_norm(part, dim=0).square() for part in (own, *others)) / (n - 1)
            variances = cast(Tensor, variances)
            scale = 4 * self._cov_weight(views) / (n - 1) ** 2
            squares = pair_sum(own, others, lambda t: (t.square(), t), gradient, scale) / (n - 1) ** 2
            std, factor = self._hinge(variances, n, views)
            if gradient is not None:
                factor.sub_(variances, alpha=scale * (n - 1))
                gradient.addcmul_(own, factor)
            yield std / world_size(), (squares - variances.square().sum() / world_size()) / q

    def _by_covariance(self, batch, views, gradients):
        n, q = sum(batch.counts), views[0].shape[1]
        means = all_reduce_sum(torch.stack([z.sum(dim=0) for z in views])) / n
        for z, mean, gradient in zip(views, means, gradients, strict=True):
            covariance = None  # let go of that of the view before
            own = z - mean
            covariance = all_reduce_sum(symmetric_product(own)).div_(n - 1)
            std, factor = self._hinge(covariance.diagonal(), n, views)
            covariance.fill_diagonal_(0)
            if gradient is not None:
                gradient.addmm_(own, covariance, alpha=4 * self._cov_weight(views) / (n - 1)).addcmul_(own, factor)
            yield std / world_size(), torch.linalg.vector_norm(covariance).square() / (q * world_size())

    def _cov_weight(self, views: list[Tensor]) -> float:
        """What the sum of the squares of one view weighs in the loss, times N."""
        return 2 * self.cov_coeff / len(views) / views[0].shape[1] * world_size()

    def _hinge(self, variances: Tensor, n: int, views: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The variance penalty of a view, and what makes its weighted gradient, times N, of each centred column."""
        deviations = torch.sqrt(variances + 1e-4)
        weight = self.std_coeff / len(views) / len(deviations) / (n - 1) * world_size()
        return torch.relu(1 - deviations).mean(), torch.where(deviations < 1, -weight / deviations, 0.0)


class SIGReg(Objective):
    r"""LeJEPA's objective (Balestriero & LeCun 2025), on views that are not normalised, to compare with.

        (1 - weight) alignment / 4 + weight mean over views of SIGReg (`sfrik.objectives.sliced.EppsPulley`)

    A quarter of the mean squared error of two views is the mean squared distance of each to their mean, which LeJEPA has in its
    place.

    Args:
        weight: lambda of the paper, from 0 to 1.
        slices: random directions, others in each call.
    """

    def __init__(self, weight: float = 0.05, slices: int = 1024) -> None:
        super().__init__()
        if not 0 <= weight <= 1 or slices < 1:
            raise ValueError(f"weight must be from 0 to 1 and slices at least 1, got {weight} and {slices}")
        self.weight, self.statistic = weight, EppsPulley(slices)

    def terms(self, views, anchors, regularised, given):
        batch = Batch(views, anchors, self.equal_rows)
        alignment = batch.alignment((1 - self.weight) / 4)
        rows, gradients = [batch.z[v] for v in regularised], [batch.gradient(v) for v in regularised]
        parts = self.statistic.parts(rows, sum(batch.counts), gradients, self.weight / len(regularised), self.next_seed())
        alignment, sigreg = batch.totals(alignment, _mean(parts))
        loss = (1 - self.weight) / 4 * alignment + self.weight * sigreg
        return batch.terms(loss, alignment=alignment, sigreg=sigreg)


def _log_add(to: Tensor, logits: Tensor, dim: int) -> None:
    """`to` becomes the logarithm of the sum of what it was the logarithm of and of exp(logits) over `dim`."""
    torch.logaddexp(to, torch.logsumexp(logits, dim=dim), out=to)


def _mean(values) -> Tensor:
    values = list(values)
    return sum(values[1:], start=values[0]) / len(values)
