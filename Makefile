# Everything set up here lives in .venv, .tools and .cache; `make clean` removes them.

PYTHON ?= python3
PORT ?= 9080
ARGS ?=
TESTS ?=
# Tests wait for processes half of their time: one more than there are cores, and four at most.
TEST_WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1) --maxprocesses=4
LOCK_ARGS ?=
SECONDS ?= 60
TARGETS ?=
SOURCES = core/src gpustack_backends/src gpustack_auth/src gpustack_gateway/src $(wildcard plugins/*/src)

BIN = .venv/bin
PYTEST = $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadgroup

export PYTHON

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev start demo test test-full test-engines lint format bench bench-gateway soak fuzz docs lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup:  ## make .venv with gpustack in it
	@scripts/setup.sh

setup-dev:
	@scripts/setup.sh dev

# exec: signals reach gpustack itself, and its exit status is the answer.
start: setup  ## run GPUStack (PORT=9080, ARGS="--flag value")
	@exec $(BIN)/gpustack start --port $(PORT) $(ARGS)

demo: setup  ## set up what the demo model needs, its engine included; then no network is needed (ARGS="--data-dir …")
	@exec $(BIN)/gpustack backends install llama-cpp $(ARGS)

test: setup-dev  ## run the tests but the slow ones (TESTS="path -k name")
	@scripts/system-packages.sh
	@$(PYTEST) -m "not slow and not engines" $(TESTS)

test-full: setup-dev  ## run all tests but those of real engines
	@scripts/system-packages.sh
	@$(PYTEST) -m "not engines" $(TESTS)

# One at a time, and what they measure is printed: an engine takes gigabytes of memory.
test-engines: setup-dev  ## install real vLLM on the processor and serve with it; read the parsers of many versions
	@scripts/system-packages.sh
	@$(BIN)/python -m pytest -n 0 -s -m engines tests/engines $(TESTS)

lint: setup-dev  ## check style, types and layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy $(SOURCES)
	$(BIN)/lint-imports --cache-dir .cache/import-linter
	$(BIN)/python scripts/check_tracked.py

format: setup-dev  ## format the code, mend what can be mended
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

bench: setup-dev  ## measure the headline figures
	@exec $(BIN)/python benchmarks/run.py $(ARGS)

bench-gateway: setup-dev  ## measure the gateway beside nginx, and what choosing by prefix is worth (ARGS="rounds seconds")
	@scripts/system-packages.sh
	@$(BIN)/python benchmarks/gateway.py $(ARGS); one=$$?; $(BIN)/python benchmarks/prefix_affinity.py; two=$$?; exit $$((one > two ? one : two))

soak: setup-dev  ## an hour of churn: nothing may grow (SOAK_MINUTES=60)
	@exec $(BIN)/python benchmarks/soak.py

# Into a folder of its own: .venv is made of what runs everywhere, and this is for Linux on x86-64 only.
fuzz: setup-dev  ## look for inputs that break the data path's parsers (SECONDS=60 for each, TARGETS="requests bodies")
	@.tools/uv/bin/uv pip install --quiet --python .venv --target .tools/fuzz --require-hashes -r requirements/fuzz.txt
	@exec env PYTHONPATH=.tools/fuzz $(BIN)/python tests/fuzz/run.py --seconds $(SECONDS) $(TARGETS)

docs:  ## make the generated pages of docs/ anew
	@exec $(BIN)/python scripts/make_docs.py

lock:  ## compile requirements/*.txt anew (LOCK_ARGS=--upgrade)
	@scripts/setup.sh uv
	@scripts/lock.sh $(LOCK_ARGS)

clean:  ## remove what the other targets made
	rm -rf .venv .tools .cache dist .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
