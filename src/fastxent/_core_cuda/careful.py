"""The general softmax kernel: any strides, float64, soft targets, logit bias, smoothing with weights, every family.

It is the specification of `_core_numpy`, row by row, in three or four sweeps: maximum; sum; targets' totals; gradient.
A row belongs to one thread (classes apart in memory, neighbours along the rows), a warp or a block; `wide` rows lie in
one piece and are read and written 16 bytes at a time. Cross-entropy is `plain`: its sweep over the targets takes no
exponential.
"""

import math

from numba import cuda, float64, int64

from . import intrinsics as on
from .rows import BAD, CLASS_WEIGHT, DENOMINATOR, EXCLUDE, LOSS, LSE, member, times
from .strided import label_reader, reader, smoother, split_row, walk
from .teams import team

__all__ = ["careful_kernel"]

device = cuda.jit(device=True, forceinline=True)


def careful_kernel(storage, lanes, soft, grad, plain, wide):
    """Rows of (outer, classes, inner) in the team's threads; `soft` targets are numbers of every class, else labels."""
    real = storage.real
    SOFT, GRAD, PLAIN = soft, grad, plain
    steps = walk(storage, wide)
    E, span, inside, load, load_real, store = steps
    group_sum, seat = team(lanes).sum, team(lanes).seat
    _, _, sums, share, biased = reader(storage, storage, lanes, wide)
    label_of, smoothed = label_reader(storage, soft), smoother(storage)
    ZERO, ONE, TWO, INF = real(0), real(1), real(2), real(math.inf)

    @device
    def terms(u, top, less, peaks, log_sum, q, family, a, b):
        """p, 1 - p, and of a class of weight q the loss and G."""
        p, not_p, away = share(u, top, less, peaks)
        f, g = log_sum + away, ONE
        if not PLAIN and q != ZERO:
            f, g = member(family, p, not_p, f, a, b, ONE)
        return p, not_p, f, g

    @device
    def target_of(t, CW, k, y, smoothing, exclude, n_classes, flags):
        if not SOFT:
            t = ONE if k == y else ZERO
        q = smoothed(t, smoothing, exclude, n_classes)
        if flags & CLASS_WEIGHT:
            q *= CW[k]
        return q

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
        x = cuda.local.array(E, real)
        t = cuda.local.array(E, real)
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
            begin, n_steps = span(X, origin, n_classes)
            i = int64(lane)
            while i < n_steps:
                first = begin + i * E
                load(X, origin, x_step, first, n_classes, x)
                if SOFT:
                    load_real(T, at, t_step, first, n_classes, t)
                for e in range(E):
                    k = first + e
                    if inside(k, n_classes):
                        if SOFT and flags & BAD and not ZERO <= t[e] < INF:
                            on.raise_to(BAD_ROW, n_rows - row)
                        q = target_of(t[e], CW, k, y, smoothing, exclude, n_classes, flags)
                        if q != ZERO:
                            u = biased(x[e], BIAS_IN, k, inv_t, flags)
                            _, _, f, g = terms(u, top, less, peaks, log_sum, q, family, a, b)
                            loss += q * f
                            slope += q * g
                i += size
            loss = group_sum(loss, ZERO, shared_sum, mask)
            slope = group_sum(slope, ZERO, shared_mass, mask)
            if lse != lse:
                loss = lse  # of no targets too
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
                i = int64(lane)
                while i < n_steps:
                    first = begin + i * E
                    load(X, origin, x_step, first, n_classes, x)
                    if SOFT:
                        load_real(T, at, t_step, first, n_classes, t)
                    for e in range(E):
                        k = first + e
                        g = ZERO
                        if weight != ZERO and inside(k, n_classes):
                            u = biased(x[e], BIAS_IN, k, inv_t, flags)
                            q = target_of(t[e], CW, k, y, smoothing, exclude, n_classes, flags)
                            p, not_p, _, g = terms(u, top, less, peaks, log_sum, q, family, a, b)
                            own = q * g if q != ZERO else ZERO
                            g = (times(p, coefficient - own) - times(own, not_p)) * factor
                        x[e] = g
                    store(G, target, g_step, first, n_classes, x)
                    i += size
            row += step
        if lane == 0:
            PART[slot] = partial

    return kernel
