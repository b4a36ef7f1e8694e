"""Cost of a collapse, deviations of each degree in a batch, and the predicted spectrum."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from sfrik.diagnostics import effective_rank
from sfrik.kernels import RotationInvariantKernel, collapse_cost, harmonics, null_deviations, predicted_rank, predicted_spectrum
from sfrik.mmd import mmd_to_uniform

KERNEL = RotationInvariantKernel((1.0, 40.0, 7.0, 3.0), dim=24)


def test_a_collapse_costs_what_its_moments_give() -> None:
    """E[t^2] = 1/m and E[t^4] = 3/(m (m + 2)) for uniform points in m dimensions; odd moments are 0."""
    degree_0, _, degree_2, _, degree_4 = KERNEL.monomials
    for m in range(1, 25):
        expected = degree_0 + degree_2 / m + degree_4 * 3 / (m * (m + 2))
        assert collapse_cost(KERNEL, m) == pytest.approx(expected, abs=1e-12)
    assert collapse_cost(KERNEL, 24) == pytest.approx(0, abs=1e-12)
    assert collapse_cost(KERNEL, 0) == pytest.approx(51.0)


@pytest.mark.parametrize("dims", [0, 1, 2, 5])
def test_the_cost_is_the_mmd_of_such_embeddings(dims: int) -> None:
    torch.manual_seed(0)
    n = 4000
    z = torch.zeros(n, 24, dtype=torch.float64)
    z[:, : max(dims, 1)] = torch.nn.functional.normalize(torch.randn(n, max(dims, 1), dtype=torch.float64), dim=1)
    z = z.abs() if dims == 0 else z
    # the distribution is uniform on its sphere, so the estimate's deviation is of the order of the kernel's bound over n
    deviation = 6 * 51 / n
    assert float(mmd_to_uniform(z, KERNEL, unbiased=True)) == pytest.approx(collapse_cost(KERNEL, dims), abs=deviation)


@pytest.mark.parametrize("dims", [-1, 25, 1.5])
def test_dimensions_that_there_are_not_are_refused(dims: float) -> None:
    with pytest.raises(ValueError, match=r"dims must be a whole number"):
        collapse_cost(KERNEL, dims)  # pyrefly: ignore[bad-argument-type]


def test_deviations_are_those_of_the_unbiased_estimate() -> None:
    n, draws = 12, 4000
    torch.manual_seed(0)
    for degree, deviation in enumerate(null_deviations(KERNEL, n), start=1):
        b = KERNEL.coefficients[degree - 1]
        assert deviation == pytest.approx(b * math.sqrt(2 / (n * (n - 1) * harmonics(degree, 24))))
        one = RotationInvariantKernel((0.0,) * (degree - 1) + (b,), dim=24)
        z = torch.nn.functional.normalize(torch.randn(draws, n, 24, dtype=torch.float64), dim=2)
        grams = one(z @ z.mT)
        values = (grams.sum(dim=(1, 2)) - n * b) / (n * (n - 1))
        assert float(values.std()) == pytest.approx(deviation, rel=5 * math.sqrt(1 / draws))  # kurtosis below 5: 5 sigma or more
    with pytest.raises(ValueError, match="n must be a whole number >= 2"):
        null_deviations(KERNEL, 1)


@pytest.mark.parametrize(("first", "second"), [(0.3, 0.05), (0.0, 0.4), (5.0, 2.0), (0.01, 30.0)])
def test_the_predicted_spectrum_is_the_minimum(first: float, second: float) -> None:
    correlations = np.array([0.95, 0.9, 0.6, 0.6, 0.2, -0.3])
    costs = np.concatenate([[first], 2 * (1 - correlations)])

    def loss(c: np.ndarray) -> float:
        return float(costs @ c + second * (c**2).sum())

    found = predicted_spectrum(correlations, first, second)
    best = minimize(
        loss, np.full(7, 1 / 7), method="SLSQP", bounds=[(0, 1)] * 7, constraints={"type": "eq", "fun": lambda c: c.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    assert found.sum() == pytest.approx(1)
    assert (found >= 0).all()
    assert loss(found) == pytest.approx(best.fun, abs=1e-9)
    assert found == pytest.approx(best.x, abs=1e-4)


def test_degree_1_alone_ends_on_a_point_or_a_line() -> None:
    correlations = np.array([0.9, 0.8])
    assert predicted_spectrum(correlations, first=0.19, second=0.0).tolist() == [1, 0, 0]
    assert predicted_spectrum(correlations, first=0.21, second=0.0).tolist() == [0, 1, 0]


@pytest.mark.parametrize("second", [1e-17, 1e-20, 5e-324, 1e308])
def test_the_moments_of_any_trade_off_add_up_to_1(second: float) -> None:
    assert predicted_spectrum(np.array([0.9, 0.8]), 0.5, second) == pytest.approx([0, 1, 0] if second < 1 else [1 / 3] * 3)
    assert predicted_spectrum(np.array([0.5] * 5), 1.0, second) == pytest.approx([1 / 6] * 6)
    assert predicted_spectrum(np.array([0.9, 0.9]), 0.2, second).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("correlations", "first", "second", "words"),
    [
        ([0.9, 0.8], 0.5, -0.5, "second must be a finite number of at least 0, got -0.5"),
        ([0.9, 0.8], math.nan, 0.5, "first must be a finite number"),
        ([0.9, 0.8], 0.5, math.inf, "second must be a finite number"),
        ([0.9, math.nan], 0.5, 0.5, "correlations must be numbers from -1 to 1"),
        ([0.9, 1.1], 0.5, 0.0, "correlations must be numbers from -1 to 1"),
        ([[0.9]], 0.5, 0.5, "correlations must be numbers from -1 to 1"),
    ],
)
def test_trade_offs_and_correlations_out_of_bounds_are_refused(correlations, first, second, words) -> None:
    with pytest.raises(ValueError, match=words):
        predicted_rank(np.array(correlations), first, second)


def test_the_predicted_rank_is_that_of_embeddings_with_these_moments() -> None:
    correlations = np.linspace(0.95, 0.1, 30)
    moments = predicted_spectrum(correlations, first=0.4, second=1.5)
    z = torch.diag(torch.from_numpy(moments).sqrt())  # Z^T Z is the matrix of second moments
    assert predicted_rank(correlations, first=0.4, second=1.5) == pytest.approx(effective_rank(z), rel=1e-5)
