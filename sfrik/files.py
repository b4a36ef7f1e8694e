"""Files that are complete or not there, and their hashes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from sfrik.errors import SfrikError

__all__ = ["file_hash", "read_json", "write_json", "write_text"]


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise SfrikError(f"{path} is not valid JSON ({error}): move it away and run again") from None


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Complete or not at all."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text)
    aside.replace(path)
