"""Trainings: our classifiers beside scikit-learn's, the network beside PyTorch's too; the same data and settings.

With one thread and with all: scikit-learn alternates between BLAS and OpenMP threads, which can wait for each
other, so that on small data it is fastest with one.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ._cases import num_threads

LIBRARIES = ("fastxent", "scikit-learn", "PyTorch")
EPOCHS = 3
NETWORKS = {"digits": ((32, 32),), "mnist": ((256, 64), (256, 256), (256, 1024))}  # hidden units, batch


@dataclass(frozen=True)
class Fit:
    """One training: ``hidden`` and ``batch_size`` are 0 for logistic regression."""

    model: str
    library: str
    data: str
    threads: int
    hidden: int = 0
    batch_size: int = 0

    @property
    def group(self) -> str:
        """What is compared: the same for every library."""
        kind = f"MLP, batches of {self.batch_size}" if self.hidden else "logistic regression"
        return f"{kind}, {self.data}, {self.threads} thread{'s' * (self.threads > 1)}"

    @property
    def name(self) -> str:
        kind = f"mlp-{self.hidden}-batch{self.batch_size}" if self.hidden else "logistic"
        return f"{kind}-{self.data}-{self.threads}threads-{self.library}"


def data_folder() -> Path | None:
    """The folder that FASTXENT_DATA names, for data sets too large to be bundled."""
    named = os.environ.get("FASTXENT_DATA")
    return Path(named) if named else None


def fits(data: tuple[str, ...] = ("digits", "planted", "mnist")) -> list[Fit]:
    """Every training on these data for the libraries that are installed, those compared beside each other."""
    threads = sorted({1, num_threads()})
    have_torch = importlib.util.find_spec("torch") is not None
    logistic = [
        Fit("LogisticRegression", library, name, count)
        for name in data
        for count in threads
        for library in LIBRARIES[:2]
    ]
    networks = [
        Fit("MLPClassifier", library, name, count, hidden, batch_size)
        for name in data
        for hidden, batch_size in NETWORKS.get(name, ())
        for count in threads
        for library in LIBRARIES
        if library != "PyTorch" or have_torch
    ]
    return logistic + networks


def planted(n: int, d: int, k: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Standard normal features, and labels drawn from a softmax of random weights.

    >>> X, y = planted(100, 4, 3, "float32")
    >>> X.shape, X.dtype.name, sorted(set(y.tolist()))
    ((100, 4), 'float32', [0, 1, 2])
    """
    rng = np.random.default_rng(0)
    X, W = rng.standard_normal((n, d)).astype(dtype), 2 * rng.standard_normal((d, k)) / np.sqrt(d)
    return X, (X @ W + rng.gumbel(size=(n, k))).argmax(axis=1)


def load_fit_data(
    name: str, *, small: bool = False, folder: Path | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Features (float32) and integer labels.

    Parameters
    ----------
    name : {"digits", "planted", "mnist"}
        Scikit-learn's digits; 200,000 rows of 100 features and 10 planted classes; the training part of MNIST.
    small : bool
        A part that trains in a moment, for tests.
    folder : Path or None
        Where mnist.npz is; None takes `data_folder`.

    Raises
    ------
    FileNotFoundError
        MNIST where no folder has it.
    """
    if name == "digits":
        from sklearn.datasets import load_digits

        X, y = load_digits(return_X_y=True)
        some = slice(600 if small else None)
        return (X[some] / 16).astype(np.float32), y[some]
    if name == "planted":
        return planted(2_000 if small else 200_000, 100, 10, np.float32)
    folder = data_folder() if folder is None else folder
    if folder is None or not (folder / "mnist.npz").is_file():
        raise FileNotFoundError("set FASTXENT_DATA to the folder of mnist.npz")
    with np.load(folder / "mnist.npz") as archive:
        X, y = archive["x_train"], archive["y_train"]
    some = slice(600 if small else None)
    return X[some].reshape(len(X[some]), -1).astype(np.float32) / 255, y[some].astype(int)


def estimators(logistic: Mapping[str, Any], mlp: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """Our two classifiers and scikit-learn's, by (class name, library); each pair has the same parameters."""
    from sklearn.linear_model import LogisticRegression as PeerLogistic
    from sklearn.neural_network import MLPClassifier as PeerMLP

    from ..logistic import LogisticRegression
    from ..mlp import MLPClassifier

    return {
        ("LogisticRegression", "fastxent"): LogisticRegression(**logistic),
        ("LogisticRegression", "scikit-learn"): PeerLogistic(**logistic),
        ("MLPClassifier", "fastxent"): MLPClassifier(**mlp),
        ("MLPClassifier", "scikit-learn"): PeerMLP(**mlp),
    }


def prepare_fit(fit: Fit, *, small: bool = False) -> Any:
    """The estimator of a training: logistic regression down to a tolerance, the network for `EPOCHS` of Adam."""
    settings = {
        "hidden_layer_sizes": (fit.hidden,),
        "solver": "adam",
        "batch_size": fit.batch_size,
        "max_iter": EPOCHS,
        "n_iter_no_change": EPOCHS,
        "learning_rate_init": 0.01 if small else 0.001,
        "random_state": 0,
    }
    if fit.library == "PyTorch":
        given = ("hidden_layer_sizes", "batch_size", "max_iter", "learning_rate_init")
        return TorchMLP(**{option: settings[option] for option in given}, num_threads=fit.threads)
    if fit.model == "LogisticRegression":
        settings = {}
    return estimators({"tol": 1e-2 if small else 1e-4, "max_iter": 1000}, settings)[fit.model, fit.library]


def limited(estimator: Any, threads: int) -> Any:
    """A context in which a fit has so many threads: our own, and those of BLAS and OpenMP."""
    from threadpoolctl import threadpool_limits

    if "num_threads" in estimator.get_params():
        estimator.set_params(num_threads=threads)
    return threadpool_limits(threads)


def quality(fit: Fit, fitted: Any, X: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """What a training reached, beside what it was: the row of the report without its time.

    Returns
    -------
    dict
        The case; ``accuracy`` and ``log_loss`` on the training data; ``objective`` (mean loss + |W|²/(2Cn)) and
        ``iterations`` of logistic regression, ``epochs`` of the network.

    Raises
    ------
    ArithmeticError
        If the model is no better than three times chance, as after nine steps of the smallest run.
    """
    from sklearn.metrics import log_loss

    probability = fitted.predict_proba(X)
    accuracy = float((fitted.classes_[probability.argmax(axis=1)] == y).mean())
    loss = float(log_loss(y, probability))
    if not (accuracy > 0.3 and np.isfinite(loss)):
        raise ArithmeticError(f"the model has learnt nothing: accuracy {accuracy:.3f}, log-loss {loss:.3f}")
    row = {
        "what": "fit",
        "group": fit.group,
        "model": fit.model,
        "library": fit.library,
        "data": fit.data,
        "threads": fit.threads,
        "accuracy": accuracy,
        "log_loss": loss,
    }
    if fit.model == "MLPClassifier":
        return {**row, "batch_size": fit.batch_size, "hidden": fit.hidden, "epochs": EPOCHS}
    objective = loss + float((fitted.coef_.astype(np.float64) ** 2).sum()) / (2 * len(y))
    return {**row, "objective": objective, "iterations": int(np.max(fitted.n_iter_))}


class TorchMLP:
    """The network of a PyTorch user: eager, fused Adam, rows gathered by a random permutation."""

    def __init__(
        self,
        hidden_layer_sizes: tuple[int],
        batch_size: int,
        max_iter: int,
        learning_rate_init: float,
        num_threads: int,
    ) -> None:
        (self.hidden,), self.batch_size, self.n_iter_ = hidden_layer_sizes, batch_size, max_iter
        self.rate, self.num_threads = learning_rate_init, num_threads

    def get_params(self) -> dict[str, Any]:
        """Nothing that `limited` could set."""
        return {}

    def fit(self, X: np.ndarray, y: np.ndarray) -> TorchMLP:
        """Train for ``max_iter`` epochs."""
        from torch import from_numpy, manual_seed, nn, optim, randperm, set_num_threads

        set_num_threads(self.num_threads)
        manual_seed(0)
        self.classes_ = np.unique(y)
        layers = [nn.Linear(X.shape[1], self.hidden), nn.ReLU(), nn.Linear(self.hidden, len(self.classes_))]
        self.network = nn.Sequential(*layers)
        optimizer = optim.Adam(self.network.parameters(), lr=self.rate, fused=True)
        rows, labels = from_numpy(X), from_numpy(y.astype(np.int64))
        for _ in range(self.n_iter_):
            total = 0.0
            for batch in randperm(len(rows)).split(self.batch_size):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(self.network(rows[batch]), labels[batch])
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(batch)
            self.loss_ = float(total) / len(rows)
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Probabilities of the classes."""
        from torch import from_numpy, no_grad

        with no_grad():
            return self.network(from_numpy(X)).softmax(dim=1).numpy()
