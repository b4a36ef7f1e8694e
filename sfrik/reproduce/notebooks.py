"""Running the project's notebooks headless, by papermill."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from sfrik.errors import Preempted, SfrikError, nearest
from sfrik.runs.provenance import hide_paths
from sfrik.system.files import make_folder, read_json, write_text
from sfrik.system.signals import GRACE, place_reached, stop, stop_requests

__all__ = ["Kernel", "execute", "notebook_path"]

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
FORGET = (  # the names, the outputs, the count of the cells; PyTorch's default type, which a notebook may set
    "get_ipython().reset(); __import__('gc').collect(); torch = __import__('sys').modules.get('torch')\n"
    "if torch: torch.set_default_dtype(torch.float32)\n"
    "del torch"
)
LINK = re.compile(r"\]\(([^)#:\s]+)")  # to a file of the checkout, in Markdown
BINARY = re.compile(r"(image|audio|video)/(?!svg)|application/pdf")  # outputs that are base64 and not text
ANSWER = 20.0  # seconds that a kernel has to answer
SCHEME = "sfrik:"  # before the path of a copy that papermill writes


class Kernel:
    """A kernel for several notebooks, one after the other, so that what they import is loaded once. Leaving it ends the kernel.

    Each notebook begins with an empty namespace and PyTorch's usual default type, and counts its cells from 1; imported modules
    stay as they are. A kernel that is gone, or does not answer, is replaced.
    """

    def __init__(self) -> None:
        self._manager: Any = None
        self._clients: list[Any] = []

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def manager(self) -> Any:
        """For the next notebook: nbclient starts a kernel where the manager has none, and leaves kernel and client open."""
        if self._manager is not None and not asyncio.run(self._forgets()):
            self._close()
        if self._manager is None:
            self._manager = _manager(self._clients)
        return self._manager

    async def _forgets(self) -> bool:
        """Empty the namespace; whether the kernel has done so."""
        self._hang_up()
        if not await self._manager.is_alive():
            return False
        client = self._manager.client()
        client.start_channels(iopub=False, stdin=False, hb=False, control=False)
        with suppress(TimeoutError):
            reply = await client.execute(FORGET, silent=True, store_history=False, reply=True, timeout=ANSWER)
            return reply["content"]["status"] == "ok"
        return False

    def _hang_up(self) -> None:
        while self._clients:
            self._clients.pop().stop_channels()

    def _close(self) -> None:
        self._hang_up()
        if self._manager is not None and self._manager.has_kernel:
            asyncio.run(self._manager.shutdown_kernel(now=True))
        self._manager = None


def _manager(clients: list[Any]) -> Any:
    """A kernel manager that notes the clients it is asked for."""
    from jupyter_client.manager import AsyncKernelManager

    class Manager(AsyncKernelManager):
        def client(self, **arguments: Any) -> Any:
            clients.append(super().client(**arguments))
            return clients[-1]

    return Manager(kernel_name="python3")


def notebook_path(name: str) -> Path:
    """The source of a notebook, `02_pretraining` for instance."""
    path = NOTEBOOKS / f"{name}.ipynb"
    if not NOTEBOOKS.is_dir():
        raise SfrikError("the notebooks are not part of the installed package: run this from a clone of the repository")
    if not path.is_file():
        known = [p.stem for p in NOTEBOOKS.glob("*.ipynb")]
        raise SfrikError(f"there is no notebook {name}{nearest(name, known)}")
    return path


def execute(name: str, parameters: dict[str, Any], output: Path, kernel: Kernel | None = None) -> None:
    """Execute a notebook with parameters; the executed copy is at `output`, complete or not at all.

    Without `kernel` it has one of its own.

    papermill lets a misspelt parameter pass, so the names are checked first. A copy that did not reach its end stays beside
    `output` with the suffix .partial.ipynb: its last cell holds the traceback. SIGINT, SIGTERM and SIGUSR1 interrupt the cell
    that runs, which may save first.

    Raises:
        SfrikError: an unknown parameter, or a cell that failed. Preempted: asked to stop by SIGTERM or SIGUSR1, or SLURM has
            asked the workers. KeyboardInterrupt: asked by SIGINT.
    """
    papermill = _papermill()
    source = notebook_path(name)
    known = papermill.inspect_notebook(_literal(source))
    for parameter in parameters:
        if parameter not in known:
            raise SfrikError(f"notebook {name} has no parameter {parameter}{nearest(parameter, known)}")
    make_folder(output.parent)
    partial = output.with_suffix(".partial.ipynb")
    with stop_requests() as requests:
        manager = kernel.manager() if kernel else None
        # not in the main thread: nbclient would take its signals, and end the kernel without asking it
        thread = ThreadPoolExecutor(1)
        running = thread.submit(_run, name, source, partial, parameters, manager)
        asked: float | None = None
        heard = False
        try:
            while not wait([running], timeout=0.1).done:
                if requests.number and not heard:  # a kernel between two cells, or not there yet, would miss it
                    asked = asked or time.monotonic()
                    heard = _signal_kernels(signal.SIGINT)
                if asked is not None and time.monotonic() - asked > GRACE + 5:
                    _signal_kernels(signal.SIGKILL)
        except KeyboardInterrupt:  # a second one
            _signal_kernels(signal.SIGKILL)
            raise
        finally:
            thread.shutdown(wait=False)
        try:
            running.result()
        except Exception as error:
            if requests.number:
                where = place_reached(str(error)) if isinstance(error, Preempted) else ""
                stop(requests.number, where or f"in notebook {name}")
            raise
        _publish(partial, output, parameters)
        if requests.number:  # it came too late to stop this notebook; what would follow it must not begin
            stop(requests.number, f"notebook {name} is done")


@cache
def _papermill() -> ModuleType:
    """papermill, without a package of jsonschema that builds grammars for a second while it is imported, and is not needed here.

    It checks the form of addresses; jsonschema does without it where it is not installed.
    """
    sys.modules.setdefault("rfc3987_syntax", None)  # pyrefly: ignore[no-matching-overload] None: not to be imported
    import papermill
    from papermill.iorw import papermill_io

    if sys.modules["rfc3987_syntax"] is None:
        del sys.modules["rfc3987_syntax"]
    papermill_io.register(SCHEME, _Copy)
    return papermill


class _Copy:
    """How papermill writes a copy, after each cell: complete or not at all, and an error names the file."""

    @staticmethod
    def write(text: str, path: str) -> None:
        write_text(path.removeprefix(SCHEME), text)

    @staticmethod
    def pretty_path(path: str) -> str:
        return path


def _run(name: str, source: Path, partial: Path, parameters: dict[str, Any], manager: Any) -> None:
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    try:
        papermill.execute_notebook(
            _literal(source),
            SCHEME + _literal(partial),
            parameters,
            progress_bar=False,
            cwd=str(Path.cwd()),
            kernel_name="python3",
            extra_arguments=["--log-level=CRITICAL"],  # such as that it was interrupted when it is shut down
            **({} if manager is None else {"km": manager}),
        )
    except PapermillExecutionError as error:
        if error.ename in ("Preempted", "KeyboardInterrupt"):
            raise Preempted(error.evalue) from None
        raise SfrikError(f"notebook {name} failed with {error.ename} (see {partial}): {error.evalue}") from None
    except DeadKernelError:
        raise SfrikError(
            f"notebook {name}: its kernel was ended before it could say why; where nobody ended it, memory most likely ran out "
            f"(see {partial}); the same command goes on from the last checkpoint"
        ) from None


def _literal(path: Path) -> str:
    """A path of which papermill must not take `{name}` for one of its parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _signal_kernels(number: int) -> bool:
    """Send a signal to the kernels that this process started; whether one is there that does not ignore it."""
    import psutil  # comes with ipykernel

    heard = False
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if any("ipykernel" in part for part in child.cmdline()) and not _ignores(child.pid, number):
                child.send_signal(number)
                heard = True
    return heard


def _ignores(pid: int, number: int) -> bool:
    """Whether a process ignores a signal now, as a kernel does an interrupt while no cell runs; outside of Linux: no."""
    with suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        ignored = next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:"))
        return bool(int(ignored, 16) >> (number - 1) & 1)
    return False


def _publish(partial: Path, output: Path, parameters: dict[str, Any]) -> None:
    """Write a whole copy to `output`, to be read by anyone: links lead from there, no path names the user or the machine."""
    content, folder = read_json(partial), output.parent
    record = content["metadata"].get("papermill", {})
    for key in ("input_path", "output_path", "environment_variables"):
        record.pop(key, None)
    if folder.resolve().is_relative_to(NOTEBOOKS.parent):
        for cell in content["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = LINK.sub(lambda link: f"]({_from(folder, link[1])}", "".join(cell["source"]))
    content = _with_texts(content, hide_paths(_texts(parameters)))
    write_text(output, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    partial.unlink()


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value that JSON can hold."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A value of JSON with every text changed, but for the data of pictures."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_with_texts(part, change) for part in value]
    if isinstance(value, dict):
        return {key: part if BINARY.match(key) else _with_texts(part, change) for key, part in value.items()}
    return value


def _from(folder: Path, target: str) -> str:
    """The way from `folder` to what a notebook's source links to; to another notebook as its copy, where the folder is theirs."""
    there = NOTEBOOKS / target
    if not there.exists() or (folder.name == NOTEBOOKS.name and there.parent == NOTEBOOKS):
        return target
    return os.path.relpath(there.resolve(), folder.resolve())
