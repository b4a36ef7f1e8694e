"""Time and memory of the regularisers (the paper's tables 5 and 6): each loss alone, and a whole training step.

Of one size all methods are measured in turn, round after round, in one process, so that a ratio compares neighbours in
time; the time of a method is the median over the rounds. Peak memory is what forward and backward pass need beyond their
inputs: on CUDA by PyTorch's own count, on a CPU by the resident memory of a process that does nothing else (Linux).

Legend: n batch size, q dimension of the embeddings.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sfrik.build import Encoder
from sfrik.devices import autocast, pick_device, pick_precision
from sfrik.errors import SfrikError
from sfrik.experiments import experiment
from sfrik.files import read_json, write_json
from sfrik.loss_terms import Objective
from sfrik.networks import build_backbone, build_projector
from sfrik.objectives import AUH, SFRIK, SimCLR, VICReg
from sfrik.optim import LARS
from sfrik.provenance import commit, now, processor, provenance
from sfrik.runs import Run
from sfrik.table_rows import STEP_BATCH

__all__ = ["complexity", "hardware", "loss_call", "measure", "measured_here", "peak_memory", "step_call"]

# Backbone, side of the images, channels, hidden widths of the projector: the network of a whole step by profile.
NETWORKS = {
    "smoke": ("resnet8", 28, 1, "64"),
    "desk": ("resnet8", 28, 1, "512"),
    "cifar10": ("resnet18", 32, 3, "2048-2048"),
    "paper": ("resnet50", 224, 3, "8192-8192"),
}


def measure(table: str, profile: str, device: str = "auto", rounds: int = 5, progress: bool = True) -> dict[str, Any]:
    """Measure the rows of table5 or table6.

    Args:
        rounds: how often each method is timed; the median counts.

    Returns:
        By the entry of each row: `loss_ms`, `loss_mib`, on CUDA or for table6 `step_ms`, on CUDA `step_mib`, and of each the
        ratio to VICReg's of the same size (`loss_time_ratio`, ...); beside them `hardware`.
    """
    where = pick_device(device)
    rows = experiment(table, profile).rows(profile)
    sizes = list(dict.fromkeys((row.q, int(row.labels["batch size"])) for row in rows))
    out: dict[str, Any] = {"hardware": hardware(where)}
    for q, n in sizes:
        methods = {row.method: row.entry for row in rows if row.entry.endswith(f"q={q} n={n}")}
        found: dict[str, dict[str, float]] = {method: {} for method in methods}
        calls = {method: loss_call(method, q, n, where) for method in methods}
        _add(found, "loss_ms", "loss_time_ratio", _timed(calls, where, rounds))
        del calls
        memory = {method: peak_memory(method, q, n, where) for method in methods}
        _add(found, "loss_mib", "loss_memory_ratio", {method: [value] for method, value in memory.items()})
        if table == "table6" or where.type == "cuda":
            steps = {method: step_call(method, q, n, where, profile) for method in methods}
            _add(found, "step_ms", "step_time_ratio", _timed(steps, where, rounds))
            if where.type == "cuda":
                peaks = {method: [_cuda_peak(call, where)] for method, call in steps.items()}
                _add(found, "step_mib", "step_memory_ratio", peaks)
            del steps
        for method, entry in methods.items():
            out[entry] = found[method]
        if progress:
            words = [f"{method} {v['loss_ms']:.0f} ms, {v['loss_mib']:.0f} MiB" for method, v in found.items()]
            print(f"q {q}, batch {n}: {'; '.join(words)}", flush=True)
    return out


def complexity(table: str, profile: str, exp_dir: str, device: str = "auto", rounds: int = 5) -> dict[str, Any]:
    """Measure a table and write it to `exp_dir` as <table>.json; one that was measured on this hardware is returned at once."""
    run = Run(exp_dir)
    path, where = run.folder / f"{table}.json", pick_device(device)
    if measured_here(path, device):
        return read_json(path)
    measured = measure(table, profile, device, rounds)
    run.folder.mkdir(parents=True, exist_ok=True)
    run.record(**provenance(where.type, "fp32", 1), finished=now())
    write_json(path, {**measured, "commit": commit()})
    return measured


def measured_here(path: Path, device: str = "auto") -> bool:
    """Whether a file of `complexity` is there and of this hardware."""
    return path.is_file() and read_json(path).get("hardware") == hardware(pick_device(device))


def hardware(device: torch.device) -> str:
    """What was measured on: device, threads, version of PyTorch."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return f"{device.type}: {name}, {torch.get_num_threads()} threads, torch {torch.__version__.split('+')[0]}"


def build(method: str, q: int) -> Objective:
    """An objective by its name in the tables, with the default coefficients."""
    if method.startswith("SFRIK"):
        return SFRIK(q, (1.0, *[40.0] * (int(method.rsplit("=", 1)[1]) - 1)))
    kinds = {"VICReg": VICReg, "SimCLR": SimCLR, "AUH": AUH}
    if method not in kinds:
        raise SfrikError(f"unknown method {method!r}: choose {', '.join(kinds)} or SFRIK L=1, 2, ...")
    return kinds[method]()


def loss_call(method: str, q: int, n: int, device: torch.device) -> Callable[[], None]:
    """Forward and backward pass of a loss on two views of random embeddings [n, q] in float32."""
    objective = build(method, q)
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(n, q, generator=generator).to(device).requires_grad_() for _ in range(2)]

    def call() -> None:
        for view in views:
            view.grad = None
        objective(views).loss.backward()

    return call


def step_call(method: str, q: int, n: int, device: torch.device, profile: str) -> Callable[[], None]:
    """A whole training step: two views of random images through the profile's network, loss, backward pass, LARS."""
    arch, size, channels, hidden = NETWORKS[profile]
    objective, precision = build(method, q), pick_precision("auto", device)
    torch.manual_seed(0)
    backbone = build_backbone(arch, "imagenet" if size > 64 else "small", channels)
    encoder = Encoder(backbone, build_projector(backbone.num_features, f"{hidden}-{q}"))
    encoder = encoder.to(device, memory_format=torch.channels_last)
    optimizer = LARS(encoder.parameters(), lr=1e-3)
    images = [torch.randn(STEP_BATCH.get(profile, n), channels, size, size, device=device) for _ in range(2)]

    def call() -> None:
        with autocast(device, precision):
            embeddings = encoder(images)
        optimizer.zero_grad(set_to_none=True)
        objective(embeddings).loss.backward()
        optimizer.step()

    return call


def peak_memory(method: str, q: int, n: int, device: torch.device) -> float:
    """MiB that one forward and backward pass of a loss needs at its peak, beyond the embeddings and what was there before."""
    if device.type == "cuda":
        return _cuda_peak(loss_call(method, q, n, device), device)
    if not os.path.exists("/proc/self/clear_refs"):
        return float("nan")
    command = [sys.executable, "-m", "sfrik.complexity", method, str(q), str(n)]
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"ended by signal {-done.returncode}: out of memory?"])[-1]
        raise SfrikError(f"the memory of {method} at q = {q}, batch {n} could not be measured: {reason}")
    return json.loads(done.stdout.splitlines()[-1])


def _timed(calls: dict[str, Callable[[], None]], device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call in each round, after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + 1):
        for name, call in calls.items():
            _wait(device)
            started = time.perf_counter()
            call()
            _wait(device)
            if round_:
                times[name].append(1000 * (time.perf_counter() - started))
    return times


def _add(found: dict[str, dict[str, float]], name: str, ratio: str, values: dict[str, list[float]]) -> None:
    """The median of each method's values, and the median over the rounds of its ratio to VICReg's."""
    for method, own in values.items():
        found[method][name] = statistics.median(own)
        if min(values.get("VICReg", [0.0])) > 0:  # under a page of memory is measured as none
            found[method][ratio] = statistics.median(a / b for a, b in zip(own, values["VICReg"], strict=True))


def _cuda_peak(call: Callable[[], None], device: torch.device) -> float:
    call()  # workspaces of the libraries
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def _resident_peak(method: str, q: int, n: int) -> float:
    """The same for this process on Linux, by its resident memory."""
    cpu = torch.device("cpu")
    loss_call(method, 16, 8, cpu)()  # loads what the first call loads
    call = loss_call(method, q, n, cpu)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    """KiB of a line of /proc/self/status."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(f"{name}:"))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    print(json.dumps(_resident_peak(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
