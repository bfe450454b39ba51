"""Boosting objectives against the libraries' own, against float64 derivatives, and on imbalanced data."""

from __future__ import annotations

import functools
import pickle

import numpy as np
import pytest
from scipy import special
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score, log_loss
from sklearn.model_selection import GridSearchCV, train_test_split

import fastxent as fx
from fastxent import boosting
from fastxent.boosting import (
    ProbabilityMixin,
    lightgbm_metric,
    lightgbm_objective,
    softmax_scores,
    xgboost_metric,
    xgboost_objective,
)

LIBRARIES = {"xgboost": xgboost_objective, "lightgbm": lightgbm_objective}
ORDERS = {"xgboost": ("C", np.float32), "lightgbm": ("F", np.float64)}
SOFTMAX_LOSSES = (
    fx.SoftmaxCrossEntropy(class_weight=(1.0, 2.0, 0.5), label_smoothing=0.1),
    fx.SoftmaxCrossEntropy(z_loss=0.01, temperature=2.0),
    fx.FocalLoss(gamma=2.0, alpha=(1.0, 3.0, 2.0)),
    fx.Poly1Loss(),
    fx.GeneralizedCrossEntropy(),
    fx.SymmetricCrossEntropy(),
    fx.JensenShannonLoss(),
    fx.BootstrappingLoss(),
    0.5 * fx.SoftmaxCrossEntropy() + 0.5 * fx.FocalLoss(),
)
BINARY_LOSSES = (
    fx.SigmoidCrossEntropy(pos_weight=3.0, label_smoothing=0.1),
    fx.BinaryFocalLoss(alpha=0.25),
)


@functools.cache
def drawn(n_classes, n_samples=2000, n_features=8):
    """Features, labels drawn from a linear softmax model, and weights."""
    rng = np.random.default_rng(n_classes)
    X = rng.normal(size=(n_samples, n_features)).astype(np.float32)
    scores = X @ rng.normal(size=(n_features, n_classes)) + rng.gumbel(size=(n_samples, n_classes))
    return X, scores.argmax(axis=1), rng.uniform(0.5, 2.0, n_samples)


def margins_of(n_samples, n_classes, library, seed=0):
    order, dtype = ORDERS[library]
    z = np.random.default_rng(seed).normal(0, 3, (n_samples, n_classes))
    return np.array(z, dtype, order=order)


# ------------------------------------------------------------------------------------------- against the built-ins


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("n_classes", "loss"),
    [
        (2, fx.SigmoidCrossEntropy()),
        (2, fx.SoftmaxCrossEntropy()),
        (3, fx.SoftmaxCrossEntropy()),
        (7, fx.SoftmaxCrossEntropy()),
    ],
    ids=repr,
)
def test_cross_entropy_is_the_built_in_of_xgboost(n_classes, loss, weighted):
    xgboost = pytest.importorskip("xgboost")
    X, y, w = drawn(n_classes)
    data = xgboost.DMatrix(X, label=y, weight=w if weighted else None)
    params = {"max_depth": 4, "nthread": 1, "base_score": 0.0, "disable_default_eval_metric": 1}
    built_in = {"max_depth": 4, "nthread": 1, "base_score": 0.5, "objective": "binary:logistic"}
    if n_classes > 2:
        params["num_class"] = n_classes
        built_in |= {"base_score": 0.0, "objective": "multi:softprob", "num_class": n_classes}
    seen = {}
    ours = xgboost.train(
        params,
        data,
        20,
        obj=xgboost_objective(loss),
        custom_metric=xgboost_metric(loss),
        evals=[(data, "train")],
        evals_result=seen,
        verbose_eval=False,
    )
    theirs = xgboost.train(
        built_in, data, 20, evals=[(data, "train")], evals_result=(own := {}), verbose_eval=False
    )
    margins = ours.predict(data, output_margin=True)
    expected = theirs.predict(data, output_margin=True)
    assert margins.shape == expected.shape
    assert np.abs(margins - expected).max() <= 1e-5 * np.abs(expected).max()
    probabilities = theirs.predict(data)
    if n_classes == 2:
        probabilities = np.stack([1 - probabilities, probabilities], axis=1)
    np.testing.assert_allclose(softmax_scores(margins), probabilities, atol=1e-6)
    (curve,) = seen["train"].values()
    (own_curve,) = own["train"].values()
    np.testing.assert_allclose(curve, own_curve, rtol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("n_classes", "loss"),
    [
        (2, fx.SigmoidCrossEntropy()),
        (2, fx.SoftmaxCrossEntropy()),
        (3, fx.SoftmaxCrossEntropy()),
        (7, fx.SoftmaxCrossEntropy()),
    ],
    ids=repr,
)
def test_cross_entropy_is_the_built_in_of_lightgbm_to_the_bit(n_classes, loss, weighted):
    lightgbm = pytest.importorskip("lightgbm")
    X, y, w = drawn(n_classes)
    params = {"verbosity": -1, "boost_from_average": False, "deterministic": True, "num_threads": 1}
    built_in = {**params, "objective": "binary", "metric": "binary_logloss"}
    if n_classes > 2:
        params["num_class"] = n_classes
        built_in |= {"objective": "multiclass", "metric": "multi_logloss", "num_class": n_classes}

    def trained(params, **options):
        data = lightgbm.Dataset(X, label=y, weight=w if weighted else None)
        curves = {}
        model = lightgbm.train(
            params,
            data,
            20,
            valid_sets=[data],
            callbacks=[lightgbm.record_evaluation(curves)],
            **options,
        )
        (curve,) = curves["training"].values()
        return model.predict(X, raw_score=True), curve

    raw, curve = trained(
        {**params, "objective": lightgbm_objective(loss), "metric": "none"}, feval=lightgbm_metric(loss)
    )
    expected, own_curve = trained(built_in)
    np.testing.assert_array_equal(raw, expected)
    np.testing.assert_allclose(curve, own_curve, rtol=1e-9)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_xgboost_classifier(n_classes):
    """The scikit-learn interface with weights, metric and early stopping; predict_proba gives probabilities."""
    xgboost = pytest.importorskip("xgboost")
    X, y, w = drawn(n_classes)
    ce = fx.SoftmaxCrossEntropy()
    start = 0.5 if n_classes == 2 else 0.0  # for two classes the scikit-learn interface takes a probability
    options = {
        "n_estimators": 15,
        "max_depth": 3,
        "n_jobs": 1,
        "base_score": start,
        "early_stopping_rounds": 5,
    }
    fitted = {"sample_weight": w, "eval_set": [(X, y)], "sample_weight_eval_set": [w], "verbose": False}
    ours = xgboost.XGBClassifier(objective=xgboost_objective(ce), eval_metric=xgboost_metric(ce), **options)
    ours = clone(ours).fit(X, y, **fitted)
    theirs = xgboost.XGBClassifier(**options).fit(X, y, **fitted)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-6)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
    curve = ours.evals_result()["validation_0"]["SoftmaxCrossEntropy"]
    (own_curve,) = theirs.evals_result()["validation_0"].values()
    np.testing.assert_allclose(curve, own_curve, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:The argument 'eval_set' is deprecated")
@pytest.mark.parametrize("n_classes", [2, 4])
def test_lightgbm_classifier_with_probabilities(n_classes):
    lightgbm = pytest.importorskip("lightgbm")

    class Classifier(ProbabilityMixin, lightgbm.LGBMClassifier):
        pass

    X, y, w = drawn(n_classes)
    names = np.array(["ash", "elm", "fir", "oak"])[y]
    options = {
        "n_estimators": 15,
        "verbosity": -1,
        "boost_from_average": False,
        "deterministic": True,
        "n_jobs": 1,
    }
    ours = clone(Classifier(objective=lightgbm_objective(fx.SoftmaxCrossEntropy()), **options))
    ours.fit(X, names, sample_weight=w, eval_set=[(X, names)], eval_metric=lightgbm_metric("cross_entropy"))
    theirs = lightgbm.LGBMClassifier(**options).fit(X, names, sample_weight=w)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
    np.testing.assert_array_equal(ours.predict(X, raw_score=True), theirs.predict(X, raw_score=True))
    np.testing.assert_array_equal(ours.predict(X, pred_leaf=True), theirs.predict(X, pred_leaf=True))
    np.testing.assert_array_equal(ours.predict_proba(X, raw_score=True), theirs.predict(X, raw_score=True))
    curve = ours.evals_result_["training"]["SoftmaxCrossEntropy"]
    assert curve[-1] == pytest.approx(log_loss(names, theirs.predict_proba(X), sample_weight=w), rel=1e-9)
    if n_classes == 2:
        search = GridSearchCV(
            Classifier(n_estimators=3, verbosity=-1),
            {"objective": [lightgbm_objective("focal"), lightgbm_objective("binary_focal")]},
            scoring="neg_log_loss",
            cv=2,
        )
        assert np.isfinite(search.fit(X, names).cv_results_["mean_test_score"]).all()


# ------------------------------------------------------------------------------------------------------ derivatives


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("loss", SOFTMAX_LOSSES, ids=repr)
def test_derivatives_are_those_of_the_loss(loss, library):
    """Gradient of the weighted sum against the loss object in float64; curvature no less than the exact one."""
    rng = np.random.default_rng(1)
    z, y, w = margins_of(301, 3, library), rng.integers(0, 3, 301), rng.uniform(0.5, 2, 301)
    grad, hess = LIBRARIES[library](loss)(y.astype(np.float32), z, w)
    expected, exact = loss.grad_hess(z.astype(np.float64), y, w, "sum", backend="numpy")
    scale = np.abs(expected).max()
    np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-6 * scale)
    assert (hess >= 0).all()
    if type(loss) is not fx.SoftmaxCrossEntropy:
        assert (hess >= exact - 1e-6 * np.abs(exact).max()).all()


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("loss", BINARY_LOSSES, ids=repr)
def test_binary_derivatives_are_those_of_the_loss(loss, library):
    rng = np.random.default_rng(1)
    z = rng.normal(0, 3, 400).astype(ORDERS[library][1])
    y, w = rng.integers(0, 2, 400), rng.uniform(0.5, 2, 400)
    grad, hess = LIBRARIES[library](loss)(y, z, w)
    expected, exact = loss.grad_hess(z.astype(np.float64), y, w, "sum", backend="numpy")
    np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-6)
    assert (hess >= np.maximum(exact, 0) - 1e-6).all()
    many = np.stack([z, -z], axis=1)  # two labels, whose matrix a DMatrix keeps flat
    both = np.stack([y, 1 - y], axis=1)
    grads, _ = LIBRARIES[library](loss)(both.ravel(), many, w)
    np.testing.assert_allclose(grads[:, 0], grad, rtol=1e-6)


@pytest.mark.parametrize("loss", [fx.FocalLoss(), fx.GeneralizedCrossEntropy(), fx.Poly1Loss()], ids=repr)
@pytest.mark.parametrize("library", LIBRARIES)
def test_one_margin_is_two_classes(loss, library):
    """The second derivative along the second class's logit, with the first held at 0."""
    z = np.linspace(-6, 6, 101).astype(ORDERS[library][1])
    y = np.arange(101) % 2
    grad, hess = LIBRARIES[library](loss, "exact")(y, z)
    both = np.stack([np.zeros(101), z.astype(np.float64)], axis=1)
    step = 1e-4
    up, down = (loss.loss(both + np.array([0, sign * step]), y, reduction="none") for sign in (1, -1))
    middle = loss.loss(both, y, reduction="none")
    np.testing.assert_allclose(grad, (up - down) / (2 * step), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(hess, (up - 2 * middle + down) / step**2, rtol=1e-3, atol=1e-5)


def kernel_cases():
    """Fewer and more classes than a vector has lanes, more than tiles take; one row, ragged groups, blocks."""
    for n_classes in (2, 3, 7, 10, 16, 21, 64, 128):
        for n_samples in (1, 31, 32, 129, 700):
            yield n_classes, n_samples
    yield 5, 40_001


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kernel_of_the_usual_case(library, dtype, backend, monkeypatch):
    """Against float64 in every layout, to the rounding of float32: likely classes too, whose 1 - p has few digits."""
    kernels = boosting._backend.choose(backend)
    monkeypatch.setattr(boosting._backend, "choose", lambda _: kernels)
    factors = {"xgboost": lambda k: (2.0, 1e-16), "lightgbm": lambda k: (k / max(k - 1, 1), 0.0)}
    rng = np.random.default_rng(4)
    for n_classes, n_samples in kernel_cases():
        z = rng.normal(0, 6, (n_samples, n_classes)).astype(dtype)
        z[rng.random(z.shape) < 0.1] = 9.0  # ties
        y = rng.integers(0, n_classes, n_samples)
        for weighted in (False, True):
            v = rng.uniform(0.5, 2, n_samples).astype(dtype) if weighted else None
            w = tuple(rng.uniform(0.5, 2, n_classes).astype(np.float32).tolist()) if weighted else None
            by_row = np.ones(n_samples) if v is None else v.astype(np.float64) * np.asarray(w)[y]
            p = special.softmax(z.astype(np.float64), axis=1)
            shifted = np.exp(z.astype(np.float64) - z.max(axis=1, keepdims=True))
            left = (np.einsum("ij,kj->ik", shifted, 1 - np.eye(n_classes))) / shifted.sum(axis=1)[:, None]
            factor, floor = factors[library](n_classes)
            expected = np.where(np.arange(n_classes) == y[:, None], -left, p) * by_row[:, None]
            curved = np.maximum(factor * p * left, floor) * by_row[:, None]
            layouts = (z, np.asfortranarray(z), np.repeat(z, 2, axis=1)[:, ::2], z[::-1].copy()[::-1])
            for margins in layouts if n_samples < 200 else layouts[:2]:
                grad, hess = LIBRARIES[library](fx.SoftmaxCrossEntropy(class_weight=w))(y, margins, v)
                rtol = 2e-6 if dtype == np.float32 else 1e-7
                np.testing.assert_allclose(grad, expected, rtol=rtol, atol=1e-37)
                np.testing.assert_allclose(hess, curved, rtol=2 * rtol, atol=1e-37)


LABEL_DTYPES = (bool, "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kernel_reads_labels_and_weights_where_they_lie(dtype, backend):
    """Of every dtype, side by side or apart: the same bits as from int64 and the margins' own dtype."""
    kernels = boosting._backend.choose(backend)
    rng = np.random.default_rng(6)
    z, y = rng.normal(size=(700, 2)).astype(dtype), rng.integers(0, 2, 700)
    v = rng.uniform(0.5, 2, 700).astype(np.float32)

    def run(labels, weight, order):
        outs = [np.full(z.shape, np.nan, np.float32, order) for _ in range(2)]
        arguments = (np.asarray(z, order=order), labels, weight, None, 2.0, 1e-16, *outs, 1)
        return kernels.softmax_boost(*arguments), outs

    for order in "CF":
        plain, expected = run(y, v.astype(dtype), order)
        assert plain
        for labels in (y.astype(name) for name in LABEL_DTYPES):
            for weight in (v, v.astype(np.float64)):
                for step in (1, 2, -1):
                    apart = [
                        np.repeat(a[::-1] if step < 0 else a, abs(step))[::step] for a in (labels, weight)
                    ]
                    plain, got = run(*apart, order)
                    assert plain
                    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("at", [0, 255, 256, 699])
def test_kernel_tells_labels_that_are_no_classes(dtype, at, backend):
    """And weights that are negative or not finite; in rows of weight 0 too, as the check does."""
    kernels = boosting._backend.choose(backend)
    z = np.zeros((700, 3), dtype)
    outs = np.empty((2, 700, 3), np.float32)

    def plain(labels, weight=None):
        return kernels.softmax_boost(z, labels, weight, None, 2.0, 0.0, *outs, 1)

    for name in LABEL_DTYPES:
        labels = np.zeros(700, name)
        assert plain(labels)
        wrong = [3, 100] if labels.dtype.kind in "uif" else []
        wrong += [-1, -128] if labels.dtype.kind in "if" else []
        wrong += [0.5, 2.999, np.nan, np.inf, -np.inf, 1e30] if labels.dtype.kind == "f" else []
        wrong += [np.iinfo(name).max] if labels.dtype.kind in "ui" else []
        for value in wrong:
            labels[at] = value
            dead = np.where(np.arange(700) == at, 0.0, 1.0)
            assert not plain(labels)
            assert not plain(labels, dead)
    labels = np.zeros(700, np.float32)
    for name in (np.float32, np.float64):
        for value in (-1.0, -1e-30, np.nan, np.inf, -np.inf):
            weight = np.ones(700, name)
            assert plain(labels, weight)
            weight[at] = value
            assert not plain(labels, weight)
    weight = np.ones(700)
    weight[at] = 1e300
    assert plain(labels, weight) is (dtype == np.float64)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("limit", [np.inf, -np.inf, np.nan])
def test_rows_with_a_limit_are_those_of_the_loss(library, limit):
    """The kernel leaves them to the loss, which knows the limits; other rows are as without them."""
    z = margins_of(300, 4, library)
    y = np.random.default_rng(5).integers(0, 4, 300)
    objective = LIBRARIES[library](fx.SoftmaxCrossEntropy())
    calm = objective(y, z)
    z[200, 2] = limit
    grad, hess = objective(y, z)
    rows = np.arange(300) != 200
    for a, b in zip((grad, hess), calm, strict=True):
        np.testing.assert_allclose(a[rows], b[rows], rtol=1e-5)
    expected, _ = fx.SoftmaxCrossEntropy().grad_hess(z[200:201], y[200:201], reduction="sum")
    np.testing.assert_allclose(grad[200:201], expected, rtol=1e-6)


@pytest.mark.parametrize("library", LIBRARIES)
def test_negative_weights_are_those_of_the_loss(library):
    """A curvature stays positive; boosters themselves refuse such weights."""
    z, y, v = margins_of(200, 3, library), np.arange(200) % 3, np.where(np.arange(200) % 5, 1.5, -2.0)
    grad, hess = LIBRARIES[library](fx.SoftmaxCrossEntropy())(y, z, v)
    expected, curved = fx.SoftmaxCrossEntropy().grad_hess(
        z.astype(np.float64), y, v, reduction="sum", hessian=library, backend="numpy"
    )
    assert (hess > 0).all()
    np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(hess, curved, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_kernel_takes_the_usual_case_only(library, monkeypatch):
    """Options that it does not know go to the loss: smoothing, z-loss, temperature, a bias, an ignored class."""
    z, y = margins_of(40, 3, library), np.arange(40) % 3
    losses = (
        fx.SoftmaxCrossEntropy(label_smoothing=0.1),
        fx.SoftmaxCrossEntropy(z_loss=0.1),
        fx.SoftmaxCrossEntropy(temperature=2.0),
        fx.SoftmaxCrossEntropy(logit_bias=(0.0, 1.0, 2.0)),
        fx.SoftmaxCrossEntropy(base=2.0),
        fx.SoftmaxCrossEntropy(ignore_index=1),
    )
    for loss in losses:
        grad, hess = LIBRARIES[library](loss)(y, z)
        expected, curved = loss.grad_hess(
            z.astype(np.float64), y, reduction="sum", hessian=library, backend="numpy"
        )
        np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(hess, curved, rtol=1e-5, atol=1e-6)
    usual = LIBRARIES[library](fx.SoftmaxCrossEntropy())(y, z)
    monkeypatch.setattr(boosting, "MOST_CLASSES", 2)
    for a, b in zip(LIBRARIES[library](fx.SoftmaxCrossEntropy())(y, z), usual, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("library", LIBRARIES)
def test_layout_is_the_library_s_own(library):
    """float32, row by row or class by class: nothing that the library would copy again."""
    order = ORDERS[library][0]
    z = margins_of(50, 4, library)
    for array in LIBRARIES[library](fx.SoftmaxCrossEntropy())(np.zeros(50), z):
        assert array.dtype == np.float32
        assert array.shape == z.shape
        assert array.flags[f"{order}_CONTIGUOUS"]
    kept = z.copy(order="K")
    LIBRARIES[library]("focal")(np.zeros(50), z)
    np.testing.assert_array_equal(z, kept)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("loss", [fx.SoftmaxCrossEntropy(), fx.FocalLoss()], ids=repr)
def test_blocks_and_threads_change_nothing(loss, library, monkeypatch):
    """Cut into many blocks on several threads or into one on one: the same bits."""
    rng = np.random.default_rng(2)
    z, y, w = margins_of(997, 5, library), rng.integers(0, 5, 997), rng.uniform(0.5, 2, 997)
    objective = LIBRARIES[library](loss)
    whole = objective(y, z, w)
    monkeypatch.setattr(boosting, "_BLOCK", 64)
    monkeypatch.setattr(boosting._backend, "default_threads", lambda: 3)
    for a, b in zip(objective(y, z, w), whole, strict=True):
        np.testing.assert_array_equal(a, b)
    for a in objective(y[:0], z[:0], w[:0]):
        assert a.shape == (0, 5)


@pytest.mark.parametrize("library", LIBRARIES)
def test_hopeless_margins_keep_their_gradient(library):
    """All margins far below zero: XGBoost's own softmax, whose maximum starts at FLT_MIN, stalls there."""
    z = np.full((2, 3), -200.0, ORDERS[library][1])
    z[0, 1] = -1e4
    grad, hess = LIBRARIES[library](fx.SoftmaxCrossEntropy())([1, 2], z)
    np.testing.assert_allclose(grad, [[0.5, -1, 0.5], [1 / 3, 1 / 3, -2 / 3]], rtol=1e-6)
    assert np.isfinite(hess).all()
    assert (hess[:, 0] > 0).all()


def test_soft_targets():
    """A label matrix with an entry per margin, which a DMatrix keeps flat, holds probabilities."""
    z = margins_of(20, 3, "xgboost")
    t = special.softmax(np.random.default_rng(3).normal(size=(20, 3)), axis=1)
    grad, _ = xgboost_objective(fx.SoftmaxCrossEntropy())(t.ravel(), z)
    np.testing.assert_allclose(grad, special.softmax(z, axis=1) - t, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------ edges


@pytest.mark.parametrize("library", LIBRARIES)
def test_objectives_and_metrics_pickle(library):
    objective = LIBRARIES[library](fx.FocalLoss(gamma=1.5), "clip")
    again = pickle.loads(pickle.dumps(objective))
    assert again == objective
    assert hash(again) == hash(objective)
    assert pickle.loads(pickle.dumps(xgboost_metric("gce"))) == xgboost_metric(fx.GeneralizedCrossEntropy())


def test_what_cannot_be_boosted_is_refused_at_once():
    for loss in (fx.DiceLoss(), fx.AsymmetricLoss()):
        with pytest.raises(TypeError, match=f"{type(loss).__name__}.* has none: "):
            xgboost_objective(loss)
    with pytest.raises(ValueError, match="hessian: expected one of"):
        lightgbm_objective("focal", "newton")
    with pytest.raises(ValueError, match="loss: expected one of"):
        xgboost_objective("crossentropy")
    with pytest.raises(TypeError, match="loss: expected a name or a loss object"):
        xgboost_metric(fx.FocalLoss)


@pytest.mark.parametrize("make", [xgboost_objective, lightgbm_metric])
@pytest.mark.parametrize(
    ("labels", "margins", "weight", "error", "words"),
    [
        ([0, 3], np.zeros((2, 3)), None, ValueError, "from 0 to 2, got 3 at index 1"),
        ([1, 3], np.zeros((2, 3)), None, ValueError, "start at 1"),
        ([0, 0.5], np.zeros((2, 3)), None, ValueError, "whole numbers from 0 to 2, got 0.5"),
        ([0, np.nan], np.zeros((2, 3)), None, ValueError, "got nan"),
        ([0, -1], np.zeros(2), None, ValueError, "from 0 to 1, got -1"),
        ([0], np.zeros((2, 3)), None, ValueError, r"one per row of margins \(2, 3\), got shape \(1,\)"),
        ([[0.5, -0.5], [1, 0]], np.zeros((2, 2)), None, ValueError, "got -0.5"),
        (["a", "b"], np.zeros((2, 3)), None, TypeError, "np.unique"),
        ([0, 1], np.zeros((2, 3, 1)), None, ValueError, "margins: expected shape"),
        ([0, 1], np.zeros((2, 3)), [1.0, np.inf], ValueError, "sample_weight: expected finite"),
        ([0, 1], np.zeros((2, 3)), [1.0, 1, 1], ValueError, "sample_weight: expected a shape"),
    ],
)
def test_wrong_arguments(make, labels, margins, weight, error, words):
    with pytest.raises(error, match=words):
        make(fx.SoftmaxCrossEntropy())(labels, margins, weight)


def test_elementwise_losses_want_a_label_per_margin():
    with pytest.raises(ValueError, match="use a softmax loss"):
        xgboost_objective("sigmoid")([0, 1], np.zeros((2, 3)))
    with pytest.raises(ValueError, match="from 0 to 1, got 2"):
        xgboost_objective("sigmoid")([0, 2], np.zeros(2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_scores(dtype):
    z = np.random.default_rng(0).normal(0, 50, (30, 4)).astype(dtype)
    for raw in (z, np.asfortranarray(z)):
        p = softmax_scores(raw)
        assert p.dtype == dtype
        np.testing.assert_allclose(p, special.softmax(z.astype(np.float64), axis=1), rtol=1e-4, atol=1e-30)
    for score in (z[:, 0], z[:, :1]):
        np.testing.assert_allclose(softmax_scores(score)[:, 1], special.expit(z[:, 0]), rtol=1e-4, atol=1e-30)
    assert softmax_scores(z[:0]).shape == (0, 4)
    with pytest.raises(ValueError, match="raw: expected shape"):
        softmax_scores(np.zeros((2, 2, 2)))


# ---------------------------------------------------------------------------------------------------- real problems


@functools.cache
def rare_digit(digit):
    """Scikit-learn's digits, halved, with nine in ten of one digit's training rows left out: 1 row in 90 remains."""
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.5, stratify=y, random_state=digit)
    rows = np.random.default_rng(digit).permutation(np.flatnonzero(y == digit))
    dropped = rows[len(rows) // 10 :]
    return np.delete(X, dropped, axis=0), np.delete(y, dropped), X_test, y_test


def test_losses_for_imbalanced_data():
    """Weighted and generalized cross-entropy find the rare digit better than the plain one; the others train."""
    xgboost = pytest.importorskip("xgboost")
    losses = {
        "plain": lambda rare: fx.SoftmaxCrossEntropy(),
        "weighted": lambda rare: fx.SoftmaxCrossEntropy(
            class_weight=np.where(np.arange(10) == rare, 10.0, 1.0)
        ),
        "gce": lambda rare: fx.GeneralizedCrossEntropy(r=0.3),
        "focal": lambda rare: fx.FocalLoss(gamma=1.0),
        "smoothed": lambda rare: fx.SoftmaxCrossEntropy(label_smoothing=0.1),
    }
    precision = {name: [] for name in losses}
    for digit in range(0, 10, 2):
        X, y, X_test, y_test = rare_digit(digit)
        data, test = xgboost.DMatrix(X, label=y), xgboost.DMatrix(X_test)
        for name, loss in losses.items():
            params = {"num_class": 10, "base_score": 0.0, "max_depth": 3, "nthread": 1}
            model = xgboost.train(params, data, 25, obj=xgboost_objective(loss(digit)))
            p = softmax_scores(model.predict(test, output_margin=True))
            precision[name].append(average_precision_score(y_test == digit, p[:, digit]))
    mean = {name: np.mean(values) for name, values in precision.items()}
    assert mean["weighted"] > mean["plain"] + 0.003, mean
    assert mean["gce"] > mean["plain"], mean
    assert min(mean.values()) > 0.8, mean


@pytest.mark.slow
def test_usable_under_xgboost_dask():
    """Objective and metric travel to worker processes, and the margins are those of the built-in objective there."""
    dask_array = pytest.importorskip("dask.array")
    distributed = pytest.importorskip("distributed")
    pytest.importorskip("xgboost")
    from xgboost import dask as xgboost_dask

    X, y, w = drawn(3)
    ce = fx.SoftmaxCrossEntropy()
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        parts = [dask_array.from_array(a, chunks=(500, *a.shape[1:])) for a in (X, y, w)]
        data = xgboost_dask.DaskDMatrix(client, parts[0], label=parts[1], weight=parts[2])
        params = {"num_class": 3, "base_score": 0.0, "max_depth": 3, "disable_default_eval_metric": 1}
        ours = xgboost_dask.train(
            client,
            params,
            data,
            10,
            obj=xgboost_objective(ce),
            custom_metric=xgboost_metric(ce),
            evals=[(data, "train")],
        )
        params = {"num_class": 3, "base_score": 0.0, "max_depth": 3, "objective": "multi:softprob"}
        theirs = xgboost_dask.train(client, params, data, 10, evals=[(data, "train")])
        a, b = (
            xgboost_dask.predict(client, model["booster"], data, output_margin=True).compute()
            for model in (ours, theirs)
        )
    assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()
    curve = ours["history"]["train"]["SoftmaxCrossEntropy"]
    np.testing.assert_allclose(curve, theirs["history"]["train"]["mlogloss"], rtol=1e-4)
