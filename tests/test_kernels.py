"""Legendre polynomials and kernels: comparison with scipy and mpmath, closed forms, identities, limits, gradients, errors."""

from __future__ import annotations

import itertools
import math
import time

import mpmath
import numpy as np
import pytest
import torch
from scipy.special import eval_gegenbauer, iv, lpmv, roots_gegenbauer

from sfrik.kernels import RotationInvariantKernel, harmonics, legendre

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
