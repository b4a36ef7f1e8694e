"""Which of several processes this one is: a worker of `sfrik.launch`, a process of torchrun, or a single one.

RANK, WORLD_SIZE, LOCAL_RANK and MASTER_ADDR may be left in a shell, or be set for another program. They count only where torchrun
has set them, which sets TORCHELASTIC_RUN_ID too.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from sfrik.errors import SfrikError

__all__ = ["LAUNCHER_VARIABLES", "ProcessPlace", "process_place", "refuse_other_launchers", "set_process_place"]

# What workers must not inherit from a shell or a torchrun in which `launch` is called.
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


@dataclass(frozen=True)
class ProcessPlace:
    """The rank of this process among `size` processes, and among those of its machine."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1


_of_worker: ProcessPlace | None = None


def set_process_place(place: ProcessPlace) -> None:
    """Set the place of a worker of `sfrik.launch`. Its child processes are single ones again."""
    global _of_worker
    _of_worker = place


def process_place() -> ProcessPlace:
    """The place of this process; that of a single process outside of torchrun and `sfrik.launch`."""
    if _of_worker is not None:
        return _of_worker
    given = [os.environ.get(name, "") for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")]
    if "TORCHELASTIC_RUN_ID" not in os.environ or not all(text.isdecimal() for text in given):
        return ProcessPlace()
    place = ProcessPlace(*map(int, given))
    return place if max(place.rank, place.local_rank) < place.size else ProcessPlace()  # torchrun's variables are left in a shell


def refuse_other_launchers() -> None:
    """Refuse to work alone where WORLD_SIZE announces several processes that torchrun did not start.

    Raises:
        SfrikError: the message says what to do.
    """
    size = os.environ.get("WORLD_SIZE", "")
    if size.isdecimal() and int(size) > 1 and process_place().size == 1:
        raise SfrikError(
            f"WORLD_SIZE is {size}, but torchrun did not start this process: start the processes with torchrun or "
            "--nproc-per-node, or unset WORLD_SIZE"
        )
