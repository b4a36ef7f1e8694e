"""What is published (executed notebooks, the command in provenance.json) names no folder of the user or of the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sfrik.reproduce import notebooks
from sfrik.reproduce.kernel import Kernel
from sfrik.reproduce.notebooks import execute
from sfrik.runs.provenance import hide_paths

CHECKOUT = Path(__file__).parents[2]
USER = "annabel"


@pytest.fixture
def user(tmp_path, monkeypatch):
    """The home folder of a user whose working directory is in it."""
    home = tmp_path / "home" / USER
    (home / "projects").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    for name in ("LOGNAME", "USER"):
        monkeypatch.setenv(name, USER)
    monkeypatch.chdir(home / "projects")
    return home


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{home}/data/imagenet", "~/data/imagenet"),
        ("[PosixPath('{home}')]", "[PosixPath('~')]"),
        ("file://{home}/x", "file://~/x"),
        ("-I{home}/include", "-I~/include"),
        ("\x1b[32m{home}/x.py\x1b[0m", "\x1b[32m~/x.py\x1b[0m"),
        ("{home}/projects/results/smoke", "./results/smoke"),
        (f"{CHECKOUT}/sfrik/runs/folder.py", "./sfrik/runs/folder.py"),
        (
            "cannot read /scratch/annabel/sets/imagenet/train/n01/1.JPEG: broken",
            "cannot read .../imagenet/train/n01/1.JPEG: broken",
        ),
        ("/scratch/annabel/sets/imag...", ".../imag..."),
        ("/pool/imagenet, /pool/other", ".../imagenet, /pool/other"),
        ("../../../scratch/results/tables", ".../results/tables"),
        ("/gpfs/users/annabel/cache/list.npz", ".../cache/list.npz"),
        ("https://example.org/annabel/sfrik", "https://example.org/annabel/sfrik"),
        ("recipe smoke/sfrik_l3_q64 in results/smoke", "recipe smoke/sfrik_l3_q64 in results/smoke"),
        ("</annabel> [a link](../annabel/x)", "</annabel> [a link](../annabel/x)"),
        ("/usr/lib, /tmp/x, a / b", "/usr/lib, /tmp/x, a / b"),
    ],
)
def test_a_path_is_shortened_and_other_text_is_not_changed(user, text, shown):
    given = [
        "/scratch/annabel/sets/imagenet",
        "/pool/imagenet",
        "../../../scratch/results",
        "smoke/sfrik_l3_q64",
        "results",
        "/",
        "",
    ]
    assert hide_paths(given)(text.format(home=user)) == shown
    assert hide_paths()(f"{user}2/x") == f"{user}2/x", "another user's"


def test_a_path_is_found_as_html_json_and_addresses_spell_it(user):
    given = "/pool/R & D's/imagenet é"
    hide = hide_paths([given])
    for text in (given, "/pool/R &amp; D&#x27;s/imagenet é", json.dumps(given)[1:-1], "/pool/R%20%26%20D%27s/imagenet%20%C3%A9"):
        assert hide(f"in {text}/train") == "in .../imagenet é/train"


def test_a_folder_behind_a_symbolic_link_is_hidden_too(user, tmp_path):
    real = tmp_path / "pool" / "group" / "sets"
    real.mkdir(parents=True)
    (user / "projects" / "data").symlink_to(real)
    assert hide_paths(["data/imagenet"])(f"{real}/imagenet/train") == ".../imagenet/train"


def test_a_short_home_folder_is_no_part_of_another_path(user, monkeypatch):
    monkeypatch.setenv("HOME", "/root")
    text = "/root/x /mnt/root/x ./root/x 'a\\n/root/x' \x1b[1m/root\x1b[0m"
    assert hide_paths()(text) == "~/x /mnt/root/x ./root/x 'a\\n~/x' \x1b[1m~\x1b[0m"


PLACES = {
    "home": "{home}/data",
    "a folder of the group": "/scratch/annabel/sets/imagenet",
    "a relative one": "../../annabel/projects/../sets",
    "of another user": "/home/bernard/sets/imagenet",
}
CELLS = (
    "import pathlib, sys, traceback\nfrom IPython.display import HTML, display\n"
    "print(f'weights: {data_dir}/backbone.safetensors'); print(pathlib.Path.home(), pathlib.Path(data_dir).resolve())",
    "print(f'cannot read {data_dir}/1.JPEG', file=sys.stderr)",
    "display(HTML(f'<a href=\"{data_dir}/x.html\">{data_dir}</a>'))\n{'data_dir': data_dir, 'path': pathlib.Path(data_dir)}",
    "try:\n    open(f'{data_dir}/not_there')\nexcept OSError:\n    traceback.print_exc()",
)


def notebook(*cells):
    """A notebook of code cells, the first with its parameters."""
    content = [
        {"cell_type": "code", "metadata": {"tags": ["parameters"] * (k == 0)}, "source": source, "id": f"c{k}"}
        for k, source in enumerate(cells)
    ]
    content = [{**cell, "outputs": [], "execution_count": None} for cell in content]
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"cells": content, "metadata": {"kernelspec": kernelspec}, "nbformat": 4, "nbformat_minor": 5}


def test_an_executed_notebook_names_no_folder_of_the_user_anywhere(user, tmp_path, monkeypatch):
    pytest.importorskip("papermill", reason="comes with the extra notebooks")
    (tmp_path / "cells.ipynb").write_text(json.dumps(notebook("data_dir = ''", *CELLS)), encoding="utf-8")
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)
    with Kernel() as kernel:
        for kind, place in PLACES.items():
            output = user / "projects" / kind / "copy.ipynb"
            execute("cells", {"data_dir": place.format(home=user)}, output, kernel)
            text = output.read_text(encoding="utf-8")
            copy = json.loads(text)
            outputs = [output for cell in copy["cells"] for output in cell["outputs"]]
            assert {output.get("name", output["output_type"]) for output in outputs} == {
                *("stdout", "stderr", "display_data", "execute_result")
            }
            for word in (USER, "bernard", str(tmp_path)):
                assert word not in text, (kind, word)
            assert copy["metadata"]["papermill"]["parameters"]["data_dir"] in (".../imagenet", "~/data", "~/sets")


def test_the_error_of_a_cell_names_no_folder_of_the_user(user, tmp_path):
    error = {"output_type": "error", "ename": "ValueError", "evalue": f"no images in {user}/x"}
    error["traceback"] = [f"File \x1b[0;32m{user}/x.py:3\x1b[0m, in \x1b[0;36mf\x1b[0m()", f"ValueError: no images in {user}/x"]
    content = {"cells": [{"cell_type": "code", "outputs": [error]}], "metadata": {}}
    (tmp_path / "copy.partial.ipynb").write_text(json.dumps(content), encoding="utf-8")
    notebooks._publish(tmp_path / "copy.partial.ipynb", tmp_path / "copy.ipynb", {})
    text = (tmp_path / "copy.ipynb").read_text(encoding="utf-8")
    assert USER not in text
    assert "no images in ~/x" in text


def test_the_data_of_images_is_not_changed(user, tmp_path):
    picture = f"AAAA{user}/BBBB"
    data = {"image/jpeg": picture, "image/svg+xml": f"<!-- {user}/x -->", "text/plain": [f"{user}/x\n", "y"]}
    cells = [{"cell_type": "code", "outputs": [{"data": data}]}]
    (tmp_path / "copy.partial.ipynb").write_text(json.dumps({"cells": cells, "metadata": {}}), encoding="utf-8")
    notebooks._publish(tmp_path / "copy.partial.ipynb", tmp_path / "copy.ipynb", {})
    found = json.loads((tmp_path / "copy.ipynb").read_text(encoding="utf-8"))["cells"][0]["outputs"][0]["data"]
    assert found == {"image/jpeg": picture, "image/svg+xml": "<!-- ~/x -->", "text/plain": ["~/x\n", "y"]}


def test_the_command_in_a_provenance_names_no_folder_of_the_user(user):
    code = "import sys; from sfrik.runs.provenance import _command; sys.argv[0] = '/opt/annabel/bin/sfrik'; print(_command())"
    arguments = ["pretrain", "--recipe", "smoke/sfrik_l3_q64", "--exp-dir", "../../../annabel/out/run", f"--data-dir={user}/sets"]
    arguments += ["--label-list", "/scratch/annabel/list.txt", "--mlp", "64-64", "--pretrained", "~/w.pth"]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.split() == [
        *("sfrik", "pretrain", "--recipe", "smoke/sfrik_l3_q64", "--exp-dir", ".../run", "--data-dir=~/sets", "--label-list"),
        *(".../list.txt", "--mlp", "64-64", "--pretrained", "~/w.pth"),
    ]
