"""`load`: the estimator of a file that `save` wrote, checked before it is handed out."""

from __future__ import annotations

import inspect
import os
from itertools import pairwise

import numpy as np
from scipy import sparse

from . import _files
from .calibration import TemperatureScaling
from .logistic import LogisticRegression
from .mlp import MLPClassifier

__all__ = ["load"]


def load(path):
    """Estimator of a file that its method `save` wrote.

    No pickle is involved: a file gives numbers, strings and arrays to one of this package's classes, whatever it holds.
    Shapes, dtypes and checksums are compared before anything is returned.

    Parameters
    ----------
    path : str or path-like

    Returns
    -------
    LogisticRegression, MLPClassifier or TemperatureScaling
        With the parameters and fitted attributes of the one saved, each with its type and dtype.

    Raises
    ------
    ValueError
        The file is no file of this package, was cut off or changed, or comes from a newer version.
    TypeError
        `path` is no path.
    OSError
        It cannot be read.

    Examples
    --------
    >>> import os, tempfile, fastxent as fx
    >>> model = fx.LogisticRegression().fit([[0.0], [1.0], [2.0], [3.0]], ["no", "no", "yes", "yes"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(os.path.join(folder, "model.npz"))
    ...     again = fx.load(os.path.join(folder, "model.npz"))
    >>> again
    LogisticRegression()
    >>> again.predict([[0.5], [2.5]]).tolist()
    ['no', 'yes']
    """
    name, params, fitted = _files.read(path)
    try:
        if name not in _KINDS:
            raise ValueError(f"it holds a {name!r}, expected one of {', '.join(_KINDS)}")
        kind, check = _KINDS[name]
        unknown = sorted(set(params) - set(inspect.signature(kind).parameters))
        if unknown:
            raise ValueError(f"{name} has no parameter {', '.join(map(repr, unknown))}")
        odd = sorted(each for each in fitted if not _files.is_fitted(each, kind))
        if odd:
            raise ValueError(f"no name of a fitted attribute: {', '.join(map(repr, odd))}")
        model = kind(**params)
        vars(model).update(fitted)
        if fitted:
            check(model)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{os.fspath(path)!r} is not valid: {error}") from error
    return model


def _check_logistic(model):
    n_classes = _check_classes(model)
    outputs = 1 if n_classes == 2 else n_classes
    _check_weights(model.coef_, "coef_", (outputs, model.n_features_in_))
    _check_weights(model.intercept_, "intercept_", (outputs,))
    _check_names(model)
    if getattr(model, "_past", None) is not None:
        _check_past(model._past, outputs * model.n_features_in_ + outputs * bool(model.fit_intercept))


def _check_past(past, size):
    """What `LogisticRegression.partial_fit` goes on from: the solution, the gradient there, Hessians; a mass."""
    (center, slope, curvature), mass = past
    for name, array, shapes in (
        ("center", center, [(size,)]),
        ("slope", slope, [(size,)]),
        ("curvature", curvature, [(size,), (size, size)]),
    ):
        if type(array) is not np.ndarray or array.dtype != np.float64 or array.shape not in shapes:
            found = f"{array.dtype} {array.shape}" if type(array) is np.ndarray else type(array).__name__
            raise ValueError(f"_past: the {name} is {found}, expected float64 of shape {shapes[-1]}")
    if not (isinstance(mass, float) and 0 < mass < np.inf):
        raise ValueError(f"_past: the mass is {mass!r}, expected a positive number")


def _check_mlp(model):
    n_classes = _check_classes(model)
    if model.out_activation_ not in ("softmax", "logistic"):
        raise ValueError(f"out_activation_ is {model.out_activation_!r}")
    outputs = (n_classes,) if model.out_activation_ == "softmax" or n_classes != 2 else (1, 2)
    if model.n_outputs_ not in outputs:
        raise ValueError(f"n_outputs_ is {model.n_outputs_!r} for {n_classes} classes")
    if not len(model.coefs_) == len(model.intercepts_) == model.n_layers_ - 1:
        raise ValueError(
            f"n_layers_ is {model.n_layers_!r} for {len(model.coefs_)} coefs_ and {len(model.intercepts_)} intercepts_"
        )
    hidden = [len(intercept) for intercept in model.intercepts_[:-1]]
    units = [model.n_features_in_, *hidden, model.n_outputs_]
    for layer, shape in enumerate(pairwise(units)):
        _check_weights(model.coefs_[layer], f"coefs_[{layer}]", shape)
        _check_weights(model.intercepts_[layer], f"intercepts_[{layer}]", shape[1:])
    _check_names(model)


def _check_temperature(model):
    n_classes = _check_classes(model)
    if model.n_features_in_ not in ((1, 2) if n_classes == 2 else (n_classes,)):
        raise ValueError(f"n_features_in_ is {model.n_features_in_!r} for {n_classes} classes")
    if not (isinstance(model.temperature_, float) and 0 < model.temperature_ < np.inf):
        raise ValueError(f"temperature_ is {model.temperature_!r}, expected a positive number")


def _check_classes(model):
    classes = model.classes_
    if type(classes) is not np.ndarray or classes.ndim != 1 or len(classes) == 0:
        raise ValueError(f"classes_ is {classes!r}, expected a vector of labels")
    return len(classes)


def _check_weights(weights, name, shape):
    known = type(weights) is np.ndarray or sparse.issparse(weights)
    if not known or weights.shape != shape or weights.dtype not in (np.float32, np.float64):
        found = f"{weights.dtype} {weights.shape}" if known else type(weights).__name__
        raise ValueError(f"{name} is {found}, expected float32 or float64 of shape {shape}")


def _check_names(model):
    names = getattr(model, "feature_names_in_", None)
    if names is not None and np.shape(names) != (model.n_features_in_,):
        raise ValueError(f"feature_names_in_ has shape {np.shape(names)} for {model.n_features_in_} features")


_KINDS = {
    "LogisticRegression": (LogisticRegression, _check_logistic),
    "MLPClassifier": (MLPClassifier, _check_mlp),
    "TemperatureScaling": (TemperatureScaling, _check_temperature),
}
