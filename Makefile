# Everything sets itself up on first use; nothing is needed but Python (>= 3.11), a C++ compiler and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(wildcard csrc/*) CMakeLists.txt pyproject.toml constraints.txt
CXX_SOURCES := $(wildcard csrc/*.h csrc/*.cpp csrc/*.cu tests/cuda_on_host/*)
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

# The tools that build stand in .venv and not in an environment of each build's own: only what changed is compiled
# again. With WERROR=ON warnings are errors in what is installed, and `lint` has nothing to compile.
WERROR ?= OFF
STRICT := --config-settings=cmake.define.THERMOSPHERE_WERROR=ON
BUILD := --no-build-isolation $(if $(filter ON,$(WERROR)),$(STRICT))
LINT_BUILD := --no-build-isolation $(STRICT) $(if $(filter ON,$(WERROR)),,--config-settings=build-dir=build/lint)

.DEFAULT_GOAL := help
.PHONY: help install demo study picture test lint format sanitize bench gpu clean

help:  ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | column -t -s "$$(printf '\t')"

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("thermosphere needs Python >= 3.11, got " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): $(BIN)/python $(SOURCES)
	$(PIP) 'scikit-build-core>=0.11' 'pybind11>=2.13' cmake ninja
	$(PIP) $(BUILD) --editable '.[test,lint]'
	@touch $@

install: $(INSTALLED)  ## create .venv and build and install the package in it

demo: $(INSTALLED)  ## the main job: sequences, training, sampling at eight temperatures, report (about 5 minutes)
	$(BIN)/thermosphere run --preset demo --output runs/demo --resume

study: $(INSTALLED)  ## the paper's figures and tables under docs/study: hours, and goes on where it was stopped
	$(BIN)/thermosphere reproduce --preset laptop --output runs/study --to docs/study --resume

picture: $(INSTALLED)  ## docs/images/report.png, as Chromium draws the demo's report
	$(PIP) $(BUILD) --editable '.[browser]'
	$(BIN)/python .ci/picture.py

# Waiting OpenMP threads sleep: PyTorch's and the extension's, in tests that start processes of their own, are more than cores.
test: $(INSTALLED)  ## the test suite (under 10 minutes on two cores)
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: $(INSTALLED)  ## ruff, mypy, clang-format, and the extension with warnings as errors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel $(LINT_BUILD) .
	$(BIN)/python .ci/wheel_contents.py

format: $(INSTALLED)  ## rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

# ThreadSanitizer: the files that run each parallel loop of the extension on several threads. The others reach
# the same loops through models and sampler, under a sanitizer that slows them tenfold.
THREADED := $(addprefix tests/test_,parallel.py encoder_gradient.py dropout.py langevin_step.py langevin_burst.py \
	langevin.py minibatch.py attention_norm.py feedforward_norm.py masked_cross_entropy.py mean_attention.py)

# AddressSanitizer leaves out the files that never call the extension, and those of Triton's interpreter and of
# whole runs, which are minutes long and call nothing of it that others do not. A new file is in until it is named.
UNCHECKED := $(patsubst %,--ignore=tests/test_%.py,archive attention_norm_triton bias calibration claims_bracketed claims_unknown config convergence \
	couplings couplings_law dataset decorrelation embedding encoder_gradient_triton enumeration fasta feedforward \
	feedforward_norm_triton figures interactions kept langevin_step_device_code langevin_step_triton layout \
	masked_cross_entropy_triton masses minibatch_triton module numerics options paper_claims potts potts_model provenance publish \
	rattle report reproduce significance \
	report_browser report_data sequence_statistics similarity store structure tempering thermodynamics \
	transformer triton_gradient triton_resources walker)

sanitize: $(INSTALLED)  ## the tests under Address-, UndefinedBehavior- and ThreadSanitizer (about 20 minutes)
	.ci/sanitize address $(UNCHECKED)
	.ci/sanitize thread $(THREADED)

bench: SHELL := bash
bench: $(INSTALLED)  ## timings, each after its correctness check, and those of other implementations
	$(PIP) $(BUILD) --editable '.[bench]'
	@mkdir -p build
	set -o pipefail; $(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-columns=median,iqr,rounds | tee build/bench.log
	$(BIN)/python benchmarks/record.py build/bench.log

gpu: $(INSTALLED)  ## everything a GPU is asked for: tests, sanitizers, agreement with the CPU, times beside targets
	$(BIN)/python benchmarks/gpu.py

clean:  ## remove the environment and everything built
	rm -rf $(VENV) build
