"""The kernels on NumPy arrays: copied to the device, and the results back, each call anew.

The bus is a hundred times slower than the device's memory, so this serves to try the kernels and to test them; arrays
that live on the device come in through the doors of the losses, which copy nothing.
"""

import numpy as np
from numba import cuda

from . import launch

__all__ = ["Host"]


class Host:
    """Device copies of a call's arrays; `fetch` brings back what the kernels filled."""

    def __init__(self):
        self.outs = []
        self.context = launch.Context(0, lambda shape, dtype: self.device(np.empty(shape, np.dtype(dtype))))

    def device(self, array):
        """A device buffer with the contents of a contiguous array; 16-bit floats travel as their bits."""
        bits = array.view(np.uint16) if array.dtype.name in ("float16", "bfloat16") else array
        memory = cuda.to_device(bits)
        address = memory.device_ctypes_pointer.value or 0
        strides = tuple(s // array.itemsize for s in array.strides)
        return launch.Buffer(address, address, array.shape, strides, array.dtype.name, memory)

    def take(self, array, dtype=None):
        """A device copy, or None."""
        return None if array is None else self.device(np.ascontiguousarray(array, dtype=dtype))

    def give(self, array):
        """A device buffer that `fetch` copies into `array`, or None."""
        if array is None:
            return None
        buffer = self.device(np.empty(array.shape, array.dtype))
        self.outs.append((array, buffer))
        return buffer

    def flag(self):
        """An int64 of 0."""
        return self.device(np.zeros(1, np.int64))

    def number(self, buffer):
        """The first number of a buffer."""
        return buffer.owner.copy_to_host()[0].item()

    def total(self, partials):
        """Sum of the partial sums."""
        if partials.shape[0] == 0:
            return 0.0
        out = self.context.empty((1,), "float64")
        launch.combine(self.context, partials, out, 1.0, None, 0.0)
        return self.number(out)

    def fetch(self):
        """Copy the results to where they belong."""
        for array, buffer in self.outs:
            array[...] = buffer.owner.copy_to_host().view(array.dtype).reshape(array.shape)
