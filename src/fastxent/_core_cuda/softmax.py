"""Softmax kernels for integer labels and rows that lie in one piece, by the width of a row.

tile      to 32 classes: a block's rows are copied to shared memory flat, a thread takes a row
resident  a row in the registers of 8 to 32 lanes or of a block: one read, one write
stream    any width: a block reads the row twice, the second time backwards, from the end that is still in cache

Few rows, which leave blocks idle, are shared by several: `split`.  `G` may be `X`: the label's logit is read before the
first store.
"""

from numba import cuda, float32, float64, int32, int64, uint32

from . import intrinsics as on
from .rows import HUGE, INF, LOSS, LSE, ONE, ZERO, careful_exp, finish, label_of, scale_of, times
from .teams import BLOCK, FULL, team
from .vectors import FLOOR, careful_gradient, careful_sum, layout, place_of, sweeps

__all__ = ["resident_kernel", "stream_kernel", "tile_kernel"]

device = cuda.jit(device=True, forceinline=True)


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
