"""A Jupyter kernel that executes several notebooks one after the other, and the signals to it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

from sfrik.system.signals import KERNEL_REPLY

__all__ = ["RESET", "Kernel"]

RESET = (  # clear the variables, outputs and execution count; restore PyTorch's default dtype, which a notebook may change
    "get_ipython().reset(); __import__('gc').collect(); torch = __import__('sys').modules.get('torch')\n"
    "if torch: torch.set_default_dtype(torch.float32)\n"
    "del torch"
)


class Kernel:
    """A kernel for several notebooks, so that what they import is loaded once. Leaving the context ends the kernel.

    Each notebook starts with an empty namespace and PyTorch's usual default type, and counts its cells from 1; imported modules
    stay as they are. A kernel that is gone, or does not answer, is replaced.

    A kernel whose parent is killed ends within a second: ipykernel polls the parent's pid, which it gets as JPY_PARENT_PID. The
    end of stdin, as elsewhere (`sfrik.system.signals`), cannot be used here: jupyter_client closes a kernel's stdin at its start.
    """

    def __init__(self) -> None:
        self._manager: Any = None
        self._clients: list[Any] = []

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def manager(self) -> Any:
        """The kernel manager for the next notebook.

        nbclient starts a kernel if the manager has none, and leaves the kernel and its client open.
        """
        if self._manager is not None and not asyncio.run(self._reset()):
            self._close()
        if self._manager is None:
            self._manager = _manager(self._clients)
        return self._manager

    def send_signal(self, number: int) -> bool:
        """Send a signal to the kernel's process, not to its children; return whether it is there and does not ignore it.

        A kernel ignores an interrupt while it executes no cell.
        """
        process = getattr(getattr(self._manager, "provisioner", None), "process", None)
        if process is None or process.poll() is not None or _ignores(process.pid, number):
            return False
        process.send_signal(number)
        return True

    async def _reset(self) -> bool:
        """Empty the namespace; return whether the kernel has done so."""
        self._stop_clients()
        if not await self._manager.is_alive():
            return False
        client = self._manager.client()
        client.start_channels(iopub=False, stdin=False, hb=False, control=False)
        with suppress(TimeoutError):
            reply = await client.execute(RESET, silent=True, store_history=False, reply=True, timeout=KERNEL_REPLY)
            return reply["content"]["status"] == "ok"
        return False

    def _stop_clients(self) -> None:
        while self._clients:
            self._clients.pop().stop_channels()

    def _close(self) -> None:
        self._stop_clients()
        if self._manager is not None and self._manager.has_kernel:
            asyncio.run(self._manager.shutdown_kernel(now=True))
        self._manager = None


def _manager(clients: list[Any]) -> Any:
    """A kernel manager that adds the clients it creates to a list."""
    from jupyter_client.manager import AsyncKernelManager

    class Manager(AsyncKernelManager):
        def client(self, **arguments: Any) -> Any:
            clients.append(super().client(**arguments))
            return clients[-1]

    return Manager(kernel_name="python3")


def _ignores(pid: int, number: int) -> bool:
    """Whether a process ignores a signal now. Only Linux reports this; False elsewhere."""
    with suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        ignored = next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:"))
        return bool(int(ignored, 16) >> (number - 1) & 1)
    return False
