# igniterd: every target does the set-up it needs. `make help` lists them.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
SEEDS  ?= 10
# Where this is not CI, who is not root does not act as other users.
OTHERS := $(if $(CI)$(filter 0,$(shell id -u)),, and not root)
# Real programs that need little of the machine: they run beside the others, and give way to them.
BESIDE := tests/bench $(addprefix tests/integration/test_,batches.py clients_mqtt_parts.py broker_rights.py clients_secured.py fleet_apply.py fleet_bad_hosts.py fleet_garbage.py fleet_service.py fleet_speaks.py host_boards.py node_labels.py odd_models.py oldest_triton.py onnx_nodes.py profiler_secured.py release.py share_environment.py)

.DEFAULT_GOAL := help
.PHONY: help setup assets kernels check test test-all unit coverage fuzz demo bench bench-gpu clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "igniterd needs Python 3.11 with pip and venv, and there is no $(PYTHON): install it (Debian: apt-get install python3.11 python3.11-venv) or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "igniterd needs Python 3.11 or later, and $(PYTHON) is $$($(PYTHON) -V): name another one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) cannot make a virtual environment in $(VENV): install its venv (Debian: apt-get install python3.11-venv)" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' || { echo "pip could not install what igniterd needs: it wants a package index within reach (PIP_INDEX_URL), or a folder of wheels (PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER)" >&2; exit 1; }
	@touch $@

setup: $(STAMP)  ## make the virtual environment

assets: $(STAMP)  ## fetch the real programs that tests run (two tritonservers, MPS control, mosquitto, ONNX Runtime, torch)
	@$(BIN)/python -m igniterd.lab.programs.fetch

kernels: $(STAMP)  ## compile most kernels, before many tests at once would each do it
	@$(BIN)/igniterd plan igniterd/data/v100/workloads.csv --gpu v100 >/dev/null

check: $(STAMP)  ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check igniterd tests bench
	$(BIN)/ruff format --check igniterd tests bench
	$(BIN)/mypy
	$(BIN)/lint-imports

test: assets kernels  ## the tests; real programs on loopback. Left to test-all: what is marked slow. Left out: what needs a GPU, and outside CI what only root can do
	@said=$$(mktemp -d); trap 'kill $$pure $$beside 2>/dev/null; rm -rf '$$said EXIT; \
	nice -n 19 $(BIN)/python -m pytest -n 2 -m 'not gpu and not slow and not integration$(OTHERS)' >$$said/pure 2>&1 & pure=$$!; \
	nice -n 5 $(BIN)/python -m pytest -n 2 --dist loadfile $(BESIDE) -m 'integration and not gpu and not slow' >$$said/beside 2>&1 & beside=$$!; \
	$(BIN)/python -m pytest -n 2 --dist loadfile $(addprefix --ignore=,$(BESIDE)) -m 'integration and not gpu and not slow'; real=$$?; \
	wait $$pure; other=$$?; wait $$beside; other=$$((other | $$?)); cat $$said/pure $$said/beside; exit $$((real | other))

test-all: test  ## the tests, and those marked slow: hours of virtual time, many plans
	$(BIN)/python -m pytest -n 2 -m 'slow and not gpu'

unit: $(STAMP)  ## the tests that start no other program
	$(BIN)/python -m pytest -n 2 -m 'not gpu and not slow and not integration$(OTHERS)'

coverage: $(STAMP)  ## what the unit tests run of the package; fails below 91 %
	$(BIN)/python -m pytest -q -n 2 -m 'not gpu and not slow and not integration$(OTHERS)' --cov --cov-report=term:skip-covered

fuzz: $(STAMP)  ## the Hypothesis properties on new examples, SEEDS=10 times as many as the tests' own, and hunts on SEEDS new hosts
	@for i in $$(seq $(SEEDS)); do HYPOTHESIS_PROFILE=new $(BIN)/python -m pytest -q -m 'hypothesis and not integration' || exit 1; done
	HUNTS=$(SEEDS) $(BIN)/python -m pytest -q tests/test_hunt.py

demo: $(STAMP)  ## igniterd moving a real Triton on an emulated GPU, about three minutes
	@$(BIN)/python -m igniterd.lab.programs.fetch demo
	@$(BIN)/igniterd demo

bench: $(STAMP)  ## every benchmark; bench/README.md has the figures
	@for b in bench/*.py; do echo "== $$b"; $(BIN)/python $$b; done

bench-gpu: $(STAMP)  ## the GPU harness, at most nine minutes; without a GPU: make bench-gpu ARGS=--emulated
	@bench/gpu/run.sh $(ARGS)

.PHONY: keys schemas release
keys: $(STAMP)  ## write the table of configuration keys into systemd/README.md
	@$(BIN)/python -m tests.tools.config_keys

schemas: $(STAMP)  ## write the JSON Schemas of the messages into igniterd/data/schemas
	@$(BIN)/python -m tests.tools.schemas

release: $(STAMP)  ## check the version against the Changes in README.md, and make a wheel in dist/
	@$(BIN)/python -m tests.tools.release

clean:  ## remove what make made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .demo out build dist
