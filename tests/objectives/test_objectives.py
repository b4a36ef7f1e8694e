"""The objectives compared with plain loops over the formulas, for two and more views; gradients; errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import eval_gegenbauer

from sfrik.errors import SfrikError
from sfrik.kernels import RotationInvariantKernel, TruncationWarning
from sfrik.objectives import AUH, SFRIK, NotFinite, SimCLR, VICReg
from sfrik.objectives.factory import build_objective, kernel_notes
from sfrik.objectives.reference import plain_loss
from sfrik.settings import PretrainSettings

N, Q = 5, 4


def embeddings(count: int, n: int = N, q: int = Q, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(n, q, dtype=torch.float64, generator=generator)
    return [0.6 * common + 0.3 * torch.randn(n, q, dtype=torch.float64, generator=generator) for _ in range(count)]


# The formulas in plain Python; rows are lists of floats.


def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def unit(rows):
    return [[a / math.sqrt(dot(x, x)) for a in x] for x in rows]


def mse(first, second):
    squares = [(a - b) ** 2 for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(squares) / len(squares)


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def alignment(views, anchors):
    return mean(mean(mse(views[a], views[v]) for v in range(len(views)) if v != a) for a in anchors)


def mmd(rows, weights):
    q = len(rows[0])

    def phi(t):
        a = (q - 2) / 2
        return sum(b * eval_gegenbauer(l, a, t) / eval_gegenbauer(l, a, 1.0) for l, b in enumerate(weights, start=1))

    return sum(phi(dot(x, y)) for x in rows for y in rows) / len(rows) ** 2


def sfrik(views, anchors, regularised, weights, sim, coeff):
    views = [unit(view) for view in views]
    return sim * alignment(views, anchors) + coeff * mean(mmd(views[v], weights) for v in regularised)


def auh(views, anchors, regularised, sim, coeff, scale, entropy=False):
    views = [unit(view) for view in views]

    def uniformity(rows):
        n = len(rows)
        if entropy:
            return mean(
                math.log(mean(math.exp(-2 * scale * (1 - dot(x, y))) for j, y in enumerate(rows) if j != i))
                for i, x in enumerate(rows)
            )
        return math.log(mean(math.exp(-2 * scale * (1 - dot(rows[i], rows[j]))) for i in range(n) for j in range(n) if i != j))

    return sim * alignment(views, anchors) + coeff * mean(uniformity(views[v]) for v in regularised)


def simclr(views, anchors, regularised, temperature):
    views = [unit(view) for view in views]

    def nt_xent(first, second):
        rows, n, losses = first + second, len(first), []
        for i, x in enumerate(rows):
            partner = i + n if i < n else i - n
            others = sum(math.exp(dot(x, y) / temperature) for j, y in enumerate(rows) if j != i)
            losses.append(-math.log(math.exp(dot(x, rows[partner]) / temperature) / others))
        return mean(losses)

    return mean(mean(nt_xent(views[a], views[v]) for v in range(len(views)) if v != a) for a in anchors)


def vicreg(views, anchors, regularised, sim, std, cov):
    def hinge_and_covariance(rows):
        n, q = len(rows), len(rows[0])
        centre = [mean(x[k] for x in rows) for k in range(q)]

        def c(k, m):
            return sum((x[k] - centre[k]) * (x[m] - centre[m]) for x in rows) / (n - 1)

        hinge = mean(max(0.0, 1 - math.sqrt(c(k, k) + 1e-4)) for k in range(q))
        return hinge, sum(c(k, m) ** 2 for k in range(q) for m in range(q) if k != m) / q

    both = [hinge_and_covariance(views[v]) for v in regularised]
    covariance = 2 * mean(b for _, b in both)  # the sum if there are two views
    return sim * alignment(views, anchors) + std * mean(h for h, _ in both) + cov * covariance


CASES = {
    "sfrik of degree 1": (SFRIK(Q, (2.0,), 7.0, 3.0), lambda *a: sfrik(*a, (2.0,), 7.0, 3.0)),
    "sfrik of degrees 1 and 2": (SFRIK(Q, (1.0, 40.0), 7.0, 3.0), lambda *a: sfrik(*a, (1.0, 40.0), 7.0, 3.0)),
    "sfrik by default": (SFRIK(Q), lambda *a: sfrik(*a, (1.0, 40.0, 40.0), 4000 * Q / 8192, 1.0)),
    "sfrik of five degrees": (
        SFRIK(Q, (1.0, 0.0, 3.0, 2.0, 0.5), 7.0, 3.0),
        lambda *a: sfrik(*a, (1.0, 0.0, 3.0, 2.0, 0.5), 7.0, 3.0),
    ),
    "auh as published": (AUH(), lambda *a: auh(*a, 3000.0, 1.0, 2.5)),
    "auh": (AUH(2.0, 3.0, 0.7), lambda *a: auh(*a, 2.0, 3.0, 0.7)),
    "auh, entropy": (AUH(2.0, 3.0, 0.7, entropy=True), lambda *a: auh(*a, 2.0, 3.0, 0.7, entropy=True)),
    "simclr as published": (SimCLR(), lambda *a: simclr(*a, 0.15)),
    "simclr": (SimCLR(0.8), lambda *a: simclr(*a, 0.8)),
    "vicreg as published": (VICReg(), lambda *a: vicreg(*a, 10.0, 10.0, 1.0)),
    "vicreg": (VICReg(2.0, 3.0, 50.0), lambda *a: vicreg(*a, 2.0, 3.0, 50.0)),
}
EVERY_CASE = pytest.mark.parametrize(("objective", "plain"), CASES.values(), ids=CASES.keys())
OBJECTIVES = {"sfrik": SFRIK(Q, sim_coeff=10.0), "auh": AUH(sim_coeff=10.0), "simclr": SimCLR(), "vicreg": VICReg()}
EVERY_OBJECTIVE = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())


@EVERY_CASE
def test_loss_of_two_views_equals_a_plain_double_loop(objective, plain):
    views = embeddings(2)
    expected = plain([view.tolist() for view in views], (0, 1), (0, 1))
    loss = objective(views).loss
    assert (loss.dtype, loss.shape) == (torch.float64, ())
    assert loss.item() == pytest.approx(expected, rel=1e-11)


@EVERY_CASE
@pytest.mark.parametrize("regularise", ["all", "anchors"])
@pytest.mark.parametrize("anchors", [(0,), (0, 1), (2, 0, 3)])
def test_loss_of_four_views_equals_the_anchor_formula(objective, plain, anchors, regularise):
    views = embeddings(4)
    expected = plain([view.tolist() for view in views], anchors, range(4) if regularise == "all" else anchors)
    assert objective(views, anchors=anchors, regularise=regularise).loss.item() == pytest.approx(expected, rel=1e-11)


@EVERY_OBJECTIVE
def test_loss_of_two_views_does_not_depend_on_the_order_of_views_or_images(objective):
    first, second = embeddings(2)
    loss = objective([first, second]).loss
    torch.testing.assert_close(objective([second, first]).loss, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(objective([first.flip(0), second.flip(0)]).loss, loss, rtol=1e-12, atol=0)
    assert (objective([first.flip(0), second]).loss - loss).abs() > 1e-3  # but it depends on the pairing of the views


@pytest.mark.parametrize("name", ["sfrik", "auh", "simclr"])
def test_loss_of_normalised_objectives_does_not_depend_on_the_norms_of_the_rows(name):
    views = embeddings(2)
    lengths = torch.linspace(0.1, 30, N, dtype=torch.float64)[:, None]
    loss = OBJECTIVES[name]([views[0] * lengths, 5 * views[1]]).loss
    torch.testing.assert_close(loss, OBJECTIVES[name](views).loss, rtol=1e-11, atol=0)


def test_vicreg_does_not_normalise_its_views():
    views = embeddings(2)
    longer = VICReg(1.0, 0.0, 0.0)([3 * view for view in views]).loss
    torch.testing.assert_close(longer, 9 * VICReg(1.0, 0.0, 0.0)(views).loss)


@EVERY_OBJECTIVE
@pytest.mark.parametrize(("count", "anchors", "regularise"), [(2, (0, 1), "all"), (3, (0,), "all"), (3, (0,), "anchors")])
def test_gradient_of_the_loss_passes_gradcheck(objective, count, anchors, regularise):
    views = [view.requires_grad_() for view in embeddings(count)]
    assert torch.autograd.gradcheck(lambda *v: objective(v, anchors=anchors, regularise=regularise).loss, views)


@EVERY_OBJECTIVE
def test_parts_are_detached_and_finite_and_alignment_is_the_mean_squared_error(objective):
    views = [view.requires_grad_() for view in embeddings(2)]
    terms = objective(views)
    assert terms.loss.requires_grad
    assert not any(part.requires_grad for part in terms.parts.values())
    rows = [view.tolist() if isinstance(objective, VICReg) else unit(view.tolist()) for view in views]
    assert terms.parts["alignment"].item() == pytest.approx(mse(*rows), rel=1e-12)


def test_loss_is_the_weighted_sum_of_its_parts():
    views = embeddings(3)
    for objective, weights in [
        (SFRIK(Q, sim_coeff=7.0, mmd_coeff=3.0), {"alignment": 7.0, "mmd": 3.0}),
        (AUH(7.0, 3.0), {"alignment": 7.0, "uniformity": 3.0}),
        (VICReg(7.0, 3.0, 2.0), {"alignment": 7.0, "std": 3.0, "cov": 2.0}),
        (SimCLR(), {"nt_xent": 1.0}),
    ]:
        terms = objective(views, anchors=(0,))
        total = sum(weight * terms.parts[name] for name, weight in weights.items())
        torch.testing.assert_close(terms.loss.detach(), total, rtol=1e-12, atol=0)


def test_two_views_can_be_given_as_a_list_or_one_by_one():
    first, second = embeddings(2)
    objective = VICReg()
    assert torch.equal(objective(first, second).loss, objective([first, second]).loss)
    assert torch.equal(objective(first, second, anchors=(1,)).loss, objective((first, second), anchors=[1]).loss)
    with pytest.raises(ValueError, match="two or more views of the same images"):
        objective(first)


def test_backward_of_the_terms_is_that_of_the_loss():
    gradients = []
    for backward in (lambda terms: terms.backward(), lambda terms: terms.loss.backward()):
        views = [view.requires_grad_() for view in embeddings(2)]
        backward(SFRIK(Q)(views))
        gradients.append(views[0].grad)
    assert torch.equal(*gradients)


def test_the_default_weight_of_sfriks_alignment_is_the_papers_trade_off():
    assert SFRIK(8192).sim_coeff == 4000
    assert SFRIK(2048).sim_coeff == 1000
    assert SFRIK(64).sim_coeff == 31.25
    assert SFRIK(2048, sim_coeff=0.0).sim_coeff == 0
    assert [SFRIK(q).trade_off for q in (64, 8192, 32768)] == [2.048] * 3


@pytest.mark.parametrize(("trade_off", "mmd_coeff", "weight"), [(1e-310, 1.0, "inf"), (1e300, 1e-300, "0")])
def test_a_trade_off_without_a_finite_weight_is_refused(trade_off, mmd_coeff, weight):
    with pytest.raises(
        ValueError, match=f"trade_off = .* makes the weight of the alignment {weight}: take numbers that are closer"
    ):
        SFRIK(16, mmd_coeff=mmd_coeff, trade_off=trade_off)


def test_sfriks_trade_off_is_the_weight_of_the_mmd_for_a_squared_distance_of_1():
    views = embeddings(2)
    objective = SFRIK(Q, mmd_coeff=0.5, trade_off=3.0)
    assert (objective.sim_coeff, objective.trade_off) == (Q * 0.5 / 3.0, 3.0)
    parts = objective(views).parts
    first, second = (torch.nn.functional.normalize(view, dim=1) for view in views)
    distance = (first - second).square().sum(dim=1).mean()
    scaled = objective(views).loss / objective.sim_coeff * Q
    torch.testing.assert_close(scaled, distance + 3.0 * parts["mmd"], rtol=1e-12, atol=0)
    assert SFRIK(Q, sim_coeff=0.0).trade_off == math.inf
    with pytest.raises(ValueError, match=r"trade_off and sim_coeff are two forms of one weight.*trade_off = 2 and sim_coeff = 4"):
        SFRIK(Q, sim_coeff=4.0, trade_off=2.0)
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="trade_off must be a finite number above 0"):
            SFRIK(Q, trade_off=wrong)
    with pytest.raises(ValueError, match="trade_off needs a mmd_coeff above 0"):
        SFRIK(Q, mmd_coeff=0.0, trade_off=1.0)


def test_sfrik_takes_any_rotation_invariant_kernel_of_its_dimension():
    views = embeddings(2)
    kernel = RotationInvariantKernel((1.0, 40.0, 40.0), Q)
    assert torch.equal(SFRIK(Q, kernel=kernel)(views).loss, SFRIK(Q)(views).loss)
    assert not torch.equal(SFRIK(Q, kernel=RotationInvariantKernel.rbf(2.5, Q))(views).loss, SFRIK(Q)(views).loss)
    with pytest.raises(ValueError, match="kernel is of dimension 4, the embeddings of dimension 6"):
        SFRIK(6, kernel=kernel)


@EVERY_OBJECTIVE
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_lower_precision_views_give_a_float32_loss_near_the_float64_one(objective, dtype):
    views = [view.to(dtype).requires_grad_() for view in embeddings(2, n=32)]
    exact = objective([view.detach().double() for view in views]).loss.item()  # of the same rounded numbers
    loss = objective(views).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=1e-4)
    assert all(view.grad.dtype == dtype and torch.isfinite(view.grad).all() for view in views)


@EVERY_OBJECTIVE
def test_autocast_does_not_lower_the_precision_of_the_loss(objective):
    views = [view.float() for view in embeddings(2, n=32)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(views).loss
    assert torch.equal(loss, objective(views).loss)


def test_auh_at_a_large_scale_is_finite_where_every_exponential_underflows():
    # the basis: every pair at inner product 0, so the log of the mean is -2 scale exactly; exp(-400) is 0 in float32
    views = [torch.eye(6).requires_grad_(), torch.eye(6)]
    loss = AUH(sim_coeff=0.0, scale=200.0)(views).loss
    loss.backward()
    assert loss.item() == pytest.approx(-400.0, rel=1e-6)
    assert torch.isfinite(views[0].grad).all()
    assert views[0].grad.abs().max() > 1


@pytest.mark.parametrize("scale", [1e-8, 1e-4, 0.49, 0.51])
def test_auh_keeps_its_value_in_float32_at_small_scales(scale):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(8, 16, generator=generator)
    exact = z.double().requires_grad_()
    objective, z = AUH(sim_coeff=0.0, scale=scale), z.requires_grad_()
    loss, plain = objective(z, z).loss, plain_loss(objective, [exact, exact])
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5, abs=1e-14)
    (actual,), (expected,) = torch.autograd.grad(loss, z), torch.autograd.grad(plain, exact)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("scale", [2.5, 200.0, 3000.0, 1e4])
def test_auh_takes_views_whose_largest_inner_products_differ_at_any_scale(scale):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(8, 16, generator=generator)
    views = [z.requires_grad_(), (z.detach() + 0.3 * torch.randn(8, 16, generator=generator)).requires_grad_()]
    loss = AUH(scale=scale)(views).loss
    plain = plain_loss(AUH(scale=scale), views)
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    for actual, expected in zip(torch.autograd.grad(loss, views), torch.autograd.grad(plain, views), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-3 * expected.abs().max().item())


@EVERY_OBJECTIVE
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_reported_with_its_view_and_row(objective, bad):
    views = embeddings(3)
    views[1][3, 2] = bad
    with pytest.raises(ValueError, match=r"view 1 holds NaN or infinite values in 1 of 5 rows \(first: row 3\)"):
        objective(views, anchors=(0,))


NORMALISED = {"entropy": AUH(sim_coeff=10.0, entropy=True), "sliced": SFRIK(Q, sim_coeff=0.0, slices=8)}
NORMALISED |= {name: objective for name, objective in OBJECTIVES.items() if objective.normalised}


@pytest.mark.parametrize("objective", NORMALISED.values(), ids=NORMALISED.keys())
@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (0.0, torch.float32, "has a norm of 0"),
        (0.0, torch.bfloat16, "has a norm of 0"),
        (0.0, torch.float64, "has a norm of 0"),
        (1e20, torch.float32, "has a norm that overflows float32"),
        (1e20, torch.bfloat16, "has a norm that overflows float32"),
        (1e200, torch.float64, "has a norm that overflows float64"),
        (1e-30, torch.float32, "has a norm below 1e-12"),
        (1e-200, torch.float64, "has a norm below 1e-12"),
    ],
)
def test_a_row_that_cannot_be_normalised_is_reported(objective, value, dtype, message):
    views = [view.to(dtype).requires_grad_() for view in embeddings(3)]
    views[1] = views[1].detach().index_fill(0, torch.tensor([2, 4]), value)
    with pytest.raises(NotFinite, match=rf"view 1 {message} in 2 of 5 rows \(first: row 2\)") as error:
        objective(views, anchors=(0,), regularise="anchors")
    assert error.value.rows == [2, 4]


@pytest.mark.parametrize("objective", NORMALISED.values(), ids=NORMALISED.keys())
def test_an_allowed_zero_row_counts_as_the_first_unit_vector_without_gradient(objective):
    views = embeddings(2)
    axis = [view.clone() for view in views]
    axis[1][3] = torch.eye(Q)[0]
    expected = objective(axis, step=0).loss
    views[1][3] = 0
    for view in views:
        view.requires_grad_()
    objective.allow_zero_rows = True
    try:
        terms = objective(views, step=0)
        terms.backward()
        with pytest.raises(NotFinite, match=r"view 1 has a norm of 0 in 5 of 5 rows"):
            objective([views[0], torch.zeros_like(views[0])])
    finally:
        objective.allow_zero_rows = False
    assert terms.loss == expected
    assert not views[1].grad[3].any()
    assert all(view.grad.isfinite().all() for view in views)


@pytest.mark.parametrize("value", [0.0, 1e20])
def test_embeddings_that_are_all_the_same_bad_value_are_refused(value):
    with pytest.raises(NotFinite, match="view 1 has a norm"):
        SFRIK(Q)(torch.full((N, Q), value), torch.full((N, Q), value))


def test_norms_near_the_bounds_are_those_of_any_other_row():
    views = [view.float() for view in embeddings(2)]
    for size in (1e-9, 1e17):
        torch.testing.assert_close(SFRIK(Q)([size * view for view in views]).loss, SFRIK(Q)(views).loss, rtol=1e-5, atol=0)


def test_a_temperature_of_0_is_rejected():
    with pytest.raises(ValueError, match="temperature must be a finite number above 0, got 0"):
        SimCLR(0.0)


# --- kernels chosen by the settings


@pytest.mark.filterwarnings("ignore::sfrik.kernels.TruncationWarning")
@pytest.mark.parametrize(
    ("kernel", "scale", "phi"),
    [
        ("rbf", 0.5, lambda t, q: np.exp(-0.5 * (2 - 2 * t))),
        ("power", 1.0, lambda t, q: -np.sqrt(2 - 2 * t)),
    ],
)
def test_a_kernel_of_the_settings_is_its_function_up_to_a_constant(kernel, scale, phi):
    settings = PretrainSettings(sfrik_kernel=kernel, sfrik_kernel_scale=scale, sfrik_kernel_degree=12, mlp="8-8")
    t = torch.linspace(-0.6, 0.6, 21, dtype=torch.float64)
    difference = build_objective(settings).kernel(t) - torch.from_numpy(phi(t.numpy(), 8))
    # degree 0 is left out; the bound allows for the degrees of the root above 12, which decay slowly
    assert float(difference.max() - difference.min()) < (1e-6 if kernel == "rbf" else 1e-2)


@pytest.mark.parametrize("dim", [8, 512])
def test_without_a_degree_and_a_scale_the_kernels_of_the_settings_are_exact_at_their_default_scales(dim):
    kernels = {
        name: build_objective(PretrainSettings(sfrik_kernel=name, mlp=f"8-{dim}")).kernel for name in ("rbf", "power", "heat")
    }
    assert kernels["rbf"] == RotationInvariantKernel.rbf(2.5, dim)
    assert kernels["power"] == RotationInvariantKernel.power(1.0, dim)
    expected = RotationInvariantKernel.heat(None, dim)
    assert kernels["heat"].coefficients == pytest.approx(expected.coefficients, rel=1e-12)
    for name, kernel in kernels.items():
        assert kernel.left_out == 0
        scale = 7.0 if name == "heat" else 0.5
        settings = PretrainSettings(sfrik_kernel=name, sfrik_kernel_scale=scale, mlp=f"8-{dim}")
        assert build_objective(settings).kernel.coefficients[0] != pytest.approx(kernel.coefficients[0], rel=0.01)


def test_a_kernel_that_leaves_out_more_than_1_percent_is_reported_once_with_its_share():
    given = {"sfrik_kernel": "rbf", "sfrik_kernel_degree": 8, "mlp": "8-512"}
    message = "the degrees 1 to 8 leave out 6.5 % of the kernel in dimension 512: without a degree nothing is left out"
    with pytest.warns(TruncationWarning, match=message) as found:
        build_objective(PretrainSettings(**given))
    assert [warning.filename for warning in found] == [__file__]
    assert kernel_notes(PretrainSettings(**given)) == [message]
    (note,) = kernel_notes(PretrainSettings(**given, sfrik_stein=1))  # of what is trained, the Stein kernel
    assert "leave out 13 % of the kernel" in note
    assert kernel_notes(PretrainSettings(sfrik_kernel="rbf", mlp="8-512")) == []
    assert kernel_notes(PretrainSettings(**given, ssl_method="vicreg")) == []
    (note,) = kernel_notes(PretrainSettings(sfrik_kernel="power", mlp="8-512", sfrik_slices=8))
    assert note == "random directions estimate the degrees 1 to 256 of the kernel, which leave out 2.9 % of it"


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("kernel", ["truncated", "rbf", "heat"])
def test_the_setting_of_the_stein_discrepancy_takes_the_stein_kernel(kernel, order):
    plain = build_objective(PretrainSettings(sfrik_kernel=kernel, mlp="8-16")).kernel
    assert build_objective(PretrainSettings(sfrik_kernel=kernel, sfrik_stein=order, mlp="8-16")).kernel == plain.stein(order)


def test_a_kernel_whose_values_float32_cannot_hold_is_refused_as_a_setting():
    settings = PretrainSettings(sfrik_kernel="heat", sfrik_kernel_scale=4.0, mlp="8-8192")
    with pytest.raises(
        SfrikError, match=r"^ssl_method sfrik: the kernel's values reach .*beyond the range of torch.float32: take a"
    ):
        build_objective(settings)


@pytest.mark.filterwarnings("ignore::sfrik.kernels.TruncationWarning")
def test_the_heat_kernel_of_the_settings_damps_degree_l_by_its_eigenvalue():
    settings = PretrainSettings(sfrik_kernel="heat", sfrik_kernel_scale=0.5, sfrik_kernel_degree=3, mlp="8-16")
    spectrum = build_objective(settings).kernel.spectrum
    expected = [math.exp(-l * (l + 14) * 0.5 / 15) for l in (1, 2, 3)]
    assert spectrum == pytest.approx(expected, rel=1e-12)
