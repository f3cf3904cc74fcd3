# `make demo` and `make test` need git, make and Python 3.11 or newer with its venv module.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PIP_INSTALL := pip install --quiet --disable-pip-version-check

.PHONY: demo test check test-slow test-lowest test-airflow bench bench-large lab lock clean

demo: .venv/installed
	@$(BIN)/crmlab demo

test: .venv/installed-dev
	$(BIN)/pytest

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What takes long, and the fast tests once more on the lowest versions that pyproject.toml allows
# (where old packages may warn about newer ones that they use).
test-slow: .venv/installed-dev test-lowest
	$(BIN)/pytest -m slow

# What kills, fills, locks or waits for a slot and what a run leaves (test_survival, test_schedule,
# test_reports) ask for no version that test_main and the pages of test_clv do not; what a browser
# sees (test_page, test_maps) was computed by what others test, and what a column is called
# (test_proposals) is read by what they read.
NOT_LOWEST := survival schedule reports page maps proposals
test-lowest: .venv-lowest/installed
	.venv-lowest/bin/pytest $(NOT_LOWEST:%=--ignore=tests/test_%.py) -m "not slow and not airflow and not lock" -o filterwarnings=default

# The file of `crmlab schedule airflow`, run by Airflow 3, which no part of crmlab imports.
test-airflow: .venv/installed-dev .venv-airflow/installed
	$(BIN)/pytest -m airflow tests/test_airflow.py

bench: .venv/installed-dev
	$(BIN)/python -m tests.benchmarks

# 100 million receipts, 2 GB of disk and more where it spills, about three minutes.
bench-large: .venv/installed-dev
	$(BIN)/python -m tests.benchmarks --large

lab: .venv/installed
	$(BIN)/jupyter lab notebooks

# One lock for every Python that pyproject.toml allows.
lock: .venv/installed-dev
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
		--no-annotate --no-header --upgrade --extra demo --extra postgres --extra spark --extra notify --extra geodesic --extra dev \
		pyproject.toml -o requirements.lock

clean:
	rm -rf .venv .venv-lowest .venv-airflow *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

define new_venv
	@test -n "$(PYTHON)" || { echo "crmlab needs Python 3.11 or newer; found $$(python3 --version 2>&1). Install it, or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	@echo "Making $(1) (about a minute) ..." >&2
	@$(PYTHON) -m venv --clear $(1) || { rm -rf $(1); echo "Python has no venv module here. On Debian or Ubuntu: apt install python3-venv"; exit 1; }
endef

.venv/installed: pyproject.toml requirements.lock
	$(call new_venv,.venv)
	@$(BIN)/$(PIP_INSTALL) -c requirements.lock -e '.[demo]'
	@touch $@

.venv/installed-dev: .venv/installed
	@$(BIN)/$(PIP_INSTALL) -c requirements.lock -e '.[dev]'
	@touch $@

.venv-lowest/installed: pyproject.toml tests/lowest.py
	$(call new_venv,.venv-lowest)
	@$(PYTHON) tests/lowest.py pyproject.toml > .venv-lowest/constraints.txt
	@.venv-lowest/bin/$(PIP_INSTALL) -c .venv-lowest/constraints.txt -e '.[dev]'
	@touch $@

.venv-airflow/installed:
	$(call new_venv,.venv-airflow)
	@.venv-airflow/bin/$(PIP_INSTALL) 'apache-airflow>=3.1,<4'
	@touch $@
