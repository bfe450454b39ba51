"""Losses that measure the distance between distributions: bootstrapping, Jensen-Shannon, distillation.

Q = softmax(z / T) is the student, P the teacher: labels, probabilities or softmax of teacher logits. All of it is
computed in float64, whatever the storage: divergences of close distributions are small differences of logarithms.
Ignored rows count nothing, in any term; the mean's denominator is that of the cross-entropy against the labels. There
are no class weights, smoothing or logit bias here: a divergence with weights is none, for it is not 0 where Q is P.
Smooth the targets or shift the logits before the call.
"""

import functools
from dataclasses import dataclass

import numpy as np

from .. import _checks, _device
from ._base import Loss, Term, writable_rows, write_back
from ._on_device import DeviceDivergenceCall
from ._repeated import Repeated
from ._softmax import SoftmaxCall, SoftmaxCrossEntropy, SoftmaxOptions, check_softmax_options

__all__ = ["BootstrappingLoss", "DistillationLoss", "JensenShannonLoss"]


class DivergenceCall(SoftmaxCall):
    """One checked call of a divergence, `factor` times.

    `targets` give the denominator and the ignored rows; they are the teacher too, unless there are `teacher` logits.
    """

    def __init__(self, family, beta, factor, arguments, teacher=None):
        self.arguments = arguments
        super().__init__(*self.arguments)
        self.member = None  # no member of the softmax family, whose curvature a booster's policies would take
        self.unit *= factor
        self.family, self.beta = family, beta
        problem, ignore = self.problem, self.scalars[2]
        self.teacher, self.teacher_logits = problem.targets, teacher is not None
        if teacher is not None:
            teacher = _checks.numbers_like(teacher, "teacher_logits", problem.dtype)
            if teacher.shape != problem.shape:
                raise ValueError(
                    f"teacher_logits: expected the shape of logits, {problem.shape}, got {teacher.shape}"
                )
            self.teacher = _checks.layered(teacher, problem.axis)
            if ignore is not None and not problem.soft:
                kept = problem.targets != ignore
                self.weight = (
                    kept.astype(problem.dtype) if self.weight is None else np.where(kept, self.weight, 0)
                )
        elif family == "entropy" and problem.soft:
            self.teacher = None

    def prepare(self, *, first):
        """Denominator and target check, and the scale of the derivatives."""
        unread = self.teacher is not self.problem.targets
        self.totals(first=(first or unread) and self.check)
        return self.unit / self.denominator if self.denominator else 0.0

    def head(self, logits, teacher, weight, scale):
        """The kernels' first arguments."""
        return logits, teacher, self.teacher_logits, weight, self.scalars[2], self.scalars[4], scale

    def run(self, *, grad=False, hess=False, out=None):
        """(loss, grad, hess), None for what was not asked for."""
        problem = self.problem
        logits, dtype, axis = problem.logits, problem.dtype, problem.axis
        teacher, weight = self.teacher, self.weight
        grad_array = grad_rows = hess_array = hess_rows = per_row = None
        in_place = False
        if grad:
            grad_array = _checks.output(out, problem.source)
            if out is not None:
                in_place = _checks.same_memory(out, problem.source)
                if not in_place:
                    logits = _checks.apart(out, logits)
                teacher, weight = _checks.apart(out, teacher), _checks.apart(out, weight)
            grad_rows = writable_rows(grad_array, axis)
        if hess:
            hess_array = np.empty_like(problem.source, subok=False)
            hess_rows = writable_rows(hess_array, axis)
        if self.reduction == "none":
            per_row = np.empty(problem.row_shape, dtype)
        scale = self.prepare(first=in_place)
        rows = None if per_row is None else problem.rows(per_row)
        total, bad = self.core.divergence_rows(
            *self.head(logits, teacher, weight, scale),
            rows,
            grad_rows,
            hess_rows,
            self.threads,
            self.family,
            self.beta,
        )
        self.refuse(bad)
        write_back(grad_array, grad_rows, axis)
        write_back(hess_array, hess_rows, axis)
        if self.denominator == 0:
            for array in (grad_array, hess_array):
                if array is not None:
                    array[...] = 0
            return 0.0 if self.options.empty == "zero" else np.nan, grad_array, hess_array
        if per_row is None:
            return total * self.unit / self.denominator, grad_array, hess_array
        if self.unit != 1.0:
            per_row *= dtype.type(self.unit)
        return per_row, grad_array, hess_array

    def hvp(self, x):
        """Hessian-vector product with `x`, in the shape and dtype of the logits."""
        problem = self.problem
        x = _checks.numbers_like(x, "x", problem.dtype)
        if x.shape != problem.shape:
            raise ValueError(f"x: expected the shape of logits, {problem.shape}, got {x.shape}")
        product = np.empty_like(problem.source, subok=False)
        rows = writable_rows(product, problem.axis)
        head = self.head(problem.logits, self.teacher, self.weight, self.prepare(first=False))
        bad = self.core.divergence_hvp(
            *head, _checks.layered(x, problem.axis), rows, self.threads, self.family, self.beta
        )
        self.refuse(bad)
        write_back(product, rows, problem.axis)
        if self.denominator == 0:
            product[...] = 0
        return product

    def of_cross_entropy(self):
        """The same call for the plain cross-entropy."""
        call = SoftmaxCall(*self.arguments)
        call.weight, call.unit = self.weight, self.unit
        return call

    def upper(self, hess):
        """A diagonal that dominates every row's Hessian; as for labels, diag Q - Q Q' <= 2 diag Q (1 - Q)."""
        if self.family == "forward_kl":
            return np.multiply(np.abs(hess), 2, out=hess, casting="same_kind")
        rows = writable_rows(hess, self.problem.axis)
        head = self.head(self.problem.logits, self.teacher, self.weight, self.prepare(first=False))
        self.core.divergence_upper(*head, rows, self.threads, self.family, self.beta)
        write_back(hess, rows, self.problem.axis)
        return hess

    def hessian(self, factor):
        """`Hessian`: factor times that of the reduced loss."""
        head = self.head(
            self.problem.logits, self.teacher, self.weight, self.prepare(first=self.check) * factor
        )
        softmax = self.scalars[4], None
        return self._of_terms(factor, Term("divergence", softmax, (*head, self.family, self.beta)))


def divergence_call(loss, family, beta, factor, arguments, teacher=None):
    """The checked call where the logits are: on a CUDA device, or in memory."""
    logits, targets, sample_weight, reduction, backend, threads, check = arguments
    temperature = getattr(loss, "temperature", 1.0) if teacher is not None else 1.0
    options = SoftmaxOptions(
        None, 0.0, "uniform", loss.ignore_index, 0.0, temperature, None, loss.axis, loss.base, loss.empty
    )
    given = (logits, targets, sample_weight, reduction, options, threads, backend, check)
    if _device.is_device(logits):
        scalars = check_softmax_options(options)
        make = functools.partial(DeviceDivergenceCall, family, beta, factor, given, teacher, scalars)
        if check:
            return make()
        kept = (options.axis, options.base, options.empty, teacher is None)
        known = (reduction, backend, family, beta, factor, scalars, *kept)
        return Repeated(make, (logits, targets, sample_weight, teacher), known)
    return DivergenceCall(family, beta, factor, given, teacher)


@dataclass(frozen=True, repr=False, kw_only=True)
class DivergenceLoss(Loss):
    """Base of the losses below: the options that they share, checked once."""

    ignore_index: int | None = -100
    axis: int = -1
    base: float | None = None
    empty: str = "zero"

    def __post_init__(self):
        check_softmax_options(
            SoftmaxOptions(
                None, 0.0, "uniform", self.ignore_index, 0.0, 1.0, None, self.axis, self.base, self.empty
            )
        )
        _checks.per_base(self.base)
        _checks.whole(self.axis, "axis")

    def _cross_entropy(self):
        return SoftmaxCrossEntropy(
            ignore_index=self.ignore_index, axis=self.axis, base=self.base, empty=self.empty
        )


@dataclass(frozen=True, repr=False)
class Divergence(DivergenceLoss):
    """One divergence as a term of a sum; y is the teacher, or (targets, teacher logits) with `softened`."""

    family: str
    temperature: float = 1.0
    factor: float = 1.0
    softened: bool = False

    def _call(self, z, y, *rest):
        y, teacher = y if self.softened else (y, None)
        return divergence_call(self, self.family, 0.5, self.factor, (z, y, *rest), teacher)


@dataclass(frozen=True, repr=False)
class JensenShannonLoss(DivergenceLoss, names=("jensen_shannon", "js")):
    """Generalized Jensen-Shannon divergence beta KL(P || M) + (1 - beta) KL(Q || M), M = beta P + (1 - beta) Q.

    Q = softmax(z), P the targets. Bounded, hence tolerant of wrong labels (Englesson and Azizpour, "Generalized
    Jensen-Shannon Divergence Loss for Learning with Noisy Labels", 2021); beta = 1/2 is Lin's divergence, at most ln 2.
    With r = log(Q / M), the gradient is (1 - beta) Q (r - sum Q r).

    Parameters
    ----------
    beta : float in (0, 1), default=0.5
        Weight of the targets in the mixture M.
    ignore_index, axis, base, empty
        As for `softmax_cross_entropy`; keywords only.

    Raises
    ------
    TypeError, ValueError
        An option of the wrong type or outside its range.

    Examples
    --------
    >>> import fastxent as fx
    >>> loss, grad = fx.JensenShannonLoss().loss_grad([[0.0, 0.0]], [0])
    >>> round(loss, 10), grad.round(10).tolist()
    (0.2157615543, [[-0.1373265361, 0.1373265361]])
    """

    beta: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        beta = _checks.real(self.beta, "beta", 0.0, 1.0, open_low=True)
        if beta == 1:
            raise ValueError("beta: expected a number in (0, 1), got 1.0")

    def _call(self, z, y, *rest):
        return divergence_call(self, "jensen_shannon", float(self.beta), 1.0, (z, y, *rest))


@dataclass(frozen=True, repr=False)
class BootstrappingLoss(DivergenceLoss, names=("bootstrapping",)):
    """Bootstrapping: cross-entropy against labels that the model's own prediction corrects.

    Reed et al., "Training Deep Neural Networks on Noisy Labels with Bootstrapping", 2015. Soft:
    beta CE(t, p) + (1 - beta) H(p), with H the entropy of p = softmax(z). Hard: cross-entropy against
    beta t + (1 - beta) e_argmax, whose argmax is held constant in the derivatives.

    Parameters
    ----------
    beta : float in [0, 1], default=0.95
        Share of the given targets.
    hard : bool, default=False
        Which of the two.
    ignore_index, axis, base, empty
        As for `softmax_cross_entropy`; keywords only.

    Raises
    ------
    TypeError, ValueError
        An option of the wrong type or outside its range.

    Examples
    --------
    >>> import fastxent as fx
    >>> round(fx.BootstrappingLoss().loss([[2.0, 0.0]], [1]), 10)
    2.0388483032
    >>> round(fx.BootstrappingLoss(hard=True).loss([[2.0, 0.0]], [1]), 10)
    2.026928011
    """

    beta: float = 0.95
    hard: bool = False

    def __post_init__(self):
        super().__post_init__()
        _checks.real(self.beta, "beta", 0.0, 1.0)
        if not isinstance(self.hard, (bool, np.bool_)):
            raise TypeError(f"hard: expected True or False, got {self.hard!r}")

    def _call(self, z, y, *rest):
        given, beta = self._cross_entropy(), float(self.beta)
        if self.hard:
            z = z if _device.is_device(z) else _checks.floats(z, "logits")
            return (beta * given + (1 - beta) * given)._call(z, (y, self._predicted(z, y)), *rest)
        options = dict(ignore_index=self.ignore_index, axis=self.axis, base=self.base, empty=self.empty)
        return (beta * given + Divergence("entropy", factor=1 - beta, **options))._call(z, (y, y), *rest)

    def _predicted(self, z, y):
        """The most likely class of every row that is not ignored."""
        if _device.is_device(z):
            library, z = _device.library_of(z)
            axis = _checks.axis_of(self.axis, len(z.shape))
            predicted = z.argmax(axis)
            if self.ignore_index is not None and tuple(y.shape) == tuple(predicted.shape):
                predicted = library.module().where(y == self.ignore_index, self.ignore_index, predicted)
            return predicted
        problem = _checks.softmax_input(z, y, self.axis, check=False)
        with np.errstate(invalid="ignore"):
            predicted = problem.logits.astype(problem.dtype, copy=False).argmax(axis=1)
        ignore = None if self.ignore_index is None else _checks.ignored_label(self.ignore_index)
        if ignore is not None and not problem.soft:
            predicted = np.where(problem.targets == ignore, ignore, predicted)
        return predicted.reshape(problem.row_shape)


@dataclass(frozen=True, repr=False)
class DistillationLoss(DivergenceLoss, names=("distillation",)):
    """Knowledge distillation: (1 - weight) CE(y, softmax z) + weight T^2 KL(P || Q), or KL(Q || P).

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015. P = softmax(teacher / T), Q = softmax(z / T);
    the targets of every method are the tuple (labels, teacher_logits). The gradient of the second term is
    weight T (Q - P); with `reverse`, weight T Q (r - sum Q r), r = log(Q / P). Of a row whose label is ignored,
    neither term counts.

    Parameters
    ----------
    temperature : float > 0, default=2.0
        T, of the second term alone.
    weight : float in [0, 1], default=0.5
        Share of the teacher.
    reverse : bool, default=False
        KL(Q || P), which seeks the teacher's modes, instead of KL(P || Q), which covers them.
    ignore_index, axis, base, empty
        As for `softmax_cross_entropy`; keywords only.

    Raises
    ------
    TypeError, ValueError
        An option of the wrong type or outside its range; targets that are no pair.

    Examples
    --------
    >>> import fastxent as fx
    >>> loss = fx.DistillationLoss(temperature=1.0)
    >>> value, grad = loss.loss_grad([[0.0, 0.0]], ([0], [[2.0, 0.0]]))
    >>> round(value, 10), grad.round(10).tolist()
    (0.510480253, [[-0.440398539, 0.440398539]])
    """

    temperature: float = 2.0
    weight: float = 0.5
    reverse: bool = False

    def __post_init__(self):
        super().__post_init__()
        _checks.real(self.temperature, "temperature", 0.0, open_low=True)
        _checks.real(self.weight, "weight", 0.0, 1.0)
        if not isinstance(self.reverse, (bool, np.bool_)):
            raise TypeError(f"reverse: expected True or False, got {self.reverse!r}")

    def _call(self, z, y, *rest):
        if not isinstance(y, tuple) or len(y) != 2:
            kind = f"a tuple of {len(y)}" if isinstance(y, tuple) else type(y).__name__
            raise ValueError(f"targets: expected the tuple (labels, teacher_logits), got {kind}")
        weight, temperature = float(self.weight), float(self.temperature)
        options = dict(ignore_index=self.ignore_index, axis=self.axis, base=self.base, empty=self.empty)
        family = "reverse_kl" if self.reverse else "forward_kl"
        # the factor is the kernel's, except that 0 times an infinite divergence is nothing
        teacher = Divergence(family, temperature, weight * temperature**2 or 1.0, True, **options)
        teacher = teacher if weight else 0.0 * teacher
        return ((1 - weight) * self._cross_entropy() + teacher)._call(z, (y[0], y), *rest)
