"""A check of a rendered table that several test files share."""

import json
from pathlib import Path

from sfrik.tables.definitions import rows_of


def assert_cells_are_scores(folder: Path, table: str) -> None:
    """Assert that each row holds the scores of its run with seed 0: linear probing, logistic regression, 20-NN."""
    lines = (folder / "tables" / f"{table}.csv").read_text(encoding="utf-8").splitlines()
    rows = rows_of(table, folder.name)
    assert len(lines) == 1 + len(rows)
    for row, line in zip(rows, lines[1:], strict=True):
        assert line.startswith(f"{row.method},")
        for protocol in ("linear", "knn", "logistic"):
            score = json.loads((folder.parent / row.recipe / "seed0" / f"{protocol}.json").read_text(encoding="utf-8"))
            value = score["top1_at"]["20"] if protocol == "knn" else score["top1"]
            assert f"{value:.3f}" in line
