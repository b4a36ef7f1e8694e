"""An image file, decoded: whatever its kind, in RGB; where it is broken, an error that names it.

ImageNet alone holds 22 files in CMYK, a PNG and several broken EXIF blocks, all under names that end in .JPEG.
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

# What sfrik.datasets.listing.EXTENSIONS stand for. PIL's other parsers are never reached, whatever a file's name says it is.
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP")
PLAIN = ("RGB", "L")  # kinds of JPEG that libjpeg itself turns into RGB as PIL does


def read_image(path: str | Path) -> Image.Image:
    """An image file in RGB, 8 bits a channel, whatever its name says it is: one of `FORMATS`.

    Grey becomes three equal channels; CMYK is converted as PIL does, without a colour profile; transparency is dropped;
    of 16 bits the upper 8 are kept, where PIL alone would make white of all above 255. An EXIF orientation is not
    applied: the image is as it is stored, as in torchvision's ImageFolder and so in the published figures.

    Raises:
        SfrikError: the file is missing, empty, truncated, no image, no regular file, or of a kind without a conversion; it is
            named.
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
    """The image of `read_image`, with its errors, as uint8 [3, h, w].

    A JPEG in colour or grey is decoded by torchvision, straight to a tensor; every other file, and what torchvision refuses, by
    `read_image`.
    """
    image = _plain_jpeg(Path(path))
    return as_tensor(read_image(path)) if image is None else image


def as_tensor(image: Image.Image) -> Tensor:
    """A PIL image in RGB as uint8 [3, h, w]; the channels of a pixel lie side by side in memory."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _plain_jpeg(path: Path) -> Tensor | None:
    try:
        check_regular(path)
        content = bytearray(path.read_bytes())
        if not content.startswith(b"\xff\xd8"):
            return None
        with warnings.catch_warnings():
            # broken EXIF data; from 0.29 on torchvision says that a later one will leave decoding to torchcodec
            warnings.simplefilter("ignore")
            from torchvision.io import ImageReadMode, decode_jpeg

            with Image.open(io.BytesIO(content), formats=FORMATS[:1]) as header:  # no pixels yet; PIL's limit on their number
                if header.mode not in PLAIN:
                    return None
            return cast(Tensor, decode_jpeg(torch.frombuffer(content, dtype=torch.uint8), ImageReadMode.RGB))
    except Exception:  # read_image says what is wrong, or reads it; there may be no torchvision that decodes
        return None


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image itself, or its upper 8 bits where it has 16."""
    image.load()
    if image.mode.startswith("I"):  # I;16 and its byte orders; some formats give 16 bits as I
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point values without a known range")
    return image


def _why_unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "the file is gone since its folder was listed; start again, and if that fails delete ~/.cache/sfrik/listings"
    if isinstance(error, SfrikError):
        return f"it {str(error).removeprefix(f'{path} ')}"
    if isinstance(error, OSError) and error.strerror:  # of the file system, not of what the file holds
        return error.strerror
    if path.stat().st_size == 0:
        what = "the file is empty"
    elif isinstance(error, UnidentifiedImageError):
        what = f"not an image file ({', '.join(FORMATS[:-1])} and {FORMATS[-1]} are read)"
    else:
        what = str(error) or type(error).__name__
    return f"{what}; copy it again from the data set's archive, or delete it"
