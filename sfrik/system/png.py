"""Smaller PNG files: figures use few colours, so a palette is a third of the size and looks the same."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

__all__ = ["resized_png", "smaller_png"]

LARGEST_ERROR = 1.5  # root mean square over pixels and channels, of 255


def smaller_png(content: bytes) -> bytes:
    """The picture with a palette of 256 colours if that is smaller and hardly differs; photos and animations are unchanged."""
    picture = Image.open(io.BytesIO(content))
    if picture.mode not in ("RGB", "RGBA") or getattr(picture, "n_frames", 1) > 1:
        return content
    resolution = {"dpi": picture.info["dpi"]} if "dpi" in picture.info else {}
    if picture.mode == "RGBA":
        if np.asarray(picture)[..., 3].min() < 255:  # transparent
            return content
        picture = picture.convert("RGB")
    reduced = picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    error = np.asarray(reduced.convert("RGB"), dtype=float) - np.asarray(picture, dtype=float)
    small = io.BytesIO()
    reduced.save(small, "PNG", optimize=True, **resolution)
    return small.getvalue() if (error**2).mean() ** 0.5 <= LARGEST_ERROR and small.tell() < len(content) else content


def resized_png(content: bytes, width: int, height: int) -> bytes:
    """The picture with at most this width and height, if that is smaller."""
    picture = Image.open(io.BytesIO(content))
    if getattr(picture, "n_frames", 1) > 1 or picture.width <= width:
        return content
    small = io.BytesIO()
    picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS).save(small, "PNG", optimize=True)
    return small.getvalue() if small.tell() < len(content) else content
