#!/usr/bin/env bash
# The tests with the oldest and with the newest versions in pyproject.toml's ranges: `make matrix`, or
#
#   tests/matrix.sh oldest|newest [FLAGS OF PYTEST]      PYTHON=python3.11, what makes the environment; ENVS=.matrix, where it is kept
#
# oldest: each dependency at its lower bound, what they need themselves as new as fits. Not the tools alone: ruff, pre-commit, the
# type checker and what only builds the documentation. The oldest NumPy has no wheel for Python 3.13.
set -euo pipefail
cd "$(dirname "$0")/.."
which=${1:?oldest or newest}
shift
env=${ENVS:-.matrix}/$which
test -x "$env/bin/python" || "${PYTHON:-python3.11}" -m venv "$env"
"$env/bin/python" -m pip install --quiet --upgrade pip
case $which in
  oldest)
    "$env/bin/python" - > "$env/lowest.txt" <<'PYTHON'
import re
import tomllib

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = project["optional-dependencies"]
for requirement in [*project["dependencies"], *extras["notebooks"], *extras["dev"]]:
    name, version, *marker = re.split(r">=|;", requirement)
    if not marker and name not in ("ruff", "pre-commit", "pyrefly"):
        print(f"{name}=={version.split(',')[0]}")
PYTHON
    "$env/bin/python" -m pip install --quiet --requirement "$env/lowest.txt"
    "$env/bin/python" -m pip install --quiet --no-deps --editable .
    ;;
  newest) "$env/bin/python" -m pip install --quiet --upgrade --upgrade-strategy eager --editable '.[notebooks,dev]' ;;
  *) echo "$which: oldest or newest" >&2 && exit 2 ;;
esac
export PATH="$(cd "$env/bin" && pwd):$PATH"
"$env/bin/python" -m pip list 2>/dev/null | grep -iE '^(torch|torchvision|numpy|scipy|pydantic|pandas|matplotlib|jupyterlab) '
OMP_NUM_THREADS=1 "$env/bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
