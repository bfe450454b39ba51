"""Every kernel case of `fastxent._bench`.

Choose by the parts of the names: ``pytest benchmarks --benchmark-only -k "softmax and fused and float32"``.
"""

from __future__ import annotations

import importlib.util
from dataclasses import asdict
from time import perf_counter

import pytest

from fastxent import _bench

# A run of more than a second is noise-free enough for three rounds, and there are many of them.
ROUNDS, ROUNDS_IF_SLOW = 7, 3

# PyTorch uses its own deprecated parts when it compiles.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def _folder_of_torch():
    spec = importlib.util.find_spec("torch")
    return "" if spec is None else spec.origin


@pytest.mark.parametrize("case", _bench.cases(), ids=lambda case: case.name)
def test_kernel(case, timed, threads, problem, benchmark):
    if case.peer == "torch-compile" and " " in _folder_of_torch():
        pytest.skip("torch.compile gives its compiler unquoted paths, and PyTorch's folder has a blank in it")
    benchmark.group = f"{case.kind} {case.mode} {case.shape} {case.dtype}"
    if not timed:
        case = case.small()
        if case.peer == "torch-compile" and case.classes != 10:
            pytest.skip("compiles for seconds: one small shape is enough")
    elif case.memory > _bench.available_memory():
        pytest.skip(f"needs {case.memory / 2**30:.1f} GiB of memory")
    made = problem(case.kind, case.rows, case.classes, case.dtype)
    run = _bench.prepare(case, made, threads)
    errors = _bench.check(made, run())  # also a warm-up, in which some compile
    if not timed:
        _bench.check(made, benchmark.pedantic(run))  # a second run, over used buffers
        return

    start = perf_counter()
    run()
    rounds = ROUNDS if perf_counter() - start < 1 else ROUNDS_IF_SLOW
    copies = _bench.Copies(made.logits, threads)
    benchmark.pedantic(run, setup=copies.run, rounds=rounds)
    copies.close()
    seconds = benchmark.stats.stats.median
    copied_by, copy_seconds = copies.best()
    benchmark.extra_info.update(
        asdict(case),
        **errors,
        threads=threads,
        bytes=case.traffic,
        gb_per_s=case.traffic / seconds / 1e9,
        copy_seconds=copy_seconds,
        copied_by=copied_by,
        copies=seconds / copy_seconds,
    )
    assert benchmark.extra_info["copies"] > 0


SMALL_CALL = [
    _bench.Case("softmax", "fused", 8, 10, "float32", peer)
    for peer in _bench.installed()
    if peer != "torch-compile"
]


@pytest.mark.parametrize("case", SMALL_CALL, ids=lambda case: case.name)
def test_small_call(case, threads, problem, benchmark):
    """What a call costs when there is next to nothing to compute."""
    benchmark.group = "one call on 8x10"
    made = problem(case.kind, case.rows, case.classes, case.dtype)
    run = _bench.prepare(case, made, threads)
    run()
    errors = _bench.check(made, benchmark(run))
    benchmark.extra_info.update(asdict(case), **errors, threads=threads)
