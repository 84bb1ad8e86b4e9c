# semanticmac: extract once, train often. `make help` lists the targets.

PYTHON  ?= python3
DATASET ?= demo
DATA    ?=
ARGS    ?=
SEEDS   ?=
BIN     := .venv/bin

export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)
# Idle OpenMP threads sleep: on a busy machine, spinning costs several times the work itself.
export OMP_WAIT_POLICY ?= passive

.DEFAULT_GOAL := help
.PHONY: help demo manifest extract train compare test lint format clean

help:  ## list the targets
	@echo "semanticmac: predict affect from videos of people speaking"
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12
	@echo 'bench-NAME  run benchmarks/NAME.py, for example: make bench-read SIZE=small'
	@echo
	@echo "examples:"
	@echo "  make extract DATASET=ravdess DATA=~/RAVDESS"
	@echo "  make train DATASET=ravdess ARGS='train.epochs=5'   set any configuration key"
	@echo "  make train DATASET=ravdess SEEDS=1,2,3,4,5         mean and standard deviation"

demo: $(BIN)/.ready  ## generate a small synthetic dataset, extract it, train on it
	@$(MAKE) --no-print-directory DATASET=demo manifest
	@$(BIN)/python -m extract demo
	@$(BIN)/python -m train fit dataset=demo $(ARGS)
	@echo && echo "compared with each modality alone and with the constant mean:"
	@$(BIN)/python -m train compare-methods dataset=demo methods=text,audio,vision,mean $(ARGS)

manifest: $(BIN)/.ready  ## read the release in DATA -> data/DATASET/manifest.parquet
	@$(BIN)/python -m manifests build $(DATASET) $(if $(DATA),--source "$(DATA)")

# An existing manifest is kept, unless DATA is given: then it is built again.
EXISTING := $(wildcard data/$(DATASET)/manifest.parquet)
extract: $(BIN)/.ready $(if $(DATA)$(filter demo,$(DATASET)),manifest,$(if $(EXISTING),,manifest))  ## decode the videos in DATA once -> stores/DATASET/
	@$(BIN)/python -m extract $(DATASET) $(if $(DATA),--data "$(DATA)") --allow-failures $(ARGS)

train: $(BIN)/.ready  ## train on DATASET's store, one run per seed -> runs/DATASET/
	@$(BIN)/python -m train fit dataset=$(DATASET) $(if $(SEEDS),seeds=$(SEEDS)) $(ARGS)

compare: $(BIN)/.ready  ## train every method on DATASET's store -> one table
	@$(BIN)/python -m train compare-methods dataset=$(DATASET) $(if $(SEEDS),seeds=$(SEEDS)) $(ARGS)

test: $(BIN)/.test  ## run all tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto $(ARGS)

lint: $(BIN)/.test  ## check with ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench-%: $(BIN)/.test
	@$(BIN)/python -m benchmarks.$* $(if $(SIZE),--size $(SIZE)) $(ARGS)

format: $(BIN)/.test  ## format the code with ruff
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove the demo's files and the virtual environment
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
