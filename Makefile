# Every target works alone in a fresh clone: it makes .venv first.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

.PHONY: help setup system demo demo-k8s test test-long test-pods test-flower hooks check format lint types contracts readme docs wire wire-check images e2e-coco bench fuzz niid niid-short dpsgd figures clean

help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || { echo "making $(VENV) (once; a few minutes)"; $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt 'torch==2.13.0'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

setup: $(STAMP) ## Make .venv with everything that the other targets need

system: ## Install what is not Python: swtpm, tpm2-tools, the Fashion-MNIST data set
	@tools/install-system-packages.sh

demo: $(STAMP) ## Train a model across attested sites on this machine
	@tools/install-system-packages.sh demo
	@$(BIN)/fedlearn demo

demo-k8s: $(STAMP) ## The same with sites in two Kubernetes clusters on this machine
	@tools/get-kubernetes.sh >/dev/null
	@$(BIN)/python tools/demo_k8s.py

test: $(STAMP) ## Run the tests
	@tools/install-system-packages.sh
	@tools/get-axe.sh >/dev/null || echo "axe-core is not installed; the tests of pages report it" >&2
	@tools/get-kubernetes.sh >/dev/null
	@$(BIN)/python -m pytest -q -m 'not long'

test-long: $(STAMP) ## Run the tests that take minutes, image builds and pods among them
	@tools/install-system-packages.sh
	@tools/install-system-packages.sh pods
	@tools/get-kubernetes.sh >/dev/null
	@$(BIN)/python -m pytest -q -m long

test-pods: $(STAMP) ## Train in real pods: kubelet, containerd, our own image (minutes; root)
	@tools/install-system-packages.sh pods
	@tools/get-kubernetes.sh >/dev/null
	@$(BIN)/python -m pytest -q tests/e2e/test_real_pods.py

test-flower: $(STAMP) ## Run Flower's side with the lowest release of Flower too
	@$(BIN)/python tools/flower_releases.py

hooks: $(STAMP) ## Check each `git commit` by format, lint, types and contracts
	@$(BIN)/pre-commit install

check: format lint types contracts wire-check test readme docs ## Everything that CI runs

format: $(STAMP)
	@$(BIN)/ruff format --check .

lint: $(STAMP)
	@$(BIN)/ruff check .

types: $(STAMP)
	@$(BIN)/mypy

contracts: $(STAMP)
	@$(BIN)/lint-imports

readme: $(STAMP)
	@$(BIN)/python tools/check_readme.py
	@$(BIN)/python tools/chart_readme.py --check
	@$(BIN)/python tools/chart_schema.py --check
	@$(BIN)/python tools/lock_images.py --check

docs: $(STAMP) ## Build the documentation below build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

wire: $(STAMP) ## Generate the gRPC code from fedlearn/wire/fedlearn.proto
	@$(BIN)/python tools/generate_wire.py

wire-check: $(STAMP)
	@$(BIN)/python tools/generate_wire.py --check

images: $(STAMP) ## Build the container images below build/images (minutes; root, buildah)
	@images/build.sh

e2e-coco: ## Show on a cluster with TEEs what no other machine can: KUBECONFIG=... JOB=...
	@PATH="$(CURDIR)/$(BIN):$$PATH" tools/e2e-coco.sh

bench: $(STAMP) ## Run the benchmarks (12 minutes); write their numbers and docs/performance.md
	@$(BIN)/python benchmarks/run.py

FUZZ_SECONDS ?= 60
fuzz: $(STAMP) ## Fuzz every parser for FUZZ_SECONDS (60) each; finds lie in .cache/fuzz
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement tests/fuzz/requirements.txt
	@for target in $$($(BIN)/python -m tests.fuzz.fuzz --list); do \
	  echo "== $$target"; \
	  $(BIN)/python -m tests.fuzz.fuzz $$target --seconds $(FUZZ_SECONDS) --corpus .cache/fuzz/$$target \
	    || exit 1; \
	done

# --- experiments: published results and what we get (docs/experiments.md) ---------------
JOBS ?= 1

niid: $(STAMP) ## NIID-Bench on Fashion-MNIST: every cell, over nights; goes on where it was
	@$(BIN)/fedlearn experiment run experiments/niid/experiment.toml --jobs $(JOBS)
	@$(BIN)/fedlearn experiment report experiments/niid/experiment.toml
	@$(BIN)/python experiments/niid/compare.py

niid-short: $(STAMP) ## The same in a profile of 10 rounds and one seed
	@$(BIN)/fedlearn experiment run experiments/niid/short.toml --jobs $(JOBS)
	@$(BIN)/fedlearn experiment report experiments/niid/short.toml
	@$(BIN)/python experiments/niid/compare.py experiments/niid/short.toml

dpsgd: $(STAMP) ## DP-SGD on Fashion-MNIST at epsilon 3, central and federated
	@$(BIN)/fedlearn experiment run experiments/dpsgd/experiment.toml --jobs $(JOBS)
	@$(BIN)/fedlearn experiment report experiments/dpsgd/experiment.toml

figures: $(STAMP) ## Robustness, gradient inversion and membership inference of a small job
	@PATH="$(CURDIR)/$(BIN):$$PATH" experiments/attacks/figures.sh full
	@$(BIN)/fedlearn experiment run experiments/attacks/shares.toml --jobs $(JOBS)
	@$(BIN)/fedlearn experiment report experiments/attacks/shares.toml

clean: ## Remove what the other targets made
	@rm -rf $(VENV) build dist fedlearn-demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
