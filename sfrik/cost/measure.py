"""Time and memory of the regularisers (the paper's tables 5 and 6): each loss alone, and a whole training step.

A method is measured as this library computes it (`sfrik.objectives`) and, "plain", as its paper writes it, by autograd
(`sfrik.objectives.reference`). All methods of one size are measured in turn, round after round, in one process, so that a ratio
compares neighbours in time; the time of a method is the median over the rounds. One product of [n, q] with its transpose is timed
before each: a unit of arithmetic that does not depend on the machine. Peak memory is what forward and backward pass need beyond
the embeddings, their gradients included: on CUDA by PyTorch's count, on a CPU by the resident memory of a process that does
nothing else (Linux). What libraries keep from call to call is not in it.

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

from sfrik.errors import SfrikError
from sfrik.networks import Encoder, build_backbone, build_projector
from sfrik.objectives import AUH, SFRIK, SIGReg, SimCLR, VICReg
from sfrik.objectives.base import Objective
from sfrik.objectives.reference import plain_loss
from sfrik.optim import LARS
from sfrik.runs.folder import Run
from sfrik.runs.provenance import commit, now, processor, provenance
from sfrik.system.devices import autocast, channels_last, pick_device, pick_precision
from sfrik.system.files import write_json
from sfrik.system.records import VERSION
from sfrik.tables.cost_rows import BASELINE, PLAIN, STEP_BATCH, read_costs
from sfrik.tables.definitions import experiment

__all__ = ["complexity", "growth", "hardware", "loss_calls", "measure", "measured_here", "resident_peaks", "step_calls"]

# Backbone, side of the images, channels, hidden widths of the projector: the network of a whole step by profile.
NETWORKS = {
    "smoke": ("resnet8", 28, 1, "64"),
    "digits": ("resnet8", 28, 1, "512"),
    "cifar10": ("resnet18", 32, 3, "2048-2048"),
    "paper": ("resnet50", 224, 3, "8192-8192"),
}
KINDS = {"VICReg": VICReg, "SimCLR": SimCLR, "AUH": AUH, "SIGReg": SIGReg}
PRODUCT = "product before "
LONG, SHORT = 30.0, 0.5  # seconds: no more than three rounds of what takes longer, more rounds of what takes less

Calls = dict[str, Callable[[], object]]


def measure(table: str, profile: str, device: str = "auto", rounds: int = 5, progress: bool = True) -> dict[str, Any]:
    """Measure the rows of table5 or table6.

    Args:
        rounds: how often each method is timed; more often where that takes under half a second, three times where it takes
            over half a minute.

    Returns:
        By the entry of each row: `product_ms`, `loss_ms`, `loss_products`, `loss_mib`; on CUDA or for table6 `step_ms`, on CUDA
        `step_mib`; of each the ratio to the baseline's at the same size (`loss_time_ratio`, ...). What a GPU has too little
        memory for is missing. Beside them `hardware`.
    """
    where = pick_device(device)
    groups: dict[tuple[int, int], dict[str, str]] = {}
    for row in experiment(table, profile).rows(profile):
        assert row.q is not None  # every row of costs has a dimension
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
            words = [f"{m} {v['loss_ms']:.0f} ms, {v['loss_mib']:.0f} MiB" for m, v in found.items() if "loss_ms" in v]
            print(f"q {q}, batch {n}: {'; '.join(words)}", flush=True)
    return out


def complexity(table: str, profile: str, exp_dir: str, device: str = "auto", rounds: int = 5) -> dict[str, Any]:
    """Measure a table and write it to `exp_dir` as <table>.json; one that was measured on this hardware is returned at once.

    It waits for another process that measures into this folder.
    """
    run = Run(exp_dir)
    path, where = run.folder / f"{table}.json", pick_device(device)
    with run.lock(wait=True):
        if measured_here(path, table, profile, device):
            return read_costs(path)
        measured = measure(table, profile, device, rounds)
        run.record(version=VERSION, **provenance(where.type, "fp32", 1), finished=now())
        write_json(path, {"version": VERSION, **measured, "commit": commit()})
    return measured


def measured_here(path: Path, table: str, profile: str, device: str = "auto") -> bool:
    """Whether a file of `complexity` is there, of this hardware, with all rows that the table has."""
    found = read_costs(path)
    entries = {row.entry for row in experiment(table, profile).rows(profile)}
    return entries <= set(found) and found.get("hardware") == hardware(pick_device(device))


def growth(sizes: Sequence[float], costs: Sequence[float], largest: int = 3) -> tuple[float | None, float | None]:
    """The exponent of a cost in a size: the slope of log2(cost) on log2(size) by least squares over the largest sizes.

    Returns:
        It, None where fewer than two costs are above zero; its standard error from the residuals, None where fewer than three.
    """
    there = sorted((size, cost) for size, cost in zip(sizes, costs, strict=True) if cost > 0)[-largest:]
    if len(there) < 2:
        return None, None
    x, y = np.log2(there).T
    if len(there) == 2:
        return float(np.polyfit(x, y, 1)[0]), None
    coefficients, covariance = np.polyfit(x, y, 1, cov=True)
    return float(coefficients[0]), float(np.sqrt(covariance[0, 0]))


def hardware(device: torch.device) -> str:
    """What was measured on: device, threads, version of PyTorch."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return f"{device.type}: {name}, {torch.get_num_threads()} threads, torch {torch.__version__.split('+')[0]}"


def build(method: str, q: int) -> Objective:
    """An objective by its name in the tables, "plain" or not, with the default coefficients."""
    name = method.removesuffix(PLAIN)
    if name.startswith("SFRIK L="):
        return SFRIK(q, (1.0, *[40.0] * (int(name.removeprefix("SFRIK L=")) - 1)))
    if name not in KINDS or method == f"SIGReg{PLAIN}":
        raise SfrikError(f"unknown method {method!r}: choose {', '.join(KINDS)} or SFRIK L=1, 2, ...; all but SIGReg also plain")
    return KINDS[name]()


def loss_of(method: str, q: int) -> Callable[[Sequence[Tensor]], Tensor]:
    """The loss of views [n, q] by a method of the tables."""
    objective, plain = build(method, q), method.endswith(PLAIN)
    return lambda views: plain_loss(objective, views) if plain else objective(views).loss


def loss_calls(methods: Sequence[str], q: int, n: int, device: torch.device) -> Calls:
    """Of each method forward and backward pass on two views of random embeddings [n, q] in float32, before it the product."""
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
    """Of each method a whole training step of one network: two views of random images, loss, backward pass, LARS."""
    arch, size, channels, hidden = NETWORKS[profile]
    precision = pick_precision("auto", device)
    torch.manual_seed(0)
    backbone = build_backbone(arch, "imagenet" if size > 64 else "small", channels)
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
    """MiB beyond the embeddings of each loss (method, q, n) on the CPU, in a process of its own; NaN where this is no Linux."""
    if not os.path.exists("/proc/self/clear_refs"):
        return dict.fromkeys(tasks, math.nan)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    environment["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed goes back at once, and is seen when it is taken again
    command = [sys.executable, "-m", "sfrik.cost.measure", json.dumps(tasks)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    values = [json.loads(line) for line in done.stdout.splitlines()]
    if len(values) < len(tasks):
        method, q, n = tasks[len(values)]
        reason = (done.stderr.strip().splitlines() or ["it was ended: out of memory?"])[-1]
        raise SfrikError(f"the memory of {method} at q = {q}, batch {n} could not be measured: {reason}")
    return dict(zip(tasks, values, strict=True))


def _that_fit(calls: Calls) -> Calls:
    """The calls after their first time, which is not counted, without those that a GPU has too little memory for."""
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
    """The median of each method's values, and as `ratio` the median over the rounds of its ratio to the baseline's."""
    base = values.get(BASELINE, [0.0])
    for method, own in values.items():
        found[method][name] = statistics.median(own)
        if ratio and min(base) > 0:  # under a page of memory is measured as none
            found[method][ratio] = statistics.median(a / b for a, b in zip(own, base, strict=True))


def _cuda_peak(call: Callable[[], object], device: torch.device) -> float:
    """MiB of a call that was made before, so that the libraries have their workspaces."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def _resident_peak(method: str, q: int, n: int) -> float:
    """MiB of a loss in this process, by its resident memory."""
    call = loss_calls([method], q, n, torch.device("cpu"))[method]
    call()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    call()
    return max(_status("VmHWM") - before, 0) / 1024


def _status(name: str) -> int:
    """KiB of a line of /proc/self/status."""
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])


def _print_peaks(tasks: list[list]) -> None:
    """A line for each task, from a copy of this process, which has imported everything and computed nothing."""
    for task in tasks:
        if not os.fork():
            print(json.dumps(_resident_peak(*task)), flush=True)
            os._exit(0)
        if os.wait()[1]:
            sys.exit(1)


if __name__ == "__main__":
    _print_peaks(json.loads(sys.argv[1]))
