"""The kernel explorer of notebook 01: its formula for collapsed distributions, its figures, and its sliders."""

import numpy as np
import pytest
import torch
from legible import assert_labels_apart

from sfrik.errors import SfrikError
from sfrik.kernels import RotationInvariantKernel
from sfrik.mmd import mmd_to_uniform
from sfrik.plots.kernel_explorer import DIMENSIONS, collapsed_costs, draw_kernels, kernel_explorer, mime_bundle


@pytest.mark.parametrize("q", [4, 16, 64])
@pytest.mark.parametrize("b", [(1.0, 0.0, 0.0), (0.0, 3.0, 0.0), (1.0, 40.0, 40.0)])
def test_the_formula_for_collapsed_distributions_equals_the_mmd(b, q):
    axes, angle = torch.eye(q, dtype=torch.float64), 2 * np.pi * torch.arange(8, dtype=torch.float64) / 8
    sets = {
        "one point": axes[:1].repeat(2, 1),
        "two opposite points": torch.cat([axes[:1], -axes[:1]]),
        "great circle": angle.cos()[:, None] * axes[0] + angle.sin()[:, None] * axes[1],
        "half the dimensions": torch.cat([axes[: q // 2], -axes[: q // 2]]),
        "uniform": torch.cat([axes, -axes]),  # has the uniform distribution's moments up to degree 3
    }
    kernel = RotationInvariantKernel(b, q)
    measured = {name: mmd_to_uniform(z, kernel).item() / sum(b) for name, z in sets.items()}
    assert collapsed_costs(b, q) == pytest.approx(measured, abs=1e-12)


def test_no_labels_of_the_figure_overlap():
    assert_labels_apart(draw_kernels({"L = 1": ((1, 0, 0), 64), "L = 3,\nq = 8": ((1, 40, 40), 8), "L = 2": ((1, 40, 0), 8192)}))


def test_a_kernel_without_coefficients_is_refused():
    with pytest.raises(SfrikError, match="nothing: all coefficients are 0"):
        draw_kernels({"nothing": ((0.0, 0.0, 0.0), 8)})


def test_the_sliders_update_the_figure_and_its_text(monkeypatch):
    pytest.importorskip("ipywidgets")
    display = pytest.importorskip("IPython.display")
    from ipywidgets import VBox

    shown, boxes = [], []

    class Handle:
        def update(self, bundle, metadata, raw):
            shown.append(bundle)

    def show(bundle, **options):
        shown.append(bundle)
        return Handle()

    monkeypatch.setattr(display, "display", show)
    monkeypatch.setattr(VBox, "add_class", lambda box, name: boxes.append(box))
    kernel_explorer((1.0, 40.0, 40.0), 64)
    view, first = shown
    assert "application/vnd.jupyter.widget-view+json" in view
    assert "JupyterLab" in view["text/plain"]  # for viewers without widgets
    buttons, grid = boxes[0].children
    sliders = {slider.description: slider for slider in grid.children}
    assert not any(slider.continuous_update for slider in grid.children), "drawn when a slider is released"
    assert first["image/png"].startswith(b"\x89PNG")
    assert "two opposite points 49" in first["text/plain"]
    sliders["b_2"].value = 0.0
    assert "two opposite points 0," in shown[-1]["text/plain"]
    assert shown[-1]["image/png"] != first["image/png"]
    sliders["q"].value = 8
    assert "q = 8;" in shown[-1]["text/plain"]
    sliders["b_1"].value = sliders["b_3"].value = 0.0
    assert "a positive coefficient" in shown[-1]["text/plain"]
    assert "image/png" not in shown[-1]
    sliders["b_3"].value = 5.0
    assert "image/png" in shown[-1]
    for button, kernel in zip(buttons.children, ("(1, 0, 0)", "(0, 1, 0)", "(1, 40, 0)", "(1, 40, 40), q = 8192"), strict=True):
        count = len(shown)
        button.click()
        assert len(shown) == count + 1, "a button moves several sliders and draws once"
        assert kernel in shown[-1]["text/plain"]


@pytest.mark.parametrize("q", [DIMENSIONS[0], DIMENSIONS[-1]])
def test_the_smallest_and_the_largest_dimension_are_drawn_without_a_warning(q, recwarn):
    assert mime_bundle((0.0, 0.0, 1.0), q)[0]["image/png"].startswith(b"\x89PNG")
    assert [warning for warning in recwarn.list if not issubclass(warning.category, DeprecationWarning)] == []
