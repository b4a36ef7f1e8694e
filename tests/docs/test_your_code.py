"""docs/your_code.md: every code block runs at small sizes and does what the page states."""

from __future__ import annotations

import copy
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfrik.cli import main
from sfrik.objectives import AUH, SFRIK, SIGReg, SimCLR, VICReg

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "your_code.md").read_text(encoding="utf-8")
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PARTS = re.split(r"^## (.+)\n", PAGE, flags=re.MULTILINE)[1:]
BLOCKS = {
    title: re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for title, text in zip(PARTS[::2], PARTS[1::2], strict=True)
}
SIZE, BATCH = 40, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes with eight small images each."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for label in ("cats", "dogs"):
        (root / label).mkdir()
        for k in range(8):
            Image.fromarray(random.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(root / label / f"{k}.png")
    return root


@pytest.fixture(scope="module")
def trained(folder):
    """The variables that the first section defines."""
    torch.manual_seed(0)
    names = {"folder": folder, "size": SIZE, "batch_size": BATCH, "epochs": 1}
    for block in BLOCKS["A training step"]:
        exec(compile(block, "docs/your_code.md", "exec"), names)
    return names


def run(title, trained):
    names = dict(trained)
    for block in BLOCKS[title]:
        exec(compile(block, f"docs/your_code.md, {title}", "exec"), names)
    return names


def test_each_block_of_the_page_has_a_test():
    tested = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{title}"' in tested for title, blocks in BLOCKS.items() if blocks)
    assert sum(map(len, BLOCKS.values())) == PAGE.count("```python")


def test_the_training_step_has_fifteen_lines_and_trains(trained):
    lines = [line for line in BLOCKS["A training step"][0].splitlines() if line.strip()]
    assert len(lines) == 15
    assert trained["steps"] == 4
    assert set(trained["terms"].parts) == {"alignment", "mmd"}
    assert all(p.grad is not None for p in trained["encoder"].parameters())


def test_weights_of_any_backbone_are_handed_to_timm_and_read_again(trained, tmp_path):
    pytest.importorskip("timm")
    names = run("Any backbone", {**trained, "folder": tmp_path})
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected, *others = (names[name].eval()(images) for name in ("backbone", "in_timm", "again"))
    assert all(torch.equal(expected, other) for other in others)
    section = PARTS[PARTS.index("Any backbone") + 1]
    command = re.search(r"python -m sfrik (pretrain .*?)\n\n", section, re.DOTALL)[1].replace("\\\n", " ").split()
    assert main([*command, "--dry-run", "--exp-dir", str(tmp_path / "run")]) == 0


def test_a_torchvision_model_works_as_backbone(trained):
    names = run("A model of torchvision", trained)
    views = [torch.randn(2, 3, SIZE, SIZE) for _ in range(2)]
    names["objective"](names["encoder"](views)).loss.backward()
    assert names["backbone"](views[0]).shape == (2, names["features"])


def test_a_timm_model_works_as_backbone(trained):
    pytest.importorskip("timm")
    names = run("A model of timm", {**trained, "size": 32})
    views = [torch.randn(2, 3, 32, 32) for _ in range(2)]
    names["objective"](names["encoder"](views)).loss.backward()
    assert names["backbone"](views[0]).shape == (2, names["backbone"].num_features)


def test_two_processes_under_torchrun_have_the_same_loss_and_need_no_optional_package(folder, tmp_path):
    (script,) = BLOCKS["Several processes"]
    (tmp_path / "train.py").write_text(script, encoding="utf-8")
    extras = re.search(r"optional-dependencies\](.*?)^\[project.scripts", PROJECT, re.MULTILINE | re.DOTALL)[1]
    names = {"sklearn", "IPython", *re.findall(r'"([\w-]+)[>=]', extras)} - {"mpmath"}  # torch brings mpmath
    assert "matplotlib" in names
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nsys.modules.update(dict.fromkeys({sorted(names)}))  # not importable\n", encoding="utf-8"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command = [*torchrun, "train.py", str(folder), str(SIZE), str(BATCH)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    # two processes may print into one line
    losses = dict(re.findall(r"rank (\d): loss (\S+?)(?=rank|\s)", done.stdout))
    assert set(losses) == {"0", "1"}
    assert losses["0"] == losses["1"]


def test_a_network_in_bfloat16_gives_a_loss_in_float32(trained):
    names = run("Mixed precision", trained)
    assert names["embeddings"][0].dtype == torch.bfloat16
    assert names["terms"].loss.dtype == torch.float32
    assert torch.isfinite(names["terms"].loss)


@pytest.mark.filterwarnings("ignore")  # Lightning's advice about workers and devices
def test_lightning_trains_the_encoder(trained, tmp_path, monkeypatch):
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    before = copy.deepcopy(trained["encoder"].state_dict())
    names = run("Lightning", trained)
    assert names["trainer"].global_step == 4
    assert {"alignment", "mmd"} <= set(names["trainer"].logged_metrics)
    after = names["encoder"].state_dict()
    assert not torch.equal(before["projector.0.weight"].cpu(), after["projector.0.weight"].cpu())


def test_the_collapse_measures_are_in_their_range(trained, capsys):
    found = run("Is it collapsed?", trained)["found"]
    assert 1 <= found.effective_rank <= found.largest_rank == BATCH
    assert len(found.energy_share) == 3
    assert "effective rank" in capsys.readouterr().out


def test_the_mmd_of_a_collapsed_and_of_a_uniform_batch_are_those_of_the_page():
    objective = SFRIK(dim=64, weights=(1.0, 40.0, 40.0))
    point = torch.ones(8, 64)
    assert objective([point, point]).parts["mmd"].item() == pytest.approx(81, rel=1e-5)
    uniform = [torch.randn(4096, 64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    # standard deviation: sqrt(2 sum b^2 / N(q, l)) / n = 0.0003, for the mean of two views
    assert objective(uniform).parts["mmd"].item() == pytest.approx(81 / 4096, abs=0.0015)


def test_the_features_are_evaluated_by_knn_and_saved(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run("What are the features worth?", trained)
    assert names["scores"].shape == (8, 2)
    assert 0 <= names["accuracy"] <= 100
    assert (tmp_path / "backbone.safetensors").stat().st_size > 1e6


@pytest.mark.parametrize(
    "objective", [SFRIK(dim=8), AUH(), SimCLR(), VICReg(), SIGReg(slices=16)], ids=lambda o: type(o).__name__
)
def test_an_objective_is_a_module_that_can_be_moved_copied_and_pickled(objective):
    views = [torch.randn(4, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    assert isinstance(objective, torch.nn.Module)
    assert list(objective.parameters()) == list(objective.buffers()) == []
    copies = [copy.deepcopy(objective), pickle.loads(pickle.dumps(objective)), copy.deepcopy(objective).to("cpu").eval()]
    value = objective(views).loss
    assert all(torch.equal(other(views).loss, value) for other in copies)
    assert repr(copies[0]) == repr(copies[1])
