"""`make clean` and `make clean-results`: delete what can be rebuilt in seconds, and your runs only after confirmation.

    python tools/clean.py                        caches, builds, coverage data, unfinished notebooks
    python tools/clean.py --results runs/digits  asks for "yes"

Published results, which git tracks, are never deleted.

Uses the standard library only, so that it works before `make setup`. Files that git tracks are never deleted unasked.
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
BUILT = ("site", "build", "dist", "docs/_build", "jupyter_execute")  # in the root only
UNFINISHED = ("*.partial.ipynb", ".*.tmp")  # left behind by processes that were killed
FILES = (".coverage", ".coverage.*", "coverage.xml", "*.pyc", *UNFINISHED)
KEPT = (".git", ".venv", "node_modules")  # never searched; other environments are recognised by their pyvenv.cfg
MINIMUM_AGE = 3600.0  # seconds; a process may still be writing a younger unfinished file


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description="Delete caches and builds, or the results of a profile.")
    parser.add_argument("--results", metavar="FOLDER", help="runs/<profile>")
    options = parser.parse_args(arguments)
    if options.results:
        return _clean_results(Path(options.results).expanduser())
    found = [path for path in rebuilt(root) if not tracked(path)]
    size = sum(_size(path) for path in found)
    for path in found:
        _delete(path)
    print(f"{len(found)} caches and builds deleted, {_format(size)}; results are kept (make clean-results deletes them)")
    return 0


def rebuilt(root: Path) -> list[Path]:
    """Files and folders under `root` that can be rebuilt in seconds; none is inside another."""
    found = [path for path in (root / name for name in BUILT) if path.is_dir()]
    for place, folders, files in os.walk(root):
        here = Path(place)
        found += [here / name for name in folders if name in FOLDERS]
        folders[:] = [name for name in folders if _searched(here / name) and here / name not in found]
        found += [
            here / name for name in files if any(fnmatch.fnmatch(name, pattern) for pattern in FILES) and _stale(here / name)
        ]
    return found


def tracked(path: Path) -> list[str]:
    """The files at or under a path that git tracks; none without git or outside a repository."""
    try:
        git = ["git", "--no-optional-locks", "-C", str(path if path.is_dir() else path.parent)]
        command = [*git, "ls-files", "-z", "--", str(path.resolve())]
        listed = subprocess.run(command, capture_output=True, encoding="utf-8", errors="surrogateescape", check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [name for name in listed.split("\0") if name]


def _clean_results(folder: Path) -> int:
    if not (ROOT / "sfrik" / "recipes" / folder.name / "profile.toml").is_file():  # PROFILE= would be all of results/
        print(f"{folder} is not the folder of a profile's results: PROFILE=digits, for example", file=sys.stderr)
        return 2
    if not folder.is_dir():
        print(f"there are no results in {folder}")
        return 0
    runs = {path.parent for path in folder.rglob("settings.json")}
    # locks of runs and of rendering; the one in the parent folder is held while jobs are submitted to a cluster
    locks = [path for path in (folder.parent / "lock", *folder.rglob("*lock")) if path.name == "lock" or path.suffix == ".lock"]
    locks += [folder.parent / "lock.soft", *folder.rglob("*lock.soft")]
    busy = sorted(path.parent for path in locks if _is_locked(path))
    if busy:
        print(f"{busy[0]} is being written by another process: stop it first", file=sys.stderr)
        return 1
    if known := tracked(folder):
        print(f"git tracks {len(known)} files in {folder}: published results are not deleted", file=sys.stderr)
        return 1
    if sys.stdin is None or not sys.stdin.isatty():
        print(f"deleting results needs confirmation in a terminal: nothing in {folder} was deleted", file=sys.stderr)
        return 1
    print(f"{folder}: {len(runs)} run folders, {_format(_size(folder))}, with their tables and figures")
    if input("type yes to delete all of it: ").strip() != "yes":
        print("nothing was deleted")
        return 1
    shutil.rmtree(folder)
    print(f"{folder} is deleted")
    return 0


def _searched(folder: Path) -> bool:
    linked = folder.is_symlink() or (folder / "pyvenv.cfg").is_file()
    return folder.name not in (*KEPT, *FOLDERS) and not linked


def _stale(path: Path) -> bool:
    unfinished = any(fnmatch.fnmatch(path.name, pattern) for pattern in UNFINISHED)
    return not unfinished or time.time() - path.lstat().st_mtime > MINIMUM_AGE


def _is_locked(path: Path) -> bool:
    """Whether a running process holds a lock (`sfrik.system.locks`); a marker `*.soft` is a lock as long as it exists."""
    if path.suffix == ".soft":
        return path.exists()
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
        except OSError:  # a file system without flock, where the marker is the lock
            return False
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
