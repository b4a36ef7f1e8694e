"""The bits of the correctly classified images, as a score stores them."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from sfrik.errors import SfrikError
from sfrik.runs.correctness import pack, unpack


@pytest.mark.parametrize("n", [1, 7, 8, 9, 1000])
def test_the_bits_of_any_number_of_images_come_back_in_their_order(n):
    correct = np.random.default_rng(n).random(n) < 0.8
    assert (unpack(pack(correct), n) == correct).all()
    assert unpack(pack(correct), n).dtype == bool
    # read without these helpers: the i-th image is bit i from the left
    text = "".join(f"{byte:08b}" for byte in base64.b64decode(pack(correct)))
    assert [bit == "1" for bit in text[:n]] == correct.tolist()


@pytest.mark.parametrize(
    ("text", "images", "reason"), [("oA==", 9, "1 bytes .* 9 images"), ("oA==", 0, "0 images"), ("o", 3, "base64")]
)
def test_bits_that_do_not_fit_the_images_are_refused(text, images, reason):
    with pytest.raises(SfrikError, match=reason):
        unpack(text, images)
