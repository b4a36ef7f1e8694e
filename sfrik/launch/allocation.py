"""The SLURM allocation that this process is in: whether it starts the steps of a job, and on how many nodes."""

from __future__ import annotations

import os
import shutil

from sfrik.errors import SfrikError
from sfrik.system.processes import process_place

__all__ = ["allocated_nodes", "check_nodes", "check_one_task", "drives_job"]

INTERACTIVE_STEP = "4294967290"  # of the shell that `salloc` opens on a node
# Variables of programs that start processes: the number of processes, the number of this one.
STARTERS = {
    "srun": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    "mpirun": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "mpiexec": ("PMI_SIZE", "PMI_RANK"),
}


def drives_job() -> bool:
    """Whether this process starts the steps of a SLURM job, and is not itself part of one of its steps."""
    return _outside_of_steps() and shutil.which("srun") is not None


def allocated_nodes() -> int:
    """The number of nodes of this process's SLURM job; 1 outside of a job, and in a step.

    Raises:
        SfrikError: there are several nodes and no `srun` that starts processes on them.
    """
    if not _outside_of_steps():
        return 1
    nodes = int(os.environ.get("SLURM_JOB_NUM_NODES") or os.environ.get("SLURM_NNODES") or 1)
    if nodes > 1 and not drives_job():
        raise SfrikError(
            f"SLURM job {os.environ['SLURM_JOB_ID']} has {nodes} nodes, but srun, which starts the processes on them, is not on "
            "PATH: add it (setup or prefix in slurm.toml)"
        )
    return nodes


def check_nodes(nodes: int) -> None:
    """Refuse more nodes than this process can start workers on.

    Raises:
        SfrikError: there is no SLURM job, or it has fewer nodes.
    """
    if nodes > 1 and not drives_job():
        if "SLURM_JOB_ID" in os.environ:
            raise SfrikError(f"launch on {nodes} nodes, but this process is in a step of a SLURM job: start it without srun")
        raise SfrikError(
            f"launch on {nodes} nodes needs a SLURM job: on this machine leave nodes out; without SLURM start on each "
            f"node `torchrun --nnodes={nodes} --nproc-per-node=N --rdzv-endpoint=HOST:29500 -m sfrik pretrain ...`"
        )
    if nodes > allocated_nodes():
        raise SfrikError(
            f"launch on {nodes} nodes, but SLURM job {os.environ['SLURM_JOB_ID']} has {allocated_nodes()}: "
            f"leave nodes out, or submit the job with --nodes={nodes}"
        )


def check_one_task() -> None:
    """Refuse to do the same work in each of several tasks that `srun` or `mpirun` has started, unless they have a WORLD_SIZE.

    Raises:
        SfrikError: this is the first of several tasks.
        SystemExit: it is another one; the first reports the error.
    """
    if process_place().size > 1 or os.environ.get("WORLD_SIZE") == "1":  # or several runs that a user starts at once
        return
    for starter, (size, rank) in STARTERS.items():
        tasks = "1" if starter == "srun" and drives_job() else os.environ.get(size, "1")
        if tasks.isdigit() and int(tasks) > 1:
            # variables of mpirun may be left in a shell: then there is no first task
            if starter == "srun" and os.environ.get(rank, "0") != "0":
                raise SystemExit(2)
            nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", "1")) if starter == "srun" else 1
            raise SfrikError(
                f"{starter} started {tasks} tasks, which would each do all the work: leave {starter} out, and pretrain with "
                f"`python -m sfrik pretrain --nproc-per-node {int(tasks) // nodes or 1} ...`, which starts the processes on all "
                f"nodes of the job (if each task is a run with a folder of its own, or {size} is left in the shell: WORLD_SIZE=1)"
            )


def _outside_of_steps() -> bool:
    return "SLURM_JOB_ID" in os.environ and os.environ.get("SLURM_STEP_ID", INTERACTIVE_STEP) == INTERACTIVE_STEP
