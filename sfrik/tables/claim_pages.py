"""The pages of the paper's claims: <root>/<profile>/README.md, and <root>/claims.md with the profiles beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sfrik.settings import grid_recipes, runs_root
from sfrik.settings.recipes import TUNE
from sfrik.system.files import write_text
from sfrik.tables.claims import EQUAL, Result, claims
from sfrik.tables.collect import build_table, tables_with_scores
from sfrik.tables.contrasts import Family
from sfrik.tables.definitions import grids, read_choice
from sfrik.tables.inference import Estimate
from sfrik.tables.render import MISSING, markdown_table
from sfrik.tables.rows import KNN, LINEAR

__all__ = ["PAGES", "claims_as_markdown", "overview", "write_claims"]

CONTENTS = {
    "table1": "linear probing",
    "table2": "kernels",
    "table3": "transfer",
    "table4": "all protocols",
    "table5": "memory",
    "table6": "time and memory",
    "table7": "multi-crop",
    "table8": "few labels",
    "table9": "tuning",
}

PAGE = """# The paper's claims on the {profile} profile

{images}; an eight-layer ResNet on two CPU cores: a small experiment, not a repetition of the paper's. This page is written by
`make tables` from the score files in this folder.

A contrast is a difference that its claim predicts to be positive, paired over n seeds or repetitions. The contrasts, the metric
(logistic regression where the claim names no other) and the margins are in `sfrik/tables/contrasts.toml`, which was fixed before
the first run whose scores record the correct images.

Each 95 % interval is Student's, without correction. The p value is corrected for all contrasts of its table (Holm), and decides:

- *holds*, *does not hold*: the difference is significant at 5 %, in the direction of the claim or in the other;
- *equal within the margin*: it is significantly closer to 0 than the margin, even where it differs from 0;
- *undecided*: neither. *80 % power*: the true difference that so many seeds find with a probability of 80 %, without correction.

[What a verdict on a claim means](../../docs/reproducibility.md#what-a-verdict-on-a-claim-means)

{sections}

## Notes

{notes}{edges}

{tables}
"""

SECONDARY = {column.name: column for column in (LINEAR, KNN)}
KERNELS = "The scale and the weight behind the paper's figures of the kernels are not known."
PAGES = {
    "digits": "Each method and kernel has its own weight and learning rate at each q, chosen on the tuning split with seed 0 by "
    "searches of one size ([which](../../docs/tuning.md)); L = 1 with b_1 = 41 and 1000 has those of L = 2. Fine-tuning has the "
    f"rates that were best for SFRIK L = 3 and VICReg together, at q = 512. {KERNELS}",
    "photos": "The learning rate of each method was chosen at q = 512 and the weight of each row, on the tuning split with seed "
    "0, in runs of 5 epochs ([some of them](../../docs/tuning.md#photos)). The weight of SFRIK L = 3 is in proportion to q, and "
    f"the kernels of table 2 have its rate. {KERNELS}",
}
BOTH = """# The paper's claims, profile by profile

The contrasts of accuracies, with the 95 % interval, the number of seeds and the corrected p value. The page of a profile has the
costs too, and explains the columns and verdicts: {pages}. This page is written by `make tables`.

{table}
"""


def claims_as_markdown(profile: str = "digits", root: str | Path | None = None) -> str:
    """A section for each family of contrasts: its size and margin, a table of the results, and one of the secondary columns."""
    return _sections(claims(profile, root))


def write_claims(profile: str = "digits", root: str | Path | None = None) -> Path | None:
    """Write <root>/<profile>/README.md; and <root>/claims.md, if more than one profile has a contrast there.

    Returns:
        The page of the profile; None for a profile without one (`PAGES`).
    """
    if profile not in PAGES:
        return None
    root = Path(root or runs_root())
    found = {name: claims(name, root) for name in PAGES if name == profile or (root / name).is_dir()}
    chosen = any(read_choice(profile, grid, root) for grid in grids(profile))
    parts = {
        "profile": profile,
        "images": build_table("table1", profile, root).title.partition("; ")[2],
        "sections": _sections(found[profile]),
        "notes": PAGES[profile],
        "edges": _edges_line(_choices_at_an_edge(profile, root)) if chosen else "",
        "tables": _tables_line(tables_with_scores(profile, root)),
    }
    path = root / profile / "README.md"
    write_text(path, PAGE.format(**parts))
    if text := overview(found):
        write_text(root / "claims.md", text)
    return path


def overview(found: Mapping[str, Sequence[tuple[Family, list[Result]]]]) -> str:
    """The page with the accuracies of all profiles beside each other; empty if fewer than two have a contrast that is measured.

    Args:
        found: `claims` of each profile.
    """
    accuracies = {name: _by_title(of_profile) for name, of_profile in found.items() if _by_title(of_profile)}
    pages = " · ".join(f"[{name}]({name}/README.md)" for name in accuracies)
    return BOTH.format(pages=pages, table="\n".join(_beside_each_other(accuracies))) if len(accuracies) > 1 else ""


def _sections(found: Sequence[tuple[Family, list[Result]]]) -> str:
    return "\n\n".join("\n".join(_section(family, results)) for family, results in found)


def _section(family: Family, results: Sequence[Result]) -> list[str]:
    measured = sum(1 for result in results if result.estimate)
    size = f"{len(results)} contrasts, of which {measured} are measured; margin {family.margin:g} {family.unit}."
    header = ["claim", "the paper", "contrast", f"{family.unit} [95 %]", f"n {family.repeated}s"]
    header += [*([] if family.relative else ["± test images"]), "corrected p", "verdict", f"80 % power, {family.unit}"]
    rows = []
    for result in results:
        contrast, found = result.contrast, result.estimate
        row = [contrast.claim, contrast.paper or (MISSING if contrast.claim else "")]
        row += [f"[{contrast.title}](tables/{contrast.table}.md)", _interval(found), str(found.n) if found else MISSING]
        row += [] if family.relative else [_number(found.images if found else None)]
        rows.append([*row, _p(result), result.verdict, _number(found.detectable if found else None)])
    lines = [f"## {family.title}", "", f"{family.note} {size}", "", *_table(header, rows)]
    if family.secondary:
        headings = ["contrast", *(SECONDARY[name].title for name in family.secondary)]
        rows = [[r.contrast.title, *map(_interval, r.secondary.values())] for r in results if r.secondary]
        lines += ["", "The same contrasts by other metrics, without a verdict:", "", *_table(headings, rows)]
    return lines


def _by_title(found: Sequence[tuple[Family, list[Result]]]) -> dict[str, Result]:
    """The results of the contrasts of accuracies, by title; empty if none is measured."""
    results = [result for family, of_family in found if not family.relative for result in of_family]
    return {result.contrast.title: result for result in results} if any(result.estimate for result in results) else {}


def _beside_each_other(found: Mapping[str, Mapping[str, Result]]) -> list[str]:
    """The lines of a Markdown table with a line for each contrast, and three columns for each profile."""
    contrasts = {title: result.contrast for results in found.values() for title, result in results.items()}
    header = ["claim", "the paper"]
    rows = [[contrast.claim, contrast.paper or MISSING] for contrast in contrasts.values()]
    for name, results in found.items():
        header += [f"{name}: points [95 %]", "n; p", "verdict"]
        for title, row in zip(contrasts, rows, strict=True):
            row += _short(results.get(title))
    return _table(header, rows)


def _short(result: Result | None) -> list[str]:
    if result is None or result.estimate is None:
        return [MISSING, MISSING, result.verdict if result else MISSING]
    return [_interval(result.estimate), f"{result.estimate.n}; {_p(result)}", result.verdict]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return markdown_table(header, [[text.replace("|", "‖") for text in row] for row in rows])


def _interval(found: Estimate | None) -> str:
    if found is None:
        return MISSING
    return f"{found.mean:+.2f}" + (f" [{found.interval[0]:+.2f}, {found.interval[1]:+.2f}]" if found.interval else "")


def _p(result: Result) -> str:
    if result.estimate is None or result.estimate.error is None:
        return MISSING
    p, p_equal = (f"{p:.3f}" if p >= 0.0005 else "< 0.001" for p in (result.p, result.p_equal))
    return f"{p} (equal: {p_equal})" if result.verdict == EQUAL else p


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _tables_line(names: Sequence[str]) -> str:
    """The line with links to the tables that have scores."""
    links = ", ".join(f"[{name.removeprefix('table')}](tables/{name}.md) {CONTENTS[name]}" for name in names)
    return (
        f"The tables with means, standard deviations and links to every run: {links}.\n"
        "Figures are in [figures](figures), executed notebooks in [notebooks](notebooks) and in the folder of SFRIK L = 3 at the "
        "largest q."
    )


def _edges_line(edges: Sequence[str]) -> str:
    """The sentence on the choices of table 9 at the edge of their grid."""
    return f"\nChoices of table 9 at the edge of their grid, where a wider grid may be better: {', '.join(edges) or 'none'}."


def _choices_at_an_edge(profile: str, root: str | Path | None) -> list[str]:
    """The recipes chosen in table 9 with a setting that is the first or the last of its grid, with these settings."""
    found = []
    for grid in grids(profile):
        chosen = read_choice(profile, grid, root)
        points = grid_recipes(profile, f"{TUNE}{grid}")
        values = {key: [point[key] for point in points.values()] for point in points.values() for key in point}
        if chosen:
            point = points[chosen]
            edges = [key for key, of in values.items() if len(set(of)) > 1 and point[key] in (min(of), max(of))]
            found += [f"{chosen.split('/')[-1]} ({', '.join(edges)})"] if edges else []
    return found
