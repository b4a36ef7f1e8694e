"""Device, precision and memory layout of the computation."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sfrik.errors import SfrikError, WorkerError
from sfrik.system.processes import process_place

if TYPE_CHECKING:
    import torch

__all__ = ["autocast", "channels_last", "cores", "explain_out_of_memory", "physical_memory", "pick_device", "pick_precision"]

Network = TypeVar("Network", bound="torch.nn.Module")
OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory|bad_alloc")  # as PyTorch writes it
PRECISIONS = {"bf16": "bfloat16", "fp16": "float16"}  # PyTorch's names


def cores(root: str | Path = "/") -> int:
    """Number of processor cores that this process may use: its affinity, or the CPU quota of its container if that is smaller.

    Args:
        root: Where /proc and /sys are.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return math.ceil(min(allowed, _cpu_quota(Path(root))))


def _cpu_quota(root: Path) -> float:
    """Cores per second of CPU time that control groups (Linux) allow this process; infinite without a limit.

    The limit of a group applies to the groups in it. A container sees its own group as the root of the file system of groups, or
    the whole tree.
    """
    lowest = math.inf
    for line in _words(root / "proc/self/cgroup", "\n"):
        controllers, path = line.split(":", 2)[1:] if line.count(":") >= 2 else ("none", "")
        if controllers and "cpu" not in controllers.split(","):
            continue
        # version 2 has one tree for all controllers, version 1 one for each
        trees = [controllers, "cpu", "cpu,cpuacct", "cpuacct,cpu"] if controllers else ["", "unified"]
        for tree in dict.fromkeys(trees):
            mount = root / "sys/fs/cgroup" / tree
            for group in (mount / path.lstrip("/"), *(mount / parent for parent in Path(path.lstrip("/")).parents)):
                values = _words(group / "cpu.max") or [
                    *_words(group / "cpu.cfs_quota_us"),
                    *_words(group / "cpu.cfs_period_us"),
                ]
                if len(values) == 2 and all(value.isdecimal() and int(value) for value in values):  # "max" and -1: no limit
                    lowest = min(lowest, int(values[0]) / int(values[1]))
    return lowest


def _words(path: Path, separator: str | None = None) -> list[str]:
    """The words of a file; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip().split(separator)
    except (OSError, ValueError):
        return []


def physical_memory() -> int:
    """Bytes of memory of this machine, or of the container that the process runs in."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # ValueError: "max"
            limits.append(int(Path(path).read_text(encoding="utf-8")))
    return min(limits)


@contextmanager
def explain_out_of_memory() -> Iterator[None]:
    """Turn the error of an allocation that does not fit, by Python, NumPy or PyTorch, into one line with the remedy.

    Raises:
        SfrikError: The memory of the machine or of the GPU does not suffice.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = (str(error).strip().splitlines() or ["Python could not allocate memory"])[0]
        if isinstance(error, WorkerError) or not (isinstance(error, MemoryError) or OUT_OF_MEMORY.search(text)):
            raise
        raise SfrikError(
            f"out of memory ({text}): lower --batch-size, --size or --mlp; python -m sfrik memory shows what takes it"
        ) from error


def pick_device(name: str) -> torch.device:
    """The device named "cpu", "cuda" or "mps", or the fastest available one for "auto".

    Among several processes, "cuda" is the GPU of this process's rank on its machine. Where the environment asks for GPUs, by
    CUDA_VISIBLE_DEVICES or as a SLURM job, "auto" is no CPU.

    Raises:
        SfrikError: The machine has no such device, or fewer GPUs than processes.
    """
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, usable in available.items() if usable)
        if name == "cpu" and (variable := _variable_that_asks_for_gpus()):
            raise SfrikError(
                f"GPUs were requested ({variable}={os.environ[variable]}), but PyTorch finds none here: see cuda and gpus of "
                f"sfrik env; to use the CPU, unset {variable} or give --device cpu"
            )
    if name not in available:
        raise SfrikError(f"device must be auto, {', '.join(available)}, got {name!r:.100}")
    if not available[name]:
        hidden = "CUDA_VISIBLE_DEVICES" in os.environ and name == "cuda"
        why = f" (CUDA_VISIBLE_DEVICES is {os.environ['CUDA_VISIBLE_DEVICES']!r})" if hidden else ""
        raise SfrikError(f"device {name} is not available on this machine: use --device auto or --device cpu{why}")
    if name == "cuda":
        place, gpus, processes = process_place(), torch.cuda.device_count(), 1
        local_rank = place.local_rank
        joined = torch.distributed.is_available() and torch.distributed.is_initialized()  # perhaps by another launcher
        if joined:
            local_rank = int(os.environ.get("LOCAL_RANK", local_rank))
        if joined or place.size > 1:
            processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        # SLURM can give each process of a step a GPU that only it sees
        if processes > gpus and not (gpus == 1 and "SLURM_STEP_ID" in os.environ):
            raise SfrikError(
                f"{processes} processes need a GPU each, and this machine has {gpus}: use --nproc-per-node {gpus} or --device cpu"
            )
        return torch.device("cuda", local_rank % gpus)
    return torch.device(name)


def _variable_that_asks_for_gpus() -> str:
    """The environment variable that requests GPUs for this process; empty if there is none."""
    of_node = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE") if "SLURMD_NODENAME" in os.environ else ()
    for variable in (*of_node, "CUDA_VISIBLE_DEVICES"):
        value = os.environ.get(variable, "").strip().lower()
        if value not in ("", "-1", "none", "nodevfiles") and (variable, value) != ("SLURM_GPUS_ON_NODE", "0"):
            return variable
    return ""


def channels_last(module: Network, device: torch.device) -> Network:
    """Move a module to the device, in the channels-last memory format, which is fastest for convolutions."""
    import torch

    return module.to(device, memory_format=torch.channels_last)  # pyrefly: ignore[no-matching-overload] missing in PyTorch's annotations


def pick_precision(name: str, device: torch.device) -> str:
    """Precision of the network's forward and backward passes: "fp32", "bf16" or "fp16".

    Args:
        name: One of these, or "auto": the fastest of them that the device supports in hardware.
        device: Where the network runs.

    Raises:
        SfrikError: fp16 was requested on a CPU.
    """
    import torch

    if name != "auto":
        if name == "fp16" and device.type == "cpu":
            raise SfrikError("precision fp16 needs a GPU: use --precision auto, bf16 or fp32 on a CPU")
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        supports = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        return "bf16" if supports() else "fp32"
    return "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """A context that autocasts to `precision`; for fp32 one that does nothing."""
    import torch

    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, PRECISIONS[precision]))
