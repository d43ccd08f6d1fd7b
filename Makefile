# Every target sets up what it needs: Python 3.11+ and make are enough.
# `make help` lists the targets.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
CLIENTS := .venv-clients
LOCKS  := client server dev
COMPILE = $(BIN)/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-annotate --no-header --universal --python-version 3.11

.DEFAULT_GOAL := help
.PHONY: help hardware demo test lint format docs images images-test conformance examples notebooks clients faults fuzz soak bench bench-quick proto lock sbom audit wheel vm vm-lock vm-test clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' $(MAKEFILE_LIST) | sort | awk -F': ' '{printf "  make %-12s %s\n", $$1, $$2}'

# uv where there is one, pip where not: both install the same hashed lock.
$(VENV)/.dev: requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "BlindAI needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	@if command -v uv >/dev/null 2>&1; then \
	  test -x $(BIN)/python || uv venv --quiet --python $(PYTHON) $(VENV); \
	  uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/dev.txt; \
	  uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .; \
	else \
	  test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV); \
	  $(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt; \
	  $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	fi
	@touch $@

$(VENV)/.demo: requirements/demo.txt $(VENV)/.dev
	@if command -v uv >/dev/null 2>&1; then \
	  uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements/demo.txt; \
	else \
	  $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/demo.txt; \
	fi
	@touch $@

# What resolves and installs by the hashed locks, in this venv as others may have another.
$(BIN)/uv: | $(VENV)/.dev
	@if command -v uv >/dev/null 2>&1; then uv pip install --quiet --python $(BIN)/python uv; else $(BIN)/pip install --quiet uv; fi

# OpenVINO, which the tables compare with.
$(VENV)/.bench: requirements/bench.txt $(VENV)/.demo
	@if command -v uv >/dev/null 2>&1; then \
	  uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements/bench.txt; \
	else \
	  $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/bench.txt; \
	fi
	@touch $@

# Compiles against the TPM software stack: see .ci/run for the system packages.
$(VENV)/.hardware: requirements/hardware.txt $(VENV)/.dev
	@if command -v uv >/dev/null 2>&1; then \
	  uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/hardware.txt; \
	else \
	  $(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/hardware.txt; \
	fi
	@touch $@

# A venv of their own: these clients ask for other versions than we do.
$(CLIENTS)/.done: requirements/clients.txt $(VENV)/.dev
	@if command -v uv >/dev/null 2>&1; then \
	  test -x $(CLIENTS)/bin/python || uv venv --quiet --python $(BIN)/python $(CLIENTS); \
	  uv pip install --quiet --python $(CLIENTS)/bin/python --require-hashes -r requirements/clients.txt; \
	else \
	  test -x $(CLIENTS)/bin/pip || $(BIN)/python -m venv $(CLIENTS); \
	  $(CLIENTS)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/clients.txt; \
	fi
	@touch $@

clients: $(CLIENTS)/.done ## Install what the tests with KServe's client need

hardware: $(VENV)/.hardware ## Install what the tests of the TPM and of configfs-tsm need

demo: $(VENV)/.demo ## Serve, verify and use a real model, in simulation
	@$(BIN)/blindai demo

test: $(VENV)/.demo ## Run every test
	@$(BIN)/python -m pytest -q $(ARGS)

lint: $(VENV)/.dev ## ruff, mypy --strict, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(VENV)/.dev ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

images: $(VENV)/.dev ## Build the container images with podman or docker
	@$(BIN)/python deploy/containers/build.py

images-test: images ## Start each image, verify it and use it from outside
	@BLINDAI_IMAGES=1 $(BIN)/python -m pytest -q tests/deploy/test_images.py
	@echo "images: started as they are and hardened, verified from outside, predicted, stopped by SIGTERM"

docs: $(VENV)/.dev $(VENV)-docs/.done ## Build the documentation into site/, strictly, and test what it says
	@NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --quiet
	@$(BIN)/python -m pytest -q tests/docs
	@echo "site/index.html: every link leads somewhere, every command shown was run or parsed"

$(VENV)-docs/.done: requirements/docs.txt requirements/client.txt pyproject.toml
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv --quiet --clear --python $(PYTHON) $(VENV)-docs; \
	  uv pip install --quiet --python $(VENV)-docs/bin/python --require-hashes -r requirements/docs.txt -r requirements/client.txt; \
	else \
	  $(PYTHON) -m venv --clear $(VENV)-docs; \
	  $(VENV)-docs/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/docs.txt -r requirements/client.txt; \
	fi
	@echo "$(CURDIR)/src" > $$($(VENV)-docs/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/blindai-source.pth
	@touch $@

# Each in a virtual environment of its own. NAMES="sentiment breast-cancer" selects.
examples: $(VENV)/.dev ## Set up and run every example, and say what each proved
	@$(BIN)/python examples/all.py $(NAMES)

NOTEBOOKS := .venv-notebooks
notebooks: $(VENV)/.dev $(NOTEBOOKS)/.done ## Execute the notebooks and check what they print
	@$(NOTEBOOKS)/bin/python notebooks/execute.py $(ARGS)

$(NOTEBOOKS)/.done: requirements/notebooks.txt
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv --quiet --clear --python $(PYTHON) $(NOTEBOOKS); \
	  uv pip install --quiet --python $(NOTEBOOKS)/bin/python --require-hashes -r requirements/notebooks.txt; \
	else \
	  $(PYTHON) -m venv --clear $(NOTEBOOKS); \
	  $(NOTEBOOKS)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/notebooks.txt; \
	fi
	@echo "$(CURDIR)/src" > $$($(NOTEBOOKS)/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/blindai-source.pth
	@touch $@

conformance: $(VENV)/.dev ## Run ONNX's own test cases through a server, against onnxruntime in process
	@$(BIN)/python -m tests.conformance

# The faults that need a small disk need root. ROUNDS: of kill -9.
faults: $(VENV)/.dev ## Break a server in every way we know; writes docs/reliability.md (half an hour)
	@$(BIN)/python -m tests.faults --write $(if $(ROUNDS),--rounds $(ROUNDS)) $(ARGS)

soak: $(VENV)/.dev ## Mixed load for 30 minutes, or MINUTES; writes docs/reliability.md
	@$(BIN)/python -m tests.soak --write $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

# A venv of its own: atheris and schemathesis bring much that nothing else needs.
fuzz: $(VENV)-fuzz/.done ## Fuzz every parser and the HTTP surface; writes docs/reliability.md (40 minutes)
	@$(VENV)-fuzz/bin/python -m tests.fuzz --write $(if $(SECONDS),--seconds $(SECONDS)) $(ARGS)

$(VENV)-fuzz/.done: requirements/fuzz.txt pyproject.toml
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv --quiet --clear --python $(PYTHON) $(VENV)-fuzz; \
	  uv pip install --quiet --python $(VENV)-fuzz/bin/python --require-hashes -r requirements/fuzz.txt; \
	  uv pip install --quiet --python $(VENV)-fuzz/bin/python --no-deps --no-build-isolation -e .; \
	else \
	  $(PYTHON) -m venv --clear $(VENV)-fuzz; \
	  $(VENV)-fuzz/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/fuzz.txt; \
	  $(VENV)-fuzz/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	fi
	@touch $@

bench: $(VENV)/.bench ## Measure against the raw session and every peer; writes docs/performance.md
	@$(BIN)/python benchmarks/peers/install.py
	@$(BIN)/python benchmarks/compare.py

bench-quick: $(VENV)/.bench ## A few of the same without peers; writes nothing
	@$(BIN)/python benchmarks/compare.py --quick

proto: $(VENV)/.dev ## Write the protobuf descriptors of the gRPC services again
	@cd src/blindai/server/grpc/proto && $(CURDIR)/$(BIN)/python -m grpc_tools.protoc -I. \
	  --descriptor_set_out=descriptors.binpb *.proto

lock: $(BIN)/uv ## Write requirements/*.txt again, with hashes and without index addresses
	@$(COMPILE) pyproject.toml --extra server --extra otel --group dev -o requirements/dev.txt
	@$(COMPILE) -c requirements/dev.txt pyproject.toml -o requirements/client.txt
	@$(COMPILE) -c requirements/dev.txt pyproject.toml --extra server -o requirements/server.txt
	@$(COMPILE) --group pyproject.toml:hardware -o requirements/hardware.txt
	@$(COMPILE) --no-deps requirements/demo.in -o requirements/demo.txt
	@$(COMPILE) -c requirements/dev.txt requirements/bench.in -o requirements/bench.txt
	@$(COMPILE) requirements/build.in -o requirements/build.txt
	@$(COMPILE) requirements/audit.in -o requirements/audit.txt
	@$(COMPILE) -c requirements/client.txt requirements/docs.in -o requirements/docs.txt
	@$(COMPILE) requirements/clients.in -o requirements/clients.txt
	@$(COMPILE) -c requirements/dev.txt pyproject.toml --extra server --extra tpm -o requirements/vm.txt
	@$(COMPILE) requirements/vm-build.in -o requirements/vm-build.txt
	@$(COMPILE) -c requirements/dev.txt pyproject.toml --extra server --group dev requirements/fuzz.in -o requirements/fuzz.txt
	@$(COMPILE) -c requirements/dev.txt pyproject.toml requirements/notebooks.in -o requirements/notebooks.txt
	@$(COMPILE) -c requirements/dev.txt -c requirements/notebooks.txt pyproject.toml requirements/client-demo.in -o requirements/client-demo.txt
	@for example in $(dir $(wildcard examples/*/requirements.in)); do \
	  $(COMPILE) -c requirements/dev.txt pyproject.toml $$example/requirements.in -o $$example/requirements.txt; \
	  test ! -f $$example/files.in || $(COMPILE) --no-deps $$example/files.in -o $$example/files.txt; \
	done

# Tools of releases, each in a venv of its own, from hashed locks.
$(VENV)-audit/.done $(VENV)-build/.done: $(VENV)-%/.done: requirements/%.txt
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv --quiet --clear --python $(PYTHON) $(VENV)-$*; \
	  uv pip install --quiet --python $(VENV)-$*/bin/python --require-hashes -r requirements/$*.txt; \
	else \
	  $(PYTHON) -m venv --clear $(VENV)-$*; \
	  $(VENV)-$*/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/$*.txt; \
	fi
	@touch $@

sbom: $(VENV)-audit/.done ## Write bills of materials (CycloneDX) of what is shipped into build/sbom
	@$(VENV)-audit/bin/python deploy/release/sbom.py --cyclonedx $(VENV)-audit/bin/cyclonedx-py

audit: $(VENV)-audit/.done ## Ask whether a locked package has a known vulnerability; offline it fails
	@$(VENV)-audit/bin/python deploy/release/audit.py --pip-audit $(VENV)-audit/bin/pip-audit $(ARGS)

wheel: $(VENV)-build/.done ## Build the wheel twice into dist/, identical to the bit
	@$(VENV)-build/bin/python deploy/release/wheel.py --python $(VENV)-build/bin/python

# As root, on Debian 12; deploy/vm/README.md names the packages that are needed.
vm: $(BIN)/uv ## Build the measured machine into build/vm; MODELS=folder puts models in
	@$(BIN)/python deploy/vm/build.py $(if $(MODELS),--models $(MODELS)) $(ARGS)

vm-lock: $(VENV)/.dev ## Lock the Debian packages of the image to those that apt offers now
	@$(BIN)/python deploy/vm/build.py --lock

vm-test: $(VENV)/.hardware $(BIN)/uv ## Build the image twice, boot it, verify it, tamper with it (15 minutes)
	@BLINDAI_VM_TEST=1 $(BIN)/python -m pytest -q tests/vm $(ARGS)

clean: ## Remove what the targets made
	rm -rf $(VENV) $(VENV)-fuzz $(VENV)-audit $(VENV)-build $(CLIENTS) $(NOTEBOOKS) examples/*/.venv examples/*/build build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
