"""The gradient flow on the sphere: it follows the library's gradient and converges as the theory predicts; animations."""

import io
import itertools

import numpy as np
import pytest
import torch
from legible import assert_labels_apart
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch.nn.functional import normalize

from sfrik.errors import SfrikError
from sfrik.kernels import RotationInvariantKernel
from sfrik.mmd import mmd_to_uniform
from sfrik.plots import sphere
from sfrik.plots.sphere import animated_png, draw_frames, draw_snapshots, gradient_flow, mmd_per_degree, two_groups, write_gif

KERNELS = {f"L = {L}": RotationInvariantKernel((1.0,) * L, 3) for L in (1, 2, 3)} | {
    "RBF": RotationInvariantKernel.rbf(2.5, 3, 8),
    "heat": RotationInvariantKernel.heat(0.1, 3, 8),
}


@pytest.fixture(scope="module")
def paths():
    return {name: gradient_flow(two_groups(60), kernel, 200) for name, kernel in KERNELS.items()}


# --- the flow


def test_a_step_follows_the_gradient_of_the_librarys_mmd():
    kernel, rate, n = KERNELS["RBF"], 0.3, 40
    z = two_groups(n, seed=1).requires_grad_()
    (gradient,) = torch.autograd.grad(mmd_to_uniform(z, kernel), z)
    speed = rate / kernel.derivative(torch.ones((), dtype=torch.float64))
    expected = normalize(z.detach() - speed * n * gradient, dim=1)
    torch.testing.assert_close(gradient_flow(z.detach(), kernel, 1, rate)[1], expected)


def test_the_scale_of_a_kernel_changes_no_path():
    start = two_groups(20)
    small, large = (gradient_flow(start, RotationInvariantKernel((b, 2 * b), 3), 30) for b in (1.0, 40.0))
    torch.testing.assert_close(small, large)


@pytest.mark.parametrize("name", KERNELS)
def test_the_mmd_falls_with_every_step_and_the_points_stay_on_the_sphere(paths, name):
    values = [mmd_to_uniform(z, KERNELS[name]).item() for z in paths[name][::5]]
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(values))
    assert (paths[name].norm(dim=2) - 1).abs().max() < 1e-12


def test_degree_1_ends_in_two_opposite_groups(paths):
    z = paths["L = 1"][-1]
    assert z.mean(dim=0).norm() < 1e-4
    first, second = z[::2].mean(dim=0), z[1::2].mean(dim=0)
    assert torch.cosine_similarity(first, second, dim=0) < -0.99
    assert min(first.norm(), second.norm()) > 0.9, "each group is as narrow as it was"


@pytest.mark.parametrize("L", [2, 3])
def test_degree_2_spreads_the_points_to_a_covariance_of_a_third_of_the_identity(paths, L):
    covariance = torch.cov(paths[f"L = {L}"][-1].T, correction=0)
    torch.testing.assert_close(covariance, torch.eye(3, dtype=torch.float64) / 3, atol=1e-3, rtol=0)


def test_the_degrees_up_to_L_go_to_zero_and_the_next_does_not(paths):
    for L in (1, 2, 3):
        energies = mmd_per_degree(paths[f"L = {L}"][-1])
        assert max(energies[:L]) < 1e-3
        assert energies[L] > 0.01


def test_the_mmd_per_degree_is_that_of_single_degree_kernels():
    z = two_groups(30)
    for l, energy in enumerate(mmd_per_degree(z), start=1):
        kernel = RotationInvariantKernel((0.0,) * (l - 1) + (1.0,), 3)
        assert energy == pytest.approx(mmd_to_uniform(z, kernel).item(), abs=1e-12)
    assert mmd_per_degree(z[:1].repeat(5, 1)) == pytest.approx([1.0] * 4)


# --- figures and animations


def test_a_point_that_faces_the_camera_is_projected_to_the_centre_and_in_front():
    a, e = np.radians([30.0, sphere.ELEVATION])
    towards = np.array([[np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)]])
    np.testing.assert_allclose(sphere._project(towards, 30.0), [[0, 0, 1]], atol=1e-12)
    np.testing.assert_allclose(sphere._project(np.eye(3)[2:], 30.0)[0, 1], np.cos(e))  # the pole is up


def test_points_in_front_are_drawn_larger_darker_and_above_those_behind():
    axis = Figure().subplots()
    ball = sphere.Ball(axis, "#0072B2")
    e = np.radians(sphere.ELEVATION)
    front = torch.tensor([[np.cos(e), 0.0, np.sin(e)]])
    ball.show(torch.cat([front, -front, front]), azimuth=0.0)
    behind, *_, before = ball.points
    assert [len(points.get_xdata()) for points in (behind, before)] == [1, 2]
    assert before.get_markersize() > behind.get_markersize()
    assert before.get_zorder() > behind.get_zorder()
    assert sum(before.get_color()) < sum(behind.get_color())


def test_an_animation_shows_every_step_and_pauses_at_the_last(paths, tmp_path):
    shown = {name: paths[name] for name in ("L = 1", "L = 2")}
    frames = draw_frames(shown, [0, 5, 20, 200])
    write_gif(frames, tmp_path / "new" / "flow.gif")
    for source in (tmp_path / "new" / "flow.gif", io.BytesIO(animated_png(frames))):
        with Image.open(source) as image:
            assert image.n_frames == len(frames)
            assert image.size == frames[0].size
            image.seek(image.n_frames - 1)
            assert image.info["duration"] >= 4000
            last = np.asarray(image.convert("RGB"), dtype=float)
        assert (last[0, 0] == 255).all(), "the background is white"
        assert abs(last - np.asarray(frames[-1], dtype=float)).mean() < 0.3  # of 255 levels: colours are quantised


def test_a_frame_equals_the_figure_drawn_as_a_whole(paths, monkeypatch):
    drawn = []
    monkeypatch.setattr(sphere, "FigureCanvasAgg", lambda figure: drawn.append(FigureCanvasAgg(figure)) or drawn[0])
    frame = draw_frames({"L = 2": paths["L = 2"]}, [0, 200])[-1]
    for artist in drawn[0].figure.findobj():
        artist.set_animated(False)
    drawn[0].draw()
    whole = np.asarray(drawn[0].buffer_rgba(), dtype=float)[..., :3]
    assert abs(np.asarray(frame, dtype=float) - whole).mean() < 0.1  # of 255 levels: bars lie on their line, or under it


def test_no_labels_of_the_snapshots_overlap(paths):
    assert_labels_apart(draw_snapshots(paths, {"start": 0, "step 15": 15, "step 200": 200}))


def test_points_of_another_dimension_are_refused_by_name():
    with pytest.raises(SfrikError, match=r"dimension 3.*flat.*\(2, 5, 4\)"):
        draw_snapshots({"flat": torch.zeros(2, 5, 4)}, {"start": 0})
