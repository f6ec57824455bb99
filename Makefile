# Everything happens in a virtual environment beside this file; nothing is installed outside of it but, where it may
# (root on Debian), the real registry that the tests need.
PYTHON ?= python3
VENV ?= .venv
# Most tests wait for processes and sockets rather than for a processor.
PYTEST_FLAGS ?= -n 3
BIN = $(VENV)/bin

.PHONY: test lint venv registry

test: venv registry lint
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: venv
	$(BIN)/ruff check regstat.py regstat_lib tests
	$(BIN)/ruff format --check regstat.py regstat_lib tests
	$(BIN)/mypy regstat.py regstat_lib

venv: $(VENV)/done

$(VENV)/done: requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

registry:
	@sh tests/install-registry.sh
