"""How the code hangs together: imports point one way, modules say what they are, notebooks hold no code of their own."""

from __future__ import annotations

import ast
import itertools
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sfrik"

# Rooms (the modules and packages of sfrik/) from the bottom up: a room imports from lower levels only.
LEVELS = [
    ["kernels", "ops", "optim", "errors"],
    ["mmd", "system", "views", "diagnostics", "settings"],
    ["datasets", "networks", "runs", "objectives", "launch"],
    ["evaluate", "tables"],
    ["pretrain", "plots"],
    ["cost"],
    ["reproduce"],
    ["cli"],
    ["__main__"],
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
BESIDE = {("settings", "system")}  # a recipe is read as every other file is

NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in MODULES.items()}
TREES = {name: ast.parse(text) for name, text in TEXTS.items()}


def room(name):
    """The room of a module; the package itself, with its version, is in none."""
    return name.split(".")[1] if "." in name else None


def imported(tree):
    """The package's modules that a module imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import: {ast.unparse(node)}"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in inner if name in MODULES]
            names = modules + ([node.module] if len(modules) < len(inner) else [])
        else:
            continue
        found |= {name for name in names if name.split(".")[0] == "sfrik"}
    return found


IMPORTS = {name: imported(tree) for name, tree in TREES.items()}


# --- modules


def test_the_package_has_few_rooms_and_each_has_its_level():
    entries = [path for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "py.typed")]
    assert len(entries) <= 24
    assert {path.stem for path in entries} - {"__init__", "recipes"} == set(LEVEL), "a new room: give it its place in LEVELS"


def test_a_module_imports_from_its_own_room_and_from_lower_levels_only():
    assert len(MODULES) > 150
    for name in filter(room, MODULES):
        here = room(name)
        others = {room(other) for other in IMPORTS[name]} - {here, None}
        assert {other for other in others if LEVEL[other] >= LEVEL[here] and (here, other) not in BESIDE} == set(), name


def test_there_is_no_import_cycle():
    waiting = {name: others & set(MODULES) - {name} for name, others in IMPORTS.items()}
    while free := {name for name, others in waiting.items() if not others & set(waiting)}:
        waiting = {name: others for name, others in waiting.items() if name not in free}
    assert waiting == {}


@pytest.mark.parametrize("name", [name for name, path in MODULES.items() if path.name == "__init__.py"])
def test_a_package_re_exports_names_and_holds_nothing_else(name):
    for node in TREES[name].body:
        if name == "sfrik" and isinstance(node, ast.FunctionDef):  # its re-exports are imported when they are first used
            assert node.name in ("__getattr__", "__dir__")
            continue
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        names = isinstance(node, ast.Assign) and [target.id for target in node.targets] in (["__all__"], ["__version__"])
        assert docstring or names or isinstance(node, ast.ImportFrom), ast.unparse(node)


def test_the_package_imports_torch_only_when_an_objective_is_used():
    code = "import sys, sfrik; assert 'torch' not in sys.modules; assert 'SFRIK' in dir(sfrik); sfrik.SFRIK; sys.modules['torch']"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_objectives_are_attributes_of_the_package():
    import sfrik
    from sfrik import SFRIK, objectives

    assert SFRIK is objectives.SFRIK
    assert all(getattr(sfrik, name) is getattr(objectives, name) for name in sfrik.__all__ if name != "__version__")
    with pytest.raises(AttributeError, match="module 'sfrik' has no attribute 'BYOL'"):
        sfrik.BYOL  # noqa: B018


def test_no_file_is_longer_than_320_lines():
    assert {name: lines for name, text in TEXTS.items() if (lines := len(text.splitlines())) > 320} == {}


def test_outside_plots_a_module_needs_only_core_dependencies_to_be_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    core = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]} - {"pillow"} | {"PIL", "sfrik"}
    for name, tree in TREES.items():
        if room(name) == "plots":
            continue
        for node in tree.body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {other.split(".")[0] for other in names} <= core | sys.stdlib_module_names, name


@pytest.mark.parametrize("name", ["sfrik.kernels", "sfrik.mmd", "sfrik.objectives", "sfrik.diagnostics"])
def test_the_mathematics_needs_no_settings_no_files_and_no_images(name):
    reached, waiting = set(), [name]
    while waiting:
        for other in IMPORTS[waiting.pop()] - reached:
            reached.add(other)
            waiting.append(other)
    assert {room(other) for other in reached} <= {"kernels", "mmd", "objectives", "diagnostics", "ops", "errors"}


def test_every_module_has_a_docstring():
    for name in MODULES.keys() - {"sfrik.__main__"}:
        docstring = ast.get_docstring(TREES[name])
        assert docstring, name
        assert docstring.split("\n")[0].rstrip()[-1] in ".?:", name


def test_a_module_defines_all_the_names_it_exports():
    for name in MODULES:
        if room(name) and not name.endswith("__main__"):
            defined, exported = defined_and_exported(name)
            assert exported or all(other.startswith("__") for other in defined), f"{name}: __all__ is missing"
            for names in exported:
                assert set(names) <= defined, name
                assert sorted(names) == sorted(set(names)), name


def defined_and_exported(name):
    """The names that a module defines at its top, and the values of `__all__`."""
    defined, exported = set(), []
    for node in TREES[name].body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.ImportFrom) and MODULES[name].name == "__init__.py":
            defined |= {alias.name for alias in node.names}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            defined.add(node.target.id)
        elif isinstance(node, ast.Assign):
            targets = {target.id for target in node.targets if isinstance(target, ast.Name)}
            defined |= targets
            exported += [ast.literal_eval(node.value)] if "__all__" in targets else []
    return defined, exported


def test_every_data_file_of_the_package_is_named_in_pyproject():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
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
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
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
def test_a_notebook_has_one_cell_of_parameters_that_holds_only_literals(name):
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


def is_explore(cell):
    return "explore" in cell["metadata"].get("tags", [])


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_code_cell_of_a_notebook_follows_a_sentence_also_without_the_cells_for_a_reader(name):
    every = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    for cells in (every, [cell for cell in every if not is_explore(cell)]):
        assert cells[0]["cell_type"] == "markdown"
        for before, cell in itertools.pairwise(cells):
            if cell["cell_type"] == "code":
                assert before["cell_type"] == "markdown", "".join(cell["source"])[:60]
                assert is_explore(before) == is_explore(cell), "the sentence and its cell are left out together"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_cell_of_a_table_uses_a_name_that_a_cell_for_a_reader_defined(name):
    readers = {}  # name: whether the last cell that defined it is left out of a table's run
    found = [is_explore(cell) for _, _, cell in code_cells(name)]
    for _, tree, cell in code_cells(name):
        names = {node: node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        defined = {text for node, text in names.items() if not isinstance(node.ctx, ast.Load)}
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                defined |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
            elif isinstance(node, ast.FunctionDef):
                defined |= {node.name, *(argument.arg for argument in node.args.args)}
        if not is_explore(cell):
            assert not [text for text in names.values() if text not in defined and readers.get(text)]
        readers |= dict.fromkeys(defined, is_explore(cell))
    assert any(found) == (name[:2] in {"02", "03", "04", "05", "06"})


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_parameters_are_hidden_and_the_cell_after_them_checks_those_of_papermill(name):
    (tags, _, parameters), (_, first, imports) = code_cells(name)[:2]
    assert tags == ["parameters"]
    assert [cell["metadata"].get("jupyter") for cell in (parameters, imports)] == [{"source_hidden": True}] * 2
    assert "check_injected()" in [ast.unparse(node) for node in first.body]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_imports_no_command_line(name):
    for _, tree, _ in code_cells(name):
        assert not any(isinstance(node, ast.ImportFrom) and node.module == "sfrik.cli.main" for node in ast.walk(tree))
