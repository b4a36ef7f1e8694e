"""Figures: tables, runs, images, points on the sphere, and the kernel explorer. They need the extra `notebooks`."""

from sfrik.plots.costs import draw_cost_curves, draw_costs
from sfrik.plots.images import draw_confusion, image_sheet, neighbour_grid, sample_photos, thumbnail, view_grid
from sfrik.plots.kernel_explorer import collapsed_costs, draw_kernels, kernel_explorer
from sfrik.plots.runs import draw_diagnosis, draw_training_curves
from sfrik.plots.spectra import draw_spectra, published_losses
from sfrik.plots.sphere import (
    animated_png,
    draw_frames,
    draw_points,
    draw_snapshots,
    gradient_flow,
    mmd_per_degree,
    two_groups,
    write_gif,
)
from sfrik.plots.style import COLOURS, MARKERS, look, save_figure, style, write_figure
from sfrik.plots.tables import draw_accuracy_against_q, draw_rows, draw_table

__all__ = [
    "COLOURS",
    "MARKERS",
    "animated_png",
    "collapsed_costs",
    "draw_accuracy_against_q",
    "draw_confusion",
    "draw_cost_curves",
    "draw_costs",
    "draw_diagnosis",
    "draw_frames",
    "draw_kernels",
    "draw_points",
    "draw_rows",
    "draw_snapshots",
    "draw_spectra",
    "draw_table",
    "draw_training_curves",
    "gradient_flow",
    "image_sheet",
    "kernel_explorer",
    "look",
    "mmd_per_degree",
    "neighbour_grid",
    "published_losses",
    "sample_photos",
    "save_figure",
    "style",
    "thumbnail",
    "two_groups",
    "view_grid",
    "write_figure",
    "write_gif",
]
