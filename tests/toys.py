"""Small images that several test files learn from."""

import numpy as np
import torch

from sfrik.datasets.images import Images


def squares(n, seed):
    """Digits-like images in memory: class 0 is bright in the left half, class 1 in the right."""
    labels = np.arange(n) % 2
    pixels = np.random.default_rng(seed).integers(0, 60, (n, 1, 28, 28))
    pixels[labels == 0, :, 8:20, 4:11] += 180
    pixels[labels == 1, :, 8:20, 17:24] += 180
    return Images(labels.astype(np.int64), 2, str, tensor=torch.from_numpy(pixels.astype(np.uint8)))
