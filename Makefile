# make demo   read a text with a real model and write attention.html
# make test   everything that is needed, then the tests
# make check  formatting, lint, types, import rules
# make bench  this machine against PyTorch
# make benchmarks  everything that the README says was measured
# make docs   the documentation of every public name, in build/docs
# make pictures  the pictures of the page in the README
# make results  train and measure the tasks' models (hours; goes on where it was), docs/results.md
# make wheel  a wheel in dist/
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := $(VENV)/.demo
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# An editable install knows the files that there were: a changed folder means to install again.
FOLDERS := $(shell find src/regard -type d -not -name '__pycache__' -not -name '_native')
NATIVE := CMakeLists.txt $(shell find native -name '*.cpp' -o -name '*.h')

.PHONY: demo test test-slow check format bench benchmarks docs pictures results wheel clean

demo: $(DEMO)
	$(BIN)/regard explain examples/tides.txt --html attention.html

test: $(INSTALLED)
	$(BIN)/python -m pytest

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

check: $(INSTALLED)
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/clang-format --dry-run --Werror $(filter %.cpp %.h,$(NATIVE))
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff format src tests benchmarks examples
	$(BIN)/ruff check --fix src tests benchmarks examples
	$(BIN)/clang-format -i $(filter %.cpp %.h,$(NATIVE))

bench: $(INSTALLED)
	$(BIN)/python benchmarks/bench_forward.py

benchmarks: $(INSTALLED)
	$(BIN)/python benchmarks/run_all.py $(ARGUMENTS)

docs: $(INSTALLED)
	$(BIN)/pdoc -o build/docs regard '!regard.cli'

pictures: $(INSTALLED)
	$(BIN)/python docs/pictures.py

results: $(INSTALLED)
	REGARD=$(BIN)/regard sh results/run.sh
	$(BIN)/python docs/results.py

wheel: $(INSTALLED)
	$(BIN)/python -m pip wheel --no-deps -w dist .

clean:
	rm -rf build dist $(VENV)

# The CPU build of PyTorch: on Linux a plain "torch" brings gigabytes of CUDA. Where no configured
# source has it, PyTorch's own index does.
define INSTALL
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null \
	  || $(BIN)/python -m pip install -q -c constraints.txt torch==2.13.0+cpu 2>/dev/null \
	  || $(BIN)/python -m pip install -q -c constraints.txt --extra-index-url $(TORCH_INDEX) \
	       torch==2.13.0+cpu \
	  || $(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[$(1)]'
endef

# What the demonstration needs is a part of what the tests do.
$(DEMO): pyproject.toml constraints.txt $(NATIVE) $(FOLDERS)
	$(call INSTALL,demo)
	touch $@

$(INSTALLED): pyproject.toml constraints.txt $(NATIVE) $(FOLDERS)
	$(call INSTALL,dev)
	touch $@ $(DEMO)
