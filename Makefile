# Everything runs in .venv, made here from requirements.lock; nothing else has to be installed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export DAGSTER_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help demo up test test-fast faults check lint docs client-wheel bench bench-quick lock clean

help: ## Show this help.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 13

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python 3.11, 3.12 or 3.13 is needed, this is {v[0]}.{v[1]}; run make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@# Byte code now: without it every start of Dagster and dbt takes twice as long.
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true
	@touch $@

demo: $(VENV)/.installed ## Embedded Postgres, a sample history, everything rolled up, a summary.
	$(BIN)/usage-pipeline demo

up: $(VENV)/.installed ## Usage pages at http://127.0.0.1:8000, Dagster at http://127.0.0.1:3000, all running.
	$(BIN)/usage-pipeline up

test: $(VENV)/.installed ## All tests, against real Postgres, dbt, DuckDB and Dagster.
	$(BIN)/python -m pytest -n 2 --dist loadfile

# What neither rolls up nor starts Dagster: settings, meters, days, landed files, documents.
test-fast: $(VENV)/.installed ## The tests that take seconds, for the loop while coding.
	$(BIN)/python -m pytest -q -x tests/unit tests/test_docs.py tests/test_lint.py

faults: $(VENV)/.installed ## Kill rollups at all named points and 200 random times; 100 random histories (an hour).
	$(BIN)/python -m pytest -n 2 tests/faults --thorough

lint: $(VENV)/.installed ## Linters, types, import contract.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/sqlfluff lint --processes 2 dbt_project/models dbt_project/tests

docs: $(VENV)/.installed ## Write the tables and figures of the documents from code and benchmark.
	$(BIN)/python docs/generate.py

client-wheel: $(VENV)/.installed ## The wheel that applications install, in dist/.
	rm -rf clients/python/build
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist clients/python

check: lint test ## What CI runs.

$(VENV)/.bench-installed: $(VENV)/.installed requirements-bench.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-bench.lock
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true
	@touch $@

bench: $(VENV)/.bench-installed ## Speed beside its peers, for docs/benchmarks.md; an hour of a quiet machine.
	$(BIN)/python -m bench --output docs
	$(BIN)/python docs/generate.py

bench-quick: $(VENV)/.bench-installed ## A tenth of the data, once; without histories, exports and demo.
	$(BIN)/python -m bench --scale 0.1 --rounds 1 --parts landing,rollup,small,rebuild,night,empty,publish

LOCK := uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
  --no-annotate --no-header --no-strip-extras pyproject.toml

lock: ## Resolve the dependencies again (needs uv).
	$(LOCK) --extra dev -o requirements.lock
	$(LOCK) --extra dev --extra bench -c requirements.lock -o requirements-bench.lock

clean: ## Remove the virtual environment and all state.
	rm -rf $(VENV)
	find data -mindepth 1 -maxdepth 1 ! -name sample -exec rm -rf {} +
