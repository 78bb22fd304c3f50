# Every target makes .venv and installs what it needs; a second run finds it there.
#   make demo    report on ResNeXt-50 with a photograph      make test    lint, types, tests
#   make bench   time the package's own work                 make docs    pictures and site
#   make clean   remove .venv and what was made
# PYTHON picks the interpreter of a new .venv, PIP_FLAGS adds to every pip install (an index with CPU builds of torch, say).

PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --constraint constraints.txt
REPORT := groupwise-report.html

.PHONY: demo test bench docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/demo.stamp
	$(BIN)/groupwise report resnext50_32x4d -o $(REPORT) --image \
	  "$$($(BIN)/python -c 'import importlib.util as u; print(u.find_spec("sklearn").submodule_search_locations[0])')/datasets/images/china.jpg"
	@echo "Open $(REPORT) in a browser for the pictures."

test: $(VENV)/test.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest

bench: $(VENV)/base.stamp
	$(BIN)/python benchmarks/run.py

docs: $(VENV)/docs.stamp
	$(BIN)/python docs/draw.py
	$(BIN)/mkdocs build --strict --quiet
	@echo "Open site/index.html in a browser."

clean:
	rm -rf $(VENV) site $(REPORT)

# Made whole or not at all: a venv left half-made by an error would fail for ever after.
$(VENV)/venv.stamp:
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	touch $@

# torch goes first and by name, so that no other package's wish decides which build comes.
$(VENV)/base.stamp: $(VENV)/venv.stamp pyproject.toml constraints.txt
	$(PIP) torch
	$(PIP) --editable .
	touch $@

$(VENV)/demo.stamp: $(VENV)/base.stamp
	$(PIP) --editable ".[demo]"
	touch $@

# torchvision and timm ask for a torch of their own, which --no-deps keeps them from bringing.
$(VENV)/test.stamp: $(VENV)/base.stamp
	$(PIP) --editable ".[test]"
	$(PIP) --no-deps torchvision timm
	touch $@

$(VENV)/docs.stamp: $(VENV)/base.stamp
	$(PIP) --editable ".[docs]"
	touch $@
