"""Parameters of notebooks 02 to 05: every setting is one, and overrides that of the recipe."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import matplotlib
import pytest

from sfrik.settings import EvaluateSettings, KnnSettings, LogisticSettings, PretrainSettings, Settings, TransferSettings

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
RECIPE = "smoke/sfrik_l3_q64"
CLASSES = {
    "02_pretraining": [PretrainSettings],
    "03_linear_probing": [EvaluateSettings],
    "04_semi_supervised": [EvaluateSettings, TransferSettings],
    "05_knn_and_logistic_regression": [KnnSettings, LogisticSettings],
}
# Settings that notebook 04 chooses itself, or that do not apply to fine-tuning; the recipe has the training settings of the
# transfer.
EXCEPTIONS = {
    ("04_semi_supervised", EvaluateSettings): {"weights", "train_percent", "lr_sweep", "only_inference", "ckp_path"},
    ("04_semi_supervised", TransferSettings): {"target", "batch_size", "epochs", "lr_head", "weight_decay"},
}


def first_cells(name):
    """The sources of the cells with the parameters and with the settings."""
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"][:2]


@pytest.mark.parametrize("name", CLASSES)
def test_every_parameter_of_a_setting_overrides_the_recipe(name, monkeypatch):
    pytest.importorskip("pandas", reason="comes with the extra notebooks")
    parameters, cell = first_cells(name)
    given = {}
    original = Settings.from_recipe.__func__

    def record(cls, recipe, **overrides):
        given[cls] = overrides
        return original(cls, recipe, **({"target": overrides["target"]} if "target" in overrides else {}))

    monkeypatch.setattr(Settings, "from_recipe", classmethod(record))
    settings = {setting for cls in CLASSES[name] for setting in cls.model_fields}
    names = [node.targets[0].id for node in ast.parse(parameters).body]
    namespace = {}
    exec(parameters, namespace)
    namespace |= {"recipe": RECIPE} | {setting: f"of {setting}" for setting in names if setting in settings}
    with matplotlib.rc_context():
        exec(cell, namespace)
    assert given.keys() == set(CLASSES[name])
    for cls, overrides in given.items():
        expected = set(cls.model_fields) - EXCEPTIONS.get((name, cls), set())
        assert {setting for setting, value in overrides.items() if value == f"of {setting}"} == expected


@pytest.mark.parametrize("name", CLASSES)
def test_a_notebook_does_not_read_its_global_names(name):
    for cell in json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]:
        assert "globals()" not in "".join(cell["source"])
