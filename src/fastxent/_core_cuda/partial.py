"""Rows whose classes lie in several places, in float64: the state of some columns, and their part of the gradient.

`_core_numpy.partial_rows` says what a state is; nothing in it is subtracted from a sum, so that states merge exactly.
"""

import math

from numba import cuda, float64, int64

from .rows import times
from .storage import STORAGES
from .strided import reader
from .teams import team

__all__ = ["grad_kernel", "state_kernel"]

ZERO, ONE, INF, NAN = float64(0), float64(1), float64(math.inf), float64(math.nan)


def state_kernel(storage, lanes):
    """m = max x, r = sum exp(x - m) without one maximum, t = m - x_y where the label is here, Z = sum (m - x)."""
    logit, _, sums, _, _ = reader(storage, STORAGES["float64"], lanes)
    group_sum, seat = team(lanes).sum, team(lanes).seat

    def kernel(X, Y, M, R, T, Z, n_rows, n_columns, x_row, x_step, start):
        shared_max = cuda.shared.array(32, float64)
        shared_sum = cuda.shared.array(32, float64)
        shared_more = cuda.shared.array(32, float64)
        lane, size, row, step, mask = seat()
        while row < n_rows:
            origin = row * x_row
            top, less, peaks = sums(
                X, M, origin, x_step, n_columns, lane, size, ONE, 0, shared_max, shared_sum, shared_more, mask
            )
            gaps = ZERO
            k = int64(lane)
            while k < n_columns:
                x = logit(X, M, origin + k * x_step, k, ONE, 0)
                if x != top:
                    gaps += top - x
                k += size
            gaps = group_sum(gaps, ZERO, shared_sum, mask)
            if lane == 0:
                rest = less + (peaks - ONE)
                away = ZERO
                at = Y[row] - start
                here = at >= 0 and at < n_columns
                if here:
                    x = logit(X, M, origin + at * x_step, at, ONE, 0)
                    away = ZERO if x == top else top - x
                if gaps != gaps:  # a NaN, which the maximum has passed over
                    top = NAN
                    rest = NAN if n_columns > 1 else ZERO
                    away = NAN if here else ZERO
                elif top == -INF:
                    rest = ZERO
                    gaps = INF
                    away = INF if here else ZERO
                M[row] = top
                R[row] = rest
                T[row] = away
                Z[row] = gaps
            row += step

    return kernel


def grad_kernel(storage, lanes):
    """weight (p (1 + pull) - spread), less weight share at the label; p - 1 there is minus the others' sum."""
    put = storage.put
    real = storage.real
    logit, below, _, _, _ = reader(storage, STORAGES["float64"], lanes)
    seat = team(lanes).seat

    def kernel(
        X, G, Y, M, R, T, PULL, WEIGHTS, n_rows, n_columns, x_row, x_step, g_row, g_step, start, spread, share
    ):
        lane, size, row, step, _ = seat()
        while row < n_rows:
            at = Y[row] - start
            top = M[row]
            rest = R[row]
            away = T[row]
            pull = PULL[row]
            weight = WEIGHTS[row]
            k = int64(lane)
            while k < n_columns:
                p = below(logit(X, M, row * x_row + k * x_step, k, ONE, 0), top) / (ONE + rest)
                more = times(p, pull)
                g = p + more - spread
                if k == at:
                    if spread != ZERO:
                        g -= share
                    else:
                        others = rest if away == ZERO else ONE + rest - math.exp(-away)
                        g = more - others / (ONE + rest)
                put(G, row * g_row + k * g_step, real(ZERO if weight == ZERO else g * weight))
                k += size
            row += step

    return kernel
