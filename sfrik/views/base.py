r"""Augmentations: how several views of one image are drawn.

There are two stages. `per_image` runs on one decoded image, in the workers of the data loader, and returns the tensors that
they send; `per_batch` runs on whole batches on the device of the network and returns the views. Images in memory have one stage,
`in_memory`, on whole batches on that device, wherever the views have it. torchvision is imported where it is used: its import
takes seconds, and the digits profile does not need it.

===========================================  ============================  ===========================================
images                                       `per_image`, seeded by epoch  `per_batch` or `in_memory`, seeded by epoch
                                             and image                     and step
===========================================  ============================  ===========================================
photos on disk, `input_pipeline` "tensor"    crop and resize, flip: bytes  jitter, grey, blur, solarise, normalise,
                                                                           patches: floats
photos in memory, `input_pipeline` "tensor"  nothing                       everything: floats
photos, `input_pipeline` "pil"               everything, on PIL images     nothing
digits, in memory                            nothing                       everything
===========================================  ============================  ===========================================

Both pipelines of photos draw from the distributions of the next table. Their pixels differ by rounding: "pil" rounds to bytes
after each step, "tensor" only after the resize, and of images in memory not at all. Where the flip comes last, "tensor" applies
it before the colours, which do not depend on left and right.

=================  ========================================  =========  =========================  ====  ====  ========
augmentations      crop: scale, interpolation                flip       jitter, probability        grey  blur  solarise
=================  ========================================  =========  =========================  ====  ====  ========
vicreg, view 1     0.08-1, bicubic                           0.5        (0.4, 0.4, 0.2, 0.1), 0.8  0.2   1.0   0
vicreg, view 2     0.08-1, bicubic                           0.5        (0.4, 0.4, 0.2, 0.1), 0.8  0.2   0.1   0.2
simclr             0.08-1, bicubic                           0.5        (0.8, 0.8, 0.8, 0.2), 0.8  0.2   0.5   --
auh                0.08-1, bicubic                           0.5        (0.4, 0.4, 0.4, 0.4), 1.0  0.2   --    --
cifar              0.08-1, bicubic                           0.5        (0.4, 0.4, 0.4, 0.1), 0.8  0.2   --    --
obow, whole image  resize to 256, bilinear; centre crop 224  0.5        --                         --    --    --
obow, crops        0.08-0.6, bilinear                        0.5, last  (0.4, 0.4, 0.4, 0.4), 0.8  0.2   0.5   --
obow, patches      0.6-1 to 256, bilinear; then the grid     0.5, last  (0.4, 0.4, 0.4, 0.4), 0.8  0.2   --    --
swav               as set for each size, bilinear            0.5        (0.8, 0.8, 0.8, 0.2), 0.8  0.2   0.5   --
=================  ========================================  =========  =========================  ====  ====  ========

The jitter is of brightness, contrast, saturation and hue; flip, grey, blur and solarise are probabilities. The steps are
applied in the order of the columns, except where "last" says that the flip is the last one. `min_crop_scale` replaces the 0.08
of two views. At another `size` than 224, OBoW's 256 becomes 256/224 of it. STL10, CIFAR-10 and CIFAR-100 have OBoW's whole image
and the images of its patches at `size` itself, and jitter (0.4, 0.4, 0.4, 0.4) with probability 1 in OBoW and SwAV.

"cifar" are the two views that are usual for CIFAR: those of SimCLR (Chen et al. 2020, appendix B.9), with colours of half the
strength and without blur.

Digits are not flipped, since most mirrored digits are no longer digits. Instead of colour jitter, their pixel values are
multiplied by a random factor from 0.6 to 1.4, except in OBoW's whole image. "digits" is a random rotation, zoom, shear and
shift; "auh" a bilinear crop of scale 0.35-1; the crops of "obow" and "swav" are those of the table. The smallest scale of
"auh", 0.35, is ours: with the paper's 0.08 the scores on the tuning split differed by less than their standard error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Generator, Tensor

from sfrik.errors import SfrikError
from sfrik.views.digits import affine_views, digit_pipeline, whole_digits
from sfrik.views.photos import SCALE, SMALL, Crop, bounded, normalise, policies
from sfrik.views.pipelines import PilPipeline, TensorPipeline

__all__ = ["Views", "build_views", "probe_views", "resize_for_test"]


@dataclass(frozen=True)
class Views:
    """How to draw the views of a batch. Those that the functions of this module return can be pickled.

    Attributes:
        per_image: image -> the tensors [c, h, w] that the workers send; None for digits, which are in memory.
        per_batch: ([tensor [n, c, h, w], ...], generator on the CPU) -> the views, each [n, c, h, w], normalised.
        of_tensors: whether `per_image` takes a decoded image as uint8 [3, h, w] rather than a PIL image.
        in_memory: as `per_batch`, of whole images in memory, uint8 [n, c, h, w]; None: their views are drawn one by one.
    """

    per_image: Callable[[Any], tuple[Tensor, ...]] | None
    per_batch: Callable[[list[Tensor], Generator], list[Tensor]]
    of_tensors: bool = False
    in_memory: Callable[[list[Tensor], Generator], list[Tensor]] | None = None


def build_views(augmentations: str, size: int, dataset: str, input_pipeline: str = "pil", **crops: Any) -> Views:
    """The views of `augmentations`, in the order of `PretrainSettings.view_sizes`.

    Args:
        augmentations: vicreg, simclr, auh, cifar, digits: two views; obow: the whole image, crops, patches; swav: the crops of
            the first size, of the second, and so on.
        size: side of the two views, or of OBoW's whole image, in pixels; SwAV does not use it.
        dataset: name of the data set, which sets the normalisation; mnist5k's images are digits.
        input_pipeline: "tensor" or "pil", for photos: which steps run where, see the module.
        crops: `PretrainSettings.crops`. obow: num_img_crops, image_crop_size, num_img_patches, img_patch_size; swav:
            nmb_crops, size_crops, min_scale_crops, max_scale_crops, each with one value per size; two views of photos:
            min_crop_scale.

    Raises:
        SfrikError: unknown augmentations or input_pipeline; augmentations that are not for digits; patches that do not fit in
            the image.
    """
    if augmentations not in (known := ("vicreg", "simclr", "auh", "cifar", "obow", "swav", "digits")):
        raise SfrikError(f"unknown augmentations {augmentations}: choose one of {', '.join(known)}")
    if input_pipeline not in ("tensor", "pil"):
        raise SfrikError(f"unknown input_pipeline {input_pipeline}: choose tensor or pil")
    if dataset == "mnist5k" or augmentations == "digits":
        return Views(None, digit_pipeline(augmentations, size, **crops))
    views = policies(augmentations, size, dataset, **crops)
    if input_pipeline == "tensor":
        pipeline = TensorPipeline(views, dataset)
        return Views(pipeline.per_image, pipeline.per_batch, True, pipeline.in_memory)
    return Views(PilPipeline(views, dataset), _unchanged)


def probe_views(size: int, dataset: str) -> Views:
    """The augmented view that a linear probe trains on: random crop and flip; for mnist5k the affine map of "digits".

    The transforms are torchvision's RandomResizedCrop and RandomHorizontalFlip.

    Args:
        size: side of the view in pixels; digits keep theirs.
        dataset: name of the data set.
    """
    if dataset == "mnist5k":
        return Views(None, partial(affine_views, count=1))
    from torchvision.transforms import v2

    crop = v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(), normalise(dataset)])
    in_memory = TensorPipeline([Crop(size, SCALE, "bilinear")], dataset).in_memory
    return Views(partial(_one_view, crop), _unchanged, in_memory=in_memory)


def resize_for_test(size: int, dataset: str) -> Views:
    """The whole image without augmentation, normalised.

    The shorter side is resized to 256/224 of `size` by bicubic interpolation, then the centre is cropped (torchvision's Resize
    and CenterCrop). Digits, STL10, CIFAR-10 and CIFAR-100 keep their size. Of an image whose sides differ by more than a factor
    of 32, only the centre is resized.

    Args:
        size: side of the view in pixels.
        dataset: name of the data set.
    """
    if dataset == "mnist5k":
        return Views(None, whole_digits)
    from torchvision.transforms import v2

    if dataset in SMALL:
        whole = normalise(dataset)
        return Views(partial(_one_view, whole), _unchanged, in_memory=partial(_one_batch, whole))
    steps = [bounded, v2.Resize(round(size * 256 / 224), v2.InterpolationMode.BICUBIC), v2.CenterCrop(size)]
    return Views(partial(_one_view, v2.Compose([*steps, normalise(dataset)])), _unchanged)


def _one_view(transform: Callable[[Any], Tensor], image: Any) -> tuple[Tensor]:
    return (transform(image),)


def _one_batch(transform: Callable[[Any], Tensor], batch: list[Tensor], generator: Generator) -> list[Tensor]:
    return [transform(batch[0])]


def _unchanged(batch: list[Tensor], generator: Generator) -> list[Tensor]:
    return batch
