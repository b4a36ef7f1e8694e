"""The commands about whole tables and runs: `sfrik table`, `sfrik status`, `sfrik run` and `sfrik chapters`."""

from __future__ import annotations

import argparse
import csv
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfrik.cli.flags import PROFILES, add_command, add_processes, add_recipe, processes, whole
from sfrik.cli.output import Answer, add_json
from sfrik.cli.summaries import run_summary, table_summary
from sfrik.errors import SfrikError, nearest

if TYPE_CHECKING:
    from sfrik.reproduce.status import RunStatus

__all__ = ["add_chapters", "add_run", "add_status", "add_table"]

LAUNCHES = ("local", "slurm")
PLACES = ("partition", "nodes", "gpus", "procs", "time")  # flags that only a cluster has a use for
TABLE = "Compute what a table misses, and render it."
STATUS = "Every run of the tables: done, running, queued, preempted, stopped, failed, broken or missing."
RUN = "Run the notebooks of one recipe and seed by papermill; what is finished is skipped."


def add_table(commands) -> None:
    table = add_command(commands, "table", TABLE)
    table.add_argument("name", help="table1 to table9, or all: render what is there, train nothing")
    table.add_argument("--profile", default="digits", help=f"one of {', '.join(PROFILES)}")
    table.add_argument("--seeds", default="1", help="number of seeds, from 0")
    table.add_argument("--jobs", default="0", help="runs side by side; 0: as many as there are cores (on CPU)")
    table.add_argument("--render-only", "--render_only", action="store_true", help="train nothing: render all that is there")
    table.add_argument("--dry-run", "--dry_run", action="store_true", help="say what would run and what is finished; no more")
    add_json(table)
    table.add_argument("--exp-dir", "--exp_dir", default=None, help="root of the results folder")
    table.add_argument("--data-dir", "--data_dir", default="", help="folder of the images; the recipe's when unset")
    table.add_argument("--launch", default="local", help="local, or slurm: submit jobs and return; see slurm.toml")
    table.add_argument("--partition", metavar="NAME", help="slurm: the partition; slurm.toml's when unset")
    table.add_argument("--nodes", metavar="M", help="slurm: nodes of a pretraining (1 when unset)")
    table.add_argument("--gpus", metavar="G", help="slurm: GPUs of each node, one process for each (0 when unset)")
    table.add_argument("--procs", metavar="N", help="slurm: processes on each node without GPUs (1 when unset)")
    table.add_argument("--time", metavar="TIME", help="slurm: time limit of a job; one that reaches it saves and goes on")
    table.add_argument("--part", default="0", help=argparse.SUPPRESS)  # of a table's last job: what was submitted before it
    table.set_defaults(run=_table)


def add_status(commands) -> None:
    status = add_command(commands, "status", STATUS)
    status.add_argument("names", nargs="*", metavar="TABLE", help="table1 to table9; all of the profile when none is named")
    status.add_argument("--profile", default="digits", help=f"one of {', '.join(PROFILES)}")
    status.add_argument("--seeds", default="1", help="number of seeds, from 0")
    status.add_argument("--exp-dir", "--exp_dir", default=None, help="root of the results folder")
    add_json(status)
    status.set_defaults(run=_status)


def add_run(commands) -> None:
    run = add_command(commands, "run", RUN)
    add_recipe(run, required=True)
    run.add_argument("--seed", default="0")
    run.add_argument(
        "--stages", nargs="+", metavar="STAGE", help="pretrain, linear, semi, knn, tune, inference (default: pretrain linear knn)"
    )
    run.add_argument("--dry-run", "--dry_run", action="store_true", help="say what would run and what is finished; no more")
    add_json(run)
    add_processes(run, "processes that pretrain, on every node of a SLURM allocation")
    run.add_argument("--exp-dir", "--exp_dir", default=None, help="root of the results folder")
    run.add_argument("--data-dir", "--data_dir", default="", help="folder of the images; the recipe's when unset")
    run.set_defaults(run=_run)


def _table(options: argparse.Namespace) -> Answer:
    from sfrik.reproduce.table import make_table, render_all
    from sfrik.settings import results_root

    root = options.exp_dir or results_root()
    if options.launch not in LAUNCHES:
        raise SfrikError(f"--launch must be local or slurm, got {options.launch!r}{nearest(options.launch, LAUNCHES)}")
    seeds, jobs = whole(options.seeds, "--seeds", 1), whole(options.jobs, "--jobs", 0)
    if options.dry_run:
        return _plan(options.name, options.profile, seeds, root)
    if options.name == "all":
        status = render_all(options.profile, root)
        return Answer({"profile": options.profile, "folder": str(Path(root) / options.profile / "tables")}, status=status)
    if options.launch == "slurm" and not options.render_only:
        status = _submit(options)
        following = f"next: python -m sfrik status {options.name} --profile {options.profile} --seeds {seeds}"
        return Answer({"table": options.name, "profile": options.profile}, [] if status else [following], status)
    for flag in PLACES:
        if getattr(options, flag) is not None and options.launch == "local":
            raise SfrikError(f"--{flag} says where on a cluster a table is computed: it goes with --launch slurm (LAUNCH=slurm)")
    status = make_table(options.name, options.profile, seeds, jobs, options.render_only, root, options.data_dir)
    if status:
        return Answer({"table": options.name, "profile": options.profile, "complete": False}, status=status)
    with (Path(root) / options.profile / "tables" / f"{options.name}.csv").open(newline="") as file:
        content = {"table": options.name, "profile": options.profile, "complete": True, "rows": list(csv.DictReader(file))}
    return Answer(content, table_summary(options.name, options.profile, seeds, root))


def _submit(options: argparse.Namespace) -> int:
    from sfrik.launch.slurm import Layout, read_site
    from sfrik.reproduce.submit import submit_table

    if whole(options.jobs, "--jobs", 0):
        raise SfrikError("--jobs (JOBS) is of runs side by side on one machine: leave it out with --launch slurm")
    nodes, gpus = whole(options.nodes or "1", "--nodes", 1), whole(options.gpus or "0", "--gpus", 0)
    return submit_table(
        options.name,
        options.profile,
        whole(options.seeds, "--seeds", 1),
        Layout.of(nodes, gpus, None if options.procs is None else whole(options.procs, "--procs", 1)),
        read_site(partition=options.partition or "", time=options.time or ""),
        options.exp_dir,
        options.data_dir,
        whole(options.part, "--part", 0),
    )


def _status(options: argparse.Namespace) -> Answer:
    from sfrik.reproduce.status import format_status, state_counts, tables_status

    found, jobs = tables_status(options.names, options.profile, whole(options.seeds, "--seeds", 1), options.exp_dir)
    content = {"runs": [asdict(status) for status in found], "counts": state_counts(found)}
    return Answer(content, format_status(found, jobs))


def _run(options: argparse.Namespace) -> Answer:
    from sfrik.reproduce.run import run_recipe
    from sfrik.reproduce.stages import DEFAULT_STAGES, check_run, existing_scores
    from sfrik.reproduce.status import run_status
    from sfrik.settings import results_root, run_folder

    root, seed = options.exp_dir or results_root(), whole(options.seed, "--seed", 0)
    stages = tuple(options.stages or DEFAULT_STAGES)
    if options.dry_run:
        check_run(options.recipe, stages)
        return _planned([(run_status(options.recipe, seed, stages, root), stages)], root)
    run_recipe(options.recipe, seed, root, stages, options.data_dir, processes(options))
    folder = run_folder(options.recipe, seed, root)
    content = {"recipe": options.recipe, "seed": seed, "folder": str(folder)}
    scores = existing_scores(options.recipe, seed, root, stages)
    return Answer({**content, "scores": scores}, run_summary(options.recipe, folder, scores, root))


def _plan(name: str, profile: str, seeds: int, root: str | Path) -> Answer:
    """What the runs of a table still lack. Of table 9, the runs of the choices are known once these are written down."""
    from sfrik.reproduce.status import needed_runs, run_status
    from sfrik.tables.collect import has_scores
    from sfrik.tables.definitions import EXPERIMENTS

    if name == "all":
        names, broken = [], {}
        for table in (table for table, found in EXPERIMENTS.items() if profile in found.profiles):
            try:
                names += [table] if has_scores(table, profile, root) else []
            except SfrikError as error:
                broken[table] = str(error)
        lines = [f"{table}: broken: {reason}" for table, reason in broken.items()]
        content = {"would_render": names, **({"broken": broken} if broken else {})}
        return Answer(content, [*lines, f"would render {', '.join(names) or 'nothing'}; trains nothing"])
    needed = needed_runs([name], profile, seeds, root)
    return _planned([(run_status(*run, stages, root), stages) for run, stages in needed.items()], root)


def _planned(runs: list[tuple[RunStatus, tuple[str, ...]]], root: str | Path) -> Answer:
    """Of each run, with its stages, what would be done; nothing is touched."""
    lines, content = [], []
    broken = [status for status, _ in runs if status.state == "broken"]
    for status, stages in runs:
        entry: dict[str, Any] = {"recipe": status.recipe, "seed": status.seed}
        content.append(entry)
        if status in broken:
            lines.append(f"{status.recipe} seed {status.seed}: broken: {status.detail}")
            entry |= {"would_run": [], "finished": [], "broken": status.detail}
            continue
        done = [stage for stage in stages if stage not in status.missing]
        words = [f"would run {', '.join(status.missing)}"] if status.missing else []
        words += [f"finished {', '.join(done)}" if done else "finished"] if done or not status.missing else []
        lines.append(f"{status.recipe} seed {status.seed}: {'; '.join(words)}")
        entry |= {"would_run": list(status.missing), "finished": done}
    count = sum(1 for status, _ in runs if status.missing and status not in broken)
    finished = len(runs) - count - len(broken)
    summary = f"{'1 run' if len(runs) == 1 else f'{len(runs)} runs'} in {root}: {finished} finished, {count} to run"
    return Answer({"root": str(root), "runs": content}, [*lines, summary + (f", {len(broken)} broken" if broken else "")])


def add_chapters(commands) -> None:
    chapters = add_command(commands, "chapters", "Execute every notebook, from 01 to 07, with what it shows for the reader.")
    chapters.add_argument("--profile", default="digits", help=f"whose recipes and images: one of {', '.join(PROFILES)}")
    chapters.add_argument("--exp-dir", "--exp_dir", default=None, help="root of the results folder")
    add_json(chapters)
    chapters.set_defaults(run=_chapters)


def _chapters(options: argparse.Namespace) -> Answer:
    if options.profile not in PROFILES:
        raise SfrikError(f"unknown profile {options.profile!r}{nearest(options.profile, PROFILES)}: choose {', '.join(PROFILES)}")
    from sfrik.reproduce.chapters import execute_chapters
    from sfrik.settings import results_root

    seconds = execute_chapters(options.profile, options.exp_dir)
    folder = Path(options.exp_dir or results_root()) / options.profile / "notebooks"
    return Answer({"folder": str(folder), "seconds": seconds}, [f"notebooks: {folder}"])
