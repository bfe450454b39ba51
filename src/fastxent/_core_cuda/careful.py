"""The general softmax kernel: any strides, float64, soft targets, logit bias, smoothing with weights, every family.

It is the specification of `_core_numpy`, row by row, with plain loads, in three or four sweeps: maximum; sum; targets'
totals; gradient. A row belongs to one thread (classes apart in memory, neighbours along the rows), a warp or a block.
"""

import math

from numba import cuda, float64, int64

from . import intrinsics as on
from .rows import BAD, CLASS_WEIGHT, DENOMINATOR, EXCLUDE, LOSS, LSE, member, times
from .strided import label_reader, reader, split_row, target_reader
from .teams import team

__all__ = ["careful_kernel"]


def careful_kernel(storage, lanes, soft, grad):
    """Rows of (outer, classes, inner) in the team's threads; `soft` targets are numbers of every class, else labels."""
    put, real = storage.put, storage.real
    SOFT, GRAD = soft, grad
    group_sum, seat = team(lanes).sum, team(lanes).seat
    logit, _, sums, share = reader(storage, storage, lanes)
    label_of, target_of = label_reader(storage, soft), target_reader(storage, soft)
    ZERO, ONE, TWO, INF = real(0), real(1), real(2), real(math.inf)

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
        lane, size, row, step, mask = seat()
        slot = row
        exclude = flags & EXCLUDE
        if flags & DENOMINATOR:
            scale = float64(scale) / DEN[0] if DEN[0] != float64(0) else float64(0)
        partial = float64(0)
        while row < n_rows:
            outer, inner = split_row(row, n_inner)
            origin = outer * x_outer + inner * x_inner
            at = outer * t_outer + inner * t_inner
            y, weight = label_of(
                T,
                at,
                W,
                outer * w_outer + inner * w_inner,
                BAD_ROW,
                row,
                n_rows,
                n_classes,
                ignore,
                flags,
                lane,
            )
            top, less, peaks = sums(
                X, BIAS_IN, origin, x_step, n_classes, lane, size, inv_t, flags,
                shared_max, shared_sum, shared_more, mask,
            )  # fmt: skip
            log_sum = math.log1p(less + (peaks - ONE))
            lse = top + log_sum
            loss = ZERO
            slope = ZERO
            k = int64(lane)
            while k < n_classes:
                q = target_of(T, at, t_step, k, y, smoothing, exclude, n_classes)
                if flags & CLASS_WEIGHT:
                    q *= CW[k]
                if SOFT and flags & BAD and not ZERO <= T[at + k * t_step] < INF:
                    on.raise_to(BAD_ROW, n_rows - row)
                if q != ZERO:
                    u = logit(X, BIAS_IN, origin + k * x_step, k, inv_t, flags)
                    p, not_p, away = share(u, top, less, peaks)
                    f, g = member(family, p, not_p, log_sum + away, a, b, ONE)
                    loss += times(q, f)
                    slope += times(q, g)
                k += size
            loss = group_sum(loss, ZERO, shared_sum, mask)
            slope = group_sum(slope, ZERO, shared_mass, mask)
            coefficient = slope
            if z != ZERO:
                loss = INF if lse == INF else loss + z * lse * lse  # the square outgrows all others
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
                        u = logit(X, BIAS_IN, origin + k * x_step, k, inv_t, flags)
                        p, not_p, away = share(u, top, less, peaks)
                        q = target_of(T, at, t_step, k, y, smoothing, exclude, n_classes)
                        if flags & CLASS_WEIGHT:
                            q *= CW[k]
                        own = ZERO
                        if q != ZERO:
                            f, g = member(family, p, not_p, log_sum + away, a, b, ONE)
                            own = times(q, g)
                        g = (times(p, coefficient - own) - times(own, not_p)) * factor
                    put(G, target + k * g_step, g)
                    k += size
            row += step
        if lane == 0:
            PART[slot] = partial

    return kernel
