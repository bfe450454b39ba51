"""A booster's derivatives of softmax cross-entropy, in float64: three sweeps over a row, rows or columns contiguous."""

import math

from numba import cuda, float32, float64, int64

from . import intrinsics as on
from .rows import CLASS_WEIGHT, WEIGHT
from .storage import STORAGES
from .strided import reader
from .teams import team

__all__ = ["boost_kernel"]


def boost_kernel(storage, lanes):
    """v (p - [k = y]) and v max(factor p (1 - p), floor) in float32; ODD is raised where a row has a limit."""
    logit, _, sums, share, _ = reader(storage, STORAGES["float64"], lanes)
    seat = team(lanes).seat
    ONE, INF = float64(1), float64(math.inf)

    def kernel(
        X,
        G,
        H,
        Y,
        W,
        CW,
        ODD,
        n_rows,
        n_classes,
        x_row,
        x_step,
        g_row,
        g_step,
        h_row,
        h_step,
        flags,
        factor,
        floor,
    ):
        shared_max = cuda.shared.array(32, float64)
        shared_sum = cuda.shared.array(32, float64)
        shared_more = cuda.shared.array(32, float64)
        lane, size, row, step, mask = seat()
        while row < n_rows:
            y = int64(Y[row])
            v = ONE
            if flags & WEIGHT:
                v = float64(W[row])
            if flags & CLASS_WEIGHT:
                v *= float64(CW[y])
            top, less, peaks = sums(
                X,
                W,
                row * x_row,
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
            if lane == 0 and not (abs(top) < INF and less < INF):
                on.raise_to(ODD, int64(1))
            k = int64(lane)
            while k < n_classes:
                p, left, _ = share(logit(X, W, row * x_row + k * x_step, k, ONE, 0), top, less, peaks)
                g = -left if k == y else p
                G[row * g_row + k * g_step] = float32(g * v)
                H[row * h_row + k * h_step] = float32(max(factor * (p * left), floor) * v)
                k += size
            row += step

    return kernel
