"""Intervals, tests, corrections and power of contrasts, against scipy and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sfrik.tables.inference import bootstrap_covariance, estimate, holm

DIFFERENCES = [0.3, -0.1, 0.7, 0.4, 0.9]


def test_the_interval_and_p_value_are_those_of_the_paired_t_test():
    higher, lower = [96.2, 96.9, 95.8, 97.1, 96.0], [95.9, 97.0, 95.1, 96.7, 95.1]
    found = estimate([a - b for a, b in zip(higher, lower, strict=True)])
    expected = stats.ttest_rel(higher, lower)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert (found.n, found.df, found.images) == (5, 4, None)


def test_equivalence_is_two_one_sided_tests_and_agrees_with_the_90_percent_interval():
    found = estimate(DIFFERENCES)
    for margin in (0.3, 0.5, 0.8, 1.0):
        above = stats.ttest_1samp(DIFFERENCES, -margin, alternative="greater").pvalue
        below = stats.ttest_1samp(DIFFERENCES, margin, alternative="less").pvalue
        assert found.p_equal(margin) == pytest.approx(max(above, below))
        low, high = stats.ttest_1samp(DIFFERENCES, 0).confidence_interval(0.90)
        assert (found.p_equal(margin) < 0.05) == (-margin < low and high < margin)


@pytest.mark.parametrize("n", [2, 3, 5, 10, 40])
def test_the_detectable_difference_has_a_power_of_80_percent(n):
    rng = np.random.default_rng(n)
    found = estimate(rng.normal(size=n).tolist())
    nc, quantile = found.detectable / found.error, stats.t.ppf(0.975, n - 1)
    if n == 2:  # where scipy's noncentral t has no value: by simulation, within four standard errors of it
        z, w = rng.normal(size=(2, 200_000))
        assert np.mean(np.abs((z + nc) / np.abs(w)) > quantile) == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / 200_000))
    else:
        power = stats.nct.sf(quantile, n - 1, nc) + stats.nct.cdf(-quantile, n - 1, nc)
        assert power == pytest.approx(0.8, abs=1e-4)


def test_ten_pairs_find_a_difference_of_one_standard_deviation():
    # power analyses of a paired t-test give n = 10 for an effect size of 1.0, where the power is 0.803
    assert estimate([1.0, -1.0] * 5).detectable / np.std([1.0, -1.0] * 5, ddof=1) == pytest.approx(0.996, abs=5e-4)


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # 4 * 0.005, 3 * 0.01, 2 * 0.03, and 0.04 not below it
        ([0.2, 0.001, 0.9], [0.4, 0.003, 0.9]),
        ([0.6, 0.7], [1.0, 1.0]),
        ([], []),
    ],
)
def test_holm_by_hand(p, expected):
    assert holm(p) == pytest.approx(expected)


def test_holm_keeps_the_order_and_is_between_the_p_value_and_bonferroni():
    p = np.random.default_rng(0).uniform(size=(50, 9)) ** 3
    for each in p:
        adjusted = np.array(holm(each.tolist()))
        assert (np.diff(adjusted[np.argsort(each)]) >= 0).all()
        assert ((each <= adjusted) & (adjusted <= np.minimum(1, 9 * each) + 1e-15)).all()


def test_holm_rejects_a_true_hypothesis_of_the_family_in_at_most_5_percent():
    z = np.random.default_rng(1).normal(size=(4000, 8)) + np.array([4.0] * 3 + [0.0] * 5)
    p = 2 * stats.norm.sf(np.abs(z))
    wrong = np.mean([min(holm(each.tolist())[3:]) < 0.05 for each in p])
    assert 0.03 < wrong < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000)


def test_the_bootstrap_over_images_has_mcnemars_variance_for_one_seed():
    a, b = np.random.default_rng(0).random((2, 1000)) < [[0.9], [0.85]]
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    variance = (only_a + only_b - (only_a - only_b) ** 2 / 1000) / 1000**2
    found = estimate([100.0 * (a.mean() - b.mean())], [100.0 * a - 100.0 * b])
    assert found.images == pytest.approx(100 * math.sqrt(variance))
    assert (found.n, found.error, found.interval, found.p, found.p_equal(50.0)) == (1, None, None, 1.0, 1.0)


def test_the_bootstrap_is_what_resamples_tend_to():
    rng = np.random.default_rng(0)
    values = rng.choice([-100.0, 0.0, 100.0], p=[0.1, 0.7, 0.2], size=(3, 400)) + 100 * (rng.random(400) < 0.05)
    resamples = values[:, rng.integers(0, 400, size=(10_000, 400))].mean(axis=2)  # the same images for all rows
    expected = bootstrap_covariance(values)
    # the standard error of a variance from 10,000 normal resamples is sqrt(2 / 10,000) of it
    assert np.cov(resamples) == pytest.approx(expected, abs=4 * math.sqrt(2 / 10_000) * expected.max())
    assert np.abs(expected).max() > 1


def simulate(rng, repetitions, n, images, seed_sd, image_sd):
    """Contrasts of seeds on images around 0: an effect of the seed, one of the image, which all seeds share, and noise of 1."""
    shape = (repetitions, n, images)
    return (
        seed_sd * rng.normal(size=(repetitions, n, 1))
        + image_sd * rng.normal(size=(repetitions, 1, images))
        + rng.normal(size=shape)
    )


@pytest.mark.parametrize(("seed_sd", "image_sd"), [(0.1, 0.0), (0.1, 2.0), (0.1, 1.0)])
def test_the_interval_covers_the_truth_in_95_percent_with_the_error_of_the_test_images(seed_sd, image_sd):
    values = simulate(np.random.default_rng(2), 1500, 5, 100, seed_sd, image_sd)
    with_images = [estimate(each.mean(axis=1).tolist(), each) for each in values]
    covered = np.mean([found.interval[0] <= 0 <= found.interval[1] for found in with_images])
    bound = 3 * math.sqrt(0.95 * 0.05 / 1500)
    # a covariance that comes out negative counts as 0: a little more than 95 % where the images have no effect
    assert 0.95 - bound < covered < 0.95 + bound + (0.02 if image_sd == 0 else 0)
    without = [estimate(each.mean(axis=1).tolist()) for each in values]
    missed = np.mean([not found.interval[0] <= 0 <= found.interval[1] for found in without])
    assert (missed > 0.15) == (image_sd > 0), "an interval for these images only misses the truth where images differ"


def test_the_error_of_the_images_is_added_to_that_of_the_seeds_only_where_the_seeds_share_it():
    values = simulate(np.random.default_rng(3), 1, 6, 5000, 0.2, 3.0)[0]
    found, without = estimate(values.mean(axis=1).tolist(), values), estimate(values.mean(axis=1).tolist())
    assert found.error**2 - without.error**2 == pytest.approx(3.0**2 / 5000, rel=0.1)
    assert found.df > without.df == 5
    assert found.images**2 == pytest.approx((3.0**2 + 1 / 6) / 5000, rel=0.1)


def test_differences_without_spread_have_no_error_unless_they_are_exact():
    found = estimate([94.2 - 94.1, 96.3 - 96.2, 95.5 - 95.4])
    assert (found.error, found.interval, found.p, found.detectable) == (None, None, 1.0, None)
    exact = estimate([-6.0, -6.0], exact=True)
    assert (exact.error, exact.interval, exact.p, exact.p_equal(5.0), exact.detectable) == (0.0, (-6.0, -6.0), 0.0, 1.0, 0.0)
    assert (estimate([3.0, 3.0], exact=True).p_equal(5.0), estimate([0.0, 0.0], exact=True).p) == (0.0, 1.0)
    assert estimate([3.0], exact=True).error is None
