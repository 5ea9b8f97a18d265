# Two commands: `make run` and `make test`. Each sets up .venv first, once.
#   make run TORCH_INDEX=https://download.pytorch.org/whl/rocm7.1    another build of torch (cpu, cu126, rocm7.1, ...)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CPU_INDEX := https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -c '^GPU')
PIP := $(BIN)/pip install --quiet

.PHONY: run test check format docs bench bench-sweep exactness scaling wheel clean

run: $(VENV)/.ready
	$(BIN)/python -m runner +experiment=linreg

test: $(VENV)/.ready
	$(BIN)/python -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .

format: $(VENV)/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.ready
	$(BIN)/python docs/generate.py

bench: $(VENV)/.ready
	$(BIN)/python benchmarks/overhead.py

bench-sweep: $(VENV)/.ready
	$(BIN)/python benchmarks/sweep.py

exactness: $(VENV)/.ready
	$(BIN)/python docs/exactness.py

scaling: $(VENV)/.ready
	$(BIN)/python benchmarks/scaling.py

wheel: $(VENV)/.ready
	$(BIN)/python -m build --wheel --no-isolation

clean:
	rm -rf $(VENV) dist

# With an NVIDIA GPU pip's own choice is the CUDA build; without one the CPU build, from wherever pip looks or from torch's index.
$(VENV)/.ready: pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv $(VENV)
ifneq ($(TORCH_INDEX),)
	$(PIP) torch --index-url $(TORCH_INDEX)
	$(PIP) -e '.[dev]'
else ifneq ($(filter-out 0,$(GPU)),)
	$(PIP) -e '.[dev]'
else
	$(PIP) -c constraints-cpu.txt torch 2>/dev/null || $(PIP) -c constraints-cpu.txt torch --index-url $(CPU_INDEX)
	$(PIP) -c constraints-cpu.txt -e '.[dev]'
endif
	touch $@
