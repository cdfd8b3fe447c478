PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help quickstart test test-all test-fast check docs constraints clean

help:  ## list what make can do
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "raygeo needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

quickstart: $(VENV)/.ready  ## set up and run the quick-start study: six losses and their geometry in a few minutes
	$(BIN)/raygeo quickstart

TESTS := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: test-fast  ## set up and run the tests, on two processes: the fast ones, then those that need a cluster or are slow
	$(TESTS) --tier cluster

test-all: test  ## and what few changes concern: nodes, jobs, faults, equivalence, limits of memory; what continuous integration runs
	$(TESTS) --tier long

test-fast: $(VENV)/.ready  ## set up and run what needs neither Ray nor DeepSpeed, in less than three minutes
	$(BIN)/python -m pytest -n 2 --dist loadfile --tier fast

check: $(VENV)/.ready  ## lint, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/.docs: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

docs: $(VENV)/.docs  ## build the documentation site, build/site/index.html, to be read without a network; broken links fail
	$(BIN)/python -m nbconvert --log-level WARN --to markdown --output quickstart-notebook docs/quickstart.ipynb
	$(BIN)/zensical build --clean --strict

constraints: $(VENV)/.ready  ## keep the versions of this environment in constraints.txt
	(echo "# The versions that raygeo was last tested with: pip install -c constraints.txt -e '.[test]'"; \
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//' | grep -v ' @ ') > constraints.txt

clean:  ## remove the environment and caches, never a store
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .import_linter_cache build *.egg-info
