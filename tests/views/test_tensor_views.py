"""The tensor pipeline: each step against PIL's with the same draws, the distributions of the draws, and their seeds.

The distributions of whole views are compared in test_multicrop.py. Bounds are in bytes: PIL rounds, mostly down, after each step,
the tensor pipeline does not.
"""

from __future__ import annotations

import colorsys
import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from scipy import stats
from torch import Generator
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as on_pil

import sfrik.views.photometric
from sfrik.datasets.images import Images
from sfrik.datasets.loader import batches
from sfrik.errors import SfrikError
from sfrik.settings import PretrainSettings
from sfrik.views.base import Views, build_views
from sfrik.views.photometric import Colour, Draws, along_by_convolution, along_by_shifts, box_kernels, change_colours, shift_hue
from sfrik.views.photos import STATISTICS, Whole, policies

LEVEL = 1e-5  # significance level of the tests of distributions; seeds are fixed
CROPS = {name: PretrainSettings(augmentations=name).crops for name in ("vicreg", "simclr", "auh", "obow", "swav")}
SMALL_OBOW = {"num_img_crops": 1, "image_crop_size": 20, "num_img_patches": 2, "img_patch_size": 12}


def photo(seed, width=60, height=45):
    """An image like a photo: smooth colours of every hue with some noise."""
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    return Image.fromarray((np.asarray(smooth) + rng.normal(0, 4, (height, width, 3))).clip(0, 255).astype(np.uint8))


def as_batch(images):
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


PHOTOS = [photo(seed) for seed in range(6)]
NONE = {"order": [-1] * 4, "factors": [0.0] * 4, "grey": False, "radius": 0.0, "solarised": False}


def the_same(**changes):
    """The same draws for each photo."""
    values = {name: torch.tensor([value] * len(PHOTOS)) for name, value in {**NONE, **changes}.items()}
    return Draws(**values)


def plain_step(image, step, factor):
    adjust = (on_pil.adjust_brightness, on_pil.adjust_contrast, on_pil.adjust_saturation, on_pil.adjust_hue)
    return adjust[step](image, factor)


def plain(image, draws, k):
    """The steps of image k's draws, by PIL."""
    for step in draws.order[k].tolist():
        image = image if step < 0 else plain_step(image, step, draws.factors[k, step].item())
    image = image.convert("L").convert("RGB") if draws.grey[k] else image
    image = image.filter(ImageFilter.GaussianBlur(draws.radius[k].item())) if draws.radius[k] else image
    return ImageOps.solarize(image, 128) if draws.solarised[k] else image


def differences(draws):
    """Absolute differences between the two pipelines, in bytes."""
    ours = change_colours(as_batch(PHOTOS), draws) * 255
    theirs = as_batch([plain(image, draws, k) for k, image in enumerate(PHOTOS)])
    return (ours - theirs).abs()


# --- each step


@pytest.mark.parametrize("factor", [0.2, 0.6, 1.0, 1.4, 1.8])
@pytest.mark.parametrize("step", [0, 1, 2], ids=["brightness", "contrast", "saturation"])
def test_a_blend_is_that_of_pil_up_to_its_rounding_down(step, factor):
    order, factors = [step, -1, -1, -1], [9.0] * 4
    factors[step] = factor
    # one byte, and the rounding of the grey image by half a byte times its weight of up to 0.8
    assert differences(the_same(order=order, factors=factors)).max() <= 1.41


@pytest.mark.parametrize("shift", [-0.4, -0.1, 0.05, 0.2])
def test_the_shift_of_the_hue_is_that_of_pil_up_to_its_256_steps(shift):
    different = differences(the_same(order=[3, -1, -1, -1], factors=[9.0, 9.0, 9.0, shift]))
    # PIL rounds hue, saturation and shift to 1/256: a step of hue is 6 bytes of a colour of full chroma
    assert different.mean() < 2
    assert different.max() < 18


def test_the_shift_of_the_hue_is_that_of_colorsys():
    pixels = torch.rand(4, 3, 5, 5, dtype=torch.float64, generator=Generator().manual_seed(0))
    pixels[0, :, 0] = 0.3  # grey
    pixels[1, :, 0] = torch.eye(3)[:, [0, 1, 2, 0, 1]]
    shifts = torch.tensor([0.0, 0.35, -0.5, 1.2], dtype=torch.float64)
    turned = shift_hue(pixels, shifts)
    for k, row, column in itertools.product(range(4), range(5), range(5)):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixels[k, :, row, column].tolist())
        expected = colorsys.hsv_to_rgb((hue + shifts[k].item()) % 1, saturation, value)
        torch.testing.assert_close(turned[k, :, row, column], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_grey_and_solarised_are_those_of_pil():
    assert differences(the_same(grey=True)).max() <= 0.51
    # float32 of a byte is known to 1e-5 of a byte
    assert differences(the_same(solarised=True)).max() < 1e-3
    both = differences(the_same(grey=True, solarised=True))
    assert both.max() <= 1.01, "a grey value between two bytes may be on either side of the threshold"


@pytest.mark.parametrize("radius", [0.1, 0.4, 0.9, 1.3, 1.7, 2.0])
def test_the_blur_is_that_of_pil_at_every_radius(radius):
    # PIL rounds to a byte after each of three passes in two directions, and pads the border at each pass rather than once
    different = differences(the_same(radius=radius))
    assert different.mean() < 1
    assert different[:, :, 6:-6, 6:-6].max() < 3
    assert different.max() < 4


def test_the_kernels_of_the_blur_have_the_variance_of_the_gaussian():
    radius = torch.linspace(0.1, 2, 39, dtype=torch.float64)
    kernels = box_kernels(radius)
    distance = torch.arange(kernels.shape[1]) - kernels.shape[1] // 2
    assert (kernels >= 0).all()
    torch.testing.assert_close(kernels.sum(dim=1), torch.ones(39, dtype=torch.float64))
    torch.testing.assert_close(3 * (kernels * distance**2).sum(dim=1), radius**2)


@pytest.mark.parametrize("axis", [2, 3])
def test_both_convolutions_along_an_axis_agree(axis):
    generator = Generator().manual_seed(0)
    pixels = torch.rand(3, 2, 9, 14, dtype=torch.float64, generator=generator)
    half = torch.rand(3, 7, dtype=torch.float64, generator=generator)
    kernel = torch.cat([half, half[:, :-1].flip(1)], dim=1)
    one, other = along_by_shifts(pixels, kernel, axis), along_by_convolution(pixels, kernel, axis)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)])
def test_the_steps_of_the_jitter_are_applied_in_the_drawn_order(order):
    different = differences(the_same(order=list(order), factors=[1.3, 0.7, 1.4, 0.1]))
    assert different.mean() < 3
    swapped = differences(the_same(order=list(order[::-1]), factors=[1.3, 0.7, 1.4, 0.1]))
    assert not torch.equal(swapped, different)


@pytest.mark.parametrize("augmentations", ["vicreg", "simclr", "auh", "obow", "swav"])
def test_with_the_same_draws_both_pipelines_give_the_same_views(augmentations):
    policy = policies(augmentations, 224, "imagenet", **CROPS[augmentations])[1]
    for seed in range(3):
        draws = policy.colour.draw(len(PHOTOS), Generator().manual_seed(seed))
        assert differences(draws).mean() < 2


def test_each_image_has_its_own_draws_and_the_size_of_the_pieces_does_not_matter(monkeypatch):
    draws = Colour((0.8, 0.8, 0.8, 0.2), 0.8, blur_p=0.5, solarise_p=0.3).draw(6, Generator().manual_seed(1))
    images = as_batch(PHOTOS)
    whole = change_colours(images, draws, *STATISTICS["imagenet"])
    for values in (images[0].numel(), 1, 4 * images[0].numel()):
        monkeypatch.setattr(sfrik.views.photometric, "PIECE_OF_CPU", values)
        # float32 sums may be added in another order
        torch.testing.assert_close(change_colours(images, draws, *STATISTICS["imagenet"]), whole, rtol=0, atol=1e-5)
    for k in range(6):
        alone = change_colours(images[k : k + 1], draws.rows(slice(k, k + 1)), *STATISTICS["imagenet"])
        torch.testing.assert_close(alone[0], whole[k], rtol=0, atol=1e-5)


def test_without_draws_the_bytes_are_only_normalised():
    mean, std = (torch.tensor(values)[:, None, None] for values in STATISTICS["stl10"])
    images = as_batch(PHOTOS)
    # one rounding of float32 at values up to 3
    expected = (images / 255 - mean) / std
    torch.testing.assert_close(change_colours(images, None, *STATISTICS["stl10"]), expected, rtol=0, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_gives_the_colours_that_the_cpu_gives():
    draws = Colour((0.8, 0.8, 0.8, 0.2), 0.8, blur_p=0.5, solarise_p=0.3).draw(6, Generator().manual_seed(1))
    images = as_batch(PHOTOS)
    on_gpu = change_colours(images.cuda(), draws, *STATISTICS["imagenet"]).cpu()
    # float32 rounds values of 1 by 1e-7; the hue divides by a chroma of a few bytes, the normalisation by 0.22
    torch.testing.assert_close(on_gpu, change_colours(images, draws, *STATISTICS["imagenet"]), rtol=0, atol=1e-3)


# --- crops


@pytest.mark.parametrize(("augmentations", "interpolation"), [("vicreg", "bicubic"), ("obow", "bilinear"), ("swav", "bilinear")])
def test_with_the_same_seed_both_pipelines_crop_the_same_box(augmentations, interpolation):
    crops, mode = SMALL_OBOW if augmentations == "obow" else CROPS[augmentations], v2.InterpolationMode(interpolation)
    fast, views = build_views(augmentations, 32, "imagenet", "tensor", **crops), policies(augmentations, 32, "imagenet", **crops)
    for seed, image in enumerate(PHOTOS):
        torch.manual_seed(seed)
        ours = fast.per_image(as_batch([image])[0])
        torch.manual_seed(seed)
        for k in sorted(range(len(views)), key=lambda k: isinstance(views[k], Whole)):  # OBoW's whole image draws last
            policy = views[k]
            whole = isinstance(policy, Whole)
            crop = v2.Resize(policy.side, mode) if whole else v2.RandomResizedCrop(policy.side, policy.scale, interpolation=mode)
            cut = v2.Compose([crop, v2.CenterCrop(policy.size if whole else policy.side), v2.RandomHorizontalFlip()])(image)
            assert ours[k].dtype == torch.uint8
            # one byte for each of two passes that are rounded
            assert (ours[k].int() - as_batch([cut])[0].int()).abs().max() <= 2


# --- distributions of the draws


@pytest.mark.parametrize("dataset", ["imagenet", "stl10"])
@pytest.mark.parametrize("augmentations", CROPS)
def test_the_draws_have_the_distributions_of_the_table(augmentations, dataset):
    n = 4000
    for k, policy in enumerate(policies(augmentations, 224, dataset, **CROPS[augmentations])):
        if policy.colour is None:
            assert (augmentations, k) == ("obow", 0)
            continue
        draws = policy.colour.draw(n, Generator().manual_seed(k))
        small = dataset == "stl10" and augmentations in ("obow", "swav")
        patches = policy.patches is not None
        strength = {
            "vicreg": (0.4, 0.4, 0.2, 0.1),
            "simclr": (0.8, 0.8, 0.8, 0.2),
            "swav": (0.4,) * 4 if small else (0.8, 0.8, 0.8, 0.2),
        }
        strength = strength.get(augmentations, (0.4,) * 4)
        blurred = {"vicreg": (1.0, 0.1)[k % 2], "auh": 0}.get(augmentations, 0 if patches else 0.5)
        rates = {
            "jitter": (draws.order[:, 0] >= 0, 1.0 if small or augmentations == "auh" else 0.8),
            "grey": (draws.grey, 0.2),
            "blur": (draws.radius > 0, blurred),
            "solarise": (draws.solarised, 0.2 if (augmentations, k) == ("vicreg", 1) else 0),
        }
        for name, (applied, p) in rates.items():
            assert abs(int(applied.sum()) - n * p) <= 4 * math.sqrt(n * p * (1 - p)), name
        for step, most in enumerate(strength):
            middle = 0 if step == 3 else 1
            assert stats.kstest(draws.factors[:, step].numpy(), stats.uniform(middle - most, 2 * most).cdf).pvalue > LEVEL
        orders = draws.order[draws.order[:, 0] >= 0] @ torch.tensor([64, 16, 4, 1])
        counts = torch.unique(orders, return_counts=True)[1]
        assert len(counts) == 24
        assert stats.chisquare(counts.numpy()).pvalue > LEVEL
        if blurred:
            assert stats.kstest(draws.radius[draws.radius > 0].numpy(), stats.uniform(0.1, 1.9).cdf).pvalue > LEVEL
        events = torch.stack([applied.float() for applied, p in rates.values() if 0 < p < 1])
        together = torch.corrcoef(torch.cat([events, draws.factors.T]))
        assert (together - torch.eye(len(together))).abs().max() < 5 / math.sqrt(n), "all draws are independent"


# --- seeds


@pytest.fixture(scope="module")
def images():
    return Images(np.arange(10) % 2, 2, str, open=photo)


def drawn(images, workers=0, batch_size=4, first=0, seeds=(0, 1, 0), augmentations="obow"):
    views = build_views(augmentations, 28, "imagenet", "tensor", **(SMALL_OBOW if augmentations == "obow" else {}))
    order = np.array([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    return [parts for parts, *_ in batches(images, order, views, batch_size, seeds, workers=workers, first=first)]


def unchanged(batch, generator):
    return batch


def equal(one, other):
    return all(torch.equal(a, b) for parts, more in zip(one, other, strict=True) for a, b in zip(parts, more, strict=True))


def test_views_depend_on_the_seeds_and_not_on_workers_or_earlier_draws(images):
    torch.manual_seed(3)
    one = drawn(images)
    torch.manual_seed(4)
    assert equal(drawn(images, workers=2), one)
    assert equal(drawn(images, first=1), one[1:]), "a resumed run sees the same views"
    assert not equal(drawn(images, seeds=(0, 2, 0)), one)


def test_each_step_and_each_image_draws_different_colours():
    plain_colour = Images(np.zeros(8, dtype=np.int64), 1, str, open=lambda i: Image.new("RGB", (9, 9), (150, 60, 90)))
    views = build_views("auh", 6, "imagenet", "tensor")
    found = [parts for parts, *_ in batches(plain_colour, np.arange(8), views, 4)]
    colours = torch.cat([view[:, :, 0, 0] for parts in found for view in parts])  # of 8 images, 2 views each
    assert len(torch.unique(colours.round(decimals=4), dim=0)) == 16


def test_each_step_draws_different_patches(monkeypatch):
    monkeypatch.setattr(Colour, "draw", lambda self, n, generator: None)
    views = build_views("obow", 28, "imagenet", "tensor", **SMALL_OBOW)
    batch = [as_batch([photo(k, side, side) for k in range(6)]) for side in (28, 20, 32)]
    one, again, other = (views.per_batch(batch, Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert equal([one], [again])
    assert [torch.equal(a, b) for a, b in zip(one, other, strict=True)] == [True, True, False, False]


def test_the_loader_sends_bytes_with_channels_last(images):
    views = build_views("vicreg", 16, "imagenet", "tensor")
    as_sent = Views(views.per_image, unchanged, of_tensors=True)
    for workers in (0, 1):
        (((first, second), _, _),) = batches(images, np.arange(10), as_sent, 10, workers=workers)
        for view in (first, second):
            assert view.shape == (10, 3, 16, 16)
            assert view.dtype == torch.uint8
            assert view.is_contiguous(memory_format=torch.channels_last)
    untouched = Views(lambda image: (image,), unchanged, of_tensors=True)
    (((found,), _, _),) = batches(images, np.arange(10), untouched, 10)
    assert torch.equal(found, as_batch([photo(k) for k in range(10)]))


@pytest.mark.parametrize("augmentations", CROPS)
@pytest.mark.parametrize("dataset", ["imagenet", "cifar10"])
def test_views_come_in_the_order_of_the_settings(dataset, augmentations):
    sizes = {"size": 96, "image_crop_size": 20, "img_patch_size": 16, "size_crops": (24, 12)}
    s = PretrainSettings(dataset=dataset, augmentations=augmentations, **sizes)
    views = build_views(s.augmentations, s.size, s.dataset, s.input_pipeline, **s.crops)
    sent = [torch.stack(view) for view in zip(*(views.per_image(as_batch([i])[0]) for i in PHOTOS), strict=True)]
    made = views.per_batch(sent, Generator().manual_seed(0))
    assert [tuple(view.shape) for view in made] == [(6, 3, side, side) for side in s.view_sizes]
    assert all(torch.isfinite(view).all() for view in made)


def test_the_pipeline_is_part_of_a_runs_hash_except_where_it_has_no_effect():
    photos = [PretrainSettings(input_pipeline=pipeline).hash() for pipeline in ("tensor", "pil")]
    digits = [
        PretrainSettings(dataset="mnist5k", augmentations="digits", input_pipeline=pipeline).hash()
        for pipeline in ("tensor", "pil")
    ]
    assert photos[0] != photos[1]
    assert digits[0] == digits[1]
    with pytest.raises(SfrikError, match="unknown input_pipeline numpy: choose tensor or pil"):
        build_views("vicreg", 224, "imagenet", "numpy")
