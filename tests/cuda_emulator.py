"""CUDA kernels without CUDA: Numba's simulator with the parts that it lacks.

Numba's simulator has no warp operations, copies every argument (so that nothing can alias) and polls. Here the kernels
of `fastxent._core_cuda` run as plain Python, a thread of the operating system per CUDA thread, over pointers that check
bounds and alignment: reading past an array, a 16-byte load off a 16-byte boundary or a barrier that not everybody
reaches raises. What it cannot see: rounding of fused operations in another order, races within a warp, speed.

`install()` has to run before `fastxent._core_cuda` is imported, in a process of its own with NUMBA_ENABLE_CUDASIM=1.
"""

from __future__ import annotations

import os
import sys
import threading
import types as namespaces

import ml_dtypes
import numpy as np

PATIENCE = 5.0  # seconds after which who waits looks whether anybody is left to come


class Pointer(int):
    """What an address is to a kernel: the elements from some place of an array on."""

    def __new__(cls, memory, offset=0):
        self = super().__new__(cls, memory.ctypes.data + int(offset) * memory.itemsize)
        self.memory, self.offset = memory, int(offset)
        return self

    def _at(self, index):
        at = self.offset + int(index)
        if not 0 <= at < len(self.memory):
            raise IndexError(f"element {at} of an array of {len(self.memory)}")
        return at

    def __getitem__(self, index):
        return self.memory[self._at(index)]

    def __setitem__(self, index, value):
        self.memory[self._at(index)] = value

    def words(self, index):
        """Sixteen bytes as four words."""
        at = self._at(index)
        if (self + int(index) * self.memory.itemsize) % 16:
            raise ValueError("16-byte access off a 16-byte boundary")
        many = 16 // self.memory.itemsize
        self._at(int(index) + many - 1)
        return self.memory[at : at + many].view(np.uint32)


def stand_ins():
    """The intrinsics in NumPy."""
    module = namespaces.ModuleType("fastxent._core_cuda.intrinsics")

    def store16(pointer, index, words):
        pointer.words(index)[:] = words

    def exp2(x):
        y = np.exp2(np.float32(x))
        return np.float32(0) if y < np.float32(2.0**-126) else y

    def raise_to(pointer, value):
        with _lock:
            pointer[0] = max(pointer[0], value)

    def half(word):
        return np.float32(np.uint16(int(word) & 0xFFFF).view(np.float16))

    def pair(dtype):
        def pack(low, high):
            bits = [int(np.float32(x).astype(dtype).view(np.uint16)) for x in (low, high)]
            return np.uint32(bits[0] | bits[1] << 16)

        return pack

    vars(module).update(
        load16=lambda pointer, index: tuple(pointer.words(index).copy()),
        store16=store16,
        advance=lambda pointer, count: Pointer(pointer.memory, pointer.offset + int(count)),
        beyond_boundary=lambda pointer, index: (pointer + int(index) * pointer.memory.itemsize) % 16,
        raise_to=raise_to,
        as_float=lambda word: np.uint32(word).view(np.float32),
        as_word=lambda value: np.float32(value).view(np.uint32),
        low_float16=half,
        high_float16=lambda word: half(int(word) >> 16),
        float16_pair=pair(np.float16),
        bfloat16_pair=pair(ml_dtypes.bfloat16),
        exp2=exp2,
        fmax=lambda x, y: np.fmax(np.float32(x), np.float32(y)),
        fma=lambda x, y, z: np.float32(np.float64(x) * np.float64(y) + np.float64(z)),
        divide=lambda x, y: np.float32(x) / np.float32(y),
        quotient=lambda a, b: int(np.uint32(a) // np.uint32(b)),
    )
    return module


_lock = threading.Lock()
MATH = namespaces.SimpleNamespace(
    exp=np.exp, expm1=np.expm1, log=np.log, log1p=np.log1p, log2=np.log2, inf=np.inf, nan=np.nan, e=np.e
)


class Barrier:
    """A barrier of some threads of a block, broken when all threads of the block wait.

    No clock decides: a process that is stopped for minutes goes on as if nothing had been.
    """

    def __init__(self, block, size):
        self.block, self.size = block, size
        self.condition = threading.Condition()
        self.waiting = self.turn = 0
        self.broken = False

    def wait(self):
        with self.condition:
            turn = self.turn
            self.waiting += 1
            if self.waiting == self.size:
                self.waiting = 0
                self.turn += 1
                self.condition.notify_all()
            while turn == self.turn and not self.broken:
                if not self.condition.wait(PATIENCE) and self.block.stuck():
                    self.broken = True
            if turn == self.turn:
                raise threading.BrokenBarrierError

    def abort(self):
        with self.condition:
            self.broken = True
            self.condition.notify_all()


class Block:
    """Barriers and shared memory of a running block."""

    def __init__(self, threads):
        self.threads = self.alive = threads
        self.barrier = Barrier(self, threads)
        self.barriers = [self.barrier]
        self.shared, self.groups = {}, {}

    def group(self, warp, mask):
        """(barrier, slots for two exchanges) of the lanes of a mask."""
        with _lock:
            if (warp, mask) not in self.groups:
                lanes = [i for i in range(32) if mask >> i & 1 and 32 * warp + i < self.threads]
                self.barriers.append(Barrier(self, len(lanes)))
                self.groups[warp, mask] = self.barriers[-1], ({}, {})
            return self.groups[warp, mask]

    def stuck(self):
        """Whether every thread that has not ended waits; if no barrier opens while they are counted, they do."""
        barriers = list(self.barriers)
        turns = [barrier.turn for barrier in barriers]
        waiting = sum(barrier.waiting for barrier in barriers)
        return waiting == self.alive and turns == [barrier.turn for barrier in barriers]

    def abort(self):
        for barrier in list(self.barriers):
            barrier.abort()


class Thread(threading.Thread):
    """A CUDA thread."""

    def __init__(self, block, index, place, grid, function, arguments):
        super().__init__(daemon=True)
        self.block, self.index, self.place, self.grid = block, index, place, grid
        self.function, self.arguments = function, arguments
        self.exchanges, self.error = {}, None

    def run(self):
        try:
            with np.errstate(all="ignore"):
                self.function(*self.arguments)
        except BaseException as error:  # a failed thread is the launch's failure
            self.error = error
            self.block.abort()
        finally:
            with _lock:
                self.block.alive -= 1


def _xyz(*numbers):
    return namespaces.SimpleNamespace(**dict(zip("xyz", (*map(np.int32, numbers), 1, 1, 1), strict=False)))


class Device:
    """The module `numba.cuda` as a kernel sees it."""

    threadIdx = property(lambda self: _xyz(threading.current_thread().index))
    blockIdx = property(lambda self: _xyz(*threading.current_thread().place))
    blockDim = property(lambda self: _xyz(threading.current_thread().block.threads))
    gridDim = property(lambda self: _xyz(*threading.current_thread().grid))

    def __init__(self):
        self.local = namespaces.SimpleNamespace(array=self._local)
        self.shared = namespaces.SimpleNamespace(array=self._shared)

    @staticmethod
    def _poisoned(shape, dtype):
        dtype = np.dtype(str(dtype))
        return np.full(shape, np.nan if dtype.kind == "f" else 0xDEAD, dtype)

    def _local(self, shape, dtype):
        return self._poisoned(shape, dtype)

    def _shared(self, shape, dtype):
        frame = sys._getframe(1)
        key = frame.f_code.co_filename, frame.f_lineno
        block = threading.current_thread().block
        with _lock:
            if key not in block.shared:
                block.shared[key] = self._poisoned(shape, dtype)
            return block.shared[key]

    def syncthreads(self):
        threading.current_thread().block.barrier.wait()

    def shfl_xor_sync(self, mask, value, other):
        thread = threading.current_thread()
        warp, lane = divmod(thread.index, 32)
        mask = int(mask)
        if not mask >> lane & 1:
            raise ValueError("a shuffle whose mask leaves out its caller")
        barrier, slots = thread.block.group(warp, mask)
        turn = thread.exchanges[mask] = 1 - thread.exchanges.get(mask, 0)
        slots[turn][lane] = value
        barrier.wait()
        return slots[turn][lane ^ int(other)]

    def jit(self, signature=None, device=False, **options):
        if device:
            return lambda function: function
        return lambda function: Kernel(function, signature)


class Kernel:
    """A kernel of an explicit signature, which its scalars are cast to."""

    launches = 0

    def __init__(self, function, signature):
        self.function, self.signature = function, signature
        self.casts = [
            (lambda value: value)
            if str(kind).endswith("*")
            else bool
            if str(kind) in ("bool", "boolean")
            else np.dtype(str(kind)).type
            for kind in signature
        ]

    def __getitem__(self, configuration):
        grid, threads, _ = configuration
        grid = grid if isinstance(grid, tuple) else (grid,)

        def launch(*values):
            arguments = [cast(value) for cast, value in zip(self.casts, values, strict=True)]
            Kernel.launches += 1
            for place in np.ndindex(*grid):
                block = Block(threads)
                running = [
                    Thread(block, index, place, grid, self.function, arguments) for index in range(threads)
                ]
                for thread in running:
                    thread.start()
                for thread in running:
                    thread.join()
                errors = [thread.error for thread in running if thread.error is not None]
                errors.sort(key=lambda error: isinstance(error, threading.BrokenBarrierError))
                if errors:
                    raise errors[0]

        launch.pointers = sum(str(kind).endswith("*") for kind in self.signature)
        return launch


def install():
    """Put the emulator in CUDA's place; returns the module of launchers, with blocks small enough for Python."""
    if os.environ.get("NUMBA_ENABLE_CUDASIM") != "1":
        raise RuntimeError("the emulator needs a process of its own with NUMBA_ENABLE_CUDASIM=1")
    import numba

    threading.stack_size(256 * 1024)
    numba.cuda = sys.modules["numba.cuda"] = Device()
    sys.modules["fastxent._core_cuda.intrinsics"] = on = stand_ins()
    import fastxent._core_cuda

    fastxent._core_cuda.intrinsics = on
    from fastxent._core_cuda import host, launch

    for name, module in list(sys.modules.items()):
        if name.startswith("fastxent._core_cuda.") and hasattr(module, "math") and module is not launch:
            module.math = MATH
    host.Host.device = lambda self, array: copied(launch, array)
    launch.SIZES = launch.Sizes(
        tile=32, neighbours=32, blocks=(64,), stream=32, chunk=256, chunk_threads=32, few_rows=0, totals=32
    )
    return launch


def flat(array):
    """The memory from an array's first element to its last, as one dimension."""
    span = 1 + sum((n - 1) * s for n, s in zip(array.shape, array.strides, strict=True)) // array.itemsize
    return np.lib.stride_tricks.as_strided(array, (span if array.size else 0,), (array.itemsize,))


def buffer(launch, array):
    """A NumPy array as a device buffer; 16-bit floats as their bits."""
    name = array.dtype.name
    memory = flat(array.view(np.uint16) if name in ("float16", "bfloat16") else array)
    if name == "bool":
        memory = memory.view(np.uint8)
    pointer = Pointer(memory)
    strides = tuple(s // array.itemsize for s in array.strides)
    return launch.Buffer(pointer, int(pointer), array.shape, strides, name, array)


class Copy:
    """Memory of the device, as `host` knows it."""

    def __init__(self, array):
        self.array = array

    def copy_to_host(self):
        return self.array


def copied(launch, array):
    """A copy of an array on the device, as `Host.device` makes it."""
    array = np.array(array, order="C")
    return buffer(launch, array)._replace(owner=Copy(array))


def context(launch):
    """Scratch memory that begins as NaN."""

    def empty(shape, dtype):
        return buffer(launch, np.full(shape, np.nan if dtype.startswith("float") else 0, np.dtype(dtype)))

    return launch.Context(None, empty)
