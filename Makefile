# Python to make the environment with, and where to put it.
PYTHON ?= python3
VENV   ?= .venv

PY    := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: help demo test gpu tensorrt lint env clean
.DEFAULT_GOAL := help

help:   ## print this list
	@sed -n 's/^\([a-z]*\): .*## /  make \1	/p' Makefile
	@echo "PYTHON=python3.12 chooses the Python that the environment in $(VENV) is made with (3.10 or newer)."

demo: $(READY)  ## compile EfficientNet-B0, check and time it against its peers, classify a picture
	@$(PY) examples/demo.py

test: $(READY) lint  ## check style and types, then run the whole suite
	@$(PY) -m pytest -n auto --dist worksteal

gpu: $(READY)  ## on a machine with an NVIDIA GPU: its tests, then the benchmark into docs/bench (ARGS="--models resnet50 --batch 1")
	@$(PY) tools/gpu.py $(ARGS)

tensorrt: $(READY)  ## on a machine with a GPU: whether TensorRT-RTX's engines are right (WITH=tensorrt: TensorRT's, which is installed first)
	@$(if $(WITH),$(PY) -m pip install --quiet -c constraints.txt $(WITH))
	@$(PY) -m pytest -q -n 0 -rs tests/backends/tensorrt/on_gpu

lint: $(READY)  ## ruff and mypy --strict
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

env: $(READY)  ## make the environment that the others use; a second time fetches nothing

clean:  ## remove caches and build outputs; the environment stays (rm -rf .venv removes it)
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find torchsmith tests examples tools -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt requirements-models.txt tools/env.py
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON) here; install Python 3.10 or newer, or name one: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$(PYTHON) is older than 3.10, which torchsmith needs; name a newer one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) tools/env.py $(VENV)
	@touch $@
