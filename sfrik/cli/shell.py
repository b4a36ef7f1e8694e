"""`sfrik env`, the environment for bug reports, and `sfrik completion`, a script for the shell."""

from __future__ import annotations

import argparse
from typing import get_args

from sfrik.cli.environment import environment, format_environment
from sfrik.cli.flags import PROFILES, add_command
from sfrik.cli.output import CommandOutput, add_json
from sfrik.errors import SfrikError, nearest
from sfrik.settings import SECTIONS, recipe_names

__all__ = ["add_completion", "add_env"]

SHELLS = ("bash", "zsh", "tcsh")
ENV = "Print versions and hardware for a bug report. It has no paths or names."
COMPLETION = "Print a script for the shell that completes commands. It also completes flags, recipes and tables."
FOLDERS = ("exp_dir", "data_dir", "extraction_dir", "image_dir", "target_dir")
FILES = ("pretrained", "ckp_path", "label_list")


def add_env(commands) -> None:
    env = add_command(commands, "env", ENV)
    add_json(env)
    env.set_defaults(run=_env)


def add_completion(commands, parser: argparse.ArgumentParser) -> None:
    completion = add_command(commands, "completion", COMPLETION)
    completion.add_argument("shell", metavar="SHELL", help="bash, zsh or tcsh")
    completion.set_defaults(run=lambda options: _completion(options.shell, parser), json=False)


def _env(options: argparse.Namespace) -> CommandOutput:
    facts = environment()
    return CommandOutput(facts, format_environment(facts))


def _completion(shell: str, parser: argparse.ArgumentParser) -> CommandOutput:
    if shell not in SHELLS:
        raise SfrikError(f"shell must be one of {', '.join(SHELLS)}, got {shell!r}{nearest(shell, SHELLS)}")
    try:
        import shtab
    except ImportError:
        raise SfrikError("completion needs the package shtab: python -m pip install shtab") from None
    from sfrik.tables.definitions import EXPERIMENTS

    choices = {"recipe": recipe_names(), "profile": PROFILES, "launch": ("local", "slurm"), "shell": SHELLS}
    choices |= {"name": (*EXPERIMENTS, "all"), "names": tuple(EXPERIMENTS)}
    for kind in SECTIONS.values():
        for name, field in kind.model_fields.items():
            if values := [value for value in get_args(field.annotation) if isinstance(value, str)]:
                choices.setdefault(name, values)
    for action in _actions(parser):
        if action.dest in choices:
            action.choices = choices[action.dest]  # only for the script: the parser is not used afterwards
        elif action.dest in FOLDERS + FILES:
            setattr(action, "complete", shtab.DIRECTORY if action.dest in FOLDERS else shtab.FILE)  # noqa: B010  read by shtab
    return CommandOutput({}, [shtab.complete(parser, shell)])


def _actions(parser: argparse.ArgumentParser):
    """All actions of a parser and its sub-parsers."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
