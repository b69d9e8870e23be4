# Everything works from a clean clone with Python >= 3.11, git and make.

VENV := .venv
BIN := $(VENV)/bin
PYTHON := $(shell for python in python3.13 python3.12 python3.11 python3; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		&& { command -v "$$python"; break; }; done)
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
LOCKING := --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command 'make lock'
# Tests in this many processes, twice the cores: many of them wait for a service. Each has a database and a virtual host of its own.
JOBS ?= 4
# Each of hundreds of processes would compile all it imports, where this is set.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test bench faults nemesis check format lock clean
.DEFAULT_GOAL := help

help:  ## Show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/runnable  ## Work through a few files, with everything in one process
	$(BIN)/dane demo

test: $(VENV)/installed  ## Run every test, on RabbitMQ and MariaDB too
	$(BIN)/python -m tests.services run -- $(BIN)/pytest -n $(JOBS) --dist worksteal $(ARGS)

bench: $(VENV)/installed  ## Measure DANE beside its peers (B="5 7": these, whole)
	$(BIN)/python -m benchmarks $(B)

faults: $(VENV)/installed  ## Show every row of the fault matrix; writes docs/reliability.md
	$(BIN)/python -m tests.faults $(ARGS)

nemesis: $(VENV)/installed  ## Random faults under load: make nemesis SECONDS=600 [SEED=n]
	$(BIN)/python -m tests.faults.nemesis --seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED))

check: $(VENV)/installed  ## Formatting, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy migrations
	$(BIN)/lint-imports

format: $(VENV)/installed  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(VENV)/installed  ## Pin every dependency anew, with hashes
	$(PYTHON) -m venv $(VENV)/lock && $(VENV)/lock/bin/pip install --quiet uv
	$(VENV)/lock/bin/uv pip compile $(LOCKING) --upgrade --all-extras \
		--output-file requirements.lock pyproject.toml
	$(VENV)/lock/bin/uv pip compile $(LOCKING) --constraint requirements.lock \
		--extra server --extra media --output-file requirements-run.lock pyproject.toml

clean:  ## Remove what the others made
	rm -rf $(VENV) dane-demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# What running needs, and what developing needs on top of it.
$(VENV)/runnable: pyproject.toml requirements-run.lock
	@test -n "$(PYTHON)" || { echo "DANE needs Python 3.11 or newer, and none was found" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --no-compile --require-hashes -r requirements-run.lock
	$(PIP) --no-deps --editable .
	@touch $@

$(VENV)/installed: $(VENV)/runnable requirements.lock
	$(PIP) --no-compile --require-hashes -r requirements.lock
	@touch $@
