"""metrics.jsonl of a run: one line per logging step and per epoch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sfrik.errors import SfrikError
from sfrik.runs.records import LogLine
from sfrik.system.files import sync_file, write_error, write_text
from sfrik.system.records import parse_record
from sfrik.system.terminal import warn_once

__all__ = ["Metrics"]


class Metrics:
    """The part of `sfrik.runs.folder.Run` that writes and reads metrics.jsonl."""

    folder: Path

    def log(self, line: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        path, text = self.folder / "metrics.jsonl", json.dumps(line) + "\n"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise write_error(path, error, len(text)) from None

    def sync_log(self) -> None:
        """Flush metrics.jsonl to disk. Called before a checkpoint is saved, after which these lines are not written again."""
        if (self.folder / "metrics.jsonl").is_file():
            sync_file(self.folder / "metrics.jsonl")

    def truncate_log(self, epoch: int, step: int) -> None:
        """Remove the lines that a run resuming at `epoch` and `step` (counted from the start of the run) will write again."""
        path = self.folder / "metrics.jsonl"
        kept = [line for line in self.metrics() if line["epoch"] < epoch or line.get("step", step) < step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))  # atomic: a kill must not lose the kept lines

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl. Broken ones are skipped with a warning; a truncated last one is skipped silently."""
        path = self.folder / "metrics.jsonl"
        texts = path.read_bytes().split(b"\n") if path.is_file() else []
        lines = []
        for number, text in enumerate(texts, 1):
            try:
                if text.strip():
                    lines.append(parse_record(json.loads(text.decode()), LogLine, f"line {number}", "skipped"))
            except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or an SfrikError of parse_record
                if number < len(texts):
                    reason = error if isinstance(error, SfrikError) else f"line {number} is not JSON ({error}): skipped"
                    warn_once(f"{path}: {reason}")
        return lines

    def epochs(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl that describe an epoch."""
        return [line for line in self.metrics() if "effective_rank" in line]
