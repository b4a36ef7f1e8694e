"""What an evaluation judges: which weights, on which images, and whether that score is there already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfrik.datasets.images import Images, load_images
from sfrik.datasets.label_fraction import labelled_share
from sfrik.errors import SfrikError
from sfrik.networks import Backbone, build_pixels, load_backbone
from sfrik.runs.checkpoints import Checkpoints
from sfrik.runs.folder import Run
from sfrik.runs.records import Choice, Score
from sfrik.settings import EvaluateSettings, FrozenSettings
from sfrik.system.files import UnreadableError, rename_broken
from sfrik.system.records import read_record
from sfrik.system.tensor_files import check_weights

__all__ = ["evaluation_split", "finished_score", "frozen_backbone", "scored_images", "training_images", "weights_path"]


def frozen_backbone(settings: FrozenSettings, channels: int) -> Backbone:
    """The backbone that an evaluation judges."""
    path = weights_path(settings)
    if settings.arch == "pixels":
        if not path.is_file():
            raise SfrikError(f"there is no weights file {path}: pretrain the recipe first (arch pixels writes an empty one)")
        check_weights(path)
        return build_pixels(settings.size, channels)
    return load_backbone(path, settings.arch, settings.stem, channels)


def weights_path(settings: FrozenSettings) -> Path:
    """`pretrained`, or the run's own weights."""
    return Path(settings.pretrained) if settings.pretrained else Run(settings.exp_dir).backbone


def evaluation_split(settings: FrozenSettings) -> str:
    """The split that is scored, "test" or "tune" (the tuning split). Every reading of the test split asks here first.

    Raises:
        SfrikError: the run is one of a grid (`choice`), and the choice on the tuning split is not written down yet, or it is
            another recipe: the test images are scored once, by the chosen one.
    """
    if settings.val_dataset == "train":
        return "tune"
    if settings.choice:
        _check_choice(settings)
    return "test"


def _check_choice(settings: FrozenSettings) -> None:
    """<profile>/tuning/<grid>.json must name this run's recipe, the folder above seed<k>, as its "chosen"."""
    folder = Path(settings.exp_dir).absolute()
    recipe, written = folder.parent.name, folder.parent.parent / "tuning" / f"{settings.choice}.json"
    if not written.is_file():
        raise SfrikError(
            f"the choice of grid {settings.choice} is not written down yet (there is no {written}): "
            "score the grid on the tuning split first: make table9"
        )
    record = read_record(written, Choice)
    if record["chosen"] != recipe:
        raise SfrikError(
            f"the choice of grid {settings.choice} is {record['chosen']}, not {recipe}: only the chosen one is scored on the "
            "test images; use --val-dataset train"
        )


def training_images(settings: EvaluateSettings) -> Images:
    """The labelled images that an evaluation learns from.

    A label list is one of the whole training split, so `subset`, of which the backbone was pretrained, does not apply to it:
    the recipes of 20 % of ImageNet are fine-tuned with the same 1 % and 10 % as those of the whole.
    """
    by_list = settings.train_percent < 100 and (settings.label_list or settings.dataset == "imagenet")
    images = load_images(settings.dataset, "train", settings.data_dir, None if by_list else settings.subset)
    return labelled_share(images, settings.dataset, settings.train_percent, settings.label_list)


def scored_images(settings: FrozenSettings) -> Images:
    """The images of the split that is scored."""
    split = evaluation_split(settings)
    return load_images(settings.dataset, split, settings.data_dir, settings.subset, settings.val_subset)


def finished_score(protocol: str, settings: FrozenSettings) -> tuple[Run, str, dict[str, Any] | None]:
    """The run, the name of the score (with _tune for the tuning split), and the score where it is there already.

    A score of weights, features or a head from elsewhere is computed again each time: the file does not say where from. A score
    that cannot be read is renamed and measured again.
    """
    run = Run(settings.exp_dir)
    name = protocol if evaluation_split(settings) == "test" else f"{protocol}_tune"
    if settings.pretrained or getattr(settings, "extraction_dir", "") or getattr(settings, "ckp_path", ""):
        return run, name, None
    path = run.folder / f"{name}.json"
    if path.is_dir():
        raise SfrikError(f"{path} is a folder, where the score is to be written: move it away")
    try:
        if path.exists():
            read_record(path, Score)
    except UnreadableError:
        raise
    except SfrikError as error:
        rename_broken(path, str(error))
    known = run.result(name, settings)
    if known is not None:  # after a process that was killed when it had just written the score
        Checkpoints(run.folder, f"checkpoint_{name}").delete()
    return run, name, known
