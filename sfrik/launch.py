"""A function on N processes: from a notebook, a shell, or a SLURM allocation.

    launch("sfrik.pretrain:pretrain", settings, nproc_per_node=2)

starts fresh processes (never forks, so a kernel that has used CUDA is fine): plain subprocesses on one machine, one
`srun` step over the whole allocation inside a SLURM job. A `TCPStore` of the caller carries the call, the result and the
first traceback. The call travels as JSON, since a TCPStore has no authentication; what a worker runs must be importable
by name.

`process_group` is the other half: it joins the group that torchrun, or `launch`, has described in the environment.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from pydantic import BaseModel

from sfrik.devices import cores, pick_device
from sfrik.errors import SfrikError

__all__ = ["WorkerError", "launch", "process_group"]

GRACE = 15.0  # seconds between asking the workers to stop and ending them
SIBLINGS = 2.0  # seconds in which the first failing worker may still report why


class WorkerError(RuntimeError):
    """A worker failed; the text holds its rank, its host and its traceback."""


def launch(function: str | Callable, *args: Any, nproc_per_node: int | None = None, **kwargs: Any) -> Any:
    """Call a function on several processes; returns what rank 0 returned (as JSON holds it).

    Args:
        function: "module:name", or a function of an importable module.
        nproc_per_node: processes on each node; the number of GPUs, or 1, when None. One process outside of a
            SLURM allocation of several nodes is the calling one.
        args, kwargs: numbers, strings, lists, dicts, or pydantic settings.

    Raises:
        WorkerError: a worker raised or died. SfrikError: the function or an argument cannot travel.
        KeyboardInterrupt: after the workers have been stopped.
    """
    name = _importable_name(function)
    nproc = nproc_per_node or max(1, torch.cuda.device_count())
    nodes = _slurm_nodes()
    if nproc * nodes == 1:
        return _resolve(name)(*args, **kwargs)
    call = json.dumps({"function": name, "args": [_pack(a) for a in args], "kwargs": {k: _pack(v) for k, v in kwargs.items()}})
    address = os.environ.get("SLURM_LAUNCH_NODE_IPADDR", socket.gethostname()) if nodes > 1 else "127.0.0.1"
    store = dist.TCPStore(address if nodes > 1 else "127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store.set("call", call)
    environment = {
        **os.environ,
        "SFRIK_STORE": f"{address}:{store.port}",
        "WORLD_SIZE": str(nproc * nodes),
        "LOCAL_WORLD_SIZE": str(nproc),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // nproc))),
        "PYTHONUNBUFFERED": "1",
    }
    if nodes == 1:
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    _watch(_start(nproc, nodes, environment), store)
    return json.loads(store.get("result"))


@contextmanager
def process_group(device: str = "auto", store: dist.Store | None = None) -> Iterator[None]:
    """Join the process group that the environment describes; nothing for a single process.

    NCCL on GPUs, gloo on CPU. Without `store`, torchrun's variables tell where to meet.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    chosen = pick_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    if store is None:
        dist.init_process_group(backend)
    else:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group(backend, store=dist.PrefixStore("group", store), rank=rank, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _start(nproc: int, nodes: int, environment: dict[str, str]) -> list[subprocess.Popen]:
    """The workers: one subprocess each on this machine, or one srun that starts them on every node."""
    worker = [sys.executable, "-m", "sfrik.launch"]
    options: dict[str, Any] = {
        "stdin": subprocess.PIPE,  # its end tells a worker that the caller is gone
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
        "errors": "replace",
        "start_new_session": True,  # an interrupt reaches the caller alone, which then stops them in order
    }
    if "SLURM_JOB_ID" in environment and shutil.which("srun"):
        step = ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks={nproc * nodes}", f"--ntasks-per-node={nproc}"]
        step += ["--kill-on-bad-exit=1", "--unbuffered"]
        if cpus := environment.get("SLURM_CPUS_PER_TASK"):
            step.append(f"--cpus-per-task={cpus}")
        return [subprocess.Popen([*step, *worker], env=environment, **options)]
    return [
        subprocess.Popen(worker, env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}, **options)
        for rank in range(nproc)
    ]


def _watch(workers: list[subprocess.Popen], store: dist.TCPStore) -> None:
    """Print what the workers print; return when all ended well, else stop them and raise."""
    lines: queue.Queue[str] = queue.Queue()
    readers = [threading.Thread(target=_read, args=(worker, lines), daemon=True) for worker in workers]
    for reader in readers:
        reader.start()
    killed: list[int] = []
    try:
        while any(worker.poll() is None for worker in workers) and not any(worker.poll() for worker in workers):
            _print(lines, wait=0.1)
        if any(worker.returncode for worker in workers):
            deadline = time.monotonic() + SIBLINGS
            while time.monotonic() < deadline and not store.check(["failure"]):
                _print(lines, wait=0.1)
            killed = [rank for rank, worker in enumerate(workers) if (worker.poll() or 0) < 0]
    finally:
        _stop(workers)
        for reader in readers:
            reader.join(timeout=1)
        _print(lines, wait=0)
    for rank in killed:  # what the others then reported is that they lost this one
        raise WorkerError(f"{_who(rank, workers)} {_how(workers[rank].returncode)} before it could say why")
    if store.check(["failure"]):
        failure = json.loads(store.get("failure"))
        raise WorkerError(f"rank {failure['rank']} on {failure['host']} failed:\n{failure['traceback']}")
    for rank, worker in enumerate(workers):
        if worker.returncode:
            raise WorkerError(f"{_who(rank, workers)} {_how(worker.returncode)} before it could say why")


def _stop(workers: list[subprocess.Popen]) -> None:
    """TERM, some seconds' grace, KILL; a second interrupt shortens the grace and leaves no worker behind."""
    try:
        for worker in workers:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        while any(worker.poll() is None for worker in workers) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        for worker in workers:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()


def _read(worker: subprocess.Popen, lines: queue.Queue[str]) -> None:
    for line in worker.stdout:
        lines.put(line)


def _print(lines: queue.Queue[str], wait: float) -> None:
    try:
        while True:
            print(lines.get(timeout=wait) if wait else lines.get_nowait(), end="", flush=True)
    except queue.Empty:
        pass


def _slurm_nodes() -> int:
    return int(os.environ.get("SLURM_NNODES", "1")) if "SLURM_JOB_ID" in os.environ else 1


def _importable_name(function: str | Callable) -> str:
    if callable(function):
        if function.__module__ == "__main__" or "<" in function.__qualname__:
            raise SfrikError(
                f"launch cannot start {function.__qualname__}: a worker is a fresh process and imports its function, so it "
                "must stand in a module, not in a notebook or another function"
            )
        return f"{function.__module__}:{function.__qualname__}"
    if ":" not in function:
        raise SfrikError(f'launch needs "module:function", got {function!r}')
    _resolve(function)
    return function


def _resolve(name: str) -> Any:
    module, _, qualname = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise SfrikError(f"launch cannot find {name}: {error}") from None
    return found


def _pack(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {"__settings__": _importable_name(type(value)), "values": value.model_dump(mode="json")}
    try:
        json.dumps(value)
    except TypeError as error:
        raise SfrikError(
            f"an argument of launch must be settings, or made of numbers, strings, lists and dicts: {error}"
        ) from None
    return value


def _unpack(value: Any) -> Any:
    if isinstance(value, dict) and "__settings__" in value:
        return _resolve(value["__settings__"]).model_validate(value["values"])
    return value


def _who(rank: int, workers: list[subprocess.Popen]) -> str:
    return f"rank {rank}" if len(workers) > 1 else "the step of workers"


def _how(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"


def _work() -> int:
    """The life of a worker: fetch the call, join the group, call, report."""
    os.environ.setdefault("RANK", os.environ.get("SLURM_PROCID", "0"))
    os.environ.setdefault("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    threading.Thread(target=_end_with_caller, daemon=True).start()
    signal.signal(signal.SIGTERM, _raise_interrupt)
    host, _, port = os.environ["SFRIK_STORE"].rpartition(":")
    store = dist.TCPStore(host, int(port), is_master=False, timeout=timedelta(seconds=60))
    call = json.loads(store.get("call"))
    rank = os.environ["RANK"]
    try:
        function = _resolve(call["function"])
        args = [_unpack(value) for value in call["args"]]
        kwargs = {name: _unpack(value) for name, value in call["kwargs"].items()}
        device = getattr(args[0], "device", "auto") if args else "auto"
        with process_group(device, store):
            try:
                result = function(*args, **kwargs)
            except Exception:
                _report(store, rank)  # before the group is left: the others then fail for want of this partner
                raise
        if rank == "0":
            store.set("result", json.dumps(result, default=str))  # a path comes back as text
    except KeyboardInterrupt:
        return 143
    except BaseException:
        _report(store, rank)
        return 1
    return 0


def _report(store: dist.Store, rank: str) -> None:
    """The traceback being handled, unless another rank has told its own: the first one is the cause."""
    if store.add("failed", 1) == 1:
        report = {"rank": int(rank), "host": socket.gethostname(), "traceback": traceback.format_exc()}
        store.set("failure", json.dumps(report))


def _end_with_caller() -> None:
    """The caller holds the other end of stdin; when it is gone, even by kill -9, so is this process."""
    while os.read(0, 1024):
        pass
    os._exit(1)


def _raise_interrupt(number, frame) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # Under -m this file is __main__: import it by its name, so that there is one copy of its state.
    status = importlib.import_module("sfrik.launch")._work()
    sys.stdout.flush()
    os._exit(status)  # a thread of the store or of gloo must not turn a clean end into an abort
