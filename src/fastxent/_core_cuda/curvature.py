"""Second derivatives of the softmax losses: diagonal, product with a vector, and a diagonal that dominates.

With S = sum q G + 2 z lse and c_k = q_k P_k / (1 - p_k), the Hessian of a row is
S (diag p - p p') - sum c_k d_k d_k' + 2 z p p' with d_k = p - e_k: `_core_numpy` has the specification. Sweeps over a
row: maximum; sum; S, sum c and p.x; the results, each written by whoever read its class. `wide` rows lie in one piece
and go 16 bytes at a time; `plain` is cross-entropy, whose c is 0.
"""

import math

from numba import cuda, float64, int64

from . import intrinsics as on
from .rows import BAD, CLASS_WEIGHT, DENOMINATOR, EXCLUDE, member, times
from .strided import annihilated, label_reader, positive_part, reader, smoother, split_row, walk
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


def curvature_kernel(storage, real, lanes, soft, mode, plain, wide):
    """`mode`: "diagonal", "product" with V, or "upper"; arithmetic in `real`, float64 or the storage's own."""
    number = real.real
    SOFT, PLAIN = soft, plain
    E, span, inside, load, load_real, store = walk(storage, wide)
    DIAGONAL, PRODUCT = mode == "diagonal", mode == "product"
    group_sum, seat = team(lanes).sum, team(lanes).seat
    _, _, sums, share, biased = reader(storage, real, lanes, wide)
    label_of, smoothed = label_reader(real, soft), smoother(real)
    ZERO, ONE, TWO, INF = number(0), number(1), number(2), number(math.inf)

    @device
    def target_of(t, CW, k, y, smoothing, exclude, n_classes, flags):
        if not SOFT:
            t = ONE if k == y else ZERO
        q = smoothed(t, smoothing, exclude, n_classes)
        if flags & CLASS_WEIGHT:
            q *= number(CW[k])
        return q

    @device
    def bend_of(family, q, p, not_p, ell, a, b):
        if PLAIN or q == ZERO:
            return ZERO
        return q * bend(family, p, not_p, ell, a, b, ONE)

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
        x = cuda.local.array(E, number)
        v = cuda.local.array(E, number)
        t = cuda.local.array(E, number)
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
            begin, n_steps = span(X, origin, n_classes)
            i = int64(lane)
            while i < n_steps:
                first = begin + i * E
                load(X, origin, x_step, first, n_classes, x)
                if SOFT:
                    load_real(T, at, t_step, first, n_classes, t)
                if PRODUCT:
                    load_real(V, vector, v_step, first, n_classes, v)
                for e in range(E):
                    k = first + e
                    if inside(k, n_classes):
                        if SOFT and flags & BAD and not ZERO <= t[e] < INF:
                            on.raise_to(BAD_ROW, n_rows - row)
                        u = biased(x[e], BIAS_IN, k, inv_t, flags)
                        p, not_p, away = share(u, top, less, peaks)
                        q = target_of(t[e], CW, k, y, smoothing, exclude, n_classes, flags)
                        if PLAIN:
                            slope += q
                        elif q != ZERO:
                            _, g = member(family, p, not_p, log_sum + away, a, b, ONE)
                            slope += q * g
                            own = bend_of(family, q, p, not_p, log_sum + away, a, b)
                            if DIAGONAL:
                                bends += annihilated(own, not_p)
                            elif not PRODUCT:
                                bends += max(-sign * own, ZERO)
                        if PRODUCT:
                            mean += p * v[e]
                i += size
            slope = group_sum(slope, ZERO, shared_sum, mask)
            mean = group_sum(mean, ZERO, shared_mean, mask)
            if z != ZERO:
                # finite for a row of one +inf, whose curvature does not depend on it
                slope += TWO * z * (log_sum if top == INF else top + log_sum)
            if PRODUCT and not PLAIN:
                i = int64(lane)
                while i < n_steps:
                    first = begin + i * E
                    load(X, origin, x_step, first, n_classes, x)
                    load_real(V, vector, v_step, first, n_classes, v)
                    if SOFT:
                        load_real(T, at, t_step, first, n_classes, t)
                    for e in range(E):
                        k = first + e
                        if inside(k, n_classes):
                            q = target_of(t[e], CW, k, y, smoothing, exclude, n_classes, flags)
                            if q != ZERO:
                                u = biased(x[e], BIAS_IN, k, inv_t, flags)
                                p, not_p, away = share(u, top, less, peaks)
                                own = bend_of(family, q, p, not_p, log_sum + away, a, b)
                                bends += annihilated(own, not_p) * (mean - v[e])
                    i += size
            if not PLAIN:
                bends = group_sum(bends, ZERO, shared_more, mask)
            factor = weight * scale
            i = int64(lane)
            while i < n_steps:
                first = begin + i * E
                load(X, origin, x_step, first, n_classes, x)
                if SOFT and not PLAIN:
                    load_real(T, at, t_step, first, n_classes, t)
                if PRODUCT:
                    load_real(V, vector, v_step, first, n_classes, v)
                for e in range(E):
                    k = first + e
                    h = ZERO
                    if weight != ZERO and inside(k, n_classes):
                        u = biased(x[e], BIAS_IN, k, inv_t, flags)
                        p, not_p, away = share(u, top, less, peaks)
                        own = ZERO
                        if not PLAIN:
                            q = target_of(t[e], CW, k, y, smoothing, exclude, n_classes, flags)
                            own = bend_of(family, q, p, not_p, log_sum + away, a, b)
                        if PRODUCT:
                            h = slope * p * (v[e] - mean) + TWO * z * p * mean
                            if not PLAIN:
                                h += annihilated(own, not_p) * (mean - v[e]) - p * bends
                            h *= factor
                        elif DIAGONAL:
                            h = times(p * not_p, slope) + TWO * z * p * p
                            if not PLAIN:
                                h -= (bends - annihilated(own, not_p)) * p * p + own * not_p
                            h = positive_part(h * factor, factor, times_this, floor, flags)
                        else:
                            back = max(-sign * own, ZERO)
                            h = max(sign * slope, ZERO) * p * not_p + p * (bends - back) + not_p * back
                            h = (h + max(sign, ZERO) * z * p) * (TWO * abs(factor))
                    x[e] = h
                store(OUT, to, o_step, first, n_classes, x)
                i += size
            row += step

    return kernel
