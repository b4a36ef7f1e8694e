"""Which images a process trains on, and in which order."""

from __future__ import annotations

import numpy as np

from sfrik.datasets.images import Images
from sfrik.errors import SfrikError
from sfrik.ops.collectives import rank, world_size
from sfrik.pretrain.accumulate import micro_batches
from sfrik.settings import PretrainSettings

__all__ = ["check_batch_size", "epoch_order"]


def check_batch_size(settings: PretrainSettings, images: Images) -> int:
    """Steps per epoch. The images that do not fill a last batch are left out; each epoch leaves out others.

    Raises:
        SfrikError: the batch does not divide by the number of processes, is larger than the data set, or has a micro-batch of
            one image.
    """
    if settings.batch_size % world_size():
        raise SfrikError(f"batch_size {settings.batch_size} is over all processes and does not divide by {world_size()} of them")
    if len(images) < settings.batch_size and settings.ssl_method != "none":
        raise SfrikError(f"batch_size {settings.batch_size} is more than the {len(images)} images: lower it")
    shard, most = settings.batch_size // world_size(), settings.micro_batch
    if most and shard // micro_batches(shard, most) < 2:
        raise SfrikError(f"BatchNorm needs two images, micro_batch {most} of the {shard} images per process leaves one: raise it")
    return len(images) // settings.batch_size


def epoch_order(n: int, settings: PretrainSettings, epoch: int, steps_per_epoch: int) -> np.ndarray:
    """Indices of this process's images in an epoch, step after step: its shard of each batch."""
    order = np.random.default_rng([settings.seed, epoch]).permutation(n)[: steps_per_epoch * settings.batch_size]
    shards = order.reshape(steps_per_epoch, world_size(), -1)
    return shards[:, rank()].reshape(-1)
