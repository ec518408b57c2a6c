# `make help` lists the targets. They work from a bare clone, with python3, its venv module and headers and a C++
# compiler; GoogleTest comes from Debian's package manager, and those that need more say so.

PYTHON ?= python3
EMMET_WERROR ?= OFF
FUZZ_SECONDS ?= 180
EMMET_DATA ?= $(abspath $(wildcard ../shared/data))

BIN := .venv/bin
DONE := .venv/done
# Where pyproject.toml has editable installs built.
BUILD := build/cpp
CUDA_VENV := build/cuda-venv
MODELS := build/models

# An exact version, so that every environment has the same torch: a range may draw a CUDA build beside a CPU build.
TORCH := $(shell sed -n 's/^requires = .*"\(torch==[0-9.]*\)\.\*".*/\1.0/p' pyproject.toml)
CPP := $(shell find cpp tests -name '*.cpp' -o -name '*.h' -o -name '*.cu')
BUILD_FILES := pyproject.toml CMakeLists.txt cpp/bindings/CMakeLists.txt $(wildcard cmake/*) \
  $(shell find cpp -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.in')

export PATH := $(abspath $(BIN)):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help venv build model demo test test-cpp test-tsan check-cuda test-cuda test-python test-packaging test-models docs-models \
  test-llama lint format types bench docs test-asan test-faults fuzz fuzz-cpp audit clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

venv: $(DONE)/venv ## Make the virtual environment .venv with torch and the build tools
build: $(DONE)/build ## Build the extension and install emmet, editable, into .venv
model: $(DONE)/model ## Fetch the small real model of the demo and the tests

demo: build model ## Edit facts in a small real model
	$(BIN)/python examples/demo.py $(MODELS)/*.gguf

test: test-cpp test-python ## Run the C++ and the Python tests

test-cpp: build ## Run the C++ tests and examples
	tests/cpp/get_gtest.sh build/gtest
	cmake -DEMMET_TESTS=ON -DEMMET_EXAMPLES=ON -DGTest_ROOT=$(abspath build/gtest) $(BUILD) >/dev/null
	cmake --build $(BUILD)
	ctest --test-dir $(BUILD) --output-on-failure

test-tsan: venv ## Run the C++ tests and examples with ThreadSanitizer
	tests/cpp/get_gtest.sh build/gtest
	cmake --preset tsan -DPython_EXECUTABLE=$(abspath $(BIN)/python) -DGTest_ROOT=$(abspath build/gtest) >/dev/null
	cmake --build --preset tsan
	ctest --preset tsan

test-asan: $(DONE)/dev ## Run the C++ tests, and those of the extension, with AddressSanitizer and UndefinedBehaviorSanitizer
	tests/cpp/get_gtest.sh build/gtest
	cmake --preset asan -DPython_EXECUTABLE=$(abspath $(BIN)/python) -DGTest_ROOT=$(abspath build/gtest) >/dev/null
	cmake --build --preset asan
	ctest --preset asan
	PYTHON=$(BIN)/python tests/python/with_asan.sh build/asan

check-cuda: export PATH := $(abspath $(CUDA_VENV)/bin):$(PATH)
check-cuda: $(DONE)/cuda ## Build for CUDA, warnings as errors, and run the C++ tests (needs nvcc; installs several GB)
	tests/cpp/get_gtest.sh build/gtest
	cmake --preset cuda -DPython_EXECUTABLE=$(abspath $(CUDA_VENV)/bin/python) -DGTest_ROOT=$(abspath build/gtest)
	cmake --build --preset cuda
	ctest --preset cuda

test-cuda: export PATH := $(abspath $(CUDA_VENV)/bin):$(PATH)
test-cuda: $(DONE)/cuda ## Install emmet for CUDA, and run the Python tests on a GPU (needs nvcc and a GPU)
	$(CUDA_VENV)/bin/pip install --quiet --no-build-isolation --config-settings=cmake.define.EMMET_CUDA=ON '.[gguf,dev]'
	EMMET_DATA="$(EMMET_DATA)" EMMET_REQUIRE_CUDA=1 $(CUDA_VENV)/bin/pytest

test-python: $(DONE)/dev ## Run the Python tests; those on a real model or real data only where these can be had
	-$(MAKE) model
	EMMET_DATA="$(EMMET_DATA)" EMMET_SMOLLM2="$${EMMET_SMOLLM2:-$$(ls $(MODELS)/*.gguf 2>/dev/null)}" OMP_NUM_THREADS=1 \
	  $(BIN)/pytest --numprocesses=logical --maxprocesses=4 --dist=worksteal

test-packaging: $(DONE)/dev ## Build the distributions, look into them, and use what they install
	$(BIN)/pytest -m packaging tests/packaging

test-models: $(DONE)/dev ## Try every architecture of transformers
	$(BIN)/pytest -m models tests/python/test_models.py

docs-models: $(DONE)/dev ## Write docs/models.md, by trying every architecture of transformers
	$(BIN)/python tests/python/matrix.py

test-faults: $(DONE)/dev ## Kill processes at random moments, fill disks, and see what is left (minutes)
	$(BIN)/pytest -m faults tests/python/test_faults.py

fuzz: $(DONE)/dev ## Fuzz each reader of files for FUZZ_SECONDS
	$(BIN)/pip install --quiet atheris
	for reader in $$($(BIN)/python tests/python/fuzz.py); do \
	  $(BIN)/python tests/python/fuzz.py $$reader -max_total_time=$(FUZZ_SECONDS) || exit 1; done

fuzz-cpp: venv ## Fuzz the C++ readers of safetensors for FUZZ_SECONDS (needs clang++)
	cmake --preset fuzz -DPython_EXECUTABLE=$(abspath $(BIN)/python) >/dev/null
	cmake --build --preset fuzz
	mkdir -p build/fuzz-corpus/safetensors
	build/fuzz/tests/fuzz/fuzz_safetensors build/fuzz-corpus/safetensors tests/fuzz/corpus \
	  -artifact_prefix=build/fuzz-corpus/safetensors- -max_len=4096 -max_total_time=$(FUZZ_SECONDS)

audit: $(DONE)/dev ## Look for known vulnerabilities of the installed packages
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/pip freeze --exclude-editable | sed -n 's/+[^ ]*$$//; /==/p' >build/audited.txt
	$(BIN)/pip-audit --strict --no-deps --disable-pip --requirement build/audited.txt

test-llama: $(DONE)/llama model ## Build llama.cpp (minutes), and run it with an exported adapter
	EMMET_SMOLLM2="$$(ls $(MODELS)/*.gguf)" $(BIN)/pytest tests/llama

lint: $(DONE)/dev ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP)

format: $(DONE)/dev ## Correct style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

types: $(DONE)/dev ## Check types
	$(BIN)/mypy

bench: $(DONE)/dev model ## Time emmet against what is used today (needs EMMET_DATA); figures in build/bench
	@test -n "$(EMMET_DATA)" || { echo "set EMMET_DATA to a folder with counterfact/ and wikitext-2/"; exit 1; }
	$(BIN)/pip install --quiet 'emmet-edit[bench]'
	mkdir -p build/bench && rm -f build/bench/summary.md
	model=$$(ls $(MODELS)/*.gguf); records=$(EMMET_DATA)/counterfact/edit-10k.jsonl; \
	corpus=$$(ls $(EMMET_DATA)/wikitext-2/*.txt | head -n 1); set -e; \
	run() { name=$$1; shift; \
	  $(BIN)/python bench/$$name.py --json build/bench/$$name.json "$$@" >build/bench/$$name.md; \
	  tee -a build/bench/summary.md <build/bench/$$name.md; }; \
	run covariance; run solve --edits 1 16 256 1024 4096; $(BIN)/python bench/plot.py build/bench/solve.json build/bench/solve.svg; \
	run accumulation $$model --corpus $$corpus; run latency $$model --records $$records --sizes 1 8 --batches 4 1; \
	run evaluate $$model --records $$records --count 200; run values $$model --records $$records --edits 8 --batch 8

docs: $(DONE)/docs ## Build the documentation site, build/docs
	$(BIN)/doxygen docs/Doxyfile
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --doctree-dir build/doctrees docs build/docs

clean: ## Remove .venv and everything that was built
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache

$(DONE)/venv: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet scikit-build-core cmeel-eigen cmake ninja
	@mkdir -p $(DONE) && touch $@

# Three equals signs: the release of PyPI, which is a CUDA build, and not a local one such as 2.13.0+cpu.
$(DONE)/cuda: pyproject.toml
	$(PYTHON) -m venv $(CUDA_VENV)
	$(CUDA_VENV)/bin/pip install --quiet '$(subst ==,===,$(TORCH))' scikit-build-core cmeel-eigen cmake ninja
	@mkdir -p $(DONE) && touch $@

$(DONE)/build: $(DONE)/venv $(BUILD_FILES)
	$(BIN)/pip install --quiet --no-build-isolation --config-settings=cmake.define.EMMET_WERROR=$(EMMET_WERROR) \
	  --editable '.[gguf]'
	@touch $@

$(DONE)/dev: $(DONE)/build
	$(BIN)/pip install --quiet 'emmet-edit[datasets,dev,downstream]'
	@touch $@

$(DONE)/docs: $(DONE)/build
	$(BIN)/pip install --quiet 'emmet-edit[docs]'
	@touch $@

$(DONE)/llama: $(DONE)/dev
	CMAKE_ARGS=-DLLAVA_BUILD=OFF $(BIN)/pip install --quiet 'llama-cpp-python>=0.3'
	@touch $@

$(DONE)/model: $(DONE)/venv examples/small_model.py
	$(BIN)/python examples/small_model.py $(MODELS)
	@touch $@
