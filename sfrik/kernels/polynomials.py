r"""Legendre polynomials in any dimension: values, derivatives, series, numbers of spherical harmonics, quadrature.

:math:`P_l(q; \cdot)` is the Legendre polynomial of degree :math:`l` in dimension :math:`q`, normalised to
:math:`P_l(q; 1) = 1` (C. Müller, *Analysis of Spherical Symmetries in Euclidean Spaces*, 1998). In terms of the Gegenbauer
polynomials, :math:`P_l(q; t) = C_l^{(a)}(t) / C_l^{(a)}(1)` with :math:`a = (q - 2) / 2`.

Legend: :math:`q` `dim`, the dimension of the space that contains the sphere; :math:`l` `degree`; :math:`t` the inner product of
two unit vectors, in [-1, 1]; :math:`N(q, l)` `harmonics`, the number of linearly independent spherical harmonics of degree l.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import count, islice
from numbers import Real
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.polynomial import Polynomial
from torch import Tensor

__all__ = [
    "check_degree",
    "check_dim",
    "check_inner_products",
    "check_whole",
    "gauss_gegenbauer",
    "harmonics",
    "legendre",
    "legendre_sequence",
    "legendre_series",
    "log_gamma_ratio",
    "log_harmonics",
    "log_harmonics_ratios",
    "orthonormal_with_derivative",
]

# Limits within which everything takes well under a second, far beyond what an embedding can use.
MAX_DIM = 2**20
MAX_DEGREE = 4096

T = TypeVar("T", Tensor, np.ndarray, Polynomial)


def legendre(t: Tensor, degree: int, dim: int) -> Tensor:
    r"""The Legendre polynomial :math:`P_l(q; t)` of degree l in dimension q, normalised to :math:`P_l(q; 1) = 1`.

    Computed by the three-term recurrence, which is stable on [-1, 1] for every degree and dimension
    (Müller 1998, section 2, lemma 3):

    .. math:: (l + q - 3) P_l = (2 l + q - 4) \, t \, P_{l-1} - (l - 1) P_{l-2}

    Args:
        t: inner products, a floating-point tensor of any shape. Differentiable.
        degree: l, from 0 to 4096.
        dim: q, from 2 to 2**20. q = 2 gives the Chebyshev polynomials, q = 3 the classical Legendre polynomials.

    Returns:
        A tensor of the shape and dtype of `t`.

    Raises:
        ValueError: `degree` or `dim` is out of bounds, or `t` is not a floating-point tensor.

    >>> legendre(torch.tensor([-1.0, 0.0, 1.0]), degree=2, dim=3)
    tensor([ 1.0000, -0.5000,  1.0000])
    """
    dim, degree = check_dim(dim), check_degree(degree, least=0)
    return legendre_series(t, [0.0] * degree + [1.0], dim)


def harmonics(degree: int, dim: int) -> int:
    r""":math:`N(q, l)`, the number of linearly independent spherical harmonics of degree l on the sphere in dimension q.

    >>> [harmonics(degree, dim=3) for degree in range(4)]
    [1, 3, 5, 7]
    """
    dim, degree = check_dim(dim), check_degree(degree, least=0)
    if degree == 0:
        return 1
    if degree == 1:
        return dim
    return math.comb(degree + dim - 1, degree) - math.comb(degree + dim - 3, degree - 2)


def legendre_sequence(t: T, dim: int) -> Iterator[T]:
    r""":math:`P_0(q; t), P_1(q; t), \dots` without end, for a tensor, an array or a polynomial t."""
    current: Any = t
    before = _constant(t, 1.0)
    yield before
    for a, c in _recurrence(dim):
        yield current
        before, current = current, a * t * current - c * before


def legendre_series(t: T, coefficients: Sequence[float], dim: int) -> T:
    r"""The sum of `coefficients[l]` times :math:`P_l(q; t)`, l from 0, for a tensor, an array or a polynomial t."""
    total = _constant(t, coefficients[0])
    for b, p in zip(coefficients[1:], islice(legendre_sequence(t, dim), 1, None), strict=False):
        if b:
            total = total + b * p
    return total


def orthonormal_with_derivative(t: Tensor, degree: int, dim: int) -> Iterator[tuple[Tensor, Tensor]]:
    r""":math:`p_l(t) = \sqrt{N(q, l)} \, P_l(q; t)` and :math:`p_l'(t)` for l = 1 to `degree`.

    Over uniform points the mean square of :math:`p_l` is 1: it is in the range of float32 where N(q, l) and :math:`P_l` are not.
    """
    before, current = torch.zeros_like(t), torch.ones_like(t)
    slope_before, slope = torch.zeros_like(t), torch.zeros_like(t)
    sides = _sides(degree, dim).tolist()
    for below, side in zip([0.0, *sides], sides, strict=False):
        slope_before, slope = slope, (current + t * slope - below * slope_before) / side
        before, current = current, (t * current - below * before) / side
        yield current, slope


def _recurrence(dim: int) -> Iterator[tuple[float, float]]:
    """Coefficients a and c of `P_l = a t P_{l-1} - c P_{l-2}`, for l = 2, 3, ..."""
    for l in count(2):
        yield (2 * l + dim - 4) / (l + dim - 3), (l - 1) / (l + dim - 3)


def _constant(t: Any, value: float) -> Any:
    """`value` as a tensor or array of the shape of t, or as a polynomial."""
    if isinstance(t, Polynomial):
        return Polynomial([value])
    if isinstance(t, np.ndarray):
        return np.full_like(t, value)
    return torch.full_like(check_inner_products(t), value)


def log_harmonics(most: int, dim: int) -> np.ndarray:
    """Logarithms of N(q, l) for l = 0 to `most`; the numbers themselves have up to 1e5 digits."""
    return np.concatenate([[0.0], np.cumsum(log_harmonics_ratios(most, dim))])


def log_harmonics_ratios(most: int, dim: int) -> np.ndarray:
    """Logarithms of N(q, l + 1) / N(q, l) = (2 l + q) (l + q - 2) / ((2 l + q - 2) (l + 1)) for l = 0 to `most` - 1."""
    l = np.arange(1.0, most)
    return np.log(np.concatenate([[dim], (2 * l + dim) * (l + dim - 2) / ((2 * l + dim - 2) * (l + 1))]))


def gauss_gegenbauer(nodes: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    r"""Quadrature nodes and weights for the inner product of two uniform points, of density ~ :math:`(1 - t^2)^{(q-3)/2}`.

    The nodes are the eigenvalues of the Jacobi matrix of the recurrence, the weights the squares of the first entries of its
    eigenvectors (Golub & Welsch 1969). Where these are round-off, the weight is :math:`1 / \sum_{l < n} N(q, l) P_l(t)^2` with n
    nodes, which is accurate there since :math:`P_l` is large. scipy's `roots_gegenbauer` overflows at q = 2048 with 256 nodes
    and returns NaN.
    """
    sides = _sides(nodes - 1, dim)
    # not scipy's eigh_tridiagonal: with SciPy 1.15's choice of driver the weights are off by 300 units of round-off
    t, vectors = np.linalg.eigh(np.diag(sides, -1))
    before, current = np.zeros_like(t), np.ones_like(t)  # sqrt(N(q, l)) P_l(t), orthonormal
    total = np.ones_like(t)
    with np.errstate(over="ignore", invalid="ignore"):  # beyond the range of float64 the weight is 0
        for below, side in zip([0.0, *sides[:-1]], sides, strict=True):
            before, current = current, (t * current - below * before) / side
            total += current**2
    weight = vectors[0] ** 2
    return t, np.where(weight > 1e-20, weight, 1 / np.nan_to_num(total, nan=np.inf, posinf=np.inf))


def _sides(count: int, dim: int) -> np.ndarray:
    r"""The first :math:`s_l` of :math:`t \, p_{l-1} = s_l p_l + s_{l-1} p_{l-2}`, where :math:`p_l = \sqrt{N(q, l)} P_l`."""
    l = np.arange(2.0, count + 1)
    return np.sqrt(np.concatenate([[1 / dim], l * (l + dim - 3) / ((2 * l + dim - 2) * (2 * l + dim - 4))])[:count])


def log_gamma_ratio(x: float, p: float) -> float:
    r""":math:`\log \Gamma(x + p) - \log \Gamma(x)` for x > 0 and 0 < p < 1, also where both are far above their difference.

    Stirling's series (DLMF 5.11.1), after steps of :math:`\Gamma(x + 1) = x \, \Gamma(x)` to an x where its error is round-off.
    """
    steps = max(0, math.ceil(16 - x))
    below = math.fsum(math.log1p(p / (x + i)) for i in range(steps))
    x += steps
    y = x + p
    series = sum(
        c * (y ** (1 - 2 * k) - x ** (1 - 2 * k)) for k, c in enumerate((1 / 12, -1 / 360, 1 / 1260, -1 / 1680), start=1)
    )
    return p * math.log(y) + (x - 0.5) * math.log1p(p / x) - p + series - below


def check_dim(dim: int) -> int:
    """`dim` as an int; raises a ValueError unless it is a whole number from 2 to `MAX_DIM`."""
    return check_whole("dim", dim, 2, MAX_DIM)


def check_degree(degree: int, least: int = 1) -> int:
    """`degree` as an int; raises a ValueError unless it is a whole number from `least` to `MAX_DEGREE`."""
    return check_whole("degree", degree, least, MAX_DEGREE)


def check_whole(name: str, value: int, least: int, most: int) -> int:
    """The value as an int, such as 4 of 4.0; raises a ValueError unless it is a whole number from `least` to `most`."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not least <= value <= most or value != int(value):
        bound = f"<= {most}" if number and value > most else f">= {least}"
        raise ValueError(f"{name} must be a whole number {bound}, got {value!r}")
    return int(value)


def check_inner_products(t: Tensor) -> Tensor:
    """t itself; raises a ValueError unless it is a floating-point tensor."""
    if not isinstance(t, Tensor) or not t.is_floating_point():
        raise ValueError(f"t must be a floating-point tensor of inner products, got {type(t).__name__}")
    return t
