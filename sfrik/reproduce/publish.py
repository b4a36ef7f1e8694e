"""`sfrik publish`: copy the finished runs of tables from runs/ to results/, and render what is published there.

Everything is checked before anything is written. A kill in the middle leaves no wrong number, and the same command completes the
work: each file is written atomically, and the scores of a run that do not belong to its new weights are deleted before the others
are copied. All published tables of the profile are rendered again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sfrik.errors import SfrikError
from sfrik.reproduce.commands import table_command
from sfrik.reproduce.notebooks import copy_notebook, same_code
from sfrik.reproduce.parameters import PARAMETERS
from sfrik.reproduce.publishable import COSTS, PublishedRun, has_all_cells, published_runs, score_names, table_problems
from sfrik.reproduce.stages import STAGES
from sfrik.reproduce.table import render_lock, render_tables
from sfrik.runs.cached import cached_provenance
from sfrik.runs.provenance import commit
from sfrik.runs.refusals import publishing
from sfrik.settings import published_root, run_folder, runs_root
from sfrik.system.files import atomic_write, file_hash, read_json
from sfrik.system.signals import stop_at_once
from sfrik.system.terminal import print_line
from sfrik.tables.collect import build_table, existing_seeds, tables_with_scores
from sfrik.tables.cost_rows import unit_of
from sfrik.tables.definitions import grids, rows_of, tables_of
from sfrik.tables.measured import Measured
from sfrik.tables.render import MISSING, plus_minus
from sfrik.tables.rows import DIMS, Column

__all__ = ["publish"]

RECORDS = ("settings.json", "provenance.json", "metrics.jsonl")
COST_CHAPTER = "06_complexity"
CHAPTERS = [name for name in PARAMETERS if name != "07_tables"]  # which is rendered from what is published
GENERAL = "digits"  # the profile with which notebook 01 is published
FLOW = ("flow.gif", "flow_dark.gif", "flow.png")  # drawn by notebook 01
SUFFIXES = {"tables": (".csv", ".md", ".tex"), "figures": (".png", ".svg")}


def publish(
    names: Sequence[str], profile: str, root: str | Path | None = None, target: str | Path | None = None
) -> dict[str, Any]:
    """Publish tables: replace the published runs of their rows by those in `root`.

    Args:
        names: table1, table2, ..., or "all": every table that has a score in each of its cells.
        profile: digits, ...
        root: the folder of the runs; `runs_root()` when None.
        target: the published results; `published_root()` when None.

    Returns:
        What changed: `cells` and `removed`, in lines; `files`, the numbers of new, changed and removed files.

    Raises:
        SfrikError: a table cannot be published, or the checkout is not clean; nothing was written.
    """
    root, target = Path(root or runs_root()), Path(target or published_root())
    if root.resolve().is_relative_to(target.resolve()) or target.resolve().is_relative_to(root.resolve()):
        raise SfrikError(
            f"{root} and {target} are one folder, or one is in the other: name the folder of your runs with --results"
        )
    notes = []
    if "all" in names:
        scored = tables_with_scores(profile, root)
        names = [name for name in scored if has_all_cells(name, profile, root)]
        notes = [f"{name} is not published: some of its cells have no score in {root}" for name in scored if name not in names]
    names = list(dict.fromkeys(names))
    for name in names:
        rows_of(name, profile)  # an unknown table is an error
    if not (root / profile).is_dir() or not names:
        raise SfrikError(f"nothing has been measured in {root / profile} yet: {table_command('table1', profile, root)}")
    with stop_at_once(), render_lock(profile, root):
        _refuse(
            _tree_problems()
            + _links(target / profile)
            + [problem for name in names for problem in table_problems(name, profile, root)]
        )
        runs = [(name, published_runs(name, profile, root)) for name in names]
        doomed = {path: reason for name, found in runs for path, reason in _outdated(name, profile, found, root, target)}
        cells, files = _cells(profile, target), _files(target / profile)
        for path in (*doomed, *_leftovers(target / profile)):
            path.unlink(missing_ok=True)
        for name, found in runs:
            for run in found:
                _copy_run(run, root, target)
            if name == "table9":
                for grid in grids(profile):
                    _copy(root / profile / "tuning" / f"{grid}.json", target / profile / "tuning" / f"{grid}.json")
        notes += _copy_chapters(names, profile, root, target)
        _tidy(profile, target)
        with publishing():
            render_tables(tables_with_scores(profile, target), profile, target)
    now = _files(target / profile)
    gone = [f"{path.relative_to(target)}: {reason}" for path, reason in doomed.items() if reason and path not in now]
    return {
        "tables": names,
        "cells": _changes(cells, _cells(profile, target)),
        "removed": gone,
        "notes": notes,
        "files": {
            "new": len(now.keys() - files.keys()),
            "changed": sum(1 for path in now.keys() & files.keys() if now[path] != files[path]),
            "removed": len(files.keys() - now.keys()),
        },
    }


def _refuse(problems: list[str]) -> None:
    for problem in problems:
        print_line(f"not published: {problem}", error=True)
    if problems:
        raise SfrikError(f"nothing was published ({len(problems)} reasons, above): run the named runs again, or move them away")


def _tree_problems() -> list[str]:
    found = commit()
    if found is None:
        return ["this is not a clone of the project with git, so its results have no commit"]
    return ["sfrik/, notebooks/ or pyproject.toml have changes that are not committed"] if found.endswith("-dirty") else []


def _links(folder: Path) -> list[str]:
    found = [path for path in (folder.parent, folder, *folder.rglob("*")) if path.is_symlink()]
    return [f"{path} is a symbolic link, to files outside the published results" for path in found]


# --- what leaves the published results


def _outdated(name: str, profile: str, runs: list[PublishedRun], root: Path, target: Path) -> Iterator[tuple[Path, str]]:
    """The files in the folders of a table's published runs that do not stay, with a reason if it is worth a line.

    A score of another table stays if it was measured on the same weights.
    """
    by_run = {(run.recipe, run.seed): run for run in runs}
    for recipe in dict.fromkeys(row.recipe for row in rows_of(name, profile)):
        of_table = {f"{score}.json" for score in score_names(name, profile, recipe, 0)}
        for seed in existing_seeds(recipe, target):
            folder, run = run_folder(recipe, seed, target), by_run.get((recipe, seed))
            scores = [path for path in _owned(folder) if _is_score(path)]
            stays = {f"{score}.json" for score in run.scores} if run else set()
            weights = _weights(run_folder(recipe, seed, root), run) if run else None
            others = {path for path in scores if run and read_json(path).get("backbone_sha256") != weights}
            for path in scores:
                if path.name not in stays and path.name in of_table:
                    yield path, "no longer measured" if run else f"the {unit_of(recipe)} is no longer there"
                elif path.name not in stays and path in others:
                    yield path, "measured on other weights"
            if others:
                yield from ((path, "") for path in _owned(folder) if path.suffix == ".ipynb")


def _weights(folder: Path, run: PublishedRun) -> str | None:
    """The SHA-256 of the weights that a run's scores were measured on."""
    found = [read_json(folder / f"{score}.json").get("backbone_sha256") for score in run.scores]
    return next(iter(found), cached_provenance(folder / "provenance.json").get("weights", {}).get("backbone.safetensors"))


def _owned(folder: Path) -> list[Path]:
    """The files in the folder of a published run that this command wrote: records, scores and executed notebooks."""
    if folder.is_symlink():
        return []
    notebooks = {stage.copy for stage in STAGES.values()} | {f"06_complexity_{name}.ipynb" for name in COSTS}
    scores = {score for stage in STAGES.values() for score in stage.scores} | set(COSTS)
    return [
        path
        for path in sorted(folder.glob("*"))
        if path.is_file()
        and (
            path.name in (*RECORDS, *notebooks)
            or (path.suffix == ".json" and (path.stem in scores or path.stem.startswith("transfer_")))
        )
    ]


def _leftovers(folder: Path) -> Iterator[Path]:
    """Unfinished executed copies that a killed command left behind."""
    return folder.rglob("*.partial.ipynb")


def _tidy(profile: str, target: Path) -> None:
    """Delete what has no row or no score: runs, choices of grids, tables; and executed notebooks that are not published."""
    recipes = {row.recipe for name in tables_of(profile) for row in rows_of(name, profile)}
    explained = _with_notebooks(profile)
    for parent in sorted(path for path in (target / profile).iterdir() if path.is_dir() and not path.is_symlink()):
        recipe = f"{profile}/{parent.name}"
        runs = {seed: _owned(run_folder(recipe, seed, target)) for seed in existing_seeds(recipe, target)}
        kept = [seed for seed, owned in runs.items() if recipe in recipes and any(_is_score(path) for path in owned)]
        if not kept and (runs or recipe in recipes):
            (parent / "README.md").unlink(missing_ok=True)
        for seed, owned in runs.items():
            for path in owned:
                if seed not in kept or (path.suffix == ".ipynb" and (seed != kept[0] or recipe not in explained)):
                    path.unlink()
            _remove_empty(run_folder(recipe, seed, target))
        if not kept:
            _remove_empty(parent)
    choices = (target / profile / "tuning").glob("*.json") if "table9" in tables_of(profile) else ()
    for path in choices:
        if path.stem not in grids(profile) and "chosen" in read_json(path):
            path.unlink()
    shown = tables_with_scores(profile, target)
    for kind, suffixes in SUFFIXES.items():
        for name in tables_of(profile):
            for suffix in suffixes if name not in shown else ():
                (target / profile / kind / f"{name}{suffix}").unlink(missing_ok=True)


def _with_notebooks(profile: str) -> set[str]:
    """The recipes of which the executed notebooks of one seed are published: SFRIK L=3 at the largest q.

    The others differ from it in a setting only, and would be most of the published bytes; `make notebooks` has the measurement of
    costs.
    """
    return {row.recipe for row in rows_of("table1", profile) if row.method == "SFRIK L=3" and row.q == DIMS[profile][-1]}


def _is_score(path: Path) -> bool:
    return path.suffix == ".json" and path.name not in RECORDS


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


# --- what enters them


def _copy_run(run: PublishedRun, root: Path, target: Path) -> None:
    source, folder = run_folder(run.recipe, run.seed, root), run_folder(run.recipe, run.seed, target)
    for name in (*RECORDS, *(f"{score}.json" for score in run.scores)):
        _copy(source / name, folder / name)
    for name in run.notebooks:
        if (source / name).is_file():
            copy_notebook(source / name, folder / name, root)


def _copy(source: Path, path: Path) -> None:
    """Copy a file, atomically, unless it is there already; remove it if there is no source."""
    if not source.is_file():
        path.unlink(missing_ok=True)
        return
    content = source.read_bytes()
    if not path.is_file() or path.read_bytes() != content:
        with atomic_write(path, len(content)) as file:
            file.write(content)


def _copy_chapters(names: Sequence[str], profile: str, root: Path, target: Path) -> list[str]:
    """Copy the notebooks that `make notebooks` executed, with the scores of their run. Returns why some are not published."""
    here, there = root / profile, target / profile
    record = cached_provenance(here / "chapters" / "provenance.json")
    found = str(record.get("commit") or "none")
    trained = bool(record.get("finished")) and found not in ("none", "unknown") and not found.endswith("-dirty")
    notes = []
    for name in CHAPTERS:
        source = here / "notebooks" / f"{name}.ipynb"
        if not source.is_file() or (name == COST_CHAPTER and "table6" not in names):
            continue
        if name == CHAPTERS[0] and profile != GENERAL:  # it is about the kernel only
            continue
        if name not in (CHAPTERS[0], COST_CHAPTER) and not trained:
            notes.append(f"{source} is not published: its run is not finished, or not of a clean checkout: make notebooks")
        elif not same_code(name, source):
            notes.append(f"{source} is not published: the notebook has changed since: make notebooks")
        else:
            copy_notebook(source, there / "notebooks" / source.name, root)
            for picture in FLOW if name == CHAPTERS[0] else ():
                if (here / "figures" / picture).is_file():
                    _copy(here / "figures" / picture, there / "figures" / picture)
    if trained and not notes:
        for path in _owned(here / "chapters"):
            if path.suffix != ".ipynb":
                _copy(path, there / "chapters" / path.name)
    return notes


# --- what changed


def _files(folder: Path) -> dict[Path, str]:
    return {path: file_hash(path) for path in folder.rglob("*") if path.is_file()}


def _cells(profile: str, target: Path) -> dict[str, str]:
    """The cells of all published tables: mean, standard deviation and number of seeds, by table, row and column."""
    found = {}
    for name in tables_with_scores(profile, target):
        table = build_table(name, profile, target)
        for m in table.measured:
            row = ", ".join(m.row.parts)
            found |= {f"{name}, {row}, {column.heading}": _cell(m, column) for column in table.columns}
    return {cell: text for cell, text in found.items() if text != MISSING}


def _cell(m: Measured, column: Column) -> str:
    number = plus_minus(m, column, " ± ")
    return number if number == MISSING else f"{number} (n = {m.n(column.name)})"


def _changes(old: dict[str, str], new: dict[str, str]) -> list[str]:
    return [
        f"{cell}: {old.get(cell, MISSING)} -> {new.get(cell, MISSING)}"
        for cell in {**old, **new}
        if old.get(cell) != new.get(cell)
    ]
