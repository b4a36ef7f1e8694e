"""The commands about whole tables: `sfrik table`, here or on a SLURM cluster, and `sfrik status`."""

from __future__ import annotations

import argparse

from sfrik.errors import SfrikError, nearest

__all__ = ["add_status", "add_table", "whole"]

LAUNCHES = ("local", "slurm")
PLACES = ("partition", "nodes", "gpus", "procs", "time")  # flags that only a cluster has a use for
TABLE = "Compute what a table misses, and render it."
STATUS = "Every run of the tables: done, running, queued, preempted, stopped, failed or missing."


def add_table(commands, profiles: tuple[str, ...]) -> None:
    table = commands.add_parser("table", help=f"{TABLE[0].lower()}{TABLE[1:-1]}", description=TABLE)
    table.add_argument("name", help="table1 to table9, or all: render what is there, train nothing")
    table.add_argument("--profile", default="desk", help=f"one of {', '.join(profiles)}")
    table.add_argument("--seeds", default="1", help="number of seeds, from 0")
    table.add_argument("--jobs", default="0", help="runs side by side; 0: as many as there are cores (on CPU)")
    table.add_argument("--render-only", "--render_only", action="store_true", help="train nothing: render all that is there")
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


def add_status(commands, profiles: tuple[str, ...]) -> None:
    status = commands.add_parser("status", help=f"{STATUS[0].lower()}{STATUS[1:-1]}", description=STATUS)
    status.add_argument("names", nargs="*", metavar="TABLE", help="table1 to table9; all of the profile when none is named")
    status.add_argument("--profile", default="desk", help=f"one of {', '.join(profiles)}")
    status.add_argument("--seeds", default="1", help="number of seeds, from 0")
    status.add_argument("--exp-dir", "--exp_dir", default=None, help="root of the results folder")
    status.add_argument("--json", action="store_true", help="print JSON: each run with its stages, jobs and last words")
    status.set_defaults(run=_status)


def whole(text: str, flag: str, least: int) -> int:
    """The whole number that a flag was given.

    Raises:
        SfrikError: it is none, or under `least`.
    """
    if not text.isdigit() or int(text) < least:
        raise SfrikError(f"{flag} must be a whole number >= {least}, got {text!r}")
    return int(text)


def _table(options: argparse.Namespace) -> int:
    from sfrik.campaign import make_table, render_all

    if options.launch not in LAUNCHES:
        raise SfrikError(f"--launch must be local or slurm, got {options.launch!r}{nearest(options.launch, LAUNCHES)}")
    if options.name == "all":
        return render_all(options.profile, options.exp_dir)
    if options.launch == "slurm" and not options.render_only:
        return _submit(options)
    for flag in PLACES:
        if getattr(options, flag) is not None and options.launch == "local":
            raise SfrikError(f"--{flag} says where on a cluster a table is computed: it goes with --launch slurm (LAUNCH=slurm)")
    return make_table(
        options.name,
        options.profile,
        whole(options.seeds, "--seeds", 1),
        whole(options.jobs, "--jobs", 0),
        options.render_only,
        options.exp_dir,
        options.data_dir,
    )


def _submit(options: argparse.Namespace) -> int:
    from sfrik.slurm import Layout, read_site
    from sfrik.slurm_table import submit_table

    if whole(options.jobs, "--jobs", 0):
        raise SfrikError("--jobs (JOBS) is of runs side by side on one machine: leave it out with --launch slurm")
    nodes, gpus = whole(options.nodes or "1", "--nodes", 1), whole(options.gpus or "0", "--gpus", 0)
    procs = None if options.procs is None else whole(options.procs, "--procs", 1)
    return submit_table(
        options.name,
        options.profile,
        whole(options.seeds, "--seeds", 1),
        Layout.of(nodes, gpus, procs),
        read_site(partition=options.partition or "", time=options.time or ""),
        options.exp_dir,
        options.data_dir,
        whole(options.part, "--part", 0),
    )


def _status(options: argparse.Namespace) -> int:
    from sfrik.status import show_status

    show_status(options.names, options.profile, whole(options.seeds, "--seeds", 1), options.exp_dir, options.json)
    return 0
