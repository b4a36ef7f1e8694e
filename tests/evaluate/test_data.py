"""Scores, features and heads are those of the images that are there now: two folders in turn, for every command."""

from __future__ import annotations

import shutil
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from sfrik.cli import main
from sfrik.errors import SfrikError
from sfrik.evaluate import class_scores, evaluate, extract_features, features_here, knn_eval, load_features, logistic_regression
from sfrik.evaluate.transfer import transfer
from sfrik.networks import build_backbone, save_weights
from sfrik.settings import EvaluateSettings, FeatureSettings, KnnSettings, LogisticSettings, TransferSettings
from sfrik.system.files import file_hash, read_json, write_json

NETWORK = {"size": 16, "arch": "resnet8", "stem": "small", "device": "cpu", "precision": "fp32", "workers": 0}
CLASSES, PER_CLASS = ("cat", "dog"), 4
probe = partial(evaluate, progress=False)


def write_images(folder, seed, part, per_class=PER_CLASS):
    """BMP files of random pixels: all have one size, and the files of two seeds the same names."""
    rng = np.random.default_rng(seed)
    for name in CLASSES:
        (folder / part / name).mkdir(parents=True, exist_ok=True)
        for k in range(per_class):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / part / name / f"{k}.bmp")


@pytest.fixture
def place(tmp_path):
    """The run's weights, and the folders one/ and two/ with the same names and other images."""
    torch.manual_seed(0)
    for folder in ("run", "fresh"):
        save_weights(build_backbone("resnet8", "small", 3), tmp_path / folder / "backbone.safetensors")
        torch.manual_seed(0)
    for seed, folder in enumerate(("one", "two")):
        for part in ("train", "val"):
            write_images(tmp_path / folder, 10 * seed + (part == "val"), part)
    return tmp_path


def of(kind, place, data="one", run="run", **more):
    data_dir = str(place / data)
    return kind(
        **{**NETWORK, "dataset": "image_folder", "data_dir": data_dir, "exp_dir": str(place / run), "batch_size": 8, **more}
    )


TUNED = {"subset": 2, "val_subset": 1}
COMMANDS = {
    "knn": (KnnSettings, knn_eval, {"nb_knn": (1, 3)}),
    "sgd": (LogisticSettings, logistic_regression, {"solver": "sgd", "epochs": 2}),
    "lbfgs": (LogisticSettings, logistic_regression, {"solver": "lbfgs", **TUNED}),
    "linear": (EvaluateSettings, probe, {"epochs": 1}),
    "sweep": (EvaluateSettings, probe, {"epochs": 1, "lr_sweep": (0.1, 0.4), **TUNED}),
    "tune": (EvaluateSettings, probe, {"epochs": 1, "val_dataset": "train", **TUNED}),
    "semi": (EvaluateSettings, probe, {"epochs": 1, "weights": "finetune", "train_percent": 50}),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_score_is_measured_again_on_other_images_and_returned_for_the_same_ones_wherever_they_are(
    place, command, capsys, monkeypatch
):
    kind, work, more = COMMANDS[command]
    first = work(of(kind, place, "one", **more))
    splits = {"lbfgs": ["train", "tune", "test"], "sweep": ["train", "tune", "test"], "tune": ["train", "tune"]}
    assert sorted(first["data"]) == sorted(splits.get(command, ["train", "test"]))
    expected = {"images": first["train_images"], "classes": 2, "sha256": "", "encoding": "BMP"}
    assert first["data"]["train"] | {"sha256": ""} == expected
    capsys.readouterr()
    second = work(of(kind, place, "two", **more))
    name = second["protocol"]
    seen = capsys.readouterr()
    assert f"{name}.json was measured on other images (train: the same numbers of" in seen.err
    assert seen.err.count("measured again") == 1
    assert seen.out.count(f"training images: {second['train_images']}, 2 classes, from {place / 'two' / 'train'}") == 1
    assert second == work(of(kind, place, "two", "fresh", **more))
    assert second["data"] != first["data"]
    (place / "two").rename(place / "moved")
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr("sfrik.runs.folder.Run.save_result", lambda *given: pytest.fail("measured again"))
        assert work(of(kind, place, "moved", **more)) == second
        seen = capsys.readouterr()
        assert (seen.err, seen.out.count("training images: ")) == ("", 1)


@pytest.mark.parametrize("part", ["train", "val"])
def test_other_training_or_other_test_images_are_another_score(place, part, capsys):
    settings = of(KnnSettings, place, nb_knn=(1,))
    first = knn_eval(settings)
    write_images(place / "one", 5, part, PER_CLASS + 1)
    second = knn_eval(settings)
    split = {"train": "train", "val": "test"}[part]
    err = capsys.readouterr().err
    assert f"knn.json was measured on other images ({split}: 8 images -> 10 images): measured again" in err
    assert f"weights.json is of other images ({split}: 8 images -> 10 images): extracted again" in err
    assert {name for name in first["data"] if first["data"][name] != second["data"][name]} == {split}
    assert len(load_features(place / "run" / "features", part)[1]) == 10


def test_features_are_extracted_again_from_other_images_only(place, capsys):
    here = of(FeatureSettings, place)
    folder = extract_features(here)
    recorded = read_json(folder / "weights.json")
    assert list(recorded["data"]) == ["train", "test"]
    time = (folder / "train_features.npy").stat().st_mtime_ns
    shutil.copytree(place / "one", place / "copy")
    assert features_here(of(KnnSettings, place, "copy")) == folder
    assert (folder / "train_features.npy").stat().st_mtime_ns == time
    capsys.readouterr()
    extract_features(of(FeatureSettings, place, "two"))
    err = capsys.readouterr().err
    assert f"{folder / 'weights.json'} is of other images (train: the same numbers of images and classes, but other" in err
    extract_features(of(FeatureSettings, place, "two", "fresh"))
    for name in ("train_features.npy", "val_features.npy"):
        assert file_hash(folder / name) == file_hash(place / "fresh" / "features" / name) != recorded["sha256"][name]


def test_the_images_of_a_folder_are_extracted_again_if_they_changed_and_not_if_the_folder_moved(place, capsys):
    given = {"image_dir": str(place / "one" / "val"), "extraction_dir": str(place / "all")}
    folder = extract_features(of(FeatureSettings, place, **given))
    first = file_hash(folder / "all_features.npy")
    (place / "one" / "val").rename(place / "moved")
    time = (folder / "all_features.npy").stat().st_mtime_ns
    moved = {**given, "image_dir": str(place / "moved")}
    extract_features(of(FeatureSettings, place, **moved))
    assert (folder / "all_features.npy").stat().st_mtime_ns == time
    shutil.copytree(place / "two" / "val", place / "one" / "val")
    capsys.readouterr()
    extract_features(of(FeatureSettings, place, **given))
    seen = capsys.readouterr()
    assert "all_weights.json is of other images (all: the same numbers" in seen.err
    assert f"images: 8, 2 classes, from {place / 'one' / 'val'}" in seen.out
    assert file_hash(folder / "all_features.npy") != first
    with pytest.raises(SfrikError, match=r"holds the features of .*one/val: choose another --extraction-dir"):
        extract_features(of(FeatureSettings, place, **moved))


def test_scores_of_an_extraction_folder_name_the_images_that_its_features_are_of(place, capsys):
    folder = extract_features(of(FeatureSettings, place, extraction_dir=str(place / "features")))
    recorded = read_json(folder / "weights.json")["data"]
    settings = of(KnnSettings, place, "gone", "scores", extraction_dir=str(folder), nb_knn=(1,))
    capsys.readouterr()
    assert knn_eval(settings)["data"] == recorded
    assert f"features: 8 train of 2 classes and 8 test of 2 classes, from {folder}" in capsys.readouterr().out
    (folder / "weights.json").unlink()  # as another tool writes features
    foreign = knn_eval(settings)["data"]
    assert {split: found["images"] for split, found in foreign.items()} == {"train": 8, "test": 8}
    np.save(folder / "val_labels.npy", 1 - np.load(folder / "val_labels.npy"))
    changed = knn_eval(settings)["data"]
    assert changed["train"] == foreign["train"]
    assert changed["test"] != foreign["test"]


def test_another_label_list_of_the_same_share_is_another_score(place, capsys):
    lists = []
    for number, names in enumerate((("0", "1"), ("2", "3"))):
        lists.append(place / f"list{number}.txt")
        lists[-1].write_text("".join(f"{name}/{k}.bmp\n" for name in CLASSES for k in names), encoding="utf-8")
    given = {"epochs": 1, "train_percent": 50}
    first, second = (probe(of(EvaluateSettings, place, label_list=str(path), **given)) for path in lists)
    assert "linear50.json was measured on other images (train: the same numbers" in capsys.readouterr().err
    assert second == probe(of(EvaluateSettings, place, "one", "fresh", label_list=str(lists[1]), **given))
    assert second["head_sha256"] != first["head_sha256"]
    lists[0].write_text(lists[1].read_text(encoding="utf-8"), encoding="utf-8")
    assert probe(of(EvaluateSettings, place, label_list=str(lists[0]), **given)) == second
    probe(of(EvaluateSettings, place, **given))  # the first images of each class
    assert "measured again" in capsys.readouterr().err


def test_a_saved_head_is_scored_on_the_images_that_are_there(place, capsys):
    probe(of(EvaluateSettings, place, epochs=1))
    first, second = (probe(of(EvaluateSettings, place, data, only_inference=True)) for data in ("one", "two"))
    assert list(second["data"]) == ["test"]
    assert second["data"] != first["data"]
    assert second["head_sha256"] == first["head_sha256"]
    seen = capsys.readouterr()
    assert "linear_inference.json was measured on other images (test: the same numbers" in seen.err
    assert f"test images: 8, 2 classes, from {place / 'two' / 'val'}" in seen.out
    scores, labels = class_scores(of(EvaluateSettings, place, "two"))
    assert "linear.json was measured on other images (the same numbers of" in capsys.readouterr().err
    assert 100 * (scores.argmax(1) == labels).float().mean().item() == second["top1"]
    class_scores(of(EvaluateSettings, place, "one"))
    assert capsys.readouterr().err == ""


def test_a_transfer_is_measured_again_on_other_images_of_the_target(place, capsys):
    for number, name in enumerate(("a", "b")):
        target = place / name
        images, lists = target / "data/vision/torralba/deeplearning/images256", target / "trainvalsplit_places205"
        write_images(images, 20 + number, ".")
        lists.mkdir()
        for part in ("train", "val"):
            text = "".join(f"{label}/{k}.bmp {number}\n" for number, label in enumerate(CLASSES) for k in range(PER_CLASS))
            (lists / f"{part}_places205.csv").write_text(text, encoding="utf-8")

    def score(target, run="run"):
        settings = of(TransferSettings, place, "gone", run, target="places205", target_dir=str(place / target), epochs=1)
        return transfer(settings, progress=False)

    first, second = score("a"), score("b")
    seen = capsys.readouterr()
    assert "transfer_places205.json was measured on other images (train: the same numbers" in seen.err
    assert seen.out.count("test images: 8, 205 classes") == 2
    assert second == score("b", "fresh")
    assert second["data"] != first["data"]
    (place / "b").rename(place / "c")
    assert score("c") == second


# --- images that are gone, and files of earlier releases


@pytest.mark.parametrize("command", ["knn", "linear"])
def test_a_score_whose_images_are_gone_is_returned_and_reported(place, command, capsys):
    kind, work, more = COMMANDS[command]
    settings = of(kind, place, **more)
    first = work(settings)
    (place / "one").rename(place / "elsewhere")
    capsys.readouterr()
    assert work(settings) == first
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{place / 'run' / first['protocol']}.json is used as it is, since its images cannot be compared")
    assert line.endswith(
        f"there is no image folder {place / 'one' / 'train'}: --data-dir must hold train/ and val/ (or test/), with one "
        "folder per class"
    )
    (place / "one" / "test").mkdir(parents=True)  # other images, which cannot be read as these are
    with pytest.raises(SfrikError, match="there is no image folder"):
        work(settings)


def test_features_whose_images_are_gone_are_scored_and_reported(place, capsys):
    folder = extract_features(of(FeatureSettings, place))
    (place / "one").rename(place / "elsewhere")
    capsys.readouterr()
    assert knn_eval(of(KnnSettings, place, nb_knn=(1,)))["data"] == read_json(folder / "weights.json")["data"]
    seen = capsys.readouterr()
    assert seen.err.count("weights.json is used as it is") == 1
    assert f"features: 8 train of 2 classes and 8 test of 2 classes, from {folder}" in seen.out


def test_scores_and_features_of_earlier_releases_are_used_as_before(place, capsys):
    settings = of(KnnSettings, place, nb_knn=(1,))
    first = knn_eval(settings)
    score, features = place / "run" / "knn.json", place / "run" / "features" / "weights.json"
    for path in (score, features):
        write_json(path, {name: value for name, value in read_json(path).items() if name != "data"})
    capsys.readouterr()
    for data in ("two", "gone"):
        assert knn_eval(of(KnnSettings, place, data, nb_knn=(1,)))["top1_at"] == first["top1_at"]
    assert capsys.readouterr().err == ""
    again = knn_eval(of(KnnSettings, place, nb_knn=(1, 3)))
    assert again["data"] == {}
    assert "knn.json was measured with other settings (nb_knn [1] -> [1, 3]): measured again" in capsys.readouterr().err


def test_the_commands_print_the_numbers_of_images_also_of_a_finished_score(place, capsys):
    flags = ["--dataset", "image_folder", "--data-dir", str(place / "one"), "--exp-dir", str(place / "run"), "--size", "16"]
    flags += ["--arch", "resnet8", "--stem", "small", "--device", "cpu", "--workers", "0"]
    for _ in range(2):
        assert main(["knn-eval", *flags, "--nb-knn", "1"]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if "images: 8" in line]
        assert [line.split(",")[0] for line in lines] == ["training images: 8", "test images: 8"]
