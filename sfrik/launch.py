"""A function on N processes: from a notebook, a shell, or a SLURM allocation.

    launch("sfrik.pretrain:pretrain", settings, nproc_per_node=2)

starts fresh processes (never forks, so a kernel that has used CUDA is fine): plain subprocesses on one machine, one
`srun` step over the whole allocation inside a SLURM job. A `TCPStore` of the caller carries the call, the result, the
progress and the first traceback. The call travels as JSON, since a TCPStore has no authentication; what a worker runs must
be importable by name.

How it ends: a worker that fails ends all of them, and its traceback is the caller's error. A signal to the caller (SIGINT,
SIGTERM, SIGUSR1), or its death, asks the workers to stop (SIGTERM); SLURM asks them directly (SIGUSR1 before the limit,
SIGTERM). `pretrain` then saves a checkpoint; a worker that has not ended after `GRACE` seconds is killed.
"""

from __future__ import annotations

import json
import os
import queue
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist

from sfrik.calls import importable_name, pack_call, resolve
from sfrik.devices import cores
from sfrik.errors import WorkerError
from sfrik.preemption import GRACE, SIGNALS, StopRequests, place_reached, stop, stop_requests
from sfrik.progress import Bar, wants_bar

__all__ = ["WorkerError", "launch"]

SIBLINGS = 2.0  # seconds in which the first failing worker may still report why
LOST = 3.0  # seconds that the others have to end when one has failed: without it they cannot save
KILLED = re.compile(r"srun: error: (\S+): tasks? ([\d,-]+): (Killed|Segmentation fault|Aborted|Bus error|Out Of Memory)")


def launch(
    function: str | Callable, *args: Any, nproc_per_node: int | None = None, nodes: int | None = None, **kwargs: Any
) -> Any:
    """Call a function on several processes; returns what rank 0 returned (as JSON holds it).

    Args:
        function: "module:name", or a function of an importable module.
        nproc_per_node: processes on each node; the number of GPUs, or 1, when None. One process outside of a SLURM job is
            the calling one.
        nodes: of the SLURM allocation; all of them when None.
        args, kwargs: numbers, strings, lists, dicts, or pydantic settings.

    Raises:
        WorkerError: a worker raised or died. SfrikError: the function or an argument cannot travel. Preempted: this process
            or the workers were asked to stop by SIGTERM or SIGUSR1. KeyboardInterrupt: by SIGINT; the workers have ended.

    >>> launch("math:comb", 5, 2, nproc_per_node=1)
    10
    """
    name = importable_name(function)
    nproc = nproc_per_node or max(1, torch.cuda.device_count())
    nodes = nodes or _slurm_nodes()
    if nproc * nodes == 1 and not _starts_steps():
        return resolve(name)(*args, **kwargs)
    call = pack_call(name, args, kwargs)
    here = nodes == 1 and (not _starts_steps() or "SLURMD_NODENAME" in os.environ)  # all workers on the caller's machine
    address = "127.0.0.1" if here else os.environ.get("SLURM_LAUNCH_NODE_IPADDR", socket.gethostname())
    store = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False)
    store.set("call", call)
    environment = {
        **os.environ,
        "SFRIK_STORE": f"{address}:{store.port}",
        "WORLD_SIZE": str(nproc * nodes),
        "LOCAL_WORLD_SIZE": str(nproc),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(_threads(nproc))),
        "PYTHONUNBUFFERED": "1",
    }
    if wants_bar():
        environment["SFRIK_BAR"] = "1"  # the workers hand over their progress, and it is drawn here
    if nodes == 1:
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with stop_requests() as requests:
        _watch(_start(nproc, nodes, environment), store, requests)
    if store.check(["result"]):
        return json.loads(store.get("result"))
    saved = place_reached(store.get("stopped").decode()) if store.check(["stopped"]) else "nothing new to save"
    if requests.number:
        stop(requests.number, saved)
    raise WorkerError("rank 0 ended with exit status 0 before the function returned")


def _start(nproc: int, nodes: int, environment: dict[str, str]) -> list[subprocess.Popen]:
    """The workers: one subprocess each on this machine, or one srun that starts them on every node."""
    worker = [sys.executable, "-m", "sfrik.worker"]
    options: dict[str, Any] = {
        "stdin": subprocess.PIPE,  # its end tells a worker that the caller is gone
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
        "errors": "replace",
        "start_new_session": True,  # an interrupt reaches the caller alone, which then stops them in order
    }
    if _starts_steps():
        step = ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nproc * nodes}", f"--ntasks-per-node={nproc}"]
        step += ["--kill-on-bad-exit=1", "--unbuffered"]
        if nodes == 1 and "SLURMD_NODENAME" in environment:  # of an allocation of several, the one where the caller is
            step.append(f"--nodelist={environment['SLURMD_NODENAME']}")
        if cpus := environment.get("SLURM_CPUS_PER_TASK"):
            step.append(f"--cpus-per-task={cpus}")
        step += shlex.split(environment.get("SFRIK_PREFIX", ""))  # a container, which srun starts the workers in
        return [subprocess.Popen([*step, *worker], env=environment, **options)]
    return [
        subprocess.Popen(worker, env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}, **options)
        for rank in range(nproc)
    ]


def _watch(workers: list[subprocess.Popen], store: dist.TCPStore, requests: StopRequests) -> None:
    """Print what the workers print, draw their progress; return when all ended well or were asked to stop, else raise.

    A request that a worker received is put into `requests`.
    """
    lines: queue.Queue[str] = queue.Queue()
    readers = [threading.Thread(target=_read, args=(worker, lines), daemon=True) for worker in workers]
    for reader in readers:
        reader.start()
    screen = _Screen(lines, store)
    killed: list[int] = []
    grace = GRACE
    try:
        while _some_run(workers) and not any(worker.returncode for worker in workers):
            if requests.number or store.check(["stopped"]):
                break
            screen.refresh(wait=0.1)
        if any(worker.returncode for worker in workers) and not requests.number:
            deadline = time.monotonic() + SIBLINGS
            while time.monotonic() < deadline and not (store.check(["failure"]) or screen.killed):
                screen.refresh(wait=0.1)
            killed = [rank for rank, worker in enumerate(workers) if (worker.poll() or 0) < 0 and not _request(worker)]
            grace = LOST
        if not (requests.number or killed or screen.killed):
            requests.number = _asked(workers, store)
    finally:
        _stop(workers, grace)
        for reader in readers:
            reader.join(timeout=1)
        screen.refresh(wait=0)
        screen.close()
    if requests.number:
        return
    # What the others report of a worker that was killed is that they lost it: its end is the cause.
    if len(workers) > 1 and killed:
        raise WorkerError(
            f"rank {killed[0]} on {socket.gethostname()} {_how(workers[killed[0]].returncode)} before it could say why; "
            "where nobody killed it, memory most likely ran out"
        )
    if screen.killed:
        node, ranks, how = screen.killed.groups()
        raise WorkerError(f"rank {ranks} on {node} was ended ({how}) before it could say why; {screen.killed.group()}")
    if store.check(["failure"]):
        failure = json.loads(store.get("failure"))
        raise WorkerError(f"rank {failure['rank']} on {failure['host']} failed:\n{failure['traceback']}")
    for rank, worker in enumerate(workers):
        if worker.returncode:
            who = f"rank {rank} on {socket.gethostname()}" if len(workers) > 1 else "the step of workers"
            raise WorkerError(f"{who} {_how(worker.returncode)} before it could say why{screen.errors()}")


class _Screen:
    """Where the workers' lines and progress are shown; it remembers what srun says of a step that ended badly."""

    def __init__(self, lines: queue.Queue[str], store: dist.TCPStore) -> None:
        self.lines, self.store = lines, store
        self.bar = Bar() if wants_bar() else None
        self.killed: re.Match | None = None
        self._errors: list[str] = []
        self._drawn = 0.0

    def refresh(self, wait: float) -> None:
        """Show what has come and what comes in the next `wait` seconds; workers that never fall silent do not prolong them."""
        deadline = time.monotonic() + wait
        with suppress(queue.Empty):
            while (left := deadline - time.monotonic()) > 0:
                self._line(self.lines.get(timeout=left))
            while not wait:  # the last time: all that there is
                self._line(self.lines.get_nowait())
        if self.bar is not None and (not wait or time.monotonic() - self._drawn > 0.5):
            self._drawn = time.monotonic()
            if self.store.check(["progress"]):
                self.bar.show(**json.loads(self.store.get("progress")))

    def errors(self) -> str:
        return f": {'; '.join(self._errors)}" if self._errors else ""

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def _line(self, line: str) -> None:
        if line.startswith("srun: error: "):
            self.killed = self.killed or KILLED.match(line)
            self._errors = [*self._errors, line.strip()][:5]
        if self.bar is None:
            print(line, end="", flush=True)
        else:
            self.bar.write(line.rstrip("\n"))


def _stop(workers: list[subprocess.Popen], grace: float) -> None:
    """TERM, some seconds' grace, KILL; a second interrupt shortens the grace and leaves no worker behind."""
    try:
        for worker in workers:
            if worker.poll() is None:
                _signal_group(worker, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while _some_run(workers) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        for worker in workers:
            _signal_group(worker, signal.SIGKILL)  # of one that has ended, too: the processes that decoded images for it
            worker.wait()


def _signal_group(worker: subprocess.Popen, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # macOS refuses a group of which nobody is left
        os.killpg(worker.pid, number)


def _some_run(workers: list[subprocess.Popen]) -> bool:
    codes = [worker.poll() for worker in workers]  # all are asked: it is what sets their `returncode`
    return None in codes


def _asked(workers: list[subprocess.Popen], store: dist.TCPStore) -> int:
    """The number of the signal by which somebody else asked a worker to stop, 0 where none was."""
    if store.check(["stopped"]) and store.get("first") == b"stopped":  # else the failure of another was the reason
        text = store.get("stopped").decode()
        return next((number for number in SIGNALS if f"by {signal.Signals(number).name} " in text), signal.SIGTERM)
    return next((_request(worker) for worker in workers if _request(worker)), 0)


def _request(worker: subprocess.Popen) -> int:
    """The signal that ended a worker, if it was a request that came before the worker looked for it, as while it started."""
    return next((number for number in SIGNALS if worker.returncode in (-number, 128 + number)), 0)  # srun adds 128


def _read(worker: subprocess.Popen, lines: queue.Queue[str]) -> None:
    for line in worker.stdout or ():
        lines.put(line)


def _starts_steps() -> bool:
    """Whether this process drives a SLURM job, and is not itself part of one of its steps."""
    return "SLURM_JOB_ID" in os.environ and "SLURM_STEP_ID" not in os.environ and shutil.which("srun") is not None


def _slurm_nodes() -> int:
    return int(os.environ.get("SLURM_NNODES", "1")) if _starts_steps() else 1


def _threads(nproc: int) -> int:
    """Threads of each process: the cores that SLURM gives a task, or this machine's, divided among them."""
    return int(os.environ.get("SLURM_CPUS_PER_TASK", 0)) or max(1, cores() // nproc)


def _how(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
