"""Draw which rooms (modules and packages of sfrik/) import which: python tools/draw_rooms.py writes docs/_static/rooms.svg.

The imports are read from the code. A room is placed one level above the highest room that it imports. An arrow that follows from
others is left out: where cli imports plots and plots imports runs, none leads from cli to runs.
"""

from __future__ import annotations

import ast
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "_static" / "rooms.svg"
WIDTH, HEIGHT = 104, 30  # of a box
COLUMN, ROW = 116, 74  # between the left edges of boxes, between the top edges of levels
STYLE = """
  rect { fill: #eef3fb; stroke: #4a6fa5; }
  text { font: 14px ui-monospace, monospace; text-anchor: middle; fill: #1f2f46; }
  path { fill: none; stroke: #6f8fbf; stroke-width: 1.3; marker-end: url(#head); }
"""


def room_imports() -> dict[str, set[str]]:
    """The other rooms that each room imports, at the top of a file or inside a function."""
    rooms = {path.stem for path in (ROOT / "sfrik").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    imports: dict[str, set[str]] = {room: set() for room in sorted(rooms) if not room.startswith("__")}
    for room, others in imports.items():
        for path in [ROOT / "sfrik" / f"{room}.py", *(ROOT / "sfrik" / room).rglob("*.py")]:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])):
                names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
                if isinstance(node, ast.ImportFrom):
                    names = [f"{node.module}.{name}" for name in names]
                others |= {name.split(".")[1] for name in names if name.startswith("sfrik.")} & imports.keys() - {room}
    return imports


def levels(imports: dict[str, set[str]]) -> dict[str, int]:
    """The length of the longest chain of imports below each room."""
    found: dict[str, int] = {}
    while len(found) < len(imports):
        ready = {room: others for room, others in imports.items() if room not in found and others <= found.keys()}
        if not ready:
            raise ValueError(f"rooms import each other in a cycle: {', '.join(sorted(imports.keys() - found.keys()))}")
        found |= {room: 1 + max((found[other] for other in others), default=-1) for room, others in ready.items()}
    return found


def direct(imports: dict[str, set[str]], level: dict[str, int]) -> list[tuple[str, str]]:
    """The imports, as (upper, lower), that do not follow from others."""
    below: dict[str, set[str]] = {}
    for room in sorted(imports, key=lambda room: level[room]):
        below[room] = imports[room].union(*(below[other] for other in imports[room]))
    return [(a, b) for a in sorted(imports) for b in sorted(imports[a]) if not any(b in below[c] for c in imports[a])]


def arrange(level: dict[str, int], arrows: list[tuple[str, str]]) -> tuple[dict[str, float], dict[tuple[str, str], list[str]]]:
    """The column of each point, and the points that each arrow passes, one per level; those at its ends are rooms."""
    chains = {(a, b): [a, *(f"{a}>{b}>{k}" for k in range(level[a] - 1, level[b], -1)), b] for a, b in arrows}
    rows: list[list[str]] = [[] for _ in range(max(level.values()) + 1)]
    for room in sorted(level):
        rows[level[room]].append(room)
    for chain in chains.values():
        for k, point in enumerate(chain[1:-1], 1):
            rows[level[chain[0]] - k].append(point)
    links: dict[str, list[str]] = {point: [] for row in rows for point in row}
    for chain in chains.values():
        for upper, lower in pairwise(chain):
            links[upper].append(lower)
            links[lower].append(upper)
    column = {point: k - len(row) / 2 for row in rows for k, point in enumerate(row)}
    for turn in range(60):  # each point moves to the mean of its neighbours above and below; a row is then spread
        for row in rows if turn % 2 else rows[::-1]:
            aim = {point: sum(column[other] for other in links[point]) / max(1, len(links[point])) for point in row}
            row.sort(key=lambda point: (round(aim[point], 6), point))
            right = -1e9
            for point in row:
                half = 0.5 if point in level else 0.12  # of the width that a box, and a passing line, need
                column[point] = max(right + half, aim[point])
                right = column[point] + half
            shift = sum(aim[point] - column[point] for point in row) / len(row)
            column |= {point: column[point] + shift for point in row}
    return column, chains


def draw() -> str:
    """The picture as SVG."""
    imports = room_imports()
    level = levels(imports)
    column, chains = arrange(level, direct(imports, level))
    left, top = min(column.values()), max(level.values())
    x = {point: round((at - left) * COLUMN + WIDTH / 2 + 4) for point, at in column.items()}
    y = {room: (top - height) * ROW + 4 for room, height in level.items()}
    lines = []
    for (a, b), chain in chains.items():
        points = [(x[a], y[a] + HEIGHT)]
        for k, point in enumerate(chain[1:-1], 1):
            middle = y[a] + k * ROW
            points += [(x[point], middle), (x[point], middle + HEIGHT)]
        points.append((x[b], y[b] - 2))
        path = f"M{points[0][0]} {points[0][1]}"
        for (x0, y0), (x1, y1) in pairwise(points):
            half = (y0 + y1) // 2
            path += f" V{y1}" if x0 == x1 else f" C{x0} {half} {x1} {half} {x1} {y1}"
        lines.append(f'<path d="{path}"><title>{escape(f"{a} imports {b}")}</title></path>')
    for room in sorted(level):
        lines.append(f'<rect x="{x[room] - WIDTH // 2}" y="{y[room]}" width="{WIDTH}" height="{HEIGHT}" rx="5"/>')
        lines.append(f'<text x="{x[room]}" y="{y[room] + 20}">{room}</text>')
    size = f"0 0 {max(x.values()) + WIDTH // 2 + 4} {top * ROW + HEIGHT + 8}"
    marker = '<marker id="head" markerWidth="7" markerHeight="7" refX="6" refY="3.5" orient="auto">'
    head = f'{marker}<path d="M0 0L7 3.5L0 7z"/></marker>'
    style = f"<style>{STYLE}  #head path {{ fill: #6f8fbf; stroke: none; marker-end: none; }}\n</style>"
    name = "<title>Which rooms of sfrik import which; arrows point down</title>"
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}">', name, style, head, *lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
    print(PICTURE.relative_to(ROOT))
