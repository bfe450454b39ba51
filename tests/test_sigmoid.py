"""Binary cross-entropy on logits against the oracle: options, reductions, shapes, broadcasting."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import reference
from numpy.testing import assert_allclose, assert_array_equal

import fastxent as fx

ULPS = 8
SHAPE = (4, 5)


def problem(kind, dtype):
    rng = np.random.default_rng(0)
    z = (rng.normal(size=SHAPE) * np.geomspace(0.1, 40, 4)[:, None]).astype(dtype)
    z[0, :2] = [0.0, -0.0]
    y = rng.uniform(0, 1, SHAPE).astype(dtype) if kind == "soft" else rng.integers(0, 2, SHAPE)
    return z, y


def weights(shape, dtype, seed=7):
    return np.random.default_rng(seed).uniform(0.25, 2, shape).astype(dtype)


def options_of(name, dtype):
    zero = weights(SHAPE, dtype)
    zero[1] = 0
    return {
        "plain": {},
        "sample_weight": dict(sample_weight=weights(SHAPE, dtype)),
        "weight per row": dict(sample_weight=weights((4, 1), dtype)),
        "weight per column": dict(sample_weight=weights(5, dtype)),
        "zero weight": dict(sample_weight=zero),
        "scalar weights": dict(sample_weight=2.0, pos_weight=3.0),
        "pos_weight per column": dict(pos_weight=weights(5, dtype, 8)),
        "pos_weight": dict(pos_weight=weights(SHAPE, dtype, 8)),
        "pos_weight of zero": dict(pos_weight=0.0),
        "smoothing": dict(label_smoothing=0.1),
        "smoothing of one": dict(label_smoothing=1.0),
        "base 2": dict(base=2),
        "everything": dict(
            sample_weight=weights((4, 1), dtype),
            pos_weight=weights(5, dtype, 8),
            label_smoothing=0.2,
            base=10,
        ),
    }[name]


OPTIONS = (
    "plain",
    "sample_weight",
    "weight per row",
    "weight per column",
    "zero weight",
    "scalar weights",
    "pos_weight per column",
    "pos_weight",
    "pos_weight of zero",
    "smoothing",
    "smoothing of one",
    "base 2",
    "everything",
)


@functools.cache
def truth_of(kind, name, dtype, reduction):
    z, y = problem(kind, dtype)
    return reference.sigmoid(z, y, reduction=reduction, exact=True, **options_of(name, dtype))


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_options(backend, dtype, kind, name, reduction):
    """Loss, fused gradient, forward and backward; "mean" divides by the weights broadcast to the elements."""
    z, y = problem(kind, dtype)
    truth = truth_of(kind, name, dtype, reduction)
    kept = z.copy(), y.copy()
    common = dict(reduction=reduction, backend=backend, **options_of(name, dtype))
    loss = fx.sigmoid_cross_entropy(z, y, **common)
    if reduction == "none":
        assert loss.dtype == dtype
        assert loss.shape == z.shape
        assert reference.worst(loss, truth.losses) <= ULPS
    else:
        assert type(loss) is float
        assert reference.worst(loss, truth.loss, dtype=dtype) <= ULPS
    fused, grad = fx.sigmoid_cross_entropy_with_grad(z, y, **common)
    assert_array_equal(fused, loss)
    assert grad.dtype == z.dtype
    assert reference.worst(grad, truth.grad, truth.scale) <= ULPS
    assert_array_equal(fx.sigmoid_cross_entropy_forward(z, y, **common), loss)
    upstream = np.ones(z.shape, dtype) if reduction == "none" else 1.0
    back = fx.sigmoid_cross_entropy_backward(upstream, z, y, **common)
    assert back.dtype == z.dtype
    assert reference.worst(back, truth.grad, truth.scale) <= ULPS
    assert_array_equal(z, kept[0])
    assert_array_equal(y, kept[1])


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("name", ["plain", "zero weight", "pos_weight per column", "smoothing"])
def test_curvature(backend, dtype, kind, name):
    z, y = problem(kind, dtype)
    options = dict(options_of(name, dtype))
    weight = options.pop("sample_weight", None)
    truth = reference.sigmoid(z, y, sample_weight=weight, exact=True, **options)
    f = fx.SigmoidCrossEntropy(**options)
    grad, hess = f.grad_hess(z, y, sample_weight=weight, backend=backend)
    assert grad.dtype == hess.dtype == z.dtype
    assert reference.worst(grad, truth.grad, truth.scale) <= ULPS
    assert reference.worst(hess, truth.hess) <= ULPS
    x = np.random.default_rng(5).normal(size=SHAPE).astype(dtype)
    hvp = f.hvp(z, y, x, sample_weight=weight, backend=backend)
    exact = np.array([reference.mp.mpf(float(a)) for a in x.flat], object).reshape(SHAPE)
    assert hvp.dtype == z.dtype
    assert reference.worst(hvp, truth.hess * exact) <= ULPS


# Below, at and beyond one vector of each instruction set, a ragged tail after many, and no last axis of its
# own.
@pytest.mark.parametrize(
    "shape",
    [
        (),
        (1,),
        (3,),
        (7,),
        (8,),
        (15,),
        (16,),
        (17,),
        (33,),
        (1003,),
        (1, 1),
        (3, 1),
        (1, 3),
        (5, 7),
        (2, 3, 4, 5),
    ],
)
def test_shapes(backend, dtype, shape):
    rng = np.random.default_rng(len(shape))
    z = np.asarray(rng.normal(size=shape) * 5).astype(dtype)
    y = np.asarray(rng.integers(0, 2, shape))
    unit = np.finfo(dtype).eps
    for options in ({}, dict(sample_weight=0.5, pos_weight=2.0, label_smoothing=0.25)):
        truth = reference.sigmoid(z, y, **options)
        loss, grad = fx.sigmoid_cross_entropy_with_grad(z, y, backend=backend, **options)
        assert type(loss) is float
        assert np.shape(grad) == shape
        assert grad.dtype == dtype
        assert_allclose(loss, truth.loss, rtol=8 * unit)
        assert (np.abs(grad - truth.grad) <= 8 * unit * truth.scale).all()
        losses = fx.sigmoid_cross_entropy(z, y, reduction="none", backend=backend, **options)
        assert np.shape(losses) == shape
        assert_allclose(losses, truth.losses, rtol=8 * unit)


def test_backward_scales_by_the_incoming_gradient(backend, dtype):
    z, y = problem("soft", dtype)
    eps = np.finfo(dtype).eps
    truth = reference.sigmoid(z, y)
    back = fx.sigmoid_cross_entropy_backward(-2.5, z, y, backend=backend)
    assert (np.abs(back + 2.5 * truth.grad) <= 8 * eps * 2.5 * truth.scale).all()
    upstream = weights(SHAPE, dtype, 3)
    truth = reference.sigmoid(z, y, reduction="sum")
    back = fx.sigmoid_cross_entropy_backward(upstream, z, y, reduction="none", backend=backend)
    assert (np.abs(back - upstream * truth.grad) <= 8 * eps * upstream * truth.scale).all()


def test_out_is_filled_and_returned(backend, dtype):
    z, y = problem("hard", dtype)
    loss, expected = fx.sigmoid_cross_entropy_with_grad(z, y, backend=backend)
    out = np.full_like(z, 7)
    assert fx.sigmoid_cross_entropy_with_grad(z, y, out=out, backend=backend)[1] is out
    assert_array_equal(out, expected)
    inplace = z.copy()
    again, grad = fx.sigmoid_cross_entropy_with_grad(inplace, y, out=inplace, backend=backend)
    assert grad is inplace
    assert again == loss
    assert_array_equal(inplace, expected)


@pytest.mark.parametrize("layout", ["fortran", "reversed", "transposed", "every second", "broadcast"])
def test_layouts(backend, dtype, layout):
    rng = np.random.default_rng(1)
    z = rng.normal(size=(6, 8)).astype(dtype)
    y = rng.integers(0, 2, (6, 8))
    if layout == "fortran":
        z, y = np.asfortranarray(z), np.asfortranarray(y)
    elif layout == "reversed":
        z, y = z[::-1, ::-1], y[::-1, ::-1]
    elif layout == "transposed":
        z, y = z.T, y.T
    elif layout == "every second":
        z, y = z[:, ::2], y[:, 1::2]
    else:
        z, y = np.broadcast_to(z[:, :1], (6, 8)), np.broadcast_to(y[0], (6, 8))
    truth = reference.sigmoid(z, y)
    loss, grad = fx.sigmoid_cross_entropy_with_grad(z, y, backend=backend)
    rtol = 8 * np.finfo(dtype).eps
    assert_allclose(loss, truth.loss, rtol=rtol)
    assert_allclose(grad, truth.grad, rtol=rtol)


def test_infinite_logits(backend, dtype):
    """A zero factor annihilates its infinite term; the other case is infinite with a gradient of 1."""
    inf = np.inf
    z = np.array([inf, inf, -inf, -inf], dtype)
    y = np.array([1, 0, 0, 1])
    losses = fx.sigmoid_cross_entropy(z, y, reduction="none", backend=backend)
    assert_array_equal(losses, [0, inf, 0, inf])
    loss, grad = fx.sigmoid_cross_entropy_with_grad(z, y, reduction="none", backend=backend)
    assert_array_equal(loss, losses)
    assert_array_equal(grad, [0, 1, 0, -1])
    _, hess = fx.SigmoidCrossEntropy().grad_hess(z, y, reduction="sum", backend=backend)
    assert_array_equal(hess, [0, 0, 0, 0])
    half = fx.sigmoid_cross_entropy(z, np.full(4, 0.5), reduction="none", backend=backend)
    assert_array_equal(half, [inf] * 4)


def test_nan_stays_in_its_element(backend, dtype):
    z = np.array([0.5, np.nan, -1.5, 2.0, 3.0], dtype)
    y = np.array([1, 1, 0, 1, 0])
    losses, grad = fx.sigmoid_cross_entropy_with_grad(z, y, reduction="none", backend=backend)
    bad = np.array([False, True, False, False, False])
    assert_array_equal(np.isnan(losses), bad)
    assert_array_equal(np.isnan(grad), bad)
    truth = reference.sigmoid(z, y, reduction="none")
    assert_allclose(losses[~bad], truth.losses[~bad], rtol=8 * np.finfo(dtype).eps)
    silenced = fx.sigmoid_cross_entropy_with_grad(z, y, sample_weight=~bad, backend=backend)
    assert np.isfinite(silenced[0])
    assert silenced[1][1] == 0


@pytest.mark.parametrize("n", [1_000, 100_001])
def test_sums_are_float64(backend, n):
    """n float32 elements of loss log 2: the sum is off by the rounding of one, not by that of its size."""
    z = np.zeros(n, np.float32)
    loss = fx.sigmoid_cross_entropy(z, z, reduction="sum", backend=backend)
    assert_allclose(loss / n, np.log(2), rtol=np.finfo(np.float32).eps / 2)


def test_no_elements(backend, dtype):
    z = np.empty((0, 3), dtype)
    loss, grad = fx.sigmoid_cross_entropy_with_grad(z, z, backend=backend)
    assert loss == 0.0
    assert grad.shape == (0, 3)
    assert grad.dtype == dtype
    assert fx.sigmoid_cross_entropy(z, z, reduction="none", backend=backend).shape == (0, 3)
    assert fx.sigmoid_cross_entropy(z, z, reduction="sum", backend=backend) == 0.0


def test_targets_of_every_dtype(backend):
    """Bool, every integer and float dtype, and lists say the same."""
    z = np.array([0.5, -1.5, 2.0])
    expected = fx.sigmoid_cross_entropy(z, [1, 0, 1], backend=backend)
    for code in "?bBhHiIlLqQefd":
        y = np.array([1, 0, 1]).astype(code)
        assert fx.sigmoid_cross_entropy(z, y, backend=backend) == expected
    assert fx.sigmoid_cross_entropy(z.tolist(), (True, False, True), backend=backend) == expected


def test_integer_logits_are_promoted(backend):
    loss, grad = fx.sigmoid_cross_entropy_with_grad([1, -2], [1, 0], backend=backend)
    assert grad.dtype == np.float64
    assert_allclose(loss, reference.sigmoid([1.0, -2.0], [1, 0]).loss, rtol=1e-15)


@pytest.mark.parametrize("bad", [-0.25, 1.25, 2, -1, np.nan, np.inf])
def test_targets_outside_the_unit_interval(backend, bad):
    """ValueError naming the place and the value; unchecked, the computation stays memory-safe."""
    z = np.zeros((2, 3))
    y = np.zeros((2, 3))
    y[1, 2] = bad
    for call in (
        fx.sigmoid_cross_entropy,
        fx.sigmoid_cross_entropy_with_grad,
        fx.sigmoid_cross_entropy_forward,
    ):
        with pytest.raises(ValueError, match=r"targets.*1.*2") as caught:
            call(z, y, backend=backend)
        assert str(y[1, 2]) in str(caught.value)
    with pytest.raises(ValueError, match="targets"):
        fx.sigmoid_cross_entropy_backward(1.0, z, y, backend=backend)
    losses = fx.sigmoid_cross_entropy(z, y, check=False, reduction="none", backend=backend)
    assert_allclose(losses.ravel()[:5], np.log(2), rtol=1e-15)


def test_bad_target_leaves_logits_alone(backend, dtype):
    """With out aliasing logits, targets are checked before the first write."""
    z = np.linspace(-3, 3, 40).astype(dtype)
    kept = z.copy()
    y = np.zeros(40)
    y[39] = 1.5
    with pytest.raises(ValueError, match="targets"):
        fx.sigmoid_cross_entropy_with_grad(z, y, out=z, backend=backend)
    assert_array_equal(z, kept)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (dict(targets=[1, 0]), ValueError, ["targets", "(3,)", "(2,)"]),
        (dict(targets="abc"), (TypeError, ValueError), ["targets"]),
        (dict(targets=[1j, 0, 0]), TypeError, ["targets", "complex"]),
        (dict(logits=[1j, 0, 0]), TypeError, ["logits", "complex"]),
        (dict(sample_weight=[1, 2]), ValueError, ["sample_weight", "(3,)", "(2,)"]),
        (dict(pos_weight=[1, 2]), ValueError, ["pos_weight", "(3,)", "(2,)"]),
        (dict(pos_weight=-1.0), ValueError, ["pos_weight", "-1"]),
        (dict(label_smoothing=1.5), ValueError, ["label_smoothing", "1.5"]),
        (dict(label_smoothing=-0.5), ValueError, ["label_smoothing", "-0.5"]),
        (dict(label_smoothing="a"), TypeError, ["label_smoothing", "a"]),
        (dict(reduction="average"), ValueError, ["reduction", "mean", "average"]),
        (dict(base=1), ValueError, ["base", "1"]),
        (dict(base=-2), ValueError, ["base", "-2"]),
        (dict(num_threads=0), ValueError, ["num_threads", "0"]),
        (dict(backend="abacus"), ValueError, ["backend", "numpy", "abacus"]),
    ],
)
def test_bad_arguments(backend, change, error, words):
    arguments = dict(logits=[0.5, -1.0, 2.0], targets=[1, 0, 1], backend=backend) | change
    for call in (
        fx.sigmoid_cross_entropy,
        fx.sigmoid_cross_entropy_with_grad,
        fx.sigmoid_cross_entropy_forward,
        functools.partial(fx.sigmoid_cross_entropy_backward, 1.0),
    ):
        with pytest.raises(error) as caught:
            call(**arguments)
        for word in words:
            assert word in str(caught.value), str(caught.value)


def test_losses_whose_sum_leaves_the_range_of_float32(backend):
    """Sums are float64 however the kernel groups them: four losses of 3e38 are 1.2e39, not infinite."""
    z = np.full(101, 3e38, np.float32)
    loss = fx.sigmoid_cross_entropy(z, np.zeros(101), reduction="sum", backend=backend)
    assert_allclose(loss, 101 * float(z[0]), rtol=1e-7)
    z[7] = np.inf
    assert fx.sigmoid_cross_entropy(z, np.zeros(101), reduction="sum", backend=backend) == np.inf


def test_small_losses_beside_large_ones_count(backend):
    """The sum of a loss and of many small ones keeps the small ones' part to float32's precision."""
    z = np.concatenate([np.full(999, -10.0), [0.0]]).astype(np.float32)
    z = np.tile(z, 20)
    loss = fx.sigmoid_cross_entropy(z, np.zeros(z.size), reduction="sum", backend=backend)
    truth = np.logaddexp(0, z.astype(np.float64)).sum()
    assert abs(loss / truth - 1) <= 2 * np.finfo(np.float32).eps


@pytest.mark.parametrize("place", [0, 15, 511, 512, 1030, 1499])
@pytest.mark.parametrize(
    "bad", [-1e-30, np.nextafter(np.float32(1), np.float32(2)), 1.5, 3.0, np.nan, -np.inf]
)
def test_first_bad_target_of_many(backend, dtype, place, bad):
    """Found in whole vectors, in their last, in a ragged end, and in the second piece; -0.0 is a target."""
    z, y = np.zeros(1500, dtype), np.zeros(1500, dtype)
    y[::3] = -0.0
    y[1::3] = 1
    expected = fx.sigmoid_cross_entropy(z, np.abs(y), backend=backend)
    assert fx.sigmoid_cross_entropy(z, y, backend=backend) == expected
    y[place:] = np.where(np.arange(1500 - place) % 5 == 0, np.dtype(dtype).type(bad), y[place:])
    with pytest.raises(ValueError, match=rf"targets.*\b{place}\b"):
        fx.sigmoid_cross_entropy(z, y, backend=backend)


@pytest.mark.parametrize("shape", [(3, 700), (700, 3), (1, 1500), (40, 33)])
def test_broadcast_weights_over_many_pieces(backend, dtype, shape):
    """Weights per row, per column and per call are the full matrix, to the bit."""
    rng = np.random.default_rng(2)
    z = rng.normal(size=shape).astype(dtype)
    y = rng.integers(0, 2, shape).astype(dtype)
    for small in (weights((shape[0], 1), dtype), weights(shape[1], dtype), weights((), dtype)):
        full = np.broadcast_to(small, shape).copy()
        for name in ("sample_weight", "pos_weight"):
            a = fx.sigmoid_cross_entropy_with_grad(z, y, backend=backend, **{name: small})
            b = fx.sigmoid_cross_entropy_with_grad(z, y, backend=backend, **{name: full})
            assert a[0] == b[0]
            assert_array_equal(a[1], b[1])


@pytest.mark.compiled
@pytest.mark.parametrize("offset", [0, 1, 5])
def test_gradients_past_the_cache(offset):
    """A gradient of more than 32 MB is written past the cache: the bits of small calls, nothing beside it."""
    n = (1 << 23) + 77
    z = np.random.default_rng(0).standard_normal(n, np.float32)
    y = (z > 0.3).astype(np.float32)
    big = np.full(n + 16, 7, np.float32)
    out = big[offset : offset + n]
    fx.sigmoid_cross_entropy_with_grad(z, y, reduction="sum", out=out, backend="cpu")
    for i in range(0, n, 1 << 20):
        cut = slice(i, i + (1 << 20))
        part = fx.sigmoid_cross_entropy_with_grad(z[cut], y[cut], reduction="sum", backend="cpu")[1]
        assert_array_equal(out[cut], part)
    assert_array_equal(big[:offset], 7)
    assert_array_equal(big[offset + n :], 7)
