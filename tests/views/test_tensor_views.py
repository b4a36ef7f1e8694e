"""The tensor pipeline: each step against PIL's with the same draws, the distributions of the draws, and their seeds.

The distributions of whole views are compared in test_multicrop.py. Bounds are in bytes: PIL rounds, mostly down, after each step,
the tensor pipeline does not.
"""

from __future__ import annotations

import colorsys
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from scipy import stats
from torch import Generator, Tensor
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms.v2 import functional
from torchvision.transforms.v2 import functional as on_pil

import sfrik.views.photometric
import sfrik.views.photos
from sfrik.datasets.images import Images
from sfrik.datasets.loader import batches, keep_on_device
from sfrik.errors import SfrikError
from sfrik.settings import PretrainSettings
from sfrik.views.base import Views, build_views, probe_views, resize_for_test
from sfrik.views.geometric import pixel_boxes, resize_boxes
from sfrik.views.photometric import Colour, Draws, along_by_convolution, along_by_shifts, box_kernels, change_colours, shift_hue
from sfrik.views.photos import STATISTICS, Whole, policies
from sfrik.views.pipelines import TensorPipeline

LEVEL = 1e-5  # significance level of the tests of distributions; seeds are fixed
CROPS = {name: PretrainSettings(augmentations=name).crops for name in ("vicreg", "simclr", "auh", "cifar", "obow", "swav")}
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


@pytest.mark.parametrize("augmentations", CROPS)
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


# --- images in memory


def resized(pixels, box, size, interpolation):
    top, left, height, width = box
    cut = pixels[:, top : top + height, left : left + width]
    return functional.resize(cut, list(size), v2.InterpolationMode(interpolation), antialias=True)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(32, 32), (9, 9), (50, 71)], ids=str)
@pytest.mark.parametrize("image", [(32, 32), (40, 23), (96, 96)], ids=str)
def test_a_batch_is_cropped_resized_and_mirrored_as_torchvision_does(image, size, interpolation):
    generator = Generator().manual_seed(0)
    pixels = 255 * torch.rand(20, 3, *image, generator=generator)
    boxes = [pixel_boxes(20, *image, scale, generator) for scale in ((0.01, 0.1), (0.05, 1.0))]
    mirrored = torch.rand(40, generator=generator) < 0.5
    found = resize_boxes(pixels, torch.cat(boxes), mirrored, size, interpolation)
    for k, box in enumerate(torch.cat(boxes).tolist()):
        expected = resized(pixels[k % 20], box, size, interpolation)
        # sums of up to 96 products of values up to 255, in float32, in another order
        torch.testing.assert_close(found[k], expected.flip(-1) if mirrored[k] else expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (30, 80)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.6, 1.0)])
def test_boxes_in_whole_pixels_have_the_distribution_of_torchvision(scale, height, width):
    torch.manual_seed(0)
    image, n = torch.empty(3, height, width), 4000
    theirs = torch.tensor([RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(n)])
    ours = pixel_boxes(n, height, width, scale, Generator().manual_seed(1))
    assert ours.dtype == torch.int64
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= torch.tensor([height, width])).all()
    joint = [boxes.double() @ boxes.new_tensor([1, 7, 49, 343]).double() for boxes in (ours, theirs)]
    for one, other in [*zip(ours.T, theirs.T, strict=True), joint]:
        assert stats.ks_2samp(one.numpy(), other.numpy()).pvalue > LEVEL


@pytest.mark.parametrize(("height", "width"), [(10, 100), (100, 10), (21, 20), (8, 9)])
def test_if_no_draw_fits_the_box_is_the_centre_as_in_torchvision(height, width, monkeypatch):
    expected = RandomResizedCrop.get_params(torch.empty(3, height, width), [9.0, 9.0], [3 / 4, 4 / 3])
    assert pixel_boxes(5, height, width, (9.0, 9.0), Generator()).tolist() == [list(expected)] * 5


@pytest.mark.parametrize(("height", "width"), [(40, 50), (50, 40), (33, 33), (4, 200)])
def test_the_whole_image_in_memory_is_that_of_an_image_on_disk(height, width):
    # the difference of 33 and 28 is odd, so that the centre is not that of the mirrored image
    pipeline = TensorPipeline([Whole(33, 28)], "imagenet")
    image = as_batch([photo(0, width, height)])
    torch.manual_seed(0)
    for k in range(8):
        (found,) = pipeline.in_memory([image], Generator().manual_seed(k))
        expected = [pipeline.per_batch([pipeline.per_image(image[0])[0][None]], Generator())[0] for _ in range(8)]
        # a byte of rounding after each pass
        assert min((found - one).abs().max() for one in expected) <= 2.01 / 255 / min(STATISTICS["imagenet"][1])


@pytest.mark.parametrize("augmentations", ["vicreg", "cifar", "obow", "swav"])
def test_crops_in_memory_are_those_of_bytes_up_to_their_rounding(augmentations, monkeypatch):
    crops = SMALL_OBOW if augmentations == "obow" else CROPS[augmentations]
    views = policies(augmentations, 32, "cifar10", **crops)
    pipeline = TensorPipeline(views, "cifar10")
    images = as_batch([photo(k, 32, 32) for k in range(20)]) // 2 + 64  # bytes would be clipped between the passes too
    box = [6, 3, 20, 17]
    monkeypatch.setattr(RandomResizedCrop, "get_params", lambda *arguments: box)
    monkeypatch.setattr(sfrik.views.photos, "pixel_boxes", lambda n, *arguments: torch.tensor(box).expand(n, 4))
    sent = [torch.stack(view) for view in zip(*(pipeline.per_image(image) for image in images), strict=True)]
    monkeypatch.setattr(TensorPipeline, "_finish", lambda self, views, images, generator: images.split(20))
    drawn = pipeline.in_memory([images], Generator().manual_seed(0))
    for ours, bytes_ in zip(drawn, sent, strict=True):
        for one, other in zip(ours, bytes_.float(), strict=True):
            difference = min(((one - turned).abs() for turned in (other, other.flip(-1))), key=Tensor.mean)
            # half a byte for each of two passes, the first of which weights of bicubic interpolation of up to 1.3 enlarge
            assert difference.max() < 1.5
            assert difference.mean() < 0.5


def test_crops_in_memory_stay_within_the_range_of_bytes_where_bicubic_interpolation_overshoots(monkeypatch):
    squares = 255 * ((torch.arange(32)[:, None] // 4 + torch.arange(32) // 4) % 2).byte().expand(8, 3, 32, 32)
    monkeypatch.setattr(TensorPipeline, "_finish", lambda self, views, images, generator: images.split(8))
    for crop in TensorPipeline(policies("cifar", 32, "cifar10"), "cifar10").in_memory([squares], Generator().manual_seed(0)):
        assert (crop.min(), crop.max()) == (0, 255)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("augmentations", CROPS)
def test_a_gpu_draws_the_views_of_images_in_memory_that_the_cpu_draws(augmentations):
    images = both_ways()
    crops = SMALL_OBOW if augmentations == "obow" else CROPS[augmentations]
    views = build_views(augmentations, 28, "cifar10", "tensor", **crops)
    found = [list(batches(keep_on_device(images, device), np.arange(10), views, 4, device=device)) for device in ("cpu", "cuda")]
    for (ours, targets, _), (theirs, labels, _) in zip(*found, strict=True):
        assert torch.equal(targets, labels.cpu())
        for one, other in zip(ours, theirs, strict=True):
            # the mean of the contrast is rounded to a byte, which may be the next one: 1 / 255 divided by 0.24
            torch.testing.assert_close(other.cpu(), one, rtol=0, atol=0.02)


def test_images_are_kept_on_a_gpu_only_if_they_take_at_most_a_quarter_of_its_free_memory(monkeypatch):
    images = both_ways()
    moved = []
    monkeypatch.setattr(Tensor, "to", lambda self, device: moved.append(device) or self)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * images.tensor.nbytes - 1, 10**12))
    assert keep_on_device(images, "cuda") is images
    assert keep_on_device(replace(images, tensor=None), "cuda").tensor is None
    assert keep_on_device(images, "cpu") is images
    assert moved == []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * images.tensor.nbytes, 10**12))
    keep_on_device(images, "cuda")
    assert moved == [torch.device("cuda")]


def test_the_test_view_in_memory_equals_that_of_images_one_by_one():
    for dataset in ("cifar10", "cifar100", "stl10"):
        views, images = resize_for_test(32, dataset), [photo(k, 32, 32) for k in range(20)]
        (found,) = views.in_memory([as_batch(images)], Generator())
        assert torch.equal(found, torch.stack([views.per_image(image)[0] for image in images]))
    assert resize_for_test(32, "imagenet").in_memory is None, "it is resized, by PIL"


def test_the_view_of_a_probe_in_memory_is_a_mirrored_crop_without_colours():
    """Of a ramp from left to right, which differs from top to bottom by nothing: a crop is a ramp too."""
    ramp = torch.arange(0, 256, 8, dtype=torch.uint8).expand(400, 3, 32, 32)
    mean, std = (torch.tensor(values)[:, None, None] for values in STATISTICS["cifar10"])
    (view,) = probe_views(32, "cifar10").in_memory([ramp], Generator().manual_seed(0))
    pixels = (view * std + mean) * 255
    slopes = (pixels[:, 0, 0, 20] - pixels[:, 0, 0, 12]) / 8  # of the width of the box in the width of the image, times 8
    assert abs(int((slopes < 0).sum()) - 200) <= 40, "four standard deviations"
    torch.testing.assert_close(pixels, pixels[:, :1, :1].expand_as(pixels), rtol=0, atol=1e-2)
    torch.manual_seed(0)
    widths = [RandomResizedCrop.get_params(ramp[0], [0.08, 1.0], [3 / 4, 4 / 3])[3] for _ in range(400)]
    assert stats.ks_2samp(slopes.abs().numpy().round(2), np.array(widths) / 4).pvalue > LEVEL


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
            "cifar": (0.4, 0.4, 0.4, 0.1),
            "simclr": (0.8, 0.8, 0.8, 0.2),
            "swav": (0.4,) * 4 if small else (0.8, 0.8, 0.8, 0.2),
        }
        strength = strength.get(augmentations, (0.4,) * 4)
        blurred = {"vicreg": (1.0, 0.1)[k % 2], "auh": 0, "cifar": 0}.get(augmentations, 0 if patches else 0.5)
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


@pytest.mark.parametrize("augmentations", ["vicreg", "simclr", "auh", "cifar"])
def test_the_smallest_scale_is_that_of_the_crops_of_two_views(augmentations):
    settings = PretrainSettings(augmentations=augmentations, min_crop_scale=0.5)
    assert [view.scale for view in policies(augmentations, 32, "cifar10", **settings.crops)] == [(0.5, 1.0)] * 2
    assert [view.scale for view in policies(augmentations, 32, "cifar10")] == [(0.08, 1.0)] * 2


# --- seeds


@pytest.fixture(scope="module")
def images():
    return Images(np.arange(10) % 2, 2, str, open=photo)


def drawn(images, workers=0, batch_size=4, first=0, seeds=(0, 1, 0), augmentations="obow"):
    views = build_views(
        augmentations, 28, "imagenet", "tensor", **(SMALL_OBOW if augmentations == "obow" else CROPS[augmentations])
    )
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


def both_ways(n=10, side=32):
    """Images in memory that can also be opened."""
    pixels = as_batch([photo(k, side, side) for k in range(n)])
    return Images(np.arange(n) % 2, 2, str, open=lambda k: Image.fromarray(pixels[k].permute(1, 2, 0).numpy()), tensor=pixels)


@pytest.mark.parametrize("augmentations", CROPS)
def test_views_of_images_in_memory_depend_on_the_seeds_and_the_step_only(augmentations):
    images = both_ways()
    torch.manual_seed(3)
    one = drawn(replace(images, open=None), augmentations=augmentations, workers=3)
    torch.manual_seed(4)
    assert equal(drawn(images, augmentations=augmentations), one)
    assert equal(drawn(images, augmentations=augmentations, first=1), one[1:]), "a resumed run sees the same views"
    assert not equal(drawn(images, augmentations=augmentations, seeds=(0, 2, 0)), one)
    sizes = PretrainSettings(augmentations=augmentations, size=28, **(SMALL_OBOW if augmentations == "obow" else {})).view_sizes
    assert [view.shape for view in one[0]] == [(4, 3, side, side) for side in sizes]


def test_images_in_memory_are_opened_only_where_their_views_are_drawn_one_by_one():
    images, opened = both_ways(), []
    images = replace(images, open=lambda k, read=images.open: opened.append(k) or read(k))
    for pipeline, expected in (("tensor", []), ("pil", [2, 0, 1])):
        (parts,) = batches(images, np.array([2, 0, 1]), build_views("cifar", 32, "cifar10", pipeline), 3)
        assert opened == expected
        assert parts[1].tolist() == [0, 0, 1]
        assert parts[2].tolist() == [2, 0, 1]


def test_each_step_and_each_image_draws_different_colours():
    plain_colour = Images(np.zeros(8, dtype=np.int64), 1, str, open=lambda i: Image.new("RGB", (9, 9), (150, 60, 90)))
    views = build_views("auh", 6, "imagenet", "tensor")
    found = [parts for parts, *_ in batches(plain_colour, np.arange(8), views, 4)]
    colours = torch.cat([view[:, :, 0, 0] for parts in found for view in parts])  # of 8 images, 2 views each
    assert len(torch.unique(colours.round(decimals=4), dim=0)) == 16


def test_each_step_draws_different_patches(monkeypatch):
    none = {"jitter_p": 0.0, "grey_p": 0.0, "blur_p": None, "solarise_p": None}
    draw = Colour.draw
    monkeypatch.setattr(Colour, "draw", lambda self, n, generator: draw(replace(self, **none), n, Generator()))
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
