"""Backbones and projectors.

A backbone maps images [n, c, h, w] to features [n, d]. It is torchvision's ResNet without the classifier, with torchvision's
parameter names, and with the last BatchNorm of each residual branch initialised to zero. For images of about 32 pixels the stem
is a 3 x 3 convolution without pooling. `resnet8` is the network of the digits profile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from sfrik.errors import SfrikError
from sfrik.networks.libraries import build_library_model
from sfrik.settings import check_arch, parse_arch_args, parse_mlp, takes_arguments

__all__ = ["Backbone", "build_backbone", "build_pixels", "build_projector"]

STEMS = {"imagenet": (7, 2, 3), "small": (3, 1, 1), "patch": (4, 4, 0)}  # kernel, stride and padding


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, which is a 1 x 1 convolution if the width changes (He et al. 2016)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(branch + self.shortcut(x))


class Backbone(nn.Module):
    """A network from images [n, c, h, w] to features [n, d] with d = `num_features`."""

    num_features: int


class ResNet8(Backbone):
    """Eight layers for 28-pixel digits: a stem, residual blocks of 32, 64, 128 channels; d = 128.

    The stem is a 3 x 3 convolution of stride 2; with `patch`, one of 4 x 4 patches, after which each block has a quarter of the
    pixels to compute.

    The residual branches are not initialised to zero: the untrained network would be nearly linear, and as a baseline it scored
    46 % instead of 81 %.
    """

    def __init__(self, channels: int = 1, width: int = 32, patch: bool = False) -> None:
        super().__init__()
        kernel, stride, padding = (4, 4, 0) if patch else (3, 2, 1)
        self.conv1 = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks, in_channels = [], width
        for stage in range(3):
            out_channels = width * 2**stage
            blocks.append(ResidualBlock(in_channels, out_channels, stride=1 if stage == 0 else 2))
            in_channels = out_channels
        self.layers = nn.Sequential(*blocks)
        self.num_features = in_channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.layers(x).mean(dim=(2, 3))  # [n, d]


def build_backbone(
    arch: str,
    stem: str = "imagenet",
    channels: int = 3,
    size: int = 224,
    arch_args: str | Sequence[str] | Mapping[str, Any] = (),
) -> Backbone:
    """A freshly initialised backbone; `.num_features` is the dimension d of its features.

    Args:
        arch: one of `sfrik.settings.ARCHITECTURES`, timm/NAME for any model of timm, or a ViT of torchvision such as vit_b_16.
        stem: of ResNets: "imagenet" (7 x 7 convolution of stride 2 and a max-pool), "small" (3 x 3 of stride 1, no pool) or
            "patch" (4 x 4 of stride 4, no pool). In resnet8 the first two are a 3 x 3 convolution of stride 2.
        channels: channels of the images, 3 or 1.
        size: side of the images in pixels; for models of timm and torchvision's ViTs.
        arch_args: arguments of these models, such as "patch_size=4 depth=6".

    Raises:
        SfrikError: there is no such architecture or stem, or it cannot be built for such images or with these arguments.

    >>> backbone = build_backbone("resnet8", channels=1)
    >>> backbone(torch.zeros(2, 1, 28, 28)).shape, backbone.num_features
    (torch.Size([2, 128]), 128)
    """
    try:
        check_arch(arch)
        given = parse_arch_args(arch_args)
    except ValueError as error:
        raise SfrikError(str(error)) from None
    if stem not in STEMS:
        raise SfrikError(f"stem must be one of {', '.join(STEMS)}, got {stem!r}")
    if takes_arguments(arch):
        return cast("Backbone", build_library_model(arch, channels, size, given))
    if given:
        raise SfrikError(f"arch_args are for timm/NAME and torchvision's ViTs, and {arch} has none: set them to none")
    if arch == "pixels":
        return build_pixels(size, channels)
    if arch == "resnet8":
        return ResNet8(channels, patch=stem == "patch")
    import torchvision  # slow to import, and the digits profile does not need it

    net = getattr(torchvision.models, arch)(weights=None, zero_init_residual=True)
    net.num_features = net.fc.in_features  # the interface of Backbone
    net.fc = nn.Identity()
    if stem != "imagenet" or channels != 3:
        kernel, stride, padding = STEMS[stem]
        net.conv1 = nn.Conv2d(channels, 64, kernel, stride, padding, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    if stem != "imagenet":
        net.maxpool = nn.Identity()
    return net


class Pixels(Backbone):
    """No network: the pixels are the features, the baseline that any backbone should beat."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)  # [n, c h w]


def build_pixels(size: int, channels: int) -> Backbone:
    return Pixels(channels * size * size)


def build_projector(num_features: int, mlp: str) -> nn.Sequential:
    """A projector from its widths, such as "8192-8192-8192": Linear, BatchNorm, ReLU per width; last a Linear without bias.

    The last width is q, the dimension of the embeddings.

    >>> build_projector(128, "256-64")(torch.zeros(2, 128)).shape
    torch.Size([2, 64])
    """
    widths = parse_mlp(mlp)
    layers: list[nn.Module] = []
    in_channels = num_features
    for width in widths[:-1]:
        layers += [nn.Linear(in_channels, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
        in_channels = width
    return nn.Sequential(*layers, nn.Linear(in_channels, widths[-1], bias=False))
