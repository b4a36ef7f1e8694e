r"""Write the measured numbers of docs/ and notebooks/ from the files in results/ that they link to.

`python tools/measured_numbers.py`, or `make publish`, runs it. A test compares them, and finds numbers with a deviation that are
not such a link. A number is the text of a link; the title of the link names the value:

    [94.3 ± 0.2](../results/digits/sfrik_l2_q512/README.md "table1 linear_top1")                   table and column, as in its CSV
    [273](../results/digits/complexity/README.md "table6 loss_ms SFRIK L=3 plain q=8192 n=512")     and the entry
    [0.06](... "table6 loss_ms SFRIK L=3 q=8192 n=512 / VICReg q=8192 n=512")                       a ratio of two means
    [2.6](../results/digits/sfrik_l3_q512/seed0/metrics.jsonl "loss epoch 15")                      a line of the log, or "step 0"
    [83.9](../results/digits/diagnosis/boundary.json "knn20 of b2_1_sim512")                        a run that a record lists

The number of decimals stays as it is written, and so does whether there is a deviation. "n = 3 seeds; [table 1](...)" is the
number of seeds of that table.
"""

import json
import re
import sys
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from sfrik.tables import build_table

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "notebooks").glob("*.ipynb"))]
# groups: the number, the link, the path below results/, the quote (escaped in a notebook), the title
NUMBER = re.compile(r'\[([−\d.]+(?: ± [\d.]+)?)\]\(([^\s()]*?results/([^\s()]+)) (\\?")([^"\\]+)\\?"\)')
COUNT = re.compile(r"n = [\d to]+ seeds; \[table \d\]\(\S*?results/(\w+)/tables/(table\d)\.md")
table_of = cache(lambda name, profile: build_table(name, profile, ROOT / "results"))


def values(path, title):
    """The value that a title names in a file below results/, and its deviation or None."""
    name, *rest = title.split(" ", 1)
    if path.endswith(".jsonl"):
        kind, number = rest[0].split()
        lines = map(json.loads, (ROOT / "results" / path).read_text(encoding="utf-8").splitlines())
        own = [line for line in lines if ("step" in line) == (kind == "step") and line[kind] == int(number)]
        return own[-1][name], None
    if path.endswith(".json"):
        rows = json.loads((ROOT / "results" / path).read_text(encoding="utf-8"))["runs"]
        return next(row[name] for row in rows if row["run"] == rest[0].removeprefix("of ")), None
    profile, recipe, _ = path.split("/")
    column, _, entry = rest[0].partition(" ")
    own = [m for m in table_of(name, profile).measured if m.row.recipe == f"{profile}/{recipe}"]
    found = [next(m for m in own if (m.row.entry or "") == part) for part in entry.split(" / ")]
    if len(found) == 2:
        return found[0].mean(column) / found[1].mean(column), None
    return found[0].mean(column), found[0].spread(column)


def number(match):
    text, link, path, quote, title = match.groups()
    try:
        value, spread = values(path, title)
    except (KeyError, IndexError, StopIteration, FileNotFoundError):
        value = None
    if value is None:
        raise SystemExit(f'there is no value for [{text}]({link} "{title}"): correct the link, or remove the number')
    if spread is None and "±" in text:
        text = text.split(" ± ")[0]  # one seed
    parts = [part.rpartition(".") for part in text.split(" ± ")]
    shown = [f"{x:.{len(after) if dot else 0}f}" for x, (_, dot, after) in zip((value, spread), parts, strict=False)]
    return f"[{' ± '.join(shown).replace('-', '−')}]({link} {quote}{title}{quote})"


def count(match):
    table = table_of(match[2], match[1])
    seeds = {len(m.seeds) for m in table.measured if m.seeds}
    return re.sub(r"n = [\d to]+ seeds", table.experiment.count(seeds), match[0], count=1)


def written(text):
    return COUNT.sub(count, NUMBER.sub(number, text))


def bare(text):
    """The numbers with a deviation that are not the text of such a link; formulas and code do not count."""
    rest = re.sub(r"```.*?```", "", NUMBER.sub("", text), flags=re.DOTALL)
    return re.findall(r"\d ± \d+(?:\.\d+)?", rest)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
