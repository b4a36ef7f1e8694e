r"""The augmentations: how several views of one image are drawn.

Two stages. `per_image` runs on one decoded image, in the workers of the data loader, and gives the tensors that they hand
over; `per_batch` runs on whole batches on the device of the network and gives the views. torchvision is imported where it is
used: it takes seconds, and the digits profile does without.

| images | `per_image`, seeded by epoch and image | `per_batch`, seeded by epoch and step |
|---|---|---|
| photographs, `input_pipeline` tensor | crop and resize, flip: bytes | jitter, grey, blur, solarise, normalise, grid: floats |
| photographs, `input_pipeline` pil | everything, on PIL images | nothing |
| digits, which live in memory as bytes | nothing | everything |

Both pipelines of photographs have the laws of the next table. Their pixels differ by rounding: "pil" rounds to bytes after each
step, "tensor" not after the resize. "tensor" makes a flip that comes last at once: the steps between do not know left from
right.

| name | crop | flip | jitter (brightness, contrast, saturation, hue), p | grey p | blur p | solarise p |
|---|---|---|---|---|---|---|
| vicreg | scale 0.08-1, bicubic | 0.5 | (0.4, 0.4, 0.2, 0.1), 0.8 | 0.2 | 1.0 first view, 0.1 second | 0, 0.2 |
| simclr | same | 0.5 | (0.8, 0.8, 0.8, 0.2), 0.8 | 0.2 | 0.5 | none |
| auh | same | 0.5 | (0.4, 0.4, 0.4, 0.4), 1.0 | 0.2 | none | none |
| obow: whole image | resize to 256 bilinear, centre crop 224 | 0.5 | none | none | none | none |
| obow: crops | scale 0.08-0.6, bilinear | 0.5, last | (0.4, 0.4, 0.4, 0.4), 0.8 | 0.2 | 0.5 | none |
| obow: patches | scale 0.6-1 to 256, bilinear; then the grid | 0.5, last | same | 0.2 | none | none |
| swav | scale of each size, bilinear | 0.5 | (0.8, 0.8, 0.8, 0.2), 0.8 | 0.2 | 0.5 | none |
| digits | random rotation, scale, shear, shift | none | contrast and brightness | - | - | - |
| digits in auh | scale 0.35-1, bilinear | none | same | - | - | - |
| digits in obow, swav | as obow, swav; the whole image as it is | none | same, not of the whole image | - | - | - |

The steps follow each other in the order of the columns, except where "last" says that the flip closes them. At another
`size` than 224 OBoW's 256 is 256/224 of it. STL10 and CIFAR-10 have OBoW's whole image and the images of its patches at
`size` itself, and jitter (0.4, 0.4, 0.4, 0.4) with p = 1 in OBoW and SwAV. Digits are not mirrored: a mirrored digit is
another sign. Their contrast is multiplied by 0.6 to 1.4. The least crop of their `auh`, 0.35 of the area, is ours: with the
paper's 0.08 the scores on the tuning split differed by less than their standard error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from sfrik.errors import SfrikError
from sfrik.views.geometric import PatchGrid, change_contrast, crop_batch
from sfrik.views.photos import (
    OBOW_CROP_SCALE,
    OBOW_PATCH_SCALE,
    SMALL,
    STATISTICS,
    fast_views,
    normalise,
    plain_views,
    policies,
    swav_kinds,
)

__all__ = ["Views", "build_views", "digit_views", "probe_views", "resize_for_test"]

DIGIT_SCALE = (0.35, 1.0)  # of auh on MNIST5k: a twelfth of a digit's image seldom shows which digit it is

PerImage = Callable[[Any], tuple[Tensor, ...]]
PerBatch = Callable[[list[Tensor], Generator], list[Tensor]]


@dataclass(frozen=True)
class Views:
    """How a batch of views comes about.

    Attributes:
        per_image: image -> the tensors [c, h, w] that the workers hand over; None for images that are kept as tensors.
        per_batch: ([tensor [n, c, h, w], ...], generator) -> the views, each [n, c, h, w], normalised.
        of_tensors: whether `per_image` takes a decoded image as uint8 [3, h, w], and not a PIL image.
    """

    per_image: PerImage | None
    per_batch: PerBatch
    of_tensors: bool = False


def build_views(augmentations: str, size: int, dataset: str, input_pipeline: str = "pil", **crops: Any) -> Views:
    """The views of `augmentations`, in the order of `PretrainSettings.view_sizes`.

    Args:
        augmentations: vicreg, simclr, auh, digits: two views; obow: the whole image, crops, patches; swav: the crops of
            the first size, of the second, and so on.
        size: side of the two views, of OBoW's whole image, in pixels; SwAV does not use it.
        dataset: name of the images; mnist5k's are digits in memory, which get views per batch.
        input_pipeline: "tensor" or "pil", for photographs: what runs where, see above.
        crops: `PretrainSettings.crops`. obow: num_img_crops, image_crop_size, num_img_patches, img_patch_size; swav:
            nmb_crops, size_crops, min_scale_crops, max_scale_crops, each with one value a size; the others: none.

    Raises:
        SfrikError: unknown augmentations or input_pipeline; augmentations not for digits; patches that do not fit in the image.
    """
    if augmentations == "digits":
        return Views(None, lambda batch, generator: [digit_views(batch[0], generator) for _ in range(2)])
    if augmentations not in ("vicreg", "simclr", "auh", "obow", "swav"):
        raise SfrikError(f"unknown augmentations {augmentations}: choose one of vicreg, simclr, auh, obow, swav, digits")
    if input_pipeline not in ("tensor", "pil"):
        raise SfrikError(f"unknown input_pipeline {input_pipeline}: choose tensor or pil")
    if dataset == "mnist5k":
        of_digits = {"auh": _auh_digits, "obow": _obow_digits, "swav": _swav_digits}.get(augmentations)
        if of_digits is None:
            raise SfrikError(f"augmentations {augmentations} are not for the digits of mnist5k: use digits, auh, obow or swav")
        return Views(None, of_digits(size, **crops))
    views = policies(augmentations, size, dataset, **crops)
    if input_pipeline == "tensor":
        return Views(*fast_views(views, dataset), of_tensors=True)
    return Views(plain_views(views, dataset), _as_they_are)


def probe_views(size: int, dataset: str) -> Views:
    """The one augmented view that a linear probe trains on: random crop and flip (digits: the digits profile's affine map)."""
    if dataset == "mnist5k":
        return Views(None, lambda batch, generator: [digit_views(batch[0], generator)])
    from torchvision.transforms import v2

    crop = v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(), normalise(dataset)])
    return Views(lambda image: (crop(image),), _as_they_are)


def resize_for_test(size: int, dataset: str) -> Views:
    """The whole image: shorter side to 256/224 of `size` by bicubic interpolation, centre crop; small images as they are."""
    if dataset == "mnist5k":
        return Views(None, lambda batch, generator: [_normalise_digits(batch[0].float() / 255)])
    from torchvision.transforms import v2

    steps = []
    if dataset not in SMALL:
        steps = [v2.Resize(round(size * 256 / 224), v2.InterpolationMode.BICUBIC), v2.CenterCrop(size)]
    whole = v2.Compose([*steps, normalise(dataset)])
    return Views(lambda image: (whole(image),), _as_they_are)


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
    pixels = images.float() / 255
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    warped = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return _normalise_digits(change_contrast(warped, generator, contrast))


def _normalise_digits(pixels: Tensor) -> Tensor:
    mean, std = STATISTICS["mnist5k"]
    return (pixels - mean[0]) / std[0]


def _digit_crop(images: Tensor, size: int, scale: tuple[float, float], generator: Generator) -> Tensor:
    """A random crop of each digit at `size` pixels and a change of contrast; bytes [n, 1, h, w] in, normalised out."""
    return _normalise_digits(change_contrast(crop_batch(images.float() / 255, size, scale, generator), generator))


def _auh_digits(size: int) -> PerBatch:
    return lambda batch, generator: [_digit_crop(batch[0], size, DIGIT_SCALE, generator) for _ in range(2)]


def _obow_digits(size: int, *, num_img_crops: int, image_crop_size: int, num_img_patches: int, img_patch_size: int) -> PerBatch:
    grid = PatchGrid(size, img_patch_size, num_img_patches) if num_img_patches else None

    def views(batch: list[Tensor], generator: Generator) -> list[Tensor]:
        images = batch[0]
        whole = images.float() / 255
        if whole.shape[-1] != size:
            whole = F.interpolate(whole, (size, size), mode="bilinear", align_corners=False, antialias=True)
        crops = [_digit_crop(images, image_crop_size, OBOW_CROP_SCALE, generator) for _ in range(num_img_crops)]
        patches = grid(_digit_crop(images, size, OBOW_PATCH_SCALE, generator), generator) if grid else []
        return [_normalise_digits(whole), *crops, *patches]

    return views


def _swav_digits(size: int, **crops) -> PerBatch:
    kinds = swav_kinds(**crops)
    return lambda batch, generator: [_digit_crop(batch[0], side, scale, generator) for side, scale in kinds]


def _as_they_are(batch: list[Tensor], generator: Generator) -> list[Tensor]:
    return batch
