"""`sfrik recipes`: the recipes by profile and table, or the settings of one."""

from __future__ import annotations

import argparse
import re
import textwrap
from typing import Any

from sfrik.cli.flags import PROFILES, add_command
from sfrik.cli.output import CommandOutput, add_json
from sfrik.cli.plan import format_changes, format_value
from sfrik.errors import SfrikError, nearest
from sfrik.settings import SECTIONS, Settings, grid_recipes, load_recipe, recipe_names
from sfrik.settings.recipes import RECIPES, TUNE, recipe_files
from sfrik.system.files import check_text
from sfrik.system.terminal import align, terminal_width, wrap

__all__ = ["add_recipes"]

DESCRIPTION = "List the recipes, or print the settings of one. A recipe is a file of settings in sfrik/recipes."
OTHERS = "not in a table"
OF_HEADING = re.compile(r", on (?:[\w, ]+ of )?(?:MNIST5k|CIFAR-10)(?:, to test the code.*)?(?=$|[,:])")  # the profile's images


def add_recipes(commands) -> None:
    parser = add_command(commands, "recipes", DESCRIPTION)
    text = "a profile, whose recipes are listed, or a recipe, whose settings are printed"
    parser.add_argument("name", nargs="?", metavar="PROFILE[/NAME]", help=text)
    add_json(parser)
    parser.set_defaults(run=_recipes)


def _recipes(options: argparse.Namespace) -> CommandOutput:
    from sfrik.tables.rows import IMAGES  # not with the parser: `sfrik --help` stays fast

    name = (options.name or "").removesuffix("/")
    check_text(name)
    if name and name not in PROFILES:
        profile, _, stem = name.partition("/")
        if points := grid_recipes(profile, stem) if profile in PROFILES and stem.startswith(TUNE) else {}:
            return _grid(name, points)
        return _one(name)
    profiles = [name] if name else sorted(PROFILES, key=lambda profile: profile == "smoke")  # the test of the software last
    content, lines = [], []
    for profile in profiles:
        tables = _by_table(profile)
        content += [{"name": recipe, "tables": names, "about": _about(recipe)} for recipe, names in tables.items()]
        lines += [*([""] if lines else []), f"{profile}: {IMAGES[profile]}"]
        base = _base(profile)
        lines += _list(profile, tables) if name or not base else [f"  the recipes of {base}: sfrik recipes {profile}"]
    return CommandOutput({"recipes": content}, [*lines, "", "sfrik recipes PROFILE/NAME prints the settings of a recipe."])


def _base(profile: str) -> str:
    """The profile whose recipes this one shares; empty if it has its own."""
    files = recipe_files(recipe_names(profile)[0])
    base = files.paths[0].split("/")[0] if files else profile
    return base if base != profile else ""


def _by_table(profile: str) -> dict[str, list[str]]:
    """The recipes of a profile, each with its tables, in the order of the tables; those of no table last."""
    from sfrik.tables.definitions import rows_of, tables_of

    found: dict[str, list[str]] = {}
    known = recipe_names(profile)
    for table in tables_of(profile):
        for recipe in dict.fromkeys(row.recipe for row in rows_of(table, profile)):
            if recipe in known:
                found.setdefault(recipe, []).append(table)
    return found | {recipe: [] for recipe in known if recipe not in found}


def _list(profile: str, tables: dict[str, list[str]]) -> list[str]:
    """A line for each recipe, or for all recipes of a grid, under the heading of its first table."""
    from sfrik.tables.definitions import EXPERIMENTS

    groups: dict[str, dict[str, tuple[str, str]]] = {}
    for recipe, names in tables.items():
        files = recipe_files(recipe)
        assert files is not None  # it is one of recipe_names
        stem = files.paths[1].split("/")[1]
        name = f"{stem}_..." if files.point else recipe.split("/")[1]
        count = len(grid_recipes(profile, stem)) if files.point else 1
        also = f" (also {', '.join(names[1:])})" if names[1:] else ""
        about = OF_HEADING.sub("", _about(recipe))
        about = f"{count} recipes: {about}" if files.point else about
        title = f"{names[0]}: {EXPERIMENTS[names[0]].title}" if names else OTHERS
        groups.setdefault(title, {})[name] = (about, also)
    lines = []
    for title, recipes in groups.items():
        column = max(map(len, recipes)) + 6
        lines.append(f"  {title}")
        for name, (about, also) in recipes.items():
            room = max(20, terminal_width() - column - len(also))
            lines.append(f"    {name:{column - 4}}{textwrap.shorten(about, room, placeholder=' ...')}{also}")
    return lines


def _comment(recipe: str) -> list[str]:
    """The first lines of a recipe's file, which are comments, without their number signs."""
    files = recipe_files(recipe)
    assert files is not None  # it is one of recipe_names
    lines = (RECIPES / f"{files.paths[1]}.toml").read_text(encoding="utf-8").splitlines()
    end = next((k for k, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line.removeprefix("#").strip() for line in lines[:end]]


def _about(recipe: str) -> str:
    """What a recipe is: the first sentence of its comment without the table, or its settings."""
    if text := re.sub(r"^Table \d+[^:]*: ", "", " ".join(_comment(recipe))):
        return re.split(r"\.(?: |$)", text)[0]
    return ", ".join(f"{name} {format_value(value)}" for name, value in load_recipe(recipe).items())


def _grid(name: str, points: dict[str, dict[str, Any]]) -> CommandOutput:
    """The recipes of a grid with their values."""
    lines = [f"{name}: a grid of {len(points)} recipes"]
    lines += align([(f"  {recipe}", _values(values)) for recipe, values in points.items()])
    return CommandOutput({"recipes": [{"name": recipe, "settings": values} for recipe, values in points.items()]}, lines)


def _values(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} = {format_value(value)}" for key, value in values.items())


def _one(name: str) -> CommandOutput:
    """The settings of a recipe for each command, as far as they differ from the defaults."""
    if name not in (known := recipe_names()):
        raise SfrikError(f"there is no profile or recipe {name!r:.100}{nearest(name, [*PROFILES, *known])}: see sfrik recipes")
    files = recipe_files(name)
    assert files is not None  # it is one of recipe_names
    lines = [name, *(line for text in _comment(name) for line in wrap(f"# {text}", "# "))]
    lines += wrap(f"settings that differ from the defaults, of {' and '.join(f'{path}.toml' for path in files.paths)}:")
    content, top = {}, load_recipe(name)
    for section in dict.fromkeys(("pretrain", *SECTIONS)):
        values = load_recipe(name, section)
        settings = SECTIONS[section].parse(values)
        content[section] = {key: getattr(settings, key) for key in values}
        # the evaluations have pretraining's images and network
        shared = {key for key in Settings.model_fields if section != "pretrain" and values.get(key) == top.get(key)}
        found = format_changes(settings, hidden=shared)
        lines += [f"{section.replace('_', '-')}:", *found] if found else []
    return CommandOutput({"recipe": name, "settings": content}, [*lines, f"next: python -m sfrik run --recipe {name}"])
