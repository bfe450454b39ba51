"""Many classes that are not contiguous, as in axis=1 of (N, C, H, W): the kernel of two sweeps, `_kernels/sweep.hpp`.

It takes 200 classes and more over 256 rows and more in line. The rows repeat a few, so that the oracle is quick; where
the oracle is another kernel, it is that of contiguous classes.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import reference
from numpy.testing import assert_allclose, assert_array_equal

import fastxent as fx

DISTINCT = 7
# classes and rows: whole chunks and vectors, ragged ones, several strips and groups
SHAPES = [(200, 256), (217, 300), (203, 2065)]


@functools.cache
def truth_of(n_classes, dtype):
    """Random, rising, falling and tied rows: a new maximum anywhere, in every chunk, in the first alone."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(DISTINCT, n_classes)) * np.geomspace(0.1, 30, DISTINCT)[:, None]
    z[1], z[2] = np.linspace(-150, 150, n_classes), np.linspace(150, -150, n_classes)
    z[3, ::3] = z[3].max()
    z, y = z.astype(dtype), rng.integers(0, n_classes, DISTINCT)
    return z, y, reference.softmax(z, y, reduction="sum", exact=True)


@pytest.mark.parametrize(("n_classes", "n_rows"), SHAPES)
def test_within_ulps_of_the_truth(backend, dtype, n_classes, n_rows):
    z, y, truth = truth_of(n_classes, dtype)
    at = np.arange(n_rows) % DISTINCT
    losses, grad = fx.softmax_cross_entropy_with_grad(
        np.ascontiguousarray(z[at].T), y[at], axis=0, reduction="none", backend=backend
    )
    assert_array_equal(losses, losses[at])
    assert_array_equal(grad, grad[:, at])
    assert reference.worst(losses[:DISTINCT], truth.losses) <= 4
    assert reference.worst(grad[:, :DISTINCT].T, truth.grad) <= {"float32": 4, "float64": 6}[dtype]


def images(n_classes=210, side=(17, 18), n=2, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    z = (rng.normal(size=(n, n_classes, *side)) * rng.uniform(0.1, 20, (n, 1, *side))).astype(dtype)
    return z, rng.integers(0, n_classes, (n, *side))


def last(values):
    """The same with contiguous classes."""
    return np.ascontiguousarray(np.moveaxis(values, 1, -1))


def assert_as_contiguous(z, y, *, rtol=None, backend="cpu", **options):
    """Loss and gradient are those of contiguous classes, to a few ulp of the gradient's largest entry."""
    eps = np.finfo(np.float32 if z.dtype != np.float64 else np.float64).eps
    rtol = 16 * eps if rtol is None else rtol
    loss, grad = fx.softmax_cross_entropy_with_grad(z, y, axis=1, backend=backend, **options)
    expected, slope = fx.softmax_cross_entropy_with_grad(last(z), y, backend=backend, **options)
    assert_allclose(loss, expected, rtol=rtol)
    slope = np.moveaxis(slope, -1, 1).astype(np.float64)
    assert_allclose(grad.astype(np.float64), slope, rtol=rtol, atol=rtol * np.nanmax(np.abs(slope)))
    assert_allclose(fx.softmax_cross_entropy(z, y, axis=1, backend=backend, **options), loss, rtol=rtol)
    return loss, grad


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": "none"},
        {"ignore_index": 3},
        {"z_loss": 1e-3},
        {"base": 2, "reduction": "mean_rows"},
        {"class_weight": np.linspace(0, 2, 210)},
        {"label_smoothing": 0.1},
        {"temperature": 2.0},
    ],
    ids=str,
)
def test_options(backend, dtype, options):
    z, y = images(dtype=dtype)
    assert_as_contiguous(z, y, backend=backend, **options)


def test_rows_that_weigh_nothing(backend, dtype):
    z, y = images(dtype=dtype)
    weight = np.random.default_rng(1).uniform(0, 2, y.shape).astype(dtype)
    weight[0, 3:5] = weight[1, :, 7] = 0
    _, grad = assert_as_contiguous(z, y, sample_weight=weight, backend=backend)
    assert not grad[0, :, 3:5].any()
    assert not grad[1, :, :, 7].any()
    assert grad[0, :, 5].any()


def test_families(backend):
    z, y = images()
    for loss in (fx.FocalLoss(gamma=2.0, axis=1), fx.GeneralizedCrossEntropy(axis=1)):
        value, grad = loss.loss_grad(z, y, backend=backend)
        expected, slope = type(loss)().loss_grad(last(z), y, backend=backend)
        assert_allclose(value, expected, rtol=1e-6)
        assert_allclose(grad, np.moveaxis(slope, -1, 1), rtol=4e-6, atol=4e-6 * np.abs(slope).max())


@pytest.mark.parametrize("code", ["float16", "bfloat16"])
def test_16_bits(code):
    dtype = pytest.importorskip("ml_dtypes").bfloat16 if code == "bfloat16" else np.dtype(code)
    z, y = images(dtype=dtype)
    loss, grad = fx.softmax_cross_entropy_with_grad(z, y, axis=1, reduction="sum")
    expected, slope = fx.softmax_cross_entropy_with_grad(last(z), y, reduction="sum")
    assert grad.dtype == dtype
    assert_allclose(loss, expected, rtol=1e-6)
    step = {"float16": 2.0**-10, "bfloat16": 2.0**-7}[
        code
    ]  # another rounding of float32 numbers that differ by an ulp
    assert_allclose(grad.astype("f8"), np.moveaxis(slope, -1, 1).astype("f8"), rtol=step, atol=2.0**-24)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, 300.0, -300.0, 1e30], ids=str)
def test_special_numbers_stay_in_their_rows(backend, dtype, special):
    z, y = images(dtype=dtype)
    z[0, 5, 2, 2] = special
    z[1, :, 3, 3] = special
    z[1, 7, 4, 4], z[1, 8, 4, 4] = special, special
    with np.errstate(invalid="ignore"):
        loss, grad = fx.softmax_cross_entropy_with_grad(z, y, axis=1, reduction="none", backend=backend)
        expected, slope = fx.softmax_cross_entropy_with_grad(last(z), y, reduction="none", backend=backend)
    rtol = 16 * np.finfo(dtype).eps
    assert_allclose(loss, expected, rtol=rtol)
    assert_allclose(grad, np.moveaxis(slope, -1, 1), rtol=rtol, atol=rtol)
    usual = np.ones(y.shape, bool)
    usual[0, 2, 2] = usual[1, 3, 3] = usual[1, 4, 4] = False
    assert np.isfinite(loss[usual]).all()


def test_a_bad_label_is_named(backend):
    z, y = images()
    y[1, 4, 9] = 210
    with pytest.raises(ValueError, match=r"\[1, 4, 9\].*210"):
        fx.softmax_cross_entropy_with_grad(z, y, axis=1, backend=backend)


def test_in_place_and_into_strided_memory(backend, dtype):
    z, y = images(dtype=dtype)
    loss, grad = fx.softmax_cross_entropy_with_grad(z, y, axis=1, backend=backend)
    wide = np.full((2, 210, 17, 2 * 18), np.nan, dtype)
    for out in (wide[..., ::2], wide[..., 3:21], np.moveaxis(np.empty((2, 17, 18, 210), dtype), -1, 1)):
        again, given = fx.softmax_cross_entropy_with_grad(z, y, axis=1, out=out, backend=backend)
        assert given is out
        assert again == pytest.approx(loss, rel=1e-6)
        assert_allclose(out, grad, rtol=16 * np.finfo(dtype).eps, atol=1e-10)
    again, given = fx.softmax_cross_entropy_with_grad(z, y, axis=1, out=z, backend=backend)
    assert given is z
    assert again == loss
    assert_array_equal(z, grad)


@pytest.mark.compiled
@pytest.mark.parametrize(
    "side", [(64, 64), (61, 67)]
)  # lines of the cache at one phase for every class, and not
@pytest.mark.parametrize("shift", [0, 1, 7])
def test_gradients_past_the_cache(side, shift):
    """Outputs of 32 MB and more are streamed, from whichever address they begin."""
    z, y = images(1050, side, 2)
    memory = np.full(z.size + 64, np.nan, np.float32)
    out = memory[shift : shift + z.size].reshape(z.shape)
    assert out.nbytes >= 1 << 25
    loss, _ = fx.softmax_cross_entropy_with_grad(z, y, axis=1, out=out, backend="cpu")
    expected, slope = fx.softmax_cross_entropy_with_grad(z[1:], y[1:], axis=1, backend="cpu")
    assert_allclose(out[1:] * 2, slope, rtol=1e-6, atol=1e-12)
    assert np.isnan(memory[:shift]).all()
    assert np.isnan(memory[shift + z.size :]).all()
    assert_allclose(out.sum(axis=1), 0, atol=1e-9)
    assert np.isfinite(loss)
    assert np.isfinite(expected)


@pytest.mark.compiled
def test_same_bits_for_any_number_of_threads():
    z, y = images(1000, (40, 40))
    first = fx.softmax_cross_entropy_with_grad(z, y, axis=1, num_threads=1, backend="cpu")
    for threads in (2, 3, 5):
        loss, grad = fx.softmax_cross_entropy_with_grad(z, y, axis=1, num_threads=threads, backend="cpu")
        assert loss == first[0]
        assert_array_equal(grad, first[1])
