# fercache: `make demo` shows it work; `make extract`, `make train-heads`, `make stack` are the three steps.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
CACHE ?= cache
STAGES ?= stages
OUT ?= preds.csv
ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

# What the data set is: nothing = the embedded demo, or whatever stages/dataset.toml says.
DATA_FLAGS := $(if $(DATA),--root "$(DATA)") $(if $(DATASET),--dataset "$(DATASET)")
DEVICE_FLAG := $(if $(DEVICE),--device "$(DEVICE)")
# Each process takes neighboring tests, which share fixtures of their module, and later takes over from slower ones.
PYTEST := pytest -q -n auto --dist worksteal
FERCACHE := $(BIN)/fercache --cache "$(CACHE)" --stages "$(STAGES)"

.DEFAULT_GOAL := help
.PHONY: help setup demo check extract train-heads stack all ablation audit test test-full lint types ci hooks docs bench clean

help:  ## show this
	@echo "make TARGET [DATA=folder] [DATASET=affwild2|mtl|dfew|...|table|demo] [CACHE=cache] [STAGES=stages] [DEVICE=cpu|cuda] [OUT=preds.csv] [ARGS=...]"
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "fercache needs Python 3.11 or newer: $$($(PYTHON) --version) found; try 'make PYTHON=python3.12 ...'"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "could not make $(VENV); on Debian and Ubuntu: apt install python3-venv"; exit 2; }
	@touch $@

$(VENV)/.ready: $(VENV)/.made setup.cfg pyproject.toml constraints.txt
	@echo "installing fercache into $(VENV) (torch is large; minutes the first time)"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	@$(PIP) --editable '.[dev]'
	@touch $@

$(VENV)/.ready-docs: $(VENV)/.ready
	@$(PIP) --editable '.[docs]'
	@touch $@

setup: $(VENV)/.ready  ## make .venv and install fercache into it
	@$(BIN)/fercache --version

demo: $(VENV)/.ready  ## the three steps on the embedded demo, with pictures at the end
	@$(FERCACHE) extract --dataset demo $(DEVICE_FLAG)
	@$(FERCACHE) train-heads --dataset demo $(DEVICE_FLAG)
	@$(FERCACHE) stack --dataset demo --out "$(OUT)"
	@$(FERCACHE) timeline --dataset demo --preds "$(OUT)" --out timelines

extract: $(VENV)/.ready  ## stage one: clips -> the embedding store
	@$(FERCACHE) extract $(DATA_FLAGS) $(DEVICE_FLAG) $(ARGS)

check: $(VENV)/.ready  ## the data set against its clips, before hours are spent
	@$(FERCACHE) check $(DATA_FLAGS) $(ARGS)

train-heads: $(VENV)/.ready  ## stage two: store -> out-of-fold logits and heads
	@$(FERCACHE) train-heads $(DATA_FLAGS) $(DEVICE_FLAG) $(ARGS)

stack: $(VENV)/.ready  ## logits -> final predictions in OUT
	@$(FERCACHE) stack $(DATA_FLAGS) --out "$(OUT)" $(ARGS)

# A step that ends with 1 has done all but the clips that failed: the next one works on the rest.
GOES_ON := || { code=$$?; failed=1; [ $$code -eq 1 ] || exit $$code; }

all: $(VENV)/.ready  ## the three, one after the other; clips that fail stop nothing, and are told at the end
	@failed=0; \
	$(FERCACHE) extract $(DATA_FLAGS) $(DEVICE_FLAG) $(ARGS) $(GOES_ON); \
	$(FERCACHE) train-heads $(DATA_FLAGS) $(DEVICE_FLAG) $(ARGS) $(GOES_ON); \
	$(FERCACHE) stack $(DATA_FLAGS) --out "$(OUT)" $(ARGS) $(GOES_ON); \
	[ $$failed -eq 0 ] || { echo "some clips failed (see above); the rest is complete"; exit 1; }

ablation: $(VENV)/.ready  ## what each choice of stage two is worth: a table
	@$(FERCACHE) ablation $(DATA_FLAGS) $(DEVICE_FLAG) $(ARGS)

audit: $(VENV)/.ready  ## proof that nothing leaks: folds, provenance, shuffled labels, copies
	@$(FERCACHE) audit $(DATA_FLAGS) $(ARGS)

test: $(VENV)/.ready-dev  ## the quick suite
	@$(BIN)/python -m $(PYTEST) $(ARGS)

test-full: $(VENV)/.ready-dev  ## the suite with the stated volumes
	@$(BIN)/python -m $(PYTEST) --full $(ARGS)

lint: $(VENV)/.ready-dev  ## style of the code (ruff)
	@$(BIN)/ruff check .

types: $(VENV)/.ready-dev  ## types of the code (mypy --strict)
	@$(BIN)/mypy

ci: lint types  ## lint, types, tests: what CI runs
	@$(BIN)/python -m $(PYTEST) $(ARGS)

hooks: $(VENV)/.ready-dev  ## run lint and types before each git commit
	@$(PIP) pre-commit
	@$(BIN)/pre-commit install

docs: $(VENV)/.ready-docs  ## the documentation as a site in build/docs, its reference made from the code
	@$(BIN)/python docs/generate_reference.py
	@$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet docs build/docs
	@echo build/docs/index.html

bench: $(VENV)/.ready-dev  ## every benchmark, small
	@for bench in tests/bench/bench_*.py; do echo "== $$bench"; $(BIN)/python $$bench || exit 1; done

clean:  ## remove what tools left; never touches the cache
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
