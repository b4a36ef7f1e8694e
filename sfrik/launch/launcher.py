"""A function on N processes: from a notebook, a shell, or a SLURM allocation::

    launch("sfrik.pretrain.loop:pretrain", settings, nproc_per_node=2)

The processes are fresh (never forks, so a kernel that has used CUDA is fine): plain subprocesses on one machine, one `srun` step
over the whole allocation inside a SLURM job. The call, the result, the progress and the first traceback travel through the
workers' pipes (`sfrik.launch.remote_call`). The function must be importable by name.

How a launch ends: a worker that fails ends all of them, and its traceback is the caller's error. A signal to the caller (one of
`sfrik.system.signals.SIGNALS`), or its death, asks the workers to stop (SIGTERM); SLURM signals them directly (SIGUSR1 before the
limit, SIGTERM). `pretrain` then saves a checkpoint; a worker that has not ended after `GRACE` seconds is killed.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sfrik.errors import SfrikError, WorkerError
from sfrik.launch.allocation import allocated_nodes, check_nodes, check_one_task, drives_job
from sfrik.launch.output import WorkerOutput
from sfrik.launch.remote_call import Reports, importable_name, pack_call, resolve
from sfrik.launch.rendezvous import open_rendezvous
from sfrik.launch.slurm import read_site
from sfrik.launch.slurm_client import step_environment
from sfrik.system.devices import cores
from sfrik.system.processes import LAUNCHER_VARIABLES
from sfrik.system.progress import wants_bar
from sfrik.system.signals import (
    FAILURE_GRACE,
    GRACE,
    KILL_GRACE,
    REPORT_GRACE,
    SIGNALS,
    StopRequests,
    place_reached,
    stop,
    stop_requests,
)
from sfrik.system.temporary import temporary_folder
from sfrik.system.terminal import open_standard_streams

__all__ = ["launch"]


def launch(
    function: str | Callable, *args: Any, nproc_per_node: int | None = None, nodes: int | None = None, **kwargs: Any
) -> Any:
    """Call a function on several processes.

    Args:
        function: "module:name", or a function of an importable module.
        *args: numbers, strings, lists, dicts, or pydantic settings.
        nproc_per_node: processes on each node; the number of GPUs, or 1, when None. A single process outside of a SLURM job
            is the calling one.
        nodes: nodes of the SLURM allocation; all of them when None.
        **kwargs: as the positional arguments.

    Returns:
        What rank 0 returned, after a round trip through JSON.

    Raises:
        WorkerError: a worker raised or died.
        SfrikError: the function cannot be imported, or an argument cannot be sent.
        Preempted: this process or the workers were asked to stop by SIGTERM, SIGUSR1 or SIGHUP; the workers have ended.
        KeyboardInterrupt: the same for SIGINT.

    >>> launch("math:comb", 5, 2, nproc_per_node=1)
    10
    """
    name = importable_name(function)
    nproc = nproc_per_node or _gpus()
    nodes = nodes or allocated_nodes()
    for count, what in ((nproc, "nproc_per_node"), (nodes, "nodes")):
        if not isinstance(count, int) or count < 1:
            raise SfrikError(f"{what} of launch must be a whole number of at least 1, got {count!r}")
    check_nodes(nodes)
    check_one_task()
    if nproc * nodes == 1 and not drives_job():
        return resolve(name)(*args, **kwargs)
    call = pack_call(name, args, kwargs)
    token = secrets.token_hex(16)
    environment = {
        **{name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES},
        "WORLD_SIZE": str(nproc * nodes),
        "LOCAL_WORLD_SIZE": str(nproc),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(_threads(nproc))),
        "PYTHONUNBUFFERED": "1",
    }
    if wants_bar():
        environment["SFRIK_BAR"] = "1"  # the workers send their progress, and it is drawn here
    if nodes == 1 and (loopback := _loopback()):  # nothing listens beyond this machine, whatever the user's variables say
        environment |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    open_standard_streams()  # else a pipe to the workers could get the number of a closed one
    reports = Reports(token)
    with temporary_folder() as folder, stop_requests() as requests:
        rendezvous, _store = open_rendezvous(nodes, folder)
        call |= {"token": token, "rendezvous": rendezvous}
        reading, writing = os.pipe()
        try:
            workers = _start(nproc, nodes, environment, writing)
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        _watch(workers, json.dumps(call) + "\n", WorkerOutput(reading, workers, reports), requests)
    if reports.result:
        return reports.result[0]
    saved = place_reached(reports.stopped) if reports.stopped is not None else "nothing new to save"
    if requests.number:
        stop(requests.number, saved)
    raise WorkerError("rank 0 ended with exit status 0 before the function returned")


def _gpus() -> int:
    """The number of GPUs of this machine, or 1."""
    import torch

    return max(1, torch.cuda.device_count())


def _loopback() -> str | None:
    """The name of the loopback interface: lo on Linux, lo0 on macOS."""
    return next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)


def _start(nproc: int, nodes: int, environment: dict[str, str], reports: int) -> list[subprocess.Popen]:
    """Start the workers: one subprocess per worker on this machine, or a single srun for the workers of all nodes.

    Their stdout is the descriptor `reports`; what they print arrives through stderr.
    """
    worker = [sys.executable, "-m", "sfrik.launch.worker"]
    options: dict[str, Any] = {
        "stdin": subprocess.PIPE,  # carries the call; it ends when the caller does, which stops the worker
        "stdout": reports,
        "stderr": subprocess.PIPE,
        "start_new_session": True,  # Ctrl-C reaches only the caller, which then stops the workers
    }
    if drives_job():
        step = ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nproc * nodes}", f"--ntasks-per-node={nproc}"]
        step += ["--kill-on-bad-exit=1", "--export=ALL"]  # the job itself may have been submitted with --export=NONE
        if nodes == 1 and "SLURMD_NODENAME" in environment:  # of several allocated nodes, the one of the caller
            step.append(f"--nodelist={environment['SLURMD_NODENAME']}")
        if cpus := environment.get("SLURM_CPUS_PER_TASK"):
            step.append(f"--cpus-per-task={cpus}")
        step += read_site().srun
        step += shlex.split(environment.get("SFRIK_PREFIX", ""))  # a container for the workers
        return [subprocess.Popen([*step, *worker], env=step_environment(environment), **options)]
    return [
        subprocess.Popen(worker, env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}, **options)
        for rank in range(nproc)
    ]


def _watch(workers: list[subprocess.Popen], call: str, output: WorkerOutput, requests: StopRequests) -> None:
    """Send the workers their call and show what they print, until they have ended.

    A stop request that a worker received is put into `requests`. Workers that were asked to stop are no error.

    Raises:
        WorkerError: a worker failed.
    """
    reports = output.reports
    killed: list[int] = []
    grace = GRACE
    try:
        for worker in workers:  # in threads: a large call fills the pipe, and the worker may never read
            threading.Thread(target=_send_call, args=(worker, call), daemon=True).start()
        while _some_run(workers) and not any(worker.returncode for worker in workers):
            if requests.number or reports.stopped is not None:
                break
            output.refresh(wait=0.1)
        if any(worker.returncode for worker in workers) and not requests.number:
            deadline = time.monotonic() + REPORT_GRACE
            while time.monotonic() < deadline and not (reports.failure or output.killed):
                output.refresh(wait=0.1)
            killed = [rank for rank, worker in enumerate(workers) if (worker.poll() or 0) < 0 and not _ended_by_request(worker)]
            grace = FAILURE_GRACE
        if not (requests.number or killed or output.killed):
            requests.number = _stop_signal(workers, reports)
    finally:
        _stop(workers, grace, output)
        output.close()
    if requests.number:
        return
    # The others report that they lost the connection to a worker that was killed: its death is the cause.
    if len(workers) > 1 and killed:
        how = _format_exit(workers[killed[0]].returncode)
        raise WorkerError(
            f"rank {killed[0]} on {socket.gethostname()} {how} before it could report an error; unless someone "
            "killed it, it most likely ran out of memory"
        )
    if output.killed:
        node, ranks, how = output.killed.groups()
        raise WorkerError(f"rank {ranks} on {node} was ended ({how}) before it could report an error; {output.killed.group()}")
    if reports.failure:
        failure = reports.failure
        raise WorkerError(f"rank {failure['rank']} on {failure['host']} failed:\n{failure['traceback']}", failure["mistake"])
    for rank, worker in enumerate(workers):
        if worker.returncode:
            who = f"rank {rank} on {socket.gethostname()}" if len(workers) > 1 else "the step of workers"
            raise WorkerError(f"{who} {_format_exit(worker.returncode)} before it could report an error{output.step_errors()}")


def _send_call(worker: subprocess.Popen, call: str) -> None:
    """Write the call to a worker's stdin, which stays open: it ends when this process does, and the worker then stops."""
    assert worker.stdin is not None  # as it was started
    with suppress(OSError, ValueError):  # the worker has ended already; its exit status is reported
        worker.stdin.write(call.encode())
        worker.stdin.flush()


def _stop(workers: list[subprocess.Popen], grace: float, output: WorkerOutput) -> None:
    """Send SIGTERM, wait up to `grace` seconds, then send SIGKILL; a second interrupt ends the wait, and no worker is left."""
    try:
        for worker in workers:
            if worker.poll() is None:
                _signal_group(worker, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while _some_run(workers) and time.monotonic() < deadline:
            output.refresh(wait=0.05)
    finally:
        for worker in workers:
            _signal_group(worker, signal.SIGKILL)  # its decoding processes too, even if the worker has ended
        for worker in workers:
            with suppress(subprocess.TimeoutExpired):
                worker.wait(KILL_GRACE)


def _signal_group(worker: subprocess.Popen, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # macOS refuses a group that is empty
        os.killpg(worker.pid, number)


def _some_run(workers: list[subprocess.Popen]) -> bool:
    codes = [worker.poll() for worker in workers]  # of all of them, since `poll` sets `returncode`
    return None in codes


def _stop_signal(workers: list[subprocess.Popen], reports: Reports) -> int:
    """The signal by which another process asked a worker to stop, 0 if none was asked."""
    if reports.stopped is not None and reports.first == "stopped":  # else the failure of another worker was the reason
        return next((n for n in SIGNALS if f"by {signal.Signals(n).name} " in reports.stopped), signal.SIGTERM)
    return next((_ended_by_request(worker) for worker in workers if _ended_by_request(worker)), 0)


def _ended_by_request(worker: subprocess.Popen) -> int:
    """The signal that ended a worker which had no handler yet, as while it started; 0 if it was no stop request."""
    return next((number for number in SIGNALS if worker.returncode in (-number, 128 + number)), 0)  # srun adds 128


def _threads(nproc: int) -> int:
    """The threads of each process: the cores that SLURM gives a task, or this machine's divided among the processes."""
    return int(os.environ.get("SLURM_CPUS_PER_TASK", 0)) or max(1, cores() // nproc)


def _format_exit(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
