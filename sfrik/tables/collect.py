"""Collect the scores of a table from the score files of its runs.

A table depends on these files only; `sfrik.tables.definitions` defines its rows and columns, `sfrik.tables.render` its formats.
A run or a score of other settings than the recipe's is left out, with the reason (`sfrik.runs.scores`). So is a run that was
trained on other images than most runs of the table, and a score that was measured on other images than most scores of its
column, in a tie than the first of them: a table compares methods on the same images. Runs and scores that do not record their
images, which earlier releases wrote, are kept.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfrik.errors import SfrikError
from sfrik.runs.data import data_differences, recorded_data, split_differences
from sfrik.runs.folder import Run
from sfrik.runs.records import Score
from sfrik.runs.scores import run_problem, score_problem
from sfrik.runs.sweeps import sweep_edge
from sfrik.settings import PretrainSettings, as_whole, load_recipe, recipe_settings, run_folder, score_settings
from sfrik.system.files import path_exists
from sfrik.system.records import read_record
from sfrik.tables.cost_rows import cost_problem, load_note, read_costs
from sfrik.tables.definitions import Experiment, experiment, tables_of
from sfrik.tables.measured import Measured
from sfrik.tables.rows import IMAGES, Column, Row, paper_figures

__all__ = [
    "EDGE",
    "Table",
    "build_table",
    "existing_seeds",
    "has_scores",
    "read_score",
    "tables_with_scores",
]


EDGE = "†"  # marks a cell with a hyperparameter at the edge of its sweep
ARRAYS = ("cifar10", "cifar100")  # data sets that are published as arrays of pixels and can be read from image files too
ORIGINAL = "original"  # the encoding of these arrays in records of images


@dataclass
class Table:
    """A table of one profile with the scores that have been measured."""

    name: str
    profile: str
    experiment: Experiment
    columns: list[Column]
    measured: list[Measured]

    @property
    def title(self) -> str:
        return f"{self.experiment.title}; {self._images if self.experiment.images else 'random embeddings'}"

    @property
    def _images(self) -> str:
        """The images of the profile, and whether those of the runs shown were stored in another form than published."""
        records = [data for m in self.measured for seed, data in m.trained_on.items() if seed in m.seeds]
        records += [
            data for m in self.measured for seeds in m.data.values() for splits in seeds.values() for data in splits.values()
        ]
        arrays = load_recipe(self.measured[0].row.recipe)["dataset"] in ARRAYS
        forms = (
            {str(data["encoding"]) for data in records if data and data.get("encoding", ORIGINAL) != ORIGINAL} if arrays else ()
        )
        return IMAGES[self.profile] + (f", re-encoded as {' and '.join(sorted(forms))}" if forms else "")

    @property
    def labels(self) -> list[str]:
        """Additional columns that distinguish the rows."""
        return list(dict.fromkeys(label for m in self.measured for label in m.row.labels))

    @property
    def spread_note(self) -> str:
        """A sentence on the mean, its spread and the number of seeds or repetitions."""
        counts = {len(m.seeds) for m in self.measured if m.seeds}
        if counts <= {1}:
            return f"One {self.experiment.unit}: no spread."
        return f"Mean ± one standard deviation over {self.experiment.count(counts)}."

    @property
    def load_note(self) -> str:
        """Whether the machine was quiet while the costs were measured; empty for other tables."""
        return load_note(list({seed: m.load[seed] for m in self.measured for seed in m.seeds if seed in m.load}.values()))

    @property
    def edge_note(self) -> str:
        """What the mark of a cell at the edge of a sweep means; empty if there is none."""
        if not any(m.at_edge(column.name) for m in self.measured for column in self.columns):
            return ""
        return (
            f"{EDGE} At least one seed's learning rate or penalty is the lowest or highest that was tried, and better than the "
            "next one by more than the standard error of the tuning split: another might score higher."
        )

    @property
    def left_out(self) -> list[str]:
        """A line for each run or score that is not shown: the recipe, the seed, the reason and the remedy."""
        of_rows = [(m.row.recipe, seed, reasons) for m in self.measured for seed, reasons in m.left_out.items()]
        lines = [f"{recipe} {self.experiment.unit} {seed}: {reason}" for recipe, seed, reasons in of_rows for reason in reasons]
        return list(dict.fromkeys(lines))

    @property
    def source(self) -> str:
        """The source of the paper's figures."""
        return paper_figures()[self.experiment.figures]["source"] if self.experiment.figures else ""


def build_table(name: str, profile: str, root: str | Path | None = None, seeds: int | None = None) -> Table:
    """Read the scores of a table's runs.

    Args:
        name: table1, table2, ...
        profile: digits, paper, ...
        root: the folder of the results; `runs_root()` when None.
        seeds: use the first `seeds` seeds; all existing ones when None.

    Raises:
        SfrikError: an unknown table, a table without recipes in this profile, a broken score file, or no number of seeds.
    """
    seeds = None if seeds is None else as_whole(seeds, "seeds", 1, 10_000)
    definition = experiment(name, profile)
    columns = definition.columns(profile)
    measured = [_measure(row, columns, root, seeds) for row in definition.rows(profile)]
    _leave_out_other_runs(measured)
    _leave_out_other_images(measured, columns)
    return Table(name, profile, definition, columns, measured)


def existing_seeds(recipe: str, root: str | Path | None = None) -> list[int]:
    """The seeds of a recipe that have a folder."""
    parent = run_folder(recipe, 0, root).parent
    return sorted(int(path.name.removeprefix("seed")) for path in parent.glob("seed*") if path.name[4:].isdecimal())


def tables_with_scores(profile: str, root: str | Path | None = None) -> list[str]:
    """The tables with at least one measured cell, or one whose score is left out, which the table then says."""
    return [name for name in tables_of(profile) if has_scores(name, profile, root)]


def has_scores(name: str, profile: str, root: str | Path | None = None) -> bool:
    """Whether a table has at least one measured cell, or one whose score is left out."""
    return any(m.seeds or m.left_out for m in build_table(name, profile, root).measured)


def _measure(row: Row, columns: list[Column], root: str | Path | None, seeds: int | None) -> Measured:
    measured = Measured(row)
    for seed in existing_seeds(row.recipe, root) if seeds is None else range(seeds):
        files: dict[str, dict[str, Any]] = {}
        folder = run_folder(row.recipe, seed, root)
        if data := recorded_data(folder):
            measured.trained_on[seed] = data
        for column in columns:
            if column.only is not None and seed not in column.only:
                continue
            if column.score not in files:
                files[column.score], problem = read_score(row.recipe, seed, column.score, root)
                reasons = measured.left_out.setdefault(seed, []) if problem else []
                reasons += [problem] if problem and problem not in reasons else []
                if row.entry:
                    measured.load[seed] = files[column.score].get("load")
                if data := files[column.score].get("data"):
                    measured.data.setdefault(column.score, {})[seed] = data
            keys = (row.entry, *column.key) if row.entry else column.key
            name = "metrics.jsonl" if column.score == "metrics" else f"{column.score}.json"
            value = _number(files[column.score], keys, folder / name)
            if value is not None:
                if sweep_edge(files[column.score]):
                    measured.edges.setdefault(column.name, []).append(seed)
                measured.scores.setdefault(column.name, {})[seed] = value
                if images := files[column.score].get("images"):
                    measured.images[column.name] = images
                if (bits := _correct(files[column.score], column.key)) and images:
                    measured.correct.setdefault(column.name, {})[seed] = (bits, images)
    return measured


def _correct(score: dict[str, Any], key: Sequence[str]) -> str | None:
    """The bits behind an accuracy; None in earlier releases' scores, and if broken images, which have no bit, were skipped."""
    if score.get("broken_images"):
        return None
    return score.get("correct") if key == ("top1",) else score.get("correct_at", {}).get(key[1]) if key[0] == "top1_at" else None


def _leave_out_other_runs(measured: list[Measured]) -> None:
    """Leave out the runs that were trained on other images than most runs on the same data set, in a tie than the first."""
    groups: dict[tuple[str, int | None], list[tuple[Measured, int, dict[str, Any]]]] = {}
    for m in measured:
        for seed, data in m.trained_on.items():
            settings = recipe_settings(m.row.recipe, seed)
            assert isinstance(settings, PretrainSettings)
            groups.setdefault((settings.dataset, settings.subset), []).append((m, seed, data))
    for runs in groups.values():
        most = _most([data for _, _, data in runs])
        for m, seed, data in runs:
            if differences := data_differences(data, most):
                reason = f"the run was trained on other images than most of this table ({differences})"
                m.left_out.setdefault(seed, []).append(f"{reason}: move its folder away, and run again")
                for found in (*m.scores.values(), *m.data.values()):
                    found.pop(seed, None)


def _most(data: list[dict[str, Any]]) -> dict[str, Any]:
    """The most frequent record of images, in a tie the first; empty if there is none."""
    keys = [json.dumps(each, sort_keys=True) for each in data]
    return json.loads(Counter(keys).most_common(1)[0][0]) if keys else {}


def _leave_out_other_images(measured: list[Measured], columns: list[Column]) -> None:
    """Leave out the scores that were measured on other images than most scores of their column, in a tie than the first."""
    for score in dict.fromkeys(column.score for column in columns):
        found = [(m, seed, data) for m in measured for seed, data in m.data.get(score, {}).items()]
        most = _most([data for _, _, data in found])
        for m, seed, data in found:
            if differences := split_differences(data, most):
                reason = f"{score}.json was measured on other images than most of this column ({differences})"
                m.left_out.setdefault(seed, []).append(f"{reason}: measure it again, with the make of this table")
                for column in columns:
                    if column.score == score:
                        m.scores.get(column.name, {}).pop(seed, None)
                        m.data[score].pop(seed, None)
                        m.images[column.name] = (most.get("test") or most["tune"])["images"]


def _number(score: dict[str, Any], keys: Sequence[str], path: Path) -> float | None:
    """The number at a path of keys in a score; None if a key is missing.

    Raises:
        SfrikError: the value is not a number; the message names the file and the key.
    """
    value: Any = score
    for key in keys:
        if not isinstance(value, dict):
            break
        if (value := value.get(key)) is None:
            return None
    if type(value) not in (int, float):
        raise SfrikError(f"{path}: {'.'.join(keys)} is {str(value)[:60]!r}, not a number: move the file away and run again")
    return value


def read_score(recipe: str, seed: int, score: str, root: str | Path | None = None) -> tuple[dict[str, Any], str]:
    """A score of a recipe's run, as a table may print it.

    Args:
        score: Name of the file without .json; "metrics" is the last epoch of the training curve.

    Returns:
        The content of the file, or an empty object; and why a score that exists is left out, with the remedy, or an empty string.

    Raises:
        SfrikError: A file is broken.
    """
    run = Run(run_folder(recipe, seed, root))
    path = run.folder / f"{score}.json"
    if score in ("table5", "table6"):
        found = read_costs(path)
        problem = cost_problem(found, score, recipe.split("/")[0])
        return ({}, f"{problem}: measure again, with make {score}") if problem else (found, "")
    found = _last_epoch(run) if score == "metrics" else read_record(path, Score) if path_exists(path) else {}
    if not found:
        return {}, ""
    settings = recipe_settings(recipe, seed)
    assert isinstance(settings, PretrainSettings)
    if problem := run_problem(run.folder, settings):
        return {}, f"{problem}: restore the recipe, or move the folder of the run away and run again"
    if score == "metrics":
        done = found["epoch"] + 1
        problem = f"metrics.jsonl ends after {done} of {settings.epochs} epochs" if done != settings.epochs else ""
        return ({}, f"{problem}: finish the run") if problem else (found, "")
    problem = score_problem(run.folder, score, found, score_settings(recipe, seed, score), run.weights_sha256())
    return ({}, f"{problem}: measure it again, with the make of this table") if problem else (found, "")


def _last_epoch(run: Run) -> dict[str, Any]:
    epochs = run.epochs()
    return epochs[-1] if epochs else {}
