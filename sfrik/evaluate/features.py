"""Features of a frozen backbone, in the order of the data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfrik.datasets import Images, batches, load_images
from sfrik.devices import autocast, pick_device, pick_precision
from sfrik.errors import SfrikError
from sfrik.networks import build_pixels, load_backbone
from sfrik.runs import Run, file_hash, read_json, write_json
from sfrik.settings import FeatureSettings, FrozenSettings
from sfrik.views import Views, resize_for_test

__all__ = ["extract", "extract_features", "features_hash", "features_here", "frozen_backbone", "load_features", "weights_path"]


@torch.no_grad()
def extract(
    backbone: nn.Module,
    images: Images,
    views: Views,
    batch_size: int = 500,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    workers: int = 0,
) -> tuple[Tensor, Tensor]:
    """Features [n, d] in float32 and labels [n] of all images, in their order. The backbone's mode is restored after."""
    device = torch.device(device)
    training = backbone.training
    backbone.eval()
    features, labels = [], []
    for (batch,), targets, _ in batches(images, np.arange(len(images)), views, batch_size, device=device, workers=workers):
        with autocast(device, precision):
            features.append(backbone(batch.contiguous(memory_format=torch.channels_last)).float().cpu())
        labels.append(targets.cpu())
    backbone.train(training)
    return torch.cat(features), torch.cat(labels)


def frozen_backbone(settings: FrozenSettings, channels: int) -> nn.Module:
    """The backbone that an evaluation judges."""
    path = weights_path(settings)
    if settings.arch == "pixels":
        if not path.is_file():
            raise SfrikError(f"there is no weights file {path}: pretrain the recipe first (arch pixels writes an empty one)")
        return build_pixels(settings.size, channels)
    return load_backbone(path, settings.arch, settings.stem, channels)


def weights_path(settings: FrozenSettings) -> Path:
    """`pretrained`, or the run's own weights."""
    return Path(settings.pretrained) if settings.pretrained else Run(settings.exp_dir).backbone


def evaluation_split(settings: FrozenSettings) -> str:
    """The split that is scored: the test images, or the tuning split."""
    return "test" if settings.val_dataset == "val" else "tune"


def extract_features(settings: FeatureSettings) -> Path:
    """Write train_features, train_labels, val_features and val_labels as .npy to the extraction folder, and return it.

    weights.json beside them names the weights by their SHA-256, and what was extracted; it is written last.
    """
    folder = features_folder(settings)
    device = pick_device(settings.device)
    precision = pick_precision(settings.precision, device)
    tune = evaluation_split(settings) == "tune"
    splits = {
        "train": load_images(settings.dataset, "train", settings.data_dir, settings.subset),
        "val": load_images(settings.dataset, "tune" if tune else "test", settings.data_dir, settings.subset, settings.val_subset),
    }
    backbone = frozen_backbone(settings, splits["train"].channels).to(device, memory_format=torch.channels_last)
    arrays = {}
    for name, images in splits.items():
        features, labels = extract(
            backbone,
            images,
            resize_for_test(settings.size, settings.dataset),
            settings.batch_size,
            device,
            precision,
            settings.workers,
        )
        arrays[f"{name}_features"], arrays[f"{name}_labels"] = features.numpy(), labels.numpy()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.json").unlink(missing_ok=True)
    for name, array in arrays.items():
        aside = folder / f"{name}.tmp.npy"
        np.save(aside, array)
        aside.replace(folder / f"{name}.npy")
    write_json(folder / "weights.json", _origin(settings))
    return folder


def features_here(settings: FeatureSettings) -> Path:
    """The extraction folder, its features extracted now unless they are there, of the same weights and images.

    A score may be finished where its features are not: the repository holds scores alone.
    """
    folder = features_folder(settings)
    if settings.extraction_dir:
        return folder
    complete = all((folder / f"{split}_{part}.npy").is_file() for split in ("train", "val") for part in ("features", "labels"))
    record = folder / "weights.json"
    if complete and record.is_file() and read_json(record) == _origin(settings):
        return folder
    return extract_features(settings)


def _origin(settings: FeatureSettings) -> dict[str, Any]:
    """What features depend on: the weights, and which images were taken how."""
    names = ("dataset", "subset", "size", "arch", "stem", "precision", "val_dataset", "val_subset")
    return {"backbone_sha256": file_hash(weights_path(settings)), **{name: getattr(settings, name) for name in names}}


def features_hash(settings: FeatureSettings) -> str | None:
    """SHA-256 of the weights that the features are of; None where the extraction folder does not say."""
    path = features_folder(settings) / "weights.json"
    return read_json(path)["backbone_sha256"] if path.is_file() else None


def features_folder(settings: FeatureSettings) -> Path:
    return Path(settings.extraction_dir) if settings.extraction_dir else Path(settings.exp_dir) / "features"


def load_features(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    """Features and labels of "train" or "val" from an extraction folder."""
    arrays = []
    for part in ("features", "labels"):
        path = folder / f"{name}_{part}.npy"
        if not path.is_file():
            raise SfrikError(f"there are no features {path}: run extract-features first, or check --extraction-dir")
        try:
            arrays.append(torch.from_numpy(np.load(path, mmap_mode="c")))  # read as needed: ImageNet has 10 GiB
        except (ValueError, EOFError) as error:
            raise SfrikError(f"{path} is not a complete .npy file ({error}): extract the features again") from None
    if len(arrays[0]) != len(arrays[1]):
        raise SfrikError(f"{folder} has {len(arrays[0])} {name} features but {len(arrays[1])} labels: extract them again")
    return arrays[0], arrays[1]
