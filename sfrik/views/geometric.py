"""Random geometry of batches: resized crops, OBoW's grid of overlapping patches; and random contrast.

Digits are cropped by interpolation at points, photos by the antialiased resize of whole pixels that torchvision does.

Letters of the shapes: n images, c channels, h and w pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from sfrik.errors import SfrikError

__all__ = ["PatchGrid", "change_contrast", "crop_batch", "pixel_boxes", "random_boxes", "resize_boxes", "to_device"]

ATTEMPTS = 10  # draws of a box until it fits, as in torchvision's RandomResizedCrop
RATIO = (3 / 4, 4 / 3)  # of width to height of a crop: the default of RandomResizedCrop


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

    sides = _draw_sides(n, scale, generator)
    sides, fits = _first((sides <= 1).all(dim=-1), sides)
    sides = torch.where(fits[:, None], sides, torch.ones(n, 2))
    corner = torch.empty(n, 2).uniform_(generator=generator) * (1 - sides)
    return torch.cat([sides, corner], dim=1)


def pixel_boxes(n: int, height: int, width: int, scale: tuple[float, float], generator: Generator | None) -> Tensor:
    """Boxes of n random crops in whole pixels: the distribution of torchvision's RandomResizedCrop.

    As `random_boxes`, with the sides of a box rounded to whole pixels. If none of ten draws fits, the box is the largest one
    at the centre with an aspect ratio from 3/4 to 4/3.

    Args:
        n: number of boxes.
        height: of the images, in pixels.
        width: of the images, in pixels.
        scale: smallest and largest area, as a fraction of the image's.
        generator: on the CPU; PyTorch's default generator if None.

    Returns:
        Top, left, height and width in pixels, int64 [n, 4].
    """
    image = torch.tensor([width, height])
    sides = (_draw_sides(n, scale, generator) * math.sqrt(height * width)).round_()
    sides, fits = _first(((sides >= 1) & (sides <= image)).all(dim=-1), sides)
    corner = (torch.rand(n, 2, generator=generator) * (image - sides + 1)).floor_()
    largest = torch.tensor([min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))])
    centre = torch.cat([largest, (image - largest) // 2])
    boxes = torch.where(fits[:, None], torch.cat([sides, corner], dim=1).long(), centre)
    return boxes[:, [3, 2, 1, 0]]  # from width, height, left, top


def _draw_sides(n: int, scale: tuple[float, float], generator: Generator | None) -> Tensor:
    """Width and height of each attempt at each box, as fractions of the root of the image's area: [n, attempts, 2]."""
    area = torch.empty(n, ATTEMPTS).uniform_(*scale, generator=generator)
    ratio = torch.empty(n, ATTEMPTS).uniform_(math.log(RATIO[0]), math.log(RATIO[1]), generator=generator).exp_()
    return torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=-1)


def _first(fits: Tensor, sides: Tensor) -> tuple[Tensor, Tensor]:
    """The sides [n, 2] of the first of the attempts [n, attempts] that fits, and whether one does, [n]."""
    return sides[torch.arange(len(sides)), fits.int().argmax(dim=1)], fits.any(dim=1)


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
    grid = F.affine_grid(to_device(theta, pixels.device), [n, channels, size, size], align_corners=False)
    # "border": at the image's edge, the outer half of the last pixel is not blended with black
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def resize_boxes(
    pixels: Tensor,
    boxes: Tensor,
    mirrored: Tensor,
    size: tuple[int, int],
    interpolation: str,
    window: tuple[int, int, int, int] | None = None,
) -> Tensor:
    """Crop the box of each image, resize it with antialiasing, mirror some: torchvision's crop, resize and horizontal flip.

    The resize is separable and linear: a product of each image with a matrix for its rows and one for its columns.

    Args:
        pixels: float [n, c, h, w].
        boxes: top, left, height, width of v boxes of each image in pixels, int64 [v * n, 4]: the first box of each, the second of
            each, and so on. On the device of `pixels`.
        mirrored: bool [v * n], on the device of `pixels`.
        size: height and width of the resized boxes, in pixels.
        interpolation: "bilinear" or "bicubic".
        window: top, left, height and width of the part of a resized box that is computed, before it is mirrored; None: all.

    Returns:
        float [v * n, c, height, width]; bicubic interpolation overshoots the range of the values.
    """
    n, channels, height, width = pixels.shape
    top, left, rows, columns = window or (0, 0, *size)
    vertical = _resize_matrices(boxes[:, 0], boxes[:, 2], height, size[0], range(top, top + rows), interpolation)
    horizontal = _resize_matrices(boxes[:, 1], boxes[:, 3], width, size[1], range(left, left + columns), interpolation, mirrored)
    lines = pixels.transpose(1, 2).reshape(n, height, channels * width)
    fewer = lines.new_empty(len(boxes), rows, channels * width)
    for one, result in zip(vertical.split(n), fewer.split(n), strict=True):  # a product with all at once would copy the lines
        torch.bmm(one, lines, out=result)
    resized = fewer.view(-1, rows * channels, width) @ horizontal.mT  # [v * n, rows * c, columns]
    return resized.view(-1, rows, channels, columns).transpose(1, 2)


def _resize_matrices(
    start: Tensor, length: Tensor, size: int, resized: int, window: range, interpolation: str, mirrored: Tensor | None = None
) -> Tensor:
    r"""The matrices that resize intervals of a line of pixels by antialiased interpolation, as PIL and torch do.

    Pixel i of m resized ones has its centre at x_i = (i + 1/2) s in an interval of l pixels, with the scale s = l / m. The weight
    of the interval's pixel j is

    .. math:: w_{ij} = \frac{k(|j + 1/2 - x_i| / \max(s, 1))}{\sum_{j'} k(|j' + 1/2 - x_i| / \max(s, 1))},

    where k is the kernel of the interpolation: its support grows with s, so that no pixel is left out.

    Args:
        start: first pixel of each interval, [n].
        length: pixels of each interval, [n].
        size: pixels of the line.
        resized: m, pixels of the resized intervals.
        window: the resized pixels that are computed.
        interpolation: "bilinear" or "bicubic".
        mirrored: whether the order of the resized pixels is reversed, [n].

    Returns:
        float32 [n, pixels of the window, size].
    """
    device = start.device
    centre = torch.arange(window.start, window.stop, device=device) + 0.5
    if mirrored is not None:
        centre = torch.where(mirrored[:, None], centre.flip(0), centre)
    scale = (length / resized)[:, None]
    pixel = torch.arange(size, device=device) + 0.5 - start[:, None]
    pixel.masked_fill_((pixel < 0) | (pixel > length[:, None]), math.inf)  # outside of the interval the weight is 0
    distance = pixel[:, None, :] - (centre * scale)[:, :, None]
    weights = _KERNELS[interpolation](distance.abs_().div_(scale.clamp_(min=1)[:, :, None]))
    return weights.div_(weights.sum(dim=2, keepdim=True))


def _triangle(distance: Tensor) -> Tensor:
    """The kernel of linear interpolation."""
    return distance.neg_().add_(1).clamp_(min=0)


def _cubic(distance: Tensor) -> Tensor:
    r"""The kernel of cubic convolution (Keys 1981, "Cubic convolution interpolation for digital image processing") with a = -1/2.

    In one expression for both of its pieces, with u_+ = max(u, 0):

    .. math:: k(x) = (1 - 2 (1 - x)_+) (1 - x)_+^2 + \tfrac{1}{2} (1 - x) (2 - x)_+^2.
    """
    outer = distance.neg_().add_(2).clamp_(min=0)
    inner = outer - 1
    weights = outer.square_().mul_(inner).mul_(0.5)
    inner.clamp_(min=0)
    return weights.addcmul_(inner.square(), inner.mul_(-2).add_(1))


_KERNELS = {"bilinear": _triangle, "bicubic": _cubic}


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy values from the CPU to the device; on a GPU from pinned memory, so that nothing waits for the GPU's work."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def change_contrast(pixels: Tensor, generator: Generator | None, contrast: float = 0.4) -> Tensor:
    """Multiply the values of each image by a random factor from 1 - contrast to 1 + contrast, and clip them at 1.

    Args:
        pixels: float [n, c, h, w], in 0 to 1.
        generator: on the CPU; PyTorch's default generator if None.
        contrast: largest change of the factor.
    """
    factor = torch.empty(pixels.shape[0]).uniform_(1 - contrast, 1 + contrast, generator=generator)
    return (pixels * to_device(factor, pixels.device)[:, None, None, None]).clamp(0, 1)


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
        corners = to_device(self.corners(n, generator), images.device)
        within = torch.arange(self.patch_size, device=images.device)
        which = torch.arange(n, device=images.device)[:, None, None]
        views = []
        for row, column in (corners[:, k].unbind(dim=1) for k in range(self.count)):
            rows, columns = row[:, None, None] + within[:, None], column[:, None, None] + within
            views.append(images[which, :, rows, columns].permute(0, 3, 1, 2))  # indexing puts the channels last
        return views
