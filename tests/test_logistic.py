"""LogisticRegression against scikit-learn, SciPy and its own promises about weights, labels, layouts and tails."""

import io
import pickle
import signal
import sys
import warnings

import numpy as np
import pytest
import sklearn
from scipy import optimize, sparse, special
from sklearn import linear_model
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, make_classification
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV
from sklearn.utils.fixes import parse_version

from fastxent import SoftmaxCrossEntropy
from fastxent._estimator import encode_labels
from fastxent.logistic import LogisticRegression

SOLVERS = ["lbfgs", "newton-cg", "newton-cholesky"]
MODERN = parse_version(sklearn.__version__) >= parse_version("1.8")


def scaled(load):
    X, y = load(return_X_y=True)
    return (X - X.mean(axis=0)) / (X.std(axis=0) + 1e-9), y


def small(n=120, d=5, k=3, seed=0):
    X, y = make_classification(
        n,
        d,
        n_informative=d - 1,
        n_redundant=0,
        n_classes=k,
        n_clusters_per_class=1,
        flip_y=0.2,
        random_state=seed,
    )
    return X, y


def peer(X, y, sample_weight=None, **options):
    """scikit-learn's answer from its Newton solver, whose result does not hang on a value-based stopping rule."""
    options = {"tol": 1e-12, "max_iter": 500, "solver": "newton-cholesky"} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not MODERN and options.get("C") == np.inf:
            options["penalty"] = None
            options["C"] = 1.0
        return linear_model.LogisticRegression(**options).fit(X, y, sample_weight)


def exact(**options):
    return LogisticRegression(**({"tol": 1e-10, "max_iter": 1000} | options))


def assert_same_model(a, b, atol=1e-5):
    np.testing.assert_allclose(a.coef_, b.coef_, atol=atol, rtol=0)
    np.testing.assert_allclose(a.intercept_, b.intercept_, atol=atol, rtol=0)


# --------------------------------------------------------------------------------------- the same as the peer


@pytest.mark.parametrize("solver", ["auto", *SOLVERS])
@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_coefficients_are_scikit_learns(solver, k, fit_intercept):
    X, y = small(k=k, d=6)
    for C in (0.01, 1.0, 100.0):
        ours = exact(solver=solver, C=C, fit_intercept=fit_intercept).fit(X, y)
        theirs = peer(X, y, C=C, fit_intercept=fit_intercept)
        assert_same_model(ours, theirs)
        assert ours.coef_.shape == theirs.coef_.shape
        assert ours.intercept_.shape == theirs.intercept_.shape


@pytest.mark.parametrize("load", [load_iris, load_breast_cancer], ids=["iris", "breast_cancer"])
def test_bundled_data(load):
    X, y = scaled(load)
    assert_same_model(exact().fit(X, y), peer(X, y))


def test_digits():
    X, y = load_digits(return_X_y=True)
    X, y = X[:600] / 16, y[:600]
    theirs = peer(X, y, solver="newton-cg", tol=1e-10)
    assert_same_model(exact(solver="lbfgs").fit(X, y), theirs)
    assert_same_model(exact(solver="newton-cg").fit(X, y), theirs)


@pytest.mark.parametrize("load", [load_iris, load_breast_cancer, load_digits])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_defaults_end_no_higher_than_the_peers(load, dtype):
    X, y = scaled(load)
    X = X.astype(dtype)
    models = LogisticRegression().fit(X, y), linear_model.LogisticRegression(max_iter=2000).fit(X, y)
    ours, theirs = (
        log_loss(y, m.predict_proba(X.astype(float))) + (m.coef_.astype(float) ** 2).sum() / (2 * len(X))
        for m in models
    )
    assert ours <= theirs * (1 + 1e-5)


def test_without_penalty():
    X, y = small()
    ours, theirs = exact(C=np.inf).fit(X, y), peer(X, y, C=np.inf, solver="newton-cg")
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-6)
    X, y = small(k=2)
    for solver in SOLVERS:
        assert_same_model(exact(C=np.inf, solver=solver).fit(X, y), peer(X, y, C=np.inf))


def test_liblinear_penalizes_the_intercept():
    X, y = small(k=2)
    X += 3
    for scaling in (1.0, 5.0):
        ours = exact(solver="liblinear", intercept_scaling=scaling).fit(X, y)
        theirs = linear_model.LogisticRegression(
            solver="liblinear", intercept_scaling=scaling, tol=1e-10, max_iter=5000, random_state=0
        ).fit(X, y)
        assert_same_model(ours, theirs, atol=1e-4)
    assert abs(ours.intercept_ - exact().fit(X, y).intercept_) > 1e-3


def penalized(model, X, y, C, l1_ratio):
    """scikit-learn's objective, C Σ loss + penalty, for the coefficients of a fitted model."""
    z = X @ model.coef_.T + model.intercept_
    z = np.hstack([0 * z, z]) if z.shape[1] == 1 else z
    rows = special.logsumexp(z, axis=1) - z[np.arange(len(y)), y]
    W = model.coef_
    return C * rows.sum() + (1 - l1_ratio) / 2 * (W**2).sum() + l1_ratio * abs(W).sum()


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("l1_ratio", [0.3, 1.0])
@pytest.mark.parametrize("solver", ["auto", "saga"])
def test_elastic_net_is_sagas(k, l1_ratio, solver):
    X, y = small(k=k)
    ours = exact(C=0.1, l1_ratio=l1_ratio, tol=1e-9, solver=solver).fit(X, y)
    theirs = peer(
        X,
        y,
        C=0.1,
        l1_ratio=l1_ratio,
        solver="saga",
        tol=1e-9,
        max_iter=20_000,
        **({} if MODERN else {"penalty": "elasticnet"}),
    )
    theirs.intercept_ -= (
        theirs.intercept_.mean() if k > 2 else 0
    )  # saga leaves softmax's common shift anywhere
    assert_same_model(ours, theirs)
    np.testing.assert_array_equal(ours.coef_ == 0, abs(theirs.coef_) < 1e-8)
    assert (ours.coef_ == 0).any() or l1_ratio < 1
    ours_value, theirs_value = (penalized(m, X, y, 0.1, l1_ratio) for m in (ours, theirs))
    assert ours_value <= theirs_value * (1 + 1e-10)
    v = np.arange(len(y)) % 3
    weighted = exact(C=0.1, l1_ratio=l1_ratio, tol=1e-9).fit(X, y, v)
    repeated = exact(C=0.1, l1_ratio=l1_ratio, tol=1e-9).fit(np.repeat(X, v, axis=0), np.repeat(y, v))
    assert_same_model(weighted, repeated, atol=1e-6)


def test_liblinears_lasso():
    X, y = small(k=2)
    options = {"C": 0.1, "l1_ratio": 1.0} if MODERN else {"C": 0.1, "penalty": "l1"}
    theirs = linear_model.LogisticRegression(
        solver="liblinear", tol=1e-10, max_iter=5000, random_state=0, **options
    )
    ours = exact(solver="liblinear", C=0.1, l1_ratio=1.0, tol=1e-9).fit(X + 1, y)
    assert_same_model(ours, theirs.fit(X + 1, y), atol=1e-4)


@pytest.mark.parametrize("k", [2, 4])
def test_objective_against_scipy(k):
    """The documented objective, written out again and minimized by SciPy."""
    X, y = small(k=k)
    v = np.random.default_rng(0).uniform(0.1, 2, len(y))
    C, K = 0.7, 1 if k == 2 else k

    def value(w):
        W, b = w[:-K].reshape(K, 5), w[-K:]
        z = X @ W.T + b
        z = np.hstack([0 * z, z]) if K == 1 else z
        rows = special.logsumexp(z, axis=1) - z[np.arange(len(y)), y]
        return v @ rows / v.sum() + (W**2).sum() / (2 * C * v.sum())

    best = optimize.minimize(value, np.zeros(6 * K), options={"gtol": 1e-7})
    model = exact(C=C).fit(X, y, v)
    assert model.opt_result_.fun == pytest.approx(best.fun, rel=1e-9)
    np.testing.assert_allclose(model.coef_.ravel(), best.x[:-K], atol=1e-4)


# ---------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("solver", SOLVERS)
def test_weight_k_is_k_repeats_and_weight_0_is_removal(k, solver):
    X, y = small(k=k)
    v = np.random.default_rng(0).integers(0, 4, len(y))
    options = {"solver": solver, "class_weight": "balanced"}
    weighted = exact(**options).fit(X, y, v)
    repeated = exact(**options).fit(np.repeat(X, v, axis=0), np.repeat(y, v))
    assert_same_model(weighted, repeated, atol=1e-7)


def test_a_class_without_weight_is_no_class():
    X, y = small(k=3)
    v = (y != 1).astype(float)
    model = exact().fit(X, y, v)
    np.testing.assert_array_equal(model.classes_, [0, 2])
    assert_same_model(model, exact().fit(X[y != 1], y[y != 1]), atol=1e-7)
    with pytest.raises(ValueError, match="only one class"):
        exact().fit(X, y, (y == 1).astype(float))


@pytest.mark.parametrize("class_weight", ["balanced", {0: 0.5, 2: 3.0}])
def test_class_weight(class_weight):
    X, y = small()
    assert_same_model(exact(class_weight=class_weight).fit(X, y), peer(X, y, class_weight=class_weight))
    table = {0: 0.5, 1: 1.0, 2: 3.0} if isinstance(class_weight, dict) else len(y) / (3 * np.bincount(y))
    v = np.array([table[label] for label in y])
    assert_same_model(exact(class_weight=class_weight).fit(X, y), exact().fit(X, y, v), atol=1e-8)


def test_weights_that_are_refused():
    X, y = small()
    with pytest.raises(ValueError, match="Negative values in data passed to `sample_weight`"):
        LogisticRegression().fit(X, y, np.linspace(-1, 1, len(y)))
    with pytest.raises(ValueError, match="at least one non-zero"):
        LogisticRegression().fit(X, y, np.zeros(len(y)))
    with pytest.raises(ValueError, match="sample_weight"):
        LogisticRegression().fit(X, y, np.full(len(y), np.nan))
    with pytest.raises(ValueError, match="sample_weight"):
        LogisticRegression().fit(X, y, np.ones(len(y) - 1))
    with pytest.raises(ValueError, match="class_weight"):
        LogisticRegression(class_weight={0: -1.0}).fit(X, y)
    with pytest.raises(ValueError, match="class_weight"):
        LogisticRegression(class_weight={0: 0.0, 1: 0.0, 2: 0.0}).fit(X, y)


# ----------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    "names",
    [
        np.array(["b", "a", "ccc"]),
        np.array(["b", "a", "ccc"], object),
        np.array([30, -1, 7]),
        np.array([2.0, 5.0, 1.0]),
    ],
    ids=["str", "object", "int", "float"],
)
def test_labels_of_any_kind(names):
    X, y = small()
    order = np.sort(names)
    named, plain = exact().fit(X, order[y]), exact().fit(X, y)
    np.testing.assert_array_equal(named.classes_, order)
    np.testing.assert_array_equal(named.predict(X), order[plain.predict(X)])
    np.testing.assert_array_equal(named.coef_, plain.coef_)


def test_boolean_labels():
    X, y = small(k=2)
    model = LogisticRegression().fit(X, y == 1)
    assert model.classes_.dtype == bool
    assert model.predict(X).dtype == bool


def test_labels_that_are_refused():
    X, y = small()
    with pytest.raises(ValueError, match="only one class: 'a'"):
        LogisticRegression().fit(X, ["a"] * len(y))
    with pytest.raises(ValueError, match="Unknown label type"):
        LogisticRegression().fit(X, y + 0.5)
    with pytest.raises(ValueError, match="Only binary classification"):
        LogisticRegression(solver="liblinear").fit(X, y)


def test_soft_labels():
    X, y = small(k=3)
    hard = exact().fit(X, y)
    assert_same_model(exact().fit(X, np.eye(3)[y]), hard, atol=1e-8)
    # A soft label is the mixture of repeats with those weights.
    rng = np.random.default_rng(0)
    for k in (2, 3):
        t = rng.dirichlet(np.ones(k), len(X))
        soft = exact().fit(X, t)
        mixture = exact(C=1.0).fit(np.tile(X, (k, 1)), np.repeat(np.arange(k), len(X)), t.T.ravel())
        assert_same_model(soft, mixture, atol=1e-7)
        assert soft.predict(X).max() < k
    with pytest.raises(ValueError, match="summing to 1"):
        LogisticRegression().fit(X, 2 * np.eye(3)[y])
    with pytest.raises(ValueError, match="class_weight"):
        LogisticRegression(class_weight="balanced").fit(X, np.eye(3)[y])


# ---------------------------------------------------------------------------------------- arrays of all kinds


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csr_array, sparse.csc_matrix, sparse.coo_array])
@pytest.mark.parametrize("solver", SOLVERS)
def test_sparse_is_dense(form, solver):
    X, y = small()
    X[abs(X) < 0.5] = 0
    thin, dense = exact(solver=solver).fit(form(X), y), exact(solver=solver).fit(X, y)
    assert_same_model(thin, dense, atol=1e-6)
    np.testing.assert_allclose(thin.predict_proba(form(X)), dense.predict_proba(X), atol=1e-6)


def test_sparse_with_long_indices():
    X, y = small()
    S = sparse.csr_array(X)
    S.indices, S.indptr = S.indices.astype(np.int64), S.indptr.astype(np.int64)
    assert_same_model(exact(solver="lbfgs").fit(S, y), exact(solver="lbfgs").fit(X, y), atol=1e-6)


@pytest.mark.parametrize("solver", ["auto", *SOLVERS])
def test_float32_is_kept(solver):
    X, y = small()
    single = LogisticRegression(solver=solver, tol=1e-5).fit(X.astype(np.float32), y)
    double = exact(solver=solver).fit(X, y)
    assert single.coef_.dtype == single.intercept_.dtype == np.float32
    assert single.predict_proba(X.astype(np.float32)).dtype == np.float32
    assert single.opt_result_.x.dtype == np.float64
    assert double.coef_.dtype == np.float64
    assert_same_model(single, double, atol=3e-3)


def test_layouts_of_x():
    X, y = small()
    expected = exact().fit(X, y)
    read_only = X.copy()
    read_only.flags.writeable = False
    for layout in (np.asfortranarray(X), read_only, np.repeat(X, 2, axis=0)[::2], X.tolist()):
        assert_same_model(exact().fit(layout, y), expected, atol=1e-8)


def test_x_is_not_copied_or_changed(monkeypatch):
    from fastxent import linear

    seen = []
    original = linear.LinearObjective.__init__

    def spy(self, X, rows, dtype):
        seen.append(X)
        original(self, X, rows, dtype)

    monkeypatch.setattr(linear.LinearObjective, "__init__", spy)
    X, y = small()
    for given in (X, np.asfortranarray(X), X.astype(np.float32), np.asfortranarray(X, dtype=np.float32)):
        before = given.copy()
        LogisticRegression().fit(given, y)
        assert np.shares_memory(seen[-1], given)
        np.testing.assert_array_equal(given, before)


def test_data_frame_names():
    pandas = pytest.importorskip("pandas")
    X, y = small()
    frame = pandas.DataFrame(X, columns=list("abcde"))
    model = exact().fit(frame, pandas.Series(y))
    np.testing.assert_array_equal(model.feature_names_in_, list("abcde"))
    assert_same_model(model, exact().fit(X, y), atol=1e-9)


def test_backends_and_threads(backend):
    X, y = small(n=3000, d=20, k=4)
    one = exact(backend=backend, num_threads=1).fit(X, y)
    two = exact(backend=backend, num_threads=2).fit(X, y)
    np.testing.assert_array_equal(one.coef_, two.coef_)
    assert_same_model(one, exact().fit(X, y), atol=1e-6)
    with pytest.raises(ValueError, match="backend"):
        LogisticRegression(backend="abacus").fit(X, y)
    with pytest.raises(ValueError, match="num_threads"):
        LogisticRegression(num_threads=0).fit(X, y)


# ------------------------------------------------------------------------------------------------ predictions


@pytest.mark.parametrize("k", [2, 3])
def test_predictions(k):
    X, y = small(k=k)
    model = exact().fit(X, y)
    z = model.decision_function(X)
    np.testing.assert_allclose(z, (X @ model.coef_.T + model.intercept_).squeeze(), atol=1e-12)
    wide = np.stack([0 * z, z], axis=1) if k == 2 else z
    p = model.predict_proba(X)
    np.testing.assert_allclose(p, special.softmax(wide, axis=1), atol=1e-14)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-14)
    np.testing.assert_allclose(model.predict_log_proba(X), np.log(p), atol=1e-13)
    np.testing.assert_array_equal(model.predict(X), wide.argmax(axis=1))
    assert model.score(X, y) == np.mean(model.predict(X) == y)


@pytest.mark.parametrize("k", [2, 3])
def test_log_probabilities_in_the_tail(k):
    X, y = small(k=k)
    model = exact().fit(X, y)
    far = 1e4 * X
    log_p = model.predict_log_proba(far)
    z = far @ model.coef_.T + model.intercept_
    z = np.hstack([0 * z, z]) if k == 2 else z
    assert np.isfinite(log_p).all()
    assert (model.predict_proba(far) == 0).any()
    for row in range(5):
        u = [special.logsumexp(z[row] - z[row, j]) for j in range(k)]
        np.testing.assert_allclose(log_p[row], np.negative(u), rtol=1e-12, atol=1e-300)
    # The winner's log-probability is -Σ exp(z_j - z_max), far below the rounding of 1.
    top = np.sort(z / 50, axis=1)
    rest = np.exp(top[:, :-1] - top[:, -1:]).sum(axis=1)
    model.coef_, model.intercept_ = model.coef_ / 50, model.intercept_ / 50
    np.testing.assert_allclose(model.predict_log_proba(far).max(axis=1), -np.log1p(rest), rtol=1e-9)


def test_sparsify_and_densify():
    X, y = small()
    model = exact().fit(X, y)
    dense, p = model.coef_.copy(), model.predict_proba(X)
    assert model.sparsify() is model
    assert sparse.issparse(model.coef_)
    np.testing.assert_allclose(model.predict_proba(X), p, atol=1e-14)
    np.testing.assert_allclose(model.predict_proba(sparse.csr_matrix(X)), p, atol=1e-14)
    np.testing.assert_array_equal(model.densify().coef_, dense)


# --------------------------------------------------------------------------------------- losses and smoothing


def test_label_smoothing_is_soft_labels():
    for k in (2, 3):
        X, y = small(k=k)
        smoothed = exact(label_smoothing=0.2).fit(X, y)
        assert_same_model(smoothed, exact().fit(X, 0.8 * np.eye(k)[y] + 0.2 / k), atol=1e-8)
        as_object = exact(loss=SoftmaxCrossEntropy(label_smoothing=0.2), solver="lbfgs").fit(X, y)
        assert_same_model(as_object, smoothed, atol=1e-6)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("solver", ["lbfgs", "newton-cg"])
def test_loss_object(k, solver):
    X, y = small(k=k)
    v = np.linspace(0, 2, len(y))
    ours = exact(loss=SoftmaxCrossEntropy(), solver=solver).fit(X, y, v)
    assert_same_model(ours, exact().fit(X, y, v), atol=1e-6)


def test_losses_that_are_refused():
    X, y = small()
    with pytest.raises(TypeError, match="loss"):
        LogisticRegression(loss=3).fit(X, y)
    with pytest.raises(ValueError, match="label_smoothing"):
        LogisticRegression(loss=SoftmaxCrossEntropy(), label_smoothing=0.1).fit(X, y)


# --------------------------------------------------------------------------------- fitting again, and failing


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_warm_start(k, fit_intercept):
    X, y = small(k=k)
    model = exact(solver="lbfgs", warm_start=True, fit_intercept=fit_intercept).fit(X, y)
    cold, coef = model.n_iter_[0], model.coef_.copy()
    model.sparsify().fit(X, y)
    assert model.n_iter_[0] <= 1 < cold
    np.testing.assert_allclose(model.coef_, coef, atol=1e-8)
    with pytest.raises(ValueError, match="Initialization coef is of shape"):
        model.fit(X[:, :3], y)


def test_convergence_warning_says_what_failed_by_how_much_and_what_to_do():
    X, y = small()
    with pytest.warns(ConvergenceWarning, match="failed to converge after 2 iteration") as record:
        model = LogisticRegression(solver="lbfgs", max_iter=2).fit(X, y)
    text = str(record[0].message)
    assert "max_iter=2" in text
    assert "tol asks for 0.0001" in text
    assert "Increase max_iter" in text
    assert model.n_iter_.tolist() == [2]
    assert model.n_iter_.dtype == np.int32
    assert model.opt_result_.status == "max_iter"


def test_stopping_rule_is_the_gradient_of_the_objective():
    X, y = small(k=2)
    for tol in (1e-2, 1e-5):
        model = LogisticRegression(tol=tol).fit(X, y)
        p = special.expit(X @ model.coef_[0] + model.intercept_)
        gradient = np.append(X.T @ (p - y) + model.coef_[0], (p - y).sum()) / len(y)
        assert abs(gradient).max() <= tol * (1 + 1e-9)
        assert model.opt_result_.grad_max == pytest.approx(abs(gradient).max(), rel=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"solver": "lbfgs"},
        {"solver": "newton-cg"},
        {"solver": "newton-cholesky"},
        {"C": 0.1, "l1_ratio": 1.0},
    ],
    ids=str,
)
def test_keyboard_interrupt_keeps_the_partial_model(options, monkeypatch):
    from fastxent._penalized import Problem

    X, y = small()
    original, calls = Problem.value_and_grad, []

    def interrupted(self, w):
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return original(self, w)

    monkeypatch.setattr(Problem, "value_and_grad", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits it ignored
    try:
        with pytest.warns(ConvergenceWarning, match="interrupted"):
            model = exact(**options).fit(X, y)
    finally:
        signal.signal(signal.SIGINT, before)
    assert model.opt_result_.status == "interrupted"
    assert model.n_iter_[0] >= 1
    assert model.coef_.any()
    assert model.score(X, y) > 0.4


def test_warm_starts_along_a_path_of_c():
    X, y = small(n=400, d=8)
    path, iterations = exact(solver="lbfgs", warm_start=True, tol=1e-8), []
    for C in (0.1, 0.2, 0.4):
        cold = exact(solver="lbfgs", C=C, tol=1e-8).fit(X, y)
        path.set_params(C=C).fit(X, y)
        assert_same_model(path, cold, atol=1e-5)
        iterations.append((path.n_iter_[0], cold.n_iter_[0]))
    assert sum(warm for warm, _ in iterations[1:]) < sum(cold for _, cold in iterations[1:])


@pytest.mark.parametrize("verbose", [1, 2])
def test_verbose(verbose, capsys):
    X, y = small()
    model = LogisticRegression(verbose=verbose, solver="lbfgs").fit(X, y)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + (model.n_iter_[0] if verbose == 2 else 0)
    assert "converged" in lines[-1]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    "options", [{"solver": "lbfgs"}, {"solver": "newton-cholesky"}, {"l1_ratio": 1.0}], ids=str
)
def test_bar_on_a_terminal_and_nowhere_else(options, capsys, monkeypatch):
    X, y = small()
    LogisticRegression(verbose=1, **options).fit(X, y)
    assert capsys.readouterr().err == ""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    model = LogisticRegression(verbose=1, **options).fit(X, y)
    *bars, wiped = terminal.getvalue().split("\r")[1:]
    assert len(bars) == model.n_iter_[0]
    assert "iteration 1," in bars[0]
    assert bars[-1].count("#") == 30 > bars[0].count("#")
    assert wiped == "\x1b[K"
    terminal.truncate(0)
    LogisticRegression(**options).fit(X, y)
    assert terminal.getvalue() == ""


# -------------------------------------------------------------------------------------------------- in streams


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"solver": "liblinear"},
        {"l1_ratio": 0.5, "C": 0.3},
        {"fit_intercept": False},
        {"loss": "focal"},
        {"loss": "gce"},
    ],
    ids=str,
)
@pytest.mark.parametrize("k", [2, 3])
def test_first_partial_fit_is_fit(options, k):
    X, y = small(k=k)
    if k == 3 and "solver" in options:
        pytest.skip("liblinear knows two classes")
    v = np.arange(len(y)) % 3
    stream = exact(tol=1e-8, **options).partial_fit(X, y, classes=range(k), sample_weight=v)
    assert_same_model(stream, exact(tol=1e-8, **options).fit(X, y, v), atol=1e-6)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("form", ["dense", "sparse", "many parameters"])
def test_partial_fits_come_close_to_one_fit(k, form, monkeypatch):
    from fastxent._penalized import ContinuedProblem

    X, y = small(n=600, k=k)
    form_of = sparse.csr_array if form == "sparse" else np.asarray
    if form == "many parameters":
        monkeypatch.setattr(ContinuedProblem, "MOST_PARAMETERS", 3)
    whole, stream = exact().fit(X, y), LogisticRegression(tol=1e-6, max_iter=500)
    for i in range(0, 600, 50):
        stream.partial_fit(form_of(X[i : i + 50]), y[i : i + 50], range(k))
    best, got = (penalized(m, X, y, 1.0, 0.0) for m in (whole, stream))
    first = penalized(LogisticRegression().fit(X[:50], y[:50]), X, y, 1.0, 0.0)
    # Of what the first batch alone lacks, the matrix leaves less than a twentieth, the diagonal less than a fifth.
    assert got - best < (first - best) * (0.05 if form == "dense" else 0.2)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("form", ["dense", "sparse", "many parameters"])
def test_partial_fits_with_a_loss_object(k, form, monkeypatch):
    """Cross-entropy as an object streams as cross-entropy does; losses that are not convex come close to one fit."""
    from fastxent._penalized import ContinuedProblem

    X, y = small(n=600, k=k)
    form_of = sparse.csr_array if form == "sparse" else np.asarray
    if form == "many parameters":
        monkeypatch.setattr(ContinuedProblem, "MOST_PARAMETERS", 3)

    def streamed(loss):
        model = LogisticRegression(loss=loss, tol=1e-8, max_iter=1000)
        for i in range(0, 600, 100):
            model.partial_fit(form_of(X[i : i + 100]), y[i : i + 100], range(k))
        return model

    plain, given = streamed(None), streamed(SoftmaxCrossEntropy())
    np.testing.assert_allclose(given.predict_proba(X), plain.predict_proba(X), atol=1e-5)
    for loss in ("focal", "gce"):
        model = streamed(loss)
        whole = exact(loss=loss).fit(X, y)
        first = exact(loss=loss).fit(X[:100], y[:100])
        away = abs(model.predict_proba(X) - whole.predict_proba(X)).mean()
        assert away < 0.5 * abs(first.predict_proba(X) - whole.predict_proba(X)).mean()


def test_partial_fit_goes_on_with_sparse_rows_after_dense_ones():
    X, y = small(n=200, k=3)
    dense = exact().partial_fit(X[:100], y[:100], range(3)).partial_fit(X[100:], y[100:])
    mixed = exact().partial_fit(X[:100], y[:100], range(3)).partial_fit(sparse.csr_array(X[100:]), y[100:])
    assert_same_model(mixed, dense, atol=1e-6)


def test_partial_fit_again_and_again_moves_by_the_weight_of_what_is_new():
    X, y = small(k=2)
    once = exact().partial_fit(X, y, [0, 1])
    center = once.coef_.copy()
    once.partial_fit(X[:1], y[:1], sample_weight=[0.5])
    assert 0 < abs(once.coef_ - center).max() < 0.05
    # Twice the rows count twice: half the penalty.
    twice = exact().partial_fit(X, y, [0, 1]).partial_fit(X, y)
    right = exact(C=2.0).fit(X, y).coef_
    assert abs(twice.coef_ - right).max() < 0.4 * abs(center - right).max()


def test_partial_fit_of_rows_one_by_one_of_one_class_each():
    X, y = small(n=60, k=3)
    model = LogisticRegression()
    for i in range(60):
        model.partial_fit(X[i : i + 1], y[i : i + 1], [0, 1, 2] if i == 0 else None)
    assert model.score(X, y) > exact().fit(X, y).score(X, y) - 0.1


def test_partial_fit_with_l1_keeps_zeros():
    X, y = small(n=600, d=8, k=2)
    X[:, 5:] = np.random.default_rng(1).standard_normal((600, 3))
    model = LogisticRegression(l1_ratio=1.0, C=0.02, tol=1e-6, max_iter=500)
    for i in range(0, 600, 100):
        model.partial_fit(X[i : i + 100], y[i : i + 100], [0, 1])
    whole = exact(l1_ratio=1.0, C=0.02, tol=1e-8).fit(X, y)
    np.testing.assert_allclose(model.coef_, whole.coef_, atol=0.1)
    assert (model.coef_ == 0).any()


def test_partial_fit_takes_soft_labels_and_strings():
    X, y = small(k=3)
    soft = exact().partial_fit(X, np.eye(3)[y])
    assert_same_model(soft, exact().partial_fit(X, y, [0, 1, 2]), atol=1e-8)
    soft.partial_fit(X, np.eye(3)[y])
    names = np.array(["x", "y", "z"])
    named = exact().partial_fit(X[y != 2], names[y[y != 2]], names)
    assert named.classes_.tolist() == ["x", "y", "z"]
    assert named.coef_.shape == (3, 5)


def test_partial_fit_refuses():
    X, y = small(k=2)
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        LogisticRegression().partial_fit(X, y)
    model = LogisticRegression().partial_fit(X, y, [0, 1])
    with pytest.raises(ValueError, match="those of the first call"):
        model.partial_fit(X, y, [0, 1, 2])
    with pytest.raises(ValueError, match=r"y\[0\] is .*7"):
        model.partial_fit(X, y + 7)
    with pytest.raises(ValueError, match="features"):
        model.partial_fit(X[:, :3], y)
    with pytest.raises(ValueError, match="balanced"):
        LogisticRegression(class_weight="balanced").partial_fit(X, y, [0, 1])
    with pytest.raises(ValueError, match="Negative"):
        model.partial_fit(X, y, sample_weight=-np.ones(len(y)))
    # fit forgets the stream
    assert_same_model(model.fit(X, y).partial_fit(X, y), LogisticRegression().fit(X, y), atol=1e-3)


# --------------------------------------------------------------------------------------------- as scikit-learn's


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize(
    "options", [{}, {"l1_ratio": 1.0, "C": 0.1}, {"C": np.inf}, {"solver": "newton-cg"}], ids=str
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:Setting penalty=None:UserWarning")  # scikit-learn 1.8 to its own C=inf
def test_to_sklearn(k, options):
    X, y = small(k=k)
    names = np.array(["a", "b", "c"])[y]
    model = LogisticRegression(class_weight="balanced", num_threads=1, **options).fit(X, names)
    theirs = model.to_sklearn()
    assert type(theirs) is linear_model.LogisticRegression
    np.testing.assert_array_equal(theirs.predict(X), model.predict(X))
    np.testing.assert_allclose(theirs.predict_proba(X), model.predict_proba(X), rtol=1e-13)
    np.testing.assert_array_equal(theirs.coef_, model.coef_)
    theirs.coef_[...] = 0
    assert model.coef_.any()
    again = clone(model.to_sklearn()).set_params(max_iter=5000, tol=1e-8).fit(X, names)
    np.testing.assert_allclose(again.predict_proba(X), model.predict_proba(X), atol=0.01)


def test_to_sklearn_of_a_sparse_and_of_an_unfitted_model():
    X, y = small()
    model = LogisticRegression().fit(X, y).sparsify()
    np.testing.assert_array_equal(model.to_sklearn().predict(X), model.predict(X))
    with pytest.raises(NotFittedError):
        LogisticRegression().to_sklearn()


# ------------------------------------------------------------------------ parameters as scikit-learn has them


def test_parameters_of_scikit_learn_are_all_there():
    theirs, ours = linear_model.LogisticRegression().get_params(), LogisticRegression().get_params()
    if MODERN:
        different = {name for name in theirs if theirs[name] != ours.get(name, "missing")}
        assert different == {"solver"}
    else:
        assert set(theirs) - {"multi_class"} <= set(ours)


@pytest.mark.parametrize("solver", ["auto", "lbfgs", "newton-cg", "newton-cholesky", "sag", "saga"])
def test_every_solver_name_solves_the_same_problem(solver):
    X, y = small()
    assert_same_model(exact(solver=solver).fit(X, y), exact().fit(X, y), atol=1e-7)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"C": 0}, "C"),
        ({"C": -1.0}, "C"),
        ({"tol": -1.0}, "tol"),
        ({"max_iter": -1}, "max_iter"),
        ({"solver": "magic"}, "solver"),
        ({"l1_ratio": 1.5}, "l1_ratio"),
        ({"class_weight": "heavy"}, "class_weight"),
        (
            {"solver": "lbfgs", "l1_ratio": 0.5},
            "Solver lbfgs supports only 'l2' or None penalties, got elasticnet",
        ),
        (
            {"solver": "newton-cg", "l1_ratio": 1.0},
            "Solver newton-cg supports only 'l2' or None penalties, got l1",
        ),
        ({"dual": True}, "supports only dual=False, got dual=True"),
        ({"solver": "liblinear", "l1_ratio": 0.5}, "Only 'saga' solver supports elasticnet"),
        ({"solver": "liblinear", "C": np.inf}, "not supported for the liblinear solver"),
    ],
)
def test_parameters_that_are_refused(options, error):
    X, y = small(k=2)
    with pytest.raises(ValueError, match=error):
        LogisticRegression(**options).fit(X, y)


@pytest.mark.skipif(
    parse_version(sklearn.__version__) < parse_version("1.9"), reason="the words are those of 1.9"
)
@pytest.mark.parametrize(
    "options",
    [
        {"penalty": "l2"},
        {"penalty": None},
        {"penalty": None, "C": 2.0},
        {"l1_ratio": None},
        {"n_jobs": 2},
        {"penalty": "l2", "l1_ratio": 0.5},
    ],
    ids=str,
)
def test_warnings_are_scikit_learns(options):
    X, y = small(k=2)
    with warnings.catch_warnings(record=True) as theirs:
        warnings.simplefilter("always")
        linear_model.LogisticRegression(**options).fit(X, y)
    with warnings.catch_warnings(record=True) as ours:
        warnings.simplefilter("always")
        LogisticRegression(**options).fit(X, y)
    assert [(w.category, str(w.message)) for w in ours] == [(w.category, str(w.message)) for w in theirs]
    assert theirs
    assert all(w.filename == __file__ for w in ours)


def test_penalty_none_is_infinite_c():
    X, y = small(k=2)
    with pytest.warns(FutureWarning, match="penalty"):
        model = exact(penalty=None).fit(X, y)
    assert_same_model(model, exact(C=np.inf).fit(X, y), atol=1e-8)


# -------------------------------------------------------------------------------------------- as an estimator


def test_pickle_clone_and_search():
    X, y = small()
    model = LogisticRegression(C=3.0, label_smoothing=0.1).fit(X, y)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
    assert again.opt_result_.message == model.opt_result_.message
    assert clone(model).get_params() == model.get_params()
    search = GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=2).fit(X, y)
    assert search.best_params_["C"] in (0.1, 1.0)


@pytest.mark.skipif(
    parse_version(sklearn.__version__) < parse_version("1.9"), reason="sklearn.callback is new in 1.9"
)
def test_callbacks_of_scikit_learn():
    pytest.importorskip("pandas", reason="ScoringMonitor hands out data frames")
    from sklearn.callback import ScoringMonitor

    class Stop:
        def __init__(self):
            self.begun, self.ended, self.scores = 0, 0, []

        def setup(self, estimator, context):
            pass

        def teardown(self, estimator, context):
            self.torn_down = True

        def on_fit_task_begin(self, estimator, context):
            self.begun += 1

        def on_fit_task_end(self, estimator, context, *, fitted_estimator):
            self.ended += 1
            if context.task_name == "iteration" and fitted_estimator is not None:
                self.scores.append(fitted_estimator.score(X, y))
                return len(self.scores) == 3
            return False

    X, y = small()
    for options in (
        *({"solver": solver} for solver in SOLVERS),
        {},
        {"solver": "sag"},
        {"l1_ratio": 1.0, "C": 0.1},
    ):
        stop = Stop()
        model = exact(**options).set_callbacks(stop).fit(X, y)
        assert model.n_iter_.tolist() == [3]
        assert model.opt_result_.status == "stopped"
        assert stop.scores[-1] == model.score(X, y)
        assert stop.begun == stop.ended == 5
        assert stop.torn_down
    monitor = ScoringMonitor(scoring="accuracy")
    model = exact(solver="lbfgs").set_callbacks(monitor).fit(X, y)
    assert len(monitor.get_logs().data_as_pandas) >= model.n_iter_[0]


@pytest.mark.data
@pytest.mark.slow
def test_mnist(data_folder):
    data = np.load(data_folder / "mnist.npz")
    X = (data["x_train"].reshape(-1, 784) / 255).astype(np.float32)
    model = LogisticRegression().fit(X, data["y_train"])
    assert model.opt_result_.converged
    assert model.score((data["x_test"].reshape(-1, 784) / 255).astype(np.float32), data["y_test"]) >= 0.92


@pytest.mark.parametrize(
    "y",
    [
        np.array([3, -2, 3, 3, -2, 5, 5, 5, 5, 5]),
        np.array([250, 7, 7, 250, 7, 7], np.uint8),
        np.array([0, 0, 0, 1], np.int8),
        np.array([10**12, 10**12 + 1] * 3),
        np.array([1, 10**15] * 3),
    ],
    ids=lambda y: str(y.dtype),
)
def test_integer_labels_are_encoded_as_by_sorting(y):
    classes, codes = encode_labels(y)
    expected, inverse = np.unique(y, return_inverse=True)
    np.testing.assert_array_equal(classes, expected)
    np.testing.assert_array_equal(codes, inverse)
    assert classes.dtype == y.dtype
