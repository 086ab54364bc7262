# Every target sets up what it needs from a bare clone; the second time that takes no time.

SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV ?= .venv
PY := $(VENV)/bin/python
PYTEST := $(PY) -m pytest
INSTALLED := $(VENV)/.installed
# Tests wait more than they compute: so many files of them at a time.
AT_ONCE ?= 4

# Where `make install` puts things. Units of another PREFIX than /usr or /usr/local are looked for below /etc.
PREFIX ?= /usr/local
UNITS ?= $(if $(filter /usr /usr/local,$(PREFIX)),$(PREFIX)/lib,/etc)
HOME_DIR := $(PREFIX)/lib/orpheus
PROGRAMS := orpheusd orpheusctl orpheus
SYSTEMD_UNITS := orpheusd.service orpheusd.socket orpheus-agents@.service orpheus-agents.socket orpheus.slice

.PHONY: help demo test check check-types check-unit check-property bench bench-walls fault fault-proof soak fuzz test-all venv install uninstall clean

help:  ## list these targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED)  ## start a daemon, deploy an agent, see three runs share one process's memory
	@.ci/setup packages bubblewrap libseccomp2 curl
	@$(PY) examples/demo.py

test: $(INSTALLED)  ## every test but the long forms (at most 10 minutes on 2 cores)
	@.ci/setup packages bubblewrap libseccomp2 curl jq socat systemd
	@$(PYTEST) -m "not slow" -n $(AT_ONCE) --dist loadfile

check: $(INSTALLED)  ## ruff, mypy, unit, property and architecture tests (under a minute on 2 cores)
	@$(VENV)/bin/ruff check .
	@$(MAKE) --no-print-directory --jobs=3 --output-sync check-types check-unit check-property

check-types: $(INSTALLED)
	@$(VENV)/bin/mypy

check-unit: $(INSTALLED)
	@$(PYTEST) -q -m "not slow" tests/unit

check-property: $(INSTALLED)
	@$(PYTEST) -q -m "not slow" tests/property tests/test_architecture.py

bench: $(INSTALLED)  ## the table of the performance budget, each row beside its baseline
	@.ci/setup packages bubblewrap libseccomp2
	@$(PY) -m bench

bench-walls: $(INSTALLED)  ## a crowd at the door, greedy agents, and what others pay for them (about 9 minutes)
	@.ci/setup packages bubblewrap libseccomp2
	@$(PY) -m bench crowd greedy

fault: $(INSTALLED)  ## the fault tests in their long form
	@.ci/setup packages bubblewrap libseccomp2 curl jq socat systemd
	@$(PYTEST) tests/fault

fault-proof: $(INSTALLED)  ## take the handling of faults out, one by one, and see their tests fail (about 8 minutes)
	@.ci/setup packages bubblewrap libseccomp2 curl jq socat systemd
	@$(PY) -m tests.fault.taken_out

soak: $(INSTALLED)  ## kill the daemon 200 times and workers 500 times under load (about 8 minutes)
	@.ci/setup packages bubblewrap libseccomp2
	@$(PY) -m tests.soak

fuzz: $(INSTALLED)  ## a minute of hostile input at each way into a real daemon (about 6 minutes)
	@.ci/setup packages bubblewrap libseccomp2
	@$(PY) -m tests.fuzz

test-all: test  ## the tests on every other supported Python that is installed as well
	@for version in 3.12 3.13; do \
		if python=$$(command -v python$$version) && $$python -c 'import ensurepip' 2>/dev/null; then \
			PYTHON=$$python $(MAKE) --no-print-directory test VENV=.venv/$$version || exit; \
		else echo "python$$version with ensurepip is not installed: skipped"; fi; \
	done

venv: $(INSTALLED)  ## make .venv with the package and its development tools

$(INSTALLED): setup.cfg pyproject.toml .ci/setup
	@.ci/setup venv $(VENV)

install:  ## the programs and the systemd units, below DESTDIR and PREFIX (/usr/local); again to upgrade
	@.ci/setup install "$(DESTDIR)$(HOME_DIR)" "$(DESTDIR)"
	@install -d "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)$(PREFIX)/share/doc/orpheus"
	@for name in $(PROGRAMS); do ln -sfn ../lib/orpheus/bin/$$name "$(DESTDIR)$(PREFIX)/bin/$$name"; done
	@install -m 644 docs/*.md "$(DESTDIR)$(PREFIX)/share/doc/orpheus"
	@install -d "$(DESTDIR)$(UNITS)"/{systemd/system,sysusers.d,tmpfiles.d}
	@for unit in $(SYSTEMD_UNITS); do \
		sed 's|/usr/local|$(PREFIX)|' systemd/$$unit | install -m 644 /dev/stdin \
			"$(DESTDIR)$(UNITS)/systemd/system/$$unit"; done
	@install -m 644 systemd/orpheus.sysusers.conf "$(DESTDIR)$(UNITS)/sysusers.d/orpheus.conf"
	@install -m 644 systemd/orpheus.tmpfiles.conf "$(DESTDIR)$(UNITS)/tmpfiles.d/orpheus.conf"
	@echo "installed. As a service: systemd-sysusers && systemd-tmpfiles --create orpheus.conf &&"
	@echo "  systemctl daemon-reload && systemctl enable --now orpheusd.socket orpheusd.service"

uninstall:  ## remove what install put there; what the daemon keeps (/var/lib/orpheus) stays
	@rm -rf "$(DESTDIR)$(HOME_DIR)" "$(DESTDIR)$(PREFIX)/share/doc/orpheus"
	@rm -f $(PROGRAMS:%="$(DESTDIR)$(PREFIX)/bin/%") \
		$(SYSTEMD_UNITS:%="$(DESTDIR)$(UNITS)/systemd/system/%") \
		"$(DESTDIR)$(UNITS)"/{sysusers.d,tmpfiles.d}/orpheus.conf

clean:  ## remove what the other targets made
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis bench/.venv
	find . -name __pycache__ -prune -exec rm -rf {} +
