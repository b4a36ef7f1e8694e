"""A Jupyter kernel that executes several notebooks one after the other, and the signals to it."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from sfrik.errors import SfrikError
from sfrik.system.signals import KERNEL_REPLY
from sfrik.system.temporary import user_folder

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

    The kernel is that of the running Python, whichever kernels are installed for the user. It does not read the user's IPython
    profile, whose startup files could change a result, and needs no writable home folder.
    """

    def __init__(self) -> None:
        self._manager: Any = None
        self._clients: list[Any] = []
        self._answers = False  # whether it has started, and executes what it is sent

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
            self._manager = self._new_manager()
        return self._manager

    def interrupt(self) -> bool:
        """Interrupt the running cell; return whether there was one. A kernel that is still starting is killed."""
        return self.send_signal(signal.SIGINT if self._answers else signal.SIGKILL)

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
        self._manager, self._answers = None, False

    def _new_manager(self) -> Any:
        """A manager of kernels of this Python. Its clients are kept, and record when the kernel answers."""
        try:
            from ipykernel.kernelspec import get_kernel_dict
        except ImportError:
            raise SfrikError(f"ipykernel is not installed for {sys.executable}: python -m pip install ipykernel") from None
        from jupyter_client.asynchronous import AsyncKernelClient
        from jupyter_client.kernelspec import KernelSpec
        from jupyter_client.manager import AsyncKernelManager

        kernel, folder = self, user_folder()

        class Client(AsyncKernelClient):
            async def wait_for_ready(self, timeout: float | None = None) -> None:
                await super().wait_for_ready(timeout)
                kernel._answers = True

        class Manager(AsyncKernelManager):
            kernel_spec = KernelSpec(**get_kernel_dict(), env={"IPYTHONDIR": str(folder / "ipython")})

            async def start_kernel(self, **arguments: Any) -> None:  # pyrefly: ignore[bad-override-mutable-attribute]
                # a notebook in JupyterLab may have started this process: its name is not that of the one that is executed
                environment = {name: value for name, value in os.environ.items() if name != "JPY_SESSION_NAME"}
                await super().start_kernel(**{"env": environment, **arguments})

            def client(self, **arguments: Any) -> Any:
                kernel._clients.append(super().client(**arguments))
                return kernel._clients[-1]

        connection = folder / f"kernel-{os.getpid()}-{secrets.token_hex(4)}.json"  # not in the home folder, as by default
        return Manager(client_factory=Client, connection_file=str(connection))


def _ignores(pid: int, number: int) -> bool:
    """Whether a process ignores a signal now. Only Linux reports this; False elsewhere."""
    with suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        ignored = next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:"))
        return bool(int(ignored, 16) >> (number - 1) & 1)
    return False
