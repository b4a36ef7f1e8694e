r"""Coefficients of the Legendre series of known kernels, by their logarithms, and of functions, by quadrature; in float64.

With :math:`c_l = l (l + q - 2)`, the eigenvalues of the negative Laplace-Beltrami operator (Müller 1998, section 2), the Stein
kernels of order k have the coefficients :math:`b_l c_l^k`. What a series leaves out is known for each of them.

Notation as in `sfrik.kernels`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

import numpy as np

from sfrik.kernels.polynomials import (
    MAX_DEGREE,
    check_whole,
    gauss_gegenbauer,
    legendre_sequence,
    log_gamma_ratio,
    log_harmonics,
    log_harmonics_ratios,
)

__all__ = ["Series", "heat_series", "laplacian", "power_series", "quadrature", "rbf_series"]

MAX_NODES = 1024  # of the quadrature: the time for its eigenvalues grows with the third power of their number
HEAT_TAIL = 20_000  # degrees of the heat kernel beyond the last one, to measure what the truncation leaves out
POWER_DEGREES = 256  # of the power kernel, whose coefficients decay as l^(-s - 1): a leading part
NEGLIGIBLE = 2.0**-54  # of a sum: below the rounding of float64


class Series(NamedTuple):
    r"""A series from degree 1 on.

    Attributes:
        coefficients: :math:`b_1, \dots, b_L`.
        left_out: fractions of :math:`\sum_l b_l c_l^k` that lie beyond degree L, for k = 0, 1, 2.
        constant: :math:`b_0`.
    """

    coefficients: tuple[float, ...]
    left_out: tuple[float, ...]
    constant: float = 0.0


def laplacian(most: int, dim: int) -> np.ndarray:
    """:math:`c_l = l (l + q - 2)` for l = 1 to `most`."""
    l = np.arange(1.0, most + 1)
    return l * (l + dim - 2)


def rbf_series(scale: float, dim: int, degree: int | None) -> Series:
    r"""Of :math:`\exp(-2 s (1 - t))`; None: all degrees, at most 4096.

    With :math:`k = 2 s` and :math:`a = (q - 2) / 2`, Gegenbauer's expansion of :math:`e^{k t}` (DLMF 10.23.9) gives
    :math:`b_l \propto N(q, l) I_{a+l}(k)`, where I is the modified Bessel function of the first kind. The ratios
    :math:`r_l = I_{a+l+1}(k) / I_{a+l}(k)` follow from the recurrence
    :math:`r_{l-1} = 1 / (2 (a + l) / k + r_l)` (DLMF 10.29.1), which is stable downwards, and the constant from
    :math:`\sum_{l \ge 0} b_l = \phi(1) = 1`.
    """
    k, a = 2 * scale, (dim - 2) / 2
    # the b_l approach a Poisson distribution of mean k as q grows, and are more concentrated for smaller q
    most = (degree or 0) + int(k + 12 * math.sqrt(k)) + 60
    ratios = [0.0] * (most + 60)  # the error of the starting value 0 decays over the last 60
    for l in range(len(ratios) - 1, 0, -1):
        ratios[l - 1] = 1 / (2 * (a + l) / k + ratios[l])
    logs = np.concatenate([[0.0], np.cumsum(log_harmonics_ratios(most, dim) + np.log(ratios[:most]))])
    logs -= np.logaddexp.reduce(logs)
    return _cut(logs[1:], dim, degree or min(_degrees(logs[1:], dim), MAX_DEGREE))._replace(constant=math.exp(logs[0]))


def heat_series(time: float, dim: int, degree: int | None) -> Series:
    r"""Of the heat kernel, :math:`b_l = N(q, l) \exp(-c_l \tau)`; None: as many degrees as matter in float64.

    Raises:
        ValueError: more than 4096 degrees matter, or the coefficients are out of the range of float64.
    """
    most = (degree or MAX_DEGREE) + HEAT_TAIL
    with np.errstate(over="ignore"):  # the coefficient is 0 then
        logs = log_harmonics(most, dim)[1:] - laplacian(most, dim) * time
    needed = degree or _degrees(logs, dim)
    if needed > MAX_DEGREE:
        raise ValueError(
            f"the heat kernel of time {time:g} in dimension {dim} has more than {MAX_DEGREE} degrees that matter: take a longer "
            f"time (log(q) / (q - 1) is {default_time(dim):.3g}), or give a degree"
        )
    return _cut(logs, dim, needed)


def default_time(dim: int) -> float:
    r""":math:`\log q / (q - 1)`, at which :math:`b_1 = q e^{-(q - 1) \tau} = 1` at every q."""
    return math.log(dim) / (dim - 1)


def power_series(exponent: float, dim: int, degree: int | None) -> Series:
    r"""Of :math:`-(2 (1 - t))^{s/2}`; None: a leading part.

    With :math:`p = s / 2` and :math:`m = \mathbb{E} \|u - v\|^s` for independent uniform u and v, Rodrigues' formula (Müller
    1998, section 2) and l integrations by parts give :math:`b_l = -m \, N(q, l) \, (-p)_l / (p + q - 1)_l` with Pochhammer's
    symbol. The Stein kernels of these have no finite value at t = 1, so all of them is left out.
    """
    p, a, most = exponent / 2, (dim - 1) / 2, degree or POWER_DEGREES
    # (1 - t) / 2 has the beta distribution of parameters a and a
    log_mean = p * math.log(4) + log_gamma_ratio(a, p) - log_gamma_ratio(2 * a, p)
    l = np.arange(1.0, most)
    steps = np.concatenate([[p / (p + dim - 1)], (l - p) / (p + dim - 1 + l)])
    logs = log_mean + np.cumsum(log_harmonics_ratios(most, dim) + np.log(steps))
    found = _cut(logs, dim, most)
    left_out = max(0.0, 1 - math.fsum(found.coefficients) / math.exp(log_mean))
    return Series(found.coefficients, (left_out, 1.0, 1.0), -math.exp(log_mean))


def quadrature(phi: Callable[[np.ndarray], np.ndarray], dim: int, degree: int | None, nodes: int) -> Series:
    """Of any function, by quadrature (`RotationInvariantKernel.from_function`); None: as many degrees as it resolves."""
    nodes = check_whole("nodes", nodes, (degree or 1) + 1, MAX_NODES)
    t, weight = gauss_gegenbauer(nodes, dim)
    value = np.asarray(phi(t), dtype=np.float64)
    if value.shape != t.shape or not np.isfinite(value).all():
        raise ValueError("phi must return one finite value for every inner product in (-1, 1)")
    largest, constant = float(np.abs(value).max()), float(np.sum(weight * value))
    # all b_l with l >= 1 add up to phi(1) - b_0, whatever the nodes resolve of phi (a kink at 1)
    total = float(np.asarray(phi(np.ones(1)), dtype=np.float64)[0]) - constant
    if math.isnan(total):
        raise ValueError("phi must have a value at t = 1: return its limit there")
    if math.isinf(total) and degree is None:
        raise ValueError("phi is infinite at t = 1, so its series has no last degree that matters: give a degree")
    most = degree or nodes - 1
    numbers = np.exp(np.minimum(log_harmonics(most, dim), 700))  # from e^66 on everything is round-off
    coefficients: list[float] = []
    for l, p in enumerate(islice(legendre_sequence(t, dim), 1, most + 1), start=1):
        number = float(numbers[l])
        b = number * float(np.sum(weight * value * p))
        noise = 16 * np.finfo(np.float64).eps * math.sqrt(number) * largest
        rest = total - math.fsum(coefficients)
        if degree is None and coefficients and (rest <= 1e-12 * total or (b <= noise and noise > 1e-3 * rest)):
            break  # nothing is left, or what is left cannot be told from round-off
        if -8 * l * noise <= b <= noise:  # the nodes are rounded too, which high degrees amplify
            if b != 0 and noise > 1e-9 * largest and degree:
                warnings.warn(
                    f"the coefficient of degree {l} in dimension {dim} is below the round-off of the quadrature "
                    f"({noise:.1e}) and was set to 0",
                    stacklevel=3,
                )
            b = 0.0
        elif b < 0:
            raise ValueError(
                f"phi is not positive definite on the sphere of R^{dim}: its coefficient of degree {l} is {b:.3g} < 0"
            )
        coefficients.append(b)
    left_out = max(0.0, 1 - math.fsum(coefficients) / total) if total > 0 else 0.0
    return Series(tuple(coefficients), (left_out,), constant)


def _degrees(logs: np.ndarray, dim: int) -> int:
    """The degrees that matter in float64, also for the Stein kernel of order 2; one more than there are if all of them do."""
    weighted = logs + 2 * np.log(laplacian(len(logs), dim))
    tails = np.cumsum(np.exp(weighted - weighted.max())[::-1])[::-1]  # from each degree on
    beyond = tails <= NEGLIGIBLE * tails[0]
    return int(beyond.argmax()) if beyond.any() else len(logs) + 1


def _cut(logs: np.ndarray, dim: int, degree: int) -> Series:
    """The first coefficients, given the logarithms of the whole series from degree 1 on."""
    largest = float(logs[:degree].max())
    if largest > math.log(np.finfo(np.float64).max):
        raise ValueError(
            f"the kernel's coefficients exceed the range of float64 in dimension {dim} (the largest is "
            f"exp({largest:.3g})): take a wider kernel (a smaller scale, a longer time) or fewer degrees"
        )
    if largest < math.log(np.finfo(np.float64).tiny):
        raise ValueError(
            f"the kernel's coefficients of degrees 1 to {degree} are below the range of float64 in dimension {dim} (the "
            f"largest is exp({largest:.3g})): take a smaller scale, a shorter time or more degrees"
        )
    left_out = []
    for order in range(3):
        weighted = logs + order * np.log(laplacian(len(logs), dim))
        relative = np.exp(weighted - weighted.max())
        head, tail = float(relative[:degree].sum()), float(relative[degree:].sum())
        left_out.append(tail / (head + tail))
    return Series(tuple(np.exp(logs[:degree]).tolist()), tuple(left_out))
