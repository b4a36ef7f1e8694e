"""Parameters of the notebooks: in 02 to 05 every setting is one, and overrides that of the recipe; misspelt ones are refused."""

from __future__ import annotations

import ast
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest

from sfrik import settings as settings_room
from sfrik.errors import SfrikError
from sfrik.reproduce import notebooks
from sfrik.reproduce.kernel import Kernel
from sfrik.reproduce.parameters import PARAMETERS, check_injected, typed_parameters
from sfrik.settings import (
    EvaluateSettings,
    FeatureSettings,
    KnnSettings,
    LogisticSettings,
    PretrainSettings,
    Settings,
    TransferSettings,
)

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
RECIPE = "smoke/sfrik_l3_q64"
CLASSES = {
    "02_pretraining": [PretrainSettings],
    "03_linear_probing": [EvaluateSettings],
    "04_semi_supervised": [EvaluateSettings, TransferSettings],
    "05_knn_and_logistic_regression": [FeatureSettings, KnnSettings, LogisticSettings],
}
# Settings that notebook 04 chooses itself, or that do not apply to fine-tuning; the recipe has the training settings of the
# transfer.
EXCEPTIONS = {
    ("04_semi_supervised", EvaluateSettings): {"weights", "train_percent", "lr_sweep", "head_norm", "only_inference", "ckp_path"},
    ("04_semi_supervised", TransferSettings): {"target", "batch_size", "epochs", "lr_head", "head_norm", "weight_decay"},
}


def first_cells(name):
    """The sources of the cells with the parameters and with the settings."""
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"][:2]


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_papermill_reads_every_parameter(path, caplog):
    """It reports a line with a second "=", also in a comment, at each start of a run, and does not know its parameter."""
    papermill = pytest.importorskip("papermill", reason="comes with the extra notebooks")
    found = papermill.inspect_notebook(path)
    assert not caplog.records
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    (source,) = ("".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", ()))
    assert set(found) == {line.targets[0].id for line in ast.parse(source).body}


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


@pytest.mark.parametrize(
    ("name", "given", "found", "expected"),
    [
        (
            "02_pretraining",
            {"sfrik_weights": 1.0, "mlp": 64, "loggers": "tensorboard", "sfrik_slices": "none"},
            lambda cell: cell["settings"],
            {"sfrik_weights": "1.0", "mlp": "64", "loggers": ("tensorboard",), "sfrik_slices": None},
        ),
        ("03_linear_probing", {"lr_sweep": 0.1, "epochs": "3"}, lambda cell: cell["settings"], {"lr_sweep": (0.1,), "epochs": 3}),
        (
            "04_semi_supervised",
            {"targets": "digits8x8", "svm_costs": 1},
            lambda cell: cell["moves"]["digits8x8"],
            {"svm_costs": (1.0,)},
        ),
        ("05_knn_and_logistic_regression", {"nb_knn": 5}, lambda cell: cell["knn_settings"], {"nb_knn": (5,)}),
        (
            "05_knn_and_logistic_regression",
            {"inverse_penalties": "1 10"},
            lambda cell: cell["logistic_settings"],
            {"inverse_penalties": (1.0, 10.0)},
        ),
    ],
)
def test_papermill_takes_what_the_command_line_takes(name, given, found, expected):
    """`papermill -p name value` gives a number or a string."""
    pytest.importorskip("pandas", reason="comes with the extra notebooks")
    parameters, cell = first_cells(name)
    namespace = {}
    exec(parameters, namespace)
    namespace |= {"recipe": RECIPE, **given}
    with matplotlib.rc_context():
        exec(cell, namespace)
    assert {setting: getattr(found(namespace), setting) for setting in expected} == expected


def test_notebook_07_without_runs_prints_what_to_do_and_where_the_published_tables_are(tmp_path, monkeypatch, capsys):
    pytest.importorskip("IPython", reason="comes with the extra notebooks")
    monkeypatch.setattr(settings_room, "runs_root", lambda: tmp_path / "runs")
    parameters, cell = first_cells("07_tables")
    for root in ("", str(settings_room.published_root())):
        namespace = {}
        exec(parameters, namespace)
        namespace["root"] = root
        expected = pytest.raises(SfrikError, match="part of the published results") if root else nullcontext()
        with matplotlib.rc_context(), expected:
            exec(cell, namespace)
    printed = capsys.readouterr().out
    assert "run `make table1 PROFILE=digits`" in printed
    assert "results/digits/README.md" in printed
    assert list(tmp_path.iterdir()) == []


# --- unknown parameters


def test_an_unknown_parameter_is_refused_before_anything_is_executed(tmp_path):
    for unknown in ("epoch", "epochs_"):
        with pytest.raises(SfrikError, match=rf"notebook 02_pretraining has no parameter {unknown} .*epochs"):
            notebooks.execute("02_pretraining", {unknown: 3}, tmp_path / "out.ipynb")
    with pytest.raises(SfrikError, match="no parameter chapter"):  # of earlier releases
        notebooks.execute("02_pretraining", {"chapter": True}, tmp_path / "out.ipynb")
    assert list(tmp_path.iterdir()) == []


def test_the_first_cell_refuses_an_unknown_parameter_of_papermill(tmp_path):
    """By papermill itself, on the cells of notebook 03 up to the check."""
    papermill = pytest.importorskip("papermill", reason="comes with the extra notebooks")
    content = json.loads((NOTEBOOKS / "03_linear_probing.ipynb").read_text(encoding="utf-8"))
    before, _, _ = first_cells("03_linear_probing")[1].partition("check_injected()")
    content["cells"] = [cell for cell in content["cells"] if cell["cell_type"] == "code"][:2]
    content["cells"][1]["source"] = [*[line for line in before.splitlines(True) if "check" in line], "check_injected()\n", "seed"]
    (tmp_path / "03.ipynb").write_text(json.dumps(content), encoding="utf-8")
    with Kernel() as kernel:
        for given in ({"seed": 3}, {"seed": 3, "epoch": 1}):
            with (
                nullcontext() if len(given) == 1 else pytest.raises(Exception, match=r"no parameter epoch \(did you mean epochs")
            ):
                how = {"km": kernel.manager(), "kernel_name": "python3", "progress_bar": False}
                papermill.execute_notebook(tmp_path / "03.ipynb", tmp_path / "out.ipynb", given, **how)


INJECTED = "# Parameters\nepoch = 1\n"


@pytest.mark.parametrize(
    ("cells", "metadata", "refused"),
    [
        (["epochs = 2", INJECTED], {}, True),
        (["epochs = 2", "# Parameters\nepochs = 1"], {}, False),
        (["epochs = 2"], {}, False),
        (["epochs = 2", INJECTED], {"cellId": "a"}, False),  # JupyterLab, VS Code
        (["epochs = 2", INJECTED, "1 + 1"], {}, False),
        ([INJECTED], {}, False),
        ([], {}, False),
    ],
)
def test_the_check_of_parameters_expects_the_order_of_papermill(cells, metadata, refused, monkeypatch):
    getipython = pytest.importorskip("IPython.core.getipython", reason="comes with the extra notebooks")
    shell = SimpleNamespace(user_ns={"In": ["", *cells, "check_injected()"]}, get_parent=lambda: {"metadata": metadata})
    monkeypatch.setattr(getipython, "get_ipython", lambda: shell)
    with pytest.raises(SfrikError, match="this notebook has no parameter epoch") if refused else nullcontext():
        check_injected()


# --- what was typed into a notebook's file


def test_the_committed_parameters_of_every_notebook_are_known():
    assert PARAMETERS.keys() == {path.stem for path in NOTEBOOKS.glob("*.ipynb")}
    for name in PARAMETERS:
        assert typed_parameters(name, first_cells(name)[0]) == {}


@pytest.mark.parametrize(
    ("old", "new", "restored"),
    [
        ("\nepochs = None", "\nepochs = 1", {"epochs": None}),
        ("\nsfrik_weights = None", '\nsfrik_weights = "1.0"', {"sfrik_weights": None}),
        ("\nseed = 0", "\nseed = 1", {"seed": 0}),
        ("\nddp_epochs = 2", "\nddp_epochs = 2.0", {"ddp_epochs": 2}),
        ("\nmlp = None", "\nmlp = str(64)", {"mlp": None}),
        ("\nnproc_per_node = None", "\nnproc_per_node = 2", {"nproc_per_node": None}),
        ("\nwd = None", "\nwd = None\nmine = 3", {}),
        ("\nwd = None", "\nwd = None\nepochs = 7", {"epochs": None}),
    ],
)
def test_a_typed_parameter_is_found_with_its_committed_value(old, new, restored):
    cell = first_cells("02_pretraining")[0]
    assert old in cell
    assert typed_parameters("02_pretraining", cell.replace(old, new, 1)) == restored


@pytest.mark.parametrize("more", ["if True:\n    epochs = 1", "epochs, wd = 1, 2", "%matplotlib inline"])
def test_a_cell_of_parameters_with_other_statements_is_restored_as_a_whole(more):
    cell = first_cells("02_pretraining")[0]
    names = {node.targets[0].id for node in ast.parse(cell).body}
    assert typed_parameters("02_pretraining", f"{cell}\n{more}").keys() == names


@pytest.mark.parametrize(
    "line", ["epochs: int = 1", "epochs = mine = 1", "(epochs, mine) = 1, 2", "mine = [epochs := 1]", "%pylab\nepochs: int = 1"]
)
def test_a_parameter_is_found_however_it_is_assigned(line):
    cell = first_cells("02_pretraining")[0]
    assert typed_parameters("02_pretraining", cell.replace("\nepochs = None", f"\n{line}", 1))["epochs"] is None


def test_a_notebook_is_executed_with_the_committed_parameters_unless_others_are_given(tmp_path, monkeypatch, capsys):
    pytest.importorskip("papermill", reason="comes with the extra notebooks")
    text = (NOTEBOOKS / "03_linear_probing.ipynb").read_text(encoding="utf-8")
    (tmp_path / "03_linear_probing.ipynb").write_text(
        text.replace('"epochs = None', '"epochs = 1').replace('"size = None', '"size = 14'), encoding="utf-8"
    )
    executed = []

    def run(name, source, partial, parameters, manager, explore):
        executed.append(parameters)
        partial.write_text('{"cells": [], "metadata": {}}', encoding="utf-8")

    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(notebooks, "_run", run)
    monkeypatch.setattr(notebooks, "Kernel", lambda: nullcontext(SimpleNamespace(manager=lambda: None)))
    notebooks.execute("03_linear_probing", {"recipe": RECIPE, "size": 28}, tmp_path / "out.ipynb")
    assert executed == [{"recipe": RECIPE, "size": 28, "epochs": None}]
    assert "not used, since they were typed into its file: epochs\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", CLASSES)
def test_typed_settings_lead_to_another_folder_than_that_of_the_recipe(name, monkeypatch, capsys):
    pytest.importorskip("pandas", reason="comes with the extra notebooks")
    parameters, cell = first_cells(name)
    for typed, folders in (
        ({}, ["seed0"]),
        ({"size": 14}, ["seed0-size_14" if name == "02_pretraining" else "seed0-evaluation-size_14"]),
    ):
        namespace = {}
        exec(parameters, namespace)
        namespace |= {"recipe": RECIPE, **typed}
        with matplotlib.rc_context():
            exec(cell, namespace)
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("folder: ")]
        assert [Path(folder).name for folder in line.split()[1:]] == folders


@pytest.mark.parametrize("name", CLASSES)
def test_a_notebook_does_not_read_its_global_names(name):
    for cell in json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]:
        assert "globals()" not in "".join(cell["source"])
