"""What a command will do and how much memory to expect of it, from its settings alone, without data.

Everything is counted on PyTorch's meta device or from the sizes that the data sets are known to have. The figures are sums of
the large parts; the true peak also holds the allocator's reserve and the library's own kernels (about 0.5 GiB with CUDA).
"""

from __future__ import annotations

import math

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
TARGETS = {"places205": (205, 20_500), "voc07": (20, 9_963), "digits8x8": (10, 1_797)}  # classes, images whose features are kept
FLOAT = 4  # bytes


def expected_images(settings: Settings) -> int | None:
    """Images that training reads in an epoch, before batches are made of them; None where the folder decides.

    For `extract-features`, kNN and logistic regression: the training images.
    """
    if isinstance(settings, TransferSettings):
        return None
    if isinstance(settings, PretrainSettings) and settings.dataset in UNLABELLED:
        return UNLABELLED[settings.dataset]
    per_class, classes, _ = SIZES.get(settings.dataset, (None, None, None))
    share = getattr(settings, "train_percent", 100)
    if settings.dataset == "imagenet" and share in LISTED:
        return LISTED[share]
    if settings.subset is None and settings.dataset in WHOLE:
        return WHOLE[settings.dataset]
    per_class = settings.subset or per_class
    return None if classes is None else max(1, round(per_class * share / 100)) * classes


def expected_steps(settings: Settings) -> tuple[int, int] | None:
    """Steps an epoch and epochs, of training or of extraction; None where the folder decides, or where nothing is iterated."""
    images = expected_images(settings)
    if images is None or isinstance(settings, KnnSettings):
        return None
    if isinstance(settings, PretrainSettings):  # the images that do not fill a batch wait for another epoch
        return (images // settings.batch_size, settings.epochs) if settings.ssl_method != "none" else (0, 0)
    if isinstance(settings, LogisticSettings):
        return (math.ceil(images / settings.batch_size), settings.epochs) if settings.solver == "sgd" else None
    if isinstance(settings, EvaluateSettings):
        return (0, 0) if settings.only_inference else (math.ceil(images / settings.batch_size), settings.epochs)
    scored = _scored_images(settings)
    return None if scored is None else (math.ceil(images / settings.batch_size) + math.ceil(scored / settings.batch_size), 1)


def expected_memory(settings: Settings, processes: int = 1, bytes_per_value: int | None = None) -> dict[str, float]:
    """Memory of a process in GiB by part.

    Args:
        settings: of any command.
        processes: that share the batch of pretraining or of an extraction.
        bytes_per_value: of activations; 4 with precision fp32, else 2, when None.
    """
    size = bytes_per_value or (4 if settings.precision == "fp32" else 2)
    parts = _of_pretraining(settings, processes, size) if isinstance(settings, PretrainSettings) else {}
    parts = parts or _of_evaluation(settings, processes, size)
    return {name: value / 2**30 for name, value in parts.items() if value}


def _of_pretraining(settings: PretrainSettings, processes: int, size: int) -> dict[str, float]:
    """Bytes of weights, gradients, momentum; of what each layer puts out for all views of a share of the batch; of the loss."""
    with torch.device("meta"):
        backbone = _backbone(settings)
        projector = build_projector(backbone.num_features, settings.mlp) if settings.arch != "pixels" else nn.Identity()
    network = nn.Sequential(backbone, projector)
    if settings.ssl_method == "none":
        return {"parameters": FLOAT * _count(network)}
    local = settings.batch_size // processes
    outputs = {side: _outputs(network, _channels(settings), side)[0] for side in set(settings.view_sizes)}
    return {
        "parameters": _bytes_per_weight(size, processes) * _count(network),
        "activations": local * size * sum(outputs[side] for side in settings.view_sizes),
        "loss": _of_loss(settings, local, processes),
    }


def _of_loss(settings: PretrainSettings, local: int, processes: int) -> float:
    """Bytes of an objective. The factors were counted at its peak, two views of bfloat16 rows: copies in float32 of the rows
    [n_local, q], of a Gram matrix [n, n] (SFRIK: a block of it), of VICReg's covariance [q, q].
    """
    n, q, views = settings.batch_size, settings.dim, len(settings.view_sizes)
    regularised = views if settings.regularise == "all" else len(settings.anchors)
    rows = (4.5 if settings.ssl_method == "sfrik" else 3.5) * views * local * q
    if processes > 1:  # the rows of all processes: one view at a time in SFRIK, whose gradient is in closed form
        rows += n * q * (1 if settings.ssl_method == "sfrik" else 2 * regularised)
    anchors = len(settings.anchors)
    pairs = anchors * (views - anchors) + anchors * (anchors - 1) / 2
    matrices = {
        "sfrik": 8 * min(BLOCK, local) * n,
        "auh": (2 * regularised + 2) * n**2,
        "simclr": pairs * 3.5 * (2 * n) ** 2,
        "vicreg": (regularised + 3) * q**2,
    }
    return FLOAT * (rows + matrices[settings.ssl_method])


def _of_evaluation(settings: FrozenSettings, processes: int, size: int) -> dict[str, float]:
    """Bytes of an evaluation, on the device or in main memory."""
    with torch.device("meta"):
        backbone = _backbone(settings)
    d, images = backbone.num_features, expected_images(settings) or 0
    classes, scored = SIZES.get(settings.dataset, (None, 0, None))[1], _scored_images(settings) or 0
    if isinstance(settings, KnnSettings):  # the training features stay in their file, a block of them is compared at a time
        block = min(BANK, images or BANK)
        return {"features": FLOAT * d * (2 * block + 2 * scored), "similarities": FLOAT * QUERIES * block}
    if isinstance(settings, LogisticSettings):
        if settings.solver == "lbfgs":
            return {"features": FLOAT * d * (images + scored) + 2 * 8 * d * images}  # scikit-learn's copies are in float64
        return {"features": FLOAT * d * (images + scored), "head": _of_head(settings, d, classes)}
    every, largest = _outputs(backbone, _channels(settings), settings.size)
    if getattr(settings, "weights", "") == "finetune" and not settings.only_inference:
        weights = _bytes_per_weight(size, 1) * (_count(backbone) + (d + 1) * classes)
        return {"parameters": weights, "activations": settings.batch_size * size * every}
    share = settings.batch_size // (processes if type(settings) is FeatureSettings else 1)
    parts = {"parameters": (FLOAT + _copy(size)) * _count(backbone), "activations": 2 * share * size * largest}
    if isinstance(settings, TransferSettings):
        classes, scored = TARGETS[settings.target]
        images = 0
    kept = scored if not type(settings) is FeatureSettings else images + scored
    return {**parts, "features": FLOAT * d * kept, "head": 0 if type(settings) is FeatureSettings else _of_head(settings, d, classes)}


def _scored_images(settings: FrozenSettings) -> int | None:
    """Test images, or images of the tuning split; None where the folder decides."""
    _, classes, test = SIZES.get(settings.dataset, (None, None, None))
    if settings.val_dataset == "val" or classes is None:
        return test
    return (settings.val_subset or 50) * classes


def _of_head(settings: FrozenSettings, d: int, classes: int) -> int:
    """Bytes of linear heads, one for each rate that is tried: weight, gradient, momentum."""
    return 3 * FLOAT * (d + 1) * classes * max(1, len(getattr(settings, "lr_sweep", ())))


def _bytes_per_weight(size: int, processes: int) -> int:
    """Weight, gradient and momentum in float32; a copy for mixed precision; DDP's buckets of gradients."""
    return 3 * FLOAT + _copy(size) + (FLOAT if processes > 1 else 0)


def _copy(size: int) -> int:
    return size if size < FLOAT else 0


def _channels(settings: Settings) -> int:
    return 1 if settings.dataset == "mnist5k" else 3


def _backbone(settings: Settings) -> nn.Module:
    if settings.arch == "pixels":
        return build_pixels(settings.size, _channels(settings))
    return build_backbone(settings.arch, settings.stem, _channels(settings))


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _outputs(network: nn.Module, channels: int, side: int) -> tuple[float, float]:
    """Values that the layers put out for one image of `side` pixels: of all layers, and of the largest one."""
    sizes = [channels * side * side]

    def add(module: nn.Module, inputs, output: torch.Tensor) -> None:
        sizes.append(output.numel() / 2)

    # a ReLU works in place
    leaves = [m for m in network.modules() if not list(m.children()) and not isinstance(m, (nn.Identity, nn.ReLU))]
    hooks = [module.register_forward_hook(add) for module in leaves]
    network(torch.empty(2, channels, side, side, device="meta"))
    for hook in hooks:
        hook.remove()
    return sum(sizes[1:]), max(sizes)
