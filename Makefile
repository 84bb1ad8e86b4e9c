# semanticmac: extract once, train often. `make help` lists the targets.

PYTHON  ?= python3
DATASET ?= demo
DATA    ?=
ARGS    ?=
BIN     := .venv/bin

# One thread per process unless the user says otherwise: worker processes share the cores.
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)

.DEFAULT_GOAL := help
.PHONY: help demo manifest extract train test lint format clean

help:  ## this list
	@echo "semanticmac: affect from human-spoken videos, in two stages"
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12
	@echo
	@echo "  make extract DATASET=ravdess DATA=~/RAVDESS        a dataset of your own disk"
	@echo "  make train DATASET=ravdess ARGS='optim.epochs=5'   any key of the configuration"

demo: $(BIN)/.ready  ## everything on a small synthetic dataset: write, extract, train, metrics
	@$(MAKE) --no-print-directory DATASET=demo manifest
	@$(BIN)/python -m extract demo
	@$(BIN)/python -m train fit dataset=demo $(ARGS)

manifest: $(BIN)/.ready  ## what is in DATASET: release folder DATA -> data/DATASET/manifest.parquet
	@$(BIN)/python -m manifests build $(DATASET) $(if $(DATA),--source "$(DATA)")

extract: manifest  ## decode DATASET's videos below DATA once -> stores/DATASET/
	@$(BIN)/python -m extract $(DATASET) $(if $(DATA),--data "$(DATA)") --allow-failures $(ARGS)

train: $(BIN)/.ready  ## train on DATASET's store -> runs/DATASET/
	@$(BIN)/python -m train fit dataset=$(DATASET) $(ARGS)

test: $(BIN)/.test  ## all tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto $(ARGS)

lint: $(BIN)/.test  ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(BIN)/.test  ## let ruff format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove what `make demo` wrote, and the virtual environment
	rm -rf .venv data/demo stores/demo runs/demo

$(BIN)/.ready: setup.cfg constraints.txt requirements-embedded.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing (a few minutes the first time) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -r requirements-embedded.txt
	@touch $@

$(BIN)/.test: $(BIN)/.ready requirements-oracle.txt
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[test]'
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -r requirements-oracle.txt
	@touch $@
