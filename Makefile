# Every command of the project, by one name. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.graft-setup
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
# The first Python that is new enough; another one by `make setup PYTHON=/path/to/python3.12`.
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$name -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$name && break; done)
# uv, from the path where it is there; otherwise from a small environment of its own, beside .venv.
TOOLS := .tools
PEERS := .venv-peers
# Where Debian's package puts Fashion-MNIST; where it is not installed it is fetched.
FASHION := $(or $(wildcard /usr/share/datasets/fashion-mnist),$(CURDIR)/.datasets/fashion-mnist)
UV := $(shell command -v uv 2>/dev/null || echo $(TOOLS)/bin/uv)
# Each process would compile all that it imports anew: seconds of every start, and most of what collecting the tests takes.
unexport PYTHONDONTWRITEBYTECODE

##@ To begin with

.PHONY: help
help: ## List these commands
	@awk 'BEGIN {FS = ":.*## "} \
		/^##@ / {printf "\n\033[1m%s\033[0m\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  \033[36mmake %-15s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(STAMP) ## Make .venv with everything in it (again only when something changed)

.PHONY: demo
demo: setup ## Transfer learning on handwritten digits, end to end, in about two minutes
	@$(BIN)/python -m client.demo

.PHONY: serve
serve: setup ## Start the service on http://127.0.0.1:8000
	@$(BIN)/graft serve

##@ To work on it

.PHONY: test
test: setup ## Run the whole suite in four processes (arguments by ARGS="-k cancel")
	@$(BIN)/python -m pytest -n 4 --dist loadfile $(ARGS)

.PHONY: test-stacks
test-stacks: setup ## Run on the other stack, too, those tests of the workers that the suite runs on one
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "other_stack and not gpu" $(ARGS)

.PHONY: test-compile
test-compile: setup ## Run the tests that have torch.compile call the C++ compiler
	@$(BIN)/python -m pytest -m compiles $(ARGS)

.PHONY: test-gpu
test-gpu: setup ## Run the tests that need a CUDA device
	@$(BIN)/python -m pytest -m gpu $(ARGS)

.PHONY: fashion-mnist
fashion-mnist: $(FASHION) ## Fetch Fashion-MNIST's files, from Debian's package, where they are not here

.PHONY: test-fashion
test-fashion: setup $(FASHION) ## Run the tests that need Fashion-MNIST's files
	@GRAFT_INPUTS_DIR="$(patsubst %/,%,$(dir $(FASHION)))" $(BIN)/python -m pytest -m fashion $(ARGS)

.PHONY: chaos
chaos: setup ## Kill, freeze and restart at random whatever jobs need, and see that nobody can tell (ARGS="--faults 30 --seed 7")
	@$(BIN)/python tests/chaos/command.py $(ARGS)

.PHONY: lint
lint: setup ## Check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

.PHONY: format
format: setup ## Mend style and formatting
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: types
types: setup ## Check types, strictly
	@$(BIN)/mypy

.PHONY: contracts
contracts: setup ## Check who may import whom
	@$(BIN)/lint-imports

.PHONY: migrations
migrations: setup ## Check that the migrations make exactly the tables of store/tables.py
	@directory=$$(mktemp -d) && trap 'rm -rf "$$directory"' EXIT && export GRAFT_DATA_DIR="$$directory" && \
		$(BIN)/alembic upgrade head && $(BIN)/alembic check

.PHONY: bench
bench: setup ## Measure the loop, the optimizer, augmentation, the transfer of weights, the start of a job, its latencies and the service
	@$(BIN)/python benchmarks/loop.py
	@$(BIN)/python benchmarks/optimizer.py
	@$(BIN)/python benchmarks/heap.py
	@$(BIN)/python benchmarks/features.py
	@$(BIN)/python benchmarks/augment.py
	@$(BIN)/python benchmarks/start.py
	@$(BIN)/python benchmarks/latency.py
	@$(BIN)/python benchmarks/transfer.py
	@$(BIN)/python benchmarks/service.py

.PHONY: benchmark-peers
benchmark-peers: $(PEERS)/.graft-setup ## Measure the loop beside Lightning, fastai, timm and the Hugging Face Trainer (ARGS="--quick")
	@cd benchmarks && GRAFT_INPUTS_DIR="$(patsubst %/,%,$(dir $(FASHION)))" ../$(PEERS)/bin/python peers.py $(ARGS)

.PHONY: lock
lock: $(UV) ## Pin the newest versions that pyproject.toml allows, with hashes (the image's: the same, less the dev extra)
	@$(UV) pip compile --universal --generate-hashes --python-version 3.11 --extra dev --extra timm --extra demo --no-header --quiet --upgrade \
		pyproject.toml --output-file requirements.lock
	@$(UV) pip compile --universal --generate-hashes --python-version 3.11 --extra timm --extra demo --no-header --no-annotate --quiet \
		--constraints requirements.lock pyproject.toml --output-file requirements-prod.lock

.PHONY: clean
clean: ## Remove caches and build outputs (.venv and your data stay)
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	@find . -name __pycache__ -not -path './$(VENV)/*' -not -path './$(TOOLS)/*' -prune -exec rm -rf {} +

$(STAMP): requirements.lock pyproject.toml | $(UV)
	@test -n "$(PYTHON)" || { echo "Graft needs Python 3.11 or newer, and none is on the path." \
		"Say where one is: make setup PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c '$(NEW_ENOUGH)' || { echo "Graft needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V)." >&2; exit 1; }
	@echo "Setting up $(VENV) (PyTorch is large: the first time takes a few minutes)"
	@test -x $(BIN)/python || $(UV) venv --quiet --python "$$(command -v $(PYTHON))" $(VENV)
	@$(UV) pip install --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

# The peers of the benchmark, on the very versions of everything else that the lock has; none of them is a dependency.
$(PEERS)/.graft-setup: $(STAMP) $(FASHION)
	@echo "Setting up $(PEERS) with the libraries to compare with"
	@test -x $(PEERS)/bin/python || $(UV) venv --quiet --python "$$(command -v $(PYTHON))" $(PEERS)
	@$(UV) pip install --quiet --python $(PEERS)/bin/python --require-hashes -r requirements.lock
	@$(UV) pip install --python $(PEERS)/bin/python --no-build-isolation --constraints requirements.lock -e '.[benchmark]'
	@touch $@

# Without root, and without touching the system: the package is only unpacked.
$(CURDIR)/.datasets/fashion-mnist:
	@directory=$$(mktemp -d) && trap 'rm -rf "$$directory"' EXIT && cd "$$directory" && \
		{ apt-get download -qq dataset-fashion-mnist || { apt-get update -qq && apt-get download -qq dataset-fashion-mnist; }; } && \
		dpkg-deb -x *.deb . && mkdir -p $(@D) && mv usr/share/datasets/fashion-mnist $(@D)/ || \
		{ echo "Fashion-MNIST's four idx files are needed, and Debian's package dataset-fashion-mnist cannot be fetched here;" \
		"put them into .datasets/fashion-mnist." >&2; exit 1; }

$(TOOLS)/bin/uv:
	@test -n "$(PYTHON)" || { echo "Graft needs Python 3.11 or newer, and none is on the path." \
		"Say where one is: make setup PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(TOOLS) || { echo "$(PYTHON) cannot make a virtual environment;" \
		"on Debian and Ubuntu: apt-get install python3-venv" >&2; rm -rf $(TOOLS); exit 1; }
	@$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check uv
