"""A table as plain text in the width of a terminal: yours, the published one, the paper's figures, and whether they agree."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sfrik.system.terminal import align, paint, text_width
from sfrik.tables.collect import EDGE, Table
from sfrik.tables.compare import REASONS, Cell, Comparison, provenance_differences
from sfrik.tables.render import MISSING, paper_cell, published_lines
from sfrik.tables.rows import Column, Row

__all__ = ["YOURS", "agreement", "as_text"]

YOURS = ("yours", "published")  # the names of A and B where these are the user's results and the published ones
NARROWEST = 16  # columns of a terminal that a heading or a label needs at least
UNITS = {"threads": ("thread", "threads"), "processes": ("process", "processes")}


@dataclass(frozen=True)
class Block:
    """Columns of text under a common heading, which is empty for those that identify a row; a cell may have several lines."""

    heading: str
    rows: list[list[str]]
    right: bool = True

    @property
    def title(self) -> list[str]:
        """The lines of the heading, not much wider than the columns."""
        return textwrap.wrap(self.heading, max(NARROWEST, max(map(text_width, align(self.rows)))))

    @property
    def width(self) -> int:
        return max(map(text_width, [*self.title, *align(self.rows)]))


def as_text(comparison: Comparison, width: int, names: tuple[str, str] = YOURS) -> list[str]:
    """The lines of a table: the means in A, those in B, and the paper's figures.

    As many columns as fit in the width are side by side, the others below. On a terminal the best values in A are bold.

    Args:
        width: of a line, in characters; in less than 60 the columns under a heading may be below each other.
        names: of A and B.
    """
    table, notes = comparison.a, [_caption(comparison, names)]
    blocks = [_block(comparison, column, names) for column in table.columns]
    for key, heading in table.experiment.paper_columns.items():
        rows = [m.row for m in table.measured if key in m.row.paper and key not in {column.name for column in table.columns}]
        if any(isinstance(row.paper[key], str) for row in rows):
            notes += [f"The paper's figures of {heading}: {_place(row)}: {row.paper[key]}." for row in rows]
        elif rows:
            blocks.append(
                Block(heading, [["paper"], *([paper_cell(m.row.paper.get(key), m.row.paper_q)] for m in table.measured)])
            )
    identity, constant = _identity(table, width - 2 - max(block.width for block in blocks))
    blocks = [part for block in blocks for part in _parts(block, width - 2 - identity.width)]
    lines = textwrap.wrap("; ".join([table.title, *constant]), width)
    while blocks:
        fit = 1
        while fit < len(blocks) and identity.width + sum(2 + block.width for block in blocks[: fit + 1]) <= width:
            fit += 1
        lines += ["", *_side_by_side([identity, *blocks[:fit]])]
        blocks = blocks[fit:]
    return [*lines, "", *_wrap([*notes, *published_lines(table), *(f"Not shown: {line}" for line in table.left_out)], width)]


def agreement(comparisons: Sequence[Comparison], width: int, names: tuple[str, str] = YOURS, measure: str = "") -> list[str]:
    """How many cells of A agree with B; the others, and what differs between their runs; and how many are not compared.

    Args:
        comparisons: of one or more tables.
        width: of a line, in characters.
        names: of A and B.
        measure: the command that measures the cells that A lacks.
    """
    lines, reasons = [], Counter()
    for comparison in comparisons:
        name = f"{comparison.b.name}: " if len(comparisons) > 1 else ""
        compared, outside = comparison.compared, comparison.outside
        if not any(m.scores for m in comparison.b.measured):
            lines.append(
                f"Nothing is published for {comparison.b.name} in profile {comparison.b.profile}: nothing to compare with."
            )
            continue
        if compared:
            ones = "the published ones" if names == YOURS else f"those of {names[1]}"
            lines.append(
                f"{name}{len(compared) - len(outside)} of {len(compared)} cells agree with {ones} (95 % prediction interval)."
            )
        for cell in outside:
            assert cell.interval is not None
            value, low, high = (f"{number:.{cell.column.digits + 1}f}" for number in (cell.mean_a, *cell.interval))
            lines.append(f"  {_place(cell.row)}, {cell.column.heading}: {value}, expected {low} to {high}")
        reasons.update(comparison.reasons)
    if any(comparison.outside for comparison in comparisons):
        lines.append(f"{_explanation(comparisons, names)} About 1 cell in 20 is outside by chance.")
    a, b = ("your results", "the published ones") if names == YOURS else names
    uncompared = [f"{count} {REASONS[reason].format(a=a, b=b)}" for reason, count in reasons.items()]
    lines += [f"Not compared: {'; '.join(uncompared)}."] if uncompared else []
    left_out = list(dict.fromkeys(line for comparison in comparisons for line in comparison.b.left_out))
    lines += [f"Left out of {b}: {len(left_out)}, such as {left_out[0]}"] if left_out else []
    return [*_wrap(lines, width), *([f"To measure what is missing: {measure}"] if measure and reasons["missing in A"] else [])]


def _wrap(lines: Sequence[str], width: int) -> list[str]:
    """Lines of at most this width, not broken at an equals sign; the parts of an indented line are indented more."""
    fixed = [line.replace(" = ", "\xa0=\xa0") for line in lines]
    parts = [part for line in fixed for part in textwrap.wrap(line, width, subsequent_indent="    " if line[:1] == " " else "")]
    return [part.replace("\xa0", " ") for part in parts]


def _block(comparison: Comparison, column: Column, names: tuple[str, str]) -> Block:
    """A column of the table in A and B, with the paper's figures for it."""
    cells = [cell for cell in comparison.cells if cell.column == column]
    usual = [_usual([cell.n_a for cell in cells]), _usual([cell.n_b for cell in cells])]
    n = "" if _same_n(comparison) else f"; {_count(comparison, *usual)}"
    best = _best(cells)
    ours = _numbers([(cell.mean_a, cell.sd_a, cell.n_a) for cell in cells], column.digits, usual[0])
    ours = _marked(ours, comparison.a, cells)
    columns = [[names[0], *(paint(text, "bold") if cell in best else text for cell, text in zip(cells, ours, strict=True))]]
    if any(cell.n_b for cell in cells):
        theirs = _numbers([(cell.mean_b, cell.sd_b, cell.n_b) for cell in cells], column.digits, usual[1])
        columns.append([names[1], *_marked(theirs, comparison.b, cells)])
    if any(column.name in cell.row.paper for cell in cells):
        q = " (q)" if any(cell.row.paper_q for cell in cells) else ""
        columns.append([f"paper{q}", *(paper_cell(cell.row.paper.get(column.name), cell.row.paper_q) for cell in cells)])
    return Block(f"{column.heading}{n if any(usual) else ''}", [list(row) for row in zip(*columns, strict=True)])


def _numbers(values: Sequence[tuple[float | None, float | None, int]], digits: int, usual: int) -> list[str]:
    """Means and standard deviations, with n in brackets where it is not the usual one, for a column that is aligned right."""
    spreads = ["" if sd is None else f"{sd:.{digits}f}" for _, sd, _ in values]
    counts = [f" ({n})" if n not in (0, usual) else "" for *_, n in values]
    room, after = max(map(len, spreads)), max(map(len, counts))
    texts = []
    for (mean, _, _), spread, count in zip(values, spreads, counts, strict=True):
        end = f" ± {spread:>{room}}" if spread else " " * (3 + room) if room and mean is not None else ""
        texts.append(MISSING if mean is None else f"{mean:.{digits}f}{end}{count:<{after}}")
    return texts


def _marked(numbers: list[str], table: Table, cells: Sequence[Cell]) -> list[str]:
    """The numbers of cells with the mark of those that have a hyperparameter at the edge of its sweep."""
    marks = [EDGE if any(m.row == cell.row and m.at_edge(cell.column.name) for m in table.measured) else "" for cell in cells]
    return [f"{number} {mark:1}" if any(marks) else number for number, mark in zip(numbers, marks, strict=True)]


def _best(cells: Sequence[Cell]) -> list[Cell]:
    """The cells with the best mean in A: of the column, or for costs of each q and batch size. Equal values have no best."""
    found = []
    groups: dict[tuple, list[Cell]] = {}
    for cell in cells:
        if cell.mean_a is not None:
            groups.setdefault((cell.row.q, *cell.row.labels.values()) if cell.row.entry else (), []).append(cell)
    for group in groups.values():
        means = [round(cell.mean_a or 0.0, cell.column.digits) for cell in group]
        best = {"higher": max(means), "lower": min(means)}.get(group[0].column.better)
        if len(set(means)) > 1:
            found += [cell for cell, mean in zip(group, means, strict=True) if mean == best]
    return found


def _identity(table: Table, room: int) -> tuple[Block, list[str]]:
    """The columns that identify a row, the last broken into lines where there is no room; and what is the same in all rows."""
    rows = [["method", "q", *table.labels]]
    rows += [
        [m.row.method, str(m.row.q or MISSING), *(m.row.labels.get(label, MISSING) for label in table.labels)]
        for m in table.measured
    ]
    columns = [list(column) for column in zip(*rows, strict=True) if len(set(column)) > 2 or column[0] == "method"]
    constant = [
        f"{name} = {value}" for name, value, *_ in zip(*rows, strict=True) if (name, value) not in ((c[0], c[1]) for c in columns)
    ]
    others = sum(2 + max(map(len, column)) for column in columns[:-1])
    columns[-1] = [textwrap.fill(text, max(NARROWEST, room - others)) for text in columns[-1]]
    return Block("", [list(row) for row in zip(*columns, strict=True)], right=False), constant


def _parts(block: Block, room: int) -> list[Block]:
    """The block, or its columns as blocks where they do not fit in a line."""
    if block.width <= room:
        return [block]
    return [Block(block.heading, [[cell] for cell in column], block.right) for column in zip(*block.rows, strict=True)]


def _side_by_side(blocks: Sequence[Block]) -> list[str]:
    """The lines of blocks with the same rows; a heading has a line below it, and lines above it where another is longer."""
    heights = [max(cell.count("\n") for block in blocks for cell in block.rows[row]) for row in range(len(blocks[0].rows))]
    tall = max(len(block.title) for block in blocks)
    columns = []
    for block in blocks:
        rows = [
            [cell + "\n" * (height - cell.count("\n")) for cell in row] for row, height in zip(block.rows, heights, strict=True)
        ]
        rule = "-" * block.width if block.title else ""
        body = align(rows, right=range(len(rows[0])) if block.right else ())
        columns.append([*[""] * (tall - len(block.title)), *block.title, rule, *body])
    return align(list(zip(*columns, strict=True)))


def _caption(comparison: Comparison, names: tuple[str, str]) -> str:
    """What the columns are, with n where all columns have the same."""
    seeds = [[getattr(cell, n) for cell in comparison.cells] for n in ("n_a", "n_b")]
    parts: dict[str, list[str]] = {}
    for name, root, counts in zip(names, (comparison.root_a, comparison.root_b), seeds, strict=True):
        if n := _usual(counts):
            other = "" if set(counts) <= {0, n} else " where no other is in brackets"
            count = f"{_count(comparison, n)}{other}" if _same_n(comparison) else "n as given above"
            spread = "" if n == 1 and _same_n(comparison) and not other else "mean ± standard deviation, "
            parts.setdefault(spread + count, []).append(name if names == YOURS else f"{name} ({root})")
    texts = [f"{' and '.join(sides)}: {text}" for text, sides in parts.items()]
    experiment, rows = comparison.a.experiment, [m.row for m in comparison.a.measured]
    if any(row.paper for row in rows):
        q = ", its q in brackets" if any(row.paper_q for row in rows) else ""
        texts.append(f"paper: the paper's figures{q}, not measured here ({experiment.setting}; {comparison.a.source})")
    caption = "".join(f"{text[0].upper()}{text[1:]}. " for text in texts)
    notes = caption.strip(), comparison.a.load_note, comparison.a.edge_note or comparison.b.edge_note
    return " ".join(note for note in notes if note)


def _count(comparison: Comparison, *numbers: int) -> str:
    """Numbers of seeds as "n = 3 and 1", of repetitions as "3 and 1 repetitions"."""
    shown = [str(n) for n in dict.fromkeys(numbers) if n]
    text = " and ".join(shown)
    return f"n = {text}" if comparison.a.experiment.stages else f"{text} repetition{'' if shown == ['1'] else 's'}"


def _usual(counts: Sequence[int]) -> int:
    """The most frequent number of seeds or repetitions of the cells that were measured; 0 if none was."""
    found = Counter(n for n in counts if n)
    return found.most_common(1)[0][0] if found else 0


def _same_n(comparison: Comparison) -> bool:
    """Whether this most frequent number is the same in all columns."""
    columns = comparison.a.columns
    pairs = [[(cell.n_a, cell.n_b) for cell in comparison.cells if cell.column == column] for column in columns]
    return all(len({_usual([pair[side] for pair in column]) for column in pairs} - {0}) <= 1 for side in (0, 1))


def _place(row: Row) -> str:
    return ", ".join(
        [row.method, *([f"q = {row.q}"] if row.q else []), *(f"{name} {value}" for name, value in row.labels.items())]
    )


def _explanation(comparisons: Sequence[Comparison], names: tuple[str, str]) -> str:
    """What differs between the runs whose cells do not agree, as they record it."""
    sides = provenance_differences(comparisons)
    if not sides[0]:
        return (
            "The records of these runs name no difference; most often it is the precision, the number of threads or processes, "
            "the processor, the release of PyTorch, the commit or the data."
        )
    texts = (", ".join(_fact(*fact) for fact in facts.items()) for facts in sides)
    return f"What differs: {'; '.join(f'{name}: {text}' for name, text in zip(names, texts, strict=True))}."


def _fact(kind: str, values: Sequence[str]) -> str:
    """A kind of fact with its values, such as `2 threads`, `torch 2.10.0` or `code 0123456789ab, ba9876543210 and 7 others`."""
    shown = [*values[:2], f"{len(values) - 2} others"] if len(values) > 3 else list(values)
    text = " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
    if kind in UNITS:
        return f"{text} {UNITS[kind][shown != ['1']]}"
    return text if kind in ("device", "precision") else f"{kind} {text}"
