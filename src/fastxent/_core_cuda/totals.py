"""Sums over rows in a fixed order: the denominators that a gradient needs first, and the loss from its partial sums.

No floating-point atomics anywhere, and grids that follow from the shape alone: the same bits in every run.
"""

import math

from numba import cuda, float64, int64, uint32

from . import intrinsics as on
from .rows import BAD, CLASS_WEIGHT, IGNORE, WEIGHT
from .strided import split_row
from .teams import BLOCK, FULL, team

__all__ = ["combine_kernel", "label_totals_kernel", "soft_totals_kernel", "weight_totals_kernel"]

ZERO, INF = float64(0), float64(math.inf)
AT_ONCE = 8  # partial sums that a thread has on their way together: one block waits for all of them


@cuda.jit(device=True, forceinline=True)
def counted(weight):
    """The weight; 1 for a NaN, which is left to its row."""
    return weight if weight == weight else float64(1)


def label_totals_kernel():
    """Weight v w_y, or 1, of the rows that are not ignored (w_0 where the label is wrong): a partial sum per block."""
    group_sum = team(BLOCK).sum

    def kernel(
        T, W, CW, PART, BAD_ROW, n_rows, n_classes, n_inner, t_outer, t_inner, w_outer, w_inner, ignore, flags
    ):
        shared = cuda.shared.array(32, float64)
        total = ZERO
        row = int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
        while row < n_rows:
            outer, inner = split_row(row, n_inner)
            y = int64(T[outer * t_outer + inner * t_inner])
            if not (flags & IGNORE and y == ignore):
                inside = y >= 0 and y < n_classes
                if flags & BAD and not inside:
                    on.raise_to(BAD_ROW, n_rows - row)
                value = float64(1)
                if flags & WEIGHT and inside:
                    value = counted(float64(W[outer * w_outer + inner * w_inner]))
                if flags & CLASS_WEIGHT and value != ZERO:
                    value *= float64(CW[y]) if inside else float64(CW[0])
                total += value
            row += int64(cuda.gridDim.x) * cuda.blockDim.x
        total = group_sum(total, ZERO, shared, uint32(FULL))
        if cuda.threadIdx.x == 0:
            PART[cuda.blockIdx.x] = total

    return kernel


def soft_totals_kernel():
    """Weight v sum_k w_k t_k of rows of soft targets, a warp to a row: a partial sum per block."""
    lanes_sum, group_sum = team(32).sum, team(BLOCK).sum

    def kernel(
        T, W, CW, PART, BAD_ROW, n_rows, n_classes, n_inner, t_outer, t_step, t_inner, w_outer, w_inner, flags,
    ):  # fmt: skip
        shared = cuda.shared.array(32, float64)
        lane = int64(cuda.threadIdx.x) & 31
        total = ZERO
        row = (int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x) >> 5
        while row < n_rows:
            outer, inner = split_row(row, n_inner)
            mass = ZERO
            k = lane
            while k < n_classes:
                t = float64(T[outer * t_outer + inner * t_inner + k * t_step])
                if flags & BAD and not ZERO <= t < INF:
                    on.raise_to(BAD_ROW, n_rows - row)
                if flags & CLASS_WEIGHT:
                    t *= float64(CW[k])
                mass += t
                k += 32
            mass = lanes_sum(mass, ZERO, shared, uint32(FULL))
            value = float64(1)
            if flags & WEIGHT:
                value = counted(float64(W[outer * w_outer + inner * w_inner]))
            if lane == 0 and value != ZERO:
                total += mass * value
            row += int64(cuda.gridDim.x) * cuda.blockDim.x >> 5
        total = group_sum(total, ZERO, shared, uint32(FULL))
        if cuda.threadIdx.x == 0:
            PART[cuda.blockIdx.x] = total

    return kernel


def weight_totals_kernel():
    """Sum of weights over two axes with any strides: a partial sum per block."""
    group_sum = team(BLOCK).sum

    def kernel(W, PART, n_rows, n_columns, w_row, w_column):
        shared = cuda.shared.array(32, float64)
        total = ZERO
        i = int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
        while i < n_rows * n_columns:
            row, column = split_row(i, n_columns)
            total += float64(W[row * w_row + column * w_column])
            i += int64(cuda.gridDim.x) * cuda.blockDim.x
        total = group_sum(total, ZERO, shared, uint32(FULL))
        if cuda.threadIdx.x == 0:
            PART[cuda.blockIdx.x] = total

    return kernel


def combine_kernel(storage):
    """One block: OUT = factor * sum of the partial sums, over the denominator in DEN if `divide`; `empty` over 0."""
    real = storage.real
    group_sum = team(BLOCK).sum

    def kernel(PART, OUT, DEN, n, factor, divide, empty):
        shared = cuda.shared.array(32, float64)
        total = ZERO
        i = int64(cuda.threadIdx.x)
        size = int64(cuda.blockDim.x)
        while i + (AT_ONCE - 1) * size < n:
            some = ZERO
            for u in range(AT_ONCE):
                some += PART[i + u * size]
            total += some
            i += AT_ONCE * size
        while i < n:
            total += PART[i]
            i += size
        total = group_sum(total, ZERO, shared, uint32(FULL)) * factor
        if cuda.threadIdx.x == 0:
            if divide:
                total = total / DEN[0] if DEN[0] != ZERO else empty
            OUT[0] = real(total)

    return kernel
