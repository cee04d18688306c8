# Pyrite. `make help` is the menu. Each target does its own set-up, into .venv.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ITER   ?= 2
RUN    ?= src/pyrite/examples/sample.yaml
STORE  ?= store
ARGS   ?=

export PYRITE_STORE := $(STORE)
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help setup train test test-slow test-real real-s3 real-vllm reliability lint format bench-quality bench-encode bench-search bench-judge docs clean

help: ## show this menu
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  settings: ITER=$(ITER) RUN=$(RUN) STORE=$(STORE) ARGS='key=value ...'"

setup: $(VENV)/.ready ## make the virtual environment

train: $(VENV)/.ready ## a whole run: the built-in sample, or RUN=my-run.yaml
	@$(BIN)/pyrite train $(RUN) iterations=$(ITER) $(ARGS)

test: $(VENV)/.ready-dev ## the tests, in minutes
	@$(BIN)/python -m pytest -m "not slow and not real" $(ARGS)

test-slow: $(VENV)/.ready-dev ## the tests that take long: kills, memory
	@$(BIN)/python -m pytest -m "slow and not real" $(ARGS)

test-real: $(VENV)/.ready-dev ## the tests against real servers, as far as make real-... has installed them
	@$(BIN)/python -m pytest -m real $(ARGS)

real-s3: $(VENV)/.ready-dev ## start a real S3 server (SeaweedFS) on this machine, and say what to export
	@$(BIN)/python scripts/real_s3.py $(ARGS)

real-vllm: ## install vLLM's CPU build and a small model, and start it: ARGS='--port 8000' or ARGS=--install-only
	@$(PYTHON) scripts/real_vllm.py $(ARGS)

reliability: $(VENV)/.ready-dev ## write docs/reliability.md anew: faults of a real S3 server, and what became of them
	@$(BIN)/python scripts/reliability.py

lint: $(VENV)/.ready-dev ## format check, ruff, mypy, import contracts, docs in step
	@$(BIN)/ruff format --check src tests scripts
	@$(BIN)/ruff check src tests scripts
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python scripts/cli_reference.py --check

format: $(VENV)/.ready-dev ## format the code
	@$(BIN)/ruff format src tests scripts
	@$(BIN)/ruff check --fix src tests scripts

docs: $(VENV)/.ready-dev ## write docs/cli.md anew from the commands' help
	@$(BIN)/python scripts/cli_reference.py

bench-quality: $(VENV)/.ready ## real MedQuAD: base, ours, and the known public recipe on the same split
	@$(BIN)/python scripts/bench_quality.py $(ARGS)

bench-encode: $(VENV)/.ready ## encoding speed against plain SentenceTransformer.encode, in the same run
	@$(BIN)/python scripts/bench_encode.py $(ARGS)

bench-judge: $(VENV)/.ready ## the judge's worker against a stub, or a real server with ARGS='--url http://localhost:8000'
	@$(BIN)/python scripts/bench_judge.py $(ARGS)

bench-search: $(VENV)/.ready ## exact search over 1,000,000 chunks: seconds and peak memory
	@$(BIN)/python scripts/bench_search.py $(ARGS)

clean: ## remove the virtual environment and caches, not the store
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/.ready: pyproject.toml requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Pyrite needs Python 3.11 or newer; set PYTHON=/path/to/one" >&2; exit 2; }
	@echo "setting up $(VENV) (once, a minute or two)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready requirements-dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
