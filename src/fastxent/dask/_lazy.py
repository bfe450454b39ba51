"""What both estimators share: lazy predictions, a client that is not pickled, the way back to one machine."""

from __future__ import annotations

import copy

import dask
import dask.array as da
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import _check_feature_names, check_is_fitted

from fastxent.dask._sources import Collections

__all__ = ["OnDask"]


class OnDask:
    """Mixin in front of an estimator of one machine, `_local`, with a parameter `client` on top of its own."""

    _local = None

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

    def _lazily(self, method, X, columns, dtype=None):
        """A method of the local model for every partition; at once where X is no collection.

        Parameters
        ----------
        method : str
        X : Dask collection, or whatever the local model takes
        columns : int or None
            Of the answer; None for a vector.
        dtype : dtype or None
            None: that of the scores.
        """
        check_is_fitted(self)
        local = self.to_local()
        if not dask.is_dask_collection(X):
            return getattr(local, method)(X)
        if not isinstance(X, da.Array):
            _check_feature_names(local, X._meta, reset=False)
            X = X.to_dask_array()
            if hasattr(local, "feature_names_in_"):
                del local.feature_names_in_  # checked once; the partitions are arrays
        if X.ndim != 2 or X.shape[1] != self.n_features_in_:
            raise ValueError(f"X: expected shape (n_samples, {self.n_features_in_}), got {X.shape}")
        if X.numblocks[1] > 1:
            X = X.rechunk({1: -1})
        if dtype is None:
            weights = self.coef_.dtype if hasattr(self, "coef_") else self.coefs_[0].dtype
            dtype = np.result_type(weights, np.float32 if X.dtype == np.float32 else np.float64)
        shape = {"drop_axis": 1} if columns is None else {"chunks": (X.chunks[0], (columns,))}
        meta = np.empty((0,) if columns is None else (0, 0), dtype)
        return X.map_blocks(_predicted, local, method, dtype=dtype, meta=meta, **shape)

    @property
    def _n_classes(self):
        return len(getattr(self, "classes_", ()))

    @property
    def _label_dtype(self):
        return self.classes_.dtype if hasattr(self, "classes_") else None

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
        found = dask.compute(*(right(local, *part) for part in Collections(X, y, sample_weight).parts))
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


def _predicted(X, local, method):
    if X.shape[0] == 0:  # which no estimator takes
        example = np.zeros((1, X.shape[1]), X.dtype)
        return getattr(local, method)(example)[:0]
    return getattr(local, method)(X)
