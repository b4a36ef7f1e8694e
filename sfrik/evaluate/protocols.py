"""The evaluation commands: from settings to a score in the run's folder. A finished one is returned at once."""

from __future__ import annotations

from typing import Any

import torch

from sfrik.datasets import load_images
from sfrik.devices import pick_device, pick_precision
from sfrik.errors import SfrikError
from sfrik.evaluate.features import (
    evaluation_split,
    extract,
    features_hash,
    features_here,
    frozen_backbone,
    load_features,
    weights_path,
)
from sfrik.evaluate.knn import weighted_knn
from sfrik.evaluate.linear import linear_probe
from sfrik.evaluate.logistic import logistic_lbfgs, logistic_sgd, top_accuracies
from sfrik.runs import Run, file_hash
from sfrik.settings import EvaluateSettings, FeatureSettings, FrozenSettings, KnnSettings, LogisticSettings
from sfrik.views import resize_for_test

__all__ = ["evaluate", "knn_eval", "logistic_regression"]


def evaluate(settings: EvaluateSettings, progress: bool = True) -> dict[str, Any]:
    """Linear probe of a backbone: writes linear.json (linear_tune.json for the tuning split)."""
    run, name, known = _finished("linear", settings)
    if known:
        return known
    device = pick_device(settings.device)
    precision = pick_precision(settings.precision, device)
    train = load_images(settings.dataset, "train", settings.data_dir, settings.subset)
    test = _scored_images(settings)
    backbone = frozen_backbone(settings, train.channels).to(device, memory_format=torch.channels_last)
    score = linear_probe(backbone, train, test, settings, device, precision, progress)
    return run.save_result(
        name, settings, {"images": len(test), "train_images": len(train), **score}, file_hash(weights_path(settings))
    )


def knn_eval(settings: KnnSettings) -> dict[str, Any]:
    """Weighted kNN on features: writes knn.json with `top1_at` and `top5_at`, in %, by the number of neighbours."""
    run, name, known = _finished("knn", settings)
    if known:
        return known
    (train, train_labels), (test, test_labels) = _features(settings)
    num_classes = int(max(train_labels.max(), test_labels.max())) + 1
    top1, top5 = {}, {}
    for k in settings.nb_knn:
        scores = weighted_knn(train, train_labels, test, k, settings.temperature, num_classes)
        top1[str(k)], top5[str(k)] = top_accuracies(scores, test_labels)
    score = {"images": len(test), "train_images": len(train), "top1_at": top1, "top5_at": top5}
    return run.save_result(name, settings, score, features_hash(settings))


def logistic_regression(settings: LogisticSettings) -> dict[str, Any]:
    """Logistic regression on features: writes logistic.json with `top1` in %."""
    run, name, known = _finished("logistic", settings)
    if known:
        return known
    train, test = _features(settings)
    if settings.solver == "lbfgs":
        score = logistic_lbfgs(train, _tuning_features(settings), test, settings.inverse_penalties)
    else:
        num_classes = int(max(train[1].max(), test[1].max())) + 1
        score = logistic_sgd(
            train,
            test,
            num_classes,
            settings.epochs,
            settings.batch_size,
            settings.lr_head,
            settings.weight_decay,
            settings.seed,
            pick_device(settings.device),
        )
    score = {"images": len(test[0]), "train_images": len(train[0]), **score}
    return run.save_result(name, settings, score, features_hash(settings))


def _finished(protocol: str, settings: FrozenSettings) -> tuple[Run, str, dict[str, Any] | None]:
    run = Run(settings.exp_dir)
    name = protocol if evaluation_split(settings) == "test" else f"{protocol}_tune"
    others = settings.pretrained or getattr(settings, "extraction_dir", "")  # not the run's own weights
    return run, name, None if others else run.result(name, settings)


def _scored_images(settings: FrozenSettings):
    split = evaluation_split(settings)
    return load_images(settings.dataset, split, settings.data_dir, settings.subset, settings.val_subset)


def _features(settings: FeatureSettings):
    """Features of an extraction folder that was given, else of the run's own weights."""
    folder = features_here(settings)
    train, val = load_features(folder, "train"), load_features(folder, "val")
    if train[0].shape[1] != val[0].shape[1]:
        raise SfrikError(
            f"{folder} has train features of {train[0].shape[1]} dimensions and val features of {val[0].shape[1]}: "
            "extract them again, from one backbone"
        )
    return train, val


def _tuning_features(settings: LogisticSettings):
    if settings.extraction_dir:
        raise SfrikError("solver lbfgs chooses C on the tuning split, which an extraction folder lacks: use --solver sgd")
    device = pick_device(settings.device)
    images = load_images(settings.dataset, "tune", settings.data_dir, settings.subset, settings.val_subset)
    backbone = frozen_backbone(settings, images.channels).to(device, memory_format=torch.channels_last)
    precision = pick_precision(settings.precision, device)
    views = resize_for_test(settings.size, settings.dataset)
    return extract(backbone, images, views, settings.batch_size, device, precision, settings.workers)
