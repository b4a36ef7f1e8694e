"""Output of a command: lines of text, or with `--json` one JSON document on stdout and everything else on stderr."""

from __future__ import annotations

import argparse
import errno
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

from sfrik.errors import SfrikError
from sfrik.system.processes import process_place
from sfrik.system.terminal import discard_output

__all__ = ["CommandOutput", "add_json", "run_and_print"]


@dataclass(frozen=True)
class CommandOutput:
    """The output of a command.

    Attributes:
        content: what `--json` prints.
        lines: the same as text.
        status: the exit status.
    """

    content: dict[str, Any]
    lines: Sequence[str] = ()
    status: int = 0


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print only the result, as JSON")


def run_and_print(run: Callable[[argparse.Namespace], CommandOutput], options: argparse.Namespace) -> int:
    """Run a command, print its output on rank 0 only, and return its exit status."""
    if options.json:
        with redirect_stdout(sys.stderr):
            output = run(options)
        text = json.dumps(output.content, indent=2, default=str)
    else:
        output = run(options)
        text = "\n".join(output.lines)
    if text and process_place().rank == 0:
        try:
            print(text, flush=True)  # noqa: T201  the answer, which must not get lost unnoticed
        except OSError as error:
            discard_output(sys.stdout)
            if error.errno not in (errno.EPIPE, errno.EIO):  # `| head` has read enough, or the terminal is gone
                raise SfrikError(f"the output could not be printed: {error.strerror or error}") from None
    return output.status
