"""`sfrik diagnose RUN`: is a run collapsed, by what, and what to do about it."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sfrik.cli.flags import add_command, whole
from sfrik.cli.output import Answer, add_json
from sfrik.errors import SfrikError, nearest
from sfrik.settings import recipe_names, run_folder
from sfrik.system.terminal import paint

if TYPE_CHECKING:
    from sfrik.evaluate.collapse import Diagnosis

__all__ = ["add_diagnose"]

WORDS = "Is a run collapsed? What its embeddings say, finished or not; exit status 1 if it is."
DEVICES = ("auto", "cpu", "cuda", "mps")
ADVICE = {
    "healthy": "nothing to mend here; it says nothing of accuracy: evaluate it (sfrik evaluate, knn-eval, logistic-regression)",
    "dimensional collapse": "give the kernel a degree 2 (--sfrik-weights 1.0-40.0), or VICReg a covariance term; if it has one, "
    "lower the weight of the alignment (--sfrik-sim-coeff and the like)",
    "full collapse": "nothing keeps the images apart: raise the regulariser (--sfrik-mmd-coeff, --auh-unif-coeff, "
    "--vicreg-std-coeff) or lower the weight of the alignment",
    "unknown": "look at more images, of a run that was trained",
}
COLOURS = {"healthy": "green", "dimensional collapse": "red", "full collapse": "red", "unknown": "yellow"}


def add_diagnose(commands) -> None:
    parser = add_command(commands, "diagnose", WORDS)
    parser.add_argument("name", metavar="RUN", help="a run's folder, or a recipe PROFILE/NAME")
    parser.add_argument("--seed", default="0", help="of the recipe's run, and of the views")
    parser.add_argument("--images", default="2048", help="training images to measure; fewer than q limit every rank")
    parser.add_argument("--figure", metavar="FILE", help="draw it to this file: .png, .svg or .pdf")
    add_json(parser)
    parser.add_argument("--device", default="auto", help=f"one of {', '.join(DEVICES)}")
    parser.add_argument("--data-dir", "--data_dir", help="folder of the images; the default of the settings when unset")
    parser.set_defaults(run=_diagnose)


def _diagnose(options: argparse.Namespace) -> Answer:
    seed, images = whole(options.seed, "--seed", 0), whole(options.images, "--images", 2)
    if options.device not in DEVICES:
        raise SfrikError(f"--device must be one of {', '.join(DEVICES)}, got {options.device!r}")
    if options.figure and Path(options.figure).suffix not in (".png", ".svg", ".pdf"):
        raise SfrikError(f"--figure is a file that ends in .png, .svg or .pdf, got {options.figure!r}")
    folder = _folder(options.name, seed)
    from sfrik.evaluate.collapse import COLLAPSED, diagnose

    found = diagnose(folder, images, seed, options.device, options.data_dir)
    lines = _format(found, folder)
    if options.figure:
        _draw(found, Path(options.figure))
        lines.append(f"figure: {options.figure}")
    content = {"folder": str(folder), **asdict(found), "spread": found.spread}
    return Answer(content, lines, status=int(found.verdict in COLLAPSED))


def _folder(name: str, seed: int) -> Path:
    if Path(name).is_dir():
        return Path(name)
    if name not in recipe_names():
        raise SfrikError(f"{name} is neither a folder nor a recipe{nearest(name, recipe_names())}")
    folder = run_folder(name, seed)
    if not folder.is_dir():
        raise SfrikError(f"there is no run in {folder}: python -m sfrik pretrain --recipe {name} --seed {seed}")
    return folder


def _draw(found: Diagnosis, path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")  # a file is all that is wanted: no display is needed
    from sfrik.plots.runs import draw_diagnosis
    from sfrik.plots.tables import style, write_figure

    style()
    write_figure(draw_diagnosis(found), path)


def _format(found: Diagnosis, folder: Path) -> list[str]:
    what = "embeddings" if found.epoch else "features"
    lines = [
        f"{folder}: {what} of {found.n} images in {found.q} dimensions, from {found.source}, after {found.epoch} epochs",
        "",
        *_columns([("measure", "here", "should be"), *_rows(found)]),
        "",
        f"verdict: {paint(found.verdict, COLOURS[found.verdict])}",
        *(f"  - {reason}" for reason in found.reasons),
        f"what to do: {ADVICE[found.verdict]}",
    ]
    return lines


def _rows(found: Diagnosis) -> list[tuple[str, str, str]]:
    """(measure, here, what it should be) in words."""
    from sfrik.evaluate.collapse import LEAST_RANK, LEAST_UNIFORMITY, UNKNOWN

    judged = found.verdict != UNKNOWN
    rank = f"at least {LEAST_RANK:.3g}, of {found.largest_rank}" if judged else "–"
    apart = f", against {2 * found.spread:.3g} between two images" if found.spread is not None else ""
    rows = [
        ("alignment", f"{found.alignment:.3g}", f"small: two views of one image{apart}"),
        ("uniformity", f"{found.uniformity:.3g}", f"at most {-LEAST_UNIFORMITY:.2g}; 0 is one point" if judged else "–"),
        ("effective rank", f"{found.effective_rank:.1f}", rank),
    ]
    if found.rankme is not None:
        rows.append(("RankMe", f"{found.rankme:.1f}", "compare runs of one method, with the same images: higher"))
    ends = {1: "1 is one point", 2: "1 is one point, or two opposite ones"}
    for degree, share in enumerate(found.energy_share, start=1):
        rows.append((f"energy of degree {degree}, of a point's", f"{share:.3f}", f"near 0; {ends[2 - degree % 2]}"))
    if found.spectrum:
        rows.append(("largest eigenvalue of the covariance", f"{found.spectrum[0]:.3g}", f"{1 / found.q:.2g} if uniform"))
    if judged and found.features is not None:
        d = found.features.q
        rows.append(("effective rank of the features", f"{found.features.effective_rank:.1f}", f"of {d}; no threshold"))
    return rows


def _columns(rows: list[tuple[str, str, str]]) -> list[str]:
    first, second = (max(len(row[k]) for row in rows) for k in (0, 1))
    return [f"{name:<{first}}  {value:>{second}}  {words}" for name, value, words in rows]
