"""`load`: the estimator of a file that `save` wrote, checked before it is handed out."""

from __future__ import annotations

import inspect
import os
from itertools import pairwise
from numbers import Integral

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
            _files.check_parameters(model)
            check(model)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{os.fspath(path)!r} is not valid: {error}") from error
    return model


def _check_logistic(model):
    n_classes = _check_classes(model, 2)
    outputs, n_features = 1 if n_classes == 2 else n_classes, _whole(model, "n_features_in_")
    if sparse.issparse(model.coef_):
        _check_weights(model.coef_, "coef_", (outputs, n_features), type(model.coef_))
    else:
        _check_weights(model.coef_, "coef_", (outputs, n_features))
    _check_weights(model.intercept_, "intercept_", (outputs,))
    _check_names(model)
    if getattr(model, "_past", None) is not None:
        _check_past(model._past, outputs * n_features + outputs * bool(model.fit_intercept))


def _check_past(past, size):
    """What `LogisticRegression.partial_fit` goes on from: the solution, the gradient there, Hessians; a mass."""
    (center, slope, curvature), mass = past
    for name, array, shapes in (
        ("center", center, [(size,)]),
        ("slope", slope, [(size,)]),
        ("curvature", curvature, [(size,), (size, size)]),
    ):
        if type(array) is not np.ndarray or array.dtype != np.float64 or array.shape not in shapes:
            raise ValueError(f"_past: the {name} is {_found(array)}, expected float64 of shape {shapes[-1]}")
    if not (isinstance(mass, float) and 0 < mass < np.inf):
        raise ValueError(f"_past: the mass is {mass!r}, expected a positive number")


def _check_mlp(model):
    n_classes, multilabel = _check_classes(model, 1), model._multilabel
    if type(multilabel) is not bool:
        raise ValueError(f"_multilabel is {multilabel!r}, expected True or False")
    if multilabel and not np.array_equal(model.classes_, np.arange(n_classes)):
        raise ValueError(f"classes_ is {model.classes_!r}, expected the numbers of {n_classes} labels")
    outputs, activation = _whole(model, "n_outputs_"), model.out_activation_
    known = ["logistic"] if multilabel else ["softmax"]
    if n_classes == 2 and outputs == 1:
        known = [] if multilabel else ["logistic"]
    elif outputs != n_classes:
        known = []
    if not (isinstance(activation, str) and activation in known):
        kind = "labels" if multilabel else "classes"
        raise ValueError(f"n_outputs_ is {outputs} for {n_classes} {kind}, out_activation_ is {activation!r}")
    for name in ("coefs_", "intercepts_"):
        if type(getattr(model, name)) is not list:
            raise ValueError(f"{name} is {_found(getattr(model, name))}, expected a list of arrays")
    if not len(model.coefs_) == len(model.intercepts_) == _whole(model, "n_layers_") - 1 > 0:
        raise ValueError(
            f"n_layers_ is {model.n_layers_!r} for {len(model.coefs_)} coefs_ and {len(model.intercepts_)} intercepts_"
        )
    hidden = [np.size(intercept) for intercept in model.intercepts_[:-1]]
    units = [_whole(model, "n_features_in_"), *hidden, outputs]
    for layer, shape in enumerate(pairwise(units)):
        _check_weights(model.coefs_[layer], f"coefs_[{layer}]", shape)
        _check_weights(model.intercepts_[layer], f"intercepts_[{layer}]", shape[1:])
    _check_names(model)


def _check_temperature(model):
    n_classes = _check_classes(model, 2, ordered=False)
    if _whole(model, "n_features_in_") not in ((1, 2) if n_classes == 2 else (n_classes,)):
        raise ValueError(f"n_features_in_ is {model.n_features_in_!r} for {n_classes} classes")
    if not (isinstance(model.temperature_, float) and 0 < model.temperature_ < np.inf):
        raise ValueError(f"temperature_ is {model.temperature_!r}, expected a positive number")


def _check_classes(model, least, *, ordered=True):
    """How many classes there are; predictions take them by number, training looks them up in their order."""
    classes = model.classes_
    if type(classes) is not np.ndarray or classes.ndim != 1 or len(classes) < least:
        raise ValueError(f"classes_ is {classes!r}, expected a vector of {least} or more labels")
    found = np.unique(classes)
    if len(found) != len(classes) or (ordered and not np.array_equal(found, classes)):
        raise ValueError(f"classes_ is {classes!r}, expected different labels{' in their order' * ordered}")
    return len(classes)


def _check_weights(weights, name, shape, kind=np.ndarray):
    if type(weights) is not kind or weights.shape != shape or weights.dtype not in (np.float32, np.float64):
        raise ValueError(f"{name} is {_found(weights)}, expected float32 or float64 of shape {shape}")


def _check_names(model):
    names = getattr(model, "feature_names_in_", None)
    if names is None:
        return
    if np.shape(names) != (model.n_features_in_,):
        raise ValueError(f"feature_names_in_ has shape {np.shape(names)} for {model.n_features_in_} features")
    if type(names) is not np.ndarray or not all(isinstance(name, str) for name in names.tolist()):
        raise ValueError(f"feature_names_in_ is {names!r}, expected an array of strings")


def _whole(model, name):
    """A fitted attribute that counts something."""
    value = getattr(model, name)
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} is {value!r}, expected an integer")
    return value


def _found(value):
    known = type(value) is np.ndarray or sparse.issparse(value)
    return f"{value.dtype} {value.shape}" if known else type(value).__name__


_KINDS = {
    "LogisticRegression": (LogisticRegression, _check_logistic),
    "MLPClassifier": (MLPClassifier, _check_mlp),
    "TemperatureScaling": (TemperatureScaling, _check_temperature),
}
