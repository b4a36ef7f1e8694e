"""Diagnostics of collapse: closed forms, and uniform embeddings within k standard deviations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sfrik.diagnostics import (
    alignment,
    covariance_spectrum,
    effective_rank,
    energy_per_degree,
    measure,
    rankme,
    summary,
    uniformity,
    uniformity_test,
)
from sfrik.kernels import harmonics


def gaussian(n: int, q: int, seed: int = 0) -> torch.Tensor:
    """Rows whose directions are uniform on the sphere."""
    return torch.randn(n, q, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("z", "expected"),
    [
        (torch.eye(8), 8.0),
        (torch.ones(10, 6), 1.0),
        (torch.cat([torch.eye(5), -torch.eye(5)]), 5.0),
        (torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])), 3.0),
        # p = (3/4, 1/4): exp of the entropy is 4 / 3^(3/4)
        (torch.diag(torch.tensor([3.0, 1.0])), 4 / 3**0.75),
        (7.5 * torch.diag(torch.tensor([3.0, 1.0])), 4 / 3**0.75),
    ],
)
def test_effective_rank_equals_the_closed_forms(z, expected):
    assert effective_rank(z) == pytest.approx(expected, rel=1e-4)  # float32 singular values near 0 add a little


def test_effective_rank_is_between_1_and_the_smaller_dimension():
    assert 1 <= effective_rank(gaussian(20, 50)) <= 20
    assert 1 <= effective_rank(gaussian(50, 20)) <= 20


@pytest.mark.parametrize(
    ("z", "t", "expected"),
    [
        (torch.tensor([[1.0, 0.0], [-3.0, 0.0]]), 2.0, -8.0),  # two opposite points, squared distance 4
        (5 * torch.eye(6), 2.0, -4.0),  # all at squared distance 2
        (5 * torch.eye(6), 0.5, -1.0),
        (torch.tensor([[0.6, 0.8]]).repeat(7, 1), 2.0, 0.0),  # one point
        # three of the pairs of a square have squared distances 2, 2, 4, seen from any corner
        (
            torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]),
            1.0,
            math.log((2 * math.exp(-2) + math.exp(-4)) / 3),
        ),
    ],
)
def test_uniformity_equals_the_closed_forms(z, t, expected):
    assert uniformity(z, t) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_uniformity_is_finite_where_every_exponential_underflows():
    assert uniformity(torch.eye(6), t=200.0) == pytest.approx(-400, rel=1e-6)


def test_uniformity_in_tiles_is_that_of_the_whole_matrix(monkeypatch):
    """2,400 rows take tiles of several rows and columns, and every fifth is 0."""
    z, largest = gaussian(2400, 4), []
    z[::5] = 0
    expected, logsumexp = uniformity(z), torch.logsumexp
    monkeypatch.setattr("sfrik.diagnostics.measures.WHOLE", 2399)
    monkeypatch.setattr(torch, "logsumexp", lambda x, dim: (largest.append(x.numel()), logsumexp(x, dim))[1])
    assert uniformity(z) == pytest.approx(expected, rel=1e-5)
    assert uniformity(z, t=0.0) == pytest.approx(0, abs=1e-5)
    assert max(largest) <= 256 * 2048


@pytest.mark.parametrize(("second", "expected"), [(torch.eye(4), 0.0), (-torch.eye(4), 4.0), (torch.eye(4).roll(1, 0), 2.0)])
def test_alignment_equals_the_closed_forms_for_rows_of_any_norm(second, expected):
    assert alignment(3 * torch.eye(4), 0.1 * second) == pytest.approx(expected, abs=1e-6)


def test_alignment_is_a_mean_over_rows():
    second = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert alignment(torch.eye(2), second) == pytest.approx(1.0)  # squared distances 0 and 2


@pytest.mark.parametrize("q", [3, 8, 32])
def test_energy_of_uniform_embeddings_is_near_0_in_every_degree(q):
    n = 200
    for degree, energy in enumerate(energy_per_degree(gaussian(n, q)), start=1):
        # pairs are uncorrelated with E[P_l^2] = 1 / N(q, l), so the variance is 2 N(q, l) / (n (n - 1)); 5 sigma
        assert abs(energy) <= 5 * math.sqrt(2 * harmonics(degree, q) / (n * (n - 1)))


def test_energy_of_uniform_embeddings_has_mean_0_and_the_known_spread():
    n, q, repeats = 30, 5, 200
    energies = torch.tensor([energy_per_degree(gaussian(n, q, seed), degrees=3) for seed in range(repeats)])
    sigma = torch.tensor([math.sqrt(2 * harmonics(l, q) / (n * (n - 1))) for l in (1, 2, 3)])
    assert (energies.mean(dim=0).abs() <= 5 * sigma / math.sqrt(repeats)).all()
    torch.testing.assert_close(energies.std(dim=0), sigma, rtol=0.3, atol=0)  # 200 draws: 5 % per sigma, with heavier tails


def test_energy_of_collapsed_embeddings_is_the_number_of_harmonics():
    z = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]).repeat(6, 1)
    assert energy_per_degree(z, degrees=4) == pytest.approx([harmonics(l, 5) for l in range(1, 5)], rel=1e-9)


def test_energy_of_nearly_collapsed_embeddings_is_large_in_degree_1():
    z = gaussian(100, 16)
    z[:, 0] += 10
    assert energy_per_degree(z)[0] > 0.8 * 16
    assert abs(energy_per_degree(gaussian(100, 16))[0]) < 0.5


def test_energy_of_a_line_of_opposite_points_is_in_the_even_degrees():
    z = torch.zeros(100, 6)
    z[:50, 0], z[50:, 0] = 1, -1
    first, second, third, fourth = energy_per_degree(z, degrees=4)
    assert (second, fourth) == pytest.approx((harmonics(2, 6), harmonics(4, 6)), rel=1e-9)
    # of the 99 others 49 are equal and 50 opposite
    assert (first, third) == pytest.approx((-6 / 99, -harmonics(3, 6) / 99), rel=1e-9)


def test_summary_has_the_alignment_of_two_views_and_the_other_values_of_the_first():
    views = [gaussian(20, 6, seed) for seed in range(3)]
    expected = {
        "alignment": alignment(views[0], views[1]),
        "uniformity": uniformity(views[0]),
        "effective_rank": effective_rank(views[0]),
    }
    assert summary(views) == expected


# --- RankMe, covariance spectrum, measure


def test_rankme_is_the_effective_rank_up_to_epsilon():
    z = gaussian(40, 12)
    s = np.linalg.svd(z.numpy(), compute_uv=False)
    p = s / s.sum() + 1e-3
    assert rankme(z, epsilon=1e-3) == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-5)
    assert rankme(z, epsilon=1e-3) > effective_rank(z) + 0.01
    assert rankme(z) == pytest.approx(effective_rank(z), rel=1e-4)  # 12 terms of epsilon log epsilon are 2e-5


def test_effective_rank_and_rankme_neither_centre_nor_normalise():
    z = torch.diag(torch.tensor([3.0, 1.0]))
    assert effective_rank(z) < 1.9, "normalised rows would give 2"
    assert rankme(torch.ones(5, 4)) == pytest.approx(1.0, abs=1e-4), "centred it would be 0, with no rank"


def test_the_covariance_of_two_opposite_points_has_one_eigenvalue_of_1():
    z = torch.zeros(10, 4)
    z[:5, 0], z[5:, 0] = 3, -0.5
    torch.testing.assert_close(covariance_spectrum(z), torch.tensor([1.0, 0, 0, 0], dtype=torch.float64))


def test_the_covariance_of_the_unit_vectors_and_their_opposites_is_that_of_the_uniform_distribution():
    spectrum = covariance_spectrum(7 * torch.cat([torch.eye(5), -torch.eye(5)]))
    torch.testing.assert_close(spectrum, torch.full((5,), 1 / 5, dtype=torch.float64))


def test_the_eigenvalues_add_up_to_half_the_mean_squared_distance():
    z = gaussian(30, 8)
    z[:, 0] += 1
    rows = torch.nn.functional.normalize(z, dim=1)
    half = torch.cdist(rows, rows).square().mean().item() / 2
    assert measure(z, z).spread == pytest.approx(half, rel=1e-9)
    assert half == pytest.approx(1 - rows.mean(dim=0).square().sum().item(), rel=1e-9)


def test_fewer_images_than_dimensions_have_as_many_eigenvalues_as_images():
    assert len(covariance_spectrum(gaussian(6, 20))) == 6
    assert measure(gaussian(6, 20), gaussian(6, 20)).largest_rank == 6


def test_embeddings_that_are_all_0_count_as_equal():
    """VICReg without variance and covariance term ends there. The inner products are 0, as between orthogonal embeddings."""
    found = measure(torch.zeros(8, 4), torch.zeros(8, 4))
    assert found.uniformity == 0
    assert found.spread == 0
    assert found.alignment == 0


@pytest.mark.parametrize("z", [np.ones((20, 4)), [[1.0, 2.0]], "embeddings", None])
def test_what_is_no_tensor_is_refused_by_its_type(z):
    sound = gaussian(20, 4)
    for function in (uniformity, effective_rank, rankme, covariance_spectrum, energy_per_degree, uniformity_test):
        with pytest.raises(ValueError, match=rf"z must be embeddings \[n, q\], a torch.Tensor, got {type(z).__name__}"):
            function(z)
    for function in (measure, alignment):
        with pytest.raises(ValueError, match="second must be embeddings"):
            function(sound, z)


@pytest.mark.parametrize("function", [lambda z: measure(z, z), energy_per_degree])
@pytest.mark.parametrize("shape", [(9, 1), (1, 9), (9,)])
def test_one_image_and_one_dimension_are_refused(function, shape):
    with pytest.raises(ValueError, match=r"must be embeddings \[n, q\], n at least 2 and q at least 2, got shape"):
        function(torch.ones(shape))


@pytest.mark.parametrize("factor", [1e20, 1e-13, 1e-30, 1e37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_scale_of_the_embeddings_does_not_matter(factor, dtype):
    """At 1e20 the squares overflow float32, and at 1e-13 the epsilon of `F.normalize` exceeds the norms."""
    first, second = gaussian(40, 6), gaussian(40, 6) + 0.3 * gaussian(40, 6, seed=1)
    factor = factor if dtype == torch.float32 else factor**4
    expected, found = measure(first, second), measure((first * factor).to(dtype), (second * factor).to(dtype))
    for name in ("alignment", "uniformity", "effective_rank", "rankme", "spectrum", "energy"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-4), name


def test_the_scale_of_a_row_does_not_matter_and_rows_of_0_stay_0():
    z, scales = gaussian(8, 3), torch.logspace(-200, 200, 8, dtype=torch.float64)[:, None]
    z[2] = 0
    assert uniformity(z * scales) == pytest.approx(uniformity(z), rel=1e-5)
    assert covariance_spectrum(z * scales).tolist() == pytest.approx(covariance_spectrum(z).tolist(), rel=1e-9)
    assert alignment(z * scales, z) == pytest.approx(0, abs=1e-6)


def test_measure_has_the_values_of_the_functions():
    first, second = gaussian(50, 6), gaussian(50, 6, seed=1)
    found = measure(first, second)
    assert (found.n, found.q, found.alignment) == (50, 6, alignment(first, second))
    assert (found.uniformity, found.effective_rank, found.rankme) == (uniformity(first), effective_rank(first), rankme(first))
    assert found.energy == tuple(energy_per_degree(first))
    assert found.energy_share == pytest.approx([e / harmonics(l, 6) for l, e in enumerate(found.energy, start=1)])
    point = torch.ones(9, 5)
    assert measure(point, point).energy_share == pytest.approx((1, 1, 1, 1))
