"""Two and three gloo processes have the loss and the gradient of one process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forks import in_group
from torch.distributed.tensor.debug import CommDebugMode

from sfrik.kernels import RotationInvariantKernel
from sfrik.mmd import mmd_to_uniform
from sfrik.objectives import AUH, SFRIK, NotFinite, SIGReg, SimCLR, VICReg
from sfrik.ops import pairwise as pairs

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # the processes that are started inherit it

from scale import Products

N, D, Q = 12, 6, 5  # images over all processes, columns of the input, dimension of the embeddings
WIDE = 15  # a dimension above the number of images
UNEVEN = {2: (0, 5, 12), 3: (0, 3, 7, 12)}  # the first image of each process where a last batch does not divide
MAKE = {
    "sfrik": lambda: SFRIK(Q, sim_coeff=20.0),
    "sfrik, wide": lambda: SFRIK(WIDE, sim_coeff=20.0),
    "sfrik by moments": lambda: SFRIK(Q, (1.0, 4.0), sim_coeff=20.0, cost="moments"),
    "sfrik, sliced": lambda: SFRIK(Q, sim_coeff=20.0, slices=8),
    "sfrik with rbf": lambda: SFRIK(Q, sim_coeff=20.0, kernel=RotationInvariantKernel.rbf(2.5, Q)),
    "sfrik with power": lambda: SFRIK(Q, sim_coeff=20.0, kernel=RotationInvariantKernel.power(1.0, Q)),
    "sfrik with heat, stein": lambda: SFRIK(Q, sim_coeff=20.0, kernel=RotationInvariantKernel.heat(None, Q).stein(1)),
    "sigreg": lambda: SIGReg(0.3, slices=8),
    "auh": lambda: AUH(sim_coeff=20.0),
    "auh, entropy": lambda: AUH(sim_coeff=20.0, entropy=True),
    "auh at a large scale": lambda: AUH(sim_coeff=20.0, scale=60.0),
    "simclr": lambda: SimCLR(),
    "vicreg": lambda: VICReg(),
    "vicreg, wide": lambda: VICReg(),
}
NORMALISED = [name for name in MAKE if name.startswith(("sfrik", "auh", "simclr"))]
SETTINGS = {
    "two views": (2, (0, 1), "all"),
    "three views, one anchor": (3, (0,), "all"),
    "three views, the anchor regularised": (3, (0,), "anchors"),
}
CASES = [f"{name}: {setting}" for name in MAKE for setting in SETTINGS] + ["mmd: V", "mmd: U"]
CASES += [f"{case}: uneven" for case in CASES]


def images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(N, D, dtype=torch.float64, generator=generator) for _ in range(3)]


def evaluate(case: str, rank: int, processes: int) -> dict[str, torch.Tensor]:
    """Loss, its parts, and the gradient with respect to a shared weight, from the local rows of this process."""
    name, setting, *uneven = case.split(": ")
    starts = UNEVEN[processes] if uneven and processes > 1 else [k * N // processes for k in range(processes + 1)]
    rows = slice(starts[rank], starts[rank + 1])
    columns, generator = WIDE if "wide" in name else Q, torch.Generator().manual_seed(1)
    weight = torch.randn(D, columns, dtype=torch.float64, generator=generator).requires_grad_()
    if name == "mmd":
        z = torch.nn.functional.normalize(images()[0][rows] @ weight, dim=1)
        loss = mmd_to_uniform(z, RotationInvariantKernel((1.0, 4.0, 4.0), Q), unbiased=setting == "U")
        parts = {}
    else:
        count, anchors, regularise = SETTINGS[setting]
        views = [x[rows] @ weight for x in images()[:count]]
        terms = MAKE[name]()(views, anchors=anchors, regularise=regularise)
        loss, parts = terms.loss, terms.parts
    (3 * loss).backward()  # times 3, since backward must use the incoming gradient
    gradient = weight.grad
    if processes > 1:  # what DistributedDataParallel does
        dist.all_reduce(gradient)
        gradient /= processes
    return {"loss": loss.detach(), "gradient": gradient, **parts}


def products(rank: int, processes: int) -> dict[str, int]:
    """FLOP of the MMD of two views on this process, two per multiply-add: of the forward pass, and with the backward pass."""
    rows = slice(rank * N // processes, (rank + 1) * N // processes)
    views = [torch.nn.functional.normalize(x[rows], dim=1).requires_grad_() for x in images()[:2]]
    kernel = RotationInvariantKernel((1.0, 4.0, 4.0), D)
    with Products() as counter:
        loss = sum(mmd_to_uniform(view, kernel) for view in views)
        forward = counter.flops
        loss.backward()
    return {"forward": forward, "whole": counter.flops}


def refused(name: str, value: float, rank: int) -> list[int]:
    """The rows that an objective names on this process if row 1 of the last process's second view has this value everywhere."""
    columns = WIDE if "wide" in name else Q
    views = [torch.randn(3, columns, generator=torch.Generator().manual_seed(rank)) for _ in range(2)]
    if rank == dist.get_world_size() - 1:
        views[1][1] = value
    with pytest.raises(NotFinite) as error:
        MAKE[name]()(views)
    return error.value.rows


def small_tiles(device: torch.device) -> tuple[int, int]:
    """A size that gives several tiles per process, some cut off at the boundary between processes."""
    return 2, 3


def work() -> dict:
    """The results of this process."""
    rank, processes = dist.get_rank(), dist.get_world_size()
    pairs.tile_shape = small_tiles
    found = {case: evaluate(case, rank, processes) for case in CASES}
    found["products"] = products(rank, processes)
    found["refused"] = {(name, value): refused(name, value, rank) for name in NORMALISED for value in (0.0, 1e20, 1e-30)}
    with CommDebugMode() as exchanged:
        views = [x.requires_grad_() for x in images()[:2]]
        terms = SFRIK(D, sim_coeff=20.0)(views)
        found["gathers"] = exchanged.get_comm_counts().get(torch.ops.c10d._allgather_base_, 0)
        before = exchanged.get_total_counts()
        terms.loss.backward()
        found["in the backward pass"] = exchanged.get_total_counts() - before
    return found


@pytest.fixture(scope="module", params=[2, 3], ids=["two processes", "three processes"])
def measured(request, tmp_path_factory) -> list[dict]:
    """The results of each rank; all cases run in the same processes."""
    return in_group(request.param, tmp_path_factory.mktemp("gloo"), work)


@pytest.mark.parametrize("case", CASES)
def test_several_processes_give_the_loss_and_the_gradient_of_one(measured, case):
    alone = evaluate(case, 0, 1)
    assert alone["gradient"].abs().max() > 1e-3
    for together in measured:
        assert together[case].keys() == alone.keys()
        for name, expected in alone.items():
            # float64 sums in another order; atol for entries of the gradient that cancel
            torch.testing.assert_close(together[case][name], expected, rtol=1e-10, atol=1e-13, msg=lambda m, n=name: f"{n}: {m}")


def test_the_products_are_divided_among_the_processes(measured, monkeypatch):
    monkeypatch.setattr(pairs, "tile_shape", small_tiles)
    alone, processes = products(0, 1), len(measured)
    assert alone["whole"] == 4 * (N * (N + 2) / 2 + N * N) * D, (
        "for each view half of the Gram matrix, and its derivative times the rows"
    )
    for together in measured:
        local = N // processes
        assert together["products"]["whole"] == 4 * (local * (local + 2) / 2 + local * (N - local) + local * N) * D
        assert together["products"]["forward"] == together["products"]["whole"], "the backward pass multiplies nothing"
        assert together["products"]["whole"] <= {2: 0.62, 3: 0.45}[processes] * alone["whole"]


def test_the_views_are_gathered_once_and_the_backward_pass_has_no_collective(measured):
    for together in measured:
        assert together["gathers"] == 2, "the numbers of rows, and the rows of all views"
        assert together["in the backward pass"] == 0


@pytest.mark.parametrize("value", [0.0, 1e20, 1e-30])
@pytest.mark.parametrize("name", NORMALISED)
def test_every_process_refuses_a_row_that_one_of_them_cannot_normalise(measured, name, value):
    *others, last = [together["refused"][name, value] for together in measured]
    assert last == [1]
    assert others == [[]] * len(others)
