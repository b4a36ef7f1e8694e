"""The spectrum of each loss against its gradient near the uniform distribution, and the values of known distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import ive, jv
from torch.nn.functional import normalize

from sfrik.kernels import RotationInvariantKernel, harmonics
from sfrik.mmd import mmd_to_uniform
from sfrik.objectives import AUH, SFRIK, SIGReg, SimCLR, VICReg, sigreg
from sfrik.objectives.spectra import exponential_moments, log_mean_exponential, second_moments

# --- values


def test_the_authors_commands_have_these_weights_at_dimension_8192():
    q = 8192
    assert SFRIK(q, sim_coeff=4000.0).spectrum(degrees=3) == pytest.approx([2.048, 81.92, 81.92], rel=1e-12)
    assert AUH(sim_coeff=3000.0).spectrum(q) == pytest.approx([13.65, 34.13, 56.87, 71.06], rel=1e-3)
    assert SIGReg(weight=0.05).spectrum(q, 256) == pytest.approx([26.0, 13.0, 7.22, 4.21], rel=2e-3)
    assert VICReg().spectrum(q) == pytest.approx([0.0, 1638.2, 0.0, 0.0], rel=1e-12)
    # the limit of many dimensions: 2 tau tau^-l / l!
    assert SimCLR(0.5).spectrum(q, 256) == pytest.approx([2.0, 2.0, 4 / 3, 2 / 3], rel=2e-3)


def test_the_logarithm_multiplies_the_weight_of_auhs_gaussian_kernel_by_145_at_dimension_512():
    q, n = 512, 1500
    kernel = RotationInvariantKernel.rbf(2.5, q, 40)
    plain = SFRIK(q, kernel=kernel, sim_coeff=3000.0).spectrum(degrees=4)
    assert [a / b for a, b in zip(AUH().spectrum(q), plain, strict=True)] == pytest.approx([144.83] * 4, rel=1e-4)
    z = normalize(torch.randn(n, q, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=1).requires_grad_()
    (mmd,) = torch.autograd.grad(mmd_to_uniform(z, kernel, unbiased=True), z)
    (auh,) = torch.autograd.grad(AUH(sim_coeff=0.0)([z, z]).loss, z)
    along, across = ((g - (g * z).sum(dim=1, keepdim=True) * z).detach() for g in (mmd, auh))
    ratio = (across * along).sum() / along.square().sum()
    assert ratio.item() == pytest.approx(144.83, rel=0.01)  # the estimate of b_0 from n rows is as close
    assert torch.allclose(across, ratio * along, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("q", [2, 3, 16, 512, 8192])
def test_moments_of_exponentials_are_ratios_of_bessel_functions(q):
    order, rate, degrees = q / 2 - 1, 5.0, 6
    coefficients, eigenvalues = exponential_moments(rate, q, degrees)
    if q <= 16:  # scipy's values underflow at 512
        expected = [ive(order + l, rate) / ive(order, rate) for l in range(1, degrees + 1)]
        assert eigenvalues == pytest.approx(expected, rel=1e-9)
        mean = math.lgamma(q / 2) - order * math.log(rate / 2) + math.log(ive(order, rate)) + rate
        assert log_mean_exponential(rate, q) == pytest.approx(mean, rel=1e-9)
        waves = np.array([0.4, 1.0, 2.5]) * math.sqrt(q)
        size = np.array([math.exp(math.lgamma(q / 2) - order * math.log(s / 2)) for s in waves])
        energy = [harmonics(l, q) * (size * jv(order + l, waves)) ** 2 for l in range(1, degrees + 1)]
        np.testing.assert_allclose(second_moments(waves, q, degrees), energy, rtol=1e-7)
    assert coefficients == pytest.approx([e * harmonics(l, q) for l, e in enumerate(eigenvalues, 1)], rel=1e-9)
    kernel = RotationInvariantKernel.rbf(rate / 2, q)
    b_0 = math.exp(log_mean_exponential(rate, q) - rate)
    assert [b * b_0 for b in coefficients] == pytest.approx(list(kernel.coefficients[:degrees]), rel=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AUH().spectrum(), "AUH does not know the dimension of its embeddings: give q"),
        (lambda: AUH().floor(256), "AUH does not know the dimension of its embeddings: give q"),
        (lambda: SFRIK(8).floor(None), "n must be a whole number >= 2, got None"),
        (lambda: SFRIK(8).spectrum(9), "the objective was made for dim=8, got q = 9"),
        (lambda: SIGReg().spectrum(8), "SIGReg grows with the number of rows: give n"),
        (lambda: SimCLR().spectrum(8), "SimCLR depends on the number of rows: give n"),
        (
            lambda: SFRIK(8, kernel=RotationInvariantKernel.power(1.0, 8)).spectrum(degrees=4000),
            "has its first .* coefficients only",
        ),
        (lambda: VICReg().spectrum(8, 1), "n must be a whole number >= 2, got 1"),
        (lambda: VICReg().spectrum(1), "dim must be a whole number >= 2, got 1"),
        (lambda: VICReg().spectrum(8, degrees=0), "degree must be a whole number >= 1, got 0"),
        (lambda: AUH(sim_coeff=0.0).spectrum(8), "relative to the alignment, whose weight is 0"),
        (lambda: SIGReg(1.0).spectrum(8, 8), "relative to the alignment, whose weight is 0"),
    ],
)
def test_what_is_missing_for_a_spectrum_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- the gradient

N, STEP, DEGREES = 500, 2e-3, 12
LOSSES = {
    "sfrik": lambda q: SFRIK(q, (1.0, 40.0, 0.0, 7.0), mmd_coeff=0.3),
    "sfrik, rbf": lambda q: SFRIK(q, kernel=RotationInvariantKernel.rbf(2.5, q, 20), trade_off=3.0),
    "auh": lambda q: AUH(),
    "auh, entropy": lambda q: AUH(entropy=True),
    "simclr": lambda q: SimCLR(),
    "simclr, warm": lambda q: SimCLR(0.8),
    "vicreg": lambda q: VICReg(10.0, 0.0, 1.0),  # without the variance term, which no kernel is equivalent to
    "sigreg": lambda q: SIGReg(),
}


def even_rows(q: int, n: int) -> torch.Tensor:
    """Points that are spread evenly on the circle, or on the sphere (along a spiral)."""
    i = torch.arange(n, dtype=torch.float64) + 0.5
    if q == 2:
        return torch.stack([(2 * math.pi * i / n).cos(), (2 * math.pi * i / n).sin()], dim=1)
    height, turn = 1 - 2 * i / n, math.pi * (1 + math.sqrt(5)) * i
    radius = (1 - height.square()).sqrt()
    return torch.stack([radius * turn.cos(), radius * turn.sin(), height], dim=1)


def along_sphere(gradient: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return gradient - (gradient * z).sum(dim=1, keepdim=True) * z


def with_energy_in(degree: int, q: int) -> torch.Tensor:
    """Even rows, moved along the gradient of the harmonic Im (x + i y)^degree: in degree 2 off the diagonal of the covariance."""
    z = even_rows(q, N).requires_grad_()
    (slope,) = torch.autograd.grad(torch.complex(z[:, 0], z[:, 1]).pow(degree).imag.sum(), z)
    return normalize(z.detach() + STEP * slope, dim=1)


def gradients(objective, *views: torch.Tensor) -> list[torch.Tensor]:
    """The gradient along the sphere by views of norm 1; losses that do not normalise get them at the norm sqrt(q)."""
    radius = 1.0 if objective.normalised else math.sqrt(views[0].shape[1])
    leaves = [(radius * z).requires_grad_() for z in views]
    objective(leaves).loss.backward()
    return [along_sphere(radius * leaf.grad, z) for leaf, z in zip(leaves, views, strict=True)]


def weight_of_squared_distance(objective, q: int) -> float:
    """From the gradient at two views of which one is the other one rotated, which the regulariser does not see."""
    z, turn = even_rows(q, N), torch.zeros(q, q, dtype=torch.float64)
    turn[0, 1] = STEP
    apart = z - z @ torch.matrix_exp(turn - turn.T)
    first, second = gradients(objective, z, z - apart)
    return (N * ((first - second) * apart).sum() / (4 * apart.square().sum())).item()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("q", [2, 3])
def test_near_uniform_rows_each_loss_has_the_gradient_of_the_mmd_with_its_weights(monkeypatch, name, q):
    evenly = even_rows(q, 64 if q == 2 else 1500).T.contiguous()  # directions whose mean over the sphere is exact
    monkeypatch.setattr(sigreg, "directions", lambda count, dim, seed, like: evenly)
    objective = SIGReg(slices=evenly.shape[1]) if name == "sigreg" else LOSSES[name](q)
    unit, weights = weight_of_squared_distance(objective, q), objective.spectrum(q, N, DEGREES)
    kernels = [RotationInvariantKernel((0.0,) * l + (1.0,), q) for l in range(DEGREES)]
    for degree in (1, 2, 3, 4):
        z = with_energy_in(degree, q)
        regulariser = sum(gradients(objective, z, z))
        leaf = z.clone().requires_grad_()
        of_degree = [along_sphere(torch.autograd.grad(mmd_to_uniform(leaf, kernel), leaf)[0], z) for kernel in kernels]
        mmd = sum(unit * w * gradient for w, gradient in zip(weights, of_degree, strict=True))
        pure = of_degree[degree - 1]
        # terms in 1/n: the pairs i = j that are left out, each worth phi(1) / b_0 of a pair, 10 of them for AUH at q = 3
        error = (regulariser - mmd).norm() / (unit * max(weights) * pure.norm())
        assert error < 12 / N, (degree, error)
        measured = ((regulariser * pure).sum() / pure.square().sum() / unit).item()
        assert measured == pytest.approx(weights[degree - 1], rel=12 / N, abs=1e-3 * max(weights)), degree


def test_simclrs_weight_counts_the_share_of_the_positive_pair_in_the_softmax():
    """On random rows, whose positive pairs have a third of the softmax, moved to both sides so that terms of odd order cancel."""
    q, n, draws, shift = 32, 128, 100, 0.1
    objective, generator = SimCLR(0.2), torch.Generator().manual_seed(0)
    mean = RotationInvariantKernel((1.0,), q)
    axis, turn = torch.eye(q, dtype=torch.float64)[0] * shift, torch.zeros(q, q, dtype=torch.float64)
    turn[0::2, 1::2].fill_diagonal_(STEP)
    rises, units = [], []
    for _ in range(draws):
        z = normalize(torch.randn(n, q, dtype=torch.float64, generator=generator), dim=1)
        moved = [normalize(z + move, dim=1) for move in (axis, -axis, 0 * axis)]
        values = torch.stack([torch.stack([objective(x, x).loss, mmd_to_uniform(x, mean, unbiased=True)]) for x in moved])
        rises.append(values[:2].mean(dim=0) - values[2])
        apart = z - z @ torch.matrix_exp(turn - turn.T)
        first, second = gradients(objective, z, z - apart)
        units.append(n * ((first - second) * apart).sum() / (4 * apart.square().sum()))
    loss, mmd = torch.stack(rises).mean(dim=0)
    measured = (loss / mmd / torch.stack(units).mean()).item()
    (weight,) = objective.spectrum(q, n, 1)
    # 0.1 % from the draws, the rest from terms in shift^2 and 1/n
    assert measured == pytest.approx(weight, rel=0.01)
    assert weight > 1.02 * objective.spectrum(q, 2**40, 1)[0], "what it would be without the share"


# --- values of known distributions


@pytest.mark.parametrize("objective", [SFRIK(16), SFRIK(16, kernel=RotationInvariantKernel.rbf(2.5, 16))], ids=["L=3", "rbf"])
def test_the_floor_of_sfrik_is_the_mean_over_random_rows(objective):
    n, q, draws = 24, 16, 200
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(n, q, dtype=torch.float64, generator=generator) for _ in range(draws)]
    values = torch.stack([objective(z, z).parts["mmd"] for z in rows])
    floor = objective.floor(n)
    assert abs(values.mean() - floor.random) < 4 * values.std() / math.sqrt(draws)
    assert floor.random == pytest.approx(sum(objective.kernel.coefficients) / n, rel=1e-9)


MAKE = [SFRIK, lambda q: AUH(scale=0.4), lambda q: AUH(scale=0.4, entropy=True)]


@pytest.mark.parametrize("make", MAKE, ids=["sfrik", "auh", "entropy"])
@pytest.mark.parametrize("n", [4, 6, 16])
def test_orthogonal_and_equal_rows_have_the_values_of_the_floor(make, n):
    q, name = 16, "mmd" if make is SFRIK else "uniformity"
    objective = make(q)
    floor, basis = objective.floor(n, q), torch.eye(q, dtype=torch.float64)
    assert objective(basis[:n], basis[:n]).parts[name].item() == pytest.approx(floor.orthogonal, rel=1e-12)
    equal = basis[:1].expand(n, q)
    assert objective(equal, equal).parts[name].item() == pytest.approx(floor.collapsed, abs=1e-9)
    assert floor.orthogonal < floor.random < floor.collapsed
    assert (floor.relative_excess(floor.random), floor.relative_excess(floor.collapsed)) == (0, 1)
    assert floor.excess(floor.random + 0.25) == pytest.approx(0.25)
    assert objective.floor(q + 1, q).orthogonal is None, "there are no q + 1 orthogonal rows"


@pytest.mark.parametrize("entropy", [False, True])
def test_the_floor_of_auh_is_that_of_many_random_rows(entropy):
    n, q = 3000, 64
    objective = AUH(entropy=entropy)
    z = torch.randn(n, q, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kernel = RotationInvariantKernel.rbf(2.5, q, 40)
    floor = objective.floor(n, q).random
    spread = sum(b * e for b, e in zip(kernel.coefficients, kernel.spectrum, strict=True)) / math.exp(2 * floor)
    # standard deviation of the mean over pairs, and in the entropy -Var / (2 n) of each row's logarithm
    tolerance = 5 * math.sqrt(2 * spread) / n + (spread / n if entropy else 0)
    assert objective(z, z).parts["uniformity"].item() == pytest.approx(floor, abs=tolerance)


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize(("n", "q"), [(256, 512), (64, 16), (32, 8), (3, 64)])
def test_auh_has_a_floor_only_where_random_rows_are_near_it(entropy, n, q):
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(n, q, dtype=torch.float64, generator=generator) for _ in range(20)]
    known = []
    for scale in (0.5, 2.5, 10.0, 40.0, 200.0):
        objective = AUH(scale=scale, entropy=entropy)
        floor = objective.floor(n, q)
        known.append(floor is not None)
        if floor:
            excess = [floor.relative_excess(objective(z, z).parts["uniformity"].item()) for z in rows]
            assert abs(np.mean(excess)) <= 0.01 + 3 * np.std(excess) / math.sqrt(len(rows))
    assert known == sorted(known, reverse=True)
    assert known[0] or n == 3
    assert not known[-1], "a few pairs make up the mean"


def test_losses_without_such_values_have_no_floor():
    assert [objective.floor(8, 8) for objective in (SimCLR(), VICReg(), SIGReg())] == [None] * 3
