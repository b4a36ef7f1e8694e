r"""Random colours of batches, on the device of the network: jitter, grey, blur, solarise, normalise.

Each image has its own draws, from a generator on the CPU, so that they do not depend on the device. The steps are those of
the PIL pipeline, in float32 instead of bytes: values are clipped to 0 to 1 after each step, but not rounded.

Letters of the shapes: n images, h and w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from sfrik.views.geometric import to_device

__all__ = [
    "Colour",
    "Draws",
    "along_by_convolution",
    "along_by_shifts",
    "box_kernels",
    "change_colours",
    "join",
    "shift_hue",
]

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, PIL's weights of red, green and blue in grey
BLUR_RADIUS = (0.1, 2.0)  # standard deviation in pixels
BLUR_PASSES = 3  # of PIL's box
# Values processed at a time. On a CPU a few views of 224 x 224, or 340 of 32 x 32: with fewer, the calls take longer than their
# work. On a GPU enough to keep it busy: a copy of a whole batch of 2048 views of 224 x 224 would take 1.2 GB.
PIECE, PIECE_OF_CPU = 2**25, 2**20


@dataclass(frozen=True)
class Colour:
    """The distribution of the colours of one view.

    Attributes:
        jitter: largest change of brightness, contrast, saturation (factors from 1 - b to 1 + b) and hue (a fraction of the
            circle), as of torchvision's ColorJitter.
        jitter_p: probability of the jitter.
        grey_p: probability of a grey image, as of torchvision's RandomGrayscale.
        blur_p: probability of a Gaussian blur with a standard deviation of 0.1 to 2 pixels; None: no such step.
        solarise_p: probability of solarising values of 128 or more of 255, as of torchvision's RandomSolarize; None: no such
            step.
    """

    jitter: tuple[float, float, float, float]
    jitter_p: float
    grey_p: float = 0.2
    blur_p: float | None = None
    solarise_p: float | None = None

    def draw(self, n: int, generator: Generator) -> Draws:
        """Draw the steps of each of n images; `generator` is on the CPU."""

        def uniform(low: float, high: float) -> Tensor:
            return torch.empty(n).uniform_(low, high, generator=generator)

        def chosen(p: float | None) -> Tensor:
            return torch.zeros(n, dtype=torch.bool) if p is None else torch.rand(n, generator=generator) < p

        jittered = chosen(self.jitter_p)
        order = torch.rand(n, 4, generator=generator).argsort(dim=1)
        *factors, hue = self.jitter
        factors = [uniform(max(0.0, 1 - most), 1 + most) for most in factors]
        factors = torch.stack([*factors, uniform(-hue, hue)], dim=1)
        return Draws(
            torch.where(jittered[:, None], order, -1),
            factors,
            chosen(self.grey_p),
            torch.where(chosen(self.blur_p), uniform(*BLUR_RADIUS), 0.0),
            chosen(self.solarise_p),
        )


@dataclass(frozen=True)
class Draws:
    """The steps of each of n images, as tensors on the CPU.

    Attributes:
        order: int64 [n, 4], the steps of the jitter (0 brightness, 1 contrast, 2 saturation, 3 hue) in the order in which they
            are applied; -1 without jitter.
        factors: float32 [n, 4]: factors of brightness, contrast and saturation; shift of the hue as a fraction of the circle.
        grey: bool [n].
        radius: float32 [n], standard deviation of the blur in pixels; 0 without blur.
        solarised: bool [n].
    """

    order: Tensor
    factors: Tensor
    grey: Tensor
    radius: Tensor
    solarised: Tensor

    def rows(self, which: slice) -> Draws:
        """The draws of a slice of the images."""
        return Draws(*(getattr(self, name)[which] for name in self.__dataclass_fields__))


def join(parts: Sequence[Draws]) -> Draws:
    """The draws of several batches, one after the other."""
    return Draws(*(torch.cat([getattr(part, name) for part in parts]) for name in Draws.__dataclass_fields__))


def change_colours(
    images: Tensor, draws: Draws | None, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> Tensor:
    """Apply the draws to the images and normalise them.

    Args:
        images: bytes, or floats in 0 to 255, [n, 3, h, w], of any strides, on any device.
        draws: the steps of each image; None: no steps.
        mean: mean of each channel, in 0 to 1; None: the images are not normalised.
        std: standard deviation of each channel.

    Returns:
        float32 [n, 3, h, w], contiguous, in 0 to 1 before the normalisation.
    """
    result = torch.empty(images.shape, device=images.device)
    statistics = None
    if mean is not None and std is not None:
        statistics = to_device(torch.tensor([mean, std])[:, :, None, None], images.device)
    rows = max(1, (PIECE_OF_CPU if images.device.type == "cpu" else PIECE) // images[0].numel())
    for start in range(0, len(images), rows):
        which = slice(start, start + rows)
        pixels = result[which].copy_(images[which]).mul_(1 / 255)
        if draws is not None:
            _apply(pixels, draws.rows(which))
        if statistics is not None:
            pixels.sub_(statistics[0]).div_(statistics[1])
    return result


def _apply(pixels: Tensor, draws: Draws) -> None:
    """Change the images [n, 3, h, w] in place. A step is computed of the images that have it, and of no others."""
    # on the CPU: which step is applied to which image, [steps, n]
    jitter = (draws.order.T[:, None] == torch.arange(4)[:, None]).flatten(0, 1)
    chosen = torch.cat([jitter, torch.stack([draws.grey, draws.radius > 0, draws.solarised])])
    step, image = chosen.nonzero().unbind(dim=1)
    parameters = torch.cat([draws.factors, draws.radius[:, None]], dim=1)[image, PARAMETER[step]]
    # one transfer, as 32 bits each
    image, parameters = to_device(torch.stack([image.int(), parameters.view(torch.int32)]), pixels.device)
    counts = chosen.sum(dim=1).tolist()
    parts = zip(STEPS, image.long().split(counts), parameters.view(torch.float32).split(counts), strict=True)
    for apply, where, parameter in parts:
        if len(where) == len(pixels):
            pixels.copy_(apply(pixels, parameter))
        elif len(where):
            pixels.index_copy_(0, where, apply(pixels.index_select(0, where), parameter))


def _luma(pixels: Tensor) -> Tensor:
    """Luminance, [n, 3, ...] -> [n, 1, ...]."""
    red, green, blue = pixels.split(1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def _grey(pixels: Tensor, _: Tensor) -> Tensor:
    """Three equal channels."""
    return _luma(pixels).expand_as(pixels)


def _solarise(pixels: Tensor, _: Tensor) -> Tensor:
    """PIL inverts bytes of 128 or more, that is values above the middle."""
    return torch.minimum(pixels, 1 - pixels)


def _blend(pixels: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """other + factor * (pixels - other), clipped to 0 and 1."""
    factor = factor[:, None, None, None]
    return torch.addcmul(other * (1 - factor), pixels, factor).clamp_(0, 1)


def _brightness(pixels: Tensor, factor: Tensor) -> Tensor:
    return (pixels * factor[:, None, None, None]).clamp_(max=1)


def _contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean of the grey image, which PIL rounds to a byte."""
    mean = _luma(pixels.mean(dim=(2, 3), keepdim=True))
    return _blend(pixels, (mean * 255 + 0.5).floor() / 255, factor)


def _saturation(pixels: Tensor, factor: Tensor) -> Tensor:
    return _blend(pixels, _luma(pixels), factor)


def shift_hue(pixels: Tensor, shift: Tensor) -> Tensor:
    r"""Shift the hue of each image; value and saturation of HSV do not change.

    With the largest value V, the chroma C (largest minus smallest value) and the hue H in sixths of the circle, the channels are

    .. math:: V - C \min(1, \max(0, 2 - |d_k|)), \qquad d_k = H + (3, 1, -1)_k \text{ wrapped into } [-3, 3),

    for red, green and blue.

    Args:
        pixels: float [n, 3, h, w], in 0 to 1.
        shift: fraction of the circle, float [n].
    """
    red, green, blue = pixels.unbind(dim=1)  # [n, h, w]
    largest = torch.maximum(torch.maximum(red, green), blue)
    chroma = largest - torch.minimum(torch.minimum(red, green), blue)
    inverse = chroma.clamp(min=1e-6).reciprocal_()
    from_green = (blue - red).mul_(inverse).add_(2)
    from_blue = (red - green).mul_(inverse).add_(4)
    hue = torch.where(largest == green, from_green, from_blue)
    hue = torch.where(largest == red, (green - blue).mul_(inverse), hue).add_(6 * shift[:, None, None])
    turned = torch.empty_like(pixels)
    for channel, offset in enumerate((3.0, 1.0, -1.0)):
        distance = hue + offset
        distance.sub_((distance / 6).round_(), alpha=6).abs_()
        torch.addcmul(largest, distance.neg_().add_(2).clamp_(0, 1), chroma, value=-1, out=turned[:, channel])
    return turned


def _blur(pixels: Tensor, radius: Tensor) -> Tensor:
    """Blur each image with a standard deviation of `radius` [n] pixels as PIL's GaussianBlur does: by three boxes.

    The kernel is the convolution of three boxes of `box_kernels`; the border is padded with its pixels.
    """
    box = box_kernels(radius)  # [n, taps]
    kernel = _convolve(_convolve(box, box), box)
    along = along_by_shifts if pixels.device.type == "cpu" else along_by_convolution
    return along(along(pixels, kernel, 3), kernel, 2)


# In the order in which they are applied: the four of the jitter at each of their four places, and the others.
STEPS = (*(_brightness, _contrast, _saturation, shift_hue) * 4, _grey, _blur, _solarise)
PARAMETER = torch.tensor([*range(4)] * 4 + [4] * 3)  # of each step: the column in the factors and the radius


def along_by_shifts(pixels: Tensor, kernel: Tensor, axis: int) -> Tensor:
    """Convolve images [n, c, h, w] with their symmetric kernels [n, taps] along axis 2 or 3, tap by tap; faster on a CPU."""
    reach, size = kernel.shape[1] // 2, pixels.shape[axis]
    kernel = kernel[:, :, None, None, None]
    padded = F.pad(pixels, (reach, reach, 0, 0) if axis == 3 else (0, 0, reach, reach), mode="replicate")
    result = padded.narrow(axis, reach, size) * kernel[:, reach]
    for shift in range(1, reach + 1):
        both = padded.narrow(axis, reach - shift, size) + padded.narrow(axis, reach + shift, size)
        result.addcmul_(both, kernel[:, reach + shift])
    return result


def along_by_convolution(pixels: Tensor, kernel: Tensor, axis: int) -> Tensor:
    """The same as `along_by_shifts` by one grouped convolution; faster on a GPU."""
    n, channels = pixels.shape[:2]
    reach = kernel.shape[1] // 2
    padded = F.pad(pixels, (reach, reach, 0, 0) if axis == 3 else (0, 0, reach, reach), mode="replicate").flatten(0, 1)[None]
    kernel = kernel.repeat_interleave(channels, dim=0)[:, None]  # [n * channels, 1, taps]
    return F.conv2d(padded, kernel.unsqueeze(5 - axis), groups=n * channels).view_as(pixels)


def box_kernels(radius: Tensor) -> Tensor:
    r"""The extended box of each standard deviation `radius` [n], up to 2 pixels: weights [n, 5] that sum to 1.

    Gwosdek, Grewenig, Bruhn and Weickert, "Theoretical foundations of Gaussian convolution by extended box filtering" (2011):
    a box of whole half-width l, whose two outer weights are a times the inner ones, and whose variance v is that of the
    Gaussian divided by the number of passes,

    .. math:: l = \lfloor (\sqrt{12 v + 1} - 1) / 2 \rfloor, \qquad a = \frac{(2 l + 1) (l (l + 1) - 3 v)}{6 (v - (l + 1)^2)}.
    """
    variance = radius.square() / BLUR_PASSES
    whole = ((12 * variance + 1).sqrt() - 1).div(2).floor()
    outer = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    reach = 2  # enough for a radius up to 2
    distance = torch.arange(-reach, reach + 1, device=radius.device).abs()
    weights = torch.where(distance <= whole[:, None], 1.0, torch.where(distance == whole[:, None] + 1, outer[:, None], 0.0))
    return weights / weights.sum(dim=1, keepdim=True)


def _convolve(one: Tensor, other: Tensor) -> Tensor:
    """Full convolution of kernels [n, a] and [n, b]: [n, a + b - 1]."""
    taps = other.shape[1]
    return F.conv1d(F.pad(one, (taps - 1,) * 2)[None], other.flip(1)[:, None], groups=len(one))[0]
