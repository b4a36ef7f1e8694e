"""A worker of `sfrik.launch`, `python -m sfrik.launch.worker`: read the call, join the process group, call, report.

`process_group` serves torchrun's processes too.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

import sfrik.system.progress
from sfrik.errors import Preempted, SfrikError
from sfrik.launch.remote_call import Reporter, unpack_call
from sfrik.ops.collectives import all_objects
from sfrik.system.devices import pick_device
from sfrik.system.signals import GRACE, SIGNALS

__all__ = ["process_group"]


@contextmanager
def process_group(device: str = "auto", store: dist.Store | None = None, token: str = "") -> Iterator[None]:
    """Join the process group that the environment describes; nothing for a single process.

    NCCL on GPUs, gloo on CPU. Without `store`, torchrun's variables say where to meet; with it the processes prove to each other
    that they know the token of the call.
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
        dist.init_process_group(backend, store=dist.PrefixStore(_proof(token, "group"), store), rank=rank, world_size=size)
        _check_proofs(token, chosen)
    if backend == "gloo":  # a process that is done at once would leave while others still connect to it
        dist.barrier()
    try:
        yield
    finally:
        dist.destroy_process_group()


def _proof(token: str, text: str) -> str:
    """What only a process that knows the token can say."""
    return hmac.new(token.encode(), text.encode(), hashlib.sha256).hexdigest()


def _check_proofs(token: str, device: torch.device) -> None:
    """Each process shows that it has read the call, which came through its stdin and not through a socket.

    Raises:
        SfrikError: one does not: another program has joined the group.
    """
    proofs = all_objects(_proof(token, str(dist.get_rank())), device)
    for rank, proof in enumerate(proofs):
        if not hmac.compare_digest(str(proof), _proof(token, str(rank))):
            raise SfrikError(f"rank {rank} is no process of this launch: another program answered in its place")


class _Stopped(KeyboardInterrupt):
    """A signal came while a function ran that does not look for it; no `except Exception` on its way takes it for a fault."""


def _work() -> int:
    """The life of a worker: read the call, join the group, call, report."""
    reports = os.dup(1)  # stdout is for reports: what is printed goes to stderr
    os.dup2(2, 1)
    os.environ.setdefault("RANK", os.environ.get("SLURM_PROCID", "0"))
    os.environ.setdefault("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller decides; `pretrain` sets its own handlers
    line = _first_line()
    if not line:  # the caller is gone
        return 1
    call = json.loads(line)
    threading.Thread(target=_end_with_caller, args=(call["meeting"],), daemon=True).start()
    rank = int(os.environ["RANK"])
    reporter = Reporter(reports, call["token"], rank)
    if rank == 0 and "SFRIK_BAR" in os.environ:
        sfrik.system.progress.progress_callback = lambda facts: reporter.send("progress", facts)
    try:
        function, args, kwargs = unpack_call(call)
        device = getattr(args[0], "device", "auto") if args else "auto"
        with process_group(device, _meet(call["meeting"]), call["token"]):
            # before, a signal ends this process at once: waiting for the others it could not look at one
            for number in SIGNALS:
                if number != signal.SIGINT:
                    signal.signal(number, _leave)
            try:
                result = function(*args, **kwargs)
            except BaseException as end:
                _report_end(end, reporter, rank)  # before the group is left: the others then fail for want of this partner
                raise
        if rank == 0:
            reporter.send("result", result)
    except BaseException as end:
        return _report_end(end, reporter, rank)
    return 0


def _first_line() -> str:
    """The call: one line of stdin, of which no more is read."""
    parts = []
    while not (parts and parts[-1].endswith(b"\n")):
        if not (part := os.read(0, 1 << 16)):
            return ""
        parts.append(part)
    return b"".join(parts).decode()


def _meet(meeting: str) -> dist.Store | None:
    """The store at which the workers of several processes find each other."""
    size = int(os.environ["WORLD_SIZE"])
    kind, _, place = meeting.partition(":")
    if size == 1:
        return None
    if kind == "file":
        return dist.FileStore(place, size)
    host, _, port = place.rpartition(":")
    if host != "127.0.0.1":  # within a step SLURM gives the address of the caller's node, whose name may not resolve
        host = os.environ.get("SLURM_LAUNCH_NODE_IPADDR", host)
    return dist.TCPStore(host, int(port), is_master=False, timeout=timedelta(seconds=60))


def _report_end(end: BaseException, reporter: Reporter, rank: int) -> int:
    """Report what ended this worker; its exit status."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # it is ending already
    if isinstance(end, Preempted | KeyboardInterrupt):
        reporter.send("stopped", str(end))
        return 0  # no failure: an exit status would have srun end the others, which may still be saving
    text = "".join(traceback.format_exception(end))
    mistake = str(end) if isinstance(end, SfrikError) else None
    reporter.send("failure", {"rank": rank, "host": socket.gethostname(), "traceback": text, "mistake": mistake})
    return 1


def _end_with_caller(meeting: str) -> None:
    """The caller holds the other end of stdin; when it is gone, even by kill -9, this process saves what it can and ends."""
    while os.read(0, 1024):
        pass
    kind, _, place = meeting.partition(":")
    if kind == "file":  # the caller can no longer remove its temporary folder
        shutil.rmtree(os.path.dirname(place), ignore_errors=True)
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
    status = importlib.import_module("sfrik.launch.worker")._work()
    sys.stdout.flush()
    os._exit(status)  # a thread of the store or of gloo must not turn a clean end into an abort
