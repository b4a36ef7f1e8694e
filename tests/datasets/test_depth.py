"""Images of more than 8 bits: which value is white, by what the file states or by its own range."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from sfrik.datasets import decoding
from sfrik.datasets.decoding import read_image
from sfrik.datasets.images import image_files
from sfrik.datasets.loader import batches
from sfrik.errors import SfrikError
from sfrik.views.base import resize_for_test

GREY = np.linspace(0, 255, 48 * 32).reshape(32, 48)  # what every file of this page shows
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)
ROUNDING = 1.0  # of the stored value and of the result, half a level each; the upper 8 bits are up to one level too low
MAX_SAMPLE, SMAX_SAMPLE, PHOTOMETRIC = 281, 341, 262


@pytest.fixture(autouse=True)
def nothing_printed_yet(monkeypatch):
    monkeypatch.setattr("sfrik.system.terminal._printed", set())


def stored(grey, white):
    return np.round(grey / 255 * white).astype(np.uint16)


def error(path, expected=GREY):
    """Largest difference in levels of the image that is read."""
    image = np.asarray(read_image(path)).astype(int)
    return np.abs(image - (expected if expected.ndim == 3 else expected[..., None])).max()


def png(values, bits=None):
    """A PNG of 16 bits, uint16 [h, w] or [h, w, channels]; `bits` is written into its sBIT chunk."""
    height, width, channels = values.shape if values.ndim == 3 else (*values.shape, 1)

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    significant = chunk(b"sBIT", bytes([bits] * channels)) if bits else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + significant + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(values, order="<", planar=False, largest=None):
    """An uncompressed TIFF of 16 bits, uint16 [h, w, 3]; `planar`: one channel after the other."""
    height, width, channels = values.shape
    data = (values.transpose(2, 0, 1) if planar else values).astype(f"{order}u2").tobytes()
    strips = channels if planar else 1
    tags = {256: [width], 257: [height], 258: [16] * channels, 259: [1], 262: [2], 277: [channels], 278: [height]}
    tags |= {284: [1 + planar]} | ({MAX_SAMPLE: [largest] * channels} if largest else {})
    tags |= {273: [8 + k * (len(data) // strips) for k in range(strips)], 279: [len(data) // strips] * strips}
    outside = 8 + len(data) + 2 + 12 * len(tags) + 4
    entries, rest = b"", b""
    for tag, numbers in sorted(tags.items()):
        content = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(content) > 4:
            rest += content
            content = struct.pack(f"{order}I", outside + len(rest) - len(content))
        entries += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + content
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data))
    return head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + rest


# --- 16 bits


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_values_of_fewer_bits_in_a_file_of_16_or_32_keep_their_levels(tmp_path, bits):
    values = stored(GREY, 2**bits - 1)
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values).save(tmp_path / "a.tiff")
    Image.fromarray(values).save(tmp_path / "b.tiff", compression="tiff_lzw")
    Image.fromarray(values.astype(np.int32)).save(tmp_path / "c.tiff")
    (tmp_path / "low.png").write_bytes(png(values, bits))
    (tmp_path / "left.png").write_bytes(png(values << (16 - bits), bits))  # as the specification wants
    (tmp_path / "alpha.png").write_bytes(png(np.stack([values, np.full_like(values, 65535)], axis=-1)))
    for path in tmp_path.iterdir():
        assert error(path) <= ROUNDING, path.name
    (tmp_path / "dark.png").write_bytes(png(stored(GREY / 256, 2**bits - 1) << (16 - bits), bits))
    assert error(tmp_path / "dark.png", GREY / 256) <= ROUNDING, "values in the upper bits, all of them small"


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_so_do_colours_of_which_pillow_keeps_the_upper_bytes(tmp_path, bits):
    values = stored(COLOUR, 2**bits - 1)
    (tmp_path / "a.png").write_bytes(png(values))
    (tmp_path / "low.png").write_bytes(png(values, bits))
    (tmp_path / "left.png").write_bytes(png(values << (16 - bits), bits))
    (tmp_path / "alpha.png").write_bytes(png(np.concatenate([values, np.full_like(values[..., :1], 65535)], axis=-1)))
    for order in "<>":
        for planar in (False, True):
            (tmp_path / f"{'le' if order == '<' else 'be'}{planar}.tiff").write_bytes(tiff(values, order, planar))
    for path in tmp_path.iterdir():
        assert error(path, COLOUR) <= ROUNDING, path.name


@pytest.mark.parametrize("kind", ["png", "tiff", "ppm"])
def test_of_16_bits_the_upper_8_are_kept_without_a_warning(tmp_path, kind, capsys):
    values = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    Image.fromarray(values).save(tmp_path / f"a.{kind}")
    assert np.array_equal(np.asarray(read_image(tmp_path / f"a.{kind}")), np.repeat((values >> 8)[:, :, None], 3, axis=2))
    assert capsys.readouterr().err == ""


# --- what the file states


@pytest.mark.parametrize("white", [100, 600, 1000, 40000])
def test_the_stated_largest_value_is_white_without_a_warning(tmp_path, white, capsys):
    darker = GREY / 4
    values = stored(darker, white)
    Image.fromarray(values).save(tmp_path / "a.tiff", tiffinfo={MAX_SAMPLE: white})
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "b.tiff", tiffinfo={SMAX_SAMPLE: float(white)})
    (tmp_path / "c.tiff").write_bytes(tiff(np.repeat(values[..., None], 3, axis=-1), largest=white))
    numbers = values.astype(">u2" if white > 255 else "u1").tobytes()
    (tmp_path / "d.pgm").write_bytes(b"P5\n48 32\n%d\n" % white + numbers)
    for path in tmp_path.iterdir():
        assert error(path, darker) <= ROUNDING + 127 / white, path.name
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_a_maxval_of_65535_says_nothing_about_the_values(tmp_path, bits, capsys):
    values = stored(COLOUR, 2**bits - 1)
    (tmp_path / "a.ppm").write_bytes(b"P6\n48 32\n65535\n" + values.astype(">u2").tobytes())
    assert error(tmp_path / "a.ppm", COLOUR) <= ROUNDING
    grey = values[..., 0]
    (tmp_path / "b.pgm").write_bytes(b"P5\n48 32\n65535\n" + grey.astype(">u2").tobytes())
    (tmp_path / "c.pgm").write_bytes(b"P2\n48 32\n65535\n" + b" ".join(b"%d" % value for value in grey.ravel()))
    assert error(tmp_path / "b.pgm") <= ROUNDING
    assert error(tmp_path / "c.pgm") <= ROUNDING
    assert f"{2**bits - 1} is used" in capsys.readouterr().err
    whole = np.round(COLOUR / 255 * 65535).astype(">u2")
    (tmp_path / "whole.ppm").write_bytes(b"P6\n48 32\n65535\n" + whole.tobytes())
    assert error(tmp_path / "whole.ppm", COLOUR) <= 0.5


@pytest.mark.parametrize(("lowest", "rounding"), [(-128, ROUNDING), (0, 2.5)])  # 256 levels and 128
def test_eight_bits_with_a_sign_do_not_wrap_around(tmp_path, lowest, rounding):
    data = np.round(GREY / 255 * (127 - lowest) + lowest).astype(np.int8).tobytes()
    tags = {256: 48, 257: 32, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 32, 279: len(data), 339: 2}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    content = b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)
    (tmp_path / "a.tiff").write_bytes(content)
    assert error(tmp_path / "a.tiff") <= rounding


def test_a_stated_largest_value_that_is_exceeded_is_not_used(tmp_path):
    Image.fromarray(stored(GREY, 4095)).save(tmp_path / "a.tiff", tiffinfo={MAX_SAMPLE: 255})
    assert error(tmp_path / "a.tiff") <= ROUNDING


def test_twelve_packed_bits_and_a_tiff_in_which_zero_is_white_are_read_as_they_state(tmp_path):
    values = stored(GREY / 8, 4095).ravel().astype(int)
    pairs = np.stack([values[::2] >> 4, (values[::2] & 15) << 4 | values[1::2] >> 8, values[1::2] & 255], axis=1)
    data = pairs.astype(np.uint8).tobytes()
    tags = {256: 48, 257: 32, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 32, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    content = b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)
    (tmp_path / "a.tiff").write_bytes(content)
    assert error(tmp_path / "a.tiff", GREY / 8) <= ROUNDING
    Image.fromarray(stored(255 - GREY, 65535)).save(tmp_path / "b.tiff", tiffinfo={PHOTOMETRIC: 0})
    assert error(tmp_path / "b.tiff") <= ROUNDING


# --- their own range


@pytest.mark.parametrize("white", [1, 255, 65535, 1e-4, 1.2])
def test_floating_point_values_are_never_black(tmp_path, white):
    Image.fromarray((GREY / 255 * white).astype(np.float32)).save(tmp_path / "a.tiff")
    assert error(tmp_path / "a.tiff") <= ROUNDING


def test_values_from_0_to_1_and_of_8_bits_keep_their_brightness(tmp_path):
    for name, values in (("a", GREY / 510), ("b", GREY / 2)):
        Image.fromarray(values.astype(np.float32)).save(tmp_path / f"{name}.tiff")
        assert error(tmp_path / f"{name}.tiff", GREY / 2) <= ROUNDING


def test_of_negative_values_the_smallest_is_black(tmp_path):
    Image.fromarray((GREY / 255 * 4000 - 1000).astype(np.int32)).save(tmp_path / "a.tiff")
    Image.fromarray((GREY / 255 * 2 - 1).astype(np.float32)).save(tmp_path / "b.tiff")
    assert error(tmp_path / "a.tiff") <= ROUNDING
    assert error(tmp_path / "b.tiff") <= ROUNDING


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_rejected(tmp_path, value):
    values = GREY.astype(np.float32)
    values[3, 4] = value
    Image.fromarray(values).save(tmp_path / "a.tiff")
    with pytest.raises(SfrikError, match=r"^cannot read image .*: it has values that are not finite \(NaN or inf\): replace"):
        read_image(tmp_path / "a.tiff")


def test_a_black_image_of_every_kind_is_black(tmp_path):
    for name, values in (("a", np.uint16), ("b", np.int32), ("c", np.float32)):
        Image.fromarray(np.zeros((4, 4), values)).save(tmp_path / f"{name}.tiff")
        assert not np.asarray(read_image(tmp_path / f"{name}.tiff")).any()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_guess_is_reported_once_by_the_process_that_trains(tmp_path, workers, capfd):
    for k in range(6):
        Image.fromarray(stored(GREY, 4095)).save(tmp_path / f"{k}.png")
    images = image_files(tmp_path, [f"{k}.png" for k in range(6)], np.zeros(6, np.int64), num_classes=1)
    for _ in range(2):
        list(batches(images, np.arange(6), resize_for_test(16, "imagenet"), 2, workers=workers))
    err = capfd.readouterr().err
    assert err.count("does not state which of its values is white: 4095 is used") == 1
    assert len(err.splitlines()) == 1
    assert decoding.take_guesses() == []
