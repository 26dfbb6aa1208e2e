# Every target makes what it needs: the first one to run creates .venv and builds the native kernels.
# Needed on the machine: Python 3.11 or newer with venv, a C++20 compiler, and PyPI.

PYTHON ?= python3
# The environment of everything but test-gpu. ONNX Runtime for CPU and for GPU share one import name,
# so the GPU tests have an environment of their own.
VENV := .venv
EXTRAS := export,cpu,rtx,bench,datasets,parquet,ray,serve,sign,fuzz,dev
GPU_VENV := .venv-gpu
GPU_EXTRAS ?= export,gpu,trt,rtx,bench,dev

# Where a server runs: no torch, and numpy 1 for the server's Python backend. The server itself comes
# in nvidia-pytriton, whose own Python packages aren't needed.
SERVE_VENV := .venv-serve
SERVE_TESTS := tests/runtime/test_runtime.py tests/data/test_golden_preprocess.py tests/serving/test_serving.py

comma := ,
LOCKED_EXTRAS := $(subst $(comma), ,$(EXTRAS))

BIN := $(CURDIR)/$(VENV)/bin
PYTEST_ARGS ?=
# Processes that `make test` shares the tests out to; tests/conftest.py gives each its part of the cores.
WORKERS ?= 2
BENCH_ARGS ?=

NATIVE := CMakeLists.txt $(shell find kernels -name '*.cpp' -o -name '*.h' -o -name '*.hpp')
# What a wheel is made of; listed so that `check` builds one only when something changed.
SOURCES := pyproject.toml $(NATIVE) $(shell find hat_export kernels cli -type f -name '*.py')
CXX_SOURCES = find kernels \( -name '*.cpp' -o -name '*.h' -o -name '*.hpp' \)

.DELETE_ON_ERROR:
.PHONY: help demo test test-full test-gpu test-serve test-lowest test-newest lock sbom check lint types bench attack docs clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*  ## /\1|/' \
		| awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

# The commands that a user would type, on the model and the data in demo/.
DEMO_MODEL := demo/hat-tiny-emojicap
DEMO_DATA := demo/emojicap
DEMO_OUT := runs/demo

demo: $(VENV)/.installed  ## Export and quantize the small model, check its recall and time it
	$(BIN)/hat-export onnx $(DEMO_MODEL) $(DEMO_OUT)/bundle --overwrite
	$(BIN)/hat-bench parity $(DEMO_MODEL) $(DEMO_OUT)/bundle --data $(DEMO_DATA) \
		--report $(DEMO_OUT)/parity.html --report $(DEMO_OUT)/parity.json
	$(BIN)/hat-export quantize $(DEMO_OUT)/bundle $(DEMO_OUT)/int8 --mode int8-weights --compensate \
		--calibration $(DEMO_DATA) --calibration-image-count 64 --overwrite
	$(BIN)/hat-bench parity $(DEMO_OUT)/bundle $(DEMO_OUT)/int8 --data $(DEMO_DATA) \
		--max-drop rsum=2 --report $(DEMO_OUT)/parity-int8.html
	$(BIN)/hat-bench latency $(DEMO_MODEL) $(DEMO_OUT)/bundle \
		--report $(DEMO_OUT)/latency.html --report $(DEMO_OUT)/latency.json
	@echo
	@echo "Look at $(DEMO_OUT)/parity.html, parity-int8.html and latency.html."
	@echo "For your own checkpoint:"
	@echo "  .venv/bin/hat-export onnx YOUR.ckpt bundle/"
	@echo "  .venv/bin/hat-bench parity YOUR.ckpt bundle/ --data dataset_flickr30k.json --images IMAGES/"
	@echo "  .venv/bin/hat-bench latency YOUR.ckpt bundle/"

test: $(VENV)/.installed  ## Run the tests that need neither the full-size model nor a GPU
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal --durations 10 $(PYTEST_ARGS)

test-full: $(VENV)/.installed  ## Run the tests on the full-size model (minutes, 8 GB of memory)
	$(BIN)/python -m pytest -m "full and not gpu" $(PYTEST_ARGS)

test-gpu: $(GPU_VENV)/.installed  ## Run the tests that need an NVIDIA GPU
	$(GPU_VENV)/bin/python -m pytest -m gpu $(PYTEST_ARGS)

test-serve: $(VENV)/.installed $(SERVE_VENV)/.installed  ## Run the runtime without torch, and a Triton Inference Server
	$(BIN)/hat-export onnx $(DEMO_MODEL) build/serve/bundle --overwrite --quiet
	HAT_EXPORT_TEST_BUNDLE=$(CURDIR)/build/serve/bundle \
		$(SERVE_VENV)/bin/python -m pytest -m "not gpu" $(SERVE_TESTS) $(PYTEST_ARGS)

# The runtime without torch, at the lowest and at the newest versions that pyproject.toml allows.
# Not by python -m pytest: that would find the sources here before the package that is installed.
RUNTIME_TESTS := tests/runtime/test_runtime.py tests/data/test_golden_preprocess.py tests/index/test_images.py \
	tests/test_spec.py tests/base/test_files.py tests/score/test_metrics.py tests/index/test_query.py
test-lowest: RESOLUTION := lowest-direct
test-newest: RESOLUTION := highest
test-lowest test-newest: $(VENV)/.installed  ## Run the runtime's tests at the lowest (newest) versions of its libraries
	$(BIN)/hat-export onnx $(DEMO_MODEL) build/$@/bundle --overwrite --quiet
	$(PYTHON) -m venv --clear build/$@/venv
	$(BIN)/uv pip install --python build/$@/venv/bin/python --resolution $(RESOLUTION) \
		".[cpu]" "pytest>=8.3" "hypothesis>=6.120"
	HAT_EXPORT_TEST_BUNDLE=$(CURDIR)/build/$@/bundle \
		build/$@/venv/bin/pytest -p no:cacheprovider $(RUNTIME_TESTS) $(PYTEST_ARGS)

# torch as PyPI has it, with CUDA. For another build install that first, then the others by name
# from this file: pip takes what fits as installed.
lock: $(VENV)/.installed  ## Pin every library of development, with hashes, in requirements/dev.txt
	$(BIN)/uv pip compile pyproject.toml $(LOCKED_EXTRAS:%=--extra %) --generate-hashes --quiet \
		--python-version 3.11 --python-platform x86_64-manylinux_2_28 \
		--custom-compile-command "make lock" $(LOCK_ARGS) -o requirements/dev.txt

sbom: $(VENV)/.installed  ## Write a CycloneDX list of everything in .venv to build/sbom.json
	mkdir -p build
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
		--of JSON -o build/sbom.json $(BIN)/python

check: lint types  ## Run the linters, the formatters and the type checker; find dead code and copies

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m vulture
	$(BIN)/python bench/copies.py
	$(CXX_SOURCES) -print0 | xargs -0 -r $(BIN)/clang-format --dry-run -Werror

# mypy runs on an installed wheel, from another folder: at the root it would not see kernels/ and
# cli/ under their installed names, would check too little and would say nothing. So the number of
# files that it checked is compared with the number in the repository. (Files are named one by one,
# because with -p it counts every folder without an __init__.py as one more.)
types: build/types/.installed
	@expected=$$(find hat_export kernels cli -name '*.py' | wc -l); \
	cd build/types && \
	if ! $(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache \
		--explicit-package-bases $$(find hat_export -name '*.py') > mypy.log; then \
		cat mypy.log; exit 1; fi; \
	cat mypy.log; \
	grep -q "no issues found in $$expected source files" mypy.log || { \
		echo "error: mypy must check all $$expected modules of hat_export/, kernels/ and cli/;" \
			"delete build/ and look for a module that the wheel lacks" >&2; exit 1; }

bench: $(VENV)/.installed $(SERVE_VENV)/.installed  ## Measure the published figures on this machine and write them into README and docs
	$(BIN)/python bench/figures.py --out runs/bench $(BENCH_ARGS)

ATTACK_ARGS ?=
attack: $(VENV)/.installed  ## Attack every door with malformed inputs, fuzz every parser, write docs/security.md
	$(BIN)/python bench/attack $(ATTACK_ARGS)
	$(BIN)/python bench/tables.py

docs: $(VENV)/.installed  ## Write docs/cli/ from the commands themselves
	mkdir -p docs/cli
	$(BIN)/typer hat_export.cli.export utils docs --name hat-export --output docs/cli/hat-export.md
	$(BIN)/typer hat_export.cli.bench utils docs --name hat-bench --output docs/cli/hat-bench.md

clean:  ## Delete builds and caches; the environments stay, they are gigabytes to fetch
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find hat_export kernels cli tests bench -name __pycache__ -prune -exec rm -rf {} +

# Stamps. Dependencies are installed again when pyproject.toml changes, the package itself (editable)
# when a native source does; Python sources are picked up as they are.
$(VENV)/.dependencies: pyproject.toml
	@$(MAKE) --no-print-directory .requirements
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --editable ".[$(EXTRAS)]"
	@touch $@

$(VENV)/.installed: $(VENV)/.dependencies $(NATIVE)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(GPU_VENV)/.installed: pyproject.toml $(NATIVE)
	@$(MAKE) --no-print-directory .requirements
	$(PYTHON) -m venv $(GPU_VENV)
	$(GPU_VENV)/bin/python -m pip install --editable ".[$(GPU_EXTRAS)]"
	@touch $@

$(SERVE_VENV)/.installed: pyproject.toml $(NATIVE)
	@$(MAKE) --no-print-directory .requirements
	$(PYTHON) -m venv $(SERVE_VENV)
	$(SERVE_VENV)/bin/python -m pip install --editable ".[cpu,serve]" "numpy<2" "pytest>=8.3"
	$(SERVE_VENV)/bin/python -m pip install --no-deps "nvidia-pytriton>=0.7"
	@touch $@

build/types/.installed: $(VENV)/.dependencies $(SOURCES)
	rm -rf build/types
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target build/types .
	@touch $@

.PHONY: .requirements
.requirements:
	@command -v $(PYTHON) > /dev/null || { \
		echo "error: $(PYTHON) not found; install Python 3.11 or newer" \
			"or name one: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1), Python 3.11 or newer is needed;" \
			"name one: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
		echo "error: $(PYTHON) has no venv module; on Debian or Ubuntu:" \
			"apt-get install python3-venv" >&2; exit 1; }
	@echo 'int main() {}' | $(CXX) -std=c++20 -x c++ -fsyntax-only - 2> /dev/null || { \
		echo "error: no C++20 compiler ($(CXX)); on Debian or Ubuntu: apt-get install g++," \
			"or name one: make CXX=clang++ ..." >&2; exit 1; }
