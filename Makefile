# Each target makes what it needs; what is up to date is left alone.
#   make            build, check and test
#   make demo       train on MNIST with four embedded Lambda workers
#   make chaos SEED=7 MINUTES=10
#   make PYTHON=python3.12 VENV=/elsewhere test

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Many tests wait for processes that they have started, so more run at once than there are cores.
TEST_PROCESSES ?= 3
PYTEST := $(BIN)/python -m pytest
TOGETHER := --numprocesses $(TEST_PROCESSES) --dist loadfile
COMPILE := $(BIN)/python setup.py --quiet build_ext --inplace
INSTALL := $(BIN)/python -m pip install --quiet --no-build-isolation --editable
CORE := $(wildcard smlt/_core/*.pyx smlt/_core/*.pxd smlt/_core/*.h)

.DEFAULT_GOAL := all
.PHONY: all setup build check test test-slow test-twins test-checked simulate bench chaos demo clean

all: build check test

setup: $(VENV)/.smlt-dev

build: $(VENV)/.smlt-compiled

check: $(VENV)/.smlt-compiled
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/cython-lint --no-pycodestyle smlt/_core
	$(BIN)/cfn-lint deploy/*.yaml
	$(BIN)/python -m mypy.stubtest --mypy-config-file pyproject.toml --ignore-missing-stub \
		smlt._core.shard_reduce smlt._core.codec smlt._core.reply_reader

test: $(VENV)/.smlt-compiled
	$(PYTEST) -m "not slow" $(TOGETHER)

test-slow: $(VENV)/.smlt-compiled
	$(PYTEST) -m slow --timeout 1800

# The kernels' tests once more on their NumPy twins, and on a build that checks every index.
test-twins: $(VENV)/.smlt-compiled
	SMLT_PURE_PYTHON=1 $(PYTEST) -m "not slow" $(TOGETHER) tests/core

# Leaves the fast build behind, but not in CI, which throws its tree away.
test-checked: $(VENV)/.smlt-compiled
	SMLT_DEBUG_BUILD=1 $(COMPILE) --force
	$(PYTEST) -m "not slow" $(TOGETHER) tests/core tests/fuzz; status=$$?; \
		test "$$CI" = true || $(COMPILE) --force; exit $$status

# Whole jobs on simulated time, with faults drawn from seeds; one seed again:
#   .venv/bin/python -m tests.simulation --seed 17
SEEDS ?= 1000
simulate: $(VENV)/.smlt-compiled
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) --coverage

bench: $(VENV)/.smlt-compiled
	$(BIN)/python -m benchmarks

# Random faults at random moments of real jobs, whose digests must stay the same.
SEED ?= 1
MINUTES ?= 3
chaos: $(VENV)/.smlt-compiled
	PYTHONPATH=tests $(BIN)/python -m faults.chaos --seed $(SEED) --minutes $(MINUTES)

demo: $(VENV)/.smlt-demo
	$(BIN)/python examples/mnist/prepare.py
	$(BIN)/smlt train examples/mnist/train.py:Mnist --workers 4 --epochs 6 --batch-size 64

clean:
	rm -rf build dist *.egg-info smlt/_core/*.so smlt/_core/*.c .mypy_cache .pytest_cache .ruff_cache
	rm -f $(VENV)/.smlt-*

# With the build's own needs in place, an editable install compiles once, and in place.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade setuptools cython numpy

$(VENV)/.smlt-dev: pyproject.toml | $(BIN)/python
	$(INSTALL) ".[dev]"
	touch $@ $(VENV)/.smlt-demo $(VENV)/.smlt-compiled

# The extras of dev include the demo's: whoever has those does not install again.
$(VENV)/.smlt-demo: pyproject.toml | $(BIN)/python
	$(INSTALL) ".[torch,local,examples]"
	touch $@

# An install has compiled the core, so there is nothing to do unless a source is newer than that.
$(VENV)/.smlt-compiled: $(CORE) setup.py $(VENV)/.smlt-dev
	test -z "$$(find $(CORE) setup.py -newer $@ 2>&1)" || \
		$(COMPILE)
	touch $@
