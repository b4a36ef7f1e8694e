"""`python -m sfrik COMMAND FLAGS`: the library's settings as flags.

A flag has its setting's name, with hyphens or underscores. `--recipe PROFILE/NAME` starts from a recipe, the other flags
override it. `--json` prints the result as JSON.

The exit status is 0 where the work is done, 1 where the answer is no (a run is collapsed, a table is not complete), 75 after
SIGTERM or SIGUSR1, 130 after Ctrl-C, and 2 after every failure. A mistake in the input is one line on stderr, the failure of a
worker what that worker reported, anything else a traceback; `--debug` shows the traceback of every error.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import sfrik
from sfrik.cli.diagnose import add_diagnose
from sfrik.cli.output import answer
from sfrik.cli.shell import add_completion, add_env
from sfrik.cli.tables import add_chapters, add_run, add_status, add_table
from sfrik.cli.train import add_memory, add_training
from sfrik.errors import STOPPED, Preempted, SfrikError, WorkerError, nearest
from sfrik.system.terminal import paint

__all__ = ["build_parser", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    first = os.environ.get("RANK", "0") == "0"
    try:
        parser = build_parser()
        options = parser.parse_args([argument for argument in arguments if argument != "--debug"])
        if options.command is None:
            parser.print_help()
            return 0
        return answer(options.run, options)
    except KeyboardInterrupt as error:
        print(f"sfrik: {error if str(error) else 'interrupted; the same command goes on'}", file=sys.stderr)
        return 130
    except Preempted as error:
        if first:
            print(f"sfrik: {error}", file=sys.stderr)
        return STOPPED
    except Exception as error:
        if debug or not isinstance(error, ValueError | OSError | WorkerError):  # SfrikError is a ValueError
            traceback.print_exc()
        elif first:
            print(f"{paint('sfrik: error:', 'red', sys.stderr)} {error}", file=sys.stderr)
        return 2


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors and no guessing: `--epoch` is not `--epochs`."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **arguments)

    def error(self, message: str):
        raise SfrikError(message)

    def parse_known_args(self, args=None, namespace=None):
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown and self.prog.count(" "):  # a command's own parser, not the one of all commands
            known = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            raise SfrikError(
                f"unknown argument {unknown[0]}{nearest(unknown[0].split('=')[0].replace('_', '-'), known)}: "
                f"see {self.prog} --help"
            )
        return namespace, unknown


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets `run`, a function of the parsed options that returns an `Answer`."""
    parser = _Parser(prog="sfrik", description="Self-supervised learning with rotation-invariant kernels.")
    parser.add_argument("--version", action="version", version=f"sfrik {sfrik.__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", parser_class=_Parser)
    add_training(commands)
    add_memory(commands)
    add_table(commands)
    add_status(commands)
    add_run(commands)
    add_chapters(commands)
    add_diagnose(commands)
    add_env(commands)
    add_completion(commands, parser)
    return parser
