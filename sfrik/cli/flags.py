"""Settings as command-line flags, and the settings that the flags of a command result in."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from sfrik.cli.groups import EXAMPLES, SETTINGS
from sfrik.cli.parser import CHOICE, Parser
from sfrik.errors import SfrikError
from sfrik.settings import SECTIONS, FeatureSettings, KnnSettings, LogisticSettings, Settings, as_path

__all__ = [
    "DEFAULT_EXP_DIR",
    "PROFILES",
    "add_command",
    "add_data_dir",
    "add_dry_run",
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
METAVARS = {"mlp": "N-N", "sfrik_weights": "X-X", "pretrained": "FILE", "ckp_path": "FILE", "label_list": "FILE"}
METAVARS |= {"arch": CHOICE, "arch_args": "NAME=VALUE", "choice": "GRID"}
DEFAULT_EXP_DIR = "exp"  # as in the original commands


def add_command(commands, name: str, description: str) -> Parser:
    """Add a command's parser. The first sentence of the description is also shown in the list of commands."""
    first = description.split(". ")[0].removesuffix(".")
    short = f"{first[0].lower()}{first[1:]}".replace("%", "%%")  # argparse formats the help, not the description
    return commands.add_parser(name, help=short, description=description, examples=EXAMPLES.get(name, ()))


def add_recipe(flags: argparse._ActionsContainer, required: bool = False) -> None:
    text = (
        "recipe to run (see sfrik recipes)"
        if required
        else "recipe to start from (see sfrik recipes); the other flags override it"
    )
    flags.add_argument("--recipe", required=required, metavar="PROFILE/NAME", help=text)


def add_dry_run(parser: Parser, text: str) -> None:
    parser.add_argument("--dry-run", action="store_true", help=text)


def add_profile(parser: Parser) -> None:
    parser.add_argument("--profile", default="digits", help=f"set of recipes: {', '.join(PROFILES)}")


def add_root(parser: Parser) -> None:
    parser.add_argument("--results", metavar="DIR", type=path, help="root folder of all runs (default: runs)")


def path(text: str) -> str:
    """The type of a flag that is a path but not a setting: `~` is the home folder."""
    try:
        return as_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_nproc_per_node(flags: argparse._ActionsContainer, text: str) -> None:
    flags.add_argument("--nproc-per-node", metavar="N", help=text)


def add_data_dir(parser: Parser, default: str) -> None:
    parser.add_argument("--data-dir", metavar="DIR", default="", type=path, help=f"folder of the images (default: {default})")


def add_settings(parser: Parser, settings: type[Settings]) -> None:
    """Add a flag for each setting, in the groups of `SETTINGS`."""
    for title, name, further in _grouped(list(settings.model_fields)):
        field = settings.model_fields[name]
        several: dict[str, Any] = {"nargs": "+"} if get_origin(field.annotation) is tuple else {}
        if field.annotation is bool:  # --only-inference, --reg_small "True"
            several = {"nargs": "?", "const": True}
        parser.group(title).add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            default=argparse.SUPPRESS,
            metavar=_metavar(name, field.annotation),
            help=f"{(field.description or '').removeprefix(f'{title}: ')}{_format_default(field.default)}".replace("%", "%%"),
            **several,
        )
        parser.further |= {name} if further else set()


def _grouped(names: list[str]) -> Iterator[tuple[str, str, bool]]:
    """The settings in the order of the help, each with the title of its group and whether only `--help-all` shows it."""
    named = {name for usual, further in SETTINGS.values() for name in (*usual.split(), *further.split())}
    for title, (usual, further) in SETTINGS.items():
        rest = [name for name in names if name not in named and name.startswith(f"{title.lower()}_")]
        named |= {*rest}
        rest += [name for name in names if name not in named] if title == [*SETTINGS][-1] else []
        yield from ((title, name, False) for name in usual.split() if name in names)
        yield from ((title, name, True) for name in (*further.split(), *rest) if name in names)


def _metavar(name: str, annotation: Any) -> str:
    """What stands for the value of a setting in the help: N for whole numbers, X for others, NAME for a choice, DIR, FILE, ..."""
    kinds = _parts(annotation)
    known = {bool: "true|false", int: "N", float: "X", Literal: CHOICE}
    last = name.split("_")[-1].upper()
    return next((text for kind, text in known.items() if kind in kinds), METAVARS.get(name, last))


def _parts(annotation: Any) -> list[Any]:
    """The types that an annotation consists of; `Literal` stands for its values."""
    if get_origin(annotation) is Literal:
        return [Literal]
    return [part for one in get_args(annotation) for part in _parts(one)] or [annotation]


def _format_default(value: Any) -> str:
    if value in (None, "", ()) or value is False:
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
