"""The evaluation commands: from settings to a score in the run's folder.

A score that exists is returned if it was measured with the same settings on the same weights and images.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sfrik.datasets import Images, describe_data
from sfrik.errors import SfrikError
from sfrik.evaluate.broken import note_broken
from sfrik.evaluate.checkpoint import EvaluationCheckpoint
from sfrik.evaluate.features import Features, read_features
from sfrik.evaluate.finetune import finetune, image_ranks
from sfrik.evaluate.forward import extract
from sfrik.evaluate.head_files import SavedHead, load_head, save_head
from sfrik.evaluate.inputs import Inputs
from sfrik.evaluate.knn import scores_by_k
from sfrik.evaluate.linear import linear_probe, linear_sweep
from sfrik.evaluate.linear_head import as_score, label_ranks
from sfrik.evaluate.logistic import logistic_lbfgs, logistic_sgd, logistic_sweep
from sfrik.networks import Backbone, network_metadata
from sfrik.runs.data import data_differences
from sfrik.runs.records import Score
from sfrik.settings import EvaluateSettings, KnnSettings, LogisticSettings
from sfrik.system.devices import channels_last
from sfrik.system.files import file_hash
from sfrik.system.records import read_record
from sfrik.system.terminal import print_line

__all__ = ["class_scores", "evaluate", "knn_eval", "logistic_regression"]

Split = tuple[Tensor, Tensor]  # features [n, d] and labels [n]


def evaluate(settings: EvaluateSettings, progress: bool = True) -> dict[str, Any]:
    """Linear probing or fine-tuning: writes <protocol>.json, or <protocol>_tune.json for the tuning split.

    The protocol is linear or finetune; with a share of the labels such as 10 %, linear10 (frozen) or semi10 (fine-tuned). The
    head, after fine-tuning with the backbone's weights, is saved beside the score as head_<protocol>[_tune].safetensors;
    `only_inference` reads it.

    A stop signal saves a checkpoint, checkpoint_<protocol>[_tune].pt, from which the same call resumes; it is removed after the
    score is written. A second process that evaluates the same protocol of the same run waits for the first and returns its score.

    Args:
        progress: whether to print a line per epoch.

    Returns:
        The content of the score's file: `top1` and `top5` in %, the number of `images`, and what they were measured on.

    Raises:
        SfrikError: wrong settings or data, or a loss that is not finite.
        Preempted: stopped by SIGTERM, SIGUSR1 or SIGHUP (KeyboardInterrupt: by SIGINT), after saving.
    """
    inputs = Inputs.resolve(settings)
    if settings.only_inference:
        return _inference(inputs)
    name = inputs.score_name(settings.protocol)
    if score := inputs.finished_score(name):
        return score
    train, test = inputs.images("train"), inputs.scored_images()
    backbone = inputs.backbone(train.channels)
    images: tuple[Images | None, ...] = (train, test)
    if settings.lr_sweep:
        images = (train, inputs.images("tune"), test) if inputs.split == "test" else (train, test, None)
    train_head = finetune if settings.weights == "finetune" else linear_sweep if settings.lr_sweep else linear_probe
    method = cast("Callable[..., tuple[dict[str, Any], nn.Linear]]", train_head)  # a sweep takes the tuning split too
    with EvaluationCheckpoint(inputs.run, name, settings, inputs.weights_sha256, inputs.data, inputs.precision) as checkpoint:
        if score := inputs.finished_score(name):  # by the process that this one waited for
            return score
        score, head = method(backbone, *images, settings, inputs.device, inputs.precision, progress, checkpoint)
        classes = {} if train.classes is None else {"classes": list(train.classes)}
        saved = save_head(
            inputs.run.folder / f"head_{name}.safetensors",
            head,
            backbone if settings.weights == "finetune" else None,
            protocol=settings.protocol,
            **network_metadata(settings, backbone),
            num_classes=train.num_classes,
            **classes,
            settings=settings.hash(),
            backbone_sha256=inputs.weights_sha256,
        )
        score = {"images": len(test), "train_images": len(train), **score, "head_sha256": saved, "data": inputs.data}
        return inputs.run.save_result(name, settings, score, inputs.weights_sha256)


def _inference(inputs: Inputs[EvaluateSettings]) -> dict[str, Any]:
    """Score a saved head without training: writes <protocol>_inference.json (..._tune.json for the tuning split).

    The head is `ckp_path`, or the run's head of this protocol: the one that was scored on the tuning split, if it exists, so
    that a choice made on that split is followed by one score on the test images.
    """
    settings = inputs.settings
    name = inputs.score_name(f"{settings.protocol}_inference")
    if score := inputs.finished_score(name):
        return score
    images, data = inputs.scored_images(), inputs.data
    saved, backbone, digest = _saved_model(inputs, images)
    head, broken = saved.head.to(inputs.device), cast("list[str]", [])
    ranks = image_ranks(backbone, head, images, settings, inputs.device, inputs.precision, skipped=broken)
    score = {"images": len(images), "head": saved.path.name, "head_sha256": file_hash(saved.path), **as_score(ranks)}
    score |= {**note_broken({"test": broken}, test=len(images)), "data": data}
    return inputs.run.save_result(name, settings, score, digest)


@torch.no_grad()
def class_scores(settings: EvaluateSettings) -> Split:
    """The class scores of a head that `evaluate` saved, for each scored image; with `skip_broken` for those that can be read.

    The head is `ckp_path`, or the run's head of this protocol and split; after fine-tuning the backbone is the one saved with it.
    A line on stderr reports that the images are not those that the run's score was measured on.

    Returns:
        Class scores [n, classes] before the softmax, and labels [n].

    Raises:
        SfrikError: the head is missing, or was trained on other weights than the run's present ones.
    """
    inputs = Inputs.resolve(settings)
    images = inputs.scored_images()
    saved, backbone, _ = _saved_model(inputs, images)
    score = inputs.run.folder / f"{inputs.score_name(settings.protocol)}.json"
    recorded = read_record(score, Score).get("data", {}) if score.is_file() else {}
    if recorded and (differences := data_differences(recorded.get(inputs.split), describe_data(images))):
        print_line(f"{score} was measured on other images ({differences}) than these class scores", error=True)
    how = {"device": inputs.device, "precision": inputs.precision, "workers": settings.workers}
    features, labels = extract(backbone, images, inputs.whole_images, **how, skip_broken=settings.skip_broken)
    return saved.head(features), labels


def _saved_model(inputs: Inputs[EvaluateSettings], images: Images) -> tuple[SavedHead, Backbone, str]:
    """A saved head, its backbone, on the device and in evaluation mode, and the SHA-256 of the pretrained weights."""
    settings = inputs.settings
    own = _own_head(inputs)
    if not settings.ckp_path:
        _check_own_head(own)
    saved = load_head(settings.ckp_path or own)
    trained_on = saved.about.get("backbone_sha256")
    if saved.backbone is None:
        backbone = inputs.backbone(images.channels)
        digest = inputs.weights_sha256
    else:
        backbone = channels_last(saved.build_backbone(settings, images.channels), inputs.device)
        # a file that does not record the pretrained weights it started from is identified by its own hash
        digest = trained_on or file_hash(saved.path)
    of_this_run = saved.backbone is None or (not settings.ckp_path and inputs.weights.is_file())
    if of_this_run and trained_on and trained_on != inputs.weights_sha256:
        raise SfrikError(
            f"{saved.path} was trained on other weights than {inputs.weights}: evaluate again, without --only-inference"
        )
    saved.check(backbone.num_features, images.num_classes, images.classes)
    return saved, backbone, digest


def _own_head(inputs: Inputs[EvaluateSettings]) -> Path:
    """The run's head of this protocol; for inference the one that was scored on the tuning split, if it exists."""
    test, tune = (inputs.run.folder / f"head_{inputs.settings.protocol}{split}.safetensors" for split in ("", "_tune"))
    if inputs.settings.only_inference:
        return tune if tune.is_file() else test
    return test if inputs.split == "test" else tune


def _check_own_head(path: Path) -> None:
    """Compare a head with the SHA-256 in the score that was measured with it; raises SfrikError if they differ."""
    score = path.with_name(f"{path.stem.removeprefix('head_')}.json")
    if path.is_file() and score.is_file():
        recorded = read_record(score, Score).get("head_sha256")
        if recorded is not None and file_hash(path) != recorded:
            raise SfrikError(f"{path} is not the head whose score is in {score}: evaluate again, with that score moved away")


def knn_eval(settings: KnnSettings) -> dict[str, Any]:
    """Weighted kNN on frozen features, DINO's protocol (`sfrik.evaluate.knn`): writes knn.json.

    The features are those of `extraction_dir`, or the run's own, extracted now unless they exist.

    Returns:
        The content of the score's file: `top1_at` and `top5_at` in %, and `correct_at`, by the number of neighbours.

    Raises:
        SfrikError: missing weights, images or features, or test images of a grid whose choice is not recorded.
    """
    inputs = Inputs.resolve(settings)
    name = inputs.score_name("knn")
    if score := inputs.finished_score(name):
        return score
    (train, train_labels), (test, test_labels), digest, broken, data = read_features(inputs)
    num_classes = int(max(train_labels.max(), test_labels.max())) + 1
    if large := [k for k in settings.nb_knn if k > len(train)]:
        text = f"nb_knn {', '.join(map(str, large))}: there are only {len(train)} training images, and all of them vote"
        print_line(f"{text}; use --nb-knn of at most {len(train)}", error=True)
    if inputs.device.type == "cuda":  # the training features follow, one block at a time
        test, test_labels = test.to(inputs.device), test_labels.to(inputs.device)
    by_k = {}
    for k, scores in scores_by_k(train, train_labels, test, settings.nb_knn, settings.temperature, num_classes):
        by_k[str(k)] = as_score(label_ranks(scores, test_labels, voted=True))
    score = {
        "images": len(test),
        "train_images": len(train),
        **{f"{key}_at": {k: score[key] for k, score in by_k.items()} for key in ("top1", "top5", "correct")},
        **note_broken(broken),
        "data": data,
    }
    return inputs.run.save_result(name, settings, score, digest)


def logistic_regression(settings: LogisticSettings) -> dict[str, Any]:
    """Logistic regression on frozen features, by the paper's SGD or scikit-learn's L-BFGS: writes logistic.json.

    The features are those of `extraction_dir`, or the run's own, extracted now unless they exist.

    Returns:
        The content of the score's file: `top1` in %, and the hyperparameters chosen on the tuning split.

    Raises:
        SfrikError: missing weights, images or features, test images of a grid whose choice is not recorded, or a choice on the
            tuning split with an `extraction_dir`, which has no features of it.
    """
    inputs = Inputs.resolve(settings)
    name = inputs.score_name("logistic")
    if score := inputs.finished_score(name):
        return score
    features = read_features(inputs)
    train, test, digest, broken, data = features
    if settings.solver == "lbfgs":
        score = logistic_lbfgs(train, _tuning_features(inputs, features), test, settings.inverse_penalties)
    else:
        score = _logistic_sgd(inputs, features)
    score = {"images": len(test[0]), "train_images": len(train[0]), **score, **note_broken(broken), "data": data}
    return inputs.run.save_result(name, settings, score, digest)


def _logistic_sgd(inputs: Inputs[LogisticSettings], features: Features) -> dict[str, Any]:
    train, test = features.train, features.val
    num_classes = int(max(train[1].max(), test[1].max())) + 1
    s, device = inputs.settings, inputs.device
    if not s.lr_sweep:
        return logistic_sgd(
            train, test, num_classes, s.epochs, s.batch_size, s.lr_head, s.weight_decay, s.seed, device, s.head_norm
        )
    splits = (_tuning_features(inputs, features), test) if inputs.split == "test" else (test, None)
    how = s.lr_sweep, s.epochs, s.batch_size, s.weight_decay, s.seed, device, s.head_norm
    return logistic_sweep(train, *splits, num_classes, *how)


def _tuning_features(inputs: Inputs[LogisticSettings], features: Features) -> Split:
    """Features of the tuning split, extracted now: the folder of features has only one split besides the training images.

    The names of skipped images, and what describes the split, are added to those of `features`.
    """
    s = inputs.settings
    images = inputs.images("tune")
    backbone = inputs.backbone(images.channels)
    features.data["tune"] = inputs.data["tune"]
    how = inputs.whole_images, s.batch_size, inputs.device, inputs.precision, s.workers, None, s.skip_broken
    return extract(backbone, images, *how, features.broken.setdefault("tune", []))
