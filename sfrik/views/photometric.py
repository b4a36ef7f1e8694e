r"""The random colours of a batch of views, on the device of the network: jitter, grey, blur, solarise, normalise.

Each image has its own draws, from a generator on the CPU, so that they are the same whatever the device. The steps are those
of PIL that the plain pipeline takes, in float32 instead of bytes: values are in 0 to 1 and are cut there after each step, but
not rounded.

Letters of the shapes: n images, h and w pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

__all__ = ["Colour", "Draws", "along_by_convolution", "along_by_shifts", "box_kernels", "change_colours", "shift_hue"]

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, PIL's weights of red, green and blue in grey
BLUR_RADIUS = (0.1, 2.0)  # standard deviation in pixels
BLUR_PASSES = 3  # of PIL's box
# Values that are worked on at once. On a CPU one view of 224 x 224: it and what is computed from it stay in the cache. On a GPU
# enough to keep it busy: each copy of a whole batch of 2048 such views would take 1.2 GB.
PIECE, PIECE_OF_CPU = 2**25, 2**18


@dataclass(frozen=True)
class Colour:
    """The law of the colours of one view; a step that is None is not among them.

    Attributes:
        jitter: largest change of brightness, contrast, saturation (factors of 1 - b to 1 + b) and hue (a share of the circle).
        jitter_p, grey_p, blur_p, solarise_p: the chance of each step.
    """

    jitter: tuple[float, float, float, float]
    jitter_p: float
    grey_p: float = 0.2
    blur_p: float | None = None
    solarise_p: float | None = None

    def draw(self, n: int, generator: Generator) -> Draws:
        """What happens to each of n images."""

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
    """What happens to each of n images, on the CPU.

    Attributes:
        order: int64 [n, 4], the steps of the jitter (0 brightness, 1 contrast, 2 saturation, 3 hue) as they follow each other;
            -1 where there is none.
        factors: float32 [n, 4], of brightness, contrast, saturation; the shift of the hue as a share of the circle.
        grey, solarised: bool [n].
        radius: float32 [n], the standard deviation of the blur in pixels; 0 for none.
    """

    order: Tensor
    factors: Tensor
    grey: Tensor
    radius: Tensor
    solarised: Tensor

    def rows(self, which: slice) -> Draws:
        """Those of some of the images."""
        return Draws(*(getattr(self, name)[which] for name in self.__dataclass_fields__))


def change_colours(
    images: Tensor, draws: Draws | None, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> Tensor:
    """The images with their draws applied (None: none) and, where `mean` is given, normalised.

    Args:
        images: uint8 [n, 3, h, w], of any strides, on any device.

    Returns:
        float32 [n, 3, h, w], contiguous, in 0 to 1 before it is normalised.
    """
    result = torch.empty(images.shape, device=images.device)
    law = None
    if mean is not None and std is not None:
        law = [_to(torch.tensor(values)[:, None, None], images.device) for values in (mean, std)]
    rows = max(1, (PIECE_OF_CPU if images.device.type == "cpu" else PIECE) // images[0].numel())
    for start in range(0, len(images), rows):
        which = slice(start, start + rows)
        pixels = result[which].copy_(images[which]).mul_(1 / 255)
        if draws is not None:
            _apply(pixels, draws.rows(which))
        if law is not None:
            pixels.sub_(law[0]).div_(law[1])
    return result


def _apply(pixels: Tensor, draws: Draws) -> None:
    """Change the images [n, 3, h, w] in place."""
    for place in range(4):
        for step in range(4):
            chosen = draws.order[:, place] == step
            _change(pixels, chosen, STEPS[step], draws.factors[:, step])
    _change(pixels, draws.grey, _grey)
    _change(pixels, draws.radius > 0, _blur, draws.radius)
    # PIL takes bytes of 128 or more from 255: those above the middle
    _change(pixels, draws.solarised, lambda x: torch.minimum(x, 1 - x))


def _change(pixels: Tensor, chosen: Tensor, step: Callable[..., Tensor], *parameters: Tensor) -> None:
    """Put what `step` makes of the chosen images and their parameters [n] in their place; only these are computed."""
    where = chosen.nonzero()[:, 0]
    if len(where) == 0:
        return
    of_chosen = [_to(values[where], pixels.device) for values in parameters]
    if len(where) == len(pixels):
        pixels.copy_(step(pixels, *of_chosen))
    else:
        where = _to(where, pixels.device)
        pixels.index_copy_(0, where, step(pixels.index_select(0, where), *of_chosen))


def _to(values: Tensor, device: torch.device) -> Tensor:
    """A few values on the device; nobody waits for what it does meanwhile."""
    return values.to(device, non_blocking=True)


def _luma(pixels: Tensor) -> Tensor:
    """[n, 3, ...] -> [n, 1, ...]."""
    red, green, blue = pixels.split(1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def _grey(pixels: Tensor) -> Tensor:
    """Three equal channels."""
    return _luma(pixels).expand_as(pixels)


def _blend(pixels: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """other + factor * (pixels - other), cut at 0 and 1."""
    factor = factor[:, None, None, None]
    return torch.addcmul(other * (1 - factor), pixels, factor).clamp_(0, 1)


def _brightness(pixels: Tensor, factor: Tensor) -> Tensor:
    return (pixels * factor[:, None, None, None]).clamp_(max=1)


def _contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    """A blend with the mean of the grey image, which PIL rounds to a byte."""
    mean = _luma(pixels.mean(dim=(2, 3), keepdim=True))
    return _blend(pixels, (mean * 255 + 0.5).floor() / 255, factor)


def _saturation(pixels: Tensor, factor: Tensor) -> Tensor:
    return _blend(pixels, _luma(pixels), factor)


def shift_hue(pixels: Tensor, shift: Tensor) -> Tensor:
    r"""Each image's hue turned by `shift` [n], a share of the circle; value and saturation of HSV stay.

    With the largest value V, the chroma C (largest less smallest value) and the hue H in sixths of the circle, the channels are
    $V - C \min(1, \max(0, 2 - |d_k|))$ with $d_k$ = H + (3, 1, -1)_k brought into [-3, 3), for red, green and blue.
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


STEPS = (_brightness, _contrast, _saturation, shift_hue)


def _blur(pixels: Tensor, radius: Tensor) -> Tensor:
    """Each image blurred with a standard deviation of `radius` [n] pixels as PIL's GaussianBlur does: by three boxes.

    The kernel is the box of `box_kernels` folded with itself three times; beyond the border the outer pixels go on.
    """
    box = box_kernels(radius)  # [n, taps]
    kernel = _fold(_fold(box, box), box)
    along = along_by_shifts if pixels.device.type == "cpu" else along_by_convolution
    return along(along(pixels, kernel, 3), kernel, 2)


def along_by_shifts(pixels: Tensor, kernel: Tensor, axis: int) -> Tensor:
    """Images [n, c, h, w] folded with their symmetric kernels [n, taps] along axis 2 or 3; on a CPU the faster way."""
    reach, size = kernel.shape[1] // 2, pixels.shape[axis]
    kernel = kernel[:, :, None, None, None]
    padded = F.pad(pixels, (reach, reach, 0, 0) if axis == 3 else (0, 0, reach, reach), mode="replicate")
    result = padded.narrow(axis, reach, size) * kernel[:, reach]
    for shift in range(1, reach + 1):
        both = padded.narrow(axis, reach - shift, size) + padded.narrow(axis, reach + shift, size)
        result.addcmul_(both, kernel[:, reach + shift])
    return result


def along_by_convolution(pixels: Tensor, kernel: Tensor, axis: int) -> Tensor:
    """The same by one grouped convolution."""
    n, channels = pixels.shape[:2]
    reach = kernel.shape[1] // 2
    padded = F.pad(pixels, (reach, reach, 0, 0) if axis == 3 else (0, 0, reach, reach), mode="replicate").flatten(0, 1)[None]
    kernel = kernel.repeat_interleave(channels, dim=0)[:, None]  # [n * channels, 1, taps]
    return F.conv2d(padded, kernel.unsqueeze(5 - axis), groups=n * channels).view_as(pixels)


def box_kernels(radius: Tensor) -> Tensor:
    r"""The extended box of each standard deviation, [n, 2 * reach + 1] with sums of 1.

    Gwosdek, Grewenig, Bruhn and Weickert, "Theoretical foundations of Gaussian convolution by extended box filtering" (2011):
    a box of whole half-width l with two outer weights of a share a of the inner ones, whose variance is that of the Gaussian
    divided by the passes, $l = \lfloor (\sqrt{12 v + 1} - 1) / 2 \rfloor$,
    $a = (2 l + 1) (l (l + 1) - 3 v) / (6 (v - (l + 1)^2))$.
    """
    variance = radius.square() / BLUR_PASSES
    whole = ((12 * variance + 1).sqrt() - 1).div(2).floor()
    outer = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    reach = 2  # of a radius up to 2
    distance = torch.arange(-reach, reach + 1, device=radius.device).abs()
    weights = torch.where(distance <= whole[:, None], 1.0, torch.where(distance == whole[:, None] + 1, outer[:, None], 0.0))
    return weights / weights.sum(dim=1, keepdim=True)


def _fold(one: Tensor, other: Tensor) -> Tensor:
    """Full convolution of kernels [n, a] and [n, b]: [n, a + b - 1]."""
    taps = other.shape[1]
    return F.conv1d(F.pad(one, (taps - 1,) * 2)[None], other.flip(1)[:, None], groups=len(one))[0]
