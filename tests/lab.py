"""JupyterLab as `make lab` starts it, in a browser: helpers of test_lab.py and screenshots.py."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

ROOT = Path(__file__).parents[1]
START = 60.0  # seconds for the server to start
WIDGETS = ".jp-OutputArea-output .jupyter-widgets"
RESULT = ".jp-Cell-outputArea"  # all outputs of a cell
MODEL = "jupyterapp.shell.currentWidget.content.model.toJSON()"
READY = "jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
# true when the kernel is idle and every cell was run, or one failed (JupyterLab then stops)
DONE = f"""() => {{
    const cells = {MODEL}.cells.filter(cell => cell.cell_type === 'code');
    const kernel = jupyterapp.shell.currentWidget.sessionContext.session?.kernel;
    const failed = cells.some(cell => cell.outputs.some(output => output.output_type === 'error'));
    return kernel?.status === 'idle' && (failed || cells.every(cell => cell.execution_count));
}}"""


WIDE = """() => [...document.querySelectorAll('.jp-Notebook :is(.jp-OutputArea-output, .jp-RenderedMarkdown)')]
    .filter(shown => shown.scrollWidth > shown.clientWidth + 1)
    .map(shown => shown.innerText.trim().replace(/\\s+/g, ' ').slice(0, 60) || 'a figure')"""


@contextmanager
def jupyterlab(folder: Path, **environment: str) -> Iterator[str]:
    """Start `make lab` in a folder with notebooks/ and yield the server's address, with {} in place of the page.

    JupyterLab has no user settings, as when it is started for the first time, and uses the Python that runs this.

    Args:
        environment: further environment variables.
    """
    shutil.copytree(ROOT / ".jupyter", folder / ".jupyter")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    address = f"http://127.0.0.1:{port}/{{}}?token={token}"
    flags = f"--no-browser --ServerApp.port={port} --ServerApp.port_retries=0 --IdentityProvider.token={token}"
    home = folder / "home"
    own = {name: str(home / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")}
    own |= {name: str(home / name.lower()) for name in ("JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["make", "--file", str(ROOT / "Makefile"), "lab", "VENV=", f"LAB={flags} --LabApp.expose_app_in_browser=True"]
    home.mkdir()
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **own, **environment, "PATH": path, "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START
        while not _answers(address.format("api/status")):
            assert server.poll() is None, f"JupyterLab ended: {(home / 'log').read_text(encoding='utf-8')}"
            assert time.monotonic() < deadline, (
                f"JupyterLab does not answer after {START} s: {(home / 'log').read_text(encoding='utf-8')}"
            )
            time.sleep(0.1)
        yield address
    finally:
        with suppress(OSError):  # the server ends its kernels too
            urllib.request.urlopen(urllib.request.Request(address.format("api/shutdown"), method="POST"), timeout=10)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


def parametrised(source: Path, to: Path, parameters: dict[str, Any]) -> None:
    """Write a copy of a notebook that sets those of the parameters that it has, at the end of its parameters cell."""
    content = json.loads(source.read_text(encoding="utf-8"))
    for cell in content["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            known = {line.split(" = ")[0] for line in "".join(cell["source"]).splitlines()}
            cell["source"] = [*cell["source"], *(f"\n{k} = {v!r}" for k, v in parameters.items() if k in known)]
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(json.dumps(content), encoding="utf-8")


class Notebook:
    """A notebook opened in a page.

    Args:
        address: the address from `jupyterlab`.
        name: the file's name in notebooks/, without suffix.
    """

    def __init__(self, page: Page, address: str, name: str) -> None:
        self.page = page
        page.goto(address.format(f"lab/tree/notebooks/{name}.ipynb") + "&reset")  # close the notebooks of earlier tests
        page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=60_000)
        page.wait_for_function(READY, timeout=60_000)  # JupyterLab ignores Run All before the kernel is ready

    def run_all(self, seconds: float) -> float:
        """Run > Run All Cells; return its duration in seconds, or fail after `seconds`."""
        self.page.locator(".lm-MenuBar-itemLabel", has_text="Run").get_by_text("Run", exact=True).click()
        self.page.locator(".lm-Menu-itemLabel").get_by_text("Run All Cells", exact=True).click()
        started = time.monotonic()
        self.page.wait_for_function(DONE, timeout=1000 * seconds, polling=200)
        return time.monotonic() - started

    def outputs(self) -> list[dict[str, Any]]:
        """All outputs of all cells, in the format of nbformat."""
        cells = self.page.evaluate(MODEL)["cells"]
        return [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]

    def errors(self) -> list[str]:
        """Tracebacks and texts written to stderr."""
        found = []
        for output in self.outputs():
            if output["output_type"] == "error":
                found.append("\n".join(output["traceback"]))
            elif output.get("name") == "stderr":
                found.append("".join(output["text"]))
        return found

    def save(self) -> None:
        """File > Save Notebook, with the state of the widgets."""
        self.page.evaluate("jupyterapp.commands.execute('docmanager:save')")

    def widget(self) -> Locator:
        """All outputs of the first cell with a widget, scrolled into view, since JupyterLab renders only what is near it."""
        self.page.evaluate(
            f"""async () => {{
                const notebook = jupyterapp.shell.currentWidget.content;
                const index = {MODEL}.cells.findIndex(cell => (cell.outputs ?? []).some(
                    output => output.data && 'application/vnd.jupyter.widget-view+json' in output.data));
                if (index < 0) throw new Error('no cell shows a widget');
                await notebook.scrollToItem(index, 'start');
            }}"""
        )
        shown = self.page.locator(RESULT).filter(has=self.page.locator(WIDGETS)).first
        shown.locator(WIDGETS).first.wait_for(timeout=30_000)
        return shown

    def screenshots(self, folder: Path) -> tuple[int, int, list[str]]:
        """Take screenshots of the whole notebook from top to bottom, 01.png, 02.png, ...

        Returns:
            The number of screenshots, the number of formulas with errors, and the beginnings of outputs wider than the page.
        """
        folder.mkdir(parents=True)
        pane = self.page.locator(".jp-Notebook .jp-WindowedPanel-outer, .jp-Notebook.jp-WindowedPanel-outer").first
        pane.evaluate("pane => pane.scrollTo(0, 0)")
        number, refused, ended = 0, 0, False
        wide: dict[str, None] = {}
        while not ended:
            number += 1
            self.page.wait_for_timeout(700)  # until the formulas and figures in view are rendered
            refused += self.page.locator(".jp-Notebook mjx-merror").count()
            wide |= dict.fromkeys(self.page.evaluate(WIDE))
            self.page.screenshot(path=folder / f"{number:02d}.png")
            ended = pane.evaluate(
                """pane => {
                    const before = pane.scrollTop;
                    pane.scrollBy(0, pane.clientHeight - 60);
                    return pane.scrollTop - before < 1;
                }"""
            )
        return number, refused, list(wide)

    def close(self) -> None:
        """Shut down the kernel and close the page."""
        self.page.evaluate("jupyterapp.shell.currentWidget.sessionContext.shutdown()")
        self.page.close()
