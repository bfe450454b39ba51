"""Softmax cross-entropy: one checked call of the kernels, the functions over it, and the losses of its family."""

import copy
import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .. import _backend, _checks, _device
from ._base import XGBOOST_FLOOR, Call, Hessian, Loss, Term, as_tuple, upstream, writable_rows, write_back
from ._on_device import DeviceSoftmaxCall
from ._repeated import Repeated

__all__ = [
    "SoftmaxCrossEntropy",
    "softmax_cross_entropy",
    "softmax_cross_entropy_backward",
    "softmax_cross_entropy_forward",
    "softmax_cross_entropy_with_grad",
]

# ------------------------------------------------------------------------------------------------- softmax: machinery


class SoftmaxOptions(NamedTuple):
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


def check_softmax_options(o):
    """Canonical scalars of the options, each checked: (label_smoothing, exclude_target, ignore_index, z_loss, T)."""
    smoothing = o.label_smoothing
    if type(smoothing) is not float or smoothing != 0.0:
        smoothing = _checks.real(smoothing, "label_smoothing", 0.0, 1.0)
    _checks.choice(o.smoothing, "smoothing", _checks.SMOOTHINGS)
    z_loss = o.z_loss
    if type(z_loss) is not float or z_loss != 0.0:
        z_loss = _checks.real(z_loss, "z_loss", 0.0)
    temperature = o.temperature
    if type(temperature) is not float or temperature != 1.0:
        temperature = _checks.real(temperature, "temperature", 0.0, open_low=True)
    _checks.choice(o.empty, "empty", ("zero", "nan"))
    ignore = o.ignore_index
    if ignore is not None and (type(ignore) is not int or ignore != -100):
        ignore = _checks.ignored_label(ignore)
    return float(smoothing), o.smoothing == "exclude_target", ignore, float(z_loss), float(temperature)


class Member(NamedTuple):
    """A member of the family L = sum_k q_k f(p_k): the kernels' name for f and its two numbers."""

    family: str = "cross_entropy"
    a: float = 0.0
    b: float = 0.0


CROSS_ENTROPY = Member()
# Up to here looking at all labels first, for the mean's denominator, costs a tenth of the sweep or more.
MOST_CLASSES_TO_GUESS = 16


class SoftmaxCall(Call):
    """One checked call: the problem's arrays, its options and its denominator.

    `alpha` (n_classes,) multiplies the class weights without entering the denominator.
    """

    def __init__(
        self,
        logits,
        targets,
        sample_weight,
        reduction,
        options,
        num_threads,
        backend,
        check,
        member=CROSS_ENTROPY,
        alpha=None,
    ):
        self.core = _backend.choose(backend)
        self.threads = _checks.thread_count(num_threads)
        self.reduction = _checks.choice(reduction, "reduction", _checks.REDUCTIONS)
        self.scalars = check_softmax_options(options)
        self.unit = 1.0 if options.base is None else _checks.per_base(options.base)
        self.options = options
        self.given = targets
        self.check = check
        self.problem = problem = _checks.softmax_input(logits, targets, options.axis, check=check)
        n_classes, dtype = problem.logits.shape[1], problem.dtype
        weight = class_weight = bias = None
        if sample_weight is not None:
            weight = problem.rows(
                _checks.per_row(sample_weight, "sample_weight", problem.row_shape, dtype, check=check)
            )
        if options.class_weight is not None:
            class_weight = _checks.per_class(
                options.class_weight, "class_weight", n_classes, dtype, check=check
            )
        if options.logit_bias is not None:
            bias = _checks.per_class(options.logit_bias, "logit_bias", n_classes, dtype, check=check)
        self.weight, self.class_weight, self.bias = weight, class_weight, bias
        self.member = member
        self.factors = class_weight
        if alpha is not None:
            alpha = np.asarray(alpha, dtype) if np.ndim(alpha) else np.full(n_classes, alpha, dtype)
            _checks.per_class(alpha, "alpha", n_classes, dtype)
            self.factors = alpha if class_weight is None else alpha * class_weight
        self.denominator, self.guessed = None, False

    def may_guess(self):
        """Whether to save the first look at all labels, at the risk of a second sweep if rows are ignored."""
        problem, ignore = self.problem, self.scalars[2]
        if problem.soft or problem.logits.shape[1] > MOST_CLASSES_TO_GUESS or problem.targets.size < 1 << 16:
            return False
        outer, inner = problem.targets.shape
        sample = problem.targets[:: max(outer // 1024, 1), :: max(inner // 1024, 1)]
        return not (sample == ignore).any()

    def totals(self, *, first, guess=False):
        """Find the denominator; with `first`, also check every target before anything is written.

        With `guess`, the denominator may be that of no ignored row; the kernel counts rows, so a wrong guess shows.
        """
        problem, reduction, ignore = self.problem, self.reduction, self.scalars[2]
        n_rows = problem.logits.shape[0] * problem.logits.shape[2]
        plain = reduction == "mean" and not (
            problem.soft or self.weight is not None or self.class_weight is not None
        )
        known = ignore is None or problem.soft
        if reduction in ("sum", "none"):
            self.denominator = 1.0
        elif reduction == "mean_all" or (known and (plain or reduction == "mean_rows")):
            self.denominator = float(n_rows)
        elif guess and (plain or reduction == "mean_rows"):
            self.denominator, self.guessed = float(n_rows), True
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

    def run(self, *, grad=False, hess=False, lse=False, out=None, hess_out=None, upstream=1.0):
        """(loss, grad, hess, lse), None for what was not asked for; `upstream` scales gradient and Hessian."""
        problem = self.problem
        logits, dtype, axis = problem.logits, problem.dtype, problem.axis
        targets, weight, class_weight, bias = problem.targets, self.weight, self.factors, self.bias
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
            grad_rows = writable_rows(grad_array, axis)
        if hess:
            hess_array = np.empty_like(problem.source, subok=False) if hess_out is None else hess_out
            hess_rows = writable_rows(hess_array, axis)
        if lse:
            lse_array = np.empty(problem.row_shape, dtype)
        if self.reduction == "none":
            per_row = np.empty(problem.row_shape, dtype)
        derivatives = grad or hess
        self.totals(
            first=in_place and self.check, guess=not derivatives or (not in_place and self.may_guess())
        )
        denominator = self.denominator
        smoothing, exclude, ignore, z_loss, temperature = self.scalars
        sweep = lambda denominator: self.core.softmax_rows(  # noqa: E731
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
            *self.member,
        )
        total, bad, counted = sweep(denominator)
        self.refuse(bad)
        if self.guessed and counted != denominator:
            self.denominator = denominator = float(counted)
            if derivatives:
                sweep(denominator)
        if denominator == 0:
            loss = 0.0 if self.options.empty == "zero" else math.nan
            for array in (grad_array, hess_array):
                if array is not None:
                    array[...] = 0
            return loss, grad_array, hess_array, lse_array
        write_back(grad_array, grad_rows, axis)
        write_back(hess_array, hess_rows, axis)
        if per_row is None:
            return total * self.unit / denominator, grad_array, hess_array, lse_array
        if self.unit != 1.0:
            per_row *= dtype.type(self.unit)
        return per_row, grad_array, hess_array, lse_array

    def backward(self, grad_loss, out):
        """Gradient for an upstream gradient: a number, or one per row with reduction="none"."""
        if self.reduction != "none":
            return self.run(grad=True, out=out, upstream=upstream(grad_loss))[1]
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
        rows = writable_rows(product, problem.axis)
        x = _checks.layered(x, problem.axis)
        bad = self.core.softmax_hvp(*self.head(), x, rows, self.threads, *self.member)
        self.refuse(bad)
        write_back(product, rows, problem.axis)
        if self.denominator == 0:
            product[...] = 0
        return product

    # ------------------------------------------------------------------------------------------ curvature and solve

    def row_factor(self):
        """|weight| times unit over denominator of every row, broadcastable to the logits; 0 where ignored."""
        return np.expand_dims(self.factor_of_rows(), self.problem.axis)

    def factor_of_rows(self):
        """The same in the shape of the rows."""
        problem, ignore = self.problem, self.scalars[2]
        if self.denominator is None:
            self.totals(first=False)
        factor = np.full(
            problem.row_shape, self.unit / self.denominator if self.denominator else 0.0, problem.dtype
        )
        if self.weight is not None:
            factor *= np.abs(self.weight.reshape(problem.row_shape))
        if ignore is not None and not problem.soft:
            factor[problem.targets.reshape(problem.row_shape) == ignore] = 0
        return factor

    def positive(self, hess, hessian):
        """A curvature policy other than "exact"; `hess` is the exact diagonal, and may be written."""
        if hessian == "upper":
            return self.upper(hess)
        if hessian in ("xgboost", "lightgbm"):
            n_classes = self.problem.n_classes
            if self.member != CROSS_ENTROPY or self.scalars[3]:
                self.of_cross_entropy().run(hess=True, hess_out=hess)
            np.abs(hess, out=hess)
            if hessian == "lightgbm":
                return np.multiply(hess, n_classes / max(n_classes - 1, 1), out=hess, casting="same_kind")
            hess *= 2
            return np.maximum(hess, XGBOOST_FLOOR * self.row_factor(), out=hess, casting="same_kind")
        return super().positive(hess, hessian)

    def of_cross_entropy(self):
        """The same call for the plain cross-entropy."""
        call = copy.copy(self)
        call.member = CROSS_ENTROPY
        call.scalars = (*self.scalars[:3], 0.0, self.scalars[4])
        return call

    def upper(self, hess):
        """Diagonal that dominates the Hessian of every row."""
        rows = writable_rows(hess, self.problem.axis)
        self.refuse(self.core.softmax_upper(*self.head(), rows, self.threads, *self.member))
        write_back(hess, rows, self.problem.axis)
        return hess

    def hessian(self, factor):
        """`Hessian`: factor times that of the reduced loss."""
        self.totals(first=self.check)
        softmax = self.scalars[4], None if self.bias is None else self.bias.tobytes()
        return self._of_terms(factor, Term("softmax", softmax, (*self.head(factor), *self.member)))

    def _of_terms(self, factor, term):
        terms = (term,) if factor and self.denominator else ()
        return Hessian(self.problem.source, self.problem.axis, None, terms, self.core, self.threads)

    def head(self, factor=1.0):
        """The kernels' arguments up to the scale of the derivatives, `factor` times the reduced loss's."""
        if self.denominator is None:
            self.totals(first=False)
        problem, scale = self.problem, self.unit * factor / self.denominator if self.denominator else 0.0
        arrays = (problem.logits, problem.targets, self.weight, self.factors, self.bias)
        return (*arrays, *self.scalars, scale)


def softmax_call(
    logits,
    targets,
    sample_weight,
    reduction,
    options,
    num_threads,
    backend,
    check,
    member=CROSS_ENTROPY,
    alpha=None,
):
    """The checked call where the logits are: on a CUDA device, or in memory."""
    arrays = (logits, targets, sample_weight)
    rest = (reduction, options, num_threads, backend, check, member, alpha)
    if not _device.is_device(logits):
        return SoftmaxCall(*arrays, *rest)
    scalars = check_softmax_options(options)
    make = functools.partial(DeviceSoftmaxCall, *arrays, *rest, scalars=scalars)
    if check or alpha is not None or options.class_weight is not None or options.logit_bias is not None:
        return make()
    kept = (options.axis, type(options.axis), options.base, options.empty)
    return Repeated(make, arrays, (reduction, backend, member, scalars, *kept))


# ------------------------------------------------------------------------------------------------- softmax: functions

# Compiled kernels alone have it.
_small = getattr(_backend.DEFAULT, "softmax_small", None)


def _is_count(threads):
    return threads is None or (type(threads) is int and threads > 0)


def _small_at_once(*, gradient):
    """Decorator: a small call with no options but these skips checks it would pass; all else goes the general way."""
    known = {"reduction", "num_threads", *(("out",) if gradient else ())}

    def decorate(function):
        if _small is None:
            return function

        @functools.wraps(function)
        def answer(*args, **options):
            if len(args) == 2 and options.keys() <= known:
                reduction, threads = options.get("reduction", "mean"), options.get("num_threads")
                if type(reduction) is str and reduction in ("mean", "sum") and _is_count(threads):
                    result = _small(*args, options.get("out"), gradient, reduction == "mean")
                    if result is not None:
                        return result if gradient else result[0]
            return function(*args, **options)

        return answer

    return decorate


@_small_at_once(gradient=False)
@_checks.answers_in_kind()
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
        Which kernels. Arrays on a CUDA device run there; "cuda" copies NumPy arrays there and the results back.
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
        Shapes that do not fit; a label outside [0, n_classes); negative, infinite or NaN probabilities; an option
        outside its range.

    Examples
    --------
    >>> import fastxent as fx
    >>> round(fx.softmax_cross_entropy([[40.0, 0.0]], [0]) * 1e18, 12)
    4.248354255292
    >>> fx.softmax_cross_entropy([[1.0, 1.0]], [1], base=2)
    1.0
    """
    options = SoftmaxOptions(
        class_weight,
        label_smoothing,
        smoothing,
        ignore_index,
        z_loss,
        temperature,
        logit_bias,
        axis,
        base,
        empty,
    )
    return softmax_call(
        logits, targets, sample_weight, reduction, options, num_threads, backend, check
    ).run()[0]


@_small_at_once(gradient=True)
@_checks.answers_in_kind()
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
    logits, targets and all options that follow
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
    options = SoftmaxOptions(
        class_weight,
        label_smoothing,
        smoothing,
        ignore_index,
        z_loss,
        temperature,
        logit_bias,
        axis,
        base,
        empty,
    )
    call = softmax_call(logits, targets, sample_weight, reduction, options, num_threads, backend, check)
    return call.run(grad=True, out=out)[:2]


@_checks.answers_in_kind()
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
    logits, targets and all options that follow
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
    options = SoftmaxOptions(
        class_weight,
        label_smoothing,
        smoothing,
        ignore_index,
        z_loss,
        temperature,
        logit_bias,
        axis,
        base,
        empty,
    )
    call = softmax_call(logits, targets, sample_weight, reduction, options, num_threads, backend, check)
    loss, _, _, lse = call.run(lse=True)
    return loss, lse


@_checks.answers_in_kind(1)
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
    logits, targets, out and all options that follow
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
    options = SoftmaxOptions(
        class_weight,
        label_smoothing,
        smoothing,
        ignore_index,
        z_loss,
        temperature,
        logit_bias,
        axis,
        base,
        empty,
    )
    call = softmax_call(logits, targets, sample_weight, reduction, options, num_threads, backend, check)
    if _device.is_device(logits):
        return call.backward(grad_loss, out, lse)
    if lse is not None:
        shape = np.shape(lse)
        if shape != call.problem.row_shape:
            raise ValueError(f"lse: expected shape {call.problem.row_shape}, got {shape}")
    return call.backward(grad_loss, out)


# --------------------------------------------------------------------------------------------------- softmax: objects


@dataclass(frozen=True, repr=False, kw_only=True)
class SoftmaxLoss(Loss):
    """Base of the losses L = sum_k q_k f(softmax(u)_k): the options that all of them share, checked once.

    A member derives from it and says in `_member` which f it is.
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
            values = as_tuple(getattr(self, name), name)
            if values is not None:
                _checks.per_class(values, name, len(values), np.dtype(np.float64))
            object.__setattr__(self, name, values)
        check_softmax_options(self)
        _checks.per_base(self.base)
        _checks.whole(self.axis, "axis")

    def _member(self):
        """The kernels' name and numbers of f."""
        return CROSS_ENTROPY

    def _alpha(self):
        """Factor of the loss, one or one per class, that stays out of the mean's denominator."""
        return None

    def _call(self, z, y, sample_weight, reduction, backend, num_threads, check):
        rest = (num_threads, backend, check, self._member(), self._alpha())
        return softmax_call(z, y, sample_weight, reduction, self, *rest)


@dataclass(frozen=True, repr=False, kw_only=True)
class SoftmaxCrossEntropy(SoftmaxLoss, names=("cross_entropy", "softmax")):
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
    >>> loss.solve([[2.0, 0.0]], [0], [[1.0, -1.0]], 0.5).round(10).tolist()
    [[1.4084761544, -1.4084761544]]
    """
