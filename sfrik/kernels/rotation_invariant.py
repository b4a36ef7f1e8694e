r"""Rotation-invariant kernels: truncated, Gaussian (RBF), power, heat and arbitrary ones, with their spectra.

Notation as in `sfrik.kernels`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.polynomial import Polynomial
from torch import Tensor

from sfrik.kernels.closed_forms import ClosedForm, ExponentialForm, PowerForm
from sfrik.kernels.polynomials import check_degree, check_dim, legendre_series, log_harmonics
from sfrik.kernels.series import Series, default_time, heat_series, laplacian, power_series, quadrature, rbf_series

__all__ = ["RotationInvariantKernel", "TruncationWarning", "check_kernel", "format_share"]

MAX_SCALE = 1e4  # exp(-1e4 |u - v|^2) is 0 in float32 from a distance of 0.1 on
WORTH_A_WARNING = 0.01  # of the kernel, left out
NOTHING = 1e-12  # of a kernel, left out
SHOWN = 4  # coefficients in a repr


class TruncationWarning(UserWarning):
    """A series that was cut at a given degree leaves out more than 1 % of the kernel."""


@dataclass(frozen=True)
class RotationInvariantKernel:
    r"""The kernel :math:`\phi(t) = \sum_{l \ge 1} b_l P_l(q; t)`, a series of L degrees or a closed form.

    There is no term of degree 0: it is a constant, which cancels in the MMD to the uniform distribution.

    Args:
        coefficients: :math:`b_1, \dots, b_L`, finite and non-negative, at least one above 0; L is at most 4096.
        dim: q, from 2 to 2**20.
        left_out: fraction of :math:`\sum_{l \ge 1} b_l` that the kernel lacks since its series was cut at L; 0 if the series ends
            at L, and for a closed form.
        closed_form: evaluates the kernel in place of the series, of which `coefficients` are then a leading part.
        tails: fractions of :math:`\sum_l b_l c_l^k` that lie beyond L, for k = 0, 1, 2 as far as they are known
            (:math:`c_l = l (l + q - 2)`).

    Raises:
        ValueError: a coefficient is negative or not finite, all are 0, there are too many, or `dim` is out of bounds.

    >>> import torch
    >>> kernel = RotationInvariantKernel((1.0, 40.0), dim=512)
    >>> float(kernel(torch.tensor(1.0)))
    41.0
    >>> heat = RotationInvariantKernel.heat(time=0.5, dim=3)
    >>> rbf = RotationInvariantKernel.rbf(scale=2.5, dim=3)
    >>> square = RotationInvariantKernel.from_function(lambda t: t**2, dim=3)
    >>> [[round(b, 3) for b in kernel.coefficients[:3]] for kernel in (heat, rbf, square)]
    [[1.104, 0.249, 0.017], [0.24, 0.26, 0.196], [0.0, 0.667]]
    """

    coefficients: tuple[float, ...]
    dim: int
    left_out: float = 0.0
    closed_form: ClosedForm | None = field(default=None, kw_only=True)
    tails: tuple[float, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dim", check_dim(self.dim))
        values = tuple(_real(f"the kernel's coefficient of degree {l}", b) for l, b in enumerate(self.coefficients, start=1))
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

    def __repr__(self) -> str:
        shown = ", ".join(f"{b:g}" for b in self.coefficients[:SHOWN])
        more = f", ... ({self.degree} degrees)" if self.degree > SHOWN else ""
        form = "" if self.closed_form is None else f", closed_form={self.closed_form!r}"
        return f"{type(self).__name__}(({shown}{more}), dim={self.dim}, left_out={self.left_out:.3g}{form})"

    @property
    def degree(self) -> int:
        """L, the highest degree in `coefficients`."""
        return len(self.coefficients)

    @property
    def beyond(self) -> float:
        r"""Fraction of :math:`\sum_{l \ge 1} b_l` that lies beyond `coefficients`; `left_out`, except for a closed form."""
        return self.tails[0] if self.tails else self.left_out

    @property
    def spectrum(self) -> tuple[float, ...]:
        """Eigenvalues `b_l / N(q, l)`, l = 1..L, of the kernel under the uniform distribution (Funk-Hecke formula)."""
        # by logarithms, since N(32768, 110) is beyond the range of float64
        counts = log_harmonics(self.degree, self.dim)[1:].tolist()
        return tuple(math.exp(math.log(b) - n) if b else 0.0 for b, n in zip(self.coefficients, counts, strict=True))

    def __call__(self, t: Tensor) -> Tensor:
        r""":math:`\phi(t)`, of the shape and dtype of `t`. Differentiable."""
        return self.closed_form(t) if self.closed_form else legendre_series(t, (0.0, *self.coefficients), self.dim)

    def derivative(self, t: Tensor) -> Tensor:
        r""":math:`\phi'(t)`, of a series from :math:`P_l'(q; t) = \frac{l (l + q - 2)}{q - 1} P_{l-1}(q + 2; t)`."""
        if self.closed_form:
            return self.closed_form.derivative(t)
        q = self.dim
        slopes = [b * l * (l + q - 2) / (q - 1) for l, b in enumerate(self.coefficients, start=1)]
        return legendre_series(t, slopes, q + 2)

    def stein(self, order: int) -> RotationInvariantKernel:
        r"""The kernel whose MMD to the uniform distribution is the kernel Stein discrepancy with this one.

        On the sphere the uniform distribution has the mean 0 of :math:`X f` for every infinitesimal rotation X, and of the
        Laplacian :math:`\Delta f`: these are its Stein operators of first and second order (Barp, Oates, Porcu and Girolami 2022,
        *A Riemann-Stein kernel method*, has the second; arXiv 2605.26900 and 2606.17603 train with Stein discrepancies on the
        sphere). Applied to both arguments of the kernel

        .. math::

            \sum_X X_u X_v \, \phi(\langle u, v \rangle) = -\Delta_u \phi(\langle u, v \rangle), \qquad
            \Delta_u \Delta_v \, \phi(\langle u, v \rangle) = \Delta_u^2 \phi(\langle u, v \rangle)

        they multiply :math:`b_l` by :math:`l (l + q - 2)` and by its square. The degree of largest weight rises, and the values
        are about q and q^2 times as large, so losses need other weights.

        Args:
            order: 1 or 2.

        Raises:
            ValueError: another order; or the kernel is the exact power kernel, for which the sum of the coefficients is infinite.

        >>> RotationInvariantKernel((1.0, 40.0), dim=3).stein(1).coefficients
        (2.0, 240.0)
        """
        if order not in (1, 2):
            raise ValueError(f"the order of a Stein kernel must be 1 or 2, got {order!r}")
        order = int(order)
        closed_form = self.closed_form.stein(order, self.dim) if self.closed_form else None
        factors = laplacian(self.degree, self.dim) ** order
        coefficients = np.asarray(self.coefficients) * factors
        tails = self.tails[order:] or (self._least_tail(order),)
        kernel = RotationInvariantKernel(
            tuple(coefficients.tolist()),
            self.dim,
            0.0 if closed_form or not self.left_out else tails[0],
            closed_form=closed_form,
            tails=tails,
        )
        return kernel._warned("more degrees leave out less, unless the sum of all is infinite, as for the power kernel", 3)

    def _least_tail(self, order: int) -> float:
        """The least fraction beyond L after a multiplication by the eigenvalues: if all that is left out has degree L + 1."""
        factors = laplacian(self.degree + 1, self.dim) ** order
        total, share = sum(self.coefficients), self.beyond
        beyond = share / (1 - share) * total * factors[-1] if share < 1 else math.inf
        return 1.0 if math.isinf(beyond) else beyond / (beyond + float(np.dot(self.coefficients, factors[:-1])))

    @property
    def monomials(self) -> tuple[float, ...]:
        r""":math:`c_0, \dots, c_L` such that the series is :math:`\sum_k c_k t^k`.

        As accurate as the Legendre series up to degree 4. Beyond, in small dimensions, the terms are far larger than their sum.
        """
        phi = legendre_series(Polynomial([0.0, 1.0]), (0.0, *self.coefficients), self.dim).coef
        return tuple(np.pad(phi, (0, self.degree + 1 - len(phi))).tolist())

    @classmethod
    def truncated(cls, weights: Sequence[float], dim: int) -> RotationInvariantKernel:
        r"""The paper's SFRIK kernel; `weights` are :math:`b_1, \dots, b_L`, for instance (1, 40, 40)."""
        if isinstance(weights, str) or not isinstance(weights, Iterable):
            raise ValueError(f"weights must be numbers b_1, b_2, ..., one per degree, such as (1.0, 40.0), got {weights!r}")
        return cls(tuple(weights), dim)

    @classmethod
    def rbf(cls, scale: float, dim: int, degree: int | None = None) -> RotationInvariantKernel:
        r"""The Gaussian kernel :math:`\exp(-s \|u - v\|^2) = \exp(-2 s (1 - t))`, without its degree 0.

        Args:
            scale: s, above 0 and at most 1e4.
            dim: :math:`q`.
            degree: the last degree of a truncated series; None for the closed form.
        """
        scale = _real("scale of the RBF kernel", scale)
        if not 0 < scale <= MAX_SCALE:
            bound = f"at most {MAX_SCALE:g}" if scale > MAX_SCALE else "a number above 0"
            raise ValueError(f"scale of the RBF kernel must be {bound}, got {scale}")
        dim, degree = _whole(dim, degree)
        series = rbf_series(scale, dim, degree)
        return cls._of(series, dim, None if degree else ExponentialForm(2 * scale, series.constant))

    @classmethod
    def power(cls, exponent: float, dim: int, degree: int | None = None) -> RotationInvariantKernel:
        r"""The kernel :math:`C - \|u - v\|^s` without its degree 0; its MMD with s = 1 is the energy distance up to a factor.

        Args:
            exponent: s, above 0 and below 2.
            dim: :math:`q`.
            degree: the last degree of a truncated series; None for the closed form. The series converges slowly: its terms fall
                as :math:`l^{-s-1}` for l far above q.
        """
        exponent = _real("the exponent of the power kernel", exponent)
        if not 0 < exponent < 2:
            raise ValueError(f"the exponent of the power kernel must be above 0 and below 2, got {exponent}")
        dim, degree = _whole(dim, degree)
        series = power_series(exponent, dim, degree)
        return cls._of(series, dim, None if degree else PowerForm(exponent, series.constant))

    @classmethod
    def heat(cls, time: float | None, dim: int, degree: int | None = None) -> RotationInvariantKernel:
        r"""The heat kernel of the sphere, :math:`b_l = N(q, l) \exp(-l (l + q - 2) \tau)`.

        :math:`l (l + q - 2)` are the eigenvalues of the negative Laplace-Beltrami operator (Müller 1998, section 2).

        Args:
            time: :math:`\tau`, above 0; None for :math:`\log q / (q - 1)`, where :math:`b_1 = 1` and for large q
                :math:`b_l \approx 1 / l!`.
            dim: :math:`q`.
            degree: the last degree of a truncated series; None for as many as matter in float64.
        """
        time = None if time is None else _real("time of the heat kernel", time)
        if time is not None and not (math.isfinite(time) and time > 0):
            raise ValueError(f"time of the heat kernel must be a number above 0, got {time}")
        dim, degree = _whole(dim, degree)
        return cls._of(heat_series(default_time(dim) if time is None else time, dim, degree), dim)

    @classmethod
    def from_function(
        cls, phi: Callable[[np.ndarray], np.ndarray], dim: int, degree: int | None = None, nodes: int = 256
    ) -> RotationInvariantKernel:
        r"""The Legendre series of any kernel function, from degree 1, by Gauss-Gegenbauer quadrature in float64.

        .. math:: b_l = N(q, l) \, \mathbb{E}[\phi(t) P_l(q; t)]

        where t is the inner product of two independent uniform points on the sphere. The expectation is
        :math:`b_l / N(q, l)`, far below the terms of its sum, so round-off limits the absolute error of :math:`b_l` to about
        :math:`10^{-16} \sqrt{N(q, l)} \max |\phi|`. A coefficient below that is set to 0, with a warning if a degree is given.

        Args:
            phi: vectorised function of an array of inner products, with a value at t = 1, which is the sum of all coefficients.
            dim: :math:`q`.
            degree: the last degree; None for all that the quadrature tells from round-off, until less than 1e-12 is left.
                `left_out` is what remains.
            nodes: number of quadrature nodes, above `degree` and at most 1024. The result is exact for polynomials of degree up
                to `2 * nodes - degree - 1`.

        Raises:
            ValueError: a coefficient is negative beyond round-off, so `phi` is not positive definite; or an argument is out of
                bounds.
        """
        dim, degree = _whole(dim, degree)
        remedy = "more nodes may resolve more degrees" if degree is None else "give more degrees, or none"
        return cls._of(quadrature(phi, dim, degree, nodes), dim, remedy=remedy)

    @classmethod
    def _of(
        cls,
        series: Series,
        dim: int,
        closed_form: ClosedForm | None = None,
        remedy: str = "without a degree nothing is left out",
    ) -> RotationInvariantKernel:
        left_out = 0.0 if closed_form or series.left_out[0] < NOTHING else series.left_out[0]
        return cls(series.coefficients, dim, left_out, closed_form=closed_form, tails=series.left_out)._warned(remedy, 4)

    def _warned(self, remedy: str, stacklevel: int) -> RotationInvariantKernel:
        """The kernel; warns if it leaves out much."""
        if self.left_out > WORTH_A_WARNING:
            warnings.warn(f"{self.truncation}: {remedy}", TruncationWarning, stacklevel)
        return self

    @property
    def truncation(self) -> str:
        """A sentence on what the series leaves out; empty if that is nothing."""
        if not self.left_out:
            return ""
        share = format_share(self.left_out)
        text = f"the degrees 1 to {self.degree} leave out {share} of the kernel in dimension {self.dim}"
        return text if self.degree > 1 else text.replace("degrees 1 to 1 leave", "degree 1 leaves")


def check_kernel(kernel: RotationInvariantKernel) -> None:
    """Raise a ValueError unless this is a kernel."""
    if not isinstance(kernel, RotationInvariantKernel):
        raise ValueError(
            f"kernel must be a RotationInvariantKernel, such as RotationInvariantKernel.rbf(scale, dim), got {kernel!r}"
        )


def format_share(share: float) -> str:
    """A fraction in %, rounded so that a part of a kernel is not shown as none or all of it."""
    percent = 100 * share
    if percent > 99.9:
        return "more than 99.9 %"
    return f"{percent:.3g} %" if percent > 99 else f"{percent:.2g} %"


def _whole(dim: int, degree: int | None) -> tuple[int, int | None]:
    """The checked dimension and degree as integers."""
    return check_dim(dim), None if degree is None else check_degree(degree)


def _real(name: str, value: Any) -> float:
    """The value as a float; raises a ValueError unless it is a number."""
    try:
        if not isinstance(value, (str, bytes, bool)):
            return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last one of a tensor with several elements
        pass
    raise ValueError(f"{name} must be a number, got {value!r}")
