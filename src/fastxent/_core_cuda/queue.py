"""Kernels, compiled once for each combination of types and constants, and their place in a stream.

Numba's own launch takes 4 microseconds an argument and a kernel here has thirty. So it makes the first launch of a
configuration only; the later ones write all arguments into one block of memory, whose addresses the driver has known
since, and call the driver. Whatever the driver refuses goes through Numba once more, which knows what to do about a
thread without a context or a second device, and how to report the rest.
"""

import ctypes
import functools
import struct
import threading
import warnings

from numba import cuda, types

from .storage import STORAGES

__all__ = ["run"]


@functools.cache
def compiled(make, arguments, kinds, threads):
    """The kernel `make(*arguments)` for the argument types `kinds[0](*kinds[1:])`.

    Types and storages go by the names that they follow from: numba's types hash slowly.
    """
    arguments = tuple(STORAGES.get(a, a) if isinstance(a, str) else a for a in arguments)
    signature, *names = kinds
    return cuda.jit(signature(*names), launch_bounds=(threads,))(make(*arguments))


@functools.lru_cache(maxsize=1024)
def configured(make, arguments, kinds, grid, threads, stream):
    """A kernel with its grid and stream, to be called with its arguments."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # small grids are what small arrays need
        launch = compiled(make, arguments, kinds, threads)[grid, threads, stream]
    if getattr(cuda, "implementation", None) != "NVIDIA":
        return launch
    signature, *names = kinds
    return _Direct(launch, signature(*names), grid, threads)


def run(make, arguments, kinds, grid, threads, context, values):
    """Queue one launch on the context's stream."""
    launch = configured(make, arguments, kinds, grid, threads, context.stream)
    launch(*values)
    if context.record is not None:
        context.record(launch, values)


@functools.cache
def _driver():
    """The driver's function, and what its handles are made with."""
    from cuda.bindings import driver

    return driver.cuLaunchKernel, driver.CUfunction, driver.CUstream


def _code(kind):
    """Format of an argument, as `struct` names it."""
    if isinstance(kind, types.CPointer):
        return "Q"
    if isinstance(kind, types.Boolean):
        return "?"
    if isinstance(kind, types.Float):
        return "f" if kind.bitwidth == 32 else "d"
    letter = {8: "b", 16: "h", 32: "i", 64: "q"}[kind.bitwidth]
    return letter if kind.signed else letter.upper()


class _Direct:
    """A configured kernel whose launches after the first go to the driver with a block of arguments.

    Parameters
    ----------
    launch : numba's configured kernel
    signature : tuple of numba types, the pointers first
    grid : int or tuple
    threads : int

    Attributes
    ----------
    pointers : int
        How many of the arguments are addresses.
    """

    def __init__(self, launch, signature, grid, threads):
        self._launch = launch
        self.pointers = sum(isinstance(kind, types.CPointer) for kind in signature)
        codes = [_code(kind) for kind in signature]
        self._pack = struct.Struct("@" + "".join(codes)).pack_into
        offsets, end = [], ""
        for code in codes:
            end += code
            offsets.append(struct.calcsize("@" + end) - struct.calcsize("@" + code))
        self._block = ctypes.create_string_buffer(struct.calcsize("@" + end))
        base = ctypes.addressof(self._block)
        self._addresses = (ctypes.c_void_p * len(codes))(*(base + offset for offset in offsets))
        grid = grid if isinstance(grid, tuple) else (grid,)
        self._shape = (*(*grid, 1, 1)[:3], threads, 1, 1, 0)
        self._lock = threading.Lock()  # of the block, between its filling and the driver's copy of it
        self._call = self._handles = None

    def __call__(self, *values):
        if self._call is not None:
            try:
                with self._lock:
                    self._pack(self._block, 0, *values)
                    (status,) = self._call(*self._handles)
                if status == 0:
                    return
            except (OverflowError, struct.error):
                pass  # a number that its type does not hold: Numba makes an infinity of it, or cuts it
        self._launch(*values)
        if self._call is None:
            self._bind()

    def _bind(self):
        """Take the handles of what Numba has loaded."""
        call, function, stream = _driver()
        (overload,) = self._launch.dispatcher.overloads.values()
        kernel = function(int(overload._codelibrary.get_cufunc().handle))
        where = stream(int(self._launch.stream.handle))
        self._handles = (kernel, *self._shape, where, ctypes.addressof(self._addresses), 0)
        self._call = call
