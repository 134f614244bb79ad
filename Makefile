# One virtual environment in .venv, made on first use and again whenever the dependencies change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check bench clean

demo: $(STAMP)  ## enhance the shipped example; prints where the result, its picture and its scores are
	$(BIN)/python examples/demo.py

test: $(STAMP)  ## every test
	$(BIN)/python -m pytest

check: $(STAMP)  ## lint, format, types, doctests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --doctest-modules src/clearstate -p no:cacheprovider

bench: $(STAMP)  ## every benchmark; each prints a ratio against a reference in the same run
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

# torch first: with the pinned version installed, nothing later asks for another build of it.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist demo
