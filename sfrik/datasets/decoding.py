"""Decoding of image files: to RGB, whatever their format; a broken file is an error that names it.

ImageNet has 22 files in CMYK, a PNG and several broken EXIF blocks, all under names that end in .JPEG.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from sfrik.errors import SfrikError
from sfrik.system.files import check_regular

__all__ = ["as_tensor", "decode_image", "read_image"]

# The formats of sfrik.datasets.listing.EXTENSIONS. PIL's other parsers are never used, whatever a file's name.
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP")
PLAIN = ("RGB", "L")  # modes of a JPEG that libjpeg itself converts to RGB as PIL does


def read_image(path: str | Path) -> Image.Image:
    """Read an image file in RGB with 8 bits per channel. Its content, not its name, decides which of `FORMATS` it is.

    Grey becomes three equal channels; CMYK is converted as PIL does, without a colour profile; transparency is dropped;
    of 16 bits the upper 8 are kept, where PIL's conversion would turn all values above 255 white. An EXIF orientation is
    not applied: the image is as it is stored, as in torchvision's ImageFolder and so in the published results.

    Raises:
        SfrikError: the file is missing, empty, truncated, not an image, not a regular file, or of a mode that has no
            conversion. The message names the file.
    """
    try:
        check_regular(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken EXIF data beside sound pixels
            with Image.open(path, formats=FORMATS) as image:
                return _eight_bits(image).convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # PIL's readers of broken files raise anything from OSError to struct.error
        raise SfrikError(f"cannot read image {path}: {_why_unreadable(Path(path), error)}") from None


def decode_image(path: str | Path) -> Tensor:
    """Read an image file as uint8 [3, h, w], with the conversions and errors of `read_image`.

    A JPEG in RGB or grey is decoded by torchvision, directly to a tensor; any other file, and one that torchvision cannot
    decode, by `read_image`.
    """
    image = _plain_jpeg(Path(path))
    return as_tensor(read_image(path)) if image is None else image


def as_tensor(image: Image.Image) -> Tensor:
    """A PIL image in RGB as uint8 [3, h, w], channels last in memory."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _plain_jpeg(path: Path) -> Tensor | None:
    try:
        check_regular(path)
        content = bytearray(path.read_bytes())
        if not content.startswith(b"\xff\xd8"):
            return None
        with warnings.catch_warnings():
            # broken EXIF data; from 0.29 on torchvision announces that decoding will move to torchcodec
            warnings.simplefilter("ignore")
            from torchvision.io import ImageReadMode, decode_jpeg

            with Image.open(io.BytesIO(content), formats=FORMATS[:1]) as header:  # no pixels yet; PIL's limit
                if header.mode not in PLAIN:
                    return None
            return cast(Tensor, decode_jpeg(torch.frombuffer(content, dtype=torch.uint8), ImageReadMode.RGB))
    except Exception:  # read_image reads it or reports the reason; torchvision may be built without a decoder
        return None


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image, reduced to its upper 8 bits where it has 16."""
    image.load()
    if image.mode.startswith("I"):  # I;16 and its byte orders; some formats give 16 bits as I
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point values without a known range")
    return image


def _why_unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "the file was removed after its folder was listed; start again, and if that fails delete ~/.cache/sfrik/listings"
    if isinstance(error, SfrikError):
        return f"it {str(error).removeprefix(f'{path} ')}"
    if isinstance(error, OSError) and error.strerror:  # from the file system, not from the content
        return error.strerror
    if path.stat().st_size == 0:
        what = "the file is empty"
    elif isinstance(error, UnidentifiedImageError):
        what = f"not an image file ({', '.join(FORMATS[:-1])} and {FORMATS[-1]} are read)"
    else:
        what = str(error) or type(error).__name__
    return f"{what}; copy it again from the data set's archive, or delete it"
