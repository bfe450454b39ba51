"""Fits on blocks of rows that a callable yields, and on memory maps: the answer and the memory of one machine."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import sparse

from fastxent import LogisticRegression

ROWS = 512


def problem(n_classes=4, n_rows=3 * ROWS, dtype=np.float64):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n_rows, 8)).astype(dtype)
    scores = X @ rng.normal(size=(8, n_classes)) + rng.gumbel(size=(n_rows, n_classes))
    return X, scores.argmax(axis=1), rng.integers(0, 3, n_rows).astype(dtype)


def stream(*arrays, rows=ROWS):
    def blocks():
        for start in range(0, arrays[0].shape[0], rows):
            yield tuple(a[start : start + rows] for a in arrays)

    return blocks


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("options", [{}, {"solver": "newton-cholesky"}, {"l1_ratio": 1.0}], ids=str)
def test_bits_of_the_whole_where_blocks_coincide(n_classes, options):
    X, y, _ = problem(n_classes)
    whole = LogisticRegression(tol=1e-6, **options).fit(X, y)
    parts = LogisticRegression(tol=1e-6, **options).fit(stream(X, y))
    assert np.array_equal(whole.coef_, parts.coef_)
    assert whole.opt_result_.fun == parts.opt_result_.fun


@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_equals_the_whole(class_weight):
    X, y, w = problem()
    options = {"tol": 1e-9, "class_weight": class_weight}
    whole = LogisticRegression(**options).fit(X, y, w)
    parts = LogisticRegression(**options).fit(stream(X, y, w, rows=77))
    assert parts.opt_result_.fun == pytest.approx(whole.opt_result_.fun, rel=1e-12)
    np.testing.assert_allclose(parts.coef_, whole.coef_, atol=1e-5)


def test_sparse_and_soft_blocks():
    X, y, _ = problem(3)
    X[np.abs(X) < 1] = 0
    whole = LogisticRegression(tol=1e-8).fit(sparse.csr_array(X), np.eye(3)[y])
    parts = LogisticRegression(tol=1e-8).fit(stream(sparse.csr_array(X), np.eye(3)[y], rows=400))
    np.testing.assert_allclose(parts.coef_, whole.coef_, atol=1e-5)


def test_labels_and_weights_may_miss_in_a_block():
    X, y, w = problem()
    order = np.argsort(y, kind="stable")
    X, y, w = X[order], np.array(list("abcd"))[y[order]], w[order]
    w[:ROWS] = 0
    parts = LogisticRegression(tol=1e-9).fit(stream(X, y, w))
    whole = LogisticRegression(tol=1e-9).fit(X, y, w)
    assert parts.classes_.tolist() == whole.classes_.tolist()
    np.testing.assert_allclose(parts.coef_, whole.coef_, atol=1e-5)


def test_feature_names():
    pd = pytest.importorskip("pandas")
    X, y, _ = problem()
    frame = pd.DataFrame(X, columns=list("abcdefgh"))
    model = LogisticRegression().fit(lambda: [(frame[:700], y[:700]), (frame[700:], y[700:])])
    assert model.feature_names_in_.tolist() == list("abcdefgh")


def test_errors():
    X, y, _ = problem()
    model = LogisticRegression()
    with pytest.raises(ValueError, match="y, sample_weight: expected None beside a callable"):
        model.fit(stream(X, y), y)
    with pytest.raises(ValueError, match="expected at least one row"):
        model.fit(lambda: [])
    with pytest.raises(
        TypeError, match=r"block 0: expected \(X, y\) or \(X, y, sample_weight\), got ndarray"
    ):
        model.fit(lambda: [X])
    with pytest.raises(ValueError, match=r"block 1: X: expected 8 columns, got 5"):
        model.fit(lambda: [(X, y), (X[:, :5], y)])
    with pytest.raises(ValueError, match=r"got kind of y: labels and soft"):
        model.fit(lambda: [(X, y), (X, np.eye(4)[y])])
    with pytest.raises(ValueError, match=r"block 1: y\[0\] is"):
        model.fit(lambda: [(X, np.eye(4)[y]), (X, np.eye(4)[y] * 2)])
    with pytest.raises(ValueError, match="labels of one kind"):
        model.fit(lambda: [(X, y), (X, y.astype(str))])
    once = iter([(X, y)])
    with pytest.raises(ValueError, match="expected the 1 blocks of the first pass, got 0"):
        model.fit(lambda: once)
    shrinking = [X, X[:5]]
    with pytest.raises(ValueError, match=r"block 0: expected the rows of the first pass, 1536, got 5"):
        model.fit(lambda: [(shrinking[0], y[: len(shrinking.pop(0))])])


@pytest.mark.parametrize("source", ["memmap", "callable"])
def test_memory_is_bounded_by_a_block(tmp_path, source):
    """48 MB of rows in blocks of 1.2 MB: the peak of what Python and NumPy allocate."""
    n_rows, d, rows = 200_000, 60, 5_000
    X = np.lib.format.open_memmap(tmp_path / "X.npy", "w+", np.float32, (n_rows, d))
    for start in range(0, n_rows, rows):
        X[start : start + rows] = np.random.default_rng(start).normal(size=(rows, d))
    y = (X[:, 0] > X[:, 1]).astype(np.int8)
    X = np.load(tmp_path / "X.npy", mmap_mode="r")

    def blocks():
        for start in range(0, n_rows, rows):
            yield np.array(X[start : start + rows]), y[start : start + rows]

    given = (X, y) if source == "memmap" else (blocks,)
    tracemalloc.start()
    try:
        LogisticRegression(max_iter=5, tol=0.1).fit(*given)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12e6
