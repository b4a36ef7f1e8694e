"""The parameters of the notebooks: their committed values, which a table uses whatever was typed, and a check of their names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Set
from typing import Any

from sfrik.errors import SfrikError, nearest
from sfrik.settings import SECTIONS

__all__ = ["PARAMETERS", "check_injected", "check_names", "parameter_names", "typed_parameters"]

RUN = {"recipe": "digits/sfrik_l3_q512", "seed": 0, "exp_dir": ""}
INJECTED = "# Parameters\n"  # the first line of the cell that papermill inserts after the cell of parameters
RUN_OPTIONS = ("nproc_per_node", "targets")  # None, though they are not settings
# The committed value of every parameter that is not None, by notebook; a setting is None, which keeps the recipe's value.
PARAMETERS: dict[str, dict[str, Any]] = {
    "01_kernel_theory": {
        **{"dim": 64, "degrees": 8, "weights": "1.0-40.0-40.0", "scale": 2.5, "heat_time": 0.05, "sphere_heat_time": 0.1},
        **{"points": 200, "repeats": 20, "steps": 400, "rate": 0.2, "pictures": 32, "seed": 0, "figures": ""},
    },
    "02_pretraining": {
        **RUN,
        **{"beside": "digits/sfrik_l1_q512", "collapse_recipe": "digits/sfrik_l3_q512", "collapse_epochs": 10},
        **{"collapse_subset": 103, "ddp_epochs": 2},
    },
    "03_linear_probing": RUN,
    "04_semi_supervised": RUN,
    "05_knn_and_logistic_regression": RUN,
    "06_complexity": {"table": "table6", "profile": "digits", "seed": 0, "exp_dir": "", "device": "auto", "rounds": 5},
    "07_tables": {"tables": [], "profile": "digits", "seeds": 0, "root": ""},
}


def parameter_names(source: str) -> set[str]:
    """The names that a cell of parameters assigns."""
    return set(_assigned(source)[0])


def check_names(given: Iterable[str], known: Set[str], notebook: str) -> None:
    """Refuse parameters that a notebook does not have.

    Raises:
        SfrikError: One of them is named, with the nearest parameter.
    """
    for name in given:
        if name not in known:
            raise SfrikError(f"{notebook} has no parameter {name}{nearest(name, sorted(known))}")


def check_injected() -> None:
    """Refuse parameters that papermill has set and the notebook does not have. Called in the first cell after the parameters.

    papermill sets a misspelt name too, and only logs a warning: without this check the default would be used, for a training of
    days. It executes the cell of parameters, then the one that it inserts, then the one that calls this function; after other
    cells, and in JupyterLab or VS Code, which send the ID of a cell with its source, nothing is checked.

    Raises:
        SfrikError: A parameter is unknown.
    """
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    message = shell.get_parent() if hasattr(shell, "get_parent") else {}
    *before, injected = shell.user_ns["In"][:-1] if shell and shell.user_ns.get("In") else [""]
    known = set().union(*map(parameter_names, before))
    if known and injected.startswith(INJECTED) and "cellId" not in message.get("metadata", {}):
        check_names(sorted(parameter_names(injected)), known, "this notebook")


def typed_parameters(notebook: str, source: str) -> dict[str, Any]:
    """The committed values of the parameters that have, or may have, another value in a notebook's file.

    Args:
        notebook: Its name.
        source: Its cell of parameters.
    """
    if notebook not in PARAMETERS:
        return {}
    found, simple = _assigned(source)
    others = {*RUN_OPTIONS, *(name for kind in SECTIONS.values() for name in kind.model_fields)}
    committed = {name: PARAMETERS[notebook].get(name) for name in found if name in PARAMETERS[notebook] or name in others}
    return {name: value for name, value in committed.items() if not simple or found[name] != (type(value), value)}


def _assigned(source: str) -> tuple[dict[str, tuple[type, Any]], bool]:
    """The type (since True equals 1) and the value of each name that is assigned a literal, and whether the cell does only that.

    The value of an expression is an object that equals nothing else.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:  # such as a magic command of IPython
        return {name: (object, object()) for name in re.findall(r"^(\w+) *(?::[^=\n]*)?=", source, re.MULTILINE)}, False
    found, simple = {}, True
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            try:
                value = ast.literal_eval(node.value)
            except ValueError:
                value = object()
            found[node.targets[0].id] = type(value), value
        else:
            simple = False
    stored = (node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    return {**{name: (object, object()) for name in stored}, **found}, simple  # epochs: int = 1; epochs = size = 1
