r"""Rotation-invariant kernels on the sphere and their spectra (section 3 of the paper).

A kernel `phi(<u, v>)` on the unit sphere of R^q that is invariant to rotations is positive definite exactly when

    phi(t) = sum_{l >= 0} b_l P_l(q; t),    b_l >= 0,    sum_l b_l < infinity        (Schoenberg 1942)

where `P_l(q; .)` is the Legendre polynomial of degree `l` in dimension `q`, normalised to `P_l(q; 1) = 1`
(C. Mueller, *Analysis of Spherical Symmetries in Euclidean Spaces*, 1998). In the notation of orthogonal
polynomials, `P_l(q; t) = C_l^(a)(t) / C_l^(a)(1)` with the Gegenbauer polynomial `C_l^(a)` and `a = (q - 2) / 2`.

Legend: q `dim`, the dimension of the space around the sphere S^(q-1); l `degree`; t the inner product of two
unit vectors, in [-1, 1]; N(q, l) the number of linearly independent spherical harmonics of degree l.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["RotationInvariantKernel", "harmonics", "legendre"]

# What is computed in well under a second; all of it is far beyond what an embedding can use.
LARGEST_DIM = 2**20
LARGEST_DEGREE = 4096
LARGEST_SCALE = 1e4  # exp(-1e4 |u - v|^2) is 0 in float32 from a distance of 0.1 on
LARGEST_NODES = 1024  # of the quadrature: its eigenvalues take the third power of their number
BEYOND = 20_000  # degrees of the heat kernel after the last one, to measure what the truncation drops


@dataclass(frozen=True)
class RotationInvariantKernel:
    r"""The kernel `phi(t) = sum_{l=1..L} b_l P_l(q; t)` of a truncated Legendre series.

    The degree-0 term is left out: it is the constant that the uniform distribution cancels in the MMD.

    Args:
        coefficients: `b_1, ..., b_L`, each finite and non-negative, not all of them zero; L <= 4096.
        dim: q, from 2 to 2**20.
        left_out: share of `sum_{l >= 1} b_l` that a truncation at L has dropped; 0 where the series ends at L.

    Raises:
        ValueError: a coefficient is negative or not finite, there is none above 0 or too many, or `dim` is out of bounds.

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
        _check_dim(self.dim)
        values = tuple(float(b) for b in self.coefficients)
        for degree, b in enumerate(values, start=1):
            if not (math.isfinite(b) and b >= 0):
                raise ValueError(
                    f"the kernel's coefficient of degree {degree} is {b}: a rotation-invariant kernel is positive "
                    "definite only if every coefficient is finite and >= 0; set it to 0 to leave the degree out"
                )
        if not any(values):
            raise ValueError(f"a kernel needs one coefficient above 0, got {values}")
        _check_degree(len(values))
        object.__setattr__(self, "coefficients", values)

    @property
    def degree(self) -> int:
        """L, the highest degree of the series."""
        return len(self.coefficients)

    @property
    def spectrum(self) -> tuple[float, ...]:
        """Eigenvalues `b_l / N(q, l)` of the kernel under the uniform distribution, for l = 1..L (Funk-Hecke)."""
        # in logarithms, since N(32768, 110) is beyond the range of float64
        counts = _log_harmonics(self.degree, self.dim)[1:].tolist()
        return tuple(math.exp(math.log(b) - n) if b else 0.0 for b, n in zip(self.coefficients, counts, strict=True))

    def __call__(self, t: Tensor) -> Tensor:
        """`phi(t)`, of the shape and dtype of `t`."""
        return _series(t, (0.0, *self.coefficients), self.dim)

    def derivative(self, t: Tensor) -> Tensor:
        r"""`phi'(t)`, by `P_l'(q; t) = l (l + q - 2) / (q - 1) P_{l-1}(q + 2; t)`."""
        q = self.dim
        slopes = [b * l * (l + q - 2) / (q - 1) for l, b in enumerate(self.coefficients, start=1)]
        return _series(t, slopes, q + 2)

    @property
    def monomials(self) -> tuple[float, ...]:
        """`c_0, ..., c_L` with `phi(t) = sum_k c_k t^k`. Of degree 4 and less as accurate as the Legendre series; beyond, in a
        small dimension, the terms are far larger than their sum."""
        q = self.dim
        before, current = np.array([1.0]), np.array([0.0, 1.0])
        total = np.zeros(self.degree + 1)
        for l, b in enumerate(self.coefficients, start=1):
            if l > 1:
                following = np.concatenate([[0.0], (2 * l + q - 4) / (l + q - 3) * current])
                following[: l - 1] -= (l - 1) / (l + q - 3) * before
                before, current = current, following
            total[: l + 1] += b * current
        return tuple(total.tolist())

    @classmethod
    def truncated(cls, weights: Sequence[float], dim: int) -> RotationInvariantKernel:
        """The paper's SFRIK kernel: `weights` are `b_1..b_L`, for instance (1, 40, 40)."""
        return cls(tuple(weights), dim)

    @classmethod
    def rbf(cls, scale: float, dim: int, degree: int) -> RotationInvariantKernel:
        r"""The Gaussian kernel `exp(-scale |u - v|^2) = exp(-2 scale (1 - t))`, degrees 1 to `degree`.

        With k = 2 scale and a = (q - 2) / 2, Gegenbauer's expansion of `exp(k t)` gives `b_l` in proportion to
        N(q, l) I_{a+l}(k) with the modified Bessel function I (DLMF 10.23.9). The ratios r_l = I_{a+l+1}(k) / I_{a+l}(k)
        follow from the recurrence `r_{l-1} = 1 / (2 (a + l) / k + r_l)` (DLMF 10.29.1), which is stable downwards, and the
        sum of all `b_l` is phi(1) = 1. In logarithms nothing overflows at q = 32768.

        Args:
            scale: above 0, at most 1e4.
        """
        if not 0 < scale <= LARGEST_SCALE:
            bound = f"at most {LARGEST_SCALE:g}" if scale > LARGEST_SCALE else "a number above 0"
            raise ValueError(f"scale of the RBF kernel must be {bound}, got {scale}")
        _check_dim(dim)
        _check_degree(degree)
        k, a = 2 * scale, (dim - 2) / 2
        most = degree + int(k + 12 * math.sqrt(k)) + 60  # for q -> infinity Poisson's of mean k; narrower for any other q
        ratios = [0.0] * (most + 60)  # the recurrence forgets where it began
        for l in range(len(ratios) - 1, 0, -1):
            ratios[l - 1] = 1 / (2 * (a + l) / k + ratios[l])
        logs = np.concatenate([[0.0], np.cumsum(_log_steps(most, dim) + np.log(ratios[:most]))])
        return cls._from_logs((logs - np.logaddexp.reduce(logs))[1:], dim, degree)

    @classmethod
    def heat(cls, time: float, dim: int, degree: int) -> RotationInvariantKernel:
        r"""The heat kernel of the sphere at `time`, `b_l = N(q, l) exp(-l (l + q - 2) time)`, degrees 1 to `degree`.

        `l (l + q - 2)` are the eigenvalues of the Laplace-Beltrami operator (Mueller 1998, section 2).
        """
        if not (math.isfinite(time) and time > 0):
            raise ValueError(f"time of the heat kernel must be a number above 0, got {time}")
        _check_dim(dim)
        _check_degree(degree)
        l = np.arange(1.0, degree + BEYOND + 1)
        return cls._from_logs(_log_harmonics(len(l), dim)[1:] - l * (l + dim - 2) * time, dim, degree)

    @classmethod
    def from_function(
        cls, phi: Callable[[np.ndarray], np.ndarray], dim: int, degree: int, nodes: int = 256
    ) -> RotationInvariantKernel:
        r"""Degrees 1 to `degree` of any kernel function, by Gauss-Gegenbauer quadrature in float64.

        `b_l = N(q, l) E[phi(t) P_l(q; t)]` with t the inner product of two independent uniform points. The values
        that are averaged cancel down to b_l / N(q, l), so round-off limits the absolute error of b_l to about
        `1e-16 sqrt(N(q, l)) max|phi|`: a coefficient below that is set to 0, with a warning.

        Args:
            phi: function of an array of inner products, vectorised.
            nodes: number of quadrature nodes, above `degree` and at most 1024; exact for polynomials `phi` of degree up to
                `2 nodes - degree - 1`.

        Raises:
            ValueError: a coefficient is negative beyond round-off, that is `phi` is not positive definite; or a number is out of
                bounds.
        """
        _check_dim(dim)
        _check_degree(degree)
        _check_whole("nodes", nodes, degree + 1, LARGEST_NODES)
        t, weight = _gauss_gegenbauer(nodes, dim)
        value = np.asarray(phi(t), dtype=np.float64)
        if value.shape != t.shape or not np.isfinite(value).all():
            raise ValueError("phi must return one finite value for every inner product in (-1, 1)")
        coefficients = []
        polynomials = zip(range(degree + 1), _polynomials(torch.from_numpy(t), dim), strict=False)
        counts = np.exp(np.minimum(_log_harmonics(degree, dim), 700))  # from e^66 on all is round-off
        for l, p in list(polynomials)[1:]:
            count = float(counts[l])
            b = count * float(np.sum(weight * value * p.numpy()))
            noise = 16 * np.finfo(np.float64).eps * math.sqrt(count) * float(np.abs(value).max())
            if -8 * l * noise <= b <= noise:  # the nodes are rounded too, which a high degree magnifies
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
        # phi(1) may lie outside the nodes' reach (a kernel with a kink there), so the share is of what phi(1) says.
        total = float(np.asarray(phi(np.ones(1)), dtype=np.float64)[0]) - float(np.sum(weight * value))
        left_out = max(0.0, 1 - sum(coefficients) / total) if total > 0 else 0.0
        return cls(tuple(coefficients), dim, left_out)

    @classmethod
    def _from_logs(cls, logs: np.ndarray, dim: int, degree: int) -> RotationInvariantKernel:
        """Coefficients from the logarithms of all of a series, of degree 1 on, and the share beyond `degree`."""
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
        shares = np.exp(logs - logs.max())
        head, tail = float(shares[:degree].sum()), float(shares[degree:].sum())
        return cls(tuple(np.exp(logs[:degree]).tolist()), dim, tail / (head + tail))


def legendre(t: Tensor, degree: int, dim: int) -> Tensor:
    r"""`P_l(q; t)`, the Legendre polynomial of degree l in dimension q with `P_l(q; 1) = 1`.

    Computed by the three-term recurrence, which is stable on [-1, 1] for every degree and dimension:

        (l + q - 3) P_l = (2 l + q - 4) t P_{l-1} - (l - 1) P_{l-2}         (Mueller 1998, section 2, lemma 3)

    Args:
        t: inner products, any shape; a floating-point tensor. Differentiable.
        degree: l, from 0 to 4096.
        dim: q, from 2 to 2**20; q = 2 gives Chebyshev's polynomials, q = 3 Legendre's own.

    Returns:
        A tensor of the shape and dtype of `t`.

    Raises:
        ValueError: `degree` or `dim` is out of bounds, or `t` is not a floating-point tensor.

    >>> legendre(torch.tensor([-1.0, 0.0, 1.0]), degree=2, dim=3)
    tensor([ 1.0000, -0.5000,  1.0000])
    """
    _check_dim(dim)
    _check_degree(degree, least=0)
    return _series(t, [0.0] * degree + [1.0], dim)


def harmonics(degree: int, dim: int) -> int:
    """N(q, l): how many linearly independent spherical harmonics of degree l there are on S^(q-1).

    >>> [harmonics(degree, dim=3) for degree in range(4)]
    [1, 3, 5, 7]
    """
    _check_dim(dim)
    _check_degree(degree, least=0)
    if degree == 0:
        return 1
    if degree == 1:
        return dim
    return math.comb(degree + dim - 1, degree) - math.comb(degree + dim - 3, degree - 2)


def _series(t: Tensor, coefficients: Sequence[float], dim: int) -> Tensor:
    """`sum_l coefficients[l] P_l(dim; t)`, l from 0, by the recurrence of `legendre`."""
    if not (isinstance(t, Tensor) and t.is_floating_point()):
        raise ValueError(f"t must be a floating-point tensor of inner products, got {type(t).__name__}")
    total = torch.full_like(t, coefficients[0])
    for l, (b, p) in enumerate(zip(coefficients, _polynomials(t, dim), strict=False)):
        if l and b:
            total = total + b * p
    return total


def _polynomials(t: Tensor, dim: int) -> Iterator[Tensor]:
    """`P_0(dim; t)`, `P_1(dim; t)`, ... without end."""
    before, current = torch.ones_like(t), t
    yield before
    for l in itertools.count(2):
        yield current
        a = (2 * l + dim - 4) / (l + dim - 3)
        before, current = current, a * t * current - (l - 1) / (l + dim - 3) * before


def _log_harmonics(most: int, dim: int) -> np.ndarray:
    """Logarithms of N(q, l) for l = 0 to `most`: the integers themselves have 1e5 digits."""
    return np.concatenate([[0.0], np.cumsum(_log_steps(most, dim))])


def _log_steps(most: int, dim: int) -> np.ndarray:
    """Logarithms of N(q, l + 1) / N(q, l) = (2 l + q) (l + q - 2) / ((2 l + q - 2) (l + 1)) for l = 0 to `most` - 1."""
    l = np.arange(1.0, most)
    return np.log(np.concatenate([[dim], (2 * l + dim) * (l + dim - 2) / ((2 * l + dim - 2) * (l + 1))]))


def _gauss_gegenbauer(nodes: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for the inner product of two uniform points, of density ~ (1 - t^2)^((q-3)/2).

    They are the eigenvalues of the Jacobi matrix of the recurrence and its eigenvectors' first entries squared (Golub &
    Welsch 1969). Where a weight is so small that its entry is round-off it is `1 / sum_l N(q, l) P_l(t)^2`, l < `nodes`, which
    is relatively accurate: P_l is large there. scipy's `roots_gegenbauer` overflows at q = 2048 with 256 nodes, and returns NaN.
    """
    k = np.arange(2.0, nodes)
    squares = np.concatenate([[1 / dim], k * (k + dim - 3) / ((2 * k + dim - 2) * (2 * k + dim - 4))])[: nodes - 1]
    sides = np.sqrt(squares)
    # not scipy's eigh_tridiagonal: the driver that SciPy 1.15 chooses leaves weights that are off by 300 units of round-off
    t, vectors = np.linalg.eigh(np.diag(sides, -1))
    before, current = np.zeros_like(t), np.ones_like(t)  # sqrt(N(q, l)) P_l(t)
    total = np.ones_like(t)
    with np.errstate(over="ignore", invalid="ignore"):  # beyond float64 the weight is 0
        for below, side in zip([0.0, *sides[:-1]], sides, strict=True):
            before, current = current, (t * current - below * before) / side
            total += current**2
    weight = vectors[0] ** 2
    return t, np.where(weight > 1e-20, weight, 1 / np.nan_to_num(total, nan=np.inf, posinf=np.inf))


def _check_dim(dim: int) -> None:
    _check_whole("dim", dim, 2, LARGEST_DIM)


def _check_degree(degree: int, least: int = 1) -> None:
    _check_whole("degree", degree, least, LARGEST_DEGREE)


def _check_whole(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most or value != int(value):
        raise ValueError(f"{name} must be a whole number {f'<= {most}' if value > most else f'>= {least}'}, got {value}")
