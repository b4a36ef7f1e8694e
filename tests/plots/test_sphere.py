"""Points that flow on the sphere: they follow the library's gradient, end where the theory says, and are drawn with depth."""

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
from sfrik.plots.sphere import degree_energies, flow, moving_png, pictures_of, stills, two_groups, write_gif

KERNELS = {f"L = {L}": RotationInvariantKernel((1.0,) * L, 3) for L in (1, 2, 3)} | {
    "RBF": RotationInvariantKernel.rbf(2.5, 3, 8),
    "heat": RotationInvariantKernel.heat(0.1, 3, 8),
}


@pytest.fixture(scope="module")
def paths():
    return {name: flow(two_groups(60), kernel, 200) for name, kernel in KERNELS.items()}


# --- the flow


def test_a_step_follows_the_gradient_of_the_librarys_mmd():
    kernel, rate, n = KERNELS["RBF"], 0.3, 40
    z = two_groups(n, seed=1).requires_grad_()
    (gradient,) = torch.autograd.grad(mmd_to_uniform(z, kernel), z)
    speed = rate / kernel.derivative(torch.ones((), dtype=torch.float64))
    expected = normalize(z.detach() - speed * n * gradient, dim=1)
    torch.testing.assert_close(flow(z.detach(), kernel, 1, rate)[1], expected)


def test_the_scale_of_a_kernel_changes_no_path():
    start = two_groups(20)
    small, large = (flow(start, RotationInvariantKernel((b, 2 * b), 3), 30) for b in (1.0, 40.0))
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


def test_each_degree_that_is_added_goes_to_zero_and_the_next_does_not(paths):
    for L in (1, 2, 3):
        energies = degree_energies(paths[f"L = {L}"][-1])
        assert max(energies[:L]) < 1e-3
        assert energies[L] > 0.01


def test_the_energies_are_the_mmd_of_single_degrees():
    z = two_groups(30)
    for l, energy in enumerate(degree_energies(z), start=1):
        kernel = RotationInvariantKernel((0.0,) * (l - 1) + (1.0,), 3)
        assert energy == pytest.approx(mmd_to_uniform(z, kernel).item(), abs=1e-12)
    assert degree_energies(z[:1].repeat(5, 1)) == pytest.approx([1.0] * 4)


# --- the pictures


def test_the_camera_sees_what_points_at_it_in_the_middle_and_in_front():
    a, e = np.radians([30.0, sphere.ELEVATION])
    towards = np.array([[np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)]])
    np.testing.assert_allclose(sphere._seen(towards, 30.0), [[0, 0, 1]], atol=1e-12)
    np.testing.assert_allclose(sphere._seen(np.eye(3)[2:], 30.0)[0, 1], np.cos(e))  # the pole is up


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


def test_a_moving_picture_shows_every_step_and_holds_the_last(paths, tmp_path):
    some = {name: paths[name] for name in ("L = 1", "L = 2")}
    pictures = pictures_of(some, [0, 5, 20, 200])
    write_gif(pictures, tmp_path / "flow.gif")
    for source in (tmp_path / "flow.gif", io.BytesIO(moving_png(pictures))):
        with Image.open(source) as image:
            assert image.n_frames == len(pictures)
            assert image.size == pictures[0].size
            image.seek(image.n_frames - 1)
            assert image.info["duration"] >= 4000
            last = np.asarray(image.convert("RGB"), dtype=float)
        assert (last[0, 0] == 255).all(), "the page is white"
        assert abs(last - np.asarray(pictures[-1], dtype=float)).mean() < 0.3  # of 255 levels, by the colours left out


def test_a_picture_of_a_film_is_what_the_figure_shows_when_it_is_drawn_whole(paths, monkeypatch):
    drawn = []
    monkeypatch.setattr(sphere, "FigureCanvasAgg", lambda figure: drawn.append(FigureCanvasAgg(figure)) or drawn[0])
    picture = pictures_of({"L = 2": paths["L = 2"]}, [0, 200])[-1]
    for artist in drawn[0].figure.findobj():
        artist.set_animated(False)
    drawn[0].draw()
    whole = np.asarray(drawn[0].buffer_rgba(), dtype=float)[..., :3]
    assert abs(np.asarray(picture, dtype=float) - whole).mean() < 0.1  # of 255 levels: bars lie on their line, or under it


def test_no_label_of_the_stills_lies_on_another(paths):
    assert_labels_apart(stills(paths, {"start": 0, "step 15": 15, "step 200": 200}))


def test_points_of_another_dimension_are_refused_by_name():
    with pytest.raises(SfrikError, match=r"dimension 3.*flat.*\(2, 5, 4\)"):
        stills({"flat": torch.zeros(2, 5, 4)}, {"start": 0})
