"""The page of a recipe shows the scores of its files and links to them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sfrik.system.files import write_json
from sfrik.tables.render import write_table
from sfrik.tables.run_pages import write_run_pages

ROOT = Path(__file__).parents[2]


def score(root, recipe, seed, protocol, facts):
    folder = root / "digits" / recipe / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{protocol}.json", {"protocol": protocol, **facts})


def links(page):
    return re.findall(r"\[([^\]]+)\]\(([^)]+)\)", page.read_text(encoding="utf-8"))


def test_each_number_of_a_page_links_to_its_score_file(tmp_path):
    for seed, value in enumerate((91.26, 92.0)):
        score(tmp_path, "sfrik_l2_q512", seed, "linear", {"top1": value})
    score(tmp_path, "sfrik_l2_q512", 1, "knn", {"top1_at": {"20": 88.04}})
    write_table("table1", "digits", tmp_path)
    (page,) = write_run_pages("digits", tmp_path)
    assert page == tmp_path / "digits" / "sfrik_l2_q512" / "README.md"
    found = dict(links(page))
    assert found["91.3"] == "seed0/linear.json"
    assert found["92.0"] == "seed1/linear.json"
    assert found["88.0"] == "seed1/knn.json"
    assert found["table1"] == "../tables/table1.md"
    assert "table5" not in found
    assert "| [0](seed0) | [91.3](seed0/linear.json) | – |" in page.read_text(encoding="utf-8"), "seed 0 has no kNN score"


def test_a_recipe_without_a_score_gets_no_page(tmp_path):
    (tmp_path / "digits" / "auh_q512" / "seed0").mkdir(parents=True)
    assert write_run_pages("digits", tmp_path) == []


@pytest.mark.parametrize("page", sorted((ROOT / "results" / "digits").glob("*/README.md")), ids=lambda page: page.parent.name)
def test_the_committed_pages_agree_with_their_files(page):
    for text, target in links(page):
        path = page.parent / target
        assert path.exists() or target.startswith("../tables/"), target
        if path.suffix == ".json" and re.fullmatch(r"[\d.]+", text):
            values = [v for v in walk(json.loads(path.read_text(encoding="utf-8"))) if isinstance(v, float)]
            assert any(f"{value:.{len(text.partition('.')[2])}f}" == text for value in values), (text, target)


def walk(value):
    if isinstance(value, dict):
        for inner in value.values():
            yield from walk(inner)
    else:
        yield value


def test_the_page_of_a_recipe_of_a_grid_names_the_file_of_the_grid(tmp_path):
    folder = tmp_path / "photos" / "tune_vicreg_q128_sim2.5_lr5" / "seed0"
    folder.mkdir(parents=True)
    write_json(folder / "linear_tune.json", {"protocol": "linear_tune", "top1": 40.0})
    (page,) = write_run_pages("photos", tmp_path)
    (file,) = re.findall(r"Recipe: `(.*?)`", page.read_text(encoding="utf-8"))
    assert file == "sfrik/recipes/photos/tune_vicreg_q128.toml"
    assert (ROOT / file).is_file()
