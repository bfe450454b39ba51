"""What both estimators share: lazy predictions, a client that is not pickled, the way back to one machine."""

from __future__ import annotations

import copy
import functools
import inspect

import dask
import dask.array as da
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import _check_feature_names, check_is_fitted

from fastxent.dask._interrupts import compute
from fastxent.dask._sources import Collections

__all__ = ["OnDask", "lazy"]


def lazy(name, what, shape):
    """A method of the local model as one that answers collections lazily, and arrays at once.

    Parameters
    ----------
    name : str
        Of the method; `OnDask._answer` knows the shape and the dtype of what it returns.
    what, shape : str
        First line of the docstring; shape of the answer.
    """

    def method(self, X):
        return self._lazily(name, X)

    method.__name__, method.__qualname__ = name, f"OnDask.{name}"
    method.__doc__ = f"""{what}

        Parameters
        ----------
        X : Dask Array or DataFrame (n_samples, n_features)
            Or an array, which is answered at once with an array.

        Returns
        -------
        Dask Array {shape}, lazy
        """
    return method


def _with_client(init):
    """The constructor of an estimator of one machine with one more keyword, `client`, which scikit-learn sees."""

    @functools.wraps(init)
    def __init__(self, *args, client=None, **kwargs):
        init(self, *args, **kwargs)
        self.client = client

    signature = inspect.signature(init)
    client = inspect.Parameter("client", inspect.Parameter.KEYWORD_ONLY, default=None)
    __init__.__signature__ = signature.replace(parameters=[*signature.parameters.values(), client])
    return __init__


class OnDask:
    """Mixin in front of an estimator of one machine, `_local`, with a parameter `client` on top of its own."""

    _local = None
    _multilabel = False

    def __init_subclass__(cls, **options):
        if "_local" in vars(cls):  # not a subclass with parameters of its own
            cls.__init__ = _with_client(cls._local.__init__)
            cls._parameter_constraints = {**cls._local._parameter_constraints, "client": "no_validation"}
        super().__init_subclass__(**options)

    predict = lazy("predict", "The most probable class of every row.", "(n_samples,)")
    predict_proba = lazy("predict_proba", "Probabilities of the classes.", "(n_samples, n_classes)")
    predict_log_proba = lazy(
        "predict_log_proba", "Logarithms of the probabilities, from the logits.", "(n_samples, n_classes)"
    )

    def _answer(self, name, dtype):
        """Columns (None for a vector) and dtype of the answer of a method to rows of a dtype."""
        n_classes = len(self.classes_)
        if name != "predict":
            return n_classes, self._score_dtype(dtype)
        return (n_classes, np.dtype(np.int64)) if self._multilabel else (None, self.classes_.dtype)

    def __getstate__(self):
        return {**super().__getstate__(), "client": None}

    def __sklearn_clone__(self):
        twin = BaseEstimator.__sklearn_clone__(copy.copy(self))  # a client cannot be copied
        twin.client = self.client
        return twin

    def to_local(self):
        """The same model as an estimator of one machine, which knows nothing of Dask.

        Returns
        -------
        fastxent.LogisticRegression or fastxent.MLPClassifier
            With the same parameters, and fitted if this one is.
        """
        parameters = self.get_params(deep=False)
        local = self._local(**{name: value for name, value in parameters.items() if name != "client"})
        for name, value in vars(self).items():
            if name not in parameters:
                setattr(local, name, copy.copy(value))
        return local

    def save(self, path):
        """Write the model, as `to_local` gives it, to a file that `fastxent.load` reads.

        Parameters
        ----------
        path : str or path-like
        """
        self.to_local().save(path)

    @property
    def partial_fit(self):
        """Not here: `to_local()` has it."""
        raise AttributeError(f"{type(self).__name__} of fastxent.dask has no partial_fit; to_local() has one")

    def _lazily(self, name, X):
        """A method of the local model for every partition; at once where X is no collection."""
        check_is_fitted(self)
        local = self.to_local()
        if not dask.is_dask_collection(X):
            return getattr(local, name)(X)
        if not isinstance(X, da.Array):
            _check_feature_names(local, X._meta, reset=False)
            X = X.to_dask_array()
            if hasattr(local, "feature_names_in_"):
                del local.feature_names_in_  # checked once; the partitions are arrays
        if X.ndim != 2 or X.shape[1] != self.n_features_in_:
            raise ValueError(f"X: expected shape (n_samples, {self.n_features_in_}), got {X.shape}")
        if X.numblocks[1] > 1:
            X = X.rechunk({1: -1})
        columns, dtype = self._answer(name, X.dtype)
        shape = {"drop_axis": 1} if columns is None else {"chunks": (X.chunks[0], (columns,))}
        meta = np.empty((0,) if columns is None else (0, 0), dtype)
        return X.map_blocks(_predicted, local, name, dtype=dtype, meta=meta, **shape)

    def score(self, X, y, sample_weight=None):
        """Share of the rows, or of their weights, whose class is predicted.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`, or as an estimator of one machine takes them.

        Returns
        -------
        float
        """
        if not dask.is_dask_collection(X):
            return self.to_local().score(X, y, sample_weight)
        local = dask.delayed(self.to_local(), pure=False)
        right = dask.delayed(_right, pure=False)
        found = compute(*(right(local, *part) for part in Collections(X, y, sample_weight).parts))
        hits, mass = np.sum(found, axis=0)
        return float(hits / mass)


def _right(local, X, y, sample_weight=None):
    """Weight of the rows whose class is predicted, and of all rows."""
    if X.shape[0] == 0:
        return 0.0, 0.0
    right = local.predict(X) == np.asarray(y)
    right = right if right.ndim == 1 else right.all(axis=1)
    weight = np.ones(len(right)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    return float(weight[right].sum()), float(weight.sum())


def _predicted(X, local, name):
    if X.shape[0] == 0:  # which no estimator takes
        example = np.zeros((1, X.shape[1]), X.dtype)
        return getattr(local, name)(example)[:0]
    return getattr(local, name)(X)
