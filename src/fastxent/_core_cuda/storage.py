"""How a dtype lies in memory: its pointer's element, how many make 16 bytes, and their way to float32 and back.

float16 and bfloat16 are raw 16-bit words to the kernels, two values to a 32-bit word.  float64 has no vector form: only
the careful kernels read it.
"""

import functools
from typing import NamedTuple

from numba import cuda, float32, float64, uint8, uint16, uint32

from . import intrinsics as on

__all__ = ["STORAGES", "Storage", "packing"]


class Storage(NamedTuple):
    """Device functions over one dtype."""

    name: str
    element: object  # what a pointer to it points to
    real: object  # the arithmetic's type
    itemsize: int
    per_vector: int  # elements in 16 bytes
    low: object  # word -> its first value
    high: object  # word -> its second value; where a word is one value, the same
    pack: object  # two values -> word
    get: object  # pointer, index -> value
    put: object  # pointer, index, value

    @property
    def per_word(self):
        """Values in a 32-bit word."""
        return self.per_vector // 4


device = cuda.jit(device=True, forceinline=True)


@device
def _low_float32(word):
    return on.as_float(word)


@device
def _pack_float32(low, high):
    return on.as_word(low)


@device
def _get_float32(pointer, index):
    return pointer[index]


@device
def _get_float64(pointer, index):
    return pointer[index]


@device
def _get_uint8(pointer, index):
    return float32(pointer[index])


@device
def _put(pointer, index, value):
    pointer[index] = value


@device
def _low_float16(word):
    return on.low_float16(word)


@device
def _high_float16(word):
    return on.high_float16(word)


@device
def _pack_float16(low, high):
    return on.float16_pair(low, high)


@device
def _get_float16(pointer, index):
    return on.low_float16(uint32(pointer[index]))


@device
def _put_float16(pointer, index, value):
    pointer[index] = uint16(on.float16_pair(value, float32(0)) & uint32(0xFFFF))


@device
def _low_bfloat16(word):
    return on.as_float(uint32(word << uint32(16)))


@device
def _high_bfloat16(word):
    return on.as_float(uint32(word & uint32(0xFFFF0000)))


@device
def _pack_bfloat16(low, high):
    return on.bfloat16_pair(low, high)


@device
def _get_bfloat16(pointer, index):
    return on.as_float(uint32(uint32(pointer[index]) << uint32(16)))


@device
def _put_bfloat16(pointer, index, value):
    pointer[index] = uint16(on.bfloat16_pair(value, float32(0)) & uint32(0xFFFF))


STORAGES = {
    storage.name: storage
    for storage in (
        Storage(
            "float32", float32, float32, 4, 4, _low_float32, _low_float32, _pack_float32, _get_float32, _put
        ),
        Storage(
            "float16",
            uint16,
            float32,
            2,
            8,
            _low_float16,
            _high_float16,
            _pack_float16,
            _get_float16,
            _put_float16,
        ),
        Storage(
            "bfloat16",
            uint16,
            float32,
            2,
            8,
            _low_bfloat16,
            _high_bfloat16,
            _pack_bfloat16,
            _get_bfloat16,
            _put_bfloat16,
        ),
        # targets alone
        Storage("uint8", uint8, float32, 1, 0, None, None, None, _get_uint8, None),
        Storage("bool", uint8, float32, 1, 0, None, None, None, _get_uint8, None),
        Storage("float64", float64, float64, 8, 0, None, None, None, _get_float64, _put),
    )
}


@functools.cache
def packing(storage):
    """Four words to the values that they hold, and back: (words, values, at), (values, at) -> words.

    `values[at:]` of an array of float32, or of a wider type of real numbers.
    """
    PER_WORD = storage.per_word
    low, high, pack = storage.low, storage.high, storage.pack

    @device
    def unpack_words(words, values, at):
        for w in range(4):
            values[at + w] = low(words[w])

    @device
    def unpack_pairs(words, values, at):
        for w in range(4):
            values[at + 2 * w] = low(words[w])
            values[at + 2 * w + 1] = high(words[w])

    @device
    def pack_words(values, at):
        a, b, c, d = values[at], values[at + 1], values[at + 2], values[at + 3]
        return pack(a, a), pack(b, b), pack(c, c), pack(d, d)

    @device
    def pack_pairs(values, at):
        return (
            pack(values[at], values[at + 1]),
            pack(values[at + 2], values[at + 3]),
            pack(values[at + 4], values[at + 5]),
            pack(values[at + 6], values[at + 7]),
        )

    return (unpack_pairs, pack_pairs) if PER_WORD == 2 else (unpack_words, pack_words)
