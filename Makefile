# Two commands matter: `make run` and `make test`. Both make the environment from the lock first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: run test check unit bench prove faults lock clean openapi

run: $(VENV)/ready
	@exec $(BIN)/registry-gateway serve

test: check unit

check: $(VENV)/ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/registry-gateway openapi > build/openapi.json.new && cmp build/openapi.json.new openapi/openapi.json
	$(BIN)/registry-gateway schema environments | cmp - policies/environments.schema.json
	$(BIN)/registry-gateway policy test --min-coverage 100

unit: $(VENV)/ready-dev
	$(BIN)/python -m pytest -q -m "not long" -n $(WORKERS) --dist worksteal

bench: $(VENV)/ready-dev
	$(BIN)/python -m tests.benchmarks.bench

# The long form: FAULTS_KILLS=1000, FAULTS_TRIALS=20 of each other fault; FAULTS_ADD=1 adds to earlier runs.
faults: $(VENV)/ready-dev
	$(BIN)/python -m tests.faults.long

openapi: $(VENV)/ready-dev
	$(BIN)/registry-gateway openapi > openapi/openapi.json
	$(BIN)/registry-gateway schema environments > policies/environments.schema.json

$(VENV)/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	@echo "making the environment in $(VENV) from the lock: about a minute, once"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready requirements-dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@mkdir -p build
	@touch $@

lock:
	uv pip compile --universal --generate-hashes --no-emit-index-url --python-version 3.11 --quiet \
		--custom-compile-command 'make lock' --output-file requirements.lock pyproject.toml requirements.in
	uv pip compile --universal --generate-hashes --no-emit-index-url --python-version 3.11 --quiet \
		--custom-compile-command 'make lock' --output-file requirements-dev.lock requirements-dev.in

clean:
	rm -rf $(VENV) build

prove: $(VENV)/ready-dev
	PROVE_CASES=$${PROVE_CASES:-1000000} $(BIN)/python -m pytest -q tests/proof
