"""Distributed data parallelism, and compile errors.

On GPUs BatchNorm is synchronised over the processes. PyTorch has no synchronised BatchNorm for CPUs, so on CPUs
each process normalises with the statistics of its own shard of the batch, and the running averages of rank 0 are saved.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sfrik.errors import SfrikError
from sfrik.networks.encoder import Encoder
from sfrik.ops.collectives import world_size
from sfrik.system.devices import autocast

__all__ = ["distribute", "explain_compile_failure"]


@contextmanager
def explain_compile_failure() -> Iterator[None]:
    """Turn a failure of `torch.compile`, such as a missing C++ compiler, into an `SfrikError` with the remedy."""
    try:
        yield
    except RuntimeError as error:
        tracer = sys.modules.get("torch._dynamo.exc")  # not imported here, since that takes seconds
        if tracer is None or not isinstance(error, tracer.BackendCompilerFailed):
            raise
        reason = str(error.inner_exception).strip().splitlines()[0]
        raise SfrikError(
            f"the network could not be compiled ({reason}): install a C++ compiler, such as g++, or leave --compile out"
        ) from error


def distribute(encoder: Encoder, device: torch.device, precision: str, view_sizes: Sequence[int], channels: int) -> nn.Module:
    """Wrap the encoder in DistributedDataParallel if there are several processes.

    Args:
        encoder: The encoder, already on the device.
        device: The device of this process.
        precision: "fp32", "bf16" or "fp16".
        view_sizes: Side length of each view in pixels.
        channels: Number of channels of the images.
    """
    if world_size() == 1:
        return encoder
    if device.type == "cuda":
        model = nn.parallel.DistributedDataParallel(_synchronise_batchnorm(encoder), device_ids=[device.index])
    else:
        model = nn.parallel.DistributedDataParallel(encoder)
    _rebuild_buckets(model, [torch.zeros(2, channels, size, size, device=device) for size in view_sizes], device, precision)
    return model


def _synchronise_batchnorm(module: nn.Module) -> nn.Module:
    """The module with BatchNorm synchronised over the processes; timm's BatchNorm layers keep the activation they contain."""
    if any(type(part).__module__.startswith("timm.") for part in module.modules()):
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(module)
    return nn.SyncBatchNorm.convert_sync_batchnorm(module)


@explain_compile_failure()
def _rebuild_buckets(model: nn.Module, views: list[Tensor], device: torch.device, precision: str) -> None:
    """Run two forward and backward passes on blank views, so that DDP rebuilds its gradient buckets before training starts.

    DDP rebuilds the buckets after the first backward pass, in the order in which the gradients became ready. Otherwise a resumed
    run would sum its first gradients in a different order than the uninterrupted run and differ from it in the last bits.
    """
    before = copy.deepcopy(model.state_dict())  # a forward pass updates BatchNorm's buffers
    for _ in range(2):
        with autocast(device, precision):
            embeddings = model(views)
        torch.stack([z.float().sum() for z in embeddings]).sum().backward()
        model.zero_grad(set_to_none=True)
    model.load_state_dict(before)
