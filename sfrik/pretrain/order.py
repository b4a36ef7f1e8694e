"""The order of the training images, and the shard of each process."""

from __future__ import annotations

import numpy as np

from sfrik.datasets.images import Images
from sfrik.errors import SfrikError
from sfrik.ops.collectives import rank, world_size
from sfrik.ops.random import derived_seed
from sfrik.settings import PretrainSettings

__all__ = ["check_batch_size", "epoch_order"]


def check_batch_size(
    settings: PretrainSettings, images: Images | int, processes: int | None = None, synchronised: bool = True
) -> int:
    """The number of steps per epoch. The images that do not fill a batch are left out, different ones in each epoch.

    Args:
        settings: The settings of the training.
        images: The training images, or their number.
        processes: The number of processes; those of the process group when None.
        synchronised: Whether BatchNorm's statistics are those of all processes, as on GPUs.

    Raises:
        SfrikError: The batch size is not divisible by the number of processes, is larger than the data set, or leaves BatchNorm
            one image.
    """
    settings.check_processes(processes or world_size(), synchronised)
    count = images if isinstance(images, int) else len(images)
    if count < settings.batch_size and settings.ssl_method != "none":
        raise SfrikError(f"batch_size {settings.batch_size} is larger than the data set of {count} images: lower it")
    return count // settings.batch_size


def epoch_order(n: int, settings: PretrainSettings, epoch: int, steps_per_epoch: int) -> np.ndarray:
    """Indices of this process's images in an epoch, in the order of the steps: its shard of each batch.

    Args:
        n: The number of training images.
        settings: The settings; the order depends on seed and epoch.
        epoch: The number of the epoch, from 0.
        steps_per_epoch: The number of whole batches.
    """
    generator = np.random.default_rng(derived_seed("order", settings.seed, epoch))
    order = generator.permutation(n)[: steps_per_epoch * settings.batch_size]
    shards = order.reshape(steps_per_epoch, world_size(), -1)
    return shards[:, rank()].reshape(-1)
