"""What is said at the end of a command: the score, where the files are, and the command that comes next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from sfrik.cli.flags import DEFAULT_EXP_DIR
from sfrik.runs.folder import Run
from sfrik.settings import SECTIONS, FrozenSettings, PretrainSettings, Settings, results_root, run_folder
from sfrik.tables.definitions import EXPERIMENTS, rows_of

__all__ = ["format_score", "next_command", "run_summary", "summary", "table_summary"]

# The scores of a run in the order in which they are usually made: file -> command.
CHAIN = {"linear": "evaluate", "knn": "knn_eval", "logistic": "logistic_regression"}
# What a command hands on to the next; what else it was told is its own.
HANDED = (set(Settings.model_fields) | set(FrozenSettings.model_fields) | {"extraction_dir"}) - {"batch_size", "choice"}


def summary(section: str, settings: Settings, recipe: str | None, outcome: dict[str, Any]) -> list[str]:
    """The lines at the end of a command of a run: what came out, where it lies, what to do next."""
    if isinstance(settings, PretrainSettings):
        lines = [*_last_epoch(settings, outcome["last_epoch"]), f"weights: {outcome['weights']}"]
    elif section == "extract_features":
        lines = [f"features: {outcome['features']}"]
    else:
        name = outcome["protocol"]
        lines = [f"{name}: {format_score(outcome)}", f"score: {Path(settings.exp_dir) / f'{name}.json'}"]
    following = next_command(settings, recipe)
    return [*lines, *([f"next: {following}"] if following else [])]


def run_summary(recipe: str, folder: Path, scores: dict[str, dict[str, Any]], root: str | Path) -> list[str]:
    """Of a run of notebooks; `scores` are its score files by name."""
    table = _table_of(recipe)
    following = [f"next: {_table(table, recipe.split('/')[0], root)} --render-only"] if table else []
    words = [f"{name}: {format_score(score)}" for name, score in scores.items()]
    return [*words, f"notebooks and scores: {folder}", *following]


def table_summary(name: str, profile: str, seeds: int, root: str | Path) -> list[str]:
    """Of a table that was rendered, `seeds` being the number that was asked for."""
    folder = Path(root) / profile
    kinds = {
        "table": [folder / "tables" / f"{name}.{kind}" for kind in ("md", "csv", "tex")],
        "figure": [folder / "figures" / f"{name}.{kind}" for kind in ("png", "svg")],
    }
    there = {kind: [path for path in paths if path.is_file()] for kind, paths in kinds.items()}
    lines = [
        f"{kind}: {', '.join([str(paths[0]), *(path.suffix for path in paths[1:])])}" for kind, paths in there.items() if paths
    ]
    more = f"{_table(name, profile, root)} --seeds 3" if seeds < 3 else _table("all", profile, root)
    return [*lines, f"next: {more}"]


def format_score(score: dict[str, Any]) -> str:
    """The figures of a score file: `top-1 93.40 %, top-5 99.70 %, 1000 images`."""
    words = []
    for key, label in (("top1", "top-1"), ("top5", "top-5"), ("map", "mean average precision")):
        if score.get(key) is not None:
            words.append(f"{label} {score[key]:.2f} %")
    if score.get("top1_at"):
        words.append("top-1 " + ", ".join(f"{value:.2f} % at k = {k}" for k, value in score["top1_at"].items()))
    if score.get("lr_head") is not None:
        words.append(f"rate {score['lr_head']:g}")
    if score.get("images") is not None:
        words.append(f"{score['images']} images")
    return ", ".join(words)


def next_command(settings: Settings, recipe: str | None) -> str:
    """The first score that the run lacks and has images for, by a command that has all that this one was told; then the run's
    table, or its diagnosis; nothing where there is no run.
    """
    if getattr(settings, "val_dataset", "val") == "train":
        return ""  # what is chosen on the tuning split is chosen by a person, or by table 9
    folders = [Path(settings.data_dir) / part for part in ("train", "val")]
    unlabelled = settings.dataset in ("imagenet", "image_folder") and not all(folder.is_dir() for folder in folders)
    features_alone = getattr(settings, "extraction_dir", "") and not recipe  # their backbone may be elsewhere
    for score, section in CHAIN.items():
        cannot = section == "evaluate" if features_alone else unlabelled
        if not cannot and not (Path(settings.exp_dir) / f"{score}.json").is_file():
            return command(section, recipe, settings)
    if recipe and Path(settings.exp_dir) == run_folder(recipe, settings.seed) and (table := _table_of(recipe)):
        return f"{_table(table, recipe.split('/')[0])} --render-only"
    if Run(settings.exp_dir).projector.is_file():
        elsewhere = settings.data_dir != type(settings).model_fields["data_dir"].default  # no run's record says where
        images = ["--data-dir", settings.data_dir] if elsewhere else []
        return shlex.join(["python", "-m", "sfrik", "diagnose", settings.exp_dir, *images])
    return ""


def command(section: str, recipe: str | None, settings: Settings) -> str:
    """The command line of a section whose shared settings are these; what it would have without being told is left out."""
    kind = SECTIONS[section]
    untold = kind.from_recipe(recipe, seed=settings.seed) if recipe else kind.parse({"exp_dir": DEFAULT_EXP_DIR})
    words = ["python", "-m", "sfrik", section.replace("_", "-")]
    words += ["--recipe", recipe, "--seed", str(settings.seed)] if recipe else []
    for name in type(settings).model_fields:
        if name not in HANDED & kind.model_fields.keys() or (recipe and name == "seed"):
            continue
        value = getattr(settings, name)
        if value not in (None, "", getattr(untold, name)):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def _last_epoch(settings: PretrainSettings, line: dict[str, Any]) -> list[str]:
    if not line:
        if settings.ssl_method == "none" or settings.epochs == 0:
            return ["nothing was trained: the weights are as they were initialised"]
        return ["pretrained; metrics.jsonl has no epoch to show"]
    knn = f", 20-NN on training images {line['knn']:.1f} %" if "knn" in line else ""
    epochs = "1 epoch" if line["epoch"] == 0 else f"{line['epoch'] + 1} epochs"
    return [
        f"pretrained {epochs}: loss {line['loss']:.4f}, alignment {line['alignment']:.4f}, "
        f"effective rank {line['effective_rank']:.1f} of {settings.dim}{knn}"
    ]


def _table_of(recipe: str) -> str | None:
    """The first table that has a row of this recipe."""
    profile = recipe.split("/")[0]
    for name, found in EXPERIMENTS.items():
        if profile in found.profiles and any(row.recipe == recipe for row in rows_of(name, profile)):
            return name
    return None


def _table(name: str, profile: str, root: str | Path | None = None) -> str:
    place = [] if root is None or Path(root) == results_root() else ["--exp-dir", str(root)]
    return shlex.join(["python", "-m", "sfrik", "table", name, "--profile", profile, *place])
