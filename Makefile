# One virtual environment in .venv, made on first use and again whenever the dependencies change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2

.PHONY: app demo test test-core test-agents check docs bench build web clean

demo: .venv-demo/.installed  ## enhance the shipped example; prints where the result, its picture and its scores are
	.venv-demo/bin/python examples/demo.py

app: .venv-app/.installed  ## open the app in the browser
	.venv-app/bin/clearstate app

test: $(STAMP)  ## every test, on WORKERS processes; those with live audio have the machine to themselves
	$(BIN)/python -m pytest --timeout 900 -n $(WORKERS) --dist loadfile -m "not browser and not alone"
	$(BIN)/python -m pytest --timeout 900 -m "browser or alone"

# Pipecat needs older versions of some packages, so its tests have an environment of their own, without PyTorch.
test-agents:  ## the filters for Pipecat and LiveKit, with the real packages
	test -x .venv-agents/bin/python || $(PYTHON) -m venv .venv-agents
	.venv-agents/bin/python -m pip install --quiet pytest '.[pipecat,livekit]'
	.venv-agents/bin/python -m pytest tests/integrations --confcutdir=tests/integrations

# The core alone: the wheel in a new environment without PyTorch, Numba or a compiler.
test-core: build  ## build the wheel, install it in a new environment, and test what it can do there
	rm -rf .venv-core
	$(PYTHON) -m venv .venv-core
	.venv-core/bin/python -m pip install --quiet dist/*.whl pytest
	CLEARSTATE_CORE_ONLY=1 .venv-core/bin/python -m pytest tests/core --confcutdir=tests/core

check: $(STAMP) docs  ## lint, format, types, import rules, doctests, documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest --doctest-modules src/clearstate --ignore src/clearstate/integrations -p no:cacheprovider

docs: $(STAMP)  ## build the documentation into site/; a broken link or a page without a place is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(STAMP)  ## every benchmark; each prints a ratio against a reference in the same run
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

build: $(STAMP)  ## wheel and source archive in dist/, checked
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

web:  ## build the browser package and serve its page on http://127.0.0.1:8000/ (PORT=9000 for another)
	cd web && npm ci --ignore-scripts && npm run serve

# torch first: with the pinned version installed, nothing later asks for another build of it.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps distillmos  # weights of a score; the package itself would need torchaudio
	touch $@

.venv-demo/.installed: pyproject.toml
	test -x .venv-demo/bin/python || $(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python -m pip install --quiet --editable '.[demo]'
	touch $@

.venv-app/.installed: pyproject.toml
	test -x .venv-app/bin/python || $(PYTHON) -m venv .venv-app
	.venv-app/bin/python -m pip install --quiet --editable '.[app]'
	touch $@

clean:
	rm -rf $(VENV) .venv-app .venv-core .venv-agents .venv-demo build dist site demo web/build web/dist web/node_modules
