"""A page for each recipe that was run: the score of each seed, each a link to the file that it stands in.

A mean of a table leads here, and from here to the run: <root>/<profile>/<recipe>/README.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sfrik.settings import results_root
from sfrik.system.files import is_there, write_text
from sfrik.system.records import Provenance, read_record
from sfrik.tables.collect import MISSING, build_table, seeds_there
from sfrik.tables.definitions import EXPERIMENTS
from sfrik.tables.rows import Column, Row

__all__ = ["write_cards"]


def write_cards(profile: str, root: str | Path | None = None) -> list[Path]:
    """Write the page of every recipe of the profile that has a score; the pages.

    Args:
        root: the folder of the results.
    """
    root = Path(root or results_root())
    found: dict[str, Card] = {}
    for name, experiment in EXPERIMENTS.items():
        if profile not in experiment.profiles:
            continue
        for measured in build_table(name, profile, root).measured:
            card = found.setdefault(measured.row.recipe, Card(measured.row))
            for column in experiment.columns(profile) if measured.seeds else []:
                if measured.row.entry is None and column.name in measured.scores:
                    card.scores[column.name] = (column, measured.scores[column.name])
            if measured.seeds:
                card.tables[name] = None
    pages = []
    for recipe, card in found.items():
        folder = root / recipe
        if card.tables and folder.is_dir():
            write_text(folder / "README.md", card.as_markdown(folder))
            pages.append(folder / "README.md")
    return pages


class Card:
    """What is known of one recipe: its scores by column and seed, and the tables that show them."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.scores: dict[str, tuple[Column, dict[int, float]]] = {}
        self.tables: dict[str, None] = {}

    def as_markdown(self, folder: Path) -> str:
        about = " · ".join([self.row.method, *([f"q = {self.row.q}"] if self.row.q else []), *self.row.labels.values()])
        lines = [f"# {self.row.recipe}", ""]
        if self.row.entry is None:
            lines += [f"{about}. The recipe: `sfrik/recipes/{self.row.recipe}.toml`."]
        lines += [f"Shown in {', '.join(f'[{name}](../tables/{name}.md)' for name in self.tables)}.", ""]
        columns = [column for column, _ in self.scores.values()]
        header = ["seed", *(column.heading for column in columns), "commit", "started", "files"]
        lines += [_row(header), _row(["---"] * len(header))]
        for seed in seeds_there(self.row.recipe, folder.parents[1]):
            run = folder / f"seed{seed}"
            record = run / "provenance.json"
            origin = read_record(record, Provenance) if is_there(record) else {}
            cells = [f"[{seed}]({run.name})", *(_number(*self.scores[column.name], run.name, seed) for column in columns)]
            lines.append(_row([*cells, origin.get("commit", MISSING)[:12], origin.get("started", MISSING), _files(run)]))
        lines += ["", "A number leads to the file that it stands in, which names the weights, the settings and the commit.", ""]
        return "\n".join(lines)


def _number(column: Column, by_seed: dict[int, float], run: str, seed: int) -> str:
    if seed not in by_seed:
        return MISSING
    name = "metrics.jsonl" if column.score == "metrics" else f"{column.score}.json"
    return f"[{by_seed[seed]:.{column.digits}f}]({run}/{name})"


def _files(run: Path) -> str:
    """The run's records and executed notebooks, each a link."""
    notebooks = sorted(path.name for path in run.glob("*.ipynb") if not path.name.endswith(".partial.ipynb"))
    names = [name for name in ("settings.json", "provenance.json", "metrics.jsonl") if (run / name).is_file()]
    names += sorted(path.name for path in run.glob("table*.json"))  # the measurements of tables 5 and 6
    return " ".join(f"[{name.removesuffix('.ipynb')}]({run.name}/{name})" for name in (*names, *notebooks))


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
