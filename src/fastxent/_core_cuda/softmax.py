"""Softmax kernels for integer labels and rows that lie in one piece, by the width of a row.

tile      to 32 classes: a block's rows are copied to shared memory flat, a thread takes a row
resident  a row in the registers of 8 to 32 lanes or of a block: one read, one write
stream    any width: a block reads the row twice, the second time backwards, from the end that is still in cache
split     few rows: blocks share a row; `partial_kernel` leaves (max, sum) of every part, `split_kernel` combines them
          and writes its part of the gradient.  With a saved lse that is the backward pass: one read, one write.

A row of any width and address is a head of less than 16 bytes, 16-byte vectors, and a tail; the head and the tail are
one element per lane.  The label is left out of the sums and its gradient written last, by the thread that wrote its
neighbours, so that no barrier is needed and `G` may be `X`: the label's logit is read before the first store.
"""

import math

from numba import cuda, float32, float64, int32, int64, uint32

from . import intrinsics as on
from .rows import HUGE, INF, LOSS, LSE, ONE, ZERO, careful_exp, finish, label_of, scale_of, times
from .teams import BLOCK, FULL, team

__all__ = [
    "CHUNK",
    "UNROLL",
    "partial_kernel",
    "resident_kernel",
    "split_kernel",
    "stream_kernel",
    "tile_kernel",
]

UNROLL = 4  # 16-byte loads that a thread of a streaming kernel issues back to back
CHUNK = 4096  # elements of a row that a block of the split kernels takes
FLOOR = float32(-1e38)  # exponent of nothing: finite, so that the rescaling of an empty sum is no 0 * inf
NOWHERE = int32(-(1 << 30))

device = cuda.jit(device=True, forceinline=True)


@device
def careful_sum(get, X, origin, start, stop, step, label, top, base2):
    total = ZERO
    k = start
    while k < stop:
        if k != label:
            total += careful_exp(get(X, origin + k), top, base2)
        k = int32(k + step)
    return total


@device
def careful_gradient(get, put, X, G, xo, go, start, stop, step, label, top, base2, weight, A, B, own):
    k = start
    while k < stop:
        g = ZERO
        if weight != ZERO:
            g = own
            if k != label:
                g = times(careful_exp(get(X, xo + k), top, base2), A) - B
        put(G, go + k, g)
        k = int32(k + step)


def layout(storage):
    """(row's first element, its width) -> elements of the head, vectors, first element of the tail."""
    E = storage.per_vector
    SHIFT = E.bit_length() - 1

    @device
    def parts(lead, origin, n_classes):
        head = int32((E - ((lead + origin) & (E - 1))) & (E - 1))
        if head > n_classes:
            head = n_classes
        vectors = int32((n_classes - head) >> SHIFT)
        return head, vectors, int32(head + (vectors << SHIFT))

    return parts


def sweeps(storage, smooth, threads):
    """The two loops of a thread over its vectors, `threads` apart: online sums, and gradient.

    The step is a constant of the kernel, so that the unrolled loads differ by what fits into the instruction.
    """
    STEP = threads
    E = storage.per_vector
    SHIFT = E.bit_length() - 1
    PER_WORD = storage.per_word
    low, high, pack = storage.low, storage.high, storage.pack

    @device
    def one_sum(row, i, stop, label, element, base2, xy, state):
        top, exponent, total, spread = state
        while i < stop:
            words = on.load16(row, int64(uint32(i)) << SHIFT)
            for w in range(4):
                x = low(words[w])
                if smooth:
                    spread += x - xy
                if i == label and element == w * PER_WORD:
                    x = -INF
                highest = on.fmax(top, x)
                if PER_WORD == 2:
                    y = high(words[w])
                    if smooth:
                        spread += y - xy
                    if i == label and element == w * 2 + 1:
                        y = -INF
                    highest = on.fmax(highest, y)
                n2 = on.fmax(highest * base2, FLOOR)
                total = on.fma(total, on.exp2(exponent - n2), on.exp2(on.fma(x, base2, -n2)))
                if PER_WORD == 2:
                    total += on.exp2(on.fma(y, base2, -n2))
                top = highest
                exponent = n2
            i = int32(i + STEP)
        return i, (top, exponent, total, spread)

    VALUES = UNROLL * E

    @device
    def sums(row, i, stop, label, element, base2, xy, state):
        x = cuda.local.array(VALUES, float32)
        while int32(i + STEP * (UNROLL - 1)) < stop:
            if uint32(label - i) < uint32(STEP * UNROLL):
                i, state = one_sum(row, i, int32(i + STEP * UNROLL), label, element, base2, xy, state)
            else:
                top, exponent, total, spread = state
                at = int64(i) << SHIFT
                for u in range(UNROLL):
                    words = on.load16(row, at + STEP * E * u)
                    for w in range(4):
                        x[u * E + w * PER_WORD] = low(words[w])
                        if PER_WORD == 2:
                            x[u * E + w * 2 + 1] = high(words[w])
                highest = top
                for k in range(VALUES):
                    if smooth:
                        spread += x[k] - xy
                    highest = on.fmax(highest, x[k])
                n2 = on.fmax(highest * base2, FLOOR)
                s0 = on.exp2(on.fma(x[0], base2, -n2))
                s1 = on.exp2(on.fma(x[1], base2, -n2))
                for k in range(2, VALUES, 2):
                    s0 += on.exp2(on.fma(x[k], base2, -n2))
                    s1 += on.exp2(on.fma(x[k + 1], base2, -n2))
                total = on.fma(total, on.exp2(exponent - n2), s0 + s1)
                state = (highest, n2, total, spread)
                i = int32(i + STEP * UNROLL)
        return one_sum(row, i, stop, label, element, base2, xy, state)

    def make_gradient(U):
        WORDS = U * 4

        @device
        def gradient(x_row, g_row, i, first, base2, n2, A, B):
            # from the vector i down to `first`
            words = cuda.local.array(WORDS, uint32)
            while int32(i - STEP * (U - 1)) >= first:
                at = int64(i) << SHIFT
                for u in range(U):
                    four = on.load16(x_row, at - STEP * E * u)
                    for w in range(4):
                        words[u * 4 + w] = four[w]
                for w in range(WORDS):
                    a = on.fma(on.exp2(on.fma(low(words[w]), base2, -n2)), A, -B)
                    if PER_WORD == 2:
                        b = on.fma(on.exp2(on.fma(high(words[w]), base2, -n2)), A, -B)
                        words[w] = pack(a, b)
                    else:
                        words[w] = pack(a, a)
                for u in range(U):
                    k = 4 * u
                    four = (words[k], words[k + 1], words[k + 2], words[k + 3])
                    on.store16(g_row, at - STEP * E * u, four)
                i = int32(i - STEP * U)
            return i

        return gradient

    many_gradients, one_gradient = make_gradient(UNROLL), make_gradient(1)

    @device
    def gradients(x_row, g_row, i, first, base2, n2, A, B):
        i = many_gradients(x_row, g_row, i, first, base2, n2, A, B)
        one_gradient(x_row, g_row, i, first, base2, n2, A, B)

    return sums, gradients


@device
def place_of(y, head, vectors, tail, lane, size, SHIFT):
    """Whether this lane writes the label, and the label's vector and element in it (nowhere for the other lanes)."""
    if y < head:
        return y == lane, NOWHERE, int32(0)
    if y >= tail:
        return int32(y - tail) == lane, NOWHERE, int32(0)
    within = int32(y - head)
    vector = int32(within >> SHIFT)
    if (vector & (size - 1)) == lane:
        return True, vector, int32(within - (vector << SHIFT))
    return False, NOWHERE, int32(0)


# ------------------------------------------------------------------------------------------------------------ resident


def resident_kernel(storage, vectors, lanes, grad):
    """Rows in registers: `vectors` 16-byte vectors in each of `lanes` neighbours, or in each thread of a block."""
    E = storage.per_vector
    SHIFT = E.bit_length() - 1
    PER_WORD = storage.per_word
    WORDS = vectors * 4
    low, high, pack, get, put = storage.low, storage.high, storage.pack, storage.get, storage.put
    parts = layout(storage)
    group_max, group_sum, seat = team(lanes).max, team(lanes).sum, team(lanes).seat
    GRAD = grad
    NOTHING = {"float32": 0xFF800000, "float16": 0xFC00FC00, "bfloat16": 0xFF80FF80}[
        storage.name
    ]  # -inf, twice

    def kernel(
        X, G, Y, W, CW, LOSS_OUT, LSE_OUT, PART, BAD_ROW, DEN,
        n_rows, n_classes, x_step, g_step, lead, w_step, ignore, flags,
        inv_t, base2, z, family, a, b, on_label, off_label, scale,
    ):  # fmt: skip
        shared_max = cuda.shared.array(32, float32)
        shared_sum = cuda.shared.array(32, float32)
        shared_spread = cuda.shared.array(32, float32)
        lane, size, first, step, mask = seat()
        options = (inv_t, base2, z, a, b, on_label, off_label)
        scale = scale_of(scale, DEN, flags)
        words = cuda.local.array(WORDS, uint32)
        partial = float64(0)
        row = first
        while row < n_rows:
            origin = row * x_step
            head, body, tail = parts(lead, origin, n_classes)
            start = origin + head
            for v in range(vectors):
                i = int32(lane + size * v)
                for w in range(4):
                    words[4 * v + w] = uint32(NOTHING)
                if i < body:
                    four = on.load16(X, start + (int64(i) << SHIFT))
                    for w in range(4):
                        words[4 * v + w] = four[w]
            y, weight, own = label_of(Y, W, CW, BAD_ROW, row, n_rows, n_classes, w_step, ignore, flags, lane)
            xy = get(X, origin + y)
            mine, vector, element = place_of(y, head, body, tail, lane, size, SHIFT)
            x_head = -INF
            x_tail = -INF
            if lane < head:
                x_head = get(X, origin + lane)
            if tail + lane < n_classes:
                x_tail = get(X, origin + tail + lane)
            spread = ZERO
            if off_label != ZERO:
                if lane < head:
                    spread += x_head - xy
                if tail + lane < n_classes:
                    spread += x_tail - xy
                for v in range(vectors):
                    if int32(lane + size * v) < body:
                        for w in range(4):
                            spread += low(words[4 * v + w]) - xy
                            if PER_WORD == 2:
                                spread += high(words[4 * v + w]) - xy
                spread = group_sum(spread, ZERO, shared_spread, mask)
            if mine:
                if y < head:
                    x_head = -INF
                elif y >= tail:
                    x_tail = -INF
                for v in range(vectors):
                    if int32(lane + size * v) == vector:
                        for w in range(4):
                            if PER_WORD == 1:
                                if element == w:
                                    words[4 * v + w] = uint32(NOTHING)
                            else:
                                if element == 2 * w:
                                    words[4 * v + w] = uint32(
                                        (words[4 * v + w] & uint32(0xFFFF0000)) | uint32(NOTHING & 0xFFFF)
                                    )
                                if element == 2 * w + 1:
                                    words[4 * v + w] = uint32(
                                        (words[4 * v + w] & uint32(0xFFFF)) | uint32(NOTHING & 0xFFFF0000)
                                    )
            top = on.fmax(x_head, x_tail)
            for w in range(WORDS):
                top = on.fmax(top, low(words[w]))
                if PER_WORD == 2:
                    top = on.fmax(top, high(words[w]))
            top = on.fmax(group_max(top, -INF, shared_max, mask), xy)
            n2 = top * base2
            straight = abs(n2) < HUGE
            correction = ONE
            others = ZERO
            if straight:
                others = on.exp2(on.fma(x_head, base2, -n2)) + on.exp2(on.fma(x_tail, base2, -n2))
                for w in range(WORDS):
                    others += on.exp2(on.fma(low(words[w]), base2, -n2))
                    if PER_WORD == 2:
                        others += on.exp2(on.fma(high(words[w]), base2, -n2))
                # n2 is rounded: every term has the same factor too much
                correction = on.exp2(-on.fma(top, base2, -n2))
            else:
                others = careful_sum(get, X, origin, lane, n_classes, size, y, top, base2)
            others = group_sum(others, ZERO, shared_sum, mask) * correction
            loss, lse, A, B, g = finish(
                others, top, xy, spread, n_classes, weight, own, scale, family, options
            )
            if lane == 0:
                partial += loss
                if flags & LOSS:
                    LOSS_OUT[row] = loss
                if flags & LSE:
                    LSE_OUT[row] = lse
            if GRAD:
                target = row * g_step
                if straight and weight != ZERO:
                    A *= correction
                    for v in range(vectors):
                        i = int32(lane + size * v)
                        if i < body:
                            for w in range(4):
                                q = 4 * v + w
                                c = on.fma(on.exp2(on.fma(low(words[q]), base2, -n2)), A, -B)
                                if PER_WORD == 2:
                                    d = on.fma(on.exp2(on.fma(high(words[q]), base2, -n2)), A, -B)
                                    words[q] = pack(c, d)
                                else:
                                    words[q] = pack(c, c)
                            four = (words[4 * v], words[4 * v + 1], words[4 * v + 2], words[4 * v + 3])
                            on.store16(G, target + head + (int64(i) << SHIFT), four)
                    if lane < head:
                        put(G, target + lane, on.fma(on.exp2(on.fma(x_head, base2, -n2)), A, -B))
                    if tail + lane < n_classes:
                        put(G, target + tail + lane, on.fma(on.exp2(on.fma(x_tail, base2, -n2)), A, -B))
                    if mine:
                        put(G, target + y, g)
                else:
                    careful_gradient(
                        get, put, X, G, origin, target, lane, n_classes, size, y, top, base2, weight, A, B, g
                    )
            row += step
        if lane == 0:
            PART[first] = partial

    return kernel


# -------------------------------------------------------------------------------------------------------------- stream


def stream_kernel(storage, smooth, grad, threads):
    """A block per row, read twice; the second time backwards, from the end that is still in cache."""
    E = storage.per_vector
    SHIFT = E.bit_length() - 1
    get, put = storage.get, storage.put
    parts = layout(storage)
    group_max, group_sum = team(BLOCK).max, team(BLOCK).sum
    sums, gradients = sweeps(storage, smooth, threads)
    GRAD = grad
    SMOOTH = smooth

    def kernel(
        X, G, Y, W, CW, LOSS_OUT, LSE_OUT, PART, BAD_ROW, DEN,
        n_rows, n_classes, x_step, g_step, lead, w_step, ignore, flags,
        inv_t, base2, z, family, a, b, on_label, off_label, scale,
    ):  # fmt: skip
        shared_max = cuda.shared.array(32, float32)
        shared_sum = cuda.shared.array(32, float32)
        shared_spread = cuda.shared.array(32, float32)
        lane = int32(cuda.threadIdx.x)
        size = int32(cuda.blockDim.x)
        mask = uint32(FULL)
        row = int64(cuda.blockIdx.x)
        origin = row * x_step
        head, body, tail = parts(lead, origin, n_classes)
        start = origin + head
        y, weight, own = label_of(Y, W, CW, BAD_ROW, row, n_rows, n_classes, w_step, ignore, flags, lane)
        xy = get(X, origin + y)
        mine, vector, element = place_of(y, head, body, tail, lane, size, SHIFT)
        x_head = -INF
        x_tail = -INF
        spread = ZERO
        if lane < head:
            x_head = get(X, origin + lane)
            spread += x_head - xy
        if tail + lane < n_classes:
            x_tail = get(X, origin + tail + lane)
            spread += x_tail - xy
        if y < head and mine:
            x_head = -INF
        elif y >= tail and mine:
            x_tail = -INF
        state = (-INF, FLOOR, ZERO, spread)
        i, state = sums(on.advance(X, start), lane, body, vector, element, base2, xy, state)
        high, exponent, total, spread = state
        top = on.fmax(high, on.fmax(x_head, x_tail))
        top = on.fmax(group_max(top, -INF, shared_max, mask), xy)
        n2 = top * base2
        straight = abs(n2) < HUGE
        correction = ONE
        others = ZERO
        if straight:
            others = on.exp2(on.fma(x_head, base2, -n2)) + on.exp2(on.fma(x_tail, base2, -n2))
            others = on.fma(total, on.exp2(exponent - n2), others)
            correction = on.exp2(-on.fma(top, base2, -n2))
        else:
            others = careful_sum(get, X, origin, lane, n_classes, size, y, top, base2)
        others = group_sum(others, ZERO, shared_sum, mask) * correction
        if SMOOTH:
            spread = group_sum(spread, ZERO, shared_spread, mask)
        options = (inv_t, base2, z, a, b, on_label, off_label)
        scale = scale_of(scale, DEN, flags)
        loss, lse, A, B, g = finish(others, top, xy, spread, n_classes, weight, own, scale, family, options)
        if lane == 0:
            PART[row] = loss
            if flags & LOSS:
                LOSS_OUT[row] = loss
            if flags & LSE:
                LSE_OUT[row] = lse
        if GRAD:
            target = row * g_step
            if straight and weight != ZERO:
                A *= correction
                x_row = on.advance(X, start)
                g_row = on.advance(G, target + head)
                gradients(x_row, g_row, int32(i - size), lane, base2, n2, A, B)
                if lane < head:
                    put(G, target + lane, on.fma(on.exp2(on.fma(x_head, base2, -n2)), A, -B))
                if tail + lane < n_classes:
                    put(G, target + tail + lane, on.fma(on.exp2(on.fma(x_tail, base2, -n2)), A, -B))
                if mine:
                    put(G, target + y, g)
            else:
                careful_gradient(
                    get, put, X, G, origin, target, lane, n_classes, size, y, top, base2, weight, A, B, g
                )

    return kernel


# --------------------------------------------------------------------------------------------------------------- split


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


# ---------------------------------------------------------------------------------------------------------------- tile


def tile_kernel(storage, classes, grad, rows=256):
    """To 32 classes: `rows` rows, as many as the block has threads, go through shared memory in one flat copy.

    The tile's address is a multiple of 16 bytes. Rows stand apart by an odd number of words where lanes would meet in
    one bank otherwise.
    """
    E = storage.per_vector
    PER_WORD = storage.per_word
    low, high, pack, get, put = storage.low, storage.high, storage.pack, storage.get, storage.put
    C, ROWS = classes, rows
    PITCH = classes + 1 if classes % 4 == 0 else classes
    WORDS = PITCH * rows
    VECTORS = -(-classes // storage.per_vector)  # of a thread
    WORDS_HERE = 4 * VECTORS
    GRAD = grad
    group_sum = team(BLOCK).sum

    @device
    def place(element):
        if PITCH == C:
            return element
        return uint32(element + element // uint32(C))

    def kernel(
        X, G, Y, W, CW, LOSS_OUT, LSE_OUT, PART, BAD_ROW, DEN,
        n_rows, n_classes, x_step, g_step, lead, w_step, ignore, flags,
        inv_t, base2, z, family, a, b, on_label, off_label, scale,
    ):  # fmt: skip
        tile = cuda.shared.array(WORDS, float32)
        shared_sum = cuda.shared.array(32, float32)
        thread = uint32(cuda.threadIdx.x)
        first = int64(cuda.blockIdx.x) * ROWS
        x_tile = on.advance(X, first * C)
        rows_here = int32(min(n_rows - first, int64(ROWS)))
        elements = uint32(rows_here * C)
        vectors = uint32(elements // uint32(E))
        rest = uint32(vectors * uint32(E) + thread)  # the last tile's odd elements, one to a thread
        words = cuda.local.array(WORDS_HERE, uint32)
        for v in range(VECTORS):
            i = uint32(thread + uint32(ROWS * v))
            if i < vectors:
                four = on.load16(x_tile, int64(i) * E)
                for w in range(4):
                    words[4 * v + w] = four[w]
        for v in range(VECTORS):
            i = uint32(thread + uint32(ROWS * v))
            if i < vectors:
                j = uint32(i * uint32(E))
                for w in range(4):
                    tile[place(uint32(j + uint32(w * PER_WORD)))] = low(words[4 * v + w])
                    if PER_WORD == 2:
                        tile[place(uint32(j + uint32(w * 2 + 1)))] = high(words[4 * v + w])
        if rest < elements:
            tile[place(rest)] = get(x_tile, int64(rest))
        cuda.syncthreads()
        loss = ZERO
        if int32(thread) < rows_here:
            row = first + thread
            at = uint32(thread * uint32(PITCH))
            y, weight, own = label_of(Y, W, CW, BAD_ROW, row, n_rows, n_classes, w_step, ignore, flags, 0)
            x = cuda.local.array(C, float32)
            for c in range(C):
                x[c] = tile[at + uint32(c)]
            xy = tile[at + uint32(y)]
            top = xy
            for c in range(C):
                top = on.fmax(top, x[c])
            spread = ZERO
            if off_label != ZERO:
                for c in range(C):
                    spread += x[c] - xy
            n2 = top * base2
            others = ZERO
            if abs(n2) < HUGE:
                for c in range(C):
                    x[c] = on.exp2((x[c] - top) * base2)
            else:
                for c in range(C):
                    x[c] = careful_exp(x[c], top, base2)
            for c in range(C):
                if c != y:
                    others += x[c]
            options = (inv_t, base2, z, a, b, on_label, off_label)
            scale = scale_of(scale, DEN, flags)
            loss, lse, A, B, g = finish(
                others, top, xy, spread, n_classes, weight, own, scale, family, options
            )
            if flags & LOSS:
                LOSS_OUT[row] = loss
            if flags & LSE:
                LSE_OUT[row] = lse
            if GRAD:
                straight = weight != ZERO and abs(A) < INF
                for c in range(C):
                    g_c = ZERO
                    if straight:
                        g_c = on.fma(x[c], A, -B)
                    elif weight != ZERO:  # a z-loss of an infinite logit
                        g_c = times(x[c], A) - B
                    tile[at + uint32(c)] = g_c
                tile[at + uint32(y)] = g
        total = group_sum(
            loss, ZERO, shared_sum, uint32(FULL)
        )  # its barrier also ends the writes to the tile
        if thread == uint32(0):
            PART[cuda.blockIdx.x] = total
        if GRAD:
            g_tile = on.advance(G, first * C)
            for v in range(VECTORS):
                i = uint32(thread + uint32(ROWS * v))
                if i < vectors:
                    j = uint32(i * uint32(E))
                    for w in range(4):
                        one = tile[place(uint32(j + uint32(w * PER_WORD)))]
                        two = one
                        if PER_WORD == 2:
                            two = tile[place(uint32(j + uint32(w * 2 + 1)))]
                        words[w] = pack(one, two)
                    on.store16(g_tile, int64(j), (words[0], words[1], words[2], words[3]))
            if rest < elements:
                put(g_tile, int64(rest), tile[place(rest)])

    return kernel
