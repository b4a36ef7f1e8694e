r"""Points on the sphere S^2 that flow under the gradient of MMD^2, and their pictures: still, and moving.

Each point follows the gradient along the sphere and is put back on it,

    z_i <- normalise(z_i - rate / phi'(1) * n d MMD^2 / d z_i),    n d MMD^2 / d z_i = (2/n) sum_j phi'(<z_i, z_j>) z_j,

so that the scale of a kernel changes nothing, and a step is about as long under every kernel.

Legend: n points, q their dimension (3 where they are drawn), K steps; a path is a tensor [K + 1, n, q].
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from PIL import Image
from scipy.spatial import KDTree
from torch import Tensor
from torch.nn.functional import normalize

from sfrik.errors import SfrikError
from sfrik.kernels import RotationInvariantKernel, legendre
from sfrik.plots.tables import COLOURS

__all__ = ["degree_energies", "draw_points", "flow", "moving_png", "pictures_of", "stills", "two_groups", "write_gif"]

DEGREES = 4  # whose energies stand under a ball
ELEVATION, AZIMUTH = 18.0, 22.0  # of the camera, degrees
BEGIN, TURN = -8.0, 1.2  # of a moving picture: its first azimuth, and from one picture to the next
PALETTE = [COLOURS[name] for name in ("SFRIK L=1", "SFRIK L=2", "SFRIK L=3", "AUH", "SimCLR")]
WIDTH, BALL, BARS = 1.85, 1.75, 0.7  # of a column, a row of balls, a row of bars, in inches
LAYERS = 5  # of depth, in which points are drawn
SHADES = 200  # colours of a moving picture


def two_groups(n: int, seed: int = 0, width: float = 0.08) -> Tensor:
    """`n` points in two equal groups on one side of the sphere, 70 degrees apart and about `width` wide: [n, 3]."""
    noise = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    half = np.radians(35)
    centres = torch.tensor([[np.cos(half), np.sin(half), 0.0], [np.cos(half), -np.sin(half), 0.0]], dtype=torch.float64)
    return normalize(centres[torch.arange(n) % 2] + width * noise, dim=1)


def flow(start: Tensor, kernel: RotationInvariantKernel, steps: int, rate: float = 0.4) -> Tensor:
    """The path [K + 1, n, q] of the points `start` [n, q] in K steps of gradient descent; `rate` up to about 0.5 is stable."""
    step = 2 * rate / float(kernel.derivative(torch.ones((), dtype=start.dtype))) / len(start)
    path = [start]
    for _ in range(steps):
        z = path[-1]
        path.append(normalize(z - step * (kernel.derivative(z @ z.T) @ z), dim=1))
    return torch.stack(path)


def degree_energies(z: Tensor, degrees: int = DEGREES) -> list[float]:
    """MMD^2 of the points [n, q] by each kernel P_l alone, l = 1..degrees: 1 for a single point, 0 where degree l is uniform."""
    gram = z @ z.T
    return [max(0.0, legendre(gram, l, z.shape[1]).mean().item()) for l in range(1, degrees + 1)]


# --- one ball


def draw_points(axis: Axes, z: Tensor, colour: str = PALETTE[1], azimuth: float = AZIMUTH) -> None:
    """Draw the points [n, 3] on their sphere, as seen from `azimuth`, degrees."""
    Ball(axis, colour).show(z, azimuth)


class Ball:
    """The sphere on an axis, with points that move: those in front are large and dark, those behind small and light."""

    def __init__(self, axis: Axes, colour: str) -> None:
        axis.set(xlim=(-1.08, 1.08), ylim=(-1.08, 1.08), aspect="equal")
        axis.axis("off")
        axis.add_patch(Circle((0, 0), 1, facecolor="0.97", edgecolor="0.45", linewidth=0.9, zorder=0))
        self.grid = [axis.plot([], [], color=grey, linewidth=0.5, zorder=1)[0] for grey in ("0.87", "0.68")]
        self.points = []  # from the hindmost layer to the foremost
        for near in np.linspace(0, 1, LAYERS):
            shade = (0.25 + 0.75 * near) * np.array(to_rgb(colour)) + 0.75 * (1 - near)
            look = {"markersize": 2 + 2.2 * near, "markeredgewidth": 0.4 if near > 0.5 else 0}
            self.points += axis.plot([], [], "o", color=shade, markeredgecolor="white", zorder=2 + near, **look)

        self.moving: list[Artist] = [*self.grid, *self.points]

    def show(self, z: Tensor, azimuth: float = AZIMUTH) -> None:
        circles = _seen(GRID, azimuth)
        for line, hidden in zip(self.grid, (circles[:, 2] > 0, circles[:, 2] < 0), strict=True):
            line.set_data(np.where(hidden[:, None], np.nan, circles[:, :2]).T)
        seen = _seen(z.numpy(), azimuth)
        near = np.clip(0.5 + 0.9 * seen[:, 2], 0, 1)
        layer = np.rint((LAYERS - 1) * near)
        for k, points in enumerate(self.points):
            points.set_data(seen[layer == k, :2].T)


def _seen(z: np.ndarray, azimuth: float) -> np.ndarray:
    """How far to the right, up, and towards the camera the points [..., 3] are."""
    a, e = np.radians([azimuth, ELEVATION])
    right = [-np.sin(a), np.cos(a), 0.0]
    up = [-np.sin(e) * np.cos(a), -np.sin(e) * np.sin(a), np.cos(e)]
    return z @ np.array([right, up, np.cross(right, up)]).T


def _grid() -> np.ndarray:
    """The equator, two circles of latitude and four great circles through the poles, with breaks in between: [m, 3]."""
    turn = np.linspace(0, 2 * np.pi, 73)
    circles = [np.stack([np.cos(turn), np.sin(turn), np.full_like(turn, height)]) for height in (-0.6, 0.0, 0.6)]
    circles += [np.stack([np.cos(a) * np.cos(turn), np.sin(a) * np.cos(turn), np.sin(turn)]) for a in np.pi * np.arange(4) / 4]
    broken = [np.pad(circle / np.linalg.norm(circle, axis=0), ((0, 0), (0, 1)), constant_values=np.nan) for circle in circles]
    return np.concatenate(broken, axis=1).T


GRID = _grid()


class Bars:
    """MMD^2 by degree on an axis, as bars with their numbers, that change."""

    def __init__(self, axis: Axes, colour: str, labelled: bool) -> None:
        degrees = list(range(1, DEGREES + 1))
        self.bars = axis.bar(degrees, [0.0] * DEGREES, color=colour, width=0.7)
        self.texts = [axis.text(l, 0, "", ha="center", va="bottom", fontsize=8) for l in degrees]
        axis.set(ylim=(0, 1.3), xlim=(0.4, DEGREES + 0.6), yticks=[], xticks=degrees)
        axis.tick_params(axis="x", length=0, labelsize=8, pad=2)
        axis.grid(False)
        axis.spines[["left", "top", "right"]].set_visible(False)
        axis.set_xlabel("degree", fontsize=8, labelpad=1)
        if labelled:
            axis.set_ylabel("MMD²", fontsize=8, labelpad=4)
        self.moving: list[Artist] = [*self.bars, *self.texts]

    def show(self, z: Tensor) -> None:
        for bar, text, energy in zip(self.bars, self.texts, degree_energies(z), strict=True):
            bar.set_height(energy)
            text.set(text=f"{energy:.2f}", y=energy + 0.03)


# --- several side by side


def stills(paths: Mapping[str, Tensor], rows: Mapping[str, int]) -> Figure:
    """A column for each path of points in dimension 3, a row of balls for each name and step in `rows`; under them the MMD^2
    by degree of the last row.
    """
    figure, grid = _columns(paths, len(rows), 100)
    last = list(rows.values())[-1]
    for column, path in enumerate(paths.values()):
        colour = PALETTE[column % len(PALETTE)]
        for axis, step in zip(grid[:-1, column], rows.values(), strict=True):
            draw_points(axis, path[step], colour)
        Bars(grid[-1, column], colour, column == 0).show(path[last])
    for axis, name in zip(grid[:-1, 0], rows, strict=True):
        axis.text(-0.03, 0.5, name, transform=axis.transAxes, rotation=90, ha="right", va="center")
    return figure


def pictures_of(paths: Mapping[str, Tensor], steps: Sequence[int], dpi: int = 90) -> list[Image.Image]:
    """A column for each path of points in dimension 3, a picture for each of `steps`; the camera turns slowly."""
    figure, grid = _columns(paths, 1, dpi)
    canvas = FigureCanvasAgg(figure)
    colours = [PALETTE[column % len(PALETTE)] for column in range(len(paths))]
    balls = [Ball(axis, colour) for axis, colour in zip(grid[0], colours, strict=True)]
    bars = [Bars(axis, colour, axis is grid[1, 0]) for axis, colour in zip(grid[1], colours, strict=True)]
    moving = [artist for ball in balls for artist in ball.moving] + [artist for bar in bars for artist in bar.moving]
    for artist in moving:
        artist.set_animated(True)  # which leaves it out of the background
    canvas.draw()
    background = canvas.copy_from_bbox(figure.bbox)
    pictures = []
    for k, step in enumerate(steps):
        canvas.restore_region(background)
        for ball, bar, path in zip(balls, bars, paths.values(), strict=True):
            ball.show(path[step], BEGIN + TURN * k)
            bar.show(path[step])
        for artist in moving:
            figure.draw_artist(artist)
        pictures.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))
    return pictures


def _columns(paths: Mapping[str, Tensor], rows: int, dpi: int) -> tuple[Figure, np.ndarray]:
    """A figure of `rows` rows of axes for balls and one for bars, with the paths' names at the top."""
    for name, path in paths.items():
        if path.ndim != 3 or path.shape[2] != 3:
            raise SfrikError(f"only points in dimension 3 can be drawn: {name} has shape {tuple(path.shape)}, not [K + 1, n, 3]")
    height = BALL * rows + BARS + 0.65
    figure = Figure(figsize=(WIDTH * len(paths) + 0.3, height), dpi=dpi)
    edges = {"left": 0.3 / (WIDTH * len(paths)), "right": 0.995, "bottom": 0.37 / height, "top": 1 - 0.25 / height}
    ratios = {"height_ratios": [BALL] * rows + [BARS], "hspace": 0.04, "wspace": 0.05}
    grid = figure.subplots(rows + 1, len(paths), squeeze=False, gridspec_kw={**edges, **ratios})
    for axis, name in zip(grid[0], paths, strict=True):
        axis.set_title(name, fontsize=10, pad=2)
    return figure, grid


# --- moving pictures


def write_gif(pictures: Sequence[Image.Image], path: Path | str) -> None:
    """A GIF that starts again after it has held its last picture for four seconds."""
    _write(pictures, path, "GIF")


def moving_png(pictures: Sequence[Image.Image]) -> bytes:
    """The same as an animated PNG. Notebook viewers show it as they do any PNG; of GIFs some print the name of the type alone."""
    buffer = io.BytesIO()
    _write(pictures, buffer, "PNG")
    return buffer.getvalue()


def _write(pictures: Sequence[Image.Image], target: IO[bytes] | Path | str, format: str) -> None:
    first, *rest = _in_few_colours(pictures)
    milliseconds = [1000] + [100] * (len(rest) - 1) + [4000]
    first.save(target, format=format, save_all=True, append_images=rest, duration=milliseconds, loop=0)


def _in_few_colours(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Each colour replaced by the nearest of the SHADES that fill most of the last picture, which stay exactly as they are.

    Pillow's own search rounds to six bits: it turns the white of a page into a light grey.
    """
    coded = [np.asarray(picture, dtype=np.int64) @ [2**16, 2**8, 1] for picture in pictures]  # [height, width] of 24 bits
    colours, counts = np.unique(coded[-1], return_counts=True)
    palette = colours[np.argsort(-counts)[:SHADES]]
    there = np.zeros(2**24, dtype=bool)
    for code in coded:
        there[code] = True
    present = np.flatnonzero(there)
    index = np.zeros(2**24, dtype=np.uint8)
    index[present] = KDTree(_levels(palette)).query(_levels(present))[1]
    few = [Image.fromarray(index[code]) for code in coded]
    for picture in few:
        picture.putpalette(_levels(palette).astype(np.uint8).tobytes())
    return few


def _levels(codes: np.ndarray) -> np.ndarray:
    """Red, green and blue, [..., 3], of colours coded in 24 bits."""
    return codes[..., None] >> np.array([16, 8, 0]) & 255
