"""Two and three gloo processes give the loss and the gradient of one process."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from sfrik import mmd as mmd_module
from sfrik.kernels import RotationInvariantKernel
from sfrik.mmd import mmd_to_uniform
from sfrik.objectives import AUH, SFRIK, SimCLR, VICReg

N, D, Q = 12, 6, 5  # images over all processes, columns of the input, dimension of the embeddings
MAKE = {
    "sfrik": lambda: SFRIK(Q, sim_coeff=20.0),
    "auh": lambda: AUH(sim_coeff=20.0),
    "simclr": lambda: SimCLR(),
    "vicreg": lambda: VICReg(),
}
SETTINGS = {
    "two views": (2, (0, 1), "all"),
    "three views, one anchor": (3, (0,), "all"),
    "three views, the anchor regularised": (3, (0,), "anchors"),
}
CASES = [f"{name}: {setting}" for name in MAKE for setting in SETTINGS] + ["mmd: V", "mmd: U"]


def images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(N, D, dtype=torch.float64, generator=generator) for _ in range(3)]


def evaluate(case: str, rank: int, processes: int) -> dict[str, torch.Tensor]:
    """Loss, its parts, and the gradient with respect to a shared weight, of this process's share of the rows."""
    rows = slice(rank * N // processes, (rank + 1) * N // processes)
    weight = torch.randn(D, Q, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    name, setting = case.split(": ")
    if name == "mmd":
        z = torch.nn.functional.normalize(images()[0][rows] @ weight, dim=1)
        loss = mmd_to_uniform(z, RotationInvariantKernel((1.0, 4.0, 4.0), Q), unbiased=setting == "U")
        parts = {}
    else:
        count, anchors, regularise = SETTINGS[setting]
        views = [x[rows] @ weight for x in images()[:count]]
        terms = MAKE[name]()(views, anchors=anchors, regularise=regularise)
        loss, parts = terms.loss, terms.parts
    (3 * loss).backward()  # the factor: the incoming gradient counts
    gradient = weight.grad
    if processes > 1:  # what DistributedDataParallel does
        dist.all_reduce(gradient)
        gradient /= processes
    return {"loss": loss.detach(), "gradient": gradient, **parts}


def work(rank: int, processes: int, folder: str) -> None:
    torch.set_num_threads(1)
    mmd_module.BLOCK = 3  # several blocks a process, so that block and rank offsets meet
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=processes)
    torch.save({case: evaluate(case, rank, processes) for case in CASES}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3], ids=["two processes", "three processes"])
def measured(request, tmp_path_factory) -> list[dict]:
    """What each rank computed, every case in one start of the processes."""
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(work, args=(request.param, str(folder)), nprocs=request.param)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("case", CASES)
def test_several_processes_give_the_loss_and_the_gradient_of_one(measured, case):
    alone = evaluate(case, 0, 1)
    assert alone["gradient"].abs().max() > 1e-3
    for together in measured:
        assert together[case].keys() == alone.keys()
        for name, expected in alone.items():
            # float64 sums in another order; atol for entries of the gradient that cancel
            torch.testing.assert_close(together[case][name], expected, rtol=1e-10, atol=1e-13, msg=lambda m, n=name: f"{n}: {m}")
