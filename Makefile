# make demo    refine a photo and write a picture          make test   run the whole test suite
# make lint    ruff and clang-format                       make types  mypy
# make ctest   C++ tests (SANITIZE=1: with sanitizers)     make bench  benchmarks
# make docs    the documentation, in build/site
# make wheel   a wheel for this torch, in dist/            make sdist  a source archive, in dist/
#
# make gpu-test   with a GPU: the whole test suite, then compute-sanitizer
# make gpu-bench  with a GPU: its benchmarks               make resources  registers and spills of the kernels
#
# Everything lives in an environment inside the checkout, made where missing: .venv, or .venv-2.13.0 for TORCH=2.13.0.
# PYTHON= picks the interpreter of a new environment; WITH_CUDA=0|1 forces CUDA off or on; TESTS= picks tests,
# TEST_JOBS= how many processes run them (one for each core);
# TORCH_CUDA_ARCH_LIST= picks the GPUs to compile for.

DEFAULT_TORCH := 2.11.0
TORCH ?= $(DEFAULT_TORCH)
PYTHON ?= python3
TESTS ?= tests
# Processes that share the files of tests, each with one thread.
TEST_JOBS ?= auto
SANITIZE ?= 0
# For development the oldest, whose PTX runs on every other, and a large one: a third of the time; a wheel has all.
DEV_ARCHS := $(or $(TORCH_CUDA_ARCH_LIST),7.5+PTX;9.0)
MAX_WHEEL_MB := 20

VENV := $(if $(filter $(DEFAULT_TORCH),$(TORCH)),.venv,.venv-$(TORCH))
BIN := $(VENV)/bin
# torchvision is only known to fit the default; elsewhere its tests skip themselves
TORCHVISION := $(if $(filter 2.11.0,$(TORCH)),torchvision==0.26.0)
PIP := $(BIN)/pip --disable-pip-version-check --quiet
# Each torch has its own build folder, so that going back and forth compiles nothing twice.
BUILD_FOLDER := build/torch-$(TORCH)
BUILD_ENV := PATH="$(CURDIR)/$(BIN):$$PATH" DIST_EXTRA_CONFIG="$(CURDIR)/$(VENV)/build.cfg"

# Tests must meet the installed package with its compiled library, not the source folder.
export DENSECRF_REQUIRE_EXTENSION := 1
export PYTHONSAFEPATH := 1

# The package is installed anew when the content of its sources, or a choice of how to build it, has changed.
SOURCES := setup.py pyproject.toml MANIFEST.in README.md $(sort $(shell \
    find csrc densecrf_cuda deeplab -type f ! -name '*.py[co]' ! -name '*.so' ! -name '.*' 2>/dev/null))
BUILD := $(shell { cksum $(SOURCES); echo '$(WITH_CUDA) $(DEV_ARCHS)'; } 2>/dev/null | cksum | tr ' ' '-')
DEV := $(shell cksum < pyproject.toml | tr ' ' '-')
CXX_FILES := $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test doctest docs lint format types ctest bench wheel sdist gpu-test gpu-bench resources install dev clean
.DELETE_ON_ERROR:

demo: $(VENV)/.stamp-demo $(VENV)/.stamp-package-$(BUILD)
	$(BIN)/python examples/refine_photo.py

test: dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(TEST_JOBS) --dist loadfile $(TESTS)

doctest: dev
	$(BIN)/pytest -c pyproject.toml --rootdir=. --doctest-modules --pyargs densecrf_cuda deeplab

docs: dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site

lint: $(VENV)/.stamp-dev-$(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: $(VENV)/.stamp-dev-$(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

types: dev
	$(BIN)/mypy densecrf_cuda deeplab

ctest: $(VENV)/.stamp-dev-$(DEV)
	$(BIN)/cmake -S . -B build/ctest-$(SANITIZE) -G Ninja -DWITH_TORCH=OFF -DDENSECRF_SANITIZE=$(SANITIZE) \
	    -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja
	$(BIN)/cmake --build build/ctest-$(SANITIZE) --parallel $(or $(MAX_JOBS),2)
	$(BIN)/ctest --test-dir build/ctest-$(SANITIZE) --output-on-failure

bench: dev $(VENV)/.stamp-bench-$(DEV)
	set -e; for script in benchmarks/bench_*.py; do $(BIN)/python $$script; done

wheel: $(VENV)/.stamp-torch
	@rm -rf $(BUILD_FOLDER)/lib.* $(BUILD_FOLDER)/wheel
	$(BUILD_ENV) $(BIN)/pip wheel --no-build-isolation --no-deps --wheel-dir $(BUILD_FOLDER)/wheel .
	@du -h $(BUILD_FOLDER)/wheel/*.whl
	@test -z "$$(find $(BUILD_FOLDER)/wheel -size +$(MAX_WHEEL_MB)000000c)" || { echo "over $(MAX_WHEEL_MB) MB"; exit 1; }
	@mkdir -p dist && mv $(BUILD_FOLDER)/wheel/*.whl dist

sdist: dev
	$(BIN)/python -I -m build --sdist --no-isolation --outdir dist .

gpu-test: dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(TEST_JOBS) --dist loadfile $(TESTS)
	$(BIN)/python tests/gpu/sanitize_suite.py --sanitizers

gpu-bench: dev $(VENV)/.stamp-bench-$(DEV)
	$(BIN)/python benchmarks/gpu/bench_mean_field_gpu.py
	$(BIN)/python benchmarks/gpu/bench_separable_conv_gpu.py

resources: $(VENV)/.stamp-torch
	$(BIN)/python benchmarks/gpu/resources.py --archs "$(DEV_ARCHS)"

install: $(VENV)/.stamp-package-$(BUILD)
dev: $(VENV)/.stamp-package-$(BUILD) $(VENV)/.stamp-dev-$(DEV)

clean:
	rm -rf build dist *.egg-info

# --- the environment --------------------------------------------------------------------------------------------------

$(VENV)/.stamp-torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=...")'
	@echo "installing torch $(TORCH) into $(VENV), a few minutes the first time"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install "torch==$(TORCH)" $(TORCHVISION) numpy "setuptools>=70" wheel ninja pybind11
	@printf '[build]\nbuild_base = $(BUILD_FOLDER)\n' > $(VENV)/build.cfg
	@touch $@

# The folder lib would keep modules that the sources no longer have; objects stay, so that ninja compiles only what changed.
$(VENV)/.stamp-package-$(BUILD): $(VENV)/.stamp-torch
	@echo "building densecrf_cuda for torch $(TORCH)"
	@rm -rf $(BUILD_FOLDER)/lib.* $(VENV)/.stamp-package-*
	TORCH_CUDA_ARCH_LIST="$(DEV_ARCHS)" $(BUILD_ENV) $(PIP) install --no-build-isolation --no-deps --force-reinstall .
	@$(BIN)/python -I -c 'import densecrf_cuda._C as c; print("CUDA" if c.cuda_version else "CPU only", c.cuda_decision, sep=": ")'
	@touch $@

$(VENV)/.stamp-demo: $(VENV)/.stamp-torch
	$(PIP) install "torch==$(TORCH)" pillow scikit-image
	@touch $@

# The package is there already, so this installs what its extras name.
$(VENV)/.stamp-dev-$(DEV) $(VENV)/.stamp-bench-$(DEV): | $(VENV)/.stamp-package-$(BUILD)
	$(PIP) install "torch==$(TORCH)" "densecrf_cuda[$(patsubst .stamp-%-$(DEV),%,$(notdir $@))]"
	@touch $@
