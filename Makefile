# `make help` lists the targets. The virtual environment makes itself, in .venv, on first use.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check

# ARGS goes to the program behind the target: `make test ARGS="tests/unit -k config"`.
ARGS ?=
MINUTES ?= 4
INPUTS ?= 100000
COUNT ?= 1000
# How many seeds `make simulate` runs: 300 are three hours of virtual time.
SEEDS ?= 300
# KEEP=1 leaves the cluster of `make demo` up.
KEEP ?=

# IMAGES=n is how many different states of the disk `make crash-images` tries.
IMAGES ?= 20000

.DEFAULT_GOAL := help
.PHONY: help venv test coverage simulate bugs mutants torture fuzz stalls races wan crash-images lint format demo bench bench-stores clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(VENV)/.installed-dev  ## make .venv with everything, as `test` and `lint` do by themselves

test: $(VENV)/.installed-dev  ## run the tests
	$(RUN) -m pytest $(ARGS)

coverage: $(VENV)/.installed-dev  ## run the tests and report what none of them runs, with bounds
	$(RUN) -m coverage run -m pytest $(ARGS)
	$(RUN) -m coverage report
	$(RUN) -m tests.coverage_bounds

simulate: $(VENV)/.installed-dev  ## run SEEDS seeds of simulated clusters, and print their figures
	$(RUN) -m raft.testing.simulation --count $(SEEDS) --jobs 2 --strict $(ARGS)

bugs: $(VENV)/.installed-dev  ## put known bugs in, one by one: does the simulation find each?
	$(RUN) -m tests.simulation.bugs.run $(ARGS)

mutants: $(VENV)/.installed-dev  ## break the deciding rules one by one: do the tests notice?
	$(RUN) -m tests.mutants.run $(ARGS)

torture: $(VENV)/.installed-dev  ## real processes under faults for MINUTES; what clients saw is checked
	$(RUN) -m tests.torture.run --minutes $(MINUTES) $(ARGS)

crash-images: $(VENV)/.installed-dev  ## lose power at every point of what the stores write (needs strace)
	$(RUN) -m tests.crash.run --images $(IMAGES) $(ARGS)

fuzz: $(VENV)/.installed-dev  ## hostile input for every listener, INPUTS of it for each protocol
	$(RUN) -m tests.fuzz.run --inputs $(INPUTS) $(ARGS)

stalls: $(VENV)/.installed-dev  ## stand interpreters still for MINUTES: no election may come of it
	$(RUN) -m tests.traps.stalls --minutes $(MINUTES)

races: $(VENV)/.installed-dev  ## COUNT times starts, transfers and shutdowns against every call
	$(RUN) -m tests.traps.races --count $(COUNT) $(ARGS)

wan: $(VENV)/.installed-dev  ## slow and long networks, made up on this machine (needs root)
	timeout 3600 $(RUN) -m tests.wan.run $(ARGS)

lint: $(VENV)/.installed-dev  ## check format, lint and types
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

format: $(VENV)/.installed-dev  ## format the sources and sort their imports
	$(RUN) -m ruff check --select I --fix .
	$(RUN) -m ruff format .

demo: $(VENV)/.installed-demo  ## tour of a three-process cluster that loses its leader
	KEEP=$(KEEP) $(RUN) -m examples.kv.tour $(ARGS)

bench: $(VENV)/.installed-demo  ## measure apply() on three durable processes
	$(RUN) -m benchmarks.bench_apply $(ARGS)

bench-stores: $(VENV)/.installed-demo  ## measure single operations of the stores
	$(RUN) -m benchmarks.bench_stores $(ARGS)

clean:  ## remove all that these targets have made, .venv included
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .coverage htmlcov
	find raft raftsqlite tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} + \
	    2>/dev/null || true

# Each stamp stands for one finished installation. It is made anew only when the lists of what to
# install change: the installation is editable, so the sources need none. `demo` and `bench` do
# without the linters, which are the larger half of the download.
$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: none found" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
	    "Python 3.11 or newer is needed, this is %s; name another: make PYTHON=..." \
	    % sys.version.split()[0])'
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.installed-demo: $(VENV)/.created setup.cfg pyproject.toml
	$(PIP) --editable '.[demo,bench]'
	@touch $@

# After the smaller set, so that two targets at once (`make -j`) do not install at the same time.
$(VENV)/.installed-dev: $(VENV)/.installed-demo
	$(PIP) --editable '.[test,lint,bench,docs]'
	@touch $@
