"""Inputs of an evaluation, resolved once per command: run, split, weights, device and precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch

from sfrik.datasets import Images, images_of_folder, labelled_share, load_images
from sfrik.datasets.entries import split_folder
from sfrik.datasets.fingerprint import describe_data, print_images
from sfrik.datasets.sizes import check_subset
from sfrik.errors import MissingImagesError, SfrikError
from sfrik.networks import Backbone, build_pixels, check_network, load_backbone
from sfrik.networks.precision import network_precision
from sfrik.ops.collectives import rank
from sfrik.runs.checkpoints import Checkpoints
from sfrik.runs.folder import Run
from sfrik.runs.records import Choice, Score
from sfrik.runs.refusals import refuse_published
from sfrik.runs.scores import score_problem
from sfrik.settings import (
    EvaluateSettings,
    FeatureSettings,
    FrozenSettings,
    LogisticSettings,
    TransferSettings,
    recipe_of,
    score_settings,
)
from sfrik.system.devices import channels_last, pick_device
from sfrik.system.download import no_downloads
from sfrik.system.files import UnreadableError, file_hash, rename_broken
from sfrik.system.records import read_record
from sfrik.system.tensor_files import check_weights
from sfrik.system.terminal import print_line
from sfrik.views.base import Views, resize_for_test

__all__ = ["Inputs", "scored_images", "split_images", "splits_read", "training_images"]

TITLES = {"train": "training", "tune": "tuning", "test": "test", "all": "extracted"}  # of the splits, for messages

AnySettings = TypeVar("AnySettings", bound=FrozenSettings)


@dataclass(frozen=True)
class Inputs(Generic[AnySettings]):
    """Which weights are evaluated on which images, and where the score is written.

    `resolve` is the only constructor to call: test images, and features and scores of them, are read through this object, so that
    none is read before the choice of a grid (`choice`). The device, the precision and the hash are computed on first use: a score
    that exists is returned without them.

    Attributes:
        settings: the settings of the evaluation.
        run: the run whose folder the score is written to.
        split: the split that is scored, "test" or "tune" (the tuning split).
        weights: the weights file: `pretrained`, or the run's backbone.
        load: the name of a split to its images.
    """

    settings: AnySettings
    run: Run
    split: Literal["test", "tune"]
    weights: Path
    load: Callable[[str], Images]
    _loaded: dict[str, Images] = field(default_factory=dict, repr=False, compare=False)
    _reported: set[str] = field(default_factory=set, repr=False, compare=False)

    @classmethod
    def resolve(cls, settings: AnySettings, load: Callable[[str], Images] | None = None) -> Inputs[AnySettings]:
        """Resolve the settings of an evaluation.

        Args:
            load: the images of a split, by its name, where they are not those of `dataset`.

        Raises:
            SfrikError: the run belongs to a grid (`choice`), and the choice on the tuning split is not recorded yet, or is
                another recipe: the test images are scored once, by the chosen one. Or the data set does not have the splits.
        """
        if settings.val_dataset == "val" and settings.choice:
            _check_choice(settings)
        _check_splits(settings)
        check_network(settings)
        run = Run(settings.exp_dir)
        weights = Path(settings.pretrained) if settings.pretrained else run.backbone
        return cls(settings, run, _scored(settings), weights, load or partial(split_images, settings))

    @cached_property
    def device(self) -> torch.device:
        """The device of the backbone. Raises SfrikError where this machine does not have it."""
        return pick_device(self.settings.device)

    @cached_property
    def precision(self) -> str:
        """The precision of the backbone, "fp32", "bf16" or "fp16"."""
        return network_precision(self.settings, self.device)

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights file."""
        return file_hash(self.weights)

    @property
    def whole_images(self) -> Views:
        """The test-time view, which is the whole image, resized and normalised."""
        return resize_for_test(self.settings.size, self.settings.dataset)

    def images(self, split: str) -> Images:
        """The images of a split: "train" (those whose labels are used), "tune" or "test"; "all" those of `image_dir`."""
        if split not in self._loaded:
            self._loaded[split] = images_of_folder(self.image_dir) if split == "all" else self.load(split)
        return self._loaded[split]

    def scored_images(self) -> Images:
        """The images of the split that is scored."""
        return self.images(self.split)

    @cached_property
    def image_dir(self) -> str:
        """The folder whose images are extracted in place of the splits; "" for the splits."""
        s, place = self.settings, Path(self.settings.data_dir)
        if not isinstance(s, FeatureSettings):
            return ""
        whole = s.dataset == "image_folder" and place.is_dir() and not any(split_folder(place, p) for p in ("train", "val"))
        return s.image_dir or (s.data_dir if whole else "")

    @cached_property
    def data(self) -> dict[str, dict[str, Any]]:
        """The images that are read, by split, as `sfrik.datasets.describe_data` describes them; their numbers are printed once.

        Raises:
            SfrikError: they cannot be read.
        """
        found = {}
        for split in ["all"] if self.image_dir else splits_read(self.settings):
            images = self.images(split)
            print_images(TITLES[split], images)
            found[split] = describe_data(images)
        return found

    def present_data(self, recorded: Mapping[str, Any], path: Path) -> Mapping[str, Any] | None:
        """`data`, to compare with the `data` in a file; None for a file of an earlier release, which has none.

        Nothing is downloaded. None too where the images are missing now: the file is used as it is, and this is reported.
        """
        try:
            with no_downloads():
                return self.data if recorded.get("data") else None
        except MissingImagesError as error:
            self.report(f"{path} is used as it is, since its images cannot be compared with the present ones: {error}")
            return None

    def report(self, text: str) -> None:
        """Print a line on stderr, once for this evaluation and on rank 0 only."""
        if text not in self._reported and rank() == 0:
            self._reported.add(text)
            print_line(text, error=True)

    def backbone(self, channels: int) -> Backbone:
        """The backbone with its weights, on the device and in evaluation mode.

        Args:
            channels: of the images, 1 or 3.

        Raises:
            SfrikError: the weights file is missing, cut short, changed since training, or for another architecture.
        """
        s = self.settings
        if s.arch == "pixels":
            if not self.weights.is_file():
                raise SfrikError(
                    f"there is no weights file {self.weights}: pretrain the recipe first (arch pixels writes an empty one)"
                )
            check_weights(self.weights)
            return channels_last(build_pixels(s.size, channels), self.device)
        return channels_last(load_backbone(self.weights, **s.network, channels=channels), self.device)

    def score_name(self, protocol: str) -> str:
        """Name of a protocol's score, without .json: the protocol, with _tune for the tuning split."""
        return protocol if self.split == "test" else f"{protocol}_tune"

    def check_folder(self, name: str) -> None:
        """Refuse to write into the published results, or what a recipe's tables do not read into its folder.

        What they do not read are scores and features of other settings or weights.

        Raises:
            SfrikError: the settings that are not the recipe's are named.
        """
        refuse_published(self.run.folder)
        if (of := recipe_of(self.run.folder)) is None:
            return
        elsewhere = self.settings.elsewhere(self.run.folder)
        problems = [self.settings.differences(score_settings(*of, name).what()), *(f"{n} {v}" for n, v in elsewhere.items())]
        if reason := "; ".join(filter(None, problems)):
            raise SfrikError(
                f"{self.run.folder} holds what tables read of recipe {of[0]}, but these are other settings ({reason}): leave "
                f"--exp-dir out, or choose another one with --pretrained {self.run.backbone}"
            )

    def finished_score(self, name: str) -> dict[str, Any] | None:
        """The score of that name, if it was measured with these settings on these weights and images; else None.

        Called before any work. Why a score that exists is measured again is reported. A score of weights, features or a head from
        outside the run is always computed again: its file does not record where they came from. A score that cannot be parsed is
        renamed, and measured again. A score of an earlier release does not record its images, which are then not compared.

        Raises:
            SfrikError: a folder has the name of the score, the score would take the place of one that a table prints, or the
                images are there but cannot be used.
            UnreadableError: the file system refuses to read the score.
        """
        s = self.settings
        self.check_folder(name)
        if s.pretrained or getattr(s, "extraction_dir", "") or getattr(s, "ckp_path", ""):
            return None
        path = self.run.folder / f"{name}.json"
        if path.is_dir():
            raise SfrikError(f"{path} is a folder, where the score is to be written: move it away")
        if not path.exists():
            return None
        try:
            recorded = read_record(path, Score)
        except UnreadableError:
            raise
        except SfrikError as error:
            rename_broken(path, str(error))
            return None
        score = self.run.result(name, s)
        present = None if score is None else self.present_data(score, path)  # only if nothing else differs
        if problem := score_problem(self.run.folder, name, recorded, s, self.run.weights_sha256(), present):
            self.report(f"{problem}: measured again")
            return None
        if score is not None:  # left by a process that was killed right after it wrote the score
            Checkpoints(self.run.folder, f"checkpoint_{name}").delete()
        return score


def scored_images(settings: FrozenSettings) -> Images:
    """The images of the split that an evaluation scores: the test images, or the tuning split with `val_dataset` train.

    Raises:
        SfrikError: missing images, or test images of a grid whose choice is not recorded (`Inputs.resolve`).
    """
    return Inputs.resolve(settings).scored_images()


def training_images(settings: EvaluateSettings) -> Images:
    """The labelled images that an evaluation trains on.

    A label list, and any share of ImageNet's labels, refers to the whole training split, so `subset`, on which the backbone was
    pretrained, does not apply: recipes on 20 % of ImageNet are fine-tuned with the same 1 % and 10 % as recipes on all of it.

    Raises:
        SfrikError: missing images, or a label list that does not match them.
    """
    of_all = settings.train_percent < 100 and (settings.label_list or settings.dataset == "imagenet")
    images = load_images(settings.dataset, "train", settings.data_dir, None if of_all else settings.subset)
    return labelled_share(images, settings.dataset, settings.train_percent, settings.label_list)


def split_images(settings: FrozenSettings, split: str) -> Images:
    """The images of a split of `dataset`: "train" (those whose labels are used), "tune" or "test"."""
    if isinstance(settings, EvaluateSettings) and split == "train":
        return training_images(settings)
    return load_images(settings.dataset, split, settings.data_dir, settings.subset, settings.val_subset)


def _check_splits(settings: FrozenSettings) -> None:
    """Refuse splits that are read and do not exist, from the settings only; `--dry-run` ends with the same errors."""
    if isinstance(settings, TransferSettings):
        if settings.val_dataset == "train":
            raise SfrikError(
                f"{settings.target} has no tuning split: hyperparameters are chosen on its training images; use --val-dataset val"
            )
        return
    if isinstance(settings, LogisticSettings) and settings.features_dir:
        lbfgs = settings.solver == "lbfgs"
        if lbfgs or (settings.lr_sweep and _scored(settings) == "test"):
            what, remedy = ("solver lbfgs chooses C", "--solver sgd") if lbfgs else ("lr_sweep chooses", "--lr-head")
            raise SfrikError(f"{what} on the tuning split, which an extraction folder lacks: use {remedy}")
    for split in [] if getattr(settings, "image_dir", "") else splits_read(settings):
        check_subset(settings.dataset, split, settings.subset, settings.val_subset)


def _scored(settings: FrozenSettings) -> Literal["test", "tune"]:
    return "tune" if settings.val_dataset == "train" else "test"


def splits_read(settings: FrozenSettings) -> list[str]:
    """The splits whose images an evaluation reads; the scored one is the last."""
    scored = _scored(settings)
    if settings.features_dir:
        return []
    if isinstance(settings, EvaluateSettings) and settings.only_inference:
        return [scored]
    return list(dict.fromkeys(["train", *(["tune"] if settings.chooses else []), scored]))


def _check_choice(settings: FrozenSettings) -> None:
    """Check that <profile>/tuning/<grid>.json names the run's recipe, the folder above seed<k>, as its "chosen"."""
    folder = Path(settings.exp_dir).absolute()
    recipe, record = folder.parent.name, folder.parent.parent / "tuning" / f"{settings.choice}.json"
    if not record.is_file():
        raise SfrikError(
            f"the choice of grid {settings.choice} is not recorded yet (there is no {record}): "
            "score the grid on the tuning split first: make table9, with the PROFILE of the run"
        )
    chosen = read_record(record, Choice)["chosen"]
    if chosen != recipe:
        raise SfrikError(
            f"the choice of grid {settings.choice} is {chosen}, not {recipe}: only the chosen recipe is scored on the "
            "test images; use --val-dataset train"
        )
