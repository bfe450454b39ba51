"""Memory of large results, used again once a result is gone.

The first touch of a fresh page costs as much as the kernel that writes it: the system clears it first. A training loop
gives a gradient back before it asks for the next of the same size, so the blocks of the last few large results wait
here. They wait marked as free (MADV_FREE): under memory pressure the system takes their pages, without swapping.
Smaller results are the C library's business, which keeps blocks up to 32 MB itself. Systems without MADV_FREE keep
nothing.
"""

import collections
import contextlib
import math
import mmap
import weakref

import numpy as np

__all__ = ["empty", "empty_like", "release"]

LARGE = 1 << 25  # bytes; glibc's own limit
MOST_BLOCKS = 4  # that wait: a booster's two results, a linear layer's gradients
MOST_WASTE = 2  # a block serves results down to 1/2 of its size

_waiting = collections.deque(maxlen=MOST_BLOCKS)
_KEEPS = hasattr(mmap, "MADV_FREE") and hasattr(mmap, "MADV_HUGEPAGE")


def empty(shape, dtype, order="C"):
    """An array without values, as `numpy.empty`; a large one stands on a waiting block if one fits.

    Raises
    ------
    MemoryError
        As `numpy.empty`.
    """
    dtype = np.dtype(dtype)
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    count = math.prod(shape)
    size = count * dtype.itemsize
    if size < LARGE or not _KEEPS:
        return np.empty(shape, dtype, order)
    block = _taken(size)
    if block is None:
        try:
            block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError:
            release()
            return np.empty(shape, dtype, order)  # which says how much was wanted
        with contextlib.suppress(OSError):  # a system without huge pages
            block.madvise(mmap.MADV_HUGEPAGE)
    numbers = np.frombuffer(block, np.uint8, size)
    weakref.finalize(numbers, _give_back, block).atexit = False
    return numbers.view(dtype).reshape(shape, order=order)


def empty_like(array):
    """`empty` in the shape, the dtype and the order of axes of an array, as `numpy.empty_like`."""
    if array.nbytes < LARGE or array.dtype.hasobject:
        return np.empty_like(array, subok=False)
    axes = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    result = empty([array.shape[axis] for axis in axes], array.dtype)
    return result.transpose(np.argsort(axes))


def release():
    """Give the waiting blocks back to the system now."""
    _waiting.clear()


def _taken(size):
    """The smallest waiting block that fits, or None. Several threads may ask at once: every step is atomic.

    So is `copy`, also without the GIL, where an iteration would fail as soon as another thread takes a block.
    """
    fitting = [block for block in _waiting.copy() if size <= len(block) <= MOST_WASTE * size]
    for block in sorted(fitting, key=len):
        try:
            _waiting.remove(block)
        except ValueError:  # another thread was faster
            continue
        return block
    return None


def _give_back(block):
    with contextlib.suppress(OSError):
        block.madvise(mmap.MADV_FREE)
        _waiting.append(block)
