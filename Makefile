# Rebuilds the paper's tables. `make` alone prints the targets.
#
#   PROFILE=digits     smoke (minutes, to test), digits (minutes, two CPU cores), cifar10 (one GPU), paper (days, by expectation)
#   SEEDS=1          seeds 0 .. SEEDS-1 of each run
#   JOBS=0           runs side by side; 0: one for each core, or one on a GPU
#   DATA=            folder of the images where a profile needs one (ImageNet: with train/ and val/; STL10, Places205, VOC07 in it)
#   RESULTS=results  the folder of the results
#   LAUNCH=local     slurm: submit the missing runs as jobs, and the table after them; `slurm.toml` has the cluster's settings
#   PARTITION=       slurm: where to; slurm.toml's when empty
#   NODES=1          slurm: nodes of each pretraining
#   GPUS=0           slurm: GPUs of each node, one process for each
#   PROCS=1          slurm: processes on each node that has no GPU
#   TIME=            slurm: limit of a job (20:00:00); one that reaches it saves, requeues itself and goes on
#   PYTHON=python3   what makes the virtual environment (3.11 to 3.14)
#   COVERAGE=        test: 1 reports the lines of sfrik/ that the tests run, but for those that run alone
#   VENV=.venv       the virtual environment; VENV= uses the active one instead (conda: environment.yml)

SHELL := /bin/bash
.DEFAULT_GOAL := help
TABLES := table2 table3 table4 table5 table6 table7 table8 table9
.PHONY: help setup table1 $(TABLES) tables notebooks status test types matrix test-slurm test-lab docs bench lab clean clean-results

PROFILE ?= digits
SEEDS ?= 1
JOBS ?= 0
DATA ?=
RESULTS ?= results
LAUNCH ?= local
# of the command line alone: variables of these names may be in the environment for another purpose
PARTITION =
NODES =
GPUS =
PROCS =
TIME =
PYTHON ?= python3
VENV ?= .venv
COVERAGE =
LAB =

ifeq ($(strip $(VENV)),)
BIN :=
READY :=
else
BIN := $(VENV)/bin/
READY := $(VENV)/ready

# Made anew when the project's requirements changed; pip then installs only what is missing.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || \
	  { echo "sfrik needs Python 3.11 to 3.14, $(PYTHON) is $$($(PYTHON) -V): make setup PYTHON=python3.13" >&2; exit 1; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --editable '.[notebooks,dev,docs]'
	touch $@
endif

# The flags that are set; an empty variable is none.
CLUSTER = $(foreach flag,PARTITION NODES GPUS PROCS TIME,$(if $($(flag)),--$(shell echo $(flag) | tr A-Z a-z) '$($(flag))'))

help:  ## print this list
	@echo "usage: make TARGET [PROFILE=digits|smoke|cifar10|paper] [SEEDS=1] [JOBS=0] [VENV=.venv]"
	@echo "       make TABLE LAUNCH=slurm [PARTITION=...] [NODES=1] [GPUS=0] [PROCS=1] [TIME=...]    and   make status"
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

setup: $(READY)  ## make .venv with the package, the notebooks and the tests (does nothing when nothing changed)

table1: $(READY)  ## linear probing: SimCLR, AUH, VICReg, SFRIK against q; trains what is missing
table2: $(READY)  ## the choice of the kernel: truncated, RBF, power, heat
table3: $(READY)  ## transfer to other images
table4: $(READY)  ## all protocols: linear, transfer, 1 % and 10 % of the labels, kNN
table5: $(READY)  ## peak memory against the batch size
table6: $(READY)  ## time and memory of every regulariser against q
table7: $(READY)  ## two views, OBoW and SwAV multi-crop
table8: $(READY)  ## random crops, few labels (the paper: STL10)
table9: $(READY)  ## each method's grid on the tuning split, the choice, then one test score
table1 $(TABLES):
	$(BIN)python -m sfrik table $@ --profile $(PROFILE) --seeds $(SEEDS) --jobs $(JOBS) --exp-dir $(RESULTS) --data-dir '$(DATA)' \
	  --launch $(LAUNCH) $(CLUSTER)

tables: $(READY)  ## render every table from the scores that are there; trains nothing
	$(BIN)python -m sfrik table all --profile $(PROFILE) --exp-dir $(RESULTS)

notebooks: $(READY)  ## execute every notebook whole, 01 to 07, with outputs, to results/PROFILE/notebooks
	$(BIN)python -m sfrik chapters --profile $(PROFILE) --exp-dir $(RESULTS)

status: $(READY)  ## every run of the tables: done, running, queued, preempted, failed, broken or missing
	$(BIN)python -m sfrik status --profile $(PROFILE) --seeds $(SEEDS) --exp-dir $(RESULTS)

test: $(READY)  ## the whole check: ruff, types, then every test (COVERAGE=1: with the lines of sfrik/ that they run)
	$(BIN)python -m ruff check . && $(BIN)python -m ruff format --check .
	@$(MAKE) --no-print-directory types
	OMP_NUM_THREADS=1 $(BIN)python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not alone and not slurm and not browser' \
	  $(if $(COVERAGE),--cov --cov-report term)
	OMP_NUM_THREADS=1 $(BIN)python -m pytest -m alone

types: $(READY)  ## the type checker on sfrik/
	$(BIN)python -m pyrefly check --python-interpreter-path "$$($(BIN)python -c 'import sys; print(sys.executable)')"

matrix:  ## the tests with the oldest and the newest versions in pyproject.toml's ranges (PYTHON=python3.11; two environments, .matrix)
	PYTHON=$(PYTHON) tests/matrix.sh oldest && PYTHON=$(PYTHON) tests/matrix.sh newest

test-slurm: $(READY)  ## the tests on a SLURM cluster of two nodes on this machine (Debian: slurm-wlm, munge; root)
	$(BIN)python -m pytest -m slurm

test-lab: $(READY)  ## the tests of the notebooks in JupyterLab in a headless browser (Debian: chromium)
	OMP_NUM_THREADS=1 $(BIN)python -m pytest -m browser

# Always anew: what a page shows also depends on files that Sphinx does not watch (executed notebooks, the records of runs).
docs: $(READY)  ## build the documentation as a static site: open site/index.html (needs no network)
	@rm -rf site
	$(BIN)python -m sphinx -q -W --keep-going -b html -c docs -d site/.doctrees . site
	@rm -r site/.doctrees jupyter_execute  # what myst-nb leaves beside the site

bench: $(READY)  ## measure every ratio of docs/speed.md anew (DATA=, a folder of photographs); some twenty minutes
	$(BIN)python benchmarks/bench.py $(if $(DATA),--data '$(DATA)')

clean:  ## delete caches, builds, coverage and unfinished notebooks; never results
	@$(PYTHON) tools/clean.py

clean-results:  ## delete the results of PROFILE: asks first, on a terminal alone
	@$(PYTHON) tools/clean.py --results '$(RESULTS)/$(PROFILE)'

# Its root is the checkout, so that the notebooks' links to results/ work. It offers one kernel, that of this environment, which the
# notebooks name, whatever others the user has; .jupyter/overrides.json keeps it from asking about news, which need a network; and it
# starts no language server, as it would of each type checker that is installed.
lab: $(READY)  ## open the notebooks in JupyterLab (LAB=, more flags of jupyter lab)
	JUPYTER_PATH= JUPYTER_PREFER_ENV_PATH=1 $(BIN)python -m jupyterlab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks \
	  --LabApp.app_settings_dir=.jupyter --KernelSpecManager.allowed_kernelspecs=python3 --LanguageServerManager.autodetect=False \
	  $$([ "$$(id -u)" != 0 ] || echo --allow-root) $(LAB)
