"""TemperatureScaling against brute force, its invariances, its edges and scikit-learn's conventions."""

from __future__ import annotations

import math
import pickle
import warnings

import numpy as np
import pytest
from scipy import optimize, special
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from fastxent import TemperatureScaling, _checks, softmax_cross_entropy


def drawn(n=200, k=4, temperature=2.5, seed=0, dtype="float64"):
    """Logits that are over-confident by a factor, and labels drawn from the right probabilities."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 2, (n, k))
    p = special.softmax(z, axis=1)
    y = (p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return (temperature * z).astype(dtype), y


def mean_loss(z, y, temperature, weight=None):
    losses = -special.log_softmax(z / temperature, axis=1)[np.arange(len(y)), y]
    return np.average(losses, weights=weight)


def brute_force(z, y, weight=None):
    """Temperature of the lowest mean loss, by a search that knows no derivatives."""
    found = optimize.minimize_scalar(
        lambda s: mean_loss(z, y, math.exp(s), weight), bracket=(-1, 1), method="golden", tol=1e-10
    )
    return math.exp(found.x)


# The optimum ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 3, 40])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 30.0])
def test_brute_force(k, temperature, backend):
    z, y = drawn(k=k, temperature=temperature)
    scaling = TemperatureScaling(backend=backend).fit(z, y)
    best = brute_force(z, y)
    # a search by values finds an optimum to the square root of their rounding
    assert scaling.temperature_ == pytest.approx(best, rel=1e-6)
    assert scaling.loss_ <= mean_loss(z, y, best) + 1e-15
    assert scaling.loss_ == pytest.approx(mean_loss(z, y, scaling.temperature_), rel=1e-13)
    assert scaling.uncalibrated_loss_ == pytest.approx(mean_loss(z, y, 1.0), rel=1e-13)
    assert scaling.n_iter_ <= 15


def test_slope_vanishes_at_the_optimum(backend):
    """dL/dbeta = mean of sum_k p_k z_k - z_y is zero to rounding, which no search by values reaches."""
    z, y = drawn(k=5)
    p = TemperatureScaling(backend=backend).fit(z, y).predict_proba(z)
    slopes = (p * z).sum(axis=1) - z[np.arange(len(y)), y]
    assert abs(slopes.mean()) <= 1e-14 * np.abs(slopes).mean() * len(y) ** 0.5


def test_closed_form():
    """Scores of one margin m that are right with frequency f: m / T = log(f / (1 - f))."""
    scaling = TemperatureScaling().fit([[4.0, 0.0]] * 4, [0, 0, 0, 1])
    assert scaling.temperature_ == pytest.approx(4 / math.log(3), rel=1e-14)
    np.testing.assert_allclose(scaling.predict_proba([[4.0, 0.0]]), [[0.75, 0.25]], rtol=1e-14)


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1e2, 1e4])
def test_scores_of_any_scale(scale):
    z, y = drawn()
    one = TemperatureScaling().fit(z, y).temperature_
    assert TemperatureScaling().fit(scale * z, y).temperature_ == pytest.approx(scale * one, rel=1e-12)


def test_a_constant_per_row_changes_nothing():
    z, y = drawn()
    shift = np.random.default_rng(1).normal(0, 50, (len(z), 1))
    assert TemperatureScaling().fit(z + shift, y).temperature_ == pytest.approx(
        TemperatureScaling().fit(z, y).temperature_, rel=1e-12
    )


def test_weights_are_repeats():
    z, y = drawn()
    weight = np.random.default_rng(2).integers(0, 4, len(y))
    weighted = TemperatureScaling().fit(z, y, sample_weight=weight)
    repeated = TemperatureScaling().fit(np.repeat(z, weight, axis=0), np.repeat(y, weight))
    assert weighted.temperature_ == pytest.approx(repeated.temperature_, rel=1e-13)
    assert weighted.loss_ == pytest.approx(repeated.loss_, rel=1e-13)
    assert weighted.temperature_ == pytest.approx(brute_force(z, y, weight), rel=1e-6)


def test_probabilities_as_labels():
    z, y = drawn(k=3)
    one_hot = np.eye(3)[y]
    assert TemperatureScaling().fit(z, one_hot).temperature_ == pytest.approx(
        TemperatureScaling().fit(z, y).temperature_, rel=1e-12
    )
    # targets that are softmax(z / 3) themselves
    soft = special.softmax(z / 3, axis=1)
    assert TemperatureScaling().fit(z, soft).temperature_ == pytest.approx(3.0, rel=1e-9)


def test_many_blocks_of_rows():
    z, y = drawn(n=9000, k=20)
    assert TemperatureScaling().fit(z, y).temperature_ == pytest.approx(brute_force(z, y), rel=1e-6)


def test_float32():
    z, y = drawn(dtype="float32")
    scaling = TemperatureScaling().fit(z, y)
    assert scaling.temperature_ == pytest.approx(
        TemperatureScaling().fit(z.astype(float), y).temperature_, rel=1e-12
    )
    assert scaling.predict_proba(z).dtype == np.float32
    assert scaling.transform(z).dtype == np.float32


def test_masked_classes():
    z, y = drawn(k=3)
    wide = np.concatenate([z, np.full((len(z), 1), -np.inf)], axis=1)
    scaling = TemperatureScaling().fit(wide, y)
    assert scaling.temperature_ == pytest.approx(TemperatureScaling().fit(z, y).temperature_, rel=1e-12)
    assert (scaling.predict_proba(wide)[:, 3] == 0).all()


# Classifiers ----------------------------------------------------------------------------------------------


def problem(classes, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, len(classes), 300)
    X = rng.normal(size=(300, 3)) + codes[:, None]
    return X[:150], X[150:], np.array(classes)[codes[:150]], np.array(classes)[codes[150:]]


@pytest.mark.parametrize(
    "classes", [("no", "yes"), (1, 2), (False, True), (-1, 1), ("a", "b", "c"), (1, 2, 3)]
)
@pytest.mark.parametrize("make", [LogisticRegression, LinearSVC])
def test_decision_functions(classes, make):
    X, Xv, y, yv = problem(classes)
    classifier = make().fit(X, y)
    scores = classifier.decision_function(Xv)
    scaling = TemperatureScaling().fit(scores, yv)
    assert list(scaling.classes_) == list(classifier.classes_)
    p = scaling.predict_proba(scores)
    assert p.shape == (150, len(classes))
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-14)
    assert (scaling.predict(scores) == classifier.predict(Xv)).all()
    assert scaling.loss_ <= scaling.uncalibrated_loss_
    assert scaling.transform(scores).shape == scores.shape


def test_one_dimensional_scores_are_zero_and_the_score():
    z = np.random.default_rng(0).normal(0, 3, 60)
    y = (z + np.random.default_rng(1).normal(0, 3, 60) > 0).astype(int)
    flat, pair = TemperatureScaling().fit(z, y), TemperatureScaling().fit(np.stack([0 * z, z], axis=1), y)
    assert flat.temperature_ == pair.temperature_
    np.testing.assert_allclose(flat.predict_proba(z)[:, 1], special.expit(z / flat.temperature_), rtol=1e-14)


def test_logarithms_of_probabilities():
    X, Xv, y, yv = problem(("a", "b", "c"))
    forest = RandomForestClassifier(20, max_depth=3, random_state=0).fit(X, y)
    scaling = TemperatureScaling().fit(forest.predict_log_proba(Xv), yv)
    assert scaling.loss_ < scaling.uncalibrated_loss_ + 1e-12


def test_a_class_that_the_held_out_labels_lack():
    z, y = drawn(k=3)
    kept = y < 2
    by_number = TemperatureScaling().fit(z[kept], y[kept])
    names = np.array(["a", "b", "c"])
    with pytest.raises(ValueError, match=r"pass classes=classifier\.classes_"):
        TemperatureScaling().fit(z[kept], names[y[kept]])
    by_name = TemperatureScaling(classes=names).fit(z[kept], names[y[kept]])
    assert by_name.temperature_ == by_number.temperature_
    assert list(by_number.classes_) == [0, 1, 2]


def test_columns_in_another_order():
    z, y = drawn(k=3)
    names = np.array(["c", "a", "b"])
    scaling = TemperatureScaling(classes=names).fit(z, names[y])
    assert scaling.temperature_ == TemperatureScaling().fit(z, y).temperature_
    assert (scaling.predict(z) == names[z.argmax(axis=1)]).all()


# Where no temperature is best -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("z", "y", "temperature", "advice"),
    [
        (
            [[3.0, 0.0], [0.0, 3.0]],
            [0, 1],
            1e-6,
            "separate the classes perfectly.*lower bound.*held-out data",
        ),
        ([[3.0, 0.0], [3.0, 3.0]], [0, 1], 1e-6, "separate the classes perfectly"),
        (
            [[3.0, 0.0], [0.0, 3.0]],
            [1, 0],
            1e6,
            "no better than guessing.*columns and labels have the same order",
        ),
        ([[3.0, 0.0], [3.0, 0.0]], [1, 0], 1e6, "no better than guessing"),
        ([[3.0, 3.0], [0.0, 0.0]], [1, 0], 1.0, "all logits of a row are equal.*T = 1 is kept"),
    ],
)
def test_degenerate(z, y, temperature, advice):
    with pytest.warns(ConvergenceWarning, match=f"TemperatureScaling: .*{advice}"):
        scaling = TemperatureScaling().fit(z, y)
    assert scaling.temperature_ == temperature
    assert np.isfinite(scaling.predict_proba(z)).all()


@pytest.mark.parametrize(("bounds", "temperature"), [((3.0, 5.0), 3.0), ((0.1, 1.5), 1.5)])
def test_bounds(bounds, temperature):
    z, y = drawn(temperature=2.0)
    with pytest.warns(ConvergenceWarning, match=f"lies outside bounds; T is {temperature:g}"):
        assert TemperatureScaling(bounds=bounds).fit(z, y).temperature_ == temperature


def test_nearly_separable():
    """One wrong row of a tiny margin: the optimum is finite, and far from 1."""
    z, y = [[5.0, 0.0], [5.0, 0.0], [1e-3, 0.0]], [0, 0, 1]
    scaling = TemperatureScaling().fit(z, y)
    assert scaling.temperature_ == pytest.approx(brute_force(np.array(z), np.array(y)), rel=1e-6)


# Conventions ----------------------------------------------------------------------------------------------


def test_estimator_conventions():
    z, y = drawn()
    scaling = TemperatureScaling(bounds=(0.01, 100.0))
    assert clone(scaling).get_params() == scaling.get_params()
    with pytest.raises(NotFittedError):
        scaling.predict_proba(z)
    assert scaling.fit(z, y) is scaling
    assert scaling.n_features_in_ == 4
    again = pickle.loads(pickle.dumps(scaling))
    assert (again.predict_proba(z) == scaling.predict_proba(z)).all()
    np.testing.assert_array_equal(scaling.fit_transform(z, y), z / scaling.temperature_)
    before = z.copy()
    scaling.fit(z, y).predict_proba(z)
    assert (z == before).all()


def test_silent_when_all_is_well(monkeypatch):
    """Probabilities as scores are no mistake here, and our own kernels do not warn of them."""
    told = []
    monkeypatch.setattr(_checks, "_told", told)  # as in a process that has not warned yet
    p, y = special.softmax(drawn()[0], axis=1), drawn()[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scaling = TemperatureScaling().fit(p, y)
    assert scaling.temperature_ > 0
    assert not told
    with pytest.warns(UserWarning, match="probabilities"):  # a plain call on the same array does warn
        softmax_cross_entropy(p, y)


@pytest.mark.parametrize(
    ("z", "y", "options", "message"),
    [
        ([[1.0, np.nan]], [0], {}, r"logits\[0, 1\] = nan"),
        ([[1.0, np.inf]], [0], {}, r"logits\[0, 1\] = inf"),
        ([[1.0, 0.0], [1.0, -np.inf]], [0, 1], {}, r"true class is -inf \(row 1 of"),
        ([[1.0], [2.0]], [0, 1], {}, r"logits: expected shape \(n_samples, n_classes\)"),
        ([[1.0, 2.0]], [0, 1], {}, "inconsistent numbers of samples"),
        ([[1.0, 2.0], [0.0, 1.0]], [0, 5], {"classes": [0, 1]}, "expected one of the classes"),
        ([[1.0, 2.0, 0.0]] * 2, [0, 3], {}, "labels: expected integers from 0 to 2 or 3 different labels"),
        ([[1.0, 2.0], [0.0, 1.0]], [0, 1], {"classes": [0, 0]}, "classes: expected 2 different labels"),
        ([[1.0, 2.0], [0.0, 1.0]], [0, 1], {"bounds": (2.0, 1.0)}, "bounds: expected the lowest"),
        ([[1.0, 2.0], [0.0, 1.0]], [0, 1], {"bounds": 3}, "bounds: expected the lowest"),
        ([[1.0, 2.0], [0.0, 1.0]], [0, 1], {"bounds": (0.0, 1.0)}, r"bounds\[0\]: expected"),
        (
            [[1.0, 2.0], [0.0, 1.0]],
            [[0.5, -0.5], [0.0, 1.0]],
            {},
            "labels: expected one class per row, or non-negative",
        ),
        ([[1.0, 2.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]], {}, "not all zero"),
        ([[0.0, 1.0], [1e308, 0.5]], [1, 0], {}, r"logits\[1, 0\] = 1e\+308: expected numbers within"),
    ],
)
def test_refusals(z, y, options, message):
    with pytest.raises(ValueError, match=message):
        TemperatureScaling(**options).fit(z, y)


def test_other_columns_than_in_fit():
    z, y = drawn()
    with pytest.raises(ValueError, match="logits: expected 4 columns as in fit, got 3"):
        TemperatureScaling().fit(z, y).predict_proba(z[:, :3])
