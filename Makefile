# Every target sets up what it needs from a bare clone; the second time that takes no time.

SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV ?= .venv
PY := $(VENV)/bin/python
PYTEST := $(PY) -m pytest
INSTALLED := $(VENV)/.installed

.PHONY: help demo test check bench fault fault-proof soak test-all venv clean

help:  ## list these targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED)  ## start a daemon, deploy an agent, see three runs share one process's memory
	@.ci/setup packages bubblewrap libseccomp2 curl
	@$(PY) examples/demo.py

test: $(INSTALLED)  ## every test but the long forms (at most 10 minutes on 2 cores)
	@.ci/setup packages bubblewrap libseccomp2 curl jq socat
	@$(PYTEST) -m "not slow"

check: $(INSTALLED)  ## ruff, mypy, unit, property and architecture tests (under a minute)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy
	@$(PYTEST) -q -m "not slow" tests/unit tests/property tests/test_architecture.py

bench: $(INSTALLED)  ## the table of the performance budget, each row beside its baseline
	@.ci/setup packages bubblewrap libseccomp2
	@$(PY) -m bench

fault: $(INSTALLED)  ## the fault tests in their long form
	@.ci/setup packages bubblewrap libseccomp2 curl jq socat
	@$(PYTEST) tests/fault

fault-proof: $(INSTALLED)  ## take the handling of faults out, one by one, and see their tests fail (about 8 minutes)
	@.ci/setup packages bubblewrap curl jq socat
	@$(PY) -m tests.fault.taken_out

soak: $(INSTALLED)  ## kill the daemon 200 times and workers 500 times under load (about 8 minutes)
	@.ci/setup packages bubblewrap libseccomp2
	@$(PY) -m tests.soak

test-all: test  ## the tests on every other supported Python that is installed as well
	@for version in 3.12 3.13; do \
		if python=$$(command -v python$$version) && $$python -c 'import ensurepip' 2>/dev/null; then \
			PYTHON=$$python $(MAKE) --no-print-directory test VENV=.venv/$$version || exit; \
		else echo "python$$version with ensurepip is not installed: skipped"; fi; \
	done

venv: $(INSTALLED)  ## make .venv with the package and its development tools

$(INSTALLED): setup.cfg pyproject.toml .ci/setup
	@.ci/setup venv $(VENV)

clean:  ## remove what the other targets made
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis bench/.venv
	find . -name __pycache__ -prune -exec rm -rf {} +
