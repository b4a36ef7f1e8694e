"""Cost of a loss per process and step on N processes: bytes exchanged, matrix products, memory, time.

    python benchmarks/scale.py               # counted and timed with 1, 2 and 3 processes on this machine's CPU
    python benchmarks/scale.py --calculate   # the tables of docs/scale.md for 8, 64 and 512 processes, by formula

"original" is SFRIK as the authors' code computes it: every process gathers all rows, computes the full Gram matrix with autograd,
and sums the gradient of the gathered rows over all processes. All processes have the same number of rows. Forward and backward
pass, two views if not stated otherwise.

Bytes are those that a process sends, and receives, if the collectives run in a ring: (N - 1)/N of a gathered buffer, twice that
of a summed one. FLOP are those of the matrix products, two per multiply-add. Memory is the peak of a step's allocations, without
the embeddings and their gradients.

Legend: n rows over all processes, q dimension of the embeddings, N processes, V views, M random directions, L degree.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from sfrik.cost.loss_memory import MemoryCounter, loss_peak
from sfrik.objectives import SFRIK, SIGReg, VICReg
from sfrik.ops.collectives import rank, world_size
from sfrik.ops.pairwise import tile_shape

WEIGHTS, SIM_COEFF = (1.0, 40.0, 40.0), 4000.0  # the paper's SFRIK
SLICES = 1024
METHODS = ("SFRIK", "VICReg", "original")
FLOAT, HALF_FLOAT = 4, 2  # bytes

CASES = ((8, 256), (8, 2048), (64, 2048), (512, 2048), (512, 16384))  # N, n
DIMS = (8192, 32768)

# Assumed hardware: peaks in NVIDIA's data sheet of the H100 SXM, in FLOP/s (without sparsity) and bytes/s.
FLOAT32, HALF = 67e12, 989e12
NVLINK = 450e9  # per direction
PORT = 50e9  # 400 Gb/s
PER_NODE = 8  # GPUs, one process each; a node has one port, or one per GPU
NETWORK = 0.1 * HALF  # assumed throughput of ResNet-50


# --- formulas


def by_rows(method: str, n: int, q: int) -> bool:
    """Whether rows are gathered, rather than a matrix [q, q] or sums over directions reduced."""
    if method in ("SFRIK, sliced", "SIGReg"):
        return False
    return q > n if method == "VICReg" else q >= n or method != "SFRIK, L = 2"


def sent(method: str, n: int, q: int, processes: int, views: int = 2, half: bool = False) -> float:
    """Bytes that a process sends in a step. With `half`, embeddings are in bfloat16 or float16; SFRIK then exchanges them so."""
    gathered, summed = 0, {"VICReg": 3, "original": 0}.get(method, 2)  # the values of the loss terms are summed
    if method == "original":  # forward pass: rows are gathered; backward pass: the gradient of all rows is summed
        gathered, summed = views * n * q * FLOAT, views * n * q
    elif by_rows(method, n, q):
        gathered = views * n * q * (HALF_FLOAT if half and method.startswith("SFRIK") else FLOAT)
    else:
        summed += views * {
            "SFRIK, sliced": SLICES * len(WEIGHTS),
            "SIGReg": SLICES * 8 * 2,
            "VICReg": q * (q + 1),  # means, covariance
        }.get(method, q * (q + 2))  # SFRIK by moments: second moments, sum, and the norms' excess, a row each
    return (gathered + 2 * FLOAT * summed) * (processes - 1) / processes


def flops(method: str, n: int, q: int, processes: int, views: int = 2, device: str = "cpu") -> float:
    """FLOP of the matrix products of a process, forward and backward pass."""
    local = n // processes
    if method == "original":
        return 6 * views * n * n * q
    if by_rows(method, n, q):
        return 2 * views * q * (_upper(local, device) + local * (n - local) + local * n)
    if method in ("SFRIK, sliced", "SIGReg"):
        return 4 * views * local * q * SLICES
    return 2 * views * local * (_upper(q, device) + q * q)


def _upper(rows: int, device: str) -> int:
    """Entries in the upper triangle of tiles of a matrix [rows, rows]: rows (rows + height) / 2 if the height divides rows."""
    height, _ = tile_shape(torch.device(device))
    return sum(min(height, rows - top) * (rows - top) for top in range(0, rows, height))


def memory(method: str, n: int, q: int, processes: int, half: bool = False, device: str = "cpu") -> float:
    """Bytes at the peak of a step: that of the forward pass, or the copy of the gradient that the backward pass makes."""
    if method == "original":
        return FLOAT * max((2 + 3 / processes) * n * q + 8 * n * n, (4 + 2 / processes) * n * q + 2 * n * n)
    objective = {"SFRIK": SFRIK(q), "VICReg": VICReg()}[method]
    return max(loss_peak(objective, n, q, processes, half=half, device=device), 4 * FLOAT * n // processes * q)


@lru_cache
def network(q: int) -> tuple[int, float]:
    """Parameters, and FLOP per view of 224 pixels, forward and backward, of ResNet-50 with the projector 8192-8192-q."""
    from torch.utils.flop_counter import FlopCounterMode

    from sfrik.networks import build_backbone, build_projector

    with torch.device("meta"):
        backbone = build_backbone("resnet50")
        encoder = torch.nn.Sequential(backbone, build_projector(backbone.num_features, f"8192-8192-{q}"))
        with FlopCounterMode(display=False) as counter:
            encoder(torch.empty(2, 3, 224, 224)).sum().backward()
    return sum(p.numel() for p in encoder.parameters()), counter.get_total_flops() / 2


def averaged(q: int, processes: int) -> float:
    """Bytes that a process sends for DDP's average of the network's gradients, in float32."""
    return 2 * FLOAT * network(q)[0] * (processes - 1) / processes


def seconds(size: float, processes: int, ports: int) -> float:
    """Duration of an exchange in which each process sends `size` bytes, from the bandwidth only.

    Within a node it uses NVLink. In a ring over nodes each node sends what one process sends; parallel rings share its ports.
    """
    return size / (NVLINK if processes <= PER_NODE else min(NVLINK, ports * PORT))


def calculated_tables() -> tuple[str, str]:
    """Bytes, FLOP and memory; the loss's duration and share of the step. On GPUs under autocast: SFRIK in half precision."""
    counts, steps = [], []
    for processes, n in CASES:
        for q in DIMS:
            size = {method: sent(method, n, q, processes, half=True) for method in METHODS} | {"DDP": averaged(q, processes)}
            work = {method: flops(method, n, q, processes, device="cuda") for method in METHODS}
            inside = 2 * n / processes * network(q)[1]
            peaks = [memory(method, n, q, processes, half=True, device="cuda") / 1e9 for method in METHODS]
            row = [*(x / 1e9 for x in size.values()), *(x / 1e12 for x in (*work.values(), inside)), *peaks]
            counts.append([str(processes), str(n), str(q), *map(number, row)])
            cells = []
            for method in METHODS:
                for ports in (1, 8):
                    loss = work[method] / (FLOAT32 if method == "VICReg" else HALF) + seconds(size[method], processes, ports)
                    # DDP's exchange overlaps with the backward pass, two thirds of the network's work
                    exposed = max(0.0, seconds(size["DDP"], processes, ports) - 2 / 3 * inside / NETWORK)
                    share = 100 * loss / (loss + inside / NETWORK + exposed)
                    cells.append(f"{number(1000 * loss)} ({share:.{int(share < 10)}f} %)")
            steps.append([str(processes), str(n), str(q), *cells])
    head = ["N", "n", "q"]
    columns = ["GB sent: SFRIK", "VICReg", "original", "DDP", "TFLOP: SFRIK", "VICReg", "original", "network"]
    ports = [f"{method}, {ports}" for method in METHODS for ports in ("one port", "eight")]
    return (
        table([*head, *columns, "GB at the peak: SFRIK", "VICReg", "original"], counts),
        table([*head, *ports], steps),
    )


def number(x: float) -> str:
    """Three significant digits."""
    return f"{x:.0f}" if x >= 100 or x == 0 else f"{x:#.3g}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


# --- counts and times


class _GatherWithGradient(torch.autograd.Function):
    """[n_local, q] -> [n, q]; the backward pass sums the gradient of all rows over the processes and keeps the local ones."""

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
    """SFRIK's loss from the full Gram matrix on every process, in powers of the inner products (L = 3), with autograd."""
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
    """The methods that are compared, and those of which only the formulas are tested."""
    objectives = {
        "SFRIK": SFRIK(q, WEIGHTS, SIM_COEFF, equal_rows=True),
        "VICReg": VICReg(equal_rows=True),
        "SFRIK, L = 2": SFRIK(q, WEIGHTS[:2], SIM_COEFF, equal_rows=True),
        "SFRIK, sliced": SFRIK(q, WEIGHTS, SIM_COEFF, slices=SLICES, equal_rows=True),
        "SIGReg": SIGReg(slices=SLICES, equal_rows=True),
    }
    return {name: lambda z, f=objective: f(z).loss for name, objective in objectives.items()} | {"original": as_the_original}


class Exchange(TorchDispatchMode):
    """Collectives in a context: their number, bytes sent, seconds in them, and seconds waiting for the last process.

    Args:
        copies: exchange copies. gloo's threads keep what they exchange for a moment, which would count as memory of the step.
    """

    def __init__(self, copies: bool = False) -> None:
        super().__init__()
        self.copies = copies
        self.collectives, self.sent, self.seconds, self.waited = 0, 0.0, 0.0, 0.0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace != "c10d":
            return function(*args, **(kwargs or {}))
        # a collective that is not in this table raises KeyError, so that none is left uncounted
        times = {"_allgather_base_": 1, "allgather_": 1, "allreduce_": 2}[function._opname]
        size = sum(x.numel() * x.element_size() for x in tree_leaves(args[0]))
        self.collectives += 1
        self.sent += times * size * (world_size() - 1) / world_size()
        started = time.perf_counter()
        dist.barrier()
        met = time.perf_counter()
        given = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, args) if self.copies else args
        out = function(*given, **(kwargs or {}))
        torch._C._distributed_c10d.Work.unbox(out[-1]).wait()
        self.waited += met - started
        self.seconds += time.perf_counter() - met
        for x, copy in zip(tree_leaves(args), tree_leaves(given), strict=True):
            if x is not copy:
                x.copy_(copy)
        return args[0], out[-1]


class Products(TorchDispatchMode):
    """`flops` of the matrix products, two per multiply-add; PyTorch's FlopCounterMode omits those that are added in place.

    Inner products of a row with a row are not counted: they take as long as reading the rows.
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
    """This process's rows of a batch that is the same for any number of processes."""
    generator = torch.Generator().manual_seed(0)
    batch = [torch.randn(n, q, generator=generator) for _ in range(views)]
    local = [view.chunk(world_size())[rank()].clone().requires_grad_() for view in batch]
    for view in local:
        view.grad = torch.zeros_like(view)
    return local


def count(loss: Callable[[Sequence[Tensor]], Tensor], views: Sequence[Tensor]) -> dict[str, float]:
    """Exact counts of a step on this process."""
    with Exchange(copies=True) as exchange, MemoryCounter() as peak, Products() as products:
        loss(views).backward()
    return {"sent": exchange.sent, "flops": products.flops, "memory": peak.peak, "collectives": exchange.collectives}


def on_processes(function: Callable, processes: int, *args) -> list:
    """Results of `function(*args)` on N gloo processes with one thread each; a single process is this one."""
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
    """Measurements of this process.

    Returns:
        `counts` per method; `times` per method and repetition, each (step, compute, exchange, waiting, bytes on the wire);
        `difference` of the gradients of SFRIK and original, relative to the largest entry.
    """
    views, counts, gradients = rows_of(n, q), {}, {}
    compared = {method: losses(q)[method] for method in METHODS}
    for method, loss in compared.items():  # also warms up
        for view in views:
            view.grad.zero_()
        counts[method] = count(loss, views)
        gradients[method] = torch.cat([view.grad for view in views])
    times: dict[str, list] = {method: [] for method in METHODS}
    for _ in range(repetitions):
        for method, loss in compared.items():  # alternating, so that a ratio compares adjacent steps
            _barrier()
            before, started = _loopback_bytes(), time.perf_counter()
            with Exchange() as exchange:
                loss(views).backward()
            step = time.perf_counter() - started
            _barrier()
            wire = (_loopback_bytes() - before) / world_size()
            times[method].append((step, step - exchange.seconds - exchange.waited, exchange.seconds, exchange.waited, wire))
    off = (gradients["original"] - gradients["SFRIK"]).abs().max() / gradients["SFRIK"].abs().max()
    return {"counts": counts, "times": times, "difference": off.item()}


def _barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def _loopback_bytes() -> int:
    """Bytes sent over this machine's loopback device so far, by all processes (Linux)."""
    if not os.path.exists("/proc/net/dev"):
        return 0
    lines = Path("/proc/net/dev").read_text(encoding="utf-8").splitlines()
    return next(int(line.split(":")[1].split()[8]) for line in lines if line.strip().startswith("lo:"))


def measured_table(n: int, q: int, processes: Iterable[int], repetitions: int) -> str:
    """Times are medians over repetitions and processes; the ratio is the median over the repetitions' ratios."""
    lines = []
    for k in processes:
        if n % k:
            raise SystemExit(f"n = {n} rows do not divide among {k} processes: choose another --n")
        ranks = on_processes(measured, k, n, q, repetitions)
        if max(found["difference"] for found in ranks) > 1e-4:  # float32 sums of a few thousand terms in another order
            raise SystemExit("the gradients of SFRIK and original differ: they are not the same loss")
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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calculate", action="store_true", help="print the tables of docs/scale.md without measuring")
    parser.add_argument("--n", type=int, default=576, help="rows over all processes (default 576)")
    parser.add_argument("--q", type=int, default=2048, help="dimension of the embeddings (default 2048)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 3], help="numbers of processes (default 1 2 3)")
    parser.add_argument("--repetitions", type=int, default=15, help="repetitions, of which the median is reported (default 15)")
    options = parser.parse_args(arguments)
    if options.calculate:
        print("\n\n".join(calculated_tables()))
        return
    from sfrik.cost.measure import hardware

    torch.set_num_threads(1)
    print(f"n = {options.n}, q = {options.q}, two views, median of {options.repetitions}; {os.cpu_count()} cores,", end=" ")
    print(f"{hardware(torch.device('cpu'))}\n")
    print(measured_table(options.n, options.q, options.processes, options.repetitions))


if __name__ == "__main__":
    main()
