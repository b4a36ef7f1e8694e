r"""Figures of a kernel :math:`b_1 P_1 + b_2 P_2 + b_3 P_3`: a comparison of several kernels, and sliders for one.

A collapsed distribution is here the uniform distribution on the unit sphere of a subspace of dimension m: two opposite points for
m = 1, a great circle for m = 2. Its odd degrees are 0 by symmetry, and :math:`\mathbb{E} \langle u, v \rangle^2 = 1/m`. With
:math:`P_2(q; t) = (q t^2 - 1) / (q - 1)`, only degree 2 contributes up to degree 3:

.. math:: \mathrm{MMD}^2 = b_2\, \frac{q/m - 1}{q - 1}.

The largest value is that of a single point, :math:`\varphi(1) = b_1 + b_2 + b_3`.

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
from sfrik.plots.sphere import draw_points, gradient_flow, two_groups
from sfrik.plots.style import COLOURS, OTHERS
from sfrik.system.png import smaller_png

__all__ = ["collapsed_costs", "draw_kernels", "kernel_explorer"]

START, STEPS, RATE = two_groups(120), 300, 0.5  # of the gradient flow on S^2
DIMENSIONS = (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
SLIDERS = "Sliders for b_1, b_2, b_3 and q: open this notebook in JupyterLab and run it to move them."
PRESETS: dict[str, tuple[tuple[float, float, float], int]] = {
    "L = 1": ((1.0, 0.0, 0.0), 64),
    "spectral": ((0.0, 1.0, 0.0), 64),
    "L = 2": ((1.0, 40.0, 0.0), 64),
    "paper": ((1.0, 40.0, 40.0), 8192),
}
DPI = 90


def collapsed_costs(b: Sequence[float], q: int) -> dict[str, float]:
    """MMD^2 of distributions that use fewer dimensions than q, relative to that of a single point.

    Args:
        b: b_1, b_2, b_3.
        q: an even dimension.
    """
    subspaces = {"two opposite points": 1, "great circle": 2, "half the dimensions": q // 2, "uniform": q}
    return {"one point": 1.0, **{name: b[1] * (q / m - 1) / (q - 1) / sum(b) for name, m in subspaces.items()}}


def draw_kernels(kernels: Mapping[str, tuple[Sequence[float], int]]) -> Figure:
    """One row per kernel: phi, its coefficients, the MMD^2 of collapsed distributions, and a gradient flow on S^2.

    Args:
        kernels: ((b_1, b_2, b_3), q) by name.

    Raises:
        SfrikError: a kernel without a positive coefficient.
    """
    height = 1.5 * len(kernels) + 0.9
    figure = Figure(figsize=(9.4, height), dpi=DPI)
    edges = {"left": 0.14, "right": 0.995, "bottom": 0.46 / height, "top": 1 - 0.36 / height, "wspace": 0.15, "hspace": 0.22}
    ratios = {"width_ratios": [1.5, 1, 0.95, 1.9, 1.2]}  # the third is room for the labels of the fourth
    grid = np.delete(figure.subplots(len(kernels), 5, squeeze=False, gridspec_kw={**edges, **ratios}), 2, axis=1)
    for row, (name, (b, q)) in zip(grid, kernels.items(), strict=True):
        if not any(b):
            raise SfrikError(f"{name}: all coefficients are 0; a kernel needs a positive one")
        colour = _colour(b)
        _phi(row[0], RotationInvariantKernel(tuple(b), q), colour)
        _bars(row[1], {f"$b_{l}$": value / sum(b) for l, value in enumerate(b, start=1)}, colour)
        _costs(row[2], collapsed_costs(b, q), colour)
        draw_points(row[3], gradient_flow(START, RotationInvariantKernel(tuple(b), 3), STEPS, RATE)[-1], colour)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=28, fontsize=10)
    titles = (r"kernel $\varphi(t)\,/\,\varphi(1)$", "share of $b_l$, %", "MMD² if collapsed, %", "points on $S^2$")
    for axis, title in zip(grid[0], titles, strict=True):
        axis.set_title(title, fontsize=10, pad=6)
    grid[-1][0].set_xlabel("inner product $t$", fontsize=9)
    for axis in figure.axes:
        axis.set_visible(axis in grid)
    return figure


def _colour(b: Sequence[float]) -> str:
    """That of SFRIK with degrees 1 to L if these have positive coefficients; another one if a degree is left out."""
    degree = max(l for l, value in enumerate(b, start=1) if value > 0)
    return COLOURS[f"SFRIK L={degree}"] if all(b[:degree]) else OTHERS[0]["color"]


def _phi(axis: Axes, kernel: RotationInvariantKernel, colour: str) -> None:
    t = torch.linspace(-1, 1, 201, dtype=torch.float64)
    density = (1 - t.square()) ** ((kernel.dim - 3) / 2)
    axis.fill_between(t, -1, -1 + 2 * density, color="0.88", linewidth=0)
    axis.plot(t, kernel(t) / sum(kernel.coefficients), color=colour)
    axis.axhline(0, color="0.5", linewidth=0.6)
    axis.set(xlim=(-1, 1), ylim=(-1.05, 1.08), xticks=[-1, 0, 1], yticks=[-1, 0, 1])
    axis.tick_params(labelsize=8)


def _bars(axis: Axes, shares: Mapping[str, float], colour: str) -> None:
    axis.bar(list(shares), [100 * share for share in shares.values()], color=colour, width=0.7)
    for place, share in enumerate(shares.values()):
        axis.text(place, 100 * share + 3, f"{100 * share:.0f}", ha="center", fontsize=8)
    axis.set(ylim=(0, 122), yticks=[])
    axis.grid(False)
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="x", length=0)


def _costs(axis: Axes, costs: Mapping[str, float], colour: str) -> None:
    places = -np.arange(len(costs))
    axis.barh(places, [100 * cost for cost in costs.values()], color=colour, height=0.66)
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
    """Show buttons for some kernels and sliders for b_1, b_2, b_3 and q in a notebook, and below them a figure.

    The figure is drawn once per change: when a slider is released, and once for a button that moves several. It is a separate
    output, so that a saved notebook keeps its last state. A viewer without widgets shows a sentence in place of the sliders.
    """
    import ipywidgets
    from IPython.display import display

    late: dict[str, Any] = {"continuous_update": False}
    sliders: list[Any] = [
        ipywidgets.FloatSlider(value=value, min=0, max=50, step=0.5, description=f"b_{l}", **late) for l, value in enumerate(b, 1)
    ]
    sliders.append(ipywidgets.SelectionSlider(options=DIMENSIONS, value=q, description="q", **late))
    buttons = [ipywidgets.Button(description=name, layout={"width": "auto"}) for name in PRESETS]
    grid = ipywidgets.GridBox(sliders, layout={"grid_template_columns": "repeat(2, auto)", "max_width": "800px"})
    box = ipywidgets.VBox([ipywidgets.HBox(buttons), grid])
    box.add_class("sfrik-explorer")

    def current() -> tuple[dict[str, Any], dict[str, Any]]:
        *values, dimension = (slider.value for slider in sliders)
        return mime_bundle(values, dimension)

    display({**(box._repr_mimebundle_() or {}), "text/plain": SLIDERS}, raw=True)
    first, size = current()
    shown = display(first, metadata=size, raw=True, display_id=True)
    assert shown is not None  # display returns a handle when display_id is given
    together = False  # whether a button is moving several sliders

    def draw(change: Any = None) -> None:
        if not together:
            bundle, size = current()
            shown.update(bundle, metadata=size, raw=True)

    def choose(button: Any) -> None:
        nonlocal together
        coefficients, dimension = PRESETS[button.description]
        together = True
        for slider, value in zip(sliders, (*coefficients, dimension), strict=True):
            slider.value = value
        together = False
        draw()

    for slider in sliders:
        slider.observe(draw, names="value")
    for button in buttons:
        button.on_click(choose)


def mime_bundle(b: Sequence[float], q: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The figure of one kernel as a PNG of twice the screen's resolution, with its numbers as text; and its size in the page."""
    name = f"b = ({', '.join(f'{value:g}' for value in b)}), q = {q}"
    if not any(b):
        return {"text/plain": f"{name}: a kernel needs a positive coefficient"}, {}
    costs = ", ".join(f"{what} {_percent(cost)}" for what, cost in collapsed_costs(b, q).items())
    figure, buffer = draw_kernels({f"$q$ = {q}": (b, q)}), io.BytesIO()
    width, height = (round(DPI * inches) for inches in figure.get_size_inches())
    figure.set_dpi(2 * DPI)
    FigureCanvasAgg(figure).print_png(buffer)
    text = f"{name}; MMD² in % of its value for one point: {costs}"
    return {"image/png": smaller_png(buffer.getvalue()), "text/plain": text}, {"image/png": {"width": width, "height": height}}
