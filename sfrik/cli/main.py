"""`python -m sfrik COMMAND FLAGS`: the command line.

Each setting is a flag of the same name, spelled with hyphens or underscores. `--recipe PROFILE/NAME` starts from a recipe, and
the other flags override it. `--json` prints the result as JSON.

Exit status:

====  ==========================================================
0     success
1     a negative answer: a run has collapsed, a table is incomplete
2     failure
75    stopped by SIGTERM or SIGUSR1
130   stopped by Ctrl-C
====  ==========================================================

An error in the input (`SfrikError`) or of the operating system is printed as one line on stderr, the failure of a worker as that
worker reported it. Any other error, also a ValueError of a library, is a bug: it is printed with its traceback and a request to
report it. `--debug` prints the traceback of every error.
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
from sfrik.cli.output import run_and_print
from sfrik.cli.shell import add_completion, add_env
from sfrik.cli.tables import add_chapters, add_run, add_status, add_table
from sfrik.cli.train import add_memory, add_training
from sfrik.errors import STOPPED, Preempted, SfrikError, WorkerError, nearest
from sfrik.system.terminal import paint, replace_unprintable

__all__ = ["REPORT", "build_parser", "main"]

# before the traceback, so that the last line of a log is still the error
REPORT = "this is a bug in sfrik: please report it, with these lines and the output of python -m sfrik env"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    replace_unprintable()
    first = os.environ.get("RANK", "0") == "0"
    try:
        parser = build_parser()
        options = parser.parse_args([argument for argument in arguments if argument != "--debug"])
        if options.command is None:
            parser.print_help()
            return 0
        return run_and_print(options.run, options)
    except KeyboardInterrupt as error:
        print(f"sfrik: {error if str(error) else 'interrupted; run the same command again to resume'}", file=sys.stderr)
        return 130
    except Preempted as error:
        if first:
            print(f"sfrik: {error}", file=sys.stderr)
        return STOPPED
    except Exception as error:
        known = isinstance(error, SfrikError | WorkerError) or (isinstance(error, OSError) and error.errno is not None)
        bug = not known or (isinstance(error, WorkerError) and "Traceback" in str(error))
        if bug and not isinstance(error, MemoryError) and "OutOfMemoryError" not in repr(error):
            print(REPORT, file=sys.stderr)
        if debug or not known:
            traceback.print_exc()
        elif first:
            print(f"{paint('sfrik: error:', 'red', sys.stderr)} {error}", file=sys.stderr)
        return 2


class _HelpFormatter(argparse.HelpFormatter):
    """Adds the default of a flag to its help, if it has one, and shows the values of a flag once and briefly."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return f"{', '.join(action.option_strings)} {self._format_args(action, action.dest.upper())}"

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        text = super()._format_args(action, default_metavar)
        return f"{text.split()[0]} ..." if action.nargs == "+" else text

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        silent = action.default in (None, "", False, argparse.SUPPRESS) or "(default: " in text
        return text if silent else f"{text} (default: %(default)s)"


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors and without abbreviations: `--epoch` does not stand for `--epochs`."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **arguments)

    def error(self, message: str):
        raise SfrikError(message)

    def parse_known_args(self, args=None, namespace=None):
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown and self.prog.count(" "):  # the parser of a command, not the top-level one
            known = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            raise SfrikError(
                f"unknown argument {unknown[0]}{nearest(unknown[0].split('=')[0].replace('_', '-'), known)}: "
                f"see {self.prog} --help"
            )
        return namespace, unknown


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands. Each command sets `run`, a function from the parsed options to a `CommandOutput`."""
    parser = _Parser(prog="sfrik", description="Self-supervised learning with rotation-invariant kernels.")
    parser.add_argument("--version", action="version", version=f"sfrik {sfrik.__version__}", help="print the version and exit")
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
