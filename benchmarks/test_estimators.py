"""Our classifiers beside scikit-learn's, the network beside PyTorch's too: same data, float32, quality beside the time.

With one thread and with all: scikit-learn alternates between BLAS and OpenMP threads, which can wait for each
other, so that on small data it is fastest with one.
"""

from __future__ import annotations

from pathlib import Path

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


class TorchMLP:
    """The network of a PyTorch user: eager, fused Adam, rows gathered by a random permutation."""

    def __init__(self, hidden_layer_sizes, batch_size, max_iter, learning_rate_init, num_threads):
        (self.hidden,), self.batch_size, self.n_iter_ = hidden_layer_sizes, batch_size, max_iter
        self.rate, self.num_threads = learning_rate_init, num_threads

    def get_params(self):
        return {}  # nothing that `_bench.limited` could set

    def fit(self, X, y):
        from torch import from_numpy, manual_seed, nn, optim, randperm, set_num_threads

        set_num_threads(self.num_threads)
        manual_seed(0)
        self.classes_ = np.unique(y)
        layers = [nn.Linear(X.shape[1], self.hidden), nn.ReLU(), nn.Linear(self.hidden, len(self.classes_))]
        self.network = nn.Sequential(*layers)
        optimizer = optim.Adam(self.network.parameters(), lr=self.rate, fused=True)
        X, y = from_numpy(X), from_numpy(y.astype(np.int64))
        for _ in range(self.n_iter_):
            total = 0.0
            for rows in randperm(len(X)).split(self.batch_size):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(self.network(X[rows]), y[rows])
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(rows)
            self.loss_ = float(total) / len(X)
        return self

    def predict_proba(self, X):
        from torch import from_numpy, no_grad

        with no_grad():
            return self.network(from_numpy(X)).softmax(dim=1).numpy()


@pytest.mark.parametrize(("hidden", "batch_size"), [(32, 32), (256, 64), (256, 256), (256, 1024)])
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("library", [*LIBRARIES, "PyTorch"])
def test_mlp(library, threads, hidden, batch_size, data, timed, benchmark):
    """A few epochs of Adam on one hidden layer; the report divides by ``epochs``."""
    settings = {
        "hidden_layer_sizes": (hidden,), "solver": "adam", "batch_size": batch_size, "max_iter": EPOCHS,
        "n_iter_no_change": EPOCHS, "learning_rate_init": 0.001 if timed else 0.01, "random_state": 0,
    }  # fmt: skip
    name, _, y = data
    if (name == "digits") != (hidden == 32) or batch_size > len(y):
        pytest.skip("the small network is for the digits, the large one for MNIST")
    if library == "PyTorch":
        pytest.importorskip("torch")
        given = ("hidden_layer_sizes", "batch_size", "max_iter", "learning_rate_init")
        estimator = TorchMLP(**{option: settings[option] for option in given}, num_threads=threads)
    else:
        estimator = _bench.estimators({}, settings)["MLPClassifier", library]
    fitted, _ = fit(benchmark, timed, estimator, data, threads)
    assert fitted.n_iter_ == EPOCHS
    benchmark.extra_info.update(model="MLPClassifier", library=library, batch_size=batch_size, epochs=EPOCHS)


def test_curves(timed, tmp_path, monkeypatch):
    """The script of the objective-against-time curves, on its smallest problem."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    import curves

    if timed:
        pytest.skip("benchmarks/curves.py keeps its own time")
    points, best = curves.measure(curves.PROBLEMS["iris"](), rounds=1)
    ours = points["fastxent auto"]
    assert ours[-1].value == pytest.approx(best, rel=1e-8)
    assert all(point.value >= best for line in points.values() for point in line)
    assert curves.table("iris", points, best).count("\n") == 4 + sum(map(len, points.values()))
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib")
    curves.picture({"iris": (points, best)}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
