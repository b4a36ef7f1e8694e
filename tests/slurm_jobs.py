"""Runs as SLURM jobs without a table, and stand-ins for SLURM's commands."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from sfrik.reproduce.stages import PlannedRun
from sfrik.reproduce.submit import _submitting

SCRIPT = Path(__file__).parents[1] / "sfrik" / "launch" / "job.sh"
RUN = PlannedRun("smoke/sfrik_l3_q64", 0, ("pretrain", "linear", "knn"))

# Each stands for a command of SLURM: sbatch adds the job to a file that squeue prints, and records its arguments.
FAKES = {
    "sbatch": """
        echo $(( $(cat "$HERE/count") + 1 )) > "$HERE/count"
        printf '%s\\0' "$@" > "$HERE/job$(cat "$HERE/count")"
        env > "$HERE/env$(cat "$HERE/count")"
        if [ -e "$HERE/refuses" ]; then cat "$HERE/refuses" >&2; exit 1; fi
        for word in "$@"; do case $word in --job-name=*) name=${word#*=};; esac; done
        echo "$(cat "$HERE/count")|PENDING|Priority||$name" >> "$HERE/queue"
        cat "$HERE/count"
    """,
    "squeue": 'cat "$HERE/queue"',
    "scontrol": 'if [ "$1" = show ]; then cat "$HERE/shows"; else echo "$@" >> "$HERE/updates"; fi',
}


class Cluster:
    """The fake cluster's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def jobs(self) -> list[list[str]]:
        """The arguments of each sbatch so far."""
        count = int((self.folder / "count").read_text(encoding="utf-8"))
        return [(self.folder / f"job{number}").read_text(encoding="utf-8").split("\0")[:-1] for number in range(1, count + 1)]

    @property
    def names(self) -> list[str]:
        return [self.option(job, "job-name").split("/", 2)[2] for job in self.jobs]

    @property
    def updates(self) -> list[str]:
        path = self.folder / "updates"
        return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []

    def queue(self, *lines: str) -> None:
        (self.folder / "queue").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def becomes(self, identity: str, state: str, reason: str = "None", nodes: str = "node[1-2]") -> None:
        lines = [line.split("|") for line in (self.folder / "queue").read_text(encoding="utf-8").splitlines()]
        self.queue(*("|".join([i, state, reason, nodes, n] if i == identity else [i, s, r, h, n]) for i, s, r, h, n in lines))

    def leaves(self, *identities: str) -> None:
        self.queue(
            *(
                line
                for line in (self.folder / "queue").read_text(encoding="utf-8").splitlines()
                if line.split("|")[0] not in identities
            )
        )

    def replace(self, tool: str, body: str) -> None:
        """Let a stand-in do something else; $HERE is this folder."""
        (self.folder / tool).write_text(f"#!/bin/sh\nHERE={shlex.quote(str(self.folder))}\n{body}\n", encoding="utf-8")

    @staticmethod
    def option(job: list[str], name: str) -> str | None:
        return next((word.split("=", 1)[1] for word in job if word.startswith(f"--{name}=")), None)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Stand-ins for SLURM's commands, first on PATH."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    (folder / "count").write_text("0", encoding="utf-8")
    (folder / "queue").touch()
    for name, body in FAKES.items():
        path = folder / name
        path.write_text(f'#!/bin/sh\nHERE={shlex.quote(str(folder))}\nenv >> "$HERE/seen"\n{body}\n', encoding="utf-8")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SFRIK_SLURM", str(folder / "slurm.toml"))
    (folder / "slurm.toml").touch()
    return Cluster(folder)


@pytest.fixture
def root(tmp_path):
    """The folder of the results."""
    return tmp_path / "results"


def submit_runs(runs, layout, site, root, data_dir=""):
    """Submit the jobs of runs, as `submit_table` does for those of a table; returns the ids."""
    with _submitting(layout, site, root, data_dir) as submission:
        return submission.submit_runs(submission.missing(runs))
