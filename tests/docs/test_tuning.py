"""docs/tuning.md agrees with the recorded searches, and the recipes with their choices."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import pytest
import tuning
from pages import with_parts

from sfrik.settings import PretrainSettings, recipe_names

FOUND = {profile: json.loads(tuning.numbers(profile).read_text(encoding="utf-8")) for profile in tuning.SEARCHES}


def test_the_tables_are_rendered_from_the_recorded_runs():
    page = tuning.PAGE.read_text(encoding="utf-8")
    assert list(tuning.tables()) == ["digits", "photos"]
    assert page == with_parts(page, tuning.tables())


@pytest.mark.parametrize("profile", FOUND)
def test_each_search_is_a_grid_of_at_least_three_weights_and_the_rates_of_its_recipe(profile):
    for name, rows in FOUND[profile].items():
        search = tuning.SEARCHES[profile][name]
        for row in rows:
            assert set(row["changes"]) == {*tuning.FIXED[profile], *search.weights, "base_lr"}, name
            assert len({row["changes"][key] for key in search.weights}) == 1
        points = {(row["changes"][search.weights[0]], row["changes"]["base_lr"]) for row in rows}
        weights, rates = ({point[k] for point in points} for k in (0, 1))
        assert len(weights) >= 3
        assert len(rates) >= min(3, len(tuning.RATES[profile]))
        assert len(points) == len(rows) == len(weights) * len(rates)
        assert len({row["commit"] for row in rows if "failed" not in row}) == 1


@pytest.mark.parametrize("profile", FOUND)
def test_the_recipes_have_the_choices(profile):
    """Those of the search, and those that have no search of their own: other views, and degree 1 with the strength of L = 2."""
    for name, rows in FOUND[profile].items():
        search = tuning.SEARCHES[profile][name]
        chosen, recipe = {key: tuning.best(rows)["changes"][key] for key in (*search.weights, "base_lr")}, search.recipe
        others = [f"{recipe}_obow", f"{recipe}_swav", recipe.replace("/", "/crops_")]
        if recipe == "digits/sfrik_l2_q512":
            others += ["digits/sfrik_l1_b41_q512", "digits/sfrik_l1_b1000_q512"]
        for same in (recipe, *(other for other in others if other in recipe_names(profile))):
            settings = PretrainSettings.from_recipe(same).model_dump()
            assert {key: settings[key] for key in chosen} == chosen, same


def test_a_search_widens_where_its_best_run_is_at_an_edge(monkeypatch, tmp_path):
    """By a score with one maximum, beyond the first grid in both directions."""

    def scored(folder, recipe, changes, data_dir):
        weight, rate = changes["sfrik_sim_coeff"], changes["base_lr"]
        return {"changes": changes, "logistic": -abs(weight - 2048) - abs(rate - 100), "knn20": 0.0}

    monkeypatch.setattr(tuning, "scored", scored)
    rows = tuning.run(tuning.Search("digits/sfrik_l3_q512", tuning.SFRIK, 512.0, 30.0, 4.0), tmp_path)
    assert tuning.best(rows)["changes"] == {**tuning.FIXED["digits"], "sfrik_sim_coeff": 2048.0, "base_lr": 100.0}
    assert {row["changes"]["sfrik_sim_coeff"] for row in rows} == {128.0, 512.0, 2048.0, 8192.0}
    assert {row["changes"]["base_lr"] for row in rows} == {10.0, 30.0, 100.0, 300.0}
