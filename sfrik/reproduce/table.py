"""`make tableN`: execute the missing runs of a table, then render it.

Each run (a recipe and a seed) is one process, which executes its notebooks one after the other.

Several of these commands may work in one folder of results at the same time. `run.lock` in a run's folder lets one process run,
and `render.lock` in a profile's folder lets one render; the others wait, then check again which runs are missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sfrik.errors import SfrikError
from sfrik.reproduce.commands import table_command
from sfrik.reproduce.local import default_jobs, run_side_by_side
from sfrik.reproduce.notebooks import execute, notebook_path, print_typed
from sfrik.reproduce.present import PresentImages
from sfrik.reproduce.stages import STAGES, PlannedRun, check_images, missing_stages, refusal
from sfrik.runs.data import split_differences
from sfrik.runs.provenance import code
from sfrik.runs.records import Choice
from sfrik.runs.refusals import refuse_published
from sfrik.settings import published_root, run_folder, runs_root
from sfrik.system.files import path_exists, read_text, write_json
from sfrik.system.locks import folder_lock
from sfrik.system.records import VERSION, read_record
from sfrik.system.signals import stop_at_once
from sfrik.system.terminal import print_line, terminal_width
from sfrik.tables.claim_pages import write_claims
from sfrik.tables.collect import build_table, read_score, tables_with_scores
from sfrik.tables.compare import compare_tables
from sfrik.tables.cost_rows import ROUNDS
from sfrik.tables.definitions import experiment, grids, rows_of
from sfrik.tables.render import as_csv, as_markdown
from sfrik.tables.text import agreement, as_text

__all__ = [
    "make_table",
    "render_all",
    "render_lock",
    "render_tables",
    "table_runs",
    "without_refused",
    "writable_root",
    "write_choices",
]


def make_table(
    name: str,
    profile: str,
    seeds: int = 1,
    jobs: int = 0,
    render_only: bool = False,
    root: str | Path | None = None,
    data_dir: str = "",
) -> int:
    """Execute the missing runs of a table, then render it with notebook 07.

    Args:
        jobs: number of runs in parallel; 0 chooses it for this machine.
        root: the folder of the results.
        data_dir: the folder of the images; the recipe's when empty.

    Returns:
        The exit status: 1 if a run failed, or its folder holds another run, which is not touched and not shown.
    """
    root = writable_root(profile, root)
    experiment(name, profile)  # an unknown table or profile is refused before anything is written
    notebook_path("07_tables")  # fails before hours of work if there are no notebooks
    complete = True
    with stop_at_once():
        if not render_only:
            failed, complete = _compute(name, profile, seeds, root, jobs, data_dir)
            if failed:
                return 1
        with render_lock(profile, root):
            _render(name, profile, root, None if render_only else seeds)
            _print_table(name, profile, root, None if render_only else seeds, data_dir)
    return int(not complete)


def _print_table(name: str, profile: str, root: Path, seeds: int | None, data_dir: str) -> None:
    """Print a table beside the published one, and whether they agree."""
    comparison, width = compare_tables(name, profile, root, published_root(), seeds), terminal_width()
    measure = table_command(name, profile, root, seeds or 1, data_dir)
    print_line("\n".join([*as_text(comparison, width), "", *agreement([comparison], width, measure=measure)]))


def render_all(profile: str, root: str | Path | None = None) -> int:
    """Render every table that has a score; trains nothing. Returns the exit status."""
    root = writable_root(profile, root)
    names = tables_with_scores(profile, root)
    if not names:
        raise SfrikError(f"nothing has been measured in {root / profile} yet: make table1 PROFILE={profile}")
    with stop_at_once(), render_lock(profile, root):
        render_tables(names, profile, root)
    left_out = dict.fromkeys(line for name in names for line in build_table(name, profile, root).left_out)
    print_line("".join(f"not shown: {line}\n" for line in left_out), error=True, end="")
    print_line(f"{len(names)} tables in {root / profile / 'tables'}: {', '.join(names)}")
    return 0


def render_tables(names: Sequence[str], profile: str, root: Path) -> None:
    """Write tables, figures, pages and claims from the scores in `root`, with notebook 07."""
    parameters = {"tables": list(names), "profile": profile, "seeds": 0, "root": str(root)}
    execute("07_tables", parameters, root / profile / "notebooks" / "07_tables.ipynb")
    write_claims(profile, root)


def writable_root(profile: str, root: str | Path | None = None) -> Path:
    """The folder of runs and tables that a command writes: `runs_root()` when None, never the published results.

    Neither may the profile's folder be, or what is in it, by a link.
    """
    root = Path(root or runs_root())
    for folder in (root, root / profile, *(path for path in root.glob(f"{profile}/*") if path.is_symlink())):
        refuse_published(folder)
    return root


@contextmanager
def render_lock(profile: str, root: str | Path) -> Iterator[None]:
    """Let one process at a time write the files made from a profile's scores: tables, figures, pages, choices, notebooks."""
    with folder_lock(Path(root) / profile, "render.lock", wait=True, optional=True):
        yield


def table_runs(name: str, profile: str, seeds: int, root: str | Path) -> Iterator[tuple[str, list[PlannedRun]]]:
    """The runs of a table, in parts with a title each.

    Table 9 has two parts: the runs of the second are known when those of the first have finished, so take it then.
    """
    rows, stages = rows_of(name, profile), experiment(name, profile).stages
    if name != "table9":
        yield name, [PlannedRun(row.recipe, seed, stages) for seed in range(seeds) for row in rows]
        return
    # The grid is scored on the tuning split with one seed; the test images are scored once the choice is written down.
    yield f"{name}, the grids", [PlannedRun(row.recipe, 0, stages) for row in rows]
    chosen = write_choices(profile, root).values()
    last = (*stages, "inference")
    yield f"{name}, the choices", [PlannedRun(recipe, seed, last) for seed in range(seeds) for recipe in chosen]


def write_choices(profile: str, root: str | Path) -> dict[str, str]:
    """Write which recipe of each grid is best on the tuning split to <root>/<profile>/tuning/<grid>.json.

    Returns:
        The chosen recipes, by the name of the grid.

    Raises:
        SfrikError: A score is missing or broken, has other settings, or the scores of a grid were measured on different images.
    """
    chosen = {}
    with render_lock(profile, root):
        for grid, recipes in grids(profile).items():
            found = {recipe: _tuning_score(recipe, root) for recipe in recipes}
            _refuse_mixed_images(grid, found)
            scores = {recipe: score["top1"] for recipe, score in found.items()}
            chosen[grid] = max(scores, key=lambda recipe: scores[recipe])  # the first of equals
            path = Path(root) / profile / "tuning" / f"{grid}.json"
            name = chosen[grid].split("/")[-1]
            choice = {"grid": grid, "protocol": "linear_tune", "seed": 0, "tune_top1": scores, "chosen": name}
            known = read_record(path, Choice) if path_exists(path) else {}
            if any(known.get(key) != value for key, value in choice.items()):
                write_json(path, {"version": VERSION, **choice, **code()})
    return chosen


def _tuning_score(recipe: str, root: str | Path) -> dict[str, Any]:
    found, problem = read_score(recipe, 0, "linear_tune", root)
    if problem:
        raise SfrikError(f"{recipe} seed 0: {problem}")
    if found.get("top1") is None:
        raise SfrikError(f"{run_folder(recipe, 0, root) / 'linear_tune.json'} has no top1: move it away and run again")
    return found


def _refuse_mixed_images(grid: str, scores: Mapping[str, dict[str, Any]]) -> None:
    known = {recipe: score["data"] for recipe, score in scores.items() if score.get("data")}
    for recipe, data in known.items():
        if differences := split_differences(data, next(iter(known.values()))):
            raise SfrikError(
                f"{recipe} seed 0: linear_tune.json was measured on other images than {next(iter(known))} of grid {grid} "
                f"({differences}): measure both again, with make table9"
            )


def _compute(name: str, profile: str, seeds: int, root: str | Path, jobs: int, data_dir: str) -> tuple[bool, bool]:
    """Execute the missing runs of a table; returns whether one failed, and whether all are there."""
    if name in ("table5", "table6"):
        for seed in range(seeds):
            _measure_costs(name, profile, seed, root)
        return False, True
    present = PresentImages(data_dir)
    for title, runs in table_runs(name, profile, seeds, root):
        lacking = {run: missing_stages(run.recipe, run.seed, root, run.stages, present) for run in runs}
        missing = [run for run, stages in lacking.items() if stages]
        print_line(f"{title}: {len(runs)} runs, {len(runs) - len(missing)} finished here")
        allowed = without_refused(missing, root, present)
        check_images([run._replace(stages=tuple(lacking[run])) for run in allowed], data_dir)
        for notebook in dict.fromkeys(STAGES[stage].notebook for run in allowed for stage in run.stages):
            print_typed(notebook)  # the runs print it to their logs only
        usual = default_jobs() if allowed else 1  # checks the GPUs, also where JOBS is given
        failed = run_side_by_side(allowed, root, jobs or usual, data_dir, present)
        for run, reason in failed:
            print_line(f"failed: {run.recipe} seed {run.seed}: {reason}", error=True)
        if failed or len(allowed) < len(missing):  # then table 9 has no choice yet
            return bool(failed), False
    return False, True


def without_refused(runs: Sequence[PlannedRun], root: str | Path, present: PresentImages) -> list[PlannedRun]:
    """The runs except those whose folder holds another run; these are named, with what to do."""
    refused = {run: reason for run in runs if (reason := refusal(run.recipe, run.seed, root, present))}
    for run, reason in refused.items():
        print_line(f"refused: {run.recipe} seed {run.seed}: {reason}", error=True)
    return [run for run in runs if run not in refused]


def _measure_costs(name: str, profile: str, seed: int, root: str | Path) -> None:
    """Measure the costs of table 5 or 6 on this machine, unless they have been."""
    from sfrik.cost.measure import measured_here

    folder = run_folder(f"{profile}/complexity", seed, root)
    path, executed = folder / f"{name}.json", folder / f"06_complexity_{name}.ipynb"
    with folder_lock(folder, "run.lock", wait=True, optional=True):
        if not (measured_here(path, name, profile) and executed.is_file()):
            print_line(f"{name}, profile {profile}: measuring, repetition {seed}")
            parameters = {"table": name, "profile": profile, "seed": seed, "exp_dir": str(folder), "rounds": ROUNDS}
            execute("06_complexity", parameters, executed, explore=False)


def _render(name: str, profile: str, root: str | Path, seeds: int | None) -> None:
    """Execute notebook 07, unless its output already shows the same scores."""
    folder = Path(root) / profile
    executed = folder / "notebooks" / f"07_{name}.ipynb"
    table = build_table(name, profile, root, seeds)
    texts = {folder / "tables" / f"{name}.csv": as_csv(table), folder / "tables" / f"{name}.md": as_markdown(table)}
    if executed.is_file() and all(path.is_file() and read_text(path) == text for path, text in texts.items()):
        return
    print_line(f"rendering {name}")
    execute("07_tables", {"tables": [name], "profile": profile, "seeds": seeds or 0, "root": str(root)}, executed)
