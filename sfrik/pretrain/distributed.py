"""Distributed training: the encoder on several processes, and the precision of a training.

On a GPU BatchNorm is synchronised over the processes. On a CPU PyTorch has no synchronised BatchNorm: each process normalises by
the statistics of its shard of the batch, and rank 0's running averages are kept.
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
from sfrik.settings import PretrainSettings
from sfrik.system.devices import autocast, pick_precision

__all__ = ["distribute", "explain_compile_failure", "training_precision"]


def training_precision(settings: PretrainSettings, device: torch.device) -> str:
    """`pick_precision` of the settings, fp32 in the place of bf16 where PyTorch's CPU kernels compute a wrong gradient.

    The weight gradient of a 3 x 3 convolution of stride 2 over a single pixel holds memory that was never set, NaN at times
    (seen with PyTorch 2.14.1). The last stage of a ResNet does that where a view has 16 pixels or less, 4 with the small stem.
    """
    precision = pick_precision(settings.precision, device)
    smallest = 16 if settings.stem == "imagenet" else 4
    deep = settings.arch.startswith("resnet") and settings.arch != "resnet8"
    if not (precision == "bf16" and device.type == "cpu" and deep and min(settings.view_sizes) <= smallest):
        return precision
    if settings.precision == "bf16":
        raise SfrikError(
            f"views of {min(settings.view_sizes)} pixels are one pixel in the last stage of {settings.arch}, where PyTorch's "
            "bf16 kernels for CPUs give wrong gradients: use larger views, --stem small, or --precision fp32"
        )
    return "fp32"


@contextmanager
def explain_compile_failure() -> Iterator[None]:
    """Within it what keeps a network from being compiled, such as a missing compiler, is an error that says what to do."""
    try:
        yield
    except RuntimeError as error:
        tracer = sys.modules.get("torch._dynamo.exc")  # not imported for this: it takes seconds
        if tracer is None or not isinstance(error, tracer.BackendCompilerFailed):
            raise
        reason = str(error.inner_exception).strip().splitlines()[0]
        raise SfrikError(
            f"the network could not be compiled ({reason}): install a C++ compiler, such as g++, or leave --compile out"
        ) from error


def distribute(encoder: Encoder, device: torch.device, precision: str, view_sizes: Sequence[int], channels: int) -> nn.Module:
    """The encoder, its gradients averaged over the processes where there are several (DistributedDataParallel).

    Args:
        view_sizes: side of each view in pixels. channels: of the images.
    """
    if world_size() == 1:
        return encoder
    if device.type == "cuda":
        encoder = nn.SyncBatchNorm.convert_sync_batchnorm(encoder)
        model = nn.parallel.DistributedDataParallel(encoder, device_ids=[device.index])
    else:
        model = nn.parallel.DistributedDataParallel(encoder)
    _settle_buckets(model, [torch.zeros(2, channels, size, size, device=device) for size in view_sizes], device, precision)
    return model


@explain_compile_failure()
def _settle_buckets(model: nn.Module, views: list[Tensor], device: torch.device, precision: str) -> None:
    """Two passes that leave no trace but DDP's buckets.

    DDP lays them anew after the first backward pass, in the order in which the gradients came. A resumed run would sum its
    first gradients in another order than the run that was not interrupted, and differ from it in the last bits.
    """
    before = copy.deepcopy(model.state_dict())  # BatchNorm's buffers move in a forward pass
    for _ in range(2):
        with autocast(device, precision):
            embeddings = model(views)
        torch.stack([z.float().sum() for z in embeddings]).sum().backward()
        model.zero_grad(set_to_none=True)
    model.load_state_dict(before)
