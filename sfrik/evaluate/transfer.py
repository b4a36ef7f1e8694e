"""Transfer: the frozen backbone on another data set's images (the paper's tables 3 and 4).

| target | protocol | score |
|---|---|---|
| places205 | linear probe with augmentation, as `sfrik.evaluate.linear` has it | `top1`, `top5` in % |
| voc07 | one-against-all linear SVMs on features of the whole images (`sfrik.evaluate.svm`) | `map` over 20 classes in % |
| digits8x8 | multinomial logistic regression on features of the whole images; ours, for the digits profile | `top1` in % |

The paper names the first two and gives no code for them; VICReg's paper, which it follows, describes them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sfrik.datasets.images import Images
from sfrik.datasets.transfer import load_target
from sfrik.errors import SfrikError
from sfrik.evaluate.checkpoint import EvaluationCheckpoint
from sfrik.evaluate.features import extract
from sfrik.evaluate.inputs import finished_score, frozen_backbone, weights_path
from sfrik.evaluate.linear import linear_probe
from sfrik.evaluate.svm import mean_average_precision
from sfrik.networks import Backbone
from sfrik.settings import TransferSettings
from sfrik.system.devices import channels_last, pick_device, pick_precision
from sfrik.system.files import file_hash
from sfrik.views.base import resize_for_test

__all__ = ["logistic_by_cross_validation", "transfer"]

# The data set whose views and normalisation a target shares.
AS = {"places205": "imagenet", "voc07": "imagenet", "digits8x8": "mnist5k"}


def transfer(settings: TransferSettings, progress: bool = True) -> dict[str, Any]:
    """Score the backbone on `settings.target`: writes transfer_<target>.json. A finished score is returned at once.

    Whatever is chosen (a cost, a penalty) is chosen on training images of the target; its test images are scored once.

    Raises:
        SfrikError: images or weights that are not there, or `val_dataset` train: the targets have no tuning split.
    """
    if settings.val_dataset == "train":
        raise SfrikError(
            f"{settings.target} has no tuning split: its choices are made on its training images; use --val-dataset val"
        )
    run, name, known = finished_score(f"transfer_{settings.target}", settings)
    if known:
        return known
    folder = settings.target_dir or settings.data_dir
    train, test = (load_target(settings.target, split, folder) for split in ("train", "test"))
    device = pick_device(settings.device)
    precision = pick_precision(settings.precision, device)
    backbone = channels_last(frozen_backbone(settings, train.channels), device)
    digest = file_hash(weights_path(settings))
    with EvaluationCheckpoint(run, name, settings, digest, train, precision) as checkpoint:
        score = METHODS[settings.target](backbone, train, test, settings, device, precision, progress, checkpoint)
        score = {"target": settings.target, "images": len(test), "train_images": len(train), **score}
        return run.save_result(name, settings, score, digest)


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
    of_train, of_test = _features(backbone, (train, test), settings, device, precision)
    return mean_average_precision(of_train, of_test, settings.svm_costs, settings.seed, train.classes)


def _digits8x8(backbone, train, test, settings, device, precision, progress, checkpoint) -> dict[str, Any]:
    of_train, of_test = _features(backbone, (train, test), settings, device, precision)
    return logistic_by_cross_validation(of_train, of_test, settings.seed)


METHODS = {"places205": _places205, "voc07": _voc07, "digits8x8": _digits8x8}


def _features(backbone, splits, settings, device, precision) -> list[tuple[Tensor, Tensor]]:
    """(features [n, d], labels) of whole images, each split."""
    views = resize_for_test(settings.size, AS[settings.target])
    return [extract(backbone, images, views, settings.batch_size, device, precision, settings.workers) for images in splits]


def logistic_by_cross_validation(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    seed: int = 0,
    inverse_penalties: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0),
    folds: int = 5,
) -> dict[str, Any]:
    """Multinomial logistic regression by L-BFGS on standardised features; the L2 penalty by cross-validation on `train`.

    Args:
        train, test: (features [n, d], labels [n]) each.
        seed: of the folds, in which each class has its share.
        inverse_penalties: scikit-learn's C, to choose from by mean accuracy over the folds; the smallest wins a tie.

    Returns:
        `top1` on test and the chosen one's `cross_validated_top1`, both in %, and `C`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, tol=1e-3))
    grid = {"logisticregression__C": sorted(inverse_penalties)}
    search = GridSearchCV(model, grid, cv=StratifiedKFold(folds, shuffle=True, random_state=seed))
    search.fit(train[0].numpy(), train[1].numpy())
    return {
        "top1": float(100 * search.score(test[0].numpy(), test[1].numpy())),
        "cross_validated_top1": float(100 * search.best_score_),
        "C": float(search.best_params_["logisticregression__C"]),
    }
