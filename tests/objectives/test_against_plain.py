"""The losses compared with the plain formulas by autograd in float64: value, gradient and size of the largest tensor."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sfrik.kernels import RotationInvariantKernel, harmonics, legendre
from sfrik.mmd import mmd_to_uniform
from sfrik.objectives import AUH, SFRIK, NotFinite, SIGReg, SimCLR, VICReg
from sfrik.objectives import sliced as sliced_module
from sfrik.objectives.reference import plain_loss
from sfrik.objectives.sliced import SlicedMMD, directions
from sfrik.ops import pairwise as pairs

SHAPES = {"more rows than columns": (13, 6), "fewer": (7, 20)}
MAKE = {
    "sfrik": lambda q: SFRIK(q, sim_coeff=20.0),
    "sfrik of degree 6": lambda q: SFRIK(q, (1.0, 2.0, 0.0, 3.0, 0.0, 1.0), sim_coeff=20.0),
    "sfrik by moments": lambda q: SFRIK(q, (1.0, 40.0), sim_coeff=20.0, cost="moments"),
    "sfrik with rbf": lambda q: SFRIK(q, sim_coeff=20.0, kernel=RotationInvariantKernel.rbf(2.5, q)),
    "sfrik with heat": lambda q: SFRIK(q, sim_coeff=20.0, kernel=RotationInvariantKernel.heat(None, q)),
    "auh": lambda q: AUH(sim_coeff=20.0),
    "auh, entropy": lambda q: AUH(sim_coeff=20.0, unif_coeff=3.0, entropy=True),
    "auh at a large scale": lambda q: AUH(sim_coeff=20.0, scale=90.0),
    "simclr": lambda q: SimCLR(),
    "simclr at a low temperature": lambda q: SimCLR(0.05),
    "vicreg": lambda q: VICReg(2.0, 3.0, 5.0),
}


def embeddings(count: int, n: int, q: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(n, q, dtype=torch.float64, generator=generator)
    return [0.6 * common + 0.3 * torch.randn(n, q, dtype=torch.float64, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("tile", [(2, 3), (5, 5), (256, 2048)])
@pytest.mark.parametrize(("count", "anchors", "regularise"), [(2, (0, 1), "all"), (3, (0,), "anchors"), (4, (2, 0), "all")])
def test_value_and_gradient_equal_those_of_the_plain_formula(monkeypatch, name, shape, tile, count, anchors, regularise):
    monkeypatch.setattr(pairs, "tile_shape", lambda device: tile)
    monkeypatch.setattr(pairs, "BLOCK", 12)  # some tiles are divided, some are not
    objective = MAKE[name](shape[1])
    views = [view.requires_grad_() for view in embeddings(count, *shape)]
    plain = plain_loss(objective, views, anchors, regularise)
    expected = torch.autograd.grad(3 * plain, views, allow_unused=True)
    loss = objective(views, anchors=anchors, regularise=regularise).loss
    gradient = torch.autograd.grad(3 * loss, views)
    torch.testing.assert_close(loss, plain, rtol=1e-11, atol=1e-13)
    size = max(g.abs().max().item() for g in expected if g is not None)
    for actual, plain_one in zip(gradient, expected, strict=True):
        torch.testing.assert_close(
            actual, torch.zeros_like(actual) if plain_one is None else plain_one, rtol=1e-9, atol=1e-12 * size
        )


def test_a_second_backward_pass_gives_the_same_gradient():
    views = [view.requires_grad_() for view in embeddings(2, 5, 4)]
    loss = SFRIK(4)(views).loss
    first = torch.autograd.grad(loss, views, retain_graph=True)
    second = torch.autograd.grad(loss, views)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", [*MAKE, "mmd"])
def test_a_second_derivative_is_refused(name):
    views = [view.requires_grad_() for view in embeddings(2, 5, 4)]
    rows = [torch.nn.functional.normalize(view, dim=1) for view in views]
    kernel = RotationInvariantKernel((1.0, 2.0), 4)
    loss = mmd_to_uniform(rows[0], kernel) if name == "mmd" else MAKE[name](4)(views).loss
    with pytest.raises(NotImplementedError, match="have no second derivative"):
        torch.autograd.grad(loss, views, create_graph=True, allow_unused=True)


@pytest.mark.parametrize("name", MAKE)
def test_the_value_is_the_same_without_gradients(name):
    views = embeddings(2, 13, 6)
    expected = MAKE[name](6)([view.clone().requires_grad_() for view in views]).loss
    loss = MAKE[name](6)(views).loss
    assert not loss.requires_grad
    assert torch.equal(loss, expected.detach())


class Largest(TorchDispatchMode):
    """Number of elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.values = max(
            [self.values, *(x.untyped_storage().nbytes() // x.itemsize for x in tree_leaves(out) if torch.is_tensor(x))]
        )
        return out


@pytest.mark.parametrize("name", ["sfrik", "auh", "auh, entropy", "auh at a large scale", "simclr"])
def test_no_tensor_has_the_size_of_all_pairs(monkeypatch, name):
    n, q = 600, 8
    monkeypatch.setattr(pairs, "tile_shape", lambda device: (16, 64))
    views = [view.requires_grad_() for view in embeddings(2, n, q)]
    with Largest() as largest:
        MAKE[name](q)(views).loss.backward()
    assert largest.values <= 2 * n * q  # the rows of both views


def test_vicreg_makes_no_covariance_matrix_if_there_are_few_rows(monkeypatch):
    n, q = 8, 600
    views = [view.requires_grad_() for view in embeddings(2, n, q)]
    with Largest() as largest:
        VICReg()(views).loss.backward()
    assert largest.values <= 2 * n * q


# --- random directions


@pytest.mark.parametrize("weights", [(1.0,), (0.0, 1.0), (1.0, 4.0, 4.0)])
def test_the_sliced_mmd_is_unbiased_over_its_directions(weights):
    kernel = RotationInvariantKernel(weights, 6)
    z = torch.nn.functional.normalize(embeddings(1, 40, 6)[0] + 0.5, dim=1)
    sliced, draws = SlicedMMD(kernel, 20), 400
    values = torch.stack([sliced.partial_values([z], len(z), [None], 1.0, (0, draw))[0] for draw in range(draws)])
    error = values.std() / math.sqrt(draws)
    assert abs(values.mean() - mmd_to_uniform(z, kernel)) < 4 * error
    assert error < 0.05 * values.mean()


@pytest.mark.filterwarnings("ignore::sfrik.kernels.TruncationWarning")
@pytest.mark.parametrize("degree", [None, 120])
def test_the_sliced_mmd_takes_any_degree_at_the_papers_largest_dimension(degree):
    q, kernel = 32768, RotationInvariantKernel.rbf(2.5, 32768, degree)
    z = torch.nn.functional.normalize(embeddings(1, 30, q)[0] + 0.3, dim=1)
    found = []
    for estimate, rows in ((SlicedMMD(kernel, 16), z), (SlicedMMD(kernel, 16), z.float())):
        gradient = torch.zeros_like(rows)
        # the directions are those of the dtype: take the ones in float64 for both
        drawn = directions(16, q, (0, 0), z).to(rows.dtype)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sliced_module, "directions", lambda *given, drawn=drawn: drawn)
            (value,) = estimate.partial_values([rows], 30, [gradient], 1.0, (0, 0))
        found.append((value.item(), gradient.double()))
    # the plain formula with the numbers of harmonics, up to the degree where these overflow
    drawn = directions(16, q, (0, 0), z)
    plain = sum(
        b * harmonics(l, q) * float(legendre(z @ drawn, l, q).mean(dim=0).square().mean())
        for l, b in enumerate(kernel.coefficients[:35], start=1)
    )
    assert found[0][0] == pytest.approx(plain, rel=1e-9)
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4)
    assert (found[1][1] - found[0][1]).norm() <= 1e-4 * found[0][1].norm()


def test_the_sliced_mmd_evaluates_the_degrees_that_its_dtype_resolves_and_refuses_those_beyond_it():
    sliced = SlicedMMD(RotationInvariantKernel.rbf(2.5, 512, 120), 4)
    weights = [l * b for l, b in enumerate(sliced.kernel.coefficients, start=1)]
    for dtype in (torch.float32, torch.float64):
        last = sliced.degrees(dtype)
        rounding = torch.finfo(dtype).eps / 2 * sum(weights)
        assert sum(weights[last:]) <= rounding < sum(weights[last - 1 :])
    assert 15 < sliced.degrees(torch.float32) < sliced.degrees(torch.float64) < 40
    assert SlicedMMD(RotationInvariantKernel((1.0, 40.0, 40.0), 512), 4).degrees(torch.float32) == 3
    with pytest.raises(ValueError, match="coefficients in the range of float32; that of degree 2 is 1e\\+39"):
        SlicedMMD(RotationInvariantKernel((1.0, 1e39), 512), 4)


def test_random_directions_estimate_a_closed_form_by_its_series():
    kernel = RotationInvariantKernel.rbf(2.5, 3)
    z = torch.nn.functional.normalize(embeddings(1, 40, 3)[0] + 0.5, dim=1)
    values = torch.stack([SlicedMMD(kernel, 20).partial_values([z], 40, [None], 1.0, (0, draw))[0] for draw in range(300)])
    assert abs(values.mean() - mmd_to_uniform(z, kernel)) < 4 * values.std() / math.sqrt(300)  # 4 sigma


@pytest.mark.parametrize("name", ["sfrik", "sigreg"])
@pytest.mark.parametrize(("count", "anchors", "regularise"), [(2, (0, 1), "all"), (3, (0,), "anchors")])
def test_gradient_of_the_sliced_objectives_passes_gradcheck(name, count, anchors, regularise):
    make = {"sfrik": lambda: SFRIK(4, sim_coeff=3.0, slices=9), "sigreg": lambda: SIGReg(0.4, slices=9)}[name]
    views = [view.requires_grad_() for view in embeddings(count, 5, 4)]
    assert torch.autograd.gradcheck(lambda *v: make()(v, anchors=anchors, regularise=regularise).loss, views)


def test_sigreg_is_the_epps_pulley_statistic_of_the_projections():
    from scipy.integrate import quad

    (rows,) = embeddings(1, 30, 3)
    drawn = directions(5, 3, (0, 0), rows)
    assert torch.linalg.vector_norm(drawn, dim=0).tolist() == pytest.approx([1.0] * 5)

    def squared_distance(t, x):
        return ((torch.exp(1j * t * x).mean() - math.exp(-t * t / 2)).abs() ** 2 * math.exp(-t * t / 2)).item()

    expected = sum(30 * quad(squared_distance, -5, 5, args=(x,))[0] for x in (rows @ drawn).T) / 5
    terms = SIGReg(1.0, slices=5)([rows, rows])
    assert terms.loss.item() == pytest.approx(expected, rel=1e-3)  # the trapezoidal rule on 17 points


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("anchors", [(0, 1), (1,)])
def test_sigregs_alignment_is_the_distance_to_the_centre_of_the_views(count, anchors):
    views = [view.requires_grad_() for view in embeddings(count, 6, 5)]
    stacked = torch.stack(views)
    distance = (stacked - stacked.mean(dim=0)).square().mean()
    terms = SIGReg(0.3, slices=9)(views, anchors=anchors)
    torch.testing.assert_close(terms.parts["alignment"], distance.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(terms.loss, 0.7 * distance + 0.3 * terms.parts["sigreg"], rtol=1e-12, atol=0)
    expected = torch.autograd.grad(distance, views)
    for actual, plain in zip(torch.autograd.grad(SIGReg(0.0)(views).loss, views), expected, strict=True):
        torch.testing.assert_close(actual, plain, rtol=1e-10, atol=1e-14)
    if count == 2:
        torch.testing.assert_close(distance, (views[0] - views[1]).square().mean() / 4, rtol=1e-12, atol=0)


def test_sigreg_refuses_embeddings_whose_projections_float32_does_not_resolve():
    views = [view.float() for view in embeddings(2, 8, 16)]
    assert SIGReg(slices=64)([1e5 * view for view in views]).loss.isfinite()
    for size in (1e8, 1e20):
        with pytest.raises(NotFinite, match=r"sigreg is nan.*views are finite.*SIGReg needs projections below 1.7e6"):
            SIGReg(slices=64)([size * view for view in views])
    assert SIGReg(slices=64)([1e8 * view.double() for view in views]).loss.isfinite()


def test_sigreg_is_larger_for_collapsed_than_for_normal_embeddings():
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(500, 16, generator=generator)
    line = torch.randn(500, 1, generator=generator) * torch.ones(1, 16)
    values = [SIGReg(1.0, slices=64)([rows, rows]).loss.item() for rows in (normal, line, torch.zeros(500, 16))]
    assert values[0] < 2 < 10 < values[1] < values[2]


@pytest.mark.parametrize(
    "make", [lambda **k: SFRIK(8, slices=4, **k), lambda **k: SIGReg(slices=4, **k)], ids=["sfrik", "sigreg"]
)
def test_the_random_directions_follow_from_the_seed_and_the_step(make):
    views = embeddings(2, 5, 8)
    objective = make()
    first, second = objective(views).loss, objective(views).loss
    assert first != second, "by default the calls are counted"
    assert objective(views, step=0).loss == first
    assert objective(views, step=1).loss == make()(views, step=1).loss == second
    assert make(seed=1)(views).loss != first


def test_invalid_numbers_of_directions_and_weights_are_rejected():
    with pytest.raises(ValueError, match="slices must be a whole number >= 1, got 0"):
        SFRIK(8, slices=0)
    with pytest.raises(ValueError, match="weight must be from 0 to 1"):
        SIGReg(1.5)
