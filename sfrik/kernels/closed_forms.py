r"""Kernels that are evaluated by their formula in place of a series: value, derivative, and both of them on a tile.

Each is :math:`\phi(t) - b_0`, without its term of degree 0, which the MMD to the uniform distribution does not have.

Notation as in `sfrik.kernels`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.polynomial import Polynomial
from torch import Tensor

from sfrik.kernels.polynomials import check_inner_products

__all__ = ["SMALL_RATE", "ClosedForm", "ExponentialForm", "PowerForm", "Tile", "horner"]

SMALL_RATE = 1.0  # of exponentials: below it they are computed less 1, else their rounding hides how they differ


class Tile(NamedTuple):
    r"""How a kernel is evaluated on a tile of inner products: :math:`\phi = c + u f` and :math:`\phi' = v f'`.

    Attributes:
        function: f and f', which may overwrite the tile.
        constant: :math:`c`.
        unit: :math:`u`.
        slope_unit: v; in low precision the largest slope, so that f' is at most 1 when it is rounded to float16.
        diagonal: phi of a row with itself, minus c, where phi' is not finite there or would be rounded to low precision. Such
            pairs have no gradient along the sphere, and are left out of the tiles.
    """

    function: Callable[[Tensor], tuple[Tensor, Tensor]]
    constant: float = 0.0
    unit: float = 1.0
    slope_unit: float = 1.0
    diagonal: float | None = None


class ClosedForm(Protocol):
    """What a kernel in closed form has to know."""

    def __call__(self, t: Tensor) -> Tensor:
        """phi(t) - b_0, of the shape and dtype of t. Differentiable."""
        ...

    def derivative(self, t: Tensor) -> Tensor:
        """phi'(t)."""
        ...

    def tile(self, dtype: torch.dtype) -> Tile:
        """Its evaluation on tiles of inner products of rows in this dtype; tiles are in float32 or float64."""
        ...

    def stein(self, order: int, dim: int) -> ClosedForm:
        """Its Stein kernel on the sphere of this dimension (`RotationInvariantKernel.stein`)."""
        ...


@dataclass(frozen=True)
class ExponentialForm:
    r""":math:`p(t) \, e^{k (t - 1)} - b_0` with a polynomial p: the RBF kernel with p = 1, and its Stein kernels.

    Args:
        rate: :math:`k`.
        constant: :math:`b_0`.
        polynomial: the coefficients of 1, t, t^2, ... in p.
    """

    rate: float
    constant: float
    polynomial: tuple[float, ...] = (1.0,)

    def __call__(self, t: Tensor) -> Tensor:
        if self._small:
            return self._at_zero * torch.expm1(self.rate * check_inner_products(t)) - (self.constant - self._at_zero)
        return self._times_exponential(self.polynomial, t) - self.constant

    def derivative(self, t: Tensor) -> Tensor:
        p = Polynomial(self.polynomial)
        return self._times_exponential((p.deriv() + self.rate * p).coef, t)

    def tile(self, dtype: torch.dtype) -> Tile:
        rate, constant = self.rate, self.constant
        if self._small:
            at_zero = self._at_zero

            def small(t: Tensor) -> tuple[Tensor, Tensor]:
                t.mul_(rate).expm1_().mul_(at_zero)
                return t - (constant - at_zero), t + at_zero

            return Tile(small, slope_unit=rate)
        if len(self.polynomial) == 1:

            def exponential(t: Tensor) -> tuple[Tensor, Tensor]:
                t.sub_(1).mul_(rate).exp_()
                # b_0 is subtracted here: near the uniform distribution the sum of the differences is far below that of the values
                return t - constant, t

            return Tile(exponential, slope_unit=rate)
        first, *rest = self.polynomial
        p = Polynomial(self.polynomial)
        polynomial, largest = horner(rest), float(p.deriv()(1.0) + rate * p(1.0))

        def product(t: Tensor) -> tuple[Tensor, Tensor]:
            values, slopes = polynomial(t)
            values.add_(first)
            slopes.add_(values, alpha=rate).div_(largest)
            t.sub_(1).mul_(rate).exp_()
            return values.mul_(t).sub_(constant), slopes.mul_(t)

        return Tile(product, slope_unit=largest)

    def stein(self, order: int, dim: int) -> ExponentialForm:
        p, t, k = Polynomial(self.polynomial), Polynomial([0.0, 1.0]), self.rate
        for _ in range(order):  # the negative Laplacian of the sphere, (q - 1) t phi' - (1 - t^2) phi''
            first, second = p.deriv() + k * p, p.deriv(2) + 2 * k * p.deriv() + k * k * p
            p = (dim - 1) * t * first - (1 - t * t) * second
        return ExponentialForm(k, 0.0, tuple(map(float, p.coef)))

    @property
    def _small(self) -> bool:
        r"""Whether :math:`e^{k (t - 1)} - b_0` is evaluated as :math:`e^{-k} (e^{k t} - 1) - (b_0 - e^{-k})`."""
        return len(self.polynomial) == 1 and self.rate < SMALL_RATE

    @property
    def _at_zero(self) -> float:
        """:math:`e^{-k}`, the exponential at t = 0."""
        return math.exp(-self.rate)

    def _times_exponential(self, polynomial: Sequence[float] | np.ndarray, t: Tensor) -> Tensor:
        check_inner_products(t)
        value = torch.full_like(t, float(polynomial[-1]))
        for c in polynomial[-2::-1]:
            value = value * t + float(c)
        return value * torch.exp(self.rate * (t - 1))


@dataclass(frozen=True)
class PowerForm:
    r""":math:`-r^s - b_0` with the distance :math:`r = |u - v| = \sqrt{2 (1 - t)}` and 0 < s < 2.

    The derivative :math:`s \, r^{s - 2}` is infinite at r = 0. Inner products resolve :math:`r^2` only down to
    a few epsilons of their dtype. Below four of them the power :math:`r^{s - 2}` is that at this bound: equal rows have the value
    :math:`-b_0` and a finite slope, which along the sphere has no effect on them.

    Args:
        exponent: :math:`s`.
        constant: :math:`b_0`.
    """

    exponent: float
    constant: float

    def __call__(self, t: Tensor) -> Tensor:
        square = (2 - 2 * check_inner_products(t)).clamp(min=0)
        return -square * self._power(square, t.dtype) - self.constant

    def derivative(self, t: Tensor) -> Tensor:
        return self.exponent * self._power(2 - 2 * check_inner_products(t), t.dtype)

    def tile(self, dtype: torch.dtype) -> Tile:
        constant, least = self.constant, _resolved(dtype)
        power = self.exponent / 2 - 1
        largest = least**power if torch.finfo(dtype).bits < 32 else 1.0  # slopes are rounded in low precision only

        def function(t: Tensor) -> tuple[Tensor, Tensor]:
            t.sub_(1).mul_(-2).clamp_(min=0)
            slopes = t.clamp(min=least).pow_(power)
            values = t.mul_(slopes).add_(constant).neg_()
            return values, slopes if largest == 1 else slopes.div_(largest)

        return Tile(function, slope_unit=self.exponent * largest, diagonal=-constant)

    def stein(self, order: int, dim: int) -> PowerForm:
        raise ValueError(
            f"the power kernel has no Stein kernel: the sum of b_l l (l + q - 2) is infinite for -|u - v|^{self.exponent:g}; "
            "give the kernel a degree, or take the RBF or the heat kernel"
        )

    def _power(self, square: Tensor, dtype: torch.dtype) -> Tensor:
        return square.clamp(min=_resolved(dtype)) ** (self.exponent / 2 - 1)


def _resolved(dtype: torch.dtype) -> float:
    """The least squared distance that inner products of rows in this dtype resolve."""
    return 4 * torch.finfo(dtype).eps


def horner(coefficients: Sequence[float]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    r"""The function that evaluates :math:`f(t) = \sum_{k \ge 1} c_k t^k` and f' on a tile, which it does not change.

    Rounding changes f and f' by at most about 2 K epsilons of :math:`\sum_k |c_k| |t|^k` and :math:`\sum_k k |c_k| |t|^{k-1}`
    (Higham 2002, *Accuracy and Stability of Numerical Algorithms*, section 5.1).

    Args:
        coefficients: :math:`c_1, \dots, c_K`.
    """
    highest, *lower = reversed(coefficients)

    def evaluate(t: Tensor) -> tuple[Tensor, Tensor]:
        factor, values, slopes = highest, t * highest, None
        for c in lower:
            values.add_(c)
            slopes = torch.add(values, t, alpha=factor) if slopes is None else slopes.mul_(t).add_(values)
            values.mul_(t)
        return values, torch.full_like(t, highest) if slopes is None else slopes

    return evaluate
