"""Copy runs with their weights to examples/weights/, where `sfrik diagnose` and notebooks 03 and 05 find them in a fresh clone.

    python tools/example_weights.py runs/digits/sfrik_l3_q512/seed0 runs/digits/sfrik_l1_q512/seed0

Each run must be finished and of a recipe of the digits profile, after which its folder is named. The backbone is copied as it is,
so scores stay the same. The projector, which only `sfrik diagnose` reads, is stored in float16; the verdict must stay the same.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from sfrik.evaluate.collapse import diagnose
from sfrik.runs.examples import is_of_recipe
from sfrik.settings import examples_root, recipe_names
from sfrik.system.tensor_files import read_safetensors, write_safetensors

PROJECTOR = "projector.safetensors"
MOST_BYTES = 4_000_000  # of all folders together


def recipe_of(settings: dict) -> str:
    """The name of the recipe that a run's settings are of."""
    for name in recipe_names("digits"):
        if is_of_recipe(settings, name, settings["seed"]):
            return name.split("/")[1]
    sys.exit(f"these settings are of no recipe of the digits profile: {settings}")


def copy(run: Path, to: Path) -> None:
    for name in ("settings.json", "metrics.jsonl", "backbone.safetensors"):
        shutil.copyfile(run / name, to / name)
    provenance = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    state, about = read_safetensors(run / PROJECTOR)
    halved = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    provenance["weights"][PROJECTOR] = write_safetensors(to / PROJECTOR, halved, about)
    (to / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="the folder of a finished run")
    root = examples_root()
    root.mkdir(parents=True, exist_ok=True)
    for run in parser.parse_args().runs:
        name = recipe_of(json.loads((run / "settings.json").read_text(encoding="utf-8"))["settings"])
        with tempfile.TemporaryDirectory(dir=root) as folder:
            copy(run, Path(folder))
            before, after = diagnose(run), diagnose(folder)
            print(f"{name}: {after.verdict}, effective rank {before.effective_rank:.3f} -> {after.effective_rank:.3f}")
            if before.verdict != after.verdict:
                sys.exit(f"float16 changes the verdict, which was {before.verdict}: not copied")
            shutil.rmtree(root / name, ignore_errors=True)
            shutil.copytree(folder, root / name)
            (root / name).chmod(0o755)  # a temporary folder is the user's own
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    print(f"{root}: {size / 1e6:.2f} MB")
    if size > MOST_BYTES:
        sys.exit(f"more than {MOST_BYTES / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
