"""Evaluations: weighted kNN, feature extraction, probes on linearly separable data, feature files."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from toys import accuracy_of_bits, squares

from sfrik.cli import main
from sfrik.datasets.images import load_images
from sfrik.errors import SfrikError
from sfrik.evaluate import (
    evaluate,
    extract,
    extract_features,
    features_here,
    knn_accuracy,
    knn_eval,
    linear_probe,
    load_features,
    logistic_regression,
    weighted_knn,
)
from sfrik.evaluate import knn as knn_module
from sfrik.evaluate.knn import scores_by_k
from sfrik.evaluate.linear_head import top_accuracies
from sfrik.evaluate.logistic import logistic_lbfgs, logistic_sgd
from sfrik.networks import build_backbone, build_pixels, save_weights
from sfrik.pretrain.loop import pretrain
from sfrik.runs.correctness import unpack
from sfrik.runs.folder import Run
from sfrik.settings import EvaluateSettings, FeatureSettings, KnnSettings, LogisticSettings, PretrainSettings
from sfrik.system.files import file_hash, write_json
from sfrik.views.base import resize_for_test

RECIPE = "smoke/random_weights"
CPU = {"device": "cpu", "precision": "fp32"}


def toy(n, seed, classes=3, dim=6, noise=0.3):
    """Points around one corner of the simplex per class, about 10 standard deviations of the noise apart."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    points = 3 * torch.eye(classes, dim)[labels] + noise * torch.randn(n, dim, generator=generator)
    return points, labels


# --- weighted kNN


def votes_by_hand(train, labels, test, k, temperature, classes):
    """DINO's weighted vote as a plain loop over test images and neighbours, in Python floats."""
    rows = []
    for query in test.tolist():
        similar = []
        for point, label in zip(train.tolist(), labels.tolist(), strict=True):
            product = sum(a * b for a, b in zip(query, point, strict=True))
            similar.append((product / math.hypot(*query) / math.hypot(*point), label))
        votes = [0.0] * classes
        for similarity, label in sorted(similar, reverse=True)[:k]:
            votes[label] += math.exp(similarity / temperature)
        rows.append([vote / sum(votes) for vote in votes])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.07), (20, 1.0), (1000, 0.5)])
def test_weighted_knn_equals_a_plain_loop(k, temperature):
    generator = torch.Generator().manual_seed(k)
    train, test = torch.randn(40, 5, generator=generator), torch.randn(12, 5, generator=generator)
    labels = torch.randint(0, 4, (40,), generator=generator)
    scores = weighted_knn(train, labels, test, k, temperature, num_classes=4).double()
    shares = scores / scores.sum(dim=1, keepdim=True)
    # similarities are in float32: an error of 1e-7, which 1 / temperature amplifies to at most 2e-6 of a vote
    torch.testing.assert_close(shares, votes_by_hand(train, labels, test, k, temperature, 4), rtol=1e-4, atol=1e-5)


def test_k_larger_than_the_training_set_uses_all_of_it():
    (train, labels), (test, _) = toy(9, 0), toy(4, 1)
    assert torch.equal(weighted_knn(train, labels, test, 9), weighted_knn(train, labels, test, 200))


@pytest.mark.parametrize("k", [3, 20, 50])
@pytest.mark.parametrize("block", [1, 7, 16, 40])
def test_blocks_of_training_images_give_the_scores_of_one_block(block, k, monkeypatch):
    generator = torch.Generator().manual_seed(block)
    train, test = torch.randn(40, 5, generator=generator), torch.randn(12, 5, generator=generator)
    labels = torch.randint(0, 4, (40,), generator=generator)
    whole = weighted_knn(train, labels, test, k)
    monkeypatch.setattr("sfrik.evaluate.knn.BANK", block)
    monkeypatch.setattr("sfrik.evaluate.knn.QUERIES", 5)
    torch.testing.assert_close(weighted_knn(train, labels, test, k), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("bank", "tile", "groups"), [(64, 32, 32), (100, 64, 32), (37, 16, 4), (128, 50, 8)])
@pytest.mark.parametrize("k", [1, 20])
@pytest.mark.parametrize("order", ["random", "nearest last", "nearest first"])
def test_tiles_find_the_neighbours_of_the_whole_similarity_matrix(bank, tile, groups, k, order, monkeypatch):
    """Few, all or none of the rows of a block are nearer than the neighbours found before."""
    generator = torch.Generator().manual_seed(k)
    train, test = torch.randn(500, 8, generator=generator), torch.randn(21, 8, generator=generator)
    if order != "random":
        train = train[(train @ test.sum(dim=0)).argsort(descending=order == "nearest first")]
    whole = torch.nn.functional.normalize(test, dim=1) @ torch.nn.functional.normalize(train, dim=1).T
    expected, where = whole.topk(k, dim=1)
    for name, value in {"BANK": bank, "TILE": tile, "GROUPS": groups, "QUERIES": 8}.items():
        monkeypatch.setattr(knn_module, name, value)
    found, places = knn_module._nearest(train, test, k)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(places, where), "no two similarities of random features are equal"
    assert not torch.equal(places.sort(dim=1).values, torch.arange(k).expand_as(places))


def test_several_k_read_the_training_images_once_and_give_the_scores_of_each_k(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(40, 5, generator=generator), torch.randn(12, 5, generator=generator)
    labels = torch.randint(0, 4, (40,), generator=generator)
    expected = {k: weighted_knn(train, labels, test, k) for k in (3, 1, 50)}
    monkeypatch.setattr("sfrik.evaluate.knn.BANK", 16)
    reads = []
    nearest = knn_module._nearest
    monkeypatch.setattr(knn_module, "_nearest", lambda *arguments: reads.append(arguments[2]) or nearest(*arguments))
    for k, scores in scores_by_k(train, labels, test, (3, 1, 50)):
        torch.testing.assert_close(scores, expected[k], rtol=1e-5, atol=1e-6)
    assert reads == [40]


def test_scores_do_not_depend_on_the_length_of_a_feature():
    (train, labels), (test, _) = toy(30, 0), toy(8, 1)
    scaled = weighted_knn(train * torch.arange(1.0, 31.0)[:, None], labels, test * 50, 5)
    # normalising a scaled row rounds in float32, which 1 / 0.07 amplifies
    torch.testing.assert_close(scaled, weighted_knn(train, labels, test, 5), rtol=1e-4, atol=1e-5)


def test_many_test_images_are_scored_in_blocks_with_the_same_result():
    (train, labels), (test, _) = toy(30, 0), toy(2500, 1)
    scores = weighted_knn(train, labels, test, 5)
    assert scores.shape == (2500, 3)
    # the order of summation can depend on the size of a matrix product
    torch.testing.assert_close(scores[2048:], weighted_knn(train, labels, test[2048:], 5), rtol=1e-4, atol=1e-5)


def test_one_test_image_and_a_small_temperature_give_finite_scores():
    (train, labels), (test, _) = toy(30, 0), toy(1, 1)
    scores = weighted_knn(train, labels, test, 5, temperature=1e-4)
    assert torch.isfinite(scores).all()
    assert scores.argmax() == 0


def test_classes_without_a_neighbour_score_zero():
    (train, labels), (test, _) = toy(30, 0), toy(8, 1)
    scores = weighted_knn(train, labels, test, 5, num_classes=7)
    assert scores.shape == (8, 7)
    assert (scores[:, 3:] == 0).all()


@pytest.mark.parametrize(
    ("labels", "k", "temperature", "message"),
    [
        (2, 1, 0.07, "3 training features but 2 labels"),
        (3, 0, 0.07, "k must be >= 1"),
        (3, 1, 0.0, "temperature above 0"),
        (3, 1, -1.0, "temperature above 0"),
    ],
)
def test_weighted_knn_rejects_invalid_arguments(labels, k, temperature, message):
    with pytest.raises(ValueError, match=message):
        weighted_knn(torch.ones(3, 2), torch.ones(labels).long(), torch.ones(1, 2), k, temperature)


def test_knn_accuracy_is_in_percent():
    (train, labels), (test, test_labels) = toy(60, 0), toy(40, 1)
    assert knn_accuracy(train, labels, test, test_labels, 5, 3) == 100
    wrong = test_labels.clone()
    wrong[:10] = (wrong[:10] + 1) % 3
    assert knn_accuracy(train, labels, test, wrong, 5, 3) == 75


# --- accuracies


def test_top_accuracies_count_the_first_and_the_first_five():
    scores = torch.tensor([[6.0, 5, 4, 3, 2, 1]]).repeat(4, 1)
    assert top_accuracies(scores, torch.tensor([0, 1, 4, 5])) == (25.0, 75.0)
    assert top_accuracies(scores, torch.tensor([0, 0, 0, 0])) == (100.0, 100.0)
    assert top_accuracies(scores, torch.tensor([5, 5, 5, 5])) == (0.0, 0.0)


def test_top_5_counts_all_classes_where_there_are_fewer_than_five():
    scores = torch.tensor([[3.0, 2, 1], [3.0, 2, 1]])
    assert top_accuracies(scores, torch.tensor([0, 2])) == (50.0, 100.0)


# --- probes on linearly separable data


def test_lbfgs_separates_linearly_separable_classes():
    score = logistic_lbfgs(toy(90, 0), toy(30, 1), toy(60, 2))
    assert (score["top1"], score["tune_top1"], score["C"]) == (100.0, 100.0, 0.01), "the smallest C wins a tie"
    assert score["sweep"] == {"0.01": 100.0, "0.1": 100.0, "1.0": 100.0, "10.0": 100.0}


def test_lbfgs_chooses_its_penalty_on_the_tuning_split_and_not_on_the_test_split():
    train, tune = toy(90, 0, noise=1.5), toy(60, 1, noise=1.5)
    one = logistic_lbfgs(train, tune, toy(60, 2, noise=1.5), (1e-4, 1.0))
    swapped = logistic_lbfgs(train, tune, (toy(60, 2)[0], (toy(60, 2)[1] + 1) % 3), (1e-4, 1.0))
    assert (one["C"], one["tune_top1"]) == (swapped["C"], swapped["tune_top1"])
    assert one["top1"] > swapped["top1"]
    assert one["sweep"] == {str(C): logistic_lbfgs(train, tune, tune, (C,))["top1"] for C in (1e-4, 1.0)}


def test_sgd_separates_linearly_separable_classes():
    score = logistic_sgd(toy(90, 0), toy(60, 2), num_classes=3, epochs=10, batch_size=32)
    assert score["top1"] == score["best_top1"] == 100
    assert score["top5"] == 100


def test_sgd_is_reproducible_from_its_seed():
    train, test = toy(90, 0, noise=2.0), toy(300, 2, noise=2.0)
    one, again = (logistic_sgd(train, test, 3, epochs=2, batch_size=16, seed=5) for _ in range(2))
    assert one == again
    assert 100 / 3 < one["top1"] < 100, "noise of this size leaves some errors but does not hide the label"


def test_a_linear_probe_separates_linearly_separable_classes_and_does_not_change_the_backbone():
    settings = EvaluateSettings(dataset="mnist5k", size=28, epochs=10, batch_size=32, lr_head=0.01, workers=0)
    backbone = nn.Sequential(build_pixels(28, 1), nn.BatchNorm1d(784)).train()
    backbone.num_features = 784
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    score, _ = linear_probe(backbone, squares(128, 0), squares(64, 1), settings, torch.device("cpu"), progress=False)
    assert score["top1"] == score["best_top1"] == 100
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())
    again, _ = linear_probe(backbone, squares(128, 0), squares(64, 1), settings, torch.device("cpu"), progress=False)
    assert again == score


# --- features


def test_features_are_in_the_order_of_the_data_set_for_any_batch_size():
    images = load_images("mnist5k", "test")
    views = resize_for_test(28, "mnist5k")
    backbone = build_pixels(28, 1)
    features, labels = extract(backbone, images, views, batch_size=300)
    assert features.shape == (1000, 784)
    assert features.dtype == torch.float32
    assert labels.tolist() == images.targets.tolist()
    # the pixels are the features: (v / 255 - 0.131) / 0.308
    expected = (images.tensor.flatten(1).float() / 255 - 0.131) / 0.308
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)
    smaller, _ = extract(backbone, images, views, batch_size=7)
    assert torch.equal(smaller, features)


@pytest.mark.parametrize("training", [True, False])
def test_extraction_is_in_evaluation_mode_and_restores_the_mode(training):
    backbone = build_backbone("resnet8", "small", 1).train(training)
    before = backbone.bn1.running_mean.clone()
    extract(backbone, squares(8, 0), resize_for_test(28, "mnist5k"))
    assert backbone.training == training
    assert torch.equal(backbone.bn1.running_mean, before)


# --- the commands, on an untrained backbone


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of an untrained backbone, and its features in a separate folder."""
    folder = tmp_path_factory.mktemp("evaluate")
    pretrain(PretrainSettings.from_recipe(RECIPE, exp_dir=str(folder / "run"), **CPU), progress=False)
    extract_features(of(FeatureSettings, folder / "run", extraction_dir=str(folder / "features")))
    return folder / "run"


def of(kind, folder, **overrides):
    return kind.from_recipe(RECIPE, exp_dir=str(folder), **{**CPU, **overrides})


def test_missing_features_of_a_finished_score_are_extracted_again_on_request(run):
    settings = of(KnnSettings, run)
    score = knn_eval(settings)
    before = load_features(features_here(settings), "val")[0]
    (run / "features" / "val_features.npy").unlink()
    assert knn_eval(settings) == score  # finished: nothing was extracted
    assert torch.equal(load_features(features_here(settings), "val")[0], before)


def test_features_of_another_split_are_not_reused(run):
    tune = of(KnnSettings, run, val_dataset="train")
    sizes = [len(load_features(features_here(settings), "val")[0]) for settings in (of(KnnSettings, run), tune)]
    assert sizes == [1000, 500]


def test_the_features_of_a_run_are_of_its_training_and_test_splits(run):
    folder = run.parent / "features"
    (train, train_labels), (test, test_labels) = load_features(folder, "train"), load_features(folder, "val")
    assert train.shape == (300, 128)
    assert test.shape == (1000, 128)
    assert train_labels.tolist() == load_images("mnist5k", "train", subset=30).targets.tolist()
    assert test_labels.tolist() == load_images("mnist5k", "test").targets.tolist()
    assert not list(folder.glob("*tmp*"))


def test_the_commands_score_the_features_of_an_extraction_folder(run, tmp_path, capsys):
    features = run.parent / "features"
    flags = ["--recipe", RECIPE, "--extraction-dir", str(features), "--device", "cpu"]
    assert main(["knn-eval", *flags, "--exp-dir", str(tmp_path / "a"), "--nb-knn", "5", "7"]) == 0
    assert main(["logistic-regression", *flags, "--exp-dir", str(tmp_path / "a"), "--solver", "sgd", "--epochs", "2"]) == 0
    capsys.readouterr()
    (train, labels), (test, test_labels) = load_features(features, "train"), load_features(features, "val")
    knn = Run(tmp_path / "a").folder / "knn.json"
    assert knn.is_file()
    score = knn_eval(of(KnnSettings, tmp_path / "b", extraction_dir=str(features), nb_knn=(5, 7)))
    for k in (5, 7):
        assert score["top1_at"][str(k)] == knn_accuracy(train, labels, test, test_labels, k, 10)
        predicted = weighted_knn(train, labels, test, k).argmax(dim=1)
        assert unpack(score["correct_at"][str(k)], 1000).tolist() == (predicted == test_labels).tolist()
    logistic = logistic_regression(of(LogisticSettings, tmp_path / "b", extraction_dir=str(features), solver="sgd", epochs=2))
    assert {name: logistic[name] for name in ("top1", "top5")}.items() <= logistic_sgd(
        (train, labels), (test, test_labels), 10, epochs=2, seed=0
    ).items()
    assert (logistic["images"], logistic["train_images"]) == (1000, 300)


def test_a_finished_score_is_returned_at_once_but_measured_again_for_other_settings(run, monkeypatch):
    first = knn_eval(of(KnnSettings, run))
    with monkeypatch.context() as patch:
        patch.setattr("sfrik.evaluate.protocols.scores_by_k", lambda *arguments: pytest.fail("measured again"))
        assert knn_eval(of(KnnSettings, run)) == first
    assert knn_eval(of(KnnSettings, run, nb_knn=(3,)))["top1_at"].keys() == {"3"}


def test_the_lbfgs_solver_uses_the_runs_tuning_split(run):
    score = logistic_regression(of(LogisticSettings, run))
    assert score["C"] in (0.01, 0.1, 1.0, 10.0)
    assert accuracy_of_bits(score) == score["top1"]
    # untrained features of digits are far above the 10 % of guessing
    assert score["top1"] > 40
    assert score["backbone_sha256"] == file_hash(run / "backbone.safetensors")


def test_a_linear_probe_writes_a_separate_score_for_the_tuning_split(run):
    score = evaluate(of(EvaluateSettings, run, epochs=1, val_dataset="train"), progress=False)
    assert score["images"] == 500
    assert (run / "linear_tune.json").is_file()
    assert not (run / "linear.json").exists()


def test_the_lbfgs_solver_rejects_an_extraction_folder_since_it_lacks_the_tuning_split(run, tmp_path):
    with pytest.raises(SfrikError, match="--solver sgd"):
        logistic_regression(of(LogisticSettings, tmp_path, extraction_dir=str(run.parent / "features"), solver="lbfgs"))


@pytest.mark.parametrize("kind", ["knn", "logistic", "linear"])
def test_a_score_of_other_weights_is_not_a_score_of_the_run(tmp_path, kind):
    pretrain(PretrainSettings.from_recipe(RECIPE, exp_dir=str(tmp_path / "run"), **CPU), progress=False)
    other = tmp_path / "other.safetensors"
    torch.manual_seed(9)
    save_weights(build_backbone("resnet8", "patch", 1), other)
    keywords = {"pretrained": str(other)}
    if kind == "knn":
        score = knn_eval(of(KnnSettings, tmp_path / "run", **keywords))
    elif kind == "logistic":
        score = logistic_regression(of(LogisticSettings, tmp_path / "run", solver="sgd", epochs=1, **keywords))
    else:
        score = evaluate(of(EvaluateSettings, tmp_path / "run", epochs=1, **keywords), progress=False)
    assert score["backbone_sha256"] == file_hash(other)
    assert Run(tmp_path / "run").result(kind) is None


def test_a_score_of_an_extraction_folder_is_not_a_score_of_the_run(run, tmp_path):
    pretrain(PretrainSettings.from_recipe(RECIPE, seed=5, exp_dir=str(tmp_path / "run"), **CPU), progress=False)
    knn_eval(of(KnnSettings, tmp_path / "run", extraction_dir=str(run.parent / "features")))
    assert Run(tmp_path / "run").result("knn") is None, "these features are of another seed's weights"


# --- the choice on the tuning split comes before the test images

COMMANDS = {
    "evaluate": (EvaluateSettings, lambda settings: evaluate(settings, progress=False), {"epochs": 1, "subset": 2}),
    "inference": (EvaluateSettings, evaluate, {"only_inference": True}),
    "knn": (KnnSettings, knn_eval, {"nb_knn": (3,)}),
    "logistic": (LogisticSettings, logistic_regression, {"solver": "sgd", "epochs": 1}),
    "extract": (FeatureSettings, extract_features, {}),
    "features": (FeatureSettings, features_here, {}),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_test_images_are_scored_only_after_the_choice_and_only_by_the_chosen_recipe(run, tmp_path, command):
    kind, work, overrides = COMMANDS[command]
    folder = tmp_path / "digits" / "sim_1024" / "seed0"
    folder.mkdir(parents=True)
    (folder / "backbone.safetensors").write_bytes((run / "backbone.safetensors").read_bytes())
    given = {"choice": "table9_sfrik", **overrides}
    if command == "inference":
        evaluate(of(EvaluateSettings, folder, epochs=1, subset=2, val_dataset="train"), progress=False)
    before = sorted(folder.iterdir())
    with pytest.raises(SfrikError, match=r"choice of grid table9_sfrik is not recorded yet .*make table9"):
        work(of(kind, folder, **given))
    written = tmp_path / "digits" / "tuning" / "table9_sfrik.json"
    written.parent.mkdir()
    write_json(written, {"chosen": "sim_2048"})
    with pytest.raises(SfrikError, match="is sim_2048, not sim_1024"):
        work(of(kind, folder, **given))
    write_json(written, {"grid": 1})
    with pytest.raises(SfrikError, match='no key "chosen"'):
        work(of(kind, folder, **given))
    assert sorted(folder.iterdir()) == before
    write_json(written, {"chosen": "sim_1024"})
    work(of(kind, folder, **given))


def test_the_tuning_split_is_scored_without_a_choice(run):
    assert knn_eval(of(KnnSettings, run, choice="table9_sfrik", val_dataset="train", nb_knn=(3,)))["images"] == 500


def test_an_extraction_folder_does_not_bypass_the_choice(run, tmp_path):
    given = {"extraction_dir": str(run.parent / "features"), "choice": "grid"}
    for kind, work in [(KnnSettings, knn_eval), (LogisticSettings, logistic_regression), (FeatureSettings, features_here)]:
        with pytest.raises(SfrikError, match="not recorded yet"):
            work(of(kind, tmp_path / "a" / "seed0", **given))


@pytest.mark.parametrize(("extracted", "scored", "there"), [("val", "train", "test images"), ("train", "val", "tuning split")])
def test_features_of_one_split_are_not_scored_as_the_other(run, tmp_path, extracted, scored, there):
    folder = extract_features(of(FeatureSettings, run, extraction_dir=str(tmp_path / "features"), val_dataset=extracted))
    given = {"extraction_dir": str(folder), "val_dataset": scored}
    for settings, work in [
        (of(KnnSettings, tmp_path / "scores", **given), knn_eval),
        (of(LogisticSettings, tmp_path / "scores", solver="sgd", **given), logistic_regression),
    ]:
        with pytest.raises(SfrikError, match=f"has the features of the {there}, .* --val-dataset {scored}"):
            work(settings)
    assert not (tmp_path / "scores").exists()


# --- invalid feature files


@pytest.fixture
def features(tmp_path):
    """A small extraction folder: 6 training and 4 test features of 5 dimensions."""
    folder = tmp_path / "features"
    folder.mkdir()
    for name, n in (("train", 6), ("val", 4)):
        np.save(folder / f"{name}_features.npy", np.random.default_rng(n).normal(size=(n, 5)).astype(np.float32))
        np.save(folder / f"{name}_labels.npy", np.arange(n) % 2)
    return folder


PARTS = ["train_features", "train_labels", "val_features", "val_labels"]


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_feature_file_is_named(features, part):
    (features / f"{part}.npy").unlink()
    with pytest.raises(SfrikError, match=rf"{part}\.npy: run extract-features first"):
        load_features(features, part.split("_")[0])


@pytest.mark.parametrize("size", [0, 40, 140])
@pytest.mark.parametrize("part", PARTS)
def test_a_feature_file_that_was_cut_short_is_named(features, part, size):
    path = features / f"{part}.npy"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(SfrikError, match=rf"{part}\.npy is not a complete"):
        load_features(features, part.split("_")[0])


@pytest.mark.parametrize("name", ["train", "val"])
def test_unequal_numbers_of_features_and_labels_are_rejected(features, name):
    np.save(features / f"{name}_labels.npy", np.arange(3))
    with pytest.raises(SfrikError, match=rf"{name} features but 3 labels"):
        load_features(features, name)


@pytest.mark.parametrize("command", ["knn-eval", "logistic-regression"])
def test_training_and_test_features_of_different_dimensions_are_a_one_line_error(features, tmp_path, capsys, command):
    np.save(features / "val_features.npy", np.ones((4, 3), dtype=np.float32))
    arguments = [command, "--extraction-dir", str(features), "--exp-dir", str(tmp_path / "run"), "--device", "cpu"]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "5" in line
    assert "3" in line
    assert not (tmp_path / "run").exists()


def test_valid_features_give_a_score(features, tmp_path):
    score = knn_eval(KnnSettings(extraction_dir=str(features), exp_dir=str(tmp_path / "run"), nb_knn=(1, 6)))
    assert score["top1_at"].keys() == {"1", "6"}
    assert score["images"] == 4
    assert score["backbone_sha256"] is None
