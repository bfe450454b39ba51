"""A linear layer with so many classes that its weights are split over workers: loss and gradients by merged states.

Every worker makes a `partial_lse` state from its columns of X W + b; the states, five numbers per row, are merged in
one place; and the merged state goes back to the workers, which make their columns of dW and their part of dX.  The
weights never move, and no logits outlive their task.
"""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np

from fastxent import _checks
from fastxent._blocks import added
from fastxent.dask._sources import pairwise
from fastxent.shards import merge_lse, partial_lse

__all__ = ["linear_cross_entropy_with_grad"]


def linear_cross_entropy_with_grad(
    X,
    W,
    targets,
    bias=None,
    *,
    sample_weight=None,
    label_smoothing=0.0,
    ignore_index=-100,
    z_loss=0.0,
    reduction="mean",
):
    """Softmax cross-entropy of X W + bias with the classes of W split over workers, and its gradients; lazy.

    Parameters
    ----------
    X : array-like (n_samples, n_features)
        A batch, small enough to send to every worker.
    W : Dask Array (n_features, n_classes), float32 or float64
        In chunks of classes.
    targets : array-like of integers (n_samples,)
    bias : None or Dask Array (n_classes,), in the same chunks
    sample_weight, label_smoothing, ignore_index, z_loss
        As for `fastxent.linear_cross_entropy`.
    reduction : {"mean", "sum"}, default="mean"

    Returns
    -------
    loss : Dask Array (), float64
    dX : Dask Array (n_samples, n_features)
    dW : Dask Array (n_features, n_classes), in the chunks of W
    db : Dask Array (n_classes,), or None without `bias`
        Compute or persist what you need of them together: the states are then made once.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not belong together; for a label that is no class, when the result is computed.

    Examples
    --------
    A step of gradient descent, after which the new weights are where the old ones were:

    >>> import dask
    >>> import dask.array as da
    >>> import numpy as np
    >>> from fastxent.dask import linear_cross_entropy_with_grad
    >>> W = da.zeros((3, 1000), chunks=(3, 250))
    >>> loss, _, dW, _ = linear_cross_entropy_with_grad(np.eye(3), W, [7, 300, 999])
    >>> loss, W = dask.persist(loss, W - 0.5 * dW)
    >>> round(float(loss), 6), np.flatnonzero(W[2] > 0).compute().tolist()
    (6.907755, [999])
    """
    X = _checks.floats(X, "X")
    _checks.choice(reduction, "reduction", ("mean", "sum"))
    for name, array, ndim in (("W", W, 2), ("bias", bias, 1)):
        if name == "bias" and array is None:
            continue
        if not isinstance(array, da.Array):
            raise TypeError(f"{name}: expected a Dask Array, got {type(array).__name__}")
        if array.ndim != ndim or array.dtype not in (np.float32, np.float64):
            raise ValueError(
                f"{name}: expected {ndim} dimensions of float32 or float64, got {array.ndim} of {array.dtype}"
            )
    if X.ndim != 2 or X.shape[1] != W.shape[0]:
        raise ValueError(f"W: expected {X.shape[-1]} rows for X {X.shape}, got shape {W.shape}")
    if W.numblocks[0] > 1:
        W = W.rechunk({0: -1})
    widths = W.chunks[1]
    if bias is not None and bias.chunks[0] != widths:
        raise ValueError(f"bias: expected the chunks of W's classes, {widths}, got {bias.chunks[0]}")
    options = {
        "sample_weight": sample_weight,
        "label_smoothing": label_smoothing,
        "ignore_index": ignore_index,
        "z_loss": z_loss,
        "reduction": reduction,
    }
    batch = dask.delayed((X, np.asarray(targets)), pure=False, traverse=False)
    weights = W.to_delayed().ravel()
    biases = [None] * len(widths) if bias is None else bias.to_delayed().ravel()
    offsets = np.cumsum([0, *widths]).tolist()
    parts = list(zip(weights, biases, offsets, strict=False))
    state = dask.delayed(merge_lse, pure=False)([_state(batch, *part) for part in parts])
    loss = da.from_delayed(_loss(state, options), (), np.float64)
    grads = [_grads(batch, *part, state, options) for part in parts]
    dtype = np.result_type(X.dtype, W.dtype)
    dX = da.from_delayed(pairwise(added, [grad[0] for grad in grads]), X.shape, dtype)
    dW = da.concatenate(
        [da.from_delayed(g[1], (W.shape[0], k), W.dtype) for g, k in zip(grads, widths, strict=True)], axis=1
    )
    if bias is None:
        return loss, dX, dW, None
    columns = [da.from_delayed(g[2], (k,), bias.dtype) for g, k in zip(grads, widths, strict=True)]
    return loss, dX, dW, da.concatenate(columns)


def _logits(X, W, b):
    Z = X @ W
    return Z if b is None else Z + b


@dask.delayed(pure=False)
def _state(batch, W, b, offset):
    X, targets = batch
    return partial_lse(_logits(X, W, b), targets, offset)


@dask.delayed(pure=False)
def _loss(state, options):
    return np.float64(state.loss(**options))


@dask.delayed(pure=False, nout=3)
def _grads(batch, W, b, offset, state, options):
    X, targets = batch
    dZ = state.grad(_logits(X, W, b), targets, offset, **options)
    db = None if b is None else dZ.sum(axis=0, dtype=np.float64).astype(b.dtype)
    return dZ @ W.T, (X.T @ dZ).astype(W.dtype, copy=False), db
