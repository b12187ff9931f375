# fercache: `make demo` runs everything on six clips; `make extract`, `make train-heads`, `make stack` are the stages.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
CACHE ?= cache
STAGES ?= stages
OUT ?= preds.csv
ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
NEWEST := .venv-newest
NEWEST_PIP := $(NEWEST)/bin/python -m pip --disable-pip-version-check install --quiet

# The data set; without these flags, the one in stages/dataset.toml.
DATA_FLAGS := $(if $(DATA),--root "$(DATA)") $(if $(DATASET),--dataset "$(DATASET)")
DEVICE_FLAG := $(if $(DEVICE),--device "$(DEVICE)")
# Each process takes neighboring tests, which share fixtures of their module, and later takes over from slower ones.
PYTEST := pytest -q -n auto --dist worksteal
FERCACHE := $(BIN)/fercache --cache "$(CACHE)" --stages "$(STAGES)"

.DEFAULT_GOAL := help
.PHONY: help setup demo starter check extract train-heads stack all ablation audit test test-full test-newest dist lint types ci hooks docs bench clean

help:  ## show this list
	@echo "make TARGET [DATA=folder] [DATASET=affwild2|mtl|dfew|...|table|demo] [CACHE=cache] [STAGES=stages] [DEVICE=cpu|cuda] [OUT=preds.csv] [ARGS=...]"
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "fercache needs Python 3.11 or newer: $$($(PYTHON) --version) found; try 'make PYTHON=python3.13 ...'"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "could not create $(VENV); on Debian and Ubuntu: apt install python3-venv"; exit 2; }
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

setup: $(VENV)/.ready  ## create .venv and install fercache into it
	@$(BIN)/fercache --version

demo: $(VENV)/.ready  ## all stages on the embedded demo, then a picture per clip
	@$(FERCACHE) extract --dataset demo $(DEVICE_FLAG)
	@$(FERCACHE) train-heads --dataset demo $(DEVICE_FLAG)
	@$(FERCACHE) stack --dataset demo --out "$(OUT)"
	@echo "The table above is of heads that learned from three people only. The starter heads learned from 28,709 photos:"
	@$(FERCACHE) predict --dataset demo --heads starter --out demo $(DEVICE_FLAG)

starter: $(VENV)/.ready  ## make the shipped starter heads again from FER2013=folder, as downloaded
	@$(BIN)/fercache --cache "$(CACHE)" --stages stages/starter extract --dataset fer2013 --root "$(FER2013)" $(DEVICE_FLAG)
	@logits=$$($(BIN)/fercache --cache "$(CACHE)" --stages stages/starter train-heads --dataset fer2013 --root "$(FER2013)" $(DEVICE_FLAG)) \
	  && $(BIN)/python -m fercache.inference.starter "$$logits" fercache/heads/starter

extract: $(VENV)/.ready  ## stage one: clips -> store of features
	@$(FERCACHE) extract $(DATA_FLAGS) $(DEVICE_FLAG) $(ARGS)

check: $(VENV)/.ready  ## compare the data set with its clips before extraction
	@$(FERCACHE) check $(DATA_FLAGS) $(ARGS)

train-heads: $(VENV)/.ready  ## stage two: store -> out-of-fold logits and heads
	@$(FERCACHE) train-heads $(DATA_FLAGS) $(DEVICE_FLAG) $(ARGS)

stack: $(VENV)/.ready  ## logits -> final predictions in OUT
	@$(FERCACHE) stack $(DATA_FLAGS) --out "$(OUT)" $(ARGS)

# Exit code 1: some clips failed and the rest is complete, so the next stage can run on the rest.
GOES_ON := || { code=$$?; failed=1; [ $$code -eq 1 ] || exit $$code; }

all: $(VENV)/.ready  ## all stages; clips that fail do not stop it, and make it end with an error
	@failed=0; \
	$(FERCACHE) extract $(DATA_FLAGS) $(DEVICE_FLAG) $(ARGS) $(GOES_ON); \
	$(FERCACHE) train-heads $(DATA_FLAGS) $(DEVICE_FLAG) $(ARGS) $(GOES_ON); \
	$(FERCACHE) stack $(DATA_FLAGS) --out "$(OUT)" $(ARGS) $(GOES_ON); \
	[ $$failed -eq 0 ] || { echo "some clips failed (see above); the rest is complete"; exit 1; }

ablation: $(VENV)/.ready  ## a table of what each training choice is worth
	@$(FERCACHE) ablation $(DATA_FLAGS) $(DEVICE_FLAG) $(ARGS)

audit: $(VENV)/.ready  ## tests for leakage: folds, provenance, shuffled labels, copies
	@$(FERCACHE) audit $(DATA_FLAGS) $(ARGS)

test: $(VENV)/.ready-dev  ## the tests
	@$(BIN)/python -m $(PYTEST) $(ARGS)

# The time limit of a test, in setup.cfg, is for the small volumes.
test-full: $(VENV)/.ready-dev  ## the tests at their full volumes
	@$(BIN)/python -m $(PYTEST) --full --timeout=7200 $(ARGS)

# A new environment each time: one that exists keeps the versions it has. The editable install writes no build folder,
# whose old modules a later wheel would contain. First without extras, since some of them hold numpy back.
test-newest:  ## the tests on the newest packages, in .venv-newest: first without extras, then with them
	@rm -rf $(NEWEST)
	@$(MAKE) --no-print-directory VENV=$(NEWEST) $(NEWEST)/.made
	@echo "installing the newest packages into $(NEWEST) (torch is large; minutes)"
	@$(NEWEST_PIP) --editable . hypothesis pytest pytest-timeout pytest-xdist
	@$(NEWEST)/bin/python -m $(PYTEST) $(ARGS)
	@$(NEWEST_PIP) --editable '.[dev]'
	@$(NEWEST)/bin/python -m pip check
	@$(NEWEST)/bin/python -m $(PYTEST) $(ARGS)

dist: $(VENV)/.ready  ## build the sdist and the wheel in dist/, and check them
	@rm -rf build dist
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet build twine
	@$(BIN)/python -m build
	@$(BIN)/python -m twine check --strict dist/*
	@size=$$(stat --format=%s dist/*.whl); [ $$size -lt 12000000 ] || { echo "the wheel has $$size bytes; at most 12 MB are allowed"; exit 1; }

lint: $(VENV)/.ready-dev  ## style of the code (ruff)
	@$(BIN)/ruff check .

types: $(VENV)/.ready-dev  ## types of the code (mypy --strict)
	@$(BIN)/mypy

ci: lint types  ## lint, types, tests: what CI runs
	@$(BIN)/python -m $(PYTEST) $(ARGS)

hooks: $(VENV)/.ready-dev  ## run lint and types before each git commit
	@$(PIP) pre-commit
	@$(BIN)/pre-commit install

docs: $(VENV)/.ready-docs  ## the documentation as a site in build/docs; generates the reference from the code
	@$(BIN)/python docs/generate_reference.py
	@$(BIN)/python -m sphinx --builder html --fresh-env --fail-on-warning --keep-going --quiet docs build/docs
	@echo build/docs/index.html

bench: $(VENV)/.ready-dev  ## every benchmark, at a small size
	@for bench in tests/bench/bench_*.py; do echo "== $$bench"; $(BIN)/python $$bench || exit 1; done

clean:  ## remove .venv and files of tools; never touches the cache
	@rm -rf $(VENV) $(NEWEST) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
