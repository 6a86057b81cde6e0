# `make demo` and `make test` do all their own set-up, in .venv: nothing else is needed than python3,
# a C++20 compiler and make. TORCH=requirements/torch-cuda.txt chooses another torch.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= requirements/torch-cpu.txt
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
SOURCES := setup.py pyproject.toml $(wildcard csrc/*.* csrc/*/*.* csrc/*/*/*.*)

.PHONY: help streaming-figures install test test-long test-ptx test-ptx-kernels test-ptx-defects sanitize exchange demo bench real-models lint cuda gpu-check gpu-rehearsal package fuzz fuzz-ptx soak-tests docs clean

help:
	@echo "make demo    train and try the word segmenter (about 5 minutes on 2 cores)"
	@echo "make test    run the test-suite"
	@echo "make test-long  the defects planted in the kernels, each of which it must catch; sanitizers"
	@echo "make test-ptx  what nvcc compiles, by an interpreter of its PTX, and defects planted in it"
	@echo "make test-ptx-kernels  the kernels' tests and all instances on what nvcc compiles"
	@echo "make test-ptx-defects  the defects planted in the kernels, as nvcc compiles them"
	@echo "make sanitize  every kind of tensor in every argument, under AddressSanitizer"
	@echo "make soak-tests  the kernels' tests again and again, with SEEDS=100 seeds"
	@echo "make fuzz    random layers against the fp64 oracle, for MINUTES=10"
	@echo "make fuzz-ptx  mutated PTX against the interpreter of PTX, under sanitizers, for MINUTES=10"
	@echo "make exchange weights and models to and from other frameworks and runtimes"
	@echo "make bench   measure against torch.nn, onnxruntime and OpenVINO on this machine's CPU"
	@echo "make real-models  replace the layers of published networks, and compare"
	@echo "make streaming-figures  measure what docs/streaming.md shows (2 minutes, on an idle machine)"
	@echo "make lint    clang-format, ruff and mypy"
	@echo "make cuda    build the CUDA extension in .venv-cuda, and test it (needs nvcc, no GPU)"
	@echo "make gpu-check  build, test and measure on a GPU, with the torch of PYTHON, in 9 minutes"
	@echo "make gpu-rehearsal  gpu-check on a stand-in for the GPU, in real time: 8 minutes of waiting"
	@echo "make docs    build the documentation's site in build/docs"
	@echo "make package build the source archive and the wheel in dist/, and test both"
	@echo "make install set up .venv and build the extension in place"
	@echo "make clean   remove what these made"

$(VENV)/.packages: $(TORCH) requirements/build.txt requirements/test.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --progress-bar off -r $(TORCH) -r requirements/build.txt -r requirements/test.txt
	touch $@

$(VENV)/.extension: $(VENV)/.packages $(SOURCES)
	$(PIP) install --quiet --no-build-isolation --no-deps --editable .
	touch $@

install: $(VENV)/.extension

test: install
	$(VENV)/bin/python -m pytest -q -n auto -m "not long" tests

# What takes minutes and shows something only where a kernel or its tests have changed: the planted
# defects, the sanitizers; and what is slow elsewhere: gpu-check's waiting for what hangs, a
# training that is killed, ten thousand steps without a leak, a library that inductor packs, the
# backend by each instruction set, more cells and precisions of what `make test` has tried with
# some. Those tests that need nvcc are the next target's and, where they take minutes, `make
# cuda`'s; those that need other frameworks, `make exchange`'s.
OTHERS_LONG := emulator/test_ptx.py $(patsubst %,kernels/test_%.py,nvcc steps instances) exchange
test-long: install
	$(VENV)/bin/python -m pytest -q -n auto -m long tests $(patsubst %,--ignore=tests/%,$(OTHERS_LONG))

# The interpreter of PTX: the emulator's programs and defects as nvcc compiles them, and defects
# planted in the device header.
test-ptx: install
	$(VENV)/bin/python -m pytest -q -n auto -m long tests/emulator/test_ptx.py

# The tests of the kernels and of the GPU layer on what nvcc compiled: the same problems and schedules;
# every instance that a GPU build has; the values on other compute capabilities, whose code differs.
# And the planted defects, as nvcc compiles them.
KERNEL_TESTS := $(patsubst %,tests/kernels/test_%.py,stepwise cluster_forward cluster_backward grid_forward grid_backward)
WITH_PTX = EMULATOR_FRONT_END=ptx $(VENV)/bin/python -m pytest -q -n auto
test-ptx-kernels: install
	$(WITH_PTX) -k "not defect" $(KERNEL_TESTS) tests/kernels/test_gpu_layer.py
	$(WITH_PTX) -m long tests/kernels/test_instances.py
	for capability in 80 100; do EMULATOR_ARCHITECTURE=$$capability $(WITH_PTX) -m "not long" \
	    -k "(values or gradients) and not absent" $(KERNEL_TESTS) || exit 1; done

test-ptx-defects: install
	$(WITH_PTX) -k defect $(KERNEL_TESTS) $(wildcard tests/kernels/test_*_defects.py)

# The tests that hand a layer every kind of tensor, and those around them, on an extension that
# AddressSanitizer watches: a copy of the sources, built in build/asan beside the one in place.
ASAN := build/asan
COMPILER = $${CXX:-c++}
ASAN_TESTS := $(patsubst %,tests/layers/test_%.py,kinds_of_tensors empty errors in_place trace lengths)
$(ASAN)/.extension: $(VENV)/.extension $(SOURCES) $(wildcard birnn_cuda/*.py birnn_cuda/*/*.py)
	mkdir -p $(ASAN)
	rm -rf $(ASAN)/csrc $(ASAN)/birnn_cuda
	tar -c --exclude='*.so' --exclude=__pycache__ setup.py pyproject.toml birnn_cuda csrc | tar -x -C $(ASAN)
	cd $(ASAN) && CFLAGS="-fsanitize=address -fno-omit-frame-pointer -g1" LDFLAGS=-fsanitize=address \
	    BIRNN_BUILD_CUDA=0 $(abspath $(VENV))/bin/python setup.py --quiet build_ext --inplace
	touch $@

# The interpreter knows neither of the libraries: the sanitizer looks for libstdc++ as it starts.
sanitize: $(ASAN)/.extension
	PYTHONSAFEPATH=1 PYTHONPATH=$(abspath $(ASAN)) ASAN_OPTIONS=detect_leaks=0 \
	    LD_PRELOAD="$$($(COMPILER) -print-file-name=libasan.so) $$($(COMPILER) -print-file-name=libstdc++.so)" \
	    $(VENV)/bin/python -m pytest -q -p no:cacheprovider $(ASAN_TESTS)

# Weights to and from other frameworks and runtimes, each beside the real one.
$(VENV)/.exchange: $(VENV)/.extension requirements/exchange.txt requirements/exchange-models.txt
	$(PIP) install --quiet --progress-bar off -r requirements/exchange.txt
	$(PIP) install --quiet --progress-bar off --no-deps -r requirements/exchange-models.txt
	touch $@

REAL_WEIGHTS := tests/exchange/test_real_weights.py
exchange: $(VENV)/.exchange
	$(VENV)/bin/python -m pytest -v -n 2 -m long tests/exchange --ignore=$(REAL_WEIGHTS)
	$(VENV)/bin/python -m pytest -v -s $(REAL_WEIGHTS)

SEEDS ?= 100
soak-tests: install
	$(VENV)/bin/python tests/tools/soak.py --seeds $(SEEDS)

MINUTES ?= 10
fuzz: install
	PYTHONPATH=tests $(VENV)/bin/python tests/layers/properties.py --minutes $(MINUTES)

fuzz-ptx: install
	$(VENV)/bin/python tests/emulator/fuzz_ptx.py --minutes $(MINUTES)

demo: install
	$(VENV)/bin/python examples/segment_chinese.py train
	$(VENV)/bin/python examples/segment_chinese.py segment 今天天气很好 北京大学生前来应聘

bench: install
	$(VENV)/bin/python -m benchmarks cpu

# What docs/streaming.md shows: sections streaming and busy, then the example.
STREAMS := benchmarks/results/streaming.json
streaming-figures: install
	rm -f $(STREAMS)
	$(VENV)/bin/python -m benchmarks cpu --section streaming busy --out $(STREAMS)
	$(VENV)/bin/python -m benchmarks readme
	$(VENV)/bin/python examples/streaming_detector.py --write docs/streaming.md

# In a folder of their own, since a published package may want what another build of torch has.
# WRITE=docs/networks.md puts the table there.
WRITE ?=
NETWORKS := build/networks
real-models: install
	$(VENV)/bin/python examples/replace_in_packages.py --install $(NETWORKS) $(if $(WRITE),--write $(WRITE))
	for example in private_training count_flops; do PYTHONPATH=$$(echo $(NETWORKS)/lib/*/site-packages) \
	    $(VENV)/bin/python examples/$$example.py || exit 1; done

$(VENV)/.dev: $(VENV)/.extension requirements/dev.txt
	$(PIP) install --quiet -r requirements/dev.txt
	touch $@

lint: $(VENV)/.dev
	$(VENV)/bin/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/.docs: $(VENV)/.extension requirements/docs.txt
	$(PIP) install --quiet -r requirements/docs.txt
	touch $@

docs: $(VENV)/.docs
	$(VENV)/bin/python -m sphinx --fail-on-warning --keep-going --quiet docs build/docs
	@echo "build/docs/index.html"

# In dist/. The wheel is built from the archive, and tested in an environment that it has to itself.
package: $(VENV)/.dev
	$(VENV)/bin/python tests/tools/package_check.py --torch $(TORCH)

# A second environment with a CUDA build of torch. The tests of the layers run on the CPU of the
# extension that was built for both; from tests/, so that the installed package is what they import.
# Then what takes nvcc minutes: the registers of every instance of every kernel.
CUDA_TESTS := $(patsubst %,layers/test_%.py,layers lengths input_forms module autocast dropout errors convert model)
.venv-cuda/.packages: requirements/torch-cuda.txt requirements/build.txt requirements/test.txt
	$(PYTHON) -m venv .venv-cuda
	.venv-cuda/bin/python -m pip --disable-pip-version-check install --quiet --progress-bar off \
	    -r requirements/torch-cuda.txt -r requirements/build.txt -r requirements/test.txt
	touch $@

.venv-cuda/.extension: .venv-cuda/.packages $(SOURCES) $(wildcard birnn_cuda/*.py)
	BIRNN_BUILD_CUDA=1 TORCH_CUDA_ARCH_LIST=$${TORCH_CUDA_ARCH_LIST:-9.0a} \
	    .venv-cuda/bin/python -m pip --disable-pip-version-check install --quiet \
	    --no-build-isolation --no-deps --force-reinstall .
	touch $@

cuda: .venv-cuda/.extension
	cd tests && ../.venv-cuda/bin/python -P -m birnn_cuda
	cd tests && ../.venv-cuda/bin/python -P -m pytest -q -p no:cacheprovider $(CUDA_TESTS)
	cd tests && ../.venv-cuda/bin/python -P -m pytest -q -n auto -p no:cacheprovider -m long \
	    kernels/test_nvcc.py kernels/test_steps.py

# With the packages that PYTHON has (torch for CUDA, pytest, ninja, pybind11), not in .venv, so that
# nothing is fetched. OUT= is the folder of the results, PARTS= chooses some of the parts, EXTENSION=
# is extension.tar.gz of an earlier run.
OUT ?= build/gpu-check
EXTENSION ?=
gpu-check:
	$(PYTHON) tests/tools/gpu_check.py --out "$(OUT)" --parts "$(PARTS)" --commit "$(COMMIT)" \
	    --extension "$(EXTENSION)"

# How long that takes, by a stand-in for the GPU that sleeps: when all is well, and when five hang.
gpu-rehearsal: install
	$(VENV)/bin/python tests/tools/gpu_stand_in.py --within 200
	$(VENV)/bin/python tests/tools/gpu_stand_in.py --within 330 \
	    --hangs case:litmus_1 micro:4 entry:3 test:one-7 test:two-9

clean:
	rm -rf .venv .venv-cuda build dist birnn_cuda.egg-info birnn_cuda/_C*.so
