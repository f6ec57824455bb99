# Everything happens in a virtual environment beside this file; nothing is installed outside of it but, where it may
# (root on Debian), the programs that the tests run: a real registry, and what builds and runs containers.
PYTHON ?= python3
VENV ?= .venv
# Most tests wait for processes and sockets rather than for a processor. Those of a group share what is dear to make.
PYTEST_FLAGS ?= -n 3 --dist loadgroup
BIN = $(VENV)/bin
# What the tests are made with is not typed for Python 3.9.
CHECK_TESTS = MYPYPATH=.:tests:tests/registry:bench $(BIN)/mypy --python-version 3.11 --explicit-package-bases

.PHONY: test test-matrix lint dist venv programs

test: venv programs lint
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

# The tests with every Python from 3.9 to 3.13 that is on the machine, each in a virtual environment of its own.
test-matrix: programs
	@$(PYTHON) tests/interpreters.py >.interpreters
	@echo "Found:"; cat .interpreters
	@failed=; while read -r version path; do \
	    echo "== Python $$version"; \
	    { $(MAKE) --no-print-directory VENV=.venv-$$version PYTHON=$$path venv && \
	      .venv-$$version/bin/python -m pytest $(PYTEST_FLAGS) </dev/null; } || failed="$$failed $$version"; \
	done <.interpreters; rm -f .interpreters; \
	if [ -n "$$failed" ]; then echo "Failed with Python:$$failed" >&2; exit 1; fi

lint: venv
	$(BIN)/ruff check regstat.py regstat_lib tests deploy bench
	$(BIN)/ruff format --check regstat.py regstat_lib tests deploy bench
	$(BIN)/mypy regstat.py regstat_lib deploy/build_pyz.py
	$(CHECK_TESTS) bench tests/*.py
	$(CHECK_TESTS) tests/registry/*.py

# One file with everything inside: see deploy/build_pyz.py. It needs pip, and nothing of what the tests need.
dist:
	$(PYTHON) deploy/build_pyz.py dist/regstat.pyz
	@ls -l dist/regstat.pyz

venv: $(VENV)/done

$(VENV)/done: requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

programs:
	@sh tests/install-programs.sh
