"""Random steps on batches of tensors: resized crops by interpolation, contrast, OBoW's grid of overlapping patches.

Letters of the shapes: n images, c channels, h and w pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from sfrik.errors import SfrikError

__all__ = ["PatchGrid", "change_contrast", "crop_batch", "random_boxes"]

ATTEMPTS = 10  # draws of a box until it fits, as in torchvision's RandomResizedCrop


def random_boxes(n: int, scale: tuple[float, float], generator: Generator | None) -> Tensor:
    """Boxes of n random crops of a square: width, height, left, top as shares of its side, float32 [n, 4].

    The area is uniform over `scale`, the logarithm of the aspect ratio width / height over log(3/4) to log(4/3). A box that
    does not fit in the square is drawn anew; after ten draws the whole square is taken. This is the law of torchvision's
    RandomResizedCrop, but for its rounding to whole pixels, which in small images would be coarse.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(shape).uniform_(low, high, generator=generator)

    area = uniform(*scale, n, ATTEMPTS)
    ratio = torch.exp(uniform(math.log(3 / 4), math.log(4 / 3), n, ATTEMPTS))
    sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=-1)  # [n, attempts, 2]
    fits = (sides <= 1).all(dim=-1)
    first = fits.int().argmax(dim=1)
    sides = torch.where(fits.any(dim=1)[:, None], sides[torch.arange(n), first], torch.ones(n, 2))
    corner = uniform(0, 1, n, 2) * (1 - sides)
    return torch.cat([sides, corner], dim=1)


def crop_batch(pixels: Tensor, size: int, scale: tuple[float, float], generator: Generator | None) -> Tensor:
    """A random resized crop of each image by bilinear interpolation, never mirrored.

    Args:
        pixels: float [n, c, h, w].
        size: side of the crops, in pixels.
        scale: least and largest share of the image's area.
        generator: on the CPU, so that the draws are the same whatever the device.

    Returns:
        float [n, c, size, size].
    """
    n, channels = pixels.shape[:2]
    width, height, left, top = random_boxes(n, scale, generator).unbind(dim=1)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width, height
    # a grid's coordinates run from -1 to 1: the middle of the box, in these
    theta[:, 0, 2], theta[:, 1, 2] = 2 * left + width - 1, 2 * top + height - 1
    grid = F.affine_grid(theta.to(pixels.device), [n, channels, size, size], align_corners=False)
    # where the crop reaches the border, the outer half of the last pixel is that pixel and not a blend with black
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def change_contrast(pixels: Tensor, generator: Generator | None, contrast: float = 0.4) -> Tensor:
    """Each image's values [n, c, h, w] in 0 to 1 multiplied by its own factor of 1 - contrast to 1 + contrast, cut at 1."""
    factor = torch.empty(pixels.shape[0]).uniform_(1 - contrast, 1 + contrast, generator=generator)
    return (pixels * factor.to(pixels.device)[:, None, None, None]).clamp(0, 1)


class PatchGrid:
    """Patches of a 3 x 3 grid that overlap, each moved by a random shift; some of the nine are drawn without repetition.

    Cell (i, j) has its upper left corner at (i * step + a, j * step + b) with step = (image_size - patch_size - shift) // 2
    and a, b uniform over the whole numbers 0 .. shift. The shift is OBoW's 24 pixels, for images under 96 pixels 24/256 of
    the side.

    Raises:
        SfrikError: the patches with their shift do not fit in the image, or more than nine are asked for.
    """

    per_side = 3

    def __init__(self, image_size: int, patch_size: int, count: int) -> None:
        self.shift = 24 if image_size >= 96 else round(image_size * 24 / 256)
        largest = image_size - self.shift
        if not 1 <= patch_size <= largest:
            raise SfrikError(
                f"img_patch_size {patch_size} does not fit: patches of images of {image_size} pixels, moved by up to "
                f"{self.shift}, have 1 to {largest}"
            )
        if not 0 <= count <= self.per_side**2:
            raise SfrikError(f"num_img_patches must be 0 to {self.per_side**2}, got {count}")
        self.image_size, self.patch_size, self.count = image_size, patch_size, count
        self.step = (image_size - patch_size - self.shift) // (self.per_side - 1)

    def corners(self, n: int, generator: Generator | None = None) -> Tensor:
        """Row and column of the upper left corner of each patch of n images, int64 [n, count, 2]."""
        cells = torch.rand(n, self.per_side**2, generator=generator).argsort(dim=1)[:, : self.count]
        shifts = torch.randint(0, self.shift + 1, (n, self.count, 2), generator=generator)
        return torch.stack([cells // self.per_side, cells % self.per_side], dim=-1) * self.step + shifts

    def __call__(self, images: Tensor, generator: Generator | None = None) -> list[Tensor]:
        """`count` views [n, c, patch_size, patch_size] of images [n, c, image_size, image_size].

        generator: on the CPU; PyTorch's own where it is None.
        """
        n = images.shape[0]
        corners = self.corners(n, generator).to(images.device)
        within = torch.arange(self.patch_size, device=images.device)
        which = torch.arange(n, device=images.device)[:, None, None]
        views = []
        for row, column in (corners[:, k].unbind(dim=1) for k in range(self.count)):
            rows, columns = row[:, None, None] + within[:, None], column[:, None, None] + within
            views.append(images[which, :, rows, columns].permute(0, 3, 1, 2))  # indexing puts the channels last
        return views
