"""Smaller PNG files look the same; photos, animations and transparent pictures are not changed."""

from __future__ import annotations

import io
from base64 import b64decode, b64encode

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sfrik.reproduce.notebooks import shrink_pictures
from sfrik.system.png import resized_png, smaller_png


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


def test_a_photo_is_resized_if_that_is_smaller_and_an_animation_is_not():
    assert Image.open(io.BytesIO(resized_png(png(photo()), 100, 50))).size == (100, 50)
    for content, width in ((png(photo()), 200), (png(drawing(), save_all=True, append_images=[photo()]), 100)):
        assert resized_png(content, width, width // 2) == content


def test_in_an_executed_notebook_only_pictures_with_photos_lose_the_double_resolution():
    def output(picture):
        data = {"image/png": b64encode(png(picture)).decode()}
        return {"data": data, "metadata": {"image/png": {"width": 100, "height": 50}}}

    outputs = [output(drawing()), output(photo()), {"data": {"image/png": b64encode(png(photo())).decode()}}]
    shrink_pictures({"cells": [{"outputs": outputs}, {}]})
    sizes = [Image.open(io.BytesIO(b64decode(one["data"]["image/png"]))).size for one in outputs]
    assert sizes == [(200, 100), (100, 50), (200, 100)]
