"""The objectives as their papers write them, by autograd on whole matrices: the reference for the fast ones.

These save no memory: a Gram matrix of all pairs, a covariance of all coordinates, all intermediate values kept for the backward
pass. The losses are those of `sfrik.objectives` on one process, in the precision of the views. Tests compare the two, benchmarks
measure the difference; nothing is trained with these.

Legend: n rows, q embedding dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sfrik.kernels import RotationInvariantKernel
from sfrik.objectives.auh import AUH
from sfrik.objectives.base import Objective, mean
from sfrik.objectives.sfrik import SFRIK
from sfrik.objectives.simclr import SimCLR
from sfrik.objectives.vicreg import VICReg

__all__ = ["plain_loss", "plain_mmd"]


def plain_loss(objective: Objective, views: Sequence[Tensor], anchors: Sequence[int] = (0, 1), regularise: str = "all") -> Tensor:
    """The loss of an objective by the plain formulas.

    Args:
        objective: SFRIK, AUH, SimCLR or VICReg, whose coefficients are used.
        views: each [n, q].
        anchors: as in `sfrik.objectives`.
        regularise: as in `sfrik.objectives`.

    Raises:
        TypeError: another objective, such as SIGReg.
    """
    regularised = [views[v] for v in (range(len(views)) if regularise == "all" else anchors)]
    if isinstance(objective, VICReg):
        std, cov = zip(*map(_variance_and_covariance, regularised), strict=True)
        loss = objective.sim_coeff * _alignment(views, anchors)
        return loss + objective.std_coeff * mean(std) + 2 * objective.cov_coeff * mean(cov)
    z = [F.normalize(view, dim=1) for view in views]
    if isinstance(objective, SimCLR):
        values = [mean(_nt_xent(z[a], z[v], objective.temperature) for v in range(len(z)) if v != a) for a in anchors]
        return mean(values)
    if not isinstance(objective, AUH | SFRIK):
        raise TypeError(f"there is no plain formula for {type(objective).__name__}")
    loss = objective.sim_coeff * _alignment(z, anchors)
    regularised = [F.normalize(view, dim=1) for view in regularised] if len(regularised) < len(z) else z
    if isinstance(objective, AUH):
        regulariser = _entropy if objective.entropy else _uniformity
        return loss + objective.unif_coeff * mean(regulariser(view, objective.scale) for view in regularised)
    return loss + objective.mmd_coeff * mean(plain_mmd(view, objective.kernel) for view in regularised)


def plain_mmd(z: Tensor, kernel: RotationInvariantKernel, unbiased: bool = False) -> Tensor:
    """`sfrik.mmd.mmd_to_uniform` from the whole Gram matrix [n, n]."""
    values = kernel(z @ z.T)
    n = len(z)
    return (values.sum() - values.diagonal().sum()) / (n * (n - 1)) if unbiased else values.mean()


def _alignment(z: Sequence[Tensor], anchors: Sequence[int]) -> Tensor:
    return mean(mean(F.mse_loss(z[a], z[v]) for v in range(len(z)) if v != a) for a in anchors)


def _uniformity(z: Tensor, scale: float) -> Tensor:
    n = len(z)
    exponent = _without_diagonal(2 * scale * (z @ z.T - 1))
    return torch.logsumexp(exponent.flatten(), dim=0) - math.log(n * (n - 1))


def _entropy(z: Tensor, scale: float) -> Tensor:
    exponent = _without_diagonal(2 * scale * (z @ z.T - 1))
    return torch.logsumexp(exponent, dim=1).mean() - math.log(len(z) - 1)


def _nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    n = len(first)
    z = torch.cat([first, second])
    positives = torch.arange(2 * n, device=z.device).roll(n)
    log_shares = F.log_softmax(_without_diagonal(z @ z.T / temperature), dim=1)
    return F.nll_loss(log_shares, positives)


def _variance_and_covariance(z: Tensor) -> tuple[Tensor, Tensor]:
    n, q = z.shape
    centred = z - z.mean(dim=0)
    covariance = centred.T @ centred / (n - 1)  # [q, q]
    hinge = F.relu(1 - torch.sqrt(z.var(dim=0) + 1e-4)).mean()
    return hinge, (covariance.square().sum() - covariance.diagonal().square().sum()) / q


def _without_diagonal(square: Tensor) -> Tensor:
    return square.masked_fill(torch.eye(len(square), dtype=torch.bool, device=square.device), float("-inf"))
