"""Settings as command-line flags, and the settings that the flags of a command result in."""

from __future__ import annotations

import argparse
import re
from typing import Any, get_origin

from sfrik.errors import SfrikError
from sfrik.settings import SECTIONS, FeatureSettings, KnnSettings, LogisticSettings, Settings, as_path

__all__ = [
    "DEFAULT_EXP_DIR",
    "PROFILES",
    "add_command",
    "add_nproc_per_node",
    "add_profile",
    "add_recipe",
    "add_root",
    "add_settings",
    "nproc_per_node",
    "path",
    "resolve_settings",
    "whole_number",
]

# The largest value of each flag that is a whole number but not a setting.
LARGEST = {
    "--seeds": 1000,
    "--jobs": 1024,
    "--nodes": 10_000,
    "--gpus": 64,
    "--procs": 1024,
    "--nproc-per-node": 1024,
    "--seed": 2**32 - 1,  # as for the setting
}
LARGEST_OTHER = 10**6

PROFILES = ("smoke", "digits", "photos", "cifar10", "cifar10_quick", "paper")
DEFAULT_EXP_DIR = "exp"  # as in the original commands


def add_command(commands, name: str, description: str) -> argparse.ArgumentParser:
    """Add a command's parser. The description, one sentence, is also shown in the list of commands."""
    short = f"{description[0].lower()}{description[1:-1]}".replace("%", "%%")  # argparse formats the help, not the description
    return commands.add_parser(name, help=short, description=description)


def add_recipe(parser: argparse.ArgumentParser, required: bool = False) -> None:
    text = "recipe to run (a file in sfrik/recipes)" if required else "recipe to start from (a file in sfrik/recipes)"
    parser.add_argument("--recipe", required=required, metavar="PROFILE/NAME", help=text)


def add_profile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", default="digits", help=f"set of recipes: {', '.join(PROFILES)}")


def add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", metavar="DIR", type=path, help="root folder of all runs (default: runs)")


def path(text: str) -> str:
    """The type of a flag that is a path but not a setting: `~` is the home folder."""
    try:
        return as_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_nproc_per_node(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--nproc-per-node", "--nproc_per_node", metavar="N", help=text)


def add_settings(parser: argparse.ArgumentParser, settings: type[Settings]) -> None:
    """Add a flag for each setting, spelled with hyphens or underscores."""
    for name, field in settings.model_fields.items():
        hyphens = f"--{name.replace('_', '-')}"
        several: dict[str, Any] = {"nargs": "+"} if get_origin(field.annotation) is tuple else {}
        if field.annotation is bool:  # --only-inference, --reg_small "True"
            several = {"nargs": "?", "const": True}
        parser.add_argument(
            hyphens,
            *([f"--{name}"] if "_" in name else []),
            dest=name,
            default=argparse.SUPPRESS,
            metavar=name.split("_")[-1].upper(),
            help=f"{field.description}{_format_default(field.default)}".replace("%", "%%"),
            **several,
        )


def _format_default(value: Any) -> str:
    if value in (None, "", ()):
        return ""
    return f" (default: {' '.join(map(str, value)) if isinstance(value, tuple) else value})"


def resolve_settings(options: argparse.Namespace) -> Settings:
    """The settings of a command: the recipe's, overridden by the flags. Without a recipe, results go to `DEFAULT_EXP_DIR`."""
    kind = SECTIONS[options.section]
    flags = {name: value for name, value in vars(options).items() if name in kind.model_fields}
    if options.recipe:
        return kind.from_recipe(options.recipe, **flags)
    given = kind.parse(flags)
    folders = {}
    if isinstance(given, (FeatureSettings, KnnSettings, LogisticSettings)):
        if options.section != "extract_features" and given.extraction_dir:
            folders = {"exp_dir": given.exp_dir or given.extraction_dir}  # scores go next to the features
        elif options.section == "extract_features" and given.pretrained and not given.extraction_dir:
            folders = {"extraction_dir": given.exp_dir or DEFAULT_EXP_DIR}  # weights from elsewhere: no run to put features/ in
    return given.model_copy(update={"exp_dir": given.exp_dir or DEFAULT_EXP_DIR, **folders})


def nproc_per_node(options: argparse.Namespace) -> int | None:
    """The value of the flag that `add_nproc_per_node` adds; None when it was not given."""
    given = getattr(options, "nproc_per_node", None)
    return None if given is None else whole_number(given, "--nproc-per-node", 1)


def whole_number(text: str, flag: str, least: int) -> int:
    """Parse the value of a flag as a whole number.

    Raises:
        SfrikError: it is not a whole number, is below `least`, or is above the flag's entry in `LARGEST`.
    """
    most = LARGEST.get(flag, LARGEST_OTHER)
    if not re.fullmatch("0*[0-9]{1,18}", text) or not least <= int(text) <= most:
        raise SfrikError(f"{flag} must be a whole number >= {least} and <= {most}, got {text[:100]!r}")
    return int(text)
