"""Sigmoid kernels: elementwise losses of logits, flat in 16-byte vectors, or plain over two axes with any strides.

p = sigmoid(z) and q = sigmoid(-z) both come from exp(-|z|), never from one another.
"""

import math

from numba import cuda, float32, float64, int64, uint32

from . import intrinsics as on
from .rows import BAD, DENOMINATOR, LOSS, POSITIVE, WEIGHT
from .teams import BLOCK, team

__all__ = ["ELEMENT_FAMILIES", "flat_kernel", "strided_kernel"]

ELEMENT_FAMILIES = {"cross_entropy": 0, "focal": 1, "asymmetric": 2}
FULL = 0xFFFFFFFF

device = cuda.jit(device=True, forceinline=True)


@device
def times(a, b):
    """a * b where a factor a of 0 annihilates an infinite b."""
    return a if a == a - a and b == b else a * b


@device
def focal_side(p, q, ell, gamma, zero, one):
    """q^gamma ell with ell = -log p, and its derivative along the logit of p."""
    power = one
    if gamma != zero:
        power = zero if q == zero else math.exp(gamma * math.log(q))
    return times(power, ell), -power * (gamma * times(p, ell) + q)


@device
def loss_of(x, y, positive, smoothing, family, a, b, c, one):
    """Loss and derivative of one element, in the arithmetic of `one`."""
    zero = one - one
    not_y = one - y
    if smoothing != zero:
        half = smoothing / (one + one)
        y, not_y = (one - smoothing) * y + half, (one - smoothing) * not_y + half
    y *= positive
    e = math.exp(-abs(x))
    tail = math.log1p(e)
    big = one / (one + e)
    small = e * big
    p, q = (big, small) if x > zero else (small, big)
    up, down = max(x, zero) + tail, max(-x, zero) + tail
    if family == 0:
        return times(y, down) + times(not_y, up), not_y * p - y * q
    if family == 1:
        f1, g1 = focal_side(p, q, down, a, zero, one)
        f0, g0 = focal_side(q, p, up, a, zero, one)
        y *= b
        not_y *= c
        return times(y, f1) + times(not_y, f0), times(y, g1) - times(not_y, g0)
    f1, g1 = focal_side(p, q, down, a, zero, one)
    s = p - c if p > c else zero
    rest = q + c
    ell = math.log1p(s / rest) if c != zero else up
    f0, g0 = s, s
    if s > zero:
        power = math.exp(b * math.log(s)) if b != zero else one
        f0 = power * ell
        g0 = power * (b * times(p * q, ell / s) + p * (q / rest if c != zero else one))
    elif b == zero:
        g0 = p * (q / rest if c != zero else one)
    if x != x:
        f0, g0 = x, x
    return times(y, f1) + times(not_y, f0), times(y, g1) + times(not_y, g0)


def flat_kernel(storage, targets, grad, family):
    """All elements in one piece, without weights: 16-byte vectors of the logits; targets in a storage, or bytes."""
    E = storage.per_vector
    SHIFT = E.bit_length() - 1
    PER_WORD = storage.per_word
    low, high, pack, get, put = storage.low, storage.high, storage.pack, storage.get, storage.put
    target_get = targets.get
    WIDE = targets.itemsize == 4 or targets.name == storage.name  # targets come in vectors too
    FAMILY = family  # a constant: a body with all families is too large to unroll
    TWICE = targets.itemsize == 4 and PER_WORD == 2
    target_low, target_high = targets.low, targets.high
    GRAD = grad
    group_sum = team(BLOCK).sum
    ZERO, ONE = float32(0), float32(1)

    @device
    def bad(y):
        return not (y >= ZERO and y <= ONE)

    def kernel(
        X, G, Y, LOSS_OUT, PART, BAD_ROW, n, head, flags, smoothing, a, b, c, scale,
    ):  # fmt: skip
        shared_sum = cuda.shared.array(32, float64)
        thread = int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
        step = int64(cuda.gridDim.x) * cuda.blockDim.x
        vectors = (n - head) >> SHIFT
        tail = head + (vectors << SHIFT)
        total = float64(0)
        x = cuda.local.array(E, float32)
        y = cuda.local.array(E, float32)
        i = thread
        while i < vectors:
            at = head + (i << SHIFT)
            four = on.load16(X, at)
            for w in range(4):
                x[w * PER_WORD] = low(four[w])
                if PER_WORD == 2:
                    x[w * 2 + 1] = high(four[w])
            if WIDE:
                first = on.load16(Y, at)
                if TWICE:
                    second = on.load16(Y, at + 4)
                    for w in range(4):
                        y[w] = target_low(first[w])
                        y[w + 4] = target_low(second[w])
                else:
                    for w in range(4):
                        y[w * PER_WORD] = target_low(first[w])
                        if PER_WORD == 2:
                            y[w * 2 + 1] = target_high(first[w])
            else:
                for k in range(E):
                    y[k] = target_get(Y, at + k)
            some = ZERO
            for k in range(E):
                if flags & BAD and bad(y[k]):
                    on.raise_to(BAD_ROW, n - at - k)
                loss, g = loss_of(x[k], y[k], ONE, smoothing, FAMILY, a, b, c, ONE)
                some += loss
                if flags & LOSS:
                    LOSS_OUT[at + k] = loss
                x[k] = g * scale
            total += some
            if GRAD:
                if PER_WORD == 1:
                    on.store16(
                        G, at, (pack(x[0], x[0]), pack(x[1], x[1]), pack(x[2], x[2]), pack(x[3], x[3]))
                    )
                else:
                    on.store16(
                        G,
                        at,
                        (
                            pack(x[0], x[1]),
                            pack(x[2], x[3]),
                            pack(x[E - 4], x[E - 3]),
                            pack(x[E - 2], x[E - 1]),
                        ),
                    )
            i += step
        # the head's and the tail's elements, one to a thread
        at = int64(-1)
        if thread < head:
            at = thread
        elif thread - head < n - tail:
            at = tail + thread - head
        if at >= 0:
            value = target_get(Y, at)
            if flags & BAD and bad(value):
                on.raise_to(BAD_ROW, n - at)
            loss, g = loss_of(get(X, at), value, ONE, smoothing, FAMILY, a, b, c, ONE)
            total += loss
            if flags & LOSS:
                LOSS_OUT[at] = loss
            if GRAD:
                put(G, at, g * scale)
        total = group_sum(total, float64(0), shared_sum, uint32(FULL))
        if cuda.threadIdx.x == 0:
            PART[cuda.blockIdx.x] = total

    return kernel


def strided_kernel(storage, targets, grad):
    """Elements of two axes with any strides, with weights, which may have strides of 0."""
    get, put, real = storage.get, storage.put, storage.real
    target_get = targets.get
    GRAD = grad
    group_sum = team(BLOCK).sum
    ZERO, ONE = real(0), real(1)

    def kernel(
        X, G, Y, W, POS, LOSS_OUT, PART, BAD_ROW, DEN, n_rows, n_columns,
        x_row, x_column, g_row, g_column, y_row, y_column, w_row, w_column, p_row, p_column,
        flags, smoothing, family, a, b, c, scale,
    ):  # fmt: skip
        shared_sum = cuda.shared.array(32, float64)
        total = float64(0)
        if flags & DENOMINATOR:
            scale = real(float64(scale) / DEN[0]) if DEN[0] != float64(0) else ZERO
        row = int64(cuda.blockIdx.y)
        while row < n_rows:
            column = int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
            while column < n_columns:
                y = real(target_get(Y, row * y_row + column * y_column))
                if flags & BAD and not (y >= ZERO and y <= ONE):
                    on.raise_to(BAD_ROW, (n_rows - row) * n_columns - column)
                positive, weight = ONE, ONE
                if flags & POSITIVE:
                    positive = POS[row * p_row + column * p_column]
                if flags & WEIGHT:
                    weight = W[row * w_row + column * w_column]
                x = get(X, row * x_row + column * x_column)
                loss, g = loss_of(x, y, positive, smoothing, family, a, b, c, ONE)
                loss = ZERO if weight == ZERO else loss * weight
                total += loss
                if flags & LOSS:
                    LOSS_OUT[row * n_columns + column] = loss
                if GRAD:
                    g = ZERO if weight == ZERO else g * weight * scale
                    put(G, row * g_row + column * g_column, g)
                column += int64(cuda.gridDim.x) * cuda.blockDim.x
            row += cuda.gridDim.y
        total = group_sum(total, float64(0), shared_sum, uint32(FULL))
        if cuda.threadIdx.x == 0:
            PART[int64(cuda.blockIdx.y) * cuda.gridDim.x + cuda.blockIdx.x] = total

    return kernel
