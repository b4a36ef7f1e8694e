"""A worker of `sfrik.launch`, `python -m sfrik.worker`: fetch the call, join the process group, call, report.

`process_group` serves torchrun's processes too.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist

import sfrik.progress
from sfrik.calls import unpack_call
from sfrik.devices import pick_device
from sfrik.errors import Preempted
from sfrik.preemption import GRACE, SIGNALS

__all__ = ["process_group"]


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
    if backend == "gloo":  # a process that is done at once would leave while others still connect to it
        dist.barrier()
    try:
        yield
    finally:
        dist.destroy_process_group()


class _Stopped(KeyboardInterrupt):
    """A signal came while a function ran that does not look for it; no `except Exception` on its way takes it for a fault."""


def _work() -> int:
    """The life of a worker: fetch the call, join the group, call, report."""
    os.environ.setdefault("RANK", os.environ.get("SLURM_PROCID", "0"))
    os.environ.setdefault("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller decides; `pretrain` sets its own handlers
    threading.Thread(target=_end_with_caller, daemon=True).start()
    host, _, port = os.environ["SFRIK_STORE"].rpartition(":")
    store = dist.TCPStore(host, int(port), is_master=False, timeout=timedelta(seconds=60))
    rank = os.environ["RANK"]
    if rank == "0" and "SFRIK_BAR" in os.environ:
        sfrik.progress.hand_over = lambda facts: store.set("progress", json.dumps(facts))
    try:
        function, args, kwargs = unpack_call(store.get("call").decode())
        device = getattr(args[0], "device", "auto") if args else "auto"
        with process_group(device, store):
            # before, a signal ends this process at once: waiting for the others it could not look at one
            for number in SIGNALS:
                if number != signal.SIGINT:
                    signal.signal(number, _leave)
            try:
                result = function(*args, **kwargs)
            except BaseException as end:
                _tell_why(end, store, rank)  # before the group is left: the others then fail for want of this partner
                raise
        if rank == "0":
            store.set("result", json.dumps(result, default=str))  # a path comes back as text
    except BaseException as end:
        return _tell_why(end, store, rank)
    return 0


def _tell_why(end: BaseException, store: dist.Store, rank: str) -> int:
    """What ended this worker; its exit status."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # it is ending already
    if isinstance(end, Preempted | KeyboardInterrupt):
        _tell(store, "stopped", str(end))
        return 0  # no failure: an exit status would have srun end the others, which may still be saving
    text = "".join(traceback.format_exception(end))
    _tell(store, "failure", json.dumps({"rank": int(rank), "host": socket.gethostname(), "traceback": text}))
    return 1


def _tell(store: dist.Store, key: str, text: str) -> None:
    """Of each key the first word is kept, and which key came first; nobody is there to hear it where the caller is gone."""
    with suppress(RuntimeError):
        if store.add("ends", 1) == 1:
            store.set("first", key)
        if store.add(f"{key}s", 1) == 1:
            store.set(key, text)


def _end_with_caller() -> None:
    """The caller holds the other end of stdin; when it is gone, even by kill -9, this process saves what it can and ends."""
    while os.read(0, 1024):
        pass
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):  # what is printed now would raise BrokenPipeError
        os.dup2(nowhere, descriptor)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


def _leave(number: int, frame) -> None:
    if not isinstance(sys.exc_info()[1], Preempted | KeyboardInterrupt):  # else it is on its way out
        raise _Stopped(f"stopped by {signal.Signals(number).name} (nothing new to save); the same command begins this part anew")


if __name__ == "__main__":
    # Under -m this file is __main__: import it by its name, so that there is one copy of its state.
    status = importlib.import_module("sfrik.worker")._work()
    sys.stdout.flush()
    os._exit(status)  # a thread of the store or of gloo must not turn a clean end into an abort
