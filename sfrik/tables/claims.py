"""The paper's claims compared with the measurements of a profile: the contrasts of contrasts.toml, with intervals and verdicts.

A contrast is computed for each seed that all its rows have, so that the seeds are paired: runs of one seed start from the same
weights and see the same order of images. So are the repetitions of a measurement of costs, in which all methods take turns in one
process. What the interval, the corrected p value and the verdict are: `sfrik.tables.inference` and docs/reproducibility.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfrik.errors import SfrikError
from sfrik.runs.correctness import unpack
from sfrik.settings import run_folder
from sfrik.tables.collect import Table, build_table
from sfrik.tables.contrasts import Cells, Contrast, Family, families
from sfrik.tables.inference import LEVEL, Estimate, estimate, holm
from sfrik.tables.measured import Measured
from sfrik.tables.rows import Column

__all__ = ["EQUAL", "Result", "claims", "measure", "verdict"]

EQUAL = "equal within the margin"


@dataclass(frozen=True)
class Result:
    """A contrast, measured.

    Attributes:
        contrast: the contrast.
        estimate: None if a cell is missing.
        p: of the test of no difference, with Holm's correction; 1 if there is none.
        p_equal: of the tests that the difference is at least the margin, with Holm's correction; 1 if there is none.
        verdict: one of those of `verdict`.
        secondary: estimates by the family's secondary columns, None where a cell is missing; empty if the contrast names its own.
    """

    contrast: Contrast
    estimate: Estimate | None
    p: float
    p_equal: float
    verdict: str
    secondary: Mapping[str, Estimate | None]


def claims(profile: str = "digits", root: str | Path | None = None) -> list[tuple[Family, list[Result]]]:
    """The families of contrasts of a profile with their results. The correction counts those that are not measured too.

    Args:
        profile: digits, photos, ...
        root: the folder of the results; `runs_root()` when None.
    """
    found = families(profile)
    names = {cells.table for family in found for contrast in family.contrasts for cells in (*contrast.higher, *contrast.lower)}
    tables = {name: build_table(name, profile, root) for name in sorted(names)}
    return [(family, _results(family, tables, root)) for family in found]


def verdict(found: Estimate | None, p: float, p_equal: float, repeated: str = "seed") -> str:
    """Whether a claim holds: one of four verdicts, or "not measured".

    A difference that is both significant and within the margin is equal within the margin.

    Args:
        found: the contrast; None if it is not measured.
        p: of the test of no difference, corrected.
        p_equal: of the tests that the difference is at least the margin, corrected.
        repeated: what n counts.
    """
    if found is None:
        return "not measured"
    if found.error is None:
        return f"undecided (one {repeated})" if found.n == 1 else "undecided (no spread)"
    if p_equal < LEVEL:
        return EQUAL
    if p < LEVEL:
        return "holds" if found.mean > 0 else "does not hold"
    return "undecided"


def measure(
    contrast: Contrast, column: str, family: Family, tables: Mapping[str, Table], root: str | Path | None = None
) -> Estimate | None:
    """A contrast in a column of its tables; None if no seed has all its cells."""
    higher, lower = ([_row(cells, tables) for cells in side] for side in (contrast.higher, contrast.lower))
    seeds = sorted(set.intersection(*(set(m.scores.get(column, ())) for m in (*higher, *lower))))
    if not seeds:
        return None
    more, less = ([sum(m.scores[column][seed] for m in side) for seed in seeds] for side in (higher, lower))
    if family.relative:
        return estimate([100 * (1 - b / a) for a, b in zip(more, less, strict=True)], exact=True) if all(more) else None
    definition = next(each for each in tables[contrast.table].columns if each.name == column)
    bits = [[_bits(m, definition, seed, root) for m in (*higher, *lower)] for seed in seeds]
    of_images = {_images(m, definition, seed) for m in (*higher, *lower) for seed in seeds}
    on_images = None
    if all(each is not None for of_seed in bits for each in of_seed) and len(of_images) == 1:
        signs = [100.0] * len(higher) + [-100.0] * len(lower)
        on_images = [sum(sign * each for sign, each in zip(signs, of_seed, strict=True)) for of_seed in bits]
    return estimate([a - b for a, b in zip(more, less, strict=True)], on_images)


def _results(family: Family, tables: Mapping[str, Table], root: str | Path | None) -> list[Result]:
    found = [measure(contrast, contrast.column, family, tables, root) for contrast in family.contrasts]
    p = holm([1.0 if each is None else each.p for each in found])
    p_equal = holm([1.0 if each is None else each.p_equal(family.margin) for each in found])
    results = []
    for contrast, each, corrected, equal in zip(family.contrasts, found, p, p_equal, strict=True):
        columns = family.secondary if contrast.column == family.primary else ()
        secondary = {column: measure(contrast, column, family, tables, root) for column in columns}
        found_verdict = verdict(each, corrected, equal, family.repeated)
        results.append(Result(contrast, each, corrected, equal, found_verdict, secondary))
    return results


def _row(cells: Cells, tables: Mapping[str, Table]) -> Measured:
    return next(m for m in tables[cells.table].measured if cells.matches(m.row))


def _bits(measured: Measured, column: Column, seed: int, root: str | Path | None) -> Any:
    """Which test images are classified correctly, bool [images]; None if the score does not record it.

    Raises:
        SfrikError: the bits are broken, or are not those of the accuracy; the message names the file.
    """
    if seed not in measured.correct.get(column.name, {}):
        return None
    text, images = measured.correct[column.name][seed]
    path = run_folder(measured.row.recipe, seed, root) / f"{column.score}.json"
    try:
        bits = unpack(text, images)
    except SfrikError as error:
        raise SfrikError(f"{path}: {error}") from None
    if abs(100 * bits.mean() - measured.scores[column.name][seed]) > 50 / images:
        raise SfrikError(f"{path}: the bits of correct images are not those of {'.'.join(column.key)}: measure the score again")
    return bits


def _images(measured: Measured, column: Column, seed: int) -> str:
    """What a score records of its test images, to compare."""
    images = measured.correct.get(column.name, {}).get(seed, ("", 0))[1]
    return f"{images} {measured.data.get(column.score, {}).get(seed, {}).get('test')}"
