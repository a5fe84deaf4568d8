# One place for the commands of this project. `make help` lists them.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
UV := $(VENV)/bin/uv

.PHONY: help setup setup-gpu lock lint types test test-all docs bench demo wheel clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

setup: $(VENV)/.ready  ## .venv with exactly what requirements/cpu.lock pins, and this package in editable mode

# Bytecode: a job starts a dozen processes; where Python may not write it, each would compile every module anew.
$(VENV)/.ready: requirements/cpu.lock pyproject.toml
	@$(PYTHON) --version || { echo "error: PYTHON=$(PYTHON) not found. Install Python 3.11 or set PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(UV) || $(BIN)/python -m pip install --quiet uv
	UV_HTTP_TIMEOUT=300 $(UV) pip sync --compile-bytecode --python $(BIN)/python requirements/cpu.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

setup-gpu:  ## .venv for GPUs from requirements/gpu.lock, with flash-attn where a built wheel of it fits
	bash requirements/setup_gpu.sh $(VENV)

lock:  ## compile requirements/cpu.lock and gpu.lock from pyproject.toml
	UV=$(UV) requirements/lock.sh

lint: setup  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup  ## pyright
	$(BIN)/pyright

test: setup  ## unit and contract tests and a short run on the real stack
	OMP_NUM_THREADS=1 timeout 3000 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu"

test-all: setup  ## every test that runs without a GPU
	OMP_NUM_THREADS=1 timeout 14400 $(BIN)/python -m pytest -m "not gpu"

demo: setup  ## images, evaluation, calibration, CGRO training, evaluation, report.html, on a CPU; about 6 minutes
	OMP_NUM_THREADS=1 $(BIN)/realad demo $(DEMO_ARGS)

docs: setup  ## the documents as a site, in site/; a broken link or reference ends it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build  # not --quiet: that hides the warnings that end a strict build

bench: setup  ## every benchmark, JSON into benchmarks/results/
	PATH="$(CURDIR)/$(BIN):$$PATH" bash benchmarks/run_all.sh benchmarks/results

# No set-up: whatever python of that machine holds torch, transformers, triton and pytest.
GPU_PYTHON ?= python3
GPU_TESTS := tests/unit/attention

gpu:  ## on a machine with one GPU: the gpu tests, then benchmarks/gpu.py into gpu.json; GPU_PYTHON=... says by which python
	PYTHONPATH=$(CURDIR) $(GPU_PYTHON) -m pytest -q -m gpu $(GPU_TESTS)
	PYTHONPATH=$(CURDIR) $(GPU_PYTHON) benchmarks/gpu.py --out gpu.json

wheel:  ## build the wheel into dist/
	rm -rf build dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .

clean:  ## remove the environment and build products
	rm -rf $(VENV) build dist site *.egg-info
