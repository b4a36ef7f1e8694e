"""Views of digits: random affine maps, crops and changes of contrast of whole batches of 28 x 28 images in memory.

Digits are not mirrored: a mirrored digit is another sign.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from sfrik.errors import SfrikError
from sfrik.views.geometric import PatchGrid, change_contrast, crop_batch, to_device
from sfrik.views.photos import OBOW_CROP_SCALE, OBOW_PATCH_SCALE, STATISTICS, swav_kinds

__all__ = ["affine_views", "digit_pipeline", "digit_views", "whole_digits"]

DIGIT_SCALE = (0.35, 1.0)  # crops of auh on MNIST5k: at the paper's 0.08, a crop rarely shows which digit it is


def digit_pipeline(augmentations: str, size: int, **crops: Any) -> Callable[[list[Tensor], Generator], list[Tensor]]:
    """The views of a batch of digits; arguments as for `sfrik.views.base.build_views`.

    Returns:
        A function of a batch [uint8 [n, 1, h, w]] and a generator on the CPU; the views are float32 [n, 1, side, side],
        normalised.

    Raises:
        SfrikError: the augmentations are not for digits, or the patches do not fit in the image.
    """
    if augmentations == "digits":
        return partial(affine_views, count=2)
    if augmentations == "auh":
        return partial(_crops, kinds=[(size, DIGIT_SCALE)] * 2)
    if augmentations == "swav":
        return partial(_crops, kinds=swav_kinds(**crops))
    if augmentations == "obow":
        return _Obow(size, **crops)
    raise SfrikError(f"augmentations {augmentations} are not for the digits of mnist5k: use digits, auh, obow or swav")


def digit_views(
    images: Tensor,
    generator: Generator,
    rotation: float = 25.0,
    scale: tuple[float, float] = (0.7, 1.3),
    shear: float = 20.0,
    shift: float = 0.15,
    contrast: float = 0.4,
) -> Tensor:
    """Apply a random affine map and a random change of contrast to each digit of a batch, without flips.

    The map is that of torchvision's RandomAffine, with an independent zoom along each axis.

    Args:
        images: uint8 [n, 1, h, w].
        generator: on the CPU, so that the draws do not depend on the device.
        rotation: largest angle of the rotation in degrees, in both directions.
        scale: smallest and largest zoom of an axis; its logarithm is uniform.
        shear: largest angle of the shear in degrees, in both directions.
        shift: largest shift as a fraction of the side.
        contrast: the values are multiplied by a factor from 1 - contrast to 1 + contrast.

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
    theta = torch.cat([linear, offset[:, :, None]], dim=2)  # [n, 2, 3]
    grid = F.affine_grid(to_device(theta, images.device), list(images.shape), align_corners=False)
    warped = F.grid_sample(images.float() / 255, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return _normalise(change_contrast(warped, generator, contrast))


def affine_views(batch: list[Tensor], generator: Generator, count: int) -> list[Tensor]:
    """`count` independent `digit_views` of a batch [uint8 [n, 1, h, w]]."""
    return [digit_views(batch[0], generator) for _ in range(count)]


def whole_digits(batch: list[Tensor], generator: Generator) -> list[Tensor]:
    """The digits of a batch [uint8 [n, 1, h, w]] unchanged except for the normalisation; `generator` is not used."""
    return [_normalise(batch[0].float() / 255)]


def _crops(batch: list[Tensor], generator: Generator, kinds: Sequence[tuple[int, tuple[float, float]]]) -> list[Tensor]:
    """One random crop for each side and range of scales in `kinds`."""
    return [_crop(batch[0], side, scale, generator) for side, scale in kinds]


@dataclass(frozen=True)
class _Obow:
    """OBoW's views: the whole digits at `size` pixels, crops of them, and patches of one more crop."""

    size: int
    num_img_crops: int
    image_crop_size: int
    num_img_patches: int
    img_patch_size: int

    def __post_init__(self) -> None:
        self._grid()  # raises if the patches do not fit

    def _grid(self) -> PatchGrid | None:
        return PatchGrid(self.size, self.img_patch_size, self.num_img_patches) if self.num_img_patches else None

    def __call__(self, batch: list[Tensor], generator: Generator) -> list[Tensor]:
        images, grid = batch[0], self._grid()
        whole = images.float() / 255
        if whole.shape[-1] != self.size:
            whole = F.interpolate(whole, (self.size, self.size), mode="bilinear", align_corners=False, antialias=True)
        crops = [_crop(images, self.image_crop_size, OBOW_CROP_SCALE, generator) for _ in range(self.num_img_crops)]
        patches = grid(_crop(images, self.size, OBOW_PATCH_SCALE, generator), generator) if grid else []
        return [_normalise(whole), *crops, *patches]


def _crop(images: Tensor, size: int, scale: tuple[float, float], generator: Generator) -> Tensor:
    """Crop each digit and change its contrast, both at random; uint8 [n, 1, h, w] -> [n, 1, size, size], normalised."""
    return _normalise(change_contrast(crop_batch(images.float() / 255, size, scale, generator), generator))


def _normalise(pixels: Tensor) -> Tensor:
    mean, std = STATISTICS["mnist5k"]
    return (pixels - mean[0]) / std[0]
