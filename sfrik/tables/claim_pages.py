"""The pages of the paper's claims, <root>/<profile>/README.md, around the table of `sfrik.tables.claims`."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["PAGES", "edges_line", "tables_line"]

CONTENTS = {
    "table1": "linear probing",
    "table2": "kernels",
    "table3": "transfer",
    "table4": "all protocols",
    "table5": "memory",
    "table6": "time and memory",
    "table7": "multi-crop",
    "table8": "few labels",
    "table9": "tuning",
}

DIGITS = """# The paper's claims on the digits profile

MNIST5k (3,500 training digits, 1,000 test digits), an eight-layer ResNet, 16 epochs, two CPU cores: a small experiment, not a
repetition of the paper's. This page is written by `make tables` from the score files in this folder.

Differences are signed so that the claim predicts a positive value. Differences of accuracies are in points of top-1 accuracy (%);
differences of costs are ratios, or have the unit given in the row. *holds*: more than two standard errors above zero; *does not
hold*: more than two below; *not decided*: in between. The standard error comes from the spread over n seeds. With three seeds it
is rough: if there is no true difference, one contrast in five to nine is still called *holds* or *does not hold*. It does not
include the error due to the test images, which all runs share.

{table}

For each kernel of table 2 the alignment weight was chosen separately, on the tuning split with seed 0 (the recipes list the
candidates); the scale and the weight behind the paper's figures are not known.{edges}

{tables}
"""

PHOTOS = """# The paper's claims on the photos profile

{images}; an eight-layer ResNet on two CPU cores: a small experiment, not a repetition of the paper's. This page is written by
`make tables` from the score files in this folder.

Differences are signed so that the claim predicts a positive value, in points of top-1 accuracy (%). *holds*: more than two
standard errors above zero; *does not hold*: more than two below; *not decided*: in between, or one seed, which has no spread. The
standard error comes from the spread over n seeds. With three seeds it is rough: if there is no true difference, one contrast in
five to nine is still called *holds* or *does not hold*. It does not include the error due to the test images, which all runs
share.

{table}

The learning rate of each method was chosen at q = 512 and its weight at each q, on the tuning split with seed 0. SFRIK's were
chosen for L = 3 at q = 512; its weight is proportional to q. For each kernel of table 2 the alignment weight was chosen, with the
rate of L = 3. The scale and the weight behind the paper's figures of the kernels are not known.{edges}

{tables}
"""

PAGES = {"digits": DIGITS, "photos": PHOTOS}


def tables_line(names: Sequence[str]) -> str:
    """The line with links to the tables that have scores."""
    links = ", ".join(f"[{name.removeprefix('table')}](tables/{name}.md) {CONTENTS[name]}" for name in names)
    return (
        f"The tables with means, standard deviations and links to every run: {links}.\n"
        "Figures are in [figures](figures), executed notebooks in [notebooks](notebooks) and in the folders of runs at the "
        "largest q."
    )


def edges_line(edges: Sequence[str]) -> str:
    """The sentence on the choices of table 9 at the edge of their grid."""
    return f"\nChoices of table 9 at the edge of their grid, where a wider grid may be better: {', '.join(edges) or 'none'}."
