"""User input to canonical arrays: the only place that raises on data.

A checked array is a native, aligned NumPy array of a dtype that every backend reads.  Nothing is copied that a kernel
can read in place.  Messages name the argument, what was expected and what came.
"""

import difflib
import functools
import itertools
import math
import numbers
import operator
import os
import sys
import warnings
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from . import _memory

FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)
REDUCTIONS = ("mean", "sum", "none", "mean_rows", "mean_all")
SMOOTHINGS = ("uniform", "exclude_target")


# ---------------------------------------------------------------------------------------------------------- options


def choice(value, name, allowed):
    """Value, one of `allowed`."""
    if isinstance(value, str) and value in allowed:
        return value
    hint = "; pass it as a string" if value is None and "none" in allowed else nearest(value, allowed)
    raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {brief(value)}{hint}")


def nearest(value, allowed):
    """The name that was meant, as the end of a message; empty where none is close."""
    close = difflib.get_close_matches(value, allowed, n=1) if isinstance(value, str) else []
    return f"; did you mean {close[0]!r}?" if close else ""


def brief(value):
    """A value for a message: its repr, or what an array is where that would be long."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def real(value, name, low=-math.inf, high=math.inf, *, open_low=False):
    """Value as a finite float within [low, high], or (low, high] with `open_low`."""
    if not isinstance(value, numbers.Real) or isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected a real number, got {brief(value)}")
    value = float(value)
    if not (low <= value <= high) or (open_low and value == low) or math.isinf(value):
        bracket = "(" if open_low or low == -math.inf else "["
        end = ")" if high == math.inf else "]"
        raise ValueError(f"{name}: expected a finite number in {bracket}{low}, {high}{end}, got {value}")
    return value


def thread_count(value):
    """Number of threads asked for, 0 where the backend chooses."""
    if value is None:
        return 0
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"num_threads: expected a positive integer or None, got {value!r}") from None
    if value < 1:
        raise ValueError(f"num_threads: expected at least 1, got {value}")
    return min(value, 1024)


def whole(value, name):
    """Value as an integer."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {brief(value)}") from None


def ignored_label(value):
    """`ignore_index` as an integer; None where no label can have it, as NumPy compares bools with no larger number."""
    value = whole(value, "ignore_index")
    return value if -(1 << 63) <= value < 1 << 63 else None


def path(value):
    """Value, a path, as a string (or bytes)."""
    try:
        return os.fspath(value)
    except TypeError:
        raise TypeError(f"path: expected str or a path-like object, got {brief(value)}") from None


def log_of_base(base):
    """Natural logarithm of the base of a logarithm."""
    base = real(base, "base", 0.0, open_low=True)
    if base == 1:
        raise ValueError("base: expected a positive number other than 1, got 1.0")
    return math.log(base)


def per_base(base):
    """Factor from nats to the unit of `base`: 1 / ln(base)."""
    return 1.0 if base is None else 1.0 / log_of_base(base)


# ----------------------------------------------------------------------------------------------------------- arrays


def array(values, name):
    """Anything array-like as a native, aligned array, without a copy where it is one already.

    Arrays of other libraries come by ``__array__`` or DLPack; tensors of PyTorch as they lie in memory, bfloat16 too.
    """
    if type(values) is not np.ndarray:
        given(values, name)
        try:
            if is_tensor(values):
                values = _array_of_tensor(values, name)
            elif hasattr(values, "toarray") and hasattr(values, "tocsr"):
                raise TypeError(
                    f"{name}: expected a dense array, got the sparse {type(values).__name__}; pass {name}.toarray()"
                )
            elif (
                isinstance(values, np.ndarray)
                or hasattr(values, "__array__")
                or not hasattr(values, "__dlpack__")
            ):
                values = np.asarray(values)
            else:
                values = np.from_dlpack(values)
        except (ValueError, TypeError, BufferError) as error:
            kind = TypeError if isinstance(error, BufferError) else type(error)
            if str(error).startswith(name):
                raise
            if "inhomogeneous" in str(error):
                raise kind(f"{name}: expected rows of equal length, got rows of different lengths") from None
            raise kind(f"{name}: expected an array-like of numbers: {error}") from None
    dtype = values.dtype
    if not dtype.isnative:
        values = values.astype(dtype.newbyteorder("="))
    elif not values.flags.aligned:
        values = values.copy()
    return values


def is_tensor(values):
    """Whether values are a tensor of PyTorch, which is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(values, torch.Tensor)


def _array_of_tensor(tensor, name):
    if tensor.requires_grad:
        raise TypeError(
            "a tensor that requires a gradient would lose it here; use fastxent.torch, or pass tensor.detach()"
        )
    tensor = tensor.resolve_conj().resolve_neg()
    if str(tensor.dtype) != "torch.bfloat16":
        return tensor.numpy()
    return tensor.view(sys.modules["torch"].int16).numpy().view(_bfloat16(name))


def _bfloat16(name):
    """ml_dtypes' bfloat16: NumPy has none of its own."""
    try:
        import ml_dtypes
    except ImportError:
        raise ImportError(f"{name}: bfloat16 tensors need ml_dtypes: pip install 'fastxent[torch]'") from None
    return np.dtype(ml_dtypes.bfloat16)


def _to_tensor(values):
    torch = sys.modules["torch"]
    if values.dtype.kind == "V":  # ml_dtypes' bfloat16
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def _library_of(values):
    """How an array becomes one of the library of `values`; None where that is NumPy, or makes tables and no arrays.

    None as well for arrays on a CUDA device, whose own door (`_device`) answers in kind.

    Libraries are known by the array API standard's ``__array_namespace__``; PyTorch has none and is known by name.
    """
    if is_tensor(values):
        return None if values.is_cuda else _to_tensor
    if isinstance(values, (np.ndarray, np.generic)) or not hasattr(values, "__array_namespace__"):
        return None
    if hasattr(values, "__cuda_array_interface__"):
        return None
    library = values.__array_namespace__()

    def convert(result):
        try:
            return library.from_dlpack(result)
        except (BufferError, TypeError):  # DLPack has no read-only arrays, and NumPy's no bfloat16
            return library.asarray(result)

    return convert


_OWN = (np.ndarray, list, tuple, float, int)


def answers_in_kind(at=0):
    """Decorator: arrays that a function returns are of the library of its argument number `at`; `out` may be too.

    PyTorch's tensors and arrays of any library of the array API standard (JAX, CuPy) come back as such, sharing memory
    where DLPack can; everything else gets NumPy's arrays. Plain numbers stay numbers.
    """

    def decorate(function):
        name = function.__code__.co_varnames[at]

        @functools.wraps(function)
        def answer(*args, **kwargs):
            values = args[at] if len(args) > at else kwargs.get(name)
            convert = None if type(values) in _OWN else _library_of(values)
            if convert is None:
                return function(*args, **kwargs)
            own = given = kwargs.get("out")
            if given is not None and not isinstance(given, np.ndarray):
                kwargs["out"] = own = array(given, "out")

            def back(result):
                if own is not None and result is own:
                    return given
                return convert(result) if isinstance(result, np.ndarray) else result

            results = function(*args, **kwargs)
            return tuple(map(back, results)) if isinstance(results, tuple) else back(results)

        return answer

    return decorate


def is_half(dtype):
    """Whether a dtype is float16 or ml_dtypes' bfloat16 (a void-like type to NumPy)."""
    return dtype.itemsize == 2 and (dtype.kind == "f" or dtype.name == "bfloat16")


def floats(values, name):
    """Array of float32, float64, float16 or bfloat16; integers and booleans become float64."""
    a = array(values, name)
    dtype = a.dtype
    if dtype in (FLOAT32, FLOAT64) or is_half(dtype):
        return a
    if dtype.kind in "iub":
        return a.astype(np.float64)
    raise TypeError(
        f"{name}: expected float32, float64, float16, bfloat16 or integers, got dtype {dtype}{dtype_advice(a)}"
    )


def dtype_advice(a):
    """What to do about values that are no real numbers."""
    if a.dtype.kind in "SU":
        return "; text must be turned into numbers first"
    if a.dtype.kind == "c":
        return "; take the real part"
    if a.dtype.kind == "O":
        kinds = sorted({type(value).__name__ for value in a.ravel()[:1000].tolist()})
        advice = "convert with numpy.asarray(values, dtype=float)"
        if "str" in kinds:
            advice = "text must be turned into numbers first"
        elif a.ndim == 0:
            advice = "pass an array, or lists of numbers; of an iterator list(values)"
        return f" that holds {', '.join(kinds[:4])}; {advice}"
    return ""


def compute_dtype(dtype):
    """Arithmetic's dtype: float64 for float64, otherwise float32."""
    return FLOAT64 if dtype == FLOAT64 else FLOAT32


def numbers_like(values, name, dtype):
    """Real array in the compute dtype."""
    a = array(values, name)
    if a.dtype == dtype:
        return a
    if a.dtype.kind not in "iubf" and not is_half(a.dtype):
        advice = dtype_advice(a)
        if name == "class_weight":
            advice = (
                "; pass one number per class: names and dicts are for the estimators, "
                "sklearn.utils.class_weight.compute_class_weight turns them into numbers"
            )
        raise TypeError(f"{name}: expected real numbers, got dtype {a.dtype}{advice}")
    with np.errstate(over="ignore"):
        return a.astype(dtype)


def per_class(values, name, n_classes, dtype, *, check=True):
    """Contiguous array (n_classes,) in the compute dtype, or None."""
    if values is None:
        return None
    a = numbers_like(values, name, dtype)
    if a.shape != (n_classes,):
        raise ValueError(f"{name}: expected shape ({n_classes},), one number per class, got {a.shape}")
    if check and name == "class_weight" and not (np.isfinite(a) & (a >= 0)).all():
        raise ValueError(
            "class_weight: expected finite non-negative numbers, got "
            + _first(a, ~(a >= 0) | ~np.isfinite(a))
        )
    if check and np.isnan(a).any():
        raise ValueError(f"{name}: expected numbers, got " + _first(a, np.isnan(a)))
    return np.ascontiguousarray(a)


def per_row(values, name, shape, dtype, *, check=True):
    """Weights broadcast to `shape` in the compute dtype (strides of 0 where broadcast), or None."""
    if values is None:
        return None
    a = numbers_like(values, name, dtype)
    if a.shape != shape:
        try:
            a = np.broadcast_to(a, shape)
        except ValueError:
            raise ValueError(f"{name}: expected a shape that broadcasts to {shape}, got {a.shape}") from None
    if check and not np.isfinite(a).all():
        raise ValueError(f"{name}: expected finite numbers, got " + _first(a, ~np.isfinite(a)))
    return a


def _first(a, wrong):
    at = np.unravel_index(int(np.argmax(wrong)), a.shape)
    at = tuple(map(int, at))
    return f"{a[at]} at index {at[0] if len(at) == 1 else at}" if at else f"{a[at]}"


# -------------------------------------------------------------------------------------------------- softmax problems


class SoftmaxInput(NamedTuple):
    """Logits and targets as the kernels take them: (outer, classes, inner)."""

    source: np.ndarray  # the logits in the caller's shape
    logits: np.ndarray
    targets: np.ndarray
    soft: bool
    axis: int
    shape: tuple
    row_shape: tuple
    dtype: np.dtype  # of the arithmetic

    @property
    def n_classes(self):
        return self.logits.shape[1]

    def rows(self, a):
        """Array over the rows as (outer, inner)."""
        return a.reshape(self.logits.shape[0], self.logits.shape[2])


def layered(a, axis):
    """Array as (outer, axis, inner)."""
    shape = a.shape
    if axis == len(shape) - 1 and len(shape) == 2:
        return a[:, :, None]
    return a.reshape(math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))


def softmax_input(logits, targets, axis, name="logits", *, check=True):
    """Check logits against labels or soft targets and lay both out for the kernels.

    With `check`, logits that look like probabilities are warned of.

    Raises
    ------
    TypeError
        Labels that are not integers; logits that are not real.
    ValueError
        Shapes that do not belong together; no classes.
    """
    z = floats(logits, name)
    if z.ndim == 0:
        raise ValueError(f"{name}: expected at least one dimension, the classes, got a scalar")
    if axis == -1:
        axis = z.ndim - 1
    else:
        axis = axis_of(axis, z.ndim)
    shape = z.shape
    n_classes = shape[axis]
    if n_classes == 0:
        raise ValueError(f"{name}: expected at least one class, got shape {shape} with axis {axis}")
    row_shape = shape[:axis] + shape[axis + 1 :]
    y = array(targets, "targets")
    dtype = compute_dtype(z.dtype)
    if y.ndim == z.ndim - 1:
        if y.shape != row_shape:
            others = [i for i in range(z.ndim) if i != axis and y.shape == shape[:i] + shape[i + 1 :]]
            hint = f"; if the classes are on axis {others[0]}, pass axis={others[0]}" if others else ""
            raise ValueError(
                f"targets: expected labels of shape {row_shape} for logits {shape}, got {y.shape}{hint}"
            )
        if y.dtype.kind not in "iub":
            if y.size:
                raise TypeError(
                    f"targets: expected integer or bool labels, got dtype {y.dtype}; "
                    + label_advice(y, f"probabilities have the shape of the logits, {shape}")
                )
            y = y.astype(np.int64)
        rows = y.reshape(math.prod(shape[:axis]), math.prod(shape[axis + 1 :]))
        layers = layered(z, axis)
        if check:
            warn_of_probabilities(z, layers)
        return SoftmaxInput(z, layers, rows, False, axis, shape, row_shape, dtype)
    if y.shape == shape:
        if check and y.dtype.kind in "iu" and y.size and y.max() > 1:
            raise ValueError(
                f"targets: integers of the logits' own shape {shape} must be 0 or 1, which classes are right, got "
                f"{y.max()}; class indices have shape {row_shape}, one per row; counts are soft targets: "
                "pass targets.astype(float)"
            )
        y = numbers_like(y, "targets", dtype)
        layers = layered(z, axis)
        if check:
            warn_of_probabilities(z, layers)
        return SoftmaxInput(z, layers, layered(y, axis), True, axis, shape, row_shape, dtype)
    hint = shape_advice(y, shape, row_shape, axis)
    raise ValueError(
        f"targets: expected integer labels of shape {row_shape} or probabilities of shape {shape}, "
        f"got shape {y.shape}{hint}"
    )


def label_advice(y, otherwise):
    """What to do about labels of a dtype that is none of labels'."""
    if y.dtype.kind == "f":
        finite = np.isfinite(y)
        whole_numbers = (y[finite] == np.rint(y[finite])).all()
        if whole_numbers and finite.all():
            return "these are whole numbers: pass targets.astype(int)"
        if whole_numbers and finite.any():
            return (
                "some are NaN: to leave those rows out pass the label ignore_index for them, "
                "numpy.nan_to_num(numpy.asarray(targets, float), nan=-100).astype(int)"
            )
    if y.dtype.kind in "OSU":
        return "number the classes first: np.unique(targets, return_inverse=True)[1], or use an estimator"
    return otherwise


def shape_advice(y, shape, row_shape, axis):
    """What to do about targets of a shape that belongs to neither labels nor soft targets."""
    if y.ndim == len(shape) + 1 and y.shape[:-1] == shape and y.dtype.kind == "f":
        return "; logits come first: are the two swapped?"
    if y.ndim == len(shape) and y.ndim == 2 and y.T.shape == shape:
        return "; they look transposed: pass targets.T"
    if y.ndim == len(shape) and y.shape == (*shape[:axis], 1, *shape[axis + 1 :]):
        return f"; for labels drop the axis of length 1: targets.reshape({row_shape})"
    if y.ndim == len(shape) and y.ndim > 2 and sorted(y.shape) == sorted(shape):
        return "; the axes are in another order: move the classes to the same place in both"
    if (
        y.ndim == len(shape)
        and sum(a != b for a, b in zip(y.shape, shape, strict=True)) == 1
        and y.shape[axis] != shape[axis]
    ):
        return f"; probabilities need one column for each of the {shape[axis]} classes, these have {y.shape[axis]}"
    return ""


# Mistakes are told once per process: a training loop would repeat them at every step.
_told = []
_LOOKED_AT = 16  # classes of the first row that are read one by one before any array operation
_ROWS = 8


def warn_of_probabilities(source, logits):
    """Warn, once per process, if logits (outer, classes, inner) look like probabilities; `source`: as they were given.

    They do if each of the first 8 rows, at least two, is non-negative and sums to 1, unless all are one-hot or constant
    (those come up as logits, and constant ones are harmless).  Ordinary logits fail at one of their first two numbers,
    and nothing else is read of them.
    """
    if (
        "probabilities" in _told
        or source.size <= 3
        or not (0.0 <= source.item(0) <= 1.0 and 0.0 <= source.item(1) <= 1.0)
    ):
        return
    n_classes = logits.shape[1]
    if n_classes == 1 or logits.size == n_classes:
        return
    most = 1.01 if logits.itemsize == 2 else 1.000001
    total = 0.0
    for k in range(min(n_classes, _LOOKED_AT)):
        value = logits.item(0, k, 0)
        total += value
        if not 0.0 <= value <= total <= most:
            return
    if n_classes <= _LOOKED_AT and total < 2 - most:
        return
    rows = np.moveaxis(logits[:_ROWS], 1, 2)[:, :_ROWS].reshape(-1, n_classes)[:_ROWS].astype(FLOAT64)
    with np.errstate(all="ignore"):
        sums = rows.sum(axis=1)
        if not ((rows >= 0).all() and (abs(sums - 1) <= most - 1).all()):
            return
    if (np.rint(rows) == rows).all() or (rows == rows[:, :1]).all():
        return
    _told.append("probabilities")
    warnings.warn(
        f"logits: the first {len(rows)} rows are non-negative and sum to 1, so they look like probabilities. "
        "This function takes the scores before the softmax: pass those, or np.log(probabilities). "
        "check=False silences this warning, which comes once.",
        UserWarning,
        stacklevel=2,
    )


def warn_of_labels_first(probabilities, targets):
    """Warn, once per process, if the first 8 probabilities, two at least, are 0 or 1 and a target is between.

    A certain mistake costs infinity, so the loss alone would not tell that labels and probabilities are swapped.
    """
    p, y = probabilities.ravel()[:_ROWS], targets.ravel()[:_ROWS]
    if len(p) < 2 or not ((p == 0) | (p == 1)).all() or not ((y > 0) & (y < 1)).all():
        return
    _told.append("labels first")
    warnings.warn(
        f"probabilities: the first {len(p)} are all 0 or 1, and the targets lie between: are the two swapped? "
        "Probabilities come first. check=False silences this warning, which comes once.",
        UserWarning,
        stacklevel=2,
    )


def axis_of(axis, ndim):
    """Axis as a number from 0 to ndim - 1."""
    number = whole(axis, "axis")
    if not -ndim <= number < ndim:
        raise ValueError(f"axis: expected -{ndim} <= axis < {ndim}, got {number}")
    return number % ndim


def axes_of(axis, ndim):
    """Axes as different numbers from 0 to ndim - 1: of an int, a tuple, or None for all."""
    axes = range(ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(axis_of(one, ndim) for one in axes)
    if (ndim and not axes) or len(set(axes)) != len(axes):
        raise ValueError(f"axis: expected an integer, a tuple of different integers or None, got {axis!r}")
    return axes


def bad_target(problem, row, given):
    """Error for the first bad target that a kernel reported, at flat row `row`."""
    shape = problem.row_shape
    at = tuple(map(int, np.unravel_index(row, shape))) if shape else ()
    where = f"targets[{', '.join(map(str, at))}]" if at else "targets"
    k = problem.n_classes
    if problem.soft:
        return ValueError(
            f"{where}: expected probabilities >= 0 in every class, got a negative number, an infinity or NaN"
        )
    labels = array(given, "targets")
    value = labels[at]
    text = f"{where} = {value} is not a class: expected 0 <= label < {k}"
    if int(value) == k and int(labels.max()) == k and not (labels == 0).any():
        text += "; do the labels start at 1? Subtract 1"
    elif k == 2 and ((labels == -1) | (labels == 1)).all():
        text += "; for labels -1 and 1 pass (targets + 1) // 2"
    elif int(value) == -1 and int(labels.max()) < k and ((labels == -1) | (labels >= 0)).all():
        text += "; to leave out rows with this label pass ignore_index=-1"
    elif int(labels.max()) >= k and int(labels.min()) >= 0:
        text += (
            f"; the largest label, {labels.max()}, needs at least {int(labels.max()) + 1} columns of logits"
        )
    return ValueError(text)


def output(out, like, name="out"):
    """Check a caller's gradient buffer, or make a fresh one in the layout of `like`."""
    if out is None:
        return _memory.empty_like(like)
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{name}: expected a NumPy array to write into, got {type(out).__name__}")
    if out.shape != like.shape:
        raise ValueError(f"{name}: expected shape {like.shape}, got {out.shape}")
    if out.dtype != like.dtype:
        raise TypeError(f"{name}: expected dtype {like.dtype}, got {out.dtype}")
    if not out.flags.writeable:
        raise ValueError(f"{name}: expected a writeable array, got a read-only one")
    if (
        0 in out.strides
        and out.size
        and any(step == 0 and length > 1 for step, length in zip(out.strides, out.shape, strict=True))
    ):
        raise ValueError(
            f"{name}: expected an element for every result, got one that repeats (a stride of 0)"
        )
    return out


def same_memory(a, b):
    """Whether two arrays are the same elements at the same places."""
    if a is b or not np.may_share_memory(a, b):
        return a is b
    return (
        a.shape == b.shape
        and a.strides == b.strides
        and a.dtype == b.dtype
        and a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
    )


def apart(out, a):
    """Array `a`, copied if it shares memory with `out`."""
    return a.copy() if a is not None and np.may_share_memory(out, a) else a


# ------------------------------------------------------------------------------------------------- elementwise losses


class ElementInput(NamedTuple):
    """Arrays of an elementwise loss as the kernels take them: 2-D, the last axis contiguous."""

    source: np.ndarray  # the values in the caller's shape
    values: np.ndarray
    targets: np.ndarray
    sample_weight: np.ndarray | None
    pos_weight: np.ndarray | None
    shape: tuple
    dtype: np.dtype


def element_input(values, targets, sample_weight, pos_weight, name, *, check=True):
    """Check an elementwise loss's arrays and lay them out as 2-D.

    Raises
    ------
    TypeError
        Values or targets that are not real numbers.
    ValueError
        Shapes that do not belong together.
    """
    z = floats(values, name)
    shape = z.shape
    dtype = compute_dtype(z.dtype)
    y = numbers_like(targets, "targets", dtype)
    if y.shape != shape:
        hint = ""
        if y.shape == shape[:-1] and shape[-1] != 1:
            hint = f"; for one class of {shape[-1]} per row use softmax_cross_entropy, for several one-hot targets"
        elif y.ndim == 2 and y.T.shape == shape:
            hint = "; they look transposed: pass targets.T"
        elif y.size == math.prod(shape):
            hint = f"; if they are in the same order, reshape them: targets.reshape({shape})"
        raise ValueError(f"targets: expected the shape of {name}, {shape}, got {y.shape}{hint}")
    if check and name == "probabilities" and "labels first" not in _told:
        warn_of_labels_first(z, y)
    sample_weight = per_row(sample_weight, "sample_weight", shape, dtype, check=check)
    pos_weight = per_row(pos_weight, "pos_weight", shape, dtype, check=check)
    if check and pos_weight is not None and (pos_weight < 0).any():
        raise ValueError(
            "pos_weight: expected non-negative numbers, got " + _first(pos_weight, pos_weight < 0)
        )
    flat = sample_weight is None and pos_weight is None and z.flags.c_contiguous and y.flags.c_contiguous
    matrix = (1, z.size) if flat or z.ndim == 0 else (math.prod(shape[:-1]), shape[-1])
    return ElementInput(
        z,
        contiguous_rows(z.reshape(matrix)),
        contiguous_rows(y.reshape(matrix)),
        None if sample_weight is None else sample_weight.reshape(matrix),
        None if pos_weight is None else pos_weight.reshape(matrix),
        shape,
        dtype,
    )


def contiguous_rows(a):
    """Two-dimensional array whose last axis is contiguous."""
    return a if a.strides[1] == a.itemsize or a.shape[1] <= 1 else np.ascontiguousarray(a)


def bad_element(problem, element, name):
    """Error for the first target or probability outside [0, 1], at flat element `element`."""
    at = tuple(map(int, np.unravel_index(element, problem.shape))) if problem.shape else ()
    where = f"{name}[{', '.join(map(str, at))}]" if at else name
    value = (problem.targets if name == "targets" else problem.values).reshape(problem.shape)[at]
    text = f"{where} = {value}: expected a number in [0, 1]"
    if name == "targets":
        y = problem.targets
        if ((y == -1) | (y == 1)).all():
            text += "; for labels -1 and 1 pass (targets + 1) / 2"
        elif ((y == 1) | (y == 2)).all():
            text += "; do the labels start at 1? Subtract 1"
        elif not (y == np.rint(y)).all() and ((problem.values == 0) | (problem.values == 1)).all():
            text += "; the values before them are all 0 or 1: are the two swapped?"
        elif (y == np.rint(y)).all() and (y >= 0).all():
            text += "; these look like class labels: use softmax_cross_entropy, or one-hot targets"
    else:
        text += "; for scores before the sigmoid use sigmoid_cross_entropy"
    return ValueError(text)


# -------------------------------------------------------------------------------------------------------- distributions


def distributions(arguments, axis):
    """Named distributions as float64 arrays (classes, rows), the shape of the result and its dtype.

    Raises
    ------
    TypeError
        Not real numbers.
    ValueError
        Negative numbers, infinities or NaN; shapes that do not broadcast; no classes.
    """
    arrays, dtype = [], FLOAT32
    for name, values in arguments.items():
        a = floats(values, name)
        if compute_dtype(a.dtype) == FLOAT64:
            dtype = FLOAT64
        a = a.astype(FLOAT64, copy=False)
        wrong = ~((a >= 0) & (a < math.inf))
        if wrong.any():
            hint = "; these look like logits: take their softmax first, or use softmax_cross_entropy"
            logits = np.isfinite(a).all() and a.ndim > 0 and wrong.mean() > 0.25
            raise ValueError(
                f"{name}: expected finite non-negative numbers, probabilities, "
                f"got {_first(a, wrong)}{hint if logits else ''}"
            )
        arrays.append(a)
    try:
        arrays = np.broadcast_arrays(*arrays)
    except ValueError:
        (first, *_, last), shapes = arguments, [a.shape for a in arrays]
        raise ValueError(
            f"{last}: expected a shape that broadcasts with that of {first}, {shapes[0]}, got {shapes[-1]}"
        ) from None
    ndim = arrays[0].ndim
    if ndim == 0:
        raise ValueError(
            f"{next(iter(arguments))}: expected at least one dimension, the distribution's, got a scalar"
        )
    axes = axes_of(axis, ndim)
    shape = tuple(length for i, length in enumerate(arrays[0].shape) if i not in axes)
    count = math.prod(arrays[0].shape[i] for i in axes)
    if count == 0:
        raise ValueError(f"{next(iter(arguments))}: expected at least one class, got shape {arrays[0].shape}")
    front = range(len(axes))
    return [np.moveaxis(a, axes, front).reshape(count, -1) for a in arrays], shape, dtype


# --------------------------------------------------------------------------------------------------------------- shards


def shard_input(logits, targets, class_offset):
    """Columns of logits (..., k), k = 0 included, labels over all classes as int64, and the first column's number.

    Raises
    ------
    TypeError
        Labels or an offset that are no integers; logits that are not real.
    ValueError
        Shapes that do not belong together; a negative offset.
    """
    z = floats(logits, "logits_shard")
    if z.ndim == 0:
        raise ValueError("logits_shard: expected at least one dimension, the classes, got a scalar")
    y = array(targets, "targets")
    if y.shape != z.shape[:-1]:
        raise ValueError(
            f"targets: expected labels of shape {z.shape[:-1]} for logits_shard {z.shape}, got {y.shape}"
        )
    if y.dtype.kind not in "iub" and y.size:
        raise TypeError(f"targets: expected integer or bool labels, got dtype {y.dtype}")
    offset = whole(class_offset, "class_offset")
    if offset < 0:
        raise ValueError(f"class_offset: expected at least 0, got {offset}")
    if y.dtype == np.uint64:
        y = np.minimum(y, np.uint64(2**63 - 1))
    return z, y.astype(np.int64), offset


def shard_states(states, kind):
    """States of the same rows and of different columns, as a list."""
    if not isinstance(states, Iterable):
        raise TypeError(f"states: expected a sequence of {kind.__name__}, got {brief(states)}")
    states = [states] if isinstance(states, kind) else list(states)
    if not states:
        raise ValueError("states: expected at least one, got none")
    for number, state in enumerate(states):
        if not isinstance(state, kind):
            raise TypeError(f"states[{number}]: expected {kind.__name__}, got {type(state).__name__}")
        if not np.array_equal(state.labels, states[0].labels):
            raise ValueError(f"states[{number}]: expected the rows of states[0], got other labels")
    ranges = sorted(columns for state in states for columns in state.columns)
    for (a, b), (c, d) in itertools.pairwise(ranges):
        if c < b:
            raise ValueError(f"states: expected every column once, got {a} to {b - 1} and {c} to {d - 1}")
    return states


def bad_shard_label(labels, wrong, n_classes):
    """Error for the first label that is in no shard."""
    at = tuple(map(int, np.unravel_index(int(np.argmax(wrong)), labels.shape)))
    where = f"targets[{', '.join(map(str, at))}]" if at else "targets"
    return ValueError(
        f"{where} = {labels[at]} is not a class: the shards hold classes 0 to {n_classes - 1}; are states missing?"
    )


# ------------------------------------------------------------------------------------------------------------- boosting


def boosting_input(margins, labels, sample_weight, elementwise):
    """Targets and weights of a booster's margins, by `boosting_arrays` and `boosting_values`."""
    return boosting_values(
        margins, *boosting_arrays(margins, labels, sample_weight, elementwise), elementwise
    )


def boosting_arrays(margins, labels, sample_weight, elementwise):
    """Labels and weights of a booster's margins, (n_samples,) or (n_samples, n_classes), not looked at yet.

    Boosters keep labels as float32, and matrices of them flat.

    Returns
    -------
    labels : ndarray of integers, float32 or float64, one per row, or in the shape of the margins
    weight : None or ndarray (n_samples,) of float32 or float64

    Raises
    ------
    TypeError
        Labels or weights that are not numbers.
    ValueError
        Shapes that do not belong together.
    """
    if margins.ndim not in (1, 2):
        raise ValueError(
            f"margins: expected shape (n_samples,) or (n_samples, n_classes), got {margins.shape}"
        )
    y = array(given(labels, "labels"), "labels")
    if y.dtype.kind not in "iubf":
        raise TypeError(f"labels: expected numbers, got dtype {y.dtype}; " + label_advice(y, "encode them"))
    if y.dtype.kind == "f" and y.dtype not in (FLOAT32, FLOAT64):
        y = y.astype(FLOAT64)
    rows, weight = margins.shape[:1], sample_weight
    if weight is not None:
        weight = array(weight, "sample_weight")
        dtype = weight.dtype if weight.dtype in (FLOAT32, FLOAT64) else compute_dtype(margins.dtype)
        weight = per_row(weight, "sample_weight", rows, dtype, check=False)
    if y.size == margins.size and (elementwise or margins.ndim == 2):
        return y.reshape(margins.shape), weight
    if elementwise:
        raise ValueError(
            f"labels: expected one per margin, shape {margins.shape}, got shape {y.shape}; "
            "for one class per row use a softmax loss, such as SoftmaxCrossEntropy()"
        )
    if y.size != rows[0]:
        raise ValueError(f"labels: expected one per row of margins {margins.shape}, got shape {y.shape}")
    return y.reshape(rows), weight


def boosting_values(margins, y, weight, elementwise):
    """Targets and weights from the arrays of `boosting_arrays`: classes as int32, the rest in the compute dtype.

    Raises
    ------
    ValueError
        Labels that are no classes; targets outside their range; weights that are not finite.
    """
    dtype = compute_dtype(margins.dtype)
    weight = per_row(weight, "sample_weight", margins.shape[:1], dtype)
    if elementwise or y.ndim == 2:
        y = y.astype(dtype, copy=False)
        high = 1.0 if elementwise else math.inf
        wrong = ~((y >= 0) & (y <= high))
        if wrong.any():
            raise ValueError(f"labels: expected numbers from 0 to {high:g}, got " + _first(y, wrong))
        if weight is not None and elementwise and margins.ndim == 2:
            weight = np.broadcast_to(weight[:, None], margins.shape)
        return y, weight
    n_classes = margins.shape[1] if margins.ndim == 2 else 2
    with np.errstate(invalid="ignore"):
        codes = y.astype(np.int32)
    in_range = codes.min(initial=0) >= 0 and codes.max(initial=0) < n_classes
    if not (in_range and np.array_equal(codes.astype(y.dtype, copy=False), y)):
        wrong = (codes != y) | (codes < 0) | (codes >= n_classes)
        first_is_one = y.size and y.min() == 1 and y.max() == n_classes
        raise ValueError(
            f"labels: expected whole numbers from 0 to {n_classes - 1}, got "
            + _first(y, wrong)
            + ("; do the labels start at 1? Subtract 1" if first_is_one else "")
            + ("; one margin a row is for two classes: set num_class for more" if margins.ndim == 1 else "")
        )
    return codes, weight


# ---------------------------------------------------------------------------------------------- regions and adversaries


class RegionInput(NamedTuple):
    """Arrays of a region loss in the shape of the logits, and the axes of a region."""

    source: np.ndarray  # the logits as given
    logits: np.ndarray
    targets: np.ndarray
    weight: np.ndarray | None
    axes: tuple
    class_axis: int


def region_input(logits, targets, sample_weight, axis, class_axis, activation, *, check=True):
    """Check the arrays of a region loss; labels become one-hot, weights get the shape of the logits.

    Raises
    ------
    TypeError
        Arrays that are not numbers.
    ValueError
        Shapes that do not belong together; a target, or with activation "none" a probability, outside [0, 1].
    """
    name = "probabilities" if activation == "none" else "logits"
    source = floats(logits, name)
    dtype = compute_dtype(source.dtype)
    z = source.astype(dtype, copy=False)
    axes = axes_of(axis, z.ndim)
    at = axis_of(class_axis, z.ndim) if z.ndim else 0
    if activation == "softmax" and not z.ndim:
        raise ValueError(f"{name}: expected an axis of classes for a softmax, got a single number")
    if activation == "softmax" and z.shape[at] == 0:
        raise ValueError(f"{name}: expected at least one class, got shape {z.shape} with class_axis {at}")
    given = array(targets, "targets")
    t = given
    if (
        given.shape != z.shape
        and z.ndim
        and given.shape == z.shape[:at] + z.shape[at + 1 :]
        and given.dtype.kind in "iub"
    ):
        wrong = (given < 0) | (given >= z.shape[at])
        if check and wrong.any():
            raise ValueError(
                f"targets: expected labels from 0 to {z.shape[at] - 1} or the shape of {name}, got "
                + _first(given, wrong)
            )
        t = np.expand_dims(given, at) == np.arange(z.shape[at]).reshape(
            [-1 if i == at else 1 for i in range(z.ndim)]
        )
    t = numbers_like(t, "targets", dtype)
    if t.shape != z.shape:
        raise ValueError(
            f"targets: expected the shape of {name}, {z.shape}, or labels without the class axis, got {t.shape}"
        )
    for values, what in ((t, "targets"), (z, name)):
        if (
            check
            and (what == "targets" or activation == "none")
            and not ((values >= 0) & (values <= 1)).all()
        ):
            raise ValueError(
                f"{what}: expected numbers in [0, 1], got " + _first(values, ~((values >= 0) & (values <= 1)))
            )
    weight = None
    if sample_weight is not None:
        if activation == "softmax":
            weight = np.expand_dims(
                per_row(sample_weight, "sample_weight", z.shape[:at] + z.shape[at + 1 :], dtype, check=check),
                at,
            )
            weight = np.broadcast_to(weight, z.shape)
        else:
            weight = per_row(sample_weight, "sample_weight", z.shape, dtype, check=check)
        if check and (weight < 0).any():
            raise ValueError(
                "sample_weight: expected non-negative numbers, got " + _first(weight, weight < 0)
            )
    return RegionInput(source, z, t, weight, axes, at)


def given(values, name):
    """Values, which may not be None."""
    if values is None:
        raise TypeError(f"{name}: expected an array-like, got None")
    return values


def real_or_fake(labels, shape, *, check=True):
    """Whether each element is real: labels 1 and 0, or True and False."""
    y = array(labels, "targets")
    if y.dtype.kind not in "iubf":
        raise TypeError(f"targets: expected 1 for real and 0 for generated elements, got dtype {y.dtype}")
    try:
        y = np.broadcast_to(y, shape)
    except ValueError:
        raise ValueError(
            f"targets: expected a shape that broadcasts to that of logits, {shape}, got {y.shape}"
        ) from None
    if check and not ((y == 0) | (y == 1)).all():
        raise ValueError(
            "targets: expected 1 for real and 0 for generated elements, got " + _first(y, (y != 0) & (y != 1))
        )
    return y == 1
