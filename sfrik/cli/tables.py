"""The commands that reproduce tables and runs: `sfrik table`, `sfrik status`, `sfrik run` and `sfrik chapters`."""

from __future__ import annotations

import argparse
import csv
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfrik.cli.checks import check_folder, check_inputs, check_plan, check_table
from sfrik.cli.flags import (
    add_command,
    add_data_dir,
    add_dry_run,
    add_nproc_per_node,
    add_profile,
    add_recipe,
    add_root,
    nproc_per_node,
    whole_number,
)
from sfrik.cli.output import CommandOutput, add_json
from sfrik.cli.summaries import run_summary, table_summary
from sfrik.errors import SfrikError, nearest
from sfrik.launch.allocation import check_one_task
from sfrik.system.files import check_text

if TYPE_CHECKING:
    from sfrik.launch.slurm import Layout
    from sfrik.reproduce.status import RunStatus

__all__ = ["add_chapters", "add_run", "add_status", "add_table"]

LAUNCHES = ("local", "slurm")
SLURM_FLAGS = ("partition", "nodes", "gpus", "procs", "time")
TABLE = "Train the missing runs of a table, then render it."
STATUS = "Show which runs are done, running, failed or missing. Those not done are listed."
RUN = "Run the notebooks of one recipe and seed. Finished stages are skipped."
CHAPTERS = "Execute all notebooks, 01 to 07. Cells that only explain are included."
DRY_RUN = "print what is finished and what would run, and stop"


def add_table(commands) -> None:
    table = add_command(commands, "table", TABLE)
    table.add_argument("name", metavar="TABLE", help="table1 to table9, or all: render every table that has results")
    add_profile(table)
    table.add_argument("--seeds", default="1", metavar="K", help="number of seeds: 0 to K - 1")
    table.add_argument("--jobs", metavar="N", default="0", help="runs in parallel; 0: one per CPU core, or one with a GPU")
    table.add_argument("--render-only", action="store_true", help="train nothing: render the results so far")
    add_dry_run(table, DRY_RUN)
    add_json(table)
    add_root(table)
    add_data_dir(table, "the recipe's")
    table.add_argument("--launch", metavar="WHERE", default="local", help="local; or slurm: submit jobs and return (slurm.toml)")
    slurm = table.group("with --launch slurm")
    slurm.add_argument("--partition", metavar="NAME", help="partition (default: slurm.toml's)")
    slurm.add_argument("--nodes", metavar="M", help="nodes per pretraining (default: 1)")
    slurm.add_argument("--gpus", metavar="G", help="GPUs per node, one process per GPU (default: 0)")
    slurm.add_argument("--procs", metavar="N", help="processes per node without GPUs (default: 1)")
    slurm.add_argument("--time", metavar="TIME", help="time limit of a job; a job that reaches it is resumed by another")
    table.add_argument("--part", default="0", help=argparse.SUPPRESS)  # set for a table's last job: the jobs submitted before it
    table.set_defaults(run=_table)


def add_status(commands) -> None:
    status = add_command(commands, "status", STATUS)
    status.add_argument("names", nargs="*", metavar="TABLE", help="table1 to table9 (default: all of the profile)")
    add_profile(status)
    status.add_argument("--seeds", default="1", metavar="K", help="number of seeds: 0 to K - 1")
    add_root(status)
    add_json(status)
    status.set_defaults(run=_status)


def add_run(commands) -> None:
    run = add_command(commands, "run", RUN)
    add_recipe(run, required=True)
    run.add_argument("--seed", default="0", help="random seed of the run")
    run.add_argument(
        "--stages", nargs="+", metavar="STAGE", help="pretrain, linear, semi, knn, tune, inference (default: pretrain linear knn)"
    )
    add_dry_run(run, DRY_RUN)
    add_json(run)
    add_nproc_per_node(run, "processes of the pretraining on this machine, or per node of a SLURM job")
    add_root(run)
    add_data_dir(run, "the recipe's")
    run.set_defaults(run=_run)


def _table(options: argparse.Namespace) -> CommandOutput:
    from sfrik.reproduce.table import make_table, render_all, writable_root
    from sfrik.settings import published_root
    from sfrik.tables.compare import compare_tables

    check_text(options.results or "", options.data_dir)
    check_folder(options.results)
    root = writable_root(options.profile, options.results)
    check_one_task()
    if options.launch not in LAUNCHES:
        raise SfrikError(f"--launch must be local or slurm, got {options.launch!r}{nearest(options.launch, LAUNCHES)}")
    for flag in SLURM_FLAGS:
        if getattr(options, flag) is not None and options.launch == "local":
            raise SfrikError(f"--{flag} has an effect only with --launch slurm (LAUNCH=slurm)")
    seeds, jobs = whole_number(options.seeds, "--seeds", 1), whole_number(options.jobs, "--jobs", 0)
    layout = _layout(options) if options.launch == "slurm" else None
    if options.dry_run:
        return _plan(options.name, options.profile, seeds, root, options.data_dir, layout)
    if options.name == "all":
        status = render_all(options.profile, root)
        return CommandOutput({"profile": options.profile, "folder": str(Path(root) / options.profile / "tables")}, status=status)
    if layout is not None and not options.render_only:
        status = _submit(options, layout)
        next_line = f"next: python -m sfrik status {options.name} --profile {options.profile} --seeds {seeds}"
        return CommandOutput({"table": options.name, "profile": options.profile}, [] if status else [next_line], status)
    status = make_table(options.name, options.profile, seeds, jobs, options.render_only, root, options.data_dir)
    if status:
        return CommandOutput({"table": options.name, "profile": options.profile, "complete": False}, status=status)
    with (Path(root) / options.profile / "tables" / f"{options.name}.csv").open(newline="", encoding="utf-8") as file:
        content = {"table": options.name, "profile": options.profile, "complete": True, "rows": list(csv.DictReader(file))}
    shown = None if options.render_only else seeds
    content["comparison"] = compare_tables(options.name, options.profile, root, published_root(), shown).as_json()
    return CommandOutput(content, table_summary(options.name, options.profile, seeds, root, options.data_dir))


def _layout(options: argparse.Namespace) -> Layout:
    """The processes of a pretraining on a cluster."""
    from sfrik.launch.slurm import Layout

    if whole_number(options.jobs, "--jobs", 0):
        raise SfrikError("--jobs (JOBS) sets the runs in parallel on one machine: leave it out with --launch slurm")
    nodes, gpus = whole_number(options.nodes or "1", "--nodes", 1), whole_number(options.gpus or "0", "--gpus", 0)
    return Layout.of(nodes, gpus, None if options.procs is None else whole_number(options.procs, "--procs", 1))


def _submit(options: argparse.Namespace, layout: Layout) -> int:
    from sfrik.launch.slurm import read_site
    from sfrik.reproduce.submit import submit_table

    return submit_table(
        options.name,
        options.profile,
        whole_number(options.seeds, "--seeds", 1),
        layout,
        read_site(partition=options.partition or "", time=options.time or ""),
        options.results,
        options.data_dir,
        whole_number(options.part, "--part", 0),
    )


def _status(options: argparse.Namespace) -> CommandOutput:
    from sfrik.reproduce.status import format_status, state_counts, tables_status

    check_folder(options.results)
    found, jobs = tables_status(options.names, options.profile, whole_number(options.seeds, "--seeds", 1), options.results)
    content = {"runs": [asdict(status) for status in found], "counts": state_counts(found)}
    return CommandOutput(content, format_status(found, jobs, options.results))


def _run(options: argparse.Namespace) -> CommandOutput:
    from sfrik.reproduce.run import run_recipe
    from sfrik.reproduce.stages import DEFAULT_STAGES, check_run, existing_scores
    from sfrik.reproduce.status import run_status
    from sfrik.settings import PretrainSettings, as_list, run_folder, runs_root

    check_text(options.results or "", options.data_dir)
    check_folder(options.results)
    root, seed = options.results or runs_root(), whole_number(options.seed, "--seed", 0)
    stages = tuple(dict.fromkeys(as_list(options.stages or DEFAULT_STAGES)))  # --stages pretrain,linear too
    check_one_task()
    if options.dry_run:
        check_run(options.recipe, stages)
        status = run_status(options.recipe, seed, stages, root)
        if status.refused:
            raise SfrikError(status.refused)
        given = {"seed": seed, "exp_dir": str(run_folder(options.recipe, seed, root)), "data_dir": options.data_dir or None}
        settings = PretrainSettings.from_recipe(options.recipe, **given)
        check_inputs(settings)
        processes = nproc_per_node(options) or 1
        if "pretrain" in status.missing:
            check_plan(settings, processes, waits=True)
        return _format_runs([(status, stages)], root)
    run_recipe(options.recipe, seed, root, stages, options.data_dir, nproc_per_node(options))
    folder = run_folder(options.recipe, seed, root)
    content = {"recipe": options.recipe, "seed": seed, "folder": str(folder)}
    scores = existing_scores(options.recipe, seed, root, stages)
    return CommandOutput({**content, "scores": scores}, run_summary(options.recipe, folder, scores, root))


def _plan(name: str, profile: str, seeds: int, root: str | Path, data_dir: str, layout: Layout | None) -> CommandOutput:
    """The stages that the runs of a table still need. Table 9's final runs are listed once their hyperparameters are chosen."""
    from sfrik.reproduce.notebooks import notebook_path
    from sfrik.reproduce.status import needed_runs, run_status
    from sfrik.tables.collect import has_scores
    from sfrik.tables.definitions import tables_of

    if name == "all":
        names, broken = [], {}
        for table in tables_of(profile):
            try:
                names += [table] if has_scores(table, profile, root) else []
            except SfrikError as error:
                broken[table] = str(error)
        lines = [f"{table}: broken: {reason}" for table, reason in broken.items()]
        content = {"would_render": names, **({"broken": broken} if broken else {})}
        return CommandOutput(
            content, [*lines, f"would render {', '.join(names) or 'nothing'}; trains nothing"], int(bool(broken))
        )
    notebook_path("07_tables")
    needed = needed_runs([name], profile, seeds, root)
    runs = [(run_status(*run, stages, root), stages) for run, stages in needed.items()]
    check_table({status.recipe for status, _ in runs if "pretrain" in status.missing}, data_dir, layout)
    return _format_runs(runs, root)


def _format_runs(runs: list[tuple[RunStatus, tuple[str, ...]]], root: str | Path) -> CommandOutput:
    """What is finished and what would run, given the status and the stages of each run."""
    from sfrik.tables.cost_rows import unit_of

    lines, content = [], []
    broken = [status for status, _ in runs if status.state == "broken"]
    for status, stages in runs:
        run = f"{status.recipe} {unit_of(status.recipe)} {status.seed}"
        entry: dict[str, Any] = {"recipe": status.recipe, "seed": status.seed}
        content.append(entry)
        if status in broken:
            lines.append(f"{run}: broken: {status.detail}")
            entry |= {"would_run": [], "finished": [], "broken": status.detail}
            continue
        if status.refused:
            lines.append(f"{run}: refused: {status.refused}")
            entry |= {"would_run": [], "finished": [], "refused": status.refused}
            continue
        done = [stage for stage in stages if stage not in status.missing]
        parts = [f"would run {', '.join(status.missing)}"] if status.missing else []
        parts += [f"finished {', '.join(done)}" if done else "finished"] if done or not status.missing else []
        lines.append(f"{run}: {'; '.join(parts)}")
        entry |= {"would_run": list(status.missing), "finished": done}
    refused = sum(1 for status, _ in runs if status.refused)
    count = sum(1 for status, _ in runs if status.missing and status not in broken) - refused
    finished = len(runs) - count - len(broken) - refused
    summary = f"{'1 run' if len(runs) == 1 else f'{len(runs)} runs'} in {root}: {finished} finished, {count} to run"
    summary += (f", {len(broken)} broken" if broken else "") + (f", {refused} refused" if refused else "")
    return CommandOutput({"root": str(root), "runs": content}, [*lines, summary], int(bool(broken or refused)))


def add_chapters(commands) -> None:
    chapters = add_command(commands, "chapters", CHAPTERS)
    add_profile(chapters)
    add_root(chapters)
    add_json(chapters)
    add_data_dir(chapters, "the recipe's")
    chapters.set_defaults(run=_chapters)


def _chapters(options: argparse.Namespace) -> CommandOutput:
    check_text(options.results or "", options.data_dir)
    check_folder(options.results)
    check_one_task()
    from sfrik.reproduce.chapters import execute_chapters
    from sfrik.settings import runs_root

    seconds = execute_chapters(options.profile, options.results, options.data_dir)
    folder = Path(options.results or runs_root()) / options.profile / "notebooks"
    return CommandOutput({"folder": str(folder), "seconds": seconds}, [f"notebooks: {folder}"])
