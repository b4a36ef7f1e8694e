"""The paper's recipes from end to end, by the commands that a user types, on a folder tree in ImageNet's form.

Eight classes of small generated images, each with its colour and its stripes; among them a grey, a CMYK and a PNG file under
names that end in .JPEG and, where ../shared/data is there, two photographs of ImageNet itself. Sizes, epochs, places and the
device are overridden, nothing else. Chance is 12.5 %, and of 64 test images its standard deviation is 4.1 %: the 50 % that
the scores must reach lie nine of them above it.
"""

from __future__ import annotations

import colorsys
import hashlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sfrik import datasets
from sfrik.cli import main
from sfrik.networks import load_backbone
from sfrik.pretrain import Encoder
from sfrik.runs import Run
from sfrik.settings import load_recipe

SAMPLE = Path(__file__).parents[2] / "shared" / "data" / "imagenet-sample"

WNIDS = ["n01440764", "n02099601", "n02504458", "n03445777", "n04146614", "n07718472", "n07753592", "n09472597"]
PHOTOGRAPHS = (1, 5)  # classes whose first training image is the sample's
KINDS = {(2, 0): "grey", (3, 1): "cmyk", (4, 2): "png"}  # class and place of the odd files, in train/ and in val/
TRAIN, VAL = 26, 8  # images a class; every third class has one training image more, every third two
SUBSET, VAL_SUBSET = 16, 8
LABELLED = (3, 9)  # places of the images on the label list
LEAST = 50.0  # % top-1 of every evaluation

RECIPE = "paper/in20_sfrik_l3_q8192"
# recipe, overrides, and the sizes of the views that the network is then shown
VIEWS = {
    "vicreg": (RECIPE, ["--epochs", 2, "--knn-every", 2], [32] * 2),
    "obow": (f"{RECIPE}_obow", ["--epochs", 1, "--image_crop_size", 24, "--img_patch_size", 16], [32, 24, 24, *[16] * 5]),
    "swav": (f"{RECIPE}_swav", ["--epochs", 1, "--size_crops", 32, 16], [32] * 2 + [16] * 6),
}
SMALL = ["--subset", SUBSET, "--size", 32, "--device", "cpu", "--precision", "fp32"]
PRETRAIN = ["--mlp", "32-32", "--batch-size", 32]
LINEAR = ["evaluate", "--epochs", 6, "--batch-size", 32]
SEMI = ["evaluate", "--train-percent", 1]
TUNING = ["--val-dataset", "train", "--val-subset", VAL_SUBSET]
# what is left in the run's folder -> the command
COMMANDS = {
    "features/weights.json": ["extract-features"],
    "knn.json": ["knn-eval"],
    "logistic.json": ["logistic-regression"],
    "linear.json": LINEAR,
    "linear_inference.json": [*LINEAR, "--only-inference"],
    "semi1.json": SEMI,
    "semi1_inference.json": [*SEMI, "--only-inference"],
    "linear_tune.json": [*LINEAR, *TUNING],
}


# --- the images


def picture(label, rng):
    """Stripes in the colour of the class, from left to right or from top to bottom, under noise."""
    height, width = rng.integers(64, 101, 2)
    along = np.arange(width)[None, :] if label % 2 else np.arange(height)[:, None]
    stripes = 0.75 + 0.25 * np.sin(along / (1 + label % 3) + rng.uniform(0, 2 * np.pi))
    colour = 220 * np.array(colorsys.hsv_to_rgb(label / len(WNIDS), 0.8, 1.0))
    pixels = stripes[:, :, None] * colour + rng.normal(0, 10, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def train_names(label):
    """Their numbers are not padded, as in ImageNet: in the order of text, not of the numbers."""
    return sorted(f"{WNIDS[label]}_{3 * k * k + 17}.JPEG" for k in range(TRAIN + label % 3))


def val_names(label):
    return [f"ILSVRC2012_val_{k * len(WNIDS) + label + 1:08d}.JPEG" for k in range(VAL)]


def images_at(part, places=slice(None)):
    """Of train/ or val/, the images at some places of each class: (path, label), in the data set's order."""
    names = {"train": train_names, "val": val_names}[part]
    return [(f"{part}/{wnid}/{name}", label) for label, wnid in enumerate(WNIDS) for name in names(label)[places]]


def paths(images):
    return {path for path, _ in images}


TRAINING, TEST = images_at("train", slice(SUBSET)), images_at("val")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """train/ and val/, and beside them the list of the labelled images."""
    root = tmp_path_factory.mktemp("imagenet")
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for label, wnid in enumerate(WNIDS):
            (root / part / wnid).mkdir(parents=True)
            for place, (path, _) in enumerate(image for image in images_at(part) if image[1] == label):
                photograph = next(SAMPLE.glob(f"{wnid}_*.JPEG"), None) if (part, place) == ("train", 0) else None
                if photograph and label in PHOTOGRAPHS:
                    shutil.copyfile(photograph, root / path)
                    continue
                kind = KINDS.get((label, place))
                image = picture(label, rng).convert({"grey": "L", "cmyk": "CMYK"}.get(kind, "RGB"))
                image.save(root / path, "PNG" if kind == "png" else "JPEG")
    (root / "labels.txt").write_text("".join(f"{Path(path).name}\n" for path in sorted(labelled(), reverse=True)))
    return root


def labelled():
    return {train_path for place in LABELLED for train_path in paths(images_at("train", slice(place, place + 1)))}


# --- the commands


def run(*arguments):
    return main([str(argument) for argument in arguments])


def pretrain(tree, folder, views, *more):
    recipe, overrides, _ = VIEWS[views]
    places = ["--data-dir", tree, "--exp-dir", folder]
    return run("pretrain", "--recipe", recipe, *places, *SMALL, *PRETRAIN, *overrides, *(more or ["--workers", 0]))


def evaluate(tree, folder, *command):
    places = ["--data-dir", tree, "--exp-dir", folder, "--workers", 0]
    places += ["--label-list", tree / "labels.txt"] if "--train-percent" in command else []
    return run(command[0], "--recipe", RECIPE, *places, *SMALL, *command[1:])


class Watched:
    """A run of each kind of views, its commands executed when they are first asked for, and what they read."""

    def __init__(self, tree, root):
        self.tree, self.root = tree, root
        self.views, self.opened = {}, {}

    def folder(self, views="vicreg"):
        """The folder of a run that is pretrained."""
        folder = self.root / views
        if views not in self.views:
            with pytest.MonkeyPatch.context() as patch:
                shown, forward = [], Encoder.forward
                patch.setattr(Encoder, "forward", lambda self, batch: shown.append([v.shape for v in batch]) or forward(self, batch))
                assert pretrain(self.tree, folder, views) == 0
            self.views[views] = shown
        return folder

    def score(self, name):
        """The content of a JSON file of the first run, made by its command."""
        path = self.folder() / name
        if name not in self.opened:
            with reading() as opened:
                assert evaluate(self.tree, self.folder(), *COMMANDS[name]) == 0
            self.opened[name] = {Path(found).relative_to(self.tree).as_posix() for found in opened}
        return json.loads(path.read_text())


class reading(pytest.MonkeyPatch.context):
    pass
