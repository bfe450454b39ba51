"""Objectives and metrics for XGBoost and LightGBM, from any loss object that has curvature.

A booster hands over its margins (raw scores) and takes back gradient and Hessian diagonal of the summed loss. One
object serves a library's native interface, ``obj(margins, data)``, and its scikit-learn interface,
``f(y_true, y_pred, weight)``. Cross-entropy follows the library's own convention for the curvature, so that it grows
the trees of the built-in objective from the same start: in XGBoost ``base_score=0`` (for two classes its scikit-learn
interface wants a probability, 0.5), in LightGBM ``boost_from_average=False``.

Both libraries store derivatives as float32, XGBoost row by row and LightGBM class by class. So they are computed in the
margins' precision, block by block in the cache, and written once, in that type and order. Softmax cross-entropy of
labels, the usual case, has a kernel of its own; every other loss is asked block by block.

CatBoost calls Python once per row and object, which no kernel can make fast; the recipe is in `Objective`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import _backend, _boosting_on_device, _checks, _device, _memory
from ._threads import ordered_map
from .losses import HESSIANS, Loss, SigmoidCrossEntropy, SoftmaxCrossEntropy, resolve
from .losses._base import XGBOOST_FLOOR

__all__ = [
    "Metric",
    "Objective",
    "ProbabilityMixin",
    "lightgbm_metric",
    "lightgbm_objective",
    "softmax_scores",
    "xgboost_metric",
    "xgboost_objective",
]

_BLOCK = 1 << 17  # margins of a block: with its derivatives 1.5 MiB in float32
MOST_CLASSES = 128  # of the kernel for the usual case, whose sums over classes are plain ones


@dataclass(frozen=True)
class Objective:
    """Gradient and curvature of a loss as a booster asks for them: what `xgboost_objective` makes.

    Immutable and picklable, so it travels to Dask workers and into cross-validation.

    Parameters
    ----------
    loss : loss object
    hessian : None or str
    library : {"xgboost", "lightgbm"}

    Notes
    -----
    CatBoost wants minus the derivatives of one row at a time, and its whole Hessian: a class whose method
    ``calc_ders_multi(self, approxes, target, weight)`` returns minus weight times the gradient of
    ``loss.loss_grad([approxes], [int(target)])`` and minus weight times the rows ``loss.hvp([approxes], [int(target)],
    [e])[0]`` for every unit vector e. Its built-in losses are far faster.
    """

    loss: Loss
    hessian: str | None = None
    library: str = "xgboost"

    def __post_init__(self):
        loss = resolve(self.loss)
        if getattr(loss, "no_curvature", ""):
            raise TypeError(
                f"loss: boosting needs second derivatives, {loss!r} has none: {loss.no_curvature}"
            )
        if self.hessian is not None:
            _checks.choice(self.hessian, "hessian", HESSIANS)
        _checks.choice(self.library, "library", ("xgboost", "lightgbm"))
        object.__setattr__(self, "loss", loss)

    def __call__(self, first, second, sample_weight=None):
        """Gradient and curvature of the summed loss.

        Parameters
        ----------
        first, second : margins and a DMatrix or Dataset, or labels and margins
            Margins (n_samples,) for a binary problem or one elementwise score, otherwise (n_samples, n_classes). Labels
            from 0, whole numbers of any dtype; or, with as many entries as margins, targets of every margin. Margins of
            CuPy or PyTorch on a CUDA device stay there; labels and weights may lie there or in memory.
        sample_weight : None or array-like of shape (n_samples,)
            A DMatrix or Dataset brings its own.

        Returns
        -------
        grad, hess : ndarrays, or arrays of the margins' library on their device, shape of the margins, float32
            C-contiguous for XGBoost, F-contiguous for LightGBM.

        Raises
        ------
        TypeError, ValueError
            Labels that are none of the margins' classes; shapes that do not belong together.
        """
        given = _given(first, second, sample_weight)
        if _device.is_device(given[0]):
            return _boosting_on_device.derivatives(self, *given)
        elementwise = self.loss.elementwise
        margins, labels, weight = _arrays(*given, elementwise)
        order = "C" if self.library == "xgboost" else "F"
        grad, hess = (_memory.empty(margins.shape, np.float32, order) for _ in range(2))
        usual = self.is_usual(margins.shape, margins.dtype.name, labels.ndim)
        if usual and self._in_one_sweep(margins, labels, weight, grad, hess):
            return grad, hess
        targets, weight = _checks.boosting_values(margins, labels, weight, elementwise)
        fill = self._filler(margins, targets, weight, grad, hess)
        n_samples = len(margins)
        step = max(1, _BLOCK // max(1, margins[:1].size))
        blocks = [slice(start, start + step) for start in range(0, n_samples, step)]
        ordered_map(fill, blocks, _backend.default_threads())
        return grad, hess

    def is_usual(self, shape, dtype, target_dims):
        """Whether it is softmax cross-entropy of labels with the library's own curvature, which has a kernel."""
        loss = self.loss
        return (
            type(loss) is SoftmaxCrossEntropy
            and self.hessian in (None, self.library)
            and len(shape) == 2
            and 0 < shape[1] <= MOST_CLASSES
            and dtype in ("float32", "float64")
            and target_dims == 1
            and not (loss.label_smoothing or loss.z_loss or loss.logit_bias)
            and loss.temperature == 1.0
            and loss.base is None
            and (loss.ignore_index is None or not 0 <= loss.ignore_index < shape[1])
        )

    def _in_one_sweep(self, margins, labels, weight, grad, hess):
        """Derivatives by that kernel; False where a row has a limit or a negative weight, or what is an error."""
        n_classes, dtype = margins.shape[1], margins.dtype
        class_weight = self.loss.class_weight
        if class_weight is not None:
            class_weight = _checks.per_class(class_weight, "class_weight", n_classes, dtype)
        return _backend.choose(None).softmax_boost(
            margins,
            labels,
            weight,
            class_weight,
            *self.convention(n_classes),
            grad,
            hess,
            _backend.default_threads(),
        )

    def convention(self, n_classes):
        """(factor, floor) of the library's own curvature max(factor p (1 - p), floor)."""
        return (2.0, XGBOOST_FLOOR) if self.library == "xgboost" else (n_classes / max(n_classes - 1, 1), 0.0)

    def policy(self):
        """The curvature policy: what was asked for, or the library's own where it is that of cross-entropy."""
        if self.hessian is not None:
            return self.hessian
        cross_entropy = isinstance(self.loss, (SoftmaxCrossEntropy, SigmoidCrossEntropy))
        return self.library if cross_entropy else "upper"

    def _filler(self, margins, targets, weight, grad, hess):
        """What writes the derivatives of some rows."""
        loss, policy = self.loss, self.policy()
        one_score = margins.ndim == 1 and not loss.elementwise

        def fill(rows):
            g, h = loss.grad_hess(
                _with_both_classes(margins[rows]) if one_score else margins[rows],
                targets[rows],
                None if weight is None else weight[rows],
                "sum",
                hessian=policy,
                num_threads=1,
                check=False,
            )
            if one_score:
                g, h = g[:, 1], h[:, 1]
                if policy in ("xgboost", "lightgbm"):
                    h *= 0.5  # for one margin both take p (1 - p), and for one per class, of two, 2 p (1 - p)
            grad[rows] = g
            hess[rows] = h

        return fill


@dataclass(frozen=True)
class Metric:
    """The mean of a loss as a booster's evaluation metric; `xgboost_metric` and `lightgbm_metric` make it.

    Parameters
    ----------
    loss : loss object
    library : {"xgboost", "lightgbm"}
    """

    loss: Loss
    library: str = "xgboost"

    def __post_init__(self):
        _checks.choice(self.library, "library", ("xgboost", "lightgbm"))
        object.__setattr__(self, "loss", resolve(self.loss))

    @property
    def __name__(self):
        """What XGBoost's scikit-learn interface calls the metric."""
        return type(self.loss).__name__

    def __call__(self, first, second, sample_weight=None):
        """The weighted mean of the loss, in the form that the library's interface expects.

        Parameters
        ----------
        first, second, sample_weight
            As for `Objective`.

        Returns
        -------
        float, or (name, float), or (name, float, False)
            The number for XGBoost's scikit-learn interface; with its name for the native one; for LightGBM also that
            lower is better.

        Raises
        ------
        TypeError, ValueError
            As for `Objective`.
        """
        given = _given(first, second, sample_weight)
        if _device.is_device(given[0]):
            value = _boosting_on_device.value(self.loss, *given)
        else:
            margins, *labels_and_weight = _arrays(*given, self.loss.elementwise)
            targets, weight = _checks.boosting_values(margins, *labels_and_weight, self.loss.elementwise)
            if margins.ndim == 1 and not self.loss.elementwise:
                margins = _with_both_classes(margins)
            value = float(self.loss.loss(margins, targets, weight, check=False))
        if self.library == "lightgbm":
            return self.__name__, value, False
        return (self.__name__, value) if _is_data_set(second) else value


def xgboost_objective(loss, hessian=None):
    """Objective for ``xgboost.train(..., obj=)``, ``XGBClassifier(objective=)`` and ``xgboost.dask``, with weights.

    `XGBClassifier` turns margins into probabilities itself; those of a booster are
    ``softmax_scores(booster.predict(data, output_margin=True))``.

    Parameters
    ----------
    loss : loss object or name
        A softmax loss takes one margin per class, or for two classes the one margin of the second; an elementwise loss
        one margin, or one per label of a multilabel problem.
    hessian : None, "exact", "clip", "abs", "upper", "xgboost" or "lightgbm", default=None
        Curvature, as in `Loss.grad_hess`. None: XGBoost's own, max(2 p (1 - p), 1e-16) for softmax and max(p (1 - p),
        1e-16) for sigmoid cross-entropy, and "upper" for every other loss, whose exact curvature may be negative.

    Returns
    -------
    Objective

    Raises
    ------
    TypeError
        No loss, or one without second derivatives.
    ValueError
        An unknown name or `hessian`.

    Examples
    --------
    >>> import numpy as np, fastxent as fx
    >>> from fastxent.boosting import xgboost_objective
    >>> objective = xgboost_objective(fx.SoftmaxCrossEntropy())
    >>> grad, hess = objective([0, 1], np.zeros((2, 2), np.float32), sample_weight=[1.0, 2.0])
    >>> grad.tolist(), hess.tolist()
    ([[-0.5, 0.5], [1.0, -1.0]], [[0.5, 0.5], [1.0, 1.0]])
    """
    return Objective(loss, hessian, "xgboost")


def lightgbm_objective(loss, hessian=None):
    """Objective for ``params["objective"]`` of ``lightgbm.train`` and for ``LGBMClassifier(objective=)``, with weights.

    LightGBM then returns raw scores: `ProbabilityMixin` and `softmax_scores` make probabilities of them.

    Parameters
    ----------
    loss, hessian
        As for `xgboost_objective`. None: LightGBM's own, K / (K - 1) p (1 - p) for softmax and p (1 - p) for sigmoid
        cross-entropy, and "upper" for every other loss.

    Returns
    -------
    Objective

    Raises
    ------
    TypeError, ValueError
        As for `xgboost_objective`.

    Examples
    --------
    >>> import numpy as np, fastxent as fx
    >>> from fastxent.boosting import lightgbm_objective
    >>> grad, hess = lightgbm_objective(fx.SoftmaxCrossEntropy())([0, 1], np.zeros((2, 4), order="F"))
    >>> grad.tolist(), hess.tolist()
    ([[-0.75, 0.25, 0.25, 0.25], [0.25, -0.75, 0.25, 0.25]], [[0.25, 0.25, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25]])
    """
    return Objective(loss, hessian, "lightgbm")


def xgboost_metric(loss):
    """The mean of a loss as XGBoost's ``custom_metric=`` (native) or ``eval_metric=`` (scikit-learn); lower is better.

    Parameters
    ----------
    loss : loss object or name

    Returns
    -------
    Metric

    Raises
    ------
    TypeError, ValueError
        No loss; an unknown name.

    Examples
    --------
    >>> import fastxent as fx
    >>> from fastxent.boosting import xgboost_metric
    >>> round(xgboost_metric(fx.SoftmaxCrossEntropy())([0, 1], [[0.0, 0.0], [0.0, 0.0]]), 9)
    0.693147181
    """
    return Metric(loss, "xgboost")


def lightgbm_metric(loss):
    """The mean of a loss as LightGBM's ``feval=`` (native) or ``eval_metric=`` (scikit-learn); lower is better.

    Parameters
    ----------
    loss : loss object or name

    Returns
    -------
    Metric

    Raises
    ------
    TypeError, ValueError
        No loss; an unknown name.

    Examples
    --------
    >>> import fastxent as fx
    >>> from fastxent.boosting import lightgbm_metric
    >>> lightgbm_metric(fx.GeneralizedCrossEntropy(r=1.0))([0, 1], [[0.0, 0.0], [0.0, 0.0]])
    ('GeneralizedCrossEntropy', 0.5, False)
    """
    return Metric(loss, "lightgbm")


def softmax_scores(raw):
    """Probabilities of the classes from a booster's raw scores.

    Parameters
    ----------
    raw : array-like of shape (n_samples, n_classes), or (n_samples,) for the score of the second of two classes

    Returns
    -------
    ndarray of shape (n_samples, n_classes), dtype of `raw`

    Raises
    ------
    TypeError, ValueError
        Not real numbers; another number of dimensions.

    Examples
    --------
    >>> from fastxent.boosting import softmax_scores
    >>> softmax_scores([0.0, 1000.0]).tolist()
    [[0.5, 0.5], [0.0, 1.0]]
    """
    z = _checks.floats(raw, "raw")
    if z.ndim == 2 and z.shape[1] == 1:
        z = z[:, 0]
    if z.ndim == 1:
        z = _with_both_classes(z)
    if z.ndim != 2:
        raise ValueError(f"raw: expected shape (n_samples, n_classes) or (n_samples,), got {z.shape}")
    p = np.exp(z - z.max(axis=1, keepdims=True, initial=-np.inf))
    p /= p.sum(axis=1, keepdims=True)
    return p


class ProbabilityMixin:
    """Probabilities and labels from a LightGBM classifier whose objective is a softmax or binary loss of this package.

    Before the classifier among the bases: ``class Booster(ProbabilityMixin, lightgbm.LGBMClassifier): pass``.
    """

    def predict_proba(self, X, raw_score=False, **options):
        """Probabilities of the classes; what LightGBM returns with `raw_score`, `pred_leaf` or `pred_contrib`."""
        if raw_score or options.get("pred_leaf") or options.get("pred_contrib"):
            return super().predict_proba(X, raw_score=raw_score, **options)
        return softmax_scores(super().predict_proba(X, raw_score=True, **options))

    def predict(self, X, raw_score=False, **options):
        """The most probable class of every row; what LightGBM returns with the options of `predict_proba`."""
        result = self.predict_proba(X, raw_score=raw_score, **options)
        if raw_score or options.get("pred_leaf") or options.get("pred_contrib"):
            return result
        return self.classes_[result.argmax(axis=1)]


def _is_data_set(data):
    """Whether it is a DMatrix or a Dataset, which a native interface passes second."""
    return hasattr(data, "get_label")


def _given(first, second, sample_weight):
    """Margins, labels and weights (or None) of either interface."""
    if _is_data_set(second):
        labels, sample_weight = second.get_label(), second.get_weight()
        if sample_weight is not None and not np.size(sample_weight):
            sample_weight = None  # what a DMatrix without weights says
        return first, labels, sample_weight
    return second, first, sample_weight


def _arrays(margins, labels, sample_weight, elementwise):
    """Margins, labels and weights as arrays in memory, in shapes that belong together."""
    margins = _checks.floats(margins, "margins")
    if sample_weight is not None and not np.size(sample_weight):
        sample_weight = None
    return margins, *_checks.boosting_arrays(margins, labels, sample_weight, elementwise)


def _with_both_classes(score):
    """Logits (n_samples, 2) of two classes from the score of the second."""
    return np.stack([np.zeros_like(score), score], axis=1)
