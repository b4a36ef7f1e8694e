"""Detection of collapse: `diagnose` measures the embeddings of a run and classifies them.

The embeddings are those of two random views of training images, by backbone and projector in evaluation mode and float32. A
run without weights, such as those in the repository, is classified by the last epoch in its metrics.jsonl. The thresholds were
found on runs of the digits profile with benchmarks/diagnosis.py; docs/diagnosis.md lists the runs and the thresholds' limits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sfrik.datasets import Images, batches, describe_data, load_images, print_images
from sfrik.diagnostics import Measures, measure
from sfrik.errors import MissingImagesError, SfrikError
from sfrik.networks import Encoder, build_encoder, build_pixels, build_projector, load_backbone
from sfrik.objectives.factory import left_out
from sfrik.ops.random import derived_seed
from sfrik.runs.data import data_differences, recorded_data
from sfrik.runs.folder import Run
from sfrik.runs.records import RunSettings
from sfrik.settings import PretrainSettings
from sfrik.system.devices import channels_last, pick_device
from sfrik.system.download import no_downloads
from sfrik.system.files import file_hash
from sfrik.system.records import read_record
from sfrik.system.tensor_files import check_finite, read_safetensors
from sfrik.views.base import build_views

__all__ = [
    "COLLAPSED",
    "DIMENSIONAL",
    "FULL",
    "HEALTHY",
    "LEAST_RANK",
    "LEAST_UNIFORMITY",
    "MOST_ALIGNMENT",
    "UNKNOWN",
    "Diagnosis",
    "classify",
    "diagnose",
]

HEALTHY = "healthy"
DIMENSIONAL = "dimensional collapse"
FULL = "full collapse"
UNKNOWN = "unknown"
COLLAPSED = (DIMENSIONAL, FULL)

# Each is the logarithmic middle of the gap between the digits profile's runs on either side (docs/diagnosis.md).
LEAST_UNIFORMITY = 0.0018  # of -uniformity; below it all embeddings are nearly one point
LEAST_RANK = 7.4  # of the effective rank; below it they span only a few dimensions
# No part of the verdict, and no middle of a gap: two unrelated views have an alignment of 2.
MOST_ALIGNMENT = 1.5  # above it, a reason warns that two views of an image hardly agree


@dataclass(frozen=True, kw_only=True)
class Diagnosis(Measures):
    """The measures of a run's embeddings, and their classification.

    Attributes:
        verdict: "healthy" (not collapsed, whatever the accuracy), "dimensional collapse", "full collapse", or "unknown" if
            nothing was trained, or n or q is too small.
        reasons: sentences that explain the verdict and its limits.
        source: the files that were measured.
        epoch: number of epochs that were trained.
        backbone_sha256: SHA-256 of the weights.
        left_out: fraction of the kernel that SFRIK's loss left out, since its series was cut.
        features: the same measures of the backbone's features [n, d]; None if only the log exists. They have no energy per
            degree and no test of uniformity: features are non-negative, and no loss spreads them over a sphere.
    """

    verdict: str
    reasons: tuple[str, ...]
    source: str
    epoch: int
    backbone_sha256: str | None = None
    left_out: float = 0.0
    features: Measures | None = None


def diagnose(
    folder: str | Path, images: int = 2048, seed: int = 0, device: str = "auto", data_dir: str | None = None
) -> Diagnosis:
    """Measure the embeddings of a run, finished or not.

    The numbers of images and classes are printed. A reason reports images that are not those that the run was trained on, as far
    as its settings.json records them. Nothing is downloaded.

    Args:
        folder: the folder of the run.
        images: number of training images, at most all of them; fewer than q limit every rank.
        seed: of the choice of images and of the views.
        device: "auto", "cpu", "cuda" or "mps".
        data_dir: folder of the images, which the files of a run do not record; "data" when None.

    Raises:
        SfrikError: the folder is not a pretraining run, its weights do not fit its settings, or it has neither weights nor an
            epoch in metrics.jsonl. A MissingImagesError if the images are not in `data_dir`.
    """
    run = Run(folder)
    settings = _settings(run, data_dir)
    if images < 2:
        raise SfrikError(f"a diagnosis needs at least 2 images, got {images}")
    found = _weights(run, settings)
    if found is None:
        return _by_log(run, settings, "the weights are missing")
    print_images("training", found.images)
    differences = data_differences(recorded_data(run.folder), describe_data(found.images))
    others = (f"these are not the images that the run was trained on ({differences})",) if differences else ()
    (first, second), features = _embed(found.encoder, found.images, settings, images, seed, device)
    shown = replace(measure(features[0], features[1]), energy=(), energy_share=(), uniformity_test=None)
    about: dict[str, Any] = {"source": found.source, "epoch": found.epoch, "backbone_sha256": found.sha256, "features": shown}
    about |= {"left_out": left_out(settings)}
    if settings.ssl_method == "none":
        return Diagnosis(**vars(shown), verdict=UNKNOWN, reasons=(*_UNTRAINED, *others), **about)
    if not len(first):
        return replace(_by_log(run, settings, "there is no projector.safetensors beside the backbone"), features=shown)
    measures = measure(first, second)
    verdict, reasons = classify(measures)
    return Diagnosis(**vars(measures), verdict=verdict, reasons=(*reasons, *others), **about)


def classify(measures: Measures) -> tuple[str, tuple[str, ...]]:
    """The verdict on embeddings that a loss spreads over a sphere, and sentences that explain it.

    Args:
        measures: of the embeddings; uniformity and effective rank are compared with the thresholds of the verdict. An alignment
            above `MOST_ALIGNMENT` does not change it, but adds a reason where it is not a collapse.

    Returns:
        (verdict, reasons), as in `Diagnosis`.
    """
    most, rank = measures.largest_rank, measures.effective_rank
    rank_text = f"effective rank {rank:.1f} of at most {most}, the threshold being {LEAST_RANK:.3g}"
    if -measures.uniformity < LEAST_UNIFORMITY:
        verdict = FULL
        reasons = [f"uniformity {measures.uniformity:.2g}, above {-LEAST_UNIFORMITY:.2g}: all embeddings are nearly equal"]
    elif most < 2 * LEAST_RANK:
        verdict = UNKNOWN
        reasons = [
            f"no rank can exceed {most}, min(n, q), which is too close to the threshold {LEAST_RANK:.3g} of the effective rank"
        ]
    elif rank < LEAST_RANK:
        verdict = DIMENSIONAL
        reasons = [f"{rank_text}: the embeddings differ, but span only a few dimensions"]
    else:
        verdict = HEALTHY
        reasons = [f"uniformity {measures.uniformity:.3g}, below {-LEAST_UNIFORMITY:.2g}: the embeddings differ", rank_text]
    if measures.n < measures.q:
        reasons.append(f"{measures.n} images are fewer than the {measures.q} dimensions: no rank can exceed {measures.n}")
    if verdict not in COLLAPSED and measures.alignment > MOST_ALIGNMENT:
        reasons.append(f"alignment {measures.alignment:.3g}, above {MOST_ALIGNMENT:g}: {_UNALIGNED}")
    return verdict, tuple(reasons)


_UNALIGNED = (
    "two views of an image hardly agree, and such runs score badly; raise the weight of the alignment (--sfrik-sim-coeff or its "
    "counterpart), lower the learning rate (--base-lr), or use augmentations that leave more in common"
)
_UNTRAINED = (
    "nothing was pretrained (ssl_method none): these are the features of the backbone as initialised, or the pixels",
    "the thresholds are for embeddings that a loss spreads, and do not apply",
)


def _settings(run: Run, data_dir: str | None) -> PretrainSettings:
    path = run.folder / "settings.json"
    if not path.is_file():
        raise SfrikError(f"{run.folder} is not the folder of a run (no settings.json): pass PROFILE/NAME or the folder of a run")
    saved = read_record(path, RunSettings)["settings"]
    if "ssl_method" not in saved:
        raise SfrikError(f"{run.folder} is not a pretraining run (no ssl_method in settings.json): pass the folder of one")
    moved = {"data_dir": data_dir} if data_dir else {}
    # not compiled: that would take minutes for a few passes
    return PretrainSettings.parse({**saved, **moved, "compile": False}, str(path))


class _Weights(NamedTuple):
    """A trained encoder (its projector `Identity` where none was saved), its training images, and the files it came from."""

    encoder: Encoder
    images: Images
    source: str
    epoch: int
    sha256: str | None


def _weights(run: Run, settings: PretrainSettings) -> _Weights | None:
    """The encoder of a run; None if the folder has neither the weights of a finished run nor a checkpoint."""
    finished = run.backbone.is_file()
    if not finished and not run.checkpoints.exist:
        return None
    images = _images(run, settings)
    if not finished:
        checkpoint = run.checkpoints.load()
        assert checkpoint is not None  # `exist` is true
        encoder = build_encoder(settings, images.channels)
        _load(encoder, checkpoint["model"], run.checkpoints.paths[0])
        return _Weights(encoder, images, "checkpoint.pt", checkpoint["place"]["epoch"], None)
    trained = settings.ssl_method != "none"
    if settings.arch == "pixels":
        backbone = build_pixels(settings.size, images.channels)
    else:
        backbone = load_backbone(run.backbone, **settings.network, channels=images.channels)
    encoder, sources = Encoder(backbone, nn.Identity()), [run.backbone.name]
    if trained and run.projector.is_file():
        encoder.projector = build_projector(backbone.num_features, settings.mlp)
        _load(encoder.projector, read_safetensors(run.projector)[0], run.projector)
        sources.append(run.projector.name)
    return _Weights(encoder, images, " and ".join(sources), settings.epochs if trained else 0, file_hash(run.backbone))


def _images(run: Run, settings: PretrainSettings) -> Images:
    """The training images of a run, without a download."""
    try:
        with no_downloads():
            return load_images(settings.dataset, "pretrain", settings.data_dir, settings.subset)
    except MissingImagesError as error:
        if "data_dir" in settings.unused():  # the images come with a package
            raise
        raise MissingImagesError(
            f"{run.folder} was trained on images ({settings.dataset}) that are not in {settings.data_dir}: name their folder "
            "with --data-dir, which the files of a run do not record (nothing is downloaded for a diagnosis)"
        ) from error


def _load(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    check_finite(state, path)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise SfrikError(f"{path} does not fit the settings.json beside it ({first}): both must belong to one run") from error


@torch.no_grad()
def _embed(
    encoder: Encoder, images: Images, settings: PretrainSettings, most: int, seed: int, device: str
) -> tuple[list[Tensor], list[Tensor]]:
    """Embeddings [n, q] and features [n, d] of two views each; of multi-crop the first two views, as in the training log."""
    target = pick_device(device)
    encoder = channels_last(encoder, target).eval()
    views = build_views(settings.augmentations, settings.size, settings.dataset, settings.input_pipeline, **settings.crops)
    chosen = np.random.default_rng(derived_seed("diagnosis", seed)).permutation(len(images))[:most]
    embeddings: list[list[Tensor]] = [[], []]
    features: list[list[Tensor]] = [[], []]
    size = min(settings.batch_size, 256)  # in evaluation mode an image's embedding does not depend on the others
    drawn = batches(images, chosen, views, size, (seed,), target, settings.workers, skip_broken=settings.skip_broken)
    for batch, _, _ in drawn:
        for view, of_view, features_of_view in zip(batch[:2], embeddings, features, strict=True):
            feature = encoder.backbone(view.contiguous(memory_format=torch.channels_last))
            features_of_view.append(feature.float().cpu())
            if not isinstance(encoder.projector, nn.Identity):
                of_view.append(encoder.projector(feature).float().cpu())
    return [torch.cat(parts) if parts else torch.empty(0) for parts in embeddings], [torch.cat(parts) for parts in features]


def _by_log(run: Run, settings: PretrainSettings, why: str) -> Diagnosis:
    """A diagnosis from the last epoch in metrics.jsonl: one batch, in training mode and the precision of training."""
    lines = run.epochs()
    if not lines:
        raise SfrikError(f"{run.folder} has neither weights nor an epoch in metrics.jsonl: pretrain it first")
    line = lines[-1]
    logged: dict[str, Any] = {name: line.get(name) for name in ("alignment", "uniformity", "effective_rank")}
    if wrong := [name for name, value in logged.items() if type(value) not in (int, float) or not math.isfinite(value)]:
        raise SfrikError(f"{run.folder / 'metrics.jsonl'} has no finite number {wrong[0]} in its last epoch: pretrain it again")
    measures = Measures(settings.batch_size, settings.dim, **logged)
    verdict, reasons = classify(measures)
    missing = (
        f"{why}: these values are from the log, of the last epoch's last batch in training mode; RankMe, the energy per degree, "
        "the spectrum and the test of uniformity need the weights: pretrain it again"
    )
    return Diagnosis(
        **vars(measures),
        verdict=verdict,
        reasons=(*reasons, missing),
        source="metrics.jsonl",
        epoch=line["epoch"] + 1,
        left_out=left_out(settings),
    )
