"""Rows that lie in one piece, in 16-byte vectors: what the softmax kernels for integer labels share.

A row of any width and address is a head of less than 16 bytes, 16-byte vectors, and a tail; the head and the tail are
one element per lane.  The label is left out of the sums and its gradient written last, by the thread that wrote its
neighbours, so that no barrier is needed and the gradient may lie where the logits are.
"""

from numba import cuda, float32, int32, int64, uint32

from . import intrinsics as on
from .rows import INF, ZERO, careful_exp, times
from .storage import packing

__all__ = ["FLOOR", "UNROLL", "careful_gradient", "careful_sum", "layout", "place_of", "sweeps"]

UNROLL = 4  # 16-byte loads that a thread of a streaming kernel issues back to back
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
    unpack, _ = packing(storage)

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
                    unpack(words, x, u * E)
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
