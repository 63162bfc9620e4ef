# Two commands: `make demo` sets everything up and zooms; `make test` sets everything up and tests.
PYTHON ?= python3
# The release the tests are pinned to. On Linux, PyPI's own build of it carries CUDA; a CPU build,
# where pip finds one, is enough.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
TYPES := build/types/zoomc

.PHONY: demo test lint types clean

demo: $(VENV)/ready
	$(BIN)/zoomc zoom -o out/zoom.mp4

test: lint types
	$(BIN)/python -m pytest

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# kernels/, passes/ and targets/ install under zoomc: show mypy the tree as it installs.
types: $(VENV)/ready
	rm -rf $(TYPES) && mkdir -p $(TYPES)
	ln -s $(CURDIR)/zoomc/* $(CURDIR)/kernels $(CURDIR)/passes $(CURDIR)/targets $(TYPES)/
	MYPYPATH=build/types $(BIN)/mypy -p zoomc

$(VENV)/ready: pyproject.toml setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "zoomc needs Python 3.11 or newer; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build out *.egg-info
