"""A CUDA device in memory: `_core_numpy` behind the launchers, and arrays as strict as CuPy's.

Whoever takes an array of the device to NumPy unasked, or mixes the two, gets CuPy's TypeError. Buffers are addresses,
as on a device, so PyTorch's tensors in memory can stand in for those on one. `install(monkeypatch)` does it all; it
needs neither Numba nor CuPy.
"""

from __future__ import annotations

import ctypes
import math
import sys
import types
from typing import NamedTuple

import numpy as np

from fastxent import _backend, _checks, _core_numpy, _device
from fastxent.losses._binary import focal_upper

# What the package may use of CuPy. CuPy 14 has them all, with these arguments.
FUNCTIONS = """abs add arange argmax ascontiguousarray broadcast_to concatenate copyto divide dot einsum empty
empty_like exp eye full full_like isfinite matmul maximum minimum multiply negative norm ones sign sqrt square subtract
sum take tanh vdot where zeros zeros_like"""
FUNCTIONS = tuple(FUNCTIONS.split())
UFUNCS = {"abs": "absolute"}


class Array(np.lib.mixins.NDArrayOperatorsMixin):
    """An array of the device: NumPy's, but never NumPy's by accident."""

    __hash__ = None
    __array_priority__ = 100

    def __init__(self, memory):
        self.memory = memory

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **kwargs):
        if method != "__call__" or ufunc.__name__ not in (*FUNCTIONS, *UFUNCS.values(), *OPERATORS):
            raise TypeError(f"{ufunc.__name__}.{method}: CuPy has no such function")
        if out:
            kwargs["out"] = tuple(map(_in, out))
        result = ufunc(*map(_in, inputs), **kwargs)
        return out[0] if out else _out(result)

    def __array_function__(self, function, kinds, args, kwargs):
        if function.__name__ == "array":
            return put(*args, **kwargs)
        if function.__name__ == "asarray":
            return _placed(*args, **kwargs)
        if function.__name__ not in FUNCTIONS:
            raise TypeError(f"{function.__name__}: CuPy has no such function")
        return _out(function(*map(_in, args), **{name: _in(x) for name, x in kwargs.items()}))

    shape = property(lambda self: self.memory.shape)
    strides = property(lambda self: self.memory.strides)
    dtype = property(lambda self: self.memory.dtype)
    ndim = property(lambda self: self.memory.ndim)
    size = property(lambda self: self.memory.size)
    T = property(lambda self: Array(self.memory.T))
    data = property(lambda self: types.SimpleNamespace(ptr=self.memory.ctypes.data))
    device = property(lambda self: types.SimpleNamespace(id=0))

    def get(self):
        """A copy in memory, as CuPy's method of the name."""
        return self.memory.copy()

    def __len__(self):
        return len(self.memory)

    def __float__(self):
        return float(self.memory)

    def __int__(self):
        return int(self.memory)

    def __bool__(self):
        return bool(self.memory)

    def __getitem__(self, at):
        return _out(self.memory[_in(at)])

    def __setitem__(self, at, value):
        self.memory[_in(at)] = _in(value)


OPERATORS = """less less_equal greater greater_equal equal not_equal invert logical_not power floor_divide bitwise_and
bitwise_or bitwise_xor left_shift right_shift"""
OPERATORS = tuple(OPERATORS.split())


def _in(x):
    if isinstance(x, Array):
        return x.memory
    if isinstance(x, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    return type(x)(map(_in, x)) if type(x) in (list, tuple) else x


def _out(x):
    return Array(np.asarray(x)) if isinstance(x, (np.ndarray, np.generic)) else x


def _method(name):
    return lambda self, *args, **kwargs: _out(getattr(self.memory, name)(*map(_in, args), **kwargs))


for _name in (
    "all",
    "any",
    "argmax",
    "copy",
    "fill",
    "item",
    "max",
    "mean",
    "min",
    "ravel",
    "reshape",
    "sum",
    "transpose",
):
    setattr(Array, _name, _method(_name))
Array.astype = lambda self, dtype, copy=True: Array(self.memory.astype(dtype, copy=copy))
Array.item = lambda self: self.memory.item()
Array.__module__ = "cupy"
Array.__name__ = "ndarray"


def put(x, dtype=None):
    """An array of the device with the contents of one in memory."""
    return Array(np.array(_in(x) if isinstance(x, Array) else x, dtype=dtype))


def get(x):
    """An array of the device, or a tensor that stands for one, in memory."""
    return x.get() if isinstance(x, Array) else x.numpy()


def cupy():
    """A module of CuPy's functions."""
    module = types.ModuleType("cupy")
    for name in FUNCTIONS:
        function = getattr(np, name, None) or getattr(np.linalg, name)

        def wrapped(*args, function=function, **kwargs):
            kwargs = {key: _in(x) for key, x in kwargs.items()}
            return _out(function(*map(_in, args), **kwargs))

        setattr(module, name, wrapped)
    module.empty = lambda shape, dtype=float: Array(_poisoned(shape, dtype))
    module.empty_like = lambda x, dtype=None: Array(_poisoned(x.shape, dtype or x.dtype))
    module.asarray = _placed
    module.asnumpy = get
    module.ndarray = Array
    stream = types.SimpleNamespace(ptr=0)
    runtime = types.SimpleNamespace(getDevice=lambda: 0)
    module.cuda = types.SimpleNamespace(runtime=runtime, get_current_stream=lambda: stream)
    return module


def _placed(x, dtype=None):
    same = isinstance(x, Array) and (dtype is None or x.dtype == dtype)
    return x if same else put(x, dtype)


def _poisoned(shape, dtype):
    dtype = np.dtype(dtype)
    return np.full(shape, math.nan if dtype.kind == "f" else 0xDEAD % 256, dtype)


# ---------------------------------------------------------------------------------------------------------- launchers


class Buffer(NamedTuple):
    """`launch.Buffer`."""

    pointer: object
    address: int
    shape: tuple
    strides: tuple
    dtype: str
    owner: object

    @property
    def size(self):
        """Number of elements."""
        return math.prod(self.shape)


class Context(NamedTuple):
    """`launch.Context`."""

    stream: object
    empty: object
    record: object = None


class Policy(NamedTuple):
    """`launch.Policy`."""

    absolute: bool = False
    factor: float = 1.0
    floor: float | None = None
    upper: bool = False


EXACT = Policy()


def _memory(buffer):
    """What lies at a buffer's address, as an array that shares it."""
    if buffer is None:
        return None
    if buffer.dtype == "bfloat16":
        import ml_dtypes

        dtype = np.dtype(ml_dtypes.bfloat16)
    else:
        dtype = np.dtype(buffer.dtype)
    if not buffer.size:
        return np.empty(buffer.shape, dtype)
    span = 1 + sum((n - 1) * s for n, s in zip(buffer.shape, buffer.strides, strict=True))
    flat = np.ctypeslib.as_array((ctypes.c_uint8 * (span * dtype.itemsize)).from_address(buffer.address))
    strides = tuple(s * dtype.itemsize for s in buffer.strides)
    return np.lib.stride_tricks.as_strided(flat.view(dtype), buffer.shape, strides)


def _scale(scale, denominator):
    if denominator is None:
        return scale
    total = _memory(denominator).item()
    return scale / total if total else 0.0


def _sum(context, value):
    partials = context.empty((1,), "float64")
    _memory(partials)[0] = value
    return partials


def _flag(bad_out, bad, n):
    if bad_out is not None and bad >= 0:
        flag = _memory(bad_out)
        flag[0] = max(flag[0], n - bad)


def softmax_launch(
    context, logits, targets, sample_weight, class_weight, logit_bias, label_smoothing, exclude_target, ignore_index,
    z_loss, temperature, scale, denominator, loss_out, lse_out, grad_out, bad_out,
    family="cross_entropy", a=0.0, b=0.0, lse=None,
):  # fmt: skip
    """`launch.softmax_launch`."""
    arrays = map(_memory, (logits, targets, sample_weight, class_weight, logit_bias))
    options = (label_smoothing, exclude_target, ignore_index, z_loss, temperature, _scale(scale, denominator))
    rows = logits.shape[0], logits.shape[2]
    outs = [None if x is None else _memory(x).reshape(rows) for x in (loss_out, lse_out)]
    with np.errstate(all="ignore"):
        total, bad, _ = _core_numpy.softmax_rows(
            *arrays, *options, *outs, _memory(grad_out), None, 1, family, a, b
        )
    _flag(bad_out, bad, math.prod(rows))
    return None if lse is not None else _sum(context, total)


def totals_launch(context, targets, sample_weight, class_weight, n_classes, ignore_index, bad_out):
    """`launch.totals_launch`."""
    arrays = map(_memory, (targets, sample_weight, class_weight))
    total, counted, bad = _core_numpy.target_totals(*arrays, n_classes, ignore_index, 1)
    _flag(bad_out, bad, targets.shape[0] * targets.shape[-1])
    plain = len(targets.shape) == 2 and sample_weight is None and class_weight is None
    return _sum(context, counted if plain else total)


def combine(context, partials, out, factor, denominator, empty):
    """`launch.combine`."""
    total = float(_memory(partials).sum()) * factor
    if denominator is not None:
        (below,) = _memory(denominator)
        total = total / below if below else empty
    _memory(out)[0] = total


def sigmoid(
    context, logits, targets, sample_weight, pos_weight, label_smoothing, scale, denominator,
    loss_out, grad_out, bad_out, family="cross_entropy", a=0.0, b=0.0, c=0.0,
    hess_out=None, policy=EXACT,
):  # fmt: skip
    """`launch.sigmoid`."""
    z, y = _memory(logits), _memory(targets)
    real = np.float64 if z.dtype == np.float64 else np.float32
    loss = None if loss_out is None else _memory(loss_out).reshape(z.shape)
    scale, hess = _scale(scale, denominator), _memory(hess_out)
    total, bad, _ = _core_numpy.sigmoid_elements(
        z, y.astype(real), _memory(sample_weight), _memory(pos_weight), label_smoothing, scale,
        loss, _memory(grad_out), hess, 1, family, a, b, c,
    )  # fmt: skip
    if hess is not None:
        weight = 1.0 if sample_weight is None else _memory(sample_weight)
        if policy.upper and family == "focal":
            hess[...] = scale * focal_upper(z.astype(np.float64), y.astype(np.float64), weight, a, b, c)
        else:
            _put_under(hess, policy._replace(floor=0.0) if policy.upper else policy, weight * scale)
    _flag(bad_out, bad, z.size)
    return _sum(context, total)


def _put_under(hess, policy, factor):
    """Put second derivatives under a policy; `factor` is that of the rows."""
    if policy.absolute:
        np.abs(hess, out=hess)
    hess *= policy.factor
    if policy.floor is not None:
        hess[...] = np.maximum(hess, policy.floor * np.abs(factor))


def binary(
    context, probabilities, targets, sample_weight, pos_weight, label_smoothing, scale, denominator,
    loss_out, grad_out, hess_out, bad_out, bad_value_out,
):  # fmt: skip
    """`launch.binary`."""
    p, y = _memory(probabilities), _memory(targets)
    real = np.float64 if p.dtype == np.float64 else np.float32
    loss = None if loss_out is None else _memory(loss_out).reshape(p.shape)
    total, *bad = _core_numpy.binary_elements(
        p, y.astype(real), _memory(sample_weight), _memory(pos_weight), label_smoothing, _scale(scale, denominator),
        loss, _memory(grad_out), _memory(hess_out), 1,
    )  # fmt: skip
    for out, first in zip((bad_out, bad_value_out), bad, strict=True):
        _flag(out, first, p.size)
    return _sum(context, total)


def _of_rows(weight, ignore_index, targets, scale, temperature):
    """Factor of every row's second derivatives before the temperature, to be broadcast over the classes."""
    factor = np.ones(1) if weight is None else _memory(weight)[:, None, :]
    y = _memory(targets)
    if ignore_index is not None and y is not None and y.ndim == 2:
        factor = np.where(y[:, None, :] == ignore_index, 0, factor)
    return factor * scale


def curvature(
    context, mode, logits, targets, sample_weight, class_weight, logit_bias, label_smoothing, exclude_target,
    ignore_index, z_loss, temperature, scale, denominator, x, out, bad_out,
    family="cross_entropy", a=0.0, b=0.0, policy=EXACT,
):  # fmt: skip
    """`general.curvature`."""
    arrays = list(map(_memory, (logits, targets, sample_weight, class_weight, logit_bias)))
    scale = _scale(scale, denominator)
    head = (*arrays, label_smoothing, exclude_target, ignore_index, z_loss, temperature, scale)
    to = _memory(out)
    if mode == "diagonal":
        _, bad, _ = _core_numpy.softmax_rows(*head, None, None, None, to, 1, family, a, b)
        _put_under(to, policy, _of_rows(sample_weight, ignore_index, targets, scale, temperature))
    elif mode == "product":
        bad = _core_numpy.softmax_hvp(*head, _memory(x), to, 1, family, a, b)
    else:
        bad = _core_numpy.softmax_upper(*head, to, 1, family, a, b)
    _flag(bad_out, bad, logits.shape[0] * logits.shape[2])


def divergence(
    context, mode, logits, teacher, teacher_logits, sample_weight, ignore_index, temperature, scale, denominator,
    x, loss_out, grad_out, out, bad_out, family, beta=0.5, policy=EXACT,
):  # fmt: skip
    """`general.divergence`."""
    arrays = _memory(logits), _memory(teacher), teacher_logits, _memory(sample_weight)
    scale = _scale(scale, denominator)
    head = (*arrays, ignore_index, temperature, scale)
    rows = logits.shape[0], logits.shape[2]
    loss, total = None if loss_out is None else _memory(loss_out).reshape(rows), 0.0
    to = _memory(out)
    if mode == "rows":
        total, bad = _core_numpy.divergence_rows(*head, loss, _memory(grad_out), to, 1, family, beta)
        if to is not None:
            ignored = None if teacher_logits else ignore_index
            _put_under(to, policy, _of_rows(sample_weight, ignored, teacher, scale, temperature))
    elif mode == "product":
        bad = _core_numpy.divergence_hvp(*head, _memory(x), to, 1, family, beta)
    else:
        bad = _core_numpy.divergence_upper(*head, to, 1, family, beta)
    _flag(bad_out, bad, math.prod(rows))
    return _sum(context, total)


def weight_total(context, weight):
    """`launch.weight_total`."""
    return _sum(context, _memory(weight).sum(dtype=np.float64))


def partial_rows(context, logits, labels, start, m_out, r_out, t_out, Z_out):
    """`general.partial_rows`."""
    _core_numpy.partial_rows(
        _memory(logits), _memory(labels), start, *map(_memory, (m_out, r_out, t_out, Z_out)), 1
    )


def partial_grad(context, logits, labels, start, m, r, t, pull, weight, spread, share, grad_out):
    """`general.partial_grad`."""
    arrays = map(_memory, (m, r, t, pull, weight))
    out = _memory(grad_out)
    _core_numpy.partial_grad(_memory(logits), _memory(labels), start, *arrays, spread, share, out, 1)


def boost(context, margins, labels, sample_weight, class_weight, factor, floor, grad_out, hess_out, odd_out):
    """`general.boost`."""
    arrays = map(_memory, (margins, labels, sample_weight, class_weight))
    with np.errstate(all="ignore"):
        usual = _core_numpy.softmax_boost(*arrays, factor, floor, _memory(grad_out), _memory(hess_out), 1)
    _memory(odd_out)[0] = not usual


def region_sums(context, values, targets, sample_weight, activation, soft_labels, sums_out):
    """`general.region_sums`."""
    arrays = map(_memory, (values, targets, sample_weight))
    _core_numpy.region_sums(*arrays, activation, soft_labels, _memory(sums_out), 1)


def region_losses(context, sums, alpha, beta, smooth, scale, losses_out, slopes_out):
    """`general.region_losses`."""
    tp, fp, fn = np.moveaxis(_memory(sums), 2, 0)
    wrong = alpha * fp + beta * fn
    whole = tp + wrong + smooth
    with np.errstate(all="ignore"):
        _memory(losses_out)[...] = np.where(whole == 0, 0.0, wrong / whole)
        whole = np.where(whole == 0, np.inf, whole)
        slopes = np.stack([(tp + smooth) / whole, wrong / whole], axis=2) / whole[:, :, None]
    _memory(slopes_out)[...] = scale * slopes


def region_grad(
    context, values, targets, sample_weight, activation, soft_labels, alpha, beta, slopes, grad_out
):
    """`general.region_grad`."""
    arrays = map(_memory, (values, targets, sample_weight))
    how = (activation, soft_labels, alpha, beta)
    _core_numpy.region_grad(*arrays, *how, _memory(slopes), _memory(grad_out), 1)


def solve(context, terms, damping, rhs, x_out):
    """`general.solve`."""
    arrays = [
        (kind, group, *(_memory(x) if isinstance(x, Buffer) else x for x in rest))
        for kind, group, *rest in terms
    ]
    _core_numpy.softmax_solve(tuple(arrays), *map(_memory, (damping, rhs, x_out)), 1)


LAUNCHERS = (binary, combine, sigmoid, softmax_launch, totals_launch, weight_total)
GENERAL = (
    boost,
    curvature,
    divergence,
    partial_grad,
    partial_rows,
    region_grad,
    region_losses,
    region_sums,
    solve,
)


class TorchInMemory(_device.Torch):
    """PyTorch's tensors in memory, taken for tensors on a device."""

    @classmethod
    def owns(cls, x):
        return True

    def stream(self):
        return 0


def refuse_copies(monkeypatch):
    """From now on whatever a tensor's call would copy from memory to the device fails the test."""
    given = TorchInMemory.given

    def strict(self, x, name, dtype):
        assert isinstance(x, sys.modules["torch"].Tensor), name
        return given(self, x, name, dtype)

    monkeypatch.setattr(TorchInMemory, "given", strict)


def install(monkeypatch):
    """Put the twin in the place of the CUDA backend and of CuPy; returns the module that stands for CuPy."""
    launch = types.ModuleType("fastxent._core_cuda.launch")
    vars(launch).update({f.__name__: f for f in LAUNCHERS}, Buffer=Buffer, Context=Context, Policy=Policy)
    core = types.ModuleType("fastxent._core_cuda")
    core.launch, core.__path__ = launch, []
    core.general = types.SimpleNamespace(**{f.__name__: f for f in GENERAL})
    core.softmax_rows, core.sigmoid_elements = _core_numpy.softmax_rows, _core_numpy.sigmoid_elements
    module = cupy()
    for name, value in ((core.__name__, core), (launch.__name__, launch), ("cupy", module)):
        monkeypatch.setitem(sys.modules, name, value)
    monkeypatch.setattr(_backend, "_cuda", lambda: core)
    monkeypatch.setattr(_checks, "_library_of", lambda values: None)  # as of a tensor on a device
    monkeypatch.setattr(_device, "_records", lambda: (Buffer, Context))
    monkeypatch.setattr(_device, "_stream", lambda pointer, device: pointer)  # Numba's name for it
    monkeypatch.setitem(_device.LIBRARIES, "torch", TorchInMemory)
    return module
