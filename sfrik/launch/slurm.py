"""SLURM: the site's settings in slurm.toml, and the submission of jobs. The batch script is sfrik/launch/job.sh."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from sfrik.errors import SfrikError, nearest
from sfrik.launch.slurm_client import call_client
from sfrik.launch.slurm_queue import job_name
from sfrik.system.files import read_toml

__all__ = [
    "Job",
    "Layout",
    "Site",
    "read_site",
    "scontrol",
    "submit",
]

SCRIPT = Path(__file__).with_name("job.sh")
SITE = Path(__file__).parents[2] / "slurm.toml"
# What a job needs of the submitting process's variables, also with --export=NONE.
JOB_VARIABLES = re.compile(
    r"SFRIK_(?!BAR|PREFIX|STOP)\w+|OMP_NUM_THREADS|PYTHONPATH|XDG_CACHE_HOME|WANDB_(MODE|PROJECT|ENTITY)|SLURM_CONF"
)
# Options of sbatch that are set for each job, or with which `sbatch` would not just add one job to this cluster's queue.
OWN_OPTIONS = re.compile(
    r"--(job-name|chdir|output|error|dependency|array|clusters|wrap|wait|test-only|parsable)(=.*)?|-[JDoedaMW].*"
)
# What may be wrong when `sbatch` refuses, by its message, and what to do.
LIMIT = "the cluster limits the jobs that you may have in its queue: the same command submits the rest when some have ended"
REMEDIES = (
    (
        r"answer|timed out|[Cc]ontact|[Cc]onnect",
        "the job may have been added: the same command looks into the queue first",
    ),
    (r"Submit\w*Limit|MaxSubmit|MaxArraySize|array spec|unable to accept job", LIMIT),
    (r"time limit is invalid|WallDuration|TimeLimit", "set TIME=, or time in slurm.toml; `sinfo` shows each partition's limit"),
    (r"job submit limit", f"either {LIMIT}; or the job is too large or too long for the account: NODES=, GPUS=, TIME="),
    (r"account", "set account in slurm.toml"),
    (r"[Pp]artition", "set PARTITION=, or partition in slurm.toml; `sinfo -s` lists the partitions"),
    (r"(?i)qos", "set qos in slurm.toml"),
    (r"gres|GRES|gpu", "no node of the partition has these GPUs: set GPUS= or PARTITION="),
    (r"feature|constraint", "set constraint in slurm.toml"),
    (r"[Mm]emory", "set mem in slurm.toml"),
    (r"[Nn]ode|[Pp]rocessors|CPU", "set NODES=, GPUS=, PROCS= or PARTITION=, or cpus_per_task in slurm.toml"),
)


def _own_options(options: tuple[str, ...]) -> tuple[str, ...]:
    for option in filter(OWN_OPTIONS.fullmatch, options):
        raise ValueError(f"{option} is set for each job, leave it out")
    return options


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
    sbatch: Annotated[tuple[str, ...], AfterValidator(_own_options)] = ()  # further options
    srun: tuple[str, ...] = ()  # further options of the steps


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


def read_site(path: str | Path | None = None, **overrides: str) -> Site:
    """Read slurm.toml at the root of the checkout, or the file that SFRIK_SLURM names; non-empty overrides replace settings.

    Raises:
        SfrikError: the file cannot be read, or a setting is unknown or has the wrong type.
    """
    named = path or os.environ.get("SFRIK_SLURM")
    path = Path(os.path.expanduser(named or SITE))
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


def submit(job: Job, site: Site, root: str | Path) -> str:
    """Submit a job and return its id.

    Raises:
        SfrikError: there is no sbatch here, or it refuses; its message is quoted.
    """
    log = job.log.absolute()
    log.parent.mkdir(parents=True, exist_ok=True)
    python = os.path.expanduser(site.python) or sys.executable
    command = [str(log), _exports(), "\n".join(site.setup), site.prefix, python, "-m", "sfrik", *job.command]
    try:
        printed = call_client("sbatch", "--parsable", *_options(job, site, root, log), str(SCRIPT), *command)
    except SfrikError as error:
        remedy = next((remedy for pattern, remedy in REMEDIES if re.search(pattern, str(error))), "")
        raise SfrikError(f"{error}{remedy and f' ({remedy})'}") from None
    last = printed.strip().rpartition("\n")[2]
    if not (number := re.fullmatch(r"(\d+)(;\w+)?", last.strip())):  # "12;cluster" if there are several
        raise SfrikError(f"sbatch prints no job number but {last[:200]!r}: look into the queue (squeue) before the next try")
    with suppress(OSError):
        log.touch()  # records the submission before the job starts
    return number[1]


def scontrol(*arguments: str) -> bool:
    """Run scontrol and return whether SLURM accepted the change."""
    try:
        call_client("scontrol", *arguments)
    except SfrikError:
        return False
    return True


def _exports() -> str:
    """Shell lines that set the variables a job needs, whatever `--export` says."""
    named = {name: value for name, value in sorted(os.environ.items()) if JOB_VARIABLES.fullmatch(name)}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in named.items()]
    if sbatch := shutil.which("sbatch"):  # srun and scontrol are in the same folder
        lines.append(f'export PATH="${{PATH:+$PATH:}}"{shlex.quote(str(Path(sbatch).parent))}')
    return "\n".join(lines)


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
