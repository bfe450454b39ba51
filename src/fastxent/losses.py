"""Cross-entropy on plain arrays: functions, and the same losses as objects.

Shapes: `logits` (n_samples, n_classes) or any shape with the classes on `axis`; integer labels of the shape without
that axis, or soft targets of the same shape.  Rows are the positions off the class axis.  Arithmetic is in float32
for float32, float16 and bfloat16 logits and in float64 otherwise; sums over rows are float64.  A reduced loss is a
Python float; reduction="none" gives one loss per row, and gradients as for "sum".

With u = logits / temperature + logit_bias, p = softmax(u), t' the smoothed target, q_k = w_k t'_k and Q = sum q_k,

    loss of a row = v (Q logsumexp(u) - sum_k q_k u_k + z_loss logsumexp(u)^2)

for sample weight v and class weights w.  Reductions: "sum"; "mean" divides by sum_i v_i sum_k w_k t_ik (PyTorch's mean
for labels); "mean_rows" by the number of rows that are not ignored; "mean_all" by the number of rows; "none" keeps
the rows.  Where the denominator is 0, the loss is 0 (`empty="zero"`) or NaN (`empty="nan"`) and the gradient 0.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from . import _backend, _checks

__all__ = [
    "SigmoidCrossEntropy",
    "SoftmaxCrossEntropy",
    "binary_cross_entropy",
    "binary_cross_entropy_with_grad",
    "sigmoid_cross_entropy",
    "sigmoid_cross_entropy_backward",
    "sigmoid_cross_entropy_forward",
    "sigmoid_cross_entropy_with_grad",
    "softmax_cross_entropy",
    "softmax_cross_entropy_backward",
    "softmax_cross_entropy_forward",
    "softmax_cross_entropy_with_grad",
]


# ------------------------------------------------------------------------------------------------- softmax: machinery


class _SoftmaxOptions(NamedTuple):
    class_weight: object
    label_smoothing: float
    smoothing: str
    ignore_index: int | None
    z_loss: float
    temperature: float
    logit_bias: object
    axis: int
    base: float | None
    empty: str


def _check_softmax_options(o):
    """Canonical scalars of the options, each checked: (label_smoothing, exclude_target, ignore_index, z_loss, T)."""
    smoothing = o.label_smoothing
    if smoothing != 0.0:
        smoothing = _checks.real(smoothing, "label_smoothing", 0.0, 1.0)
    _checks.choice(o.smoothing, "smoothing", _checks.SMOOTHINGS)
    z_loss = o.z_loss
    if z_loss != 0.0:
        z_loss = _checks.real(z_loss, "z_loss", 0.0)
    temperature = o.temperature
    if temperature != 1.0:
        temperature = _checks.real(temperature, "temperature", 0.0, open_low=True)
    _checks.choice(o.empty, "empty", ("zero", "nan"))
    ignore = o.ignore_index
    if ignore is not None and type(ignore) is not int:
        ignore = _checks.whole(ignore, "ignore_index")
    return float(smoothing), o.smoothing == "exclude_target", ignore, float(z_loss), float(temperature)


class _SoftmaxCall:
    """One checked call: the problem's arrays, its options and its denominator."""

    def __init__(self, logits, targets, sample_weight, reduction, options, num_threads, backend, check):
        self.core = _backend.choose(backend)
        self.threads = _checks.thread_count(num_threads)
        self.reduction = _checks.choice(reduction, "reduction", _checks.REDUCTIONS)
        self.scalars = _check_softmax_options(options)
        self.unit = 1.0 if options.base is None else _checks.per_base(options.base)
        self.options = options
        self.given = targets
        self.check = check
        self.problem = problem = _checks.softmax_input(logits, targets, options.axis)
        n_classes, dtype = problem.logits.shape[1], problem.dtype
        weight = class_weight = bias = None
        if sample_weight is not None:
            weight = problem.rows(_checks.per_row(sample_weight, "sample_weight", problem.row_shape, dtype, check=check))
        if options.class_weight is not None:
            class_weight = _checks.per_class(options.class_weight, "class_weight", n_classes, dtype, check=check)
        if options.logit_bias is not None:
            bias = _checks.per_class(options.logit_bias, "logit_bias", n_classes, dtype, check=check)
        self.weight, self.class_weight, self.bias = weight, class_weight, bias
        self.denominator = None

    def totals(self, *, first):
        """Find the denominator; with `first`, also check every target before anything is written."""
        problem, reduction, ignore = self.problem, self.reduction, self.scalars[2]
        n_rows = problem.logits.shape[0] * problem.logits.shape[2]
        plain = reduction == "mean" and not (problem.soft or self.weight is not None or self.class_weight is not None)
        known = ignore is None or problem.soft
        if reduction in ("sum", "none"):
            self.denominator = 1.0
        elif reduction == "mean_all" or (known and (plain or reduction == "mean_rows")):
            self.denominator = float(n_rows)
        if self.denominator is None or first:
            weights = (self.weight, self.class_weight)
            total, counted, bad = self.core.target_totals(
                problem.targets, *weights, problem.logits.shape[1], ignore, self.threads
            )
            self.refuse(bad)
            if self.denominator is None:
                self.denominator = total if reduction == "mean" else float(counted)

    def refuse(self, bad):
        if bad >= 0 and self.check:
            raise _checks.bad_target(self.problem, bad, self.given)

    def run(self, *, grad=False, hess=False, lse=False, out=None, upstream=1.0):
        """(loss, grad, hess, lse), None for what was not asked for; `upstream` scales gradient and Hessian."""
        problem = self.problem
        logits, dtype, axis = problem.logits, problem.dtype, problem.axis
        targets, weight, class_weight, bias = problem.targets, self.weight, self.class_weight, self.bias
        grad_array = grad_rows = hess_array = hess_rows = lse_array = per_row = None
        in_place = False
        if grad:
            grad_array = _checks.output(out, problem.source)
            if out is not None:
                in_place = _checks.same_memory(out, problem.source)
                if not in_place:
                    logits = _checks.apart(out, logits)
                targets, weight = _checks.apart(out, targets), _checks.apart(out, weight)
                class_weight, bias = _checks.apart(out, class_weight), _checks.apart(out, bias)
            grad_rows = _writable_rows(grad_array, axis)
        if hess:
            hess_array = np.empty_like(problem.source, subok=False)
            hess_rows = _writable_rows(hess_array, axis)
        if lse:
            lse_array = np.empty(problem.row_shape, dtype)
        if self.reduction == "none":
            per_row = np.empty(problem.row_shape, dtype)
        self.totals(first=in_place and self.check)
        denominator = self.denominator
        smoothing, exclude, ignore, z_loss, temperature = self.scalars
        total, bad = self.core.softmax_rows(
            logits,
            targets,
            weight,
            class_weight,
            bias,
            smoothing,
            exclude,
            ignore,
            z_loss,
            temperature,
            self.unit * upstream / denominator if denominator else 0.0,
            None if per_row is None else problem.rows(per_row),
            None if lse_array is None else problem.rows(lse_array),
            grad_rows,
            hess_rows,
            self.threads,
        )
        self.refuse(bad)
        if denominator == 0:
            loss = 0.0 if self.options.empty == "zero" else math.nan
            for array in (grad_array, hess_array):
                if array is not None:
                    array[...] = 0
            return loss, grad_array, hess_array, lse_array
        _write_back(grad_array, grad_rows, axis)
        _write_back(hess_array, hess_rows, axis)
        if per_row is None:
            return total * self.unit / denominator, grad_array, hess_array, lse_array
        if self.unit != 1.0:
            per_row *= dtype.type(self.unit)
        return per_row, grad_array, hess_array, lse_array

    def backward(self, grad_loss, out):
        """Gradient for an upstream gradient: a number, or one per row with reduction="none"."""
        if self.reduction != "none":
            return self.run(grad=True, out=out, upstream=_checks.real(_scalar(grad_loss), "grad_loss"))[1]
        problem = self.problem
        rows = _checks.per_row(grad_loss, "grad_loss", problem.row_shape, problem.dtype, check=self.check)
        rows = problem.rows(rows)
        self.weight = rows if self.weight is None else rows * self.weight
        return self.run(grad=True, out=out)[1]

    def hvp(self, x):
        """Hessian-vector product with `x`, in the shape and dtype of the logits."""
        problem = self.problem
        x = _checks.numbers_like(x, "x", problem.dtype)
        if x.shape != problem.shape:
            raise ValueError(f"x: expected the shape of logits, {problem.shape}, got {x.shape}")
        product = np.empty_like(problem.source, subok=False)
        rows = _writable_rows(product, problem.axis)
        self.totals(first=False)
        smoothing, exclude, ignore, z_loss, temperature = self.scalars
        bad = self.core.softmax_hvp(
            problem.logits,
            problem.targets,
            self.weight,
            self.class_weight,
            self.bias,
            smoothing,
            exclude,
            ignore,
            z_loss,
            temperature,
            self.unit / self.denominator if self.denominator else 0.0,
            _checks.layered(x, problem.axis),
            rows,
            self.threads,
        )
        self.refuse(bad)
        _write_back(product, rows, problem.axis)
        if self.denominator == 0:
            product[...] = 0
        return product


def _writable_rows(array, axis):
    """Array as (outer, classes, inner) for a kernel to fill: a view, or a fresh buffer where no view exists."""
    rows = _checks.layered(array, axis)
    if array.flags.aligned and (rows.size == 0 or np.may_share_memory(rows, array)):
        return rows
    return np.empty(rows.shape, array.dtype)


def _write_back(array, rows, axis):
    """Copy a buffer of `_writable_rows` that is no view to where the caller wants it."""
    if array is not None and rows.size and not np.may_share_memory(rows, array):
        array[...] = rows.reshape(array.shape)


def _scalar(value):
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value


# ------------------------------------------------------------------------------------------------- softmax: functions


def softmax_cross_entropy(
    logits,
    targets,
    *,
    sample_weight=None,
    class_weight=None,
    label_smoothing=0.0,
    smoothing="uniform",
    ignore_index=-100,
    z_loss=0.0,
    temperature=1.0,
    logit_bias=None,
    axis=-1,
    reduction="mean",
    base=None,
    empty="zero",
    num_threads=None,
    backend=None,
    check=True,
):
    """Softmax cross-entropy of logits against labels or probabilities.

    For a label y: L = logsumexp(z) - z_y, computed as log1p(sum of exp(z_k - m) without one maximum m) + (m - z_y),
    which keeps every digit of a confident row. The module's docstring gives the formula with all options.

    Parameters
    ----------
    logits : array-like, shape (n_samples, n_classes), or any shape with the classes on `axis`
        float32, float64, float16 or bfloat16; integers become float64. Unbounded; -inf and one +inf have their limits.
    targets : array-like of integers, shape of logits without `axis`; or of reals, shape of logits
        Labels in [0, n_classes), of any integer dtype or bool; or non-negative class weights of every row, used as
        given (they need not sum to 1).
    sample_weight : array-like, broadcastable to the shape of the rows, optional
        Weight v of each row. Any sign; rows of weight 0 are as if deleted.
    class_weight : array-like, shape (n_classes,), optional
        Non-negative weight w of each class.
    label_smoothing : float in [0, 1], default=0.0
        Share a of the target that is spread over the classes (Szegedy et al., 2016).
    smoothing : {"uniform", "exclude_target"}, default="uniform"
        Spread over all classes, t' = (1 - a) t + a / K, or over the others, (1 - a) t + a / (K - 1) (1 - t).
    ignore_index : int or None, default=-100
        Label whose rows count nothing: loss 0, gradient 0. Soft targets know no such label.
    z_loss : float >= 0, default=0.0
        Coefficient of logsumexp(u)^2 (Chowdhery et al., 2022).
    temperature : float > 0, default=1.0
        u = logits / temperature + logit_bias.
    logit_bias : array-like, shape (n_classes,), optional
        Added to the logits, as in logit adjustment (Menon et al., 2021).
    axis : int, default=-1
        The axis of the classes. axis=1 of (N, C, H, W) costs no transposed copy.
    reduction : {"mean", "sum", "none", "mean_rows", "mean_all"}, default="mean"
        See the module's docstring.
    base : float, optional
        Base of the logarithm: 2 for bits. None for nats.
    empty : {"zero", "nan"}, default="zero"
        The mean of nothing.
    num_threads : int, optional
        At most so many threads. None: OMP_NUM_THREADS, CPU affinity and cgroup limits decide. The result has the same
        bits for any number.
    backend : {None, "auto", "numpy", "cpu", "cuda"}, default=None
        Which kernels.
    check : bool, default=True
        False skips the checks that read data; a bad label then gives a NaN row.

    Returns
    -------
    float, or ndarray of the rows' shape with reduction="none"
        In nats unless `base` is given.

    Raises
    ------
    TypeError
        Labels that are not integers; arrays that are not numbers.
    ValueError
        Shapes that do not fit; a label outside [0, n_classes); negative probabilities; an option outside its range.

    Examples
    --------
    >>> import fastxent as fx
    >>> round(fx.softmax_cross_entropy([[40.0, 0.0]], [0]) * 1e18, 12)
    4.248354255292
    >>> fx.softmax_cross_entropy([[1.0, 1.0]], [1], base=2)
    1.0
    """
    options = _SoftmaxOptions(
        class_weight, label_smoothing, smoothing, ignore_index, z_loss, temperature, logit_bias, axis, base, empty
    )
    return _SoftmaxCall(logits, targets, sample_weight, reduction, options, num_threads, backend, check).run()[0]


def softmax_cross_entropy_with_grad(
    logits,
    targets,
    *,
    out=None,
    sample_weight=None,
    class_weight=None,
    label_smoothing=0.0,
    smoothing="uniform",
    ignore_index=-100,
    z_loss=0.0,
    temperature=1.0,
    logit_bias=None,
    axis=-1,
    reduction="mean",
    base=None,
    empty="zero",
    num_threads=None,
    backend=None,
    check=True,
):
    """Softmax cross-entropy and its gradient with respect to the logits, in one sweep.

    For labels the gradient is p_k - [k = y], divided by the reduction's denominator; at the label it is computed as
    minus the sum of the other probabilities, never as p_y - 1.

    Parameters
    ----------
    logits, targets, sample_weight, class_weight, label_smoothing, smoothing, ignore_index, z_loss, temperature,     logit_bias, axis, reduction, base, empty, num_threads, backend, check
        As for `softmax_cross_entropy`.
    out : ndarray, shape and dtype of logits, optional
        Where the gradient goes. May be `logits` itself: then all targets are checked before the first write.

    Returns
    -------
    loss : float, or ndarray of the rows' shape with reduction="none"
    grad : ndarray, shape and dtype of logits
        `out` if given. With reduction="none", the gradient of the sum.

    Raises
    ------
    TypeError, ValueError
        As `softmax_cross_entropy`, and for an `out` of another shape or dtype.

    Examples
    --------
    >>> import numpy as np, fastxent as fx
    >>> loss, grad = fx.softmax_cross_entropy_with_grad(np.log([[0.8, 0.2]]), [0])
    >>> round(loss, 10), grad.round(10).tolist()
    (0.2231435513, [[-0.2, 0.2]])
    """
    options = _SoftmaxOptions(
        class_weight, label_smoothing, smoothing, ignore_index, z_loss, temperature, logit_bias, axis, base, empty
    )
    call = _SoftmaxCall(logits, targets, sample_weight, reduction, options, num_threads, backend, check)
    return call.run(grad=True, out=out)[:2]


def softmax_cross_entropy_forward(
    logits,
    targets,
    *,
    sample_weight=None,
    class_weight=None,
    label_smoothing=0.0,
    smoothing="uniform",
    ignore_index=-100,
    z_loss=0.0,
    temperature=1.0,
    logit_bias=None,
    axis=-1,
    reduction="mean",
    base=None,
    empty="zero",
    num_threads=None,
    backend=None,
    check=True,
):
    """Loss and log-sum-exp of every row: what a framework keeps for its backward pass.

    Parameters
    ----------
    logits, targets, sample_weight, class_weight, label_smoothing, smoothing, ignore_index, z_loss, temperature,     logit_bias, axis, reduction, base, empty, num_threads, backend, check
        As for `softmax_cross_entropy`.

    Returns
    -------
    loss : float, or ndarray of the rows' shape with reduction="none"
    lse : ndarray of the rows' shape, in the compute dtype
        logsumexp(u), in nats.

    Raises
    ------
    TypeError, ValueError
        As `softmax_cross_entropy`.

    Examples
    --------
    >>> import fastxent as fx
    >>> loss, lse = fx.softmax_cross_entropy_forward([[0.0, 0.0]], [1], reduction="sum")
    >>> round(loss, 9), lse.round(9).tolist()
    (0.693147181, [0.693147181])
    """
    options = _SoftmaxOptions(
        class_weight, label_smoothing, smoothing, ignore_index, z_loss, temperature, logit_bias, axis, base, empty
    )
    call = _SoftmaxCall(logits, targets, sample_weight, reduction, options, num_threads, backend, check)
    loss, _, _, lse = call.run(lse=True)
    return loss, lse


def softmax_cross_entropy_backward(
    grad_loss,
    logits,
    targets,
    lse=None,
    *,
    out=None,
    sample_weight=None,
    class_weight=None,
    label_smoothing=0.0,
    smoothing="uniform",
    ignore_index=-100,
    z_loss=0.0,
    temperature=1.0,
    logit_bias=None,
    axis=-1,
    reduction="mean",
    base=None,
    empty="zero",
    num_threads=None,
    backend=None,
    check=True,
):
    """Gradient with respect to the logits for an upstream gradient.

    Parameters
    ----------
    grad_loss : float, or array-like of the rows' shape with reduction="none"
        Gradient with respect to what `softmax_cross_entropy_forward` returned.
    lse : array-like of the rows' shape, optional
        What forward returned. A hint: the CPU kernels read the row anyway and sum it again, because a rounded
        log-sum-exp costs thousands of ulp at large offsets.
    logits, targets, out, sample_weight, class_weight, label_smoothing, smoothing, ignore_index, z_loss, temperature,     logit_bias, axis, reduction, base, empty, num_threads, backend, check
        As for `softmax_cross_entropy_with_grad`.

    Returns
    -------
    ndarray, shape and dtype of logits
        `out` if given.

    Raises
    ------
    TypeError, ValueError
        As `softmax_cross_entropy_with_grad`.

    Examples
    --------
    >>> import fastxent as fx
    >>> fx.softmax_cross_entropy_backward(2.0, [[0.0, 0.0]], [1]).tolist()
    [[1.0, -1.0]]
    """
    options = _SoftmaxOptions(
        class_weight, label_smoothing, smoothing, ignore_index, z_loss, temperature, logit_bias, axis, base, empty
    )
    call = _SoftmaxCall(logits, targets, sample_weight, reduction, options, num_threads, backend, check)
    if lse is not None:
        shape = np.shape(lse)
        if shape != call.problem.row_shape:
            raise ValueError(f"lse: expected shape {call.problem.row_shape}, got {shape}")
    return call.backward(grad_loss, out)


# -------------------------------------------------------------------------------------------------- elementwise losses


class _ElementCall:
    """One checked call of an elementwise loss."""

    def __init__(
        self, kernel, values, targets, sample_weight, pos_weight, label_smoothing, reduction, base, threads, backend, check
    ):
        self.core = _backend.choose(backend)
        self.kernel = getattr(self.core, kernel)
        self.name = "logits" if kernel == "sigmoid_elements" else "probabilities"
        self.threads = _checks.thread_count(threads)
        self.reduction = _checks.choice(reduction, "reduction", _checks.REDUCTIONS)
        self.smoothing = _checks.real(label_smoothing, "label_smoothing", 0.0, 1.0)
        self.unit = _checks.per_base(base)
        self.check = check
        self.problem = _checks.element_input(values, targets, sample_weight, pos_weight, self.name, check=check)

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
        return bad, self.core.element_totals(problem.values.astype(problem.dtype, copy=False), None, self.threads)[1]

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
            grad_rows = _element_rows(grad_array, values.shape)
            if out is not None:
                targets, weight = _checks.apart(out, targets), _checks.apart(out, weight)
                pos_weight = _checks.apart(out, pos_weight)
                if not _checks.same_memory(out, problem.source):
                    values = _checks.apart(out, values)
                elif self.check:
                    self.refuse(*self.bad_elements(targets))
        if hess:
            hess_array = np.empty(shape, problem.source.dtype)
            hess_rows = _element_rows(hess_array, values.shape)
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
            return self.run(grad=True, out=out, upstream=_checks.real(_scalar(grad_loss), "grad_loss"))[1]
        problem = self.problem
        rows = _checks.per_row(grad_loss, "grad_loss", problem.shape, problem.dtype, check=self.check)
        return self.run(grad=True, out=out, row_upstream=rows)[1]


def _element_rows(array, matrix):
    """Array as a kernel fills it, 2-D with a contiguous last axis: a view, or a fresh buffer where no view exists."""
    rows = array.reshape(matrix)
    direct = rows.strides[1] == rows.itemsize or rows.shape[1] <= 1
    if direct and array.flags.aligned and (rows.size == 0 or np.may_share_memory(rows, array)):
        return rows
    return np.empty(matrix, array.dtype)


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
    max(x, 0) + log1p(exp(-|x|)). Unlike softmax over two classes, each element stands alone: multilabel problems.

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
        Which kernels.
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
    return _ElementCall("sigmoid_elements", logits, targets, *options).run()[0]


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
    return _ElementCall("sigmoid_elements", logits, targets, *options).run(grad=True, out=out)[:2]


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
    return _ElementCall("sigmoid_elements", logits, targets, *options).run()[0]


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
    return _ElementCall("sigmoid_elements", logits, targets, *options).backward(grad_loss, out)


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
    return _ElementCall("binary_elements", probabilities, targets, *options).run()[0]


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
    return _ElementCall("binary_elements", probabilities, targets, *options).run(grad=True, out=out)[:2]


# ------------------------------------------------------------------------------------------------------------ objects


def _as_tuple(values, name):
    """Array option of a frozen dataclass as something hashable: a tuple of floats, or None."""
    if values is None:
        return None
    a = _checks.numbers_like(values, name, np.dtype(np.float64))
    if a.ndim != 1:
        raise ValueError(f"{name}: expected one number per class, got shape {a.shape}")
    return tuple(a.tolist())


@dataclasses.dataclass(frozen=True)
class SoftmaxCrossEntropy:
    """Softmax cross-entropy as an object: the options of `softmax_cross_entropy`, checked once.

    Parameters
    ----------
    class_weight, label_smoothing, smoothing, ignore_index, z_loss, temperature, logit_bias, axis, base, empty
        As for `softmax_cross_entropy`. Arrays are kept as tuples, so that the object compares, hashes and pickles.

    Raises
    ------
    TypeError, ValueError
        An option of the wrong type or outside its range.

    Examples
    --------
    >>> import fastxent as fx
    >>> loss = fx.SoftmaxCrossEntropy(label_smoothing=0.1)
    >>> value, grad = loss.loss_grad([[2.0, 0.0]], [0])
    >>> round(value, 10), grad.round(10).tolist()
    (0.226928011, [[-0.069202922, 0.069202922]])
    """

    class_weight: tuple | None = None
    label_smoothing: float = 0.0
    smoothing: str = "uniform"
    ignore_index: int | None = -100
    z_loss: float = 0.0
    temperature: float = 1.0
    logit_bias: tuple | None = None
    axis: int = -1
    base: float | None = None
    empty: str = "zero"

    def __post_init__(self):
        for name in ("class_weight", "logit_bias"):
            values = _as_tuple(getattr(self, name), name)
            if values is not None:
                _checks.per_class(values, name, len(values), np.dtype(np.float64))
            object.__setattr__(self, name, values)
        _check_softmax_options(self)
        _checks.per_base(self.base)
        _checks.whole(self.axis, "axis")

    def _call(self, logits, targets, sample_weight, reduction, backend, num_threads, check):
        return _SoftmaxCall(logits, targets, sample_weight, reduction, self, num_threads, backend, check)

    def loss(self, z, y, sample_weight=None, reduction="mean", *, backend=None, num_threads=None, check=True):
        """Loss of logits `z` against labels or probabilities `y`: a float, or one per row with "none"."""
        return self._call(z, y, sample_weight, reduction, backend, num_threads, check).run()[0]

    def loss_grad(
        self, z, y, sample_weight=None, reduction="mean", *, out=None, backend=None, num_threads=None, check=True
    ):
        """Loss, and its gradient with respect to `z`."""
        call = self._call(z, y, sample_weight, reduction, backend, num_threads, check)
        return call.run(grad=True, out=out)[:2]

    def grad_hess(
        self,
        z,
        y,
        sample_weight=None,
        reduction="mean",
        *,
        hessian="exact",
        backend=None,
        num_threads=None,
        check=True,
    ):
        """Gradient, and the diagonal of the Hessian, c p (1 - p) + 2 z_loss p^2 per class."""
        _checks.choice(hessian, "hessian", ("exact",))
        call = self._call(z, y, sample_weight, reduction, backend, num_threads, check)
        return call.run(grad=True, hess=True)[1:3]

    def hvp(self, z, y, x, sample_weight=None, reduction="mean", *, backend=None, num_threads=None, check=True):
        """Hessian times `x`, in the shape of the logits: c p (x - p.x) + 2 z_loss p (p.x) per row."""
        return self._call(z, y, sample_weight, reduction, backend, num_threads, check).hvp(x)


@dataclasses.dataclass(frozen=True)
class SigmoidCrossEntropy:
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

    pos_weight: float | tuple | None = None
    label_smoothing: float = 0.0

    def __post_init__(self):
        weight = self.pos_weight
        if weight is not None:
            weight = _as_tuple(weight, "pos_weight") if np.ndim(weight) else _checks.real(weight, "pos_weight", 0.0)
            if isinstance(weight, tuple):
                weight = tuple(_checks.real(w, "pos_weight", 0.0) for w in weight)
        object.__setattr__(self, "pos_weight", weight)
        _checks.real(self.label_smoothing, "label_smoothing", 0.0, 1.0)

    def _call(self, z, y, sample_weight, reduction, backend, num_threads, check):
        options = (sample_weight, self.pos_weight, self.label_smoothing, reduction, None, num_threads, backend, check)
        return _ElementCall("sigmoid_elements", z, y, *options)

    def loss(self, z, y, sample_weight=None, reduction="mean", *, backend=None, num_threads=None, check=True):
        """Loss of logits `z` against probabilities `y`: a float, or one per element with "none"."""
        return self._call(z, y, sample_weight, reduction, backend, num_threads, check).run()[0]

    def loss_grad(
        self, z, y, sample_weight=None, reduction="mean", *, out=None, backend=None, num_threads=None, check=True
    ):
        """Loss, and its gradient with respect to `z`."""
        call = self._call(z, y, sample_weight, reduction, backend, num_threads, check)
        return call.run(grad=True, out=out)[:2]

    def grad_hess(
        self,
        z,
        y,
        sample_weight=None,
        reduction="mean",
        *,
        hessian="exact",
        backend=None,
        num_threads=None,
        check=True,
    ):
        """Gradient and (diagonal) Hessian: (pos_weight y + 1 - y) sigma(z) sigma(-z)."""
        _checks.choice(hessian, "hessian", ("exact",))
        return self._call(z, y, sample_weight, reduction, backend, num_threads, check).run(grad=True, hess=True)[1:]

    def hvp(self, z, y, x, sample_weight=None, reduction="mean", *, backend=None, num_threads=None, check=True):
        """Hessian times `x`: the Hessian of an elementwise loss is diagonal."""
        call = self._call(z, y, sample_weight, reduction, backend, num_threads, check)
        x = _checks.numbers_like(x, "x", call.problem.dtype)
        if x.shape != call.problem.shape:
            raise ValueError(f"x: expected the shape of logits, {call.problem.shape}, got {x.shape}")
        hess = call.run(hess=True)[2]
        hess *= x
        return hess
