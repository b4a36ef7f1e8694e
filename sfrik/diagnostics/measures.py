r"""Diagnostics of collapse: rank, spectrum, alignment, uniformity and energy per degree of embeddings.

In a full collapse all images have the same embedding: the covariance and the uniformity are 0. In a dimensional collapse the
embeddings occupy a few of the q dimensions: the covariance has few eigenvalues above 0, and the effective rank is small.

Legend: z embeddings of n images, [n, q]; each function states whether it normalises them. s singular values.

What is no tensor, embeddings of another shape, too few of them, and NaN or infinite values raise a ValueError.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sfrik.diagnostics.hypothesis import UniformityTest, refusal, uniformity_test
from sfrik.diagnostics.rows import checked, normalised, row_means, scaled, unit_rows
from sfrik.kernels import harmonics
from sfrik.ops.pairwise import tiles

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

WHOLE = 4096  # embeddings that `uniformity` compares at once: 64 MiB, and the rounding of a single sum


@dataclass(frozen=True)
class Measures:
    """Diagnostics of the embeddings [n, q] of two views. All but the alignment are of the first view.

    Attributes:
        n: number of images.
        q: dimension of the embeddings.
        alignment: `alignment` of the two views.
        uniformity: `uniformity`.
        effective_rank: `effective_rank`.
        rankme: `rankme`, or None if it was not measured.
        energy: `energy_per_degree` for degrees 1, 2, ...; empty if it was not measured.
        energy_share: `energy[l - 1] / N(q, l)`, the mean of `P_l(q; <z_i, z_j>)`: 1 if all embeddings are equal.
        spectrum: `covariance_spectrum`, min(n, q) values; empty if it was not measured.
        uniformity_test: `uniformity_test` of degrees 1 and 2; None if it was not made, or cannot be: a row is 0, or there are too
            few.
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
    uniformity_test: UniformityTest | None = None

    @property
    def largest_rank(self) -> int:
        """min(n, q), the upper bound of every rank; fewer images than dimensions cannot show more."""
        return min(self.n, self.q)

    @property
    def spread(self) -> float | None:
        r"""Sum of the covariance eigenvalues of the normalised embeddings, :math:`1 - \|\bar z\|^2`; None without a spectrum.

        This is half the mean squared distance between two embeddings: 0 if all are equal, at most 1.
        """
        return sum(self.spectrum) if self.spectrum else None


def measure(first: Tensor, second: Tensor, degrees: int = 4) -> Measures:
    """All diagnostics of this module.

    Args:
        first: embeddings of the first view of n images, [n, q], n and q at least 2.
        second: embeddings of the second view of the same images, [n, q].
        degrees: highest degree of the energy.
    """
    n, q = checked(first, "first", least=2, least_dim=2).shape
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
        None if refusal(first) else uniformity_test(first),
    )


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance between the normalised embeddings of two views, [n, q] each, from 0 to 4 (Wang & Isola 2020)."""
    checked(first, "first"), checked(second, "second")
    if first.shape != second.shape:
        raise ValueError(f"first and second must have one shape, got {tuple(first.shape)} and {tuple(second.shape)}")
    first, second = normalised(first, torch.float32), normalised(second, torch.float32)
    return (first - second).square().sum(dim=1).mean().item()


def uniformity(z: Tensor, t: float = 2.0) -> float:
    r"""Uniformity of the normalised embeddings, [n, q] (Wang & Isola 2020): at most 0, and 0 if all embeddings are equal.

    .. math:: \log \operatorname{mean}_{i \ne j} \exp(-t \|z_i - z_j\|^2)

    Up to `WHOLE` embeddings are compared in one matrix of n x n, and more in tiles, of which no such matrix is made.
    """
    z = normalised(checked(z, least=2), torch.float32)
    n = len(z)
    squares = z.square().sum(dim=1)  # 1, but 0 for embeddings that are 0, which are all equal too
    whole = [(slice(0, n), z, slice(0, n))]
    sums = []
    for rows, other, columns in whole if n <= WHOLE else tiles(z):
        exponent = t * (2 * z[rows] @ other.T - squares[rows, None] - squares[columns])
        if columns == rows:
            exponent.fill_diagonal_(float("-inf"))
        else:  # stands for its transpose too
            exponent += math.log(2)
        sums.append(torch.logsumexp(exponent.flatten(), 0))
    return (torch.logsumexp(torch.stack(sums), 0) - torch.log(torch.tensor(float(n * (n - 1))))).item()


def effective_rank(z: Tensor) -> float:
    r"""Effective rank of the matrix of embeddings, [n, q], neither centred nor normalised (Roy & Vetterli 2007).

    .. math:: \exp \Big( -\sum_k p_k \log p_k \Big), \qquad p_k = s_k / \sum_m s_m

    Between 1, if all embeddings are on one line through 0, and min(n, q).
    """
    return torch.exp(torch.special.entr(_normalised_singular_values(z)).sum()).item()


def rankme(z: Tensor, epsilon: float = 1e-7) -> float:
    r"""RankMe of the matrix of embeddings, [n, q] (Garrido et al. 2023, equations 1 and 2).

    .. math:: \exp \Big( -\sum_k p_k \log p_k \Big), \qquad p_k = s_k / \sum_m s_m + \varepsilon

    Up to :math:`\varepsilon`, which keeps the logarithm finite, this is `effective_rank`. The paper takes 25,600 images; fewer
    give smaller values, and n < q limits it to n.
    """
    p = _normalised_singular_values(z) + epsilon
    return torch.exp(-(p * p.log()).sum()).item()


def covariance_spectrum(z: Tensor) -> Tensor:
    r"""Eigenvalues of the covariance of the normalised embeddings, [n, q]; the largest first, float64 [min(n, q)].

    The other eigenvalues are 0. Their sum is :math:`1 - \|\bar z\|^2`. For the uniform distribution all q are 1/q.
    """
    z = normalised(checked(z), torch.float64)
    return torch.linalg.svdvals(z - z.mean(dim=0)).square() / z.shape[0]


def energy_per_degree(z: Tensor, degrees: int = 4) -> list[float]:
    r"""Energy of the normalised embeddings, [n, q] with q at least 2, in degrees l = 1 to `degrees`.

    .. math:: N(q, l) \operatorname{mean}_{i \ne j} P_l(q; \langle z_i, z_j \rangle)

    An unbiased estimate of the squared norm of the part of degree l of their distribution, which is 0 for the uniform
    distribution and :math:`N(q, l)` if all embeddings are equal.
    """
    rows, wanted = unit_rows(checked(z, least=2, least_dim=2)), range(1, degrees + 1)
    means = row_means(rows, wanted).mean(dim=1).tolist()
    return [harmonics(l, rows.shape[1]) * mean for l, mean in zip(wanted, means, strict=True)]


def summary(views: list[Tensor]) -> dict[str, float]:
    """Alignment of the first two views, uniformity and effective rank of the first; views [n, q] each."""
    return {
        "alignment": alignment(views[0], views[1]),
        "uniformity": uniformity(views[0]),
        "effective_rank": effective_rank(views[0]),
    }


def _normalised_singular_values(z: Tensor) -> Tensor:
    """Singular values divided by their sum, [min(n, q)]."""
    z = checked(z)
    s = torch.linalg.svdvals(scaled(z.to(torch.promote_types(z.dtype, torch.float32)), dim=(0, 1)).float())
    return s / s.sum().clamp_min(torch.finfo(s.dtype).tiny)
