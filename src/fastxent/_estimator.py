"""What both estimators share: labels, weights and the hooks of ``sklearn.callback``.

Weights follow one rule: weight k is k repeats and weight 0 is removal.  So the classes, the balanced class
weights and every sum are those of the rows with a positive weight; the others only keep their place in X.
"""

from __future__ import annotations

import math
import sys
from numbers import Real

import numpy as np
from sklearn.utils import check_array, column_or_1d
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets

from .losses import DistillationLoss, resolve

try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:  # scikit-learn < 1.9 knows no callbacks

    class CallbackSupportMixin:
        """Stands in where scikit-learn has no callbacks: there is nothing to set and nothing to call."""


def check_sample_weight(sample_weight, n_samples, dtype, some=True):
    """Sample weights as a C-contiguous vector, or None where every row weighs 1.

    Parameters
    ----------
    sample_weight : None, real scalar or array-like of shape (n_samples,)
    n_samples : int
    dtype : float32 or float64
        Of the answer.
    some : bool
        Whether one must be positive: not so for a block of the rows.

    Returns
    -------
    ndarray of shape (n_samples,) and the dtype asked for, or None

    Raises
    ------
    ValueError
        For a wrong shape, a NaN or infinite weight, a negative weight, or with `some` weights that are all zero.

    Examples
    --------
    >>> import numpy as np
    >>> check_sample_weight([1, 0, 2], 3, np.float32)
    array([1., 0., 2.], dtype=float32)
    """
    if sample_weight is None:
        return None
    if isinstance(sample_weight, Real):
        sample_weight = np.full(n_samples, sample_weight, dtype=dtype)
    weights = check_array(sample_weight, ensure_2d=False, dtype=dtype, order="C", input_name="sample_weight")
    if weights.ndim != 1:
        raise ValueError(
            f"Sample weights must be 1D array or scalar, got {weights.ndim}D array. "
            f"Expected either a scalar value or a 1D array of length {n_samples}."
        )
    if weights.shape[0] != n_samples:
        raise ValueError(f"sample_weight.shape == {weights.shape}, expected ({n_samples},)!")
    lowest = weights.min(initial=np.inf)
    if lowest < 0:
        raise ValueError(f"Negative values in data passed to `sample_weight`: expected >= 0, got {lowest!s}.")
    if some and not weights.any():
        raise ValueError("Sample weights must contain at least one non-zero number.")
    return weights


def loss_of(loss):
    """The loss object of an estimator's parameter, one that labels alone can serve."""
    loss = resolve(loss)
    if isinstance(loss, DistillationLoss):
        raise ValueError(
            "loss: DistillationLoss needs the teacher's logits beside the labels, for which fit has no argument: pass "
            "the teacher's probabilities as y instead, softmax(teacher_logits / temperature)"
        )
    return loss


def encode_labels(y, sample_weight=None, classes=None):
    """Class labels of any kind as integers.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Strings, integers, booleans or whole numbers as floats.
    sample_weight : None or ndarray of shape (n_samples,)
        Rows of weight 0 count as removed: they create no class, and their code is 0 if their label is none.
    classes : None or ndarray of shape (n_classes,)
        Sorted labels known beforehand (``partial_fit``).  None finds them in ``y``.

    Returns
    -------
    classes : ndarray of shape (n_classes,)
        Sorted.
    codes : ndarray of shape (n_samples,), intp
        ``classes[codes]`` is ``y``.

    Raises
    ------
    TypeError
        For strings beside labels that are none.
    ValueError
        For continuous targets, or a label that is none of ``classes``.

    Examples
    --------
    >>> classes, codes = encode_labels(["b", "a", "b"])
    >>> classes.tolist(), codes.tolist()
    (['a', 'b'], [1, 0, 1])
    """
    y = column_or_1d(y, warn=True)
    if y.dtype == object:
        kinds = {type(label) for label in y.tolist()}
        if len({issubclass(kind, str) for kind in kinds}) == 2:
            names = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise TypeError(
                f"y: expected labels of one kind, strings or numbers, got {names}; leave out rows without a label"
            )
    counted = None
    if sample_weight is not None and not sample_weight.all():
        counted = sample_weight != 0
    if classes is None and counted is None:
        found = _encode_integers(y)
        if found is not None:
            return found
    check_classification_targets(y)
    if classes is None and counted is None:
        return np.unique(y, return_inverse=True)
    if classes is None:
        classes = np.unique(y[counted])
    codes = np.searchsorted(classes, y)
    codes[codes == len(classes)] = 0
    unknown = classes[codes] != y
    if counted is not None:
        codes[unknown & ~counted] = 0
        unknown &= counted
    if unknown.any():
        row = int(np.flatnonzero(unknown)[0])
        value = y[row].item() if isinstance(y[row], np.generic) else y[row]
        raise ValueError(f"y[{row}] is {value!r}, expected one of the classes {classes.tolist()}.")
    return classes, codes


def _encode_integers(y):
    """`encode_labels` of integers by counting, ten times faster than by sorting; None where that does not fit."""
    if y.dtype.kind not in "iu" or len(y) == 0:
        return None
    low, high = int(y.min()), int(y.max())
    if high - low > len(y):
        return None
    at = np.subtract(y, low, dtype=np.intp, casting="unsafe")
    present = np.bincount(at) > 0
    classes = np.flatnonzero(present)
    if 2 * len(classes) > len(y):
        return None  # so many that scikit-learn's check warns
    codes = at if len(classes) == len(present) else (np.cumsum(present) - 1)[at]
    return (classes + low).astype(y.dtype), codes


def class_weight_vector(class_weight, classes, codes, sample_weight=None):
    """One weight per class, or None where every class weighs 1.

    ``"balanced"`` is n / (n_classes · n_k), n and n_k counted in sample weights (King and Zeng, Logistic
    regression in rare events data, 2001); a dict maps labels to weights, 1 for a label it does not name.

    Parameters
    ----------
    class_weight : None, "balanced" or dict
    classes : ndarray of shape (n_classes,)
        Sorted labels.
    codes : ndarray of shape (n_samples,), integer
        Positions in ``classes``.
    sample_weight : None or ndarray of shape (n_samples,)

    Returns
    -------
    ndarray of shape (n_classes,), float64, or None

    Raises
    ------
    ValueError
        For an unknown string, a dict whose keys are no classes, or a negative or non-finite weight.

    Examples
    --------
    >>> import numpy as np
    >>> class_weight_vector("balanced", np.array([0, 1]), np.array([0, 0, 0, 1]))
    array([0.66666667, 2.        ])
    """
    if class_weight is None or (isinstance(class_weight, dict) and not class_weight):
        return None
    if isinstance(class_weight, str) and class_weight == "balanced":
        mass = np.bincount(codes, weights=sample_weight, minlength=len(classes)).astype(np.float64)
        present = mass > 0
        vector = np.ones(len(classes))
        vector[present] = mass.sum() / (present.sum() * mass[present])
        return vector
    vector = np.asarray(compute_class_weight(class_weight, classes=classes, y=classes), dtype=np.float64)
    if not (np.isfinite(vector).all() and (vector >= 0).all()):
        raise ValueError(f"class_weight must be finite and >= 0 for every class, got {class_weight!r}.")
    return vector


def row_weights(sample_weight, class_vector, codes, dtype, some=True):
    """The product of sample weight and class weight for every row, or None where every row weighs 1.

    Parameters
    ----------
    sample_weight : None or ndarray of shape (n_samples,)
    class_vector : None or ndarray of shape (n_classes,)
    codes : ndarray of shape (n_samples,), integer
    dtype : float32 or float64
    some : bool
        As for `check_sample_weight`.

    Returns
    -------
    ndarray of shape (n_samples,) and the dtype asked for, or None

    Raises
    ------
    ValueError
        If every product is zero, with `some`.

    Examples
    --------
    >>> import numpy as np
    >>> row_weights(np.array([1.0, 2.0]), np.array([0.5, 3.0]), np.array([1, 0]), np.float64)
    array([3., 1.])
    """
    if class_vector is None:
        return sample_weight
    weights = class_vector[codes]
    if sample_weight is not None:
        weights *= sample_weight
    if some and not weights.any():
        raise ValueError("sample_weight times class_weight must be positive for some row, got only zeros.")
    return weights.astype(dtype, copy=False)


class FitTasks:
    """The callback hooks of one ``fit``: one task for the fit, one subtask for every iteration.

    Without callbacks, or with a scikit-learn that has none (< 1.9), every method returns at once.

    Parameters
    ----------
    estimator : estimator instance with ``CallbackSupportMixin``
        Its ``fit`` must be wrapped by scikit-learn's fit context, which tears the callbacks down.
    max_iter : int
        At most so many subtasks.
    task_name : str
        Of a subtask.
    X, y : the validated training data
    sample_weight : None or ndarray of shape (n_samples,)
    """

    def __init__(self, estimator, max_iter, task_name, X, y, sample_weight=None):
        self._context = self._iteration = None
        if not hasattr(estimator, "_skl_callbacks"):
            return
        self._estimator, self._task_name = estimator, task_name
        metadata = None if sample_weight is None else {"sample_weight": sample_weight}
        self._data = {"X": X, "y": y, "metadata": metadata}
        self._context = estimator._init_callback_context(max_subtasks=max(max_iter, 1) + 1)
        self._context.call_on_fit_task_begin(estimator=estimator, **self._data)
        self._begin_iteration()

    @property
    def listening(self):
        """Whether any callback is there to be told."""
        return self._context is not None

    def _begin_iteration(self):
        self._iteration = self._context.subcontext(task_name=self._task_name)
        self._iteration.call_on_fit_task_begin(estimator=self._estimator, **self._data)

    def end_iteration(self, attributes):
        """Tell the callbacks that an iteration has ended.

        Parameters
        ----------
        attributes : callable without arguments
            The fitted attributes of an estimator stopped here, as a dict; called only if a callback asks.

        Returns
        -------
        bool
            True where a callback wishes the fit to stop.
        """
        if self._context is None:
            return False
        stop = self._iteration.call_on_fit_task_end(
            estimator=self._estimator, reconstruction_attributes=attributes, **self._data
        )
        self._begin_iteration()
        return bool(stop)

    def close(self):
        """End the subtask that no iteration filled, then the fit; every task begun is a task ended."""
        if self._context is None:
            return
        self._iteration.call_on_fit_task_end(estimator=self._estimator)
        self._context.call_on_fit_task_end(
            estimator=self._estimator, reconstruction_attributes=dict, **self._data
        )
        self._context = self._iteration = None


class ProgressBar:
    """How far a full-batch fit is, as one line on the standard error; nothing where that is no terminal.

    Parameters
    ----------
    shown : bool
    name : str
        Of the estimator.
    tol : float
        Where the largest entry of the gradient shall get to: the bar is its way there, in logarithms.
    """

    WIDTH = 30

    def __init__(self, shown, name, tol):
        self.shown = bool(shown) and sys.stderr.isatty()
        self._name, self._tol, self._first = name, tol, None

    def show(self, iterate):
        """The bar after an iteration."""
        if not self.shown:
            return
        if self._first is None:
            self._first = max(iterate.grad_max, self._tol, 1e-300)
        way = math.log(self._first / max(self._tol, 1e-300)) or 1.0
        left = math.log(max(iterate.grad_max, 1e-300) / max(self._tol, 1e-300)) / way
        done = "#" * round(self.WIDTH * min(max(1 - left, 0.0), 1.0))
        text = f"objective {iterate.fun:.6g}, max |gradient| {iterate.grad_max:.2g}"
        line = f"{self._name} [{done:<{self.WIDTH}}] iteration {iterate.n_iter}, {text}"
        print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)

    def wipe(self):
        """Take the bar away."""
        if self.shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
