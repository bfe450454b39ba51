# Everything happens in .venv, nothing outside this folder.
#   make demo ARGS="--data table.csv --target species"     passes arguments on
#   make bench ARGS="-k softmax"
#   make bench-compare BASE=main                           which kernels became slower since then
#   make docs FASTXENT_EXAMPLES=small                      runs the gallery's examples; without it they are shown alone
#   make test-all ARGS=--rest                              without what `make test` has just passed
#   make test JOBS=8                                       on so many processes (2 by default)
#   make parallel PARALLEL_TESTS=tests/test_gan.py         some of its files; PARALLEL_THREADS=4
#   make test PY=python3.12                                chooses the interpreter of a new .venv
PY ?= python3
BIN := .venv/bin
ARGS ?=
JOBS ?= 2
FUZZ_SECONDS ?= 600
SOAK_SECONDS ?= 600
# Whatever calls a kernel; what needs PyTorch, Dask or a GPU runs outside, and what looks at the allocator, which is another there.
ASAN_TESTS := $(patsubst %,tests/test_%.py,softmax sigmoid binary edges family divergence binary_family linear large_layer losses \
  composition properties region gan information shards boosting blocks solvers calibration files mlp_step fuzz_corpus)
# Kernels and losses, which threads may call at once; what patches or captures the plugin leaves out.
PARALLEL_TESTS := $(patsubst %,tests/test_%.py,golden softmax sigmoid binary edges family divergence binary_family linear losses \
  composition region gan information shards axis arrays calibration)
PARALLEL_THREADS ?= 8
FUZZ_TARGETS := small softmax sigmoid family elementwise linear shards boost distributions network load
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Where bytecode is not kept, each process of the tests compiles the package, and pytest every file of tests, once more.
unexport PYTHONDONTWRITEBYTECODE

# Whatever changes the extensions: a suffix missing here would leave an old one in place.
KERNELS := $(shell find src -name '*.pyx' -o -name '*.pxd' -o -name '*.cpp' -o -name '*.hpp' -o -name '*.h' -o -name '*.inc')

.PHONY: demo test test-all versions parallel sanitized asan fuzz valgrind tsan soak numbers bench bench-compare docs examples lint wheel wheel-test clean

demo: .venv/built
	$(BIN)/fastxent demo $(ARGS)

test: .venv/built
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal --benchmark-disable -m "not slow"

test-all: .venv/all
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal --benchmark-disable $(ARGS)

# Wheels in new environments, for the interpreters of this machine, with the oldest and the newest dependencies: noxfile.py.
versions: .venv/versions
	JOBS=$(JOBS) $(BIN)/python -m nox $(ARGS)

# One test at a time, which all threads run together: what it calls must not mind. Tests of the oracle alone are left out: the plugin
# changes threads every microsecond, in which mpmath does not get far.
parallel: .venv/parallel
	$(BIN)/python -m pytest -q -p no:cacheprovider --benchmark-disable -m "not slow" -k "not oracle" --parallel-threads $(PARALLEL_THREADS) \
	  --skip-thread-unsafe=True $(PARALLEL_TESTS) $(ARGS)

# A build with sanitizers, in a copy of the sources: the extensions of .venv stay as they are.
sanitized: .venv/built
	mkdir -p build/asan
	tar -cf - --exclude='*.so' src tests fuzz setup.py pyproject.toml README.md LICENSE | tar -xf - -C build/asan
	cd build/asan && FASTXENT_SANITIZE=address,undefined ../../$(BIN)/python setup.py -q build_ext --inplace

# An interpreter that was built without them needs their libraries first, to use that build.
SANITIZERS = $$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so) $$(gcc -print-file-name=libstdc++.so)

# test_equilibrium is about the last bit of a sum, which is another without optimization.
asan: sanitized
	cd build/asan && LD_PRELOAD="$(SANITIZERS)" ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 PYTHONPATH=src \
	  ../../$(BIN)/python -m pytest -q -p no:cacheprovider -n $(JOBS) --dist worksteal -m "not slow" $(ASAN_TESTS) \
	  --deselect tests/test_gan.py::test_equilibrium

# libFuzzer as a library of its own, before the sanitizers: their empty hooks for coverage would hide its own.
# What a target finds ends up in build/asan/found; what reaches new lines in build/asan/reached, for the next run.
fuzz: .venv/fuzz sanitized
	g++ -shared -o build/asan/libfuzzer.so -pthread -Wl,--whole-archive \
	  $$($(BIN)/python -c "import atheris; print(atheris.path())")/libclang_rt.fuzzer_no_main.a -Wl,--no-whole-archive
	cd build/asan && mkdir -p found && for target in $(FUZZ_TARGETS); do mkdir -p reached/$$target; echo "== $$target"; \
	  LD_PRELOAD="$$PWD/libfuzzer.so $(SANITIZERS)" ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0 PYTHONPATH=src \
	  ../../$(BIN)/python fuzz/run.py $$target -max_total_time=$$(($(FUZZ_SECONDS) / $(words $(FUZZ_TARGETS)))) -max_len=256 \
	  -len_control=0 -print_final_stats=1 -verbosity=0 -artifact_prefix=found/$$target- reached/$$target fuzz/corpus/$$target \
	  || exit 1; done

# Instructions of every x86-64, which valgrind knows; uninitialised memory too, which the sanitizers do not see.
valgrind: .venv/built
	PYTHONMALLOC=malloc FASTXENT_ISA=baseline OPENBLAS_NUM_THREADS=1 valgrind -q --num-callers=20 --error-exitcode=1 \
	  --suppressions=fuzz/valgrind.supp $(BIN)/python fuzz/replay.py small softmax sigmoid family elementwise shards boost

tsan:
	mkdir -p build/tsan
	for name in src/fastxent/_kernels/isa_baseline src/fastxent/_kernels/team fuzz/threads; do \
	  g++ -std=c++17 -O1 -g -fsanitize=thread -fno-math-errno -fno-trapping-math -fopenmp-simd -pthread -DFX_NO_AVX2 -DFX_NO_AVX512 \
	    -Isrc/fastxent/_kernels -c $$name.cpp -o build/tsan/$$(basename $$name).o || exit 1; done
	g++ -fsanitize=thread -pthread build/tsan/isa_baseline.o build/tsan/team.o build/tsan/threads.o -o build/tsan/threads
	TSAN_OPTIONS=halt_on_error=1 build/tsan/threads

soak: .venv/built
	$(BIN)/python fuzz/soak.py $(SOAK_SECONDS)

# The stored results of tests/test_numbers.py, written anew: when they are meant to move.
numbers: .venv/built
	$(BIN)/python tests/corpus.py
	git diff --stat tests/data

bench: .venv/bench
	mkdir -p bench-out
	$(BIN)/python -m pytest -q benchmarks --benchmark-only --benchmark-json=bench-out/benchmark.json $(ARGS)
	$(BIN)/python benchmarks/report.py bench-out/benchmark.json > bench-out/report.md
	cat bench-out/report.md

# The kernels of the working tree against those of another revision, built in build/compare: ARGS="-k softmax" some of them.
bench-compare: .venv/built
	@test -n "$(BASE)" || { echo "make bench-compare BASE=main"; exit 2; }
	$(BIN)/python benchmarks/compare.py $(BASE) $(ARGS)

# In a copy, since Sphinx writes beside its sources. Warnings are errors.
docs: .venv/docs
	rm -rf build/docs && mkdir -p build/docs
	cp -R docs $(wildcard examples) build/docs
	cd build/docs && FASTXENT_EXAMPLES=$(FASTXENT_EXAMPLES) FASTXENT_DATA="$${FASTXENT_DATA:-$(abspath ../shared/data)}" \
	  ../../$(BIN)/python -m sphinx -q -W --keep-going -j auto -b html docs html
	@echo "open build/docs/html/index.html"

# All examples in full, their pictures in examples-out; ARGS="--small" or ARGS=noise for some.
examples: .venv/all
	$(BIN)/python examples/_run.py $(ARGS)

lint: .venv/lint
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy.stubtest fastxent --mypy-config-file pyproject.toml --allowlist .ci/stubtest-allowlist
	$(BIN)/python -m pytest -q tests/test_package.py -k sdist_holds

wheel: .venv/built
	$(BIN)/python -m build --no-isolation

# What a release uploads, for this interpreter: checked, and tested where there are neither sources nor a compiler.
wheel-test: .venv/release
	JOBS=$(JOBS) .ci/wheel-test $(BIN)

clean:
	rm -rf .venv .nox build dist wheelhouse bench-out demo-out examples-out .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -rf src/*.egg-info src/fastxent/*.so
	find src tests fuzz benchmarks examples -name __pycache__ -prune -exec rm -rf {} +

# An existing .venv is used as it is; the stamps in it say what it already holds.
.venv/ready: pyproject.toml
	@test -x $(BIN)/python || $(PY) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "fastxent needs Python 3.11 or newer, $(PY) is " + sys.version.split()[0] + ": make PY=...")'
	test -x $(BIN)/python || $(PY) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade "pip>=25.1"
	$(BIN)/python -m pip install -q --group build --group test
	touch $@

.venv/built: .venv/ready setup.py $(KERNELS)
	$(BIN)/python -m pip install -q --no-build-isolation --editable ".[cli]"
	touch $@

.venv/all: .venv/built
	$(BIN)/python -m pip install -q --group test-all
	touch $@

.venv/fuzz: .venv/built
	$(BIN)/python -m pip install -q --group fuzz
	touch $@

.venv/parallel: .venv/built
	$(BIN)/python -m pip install -q --group parallel
	touch $@

.venv/bench: .venv/built
	$(BIN)/python -m pip install -q --group bench
	touch $@

.venv/lint: .venv/built
	$(BIN)/python -m pip install -q --group lint
	touch $@

.venv/versions: pyproject.toml .venv/ready
	$(BIN)/python -m pip install -q --group versions
	touch $@

.venv/release: .venv/built
	$(BIN)/python -m pip install -q --group release
	touch $@

.venv/docs: .venv/built
	$(BIN)/python -m pip install -q --group docs
	touch $@
