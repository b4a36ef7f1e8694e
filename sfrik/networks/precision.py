"""The precision of the network, for every command that trains or extracts features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfrik.errors import SfrikError
from sfrik.networks.backbones import build_backbone
from sfrik.networks.libraries import without_values
from sfrik.settings import Settings, takes_arguments
from sfrik.system.devices import pick_precision

__all__ = ["network_precision"]


def network_precision(settings: Settings, device: torch.device) -> str:
    """The precision of `sfrik.system.devices.pick_precision`, or fp32 where PyTorch's bf16 kernels for CPUs are wrong.

    There the weight gradient of a 3 x 3 convolution with stride 2 over a single pixel contains uninitialised memory, sometimes
    NaN (seen with PyTorch 2.14.1). The last stage of a ResNet has such a convolution for views of up to 16 pixels. A frozen
    network has no gradient, and its features are right.

    Raises:
        SfrikError: The setting `precision` is bf16 in such a case, or fp16 on a CPU.
    """
    precision = pick_precision(settings.precision, device)
    smallest = min(settings.trained_sizes, default=None)
    if precision != "bf16" or device.type != "cpu" or settings.arch == "pixels" or smallest is None:
        return precision
    if not _convolves_single_pixels(settings, smallest):
        return precision
    if settings.precision == "bf16":
        raise SfrikError(
            f"views of {smallest} pixels shrink to one pixel in the last stage of {settings.arch}, where PyTorch's bf16 kernels "
            f"for CPUs give wrong gradients: use larger views, {'' if takes_arguments(settings.arch) else '--stem small, '}or "
            "--precision fp32"
        )
    return "fp32"


def _convolves_single_pixels(settings: Settings, side: int) -> bool:
    """Whether images of `side` pixels have shrunk to one pixel before a convolution with a stride and a kernel above 1."""
    found = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(module, nn.Conv2d) and max(module.stride) > 1 and max(module.kernel_size) > 1:
            found.append(max(inputs[0].shape[-2:]) == 1)

    def run() -> None:
        net = build_backbone(**settings.network, channels=settings.channels).eval()
        for module in net.modules():
            module.register_forward_pre_hook(look)
        net(torch.zeros(2, settings.channels, side, side))

    without_values(run)
    return any(found)
