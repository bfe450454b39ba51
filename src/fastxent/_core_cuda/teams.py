"""Reductions over the threads that share a row: one thread, 8, 16 or 32 lanes of a warp, or a block.

Every member gets the same bits: butterflies add the same two numbers on both sides.  A block's reduction owns its 32
words of shared memory; two of them with another reduction between them need no barrier of their own.
"""

import functools

from numba import cuda, int32, int64, uint32

from . import intrinsics as on

__all__ = ["BLOCK", "Team", "team"]

BLOCK = 0  # the number of lanes that stands for the whole block
FULL = 0xFFFFFFFF

device = cuda.jit(device=True, forceinline=True)


@device
def add(x, y):
    return x + y


@device
def larger(x, y):
    return on.fmax(x, y)


@device
def larger_float64(x, y):
    return y if y > x else x


class Team:
    """One size of team: its reductions (value, identity, shared words, mask) -> value, and `seat`, a thread's place.

    `seat()` is (lane, lanes, first row, step to the next, mask of the lanes).
    """

    def __init__(self, lanes):
        self.lanes = lanes
        self.sum = _reduction(add, lanes)
        self.max = _reduction(larger, lanes)
        self.max_float64 = _reduction(larger_float64, lanes)
        self.seat = _seat(lanes)


@functools.cache
def team(lanes):
    """Reductions over `lanes` neighbours, or over the block."""
    return Team(lanes)


def _seat(lanes):
    LANES = lanes

    @device
    def block_seat():
        lane = int32(cuda.threadIdx.x)
        size = int32(cuda.blockDim.x)
        return lane, size, int64(cuda.blockIdx.x), int64(cuda.gridDim.x), uint32(FULL)

    @device
    def warp_seat():
        thread = int32(cuda.threadIdx.x)
        row = (int64(cuda.blockIdx.x) * cuda.blockDim.x + thread) >> 5
        step = int64(cuda.gridDim.x) * cuda.blockDim.x >> 5
        # a mask that is known costs no synchronization of its own in every exchange
        return int32(thread & 31), int32(32), row, step, uint32(FULL)

    @device
    def seat():
        thread = int32(cuda.threadIdx.x)
        lane = int32(thread & (LANES - 1))
        row = (int64(cuda.blockIdx.x) * cuda.blockDim.x + thread) // LANES
        step = int64(cuda.gridDim.x) * cuda.blockDim.x // LANES
        mask = uint32((FULL >> (32 - LANES)) << int64((thread & 31) - lane))
        return lane, int32(LANES), row, step, mask

    return block_seat if lanes == BLOCK else warp_seat if lanes == 32 else seat


def _butterfly(combine, lanes):
    STEPS = lanes.bit_length() - 1

    @device
    def reduce(value, mask):
        for step in range(STEPS):
            value = combine(value, cuda.shfl_xor_sync(mask, value, 1 << step))
        return value

    return reduce


def _reduction(combine, lanes):
    if lanes == 1:

        @device
        def alone(value, identity, shared, mask):
            return value

        return alone
    within = _butterfly(combine, lanes or 32)
    if lanes != BLOCK:

        @device
        def neighbours(value, identity, shared, mask):
            return within(value, mask)

        return neighbours

    @device
    def block(value, identity, shared, mask):
        value = within(value, mask)
        lane = cuda.threadIdx.x & 31
        if lane == 0:
            shared[cuda.threadIdx.x >> 5] = value
        cuda.syncthreads()
        value = identity
        if lane < int32(cuda.blockDim.x >> 5):
            value = shared[lane]
        return within(value, mask)

    return block
