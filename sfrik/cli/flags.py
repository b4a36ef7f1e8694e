"""Settings as flags of a command, and the settings that a command's flags mean."""

from __future__ import annotations

import argparse
import re
from typing import Any, get_origin

from sfrik.errors import SfrikError
from sfrik.settings import SECTIONS, FeatureSettings, Settings

__all__ = [
    "DEFAULT_EXP_DIR",
    "PROFILES",
    "add_command",
    "add_processes",
    "add_recipe",
    "add_settings",
    "processes",
    "resolve",
    "whole",
]

# The largest value of each flag that is a whole number and no setting.
LARGEST = {
    "--seeds": 1000,
    "--jobs": 1024,
    "--nodes": 10_000,
    "--gpus": 64,
    "--procs": 1024,
    "--nproc-per-node": 1024,
    "--seed": 2**32 - 1,  # as the setting
}
LARGEST_OTHER = 10**6

PROFILES = ("smoke", "digits", "cifar10", "paper")
DEFAULT_EXP_DIR = "exp"  # as in the original commands


def add_command(commands, name: str, words: str) -> argparse.ArgumentParser:
    """A command's parser; `words` is a sentence, which is its description and, in the list of commands, its help."""
    short = f"{words[0].lower()}{words[1:-1]}".replace("%", "%%")  # argparse formats the help, and not the description
    return commands.add_parser(name, help=short, description=words)


def add_recipe(parser: argparse.ArgumentParser, required: bool = False) -> None:
    words = "a recipe of sfrik/recipes" if required else "start from this recipe of sfrik/recipes"
    parser.add_argument("--recipe", required=required, metavar="PROFILE/NAME", help=words)


def add_processes(parser: argparse.ArgumentParser, words: str) -> None:
    parser.add_argument("--nproc-per-node", "--nproc_per_node", metavar="N", help=words)


def add_settings(parser: argparse.ArgumentParser, settings: type[Settings]) -> None:
    """A flag for each setting, written with hyphens or underscores."""
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


def processes(options: argparse.Namespace) -> int | None:
    """What `add_processes` was given, if it was."""
    given = getattr(options, "nproc_per_node", None)
    return None if given is None else whole(given, "--nproc-per-node", 1)


def whole(text: str, flag: str, least: int) -> int:
    """The whole number that a flag was given.

    Raises:
        SfrikError: it is none, under `least`, or above what `LARGEST` has for the flag.
    """
    most = LARGEST.get(flag, LARGEST_OTHER)
    if not re.fullmatch("0*[0-9]{1,18}", text) or not least <= int(text) <= most:
        raise SfrikError(f"{flag} must be a whole number >= {least} and <= {most}, got {text[:100]!r}")
    return int(text)
