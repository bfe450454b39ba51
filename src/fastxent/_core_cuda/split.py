"""Softmax kernels for integer labels where several blocks share a row.

`partial_kernel` leaves (max, sum) of every part of a row, `split_kernel` combines them and writes its part of the
gradient.  With a saved lse that is the backward pass: one read, one write.
"""

import math

from numba import cuda, float32, int32, int64, uint32

from . import intrinsics as on
from .rows import HUGE, INF, LOSS, LSE, ONE, ZERO, careful_exp, finish, label_of, scale_of, times
from .teams import BLOCK, FULL, team
from .vectors import FLOOR, careful_gradient, careful_sum, layout, place_of, sweeps

__all__ = ["CHUNK", "partial_kernel", "split_kernel"]

CHUNK = 4096  # elements of a row that a block takes

device = cuda.jit(device=True, forceinline=True)


@device
def place_in_grid(per_row):
    """Row and number within the row of a block."""
    block = uint32(cuda.blockIdx.x)
    row = uint32(block // uint32(per_row))
    return int64(row), int32(block - row * uint32(per_row))


def chunks_of(storage, chunk):
    """(number of a chunk, all of them, vectors of the row) -> its vectors, [from, to)."""
    VECTORS = chunk // storage.per_vector

    @device
    def span(number, chunks, body):
        first = int32(number * VECTORS)
        last = int32(first + VECTORS)
        if number == chunks - 1 or last > body:
            last = body
        if first > last:
            first = last
        return first, last

    return span


def partial_kernel(storage, smooth, threads, chunk=CHUNK):
    """(maximum, sum of exponentials, spread, label's logit) of every chunk of every row, a block each."""
    SHIFT = storage.per_vector.bit_length() - 1
    get = storage.get
    parts, span = layout(storage), chunks_of(storage, chunk)
    group_max, group_sum = team(BLOCK).max, team(BLOCK).sum
    sums, _ = sweeps(storage, smooth, threads)
    SMOOTH = smooth

    def kernel(X, Y, STATES, n_classes, x_step, lead, base2, chunks):
        shared_max = cuda.shared.array(32, float32)
        shared_sum = cuda.shared.array(32, float32)
        shared_spread = cuda.shared.array(32, float32)
        lane = int32(cuda.threadIdx.x)
        size = int32(cuda.blockDim.x)
        mask = uint32(FULL)
        row, number = place_in_grid(chunks)
        origin = row * x_step
        head, body, tail = parts(lead, origin, n_classes)
        first, last = span(number, chunks, body)
        y = int64(Y[row])
        if y < 0 or y >= n_classes:
            y = int64(0)
        y = int32(y)
        xy = get(X, origin + y)
        _, vector, element = place_of(y, head, body, tail, lane, size, SHIFT)
        x_head = -INF
        x_tail = -INF
        spread = ZERO
        if number == 0 and lane < head:
            x_head = get(X, origin + lane)
            spread += x_head - xy
            if lane == y:
                x_head = -INF
        if number == chunks - 1 and tail + lane < n_classes:
            x_tail = get(X, origin + tail + lane)
            spread += x_tail - xy
            if tail + lane == y:
                x_tail = -INF
        state = (-INF, FLOOR, ZERO, spread)
        x_row = on.advance(X, origin + head)
        _, state = sums(x_row, int32(first + lane), last, vector, element, base2, xy, state)
        high, exponent, total, spread = state
        top = on.fmax(high, on.fmax(x_head, x_tail))
        top = group_max(top, -INF, shared_max, mask)
        n2 = top * base2
        others = total  # NaN, or 0 where all is -inf
        if abs(n2) < HUGE:
            others = on.exp2(on.fma(x_head, base2, -n2)) + on.exp2(on.fma(x_tail, base2, -n2))
            others = on.fma(total, on.exp2(exponent - n2), others)
            others *= on.exp2(-on.fma(top, base2, -n2))
        elif top > -INF:
            start = int32(head + (first << SHIFT) + lane)
            stop = int32(head + (last << SHIFT))
            others = careful_sum(get, X, origin, start, stop, size, y, top, base2)
            others += careful_exp(x_head, top, base2) + careful_exp(x_tail, top, base2)
        others = group_sum(others, ZERO, shared_sum, mask)
        if SMOOTH:
            spread = group_sum(spread, ZERO, shared_spread, mask)
        if lane == 0:
            at = (row * chunks + number) * 4
            STATES[at] = top
            STATES[at + 1] = others
            STATES[at + 2] = spread
            STATES[at + 3] = xy

    return kernel


@device
def from_lse(lse, label, n_classes, weight, own, scale, o):
    """A, B, g_y of cross-entropy from a saved lse, whose rounding goes into p; the label's logit only into g_y."""
    inv_t, _, z, _, _, on_label, off_label = o
    if weight == ZERO:
        return ZERO, ZERO, ZERO
    away = ZERO if label * inv_t == lse else label * inv_t - lse
    p = float32(math.exp(away))
    q = float32(-math.expm1(away))
    coefficient = own * (on_label + float32(n_classes - 1) * off_label)
    if z != ZERO:
        coefficient += (z + z) * lse
    factor = weight * scale
    mine = own * on_label
    grad = factor * (times(p, coefficient - mine) - mine * q)
    return factor * coefficient, factor * own * off_label, grad


def split_kernel(storage, saved, grad, threads, chunk=CHUNK):
    """Combine a row's chunks, or take its saved lse, and write one chunk of the gradient.

    A block to a chunk, or to a row without a gradient. In place, the label's logit belongs to the block that
    overwrites it: the others find it in the chunks' states, and with a saved lse they do without.
    """
    SHIFT = storage.per_vector.bit_length() - 1
    get, put = storage.get, storage.put
    parts, span = layout(storage), chunks_of(storage, chunk)
    _, gradients = sweeps(storage, False, threads)
    lanes_max, lanes_sum = team(32).max, team(32).sum
    SAVED, GRAD = saved, grad
    PER_ROW = 0 if grad else 1  # blocks; 0: one for each chunk
    LOG2E = float32(math.log2(math.e))

    def kernel(
        X, G, Y, W, CW, LOSS_OUT, LSE_OUT, PART, BAD_ROW, DEN, STATES,
        n_rows, n_classes, x_step, g_step, lead, w_step, ignore, flags,
        inv_t, base2, z, family, a, b, on_label, off_label, scale, temperature, chunks,
    ):  # fmt: skip
        lane = int32(cuda.threadIdx.x)
        size = int32(cuda.blockDim.x)
        mask = uint32(FULL)
        row, number = place_in_grid(PER_ROW if PER_ROW else chunks)
        origin = row * x_step
        target = row * g_step
        head, body, tail = parts(lead, origin, n_classes)
        first, last = span(number, chunks, body)
        start = int32(head + (first << SHIFT))
        stop = int32(head + (last << SHIFT))
        if number == 0:
            start = int32(0)
        if number == chunks - 1:
            stop = n_classes
        reporter = int32(lane + number)  # 0 for one thread of a row
        y, weight, own = label_of(Y, W, CW, BAD_ROW, row, n_rows, n_classes, w_step, ignore, flags, reporter)
        options = (inv_t, base2, z, a, b, on_label, off_label)
        scale = scale_of(scale, DEN, flags)
        top = -INF
        n2 = ZERO
        loss = ZERO
        lse = ZERO
        correction = ONE
        if SAVED:
            lse = STATES[row]
            xy = ZERO
            if start <= y and y < stop:
                xy = get(X, origin + y)
            A, B, g = from_lse(lse, xy, n_classes, weight, own, scale, options)
            top = lse * temperature
            n2 = lse * LOG2E
            correction = on.exp2(-on.fma(lse, LOG2E, -n2))
        else:
            at = row * chunks * 4
            within = int32(lane & 31)
            c = within
            while c < chunks:
                top = on.fmax(top, STATES[at + c * 4])
                c = int32(c + 32)
            xy = STATES[at + 3]
            top = on.fmax(lanes_max(top, -INF, STATES, mask), xy)
            others = ZERO
            spread = ZERO
            c = within
            while c < chunks:
                others += STATES[at + c * 4 + 1] * careful_exp(STATES[at + c * 4], top, base2)
                spread += STATES[at + c * 4 + 2]
                c = int32(c + 32)
            others = lanes_sum(others, ZERO, STATES, mask)
            spread = lanes_sum(spread, ZERO, STATES, mask)
            n2 = top * base2
            correction = on.exp2(-on.fma(top, base2, -n2))
            loss, lse, A, B, g = finish(
                others, top, xy, spread, n_classes, weight, own, scale, family, options
            )
            if reporter == 0:
                PART[row] = loss
                if flags & LOSS:
                    LOSS_OUT[row] = loss
                if flags & LSE:
                    LSE_OUT[row] = lse
        if GRAD:
            cuda.syncthreads()  # the label's logit has been read
            if abs(n2) < HUGE and weight != ZERO:
                mine, _, _ = place_of(y, head, body, tail, lane, size, SHIFT)
                A *= correction
                x_row = on.advance(X, origin + head)
                g_row = on.advance(G, target + head)
                # from the last vector of this lane below `last`; as many steps of `size` as fit
                steps = int32(((last - first) - lane + size - 1) & ~(size - 1))
                gradients(x_row, g_row, int32(first + lane + steps - size), first, base2, n2, A, B)
                if number == 0 and lane < head:
                    x = get(X, origin + lane)
                    put(G, target + lane, on.fma(on.exp2(on.fma(x, base2, -n2)), A, -B))
                if number == chunks - 1 and tail + lane < n_classes:
                    x = get(X, origin + tail + lane)
                    put(G, target + tail + lane, on.fma(on.exp2(on.fma(x, base2, -n2)), A, -B))
                if mine and start <= y and y < stop:
                    put(G, target + y, g)
            else:
                careful_gradient(
                    get, put, X, G, origin, target,
                    int32(start + lane), stop, size, y, top, base2, weight, A, B, g,
                )  # fmt: skip

    return kernel
