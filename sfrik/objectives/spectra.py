r"""Spectra of the losses near the uniform distribution, and the values that their regularisers have for reference distributions.

Near uniformly distributed embeddings every regulariser that is invariant to rotations has the gradient of a squared MMD,

.. math:: \sum_l w_l \, \frac{1}{n^2} \sum_{i,j} P_l(q; \langle z_i, z_j \rangle),

and :math:`w_l` is stated relative to the alignment, as the squared distance :math:`\|z_a - z_v\|^2` of two views of norm 1, whose
weight is then 1. So :math:`w_l = \lambda b_l` for SFRIK, and the numbers of different losses are in one unit.

All other kernels here are exponentials, for which (Müller 1998, section 2, Rodrigues' rule), with u uniform on the sphere,

.. math:: \mathbb{E}\big[ e^{c \langle w, u \rangle} P_l(q; \langle w, u \rangle) \big]
    = \frac{c^l}{q (q + 2) \cdots (q + 2 l - 2)} \; {}_0F_1\!\big(; \tfrac{q}{2} + l; \tfrac{c^2}{4}\big).

Legend: n rows over all processes, q their dimension, l degree, N(q, l) number of spherical harmonics of degree l.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sfrik.kernels.polynomials import log_harmonics

__all__ = ["Floor", "exponential_moments", "log_mean_exponential", "per_squared_distance", "second_moments"]


@dataclass(frozen=True)
class Floor:
    """What a regulariser is for n rows of known distributions; unweighted, as the loss terms are.

    Attributes:
        term: the regulariser's name in the loss terms.
        random: its expectation for n independent uniform rows; in AUH the limit of many rows. Not a lower bound.
        orthogonal: its value for n orthogonal rows; None if n > q, where there are none.
        collapsed: its value for n equal rows.

    >>> floor = Floor("mmd", random=0.25, orthogonal=0.125, collapsed=1.25)
    >>> floor.excess(0.75), floor.relative_excess(0.75)
    (0.5, 0.5)
    >>> print(floor)
    mmd of random rows 0.25, of orthogonal rows 0.125, of equal rows 1.25
    """

    term: str
    random: float
    orthogonal: float | None
    collapsed: float

    def __str__(self) -> str:
        orthogonal = "" if self.orthogonal is None else f"of orthogonal rows {self.orthogonal:.4g}, "
        return f"{self.term} of random rows {self.random:.4g}, {orthogonal}of equal rows {self.collapsed:.4g}"

    def excess(self, value: float) -> float:
        """What a value has above that of random rows; below 0 for rows that are spread more evenly."""
        return value - self.random

    def relative_excess(self, value: float) -> float:
        """The excess as a fraction of that of a collapse to one point: comparable across n, q and kernels."""
        return self.excess(value) / (self.collapsed - self.random)


def per_squared_distance(weight: float) -> float:
    """The factor that makes the weight of the squared distance of two views 1.

    Raises:
        ValueError: the weight is 0.
    """
    if not weight > 0:
        raise ValueError("the spectrum is relative to the alignment, whose weight is 0 here")
    return 1 / weight


def exponential_moments(rate: float, dim: int, degrees: int) -> tuple[list[float], list[float]]:
    r"""Coefficients :math:`b_l / b_0` and eigenvalues :math:`b_l / (b_0 N(q, l))`, l = 1 to `degrees`, of the kernel e^(rate t).

    >>> [[round(x, 4) for x in part] for part in exponential_moments(5.0, 8192, 3)]
    [[5.0, 12.4985, 20.8257], [0.0006, 0.0, 0.0]]
    """
    log_mean = log_mean_exponential(rate, dim)
    counts = log_harmonics(degrees + 1, dim)
    logs = [_log_moment(rate, dim, l)[0] - log_mean for l in range(1, degrees + 1)]
    return [float(np.exp(x + counts[l])) for l, x in enumerate(logs, 1)], [math.exp(x) for x in logs]


def log_mean_exponential(rate: float, dim: int) -> float:
    """Logarithm of the mean of e^(rate t), where t is the inner product of two independent uniform points on the sphere."""
    return _log_moment(rate, dim, 0)[0]


def second_moments(frequencies: np.ndarray, dim: int, degrees: int) -> np.ndarray:
    r"""Energy in degree l of waves: :math:`N(q, l) |\mathbb{E}[e^{i s t} P_l(q; t)]|^2`, [degrees, len(frequencies)]."""
    counts = log_harmonics(degrees + 1, dim)
    energies = [[_log_moment(s, dim, l, sign=-1) for s in frequencies] for l in range(1, degrees + 1)]
    return np.array([[math.exp(counts[l] + 2 * log) * x**2 for log, x in row] for l, row in enumerate(energies, 1)])


def _log_moment(rate: float, dim: int, degree: int, sign: int = 1) -> tuple[float, float]:
    """x and m such that the formula above is m e^x in absolute value, for c = rate (then m = 1) or, with sign -1, c = i rate."""
    quarter, half = rate * rate / 4, dim / 2 + degree
    m = np.arange(1.0, 40 + 4 * math.sqrt(quarter))  # far beyond the largest term
    terms = np.concatenate([[0.0], np.cumsum(math.log(quarter) - np.log(m) - np.log(half + m - 1))])
    largest = float(terms.max())
    total = float(np.exp(terms - largest) @ np.where(np.arange(len(terms)) % 2, sign, 1))
    log = degree * math.log(rate) - float(np.log(dim + 2 * np.arange(degree)).sum()) + largest
    return (log + math.log(total), 1.0) if sign > 0 else (log, total)
