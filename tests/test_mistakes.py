"""Mistakes that users make: what the message says to do, and that nobody else is told."""

from __future__ import annotations

import warnings

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
from fresh import run_python
from hypothesis import given
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning

import fastxent as fx
from fastxent import _checks, boosting


@pytest.fixture(autouse=True)
def untold(monkeypatch):
    """As in a process that has not warned yet; and no test here uses up the warning of another."""
    monkeypatch.setattr(_checks, "_told", [])


def softmax(z, axis=-1):
    e = np.exp(z - z.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def probabilities(shape, dtype="float64", axis=-1, seed=0):
    z = np.random.default_rng(seed).normal(0, 2, shape)
    return softmax(z, axis).astype(dtype)


def warned(z, y, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fx.softmax_cross_entropy(z, y, **options)
    return len(caught)


# Probabilities passed as logits ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "door", ["softmax_cross_entropy", "softmax_cross_entropy_with_grad", "softmax_cross_entropy_forward"]
)
@pytest.mark.parametrize("soft", [False, True])
def test_probabilities_are_told_once(door, soft, backend):
    p = probabilities((5, 4))
    y = probabilities((5, 4), seed=1) if soft else np.zeros(5, int)
    with pytest.warns(UserWarning, match=r"look like probabilities.*np\.log\(probabilities\)"):
        getattr(fx, door)(p, y, backend=backend)
    assert warned(p, y) == 0


def test_loss_objects_tell_too():
    with pytest.warns(UserWarning, match="look like probabilities"):
        fx.SoftmaxCrossEntropy().grad_hess(probabilities((5, 4)), np.zeros(5, int))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ml_dtypes.bfloat16])
@pytest.mark.parametrize("k", [2, 3, 10, 1000])
def test_any_dtype_and_width(dtype, k):
    assert warned(probabilities((9, k)).astype(dtype), np.zeros(9, int)) == 1


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_any_axis_and_layout(axis):
    p = probabilities((3, 4, 5), axis=axis)
    y = np.zeros(np.delete(p.shape, axis), int)
    for layout in (p, np.asfortranarray(p), p[::-1]):
        _checks._told.clear()
        assert warned(layout, y, axis=axis) == 1


def test_a_leading_zero_hides_nothing():
    p = np.array([[0.0, 0.0, 0.0, 0.0, 0.25, 0.75], [0.5, 0.5, 0.0, 0.0, 0.0, 0.0]])
    assert warned(p, [4, 0]) == 1


@pytest.mark.parametrize(
    "z",
    [
        np.array([[0.3, 0.7]]),  # one row may sum to 1 by chance
        np.array([[0.0, 1.0], [1.0, 0.0]]),
        np.eye(10),
        np.full((4, 2), 0.5),
        np.zeros((4, 3)),
        np.ones((4, 1)),
        np.array([[0.3, 0.7], [0.3, 0.8]]),
        np.array([[0.3, 0.7], [-0.5, 1.5]]),
        np.array([[0.3, 0.7], [np.nan, 0.5]]),
        np.array([[0.3, 0.7], [np.inf, 0.5]]),
        np.array([[0.3, 0.7], [-np.inf, 1.0]]),
        np.random.default_rng(0).random((100, 10)),
        np.empty((0, 3)),
        np.log(probabilities((5, 4))),
    ],
    ids=lambda z: f"{z.shape}-{z.ravel()[:2]}",
)
def test_logits_are_not_told(z):
    assert warned(z, np.zeros(len(z), int)) == 0


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 6))
def test_ordinary_logits_are_not_told(seed, n, k):
    assert warned(np.random.default_rng(seed).normal(size=(n, k)), np.zeros(n, int)) == 0


def test_only_eight_rows_are_read():
    p = probabilities((9, 4))
    p[8] = 7.0
    assert warned(p, np.zeros(9, int)) == 1
    p = probabilities((9, 4))
    p[7] = 7.0
    _checks._told.clear()
    assert warned(p, np.zeros(9, int)) == 0


def test_check_false_is_silent():
    assert warned(probabilities((5, 4)), np.zeros(5, int), check=False) == 0


def test_once_in_a_process():
    code = """
import numpy as np, warnings
warnings.simplefilter("always")
import fastxent as fx
for _ in range(3):
    fx.softmax_cross_entropy([[0.25, 0.75], [0.5, 0.5]], [0, 1])
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("UserWarning") == 1


# Targets --------------------------------------------------------------------------------------------------

Z = np.random.default_rng(3).normal(size=(6, 3))
SOFT = probabilities((6, 3))


@pytest.mark.parametrize(
    ("targets", "error", "advice"),
    [
        (np.array([1, 2, 3, 3, 2, 1]), ValueError, "do the labels start at 1. Subtract 1"),
        (np.array([0, 1, 5, 0, 1, 2]), ValueError, "largest label, 5, needs at least 6 columns"),
        (np.array([0.0, 1.0, 2.0, 0.0, 1.0, 2.0]), TypeError, r"whole numbers: pass targets\.astype\(int\)"),
        (np.array([0.5, 1.0, 2.0, 0.0, 1.0, 2.0]), TypeError, "probabilities have the shape of the logits"),
        (np.array(["a", "b", "c", "a", "b", "c"]), TypeError, r"np\.unique\(targets, return_inverse=True\)"),
        (
            np.array([["0"], ["b"], ["c"], ["a"], ["b"], ["c"]])[:, 0].tolist(),
            TypeError,
            "number the classes",
        ),
        (np.zeros((6, 1), int), ValueError, r"drop the axis of length 1: targets\.reshape\(\(6,\)\)"),
        (SOFT.T, ValueError, r"transposed: pass targets\.T"),
        (SOFT[:, :2], ValueError, "one column for each of the 3 classes, these have 2"),
        (-SOFT, ValueError, "expected probabilities >= 0"),
    ],
)
def test_softmax_targets(targets, error, advice, backend):
    with pytest.raises(error, match=advice):
        fx.softmax_cross_entropy(Z, targets, backend=backend)


def test_labels_of_two_classes_as_signs():
    with pytest.raises(ValueError, match=r"labels -1 and 1 pass \(targets \+ 1\) // 2"):
        fx.softmax_cross_entropy(Z[:, :2], [-1, 1, 1, -1, 1, 1])


def test_axes_in_another_order():
    with pytest.raises(ValueError, match="move the classes to the same place"):
        fx.softmax_cross_entropy(np.zeros((2, 3, 4)), np.zeros((2, 4, 3)))


@pytest.mark.parametrize(
    ("logits", "targets", "advice"),
    [
        (Z, [0, 1, 2, 0, 1, 2], "for one class of 3 per row use softmax_cross_entropy"),
        (Z, SOFT.T, r"pass targets\.T"),
        (Z[:, :1], np.zeros(6), r"targets\.reshape\(\(6, 1\)\)"),
        (Z[:, 0], np.zeros((6, 1)), r"reshape them: targets\.reshape\(\(6,\)\)"),
        (Z[:, 0], [-1, 1, 1, -1, 1, 1], r"labels -1 and 1 pass \(targets \+ 1\) / 2"),
        (Z[:, 0], [1, 2, 1, 1, 2, 1], "start at 1. Subtract 1"),
        (Z[:, 0], [0, 1, 2, 1, 2, 1], "look like class labels: use softmax_cross_entropy"),
    ],
)
def test_sigmoid_targets(logits, targets, advice, backend):
    with pytest.raises(ValueError, match=advice):
        fx.sigmoid_cross_entropy(logits, targets, backend=backend)


def test_logits_as_probabilities(backend):
    with pytest.raises(ValueError, match="for scores before the sigmoid use sigmoid_cross_entropy"):
        fx.binary_cross_entropy([1.5, 0.2], [1, 0], backend=backend)


def test_logits_as_distributions():
    from fastxent import information

    with pytest.raises(ValueError, match="look like logits: take their softmax first"):
        information.entropy([[1.0, -2.0, -3.0]])
    with pytest.raises(ValueError, match=r"p: expected finite non-negative numbers.*-0\.1 at index 3$"):
        information.entropy([0.5, 0.4, 0.2, -0.1])


# What was asked of every public function, and answered badly ----------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "advice"),
    [
        (lambda: fx.softmax_cross_entropy([0, 1, 2, 0, 1, 2], Z), ValueError, "logits come first: are the two swapped"),
        (lambda: fx.softmax_cross_entropy([["a", "b"]], [0]), TypeError, "text must be turned into numbers"),
        (lambda: fx.softmax_cross_entropy(None, [0]), TypeError, "logits: expected an array-like, got None"),
        (lambda: fx.softmax_cross_entropy(Z + 1j, [0] * 6), TypeError, "take the real part"),
        (lambda: fx.softmax_cross_entropy(Z, [0] * 6, reduction=None), ValueError, "got None; pass it as a string"),
        (lambda: fx.softmax_cross_entropy(Z, [0] * 6, smoothing="unifrom"), ValueError, "did you mean 'uniform'"),
        (lambda: fx.softmax_cross_entropy(Z, [0] * 6, class_weight="balanced"), TypeError, "one number per class"),
        (lambda: fx.softmax_cross_entropy(Z, [0] * 6, class_weight={0: 1}), TypeError, "dicts are for the estimators"),
        (lambda: fx.softmax_cross_entropy(Z, [0, 1, np.nan, 0, 1, 2]), TypeError, "the label ignore_index for them"),
        (lambda: fx.softmax_cross_entropy(Z, [0, 1, -1, 0, 1, 2]), ValueError, "pass ignore_index=-1"),
        (lambda: fx.softmax_cross_entropy_backward(np.ones(6), Z, [0] * 6), TypeError, "one number per row goes"),
        (lambda: fx.sigmoid_cross_entropy_backward(np.ones(6), Z[:, 0], [0] * 6), TypeError, 'reduction="none"'),
        (lambda: fx.sigmoid_cross_entropy([0, 1, 1], [0.3, -1.2, 2.0]), ValueError, "are the two swapped"),
        (lambda: fx.information.kl_divergence([0.5, 0.5], [0.2, 0.3, 0.5]), ValueError, r"q: .* p, \(2,\), got \(3,\)"),
        (lambda: fx.linear_cross_entropy(Z, Z[:2], [0] * 6), ValueError, r"a row per class: pass W\.T"),
        (lambda: fx.linear_cross_entropy(Z[0], Z.T, [0]), ValueError, r"X: expected shape \(n, d\).*pass X\[None\]"),
        (lambda: fx.LogisticRegression(loss=fx.FocalLoss).fit(Z, [0, 1] * 3), TypeError, r"FocalLoss\(\)$"),
        (lambda: fx.merge_lse(None), TypeError, "^states: expected a sequence of LSEState, got None"),
        (lambda: fx.load(None), TypeError, "^path: expected str or a path-like object, got None"),
        (lambda: fx.load(3), TypeError, "^path: expected str or a path-like object, got 3"),
        (lambda: boosting.xgboost_objective("focal")(None, Z), TypeError, "^labels: expected an array-like, got None"),
        (lambda: fx.LogisticRegression(loss="focall").fit(Z, [0, 1] * 3), ValueError, "did you mean 'focal'"),
    ],
)  # fmt: skip
def test_the_message_says_what_to_do(call, error, advice):
    with pytest.raises(error, match=advice):
        call()


def test_a_message_is_short_whatever_came():
    with pytest.raises(TypeError) as caught:
        fx.softmax_cross_entropy(Z, [0] * 6, label_smoothing=np.zeros(10_000))
    assert "array of shape (10000,)" in str(caught.value)
    with pytest.raises(ValueError, match=r"\.\.\.$"):
        fx.softmax_cross_entropy(Z, [0] * 6, reduction="x" * 10_000)


class TestEstimators:
    X = np.random.default_rng(4).normal(size=(30, 4))
    y = np.arange(30) % 3

    @pytest.fixture(params=["LogisticRegression", "MLPClassifier"])
    def make(self, request):
        return getattr(fx, request.param)

    def test_one_hot_rows_for_logistic_regression(self):
        with pytest.raises(
            ValueError, match=r"y should be a 1d array, got an array.*pass y\.argmax\(axis=1\)"
        ):
            fx.LogisticRegression().fit(self.X, np.eye(3, dtype=int)[self.y])

    def test_rows_that_are_no_probabilities(self, make):
        with pytest.raises(ValueError, match="ivide rows of counts by their sums"):
            make().fit(self.X, np.full((30, 3), 0.5))

    def test_a_teacher_has_no_place_in_fit(self, make):
        with pytest.raises(ValueError, match="pass the teacher's probabilities as y"):
            make(loss=fx.DistillationLoss()).fit(self.X, self.y)

    def test_one_decision_for_several_classes(self):
        with pytest.raises(ValueError, match=r"one of 3 classes: use SoftmaxCrossEntropy\(\)"):
            fx.MLPClassifier(loss=fx.SigmoidCrossEntropy()).fit(self.X, self.y)

    def test_an_unknown_class_reads_as_it_was_written(self, make):
        with pytest.raises(ValueError, match=r"y\[2\] is 2, expected one of the classes \[0, 1\]"):
            make().partial_fit(self.X, self.y, classes=[0, 1])
        with pytest.raises(ValueError, match=r"y\[0\] is 'c', expected one of the classes \['a', 'b'\]"):
            make().partial_fit(self.X[:2], ["c", "a"], classes=["a", "b"])

    def test_a_folder_that_is_not_there(self, make, tmp_path):
        path = tmp_path / "absent" / "model.npz"
        with pytest.raises(FileNotFoundError) as caught:
            make().save(path)
        assert caught.value.filename == str(path)

    def test_labels_beyond_the_columns_of_scores(self):
        with pytest.raises(ValueError, match="got 3, 5 to 7; pass classes="):
            fx.TemperatureScaling().fit(self.X, self.y + 5)


# What else comes in by mistake ----------------------------------------------------------------------------

ZEROS, LABELS = np.zeros((4, 3)), np.array([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("logits", "targets", "kind", "advice"),
    [
        (scipy.sparse.csr_array(ZEROS), LABELS, TypeError, r"pass logits\.toarray\(\)"),
        (ZEROS, scipy.sparse.coo_matrix(np.eye(4, 3)), TypeError, r"pass targets\.toarray\(\)"),
        (ZEROS, None, TypeError, "targets: expected an array-like, got None"),
        ([[1.0, 2.0], [3.0]], [0, 1], ValueError, "logits: .*rows of different lengths"),
        (np.array([["a", 1.0]], object), [0], TypeError, "text must be turned into numbers"),
        ((row for row in ZEROS), LABELS, TypeError, r"generator; pass an array.*list\(values\)"),
        (np.zeros((2, 3, 4, 4)), np.zeros((2, 4, 4), int), ValueError, "pass axis=1"),
        (
            ZEROS,
            np.array([0, np.nan, 1, 2]),
            TypeError,
            r"numpy\.nan_to_num\(numpy\.asarray\(targets, float\)",
        ),
    ],
)
def test_the_remedy_is_named(logits, targets, kind, advice):
    with pytest.raises(kind, match=advice):
        fx.softmax_cross_entropy(logits, targets)


def test_the_remedy_for_missing_labels_works():
    pandas = pytest.importorskip("pandas")
    y = pandas.array([0, None, 2, 1], dtype="Int64")
    right = np.nan_to_num(np.asarray(y, float), nan=-100).astype(int)
    assert fx.softmax_cross_entropy(ZEROS, right, reduction="none").tolist() == [
        np.log(3),
        0,
        np.log(3),
        np.log(3),
    ]


@pytest.mark.parametrize("call", ["binary_cross_entropy", "binary_cross_entropy_with_grad"])
def test_labels_before_probabilities_are_told_once(call):
    y, p = np.array([0.0, 1.0, 1.0]), np.array([0.2, 0.9, 0.4])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        getattr(fx, call)(p, y)
        getattr(fx, call)(y, np.array([0.0, 0.5, 1.0]))  # a label among them: soft targets for a sure model
        getattr(fx, call)(y, p, check=False)
        assert not caught
        getattr(fx, call)(y, p)
        getattr(fx, call)(y, p)
    assert [str(warning.message).count("are the two swapped?") for warning in caught] == [1]
    assert warned(probabilities((5, 4)), np.zeros(5, int)) == 1  # the other mistake is told still


def test_estimators_name_the_remedy():
    X = np.arange(8.0).reshape(4, 2)
    with pytest.raises(TypeError, match=r"strings or numbers, got NoneType, str; leave out"):
        fx.LogisticRegression().fit(X, np.array(["a", None, "a", "b"], object))
    for blocks in ([(X, LABELS)], iter([(X, LABELS)])):
        with pytest.raises(TypeError, match="function that returns its blocks anew"):
            fx.LogisticRegression().fit(blocks)
    with pytest.raises(ValueError, match=r"got 'acuracy'; did you mean 'accuracy'"):
        fx.MLPClassifier(monitor="acuracy", early_stopping=True).fit(X, LABELS)
    with pytest.raises(ValueError, match=r"got 'zzzz'$"):
        fx.MLPClassifier(monitor="zzzz", early_stopping=True).fit(X, LABELS)
    with pytest.warns(ConvergenceWarning) as told:
        fx.MLPClassifier((2,), max_iter=1).fit(X, LABELS)
    assert "inf" not in str(told[0].message)


def test_a_booster_of_two_classes_for_three():
    objective = boosting.xgboost_objective(fx.SoftmaxCrossEntropy())
    with pytest.raises(ValueError, match="set num_class for more"):
        objective(np.array([0.0, 1.0, 2.0]), np.zeros(3))


def test_names_of_pytorch():
    with pytest.raises(
        AttributeError, match=r"fastxent\.torch\.CrossEntropyLoss.*fastxent\.SoftmaxCrossEntropy"
    ):
        _ = fx.CrossEntropyLoss
    with pytest.raises(AttributeError) as told:
        _ = fx.softmax_crossentropy
    assert (told.value.name, told.value.obj) == (
        "softmax_crossentropy",
        fx,
    )  # enough for the interpreter to suggest
