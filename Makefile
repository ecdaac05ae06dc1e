# `make demo` and `make test` need Python 3.11 or newer and nothing else: they make .venv themselves.

SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/quickstart

.DEFAULT_GOAL := help
.PHONY: help demo test test-all docs lint format clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

demo: .venv/installed  ## a small sweep on drawn street scenes, its table and its picture
	$(BIN)/segjax sweep --config experiments/quickstart.py --workdir $(DEMO)
	$(BIN)/segjax picture --results $(DEMO) --output $(DEMO)/picture.png
	$(BIN)/segjax baselines --dataset streetscenes --resolution 96x128 --output $(DEMO)/baselines.jsonl > /dev/null
	$(BIN)/segjax table --results $(DEMO) $(DEMO)/baselines.jsonl

test: .venv/installed  ## run the tests that a change needs
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: .venv/installed  ## run all tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

docs: .venv/docs  ## build the documentation into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: .venv/installed  ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/installed  ## put the code in the project's style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## remove .venv and caches; runs/ stays
	rm -rf .venv build *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './runs/*' -prune -exec rm -rf {} +

# The stamp is written last, so that an interrupted installation is taken up again.
.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "segjax needs Python 3.11 or newer, found $$($(PYTHON) --version 2> /dev/null || echo none);" \
	    "name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@extras=dev,onednn; \
	if nvidia-smi --list-gpus 2> /dev/null | grep -q '^GPU'; then extras=dev,cuda12; fi; \
	echo "installing segjax[$$extras] into .venv, which takes a minute or more"; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$$extras]"
	@$(BIN)/python -m segjax.ops.onednn
	@touch $@

.venv/docs: .venv/installed pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[docs]"
	@touch $@
