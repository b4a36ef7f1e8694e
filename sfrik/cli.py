"""`python -m sfrik COMMAND FLAGS`: the library's settings as flags.

A flag has its setting's name, with hyphens or underscores. `--recipe PROFILE/NAME` starts from a recipe, the other flags
override it. A mistake ends in one line on stderr and exit status 2; `--debug` shows the traceback instead.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, get_origin

from sfrik.errors import STOPPED, Preempted, SfrikError, nearest
from sfrik.settings import SECTIONS, FeatureSettings, PretrainSettings, Settings
from sfrik.table_commands import add_status, add_table, whole

__all__ = ["main"]

PROFILES = ("smoke", "desk", "cifar10", "paper")
DEFAULT_EXP_DIR = "exp"  # as in the original commands
SEVERAL = ("pretrain", "extract_features")  # commands that share their work among processes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    try:
        options = _parser().parse_args([argument for argument in arguments if argument != "--debug"])
        return options.run(options) or 0
    except KeyboardInterrupt as error:
        print(f"sfrik: {error if str(error) else 'interrupted; the same command goes on'}", file=sys.stderr)
        return 130
    except Preempted as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"sfrik: {error}", file=sys.stderr)
        return STOPPED
    except (SfrikError, ValueError, OSError) as error:
        if debug:
            raise
        if os.environ.get("RANK", "0") == "0":
            print(f"sfrik: error: {error}", file=sys.stderr)
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


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="sfrik", description="Self-supervised learning with rotation-invariant kernels.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=_Parser)
    for section, run in COMMANDS.items():
        settings = SECTIONS[section]
        command = commands.add_parser(section.replace("_", "-"), help=_first_line(settings), description=_first_line(settings))
        command.add_argument("--recipe", metavar="PROFILE/NAME", help="start from this recipe of sfrik/recipes")
        command.add_argument("--dry-run", "--dry_run", action="store_true", help="print what would run, touch no data")
        if section in SEVERAL:
            command.add_argument(
                "--nproc-per-node",
                "--nproc_per_node",
                metavar="N",
                help="start N processes, on every node of a SLURM allocation; without it this process is the only one, or "
                "torchrun's",
            )
        _add_flags(command, settings)
        command.set_defaults(run=run, section=section)
    _add_memory(commands)
    add_table(commands, PROFILES)
    add_status(commands, PROFILES)
    _add_run(commands)
    return parser


def _add_flags(parser: argparse.ArgumentParser, settings: type[Settings]) -> None:
    for name, field in settings.model_fields.items():
        hyphens = f"--{name.replace('_', '-')}"
        several: dict[str, Any] = {"nargs": "+"} if get_origin(field.annotation) is tuple else {}
        if field.annotation is bool:  # --only-inference, --reg_small "True"
            several = {"nargs": "?", "const": True}
        default = "unset" if field.default in (None, "", ()) else field.default
        parser.add_argument(
            hyphens,
            *([f"--{name}"] if "_" in name else []),
            dest=name,
            default=argparse.SUPPRESS,
            metavar=name.split("_")[-1].upper(),
            help=f"{field.description} (default: {default})".replace("%", "%%"),
            **several,
        )


def _add_memory(commands) -> None:
    words = "The memory that a pretraining will need, by part; touches no data."
    memory = commands.add_parser("memory", help=f"{words[0].lower()}{words[1:-1]}", description=words)
    memory.add_argument("--recipe", metavar="PROFILE/NAME", help="start from this recipe of sfrik/recipes")
    memory.add_argument(
        "--nproc-per-node", "--nproc_per_node", metavar="N", help="processes that share the batch; 1, 2, 4 and 8 when unset"
    )
    memory.add_argument("--json", action="store_true", help="print JSON: GiB by part and in all, for each number of processes")
    _add_flags(memory, PretrainSettings)
    memory.set_defaults(run=_memory, section="pretrain")


def _add_run(commands) -> None:
    run = commands.add_parser(
        "run",
        help="run the notebooks of one recipe and seed",
        description="Run the notebooks of one recipe and seed by papermill; what is finished is skipped.",
    )
    run.add_argument("--recipe", required=True, metavar="PROFILE/NAME", help="a recipe of sfrik/recipes")
    run.add_argument("--seed", default="0")
    run.add_argument(
        "--stages", nargs="+", metavar="STAGE", help="pretrain, linear, semi, knn, tune, inference (default: pretrain linear knn)"
    )
    run.add_argument(
        "--nproc-per-node", "--nproc_per_node", metavar="N", help="processes that pretrain, on every node of a SLURM allocation"
    )
    run.add_argument("--exp-dir", "--exp_dir", default=None, help="root of the results folder")
    run.add_argument("--data-dir", "--data_dir", default="", help="folder of the images; the recipe's when unset")
    run.set_defaults(run=_run)


def resolve(options: argparse.Namespace) -> Settings:
    """The settings of a command: the recipe's, overridden by the flags; without a recipe, results go to exp/."""
    kind = SECTIONS[options.section]
    flags = {name: value for name, value in vars(options).items() if name in kind.model_fields}
    if options.recipe:
        return kind.from_recipe(options.recipe, **flags)
    given = kind.parse(flags)
    places = {}
    if isinstance(given, FeatureSettings):
        if options.section != "extract_features" and given.extraction_dir:
            places = {"exp_dir": given.exp_dir or given.extraction_dir}  # a score lies beside the features it is of
        elif options.section == "extract_features" and given.pretrained and not given.extraction_dir:
            places = {"extraction_dir": given.exp_dir or DEFAULT_EXP_DIR}  # no run of ours: the folder holds the features
    return given.model_copy(update={"exp_dir": given.exp_dir or DEFAULT_EXP_DIR, **places})


def _command(work: Callable[[Settings], dict[str, Any]]) -> Callable[[argparse.Namespace], int]:
    """A command: resolve the settings, then print them or do the work."""

    def run(options: argparse.Namespace) -> int:
        settings = resolve(options)
        several = options.section in SEVERAL
        nproc = getattr(options, "nproc_per_node", None)
        nproc = None if nproc is None else whole(nproc, "--nproc-per-node", 1)
        there = int(os.environ.get("WORLD_SIZE", "1"))  # processes, where torchrun has started them
        if there > 1 and not several:
            raise SfrikError("the evaluations run in one process: start them without torchrun")
        if there > 1 and nproc is not None:
            raise SfrikError("--nproc-per-node starts processes, and torchrun has done so already: leave one of them out")
        if options.dry_run:
            if os.environ.get("RANK", "0") == "0":
                _dry_run(settings, several, nproc or (there if there > 1 else None))
            return 0
        if not (options.recipe or hasattr(options, "exp_dir")) and os.environ.get("RANK", "0") == "0":
            print(f"results go to {settings.exp_dir} (--exp-dir)", flush=True)
        outcome = _on_processes(work, settings, nproc)
        if os.environ.get("RANK", "0") == "0":
            for line in _in_words(outcome):
                print(line)
        return 0

    return run


def _on_processes(work: Callable[[Settings], dict[str, Any]], settings: Settings, nproc: int | None) -> dict[str, Any]:
    """Work in this process, which may be one of torchrun's, or on processes that are started here."""
    from sfrik.launch import WorkerError, launch
    from sfrik.worker import process_group

    if nproc is None:
        with process_group(settings.device):
            return work(settings)
    try:
        return launch(work, settings, nproc_per_node=nproc)
    except WorkerError as error:  # a mistake in the input is told in one line here too
        kind, _, message = str(error).strip().splitlines()[-1].partition(": ")
        if kind == f"{SfrikError.__module__}.{SfrikError.__name__}":
            raise SfrikError(message) from error
        raise


def _pretrain(settings):
    from sfrik.pretrain import pretrain

    pretrain(settings)
    return {"weights": f"{settings.exp_dir}/backbone.safetensors"}


def _evaluate(settings):
    from sfrik.evaluate.protocols import evaluate

    return evaluate(settings)


def _extract(settings) -> dict[str, Any]:
    from sfrik.evaluate.features import extract_features

    return {"features": str(extract_features(settings))}


def _knn(settings):
    from sfrik.evaluate.protocols import knn_eval

    return knn_eval(settings)


def _logistic(settings):
    from sfrik.evaluate.protocols import logistic_regression

    return logistic_regression(settings)


def _transfer(settings):
    from sfrik.evaluate.transfer import transfer

    return transfer(settings)


COMMANDS = {
    "pretrain": _command(_pretrain),
    "evaluate": _command(_evaluate),
    "extract_features": _command(_extract),
    "knn_eval": _command(_knn),
    "logistic_regression": _command(_logistic),
    "transfer": _command(_transfer),
}


def _dry_run(settings: Settings, several: bool, processes: int | None) -> None:
    """Print the settings, the steps, the images and the memory to expect: of `processes`, else of one and of usual numbers."""
    _check_shares(settings, processes)
    from sfrik.calculator import plan_in_words

    print("\n".join(plan_in_words(settings, processes, several)))


def _check_shares(settings: Settings, processes: int | None) -> None:
    if processes and settings.batch_size % processes:
        raise SfrikError(f"batch_size {settings.batch_size} is over all processes and does not divide by {processes} of them")


def _memory(options: argparse.Namespace) -> int:
    settings, nproc = resolve(options), options.nproc_per_node
    nproc = None if nproc is None else whole(nproc, "--nproc-per-node", 1)
    _check_shares(settings, nproc)
    from sfrik.calculator import memory_by_processes, memory_in_words

    found = memory_by_processes(settings, nproc)
    if options.json:
        print(json.dumps({count: {**parts, "total": sum(parts.values())} for count, parts in found.items()}, indent=2))
    else:
        print("\n".join(memory_in_words(settings, found)))
    return 0


def _run(options: argparse.Namespace) -> int:
    from sfrik.campaign import DEFAULT_STAGES, run_recipe

    nproc = options.nproc_per_node
    run_recipe(
        options.recipe,
        whole(options.seed, "--seed", 0),
        options.exp_dir,
        options.stages or DEFAULT_STAGES,
        options.data_dir,
        None if nproc is None else whole(nproc, "--nproc-per-node", 1),
    )
    return 0


def _in_words(outcome: dict[str, Any]) -> list[str]:
    shown = {name: value for name, value in outcome.items() if name not in ("settings", "settings_hash", "commit")}
    return [f"{name}: {value:.2f}" if isinstance(value, float) else f"{name}: {value}" for name, value in shown.items()]


def _first_line(settings: type[Settings]) -> str:
    return (settings.__doc__ or "").split(": ", 1)[-1].strip("` \n") or settings.__name__
