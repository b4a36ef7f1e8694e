"""Which of the scored images are classified correctly: one bit per image, as the text that a score stores.

Two scores of the same images can then be compared image by image (a paired bootstrap), without training or features.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np

from sfrik.errors import SfrikError

__all__ = ["pack", "unpack"]


def pack(correct: Any) -> str:
    """The text of one bit per image: the base64 encoding of `numpy.packbits`, eight images per byte, the first one highest.

    Args:
        correct: bool [n], in the order of the scored images.

    >>> pack([True, False, True]), unpack("oA==", 3).tolist()
    ('oA==', [True, False, True])
    """
    return base64.b64encode(np.packbits(np.asarray(correct, dtype=bool)).tobytes()).decode("ascii")


def unpack(text: str, images: int) -> np.ndarray:
    """The bits of `pack`, bool [images].

    Args:
        text: `correct` of a score, or a value of its `correct_at`.
        images: The number of scored images, `images` of the same score.

    Raises:
        SfrikError: The text is not base64, or its length does not fit the number of images.
    """
    try:
        packed = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SfrikError(f"the bits of correct images are not base64 ({error}): measure the score again") from None
    if len(packed) != -(-images // 8):
        raise SfrikError(f"{len(packed)} bytes of correct images do not fit {images} images: measure the score again")
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=images).astype(bool)
