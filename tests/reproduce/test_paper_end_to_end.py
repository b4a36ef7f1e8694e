"""The paper's recipes from end to end, by the commands that a user types, on a folder tree in ImageNet's form.

Eight classes of small generated images, each with its colour and its stripes; among them a grey, a CMYK and a PNG file under
names that end in .JPEG and, where ../shared/data is there, two photos of ImageNet itself. Sizes, epochs, folders and the
device are overridden, nothing else. Chance is 12.5 %, and of 64 test images its standard deviation is 4.1 %: the 50 % that
the scores must reach are nine of them above it.
"""

from __future__ import annotations

import colorsys
import hashlib
import json
import math
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sfrik.cli import main
from sfrik.datasets import images as datasets
from sfrik.networks import Encoder, load_backbone
from sfrik.runs.checkpoints import Checkpoints
from sfrik.settings import load_recipe

SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "imagenet-sample"

WNIDS = ["n01440764", "n02099601", "n02504458", "n03445777", "n04146614", "n07718472", "n07753592", "n09472597"]
PHOTOGRAPHS = (1, 5)  # classes whose first training image is the sample's
KINDS = {(2, 0): "grey", (3, 1): "cmyk", (4, 2): "png"}  # class and place of the odd files, in train/ and in val/
TRAIN, VAL = 26, 8  # images a class; every third class has one training image more, every third two
SUBSET, VAL_SUBSET = 16, 8
LABELLED = (3, 15, 3)  # places of the images on the label list: from 3 on every third below 15
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
# the JSON file that it leaves in the run's folder -> the command
COMMANDS = {
    "features/weights": ["extract-features"],
    "knn": ["knn-eval"],
    "logistic": ["logistic-regression"],
    "linear": LINEAR,
    "linear_inference": [*LINEAR, "--only-inference"],
    "semi1": SEMI,
    "semi1_inference": [*SEMI, "--only-inference"],
    "linear_tune": [*LINEAR, *TUNING],
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
    """The images at some positions of each class of train/ or val/, as (path, label) in the data set's order."""
    names = {"train": train_names, "val": val_names}[part]
    return [(f"{part}/{wnid}/{name}", label) for label, wnid in enumerate(WNIDS) for name in names(label)[places]]


TRAINING, TEST = images_at("train", slice(SUBSET)), images_at("val")
# one image after the training images is left out, as in the authors' code
TUNED_ON = images_at("train", slice(SUBSET + 1, SUBSET + 1 + VAL_SUBSET))
FEW = images_at("train", slice(*LABELLED))


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
    (root / "labels.txt").write_text("".join(f"{Path(path).name}\n" for path, _ in reversed(FEW)), encoding="utf-8")
    return root


# --- the commands


def run(*arguments):
    return main([str(argument) for argument in arguments])


def pretrain(tree, folder, views, workers=0):
    recipe, overrides, _ = VIEWS[views]
    places = ["--data-dir", tree, "--exp-dir", folder, "--workers", workers]
    return run("pretrain", "--recipe", recipe, *places, *SMALL, *PRETRAIN, *overrides)


def evaluate(tree, folder, command, *flags):
    places = ["--data-dir", tree, "--exp-dir", folder, "--workers", 0]
    places += ["--label-list", tree / "labels.txt"] if "--train-percent" in flags else []
    return run(command, "--recipe", RECIPE, *places, *SMALL, *flags)


@contextmanager
def images_read(tree):
    """The image files that are opened within the context, as paths below the tree."""
    opened = set()

    def watched(read):
        return lambda path: opened.add(path.relative_to(tree).as_posix()) or read(path)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("read_image", "decode_image"):
            patch.setattr(datasets, name, watched(getattr(datasets, name)))
        yield opened


@contextmanager
def views_shown():
    """The side lengths of the views of each batch that the network gets within the context."""
    shown, forward = [], Encoder.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "forward", lambda *given: shown.append([v.shape[-1] for v in given[1]]) or forward(*given))
        yield shown


class Runs:
    """A run for each kind of views and the evaluations of one of them, each executed when a test first needs it."""

    def __init__(self, tree, root):
        self.tree, self.root = tree, root
        self.shown, self.opened = {}, {}

    def folder(self, views="vicreg"):
        """The folder of a pretrained run."""
        if views not in self.shown:
            with views_shown() as shown, images_read(self.tree) as opened:
                assert pretrain(self.tree, self.root / views, views) == 0
            self.shown[views], self.opened[views] = shown, opened
        return self.root / views

    def score(self, name):
        """What an evaluation of the run with VICReg's views wrote."""
        path = self.folder() / f"{name}.json"
        if name not in self.opened:
            with images_read(self.tree) as opened:
                assert evaluate(self.tree, self.folder(), *COMMANDS[name]) == 0
            self.opened[name] = opened
        return json.loads(path.read_text(encoding="utf-8"))

    def features(self):
        """The four arrays by name."""
        self.score("features/weights")
        return {path.stem: np.load(path) for path in (self.folder() / "features").glob("*.npy")}


@pytest.fixture(scope="module")
def runs(tree, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    yield Runs(tree, root)
    shutil.rmtree(root)  # each file of weights has 45 MB


def paths(*several):
    return {path for images in several for path, _ in images}


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def contents(folder):
    """The content and the modification time of each file except the lock."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {path.relative_to(folder): (sha256(path), path.stat().st_mtime_ns) for path in found}


# --- pretraining


@pytest.mark.parametrize("views", VIEWS)
def test_pretraining_by_the_papers_recipe_uses_views_of_the_subset_and_writes_a_complete_record(runs, views):
    folder = runs.folder(views)
    recipe, overrides, sizes = VIEWS[views]
    epochs, steps = overrides[1], len(TRAINING) // 32
    assert runs.shown[views] == [sizes] * (epochs * steps)
    assert runs.opened[views] == paths(TRAINING)
    names = ["backbone.safetensors", "lock", "metrics.jsonl", "projector.safetensors", "provenance.json", "settings.json"]
    assert sorted(path.name for path in folder.iterdir()) == names, "no checkpoint is left, and nothing half written"

    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    asked = load_recipe(recipe) | {"subset": SUBSET, "size": 32, "mlp": "32-32", "batch_size": 32, "epochs": epochs}
    kept = {"base_lr", "sfrik_weights", "sfrik_sim_coeff", "augmentations", "warmup_epochs", "wd", "subset", "mlp", "epochs"}
    assert {name: settings["settings"][name] for name in kept} == {name: asked[name] for name in kept}
    assert (settings["settings"].get("reg_small") is True) == (views == "obow")
    assert load_file(folder / "backbone.safetensors")["conv1.weight"].shape == (64, 3, 7, 7)

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    of_epochs = [line for line in lines if "effective_rank" in line]
    assert [line["epoch"] for line in of_epochs] == list(range(epochs))
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert all(1 <= line["effective_rank"] <= 32 for line in of_epochs)
    if views == "vicreg":
        assert of_epochs[-1]["knn"] > LEAST
    record = (folder / "provenance.json").read_text(encoding="utf-8")
    assert json.loads(record)["finished"]
    assert str(runs.tree) not in record + (folder / "settings.json").read_text(encoding="utf-8")


# --- features and what is made of them


def test_features_are_those_of_every_image_in_the_data_sets_order(runs):
    features = runs.features()
    assert sorted(features) == ["train_features", "train_labels", "val_features", "val_labels"]
    assert runs.opened["features/weights"] == paths(TRAINING, TEST)
    backbone = load_backbone(runs.folder() / "backbone.safetensors", "resnet18")
    for part, images in (("train", TRAINING), ("val", TEST)):
        assert features[f"{part}_labels"].tolist() == [label for _, label in images]
        assert features[f"{part}_features"].dtype == np.float32
        expected = backbone(torch.stack([whole_image(runs.tree / path) for path, _ in images])).detach().numpy()
        # sums of a batch of another size, in another order
        np.testing.assert_allclose(features[f"{part}_features"], expected, rtol=1e-4, atol=1e-5)
    assert runs.score("features/weights")["backbone_sha256"] == sha256(runs.folder() / "backbone.safetensors")


def whole_image(path):
    """A test image as the protocol requires, by torchvision's older transforms: a crop of 32 pixels of 37, as 224 of 256."""
    from torchvision import transforms

    steps = [transforms.Resize(37, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(32), transforms.ToTensor()]
    normalise = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with Image.open(path) as image:
        return transforms.Compose([*steps, normalise])(image.convert("RGB"))


def test_the_unusual_files_and_the_photos_are_among_the_training_images(tree):
    def kind(path):
        with Image.open(tree / path) as image:
            return image.format, image.mode

    odd = {kind(path) for path, _ in TRAINING}
    assert odd == {("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB")} == {kind(path) for path, _ in TEST}
    if not SAMPLE.is_dir():
        pytest.skip("../shared/data/imagenet-sample is not there: every image is a generated one")
    content = {sha256(path) for path in SAMPLE.glob("*.JPEG")}
    assert sum(sha256(tree / path) in content for path, _ in TRAINING) == 2


def test_knn_scores_every_test_image_by_the_recipes_numbers_of_neighbours(runs):
    score, features = runs.score("knn"), runs.features()
    assert (score["train_images"], score["images"]) == (len(TRAINING), len(TEST))
    assert list(score["top1_at"]) == list(score["top5_at"]) == ["10", "20", "100", "200"]
    assert score["top1_at"]["10"] > LEAST

    train, test = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in (features["train_features"], features["val_features"]))
    similarity = test @ train.T
    for k in (10, 200):  # 200 are more than there are
        near = np.sort(similarity, axis=1)[:, -min(k, len(train))][:, None]
        votes = np.where(similarity >= near, np.exp((similarity - 1) / 0.07), 0) @ np.eye(8)[features["train_labels"]]
        top1 = 100 * np.mean(votes.argmax(axis=1) == features["val_labels"])
        assert score["top1_at"][str(k)] == pytest.approx(top1)


def test_logistic_regression_scores_every_test_image(runs):
    score = runs.score("logistic")
    assert (score["train_images"], score["images"]) == (len(TRAINING), len(TEST))
    assert LEAST < score["top1"] <= score["best_top1"] <= 100
    assert score["settings"]["solver"] == "sgd"
    assert score["settings"]["epochs"] == 100


# --- heads


def test_the_linear_score_is_that_of_the_saved_head_on_the_saved_features(runs):
    score, features = runs.score("linear"), runs.features()
    assert runs.opened["linear"] == paths(TRAINING, TEST)
    assert (score["train_images"], score["images"]) == (len(TRAINING), len(TEST))
    assert LEAST < score["top1"] <= score["top5"]
    head = load_file(runs.folder() / "head_linear.safetensors")
    predicted = features["val_features"] @ head["head.weight"].numpy().T + head["head.bias"].numpy()
    assert score["top1"] == pytest.approx(100 * np.mean(predicted.argmax(axis=1) == features["val_labels"]))


def test_fine_tuning_with_1_percent_reads_the_images_of_the_list_and_no_others(runs):
    score = runs.score("semi1")
    assert runs.opened["semi1"] == paths(FEW, TEST)
    assert (score["train_images"], score["images"]) == (len(FEW), len(TEST)) == (32, 64)
    assert score["top1"] > LEAST
    assert (score["settings"]["epochs"], score["settings"]["lr_backbone"], score["settings"]["lr_head"]) == (20, 0.004, 1.0)
    before, after = load_file(runs.folder() / "backbone.safetensors"), load_file(runs.folder() / "head_semi1.safetensors")
    assert not torch.equal(before["conv1.weight"], after["backbone.conv1.weight"]), "the backbone learned too"


@pytest.mark.parametrize("protocol", ["linear", "semi1"])
def test_the_saved_head_scores_the_test_images_once_more_and_trains_nothing(runs, protocol):
    score, again = runs.score(protocol), runs.score(f"{protocol}_inference")
    assert runs.opened[f"{protocol}_inference"] == paths(TEST)
    assert (again["top1"], again["top5"], again["images"]) == (score["top1"], score["top5"], len(TEST))
    assert again["head_sha256"] == sha256(runs.folder() / again["head"])


def test_the_tuning_split_starts_one_image_after_the_subset_and_reads_no_test_image(runs):
    score = runs.score("linear_tune")
    assert runs.opened["linear_tune"] == paths(TRAINING, TUNED_ON)
    assert (score["train_images"], score["images"]) == (len(TRAINING), 8 * VAL_SUBSET)
    assert score["top1"] > LEAST
    runs.score("linear")
    one, other = (load_file(runs.folder() / f"head_linear{end}.safetensors") for end in ("", "_tune"))
    assert torch.equal(one["head.weight"], other["head.weight"]), "which images are scored changes nothing of the training"


def test_a_sweep_of_learning_rates_records_each_score_and_reads_the_test_images_for_the_chosen_one(runs, tmp_path):
    weights = runs.folder() / "backbone.safetensors"
    flags = [*LINEAR, "--pretrained", weights, "--lr-sweep", 0.001, 0.4, "--val-subset", VAL_SUBSET]
    with images_read(runs.tree) as opened:
        assert evaluate(runs.tree, tmp_path, *flags) == 0
    score = json.loads((tmp_path / "linear.json").read_text(encoding="utf-8"))
    assert opened == paths(TRAINING, TUNED_ON, TEST)
    assert score["sweep"]["0.4"] == runs.score("linear_tune")["top1"]
    assert score["tune_top1"] == score["sweep"][str(score["lr_head"])] == max(score["sweep"].values())
    if score["lr_head"] == 0.4:
        assert score["top1"] == runs.score("linear")["top1"]


def test_features_by_two_processes_are_those_of_one(runs, tmp_path):
    flags = ["--pretrained", runs.folder() / "backbone.safetensors", "--nproc-per-node", 2]
    assert evaluate(runs.tree, tmp_path, "extract-features", *flags) == 0
    for name, array in runs.features().items():
        np.testing.assert_array_equal(np.load(tmp_path / "features" / f"{name}.npy"), array)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_score_names_its_weights_and_settings(runs, name):
    score = runs.score(name)
    assert score["backbone_sha256"] == sha256(runs.folder() / "backbone.safetensors")
    assert str(runs.tree) not in json.dumps(score)
    if "features" not in name:
        assert len(score["settings_hash"]) == 12
        assert score["settings"]["subset"] == SUBSET
        assert score["commit"]


# --- once more


@pytest.mark.parametrize("name", ["vicreg", *COMMANDS])
def test_a_finished_command_computes_nothing_again(runs, monkeypatch, name):
    folder = runs.folder()
    if name in COMMANDS:
        runs.score(name)
    before = contents(folder)
    monkeypatch.setattr(datasets, "read_image", lambda path: pytest.fail(f"{path} was read"))
    assert (evaluate(runs.tree, folder, *COMMANDS[name]) if name in COMMANDS else pretrain(runs.tree, folder, name)) == 0
    assert contents(folder) == before


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_file_ends_pretraining_with_its_name_and_once_it_is_whole_the_same_command_resumes(
    tree, tmp_path, capsys, monkeypatch, workers
):
    """Without workers the file is truncated from the start, with two after the first epoch."""
    shutil.copytree(tree / "train", tmp_path / "train")
    broken, folder = tmp_path / TRAINING[40][0], tmp_path / "run"
    whole = broken.read_bytes()

    def cut(*_):
        broken.write_bytes(broken.read_bytes()[:1000])

    if workers:
        save = Checkpoints.save
        monkeypatch.setattr(Checkpoints, "save", lambda *given: save(*given) or cut())
    else:
        cut()
    assert pretrain(tmp_path, folder, "vicreg", workers) == 2
    output = capsys.readouterr().err.splitlines()
    assert len(output) == 1
    assert output[0].startswith(f"sfrik: error: cannot read image {broken}: ")
    assert "truncated" in output[0]
    before = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(before) == (2 if workers else 1), "the first step's line, and the first epoch's where it was finished"

    monkeypatch.undo()
    broken.unlink()
    if workers:  # the next image would take its place in the subset: other images than those of the first epoch
        assert pretrain(tmp_path, folder, "vicreg", workers) == 2
        assert "the same numbers of images and classes, but other names" in capsys.readouterr().err
    broken.write_bytes(whole)
    assert pretrain(tmp_path, folder, "vicreg", workers) == 0
    assert ("resuming after epoch 1" in capsys.readouterr().out) == bool(workers)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 0, 1], "a step's line and each epoch's, none of them twice"
    if workers:
        assert lines[:2] == before
    assert (folder / "backbone.safetensors").is_file()
