"""The messages between `sfrik.launch` and its workers: the call on a worker's stdin, its reports on its stdout.

Both are pipes, or the streams of `srun`, to which only the launching user can write. Neither goes through a socket, so nothing
from the network decides what is imported, what is returned, or that a run stops. The call is JSON: the name of the function, and
its arguments as numbers, strings, lists, dicts or pydantic settings.

A report is sent in lines with at most `PIECE` characters of it, so that those of several processes in one pipe do not mix::

    <token> <rank> <number of the report> <1 for its last piece, else 0> <piece of JSON>

The token is random and part of the call. It distinguishes a report from what a container or a module printed before Python
started.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pydantic import BaseModel

from sfrik.errors import SfrikError

__all__ = ["Reporter", "Reports", "importable_name", "pack", "pack_call", "resolve", "unpack_call"]

PIECE = 512  # a pipe takes lines of up to 4096 bytes whole, srun of up to 1024


class Reporter:
    """The reports of a worker, written to a descriptor that nothing else in the process writes to."""

    def __init__(self, descriptor: int, token: str, rank: int) -> None:
        self._descriptor, self._token, self._rank, self._count = descriptor, token, rank, 0

    def send(self, kind: str, content: Any) -> None:
        """Send a report of kind "result", "failure", "stopped" or "progress"; a caller that is gone is no error."""
        text = json.dumps([kind, content], default=str)  # a path comes back as text
        self._count += 1
        pieces = [text[at : at + PIECE] for at in range(0, len(text), PIECE)]
        with suppress(OSError):
            for index, piece in enumerate(pieces, 1):
                line = f"{self._token} {self._rank} {self._count} {int(index == len(pieces))} {piece}\n"
                os.write(self._descriptor, line.encode())


class Reports:
    """The reports of the workers, on the caller's side.

    Attributes:
        result: what rank 0 returned, in a list; empty until it has.
        failure: the first failure: rank, host and traceback.
        stopped: the message of the first worker that was asked to stop.
        first: "failure" or "stopped", whichever came first.
        progress: the newest progress of rank 0.
    """

    def __init__(self, token: str) -> None:
        self._token = token
        self._pieces: dict[tuple[str, str], list[str]] = {}
        self.result: list[Any] = []
        self.failure: dict[str, Any] | None = None
        self.stopped: str | None = None
        self.first = ""
        self.progress: dict[str, Any] | None = None

    def read(self, line: str) -> bool:
        """Read a line, and return whether it was part of a report."""
        token, *rest = line.rstrip("\n").split(" ", 4)
        if token != self._token or len(rest) != 4:
            return False
        rank, number, last, piece = rest
        pieces = self._pieces.setdefault((rank, number), [])
        pieces.append(piece)
        if last == "1":
            self._take(rank, *json.loads("".join(self._pieces.pop((rank, number)))))
        return True

    def _take(self, rank: str, kind: str, content: Any) -> None:
        if kind == "result" and rank == "0":
            self.result = [content]
        elif kind == "progress":
            self.progress = content
        elif kind == "failure":
            self.failure = self.failure or content
            self.first = self.first or kind
        elif kind == "stopped":
            self.stopped = self.stopped or content
            self.first = self.first or kind


def pack_call(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A call of the function `name`, as a dict that can be serialised to JSON."""
    return {"function": name, "args": [pack(a) for a in args], "kwargs": {k: pack(v) for k, v in kwargs.items()}}


def unpack_call(call: dict[str, Any]) -> tuple[Callable, list[Any], dict[str, Any]]:
    """The function of a call and its arguments."""
    arguments = [_unpack(value) for value in call["args"]]
    return resolve(call["function"]), arguments, {name: _unpack(value) for name, value in call["kwargs"].items()}


def importable_name(function: str | Callable) -> str:
    """The name "module:function" under which a fresh process can import a function.

    Raises:
        SfrikError: the function cannot be imported.
    """
    if callable(function):
        if not hasattr(function, "__qualname__") or getattr(function, "__self__", None) is not None:
            raise SfrikError(f"launch cannot start {function!r}: a worker imports a function of a module by its name")
        if function.__module__ == "__main__" or "<" in function.__qualname__:
            raise SfrikError(
                f"launch cannot start {function.__qualname__}: a worker is a new process that imports the function, "
                "so it must be in a module, not in a notebook or another function"
            )
        return f"{function.__module__}:{function.__qualname__}"
    if not isinstance(function, str) or not all(function.partition(":")):
        raise SfrikError(f'launch needs "module:function", got {function!r}')
    resolve(function)
    return function


def resolve(name: str) -> Any:
    """Import the function "module:name".

    Raises:
        SfrikError: it cannot be imported, or is not callable.
    """
    module, _, qualname = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise SfrikError(f"launch cannot find {name}: {error}") from None
    if not callable(found):
        raise SfrikError(f"launch cannot call {name}: it is no function")
    return found


def pack(value: Any) -> Any:
    """An argument in a form that JSON can hold.

    Raises:
        SfrikError: JSON cannot hold it.
    """
    if isinstance(value, BaseModel):
        return {"__settings__": importable_name(type(value)), "values": value.model_dump(mode="json")}
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise SfrikError(
            f"an argument of launch must be settings, or made of numbers, strings, lists and dicts: {error}"
        ) from None
    return value


def _unpack(value: Any) -> Any:
    if isinstance(value, dict) and "__settings__" in value:
        return resolve(value["__settings__"]).model_validate(value["values"])
    return value
