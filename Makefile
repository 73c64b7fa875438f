# Every target sets up what it needs: Python 3.11 or newer, make and git are enough.

PYTHON ?= python3
# Weft is some thousand modules. The tests start it hundreds of times, and where Python is told to
# keep no bytecode each start compiles them all anew, for a quarter of its time.
unexport PYTHONDONTWRITEBYTECODE
UV_VERSION := 0.13.9

BIN := .venv/bin
PROTOS = $(sort $(shell find proto -name '*.proto'))
SERVICE_PROTOS = $(filter %_service.proto,$(PROTOS))
GOOGLE_API := $(addprefix build/googleapis/google/,api/annotations.proto api/http.proto rpc/status.proto)

# Two makes at once take turns, where the system has flock.
TURNS := $(if $(shell command -v flock),flock .venv/lock)
INSTALL := $(TURNS) $(BIN)/python -m pip --quiet --no-input --disable-pip-version-check install

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run up test check generate breaking bench chaos fuzz lock clean

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

run: .venv/runtime ## Show Weft at work, from an empty folder to a killed and resumed turn; DOCS= and ASK= choose documents and question
	@$(BIN)/weft demo $${DOCS:+--docs "$$DOCS"} $${ASK:+--ask "$$ASK"}

up: .venv/runtime ## Start Weft on its own embedded servers, with its data in .weft/
	@$(BIN)/weft up

# Tests wait for most of their time, so that two go well beside each other; those of a file share
# the servers that it starts. Those that put a deployment under load go alone behind them.
test: export WEFT_TEST_TOPOLOGY = $(TOPOLOGY)
test: .venv/development $(GOOGLE_API) ## Run the whole test suite; ONLY= takes what pytest -k takes, WORKERS= (2), TOPOLOGY=split splits each Weft over processes
	@$(BIN)/pytest -m "not alone" -n $(or $(WORKERS),2) --dist loadfile $${ONLY:+-k "$$ONLY"}; \
	first=$$?; [ $$first -eq 0 ] || [ $$first -eq 5 ] || exit $$first; \
	$(BIN)/pytest -m alone $${ONLY:+-k "$$ONLY"}; \
	second=$$?; [ $$second -ne 5 ] || exit $$first; exit $$second

# Runs the command $(2): one line if it succeeds, else all that it said.
step = @said=$$($(2) 2>&1) && echo "ok  $(1)" || { printf '%s\n' "$$said" "failed: $(1)"; exit 1; }

check: .venv/development $(GOOGLE_API) ## Check format, lint, types, imports, contracts, generated code, the house
	$(call step,format,$(BIN)/ruff format --check .)
	$(call step,lint,$(BIN)/ruff check .)
	$(call step,types,$(BIN)/mypy)
	$(call step,imports,$(BIN)/lint-imports --no-cache)
	$(call step,contracts,$(BIN)/buf lint)
	$(call step,contract format,$(BIN)/buf format --diff --exit-code proto)
	@rm -rf build/expected && mkdir -p build/expected
	$(call step,code generator,$(call generate_into,build/expected))
	$(call step,generated code,diff -r --exclude=__pycache__ build/expected/weft generated/weft)
	$(call step,house,$(BIN)/pytest -q tests/house)

# The types of google/api and google/rpc come from the installed package, not from a copy of ours.
site_packages = $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
generate_into = $(BIN)/python -m grpc_tools.protoc -Iproto -I$(site_packages) \
	--plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
	--python_out=$(1) --mypy_out=quiet:$(1) $(PROTOS) \
	&& $(BIN)/python -m grpc_tools.protoc -Iproto -I$(site_packages) \
	--plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	--grpc_python_out=$(1) --mypy_grpc_out=quiet:$(1) $(SERVICE_PROTOS)

generate: .venv/development ## Write generated/ anew from proto/
	@rm -rf build/generated && mkdir -p build/generated generated
	@$(call generate_into,build/generated)
	@rm -rf generated/weft && mv build/generated/weft generated/weft

# A bare git reference lacks what is Google's, so both sides are built before they are compared.
breaking: .venv/development $(GOOGLE_API) ## Compare the contracts with those of the git reference BASE=
	@test -n "$(BASE)" || { echo "make breaking BASE=<git reference>"; exit 2; }
	@rm -rf build/base && mkdir -p build/base/build
	@git archive "$(BASE)" proto buf.yaml | tar -x -C build/base
	@cp -R build/googleapis build/base/build/googleapis
	@$(BIN)/buf build build/base -o build/base.binpb
	@$(BIN)/buf build -o build/head.binpb
	@$(BIN)/buf breaking build/head.binpb --against build/base.binpb \
		--config '{"version": "v2", "breaking": {"use": ["FILE"]}}'

bench: .venv/development ## Measure; ONLY= chooses, results also in .bench/results.json
	@$(BIN)/python -m tests.benchmarks $(ONLY)

chaos: .venv/development ## Kill Weft, its servers and workers at random, ROUNDS= times (200); restart a mesh under load, RESTARTS= times (50)
	@$(BIN)/python -m tests.chaos --rounds $(or $(ROUNDS),200)
	@$(BIN)/python -m tests.chaos.tasks --rounds $(or $(ROUNDS),200)
	@$(BIN)/python -m tests.chaos.mesh --rounds $(or $(RESTARTS),50)

fuzz: .venv/development ## Send random requests to every RPC, MESSAGES= to each (100000)
	@WEFT_FUZZ_MESSAGES=$(or $(MESSAGES),100000) $(BIN)/pytest -q tests/security/test_fuzz.py

LOCK = build/uv/bin/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-annotate --no-header --extra embedded --group build

# uv resolves for every platform at once, which pip can't; it has an environment of its own.
lock: .venv/made ## Resolve the dependencies anew and write requirements*.lock
	@$(PYTHON) -m venv build/uv
	@build/uv/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@$(LOCK) --output-file requirements.lock
	@$(LOCK) --group dev --output-file requirements-dev.lock

clean: ## Remove all that make has made; data in .weft/ stays
	@rm -rf .venv build dist .bench .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	@find mesh services tests generated -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Weft needs Python 3.11 or newer: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
		{ echo "this Python lacks venv: install your system's package for it (python3-venv)"; exit 1; }
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/runtime: .venv/made requirements.lock pyproject.toml
	@echo "Installing what Weft needs into .venv; once, some 30 seconds." >&2
	@$(INSTALL) --require-hashes -r requirements.lock
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

.venv/development: .venv/made requirements-dev.lock pyproject.toml
	@echo "Installing what Weft's development needs into .venv; once, about a minute." >&2
	@$(INSTALL) --require-hashes -r requirements-dev.lock
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@ .venv/runtime

$(GOOGLE_API): .venv/development
	@mkdir -p $(@D)
	@cp $(site_packages)/$(@:build/googleapis/%=%) $@
