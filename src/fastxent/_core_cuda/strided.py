"""Rows of any strides in plain loads: what the general kernels share.

A row's place, its softmax, its label and weight, and the target of a class. `real` is the arithmetic's storage, which
may be wider than that of the logits. A class's exponential is exp(u - top), and of a float64 the rounding of u - top is
carried along (it would be amplified by |u - top|).
"""

import math
from typing import NamedTuple

from numba import cuda, float64, int64

from . import intrinsics as on
from .rows import ABSOLUTE, BAD, BIAS, FLOORED, IGNORE, WEIGHT
from .teams import team

__all__ = [
    "Row",
    "annihilated",
    "label_reader",
    "positive_part",
    "reader",
    "split_row",
    "target_reader",
]

device = cuda.jit(device=True, forceinline=True)


@device
def annihilated(a, b):
    """a / b where a numerator of 0 gives 0."""
    return a if a == a - a and b == b else a / b


@device
def positive_part(h, factor, times_this, floor, flags):
    """A second derivative under a policy: its absolute value, a multiple, not below a floor for a row of a factor."""
    if flags & ABSOLUTE:
        h = abs(h)
    h *= times_this
    low = abs(factor) * floor
    return low if flags & FLOORED and h < low else h


@device
def split_row(row, n_inner):
    """(outer, inner) of a row below 2^53, by the division of 32 bits wherever that is enough: one of 64 is a call."""
    if n_inner > 1:
        if (row | n_inner) >> 32 == 0:
            outer = on.quotient(int64(row), int64(n_inner))
        else:
            outer = int64(float64(row) / float64(n_inner))
            if outer * n_inner > row:  # a quotient just below a whole number was rounded up to it
                outer -= 1
        return outer, row - outer * n_inner
    return row, int64(0)


class Row(NamedTuple):
    """Device functions over the rows of a storage, shared by a team."""

    logit: object  # (X, BIAS, at, k, inv_t, flags) -> u
    below: object  # (u, top) -> exp(u - top)
    sums: object  # (X, BIAS, origin, step, n_classes, lane, size, inv_t, flags, shared x 3, mask) -> top, less, peaks
    share: object  # (u, top, less, peaks) -> p, 1 - p, top - u


def reader(storage, real, lanes):
    """`Row` for logits in one storage, in the arithmetic of another.

    The sums are the maximum `top`, the exponentials below it and how often it occurs; NaN where a row has no softmax.
    """
    get, number = storage.get, real.real
    WIDE = number is float64
    group_sum = team(lanes).sum
    group_max = team(lanes).max_float64 if WIDE else team(lanes).max
    ZERO, ONE, INF, NAN = number(0), number(1), number(math.inf), number(math.nan)

    @device
    def logit(X, BIAS_IN, at, k, inv_t, flags):
        u = number(get(X, at)) * inv_t
        if flags & BIAS:
            u += number(BIAS_IN[k])
        return u

    @device
    def below(u, top):
        if u == top:
            return ONE
        gap = u - top
        e = math.exp(gap)
        if WIDE:
            back = gap - u
            rest = (u - (gap - back)) - (top + back)
            if rest == rest and e > ZERO:
                e += e * rest
        return e

    @device
    def sums(
        X, BIAS_IN, origin, step, n_classes, lane, size, inv_t, flags,
        shared_max, shared_sum, shared_more, mask,
    ):  # fmt: skip
        top = -INF
        k = int64(lane)
        while k < n_classes:
            u = logit(X, BIAS_IN, origin + k * step, k, inv_t, flags)
            if u > top:
                top = u
            k += size
        top = group_max(top, -INF, shared_max, mask)
        less = ZERO
        peaks = ZERO
        k = int64(lane)
        while k < n_classes:
            u = logit(X, BIAS_IN, origin + k * step, k, inv_t, flags)
            if u == top:
                peaks += ONE
            else:
                less += below(u, top)
            k += size
        less = group_sum(less, ZERO, shared_sum, mask)
        peaks = group_sum(peaks, ZERO, shared_more, mask)
        if top == -INF or (top == INF and peaks > ONE):
            less = NAN
        return top, less, peaks

    @device
    def share(u, top, less, peaks):
        total = less + peaks
        if u == top:
            return ONE / total, (less + (peaks - ONE)) / total, ZERO
        e = below(u, top)
        return e / total, (total - e) / total, top - u

    return Row(logit, below, sums, share)


def label_reader(real, soft):
    """(T, at, W, w_at, BAD_ROW, row, n_rows, n_classes, ignore, flags, lane) -> label or -1, weight of the row.

    The weight is 0 where a row is ignored and NaN where its label is no class.
    """
    number = real.real
    SOFT = soft
    ZERO, ONE, NAN = number(0), number(1), number(math.nan)

    @device
    def label_of(T, at, W, w_at, BAD_ROW, row, n_rows, n_classes, ignore, flags, lane):
        weight = ONE
        if flags & WEIGHT:
            weight = number(W[w_at])
        y = int64(-1)
        if not SOFT:
            y = int64(T[at])
            if flags & IGNORE and y == ignore:
                weight = ZERO
                y = int64(0)
            elif y < 0 or y >= n_classes:
                weight = NAN
                y = int64(0)
                if flags & BAD and lane == 0:
                    on.raise_to(BAD_ROW, n_rows - row)
        return y, weight

    return label_of


def target_reader(real, soft):
    """(T, at, step, k, y, smoothing, exclude, n_classes) -> smoothed target of class k."""
    number = real.real
    SOFT = soft
    ZERO, ONE = number(0), number(1)

    @device
    def target_of(T, at, step, k, y, smoothing, exclude, n_classes):
        t = ZERO
        if SOFT:
            t = number(T[at + k * step])
        elif k == y:
            t = ONE
        if smoothing != ZERO:
            if not exclude:
                return (ONE - smoothing) * t + smoothing / number(n_classes)
            other = smoothing / number(n_classes - 1) if n_classes > 1 else ZERO
            return (ONE - smoothing) * t + other * (ONE - t)
        return t

    return target_of
