"""Steps, images and peak memory of a command, predicted from its settings without data.

Networks are counted on PyTorch's meta device, losses on fake tensors (`sfrik.cost.loss_memory`), images from the known sizes of
the data sets. The figures are sums of the large parts; the true peak also contains the allocator's reserve and the libraries'
kernels (about 0.5 GiB with CUDA).
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import nn

from sfrik.cost.loss_memory import loss_peak
from sfrik.evaluate.feature_files import count_features
from sfrik.evaluate.knn import QUERIES, block_rows
from sfrik.networks import build_backbone, build_projector, check_network
from sfrik.networks.libraries import without_values
from sfrik.objectives.factory import build_objective
from sfrik.pretrain.accumulate import micro_batches
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

# labelled training images per class (ImageNet's classes differ), classes, test images
SIZES = {"mnist5k": (350, 10, 1000), "cifar10": (5000, 10, 10_000), "cifar100": (500, 100, 10_000), "stl10": (500, 10, 8000)}
SIZES |= {"imagenet": (None, 1000, 50_000)}
WHOLE = {"imagenet": 1_281_167}
UNLABELLED = {"stl10": 100_000}
LISTED = {1: 12_811, 10: 128_116}  # percent of ImageNet's labels -> lines of SimCLR's list
# data sets of `sfrik transfer`: classes, training images, test images
TARGETS = {"places205": (205, 2_448_873, 20_500), "voc07": (20, 5_011, 4_952), "digits8x8": (10, 1_195, 602)}
FLOAT = 4  # bytes


def expected_images(settings: Settings) -> int | None:
    """Number of images, or of features that are read, per epoch, before they are divided into batches; None if it is not known.

    Extraction and transfer by SVMs also count the images that are scored.
    """
    train, scored = _train_images(settings), 0
    if isinstance(settings, EvaluateSettings) and settings.only_inference:
        return _scored_images(settings)
    if type(settings) is FeatureSettings or (isinstance(settings, TransferSettings) and settings.target != "places205"):
        assert isinstance(settings, FrozenSettings)  # both classes are
        scored = _scored_images(settings)
    return None if train is None or scored is None else train + scored


def expected_steps(settings: Settings) -> tuple[int, int] | None:
    """Steps per epoch and epochs, of training or extraction; None if they depend on the folder, or if there are no steps."""
    train = _train_images(settings)
    if train is None or isinstance(settings, KnnSettings):
        return None
    if isinstance(settings, PretrainSettings):  # the last images, fewer than a batch, are dropped
        return (train // settings.batch_size, settings.epochs) if settings.ssl_method != "none" else (0, 0)
    steps = math.ceil(train / settings.batch_size)
    if isinstance(settings, LogisticSettings):
        return (steps, settings.epochs) if settings.solver == "sgd" else None
    if isinstance(settings, EvaluateSettings):
        return None if settings.only_inference else (steps, settings.epochs)
    if isinstance(settings, TransferSettings):
        return (steps, settings.epochs) if settings.target == "places205" else None
    assert isinstance(settings, FrozenSettings)  # an extraction
    scored = _scored_images(settings)
    return None if scored is None else (steps + math.ceil(scored / settings.batch_size), 1)


def expected_memory(settings: Settings, processes: int = 1) -> dict[str, float]:
    """Memory per process in GiB, by part; for pretraining, at the peak of a step.

    Args:
        settings: the settings of any command. Precision "auto" counts as 2 bytes per value, and device "auto" as a GPU.
        processes: number of processes that the batch of pretraining or feature extraction is divided over.

    Raises:
        SfrikError: as `sfrik.networks.check_network`.
    """
    check_network(settings)
    size = FLOAT if settings.precision == "fp32" else 2
    if isinstance(settings, PretrainSettings):
        parts = _of_pretraining(settings, processes, size)
    else:
        assert isinstance(settings, FrozenSettings)  # all other commands evaluate given weights
        parts = _of_evaluation(settings, processes, size)
    return {name: value / 2**30 for name, value in parts.items() if value}


def _of_pretraining(settings: PretrainSettings, processes: int, size: int) -> dict[str, float]:
    """Bytes at the peak of a step: the largest of four moments.

    "parameters" are weights, the optimizer's state and, at the moments when they exist, gradients, copies in low precision, DDP's
    buckets, and the update, which LARS computes in a copy of the gradients. "activations" are what the network keeps for the
    backward pass, for the local batch or a micro-batch. "loss" is what the objective allocates beyond the embeddings: all of it
    while it is computed, afterwards their gradient in float32, which is kept until the end of the step.
    """
    networks = [_counts(settings, side, settings.mlp) for side in settings.view_sizes]
    if settings.ssl_method == "none":
        return {"parameters": FLOAT * networks[0].weights}
    local, views = settings.batch_size // processes, len(networks)
    parts = micro_batches(local, settings.micro_batch)
    values = views * local * settings.dim  # of the embeddings of all views
    always = {
        "images": FLOAT * local * settings.channels * sum(side**2 for side in settings.view_sizes),
        "embeddings": size * values,
    }
    kept = [math.ceil(local / parts) * network.kept(size) for network in networks]
    # bytes per weight: weight and optimizer's state, with DDP its bucket; the copy for mixed precision
    own, copy = FLOAT * (1 + settings.state_size + (processes > 1)), _copy(size)
    loss, after = _of_loss(settings, processes, size), {"loss": FLOAT * values}
    if parts == 1:
        at_loss = {"parameters": own + copy, "activations": sum(kept), "loss": loss}
        gradient = {"embeddings": (size + copy + FLOAT) * values}  # the gradient on its way into the network, in both precisions
    else:  # the network's backward pass comes later: here only the loss's gradient, and a copy scaled by autograd
        at_loss = {"parameters": own, "loss": max(loss, 2 * FLOAT * values + copy * values / views)}
        gradient = {"embeddings": 2 * size * values}
    # the gradients of a weight from two views are added in the network's precision, then to those of earlier micro-batches
    accumulating = own + copy + size + (FLOAT if parts > 1 else 0)
    largest = 2 * size * networks[0].largest_weight / networks[0].weights  # the second gradient, and the sum
    last_view = {**after, **gradient, "parameters": accumulating, "activations": sum(kept)}
    first_view = {**after, "parameters": accumulating + largest, "activations": _first_pass(settings, kept)}
    update = {**after, "parameters": own + FLOAT * (2 if settings.optimizer == "lars" else 1)}
    moments = at_loss, last_view, first_view, update  # the backward pass starts with the last view and ends with the first
    found = [{**always, **moment, "parameters": moment["parameters"] * networks[0].weights} for moment in moments]
    most = max(found, key=lambda moment: sum(moment.values()))
    return {name: most[name] for name in ("parameters", "activations", "images", "embeddings", "loss") if name in most}


def _of_loss(settings: PretrainSettings, processes: int, size: int) -> float:
    return loss_peak(
        build_objective(settings, lambda note: None),
        settings.batch_size,
        settings.dim,
        processes,
        len(settings.view_sizes),
        settings.anchors,
        settings.regularise,
        half=size < FLOAT,
        device="cpu" if settings.device == "cpu" else "cuda",
    )


def _first_pass(settings: PretrainSettings, kept: list[float]) -> float:
    """Bytes kept for the first view or, with multi-crop, for all views of its size, which pass the network together."""
    sizes = settings.view_sizes
    return sum(k for k, side in zip(kept, sizes, strict=True) if side == sizes[0]) if settings.multi_crop else kept[0]


def _of_evaluation(settings: FrozenSettings, processes: int, size: int) -> dict[str, float]:
    """Bytes of an evaluation, on the device or in main memory, without what depends on the folder."""
    backbone = _counts(settings, settings.size)
    read = count_features(settings.features_dir) if settings.features_dir else None
    d, train, scored = read.dim if read else backbone.features, _train_images(settings) or 0, _scored_images(settings) or 0
    if isinstance(settings, KnnSettings):  # training features stay on disk and are compared block by block
        most = block_rows(torch.device("cpu" if settings.device == "cpu" else "cuda"))
        block, neighbours = min(most, train or most), (FLOAT + 8) * scored * max(settings.nb_knn)
        return {"features": FLOAT * d * (2 * block + scored), "similarities": FLOAT * QUERIES * block, "neighbours": neighbours}
    if isinstance(settings, LogisticSettings):
        if settings.solver == "lbfgs":  # scikit-learn makes copies in float64
            return {"features": FLOAT * d * (train + scored) + 2 * 8 * d * train}
        return {"features": FLOAT * d * (train + scored), "head": _of_head(settings, d)}
    if isinstance(settings, EvaluateSettings) and settings.weights == "finetune" and not settings.only_inference:
        weights = (3 * FLOAT + _copy(size)) * (backbone.weights + (d + 1) * _classes(settings))
        return {"parameters": weights, "activations": settings.batch_size * backbone.kept(size)}
    parts: dict[str, float] = {"parameters": (FLOAT + _copy(size)) * backbone.weights}
    # without a backward pass: input and output of one layer
    parts["activations"] = 2 * size * backbone.largest * settings.batch_size / processes
    if isinstance(settings, EvaluateSettings) or getattr(settings, "target", "") == "places205":
        return {**parts, "features": FLOAT * d * scored, "head": _of_head(settings, d)}
    return {**parts, "features": FLOAT * d * (train + scored)}


def _train_images(settings: Settings) -> int | None:
    """Number of training images; None if it depends on the folder."""
    if isinstance(settings, TransferSettings):
        return TARGETS[settings.target][1]
    if settings.features_dir:
        return read.train if (read := count_features(settings.features_dir)) else None
    if getattr(settings, "image_dir", "") or (getattr(settings, "label_list", "") and settings.dataset != "imagenet"):
        return None
    if isinstance(settings, PretrainSettings) and settings.dataset in UNLABELLED:
        return UNLABELLED[settings.dataset]
    share = settings.train_percent if isinstance(settings, EvaluateSettings) else 100
    if settings.dataset == "imagenet" and share in LISTED:
        return LISTED[share]
    if settings.dataset in WHOLE and (settings.subset is None or share < 100):  # the share is one of all images
        return round(WHOLE[settings.dataset] * share / 100)
    if settings.dataset not in SIZES:
        return None
    per_class, classes, _ = SIZES[settings.dataset]
    images = settings.subset or per_class
    assert images is not None  # if it is None, WHOLE has the number
    return max(1, round(images * share / 100)) * classes


def _scored_images(settings: FrozenSettings) -> int | None:
    """Number of test images, or of the tuning split's; None if it depends on the folder."""
    if isinstance(settings, TransferSettings):
        return TARGETS[settings.target][2]
    if settings.features_dir:
        return read.scored if (read := count_features(settings.features_dir)) else None
    if settings.dataset not in SIZES:
        return None
    _, classes, test = SIZES[settings.dataset]
    return test if settings.val_dataset == "val" else (settings.val_subset or 50) * classes


def _classes(settings: FrozenSettings) -> int:
    if isinstance(settings, TransferSettings):
        return TARGETS[settings.target][0]
    if settings.features_dir:
        return read.classes if (read := count_features(settings.features_dir)) else 0
    return SIZES[settings.dataset][1] if settings.dataset in SIZES else 0


def _of_head(settings: FrozenSettings, d: int) -> int:
    """Bytes of the linear heads, one per learning rate of a sweep: weight, gradient, momentum."""
    return 3 * FLOAT * (d + 1) * _classes(settings) * max(1, len(getattr(settings, "lr_sweep", ())))


def _copy(size: int) -> int:
    """Bytes per weight of the copy for mixed precision."""
    return size if size < FLOAT else 0


class _Counts(NamedTuple):
    """Sizes of a network.

    Attributes:
        features: dimension of the backbone's features.
        weights: number of parameters.
        values: values kept for the backward pass, per image.
        indices: bytes of indices (max-pooling) kept for the backward pass, per image.
        largest: values in the largest output of a layer, per image.
        largest_weight: values in the largest weight tensor.
    """

    features: int
    weights: int
    values: float
    indices: float
    largest: float
    largest_weight: int

    def kept(self, size: int) -> float:
        """Bytes per image kept for the backward pass, at `size` bytes per value."""
        return size * self.values + self.indices


def _counts(settings: Settings, side: int, mlp: str = "") -> _Counts:
    """Sizes of the backbone, followed by the projector if `mlp` is given, on images of `side` pixels."""
    network = {**settings.network, "size": side} if settings.arch == "pixels" else settings.network
    return _counted(tuple(network.items()), settings.channels, side, "" if settings.arch == "pixels" else mlp)


@lru_cache
def _counted(network: tuple[tuple[str, Any], ...], channels: int, side: int, mlp: str) -> _Counts:
    return without_values(partial(_count, network, channels, side, mlp))


class _FusedAttention(torch.autograd.Function):
    """What attention returns and keeps: the kernels of CPUs and GPUs do not store its matrix, but those of the meta device do."""

    @staticmethod
    def forward(ctx, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        # the kernels write it in the order of the query's memory, so that what follows needs no copy
        same = query.shape[-1] == value.shape[-1]
        attended = torch.zeros_like(query) if same else query.new_zeros(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, attended, query.new_zeros(query.shape[:-1]))  # the last: log of a row's sum
        return attended


def _fused_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_, **__) -> torch.Tensor:
    attended = _FusedAttention.apply(query, key, value)
    assert isinstance(attended, torch.Tensor)
    return attended


def _count(network: tuple[tuple[str, Any], ...], channels: int, side: int, mlp: str) -> _Counts:
    backbone = build_backbone(**dict(network), channels=channels)
    projector = build_projector(backbone.num_features, mlp) if mlp else nn.Identity()
    images = torch.zeros(2, channels, side, side)
    whole = nn.Sequential(backbone, projector)
    weights = {parameter.untyped_storage()._cdata for parameter in whole.parameters()}
    largest, kept = 0.0, {}

    def look(module: nn.Module, inputs, output: torch.Tensor) -> None:
        nonlocal largest
        largest = max(largest, output.numel() / len(images))

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if x.ndim > 1 and storage._cdata not in weights:  # not the statistics of BatchNorm
            kept[storage._cdata] = storage, x.is_floating_point()  # keep the storage alive: its address must not be reused
        return x

    for module in whole.modules():
        if not list(module.children()):
            module.register_forward_hook(look)
    fused = patch.object(F, "scaled_dot_product_attention", _fused_attention)
    with fused, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        whole(images)
    values, indices = (sum(s.nbytes() for s, is_value in kept.values() if is_value == floating) for floating in (True, False))
    counts = [parameter.numel() for parameter in whole.parameters()] or [0]
    n = len(images)
    return _Counts(backbone.num_features, sum(counts), values / FLOAT / n, indices / n, largest, max(counts))
