"""Seeds of random number generators: each stream of random numbers has a name, so that no two of them are the same numbers."""

from __future__ import annotations

import numpy as np

__all__ = ["MAX_SEED", "STREAMS", "derived_seed"]

MAX_SEED = 2**32 - 1  # and the largest of other parts

STREAMS = (
    "initialisation",  # of the encoder: (seed,)
    "head",  # initialisation of a linear head: (seed,)
    "order",  # of the images in pretraining: (seed, epoch)
    "evaluation order",  # of the images or features that an evaluation trains on: (seed, epoch)
    "image",  # views drawn image by image: the caller's seeds, such as (seed, epoch, rank), and the index of the image
    "batch",  # views drawn batch by batch: the caller's seeds and the step
    "directions",  # of the sliced losses: (seed, step)
    "monitor",  # sample of the kNN accuracy during pretraining: (seed,)
    "diagnosis",  # sample of `sfrik diagnose`: (seed,)
    "dropout",  # and stochastic depth, during pretraining: (seed, rank)
)


def derived_seed(stream: str, *parts: int) -> int:
    """A seed of 63 bits that depends on the stream, on every part and on their number and order.

    Uses NumPy's `SeedSequence`: parts that differ in one bit give streams that do not overlap in practice.

    Args:
        stream: one of `STREAMS`.
        parts: whole numbers from 0 to 2**32 - 1, such as seed, epoch and index.

    Raises:
        ValueError: an unknown stream, or a negative part.
    """
    # SeedSequence pads with zeros, so that without their number (3,) and (3, 0) would give the same seed
    entropy = (STREAMS.index(stream), len(parts), *parts)
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))
