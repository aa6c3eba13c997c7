# Every habit of the project by one word. `make setup` is done by whatever needs it.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3

.PHONY: setup demo test check sim fault bench docs clean

setup: .setup-stamp

.setup-stamp: pyproject.toml tools/setup
	@PYTHON=$(PYTHON) tools/setup
	@touch $@

demo: setup
	@$(BIN)/croft demo

check: setup
	@$(BIN)/ruff format --check src tests bench tools examples
	@$(BIN)/ruff check src tests bench tools examples
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/pytest tests/tidy

test: setup
	@tools/test

sim: setup
	@CROFT_CAMPAIGN=long $(BIN)/pytest tests/simulation tests/property --timeout 1800

fault: setup
	@CROFT_CAMPAIGN=long $(BIN)/pytest tests/fault tests/hostile --timeout 1800

bench: setup
	@tools/setup bench
	@$(BIN)/python -m bench

docs: setup
	@$(BIN)/python tools/make_reference.py

clean:
	rm -rf $(VENV) .setup-stamp .mypy_cache .ruff_cache dist build
