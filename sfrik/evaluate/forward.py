"""The features of a frozen backbone, in memory or one batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from sfrik.datasets import Images, batches
from sfrik.errors import SfrikError
from sfrik.ops.finite import check_finite_rows
from sfrik.system.devices import autocast
from sfrik.views.base import Views

__all__ = ["extract", "feature_batches"]

REMEDY = "use another --precision (fp32), and check these images and the weights"


def extract(
    backbone: nn.Module,
    images: Images,
    views: Views,
    batch_size: int = 500,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    workers: int = 0,
    after_batch: Callable[[], None] | None = None,
    skip_broken: bool = False,
    skipped: list[str] | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the features of all images, in evaluation mode; the backbone's mode is restored afterwards.

    Args:
        backbone: images [b, c, h, w] to features [b, d].
        views: one view of each image, such as `sfrik.views.base.resize_for_test`.
        precision: "fp32", "bf16" or "fp16", for autocast.
        workers: processes that decode images.
        after_batch: called after each batch; it may raise to stop the extraction.
        skip_broken: leave out images that cannot be read, with their labels, instead of raising an error.
        skipped: a list to which their names are added.

    Returns:
        Features [n, d], float32, and labels [n], in the order of the data set and on the CPU.

    Raises:
        SfrikError: an image cannot be read (with `skip_broken`, 100 consecutive ones), or features are NaN or infinite; the
            message names the images.
    """
    features, labels = [], []
    how = views, batch_size, torch.device(device), precision, workers, skip_broken
    for some, targets, read, indices in feature_batches(backbone, images, np.arange(len(images)), *how):
        if not read.all():
            some, targets = some[read], targets[read]
            if skipped is not None:
                skipped += [images.name(int(index)) for index in indices[~read.numpy()]]
        features.append(some)
        labels.append(targets)
        if after_batch is not None:
            after_batch()
    return torch.cat(features), torch.cat(labels)


@torch.no_grad()
def feature_batches(
    backbone: nn.Module,
    images: Images,
    indices: np.ndarray,
    views: Views,
    batch_size: int,
    device: torch.device,
    precision: str,
    workers: int,
    skip_broken: bool = False,
) -> Iterator[tuple[Tensor, Tensor, Tensor, np.ndarray]]:
    """One batch at a time, on the CPU: features [b, d], labels [b], whether each image was read, bool [b], and its index [b].

    With `skip_broken` another image takes the place of one that cannot be read, so that all batches keep their size.
    """
    training = backbone.training
    backbone.eval()
    how = {"device": device, "workers": workers, "skip_broken": skip_broken}
    try:
        with closing(batches(images, indices, views, batch_size, **how)) as loader:
            for step, ((batch,), targets, shown) in enumerate(loader):
                with autocast(device, precision):
                    features = backbone(batch.contiguous(memory_format=torch.channels_last))
                features = features.float().cpu()
                names = partial(_image_name, images, shown)
                check_finite_rows(features, "the features of a batch", REMEDY, names, SfrikError)
                expected = indices[step * batch_size : (step + 1) * batch_size]
                yield features, targets.cpu(), torch.from_numpy(shown == expected), expected
    finally:
        backbone.train(training)


def _image_name(images: Images, positions: np.ndarray, row: int) -> str:
    return images.name(int(positions[row]))
