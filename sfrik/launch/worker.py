"""The worker process of `sfrik.launch`: it reads the call, joins the process group, calls the function and reports.

`python -m sfrik.launch.worker` is started by `launch`. `process_group` serves torchrun's processes too.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

import sfrik.system.progress
from sfrik.errors import Preempted, SfrikError
from sfrik.launch.remote_call import Reporter, unpack_call
from sfrik.launch.rendezvous import join_rendezvous, remove_rendezvous
from sfrik.ops.collectives import all_gather_json
from sfrik.system.devices import pick_device
from sfrik.system.processes import ProcessPlace, process_place, set_process_place
from sfrik.system.signals import GRACE, SIGNALS, handle_signals, stop_at_end_of_stdin
from sfrik.system.terminal import open_standard_streams, replace_unprintable, tolerate_output_errors

__all__ = ["process_group"]


@contextmanager
def process_group(device: str = "auto", store: dist.Store | None = None, token: str = "") -> Iterator[None]:
    """Join the process group that the environment describes; does nothing for a single process.

    The backend is NCCL on GPUs and gloo on the CPU.

    Args:
        device: the setting `device`.
        store: where the processes meet; torchrun's variables name the place when None.
        token: of the call. With a store, the processes prove to each other that they know it.
    """
    place = process_place()
    if place.size == 1 or dist.is_initialized():
        yield
        return
    chosen = pick_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    if store is None:
        dist.init_process_group(backend)
    else:
        group = dist.PrefixStore(_proof(token, "group"), store)
        dist.init_process_group(backend, store=group, rank=place.rank, world_size=place.size)
        _check_proofs(token, chosen)
    if backend == "gloo":  # a process that finishes at once would leave while others still connect to it
        dist.barrier()
    try:
        yield
    finally:
        dist.destroy_process_group()


def _proof(token: str, text: str) -> str:
    """A message that only a process with the token can compute."""
    return hmac.new(token.encode(), text.encode(), hashlib.sha256).hexdigest()


def _check_proofs(token: str, device: torch.device) -> None:
    """Check that every process of the group has read the call, which came through its stdin and not through a socket.

    Raises:
        SfrikError: another program has joined the group.
    """
    proofs = all_gather_json(_proof(token, str(dist.get_rank())), device)
    for rank, proof in enumerate(proofs):
        if not hmac.compare_digest(str(proof), _proof(token, str(rank))):
            raise SfrikError(f"rank {rank} is no process of this launch: another program answered in its place")


class _Stopped(KeyboardInterrupt):
    """A signal arrived while a function ran that does not check for it. No `except Exception` of that function catches it."""


def _work() -> int:
    """Read the call, join the group, call the function and report; returns the exit status."""
    open_standard_streams()
    reports = os.dup(1)  # stdout is for reports: everything printed goes to stderr
    os.dup2(2, 1)
    replace_unprintable("utf-8")  # as the caller reads it
    os.environ.setdefault("RANK", os.environ.get("SLURM_PROCID", "0"))  # `launch` sets it for processes that it starts itself
    os.environ.setdefault("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    place = ProcessPlace(*(int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")))
    set_process_place(place)
    line = _first_line()
    if not line:  # the caller is gone
        return 1
    call = json.loads(line)
    stop_at_end_of_stdin(GRACE, lambda: _clean_up_for_caller(call["rendezvous"]))
    rank = place.rank
    reporter = Reporter(reports, call["token"], rank)
    if rank == 0 and "SFRIK_BAR" in os.environ:
        sfrik.system.progress.progress_callback = lambda facts: reporter.send("progress", facts)
    try:
        function, args, kwargs = unpack_call(call)
        device = getattr(args[0], "device", "auto") if args else "auto"
        with process_group(device, join_rendezvous(call["rendezvous"], place.size), call["token"]):
            # until here a signal ends the process at once: while it waits for the others no handler would run
            handle_signals(_leave)
            try:
                result = function(*args, **kwargs)
            except BaseException as end:
                _report_end(end, reporter, rank)  # before it leaves the group: then the others fail because a partner is missing
                raise
        if rank == 0:
            reporter.send("result", result)
    except BaseException as end:
        return _report_end(end, reporter, rank)
    return 0


def _first_line() -> str:
    """Read the call, one line of stdin, and no further."""
    parts = []
    while not (parts and parts[-1].endswith(b"\n")):
        if not (part := os.read(0, 1 << 16)):
            return ""
        parts.append(part)
    return b"".join(parts).decode()


def _report_end(end: BaseException, reporter: Reporter, rank: int) -> int:
    """Report what ended this worker, and return its exit status."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the worker is ending already
    if isinstance(end, Preempted | KeyboardInterrupt):
        reporter.send("stopped", str(end))
        return 0  # no failure: another status would make srun end the others, which may still be saving
    text = "".join(traceback.format_exception(end))
    mistake = str(end) if isinstance(end, SfrikError) else None
    reporter.send("failure", {"rank": rank, "host": socket.gethostname(), "traceback": text, "mistake": mistake})
    return 1


def _clean_up_for_caller(rendezvous: str) -> None:
    """When the caller is gone, even by kill -9: remove its private folder, and print into nothing."""
    remove_rendezvous(rendezvous)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):  # a print would raise BrokenPipeError
        os.dup2(nowhere, descriptor)


def _leave(number: int, frame) -> None:
    if not isinstance(sys.exc_info()[1], Preempted | KeyboardInterrupt):  # else it is stopping already
        raise _Stopped(f"stopped by {signal.Signals(number).name} (nothing new to save); the same command repeats this part")


if __name__ == "__main__":
    # Run by -m, this file is the module __main__; importing it by its name avoids a second copy of its state.
    status = importlib.import_module("sfrik.launch.worker")._work()
    with tolerate_output_errors(sys.stdout):
        sys.stdout.flush()
    os._exit(status)  # a thread of the store or of gloo must not turn a clean exit into an abort
