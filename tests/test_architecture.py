"""How the code hangs together: imports point one way, modules say what they are, notebooks hold no code of their own."""

from __future__ import annotations

import ast
import itertools
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sfrik"

# From the bottom up. A module imports from the layers below its own, never from beside or above.
LAYERS = [
    ["sfrik", "sfrik.architectures", "sfrik.errors", "sfrik.evaluate"],
    ["sfrik.files"],
    ["sfrik.records"],
    ["sfrik.tensor_files"],
    ["sfrik.colour", "sfrik.crops", "sfrik.decoding", "sfrik.listing", "sfrik.closed_form", "sfrik.pairs", "sfrik.accumulate"],
    ["sfrik.photographs"],
    ["sfrik.kernels", "sfrik.collectives", "sfrik.devices", "sfrik.networks", "sfrik.optim", "sfrik.views"],
    ["sfrik.checkpoints", "sfrik.preemption", "sfrik.progress", "sfrik.provenance", "sfrik.slurm"],
    ["sfrik.loggers", "sfrik.terminal"],
    ["sfrik.mmd", "sfrik.loss_terms", "sfrik.sliced", "sfrik.diagnostics", "sfrik.datasets", "sfrik.settings", "sfrik.calls"],
    ["sfrik.worker"],
    ["sfrik.launch"],
    ["sfrik.objectives", "sfrik.runs", "sfrik.labels", "sfrik.targets"],
    ["sfrik.build", "sfrik.faults", "sfrik.plain", "sfrik.loss_memory"],
    [f"sfrik.evaluate.{name}" for name in ("frozen", "heads", "knn", "classifier", "svm", "resume")],
    ["sfrik.evaluate.features", "sfrik.evaluate.logistic", "sfrik.evaluate.training", "sfrik.memory", "sfrik.diagnose"],
    ["sfrik.evaluate.linear", "sfrik.evaluate.finetune", "sfrik.epoch_line"],
    ["sfrik.evaluate.protocols", "sfrik.evaluate.transfer", "sfrik.pretrain"],
    ["sfrik.table_rows"],
    ["sfrik.cost_rows"],
    ["sfrik.experiments"],
    ["sfrik.tables", "sfrik.notebooks", "sfrik.complexity"],
    ["sfrik.figures", "sfrik.claims", "sfrik.calculator", "sfrik.cards", "sfrik.pictures"],
    ["sfrik.run_figures"],
    ["sfrik.sphere"],
    ["sfrik.explorer"],
    ["sfrik.campaign"],
    ["sfrik.status"],
    ["sfrik.slurm_table"],
    ["sfrik.answers", "sfrik.environment", "sfrik.flags"],
    ["sfrik.shell_commands", "sfrik.summaries"],
    ["sfrik.chapters", "sfrik.diagnose_command", "sfrik.table_commands", "sfrik.training_commands"],
    ["sfrik.cli"],
    ["sfrik.__main__"],
]
LAYER = {name: level for level, names in enumerate(LAYERS) for name in names}

NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(path):
    """The package's modules that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            names = [node.module]
            names += [f"{node.module}.{alias.name}" for alias in node.names if f"{node.module}.{alias.name}" in MODULES]
        else:
            continue
        found |= {name for name in names if name.split(".")[0] == "sfrik"}
    return found


# --- modules


def test_every_module_has_its_layer():
    assert set(MODULES) - set(LAYER) == set(), "a new module: give it its place in LAYERS"


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_from_lower_layers_only(name):
    level = LAYER.get(name, len(LAYERS))
    wrong = {other for other in imported(MODULES[name]) if LAYER.get(other, len(LAYERS)) >= level}
    assert not wrong


def test_the_arrows_of_the_design_are_the_ones_that_are_there():
    assert "sfrik.kernels" in imported(MODULES["sfrik.mmd"])
    assert "sfrik.mmd" in imported(MODULES["sfrik.objectives"])
    pretraining = imported(MODULES["sfrik.pretrain"])
    assert {f"sfrik.{name}" for name in ("build", "views", "datasets", "networks", "optim", "settings", "runs")} <= pretraining
    assert "sfrik.objectives" in imported(MODULES["sfrik.build"])


@pytest.mark.parametrize("name", [name for name in MODULES if name not in ("sfrik.cli", "sfrik.__main__")])
def test_nothing_in_the_library_imports_the_command_line(name):
    assert "sfrik.cli" not in imported(MODULES[name])


@pytest.mark.parametrize("name", ["sfrik.kernels", "sfrik.mmd", "sfrik.objectives", "sfrik.diagnostics"])
def test_the_mathematics_needs_no_settings_no_files_and_no_images(name):
    reached, waiting = set(), [name]
    while waiting:
        for other in imported(MODULES[waiting.pop()]) - reached:
            reached.add(other)
            waiting.append(other)
    mathematics = ("kernels", "mmd", "pairs", "sliced", "closed_form", "loss_terms", "collectives", "errors")
    assert reached <= {f"sfrik.{name}" for name in mathematics}


@pytest.mark.parametrize("name", [name for name in MODULES if name != "sfrik.__main__"])
def test_every_module_says_what_it_is(name):
    docstring = ast.get_docstring(ast.parse(MODULES[name].read_text()))
    assert docstring
    assert docstring.split("\n")[0].rstrip()[-1] in ".?:"


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_what_a_module_exports_is_there(name):
    tree = ast.parse(MODULES[name].read_text())
    defined, exported = set(), []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign):
            targets = {target.id for target in node.targets if isinstance(target, ast.Name)}
            defined |= targets
            exported += [ast.literal_eval(node.value)] if "__all__" in targets else []
    for names in exported:
        assert set(names) <= defined
        assert sorted(names) == sorted(set(names))
    assert exported or all(name.startswith("__") for name in defined), "__all__ is missing"


def test_every_data_file_of_the_package_is_named_in_pyproject():
    text = (ROOT / "pyproject.toml").read_text()
    assert 'include = ["sfrik*"]' in text
    named = re.search(r"^sfrik = \[(.*)\]$", text, re.MULTILINE).group(1)
    patterns = [pattern.strip(' "') for pattern in named.split(",")]
    covered = {path for pattern in patterns for path in (ROOT / "sfrik").glob(pattern)}
    data = {path for path in (ROOT / "sfrik").rglob("*.*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert data
    assert data == covered


# --- notebooks


def code_cells(name):
    """(tags, syntax tree, cell) of each code cell, without the lines of IPython's own commands."""
    path = ROOT / "notebooks" / f"{name}.ipynb"
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    parsed = []
    for cell in cells:
        lines = "".join(cell["source"]).split("\n")
        source = "\n".join("" if line.startswith(("%", "!")) else line for line in lines)
        parsed.append((cell["metadata"].get("tags", []), ast.parse(source), cell))
    return parsed


def test_the_notebooks_are_numbered_chapters():
    assert len(NOTEBOOKS) >= 4
    assert all(re.fullmatch(r"0\d_[a-z_]+", name) for name in NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_committed_without_outputs(name):
    for _, _, cell in code_cells(name):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_has_one_cell_of_parameters_that_holds_literals_alone(name):
    (tree,) = [tree for tags, tree, _ in code_cells(name) if "parameters" in tags]
    assert tree.body
    for node in tree.body:
        assert isinstance(node, ast.Assign), f"line {node.lineno}"
        assert all(isinstance(target, ast.Name) for target in node.targets)
        ast.literal_eval(node.value)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_defines_no_class_and_no_function_longer_than_eight_lines(name):
    for _, tree, _ in code_cells(name):
        for node in ast.walk(tree):
            assert not isinstance(node, ast.ClassDef), node.name
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno + 1 <= 8, node.name


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_trains_nothing_itself(name):
    for _, tree, _ in code_cells(name):
        called = {
            node.func.attr for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }
        assert not called & {"backward", "zero_grad"}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_code_cell_of_a_notebook_follows_a_sentence(name):
    code_cells(name)  # skips where there is no notebook
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    assert cells[0]["cell_type"] == "markdown"
    for before, cell in itertools.pairwise(cells):
        if cell["cell_type"] == "code":
            assert before["cell_type"] == "markdown", "".join(cell["source"])[:60]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_imports_no_command_line(name):
    for _, tree, _ in code_cells(name):
        assert not any(isinstance(node, ast.ImportFrom) and node.module == "sfrik.cli" for node in ast.walk(tree))
