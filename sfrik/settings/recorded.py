"""Settings as files record them: their hash, and those of earlier releases in today's form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

__all__ = ["as_written_today", "defaults", "hash_of"]


def hash_of(settings: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that identify settings, as JSON can represent them."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def as_written_today(kind: type[BaseModel], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Recorded settings in today's form: earlier releases recorded 1-40-40 and 1.0-40.0-40.0 as they were given."""
    try:
        read = kind.model_validate({name: value for name, value in recorded.items() if name in kind.model_fields})
    except ValidationError:  # not settings of this release
        return dict(recorded)
    return {**recorded, **read.model_dump(mode="json", include=recorded.keys() & kind.model_fields.keys())}


@cache
def defaults(kind: type[BaseModel]) -> dict[str, Any]:
    return kind.model_construct().model_dump(mode="json")
