"""Dask collections: the estimators of one machine are the oracle, block by block where blocks coincide."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone

import fastxent as fx
from fastxent._blocks import Nodes, tree_total

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
dd = pytest.importorskip("dask.dataframe")
fxd = pytest.importorskip("fastxent.dask")

N_FEATURES, ROWS = 8, 512


def problem(n_classes=4, n_rows=3 * ROWS, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_rows, N_FEATURES)).astype(dtype)
    scores = X @ rng.normal(size=(N_FEATURES, n_classes)) + rng.gumbel(size=(n_rows, n_classes))
    return X, scores.argmax(axis=1), rng.integers(0, 3, n_rows).astype(dtype)


def chunked(*arrays, rows=ROWS):
    return tuple(da.from_array(a, chunks=(rows, *a.shape[1:])) for a in arrays)


@pytest.fixture(autouse=True)
def threads():
    with dask.config.set(scheduler="threads"):
        yield


# The tree -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 7, 12, 33])
def test_tree_is_the_same_for_any_distribution(n):
    rng = np.random.default_rng(n)
    values = rng.normal(size=(n, 3)) * 10.0 ** rng.integers(-8, 8, (n, 1))

    def total(owners):
        places = [Nodes() for _ in range(max(owners) + 1)]
        for number in rng.permutation(n):
            places[owners[number]].add((0, int(number)), values[number].copy())
        assert all(
            len(place.sums) <= 2 * max(n.bit_length(), 1) for place in places if sorted(owners) == owners
        )
        return tree_total(place.sums for place in places)

    whole = total([0] * n)
    np.testing.assert_allclose(whole, [np.sum(column) for column in values.T], rtol=1e-9)
    for workers in (2, 3, 4):
        assert np.array_equal(whole, total([i * workers // n for i in range(n)]))
        assert np.array_equal(whole, total(rng.integers(0, workers, n).tolist()))


def test_tree_skips_blocks_without_rows():
    assert tree_total([{(0, 0): None, (0, 1): 2.0, (0, 2): None}]) == 2.0
    assert tree_total([{(0, 0): None}]) is None


# The fit --------------------------------------------------------------------------------------------------

OPTIONS = [
    {},
    {"solver": "lbfgs", "fit_intercept": False},
    {"solver": "newton-cholesky"},
    {"solver": "newton-cg"},
    {"loss": "focal"},
    {"label_smoothing": 0.1},
    {"l1_ratio": 1.0, "max_iter": 1000},
]


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_bits_of_the_local_fit_where_blocks_coincide(n_classes, options):
    """1536 rows are three segments of 512 for the local objective."""
    X, y, _ = problem(n_classes)
    local = fx.LogisticRegression(tol=1e-6, **options).fit(X, y)
    lazy = fxd.LogisticRegression(tol=1e-6, **options).fit(*chunked(X, y))
    assert np.array_equal(local.coef_, lazy.coef_)
    assert np.array_equal(local.intercept_, lazy.intercept_)
    assert local.opt_result_.fun == lazy.opt_result_.fun


@pytest.mark.parametrize("weights", ["none", "given"])
@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 2.0, 3: 0.5}])
def test_equals_the_local_fit(weights, class_weight):
    X, y, w = problem()
    w = None if weights == "none" else w
    options = {"tol": 1e-9, "class_weight": class_weight}
    chunks = chunked(X, y, rows=100) + (() if w is None else chunked(w, rows=100))
    local = fx.LogisticRegression(**options).fit(X, y, w)
    lazy = fxd.LogisticRegression(**options).fit(*chunks)
    assert lazy.opt_result_.fun == pytest.approx(local.opt_result_.fun, rel=1e-12)
    np.testing.assert_allclose(lazy.coef_, local.coef_, atol=1e-5)
    options["solver"] = "newton-cholesky"
    local, lazy = (
        fx.LogisticRegression(**options).fit(X, y, w),
        fxd.LogisticRegression(**options).fit(*chunks),
    )
    np.testing.assert_allclose(lazy.coef_, local.coef_, atol=1e-10)


def test_soft_labels():
    X, y, _ = problem(3)
    soft = 0.8 * np.eye(3)[y] + 0.2 / 3
    local = fx.LogisticRegression(tol=1e-7).fit(X, soft)
    lazy = fxd.LogisticRegression(tol=1e-7).fit(*chunked(X, soft))
    assert np.array_equal(local.coef_, lazy.coef_)
    assert lazy.classes_.tolist() == [0, 1, 2]


def test_sparse_chunks():
    X, y, _ = problem()
    X[np.abs(X) < 1] = 0
    dX, dy = chunked(X, y)
    dX = dX.map_blocks(sparse.csr_matrix)
    local = fx.LogisticRegression(tol=1e-9).fit(sparse.csr_matrix(X), y)
    lazy = fxd.LogisticRegression(tol=1e-9).fit(dX, dy)
    assert lazy.opt_result_.fun == pytest.approx(local.opt_result_.fun, rel=1e-12)
    np.testing.assert_allclose(lazy.coef_, local.coef_, atol=1e-5)
    np.testing.assert_allclose(lazy.predict_proba(dX).compute(), lazy.predict_proba(X), rtol=1e-12)


def test_float32_is_kept():
    X, y, _ = problem(dtype=np.float32)
    local, lazy = fx.LogisticRegression().fit(X, y), fxd.LogisticRegression().fit(*chunked(X, y))
    assert lazy.coef_.dtype == np.float32
    assert np.array_equal(local.coef_, lazy.coef_)
    assert lazy.decision_function(chunked(X)[0]).dtype == np.float32


def test_unknown_chunks_and_empty_partitions():
    X, y, _ = problem()
    dX, dy = chunked(X, y)
    keep = da.from_array(np.r_[np.ones(ROWS, bool), np.zeros(ROWS, bool), np.ones(ROWS, bool)], chunks=ROWS)
    kept = keep.compute()
    model = fxd.LogisticRegression(tol=1e-8).fit(dX[keep], dy[keep])
    local = fx.LogisticRegression(tol=1e-8).fit(X[kept], y[kept])
    np.testing.assert_allclose(model.coef_, local.coef_, atol=1e-5)
    assert np.array_equal(model.predict(dX[keep]).compute(), local.predict(X[kept]))


def test_columns_in_several_chunks():
    X, y, _ = problem()
    wide = fxd.LogisticRegression().fit(da.from_array(X, chunks=(ROWS, 3)), chunked(y)[0])
    assert np.array_equal(wide.coef_, fxd.LogisticRegression().fit(*chunked(X, y)).coef_)
    assert np.array_equal(wide.predict(da.from_array(X, chunks=(ROWS, 3))).compute(), wide.predict(X))


def test_frames():
    pd = pytest.importorskip("pandas")
    X, y, w = problem()
    frame = pd.DataFrame(X, columns=[f"x{i}" for i in range(N_FEATURES)]).assign(
        y=np.array(list("abcd"))[y], w=w
    )
    frames = dd.from_pandas(frame, npartitions=3)
    names = list(frame.columns[:N_FEATURES])
    lazy = fxd.LogisticRegression(tol=1e-8).fit(frames[names], frames["y"], frames["w"])
    local = fx.LogisticRegression(tol=1e-8).fit(frame[names], frame["y"], frame["w"])
    np.testing.assert_allclose(lazy.coef_, local.coef_, atol=1e-5)
    assert lazy.classes_.tolist() == list("abcd")
    assert lazy.feature_names_in_.tolist() == names
    assert np.array_equal(lazy.predict(frames[names]).compute(), local.predict(frame[names]))
    assert lazy.score(frames[names], frames["y"], frames["w"]) == pytest.approx(
        local.score(frame[names], frame["y"], frame["w"])
    )
    with pytest.raises(ValueError, match="feature names"):
        lazy.predict(frames[names[::-1]])
    with pytest.raises(TypeError, match=r"X\['y'\]: expected numbers"):
        lazy.fit(frames[["x0", "y"]], frames["y"])


def test_warm_start():
    X, y, _ = problem()
    model = fxd.LogisticRegression(tol=1e-6, warm_start=True).fit(*chunked(X, y))
    assert model.fit(*chunked(X, y)).n_iter_[0] == 0


# Predictions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("method", ["decision_function", "predict", "predict_proba", "predict_log_proba"])
def test_predictions_are_lazy(n_classes, method):
    X, y, _ = problem(n_classes)
    dX, dy = chunked(X, y)
    model = fxd.LogisticRegression().fit(dX, dy)
    lazy, expected = getattr(model, method)(dX), getattr(model.to_local(), method)(X)
    assert isinstance(lazy, da.Array)
    assert (lazy.shape, lazy.dtype, lazy.chunks[0]) == (expected.shape, expected.dtype, dX.chunks[0])
    np.testing.assert_allclose(lazy.compute(), expected, rtol=1e-12)
    assert isinstance(getattr(model, method)(X), np.ndarray)


def test_score():
    X, y, w = problem()
    chunks = chunked(X, y, w)
    model = fxd.LogisticRegression().fit(*chunks[:2])
    assert model.score(*chunks[:2]) == pytest.approx(model.to_local().score(X, y))
    assert model.score(*chunks) == pytest.approx(model.to_local().score(X, y, w))
    assert model.score(X, y) == model.to_local().score(X, y)


def test_to_local_pickle_save(tmp_path):
    X, y, _ = problem()
    model = fxd.LogisticRegression(C=2.0).fit(*chunked(X, y))
    local = model.to_local()
    assert type(local) is fx.LogisticRegression
    assert local.C == 2.0
    assert np.array_equal(local.predict_proba(X), pickle.loads(pickle.dumps(model)).predict_proba(X))
    model.save(tmp_path / "model.npz")
    assert np.array_equal(fx.load(tmp_path / "model.npz").coef_, model.coef_)
    assert np.array_equal(model.to_sklearn().predict(X), local.predict(X))
    assert not hasattr(model, "partial_fit")
    twin = clone(model)
    assert twin.C == 2.0
    assert not hasattr(twin, "coef_")


@pytest.mark.parametrize("name", ["LogisticRegression", "MLPClassifier"])
def test_parameters_are_those_of_the_namesake_and_client(name):
    local, lazy = getattr(fx, name), getattr(fxd, name)
    assert lazy().get_params() == {**local().get_params(), "client": None}
    with pytest.raises(TypeError, match="unexpected keyword argument 'clients'"):
        lazy(clients=None)

    class Own(lazy):
        def __init__(self, more=3, client=None):
            super().__init__(max_iter=7, client=client)
            self.more = more

    assert Own().get_params() == {"more": 3, "client": None}
    assert Own().max_iter == 7


# Errors ---------------------------------------------------------------------------------------------------


def test_errors():
    X, y, w = problem()
    dX, dy = chunked(X, y)
    model = fxd.LogisticRegression()
    with pytest.raises(TypeError, match=r"X: expected a Dask Array or DataFrame, got ndarray"):
        model.fit(X, dy)
    with pytest.raises(TypeError, match=r"y: expected a Dask Array or DataFrame, got ndarray"):
        model.fit(dX, y)
    with pytest.raises(ValueError, match=r"y: expected the 3 partitions of X, got 6"):
        model.fit(dX, dy.rechunk(256))
    with pytest.raises(
        ValueError, match=r"y: expected partitions as long .* got 500 rows for 512 in partition 0"
    ):
        model.fit(dX, dy.rechunk(((500, 524, 512),)))
    with pytest.raises(ValueError, match=r"sample_weight: expected the 3 partitions of X, got 1"):
        model.fit(dX, dy, da.from_array(w, chunks=-1))
    with pytest.raises(ValueError, match=r"X: expected 2 dimensions, got 1"):
        model.fit(dy, dy)
    with pytest.raises(TypeError, match=r"X: expected numbers, got dtype object"):
        model.fit(dX.astype(object), dy)
    with pytest.raises(TypeError, match=r"client: expected a dask.distributed.Client or None, got str"):
        fxd.LogisticRegression(client="tcp://localhost:8786").fit(dX, dy)
    with pytest.raises(ValueError, match="contains only one class"):
        model.fit(dX, da.zeros_like(dy))
    with pytest.raises(ValueError, match="at least one non-zero"):
        model.fit(dX, dy, da.zeros(len(y), chunks=ROWS))
    bad = X.copy()
    bad[ROWS, 0] = np.nan
    with pytest.raises(ValueError, match="block 1: Input X contains NaN"):
        model.fit(chunked(bad)[0], dy)
    with pytest.raises(ValueError, match=r"block \d: y: expected one entry for each of the 512 rows"):
        model.fit(dX, dy[dy > 0])
    with pytest.raises(ValueError, match=r"block 2: Negative values"):
        model.fit(dX, dy, da.from_array(np.r_[np.ones(1535), -1.0], chunks=ROWS))
    with pytest.raises(ValueError, match=r"X: expected shape \(n_samples, 8\)"):
        model.fit(dX, dy).predict(dX[:, :4])


# Ctrl-C ---------------------------------------------------------------------------------------------------


@pytest.fixture
def handled():
    """Sets a handler of SIGINT; at the end the one that was there is back."""
    before = signal.getsignal(signal.SIGINT)
    yield lambda handler: signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGINT, before)


def fit_with_a_press(presses, at=60):
    """A fit with Ctrl-C pressed amid Dask's scheduler, before a task; and how many presses it went on after."""
    tasks, survived = [], []

    def press(*_):
        tasks.append(1)
        for _ in range(presses if len(tasks) == at else 0):
            signal.raise_signal(signal.SIGINT)
            survived.append(len(tasks))

    with dask.callbacks.Callback(pretask=press):
        model = fxd.LogisticRegression(tol=1e-9).fit(*chunked(*problem()))
    return model, len(survived)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_ctrl_c_is_answered_between_tasks(handled, scheduler):
    """Inside the scheduler it could leave a lock of Dask's pool taken; a second one is answered wherever it comes."""
    whole = fxd.LogisticRegression(tol=1e-9).fit(*chunked(*problem()))
    assert whole.opt_result_.status == "converged"
    handled(signal.default_int_handler)
    with dask.config.set(scheduler=scheduler):
        for presses in (1, 2):
            model, survived = fit_with_a_press(presses)
            assert (model.opt_result_.status, survived) == ("interrupted", 1)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with pytest.raises(KeyboardInterrupt):  # before there is a model
            fit_with_a_press(1, at=1)
        again, _ = fit_with_a_press(0)
    assert np.array_equal(again.coef_, whole.coef_)


def test_handlers_of_ctrl_c_that_return(handled):
    """The caller's own handler is called once a press, with the signal and a frame; and a signal may be ignored."""
    whole, _ = fit_with_a_press(0)
    got = []
    for handler in (lambda *received: got.append(received), signal.SIG_IGN):
        handled(handler)
        model, survived = fit_with_a_press(2)
        assert survived == 2
        assert signal.getsignal(signal.SIGINT) is handler
        assert np.array_equal(model.coef_, whole.coef_)
    assert [number for number, _ in got] == [signal.SIGINT] * 2
    assert {frame.f_code.co_name for _, frame in got} == {"press"}


def test_schedulers_of_ones_own():
    """A function of a graph and keys, without options."""
    whole, _ = fit_with_a_press(0)
    with dask.config.set(scheduler=lambda dsk, keys: dask.get(dsk, keys)):
        assert np.array_equal(fit_with_a_press(0)[0].coef_, whole.coef_)


def test_fit_beside_the_main_thread():
    """Where no handler can be set."""
    whole, _ = fit_with_a_press(0)
    found = []
    thread = threading.Thread(target=lambda: found.append(fit_with_a_press(0)[0]))
    thread.start()
    thread.join()
    assert np.array_equal(found[0].coef_, whole.coef_)


# The network ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"solver": "sgd", "clip_norm": 0.5},
        {"solver": "adamw", "class_weight": "balanced"},
        {"loss": "focal"},
    ],
    ids=str,
)
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_network_takes_the_steps_of_one_machine(n_classes, options):
    X, y, w = problem(n_classes)
    options = {"hidden_layer_sizes": (7,), "batch_size": 300, "max_iter": 4, "random_state": 3, **options}
    local = fx.MLPClassifier(**options).fit(X, y, w)
    lazy = fxd.MLPClassifier(**options).fit(*chunked(X, y, w, rows=400))
    for found, expected in zip(lazy.coefs_ + lazy.intercepts_, local.coefs_ + local.intercepts_, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    assert lazy.loss_curve_ == pytest.approx(local.loss_curve_, rel=1e-8)
    assert np.array_equal(lazy.predict(chunked(X)[0]).compute(), lazy.to_local().predict(X))
    np.testing.assert_allclose(lazy.predict_proba(chunked(X)[0]).compute(), lazy.predict_proba(X), rtol=1e-12)


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_network_options():
    X, y, _ = problem()
    chunks = chunked(X, y)
    model = fxd.MLPClassifier(
        (5,), batch_size=500, max_iter=3, random_state=0, early_stopping=True, dropout=0.2
    )
    with pytest.raises(ValueError, match="early_stopping expects validation_data"):
        model.fit(*chunks)
    model.fit(*chunks, validation_data=(X[:100], y[:100]))
    assert len(model.validation_scores_) == 3
    assert np.array_equal(
        clone(model).fit(*chunks, validation_data=(X[:100], y[:100])).coefs_[0], model.coefs_[0]
    )
    assert np.array_equal(pickle.loads(pickle.dumps(model)).coefs_[0], model.coefs_[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", [{}, {"class_weight": "balanced"}, {"loss": "focal"}], ids=str)
@pytest.mark.filterwarnings("ignore:lbfgs failed")
def test_network_by_lbfgs_is_that_of_one_machine(dtype, options):
    """Whole batches: the same objective, gradient and steps, one of the partitions empty."""
    X, y, w = problem(3, dtype=dtype)
    options = {"hidden_layer_sizes": (5,), "solver": "lbfgs", "random_state": 3, "alpha": 0.5, **options}
    parts = [da.from_array(a, chunks=((400, 0, 700, 436), *a.shape[1:])) for a in (X, y, w)]
    for max_iter, rtol in ((3, 1e-3 if dtype == np.float32 else 1e-7), (60, None)):
        local = fx.MLPClassifier(max_iter=max_iter, **options).fit(X, y, w)
        lazy = fxd.MLPClassifier(max_iter=max_iter, **options).fit(*parts)
        assert lazy.coefs_[0].dtype == dtype
        if rtol is not None:
            np.testing.assert_allclose(lazy.coefs_[0], local.coefs_[0], rtol=rtol, atol=rtol / 10)
            assert lazy.loss_curve_ == pytest.approx(local.loss_curve_, rel=1e-5)
        else:
            assert lazy.loss_ == pytest.approx(local.loss_, rel=0.02)
    with pytest.raises(ValueError, match="validation_data expects a stochastic solver"):
        lazy.fit(*parts, validation_data=(X, y))


@pytest.mark.parametrize(
    "options", [{}, {"class_weight": "balanced"}, {"class_weight": {0: 3.0, 2: 0.5}}], ids=str
)
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.filterwarnings("ignore")
def test_network_takes_indicators(solver, options):
    """Several labels per row, as integers or booleans."""
    X, y, w = problem(4)
    Y = np.stack([y == 0, y < 2, X[:, 0] > 0.5], axis=1).astype(np.int8)
    options = {"solver": solver, "batch_size": 300, "max_iter": 4, "random_state": 3, "alpha": 0.1, **options}
    local = fx.MLPClassifier((7,), **options).fit(X, Y, w)
    lazy = fxd.MLPClassifier((7,), **options).fit(*chunked(X, Y, w, rows=400))
    for found, expected in zip(lazy.coefs_ + lazy.intercepts_, local.coefs_ + local.intercepts_, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    dX, dY = chunked(X, Y.astype(bool))
    again = clone(lazy).fit(dX, dY, chunked(w)[0])
    assert again.loss_curve_ == pytest.approx(lazy.loss_curve_, rel=1e-8)
    for method in ("predict", "predict_proba", "predict_log_proba"):
        found, expected = getattr(lazy, method)(dX), getattr(lazy.to_local(), method)(X)
        assert (found.shape, found.dtype, found.chunks[0]) == (expected.shape, expected.dtype, dX.chunks[0])
        np.testing.assert_allclose(found.compute(), expected, rtol=1e-12)
    assert lazy.score(dX, chunked(Y)[0]) == pytest.approx(lazy.to_local().score(X, Y))


def test_indicator_errors():
    X, y, _ = problem(3)
    Y = np.eye(3, dtype=int)[y]
    wrong = Y.copy()
    wrong[520, 1] = 2
    with pytest.raises(ValueError, match=r"block 1: y\[8\] is \[.*2.*\], expected 0 and 1"):
        fxd.MLPClassifier().fit(*chunked(X, wrong))
    with pytest.raises(ValueError, match="expects an elementwise loss"):
        fxd.MLPClassifier(loss="gce").fit(*chunked(X, Y))
    with pytest.raises(ValueError, match="expected labels"):
        fxd.LogisticRegression().fit(*chunked(X, Y))


# Classes split over workers --------------------------------------------------------------------------------


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"label_smoothing": 0.1, "z_loss": 0.01, "ignore_index": 3}, {"reduction": "sum"}],
    ids=str,
)
def test_split_classes(options, biased):
    """1000 classes in uneven chunks against the whole."""
    rng = np.random.default_rng(0)
    X, W, b = rng.normal(size=(50, 6)), rng.normal(size=(6, 1000)), rng.normal(size=1000)
    y, v = rng.integers(0, 1000, 50), rng.integers(0, 3, 50).astype(float)
    y[:5] = 3
    dW, db = da.from_array(W, chunks=(4, (300, 1, 699))), da.from_array(b, chunks=((300, 1, 699),))
    if not biased:
        b = db = None
    lazy = fxd.linear_cross_entropy_with_grad(X, dW, y, db, sample_weight=v, **options)
    whole = fx.linear_cross_entropy_with_grad(X, W, y, b, sample_weight=v, **options)
    assert lazy[2].chunks[1] == (300, 1, 699)
    for found, expected in zip(dask.compute(*lazy), whole, strict=True):
        if expected is None:
            assert found is None
        else:
            np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)


def test_a_million_split_classes():
    """Against float64 NumPy that has all logits at once."""
    rng = np.random.default_rng(1)
    n, d, K = 4, 3, 1_000_000
    X, W = rng.normal(size=(n, d)).astype(np.float32), rng.normal(size=(d, K)).astype(np.float32)
    y = np.array([0, 250_000, 749_999, 999_999])
    found = fxd.linear_cross_entropy_with_grad(X, da.from_array(W, chunks=(d, 125_000)), y)[:3]
    Z = X.astype(np.float64) @ W
    shift = Z.max(axis=1, keepdims=True)
    lse = shift[:, 0] + np.log(np.exp(Z - shift).sum(axis=1))
    P = np.exp(Z - lse[:, None])
    P[np.arange(n), y] -= 1
    expected = ((lse - Z[np.arange(n), y]).mean(), P @ W.T.astype(np.float64) / n, X.T @ P / n)
    for got, want in zip(dask.compute(*found), expected, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-6 * np.abs(want).max())


def test_split_classes_errors():
    X, W, y = np.ones((2, 3)), da.ones((3, 10), chunks=5), [0, 9]
    with pytest.raises(TypeError, match="W: expected a Dask Array, got ndarray"):
        fxd.linear_cross_entropy_with_grad(X, np.ones((3, 10)), y)
    with pytest.raises(ValueError, match=r"W: expected 3 rows for X \(2, 3\), got shape \(4, 10\)"):
        fxd.linear_cross_entropy_with_grad(X, da.ones((4, 10)), y)
    with pytest.raises(ValueError, match="bias: expected the chunks of W's classes"):
        fxd.linear_cross_entropy_with_grad(X, W, y, da.ones(10, chunks=10))
    with pytest.raises(ValueError, match="reduction"):
        fxd.linear_cross_entropy_with_grad(X, W, y, reduction="none")
    with pytest.raises(ValueError, match="10"):
        fxd.linear_cross_entropy_with_grad(X, W, [0, 10])[0].compute()


# A cluster ------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster():
    """A function that makes a client of so many workers, threads or processes on loopback."""
    distributed = pytest.importorskip("distributed")
    opened = []

    def make(n_workers, processes):
        where = {"host": "127.0.0.1"} if processes else {"processes": False}
        made = distributed.LocalCluster(
            n_workers=n_workers, threads_per_worker=1, dashboard_address="127.0.0.1:0", **where
        )
        opened.append((distributed.Client(made), made))
        return opened[-1][0]

    with dask.config.set(scheduler=None):
        yield make
    for client, made in opened:
        client.close()
        made.close()


def left_behind(client):
    """Tasks that the scheduler still knows, once messages on their way have arrived."""
    for _ in range(100):
        tasks = client.run_on_scheduler(lambda dask_scheduler: list(map(str, dask_scheduler.tasks)))
        held = client.run(lambda dask_worker: len(dask_worker.data) + len(dask_worker.state.actors))
        if not tasks and not any(held.values()):
            return []
        time.sleep(0.05)
    return tasks


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_cluster(cluster):
    """The same bits for 1, 2 and 4 workers and without any, a worker killed or not; nothing is left behind."""
    X, y, w = problem(n_rows=5000)
    chunks = chunked(X, y, w, rows=400)
    model = fxd.LogisticRegression(tol=1e-9, class_weight="balanced").fit(*chunks)
    for n_workers in (1, 2, 4):
        client = cluster(n_workers, n_workers == 2)
        there = clone(model).set_params(client=client).fit(*chunks)
        assert np.array_equal(there.coef_, model.coef_)
        assert np.array_equal(there.intercept_, model.intercept_)
        assert clone(there).client is client
        assert pickle.loads(pickle.dumps(there)).client is None
        assert np.array_equal(there.predict(chunks[0]).compute(), model.predict(X))
        assert left_behind(client) == []
        if n_workers == 1:
            _marks_on_the_dashboard(client, model, chunks)
            _through_the_scheduler(client, model, chunks)
        if n_workers == 2:
            persisted = [chunk.persist() for chunk in chunks]
            assert np.array_equal(clone(there).fit(*persisted).coef_, model.coef_)
            del persisted
            with pytest.raises(ValueError, match=r"block \d+: Input X contains NaN"):
                clone(there).fit(chunks[0] * np.nan, chunks[1])
            assert left_behind(client) == []
            _kill_a_worker_during_a_fit(client, model, chunks)
        client.close()


def _marks_on_the_dashboard(client, model, chunks):
    """Tasks whose keys count the evaluations, which are gone after the fit."""
    from fastxent.dask import _sources

    seen, ask = set(), _sources.Cluster._ask

    def watching(source, shards, question):
        seen.update(key for key in client.futures if "evaluation" in key)
        return ask(source, shards, question)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_sources, "_MARK", 0.0)
        patch.setattr(_sources.Cluster, "_ask", watching)
        clone(model).set_params(client=client).fit(*chunks)
    counts = sorted(int(key.split("-")[2]) for key in seen)
    assert len(counts) > 5
    assert counts == list(range(1, len(counts) + 1))
    assert left_behind(client) == []


def _through_the_scheduler(client, model, chunks):
    """A client that may not, or cannot, connect to the workers: the scheduler passes messages on."""
    from fastxent.dask import _sources

    execute, direct = _sources.Cluster._execute, []

    def unreachable(source, shard, method, args):
        direct.append(shard.direct)
        if shard.direct:
            raise OSError("no route to host")
        return execute(source, shard, method, args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_sources.Cluster, "_execute", unreachable)
        for chosen, tried in ((None, True), (False, False)):
            client.direct_to_workers = chosen
            direct.clear()
            there = clone(model).set_params(client=client).fit(*chunks)
            assert np.array_equal(there.coef_, model.coef_)
            assert direct[0] == tried
            assert not any(direct[1:])
    client.direct_to_workers = None


def _kill_a_worker_during_a_fit(client, model, chunks):
    from fastxent.dask import _sources

    pids, asked, ask = list(client.run(os.getpid).values()), [], _sources.Cluster._ask

    def killing(source, shards, question):
        asked.append(question)
        if len(asked) == 15:
            os.kill(pids[0], 9)
        return ask(source, shards, question)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_sources.Cluster, "_ask", killing)
        hurt = clone(model).set_params(client=client).fit(*chunks)
    assert len(asked) > 15
    assert pids[0] not in client.run(os.getpid).values()
    if hasattr(model, "coef_"):
        assert np.array_equal(hurt.coef_, model.coef_)
        assert hurt.opt_result_.fun == model.opt_result_.fun
    else:
        assert all(map(np.array_equal, hurt.coefs_, model.coefs_))
        assert hurt.loss_curve_ == pytest.approx(model.loss_curve_, rel=1e-12)  # summed in runs of 50 ms
    assert left_behind(client) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_network_on_a_cluster(cluster):
    """Worker processes give the bits of no cluster, in mini-batches and whole batches, one of them killed."""
    X, y, w = problem(n_rows=3000)
    chunks = chunked(X, y, w, rows=400)
    options = {"batch_size": 500, "max_iter": 8, "random_state": 3, "class_weight": "balanced"}
    models = [
        fxd.MLPClassifier((7,), solver="adam", dropout=0.1, **options).fit(*chunks),
        fxd.MLPClassifier((7,), solver="lbfgs", **options).fit(*chunks),
    ]
    client = cluster(2, True)
    for model in models:
        there = clone(model).set_params(client=client).fit(*chunks)
        assert all(map(np.array_equal, there.coefs_ + there.intercepts_, model.coefs_ + model.intercepts_))
        assert np.array_equal(there.predict(chunks[0]).compute(), model.to_local().predict(X))
        assert left_behind(client) == []
    _kill_a_worker_during_a_fit(client, models[0], chunks)
