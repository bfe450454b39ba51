"""Identities that hold for every input; Hypothesis chooses inputs and compositions of options."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import fastxent as fx

DTYPES = ("float32", "float64")
ULPS = 8


@st.composite
def problems(draw, soft=None, ignored=True, min_rows=1):
    """Logits (n, K), targets, dtype: margins of many sizes, a shared offset, sometimes ties and -inf."""
    dtype = draw(st.sampled_from(DTYPES))
    n, k = draw(st.integers(min_rows, 6)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    z = rng.normal(size=(n, k)) * draw(st.sampled_from([0.0, 0.01, 1.0, 10.0, 100.0]))
    z += draw(st.sampled_from([0.0, -50.0, 1e4]))
    if draw(st.booleans()):
        z[:, 0] = z.max(axis=1)
    if soft if soft is not None else draw(st.booleans()):
        y = (rng.dirichlet(np.ones(k), n) * rng.uniform(0, 2, (n, 1)) * (rng.random((n, k)) < 0.7)).astype(
            dtype
        )
    else:
        y = rng.integers(0, k, n).astype(draw(st.sampled_from(["i1", "i2", "i4", "i8"])))
        if ignored and draw(st.booleans()):
            y[rng.random(n) < 0.3] = -100
    return z.astype(dtype), y, dtype, rng


@st.composite
def compositions(draw):
    """A problem and any subset of the options, with arrays of the compute dtype."""
    z, y, dtype, rng = draw(problems())
    n, k = z.shape
    options = {}
    if draw(st.booleans()):
        options["sample_weight"] = (rng.uniform(0, 2, n) * (rng.random(n) < 0.8)).astype(dtype)
    if draw(st.booleans()):
        options["class_weight"] = (rng.uniform(0, 2, k) * (rng.random(k) < 0.8)).astype(dtype)
    if draw(st.booleans()):
        options["label_smoothing"] = draw(st.sampled_from([1e-3, 0.1, 0.5, 1.0]))
        if y.ndim == 1 and k > 1 and draw(st.booleans()):
            options["smoothing"] = "exclude_target"
    if draw(st.booleans()):
        options["z_loss"] = draw(st.sampled_from([1e-4, 0.1]))
    if draw(st.booleans()):
        options["temperature"] = draw(st.sampled_from([0.5, 2.0, 0.7, 3.0]))
    if draw(st.booleans()):
        options["logit_bias"] = rng.normal(size=k).astype(dtype)
    if draw(st.booleans()):
        options["base"] = draw(st.sampled_from([2, 10.0, np.e]))
    options["reduction"] = draw(st.sampled_from(["mean", "sum", "none", "mean_rows", "mean_all"]))
    if draw(st.booleans()):
        options["ignore_index"] = draw(st.sampled_from([-100, 0]))
        if y.ndim == 1 and options["ignore_index"] == 0:
            y[y == -100] = 0
    return z, y, dtype, options


def assert_close(a, b, dtype, scale=1.0, ulps=64):
    """Equal to so many ulp of a scale: for two roundings of one number, neither of which is the truth."""
    assert_allclose(
        np.asarray(a, float),
        np.asarray(b, float),
        rtol=ulps * np.finfo(dtype).eps,
        atol=ulps * np.finfo(dtype).eps * scale,
    )


@given(case=compositions())
@settings(max_examples=200)
def test_any_composition_against_mpmath(backend, case):
    z, y, dtype, options = case
    truth = reference.softmax(z, y, exact=True, **options)
    loss, grad = fx.softmax_cross_entropy_with_grad(z, y, backend=backend, **options)
    if options["reduction"] == "none":
        assert reference.worst(loss, truth.losses, truth.losses_scale) <= ULPS
    else:
        assert reference.worst(loss, truth.loss, truth.loss_scale, dtype) <= ULPS
    assert reference.worst(grad, truth.grad, truth.grad_scale) <= ULPS


@given(case=compositions())
def test_fused_is_forward_then_backward(backend, case):
    z, y, dtype, options = case
    loss, grad = fx.softmax_cross_entropy_with_grad(z, y, backend=backend, **options)
    assert_array_equal(fx.softmax_cross_entropy(z, y, backend=backend, **options), loss)
    forward, lse = fx.softmax_cross_entropy_forward(z, y, backend=backend, **options)
    assert_array_equal(forward, loss)
    upstream = np.ones(len(z), dtype) if options["reduction"] == "none" else 1.0
    back = fx.softmax_cross_entropy_backward(upstream, z, y, lse, backend=backend, **options)
    assert_close(back, grad, dtype, scale=np.abs(grad).max(initial=0), ulps=4)


@given(case=problems(soft=False))
def test_labels_are_their_one_hot(backend, case):
    """The same loss, and the same gradient to its rounding, with smoothing and weights."""
    z, y, dtype, rng = case
    n, k = z.shape
    live = y != -100
    hot = np.zeros((n, k), dtype)
    hot[np.arange(n)[live], y[live]] = 1
    v = rng.uniform(0.5, 2, n).astype(dtype)
    for options in ({}, dict(label_smoothing=0.1), dict(class_weight=rng.uniform(0.5, 2, k).astype(dtype))):
        for reduction in ("mean", "sum", "mean_all"):
            a = fx.softmax_cross_entropy_with_grad(
                z, y, sample_weight=v, reduction=reduction, backend=backend, **options
            )
            b = fx.softmax_cross_entropy_with_grad(
                z, hot, sample_weight=v * live, reduction=reduction, backend=backend, **options
            )
            assert_close(a[0], b[0], dtype, scale=0)
            assert_close(a[1], b[1], dtype, scale=2)


@given(z=st.lists(st.floats(-700, 700), min_size=1, max_size=20), dtype=st.sampled_from(DTYPES))
def test_two_classes_are_the_sigmoid(backend, z, dtype):
    """softmax([0, z]) is sigma(z): loss and gradient of both doors agree, in the tails too."""
    z = np.array(z, dtype)
    if dtype == "float32":
        z = z / 10
    y = np.arange(len(z)) % 2
    a, ga = fx.softmax_cross_entropy_with_grad(
        np.stack([np.zeros_like(z), z], 1), y, reduction="none", backend=backend
    )
    b, gb = fx.sigmoid_cross_entropy_with_grad(z, y, reduction="none", backend=backend)
    tiny = np.finfo(dtype).tiny
    assert_allclose(a, b, rtol=8 * np.finfo(dtype).eps, atol=tiny)
    assert_allclose(ga[:, 1], gb, rtol=10 * np.finfo(dtype).eps, atol=tiny)


@given(case=problems(soft=False, ignored=False, min_rows=2), data=st.data())
def test_ignored_row_is_a_deleted_row(backend, case, data):
    z, y, dtype, _ = case
    drop = np.array(data.draw(st.lists(st.booleans(), min_size=len(z), max_size=len(z))))
    masked = np.where(drop, -100, y)
    for reduction in ("mean", "sum", "mean_rows"):
        loss, grad = fx.softmax_cross_entropy_with_grad(z, masked, reduction=reduction, backend=backend)
        kept, rest = fx.softmax_cross_entropy_with_grad(
            z[~drop], y[~drop], reduction=reduction, backend=backend
        )
        assert_close(loss, kept, dtype, scale=0, ulps=4)
        assert_close(grad[~drop], rest, dtype, scale=0, ulps=4)
        assert_array_equal(grad[drop], 0)


@given(case=problems(), data=st.data())
def test_weight_k_is_a_row_repeated_k_times(backend, case, data):
    z, y, dtype, rng = case
    times = np.array(data.draw(st.lists(st.integers(0, 4), min_size=len(z), max_size=len(z))))
    w = rng.uniform(0.5, 2, z.shape[1]).astype(dtype)
    for reduction in ("mean", "sum"):
        options = dict(class_weight=w, reduction=reduction, label_smoothing=0.1, backend=backend)
        loss, grad = fx.softmax_cross_entropy_with_grad(z, y, sample_weight=times, **options)
        again, parts = fx.softmax_cross_entropy_with_grad(
            np.repeat(z, times, 0), np.repeat(y, times, 0), **options
        )
        assert_close(loss, again, dtype, scale=0)
        summed = np.zeros(z.shape)
        np.add.at(summed, np.repeat(np.arange(len(z)), times), parts)
        truth = reference.softmax(
            z, y, sample_weight=times, class_weight=w, reduction=reduction, label_smoothing=0.1
        )
        assert_close(grad, summed, dtype, scale=truth.scale.max(initial=0))


@given(case=problems(), shift=st.sampled_from([-512.0, -3.0, 0.5, 64.0]))
def test_adding_a_constant_changes_nothing(backend, case, shift):
    """Where the shift is exact in the dtype, to rounding; elsewhere to the rounding of the shifted logits."""
    z, y, dtype, _ = case
    moved = z + np.asarray(shift, dtype)
    slack = np.abs(moved - np.asarray(shift, dtype) - z).max() + 64 * np.finfo(dtype).eps
    a, ga = fx.softmax_cross_entropy_with_grad(z, y, reduction="sum", backend=backend)
    b, gb = fx.softmax_cross_entropy_with_grad(moved, y, reduction="sum", backend=backend)
    mass = 2.0 * len(z)
    assert_allclose(a, b, rtol=64 * np.finfo(dtype).eps, atol=4 * mass * slack)
    assert_allclose(ga, gb, rtol=0, atol=8 * slack)


@given(case=problems())
def test_gradient_rows_sum_to_zero(backend, case):
    z, y, dtype, rng = case
    w = rng.uniform(0.5, 2, z.shape[1]).astype(dtype)
    for options in ({}, dict(class_weight=w), dict(label_smoothing=0.2)):
        _, grad = fx.softmax_cross_entropy_with_grad(z, y, reduction="sum", backend=backend, **options)
        sums = grad.sum(axis=1, dtype=np.float64)
        terms = np.abs(grad)
        if options.get("label_smoothing") or y.ndim == 2:
            terms = reference.softmax(z, y, reduction="sum", **options).scale
        assert (np.abs(sums) <= 16 * np.finfo(dtype).eps * terms.sum(axis=1, dtype=np.float64)).all()


@given(case=problems(), data=st.data())
def test_permuting_classes_permutes_the_gradient(backend, case, data):
    z, y, dtype, rng = case
    order = np.array(data.draw(st.permutations(range(z.shape[1]))))
    w = rng.uniform(0.5, 2, z.shape[1]).astype(dtype)
    if y.ndim == 1:
        back = np.argsort(order)
        moved = np.where(y == -100, -100, back[np.where(y == -100, 0, y)])
    else:
        moved = y[:, order]
    options = dict(label_smoothing=0.1, z_loss=1e-3, backend=backend)
    a, ga = fx.softmax_cross_entropy_with_grad(z, y, class_weight=w, **options)
    b, gb = fx.softmax_cross_entropy_with_grad(z[:, order], moved, class_weight=w[order], **options)
    assert_close(a, b, dtype, scale=0)
    lse = np.abs(z).max() + 3
    assert_close(ga[:, order], gb, dtype, scale=np.abs(ga).max(initial=0) + 1e-3 * lse)


@given(case=problems(min_rows=2), cut=st.integers(1, 5))
def test_chunks_are_the_whole(backend, case, cut):
    """Row by row the same bits, whatever rows lie beside it in the call."""
    z, y, _, _ = case
    whole, grad = fx.softmax_cross_entropy_with_grad(z, y, reduction="none", backend=backend)
    losses, grads = zip(
        *(
            fx.softmax_cross_entropy_with_grad(z[part], y[part], reduction="none", backend=backend)
            for part in (slice(0, cut), slice(cut, None))
        ),
        strict=True,
    )
    assert_array_equal(np.concatenate(losses), whole)
    assert_array_equal(np.concatenate(grads), grad)


@given(case=problems(soft=True))
def test_cross_entropy_is_entropy_plus_divergence(backend, case):
    """CE(t, p) = H(t) + KL(t, p) for t that sums to 1, with H and KL from the textbook."""
    z, y, _dtype, _ = case
    t = y.astype(float) + 1e-3
    t /= t.sum(axis=1, keepdims=True)
    losses, lse = fx.softmax_cross_entropy_forward(z.astype(float), t, reduction="none", backend=backend)
    log_p = z.astype(float) - lse[:, None]
    entropy = -(t * np.log(t)).sum(axis=1)
    divergence = (t * (np.log(t) - log_p)).sum(axis=1)
    assert (divergence >= -1e-10 * (1 + np.abs(z).max())).all()
    assert_allclose(losses, entropy + divergence, rtol=1e-12, atol=1e-11 * (1 + np.abs(z).max()))


@given(case=compositions())
def test_losses_are_not_negative(backend, case):
    """Every term of the stable form is at least 0, as the weights here are."""
    z, y, _, options = case
    loss = fx.softmax_cross_entropy(z, y, backend=backend, **options)
    assert np.all(np.asarray(loss) >= 0)


@given(
    z=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from(DTYPES),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    weighted=st.booleans(),
    hard=st.booleans(),
)
def test_any_sigmoid_against_mpmath(backend, z, seed, dtype, smoothing, reduction, weighted, hard):
    rng = np.random.default_rng(seed)
    z = np.array(z, dtype)
    y = rng.integers(0, 2, z.shape) if hard else rng.uniform(size=z.shape).astype(dtype)
    options = dict(label_smoothing=smoothing, reduction=reduction)
    if weighted:
        options["sample_weight"] = (rng.uniform(0, 2, z.shape) * (rng.random(z.shape) < 0.8)).astype(dtype)
        options["pos_weight"] = rng.uniform(0, 4, z.shape).astype(dtype)
    truth = reference.sigmoid(z, y, exact=True, **options)
    loss, grad = fx.sigmoid_cross_entropy_with_grad(z, y, backend=backend, **options)
    if reduction == "none":
        assert reference.worst(loss, truth.losses) <= ULPS
    else:
        assert reference.worst(loss, truth.loss, dtype=dtype) <= ULPS
    assert reference.worst(grad, truth.grad, truth.scale) <= ULPS
    assert_array_equal(fx.sigmoid_cross_entropy(z, y, backend=backend, **options), loss)


@given(z=st.floats(-800, 800), y=st.booleans())
def test_sigmoid_symmetry(backend, z, y):
    """L(z, y) = L(-z, 1 - y), the gradient changes its sign: the same bits, both come from exp(-|z|)."""
    a, ga = fx.sigmoid_cross_entropy_with_grad(z, y, backend=backend)
    b, gb = fx.sigmoid_cross_entropy_with_grad(-z, not y, backend=backend)
    assert a == b
    assert ga == -gb


@given(p=st.floats(0, 1), y=st.floats(0, 1))
def test_binary_against_mpmath(backend, p, y):
    truth = reference.binary(p, y, reduction="sum", exact=True)
    loss, grad = fx.binary_cross_entropy_with_grad(p, y, reduction="sum", backend=backend)
    assert reference.worst(np.float64(loss), truth.loss) <= ULPS
    assert reference.worst(np.asarray(grad), truth.grad, truth.scale) <= ULPS


@pytest.mark.parametrize("family", ["softmax", "sigmoid"])
@given(case=problems(soft=True))
def test_convexity_along_a_line(backend, family, case):
    """Without z-loss both families are convex: the loss in the middle is at most the mean of the ends."""
    z, y, _dtype, rng = case
    z = z.astype(float)
    other = z + rng.normal(size=z.shape)
    if family == "softmax":
        t, call = y.astype(float), fx.softmax_cross_entropy
    else:
        t, call = np.clip(y, 0, 1).astype(float), fx.sigmoid_cross_entropy
    ends = [call(a, t, reduction="sum", backend=backend) for a in (z, other)]
    middle = call((z + other) / 2, t, reduction="sum", backend=backend)
    assert middle <= sum(ends) / 2 + 1e-12 * (1 + np.abs(z).max()) * z.size
