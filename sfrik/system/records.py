"""JSON files that the library writes and reads back, each validated by a pydantic model.

A file without `version`, as earlier releases wrote it, has version 1. Keys that the model does not name are allowed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sfrik.errors import SfrikError
from sfrik.system.files import read_json

__all__ = ["VERSION", "Provenance", "Record", "check_numbers", "parse_record", "read_record"]

VERSION = 1


class Record(BaseModel):
    """Base of the models: a version, and any further keys."""

    model_config = ConfigDict(extra="allow", frozen=True)
    finite: ClassVar[bool] = True  # whether NaN and infinite numbers are refused

    version: Literal[1] = 1


class Provenance(Record):
    """provenance.json: the code, versions and hardware that trained a run.

    Attributes:
        commit: None outside a clone of this project.
        weights: SHA-256 of each finished weights file, by file name.
    """

    commit: str | None = None
    started: str = ""
    finished: str = ""
    resumed: list[dict[str, Any]] = Field(default_factory=list)
    hardware: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, Any] = Field(default_factory=dict)
    weights: dict[str, str] = Field(default_factory=dict)


def parse_record(content: Any, kind: type[Record], source: str, remedy: str = "move it away and run again") -> Any:
    """Validate `content` against the model `kind` and return it unchanged.

    Args:
        content: A value read from JSON or from a checkpoint.
        kind: The model.
        source: The name of the file, for the message.
        remedy: The end of the message.

    Raises:
        SfrikError: A key is missing or has the wrong type, or the version is not supported; the message names the source
            and the key.
    """
    try:
        kind.model_validate(content, strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "missing":
            reason = f'{source} has no key "{key}"'
        elif key == "version":
            reason = f"{source} has version {problem['input']!r}, but this release of sfrik reads version {VERSION}"
        else:
            got = repr(problem["input"])
            got = got if len(got) <= 60 else f"{got[:60]}..."
            reason = f"{source}: {key}: {problem['msg']}, got {got}" if key else f"{source} should hold an object, got {got}"
        raise SfrikError(f"{reason}: {remedy}") from None
    return content


def check_numbers(content: Any, source: object, key: str = "") -> None:
    """Refuse a JSON value with NaN or infinite numbers: a score that is not finite is neither written nor read.

    Raises:
        SfrikError: The message has the source and the key.
    """
    if isinstance(content, float) and not math.isfinite(content):
        raise SfrikError(f"{source}: {key} is {content}, not a finite number: move the file away, if it exists, and run again")
    if isinstance(content, dict | list | tuple):
        for name, part in content.items() if isinstance(content, dict) else enumerate(content):
            check_numbers(part, source, f"{key}.{name}" if key else str(name))


def read_record(path: str | Path, kind: type[Record]) -> dict[str, Any]:
    """Read and validate a JSON file that the library wrote.

    Raises:
        SfrikError: As in `sfrik.system.files.read_json` and `parse_record`, or a number is NaN or infinite.
    """
    content = parse_record(read_json(path), kind, str(path))
    if kind.finite:
        check_numbers(content, path)
    return content
