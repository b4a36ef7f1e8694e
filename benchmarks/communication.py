"""What a loss costs each of N processes in a step: bytes exchanged, products, memory and time.

    python benchmarks/communication.py               # counted and timed with 1, 2 and 3 processes on this machine's CPU
    python benchmarks/communication.py --calculate   # the tables of docs/scale.md: 8, 64 and 512 processes

Three ways, forward and backward pass on the whole batch: SFRIK and VICReg of this package, and SFRIK "as the original": each
process gathers all rows, computes the full Gram matrix by autograd, and sums the gathered gradient over all processes. All in
float32.

Bytes are those that a process sends, and it receives as many, where the collectives run in a ring: of a gathered buffer
(N - 1)/N, of a summed one twice that. FLOP are those of the matrix products. Memory is the peak of what a step allocates
beyond the embeddings and their gradients. All three are exact counts; the times are of this machine.

Legend: n rows over all processes, q dimension of the embeddings, N processes, V views.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from scale import METHODS, SLICES, calculated_tables, number, table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from sfrik.cost.loss_memory import MemoryCounter
from sfrik.objectives import AUH, SFRIK, SIGReg, SimCLR, VICReg
from sfrik.objectives.base import Objective
from sfrik.ops.collectives import rank, world_size

WEIGHTS, SIM_COEFF = (1.0, 40.0, 40.0), 4000.0  # of the paper's SFRIK
FLOAT = 4  # bytes


class _GatherWithGradient(torch.autograd.Function):
    """[n_local, q] -> [n, q]; the backward pass sums the gradient of all rows over the processes and keeps the own ones."""

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        parts = [torch.empty_like(z) for _ in range(world_size())]
        dist.all_gather(parts, z)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad.chunk(world_size())[rank()]


def as_the_original(views: Sequence[Tensor]) -> Tensor:
    """SFRIK's loss by the full Gram matrix on every process, in powers of the inner products (L = 3), by autograd."""
    z = [F.normalize(view, dim=1) for view in views]
    alignment, q = F.mse_loss(z[0], z[1]), z[0].shape[1]
    mmd = []
    for rows in z:
        everything = _GatherWithGradient.apply(rows) if world_size() > 1 else rows
        t = everything @ everything.T
        second, third = (q * t**2 - 1) / (q - 1), ((q + 2) * t**3 - 3 * t) / (q - 1)
        mmd.append((WEIGHTS[0] * t + WEIGHTS[1] * second + WEIGHTS[2] * third).mean())
    return SIM_COEFF * alignment + sum(mmd) / len(mmd)


def losses(q: int) -> dict[str, Callable[[Sequence[Tensor]], Tensor]]:
    """The three ways that are compared."""
    return {
        "SFRIK": _loss(SFRIK(q, WEIGHTS, SIM_COEFF, equal_rows=True)),
        "VICReg": _loss(VICReg(equal_rows=True)),
        "original": as_the_original,
    }


def other_losses(q: int) -> dict[str, Callable[[Sequence[Tensor]], Tensor]]:
    """Those of which the formulas alone are compared with counts."""
    return {
        "SFRIK, L = 2": _loss(SFRIK(q, WEIGHTS[:2], SIM_COEFF, equal_rows=True)),
        "AUH": _loss(AUH(equal_rows=True)),
        "SimCLR": _loss(SimCLR(equal_rows=True)),
        "SFRIK, sliced": _loss(SFRIK(q, WEIGHTS, SIM_COEFF, slices=SLICES, equal_rows=True)),
        "SIGReg": _loss(SIGReg(slices=SLICES, equal_rows=True)),
    }


def _loss(objective: Objective) -> Callable[[Sequence[Tensor]], Tensor]:
    return lambda z: objective(z).loss


class Exchange(TorchDispatchMode):
    """Collectives of a step: their number, the bytes a process sends, seconds in them and seconds until all have come to one.

    Args:
        aside: exchange copies, since gloo's threads hold on to what they exchanged for a moment: no memory of the step.
    """

    def __init__(self, aside: bool = False) -> None:
        super().__init__()
        self.aside = aside
        self.collectives, self.sent, self.seconds, self.waited = 0, 0.0, 0.0, 0.0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace != "c10d":
            return function(*args, **(kwargs or {}))
        # a collective that is not in this table is an error, so that none goes uncounted
        times = {"_allgather_base_": 1, "allgather_": 1, "allreduce_": 2}[function._opname]
        size = sum(x.numel() * x.element_size() for x in tree_leaves(args[0]))
        self.collectives += 1
        self.sent += times * size * (world_size() - 1) / world_size()
        started = time.perf_counter()
        dist.barrier()
        met = time.perf_counter()
        given = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, args) if self.aside else args
        out = function(*given, **(kwargs or {}))
        torch._C._distributed_c10d.Work.unbox(out[-1]).wait()
        self.waited += met - started
        self.seconds += time.perf_counter() - met
        for x, copy in zip(tree_leaves(args), tree_leaves(given), strict=True):
            if x is not copy:
                x.copy_(copy)
        return args[0], out[-1]


class Products(TorchDispatchMode):
    """`flops` of the matrix products, two for each multiply-add; FlopCounterMode leaves out those that are added in place.

    Inner products of a row with a row, which take as long as reading the rows, are no such products.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        if name in ("mm", "addmm", "addmm_"):
            a, b = args[-2:]
            self.flops += 2 * a.shape[0] * a.shape[1] * b.shape[1]
        elif name in ("bmm", "baddbmm", "baddbmm_", "matmul") and not args[-2].shape[1] == args[-1].shape[2] == 1:
            raise AssertionError(f"{name} is a product that is not counted")
        return function(*args, **(kwargs or {}))


def rows_of(n: int, q: int, views: int = 2) -> list[Tensor]:
    """This process's rows of a whole batch that is the same for any number of processes."""
    generator = torch.Generator().manual_seed(0)
    whole = [torch.randn(n, q, generator=generator) for _ in range(views)]
    own = [view.chunk(world_size())[rank()].clone().requires_grad_() for view in whole]
    for view in own:
        view.grad = torch.zeros_like(view)
    return own


def count(loss: Callable[[Sequence[Tensor]], Tensor], views: Sequence[Tensor]) -> dict[str, float]:
    """Exact counts of a step on this process."""
    with Exchange(aside=True) as exchange, MemoryCounter() as peak, Products() as products:
        loss(views).backward()
    return {"sent": exchange.sent, "flops": products.flops, "memory": peak.peak, "collectives": exchange.collectives}


def on_processes(function: Callable, processes: int, *args) -> list:
    """What `function(*args)` returns on each of N gloo processes of one thread; one process is this one."""
    if processes == 1:
        return [function(*args)]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_work, args=(function, processes, folder, args), nprocs=processes)
        return [torch.load(Path(folder) / f"{k}.pt", weights_only=True) for k in range(processes)]


def _work(own_rank: int, function: Callable, processes: int, folder: str, args: tuple) -> None:
    torch.set_num_threads(1)
    if os.path.exists("/proc/net/dev"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=own_rank, world_size=processes)
    torch.save(function(*args), f"{folder}/{own_rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def measured(n: int, q: int, repetitions: int) -> dict:
    """Of a process: `counts` by loss; `times` by loss and repetition, each (whole step, compute, exchange, waiting, bytes on the
    wire); `difference` of the gradient of the two ways of SFRIK, relative to its largest entry.

    The losses take turns, so that a ratio compares neighbours in time.
    """
    views, counts, gradients = rows_of(n, q), {}, {}
    for method, loss in losses(q).items():  # which also warms up
        for view in views:
            view.grad.zero_()
        counts[method] = count(loss, views)
        gradients[method] = torch.cat([view.grad for view in views])
    times: dict[str, list] = {method: [] for method in METHODS}
    for _ in range(repetitions):
        for method, loss in losses(q).items():
            _meet()
            before, started = _loopback(), time.perf_counter()
            with Exchange() as exchange:
                loss(views).backward()
            whole = time.perf_counter() - started
            _meet()
            wire = (_loopback() - before) / world_size()
            times[method].append((whole, whole - exchange.seconds - exchange.waited, exchange.seconds, exchange.waited, wire))
    off = (gradients["original"] - gradients["SFRIK"]).abs().max() / gradients["SFRIK"].abs().max()
    return {"counts": counts, "times": times, "difference": off.item()}


def _meet() -> None:
    if world_size() > 1:
        dist.barrier()


def _loopback() -> int:
    """Bytes that have gone over this machine's loopback device, of all its processes (Linux)."""
    if not os.path.exists("/proc/net/dev"):
        return 0
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split(":")[1].split()[8]) for line in lines if line.strip().startswith("lo:"))


def measured_table(n: int, q: int, processes: Iterable[int], repetitions: int) -> str:
    """Times are medians over repetitions and processes; the ratio is the median of each repetition's."""
    lines = []
    for k in processes:
        if n % k:
            raise SystemExit(f"n = {n} rows do not divide among {k} processes: choose another --n")
        ranks = on_processes(measured, k, n, q, repetitions)
        if max(found["difference"] for found in ranks) > 1e-4:  # float32 sums of a few thousand terms in another order
            raise SystemExit("the two ways of SFRIK have different gradients: what is compared is not the same loss")
        for method in METHODS:
            counts = ranks[0]["counts"][method]
            times = [line for found in ranks for line in found["times"][method]]
            base = [line for found in ranks for line in found["times"]["SFRIK"]]
            _, *parts, wire = (statistics.median(line[part] for line in times) for part in range(5))
            ratio = statistics.median(own[0] / other[0] for own, other in zip(times, base, strict=True))
            sizes = (counts["flops"] / 1e9, counts["sent"] / 1e6, wire / 1e6 if k > 1 else 0, counts["memory"] / 1e6)
            lines.append([str(k), method, *map(number, sizes), *(f"{1000 * x:.0f}" for x in parts), f"{ratio:.2f}"])
    head = ["N", "loss", "GFLOP", "MB sent", "MB on the wire", "MB at the peak", "compute, ms", "exchange, ms", "waiting, ms"]
    return table([*head, "step / SFRIK's"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calculate", action="store_true", help="print the tables of docs/scale.md, measure nothing")
    parser.add_argument("--n", type=int, default=576, help="rows over all processes (default 576)")
    parser.add_argument("--q", type=int, default=2048, help="dimension of the embeddings (default 2048)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 3], help="numbers of processes (default 1 2 3)")
    parser.add_argument("--repetitions", type=int, default=15, help="of each loss; the median counts (default 15)")
    parser.add_argument("--quick", action="store_true", help="a small size, 1 and 2 processes, once: to see that it runs")
    options = parser.parse_args()
    if options.calculate:
        print("\n\n".join(calculated_tables()))
        return
    if options.quick:
        options.n, options.q, options.processes, options.repetitions = 12, 32, [1, 2], 1
    from sfrik.cost.measure import hardware

    torch.set_num_threads(1)
    print(f"n = {options.n}, q = {options.q}, two views, median of {options.repetitions}; {os.cpu_count()} cores,", end=" ")
    print(f"{hardware(torch.device('cpu'))}\n")
    print(measured_table(options.n, options.q, options.processes, options.repetitions))


if __name__ == "__main__":
    main()
