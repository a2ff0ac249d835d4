# install: a virtual environment with the tested versions. run: the main job on the embedded stream. test: tests and
# doctests. lint: style and types. docs: the documentation site, in site/. check-all: all of these and the slow tests.
# mutation: whether tests fail where the code is changed.
# trust: faults, inputs and fuzzing at length, hours; it goes on where it was stopped.
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)
PYTEST := $(PY) -m pytest --doctest-modules scall_jax tests

.PHONY: install run test lint docs check-all mutation trust clean
install: $(VENV)/installed

$(VENV)/installed: requirements.txt constraints.txt setup.cfg
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable ".[test]"
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(PIP) --editable ".[docs]"
	touch $@

run: install
	$(PY) -m experiments.run --overwrite

test: install
	$(PYTEST)

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

check-all: lint docs
	$(PYTEST) -m "slow or not slow"

mutation: install
	$(PY) -m tests.mutation

trust: install
	$(PY) -m tests.faults

clean:
	rm -rf $(VENV) build dist site *.egg-info
