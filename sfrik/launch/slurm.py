"""SLURM: the queue, the submission of jobs, and the site's settings in slurm.toml.

A job's name holds the results folder and the work, so that the same work is recognised in the queue:
`sfrik/<hash of the folder's path>/smoke/sfrik_l3_q64/seed0/pretrain`. The batch script is sfrik/launch/job.sh.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sfrik.errors import SfrikError, nearest
from sfrik.system.files import read_toml

__all__ = [
    "Job",
    "Layout",
    "QueuedJob",
    "Site",
    "allocated_nodes",
    "drives_job",
    "job_name",
    "queued_jobs",
    "read_site",
    "scontrol",
    "submit",
]

SCRIPT = Path(__file__).with_name("job.sh")
SITE = Path(__file__).parents[2] / "slurm.toml"


class Site(BaseModel):
    """The settings of `slurm.toml`; an empty one leaves the choice to the cluster's default."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    account: str = ""
    partition: str = ""
    qos: str = ""
    constraint: str = ""
    time: str = ""  # as sbatch reads it: minutes, H:MM:SS, D-HH
    mem: str = ""  # of each node, as sbatch reads it
    cpus_per_task: Annotated[int, Field(gt=0, le=65535)] | None = None
    signal_seconds: Annotated[int, Field(ge=1, le=65535)] = 120
    setup: tuple[str, ...] = ()  # shell lines before the command
    prefix: str = ""  # shell words before the command
    python: str = ""  # the interpreter of the jobs; when empty, the one that submits them
    sbatch: tuple[str, ...] = ()  # further options


@dataclass(frozen=True)
class Layout:
    """The processes of a pretraining: the number of nodes, and the GPUs and processes on each node."""

    nodes: int = 1
    gpus: int = 0
    procs: int = 1

    @classmethod
    def of(cls, nodes: int = 1, gpus: int = 0, procs: int | None = None) -> Layout:
        """A layout with one process per GPU, or without GPUs `procs` processes (1 when None) on each node.

        Raises:
            SfrikError: `procs` is not the number of GPUs.
        """
        if gpus and procs not in (None, gpus):
            raise SfrikError(f"a node of {gpus} GPUs runs {gpus} processes: leave --procs {procs} (PROCS) out, or set --gpus 0")
        return cls(nodes, gpus, gpus or procs or 1)

    @property
    def processes(self) -> int:
        return self.nodes * self.procs

    @property
    def one(self) -> Layout:
        """The layout of a job with one process on one node, and one GPU if this layout has GPUs."""
        return Layout(1, min(self.gpus, 1), 1)

    def __str__(self) -> str:
        nodes, procs = (f"{n} {unit}{'' if n == 1 else plural}" for n, unit, plural in self._counts())
        return f"{nodes} x {procs}{', a GPU each' if self.gpus else ''}"

    def _counts(self) -> list[tuple[int, str, str]]:
        return [(self.nodes, "node", "s"), (self.procs, "process", "es")]


@dataclass(frozen=True)
class Job:
    """A job to submit: `python -m sfrik` with `command`, its output appended to `log`.

    Attributes:
        what: the name without the folder's hash; PROFILE/RECIPE/seedK/STAGE+STAGE for a run.
        after_ok: ids of jobs that must have succeeded; when one fails, this job leaves the queue.
        after_any: ids of jobs that must have ended, successfully or not.
    """

    what: str
    command: tuple[str, ...]
    log: Path
    layout: Layout = Layout()
    after_ok: tuple[str, ...] = ()
    after_any: tuple[str, ...] = ()


@dataclass(frozen=True)
class QueuedJob:
    """A job in the queue: `what` as in `Job`, `state` and `reason` in SLURM's words, its nodes once they are allocated."""

    id: str
    state: str
    reason: str
    nodes: str
    what: str

    @property
    def waits(self) -> bool:
        return self.state == "PENDING"

    @property
    def run(self) -> tuple[str, int, tuple[str, ...]] | None:
        """(recipe, seed, stages), or None for a table's job."""
        match = re.fullmatch(r"(.+)/seed(\d+)/([a-z+]+)", self.what)
        return (match[1], int(match[2]), tuple(match[3].split("+"))) if match else None


def read_site(path: str | Path | None = None, **overrides: str) -> Site:
    """Read slurm.toml at the root of the checkout, or the file that SFRIK_SLURM names; non-empty overrides replace settings.

    Raises:
        SfrikError: the file cannot be read, or a setting is unknown or has the wrong type.
    """
    named = path or os.environ.get("SFRIK_SLURM")
    path = Path(named or SITE)
    if named and not path.exists():
        raise SfrikError(f"the settings of SLURM cannot be read: there is no file {path}")
    content = read_toml(path) if path.exists() else {}
    for name in content:
        if name not in Site.model_fields:
            known = ", ".join(Site.model_fields)
            raise SfrikError(f"unknown setting {name} in {path}{nearest(name, Site.model_fields)}: there is {known}")
    try:
        return Site.model_validate({**content, **{name: value for name, value in overrides.items() if value}})
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(str(part) for part in problem["loc"])
        raise SfrikError(f"{name} in {path}: {problem['msg']}, got {problem['input']!r}") from None


def job_name(what: str, root: str | Path) -> str:
    """The job's name in the queue, which differs between two results folders (two clones)."""
    return f"{_owner(root)}{what}"


def queued_jobs(root: str | Path) -> list[QueuedJob]:
    """The user's jobs for a results folder, pending, running or completing; an empty list without SLURM.

    Jobs whose dependency can no longer be satisfied are left out: SLURM removes them.
    """
    if shutil.which("squeue") is None:
        return []
    lines = _call(["squeue", "--noheader", f"--user={_user()}", "--format=%i|%T|%r|%N|%j"]).splitlines()
    jobs = []
    for line in lines:
        identity, state, reason, nodes, name = line.strip().split("|", 4)
        if name.startswith(_owner(root)) and reason != "DependencyNeverSatisfied":
            jobs.append(QueuedJob(identity, state, reason, nodes, name.removeprefix(_owner(root))))
    return jobs


def submit(job: Job, site: Site, root: str | Path) -> str:
    """Submit a job and return its id.

    Raises:
        SfrikError: there is no sbatch here, or it refuses; its message is quoted.
    """
    log = job.log.absolute()
    log.parent.mkdir(parents=True, exist_ok=True)
    python = site.python or sys.executable
    command = [str(log), "\n".join(site.setup), site.prefix, python, "-m", "sfrik", *job.command]
    # sbatch reads the size of a job from SLURM's variables: those of the submitting job must not be inherited.
    inside = "SLURM_JOB_ID" in os.environ
    environment = {k: v for k, v in os.environ.items() if not inside or k == "SLURM_CONF" or not k.startswith("SLURM_")}
    printed = _call(["sbatch", "--parsable", *_options(job, site, root, log), str(SCRIPT), *command], environment)
    return printed.strip().splitlines()[-1].split(";")[0]  # "12;cluster" if there are several


def scontrol(*arguments: str) -> bool:
    """Run scontrol and return whether SLURM accepted the change."""
    try:
        _call(["scontrol", *arguments])
    except SfrikError:
        return False
    return True


def drives_job() -> bool:
    """Whether this process starts the steps of a SLURM job, and is not itself part of one of its steps."""
    return "SLURM_JOB_ID" in os.environ and "SLURM_STEP_ID" not in os.environ and shutil.which("srun") is not None


def allocated_nodes() -> int:
    """The number of nodes of this process's SLURM job; 1 outside of a job."""
    return int(os.environ.get("SLURM_NNODES", "1")) if drives_job() else 1


def _options(job: Job, site: Site, root: str | Path, log: Path) -> list[str]:
    layout = job.layout
    options = [
        f"--job-name={job_name(job.what, root)}",
        f"--chdir={Path.cwd()}",
        f"--output={str(log).replace('%', '%%')}",  # sbatch reads %j and the like in it
        f"--signal=USR1@{site.signal_seconds}",
        f"--nodes={layout.nodes}",
        f"--ntasks-per-node={layout.procs}",
    ]
    if layout.gpus:
        options.append(f"--gres=gpu:{layout.gpus}")
    for name in ("account", "partition", "qos", "constraint", "time", "mem", "cpus_per_task"):
        if value := getattr(site, name):
            options.append(f"--{name.replace('_', '-')}={value}")
    kinds = {"afterok": job.after_ok, "afterany": job.after_any}
    if after := ",".join(":".join([kind, *ids]) for kind, ids in kinds.items() if ids):
        options += [f"--dependency={after}", "--kill-on-invalid-dep=yes"]
    return [*options, *site.sbatch]


def _owner(root: str | Path) -> str:
    return f"sfrik/{hashlib.sha256(str(Path(root).resolve()).encode()).hexdigest()[:8]}/"


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else os.environ.get("USERNAME", "")


def _call(command: Sequence[str], environment: dict[str, str] | None = None) -> str:
    """Run a command of SLURM and return its output."""
    tool = command[0]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", env=environment)
    except FileNotFoundError:
        raise SfrikError(
            f"{tool} is not on PATH: LAUNCH=slurm works on a machine of a SLURM cluster; without it the table is computed here"
        ) from None
    if done.returncode:
        lines = [line.removeprefix(f"{tool}: ").removeprefix("error: ").strip() for line in done.stderr.splitlines()]
        raise SfrikError(f"{tool} refuses: {'; '.join(line for line in lines if line) or f'exit status {done.returncode}'}")
    return done.stdout
