"""`sfrik table` and `sfrik run` on other images: scores are measured again, runs that were trained on others refused."""

from __future__ import annotations

import shutil

import pytest
from finished import finished_run
from PIL import Image

from sfrik import datasets
from sfrik.datasets import describe_data, load_images
from sfrik.errors import SfrikError
from sfrik.pretrain.finish import already_pretrained
from sfrik.reproduce import table as table_module
from sfrik.reproduce.present import PresentImages
from sfrik.reproduce.run import run_recipe
from sfrik.reproduce.stages import PlannedRun, check_images, missing_stages, refusal
from sfrik.reproduce.table import make_table
from sfrik.runs.folder import Run
from sfrik.settings import PretrainSettings, run_folder
from sfrik.system.files import read_json, write_json

RECIPES = [f"paper/in1k_r50_{name}" for name in ("vicreg_q8192", "sfrik_l2_q8192")]
STAGES = ("pretrain", "linear", "knn")
OTHERS = "the same numbers of images and classes, but other names, sizes, labels or contents"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """images/ with train/ and val/ of two classes, and runs/ with two finished runs on them."""
    monkeypatch.setenv("SFRIK_CACHE", str(tmp_path / "cache"))
    for number, name in enumerate(f"{part}/{label}/{k}" for part in ("train", "val") for label in "ab" for k in range(3)):
        path = tmp_path / "images" / f"{name}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    of = {split: describe_data(load_images("imagenet", split, tmp_path / "images")) for split in ("train", "test")}
    for recipe in RECIPES:
        run = finished_run(tmp_path / "runs", recipe, stages=STAGES)
        write_json(run.folder / "settings.json", read_json(run.folder / "settings.json") | {"data": of["train"]})
        for name in ("linear", "knn"):
            write_json(run.folder / f"{name}.json", read_json(run.folder / f"{name}.json") | {"data": of})
    return tmp_path


def missing(place, images="images", recipe=RECIPES[0]):
    return missing_stages(recipe, 0, place / "runs", STAGES, PresentImages(str(place / images)))


def test_scores_of_other_test_images_are_missing(place):
    shutil.copytree(place / "images", place / "copy")
    assert missing(place) == missing(place, "copy") == []
    shutil.copy(place / "images" / "val" / "a" / "0.bmp", place / "copy" / "val" / "a" / "1.bmp")
    assert missing(place, "copy") == ["linear", "knn"]
    assert refusal(RECIPES[0], 0, place / "runs", PresentImages(str(place / "copy"))) == ""
    write_json(path := run_folder(RECIPES[0], 0, place / "runs") / "knn.json", read_json(path) | {"data": {}})
    assert missing(place, "copy") == ["linear"], "an earlier release did not record the images of a score"
    assert missing_stages(RECIPES[0], 0, place / "runs", STAGES) == [], "without images nothing is compared"


def test_a_run_on_other_training_images_is_refused_by_run_and_table_which_does_the_others(place, monkeypatch, capsys):
    shutil.copytree(place / "images", place / "copy")
    shutil.rmtree(place / "copy" / "train" / "b")
    shutil.rmtree(place / "copy" / "val" / "b")
    run, other = (Run(run_folder(recipe, 0, place / "runs")) for recipe in RECIPES)
    record = read_json(other.folder / "settings.json")
    write_json(other.folder / "settings.json", {name: value for name, value in record.items() if name != "data"})
    before = {path: path.read_bytes() for path in run.folder.iterdir()}
    reason = (
        f"{run.folder} holds a run on other training images (6 images -> 3 images, 2 classes -> 1 class): check --data-dir "
        f"(DATA=), restore them in {place / 'copy'}, or move that folder away"
    )
    with pytest.raises(SfrikError) as error:
        run_recipe(RECIPES[0], 0, place / "runs", STAGES, str(place / "copy"))
    assert str(error.value) == reason

    executed = []
    planned = [PlannedRun(recipe, 0, STAGES) for recipe in RECIPES]
    monkeypatch.setattr(table_module, "table_runs", lambda *given: [("table4", planned)])
    monkeypatch.setattr(table_module, "run_side_by_side", lambda runs, *given: executed.extend(runs) or [])
    for name in ("execute", "_render", "read_text", "_print_table"):
        monkeypatch.setattr(table_module, name, lambda *given, **named: "", raising=False)
    reads = []
    monkeypatch.setattr(datasets, "describe_data", lambda images: reads.append(images.source) or describe_data(images))
    assert make_table("table4", "paper", jobs=1, root=place / "runs", data_dir=str(place / "copy")) == 1
    assert f"refused: {RECIPES[0]} seed 0: {reason}\n" in capsys.readouterr().err
    assert [run.recipe for run in executed] == RECIPES[1:]
    assert len(reads) == 3, "for pretraining, training and test: once for all runs and scores"
    assert {path: path.read_bytes() for path in run.folder.iterdir() if path in before} == before


def test_images_that_are_gone_are_not_compared_and_reported_once(place, capsys, monkeypatch):
    monkeypatch.setattr("sfrik.system.terminal._printed", set())
    present = PresentImages(str(place / "gone"))
    for recipe in RECIPES:
        assert missing_stages(recipe, 0, place / "runs", STAGES, present) == []
        assert refusal(recipe, 0, place / "runs", present) == ""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("what was computed from images that are missing now is used as it is: there is no image folder")
    assert f"{place / 'gone' / 'train'}" in lines[0]
    assert f"{place / 'gone' / 'val'}" in lines[1]


def test_images_that_are_the_same_everywhere_are_not_read(place, monkeypatch):
    recipe, data = "smoke/sfrik_l3_q64", {"images": 1, "classes": 1, "sha256": "a"}
    run = finished_run(place / "runs", recipe, stages=(*STAGES, "semi"))
    for path in run.folder.glob("*.json"):
        write_json(path, read_json(path) | {"data": data if path.name == "settings.json" else {"train": data, "test": data}})
    monkeypatch.setattr("sfrik.reproduce.present._load", lambda *given: pytest.fail("images were read"))
    assert missing_stages(recipe, 0, place / "runs", (*STAGES, "semi"), PresentImages()) == []
    assert refusal(recipe, 0, place / "runs", PresentImages()) == ""


def test_images_that_could_be_downloaded_are_not_downloaded_to_compare_them(place, monkeypatch, capsys):
    monkeypatch.setattr("urllib.request.urlopen", lambda *given, **named: pytest.fail("a download was started"))
    recipe, data = "cifar10/simclr_q512", {"images": 1, "classes": 1, "sha256": "a"}
    run = finished_run(place / "runs", recipe, stages=STAGES)
    for path in run.folder.glob("*.json"):
        write_json(path, read_json(path) | {"data": data if path.name == "settings.json" else {"train": data, "test": data}})
    present = PresentImages(str(place / "none"))
    assert missing_stages(recipe, 0, place / "runs", STAGES, present) == []
    assert refusal(recipe, 0, place / "runs", present) == ""
    settings = PretrainSettings.from_recipe(recipe, data_dir=str(place / "none"), exp_dir=str(run.folder))
    already_pretrained(run, settings, progress=True)
    out, err = capsys.readouterr()
    assert "what was computed from images that are missing now is used as it is: CIFAR10 is not in" in err
    assert f"{run.folder}: the training images are not compared: CIFAR10 is not in {place / 'none'}" in out + err
    assert not (place / "none").exists()


def test_images_that_a_table_could_not_use_are_refused_before_its_first_run(place, monkeypatch):
    started = []
    monkeypatch.setattr(table_module, "run_side_by_side", lambda runs, *given: started.extend(runs) or [])
    shutil.rmtree(place / "images" / "val")
    shutil.rmtree(place / "runs")
    planned = [PlannedRun(recipe, 0, STAGES) for recipe in RECIPES]
    monkeypatch.setattr(table_module, "table_runs", lambda *given: [("table4", planned)])
    for name, work in {
        "table": lambda: make_table("table4", "paper", root=place / "runs", data_dir=str(place / "images")),
        "run": lambda: run_recipe(RECIPES[0], 0, place / "runs", STAGES, str(place / "images")),
    }.items():
        with pytest.raises(SfrikError, match=rf"there is no image folder {place / 'images' / 'val'}: --data-dir must hold"):
            work()
        assert not started, name
    state = Run(run_folder(RECIPES[0], 0, place / "runs")).state()
    assert state["state"] == "failed"
    assert "there is no image folder" in state["error"]
    check_images([run._replace(stages=("pretrain",)) for run in planned], str(place / "images"))  # which needs no val/
    few = r"class a of .*train has 3 images, but images 0 to 259 of each class are required: 260 per class, or a lower subset"
    with pytest.raises(SfrikError, match=few):
        check_images([PlannedRun("paper/in20_vicreg_q8192", 0, ("pretrain",))], str(place / "images"))


def test_each_split_that_the_missing_stages_of_a_table_read_is_checked_once(monkeypatch):
    reads = []
    monkeypatch.setattr(datasets, "load_images", lambda *which: reads.append(which))
    planned = [PlannedRun(f"photos/{name}", seed, STAGES) for name in ("vicreg_q128", "raw_pixels") for seed in (0, 1)]
    check_images(planned, "images")
    splits = [("cifar10", split, "images", 1000, 499) for split in ("train", "tune", "test")]
    assert reads == [("cifar10", "pretrain", "images", 1000), *splits]
    reads.clear()
    check_images([run._replace(stages=("tune",)) for run in planned])
    assert reads == [("cifar10", split, "data", 1000, 499) for split in ("train", "tune")], "the test images are not"
    check_images([PlannedRun("digits/vicreg_q128", 0, ("pretrain", "semi"))])
    assert len(reads) == 2, "MNIST5k's images are the same everywhere, and those of a transfer may be missing"
