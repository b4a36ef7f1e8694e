r"""Is it collapsed? Numbers that show it, while it happens and afterwards.

Two embeddings of each of n images are given. A full collapse puts all images on one point: covariance 0, uniformity 0. A
dimensional collapse spreads them over a few of the q dimensions: few eigenvalues of the covariance, a small effective rank.

Legend: z embeddings [n, q] (not necessarily normalised: each function says whether it does it), s singular values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sfrik.kernels import harmonics, legendre

__all__ = [
    "Measures",
    "alignment",
    "covariance_spectrum",
    "effective_rank",
    "energy_per_degree",
    "measure",
    "rankme",
    "summary",
    "uniformity",
]


@dataclass(frozen=True)
class Measures:
    """What is measured of embeddings [n, q] of two views; None or () where it was not measured.

    Attributes:
        n: images. q: dimension of the embeddings.
        alignment: of the two views. The others are of the first view.
        energy: `energy_per_degree`, degrees 1, 2, ...
        energy_share: the same as a share of that of a point, `energy[l - 1] / N(q, l)`: the mean of `P_l(<z_i, z_j>)`, at most 1.
        spectrum: `covariance_spectrum`, min(n, q) values.
    """

    n: int
    q: int
    alignment: float
    uniformity: float
    effective_rank: float
    rankme: float | None = None
    energy: tuple[float, ...] = ()
    energy_share: tuple[float, ...] = ()
    spectrum: tuple[float, ...] = ()

    @property
    def largest_rank(self) -> int:
        """min(n, q), which no rank can exceed: fewer images than dimensions hide the rest."""
        return min(self.n, self.q)

    @property
    def spread(self) -> float | None:
        """Sum of the covariance's eigenvalues, `1 - |mean|^2` of the normalised embeddings: 0 for a point, at most 1.

        It is half the mean squared distance between two of them.
        """
        return sum(self.spectrum) if self.spectrum else None


def measure(first: Tensor, second: Tensor, degrees: int = 4) -> Measures:
    """All numbers of this module, of embeddings [n, q] of two views of the same images, n and q at least 2."""
    n, q = first.shape
    energy = energy_per_degree(first, degrees)
    return Measures(
        n,
        q,
        alignment(first, second),
        uniformity(first),
        effective_rank(first),
        rankme(first),
        tuple(energy),
        tuple(value / harmonics(l, q) for l, value in enumerate(energy, start=1)),
        tuple(covariance_spectrum(first).tolist()),
    )


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance between the normalised embeddings of two views, in [0, 4] (Wang & Isola 2020)."""
    first, second = F.normalize(first.float(), dim=1), F.normalize(second.float(), dim=1)
    return (first - second).square().sum(dim=1).mean().item()


def uniformity(z: Tensor, t: float = 2.0) -> float:
    """`log mean_{i != j} exp(-t |z_i - z_j|^2)` of normalised embeddings; 0 when they are one point (Wang & Isola 2020)."""
    z = F.normalize(z.float(), dim=1)
    n = z.shape[0]
    squares = z.square().sum(dim=1)  # 1, but 0 of an embedding that is 0: all of them there are one point too
    exponent = t * (2 * z @ z.T - squares[:, None] - squares)
    exponent.fill_diagonal_(float("-inf"))
    return (torch.logsumexp(exponent.flatten(), 0) - torch.log(torch.tensor(float(n * (n - 1))))).item()


def effective_rank(z: Tensor) -> float:
    r"""`exp(-sum_k p_k log p_k)` with `p_k = s_k / sum s`, of the matrix of embeddings as it is (Roy & Vetterli 2007).

    Neither centred nor normalised row by row. Between 1 (all embeddings on one line) and min(n, q).
    """
    return torch.exp(torch.special.entr(_shares(z)).sum()).item()


def rankme(z: Tensor, epsilon: float = 1e-7) -> float:
    r"""`exp(-sum_k p_k log p_k)` with `p_k = s_k / sum s + epsilon`, k to min(n, q) (RankMe, Garrido et al. 2023, eq. 1 and 2).

    `effective_rank` of the same matrix but for epsilon, which their paper adds for the logarithm in float32. They take 25,600
    images; fewer give less, and fewer than q limit it to n.
    """
    p = _shares(z) + epsilon
    return torch.exp(-(p * p.log()).sum()).item()


def covariance_spectrum(z: Tensor) -> Tensor:
    """Eigenvalues of the covariance of the normalised embeddings, largest first: float64 [min(n, q)]; the others are 0.

    Their sum is `1 - |mean|^2`; of the uniform law all q are 1 / q.
    """
    z = F.normalize(z.double(), dim=1)
    return torch.linalg.svdvals(z - z.mean(dim=0)).square() / z.shape[0]


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


def _shares(z: Tensor) -> Tensor:
    """Singular values over their sum: [min(n, q)]."""
    s = torch.linalg.svdvals(z.float())
    return s / s.sum().clamp_min(torch.finfo(s.dtype).tiny)
