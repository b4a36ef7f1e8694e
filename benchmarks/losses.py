"""The losses against the plain formulas by autograd: time, forward and backward pass of two views, and peak memory.

    python benchmarks/losses.py                  on the CPU, two threads; some minutes
    python benchmarks/losses.py --device cuda    times by CUDA events, memory by PyTorch's count

What is compared takes turns, round after round, in one process; a ratio is the median over the rounds of neighbours in time.
"product" is one product of [n, q] with its transpose in float32. On a CPU memory is the peak of what a process that does nothing
else allocates (RssAnon, Linux), beyond the input.

Legend: n rows, q their dimension.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from evaluation_memory import Peak
from torch import Tensor

from sfrik.cost.measure import hardware
from sfrik.kernels import RotationInvariantKernel
from sfrik.mmd import MMD, mmd_to_uniform
from sfrik.objectives import AUH, SFRIK, SIGReg, SimCLR, VICReg
from sfrik.objectives.reference import plain_loss, plain_mmd
from sfrik.ops.pairwise import pair_sum
from sfrik.system.devices import pick_device

MIB = 2**20
PLAIN = "plain formula by autograd"
OBJECTIVES = {"SFRIK": SFRIK, "VICReg": lambda q: VICReg(), "AUH": lambda q: AUH(), "SimCLR": lambda q: SimCLR()}
# objective, n, q, least ratio to the plain formula, most products of n x n x q
CASES = [
    ("SFRIK", 512, 8192, 1.7, None),
    ("SFRIK", 2048, 2048, None, 3.9),
    ("VICReg", 512, 8192, 20.0, None),
    ("AUH", 2048, 2048, 1.7, None),
    ("SimCLR", 2048, 2048, 1.6, None),
]
MEMORY = (16384, 512, 1 / 20)  # n, q, most of the plain formula's
LARGE = (65536, 512, 1024)  # n, q, most MiB
EXACT = {
    "RBF": lambda q: RotationInvariantKernel.rbf(2.5, q),
    "power": lambda q: RotationInvariantKernel.power(1.0, q),
    "heat": lambda q: RotationInvariantKernel.heat(None, q),
}
EXACT_SIZES = [(256, 512), (1024, 1024), (512, 8192)]  # n, q
EXACT_MOST = 1.3  # of the time with the truncated kernel
SHARE = (3, 4096, 512, 0.45)  # processes, n, q, most of one process's work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--divide", type=int, default=1, help="all sizes divided by this, to test the script")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--peak", nargs=3, metavar=("WAY", "N", "Q"), help="measure the memory of the MMD here: fast or plain")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        print(json.dumps(resident_peak(options.peak[0], int(options.peak[1]), int(options.peak[2]))))
        return
    device = pick_device(options.device)
    rows = [*speed(device, options.rounds, options.divide), *exact_kernels(device, options.rounds, options.divide)]
    rows += memory(device, options.divide)
    rows += [share(device, options.rounds, options.divide), low_precision(device, options.rounds, options.divide)]
    for row in rows:
        print(line(row))
    if options.json:
        options.json.write_text(json.dumps({"hardware": hardware(device), "rows": rows}, indent=1), encoding="utf-8")


def line(row: dict[str, Any]) -> str:
    return "; ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())


def speed(device: torch.device, rounds: int, divide: int) -> list[dict[str, Any]]:
    """Each objective against its plain formula and in products; then SIGReg and the sliced MMD, that have none, in products."""
    rows = []
    for name, n, q, least, most in CASES:
        n, q = n // divide, q // divide
        objective = OBJECTIVES[name](q)
        views, product = views_of(n, q, device)
        fast, plain = step(objective, views), step(lambda v, o=objective: plain_loss(o, v), views)
        times = in_turns({"fast": fast, "plain": plain, "product": product}, device, rounds)
        row = {
            "what": f"{name} n={n} q={q}",
            "against": PLAIN,
            "unit": "times as fast",
            **of(times, "plain", "fast"),
        }
        row |= {"products": ratio(times, "fast", "product"), "plain products": ratio(times, "plain", "product")}
        rows.append(row | ({"at least": least} if least else {"at most products": most}))
    n, q = 2048 // divide, 2048 // divide
    views, product = views_of(n, q, device)
    for name, objective in (("SIGReg, 1024 directions", SIGReg()), ("SFRIK, 1024 directions", SFRIK(q, slices=1024))):
        times = in_turns({"fast": step(objective, views), "product": product}, device, rounds)
        rows.append(
            {
                "what": f"{name}, n={n} q={q}",
                "against": "one product of n x n x q",
                "unit": "products",
                **of(times, "fast", "product"),
            }
        )
    return rows


def exact_kernels(device: torch.device, rounds: int, divide: int) -> list[dict[str, Any]]:
    """SFRIK with each exact kernel against the truncated one of degree 3, all of a size in turns."""
    rows = []
    for n, q in ((n // divide, q // divide) for n, q in EXACT_SIZES):
        views, _ = views_of(n, q, device)
        calls = {"truncated": step(SFRIK(q), views)}
        calls |= {name: step(SFRIK(q, kernel=make(q)), views) for name, make in EXACT.items()}
        times = in_turns(calls, device, rounds)
        for name in EXACT:
            pair = {key: times[key] for key in (name, "truncated")}
            row = {"what": f"SFRIK with the exact {name} kernel, n={n} q={q}", "against": "truncated kernel, L=3"}
            rows.append({**row, "unit": "of the time", **of(pair, name, "truncated"), "at most": EXACT_MOST})
    return rows


def share(device: torch.device, rounds: int, divide: int) -> dict[str, Any]:
    """What one of several processes computes of the MMD, its rows against its own and all others, against one process's whole."""
    processes, n, q, most = SHARE
    n = n // divide // processes * processes
    z = torch.nn.functional.normalize(torch.randn(n, q, device=device), dim=1)
    gradient, own = torch.zeros_like(z), n // processes

    def function(t: Tensor) -> tuple[Tensor, Tensor]:
        return t.square(), t

    calls = {
        "one of them": lambda: pair_sum(z[:own], [z[own:]], function, gradient[:own]),
        "alone": lambda: pair_sum(z, [], function, gradient),
    }
    times = in_turns(calls, device, rounds)
    what = f"MMD of one of {processes} processes, n={n} q={q}"
    return {
        "what": what,
        "against": "one process, same batch",
        "unit": "of the time",
        **of(times, "one of them", "alone"),
        "at most": most,
    }


def low_precision(device: torch.device, rounds: int, divide: int) -> dict[str, Any]:
    """The MMD of bfloat16 rows, multiplied in bfloat16 and in float32."""
    n, q = 2048 // divide, 2048 // divide
    z = torch.nn.functional.normalize(torch.randn(n, q, device=device), dim=1).bfloat16()
    kernel, gradient = RotationInvariantKernel((1.0, 40.0, 40.0), q), torch.zeros(n, q, device=device)
    rows = {"bfloat16": z, "float32": z.float()}
    mmd = MMD(kernel, low_precision=True)
    calls = {name: lambda r=r: mmd.partial_values([r], [n], [gradient], 1.0) for name, r in rows.items()}
    times = in_turns(calls, device, rounds)
    what = f"MMD of bfloat16 products, n={n} q={q}"
    return {"what": what, "against": "float32 products", "unit": "times as fast", **of(times, "float32", "bfloat16")}


def memory(device: torch.device, divide: int) -> list[dict[str, Any]]:
    """The MMD's peak beyond the input."""
    n, q, most = MEMORY[0] // divide, MEMORY[1], MEMORY[2]
    peaks = {way: peak(way, n, q, device) for way in ("fast", "plain")}
    row = {"what": f"peak memory of the MMD, n={n} q={q}", "against": PLAIN, "unit": "of the memory"}
    rows = [row | {"ratio": peaks["fast"] / peaks["plain"], "MiB": peaks["fast"], "plain MiB": peaks["plain"], "at most": most}]
    n, q, most = LARGE[0] // divide, *LARGE[1:]
    row = {"what": f"peak memory of the MMD, n={n} q={q}", "against": "its input", "unit": "of the memory"}
    size = peak("fast", n, q, device)
    return [*rows, row | {"ratio": size / (n * q * 4 / MIB), "MiB": size, "at most MiB": most}]


def peak(way: str, n: int, q: int, device: torch.device) -> float:
    """MiB beyond the input [n, q] that value and gradient of the MMD need at their peak."""
    if device.type == "cuda":
        call = mmd_call(way, n, q, device)
        call()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / MIB
    command = [sys.executable, __file__, "--threads", str(torch.get_num_threads()), "--peak", way, str(n), str(q)]
    done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
    return json.loads(done.stdout.splitlines()[-1])


def resident_peak(way: str, n: int, q: int) -> float:
    cpu = torch.device("cpu")
    mmd_call(way, 64, 16, cpu)()
    call = mmd_call(way, n, q, cpu)
    with Peak() as watched:
        call()
    return watched.found["allocated"]


def mmd_call(way: str, n: int, q: int, device: torch.device) -> Callable[[], None]:
    z = torch.nn.functional.normalize(torch.randn(n, q, device=device), dim=1).requires_grad_()
    kernel = RotationInvariantKernel((1.0, 40.0, 40.0), q)
    loss = mmd_to_uniform if way == "fast" else plain_mmd

    def call() -> None:
        z.grad = None
        loss(z, kernel).backward()

    return call


def views_of(n: int, q: int, device: torch.device) -> tuple[list[Tensor], Callable[[], Tensor]]:
    """Two views of random embeddings, and the product of one of them with its transpose."""
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(n, q, generator=generator).to(device).requires_grad_() for _ in range(2)]
    z = views[0].detach().clone()
    return views, lambda: z @ z.T


def step(loss: Callable[[list[Tensor]], Any], views: list[Tensor]) -> Callable[[], None]:
    """Forward and backward pass; `loss` gives a scalar, or the terms of an objective."""

    def call() -> None:
        for view in views:
            view.grad = None
        value = loss(views)
        getattr(value, "loss", value).backward()

    return call


def in_turns(calls: dict[str, Callable[[], Any]], device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call in each round, after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + 1):
        for name, call in calls.items():
            took = milliseconds(call, device)
            if round_:
                times[name].append(took)
    return times


def milliseconds(call: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


def ratio(times: dict[str, list[float]], of_this: str, to_that: str) -> float:
    """Median over the rounds."""
    return statistics.median(a / b for a, b in zip(times[of_this], times[to_that], strict=True))


def of(times: dict[str, list[float]], of_this: str, to_that: str) -> dict[str, Any]:
    """The ratio, its quartiles over the rounds, and the median times."""
    ratios = sorted(a / b for a, b in zip(times[of_this], times[to_that], strict=True))
    found = {"ratio": ratio(times, of_this, to_that), "least": ratios[0], "largest": ratios[-1]}
    return found | {f"{name} ms": statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
