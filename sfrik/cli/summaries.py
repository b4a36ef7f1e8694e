"""Command summaries: the score, where the files are, and the next command."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from sfrik.cli.flags import DEFAULT_EXP_DIR
from sfrik.runs.folder import Run
from sfrik.settings import SECTIONS, FrozenSettings, PretrainSettings, Settings, run_folder

__all__ = ["format_score", "next_command", "run_summary", "summary", "table_summary"]

# The scores of a run in the order in which they are usually computed: score file -> section of the command.
SCORES = {"linear": "evaluate", "knn": "knn_eval", "logistic": "logistic_regression"}
# Settings that a command passes on to the next command.
PASSED_ON = (set(Settings.model_fields) | set(FrozenSettings.model_fields) | {"extraction_dir"}) - {"batch_size", "choice"}


def summary(section: str, settings: Settings, recipe: str | None, outcome: dict[str, Any]) -> list[str]:
    """The summary of pretraining or of an evaluation: its result, its files, and the next command."""
    if isinstance(settings, PretrainSettings):
        lines = [*_last_epoch(settings, outcome["last_epoch"]), f"weights: {outcome['weights']}"]
    elif section == "extract_features":
        lines = [f"features: {outcome['features']}"]
    else:
        name = outcome["protocol"]
        lines = [f"{name}: {format_score(outcome)}", f"score: {Path(settings.exp_dir) / f'{name}.json'}"]
    following = next_command(settings, recipe)
    return [*lines, f"next: {following}"] if following else lines


def run_summary(recipe: str, folder: Path, scores: dict[str, dict[str, Any]], root: str | Path) -> list[str]:
    """The summary that `sfrik run` prints at its end; `scores` maps names to the contents of the score files."""
    from sfrik.reproduce.commands import table_command  # not with the parser: `sfrik --help` stays fast

    table = _table_of(recipe)
    following = [f"next: {table_command(table, recipe.split('/')[0], root, render_only=True)}"] if table else []
    lines = [f"{name}: {format_score(score)}" for name, score in scores.items()]
    return [*lines, f"notebooks and scores: {folder}", *following]


def table_summary(name: str, profile: str, seeds: int, root: str | Path, data_dir: str = "") -> list[str]:
    """The summary of a table rendered with this number of seeds."""
    from sfrik.reproduce.commands import table_command

    folder = Path(root) / profile
    kinds = {
        "table": [folder / "tables" / f"{name}.{kind}" for kind in ("md", "csv", "tex")],
        "figure": [folder / "figures" / f"{name}.{kind}" for kind in ("png", "svg")],
    }
    existing = {kind: [path for path in paths if path.is_file()] for kind, paths in kinds.items()}
    lines = [
        f"{kind}: {', '.join([str(paths[0]), *(path.suffix for path in paths[1:])])}" for kind, paths in existing.items() if paths
    ]
    more = table_command(name, profile, root, 3, data_dir) if seeds < 3 else table_command("all", profile, root)
    return [*lines, f"next: {more}"]


def format_score(score: dict[str, Any]) -> str:
    """The figures of a score file, as in `top-1 93.40 %, top-5 99.70 %, 1000 images`."""
    figures = []
    for key, label in (("top1", "top-1"), ("top5", "top-5"), ("map", "mean average precision")):
        if score.get(key) is not None:
            figures.append(f"{label} {score[key]:.2f} %")
    if score.get("top1_at"):
        figures.append("top-1 " + ", ".join(f"{value:.2f} % at k = {k}" for k, value in score["top1_at"].items()))
    if score.get("lr_head") is not None:
        figures.append(f"learning rate {score['lr_head']:g}")
    if score.get("images") is not None:
        figures.append(f"{score['images']} images")
    if score.get("broken_images"):
        figures.append(f"broken images skipped: {sum(map(len, score['broken_images'].values()))}")
    return ", ".join(figures)


def next_command(settings: Settings, recipe: str | None) -> str:
    """The command for the first score that the run still lacks and has images for, with the settings of this command.

    After all scores: the command that renders the run's table, or else diagnoses the run. "" if there is nothing to propose.
    """
    if getattr(settings, "val_dataset", "val") == "train":
        return ""  # the user, or table 9, decides what follows from a score on the tuning split
    if getattr(settings, "extraction_dir", "") and (Path(settings.extraction_dir) / "all_features.npy").is_file():
        return ""  # the features of one folder: there are none to compare them with
    from sfrik.datasets.entries import split_folder  # imports torch, as the command that has just ended did
    from sfrik.reproduce.commands import table_command

    folders = settings.dataset in ("imagenet", "image_folder")
    unlabelled = folders and not all(split_folder(Path(settings.data_dir), part) for part in ("train", "val"))
    only_features = getattr(settings, "extraction_dir", "") and not recipe  # their backbone may be elsewhere
    for score, section in SCORES.items():
        impossible = section == "evaluate" if only_features else unlabelled
        if not impossible and not (Path(settings.exp_dir) / f"{score}.json").is_file():
            return command(section, recipe, settings)
    if recipe and Path(settings.exp_dir) == run_folder(recipe, settings.seed) and (table := _table_of(recipe)):
        return table_command(table, recipe.split("/")[0], render_only=True)
    if Run(settings.exp_dir).projector.is_file():
        elsewhere = settings.data_dir != type(settings).model_fields["data_dir"].default  # a run's files do not record it
        images = ["--data-dir", settings.data_dir] if elsewhere else []
        return shlex.join(["python", "-m", "sfrik", "diagnose", settings.exp_dir, *images])
    return ""


def command(section: str, recipe: str | None, settings: Settings) -> str:
    """The command line of a section with the settings that it shares with `settings` and that differ from its defaults."""
    kind = SECTIONS[section]
    defaults = kind.from_recipe(recipe, seed=settings.seed) if recipe else kind.parse({"exp_dir": DEFAULT_EXP_DIR})
    arguments = ["python", "-m", "sfrik", section.replace("_", "-")]
    arguments += ["--recipe", recipe, "--seed", str(settings.seed)] if recipe else []
    for name in type(settings).model_fields:
        if name not in PASSED_ON & kind.model_fields.keys() or (recipe and name == "seed"):
            continue
        value = getattr(settings, name)
        if value != getattr(defaults, name):
            flag, words = f"--{name.replace('_', '-')}", [*map(str, value if isinstance(value, tuple) else [value])]
            words = words if words not in ([], [""], ["None"]) else ["none"]
            arguments += [f"{flag}={words[0]}"] if words[0].startswith("-") else [flag, *words]
    return shlex.join(arguments)


def _last_epoch(settings: PretrainSettings, line: dict[str, Any]) -> list[str]:
    if not line:
        if settings.ssl_method == "none" or settings.epochs == 0:
            return ["nothing was trained: the weights are those of the initialisation"]
        return ["pretrained; metrics.jsonl has no complete epoch"]
    knn = f", 20-NN on training images {line['knn']:.1f} %" if "knn" in line else ""
    trade_off = f", lambda {settings.trade_off:.4g}" if settings.ssl_method == "sfrik" else ""
    epochs = "1 epoch" if line["epoch"] == 0 else f"{line['epoch'] + 1} epochs"
    return [
        f"pretrained {epochs}: loss {line['loss']:.4f}, alignment {line['alignment']:.4f}, "
        f"effective rank {line['effective_rank']:.1f} of {settings.dim}{knn}{trade_off}"
    ]


def _table_of(recipe: str) -> str | None:
    """The first table with a row for this recipe."""
    from sfrik.tables.definitions import EXPERIMENTS, rows_of

    profile = recipe.split("/")[0]
    for name, found in EXPERIMENTS.items():
        if profile in found.profiles and any(row.recipe == recipe for row in rows_of(name, profile)):
            return name
    return None
