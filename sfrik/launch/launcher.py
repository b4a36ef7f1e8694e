"""A function on N processes: from a notebook, a shell, or a SLURM allocation.

    launch("sfrik.pretrain.loop:pretrain", settings, nproc_per_node=2)

starts fresh processes (never forks, so a kernel that has used CUDA is fine): plain subprocesses on one machine, one
`srun` step over the whole allocation inside a SLURM job. The call, the result, the progress and the first traceback travel
through the workers' own pipes (`sfrik.launch.remote_call`); what a worker runs must be importable by name.

The workers of one machine meet in a private folder and exchange tensors over its loopback interface. Those of several nodes
meet at a store of PyTorch's on the caller's node, which anyone on the network can reach; SECURITY.md says what follows.

How it ends: a worker that fails ends all of them, and its traceback is the caller's error. A signal to the caller (SIGINT,
SIGTERM, SIGUSR1), or its death, asks the workers to stop (SIGTERM); SLURM asks them directly (SIGUSR1 before the limit,
SIGTERM). `pretrain` then saves a checkpoint; a worker that has not ended after `GRACE` seconds is killed.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sfrik.errors import SfrikError, WorkerError
from sfrik.launch.remote_call import Reports, importable_name, pack_call, resolve
from sfrik.system.devices import cores
from sfrik.system.progress import Bar, wants_bar
from sfrik.system.signals import GRACE, SIGNALS, StopRequests, place_reached, stop, stop_requests

__all__ = ["launch"]

SIBLINGS = 2.0  # seconds in which the first failing worker may still report why
LONGEST_LINE = 1 << 16  # bytes of output that are kept back until their line ends
DRAIN = 5.0  # seconds of output of a process that the workers left behind, at most
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
    nproc = nproc_per_node or _gpus()
    nodes = nodes or _slurm_nodes()
    for count, what in ((nproc, "nproc_per_node"), (nodes, "nodes")):
        if not isinstance(count, int) or count < 1:
            raise SfrikError(f"{what} of launch must be a whole number of at least 1, got {count!r}")
    if nodes > 1 and not _starts_steps():
        raise SfrikError(f"launch on {nodes} nodes needs a SLURM job: on this machine leave nodes out")
    if nproc * nodes == 1 and not _starts_steps():
        return resolve(name)(*args, **kwargs)
    call = pack_call(name, args, kwargs)
    token = secrets.token_hex(16)
    environment = {
        **os.environ,
        "WORLD_SIZE": str(nproc * nodes),
        "LOCAL_WORLD_SIZE": str(nproc),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(_threads(nproc))),
        "PYTHONUNBUFFERED": "1",
    }
    if wants_bar():
        environment["SFRIK_BAR"] = "1"  # the workers hand over their progress, and it is drawn here
    if nodes == 1 and (loopback := _loopback()):  # nothing listens beyond this machine, whatever the user's variables say
        environment |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    reports = Reports(token)
    # a folder of mode 0700
    with tempfile.TemporaryDirectory(prefix="sfrik-") as folder, stop_requests() as requests:
        meeting, _store = _meeting(nodes, folder)
        call |= {"token": token, "meeting": meeting}
        reading, writing = os.pipe()
        try:
            workers = _start(nproc, nodes, environment, writing)
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        _watch(workers, json.dumps(call) + "\n", _Screen(reading, workers, reports), requests)
    if reports.result:
        return reports.result[0]
    saved = place_reached(reports.stopped) if reports.stopped is not None else "nothing new to save"
    if requests.number:
        stop(requests.number, saved)
    raise WorkerError("rank 0 ended with exit status 0 before the function returned")


def _meeting(nodes: int, folder: str) -> tuple[str, Any]:
    """Where the workers meet to form a process group, and the store that must live as long.

    On the caller's machine a file in a private folder, or, where a container may not show them that folder, a store that listens
    on the loopback interface. Else PyTorch's store on this node.
    """
    here = nodes == 1 and (not _starts_steps() or "SLURMD_NODENAME" in os.environ)
    if here and not os.environ.get("SFRIK_PREFIX"):
        return f"file:{folder}/rendezvous", None
    import torch.distributed as dist

    if here:
        server = socket.create_server(("127.0.0.1", 0))
        port = server.getsockname()[1]
        store = dist.TCPStore("127.0.0.1", port, None, True, wait_for_workers=False, master_listen_fd=server.detach())
        return f"tcp:127.0.0.1:{port}", store
    address = os.environ.get("SLURM_LAUNCH_NODE_IPADDR", socket.gethostname())
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return f"tcp:{address}:{store.port}", store


def _gpus() -> int:
    """GPUs of this machine, at least one."""
    import torch

    return max(1, torch.cuda.device_count())


def _loopback() -> str | None:
    """The name of the loopback interface: lo on Linux, lo0 on macOS."""
    return next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)


def _start(nproc: int, nodes: int, environment: dict[str, str], reports: int) -> list[subprocess.Popen]:
    """The workers: one subprocess each on this machine, or one srun that starts them on every node.

    Their stdout is the descriptor `reports`, and what they print comes through stderr.
    """
    worker = [sys.executable, "-m", "sfrik.launch.worker"]
    options: dict[str, Any] = {
        "stdin": subprocess.PIPE,  # the call, and then its end tells a worker that the caller is gone
        "stdout": reports,
        "stderr": subprocess.PIPE,
        "start_new_session": True,  # an interrupt reaches only the caller, which then stops them in order
    }
    if _starts_steps():
        step = ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nproc * nodes}", f"--ntasks-per-node={nproc}"]
        step.append("--kill-on-bad-exit=1")
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


def _watch(workers: list[subprocess.Popen], call: str, screen: _Screen, requests: StopRequests) -> None:
    """Hand the workers their call, show what they print; return when all ended well or were asked to stop, else raise.

    A request that a worker received is put into `requests`.
    """
    reports = screen.reports
    killed: list[int] = []
    grace = GRACE
    try:
        for worker in workers:  # in threads: a pipe takes so much, and the worker may never read
            threading.Thread(target=_send_call, args=(worker, call), daemon=True).start()
        while _some_run(workers) and not any(worker.returncode for worker in workers):
            if requests.number or reports.stopped is not None:
                break
            screen.refresh(wait=0.1)
        if any(worker.returncode for worker in workers) and not requests.number:
            deadline = time.monotonic() + SIBLINGS
            while time.monotonic() < deadline and not (reports.failure or screen.killed):
                screen.refresh(wait=0.1)
            killed = [rank for rank, worker in enumerate(workers) if (worker.poll() or 0) < 0 and not _request(worker)]
            grace = LOST
        if not (requests.number or killed or screen.killed):
            requests.number = _asked(workers, reports)
    finally:
        _stop(workers, grace, screen)
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
    if reports.failure:
        failure = reports.failure
        raise WorkerError(f"rank {failure['rank']} on {failure['host']} failed:\n{failure['traceback']}", failure["mistake"])
    for rank, worker in enumerate(workers):
        if worker.returncode:
            who = f"rank {rank} on {socket.gethostname()}" if len(workers) > 1 else "the step of workers"
            raise WorkerError(f"{who} {_how(worker.returncode)} before it could say why{screen.errors()}")


def _send_call(worker: subprocess.Popen, call: str) -> None:
    """Write the call to a worker's stdin, which stays open: its end tells the worker that this process is gone."""
    assert worker.stdin is not None  # as it was started
    with suppress(OSError, ValueError):  # it has ended already, and its exit status says how
        worker.stdin.write(call.encode())
        worker.stdin.flush()


class _Screen:
    """Where the workers' output and progress are shown, and their reports read.

    It reads without blocking, so that all that an ended worker wrote is there once it has been read dry. It remembers what srun
    prints of a step that ended badly.
    """

    def __init__(self, reading: int, workers: list[subprocess.Popen], reports: Reports) -> None:
        self.reports = reports
        self.bar = Bar() if wants_bar() else None
        self.killed: re.Match | None = None
        self._errors: list[str] = []
        self._shown: dict[str, Any] | None = None
        self._drawn = 0.0
        self._selector = selectors.DefaultSelector()
        self._rest: dict[int, bytes] = {}  # of each pipe what has come of a line
        self._reports = open(reading, "rb", buffering=0)  # noqa: SIM115  closed in `close`
        for pipe in (self._reports, *(worker.stderr for worker in workers)):
            assert pipe is not None  # as they were started
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe, selectors.EVENT_READ)
            self._rest[pipe.fileno()] = b""

    def refresh(self, wait: float) -> bool:
        """Show what has come, or what comes first in the next `wait` seconds; whether something came."""
        if not self._selector.get_map():  # all pipes have ended
            time.sleep(wait)
        ready = self._selector.select(wait)
        for key, _ in ready:
            self._read(key)
        self._draw(every=0.5)
        return bool(ready)

    def drain(self) -> None:
        """Read all that the workers, which have ended, wrote; a process that they left behind may go on writing."""
        deadline = time.monotonic() + DRAIN
        while self.refresh(wait=0) and time.monotonic() < deadline:
            pass

    def errors(self) -> str:
        return f": {'; '.join(self._errors)}" if self._errors else ""

    def close(self) -> None:
        self.drain()
        for descriptor, rest in self._rest.items():
            if rest:
                self._line(descriptor, rest)
        self._draw(every=0)
        if self.bar is not None:
            self.bar.close()
        self._selector.close()
        self._reports.close()

    def _draw(self, every: float) -> None:
        """Show the newest progress, unless it is shown or the last one was so few seconds ago."""
        progress = self.reports.progress
        if self.bar is None or progress is None or progress is self._shown or time.monotonic() - self._drawn < every:
            return
        self._drawn, self._shown = time.monotonic(), progress
        self.bar.show(**progress)

    def _read(self, key: selectors.SelectorKey) -> None:
        chunk = os.read(key.fd, 1 << 16)
        if not chunk:
            self._selector.unregister(key.fileobj)
        *lines, rest = [*(self._rest[key.fd] + chunk).splitlines(keepends=True), b""]
        # a line that goes on is shown when it ends, or when much of it has come
        if lines and not lines[-1].endswith((b"\n", b"\r")) and len(lines[-1]) < LONGEST_LINE:
            rest = lines.pop()
        self._rest[key.fd] = rest
        for line in lines:
            self._line(key.fd, line)

    def _line(self, descriptor: int, content: bytes) -> None:
        line = content.decode(errors="replace")
        if descriptor == self._reports.fileno() and self.reports.read(line):
            return
        if line.startswith("srun: error: "):
            self.killed = self.killed or KILLED.match(line)
            self._errors = [*self._errors, line.strip()][:5]
        if self.bar is None:
            print(line, end="", flush=True)
        else:
            self.bar.write(line.rstrip("\r\n"))


def _stop(workers: list[subprocess.Popen], grace: float, screen: _Screen) -> None:
    """TERM, some seconds' grace, KILL; a second interrupt shortens the grace and leaves no worker behind."""
    try:
        for worker in workers:
            if worker.poll() is None:
                _signal_group(worker, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while _some_run(workers) and time.monotonic() < deadline:
            screen.refresh(wait=0.05)
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


def _asked(workers: list[subprocess.Popen], reports: Reports) -> int:
    """The number of the signal by which somebody else asked a worker to stop, 0 where none was."""
    if reports.stopped is not None and reports.first == "stopped":  # else the failure of another was the reason
        return next((n for n in SIGNALS if f"by {signal.Signals(n).name} " in reports.stopped), signal.SIGTERM)
    return next((_request(worker) for worker in workers if _request(worker)), 0)


def _request(worker: subprocess.Popen) -> int:
    """The signal that ended a worker, if it was a request that came before the worker looked for it, as while it started."""
    return next((number for number in SIGNALS if worker.returncode in (-number, 128 + number)), 0)  # srun adds 128


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
