"""Run every notebook in JupyterLab and take screenshots of all of it: python tests/screenshots.py OUT [--profile digits].

OUT becomes a small checkout: the notebooks with their parameters set to the profile, a copy of the profile's runs (or of what was
published) without the run that the notebooks show, which is trained again, and the screenshots shots/<notebook>/01.png, ...
Printed for each notebook: the seconds of Run All, outputs wider than the page, stderr, tracebacks, and formulas with errors. The
exit status is 1 if there was any of the last three.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from browser import chromium
from lab import ROOT, Notebook, jupyterlab, parametrised

RUNS = {"smoke": "sfrik_l3_q64", "digits": "sfrik_l3_q512"}
LIMIT = 1800.0  # seconds per notebook
SIZE = {"width": 1280, "height": 1400}


def checkout(folder: Path, profile: str) -> list[str]:
    """Write notebooks and results into the folder; return the names of the notebooks."""
    results = folder / "runs"
    folder.mkdir(parents=True)
    fresh = [results / profile / name / "seed0" for name in (RUNS[profile], "complexity")]
    sources = [root / profile for root in (ROOT / "runs", ROOT / "results") if (root / profile).is_dir()]
    for source in sources[:1]:
        shutil.copytree(source, results / profile, ignore=shutil.ignore_patterns("notebooks"))
    for run in fresh:
        shutil.rmtree(run, ignore_errors=True)
    shared = {"recipe": f"{profile}/{RUNS[profile]}", "profile": profile, "root": str(results)}
    sources = sorted((ROOT / "notebooks").glob("*.ipynb"))
    for source in sources:
        run = fresh["profile = " in source.read_text(encoding="utf-8")]  # notebook 06 measures a profile, the others use a run
        parametrised(source, folder / "notebooks" / source.name, {**shared, "exp_dir": str(run)})
    return [source.stem for source in sources]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--profile", choices=RUNS, default="smoke")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="notebooks to run, such as 01_kernel_theory")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    names = [name for name in checkout(out, arguments.profile) if name in arguments.only or not arguments.only]
    wrong = 0
    with jupyterlab(out) as address, chromium(skip=False) as browser:
        for name in names:
            page = browser.new_page(viewport=SIZE)
            notebook = Notebook(page, address, name)
            seconds = notebook.run_all(LIMIT)
            errors = notebook.errors()
            pictures, formulas, wide = notebook.screenshots(out / "shots" / name)
            summary = f"{seconds:.0f} s, {pictures} screenshots, {formulas} formulas with errors, {len(errors)} errors"
            print(f"{name}: {summary}", flush=True)
            for beginning in wide:
                print(f"    wider than the page: {beginning} ...", flush=True)
            for error in errors:
                print("    " + error.strip().replace("\n", "\n    "), flush=True)
            wrong += formulas + len(errors)
            notebook.close()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
