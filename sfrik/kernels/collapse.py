r"""What a collapse costs under a kernel, what a batch can see of each degree, and the spectrum of the embeddings that follows.

The loss in units of the squared distance of two views is :math:`D + \lambda \, \mathrm{MMD}^2`, where
:math:`D = \mathbb{E} \|z - z'\|^2` and :math:`\lambda = q \cdot \text{mmd\_coeff} / \text{sim\_coeff}`. `predicted_spectrum`
minimises it over the variances of the coordinates of the embeddings, with two simplifications: of the MMD only degrees 1 and 2
count, and the network can learn every function of the images, up to a known correlation between its values on two views.

Legend: q dimension of the embeddings, n images in a batch, b_l coefficients of the kernel.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from sfrik.kernels.polynomials import check_whole, gauss_gegenbauer, log_harmonics
from sfrik.kernels.rotation_invariant import RotationInvariantKernel

__all__ = ["collapse_cost", "null_deviations", "predicted_rank", "predicted_spectrum"]

NODES = 512  # of the quadrature over the inner products of two points


def collapse_cost(kernel: RotationInvariantKernel, dims: int) -> float:
    r"""MMD² to the uniform distribution of embeddings that are uniform in only `dims` of the q dimensions.

    This is :math:`\mathbb{E}[\phi(t)]`, where t is the inner product of two independent uniform points on the unit sphere of
    :math:`\mathbb{R}^m`. For degree 2 it is :math:`b_2 (q / m - 1) / (q - 1)`.

    Args:
        kernel: of dimension q.
        dims: m, from 0 to q. 0: all embeddings are equal. 1: two opposite points, half of the embeddings at each.

    Raises:
        ValueError: `dims` is not a whole number from 0 to q.

    >>> kernel = RotationInvariantKernel((1.0, 40.0, 40.0), dim=512)
    >>> [round(collapse_cost(kernel, m), 3) for m in (0, 1, 2, 16)]
    [81.0, 40.0, 19.961, 2.427]
    """
    dims = check_whole("dims", dims, 0, kernel.dim)
    if dims < 2:
        t, weight = np.array([1.0, -1.0]), np.array([1.0, 0.0] if dims == 0 else [0.5, 0.5])
    else:
        t, weight = gauss_gegenbauer(NODES, dims)
    return float(np.dot(weight, kernel(torch.from_numpy(t)).numpy()))


def null_deviations(kernel: RotationInvariantKernel, n: int) -> tuple[float, ...]:
    r"""Standard deviation of each degree's part of the unbiased MMD² of n uniform embeddings, degrees 1 to L.

    .. math:: b_l \sqrt{\frac{2}{n (n - 1) \, N(q, l)}}

    A batch of n sees a departure from the uniform distribution in degree l if it changes that part by more than about twice this.

    Args:
        kernel: of dimension q.
        n: embeddings, at least 2.

    >>> [f"{d:.1e}" for d in null_deviations(RotationInvariantKernel((1.0, 40.0, 40.0), dim=512), n=256)]
    ['2.4e-04', '6.1e-04', '4.7e-05']
    """
    n = check_whole("n", n, 2, 2**53)
    pairs = math.log(2 / (n * (n - 1)))
    counts = log_harmonics(kernel.degree, kernel.dim)[1:].tolist()
    return tuple(b * math.exp((pairs - count) / 2) for b, count in zip(kernel.coefficients, counts, strict=True))


def predicted_spectrum(correlations: np.ndarray, first: float, second: float) -> np.ndarray:
    r"""The second moments :math:`c_0, c_1, \dots, c_K` of the embeddings that minimise the loss with degrees 1 and 2.

    Let the coordinates of the embeddings be the constant function, with second moment :math:`c_0`, and functions of the images
    with second moments :math:`c_k` and correlations :math:`\mu_k` between the views. Then
    :math:`D = 2 \sum_k c_k (1 - \mu_k)` with :math:`\mu_0 = 1`, the MMD² of degree 1 is :math:`b_1 c_0`, and that of degree 2 is
    :math:`b_2 \sum_k c_k^2` up to a constant and a factor :math:`q / (q - 1)`. The minimum of

    .. math:: \sum_{k \ge 1} 2 c_k (1 - \mu_k) + \lambda \Big( b_1 c_0 + b_2 \sum_{k \ge 0} c_k^2 \Big)

    over :math:`c \ge 0` with :math:`\sum_k c_k = 1` is :math:`c_k = \max(0, \theta - a_k) / (2 \lambda b_2)` with the linear
    costs :math:`a_0 = \lambda b_1` and :math:`a_k = 2 (1 - \mu_k)`, where :math:`\theta` makes the sum 1. With
    :math:`b_2 = 0` all is in the coordinate of the lowest linear cost: on one point if :math:`\lambda b_1 < 2 (1 - \mu_1)`, else
    on a line.

    Args:
        correlations: :math:`\mu_1, \dots, \mu_K`, at most q of them, from -1 to 1.
        first: :math:`\lambda b_1`, at least 0.
        second: :math:`\lambda b_2`, at least 0; both finite.

    Returns:
        c, [K + 1], which adds up to 1.

    Raises:
        ValueError: an argument is out of these bounds, or NaN.

    >>> predicted_spectrum(np.array([0.9, 0.8, 0.1]), first=0.5, second=0.5).round(3)
    array([0.2, 0.5, 0.3, 0. ])
    """
    correlations = np.asarray(correlations, dtype=np.float64)
    if correlations.ndim != 1 or not (np.abs(correlations) <= 1).all():
        raise ValueError(f"correlations must be numbers from -1 to 1, [K], got {correlations}")
    for name, value in (("first", first), ("second", second)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")
    costs = np.concatenate([[first], 2 * (1 - correlations)])
    if second == 0:
        return np.eye(len(costs))[costs.argmin()]
    # above the lowest cost, in units of 2 second: theta is at most 1, so that those above it can be cut to 2
    with np.errstate(over="ignore"):
        gaps = np.minimum((costs - costs.min()) / (2 * second), 2)
    ordered = np.sort(gaps)
    levels = (1 + ordered.cumsum()) / np.arange(1, len(gaps) + 1)  # theta if the first k costs are used
    theta = levels[np.flatnonzero(levels >= ordered)[-1]]
    moments = np.maximum(0, theta - gaps)
    return moments / moments.sum()


def predicted_rank(correlations: np.ndarray, first: float, second: float) -> float:
    r"""Effective rank of embeddings with the moments of `predicted_spectrum`, whose arguments these are.

    :math:`\exp(-\sum_k p_k \log p_k)` with :math:`p_k = \sqrt{c_k} / \sum_m \sqrt{c_m}`, which `sfrik.diagnostics.effective_rank`
    measures. It is that of many images; n images have at most n.

    >>> round(predicted_rank(np.array([0.9, 0.8, 0.1]), first=0.5, second=0.5), 2)
    2.95
    """
    values = np.sqrt(predicted_spectrum(correlations, first, second))
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
