"""The policies of the views of photos: crop, resize, colours and patches, as in the table of `sfrik.views.base`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from sfrik.views.geometric import PatchGrid, pixel_boxes
from sfrik.views.photometric import Colour

if TYPE_CHECKING:
    from torchvision.transforms import v2

__all__ = [
    "OBOW_CROP_SCALE",
    "OBOW_PATCH_SCALE",
    "SCALE",
    "SMALL",
    "STATISTICS",
    "Crop",
    "Whole",
    "bounded",
    "normalise",
    "policies",
    "swav_kinds",
]

STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "stl10": ((0.441, 0.428, 0.387), (0.268, 0.261, 0.269)),
    "cifar10": ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
    "cifar100": ((0.507, 0.487, 0.441), (0.267, 0.256, 0.276)),
    "mnist5k": ((0.131,), (0.308,)),
}
SMALL = ("stl10", "cifar10", "cifar100")  # used at their own size; in OBoW and SwAV with the authors' settings for STL10
SCALE = (0.08, 1.0)  # the default of torchvision's RandomResizedCrop
OBOW_CROP_SCALE = (0.08, 0.6)
OBOW_PATCH_SCALE = (0.6, 1.0)
MOST_RATIO = 32  # of the sides of an image that is resized as a whole
EQUAL, STRONG = (0.4, 0.4, 0.4, 0.4), (0.8, 0.8, 0.8, 0.2)  # jitters of brightness, contrast, saturation, hue


Window = tuple[int, int, int, int]  # top, left, height, width


@dataclass(frozen=True)
class Crop:
    """A random crop, resized, mirrored with probability 1/2, with random colours; torchvision's RandomResizedCrop.

    Attributes:
        side: width and height of the view in pixels.
        scale: smallest and largest fraction of the image's area.
        interpolation: "bilinear" or "bicubic".
        colour: distribution of the colours; None: they are kept.
        flips_last: whether the flip comes after the colours. The distribution is the same, since they do not depend on left
            and right.
        patches: grid of patches to cut from the crop at the end; each patch is a view. None: the crop is the view.
    """

    side: int
    scale: tuple[float, float]
    interpolation: str
    colour: Colour | None = None
    flips_last: bool = False
    patches: PatchGrid | None = None

    def boxes(self, n: int, height: int, width: int, generator: Generator) -> Tensor:
        """Draw the box of each of n images: top, left, height, width, int64 [n, 4]."""
        return pixel_boxes(n, height, width, self.scale, generator)

    def resized(self, height: int, width: int) -> tuple[tuple[int, int], Window | None]:
        """Height and width to which the boxes of images of height x width are resized, and the part that is the view."""
        return (self.side, self.side), None


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

    def boxes(self, n: int, height: int, width: int, generator: Generator) -> Tensor:
        """As `Crop.boxes`: the image, of a long one its centre. `generator` is not used."""
        return torch.tensor(_bounded_box(height, width)).expand(n, 4)

    def resized(self, height: int, width: int) -> tuple[tuple[int, int], Window | None]:
        """As `Crop.resized`: the shorter side becomes `side`, and the centre is the view."""
        sides = _bounded_box(height, width)[2:]
        rows, columns = (self.side if side == min(sides) else int(self.side * side / min(sides)) for side in sides)
        return (rows, columns), _centre(rows, columns, self.size, self.size)


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
    return _two_views(augmentations, size, **crops)


def _two_views(augmentations: str, size: int, min_crop_scale: float = SCALE[0]) -> list[Crop | Whole]:
    colours = {
        "vicreg": [Colour((0.4, 0.4, 0.2, 0.1), 0.8, blur_p=b, solarise_p=s) for b, s in ((1.0, 0.0), (0.1, 0.2))],
        "simclr": [Colour(STRONG, 0.8, blur_p=0.5)] * 2,
        "auh": [Colour(EQUAL, 1.0)] * 2,
        "cifar": [Colour((0.4, 0.4, 0.4, 0.1), 0.8)] * 2,
    }[augmentations]
    return [Crop(size, (min_crop_scale, 1.0), "bicubic", colour) for colour in colours]


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
    box = _bounded_box(height, width)
    return image if box[2:] == (height, width) else functional.crop(image, *box)


def _bounded_box(height: int, width: int) -> Window:
    """The part of an image of height x width that `bounded` keeps."""
    most = MOST_RATIO * min(height, width)
    return _centre(height, width, min(height, most), min(width, most))


def _centre(height: int, width: int, rows: int, columns: int) -> Window:
    """The centre of rows x columns pixels, as torchvision's CenterCrop takes it."""
    return round((height - rows) / 2), round((width - columns) / 2), rows, columns
