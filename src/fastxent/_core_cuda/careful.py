"""The general softmax kernel: any strides, float64, soft targets, logit bias, smoothing with weights, every family.

It is the specification of `_core_numpy`, row by row, with plain loads, in three or four sweeps: maximum; sum; targets'
totals; gradient. A row belongs to one thread (classes apart in memory, neighbours along the rows), a warp or a block.
"""

import math

from numba import cuda, float64, int32, int64, uint32

from . import intrinsics as on
from .rows import (
    BAD,
    BIAS,
    CLASS_WEIGHT,
    DENOMINATOR,
    EXCLUDE,
    IGNORE,
    LOSS,
    LSE,
    WEIGHT,
    member,
)
from .teams import BLOCK, team

__all__ = ["careful_kernel"]

FULL = 0xFFFFFFFF

device = cuda.jit(device=True, forceinline=True)


@device
def times(a, b):
    """a * b where a factor a of 0 annihilates an infinite b."""
    return a if a == a - a and b == b else a * b


def careful_kernel(storage, lanes, soft, grad):
    """Rows of (outer, classes, inner) in the team's threads; `soft` targets are numbers of every class, else labels."""
    get, put, real = storage.get, storage.put, storage.real
    LANES, SOFT, GRAD = lanes, soft, grad
    group_sum = team(lanes).sum
    group_max = team(lanes).max_float64 if storage.name == "float64" else team(lanes).max
    ZERO, ONE, TWO, INF = real(0), real(1), real(2), real(math.inf)
    NAN = real(math.nan)

    @device
    def target_of(T, at, step, k, y, smoothing, exclude, n_classes):
        t = ZERO
        if SOFT:
            t = T[at + k * step]
        elif k == y:
            t = ONE
        if smoothing != ZERO:
            if not exclude:
                return (ONE - smoothing) * t + smoothing / real(n_classes)
            other = smoothing / real(n_classes - 1) if n_classes > 1 else ZERO
            return (ONE - smoothing) * t + other * (ONE - t)
        return t

    def kernel(
        X, G, T, W, CW, BIAS_IN, LOSS_OUT, LSE_OUT, PART, BAD_ROW, DEN,
        n_rows, n_classes, n_inner, x_outer, x_step, x_inner, g_outer, g_step, g_inner,
        t_outer, t_step, t_inner, w_outer, w_inner, ignore, flags,
        inv_t, z, family, a, b, smoothing, scale,
    ):  # fmt: skip
        shared_max = cuda.shared.array(32, real)
        shared_sum = cuda.shared.array(32, real)
        shared_more = cuda.shared.array(32, real)
        shared_mass = cuda.shared.array(32, real)
        thread = int32(cuda.threadIdx.x)
        if LANES == BLOCK:
            lane = thread
            size = int32(cuda.blockDim.x)
            row = int64(cuda.blockIdx.x)
            step = int64(cuda.gridDim.x)
            mask = uint32(FULL)
        else:
            lane = int32(thread & (LANES - 1))
            size = int32(LANES)
            row = (int64(cuda.blockIdx.x) * cuda.blockDim.x + thread) // LANES
            step = int64(cuda.gridDim.x) * cuda.blockDim.x // LANES
            mask = uint32((FULL >> (32 - LANES)) << int64((thread & 31) - lane))
        slot = row
        exclude = flags & EXCLUDE
        if flags & DENOMINATOR:
            scale = float64(scale) / DEN[0] if DEN[0] != float64(0) else float64(0)
        partial = float64(0)
        while row < n_rows:
            outer = row
            inner = int64(0)
            if n_inner > 1:
                outer = int64(uint32(row) // uint32(n_inner))
                inner = row - outer * n_inner
            origin = outer * x_outer + inner * x_inner
            at = outer * t_outer + inner * t_inner
            weight = ONE
            if flags & WEIGHT:
                weight = W[outer * w_outer + inner * w_inner]
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
            top = -INF
            k = int64(lane)
            while k < n_classes:
                u = get(X, origin + k * x_step) * inv_t
                if flags & BIAS:
                    u += BIAS_IN[k]
                if u > top:
                    top = u
                k += size
            top = group_max(top, -INF, shared_max, mask)
            less = ZERO
            peaks = ZERO
            k = int64(lane)
            while k < n_classes:
                u = get(X, origin + k * x_step) * inv_t
                if flags & BIAS:
                    u += BIAS_IN[k]
                if u == top:
                    peaks += ONE
                else:
                    less += math.exp(u - top)
                if SOFT and not T[at + k * t_step] >= ZERO and flags & BAD:
                    on.raise_to(BAD_ROW, n_rows - row)
                k += size
            less = group_sum(less, ZERO, shared_sum, mask)
            peaks = group_sum(peaks, ZERO, shared_more, mask)
            if top == -INF or (top == INF and peaks > ONE):
                less = NAN
            rest = less + (peaks - ONE)
            total = less + peaks
            log_sum = math.log1p(rest)
            lse = top + log_sum
            loss = ZERO
            slope = ZERO
            k = int64(lane)
            while k < n_classes:
                q = target_of(T, at, t_step, k, y, smoothing, exclude, n_classes)
                if flags & CLASS_WEIGHT:
                    q *= CW[k]
                if q != ZERO:
                    u = get(X, origin + k * x_step) * inv_t
                    if flags & BIAS:
                        u += BIAS_IN[k]
                    away = ZERO if u == top else top - u
                    e = ONE if u == top else math.exp(u - top)
                    p = e / total
                    not_p = (rest if u == top else total - e) / total
                    f, g = member(family, p, not_p, log_sum + away, a, b, ONE)
                    loss += times(q, f)
                    slope += times(q, g)
                k += size
            loss = group_sum(loss, ZERO, shared_sum, mask)
            slope = group_sum(slope, ZERO, shared_mass, mask)
            coefficient = slope
            if z != ZERO:
                loss += z * lse * lse
                coefficient += TWO * z * lse
            loss = ZERO if weight == ZERO else loss * weight
            if lane == 0:
                partial += loss
                if flags & LOSS:
                    LOSS_OUT[row] = loss
                if flags & LSE:
                    LSE_OUT[row] = lse
            if GRAD:
                factor = real(weight * scale)
                target = outer * g_outer + inner * g_inner
                k = int64(lane)
                while k < n_classes:
                    g = ZERO
                    if weight != ZERO:
                        u = get(X, origin + k * x_step) * inv_t
                        if flags & BIAS:
                            u += BIAS_IN[k]
                        e = ONE if u == top else math.exp(u - top)
                        p = e / total
                        not_p = (rest if u == top else total - e) / total
                        q = target_of(T, at, t_step, k, y, smoothing, exclude, n_classes)
                        if flags & CLASS_WEIGHT:
                            q *= CW[k]
                        own = ZERO
                        if q != ZERO:
                            away = ZERO if u == top else top - u
                            f, g = member(family, p, not_p, log_sum + away, a, b, ONE)
                            own = times(q, g)
                        g = (times(p, coefficient - own) - times(own, not_p)) * factor
                    put(G, target + k * g_step, g)
                    k += size
            row += step
        if lane == 0:
            PART[slot] = partial

    return kernel
