"""Images that cannot be read: every evaluation names them, and with `skip_broken` leaves them out and counts the others."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from toys import accuracy_of_bits

from sfrik.datasets.images import load_images
from sfrik.errors import SfrikError
from sfrik.evaluate import class_scores, evaluate, extract_features, knn_eval, load_features, load_names, logistic_regression
from sfrik.evaluate import transfer as transfer_module
from sfrik.evaluate.broken import without_broken
from sfrik.evaluate.features import features_here
from sfrik.networks import build_backbone, save_weights
from sfrik.runs.correctness import unpack
from sfrik.settings import EvaluateSettings, FeatureSettings, KnnSettings, LogisticSettings, TransferSettings
from sfrik.system.files import read_json

BROKEN = {"train": ["b/3.png"], "test": ["a/1.png"]}
NETWORK = {"dataset": "image_folder", "size": 16, "arch": "resnet8", "stem": "small", "device": "cpu", "precision": "fp32"}
FEW = {"workers": 0, "epochs": 1, "batch_size": 8}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two classes of eight training and four test images, one of each truncated, and weights."""
    folder = tmp_path_factory.mktemp("broken")
    generator = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 4)):
        for label in "ab":
            (folder / part / label).mkdir(parents=True)
            for k in range(count):
                pixels = generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / label / f"{k}.png")
    for path in (folder / "train" / BROKEN["train"][0], folder / "val" / BROKEN["test"][0]):
        path.write_bytes(path.read_bytes()[:300])
    torch.manual_seed(0)
    save_weights(build_backbone("resnet8", "small", 3), folder / "weights.safetensors")
    return folder


def given(place, run, **more):
    return {**NETWORK, "data_dir": str(place), "pretrained": str(place / "weights.safetensors"), "exp_dir": str(run), **more}


def sweep(**more):
    """Settings of a rate chosen on a tuning split of class images 6 and 7."""
    return EvaluateSettings(**more, lr_sweep=(0.1,), subset=5, val_subset=2)


def transferred(settings):
    return transfer_module.transfer(settings, progress=False)


WORK = {
    "knn": (KnnSettings, knn_eval, {"nb_knn": (3,), "batch_size": 8}),
    "logistic": (LogisticSettings, logistic_regression, FEW),
    "linear": (EvaluateSettings, lambda settings: evaluate(settings, progress=False), FEW),
    "sweep": (sweep, lambda settings: evaluate(settings, progress=False), FEW),
    "finetune": (EvaluateSettings, lambda settings: evaluate(settings, progress=False), {**FEW, "weights": "finetune"}),
    "transfer": (TransferSettings, transferred, FEW),
}


@pytest.mark.parametrize("name", WORK)
def test_an_evaluation_names_a_broken_image_or_skips_it_and_counts_the_others(place, tmp_path, monkeypatch, capsys, name):
    kind, work, more = WORK[name]
    monkeypatch.setattr(transfer_module, "load_target", lambda target, split, folder: load_images("image_folder", split, folder))
    more = {"workers": 0, **more}
    with pytest.raises(SfrikError, match=r"cannot read image .*/(train/b/3|val/a/1)\.png"):
        work(kind(**given(place, tmp_path / "strict", **more)))
    score = work(kind(**given(place, tmp_path / "run", **more), skip_broken=True))
    assert score["broken_images"] == BROKEN
    assert (score["images"], score["train_images"]) == (7, 9 if name == "sweep" else 15)
    assert score["settings"]["skip_broken"] is True
    assert accuracy_of_bits(score) == score.get("top1_at", score.get("top1")), "one bit for each image that was read"
    assert read_json(tmp_path / "run" / f"{score['protocol']}.json") == score
    assert "broken images skipped in the train split: 1 (b/3.png)\n" in capsys.readouterr().err
    if name == "linear":
        settings = EvaluateSettings(**given(place, tmp_path / "run", **more), skip_broken=True)
        scores, labels = class_scores(settings)
        assert labels.tolist() == without_broken(load_images("image_folder", "test", place), score).targets.tolist()
        assert len(scores) == 7
        assert (scores.argmax(dim=1) == labels).tolist() == unpack(score["correct"], 7).tolist()
        again = evaluate(settings.model_copy(update={"only_inference": True}))
        assert (again["top1"], again["images"], again["broken_images"]) == (score["top1"], 7, {"test": ["a/1.png"]})
        assert again["correct"] == score["correct"]


def test_skipped_images_are_left_out_of_features_with_their_labels_and_names(place, tmp_path):
    settings = FeatureSettings(**given(place, tmp_path / "run", workers=0, batch_size=3), skip_broken=True)
    folder = extract_features(settings)
    sound = tmp_path / "sound"
    shutil.copytree(place, sound)
    (sound / "train" / "b" / "3.png").unlink()
    (sound / "val" / "a" / "1.png").unlink()
    expected = extract_features(FeatureSettings(**given(sound, tmp_path / "other", workers=0, batch_size=3)))
    for split in ("train", "val"):
        features, labels = load_features(folder, split)
        torch.testing.assert_close(features, load_features(expected, split)[0], rtol=1e-4, atol=1e-5)
        assert labels.tolist() == load_features(expected, split)[1].tolist()
        assert load_names(folder, split) == load_names(expected, split)
    assert read_json(folder / "weights.json")["broken_images"] == {"train": ["b/3.png"], "val": ["a/1.png"]}
    with pytest.raises(SfrikError, match="cannot read image"):  # incomplete features are not those of a run without the switch
        features_here(settings.model_copy(update={"skip_broken": False}))
    assert (folder / "weights.json").exists() is False
