r"""Is it collapsed? Numbers that show it while it happens.

Legend: z embeddings [n, q] (not necessarily normalised: each function does it), s singular values.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sfrik.kernels import harmonics, legendre

__all__ = ["alignment", "effective_rank", "energy_per_degree", "summary", "uniformity"]


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance between the normalised embeddings of two views, in [0, 4] (Wang & Isola 2020)."""
    first, second = F.normalize(first.float(), dim=1), F.normalize(second.float(), dim=1)
    return (first - second).square().sum(dim=1).mean().item()


def uniformity(z: Tensor, t: float = 2.0) -> float:
    """`log mean_{i != j} exp(-t |z_i - z_j|^2)` of normalised embeddings; 0 when they are one point (Wang & Isola 2020)."""
    z = F.normalize(z.float(), dim=1)
    n = z.shape[0]
    exponent = 2 * t * (z @ z.T - 1)
    exponent.fill_diagonal_(float("-inf"))
    return (torch.logsumexp(exponent.flatten(), 0) - torch.log(torch.tensor(float(n * (n - 1))))).item()


def effective_rank(z: Tensor) -> float:
    r"""`exp(-sum_k p_k log p_k)` with `p = s / sum s`, of the matrix of embeddings (Roy & Vetterli 2007; RankMe 2023).

    Between 1 (all embeddings on one line) and min(n, q).
    """
    s = torch.linalg.svdvals(z.float())
    p = s / s.sum().clamp_min(torch.finfo(s.dtype).tiny)
    return torch.exp(torch.special.entr(p).sum()).item()


def energy_per_degree(z: Tensor, degrees: int = 4) -> list[float]:
    """For l = 1..degrees: N(q, l) times the unbiased mean of `P_l(<z_i, z_j>)` over pairs i != j.

    It estimates the squared norm of the degree-l part of the embeddings' law, which is 0 for the uniform one.
    """
    z = F.normalize(z.double(), dim=1)
    n, q = z.shape
    gram = z @ z.T
    off = ~torch.eye(n, dtype=torch.bool, device=z.device)
    return [harmonics(l, q) * legendre(gram, l, q)[off].mean().item() for l in range(1, degrees + 1)]


def summary(views: list[Tensor]) -> dict[str, float]:
    """Alignment of the first two views, uniformity and effective rank of the first."""
    return {
        "alignment": alignment(views[0], views[1]),
        "uniformity": uniformity(views[0]),
        "effective_rank": effective_rank(views[0]),
    }
