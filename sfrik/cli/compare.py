"""`sfrik compare`: do the scores of two folders of runs agree?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sfrik.cli.flags import add_command, add_profile, path
from sfrik.cli.output import CommandOutput, add_json
from sfrik.errors import SfrikError, nearest
from sfrik.settings import published_root, runs_root
from sfrik.system.terminal import terminal_width

if TYPE_CHECKING:
    from sfrik.tables.compare import Comparison

__all__ = ["add_compare"]

COMPARE = "Compare your tables with the published ones. Other folders of runs can be compared too."
NAMES = "up to two folders of runs, by default runs and results; and table1 to table9, which are also printed"


def add_compare(commands) -> None:
    compare = add_command(commands, "compare", COMPARE)
    compare.add_argument("names", nargs="*", metavar="A B TABLE", type=path, help=NAMES)
    add_profile(compare)
    add_json(compare)
    compare.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> CommandOutput:
    from sfrik.reproduce.commands import table_command
    from sfrik.tables.compare import compare_tables
    from sfrik.tables.definitions import EXPERIMENTS, tables_of

    profile, known = options.profile, tables_of(options.profile)
    named = [name for name in dict.fromkeys(options.names) if name in EXPERIMENTS]
    a, b = _folders([name for name in options.names if name not in EXPERIMENTS], profile)
    comparisons = [compare_tables(name, profile, a, b) for name in named or known]
    for comparison in comparisons if named else ():
        for root, table in ((a, comparison.a), (b, comparison.b)):
            if not any(m.scores for m in table.measured):
                raise SfrikError(f"{table.name} has no scores in {root / profile}: {table_command(table.name, profile, root)}")
    comparisons = [c for c in comparisons if any(cell.n_a for cell in c.cells) and any(cell.n_b for cell in c.cells)]
    if not comparisons:
        raise SfrikError(f"no table of profile {profile} has scores in both {a} and {b}")
    outside = sum(len(comparison.outside) for comparison in comparisons)
    compared = sum(len(comparison.compared) for comparison in comparisons)
    content = {"a": str(a), "b": str(b), "profile": profile, "compared": compared, "agree": compared - outside}
    content["tables"] = [comparison.as_json() for comparison in comparisons]
    return CommandOutput(content, _lines(comparisons, bool(named)), int(outside > 0))


def _folders(given: Sequence[str], profile: str) -> tuple[Path, Path]:
    """The folders A and B: those given, or the user's and the published results.

    Raises:
        SfrikError: there are more than two, they are the same, or one has no results of the profile.
    """
    from sfrik.reproduce.commands import table_command
    from sfrik.tables.definitions import tables_of

    known = tables_of(profile)
    if len(given) > 2:
        raise SfrikError(f"two folders are compared, got {len(given)}: {', '.join(given)}{nearest(given[2], known)}")
    a, b = (Path(folder) for folder in (*given, *(runs_root(), published_root())[len(given) :]))
    for root in (a, b):
        if not (root / profile).is_dir():
            remedy = f"a folder such as {runs_root()} is needed, with {profile}/ in it"
            remedy = table_command(known[0], profile) if root == runs_root() else remedy
            raise SfrikError(f"there are no results of profile {profile} in {root}{nearest(str(root), known)}: {remedy}")
    if a.resolve() == b.resolve():
        raise SfrikError(f"{a} and {b} are the same folder")
    return a, b


def _lines(comparisons: Sequence[Comparison], whole: bool) -> list[str]:
    """The agreement of tables, after each of them where the `whole` tables are to be printed."""
    from sfrik.tables.text import YOURS, agreement, as_text

    a, b, width = comparisons[0].root_a, comparisons[0].root_b, terminal_width()
    names = YOURS if (a, b) == (runs_root(), published_root()) else ("A", "B")
    lines = []
    for comparison in comparisons if whole else ():
        lines += [*as_text(comparison, width, names), ""]
    if not whole:
        lines.append(f"{names[0]}: {a}, {names[1]}: {b}")
    return [*lines, *agreement(comparisons, width, names)]
