"""Divergences between softmax(logits / T) and a teacher, with their derivatives, in float64 for any storage.

With Q the student, P the teacher and R = sum Q r, all gradients but forward KL's are F Q (r - R), and b = r - R + a
gives the Hessian C' diag(F Q b) C with C = I - 1 Q': `_core_numpy._divergence_parts` is the specification. Every sweep
makes a class's numbers anew from the logits. What is centred is first taken less its value at the likeliest class, so
that nothing is lost where one class has nearly all of Q. No two reductions in a row use the same shared words.
"""

import math

from numba import cuda, float64, int64

from . import intrinsics as on
from .rows import BAD, DENOMINATOR, LOSS
from .storage import STORAGES
from .strided import label_reader, positive_part, reader, split_row
from .teams import team

__all__ = ["DIAGONAL", "FAMILIES", "FIRST", "FIRST_OF_GROUP", "GRAD", "divergence_kernel"]

# Bits of `wanted`: outputs; whether a system's term is the first of its group and the first of all, which store what
# the others add to.
GRAD, DIAGONAL, FIRST_OF_GROUP, FIRST = 1, 2, 4, 8

FAMILIES = ("entropy", "forward_kl", "reverse_kl", "jensen_shannon")

ZERO, HALF, ONE, TWO = float64(0), float64(0.5), float64(1), float64(2)
INF, NAN = float64(math.inf), float64(math.nan)

device = cuda.jit(device=True, forceinline=True)


@device
def excess(p, s, x):
    """p log(p / x) - p + x >= 0 with s = log(p / x), without the cancellation where p is close to x."""
    if p == ZERO:
        return x
    if abs(s) < HALF:
        series = ONE
        n = float64(17)
        while n > TWO:
            series = ONE - s / n * series
            n -= ONE
        return p * (s * s / TWO * series)
    return p * s - p + x


def teacher_of(real, lanes, teacher):
    """Sums over a teacher's row, and its numbers for a class.

    sums(T, at, ...) -> top, less, peaks, log_sum: of logits as `Row.sums`; of weights the largest, the sum of the
    others, 1 and the surplus of the sum over 1, or NaN where a weight is no finite number >= 0.
    of(T, at, step, k, y, the sums) -> P, the others' sum, -log P, and what log(Q / P) has of P, less a constant.
    """
    LOGITS, WEIGHTS, LABELS = teacher == "logits", teacher == "weights", teacher == "labels"
    group_sum, group_max = team(lanes).sum, team(lanes).max_float64
    logit, _, row_sums, share, _ = reader(real, STORAGES["float64"], lanes)

    @device
    def sums(T, at, step, n_classes, lane, size, inv_t, BAD_ROW, place, flags, one, two, three, mask):
        if LOGITS:
            top, less, peaks = row_sums(
                T, T, at, step, n_classes, lane, size, inv_t, 0, one, two, three, mask
            )
            return top, less, peaks, math.log1p(less + (peaks - ONE))
        if WEIGHTS:
            top = ZERO
            k = int64(lane)
            while k < n_classes:
                top = max(top, float64(T[at + k * step]))
                k += size
            top = group_max(top, ZERO, one, mask)
            less = ZERO
            peaks = ZERO
            k = int64(lane)
            while k < n_classes:
                p = float64(T[at + k * step])
                if p == top:
                    peaks += ONE
                else:
                    less += p
                if not ZERO <= p < INF:
                    less = NAN
                    if flags & BAD:
                        on.raise_to(BAD_ROW, place)
                k += size
            less = group_sum(less, ZERO, two, mask)
            peaks = group_sum(peaks, ZERO, three, mask)
            less += (peaks - ONE) * top
            return top, less, ONE, (top - ONE) + less
        return ONE, ZERO, ONE, ZERO

    @device
    def of(T, at, step, k, y, inv_t, top, less, peaks, log_sum):
        if LOGITS:
            u = logit(T, T, at + k * step, k, inv_t, 0)
            p, others, away = share(u, top, less, peaks)
            return p, others, log_sum + away, away
        p = ZERO
        others = ONE
        if WEIGHTS:
            p = float64(T[at + k * step])
            others = less if p == top else less + top - p
        elif LABELS and k == y:
            p = ONE
            others = ZERO
        ell = INF if p == ZERO else -math.log(p)
        return p, others, ell, ell

    return sums, of


def divergence_kernel(storage, real, lanes, teacher, family, mode):
    """`mode`: "rows" with loss, gradient and diagonal; "product" with V, "upper", or "weights" for a system.

    `teacher`: "labels", "weights", "logits" or "none"; `real`: the storage of what is not the logits'.
    """
    get_ready = STORAGES["float64"]
    put, number = storage.put, storage.real
    ENTROPY, FORWARD, REVERSE = (family == name for name in FAMILIES[:3])
    ROWS, PRODUCT, UPPER = mode == "rows", mode == "product", mode == "upper"
    CHECKED = teacher == "weights"
    SURPLUS = CHECKED and not ENTROPY
    LABELS = teacher == "labels"
    FACTOR = float64(-1 if ENTROPY else 1)
    SYMMETRIC = family == FAMILIES[3]
    group_sum, seat = team(lanes).sum, team(lanes).seat
    logit, _, row_sums, share, _ = reader(storage, get_ready, lanes)
    label_of = label_reader(get_ready, not LABELS)
    teacher_sums, teacher_class = teacher_of(real, lanes, teacher)

    @device
    def numbers(u, top, less, peaks, log_sum, p, ell_p, distance_p, mass, beta):
        """Q, 1 - Q, r, a and the loss of a class."""
        q, not_q, away = share(u, top, less, peaks)
        ell = log_sum + away
        if ENTROPY:
            return q, not_q, -away, ONE, ZERO if q == ZERO else q * ell
        gap = ell - ell_p
        if FORWARD:
            return q, not_q, ZERO, mass, excess(p, gap, q)
        if REVERSE:
            return q, not_q, distance_p - away, ONE, excess(q, -gap, p)
        mixed = beta * p + (ONE - beta) * q
        x = math.expm1(-abs(gap))
        near = gap <= ZERO
        part = beta if near else ONE - beta
        log = math.log1p(part * x)
        r = -log if near else -gap - log
        s = gap - log if near else -log
        a = beta * ((ONE + x) if near else ONE) / (ONE + part * x)
        return q, not_q, r, a, beta * excess(p, s, mixed) + (ONE - beta) * excess(q, r, mixed)

    def kernel(
        X, G, H, V, T, W, LOSS_OUT, PART, BAD_ROW, DEN, SYSTEM_P, SYSTEM_W, SYSTEM_SIZE, SYSTEM_ZETA, SYSTEM_ALIVE,
        n_rows, n_classes, n_inner, x_outer, x_step, x_inner, g_outer, g_step, g_inner, h_outer, h_step, h_inner,
        v_outer, v_step, v_inner, t_outer, t_step, t_inner, w_outer, w_inner, ignore, flags, wanted, group,
        inv_t, beta, times_this, floor, scale,
    ):  # fmt: skip
        one = cuda.shared.array(32, float64)
        two = cuda.shared.array(32, float64)
        three = cuda.shared.array(32, float64)
        lane, size, row, step, mask = seat()
        slot = row
        share_of_one = beta if SYMMETRIC else ZERO
        factor = ONE - share_of_one if SYMMETRIC else FACTOR
        if flags & DENOMINATOR:
            scale = scale / DEN[0] if DEN[0] != ZERO else ZERO
        partial = ZERO
        while row < n_rows:
            outer, inner = split_row(row, n_inner)
            origin = outer * x_outer + inner * x_inner
            at = outer * t_outer + inner * t_inner
            vector = outer * v_outer + inner * v_inner
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
            top, less, peaks = row_sums(
                X, V, origin, x_step, n_classes, lane, size, inv_t, 0, one, two, three, mask
            )
            t_top, t_less, t_peaks, t_log = teacher_sums(
                T,
                at,
                t_step,
                n_classes,
                lane,
                size,
                inv_t,
                BAD_ROW,
                n_rows - row,
                flags,
                one,
                two,
                three,
                mask,
            )
            if not ENTROPY and t_less != t_less:
                less = NAN
            log_sum = math.log1p(less + (peaks - ONE))
            surplus = t_log if SURPLUS else ZERO
            mass = ONE + surplus
            loss, infinite, elsewhere = ZERO, ZERO, ZERO
            top_r, top_a, top_x = ZERO, ZERO, ZERO
            k = int64(lane)
            while k < n_classes:
                u = logit(X, V, origin + k * x_step, k, inv_t, 0)
                p, _, ell_p, away_p = teacher_class(T, at, t_step, k, y, inv_t, t_top, t_less, t_peaks, t_log)
                q, _, r, a, part = numbers(u, top, less, peaks, log_sum, p, ell_p, away_p, mass, beta)
                loss += part
                if r == INF and q > ZERO:
                    infinite += ONE
                elif q > ZERO:
                    elsewhere += ONE
                if u == top:
                    top_r += r
                    top_a += a
                    if PRODUCT:
                        top_x += float64(V[vector + k * v_step])
                k += size
            if ROWS:
                loss = group_sum(loss, ZERO, one, mask)
                elsewhere = group_sum(elsewhere, ZERO, two, mask)
            infinite = group_sum(infinite, ZERO, one, mask)
            top_r = group_sum(top_r, ZERO, two, mask) / peaks
            top_a = group_sum(top_a, ZERO, three, mask) / peaks
            if PRODUCT:
                top_x = group_sum(top_x, ZERO, one, mask) / peaks
            if infinite > ZERO:
                top_r = NAN
            mean_r, mean_a, mean_x = ZERO, ZERO, ZERO
            k = int64(lane)
            while k < n_classes:
                u = logit(X, V, origin + k * x_step, k, inv_t, 0)
                p, _, ell_p, away_p = teacher_class(T, at, t_step, k, y, inv_t, t_top, t_less, t_peaks, t_log)
                q, _, r, a, _ = numbers(u, top, less, peaks, log_sum, p, ell_p, away_p, mass, beta)
                if q != ZERO:
                    mean_r += q * (r - top_r)
                    mean_a += q * (a - top_a)
                    if PRODUCT:
                        mean_x += q * (float64(V[vector + k * v_step]) - top_x)
                k += size
            mean_r = group_sum(mean_r, ZERO, two, mask)
            mean_a = group_sum(mean_a, ZERO, three, mask)
            if PRODUCT:
                mean_x = group_sum(mean_x, ZERO, one, mask)
            # what of the results is a sum over the row: for a product its values at the top, then their mean
            top_v, mean_v, bound = ZERO, ZERO, ZERO
            for sweep in range(3):
                if sweep == 2 or PRODUCT or (UPPER and sweep == 1):
                    k = int64(lane)
                    while k < n_classes:
                        u = logit(X, V, origin + k * x_step, k, inv_t, 0)
                        p, others, ell_p, away_p = teacher_class(
                            T, at, t_step, k, y, inv_t, t_top, t_less, t_peaks, t_log
                        )
                        q, not_q, r, a, _ = numbers(
                            u, top, less, peaks, log_sum, p, ell_p, away_p, mass, beta
                        )
                        centred, around, b = ZERO, ZERO, ZERO
                        if q != ZERO:
                            centred = (r - top_r) - mean_r
                            around = (a - top_a) - mean_a
                            b = centred + a
                        if PRODUCT:
                            v = ZERO
                            if q != ZERO:
                                v = ((float64(V[vector + k * v_step]) - top_x) - mean_x) * b
                            if sweep == 0:
                                top_v += v if u == top else ZERO
                            elif sweep == 1:
                                mean_v += q * (v - top_v)
                            else:
                                v = factor * q * ((v - top_v) - mean_v) * (weight * scale * inv_t * inv_t)
                                v = ZERO if weight == ZERO else v
                                put(H, outer * h_outer + inner * h_inner + k * h_step, number(v))
                        elif UPPER:
                            w = max(weight * factor * q * b, ZERO) * not_q
                            if sweep == 1:
                                bound += w
                            else:
                                v = (w * not_q + q * (bound - w)) * (TWO * scale * inv_t * inv_t)
                                v = ZERO if weight == ZERO else v
                                put(H, outer * h_outer + inner * h_inner + k * h_step, number(v))
                        elif ROWS:
                            if wanted & GRAD:
                                g = factor * q * centred
                                if FORWARD:
                                    g = mass * q - p
                                    if mass / TWO < p and q > HALF:
                                        g = others - mass * not_q
                                elif infinite > ZERO:
                                    g = ZERO
                                    if q > ZERO and elsewhere > ZERO:
                                        g = INF if r == INF else -INF
                                g = ZERO if weight == ZERO else g * (weight * scale * inv_t)
                                put(G, outer * g_outer + inner * g_inner + k * g_step, number(g))
                            if wanted & DIAGONAL:
                                v = factor * q * (not_q * b - q * (centred + around))
                                of_row = weight * scale * inv_t * inv_t
                                v = positive_part(v * of_row, of_row, times_this, floor, flags)
                                v = ZERO if weight == ZERO else v
                                put(H, outer * h_outer + inner * h_inner + k * h_step, number(v))
                        else:
                            pull = ZERO
                            if weight != ZERO:
                                pull = factor * q * b * (weight * scale * inv_t * inv_t)
                            at_size = row * n_classes + k
                            to = group * n_rows * n_classes + at_size
                            if wanted & FIRST_OF_GROUP:
                                SYSTEM_P[to] = q
                                SYSTEM_W[to] = pull
                            else:
                                SYSTEM_W[to] += pull
                            if wanted & FIRST:
                                SYSTEM_SIZE[at_size] = abs(pull)
                            else:
                                SYSTEM_SIZE[at_size] += abs(pull)
                        k += size
                    if PRODUCT and sweep == 0:
                        top_v = group_sum(top_v, ZERO, two, mask) / peaks
                    elif PRODUCT and sweep == 1:
                        mean_v = group_sum(mean_v, ZERO, three, mask)
                    elif UPPER and sweep == 1:
                        bound = group_sum(bound, ZERO, two, mask)
            if lane == 0:
                if ROWS:
                    if FORWARD:
                        loss += surplus
                    elif REVERSE:
                        loss -= surplus
                    loss = ZERO if weight == ZERO else loss * weight
                    partial += loss
                    if flags & LOSS:
                        LOSS_OUT[row] = loss
                elif not PRODUCT and not UPPER:
                    if wanted & FIRST_OF_GROUP:
                        SYSTEM_ZETA[group * n_rows + row] = ZERO
                    alive = ONE if weight != ZERO else ZERO
                    SYSTEM_ALIVE[row] = alive if wanted & FIRST else max(alive, SYSTEM_ALIVE[row])
            row += step
        if ROWS and lane == 0:
            PART[slot] = partial

    return kernel
