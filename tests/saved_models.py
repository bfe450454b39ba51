"""Fitted models of this version as files, for `test_saved_models.py` of all later ones.

`python tests/saved_models.py` writes a new folder of tests/data, once for each minor version (docs/releasing.md).
What is there is never written again.
"""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path

import numpy as np
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning

import fastxent as fx
from fastxent import losses

DATA = Path(__file__).parent / "data"


def models():
    """Name to (fitted estimator, what it is asked to predict): labels, dtypes, losses and attributes of every kind."""
    X, y = load_iris(return_X_y=True)
    single = X.astype(np.float32)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    short = {"max_iter": 30, "random_state": 0}
    focal = losses.FocalLoss(gamma=1.5) + 0.25 * losses.SoftmaxCrossEntropy(label_smoothing=0.1)
    logistic = fx.LogisticRegression(C=0.5, class_weight="balanced").fit(X, names)
    network = fx.MLPClassifier((6, 5), activation="tanh", loss=focal, **short).fit(single, y)
    several = fx.MLPClassifier((4,), **short).fit(X, np.column_stack([y == 0, y < 2]).astype(int))
    scores = logistic.predict_log_proba(X)
    scaling = fx.TemperatureScaling(classes=logistic.classes_).fit(scores, names)
    return {
        "logistic": (logistic, X),
        "binary": (fx.LogisticRegression(fit_intercept=False).fit(single, y == 1), single),
        "mlp": (network, single),
        "multilabel": (several, X),
        "temperature": (scaling, scores),
    }


def main():
    folder = DATA / ("saved-" + re.match(r"\d+\.\d+", fx.__version__)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = models()
    folder.mkdir(parents=True)
    asked = {}
    for name, (model, X) in fitted.items():
        model.save(folder / f"{name}.npz")
        asked[f"{name}.X"] = X[::10]
        asked[f"{name}.probabilities"] = model.predict_proba(X[::10])
        asked[f"{name}.labels"] = model.predict(X[::10])
    np.savez_compressed(folder / "expected.npz", **asked)
    (folder / "models.pickle").write_bytes(pickle.dumps({name: model for name, (model, _) in fitted.items()}))


if __name__ == "__main__":
    main()
