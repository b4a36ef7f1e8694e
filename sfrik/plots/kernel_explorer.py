r"""A kernel b_1 P_1 + b_2 P_2 + b_3 P_3 as pictures: a table of typical ones, and sliders that change one.

A collapsed set is here the uniform law on the unit sphere of a subspace of dimension m: m = 1 is two opposite points, m = 2 a
great circle. Its odd degrees are 0 by symmetry, and E <u, v>^2 = 1/m, so up to degree 3 it costs what degree 2 asks:

    MMD^2 = b_2 (q/m - 1) / (q - 1).                            [P_2(q; t) = (q t^2 - 1) / (q - 1)]

A single point costs phi(1) = b_1 + b_2 + b_3, the most there is.

Legend: q dimension of the embeddings, b coefficients, t inner product of two unit vectors.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sfrik.errors import SfrikError
from sfrik.kernels import RotationInvariantKernel
from sfrik.plots.sphere import draw_points, flow, two_groups
from sfrik.plots.tables import COLOURS

__all__ = ["collapsed_costs", "kernel_explorer", "kernel_pictures"]

COLOUR = COLOURS["SFRIK L=2"]
START, STEPS, RATE = two_groups(120), 300, 0.5  # of the points that flow on S^2
DIMENSIONS = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
SLIDERS = "Sliders for b_1, b_2, b_3 and q: open this notebook in JupyterLab and run it to move them."


def collapsed_costs(b: Sequence[float], q: int) -> dict[str, float]:
    """MMD^2 of sets that use fewer and fewer dimensions, as a share of that of a single point; b_1, b_2, b_3 and an even q."""
    subspaces = {"two opposite points": 1, "great circle": 2, "half the dimensions": q // 2, "uniform": q}
    return {"one point": 1.0, **{name: b[1] * (q / m - 1) / (q - 1) / sum(b) for name, m in subspaces.items()}}


def kernel_pictures(kernels: Mapping[str, tuple[Sequence[float], int]]) -> Figure:
    """A row for each kernel, given as (b_1, b_2, b_3) and q: phi, its coefficients, what collapse costs, points that flow.

    Raises:
        SfrikError: no coefficient above 0.
    """
    height = 1.5 * len(kernels) + 0.9
    figure = Figure(figsize=(9.4, height), dpi=90)
    edges = {"left": 0.14, "right": 0.995, "bottom": 0.46 / height, "top": 1 - 0.36 / height, "wspace": 0.15, "hspace": 0.22}
    ratios = {"width_ratios": [1.5, 1, 0.95, 1.9, 1.2]}  # the third holds the names of the fourth
    grid = np.delete(figure.subplots(len(kernels), 5, squeeze=False, gridspec_kw={**edges, **ratios}), 2, axis=1)
    for row, (name, (b, q)) in zip(grid, kernels.items(), strict=True):
        if not any(b):
            raise SfrikError(f"{name}: all coefficients are 0, and a kernel needs one above 0")
        _phi(row[0], RotationInvariantKernel(tuple(b), q))
        _bars(row[1], {f"$b_{l}$": value / sum(b) for l, value in enumerate(b, start=1)})
        _costs(row[2], collapsed_costs(b, q))
        draw_points(row[3], flow(START, RotationInvariantKernel(tuple(b), 3), STEPS, RATE)[-1], COLOUR)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=28, fontsize=10)
    titles = (r"kernel $\varphi(t)\,/\,\varphi(1)$", "share of $b_l$, %", "MMD² of collapsed sets, %", "points on $S^2$")
    for axis, title in zip(grid[0], titles, strict=True):
        axis.set_title(title, fontsize=10, pad=6)
    grid[-1][0].set_xlabel("inner product t", fontsize=9)
    for axis in figure.axes:
        axis.set_visible(axis in grid)
    return figure


def _phi(axis: Axes, kernel: RotationInvariantKernel) -> None:
    t = torch.linspace(-1, 1, 201, dtype=torch.float64)
    density = (1 - t.square()) ** ((kernel.dim - 3) / 2)
    axis.fill_between(t, -1, -1 + 2 * density, color="0.88", linewidth=0)
    axis.plot(t, kernel(t) / sum(kernel.coefficients), color=COLOUR)
    axis.axhline(0, color="0.5", linewidth=0.6)
    axis.set(xlim=(-1, 1), ylim=(-1.05, 1.08), xticks=[-1, 0, 1], yticks=[-1, 0, 1])
    axis.tick_params(labelsize=8)


def _bars(axis: Axes, shares: Mapping[str, float]) -> None:
    axis.bar(list(shares), [100 * share for share in shares.values()], color=COLOUR, width=0.7)
    for place, share in enumerate(shares.values()):
        axis.text(place, 100 * share + 3, f"{100 * share:.0f}", ha="center", fontsize=8)
    axis.set(ylim=(0, 122), yticks=[])
    axis.grid(False)
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="x", length=0)


def _costs(axis: Axes, costs: Mapping[str, float]) -> None:
    places = -np.arange(len(costs))
    axis.barh(places, [100 * cost for cost in costs.values()], color=COLOUR, height=0.66)
    for place, cost in zip(places, costs.values(), strict=True):
        axis.text(100 * cost + 2, float(place), _percent(cost), va="center", fontsize=8)
    axis.set(xlim=(0, 125), xticks=[0, 50, 100], yticks=places, yticklabels=list(costs))
    axis.grid(axis="y", visible=False)
    axis.tick_params(labelsize=8)
    axis.tick_params(axis="y", length=0)


def _percent(share: float) -> str:
    return f"{100 * share:.0f}" if share in (0, 1) or share >= 0.1 else f"{100 * share:.2g}"


# --- sliders


def kernel_explorer(b: Sequence[float] = (1.0, 40.0, 40.0), q: int = 64) -> None:
    """Show sliders for b_1, b_2, b_3 and q in a notebook, and under them a picture that follows.

    The picture is an output of its own, which stays in a saved notebook as it was at last; in the sliders' place a viewer
    without widgets shows a sentence.
    """
    import ipywidgets
    from IPython.display import display

    sliders: list[Any] = [
        ipywidgets.FloatSlider(value=value, min=0, max=50, step=0.5, description=f"b_{l}") for l, value in enumerate(b, 1)
    ]
    sliders.append(ipywidgets.SelectionSlider(options=DIMENSIONS, value=q, description="q"))
    box = ipywidgets.GridBox(sliders, layout={"grid_template_columns": "repeat(2, auto)", "max_width": "800px"})
    box.add_class("sfrik-explorer")

    def bundle() -> dict[str, Any]:
        *values, dimension = (slider.value for slider in sliders)
        return picture_bundle(values, dimension)

    display({**(box._repr_mimebundle_() or {}), "text/plain": SLIDERS}, raw=True)
    shown = display(bundle(), raw=True, display_id=True)
    assert shown is not None  # with a display_id there is a handle
    for slider in sliders:
        slider.observe(lambda change: shown.update(bundle(), raw=True), names="value")


def picture_bundle(b: Sequence[float], q: int) -> dict[str, Any]:
    """The picture of one kernel as a PNG, and its numbers in words."""
    name = f"b = ({', '.join(f'{value:g}' for value in b)}), q = {q}"
    if not any(b):
        return {"text/plain": f"{name}: a kernel needs one coefficient above 0"}
    costs = ", ".join(f"{what} {_percent(cost)}" for what, cost in collapsed_costs(b, q).items())
    buffer = io.BytesIO()
    FigureCanvasAgg(kernel_pictures({f"q = {q}": (b, q)})).print_png(buffer)
    return {"image/png": buffer.getvalue(), "text/plain": f"{name}; MMD² in % of that of one point: {costs}"}
