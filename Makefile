# Pyrite. `make help` is the menu. Each target does its own set-up, into .venv.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ITER   ?=
RUN    ?= src/pyrite/examples/sample.yaml
STORE  ?= store
ARGS   ?=
ON     ?= here

export PYRITE_STORE := $(STORE)
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help setup train test test-slow test-real test-cluster kube images chart real-s3 real-vllm real-prometheus reliability reliability-cluster lint format bench-quality bench-encode bench-search bench-judge prove-judging docs dashboards-preview clean

help: ## show this menu
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { line = sprintf("  make %-20s", $$1); n = split($$2, words, " "); \
	  for (i = 1; i <= n; i++) { if (length(line " " words[i]) > 79) { print line; line = sprintf("%27s", "") } \
	    line = line " " words[i] } print line }' $(MAKEFILE_LIST)
	@echo
	@echo "  settings: ITER=$(or $(ITER),as RUN says) RUN=$(RUN) STORE=$(STORE) ON=$(ON) ARGS='key=value ...'"

setup: $(VENV)/.ready ## make the virtual environment

train: $(VENV)/.ready ## a whole run: the built-in sample, or RUN=my-run.yaml; ON=cluster has Kubernetes do it
	@$(BIN)/pyrite $(if $(filter cluster,$(ON)),submit,train) $(RUN) $(if $(ITER),iterations=$(ITER)) $(ARGS)

test-cluster: $(VENV)/.ready-dev ## the tests on a real Kubernetes; starts one where it can: ARGS='tests/real/cluster -k whole'
	@bash scripts/test_cluster.sh $(ARGS)

images: ## the worker's and the controller's container image, with docker, podman or buildah: ARGS='--gpu --only worker'
	@$(PYTHON) scripts/images.py $(ARGS)

chart: $(VENV)/.ready-dev ## lint, render and check the chart (needs helm and kube-score on PATH, or beside KUBECONFIG)
	@$(BIN)/python -m pytest tests/charts $(ARGS)

kube: ## a one-node Kubernetes on this machine, for tests and first steps
	@bash scripts/kube.sh

test: $(VENV)/.ready-dev ## the tests, in minutes
	@$(BIN)/python -m pytest -n 3 --dist loadfile -m "not slow and not real" $(ARGS)

test-slow: $(VENV)/.ready-dev ## the tests that take long: whole runs, kills, faults
	@$(BIN)/python -m pytest -m "slow and not real" $(ARGS)

test-real: $(VENV)/.ready-dev ## the tests against real servers, as far as make real-... has installed them
	@$(BIN)/python -m pytest -m real $(ARGS)

real-s3: $(VENV)/.ready-dev ## start a real S3 server (SeaweedFS) on this machine, and say what to export
	@$(BIN)/python scripts/real_s3.py $(ARGS)

real-vllm: ## install vLLM's CPU build and a small model, and start it: ARGS='--port 8000' or ARGS=--install-only
	@$(PYTHON) scripts/real_vllm.py $(ARGS)

real-prometheus: ## install Prometheus and promtool (Debian), for tests of rules and dashboards
	@bash scripts/install_prometheus.sh

reliability: $(VENV)/.ready-dev ## write docs/reliability.md anew: faults of a real S3 server, and what became of them
	@$(BIN)/python scripts/reliability.py

reliability-cluster: $(VENV)/.ready-dev ## write docs/reliability-cluster.md anew: faults of a real Kubernetes, and what became of them
	@$(BIN)/python scripts/reliability_cluster.py

lint: $(VENV)/.ready-dev ## format check, ruff, mypy, import contracts, docs in step
	@$(BIN)/ruff format --check src tests scripts
	@$(BIN)/ruff check src tests scripts
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/hadolint images/*/Dockerfile
	@$(BIN)/shellcheck scripts/*.sh images/*.sh .ci/run
	@$(BIN)/python scripts/cli_reference.py --check
	@$(BIN)/python scripts/crd.py --check
	@$(BIN)/python scripts/chart_values.py --check
	@$(BIN)/python scripts/metrics_reference.py --check
	@$(BIN)/python scripts/dashboards.py --check

format: $(VENV)/.ready-dev ## format the code
	@$(BIN)/ruff format src tests scripts
	@$(BIN)/ruff check --fix src tests scripts

docs: $(VENV)/.ready-dev ## write anew what is made from the code: docs/cli.md and metrics.md, the chart's CRD, values, dashboards
	@$(BIN)/python scripts/cli_reference.py
	@$(BIN)/python scripts/crd.py
	@$(BIN)/python scripts/chart_values.py
	@$(BIN)/python scripts/metrics_reference.py
	@$(BIN)/python scripts/dashboards.py

dashboards-preview: $(VENV)/.ready-dev ## draw the dashboards as pages, with made-up numbers or a Prometheus': ARGS='--url http://localhost:9090'
	@$(BIN)/python scripts/dashboards_preview.py $(ARGS)

bench-quality: $(VENV)/.ready ## real MedQuAD: base, ours, and the known public recipe on the same split
	@$(BIN)/python scripts/bench_quality.py $(ARGS)

bench-encode: $(VENV)/.ready ## encoding speed against plain SentenceTransformer.encode, in the same run
	@$(BIN)/python scripts/bench_encode.py $(ARGS)

bench-judge: $(VENV)/.ready ## the judge's worker against a stub, the whole stage with ARGS=--whole, or a real server with ARGS='--url http://localhost:8000'
	@$(BIN)/python scripts/bench_judge.py $(ARGS)

prove-judging: $(VENV)/.ready ## judging under fire: workers and a real vLLM server are killed again and again: ARGS='--signal TERM'
	@$(BIN)/python scripts/prove_judging.py $(ARGS)

bench-search: $(VENV)/.ready ## exact search over 1,000,000 passages: seconds and peak memory
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
