"""Where to compute and in which precision."""

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
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pick_device(name: str) -> torch.device:
    """The device called "cpu", "cuda" or "mps", or the best there is for "auto"."""
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, available in there.items() if available)
    if not there[name]:
        raise SfrikError(f"device {name} is not available on this machine: use --device auto or --device cpu")
    if name == "cuda":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return torch.device(name)


def channels_last(module: Network, device: torch.device) -> Network:
    """The module on the device, its weights laid out as convolutions are fastest with, the channels last."""
    import torch

    return module.to(device, memory_format=torch.channels_last)  # pyrefly: ignore[no-matching-overload] PyTorch's hints lack it


def pick_precision(name: str, device: torch.device) -> str:
    """Precision of the network's products: "fp32", "bf16" or "fp16", where "auto" takes what the device gains by."""
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
    """Autocast to `precision`, nothing for fp32."""
    import torch

    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, PRECISIONS[precision]))
