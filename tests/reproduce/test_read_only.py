"""Commands that only read write nothing: they work on a read-only mount."""

from __future__ import annotations

import pytest
from finished import finished_run

from sfrik.cli import main
from sfrik.reproduce.kernel import Kernel
from sfrik.system.files import write_text
from sfrik.tables.collect import build_table
from sfrik.tables.definitions import rows_of
from sfrik.tables.render import as_csv, as_markdown

RECIPE = "smoke/crops_sfrik_l3_q64"


@pytest.fixture
def root(tmp_path):
    """Table 8 of the smoke profile, finished and rendered."""
    root = tmp_path / "results"
    for row in rows_of("table8", "smoke"):
        finished_run(root, row.recipe, stages=("pretrain", "knn"))
    table = build_table("table8", "smoke", root, 1)
    texts = {"tables/table8.csv": as_csv(table), "tables/table8.md": as_markdown(table)}
    texts |= {"notebooks/07_table8.ipynb": "{}"}
    for name, text in texts.items():
        write_text(root / "smoke" / name, text)
    return root


COMMANDS = {
    "status": ["status", "--profile", "smoke"],
    "status in JSON": ["status", "table8", "--profile", "smoke", "--json"],
    "the dry run of a table": ["table", "table1", "--profile", "smoke", "--dry-run"],
    "the dry run of all tables": ["table", "all", "--profile", "smoke", "--dry-run"],
    "the dry run of a run": ["run", "--recipe", "smoke/sfrik_l3_q64", "--dry-run"],
    "a finished run": ["run", "--recipe", RECIPE, "--stages", "pretrain", "knn"],
    "a finished table": ["table", "table8", "--profile", "smoke"],
    "a rendered table": ["table", "table8", "--profile", "smoke", "--render-only"],
}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_reading_writes_nothing(root, monkeypatch, arguments):
    def started(*arguments):
        pytest.fail("a kernel was started")

    monkeypatch.setattr(Kernel, "manager", started)
    monkeypatch.setattr("sfrik.system.locks.os.access", lambda path, mode: False)  # as on a read-only mount; root ignores modes
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert main([*arguments, "--results", str(root)]) == 0
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
