"""`sfrik recipes` lists every recipe once in a line, and prints the settings of one as a dry run does."""

from __future__ import annotations

import json
import re

import pytest

from sfrik.cli import main
from sfrik.cli.flags import PROFILES
from sfrik.settings import PretrainSettings, grid_recipes, recipe_names
from sfrik.settings.recipes import RECIPES
from sfrik.tables.definitions import rows_of, tables_of


def printed(capsys, *arguments):
    assert main(["recipes", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_lists_each_recipe_once_under_its_first_table(profile, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = printed(capsys, profile)
    assert max(map(len, text.splitlines())) <= 80
    listed = re.findall(r"^    (\S+)  +\S", text, re.MULTILINE)
    points = {recipe for name in listed if name.endswith("_...") for recipe in grid_recipes(profile, name.removesuffix("_..."))}
    names = {f"{profile}/{name}" for name in listed if not name.endswith("_...")}
    assert len(listed) == len(set(listed))
    assert names | points == set(recipe_names(profile))
    for table in tables_of(profile):
        part = re.search(rf"^  {table}: .*\n((?:    .*\n)*)", text, re.MULTILINE)
        others = re.findall(rf"^    (\S+) .*\(also .*\b{table}\b", text, re.MULTILINE)
        shown = {f"{profile}/{name}" for name in [*re.findall(r"^    (\S+)", part[1] if part else "", re.MULTILINE), *others]}
        rows = {row.recipe for row in rows_of(table, profile)} & names
        assert rows == shown & names, table


def test_the_images_of_a_profile_are_in_its_heading_and_not_in_each_line(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    lines = printed(capsys).splitlines()
    assert [line for line in lines if line.startswith("    ") and re.search("MNIST5k|CIFAR-10|test the code", line)] == []
    assert [line for line in lines if re.match(r"    sfrik_l3_q128 +SFRIK L=3, q = 128, next to the paper's q = 8192", line)]
    assert [line for line in lines if re.match(r"    sfrik_l1_q64 +SFRIK L=1, q = 64$", line)]
    assert [line for line in lines if re.match(r"    in20_auh_q1024 +AUH, q = 1024, on 20 % of ImageNet", line)]


def test_without_a_profile_all_are_listed_and_a_variant_names_the_profile_whose_recipes_it_has(capsys):
    text = printed(capsys)
    profiles = re.findall(r"^(\w+): ", text, re.MULTILINE)
    assert set(profiles) == set(PROFILES)
    assert (profiles[0], profiles[-1]) == ("digits", "smoke"), "what readers run first, and the test of the software last"
    assert "  the recipes of cifar10: sfrik recipes cifar10_quick" in text.splitlines()
    content = json.loads(printed(capsys, "--json"))["recipes"]
    assert [entry["name"] for entry in content if not entry["about"]] == []
    assert {entry["name"] for entry in content} == set(recipe_names())
    assert next(entry for entry in content if entry["name"] == "digits/sfrik_l3_q512")["tables"][:2] == ["table1", "table2"]


def test_a_recipe_prints_its_comment_and_the_settings_that_a_dry_run_prints(capsys):
    recipe = "digits/sfrik_l3_q512"
    text = printed(capsys, recipe)
    first = (RECIPES / f"{recipe}.toml").read_text(encoding="utf-8").splitlines()[0]
    assert text.splitlines()[:2] == [recipe, first]
    sections = dict(re.findall(r"^([a-z0-9-]+):\n((?:  .*\n)+)", text, re.MULTILINE))
    assert next(iter(sections)) == "pretrain"
    assert main(["pretrain", "--recipe", recipe, "--dry-run"]) == 0
    assert sections["pretrain"] in capsys.readouterr().out
    names = re.findall(r"^  (\w+) ", sections["logistic-regression"], re.MULTILINE)
    assert names == ["solver", "inverse_penalties"], "the images are pretraining's"
    content = json.loads(printed(capsys, recipe, "--json"))
    assert content["settings"]["pretrain"]["epochs"] == PretrainSettings.from_recipe(recipe).epochs


def test_a_grid_lists_its_recipes_with_their_values(capsys):
    lines = printed(capsys, "photos/tune_sfrik_q512").splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(grid_recipes("photos", "tune_sfrik_q512"))
    assert re.search(r"_lr5 +sfrik_sim_coeff = \d+, base_lr = 5$", lines[1])


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("digit", "digits"),
        ("sfrik_l3_q64", "smoke/sfrik_l3_q64"),
        ("digits/kernel_heet", "digits/kernel_heat"),
        ("photos/tune_sfrik_q51", "photos/tune_sfrik_q512_sim"),
    ],
)
def test_an_unknown_name_is_one_line_with_the_nearest(name, near, capsys):
    assert main(["recipes", name]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"sfrik: error: there is no profile or recipe '{name}' (did you mean {near}")
    assert error.count("\n") == 1
