"""Elementwise losses of logits and of probabilities: one checked call of the kernels, and the functions over it."""

import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .. import _backend, _checks, _device
from ._base import XGBOOST_FLOOR, Call, Hessian, Loss, as_tuple, upstream
from ._on_device import DeviceElementCall
from ._repeated import Repeated

__all__ = [
    "SigmoidCrossEntropy",
    "binary_cross_entropy",
    "binary_cross_entropy_with_grad",
    "sigmoid_cross_entropy",
    "sigmoid_cross_entropy_backward",
    "sigmoid_cross_entropy_forward",
    "sigmoid_cross_entropy_with_grad",
]


class ElementCall(Call):
    """One checked call of an elementwise loss; `extra` are the arguments that its kernel takes after num_threads."""

    def __init__(
        self,
        kernel,
        values,
        targets,
        sample_weight,
        pos_weight,
        label_smoothing,
        reduction,
        base,
        threads,
        backend,
        check,
        extra=(),
    ):
        self.extra = extra
        self.core = _backend.choose(backend)
        self.kernel = getattr(self.core, kernel)
        self.name = "probabilities" if kernel == "binary_elements" else "logits"
        self.threads = _checks.thread_count(threads)
        self.reduction = _checks.choice(reduction, "reduction", _checks.REDUCTIONS)
        self.smoothing = _checks.real(label_smoothing, "label_smoothing", 0.0, 1.0)
        self.unit = _checks.per_base(base)
        self.check = check
        self.problem = _checks.element_input(
            values, targets, sample_weight, pos_weight, self.name, check=check
        )

    def refuse(self, bad_target, bad_value):
        if self.check:
            if bad_target >= 0:
                raise _checks.bad_element(self.problem, bad_target, "targets")
            if bad_value >= 0:
                raise _checks.bad_element(self.problem, bad_value, self.name)

    def bad_elements(self, targets):
        """First bad target and first bad probability, or -1, found without writing anything."""
        problem = self.problem
        bad = self.core.element_totals(targets, None, self.threads)[1]
        if self.name == "logits":
            return bad, -1
        return bad, self.core.element_totals(
            problem.values.astype(problem.dtype, copy=False), None, self.threads
        )[1]

    def denominator(self):
        problem = self.problem
        if self.reduction in ("sum", "none"):
            return 1.0
        if problem.sample_weight is None or self.reduction != "mean":
            return float(problem.values.size)
        return self.core.element_totals(problem.targets, problem.sample_weight, self.threads)[0]

    def run(self, *, grad=False, hess=False, out=None, upstream=1.0, row_upstream=None):
        """(loss, grad, hess), None for what was not asked for; `upstream` scales gradient and Hessian."""
        problem = self.problem
        _, values, targets, weight, pos_weight, shape, dtype = problem
        grad_array = grad_rows = hess_array = hess_rows = per_element = None
        if row_upstream is not None:
            row_upstream = row_upstream.reshape(values.shape)
            weight = row_upstream if weight is None else weight * row_upstream
        if grad:
            grad_array = _checks.output(out, problem.source)
            grad_rows = element_rows(grad_array, values.shape)
            if out is not None:
                targets, weight = _checks.apart(out, targets), _checks.apart(out, weight)
                pos_weight = _checks.apart(out, pos_weight)
                if not _checks.same_memory(out, problem.source):
                    values = _checks.apart(out, values)
                elif self.check:
                    self.refuse(*self.bad_elements(targets))
        if hess:
            hess_array = np.empty(shape, problem.source.dtype)
            hess_rows = element_rows(hess_array, values.shape)
        if self.reduction == "none":
            per_element = np.empty(shape, dtype)
        denominator = self.denominator()
        total, *bad = self.kernel(
            values,
            targets,
            weight,
            pos_weight,
            self.smoothing,
            self.unit * upstream / denominator if denominator else 0.0,
            None if per_element is None else per_element.reshape(values.shape),
            grad_rows,
            hess_rows,
            self.threads,
            *self.extra,
        )
        self.refuse(*bad)
        if denominator == 0:
            for array in (grad_array, hess_array):
                if array is not None:
                    array[...] = 0
            return 0.0, grad_array, hess_array
        if grad_array is not None and not np.may_share_memory(grad_rows, grad_array):
            grad_array[...] = grad_rows.reshape(shape)
        if per_element is None:
            return total * self.unit / denominator, grad_array, hess_array
        if self.unit != 1.0:
            per_element *= dtype.type(self.unit)
        return per_element, grad_array, hess_array

    def backward(self, grad_loss, out):
        """Gradient for an upstream gradient: a number, or one per element with reduction="none"."""
        if self.reduction != "none":
            return self.run(grad=True, out=out, upstream=upstream(grad_loss))[1]
        problem = self.problem
        rows = _checks.per_row(grad_loss, "grad_loss", problem.shape, problem.dtype, check=self.check)
        return self.run(grad=True, out=out, row_upstream=rows)[1]

    def row_factor(self):
        """|weight| times unit over denominator of every element, broadcastable to the logits."""
        denominator, weight = self.denominator(), self.problem.sample_weight
        factor = self.unit / denominator if denominator else 0.0
        return factor if weight is None else np.abs(weight.reshape(self.problem.shape)) * factor

    def positive(self, hess, hessian):
        """A curvature policy other than "exact"; `hess` is the exact diagonal, and may be written."""
        if hessian == "upper":
            return self.upper(hess)
        if hessian in ("xgboost", "lightgbm"):
            hess = np.abs(self.of_cross_entropy().run(hess=True)[2])
            if hessian == "lightgbm":
                return hess
            return np.maximum(hess, XGBOOST_FLOOR * self.row_factor(), out=hess, casting="same_kind")
        return super().positive(hess, hessian)

    def of_cross_entropy(self):
        """The same call for the plain cross-entropy."""
        return self

    def upper(self, hess):
        """What dominates the Hessian of an element, and is not negative: for a convex loss the Hessian itself."""
        return np.maximum(hess, 0, out=hess)

    def hvp(self, x):
        """Hessian times `x`: the Hessian of an elementwise loss is diagonal."""
        problem = self.problem
        x = _checks.numbers_like(x, "x", problem.dtype)
        if x.shape != problem.shape:
            raise ValueError(f"x: expected the shape of logits, {problem.shape}, got {x.shape}")
        hess = self.run(hess=True)[2]
        hess *= x
        return hess

    def hessian(self, factor):
        """`Hessian`: factor times that of the reduced loss, a diagonal."""
        diagonal = self.run(hess=True)[2].astype(np.float64)
        diagonal = diagonal * factor if factor else np.zeros(diagonal.shape)
        return Hessian(self.problem.source, None, diagonal, (), self.core, self.threads)


def device_call(logits, targets, weight, pos_weight, smoothing, reduction, base, backend, check, **which):
    """The call on a device, repeated where it checks nothing; `which` loss, and of logits or probabilities."""
    arrays = (logits, targets, weight, pos_weight)
    options = (smoothing, reduction, base)
    make = functools.partial(DeviceElementCall, *arrays, *options, backend, check, **which)
    return make() if check else Repeated(make, arrays, (*options, type(smoothing), backend, *which.values()))


def sigmoid_call(logits, targets, weight, pos_weight, smoothing, reduction, base, threads, backend, check):
    """The checked call where the logits are: on a CUDA device, or in memory."""
    options = (weight, pos_weight, smoothing, reduction, base)
    if _device.is_device(logits):
        return device_call(logits, targets, *options, backend, check)
    return ElementCall("sigmoid_elements", logits, targets, *options, threads, backend, check)


def binary_call(values, targets, weight, pos_weight, smoothing, reduction, base, threads, backend, check):
    """The checked call where the probabilities are: on a CUDA device, or in memory."""
    options = (weight, pos_weight, smoothing, reduction, base)
    if _device.is_device(values):
        return device_call(values, targets, *options, backend, check, name="probabilities")
    return ElementCall("binary_elements", values, targets, *options, threads, backend, check)


def element_rows(array, matrix):
    """Array as a kernel fills it, 2-D with a contiguous last axis: a view, or a fresh buffer where no view exists."""
    rows = array.reshape(matrix)
    direct = rows.strides[1] == rows.itemsize or rows.shape[1] <= 1
    if direct and array.flags.aligned and (rows.size == 0 or np.may_share_memory(rows, array)):
        return rows
    return np.empty(matrix, array.dtype)


@_checks.answers_in_kind()
def sigmoid_cross_entropy(
    logits,
    targets,
    *,
    sample_weight=None,
    pos_weight=None,
    label_smoothing=0.0,
    reduction="mean",
    base=None,
    num_threads=None,
    backend=None,
    check=True,
):
    """Binary cross-entropy of logits, element by element.

    L = v (pos_weight y' softplus(-z) + (1 - y') softplus(z)) with y' = (1 - a) y + a / 2 and softplus(x) =
    max(x, 0) + log1p(exp(-abs(x))). Unlike softmax over two classes, each element stands alone: multilabel problems.

    Parameters
    ----------
    logits : array-like of any shape, also 0-d
        float32, float64, float16 or bfloat16; integers become float64. Infinities have their limits.
    targets : array-like, shape of logits
        Probabilities of the positive class, in [0, 1]; bool and integers 0, 1 too.
    sample_weight : array-like, broadcastable to the shape of logits, optional
        Weight v of each element.
    pos_weight : array-like, broadcastable to the shape of logits, optional
        Non-negative factor of the positive term, often one number per column.
    label_smoothing : float in [0, 1], default=0.0
        a above.
    reduction : {"mean", "sum", "none", "mean_rows", "mean_all"}, default="mean"
        "mean" divides by the sum of the weights over the elements; "mean_rows" and "mean_all" by their number.
    base : float, optional
        Base of the logarithm; None for nats.
    num_threads : int, optional
        As for `softmax_cross_entropy`.
    backend : {None, "auto", "numpy", "cpu", "cuda"}, default=None
        Which kernels. Arrays on a CUDA device run there; "cuda" copies NumPy arrays there and the results back.
    check : bool, default=True
        False skips the checks that read data.

    Returns
    -------
    float, or ndarray of the shape of logits with reduction="none"
        In nats unless `base` is given.

    Raises
    ------
    TypeError
        Arrays that are not numbers.
    ValueError
        Shapes that do not fit; a target outside [0, 1]; an option outside its range.

    Examples
    --------
    >>> import fastxent as fx
    >>> round(fx.sigmoid_cross_entropy([0.0, 0.0], [1, 0]), 10)
    0.6931471806
    """
    options = (sample_weight, pos_weight, label_smoothing, reduction, base, num_threads, backend, check)
    return sigmoid_call(logits, targets, *options).run()[0]


@_checks.answers_in_kind()
def sigmoid_cross_entropy_with_grad(
    logits,
    targets,
    *,
    out=None,
    sample_weight=None,
    pos_weight=None,
    label_smoothing=0.0,
    reduction="mean",
    base=None,
    num_threads=None,
    backend=None,
    check=True,
):
    """Binary cross-entropy of logits and its gradient, sigma(z) - y over the denominator, in one sweep.

    Parameters
    ----------
    logits, targets, sample_weight, pos_weight, label_smoothing, reduction, base, num_threads, backend, check
        As for `sigmoid_cross_entropy`.
    out : ndarray, shape and dtype of logits, optional
        Where the gradient goes. May be `logits` itself.

    Returns
    -------
    loss : float, or ndarray of the shape of logits with reduction="none"
    grad : ndarray, shape and dtype of logits

    Raises
    ------
    TypeError, ValueError
        As `sigmoid_cross_entropy`, and for an `out` of another shape or dtype.

    Examples
    --------
    >>> import fastxent as fx
    >>> loss, grad = fx.sigmoid_cross_entropy_with_grad([0.0, 0.0], [1, 0])
    >>> grad.tolist()
    [-0.25, 0.25]
    """
    options = (sample_weight, pos_weight, label_smoothing, reduction, base, num_threads, backend, check)
    return sigmoid_call(logits, targets, *options).run(grad=True, out=out)[:2]


@_checks.answers_in_kind()
def sigmoid_cross_entropy_forward(
    logits,
    targets,
    *,
    sample_weight=None,
    pos_weight=None,
    label_smoothing=0.0,
    reduction="mean",
    base=None,
    num_threads=None,
    backend=None,
    check=True,
):
    """Binary cross-entropy of logits, for a framework's forward pass: `sigmoid_cross_entropy` itself.

    Parameters
    ----------
    logits, targets, sample_weight, pos_weight, label_smoothing, reduction, base, num_threads, backend, check
        As for `sigmoid_cross_entropy`.

    Returns
    -------
    float, or ndarray of the shape of logits with reduction="none"

    Raises
    ------
    TypeError, ValueError
        As `sigmoid_cross_entropy`.

    Examples
    --------
    >>> import fastxent as fx
    >>> fx.sigmoid_cross_entropy_forward([0.0, 0.0], [1, 0], base=2)
    1.0
    """
    options = (sample_weight, pos_weight, label_smoothing, reduction, base, num_threads, backend, check)
    return sigmoid_call(logits, targets, *options).run()[0]


@_checks.answers_in_kind(1)
def sigmoid_cross_entropy_backward(
    grad_loss,
    logits,
    targets,
    *,
    out=None,
    sample_weight=None,
    pos_weight=None,
    label_smoothing=0.0,
    reduction="mean",
    base=None,
    num_threads=None,
    backend=None,
    check=True,
):
    """Gradient of binary cross-entropy with respect to the logits for an upstream gradient.

    Parameters
    ----------
    grad_loss : float, or array-like of the shape of logits with reduction="none"
        Gradient with respect to what `sigmoid_cross_entropy_forward` returned.
    logits, targets, out, sample_weight, pos_weight, label_smoothing, reduction, base, num_threads, backend, check
        As for `sigmoid_cross_entropy_with_grad`.

    Returns
    -------
    ndarray, shape and dtype of logits
        `out` if given.

    Raises
    ------
    TypeError, ValueError
        As `sigmoid_cross_entropy_with_grad`.

    Examples
    --------
    >>> import fastxent as fx
    >>> fx.sigmoid_cross_entropy_backward(4.0, [0.0, 0.0], [1, 0]).tolist()
    [-1.0, 1.0]
    """
    options = (sample_weight, pos_weight, label_smoothing, reduction, base, num_threads, backend, check)
    return sigmoid_call(logits, targets, *options).backward(grad_loss, out)


@_checks.answers_in_kind()
def binary_cross_entropy(
    probabilities,
    targets,
    *,
    sample_weight=None,
    pos_weight=None,
    label_smoothing=0.0,
    reduction="mean",
    base=None,
    num_threads=None,
    backend=None,
    check=True,
):
    """Binary cross-entropy of probabilities, without a clamp.

    L = -v (pos_weight y' log p + (1 - y') log1p(-p)) with 0 log 0 = 0; a certain mistake costs infinity. Where the
    logits are at hand, `sigmoid_cross_entropy` keeps more digits.

    Parameters
    ----------
    probabilities : array-like of any shape
        Probabilities of the positive class, in [0, 1].
    targets, sample_weight, pos_weight, label_smoothing, reduction, base, num_threads, backend, check
        As for `sigmoid_cross_entropy`.

    Returns
    -------
    float, or ndarray of the shape of probabilities with reduction="none"

    Raises
    ------
    TypeError
        Arrays that are not numbers.
    ValueError
        Shapes that do not fit; a probability or target outside [0, 1]; an option outside its range.

    Examples
    --------
    >>> import fastxent as fx
    >>> round(fx.binary_cross_entropy([0.8], [1]), 10)
    0.2231435513
    >>> fx.binary_cross_entropy([0.0, 1.0], [1, 1], reduction="none").tolist()
    [inf, 0.0]
    """
    options = (sample_weight, pos_weight, label_smoothing, reduction, base, num_threads, backend, check)
    return binary_call(probabilities, targets, *options).run()[0]


@_checks.answers_in_kind()
def binary_cross_entropy_with_grad(
    probabilities,
    targets,
    *,
    out=None,
    sample_weight=None,
    pos_weight=None,
    label_smoothing=0.0,
    reduction="mean",
    base=None,
    num_threads=None,
    backend=None,
    check=True,
):
    """Binary cross-entropy of probabilities and its gradient with respect to them, (p - y) / (p (1 - p)).

    Parameters
    ----------
    probabilities, targets, sample_weight, pos_weight, label_smoothing, reduction, base, num_threads, backend, check
        As for `binary_cross_entropy`.
    out : ndarray, shape and dtype of probabilities, optional
        Where the gradient goes. May be `probabilities` itself.

    Returns
    -------
    loss : float, or ndarray of the shape of probabilities with reduction="none"
    grad : ndarray, shape and dtype of probabilities

    Raises
    ------
    TypeError, ValueError
        As `binary_cross_entropy`, and for an `out` of another shape or dtype.

    Examples
    --------
    >>> import fastxent as fx
    >>> loss, grad = fx.binary_cross_entropy_with_grad([0.8, 0.5], [1, 0], reduction="sum")
    >>> grad.round(12).tolist()
    [-1.25, 2.0]
    """
    options = (sample_weight, pos_weight, label_smoothing, reduction, base, num_threads, backend, check)
    return binary_call(probabilities, targets, *options).run(grad=True, out=out)[:2]


@dataclass(frozen=True, repr=False)
class SigmoidCrossEntropy(Loss, names=("sigmoid", "binary")):
    """Binary cross-entropy on logits as an object: the options of `sigmoid_cross_entropy`, checked once.

    Parameters
    ----------
    pos_weight : float or sequence of floats, optional
        Factor of the positive term, one for all or one per column (kept as a tuple).
    label_smoothing : float in [0, 1], default=0.0
        As for `sigmoid_cross_entropy`.

    Raises
    ------
    TypeError, ValueError
        An option of the wrong type or outside its range.

    Examples
    --------
    >>> import fastxent as fx
    >>> round(fx.SigmoidCrossEntropy(pos_weight=2.0).loss([0.0, 0.0], [1, 0]), 10)
    1.0397207708
    """

    elementwise: ClassVar[bool] = True

    pos_weight: float | tuple | None = None
    label_smoothing: float = 0.0

    def __post_init__(self):
        weight = self.pos_weight
        if weight is not None:
            weight = (
                as_tuple(weight, "pos_weight") if np.ndim(weight) else _checks.real(weight, "pos_weight", 0.0)
            )
            if isinstance(weight, tuple):
                weight = tuple(_checks.real(w, "pos_weight", 0.0) for w in weight)
        object.__setattr__(self, "pos_weight", weight)
        _checks.real(self.label_smoothing, "label_smoothing", 0.0, 1.0)

    def _call(self, z, y, sample_weight, reduction, backend, num_threads, check):
        options = (
            sample_weight,
            self.pos_weight,
            self.label_smoothing,
            reduction,
            None,
            num_threads,
            backend,
            check,
        )
        return sigmoid_call(z, y, *options)
