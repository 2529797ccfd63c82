# Each target sets up what it needs; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# The first of these that is Python 3.11 or newer; or say PYTHON=/path/to/python3.
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$name; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PEERS := .venv-peers
INSTALLED := $(VENV)/.installed
DEVELOPED := $(VENV)/.developed

VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' edgeorch/__init__.py)
SBOMS = $(patsubst playbooks/locks/%.txt,dist/edgeorch-$(VERSION)-%.cdx.json,$(wildcard playbooks/locks/py*.txt))

.PHONY: help demo test lint audit dist sim chaos abuse fuzz lock bench bench-peers soak profile guard clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r target what; do \
		printf 'make %-11s %s\n' "$$target" "$$what"; done

demo: $(INSTALLED) ## Three nodes on this machine run a service; needs Python 3.11+, make and git only
	@$(BIN)/python -m edgeorch demo $(ARGS)

test: $(DEVELOPED) ## Every test that this machine can run; ARGS goes to pytest
	@$(BIN)/python -m pytest $(ARGS)

lint: $(DEVELOPED) ## Style, types, import rules and playbooks
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@# 9xx are off by default, 114 wants a hand-kept list of names, 124 knows no protocols. It takes a second a
	@# file, so files without Trio are spared.
	@grep -rlwE 'async|trio' edgeorch tests --include='*.py' | xargs -n 24 -P 2 $(BIN)/flake8-async \
		--disable=ASYNC9,ASYNC114,ASYNC124 --transform-async-generator-decorators=as_safe_channel
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@# Its configuration is read in this folder only, and it looks for Ansible on PATH.
	@cd playbooks && PATH="$(CURDIR)/$(BIN):$$PATH" ansible-lint --offline --profile production
	@$(MAKE) --no-print-directory audit $(SBOMS)

audit: $(DEVELOPED) ## Known vulnerabilities in what the playbooks install; says so where nobody can be asked
	@$(BIN)/python playbooks/locks/audit.py

# Beside the wheel: what it brings along on each Python.
dist/edgeorch-$(VERSION)-%.cdx.json: playbooks/locks/%.txt pyproject.toml | $(DEVELOPED)
	@mkdir -p dist
	@sed 's/^dynamic = .*/version = "$(VERSION)"/' pyproject.toml >$@.toml
	@PYTHONWARNINGS=ignore $(BIN)/cyclonedx-py requirements $< --output-reproducible --pyproject $@.toml -o $@
	@rm $@.toml

dist: $(SBOMS) ## The wheel, with a bill of materials (CycloneDX) for each Python beside it
	@$(PIP) wheel --no-deps --wheel-dir dist .
	@ls dist

sim: $(DEVELOPED) ## Simulated fleets and a seeded adversary: SEEDS=100 FIRST=1, MINUTES=4, or SEED=42 alone
	@$(BIN)/python tests/simulation/simulate.py --minutes $(or $(MINUTES),60) --first $(or $(FIRST),1) \
		--seeds $(or $(SEEDS),$(if $(MINUTES),1000000,100)) $(if $(SEED),--seed $(SEED)) $(ARGS)

chaos: $(DEVELOPED) ## Five real nodes under load and a seeded adversary: MINUTES=10 or SECONDS=90, SEED=42, ARGS=--json
	@$(BIN)/python tests/faults/chaos.py $(if $(SEED),--seed $(SEED)) \
		$(if $(SECONDS),--seconds $(SECONDS)) $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

abuse: $(DEVELOPED) ## Crowds at a real node, SECONDS=60 each, and what a healthy client finds meanwhile
	@$(BIN)/python tests/abuse/abuse.py --seconds $(or $(SECONDS),60) $(ARGS)

fuzz: $(DEVELOPED) ## Every parser, SECONDS=60 in all; what fails is kept in tests/fuzz/corpus and replayed by the tests
	@$(BIN)/python tests/fuzz/fuzz.py --seconds $(or $(SECONDS),60) $(ARGS)

UV_COMPILE = $(BIN)/uv pip compile --python-platform x86_64-manylinux_2_28 --generate-hashes --no-annotate \
	--no-emit-index-url --no-config --quiet --custom-compile-command 'make lock'

lock: $(DEVELOPED) ## Take up the newest releases that pyproject.toml allows in what the playbooks install
	@$(PIP) install uv
	@for version in 3.11 3.12 3.13 3.14; do \
		$(UV_COMPILE) pyproject.toml --upgrade --python-version $$version -o playbooks/locks/py$${version/./}.txt; done
	@echo pip | $(UV_COMPILE) - --upgrade --python-version 3.11 -o playbooks/locks/pip.txt

bench: $(DEVELOPED) ## Comparisons in turns, judged by their ratios; then a node's and a runner's own figures
	@missed=0; $(BIN)/python benchmarks/run.py $(ARGS) || missed=1; \
		for name in runner node; do $(BIN)/python benchmarks/bench_$$name.py; done; exit $$missed

bench-peers: $(DEVELOPED) $(PEERS)/.installed ## The same work on Celery (needs redis-server), dask and Ray, in turns with a node
	@$(BIN)/python benchmarks/bench_peers.py $(ARGS)

soak: $(DEVELOPED) ## A node at 80 % of its capacity for MINUTES=10: does anything grow, do answers stay as quick?
	@$(BIN)/python benchmarks/soak.py --minutes $(or $(MINUTES),10) $(ARGS)

profile: $(DEVELOPED) ## Where a task's time goes: steps of a real node under load, whose CPU, whose code; ARGS=--write
	@$(BIN)/python benchmarks/steps.py $(ARGS)

guard: $(DEVELOPED) ## Instructions of the hot paths against the committed baseline; needs valgrind
	@$(BIN)/python benchmarks/guard.py $(ARGS)

clean: ## Remove what the targets made
	rm -rf $(VENV) $(PEERS) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "edgeorch needs Python 3.11 or newer, and none is on PATH: install it, or say make PYTHON=/path/to/python3" >&2; exit 1; fi
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "edgeorch needs Python 3.11 or newer; $(PYTHON) is not: say make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) cannot make a virtual environment: install its venv module (Debian: apt install python3-venv)" >&2; exit 1; }

# Each by itself: one that cannot be had here is left out, and tried again the next time.
$(PEERS)/.installed: $(wildcard benchmarks/peers/*.txt) | $(BIN)/python
	@echo "installing Celery, dask.distributed and Ray into $(PEERS)" >&2
	@$(BIN)/python -m venv $(PEERS)
	@missed=0; for one in $^; do \
		$(PEERS)/bin/python -m pip --disable-pip-version-check --quiet install --requirement $$one || missed=1; done; \
		[ $$missed = 1 ] || touch $@

$(INSTALLED): pyproject.toml | $(BIN)/python
	@echo "installing edgeorch into $(VENV)" >&2
	@$(PIP) install --editable .
	@touch $@

$(DEVELOPED): pyproject.toml | $(BIN)/python
	@echo "installing edgeorch and what its tests need into $(VENV)" >&2
	@$(PIP) install --editable '.[dev]'
	@touch $(INSTALLED) $@
