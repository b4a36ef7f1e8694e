"""The pages under docs/ and README.md: links have targets, the tests they name exist, the picture of the imports is current."""

from __future__ import annotations

import ast
import html
import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "results" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def defined_in(name: str) -> set[str]:
    (path,) = (ROOT / "tests").rglob(name)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_has_a_target(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith(("http://", "https://"))]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_each_fault_in_the_tables_names_tests_that_exist():
    tables = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8").split("| test |\n|---|---|---|---|---|\n")[1:]
    table = [line for part in tables for line in part.split("\n\n")[0].splitlines()]
    assert len(tables) == 3
    assert len(table) > 30
    for line in table:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert len(cells) == 5, line
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", cells[4])
        assert named, f"no test is named for: {cells[0]}"
        assert all(test in defined_in(name) for name, test in named), cells[4]


def test_each_mean_and_deviation_in_the_readme_is_in_a_table_of_the_results():
    results = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "results" / "digits" / "tables").glob("*.md"))
    named = re.findall(r"-?\d+(?:\.\d+)? ± \d+(?:\.\d+)?", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(named) > 50
    assert [number for number in named if f"[{number}]" not in results] == []


def load_tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def drawing():
    return load_tool("draw_rooms")


def test_the_picture_of_the_imports_is_what_the_code_imports_now():
    assert drawing().PICTURE.read_text(encoding="utf-8") == drawing().draw(), "python tools/draw_rooms.py draws it again"


def test_the_picture_has_a_box_for_each_package_and_refuses_a_cycle():
    packages = {path.stem for path in (ROOT / "sfrik").iterdir() if path.stem not in ("__pycache__", "recipes")}
    drawn = set(re.findall(r">(\w+)</text>", drawing().draw()))
    assert drawn == {name for name in packages if not name.startswith("__")}
    with pytest.raises(ValueError, match="cycle: a, b"):
        drawing().levels({"a": {"b"}, "b": {"a"}, "c": set()})


def test_the_map_of_the_losses_has_the_weights_that_the_library_computes(capsys):
    page = (ROOT / "docs" / "map.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(example, {})
    printed = [line.rsplit(maxsplit=4)[1:] for line in capsys.readouterr().out.splitlines()]
    rows = [line.split("|")[2:6] for line in page.splitlines() if re.match(r"\| (SFRIK|AUH|SimCLR|VICReg|SIGReg)", line)]
    assert len(rows) == 6
    assert [list(map(float, row)) for row in rows] == [list(map(float, row)) for row in printed]


def test_the_picture_of_the_map_shows_the_weights_that_the_library_computes():
    pytest.importorskip("matplotlib", reason="comes with the extra notebooks")
    module = load_tool("draw_map")
    recorded = re.search("<dc:description>(.*?)</dc:description>", module.PICTURE.read_text(encoding="utf-8"), re.DOTALL)
    assert json.loads(html.unescape(recorded[1])) == module.spectra(), "python tools/draw_map.py draws it again"
