"""Recipes as files: which there are, and what their files contain.

    <profile>/profile.toml        the settings that the recipes of a profile share
    <profile>/<recipe>.toml       those of one recipe, which replace the profile's
    <profile>/tune_<grid>.toml    with a section [grid]: a recipe for each combination of the grid's values

**A grid** lists values for settings, `base_lr = [2.5, 5.0]`; a key such as "vicreg_sim_coeff = vicreg_std_coeff" sets several
settings to the same value. A recipe of the grid is named after the values, tune_<grid>_sim10_lr5, and each of its evaluations has
`choice = "<grid>"`: the test images are scored only after a recipe of the grid is chosen.

**A variant.** A profile.toml with `base = "cifar10"` has the recipes of that profile, and its own settings replace those of the
recipes.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from sfrik.errors import SfrikError
from sfrik.system.files import read_toml

__all__ = ["RECIPES", "TUNE", "RecipeFiles", "grid_recipes", "recipe_files", "recipe_names"]

RECIPES = Path(__file__).parents[1] / "recipes"
TUNE = "tune_"  # how the names of files with a grid start
GRID, SAME = "grid", " = "


class RecipeFiles(NamedTuple):
    """The files of a recipe, in the order in which a later one replaces the settings of the one before.

    Attributes:
        paths: names relative to `RECIPES`, without the suffix; a profile.toml may be missing.
        signatures: values that change when the files do; None if there is no file.
        point: the values of a grid, by the names of their settings; empty for a recipe with a file.
    """

    paths: tuple[str, ...]
    signatures: tuple[tuple[int, ...] | None, ...]
    point: dict[str, Any]


def recipe_names(profile: str | None = None) -> list[str]:
    """The names PROFILE/NAME of all recipes, or of one profile's."""
    folders = sorted(path.name for path in RECIPES.glob(profile or "*") if path.is_dir())
    found = []
    for folder in folders:
        stems = [path.with_suffix("").name for path in (RECIPES / (_base(folder) or folder)).glob("*.toml")]
        points = {stem: grid_recipes(folder, stem) for stem in stems if stem.startswith(TUNE)}
        names = [name for stem in stems if stem != "profile" for name in (points.get(stem) or [f"{folder}/{stem}"])]
        found += names
    return sorted(found)


def recipe_files(name: str) -> RecipeFiles | None:
    """The files of the recipe PROFILE/NAME; None if there is no such recipe.

    Raises:
        SfrikError: a profile.toml or a grid cannot be read.
    """
    profile, _, file = name.partition("/")
    if not re.fullmatch(r"[^/\\]+/[^/\\]+", name) or profile in (".", "..") or file == "profile":
        return None
    base = _base(profile)
    stem, point = file, {}
    if _signature(f"{base or profile}/{file}") is None:
        for path in (RECIPES / (base or profile)).glob(f"{TUNE}*.toml"):
            stem = path.with_suffix("").name
            if file.startswith(f"{stem}_") and name in (points := grid_recipes(profile, stem)):
                point = {setting: value for key, value in points[name].items() for setting in key.split(SAME)}
                break
        else:
            return None
    elif file.startswith(TUNE) and grid_recipes(profile, file):  # a grid itself is no recipe
        return None
    paths = (f"{base or profile}/profile", f"{base or profile}/{stem}", *([f"{profile}/profile"] if base else []))
    return RecipeFiles(paths, tuple(map(_signature, paths)), point)


def grid_recipes(profile: str, stem: str) -> dict[str, dict[str, Any]]:
    """The recipes of a grid with their values, by the keys of [grid], in its order; empty for a file without it, or no file.

    Raises:
        SfrikError: the file cannot be read, or its grid is not one of lists of different values.
    """
    path = f"{_base(profile) or profile}/{stem}"
    signature = _signature(path)
    points = _grid(RECIPES, path, signature) if signature else {}
    return {f"{profile}/{name}": settings for name, settings in points.items()}


def _base(profile: str) -> str:
    """The profile that this one is a variant of; empty if it is none."""
    signature = _signature(f"{profile}/profile")
    return _base_of(RECIPES, f"{profile}/profile", signature) if signature else ""


@lru_cache(maxsize=1024)
def _base_of(root: Path, path: str, signature: tuple[int, ...]) -> str:
    base = read_toml(root / f"{path}.toml").get("base", "")
    if base and not (isinstance(base, str) and (root / base / "profile.toml").is_file()):
        raise SfrikError(f"base in recipe {path}.toml must be the name of another profile, got {base!r}")
    return base


@lru_cache(maxsize=1024)
def _grid(root: Path, path: str, signature: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """The recipes of a grid by name, without the profile, each with its values by key."""
    grid = read_toml(root / f"{path}.toml").get(GRID, {})
    if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
        raise SfrikError(f"section [grid] in recipe {path}.toml must have lists of values, such as base_lr = [2.5, 5.0]")
    points = {}
    for values in itertools.product(*grid.values()) if grid else ():
        chosen = dict(zip(grid, values, strict=True))
        # base_lr = 5.0 becomes lr5, simclr_temp = 0.3 temp0.3, sfrik_sim_coeff = 512.0 sim512
        parts = [f"{key.split(SAME)[0].removesuffix('_coeff').split('_')[-1]}{_short(value)}" for key, value in chosen.items()]
        points["_".join([path.split("/")[1], *parts])] = chosen
    if len(points) < math.prod(map(len, grid.values())) and grid:
        raise SfrikError(f"section [grid] in recipe {path}.toml has values, or settings, that give two recipes the same name")
    return points


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _signature(path: str) -> tuple[int, ...] | None:
    """A value that changes when the file does; None if there is no file."""
    try:
        found = os.stat(RECIPES / f"{path}.toml")
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino
