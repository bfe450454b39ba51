"""User input to canonical arrays: the only place that raises on data.

A checked array is a native, aligned NumPy array of a dtype that every backend reads.  Nothing is copied that a kernel
can read in place.  Messages name the argument, what was expected and what came.
"""

import math
import numbers
import operator
from typing import NamedTuple

import numpy as np

FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)
REDUCTIONS = ("mean", "sum", "none", "mean_rows", "mean_all")
SMOOTHINGS = ("uniform", "exclude_target")


# ---------------------------------------------------------------------------------------------------------- options


def choice(value, name, allowed):
    """Value, one of `allowed`."""
    if value in allowed:
        return value
    raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}")


def real(value, name, low=-math.inf, high=math.inf, *, open_low=False):
    """Value as a finite float within [low, high], or (low, high] with `open_low`."""
    if not isinstance(value, numbers.Real) or isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected a real number, got {value!r}")
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
        raise TypeError(f"{name}: expected an integer, got {value!r}") from None


def per_base(base):
    """Factor from nats to the unit of `base`: 1 / ln(base)."""
    if base is None:
        return 1.0
    base = real(base, "base", 0.0, open_low=True)
    if base == 1:
        raise ValueError("base: expected a positive number other than 1, got 1.0")
    return 1.0 / math.log(base)


# ----------------------------------------------------------------------------------------------------------- arrays


def array(values, name):
    """Anything array-like as a native, aligned array, without a copy where it is one already."""
    if type(values) is not np.ndarray:
        foreign = not isinstance(values, np.ndarray) and hasattr(values, "__dlpack__") and not hasattr(values, "__array__")
        try:
            values = np.from_dlpack(values) if foreign else np.asarray(values)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{name}: expected an array-like of numbers: {error}") from None
    dtype = values.dtype
    if not dtype.isnative:
        values = values.astype(dtype.newbyteorder("="))
    elif not values.flags.aligned:
        values = values.copy()
    return values


def is_half(dtype):
    """Whether a dtype is float16 or ml_dtypes' bfloat16 (a void-like type to NumPy)."""
    return dtype.itemsize == 2 and (dtype.kind == "f" or dtype.name == "bfloat16")


def floats(values, name):
    """Array of float32, float64, float16 or bfloat16; integers and booleans become float64."""
    a = array(values, name)
    dtype = a.dtype
    if dtype is FLOAT32 or dtype is FLOAT64 or dtype == FLOAT32 or dtype == FLOAT64 or is_half(dtype):
        return a
    if dtype.kind in "iub":
        return a.astype(np.float64)
    raise TypeError(f"{name}: expected float32, float64, float16, bfloat16 or integers, got dtype {dtype}")


def compute_dtype(dtype):
    """Arithmetic's dtype: float64 for float64, otherwise float32."""
    return FLOAT64 if dtype == FLOAT64 else FLOAT32


def numbers_like(values, name, dtype):
    """Real array in the compute dtype."""
    a = array(values, name)
    if a.dtype == dtype:
        return a
    if a.dtype.kind not in "iubf" and not is_half(a.dtype):
        raise TypeError(f"{name}: expected real numbers, got dtype {a.dtype}")
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
        raise ValueError("class_weight: expected finite non-negative numbers, got " + _first(a, ~(a >= 0) | ~np.isfinite(a)))
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
    return f"{a[at]} at index {at[0] if len(at) == 1 else tuple(map(int, at))}"


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


def softmax_input(logits, targets, axis, name="logits"):
    """Check logits against labels or soft targets and lay both out for the kernels.

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
            raise ValueError(f"targets: expected labels of shape {row_shape} for logits {shape}, got {y.shape}")
        if y.dtype.kind not in "iub":
            if y.size:
                raise TypeError(
                    f"targets: expected integer or bool labels, got dtype {y.dtype}; "
                    f"probabilities have the shape of the logits, {shape}"
                )
            y = y.astype(np.int64)
        rows = y.reshape(math.prod(shape[:axis]), math.prod(shape[axis + 1 :]))
        return SoftmaxInput(z, layered(z, axis), rows, False, axis, shape, row_shape, dtype)
    if y.shape == shape:
        y = numbers_like(y, "targets", dtype)
        return SoftmaxInput(z, layered(z, axis), layered(y, axis), True, axis, shape, row_shape, dtype)
    hint = "; it looks transposed" if y.ndim == 2 and y.T.shape == shape else ""
    raise ValueError(
        f"targets: expected integer labels of shape {row_shape} or probabilities of shape {shape}, got shape {y.shape}{hint}"
    )


def axis_of(axis, ndim):
    """Axis as a number from 0 to ndim - 1."""
    number = whole(axis, "axis")
    if not -ndim <= number < ndim:
        raise ValueError(f"axis: expected -{ndim} <= axis < {ndim}, got {number}")
    return number % ndim


def bad_target(problem, row, given):
    """Error for the first bad target that a kernel reported, at flat row `row`."""
    shape = problem.row_shape
    at = tuple(map(int, np.unravel_index(row, shape))) if shape else ()
    where = f"targets[{', '.join(map(str, at))}]" if at else "targets"
    k = problem.n_classes
    if problem.soft:
        return ValueError(f"{where}: expected probabilities >= 0 in every class, got a negative number or NaN")
    labels = array(given, "targets")
    value = labels[at]
    text = f"{where} = {value} is not a class: expected 0 <= label < {k}"
    if int(value) == k and int(labels.max()) == k and not (labels == 0).any():
        text += "; do the labels start at 1? Subtract 1"
    return ValueError(text)


def output(out, like, name="out"):
    """Check a caller's gradient buffer, or make a fresh one in the layout of `like`."""
    if out is None:
        return np.empty_like(like, subok=False)
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{name}: expected a NumPy array to write into, got {type(out).__name__}")
    if out.shape != like.shape:
        raise ValueError(f"{name}: expected shape {like.shape}, got {out.shape}")
    if out.dtype != like.dtype:
        raise TypeError(f"{name}: expected dtype {like.dtype}, got {out.dtype}")
    if not out.flags.writeable:
        raise ValueError(f"{name}: expected a writeable array, got a read-only one")
    if out.size and any(step == 0 and length > 1 for step, length in zip(out.strides, out.shape, strict=True)):
        raise ValueError(f"{name}: expected an element for every result, got one that repeats (a stride of 0)")
    return out


def same_memory(a, b):
    """Whether two arrays are the same elements at the same places."""
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
        raise ValueError(f"targets: expected the shape of {name}, {shape}, got {y.shape}")
    sample_weight = per_row(sample_weight, "sample_weight", shape, dtype, check=check)
    pos_weight = per_row(pos_weight, "pos_weight", shape, dtype, check=check)
    if check and pos_weight is not None and (pos_weight < 0).any():
        raise ValueError("pos_weight: expected non-negative numbers, got " + _first(pos_weight, pos_weight < 0))
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
    return ValueError(f"{where} = {value}: expected a number in [0, 1]")
