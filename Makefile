# Each target does all the set-up it needs and can be run first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
# A file of tests stays in one process: what it has trained is used by all of them.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile
BENCHMARKS := data shard training flows density samplers diffusion distillation likelihood divergence distill_to_flow

.PHONY: demo test check bench clean

demo: $(VENV)/.demo
	$(BIN)/python workflows/demo.py

test: $(VENV)/.dev
	$(BIN)/python -m pytest tests -m "not ray" $(PARALLEL)
	$(BIN)/python -m pytest tests -m ray
	$(BIN)/python -m pytest --doctest-modules sciflow $(PARALLEL)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.bench
	for name in $(BENCHMARKS); do $(BIN)/python tests/benchmarks/$$name.py || exit 1; done

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The extras are installed when pyproject.toml changes, not at every call.
$(VENV)/.%: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install --quiet --disable-pip-version-check -c constraints.txt torch
	$(PIP) install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
