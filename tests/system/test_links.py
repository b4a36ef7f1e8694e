"""Relative links hold by every name of the checkout, and notebooks that `make` executes are not taken for open ones."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from sfrik.cli import main
from sfrik.reproduce import kernel, notebooks
from sfrik.system import links


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout imported through a symbolic link, with results on another disk; the working directory is the real one."""
    for folder in ("disk/sfrik/notebooks", "other disk/digits", "disk/sfrik/docs"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "link").symlink_to("disk/sfrik")
    (tmp_path / "disk/sfrik/results").symlink_to("../../other disk")
    (tmp_path / "disk/sfrik/docs/scale.md").touch()
    monkeypatch.setattr(links, "CHECKOUT", tmp_path / "link")
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path / "link" / "notebooks")
    monkeypatch.chdir(tmp_path / "disk/sfrik/notebooks")
    return tmp_path


@pytest.mark.parametrize("root", ["../results", "{}/link/results", "{}/disk/sfrik/results", "../../../link/results"])
def test_a_link_is_the_same_by_every_name_of_the_checkout(checkout, root):
    target = Path(root.format(checkout)) / "digits"
    assert links.relative_link(target) == "../results/digits"
    assert links.relative_link(checkout / "link/docs/scale.md", target / "notebooks") == "../../../docs/scale.md"
    assert links.in_checkout(target)


def test_a_link_to_a_folder_elsewhere_is_escaped(checkout):
    assert links.relative_link(checkout / "my [results] 100%", checkout / "link") == "../../my%20%5Bresults%5D%20100%25"
    assert not links.in_checkout(checkout / "my results")


@pytest.mark.parametrize("root", ["../results", "{}/link/results"])
def test_the_links_of_an_executed_copy_lead_to_the_checkout(checkout, root):
    folder = Path(root.format(checkout)) / "digits" / "notebooks"
    folder.mkdir()
    cells = [{"cell_type": "markdown", "source": ["[costs](../docs/scale.md) [web](https://a.b) [next](02.ipynb)"]}]
    partial = folder / "07_tables.partial.ipynb"
    partial.write_text(json.dumps({"metadata": {}, "cells": cells}), encoding="utf-8")
    notebooks._publish(partial, folder / "07_tables.ipynb", {})
    written = json.loads((folder / "07_tables.ipynb").read_text(encoding="utf-8"))
    assert written["cells"][0]["source"] == "[costs](../../../docs/scale.md) [web](https://a.b) [next](02.ipynb)"


def test_a_kernel_does_not_inherit_the_name_of_the_notebook_that_started_it(monkeypatch):
    from jupyter_client.manager import AsyncKernelManager

    given = {}

    async def start(self, **arguments):
        given.update(arguments["env"])

    monkeypatch.setattr(AsyncKernelManager, "start_kernel", start)
    monkeypatch.setenv("JPY_SESSION_NAME", "/notebooks/07_tables.ipynb")
    asyncio.run(kernel.Kernel().manager().start_kernel())
    assert "PATH" in given
    assert "JPY_SESSION_NAME" not in given


def test_a_command_that_jupyterlab_starts_is_not_in_a_notebook(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.setenv("JPY_SESSION_NAME", "/notebooks/07_tables.ipynb")
    assert main([]) == 0
    assert "JPY_SESSION_NAME" not in os.environ
    capsys.readouterr()
