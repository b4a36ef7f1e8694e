"""Data sets and views in worker processes that are spawned, as on macOS, where everything they get is pickled.

Several tests fork their processes from a clean one instead (tests/forks.py): those get everything pickled too.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torchvision
from forks import children
from PIL import Image
from toys import write_cifar10, write_stl10

from sfrik.datasets.images import load_images
from sfrik.datasets.loader import batches
from sfrik.datasets.transfer import VOC_CLASSES, load_target
from sfrik.evaluate import evaluate
from sfrik.pretrain.loop import pretrain
from sfrik.settings import EvaluateSettings, PretrainSettings
from sfrik.system.files import file_hash, read_json
from sfrik.views.base import build_views, probe_views, resize_for_test

SCALES = {"min_scale_crops": (0.14, 0.05), "max_scale_crops": (1.0, 0.14)}
CROPS = {
    "obow": {"num_img_crops": 1, "image_crop_size": 16, "num_img_patches": 2, "img_patch_size": 12},
    "swav": {"nmb_crops": (1, 1), "size_crops": (20, 12), **SCALES},
}
PHOTOS = [(name, pipeline) for name in ("vicreg", "simclr", "auh", "obow", "swav") for pipeline in ("tensor", "pil")]
EVALUATION = {"probe": probe_views, "test": resize_for_test}
ON_DISK = ["cifar10", "stl10", "imagenet", "image_folder", "unlabelled", "voc07", "places205"]
IN_MEMORY = ["mnist5k", "digits8x8"]


def save(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with every data set in its layout."""
    root = tmp_path_factory.mktemp("data")
    write_cifar10(root, per_file=1)
    write_stl10(root)
    for k in range(4):
        save(root / "folder" / "train" / "ab"[k // 2] / f"{k}.JPEG", k)
        save(root / "folder" / "val" / "ab"[k // 2] / f"{k}.JPEG", 10 + k)
        save(root / "voc" / "VOCdevkit" / "VOC2007" / "JPEGImages" / f"{k}.jpg", k)
        save(root / "places" / "data/vision/torralba/deeplearning/images256" / f"a/{k}.jpg", k)
    lists = root / "voc" / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name in VOC_CLASSES:
        (lists / f"{name}_trainval.txt").write_text("".join(f"{k} 1\n" for k in range(4)), encoding="utf-8")
    (root / "places" / "trainvalsplit_places205").mkdir()
    (root / "places" / "trainvalsplit_places205" / "train_places205.csv").write_text(
        "".join(f"a/{k}.jpg {k}\n" for k in range(4)), encoding="utf-8"
    )
    return root


def load(kind, root):
    """Training images of a data set, and the name by which its views are built."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchvision.datasets.cifar.check_integrity", lambda *arguments: True)
        patch.setattr(torchvision.datasets.STL10, "_check_integrity", lambda self: True)
        if kind in ("voc07", "places205"):
            return load_target(kind, "train", root / kind.removesuffix("07").removesuffix("205")), "imagenet"
        if kind == "digits8x8":
            return load_target(kind, "train", "").select(range(4)), "mnist5k"
        if kind == "unlabelled":
            return load_images("image_folder", "pretrain", root / "folder" / "val"), "image_folder"
        if kind == "mnist5k":
            return load_images(kind, "train", subset=1).select(range(4)), kind
        return load_images(kind, "train", root if kind in ("cifar10", "stl10") else root / "folder"), kind


def views_of(name, pipeline, dataset):
    if name in EVALUATION:
        return EVALUATION[name](28, dataset)
    return build_views(name, 28, dataset, pipeline, **CROPS.get(name, {}))


def content(images, views, workers=0):
    """All tensors of all batches."""
    order = np.arange(len(images))[::-1].copy()
    loaded = [(*tensors, targets, shown) for tensors, targets, shown in batches(images, order, views, 2, (1, 2), workers=workers)]
    return [np.asarray(part) for parts in loaded for part in parts]


def equal(ours, expected):
    return all(np.array_equal(one, other) for one, other in zip(ours, expected, strict=True))


@pytest.fixture(scope="module")
def spawned():
    """One spawned process; what it is given is pickled."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture
def pickled():
    """Within a test, what a process gets is pickled."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(children.get_start_method(), force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.parametrize("kind", [*ON_DISK, *IN_MEMORY])
def test_every_data_set_with_every_view_gives_the_same_batches_in_a_spawned_process(kind, root, spawned):
    images, dataset = load(kind, root)
    pairs = PHOTOS if kind in ON_DISK else [(name, "tensor") for name in ("digits", "auh", "obow", "swav")]
    for name, pipeline in [*pairs, *((name, "tensor") for name in EVALUATION)]:
        views = views_of(name, pipeline, dataset)
        assert equal(spawned.submit(content, images, views).result(), content(images, views)), (name, pipeline)
    selected = images.select([2, 0]).select([1])
    assert equal(spawned.submit(content, selected, views).result(), content(selected, views))
    assert spawned.submit(selected.name, 0).result() == images.name(0)


@pytest.mark.parametrize(
    ("kind", "name", "pipeline"),
    [
        ("cifar10", "vicreg", "tensor"),
        ("voc07", "probe", "pil"),
    ],
)
@pytest.mark.usefixtures("pickled")
def test_workers_that_get_everything_pickled_load_the_batches_that_the_process_itself_loads(kind, name, pipeline, root):
    images, dataset = load(kind, root)
    views = views_of(name, pipeline, dataset)
    assert equal(content(images, views, workers=2), content(images, views))


@pytest.mark.usefixtures("pickled")
def test_pretraining_and_a_linear_probe_have_the_same_results_with_such_workers(root, tmp_path):
    started = []
    for workers in (0, 1):
        run = tmp_path / str(workers)
        place = {"data_dir": str(root / "folder"), "exp_dir": str(run), "device": "cpu", "precision": "fp32", "workers": workers}
        network = {"dataset": "image_folder", "arch": "resnet8", "stem": "small", "size": 16}
        schedule = {"batch_size": 4, "epochs": 1, "warmup_epochs": 0, "knn_every": 0}
        pretrain(PretrainSettings.parse({**place, **network, **schedule, "mlp": "64-16"}), progress=False)
        evaluate(EvaluateSettings.parse({**place, **network, "batch_size": 4, "epochs": 1}))
        started.append((file_hash(run / "backbone.safetensors"), read_json(run / "linear.json")["head_sha256"]))
    assert started[0] == started[1]
