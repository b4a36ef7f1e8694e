"""`sfrik diagnose RUN`: whether a run has collapsed, what shows it, and what to do about it."""

from __future__ import annotations

import argparse
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sfrik.cli.flags import add_command, add_data_dir, path, whole_number
from sfrik.cli.output import CommandOutput, add_json
from sfrik.errors import SfrikError, nearest
from sfrik.runs.examples import example_run
from sfrik.runs.scores import run_problem
from sfrik.settings import recipe_names, recipe_settings, run_folder
from sfrik.system.files import check_text
from sfrik.system.terminal import align, paint, terminal_width, wrap

if TYPE_CHECKING:
    from sfrik.evaluate.collapse import Diagnosis

__all__ = ["add_diagnose"]

DESCRIPTION = "Check the embeddings of a run for collapse. The run may be unfinished. Exit status 1 if it has collapsed."
DEVICES = ("auto", "cpu", "cuda", "mps")
EVALUATE = "for the accuracy, evaluate the run (sfrik evaluate, knn-eval, logistic-regression)"
ADVICE = {
    "healthy": f"nothing to fix; {EVALUATE}",
    "dimensional collapse": "add degree 2 to the kernel (--sfrik-weights 1.0-40.0), or a covariance term to VICReg; if the loss "
    "has it already, lower the weight of the alignment (--sfrik-sim-coeff or its counterpart)",
    "full collapse": "raise the weight of the regulariser, which should spread the images (--sfrik-mmd-coeff, --auh-unif-coeff, "
    "--vicreg-std-coeff), or lower that of the alignment",
    "unknown": "use more images, and a run that has been trained",
}
COLOURS = {"healthy": "green", "dimensional collapse": "red", "full collapse": "red", "unknown": "yellow"}


def add_diagnose(commands) -> None:
    parser = add_command(commands, "diagnose", DESCRIPTION)
    parser.add_argument("name", metavar="RUN", type=path, help="a run's folder, or a recipe PROFILE/NAME")
    parser.add_argument("--seed", default="0", help="seed of the recipe's run, and of the views")
    parser.add_argument("--images", default="2048", help="number of training images; below q, it limits every rank")
    parser.add_argument("--figure", metavar="FILE", type=path, help="also draw the diagnosis to this .png, .svg or .pdf file")
    add_json(parser)
    parser.add_argument("--device", default="auto", help=f"one of {', '.join(DEVICES)}")
    add_data_dir(parser, "data")
    parser.set_defaults(run=_diagnose)


def _diagnose(options: argparse.Namespace) -> CommandOutput:
    seed, images = whole_number(options.seed, "--seed", 0), whole_number(options.images, "--images", 2)
    if options.device not in DEVICES:
        raise SfrikError(f"--device must be one of {', '.join(DEVICES)}, got {options.device!r}")
    if options.figure and Path(options.figure).suffix not in (".png", ".svg", ".pdf"):
        raise SfrikError(f"--figure must be a file name ending in .png, .svg or .pdf, got {options.figure!r}")
    folder = _folder(options.name, seed)
    from sfrik.evaluate.collapse import COLLAPSED, diagnose

    found = diagnose(folder, images, seed, options.device, options.data_dir)
    lines = _format(found, folder)
    if options.figure:
        _draw(found, Path(options.figure))
        lines.append(f"figure: {options.figure}")
    content = {"folder": str(folder), **asdict(found), "spread": found.spread}
    return CommandOutput(content, lines, status=int(found.verdict in COLLAPSED))


def _folder(name: str, seed: int) -> Path:
    check_text(name)
    if Path(name).is_dir():
        return Path(name)
    if name not in recipe_names():
        raise SfrikError(f"{name} is neither a folder nor a recipe{nearest(name, recipe_names())}")
    folder = run_folder(name, seed)
    if not folder.is_dir() and (example := example_run(name, seed)):
        return example
    if not folder.is_dir():
        raise SfrikError(f"there is no run in {folder}: python -m sfrik pretrain --recipe {name} --seed {seed}")
    if problem := run_problem(folder, recipe_settings(name, seed)):
        raise SfrikError(f"{folder} holds another run, {problem}: diagnose {folder} to see that one")
    return folder


def _draw(found: Diagnosis, file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")  # draws to a file, without a display
    from sfrik.plots.runs import draw_diagnosis
    from sfrik.plots.style import style, write_figure

    style()
    write_figure(draw_diagnosis(found), file)


def _format(found: Diagnosis, folder: Path) -> list[str]:
    from sfrik.evaluate.collapse import HEALTHY, LEAST_RANK, MOST_ALIGNMENT, UNKNOWN

    what = "embeddings" if found.epoch else "features"
    unaligned = found.verdict == HEALTHY and found.alignment > MOST_ALIGNMENT
    advice = f"improve the alignment, as above; {EVALUATE}" if unaligned else ADVICE[found.verdict]
    if found.verdict == UNKNOWN and found.q < 2 * LEAST_RANK:
        advice = f"no threshold fits {found.q} dimensions: compare the accuracy with that of other runs; {EVALUATE}"
    return [
        *wrap(f"{folder}: {what} of {found.n} images in {found.q} dimensions, from {found.source}, after {found.epoch} epochs"),
        "",
        *_table([("measure", "value", "should be"), *_rows(found)]),
        "",
        f"verdict: {paint(found.verdict, COLOURS[found.verdict])}",
        *(line for reason in found.reasons for line in wrap(f"  - {reason}", "    ")),
        *wrap(f"what to do: {advice}"),
    ]


def _table(rows: list[tuple[str, str, str]]) -> list[str]:
    """The rows, with the last column wrapped at the terminal's width, and the first where it leaves too little room."""
    room = terminal_width() - max(len(value) for _, value, _ in rows) - 4  # two spaces between columns
    first = min(max(len(name) for name, _, _ in rows), max(room - 24, room // 2))

    def fill(text: str, width: int) -> str:
        return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)

    return align([(fill(name, first), value, fill(end, room - first)) for name, value, end in rows], right=[1])


def _rows(found: Diagnosis) -> list[tuple[str, str, str]]:
    """One row per measure: its name, its value, and the value that it should have."""
    from sfrik.evaluate.collapse import LEAST_RANK, LEAST_UNIFORMITY, MOST_ALIGNMENT, UNKNOWN

    decided = found.verdict != UNKNOWN
    rank = f"at least {LEAST_RANK:.3g}, of {found.largest_rank}" if decided else "–"
    uniform = f"at most {-LEAST_UNIFORMITY:.2g}"
    close = f"at most {MOST_ALIGNMENT:g}; " if decided else ""
    apart = f"; {2 * found.spread:.3g} between two images" if found.spread is not None else ""
    rows = [
        ("alignment", f"{found.alignment:.3g}", f"{close}small if two views of an image agree{apart}"),
        ("uniformity", f"{found.uniformity:.3g}", f"{uniform}; 0 if all embeddings are equal" if decided else "–"),
        ("effective rank", f"{found.effective_rank:.1f}", rank),
    ]
    if found.rankme is not None:
        rows.append(("RankMe", f"{found.rankme:.1f}", "higher is better, between runs of one method on the same images"))
    test = found.uniformity_test
    intervals = {one.degree: "{:.3f} to {:.3f}".format(*one.interval) for one in test.degrees} if test else {}
    ends = {1: "1 if all embeddings are equal", 2: "1 if all are equal, or at two opposite points"}
    for degree, share in enumerate(found.energy_share, start=1):
        interval = f"; 95 % interval {intervals[degree]}" if degree in intervals else ""
        value = f"near 0; {ends[2 - degree % 2]}{interval}"
        rows.append((f"energy of degree {degree}, relative to one point", f"{share:.3f}", value))
    if test:
        usual = "above 0.05 if uniform, which few trained embeddings are"
        rows.append((f"p-value of uniformity, degrees {' and '.join(map(str, intervals))}", _p_value(test.p_value), usual))
    if found.spectrum:
        rows.append(("largest eigenvalue of the covariance", f"{found.spectrum[0]:.3g}", f"{1 / found.q:.2g} if uniform"))
    if found.left_out:
        from sfrik.kernels import format_share

        rows.append(("left out of the kernel", format_share(found.left_out), "0 if the kernel is exact; its series is cut"))
    if decided and found.features is not None:
        d = found.features.q
        rows.append(("effective rank of the features", f"{found.features.effective_rank:.1f}", f"of {d}; no threshold"))
    return rows


def _p_value(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"
