"""Views of photos: the policy of each view, and the two pipelines that draw from it.

`PilPipeline` does everything on PIL images in the workers of the data loader. `TensorPipeline` does the steps that need the
whole image there, on bytes, and the rest on batches on the device of the network. The policies are in the table of
`sfrik.views.base`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageFilter
from torch import Generator, Tensor

from sfrik.views.geometric import PatchGrid
from sfrik.views.photometric import BLUR_RADIUS, Colour, change_colours

if TYPE_CHECKING:
    from torchvision.transforms import InterpolationMode, v2

__all__ = [
    "OBOW_CROP_SCALE",
    "OBOW_PATCH_SCALE",
    "SMALL",
    "STATISTICS",
    "Crop",
    "PilPipeline",
    "TensorPipeline",
    "Whole",
    "bounded",
    "drawing_order",
    "normalise",
    "policies",
    "swav_kinds",
]

STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "stl10": ((0.441, 0.428, 0.387), (0.268, 0.261, 0.269)),
    "cifar10": ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
    "mnist5k": ((0.131,), (0.308,)),
}
SMALL = ("stl10", "cifar10")  # used at their own size; in OBoW and SwAV with the authors' settings for STL10
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # the defaults of torchvision's RandomResizedCrop
OBOW_CROP_SCALE = (0.08, 0.6)
OBOW_PATCH_SCALE = (0.6, 1.0)
MOST_RATIO = 32  # of the sides of an image that is resized as a whole
EQUAL, STRONG = (0.4, 0.4, 0.4, 0.4), (0.8, 0.8, 0.8, 0.2)  # jitters of brightness, contrast, saturation, hue


@dataclass(frozen=True)
class Crop:
    """A random crop, resized, mirrored with probability 1/2, with random colours; torchvision's RandomResizedCrop.

    Attributes:
        side: width and height of the view in pixels.
        scale: smallest and largest fraction of the image's area.
        interpolation: "bilinear" or "bicubic".
        colour: distribution of the colours.
        flips_last: whether the flip comes after the colours. The distribution is the same, since they do not depend on left
            and right.
        patches: grid of patches to cut from the crop at the end; each patch is a view. None: the crop is the view.
    """

    side: int
    scale: tuple[float, float]
    interpolation: str
    colour: Colour
    flips_last: bool = False
    patches: PatchGrid | None = None


@dataclass(frozen=True)
class Whole:
    """The whole image: shorter side resized to `side` pixels, centre crop of `size` x `size`, mirrored with probability 1/2.

    Attributes:
        side: shorter side after the resize, in pixels.
        size: width and height of the view in pixels.
        interpolation: "bilinear" or "bicubic".
    """

    side: int
    size: int
    interpolation: str = "bilinear"
    colour = None
    patches = None


def policies(augmentations: str, size: int, dataset: str, **crops: Any) -> list[Crop | Whole]:
    """The policies in the order of `PretrainSettings.view_sizes`, with one for all patches of a crop.

    Arguments as for `sfrik.views.base.build_views`.
    """
    jitter_p = 1.0 if dataset in SMALL else 0.8
    if augmentations == "obow":
        return _obow(size, dataset, jitter_p, **crops)
    if augmentations == "swav":
        colour = Colour(EQUAL if dataset in SMALL else STRONG, jitter_p, blur_p=0.5)
        return [Crop(side, scale, "bilinear", colour) for side, scale in swav_kinds(**crops)]
    colours = {
        "vicreg": [Colour((0.4, 0.4, 0.2, 0.1), 0.8, blur_p=b, solarise_p=s) for b, s in ((1.0, 0.0), (0.1, 0.2))],
        "simclr": [Colour(STRONG, 0.8, blur_p=0.5)] * 2,
        "auh": [Colour(EQUAL, 1.0)] * 2,
    }[augmentations]
    return [Crop(size, SCALE, "bicubic", colour) for colour in colours]


def _obow(
    size: int,
    dataset: str,
    jitter_p: float,
    *,
    num_img_crops: int,
    image_crop_size: int,
    num_img_patches: int,
    img_patch_size: int,
) -> list[Crop | Whole]:
    # 256 at a size of 224; small images are neither enlarged nor cropped
    side = size if dataset in SMALL else round(size * 256 / 224)
    crop = Crop(image_crop_size, OBOW_CROP_SCALE, "bilinear", Colour(EQUAL, jitter_p, blur_p=0.5), flips_last=True)
    views: list[Crop | Whole] = [Whole(side, size), *[crop] * num_img_crops]
    if num_img_patches:
        grid = PatchGrid(side, img_patch_size, num_img_patches)
        views.append(Crop(side, OBOW_PATCH_SCALE, "bilinear", Colour(EQUAL, jitter_p), flips_last=True, patches=grid))
    return views


def swav_kinds(
    nmb_crops: Sequence[int], size_crops: Sequence[int], min_scale_crops: Sequence[float], max_scale_crops: Sequence[float]
) -> list[tuple[int, tuple[float, float]]]:
    """Side and range of scales of each of SwAV's views."""
    kinds = zip(nmb_crops, size_crops, min_scale_crops, max_scale_crops, strict=True)
    return [(side, (low, high)) for count, side, low, high in kinds for _ in range(count)]


def normalise(dataset: str) -> v2.Transform:
    """Transform of a PIL image to float32 [c, h, w], normalised with the data set's statistics; ImageNet's where it has none."""
    from torchvision.transforms import v2

    mean, std = STATISTICS.get(dataset, STATISTICS["imagenet"])
    return v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])


def bounded(image: Any) -> Any:
    """The centre of an image whose sides differ by more than a factor of 32; any other image unchanged.

    A view shows the centre only, but an image of 20000 x 2 pixels would first be resized to 2.5 million x 256, which takes 2 GB.

    Args:
        image: a PIL image, or a tensor [c, h, w].
    """
    from torchvision.transforms.v2 import functional

    height, width = functional.get_size(image)
    most = MOST_RATIO * min(height, width)
    if max(height, width) <= most:
        return image
    return functional.center_crop(image, [min(height, most), min(width, most)])


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
    colour = view.colour
    steps = [v2.RandomApply([v2.ColorJitter(*colour.jitter)], p=colour.jitter_p), v2.RandomGrayscale(p=colour.grey_p)]
    steps += [] if colour.blur_p is None else [GaussianBlur(p=colour.blur_p)]
    steps += [] if colour.solarise_p is None else [v2.RandomSolarize(threshold=128, p=colour.solarise_p)]
    return v2.Compose([crop, *([*steps, flip] if view.flips_last else [flip, *steps]), to_tensor])


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
    """Crops of bytes in the workers, all other steps in batches on the device."""

    def __init__(self, views: Sequence[Crop | Whole], dataset: str) -> None:
        from torchvision.transforms import InterpolationMode

        self.views = views
        self.interpolations = [InterpolationMode(view.interpolation) for view in views]
        self.mean, self.std = STATISTICS.get(dataset, STATISTICS["imagenet"])

    def per_image(self, image: Tensor) -> tuple[Tensor, ...]:
        """A decoded image, uint8 [3, h, w] -> its crops, uint8 [3, side, side], resized and mirrored."""
        drawn = {k: _cut(image, self.views[k], self.interpolations[k]) for k in drawing_order(self.views)}
        return tuple(drawn[k] for k in range(len(self.views)))

    def per_batch(self, batch: list[Tensor], generator: Generator) -> list[Tensor]:
        """Batches of these crops, uint8 [n, 3, side, side] -> the views, float32 [n, 3, h, w], normalised."""
        made = []
        for view, images in zip(self.views, batch, strict=True):
            draws = view.colour.draw(len(images), generator) if view.colour else None
            pixels = change_colours(images, draws, self.mean, self.std)
            made += view.patches(pixels, generator) if view.patches else [pixels]
        return made


def _cut(image: Tensor, view: Crop | Whole, interpolation: InterpolationMode) -> Tensor:
    """Crop, resize and mirror one image.

    Draws from PyTorch's default generator, the same numbers as torchvision's RandomResizedCrop and RandomHorizontalFlip.
    """
    from torchvision.transforms import RandomResizedCrop
    from torchvision.transforms.v2 import functional

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
