"""Legendre polynomials and kernels: comparison with scipy and mpmath, closed forms, identities, limits, gradients, errors."""

from __future__ import annotations

import itertools
import math
import time

import mpmath
import numpy as np
import pytest
import torch
from scipy.special import eval_gegenbauer, iv, ive, lpmv, roots_gegenbauer

from sfrik.kernels import RotationInvariantKernel, TruncationWarning, harmonics, legendre
from sfrik.kernels.polynomials import log_gamma_ratio, orthonormal_with_derivative

pytestmark = pytest.mark.filterwarnings("ignore::sfrik.kernels.TruncationWarning")  # those that are meant are asserted

# An even number of points leaves out t = 0 and its neighbourhood, where scipy's own series is the less accurate of the two.
GRID = torch.linspace(-1, 1, 80, dtype=torch.float64)


def points(n: int, q: int, seed: int = 0) -> torch.Tensor:
    """n independent uniform points on the sphere, [n, q], float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, q, dtype=torch.float64, generator=generator), dim=1)


def gegenbauer(t, degree: int, dim: int) -> np.ndarray:
    a = (dim - 2) / 2
    return eval_gegenbauer(degree, a, np.asarray(t, dtype=np.float64)) / eval_gegenbauer(degree, a, 1.0)


def quadrature(nodes: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Quadrature nodes and weights for the inner product of two uniform points."""
    t, weight = roots_gegenbauer(nodes, (dim - 2) / 2)
    return t, weight / weight.sum()


@pytest.mark.parametrize("degree", range(13))
@pytest.mark.parametrize("dim", [3, 4, 10, 512, 32768])
def test_legendre_of_any_degree_equals_scipys_gegenbauer(dim, degree):
    expected = gegenbauer(GRID, degree, dim)
    np.testing.assert_allclose(legendre(GRID, degree, dim).numpy(), expected, rtol=0, atol=1e-14)
    near_zero = GRID / math.sqrt(dim)  # the range of the inner products of uniform points
    typical = 1 / math.sqrt(harmonics(degree, dim))
    error = np.abs(legendre(near_zero, degree, dim).numpy() - gegenbauer(near_zero, degree, dim))
    assert error.max() <= 1e-12 * typical


@pytest.mark.parametrize("degree", range(13))
def test_legendre_in_dimension_2_is_chebyshevs_polynomial(degree):
    expected = torch.cos(degree * torch.arccos(GRID))
    torch.testing.assert_close(legendre(GRID, degree, 2), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("degree", range(13))
def test_float32_legendre_in_dimension_32768_is_accurate_relative_to_its_typical_size(degree):
    dim = 32768
    generator = torch.Generator().manual_seed(0)
    t = torch.randn(2000, generator=generator) / math.sqrt(dim)
    # The root mean square of P_l over uniform points is N(q, l)^(-1/2), near 1e-23 at degree 12; the bound allows 16
    # roundings per degree on values that reach 20 times that size for |t| sqrt(q) < 4.
    bound = 20 * 16 * max(degree, 1) * torch.finfo(torch.float32).eps / math.sqrt(harmonics(degree, dim))
    value = legendre(t, degree, dim)
    assert value.dtype == torch.float32
    assert (value.double() - legendre(t.double(), degree, dim)).abs().max() <= bound
    assert np.abs(value.double().numpy() - gegenbauer(t, degree, dim)).max() <= bound


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 8, 25])
@pytest.mark.parametrize("dim", [2, 3, 10, 512, 32768])
def test_legendre_is_1_at_1_and_alternates_at_minus_1_and_never_exceeds_1(dim, degree):
    ends = legendre(torch.tensor([1.0, -1.0], dtype=torch.float64), degree, dim)
    torch.testing.assert_close(ends, torch.tensor([1.0, (-1.0) ** degree], dtype=torch.float64), rtol=0, atol=1e-12)
    assert legendre(GRID, degree, dim).abs().max() <= 1 + 1e-12


@pytest.mark.parametrize("dim", [2, 3, 4, 10, 64])
def test_legendre_polynomials_are_orthogonal_with_norm_one_over_the_number_of_harmonics(dim):
    t, weight = quadrature(20, dim)  # exact up to degree 39
    p = np.stack([legendre(torch.from_numpy(t), degree, dim).numpy() for degree in range(10)])
    scale = np.sqrt([harmonics(degree, dim) for degree in range(10)])
    products = (p * weight) @ p.T * np.outer(scale, scale)
    # scaled by sqrt(N(q, l) N(q, m)) <= 1e12, so the rounding of p is too, relative to each polynomial's own size
    np.testing.assert_allclose(products, np.eye(10), rtol=0, atol=1e-9)


@pytest.mark.parametrize("degree", [1, 2, 3, 6])
def test_legendre_satisfies_the_addition_theorem_on_the_sphere_of_r3(degree):
    u, v = points(40, 3, seed=1).numpy(), points(40, 3, seed=2).numpy()
    angle = np.arctan2(u[:, 1], u[:, 0]) - np.arctan2(v[:, 1], v[:, 0])
    expected = lpmv(0, degree, u[:, 2]) * lpmv(0, degree, v[:, 2])
    for m in range(1, degree + 1):
        ratio = math.factorial(degree - m) / math.factorial(degree + m)
        expected += 2 * ratio * lpmv(m, degree, u[:, 2]) * lpmv(m, degree, v[:, 2]) * np.cos(m * angle)
    value = legendre(torch.from_numpy((u * v).sum(axis=1)), degree, 3).numpy()
    np.testing.assert_allclose(value, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dim", [2, 3, 4, 10, 32768])
def test_number_of_harmonics_equals_the_closed_forms(dim):
    assert [harmonics(0, dim), harmonics(1, dim)] == [1, dim]
    assert harmonics(2, dim) == (dim + 2) * (dim - 1) // 2
    assert harmonics(3, dim) == dim * (dim - 1) * (dim + 4) // 6
    by_degree = {2: lambda l: 2, 3: lambda l: 2 * l + 1, 4: lambda l: (l + 1) ** 2}
    if dim in by_degree:
        assert [harmonics(l, dim) for l in range(1, 15)] == [by_degree[dim](l) for l in range(1, 15)]


@pytest.mark.parametrize("dim", [2, 3, 10, 512])
def test_derivative_of_a_kernel_equals_autograd(dim):
    kernel = RotationInvariantKernel((0.5, 2.0, 0.0, 3.0, 0.25), dim)
    t = GRID.clone().requires_grad_()
    (slope,) = torch.autograd.grad(kernel(t).sum(), t)
    torch.testing.assert_close(kernel.derivative(GRID), slope, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dim", [2, 3, 512])
def test_kernel_and_its_derivative_pass_gradcheck(dim):
    kernel = RotationInvariantKernel((1.0, 0.5, 0.25, 0.125), dim)
    t = torch.linspace(-0.95, 0.95, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(kernel, t)
    assert torch.autograd.gradcheck(kernel.derivative, t)
    assert torch.autograd.gradcheck(lambda x: legendre(x, 5, dim), t)


def test_truncated_kernel_of_three_degrees_is_the_papers_polynomial():
    q = 16
    kernel = RotationInvariantKernel.truncated((1.0, 40.0, 40.0), q)
    expected = GRID + 40 * (q * GRID**2 - 1) / (q - 1) + 40 * ((q + 2) * GRID**3 - 3 * GRID) / (q - 1)
    torch.testing.assert_close(kernel(GRID), expected, rtol=1e-13, atol=1e-13)
    assert (kernel.degree, kernel.dim, kernel.left_out) == (3, q, 0.0)


def test_spectrum_is_the_kernels_eigenvalues_by_funk_hecke():
    dim = 6
    kernel = RotationInvariantKernel((1.0, 0.0, 2.0, 0.5), dim)
    t, weight = quadrature(20, dim)
    value = kernel(torch.from_numpy(t)).numpy()
    expected = [float(np.sum(weight * value * gegenbauer(t, l, dim))) for l in range(1, 5)]
    np.testing.assert_allclose(kernel.spectrum, expected, rtol=1e-12, atol=1e-16)


def test_spectrum_is_finite_where_the_number_of_harmonics_exceeds_float64():
    kernel = RotationInvariantKernel((1.0, *[0.0] * 108, 1e300), dim=32768)
    assert harmonics(110, 32768) > 10**308
    expected = float(mpmath.mpf(1e300) / harmonics(110, 32768))
    assert expected > 0
    assert kernel.spectrum[0] == pytest.approx(1 / 32768, rel=1e-12)
    assert kernel.spectrum[1:109] == (0.0,) * 108
    assert kernel.spectrum[109] == pytest.approx(expected, rel=1e-11)  # exp of a difference of logarithms near 700


@pytest.mark.parametrize(("dim", "scale"), [(3, 1.0), (4, 0.1), (10, 2.5), (64, 2.5), (64, 20.0), (200, 2.5)])
def test_rbf_coefficients_equal_the_closed_form_with_scipys_bessel_function(dim, scale):
    k, a = 2 * scale, (dim - 2) / 2
    kernel = RotationInvariantKernel.rbf(scale, dim, degree=8)
    expected = [harmonics(l, dim) * iv(a + l, k) * math.exp(math.lgamma(a + 1) + a * math.log(2 / k) - k) for l in range(1, 9)]
    np.testing.assert_allclose(kernel.coefficients, expected, rtol=1e-10)


@pytest.mark.parametrize("scale", [1e-3, 2.5, 100.0, 300.0])
def test_rbf_coefficients_in_dimension_32768_equal_mpmaths(scale):
    dim, a = 32768, mpmath.mpf(16383)
    kernel = RotationInvariantKernel.rbf(scale, dim, degree=6)
    assert all(math.isfinite(b) for b in kernel.coefficients)
    assert 0 <= kernel.left_out <= 1
    with mpmath.workdps(40):
        k = mpmath.mpf(2 * scale)
        front = mpmath.gamma(a + 1) * (2 / k) ** a * mpmath.exp(-k)
        expected = [float(front * harmonics(l, dim) * mpmath.besseli(a + l, k)) for l in range(1, 7)]
    # a relative error in b is an absolute one in log b, whose parts reach 600: 600 x 1e-16, and sums of it
    np.testing.assert_allclose(kernel.coefficients, expected, rtol=1e-11)


@pytest.mark.filterwarnings("ignore:the coefficient of degree")
@pytest.mark.parametrize(("dim", "scale"), [(2, 1.0), (3, 2.5), (10, 2.5), (64, 0.5), (512, 2.5), (2048, 2.5), (32768, 2.5)])
def test_rbf_coefficients_equal_the_quadrature_of_the_function(dim, scale):
    closed = RotationInvariantKernel.rbf(scale, dim, degree=6)
    measured = RotationInvariantKernel.from_function(lambda t: np.exp(-2 * scale * (1 - t)), dim, degree=6)
    noise = [16 * np.finfo(float).eps * math.sqrt(harmonics(l, dim)) for l in range(1, 7)]  # as documented
    for b, c, bound in zip(closed.coefficients, measured.coefficients, noise, strict=True):
        assert abs(b - c) <= bound + 1e-11 * b
    total = sum(closed.coefficients) / (1 - closed.left_out)
    assert closed.left_out == pytest.approx(measured.left_out, abs=1e-10 + sum(noise) / total)


@pytest.mark.parametrize(("dim", "scale", "degree"), [(2, 1.5, 30), (3, 1.0, 30), (10, 2.5, 40), (512, 2.5, 40)])
def test_rbf_series_with_its_degree_0_reproduces_the_gaussian(dim, scale, degree):
    t, weight = quadrature(64, dim)
    degree_0 = float(np.sum(weight * np.exp(-2 * scale * (1 - t))))
    value = RotationInvariantKernel.rbf(scale, dim, degree)(GRID) + degree_0
    torch.testing.assert_close(value, torch.exp(-2 * scale * (1 - GRID)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("time", [0.02, 0.1, 1.0])
def test_heat_kernel_of_the_circle_is_the_wrapped_gaussian(time):
    theta = torch.linspace(0, math.pi, 50, dtype=torch.float64)
    value = 1 + RotationInvariantKernel.heat(time, 2, degree=60)(torch.cos(theta))
    # Jacobi's identity for the theta function: 1 + 2 sum_l exp(-l^2 time) cos(l theta)
    turns = theta[:, None] - 2 * math.pi * torch.arange(-6, 7, dtype=torch.float64)
    expected = math.sqrt(math.pi / time) * torch.exp(-turns.square() / (4 * time)).sum(dim=1)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)


def test_heat_coefficients_solve_the_heat_equation():
    """The time derivative of the kernel is the Laplacian of the sphere, (1 - t^2) phi'' - (q - 1) t phi'."""
    dim, time, step = 5, 0.3, 1e-5
    before, now, after = (RotationInvariantKernel.heat(time + d, dim, degree=12) for d in (-step, 0, step))
    t = GRID.clone().requires_grad_()
    slope = now.derivative(t)
    (curvature,) = torch.autograd.grad(slope.sum(), t)
    laplacian = (1 - GRID**2) * curvature - (dim - 1) * GRID * slope.detach()
    change = (after(GRID) - before(GRID)) / (2 * step)
    torch.testing.assert_close(change, laplacian, rtol=1e-6, atol=1e-6)  # central difference: step^2 times l^6


@pytest.mark.parametrize("time", [1e-6, 1e-4, 1e-3])
def test_heat_coefficients_in_dimension_32768_are_finite(time):
    dim = 32768
    kernel = RotationInvariantKernel.heat(time, dim, degree=3)
    expected = [harmonics(l, dim) * math.exp(-l * (l + dim - 2) * time) for l in (1, 2, 3)]
    np.testing.assert_allclose(kernel.coefficients, expected, rtol=1e-12)
    assert 0 <= kernel.left_out <= 1
    assert torch.isfinite(kernel(GRID.float())).all()


@pytest.mark.parametrize("degree", [1, 2, 5])
@pytest.mark.parametrize(
    "family", [lambda L: RotationInvariantKernel.rbf(2.5, 8, L), lambda L: RotationInvariantKernel.heat(0.2, 8, L)]
)
def test_left_out_is_the_fraction_of_the_coefficients_beyond_the_truncation(family, degree):
    series = family(80).coefficients
    assert family(degree).left_out == pytest.approx(sum(series[degree:]) / sum(series), rel=1e-12)
    assert 1e-4 < family(degree).left_out < 1


def test_left_out_counts_degrees_far_beyond_the_truncation():
    dim, time, degree = 400, 1e-3, 260
    logs = [math.log(harmonics(l, dim)) - l * (l + dim - 2) * time for l in range(1, 1500)]
    share = np.exp(np.array(logs) - max(logs))
    expected = share[degree:].sum() / share.sum()
    assert 0.01 < expected < 0.99
    # beyond degree 256 the number of harmonics is taken from log-gamma functions, to about 1e-10
    assert RotationInvariantKernel.heat(time, dim, degree).left_out == pytest.approx(expected, rel=1e-9)


def test_left_out_is_nearly_1_if_the_coefficients_still_rise_at_the_truncation():
    assert RotationInvariantKernel.rbf(50.0, 512, degree=10).left_out == pytest.approx(1, abs=1e-9)


def test_from_function_recovers_a_polynomial_and_leaves_nothing_out():
    original = RotationInvariantKernel((1.0, 0.0, 2.5, 0.125), dim=7)
    kernel = RotationInvariantKernel.from_function(lambda t: 3 + original(torch.from_numpy(t)).numpy(), dim=7, degree=4)
    np.testing.assert_allclose(kernel.coefficients, original.coefficients, rtol=1e-12, atol=1e-12)
    assert kernel.left_out == pytest.approx(0, abs=1e-12)
    assert RotationInvariantKernel.from_function(lambda t: 3 + original(torch.from_numpy(t)).numpy(), 7, 3).left_out == (
        pytest.approx(0.125 / 3.625, rel=1e-9)
    )


def test_a_coefficient_below_the_round_off_of_the_quadrature_is_set_to_0_with_a_warning():
    with pytest.warns(UserWarning, match="degree 6 in dimension 32768 is below the round-off"):
        kernel = RotationInvariantKernel.from_function(lambda t: np.exp(t - 1), dim=32768, degree=6)
    assert kernel.coefficients[5] == 0.0
    assert kernel.coefficients[0] == pytest.approx(math.exp(-1), rel=1e-4)  # exp(t - 1) has slope 1/e at 0


@pytest.mark.parametrize(("phi", "degree"), [(lambda t: -t, 1), (lambda t: t - 0.5 * t**2, 2), (lambda t: np.cos(3 * t), 2)])
def test_a_function_that_is_not_positive_definite_is_rejected(phi, degree):
    with pytest.raises(
        ValueError, match=rf"not positive definite on the sphere of R\^8: its coefficient of degree {degree} is -"
    ):
        RotationInvariantKernel.from_function(phi, dim=8, degree=4)


@pytest.mark.parametrize("phi", [lambda t: 1.0, lambda t: np.full_like(t, np.nan), lambda t: t[:-1]])
def test_a_function_without_one_finite_value_per_point_is_rejected(phi):
    with pytest.raises(ValueError, match="one finite value for every inner product"):
        RotationInvariantKernel.from_function(phi, dim=8, degree=2)


def test_a_function_without_a_value_at_1_is_rejected_since_what_its_series_leaves_out_is_unknown():
    def ratio(t):
        with np.errstate(invalid="ignore"):
            return np.sin(6 * np.arccos(t)) / np.sin(np.arccos(t))  # 0 / 0 at t = 1

    with pytest.raises(ValueError, match="phi must have a value at t = 1: return its limit there"):
        RotationInvariantKernel.from_function(ratio, 3, 2)

    def logarithm(t):
        with np.errstate(divide="ignore"):
            return -np.log(1 - t)

    with pytest.raises(ValueError, match=r"phi is infinite at t = 1.*: give a degree"):
        RotationInvariantKernel.from_function(logarithm, 3)
    assert RotationInvariantKernel.from_function(logarithm, 3, 2).left_out == 1


@pytest.mark.parametrize(
    "kernel",
    [
        RotationInvariantKernel((1.0, 40.0, 40.0), 3),
        RotationInvariantKernel((0.0, 0.0, 1.0), 8),
        RotationInvariantKernel.rbf(2.5, 5, 12),
        RotationInvariantKernel.heat(0.1, 4, 12),
    ],
)
def test_gram_matrix_of_a_kernel_is_positive_semidefinite(kernel):
    z = points(150, kernel.dim)
    eigenvalues = torch.linalg.eigvalsh(kernel(z @ z.T))
    assert eigenvalues.min() >= -1e-12 * eigenvalues.max()
    # its rank is the number of harmonics of the degrees with a coefficient above 0
    rank = sum(harmonics(l, kernel.dim) for l, b in enumerate(kernel.coefficients, start=1) if b)
    if rank < 150:
        assert int((eigenvalues > 1e-9 * eigenvalues.max()).sum()) == rank


def test_gram_matrix_of_a_kernel_is_invariant_to_rotations():
    kernel = RotationInvariantKernel((1.0, 40.0, 40.0), 12)
    z = points(30, 12)
    rotation, _ = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))
    moved = z @ rotation
    assert (moved - z).abs().max() > 0.1
    torch.testing.assert_close(kernel(moved @ moved.T), kernel(z @ z.T), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_kernel_keeps_shape_and_dtype_of_its_argument(dtype):
    t = torch.rand(2, 3, 4).to(dtype)
    kernel = RotationInvariantKernel((1.0, 2.0), 6)
    for value in (kernel(t), kernel.derivative(t), legendre(t, 0, 6), legendre(t, 3, 6)):
        assert (value.shape, value.dtype) == (t.shape, dtype)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RotationInvariantKernel((1.0, -0.5), 8), "coefficient of degree 2 is -0.5"),
        (lambda: RotationInvariantKernel((math.nan,), 8), "coefficient of degree 1 is nan"),
        (lambda: RotationInvariantKernel((1, None), 8), "coefficient of degree 2 must be a number, got None"),
        (lambda: RotationInvariantKernel(("1", "40"), 8), "coefficient of degree 1 must be a number, got '1'"),
        (lambda: RotationInvariantKernel.rbf("2", 8), "scale of the RBF kernel must be a number, got '2'"),
        (lambda: RotationInvariantKernel.power(None, 8), "exponent of the power kernel must be a number, got None"),
        (lambda: RotationInvariantKernel.heat([1.0, 2.0], 8), r"time of the heat kernel must be a number, got \[1.0, 2.0\]"),
        (lambda: RotationInvariantKernel((1.0, math.inf), 8), "coefficient of degree 2 is inf"),
        (lambda: RotationInvariantKernel((0.0, 0.0), 8), "one coefficient above 0"),
        (lambda: RotationInvariantKernel((), 8), "one coefficient above 0"),
        (lambda: RotationInvariantKernel((1.0,), 1), "dim must be a whole number >= 2, got 1"),
        (lambda: RotationInvariantKernel((1.0,), 8.5), "dim must be a whole number >= 2, got 8.5"),
        (lambda: RotationInvariantKernel.rbf(0.0, 8, 3), "scale of the RBF kernel must be a number above 0, got 0"),
        (lambda: RotationInvariantKernel.rbf(2.5, 8, 0), "degree must be a whole number >= 1, got 0"),
        (lambda: RotationInvariantKernel.heat(-1.0, 8, 3), "time of the heat kernel must be a number above 0, got -1"),
        (lambda: RotationInvariantKernel.heat(1e-9, 32768, 200), "exceed the range of float64"),
        (lambda: RotationInvariantKernel.rbf(1e4, 32768, 3), "below the range of float64.*smaller scale"),
        (lambda: RotationInvariantKernel.heat(1e300, 16), r"below the range.* largest is exp\(-1\.5e\+301\)\)"),
        (lambda: RotationInvariantKernel.heat(0.1, 32768, 3), "below the range of float64.*shorter time"),
        (lambda: RotationInvariantKernel.from_function(np.exp, 1, 3), "dim must be a whole number >= 2"),
        (lambda: RotationInvariantKernel((1.0,) * 4097, 8), "degree must be a whole number <= 4096, got 4097"),
        (lambda: RotationInvariantKernel((1.0,), 10**9), "dim must be a whole number <= 1048576, got 1000000000"),
        (lambda: RotationInvariantKernel((1.0,), math.nan), "dim must be a whole number >= 2, got nan"),
        (lambda: RotationInvariantKernel.rbf(1e6, 8, 3), "scale of the RBF kernel must be at most 10000, got 1000000"),
        (lambda: RotationInvariantKernel.rbf(math.inf, 8, 3), "scale of the RBF kernel must be at most 10000, got inf"),
        (lambda: RotationInvariantKernel.rbf(1.0, 8, 10**9), "degree must be a whole number <= 4096, got 1000000000"),
        (lambda: RotationInvariantKernel.heat(math.inf, 8, 3), "time of the heat kernel must be a number above 0, got inf"),
        (lambda: RotationInvariantKernel.heat(0.1, 8, 10**9), "degree must be a whole number <= 4096"),
        (lambda: RotationInvariantKernel.from_function(np.exp, 8, 3, nodes=10**6), "nodes must be a whole number <= 1024"),
        (lambda: RotationInvariantKernel.from_function(np.exp, 8, 256), "nodes must be a whole number >= 257, got 256"),
        (lambda: RotationInvariantKernel.from_function(np.exp, 8, math.inf), "degree must be a whole number <= 4096, got inf"),
        (lambda: legendre(GRID, 10**9, 8), "degree must be a whole number <= 4096, got 1000000000"),
        (lambda: harmonics(10**9, 10**9), "dim must be a whole number <= 1048576"),
        (lambda: legendre(GRID, -1, 8), "degree must be a whole number >= 0, got -1"),
        (lambda: legendre(GRID, 2.5, 8), "degree must be a whole number >= 0, got 2.5"),
        (lambda: legendre(GRID, 2, 1), "dim must be a whole number >= 2, got 1"),
        (lambda: legendre(torch.tensor([0, 1]), 2, 8), "floating-point tensor"),
        (lambda: legendre(0.5, 2, 8), "floating-point tensor of inner products, got float"),
        (lambda: RotationInvariantKernel((1.0,), 8)(torch.tensor([1])), "floating-point tensor"),
    ],
)
def test_invalid_arguments_are_rejected_with_their_value_and_the_bound(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_whole_numbers_may_be_floats():
    kernel = RotationInvariantKernel((1.0, 40.0), 8)
    assert RotationInvariantKernel((1.0, 40.0), 8.0) == kernel
    assert isinstance(RotationInvariantKernel((1.0, 40.0), 8.0).dim, int)
    assert kernel.stein(1.0) == kernel.stein(1)
    assert RotationInvariantKernel.rbf(2.5, 8.0, 12.0) == RotationInvariantKernel.rbf(2.5, 8, 12)
    from_function = RotationInvariantKernel.from_function
    assert from_function(np.exp, 8.0, 3.0, nodes=64.0) == from_function(np.exp, 8, 3, nodes=64)
    assert torch.equal(legendre(GRID, 2.0, 3.0), legendre(GRID, 2, 3))
    assert harmonics(5.0, 8.0) == harmonics(5, 8)


@pytest.mark.parametrize("make", [RotationInvariantKernel.rbf, RotationInvariantKernel.heat])
@pytest.mark.parametrize("dim", [2, 3, 256, 65536, 2**20])
def test_the_largest_kernels_are_built_or_rejected_within_a_second(dim, make):
    for scale, degree in itertools.product((1e-12, 1.0, 1e4), (1, 4096)):
        started = time.process_time()
        try:
            kernel = make(scale, dim, degree)
        except ValueError as error:
            assert "below the range of float64" in str(error) or "exceed the range of float64" in str(error)  # noqa: PT017
        else:
            assert all(math.isfinite(b) for b in kernel.coefficients)
            assert 0 <= kernel.left_out <= 1
        assert time.process_time() - started < 1  # measured: 0.03 s


@pytest.mark.parametrize(("dim", "scale"), [(2, 40.0), (3, 1e4), (256, 1e3)])
def test_rbf_coefficients_of_narrow_kernels_equal_mpmaths(dim, scale):
    kernel = RotationInvariantKernel.rbf(scale, dim, degree=6)
    with mpmath.workdps(40):
        k, a = mpmath.mpf(2 * scale), mpmath.mpf(dim - 2) / 2
        front = mpmath.gamma(a + 1) * (2 / k) ** a * mpmath.exp(-k)
        expected = [float(front * harmonics(l, dim) * mpmath.besseli(a + l, k)) for l in range(1, 7)]
    np.testing.assert_allclose(kernel.coefficients, expected, rtol=1e-11)


@pytest.mark.filterwarnings("ignore:the coefficient of degree")
@pytest.mark.parametrize("dim", [2, 3, 64, 8192, 65536])
def test_quadrature_does_not_amplify_round_off_in_high_degrees(dim):
    kernel = RotationInvariantKernel.from_function(lambda t: np.exp(2.5 * (t - 1)), dim, degree=200)
    assert sum(kernel.coefficients) <= 1 + 1e-9, "the coefficients add up to phi(1)"
    assert max(kernel.coefficients[25:]) <= 1e-13, "those of the series are below 1e-16"


# --- exact kernels

EXACT = {
    "rbf": lambda q: RotationInvariantKernel.rbf(2.5, q),
    "narrow rbf": lambda q: RotationInvariantKernel.rbf(20.0, q),
    "power": lambda q: RotationInvariantKernel.power(1.0, q),
    "steep power": lambda q: RotationInvariantKernel.power(0.3, q),
    "heat": lambda q: RotationInvariantKernel.heat(None, q),
}


@pytest.mark.parametrize("dim", [2, 3, 10, 512, 32768])
@pytest.mark.parametrize("scale", [1e-3, 2.5, 40.0])
def test_the_exact_rbf_is_the_gaussian_without_its_mean(dim, scale):
    kernel, a, k = RotationInvariantKernel.rbf(scale, dim), (dim - 2) / 2, 2 * scale
    with mpmath.workdps(40):  # the mean of the Gaussian, E exp(k (t - 1)), by DLMF 10.32.2
        mean = float(mpmath.gamma(a + 1) * (2 / mpmath.mpf(k)) ** a * mpmath.besseli(a, k) * mpmath.exp(-k))
    torch.testing.assert_close(kernel(GRID), torch.exp(k * (GRID - 1)) - mean, rtol=1e-13, atol=1e-13 * mean)
    torch.testing.assert_close(kernel.derivative(GRID), k * torch.exp(k * (GRID - 1)), rtol=1e-13, atol=0)
    assert (kernel.left_out, kernel.beyond < 1e-16) == (0.0, True)


@pytest.mark.parametrize(("dim", "scale"), [(3, 2.5), (64, 2.5), (256, 40.0)])
def test_all_coefficients_of_the_exact_rbf_equal_scipys(dim, scale):
    kernel, k, a = RotationInvariantKernel.rbf(scale, dim), 2 * scale, (dim - 2) / 2
    logs = [math.log(harmonics(l, dim)) + math.log(ive(a + l, k)) for l in range(1, kernel.degree + 1)]
    front = math.lgamma(a + 1) + a * math.log(2 / k)  # ive has the factor exp(-k)
    np.testing.assert_allclose(kernel.coefficients, np.exp(np.array(logs) + front), rtol=1e-9)
    assert math.fsum(kernel.coefficients) == pytest.approx(kernel(torch.ones(1, dtype=torch.float64)).item(), rel=1e-13)


@pytest.mark.parametrize("exponent", [0.01, 0.3, 1.0, 1.99])
@pytest.mark.parametrize("dim", [2, 3, 10, 512, 32768])
def test_power_coefficients_and_mean_equal_the_moments_of_the_beta_distribution(dim, exponent):
    kernel = RotationInvariantKernel.power(exponent, dim)
    with mpmath.workdps(80):
        # x = (1 - t) / 2 has the distribution Beta(a, a), and P_l = 2F1(-l, l + q - 2; a; x) with a = (q - 1) / 2
        p, a = mpmath.mpf(exponent) / 2, mpmath.mpf(dim - 1) / 2
        moments = [4**p * mpmath.beta(a + k + p, a) / mpmath.beta(a, a) for k in range(13)]
        assert kernel(torch.ones(1, dtype=torch.float64)).item() == pytest.approx(float(moments[0]), rel=1e-14)
        for l in (1, 2, 3, 12):
            terms = [mpmath.rf(-l, k) * mpmath.rf(l + dim - 2, k) / mpmath.rf(a, k) / mpmath.fac(k) for k in range(l + 1)]
            expected = -harmonics(l, dim) * mpmath.fsum(c * moment for c, moment in zip(terms, moments, strict=False))
            assert kernel.coefficients[l - 1] == pytest.approx(float(expected), rel=1e-11)


@pytest.mark.parametrize("dim", [3, 10, 512])
def test_the_exact_power_kernel_is_the_distance_to_its_power(dim):
    u, v = points(50, dim, seed=1), points(50, dim, seed=2)
    distance = torch.cdist(u, v, compute_mode="donot_use_mm_for_euclid_dist")
    kernel = RotationInvariantKernel.power(1.3, dim)
    expected = kernel(torch.ones((), dtype=torch.float64)) - distance**1.3
    torch.testing.assert_close(kernel(u @ v.T), expected, rtol=0, atol=1e-13)


def test_the_exact_power_kernel_is_finite_where_rows_are_equal():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        t = torch.tensor([1.0, 1.0 + 4 * torch.finfo(dtype).eps, -1.0], dtype=dtype, requires_grad=True)
        kernel = RotationInvariantKernel.power(1.0, 8)
        value = kernel(t)
        (gradient,) = torch.autograd.grad(value.sum(), t)
        assert torch.isfinite(torch.cat([value, gradient, kernel.derivative(t)])).all()
        assert value[0] == value[1] == kernel(torch.ones((), dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize(("x", "p"), [(0.5, 0.5), (1.0, 1e-6), (3.7, 0.999), (255.5, 0.5), (524287.5, 0.5), (1e6, 0.995)])
def test_the_ratio_of_gamma_functions_equals_mpmaths(x, p):
    with mpmath.workdps(40):
        expected = float(mpmath.loggamma(mpmath.mpf(x) + p) - mpmath.loggamma(x))
    assert log_gamma_ratio(x, p) == pytest.approx(expected, rel=1e-14, abs=2e-17)


@pytest.mark.parametrize("dim", [2, 3, 512, 32768])
@pytest.mark.parametrize("name", EXACT)
def test_an_exact_kernel_is_the_sum_of_its_series(name, dim):
    kernel = EXACT[name](dim)
    series = RotationInvariantKernel(kernel.coefficients, dim)
    largest = kernel(torch.ones((), dtype=torch.float64))
    # what is beyond the coefficients is at most their share of the value at 1; their logarithms are sums of many
    bound = float(largest) * (kernel.beyond + 1e-13)
    assert (kernel(GRID) - series(GRID)).abs().max() <= bound
    assert (kernel.left_out, kernel.beyond < 1e-16) == (0, "power" not in name)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("dim", [2, 3, 64])
def test_exact_kernels_pass_gradcheck_and_their_derivative_is_autograds(name, dim):
    kernel = EXACT[name](dim)
    t = torch.linspace(-0.95, 0.95, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(kernel, t)
    (slope,) = torch.autograd.grad(kernel(t).sum(), t)
    torch.testing.assert_close(kernel.derivative(t.detach()), slope, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dim", [2, 3, 512, 8192, 2**20])
def test_heat_at_its_default_time_has_a_first_coefficient_of_1_and_nothing_left_out(dim):
    kernel = RotationInvariantKernel.heat(None, dim)
    assert kernel.coefficients[0] == pytest.approx(1, rel=1e-9)
    assert kernel.coefficients == RotationInvariantKernel.heat(math.log(dim) / (dim - 1), dim).coefficients
    assert kernel.degree <= 25
    assert kernel.left_out == 0
    if dim >= 8192:  # in the limit 1 / l!
        np.testing.assert_allclose(kernel.coefficients[:5], [1 / math.factorial(l) for l in range(1, 6)], rtol=0.03)


def test_a_heat_kernel_with_more_degrees_than_can_be_evaluated_is_refused_with_a_longer_time():
    with pytest.raises(
        ValueError, match=r"more than 4096 degrees that matter: take a longer time \(log\(q\) / \(q - 1\) is 0.549"
    ):
        RotationInvariantKernel.heat(1e-7, 3)
    assert RotationInvariantKernel.heat(1e-7, 3, degree=4).left_out > 0.99
    assert RotationInvariantKernel.heat(1e-4, 3).degree > 300


def test_from_function_without_a_degree_goes_as_far_as_the_quadrature_resolves():
    smooth = RotationInvariantKernel.from_function(lambda t: np.exp(5 * (t - 1)), 16)
    exact = RotationInvariantKernel.rbf(2.5, 16)
    np.testing.assert_allclose(smooth.coefficients, exact.coefficients[: smooth.degree], atol=1e-9)
    assert smooth.left_out < 1e-6
    assert RotationInvariantKernel.from_function(lambda t: t**2, 16).coefficients == pytest.approx((0.0, 15 / 16))
    with pytest.warns(TruncationWarning, match="leave out .* of the kernel in dimension 512"):
        rough = RotationInvariantKernel.from_function(lambda t: -np.sqrt(2 - 2 * t), 512)
    expected = RotationInvariantKernel.power(1.0, 512, rough.degree)
    assert rough.left_out == pytest.approx(expected.left_out, rel=1e-3)


@pytest.mark.parametrize(
    ("make", "share"),
    [
        (lambda: RotationInvariantKernel.rbf(2.5, 512, 8), "6.5 %"),
        (lambda: RotationInvariantKernel.power(1.0, 512, 8), "19 %"),
        (lambda: RotationInvariantKernel.heat(4 / 511, 512, 4), "93 %"),
        (lambda: RotationInvariantKernel.heat(4 / 8191, 8192, 4), "more than 99.9 %"),
        (lambda: RotationInvariantKernel.from_function(lambda t: np.exp(5 * (t - 1)), 512, 4), "56 %"),
    ],
)
def test_a_truncation_that_leaves_out_more_than_1_percent_warns_once_where_it_was_made(make, share):
    with pytest.warns(TruncationWarning, match=f"leave out {share} of the kernel in dimension") as found:
        make()
    assert [warning.filename for warning in found] == [__file__]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RotationInvariantKernel.rbf(2.5, 512, 8), "the degrees 1 to 8 leave .*: without a degree nothing is left out"),
        (lambda: RotationInvariantKernel.rbf(2.5, 512, 1), "the degree 1 leaves out .*: without a degree nothing is left out"),
        (lambda: RotationInvariantKernel.from_function(np.exp, 16, 1), "the degree 1 leaves out .*: give more degrees, or none"),
        (lambda: RotationInvariantKernel.from_function(lambda t: -np.sqrt(2 - 2 * t), 512), ": more nodes may resolve more"),
        (lambda: RotationInvariantKernel.rbf(2.5, 16, 9).stein(1), ": more degrees leave out less, unless the sum of all"),
        (
            lambda: RotationInvariantKernel.power(1.9, 16, 9).stein(1),
            ": more degrees leave out less, unless the sum of all",
        ),
    ],
)
def test_the_warning_of_a_truncation_ends_with_what_applies_to_this_kernel(make, message):
    with pytest.warns(TruncationWarning, match=message) as found:
        make()
    assert len(found) == 1


@pytest.mark.filterwarnings("error")
def test_exact_kernels_and_long_series_do_not_warn():
    for make in EXACT.values():
        make(512)
    assert RotationInvariantKernel.rbf(2.5, 512, 12).truncation == (
        "the degrees 1 to 12 leave out 0.18 % of the kernel in dimension 512"
    )
    assert RotationInvariantKernel.rbf(2.5, 512).truncation == ""
    assert "degree 1 leave" not in RotationInvariantKernel((1.0,), 512).truncation


@pytest.mark.parametrize("dim", [2, 3, 512, 32768])
def test_orthonormal_polynomials_are_the_legendre_polynomials_times_the_root_of_the_harmonics(dim):
    t = GRID.clone().requires_grad_()
    for l, (value, slope) in enumerate(orthonormal_with_derivative(t, 12, dim), start=1):
        scale = math.sqrt(harmonics(l, dim))
        torch.testing.assert_close(value, scale * legendre(t, l, dim), rtol=1e-11, atol=1e-11 * scale)
        (expected,) = torch.autograd.grad(legendre(t, l, dim).sum(), t)
        torch.testing.assert_close(slope, scale * expected, rtol=1e-11, atol=1e-11 * scale * float(expected.abs().max()))


# --- Stein kernels

STEIN = EXACT | {
    "truncated": lambda q: RotationInvariantKernel((1.0, 0.5, 0.25), q),
    "rbf series": lambda q: RotationInvariantKernel.rbf(2.5, q, 20),
}
STEIN = {name: make for name, make in STEIN.items() if "power" not in name}


def laplacian_on_the_sphere(value, point):
    """The Euclidean Laplacian with respect to a point of norm 1 of a function that is constant along rays."""
    (slopes,) = torch.autograd.grad(value, point, create_graph=True)
    return sum(torch.autograd.grad(slope, point, create_graph=True)[0][k] for k, slope in enumerate(slopes))


@pytest.mark.parametrize("name", ["truncated", "rbf", "heat"])
@pytest.mark.parametrize("dim", [2, 3])
def test_stein_kernels_are_the_stein_operators_applied_to_both_arguments(name, dim):
    kernel = STEIN[name](dim)
    first, second = kernel.stein(1), kernel.stein(2)
    u, v = points(1, dim, seed=1)[0].requires_grad_(), points(1, dim, seed=2)[0].requires_grad_()
    t = (u @ v)[None].detach()
    # first order: every infinitesimal rotation x_i d_j - x_j d_i, for which no tangent space has to be chosen
    total = torch.zeros((), dtype=torch.float64)
    (slopes,) = torch.autograd.grad(kernel((u @ v)[None]).sum(), v, create_graph=True)
    for i, j in itertools.combinations(range(dim), 2):
        along = v[i].detach() * slopes[j] - v[j].detach() * slopes[i]
        (both,) = torch.autograd.grad(along, u, retain_graph=True)
        total += (u[i] * both[j] - u[j] * both[i]).detach()
    assert total.item() == pytest.approx(float(first(t)), abs=1e-13 * float(first(torch.ones_like(t))))
    # second order: the Laplacian
    value = kernel((u @ v / u.norm() / v.norm())[None]).sum()
    both = laplacian_on_the_sphere(laplacian_on_the_sphere(value, v), u)
    assert both.item() == pytest.approx(float(second(t)), abs=1e-12 * float(second(torch.ones_like(t))))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("dim", [2, 3, 64, 512, 32768])
@pytest.mark.parametrize("name", STEIN)
def test_stein_kernels_multiply_the_coefficients_by_the_laplacians_eigenvalues(name, dim, order):
    kernel = STEIN[name](dim)
    found = kernel.stein(order)
    expected = [b * (l * (l + dim - 2)) ** order for l, b in enumerate(kernel.coefficients, start=1)]
    np.testing.assert_allclose(found.coefficients, expected, rtol=1e-14)
    largest = sum(expected)
    assert (found(GRID) - RotationInvariantKernel(expected, dim)(GRID)).abs().max() <= 1e-13 * largest
    assert found.beyond <= (1e-5 if name == "rbf series" else 1e-16)
    slopes = [c * l * (l + dim - 2) / (dim - 1) for l, c in enumerate(expected, start=1)]
    difference = found.derivative(GRID) - RotationInvariantKernel(expected, dim).derivative(GRID)
    assert difference.abs().max() <= 1e-13 * sum(slopes)
    again = kernel.stein(1).stein(1) if order == 2 else found
    torch.testing.assert_close(again(GRID), found(GRID), rtol=1e-12, atol=1e-13 * largest)


def test_a_stein_kernel_of_a_cut_series_knows_what_it_leaves_out():
    dim, degree = 64, 6
    series = RotationInvariantKernel.rbf(2.5, dim, 60).coefficients
    kernel = RotationInvariantKernel.rbf(2.5, dim, degree)
    for order in (1, 2):
        weights = [b * (l * (l + dim - 2)) ** order for l, b in enumerate(series, start=1)]
        with pytest.warns(TruncationWarning, match="leave out") as found:
            stein = kernel.stein(order)
        assert [warning.filename for warning in found] == [__file__]
        assert stein.left_out == pytest.approx(sum(weights[degree:]) / sum(weights), rel=1e-11)
        assert stein.left_out > kernel.left_out
    # of a function only the sum is known: a lower bound
    measured = RotationInvariantKernel.from_function(lambda t: np.exp(5 * (t - 1)), dim, degree).stein(1)
    assert kernel.left_out < measured.left_out <= kernel.stein(1).left_out
    assert RotationInvariantKernel((1.0, 40.0, 40.0), dim).stein(2).left_out == 0


def test_the_exact_power_kernel_has_no_stein_kernel_and_a_series_has():
    with pytest.raises(ValueError, match=r"the sum of b_l l \(l \+ q - 2\) is infinite.*give the kernel a degree"):
        RotationInvariantKernel.power(1.0, 16).stein(1)
    kernel = RotationInvariantKernel.power(1.0, 16, degree=5).stein(1)
    assert (kernel.degree, kernel.left_out) == (5, 1.0)
    for order in (0, 3, 1.5, None):
        with pytest.raises(ValueError, match=f"order of a Stein kernel must be 1 or 2, got {order}"):
            RotationInvariantKernel((1.0,), 16).stein(order)
