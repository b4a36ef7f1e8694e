"""The augmentations: shapes, the rate of each random step, and affine maps of digits within their ranges.

Rates are counted over draws from a fixed seed and compared within 4 standard deviations of the binomial distribution, which a
correct rate exceeds in 6 of 100,000 seeds.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator
from torchvision.transforms.v2.functional import _geometry as geometry

from sfrik.views.base import build_views, probe_views, resize_for_test
from sfrik.views.digits import digit_views
from sfrik.views.photos import STATISTICS, bounded, normalise

DRAWS = 500
METHODS = ["vicreg", "simclr", "auh"]
GREY = {"vicreg": 0.2, "simclr": 0.2, "auh": 0.2}
JITTER = {"vicreg": 0.8, "simclr": 0.8, "auh": 1.0}
BRIGHTNESS = {"vicreg": 0.4, "simclr": 0.8, "auh": 0.4}
BLUR = {"vicreg": (1.0, 0.1), "simclr": (0.5, 0.5), "auh": (0.0, 0.0)}
SIZE = 16


def within_four_sigma(count, p, n=DRAWS):
    return abs(count - n * p) <= 4 * math.sqrt(n * p * (1 - p))


def plain(colour):
    return Image.new("RGB", (24, 24), colour)


def ramp(axis):
    """A grey image that rises from 20 to 235 from left to right (axis 1) or from top to bottom (axis 0)."""
    values = np.linspace(20, 235, 48).astype(np.uint8)
    square = np.broadcast_to(values[None, :] if axis == 1 else values[:, None], (48, 48))
    return Image.fromarray(np.repeat(square[:, :, None], 3, axis=2))


def drawn(method, image, dataset="imagenet", draws=DRAWS):
    """First and second views, each [draws, 3, h, w] with values 0 to 255, without the normalisation."""
    torch.manual_seed(7)
    views = build_views(method, SIZE, dataset)
    mean, std = (torch.tensor(values)[:, None, None] for values in STATISTICS[dataset])
    both = [views.per_image(image) for _ in range(draws)]
    return [(torch.stack([pair[view] for pair in both]) * std + mean) * 255 for view in range(2)]


# --- shapes


@pytest.mark.parametrize("dataset", ["imagenet", "stl10", "cifar10"])
@pytest.mark.parametrize("method", METHODS)
def test_two_views_are_float_tensors_of_the_given_size(method, dataset):
    image = ramp(0).resize((50, 35))
    views = build_views(method, 20, dataset)
    pair = views.per_image(image)
    assert len(pair) == 2
    for view in pair:
        assert view.shape == (3, 20, 20)
        assert view.dtype == torch.float32
        assert torch.isfinite(view).all()
    assert not torch.equal(*pair)
    batch = [torch.stack([view, view]) for view in pair]
    assert all(torch.equal(a, b) for a, b in zip(views.per_batch(batch, Generator()), batch, strict=True))


@pytest.mark.parametrize("dataset", ["imagenet", "stl10", "cifar10"])
def test_the_view_of_a_probe_is_one_float_tensor_of_the_given_size(dataset):
    (view,) = probe_views(20, dataset).per_image(ramp(0))
    assert view.shape == (3, 20, 20)
    assert view.dtype == torch.float32


@pytest.mark.parametrize(
    ("dataset", "shape"),
    [("imagenet", (3, 28, 28)), ("image_folder", (3, 28, 28)), ("stl10", (3, 48, 48)), ("cifar10", (3, 48, 48))],
)
def test_test_images_are_cropped_at_the_centre_or_unchanged_when_small(dataset, shape):
    (view,) = resize_for_test(28, dataset).per_image(ramp(0))
    assert view.shape == shape


CROPS = {
    "obow": {"num_img_crops": 1, "image_crop_size": 32, "num_img_patches": 1, "img_patch_size": 16},
    "swav": {"nmb_crops": [1], "size_crops": [32], "min_scale_crops": [0.05], "max_scale_crops": [1.0]},
}


@pytest.mark.parametrize("pipeline", ["pil", "tensor"])
def test_an_extreme_aspect_ratio_takes_no_memory(pipeline, monkeypatch):
    """Resized to a shorter side of 256 pixels, 20000 x 2 pixels are 2.5 million x 256."""
    pixels = []

    def limited(resize):
        def with_limit(image, size, *arguments, **keywords):
            pixels.append(math.prod(size))
            assert pixels[-1] < 1e6
            return resize(image, size, *arguments, **keywords)

        return with_limit

    monkeypatch.setattr(Image.Image, "resize", limited(Image.Image.resize))
    monkeypatch.setattr(geometry, "interpolate", limited(geometry.interpolate))
    views = [build_views(kind, 64, "imagenet", pipeline, **CROPS.get(kind, {})) for kind in ("vicreg", "obow", "swav")]
    views += [probe_views(64, "imagenet"), resize_for_test(64, "imagenet")] if pipeline == "pil" else []
    for shape in ((20000, 2), (1, 20000)):
        image = Image.new("RGB", shape, (200, 30, 60))
        for drawn in views:
            pixels.clear()
            drawn.per_image(torch.from_numpy(np.array(image)).permute(2, 0, 1) if drawn.of_tensors else image)
            assert pixels


def test_other_images_are_resized_as_they_are():
    wide = Image.new("RGB", (320, 10))
    assert bounded(wide) is wide
    ramps = torch.arange(400).expand(3, 10, 400)
    assert bounded(ramps)[0, 0].tolist() == list(range(40, 360)), "the centre"


def test_the_centre_crop_of_a_test_image_is_seven_eighths_of_its_shorter_side():
    values = np.zeros((256, 512, 3), dtype=np.uint8)
    values[:, 144:368] = 255  # the 224 columns in the middle of a height of 256
    (view,) = resize_for_test(224, "imagenet").per_image(Image.fromarray(values))
    white = normalise("imagenet")(plain((255, 255, 255)))[:, 0, 0]
    # a height of 256 is not resized, so the crop shows exactly these columns
    torch.testing.assert_close(view, white[:, None, None].expand(3, 224, 224), rtol=0, atol=0)


@pytest.mark.parametrize("dataset", ["imagenet", "stl10", "cifar10"])
def test_normalisation_takes_the_mean_to_zero_and_one_deviation_to_one(dataset):
    mean, std = np.array(STATISTICS[dataset])
    for shift in (0, 1):
        view = normalise(dataset)(plain(tuple(int(v) for v in np.rint(255 * (mean + shift * std)))))
        # rounding to a byte is half a step of 1/255; divided by a deviation of at least 0.224 it is less than 0.009
        torch.testing.assert_close(view, torch.full((3, 24, 24), float(shift)), rtol=0, atol=0.009)


# --- rates


@pytest.mark.parametrize("method", METHODS)
def test_each_view_is_grey_at_its_rate(method):
    for view in drawn(method, plain((220, 60, 90))):
        spread = view.amax(dim=1) - view.amin(dim=1)  # over the channels
        grey = spread.flatten(1).amax(dim=1) < 0.5  # half a step of a byte
        assert within_four_sigma(int(grey.sum()), GREY[method])


@pytest.mark.parametrize("method", METHODS)
def test_the_colours_of_the_first_view_are_jittered_at_their_rate(method):
    colour = torch.tensor([120.0, 60.0, 90.0])
    grey = float(Image.new("RGB", (1, 1), (120, 60, 90)).convert("L").getpixel((0, 0)))
    values = drawn(method, plain((120, 60, 90)))[0][:, :, 8, 8]
    # within 1.5 bytes: torchvision's grey rounds differently from PIL's, and one jitter in some hundred changes less
    kept = ((values - colour).abs().amax(dim=1) < 0.5) | ((values - grey).abs().amax(dim=1) < 1.5)
    moved = DRAWS - int(kept.sum())
    if JITTER[method] == 1.0:
        assert moved >= 0.98 * DRAWS
    else:
        assert within_four_sigma(moved, JITTER[method])


@pytest.mark.parametrize("method", METHODS)
def test_brightness_fills_the_range_of_the_method_and_stays_within_it(method):
    factors = drawn(method, plain((100, 100, 100)))[0][:, 0, 8, 8] / 100  # the other steps keep uniform grey
    most = BRIGHTNESS[method]
    # 0.02: two bytes of rounding; the probability that none of 400 uniform draws is in the last tenth is 0.9^400 = 5e-19
    assert 1 - most - 0.02 <= factors.min() <= 1 - 0.8 * most
    assert 1 + 0.8 * most <= factors.max() <= 1 + most + 0.02


@pytest.mark.parametrize("method", METHODS)
def test_the_first_view_is_mirrored_half_of_the_time_and_never_upside_down(method):
    first = drawn(method, ramp(1))[0].mean(dim=(1, 2))  # [draws, width]
    rises = first[:, SIZE // 2 :].mean(dim=1) - first[:, : SIZE // 2].mean(dim=1)
    decided = int((rises != 0).sum())  # a crop that the jitter made white everywhere looks the same mirrored
    assert decided > 0.9 * DRAWS
    assert within_four_sigma(int((rises < 0).sum()), 0.5, decided)
    upright = drawn(method, ramp(0))[0].mean(dim=(1, 3))  # [draws, height]
    assert (upright[:, SIZE // 2 :].mean(dim=1) >= upright[:, : SIZE // 2].mean(dim=1)).all()


def test_vicreg_solarises_the_second_view_at_a_rate_of_a_fifth_and_the_first_never():
    # White stays at 153 or more under a brightness of 0.6 to 1.4; solarised it is 102 or less.
    first, second = ((view.amax(dim=(1, 2, 3)) < 128) for view in drawn("vicreg", plain((255, 255, 255))))
    assert int(first.sum()) == 0
    assert within_four_sigma(int(second.sum()), 0.2)


@pytest.mark.parametrize("method", ["simclr", "auh"])
def test_other_methods_solarise_neither_view(method):
    for view in drawn(method, ramp(0)):
        rows = view.mean(dim=(1, 3))
        assert (rows[:, -1] >= rows[:, 0]).all(), "every other step keeps the order of brightness"
        assert (rows[:, -1] > rows[:, 0]).sum() > 0.9 * DRAWS


@pytest.mark.parametrize("method", METHODS)
def test_each_view_is_blurred_at_its_rate_with_a_radius_from_a_tenth_to_two(method, monkeypatch):
    radii = []

    def blackened(image, kernel):
        radii.append(kernel.radius)
        return Image.new("RGB", image.size)

    monkeypatch.setattr(Image.Image, "filter", blackened)
    for view, p in zip(drawn(method, plain((200, 200, 200))), BLUR[method], strict=True):
        blurred = int((view.amax(dim=(1, 2, 3)) < 0.5).sum())
        assert blurred == DRAWS * p if p in (0, 1) else within_four_sigma(blurred, p)
    if radii:
        low, high = 0.1, 2.0
        assert low <= min(radii)
        assert max(radii) <= high
        deviation = (high - low) / math.sqrt(12 * len(radii))
        assert abs(np.mean(radii) - (low + high) / 2) <= 4 * deviation


def test_the_same_seed_gives_the_same_views():
    one, other = (drawn("vicreg", ramp(1), draws=5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- digits


@pytest.fixture
def digits():
    """Four uint8 images with a bright upper left corner, which look different when mirrored or rotated."""
    images = torch.zeros(4, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 4:14, 6:10] = 255
    images[:, :, 4:8, 6:22] = 128
    return images


STILL = {"rotation": 0.0, "scale": (1.0, 1.0), "shear": 0.0, "shift": 0.0, "contrast": 0.0}


def test_digit_views_depend_on_their_generator(digits):
    first, again, other = (digit_views(digits, Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert first.shape == digits.shape
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1]), "each image of a batch has its own draw"


def test_digit_views_with_empty_ranges_are_the_digits_themselves(digits):
    mean, std = STATISTICS["mnist5k"]
    expected = (digits.float() / 255 - mean[0]) / std[0]
    # positions in float32 are exact to about 1e-6 of a pixel; a full step between pixels is 1 / 0.308 = 3.2
    torch.testing.assert_close(digit_views(digits, Generator().manual_seed(0), **STILL), expected, rtol=0, atol=2e-5)
    (test_view,) = resize_for_test(28, "mnist5k").per_batch([digits], Generator())
    assert torch.equal(test_view, expected)


def recorded_maps(monkeypatch):
    """A list to which each affine map [n, 2, 3] is added when it is drawn."""
    seen = []
    affine_grid = torch.nn.functional.affine_grid

    def recorded(theta, *arguments, **keywords):
        seen.append(theta)
        return affine_grid(theta, *arguments, **keywords)

    monkeypatch.setattr(torch.nn.functional, "affine_grid", recorded)
    return seen


def test_digits_are_never_mirrored_and_stay_within_their_ranges(monkeypatch):
    seen = recorded_maps(monkeypatch)
    digit_views(torch.zeros(4000, 1, 4, 4, dtype=torch.uint8), Generator().manual_seed(0), scale=(0.7, 1.3), shift=0.15)
    theta = torch.cat(seen).double()
    determinant = torch.linalg.det(theta[:, :, :2])
    # both axes are zoomed by 0.7 to 1.3; the map goes from the view to the image, so it shrinks where the digit grows
    assert (determinant > 1 / 1.3**2 - 1e-6).all()
    assert (determinant < 1 / 0.7**2 + 1e-6).all()
    assert theta[:, :, 2].abs().max() <= 2 * 0.15 + 1e-6, "the side is 2 in the coordinates of a grid"
    assert theta[:, :, 2].abs().max() > 0.28


def test_a_digit_is_rotated_in_both_directions_and_within_its_range(monkeypatch):
    seen = recorded_maps(monkeypatch)
    digit_views(torch.zeros(4000, 1, 4, 4, dtype=torch.uint8), Generator().manual_seed(0), **{**STILL, "rotation": 25.0})
    angles = torch.rad2deg(torch.atan2(seen[0][:, 1, 0], seen[0][:, 0, 0]))
    assert angles.abs().max() <= 25 + 1e-4
    # the probability that none of 4,000 uniform draws is in the last twentieth is 0.95^4000 = 1e-89
    assert angles.min() < -22.5
    assert angles.max() > 22.5


def test_digits_get_two_views_for_pretraining_and_one_for_a_probe(digits):
    both = build_views("digits", 28, "mnist5k").per_batch([digits], Generator().manual_seed(0))
    assert len(both) == 2
    assert not torch.equal(*both)
    assert len(probe_views(28, "mnist5k").per_batch([digits], Generator().manual_seed(0))) == 1
