"""MMD to the uniform distribution: double loops, closed forms, moments under the uniform distribution, gradients, errors."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import eval_gegenbauer

from sfrik import mmd as module
from sfrik.kernels import RotationInvariantKernel, harmonics
from sfrik.mmd import choose_cost, mmd_to_uniform
from sfrik.objectives.reference import plain_mmd
from sfrik.ops import pairwise as pairs

WEIGHTS = {"one": (1.0,), "two": (1.0, 40.0), "three": (1.0, 40.0, 40.0), "five": (0.5, 0.0, 2.0, 1.0, 0.25)}


def points(n: int, q: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, q, dtype=torch.float64, generator=generator), dim=1)


def double_loop(z: torch.Tensor, weights, unbiased: bool) -> float:
    n, q = z.shape
    a, rows, total = (q - 2) / 2, z.tolist(), 0.0
    for i in range(n):
        for j in range(n):
            if unbiased and i == j:
                continue
            t = sum(x * y for x, y in zip(rows[i], rows[j], strict=True))
            total += sum(b * eval_gegenbauer(l, a, t) / eval_gegenbauer(l, a, 1.0) for l, b in enumerate(weights, start=1))
    return total / (n * (n - 1) if unbiased else n * n)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_v_and_u_statistic_equal_a_double_loop(weights, unbiased):
    z = points(9, 6)
    value = mmd_to_uniform(z, RotationInvariantKernel(weights, 6), unbiased)
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(double_loop(z, weights, unbiased), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_gradient_of_the_mmd_passes_gradcheck(weights, unbiased):
    kernel = RotationInvariantKernel(weights, 5)
    assert torch.autograd.gradcheck(lambda z: mmd_to_uniform(z, kernel, unbiased), points(6, 5).requires_grad_())


@pytest.mark.parametrize("unbiased", [False, True])
def test_gradient_in_closed_form_equals_autograd_of_the_plain_formula(unbiased):
    kernel, n = RotationInvariantKernel((1.0, 40.0, 40.0), 16), 30
    z = points(n, 16).requires_grad_()
    phi = kernel(z @ z.T)
    if unbiased:
        phi = phi - torch.diag(phi.diagonal())
    plain = phi.sum() / (n * (n - 1) if unbiased else n * n)
    (expected,) = torch.autograd.grad(3 * plain, z)
    value = mmd_to_uniform(z, kernel, unbiased)
    (gradient,) = torch.autograd.grad(3 * value, z)  # times 3, since backward must use the incoming gradient
    torch.testing.assert_close(value, plain)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("tile", [(1, 1), (2, 3), (4, 4), (5, 20), (11, 2)])
@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("q", [4, 16], ids=["more rows than columns", "fewer"])
def test_tiles_give_the_mmd_of_the_whole_gram_matrix(monkeypatch, unbiased, tile, q):
    kernel, z = RotationInvariantKernel((1.0, 40.0, 40.0), q), points(11, q).requires_grad_()
    whole = plain_mmd(z, kernel, unbiased)
    (expected,) = torch.autograd.grad(whole, z)
    monkeypatch.setattr(pairs, "tile_shape", lambda device: tile)
    monkeypatch.setattr(pairs, "BLOCK", 12)  # some tiles are divided, some are not
    value = mmd_to_uniform(z, kernel, unbiased)
    (gradient,) = torch.autograd.grad(value, z)
    torch.testing.assert_close(value, whole, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("weights", [(1.0,), (0.0, 1.0), (1.0, 40.0), (1.0, 40.0, 0.0)])
@pytest.mark.parametrize("unbiased", [False, True])
def test_moments_and_gram_matrix_give_the_same_mmd(monkeypatch, weights, unbiased):
    kernel, z = (
        RotationInvariantKernel(weights, 5),
        (1.001 * points(12, 5)).requires_grad_(),
    )  # norms other than 1 must be handled too
    monkeypatch.setattr(pairs, "tile_shape", lambda device: (2, 3))
    found = {}
    for cost in ("gram", "moments"):
        value = mmd_to_uniform(z, kernel, unbiased, cost)
        found[cost] = value, *torch.autograd.grad(3 * value, z)
    torch.testing.assert_close(found["moments"], found["gram"], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("n", "q"), [(65536, 512), (8192, 16)])
def test_rounding_moves_the_u_statistic_of_many_rows_by_a_small_part_of_its_null_deviation(n, q):
    kernel = RotationInvariantKernel((1.0, 40.0), q)
    z = points(n, q).float()
    value, exact = (mmd_to_uniform(rows, kernel, unbiased=True, cost="moments").item() for rows in (z, z.double()))
    pairs = n * (n - 1) / 2
    deviation = math.sqrt(sum(b * b / harmonics(l, q) for l, b in enumerate(kernel.coefficients, start=1)) / pairs)
    assert abs(exact) < 5 * deviation
    assert abs(value - exact) < 0.02 * deviation  # |M|^2 / n^2 - 1 / q in float32 is off by 0.9 deviations at 65536 x 512


def test_auto_chooses_the_cheaper_algorithm():
    second, third = RotationInvariantKernel((1.0, 40.0), 64), RotationInvariantKernel((1.0, 40.0, 40.0), 64)
    assert choose_cost(65, second) == "moments"
    assert choose_cost(64, second) == choose_cost(1000, third) == "gram"
    with pytest.raises(ValueError, match="degrees 1 and 2; the kernel has degree 3"):
        mmd_to_uniform(points(3, 64), third, cost="moments")
    with pytest.raises(ValueError, match='"auto", "gram" or "moments"'):
        mmd_to_uniform(points(3, 64), third, cost="fast")


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 5, 12])
@pytest.mark.parametrize("dim", [2, 3, 64, 32768])
def test_the_tile_function_is_the_kernel_and_its_derivative(degree, dim):
    kernel = RotationInvariantKernel([float(l) for l in range(1, degree + 1)], dim)
    t = torch.linspace(-1, 1, 101, dtype=torch.float64)
    unit = float(kernel.derivative(torch.ones((), dtype=torch.float64)))
    for dtype in (torch.float64, torch.bfloat16):
        tile = module._tile_function(kernel, dtype)
        assert tile.slope_unit == pytest.approx(1.0 if dtype == torch.float64 else unit, rel=1e-12)
        values, slopes = tile.function(t.clone())
        bound = 1e-12 if dtype == torch.float64 or degree < 5 else 1e-7  # terms that float32 does not resolve are left out
        torch.testing.assert_close(tile.constant + tile.unit * values, kernel(t), rtol=bound, atol=bound * unit)
        torch.testing.assert_close(tile.slope_unit * slopes, kernel.derivative(t), rtol=bound, atol=bound * unit)


EXACT = {
    "rbf": lambda q: RotationInvariantKernel.rbf(2.5, q),
    "rbf, stein": lambda q: RotationInvariantKernel.rbf(2.5, q).stein(1),
    "power": lambda q: RotationInvariantKernel.power(1.0, q),
    "steep power": lambda q: RotationInvariantKernel.power(0.3, q),
    "heat": lambda q: RotationInvariantKernel.heat(None, q),
    "heat, stein": lambda q: RotationInvariantKernel.heat(None, q).stein(2),
    "short heat": lambda q: RotationInvariantKernel.heat(0.5 * math.log(q) / (q - 1), q),
}


@pytest.mark.parametrize("dim", [2, 3, 64, 512, 32768])
@pytest.mark.parametrize("name", EXACT)
def test_the_tile_function_of_an_exact_kernel_is_as_accurate_as_the_dtype(name, dim):
    if (name, dim) == ("short heat", 32768):
        with pytest.raises(ValueError, match=r"values reach 8.2e\+78, beyond the range of torch.float32: take a wider kernel"):
            module._tile_function(EXACT[name](dim), torch.float32)
        return
    kernel = EXACT[name](dim)
    low = -1 + 2 * torch.rand(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        precision = torch.promote_types(dtype, torch.float32)
        t = low.to(precision)
        tile = module._tile_function(kernel, dtype)
        t = t[2 - 2 * t > 5 * torch.finfo(dtype).eps] if "power" in name else torch.cat([t, torch.ones(1, dtype=precision)])
        values, slopes = tile.function(t.clone())
        expected, slope = kernel(t.double()), kernel.derivative(t.double())
        # Horner's scheme on at most 40 terms, whose sum of absolute values is at most four times the largest value
        bound = 2 * 40 * 4 * torch.finfo(precision).eps
        assert (tile.constant + tile.unit * values.double() - expected).abs().max() <= bound * expected.abs().max()
        assert (tile.slope_unit * slopes.double() - slope).abs().max() <= bound * slope.abs().max()
        assert not (dtype == torch.bfloat16 and slopes.abs().max() > 1 + 1e-6), "slopes that overflow in float16"


def test_a_long_series_takes_horners_scheme_only_where_its_terms_do_not_cancel():
    assert len(module._monomials(RotationInvariantKernel.heat(None, 512), torch.float32)) == 12
    assert len(module._monomials(RotationInvariantKernel.heat(None, 512), torch.float64)) == 19
    narrow = RotationInvariantKernel.heat(0.011, 3)  # the terms are up to 1e4 times their sum
    assert narrow.degree <= module.MAX_LONG_HORNER_DEGREE
    assert module._monomials(narrow, torch.float32) == (0.0,)
    t = torch.linspace(-1, 1, 101)
    values, slopes = module._tile_function(narrow, torch.float32).function(t.clone())
    assert (values.double() - narrow(t.double())).abs().max() <= 1e-6 * narrow(t).max()
    assert (slopes.double() - narrow.derivative(t.double())).abs().max() <= 1e-6 * narrow.derivative(t).max()
    cut = RotationInvariantKernel((1.0,) * 8, 512, left_out=1e-3)
    assert module._monomials(cut, torch.float32) == (0.0,)
    assert len(module._monomials(RotationInvariantKernel((1.0,) * 8, 512), torch.float64)) == 9


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("name", EXACT)
def test_gradient_of_the_mmd_with_exact_kernels_passes_gradcheck(name, unbiased):
    kernel, scale = EXACT[name](5), EXACT[name](5)(torch.ones(1, dtype=torch.float64)).item()
    x = (1 + torch.arange(6, dtype=torch.float64))[:, None] * points(6, 5)
    normalise = torch.nn.functional.normalize
    assert torch.autograd.gradcheck(lambda x: mmd_to_uniform(normalise(x), kernel, unbiased) / scale, x.requires_grad_())


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("name", EXACT)
def test_the_mmd_with_exact_kernels_is_the_mean_over_pairs(monkeypatch, name, unbiased):
    kernel, n = EXACT[name](7), 11
    monkeypatch.setattr(pairs, "tile_shape", lambda device: (3, 4))
    z = points(n, 7)
    loop = [kernel((z[i] @ z[j])[None]).item() for i in range(n) for j in range(n) if i != j]
    diagonal = [] if unbiased else [kernel(torch.ones(1, dtype=torch.float64)).item()] * n
    expected = math.fsum(loop + diagonal) / (n * (n - 1) if unbiased else n * n)
    assert mmd_to_uniform(z, kernel, unbiased).item() == pytest.approx(expected, rel=1e-12, abs=1e-14)
    plain = plain_mmd(z, kernel, unbiased)
    # the plain formula takes the power kernel of a row and itself at a distance of about 1e-8
    bound = 1e-12 if unbiased or "power" not in name else 1e-2
    assert plain.item() == pytest.approx(expected, rel=bound, abs=1e-14)


@pytest.mark.parametrize("name", EXACT)
def test_the_mmd_with_exact_kernels_is_invariant_to_rotations_and_to_the_order_of_the_rows(name):
    kernel, z = EXACT[name](10), points(20, 10)
    rotation, _ = torch.linalg.qr(torch.randn(10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    value = mmd_to_uniform(z, kernel)
    torch.testing.assert_close(mmd_to_uniform(z @ rotation, kernel), value, rtol=1e-12, atol=0)
    torch.testing.assert_close(mmd_to_uniform(z.flip(0), kernel), value, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("exponent", [0.3, 1.0, 1.7])
def test_the_power_kernels_gradient_along_the_sphere_is_that_of_the_pairs_of_different_rows(dtype, exponent):
    n, q = 40, 16
    kernel = RotationInvariantKernel.power(exponent, q)
    z = points(n, q).to(dtype)
    z[1] = z[0]  # equal rows
    z = z.requires_grad_()
    value = mmd_to_uniform(z, kernel, low_precision=True)
    value.backward()
    exact = z.detach().double()
    gradient = z.grad.double() - (z.grad.double() * exact).sum(dim=1, keepdim=True) * exact
    expected, total = torch.zeros(n, q, dtype=torch.float64), 0.0
    for i in range(n):
        for j in range(n):
            distance = (exact[i] - exact[j]).norm()
            if distance > 0:
                total -= float(distance) ** exponent
                expected[i] += 2 / n**2 * exponent * distance ** (exponent - 2) * exact[j]
    expected -= (expected * exact).sum(dim=1, keepdim=True) * exact
    # rows in low precision have norms that differ from 1 by their rounding, and so has the distance along the sphere; the two
    # equal rows have the largest slope, whose part along the sphere is rounding
    eps = torch.finfo(dtype).eps
    equal = 2 * 2 / n**2 * exponent * (4 * eps) ** (exponent / 2 - 1)
    assert torch.isfinite(z.grad).all()
    assert (gradient - expected).norm() <= 10 * eps * (expected.norm() + equal)
    assert gradient[0] @ gradient[1] == pytest.approx(float(gradient[0] @ gradient[0]), rel=1e-6 + 8 * eps)
    mean = -kernel(torch.ones((), dtype=torch.float64)).item()
    assert value.item() == pytest.approx(total / n**2 - mean, abs=(2 / n**2) * (4 * eps) ** (exponent / 2) + 16 * eps)


@pytest.mark.parametrize("exponent", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_rows_have_the_power_kernels_largest_value_and_no_gradient_along_the_sphere(dtype, exponent):
    kernel, z = RotationInvariantKernel.power(exponent, 64), points(1, 64).to(dtype).expand(9, 64).clone().requires_grad_()
    value = mmd_to_uniform(z, kernel, low_precision=True)
    value.backward()
    along = z.grad.double() - (z.grad.double() * z.double()).sum(1, keepdim=True) * z.double() / z.double().square().sum(
        1, keepdim=True
    )
    assert torch.isfinite(z.grad).all()
    assert along.norm() <= 2 * torch.finfo(dtype).eps * z.grad.double().norm()
    largest = kernel(torch.ones((), dtype=torch.float64)).item()
    assert value.item() == pytest.approx(largest, abs=(8 * torch.finfo(dtype).eps) ** (exponent / 2))


@pytest.mark.parametrize("name", ["rbf", "power", "heat"])
def test_u_statistic_of_exact_kernels_has_mean_0_under_the_uniform_distribution(name):
    n, q, repeats = 32, 6, 300
    kernel = EXACT[name](q)
    values = torch.stack([mmd_to_uniform(points(n, q, seed), kernel, unbiased=True) for seed in range(repeats)])
    # pairs are uncorrelated, and E[P_l^2] = 1 / N(q, l); what is beyond the coefficients hardly counts
    variance = 2 / (n * (n - 1)) * sum(b * e for b, e in zip(kernel.coefficients, kernel.spectrum, strict=True))
    assert abs(values.mean()) <= 5 * math.sqrt(variance / repeats)  # 5 sigma: exceeded by one seed in 1.7 million


@pytest.mark.parametrize("name", ["rbf", "power", "heat"])
def test_float32_resolves_the_u_statistic_near_the_uniform_distribution(name):
    n, q = 1500, 256
    kernel, z = EXACT[name](q), points(1500, 256).float()
    variance = 2 / (n * (n - 1)) * sum(b * e for b, e in zip(kernel.coefficients, kernel.spectrum, strict=True))
    exact = mmd_to_uniform(z.double(), kernel, unbiased=True).item()
    # the mean over the pairs is not 0 but that of rows whose norms are rounded; its rounding is far below the null's deviation
    assert abs(mmd_to_uniform(z, kernel, unbiased=True).item() - exact) <= 0.01 * math.sqrt(variance)


@pytest.mark.parametrize("scale", [1e-8, 1 / 8192, 0.01, 0.49, 0.51])
def test_float32_resolves_the_exact_rbf_at_small_scales(scale):
    n, q = 256, 8192
    kernel, z = RotationInvariantKernel.rbf(scale, q), points(256, 8192).float().requires_grad_()
    exact = z.detach().double().requires_grad_()
    value, expected = (mmd_to_uniform(rows, kernel, unbiased=True) for rows in (z, exact))
    variance = 2 / (n * (n - 1)) * sum(b * e for b, e in zip(kernel.coefficients, kernel.spectrum, strict=True))
    assert abs(value.item() - expected.item()) <= 0.01 * math.sqrt(variance)
    (actual,), (gradient,) = torch.autograd.grad(value, z), torch.autograd.grad(expected, exact)
    torch.testing.assert_close(actual.double(), gradient, rtol=0, atol=1e-5 * gradient.abs().max().item())
    series = RotationInvariantKernel(kernel.coefficients, q)  # has no constant that could cancel
    assert expected.item() == pytest.approx(mmd_to_uniform(exact.detach(), series, unbiased=True).item(), rel=1e-4)


def whole_and_along(
    rows: torch.Tensor, z: torch.Tensor, kernel: RotationInvariantKernel
) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Value of the MMD of rows, in low precision if they are; its gradient without the pairs i = j; the part along the sphere."""
    values, gradients = [], []
    for unbiased in (False, True):
        gradient = torch.zeros_like(rows, dtype=torch.promote_types(rows.dtype, torch.float32))
        mmd = module.MMD(kernel, unbiased, cost="gram", low_precision=True)
        values += mmd.partial_values([rows], [len(z)], [gradient], 1.0)
        gradients.append(gradient.double())
    along = gradients[0] - (gradients[0] * z).sum(1, keepdim=True) * z
    return values[0].item(), gradients[1] * (1 - 1 / len(z)), along


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", [(1.0,), (1.0, 40.0, 40.0), (0.0, 40.0, 0.0, 10.0)])
@pytest.mark.parametrize(("n", "q"), [(600, 64), (300, 1024), (1024, 512)])
@pytest.mark.parametrize("spread", [0.0, 0.7, 3.0, 1e4], ids=["uniform", "around a centre", "near it", "equal"])
def test_the_error_of_low_precision_products_is_within_the_stated_bound(dtype, weights, n, q, spread):
    kernel = RotationInvariantKernel(weights, q)
    z = torch.nn.functional.normalize(points(n, q) + spread * points(1, q, seed=9), dim=1)
    expected, whole, along = whole_and_along(z, z, kernel)
    value, _, rounded = whole_and_along(z.to(dtype), z, kernel)
    eps = torch.finfo(dtype).eps / 2
    one = torch.ones((), dtype=torch.float64)
    assert 0 < abs(value - expected) <= 3 * math.sqrt(2 / q) * eps * kernel.derivative(one) / kernel(one) * expected
    assert 0.1 * eps < (rounded - along).norm() / whole.norm() <= 1.1 * eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["rbf", "rbf, stein", "heat", "power"])
@pytest.mark.parametrize(("n", "q"), [(600, 64), (300, 1024)])
@pytest.mark.parametrize("spread", [0.0, 0.7], ids=["uniform", "around a centre"])
def test_exact_kernels_in_low_precision_are_within_the_stated_bound(dtype, name, n, q, spread):
    kernel = EXACT[name](q)
    z = torch.nn.functional.normalize(points(n, q) + spread * points(1, q, seed=9), dim=1)
    expected, whole, along = whole_and_along(z, z, kernel)
    value, _, rounded = whole_and_along(z.to(dtype), z, kernel)
    eps = torch.finfo(dtype).eps / 2
    assert abs(value - expected) <= 0.1 * eps * expected
    assert 0.1 * eps < (rounded - along).norm() / whole.norm() <= 1.1 * eps


@pytest.mark.parametrize(
    ("dtype", "n", "q", "measured"),
    [
        (torch.bfloat16, 256, 512, 1.1),
        (torch.bfloat16, 256, 8192, 0.9),
        (torch.float16, 256, 8192, 0.9),
        (torch.bfloat16, 32, 32768, 0.8),
        (torch.bfloat16, 2048, 512, 1.4),
    ],
)
def test_near_the_uniform_distribution_the_error_along_the_sphere_is_about_one_rounding(dtype, n, q, measured):
    kernel, z = RotationInvariantKernel((1.0, 40.0, 40.0), q), points(n, q)
    _, whole, along = whole_and_along(z, z, kernel)
    _, _, rounded = whole_and_along(z.to(dtype), z, kernel)
    assert (whole.norm() / along.norm()).item() == pytest.approx(math.sqrt(1 + n / q), rel=0.05)  # a draw of n rows, no mean
    error = ((rounded - along).norm() / along.norm() / (torch.finfo(dtype).eps / 2)).item()
    assert error == pytest.approx(measured, abs=0.05)
    assert error <= 1.1 * math.sqrt(1 + n / q)


def test_the_error_of_a_narrow_kernel_in_low_precision_is_a_few_roundings():
    kernel, z = RotationInvariantKernel.rbf(10.0, 128), points(64, 128)
    _, _, along = whole_and_along(z, z, kernel)
    _, _, rounded = whole_and_along(z.bfloat16(), z, kernel)
    assert (rounded - along).norm() / along.norm() == pytest.approx(2.5 * 2**-8, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rows_give_a_float32_value_near_the_float64_one(dtype):
    kernel = RotationInvariantKernel((1.0, 40.0, 40.0), 64)
    z = points(100, 64).to(dtype).requires_grad_()
    value = mmd_to_uniform(z, kernel)
    value.backward()
    assert value.dtype == torch.float32
    assert z.grad.dtype == dtype
    exact = z.detach().double().requires_grad_()  # the same rounded rows, so only the arithmetic in float32 differs
    expected = mmd_to_uniform(exact, kernel)
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    unrounded = mmd_to_uniform(points(100, 64), kernel).item()
    assert value.item() == pytest.approx(unrounded, rel=0.02)  # rounding changes the norms by up to 0.4 %, and with them phi(1)
    ulp = torch.finfo(dtype).eps
    torch.testing.assert_close(z.grad.double(), exact.grad, rtol=ulp, atol=1e-6)


def test_u_statistic_has_mean_0_and_the_known_variance_under_the_uniform_distribution():
    n, q, repeats, weights = 32, 6, 400, (1.0, 2.0, 4.0)
    kernel = RotationInvariantKernel(weights, q)
    values = torch.stack([mmd_to_uniform(points(n, q, seed), kernel, unbiased=True) for seed in range(repeats)])
    # pairs are uncorrelated and E[P_l^2] = 1 / N(q, l)
    variance = 2 / (n * (n - 1)) * sum(b * b / harmonics(l, q) for l, b in enumerate(weights, start=1))
    assert abs(values.mean()) <= 5 * math.sqrt(variance / repeats)  # 5 sigma: exceeded by one seed in 1.7 million
    # the variance of a variance from 400 draws with heavier tails than normal: 30 % is more than 3 sigma
    assert values.var().item() == pytest.approx(variance, rel=0.3)
    assert values.min() < 0  # it may be negative, unlike the V-statistic


def test_v_statistic_is_never_negative_and_exceeds_the_u_statistic_by_the_diagonal():
    kernel = RotationInvariantKernel((1.0, 2.0, 4.0), 6)
    for seed in range(50):
        z = points(12, 6, seed)
        v, u = mmd_to_uniform(z, kernel).item(), mmd_to_uniform(z, kernel, unbiased=True).item()
        assert v >= 0
        assert v == pytest.approx((11 * u + 7.0) / 12, rel=1e-12)  # phi(1) = 7


def test_mmd_of_equal_points_is_the_kernel_at_1():
    z = points(1, 8).expand(5, 8)
    kernel = RotationInvariantKernel((1.0, 40.0, 40.0), 8)
    assert mmd_to_uniform(z, kernel).item() == pytest.approx(81, rel=1e-12)
    assert mmd_to_uniform(z, kernel, unbiased=True).item() == pytest.approx(81, rel=1e-12)


def test_mmd_of_degree_1_only_is_0_for_antipodal_pairs():
    z = torch.cat([points(5, 8), -points(5, 8)])
    assert mmd_to_uniform(z, RotationInvariantKernel((1.0,), 8)).item() == pytest.approx(0, abs=1e-15)
    assert mmd_to_uniform(z, RotationInvariantKernel((0.0, 1.0), 8)).item() > 0.01


def test_mmd_of_degrees_1_to_3_but_not_4_is_0_for_the_standard_basis_and_its_negative():
    z = torch.cat([torch.eye(7), -torch.eye(7)]).double()
    assert mmd_to_uniform(z, RotationInvariantKernel((1.0, 40.0), 7)).item() == pytest.approx(0, abs=1e-14)
    assert mmd_to_uniform(z, RotationInvariantKernel((1.0, 40.0, 40.0), 7)).item() == pytest.approx(0, abs=1e-14)
    assert mmd_to_uniform(z, RotationInvariantKernel((0.0, 0.0, 0.0, 1.0), 7)).item() > 0.01


def test_mmd_is_invariant_to_rotations_and_to_the_order_of_the_rows():
    kernel, z = RotationInvariantKernel((1.0, 40.0, 40.0), 10), points(20, 10)
    rotation, _ = torch.linalg.qr(torch.randn(10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    value = mmd_to_uniform(z, kernel)
    torch.testing.assert_close(mmd_to_uniform(z @ rotation, kernel), value, rtol=1e-12, atol=0)
    torch.testing.assert_close(mmd_to_uniform(z.flip(0), kernel), value, rtol=1e-12, atol=0)


def test_autocast_does_not_lower_the_precision_of_the_mmd():
    kernel, z = RotationInvariantKernel((1.0, 40.0, 40.0), 16), points(20, 16).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = mmd_to_uniform(z, kernel)
    assert torch.equal(value, mmd_to_uniform(z, kernel))


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (points(4, 7), r"z must have shape \[n, 8\] \(the kernel's dim\), got \(4, 7\)"),
        (points(4, 8)[0], r"z must have shape \[n, 8\] \(the kernel's dim\), got \(8,\)"),
        (points(1, 8), "at least two rows, got one"),
        (points(0, 8), "at least two rows, got none"),
        (2 * points(4, 8), r"rows of z must have norm 1 \(the largest deviation is 1\)"),
        (torch.zeros(4, 8), "rows of z must have norm 1"),
        (torch.full((4, 8), math.nan), "rows of z must have norm 1"),
        (torch.full((4, 8), 1e20), "rows of z must have norm 1"),
        (torch.eye(8, dtype=torch.int64), r"z must be a floating-point tensor, got torch.int64"),
        (points(4, 8).tolist(), r"z must be a floating-point tensor, got list"),
    ],
)
def test_invalid_embeddings_are_rejected_with_the_reason(z, message):
    with pytest.raises(ValueError, match=message):
        mmd_to_uniform(z, RotationInvariantKernel((1.0, 40.0), 8))
