"""The linear layer with a large W: all threads at one block of rows, products of our own, W in either order."""

import itertools
import threading

import numpy as np
import pytest
from test_linear import peak_memory, problem, tolerance, whole

from fastxent import linear
from fastxent.linear import linear_cross_entropy, linear_cross_entropy_with_grad

pytestmark = pytest.mark.compiled
GRADIENTS = ("loss", "dX", "dW", "db")


@pytest.fixture
def passes(monkeypatch):
    """Any W is a large one and blocks are small; the list tells how many rows the blocks had."""
    taken, original = [], linear._dense.panel_pass
    monkeypatch.setattr(linear, "LARGE_W", 1)
    monkeypatch.setattr(linear, "_LARGE_BLOCK", 1)
    monkeypatch.setattr(
        linear._dense, "panel_pass", lambda *given: taken.append(given[13]) or original(*given)
    )
    return taken


def large_layer(X, W, y, b=None, **options):
    return linear_cross_entropy_with_grad(X, W, y, b, backend="cpu", **options)


# Around the tiles (6 rows), the vectors (4 to 16), the panels (8 to 64 columns), and the summands packed at once (256).
SHAPES = [
    (1, 1, 1),
    (5, 3, 2),
    (6, 16, 17),
    (7, 63, 64),
    (24, 64, 65),
    (25, 65, 128),
    (50, 257, 130),
    (133, 300, 700),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_oracle(shape, passes, dtype):
    n, d, k = shape
    X, W, b, y = problem(n, d, k, dtype)
    W /= np.sqrt(d).astype(dtype)  # logits of order one
    wide = np.full((n, d + 3), np.nan, dtype)
    wide[:, 1 : d + 1] = X
    rows = {"C": X, "F": np.asfortranarray(X), "columns of wider rows": wide[:, 1 : d + 1]}
    expected = whole(X, W, b, y)
    scale = [1, *(abs(gradient).max() + 1e-3 for gradient in expected[1:])]
    for name, order in itertools.product(rows, "CF"):
        got = large_layer(rows[name], np.array(W, order=order), y, b)
        for what, a, e, size in zip(GRADIENTS, got, expected, scale, strict=True):
            tol = tolerance(dtype)
            np.testing.assert_allclose(
                a, e, tol["rtol"], size * tol["atol"], err_msg=f"{what}, X {name}, W {order}"
            )
            assert np.asarray(a).dtype == (dtype if what != "loss" else "float64")
    assert len(passes) == 6
    assert max(passes) <= 24


OPTIONS = [
    {"reduction": "sum"},
    {"reduction": "none", "ignore_index": 3},
    {"reduction": "mean_rows", "sample_weight": np.linspace(0, 3, 61)},
    {"class_weight": np.linspace(0, 2, 70), "label_smoothing": 0.2, "smoothing": "exclude_target"},
    {"label_smoothing": 0.1, "z_loss": 0.01, "logit_bias": np.linspace(-1, 1, 70), "temperature": 1.7},
]


@pytest.mark.parametrize("options", OPTIONS, ids="-".join)
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
def test_options_against_oracle(options, soft, passes, dtype):
    X, W, b, y = problem(61, 9, 70, dtype)
    if soft:
        options = {key: value for key, value in options.items() if key != "ignore_index"}
        y = np.random.default_rng(1).dirichlet(np.ones(70), 61).astype(dtype)
    expected = whole(X, W, b, y, **options)
    got = large_layer(X, W, y, b, **options)
    for a, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, e, **tolerance(dtype))
    np.testing.assert_array_equal(linear_cross_entropy(X, W, y, b, backend="cpu", **options), got[0])
    assert len(passes) == 2


def test_what_is_not_asked_for(passes):
    X, W, b, y = problem(50, 9, 70)
    loss, dX, dW, db = large_layer(X, W, y, b)
    alone = large_layer(X, W, y, need_dx=False)
    assert alone[1] is None
    assert alone[3] is None
    without = whole(X, W, None, y)
    np.testing.assert_allclose(alone[2], without[2], **tolerance("float64"))
    np.testing.assert_array_equal(large_layer(X, W, y, b, need_dx=False)[2], dW)
    assert linear_cross_entropy(X, W, y, b) == loss
    rows = linear.SoftmaxRows(linear._backend.choose("cpu"), y[:, None], 70, scale=1 / 50)
    places = {"dX": np.empty_like(X), "dW": np.empty_like(W), "db": np.zeros(70)}
    for (name, place), expected in zip(places.items(), (dX, dW, db), strict=True):
        linear.LargeLayer(X, W, b, rows, 1).run(**{name: place})
        np.testing.assert_array_equal(place, expected)


def test_same_bits_for_any_number_of_threads_and_order_of_w(passes, dtype):
    X, W, b, y = problem(700, 40, 300, dtype)
    assert X.size * 300 > linear._SERIAL_WORK
    one = large_layer(X, W, y, b, num_threads=1)
    for threads, order in itertools.product((1, 2, 3, 5), "CF"):
        for a, e in zip(
            large_layer(X, np.array(W, order=order), y, b, num_threads=threads), one, strict=True
        ):
            np.testing.assert_array_equal(a, e)


def test_several_callers_at_once(passes):
    X, W, b, y = problem(400, 64, 300)
    expected, found = large_layer(X, W, y, b), []
    threads = [
        threading.Thread(target=lambda: found.append(large_layer(X, W, y, b, num_threads=2)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for got in found:
        for a, e in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a, e)


def test_what_is_not_finite_stays_in_its_row(passes, dtype):
    X, W, b, y = problem(60, 9, 70, dtype)
    X[7, 2], X[33] = np.nan, np.inf
    each, dX, dW, _ = large_layer(X, W, y, b, reduction="none")
    sick = np.isin(np.arange(60), [7, 33])
    clean = whole(X[~sick], W, b, y[~sick], reduction="none")
    assert np.isnan(each[sick]).all()
    np.testing.assert_allclose(each[~sick], clean[0], **tolerance(dtype))
    np.testing.assert_allclose(dX[~sick], clean[1], **tolerance(dtype))
    assert np.isnan(dW).any()


def test_wrong_labels(passes):
    X, W, b, y = problem(60, 9, 70)
    y[41] = 70
    with pytest.raises(ValueError, match=r"targets\[41\] = 70 is not a class"):
        large_layer(X, W, y, b)
    each, dX, _, _ = large_layer(X, W, y, b, check=False, reduction="none")
    good = np.arange(60) != 41
    expected = whole(X[good], W, b, y[good], reduction="none")
    np.testing.assert_allclose(each[good], expected[0], **tolerance("float64"))
    np.testing.assert_allclose(dX[good], expected[1], **tolerance("float64"))


def test_other_w_and_x_are_brought_into_shape(passes):
    X, W, b, y = problem(60, 9, 70)
    expected = large_layer(X, W, y, b)
    for other in (np.repeat(W, 2, axis=1)[:, ::2], W[::-1].copy()[::-1], W.astype(">f8")):
        for a, e in zip(large_layer(X, other, y, b), expected, strict=True):
            np.testing.assert_array_equal(a, e)
    assert len(passes) == 4
    # X of other strides, or in another dtype than the arithmetic, goes through blocks that are copied.
    for other in (np.repeat(X, 2, axis=1)[:, ::2], X.astype(np.float32)):
        got = large_layer(other, W, y, b)
        np.testing.assert_allclose(got[0], whole(other, W, b, y)[0], rtol=1e-12)
        assert got[1].dtype == other.dtype
    assert len(passes) == 4


def test_extra_memory_is_a_sixteenth_of_the_logits():
    n, d, k = 8192, 16, 10_000
    X, W, b, y = problem(n, d, k, "float32")
    given = X.nbytes + W.nbytes + b.nbytes
    assert peak_memory(lambda: large_layer(X, W, y, b)) - given - 8 * k < n * k * 4 / 16
