# Everything a newcomer or CI needs; `make` alone lists it.
#
#   make test PYTEST="tests/models -k save"     options for pytest
#   make bench WORKLOAD=drain ROUNDS=5 JOBS=20000

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

export DEBUG ?= on

VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$name; break; }; done)

PYTEST ?=
PROCESSES ?= 2
LIVE_PROCESSES ?= 5
PORT ?=
CASES ?= 2000
SEED ?= 1
ON ?=
REPEAT ?= 5
EXECUTOR ?=
POINT ?=
TABLE ?=
WORKLOAD ?= drain
ROUNDS ?= 5
JOBS ?= 20000

.PHONY: help install demo run migrate test test-sqlite test-postgres fuzz crash-sweep workflow-sweep chaos events-storm bite simulate coverage mutants lint format docs screenshots bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Installing ---------------------------------------------------------------------------------------

install: $(INSTALLED) ## .venv with everything that the other targets need

$(INSTALLED): requirements.txt
	@[ -n "$(PYTHON)" ] || { echo "make: Python 3.11 or newer is needed (or PYTHON=path)" >&2; exit 1; }
	@[ -x $(PY) ] || $(PYTHON) -m venv $(VENV) \
		|| { echo "make: $(PYTHON) -m venv failed (Debian: apt-get install python3-venv)" >&2; rm -rf $(VENV); exit 1; }
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

# Using --------------------------------------------------------------------------------------------

demo: migrate ## real jobs that succeed, fail, retry, are killed and time out, and a small DAG
	@$(PY) manage.py demo

run: $(INSTALLED) ## admin, REST API, a worker and a scheduler, in one process group (PORT=8000)
	@$(PY) manage.py standalone $(if $(PORT),--port $(PORT))

migrate: $(INSTALLED) ## bring the database up to date
	@$(PY) manage.py migrate --verbosity 0

# Checking -----------------------------------------------------------------------------------------

test: test-sqlite test-postgres ## every test, on SQLite and on a PostgreSQL of its own

TESTS := $(PY) -m pytest -p tests.support.left_out
TOGETHER := $(TESTS) -n $(PROCESSES) -m "not processes and not docker and not web and not browser"
# What starts workers, containers or servers of its own mostly waits for them.
LIVE := $(TESTS) -n $(LIVE_PROCESSES) -m "(processes or docker or web) and not browser"
# A browser's driver keeps an event loop, which other tests need not meet.
IN_BROWSER := $(TESTS) -n $(PROCESSES) -m browser
NONE_IS_FINE := || [ $$? = 5 ]

test-sqlite: $(INSTALLED) ## the tests on SQLite
	@echo "== SQLite"
	$(TOGETHER) $(PYTEST) $(NONE_IS_FINE)
	$(LIVE) $(PYTEST) $(NONE_IS_FINE)
	$(IN_BROWSER) $(PYTEST) $(NONE_IS_FINE)

# What never sees the database, or sees nothing of its kind, is tested once: executors, graphs and
# documents, what publishers send, processes that start others, images, limits and clocks of the
# machine. Pages look alike.
ON_POSTGRES := --ignore=tests/executors --ignore=tests/faults/engine \
	--ignore=tests/commands/test_standalone.py --ignore=tests/commands/test_demo.py \
	--ignore=tests/admin --ignore=tests/test_docs.py --ignore=tests/config/test_serving.py \
	--ignore=tests/integration/test_log_lines.py --ignore=tests/events/test_example.py \
	$(foreach fault,limits clocks images stubborn_jobs timeouts,--ignore=tests/faults/test_$(fault).py) \
	$(foreach pure,graph cron documents spec following,--ignore=tests/workflows/test_$(pure).py) \
	$(foreach pure,base feed publishers redis webhook webhook_addresses webhook_docs webhook_settings \
		webhook_signatures,--ignore=tests/events/test_$(pure).py) --ignore=tests/test_sse.py
A_MORNING := -k an_operators_morning

test-postgres: $(INSTALLED) ## the tests on a PostgreSQL that is started for them
	@echo "== PostgreSQL"
	$(PY) -m tests.services postgres -- $(TOGETHER) $(ON_POSTGRES) $(PYTEST) $(NONE_IS_FINE)
	$(PY) -m tests.services postgres -- $(LIVE) $(ON_POSTGRES) $(PYTEST) $(NONE_IS_FINE)
	$(PY) -m tests.services postgres -- $(IN_BROWSER) $(ON_POSTGRES) $(A_MORNING) $(PYTEST) $(NONE_IS_FINE)

# A process that a browser could reach: what docs/deployment.md shows.
PRODUCTION := env -u DATABASE_URL DEBUG=off ALLOWED_HOSTS=jobs.example.org \
	SECRET_KEY=only-for-this-check-0123456789-abcdefghijklmnopqrstuvwxyz-ABCDEFGH

fuzz: $(INSTALLED) ## schemathesis against a running server (CASES=2000 SEED=1 ON=postgres)
	$(if $(ON),$(PY) -m tests.services $(ON) --) $(PY) -m tests.fuzz --cases $(CASES) --seed $(SEED)

# POINT="R4 stop:R4 sql:N" is some of what the table shows; EXECUTOR=docker, ON=postgres: only that.
crash-sweep: $(INSTALLED) ## kill workers at every point, statement and engine call (REPEAT=5 ON= EXECUTOR= POINT=)
	$(PY) -m tests.crash --repeat $(REPEAT) $(ON:%=--on %) $(EXECUTOR:%=--executor %) \
		$(foreach point,$(POINT),--point $(point)) $(if $(TABLE),--table $(TABLE))

workflow-sweep: $(INSTALLED) ## kill schedulers and workers at very many points of a run of 200 tasks (ON=postgres)
	$(if $(ON),$(PY) -W ignore -m tests.services $(ON) --) env EVERY_POINT=1 \
		$(TESTS) -n $(PROCESSES) tests/integration/test_workflow_crashes.py

chaos: JOBS := 10000
chaos: SEED :=
chaos: WORKERS := 8
chaos: $(INSTALLED) ## random faults around many jobs (JOBS=10000 WORKERS=8 SEED= ON=postgres ENGINE=shared|own|none)
	$(PY) -W ignore -m tests.chaos --jobs $(JOBS) --workers $(WORKERS) --on $(or $(ON),postgres) \
		--engine $(or $(ENGINE),shared) $(if $(SEED),--seed $(SEED))

events-storm: $(INSTALLED) ## moves while Redis and relays are killed (MOVES=20000 WRITERS=8 SEED= ON=postgres)
	$(PY) -W ignore -m tests.storm --moves $(or $(MOVES),20000) --processes $(or $(WRITERS),8) \
		--on $(or $(ON),postgres) $(if $(filter command line,$(origin SEED)),--seed $(SEED))

bite: $(INSTALLED) ## do the tests bite? plants bugs, one at a time, and runs the tests
	$(PY) -m tests.bite

simulate: $(INSTALLED) ## whole simulated worlds, seed after seed (RUNS=200; SEED=… for these)
	$(PY) -m tests.simulation --runs $(or $(RUNS),200) $(if $(filter command line,$(origin SEED)),--seed $(SEED))

# Each database has code of its own: what one run does not reach the other does.
coverage: $(INSTALLED) ## every branch of states, guard, spine, retries and rescue, or exit code 2
	rm -f .coverage
	$(TOGETHER) --cov --cov-append --cov-report=
	$(PY) -W ignore -m tests.services postgres -- $(TOGETHER) $(ON_POSTGRES) --cov --cov-append --cov-report=
	$(PY) -m coverage report --fail-under=100

mutants: $(INSTALLED) ## mutation testing of the same modules (MODULES="retries lifecycle" SAMPLE=200)
	$(PY) -m pip install --quiet --disable-pip-version-check mutmut==3.8.1
	$(PY) -m tests.mutation $(MODULES) $(SAMPLE:%=--sample %)

lint: $(INSTALLED) ## style, types, layers, migrations, deployment settings
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(PY) manage.py makemigrations --check --dry-run
	$(PRODUCTION) $(PY) manage.py check --deploy --fail-level WARNING

format: $(INSTALLED) ## let ruff put right what it can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: $(INSTALLED) ## write the generated parts of docs/ again
	$(PY) -m tests.test_docs --write

screenshots: $(INSTALLED) ## take the pictures of docs/admin.md again
	SCREENSHOTS=docs/images $(IN_BROWSER) tests/browser/test_screenshots.py

# Measuring ----------------------------------------------------------------------------------------

bench: $(INSTALLED) ## WORKLOAD=drain: ours beside a peer, in rounds of one run
	@$(PY) -m benchmarks $(WORKLOAD) --rounds $(ROUNDS) --jobs $(JOBS)

clean: ## remove what the targets made, but the database
	rm -rf $(VENV) .venv-bench-* var staticfiles .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
