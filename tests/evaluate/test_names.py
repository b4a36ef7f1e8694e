"""The names of classes, compared wherever labels meet, and the names of images beside features."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from toys import squares

from sfrik.cli.main import main
from sfrik.errors import SfrikError
from sfrik.evaluate import class_scores, evaluate, extract_features, knn_eval, load_features, load_head, load_names, save_head
from sfrik.evaluate import features as features_module
from sfrik.evaluate.finetune import finetune
from sfrik.evaluate.linear import linear_probe, linear_sweep
from sfrik.evaluate.name_files import check_same_classes, load_classes
from sfrik.networks import build_backbone, save_weights
from sfrik.settings import EvaluateSettings, FeatureSettings, KnnSettings
from sfrik.system.files import read_json

NETWORK = {"size": 16, "arch": "resnet8", "stem": "small", "device": "cpu", "precision": "fp32", "workers": 0}


def write_images(folder, names):
    for k, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 20 + 30 * (k % 7), np.uint8)).save(path, "png")


@pytest.fixture
def place(tmp_path):
    """Train and val of cats and dogs, and weights."""
    write_images(tmp_path, [f"{part}/{name}/{k}.png" for part in ("train", "val") for name in ("cat", "dog") for k in range(2)])
    torch.manual_seed(0)
    save_weights(build_backbone("resnet8", "small", 3), tmp_path / "weights.safetensors")
    return tmp_path


def given(place, **more):
    run = {"pretrained": str(place / "weights.safetensors"), "exp_dir": str(place / "run")}
    return {**NETWORK, "dataset": "image_folder", "data_dir": str(place), **run, **more}


def rename(place, old, new):
    for part in ("train", "val"):
        (place / part / old).rename(place / part / new)


# --- classes


def test_a_head_on_renamed_classes_is_refused_and_one_without_names_is_not(place):
    settings = EvaluateSettings(**given(place, epochs=1))
    evaluate(settings, progress=False)
    path = place / "run" / "head_linear.safetensors"
    assert load_head(path).about["classes"] == ["cat", "dog"]
    for scores in (lambda: evaluate(settings.model_copy(update={"only_inference": True})), lambda: class_scores(settings)):
        rename(place, "cat", "hamster")  # now class 1, of the same images
        with pytest.raises(
            SfrikError, match=r"head_linear\.safetensors and the images have different classes: cat only in"
        ) as error:
            scores()
        assert "hamster only in the images: class folders were renamed" in str(error.value)
        rename(place, "hamster", "cat")
        scores()
    saved = load_head(path)
    old = place / "old.safetensors"
    save_head(old, saved.head, **{name: value for name, value in saved.about.items() if name != "classes"})
    rename(place, "cat", "hamster")
    evaluate(settings.model_copy(update={"only_inference": True, "ckp_path": str(old), "exp_dir": str(place / "other")}))


@pytest.mark.parametrize("function", [linear_probe, linear_sweep, finetune])
def test_training_and_scored_images_of_different_classes_are_refused(function):
    named = [replace(squares(8, k), classes=classes) for k, classes in enumerate((("cat", "dog"), ("dog", "cat")))]
    splits = (named[0], named[0], named[1]) if function is linear_sweep else named
    given = {"lr_sweep": (0.1,)} if function is linear_sweep else {"weights": "finetune"} if function is finetune else {}
    settings = EvaluateSettings(**given, epochs=1, size=28, dataset="mnist5k", workers=0)
    with pytest.raises(SfrikError, match=r"class 0 is cat in the training images and dog in the scored images: give"):
        function(build_backbone("resnet8", "small", 1), *splits, settings, torch.device("cpu"), progress=False)


def test_class_names_that_are_missing_fit_anything_and_extra_ones_are_listed():
    check_same_classes(None, ["a"], "one", "two", "rename")
    check_same_classes(("a", "b"), ["a", "b"], "one", "two", "rename")
    with pytest.raises(SfrikError, match=r"^one and two have different classes: c, d, e, \.\.\. only in two: rename$"):
        check_same_classes(["a", "b"], list("abcdef"), "one", "two", "rename")


def test_features_of_two_splits_of_different_classes_are_refused(place):
    folder = extract_features(FeatureSettings(**given(place, extraction_dir=str(place / "one"))))
    assert load_classes(folder, "train") == ["cat", "dog"]
    rename(place, "cat", "hamster")
    other = extract_features(FeatureSettings(**given(place, extraction_dir=str(place / "two"))))
    for path in other.glob("val_*"):
        shutil.copy(path, folder)
    (folder / "weights.json").unlink()  # it records the files of the extraction
    settings = KnnSettings(nb_knn=(1,), extraction_dir=str(folder), exp_dir=str(place / "scores"), device="cpu")
    with pytest.raises(SfrikError, match=r"the train features in .* and the val features in .*: cat only in .* hamster only in"):
        knn_eval(settings)
    (folder / "val_classes.txt").unlink()  # features of an earlier release, or of another tool
    knn_eval(settings)


# --- names of images


def test_names_are_in_the_order_of_the_rows_and_features_without_them_are_completed(place):
    settings = FeatureSettings(**given(place))
    folder = extract_features(settings)
    assert load_names(folder, "train") == ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"]
    assert (folder / "val_names.txt").read_text(encoding="utf-8") == "cat/0.png\ncat/1.png\ndog/0.png\ndog/1.png\n"
    for split in ("train", "val"):  # as an earlier release left them
        (folder / f"{split}_names.txt").unlink()
    features_module.features_here(settings)
    with pytest.raises(SfrikError, match=r"there are no names .*train_names\.txt: run extract-features again"):
        load_names(folder, "train")
    extract_features(settings)
    assert len(load_names(folder, "train")) == 4


def test_names_that_are_not_those_of_the_rows_are_refused(place):
    folder = extract_features(FeatureSettings(**given(place)))
    classes, names = folder / "val_classes.txt", folder / "val_names.txt"
    classes.write_text("cat\n", encoding="utf-8")
    with pytest.raises(SfrikError, match=r"val_labels\.npy has label 1, but .* names 1 classes: extract them again"):
        load_features(folder, "val")
    names.write_text("cat/0.png\n", encoding="utf-8")
    with pytest.raises(SfrikError, match=r"has 4 val features but 1 names: extract them again"):
        load_features(folder, "val")


def test_any_folder_is_extracted_with_names_and_with_labels_if_it_has_classes(place, tmp_path, capsys, monkeypatch):
    names = ["2023/a b.png", "top.png", "2023/deep/ä.png", "line\nbreak.png", "back\\slash.png", os.fsdecode(b"latin\xe9.png")]
    write_images(tmp_path / "photos", names)
    flags = ["--dataset", "image_folder", "--data-dir", str(tmp_path / "photos"), "--exp-dir", str(tmp_path / "out")]
    flags += ["--pretrained", str(place / "weights.safetensors")]
    flags += [part for name, value in NETWORK.items() for part in (f"--{name}", str(value))]
    assert main(["extract-features", *flags, "--batch-size", "4"]) == 0, capsys.readouterr().err
    out = tmp_path / "out"
    assert load_names(out, "all") == sorted(names)
    assert np.load(out / "all_features.npy").shape == (6, 128)
    assert not (out / "all_labels.npy").exists()
    assert read_json(out / "all_weights.json")["image_dir"] == str((tmp_path / "photos").resolve())

    # by the API, beside the features of train and val; the images of class folders have labels
    settings = FeatureSettings(**given(place, extraction_dir=str(out), image_dir=str(place / "train")))
    with pytest.raises(SfrikError, match=r"holds the features of .*photos: choose another --extraction-dir"):
        extract_features(settings)
    settings = FeatureSettings(**given(place, image_dir=str(place / "train")))
    folder = extract_features(settings)
    features, labels = load_features(folder, "all")
    assert labels.tolist() == [0, 0, 1, 1]
    assert load_classes(folder, "all") == ["cat", "dog"]
    extract_features(settings.model_copy(update={"image_dir": ""}))
    assert torch.equal(load_features(folder, "train")[0], features), "the same images, read in the same way"

    with monkeypatch.context() as patch:
        patch.setattr(features_module, "write_rows", lambda *arguments: pytest.fail("extracted again"))
        extract_features(settings)
    write_images(place / "train", ["dog/2.png"])
    extract_features(settings)
    assert load_names(folder, "all")[-1] == "dog/2.png"
    assert load_features(folder, "all")[1].tolist() == [0, 0, 1, 1, 1]
    with pytest.raises(SfrikError, match="image_dir is for image files"):
        FeatureSettings.parse({"dataset": "mnist5k", "image_dir": "photos"})
