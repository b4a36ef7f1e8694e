r"""The augmentations: how several views of one image are drawn.

Two stages. `per_image` runs on a decoded PIL image, in the workers of the data loader, and gives one tensor a view;
`per_batch` runs on whole batches on the device of the network. The paper's augmentations are all per image; the
desk profile's digits, which live in memory as bytes, are all per batch. torchvision is imported where it is used: it takes
seconds, and the desk profile does without.

| name | crop | flip | jitter (brightness, contrast, saturation, hue), p | grey p | blur p | solarise p |
|---|---|---|---|---|---|---|
| vicreg | scale 0.08-1, bicubic | 0.5 | (0.4, 0.4, 0.2, 0.1), 0.8 | 0.2 | 1.0 first view, 0.1 second | 0, 0.2 |
| simclr | same | 0.5 | (0.8, 0.8, 0.8, 0.2), 0.8 | 0.2 | 0.5 | none |
| auh | same | 0.5 | (0.4, 0.4, 0.4, 0.4), 1.0 | 0.2 | none | none |
| digits | random rotation, scale, shear, shift | none | contrast and brightness | - | - | - |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Generator, Tensor

if TYPE_CHECKING:
    from torchvision.transforms import v2

__all__ = ["Views", "build_views", "digit_views", "normalise", "probe_views", "resize_for_test"]

STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "stl10": ((0.441, 0.428, 0.387), (0.268, 0.261, 0.269)),
    "cifar10": ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
    "mnist5k": ((0.131,), (0.308,)),
}


@dataclass(frozen=True)
class Views:
    """How a batch of views comes about.

    Attributes:
        per_image: PIL image -> one tensor [c, h, w] a view; None for images that are kept as tensors.
        per_batch: ([tensor [n, c, h, w], ...], generator) -> the views, each [n, c, h, w], normalised.
    """

    per_image: Callable[[Image.Image], tuple[Tensor, ...]] | None
    per_batch: Callable[[list[Tensor], Generator], list[Tensor]]


def build_views(augmentations: str, size: int, dataset: str) -> Views:
    """The two views of `augmentations` (vicreg, simclr, auh, digits) at `size` pixels."""
    if augmentations == "digits":
        return Views(None, lambda batch, generator: [digit_views(batch[0], generator) for _ in range(2)])
    pipelines = tuple(_pipeline(augmentations, view, size, dataset) for view in range(2))
    return Views(lambda image: tuple(pipeline(image) for pipeline in pipelines), _as_they_are)


def probe_views(size: int, dataset: str) -> Views:
    """The one augmented view that a linear probe trains on: random crop and flip (digits: the desk's affine map)."""
    if dataset == "mnist5k":
        return Views(None, lambda batch, generator: [digit_views(batch[0], generator)])
    from torchvision.transforms import v2

    crop = v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(), normalise(dataset)])
    return Views(lambda image: (crop(image),), _as_they_are)


def resize_for_test(size: int, dataset: str) -> Views:
    """The whole image: shorter side to 256/224 of `size` by bicubic interpolation, centre crop; small images as they are."""
    if dataset == "mnist5k":
        return Views(None, lambda batch, generator: [_bytes_to_float(batch[0], dataset)])
    from torchvision.transforms import v2

    steps = []
    if dataset not in ("stl10", "cifar10"):
        steps = [v2.Resize(round(size * 256 / 224), v2.InterpolationMode.BICUBIC), v2.CenterCrop(size)]
    whole = v2.Compose([*steps, normalise(dataset)])
    return Views(lambda image: (whole(image),), _as_they_are)


def normalise(dataset: str) -> v2.Transform:
    """PIL image -> normalised float tensor [c, h, w]."""
    from torchvision.transforms import v2

    mean, std = STATISTICS.get(dataset, STATISTICS["imagenet"])
    return v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])


def digit_views(
    images: Tensor,
    generator: Generator,
    rotation: float = 25.0,
    scale: tuple[float, float] = (0.7, 1.3),
    shear: float = 20.0,
    shift: float = 0.15,
    contrast: float = 0.4,
) -> Tensor:
    """A random affine map and change of contrast for each digit of a batch; no flips, which would make other digits.

    Args:
        images: uint8 [n, 1, h, w].
        generator: on the CPU, so that the draws are the same whatever the device.
        rotation, shear: largest angle in degrees.
        shift: largest shift as a share of the side.
        contrast: the digit's values are multiplied by a factor of 1 - contrast to 1 + contrast.

    Returns:
        float32 [n, 1, h, w], normalised.
    """
    n = images.shape[0]

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(n).uniform_(low, high, generator=generator)

    angle = uniform(-rotation, rotation) * (math.pi / 180)
    slant = torch.tan(uniform(-shear, shear) * (math.pi / 180))
    zoom = torch.exp(torch.empty(n, 2).uniform_(math.log(scale[0]), math.log(scale[1]), generator=generator))
    cos, sin = torch.cos(angle), torch.sin(angle)
    rotate = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], 1)  # [n, 2, 2]
    slanted = torch.eye(2).repeat(n, 1, 1)
    slanted[:, 0, 1] = slant
    linear = rotate @ slanted / zoom[:, None, :]
    offset = torch.stack([uniform(-2 * shift, 2 * shift), uniform(-2 * shift, 2 * shift)], -1)
    theta = torch.cat([linear, offset[:, :, None]], dim=2).to(images.device)  # [n, 2, 3]
    factor = uniform(1 - contrast, 1 + contrast).to(images.device)[:, None, None, None]
    pixels = images.float() / 255
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    warped = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    mean, std = STATISTICS["mnist5k"]
    return ((warped * factor).clamp(0, 1) - mean[0]) / std[0]


def _pipeline(augmentations: str, view: int, size: int, dataset: str) -> v2.Transform:
    from torchvision.transforms import v2

    crop = v2.RandomResizedCrop(size, scale=(0.08, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    after = []
    if augmentations == "vicreg":
        jitter, jitter_p = v2.ColorJitter(0.4, 0.4, 0.2, 0.1), 0.8
        after = [GaussianBlur(p=(1.0, 0.1)[view]), v2.RandomSolarize(threshold=128, p=(0.0, 0.2)[view])]
    elif augmentations == "simclr":
        jitter, jitter_p = v2.ColorJitter(0.8, 0.8, 0.8, 0.2), 0.8
        after = [GaussianBlur(p=0.5)]
    else:
        jitter, jitter_p = v2.ColorJitter(0.4, 0.4, 0.4, 0.4), 1.0
    colour = [v2.RandomApply([jitter], p=jitter_p), v2.RandomGrayscale(p=0.2)]
    return v2.Compose([crop, v2.RandomHorizontalFlip(), *colour, *after, normalise(dataset)])


class GaussianBlur:
    """PIL's Gaussian blur with a radius drawn from U[0.1, 2.0], with probability p."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        if torch.rand(()) >= self.p:
            return image
        return image.filter(ImageFilter.GaussianBlur(radius=float(torch.empty(()).uniform_(0.1, 2.0))))


def _bytes_to_float(images: Tensor, dataset: str) -> Tensor:
    mean, std = STATISTICS[dataset]
    return (images.float() / 255 - mean[0]) / std[0]


def _as_they_are(batch: list[Tensor], generator: Generator) -> list[Tensor]:
    return batch
