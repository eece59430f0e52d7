# Every command people type. `make` alone lists them.

.DEFAULT_GOAL := help
.PHONY: help install demo test lint typecheck format proto campaign bench bench-peers simulate clean
# A recipe that fails half-way must not leave a target that looks finished.
.DELETE_ON_ERROR:

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
# Stamps: dependencies are installed again only when pyproject.toml has changed since.
SERVER := $(VENV)/.installed-server
DEV := $(VENV)/.installed-dev

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(DEV) ## make .venv and install everything needed to develop
	@echo "$(VENV) is up to date."

demo: $(SERVER) ## start the suite, run an agent, kill the executor half-way, see the run end
	@$(PY) examples/demo.py

# Half of the suite's time is waiting, for leases, processes and answers: two cores carry four workers. Each has its own
# PostgreSQL; the tests of a file stay together, as many share a running suite.
WORKERS ?= 4

test: $(DEV) ## run all tests (one part: make test T=tests/state)
ifeq ($(T),)
	@# Compiles the tests once, not in each worker; what is wrong with them is said below.
	@PYTHONDONTWRITEBYTECODE= $(VENV)/bin/pytest --collect-only --quiet >/dev/null 2>&1 || true
endif
	@$(VENV)/bin/pytest $(or $(T),--numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder)

lint: $(DEV) ## ruff (rules and format) and buf lint
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/buf lint proto

typecheck: $(DEV) ## mypy, strict
	@$(VENV)/bin/mypy

format: $(DEV) ## let ruff and buf rewrite what they can
	@$(VENV)/bin/ruff check --fix --exit-zero .
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/buf format --write proto

proto: $(DEV) ## generate holdfast/api from proto/
	@$(PY) scripts/generate_protos.py

campaign: $(DEV) ## the crash campaign, long form (SEED=… FAULTS=500 RUNS=300 DATABASE=postgresql|sqlite SEAL=always|switching)
	@$(PY) -m tests.campaign $(if $(SEED),--seed $(SEED)) --faults $(or $(FAULTS),500) --runs $(or $(RUNS),300) \
		--database $(or $(DATABASE),postgresql) $(if $(SEAL),--seal $(SEAL))

bench: $(DEV) ## run the benchmarks
	@$(PY) -m benchmarks.run

simulate: $(DEV) ## simulate 1,000 executors and 1,000,000 waiting runs on a virtual clock (SEED=1)
	@$(PY) -m benchmarks.simulation $(if $(SEED),--seed $(SEED))

bench-peers: $(DEV) ## compare with DBOS, LangGraph and Restate (ROUNDS=3 CONCURRENCY=1,32,256 SECONDS=4 SYSTEMS=… MEASURES=…)
	@$(PY) -W ignore::UserWarning -m benchmarks.peers $(if $(ROUNDS),--rounds $(ROUNDS)) \
		$(if $(CONCURRENCY),--concurrency $(CONCURRENCY)) $(if $(SECONDS),--seconds $(SECONDS)) \
		$(if $(SYSTEMS),--systems $(SYSTEMS)) $(if $(MEASURES),--measures $(MEASURES))

clean: ## remove .venv, caches and build products
	@rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -path ./.git -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

$(PY):
	@PYTHON="$(PYTHON)" sh scripts/make_venv.sh $(VENV)

# Order-only: the interpreter's own date says nothing about what is installed.
$(SERVER): pyproject.toml | $(PY)
	@echo "Installing holdfast[server] into $(VENV) ..."
	@$(PIP) install --editable '.[server]'
	@touch $@

$(DEV): pyproject.toml | $(PY)
	@echo "Installing holdfast[dev] into $(VENV) ..."
	@$(PIP) install --editable '.[dev]'
	@touch $(SERVER) $@
