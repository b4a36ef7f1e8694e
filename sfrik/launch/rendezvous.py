"""Where the workers of one launch meet to form a process group.

On one machine that is a file in a private folder, or a store of PyTorch's on the loopback interface where a container may hide
that folder or its file system has no locks. On several nodes it is a store on the caller's node, which anyone on the network can
reach: `sfrik.launch.worker` therefore has the members prove that they have read the call. SECURITY.md lists what follows.

The address is text that travels in the call: `file:PATH`, or `tcp:HOST,HOST:PORT` with all addresses of the caller's node.
"""

from __future__ import annotations

import os
import shutil
import socket
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfrik.launch.addresses import addresses_of_this_node, reachable_address, use_interface_to
from sfrik.launch.allocation import drives_job

if TYPE_CHECKING:
    import torch.distributed as dist

__all__ = ["join_rendezvous", "open_rendezvous", "remove_rendezvous"]


def open_rendezvous(nodes: int, folder: str) -> tuple[str, Any]:
    """On the caller's side: the address, and the store that must live as long as the workers (None for a file).

    Args:
        folder: a private folder, for a rendezvous on this machine.
    """
    here = nodes == 1 and (not drives_job() or "SLURMD_NODENAME" in os.environ)
    if here and not os.environ.get("SFRIK_PREFIX") and _takes_locks(folder):
        return f"file:{folder}/rendezvous", None
    import torch.distributed as dist  # here, since most launches need no store

    if here:
        server = socket.create_server(("127.0.0.1", 0))
        port = server.getsockname()[1]
        store = dist.TCPStore("127.0.0.1", port, None, True, wait_for_workers=False, master_listen_fd=server.detach())
        return f"tcp:127.0.0.1:{port}", store
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return f"tcp:{','.join(addresses_of_this_node())}:{store.port}", store


def _takes_locks(folder: str) -> bool:
    """Whether files in a folder can be locked, as PyTorch's file store does. Some network file systems cannot."""
    try:
        import fcntl

        with open(Path(folder) / "lock", "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows
        return True
    except OSError:
        return False
    return True


def join_rendezvous(address: str, world_size: int) -> dist.Store | None:
    """On a worker's side: the store through which the workers find each other, None for a single one."""
    import torch.distributed as dist

    kind, _, place = address.partition(":")
    if world_size == 1:
        return None
    if kind == "file":
        return dist.FileStore(place, world_size)
    names, _, port = place.rpartition(":")
    if names == "127.0.0.1":
        return dist.TCPStore(names, int(port), is_master=False, timeout=timedelta(seconds=60))
    caller = os.environ.get("SLURM_LAUNCH_NODE_IPADDR")  # as SLURM sees it, within a step
    host = reachable_address([*([caller] if caller else []), *names.split(",")], int(port))
    use_interface_to(host, int(port))
    return dist.TCPStore(host, int(port), is_master=False, timeout=timedelta(seconds=60))


def remove_rendezvous(address: str) -> None:
    """Remove the private folder in place of a caller that was killed."""
    kind, _, place = address.partition(":")
    if kind == "file":
        shutil.rmtree(Path(place).parent, ignore_errors=True)
