# Each target does its own set-up: a virtual environment in .venv with the versions of constraints.txt. What `demo`
# needs is a part of what the others need, and lies in the same one.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow test-oldest bench bench-gpu docs lint types clean

demo: .venv/package ## the quickstart experiment, to its gathered file, what is in it, and a report
	@echo '== 1 of 3: trains 2 seeds x 60 steps, records every step, and gathers one file: 627 MB, and as much for the runs alone'
	$(BIN)/flannel-pl fit --config configs/quickstart.yaml
	@echo '== 2 of 3: says what is in that file'
	$(BIN)/flannel-pl info runs/quickstart/quickstart.safetensors
	@echo '== 3 of 3: measures how the embeddings moved, and draws it'
	$(BIN)/flannel-pl report runs/quickstart
	@echo '== Done. Look at runs/quickstart/report/index.html; `rm -r runs/quickstart` removes all of it.'

test: lint types ## lint, types, and the tests that take seconds
	$(BIN)/python -m pytest -n auto --maxprocesses 4

# Those that measure no time and kill no processes may share the cores.
SIDE_BY_SIDE := tests/analysis tests/api tests/corpus tests/docs tests/recording \
  $(addprefix tests/test_,arguments.py configs.py examples.py mutations.py peers.py stored.py wheel.py)

test-slow: .venv/installed ## the tests that take minutes
	$(BIN)/python -m pytest -m slow -n auto --maxprocesses 4 --dist loadfile $(SIDE_BY_SIDE)
	$(BIN)/python -m pytest -m slow $(addprefix --ignore=,$(SIDE_BY_SIDE))

# The oldest versions that pyproject.toml allows; on Linux a torch with CUDA. They are older than the warnings of
# what they are built on.
test-oldest: ## the tests that take seconds, with the oldest versions of what is needed
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-oldest/bin/uv pip install --quiet --python .venv-oldest/bin/python --resolution lowest-direct -e '.[dev]'
	.venv-oldest/bin/python -m pytest -W ignore::DeprecationWarning

bench: .venv/installed ## what is promised, measured next to the notebook's code; minutes, on a quiet machine
	$(BIN)/python -m benchmarks --pages

bench-gpu: .venv/installed ## the same on a CUDA device
	$(BIN)/python -m benchmarks --accelerator gpu

docs: .venv/installed ## the documentation site, into site/; a link or reference that leads nowhere fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy

# flannel-pl and what it needs.
.venv/package: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "flannel-pl needs Python 3.11 or newer, and this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	@echo '== Installs flannel-pl and what it needs into .venv; PyTorch is large, so that this can take minutes'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

# The tools of whoever works on flannel-pl, besides.
.venv/installed: .venv/package
	@echo '== Installs linter, type checker and test runner into .venv'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv .venv-oldest site
