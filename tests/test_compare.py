"""The comparison of two revisions: its statistics, and one run of the working tree against itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def compare():
    spec = importlib.util.spec_from_file_location("compare", ROOT / "benchmarks" / "compare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("n", [9, 15, 21, 50])
@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_the_interval_is_the_narrowest_that_has_the_confidence(compare, n, confidence):
    """Against SciPy's binomial distribution: the ranks that leave no more than the rest outside, one more would not."""
    low, high = compare.interval(np.random.default_rng(0).permutation(n) + 1.0, confidence)
    assert low + high == n + 1
    assert 2 * binom.cdf(low - 1, n, 0.5) <= 1 - confidence
    assert 2 * binom.cdf(low, n, 0.5) > 1 - confidence


def test_too_few_rounds_are_an_error(compare):
    with pytest.raises(ValueError, match="7 rounds cannot give 99% confidence"):
        compare.interval([1.0] * 7)


def test_verdicts(compare):
    noise = np.linspace(0.98, 1.02, 21)
    assert compare.verdict(noise)[3] == ""
    assert compare.verdict(1.1 * noise)[3] == "slower"
    assert compare.verdict(noise / 1.1)[3] == "faster"
    assert compare.verdict(1.06 * noise)[3] == ""  # the interval holds 1.05
    assert compare.verdict(np.r_[noise[:18], 9, 9, 9])[3] == ""  # three disturbed rounds


@pytest.mark.slow
@pytest.mark.compiled
def test_a_tree_against_itself(compare):
    ratios, seconds = compare.measured(ROOT, ROOT, 1, 3, "softmax 4 × 3")
    assert list(ratios) == ["softmax 4 × 3"]
    assert len(ratios["softmax 4 × 3"]) == 3
    assert min(ratios["softmax 4 × 3"]) > 0
    assert 0 < seconds["softmax 4 × 3"] < 1
