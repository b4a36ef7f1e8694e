#!/usr/bin/env bash
# Build the wheel and the sdist into dist/, then install each in an empty environment and use it in an empty folder.
#
#   tests/package.sh      PYTHON=python3, what makes the environments
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/build"
"$work/build/bin/python" -m pip install --quiet --upgrade pip build twine
rm -rf dist
"$work/build/bin/python" -m build --outdir dist .
"$work/build/bin/python" -m twine check --strict dist/*
for file in dist/*.whl dist/*.tar.gz; do
  echo "--- $file"
  "$python" -m venv --clear "$work/env"
  "$work/env/bin/python" -m pip install --quiet "$file" mlxtend
  mkdir "$work/empty"
  (
    cd "$work/empty"
    export PATH="$work/env/bin:$PATH"
    python -c 'import sfrik, sys; assert sfrik.__file__.startswith(sys.prefix), sfrik.__file__; print(sfrik.SFRIK(dim=512))'
    sfrik --help >help.txt
    sfrik env
    sfrik pretrain --recipe smoke/sfrik_l3_q64 --exp-dir run
    sfrik diagnose run || test $? = 1 # 1: collapsed, which a few steps may be
    sfrik knn-eval --recipe smoke/sfrik_l3_q64 --exp-dir run
  )
  rm -r "$work/empty"
done
