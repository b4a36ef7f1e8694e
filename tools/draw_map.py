"""Draw docs/_static/map.svg, the map of the losses of docs/map.md: python tools/draw_map.py."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import matplotlib

matplotlib.use("svg")

from sfrik.plots.spectra import draw_spectra, published_losses
from sfrik.plots.style import style

PICTURE = Path(__file__).parents[1] / "docs" / "_static" / "map.svg"
Q, N, DEGREES = 8192, 256, 6


def spectra():
    """The weights by loss, rounded as the picture records them."""
    found = {name: loss.spectrum(Q, N, DEGREES) for name, loss in published_losses(Q).items()}
    return {name: [float(f"{weight:.4g}") for weight in weights] for name, weights in found.items()}


def main():
    style()
    matplotlib.rcParams["svg.hashsalt"] = "map"
    about = {"Description": json.dumps(spectra()), "Date": None, "Creator": None}
    draw_spectra(spectra()).savefig(PICTURE, metadata=about)
    print(PICTURE.relative_to(PICTURE.parents[2]))


if __name__ == "__main__":
    main()
