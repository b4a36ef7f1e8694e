"""examples/: each script runs for a step, and the loss in 20 lines of minimal.py is the library's."""

from __future__ import annotations

import importlib.util
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
MINIMAL = (EXAMPLES / "minimal.py").read_text(encoding="utf-8")


def run(name, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", [name, *arguments])
    return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with four images, which is not the working directory."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3), dtype=np.uint8)
    (tmp_path / "images" / "any").mkdir(parents=True)
    for k, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "images" / "any" / f"{k}.png")
    return str(tmp_path / "images")


def test_every_example_has_a_test():
    tested = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{path.name}"' in tested for path in EXAMPLES.iterdir() if path.is_file())


def test_the_minimal_example_prints_three_accuracies_and_states_those_of_a_whole_run(monkeypatch, capsys):
    pytest.importorskip("mlxtend", reason="comes with the extra notebooks")
    run("minimal.py", monkeypatch, "--steps", "1")
    printed = capsys.readouterr().out
    assert "have the same value and gradient" in printed
    assert re.search(r"step   1 of 1: loss \d+\.\d+, alignment 0\.\d+, mmd \d+\.\d+", printed)
    scores = dict(re.findall(r"^  (\w.*?) +([\d.]+) %$", printed, re.MULTILINE))
    assert list(scores) == ["raw pixels", "random weights", "SFRIK"]
    stated = [float(number) for number in re.findall(r"([\d.]+) %", MINIMAL.split('"""')[1])]
    assert stated[1] == float(scores["raw pixels"])
    assert stated[2] == pytest.approx(float(scores["random weights"]), abs=1)  # rounding differs between processors
    assert stated[0] > stated[1]
    assert len(MINIMAL.splitlines()) <= 160


def test_the_minimal_example_notices_that_its_loss_is_not_the_librarys():
    pytest.importorskip("mlxtend", reason="comes with the extra notebooks")
    spec = importlib.util.spec_from_file_location("minimal", EXAMPLES / "minimal.py")
    minimal = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(minimal)
    minimal.check_that_both_are_equal()
    for name, other in {"SIM_COEFF": 1.0, "WEIGHTS": (1.0, 40.0), "legendre": lambda t, *_: [t, t**2, t**3]}.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(minimal, name, other)
            with pytest.raises(AssertionError, match="not close"):
                minimal.check_that_both_are_equal()


def test_the_example_with_timm_saves_weights_that_timm_loads(folder, monkeypatch, capsys):
    pytest.importorskip("timm")
    run("timm_sfrik.py", monkeypatch, "--data", folder, "--size", "32", "--batch-size", "4", "--steps", "1")
    assert "step 1: loss" in capsys.readouterr().out
    assert torch.load("backbone.pth", weights_only=True)["pos_embed"].shape == (1, 5, 192)


@pytest.mark.filterwarnings("ignore")  # Lightning's advice about workers
def test_the_example_with_lightning_trains(folder, monkeypatch, capsys):
    pytest.importorskip("lightning")
    run("lightning_sfrik.py", monkeypatch, "--data", folder, "--batch-size", "4", "--steps", "1")
    assert re.search(r"after 1 steps: \{'alignment': .*'mmd': .*'effective_rank': ", capsys.readouterr().out)


def test_the_example_with_lightly_trains(folder, monkeypatch, capsys):
    pytest.importorskip("lightly", reason="comes with the extra examples")
    run("lightly_sfrik.py", monkeypatch, "--data", folder, "--batch-size", "4", "--steps", "1")
    assert "step 1: loss" in capsys.readouterr().out
    run("lightly_sfrik.py", monkeypatch, "--batch-size", "4", "--steps", "1")


def test_the_method_for_solo_learn_is_python_and_works_where_solo_learn_is_installed():
    page = (EXAMPLES / "solo_learn.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    code = compile(source, "solo_learn.md", "exec")
    pytest.importorskip("solo.utils.misc", reason="solo-learn is not installed")
    names = {}
    exec(code, names)
    assert issubclass(names["SFRIK"], names["BaseMethod"])
