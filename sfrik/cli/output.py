"""What a command answers: words for people, or with `--json` its content alone on stdout, and all other words on stderr."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

from sfrik.errors import SfrikError

__all__ = ["Answer", "add_json", "answer"]


@dataclass(frozen=True)
class Answer:
    """The content of an answer, which JSON can hold, the same in lines for people, and the exit status."""

    content: dict[str, Any]
    lines: Sequence[str] = ()
    status: int = 0


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON, alone on stdout; progress goes to stderr")


def answer(run: Callable[[argparse.Namespace], Answer], options: argparse.Namespace) -> int:
    """Run a command and print what it answers, by one process of several; its exit status."""
    if options.json:
        with redirect_stdout(sys.stderr):
            found = run(options)
        text = json.dumps(found.content, indent=2, default=str)
    else:
        found = run(options)
        text = "\n".join(found.lines)
    if text and os.environ.get("RANK", "0") == "0":
        try:
            print(text, flush=True)
        except OSError as error:
            # what is left in the buffer must not fail again at the end of Python, which would set the exit status
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if not isinstance(error, BrokenPipeError):  # `| head` has read enough
                raise SfrikError(f"the answer could not be printed: {error.strerror or error}") from None
    return found.status
