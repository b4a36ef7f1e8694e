"""Decoding of image files of every format and mode in their true colours; broken files are errors that name them."""

from __future__ import annotations

import io
import shutil
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sfrik.datasets.decoding
from sfrik.datasets.decoding import MOST_PIXELS, decode_image, read_image
from sfrik.errors import SfrikError

SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "imagenet-sample"

# JPEG at quality 95 with full chroma changes a smooth image by a few of 255 values. The bound allows that, but not swapped
# or inverted channels, which change it by more than 100.
JPEG_ERROR = 12


@pytest.fixture
def smooth():
    """A smooth RGB image with different channels."""
    x, y = np.meshgrid(np.linspace(0, 1, 48), np.linspace(0, 1, 32))
    return (np.stack([x, y, 1 - x * y], axis=-1) * 255).round().astype(np.uint8)


def pixels(path):
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def test_a_cmyk_jpeg_is_read_in_its_true_colours(tmp_path, smooth):
    Image.fromarray(smooth).convert("CMYK").save(tmp_path / "a.JPEG", quality=95, subsampling=0)
    assert Image.open(tmp_path / "a.JPEG").mode == "CMYK"
    assert np.abs(pixels(tmp_path / "a.JPEG") - smooth).max() <= JPEG_ERROR


def test_an_rgb_and_a_grey_jpeg_are_read_in_their_colours(tmp_path, smooth):
    Image.fromarray(smooth).save(tmp_path / "a.JPEG", quality=95, subsampling=0)
    assert np.abs(pixels(tmp_path / "a.JPEG") - smooth).max() <= JPEG_ERROR
    grey = smooth[:, :, 2]
    Image.fromarray(grey).save(tmp_path / "b.JPEG", quality=95)
    assert np.abs(pixels(tmp_path / "b.JPEG") - grey[:, :, None]).max() <= JPEG_ERROR


@pytest.mark.parametrize("kind", ["png", "webp", "tiff", "bmp", "ppm"])
def test_the_format_is_that_of_the_content_and_not_of_the_name(tmp_path, smooth, kind):
    image = Image.fromarray(smooth)
    image.save(tmp_path / "n02105855_2933.JPEG", format=kind, **({"lossless": True} if kind == "webp" else {}))
    assert np.array_equal(pixels(tmp_path / "n02105855_2933.JPEG"), smooth)


def test_transparency_is_dropped_and_the_colours_stay(tmp_path, smooth):
    image = Image.fromarray(smooth)
    image.putalpha(7)
    image.save(tmp_path / "a.png")
    assert np.array_equal(pixels(tmp_path / "a.png"), smooth)
    grey = Image.fromarray(smooth[:, :, 0])
    grey.putalpha(7)
    grey.save(tmp_path / "b.png")
    assert np.array_equal(pixels(tmp_path / "b.png"), np.repeat(smooth[:, :, :1], 3, axis=2))


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(0, 256, 2))])
def test_a_palette_is_replaced_by_its_colours(tmp_path, transparency):
    indices = np.arange(128, dtype=np.uint8).reshape(8, 16)
    palette = np.random.default_rng(0).integers(0, 256, (128, 3), dtype=np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putpalette(palette.tobytes())
    image.putdata(indices.ravel().tolist())
    image.save(tmp_path / "a.png", **({} if transparency is None else {"transparency": transparency}))
    assert np.array_equal(pixels(tmp_path / "a.png"), palette[indices])


def test_black_and_white_become_0_and_255(tmp_path):
    Image.fromarray(np.eye(8, dtype=bool)).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "1"
    assert np.array_equal(pixels(tmp_path / "a.png")[:, :, 0], 255 * np.eye(8, dtype=int))


def test_an_exif_orientation_is_not_applied_as_imagefolder_does_not(tmp_path, smooth):
    from torchvision.datasets.folder import pil_loader

    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    Image.fromarray(smooth).save(tmp_path / "a.JPEG", exif=exif)
    assert pixels(tmp_path / "a.JPEG").shape == smooth.shape
    assert np.array_equal(pixels(tmp_path / "a.JPEG"), np.asarray(pil_loader(tmp_path / "a.JPEG")))


def test_broken_exif_data_is_ignored_without_a_warning(tmp_path, smooth):
    # one entry, XResolution (a rational), whose value is beyond the end of the block
    broken = b"Exif\0\0II*\0" + struct.pack("<IHHHII", 8, 1, 0x011A, 5, 1, 4000) + bytes(4)
    Image.fromarray(smooth).save(tmp_path / "a.JPEG", exif=broken)
    with pytest.warns(UserWarning, match=r"Truncated File Read|EXIF"), Image.open(tmp_path / "a.JPEG") as image:
        image.load()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels(tmp_path / "a.JPEG").shape == smooth.shape


# --- files that cannot be read


def reason(path):
    with pytest.raises(SfrikError) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(f"cannot read image {path}: ")
    assert "\n" not in message
    return message.removeprefix(f"cannot read image {path}: ")


def test_an_empty_file_text_and_a_missing_file_are_reported_by_name(tmp_path):
    (tmp_path / "empty.JPEG").touch()
    assert reason(tmp_path / "empty.JPEG") == "the file is empty; copy it again from the data set's archive, or delete it"
    (tmp_path / "page.JPEG").write_text("<html>404</html>", encoding="utf-8")
    assert reason(tmp_path / "page.JPEG").startswith(
        "not an image file (JPEG, PNG, BMP, PPM, TIFF and WEBP are read); copy it again"
    )
    assert reason(tmp_path / "gone.JPEG").startswith("the file was removed after its folder was listed; start again")
    (tmp_path / "folder.JPEG").mkdir()
    assert reason(tmp_path / "folder.JPEG") == "it is a folder and not a regular file"


@pytest.mark.parametrize("kind", ["JPEG", "png", "webp", "tiff", "bmp", "ppm"])
def test_a_truncated_file_is_reported_wherever_it_is_cut(tmp_path, kind):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(buffer, format=kind)
    whole = buffer.getvalue()
    for length in (1, 20, len(whole) // 4, len(whole) // 2, len(whole) * 3 // 4):
        path = tmp_path / f"{length}.JPEG"
        path.write_bytes(whole[:length])
        assert reason(path).endswith("; copy it again from the data set's archive, or delete it")


def test_an_image_above_the_limit_of_pixels_is_reported_and_photos_of_200_megapixels_are_below_it(tmp_path, monkeypatch):
    assert 200_000_000 < MOST_PIXELS <= 2 * Image.MAX_IMAGE_PIXELS
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for read in (read_image, decode_image):
        with pytest.raises(SfrikError, match=r"a\.png: Image size \(4096 pixels\) exceeds limit of 2000 pixels .*: scale"):
            read(tmp_path / "a.png")


def test_a_dangling_link_and_a_kind_of_tiff_that_pillow_does_not_read_are_reported_as_such(tmp_path):
    (tmp_path / "a.JPEG").symlink_to("gone.JPEG")
    assert reason(tmp_path / "a.JPEG") == "it is a link to gone.JPEG, which does not exist: restore that file, or delete the link"
    Image.new("L", (4, 4)).save(tmp_path / "b.tiff", tiffinfo={339: 5})  # complex numbers
    assert reason(tmp_path / "b.tiff").startswith(
        "a TIFF file that is damaged, or of a kind that Pillow does not read (convert it)"
    )


def test_colours_multiplied_by_alpha_are_divided_and_lab_is_converted(tmp_path):
    Image.new("LAB", (4, 4), (113, 192, 158)).save(tmp_path / "lab.tiff")
    Image.new("LA", (4, 4), (100, 128)).save(tmp_path / "la.tiff")
    kind_of_alpha = struct.pack("<HHI", 338, 3, 1)
    content = (tmp_path / "la.tiff").read_bytes().replace(kind_of_alpha + b"\2", kind_of_alpha + b"\1")
    (tmp_path / "la.tiff").write_bytes(content)
    assert Image.open(tmp_path / "la.tiff").mode == "La"
    for name, colour in (("la", (199, 199, 199)), ("lab", (199, 31, 60))):
        assert np.abs(pixels(tmp_path / f"{name}.tiff")[0, 0] - colour).max() <= 2


# --- real photos


@pytest.fixture(scope="module")
def photos():
    paths = sorted(SAMPLE.glob("*.JPEG"))
    if not paths:
        pytest.skip(f"the sample of ImageNet is not at {SAMPLE}")
    return paths


def test_real_jpegs_are_read_as_torchvision_reads_them(photos):
    from torchvision.datasets.folder import pil_loader

    for path in photos[::4]:
        assert np.array_equal(pixels(path), np.asarray(pil_loader(path)))


def test_real_jpegs_cut_short_are_reported_by_name(photos, tmp_path):
    for path in photos[::4]:
        copy = tmp_path / path.name
        shutil.copyfile(path, copy)
        copy.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert reason(copy).startswith("image file is truncated")


# --- as tensors


def same_as_read(path):
    """The decoded image, checked to be that of `read_image` up to the rounding of another decoder."""
    decoded, read = decode_image(path), torch.from_numpy(np.array(read_image(path))).permute(2, 0, 1)
    assert decoded.dtype == torch.uint8
    assert decoded.shape == read.shape
    different = (decoded.int() - read.int()).abs().float()
    assert different.mean() < 0.5, "two builds of the same decoder agree to one value, and exactly in nearly all pixels"
    assert different.max() <= 4
    return decoded


@pytest.mark.parametrize("keywords", [{}, {"subsampling": 0}, {"progressive": True}, {"keep_rgb": True}, {"quality": 10}])
def test_a_jpeg_in_colour_or_grey_is_decoded_without_pil(tmp_path, smooth, keywords, monkeypatch):
    Image.fromarray(smooth).save(tmp_path / "a.JPEG", **keywords)
    Image.fromarray(smooth[:, :, 1]).save(tmp_path / "b.JPEG", **{k: v for k, v in keywords.items() if k != "keep_rgb"})
    images = [same_as_read(tmp_path / name) for name in ("a.JPEG", "b.JPEG")]
    assert torch.equal(images[1][0], images[1][1])
    monkeypatch.setattr(sfrik.datasets.decoding, "read_image", lambda path: pytest.fail("PIL decoded it"))
    assert torch.equal(decode_image(tmp_path / "a.JPEG"), images[0])
    assert torch.equal(decode_image(tmp_path / "b.JPEG"), images[1])


def test_files_of_every_other_kind_are_decoded_as_they_are_read(tmp_path, smooth):
    image = Image.fromarray(smooth)
    image.convert("CMYK").save(tmp_path / "cmyk.JPEG", quality=95)
    cmyk = bytearray((tmp_path / "cmyk.JPEG").read_bytes())
    adobe = cmyk.index(b"Adobe")
    cmyk[adobe + 11] = 2  # the transform: YCCK
    (tmp_path / "ycck.JPEG").write_bytes(cmyk)
    image.save(tmp_path / "png.JPEG", format="png")
    image.convert("P").save(tmp_path / "palette.JPEG", format="png")
    Image.fromarray(np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)).save(tmp_path / "deep.JPEG", format="png")
    image.save(tmp_path / "tall.JPEG", format="webp")
    for kind in ("cmyk", "ycck", "png", "palette", "deep", "tall"):
        read = torch.from_numpy(np.array(read_image(tmp_path / f"{kind}.JPEG"))).permute(2, 0, 1)
        assert torch.equal(decode_image(tmp_path / f"{kind}.JPEG"), read)
    assert (decode_image(tmp_path / "cmyk.JPEG").int() - decode_image(tmp_path / "ycck.JPEG").int()).abs().max() > 100


def test_a_file_that_cannot_be_decoded_is_reported_as_by_read_image(tmp_path, smooth, monkeypatch):
    Image.fromarray(smooth).save(tmp_path / "whole.JPEG")
    whole = (tmp_path / "whole.JPEG").read_bytes()
    contents = {"empty": b"", "page": b"<html>404</html>", "two": whole[:2]}
    contents |= {f"cut{k}": whole[: len(whole) * k // 8] for k in range(1, 8)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in (*contents, "gone"):
        with pytest.raises(SfrikError, match=f"^cannot read image .*{name}: ") as caught:
            decode_image(tmp_path / name)
        assert str(caught.value) == f"cannot read image {tmp_path / name}: {reason(tmp_path / name)}"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(SfrikError, match="exceeds limit of 200 pixels"):
        decode_image(tmp_path / "whole.JPEG")


def test_real_jpegs_are_decoded_as_by_read_image(photos):
    for path in photos[1::4]:
        same_as_read(path)
