"""SLURM's commands, as this library runs them: within a time limit, and without the variables that change what they do.

A user's SQUEUE_STATES hides jobs from `squeue`, so that they would be submitted twice; SBATCH_QOS changes what is submitted, and
SLURM_LABELIO what the workers of a step seem to print. No command gets such a variable. What a user sets on purpose is in
slurm.toml.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping

from sfrik.errors import SfrikError

__all__ = ["CLIENT_SECONDS", "call_client", "client_environment", "ignored_variables", "step_environment"]

CLIENT_SECONDS = 60.0  # after which a command counts as failed
OPTION = re.compile(r"(SLURM|SBATCH|SQUEUE|SINFO|SCONTROL|SCANCEL|SACCT|SACCTMGR|SALLOC|SATTACH|SRUN|SPRIO|SSTAT)_")
CONNECTION = re.compile(r"SLURM_(CONF|CONF_SERVER|JWT|SACK_SOCKET)")
# What SLURM itself sets in an allocation, and `srun` needs for a step of it: the job, its nodes, and what it asked for.
ALLOCATION = re.compile(
    r"SLURM_(JOB_\w+|JOBID|NNODES|NODELIST|NODE_ALIASES|TASKS_PER_NODE|CPUS_(ON_NODE|PER_\w+)|GPUS\w*|MEM_PER_\w+|SUBMIT_\w+"
    r"|CLUSTER_NAME|WORKING_CLUSTER|RESTART_COUNT|ARRAY_\w+|HET_\w+|PRIO_PROCESS|HINT|OVERCOMMIT|THREADS_PER_CORE|TOPOLOGY_\w+|SPANK_\w+)"
)


def client_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment, by default that of this process, without variables of SLURM except those that name the cluster."""
    found = os.environ if environment is None else environment
    return {name: value for name, value in found.items() if not OPTION.match(name) or CONNECTION.fullmatch(name)}


def step_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of `srun`: as `client_environment`, with the variables that describe the allocation."""
    allocation = {name: value for name, value in environment.items() if ALLOCATION.fullmatch(name)}
    return client_environment(environment) | allocation


def ignored_variables() -> list[str]:
    """The variables of the user that would change what `sbatch` submits."""
    return sorted(name for name in os.environ if re.match(r"SBATCH_|SLURM_CLUSTERS$", name))


def call_client(tool: str, *arguments: str) -> str:
    """Run a command of SLURM and return its output.

    Raises:
        SfrikError: it cannot be started, fails, or does not end within `CLIENT_SECONDS`; its message is quoted.
    """
    try:
        done = subprocess.run(
            [tool, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=client_environment(),
            timeout=CLIENT_SECONDS,
        )
    except FileNotFoundError:
        raise not_here(tool) from None
    except OSError as error:
        raise SfrikError(f"{tool} cannot be started: {error}") from None
    except subprocess.TimeoutExpired:
        raise SfrikError(f"{tool} does not answer within {CLIENT_SECONDS:.0f} s: try again when the cluster responds") from None
    if done.returncode or (not done.stdout.strip() and re.search(r"\berror\b", done.stderr)):  # a wrapper may lose the status
        lines = [line.removeprefix(f"{tool}: ").removeprefix("error: ").strip() for line in done.stderr.splitlines()]
        raise SfrikError(f"{tool} refuses: {'; '.join(line for line in lines if line) or f'exit status {done.returncode}'}")
    return done.stdout


def not_here(tool: str) -> SfrikError:
    """The error of a machine without SLURM's clients."""
    return SfrikError(
        f"{tool} is not on PATH: LAUNCH=slurm works on a machine of a SLURM cluster; without it the table is computed here"
    )
