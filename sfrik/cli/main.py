"""`python -m sfrik COMMAND FLAGS`: the command line.

Each setting is a flag of the same name, spelled with hyphens or underscores. `--recipe PROFILE/NAME` starts from a recipe, and
the other flags override it. `--json` prints the result as JSON.

Exit status:

====  ======================================================================================
0     success
1     a negative answer: a run has collapsed, a table is incomplete, two folders do not agree
2     failure
75    stopped by SIGTERM, SIGUSR1 or SIGHUP
130   stopped by Ctrl-C
====  ======================================================================================

An error in the input (`SfrikError`) or of the operating system is printed as one line on stderr, the failure of a worker as that
worker reported it. Any other error, also a ValueError of a library, is a bug: it is printed with its traceback and a request to
report it. `--debug` prints the traceback of every error.
"""

from __future__ import annotations

import math
import os
import sys
import traceback
from collections.abc import Sequence

import sfrik
from sfrik.cli.compare import add_compare
from sfrik.cli.diagnose import add_diagnose
from sfrik.cli.groups import COMMANDS, TOP
from sfrik.cli.output import run_and_print
from sfrik.cli.parser import Parser
from sfrik.cli.publish import add_publish
from sfrik.cli.recipes import add_recipes
from sfrik.cli.shell import add_completion, add_env
from sfrik.cli.tables import add_chapters, add_run, add_status, add_table
from sfrik.cli.train import MULTI_PROCESS, add_memory, add_training
from sfrik.errors import STOPPED, Preempted, SfrikError, WorkerError
from sfrik.system.processes import process_place, refuse_other_launchers
from sfrik.system.signals import GRACE
from sfrik.system.terminal import open_standard_streams, paint, print_line, replace_unprintable, tolerate_output_errors

__all__ = ["REPORT", "build_parser", "main"]

DESCRIPTION = "Self-supervised learning with rotation-invariant kernels. sfrik COMMAND --help lists the flags of a command."
# before the traceback, so that the last line of a log is still the error
REPORT = "this is a bug in sfrik: please report it, with these lines and the output of python -m sfrik env"

ANYWHERE = ("compare", "completion", "diagnose", "env", "memory", "recipes", "status")  # commands that only read


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    open_standard_streams()
    replace_unprintable()
    if "ipykernel" not in sys.modules:  # `!make` in JupyterLab: this process and its children are not in a notebook
        os.environ.pop("JPY_SESSION_NAME", None)
    first = process_place().rank == 0
    try:
        parser = build_parser()
        options = parser.parse_args([argument for argument in arguments if argument != "--debug"])
        if options.command is None:
            parser.print_help()
            return 0
        _check_surroundings()
        _check_processes(options.command)
        return run_and_print(options.run, options)
    except KeyboardInterrupt as error:
        print_line(f"sfrik: {error if str(error) else 'interrupted; run the same command again to resume'}", error=True)
        return 130
    except Preempted as error:
        if first:
            print_line(f"sfrik: {error}", error=True)
        return STOPPED
    except Exception as error:
        known = isinstance(error, SfrikError | WorkerError) or (isinstance(error, OSError) and error.errno is not None)
        bug = not known or (isinstance(error, WorkerError) and "Traceback" in str(error))
        if bug and not isinstance(error, MemoryError) and "OutOfMemoryError" not in repr(error):
            print_line(REPORT, error=True)
        if debug or not known:
            print_line(traceback.format_exc(), error=True, end="")
        elif first:
            print_line(f"{paint('sfrik: error:', 'red', sys.stderr)} {error}", error=True)
        return 2
    finally:
        for stream in (sys.stdout, sys.stderr):
            with tolerate_output_errors(stream):
                stream.flush()


def _check_surroundings() -> None:
    """Refuse a working directory that was deleted, and a SFRIK_GRACE that is no number of seconds.

    Raises:
        SfrikError: the message says what to do.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        raise SfrikError("the working directory was deleted: change to another one (cd)") from None
    if math.isnan(GRACE):
        raise SfrikError(f"SFRIK_GRACE must be a number of seconds from 0 to 86400, got {os.environ.get('SFRIK_GRACE')!r:.100}")


def _check_processes(command: str) -> None:
    """Refuse several processes where the work is one process's, and variables that only announce several processes.

    Raises:
        SfrikError: the message says what to do.
    """
    if process_place().size > 1 and command.replace("-", "_") not in MULTI_PROCESS:
        raise SfrikError(f"{command} runs in one process: start it without torchrun")
    if command not in ANYWHERE:
        refuse_other_launchers()


def build_parser() -> Parser:
    """The parser of all commands. Each command sets `run`, a function from the parsed options to a `CommandOutput`."""
    parser = Parser(prog="sfrik", description=DESCRIPTION, examples=TOP, commands=COMMANDS)
    parser.add_argument("--version", action="version", version=f"sfrik {sfrik.__version__}", help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    add_training(commands)
    add_memory(commands)
    add_table(commands)
    add_compare(commands)
    add_publish(commands)
    add_status(commands)
    add_run(commands)
    add_chapters(commands)
    add_recipes(commands)
    add_diagnose(commands)
    add_env(commands)
    add_completion(commands, parser)
    return parser
