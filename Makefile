# semanticmac: extract once, train often. `make help` lists the targets.

PYTHON  ?= python3
DATASET ?= demo
DATA    ?=
ARGS    ?=
SEEDS   ?=
BIN     := .venv/bin

export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)
# Waiting threads sleep: spinning ones cost several times the work itself on a busy machine.
export OMP_WAIT_POLICY ?= passive

.DEFAULT_GOAL := help
.PHONY: help demo manifest extract train compare test lint format clean

help:  ## this list
	@echo "semanticmac: affect from human-spoken videos, in two stages"
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12
	@echo 'bench-NAME  run benchmarks/NAME.py, for example: make bench-read SIZE=small' | sed 's/  /  /'
	@echo
	@echo "  make extract DATASET=ravdess DATA=~/RAVDESS        a dataset of your own disk"
	@echo "  make train DATASET=ravdess ARGS='train.epochs=5'   any key of the configuration"
	@echo "  make train DATASET=ravdess SEEDS=1,2,3,4,5         mean and standard deviation"

demo: $(BIN)/.ready  ## everything on a small synthetic dataset: write, extract, train, metrics
	@$(MAKE) --no-print-directory DATASET=demo manifest
	@$(BIN)/python -m extract demo
	@$(BIN)/python -m train fit dataset=demo $(ARGS)
	@echo && echo "beside each modality alone, and the mean:"
	@$(BIN)/python -m train compare-methods dataset=demo methods=text,audio,vision,mean $(ARGS)

manifest: $(BIN)/.ready  ## what is in DATASET: release folder DATA -> data/DATASET/manifest.parquet
	@$(BIN)/python -m manifests build $(DATASET) $(if $(DATA),--source "$(DATA)")

# A manifest that is there stays, unless DATA says what to build it from again.
THERE := $(wildcard data/$(DATASET)/manifest.parquet)
extract: $(BIN)/.ready $(if $(DATA)$(filter demo,$(DATASET)),manifest,$(if $(THERE),,manifest))  ## decode DATASET's videos below DATA once -> stores/DATASET/
	@$(BIN)/python -m extract $(DATASET) $(if $(DATA),--data "$(DATA)") --allow-failures $(ARGS)

train: $(BIN)/.ready  ## train on DATASET's store, once with each of SEEDS -> runs/DATASET/
	@$(BIN)/python -m train fit dataset=$(DATASET) $(if $(SEEDS),seeds=$(SEEDS)) $(ARGS)

compare: $(BIN)/.ready  ## every method on DATASET's store, with SEEDS -> one table
	@$(BIN)/python -m train compare-methods dataset=$(DATASET) $(if $(SEEDS),seeds=$(SEEDS)) $(ARGS)

test: $(BIN)/.test  ## all tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto $(ARGS)

lint: $(BIN)/.test  ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench-%: $(BIN)/.test
	@$(BIN)/python -m benchmarks.$* $(if $(SIZE),--size $(SIZE)) $(ARGS)

format: $(BIN)/.test  ## let ruff format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove what `make demo` wrote, and the virtual environment
	rm -rf .venv data/demo stores/demo runs/demo

$(BIN)/.ready: setup.cfg semanticmac/__init__.py constraints.txt requirements-embedded.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing (a few minutes the first time) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -r requirements-embedded.txt
	@touch $@

$(BIN)/.test: $(BIN)/.ready requirements-oracle.txt
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[test]'
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -r requirements-oracle.txt
	@touch $@
