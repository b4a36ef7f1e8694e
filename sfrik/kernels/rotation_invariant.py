r"""Rotation-invariant kernels: truncated, Gaussian (RBF), heat and arbitrary ones, with their spectra.

Notation as in `sfrik.kernels`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.polynomial import Polynomial
from torch import Tensor

from sfrik.kernels.polynomials import (
    check_degree,
    check_dim,
    check_whole,
    gauss_gegenbauer,
    legendre_sequence,
    legendre_series,
    log_harmonics,
    log_harmonics_ratios,
)

__all__ = ["RotationInvariantKernel"]

MAX_SCALE = 1e4  # exp(-1e4 |u - v|^2) is 0 in float32 from a distance of 0.1 on
MAX_NODES = 1024  # of the quadrature: the time for its eigenvalues grows with the third power of their number
HEAT_TAIL = 20_000  # degrees of the heat kernel beyond the last one, to measure what the truncation leaves out


@dataclass(frozen=True)
class RotationInvariantKernel:
    r"""The kernel :math:`\phi(t) = \sum_{l=1}^{L} b_l P_l(q; t)`, a truncated Legendre series.

    There is no term of degree 0: it is a constant, which cancels in the MMD to the uniform distribution.

    Args:
        coefficients: :math:`b_1, \dots, b_L`, finite and non-negative, at least one above 0; L is at most 4096.
        dim: q, from 2 to 2**20.
        left_out: fraction of :math:`\sum_{l \ge 1} b_l` that a truncation at L left out; 0 if the series ends at L.

    Raises:
        ValueError: a coefficient is negative or not finite, all are 0, there are too many, or `dim` is out of bounds.

    >>> import torch
    >>> kernel = RotationInvariantKernel((1.0, 40.0), dim=512)
    >>> float(kernel(torch.tensor(1.0)))
    41.0
    >>> heat = RotationInvariantKernel.heat(time=0.5, dim=3, degree=3)
    >>> rbf = RotationInvariantKernel.rbf(scale=2.5, dim=3, degree=3)
    >>> square = RotationInvariantKernel.from_function(lambda t: t**2, dim=3, degree=3)
    >>> [[round(b, 3) for b in kernel.coefficients] for kernel in (heat, rbf, square)]
    [[1.104, 0.249, 0.017], [0.24, 0.26, 0.196], [0.0, 0.667, 0.0]]
    """

    coefficients: tuple[float, ...]
    dim: int
    left_out: float = 0.0

    def __post_init__(self) -> None:
        check_dim(self.dim)
        values = tuple(float(b) for b in self.coefficients)
        for degree, b in enumerate(values, start=1):
            if not (math.isfinite(b) and b >= 0):
                raise ValueError(
                    f"the kernel's coefficient of degree {degree} is {b}: a rotation-invariant kernel is positive "
                    "definite only if every coefficient is finite and >= 0; set it to 0 to leave the degree out"
                )
        if not any(values):
            raise ValueError(f"a kernel needs at least one coefficient above 0, got {values}")
        check_degree(len(values))
        object.__setattr__(self, "coefficients", values)

    @property
    def degree(self) -> int:
        """L, the highest degree of the series."""
        return len(self.coefficients)

    @property
    def spectrum(self) -> tuple[float, ...]:
        """Eigenvalues `b_l / N(q, l)`, l = 1..L, of the kernel under the uniform distribution (Funk-Hecke formula)."""
        # by logarithms, since N(32768, 110) is beyond the range of float64
        counts = log_harmonics(self.degree, self.dim)[1:].tolist()
        return tuple(math.exp(math.log(b) - n) if b else 0.0 for b, n in zip(self.coefficients, counts, strict=True))

    def __call__(self, t: Tensor) -> Tensor:
        r""":math:`\phi(t)`, of the shape and dtype of `t`. Differentiable."""
        return legendre_series(t, (0.0, *self.coefficients), self.dim)

    def derivative(self, t: Tensor) -> Tensor:
        r""":math:`\phi'(t)`, from :math:`P_l'(q; t) = \frac{l (l + q - 2)}{q - 1} P_{l-1}(q + 2; t)`."""
        q = self.dim
        slopes = [b * l * (l + q - 2) / (q - 1) for l, b in enumerate(self.coefficients, start=1)]
        return legendre_series(t, slopes, q + 2)

    @property
    def monomials(self) -> tuple[float, ...]:
        r""":math:`c_0, \dots, c_L` such that :math:`\phi(t) = \sum_k c_k t^k`.

        As accurate as the Legendre series up to degree 4. Beyond, in small dimensions, the terms are far larger than their sum.
        """
        phi = legendre_series(Polynomial([0.0, 1.0]), (0.0, *self.coefficients), self.dim).coef
        return tuple(np.pad(phi, (0, self.degree + 1 - len(phi))).tolist())

    @classmethod
    def truncated(cls, weights: Sequence[float], dim: int) -> RotationInvariantKernel:
        r"""The paper's SFRIK kernel; `weights` are :math:`b_1, \dots, b_L`, for instance (1, 40, 40)."""
        return cls(tuple(weights), dim)

    @classmethod
    def rbf(cls, scale: float, dim: int, degree: int) -> RotationInvariantKernel:
        r"""The Gaussian kernel :math:`\exp(-s \|u - v\|^2) = \exp(-2 s (1 - t))`, degrees 1 to `degree`.

        With :math:`k = 2 s` and :math:`a = (q - 2) / 2`, Gegenbauer's expansion of :math:`e^{k t}` (DLMF 10.23.9) gives
        :math:`b_l \propto N(q, l) I_{a+l}(k)`, where I is the modified Bessel function of the first kind. The ratios
        :math:`r_l = I_{a+l+1}(k) / I_{a+l}(k)` follow from the recurrence
        :math:`r_{l-1} = 1 / (2 (a + l) / k + r_l)` (DLMF 10.29.1), which is stable downwards, and the constant from
        :math:`\sum_{l \ge 0} b_l = \phi(1) = 1`. Working with logarithms avoids overflow and underflow at q = 32768.

        Args:
            scale: s, above 0 and at most 1e4.
            dim: q.
            degree: L.
        """
        if not 0 < scale <= MAX_SCALE:
            bound = f"at most {MAX_SCALE:g}" if scale > MAX_SCALE else "a number above 0"
            raise ValueError(f"scale of the RBF kernel must be {bound}, got {scale}")
        check_dim(dim)
        check_degree(degree)
        k, a = 2 * scale, (dim - 2) / 2
        # the b_l approach a Poisson distribution of mean k as q grows, and are more concentrated for smaller q
        most = degree + int(k + 12 * math.sqrt(k)) + 60
        ratios = [0.0] * (most + 60)  # the error of the starting value 0 decays over the last 60
        for l in range(len(ratios) - 1, 0, -1):
            ratios[l - 1] = 1 / (2 * (a + l) / k + ratios[l])
        logs = np.concatenate([[0.0], np.cumsum(log_harmonics_ratios(most, dim) + np.log(ratios[:most]))])
        return cls._from_logs((logs - np.logaddexp.reduce(logs))[1:], dim, degree)

    @classmethod
    def heat(cls, time: float, dim: int, degree: int) -> RotationInvariantKernel:
        r"""The heat kernel of the sphere, :math:`b_l = N(q, l) \exp(-l (l + q - 2) \tau)`, degrees 1 to `degree`.

        :math:`l (l + q - 2)` are the eigenvalues of the negative Laplace-Beltrami operator (Müller 1998, section 2).

        Args:
            time: :math:`\tau`, above 0.
            dim: q.
            degree: L.
        """
        if not (math.isfinite(time) and time > 0):
            raise ValueError(f"time of the heat kernel must be a number above 0, got {time}")
        check_dim(dim)
        check_degree(degree)
        l = np.arange(1.0, degree + HEAT_TAIL + 1)
        return cls._from_logs(log_harmonics(len(l), dim)[1:] - l * (l + dim - 2) * time, dim, degree)

    @classmethod
    def from_function(
        cls, phi: Callable[[np.ndarray], np.ndarray], dim: int, degree: int, nodes: int = 256
    ) -> RotationInvariantKernel:
        r"""The Legendre series of any kernel function, degrees 1 to `degree`, by Gauss-Gegenbauer quadrature in float64.

        .. math:: b_l = N(q, l) \, \mathbb{E}[\phi(t) P_l(q; t)]

        where t is the inner product of two independent uniform points on the sphere. The expectation is
        :math:`b_l / N(q, l)`, far below the terms of its sum, so round-off limits the absolute error of :math:`b_l` to about
        :math:`10^{-16} \sqrt{N(q, l)} \max |\phi|`. A coefficient below that is set to 0, with a warning.

        Args:
            phi: vectorised function of an array of inner products.
            dim: q.
            degree: L.
            nodes: number of quadrature nodes, above `degree` and at most 1024. The result is exact for polynomials of degree up
                to `2 * nodes - degree - 1`.

        Raises:
            ValueError: a coefficient is negative beyond round-off, so `phi` is not positive definite; or an argument is out of
                bounds.
        """
        check_dim(dim)
        check_degree(degree)
        check_whole("nodes", nodes, degree + 1, MAX_NODES)
        t, weight = gauss_gegenbauer(nodes, dim)
        value = np.asarray(phi(t), dtype=np.float64)
        if value.shape != t.shape or not np.isfinite(value).all():
            raise ValueError("phi must return one finite value for every inner product in (-1, 1)")
        coefficients = []
        numbers = np.exp(np.minimum(log_harmonics(degree, dim), 700))  # from e^66 on everything is round-off
        for l, p in enumerate(islice(legendre_sequence(t, dim), 1, degree + 1), start=1):
            number = float(numbers[l])
            b = number * float(np.sum(weight * value * p))
            noise = 16 * np.finfo(np.float64).eps * math.sqrt(number) * float(np.abs(value).max())
            if -8 * l * noise <= b <= noise:  # the nodes are rounded too, which high degrees amplify
                if b != 0 and noise > 1e-9 * float(np.abs(value).max()):
                    warnings.warn(
                        f"the coefficient of degree {l} in dimension {dim} is below the round-off of the quadrature "
                        f"({noise:.1e}) and was set to 0",
                        stacklevel=2,
                    )
                b = 0.0
            elif b < 0:
                raise ValueError(
                    f"phi is not positive definite on the sphere of R^{dim}: its coefficient of degree {l} is {b:.3g} < 0"
                )
            coefficients.append(b)
        # all b_l with l >= 1 add up to phi(1) - b_0, whatever the nodes resolve of phi (a kink at 1)
        total = float(np.asarray(phi(np.ones(1)), dtype=np.float64)[0]) - float(np.sum(weight * value))
        left_out = max(0.0, 1 - sum(coefficients) / total) if total > 0 else 0.0
        return cls(tuple(coefficients), dim, left_out)

    @classmethod
    def _from_logs(cls, logs: np.ndarray, dim: int, degree: int) -> RotationInvariantKernel:
        """The kernel of degree `degree`, given the logarithms of the coefficients of the whole series from degree 1 on."""
        largest = float(logs[:degree].max())
        if largest > math.log(np.finfo(np.float64).max):
            raise ValueError(
                f"the kernel's coefficients exceed the range of float64 in dimension {dim} (the largest is "
                f"exp({largest:.0f})): take a wider kernel (a smaller scale, a longer time) or fewer degrees"
            )
        if largest < math.log(np.finfo(np.float64).tiny):
            raise ValueError(
                f"the kernel's coefficients of degrees 1 to {degree} are below the range of float64 in dimension {dim} (the "
                f"largest is exp({largest:.0f})): take a smaller scale, a shorter time or more degrees"
            )
        relative = np.exp(logs - logs.max())
        head, tail = float(relative[:degree].sum()), float(relative[degree:].sum())
        return cls(tuple(np.exp(logs[:degree]).tolist()), dim, tail / (head + tail))
