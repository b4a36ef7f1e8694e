"""Device, precision and memory layout of the computation."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TypeVar

from sfrik.errors import SfrikError

if TYPE_CHECKING:
    import torch

__all__ = ["autocast", "channels_last", "cores", "pick_device", "pick_precision"]

Network = TypeVar("Network", bound="torch.nn.Module")
PRECISIONS = {"bf16": "bfloat16", "fp16": "float16"}  # PyTorch's names


def cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pick_device(name: str) -> torch.device:
    """The device named "cpu", "cuda" or "mps", or the fastest available one for "auto".

    Under a launcher, "cuda" is the GPU of the environment variable LOCAL_RANK.

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
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
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
