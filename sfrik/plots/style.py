"""The style that all figures share: one colour, marker and line per method, everywhere; mathematical names; files.

Methods differ by colour (for colour-blind readers too), by marker, and by line style or lightness, so that a grey copy can be
read. SFRIK with L = 1, 2 and 3 has shades of one blue, the darker the larger L; its lines are solid and the heaviest. Everything
else that a figure compares (kernels, sets of points, runs without a method) has the colours of `OTHERS`, which no method has.
"""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from sfrik.system.files import atomic_write
from sfrik.system.png import smaller_png

__all__ = [
    "COLOURS",
    "MARKERS",
    "OTHERS",
    "as_math",
    "look",
    "method_of",
    "plain_log_axis",
    "save_figure",
    "size_axis",
    "style",
    "write_figure",
]

COLOURS = {
    "SFRIK L=1": "#62A8E0",
    "SFRIK L=2": "#1F6FB4",
    "SFRIK L=3": "#08306B",
    "AUH": "#009E73",
    "VICReg": "#D55E00",
    "SimCLR": "#CC79A7",
    "SIGReg": "#C58500",
    "random weights": "#6F6F6F",
    "raw pixels": "#6F6F6F",
}
MARKERS = {"SFRIK L=1": "v", "SFRIK L=2": "o", "SFRIK L=3": "s", "AUH": "P", "VICReg": "D", "SimCLR": "^", "SIGReg": "X"}
LINES: dict[str, Any] = {
    "AUH": (0, (6, 1.5)),
    "VICReg": (0, (5, 1.2, 1, 1.2)),
    "SimCLR": (0, (1.2, 1.2)),
    "SIGReg": (0, (5, 1.2, 1, 1.2, 1, 1.2)),
    "random weights": (0, (4, 3)),
    "raw pixels": (0, (1, 2)),
}
OTHERS: list[dict[str, Any]] = [
    {"color": "#882255", "marker": "h", "linestyle": "-"},
    {"color": "#999933", "marker": "<", "linestyle": (0, (5, 1.5))},
    {"color": "#000000", "marker": "d", "linestyle": (0, (4, 1, 1, 1))},
    {"color": "#8C8C8C", "marker": ">", "linestyle": (0, (1, 1.2))},
    {"color": "#44AA99", "marker": "p", "linestyle": (0, (5, 1, 1, 1, 1, 1))},
    {"color": "#661100", "marker": "8", "linestyle": (0, (8, 2))},
]
DOTS = 80  # per inch, of a figure in a notebook


def style() -> None:
    """Apply the Matplotlib settings of the project's figures; in a notebook, figures have twice the resolution of the screen."""
    plt.rcParams.update(
        {
            "figure.figsize": (6.4, 3.6),
            "figure.dpi": DOTS,
            "savefig.bbox": "tight",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.xmargin": 0.07,
            "axes.ymargin": 0.08,
            "grid.alpha": 0.3,
            "legend.frameon": False,
            "font.size": 10,
            "mathtext.fontset": "dejavusans",
        }
    )
    if "inline" in plt.get_backend():
        from IPython.core.getipython import get_ipython
        from matplotlib_inline.config import InlineBackend

        InlineBackend.instance(parent=get_ipython()).figure_formats = {"retina"}


def method_of(label: str) -> str | None:
    """The method that a label begins with: SFRIK L=3 of "SFRIK L=3, seed 0"; None if it names none."""
    return next((name for name in COLOURS if re.match(rf"{re.escape(name)}(?![\w=])", label)), None)


def look(label: str, place: int = 0) -> dict[str, Any]:
    """Colour, marker and line of the method that a label begins with; of anything else those of `OTHERS` at its place."""
    name = method_of(label)
    if name is None:
        return {**OTHERS[place % len(OTHERS)], "linewidth": 1.5, "markersize": 5.5}
    heavy = name.startswith("SFRIK")
    shape = {"marker": MARKERS.get(name, ""), "linestyle": LINES.get(name, "-")}
    return {"color": COLOURS[name], **shape, "linewidth": 2.2 if heavy else 1.4, "markersize": 6.5 if heavy else 5.5}


def as_math(text: str) -> str:
    """Text with its symbols as mathematics: $q$ = 512, SFRIK $L$ = 3, and the kernels of table 2."""
    for plain, formula in (
        (r"exp\(-s \|u - v\|\^2\)", r"$e^{-s \\|u - v\\|^2}$"),
        (r"C - \|u - v\|\^p", r"$C - \\|u - v\\|^p$"),
        (r"\b(q|n|L|b_1) ?= ?(?=\d)", "$\\1$\u00a0=\u00a0"),
    ):
        text = re.sub(plain, formula, text)
    return text


# --- axes


def size_axis(axis: Axes, sizes: list[int], title: str) -> None:
    """A logarithmic axis of sizes, with a tick and half a step of room around each."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.minorticks_off()
    axis.set(xlabel=title, xlim=(sizes[0] / 2**0.4, sizes[-1] * 2**0.4))


def plain_log_axis(axis: XAxis | YAxis) -> None:
    """Ticks of a logarithmic axis as plain numbers, such as 0.1, 10 and 500. Call it when the range of the axis is known."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 30 * low else (1.0,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))


# --- files


def save_figure(figure: Figure, stem: Path) -> None:
    """Write a figure as PNG and SVG, without a date, so that the same figure gives the same files."""
    write_figure(figure, stem.with_suffix(".png"), dpi=150, metadata={"Software": None})
    with plt.rc_context({"svg.hashsalt": "sfrik"}):
        write_figure(figure, stem.with_suffix(".svg"), metadata={"Date": None})


def write_figure(figure: Figure, path: Path, **options: Any) -> None:
    """Write a figure atomically, in the format of the path's suffix; `options` are those of `Figure.savefig`."""
    content = BytesIO()
    figure.savefig(content, format=path.suffix[1:], **options)
    written = smaller_png(content.getvalue()) if path.suffix == ".png" else content.getvalue()
    with atomic_write(path, len(written)) as file:
        file.write(written)
