"""Our classifiers beside scikit-learn's: same data and settings, float32, quality beside the time.

With one thread and with all: scikit-learn alternates between BLAS and OpenMP threads, which can wait for each
other, so that on small data it is fastest with one.
"""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss

from fastxent import _bench

LIBRARIES = ("fastxent", "scikit-learn")
THREADS = sorted({1, _bench.num_threads()})
EPOCHS = 3

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(params=["digits", "mnist"])
def data(request, timed):
    """Name, features and labels."""
    if request.param == "digits":
        X, y = load_digits(return_X_y=True)
        some = slice(None if timed else 600)
        return "digits", (X[some] / 16).astype(np.float32), y[some]
    if not timed:
        pytest.skip("the small run needs no more than the digits")
    return "mnist", *request.getfixturevalue("mnist")


def fit(benchmark, timed, estimator, data, threads):
    """Time the fit; return the fitted estimator and its training log-loss."""
    name, X, y = data
    kind = (
        "logistic regression" if "C" in estimator.get_params() else f"MLP, batches of {estimator.batch_size}"
    )
    benchmark.group = f"{kind}, {name}, {threads} thread{'s' * (threads > 1)}"
    rounds = {"rounds": 3 if len(y) > 10_000 else 7, "warmup_rounds": len(y) <= 10_000} if timed else {}
    with _bench.limited(estimator, threads):
        fitted = benchmark.pedantic(estimator.fit, (X, y), **rounds)
    probability = fitted.predict_proba(X)
    accuracy = float((fitted.classes_[probability.argmax(axis=1)] == y).mean())
    assert accuracy > 0.3  # three times chance, after nine steps in the smallest run; the loss says the rest
    loss = log_loss(y, probability)
    benchmark.extra_info.update(data=name, threads=threads, accuracy=accuracy, log_loss=loss)
    return fitted, loss


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_logistic(library, threads, data, timed, benchmark):
    """Down to the same tolerance; the objective is mean loss + |W|²/(2Cn)."""
    estimator = _bench.estimators({"tol": 1e-4 if timed else 1e-2, "max_iter": 1000}, {})[
        "LogisticRegression", library
    ]
    fitted, loss = fit(benchmark, timed, estimator, data, threads)
    objective = loss + float((fitted.coef_.astype(np.float64) ** 2).sum()) / (2 * len(data[2]))
    assert np.max(fitted.n_iter_) < 1000
    benchmark.extra_info.update(
        model="LogisticRegression",
        library=library,
        objective=objective,
        iterations=int(np.max(fitted.n_iter_)),
    )


@pytest.mark.parametrize("batch_size", [64, 256])
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_mlp(library, threads, batch_size, data, timed, benchmark):
    """A few epochs of Adam on one hidden layer of 256; the report divides by ``epochs``."""
    settings = {
        "hidden_layer_sizes": (256,), "solver": "adam", "batch_size": batch_size, "max_iter": EPOCHS,
        "n_iter_no_change": EPOCHS, "random_state": 0,
    }  # fmt: skip
    estimator = _bench.estimators({}, settings)["MLPClassifier", library]
    fitted, _ = fit(benchmark, timed, estimator, data, threads)
    assert fitted.n_iter_ == EPOCHS
    benchmark.extra_info.update(model="MLPClassifier", library=library, batch_size=batch_size, epochs=EPOCHS)
