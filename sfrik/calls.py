"""A function call as JSON: what travels from `sfrik.launch` to a worker.

Not pickle, since the store that carries it has no authentication. The function is named and imported, its arguments are
numbers, strings, lists, dicts or pydantic settings.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from sfrik.errors import SfrikError

__all__ = ["importable_name", "pack", "pack_call", "resolve", "unpack_call"]


def pack_call(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The call of the function `name`."""
    return json.dumps({"function": name, "args": [pack(a) for a in args], "kwargs": {k: pack(v) for k, v in kwargs.items()}})


def unpack_call(text: str) -> tuple[Callable, list[Any], dict[str, Any]]:
    """The function and its arguments."""
    call = json.loads(text)
    arguments = [_unpack(value) for value in call["args"]]
    return resolve(call["function"]), arguments, {name: _unpack(value) for name, value in call["kwargs"].items()}


def importable_name(function: str | Callable) -> str:
    if callable(function):
        if function.__module__ == "__main__" or "<" in function.__qualname__:
            raise SfrikError(
                f"launch cannot start {function.__qualname__}: a worker is a fresh process and imports its function, so it "
                "must stand in a module, not in a notebook or another function"
            )
        return f"{function.__module__}:{function.__qualname__}"
    if ":" not in function:
        raise SfrikError(f'launch needs "module:function", got {function!r}')
    resolve(function)
    return function


def resolve(name: str) -> Any:
    module, _, qualname = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise SfrikError(f"launch cannot find {name}: {error}") from None
    return found


def pack(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return {"__settings__": importable_name(type(value)), "values": value.model_dump(mode="json")}
    try:
        json.dumps(value)
    except TypeError as error:
        raise SfrikError(
            f"an argument of launch must be settings, or made of numbers, strings, lists and dicts: {error}"
        ) from None
    return value


def _unpack(value: Any) -> Any:
    if isinstance(value, dict) and "__settings__" in value:
        return resolve(value["__settings__"]).model_validate(value["values"])
    return value
