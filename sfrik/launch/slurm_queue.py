"""SLURM's queue: the jobs of a results folder, and why one of them waits.

A job's name holds the results folder and the work, so that the same work is recognised in the queue:
`sfrik/<hash of the folder's path>/smoke/sfrik_l3_q64/seed0/pretrain`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from sfrik.errors import SfrikError
from sfrik.launch.slurm_client import call_client

__all__ = ["QueuedJob", "job_name", "queued_jobs"]

ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT"),
}
NEVER = "DependencyNeverSatisfied"
# SLURM's reasons, as patterns of the whole text; in plain words; what to do. A reason that passes by itself is not among them.
REASONS = (
    ("JobHeldUser", "is held by its user", "scontrol release {id}"),
    ("JobHeldAdmin", "is held by an administrator", "ask the administrators to release it"),
    (NEVER, "can never start, since a job that it needs has failed", "scancel {id}; the same make submits it again"),
    (
        ".*launch failed.*|.*requeued held.*|JobHoldMaxRequeue",
        "is held by SLURM, which could not start it",
        "its log and `scontrol show job {id}` show why; then scontrol release {id}",
    ),
    (
        r"BadConstraints|Invalid\w+|Partition\w+Limit|QOSMin\w+|(Assoc|QOS)\w*Per(Job|Node)\w*|(Association|QOS)(Job|Resource|Time)Limit|\w+NotAllowed",
        "cannot start, since it asks for more than the partition, the account or the QOS allows",
        "scancel {id}, change slurm.toml or the make variables; the same make submits it again",
    ),
    (
        r"(Assoc|QOS)Grp\w*(Minutes|Billing)\w*",
        "cannot start, since the account has used up its time",
        "another account (slurm.toml), or ask the administrators",
    ),
    (r"(Assoc|QOS|Max)\w+", "waits, since the account or the QOS is at a limit", "it starts when other jobs have ended"),
    ("PartitionDown|PartitionInactive", "waits for a partition that is closed", "`sinfo -s` lists the partitions"),
    (
        "Nodes? ?[Rr]equired.*|ReqNodeNotAvail.*|NodeDown.*|Reservation.+",
        "waits for nodes that are down, drained or reserved",
        "`sinfo -R` shows the reasons; for other nodes scancel {id} and change slurm.toml",
    ),
)
HOLDS = {"REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", *HOLDS}


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
        return self.state in WAITING

    @property
    def can_start(self) -> bool:
        """Whether the job runs or may still start: not if a job that it needs has failed."""
        return self.reason != NEVER

    @property
    def obstacle(self) -> str:
        """What keeps the job from starting and what to do, in one line; empty if it only has to wait for its turn."""
        if not self.waits:
            return ""
        for pattern, words, remedy in REASONS:
            if re.fullmatch(pattern, self.reason.strip("()")):
                return f"{words} ({self.reason.strip('()')}): {remedy.format(id=self.id)}"
        return f"is held by SLURM ({self.state}): scontrol release {self.id}" if self.state in HOLDS else ""

    def __str__(self) -> str:
        """Where the job runs, or why it waits.

        >>> print(QueuedJob("7", "PENDING", "JobHeldUser", "", "x"))
        job 7 is held by its user (JobHeldUser): scontrol release 7
        """
        if self.waits:
            return f"job {self.id} {self.obstacle or f'waits ({self.reason})'}"
        usual = self.state in ("RUNNING", "COMPLETING", "CONFIGURING")
        return f"job {self.id} on {self.nodes}{'' if usual else f' ({self.state.lower()})'}"

    @property
    def run(self) -> tuple[str, int, tuple[str, ...]] | None:
        """(recipe, seed, stages), or None for a table's job."""
        match = re.fullmatch(r"(.+)/seed(\d+)/([a-z+]+)", self.what)
        return (match[1], int(match[2]), tuple(match[3].split("+"))) if match else None


def job_name(what: str, root: str | Path) -> str:
    """The job's name in the queue, which differs between two results folders (two clones)."""
    return f"{_owner(root)}{what}"


def queued_jobs(root: str | Path) -> list[QueuedJob]:
    """The user's jobs for a results folder that have not ended, in the order of their submission; none without SLURM.

    Raises:
        SfrikError: `squeue` fails, or prints something else than jobs: the queue is then unknown, not empty.
    """
    if shutil.which("squeue") is None and shutil.which("sbatch") is None:
        return []
    printed = call_client("squeue", "--noheader", f"--user={_user()}", "--states=all", "--sort=i", "--format=%i|%T|%r|%N|%j")
    jobs = []
    for line in filter(None, map(str.strip, printed.splitlines())):
        if not (match := re.fullmatch(r"([\w\[\]+,%-]+)\|([A-Z_]+)\|(.*?)\|([^|]*)\|(.*)", line)):
            raise SfrikError(f"squeue prints a line that is no job: {line[:200]!r}; the queue is not known")
        identity, state, reason, nodes, name = match.groups()
        if name.startswith(_owner(root)) and state not in ENDED:
            jobs.append(QueuedJob(identity, state, reason, nodes, name.removeprefix(_owner(root))))
    return jobs


def _owner(root: str | Path) -> str:
    return f"sfrik/{hashlib.sha256(str(Path(root).resolve()).encode()).hexdigest()[:8]}/"


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else os.environ.get("USERNAME", "")
