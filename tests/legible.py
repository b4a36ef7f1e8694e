"""A check that no labels of a figure overlap, shared by several test files."""

import itertools
from unittest import mock

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text


def assert_labels_apart(figure: Figure, at_least: int = 11) -> None:
    """Assert that there are at least `at_least` visible texts, that no two overlap, and that each is inside the figure."""
    canvas, draw, drawn = FigureCanvasAgg(figure), Text.draw, []  # only Matplotlib knows which texts it draws
    with mock.patch.object(Text, "draw", lambda text, renderer: drawn.append(text) or draw(text, renderer)):
        canvas.draw()
    boxes = {text: text.get_window_extent(canvas.get_renderer()) for text in drawn if text.get_visible() and text.get_text()}
    assert len(boxes) >= at_least
    for text, box in boxes.items():
        inside = figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1
        assert inside, f"{text.get_text()!r} is cut off"
    for (one, first), (other, second) in itertools.combinations(boxes.items(), 2):
        assert not first.padded(-1).overlaps(second.padded(-1)), f"{one.get_text()!r} overlaps {other.get_text()!r}"
