"""What every estimator promises: scikit-learn's own checks, all of them, and the shared helpers."""

import numpy as np
import pytest
import sklearn
from sklearn.datasets import load_digits, make_classification
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.fixes import parse_version

from fastxent._estimator import check_sample_weight, class_weight_vector, encode_labels, row_weights
from fastxent.logistic import LogisticRegression
from fastxent.mlp import MLPClassifier

SOLVERS = ["auto", "lbfgs", "newton-cg", "newton-cholesky", "sag", "saga"]
if parse_version(sklearn.__version__) >= parse_version("1.7"):
    # The weight checks of 1.6 swap the labels of one of the two fits that they compare for a classifier of two classes.
    SOLVERS.append("liblinear")


@pytest.mark.filterwarnings("ignore")  # the checks fit on purpose what cannot converge or has odd labels
@parametrize_with_checks(
    [
        *(LogisticRegression(solver=solver) for solver in SOLVERS),
        LogisticRegression(l1_ratio=0.5),
        LogisticRegression(num_threads=1, backend="numpy", label_smoothing=0.1),
        MLPClassifier(max_iter=100),
        MLPClassifier(max_iter=100, solver="sgd"),
        MLPClassifier(max_iter=100, solver="lbfgs"),
    ]
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.fixture(params=[LogisticRegression, MLPClassifier], ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


@pytest.mark.parametrize(
    "model",
    [LogisticRegression(), MLPClassifier(hidden_layer_sizes=(32,), batch_size=64, tol=1e-2, random_state=0)],
    ids=["LogisticRegression", "MLPClassifier"],
)
def test_digits_in_float32(model):
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)
    model.fit(X[:1200], y[:1200])
    assert model.score(X[1200:], y[1200:]) > 0.9
    assert model.predict_proba(X).dtype == np.float32


def test_bad_weights_are_refused(kind):
    X, y = make_classification(20, random_state=0)
    with pytest.raises(ValueError, match="Negative"):
        kind().fit(X, y, np.linspace(-1, 1, 20))
    with pytest.raises(ValueError, match="zero"):
        kind().fit(X, y, np.zeros(20))


def test_sample_weights():
    assert check_sample_weight(None, 3, np.float32) is None
    np.testing.assert_array_equal(check_sample_weight(2, 3, np.float32), np.full(3, 2, np.float32))
    weights = check_sample_weight([1, 0, 2], 3, np.float32)
    assert weights.dtype == np.float32
    with pytest.raises(ValueError, match=r"1D array or scalar, got 2D"):
        check_sample_weight([[1.0]], 1, np.float64)
    with pytest.raises(ValueError, match=r"expected \(3,\)"):
        check_sample_weight([1.0], 3, np.float64)
    with pytest.raises(ValueError, match="Negative"):
        check_sample_weight(-1.0, 3, np.float64)


def test_labels():
    classes, codes = encode_labels(np.array(["b", "a", "b"]))
    assert (classes.tolist(), codes.tolist()) == (["a", "b"], [1, 0, 1])
    # Weight 0 removes: "c" is no class, and its code is a harmless one.
    classes, codes = encode_labels(np.array(["b", "c", "a"]), np.array([1.0, 0.0, 2.0]))
    assert (classes.tolist(), codes.tolist()) == (["a", "b"], [1, 0, 0])
    _, codes = encode_labels([5, 9], classes=np.array([1, 5, 9]))
    assert codes.tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"y\[1\] is .*7"):
        encode_labels([5, 7], classes=np.array([1, 5, 9]))
    with pytest.raises(ValueError, match="Unknown label type"):
        encode_labels([0.5, 1.5])


def test_class_weights():
    classes, codes = np.array([0, 1, 2]), np.array([0, 0, 0, 1, 1, 2])
    assert class_weight_vector(None, classes, codes) is None
    np.testing.assert_allclose(class_weight_vector("balanced", classes, codes), [6 / 9, 1, 2])
    # Weights are repeats: the balance is that of the repeated rows.
    weights = np.array([1.0, 0, 0, 1, 1, 3])
    np.testing.assert_allclose(class_weight_vector("balanced", classes, codes, weights), [2, 1, 6 / 9])
    np.testing.assert_allclose(class_weight_vector({2: 5.0}, classes, codes), [1, 1, 5])
    with pytest.raises(ValueError, match="not in class_weight"):
        class_weight_vector({7: 5.0}, classes, codes)
    np.testing.assert_allclose(
        row_weights(weights, np.array([1.0, 2.0, 3.0]), codes, np.float64), [1, 0, 0, 2, 2, 9]
    )
    with pytest.raises(ValueError, match="positive for some row"):
        row_weights(np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([0, 1]), np.float64)
