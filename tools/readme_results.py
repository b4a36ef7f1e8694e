"""Write the table "What was found" of README.md from the score files in results/: python tools/readme_results.py.

`make publish` runs it. A test compares them.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from pages import with_parts

from sfrik.tables import build_table
from sfrik.tables.claims import Contrast, value_and_error, verdict
from sfrik.tables.definitions import tables_of
from sfrik.tables.render import markdown_table
from sfrik.tables.rows import DIMS, paper_figures

ROOT = Path(__file__).parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "results"
LINEAR, KERNELS = paper_figures()["linear_in20"], paper_figures()["kernel_choice"]
NBSP = "\N{NO-BREAK SPACE}"
TOP1 = "logistic_top1"
Q = 512  # the largest q of digits and photos


def pair(table, worse, better):
    """The contrast better - worse, written as "worse → better"."""
    return Contrast("→", table, TOP1, {worse: -1.0, better: 1.0})


def loss(profile):
    """How much more VICReg loses than SFRIK from the largest q to the smallest, written as "loss / loss"."""
    small = DIMS[profile][0]
    rows = {("VICReg", Q): 1.0, ("VICReg", small): -1.0, ("SFRIK L=2", Q): -1.0, ("SFRIK L=2", small): 1.0}
    return Contrast("/", "table1", TOP1, rows)


def paper(one, sign, other):
    return NBSP.join([f"{one:.1f}", sign, f"{other:.1f}"])


CLAIMS = (
    (
        "Degree 1 is not enough: L = 1 → L = 2",
        lambda profile: pair("table1", ("SFRIK L=1", Q), ("SFRIK L=2", Q)),
        paper(LINEAR["SFRIK_L1_q8192"], "→", LINEAR["SFRIK_L2"][-1]),
    ),
    (
        "Degree 3 helps: L = 2 → L = 3",
        lambda profile: pair("table1", ("SFRIK L=2", Q), ("SFRIK L=3", Q)),
        paper(LINEAR["SFRIK_L2"][-1], "→", LINEAR["SFRIK_L3_q8192"]),
    ),
    (
        "L = 3 beats the Gaussian kernel: Gaussian → L = 3",
        lambda profile: pair("table2", ("MMD", Q, "exp(-s |u - v|^2)"), ("MMD", Q, "truncated L=3")),
        paper(KERNELS["exp(-t |u - v|^2)"], "→", KERNELS["truncated L=3"]),
    ),
    (
        "VICReg needs a larger q than SFRIK: points lost at q / 4, VICReg / SFRIK",
        loss,
        paper(LINEAR["VICReg"][-1] - LINEAR["VICReg"][1], "/", LINEAR["SFRIK_L2"][-1] - LINEAR["SFRIK_L2"][1]),
    ),
)


def number(mean, spread):
    return f"{mean:.1f}".replace("-", "−") + ("" if spread is None else f"{NBSP}±{NBSP}{spread:.1f}")


def cell(contrast, table):
    """The two sides of a contrast, and its verdict where there is more than one seed; with the smallest number of seeds."""
    value, error, n = value_and_error(contrast, table)
    rows = {(m.row.method, m.row.q, *m.row.labels.values()): m for m in table.measured}
    found = [(rows[key].mean(TOP1), rows[key].spread(TOP1)) for key in contrast.rows]
    if contrast.title == "/":
        found = [(found[0][0] - found[1][0], None), (found[2][0] - found[3][0], None)]
    text = f"{NBSP}{contrast.title} ".join(number(*side) for side in found)
    if error is None:
        return text.replace(" ", NBSP), n
    by_knn = verdict(*value_and_error(replace(contrast, column="knn_top1"), table)[:2])
    called = verdict(value, error)
    return f"{text}: **{called}**" + (f" (20-NN: {by_knn})" if by_knn != called else ""), n


def cost():
    """The row on the cost of the loss: SFRIK's time as a fraction of VICReg's, with plain formulas and with both optimised."""
    rows = {m.row.method: m for m in build_table("table6", "digits", RESULTS).measured if m.row.q == 8192}
    plain = rows["SFRIK L=3 plain"].mean("loss_time_ratio")
    fast = rows["SFRIK L=3"].mean("loss_ms") / rows["VICReg"].mean("loss_ms")
    text = "SFRIK costs less than VICReg at q = 8192: time of its loss / VICReg's"
    faster = paper_figures()["time_and_memory"]["q8192"].partition(",")[0]
    return [text, f"{plain:.2f} plain, {fast:.2f} optimised", "–", f"{faster} steps"]


def found():
    """The lines of the table."""
    seeds, rows = {}, []
    for text, contrast_of, published in CLAIMS:
        cells = []
        for profile in ("digits", "photos"):
            contrast = contrast_of(profile)
            assert contrast.table in tables_of(profile)
            shown, n = cell(contrast, build_table(contrast.table, profile, RESULTS))
            seeds.setdefault(profile, set()).add(n)
            cells.append(shown)
        rows.append([text, *cells, published])
    rows.append(cost())
    counts = {profile: " to ".join(str(n) for n in sorted(ns)) for profile, ns in seeds.items()}
    header = [f"[{profile}](results/{profile}/README.md), n = {counts[profile]}" for profile in counts]
    return markdown_table(["the paper's claim", *header, "the paper"], rows)


def main():
    text = README.read_text(encoding="utf-8")
    written = with_parts(text, {"found": found()})
    README.write_text(written, encoding="utf-8")
    print(f"{README.name}: {'the table has changed' if written != text else 'the table is as before'}")


if __name__ == "__main__":
    main()
