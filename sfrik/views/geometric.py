"""Random geometry of batches: resized crops by interpolation, OBoW's grid of overlapping patches; and random contrast.

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
    """Boxes of n random crops of a square.

    The area is uniform over `scale`, the logarithm of the aspect ratio width / height over log(3/4) to log(4/3). A box that
    does not fit in the square is redrawn; after ten draws the whole square is taken. This is the distribution of
    torchvision's RandomResizedCrop, without its rounding to whole pixels, which would be coarse in small images.

    Args:
        n: number of boxes.
        scale: smallest and largest area, as a fraction of the square's.
        generator: on the CPU; PyTorch's default generator if None.

    Returns:
        Width, height, left and top as fractions of the side, float32 [n, 4].
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
    """Crop each image at random and resize it by bilinear interpolation, as torchvision's RandomResizedCrop does.

    Args:
        pixels: float [n, c, h, w].
        size: side of the crops, in pixels.
        scale: smallest and largest fraction of the image's area.
        generator: on the CPU, so that the draws do not depend on the device; PyTorch's default generator if None.

    Returns:
        float [n, c, size, size].
    """
    n, channels = pixels.shape[:2]
    width, height, left, top = random_boxes(n, scale, generator).unbind(dim=1)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width, height
    # coordinates of a grid run from -1 to 1; these are those of the middle of the box
    theta[:, 0, 2], theta[:, 1, 2] = 2 * left + width - 1, 2 * top + height - 1
    grid = F.affine_grid(theta.to(pixels.device), [n, channels, size, size], align_corners=False)
    # "border": at the image's edge, the outer half of the last pixel is not blended with black
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def change_contrast(pixels: Tensor, generator: Generator | None, contrast: float = 0.4) -> Tensor:
    """Multiply the values of each image by a random factor from 1 - contrast to 1 + contrast, and clip them at 1.

    Args:
        pixels: float [n, c, h, w], in 0 to 1.
        generator: on the CPU; PyTorch's default generator if None.
        contrast: largest change of the factor.
    """
    factor = torch.empty(pixels.shape[0]).uniform_(1 - contrast, 1 + contrast, generator=generator)
    return (pixels * factor.to(pixels.device)[:, None, None, None]).clamp(0, 1)


class PatchGrid:
    """Overlapping patches of a 3 x 3 grid, each shifted at random; some of the nine are drawn without replacement.

    Patch (i, j) has its upper left corner at (i * step + a, j * step + b) with step = (image_size - patch_size - shift) // 2
    and a, b uniform over the whole numbers from 0 to shift. The shift is OBoW's 24 pixels (Gidaris et al. 2021), in images
    under 96 pixels 24/256 of the side.

    Args:
        image_size: side of the images in pixels.
        patch_size: side of the patches in pixels.
        count: number of patches per image, 0 to 9.

    Raises:
        SfrikError: the patches with their shift do not fit in the image, or `count` is above nine.
    """

    per_side = 3

    def __init__(self, image_size: int, patch_size: int, count: int) -> None:
        self.shift = 24 if image_size >= 96 else round(image_size * 24 / 256)
        largest = image_size - self.shift
        if not 1 <= patch_size <= largest:
            raise SfrikError(
                f"img_patch_size {patch_size} does not fit: patches of images of {image_size} pixels, shifted by up to "
                f"{self.shift}, have 1 to {largest} pixels"
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
        """Cut the patches of a batch.

        Args:
            images: [n, c, image_size, image_size].
            generator: on the CPU; PyTorch's default generator if None.

        Returns:
            `count` tensors [n, c, patch_size, patch_size].
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
