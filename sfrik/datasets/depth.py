"""Images with more than 8 bits per channel, reduced to 8 bits: which of their values is white.

A file of 16 bits often holds the 10 or 12 bits of a camera, and one of 32 bits the 8 bits of another image. Pillow returns the
numbers, or of several channels their upper bytes, and leaves out what the file states about their range.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from PIL import Image

from sfrik.errors import SfrikError

__all__ = ["eight_bits"]

PHOTOMETRIC, SAMPLE_FORMAT, BITS_PER_SAMPLE = 262, 339, 258  # tags of a TIFF
SMALLEST_VALUE, LARGEST_VALUE = (340, 280), (341, 281)  # SMinSampleValue, MinSampleValue; SMaxSampleValue, MaxSampleValue
LEVELS = 16  # a guess of the white of floating-point values leaves at least so many of the 256 levels
SWAPPED = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


@dataclass(frozen=True)
class _Header:
    """What a file states about its values.

    Attributes:
        bits: bits of a stored value.
        signed: whether values are stored with a sign.
        white: the largest value that the file allows; None if it states none.
        black: the smallest one, at most 0.
        inverted: whether 0 is white.
        left: whether values of fewer bits are stored in the upper bits, as PNG requires; not all programs do so.
    """

    bits: int = 16
    signed: bool = False
    white: float | None = None
    black: float = 0
    inverted: bool = False
    left: bool = False


def eight_bits(image: Image.Image, reopen: Callable[[], Image.Image]) -> tuple[Image.Image, float | None]:
    """Load an image and reduce it to 8 bits per channel. An image that has no more is returned unchanged.

    White is, in this order:

    1. what the file states: PGM's and PPM's maxval below 65535, which many programs write for any values, TIFF's BitsPerSample
       below 16 and MaxSampleValue or SMaxSampleValue, PNG's sBIT chunk. A value above it shows that the statement is wrong, and
       it is not used.
    2. of values with a sign, some of them negative: the largest one; black is the smallest one.
    3. of whole numbers: the largest number of 8, 10, 12, ... bits, the fewest that the largest value needs. So a file of 16 bits
       with values from 2^14 on keeps its upper 8 bits.
    4. of floating-point values: 1 up to 1, else as for whole numbers; if this left fewer than 16 levels, the largest value.

    Args:
        image: the opened image, whose pixels have not been read.
        reopen: opens the same file again.

    Returns:
        The image, and the value that was taken as white where the file states none and not all of its bits are used, else None.

    Raises:
        SfrikError: floating-point values that are not finite.
    """
    header = _read_header(image)
    _fix_planes(image, header)
    rawmode = _rawmode(image)
    colours_of_16_bits = _colours_of_16_bits(image)
    image.load()
    if colours_of_16_bits is not None and colours_of_16_bits.max(initial=0) < 1 << 14:
        scaled, guess = _scale(colours_of_16_bits, header)
        return Image.fromarray(scaled), guess
    if image.mode == "L" and header.signed:  # Pillow returns the bits of values of 8 bits with a sign
        scaled, guess = _scale(np.asarray(image).view(np.int8), header)
        return Image.fromarray(scaled), guess
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        if image.mode == "I" and header.bits == 32 and not header.signed:
            values = values.view(np.uint32)  # Pillow has no mode for them
        scaled, guess = _scale(values, header)
        return Image.fromarray(255 - scaled if header.inverted else scaled), guess
    if rawmode[-4:-1] != ";16" or rawmode.startswith("RGBa"):  # a product of colour and alpha
        return image, None
    upper = np.array(image)  # [h, w, channels]
    colours = [k for k, band in enumerate(image.getbands()) if band != "A"]
    if header.white in (None, 65535) and upper[..., colours].max(initial=0) >= 64:
        return image, None  # values of 2^14 and more: the upper bytes are the result
    values = 256 * upper[..., colours].astype(np.uint16) + _lower_bytes(reopen, rawmode)[..., : len(colours)]
    upper[..., colours], guess = _scale(values, header)
    return Image.frombytes(image.mode, image.size, upper.tobytes()), guess


def _scale(values: np.ndarray, header: _Header) -> tuple[np.ndarray, float | None]:
    """The values as bytes, and what was guessed to be white."""
    whole = values.dtype.kind != "f"
    if not whole and not np.isfinite(values).all():
        raise SfrikError("has values that are not finite (NaN or inf): replace them, or delete the image")
    low, high = (values.min().item(), values.max().item()) if values.size else (0, 0)
    black, white, guessed = header.black, header.white, False
    if header.left and white is not None and (high > white or not (values % (65536 // int(white + 1))).any()):
        white = 65535
    if white is None or high > white or low < black:
        black, white = (low, high) if low < 0 else (0, _likely_white(high, header, whole))
        guessed = white != 2 ** (header.bits - header.signed) - 1
    span = white - black
    if whole and black == 0 and (int(white) + 1).bit_count() == 1:  # the upper 8 bits
        scaled = values.astype(np.int64) * 256 // (int(white) + 1)
    else:
        scaled = np.rint((values.astype(np.float64) - black) * (255 / (span or 1)))
    return scaled.clip(0, 255).astype(np.uint8), white if guessed else None


def _likely_white(high: float, header: _Header, whole: bool) -> float:
    bits = math.ceil(high).bit_length()
    white = 2 ** max(8, bits + bits % 2) - 1
    if whole:
        return min(white, 2 ** (header.bits - header.signed) - 1)
    white = 1 if high <= 1 else white
    return white if high * LEVELS > white else high


def _read_header(image: Image.Image) -> _Header:
    tags, file = getattr(image, "tag_v2", None), getattr(image, "fp", None)
    if image.format == "PPM":  # Pillow scales to 16 bits by maxval; that of 65535 is all that many programs write
        scaled = image.mode == "I" and _maxval(image) != 65535
        return _Header(white=65535 if scaled else None, bits=32 if image.mode == "F" else 16)
    if image.format == "PNG" and file is not None and _rawmode(image).endswith(";16B"):
        bits = _significant_bits(file)
        return _Header(white=None if bits is None else 2**bits - 1, left=True)
    if tags is None:
        return _Header()
    bits, kind = max(_numbers(tags, BITS_PER_SAMPLE), default=1), max(_numbers(tags, SAMPLE_FORMAT), default=1)
    stated = [value for tag in LARGEST_VALUE for value in _numbers(tags, tag) if math.isfinite(value) and value > 0]
    lowest = [value for tag in SMALLEST_VALUE for value in _numbers(tags, tag) if math.isfinite(value)]
    white = stated[0] if stated else 2 ** (bits - (kind == 2)) - 1 if bits < 16 else None
    return _Header(int(bits), kind == 2, white, min([0, *lowest]), tags.get(PHOTOMETRIC, 0) == 0)


def _numbers(tags: Any, tag: int) -> tuple[float, ...]:
    value = tags.get(tag, ())
    return tuple(value) if isinstance(value, tuple) else (value,)


def _significant_bits(file: IO[bytes]) -> int | None:
    """The largest number of bits in the sBIT chunk of a PNG, without that of alpha; None if there is no such chunk."""
    place = file.tell()
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"sBIT":
                bits = max(file.read(min(length, 4))[: 1 if length < 3 else 3], default=0)
                return bits if 8 <= bits <= 16 else None
            if kind == b"IDAT":
                return None
            file.seek(length + 4, 1)
        return None
    finally:
        file.seek(place)


def _rawmode(image: Image.Image) -> str:
    """Pillow's name of the layout of the values in the file, such as RGB;16B; "" if it does not read them itself."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0].args
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _maxval(image: Image.Image) -> int:
    """The largest value that a PGM or PPM states, if Pillow does not read it as bytes or bits; else 0."""
    arguments = image.tile[0].args if getattr(image, "tile", None) else ()
    if arguments == "I;16B":
        return 65535
    return arguments[1] if isinstance(arguments, tuple) and isinstance(arguments[1], int) and len(arguments) == 2 else 0


def _colours_of_16_bits(image: Any) -> np.ndarray | None:
    """The values [h, w, 3] of a PPM whose maxval is 65535, of which Pillow returns the upper bytes; None of other images."""
    if image.format != "PPM" or image.mode != "RGB" or _maxval(image) != 65535 or image.tile[0].codec_name != "ppm":
        return None
    count = image.size[0] * image.size[1] * 3
    image.fp.seek(image.tile[0].offset)
    content = image.fp.read(2 * count)
    return np.frombuffer(content, ">u2").reshape(image.size[1], image.size[0], 3) if len(content) == 2 * count else None


def _set_rawmode(image: Any, rename: Callable[[str], str]) -> None:
    image.tile = [
        tile._replace(args=(rename(tile.args[0]), *tile.args[1:]) if isinstance(tile.args, tuple) else rename(tile.args))
        for tile in image.tile
    ]


def _fix_planes(image: Any, header: _Header) -> None:
    """Set the layout of a TIFF of 16 bits that stores its channels one after the other: Pillow would read bytes."""
    if image.format == "TIFF" and header.bits == 16 and image.tile and _rawmode(image) in ("R", "C"):
        if image.mode != "RGB":
            raise SfrikError("has 16 bits and channels that are stored one after the other: save it with interleaved channels")
        order = "L" if image.tag_v2.prefix == b"II" else "B"
        _set_rawmode(image, lambda band: f"{band};16{order}")


def _lower_bytes(reopen: Callable[[], Image.Image], rawmode: str) -> np.ndarray:
    """The lower bytes of an image of 16 bits, [h, w, channels]: those of the other byte order's upper bytes."""
    with reopen() as image:
        if rawmode == "LA;16B":  # there is no such name for the other order: read each pixel's four bytes
            _set_rawmode(image, lambda name: "RGBA")
            image.load()
            return np.asarray(image)[..., [1, 1, 1]]
        _fix_planes(image, _read_header(image))
        _set_rawmode(image, lambda name: name[:-1] + SWAPPED[name[-1]])
        image.load()
        return np.asarray(image)
