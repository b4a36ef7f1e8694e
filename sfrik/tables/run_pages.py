"""One page per recipe with the scores of each seed, linked to the score files: <root>/<profile>/<recipe>/README.md.

The numbers of a table link to these pages.
"""

from __future__ import annotations

from pathlib import Path

from sfrik.runs.provenance import format_code
from sfrik.settings import runs_root
from sfrik.settings.recipes import recipe_files
from sfrik.system.files import path_exists, write_text
from sfrik.system.records import Provenance, read_record
from sfrik.tables.collect import build_table, existing_seeds
from sfrik.tables.definitions import experiment, tables_of
from sfrik.tables.render import MISSING, left_out_lines, markdown_table
from sfrik.tables.rows import Column, Row

__all__ = ["write_run_pages"]


def write_run_pages(profile: str, root: str | Path | None = None) -> list[Path]:
    """Write the page of every recipe of the profile that has a score, or one that is left out.

    Args:
        profile: the profile whose recipes are considered.
        root: the folder of the results; `runs_root()` when None.

    Returns:
        The paths of the pages.
    """
    root = Path(root or runs_root())
    pages: dict[str, RunPage] = {}
    for name in tables_of(profile):
        table = build_table(name, profile, root)
        for measured in table.measured:
            page = pages.setdefault(measured.row.recipe, RunPage(measured.row))
            for column in experiment(name, profile).columns(profile) if measured.seeds else []:
                if measured.row.entry is None and column.name in measured.scores:
                    page.scores[column.name] = (column, measured.scores[column.name])
            if measured.seeds or measured.left_out:
                page.tables[name] = None
            page.left_out |= dict.fromkeys(line for line in table.left_out if line.startswith(f"{measured.row.recipe} "))
    written = []
    for recipe, page in pages.items():
        folder = root / recipe
        if page.tables and folder.is_dir():
            write_text(folder / "README.md", page.as_markdown(folder))
            written.append(folder / "README.md")
    return written


class RunPage:
    """The page of one recipe: its scores by column and seed, and the tables that show them."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.scores: dict[str, tuple[Column, dict[int, float]]] = {}
        self.tables: dict[str, None] = {}  # an ordered set
        self.left_out: dict[str, None] = {}

    def as_markdown(self, folder: Path) -> str:
        about = " · ".join(self.row.parts)
        lines = [f"# {self.row.recipe}", ""]
        if self.row.entry is None:
            files = recipe_files(self.row.recipe)  # a grid has one file for all of its recipes
            lines += [f"{about}. Recipe: `sfrik/recipes/{files.paths[1] if files else self.row.recipe}.toml`."]
        lines += [f"Shown in {', '.join(f'[{name}](../tables/{name}.md)' for name in self.tables)}.", ""]
        columns = [column for column, _ in self.scores.values()]
        unit = "repetition" if self.row.entry else "seed"
        header = [unit, *(column.heading for column in columns), "code", "started", "files"]
        rows = []
        for seed in existing_seeds(self.row.recipe, folder.parents[1]):
            run = folder / f"seed{seed}"
            record = run / "provenance.json"
            origin = read_record(record, Provenance) if path_exists(record) else {}
            cells = [f"[{seed}]({run.name})", *(_number(*self.scores[column.name], run.name, seed) for column in columns)]
            rows.append([*cells, format_code(origin) or MISSING, origin.get("started", MISSING), _files(run)])
        note = "A number links to its score file, which names the weights, the settings and the commit."
        if self.row.entry:
            note = "The files of a table name the settings, the hardware, the load of the machine and the commit."
        return "\n".join([*lines, *markdown_table(header, rows), "", note, "", *left_out_lines(list(self.left_out))])


def _number(column: Column, by_seed: dict[int, float], run: str, seed: int) -> str:
    if seed not in by_seed:
        return MISSING
    name = "metrics.jsonl" if column.score == "metrics" else f"{column.score}.json"
    return f"[{by_seed[seed]:.{column.digits}f}]({run}/{name})"


def _files(run: Path) -> str:
    """Links to the records and executed notebooks of a run."""
    notebooks = sorted(path.name for path in run.glob("*.ipynb") if not path.name.endswith(".partial.ipynb"))
    names = [name for name in ("settings.json", "provenance.json", "metrics.jsonl") if (run / name).is_file()]
    names += sorted(path.name for path in run.glob("table*.json"))  # the measurements of tables 5 and 6
    return " ".join(f"[{name.removesuffix('.ipynb')}]({run.name}/{name})" for name in (*names, *notebooks))
