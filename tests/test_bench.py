"""The benchmark cases check their answers, the unit of time is a copy, and the report can be read."""

from __future__ import annotations

import importlib.util
import json
import math
from collections import Counter
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fastxent import _bench
from fastxent._bench import _cases

REPORT = Path(__file__).resolve().parents[1] / "benchmarks" / "report.py"


def script(path):
    if not path.exists():
        pytest.skip("benchmarks/ is not part of this distribution")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def report():
    return script(REPORT)


def test_epochs_of_a_mapped_file_are_timed():
    mapped = script(REPORT.with_name("mapped.py"))
    taken = mapped.compare(rows=2000, features=3, rounds=1)
    assert list(taken) == list(mapped.BATCHES)
    assert all(seconds > 0 for pair in taken.values() for seconds in pair)


class TestCases:
    def test_names_are_unique_and_every_peer_takes_part(self):
        cases = _bench.cases()
        assert max(Counter(case.name for case in cases).values()) == 1
        assert {case.peer for case in cases} == set(_bench.installed())
        assert {"numpy", "plain-numpy", "scipy", "sklearn"} <= set(_bench.installed())

    def test_the_grid_is_full(self):
        shapes = sum(map(len, _bench.SHAPES.values()))
        count = Counter(case.peer for case in _bench.cases())
        assert count["cpu"] == count["plain-numpy"] == shapes * len(_bench.TIMED)
        assert count["numpy"] == shapes
        assert {(case.mode, case.dtype) for case in _bench.cases()} == set(_bench.TIMED)

    def test_neighbours_share_their_data(self):
        keys = [(case.kind, case.rows, case.classes, case.dtype) for case in _bench.cases()]
        changes = 1 + sum(a != b for a, b in pairwise(keys))
        assert changes == len(set(keys))

    def test_small_stand_ins_are_small(self):
        for case in _bench.cases():
            small = case.small()
            assert small.rows * small.classes < 20_000
            assert (small.kind, small.mode, small.dtype, small.peer) == (
                case.kind, case.mode, case.dtype, case.peer,
            )  # fmt: skip

    def test_traffic_counts_each_array_once(self):
        softmax = _bench.Case("softmax", "fused", 100, 10, "float32", "numpy")
        assert softmax.traffic == 100 * 10 * 4 * 2 + 100 * 8
        bce = _bench.Case("bce", "forward", 100, 1, "float64", "numpy")
        assert bce.traffic == 2 * 100 * 8

    def test_every_full_case_fits_into_24_gib(self):
        assert max(case.memory for case in _bench.cases()) < 12 * 2**30


class TestCheck:
    @pytest.mark.parametrize("kind", _bench.KINDS)
    def test_the_reference_is_the_derivative_of_its_loss(self, kind):
        made = _bench.problem(kind, 5, 4 if kind == "softmax" else 1, "float64")

        def loss(z):
            if kind == "softmax":
                return (np.log(np.exp(z).sum(axis=1)) - z[np.arange(5), made.targets]).sum()
            return (np.logaddexp(0, z) - z * made.targets).sum()

        assert made.loss == pytest.approx(loss(made.logits) / 5, rel=1e-13)
        for index in np.ndindex(made.logits.shape):
            step = np.zeros(made.logits.shape)
            step[index] = 1e-5
            slope = (loss(made.logits + step) - loss(made.logits - step)) / 2e-5
            assert made.grad[index] == pytest.approx(slope, abs=1e-9)

    def test_blocks_change_nothing(self, monkeypatch):
        whole = _bench.problem("softmax", 11, 7, "float32")
        monkeypatch.setattr(_cases, "_blocks", lambda rows, classes: [slice(0, 4), slice(4, 8), slice(8, 12)])
        parts = _bench.problem("softmax", 11, 7, "float32")
        assert parts.loss == pytest.approx(whole.loss, rel=1e-15)
        np.testing.assert_array_equal(parts.grad, whole.grad)

    @pytest.mark.parametrize("dtype", _bench.DTYPES)
    def test_wrong_answers_are_refused(self, dtype):
        made = _bench.problem("softmax", 6, 5, dtype)
        right = made.grad / 6
        assert _bench.check(made, (made.loss, right)) == {
            "loss_error": 0,
            "max_error": pytest.approx(0, abs=1e-15),
        }
        off = 3 * _bench.TOLERANCE[dtype]
        for loss, grad in [
            (made.loss * (1 + off), right),
            (made.loss, right + off / 6),
            (made.loss, made.grad),
            (math.nan, right),
            (made.loss, np.where(np.arange(5) == 2, np.nan, right)),
        ]:
            with pytest.raises(ArithmeticError, match="wrong answer"):
                _bench.check(made, (loss, grad))


class TestCopies:
    def test_the_best_is_one_of_the_ways(self):
        source = np.arange(10_000, dtype=np.float32)
        copies = _bench.Copies(source, 2)
        for _ in range(3):
            copies.run()
        name, seconds = copies.best()
        copies.close()
        assert name in {"numpy.copyto", "numpy.copyto in threads", "torch.Tensor.copy_"}
        assert 0 < seconds < 1

    def test_every_way_copies_everything(self):
        source = np.arange(1_001, dtype=np.float64)
        copies = _bench.Copies(source, 3)
        for way in copies._ways.values():
            copies.target[:] = -1
            way()
            np.testing.assert_array_equal(copies.target, source)
        copies.close()


def test_threads_follow_the_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert _bench.num_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert _bench.num_threads() >= 1


def test_available_memory_is_plausible():
    assert _bench.available_memory() > 2**20


def timing(case, copies, seconds, **more):
    """One entry of pytest-benchmark's JSON, as benchmarks/test_kernels.py writes it."""
    info = {
        **asdict(case), "threads": 2, "copies": copies, "copy_seconds": seconds / copies,
        "gb_per_s": case.traffic / seconds / 1e9, "bytes": case.traffic, "max_error": 2e-7,
        "loss_error": 1e-7, "what": "kernel",
    }  # fmt: skip
    return {"group": "kernels", "stats": {"median": seconds}, "extra_info": {**info, **more}}


@pytest.fixture
def document():
    make = _bench.Case
    return {
        "machine_info": {
            "cpu": {"brand_raw": "Analytical Engine"}, "system": "Linux", "python_version": "3.11.7",
        },
        "datetime": "2031-02-03T04:05:06+00:00",
        "benchmarks": [
            timing(make("softmax", "fused", 1024, 32768, "float32", "cpu"), 1.1, 0.0066),
            timing(make("softmax", "fused", 1024, 32768, "float32", "scipy"), 12.4, 0.0744),
            timing(make("softmax", "fused", 3000000, 7, "float32", "cpu"), 2.0, 0.02),
            {
                "group": "one call on 8x10", "stats": {"median": 7.8e-6},
                "extra_info": {"what": "call", "kind": "softmax", "peer": "cpu", "threads": 2},
            },
            {
                "group": "import", "stats": {"median": 0.08},
                "extra_info": {"what": "import", "statement": "import fastxent"},
            },
            *(
                {
                    "group": "MLP digits batch 64", "stats": {"median": seconds},
                    "extra_info": {
                        "what": "fit", "group": "MLP digits batch 64", "model": "MLPClassifier",
                        "library": library, "epochs": 3, "log_loss": 0.25,
                    },
                }
                for library, seconds in (("fastxent", 0.3), ("scikit-learn", 0.6))
            ),
        ],
    }  # fmt: skip


class TestReport:
    def test_it_reads_like_a_table(self, report, document):
        text = report.report(json.loads(json.dumps(document)))
        assert text.startswith("Analytical Engine; threads: 2; Linux; Python 3.11.7; 2031-02-03.\n")
        assert "| shape | copy | fastxent | SciPy | GB/s (fastxent) | max error (fastxent) |" in text
        assert "| 1,024 × 32,768 | 6.00 ms | **1.1** | 12 | 41 | 2e-07 |" in text
        assert "| 3,000,000 × 7 | 10.0 ms | **2.0** | - |" in text
        assert "| fastxent | 7.80 µs |" in text
        assert "| Softmax cross-entropy, loss and gradient, float32 | 11.3 |" in text
        assert "| `import fastxent` | 80.0 ms |" in text
        assert "| MLP digits batch 64 | 100 ms | 200 ms | - | 2.0× | - | 0.2500 | 0.2500 |" in text

    def test_tables_are_rectangular(self, report, document):
        tables = [part for part in report.report(document).split("\n\n") if part.startswith("|")]
        assert len(tables) == 5
        for table in tables:
            assert len({line.count("|") for line in table.splitlines()}) == 1

    def test_an_empty_run_is_no_error(self, report, document):
        assert report.report({**document, "benchmarks": []}).count("\n") == 1
