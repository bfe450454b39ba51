"""Boosting objectives beside the NumPy ones that people write, in one run.

    python benchmarks/boosting.py [rows classes]

Both compute the derivatives of softmax cross-entropy with the library's own curvature, from the arrays that the library
hands over; the results are compared before anything is timed. "to the trees" adds what LightGBM does with the
answer, a copy to float32 class by class. Every number is the best of several calls that take turns.
"""

import sys
import time

import numpy as np

import fastxent as fx
from fastxent.boosting import lightgbm_objective, xgboost_objective

ROUNDS = 9


def numpy_objective(margins, labels, weights, factor):
    """The usual one: shifted softmax, one-hot labels by indexing, the diagonal with a floor."""
    p = np.exp(margins - margins.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    grad = p.copy()
    grad[np.arange(len(labels)), labels.astype(int)] -= 1
    hess = np.maximum(factor * p * (1 - p), 1e-16)
    if weights is not None:
        grad *= weights[:, None]
        hess *= weights[:, None]
    return grad, hess


def to_the_trees(grad, hess):
    """What LightGBM makes of an objective's answer."""
    return [np.asarray(a.ravel(order="F"), np.float32) for a in (grad, hess)]


def best(functions):
    """Best time of each function in milliseconds, the functions taking turns."""
    times = [[] for _ in functions]
    for _ in range(ROUNDS):
        for function, of_it in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            of_it.append(time.perf_counter() - start)
    return [1e3 * min(of_it) for of_it in times]


def main(n_samples=1_000_000, n_classes=10):
    rng = np.random.default_rng(0)
    margins = rng.standard_normal((n_samples, n_classes), np.float32)
    labels = rng.integers(0, n_classes, n_samples).astype(np.float32)  # as both libraries keep them
    weights = rng.uniform(0.5, 2.0, n_samples).astype(np.float32)
    double = np.asfortranarray(margins, dtype=np.float64)
    cases = [
        ("XGBoost", xgboost_objective, margins, 2.0, lambda grad, hess: None),
        ("LightGBM", lightgbm_objective, double, n_classes / (n_classes - 1), lambda grad, hess: None),
        ("LightGBM, to the trees", lightgbm_objective, double, n_classes / (n_classes - 1), to_the_trees),
    ]
    print(f"{n_samples} x {n_classes}, best of {ROUNDS}; fastxent {fx.__version__}, NumPy {np.__version__}\n")
    print("| objective | weights | fastxent, ms | NumPy, ms | ratio |\n| --- | --- | --- | --- | --- |")
    for name, make, z, factor, after in cases:
        objective = make(fx.SoftmaxCrossEntropy())
        for v in (None, weights):
            expected = numpy_objective(z.astype(np.float64), labels, v, factor)
            for ours, theirs in zip(objective(labels, z, v), expected, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
            del expected
            ours, theirs = best(
                [
                    lambda: after(*objective(labels, z, v)),  # noqa: B023 (called at once)
                    lambda: after(*numpy_objective(z, labels, v, factor)),  # noqa: B023
                ]
            )
            print(
                f"| {name} | {'no' if v is None else 'yes'} | {ours:.1f} | {theirs:.1f} | {theirs / ours:.1f} |"
            )
    for loss in (fx.FocalLoss(), fx.GeneralizedCrossEntropy(), fx.SoftmaxCrossEntropy(label_smoothing=0.1)):
        (ours,) = best([lambda: xgboost_objective(loss)(labels, margins)])  # noqa: B023
        print(f"| XGBoost, {loss} | no | {ours:.1f} | | |")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
