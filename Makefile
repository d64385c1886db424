# One command each. `make demo` runs a real job here, `make test` everything that CI runs.
SHELL = /bin/sh
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test quick simulate bench lint check-system clean

demo: $(VENV)/.installed
	$(BIN)/pexecd run examples/ising/ising.ini --fresh
	$(BIN)/python examples/ising/show.py examples/ising/results.txt

# Most tests of real processes wait: three at a time keep two cores busy.
WORKERS ?= 3
test: $(VENV)/.installed-dev system-packages
	$(MAKE) lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

quick: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/unit tests/contract

# So many histories of the core in a simulated world full of faults, on all cores.
SEEDS ?= 20000
simulate: $(VENV)/.installed-dev
	$(BIN)/python -m tests.simulation --seeds $(SEEDS)

# pexecd beside its peers; BENCH="--rounds 1 --tasks 1000" and the like, see CONTRIBUTING.md.
BENCH ?=
bench: $(VENV)/.installed-bench
	$(BIN)/python -m bench.peers $(BENCH)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# What the tests need beside Python: sshd, a Kerberos KDC and runit (no service starts), ip, curl, perl,
# a C compiler, systemd-analyze.
.PHONY: system-packages
system-packages:
	sh tests/system/packages.sh

# A Python that is too old says so here, not in the middle of an installation.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pexecd needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# A wheel is compiled as it is installed, a checkout as it is run: not at all where
# PYTHONDONTWRITEBYTECODE is set, and then every start takes twice as long.
COMPILE = $(BIN)/python -m compileall -q pexecd client

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	$(COMPILE)
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	$(COMPILE)
	touch $(VENV)/.installed $@

# Without the peers that cannot be had here; the bench says which.
$(VENV)/.installed-bench: $(VENV)/.installed-dev
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
