"""Softmax cross-entropy of rows whose classes lie in several places: partial states that merge exactly.

A worker that holds the columns [class_offset, class_offset + k) of the logits makes a state from them; states travel
(they pickle, and hold five numbers per row) and merge in any order and grouping; the merged state answers the loss of
the whole rows, and with its own columns each worker gets its own part of the gradient.

Per row, with x the logits seen so far and n of them:

    m = max x    r = sum exp(x - m) without one maximum    t = m - x_y, if the label y is among them    Z = sum (m - x)

States a merge with M = max m_a, D_a = M - m_a: r = sum of (1 + r_a) exp(-D_a), without the 1 of one state whose m_a
is M; t += D; Z = sum of Z_a + n_a D_a.  Nothing is subtracted, so that with label smoothing a over all K classes

    loss = log1p(r) + (1 - a) t + a Z / K

keeps every digit of a confident row: 4.248354255291589e-18 at a margin of 40, where log(1 + r) + m - x_y gives 0.
Gradients: exp(x_k - m) / (1 + r) off the label, minus the sum of the others at the label: r / (1 + r) if the label is a
maximum, (1 + r - exp(-t)) / (1 + r), which does not cancel either, if not.

Arithmetic is float64; differences x - m carry their rounding error into the exponential.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from . import _backend, _checks, _device, _shards_on_device
from .information import compensated_sum

__all__ = ["LSEState", "merge_lse", "partial_lse"]


@dataclasses.dataclass(frozen=True, eq=False)
class LSEState:
    """What is known of every row from the columns seen so far. Made by `partial_lse` and `merge_lse`.

    Attributes
    ----------
    labels : ndarray of int64, of the rows' shape
        Over all classes, not over a shard's.
    m, r, t, Z : ndarray of float64, of the rows' shape
        See the module's docstring; t is 0 where the label is not among the columns seen.
    owned : ndarray of bool, of the rows' shape
        Whether the label is among the columns seen.
    columns : tuple of (int, int)
        The columns seen, as sorted disjoint half-open ranges.
    dtype : str
        Compute dtype, "float32" or "float64": that of a loss per row.

    Examples
    --------
    >>> import fastxent as fx
    >>> left = fx.partial_lse([[40.0]], [0], 0)
    >>> right = fx.partial_lse([[0.0]], [0], 1)
    >>> state = fx.merge_lse([left, right])
    >>> round(state.loss() * 1e18, 12)
    4.248354255292
    >>> (state.grad([[0.0]], [0], 1) * 1e18).round(12).tolist()
    [[4.248354255292]]
    """

    labels: np.ndarray
    m: np.ndarray
    r: np.ndarray
    t: np.ndarray
    Z: np.ndarray
    owned: np.ndarray
    columns: tuple
    dtype: str

    @property
    def n_classes(self):
        """Number of columns seen."""
        return sum(stop - start for start, stop in self.columns)

    @property
    def lse(self):
        """Log-sum-exp over the columns seen, of the rows' shape, in the compute dtype.

        -inf without columns; NaN, as of whole rows, for a NaN, two +inf, or nothing but -inf.
        """
        return self._lse().astype(self.dtype)

    def loss(
        self,
        *,
        label_smoothing=0.0,
        z_loss=0.0,
        ignore_index=-100,
        sample_weight=None,
        reduction="mean",
        check=True,
    ):
        """Softmax cross-entropy of the whole rows.

        Parameters
        ----------
        label_smoothing : float in [0, 1], default=0.0
            Share of the target that is spread over all classes, of every shard.
        z_loss : float >= 0, default=0.0
            Coefficient of logsumexp^2.
        ignore_index : int or None, default=-100
            Label whose rows count nothing.
        sample_weight : array-like, broadcastable to the rows' shape, optional
        reduction : {"mean", "sum", "none", "mean_rows", "mean_all"}, default="mean"
            As for `fastxent.softmax_cross_entropy`.
        check : bool, default=True
            False gives NaN for rows whose label is no class, instead of an error.

        Returns
        -------
        float, or ndarray of the rows' shape with reduction="none"
            In nats; 0 for the mean of nothing.

        Raises
        ------
        TypeError, ValueError
            An option outside its range; a label that is no class; columns missing between the shards.
        """
        smoothing, z_loss = self._options(label_smoothing, z_loss)
        weight, denominator = self._weights(ignore_index, sample_weight, reduction, check)
        with np.errstate(all="ignore"):
            loss = np.log1p(self._r())
            if smoothing < 1:
                loss = loss + (1 - smoothing) * self.t
            if smoothing:
                loss = loss + smoothing * (self.Z / self.n_classes)
            if z_loss:
                loss = loss + z_loss * self._lse() ** 2
            loss = np.where(weight == 0, 0.0, loss * weight)
        if reduction == "none":
            return loss.astype(self.dtype)
        return float(loss.sum()) / denominator if denominator else 0.0

    def grad(
        self,
        logits_shard,
        targets,
        class_offset,
        *,
        label_smoothing=0.0,
        z_loss=0.0,
        ignore_index=-100,
        sample_weight=None,
        reduction="mean",
        backend=None,
        num_threads=None,
        check=True,
    ):
        """Gradient of the loss with respect to one shard of the logits.

        Parameters
        ----------
        logits_shard, targets, class_offset
            As given to `partial_lse` when this shard's state was made.
        label_smoothing, z_loss, ignore_index, sample_weight, reduction, check
            As for `loss`.
        backend, num_threads
            As for `partial_lse`.

        Returns
        -------
        ndarray, shape and dtype of logits_shard
            On the device of logits_shard, where that is a CUDA device. With reduction="none", the gradient of the sum.

        Raises
        ------
        TypeError, ValueError
            As `loss`; a shard whose columns or targets are not in this state.
        """
        smoothing, z_loss = self._options(label_smoothing, z_loss)
        options = (smoothing, z_loss, ignore_index, sample_weight, reduction, check)
        if _device.is_device(logits_shard):
            rows = functools.partial(self._rows, *options)
            return _shards_on_device.gradient(logits_shard, targets, class_offset, backend, self._known, rows)
        core, threads = _backend.choose(backend), _checks.thread_count(num_threads)
        z, labels, start = _checks.shard_input(logits_shard, targets, class_offset)
        self._known(labels, start, z.shape[-1])
        of_rows = self._rows(*options)
        grad = np.empty(z.shape, z.dtype)
        if of_rows is None or z.size == 0:
            grad[...] = 0
            return grad
        rows, out = z.reshape(-1, z.shape[-1]), grad.reshape(-1, z.shape[-1])
        core.partial_grad(rows, np.ascontiguousarray(labels.reshape(-1)), start, *of_rows, out, threads)
        return grad

    def _rows(self, smoothing, z_loss, ignore_index, sample_weight, reduction, check):
        """m, r, t, pull and weight of every row, flat, and the shares of the target; None where the gradient is 0."""
        weight, denominator = self._weights(ignore_index, sample_weight, reduction, check)
        if denominator == 0:
            return None
        with np.errstate(all="ignore"):
            pull = 2 * z_loss * self._lse() if z_loss else np.zeros(self.m.shape)
            state = [a.reshape(-1) for a in (self.m, self._r(), self.t, pull, weight / denominator)]
        return *state, smoothing / self.n_classes, 1 - smoothing

    def _r(self):
        """r, NaN where there are columns and all are -inf."""
        return np.where((self.m == -np.inf) & (self.n_classes > 0), np.nan, self.r)

    def _lse(self):
        with np.errstate(all="ignore"):
            return self.m + np.log1p(self._r())

    def _options(self, label_smoothing, z_loss):
        """Checked options; the loss of a part of the classes is no loss."""
        if len(self.columns) != 1 or self.columns[0][0] != 0:
            seen = ", ".join(f"{start} to {stop - 1}" for start, stop in self.columns) or "none"
            raise ValueError(
                f"expected the state of all columns from 0 on, has only {seen}: merge the states of all shards"
            )
        return _checks.real(label_smoothing, "label_smoothing", 0.0, 1.0), _checks.real(z_loss, "z_loss", 0.0)

    def _weights(self, ignore_index, sample_weight, reduction, check):
        """Weight of every row (0 where ignored, NaN where the label is no class), and the reduction's denominator."""
        _checks.choice(reduction, "reduction", _checks.REDUCTIONS)
        ignored = np.zeros(self.labels.shape, bool)
        if ignore_index is not None:
            ignored = self.labels == _checks.whole(ignore_index, "ignore_index")
        given = _checks.per_row(
            sample_weight, "sample_weight", self.labels.shape, np.dtype(np.float64), check=check
        )
        given = np.ones(self.labels.shape) if given is None else given
        wrong = ~(self.owned | ignored)
        if check and wrong.any():
            raise _checks.bad_shard_label(self.labels, wrong, self.n_classes)
        weight = np.where(ignored, 0.0, np.where(wrong, np.nan, given))
        if reduction == "mean":
            return weight, float(np.where(ignored, 0.0, given).sum())
        count = {"mean_rows": ignored.size - np.count_nonzero(ignored), "mean_all": ignored.size}
        return weight, float(count.get(reduction, 1))

    def _known(self, labels, start, width):
        """Refuse a shard that is no part of this state."""
        stop = start + width
        if labels.shape != self.labels.shape or not np.array_equal(labels, self.labels):
            raise ValueError("targets: expected the labels that this state was made with, got others")
        if width and not any(a <= start and stop <= b for a, b in self.columns):
            raise ValueError(
                f"class_offset: expected a shard of this state, got columns {start} to {stop - 1}"
            )


def partial_lse(logits_shard, targets, class_offset, *, backend=None, num_threads=None):
    """State of every row from some of its columns.

    Parameters
    ----------
    logits_shard : array-like of shape (n_samples, k), or any shape with the classes last
        Columns class_offset to class_offset + k - 1 of the logits; k = 0 is allowed. An array on a CUDA device stays
        there: its state is in memory all the same, and making it waits for the device.
    targets : array-like of integers, shape of logits_shard without its last axis
        Labels over all classes; most lie in other shards.
    class_offset : int
        Column of the first class here.
    backend, num_threads
        As for `fastxent.softmax_cross_entropy`.

    Returns
    -------
    LSEState

    Raises
    ------
    TypeError
        Labels or an offset that are no integers; logits that are no real numbers.
    ValueError
        Shapes that do not fit; a negative offset.

    Examples
    --------
    >>> from fastxent import partial_lse
    >>> state = partial_lse([[0.0, 0.0, -40.0]], [2], 0)
    >>> state.m.tolist(), state.t.tolist(), round(float(state.lse[0]), 9)
    ([0.0], [40.0], 0.693147181)
    """
    if _device.is_device(logits_shard):
        labels, *state, start, k, dtype = _shards_on_device.rows_of(
            logits_shard, targets, class_offset, backend
        )
        owned = (labels >= start) & (labels - start < k)
        return LSEState(labels, *state, owned, ((start, start + k),) if k else (), dtype)
    core, threads = _backend.choose(backend), _checks.thread_count(num_threads)
    z, labels, start = _checks.shard_input(logits_shard, targets, class_offset)
    k = z.shape[-1]
    shape = labels.shape
    m, r, t, Z = np.full(labels.size, -np.inf), *np.zeros((3, labels.size))
    at = labels.reshape(-1) - start
    owned = (at >= 0) & (at < k)
    if z.size:
        core.partial_rows(
            z.reshape(-1, k), np.ascontiguousarray(labels.reshape(-1)), start, m, r, t, Z, threads
        )
    per_row = [a.reshape(shape) for a in (labels, m, r, t, Z, owned)]
    return LSEState(*per_row, ((start, start + k),) if k else (), _checks.compute_dtype(z.dtype).name)


def merge_lse(states):
    """State of the rows over the columns of all states, whatever their order; merged states merge again.

    Parameters
    ----------
    states : iterable of LSEState
        Of the same rows; at least one.

    Returns
    -------
    LSEState

    Raises
    ------
    TypeError
        Something else than states.
    ValueError
        No states, states of different rows, or a column in two of them.

    Examples
    --------
    >>> from fastxent import merge_lse, partial_lse
    >>> state = merge_lse([partial_lse([[0.0]], [1], offset) for offset in range(4)])
    >>> state.columns, round(state.loss(), 9)
    (((0, 4),), 1.386294361)
    """
    states = _checks.shard_states(states, LSEState)
    first = states[0]
    shape = first.labels.shape
    m, r, t, Z = (np.stack([getattr(s, name).reshape(-1) for s in states]) for name in ("m", "r", "t", "Z"))
    owned = np.stack([s.owned.reshape(-1) for s in states])
    n = np.array([s.n_classes for s in states])[:, None]
    top = m.argmax(axis=0)[None]  # of a NaN if there is one
    highest = np.take_along_axis(m, top, 0)
    with np.errstate(all="ignore"):
        gap = highest - m
        gap[m == highest] = 0  # of infinities too
        back = gap - highest
        lost = (highest - (gap - back)) - (m + back)  # TwoSum, as in the kernels
        factor = np.exp(-gap) * (1 - np.where(np.isfinite(lost), lost, 0))
        own = np.take_along_axis(r, top, 0)
        scaled = (1 + r) * factor
        scaled[m == -np.inf] = 0
        second = (m == np.inf).sum(axis=0) > 1
        np.put_along_axis(scaled, top, own, 0)
        r = compensated_sum(scaled)
        r[second] = np.nan
        t = np.where(owned, t + gap, 0).sum(axis=0)
        Z = compensated_sum(Z + np.where(n == 0, 0, n * gap))
    owned = owned.any(axis=0)
    per_row = [a.reshape(shape) for a in (highest[0], r, t, Z, owned)]
    dtype = "float64" if any(s.dtype == "float64" for s in states) else "float32"
    return LSEState(first.labels, *per_row, _union(states), dtype)


def _union(states):
    """Sorted column ranges of all states, adjacent ones joined."""
    joined = []
    for start, stop in sorted(columns for s in states for columns in s.columns):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return tuple(joined)
