"""JupyterLab as `make lab` opens it, in headless Chromium: the right kernel, Run All, sliders that change the figure."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
import urllib.request

import pytest
from browser import chromium
from lab import ROOT, Notebook, jupyterlab, parametrised

pytestmark = pytest.mark.browser
SIZE = {"width": 1280, "height": 1000}
PICTURE = "img, .jp-RenderedHTMLCommon"  # of an explorer: a PNG, or HTML


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def address(browser, tmp_path_factory):
    """A server with notebook 01 and the memory calculator of notebook 06, on a machine with kernels of other environments."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("01_kernel_theory", "06_complexity"):
        parametrised(ROOT / "notebooks" / f"{name}.ipynb", folder / "notebooks" / f"{name}.ipynb", {})
    path = folder / "notebooks" / "06_complexity.ipynb"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["cells"] = [cell for cell in content["cells"] if "memory_widget()" in "".join(cell["source"])]
    path.write_text(json.dumps(content), encoding="utf-8")
    for name in ("python3", "another"):
        kernel = folder / "elsewhere" / "kernels" / name / "kernel.json"
        kernel.parent.mkdir(parents=True)
        kernel.write_text(json.dumps({"argv": ["false"], "display_name": f"not {name}", "language": "python"}), encoding="utf-8")
    with jupyterlab(folder, JUPYTER_PATH=str(folder / "elsewhere")) as started:
        yield started


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport=SIZE)
    yield page
    page.close()


def test_make_lab_opens_the_notebooks_with_only_its_own_kernel_and_without_a_dialog(page, address):
    with urllib.request.urlopen(address.format("api/kernelspecs"), timeout=10) as reply:
        kernels = json.load(reply)["kernelspecs"]
    assert {name: kernel["spec"]["display_name"] for name, kernel in kernels.items()} == {"python3": "Python 3 (ipykernel)"}
    page.goto(address.format(""))
    page.locator(".jp-DirListing-item", has_text="01_kernel_theory.ipynb").wait_for()
    page.wait_for_timeout(2000)  # a dialog would appear after the page
    assert page.locator(".jp-Dialog").count() == 0
    assert page.locator(".Toastify__toast").count() == 0


def move(notebook, control, keys):
    """Press keys on a control of a widget; return its picture before, and after it has changed."""
    shown = notebook.widget()
    picture = shown.locator(PICTURE).last
    before = picture.evaluate("picture => picture.outerHTML")
    control = shown.locator(control).first
    control.focus()
    for key in keys:
        control.press(key)
    deadline = time.monotonic() + 30
    while (after := picture.evaluate("picture => picture.outerHTML")) == before:
        assert time.monotonic() < deadline, "the picture does not change"
        notebook.page.wait_for_timeout(100)
    return before, after


def test_the_first_notebook_runs_by_run_all_and_a_slider_moves_its_figure(page, address):
    notebook = Notebook(page, address, "01_kernel_theory")
    collapsed = page.locator(".jp-Placeholder").all_inner_texts()
    assert [text.split("\n")[0] for text in collapsed] == ["dim = 64", "%matplotlib inline"], "the parameters and the imports"
    notebook.run_all(240)
    assert notebook.errors() == []
    before, after = move(notebook, ".noUi-handle", ["ArrowRight"] * 3)
    pictures = [base64.b64decode(shown.split("base64,")[1].split('"')[0]) for shown in (before, after)]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert pictures[0] != pictures[1]
    assert notebook.errors() == []


def test_the_memory_calculator_follows_its_inputs(page, address):
    notebook = Notebook(page, address, "06_complexity")
    notebook.run_all(120)
    before, after = move(notebook, "input", ["Control+A", *"32768", "Enter"])
    assert "projector 8192-8192-8192," in before
    assert "projector 8192-8192-32768," in after
    assert notebook.errors() == []
    shown = notebook.widget()
    assert shown.evaluate("area => area.scrollWidth <= area.clientWidth"), "its inputs are cut off on the right"


def test_the_explorers_picture_is_visible_without_a_kernel_and_without_widgets(page, tmp_path):
    """The executed notebook is converted to HTML and opened with scripts disabled."""
    cell = "from sfrik.plots.kernel_explorer import kernel_explorer\nkernel_explorer()"
    code = {"cell_type": "code", "id": "a", "metadata": {}, "source": cell, "outputs": [], "execution_count": None}
    content = {"cells": [code], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "explorer.ipynb").write_text(json.dumps(content), encoding="utf-8")
    command = [sys.executable, "-m", "nbconvert", "--execute", "--to", "html", str(tmp_path / "explorer.ipynb")]
    subprocess.run(command, check=True, capture_output=True)
    context = page.context.browser.new_context(java_script_enabled=False)
    reader = context.new_page()
    reader.goto(f"file://{tmp_path / 'explorer.html'}")
    picture = reader.locator(".jp-OutputArea-output img")
    assert picture.count() == 1
    assert picture.bounding_box()["height"] > 100
    context.close()
