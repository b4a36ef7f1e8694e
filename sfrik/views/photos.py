"""The views of photographs: the law of each, and the two pipelines that draw from it.

`plain_views` does all of it on PIL images in the workers of the data loader. `fast_views` does what needs the whole image
there, on bytes, and the rest on batches on the device of the network. What a law says is in the table of `sfrik.views`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageFilter
from torch import Generator, Tensor

from sfrik.views.geometric import PatchGrid
from sfrik.views.photometric import BLUR_RADIUS, Colour, change_colours

if TYPE_CHECKING:
    from torchvision.transforms import v2

__all__ = [
    "OBOW_CROP_SCALE",
    "OBOW_PATCH_SCALE",
    "SMALL",
    "STATISTICS",
    "Crop",
    "Whole",
    "fast_views",
    "normalise",
    "plain_views",
    "policies",
    "swav_kinds",
]

STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "stl10": ((0.441, 0.428, 0.387), (0.268, 0.261, 0.269)),
    "cifar10": ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
    "mnist5k": ((0.131,), (0.308,)),
}
SMALL = ("stl10", "cifar10")  # used at the size they have; in OBoW and SwAV with the authors' settings for STL10
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of torchvision's RandomResizedCrop
OBOW_CROP_SCALE = (0.08, 0.6)
OBOW_PATCH_SCALE = (0.6, 1.0)
EQUAL, STRONG = (0.4, 0.4, 0.4, 0.4), (0.8, 0.8, 0.8, 0.2)  # jitters of brightness, contrast, saturation, hue


@dataclass(frozen=True)
class Crop:
    """A random crop of a share `scale` of the area, `side` pixels wide and high, mirrored half of the time, and its colours.

    Attributes:
        flips_last: it is mirrored after the colours, which gives the same law: they do not know left from right.
        patches: cut from the crop at the end, each a view of its own.
    """

    side: int
    scale: tuple[float, float]
    interpolation: str
    colour: Colour
    flips_last: bool = False
    patches: PatchGrid | None = None


@dataclass(frozen=True)
class Whole:
    """The whole image: its shorter side at `side` pixels, the middle `size` x `size` of it, mirrored half of the time."""

    side: int
    size: int
    interpolation: str = "bilinear"
    colour = None
    patches = None


def policies(augmentations: str, size: int, dataset: str, **crops: Any) -> list[Crop | Whole]:
    """The views in the order of `PretrainSettings.view_sizes`, patches of one crop as one; arguments as of `build_views`."""
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
    found = [Whole(side, size), *[crop] * num_img_crops]
    if num_img_patches:
        grid = PatchGrid(side, img_patch_size, num_img_patches)
        found.append(Crop(side, OBOW_PATCH_SCALE, "bilinear", Colour(EQUAL, jitter_p), flips_last=True, patches=grid))
    return found


def swav_kinds(
    nmb_crops: Sequence[int], size_crops: Sequence[int], min_scale_crops: Sequence[float], max_scale_crops: Sequence[float]
) -> list[tuple[int, tuple[float, float]]]:
    """Side and range of scale of each view."""
    kinds = zip(nmb_crops, size_crops, min_scale_crops, max_scale_crops, strict=True)
    return [(side, (low, high)) for count, side, low, high in kinds for _ in range(count)]


def normalise(dataset: str) -> v2.Transform:
    """PIL image -> normalised float tensor [c, h, w]."""
    from torchvision.transforms import v2

    mean, std = STATISTICS.get(dataset, STATISTICS["imagenet"])
    return v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])


# --- on PIL images


def plain_views(views: Sequence[Crop | Whole], dataset: str) -> Callable[[Image.Image], tuple[Tensor, ...]]:
    """PIL image -> its views, each float [3, h, w], normalised."""
    pipelines = [_plain(law, dataset) for law in views]
    return lambda image: tuple(itertools.chain.from_iterable(_in_turn(views, pipelines, image)))


def _in_turn(views: Sequence[Crop | Whole], pipelines: Sequence[Callable], image: Any) -> list[Any]:
    """What each pipeline makes of the image; the random crops draw before OBoW's whole image does."""
    order = sorted(range(len(views)), key=lambda k: isinstance(views[k], Whole))
    drawn = {k: pipelines[k](image) for k in order}
    return [drawn[k] for k in range(len(views))]


def _plain(law: Crop | Whole, dataset: str) -> Callable[[Image.Image], list[Tensor]]:
    pipeline, grid = _steps(law, dataset), law.patches
    if grid is None:
        return lambda image: [pipeline(image)]
    return lambda image: [patch[0] for patch in grid(pipeline(image)[None])]


def _steps(law: Crop | Whole, dataset: str) -> v2.Transform:
    from torchvision.transforms import v2

    interpolation, flip, to_tensor = v2.InterpolationMode(law.interpolation), v2.RandomHorizontalFlip(), normalise(dataset)
    if isinstance(law, Whole):
        return v2.Compose([v2.Resize(law.side, interpolation), v2.CenterCrop(law.size), flip, to_tensor])
    crop = v2.RandomResizedCrop(law.side, law.scale, RATIO, interpolation, antialias=True)
    colour = law.colour
    steps = [v2.RandomApply([v2.ColorJitter(*colour.jitter)], p=colour.jitter_p), v2.RandomGrayscale(p=colour.grey_p)]
    steps += [] if colour.blur_p is None else [GaussianBlur(p=colour.blur_p)]
    steps += [] if colour.solarise_p is None else [v2.RandomSolarize(threshold=128, p=colour.solarise_p)]
    return v2.Compose([crop, *([*steps, flip] if law.flips_last else [flip, *steps]), to_tensor])


class GaussianBlur:
    """PIL's Gaussian blur with a radius drawn from U[0.1, 2.0], with probability p."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        if torch.rand(()) >= self.p:
            return image
        return image.filter(ImageFilter.GaussianBlur(radius=float(torch.empty(()).uniform_(*BLUR_RADIUS))))


# --- on tensors


def fast_views(
    views: Sequence[Crop | Whole], dataset: str
) -> tuple[Callable[[Tensor], tuple[Tensor, ...]], Callable[[list[Tensor], Generator], list[Tensor]]]:
    """What the workers do, and what the device does with a batch of it.

    The first takes a decoded image, uint8 [3, h, w], to its crops, uint8 [3, side, side], resized and mirrored; the second
    takes these as batches [n, 3, side, side] to the views, float [n, 3, h, w], normalised.
    """
    crops = [_cut(law) for law in views]
    mean, std = STATISTICS.get(dataset, STATISTICS["imagenet"])

    def per_batch(batch: list[Tensor], generator: Generator) -> list[Tensor]:
        made = []
        for law, images in zip(views, batch, strict=True):
            draws = law.colour.draw(len(images), generator) if law.colour else None
            pixels = change_colours(images, draws, mean, std)
            made += law.patches(pixels, generator) if law.patches else [pixels]
        return made

    return lambda image: tuple(_in_turn(views, crops, image)), per_batch


def _cut(law: Crop | Whole) -> Callable[[Tensor], Tensor]:
    """Crop, resize, mirror one image; draws from PyTorch's own generator, the numbers that torchvision's transforms draw."""
    from torchvision.transforms import RandomResizedCrop, v2
    from torchvision.transforms.v2 import functional

    interpolation = v2.InterpolationMode(law.interpolation)

    def cut(image: Tensor) -> Tensor:
        if isinstance(law, Whole):
            resized = functional.resize(_pixels_first(image), [law.side], interpolation, antialias=True)
            view = functional.center_crop(resized, [law.size, law.size])
        else:
            top, left, height, width = RandomResizedCrop.get_params(image, list(law.scale), list(RATIO))
            box = _pixels_first(image[:, top : top + height, left : left + width])
            view = functional.resize(box, [law.side, law.side], interpolation, antialias=True)
        return view.flip(-1) if torch.rand(1) < 0.5 else view

    return cut


def _pixels_first(image: Tensor) -> Tensor:
    """The image [3, h, w] with the channels of a pixel side by side in memory, where torch resizes bytes fastest."""
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
