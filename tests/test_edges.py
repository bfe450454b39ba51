"""Inputs and edges: every row of the table of guarantees, on every backend.

Softmax doors mostly; sigmoid and binary edges that are theirs alone stand in test_sigmoid.py and
test_binary.py.
"""

from __future__ import annotations

import dataclasses
import functools
import sys

import numpy as np
import pytest
import reference
from numpy.testing import assert_allclose, assert_array_equal
from scipy import special

import fastxent as fx

INT_DTYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
# The doors that read labels, each as a function of (logits, targets, **options).
DOORS = {
    "loss": fx.softmax_cross_entropy,
    "with_grad": fx.softmax_cross_entropy_with_grad,
    "forward": fx.softmax_cross_entropy_forward,
    "backward": functools.partial(fx.softmax_cross_entropy_backward, 1.0),
}


@pytest.fixture(params=sorted(DOORS))
def door(request, backend):
    return functools.partial(DOORS[request.param], backend=backend)


def normal(shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def assert_close(actual, expected, dtype):
    """Loss and gradient of labels by two ways of summing: each is within 6 ulp of the truth."""
    rtol = 12 * np.finfo(dtype).eps
    assert_allclose(actual[0], expected[0], rtol=rtol)
    assert_allclose(np.asarray(actual[1]), expected[1], rtol=rtol, atol=np.finfo(dtype).tiny)


def assert_same(actual, z, y, dtype="float64", **options):
    """(loss, grad) against the oracle on plain copies of the arrays."""
    truth = reference.softmax(np.array(z, "float64"), np.array(y), **options)
    unit = np.finfo(dtype).eps
    assert_allclose(actual[0], truth.loss, rtol=8 * unit)
    assert_allclose(
        np.asarray(actual[1], float), truth.grad, rtol=8 * unit, atol=unit * np.abs(truth.scale).max()
    )


# Labels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [5, 6, -1, -101, 127, -128])
@pytest.mark.parametrize("code", ["int8", "int64"])
def test_label_out_of_range(door, bad, code):
    """ValueError naming the first bad row and its value, for one bad row and for one of several."""
    z = normal((70, 5))
    y = np.zeros(70, code)
    y[33] = bad
    y[50] = -7
    for reduction in ("mean", "sum", "mean_rows", "mean_all"):
        with pytest.raises(ValueError, match=r"targets") as caught:
            door(z, y, reduction=reduction)
        message = str(caught.value)
        assert "33" in message
        assert str(bad) in message
        assert "5" in message


def test_label_out_of_range_in_more_dimensions(door):
    """The row is named by its index in the targets, wherever the class axis stands."""
    z = normal((2, 5, 3, 4))
    y = np.zeros((2, 3, 4), int)
    y[1, 2, 3] = 9
    with pytest.raises(ValueError, match=r"1, 2, 3.*9"):
        door(z, y, axis=1)
    with pytest.raises(ValueError, match=r"targets.*7"):
        door(normal(5), 7)


def test_ignore_index_none_makes_every_label_count(door):
    with pytest.raises(ValueError, match=r"1.*-100"):
        door(normal((3, 4)), [0, -100, 1], ignore_index=None)
    with pytest.raises(ValueError, match=r"1.*-100"):
        door(normal((3, 4)), [0, -100, 1], ignore_index=-1)


@pytest.mark.parametrize("n_classes", [3, 40, 300])
@pytest.mark.parametrize("bad", [-1, -100, 2**31, 2**63 - 1, -(2**63)])
def test_unchecked_bad_label_is_a_nan_row(backend, dtype, bad, n_classes):
    """check=False: that row is NaN, memory is safe, other rows are exact. Few classes, one block, more."""
    z = normal((40, n_classes), dtype)
    y = np.random.default_rng(1).integers(0, n_classes, 40)
    y[17] = bad
    options = dict(reduction="none", ignore_index=None, check=False, backend=backend)
    losses, grad = fx.softmax_cross_entropy_with_grad(z, y, **options)
    assert np.isnan(losses[17])
    assert np.isnan(grad[17]).all()
    keep = np.arange(40) != 17
    expected = fx.softmax_cross_entropy_with_grad(z[keep], y[keep], reduction="none", backend=backend)
    assert_array_equal(losses[keep], expected[0])
    assert_array_equal(grad[keep], expected[1])
    assert np.isnan(fx.softmax_cross_entropy(z, y, ignore_index=None, check=False, backend=backend))


@pytest.mark.parametrize("code", ["bool", *INT_DTYPES])
def test_label_dtypes(backend, dtype, code):
    """Any integer dtype and bool: the same bits as int64, contiguous or not."""
    n_classes = 2 if code == "bool" else 9
    z = normal((70, n_classes), dtype)
    y = np.random.default_rng(1).integers(0, n_classes, 140)
    expected = fx.softmax_cross_entropy_with_grad(z, y[::2], backend=backend)
    for labels in (y[::2].astype(code), y.astype(code)[::2], y[::2].astype(code)[::-1].copy()[::-1]):
        loss, grad = fx.softmax_cross_entropy_with_grad(z, labels, backend=backend)
        assert loss == expected[0]
        assert_array_equal(grad, expected[1])


def test_unsigned_labels_do_not_wrap(door):
    """2^64 - 100 is not -100, 2^64 - 1 is not -1, and the message shows the number that was given."""
    for value in (2**64 - 100, 2**64 - 1, 2**63):
        with pytest.raises(ValueError, match=r"targets") as caught:
            door(normal((3, 4)), np.array([0, value, 1], np.uint64))
        assert str(value) in str(caught.value)


def test_ignore_index_does_not_wrap(backend):
    """156 is -100 in eight bits: a class among 200, not the ignored label; and -1 in int8 is not 255."""
    z = normal((3, 200))
    y = np.array([156, 0, 199], np.uint8)
    assert_same(fx.softmax_cross_entropy_with_grad(z, y, backend=backend), z, y)
    with pytest.raises(ValueError, match="-1"):
        fx.softmax_cross_entropy(z, np.array([0, -1, 3], np.int8), ignore_index=255, backend=backend)


def test_ignore_index_beyond_the_label_dtype(backend):
    z, y = normal((3, 4)), np.array([0, 3, 1], np.uint8)
    for ignore in (-100, 1000, 2**70, -(2**70)):
        assert_same(fx.softmax_cross_entropy_with_grad(z, y, ignore_index=ignore, backend=backend), z, y)


@pytest.mark.parametrize("ignore", [2**63, 2**70, -(2**70)])
def test_ignore_index_beyond_every_integer(backend, ignore):
    """Bools, which NumPy compares with no such number, in every method that looks for ignored rows."""
    z, y = normal((3, 2)), np.array([True, False, True])
    for loss in (
        fx.SoftmaxCrossEntropy(ignore_index=ignore),
        fx.BootstrappingLoss(0.9, True, ignore_index=ignore),
    ):
        plain = dataclasses.replace(loss, ignore_index=None)
        for method in ("loss_grad", "grad_hess"):
            for a, b in zip(*(getattr(f, method)(z, y, backend=backend) for f in (loss, plain)), strict=True):
                assert_array_equal(a, b)


@pytest.mark.parametrize("ignore", [-100, -1, 2, 255])
def test_ignored_rows(backend, dtype, ignore):
    """Loss 0 and gradient exactly 0 whatever the logits are, a class label or not."""
    z = normal((5, 4), dtype)
    z[1] = [np.nan, np.inf, -np.inf, 0]
    z[3] = np.nan
    y = np.array([0, ignore, 3, ignore, 1])
    losses, grad = fx.softmax_cross_entropy_with_grad(
        z, y, ignore_index=ignore, reduction="none", label_smoothing=0.1, z_loss=1e-3, backend=backend
    )
    assert_array_equal(losses[[1, 3]], 0)
    assert_array_equal(grad[[1, 3]], 0)
    live = [0, 2, 4]
    rest = fx.softmax_cross_entropy_with_grad(
        z[live], y[live], reduction="none", label_smoothing=0.1, z_loss=1e-3, backend=backend
    )
    assert_array_equal(losses[live], rest[0])
    assert_array_equal(grad[live], rest[1])


@pytest.mark.parametrize("rows", [[300], range(0, 768, 5), range(256, 512)], ids=["one", "many", "a block"])
@pytest.mark.parametrize("ignore", [1, -100])
@pytest.mark.parametrize("n_classes", [2, 3, 5, 10, 30, 100])
def test_blocks_with_rows_that_do_not_count(backend, dtype, n_classes, ignore, rows):
    """Whole blocks of rows, some of which are ignored, by a class or by another label: the others' bits stay."""
    z = normal((768, n_classes), dtype)
    y = np.random.default_rng(1).choice([k for k in range(n_classes) if k != ignore], 768)
    losses, grad = fx.softmax_cross_entropy_with_grad(z, y, reduction="none", backend=backend)
    dead = np.isin(np.arange(768), rows)
    y[dead] = ignore
    options = dict(ignore_index=ignore, backend=backend)
    found, slope = fx.softmax_cross_entropy_with_grad(z, y, reduction="none", **options)
    assert_array_equal(found, np.where(dead, 0, losses))
    assert_array_equal(slope, np.where(dead[:, None], 0, grad))
    loss, slope = fx.softmax_cross_entropy_with_grad(z, y, **options)
    live = np.sum(~dead)
    eps = np.finfo(dtype).eps
    assert_allclose(loss, losses[~dead].sum(dtype="float64") / live, rtol=4 * eps)
    assert_allclose(slope, np.where(dead[:, None], 0, grad / live), rtol=4 * eps, atol=0)


@pytest.mark.parametrize("nothing", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("targets", ["ignored", "labels", "soft", "smoothed"])
@pytest.mark.parametrize("n_classes", [2, 3, 4, 7, 10, 30, 100])
def test_blocks_with_hostile_rows_that_do_not_count(backend, dtype, n_classes, targets, nothing):
    """A row that is ignored or weighs nothing is 0, whatever logit of it is not finite, and the others' bits stay."""
    n = 280
    z, rng = normal((n, n_classes), dtype), np.random.default_rng(2)
    y, dead = rng.integers(0, n_classes, n), rng.random(n) < 0.1
    t = rng.dirichlet(np.ones(n_classes), n).astype(dtype) if targets == "soft" else y
    options = dict(reduction="none", label_smoothing=0.1 if targets == "smoothed" else 0.0, backend=backend)
    expected = fx.softmax_cross_entropy_with_grad(z, t, **options)
    for rows in (n, 1):
        hostile = z.copy()
        hostile[dead, rng.integers(0, n_classes, n)[dead]] = nothing
        if targets == "ignored":
            labels, weight = np.where(dead, -100, y), None
        else:
            labels, weight = t, np.where(dead, 0, np.ones(n)).astype(dtype)
        for begin in range(0, n, rows):
            part = slice(begin, begin + rows)
            v = None if weight is None else weight[part]
            loss, grad = fx.softmax_cross_entropy_with_grad(
                hostile[part], labels[part], sample_weight=v, **options
            )
            assert_array_equal(loss, np.where(dead[part], 0, expected[0][part]))
            assert_array_equal(grad, np.where(dead[part, None], 0, expected[1][part]))


@pytest.mark.parametrize("kind", ["int32", "uint8", "big-endian", "strided", "reversed", "unaligned"])
@pytest.mark.parametrize("n_classes", [2, 3, 5, 30])
def test_blocks_of_labels_of_any_kind(backend, dtype, n_classes, kind):
    """However labels are stored, the bits are those of int64 in one piece; a wrong one is found in any block."""
    z = normal((800, n_classes), dtype)
    y = np.random.default_rng(1).integers(0, n_classes, 800)
    make = {
        "strided": lambda y: np.repeat(y, 2)[::2],
        "reversed": lambda y: y[::-1].copy()[::-1],
        "unaligned": lambda y: np.frombuffer(b"x" + y.tobytes(), np.int64, offset=1),
        "big-endian": lambda y: y.astype(">i8"),
    }.get(kind, lambda y: y.astype(kind))
    expected = fx.softmax_cross_entropy_with_grad(z, y, backend=backend)
    loss, grad = fx.softmax_cross_entropy_with_grad(z, make(y), backend=backend)
    assert loss == expected[0]
    assert_array_equal(grad, expected[1])
    y[[511, 600]] = n_classes
    with pytest.raises(ValueError, match=rf"targets\[511\] = {n_classes} "):
        fx.softmax_cross_entropy_with_grad(z, make(y), backend=backend)
    loss, grad = fx.softmax_cross_entropy_with_grad(z, make(y), check=False, backend=backend)
    assert np.isnan(loss)
    assert_array_equal(np.isnan(grad).all(1), np.isin(np.arange(800), [511, 600]))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("n_classes", [1, 2, 5, 40, 200, 2000])
def test_log_sum_exp_of_rows_that_do_not_count(backend, dtype, n_classes, order):
    """It is a number of the logits alone: for an ignored row, or one of weight 0, it is that of any other row."""
    z = normal((6, n_classes), dtype)
    z[[1, 3, 5], -1] = [np.inf, np.nan, np.inf]
    z, y = np.asarray(z, order=order), np.zeros(6, int)
    losses, lse = fx.softmax_cross_entropy_forward(z, y, reduction="none", backend=backend)
    v = np.array([1, 0, 0, 0, 0, 1])
    for options in (dict(sample_weight=v), dict(ignore_index=0)):
        none, same = fx.softmax_cross_entropy_forward(z, y, reduction="none", backend=backend, **options)
        assert_array_equal(same, lse)
        assert_array_equal(none, np.where(v == 0, 0, losses) if "sample_weight" in options else np.zeros(6))
    assert_array_equal(lse[[1, 3, 5]], [np.inf, np.nan, np.inf])


@pytest.mark.parametrize("kind", ["label", "soft"])
def test_rows_of_weight_zero(backend, dtype, kind):
    """What ignore_index is to labels, weight 0 is to soft targets: the row is gone, NaN or not."""
    z = normal((4, 3), dtype)
    z[2] = [np.nan, np.inf, 0]
    y = np.array([0, 1, 2, 1]) if kind == "label" else np.full((4, 3), 1 / 3)
    v = np.array([1, 2, 0, 0.5])
    for reduction in ("mean", "sum", "mean_all"):
        loss, grad = fx.softmax_cross_entropy_with_grad(
            z, y, sample_weight=v, reduction=reduction, backend=backend
        )
        live = v > 0
        kept, rest = fx.softmax_cross_entropy_with_grad(
            z[live], y[live], sample_weight=v[live], reduction="sum", backend=backend
        )
        divisor = {"mean": 3.5, "sum": 1, "mean_all": 4}[reduction]
        assert_allclose(loss, kept / divisor, rtol=4 * np.finfo(dtype).eps)
        assert_array_equal(grad[2], 0)
        terms = reference.softmax(z[live], y[live], sample_weight=v[live], reduction="sum").scale
        assert (np.abs(grad[live] - rest / divisor) <= 8 * np.finfo(dtype).eps * terms / divisor).all()


@pytest.mark.parametrize("labels", [[1.5, 0.0, 1.0], [1.0, 0.0, 1.0], np.array([0, 1, 1], np.float32)])
def test_float_labels_are_refused(door, labels):
    """1.5 is not a class, and 1.0 is not an integer unless the array has the shape of the logits."""
    with pytest.raises((TypeError, ValueError), match=r"targets.*integer.*float"):
        door(normal((3, 4)), labels)


@pytest.mark.parametrize("labels", [["a", "b", "c"], [None, 1, 2], [1j, 0, 1], np.array([0, 1, 2], "M8[D]")])
def test_labels_that_are_not_numbers(door, labels):
    with pytest.raises((TypeError, ValueError), match="targets"):
        door(normal((3, 4)), labels)


def test_labels_that_start_at_one(door):
    """1 ... K: the error asks. 0 ... K with a 0 among them does not."""
    z = normal((6, 4))
    with pytest.raises(ValueError, match=r"4.*start at 1"):
        door(z, [1, 2, 3, 4, 1, 2])
    with pytest.raises(ValueError, match="4") as caught:
        door(z, [0, 2, 3, 4, 1, 2])
    assert "start at 1" not in str(caught.value)


# Soft targets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["float16", "float32", "float64", "int64", "uint8", "bool"])
def test_soft_targets_of_any_real_dtype(backend, code):
    """The shape of the logits makes them soft; they are used as given, whatever they sum to. Integers are 0 or 1."""
    z = normal((5, 4))
    t = np.abs(normal((5, 4), seed=2) * 3).astype(code)
    if t.dtype.kind in "iu":
        t = np.minimum(t, 1)
    assert_same(fx.softmax_cross_entropy_with_grad(z, t, backend=backend), z, t)


@pytest.mark.parametrize("n_classes", [3, 20, 300])
@pytest.mark.parametrize("bad", [-0.25, -1e-30, np.nan, np.inf])
def test_bad_soft_targets(door, bad, n_classes, dtype):
    """In registers, in batches, row by row; in a row of the limits, in a class beyond whole vectors."""
    z = normal((40, n_classes), dtype)
    z[30, 0] = np.inf
    for row, k in ((21, 1), (30, 0), (39, n_classes - 1)):
        t = np.full((40, n_classes), 1 / n_classes)
        t[row, k] = bad
        message = rf"targets\[{row}\]: expected probabilities >= 0 in every class, got .* an infinity or NaN"
        for options in (
            {},
            {"reduction": "sum"},
            {"class_weight": np.arange(n_classes)},
            {"label_smoothing": 1.0},
            {"reduction": "mean_all", "sample_weight": np.arange(40) % row},  # 0 in this row
        ):
            with pytest.raises(ValueError, match=message):
                door(z, t, **options)
            with pytest.raises(ValueError, match=message):  # classes that are not contiguous
                door(z.T, t.T, axis=0, **options)
        door(z, t, check=False)


def test_large_soft_targets_are_no_infinities(backend, dtype):
    """The largest number is used as given, though the sum of two is infinite."""
    most = np.finfo(dtype).max
    for n_classes in (3, 20, 300):
        t = np.full((4, n_classes), most, dtype)
        assert fx.softmax_cross_entropy(normal(t.shape, dtype), t, reduction="sum", backend=backend) > 1e38


@pytest.mark.parametrize("kind", ["label", "soft"])
def test_bad_targets_leave_logits_alone(backend, dtype, kind):
    """With out aliasing logits, targets are checked before the first write. The bad row is the last."""
    for n_classes in (5, 200):
        z = normal((300, n_classes), dtype)
        kept = z.copy()
        y = np.zeros(300, int) if kind == "label" else np.full(z.shape, 0.5)
        y[-1] = -5
        calls = (
            fx.softmax_cross_entropy_with_grad,
            functools.partial(fx.softmax_cross_entropy_backward, 1.0),
        )
        for call in calls:
            for reduction in ("mean", "sum"):
                with pytest.raises(ValueError, match="targets"):
                    call(z, y, out=z, reduction=reduction, backend=backend)
                assert_array_equal(z, kept)


# Nothing, little, much ------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "mean_rows"])
def test_all_rows_ignored(backend, dtype, reduction):
    """0 with zero gradient; empty="nan" gives PyTorch's answer."""
    z, y = normal((3, 4), dtype), np.full(3, -100)
    loss, grad = fx.softmax_cross_entropy_with_grad(z, y, reduction=reduction, backend=backend)
    assert type(loss) is float
    assert loss == 0.0
    assert_array_equal(grad, np.zeros_like(z))
    loss = fx.softmax_cross_entropy(z, y, reduction=reduction, empty="nan", backend=backend)
    assert type(loss) is float
    assert np.isnan(loss)
    assert_array_equal(fx.softmax_cross_entropy_backward(1.0, z, y, reduction=reduction, backend=backend), 0)
    for other in ("sum", "mean_all"):
        assert fx.softmax_cross_entropy(z, y, reduction=other, empty="nan", backend=backend) == 0.0


def test_no_mass(backend):
    """A denominator of 0 by weights: all row weights 0, all class weights 0, soft targets of 0."""
    z = normal((3, 4))
    for y, options in (
        ([0, 1, 2], dict(sample_weight=0.0)),
        ([0, 1, 2], dict(class_weight=np.zeros(4))),
        (np.zeros((3, 4)), {}),
        ([0, 1, 2], dict(sample_weight=[1.0, -1.0, 0.0])),
    ):
        loss, grad = fx.softmax_cross_entropy_with_grad(z, y, backend=backend, **options)
        assert loss == 0.0
        assert_array_equal(grad, 0)
        assert np.isnan(fx.softmax_cross_entropy(z, y, empty="nan", backend=backend, **options))


@pytest.mark.parametrize("shape", [(0, 4), (0, 2, 4), (3, 0, 4)])
@pytest.mark.parametrize("kind", ["label", "soft"])
def test_no_rows(backend, dtype, shape, kind):
    z = np.empty(shape, dtype)
    y = np.empty(shape[:-1], int) if kind == "label" else np.empty(shape, dtype)
    for reduction in ("mean", "mean_rows", "mean_all", "sum"):
        loss, grad = fx.softmax_cross_entropy_with_grad(z, y, reduction=reduction, backend=backend)
        assert loss == 0.0
        assert grad.shape == shape
        assert grad.dtype == dtype
        nan = fx.softmax_cross_entropy(z, y, reduction=reduction, empty="nan", backend=backend)
        assert nan == 0.0 if reduction == "sum" else np.isnan(nan)
    losses, lse = fx.softmax_cross_entropy_forward(z, y, reduction="none", backend=backend)
    assert losses.shape == lse.shape == shape[:-1]
    assert losses.dtype == dtype


def test_no_rows_with_the_classes_first(backend):
    loss, grad = fx.softmax_cross_entropy_with_grad(
        np.empty((4, 0)), np.empty(0, int), axis=0, backend=backend
    )
    assert loss == 0.0
    assert grad.shape == (4, 0)
    assert fx.softmax_cross_entropy(np.empty((0, 3)), [], backend=backend) == 0.0


@pytest.mark.parametrize("shape", [(3, 0), (0, 0), (0,)])
def test_no_classes(door, shape):
    with pytest.raises(ValueError, match=r"logits.*class.*\b0\b"):
        door(np.empty(shape), np.empty(shape[:-1], int))


def test_logits_without_dimensions(door):
    with pytest.raises(ValueError, match="logits"):
        door(1.0, 0)


def test_one_row_and_one_class(backend, dtype):
    """K = 1: the only class has probability 1, whatever its logit; z-loss still pulls."""
    z = np.array([[3.0], [-200.0]], dtype)
    loss, grad = fx.softmax_cross_entropy_with_grad(z, [0, 0], backend=backend)
    assert loss == 0.0
    assert_array_equal(grad, 0)
    loss, grad = fx.softmax_cross_entropy_with_grad(z, [0, 0], label_smoothing=0.25, backend=backend)
    assert loss == 0.0
    assert_array_equal(grad, 0)
    loss, grad = fx.softmax_cross_entropy_with_grad(z, [[0.3], [7.0]], temperature=1e-3, backend=backend)
    assert loss == 0.0
    assert_array_equal(grad, 0)
    truth = reference.softmax(z, [0, 0], z_loss=0.5)
    loss, grad = fx.softmax_cross_entropy_with_grad(z, [0, 0], z_loss=0.5, backend=backend)
    assert_allclose(loss, truth.loss, rtol=4 * np.finfo(dtype).eps)
    assert_allclose(grad, truth.grad, rtol=4 * np.finfo(dtype).eps)
    with pytest.raises(ValueError, match="targets"):
        fx.softmax_cross_entropy(z, [0, 1], backend=backend)


def test_exclude_target_of_one_class(backend):
    """There is no other class to spread over: finite, and no gradient."""
    loss, grad = fx.softmax_cross_entropy_with_grad(
        [[3.0]], [0], label_smoothing=0.25, smoothing="exclude_target", backend=backend
    )
    assert loss == 0.0
    assert grad[0, 0] == 0.0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("k", [5, 20, 100, 300, 1100])
def test_smoothing_may_leave_the_label_nothing(k, dtype, backend):
    """A label whose logit is far below the others, whose share is none or the least: no sum cancels."""
    rng = np.random.default_rng(9)
    y = rng.integers(0, k, 40)
    w = rng.uniform(0.5, 2, k).astype(dtype)
    w[::3] = 0
    for low in (-1e3, -1e8, -1e30, -np.inf):
        for s in (1.0, 0.9999):
            z = rng.normal(0, 3, (40, k)).astype(dtype)
            z[np.arange(40), y] = low
            own = np.arange(k) == y[:, None]
            for weights in (None, w):
                q = np.where(own, 1 - s, s / (k - 1)) * (1 if weights is None else weights.astype(np.float64))
                u = z.astype(np.float64)
                far = special.logsumexp(u, axis=1, keepdims=True) - u
                expected = np.where(q > 0, q * np.where(q > 0, far, 0), 0).sum(axis=1)
                options = {"label_smoothing": s, "smoothing": "exclude_target", "class_weight": weights}
                layouts = (
                    (z, 1),
                    (np.asfortranarray(z), 1),
                    (np.repeat(z, 2, axis=1)[:, ::2], 1),
                    (z.T.copy(), 0),
                )
                for logits, axis in layouts:
                    loss, _ = fx.softmax_cross_entropy_with_grad(
                        logits, y, axis=axis, reduction="none", backend=backend, **options
                    )
                    assert_allclose(loss, expected, rtol=16 * np.finfo(dtype).eps)
                    alone = fx.softmax_cross_entropy(
                        logits, y, axis=axis, reduction="none", backend=backend, **options
                    )
                    assert_allclose(alone, expected, rtol=16 * np.finfo(dtype).eps)


# NaN and infinities ---------------------------------------------------------------------------------------

WIDTHS = (2, 3, 5, 10, 16, 26, 40, 64, 65, 100, 257)


@functools.cache
def limits(dtype, n_classes):
    """The limits beside ordinary rows, the last of them NaN at its end; 40 rows where rows come in blocks."""
    inf, nan = np.inf, np.nan
    n_rows = 40 if n_classes <= 64 else 18
    rng = np.random.default_rng(n_classes)
    z = rng.normal(size=(n_rows, n_classes)).astype(dtype)
    y = rng.integers(0, n_classes, n_rows)
    last = n_classes - 1
    z[1, n_classes // 2] = nan
    z[2, 0] = nan
    z[3] = -inf
    z[4, 1], y[4] = inf, 1
    z[5, 1], y[5] = inf, 0
    z[6, 0] = z[6, 1] = inf
    z[7, 1], y[7] = -inf, 0
    z[8, 1], y[8] = -inf, 1
    z[9] = nan
    z[10, 0], z[10, 1] = inf, nan
    z[11, 1:], y[11] = -inf, 0
    z[12] = 1e8 if dtype == "float32" else 1e15
    z[13], y[13] = -inf, last
    z[13, last] = 5
    z[14], y[14] = 0, 0
    z[14, 0] = 200
    z[15], y[15] = -200, 1
    z[15, 0] = 0
    z[-1, last] = nan
    is_nan = np.zeros(n_rows, bool)
    is_nan[[1, 2, 3, 6, 9, 10, -1]] = True
    return z, y, is_nan, reference.softmax(z, y, reduction="sum", exact=True)


@pytest.mark.parametrize("n_classes", WIDTHS)
def test_limits(backend, dtype, n_classes):
    """The limits in one batch, over the widths of every branch: loss, gradient and curvature."""
    z, y, is_nan, truth = limits(dtype, n_classes)
    losses, grad = fx.softmax_cross_entropy_with_grad(z, y, reduction="none", backend=backend)
    assert_array_equal(np.isnan(losses), is_nan)
    assert_array_equal(np.isnan(grad), np.broadcast_to(is_nan[:, None], z.shape))
    assert reference.worst(losses, truth.losses) <= 8
    assert reference.worst(grad, truth.grad) <= 8
    assert losses[4] == losses[11] == losses[13] == 0
    assert losses[5] == losses[8] == np.inf
    assert_array_equal(grad[5, :2], [-1, 1])
    assert grad[7, 1] == 0
    _, hess = fx.SoftmaxCrossEntropy().grad_hess(z, y, reduction="sum", backend=backend)
    assert_array_equal(np.isnan(hess), np.isnan(grad))
    assert reference.worst(hess, truth.hess, truth.hess_scale) <= 8


def test_nan_row_is_alone_in_the_mean_gradient(backend, dtype):
    """The loss of the batch is NaN; the gradients of the other rows are the exact ones."""
    z = normal((6, 4), dtype)
    y = np.array([0, 1, 2, 3, 0, 1])
    expected = fx.softmax_cross_entropy_with_grad(z, y, backend=backend)[1]
    z[2, 1] = np.nan
    loss, grad = fx.softmax_cross_entropy_with_grad(z, y, backend=backend)
    assert np.isnan(loss)
    keep = [0, 1, 3, 4, 5]
    assert_array_equal(grad[keep], expected[keep])
    assert np.isnan(grad[2]).all()


def test_soft_zero_times_minus_infinity_is_zero(backend, dtype):
    inf = np.inf
    z = np.array([[1, -inf, 2], [1, -inf, 2], [0, -inf, -inf], [inf, 0, 0]], dtype)
    t = np.array([[0.5, 0, 0.5], [0.25, 0.25, 0.5], [1, 0, 0], [1, 0, 0]], dtype)
    truth = reference.softmax(z, t, reduction="sum", exact=True)
    losses, grad = fx.softmax_cross_entropy_with_grad(z, t, reduction="none", backend=backend)
    assert np.isfinite(losses[0])
    assert losses[1] == inf
    assert losses[2] == losses[3] == 0
    assert np.isfinite(grad).all()
    assert reference.worst(losses, truth.losses) <= 8
    assert reference.worst(grad, truth.grad, truth.scale) <= 8


def test_zero_class_weight_annihilates_an_infinite_term(backend, dtype):
    """q_k = 0 with u_k = -inf contributes 0 where the zero comes from a weight, too."""
    inf = np.inf
    z = np.array([[1, -inf, 2]], dtype)
    loss, grad = fx.softmax_cross_entropy_with_grad(
        z, [1], class_weight=[1, 0, 1], reduction="sum", backend=backend
    )
    assert loss == 0
    assert_array_equal(grad, 0)
    smoothed = fx.softmax_cross_entropy(
        z, [0], class_weight=[1, 0, 1], label_smoothing=0.1, reduction="sum", backend=backend
    )
    truth = reference.softmax(z, [0], class_weight=[1, 0, 1], label_smoothing=0.1, reduction="sum")
    assert np.isfinite(smoothed)
    assert_allclose(smoothed, truth.loss, rtol=8 * np.finfo(dtype).eps)


def test_masked_classes_by_bias(backend, dtype):
    """A logit bias of -inf removes a class."""
    z = normal((4, 3), dtype)
    loss, grad = fx.softmax_cross_entropy_with_grad(
        z, [0, 2, 0, 2], logit_bias=[0.0, -np.inf, 0.0], backend=backend
    )
    assert_array_equal(grad[:, 1], 0)
    kept = fx.softmax_cross_entropy_with_grad(z[:, [0, 2]], [0, 1, 0, 1], backend=backend)
    assert_allclose(loss, kept[0], rtol=8 * np.finfo(dtype).eps)
    assert_allclose(grad[:, [0, 2]], kept[1], rtol=8 * np.finfo(dtype).eps)


def test_largest_finite_logits(backend, dtype):
    """u - m overflows to -inf only where exp of it is 0 anyway."""
    big = np.finfo(dtype).max
    z = np.array([[big, -big], [-big, big], [big, big], [-big, -big]], dtype)
    losses, grad = fx.softmax_cross_entropy_with_grad(z, [0, 1, 0, 1], reduction="none", backend=backend)
    assert_array_equal(losses[:2], 0)
    assert_allclose(losses[2:], np.log(2), rtol=2 * np.finfo(dtype).eps)
    assert_array_equal(grad, [[0, 0], [0, 0], [-0.5, 0.5], [0.5, -0.5]])


@pytest.mark.parametrize("n_classes", [2, 5, 40, 300])
def test_gradient_of_the_z_loss_is_scaled_before_it_overflows(backend, dtype, n_classes):
    """2 zeta lse / n is finite though 2 zeta lse times a kernel's guard is not; the square in the loss is infinite."""
    most = {"float32": 2.0**110, "float64": 2.0**1000}[dtype]
    z = np.zeros((4, n_classes), dtype)
    z[:, 1] = most
    for layout in (np.ascontiguousarray, np.asfortranarray):
        for options in ({}, {"label_smoothing": 0.5}):
            loss, grad = fx.softmax_cross_entropy_with_grad(
                layout(z), [0, 1, 1, 0], z_loss=0.5, backend=backend, **options
            )
            assert loss == np.inf
            assert_allclose(grad[:, 1], most / 4, rtol=4 * np.finfo(dtype).eps)


# Logits of other dtypes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["bool", *INT_DTYPES])
def test_integer_logits_are_promoted(backend, code):
    z = np.array([[1, 0, 3], [2, 2, 0]]).astype(code)
    loss, grad = fx.softmax_cross_entropy_with_grad(z, [0, 2], backend=backend)
    assert grad.dtype == np.float64
    assert_same((loss, grad), z, [0, 2])


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("n_classes", [3, 40, 300])
def test_half_precision_logits(backend, half, n_classes):
    """Computed in float32: loss float32, gradient the rounded float32 gradient in the input's dtype."""
    code = np.dtype("float16") if half == "float16" else pytest.importorskip("ml_dtypes").bfloat16
    z = (normal((33, n_classes)) * 4).astype(code)
    y = np.random.default_rng(1).integers(0, n_classes, 33)
    wide = z.astype(np.float32)
    for targets in (y, np.abs(normal(z.shape, seed=5)).astype(np.float32)):
        expected, slope = fx.softmax_cross_entropy_with_grad(
            wide, targets, reduction="none", label_smoothing=0.1, backend=backend
        )
        losses, grad = fx.softmax_cross_entropy_with_grad(
            z, targets, reduction="none", label_smoothing=0.1, backend=backend
        )
        assert losses.dtype == np.float32
        assert grad.dtype == z.dtype
        assert grad.shape == z.shape
        assert_allclose(losses, expected, rtol=4e-7)
        rounding = 2.0**-10 if half == "float16" else 2.0**-7
        assert_allclose(grad.astype(float), slope, rtol=rounding, atol=1e-7)
    kept = z.copy()
    _, grad = fx.softmax_cross_entropy_with_grad(z, y, out=z, backend=backend)
    assert grad is z
    assert_array_equal(grad, fx.softmax_cross_entropy_with_grad(kept, y, backend=backend)[1])


def test_half_precision_sigmoid(backend):
    z = normal(40, "float16")
    y = np.arange(40) % 2
    losses, grad = fx.sigmoid_cross_entropy_with_grad(z, y, reduction="none", backend=backend)
    assert losses.dtype == np.float32
    assert grad.dtype == np.float16
    truth = reference.sigmoid(z, y, reduction="sum")
    assert_allclose(losses, truth.losses, rtol=1e-6)
    assert_allclose(grad.astype(float), truth.grad, rtol=2e-3)


@pytest.mark.parametrize(
    "logits", [[["a", "b"]], [[1j, 0]], np.zeros((1, 2), object), np.zeros((1, 2), "M8[s]"), [[1, 2], [3]]]
)
def test_logits_that_are_not_numbers(door, logits):
    with pytest.raises((TypeError, ValueError), match="logits"):
        door(logits, [0])


# Layouts --------------------------------------------------------------------------------------------------


class OnlyArray:
    """An object that answers __array__ and nothing else."""

    def __init__(self, a):
        self._a = a

    def __array__(self, dtype=None, copy=None):
        return np.array(self._a, dtype=dtype)


class OnlyDLPack:
    """An object that answers the DLPack protocol and nothing else."""

    def __init__(self, a):
        self._a = a

    def __dlpack__(self, **options):
        return self._a.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._a.__dlpack_device__()


def misaligned(a):
    raw = np.zeros(a.nbytes + 1, np.uint8)[1:]
    view = raw.view(a.dtype).reshape(a.shape) if sys.byteorder == "little" else a
    view[...] = a
    return view


def readonly(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def fielded(a):
    """The array as one field of records: strides that are no multiple of its item size."""
    record = np.zeros(a.shape, [("flag", "i1"), ("value", a.dtype)])
    record["value"] = a
    return record["value"]


LAYOUTS = {
    "fortran": np.asfortranarray,
    "reversed rows": lambda a: a[::-1].copy()[::-1],
    "reversed everything": lambda a: a[tuple([slice(None, None, -1)] * a.ndim)].copy()[
        tuple([slice(None, None, -1)] * a.ndim)
    ],
    "every second row": lambda a: np.repeat(a, 2, 0)[::2],
    "every second column": lambda a: np.repeat(a, 2, -1)[..., ::2],
    "inside a larger one": lambda a: np.pad(a, 3)[tuple([slice(3, -3)] * a.ndim)],
    "read-only": readonly,
    "misaligned": misaligned,
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder("S")),
    "field of records": fielded,
    "list": lambda a: a.tolist(),
    "tuple of rows": tuple,
    "__array__": OnlyArray,
    "__dlpack__": OnlyDLPack,
    "memoryview": memoryview,
    "matrix subclass": lambda a: a.view(type("Sub", (np.ndarray,), {})),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n_classes", [5, 130])
def test_layouts_of_logits(backend, dtype, layout, n_classes):
    """Every layout gives the answer of the plain array, leaves the input alone and returns a plain array."""
    plain = normal((40, n_classes), dtype)
    y = np.random.default_rng(1).integers(0, n_classes, 40)
    if layout in ("list", "tuple of rows") and dtype == "float32":
        plain = plain.astype("float64")  # a list of Python floats is float64
    made = LAYOUTS[layout](plain.astype(dtype) if layout == "tuple of rows" else plain)
    if layout == "tuple of rows":
        plain = plain.astype(dtype)
    expected = fx.softmax_cross_entropy_with_grad(plain, y, backend=backend)
    loss, grad = fx.softmax_cross_entropy_with_grad(made, y, backend=backend)
    assert_close((loss, grad), expected, dtype)
    assert type(grad) is np.ndarray
    assert grad.dtype.newbyteorder("=") == plain.dtype
    assert grad.shape == plain.shape
    if isinstance(made, np.ndarray):
        assert_array_equal(made, plain)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_targets_and_weights(backend, layout):
    z = normal((40, 5))
    y = np.random.default_rng(1).integers(0, 5, 40)
    t = np.abs(normal((40, 5), seed=2))
    v = np.abs(normal(40, seed=3)) + 0.5
    w = np.abs(normal(5, seed=4)) + 0.5
    b = normal(5, seed=5)
    make = LAYOUTS[layout]
    for targets in (y, t):
        expected = fx.softmax_cross_entropy_with_grad(
            z, targets, sample_weight=v, class_weight=w, logit_bias=b, backend=backend
        )
        given = [make(a) for a in (targets, v, w, b)]
        loss, grad = fx.softmax_cross_entropy_with_grad(
            z, given[0], sample_weight=given[1], class_weight=given[2], logit_bias=given[3], backend=backend
        )
        rtol = 12 * np.finfo(float).eps
        assert_allclose(loss, expected[0], rtol=rtol)
        assert_allclose(grad, expected[1], rtol=rtol, atol=rtol)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ("memoryview",)])
def test_layouts_of_sigmoid_inputs(backend, dtype, layout):
    plain = normal((6, 7), dtype)
    y = np.random.default_rng(1).integers(0, 2, (6, 7)).astype(dtype)
    if layout == "list":
        plain = plain.astype("float64")
    expected = fx.sigmoid_cross_entropy_with_grad(plain, y, sample_weight=y + 1, backend=backend)
    make = LAYOUTS[layout]
    loss, grad = fx.sigmoid_cross_entropy_with_grad(
        make(plain), make(y), sample_weight=make(y + 1), backend=backend
    )
    assert_close((loss, grad), expected, dtype)


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("dtype", "n_classes"),
    [("float32", k) for k in (2, 3, 4, 7, 10, 26, 127, 1003)] + [("float64", 3), ("float64", 7)],
)
@pytest.mark.parametrize(
    "offset", [0, 1, 12]
)  # 12: most often a whole line, for NumPy's arrays begin 16 bytes into one
def test_gradients_past_the_cache(dtype, n_classes, offset):
    """From 32 MiB on gradients are stored past the cache, unless they take the logits' place: the same bits."""
    rng = np.random.default_rng(n_classes)
    n = (1 << 25) // np.dtype(dtype).itemsize // n_classes + 37
    z, y = (
        np.tile(rng.normal(size=(997, n_classes)).astype(dtype), (n // 997 + 1, 1))[:n],
        rng.integers(0, n_classes, n),
    )
    odd = rng.integers(0, n, 60)
    z[odd, rng.integers(0, n_classes, 60)] = np.resize([np.inf, -np.inf, np.nan], 60)
    memory = np.full(n * n_classes + 32, -9, dtype)
    out = memory[offset:][: n * n_classes].reshape(n, n_classes)
    loss, grad = fx.softmax_cross_entropy_with_grad(z, y, reduction="none", out=out, backend="cpu")
    there, grad_there = fx.softmax_cross_entropy_with_grad(z, y, reduction="none", out=z, backend="cpu")
    assert grad is out
    assert grad_there is z
    assert_array_equal(loss, there)
    assert_array_equal(out, z)
    assert (memory[:offset] == -9).all()
    assert (memory[out.size + offset :] == -9).all()


@pytest.mark.compiled
@pytest.mark.parametrize(
    "option", ["plain", "smooth", "smooth weighted", "soft", "soft weighted", "affine", "focal"]
)
@pytest.mark.parametrize(
    ("dtype", "n_classes", "offset"),
    [
        ("float32", 400, 0),
        ("float32", 509, 3),
        ("float32", 4096, 1),
        # these three leave further behind, for their lines would end as the next row's do
        ("float32", 960, 0),
        ("float32", 4096, 80),
        ("float32", 200, 264),
        ("float32", 50257, 5),
        ("float64", 1003, 1),
    ],
)
def test_rows_leave_past_the_cache(option, dtype, n_classes, offset):
    """Rows on their way past the cache beside the next one's exponentials: the bits of those that stay in place."""
    rng = np.random.default_rng(n_classes)
    n = (1 << 25) // np.dtype(dtype).itemsize // n_classes + 3
    y = rng.integers(0, n_classes, n)
    y[:4] = (
        0,
        n_classes - 1,
        20,
        n_classes - 20,
    )  # in the ends of a row, which are no whole lines, and beside them
    z = np.tile(rng.normal(size=n_classes + 1).astype(dtype), n)[: n * n_classes].reshape(n, n_classes)
    z[5, 7], z[9], z[12, 3] = np.nan, -np.inf, np.inf  # the last two stand still between rows that leave
    options = {"sample_weight": rng.integers(0, 4, n).astype(dtype), "backend": "cpu", "reduction": "none"}
    if "smooth" in option:
        options["label_smoothing"] = 0.1
    if "weighted" in option:
        options["class_weight"] = rng.random(n_classes).astype(dtype)
    if option == "affine":
        options |= {"temperature": 1.5, "logit_bias": rng.random(n_classes).astype(dtype)}
    if "soft" in option:
        y = np.tile(rng.random(n_classes + 1).astype(dtype) / n_classes, n)[: n * n_classes].reshape(
            n, n_classes
        )
    focal = fx.FocalLoss(gamma=2)
    call = focal.loss_grad if option == "focal" else fx.softmax_cross_entropy_with_grad
    memory = np.full(n * n_classes + 300, -9, dtype)
    out = memory[offset:][: n * n_classes].reshape(n, n_classes)
    loss, _ = call(z, y, out=out, **options)
    there, _ = call(z, y, out=z, **options)
    assert_array_equal(loss, there)
    assert_array_equal(out, z)
    assert (memory[:offset] == -9).all()
    assert (memory[out.size + offset :] == -9).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1)])
def test_axis_over_transposed_memory(backend, axis, order):
    """Class axis and memory order are independent of each other."""
    z = normal((4, 5, 6))
    stored = np.ascontiguousarray(z.transpose(order)).transpose(np.argsort(order))
    y = np.random.default_rng(1).integers(0, z.shape[axis], np.delete(z.shape, axis))
    assert_same(fx.softmax_cross_entropy_with_grad(stored, y, axis=axis, backend=backend), z, y, axis=axis)


@pytest.mark.parametrize("axis", [0, -1])
def test_zero_strides(backend, axis):
    """A row shared by all rows, and a number shared by all classes."""
    row = normal(6)
    shared = np.broadcast_to(row, (50, 6)) if axis == -1 else np.broadcast_to(row[:, None], (6, 50))
    y = np.broadcast_to(np.int8(2), 50)
    loss, grad = fx.softmax_cross_entropy_with_grad(shared, y, axis=axis, backend=backend)
    one, slope = fx.softmax_cross_entropy_with_grad(row, 2, backend=backend)
    assert_allclose(loss, one, rtol=1e-14)
    assert_allclose(np.moveaxis(grad, axis, -1) * 50, np.broadcast_to(slope, (50, 6)), rtol=1e-14)
    flat = np.broadcast_to(np.float64(3.0), (4, 8))
    assert_allclose(fx.softmax_cross_entropy(flat, [0, 1, 2, 3], backend=backend), np.log(8), rtol=1e-15)


@pytest.mark.compiled
@pytest.mark.parametrize("code", ["float32", "float64"])
def test_rows_more_than_four_gigabytes_apart(tmp_path, code):
    """Row addresses are 64-bit: a sparse file of 3 rows, 2^31 items apart; a few pages are touched."""
    stride = 2**31
    path = tmp_path / "sparse"
    try:
        big = np.memmap(path, code, "w+", shape=(3, stride))
    except OSError as error:
        pytest.skip(f"no sparse file of this size here: {error}")
    z = normal((3, 6), code)
    big[:, :6] = z
    far = np.asarray(big)[:, :6]
    assert far.strides[0] == stride * z.itemsize
    near = np.concatenate([z, z], axis=1)[:, :6]  # rows that do not touch, as there
    expected = fx.softmax_cross_entropy_with_grad(near, [0, 1, 5], backend="cpu")
    loss, grad = fx.softmax_cross_entropy_with_grad(far, [0, 1, 5], backend="cpu")
    assert loss == expected[0]
    assert_array_equal(grad, expected[1])
    out = np.asarray(big)[:, 8:14]
    again, grad = fx.softmax_cross_entropy_with_grad(far, [0, 1, 5], out=out, backend="cpu")
    assert grad is out
    assert again == loss
    assert_array_equal(out, expected[1])
    labels = np.memmap(tmp_path / "labels", "i1", "w+", shape=(3, 2**32))
    labels[:, 0] = [0, 1, 5]
    spread = np.asarray(labels)[:, 0]
    assert fx.softmax_cross_entropy(near, spread, backend="cpu") == loss
    targets = (z > 0).astype(code)
    assert fx.sigmoid_cross_entropy(far, targets, backend="cpu") == fx.sigmoid_cross_entropy(
        z, targets, backend="cpu"
    )


@pytest.mark.compiled
@pytest.mark.parametrize(("rows", "classes"), [(2**15 + 1, 2**16), (2**16 + 1, 2**16)])
def test_more_elements_than_an_int_counts(rows, classes):
    """N K just above 2^31 and 2^32 through a zero-stride view: nothing overflows and nothing is copied."""
    row = np.zeros(classes, np.float32)
    row[classes - 1] = 4
    y = np.broadcast_to(np.int32(classes - 1), rows)
    loss = fx.softmax_cross_entropy(np.broadcast_to(row, (rows, classes)), y, reduction="sum", backend="cpu")
    one = fx.softmax_cross_entropy(row, classes - 1, reduction="sum", backend="cpu")
    assert_allclose(loss, rows * one, rtol=1e-12)


@pytest.mark.compiled
def test_more_sigmoid_elements_than_an_int_counts():
    row = np.zeros(2**16, np.float32)
    rows = 2**15 + 1
    shape = (rows, 2**16)
    loss = fx.sigmoid_cross_entropy(
        np.broadcast_to(row, shape), np.broadcast_to(row, shape), reduction="sum", backend="cpu"
    )
    assert_allclose(loss, rows * 2**16 * float(np.float32(np.log(2))), rtol=1e-7)


# Where the gradient goes ----------------------------------------------------------------------------------


def call_into(backend, z, y, out, **options):
    loss, grad = fx.softmax_cross_entropy_with_grad(z, y, out=out, backend=backend, **options)
    assert grad is out
    return loss


OUTS = {
    "fortran": lambda a: np.full_like(np.asfortranarray(a), 7),
    "reversed": lambda a: np.full_like(a, 7)[::-1, ::-1],
    "transposed": lambda a: np.full_like(a.T, 7, order="C").T,
    "every second": lambda a: np.full((2 * a.shape[0], 2 * a.shape[1]), 7, a.dtype)[::2, ::2],
    "misaligned": lambda a: misaligned(np.full_like(a, 7)),
    "field of records": lambda a: fielded(np.full_like(a, 7)),
    "subclass": lambda a: np.full_like(a, 7).view(np.matrix),
}


@pytest.mark.parametrize("layout", OUTS)
@pytest.mark.parametrize("n_classes", [5, 130])
@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_layouts_of_out(backend, dtype, layout, n_classes):
    z = normal((40, n_classes), dtype)
    y = np.random.default_rng(1).integers(0, n_classes, 40)
    expected = fx.softmax_cross_entropy_with_grad(z, y, backend=backend)
    out = OUTS[layout](z)
    loss = call_into(backend, z, y, out)
    assert_close((loss, out), expected, dtype)
    t = (z > 0).astype(dtype)
    slope = fx.sigmoid_cross_entropy_with_grad(z, t, backend=backend)[1]
    out = OUTS[layout](z)
    assert fx.sigmoid_cross_entropy_with_grad(z, t, out=out, backend=backend)[1] is out
    assert_allclose(np.asarray(out), slope, rtol=8 * np.finfo(dtype).eps)


def test_out_writes_nothing_beside_itself(backend, dtype):
    """Neighbours of a strided or ragged output keep their values: no vector store spills over."""
    for n_classes in (2, 3, 5, 7, 17, 33, 65, 130):
        big = np.full((43, n_classes + 4), 7, dtype)
        z = normal((41, n_classes), dtype)
        y = np.zeros(41, int)
        expected = fx.softmax_cross_entropy_with_grad(z, y, backend=backend)
        assert_close((call_into(backend, z, y, big[1:-1, 2:-2]), big[1:-1, 2:-2]), expected, dtype)
        big[1:-1, 2:-2] = 7
        assert_array_equal(big, 7)
        flat = np.full(z.size + 64, 7, dtype)
        call_into(backend, z, y, flat[32:-32].reshape(z.shape))
        assert_array_equal(flat[32:-32].reshape(z.shape), expected[1])
        assert_array_equal(flat[:32], 7)
        assert_array_equal(flat[-32:], 7)


@pytest.mark.parametrize("n_classes", [2, 3, 5, 10, 17, 33, 64, 65, 130, 1003])
@pytest.mark.parametrize("kind", ["label", "soft"])
def test_in_place(backend, dtype, n_classes, kind):
    """out is logits: the bits of the call out of place, over the widths of every branch."""
    z = normal((37, n_classes), dtype)
    y = np.random.default_rng(1).integers(0, n_classes, 37)
    if kind == "soft":
        y = np.abs(normal(z.shape, dtype, seed=4))
    options = dict(label_smoothing=0.1, z_loss=1e-3) if kind == "soft" else {}
    expected = fx.softmax_cross_entropy_with_grad(z, y, backend=backend, **options)
    buffer = z.copy()
    assert call_into(backend, buffer, y, buffer, **options) == expected[0]
    assert_array_equal(buffer, expected[1])
    buffer = z.copy()
    back = fx.softmax_cross_entropy_backward(1.0, buffer, y, out=buffer, backend=backend, **options)
    assert back is buffer
    assert_allclose(buffer, expected[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_in_place_on_any_axis(backend, dtype, axis):
    z = normal((5, 6, 7), dtype)
    y = np.random.default_rng(1).integers(0, z.shape[axis], np.delete(z.shape, axis))
    expected = fx.softmax_cross_entropy_with_grad(z, y, axis=axis, backend=backend)
    buffer = z.copy()
    assert call_into(backend, buffer, y, buffer, axis=axis) == expected[0]
    assert_array_equal(buffer, expected[1])


OVERLAPS = {
    "one row later": lambda big: (big[:-1], big[1:]),
    "one row earlier": lambda big: (big[1:], big[:-1]),
    "one item later": lambda big: (big.reshape(-1)[:-9].reshape(-1, 9), big.reshape(-1)[1:-8].reshape(-1, 9)),
    "reversed": lambda big: (big, big[::-1]),
    "columns reversed": lambda big: (big, big[:, ::-1]),
    "transposed": lambda big: (big[:9], big[:9].T),
}


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_out_overlaps_logits(backend, dtype, overlap):
    """Sharing memory with logits in any other way than being them changes nothing in the answer."""
    big = normal((50, 9), dtype)
    z, out = OVERLAPS[overlap](big)
    y = np.random.default_rng(1).integers(0, 9, len(z))
    expected = fx.softmax_cross_entropy_with_grad(z.copy(), y, backend=backend)
    assert_close((call_into(backend, z, y, out), out), expected, dtype)
    big = normal((50, 9), dtype)
    z, out = OVERLAPS[overlap](big)
    t = np.random.default_rng(1).uniform(size=z.shape).astype(dtype)
    loss, slope = fx.sigmoid_cross_entropy_with_grad(z.copy(), t, backend=backend)
    again, grad = fx.sigmoid_cross_entropy_with_grad(z, t, out=out, backend=backend)
    assert grad is out
    rtol = 8 * np.finfo(dtype).eps
    assert_allclose(again, loss, rtol=rtol)
    assert_allclose(out, slope, rtol=rtol, atol=rtol)


def test_out_is_the_targets_or_the_weights(backend, dtype):
    """Soft targets, labels and weights are read before what overwrites them is written."""
    z = normal((50, 4), dtype)
    t = np.abs(normal((50, 4), dtype, seed=2))
    expected = fx.softmax_cross_entropy_with_grad(z, t, backend=backend)
    assert call_into(backend, z, t, t) == expected[0]
    assert_array_equal(t, expected[1])
    buffer = np.abs(normal((50, 4), dtype, seed=3))
    v = buffer.reshape(-1)[:50]
    expected = fx.softmax_cross_entropy_with_grad(
        z, np.zeros(50, int), sample_weight=v.copy(), backend=backend
    )
    assert call_into(backend, z, np.zeros(50, int), buffer, sample_weight=v) == expected[0]
    assert_array_equal(buffer, expected[1])
    labels = np.zeros((50, 4), dtype)
    y = labels.view(np.int32 if dtype == "float32" else np.int64)[:, 0]
    y[...] = np.arange(50) % 4
    expected = fx.softmax_cross_entropy_with_grad(z, y.copy(), backend=backend)
    assert call_into(backend, z, y, labels) == expected[0]
    assert_array_equal(labels, expected[1])
    per_class = np.abs(normal((50, 4), dtype, seed=3))
    w = per_class[7]
    expected = fx.softmax_cross_entropy_with_grad(
        z, np.arange(50) % 4, class_weight=w.copy(), backend=backend
    )
    assert call_into(backend, z, np.arange(50) % 4, per_class, class_weight=w) == expected[0]
    assert_array_equal(per_class, expected[1])
    targets = np.random.default_rng(1).uniform(size=(50, 4)).astype(dtype)
    loss, slope = fx.sigmoid_cross_entropy_with_grad(z, targets.copy(), backend=backend)
    again, _ = fx.sigmoid_cross_entropy_with_grad(z, targets, out=targets, backend=backend)
    assert again == loss
    assert_array_equal(targets, slope)


@pytest.mark.parametrize(
    ("out", "error", "words"),
    [
        (np.empty((3, 4), np.float32), (TypeError, ValueError), ["out", "float64", "float32"]),
        (np.empty((3, 4), np.int64), (TypeError, ValueError), ["out", "float64", "int64"]),
        (np.empty((3, 4), ">f8" if sys.byteorder == "little" else "<f8"), (TypeError, ValueError), ["out"]),
        (np.empty((4, 3)), ValueError, ["out", "(3, 4)", "(4, 3)"]),
        (np.empty(12), ValueError, ["out", "(3, 4)", "(12,)"]),
        (readonly(np.empty((3, 4))), ValueError, ["out", "read-only"]),
        ([[0.0] * 4] * 3, TypeError, ["out", "list"]),
        (np.broadcast_to(np.float64(0), (3, 4)), ValueError, ["out"]),
    ],
)
def test_bad_out(backend, out, error, words):
    z, y = normal((3, 4)), [0, 1, 2]
    for call in (
        fx.softmax_cross_entropy_with_grad,
        functools.partial(fx.softmax_cross_entropy_backward, 1.0),
    ):
        with pytest.raises(error) as caught:
            call(z, y, out=out, backend=backend)
        for word in words:
            assert word in str(caught.value), str(caught.value)
    with pytest.raises(error) as caught:
        fx.sigmoid_cross_entropy_with_grad(z, np.ones((3, 4)), out=out, backend=backend)
    assert "out" in str(caught.value)


def test_out_whose_elements_share_memory(backend):
    """A writable zero-stride output cannot hold a gradient."""
    out = np.lib.stride_tricks.as_strided(np.zeros(4), (3, 4), (0, 8))
    with pytest.raises(ValueError, match="out"):
        fx.softmax_cross_entropy_with_grad(normal((3, 4)), [0, 1, 2], out=out, backend=backend)


def test_logits_are_never_written(door):
    for dtype in ("float32", "float64", "float16"):
        for n_classes in (4, 100):
            z = normal((30, n_classes), dtype)
            kept = z.copy()
            door(z, np.zeros(30, int))
            door(z.T.copy(), np.zeros(30, int), axis=0)
            assert_array_equal(z, kept)


# Arguments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (dict(targets=[0, 1]), ValueError, ["targets", "(3,)", "(2,)"]),
        (dict(targets=[[0, 1, 2]]), ValueError, ["targets", "(3, 4)", "(1, 3)"]),
        (dict(targets=np.zeros((4, 3))), ValueError, ["targets", "(3, 4)", "(4, 3)"]),
        (dict(targets=0), ValueError, ["targets", "(3,)", "()"]),
        (dict(targets=np.zeros((3, 4, 1))), ValueError, ["targets", "(3, 4)", "(3, 4, 1)"]),
        (dict(sample_weight=[1, 2]), ValueError, ["sample_weight", "(3,)", "(2,)"]),
        (dict(sample_weight=np.ones((3, 4))), ValueError, ["sample_weight", "(3,)", "(3, 4)"]),
        (dict(sample_weight=[1, np.nan, 1]), ValueError, ["sample_weight", "nan", "1"]),
        (dict(sample_weight=[1, np.inf, 1]), ValueError, ["sample_weight", "inf", "1"]),
        (dict(sample_weight="heavy"), (TypeError, ValueError), ["sample_weight"]),
        (dict(sample_weight=[1j, 0, 0]), TypeError, ["sample_weight", "complex"]),
        (dict(class_weight=[1, 2, 3]), ValueError, ["class_weight", "4", "(3,)"]),
        (dict(class_weight=2.0), ValueError, ["class_weight", "4", "()"]),
        (dict(class_weight=[1, 2, -3, 1]), ValueError, ["class_weight", "-3", "2"]),
        (dict(class_weight=[1, 2, np.nan, 1]), ValueError, ["class_weight", "nan", "2"]),
        (dict(logit_bias=[0, 0]), ValueError, ["logit_bias", "4", "(2,)"]),
        (dict(logit_bias=[0, np.nan, 0, 0]), ValueError, ["logit_bias", "nan", "1"]),
        (dict(label_smoothing=1.5), ValueError, ["label_smoothing", "0", "1.5"]),
        (dict(label_smoothing=-0.1), ValueError, ["label_smoothing", "0", "-0.1"]),
        (dict(label_smoothing=float("nan")), ValueError, ["label_smoothing", "nan"]),
        (dict(label_smoothing="a"), TypeError, ["label_smoothing", "a"]),
        (dict(label_smoothing=[0.1]), TypeError, ["label_smoothing", "0.1"]),
        (dict(smoothing="exclude"), ValueError, ["smoothing", "uniform", "exclude"]),
        (dict(ignore_index=0.5), TypeError, ["ignore_index", "integer", "0.5"]),
        (dict(ignore_index="pad"), TypeError, ["ignore_index", "integer", "pad"]),
        (dict(z_loss=float("nan")), ValueError, ["z_loss", "nan"]),
        (dict(z_loss="a"), TypeError, ["z_loss", "a"]),
        (dict(temperature=0.0), ValueError, ["temperature", "0"]),
        (dict(temperature=-2), ValueError, ["temperature", "-2"]),
        (dict(temperature=float("inf")), ValueError, ["temperature", "inf"]),
        (dict(temperature=None), TypeError, ["temperature", "None"]),
        (dict(axis=2), (ValueError, IndexError), ["axis", "2"]),
        (dict(axis=-3), (ValueError, IndexError), ["axis", "-3"]),
        (dict(axis=0.0), TypeError, ["axis", "integer", "0.0"]),
        (dict(reduction="average"), ValueError, ["reduction", "mean_rows", "average"]),
        (dict(reduction=None), ValueError, ["reduction", "none", "None"]),
        (dict(base=1), ValueError, ["base", "1"]),
        (dict(base=0), ValueError, ["base", "0"]),
        (dict(base=-2.0), ValueError, ["base", "-2"]),
        (dict(base="e"), TypeError, ["base", "e"]),
        (dict(empty="none"), ValueError, ["empty", "zero", "nan", "none"]),
        (dict(num_threads=0), ValueError, ["num_threads", "0"]),
        (dict(num_threads=-1), ValueError, ["num_threads", "-1"]),
        (dict(num_threads=1.5), TypeError, ["num_threads", "1.5"]),
        (dict(num_threads=True), TypeError, ["num_threads", "True"]),
        (dict(backend="abacus"), ValueError, ["backend", "numpy", "cpu", "abacus"]),
        (dict(backend=3), (TypeError, ValueError), ["backend", "3"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_arguments(backend, change, error, words):
    """The message names the argument, what was expected and what came."""
    arguments = dict(logits=normal((3, 4)), targets=[0, 1, 2], backend=backend) | change
    for call in DOORS.values():
        with pytest.raises(error) as caught:
            call(**arguments)
        for word in words:
            assert word in str(caught.value), str(caught.value)


def test_unknown_option(door):
    with pytest.raises(TypeError, match="weight"):
        door(normal((3, 4)), [0, 1, 2], weight=1)


def test_options_are_keywords(backend):
    with pytest.raises(TypeError, match="positional"):
        fx.softmax_cross_entropy(normal((3, 4)), [0, 1, 2], [1, 1, 1])
    with pytest.raises(TypeError, match="positional"):
        fx.sigmoid_cross_entropy(normal(3), [0, 1, 1], [1, 1, 1])


@pytest.mark.parametrize(
    ("upstream", "reduction", "error"),
    [
        ([1.0, 2.0], "none", ValueError),
        (np.ones((3, 1, 1)), "none", ValueError),
        ("a", "none", (TypeError, ValueError)),
        ([1.0, 2.0, 3.0], "mean", (TypeError, ValueError)),
        ("a", "sum", (TypeError, ValueError)),
        (None, "mean", (TypeError, ValueError)),
    ],
)
def test_bad_incoming_gradient(backend, upstream, reduction, error):
    with pytest.raises(error, match="grad_loss"):
        fx.softmax_cross_entropy_backward(
            upstream, normal((3, 4)), [0, 1, 2], reduction=reduction, backend=backend
        )
    with pytest.raises(error, match="grad_loss"):
        fx.sigmoid_cross_entropy_backward(
            upstream, normal(3), [0, 1, 1], reduction=reduction, backend=backend
        )


def test_incoming_gradient_of_an_ignored_row(backend):
    """Whatever comes in for it, nothing goes out."""
    z = normal((3, 4))
    back = fx.softmax_cross_entropy_backward(
        [1.0, 5.0, 2.0], z, [0, -100, 2], reduction="none", backend=backend
    )
    assert_array_equal(back[1], 0)


def test_scalars_of_numpy_are_scalars(backend):
    """Options as NumPy scalars and 0-d arrays do what Python's numbers do."""
    z, y = normal((3, 4)), [0, 1, -1]
    expected = fx.softmax_cross_entropy_with_grad(
        z,
        y,
        label_smoothing=0.25,
        temperature=2.0,
        z_loss=0.5,
        ignore_index=-1,
        axis=1,
        num_threads=1,
        backend=backend,
    )
    loss, grad = fx.softmax_cross_entropy_with_grad(
        z,
        y,
        label_smoothing=np.float32(0.25),
        temperature=np.int64(2),
        z_loss=np.float64(0.5),
        ignore_index=np.int8(-1),
        axis=np.int32(1),
        num_threads=np.int64(1),
        backend=backend,
    )
    assert loss == expected[0]
    assert_array_equal(grad, expected[1])
    back = fx.softmax_cross_entropy_backward(np.array(2.0), z, y, ignore_index=-1, backend=backend)
    assert_array_equal(back, fx.softmax_cross_entropy_backward(2.0, z, y, ignore_index=-1, backend=backend))


@pytest.mark.parametrize("name", [None, "auto"])
def test_automatic_backend(name):
    """The fastest that is there, and its answer."""
    z, y = normal((3, 4)), [0, 1, 2]
    assert_same(fx.softmax_cross_entropy_with_grad(z, y, backend=name), z, y)


def test_named_backend_that_cannot_load():
    """Asked for by name it raises; it is never replaced in silence."""
    with pytest.raises(ImportError, match="cuda"):
        fx.softmax_cross_entropy(normal((3, 4)), [0, 1, 2], backend="cuda")


def test_no_warnings_on_any_limit(backend, recwarn):
    """Overflow, division and NaN inside a kernel are its own affair."""
    inf = np.inf
    z = np.array([[inf, 1, -inf], [-inf] * 3, [np.nan, 0, 0], [1e308, -1e308, 0], [0, 0, 0]])
    fx.softmax_cross_entropy_with_grad(z, [0, 1, 2, 1, 0], z_loss=0.1, temperature=0.5, backend=backend)
    fx.sigmoid_cross_entropy_with_grad(z, np.zeros((5, 3)), pos_weight=2.0, backend=backend)
    p = np.array([0.0, 1.0, 1e-300, 0.5])
    fx.binary_cross_entropy_with_grad(p, [1.0, 0.0, 1.0, 0.5], sample_weight=[0, 1, 0, 1], backend=backend)
    assert [str(w.message) for w in recwarn] == []
