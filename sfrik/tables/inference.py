r"""Intervals and tests of a contrast: Student's t over paired seeds, the test images, equivalence, Holm's correction, power.

Let :math:`d_{si}` be a contrast of seed :math:`s = 1 \dots n` on test image :math:`i = 1 \dots I`, :math:`d_s` its mean over the
images, and :math:`s_d` the standard deviation of the :math:`d_s`. For these test images the variance of the mean over seeds is
:math:`s_d^2 / n`. All seeds share the images; for other images of the same distribution it is larger by :math:`\sigma^2_{img}`,
the mean covariance of :math:`d_s` and :math:`d_{s'}`, for :math:`s \ne s'`, over samples of images:

.. math:: \mathrm{Var} = \frac{s_d^2}{n} + \max(\sigma^2_{img}, 0), \qquad
          \nu = \frac{\mathrm{Var}^2}{(s_d^2 / n)^2 / (n - 1)}

with Satterthwaite's degrees of freedom, as in studies of several readers and many cases (Obuchowski and Rockette 1995; Hillis,
Statistics in Medicine 2007). The covariance is that of the paired bootstrap, which draws the same images for all rows and seeds:
:math:`d_s` is a mean, so what any number of resamples tends to has the closed form :math:`\mathrm{Cov}_i(d_{si}, d_{s'i}) / I`.
Without the images, :math:`\nu = n - 1`: the paired t-test.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["LEVEL", "POWER", "Estimate", "bootstrap_covariance", "estimate", "holm"]

LEVEL = 0.05
POWER = 0.8
NO_SPREAD = 1e-9  # of the mean or 1: differences of equal scores are equal up to rounding


@dataclass(frozen=True)
class Estimate:
    """A contrast over n seeds or repetitions.

    Attributes:
        n: of the pairs.
        mean: of the differences.
        error: standard error of the mean; None if it is not known: with n = 1, or without a spread.
        df: degrees of freedom of the error.
        images: standard error of the mean due to the test images, from the bootstrap; None if it is not known.
    """

    n: int
    mean: float
    error: float | None
    df: float
    images: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval, without a correction; None without an error."""
        if self.error is None:
            return None
        half = _t_quantile(self.df) * self.error
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float:
        """Of the two-sided t-test of no difference; 1 without an error."""
        return 1.0 if self.error is None else 2 * self._tail(-abs(self.mean))

    def p_equal(self, margin: float) -> float:
        """Of two one-sided t-tests that the difference is at least `margin` in size (TOST); 1 without an error."""
        return 1.0 if self.error is None else self._tail(abs(self.mean) - margin)

    @property
    def detectable(self) -> float | None:
        """The true difference that a two-sided t-test at 5 % finds with a probability of 80 %; None without an error."""
        if self.error is None:
            return None
        from scipy.special import nctdtrinc

        # the other tail has less than 1e-5 of the rejections
        return float(nctdtrinc(self.df, 1 - POWER, _t_quantile(self.df))) * self.error

    def _tail(self, value: float) -> float:
        """The probability of the t distribution below value / error."""
        from scipy.special import stdtr  # of the extra `notebooks`, which the tables need

        assert self.error is not None
        t = value / self.error if self.error else math.copysign(math.inf, value) if value else 0.0
        return float(stdtr(self.df, t))


def estimate(differences: Sequence[float], correct: Any = None, exact: bool = False) -> Estimate:
    """The mean of paired differences with its error.

    Args:
        differences: one for each seed.
        correct: the differences of each seed on each test image, [n, images], whose means over the images are `differences`;
            None where they are not known.
        exact: whether differences without any spread have no error, as measurements of memory; otherwise it is not known, since
            accuracies are rounded to one image.
    """
    n, mean = len(differences), statistics.fmean(differences)
    covariance = None if correct is None else bootstrap_covariance(correct)
    images = None if covariance is None else math.sqrt(max(0.0, covariance.mean()))
    spread = statistics.stdev(differences) if n > 1 else 0.0
    if spread <= NO_SPREAD * max(1.0, abs(mean)):
        return Estimate(n, mean, 0.0 if exact and n > 1 else None, n - 1, images)
    of_seeds = spread**2 / n
    shared = 0.0 if covariance is None else max(0.0, (covariance.sum() - covariance.trace()) / (n * (n - 1)))
    variance = of_seeds + shared
    return Estimate(n, mean, math.sqrt(variance), (n - 1) * (variance / of_seeds) ** 2, images)


def bootstrap_covariance(values: Any) -> Any:
    """The covariance [n, n] of the means of n rows under a paired bootstrap over the images, for infinitely many resamples.

    Args:
        values: [n, images].
    """
    import numpy as np

    values = np.asarray(values, dtype=float)
    centred = values - values.mean(axis=1, keepdims=True)
    return centred @ centred.T / values.shape[1] ** 2


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p values (1979), in the same order: at most the level in all of a family, with any dependence.

    >>> [round(value, 3) for value in holm([0.01, 0.04, 0.03, 0.005])]
    [0.03, 0.06, 0.06, 0.02]
    """
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted


def _t_quantile(df: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(df, 1 - LEVEL / 2))
