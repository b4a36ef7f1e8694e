"""JSON files that the library writes and reads back: a pydantic model for each kind, checked when it is read.

A file without a version is of version 1, as files of earlier releases are. A file may have keys that its model does not name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sfrik.errors import SfrikError
from sfrik.system.files import read_json

__all__ = ["VERSION", "Provenance", "Record", "parse_record", "read_record"]

VERSION = 1


class Record(BaseModel):
    """What all of them share."""

    model_config = ConfigDict(extra="allow", frozen=True)

    version: Literal[1] = 1


class Provenance(Record):
    """provenance.json. `weights`: SHA-256 of each finished weights file, by its name."""

    commit: str
    started: str = ""
    finished: str = ""
    resumed: list[dict[str, Any]] = Field(default_factory=list)
    hardware: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, Any] = Field(default_factory=dict)
    weights: dict[str, str] = Field(default_factory=dict)


def parse_record(content: Any, kind: type[Record], source: str, remedy: str = "move it away and run again") -> Any:
    """The content, once it is known to be what `kind` says.

    Raises:
        SfrikError: a key is missing or has the wrong type, or the version is another one; source and key are named.
    """
    try:
        kind.model_validate(content, strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "missing":
            reason = f'{source} has no key "{key}"'
        elif key == "version":
            reason = f"{source} has version {problem['input']!r}, and this release of sfrik reads version {VERSION}"
        else:
            got = repr(problem["input"])
            got = got if len(got) <= 60 else f"{got[:60]}..."
            reason = f"{source}: {key}: {problem['msg']}, got {got}" if key else f"{source} holds no such record, but {got}"
        raise SfrikError(f"{reason}: {remedy}") from None
    return content


def read_record(path: str | Path, kind: type[Record]) -> dict[str, Any]:
    """A file that the library wrote, checked.

    Raises:
        SfrikError: as `sfrik.system.files.read_json` and `parse_record`.
    """
    return parse_record(read_json(path), kind, str(path))
