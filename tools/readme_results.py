"""Write the film and the table "What was found" of README.md from results/: python tools/readme_results.py.

`make publish` runs it. A test compares them.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from pages import with_parts

from sfrik.tables import build_table, claims, paper_figures
from sfrik.tables.render import markdown_table

ROOT = Path(__file__).parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "results"
LINEAR, KERNELS = paper_figures()["linear_in20"], paper_figures()["kernel_choice"]
ALT = (
    "Points on the sphere move under kernels of several degrees: with L = 1 they end as two opposite clusters, "
    "from L = 2 on they spread"
)
NBSP = "\N{NO-BREAK SPACE}"


def paper(one, sign, other):
    return NBSP.join([f"{one:.1f}", sign, f"{other:.1f}"])


def lost(vicreg, sfrik):
    return f"VICReg{NBSP}{number(vicreg)}, SFRIK{NBSP}{number(sfrik)}"


def number(mean, spread=None):
    return f"{round(mean, 1) + 0.0:.1f}".replace("-", "−") + ("" if spread is None else f"{NBSP}±{NBSP}{spread:.1f}")


# The contrast of sfrik/tables/contrasts.toml by its title, what the row says of it, and the paper's figures.
CLAIMS = (
    (
        "L = 2 - L = 1",
        "Degree 1 is not enough: L = 1 → L = 2",
        paper(LINEAR["SFRIK_L1_q8192"], "→", LINEAR["SFRIK_L2"][-1]),
    ),
    ("L = 3 - L = 2", "Degree 3 helps: L = 2 → L = 3", paper(LINEAR["SFRIK_L2"][-1], "→", LINEAR["SFRIK_L3_q8192"])),
    (
        "L = 3 - Gaussian kernel",
        "L = 3 beats the Gaussian kernel: Gaussian → L = 3",
        paper(KERNELS["exp(-t |u - v|^2)"], "→", KERNELS["truncated L=3"]),
    ),
    (
        "loss of VICReg - loss of L = 2",
        "VICReg loses more than SFRIK (L = 2) at a small q: points lost from q to q / 4",
        lost(LINEAR["VICReg"][-1] - LINEAR["VICReg"][1], LINEAR["SFRIK_L2"][-1] - LINEAR["SFRIK_L2"][1]),
    ),
)


def film():
    """The film of notebook 01, with its dark variant where there is one."""
    light, dark = (f"results/digits/figures/{name}.gif" for name in ("flow", "flow_dark"))
    if not (ROOT / dark).is_file():
        return [f"![{ALT}]({light})"]
    source = f'  <source media="(prefers-color-scheme: dark)" srcset="{dark}">'
    return ["<picture>", source, f'  <img alt="{ALT}" src="{light}">', "</picture>"]


def cell(result, profile):
    """The two sides of a contrast, and its verdict where there is more than one seed."""
    tables = {
        cells.table: build_table(cells.table, profile, RESULTS) for cells in (*result.contrast.higher, *result.contrast.lower)
    }

    def score(cells):
        measured = next(m for m in tables[cells.table].measured if cells.matches(m.row))
        return measured.mean(result.contrast.column), measured.spread(result.contrast.column)

    higher, lower = (list(map(score, side)) for side in (result.contrast.higher, result.contrast.lower))
    if len(higher) > 1:  # of two methods, from the largest q to the smallest
        text = lost(higher[0][0] - lower[0][0], lower[1][0] - higher[1][0])
    else:
        text = f"{NBSP}→ ".join([number(*lower[0]), number(*higher[0])])
    return text.replace(" ", NBSP) if result.estimate.n == 1 else f"{text}: **{result.verdict}**"


def cost():
    """The row on the cost of the loss: SFRIK's time as a fraction of VICReg's, with plain formulas and with both optimised."""
    costs = [r for family, of_family in claims("digits", RESULTS) for r in of_family if family.relative]
    plain, optimised = (r for r in costs if r.contrast.title == "time of the loss, q = 8192")
    found = [
        f"{name} {1 - r.estimate.mean / 100:.2f}: **{r.verdict}**" for name, r in (("plain", plain), ("optimised", optimised))
    ]
    text = "SFRIK costs less than VICReg at q = 8192: time of its loss, with VICReg's as 1"
    faster = paper_figures()["time_and_memory"]["q8192"].partition(",")[0]
    return [text, f"{', '.join(found)} (n{NBSP}={NBSP}{plain.estimate.n})", "–", f"{faster} steps"]


def found():
    """The lines of the table."""
    seeds, rows = {}, [[text] for _, text, _ in CLAIMS]
    for profile in ("digits", "photos"):
        results = {
            r.contrast.title: r for family, of_family in claims(profile, RESULTS) for r in of_family if not family.relative
        }
        for row, (title, _, _) in zip(rows, CLAIMS, strict=True):
            seeds.setdefault(profile, set()).add(results[title].estimate.n)
            row.append(cell(results[title], profile))
    rows = [[*row, published] for row, (_, _, published) in zip(rows, CLAIMS, strict=True)]
    rows.append(cost())
    counts = {profile: " to ".join(str(n) for n in sorted(ns)) for profile, ns in seeds.items()}
    header = [f"[{profile}](results/{profile}/README.md), n{NBSP}={NBSP}{counts[profile]}" for profile in counts]
    return markdown_table(["the paper's claim", *header, "the paper"], rows)


def main():
    text = README.read_text(encoding="utf-8")
    written = with_parts(text, {"film": film(), "found": found()})
    README.write_text(written, encoding="utf-8")
    print(f"{README.name}: {'it has changed' if written != text else 'it is as before'}")


if __name__ == "__main__":
    main()
