"""Region losses: sums of true positives, false positives and false negatives, and the gradient of what they make.

Arrays are (regions, outer, classes, inner). The softmax of a row is summed once and kept as three numbers; the sums are
then elementwise: a block adds some elements of a region, or of one class of it, in an order that follows from the shape
alone, and the blocks' sums are added in theirs.
"""

import math

from numba import cuda, float64, int64, uint32

from .rows import WEIGHT
from .strided import reader, split_row
from .teams import BLOCK, FULL, team

__all__ = ["grad_kernel", "loss_kernel", "rows_kernel", "sums_kernel", "total_kernel"]

device = cuda.jit(device=True, forceinline=True)


def probability(real, activation):
    """value -> p and 1 - p, each without cancellation; of a softmax that is `Row.share`'s."""
    ONE = real(1)
    SIGMOID = activation == "sigmoid"

    @device
    def of(x):
        if not SIGMOID:
            return x, ONE - x
        e = math.exp(-abs(x))
        big = ONE / (ONE + e)
        small = e * big
        return (big, small) if x > ONE - ONE else (small, big)

    return of


def rows_kernel(storage, lanes):
    """top, sum below it and number of maxima of every row, which softmax probabilities are made from."""
    real = storage.real
    _, _, sums, _, _ = reader(storage, storage, lanes)
    seat = team(lanes).seat
    ONE = real(1)

    def kernel(X, STATES, n_rows, n_outer, n_classes, n_inner, x_region, x_outer, x_step, x_inner):
        shared_max = cuda.shared.array(32, real)
        shared_sum = cuda.shared.array(32, real)
        shared_more = cuda.shared.array(32, real)
        lane, size, row, step, mask = seat()
        while row < n_rows:
            line, inner = split_row(row, n_inner)
            region, outer = split_row(line, n_outer)
            origin = region * x_region + outer * x_outer + inner * x_inner
            top, less, peaks = sums(
                X,
                STATES,
                origin,
                x_step,
                n_classes,
                lane,
                size,
                ONE,
                0,
                shared_max,
                shared_sum,
                shared_more,
                mask,
            )
            if lane == 0:
                STATES[3 * row] = top
                STATES[3 * row + 1] = less
                STATES[3 * row + 2] = peaks
            row += step

    return kernel


def sums_kernel(storage, activation, soft, per_class):
    """Three sums over some elements of a region, or of a class of it: blocks (chunk, region and class)."""
    get, real = storage.get, storage.real
    SOFTMAX, SOFT, PER_CLASS = activation == "softmax", soft, per_class
    of = probability(real, activation)
    logit, _, _, share, _ = reader(storage, storage, 1)
    group_sum = team(BLOCK).sum
    ZERO, ONE = real(0), real(1)

    def kernel(
        X, T, W, STATES, PART, n_groups, n_outer, n_classes, n_inner, n_each,
        x_region, x_outer, x_step, x_inner, t_region, t_outer, t_step, t_inner,
        w_region, w_outer, w_step, w_inner, flags,
    ):  # fmt: skip
        shared_one = cuda.shared.array(32, float64)
        shared_two = cuda.shared.array(32, float64)
        shared_three = cuda.shared.array(32, float64)
        group = int64(cuda.blockIdx.y)
        while group < n_groups:
            region = group
            only = int64(0)
            count = n_outer * n_inner
            if PER_CLASS:
                region, only = split_row(group, n_classes)
            else:
                count *= n_classes
            hits = float64(0)
            found = float64(0)
            lost = float64(0)
            i = int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
            left = n_each  # elements of a thread, at most: counted down, the compiler divides for no count of its own
            while left > 0 and i < count:
                line, inner = split_row(i, n_inner)
                outer = line
                k = only
                if not PER_CLASS:
                    outer, k = split_row(line, n_classes)
                weight = ONE
                if flags & WEIGHT:
                    weight = W[region * w_region + outer * w_outer + k * w_step + inner * w_inner]
                if weight != ZERO:
                    at = region * x_region + outer * x_outer + k * x_step + inner * x_inner
                    t = T[region * t_region + outer * t_outer + k * t_step + inner * t_inner]
                    if SOFTMAX:
                        state = 3 * ((region * n_outer + outer) * n_inner + inner)
                        u = logit(X, W, at, k, ONE, 0)
                        p, not_p, _ = share(u, STATES[state], STATES[state + 1], STATES[state + 2])
                    else:
                        p, not_p = of(get(X, at))
                    if SOFT:
                        hit = t if t < p else p
                        extra = p - t
                        miss = t - p
                        if p == p and t == t:
                            extra = max(extra, ZERO)
                            miss = max(miss, ZERO)
                        else:
                            hit = extra
                    else:
                        hit = p * t
                        extra = p * (ONE - t)
                        miss = not_p * t
                    hits += weight * hit
                    found += weight * extra
                    lost += weight * miss
                left -= 1
                i += int64(cuda.gridDim.x) * cuda.blockDim.x
            hits = group_sum(hits, float64(0), shared_one, uint32(FULL))
            found = group_sum(found, float64(0), shared_two, uint32(FULL))
            lost = group_sum(lost, float64(0), shared_three, uint32(FULL))
            if cuda.threadIdx.x == 0:
                to = 3 * (group * cuda.gridDim.x + cuda.blockIdx.x)
                PART[to] = hits
                PART[to + 1] = found
                PART[to + 2] = lost
            group += cuda.gridDim.y

    return kernel


def total_kernel():
    """The blocks' sums of every group, added in an order that follows from their number: a warp to a group."""
    lanes_sum, seat = team(32).sum, team(32).seat

    def kernel(PART, SUMS, n_groups, chunks):
        lane, size, group, step, mask = seat()
        while group < n_groups:
            hits, found, lost = float64(0), float64(0), float64(0)
            chunk = int64(lane)
            while chunk < chunks:
                at = 3 * (group * chunks + chunk)
                hits += PART[at]
                found += PART[at + 1]
                lost += PART[at + 2]
                chunk += size
            hits = lanes_sum(hits, float64(0), PART, mask)
            found = lanes_sum(found, float64(0), PART, mask)
            lost = lanes_sum(lost, float64(0), PART, mask)
            if lane == 0:
                SUMS[3 * group] = hits
                SUMS[3 * group + 1] = found
                SUMS[3 * group + 2] = lost
            group += step

    return kernel


def loss_kernel():
    """(alpha FP + beta FN) / (TP + alpha FP + beta FN + s) of every group, 0 for nothing, and what its gradient needs.

    SLOPES: TP + s and alpha FP + beta FN over the denominator squared, times `scale`.
    """

    def kernel(SUMS, LOSSES, SLOPES, n_groups, alpha, beta, smooth, scale):
        i = int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
        while i < n_groups:
            hits = SUMS[3 * i]
            wrong = alpha * SUMS[3 * i + 1] + beta * SUMS[3 * i + 2]
            whole = hits + wrong + smooth
            loss = float64(0)
            one = float64(0)
            other = float64(0)
            if whole != float64(0):  # something found, or to be found
                loss = wrong / whole
                one = scale * ((hits + smooth) / whole) / whole
                other = scale * loss / whole
            LOSSES[i] = loss
            SLOPES[2 * i] = one
            SLOPES[2 * i + 1] = other
            i += int64(cuda.gridDim.x) * cuda.blockDim.x

    return kernel


def grad_kernel(storage, lanes, activation, soft, per_class):
    """dL/dp = v (bend slopes_0 - hit slopes_1), through the activation; G may be X."""
    put, real = storage.put, storage.real
    SOFTMAX, SIGMOID, SOFT, PER_CLASS = activation == "softmax", activation == "sigmoid", soft, per_class
    of = probability(real, activation)
    logit, _, sums, share, _ = reader(storage, storage, lanes)
    group_sum, seat = team(lanes).sum, team(lanes).seat
    ZERO, ONE, HALF = real(0), real(1), real(0.5)

    @device
    def slope_of(p, t, weight, alpha, beta, bending, hitting):
        if weight == ZERO:
            return ZERO
        hit = t
        bend = alpha * (ONE - t) - beta * t
        if SOFT:
            above = ONE if p > t else ZERO if p < t else HALF
            hit = ONE - above
            bend = alpha * above - beta * hit
        return weight * (bend * bending - hit * hitting)

    def kernel(
        X, G, T, W, SLOPES, n_rows, n_outer, n_classes, n_inner,
        x_region, x_outer, x_step, x_inner, g_region, g_outer, g_step, g_inner,
        t_region, t_outer, t_step, t_inner, w_region, w_outer, w_step, w_inner, flags, alpha, beta,
    ):  # fmt: skip
        shared_max = cuda.shared.array(32, real)
        shared_sum = cuda.shared.array(32, real)
        shared_more = cuda.shared.array(32, real)
        lane, size, row, step, mask = seat()
        while row < n_rows:
            line, inner = split_row(row, n_inner)
            region, outer = split_row(line, n_outer)
            origin = region * x_region + outer * x_outer + inner * x_inner
            to = region * g_region + outer * g_outer + inner * g_inner
            at = region * t_region + outer * t_outer + inner * t_inner
            w_at = region * w_region + outer * w_outer + inner * w_inner
            top, less, peaks = ZERO, ZERO, ONE
            highest, mean = ZERO, ZERO
            if SOFTMAX:
                top, less, peaks = sums(
                    X, SLOPES, origin, x_step, n_classes, lane, size, ONE, 0,
                    shared_max, shared_sum, shared_more, mask,
                )  # fmt: skip
            # of a softmax: the slope of the likeliest class, the mean of the slopes less that one, and the gradient
            for sweep in range(3):
                if SOFTMAX or sweep == 2:
                    part = ZERO
                    k = int64(lane)
                    while k < n_classes:
                        slot = region
                        if PER_CLASS:
                            slot = region * n_classes + k
                        weight = ONE
                        if flags & WEIGHT:
                            weight = W[w_at + k * w_step]
                        u = logit(X, SLOPES, origin + k * x_step, k, ONE, 0)
                        if SOFTMAX:
                            p, not_p, _ = share(u, top, less, peaks)
                        else:
                            p, not_p = of(u)
                        t = T[at + k * t_step]
                        bending, hitting = real(SLOPES[2 * slot]), real(SLOPES[2 * slot + 1])
                        slope = slope_of(p, t, weight, alpha, beta, bending, hitting)
                        if sweep == 0:
                            if u == top:
                                part += slope
                        elif sweep == 1:
                            if p != ZERO:
                                part += p * (slope - highest)
                        else:
                            if SIGMOID:
                                slope *= p * not_p
                            elif SOFTMAX:
                                slope = ZERO if p == ZERO else p * ((slope - highest) - mean)
                            put(G, to + k * g_step, ZERO if weight == ZERO else slope)
                        k += size
                    if sweep == 0:
                        highest = group_sum(part, ZERO, shared_sum, mask) / peaks
                    elif sweep == 1:
                        mean = group_sum(part, ZERO, shared_more, mask)
            row += step

    return kernel
