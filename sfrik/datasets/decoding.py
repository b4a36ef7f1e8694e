"""Decoding of image files: to RGB, whatever their format; a broken file is an error that names it.

ImageNet has 22 files in CMYK, a PNG and several broken EXIF blocks, all under names that end in .JPEG.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import get_worker_info

from sfrik.datasets.depth import eight_bits
from sfrik.errors import SfrikError
from sfrik.ops.collectives import rank
from sfrik.system.files import check_regular
from sfrik.system.progress import track
from sfrik.system.terminal import warn_once

__all__ = ["MOST_PIXELS", "as_tensor", "decode_all", "decode_image", "read_image", "take_guesses", "warn_of_guess"]

# Photos of more than 178,956,970 pixels, Pillow's limit, exist. This many take 1 GiB in memory. A limit that is not Pillow's
# default was set by the user, and stays.
MOST_PIXELS = 2**28
if Image.MAX_IMAGE_PIXELS == 89478485:
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # Pillow refuses twice this number

# The formats of sfrik.datasets.listing.EXTENSIONS. PIL's other parsers are never used, whatever a file's name.
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP")
PLAIN = ("RGB", "L")  # modes of a JPEG that libjpeg itself converts to RGB as PIL does
UNMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}  # modes whose colours were multiplied by alpha

_splits: dict[tuple[Any, ...], Tensor] = {}  # read by `decode_all`: several commands of a notebook read the same ones
_guesses: list[str] = []  # in a process that reads for a data loader: a text for the process that trains


def read_image(path: str | Path) -> Image.Image:
    """Read an image file in RGB with 8 bits per channel. Its content, not its name, decides which of `FORMATS` it is.

    Grey becomes three equal channels; CMYK, YCbCr and Lab are converted as PIL does, without a colour profile; transparency is
    dropped; of several pictures the first is read. More than 8 bits are reduced by `sfrik.datasets.depth.eight_bits`, where PIL
    would turn all values above 255 white; a line on stderr reports the first image whose range had to be guessed. An EXIF
    orientation is not applied: the image is as it is stored, as in torchvision's ImageFolder and so in the published results.

    Raises:
        SfrikError: the file is missing, empty, truncated, not an image, not a regular file, has more than 2^28 pixels or is of a
            mode that has no conversion. The message names the file.
    """
    try:
        check_regular(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken EXIF data beside sound pixels
            reopen = partial(Image.open, path, formats=FORMATS)
            with reopen() as image:
                shallow, guess = eight_bits(image, reopen)
                rgb = shallow.convert(UNMULTIPLIED.get(shallow.mode, "RGB")).convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # PIL's readers of broken files raise anything from OSError to struct.error
        raise SfrikError(f"cannot read image {path}: {_why_unreadable(Path(path), error)}") from None
    if guess is not None and not _guesses:
        text = f"{path} does not state which of its values is white: {guess:g} is used, which its largest value suggests; "
        _guesses.append(text + "further images like it are not reported")
        if get_worker_info() is None:
            warn_of_guess(take_guesses())
    return rgb


def take_guesses() -> list[str]:
    """What `read_image` has to report of this process since the last call: a line, or nothing."""
    taken = _guesses.copy()
    _guesses.clear()
    return taken


def warn_of_guess(lines: list[str]) -> None:
    """Print, on rank 0, the first line that reports an image whose white was guessed."""
    for line in lines[:1] if rank() == 0 else []:
        warn_once(line, kind="white")


def decode_image(path: str | Path) -> Tensor:
    """Read an image file as uint8 [3, h, w], with the conversions and errors of `read_image`.

    A JPEG in RGB or grey is decoded by torchvision, directly to a tensor; any other file, and one that torchvision cannot
    decode, by `read_image`.
    """
    image = _plain_jpeg(Path(path))
    return as_tensor(read_image(path)) if image is None else image


def decode_all(decode: Callable[[int], Tensor], paths: Sequence[Path], dataset: str) -> Tensor:
    """Read images of 32 x 32 pixels into memory, uint8 [n, 3, 32, 32]. The last three splits are kept, for other calls.

    Args:
        decode: index -> image, uint8 [3, h, w].
        paths: their files.
        dataset: name of the data set, for the errors.

    Raises:
        SfrikError: an image cannot be read or has another size; the message names it.
    """
    key = tuple(_version(path) for path in paths)
    if (known := _splits.get(key)) is not None:
        return known
    pixels = torch.empty((len(paths), 3, 32, 32), dtype=torch.uint8)
    for index in track(range(len(paths)), len(paths), "images read", show=rank() == 0):
        try:
            image = decode(index)
        except SfrikError as error:
            raise SfrikError(f"{error} ({dataset} is read at the start, where skip_broken does not apply)") from None
        if image.shape != pixels.shape[1:]:
            raise SfrikError(
                f"{paths[index]} has {image.shape[2]} x {image.shape[1]} pixels and not the 32 x 32 of {dataset}: check "
                "--data-dir (DATA=), or use --dataset image_folder"
            )
        pixels[index] = image
    if len(_splits) == 3:
        del _splits[next(iter(_splits))]
    return _splits.setdefault(key, pixels)


def _version(path: Path) -> tuple[int, ...]:
    """What identifies the content of a file as long as this process runs."""
    try:
        status = os.stat(path)
    except OSError:  # the reading that follows reports it
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


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


def _why_unreadable(path: Path, error: Exception) -> str:
    again = "copy it again from the data set's archive, or delete it"
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return f"it is a link to {os.readlink(path)}, which does not exist: restore that file, or delete the link"
    if isinstance(error, FileNotFoundError):
        return "the file was removed after its folder was listed; start again"
    if isinstance(error, SfrikError):
        return f"it {str(error).removeprefix(f'{path} ')}"
    if isinstance(error, Image.DecompressionBombError):  # "Image size (... pixels) exceeds limit of ... pixels, could be ..."
        return f"{str(error).split(', ')[0]} (1 GiB of memory by default): scale the image down, or delete it"
    if isinstance(error, OSError) and error.strerror:  # from the file system, not from the content
        return error.strerror
    if path.stat().st_size == 0:
        return f"the file is empty; {again}"
    if isinstance(error, UnidentifiedImageError):
        head = path.read_bytes()[:16]
        kinds = [name for name in FORMATS if (accept := Image.OPEN[name][1]) and accept(head)]
        if kinds:
            return f"a {kinds[0]} file that is damaged, or of a kind that Pillow does not read (convert it); {again}"
        return f"not an image file ({', '.join(FORMATS[:-1])} and {FORMATS[-1]} are read); {again}"
    return f"{str(error) or type(error).__name__}; {again}"
