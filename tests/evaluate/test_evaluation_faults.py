"""Diverging evaluations report where and at which rate; features of an interrupted extraction are not read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toys import squares

from sfrik.errors import SfrikError
from sfrik.evaluate import extract_features, linear_probe, linear_sweep, load_features, sgd_loop
from sfrik.evaluate.finetune import finetune
from sfrik.networks import build_backbone, save_weights
from sfrik.settings import EvaluateSettings, FeatureSettings
from sfrik.system.files import file_hash, read_json

CPU = torch.device("cpu")


def small_backbone():
    torch.manual_seed(0)
    return build_backbone("resnet8", "small", 1)


def toy_settings(**overrides) -> EvaluateSettings:
    given = {"dataset": "mnist5k", "size": 28, "epochs": 3, "batch_size": 16, "workers": 0, "weight_decay": 0.0}
    return EvaluateSettings(**given, **overrides)


def test_a_diverging_probe_reports_protocol_epoch_step_and_rate():
    with pytest.raises(SfrikError, match=r"linear diverged \(lr_head 3e\+38: epoch 0, step \d: .* is not finite\): lower"):
        linear_probe(small_backbone(), squares(64, 0), squares(4, 1), toy_settings(lr_head=3e38), CPU, progress=False)


def test_a_diverging_fine_tuning_reports_protocol_epoch_step_and_rates():
    images = squares(64, 0)
    settings = toy_settings(weights="finetune", train_percent=10, lr_backbone=1e30, lr_head=0.1)
    with pytest.raises(SfrikError, match=r"semi10 diverged \(lr_backbone 1e\+30 and lr_head 0\.1: epoch 0, step \d: "):
        finetune(small_backbone(), images, squares(4, 1), settings, CPU, progress=False)


@pytest.mark.parametrize("check_every", [1, 2, 50])
def test_a_diverging_rate_is_reported_and_does_not_affect_the_other_heads(monkeypatch, capsys, check_every):
    """For any interval of checks; the reported step is that of a probe with only this rate."""
    monkeypatch.setattr(sgd_loop, "CHECK_EVERY", check_every)
    backbone, splits = small_backbone(), (squares(72, 0), squares(20, 1), squares(20, 2))
    score, head = linear_sweep(backbone, *splits, toy_settings(lr_sweep=(1e-2, 3e38)), CPU, progress=False)
    stderr = capsys.readouterr().err
    expected, single = linear_sweep(backbone, *splits, toy_settings(lr_sweep=(1e-2,)), CPU, progress=False)
    assert score == {**expected, "sweep": {**expected["sweep"], "3e+38": 0.0}}
    assert torch.equal(head.weight, single.weight)
    with pytest.raises(SfrikError) as error:
        linear_probe(backbone, splits[0], splits[2], toy_settings(lr_head=3e38), CPU, progress=False)
    where = str(error.value).split("(lr_head 3e+38: ")[1].split(")")[0]
    assert f"linear: lr_head 3e+38 diverged ({where}) and scores 0; the other rates continue\n" == stderr


def test_a_sweep_in_which_every_rate_diverges_is_an_error_that_names_each():
    backbone, settings = small_backbone(), toy_settings(lr_sweep=(2e38, 3e38))
    with pytest.raises(SfrikError, match=r"lr_head 2e\+38: epoch .*; lr_head 3e\+38: epoch "):
        linear_sweep(backbone, squares(72, 0), squares(20, 1), None, settings, CPU, progress=False)


# --- features


class Fault(Exception):
    """Stands for whatever ends the process."""


@pytest.fixture
def place(tmp_path):
    """An image folder with one grey image per class, and two weights files."""
    for split in ("train", "val"):
        for label in range(3):
            (tmp_path / split / str(label)).mkdir(parents=True)
            Image.fromarray(np.full((16, 16, 3), 60 * label, np.uint8)).save(tmp_path / split / str(label) / "0.png")
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_weights(build_backbone("resnet8", "small", 3), tmp_path / f"weights{seed}.safetensors")
    return tmp_path


@pytest.mark.parametrize("failing", range(1, 5))
def test_features_are_not_read_after_an_interruption_between_their_renames(place, monkeypatch, failing):
    """Each rename in turn fails, in a folder with older features of other weights."""
    given = {"dataset": "image_folder", "data_dir": str(place), "size": 16, "arch": "resnet8", "stem": "small"}
    folder = str(place / "features")
    before, now = (
        FeatureSettings(
            pretrained=str(place / f"weights{k}.safetensors"), extraction_dir=folder, workers=0, device="cpu", **given
        )
        for k in (0, 1)
    )
    extract_features(before)
    replace, calls = os.replace, []

    def failing_replace(source, target):
        if Path(target).parent == Path(folder):  # not the cached listing of the images
            calls.append(target)
            if len(calls) == failing:
                raise Fault
        return replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing_replace)
        with pytest.raises(Fault):
            extract_features(now)
    with pytest.raises(SfrikError, match="there are no features"):
        [load_features(Path(folder), name) for name in ("train", "val")]
    extract_features(now)
    assert read_json(place / "features" / "weights.json")["backbone_sha256"] == file_hash(place / "weights1.safetensors")
