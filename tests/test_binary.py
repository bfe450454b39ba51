"""Binary cross-entropy of probabilities: no clamp, so values at and beside 0 and 1 are the exact ones."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import reference
from numpy.testing import assert_allclose, assert_array_equal

import fastxent as fx

ULPS = 8


def problem(dtype, kind):
    """Probabilities from the smallest normal number to one ulp below 1."""
    tiny, eps = np.finfo(dtype).tiny, np.finfo(dtype).epsneg
    p = np.array([tiny, 1e-30, 1e-7, 0.01, 0.3, 0.5, 0.7, 0.99, 1 - 8 * eps, 1 - eps], dtype)
    rng = np.random.default_rng(0)
    y = rng.uniform(0.05, 0.95, len(p)).astype(dtype) if kind == "soft" else np.arange(len(p)) % 2
    return p, y


@functools.cache
def truth_of(dtype, kind, weighted, reduction, base):
    p, y = problem(dtype, kind)
    v = np.linspace(0, 2, len(p)).astype(dtype) if weighted else None
    return reference.binary(p, y, sample_weight=v, reduction=reduction, base=base, exact=True), v


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("base", [None, 2])
def test_options(backend, dtype, kind, weighted, reduction, base):
    """Loss and (p - y) / (p (1 - p)) in ulp; a soft target's gradient is a difference of two terms."""
    p, y = problem(dtype, kind)
    truth, v = truth_of(dtype, kind, weighted, reduction, base)
    common = dict(sample_weight=v, reduction=reduction, base=base, backend=backend)
    loss = fx.binary_cross_entropy(p, y, **common)
    if reduction == "none":
        assert loss.dtype == dtype
        assert reference.worst(loss, truth.losses) <= ULPS
    else:
        assert type(loss) is float
        assert reference.worst(loss, truth.loss, dtype=dtype) <= ULPS
    fused, grad = fx.binary_cross_entropy_with_grad(p, y, **common)
    assert_array_equal(fused, loss)
    assert grad.dtype == p.dtype
    assert reference.worst(grad, truth.grad, truth.scale) <= ULPS


def test_at_zero_and_one(backend, dtype):
    """0 log 0 = 0. The gradient of a certain and right answer is that of its one surviving term."""
    inf = np.inf
    p, y = np.array([0, 0, 1, 1], dtype), np.array([0, 1, 1, 0])
    losses, grad = fx.binary_cross_entropy_with_grad(p, y, reduction="none", backend=backend)
    assert_array_equal(losses, [0, inf, 0, inf])
    assert_array_equal(grad, [1, -inf, -1, inf])


def test_no_loss_is_minus_zero(backend, dtype):
    """A certain and right answer costs 0.0, and not the -0.0 that negating a sum of logarithms prints."""
    losses = fx.binary_cross_entropy(np.array([0, 1], dtype), [0, 1], reduction="none", backend=backend)
    assert_array_equal(losses, 0)
    assert not np.signbit(losses).any()


def test_agrees_with_the_logits_door(backend):
    z = np.linspace(-30, 30, 61)
    p = 1 / (1 + np.exp(-z))
    y = (np.arange(61) % 3 == 0).astype(float)
    right = y == (z > 0)
    a = fx.binary_cross_entropy(p, y, reduction="none", backend=backend)
    b = fx.sigmoid_cross_entropy(z, y, reduction="none", backend=backend)
    # A probability near 1 carries its distance to 1 only to 2^-53.
    assert_allclose(a[~right & (z < 0)], b[~right & (z < 0)], rtol=1e-14)
    assert_allclose(a, b, rtol=1e-3, atol=1e-15)


def test_matches_the_information_identity(backend):
    """At p = y the loss is the entropy of y and the gradient 0."""
    y = np.array([0.125, 0.5, 0.8])
    losses, grad = fx.binary_cross_entropy_with_grad(y, y, reduction="none", backend=backend)
    assert_allclose(losses, -y * np.log(y) - (1 - y) * np.log1p(-y), rtol=1e-15)
    assert_array_equal(grad, 0)


@pytest.mark.parametrize("shape", [(), (1,), (17,), (3, 5), (2, 3, 4)])
def test_shapes(backend, dtype, shape):
    rng = np.random.default_rng(3)
    p = np.asarray(rng.uniform(0.01, 0.99, shape)).astype(dtype)
    y = np.asarray(rng.integers(0, 2, shape))
    truth = reference.binary(p, y)
    loss, grad = fx.binary_cross_entropy_with_grad(p, y, backend=backend)
    rtol = 8 * np.finfo(dtype).eps
    assert type(loss) is float
    assert np.shape(grad) == shape
    assert_allclose(loss, truth.loss, rtol=rtol)
    assert_allclose(grad, truth.grad, rtol=rtol)


def test_in_place(backend, dtype):
    p, y = problem(dtype, "hard")
    loss, expected = fx.binary_cross_entropy_with_grad(p, y, backend=backend)
    buffer = p.copy()
    again, grad = fx.binary_cross_entropy_with_grad(buffer, y, out=buffer, backend=backend)
    assert grad is buffer
    assert again == loss
    assert_array_equal(buffer, expected)


@pytest.mark.parametrize("label", [0, 1])
def test_every_size_of_probability(backend, dtype, label):
    """Losses of subnormal probabilities to those one rounding below 1, and of logarithms around 3/4: 4 ulp."""
    limits = np.finfo(dtype)
    rng = np.random.default_rng(label)
    small = 2.0 ** rng.uniform(np.log2(limits.smallest_subnormal), 0, 300)
    near_one = 1 - 2.0 ** rng.uniform(np.log2(limits.epsneg), -1, 300)
    p = np.concatenate([small, near_one, rng.uniform(0.2, 0.8, 300)]).astype(dtype)
    p = p[(p > 0) & (p < 1)]
    assert (p < limits.tiny).sum() >= 5
    y = np.full(len(p), label)
    truth = reference.binary(p, y, reduction="sum", exact=True)
    losses, grad = fx.binary_cross_entropy_with_grad(p, y, reduction="none", backend=backend)
    assert reference.worst(losses, truth.losses) <= 4
    finite = np.isfinite(grad)
    assert finite[p >= limits.tiny].all()
    assert reference.worst(grad[finite], truth.grad[finite]) <= 4


@pytest.mark.parametrize("at", [0, 5, 510, 512, 1000, 1299])
def test_the_first_bad_probability_is_named(backend, at):
    """In any piece of the work, and in place, where gradients stand in the probabilities' place."""
    p = np.full(1300, 0.5)
    p[[at, -1]] = 1.5
    with pytest.raises(ValueError, match=rf"probabilities\[{at}\] = 1.5"):
        fx.binary_cross_entropy_with_grad(p, np.zeros(1300), out=p, backend=backend)


@pytest.mark.parametrize("bad", [-0.25, 1.25, np.nan])
def test_targets_outside_the_unit_interval(backend, bad):
    with pytest.raises(ValueError, match=r"targets.*1") as caught:
        fx.binary_cross_entropy([0.5, 0.5, 0.5], [0.0, bad, 1.0], backend=backend)
    assert str(bad) in str(caught.value)


@pytest.mark.parametrize("bad", [-0.25, 1.25, -np.inf, np.inf])
def test_probabilities_outside_the_unit_interval(backend, bad):
    """A number that is no probability is an error (logits given by mistake), not a silent NaN."""
    with pytest.raises(ValueError, match="probabilities") as caught:
        fx.binary_cross_entropy([0.5, bad, 0.5], [0.0, 1.0, 1.0], backend=backend)
    assert str(bad) in str(caught.value)


@pytest.mark.parametrize("bad", [-0.25, 1.25, -np.inf, np.inf, np.nan])
def test_unchecked_probabilities_outside_the_unit_interval(backend, dtype, bad):
    """NaN in loss, gradient and curvature of that element alone."""
    p = np.array([0.5, bad, 0.5], dtype)
    options = dict(reduction="none", check=False, backend=backend)
    for values in fx.binary_cross_entropy_with_grad(p, [0.0, 1.0, 1.0], **options):
        assert_array_equal(np.isnan(values), [False, True, False])


def test_no_elements(backend, dtype):
    p = np.empty((0, 3), dtype)
    loss, grad = fx.binary_cross_entropy_with_grad(p, p, backend=backend)
    assert loss == 0.0
    assert grad.shape == (0, 3)


@pytest.mark.parametrize("argument", ["probabilities", "targets"])
def test_bad_numbers_leave_the_probabilities_alone(backend, dtype, argument):
    """With out aliasing probabilities, both arrays are checked before the first write."""
    p = np.linspace(0.25, 0.75, 40).astype(dtype)
    y = np.zeros(40)
    (p if argument == "probabilities" else y)[39] = 1.5
    kept = p.copy()
    with pytest.raises(ValueError, match=rf"{argument}.*39.*1\.5"):
        fx.binary_cross_entropy_with_grad(p, y, out=p, backend=backend)
    assert_array_equal(p, kept)
