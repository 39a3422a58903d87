# Every target does its own set-up in a project-local virtual environment and can be repeated.

ifeq ($(origin PYTHON), undefined)
PYTHON_CANDIDATES := python3 python3.13 python3.12 python3.11
else
PYTHON_CANDIDATES := $(PYTHON)
endif
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := build/demo
BOX := videomae_jax/boxed_models/motions
WORKERS ?= auto --maxprocesses 4

# By name and version, as an argument: a plain `torch`, which the extras say, may take several GB of
# CUDA instead.
TORCH := $(shell grep '^torch==' constraints.txt)
INSTALL = $(BIN)/python -m pip install -qq --no-input -c constraints.txt

JAX_PLATFORMS ?= cpu
PIP_DISABLE_PIP_VERSION_CHECK := 1
export JAX_PLATFORMS PIP_DISABLE_PIP_VERSION_CHECK

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-core lint clean

help:
	@echo "make demo       convert the model in the box, verify it, classify a generated clip"
	@echo "make test       lint, type checks and all tests"
	@echo "make test-core  the tests that need neither torch nor transformers"
	@echo "make lint       ruff and pyrefly"
	@echo "make clean      remove $(VENV), $(DEMO) and the tools' caches"
	@echo
	@echo "PYTHON=python3.12   the Python that $(VENV) is made with, 3.11 or newer"
	@echo "VENV=folder         another virtual environment than .venv"
	@echo "ARGS='-k tokens'    passed on to pytest"
	@echo "WORKERS=2           pytest processes (one a core, 4 at most)"

demo: $(VENV)/.demo
	@rm -rf $(DEMO)
	$(BIN)/python -m examples.motions.generate $(DEMO)/clips --count 1 --seed 2027
	$(BIN)/python -m convert $(BOX) $(DEMO)/converted --verify
	$(BIN)/videomae classify $(DEMO)/clips/2027-00000.mp4 --model $(DEMO)/converted
	@echo "What the clip shows: $$(tail -n 1 $(DEMO)/clips/manifest.csv | tr -d '\r' | cut -d , -f 2)"

test: lint
	@$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

test-core: $(VENV)/.core
	@$(BIN)/python -m pytest -n $(WORKERS) --ignore=tests/parity $(ARGS)

lint: $(VENV)/.test
	@$(BIN)/ruff check --output-format concise
	@$(BIN)/ruff format --check
	@$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

clean:
	@rm -rf $(DEMO) .pytest_cache .ruff_cache
	@if [ -d build ]; then rmdir build 2>/dev/null || true; fi
	@if [ -e $(VENV)/.made-by-make ]; then rm -rf $(VENV); \
	elif [ -e $(VENV) ]; then echo "left $(VENV) alone: this Makefile did not make it"; fi

# One stamp for each set of packages; the set of `test` holds the other two.

$(VENV)/.demo: $(VENV)/.created pyproject.toml constraints.txt
	@echo "installing what the demo needs into $(VENV) (minutes the first time)"
	@$(INSTALL) $(TORCH) -e '.[video,verify]'
	@touch $@

$(VENV)/.core: $(VENV)/.created pyproject.toml constraints.txt
	@echo "installing what the tests without torch need into $(VENV) (minutes the first time)"
	@$(INSTALL) -e '.[test]'
	@touch $@

$(VENV)/.test: $(VENV)/.created pyproject.toml constraints.txt
	@echo "installing what the tests need into $(VENV) (minutes the first time)"
	@$(INSTALL) $(TORCH) -e '.[verify,test,lint]'
	@$(INSTALL) -e '.[tpu]' || echo "libtpu doesn't install here: the tests that compile for TPUs are skipped"
	@touch $@ $(VENV)/.core $(VENV)/.demo

# The marker comes before the environment, so that one whose making was interrupted counts as ours.
$(VENV)/.created:
	@if [ -e $(VENV) ] && [ ! -e $(VENV)/.made-by-make ]; then \
	    echo "error: $(VENV) was not made by this Makefile: move it away, or say VENV=folder" >&2; \
	    exit 1; \
	fi
	@for candidate in $(PYTHON_CANDIDATES); do \
	    if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	        echo "creating $(VENV) with $$($$candidate --version)"; \
	        mkdir -p $(VENV) && touch $(VENV)/.made-by-make && $$candidate -m venv $(VENV) && touch $@; \
	        exit; \
	    fi; \
	done; \
	echo "error: Python 3.11 or newer is needed, not found as: $(PYTHON_CANDIDATES); say PYTHON=path" >&2; \
	exit 1
