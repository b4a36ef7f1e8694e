"""`make clean` and `make clean-results`: what is rebuilt within seconds goes at once, results only when a person says so.

    python tools/clean.py                        caches, builds, coverage, notebooks that did not reach their end
    python tools/clean.py --results results/digits asks on the terminal; where git tracks files, the folder's name must be typed

Standard library alone: it works before `make setup`, without the virtual environment. What git tracks is never deleted unasked.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("__pycache__", ".pytest_cache", ".ruff_cache", ".mypy_cache", ".ipynb_checkpoints", "htmlcov")  # anywhere
BUILT = ("site", "build", "dist", "docs/_build", "jupyter_execute")  # at these places
UNFINISHED = ("*.partial.ipynb", ".*.tmp")  # what a process that is gone was writing
FILES = (".coverage", ".coverage.*", "coverage.xml", "*.pyc", *UNFINISHED)
KEPT = (".git", ".venv", "node_modules")  # not looked into; an environment of another name is known by its pyvenv.cfg
YOUNG = 3600.0  # seconds: a younger one may still be written


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description="Delete what is rebuilt cheaply, or on request a profile's results.")
    parser.add_argument("--results", metavar="FOLDER", help="results/<profile>")
    options = parser.parse_args(arguments)
    if options.results:
        return _clean_results(Path(options.results))
    found = [path for path in rebuilt(root) if not tracked(path)]
    size = sum(_size(path) for path in found)
    for path in found:
        _delete(path)
    print(f"{len(found)} caches and builds deleted, {_format(size)}; results are left alone (make clean-results)")
    return 0


def rebuilt(root: Path) -> list[Path]:
    """Files and folders under `root` that a command makes again within seconds; none inside another."""
    found = [path for path in (root / name for name in BUILT) if path.is_dir()]
    for place, folders, files in os.walk(root):
        here = Path(place)
        found += [here / name for name in folders if name in FOLDERS]
        folders[:] = [name for name in folders if _looked_into(here / name) and here / name not in found]
        found += [here / name for name in files if any(fnmatch.fnmatch(name, pattern) for pattern in FILES) and _old(here / name)]
    return found


def tracked(path: Path) -> list[str]:
    """The files at or under a path that git tracks; none where there is no git, or no repository."""
    try:
        command = ["git", "-C", str(path if path.is_dir() else path.parent), "ls-files", "-z", "--", str(path.resolve())]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [name for name in listed.split("\0") if name]


def _clean_results(folder: Path) -> int:
    if not folder.is_dir():
        print(f"there are no results in {folder}")
        return 0
    runs = {path.parent for path in folder.rglob("settings.json")}
    # of runs, of what is rendered, and above them of what is submitted to a cluster
    locks = [path for path in (folder.parent / "lock", *folder.rglob("*lock")) if path.name == "lock" or path.suffix == ".lock"]
    busy = sorted(path.parent for path in locks if _is_locked(path))
    if busy:
        print(f"{busy[0]} is being written by another process: stop it first", file=sys.stderr)
        return 1
    if not sys.stdin.isatty():
        print(f"results are deleted by a person at a terminal alone: nothing in {folder} was deleted", file=sys.stderr)
        return 1
    known = tracked(folder)
    print(f"{folder}: {len(runs)} run folders, {_format(_size(folder))}, and the tables and figures made of them")
    if known:
        print(f"git tracks {len(known)} of the files, the published results (git restore {folder} brings back those alone)")
    wanted = folder.name if known else "yes"
    if input(f"type {wanted} to delete all of it: ").strip() != wanted:
        print("nothing was deleted")
        return 1
    shutil.rmtree(folder)
    print(f"{folder} is deleted")
    return 0


def _looked_into(folder: Path) -> bool:
    linked = folder.is_symlink() or (folder / "pyvenv.cfg").is_file()
    return folder.name not in (*KEPT, *FOLDERS) and not linked


def _old(path: Path) -> bool:
    unfinished = any(fnmatch.fnmatch(path.name, pattern) for pattern in UNFINISHED)
    return not unfinished or time.time() - path.lstat().st_mtime > YOUNG


def _is_locked(path: Path) -> bool:
    """Whether a living process holds a lock (`sfrik.system.locks`)."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    if not path.is_file():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    """Bytes of a file, or of all files under a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.lstat().st_size for file in files if not file.is_dir())


def _format(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"


if __name__ == "__main__":
    sys.exit(main())
