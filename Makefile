# Reproduces the paper's tables. `make` without a target prints the list of targets.
#
#   PROFILE=digits   smoke (minutes, for tests), digits (minutes, two CPU cores),
#                    photos (hours, two CPU cores), cifar10 and cifar10_quick
#                    (one GPU), paper (days, estimated)
#   SEEDS=1          seeds 0 to SEEDS-1 of each run
#   JOBS=0           number of parallel runs; 0: one per core, or one on a GPU
#   DATA=            image folder: ImageNet's, with train/ and val/ (and STL10,
#                    Places205, VOC07 in it); photos, cifar10: one with train/ and
#                    val/ or test/ of image files, else they are downloaded
#   RESULTS=runs     folder of your runs and tables (the published: results/)
#   TABLE=           publish: a table, several in quotes, or all
#   LAUNCH=local     slurm: submit the missing runs as jobs, then the table;
#                    slurm.toml has the cluster's settings
#   PARTITION=       slurm: the partition; empty: that of slurm.toml
#   NODES=1          slurm: nodes per pretraining
#   GPUS=0           slurm: GPUs per node, with one process per GPU
#   PROCS=1          slurm: processes per node without GPUs
#   TIME=            slurm: time limit of a job (20:00:00); a job that reaches it
#                    saves, requeues itself and resumes
#   PYTHON=python3   Python that creates the virtual environment (3.11 to 3.14)
#   VENV=.venv       the virtual environment; empty: the active environment
#                    (conda: environment.yml)
#   COVERAGE=        test: 1 reports the coverage of sfrik/
#   LAB=             lab: further flags of jupyter lab

SHELL := /bin/bash
# Containers set this to 1: each of the many processes of a table, or of the tests, would compile every module again.
export PYTHONDONTWRITEBYTECODE :=
.DEFAULT_GOAL := help
TABLES := table2 table3 table4 table5 table6 table7 table8 table9
.PHONY: help setup table1 $(TABLES) tables notebooks publish status test types matrix test-slurm test-lab docs bench lab clean clean-results

PROFILE ?= digits
TABLE =
SEEDS ?= 1
JOBS ?= 0
DATA ?=
RESULTS ?= runs
LAUNCH ?= local
# from the command line only: the environment may have variables of these names for other purposes
GPUS_IN_ENVIRONMENT := $(if $(filter environment,$(origin GPUS)),$(filter-out 0,$(value GPUS)))
PARTITION =
NODES =
GPUS =
PROCS =
TIME =
PYTHON ?= python3
VENV ?= .venv
COVERAGE =
LAB =

# $(call quoted,NAME): the text of a variable as one word for the shell, whatever characters it has; ~/ is the home folder.
literal = $(subst |<,,$(subst |<~/,$(HOME)/,|<$(value $(1))))
quoted = '$(subst ','\'',$(call literal,$(1)))'

# A variable that is misspelt would have no effect. Those of the environment are not looked at, nor are names that programs read.
VARIABLES := PROFILE TABLE SEEDS JOBS DATA RESULTS LAUNCH PARTITION NODES GPUS PROCS TIME PYTHON VENV COVERAGE LAB
OTHERS := -* .% MAKE% SHELL HOME PATH LANG LC_% TMPDIR TERM COLUMNS NO_COLOR FORCE_COLOR DISPLAY HTTP% HTTPS% NO_PROXY http% no_proxy \
  SFRIK_% PYTHON% PYTEST_% PIP_% VIRTUAL_ENV OMP_% MKL_% OPENBLAS_% CUDA_% NVIDIA_% NCCL_% GLOO_% TORCH% PYTORCH_% WANDB_% HF_% \
  XDG_% JUPYTER_% SLURM_% SBATCH_% SQUEUE_% MPLBACKEND MPLCONFIGDIR CHROME% LD_LIBRARY_PATH
given := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
PROFILES := $(patsubst sfrik/recipes/%/profile.toml,%,$(wildcard sfrik/recipes/*/profile.toml))
NEAREST = import sys; sys.path.append("sfrik"); from errors import nearest; print(nearest(sys.argv[1], sys.argv[2:], 0.75), end="")
unknown := $(firstword $(filter-out $(VARIABLES) $(OTHERS),$(given)))
ifneq ($(unknown),)
  near := $(shell $(call quoted,PYTHON) -c '$(NEAREST)' '$(unknown)' $(VARIABLES))
  $(error make has no variable $(unknown)$(near): the first lines of the Makefile list them; for a program, write $(unknown)=... before make)
endif
known := $(and $(filter 1,$(words $(value PROFILE))),$(filter $(PROFILES),$(value PROFILE)))
ifneq ($(and $(PROFILES),$(filter PROFILE,$(given)),$(if $(known),,unknown)),)
  near := $(shell $(call quoted,PYTHON) -c '$(NEAREST)' $(call quoted,PROFILE) $(PROFILES))
  $(error unknown PROFILE $(value PROFILE)$(near): choose one of $(sort $(PROFILES)))
endif
ifneq ($(and $(GPUS_IN_ENVIRONMENT),$(filter table%,$(MAKECMDGOALS))),)
  $(error GPUS=$(GPUS_IN_ENVIRONMENT) of the environment has no effect: use make ... LAUNCH=slurm GPUS=$(GPUS_IN_ENVIRONMENT) or unset it)
endif

ifeq ($(strip $(value VENV)),)
BIN :=
READY :=
else
BIN := $(call quoted,VENV)/bin/
space := $(subst ,, )
READY := $(subst $(space),\ ,$(call literal,VENV))/ready

# Updated when the project's requirements change; pip then installs only the missing packages.
$(READY): pyproject.toml
	@$(call quoted,PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || \
	  { echo "sfrik needs Python 3.11 to 3.14, "$(call quoted,PYTHON)" is $$($(call quoted,PYTHON) -V): make setup PYTHON=python3.13" >&2; \
	    exit 1; }
	test -x $(BIN)python || $(call quoted,PYTHON) -m venv $(call quoted,VENV)
	$(BIN)python -m pip install --quiet --upgrade pip
	$(BIN)python -m pip install --quiet --editable '.[notebooks,dev,docs]'
	touch $(call quoted,VENV)/ready
endif

PLACE = --profile=$(call quoted,PROFILE) --results=$(call quoted,RESULTS)
# Set for the commands that a command proposes at its end: make started it, with this environment.
PROPOSE = SFRIK_MAKE=$(if $(filter command,$(origin VENV)),VENV=$(call quoted,VENV))
# The flags of the variables that are not empty.
CLUSTER = $(foreach flag,PARTITION NODES GPUS PROCS TIME,$(if $(value $(flag)),--$(shell echo $(flag) | tr A-Z a-z) $(call quoted,$(flag))))

##@ start
help:  ## print this list
	@echo "usage: make TARGET [NAME=VALUE ...], as in: make table1 PROFILE=photos SEEDS=3"
	@awk -F ':.*## ' '/^##@ / { printf "\n%s:\n", substr($$0, 5) } /^[a-z0-9-]+:.*## / { printf "  %-15s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo; echo "variables, with their defaults:"; sed -n 's/^#   /  /p' $(MAKEFILE_LIST)

setup: $(READY)  ## create .venv with the package and all that it needs

# The root is the checkout, so that the notebooks' links to results/ work. Only this environment's kernel is offered, since the
# notebooks use it. .jupyter/overrides.json disables the question about news, which need a network. Language servers are disabled:
# JupyterLab would start one for each installed type checker.
lab: $(READY)  ## open notebook 01 in JupyterLab
	JUPYTER_PATH= JUPYTER_PREFER_ENV_PATH=1 $(BIN)python -m jupyterlab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/01_kernel_theory.ipynb \
	  --LabApp.app_settings_dir=.jupyter --KernelSpecManager.allowed_kernelspecs=python3 --LanguageServerManager.autodetect=False \
	  $$([ "$$(id -u)" != 0 ] || echo --allow-root) $(LAB)

##@ the paper's tables; each trains the runs that it lacks
table1: $(READY)  ## linear probing of SimCLR, AUH, VICReg and SFRIK for several q
table2: $(READY)  ## choice of the kernel: truncated, RBF, power, heat
table3: $(READY)  ## transfer to other data sets
table4: $(READY)  ## linear probing, transfer, 1 % and 10 % of the labels, kNN
table5: $(READY)  ## peak memory for several batch sizes
table6: $(READY)  ## time and memory of every regulariser for several q
table7: $(READY)  ## two views, OBoW and SwAV multi-crop
table8: $(READY)  ## random crops, few labels (in the paper: STL10)
table9: $(READY)  ## each method's grid on the tuning split, then one test score
table1 $(TABLES):
	@$(PROPOSE) $(BIN)python -m sfrik table $@ $(PLACE) --seeds $(call quoted,SEEDS) --jobs $(call quoted,JOBS) --data-dir=$(call quoted,DATA) \
	  --launch $(call quoted,LAUNCH) $(CLUSTER)

tables: $(READY)  ## render every table from the existing scores
	@$(BIN)python -m sfrik table all $(PLACE)

publish: $(READY)  ## copy the finished runs of TABLE to results/PROFILE
	$(BIN)python -m sfrik publish $(PLACE) -- $(call quoted,TABLE)
	@$(BIN)python tools/readme_results.py
	@$(BIN)python tools/measured_numbers.py

status: $(READY)  ## show which runs are done, running, failed or missing
	@$(BIN)python -m sfrik status $(PLACE) --seeds $(call quoted,SEEDS)

##@ notebooks and documentation
notebooks: $(READY)  ## execute all notebooks into runs/PROFILE/notebooks
	@$(BIN)python -m sfrik chapters $(PLACE) --data-dir=$(call quoted,DATA)

# Always rebuilt from scratch: pages also depend on files that Sphinx does not track (executed notebooks, records of runs).
docs: $(READY)  ## build the documentation, site/index.html
	@rm -rf site
	$(BIN)python -m sphinx -q -W --keep-going -b html -c docs -d site/.doctrees . site
	@rm -r site/.doctrees jupyter_execute  # left behind by myst-nb

##@ checks
# One process more than cores, at most 8: many tests wait for commands that they started.
test: $(READY)  ## ruff, types, all tests
	$(BIN)python -m ruff check . && $(BIN)python -m ruff format --check .
	@$(MAKE) --no-print-directory types
	OMP_NUM_THREADS=1 $(BIN)python -m pytest --dist loadfile --no-loadscope-reorder $(if $(COVERAGE),--cov --cov-report term) \
	  -n "$$($(BIN)python -c 'from sfrik.system.devices import cores; print(min(8, cores() + 1))')"

types: $(READY)  ## type-check sfrik/
	$(BIN)python -m pyrefly check --python-interpreter-path "$$($(BIN)python -c 'import sys; print(sys.executable)')"

matrix:  ## the tests with the oldest and the newest packages
	export PYTHON=$(call quoted,PYTHON) && tests/matrix.sh oldest && tests/matrix.sh newest

test-slurm: $(READY)  ## the SLURM tests, on two nodes here (root, slurm-wlm, munge)
	$(BIN)python -m pytest -m slurm tests/reproduce/test_slurm_cluster.py

test-lab: $(READY)  ## the notebooks in JupyterLab, in a browser (needs chromium)
	OMP_NUM_THREADS=1 $(BIN)python -m pytest -m browser

bench: $(READY)  ## repeat the measurements of docs/speed.md (20 minutes)
	$(BIN)python benchmarks/bench.py $(if $(value DATA),--data=$(call quoted,DATA))

##@ deleting
clean:  ## delete caches and builds, but no results
	@$(call quoted,PYTHON) tools/clean.py

clean-results:  ## delete your runs and tables of PROFILE; asks first
	@$(call quoted,PYTHON) tools/clean.py --results=$(call quoted,RESULTS)/$(call quoted,PROFILE)
