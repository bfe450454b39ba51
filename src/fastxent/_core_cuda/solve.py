"""(damping + H) x = rhs, row by row, in float64, for sums of Hessians that are diagonal plus low rank.

`system_kernel` leaves p, w and zeta of a softmax term, `divergence_kernel` those of a divergence, in rows of scratch
memory; terms of one softmax add up to a group. `solve_kernel` then eliminates the two unknowns of every group, which
`_core_numpy.softmax_solve` derives, and refines twice: every thread of a row's team solves the small system, of which
all have the same bits.
"""

import math

from numba import cuda, float64, int64

from .curvature import bend
from .divergence import FIRST, FIRST_OF_GROUP
from .rows import CLASS_WEIGHT, EXCLUDE, member, times
from .storage import STORAGES
from .strided import annihilated, label_reader, reader, split_row, target_reader
from .teams import team

__all__ = ["solve_kernel", "system_kernel"]

ZERO, ONE, TWO, INF = float64(0), float64(1), float64(2), float64(math.inf)
LEAST = float64(1e-7)


def system_kernel(storage, real, lanes, soft):
    """p, w = S p - q P / (1 - p), zeta = 2 z_loss, |w| before it cancels, and whether the row counts."""
    ready = STORAGES["float64"]
    group_sum, seat = team(lanes).sum, team(lanes).seat
    logit, _, sums, share, _ = reader(storage, ready, lanes)
    label_of, target_of = label_reader(ready, soft), target_reader(ready, soft)

    def kernel(
        X, T, W, CW, BIAS_IN, SYSTEM_P, SYSTEM_W, SYSTEM_SIZE, SYSTEM_ZETA, SYSTEM_ALIVE,
        n_rows, n_classes, n_inner, x_outer, x_step, x_inner, t_outer, t_step, t_inner, w_outer, w_inner, ignore,
        flags, wanted, group, inv_t, z, family, a, b, smoothing, scale,
    ):  # fmt: skip
        one = cuda.shared.array(32, float64)
        two = cuda.shared.array(32, float64)
        three = cuda.shared.array(32, float64)
        lane, size, row, step, mask = seat()
        exclude = flags & EXCLUDE
        while row < n_rows:
            outer, inner = split_row(row, n_inner)
            origin = outer * x_outer + inner * x_inner
            at = outer * t_outer + inner * t_inner
            y, weight = label_of(
                T, at, W, outer * w_outer + inner * w_inner, W, row, n_rows, n_classes, ignore, flags, lane
            )
            top, less, peaks = sums(
                X, BIAS_IN, origin, x_step, n_classes, lane, size, inv_t, flags, one, two, three, mask
            )
            log_sum = math.log1p(less + (peaks - ONE))
            slope = ZERO
            for sweep in range(2):
                k = int64(lane)
                while k < n_classes:
                    u = logit(X, BIAS_IN, origin + k * x_step, k, inv_t, flags)
                    p, not_p, away = share(u, top, less, peaks)
                    q = target_of(T, at, t_step, k, y, smoothing, exclude, n_classes)
                    if flags & CLASS_WEIGHT:
                        q *= float64(CW[k])
                    if sweep == 0:
                        if q != ZERO:
                            _, g = member(family, p, not_p, log_sum + away, a, b, ONE)
                            slope += times(q, g)
                    else:
                        back = ZERO
                        if q != ZERO and family != 0:
                            own = times(q, bend(family, p, not_p, log_sum + away, a, b, ONE))
                            back = annihilated(own, not_p)
                        pull = slope * p
                        factor = weight * scale * inv_t * inv_t
                        change = factor * (pull - back) if weight != ZERO else ZERO
                        moved = abs(factor) * (abs(pull) + abs(back)) if weight != ZERO else ZERO
                        at_size = row * n_classes + k
                        to = group * n_rows * n_classes + at_size
                        if wanted & FIRST_OF_GROUP:
                            SYSTEM_P[to] = p
                            SYSTEM_W[to] = change
                        else:
                            SYSTEM_W[to] += change
                        if wanted & FIRST:
                            SYSTEM_SIZE[at_size] = moved
                        else:
                            SYSTEM_SIZE[at_size] += moved
                    k += size
                if sweep == 0:
                    slope = group_sum(slope, ZERO, two, mask)
                    if z != ZERO:
                        slope += TWO * z * (log_sum if top == INF else top + log_sum)
            if lane == 0:
                zeta = TWO * z * (weight * scale * inv_t * inv_t) if weight != ZERO else ZERO
                alive = ONE if weight != ZERO else ZERO
                to = group * n_rows + row
                SYSTEM_ZETA[to] = zeta if wanted & FIRST_OF_GROUP else SYSTEM_ZETA[to] + zeta
                SYSTEM_ALIVE[row] = alive if wanted & FIRST else max(alive, SYSTEM_ALIVE[row])
            row += step

    return kernel


def solve_kernel(storage, lanes, groups):
    """x of every row from the groups' p, w and zeta, which follow one another in memory.

    GUESS and REST, of the rows' size, are scratch memory.
    """
    put, number = storage.put, storage.real
    N, COLUMNS = 2 * groups, 2 * groups + 1
    GROUPS = groups
    group_sum, group_max, seat = team(lanes).sum, team(lanes).max_float64, team(lanes).seat

    device = cuda.jit(device=True, forceinline=True)

    @device
    def diagonal(P, W, SIZE, at, many, lam):
        """lam + the sum of w, and the same away from 0."""
        d = lam
        for g in range(GROUPS):
            d += W[g * many + at]
        least = LEAST * (lam + SIZE[at])
        used = d
        if abs(d) < least:
            used = -least if d < ZERO else least
        return d, used

    @device
    def eliminate(
        P, W, SIZE, ZETA, LAM, RIGHT, GUESS, begin, many, row, n_rows, n_classes, l_at, l_step, right_at, right_step,
        add, lane, size, one, two, mask,
    ):  # fmt: skip
        """Solution for one right-hand side, put into GUESS or added to it."""
        A = cuda.local.array((N, COLUMNS), float64)
        sums = cuda.local.array(COLUMNS, float64)
        for i in range(N):
            g = i % GROUPS
            of_w = i >= GROUPS
            for j in range(COLUMNS):
                sums[j] = ZERO
            whole = ZERO
            k = int64(lane)
            while k < n_classes:
                at = begin + k
                lam = LAM[l_at + k * l_step]
                d, used = diagonal(P, W, SIZE, at, many, lam)
                value = W[g * many + at] if of_w else P[g * many + at]
                if of_w and g == 0:
                    value += used - d
                over = value / used
                whole += value
                sums[0] += over * lam
                for j in range(1, GROUPS):
                    sums[j] += over * W[j * many + at]
                for j in range(GROUPS):
                    sums[GROUPS + j] += over * P[j * many + at]
                sums[N] += over * RIGHT[right_at + k * right_step]
                k += size
            for j in range(COLUMNS):
                A[i, j] = group_sum(sums[j], ZERO, one if j % 2 == 0 else two, mask)
            # COLUMNS is odd, so that the shared words of the last sum are not those of the next
            whole = group_sum(whole, ZERO, two, mask)
            A[i, 0] = -A[i, 0]
            A[i, N] = -A[i, N]
            if of_w:
                if g != 0:
                    A[i, g] -= whole
                zeta = ZETA[g * n_rows + row]
                A[i, 0] -= zeta
                if g != 0:
                    A[i, g] -= zeta
                A[i, GROUPS + g] -= ONE
            elif g != 0:
                A[i, g] -= ONE
        if GROUPS == 1:  # 1 - sum p w / d once more
            A[1, 1] = A[0, 0]
        for c in range(N):
            for i in range(c + 1, N):
                if abs(A[i, c]) > abs(A[c, c]):
                    for j in range(COLUMNS):
                        kept = A[i, j]
                        A[i, j] = A[c, j]
                        A[c, j] = kept
            pivot = A[c, c]
            for j in range(COLUMNS):
                A[c, j] = A[c, j] / pivot
            for i in range(N):
                if i != c:
                    part = A[i, c]
                    for j in range(COLUMNS):
                        A[i, j] -= part * A[c, j]
        k = int64(lane)
        while k < n_classes:
            at = begin + k
            lam = LAM[l_at + k * l_step]
            _, used = diagonal(P, W, SIZE, at, many, lam)
            x = RIGHT[right_at + k * right_step] + (used - lam) * A[0, N]
            for j in range(1, GROUPS):
                x += W[j * many + at] * A[j, N]
            for j in range(GROUPS):
                x += P[j * many + at] * A[GROUPS + j, N]
            x /= used
            GUESS[at] = GUESS[at] + x if add else x
            k += size

    def kernel(
        P, W, SIZE, ZETA, ALIVE, LAM, RIGHT, GUESS, REST, OUT, n_rows, n_classes, n_inner,
        l_outer, l_step, l_inner, r_outer, r_step, r_inner, o_outer, o_step, o_inner,
    ):  # fmt: skip
        one = cuda.shared.array(32, float64)
        two = cuda.shared.array(32, float64)
        three = cuda.shared.array(32, float64)
        lane, size, row, step, mask = seat()
        many = n_rows * n_classes
        while row < n_rows:
            outer, inner = split_row(row, n_inner)
            begin = row * n_classes
            l_at = outer * l_outer + inner * l_inner
            r_at = outer * r_outer + inner * r_inner
            eliminate(
                P, W, SIZE, ZETA, LAM, RIGHT, GUESS, begin, many, row, n_rows, n_classes, l_at, l_step, r_at, r_step,
                False, lane, size, one, two, mask,
            )  # fmt: skip
            for _ in range(2):
                k = int64(lane)
                while k < n_classes:
                    REST[begin + k] = RIGHT[r_at + k * r_step] - LAM[l_at + k * l_step] * GUESS[begin + k]
                    k += size
                for g in range(GROUPS):
                    # what is centred is first taken less its value where p is largest
                    most = ZERO
                    k = int64(lane)
                    while k < n_classes:
                        p = P[g * many + begin + k]
                        most = p if p > most else most
                        k += size
                    most = group_max(most, ZERO, one, mask)
                    peaks, high, mean = ZERO, ZERO, ZERO
                    k = int64(lane)
                    while k < n_classes:
                        p = P[g * many + begin + k]
                        if p == most:
                            peaks += ONE
                            high += GUESS[begin + k]
                        mean += p * GUESS[begin + k]
                        k += size
                    peaks = group_sum(peaks, ZERO, two, mask)
                    high = group_sum(high, ZERO, three, mask) / peaks
                    mean = group_sum(mean, ZERO, one, mask)
                    less = ZERO
                    k = int64(lane)
                    while k < n_classes:
                        p = P[g * many + begin + k]
                        if p != ZERO:
                            less += p * (GUESS[begin + k] - high)
                        k += size
                    less = group_sum(less, ZERO, two, mask)
                    bent = ZERO
                    k = int64(lane)
                    while k < n_classes:
                        if P[g * many + begin + k] != ZERO:
                            bent += W[g * many + begin + k] * ((GUESS[begin + k] - high) - less)
                        k += size
                    bent = group_sum(bent, ZERO, three, mask)
                    k = int64(lane)
                    while k < n_classes:
                        p = P[g * many + begin + k]
                        centred = (GUESS[begin + k] - high) - less if p != ZERO else ZERO
                        change = W[g * many + begin + k] * centred - p * (
                            bent - ZETA[g * n_rows + row] * mean
                        )
                        REST[begin + k] -= change
                        k += size
                eliminate(
                    P, W, SIZE, ZETA, LAM, REST, GUESS, begin, many, row, n_rows, n_classes, l_at, l_step, begin, 1,
                    True, lane, size, one, two, mask,
                )  # fmt: skip
            k = int64(lane)
            while k < n_classes:
                x = GUESS[begin + k]
                if ALIVE[row] == ZERO:
                    x = RIGHT[r_at + k * r_step] / LAM[l_at + k * l_step]
                put(OUT, outer * o_outer + inner * o_inner + k * o_step, number(x))
                k += size
            row += step

    return kernel
