# Two commands: `make run` and `make test`. Each sets up in .venv what it needs, once.
#   make run TORCH_INDEX=https://download.pytorch.org/whl/rocm7.1    another build of torch (cpu, cu126, rocm7.1, ...)
#   make run PYTHON=python3.12                                       another interpreter, for a new .venv

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CPU_INDEX := https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -c '^GPU')
PIP := $(BIN)/pip install --quiet

.PHONY: run test test-fast test-faults endurance check format docs bench bench-sweep exactness scaling gpu gpu-wheels wheel clean

run: $(VENV)/.run
	$(BIN)/python -m runner +experiment=linreg

# Everything: what .ci/run calls.
test: $(VENV)/.dev
	$(BIN)/python -m pytest tests experiments/own_model/tests -n 2 --dist loadfile --no-loadscope-reorder

# For the edit loop: unit and contract tests, the longest files first.
test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest tests/contracts tests/unit -n 2 --dist loadfile --no-loadscope-reorder

# Faults in full, such as a kill before every single write of the end of a run and a sweep, and tests that take long; `make test` has a part of them.
#   make test-faults TIMES=3
TIMES ?= 1
test-faults: $(VENV)/.dev
	for time in $$(seq $(TIMES)); do EVERY_WRITE=1 EVERY_TEST=1 $(BIN)/python -m pytest tests/faults tests/distributed -n 2 --dist loadfile --timeout 3600 || exit 1; done

# A run of 3*10^6 steps, a sweep of 4,096 trials, random kills of runs and of sweeps: half an hour.
#   make endurance PART=steps|trials|kills|sweep-kills
endurance: $(VENV)/.dev
	$(BIN)/python tests/faults/endurance.py $(PART)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.dev
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/api.py

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/overhead.py

bench-sweep: $(VENV)/.dev
	$(BIN)/python benchmarks/sweep.py

exactness: $(VENV)/.dev
	$(BIN)/python docs/exactness.py

scaling: $(VENV)/.dev
	$(BIN)/python benchmarks/scaling.py

# Everything that is promised about GPUs, on a machine with one: docs/gpu.md. Without .venv it takes what $(PYTHON) has, and wheels/.
#   make gpu PART=tests|bench|sweep MINUTES=9 INTO=FOLDER
gpu:
	$(firstword $(wildcard $(BIN)/python) $(PYTHON)) docs/gpu_report.py $(PART:%=--part %) $(MINUTES:%=--minutes %) $(INTO:%=--into %)

# Pure-Python packages that a machine with torch often lacks, in the versions of .venv.
gpu-wheels: $(VENV)/.run
	rm -rf wheels
	$(BIN)/pip freeze | grep -iE '^(hydra-core|omegaconf|antlr4-python3-runtime)==' \
	  | xargs $(BIN)/pip wheel --quiet --no-deps --wheel-dir wheels

wheel: $(VENV)/.dev
	$(BIN)/python -m build --wheel --no-isolation

clean:
	rm -rf $(VENV) dist build wheels

# With an NVIDIA GPU pip's own choice is the CUDA build; without one the CPU build, from wherever pip looks or from torch's index.
# Later installs must keep that build: the constraint names it.
ifneq ($(TORCH_INDEX),)
TORCH := $(PIP) torch --index-url $(TORCH_INDEX)
KEPT :=
else ifneq ($(filter-out 0,$(GPU)),)
TORCH := $(PIP) torch
KEPT :=
else
KEPT := -c constraints-cpu.txt
TORCH := $(PIP) $(KEPT) torch 2>/dev/null || $(PIP) $(KEPT) torch --index-url $(CPU_INDEX)
endif

# What a run needs.
$(VENV)/.run: pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(TORCH)
	$(PIP) $(KEPT) -e .
	touch $@

# What tests and checks need besides.
$(VENV)/.dev: $(VENV)/.run
	$(PIP) $(KEPT) -e '.[dev]'
	touch $@
