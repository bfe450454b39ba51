"""The estimators where the data outgrow the machine: Dask Arrays and DataFrames, on a cluster or without one.

    from fastxent.dask import LogisticRegression

They take the parameters of their namesakes in `fastxent`, fit the same objective to the same answer, and come back to
one machine by `to_local()`.  `linear_cross_entropy_with_grad` is for classes so many that their weights are split.
"""

try:
    import dask.array  # noqa: F401
except ImportError as error:
    raise ImportError("fastxent.dask needs Dask: pip install 'fastxent[dask]'") from error

from fastxent.dask._classes import linear_cross_entropy_with_grad
from fastxent.dask._logistic import LogisticRegression
from fastxent.dask._mlp import MLPClassifier

__all__ = ["LogisticRegression", "MLPClassifier", "linear_cross_entropy_with_grad"]
