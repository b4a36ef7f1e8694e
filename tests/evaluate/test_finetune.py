"""Fine-tuning, and the saved heads of evaluations: learning rates, files, inference."""

from __future__ import annotations

import argparse
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from toys import accuracy_of_bits, squares

from sfrik.datasets.loader import batches
from sfrik.errors import SfrikError
from sfrik.evaluate import class_scores, evaluate, load_head, save_head, training_images
from sfrik.evaluate.finetune import finetune
from sfrik.evaluate.linear_head import linear_heads
from sfrik.networks import build_backbone, save_weights
from sfrik.ops.random import derived_seed
from sfrik.pretrain.loop import pretrain
from sfrik.runs.correctness import unpack
from sfrik.runs.folder import Run
from sfrik.settings import EvaluateSettings, PretrainSettings
from sfrik.system.files import file_hash, read_json
from sfrik.views.base import probe_views

RECIPE = "smoke/random_weights"
CPU = {"device": "cpu", "precision": "fp32"}


def small_backbone(seed=0):
    torch.manual_seed(seed)
    return build_backbone("resnet8", "small", 1)


def settings_of(**overrides):
    given = {"dataset": "mnist5k", "size": 28, "weights": "finetune", "workers": 0, "epochs": 3, "batch_size": 16}
    return EvaluateSettings(**{**given, "lr_backbone": 0.02, "lr_head": 0.1, "weight_decay": 0.0, **overrides})


def tune(backbone, train, settings, test=None):
    return finetune(backbone, train, test or squares(16, 1), settings, torch.device("cpu"), progress=False)


# --- training


def test_fine_tuning_learns_an_easy_task_and_is_reproducible_from_its_seed():
    score, _ = tune(small_backbone(), squares(64, 0), settings_of(epochs=6))
    assert score["top1"] == 100
    heads = [tune(small_backbone(), squares(16, 0), settings_of(epochs=2, seed=seed))[1].weight for seed in (3, 3, 4)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_the_first_step_uses_the_rates_of_backbone_and_head():
    """One batch, one epoch: without momentum yet, SGD's first step is -rate * (gradient + weight decay * weight)."""
    train, settings = squares(16, 0), settings_of(epochs=1, lr_backbone=0.03, lr_head=0.7, weight_decay=0.01)
    before = small_backbone()
    (head_before,) = linear_heads(1, 128, 2, settings.seed)
    order = np.random.default_rng(derived_seed("evaluation order", settings.seed, 0)).permutation(16)
    ((views,), labels, _) = next(batches(train, order, probe_views(28, "mnist5k"), 16, (settings.seed, 0)))
    before.train()
    F.cross_entropy(head_before(before(views.contiguous(memory_format=torch.channels_last))), labels).backward()
    after = small_backbone()
    _, head = tune(after, train, settings)
    for old, new, rate in [(before, after, 0.03), (head_before, head, 0.7)]:
        moved = 0.0
        for (name, p), q in zip(old.named_parameters(), new.parameters(), strict=True):
            expected = p - rate * (p.grad + 0.01 * p)
            # a convolution's gradient may be summed in another order in float32
            torch.testing.assert_close(q, expected, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
            moved = max(moved, (q - p).abs().max().item())
        assert moved > 1e-4


def test_both_rates_follow_a_cosine_by_epoch(monkeypatch):
    seen = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: seen.append([g["lr"] for g in self.param_groups]) or step(self))
    tune(small_backbone(), squares(8, 0), settings_of(epochs=2, lr_backbone=0.02, lr_head=0.1, batch_size=4))
    assert np.allclose(seen, [[0.02, 0.1], [0.02, 0.1], [0.01, 0.05], [0.01, 0.05]])


def test_the_backbone_is_trained_in_train_mode_and_scored_in_evaluation_mode():
    modes = []

    class Recorder(nn.Module):
        num_features = 784

        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(784)

        def forward(self, x):
            modes.append((self.training, len(x)))
            return self.norm(x.flatten(1))

    backbone = Recorder()
    tune(backbone, squares(9, 0), settings_of(epochs=2, batch_size=4), squares(6, 1))
    # nine images in batches of four: BatchNorm would normalise the ninth to zero, so it is skipped
    assert modes == [(True, 4), (True, 4), (False, 6)] * 2
    assert not backbone.training
    assert backbone.norm.num_batches_tracked == 4


def test_a_batch_size_above_the_number_of_labelled_images_uses_all_of_them():
    seen = []
    backbone = small_backbone()
    backbone.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    tune(backbone, squares(6, 0), settings_of(epochs=1, batch_size=256), squares(4, 1))
    assert seen == [6, 4]


def test_one_labelled_image_is_too_few():
    with pytest.raises(SfrikError, match="at least 2 labelled images"):
        tune(small_backbone(), squares(1, 0), settings_of())


# --- the command


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune") / "run"
    pretrain(PretrainSettings.from_recipe(RECIPE, exp_dir=str(folder), **CPU), progress=False)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A fresh copy of the run, without scores."""
    return shutil.copytree(finished, tmp_path / "run")


def of(folder, **overrides):
    given = {"epochs": 1, "subset": 4, "val_dataset": "train", "val_subset": 10, **CPU}
    return EvaluateSettings.from_recipe(RECIPE, exp_dir=str(folder), **{**given, **overrides})


@pytest.mark.parametrize(
    ("overrides", "name", "images"),
    [
        ({}, "linear", 40),
        ({"head_norm": "batchnorm"}, "linear", 40),
        ({"train_percent": 10, "weights": "freeze", "subset": 30}, "linear10", 30),
        ({"train_percent": 10, "weights": "finetune", "subset": 30}, "semi10", 30),
        ({"train_percent": 1, "weights": "finetune"}, "semi1", 10),
        ({"weights": "finetune"}, "finetune", 40),
    ],
)
def test_each_protocol_has_its_score_and_head_and_inference_reproduces_the_score(run, overrides, name, images):
    score = evaluate(of(run, **overrides), progress=False)
    assert score["train_images"] == images
    assert read_json(run / f"{name}_tune.json") == score
    saved = load_head(run / f"head_{name}_tune.safetensors")
    assert saved.about == {
        "protocol": name,
        "arch": "resnet8",
        "num_classes": 10,
        "settings": score["settings_hash"],
        "backbone_sha256": file_hash(run / "backbone.safetensors"),
    }
    assert (saved.backbone is not None) == (overrides.get("weights") == "finetune")
    again = evaluate(of(run, only_inference=True, **overrides), progress=False)
    assert [again[key] for key in ("top1", "top5", "correct", "images")] == [score["top1"], score["top5"], score["correct"], 100]
    assert accuracy_of_bits(score) == score["top1"]
    scores, labels = class_scores(of(run, **overrides))
    assert unpack(score["correct"], 100).tolist() == (scores.argmax(dim=1) == labels).tolist()
    assert len(score["train_loss"]) == 1
    assert read_json(run / f"{name}_inference_tune.json") == again
    assert again["backbone_sha256"] == score["backbone_sha256"]


def test_fine_tuning_does_not_change_the_pretrained_weights(run):
    before = file_hash(run / "backbone.safetensors")
    evaluate(of(run, weights="finetune"), progress=False)
    assert file_hash(run / "backbone.safetensors") == before
    saved = load_head(run / "head_finetune_tune.safetensors")
    pretrained = load_state(run)
    assert saved.backbone.keys() == pretrained.keys()
    tuned = saved.build_backbone(of(run), 1)
    assert not torch.equal(tuned.conv1.weight, pretrained["conv1.weight"])


def test_inference_on_the_test_images_uses_the_head_of_the_tuning_split(run):
    evaluate(of(run), progress=False)
    save_head(run / "head_linear.safetensors", nn.Linear(128, 10))
    score = evaluate(of(run, only_inference=True, val_dataset="val"), progress=False)
    assert score["head"] == "head_linear_tune.safetensors"
    assert score["head_sha256"] == file_hash(run / "head_linear_tune.safetensors")
    assert (score["protocol"], score["images"]) == ("linear_inference", 1000)
    (run / "head_linear_tune.safetensors").unlink()
    (run / "linear_inference.json").unlink()
    assert evaluate(of(run, only_inference=True, val_dataset="val"), progress=False)["head"] == "head_linear.safetensors"


# --- heads from other code


def checkpoint(form, backbone, head):
    """A checkpoint in the format of other code."""
    whole = {f"0.{key}": value for key, value in backbone.state_dict().items()}
    whole |= {f"1.{key}": value for key, value in head.state_dict().items()}
    beside = {**backbone.state_dict(), **{f"fc.{key}": value for key, value in head.state_dict().items()}}
    return {
        "the authors'": {
            "epoch": 100,
            "best_acc": argparse.Namespace(top1=70.3, top5=89.0),
            "model": {f"module.{key}": value for key, value in whole.items()},
            "optimizer": {"state": {}, "param_groups": [{"lr": 0.4}]},
            "scheduler": {"T_max": 100},
        },
        "one process": {"epoch": 100, "model": whole},
        "torchvision": beside,
        "torchvision, distributed": {"state_dict": {f"module.{key}": value for key, value in beside.items()}},
        "parts": {"epoch": 1, "backbone": backbone.state_dict(), "head": head.state_dict()},
        "head only": {"fc.weight": head.weight.detach(), "fc.bias": head.bias.detach()},
    }[form]


@pytest.mark.parametrize("form", ["the authors'", "one process", "torchvision", "torchvision, distributed", "parts", "head only"])
def test_a_checkpoint_of_other_code_is_scored_with_its_backbone(run, tmp_path, form):
    backbone = build_backbone("resnet8", "patch", 1)
    torch.manual_seed(3)
    if form == "head only":  # it is combined with the run's backbone
        backbone.load_state_dict(load_state(run))
    head = nn.Linear(128, 10)
    torch.save(checkpoint(form, backbone, head), tmp_path / "checkpoint.pth")
    score = evaluate(of(run, only_inference=True, ckp_path=str(tmp_path / "checkpoint.pth")), progress=False)
    saved = load_head(tmp_path / "checkpoint.pth")
    assert torch.equal(saved.head.weight, head.weight)
    assert torch.equal(saved.head.bias, head.bias)
    evaluated = run / "backbone.safetensors" if form == "head only" else tmp_path / "checkpoint.pth"
    assert score["backbone_sha256"] == file_hash(evaluated)
    if form != "head only":
        state = saved.build_backbone(of(run), 1).state_dict()
        assert all(torch.equal(state[key], value) for key, value in backbone.state_dict().items())


def load_state(run):
    from safetensors.torch import load_file

    return load_file(run / "backbone.safetensors")


def test_a_head_of_other_dimensions_is_a_one_line_error(run, tmp_path):
    path = tmp_path / "head.safetensors"
    for shape, message in [((128, 7), "128 features and 7 classes"), ((64, 10), "64 features and 10 classes")]:
        save_head(path, nn.Linear(*shape))
        with pytest.raises(SfrikError, match=message) as error:
            evaluate(of(run, only_inference=True, ckp_path=str(path)), progress=False)
        assert "\n" not in str(error.value)
        assert "this evaluation has 128 features and 10 classes" in str(error.value)
    save_head(path, nn.Linear(128, 10), nn.Linear(3, 3))
    with pytest.raises(SfrikError, match="does not hold the backbone of a resnet8"):
        evaluate(of(run, only_inference=True, ckp_path=str(path)), progress=False)
    assert not list(run.glob("*inference*"))


def test_a_head_of_other_pretrained_weights_is_rejected(run):
    evaluate(of(run), progress=False)
    evaluate(of(run, weights="finetune"), progress=False)
    torch.manual_seed(9)
    digest = save_weights(build_backbone("resnet8", "patch", 1), run / "backbone.safetensors")
    with pytest.raises(SfrikError, match="is not the file that was trained"):
        evaluate(of(run, only_inference=True), progress=False)
    Run(run).record(weights={"backbone.safetensors": digest})  # as after a separate training
    for weights in ("freeze", "finetune"):
        with pytest.raises(SfrikError, match="trained on other weights"):
            evaluate(of(run, weights=weights, only_inference=True), progress=False)


def test_a_file_without_a_head_is_named(run, tmp_path):
    torch.save({"weight": torch.ones(3)}, tmp_path / "none.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"abc")
    (tmp_path / "broken.pth").write_bytes(b"abc")
    torch.save({"model": print}, tmp_path / "code.pth")
    for name, message in [
        ("none.pth", "has no linear head"),
        ("broken.safetensors", "not a complete safetensors file"),
        ("broken.pth", "not a complete PyTorch weights file"),
        ("code.pth", "holds Python objects besides tensors"),
        ("missing.pth", "there is no head"),
    ]:
        with pytest.raises(SfrikError, match=message) as error:
            load_head(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(SfrikError, match="there is no head"):
        evaluate(of(run, only_inference=True), progress=False)


def test_a_head_below_wrappers_is_found_and_one_of_other_numbers_is_refused(tmp_path):
    head = nn.Linear(4, 2)
    state = {f"module._orig_mod.fc.{key}": value for key, value in head.state_dict().items()}
    save_file(state, tmp_path / "head.pth")
    assert torch.equal(load_head(tmp_path / "head.pth").head.weight, head.weight)
    for change, message in [
        (lambda value: value.to_sparse(), "fc.weight is sparse"),
        (lambda value: value.long(), "fc.weight is int64"),
        (lambda value: value.double() * 1e300, "outside the range of float32"),
    ]:
        torch.save({"fc.weight": change(head.weight.detach()), "fc.bias": head.bias.detach()}, tmp_path / "odd.pth")
        with pytest.raises(SfrikError, match=message):
            load_head(tmp_path / "odd.pth")


def test_a_label_list_refers_to_the_whole_training_split_and_a_fraction_to_the_subset(tmp_path):
    for label in ("a", "b"):
        folder = tmp_path / "train" / label
        folder.mkdir(parents=True)
        for k in range(5):
            Image.new("RGB", (8, 8), (40 * k, 0, 0)).save(folder / f"{label}_{k}.JPEG")
    (tmp_path / "list.txt").write_text("a_4.JPEG\nb_1.JPEG\n", encoding="utf-8")
    given = {"dataset": "image_folder", "data_dir": str(tmp_path), "subset": 2, "train_percent": 10}
    listed = training_images(EvaluateSettings.parse({**given, "label_list": str(tmp_path / "list.txt")}))
    assert [listed.name(i) for i in range(len(listed))] == ["a/a_4.JPEG", "b/b_1.JPEG"], "a_4 is beyond the subset"
    shared = training_images(EvaluateSettings.parse(given))
    assert [shared.name(i) for i in range(len(shared))] == ["a/a_0.JPEG", "b/b_0.JPEG"]
    whole = training_images(EvaluateSettings.parse({**given, "train_percent": 100}))
    assert len(whole) == 4
