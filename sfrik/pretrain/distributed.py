"""What the settings describe: the encoder (backbone and projector as one module), alone or on several processes; the objective.

On a GPU BatchNorm is synchronised over the processes. On a CPU PyTorch has no synchronised BatchNorm: each process
normalises by the statistics of its own share of the batch, and the running averages of rank 0 are the ones that are kept.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sfrik.errors import SfrikError
from sfrik.kernels import RotationInvariantKernel
from sfrik.networks import build_backbone, build_pixels, build_projector
from sfrik.objectives import AUH, SFRIK, SIGReg, SimCLR, VICReg
from sfrik.objectives.base import Objective
from sfrik.ops.collectives import world_size
from sfrik.settings import PretrainSettings
from sfrik.system.devices import autocast, pick_precision

__all__ = ["Encoder", "build_encoder", "build_objective", "compile_failure_told", "distribute", "training_precision"]


class Encoder(nn.Module):
    """Backbone and projector: a list of views in, the embeddings of each out.

    Two views pass one after the other, so that BatchNorm's statistics are those of one view; with `by_size`, as multi-crop
    has it, the views of one size pass together. One call takes all views: DDP expects one forward pass for each backward pass.
    """

    def __init__(self, backbone: nn.Module, projector: nn.Module, by_size: bool = False) -> None:
        super().__init__()
        self.backbone, self.projector, self.by_size = backbone, projector, by_size

    def forward(self, views: list[Tensor]) -> list[Tensor]:
        if not self.by_size:
            return [self._embed(view) for view in views]
        together: dict[int, list[int]] = {}
        for index, view in enumerate(views):
            together.setdefault(view.shape[-1], []).append(index)
        embeddings: dict[int, Tensor] = {}
        for indices in together.values():
            whole = self._embed(torch.cat([views[index] for index in indices]))
            embeddings.update(zip(indices, whole.chunk(len(indices)), strict=True))
        return [embeddings[index] for index in range(len(views))]

    def _embed(self, images: Tensor) -> Tensor:
        return self.projector(self.backbone(images.contiguous(memory_format=torch.channels_last)))


def build_encoder(settings: PretrainSettings, channels: int) -> Encoder:
    """The network that the settings describe, for images of so many channels."""
    if settings.arch == "pixels":
        return Encoder(build_pixels(settings.size, channels), nn.Identity())
    backbone = build_backbone(settings.arch, settings.stem, channels)
    encoder = Encoder(backbone, build_projector(backbone.num_features, settings.mlp), settings.multi_crop)
    if settings.compile:
        encoder.compile()  # in place, at its first call: the names of its weights stay, and its backbone by itself is as it was
    return encoder


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
def compile_failure_told() -> Iterator[None]:
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


@compile_failure_told()
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


def build_objective(settings: PretrainSettings) -> Objective:
    """The objective that the settings describe, for batches that are shared equally among the processes."""
    objective = _objective(settings)
    objective.equal_rows, objective.seed = True, settings.seed
    return objective


def _objective(s: PretrainSettings) -> Objective:
    if s.ssl_method == "sfrik":
        return SFRIK(s.dim, s.kernel_weights, s.sfrik_sim_coeff, s.sfrik_mmd_coeff, _other_kernel(s), slices=s.sfrik_slices)
    if s.ssl_method == "auh":
        return AUH(s.auh_sim_coeff, s.auh_unif_coeff, s.auh_scale)
    if s.ssl_method == "simclr":
        return SimCLR(s.simclr_temp)
    if s.ssl_method == "sigreg":
        return SIGReg(s.sigreg_weight, s.sigreg_slices)
    return VICReg(s.vicreg_sim_coeff, s.vicreg_std_coeff, s.vicreg_cov_coeff)


def _other_kernel(s: PretrainSettings) -> RotationInvariantKernel | None:
    """The kernel of the settings where it is not the truncated one."""
    scale, degree = s.sfrik_kernel_scale, s.sfrik_kernel_degree
    if s.sfrik_kernel == "rbf":
        return RotationInvariantKernel.rbf(scale, s.dim, degree)
    if s.sfrik_kernel == "heat":
        return RotationInvariantKernel.heat(scale / (s.dim - 1), s.dim, degree)
    if s.sfrik_kernel == "power":  # |u - v|^2 = 2 (1 - t); the constant C is the degree 0, which is left out
        return RotationInvariantKernel.from_function(lambda t: -((2 * (1 - t)) ** (scale / 2)), s.dim, degree)
    return None
