"""Rows of any strides: what the general kernels share.

A row's place, its softmax, its label and weight, and the target of a class. `real` is the arithmetic's storage, which
may be wider than that of the logits. A class's exponential is exp(u - top), and of a float64 the rounding of u - top is
carried along (it would be amplified by |u - top|).

A team walks along a row in steps: a class each, or 16 bytes each where the row lies in one piece (`Walk`). The first
and the last step of such a row may reach beyond it; what is outside is neither read nor written.
"""

import functools
import math
from typing import NamedTuple

from numba import cuda, float32, float64, int64

from . import intrinsics as on
from .rows import ABSOLUTE, BAD, BIAS, FLOORED, IGNORE, WEIGHT
from .storage import STORAGES, packing
from .teams import team

__all__ = [
    "Row",
    "Walk",
    "annihilated",
    "label_reader",
    "positive_part",
    "reader",
    "smoother",
    "split_row",
    "target_reader",
    "walk",
]

device = cuda.jit(device=True, forceinline=True)


@device
def quotient(a, b):
    """a / b, correctly rounded."""
    return a / b


@device
def near_quotient(a, b):
    """a / b of float32 within 1.5 ulp, by a reciprocal that is made once a row."""
    return a * (float32(1) / b)


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


class Walk(NamedTuple):
    """Device functions over the steps of a row, of `elements` classes each."""

    elements: int
    span: (
        object  # (X, origin, n_classes) -> first class of step 0, which may be negative, and number of steps
    )
    inside: object  # (k, n_classes) -> whether there is such a class
    load: object  # (X, origin, step, k, n_classes, values): those of the classes from k on; the others stay
    load_real: object  # the same of numbers in the arithmetic's dtype, at any address
    store: object  # (G, origin, step, k, n_classes, values), at any address


@functools.cache
def one_by_one(storage):
    """`Walk` in steps of a class, whatever the strides."""
    get, put = storage.get, storage.put

    @device
    def span(X, origin, n_classes):
        return int64(0), int64(n_classes)

    @device
    def inside(k, n_classes):
        return True

    @device
    def load(X, origin, step, k, n_classes, values):
        values[0] = get(X, origin + k * step)

    @device
    def load_real(X, origin, step, k, n_classes, values):
        values[0] = X[origin + k * step]

    @device
    def store(G, origin, step, k, n_classes, values):
        put(G, origin + k * step, values[0])

    return Walk(1, span, inside, load, load_real, store)


@functools.cache
def by_vectors(storage):
    """`Walk` in steps of 16 bytes of the logits, whose neighbouring classes are neighbours in memory."""
    E, PER_WORD = storage.per_vector, storage.per_word
    SHIFT, BYTES = E.bit_length() - 1, storage.itemsize.bit_length() - 1
    get, put = storage.get, storage.put
    (unpack, packed), (unpack_real, _) = packing(storage), packing(STORAGES["float32"])

    @device
    def span(X, origin, n_classes):
        before = int64(on.beyond_boundary(X, origin) >> BYTES)
        return -before, (n_classes + before + (E - 1)) >> SHIFT

    @device
    def inside(k, n_classes):
        return k >= 0 and k < n_classes

    @device
    def whole(pointer, at, k, n_classes):
        return k >= 0 and k + E <= n_classes and on.beyond_boundary(pointer, at) == 0

    @device
    def load(X, origin, step, k, n_classes, values):
        at = origin + k
        if whole(X, at, k, n_classes):
            unpack(on.load16(X, at), values, 0)
        else:
            for e in range(E):
                if inside(k + e, n_classes):
                    values[e] = get(X, at + e)

    @device
    def load_real(X, origin, step, k, n_classes, values):
        at = origin + k
        if whole(X, at, k, n_classes):
            for q in range(PER_WORD):
                unpack_real(on.load16(X, at + 4 * q), values, 4 * q)
        else:
            for e in range(E):
                if inside(k + e, n_classes):
                    values[e] = X[at + e]

    @device
    def store(G, origin, step, k, n_classes, values):
        at = origin + k
        if whole(G, at, k, n_classes):
            on.store16(G, at, packed(values, 0))
        else:
            for e in range(E):
                if inside(k + e, n_classes):
                    put(G, at + e, values[e])

    return Walk(E, span, inside, load, load_real, store)


def walk(storage, wide):
    """`Walk` for a storage; `wide`: 16 bytes at a time."""
    return by_vectors(storage) if wide else one_by_one(storage)


class Row(NamedTuple):
    """Device functions over the rows of a storage, shared by a team."""

    logit: object  # (X, BIAS, at, k, inv_t, flags) -> u
    below: object  # (u, top) -> exp(u - top)
    sums: object  # (X, BIAS, origin, step, n_classes, lane, size, inv_t, flags, shared x 3, mask) -> top, less, peaks
    share: object  # (u, top, less, peaks) -> p, 1 - p, top - u
    biased: object  # (x, BIAS, k, inv_t, flags) -> u of a logit x of class k


def reader(storage, real, lanes, wide=False):
    """`Row` for logits in one storage, in the arithmetic of another.

    `wide`: 16 bytes at a time, as `walk` does. The sums are the maximum `top`, the exponentials below it and how often
    it occurs; NaN where a row has no softmax.
    """
    get, number = storage.get, real.real
    steps = walk(storage, wide)
    E, span, inside, load = steps.elements, steps.span, steps.inside, steps.load
    EXTENDED = number is float64
    group_sum = team(lanes).sum
    group_max = team(lanes).max_float64 if EXTENDED else team(lanes).max
    over = near_quotient if wide and not EXTENDED else quotient
    ZERO, ONE, INF, NAN = number(0), number(1), number(math.inf), number(math.nan)

    @device
    def biased(x, BIAS_IN, k, inv_t, flags):
        u = x * inv_t
        if flags & BIAS:
            u += number(BIAS_IN[k])
        return u

    @device
    def logit(X, BIAS_IN, at, k, inv_t, flags):
        return biased(number(get(X, at)), BIAS_IN, k, inv_t, flags)

    @device
    def below(u, top):
        if u == top:
            return ONE
        gap = u - top
        e = math.exp(gap)
        if EXTENDED:
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
        x = cuda.local.array(E, number)
        begin, n_steps = span(X, origin, n_classes)
        top = -INF
        i = int64(lane)
        while i < n_steps:
            first = begin + i * E
            load(X, origin, step, first, n_classes, x)
            for e in range(E):
                if inside(first + e, n_classes):
                    u = biased(x[e], BIAS_IN, first + e, inv_t, flags)
                    if u > top:
                        top = u
            i += size
        top = group_max(top, -INF, shared_max, mask)
        less = ZERO
        peaks = ZERO
        i = int64(lane)
        while i < n_steps:
            first = begin + i * E
            load(X, origin, step, first, n_classes, x)
            for e in range(E):
                if inside(first + e, n_classes):
                    u = biased(x[e], BIAS_IN, first + e, inv_t, flags)
                    if u == top:
                        peaks += ONE
                    else:
                        less += below(u, top)
            i += size
        less = group_sum(less, ZERO, shared_sum, mask)
        peaks = group_sum(peaks, ZERO, shared_more, mask)
        if top == -INF or (top == INF and peaks > ONE):
            less = NAN
        return top, less, peaks

    @device
    def share(u, top, less, peaks):
        total = less + peaks
        if u == top:
            return over(ONE, total), over(less + (peaks - ONE), total), ZERO
        e = below(u, top)
        return over(e, total), over(total - e, total), top - u

    return Row(logit, below, sums, share, biased)


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


def smoother(real):
    """(t, smoothing, exclude, n_classes) -> smoothed target of a class whose target is t."""
    number = real.real
    ZERO, ONE = number(0), number(1)

    @device
    def smoothed(t, smoothing, exclude, n_classes):
        if smoothing != ZERO:
            if not exclude:
                return (ONE - smoothing) * t + smoothing / number(n_classes)
            other = smoothing / number(n_classes - 1) if n_classes > 1 else ZERO
            return (ONE - smoothing) * t + other * (ONE - t)
        return t

    return smoothed


def target_reader(real, soft):
    """(T, at, step, k, y, smoothing, exclude, n_classes) -> smoothed target of class k."""
    number = real.real
    SOFT = soft
    smoothed = smoother(real)
    ZERO, ONE = number(0), number(1)

    @device
    def target_of(T, at, step, k, y, smoothing, exclude, n_classes):
        t = ZERO
        if SOFT:
            t = number(T[at + k * step])
        elif k == y:
            t = ONE
        return smoothed(t, smoothing, exclude, n_classes)

    return target_of
