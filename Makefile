# Every target sets itself up: `make up` and `make test` need Python 3.11 or newer and nothing else.

VENV   ?= .venv
BIN    := $(VENV)/bin
PYTEST_ARGS ?=
PRESET ?= minimal
SEED   ?= 7

.PHONY: up down test test-parity test-hostile test-arm test-fleet chaos soak check format bench protos clean

up: $(VENV)/.installed          ## start a local cluster, run a sample prompt, print what to try next
	@$(BIN)/moemesh up

down: $(VENV)/.installed        ## stop it
	@$(BIN)/moemesh down

# Linux gives every session an equal share of the cores, whatever its processes' niceness is: this makes the session nice.
LAST := { echo 19 > /proc/self/autogroup; } 2>/dev/null || true

# Kernels are compiled before, with a line each: no test's time limit has to allow for it. Those of the other
# instruction sets are compiled beside the tests, of which most use one core.
test: export MOEMESH_CACHE_DIR ?= $(CURDIR)/.pytest_cache/moemesh
test: $(VENV)/.installed-dev    ## run the tests; PYTEST_ARGS="-k name -x" narrows
	$(BIN)/python -m kernels.warm
	@$(if $(PYTEST_ARGS),,setsid sh -c '$(LAST); exec nice -n 19 $(BIN)/python tests/numeric/other_sets.py' & trap "kill -- -$$! 2>/dev/null" EXIT;) \
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-parity: $(VENV)/.installed-parity   ## the tests against torch and transformers (a large download)
	$(BIN)/python -m pytest -m parity $(PYTEST_ARGS)

test-hostile: $(VENV)/.installed-dev     ## 10,000 hostile requests on a gateway's and a router's ports
	MOEMESH_HOSTILE=10000 $(BIN)/python -m pytest --timeout=900 tests/integration/test_gateway_hostility.py

test-arm: $(VENV)/.installed-dev         ## NEON under qemu: the same bits as here (minutes; a large download)
	PYTHONPATH=tests $(BIN)/python tests/arm/emulated.py .arm

# The other instruction sets before: a node that compiles is not ready in time.
test-fleet: export MOEMESH_CACHE_DIR ?= $(CURDIR)/.pytest_cache/moemesh
test-fleet: $(VENV)/.installed-dev       ## hosts of a fleet as namespaces, their links and faults (minutes; root)
	$(BIN)/python -m kernels.warm
	$(BIN)/python tests/numeric/other_sets.py
	$(BIN)/python -m pytest -s -m "fleet or not fleet" tests/fleet $(PYTEST_ARGS)
	PYTHONPATH=.:tests $(BIN)/python tests/fleet/delay.py

chaos: $(VENV)/.installed       ## 200 random faults on a cluster under load, and whether it kept its promises
	@$(BIN)/moemesh chaos --faults 200 --seed $(SEED)

soak: $(VENV)/.installed        ## 20 minutes of faults: memory, open files and threads must stay flat too
	@$(BIN)/moemesh chaos --minutes 20 --seed $(SEED) --soak

check: $(VENV)/.installed-dev   ## lint, formatting, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed       ## measure engine and cluster; PRESET=full for more repetitions
	@$(BIN)/moemesh bench engine --preset $(PRESET)
	@$(BIN)/moemesh bench cluster --preset $(PRESET)

protos: $(VENV)/.installed-dev  ## regenerate the client code from protos/*.proto
	$(BIN)/python protos/compile.py

clean:                          ## remove caches and build outputs, keep the environment
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache *.egg-info
	find cluster kernels protos tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp an extra: installing again happens only when pyproject.toml changed.
$(VENV)/.installed: pyproject.toml
	@.ci/install $(VENV) .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml
	@.ci/install $(VENV) '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-parity: pyproject.toml
	@.ci/install $(VENV) '.[dev,parity]'
	@touch $@ $(VENV)/.installed-dev $(VENV)/.installed
