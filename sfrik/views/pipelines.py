"""The two pipelines that draw the views of photos from the policies of `sfrik.views.photos`.

`PilPipeline` does everything on PIL images in the workers of the data loader. `TensorPipeline` does the steps that need the whole
image there, on bytes, and the rest on batches on the device of the network; of images in memory it does all steps there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageFilter
from torch import Generator, Tensor

from sfrik.views.geometric import RATIO, resize_boxes, to_device
from sfrik.views.photometric import BLUR_RADIUS, Colour, change_colours, join
from sfrik.views.photos import STATISTICS, Crop, Whole, bounded, normalise

if TYPE_CHECKING:
    from torchvision.transforms import v2

__all__ = ["PilPipeline", "TensorPipeline"]

# --- on PIL images


class PilPipeline:
    """All steps on PIL images, in the workers: PIL image in RGB -> its views, each float32 [3, h, w], normalised."""

    def __init__(self, views: Sequence[Crop | Whole], dataset: str) -> None:
        self.views = views
        self.transforms = [_pil_transform(view, dataset) for view in views]

    def __call__(self, image: Image.Image) -> tuple[Tensor, ...]:
        drawn: dict[int, list[Tensor]] = {}
        for k in drawing_order(self.views):
            view, patches = self.transforms[k](image), self.views[k].patches
            drawn[k] = [view] if patches is None else [patch[0] for patch in patches(view[None])]
        return tuple(view for k in range(len(self.views)) for view in drawn[k])


def drawing_order(views: Sequence[Crop | Whole]) -> list[int]:
    """The order in which the views draw their random numbers: crops before OBoW's whole image, which comes first."""
    return sorted(range(len(views)), key=lambda k: isinstance(views[k], Whole))


def _pil_transform(view: Crop | Whole, dataset: str) -> v2.Transform:
    from torchvision.transforms import v2

    interpolation, flip, to_tensor = v2.InterpolationMode(view.interpolation), v2.RandomHorizontalFlip(), normalise(dataset)
    if isinstance(view, Whole):
        return v2.Compose([bounded, v2.Resize(view.side, interpolation), v2.CenterCrop(view.size), flip, to_tensor])
    crop = v2.RandomResizedCrop(view.side, view.scale, RATIO, interpolation, antialias=True)
    steps = _pil_colours(view.colour) if view.colour else []
    return v2.Compose([crop, *([*steps, flip] if view.flips_last else [flip, *steps]), to_tensor])


def _pil_colours(colour: Colour) -> list[Any]:
    from torchvision.transforms import v2

    steps = [v2.RandomApply([v2.ColorJitter(*colour.jitter)], p=colour.jitter_p), v2.RandomGrayscale(p=colour.grey_p)]
    steps += [] if colour.blur_p is None else [GaussianBlur(p=colour.blur_p)]
    return steps + ([] if colour.solarise_p is None else [v2.RandomSolarize(threshold=128, p=colour.solarise_p)])


class GaussianBlur:
    """PIL's Gaussian blur with probability p; its radius in pixels is uniform from 0.1 to 2."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        if torch.rand(()) >= self.p:
            return image
        return image.filter(ImageFilter.GaussianBlur(radius=float(torch.empty(()).uniform_(*BLUR_RADIUS))))


# --- on tensors


class TensorPipeline:
    """The views by way of tensors.

    Of images on disk the workers crop the bytes, and all other steps run on batches on the device. Of images in memory
    everything runs there, and only the random numbers are drawn on the CPU.
    """

    def __init__(self, views: Sequence[Crop | Whole], dataset: str) -> None:
        self.views = views
        self.mean, self.std = STATISTICS.get(dataset, STATISTICS["imagenet"])

    def per_image(self, image: Tensor) -> tuple[Tensor, ...]:
        """A decoded image, uint8 [3, h, w] -> its crops, uint8 [3, side, side], resized and mirrored."""
        drawn = {k: _cut(image, self.views[k]) for k in drawing_order(self.views)}
        return tuple(drawn[k] for k in range(len(self.views)))

    def per_batch(self, batch: list[Tensor], generator: Generator) -> list[Tensor]:
        """Batches of these crops, uint8 [n, 3, side, side] -> the views, float32 [n, 3, h, w], normalised."""
        parts = zip(self.views, batch, strict=True)
        return [made for view, images in parts for made in self._finish([view], images, generator)]

    def in_memory(self, batch: list[Tensor], generator: Generator) -> list[Tensor]:
        """A batch of whole images [uint8 [n, 3, h, w]] -> the views, float32 [n, 3, h, w], normalised.

        Crops are resized to floats, which are not rounded to bytes. Views of one size are drawn together, in fewer and larger
        operations.
        """
        views = [list(group) for _, group in groupby(self.views, key=_kind)]
        crops = _cut_batch(batch[0], views, generator)
        parts = zip(views, crops, strict=True)
        return [made for group, images in parts for made in self._finish(group, images, generator)]

    def _finish(self, views: Sequence[Crop | Whole], images: Tensor, generator: Generator) -> Iterator[Tensor]:
        """Colours, statistics and patches of the crops of some views, in 0 to 255, [views * n, 3, side, side]."""
        n = len(images) // len(views)
        draws = [view.colour.draw(n, generator) for view in views if view.colour]
        pixels = change_colours(images, join(draws) if draws else None, self.mean, self.std)
        for view, own in zip(views, pixels.split(n), strict=True):
            yield from view.patches(own, generator) if view.patches else [own]


def _kind(view: Crop | Whole) -> tuple:
    """What views have in common that are drawn together."""
    return type(view), view.side, view.interpolation, view.colour is None


def _cut_batch(images: Tensor, groups: Sequence[Sequence[Crop | Whole]], generator: Generator) -> list[Tensor]:
    """Crop, resize and mirror whole images, uint8 [n, 3, h, w]: float [views * n, 3, h, w] for the views of each group."""
    n, _, height, width = images.shape
    counts = [n * len(group) for group in groups]
    boxes = torch.cat([view.boxes(n, height, width, generator) for group in groups for view in group])
    mirrored = torch.rand(len(boxes), 1, generator=generator) < 0.5
    places = to_device(torch.cat([boxes, mirrored], dim=1), images.device)  # in one transfer
    pixels, cut = images.float(), []
    for (view, *_), own in zip(groups, places.split(counts), strict=True):
        size, window = view.resized(height, width)
        crops = resize_boxes(pixels, own[:, :4], own[:, 4] > 0, size, view.interpolation, window)
        cut.append(crops.clamp_(0, 255))  # bicubic interpolation overshoots
    return cut


def _cut(image: Tensor, view: Crop | Whole) -> Tensor:
    """Crop, resize and mirror one image.

    Draws from PyTorch's default generator, the same numbers as torchvision's RandomResizedCrop and RandomHorizontalFlip.
    """
    from torchvision.transforms import InterpolationMode, RandomResizedCrop
    from torchvision.transforms.v2 import functional

    interpolation = InterpolationMode(view.interpolation)
    if isinstance(view, Whole):
        resized = functional.resize(_channels_last(bounded(image)), [view.side], interpolation, antialias=True)
        pixels = functional.center_crop(resized, [view.size, view.size])
    else:
        top, left, height, width = RandomResizedCrop.get_params(image, list(view.scale), list(RATIO))
        box = _channels_last(image[:, top : top + height, left : left + width])
        pixels = functional.resize(box, [view.side, view.side], interpolation, antialias=True)
    return pixels.flip(-1) if torch.rand(1) < 0.5 else pixels


def _channels_last(image: Tensor) -> Tensor:
    """The image [3, h, w] in the memory layout in which torch resizes bytes fastest."""
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
