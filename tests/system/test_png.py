"""Smaller PNG files look the same; photos, animations and transparent pictures are not changed."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sfrik.system.png import smaller_png


def png(picture, **options):
    content = io.BytesIO()
    picture.save(content, "PNG", **options)
    return content.getvalue()


def drawing(mode="RGB"):
    picture = Image.new(mode, (200, 100), "white")
    for k in range(20):
        ImageDraw.Draw(picture).ellipse((5 * k, 3 * k, 60 + 5 * k, 40 + 3 * k), outline="red", fill=(10 * k, 99, 0))
    return picture


def photo():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (100, 200, 3), dtype=np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_drawing_becomes_smaller_and_looks_the_same(mode):
    content = png(drawing(mode))
    small = smaller_png(content)
    assert len(small) < 0.8 * len(content)
    assert smaller_png(small) == small
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(small)).convert("RGB")), np.asarray(drawing()))


@pytest.mark.parametrize(
    "content",
    [
        png(photo()),
        png(Image.new("RGBA", (20, 20), (255, 0, 0, 100))),
        png(drawing(), save_all=True, append_images=[photo()]),
        png(drawing().convert("L")),
    ],
)
def test_another_picture_is_not_changed(content):
    assert smaller_png(content) == content
