"""Transfer to other data sets: average precision, SVMs, choices made on training images, the command."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from toys import accuracy_of_bits

from sfrik.datasets.images import Images
from sfrik.errors import SfrikError
from sfrik.evaluate import average_precision, mean_average_precision
from sfrik.evaluate.transfer import logistic_by_cross_validation, transfer
from sfrik.networks import build_backbone, save_weights
from sfrik.settings import TransferSettings
from sfrik.system.files import file_hash, read_json, write_json

CPU = {"device": "cpu", "precision": "fp32", "workers": 0}

# --- average precision


def area_by_hand(positive, scores):
    """The area, summed over recalls: the best precision at that recall or a higher one."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    points = []
    for n in range(1, len(order) + 1):
        found = sum(bool(positive[i]) for i in order[:n])
        points.append((found / sum(positive), found / n))
    area, before = 0.0, 0.0
    for recall in sorted({recall for recall, _ in points if recall > 0}):
        area += (recall - before) * max(precision for r, precision in points if r >= recall)
        before = recall
    return area


def test_average_precision_is_the_area_under_the_non_increasing_precision():
    for pattern in itertools.product([False, True], repeat=6):
        if any(pattern):
            scores = np.array([0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
            assert average_precision(np.array(pattern), scores) == pytest.approx(area_by_hand(pattern, scores), abs=1e-12)


def test_average_precision_equals_scikit_learns_where_precision_falls_and_exceeds_it_elsewhere():
    falling = np.array([True, True, False, True, False, False, True])
    scores = -np.arange(7.0)
    assert average_precision(falling, scores) == pytest.approx(average_precision_score(falling, scores), abs=1e-12)
    generator = np.random.default_rng(0)
    for _ in range(20):
        positive, scores = generator.random(40) < 0.3, generator.normal(size=40)
        assert average_precision(positive, scores) >= average_precision_score(positive, scores) - 1e-12


# --- SVMs


def scenes(n, seed, classes=3, noise=0.4):
    """Features of images with several classes each, and labels 1 or -1."""
    generator = torch.Generator().manual_seed(seed)
    there = torch.rand(n, classes, generator=generator) < 0.4
    features = torch.cat([3.0 * there, torch.ones(n, 4)], 1) + noise * torch.randn(n, classes + 4, generator=generator)
    return features, torch.where(there, 1, -1)


def test_linearly_separable_classes_have_a_mean_average_precision_of_100():
    score = mean_average_precision(scenes(90, 0), scenes(60, 1), classes=["cat", "dog", "sofa"])
    assert score["map"] == pytest.approx(100)
    assert score["ap"].keys() == score["svm_cost"].keys() == {"cat", "dog", "sofa"}


def test_the_mean_is_over_classes_and_does_not_depend_on_the_length_of_features():
    train, test = scenes(90, 0, noise=2.0), scenes(60, 1, noise=2.0)
    score = mean_average_precision(train, test, costs=(0.1,))
    assert score["map"] == pytest.approx(np.mean(list(score["ap"].values())))
    assert 40 < score["map"] < 99
    longer = [(features * torch.linspace(0.5, 4, len(features))[:, None], labels) for features, labels in (train, test)]
    # float32 features are normalised in float64
    assert mean_average_precision(*longer, costs=(0.1,))["map"] == pytest.approx(score["map"], abs=1e-3)


def test_difficult_images_of_a_class_are_excluded_only_from_that_class():
    train, test = scenes(60, 0, noise=1.5), scenes(60, 1, noise=1.5)
    with_difficult = []
    for features, labels in (train, test):
        generator = torch.Generator().manual_seed(5)
        more = 5 * torch.randn(20, features.shape[1], generator=generator)  # misleading features
        marks = -torch.ones(20, 3, dtype=labels.dtype)
        marks[:, 0] = 0
        with_difficult.append((torch.cat([features, more]), torch.cat([labels, marks])))
    plain, score = mean_average_precision(train, test, costs=(0.1,)), mean_average_precision(*with_difficult, costs=(0.1,))
    assert score["ap"]["0"] == plain["ap"]["0"]
    assert score["ap"]["1"] != plain["ap"]["1"]


def test_the_cost_is_chosen_on_training_images_and_the_smallest_wins_a_tie():
    train, test = scenes(90, 0, noise=1.5), scenes(60, 1, noise=1.5)
    one = mean_average_precision(train, test)
    other = mean_average_precision(train, (test[0], -test[1]))
    assert one["svm_cost"] == other["svm_cost"]
    assert one["map"] > other["map"]
    easy = mean_average_precision(scenes(90, 0, noise=0.1), scenes(60, 1, noise=0.1), costs=(10.0, 0.1, 1.0))
    assert set(easy["svm_cost"].values()) == {0.1}


def test_a_class_with_too_few_images_is_named():
    train, test = scenes(30, 0), scenes(30, 1)
    few = train[1].clone()
    few[2:, 1] = -1
    for pair in [((train[0], few), test), (train, (test[0], torch.where(torch.arange(3) == 1, -1, test[1])))]:
        with pytest.raises(SfrikError, match="class dog has"):
            mean_average_precision(*pair, classes=["cat", "dog", "sofa"])


# --- logistic regression


def points(n, seed, noise):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    return 3 * torch.eye(3, 6)[labels] + noise * torch.randn(n, 6, generator=generator), labels


def test_logistic_regression_chooses_its_penalty_on_the_training_images():
    train, (test, labels) = points(90, 0, 2.0), points(60, 1, 2.0)
    one = logistic_by_cross_validation(train, (test, labels), inverse_penalties=(1e-4, 1.0))
    other = logistic_by_cross_validation(train, (test, (labels + 1) % 3), inverse_penalties=(1e-4, 1.0))
    assert (one["C"], one["cross_validated_top1"]) == (other["C"], other["cross_validated_top1"])
    assert one["top1"] > other["top1"]
    easy = logistic_by_cross_validation(points(90, 0, 0.1), points(60, 1, 0.1))
    assert (easy["top1"], easy["cross_validated_top1"], easy["C"]) == (100.0, 100.0, 0.001), "the smallest C wins a tie"
    assert set(easy["sweep"].values()) == {100.0}
    assert one["sweep"][str(one["C"])] == one["cross_validated_top1"] == max(one["sweep"].values())


# --- the command


@pytest.fixture
def weights(tmp_path):
    for name, channels in (("gray", 1), ("colour", 3)):
        torch.manual_seed(channels)
        save_weights(build_backbone("resnet8", "small", channels), tmp_path / f"{name}.safetensors")
    (tmp_path / "digits" / "a" / "seed0").mkdir(parents=True)
    (tmp_path / "gray.safetensors").rename(tmp_path / "digits" / "a" / "seed0" / "backbone.safetensors")
    return tmp_path


def settings_of(folder, target="digits8x8", **overrides):
    given = {
        "dataset": "mnist5k",
        "size": 28,
        "arch": "resnet8",
        "stem": "small",
        "device": "cpu",
        "precision": "fp32",
        "workers": 0,
    }
    return TransferSettings(exp_dir=str(folder / "digits" / "a" / "seed0"), target=target, **{**given, **overrides})


def test_a_finished_score_of_digits_is_returned_at_once(weights, monkeypatch):
    score = transfer(settings_of(weights))
    assert read_json(weights / "digits" / "a" / "seed0" / "transfer_digits8x8.json") == score
    assert (score["target"], score["images"] + score["train_images"]) == ("digits8x8", 1797)
    assert score["backbone_sha256"] == file_hash(weights / "digits" / "a" / "seed0" / "backbone.safetensors")
    # untrained features of digits are far above the 10 % of guessing
    assert score["top1"] > 50
    assert accuracy_of_bits(score) == score["top1"]
    monkeypatch.setattr("sfrik.runs.folder.Run.save_result", lambda *arguments: pytest.fail("measured again"))
    assert transfer(settings_of(weights)) == score


def test_a_target_has_no_tuning_split(weights):
    with pytest.raises(SfrikError, match="digits8x8 has no tuning split"):
        transfer(settings_of(weights, val_dataset="train"))


def test_only_the_chosen_recipe_of_a_grid_is_scored_on_the_target(weights):
    with pytest.raises(SfrikError, match="not recorded yet"):
        transfer(settings_of(weights, choice="grid"))
    (weights / "digits" / "tuning").mkdir()
    write_json(weights / "digits" / "tuning" / "grid.json", {"chosen": "b"})
    with pytest.raises(SfrikError, match="is b, not a"):
        transfer(settings_of(weights, choice="grid"))
    write_json(weights / "digits" / "tuning" / "grid.json", {"chosen": "a"})
    assert transfer(settings_of(weights, choice="grid"))["images"] == 602


def coloured(n, labels, num_classes, classes=None):
    """Noisy images with one colour per class."""
    first = labels if labels.ndim == 1 else (labels == 1).argmax(1)
    pixels = np.random.default_rng(n).integers(0, 100, (n, 20, 18, 3)).astype(np.uint8)
    pixels[np.arange(n), :, :, first] += 150
    return Images(labels, num_classes, str, open=lambda i: Image.fromarray(pixels[i]), classes=classes)


def test_places205_and_voc07_are_read_from_their_folders_and_scored_by_their_protocols(weights, monkeypatch):
    asked = []

    def load(target, split, folder):
        asked.append((target, split, folder))
        n = {"train": 18, "test": 12}[split]
        if target == "places205":
            return coloured(n, np.arange(n) % 3, 3)
        return coloured(n, np.where(np.arange(n)[:, None] % 3 == np.arange(3), 1, -1), 3, ["cat", "dog", "sofa"])

    monkeypatch.setattr("sfrik.evaluate.transfer.load_target", load)
    given = {"dataset": "imagenet", "size": 16, "pretrained": str(weights / "colour.safetensors"), "data_dir": "images"}
    places = transfer(settings_of(weights, "places205", epochs=2, batch_size=8, **given), progress=False)
    assert {"top1", "top5", "best_top1", "best_top5"} <= places.keys()
    assert (places["protocol"], places["images"], places["train_images"]) == ("transfer_places205", 12, 18)
    voc = transfer(settings_of(weights, "voc07", target_dir="VOC", **given), progress=False)
    # the colours have distant features even without training
    assert voc["map"] > 90
    assert voc["ap"].keys() == {"cat", "dog", "sofa"}
    assert voc["backbone_sha256"] == file_hash(weights / "colour.safetensors")
    splits = ("train", "test")
    assert asked == [("places205", split, "images") for split in splits] + [("voc07", split, "VOC") for split in splits]
