"""The pages under docs/ and README.md: what they link to is there, and the tests that they name exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "results" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def defined_in(name: str) -> set[str]:
    (path,) = (ROOT / "tests").rglob(name)
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_links_to_is_there(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    local = [link for link in links if not link.startswith(("http://", "https://"))]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_each_fault_of_the_tables_is_held_by_tests_that_exist():
    tables = (ROOT / "docs" / "faults.md").read_text().split("| test |\n|---|---|---|---|---|\n")[1:]
    table = [line for part in tables for line in part.split("\n\n")[0].splitlines()]
    assert len(tables) == 3
    assert len(table) > 30
    for line in table:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert len(cells) == 5, line
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", cells[4])
        assert named, f"no test holds: {cells[0]}"
        assert all(test in defined_in(name) for name, test in named), cells[4]


def test_each_mean_and_deviation_of_the_readme_stands_in_a_table_of_the_results():
    results = "".join(page.read_text() for page in (ROOT / "results" / "digits" / "tables").glob("*.md"))
    named = re.findall(r"-?\d+(?:\.\d+)? ± \d+(?:\.\d+)?", (ROOT / "README.md").read_text())
    assert len(named) > 50
    assert [number for number in named if f"[{number}]" not in results] == []
