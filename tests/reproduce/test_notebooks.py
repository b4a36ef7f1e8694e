"""The notebooks at the paper's and CIFAR-10's profiles: by the paper's recipe on small JPEGs, and the tables before any score.

At the smoke profile `test_make_tables.py` executes them all.
"""

from __future__ import annotations

import ast
import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("papermill", reason="comes with the extra notebooks")
from processes import START, wait_for

from sfrik.errors import Preempted
from sfrik.reproduce import chapters, notebooks
from sfrik.reproduce.kernel import Kernel
from sfrik.reproduce.notebooks import execute
from sfrik.system import links
from sfrik.tables.definitions import EXPERIMENTS
from sfrik.tables.rows import DIMS

CLASSES, TRAIN, TEST = 4, 12, 4


@pytest.fixture(scope="module")
def kernel():
    """One kernel for several notebooks, as in a run."""
    with Kernel() as kernel:
        yield kernel


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in ImageNet's layout with one grey level per class, and a label list beside it."""
    root = tmp_path_factory.mktemp("imagenet")
    noise = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("val", TEST)):
        for label in range(CLASSES):
            folder = root / split / f"n0000000{label}"
            folder.mkdir(parents=True)
            for k in range(count):
                pixels = np.clip(noise.normal(60 + 40 * label, 30, (48, 56, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"n0000000{label}_{k}.JPEG")
    names = [f"n0000000{label}_{k}.JPEG" for label in range(CLASSES) for k in (0, 11)]  # 11 is beyond the subset
    (root / "list.txt").write_text("\n".join(names), encoding="utf-8")
    return root


def outputs(path):
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells), "it ran to the end"
    return cells


def test_pretraining_and_the_evaluations_run_by_a_recipe_of_the_paper_with_sizes_overridden(place, kernel):
    run = place / "run"
    shared = {
        **{"recipe": "paper/in20_sfrik_l3_q8192", "exp_dir": str(run), "data_dir": str(place)},
        **{"subset": 6, "size": 32, "workers": 0, "device": "cpu"},
    }
    # not of 16 pixels: in bf16 on a CPU, PyTorch 2.14 leaves parts of the weights' gradient unset where a 3 x 3 convolution of
    # stride 2 has one pixel to read, as in the last stage then
    short = {"collapse_recipe": "smoke/sfrik_l3_q64", "collapse_epochs": 1, "collapse_subset": 13, "ddp_epochs": 1}
    crops = {"augmentations": "swav", "size_crops": [32, 24], "nmb_crops": [2, 2]}
    for name, own in {
        "02_pretraining": {"mlp": "64-16", "epochs": 1, "batch_size": 8, **crops, **short},
        "03_linear_probing": {"epochs": 1, "lr_sweep": [0.1, 0.4], "val_subset": 3},
        "04_semi_supervised": {"epochs": 1, "batch_size": 4, "targets": [], "label_list": str(place / "list.txt")},
        "05_knn_and_logistic_regression": {"epochs": 2},
    }.items():
        execute(name, {**shared, **own}, place / f"{name}.ipynb", kernel)
        outputs(place / f"{name}.ipynb")
    scores = {
        name: json.loads((run / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("linear", "semi1", "semi10", "knn", "logistic")
    }
    assert {score["images"] for score in scores.values()} == {CLASSES * TEST}
    assert {name: score["train_images"] for name, score in scores.items()} == {
        **{"linear": CLASSES * 6, "knn": CLASSES * 6, "logistic": CLASSES * 6},
        **{"semi1": CLASSES * 2, "semi10": CLASSES * 2},
    }
    assert set(scores["linear"]["sweep"]) == {"0.1", "0.4"}


@pytest.mark.parametrize("profile", ["paper", "cifar10"])
def test_the_tables_of_a_profile_are_rendered_before_anything_was_measured(profile, tmp_path, kernel):
    names = [name for name, experiment in EXPERIMENTS.items() if profile in experiment.profiles]
    path = tmp_path / "07.ipynb"
    execute("07_tables", {"tables": names, "profile": profile, "root": str(tmp_path)}, path, kernel)
    outputs(path)
    for name in names:
        rows = list(csv.DictReader((tmp_path / profile / "tables" / f"{name}.csv").read_text(encoding="utf-8").splitlines()))
        counts = {row[column] for row in rows for column in row if column.endswith("_n")}
        assert counts == {"0"}, "nothing is printed as measured"


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """`run(kernel, seconds)`: a notebook that writes the file `asleep` and sleeps.

    Returns its pid, its count of cells, and whether it knows a name and a module.
    """
    shown = f"import os, sys, time\nopen({str(tmp_path / 'asleep')!r}, 'w').close()\ntime.sleep(seconds)\n"
    shown += "[os.getpid(), len(In), 'mine' in globals(), 'wave' in sys.modules]"
    sources = {"seconds = 0": ["parameters"], shown: [], "mine = 1; import wave": []}
    content = [
        {"cell_type": "code", "metadata": {"tags": tags}, "source": source, "outputs": [], "execution_count": None, "id": f"c{k}"}
        for k, (source, tags) in enumerate(sources.items())
    ]
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = {"cells": content, "metadata": {"kernelspec": kernelspec}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "cells.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)

    def run(kernel, seconds=0):
        execute("cells", {"seconds": seconds}, tmp_path / "run.ipynb", kernel)
        (output,) = [output for cell in outputs(tmp_path / "run.ipynb") for output in cell["outputs"]]
        return ast.literal_eval("".join(output["data"]["text/plain"]))

    return run


def test_notebooks_of_one_kernel_share_no_names_and_a_kernel_that_is_gone_is_replaced(cells):
    with Kernel() as kernel:
        pid, count, *known = cells(kernel)
        assert known == [False, False]
        assert cells(kernel) == [pid, count, False, True], "the same kernel, and another namespace"
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        other, *known = cells(kernel)
        assert other != pid
        assert known == [count, False, False]
        os.kill(other, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(other, 0)


def test_the_kernel_is_that_of_this_python_and_reads_no_profile_of_the_user(cells, tmp_path, monkeypatch):
    spec, startup = tmp_path / "jupyter/kernels/python3", tmp_path / "ipython/profile_default/startup"
    spec.mkdir(parents=True)
    startup.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        '{"argv": ["false"], "display_name": "another environment", "language": "python"}', encoding="utf-8"
    )
    (startup / "mine.py").write_text("mine = 1", encoding="utf-8")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    with Kernel() as kernel:
        _, _, *known = cells(kernel)
    assert known == [False, False]


def test_the_default_type_that_a_notebook_sets_is_not_that_of_the_next():
    code = (
        "from IPython.core.interactiveshell import InteractiveShell; from sfrik.reproduce.kernel import RESET\n"
        "shell = InteractiveShell.instance()\n"
        "before, after = 'import torch; torch.set_default_dtype(torch.float64)', 'import torch; print(torch.zeros(1).dtype)'\n"
        "for cell in (before, RESET, after):\n"
        "    shell.run_cell(cell).raise_error()"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True).stdout
    assert shown.splitlines()[-1] == "torch.float32"


def test_a_stop_request_reaches_the_second_notebook_of_a_kernel_which_then_executes_a_third(cells, tmp_path):
    def ask():
        wait_for((tmp_path / "asleep").exists, START, "the cell")
        os.kill(os.getpid(), signal.SIGTERM)

    with Kernel() as kernel:
        pid, count, *_ = cells(kernel)
        (tmp_path / "asleep").unlink()
        threading.Thread(target=ask, daemon=True).start()
        with pytest.raises(Preempted, match="in notebook cells"):
            cells(kernel, seconds=60)
        assert cells(kernel) == [pid, count, False, True]


def test_the_links_of_a_copy_are_relative_to_its_folder_and_lead_to_the_copies_beside_it(tmp_path, monkeypatch):
    for place in ("notebooks/02.ipynb", "results/digits/tables/table1.md"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).touch()
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(links, "CHECKOUT", tmp_path)
    text = "[a](../results/digits/tables/table1.md) [b](02.ipynb#end) [c](https://x.org/02.ipynb) [d](not_there.md)"

    def published(folder):
        folder.mkdir(parents=True)
        cells = [{"cell_type": "markdown", "source": text}]
        (folder / "copy.partial.ipynb").write_text(json.dumps({"cells": cells, "metadata": {}}), encoding="utf-8")
        notebooks._publish(folder / "copy.partial.ipynb", folder / "copy.ipynb", {})
        assert not (folder / "copy.partial.ipynb").exists()
        return re.findall(r"\(([^)]+)\)", json.loads((folder / "copy.ipynb").read_text(encoding="utf-8"))["cells"][0]["source"])

    others = ["https://x.org/02.ipynb", "not_there.md"]
    assert published(tmp_path / "results/digits/notebooks") == ["../tables/table1.md", "02.ipynb#end", *others]
    assert published(tmp_path / "results/digits/run/seed0") == [
        "../../tables/table1.md",
        "../../../../notebooks/02.ipynb#end",
        *others,
    ]


def test_the_command_line_and_its_packages_import_neither_pytorch_nor_pandas_nor_scipy():
    modules = "sys, sfrik.cli, sfrik.reproduce, sfrik.launch"
    code = f"import {modules}; print([name for name in ('torch', 'pandas', 'scipy') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True).stdout == "[]\n"


@pytest.mark.parametrize("profile", ["photos", "cifar10", "digits"])
def test_the_chapters_read_the_folder_that_is_given_and_measure_costs_only_for_profiles_with_such_tables(
    profile, tmp_path, monkeypatch
):
    executed = {}
    monkeypatch.setattr(chapters, "execute", lambda name, parameters, path, kernel: executed.setdefault(name, parameters))
    monkeypatch.setattr(chapters, "Kernel", nullcontext)
    chapters.execute_chapters(profile, tmp_path, "/my photos")
    assert [name for name in executed if executed[name].get("data_dir") == "/my photos"] == [
        name for name in executed if name[:2] in ("02", "03", "04", "05")
    ]
    assert ("06_complexity" in executed) == (profile != "photos")
    recipe, beside = executed["02_pretraining"]["recipe"], executed["02_pretraining"]["beside"]
    assert (recipe, beside) == (f"{profile}/sfrik_l3_q{DIMS[profile][-1]}", f"{profile}/sfrik_l1_q{DIMS[profile][-1]}")
    executed.clear()
    chapters.execute_chapters(profile, tmp_path)
    assert not any("data_dir" in parameters for parameters in executed.values()), "the recipe's folder"


@pytest.mark.parametrize(("wrong", "mistakes"), [([0, 4, 9, 5], 1), (range(10), 3), ([], 0), ([9], 0), ([1, 2, 3, 5, 6, 7], 3)])
def test_the_neighbours_in_notebook_05_are_those_of_different_images(wrong, mistakes):
    """The mistakes beside the evenly spaced images, here 0, 4 and 9, are other ones."""
    cells = json.loads(notebooks.notebook_path("05_knn_and_logistic_regression").read_text(encoding="utf-8"))["cells"]
    (source,) = (text for text in ("".join(cell["source"]) for cell in cells) if "neighbour_grid(scored" in text)
    labels = torch.zeros(10, dtype=torch.int64)
    names = {"np": np, "labels": labels, "voted": labels.index_fill(0, torch.tensor(list(wrong), dtype=torch.int64), 1)}
    exec(source[source.index("wrong =") : source.index("similarity =")], names)
    assert names["shown"][:3] == [0, 4, 9]
    assert len(set(names["shown"])) == len(names["shown"]) == 3 + mistakes
    assert set(names["shown"][3:]) <= set(wrong)
