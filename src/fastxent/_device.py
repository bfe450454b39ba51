"""Arrays on a CUDA device: whose they are, where they lie, and fresh ones from the same library.

An array is one of PyTorch, CuPy or Numba, or of any library with `__cuda_array_interface__`, whose results are Numba's,
or with DLPack alone, whose results are CuPy's. Nothing here goes through NumPy or waits for the device, but for
`item`. Nothing is imported that the caller has not imported.
"""

import functools
import importlib
import itertools
import math
import sys

from . import _checks

__all__ = ["Softmax", "collapsed", "cupy", "elements", "is_device", "library_of"]

REALS = ("float32", "float16", "bfloat16", "float64")
INTEGERS = ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
CUDA = (2, 13)  # DLPack's kinds of device: CUDA, CUDA managed memory
LEGACY_STREAM = 1  # of `__cuda_array_interface__`: the default stream, on which Numba's arrays are worked on


@functools.cache
def _records():
    """The launchers' `Buffer` and `Context`, looked up once: an import statement costs a call 2 microseconds."""
    from ._core_cuda.launch import Buffer, Context

    return Buffer, Context


def _root(x):
    """Name of the library whose array an object is, subclasses among them; else of the module of its type."""
    root = type(x).__module__.partition(".")[0]
    if root not in LIBRARIES and root not in ("numpy", "builtins"):
        for name, kind in ARRAYS.items():
            known = getattr(sys.modules.get(name), kind, None)
            if known is not None and isinstance(x, known):
                return name
    return root


def is_device(x):
    """Whether an object is an array on a CUDA device."""
    root = _root(x)
    if root in ("numpy", "builtins"):
        return False
    if root in LIBRARIES and root != "numba":
        return LIBRARIES[root].owns(x)
    if hasattr(x, "__cuda_array_interface__"):
        return True
    device = getattr(x, "__dlpack_device__", None)
    return device is not None and int(device()[0]) in CUDA


class Library:
    """What the doors need of a library; the methods here serve those that follow NumPy's names, as CuPy does."""

    multiplies = True  # whether it has matrix products,
    adds_products = False  # and `add_product`, which adds one to what is there

    def __init__(self, like):
        self.like = like

    @classmethod
    def owns(cls, x):
        """Whether an array of this library lies on a CUDA device."""
        return True

    def dtype(self, x):
        """Name of an array's dtype."""
        return x.dtype.name

    def given(self, x, name, dtype):
        """An argument as an array of a dtype on the device of the logits; numbers and host arrays are copied there."""
        xp = self.module()
        return xp.asarray(self.own(x, name) if is_device(x) else x, dtype=dtype)

    def own(self, x, name):
        """An array of any library on the device as one of this library, in its dtype; a view where that is one.

        Raises
        ------
        ValueError
            An array on another device than the logits.
        """
        if _root(x) == _root(self.like):
            place, expected = self.place_of(x), self.place_of(self.like)
            if place != expected:
                raise ValueError(
                    f"{name}: expected an array on device {expected}, as logits, got one on {place}"
                )
            return x
        return self.taken(x)

    def place_of(self, x):
        """What names the device of an array of this library."""
        return getattr(x, "device", None)

    def taken(self, x):
        """An array of another library, by DLPack, which knows of streams, or by `__cuda_array_interface__`."""
        xp = self.module()
        return xp.from_dlpack(x) if hasattr(x, "__dlpack__") else xp.asarray(x)

    def broadcast(self, x, shape):
        """A view of a larger shape."""
        return self.module().broadcast_to(x, shape)

    def contiguous(self, x):
        """An array in C order, copied where it is not."""
        return self.module().ascontiguousarray(x)

    def maker(self, shape, dtype):
        """A function of nothing that returns fresh memory."""
        return functools.partial(self.module().empty, shape, dtype=dtype)

    def empty(self, shape, dtype):
        """Fresh memory."""
        return self.maker(shape, dtype)()

    def empty_like(self, x):
        """Fresh memory in the layout of an array."""
        return self.module().empty_like(x)

    def zeros(self, shape, dtype):
        """Fresh memory of zeros."""
        return self.module().zeros(shape, dtype=dtype)

    def filled(self, shape, value, dtype):
        """Fresh memory of one number."""
        x = self.empty(shape, dtype)
        x.fill(value)
        return x

    def item(self, x):
        """The number in an array of one element: waits for the device."""
        return x.item()

    def host(self, x):
        """A copy in memory: waits for the device."""
        return x.get()

    def divided(self, x, y):
        """A number, or an array of one, over an array of one, in float64 and without a copy from memory."""
        x = float(x) if isinstance(x, (int, float)) else self.given(x, "", "float64")
        return x / self.given(y, "grad_loss", "float64")

    def cast(self, x, dtype):
        """An array in a dtype, itself where it is of that."""
        return x.astype(dtype, copy=False)

    def scale(self, x, factor):
        """Multiply an array in place."""
        x *= factor

    def transposed(self, x, axes):
        """A view with the axes in another order."""
        return x.transpose(axes)

    def one_hot(self, labels, n_classes, axis, dtype):
        """1 where a class is the label, 0 elsewhere, the classes on an axis of their own."""
        xp = self.module()
        shape = [-1 if i == axis else 1 for i in range(len(labels.shape) + 1)]
        codes = xp.arange(n_classes).reshape(shape)
        return self.cast(labels[(slice(None),) * axis + (None,)] == codes, dtype)

    def matmul(self, a, b, out):
        """Put a b into `out`."""
        self.module().matmul(a, b, out=out)

    def summed(self, x, dtype):
        """Sums over the rows, in a dtype."""
        return x.sum(axis=0, dtype=dtype)

    def buffer(self, x):
        """Where an array lies, as the launchers take it."""
        itemsize = x.dtype.itemsize
        address = self.address(x)
        strides = x.strides or ()
        return _records()[0](
            address, address, tuple(x.shape), tuple(s // itemsize for s in strides), self.dtype(x), x
        )

    def place(self, x):
        """(layout, address); an array of an equal layout can take the other's place in a launch."""
        address = self.address(x)
        return (x.shape, x.strides, x.dtype, address % 16), address

    def context(self):
        """The current stream, and scratch memory."""
        return _records()[1](self.stream(), lambda shape, dtype: self.buffer(self.empty(shape, dtype)))


@functools.cache
def _stream(pointer, device):
    """Numba's name for a stream of another library."""
    from numba import cuda

    return cuda.external_stream(pointer) if pointer else 0


def _same_device(of_array, current):
    if of_array != current:
        raise ValueError(
            f"logits: expected an array on the current device, {current}, got one on device {of_array}"
        )


class CuPy(Library):
    """CuPy's arrays, on CuPy's current stream."""

    @staticmethod
    def module():
        return sys.modules["cupy"]

    def address(self, x):
        return x.data.ptr

    def stream(self):
        cuda = self.module().cuda
        _same_device(self.like.device.id, cuda.runtime.getDevice())
        return _stream(cuda.get_current_stream().ptr, self.like.device.id)


@functools.cache
def _torch_name(dtype):
    return str(dtype).rpartition(".")[2]


class Torch(Library):
    """PyTorch's tensors, on PyTorch's current stream; gradients do not flow through."""

    @staticmethod
    def module():
        return sys.modules["torch"]

    @classmethod
    def owns(cls, x):
        return bool(getattr(x, "is_cuda", False))

    def _dtype(self, name):
        return getattr(self.module(), name)

    def dtype(self, x):
        return _torch_name(x.dtype)

    def given(self, x, name, dtype):
        x = self.own(x, name) if is_device(x) else x
        return self.module().as_tensor(x, dtype=self._dtype(dtype), device=self.like.device).detach()

    def taken(self, x):
        torch = self.module()
        return (
            torch.from_dlpack(x) if hasattr(x, "__dlpack__") else torch.as_tensor(x, device=self.like.device)
        )

    def broadcast(self, x, shape):
        return x.expand(shape)

    def contiguous(self, x):
        return x.contiguous()

    def maker(self, shape, dtype):
        return functools.partial(
            self.module().empty, shape, dtype=self._dtype(dtype), device=self.like.device
        )

    def host(self, x):
        return x.detach().cpu().numpy()

    def empty_like(self, x):
        return self.module().empty_like(x.detach())

    def address(self, x):
        return x.data_ptr()

    def place(self, x):
        address = x.data_ptr()
        return (x.shape, x.stride(), x.dtype, x.get_device(), address % 16), address

    def zeros(self, shape, dtype):
        return self.module().zeros(shape, dtype=self._dtype(dtype), device=self.like.device)

    def filled(self, shape, value, dtype):
        return self.module().full(shape, value, dtype=self._dtype(dtype), device=self.like.device)

    def transposed(self, x, axes):
        return x.permute(tuple(axes))

    def one_hot(self, labels, n_classes, axis, dtype):
        shape = [-1 if i == axis else 1 for i in range(labels.dim() + 1)]
        codes = self.module().arange(n_classes, device=labels.device).reshape(shape)
        return (labels.unsqueeze(axis) == codes).to(self._dtype(dtype))

    adds_products = True

    def cast(self, x, dtype):
        return x.to(self._dtype(dtype))

    def add_product(self, a, b, out):
        """Add a b to `out`."""
        out.addmm_(a, b)

    def summed(self, x, dtype):
        return x.sum(0, dtype=self._dtype(dtype))

    def buffer(self, x):
        address = x.data_ptr()
        return _records()[0](address, address, tuple(x.shape), x.stride(), _torch_name(x.dtype), x)

    def stream(self):
        cuda, device = self.module().cuda, self.like.device
        _same_device(device.index, cuda.current_device())
        return _stream(cuda.current_stream(device).cuda_stream, device.index)


class Numba(Library):
    """Numba's device arrays, and anything with `__cuda_array_interface__`, on the default stream.

    Arrays have to come in the dtype that is needed; weights in the shape of the rows.
    """

    multiplies = False

    @staticmethod
    def module():
        return importlib.import_module("numba.cuda")

    def dtype(self, x):
        return self.module().as_cuda_array(x, sync=False).dtype.name

    def given(self, x, name, dtype):
        if not is_device(x):
            import numpy as np

            return self.module().to_device(np.ascontiguousarray(x, dtype=dtype))
        x = self.module().as_cuda_array(x, sync=False)
        if x.dtype.name != dtype:
            raise TypeError(f"{name}: expected dtype {dtype}, got {x.dtype}")
        return x

    def own(self, x, name):
        if not hasattr(x, "__cuda_array_interface__"):
            raise TypeError(
                f"{name}: expected an array with __cuda_array_interface__, as logits, got {type(x).__name__}"
            )
        return x

    def ready(self, given):
        """Make the default stream wait for the one that an interface names, where the array may be worked on."""
        stream = given.get("stream")
        if stream not in (None, LEGACY_STREAM):
            cuda = self.module()
            event = cuda.event(timing=False)
            event.record(cuda.external_stream(stream))
            event.wait()

    def broadcast(self, x, shape):
        raise ValueError(f"expected the shape {shape}, got {x.shape}; Numba's arrays do not broadcast")

    def contiguous(self, x):
        if not x.is_c_contiguous():
            raise ValueError("expected an array in C order; Numba's arrays cannot be copied into one")
        return x

    def maker(self, shape, dtype):
        return functools.partial(self.module().device_array, shape, dtype)

    def empty_like(self, x):
        x = self.module().as_cuda_array(x, sync=False)
        return self.module().device_array(x.shape, x.dtype)

    def zeros(self, shape, dtype):
        import numpy as np

        return self.module().to_device(np.zeros(shape, dtype))

    def filled(self, shape, value, dtype):
        import numpy as np

        return self.module().to_device(np.full(shape, value, dtype))

    def item(self, x):
        return x.copy_to_host().reshape(-1)[0].item()

    def host(self, x):
        return x.copy_to_host()

    def scale(self, x, factor):
        raise TypeError(
            "expected arrays of CuPy or PyTorch: a base with one loss per row, and hvp of elementwise losses, multiply "
            "arrays, which Numba's have no operators for"
        )

    def divided(self, x, y):
        raise TypeError("grad_loss: expected a number, or one per row, with arrays of Numba")

    def address(self, x):
        return x.__cuda_array_interface__["data"][0]

    def place(self, x):
        given = x.__cuda_array_interface__
        self.ready(given)
        address = given["data"][0]
        kind = given["shape"], given.get("strides"), given["typestr"], given.get("mask")
        return (*kind, address % 16), address

    def buffer(self, x):
        self.ready(x.__cuda_array_interface__)
        return super().buffer(self.module().as_cuda_array(x, sync=False))._replace(owner=x)

    def stream(self):
        return 0


LIBRARIES = {"torch": Torch, "cupy": CuPy, "numba": Numba}
ARRAYS = {"torch": "Tensor", "cupy": "ndarray"}  # types of which there are subclasses elsewhere


def cupy():
    """CuPy, for what computes on a device with more than the kernels.

    Raises
    ------
    ImportError
        Without it; the message says what to install.
    """
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        raise ImportError(
            "backend='cuda' needs CuPy for the matrix products of an estimator: pip install 'fastxent[cupy]' "
            f"({error})"
        ) from error


def library_of(x, name="logits"):
    """(library, array): the library that fresh arrays come from, and the array as one of its own.

    Raises
    ------
    TypeError
        An array that only DLPack can reach, and no CuPy to reach it with.
    """
    root = _root(x)
    if root in LIBRARIES:
        return LIBRARIES[root](x), x
    if hasattr(x, "__cuda_array_interface__"):
        return Numba(x), x
    if "cupy" in sys.modules:
        x = sys.modules["cupy"].from_dlpack(x)
        return CuPy(x), x
    raise TypeError(
        f"{name}: {type(x).__name__} is on a CUDA device and only DLPack reaches it: import cupy, or pass "
        "torch.from_dlpack(array) or cupy.from_dlpack(array)"
    )


# ------------------------------------------------------------------------------------------------------------- layouts


def collapsed(shape, strides):
    """(size, stride) of dimensions that can be walked as one, or None."""
    dims = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1]
    if 0 in shape or not dims:
        return math.prod(shape), 1
    for (_, outer), (n, inner) in itertools.pairwise(dims):
        if outer != n * inner:
            return None
    return math.prod(shape), dims[-1][1]


def _split(buffer, *cuts):
    """A buffer whose dimensions are collapsed between the cuts, or None."""
    shape, strides = [], []
    start = 0
    for stop in (*cuts, len(buffer.shape)):
        if stop - start == 1:
            n = buffer.shape[start]
            part = n, buffer.strides[start] if n > 1 else 1
        else:
            part = collapsed(buffer.shape[start:stop], buffer.strides[start:stop])
            if part is None:
                return None
        shape.append(part[0])
        strides.append(part[1])
        start = stop
    pointer, address, _, _, dtype, owner = buffer
    return type(buffer)(pointer, address, tuple(shape), tuple(strides), dtype, owner)


def laid_out(library, x, *cuts):
    """An array as a buffer cut into groups of dimensions, in place where its strides allow it, else a copy."""
    cut = _split(library.buffer(x), *cuts)
    return _split(library.buffer(library.contiguous(x)), *cuts) if cut is None else cut


def output(library, out, like):
    """A caller's gradient array, checked, or a fresh one."""
    if out is None:
        return library.empty_like(like)
    if not is_device(out) or _root(out) != _root(like):
        raise TypeError(
            f"out: expected an array on the device and of the library of logits, got {type(out).__name__}"
        )
    library.own(out, "out")
    if tuple(out.shape) != tuple(like.shape):
        raise ValueError(f"out: expected shape {tuple(like.shape)}, got {tuple(out.shape)}")
    if library.dtype(out) != library.dtype(like):
        raise TypeError(f"out: expected dtype {library.dtype(like)}, got {library.dtype(out)}")
    return out


def real_dtype(library, x, name):
    """dtype of logits, which has to be one of the four floating-point types."""
    dtype = library.dtype(x)
    if dtype not in REALS:
        raise TypeError(f"{name}: expected float32, float16, bfloat16 or float64, got dtype {dtype}")
    return dtype


def compute_dtype(dtype):
    """Arithmetic's dtype."""
    return "float64" if dtype == "float64" else "float32"


def weights(library, x, name, shape, dtype):
    """Weights as an array of a shape in the arithmetic's dtype, or None."""
    if x is None:
        return None
    x = library.given(x, name, dtype)
    if tuple(x.shape) == tuple(shape):
        return x
    try:
        return library.broadcast(x, shape)
    except (ValueError, RuntimeError):
        raise ValueError(
            f"{name}: expected a shape that broadcasts to {tuple(shape)}, got {tuple(x.shape)}"
        ) from None


_constants = {}
MOST_CONSTANTS = 256  # beyond, all are forgotten


def constant(library, x, name, dtype):
    """`Library.given`, for the numbers of a loss object: copied from memory, which waits, for the first call alone."""
    if type(x) is not tuple:
        return library.given(x, name, dtype)
    key = type(library), str(library.place_of(library.like)), library.stream(), dtype, x
    if key not in _constants:
        if len(_constants) >= MOST_CONSTANTS:
            _constants.clear()
        _constants[key] = library.given(x, name, dtype)
    return _constants[key]


def per_class(library, x, name, n_classes, dtype):
    """Contiguous numbers (n_classes,), or None."""
    if x is None:
        return None
    x = library.contiguous(constant(library, x, name, dtype))
    if tuple(x.shape) != (n_classes,):
        raise ValueError(f"{name}: expected shape ({n_classes},), one number per class, got {tuple(x.shape)}")
    return library.buffer(x)


class Softmax:
    """Logits and targets as the launchers take them: (outer, classes, inner), labels (outer, inner)."""

    def __init__(self, logits, targets, axis):
        self.library, self.source = library, logits = library_of(logits)
        shape = tuple(logits.shape)
        if not shape:
            raise ValueError("logits: expected at least one dimension, the classes, got a scalar")
        self.storage = real_dtype(library, logits, "logits")
        self.dtype = compute_dtype(self.storage)
        self.axis = axis = _checks.axis_of(axis, len(shape))
        self.n_classes = shape[axis]
        if self.n_classes == 0:
            raise ValueError(f"logits: expected at least one class, got shape {shape} with axis {axis}")
        self.row_shape = shape[:axis] + shape[axis + 1 :]
        self.logits = laid_out(library, logits, axis, axis + 1)
        if not is_device(targets):
            raise TypeError(
                f"targets: expected an array on the device, as logits, got {type(targets).__name__}"
            )
        given = tuple(targets.shape)
        targets = library.own(targets, "targets")
        kind = library.dtype(targets)
        self.soft = given == shape
        if self.soft:
            y = library.given(targets, "targets", self.dtype)
            self.targets = laid_out(library, y, axis, axis + 1)
        elif given == self.row_shape:
            if kind not in INTEGERS:
                raise TypeError(f"targets: expected integer or bool labels, got dtype {kind}")
            self.targets = laid_out(library, targets, axis)
            if self.targets.shape[1] == 1 and self.targets.shape[0] > 1 and self.targets.strides[0] != 1:
                self.targets = laid_out(library, library.contiguous(targets), axis)
        else:
            raise ValueError(
                f"targets: expected integer labels of shape {self.row_shape} or probabilities of shape {shape}, "
                f"got shape {given}"
            )

    @property
    def n_rows(self):
        """Number of rows."""
        return math.prod(self.row_shape)

    def rows(self, x):
        """An array of the rows' shape as (outer, inner)."""
        return None if x is None else laid_out(self.library, x, self.axis)

    def layers(self, x):
        """An array of the logits' shape as (outer, classes, inner), in place, or None where its strides forbid it."""
        return layers(self.library, x, self.axis)


def layers(library, x, axis):
    """An array as a buffer (outer, classes, inner), in place, or None where its strides forbid it."""
    return _split(library.buffer(x), axis, axis + 1)


def elements(library, arrays, shape):
    """Arrays of one shape as buffers of two axes: one row where all can be walked as one, else the last axis apart."""
    buffers = [None if x is None else library.buffer(x) for x in arrays]
    flat = [None if b is None else collapsed(b.shape, b.strides) for b in buffers]
    if all(b is None or f is not None for b, f in zip(buffers, flat, strict=True)):
        n = math.prod(shape)
        steps = [1 if f is None or f[0] <= 1 else f[1] for f in flat]
        return [
            b if b is None else b._replace(shape=(1, n), strides=(n * step, step))
            for b, step in zip(buffers, steps, strict=True)
        ]
    cut = max(len(shape) - 1, 0)
    return [None if x is None else laid_out(library, x, cut) for x in arrays]
