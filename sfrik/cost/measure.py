"""Measured time and memory of the regularisers (tables 5 and 6): the loss by itself, and a whole training step.

A method is measured as this library computes it (`sfrik.objectives`) and, under the name "plain", as its paper writes it, with
autograd (`sfrik.objectives.reference`). In each round all methods of one size are timed one after the other in one process, so
that a ratio compares measurements that are close in time; a method's time is its median over the rounds. The product of a matrix
[n, q] with its transpose is timed before each method: a machine-independent unit of arithmetic. Peak memory is what the forward
and the backward pass allocate beyond the embeddings, including the gradients: on CUDA as counted by PyTorch, on a CPU as the
resident memory of a separate process (Linux). Buffers that libraries keep between calls are excluded.

Legend: n batch size, q dimension of the embeddings.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfrik.cost.load import load_since, usage
from sfrik.errors import SfrikError
from sfrik.networks import Encoder, build_backbone, build_projector
from sfrik.objectives import AUH, SFRIK, SIGReg, SimCLR, VICReg
from sfrik.objectives.base import Objective
from sfrik.objectives.reference import plain_loss
from sfrik.optim import LARS
from sfrik.runs.folder import Run
from sfrik.runs.provenance import code, now, processor, provenance
from sfrik.system.devices import autocast, channels_last, pick_device, pick_precision
from sfrik.system.files import write_json
from sfrik.system.records import VERSION
from sfrik.system.terminal import print_line
from sfrik.tables.cost_rows import BASELINE, PLAIN, ROUNDS, STEP_BATCH, check_cost_folder, cost_problem, cost_settings, read_costs
from sfrik.tables.definitions import experiment

__all__ = ["complexity", "growth", "hardware", "loss_calls", "measure", "measured_here", "resident_peaks", "step_calls"]

# The network of a whole step by profile: backbone, stem, side of the images, channels, hidden widths of the projector.
NETWORKS = {
    "smoke": ("resnet8", "patch", 28, 1, "64"),
    "digits": ("resnet8", "patch", 28, 1, "512"),
    "cifar10": ("resnet18", "small", 32, 3, "2048-2048"),
    "paper": ("resnet50", "imagenet", 224, 3, "8192-8192"),
}
KINDS = {"VICReg": VICReg, "SimCLR": SimCLR, "AUH": AUH, "SIGReg": SIGReg}
PRODUCT = "product before "
LONG, SHORT = 30.0, 0.5  # seconds: above LONG only three rounds, below SHORT more rounds than requested

Calls = dict[str, Callable[[], object]]


def measure(table: str, profile: str, device: str = "auto", rounds: int = 5, progress: bool = True) -> dict[str, Any]:
    """Measure the rows of table5 or table6.

    Args:
        table: "table5" or "table6". profile: determines the sizes and the network.
        device: "auto", "cpu", "cuda" or "mps".
        rounds: number of timings per method; more if they take less than half a second in total, three if they take more than
            half a minute.
        progress: whether to print a line for each size.

    Returns:
        For the entry of each row: `product_ms`, `loss_ms`, `loss_products`, `loss_mib`; on CUDA or for table6 `step_ms`, on CUDA
        `step_mib`; and the ratio of each to the baseline's at the same size (`loss_time_ratio`, ...). Measurements that do not
        fit into a GPU's memory are missing. Also `hardware`.
    """
    where = pick_device(device)
    groups: dict[tuple[int, int], dict[str, str]] = {}
    for row in experiment(table, profile).rows(profile):
        assert row.q is not None  # every row of these tables has a dimension
        assert row.entry is not None
        groups.setdefault((row.q, int(row.labels["batch size"])), {})[row.method] = row.entry
    out: dict[str, Any] = {"hardware": hardware(where)}
    resident = {} if where.type == "cuda" else resident_peaks([(m, q, n) for (q, n), own in groups.items() for m in own])
    for (q, n), entries in groups.items():
        found: dict[str, dict[str, float]] = {method: {} for method in entries}
        calls = _that_fit(loss_calls(list(entries), q, n, where))
        times = _timed(calls, where, rounds)
        products = {method: times.pop(PRODUCT + method) for method in entries}
        typical = statistics.median(ms for own in products.values() for ms in own)
        _add(found, "product_ms", {method: [typical] for method in times})
        _add(found, "loss_products", {m: [a / b for a, b in zip(own, products[m], strict=True)] for m, own in times.items()})
        _add(found, "loss_ms", times, "loss_time_ratio")
        peaks = {m: [resident[m, q, n] if resident else _cuda_peak(calls[m], where)] for m in times}
        _add(found, "loss_mib", peaks, "loss_memory_ratio")
        del calls
        if table == "table6" or where.type == "cuda":
            steps = _that_fit(step_calls(list(entries), q, n, where, profile))
            _add(found, "step_ms", _timed(steps, where, rounds), "step_time_ratio")
            if where.type == "cuda":
                peaks = {method: [_cuda_peak(call, where)] for method, call in steps.items()}
                _add(found, "step_mib", peaks, "step_memory_ratio")
            del steps
        out |= {entry: found[method] for method, entry in entries.items()}
        if progress:
            costs = [f"{m} {v['loss_ms']:.0f} ms, {v['loss_mib']:.0f} MiB" for m, v in found.items() if "loss_ms" in v]
            print_line(f"q {q}, batch {n}: {'; '.join(costs)}")
    return out


def complexity(table: str, profile: str, exp_dir: str, device: str = "auto", rounds: int = ROUNDS) -> dict[str, Any]:
    """Measure a table and write it to `exp_dir` as <table>.json, unless it has already been measured on this hardware.

    Waits for another process that is measuring into the same folder.

    Raises:
        SfrikError: tables 5 and 6 read `exp_dir`, and this is a measurement of another profile or with other rounds.
    """
    run, settings = Run(exp_dir), cost_settings(table, profile, rounds)
    rounds = settings["rounds"]
    check_cost_folder(run.folder, table, profile, rounds)
    path, where = run.folder / f"{table}.json", pick_device(device)
    with run.lock(wait=True):
        if measured_here(path, table, profile, device, rounds):
            return read_costs(path)
        start = usage()
        measured = measure(table, profile, device, rounds)
        measured["load"] = load_since(start)
        run.record_start(**provenance(where.type, "fp32", 1), finished=now())
        write_json(path, {"version": VERSION, "settings": settings, **measured, **code()})
    return measured


def measured_here(path: Path, table: str, profile: str, device: str = "auto", rounds: int = ROUNDS) -> bool:
    """Whether the file holds all rows of the table, measured on this hardware by `complexity` with these rounds."""
    found = read_costs(path)
    if cost_problem(found, table, profile, rounds):
        return False
    entries = {row.entry for row in experiment(table, profile).rows(profile)}
    return entries <= set(found) and found.get("hardware") == hardware(pick_device(device))


def growth(sizes: Sequence[float], costs: Sequence[float], largest: int = 3) -> tuple[float | None, float | None]:
    """Growth exponent of a cost: the slope of log2(cost) against log2(size), by least squares over the `largest` sizes.

    Returns:
        The exponent (None with fewer than two costs above zero) and its standard error from the residuals (None with fewer than
        three).
    """
    points = sorted((size, cost) for size, cost in zip(sizes, costs, strict=True) if cost > 0)[-largest:]
    if len(points) < 2:
        return None, None
    x, y = np.log2(points).T
    if len(points) == 2:
        return float(np.polyfit(x, y, 1)[0]), None
    coefficients, covariance = np.polyfit(x, y, 1, cov=True)
    return float(coefficients[0]), float(np.sqrt(covariance[0, 0]))


def hardware(device: torch.device) -> str:
    """Description of the hardware: device, threads, version of PyTorch."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return f"{device.type}: {name}, {torch.get_num_threads()} threads, torch {torch.__version__.split('+')[0]}"


def build(method: str, q: int) -> Objective:
    """An objective by its name in the tables, with or without "plain", with the default coefficients."""
    name = method.removesuffix(PLAIN)
    if name.startswith("SFRIK L="):
        return SFRIK(q, (1.0, *[40.0] * (int(name.removeprefix("SFRIK L=")) - 1)))
    if name not in KINDS or method == f"SIGReg{PLAIN}":
        raise SfrikError(f"unknown method {method!r}: choose {', '.join(KINDS)} or SFRIK L=1, 2, ... (all but SIGReg also plain)")
    return KINDS[name]()


def loss_of(method: str, q: int) -> Callable[[Sequence[Tensor]], Tensor]:
    """A method of the tables as a function from views, each [n, q], to the loss."""
    objective, plain = build(method, q), method.endswith(PLAIN)
    return lambda views: plain_loss(objective, views) if plain else objective(views).loss


def loss_calls(methods: Sequence[str], q: int, n: int, device: torch.device) -> Calls:
    """For each method, the matrix product and then the loss, forward and backward, on two views of random float32 [n, q]."""
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(n, q, generator=generator).to(device).requires_grad_() for _ in range(2)]

    def call_of(method: str) -> Callable[[], None]:
        loss = loss_of(method, q)

        def call() -> None:
            loss(views).backward()
            for view in views:
                view.grad = None

        return call

    rows, gram = views[0].detach(), torch.empty(n, n, device=device)
    calls: Calls = {}
    for method in methods:
        calls |= {PRODUCT + method: lambda: torch.mm(rows, rows.T, out=gram), method: call_of(method)}
    return calls


def step_calls(methods: Sequence[str], q: int, n: int, device: torch.device, profile: str) -> Calls:
    """For each method, a training step on the same network: two views of random images, loss, backward pass, LARS."""
    arch, stem, size, channels, hidden = NETWORKS[profile]
    precision = pick_precision("auto", device)
    torch.manual_seed(0)
    backbone = build_backbone(arch, stem, channels)
    encoder = Encoder(backbone, build_projector(backbone.num_features, f"{hidden}-{q}"))
    encoder = channels_last(encoder, device)
    optimizer = LARS(encoder.parameters(), lr=1e-3)
    images = [torch.randn(STEP_BATCH.get(profile, n), channels, size, size, device=device) for _ in range(2)]

    def call_of(method: str) -> Callable[[], None]:
        loss = loss_of(method, q)

        def call() -> None:
            with autocast(device, precision):
                embeddings = encoder(images)
            loss([view.float() for view in embeddings]).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return call

    return {method: call_of(method) for method in methods}


def resident_peaks(tasks: Sequence[tuple[str, int, int]]) -> dict[tuple[str, int, int], float]:
    """Peak MiB of each loss (method, q, n) on the CPU, beyond the embeddings, in a separate process each; NaN except on Linux."""
    if not os.path.exists("/proc/self/clear_refs"):
        return dict.fromkeys(tasks, math.nan)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    environment["MALLOC_MMAP_THRESHOLD_"] = "65536"  # freed memory is returned at once, so that allocating it again counts
    command = [sys.executable, "-m", "sfrik.cost.measure", json.dumps(tasks)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", env=environment)
    values = [json.loads(line) for line in done.stdout.splitlines()]
    if len(values) < len(tasks):
        method, q, n = tasks[len(values)]
        reason = (done.stderr.strip().splitlines() or ["the process was killed: out of memory?"])[-1]
        raise SfrikError(f"the memory of {method} at q = {q}, batch {n} could not be measured: {reason}")
    return dict(zip(tasks, values, strict=True))


def _that_fit(calls: Calls) -> Calls:
    """Make each call once, untimed, and return those that fit into the GPU's memory."""
    fitting: Calls = {}
    for name, call in calls.items():
        with suppress(torch.cuda.OutOfMemoryError):
            call()
            fitting[name] = call
    return fitting


def _timed(calls: Calls, device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call in each round."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    times: dict[str, list[float]] = {name: [] for name in calls}
    wait()
    begun, done, taken = time.perf_counter(), 0, 0.0
    while done < min(rounds, 3) or (done < rounds and taken < LONG) or (done < 10 * rounds and taken < SHORT):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            wait()
            times[name].append(1000 * (time.perf_counter() - started))
        done, taken = done + 1, time.perf_counter() - begun
    return times


def _add(found: dict[str, dict[str, float]], name: str, values: dict[str, list[float]], ratio: str = "") -> None:
    """Record the median of each method's values as `name`, and the median over the rounds of their ratios to the baseline."""
    base = values.get(BASELINE, [0.0])
    for method, own in values.items():
        found[method][name] = statistics.median(own)
        if ratio and min(base) > 0:  # memory below one page is measured as 0
            found[method][ratio] = statistics.median(a / b for a, b in zip(own, base, strict=True))


def _cuda_peak(call: Callable[[], object], device: torch.device) -> float:
    """Peak MiB of a call; it must have been made before, so that the libraries have their workspaces."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def _resident_peak(method: str, q: int, n: int) -> float:
    """Peak MiB of a loss by the resident memory of this process."""
    call = loss_calls([method], q, n, torch.device("cpu"))[method]
    call()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # reset the peak
    before = _status("VmRSS")
    call()
    return max(_status("VmHWM") - before, 0) / 1024


def _status(name: str) -> int:
    """KiB in a line of /proc/self/status."""
    return int(Path("/proc/self/status").read_text(encoding="utf-8").split(f"{name}:")[1].split()[0])


def _print_peaks(tasks: list[list]) -> None:
    """Print a line for each task, measured in a fork of this process, which has imported everything and computed nothing."""
    for task in tasks:
        if not os.fork():
            print(json.dumps(_resident_peak(*task)), flush=True)  # noqa: T201  the parent reads it
            os._exit(0)
        if os.wait()[1]:
            sys.exit(1)


if __name__ == "__main__":
    _print_peaks(json.loads(sys.argv[1]))
