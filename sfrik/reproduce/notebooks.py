"""Execution of the project's notebooks, headless, by papermill."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from sfrik.errors import Preempted, SfrikError, nearest
from sfrik.reproduce.kernel import Kernel
from sfrik.reproduce.parameters import check_names, parameter_names, typed_parameters
from sfrik.runs.provenance import hide_paths
from sfrik.system.files import check_text, make_folder, read_json, read_text, write_text
from sfrik.system.links import in_checkout, relative_link
from sfrik.system.live import LiveLines
from sfrik.system.png import resized_png, smaller_png
from sfrik.system.progress import duration
from sfrik.system.signals import KERNEL_GRACE, KERNEL_SIGTERM, place_reached, stop, stop_requests
from sfrik.system.terminal import print_line

__all__ = ["copy_notebook", "execute", "notebook_path", "print_typed", "same_code", "shrink_pictures"]

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
LINK = re.compile(r"\]\(([^)#:\s]+)")  # to a file of the checkout, in Markdown
BINARY = re.compile(r"(image|audio|video)/(?!svg)|application/pdf")  # outputs in base64
EXPLORE = "explore"  # tag of the cells that are for a reader and not for a table
SCHEME = "sfrik:"  # before a path that papermill reads or writes by `_Handler`


def notebook_path(name: str) -> Path:
    """The path of a notebook's source, by a name such as `02_pretraining`."""
    path = NOTEBOOKS / f"{name}.ipynb"
    if not NOTEBOOKS.is_dir():
        raise SfrikError("the notebooks are not part of the installed package: run this from a clone of the repository")
    if not path.is_file():
        known = [p.stem for p in NOTEBOOKS.glob("*.ipynb")]
        raise SfrikError(f"there is no notebook {name}{nearest(name, known)}")
    return path


def execute(name: str, parameters: dict[str, Any], output: Path, kernel: Kernel | None = None, explore: bool = True) -> None:
    """Execute a notebook with parameters and write the executed copy to `output`, complete or not at all.

    papermill sets a misspelt parameter too, so the names are checked first. A parameter that is not given has the value that is
    committed, not one that was typed into the notebook's file. The copy of a notebook that did not reach its end is
    kept beside `output` with the suffix .partial.ipynb; its last cell holds the traceback. A signal that asks to stop interrupts
    the running cell, which may save first; a kernel that has not ended `KERNEL_GRACE` seconds later is killed.

    Args:
        kernel: where to execute it; a new kernel when None.
        explore: whether to keep the cells tagged `explore`.

    Raises:
        SfrikError: an unknown parameter, a path that is not text, or a cell failed.
        Preempted: SIGTERM, SIGUSR1 or SIGHUP asked this process to stop, or SLURM its workers.
        KeyboardInterrupt: SIGINT asked it to stop.
    """
    source = notebook_path(name)
    check_text(*_strings(parameters))
    check_names(parameters, parameter_names(_parameters_cell(source)), f"notebook {name}")
    typed = {key: value for key, value in _typed(name).items() if key not in parameters}
    print_typed(name, typed)
    parameters = parameters | typed
    make_folder(output.parent)
    partial = output.with_suffix(".partial.ipynb")
    with stop_requests() as requests, nullcontext(kernel) if kernel else Kernel() as kernel, LiveLines() as live:
        manager = kernel.manager()
        # not in the main thread, where nbclient would handle the signals and end the kernel at once
        thread = ThreadPoolExecutor(1)
        running = thread.submit(_run, name, source, partial, parameters, manager, explore)
        started, asked, interrupted, terminated = time.monotonic(), 0.0, False, False
        try:
            while not wait([running], timeout=0.1).done:
                live.show([f"notebook {name}: {duration(time.monotonic() - started)} so far"])
                asked = asked or (time.monotonic() if requests.number else 0.0)
                waited = time.monotonic() - asked if asked else 0.0
                if asked and not interrupted:  # again and again: a kernel between two cells would miss it
                    interrupted = kernel.interrupt()
                elif waited > KERNEL_SIGTERM and not terminated:  # an import may swallow the interrupt; saving continues
                    terminated = kernel.send_signal(signal.SIGTERM)
                if waited > KERNEL_GRACE:
                    kernel.send_signal(signal.SIGKILL)
        except KeyboardInterrupt:  # a second one
            kernel.send_signal(signal.SIGKILL)
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
        if requests.number:  # too late to stop this notebook; the next one must not start
            stop(requests.number, f"notebook {name} is done")


@cache
def _papermill() -> ModuleType:
    """Import papermill without rfc3987_syntax, whose import takes a second.

    jsonschema uses that package, if it is installed, to validate IRIs, which notebooks do not need.
    """
    sys.modules.setdefault("rfc3987_syntax", None)  # pyrefly: ignore[no-matching-overload] None blocks the import
    import papermill
    from papermill.iorw import papermill_io

    if sys.modules["rfc3987_syntax"] is None:
        del sys.modules["rfc3987_syntax"]
    papermill_io.register(SCHEME, _Handler)
    return papermill


class _Handler:
    """Reads a notebook without its cells for a reader; writes the copy after each cell, complete or not at all."""

    @staticmethod
    def read(path: str) -> str:
        content = read_json(Path(path.removeprefix(SCHEME)))
        content["cells"] = [cell for cell in content["cells"] if EXPLORE not in cell["metadata"].get("tags", ())]
        return json.dumps(content)

    @staticmethod
    def write(text: str, path: str) -> None:
        write_text(path.removeprefix(SCHEME), text)

    @staticmethod
    def pretty_path(path: str) -> str:
        return path


def _run(name: str, source: Path, partial: Path, parameters: dict[str, Any], manager: Any, explore: bool) -> None:
    papermill = _papermill()
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    try:
        papermill.execute_notebook(
            ("" if explore else SCHEME) + _literal(source),
            SCHEME + _literal(partial),
            parameters,
            progress_bar=False,
            cwd=str(Path.cwd()),
            kernel_name="python3",
            extra_arguments=["--log-level=CRITICAL"],  # no messages about interrupts and the shutdown
            km=manager,
        )
    except PapermillExecutionError as error:
        if error.ename in ("Preempted", "KeyboardInterrupt"):
            raise Preempted(error.evalue) from None
        raise SfrikError(f"notebook {name} failed with {error.ename} (see {partial}): {error.evalue}") from None
    except DeadKernelError:
        raise SfrikError(
            f"notebook {name}: its kernel was killed before it could report an error; unless someone killed it, it "
            f"most likely ran out of memory (see {partial}); the same command resumes from the last checkpoint"
        ) from None


def print_typed(name: str, typed: Iterable[str] | None = None) -> None:
    """Print which parameters of a notebook's file are not used; those that `execute` is not given, or all that were typed."""
    if names := ", ".join(_typed(name) if typed is None else typed):
        print_line(f"notebook {name}: not used, since they were typed into its file: {names}")


def _typed(name: str) -> dict[str, Any]:
    return typed_parameters(name, _parameters_cell(notebook_path(name)))


def _parameters_cell(source: Path) -> str:
    """The source of a notebook's cell of parameters."""
    cells = [cell for cell in read_json(source)["cells"] if "parameters" in cell["metadata"].get("tags", ())]
    return "".join(cells[0]["source"]) if cells else ""


def _literal(path: Path) -> str:
    """A path in which papermill does not replace `{name}` by a parameter."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _publish(partial: Path, output: Path, parameters: dict[str, Any]) -> None:
    """Write a complete copy to `output` for other readers: relative links hold there, and no path names the user or machine."""
    content, folder = read_json(partial), output.parent
    record = content["metadata"].get("papermill", {})
    for key in ("input_path", "output_path", "environment_variables"):
        record.pop(key, None)
    if in_checkout(folder):
        for cell in content["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = LINK.sub(lambda link: f"]({_relative_link(folder, link[1])}", "".join(cell["source"]))
    content = _map_strings(content, hide_paths(_strings(parameters)))
    shrink_pictures(content)
    write_text(output, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    partial.unlink()


def copy_notebook(source: Path, target: Path, root: Path) -> None:
    """Copy an executed notebook from below `root` to the same place below another root; its links hold there."""
    content, here, there = read_json(source), source.parent, target.parent

    def moved(link: re.Match[str]) -> str:
        found = here / link[1]
        if not in_checkout(here):  # there it is as in the source
            return f"]({_relative_link(there, link[1])}"
        inside = found.resolve().is_relative_to(root.resolve())
        return link[0] if inside or not found.exists() else f"]({relative_link(found, there)}"

    for cell in content["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and (changed := LINK.sub(moved, text)) != text:
            cell["source"] = changed
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    if not target.is_file() or read_text(target) != text:
        write_text(target, text)


def same_code(name: str, copy: Path) -> bool:
    """Whether an executed copy has the code of the notebook as it is now."""
    ours, theirs = (
        [
            "".join(cell["source"])
            for cell in read_json(path)["cells"]
            if cell["cell_type"] == "code" and "injected-parameters" not in cell["metadata"].get("tags", ())
        ]
        for path in (notebook_path(name), copy)
    )
    return ours == theirs


def shrink_pictures(notebook: dict[str, Any]) -> None:
    """Replace the pictures in the outputs of a notebook by smaller ones that look the same.

    Figures of few colours keep twice the resolution of the screen; those with photos get the resolution of the screen.
    """
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            if picture := output.get("data", {}).get("image/png"):
                content = b64decode("".join(picture))
                size = output.get("metadata", {}).get("image/png", {})
                if (smaller := smaller_png(content)) == content and {"width", "height"} <= size.keys():
                    smaller = resized_png(content, size["width"], size["height"])
                output["data"]["image/png"] = b64encode(smaller).decode()


def _strings(value: Any) -> Iterator[str]:
    """All strings in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with every string changed, except the data of images."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_strings(part, change) for part in value]
    if isinstance(value, dict):
        return {key: part if BINARY.match(key) else _map_strings(part, change) for key, part in value.items()}
    return value


def _relative_link(folder: Path, target: str) -> str:
    """The link from `folder` to the target of a link in a notebook; unchanged between two copies in the folder of copies."""
    there = NOTEBOOKS / target
    if not there.exists() or (folder.name == NOTEBOOKS.name and there.parent == NOTEBOOKS):
        return target
    return relative_link(there, folder)
