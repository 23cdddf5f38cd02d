# Two commands do all the set-up: `make demo` and `make test`. Both need Python 3.11 or newer, git and make, nothing else.
#
#   make demo        the sample models answer real media on a budget that holds two of three
#   make test        the whole test suite; installs vLLM, SGLang and llama.cpp beside it, for the tests that serve with them
#   make test-fast   the same without what is slow (three minutes on two cores; two are the goal)
#   make check       lint, types, import contracts, then `make test`; what CI runs
#   make fmt         format
#   make serve       models.yaml over HTTP
#   make bench       speed, as ratios against a baseline in the same run
#
# Variables: PYTHON (an interpreter), VENV (where the environment goes), JOBS (test processes),
# TORCH (what pip installs as torch: by default a pinned release without a GPU, the newest with one).

SHELL := /bin/sh
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); [ $$n -gt 4 ] && n=4; echo $$n)
TORCH ?= $(if $(shell command -v nvidia-smi 2>/dev/null),torch,torch==2.13.0)
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: serve demo test test-fast check lint fmt bench clean

demo: $(VENV)/.demo
	$(BIN)/taskrouter demo

serve: $(VENV)/.dev
	$(BIN)/taskrouter serve models.yaml

test: $(VENV)/.engines
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m "not slow"

check: lint test

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/python -m bench

clean:
	rm -rf $(VENV)

# Each stamp is one step of the set-up; torch comes first and alone, so that nothing else chooses its build.

$(VENV)/.torch:
	@[ -n "$(PYTHON)" ] || { echo "Python 3.11 or newer with its venv module is needed; set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[transformers]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo pyproject.toml
	$(PIP) --editable '.[dev]'
	@touch $@

# What can't be had here is said in a file, and the tests that need it are skipped with that reason (in CI they fail).
$(VENV)/.engines: $(VENV)/.dev taskrouter/backends/engines/known_good.toml tests/engines/install.py \
		$(wildcard tests/engines/llama/* tests/engines/*_cpu/* tests/engines/*_cpu/*/*)
	ENGINE_TORCH='$(if $(findstring 2.13.0,$(TORCH)),$(TORCH))' $(BIN)/python tests/engines/install.py vllm sglang llama
	@ls $(VENV)/engines/*.why >/dev/null 2>&1 || touch $@  # what is missing is tried again the next time
