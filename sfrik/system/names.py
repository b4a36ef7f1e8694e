"""Names that the package does not have: where they are, or which one was meant."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import NoReturn

from sfrik.errors import nearest

__all__ = ["explain_missing_name"]

OBJECTIVES = ("SFRIK", "AUH", "SimCLR", "VICReg", "SIGReg")
# What other libraries call them, without "loss" and the like.
SAME_OBJECTIVE = {"": "SFRIK", "ntxent": "SimCLR", "infonce": "SimCLR", "alignuniform": "AUH", "alignmentuniformity": "AUH"}


def explain_missing_name(name: str) -> NoReturn:
    """Raise the error for a name that the package `sfrik` lacks: where the name is, or which one was meant.

    Raises:
        AttributeError: `sfrik.name` is looked up.
        ImportError: the lookup is `from sfrik import name`, whose own error would replace the text of an AttributeError.
    """
    text = f"module 'sfrik' has no attribute '{name}'"
    if name.startswith("__"):
        raise AttributeError(text)
    defined = _exported()
    rooms = {module.split(".")[1] for module in defined.values()}
    key = re.sub("loss|criterion|objective|_", "", name.lower())
    meant = {one.lower(): one for one in OBJECTIVES} | SAME_OBJECTIVE
    if key in meant:
        one = meant[key]
        text += f" (did you mean {one}?): criterion = sfrik.{one}({'dim=512' * (one == 'SFRIK')}); criterion(z1, z2).backward()"
    elif name in defined:
        text += f": from {defined[name]} import {name}"
    elif name in rooms:
        text += f": import sfrik.{name}"
    else:
        text += nearest(name, [*OBJECTIVES, *rooms, *defined])
    looked_up_by_import = sys._getframe(2).f_code.co_name == "_handle_fromlist"
    if looked_up_by_import and name not in rooms:
        raise ImportError(text, name="sfrik")
    raise AttributeError(text)


def _exported() -> dict[str, str]:
    """The package that exports each name, by the text of `__all__`: nothing is imported."""
    found = {}
    root = Path(__file__).parents[1]
    for path in [*root.glob("[a-z]*.py"), *root.glob("*/__init__.py")]:
        module = f"sfrik.{path.parent.name if path.stem == '__init__' else path.stem}"
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                found |= dict.fromkeys(ast.literal_eval(node.value), module)
    return found
