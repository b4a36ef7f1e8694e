"""A run is not continued, and not handed out as finished, on other images than those it was trained on."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from sfrik.errors import SfrikError
from sfrik.pretrain.loop import _Training, pretrain
from sfrik.runs.checkpoints import Checkpoints
from sfrik.runs.folder import Run
from sfrik.settings import PretrainSettings
from sfrik.system.files import read_json, write_json

OTHERS = "the same numbers of images and classes, but other names, sizes, labels or contents"


def photo_settings(folder, **overrides):
    return PretrainSettings.parse(
        {
            **{"dataset": "image_folder", "data_dir": str(folder / "images"), "exp_dir": str(folder / "run"), "arch": "resnet8"},
            **{"stem": "small", "size": 16, "mlp": "64-16", "batch_size": 8, "epochs": 1, "warmup_epochs": 0, "knn_every": 0},
            **{"device": "cpu", "precision": "fp32", "workers": 0, **overrides},
        }
    )


def stopped(settings, step=1):
    """Train up to a checkpoint at a step of the first epoch."""

    def stop(self, requests):
        self.position.step = step
        self._save()
        raise RuntimeError("stopped")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Training, "_epoch", stop)
        with pytest.raises(RuntimeError, match="stopped"):
            pretrain(settings, progress=False)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """images/ with 24 files of one size in two classes, and run/, which is finished, or has a checkpoint."""
    generator, places = np.random.default_rng(0), {}
    images = tmp_path_factory.mktemp("images") / "images"
    for label in "ab":
        (images / "train" / label).mkdir(parents=True)
        for k in range(12):
            Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(images / "train" / label / f"{k}.bmp")
    for state in ("finished", "unfinished"):
        places[state] = tmp_path_factory.mktemp(state)
        shutil.copytree(images, places[state] / "images")
        (pretrain if state == "finished" else stopped)(photo_settings(places[state]))
    return places


@pytest.fixture(params=["finished", "unfinished"])
def place(request, places, tmp_path, monkeypatch):
    """A copy of both folders, whose images are the same in another place."""
    monkeypatch.setenv("SFRIK_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(places[request.param], tmp_path / "copy")


CHANGES = {
    "one image less": (lambda train: (train / "a" / "3.bmp").unlink(), "24 images -> 23 images"),
    "less than a batch": (
        lambda train: [path.unlink() for path in train.glob("*/*[0-9].bmp") if path.stem > "1"],
        "24 images -> 4",
    ),
    "a new class": (lambda train: shutil.copytree(train / "a", train / "c"), "24 images -> 36 images, 2 classes -> 3 classes"),
    "another name": (lambda train: (train / "a" / "3.bmp").rename(train / "a" / "new.bmp"), OTHERS),
    "a class of another name": (lambda train: (train / "b").rename(train / "c"), OTHERS),
    "another content": (lambda train: shutil.copy(train / "a" / "3.bmp", train / "a" / "4.bmp"), OTHERS),
    "another size": (lambda train: Image.new("RGB", (33, 33)).save(train / "a" / "4.bmp"), OTHERS),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_images_are_refused_with_the_difference_and_nothing_is_changed(place, change):
    before = {path: path.read_bytes() for path in (place / "run").iterdir() if path.suffix != ".lock"}
    alter, difference = CHANGES[change]
    shutil.copytree(place / "images", place / "kept")
    alter(place / "images" / "train")
    kind = "a run" if (place / "run" / "backbone.safetensors").exists() else "an unfinished run"
    with pytest.raises(SfrikError) as error:
        pretrain(photo_settings(place), progress=False)
    assert str(error.value).startswith(f"{place / 'run'} holds {kind} on other training images ({difference}")
    remedy = f"check --data-dir, restore them in {place / 'images'}, or train on the present ones in another --exp-dir"
    assert str(error.value).endswith(f"): {remedy}")
    assert all(path.read_bytes() == content for path, content in before.items() if path.name != "state.json")
    if change == "another content":
        pretrain(photo_settings(place, data_dir=str(place / "kept")), progress=False)
        assert len(Run(place / "run").epochs()) == 1


def test_the_images_are_recorded_and_their_numbers_printed(place, capsys):
    finished = Run(place / "run").finished
    recorded = read_json(place / "run" / "settings.json")["data"]
    assert (recorded["images"], recorded["classes"], len(recorded["sha256"])) == (24, 2, 64)
    if not finished:
        assert Checkpoints(place / "run").load()["data"] == recorded
    pretrain(photo_settings(place))
    assert f"training images: 24, 2 classes, from {place / 'images' / 'train'}\n" in capsys.readouterr().out
    assert read_json(place / "run" / "settings.json")["data"] == recorded
    shutil.rmtree(place / "images")
    pretrain(photo_settings(place))
    assert "the training images are not compared: there is no image folder" in capsys.readouterr().out


def test_without_a_record_nothing_is_refused(place):
    """As in a folder of an earlier release; its checkpoint has the number of images, that of their classes, and their names."""
    record, checkpoints = read_json(place / "run" / "settings.json"), Checkpoints(place / "run")
    record.pop("data")
    write_json(place / "run" / "settings.json", record)
    shutil.copytree(place / "images", place / "kept")
    shutil.copy(place / "images" / "train" / "a" / "3.bmp", place / "images" / "train" / "a" / "4.bmp")
    if checkpoints.exist:
        state = checkpoints.load()
        names = "a73c29a68b58e8b4c8b8a3ec9bb6c4a0c1a4a1f0a86dd06b1a0a3e76c1a0aa00"
        state.pop("data")
        for other, refusal in (
            ({"images": 23}, "23 images -> 24 images"),
            ({"classes": 3}, "3 classes -> 2 classes"),
            ({"names_sha256": names}, "24 images with other names"),
            ({"place": state["place"] | {"step": 3}}, "step 3 of an epoch that now has 3, of 24 images"),
        ):
            torch.save({**state, **other}, checkpoints.paths[0])
            with pytest.raises(SfrikError, match=rf"an unfinished run on other training images \({refusal}\): check"):
                pretrain(photo_settings(place), progress=False)
        torch.save(state, checkpoints.paths[0])
    pretrain(photo_settings(place), progress=False)
    assert "data" not in read_json(place / "run" / "settings.json")


def test_settings_that_were_lost_are_restored_with_the_images_of_the_checkpoint(places, tmp_path):
    place = shutil.copytree(places["unfinished"], tmp_path / "copy")
    whole = (place / "run" / "settings.json").read_bytes()
    (place / "run" / "settings.json").unlink()
    shutil.copytree(place / "images", place / "other")
    (place / "other" / "train" / "a" / "3.bmp").unlink()
    with pytest.raises(SfrikError, match="24 images -> 23 images"):
        pretrain(photo_settings(place, data_dir=str(place / "other")), progress=False)
    pretrain(photo_settings(place), progress=False)
    assert (place / "run" / "settings.json").read_bytes() == whole


def test_a_run_that_was_never_saved_starts_on_other_images(places, tmp_path):
    place = shutil.copytree(places["unfinished"], tmp_path / "copy")
    for path in Checkpoints(place / "run").paths:
        path.unlink(missing_ok=True)
    (place / "images" / "train" / "a" / "3.bmp").unlink()
    pretrain(photo_settings(place), progress=False)
    assert read_json(place / "run" / "settings.json")["data"]["images"] == 23


def test_a_run_that_stopped_at_a_broken_image_resumes_once_a_sound_one_is_in_its_place(places, tmp_path):
    place = shutil.copytree(places["finished"] / "images", tmp_path / "images").parent
    broken = place / "images" / "train" / "b" / "3.bmp"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:500])
    with pytest.raises(SfrikError, match=r"cannot read image .*3\.bmp"):
        pretrain(photo_settings(place, checkpoint_minutes=1e-9), progress=False)
    assert Checkpoints(place / "run").exist
    broken.write_bytes(whole)
    shutil.copytree(place / "images", place / "other")
    for path in (place / "other").rglob("*.bmp"):
        path.write_bytes(whole)
    with pytest.raises(SfrikError, match=r"an unfinished run on other training images \(the same number of images, but"):
        pretrain(photo_settings(place, data_dir=str(place / "other")), progress=False)
    pretrain(photo_settings(place), progress=False)
    assert read_json(place / "run" / "settings.json") == read_json(places["finished"] / "run" / "settings.json")
    assert (place / "run" / "backbone.safetensors").read_bytes() == (
        places["finished"] / "run" / "backbone.safetensors"
    ).read_bytes()


def test_a_run_whose_images_vanished_while_it_trained_resumes_once_they_are_there_again(places, tmp_path, monkeypatch):
    place = shutil.copytree(places["finished"] / "images", tmp_path / "images").parent
    save = _Training._save

    def save_and_unmount(self):
        save(self)
        if (place / "images").exists():
            (place / "images").rename(place / "unmounted")

    monkeypatch.setattr(_Training, "_save", save_and_unmount)
    with pytest.raises(SfrikError, match="cannot read image"):
        pretrain(photo_settings(place, checkpoint_minutes=1e-9), progress=False)
    (place / "unmounted").rename(place / "images")
    monkeypatch.undo()
    pretrain(photo_settings(place), progress=False)
    assert read_json(place / "run" / "settings.json") == read_json(places["finished"] / "run" / "settings.json")
