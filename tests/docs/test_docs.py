"""README.md and the pages under docs/: links have targets, commands and tests exist, numbers and pictures are current."""

from __future__ import annotations

import ast
import html
import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

from sfrik.cli.main import build_parser, main
from sfrik.errors import SfrikError
from sfrik.runs.folder import Run
from sfrik.tables import build_table

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "results" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def defined_in(name: str) -> set[str]:
    (path,) = (ROOT / "tests").rglob(name)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


LINK = re.compile(r'\[[^\[\]]*\]\(([^()\s]+)(?: "[^"]*")?\)')
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page: language and text."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    headings = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """The links to files and headings that do not exist, and the addresses that are none."""
    found = []
    for link in LINK.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            found += [] if re.fullmatch(r"https://[\w-]+(\.[\w-]+)+(/[^\s<>\"]*)?", link) else [link]
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_has_a_target(page):
    assert broken_links(page) == []


def test_the_check_of_links_finds_each_kind_of_broken_link(tmp_path):
    page = tmp_path / "page.md"
    good = ["https://arxiv.org/abs/2208.00789", "page.md", "#one-part", "page.md#one-part"]
    bad = ["http://arxiv.org", "https://arxiv", "gone.md", "#gone", "page.md#gone", "#two", 'a.md "a title"']
    page.write_text("## One part!\n" + "\n".join(f"[a]({link})" for link in good + bad) + "\n```\n# Two\n```\n", encoding="utf-8")
    assert broken_links(page) == [link.split()[0] for link in bad]


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


def readme_part(name: str) -> str:
    return README.read_text(encoding="utf-8").split(f"<!-- {name} -->\n")[1].split(f"\n<!-- /{name} -->")[0].strip("\n")


def test_the_results_in_the_readme_are_those_of_the_score_files():
    tool = load_tool("readme_results")
    found = tool.found()
    assert readme_part("found").splitlines() == found, "python tools/readme_results.py writes them"
    assert readme_part("film").splitlines() == tool.film(), "python tools/readme_results.py writes it"
    rest = README.read_text(encoding="utf-8").replace(readme_part("found"), "")
    assert re.findall(r"\d\s±\s\d", rest) == [], "a measured number is outside of the part that the tool writes"
    assert len(found) == 2 + 5


def load_tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NUMBERS = load_tool("measured_numbers")


@pytest.mark.parametrize("page", NUMBERS.PAGES, ids=lambda page: page.name)
def test_the_measured_numbers_of_a_page_are_those_of_the_files_that_they_link_to(page):
    text = page.read_text(encoding="utf-8")
    assert text == NUMBERS.written(text), "python tools/measured_numbers.py writes them"
    assert NUMBERS.bare(text) == [], "a measured number does not name its file (tools/measured_numbers.py)"


def test_a_number_is_written_from_the_file_that_its_link_names():
    page, record = "../results/digits/sfrik_l2_q512/README.md", "../results/digits/diagnosis/boundary.json"
    log = "../results/digits/sfrik_l3_q512/seed0/metrics.jsonl"
    first = Run(ROOT / "results" / "digits" / "sfrik_l3_q512" / "seed0").epochs()[0]
    table = build_table("table1", "digits", ROOT / "results")
    m = next(m for m in table.measured if (m.row.method, m.row.q) == ("SFRIK L=2", 512))
    costs = {m.row.entry: m.mean("loss_ms") for m in build_table("table6", "digits", ROOT / "results").measured}
    ratio = costs["VICReg q=8192 n=512"] / costs["SFRIK L=3 q=8192 n=512"]
    entries = "table6 loss_ms VICReg q=8192 n=512 / SFRIK L=3 q=8192 n=512"
    for link, expected in {
        f'[1.0 ± 0.0]({page} "table1 knn_top1")': f"{m.mean('knn_top1'):.1f} ± {m.spread('knn_top1'):.1f}",
        f'[1]({page} \\"table1 knn_top1\\")': f"{m.mean('knn_top1'):.0f}",
        f'[1.00](../results/digits/complexity/README.md "{entries}")': f"{ratio:.2f}",
        f'[1.0]({log} "alignment step 0")': "0.0",
        f'[−1.0]({log} "uniformity epoch 0")': f"−{-first['uniformity']:.1f}",
        f'[1]({record} "trade_off of b2_1_sim16")': "32",
    }.items():
        assert NUMBERS.written(link) == re.sub(r"^\[.*?\]", f"[{expected}]", link)
        assert NUMBERS.bare(link) == []
    seeds = {len(m.seeds) for m in table.measured if m.seeds}
    text = "over n = 99 seeds; [table 1](../results/digits/tables/table1.md)"
    assert NUMBERS.written(text) == text.replace("n = 99 seeds", table.experiment.count(seeds))
    assert NUMBERS.bare("94.3 ± 0.2 %\n```\n1 ± 2\n```\n") == ["3 ± 0.2"]
    for title in ("table1 nothing", "table1 loss_ms SFRIK", "table99 knn_top1"):
        with pytest.raises((SystemExit, SfrikError)):
            NUMBERS.written(f'[1]({page} "{title}")')


INDENTED = re.compile(r"(?:^|\n\n)((?:    .*\n)+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_line_of_code_is_cut(page):
    """On GitHub and on the site, on a screen of 1280 pixels."""
    text = page.read_text(encoding="utf-8")
    lines = [line for _, block in BLOCK.findall(text) for line in block.splitlines()]
    lines += [line[4:] for block in INDENTED.findall(BLOCK.sub("", text)) for line in block.splitlines()]
    assert [line for line in lines if len(line) > 88] == []


def test_the_readme_is_a_door():
    """About 900 words, a table of at most eight rows, and code that fits narrow windows too."""
    text = README.read_text(encoding="utf-8")
    prose = re.sub(r"<!--.*?-->|\]\([^)]*\)|[|#*`\[·]", " ", BLOCK.sub("", text), flags=re.DOTALL)
    assert len(prose.split()) <= 1000
    assert max(len(line) for _, block in blocks(README) for line in block.splitlines()) <= 80
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert max(table.count("\n") - 2 for table in tables) <= 8
    assert len(tables) >= 3


def test_the_loss_of_the_readme_runs_and_its_makes_exist():
    (example,) = [block for language, block in blocks(README) if "criterion(z1, z2)" in block]
    names = {f"z{k}": torch.randn(8, 512, requires_grad=True) for k in (1, 2)}
    exec(example, names)
    assert names["loss"].shape == ()
    assert names["z1"].grad.abs().sum() > 0
    targets = re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    shell = "".join(block for language, block in blocks(README) if language == "sh")
    made = re.findall(r"^make (\w+)", shell, re.MULTILINE)
    assert {"table1", "lab"} <= set(made) <= {*targets, "table1"}


SHOWN = [
    (page, command.replace("\\\n", " "))
    for page in ("README.md", "docs/command_line.md", "docs/imagenet.md")
    for command in re.findall(r"^ *sfrik ((?:[^\n\\#]|\\\n)+)", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
]
WITHOUT_DRY_RUN = ("diagnose", "compare", "memory", "status", "env", "completion")


@pytest.mark.parametrize(("page", "command"), SHOWN, ids=lambda value: value[:60])
def test_each_command_of_a_page_is_accepted(page, command, tmp_path, monkeypatch, capsys):
    words = shlex.split(command)
    if words[0] in WITHOUT_DRY_RUN:
        build_parser().parse_args(words)
        return
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for k in range(16):
        Image.new("RGB", (8, 8), (k, k, k)).save(tmp_path / "photos" / f"{k}.png")
    assert main([*words, "--dry-run"]) == 0, capsys.readouterr().err


def drawing():
    return load_tool("draw_rooms")


def test_the_picture_of_the_imports_is_what_the_code_imports_now():
    assert drawing().PICTURE.read_text(encoding="utf-8") == drawing().draw(), "python tools/draw_rooms.py draws it again"


def test_the_picture_has_a_box_for_each_package_and_refuses_a_cycle():
    packages = {path.stem for path in (ROOT / "sfrik").iterdir() if path.name not in ("__pycache__", "recipes", "py.typed")}
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
