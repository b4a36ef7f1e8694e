"""The test of uniformity: Rayleigh's and Bingham's statistics, exact moments, sizes within k standard deviations, intervals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from test_diagnostics import gaussian

from sfrik.diagnostics import energy_per_degree, measure, rows, uniformity_test
from sfrik.diagnostics.hypothesis import MAX_KURTOSIS_GAP, null_distribution, refusal
from sfrik.kernels import harmonics


def directions(z):
    return z.numpy() / np.linalg.norm(z.numpy(), axis=1, keepdims=True)


# --- the statistics


@pytest.mark.parametrize(("n", "q"), [(40, 3), (12, 30), (600, 5), (300, 400)])
def test_degrees_1_and_2_are_rayleighs_and_binghams_statistics(n, q):
    """Mardia & Jupp (2000): n q |mean|^2, and n q (q + 2) / 2 tr (S - I/q)^2."""
    z = gaussian(n, q) + 0.1
    first, second = uniformity_test(z).degrees
    u = directions(z)
    rayleigh = n * q * (u.mean(axis=0) ** 2).sum()
    bingham = n * q * (q + 2) / 2 * ((u.T @ u / n - np.eye(q) / q) ** 2).sum()
    assert q * (1 + (n - 1) * first.statistic) == pytest.approx(rayleigh, rel=1e-10)
    assert (q - 1) * (q + 2) / 2 * (1 + (n - 1) * second.statistic) == pytest.approx(bingham, rel=1e-10)


@pytest.mark.parametrize(("n", "q", "degrees"), [(2400, 4, (3, 1)), (300, 4, (1, 2)), (300, 4, (2,)), (300, 310, (5, 2))])
def test_each_algorithm_gives_the_mean_of_the_polynomial_over_all_other_rows(n, q, degrees):
    """2,400 rows take tiles of several rows and columns. The polynomials are SciPy's."""
    z = gaussian(n, q, seed=1)
    gram = directions(z) @ directions(z).T
    means = rows.row_means(rows.unit_rows(z), degrees)
    for found, l in zip(means, degrees, strict=True):
        values = scipy.special.eval_gegenbauer(l, q / 2 - 1, gram) / scipy.special.eval_gegenbauer(l, q / 2 - 1, 1.0)
        np.fill_diagonal(values, 0)
        np.testing.assert_allclose(found.numpy(), values.sum(axis=1) / (n - 1), rtol=0, atol=1e-12)


def test_no_matrix_of_all_pairs_is_made(monkeypatch):
    largest, sequence = [], rows.legendre_sequence
    monkeypatch.setattr(rows, "legendre_sequence", lambda t, q: (largest.append(t.numel()), sequence(t, q))[1])
    z = gaussian(6000, 3)
    uniformity_test(z, degrees=(1, 3))
    assert 0 < max(largest) <= 256 * 2048
    largest.clear()
    uniformity_test(gaussian(50_000, 8))  # by moments
    assert largest == []


def test_the_statistic_is_the_energy_relative_to_one_point():
    z = gaussian(50, 6) + 0.3
    assert measure(z, z).uniformity_test == uniformity_test(z)
    expected = [energy / harmonics(l, 6) for l, energy in enumerate(energy_per_degree(z, 3), start=1)]
    assert [one.statistic for one in uniformity_test(z, (1, 2, 3)).degrees] == pytest.approx(expected, rel=1e-9)


def test_only_the_direction_of_a_row_matters_in_any_precision():
    z = gaussian(30, 4)
    expected = uniformity_test(z)
    scales = 10.0 ** torch.linspace(-300, 300, 30, dtype=torch.float64)
    for other in (z * scales[:, None], z * 1e-200, z.clone().requires_grad_()):
        assert [one.statistic for one in uniformity_test(other).degrees] == pytest.approx(
            [one.statistic for one in expected.degrees], rel=1e-9
        )
    low = z.bfloat16()
    assert uniformity_test(low) == uniformity_test(low.double())


# --- the null distribution


def test_the_moments_are_those_of_all_angles_of_four_points_on_the_circle():
    """The mean over a grid of angles is exact for trigonometric polynomials of lower degree than the grid has points."""
    angle = 2 * np.pi * np.arange(16) / 16
    a, b, c = np.meshgrid(angle, angle, angle)
    pairs = itertools.combinations([0 * a, a, b, c], 2)
    u = sum(np.cos(first - second) for first, second in pairs) / 6
    found = null_distribution(4, 2, 1)
    assert u.mean() == pytest.approx(0, abs=1e-14)
    assert found.deviation == pytest.approx(u.std(), rel=1e-12)
    assert found.skewness == pytest.approx((u**3).mean() / u.std() ** 3, rel=1e-12)
    assert found.kurtosis == pytest.approx((u**4).mean() / u.std() ** 4 - 3, rel=1e-12)


def test_the_moments_are_those_of_all_positions_of_three_points_on_the_sphere():
    """The first is the pole; a Gauss rule for the heights of the others and a grid of the angle between them are exact."""
    t, weights = np.polynomial.legendre.leggauss(10)
    a, b, angle = np.meshgrid(t, t, 2 * np.pi * np.arange(20) / 20, indexing="ij")
    mean = weights[:, None, None] * weights[:, None] / 4 / 20 * np.ones_like(angle)
    third = a * b + np.sqrt((1 - a**2) * (1 - b**2)) * np.cos(angle)
    u = sum((3 * x**2 - 1) / 2 for x in (a, b, third)) / 3
    found = null_distribution(3, 3, 2)
    variance = (mean * u**2).sum()
    assert (mean * u).sum() == pytest.approx(0, abs=1e-14)
    assert found.deviation**2 == pytest.approx(variance, rel=1e-12)
    assert found.skewness == pytest.approx((mean * u**3).sum() / variance**1.5, rel=1e-12)
    assert found.kurtosis == pytest.approx((mean * u**4).sum() / variance**2 - 3, rel=1e-12)


def test_the_moments_of_one_pair_on_the_sphere_are_those_of_a_uniform_inner_product():
    """In dimension 3 the inner product is uniform on [-1, 1]: the mean of P_2^3 is 2/35, that of P_2^4 is 3/35."""
    found = null_distribution(2, 3, 2)
    assert found.deviation == pytest.approx(1 / math.sqrt(5), rel=1e-12)
    assert found.skewness == pytest.approx(2 / 35 * 5**1.5, rel=1e-12)
    assert found.kurtosis == pytest.approx(3 / 35 * 25 - 3, rel=1e-12)


@pytest.mark.parametrize(("n", "q", "degree"), [(12, 3, 2), (30, 40, 1), (15, 20, 2), (20, 3, 3)])
def test_the_moments_are_those_of_draws(n, q, degree):
    draws = 1500
    generator = torch.Generator().manual_seed(0)
    u = np.empty(draws)
    for k in range(draws):
        z = torch.randn(n, q, generator=generator, dtype=torch.float64)
        u[k] = rows.row_means(rows.unit_rows(z), (degree,)).mean()
    found = null_distribution(n, q, degree)
    standardised = u / found.deviation
    for power, expected in ((1, 0), (2, 1), (3, found.skewness), (4, found.kurtosis + 3)):
        values = standardised**power
        assert abs(values.mean() - expected) <= 5 * values.std() / math.sqrt(draws), power  # 5 sigma


@pytest.mark.parametrize(("q", "degree"), [(2, 1), (3, 1), (3, 2), (16, 2), (3, 3), (2, 7)])
def test_for_many_rows_the_p_value_is_that_of_chi_square(q, degree):
    n, count = 10**6, harmonics(degree, q)
    null = null_distribution(n, q, degree)
    for p in (0.9, 0.5, 0.05, 1e-3, 1e-12):
        quantile = scipy.stats.chi2.isf(p, count)
        assert null.p_value((quantile / count - 1) / (n - 1)) == pytest.approx(p, rel=1e-3)


def test_in_high_dimension_the_p_value_is_that_of_the_normal_distribution():
    for degree in (1, 2):
        null = null_distribution(10**4, 2**20, degree)
        for z in (-3.0, 0.0, 1.645, 4.0):
            assert null.p_value(z * null.deviation) == pytest.approx(scipy.stats.norm.sf(z), rel=0.05, abs=1e-3)
    odd = null_distribution(2, 50, 1)  # one pair: symmetric
    assert odd.skewness == 0
    assert odd.p_value(2 * odd.deviation) == pytest.approx(scipy.stats.norm.sf(2), rel=1e-12)


@pytest.mark.parametrize(("n", "q", "degree"), [(20, 3, 1), (1000, 512, 2), (50_000, 512, 1), (100, 2048, 3)])
def test_p_values_are_those_of_scipys_gamma_distribution_far_into_the_tail(n, q, degree):
    null = null_distribution(n, q, degree)
    shape = 4 / null.skewness**2
    for z in (-2.0, 0.0, 3.0, 8.0, 25.0):
        expected = scipy.stats.gamma.sf(shape + z * math.sqrt(shape), shape)
        assert null.p_value(z * null.deviation) == pytest.approx(expected, rel=1e-6)
    assert null.p_value(-1.0) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("q", [2, 3, 16, 512])
@pytest.mark.parametrize("n", [20, 50, 200])
def test_degree_1_agrees_with_the_modified_rayleigh_test(n, q):
    """(1 - 1/2n) S + S^2 / (2 n (q + 2)) is chi-square up to O(1/n^2) (Mardia & Jupp 2000, equation 10.4.6)."""
    for p in (0.5, 0.1, 0.05, 0.01):
        s = scipy.stats.chi2.isf(p, q)
        modified = scipy.stats.chi2.sf((1 - 1 / (2 * n)) * s + s**2 / (2 * n * (q + 2)), q)
        found = null_distribution(n, q, 1).p_value((s / q - 1) / (n - 1))
        assert abs(found - modified) <= 0.2 / n
        assert abs(found - modified) <= abs(found - p) + 0.2 / n**2 or p == 0.5


SIZES = [(20, 2, 500), (20, 512, 300), (100, 3, 500), (60, 64, 300)]


@pytest.mark.parametrize(("n", "q", "draws"), SIZES)
def test_one_in_twenty_uniform_samples_is_rejected_at_5_per_cent(n, q, draws):
    generator = torch.Generator().manual_seed(1)
    tests = [uniformity_test(torch.randn(n, q, generator=generator), (1, 2, 3)) for _ in range(draws)]
    columns = {"joint": [test.p_value for test in tests]}
    for k in range(3):
        columns[f"degree {k + 1}"] = [test.degrees[k].p_value for test in tests]
    for name, p in columns.items():
        for level in (0.05, 0.5):
            sigma = math.sqrt(level * (1 - level) / draws)
            assert abs(np.mean(np.array(p) < level) - level) <= 4 * sigma + 0.01, (name, level)  # 4 sigma, and the stated error


@pytest.mark.parametrize(("q", "degree"), [(2, 1), (16, 4), (512, 4), (512, 6)])
def test_the_least_number_of_rows_is_that_of_the_error(q, degree):
    with pytest.raises(ValueError, match=f"degree {degree} in dimension {q} needs at least") as error:
        uniformity_test(gaussian(4, q), (degree,))
    least = int(str(error.value).split("at least ")[1].split(":")[0])
    gaps = [abs(null_distribution(n, q, degree).kurtosis_gap) for n in (least - 1, least)]
    assert gaps[1] <= MAX_KURTOSIS_GAP < gaps[0]
    uniformity_test(gaussian(least, q), (degree,))


def test_the_moments_of_every_degree_and_dimension_are_finite():
    for q in (2, 3, 17, 512, 2**20):
        for degree in range(1, 65):
            found = null_distribution(1000, q, degree)
            assert found.skewness >= 0
            assert math.isfinite(found.kurtosis)


# --- deviations


def test_the_joint_p_value_is_that_of_the_smallest_of_independent_ones():
    test = uniformity_test(gaussian(40, 5, seed=3), (1, 2, 3))
    p = [one.p_value for one in test.degrees]
    assert test.p_value == pytest.approx(1 - (1 - min(p)) ** 3, rel=1e-12)
    assert uniformity_test(gaussian(40, 5, seed=3), (2,)).p_value == pytest.approx(p[1], rel=1e-12)
    assert [one.degree for one in uniformity_test(gaussian(40, 5), (3, 1)).degrees] == [3, 1]


def test_a_degree_that_is_too_even_does_not_hide_another():
    """Two balanced opposite points: degree 1 is more even than random, degree 2 is that of a single point."""
    sign = 1 - 2.0 * (torch.arange(40) % 2)[:, None]
    test = uniformity_test(sign * torch.ones(40, 512))
    first, second = test.degrees
    assert first.statistic == pytest.approx(-1 / 39)
    assert first.p_value > 0.6
    assert (first.effect_size, first.interval[0]) == (0, 0)
    assert second.effect_size == pytest.approx(1)
    assert test.p_value == 0


def test_rows_more_even_than_random_ones_have_p_values_near_1():
    z = torch.cat([torch.eye(32), -torch.eye(32)])
    assert uniformity_test(z).p_value > 0.99


def test_equal_rows_have_effect_size_1_and_an_interval_without_width():
    for one in uniformity_test(torch.ones(10, 4)).degrees:
        assert (one.effect_size, *one.interval) == pytest.approx((1, 1, 1))
        assert one.p_value < 1e-6


@pytest.mark.parametrize(("q", "m"), [(64, 32), (512, 500)])
def test_the_effect_size_of_a_collapse_to_m_dimensions_is_that_of_its_second_moments(q, m):
    n = 2000
    z = gaussian(n, q)
    z[:, m:] = 0
    first, second = uniformity_test(z).degrees
    theta = (q / m - 1) / (q - 1)
    # E[t^2] is 1/m, so U_2 has mean theta; its deviation is that of P_2 in dimension m, scaled by q (m - 1) / (m (q - 1))
    sigma = q * (m - 1) / (m * (q - 1)) * math.sqrt(2 / (n * (n - 1) * harmonics(2, m)))
    assert abs(second.statistic - theta) <= 5 * sigma
    assert second.interval[0] < theta < second.interval[1]
    assert second.p_value < 1e-6 < first.p_value


@pytest.mark.parametrize(("concentration", "n"), [(0.2, 80), (0.5, 80), (1.0, 300), (2.0, 300)])
def test_the_interval_covers_the_effect_size_of_a_von_mises_distribution(concentration, n):
    """On the circle degree l has effect size (I_l(k) / I_0(k))^2 with the Bessel functions I."""
    random, draws = np.random.default_rng(0), 400
    covered = np.zeros((draws, 2))
    theta = [(scipy.special.iv(l, concentration) / scipy.special.iv(0, concentration)) ** 2 for l in (1, 2)]
    for row in covered:
        angle = torch.from_numpy(random.vonmises(0, concentration, n))
        test = uniformity_test(torch.stack([angle.cos(), angle.sin()], dim=1))
        row[:] = [one.interval[0] <= value <= one.interval[1] for one, value in zip(test.degrees, theta, strict=True)]
    assert (covered.mean(axis=0) >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / draws)).all()  # 4 sigma


# --- what is refused


@pytest.mark.parametrize(
    ("z", "degrees", "words"),
    [
        (torch.ones(5), (1,), r"z must be embeddings \[n, q\], n at least 4 and q at least 2, got shape \(5,\)"),
        (torch.full((9, 4), float("nan")), (1,), "z: NaN or infinite values in rows 0, 1, 2, 3, 4"),
        (torch.ones(9, 1), (1,), r"q at least 2, got shape \(9, 1\)"),
        (torch.ones(3, 4), (1,), r"n at least 4 and q at least 2, got shape \(3, 4\)"),
        (torch.eye(9)[:, :8], (1, 2), "z: row 8 of norm 0, without a direction"),
        (torch.ones(9, 4), (), "distinct whole numbers"),
        (torch.ones(9, 4), 2, "distinct whole numbers"),
        (torch.ones(9, 4), "12", "distinct whole numbers"),
        (torch.ones(9, 4), (1, 1), "distinct whole numbers"),
        (torch.ones(9, 4), (True,), "distinct whole numbers"),
        (torch.ones(9, 4), (1.5,), "distinct whole numbers"),
        (torch.ones(9, 4), (0, 1), "degree must be a whole number >= 1, got 0"),
        (torch.ones(9, 4), (65,), "degree must be a whole number <= 64, got 65"),
        (torch.ones(9, 512), (64,), "needs more than 10000000: use more rows or lower degrees"),
    ],
)
def test_what_cannot_be_tested_is_refused_with_the_reason(z, degrees, words):
    with pytest.raises(ValueError, match=words):
        uniformity_test(z, degrees)


def test_embeddings_that_cannot_be_tested_are_measured_without_a_test():
    for z in (torch.zeros(8, 4), gaussian(3, 4)):
        assert refusal(z)
        assert measure(z, z).uniformity_test is None
