"""Transfer: the frozen backbone on another data set's images (tables 3 and 4).

========== ===================================================== =============================
target     protocol                                              score
========== ===================================================== =============================
places205  linear probe with augmentation                        `top1` and `top5` in %
           (`sfrik.evaluate.linear`)
voc07      one-vs-rest linear SVMs on features of the whole      `map` over 20 classes in %
           images (`sfrik.evaluate.svm`)
digits8x8  multinomial logistic regression on features of the    `top1` in %
           whole images; ours, for the digits profile
========== ===================================================== =============================

The paper names the first two and gives no code for them; VICReg's paper, which it follows, describes them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sfrik.datasets import Images
from sfrik.datasets.transfer import load_target
from sfrik.evaluate.arguments import as_split
from sfrik.evaluate.broken import note_broken
from sfrik.evaluate.checkpoint import EvaluationCheckpoint
from sfrik.evaluate.forward import extract
from sfrik.evaluate.inputs import Inputs
from sfrik.evaluate.linear import linear_probe
from sfrik.evaluate.svm import mean_average_precision
from sfrik.networks import Backbone
from sfrik.runs.correctness import pack
from sfrik.settings import TransferSettings
from sfrik.views.base import resize_for_test

__all__ = ["logistic_by_cross_validation", "transfer"]

# The data set whose resizing and normalisation a target uses.
AS = {"places205": "imagenet", "voc07": "imagenet", "digits8x8": "mnist5k"}


def transfer(settings: TransferSettings, progress: bool = True) -> dict[str, Any]:
    """Score the backbone on `settings.target`: writes transfer_<target>.json, unless it exists for the same images.

    All choices (a cost, a penalty) are made on training images of the target; its test images are scored once. A second process
    that scores the same run on the same target waits for the first and returns its score.

    Args:
        progress: whether to print a line per epoch of a linear probe.

    Returns:
        The content of the score's file: `top1` or `map` in %, and the chosen hyperparameters.

    Raises:
        SfrikError: missing images or weights, or `val_dataset` train: the targets have no tuning split.
        Preempted: a linear probe was stopped by SIGTERM, SIGUSR1 or SIGHUP (KeyboardInterrupt: by SIGINT), after saving.
    """
    folder = settings.target_dir or settings.data_dir
    inputs = Inputs.resolve(settings, lambda split: load_target(settings.target, split, folder))
    name = inputs.score_name(f"transfer_{settings.target}")
    if score := inputs.finished_score(name):
        return score
    train, test = inputs.images("train"), inputs.images("test")
    backbone = inputs.backbone(train.channels)
    device, precision, digest = inputs.device, inputs.precision, inputs.weights_sha256
    with EvaluationCheckpoint(inputs.run, name, settings, digest, inputs.data, precision) as checkpoint:
        if score := inputs.finished_score(name):  # by the process that this one waited for
            return score
        score = METHODS[settings.target](backbone, train, test, settings, device, precision, progress, checkpoint)
        score = {"target": settings.target, "images": len(test), "train_images": len(train), **score, "data": inputs.data}
        return inputs.run.save_result(name, settings, score, digest)


def _places205(
    backbone: Backbone,
    train: Images,
    test: Images,
    settings: TransferSettings,
    device: torch.device,
    precision: str,
    progress: bool,
    checkpoint: EvaluationCheckpoint,
) -> dict[str, Any]:
    as_imagenet = settings.model_copy(update={"dataset": AS["places205"]})
    return linear_probe(backbone, train, test, as_imagenet, device, precision, progress, checkpoint)[0]


def _voc07(backbone, train, test, settings, device, precision, progress, checkpoint) -> dict[str, Any]:
    of_train, of_test, found = _features(backbone, {"train": train, "test": test}, settings, device, precision)
    return {**mean_average_precision(of_train, of_test, settings.svm_costs, settings.seed, train.classes), **found}


def _digits8x8(backbone, train, test, settings, device, precision, progress, checkpoint) -> dict[str, Any]:
    of_train, of_test, found = _features(backbone, {"train": train, "test": test}, settings, device, precision)
    return {**logistic_by_cross_validation(of_train, of_test, settings.seed), **found}


METHODS = {"places205": _places205, "voc07": _voc07, "digits8x8": _digits8x8}


def _features(backbone, splits, settings, device, precision) -> tuple[Any, ...]:
    """(features [n, d], labels) of the whole images, per split; and what the score records of skipped images."""
    views = resize_for_test(settings.size, AS[settings.target])
    broken: dict[str, list[str]] = {split: [] for split in splits}
    how = views, settings.batch_size, device, precision, settings.workers, None, settings.skip_broken
    features = [extract(backbone, images, *how, broken[split]) for split, images in splits.items()]
    return *features, note_broken(broken, **{split: len(images) for split, images in splits.items()})


def logistic_by_cross_validation(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    seed: int = 0,
    inverse_penalties: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0),
    folds: int = 5,
) -> dict[str, Any]:
    """Multinomial logistic regression by L-BFGS on standardised features; the L2 penalty is chosen by cross-validation.

    Args:
        train: (features [n, d], labels [n]).
        test: the same, to score the chosen model once.
        seed: of the folds, which are stratified by class.
        inverse_penalties: candidates for scikit-learn's C, compared by mean accuracy over folds of `train`; the smallest wins a
            tie.
        folds: number of folds.

    Returns:
        `top1` on test and `cross_validated_top1` of the chosen model, both in %; `correct`, the test images that are classified
        correctly (`sfrik.runs.correctness`); the chosen `C`, and `sweep`, the mean top-1 over the folds by C.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test = as_split(train, "train"), as_split(test, "test")
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, tol=1e-3))
    grid = {"logisticregression__C": sorted(inverse_penalties)}
    search = GridSearchCV(model, grid, cv=StratifiedKFold(folds, shuffle=True, random_state=seed))
    search.fit(train[0].numpy(), train[1].numpy())
    correct = search.predict(test[0].numpy()) == test[1].numpy()
    means = search.cv_results_["mean_test_score"]
    return {
        "top1": float(100 * correct.mean()),
        "correct": pack(correct),
        "cross_validated_top1": float(100 * search.best_score_),
        "C": float(search.best_params_["logisticregression__C"]),
        "sweep": {str(C): float(100 * mean) for C, mean in zip(sorted(inverse_penalties), means, strict=True)},
    }
