"""Temperature scaling: one number that turns scores into calibrated probabilities.

Guo, Pleiss, Sun and Weinberger, 2017, "On calibration of modern neural networks".  With beta = 1 / T the objective

    L(beta) = mean of CE(beta z, y)      L' = mean of (sum_k p_k z_k - z_y)      L'' = mean of Var_p(z)

is convex, so a safeguarded Newton iteration on one number finds T to rounding in five to ten passes.  Every pass runs
the row kernels over blocks of rows in float64: logits of any size need no second copy.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
from scipy import special
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array, check_consistent_length
from sklearn.utils.validation import check_is_fitted

from . import _backend, _checks
from ._estimator import check_sample_weight, encode_labels
from ._files import SaveMixin

__all__ = ["TemperatureScaling"]

_BLOCK = 1 << 16  # elements of a block, so that its four buffers stay in the cache of a core
_MAX_ITER = 100
_LARGEST = np.float64(1e150)  # logit whose square does not overflow
_CLOSE = 1e-9  # relative Newton step after which the next is below rounding: errors square
_REACH = 16.0  # largest factor of one step: the exponential tails of L' fool a Newton step that goes further


class TemperatureScaling(SaveMixin, TransformerMixin, BaseEstimator):
    """Probabilities softmax(logits / T) with the temperature T that fits held-out labels best.

    Fit it on scores that the classifier was not trained on. T > 1 makes an over-confident classifier less sure, T < 1 a
    timid one more; the predicted class stays the same.

    Parameters
    ----------
    classes : array-like of shape (n_classes,), default=None
        Label of each column, such as the `classes_` of the classifier. None: integer labels from 0 to n_classes - 1 are
        column numbers; of any others, the sorted distinct labels are the columns if there are as many.
    bounds : tuple of two floats, default=(1e-6, 1e6)
        Lowest and highest T.
    backend : {None, "auto", "numpy", "cpu", "cuda"}, default=None
        Which kernels.
    num_threads : int, default=None
        At most so many threads.

    Attributes
    ----------
    temperature_ : float
        T.
    classes_ : ndarray of shape (n_classes,)
        Label of each column.
    loss_, uncalibrated_loss_ : float
        Mean cross-entropy of the fitted rows at T and at 1, in nats.
    n_iter_ : int
        Newton iterations.
    n_features_in_ : int
        Columns of the logits, 1 for the one-dimensional scores of a binary classifier.

    See Also
    --------
    fastxent.plots.ReliabilityDisplay : Shows whether it helped.

    Examples
    --------
    >>> from fastxent import TemperatureScaling
    >>> scores = [[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]]  # sure of class 0, which is right 3 times of 4
    >>> scaling = TemperatureScaling().fit(scores, [0, 0, 0, 1])
    >>> round(scaling.temperature_, 9)
    3.640956907
    >>> scaling.predict_proba([[4.0, 0.0]]).round(9).tolist()
    [[0.75, 0.25]]
    """

    def __init__(self, *, classes=None, bounds=(1e-6, 1e6), backend=None, num_threads=None):
        self.classes = classes
        self.bounds = bounds
        self.backend = backend
        self.num_threads = num_threads

    def fit(self, logits, labels, sample_weight=None):
        """Find the temperature.

        Parameters
        ----------
        logits : array-like of shape (n_samples, n_classes), or (n_samples,) for two classes
            Scores before the softmax: a `decision_function`, or the logarithm of probabilities. One-dimensional
            scores s stand for [0, s], as scikit-learn's binary classifiers give them. -inf rules a class out.
        labels : array-like of shape (n_samples,), or (n_samples, n_classes) of floats
            Classes, or probabilities of the classes.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative; weight k is k repeats.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            Shapes that do not fit, labels that are no columns, NaN or +inf, a label whose logit is -inf.

        Warns
        -----
        ConvergenceWarning
            Where no temperature between the bounds is best: the scores separate the classes perfectly, say nothing, or
            are worse than guessing.
        """
        low, high = _interval(self.bounds)
        z, self.n_features_in_ = _scores(logits)
        check_consistent_length(z, labels)
        weight = check_sample_weight(sample_weight, len(z), np.float64)
        classes, targets = _columns(labels, z.shape[1], weight, self.classes)
        problem = _Problem(z, targets, weight, _backend.choose(self.backend), self.num_threads)
        self.classes_ = classes
        self.temperature_, self.n_iter_, advice = _minimize(problem, low, high)
        self.uncalibrated_loss_ = problem.evaluate(1.0)[0]
        self.loss_ = problem.evaluate(1.0 / self.temperature_)[0]
        if advice:
            warnings.warn(f"TemperatureScaling: {advice}", ConvergenceWarning, stacklevel=2)
        return self

    def transform(self, logits):
        """Calibrated logits, logits / T.

        Parameters
        ----------
        logits : array-like, shape as in `fit`

        Returns
        -------
        ndarray, shape of logits
        """
        z = self._checked(logits)
        z = z[:, 1] if np.ndim(logits) == 1 else z
        return z / z.dtype.type(self.temperature_)

    def predict_proba(self, logits):
        """Calibrated probabilities, softmax(logits / T).

        Parameters
        ----------
        logits : array-like, shape as in `fit`

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        z = self._checked(logits)
        return special.softmax(z / z.dtype.type(self.temperature_), axis=1)

    def predict(self, logits):
        """The most probable class of every row: the temperature does not change it.

        Parameters
        ----------
        logits : array-like, shape as in `fit`

        Returns
        -------
        ndarray of shape (n_samples,), of `classes_`
        """
        return self.classes_[self._checked(logits).argmax(axis=1)]

    def _checked(self, logits):
        check_is_fitted(self)
        z, _ = _scores(logits)
        if z.shape[1] != len(self.classes_):
            raise ValueError(f"logits: expected {len(self.classes_)} columns as in fit, got {z.shape[1]}")
        return z


# --------------------------------------------------------------------------------------------------------------- input


def _interval(bounds):
    try:
        low, high = bounds
    except (TypeError, ValueError):
        raise ValueError(f"bounds: expected the lowest and the highest temperature, got {bounds!r}") from None
    low = _checks.real(low, "bounds[0]", 0.0, open_low=True)
    high = _checks.real(high, "bounds[1]", 0.0, open_low=True)
    if low >= high:
        raise ValueError(f"bounds: expected the lowest temperature below the highest, got {bounds!r}")
    return low, high


def _scores(logits):
    """Logits as floats (n_samples, n_classes), and the columns that they came in."""
    z = check_array(
        logits, ensure_2d=False, ensure_all_finite=False, dtype=[np.float64, np.float32], input_name="logits"
    )
    n_columns = 1
    if z.ndim == 1:
        z = np.stack([np.zeros_like(z), z], axis=1)
    elif z.ndim == 2 and z.shape[1] > 1:
        n_columns = z.shape[1]
    else:
        raise ValueError(
            "logits: expected shape (n_samples, n_classes) with at least two classes, or (n_samples,) for the scores "
            f"of a binary classifier, got {z.shape}"
        )
    wrong = ~(np.abs(z) <= _LARGEST) & (z != -np.inf)
    if wrong.any():
        row, column = map(int, np.argwhere(wrong)[0])
        raise ValueError(
            f"logits[{row}, {column}] = {z[row, column]}: expected numbers within {_LARGEST:g}, or -inf"
        )
    return z, n_columns


def _columns(labels, n_classes, weight, classes):
    """Label of each column, and the targets as column numbers or probabilities."""
    y = np.asarray(labels)
    if classes is not None:
        classes = np.asarray(classes)
        if classes.shape != (n_classes,) or len(np.unique(classes)) != n_classes:
            raise ValueError(
                f"classes: expected {n_classes} different labels, one per column, got {classes!r}"
            )
    if y.ndim == 2 and y.shape[1] > 1:
        probabilities = check_array(y, dtype=np.float64, input_name="labels")
        if y.shape[1] != n_classes or y.dtype.kind != "f" or (probabilities < 0).any():
            raise ValueError(
                f"labels: expected one class per row, or non-negative floats of shape ({len(y)}, {n_classes}), "
                f"got dtype {y.dtype} and shape {y.shape}"
            )
        return np.arange(n_classes) if classes is None else classes, probabilities
    if classes is not None:
        order = np.argsort(classes)
        return classes, order[encode_labels(y, weight, classes[order])[1]]
    found, codes = encode_labels(y, weight)
    if found.dtype.kind in "iub" and int(found[0]) >= 0 and int(found[-1]) < n_classes:
        return np.arange(n_classes), found.astype(np.intp)[codes]
    if len(found) == n_classes:
        return found, codes
    raise ValueError(
        f"labels: expected integers from 0 to {n_classes - 1} or {n_classes} different labels for the {n_classes} "
        f"columns, got {len(found)}, {found[0]} to {found[-1]}; pass classes=classifier.classes_ to say which "
        "column is which"
    )


def _refuse_impossible(z, targets):
    """No temperature makes a loss finite whose class has the logit -inf."""
    if targets.ndim == 1:
        wrong = np.take_along_axis(z, targets[:, None], 1)[:, 0] == -np.inf
    else:
        wrong = ((z == -np.inf) & (targets > 0)).any(axis=1) | (z == -np.inf).all(axis=1)
    if wrong.any():
        raise ValueError(
            f"logits: the logit of the true class is -inf (row {int(wrong.argmax())} of those with a weight), so every "
            "temperature gives an infinite loss; replace probabilities of 0 by small ones before taking the logarithm"
        )


# -------------------------------------------------------------------------------------------------------------- search


class _Problem:
    """The objective over blocks of rows; `ends` holds L' at beta = 0 and at infinity, and whether the scores differ."""

    def __init__(self, z, targets, weight, core, num_threads):
        if weight is not None and not weight.all():
            live = weight > 0
            z, targets, weight = z[live], targets[live], weight[live]
        _refuse_impossible(z, targets)
        self.z, self.targets, self.weight, self.core = z, targets, weight, core
        self.threads = _checks.thread_count(num_threads)
        rows = max(1, _BLOCK // z.shape[1])
        self.blocks = [slice(start, start + rows) for start in range(0, len(z), rows)]
        mass = np.ones(len(z)) if targets.ndim == 1 else targets.sum(axis=1)
        self.total = float(mass.sum() if weight is None else mass @ weight)
        if self.total == 0:
            raise ValueError("labels: expected probabilities that are not all zero")
        self.ends = self._ends()

    def _block(self, block):
        """Scores less the label's (or less the largest), finite ones of them, targets and weights of a block.

        A constant per row changes no probability; this one keeps the tail of confident rows.
        """
        z, targets = self.z[block].astype(np.float64), self.targets[block]
        if targets.ndim == 1:
            z -= np.take_along_axis(z, targets[:, None], 1)
        else:
            z -= z.max(axis=1, keepdims=True)
        finite = z if np.isfinite(z).all() else np.where(np.isfinite(z), z, 0.0)
        return z, finite, targets, None if self.weight is None else self.weight[block]

    def _ends(self):
        first = last = 0.0
        differ = False
        for block in self.blocks:
            z, finite, targets, weight = self._block(block)
            possible = z > -np.inf
            mass, drawn = 1.0, 0.0
            if targets.ndim == 2:
                mass, drawn = targets.sum(axis=1), (targets * finite).sum(axis=1)
            top = z.max(axis=1)
            # Floats, or the division would cast: NumPy crashes where it finds no memory for that.
            counts = possible.sum(axis=1, dtype=np.float64)
            at_zero = mass * (finite.sum(axis=1) / counts) - drawn
            at_infinity = mass * top - drawn
            differ = differ or bool((np.where(possible, z, top[:, None]).min(axis=1) < top).any())
            first += float(at_zero.sum() if weight is None else at_zero @ weight)
            last += float(at_infinity.sum() if weight is None else at_infinity @ weight)
        return first, last, differ

    def evaluate(self, beta):
        """(L, L', L'') at beta."""
        loss = slope = bend = 0.0
        for block in self.blocks:
            z, finite, targets, weight = self._block(block)
            u = z * beta
            rows = len(z)
            layered = (rows, z.shape[1], 1)
            grad, product = np.empty(layered), np.empty(layered)
            problem = (
                u.reshape(layered),
                targets.reshape((rows, 1) if targets.ndim == 1 else layered),
                None if weight is None else weight.reshape(rows, 1),
                None,
                None,
                0.0,
                False,
                None,
                0.0,
                1.0,
                1.0,
            )
            loss += self.core.softmax_rows(*problem, None, None, grad, None, self.threads)[0]
            self.core.softmax_hvp(*problem, finite.reshape(layered), product, self.threads)
            slope += float(np.vdot(grad, finite))
            bend += float(np.vdot(product, finite))
        return loss / self.total, slope / self.total, bend / self.total


def _minimize(problem, low, high):
    """(T, iterations, advice); L' rises with beta, so that the root stays between an end below it and one above."""
    at_zero, at_infinity, differ = problem.ends
    if not differ:
        advice = (
            "all logits of a row are equal, so any temperature gives the same probabilities; T = 1 is kept"
        )
        return min(max(1.0, low), high), 0, advice
    if at_zero >= 0:
        return (
            high,
            0,
            (
                f"the scores are no better than guessing on these labels, so the highest temperature, {high:g}, "
                "is best; check that columns and labels have the same order"
            ),
        )
    if at_infinity <= 0:
        return (
            low,
            0,
            (
                f"the scores separate the classes perfectly, so the likelihood has no maximum and T falls to its "
                f"lower bound, {low:g}; fit on more held-out data, or set bounds to limit the confidence"
            ),
        )
    ends = left, right = 1.0 / high, 1.0 / low
    beta, last = min(max(1.0, left), right), math.inf
    for iteration in range(1, _MAX_ITER + 1):
        _, slope, bend = problem.evaluate(beta)
        if beta == ends[slope <= 0]:
            bound = low if slope <= 0 else high
            return (
                bound,
                iteration,
                f"the best temperature lies outside bounds; T is {bound:g}, the nearest of them",
            )
        if slope > 0:
            right = beta
        else:
            left = beta
        step = -slope / bend if bend > 0 else -math.copysign(math.inf, slope)
        new = min(max(beta + step, beta / _REACH), beta * _REACH)
        if abs(step) <= _CLOSE * beta:
            return 1.0 / new, iteration, None
        bracketed = left != ends[0] and right != ends[1]
        if bracketed and (not left < new < right or abs(slope) > 0.5 * last):
            new = math.sqrt(left) * math.sqrt(right)
            if not left < new < right:
                return 1.0 / beta, iteration, None  # neighbours in floating point
        beta, last = min(max(new, left), right), abs(slope)
    return 1.0 / beta, iteration, f"no convergence in {_MAX_ITER} iterations; T = {1 / beta:g} is the last"
