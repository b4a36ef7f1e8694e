"""The evaluation commands: from settings to a score in the run's folder. A finished one is returned at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sfrik.datasets.images import Images, load_images
from sfrik.errors import SfrikError
from sfrik.evaluate.checkpoint import EvaluationCheckpoint
from sfrik.evaluate.features import extract, features_hash, features_here, load_features
from sfrik.evaluate.finetune import finetune, score_images
from sfrik.evaluate.head_files import SavedHead, load_head, save_head
from sfrik.evaluate.inputs import evaluation_split, finished_score, frozen_backbone, scored_images, training_images, weights_path
from sfrik.evaluate.knn import scores_by_k
from sfrik.evaluate.linear import linear_probe, linear_sweep
from sfrik.evaluate.linear_head import top_accuracies
from sfrik.evaluate.logistic import logistic_lbfgs, logistic_sgd, logistic_sweep
from sfrik.networks import Backbone
from sfrik.runs.folder import Run
from sfrik.runs.records import Score
from sfrik.settings import EvaluateSettings, FeatureSettings, FrozenSettings, KnnSettings, LogisticSettings
from sfrik.system.devices import channels_last, pick_device, pick_precision
from sfrik.system.files import file_hash
from sfrik.system.records import read_record
from sfrik.views.base import resize_for_test

__all__ = ["class_scores", "evaluate", "knn_eval", "logistic_regression"]

Split = tuple[Tensor, Tensor]  # features [n, d] and labels [n]


def evaluate(settings: EvaluateSettings, progress: bool = True) -> dict[str, Any]:
    """Linear probing or fine-tuning: writes <protocol>.json (<protocol>_tune.json for the tuning split) and, beside it, the head.

    The protocol is linear, finetune, or with part of the labels semi1, semi10 (fine-tuned), linear1, linear10 (frozen). The
    head, after fine-tuning with the backbone's weights, is head_<protocol>[_tune].safetensors; `only_inference` reads it.

    SIGINT, SIGTERM and SIGUSR1 stop it with a checkpoint, checkpoint_<protocol>[_tune].pt, from which the same call goes on; it
    is removed after the score is written.

    Raises:
        SfrikError: wrong settings or data; the loss is not finite; another process computes the same score. Preempted,
            KeyboardInterrupt: asked to stop, and saved.
    """
    if settings.only_inference:
        return _inference(settings)
    run, name, known = finished_score(settings.protocol, settings)
    if known:
        return known
    device = pick_device(settings.device)
    precision = pick_precision(settings.precision, device)
    train = training_images(settings)
    test = scored_images(settings)
    backbone = channels_last(frozen_backbone(settings, train.channels), device)
    images: tuple[Images | None, ...] = (train, test)
    if settings.lr_sweep:
        images = (train, _tuning_images(settings), test) if evaluation_split(settings) == "test" else (train, test, None)
    train_head = finetune if settings.weights == "finetune" else linear_sweep if settings.lr_sweep else linear_probe
    method = cast("Callable[..., tuple[dict[str, Any], nn.Linear]]", train_head)  # a sweep takes the tuning split too
    digest = file_hash(weights_path(settings))
    with EvaluationCheckpoint(run, name, settings, digest, train, precision) as checkpoint:
        score, head = method(backbone, *images, settings, device, precision, progress, checkpoint)
        saved = save_head(
            run.folder / f"head_{name}.safetensors",
            head,
            backbone if settings.weights == "finetune" else None,
            protocol=settings.protocol,
            arch=settings.arch,
            num_classes=train.num_classes,
            settings=settings.hash(),
            backbone_sha256=digest,
        )
        score = {"images": len(test), "train_images": len(train), **score, "head_sha256": saved}
        return run.save_result(name, settings, score, digest)


def _inference(settings: EvaluateSettings) -> dict[str, Any]:
    """Score a saved head once, and train nothing: writes <protocol>_inference.json (..._tune.json for the tuning split).

    The head is `ckp_path`, or the run's own of this protocol: the one that was scored on the tuning split, if it is there, so
    that a choice made on that split is followed by one score on the test images.
    """
    run, name, known = finished_score(f"{settings.protocol}_inference", settings)
    if known:
        return known
    images = scored_images(settings)
    saved, backbone, digest = _saved_model(settings, images)
    device = pick_device(settings.device)
    precision = pick_precision(settings.precision, device)
    backbone = channels_last(backbone, device)
    top1, top5 = score_images(backbone, saved.head.to(device), images, settings, device, precision)
    score = {"images": len(images), "head": saved.path.name, "head_sha256": file_hash(saved.path), "top1": top1, "top5": top5}
    return run.save_result(name, settings, score, digest)


@torch.no_grad()
def class_scores(settings: EvaluateSettings) -> Split:
    """What the head that `evaluate` saved says of each scored image: class scores [n, classes] before the softmax, labels [n].

    The head is `ckp_path`, or the run's own of this protocol and split; after fine-tuning the backbone is the one saved with it.

    Raises:
        SfrikError: there is no such head, or it was trained on other weights than those that are here.
    """
    images = scored_images(settings)
    saved, backbone, _ = _saved_model(settings, images)
    device = pick_device(settings.device)
    precision = pick_precision(settings.precision, device)
    backbone = channels_last(backbone, device)
    views = resize_for_test(settings.size, settings.dataset)
    features, labels = extract(backbone, images, views, device=device, precision=precision, workers=settings.workers)
    return saved.head(features), labels


def _saved_model(settings: EvaluateSettings, images: Images) -> tuple[SavedHead, Backbone, str]:
    """A saved head, the backbone that it goes with, in evaluation mode, and the SHA-256 of the pretrained weights."""
    if not settings.ckp_path:
        _check_own_head(_own_head(settings))
    saved = load_head(settings.ckp_path or _own_head(settings))
    weights, trained_on = weights_path(settings), saved.about.get("backbone_sha256")
    if saved.backbone is None:
        backbone = frozen_backbone(settings, images.channels)
        digest = file_hash(weights)
    else:
        backbone = saved.build_backbone(settings.arch, settings.stem, images.channels)
        # a file that does not name the pretrained weights it started from is named itself
        digest = trained_on or file_hash(saved.path)
    belongs_here = saved.backbone is None or (not settings.ckp_path and weights.is_file())
    if belongs_here and trained_on and trained_on != file_hash(weights):
        raise SfrikError(f"{saved.path} was trained on other weights than {weights}: evaluate again, without --only-inference")
    saved.check(backbone.num_features, images.num_classes)
    return saved, backbone, digest


def _own_head(settings: EvaluateSettings) -> Path:
    """The run's own head of this protocol; for inference the one that was scored on the tuning split, if it is there."""
    plain, tuned = (Run(settings.exp_dir).folder / f"head_{settings.protocol}{split}.safetensors" for split in ("", "_tune"))
    if settings.only_inference:
        return tuned if tuned.is_file() else plain
    return plain if evaluation_split(settings) == "test" else tuned


def _check_own_head(path: Path) -> None:
    """Compare a head with the SHA-256 in the score that was measured with it; raises SfrikError where they differ."""
    score = path.with_name(f"{path.stem.removeprefix('head_')}.json")
    if path.is_file() and score.is_file():
        recorded = read_record(score, Score).get("head_sha256")
        if recorded is not None and file_hash(path) != recorded:
            raise SfrikError(f"{path} is not the head whose score is in {score}: evaluate again, with that score moved away")


def knn_eval(settings: KnnSettings) -> dict[str, Any]:
    """Weighted kNN on features: writes knn.json with `top1_at` and `top5_at`, in %, by the number of neighbours."""
    run, name, known = finished_score("knn", settings)
    if known:
        return known
    (train, train_labels), (test, test_labels) = _features(settings)
    num_classes = int(max(train_labels.max(), test_labels.max())) + 1
    device = pick_device(settings.device)
    if device.type == "cuda":  # the training features follow, a block at a time
        test, test_labels = test.to(device), test_labels.to(device)
    top1, top5 = {}, {}
    for k, scores in scores_by_k(train, train_labels, test, settings.nb_knn, settings.temperature, num_classes):
        top1[str(k)], top5[str(k)] = top_accuracies(scores, test_labels)
    score = {"images": len(test), "train_images": len(train), "top1_at": top1, "top5_at": top5}
    return run.save_result(name, settings, score, features_hash(settings))


def logistic_regression(settings: LogisticSettings) -> dict[str, Any]:
    """Logistic regression on features: writes logistic.json with `top1` in %."""
    run, name, known = finished_score("logistic", settings)
    if known:
        return known
    train, test = _features(settings)
    if settings.solver == "lbfgs":
        score = logistic_lbfgs(train, _tuning_features(settings), test, settings.inverse_penalties)
    else:
        score = _logistic_sgd(settings, train, test)
    score = {"images": len(test[0]), "train_images": len(train[0]), **score}
    return run.save_result(name, settings, score, features_hash(settings))


def _logistic_sgd(settings: LogisticSettings, train: Split, test: Split) -> dict[str, Any]:
    num_classes = int(max(train[1].max(), test[1].max())) + 1
    device = pick_device(settings.device)
    s = settings
    if not s.lr_sweep:
        return logistic_sgd(train, test, num_classes, s.epochs, s.batch_size, s.lr_head, s.weight_decay, s.seed, device)
    splits = (_tuning_features(s), test) if evaluation_split(s) == "test" else (test, None)
    return logistic_sweep(train, *splits, num_classes, s.lr_sweep, s.epochs, s.batch_size, s.weight_decay, s.seed, device)


def _features(settings: FeatureSettings) -> tuple[Split, Split]:
    """Features of an extraction folder that was given, else of the run's own weights."""
    folder = features_here(settings)
    train, val = load_features(folder, "train"), load_features(folder, "val")
    if train[0].shape[1] != val[0].shape[1]:
        raise SfrikError(
            f"{folder} has train features of {train[0].shape[1]} dimensions and val features of {val[0].shape[1]}: "
            "extract them again, from one backbone"
        )
    return train, val


def _tuning_images(settings: FrozenSettings) -> Images:
    return load_images(settings.dataset, "tune", settings.data_dir, settings.subset, settings.val_subset)


def _tuning_features(settings: LogisticSettings) -> Split:
    """Features of the tuning split, extracted now: an extraction folder holds one split beside the training images."""
    if settings.extraction_dir:
        what, remedy = (
            ("solver lbfgs chooses C", "--solver sgd") if settings.solver == "lbfgs" else ("lr_sweep chooses", "--lr-head")
        )
        raise SfrikError(f"{what} on the tuning split, which an extraction folder lacks: use {remedy}")
    device = pick_device(settings.device)
    images = _tuning_images(settings)
    backbone = channels_last(frozen_backbone(settings, images.channels), device)
    precision = pick_precision(settings.precision, device)
    views = resize_for_test(settings.size, settings.dataset)
    return extract(backbone, images, views, settings.batch_size, device, precision, settings.workers)
