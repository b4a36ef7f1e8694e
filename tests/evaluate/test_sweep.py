"""Sweeps of rates: each head equals that of a single rate, chosen on the tuning split, scored once on the test split."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from toys import accuracy_of_bits

from sfrik.datasets.images import Images
from sfrik.errors import SfrikError
from sfrik.evaluate import evaluate, extract_features, linear_probe, linear_sweep, logistic, logistic_regression
from sfrik.evaluate.head_norm import build_head_norm, fold
from sfrik.evaluate.linear_head import choose_rate, linear_heads, score_features, top_accuracies
from sfrik.evaluate.logistic import logistic_sgd, logistic_sweep
from sfrik.networks import build_backbone, build_pixels, save_weights
from sfrik.ops.random import derived_seed
from sfrik.pretrain.loop import pretrain
from sfrik.settings import EvaluateSettings, FeatureSettings, LogisticSettings, PretrainSettings

RECIPE = "smoke/random_weights"
CPU = {"device": "cpu", "precision": "fp32"}
RATES = (1e-5, 1e-3, 0.1)


def faint_squares(n, seed):
    """Three classes, told apart by the position of a faint square: hard enough that the rates differ."""
    labels = np.arange(n) % 3
    pixels = np.random.default_rng(seed).integers(0, 120, (n, 1, 28, 28))
    for label in range(3):
        pixels[labels == label, :, 10:16, 4 + 7 * label : 10 + 7 * label] += 25
    return Images(labels.astype(np.int64), 3, str, tensor=torch.from_numpy(pixels.astype(np.uint8)))


def sweep(test, rates=RATES, backbone=None, **given):
    settings = EvaluateSettings(dataset="mnist5k", size=28, epochs=3, batch_size=32, workers=0, lr_sweep=rates, **given)
    backbone = backbone or build_pixels(28, 1)
    train, tune = faint_squares(96, 0), faint_squares(60, 1)
    return linear_sweep(backbone, train, tune, test, settings, torch.device("cpu"), progress=False)


def single_rate(rate, test, **given):
    settings = EvaluateSettings(dataset="mnist5k", size=28, epochs=3, batch_size=32, workers=0, lr_head=rate, **given)
    return linear_probe(build_pixels(28, 1), faint_squares(96, 0), test, settings, torch.device("cpu"), progress=False)


@pytest.mark.parametrize("norm", ["none", "batchnorm"])
def test_the_head_of_a_rate_equals_that_of_a_probe_with_that_rate(norm):
    score, head = sweep(faint_squares(90, 2), head_norm=norm)
    assert score["sweep"] == {str(rate): single_rate(rate, faint_squares(60, 1), head_norm=norm)[0]["top1"] for rate in RATES}
    assert len(set(score["sweep"].values())) > 1, "the rates must differ for the comparison to mean anything"
    single, single_head = single_rate(score["lr_head"], faint_squares(90, 2), head_norm=norm)
    for key in ("top1", "top5", "correct", "train_loss"):
        assert score[key] == single[key]
    assert accuracy_of_bits({"images": 90, **score}) == score["top1"]
    assert len(score["train_loss"]) == 3
    assert torch.equal(head.weight, single_head.weight)
    assert torch.equal(head.bias, single_head.bias)


def test_the_tuning_split_chooses_the_rate_and_the_test_images_do_not():
    tune_only, _ = sweep(None)
    best = max(RATES, key=lambda rate: tune_only["sweep"][str(rate)])
    assert tune_only["lr_head"] == best
    assert tune_only["top1"] == tune_only["tune_top1"] == tune_only["sweep"][str(best)]
    right = faint_squares(90, 2)
    wrong = Images((right.targets + 1) % 3, 3, str, tensor=right.tensor)
    for test in (right, wrong):
        score, _ = sweep(test)
        assert (score["lr_head"], score["sweep"]) == (best, tune_only["sweep"])


def test_the_backbone_sees_each_batch_once_for_all_rates_and_the_test_images_once():
    counts = []
    for rates in (RATES[:1], RATES):
        backbone = build_pixels(28, 1)
        seen = []
        backbone.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(len(inputs[0])))
        sweep(faint_squares(90, 2), rates, backbone)
        counts.append(sum(seen))
    assert counts == [3 * 96 + 60 + 90] * 2


def test_the_smallest_rate_wins_a_tie():
    index, choice = choose_rate([0.4, 0.1, 0.2], [(80.0, 90.0), (80.0, 95.0), (70.0, 99.0)])
    assert index == 1
    assert choice == {"lr_head": 0.1, "tune_top1": 80.0, "sweep": {"0.4": 80.0, "0.1": 80.0, "0.2": 70.0}}


# --- on features


def points(n, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    return torch.eye(3, 6)[labels] + torch.randn(n, 6, generator=generator), labels


@pytest.mark.parametrize("norm", ["none", "batchnorm"])
def test_logistic_regression_with_several_rates_equals_that_of_each_rate(norm):
    train, tune, test = points(90, 0), points(60, 1), points(120, 2)
    rates, how = (1e-4, 0.1, 10.0), {"epochs": 3, "batch_size": 16, "seed": 5, "head_norm": norm}
    score = logistic_sweep(train, tune, test, 3, rates, **how)
    each = {rate: logistic_sgd(train, tune, 3, lr_head=rate, **how)["top1"] for rate in rates}
    assert score["sweep"] == {str(rate): top1 for rate, top1 in each.items()}
    assert len(set(each.values())) > 1
    assert score["lr_head"] == max(rates, key=lambda rate: (each[rate], -rate))
    assert score["tune_top1"] == each[score["lr_head"]]
    single = logistic_sgd(train, test, 3, lr_head=score["lr_head"], **how)
    assert [score[key] for key in ("top1", "top5", "correct")] == [single[key] for key in ("top1", "top5", "correct")]
    assert accuracy_of_bits({"images": 120, **score}) == score["top1"]
    assert logistic_sweep(train, tune, None, 3, rates, **how)["top1"] == score["tune_top1"]


def test_a_rate_that_diverges_does_not_affect_the_others():
    train, tune = points(90, 0), points(60, 1)
    score = logistic_sweep(train, tune, None, 3, (0.1, 1e30), epochs=3, batch_size=16)
    assert score["lr_head"] == 0.1
    assert score["top1"] == logistic_sweep(train, tune, None, 3, (0.1,), epochs=3, batch_size=16)["top1"]


def test_features_that_exceed_device_memory_stay_on_the_host_and_are_moved_by_batch(monkeypatch):
    """On the device "meta", whose tensors have only shapes: this tests where a tensor is, not its values."""
    features, labels = points(50, 0)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    for available, storage in [(features.nbytes, "meta"), (features.nbytes - 1, "cpu")]:
        monkeypatch.setattr(logistic, "_available_bytes", lambda device, available=available: available)
        rows = logistic._Rows(features, labels, torch.device("meta"))
        assert rows.features.device.type == storage
        ((batch, targets),) = rows.batches(torch.tensor([4, 2, 7]), 5)
        assert (batch.device.type, batch.shape, targets.device.type) == ("meta", (3, 6), "meta")


@pytest.mark.parametrize("kind", ["none", "batchnorm"])
@pytest.mark.parametrize("rates", [(0.3,), (0.01, 0.3, 2.0)])
def test_heads_trained_by_one_product_equal_those_of_torch_sgd(rates, kind):
    """In float64, three epochs with a smaller last batch, momentum and weight decay."""
    (features, labels), classes, seed = points(50, 0), 3, 5
    features = features.double()
    norm, plain_norm = (build_head_norm(kind, 6, dtype=torch.float64) for _ in range(2))
    heads = [head.double() for head in linear_heads(len(rates), 6, classes, seed)]
    for _ in logistic._epochs((features, labels), heads, rates, 3, 16, 0.01, seed, norm):
        pass
    for head, peak in zip(heads, rates, strict=True):
        plain_norm.reset_running_stats() if kind == "batchnorm" else None
        (plain,) = linear_heads(1, 6, classes, seed)
        optimizer = torch.optim.SGD(plain.double().parameters(), momentum=0.9, weight_decay=0.01)
        for epoch in range(3):
            optimizer.param_groups[0]["lr"] = peak * 0.5 * (1 + np.cos(np.pi * epoch / 3))
            order = np.random.default_rng(derived_seed("evaluation order", seed, epoch)).permutation(50)
            for chosen in torch.from_numpy(order).split(16):
                optimizer.zero_grad()
                nn.functional.cross_entropy(plain(plain_norm(features[chosen])), labels[chosen]).backward()
                optimizer.step()
        assert (plain.weight - linear_heads(1, 6, classes, seed)[0].weight).abs().max() > 1e-3
        torch.testing.assert_close(head.weight, plain.weight, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(head.bias, plain.bias, rtol=1e-10, atol=1e-12)
        if kind == "batchnorm":
            torch.testing.assert_close(fold(head, norm)(features), plain(plain_norm.eval()(features)), rtol=1e-9, atol=1e-9)
            plain_norm.train()


@pytest.mark.parametrize("block", [1, 7, 50, 64])
def test_features_are_scored_in_blocks_with_the_same_result(block, monkeypatch):
    features, labels = points(50, 0)
    torch.manual_seed(0)
    head = nn.Linear(6, 7)
    expected = top_accuracies(head(features), labels)
    monkeypatch.setattr("sfrik.evaluate.linear_head.ROWS", block)
    assert score_features(head, features, labels) == expected
    assert 0 < expected[0] < expected[1] < 100


# --- the commands


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "run"
    pretrain(PretrainSettings.from_recipe(RECIPE, exp_dir=str(folder), **CPU), progress=False)
    return folder


def test_evaluate_records_the_choice_and_inference_scores_the_tuned_head_on_the_test_images(run):
    given = {"exp_dir": str(run), "epochs": 2, "lr_sweep": (1e-3, 0.4), **CPU}
    tuned = evaluate(EvaluateSettings.from_recipe(RECIPE, val_dataset="train", **given), progress=False)
    assert tuned["protocol"] == "linear_tune"
    assert (tuned["images"], tuned["top1"]) == (500, tuned["tune_top1"])
    assert tuned["tune_top1"] == tuned["sweep"][str(tuned["lr_head"])] == max(tuned["sweep"].values())
    score = evaluate(EvaluateSettings.from_recipe(RECIPE, **given), progress=False)
    assert (score["images"], score["lr_head"], score["sweep"]) == (1000, tuned["lr_head"], tuned["sweep"])
    (run / "head_linear.safetensors").unlink()
    once = evaluate(EvaluateSettings.from_recipe(RECIPE, only_inference=True, **given), progress=False)
    assert (once["head"], once["top1"]) == ("head_linear_tune.safetensors", score["top1"])


def test_logistic_regression_records_the_choice(run):
    given = {"exp_dir": str(run), "epochs": 2, "solver": "sgd", "lr_sweep": (1e-4, 0.1), **CPU}
    score = logistic_regression(LogisticSettings.from_recipe(RECIPE, **given))
    tuned = logistic_regression(LogisticSettings.from_recipe(RECIPE, val_dataset="train", **given))
    assert (score["images"], tuned["images"]) == (1000, 500)
    assert tuned["top1"] == tuned["tune_top1"]
    assert score["sweep"].keys() == {"0.0001", "0.1"}
    # both extract the tuning split in batches of one size, so the numbers are equal
    assert (score["lr_head"], score["sweep"]) == (tuned["lr_head"], tuned["sweep"])


def test_a_sweep_rejects_an_extraction_folder_without_tuning_features(run, tmp_path):
    extract_features(FeatureSettings.from_recipe(RECIPE, exp_dir=str(run), extraction_dir=str(tmp_path / "features"), **CPU))
    given = {"exp_dir": str(tmp_path), "extraction_dir": str(tmp_path / "features"), "solver": "sgd", **CPU}
    with pytest.raises(SfrikError, match="lr_sweep chooses on the tuning split"):
        logistic_regression(LogisticSettings.from_recipe(RECIPE, lr_sweep=(0.1, 0.2), **given))


def test_a_missing_tuning_split_is_an_error_that_names_the_settings(tmp_path):
    for split in ("train", "val"):
        for label in "ab":
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (16, 16), (40 * i, 0, 0)).save(tmp_path / split / label / f"{i}.png")
    save_weights(build_backbone("resnet8", "small", 3), tmp_path / "backbone.safetensors")
    given = {"dataset": "image_folder", "data_dir": str(tmp_path), "size": 16, "arch": "resnet8", "stem": "small", "workers": 0}
    settings = EvaluateSettings(exp_dir=str(tmp_path), lr_sweep=(0.1,), **given, **CPU)
    with pytest.raises(SfrikError, match=r"needs subset .* and val_subset"):
        evaluate(settings, progress=False)
