r"""The four self-supervised objectives of the paper's comparison: SFRIK, AUH, SimCLR, VICReg.

Each is called on a list of views, the raw outputs of the projector, and returns named loss terms:

    terms = objective(views, anchors=(0, 1), regularise="all");    terms.loss.backward()

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
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sfrik.collectives import all_rows, mean_over_rows, world_size
from sfrik.kernels import RotationInvariantKernel
from sfrik.mmd import gram_means

__all__ = ["AUH", "SFRIK", "LossTerms", "NotFinite", "SimCLR", "VICReg"]


class NotFinite(ValueError):
    """The loss is not finite. `rows`: the rows of this process that hold such values, in any of the views; often none."""

    def __init__(self, message: str, rows: Sequence[int]) -> None:
        super().__init__(message)
        self.rows = list(rows)


@dataclass(frozen=True)
class LossTerms:
    """`loss`, the scalar to minimise, and `parts`, the unweighted terms by name (detached, of the whole batch)."""

    loss: Tensor
    parts: dict[str, Tensor]


class Objective(nn.Module, ABC):
    """What the four share: the checks, the pairs of views, the averages."""

    def forward(self, views: Sequence[Tensor], anchors: Sequence[int] = (0, 1), regularise: str = "all") -> LossTerms:
        """Loss terms of the views.

        Args:
            views: two or more projector outputs, each [n_local, q], not normalised.
            anchors: indices into `views`, without repetition.
            regularise: "all" or "anchors".

        Raises:
            ValueError: views of other shapes, fewer than two views or rows, bad anchors. NotFinite: NaN or infinite values.
        """
        views, anchors = list(views), list(anchors)
        self._check(views, anchors, regularise)
        regularised = range(len(views)) if regularise == "all" else anchors
        views_in_full = [view.float() if view.dtype != torch.float64 else view for view in views]
        with torch.autocast(views[0].device.type, enabled=False):  # it would take the products of float32 rows in bfloat16
            terms = self.terms(views_in_full, anchors, regularised)
        if not torch.isfinite(terms.loss):
            raise self._not_finite(views, terms)
        return terms

    @abstractmethod
    def terms(self, views: list[Tensor], anchors: list[int], regularised: Sequence[int]) -> LossTerms:
        """The objective's own formula, on checked views in float32 or float64."""

    def extra_repr(self) -> str:
        public = {name: value for name, value in vars(self).items() if not name.startswith("_") and name != "training"}
        return ", ".join(f"{name}={value}" for name, value in public.items())

    def _check(self, views: list[Tensor], anchors: list[int], regularise: str) -> None:
        if len(views) < 2:
            raise ValueError(f"an objective compares at least two views, got {len(views)}")
        shape = views[0].shape
        for k, view in enumerate(views):
            if view.ndim != 2:
                raise ValueError(f"view {k} must have shape [n, q], got {tuple(view.shape)}")
            if view.shape != shape:
                raise ValueError(f"all views must have one shape: view {k} has {tuple(view.shape)}, view 0 {tuple(shape)}")
        if shape[0] * world_size() < 2:
            raise ValueError("an objective needs at least two rows (images) in the batch, got one")
        if not anchors or len(set(anchors)) != len(anchors) or not all(0 <= a < len(views) for a in anchors):
            raise ValueError(f"anchors must be different indices from 0 to {len(views) - 1}, got {anchors}")
        if regularise not in ("all", "anchors"):
            raise ValueError(f'regularise must be "all" or "anchors", got {regularise!r}')

    def _not_finite(self, views: list[Tensor], terms: LossTerms) -> NotFinite:
        values = {name: float(value) for name, value in terms.parts.items()}
        bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        finite = [f"{name} {value:.4g}" for name, value in values.items() if math.isfinite(value)]
        what = f"the loss is not finite: {', '.join(bad) or 'the weighted sum overflows'}"
        what += f" ({', '.join(finite)})" if finite else ""
        broken = [(~torch.isfinite(view)).any(dim=1).nonzero().flatten().tolist() for view in views]
        where = [
            f"view {k} holds NaN or infinite values in {len(rows)} of {len(views[k])} rows (first: row {rows[0]})"
            for k, rows in enumerate(broken)
            if rows
        ]
        largest = max(view.abs().max().item() for view in views)
        detail = where[0] if where else f"this process's views are finite, the largest value being {largest:.3g}"
        return NotFinite(f"{what}; {detail}", sorted({row for rows in broken for row in rows}))


class SFRIK(Objective):
    r"""`sim_coeff` alignment + `mmd_coeff` MMD^2 to the uniform law, on L2-normalised views (equation 5 of the paper).

    Args:
        dim: q, the dimension of the embeddings.
        weights: b_1..b_L of the truncated kernel, any number of degrees.
        sim_coeff: weight of the alignment. At a fixed trade-off it grows in proportion to `dim`.
        mmd_coeff: weight of the MMD.
        kernel: another rotation-invariant kernel of dimension `dim`, instead of `weights`.
    """

    def __init__(
        self,
        dim: int,
        weights: Sequence[float] = (1.0, 40.0, 40.0),
        sim_coeff: float = 4000.0,
        mmd_coeff: float = 1.0,
        kernel: RotationInvariantKernel | None = None,
    ) -> None:
        super().__init__()
        self.kernel = kernel or RotationInvariantKernel.truncated(weights, dim)
        if self.kernel.dim != dim:
            raise ValueError(f"the kernel is of dimension {self.kernel.dim}, the embeddings of dimension {dim}")
        self.dim, self.sim_coeff, self.mmd_coeff = dim, sim_coeff, mmd_coeff

    def terms(self, views, anchors, regularised):
        if views[0].shape[1] != self.dim:
            raise ValueError(f"views have {views[0].shape[1]} columns, but the objective was made for dim={self.dim}")
        z = [F.normalize(view, dim=1) for view in views]
        alignment = _alignment(z, anchors)
        mmd = _mean(gram_means([z[v] for v in regularised], self.kernel))
        return _terms(self.sim_coeff * alignment + self.mmd_coeff * mmd, alignment=alignment, mmd=mmd)


class AUH(Objective):
    r"""Alignment and uniformity on the hypersphere (Wang & Isola 2020), in the form the paper compares with.

        sim_coeff alignment + unif_coeff mean over views of log( mean over i != j of exp(-2 scale (1 - <z_i, z_j>)) )

    The mean is the unbiased MMD estimate of a Gaussian kernel, a rotation-invariant kernel of all degrees.
    """

    def __init__(self, sim_coeff: float = 3000.0, unif_coeff: float = 1.0, scale: float = 2.5) -> None:
        super().__init__()
        self.sim_coeff, self.unif_coeff, self.scale = sim_coeff, unif_coeff, scale

    def terms(self, views, anchors, regularised):
        z = [F.normalize(view, dim=1) for view in views]
        alignment = _alignment(z, anchors)
        uniformity = _mean(self._uniformity(view) for view in all_rows([z[v] for v in regularised]))
        return _terms(self.sim_coeff * alignment + self.unif_coeff * uniformity, alignment=alignment, uniformity=uniformity)

    def _uniformity(self, z: Tensor) -> Tensor:
        n = z.shape[0]
        exponent = _without_diagonal(2 * self.scale * (z @ z.T - 1))
        # log of the mean through logsumexp: at a large scale every term underflows
        return torch.logsumexp(exponent.flatten(), dim=0) - math.log(n * (n - 1))


class SimCLR(Objective):
    """NT-Xent (Chen et al. 2020): for each pair of an anchor and another view, over the 2n embeddings of the two.

    It is alignment and regulariser in one, so `regularise` changes nothing here.
    """

    def __init__(self, temperature: float = 0.15) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.temperature = temperature

    def terms(self, views, anchors, regularised):
        z = [F.normalize(view, dim=1) for view in views]
        everywhere = all_rows(z)
        pairs = {frozenset((a, v)) for a in anchors for v in range(len(z)) if v != a}
        value = {pair: self._nt_xent(*(everywhere[v] for v in sorted(pair))) for pair in pairs}
        loss = _mean(_mean(value[frozenset((a, v))] for v in range(len(z)) if v != a) for a in anchors)
        return _terms(loss, nt_xent=loss, alignment=_alignment([view.detach() for view in z], anchors))

    def _nt_xent(self, first: Tensor, second: Tensor) -> Tensor:
        n = first.shape[0]
        z = torch.cat([first, second])  # [2n, q]
        logits = _without_diagonal(z @ z.T / self.temperature)
        positives = torch.arange(2 * n, device=z.device).roll(n)
        return F.cross_entropy(logits, positives)


class VICReg(Objective):
    r"""Variance, invariance, covariance (Bardes et al. 2022), on views that are not normalised.

        sim_coeff alignment + std_coeff mean over views of mean over coordinates of relu(1 - sqrt(var + 1e-4))
        + cov_coeff sum over the two views of (sum over i != j of C_ij^2) / q

    With more than two views the covariance term is twice its mean over the regularised views, so that the balance
    of the terms does not depend on their number.
    """

    def __init__(self, sim_coeff: float = 10.0, std_coeff: float = 10.0, cov_coeff: float = 1.0) -> None:
        super().__init__()
        self.sim_coeff, self.std_coeff, self.cov_coeff = sim_coeff, std_coeff, cov_coeff

    def terms(self, views, anchors, regularised):
        alignment = _alignment(views, anchors)
        penalties = [self._variance_and_covariance(view) for view in all_rows([views[v] for v in regularised])]
        std = _mean(variance for variance, _ in penalties)
        cov = 2 * _mean(covariance for _, covariance in penalties)
        loss = self.sim_coeff * alignment + self.std_coeff * std + self.cov_coeff * cov
        return _terms(loss, alignment=alignment, std=std, cov=cov)

    @staticmethod
    def _variance_and_covariance(z: Tensor) -> tuple[Tensor, Tensor]:
        centred = z - z.mean(dim=0)
        hinge = F.relu(1 - torch.sqrt(centred.square().sum(dim=0) / (len(z) - 1) + 1e-4)).mean()
        return hinge, _OffDiagonal.apply(centred) / z.shape[1]


class _OffDiagonal(torch.autograd.Function):
    """Sum over i != j of C_ij^2, C = Zc^T Zc / (n - 1) being the covariance of centred rows Zc [n, q].

    The gradient is 4 Zc C' / (n - 1) with C' = C without its diagonal. One matrix [q, q] exists at a time and none is kept;
    autograd by itself would hold five.
    """

    @staticmethod
    @torch.no_grad()
    def forward(ctx, centred: Tensor) -> Tensor:
        with torch.autocast(centred.device.type, enabled=False):
            covariance = (centred.T @ centred).div_(len(centred) - 1).fill_diagonal_(0)  # [q, q]
            ctx.gradient = (centred @ covariance).mul_(4 / (len(centred) - 1)) if ctx.needs_input_grad[0] else None
        return torch.linalg.vector_norm(covariance).square()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        return grad * ctx.gradient


def _alignment(z: list[Tensor], anchors: list[int]) -> Tensor:
    local = _mean(_mean(F.mse_loss(z[a], z[v]) for v in range(len(z)) if v != a) for a in anchors)
    return mean_over_rows(local, len(z[0]))


def _without_diagonal(square: Tensor) -> Tensor:
    return square.masked_fill(torch.eye(square.shape[0], dtype=torch.bool, device=square.device), float("-inf"))


def _mean(values) -> Tensor:
    values = list(values)
    return sum(values[1:], start=values[0]) / len(values)


def _terms(loss: Tensor, **parts: Tensor) -> LossTerms:
    return LossTerms(loss, {name: part.detach() for name, part in parts.items()})
