"""Device, precision and memory layout of the computation."""

from __future__ import annotations

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


def cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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

    Among several processes, "cuda" is the GPU of this process's rank on its machine.

    Raises:
        SfrikError: The machine has no such device.
    """
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, usable in available.items() if usable)
    if not available[name]:
        raise SfrikError(f"device {name} is not available on this machine: use --device auto or --device cpu")
    if name == "cuda":
        local_rank = process_place().local_rank
        if torch.distributed.is_available() and torch.distributed.is_initialized():  # perhaps by another launcher
            local_rank = int(os.environ.get("LOCAL_RANK", local_rank))
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    return torch.device(name)


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
