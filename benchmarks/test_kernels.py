"""Every kernel case of `fastxent._bench`.

Choose by the parts of the names: ``pytest benchmarks --benchmark-only -k "softmax and fused and float32"``.
"""

from __future__ import annotations

from dataclasses import asdict

import pytest

from fastxent import _bench

# PyTorch uses its own deprecated parts when it compiles.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


@pytest.mark.parametrize("case", _bench.kernel_cases(), ids=lambda case: case.name)
def test_kernel(case, timed, threads, problem, benchmark):
    benchmark.group = f"{case.kind} {case.mode} {case.shape} {case.dtype}"
    if not timed:
        case = case.small()
        if case.peer == "torch-compile" and case.classes != 10:
            pytest.skip("compiles for seconds: one small shape is enough")
    reason = _bench.reason_to_skip(case)
    if reason is not None:
        pytest.skip(reason)
    made = problem(case.kind, case.rows, case.classes, case.dtype)
    run = _bench.prepare(case, made, threads)
    errors = _bench.check(made, run())  # also a warm-up, in which some compile
    if not timed:
        _bench.check(made, benchmark.pedantic(run))  # a second run, over used buffers
        return

    rounds = _bench.rounds_of(run)
    copies = _bench.Copies(made.logits, threads)
    benchmark.pedantic(run, setup=copies.run, rounds=rounds)
    copies.close()
    row = _bench.kernel_row(case, errors, copies, benchmark.stats.stats.median, threads)
    benchmark.extra_info.update(row)
    assert row["copies"] > 0


@pytest.mark.parametrize("case", _bench.call_cases(), ids=lambda case: case.name)
def test_small_call(case, threads, problem, benchmark):
    """What a call costs when there is next to nothing to compute."""
    benchmark.group = "one call on 8x10"
    made = problem(case.kind, case.rows, case.classes, case.dtype)
    run = _bench.prepare(case, made, threads)
    run()
    errors = _bench.check(made, benchmark(run))
    benchmark.extra_info.update(asdict(case), **errors, what="call", threads=threads)
