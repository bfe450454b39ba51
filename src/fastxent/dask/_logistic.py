"""Logistic regression over Dask collections."""

from __future__ import annotations

import numpy as np
from sklearn.base import _fit_context

from fastxent import logistic
from fastxent.dask._lazy import OnDask, lazy
from fastxent.dask._sources import open_source

__all__ = ["LogisticRegression"]


class LogisticRegression(OnDask, logistic.LogisticRegression):
    """`fastxent.LogisticRegression` over Dask collections: the same parameters, objective, solvers and answer.

    Every evaluation of the objective sends the coefficients to each worker once and gets one sum of losses and
    gradients back; the data stay on the workers.  Sums are added along a tree over the partitions, so the bits
    depend on the partitions alone, not on the workers, their number or the loss of some of them.

    Without a cluster the partitions run in Dask's threads and are computed anew for every pass: a few of them
    are in memory at a time, and data may be larger than that.  ``persist()`` keeps them.

    Parameters
    ----------
    penalty, C, l1_ratio, dual, tol, fit_intercept, intercept_scaling, class_weight, random_state, solver
    max_iter, verbose, warm_start, n_jobs, loss, label_smoothing
        As for `fastxent.LogisticRegression`.
    num_threads : int or None, default=None
        Of every worker; None is as many as Dask gave it.
    backend : {None, "auto", "numpy", "cpu"}, default=None
        As for `fastxent.LogisticRegression`.
    client : dask.distributed.Client or None, default=None
        None is the current one, and without one there is no cluster.  It is not pickled.

    Attributes
    ----------
    classes_, coef_, intercept_, n_iter_, n_features_in_, feature_names_in_, opt_result_
        As for `fastxent.LogisticRegression`: NumPy arrays.

    Notes
    -----
    The partitions of y and of the weights must be those of X; chunk sizes may be unknown, chunks may be sparse
    (SciPy's CSR).  On a cluster the data must fit into the workers' memory together.

    Examples
    --------
    >>> import dask.array as da
    >>> from fastxent.dask import LogisticRegression
    >>> X = da.arange(8, chunks=4)[:, None]
    >>> y = da.arange(8, chunks=4) >= 3
    >>> model = LogisticRegression().fit(X, y)
    >>> model.predict(X).compute().tolist()
    [False, False, False, True, True, True, True, True]
    >>> model.to_local().predict([[2.0], [4.0]]).tolist()
    [False, True]
    """

    _local = logistic.LogisticRegression

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None):
        """Fit the model.

        Parameters
        ----------
        X : Dask Array (n_samples, n_features), dense or with CSR chunks, or DataFrame
        y : Dask Array or Series (n_samples,), or Array or DataFrame of floats (n_samples, n_classes)
            Labels of any kind, or probabilities of the classes.
        sample_weight : None, or Dask Array or Series (n_samples,)

        Returns
        -------
        self

        Raises
        ------
        TypeError
            For anything but Dask collections of numbers.
        ValueError
            As `fastxent.LogisticRegression.fit`; for partitions that do not belong together.
        """
        with open_source(X, y, sample_weight, self.client, self.num_threads) as source:
            return self._fit_blocks(source, X, y, sample_weight)

    decision_function = lazy(
        "decision_function",
        "Logits, as those of `fastxent.LogisticRegression`.",
        "(n_samples,) or (n_samples, n_classes)",
    )

    def _answer(self, name, dtype):
        columns, dtype = super()._answer(name, dtype)
        return (None if name == "decision_function" and columns == 2 else columns), dtype

    def _score_dtype(self, dtype):
        return np.result_type(self.coef_.dtype, np.float32 if dtype == np.float32 else np.float64)
