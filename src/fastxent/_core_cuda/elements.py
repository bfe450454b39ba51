"""Elementwise kernels: losses of logits, flat in 16-byte vectors, or plain over two axes with any strides.

p = sigmoid(z) and q = sigmoid(-z) both come from exp(-|z|), never from one another. Second derivatives, and losses of
probabilities, are plain only.
"""

import math

from numba import cuda, float32, float64, int64, uint32

from . import intrinsics as on
from .rows import BAD, DENOMINATOR, LOSS, POSITIVE, WEIGHT, times
from .storage import packing
from .strided import annihilated, positive_part, split_row
from .teams import BLOCK, FULL, team

__all__ = ["ELEMENT_FAMILIES", "flat_kernel", "strided_kernel"]

ELEMENT_FAMILIES = {"cross_entropy": 0, "focal": 1, "asymmetric": 2}

device = cuda.jit(device=True, forceinline=True)


@device
def smoothed(y, positive, smoothing, one):
    """Smoothed target times its weight, and the smoothed complement, each without cancellation."""
    not_y = one - y
    if smoothing != one - one:
        half = smoothing / (one + one)
        y, not_y = (one - smoothing) * y + half, (one - smoothing) * not_y + half
    return y * positive, not_y


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
    y, not_y = smoothed(y, positive, smoothing, one)
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


@device
def focal_curvature(p, q, ell, gamma, one):
    """Second derivative of q^gamma ell along the logit of p."""
    slope = times(p, ell)
    power = one
    if gamma != one - one:
        power = math.exp(gamma * math.log(q))
    two = one + one
    return power * (slope * (gamma * gamma * p - gamma * q) + (two * gamma + one) * p * q)


@device
def focal_upper(p, q, ell, gamma, weight, one):
    """What dominates it times a weight, and is positive where there is a gradient: G p q, and -PG q^2 where it adds."""
    zero, two = one - one, one + one
    power = one
    if gamma != zero:
        power = math.exp(gamma * math.log(q))
    slope = times(p, ell)
    bent = gamma * power * (two * p * q - slope * (one - gamma * p))
    return max(weight, zero) * power * (gamma * p * slope + p * q) + max(weight * bent, zero)


@device
def curvature_of(x, y, positive, weight, smoothing, family, a, b, c, upper, one):
    """Weight times the second derivative of one element, or what dominates it; NaN where there is a kink."""
    y, not_y = smoothed(y, positive, smoothing, one)
    e = math.exp(-abs(x))
    big = one / (one + e)
    small = e * big
    zero = one - one
    p, q = (big, small) if x > zero else (small, big)
    if family == 0:
        h = weight * (y * (p * q) + not_y * (p * q))
        return max(h, zero) if upper else h
    if family == 1:
        tail = math.log1p(e)
        up, down = max(x, zero) + tail, max(-x, zero) + tail
        if upper:
            one_side = focal_upper(p, q, down, a, weight, one)
            return times(b * y, one_side) + times(c * not_y, focal_upper(q, p, up, a, weight, one))
        one_side = focal_curvature(p, q, down, a, one)
        return weight * (times(b * y, one_side) + times(c * not_y, focal_curvature(q, p, up, a, one)))
    return math.log(-one)  # NaN, in the type of one


@device
def loss_of_probability(p, y, positive, weighted, smoothing, one):
    """Loss and derivative of one probability: p - y, which cancels exactly where it should, over p (1 - p)."""
    target, not_y = smoothed(y, one, smoothing, one)
    y = target * positive
    loss = -times(y, math.log(p)) - times(not_y, math.log1p(-p))
    if p > one - one and p < one:
        difference = p - target
        if weighted:
            difference = not_y * p - y * (one - p)
        return loss, difference / (p * (one - p))
    return loss, annihilated(not_y, one - p) - annihilated(y, p)


@device
def curvature_of_probability(p, y, positive, smoothing, one):
    """Second derivative of one probability."""
    y, not_y = smoothed(y, positive, smoothing, one)
    return annihilated(y, p * p) + annihilated(not_y, (one - p) * (one - p))


def flat_kernel(storage, targets, grad, family):
    """All elements in one piece, without weights: 16-byte vectors of the logits; targets in a storage, or bytes."""
    E = storage.per_vector
    SHIFT = E.bit_length() - 1
    get, put = storage.get, storage.put
    unpack, packed = packing(storage)
    target_get = targets.get
    WIDE = targets.itemsize == 4 or targets.name == storage.name  # targets come in vectors too
    FAMILY = family  # a constant: a body with all families is too large to unroll
    TWICE = targets.itemsize == 4 and storage.per_word == 2
    unpack_target, _ = packing(targets)
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
            unpack(on.load16(X, at), x, 0)
            if WIDE:
                unpack_target(on.load16(Y, at), y, 0)
                if TWICE:
                    unpack_target(on.load16(Y, at + 4), y, 4)
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
                on.store16(G, at, packed(x, 0))
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


def strided_kernel(storage, targets, grad, hess, probabilities):
    """Elements of two axes with any strides, with weights, which may have strides of 0; a thread takes any of them.

    `hess`: "", "exact" or "upper"; `probabilities` instead of logits, checked too.
    """
    get, put, real = storage.get, storage.put, storage.real
    target_get = targets.get
    GRAD, HESS, UPPER, PROBABILITIES = grad, hess != "", hess == "upper", probabilities
    group_sum = team(BLOCK).sum
    ZERO, ONE = real(0), real(1)

    def kernel(
        X, G, H, Y, W, POS, LOSS_OUT, PART, BAD_ROW, BAD_VALUE, DEN, n_rows, n_columns,
        x_row, x_column, g_row, g_column, h_row, h_column, y_row, y_column, w_row, w_column, p_row, p_column,
        flags, smoothing, family, a, b, c, times_this, floor, scale,
    ):  # fmt: skip
        shared_sum = cuda.shared.array(32, float64)
        total = float64(0)
        if flags & DENOMINATOR:
            scale = real(float64(scale) / DEN[0]) if DEN[0] != float64(0) else ZERO
        n = n_rows * n_columns
        i = int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
        while i < n:
            row, column = split_row(i, n_columns)
            y = real(target_get(Y, row * y_row + column * y_column))
            if flags & BAD and not (y >= ZERO and y <= ONE):
                on.raise_to(BAD_ROW, n - i)
            positive, weight = ONE, ONE
            if flags & POSITIVE:
                positive = POS[row * p_row + column * p_column]
            if flags & WEIGHT:
                weight = W[row * w_row + column * w_column]
            x = get(X, row * x_row + column * x_column)
            if PROBABILITIES:
                if flags & BAD and not (x >= ZERO and x <= ONE):
                    on.raise_to(BAD_VALUE, n - i)
                loss, g = loss_of_probability(x, y, positive, flags & POSITIVE, smoothing, ONE)
            else:
                loss, g = loss_of(x, y, positive, smoothing, family, a, b, c, ONE)
            loss = ZERO if weight == ZERO else loss * weight
            total += loss
            if flags & LOSS:
                LOSS_OUT[i] = loss
            if HESS:
                if PROBABILITIES:
                    h = weight * curvature_of_probability(x, y, positive, smoothing, ONE)
                else:
                    h = curvature_of(x, y, positive, weight, smoothing, family, a, b, c, UPPER, ONE)
                h = positive_part(h * scale, weight * scale, times_this, floor, flags)
                put(H, row * h_row + column * h_column, ZERO if weight == ZERO else h)
            if GRAD:
                g = ZERO if weight == ZERO else g * weight * scale
                put(G, row * g_row + column * g_column, g)
            i += int64(cuda.gridDim.x) * cuda.blockDim.x
        total = group_sum(total, float64(0), shared_sum, uint32(FULL))
        if cuda.threadIdx.x == 0:
            PART[cuda.blockIdx.x] = total

    return kernel
