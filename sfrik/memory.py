"""What a command will do and how much memory to expect of it, from its settings alone, without data.

Everything is counted on PyTorch's meta device or from the sizes that the data sets are known to have. The figures are sums of
the large parts; the true peak also holds the allocator's reserve and the library's own kernels (about 0.5 GiB with CUDA).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import nn

from sfrik.evaluate.knn import BANK, QUERIES
from sfrik.mmd import BLOCK
from sfrik.networks import build_backbone, build_pixels, build_projector
from sfrik.settings import (
    EvaluateSettings,
    FeatureSettings,
    FrozenSettings,
    KnnSettings,
    LogisticSettings,
    PretrainSettings,
    Settings,
    TransferSettings,
)

__all__ = ["expected_images", "expected_memory", "expected_steps"]

# labelled training images a class (ImageNet's differ), classes, test images
SIZES = {"mnist5k": (350, 10, 1000), "cifar10": (5000, 10, 10_000), "stl10": (500, 10, 8000), "imagenet": (None, 1000, 50_000)}
WHOLE = {"imagenet": 1_281_167}
UNLABELLED = {"stl10": 100_000}
LISTED = {1: 12_811, 10: 128_116}  # lines of SimCLR's lists of ImageNet's labels
# of transfer: classes, training images, test images
TARGETS = {"places205": (205, 2_448_873, 20_500), "voc07": (20, 5_011, 4_952), "digits8x8": (10, 1_195, 602)}
FLOAT = 4  # bytes


def expected_images(settings: Settings) -> int | None:
    """Images of an epoch, before batches are made of them; None where the folder decides.

    Where nothing is trained on images (extraction, kNN, VOC07's SVMs) those that are scored count too.
    """
    train, scored = _train_images(settings), 0
    if isinstance(settings, EvaluateSettings) and settings.only_inference:
        return _scored_images(settings)
    if type(settings) is FeatureSettings or (isinstance(settings, TransferSettings) and settings.target != "places205"):
        scored = _scored_images(settings)
    return None if train is None or scored is None else train + scored


def expected_steps(settings: Settings) -> tuple[int, int] | None:
    """Steps an epoch and epochs, of training or of extraction; None where the folder decides, or where there are none."""
    train = _train_images(settings)
    if train is None or isinstance(settings, KnnSettings):
        return None
    if isinstance(settings, PretrainSettings):  # the images that do not fill a batch wait for another epoch
        return (train // settings.batch_size, settings.epochs) if settings.ssl_method != "none" else (0, 0)
    steps = math.ceil(train / settings.batch_size)
    if isinstance(settings, LogisticSettings):
        return (steps, settings.epochs) if settings.solver == "sgd" else None
    if isinstance(settings, EvaluateSettings):
        return None if settings.only_inference else (steps, settings.epochs)
    if isinstance(settings, TransferSettings):
        return (steps, settings.epochs) if settings.target == "places205" else None
    scored = _scored_images(settings)
    return None if scored is None else (steps + math.ceil(scored / settings.batch_size), 1)


def expected_memory(settings: Settings, processes: int = 1, bytes_per_value: int | None = None) -> dict[str, float]:
    """Memory of a process in GiB by part.

    Args:
        settings: of any command.
        processes: that share the batch of pretraining or of an extraction.
        bytes_per_value: of activations; 4 with precision fp32, else 2, when None.
    """
    size = bytes_per_value or (4 if settings.precision == "fp32" else 2)
    count = _of_pretraining if isinstance(settings, PretrainSettings) else _of_evaluation
    parts = count(settings, processes, size)
    return {name: value / 2**30 for name, value in parts.items() if value}


def _of_pretraining(settings: PretrainSettings, processes: int, size: int) -> dict[str, float]:
    """Bytes of weights, gradients, momentum; of what each layer puts out for all views of a share of the batch; of the loss."""
    networks = [_counts(settings, side, settings.mlp) for side in settings.view_sizes]
    if settings.ssl_method == "none":
        return {"parameters": FLOAT * networks[0].weights}
    local = settings.batch_size // processes
    return {
        "parameters": _bytes_per_weight(size, processes) * networks[0].weights,
        "activations": local * size * sum(network.outputs for network in networks),
        "loss": _of_loss(settings, local, processes),
    }


def _of_loss(settings: PretrainSettings, local: int, processes: int) -> float:
    """Bytes of an objective. The factors were counted at its peak, two views of bfloat16 rows: copies in float32 of the rows
    [n_local, q], of a Gram matrix [n, n] (SFRIK: a block of it), of VICReg's covariance [q, q].
    """
    n, q, views = settings.batch_size, settings.dim, len(settings.view_sizes)
    regularised = views if settings.regularise == "all" else len(settings.anchors)
    rows = (4.5 if settings.ssl_method == "sfrik" else 3.5) * views * local * q
    if processes > 1:  # the rows of all processes; the gradient of all of them too where it is not in closed form
        rows += n * q * regularised * (1 if settings.ssl_method == "sfrik" else 2)
    anchors = len(settings.anchors)
    pairs = anchors * (views - anchors) + anchors * (anchors - 1) / 2
    matrices = {
        "sfrik": 8 * min(BLOCK, local) * n,
        "auh": (2 * regularised + 2) * n**2,
        "simclr": pairs * 3.5 * (2 * n) ** 2,
        "vicreg": q**2,
    }
    return FLOAT * (rows + matrices[settings.ssl_method])


def _of_evaluation(settings: FrozenSettings, processes: int, size: int) -> dict[str, float]:
    """Bytes of an evaluation, on the device or in main memory; what the folder decides is left out."""
    backbone = _counts(settings, settings.size)
    d, train, scored = backbone.features, _train_images(settings) or 0, _scored_images(settings) or 0
    if isinstance(settings, KnnSettings):  # the training features stay in their file, a block of them is compared at a time
        block = min(BANK, train or BANK)
        return {"features": FLOAT * d * (2 * block + 2 * scored), "similarities": FLOAT * QUERIES * block}
    if isinstance(settings, LogisticSettings):
        if settings.solver == "lbfgs":  # scikit-learn's copies are in float64
            return {"features": FLOAT * d * (train + scored) + 2 * 8 * d * train}
        return {"features": FLOAT * d * (train + scored), "head": _of_head(settings, d)}
    if isinstance(settings, EvaluateSettings) and settings.weights == "finetune" and not settings.only_inference:
        weights = _bytes_per_weight(size, 1) * (backbone.weights + (d + 1) * _classes(settings))
        return {"parameters": weights, "activations": settings.batch_size * size * backbone.outputs}
    parts = {"parameters": (FLOAT + _copy(size)) * backbone.weights}
    # nothing is kept for a backward pass: what goes into one layer and what comes out of it
    parts["activations"] = 2 * size * backbone.largest * settings.batch_size / processes
    if isinstance(settings, EvaluateSettings) or getattr(settings, "target", "") == "places205":
        return {**parts, "features": FLOAT * d * scored, "head": _of_head(settings, d)}
    return {**parts, "features": FLOAT * d * (train + scored)}


def _train_images(settings: Settings) -> int | None:
    """Images that are trained on; None where the folder decides."""
    if isinstance(settings, TransferSettings):
        return TARGETS[settings.target][1]
    if isinstance(settings, PretrainSettings) and settings.dataset in UNLABELLED:
        return UNLABELLED[settings.dataset]
    share = settings.train_percent if isinstance(settings, EvaluateSettings) else 100
    if settings.dataset == "imagenet" and share in LISTED:
        return LISTED[share]
    if settings.dataset in WHOLE and settings.subset is None:
        return WHOLE[settings.dataset]
    if settings.dataset not in SIZES:
        return None
    per_class, classes, _ = SIZES[settings.dataset]
    return max(1, round((settings.subset or per_class) * share / 100)) * classes


def _scored_images(settings: FrozenSettings) -> int | None:
    """Test images, or images of the tuning split; None where the folder decides."""
    if isinstance(settings, TransferSettings):
        return TARGETS[settings.target][2]
    if settings.dataset not in SIZES:
        return None
    _, classes, test = SIZES[settings.dataset]
    return test if settings.val_dataset == "val" else (settings.val_subset or 50) * classes


def _classes(settings: FrozenSettings) -> int:
    if isinstance(settings, TransferSettings):
        return TARGETS[settings.target][0]
    return SIZES[settings.dataset][1] if settings.dataset in SIZES else 0


def _of_head(settings: FrozenSettings, d: int) -> int:
    """Bytes of linear heads, one for each rate that is tried: weight, gradient, momentum."""
    return 3 * FLOAT * (d + 1) * _classes(settings) * max(1, len(getattr(settings, "lr_sweep", ())))


def _bytes_per_weight(size: int, processes: int) -> int:
    """Weight, gradient and momentum in float32; a copy for mixed precision; DDP's buckets of gradients."""
    return 3 * FLOAT + _copy(size) + (FLOAT if processes > 1 else 0)


def _copy(size: int) -> int:
    return size if size < FLOAT else 0


class _Counts(NamedTuple):
    """Of a network: dimension of the backbone's features, parameters, values put out for an image by all layers and by one."""

    features: int
    weights: int
    outputs: float
    largest: float


def _counts(settings: Settings, side: int, mlp: str = "") -> _Counts:
    """Of the backbone, with a projector where `mlp` is given, on images of `side` pixels."""
    return _counted(settings.arch, settings.stem, 1 if settings.dataset == "mnist5k" else 3, side, mlp)


@lru_cache
def _counted(arch: str, stem: str, channels: int, side: int, mlp: str) -> _Counts:
    with torch.device("meta"):
        backbone = build_pixels(side, channels) if arch == "pixels" else build_backbone(arch, stem, channels)
        projector = build_projector(backbone.num_features, mlp) if mlp and arch != "pixels" else nn.Identity()
        images = torch.empty(2, channels, side, side)
    network = nn.Sequential(backbone, projector)
    sizes = [0.0]

    def add(module: nn.Module, inputs, output: torch.Tensor) -> None:
        sizes.append(output.numel() / len(images))

    # a ReLU works in place
    leaves = [m for m in network.modules() if not list(m.children()) and not isinstance(m, (nn.Identity, nn.ReLU))]
    for module in leaves:
        module.register_forward_hook(add)
    network(images)
    weights = sum(parameter.numel() for parameter in network.parameters())
    return _Counts(backbone.num_features, weights, sum(sizes), max(sizes))
