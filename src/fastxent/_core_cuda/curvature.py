"""Second derivatives of the softmax losses: diagonal, product with a vector, and a diagonal that dominates.

With S = sum q G + 2 z lse and c_k = q_k P_k / (1 - p_k), the Hessian of a row is
S (diag p - p p') - sum c_k d_k d_k' + 2 z p p' with d_k = p - e_k: `_core_numpy` has the specification. Sweeps over a
row, all in plain loads: maximum; sum; S, sum c and p.x; the results, each written by whoever read its class.
"""

import math

from numba import cuda, float64, int64

from . import intrinsics as on
from .rows import BAD, CLASS_WEIGHT, DENOMINATOR, EXCLUDE, member, times
from .strided import annihilated, label_reader, positive_part, reader, split_row, target_reader
from .teams import team

__all__ = ["curvature_kernel"]

device = cuda.jit(device=True, forceinline=True)


@device
def bend(family, p, q, ell, a, b, one):
    """P = (1 - p) p dG/dp of a class, from p, q = 1 - p and ell = -log p."""
    zero = one - one
    if family == 1:
        ratio = one if q == zero else ell / q  # ell / q tends to 1
        slope = zero if p == zero else p * ratio
        return a * math.exp(a * math.log(q)) * (slope * (one - a * p) - (one + one) * p)
    if family == 2:
        return b * p * q
    if family == 3:
        return a * math.exp(-a * ell) * q
    return zero


def curvature_kernel(storage, real, lanes, soft, mode):
    """`mode`: "diagonal", "product" with V, or "upper"; arithmetic in `real`, float64 or the storage's own."""
    put, number = storage.put, real.real
    SOFT = soft
    DIAGONAL, PRODUCT = mode == "diagonal", mode == "product"
    group_sum, seat = team(lanes).sum, team(lanes).seat
    logit, _, sums, share = reader(storage, real, lanes)
    label_of, target_of = label_reader(real, soft), target_reader(real, soft)
    ZERO, ONE, TWO, INF = number(0), number(1), number(2), number(math.inf)

    def kernel(
        X, OUT, V, T, W, CW, BIAS_IN, BAD_ROW, DEN,
        n_rows, n_classes, n_inner, x_outer, x_step, x_inner, o_outer, o_step, o_inner,
        v_outer, v_step, v_inner, t_outer, t_step, t_inner, w_outer, w_inner, ignore, flags,
        inv_t, z, family, a, b, smoothing, times_this, floor, scale,
    ):  # fmt: skip
        shared_max = cuda.shared.array(32, number)
        shared_sum = cuda.shared.array(32, number)
        shared_more = cuda.shared.array(32, number)
        shared_mean = cuda.shared.array(32, number)
        lane, size, row, step, mask = seat()
        exclude = flags & EXCLUDE
        if flags & DENOMINATOR:
            scale = number(float64(scale) / DEN[0]) if DEN[0] != float64(0) else ZERO
        while row < n_rows:
            outer, inner = split_row(row, n_inner)
            origin = outer * x_outer + inner * x_inner
            at = outer * t_outer + inner * t_inner
            to = outer * o_outer + inner * o_inner
            vector = outer * v_outer + inner * v_inner
            y, weight = label_of(
                T, at, W, outer * w_outer + inner * w_inner, BAD_ROW, row, n_rows, n_classes, ignore, flags, lane
            )  # fmt: skip
            top, less, peaks = sums(
                X, BIAS_IN, origin, x_step, n_classes, lane, size, inv_t, flags,
                shared_max, shared_sum, shared_more, mask,
            )  # fmt: skip
            log_sum = math.log1p(less + (peaks - ONE))
            sign = ONE if DIAGONAL or PRODUCT or weight > ZERO else -ONE
            slope = ZERO
            bends = ZERO
            mean = ZERO
            k = int64(lane)
            while k < n_classes:
                u = logit(X, BIAS_IN, origin + k * x_step, k, inv_t, flags)
                p, not_p, away = share(u, top, less, peaks)
                q = target_of(T, at, t_step, k, y, smoothing, exclude, n_classes)
                if SOFT and flags & BAD and not ZERO <= T[at + k * t_step] < INF:
                    on.raise_to(BAD_ROW, n_rows - row)
                if flags & CLASS_WEIGHT:
                    q *= number(CW[k])
                if q != ZERO:
                    _, g = member(family, p, not_p, log_sum + away, a, b, ONE)
                    slope += times(q, g)
                    own = times(q, bend(family, p, not_p, log_sum + away, a, b, ONE))
                    if DIAGONAL:
                        bends += annihilated(own, not_p)
                    elif not PRODUCT:
                        bends += max(-sign * own, ZERO)
                if PRODUCT:
                    mean += p * number(V[vector + k * v_step])
                k += size
            slope = group_sum(slope, ZERO, shared_sum, mask)
            mean = group_sum(mean, ZERO, shared_mean, mask)
            if z != ZERO:
                # finite for a row of one +inf, whose curvature does not depend on it
                slope += TWO * z * (log_sum if top == INF else top + log_sum)
            if PRODUCT and family != 0:
                k = int64(lane)
                while k < n_classes:
                    q = target_of(T, at, t_step, k, y, smoothing, exclude, n_classes)
                    if flags & CLASS_WEIGHT:
                        q *= number(CW[k])
                    if q != ZERO:
                        u = logit(X, BIAS_IN, origin + k * x_step, k, inv_t, flags)
                        p, not_p, away = share(u, top, less, peaks)
                        own = times(q, bend(family, p, not_p, log_sum + away, a, b, ONE))
                        bends += annihilated(own, not_p) * (mean - number(V[vector + k * v_step]))
                    k += size
            if family != 0:
                bends = group_sum(bends, ZERO, shared_more, mask)
            factor = weight * scale
            k = int64(lane)
            while k < n_classes:
                u = logit(X, BIAS_IN, origin + k * x_step, k, inv_t, flags)
                p, not_p, away = share(u, top, less, peaks)
                own = ZERO
                if family != 0:
                    q = target_of(T, at, t_step, k, y, smoothing, exclude, n_classes)
                    if flags & CLASS_WEIGHT:
                        q *= number(CW[k])
                    if q != ZERO:
                        own = times(q, bend(family, p, not_p, log_sum + away, a, b, ONE))
                h = ZERO
                if PRODUCT:
                    x = number(V[vector + k * v_step])
                    h = slope * p * (x - mean) + TWO * z * p * mean
                    if family != 0:
                        h += annihilated(own, not_p) * (mean - x) - p * bends
                    h *= factor
                elif DIAGONAL:
                    h = times(p * not_p, slope) + TWO * z * p * p
                    if family != 0:
                        h -= (bends - annihilated(own, not_p)) * p * p + own * not_p
                    h = positive_part(h * factor, factor, times_this, floor, flags)
                else:
                    back = max(-sign * own, ZERO)
                    h = max(sign * slope, ZERO) * p * not_p + p * (bends - back) + not_p * back
                    h = (h + max(sign, ZERO) * z * p) * (TWO * abs(factor))
                put(OUT, to + k * o_step, ZERO if weight == ZERO else h)
                k += size
            row += step

    return kernel
