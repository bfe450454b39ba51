"""Measures of distributions against mpmath, their identities and their edges."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from reference import mp

from fastxent import information

MEASURES = {
    "cross_entropy": information.cross_entropy,
    "kl_divergence": information.kl_divergence,
    "js_divergence": information.js_divergence,
}


def exact(values):
    return [mp.mpf(float(x)) for x in np.ravel(values)]


def true_kl(p, q):
    return mp.fsum(x * mp.log(x / y) for x, y in zip(p, q, strict=True) if x)


TRUTH = {
    "entropy": lambda p: -mp.fsum(x * mp.log(x) for x in p if x),
    "cross_entropy": lambda p, q: -mp.fsum(x * mp.log(y) for x, y in zip(p, q, strict=True) if x),
    "kl_divergence": true_kl,
    "js_divergence": lambda p, q: (true_kl(p, middle(p, q)) + true_kl(q, middle(p, q))) / 2,
}


def middle(p, q):
    return [(x + y) / 2 for x, y in zip(p, q, strict=True)]


def ulp(actual, truth):
    """Distance in units of float64's last place."""
    return float(abs(mp.mpf(actual) - truth) / np.spacing(abs(float(truth))))


# Values ---------------------------------------------------------------------------------------------------


def test_golden_values():
    # correctly rounded values of the decimal arguments; the binary ones are half an ulp of .9 away
    assert information.entropy([0.9, 0.1], base=2) == pytest.approx(0.46899559358928117, rel=1e-15)
    assert information.kl_divergence([0.8, 0.2], [0.5, 0.5], base=2) == pytest.approx(
        0.27807190511263774, rel=1e-15
    )
    assert information.js_divergence([0.9, 0.1], [0.5, 0.5], base=2) == pytest.approx(
        0.14679310243605215, rel=2e-15
    )
    assert information.cross_entropy([1, 0], [0.8, 0.2]) == pytest.approx(0.2231435513142097, rel=1e-15)
    assert information.cross_entropy([1, 0], [0.8, 0.2], base=2) == pytest.approx(
        0.3219280948873623, rel=1e-15
    )
    assert information.cross_entropy([1, 0], [0.9, 0.1]) == pytest.approx(0.10536051565782628, rel=1e-15)


@pytest.mark.parametrize("k", [1, 2, 3, 8, 1024])
def test_uniform(k):
    p = np.full(k, 1 / k)
    assert information.entropy(p, base=2) == pytest.approx(math.log2(k), rel=1e-15)
    assert information.perplexity(p) == pytest.approx(k, rel=1e-13)
    assert information.kl_divergence(p, p) == 0
    assert information.js_divergence(p, p) == 0


def test_exact_bits():
    assert information.entropy([0.5, 0.25, 0.125, 0.125], base=2) == 1.75
    assert information.js_divergence([1, 0, 0], [0, 0.5, 0.5], base=2) == 1.0


@st.composite
def distributions(draw):
    """Two positive rows that are normalized to rounding: sparse, flat, or within 1e-12 of each other."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    k = draw(st.integers(2, 40))
    p = rng.dirichlet(np.full(k, 10.0 ** draw(st.integers(-1, 1)))) + 1e-300
    near = draw(st.sampled_from([None, 1e-12, 1e-8, 1e-3, 0.3]))
    q = rng.dirichlet(np.ones(k)) if near is None else p * (1 + near * rng.uniform(-1, 1, k))
    return p, q / q.sum()


@given(distributions())
def test_against_mpmath(pair):
    p, q = pair
    P, Q = exact(p), exact(q)
    assert ulp(information.entropy(p), TRUTH["entropy"](P)) <= 4
    assert ulp(information.cross_entropy(p, q), TRUTH["cross_entropy"](P, Q)) <= 4
    assert ulp(information.js_divergence(p, q), TRUTH["js_divergence"](P, Q)) <= 8
    # The sum of p - q, which rounding leaves, is added to terms that are all positive.
    terms = mp.fsum(x * mp.log(x / y) - x + y for x, y in zip(P, Q, strict=True))
    left = abs(mp.mpf(information.kl_divergence(p, q)) - true_kl(P, Q))
    assert left <= 8 * 2.3e-16 * (terms + abs(mp.fsum(P) - mp.fsum(Q)))


@given(distributions())
def test_identities(pair):
    p, q = pair
    H, CE = information.entropy(p), information.cross_entropy(p, q)
    KL, JS = information.kl_divergence(p, q), information.js_divergence(p, q)
    assert pytest.approx(H + KL, rel=1e-14) == CE
    assert 0 <= JS <= math.log(2) * (1 + 1e-15)
    assert information.js_divergence(q, p) == JS
    assert KL >= -1e-15
    assert information.perplexity(p, q) == pytest.approx(math.exp(CE), rel=1e-13)
    for base in (2, 10, 0.5):
        assert information.entropy(p, base=base) == pytest.approx(H / math.log(base), rel=1e-15)
    assert information.perplexity(p, base=2) == information.perplexity(p)


def test_near_equal_distributions_keep_their_digits():
    """The textbook sum of p log(p/q) loses everything here: the terms are 1e-9, the divergence is 1e-18."""
    step = 2.0**-30
    p, q = [0.25 + 3 * step, 0.125 - 7 * step, 0.625 + 4 * step], [0.25, 0.125, 0.625]
    truth = true_kl(exact(p), exact(q))
    assert ulp(information.kl_divergence(p, q), truth) <= 4
    textbook = sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
    assert abs(textbook - float(truth)) > 1e-3 * float(truth)
    assert ulp(information.js_divergence(p, q), TRUTH["js_divergence"](exact(p), exact(q))) <= 4


def test_confident_distribution_keeps_its_digits():
    p = [1 - 2.0**-53, 2.0**-53]
    assert ulp(information.entropy(p), TRUTH["entropy"](exact(p))) <= 2


@pytest.mark.parametrize("scale", [1e-300, 1e-12, 1.0, 37.0, 1e150])
def test_no_normalization(scale):
    p, q = np.array([0.2, 0.3, 1.7]) * scale, np.array([0.5, 0.1, 0.9]) * scale
    P, Q = exact(p), exact(q)
    assert ulp(information.entropy(p), TRUTH["entropy"](P)) <= 4
    for name, measure in MEASURES.items():
        assert ulp(measure(p, q), TRUTH[name](P, Q)) <= 8, name


def test_many_terms():
    p = np.full(200_001, 1 / 200_001)
    p[::2] *= 1.5
    low, high = exact(np.array([p[1], p[0]]))  # mpmath would need its time for 200,001 logarithms
    truth = -(100_000 * low * mp.log(low) + 100_001 * high * mp.log(high))
    assert ulp(information.entropy(p), truth) <= 2


# Edges ----------------------------------------------------------------------------------------------------


def test_zeros():
    assert information.entropy([1.0, 0.0]) == 0
    assert math.copysign(1, information.entropy([1.0, 0.0])) == 1
    assert information.cross_entropy([1.0, 0.0], [1.0, 0.0]) == 0
    assert information.cross_entropy([0.5, 0.5], [1.0, 0.0]) == math.inf
    assert information.kl_divergence([0.5, 0.5], [1.0, 0.0]) == math.inf
    assert information.kl_divergence([1.0, 0.0], [0.5, 0.5]) == pytest.approx(math.log(2), rel=1e-15)
    assert information.js_divergence([0.0, 1.0], [1.0, 0.0]) == pytest.approx(math.log(2), rel=1e-15)
    assert information.perplexity([1.0, 0.0], [0.0, 1.0]) == math.inf
    assert information.entropy([0.0, 0.0]) == 0


def test_tiny_and_huge_ratios():
    p, q = [5e-324, 1.0], [1.0, 5e-324]
    for name, measure in MEASURES.items():
        assert ulp(measure(p, q), TRUTH[name](exact(p), exact(q))) <= 8, name


# Shapes and dtypes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2, -1, (0, 2), (1, 2), (0, 1, 2), None])
def test_axes(axis):
    rng = np.random.default_rng(0)
    p, q = rng.random((2, 3, 4)), rng.random((2, 3, 4))
    axes = tuple(range(3)) if axis is None else axis
    H = information.entropy(p, axis=axis)
    assert_allclose(H, -(p * np.log(p)).sum(axis=axes), rtol=1e-14)
    assert_allclose(information.cross_entropy(p, q, axis=axis), -(p * np.log(q)).sum(axis=axes), rtol=1e-13)
    assert isinstance(H, float) == (np.ndim(H) == 0)
    for measure in MEASURES.values():
        assert np.shape(measure(p, q, axis=axis)) == np.shape(H)


def test_broadcasting():
    p, q = np.array([0.5, 0.5]), np.array([[0.5, 0.5], [0.25, 0.75]])
    for measure in MEASURES.values():
        assert_allclose(measure(p, q), [measure(p, row) for row in q], rtol=1e-15)
        assert_allclose(measure(q, p), [measure(row, p) for row in q], rtol=1e-15)


@pytest.mark.parametrize(
    ("dtype", "result"),
    [
        ("float32", "float32"),
        ("float64", "float64"),
        ("float16", "float32"),
        (ml_dtypes.bfloat16, "float32"),
        ("int64", "float64"),
    ],
)
def test_dtypes(dtype, result):
    p = np.array([[1, 2, 3], [3, 4, 0]]).astype(dtype)
    q = np.array([[2, 2, 2], [1, 4, 1]]).astype(dtype)
    for name, measure in MEASURES.items():
        values = measure(p, q)
        assert values.dtype == result
        for value, x, y in zip(values, p, q, strict=True):
            truth = TRUTH[name](exact(x), exact(y))
            assert float(value) == pytest.approx(float(truth), rel=2 * float(np.finfo(result).eps))


def test_layouts_and_lists():
    p = np.random.default_rng(0).random((6, 8))
    expected = information.entropy(p)
    for same in (np.asfortranarray(p), p[::-1][::-1], p.astype(">f8"), p.tolist()):
        assert_allclose(information.entropy(same), expected, rtol=1e-15)
    assert information.entropy(np.empty((0, 3))).shape == (0,)


# Refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["p", "q"])
def test_bad_numbers(name, value):
    good, bad = [[0.5, 0.5]], [[0.5, value]]
    arguments = (bad, good) if name == "p" else (good, bad)
    for measure in (*MEASURES.values(), information.perplexity):
        with pytest.raises(ValueError, match=rf"{name}: expected finite non-negative.*at index \(0, 1\)"):
            measure(*arguments)
    if name == "p":
        with pytest.raises(ValueError, match="p: expected finite non-negative"):
            information.entropy(bad)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (
            ([0.5, 0.5], [0.2, 0.3, 0.5]),
            {},
            ValueError,
            r"q: expected a shape that broadcasts with that of p",
        ),
        ((0.5, 0.5), {}, ValueError, "p: expected at least one dimension"),
        ((np.empty((3, 0)),) * 2, {}, ValueError, "p: expected at least one class"),
        (([0.5, 0.5],) * 2, {"axis": 1}, ValueError, "axis: expected -1 <= axis < 1"),
        (([0.5, 0.5],) * 2, {"axis": (0, -1)}, ValueError, "axis: expected an integer, a tuple of different"),
        (([0.5, 0.5],) * 2, {"axis": 0.5}, TypeError, "axis: expected an integer"),
        (([0.5, 0.5],) * 2, {"base": 1}, ValueError, "base: expected a positive number other than 1"),
        (([0.5, 0.5],) * 2, {"base": 0}, ValueError, "base: expected"),
        ((["a", "b"],) * 2, {}, TypeError, "p: expected"),
    ],
)
def test_bad_arguments(arguments, options, error, message):
    for measure in MEASURES.values():
        with pytest.raises(error, match=message):
            measure(*arguments, **options)
