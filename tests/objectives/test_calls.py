"""Wrong calls: the error of each names the right call, for every objective, and right calls stay as they are."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import re
import subprocess
import sys

import pytest
import torch

import sfrik
from sfrik import AUH, SFRIK, SIGReg, SimCLR, VICReg
from sfrik.kernels import RotationInvariantKernel
from sfrik.mmd import mmd_to_uniform
from sfrik.objectives import Objective

N, Q = 4, 8
Z1, Z2 = torch.randn(2, N, Q, generator=torch.Generator().manual_seed(0)).unbind()
LABELS = torch.arange(N)
CLASSES = [SFRIK, AUH, SimCLR, VICReg, SIGReg]
EVERY_OBJECTIVE = pytest.mark.parametrize(
    "criterion", [SFRIK(dim=Q), AUH(), SimCLR(), VICReg(), SIGReg(slices=16)], ids=lambda one: type(one).__name__
)
TWO_VIEWS = r"compares two or more views of the same images, and takes no labels: criterion\(z1, z2\) or criterion\(\[z1, z2\]\)"
A_VIEW = rf"{TWO_VIEWS}; a view is a tensor \[n, q\] of floating-point numbers"


@EVERY_OBJECTIVE
@pytest.mark.parametrize(
    ("views", "message"),
    [
        ((), f"{TWO_VIEWS}; got no view"),
        (([],), f"{TWO_VIEWS}; got no view"),
        ((Z1,), rf"{TWO_VIEWS}; got one tensor \[4, 8\]; .* criterion\(\*z.chunk\(2\)\)"),
        (([Z1],), rf"{TWO_VIEWS}; got one tensor \[4, 8\]"),
        ((torch.stack([Z1, Z2]),), rf"{TWO_VIEWS}; got one tensor \[2, 4, 8\]; if it stacks the views: criterion\(\*z\)"),
        ((None,), f"{TWO_VIEWS}; got only None"),
        ((Z1, LABELS), rf"{A_VIEW}, view 1 is a tensor \[4\] of torch.int64"),
        ((Z1, Z2, LABELS), rf"{A_VIEW}, view 2 is a tensor \[4\] of torch.int64"),
        (([Z1, Z2], LABELS), f"{A_VIEW}, view 0 is of type list"),
        (({"a": Z1, "b": Z2},), f"{A_VIEW}, view 0 is 'a'"),
        ((Z1.numpy(), Z2.numpy()), f"{A_VIEW}, view 0 is of type ndarray"),
        ((Z1, Z2, 0.5), f"{A_VIEW}, view 2 is 0.5"),
        ((Z1[0], Z2[0]), rf"{A_VIEW}, view 0 is a tensor \[8\] of torch.float32"),
        ((Z1[:, :, None], Z2[:, :, None]), rf"{A_VIEW}, view 0 is a tensor \[4, 8, 1\] of torch.float32; flatten it"),
        ((Z1.long(), Z2.long()), rf"{A_VIEW}, view 0 is a tensor \[4, 8\] of torch.int64"),
        ((Z1.cfloat(), Z2.cfloat()), rf"{A_VIEW}, view 0 is a tensor \[4, 8\] of torch.complex64"),
        ((Z1, Z2[:3]), r"all views must have the same shape, .*: view 1 has \[3, 8\], view 0 has \[4, 8\]"),
        ((Z1, Z2[:, :7]), r"all views must have the same shape, .*: view 1 has \[4, 7\], view 0 has \[4, 8\]"),
        ((Z1, Z2.to("meta")), "all views must be on one device: view 1 is on meta, view 0 on cpu"),
        ((Z1, Z2.double()), "all views must have the same dtype: view 1 has torch.float64, view 0 has torch.float32"),
        ((Z1.double(), Z2.half()), "all views must have the same dtype: view 1 has torch.float16, view 0 has torch.float64"),
        ((Z1[:1], Z2[:1]), r"needs two or more rows \(images\) in a batch and one or more columns, got \[1, 8\]"),
        ((Z1[:0], Z2[:0]), r"needs two or more rows \(images\) in a batch and one or more columns, got \[0, 8\]"),
        ((Z1[:, :0], Z2[:, :0]), r"needs two or more rows \(images\) in a batch and one or more columns, got \[4, 0\]"),
    ],
)
def test_wrong_views_are_refused_with_the_right_call(criterion, views, message):
    with pytest.raises(ValueError, match=f"^{type(criterion).__name__} .*{message}|^{message}"):
        criterion(*views)


@EVERY_OBJECTIVE
def test_views_in_low_precision_may_be_mixed_with_float32(criterion):
    for z1, z2 in ((Z1, Z2.bfloat16()), (Z1.half(), Z2)):
        assert criterion(z1, z2, step=0).loss == criterion(z1.float(), z2.float(), step=0).loss


@EVERY_OBJECTIVE
@pytest.mark.parametrize("anchors", [(), (0, 2), (-1,), (0, 0), 0, (0.0, 1.0), "01", None])
def test_wrong_anchors_are_refused(criterion, anchors):
    message = re.escape(f"anchors must be different indices from 0 to 1, as in anchors=(0, 1), got {anchors!r}")
    with pytest.raises(ValueError, match=message):
        criterion(Z1, Z2, anchors=anchors)


@EVERY_OBJECTIVE
def test_options_that_a_call_does_not_have_are_refused_with_those_it_has(criterion):
    name = type(criterion).__name__
    with pytest.raises(ValueError, match='regularise must be "all" or "anchors", got \'some\''):
        criterion(Z1, Z2, regularise="some")
    for option in ("labels", "target", "y"):
        with pytest.raises(
            TypeError, match=rf"{name} has no option {option} in a call: it takes no labels; pass .*: criterion\(z1, z2\)"
        ):
            criterion(Z1, **{option: LABELS})
    with pytest.raises(TypeError, match=rf"{name} has no option anchor in a call \(did you mean anchors\?\)"):
        criterion(Z1, Z2, anchor=0)


def test_sfrik_names_the_dimension_of_the_views_it_was_called_on():
    with pytest.raises(ValueError, match=r"SFRIK\(dim=6\) was called on views with 8 columns: use SFRIK\(dim=8\), or"):
        SFRIK(6)(Z1, Z2)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_constructor_that_is_called_on_the_views_names_both_calls(cls):
    dim = "dim=512" if cls is SFRIK else ""
    message = re.escape(f"which is then called on the views: criterion = {cls.__name__}({dim}); criterion(z1, z2).backward()")
    for views in ((Z1, Z2), ([Z1, Z2],)):
        with pytest.raises(TypeError, match=message):
            cls(*views)


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (SFRIK, {}, r"missing a required argument: 'dim', the width of the projector; criterion = SFRIK\(dim=512\)"),
        (SFRIK, {"dim": Q, "lambda_": 1.0}, r"SFRIK has no argument lambda_ \(write trade_off\)"),
        (SIGReg, {"lambd": 0.05}, r"SIGReg has no argument lambd \(write weight\)"),
        (SFRIK, {"embedding_dim": Q}, r"SFRIK has no argument embedding_dim \(write dim\)"),
        (SFRIK, {"dim": Q, "L": 3}, r"SFRIK has no argument L \(write weights, one number per degree\)"),
        (SFRIK, {"dim": Q, "sfrik_sim_coeff": 1.0}, r"SFRIK has no argument sfrik_sim_coeff \(write sim_coeff\)"),
        (SimCLR, {"simclr_temp": 0.1}, r"SimCLR has no argument simclr_temp \(write temperature\)"),
        (SFRIK, {"dim": Q, "sim_coef": 1.0}, r"SFRIK has no argument sim_coef \(did you mean sim_coeff\?\)"),
        (VICReg, {"lambda_param": 25.0}, r"VICReg has no argument lambda_param \(write sim_coeff\)"),
        (VICReg, {"nu_param": 1.0}, r"VICReg has no argument nu_param \(write cov_coeff\)"),
        (SimCLR, {"gather_distributed": True}, "needs none: under torch.distributed the loss is that of the whole batch"),
        (VICReg, {"dim": Q}, "VICReg has no argument dim; it has sim_coeff, std_coeff, cov_coeff, equal_rows"),
        (SFRIK, {"dim": Q, "temperature": 0.1}, "SFRIK has no argument temperature; it has dim, weights"),
    ],
)
def test_an_argument_of_another_name_is_refused_with_the_name_it_has_here(cls, arguments, message):
    with pytest.raises(TypeError, match=message):
        cls(**arguments)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("value", ["a", -1.0, float("nan"), float("inf"), True, torch.tensor(1.0)])
def test_every_weight_is_a_finite_number_of_at_least_0(cls, value):
    parameters = inspect.signature(cls).parameters
    names = [name for name, parameter in parameters.items() if parameter.annotation in ("float", "float | None")]
    assert names
    for name in names:
        with pytest.raises(ValueError, match=f"{cls.__name__}: {name} must be a finite number (of at least|above) 0, got "):
            cls(**{name: value}, **{"dim": Q} if cls is SFRIK else {})


@pytest.mark.parametrize("dim", ["512", None, 1.5, 0, True, [512]])
def test_a_dimension_is_a_whole_number(dim):
    with pytest.raises(ValueError, match=re.escape(f"dim must be a whole number >= 2, got {dim!r}")):
        SFRIK(dim)


@pytest.mark.parametrize("seed", [None, -1, 0.5, 2**32])
def test_a_seed_is_a_whole_number(seed):
    for make in (lambda: SFRIK(Q, slices=4, seed=seed), lambda: SIGReg(seed=seed)):
        with pytest.raises(ValueError, match=re.escape("seed must be a whole number ") + f".*, got {seed}"):
            make()


def test_whole_numbers_may_be_floats():
    rows = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(0)).unbind()
    assert SFRIK(16.0, (1.0, 40.0))(rows).loss == SFRIK(16, (1.0, 40.0))(rows).loss
    for make in (lambda slices: SFRIK(16, slices=slices), lambda slices: SIGReg(slices=slices)):
        assert make(4.0)(rows).loss == make(4)(rows).loss
    assert AUH().spectrum(16.0, 64.0, degrees=4.0) == AUH().spectrum(16, 64, degrees=4)
    assert SFRIK(16).floor(8.0, 16.0) == SFRIK(16).floor(8)


@pytest.mark.parametrize("weights", [40, "1.0-40.0-40.0"])
def test_weights_are_numbers_one_per_degree(weights):
    with pytest.raises(ValueError, match=r"weights must be numbers b_1, b_2, \.\.\., one per degree, such as \(1\.0, 40\.0\)"):
        SFRIK(Q, weights=weights)


@pytest.mark.parametrize("make", [lambda one: SFRIK(Q, kernel=one), lambda one: mmd_to_uniform(Z1, one)], ids=["SFRIK", "mmd"])
@pytest.mark.parametrize("kernel", ["rbf", 2.5, RotationInvariantKernel.rbf])
def test_what_is_no_kernel_is_refused_with_how_one_is_made(make, kernel):
    with pytest.raises(
        ValueError, match=r"kernel must be a RotationInvariantKernel, such as RotationInvariantKernel\.rbf\(scale, "
    ):
        make(kernel)


def test_weights_and_a_kernel_are_not_given_together():
    kernel = RotationInvariantKernel.rbf(2.5, Q)
    assert SFRIK(Q, kernel=kernel).kernel is kernel
    assert SFRIK(Q).kernel == SFRIK(Q, (1.0, 40.0, 40.0)).kernel
    with pytest.raises(ValueError, match="weights make a truncated kernel, and kernel is another one: give one of them"):
        SFRIK(Q, (7.0,), kernel=kernel)


def test_a_scale_of_0_is_refused():
    with pytest.raises(ValueError, match="scale must be a finite number above 0, got 0"):
        AUH(scale=0)


@pytest.mark.parametrize("cls", CLASSES)
def test_the_signature_of_an_objective_is_that_of_its_constructor(cls):
    assert "kwargs" not in inspect.signature(cls).parameters
    assert "equal_rows" in inspect.signature(cls).parameters


def test_an_objective_of_your_own_is_checked_in_the_same_way():
    class Half(SFRIK):
        def __init__(self, dim: int, factor: float = 0.5) -> None:
            super().__init__(dim, mmd_coeff=factor)

    assert copy.deepcopy(Half(Q)).mmd_coeff == 0.5
    with pytest.raises(TypeError, match=r"Half has no argument facter \(did you mean factor\?\)"):
        Half(Q, facter=1.0)
    assert issubclass(Half, Objective)


# --- what a call returns


@EVERY_OBJECTIVE
def test_what_a_call_returns_is_no_tensor_and_says_where_the_loss_is(criterion):
    terms = criterion(Z1, Z2)
    with pytest.raises(AttributeError, match=r"LossTerms has no attribute item: write terms\.loss\.item; "):
        terms.item()
    with pytest.raises(AttributeError, match=r"has no attribute losses: terms = criterion\(z1, z2\); terms\.loss is the scalar"):
        terms.losses  # noqa: B018
    with pytest.raises(AttributeError, match=r'write terms\.parts\["alignment"\], which is unweighted and detached'):
        terms.alignment  # noqa: B018
    for use in (
        lambda: terms + 1,
        lambda: 0.5 * terms,
        lambda: terms / 2,
        lambda: sum([terms, terms]),
        lambda: Z1.sum() + terms,
        lambda: float(terms),
        lambda: dict(*terms),
        lambda: terms["alignment"],
    ):
        with pytest.raises(TypeError, match=r"returns LossTerms, not a tensor: .* terms\.loss is the scalar"):
            use()
    again = pickle.loads(pickle.dumps(terms))
    assert (again.loss, again.parts.keys()) == (terms.loss, copy.deepcopy(terms).parts.keys())


@EVERY_OBJECTIVE
def test_the_first_call_of_the_documentation_gives_the_gradient(criterion):
    z1, z2 = Z1.clone().requires_grad_(), Z2.clone().requires_grad_()
    criterion(z1, z2, step=0).backward()
    expected = torch.autograd.grad(criterion([z1, z2], step=0).loss, [z1, z2])
    torch.testing.assert_close((z1.grad, z2.grad), expected)


# --- names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Sfrik", r"\(did you mean SFRIK\?\): criterion = sfrik\.SFRIK\(dim=512\); criterion\(z1, z2\)\.backward\(\)"),
        ("loss", r"\(did you mean SFRIK\?\): criterion = sfrik\.SFRIK\(dim=512\)"),
        ("sfrik_loss", r"\(did you mean SFRIK\?\)"),
        ("SFRIKLoss", r"\(did you mean SFRIK\?\)"),
        ("SFRIC", r"\(did you mean SFRIK\?\)"),
        ("vicreg_loss", r"\(did you mean VICReg\?\): criterion = sfrik\.VICReg\(\)"),
        ("NTXentLoss", r"\(did you mean SimCLR\?\)"),
        ("LARS", r": from sfrik\.optim import LARS"),
        ("mmd_to_uniform", r": from sfrik\.mmd import mmd_to_uniform"),
        ("load_backbone", r": from sfrik\.networks import load_backbone"),
        ("kernel", r"\(did you mean kernels\b"),
        ("BYOL", "module 'sfrik' has no attribute 'BYOL'$"),
    ],
)
def test_a_name_that_the_package_lacks_is_refused_with_the_right_one(name, message):
    with pytest.raises(AttributeError, match=message):
        getattr(sfrik, name)
    with pytest.raises(ImportError, match=message):
        exec(f"from sfrik import {name}")
    assert not hasattr(sfrik, name)


def test_packages_are_still_imported_by_name_and_a_missing_name_imports_no_torch():
    code = """
import sys, sfrik
assert not hasattr(sfrik, "evaluate") and not hasattr(sfrik, "weighted_knn") and "torch" not in sys.modules
try:
    sfrik.kernels
except AttributeError as error:
    assert "import sfrik.kernels" in str(error), error
else:
    sys.exit("sfrik.kernels was imported before it was asked for")
from sfrik import evaluate
from sfrik.system.names import OBJECTIVES
assert set(OBJECTIVES) == set(sfrik.__all__) - {"__version__"}
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert importlib.import_module("sfrik.kernels").legendre
