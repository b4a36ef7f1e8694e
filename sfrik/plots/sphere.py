r"""Gradient flow of :math:`\mathrm{MMD}^2` for points on the sphere, drawn on S^2 as figures and as animations.

Each step follows the gradient and normalises the points again,

.. math::

    z_i \leftarrow \mathrm{normalise}\Big(z_i - \frac{\mathrm{rate}}{\varphi'(1)}\, n\, \nabla_{z_i} \mathrm{MMD}^2\Big), \qquad
    n\, \nabla_{z_i} \mathrm{MMD}^2 = \frac{2}{n} \sum_j \varphi'(\langle z_i, z_j \rangle)\, z_j .

Dividing by :math:`\varphi'(1)` makes a step independent of the scale of the kernel, and about equally long for all kernels.

Legend: n points, q their dimension (3 where they are drawn), K steps; a path is a tensor [K + 1, n, q].
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from sfrik.errors import SfrikError
from sfrik.kernels import RotationInvariantKernel, legendre
from sfrik.plots.style import as_math, look
from sfrik.system.files import atomic_write

__all__ = [
    "animated_png",
    "draw_frames",
    "draw_points",
    "draw_snapshots",
    "gradient_flow",
    "mmd_per_degree",
    "two_groups",
    "write_gif",
]

DEGREES = 4  # shown in the bar chart below each sphere
ELEVATION, AZIMUTH = 18.0, 22.0  # of the camera, in degrees
WIDTH, BALL, BARS = 1.85, 1.75, 0.7  # width of a column, height of a row of spheres and of a row of bars, in inches
LAYERS = 5  # of depth: the points of a layer have one size and one shade
COLOURS_PER_ANIMATION = 48


@dataclass(frozen=True)
class Theme:
    """The greys of a figure on a light or a dark page, and the colours of the kernels with L = 1, 2, 3."""

    page: str
    ball: str
    edge: str
    grid: tuple[str, str]  # behind, in front
    text: str
    degrees: tuple[str, str, str]


LIGHT = Theme("#FFFFFF", "0.97", "0.45", ("0.87", "0.68"), "#000000", tuple(look(f"SFRIK L={L}")["color"] for L in (1, 2, 3)))
# on a dark page the lightest blue is that of the highest degree; the page is GitHub's
DARK = Theme("#0D1117", "#151B23", "0.6", ("0.2", "0.36"), "#E6EDF3", ("#4D90CD", "#8CC2F2", "#DCEEFF"))


def two_groups(n: int, seed: int = 0, width: float = 0.08) -> Tensor:
    """Two equal groups on one side of the sphere, 70 degrees apart, with a spread of about `width`: `n` points, [n, 3]."""
    noise = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    half = np.radians(35)
    centres = torch.tensor([[np.cos(half), np.sin(half), 0.0], [np.cos(half), -np.sin(half), 0.0]], dtype=torch.float64)
    return normalize(centres[torch.arange(n) % 2] + width * noise, dim=1)


def gradient_flow(start: Tensor, kernel: RotationInvariantKernel, steps: int, rate: float = 0.4) -> Tensor:
    """Gradient descent on the MMD^2 from `start` [n, q]: the path [K + 1, n, q]. A `rate` up to about 0.5 is stable."""
    step = 2 * rate / float(kernel.derivative(torch.ones((), dtype=start.dtype))) / len(start)
    path = [start]
    for _ in range(steps):
        z = path[-1]
        path.append(normalize(z - step * (kernel.derivative(z @ z.T) @ z), dim=1))
    return torch.stack(path)


def mmd_per_degree(z: Tensor, degrees: int = DEGREES) -> list[float]:
    """MMD^2 of the points [n, q] for the kernels P_1, ..., P_degrees, one by one.

    It is 1 for a single point, and 0 where the moments of that degree are those of the uniform distribution.
    """
    gram = z @ z.T
    return [max(0.0, legendre(gram, l, z.shape[1]).mean().item()) for l in range(1, degrees + 1)]


# --- one sphere


def draw_points(axis: Axes, z: Tensor, colour: str = LIGHT.degrees[1], azimuth: float = AZIMUTH) -> None:
    """Draw the points [n, 3] on the unit sphere, seen from `azimuth` (in degrees)."""
    Ball(axis, colour).show(z, azimuth)


class Ball:
    """The sphere on an axis, with points that can be updated: large and dark in front, small and light behind."""

    def __init__(self, axis: Axes, colour: str, theme: Theme = LIGHT) -> None:
        axis.set(xlim=(-1.08, 1.08), ylim=(-1.08, 1.08), aspect="equal")
        axis.axis("off")
        axis.add_patch(Circle((0, 0), 1, facecolor=theme.ball, edgecolor=theme.edge, linewidth=0.9, zorder=0))
        self.grid = [axis.plot([], [], color=grey, linewidth=0.5, zorder=1)[0] for grey in theme.grid]
        self.points = []  # one line per layer, from back to front
        for near in np.linspace(0, 1, LAYERS):
            shade = (0.25 + 0.75 * near) * np.array(to_rgb(colour)) + 0.75 * (1 - near) * np.array(to_rgb(theme.page))
            look = {"markersize": 2 + 2.2 * near, "markeredgewidth": 0.4 if near > 0.5 else 0}
            self.points += axis.plot([], [], "o", color=shade, markeredgecolor=theme.page, zorder=2 + near, **look)
        self.artists: list[Artist] = [*self.grid, *self.points]

    def show(self, z: Tensor, azimuth: float = AZIMUTH) -> None:
        circles = _project(GRID, azimuth)
        for line, hidden in zip(self.grid, (circles[:, 2] > 0, circles[:, 2] < 0), strict=True):
            line.set_data(np.where(hidden[:, None], np.nan, circles[:, :2]).T)
        projected = _project(z.numpy(), azimuth)
        near = np.clip(0.5 + 0.9 * projected[:, 2], 0, 1)
        layer = np.rint((LAYERS - 1) * near)
        for k, points in enumerate(self.points):
            points.set_data(projected[layer == k, :2].T)


def _project(z: np.ndarray, azimuth: float) -> np.ndarray:
    """Camera coordinates of the points [..., 3]: to the right, up, and towards the camera."""
    a, e = np.radians([azimuth, ELEVATION])
    right = [-np.sin(a), np.cos(a), 0.0]
    up = [-np.sin(e) * np.cos(a), -np.sin(e) * np.sin(a), np.cos(e)]
    return z @ np.array([right, up, np.cross(right, up)]).T


def _grid() -> np.ndarray:
    """The equator, two circles of latitude and four great circles through the poles, separated by NaN: [m, 3]."""
    turn = np.linspace(0, 2 * np.pi, 73)
    circles = [np.stack([np.cos(turn), np.sin(turn), np.full_like(turn, height)]) for height in (-0.6, 0.0, 0.6)]
    circles += [np.stack([np.cos(a) * np.cos(turn), np.sin(a) * np.cos(turn), np.sin(turn)]) for a in np.pi * np.arange(4) / 4]
    broken = [np.pad(circle / np.linalg.norm(circle, axis=0), ((0, 0), (0, 1)), constant_values=np.nan) for circle in circles]
    return np.concatenate(broken, axis=1).T


GRID = _grid()


class Bars:
    """A bar chart of the MMD^2 per degree on an axis, with its values, that can be updated."""

    def __init__(self, axis: Axes, colour: str, labelled: bool, theme: Theme = LIGHT) -> None:
        degrees = list(range(1, DEGREES + 1))
        self.bars = axis.bar(degrees, [0.0] * DEGREES, color=colour, width=0.7)
        self.texts = [axis.text(l, 0, "", ha="center", va="bottom", fontsize=8, color=theme.text) for l in degrees]
        axis.set(ylim=(0, 1.3), xlim=(0.4, DEGREES + 0.6), yticks=[], xticks=degrees)
        axis.tick_params(axis="x", length=0, labelsize=8, pad=2, labelcolor=theme.text)
        axis.grid(False)
        axis.set_facecolor(theme.page)
        axis.spines["bottom"].set_color(theme.text)
        axis.spines[["left", "top", "right"]].set_visible(False)
        axis.set_xlabel("degree $l$", fontsize=8, labelpad=1, color=theme.text)
        if labelled:
            axis.set_ylabel("MMD²", fontsize=8, labelpad=4, color=theme.text)
        self.artists: list[Artist] = [*self.bars, *self.texts]

    def show(self, z: Tensor) -> None:
        for bar, text, value in zip(self.bars, self.texts, mmd_per_degree(z), strict=True):
            bar.set_height(value)
            text.set(text=f"{value:.2f}", y=value + 0.03)


# --- several side by side


def draw_snapshots(paths: Mapping[str, Tensor], rows: Mapping[str, int]) -> Figure:
    """One column per path, one row of spheres per entry of `rows` (label: step), then the MMD^2 per degree at the last row.

    Raises:
        SfrikError: the points of a path are not in dimension 3.
    """
    figure, grid = _columns(paths, len(rows), 80, LIGHT)
    last = list(rows.values())[-1]
    for column, (path, colour) in enumerate(zip(paths.values(), _colours(paths, LIGHT), strict=True)):
        for axis, step in zip(grid[:-1, column], rows.values(), strict=True):
            draw_points(axis, path[step], colour)
        Bars(grid[-1, column], colour, column == 0).show(path[last])
    for axis, name in zip(grid[:-1, 0], rows, strict=True):
        axis.text(-0.03, 0.5, name, transform=axis.transAxes, rotation=90, ha="right", va="center")
    return figure


def draw_frames(paths: Mapping[str, Tensor], steps: Sequence[int], dpi: int = 120, dark: bool = False) -> list[Image.Image]:
    """The frames of an animation, one for each of `steps`: one column per path. The camera is fixed: small files.

    Args:
        paths: by name; those of L = 1, L = 2 and L = 3 have the colours of SFRIK.
        steps: of the paths.
        dpi: dots per inch.
        dark: for a dark page.

    Raises:
        SfrikError: the points of a path are not in dimension 3.
    """
    theme = DARK if dark else LIGHT
    figure, grid = _columns(paths, 1, dpi, theme)
    canvas = FigureCanvasAgg(figure)
    colours = _colours(paths, theme)
    balls = [Ball(axis, colour, theme) for axis, colour in zip(grid[0], colours, strict=True)]
    bars = [Bars(axis, colour, axis is grid[1, 0], theme) for axis, colour in zip(grid[1], colours, strict=True)]
    artists = [artist for part in (*balls, *bars) for artist in part.artists]
    for artist in artists:
        artist.set_animated(True)  # keeps it out of the background
    canvas.draw()
    background = canvas.copy_from_bbox(figure.bbox)
    frames = []
    for step in steps:
        canvas.restore_region(background)
        for ball, bar, path in zip(balls, bars, paths.values(), strict=True):
            ball.show(path[step])
            bar.show(path[step])
        for artist in artists:
            figure.draw_artist(artist)
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))
    return frames


def _colours(paths: Mapping[str, Tensor], theme: Theme) -> list[str]:
    """The colour of each path: L = 1, 2 and 3 have those of SFRIK, other kernels those of `look`."""
    degrees = {f"L = {L}": colour for L, colour in enumerate(theme.degrees, start=1)}
    others = [name for name in paths if name not in degrees]
    return [degrees[name] if name in degrees else look(name, others.index(name))["color"] for name in paths]


def _columns(paths: Mapping[str, Tensor], rows: int, dpi: int, theme: Theme) -> tuple[Figure, np.ndarray]:
    """A figure with one column per path, titled with its name: `rows` rows of axes for spheres and one for bars."""
    for name, path in paths.items():
        if path.ndim != 3 or path.shape[2] != 3:
            raise SfrikError(f"only points in dimension 3 can be drawn: {name} has shape {tuple(path.shape)}, not [K + 1, n, 3]")
    height = BALL * rows + BARS + 0.65
    figure = Figure(figsize=(WIDTH * len(paths) + 0.3, height), dpi=dpi, facecolor=theme.page)
    edges = {"left": 0.3 / (WIDTH * len(paths)), "right": 0.995, "bottom": 0.37 / height, "top": 1 - 0.25 / height}
    ratios = {"height_ratios": [BALL] * rows + [BARS], "hspace": 0.04, "wspace": 0.05}
    grid = figure.subplots(rows + 1, len(paths), squeeze=False, gridspec_kw={**edges, **ratios})
    for axis, name in zip(grid[0], paths, strict=True):
        axis.set_title(as_math(name), fontsize=11, pad=2, color=theme.text)
    return figure, grid


# --- animations


def write_gif(frames: Sequence[Image.Image], path: Path | str) -> None:
    """Write the frames atomically as a GIF that repeats for ever and pauses for four seconds at its last frame."""
    content = _encode(frames, "GIF")
    with atomic_write(Path(path), len(content)) as file:
        file.write(content)


def animated_png(frames: Sequence[Image.Image]) -> bytes:
    """The same animation as a PNG. Notebook viewers display any PNG; for a GIF some of them print only its type."""
    return _encode(frames, "PNG")


def _encode(frames: Sequence[Image.Image], format: str) -> bytes:
    first, *rest = _reduce_colours(frames)
    milliseconds = [1000] + [100] * (len(rest) - 1) + [4000]
    content = io.BytesIO()
    first.save(content, format=format, save_all=True, append_images=rest, duration=milliseconds, loop=0)
    return content.getvalue()


def _reduce_colours(frames: Sequence[Image.Image]) -> list[Image.Image]:
    """The frames with one palette for all of them, without dithering.

    They are quantised as one tall image: to map a frame to the palette of another image, Pillow rounds each colour to six bits,
    which turns the white background light grey.
    """
    width, height = frames[0].size
    tall = Image.fromarray(np.concatenate([np.asarray(frame) for frame in frames]))
    tall = tall.quantize(COLOURS_PER_ANIMATION, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    return [tall.crop((0, top, width, top + height)) for top in range(0, tall.height, height)]
