# Everything a newcomer needs: `make quickstart` (set-up + the main job on real input) and `make test` (set-up + tests).
VENV ?= .venv
PYTHON := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup quickstart up down deploy deploy-kubernetes status samples test test-slow bench bench-smoke lint format browser prometheus manifests clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## make the virtual environment and install everything into it (no root needed)

$(VENV)/.installed: pyproject.toml constraints.txt infra/install.sh
	sh infra/install.sh $(VENV)
	touch $@

quickstart: setup ## fetch real pictures, build EmoBench, train EmoLLM, score it, open the way to the report
	@$(PYTHON) -m infra.quickstart

up: setup ## start the local Prefect server, its worker and a Ray head, and register the deployments
	@$(PYTHON) -m infra.services up

down: setup ## stop what `make up` started
	@$(PYTHON) -m infra.services down

deploy: setup ## register pool, deployments and automations with the Prefect server of PREFECT_API_URL (or `make up`)
	@$(PYTHON) -m infra.deploy

deploy-kubernetes: setup ## the same for the Kubernetes work pool of prefect-kubernetes.yaml
	@$(PYTHON) -m infra.deploy --kubernetes

status: setup ## say which local services run, and where
	@$(PYTHON) -m infra.services status

samples: setup ## only fetch and convert the models, pictures, clips and texts of the quickstart
	@$(PYTHON) -m infra.samples

lint: setup ## style, import order, types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test: setup lint browser ## lint, types and all tests but the slow ones
	@$(PYTHON) -m infra.run_tests

test-slow: setup browser prometheus ## the tests marked slow
	$(PYTHON) -m pytest -m slow

bench: setup ## measure against the peers (about an hour and a half): a table here, every value in benchmarks.json
	$(PYTHON) -m tests.benchmarks $(BENCH)

bench-smoke: setup ## every benchmark at toy size: they still run and still do the same work as their peers
	$(PYTHON) -m tests.benchmarks --size smoke

bench-%: setup ## one benchmark by name, as `make bench-build-images`; more options in BENCH=…
	$(PYTHON) -m tests.benchmarks $* $(BENCH)

format: setup ## let ruff format the code
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

browser: ## a Chromium for the tests of the report, where it can be had without asking
	@sh infra/install_browser.sh

prometheus: ## Prometheus and promtool for the slow tests, unpacked into .local
	@sh infra/install_prometheus.sh

manifests: setup ## check the files of Docker, Kubernetes and Prometheus before a cluster sees them
	@$(PYTHON) -m infra.check_manifests

clean: ## remove the environment, downloads, converted models and all runs
	rm -rf $(VENV) .local runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
