"""Checked calls on arrays of a CUDA device: launches on the caller's stream, results in the caller's library.

Nothing waits for the device but the check of the targets, which reads one number (`check=False` leaves it out). A
reduced loss is an array of no dimensions, not a Python number, because a number would have to be waited for.
"""

import math

from .. import _backend, _checks, _device
from ._base import Call

__all__ = ["DeviceElementCall", "DeviceSoftmaxCall"]


def launchers(backend):
    """The CUDA launchers; arrays of a device are read by no other backend."""
    if backend not in (None, "auto", "cuda"):
        _backend.choose(backend)
        raise ValueError(f"backend: expected 'cuda' or None for arrays on a CUDA device, got {backend!r}")
    return _backend.choose("cuda").launch


class _DeviceCall(Call):
    """What both calls share: the flag of the targets, the reduction, the upstream gradient."""

    def start(self, backend, reduction, base, check):
        self.launch = launchers(backend)
        self.reduction = _checks.choice(reduction, "reduction", _checks.REDUCTIONS)
        self.unit = 1.0 if base is None else _checks.per_base(base)
        self.check = check

    def flag(self):
        return self.library.zeros((1,), "int64") if self.check else None

    def buffer(self, x):
        return None if x is None else self.library.buffer(x)

    def refuse(self, flag, n):
        """Raise for the first bad target; reads one number."""
        bad = int(self.library.item(flag)) if self.check else 0
        if bad:
            raise self.bad_target(n - bad)

    def reduced(self, context, partials, total, known, empty):
        """The loss from its partial sums: over a denominator on the device, or a known one."""
        out = self.library.empty((), self.dtype)
        buffer = self.library.buffer(out)._replace(shape=(1,), strides=(1,))
        factor = self.unit if total is not None else self.unit / known if known else empty
        self.launch.combine(context, partials, buffer, factor, total, empty)
        return out

    def gradient_only(self, grad_loss, out):
        """Gradient for an upstream gradient: a number or an array of no dimensions, or one per row or element."""
        upstream, divisor = 1.0, None
        if self.reduction == "none":
            rows = _device.weights(self.library, grad_loss, "grad_loss", self.weight_shape, self.dtype)
            self.weight = rows if self.weight is None else rows * self.weight
        elif _device.is_device(grad_loss):
            divisor = grad_loss
        else:
            upstream = _checks.real(grad_loss, "grad_loss")
        return self.run(grad=True, out=out, upstream=upstream, divisor=divisor)[1]

    def upstream(self, total, known, divisor):
        """Denominator on the device and the factor that stays: an upstream gradient there divides the denominator."""
        if divisor is None:
            return total, (1.0 if total is not None else 1.0 / known if known else 0.0)
        if total is None:
            total = self.library.buffer(self.library.given(float(known), "", "float64"))
        return self.library.buffer(self.library.divided(total.owner, divisor)), 1.0

    def no_hessian(self, hess):
        if hess:
            raise NotImplementedError(
                "backend='cuda' has no second derivatives; copy the arrays to the host for backend='cpu'"
            )


class DeviceSoftmaxCall(_DeviceCall):
    """`SoftmaxCall` for arrays of a CUDA device."""

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
        member=("cross_entropy", 0.0, 0.0),
        alpha=None,
        scalars=None,
    ):
        self.start(backend, reduction, options.base, check)
        self.options, self.scalars, self.member = options, scalars, tuple(member)
        self.problem = problem = _device.Softmax(logits, targets, options.axis)
        self.library, self.dtype = problem.library, problem.dtype
        self.weight_shape = problem.row_shape
        self.saved = None
        of_class = problem.n_classes, self.dtype
        self.weight = _device.weights(
            self.library, sample_weight, "sample_weight", problem.row_shape, self.dtype
        )
        self.class_weight = _device.per_class(self.library, options.class_weight, "class_weight", *of_class)
        self.bias = _device.per_class(self.library, options.logit_bias, "logit_bias", *of_class)
        self.factors = self.class_weight
        if alpha is not None:
            alpha = [alpha] * problem.n_classes if isinstance(alpha, (int, float)) else alpha
            alpha = self.library.given(alpha, "alpha", self.dtype)
            if self.class_weight is not None:
                alpha = alpha * self.class_weight.owner
            self.factors = _device.per_class(self.library, alpha, "alpha", *of_class)

    def bad_target(self, row):
        problem = self.problem
        at = []
        for n in reversed(problem.row_shape):
            row, place = divmod(row, n)
            at.insert(0, place)
        where = f"targets[{', '.join(map(str, at))}]" if at else "targets"
        if problem.soft:
            return ValueError(
                f"{where}: expected probabilities >= 0 in every class, got a negative number or NaN"
            )
        return ValueError(f"{where} is not a class: expected 0 <= label < {problem.n_classes}")

    def denominator(self, context, flag):
        """(on the device, known here), one of them None; with `flag`, every target is checked on the way."""
        problem, ignore = self.problem, self.scalars[2]
        weighted = self.weight is not None or self.class_weight is not None
        plain = self.reduction == "mean" and not (problem.soft or weighted)
        known = ignore is None or problem.soft
        total = None
        counts = self.reduction in ("mean", "mean_rows") and not (
            known and (plain or self.reduction == "mean_rows")
        )
        if counts or flag is not None:
            weights = (
                (problem.rows(self.weight), self.class_weight) if self.reduction == "mean" else (None, None)
            )
            total = self.launch.totals_launch(
                context, problem.targets, *weights, problem.n_classes, ignore, flag
            )
        if counts:
            return total, None
        return None, 1.0 if self.reduction in ("sum", "none") else float(problem.n_rows)

    def on_blocks(self, context, scale, divided):
        """A function that queues the kernel on a block of rows of logits (rows, n_classes), for `LinearPass`."""
        library, launch = self.library, self.launch
        targets, weight = self.problem.targets.owner, self.weight
        smoothing, exclude, ignore, z_loss, temperature = self.scalars

        def queue(Z, start, stop, sum_out, loss_out, grad):
            logits = _device.laid_out(library, Z, 1, 2)
            y = _device.laid_out(library, targets[start:stop], *((1, 2) if self.problem.soft else (1,)))
            v = None if weight is None else _device.laid_out(library, weight[start:stop], 1)
            partials = launch.softmax_launch(
                context, logits, y, v, self.factors, self.bias,
                smoothing, exclude, ignore, z_loss, temperature, scale, divided,
                self.buffer(loss_out), None, logits if grad else None, None, *self.member,
            )  # fmt: skip
            launch.combine(context, partials, library.buffer(sum_out), 1.0, None, 0.0)

        return queue

    def run(self, *, grad=False, hess=False, lse=False, out=None, upstream=1.0, divisor=None):
        """(loss, grad, None, lse), None for what was not asked for; with a saved lse the gradient alone."""
        self.no_hessian(hess)
        problem, library = self.problem, self.library
        context = library.context()
        flag = self.flag()
        gradient = layers = None
        in_place = False
        if grad:
            gradient = _device.output(library, out, problem.source)
            layers = problem.layers(gradient)
            in_place = layers is not None and layers.address == problem.logits.address
            if layers is None:
                raise ValueError(f"out: expected strides that can be walked along axis {problem.axis}")
        total, known = self.denominator(context, self.buffer(flag) if in_place else None)
        if in_place and self.check:
            self.refuse(flag, problem.n_rows)
        lse_array = library.empty(problem.row_shape, self.dtype) if lse else None
        per_row = library.empty(problem.row_shape, self.dtype) if self.reduction == "none" else None
        smoothing, exclude, ignore, z_loss, temperature = self.scalars
        divided, factor = self.upstream(total, known, divisor)
        family, a, b = self.member
        partials = self.launch.softmax_launch(
            context,
            problem.logits,
            problem.targets,
            problem.rows(self.weight),
            self.factors,
            self.bias,
            smoothing,
            exclude,
            ignore,
            z_loss,
            temperature,
            self.unit * upstream * factor,
            divided,
            self.buffer(per_row),
            self.buffer(lse_array),
            layers,
            None if in_place else self.buffer(flag),
            family,
            a,
            b,
            self.saved,
        )
        if not in_place:
            self.refuse(flag, problem.n_rows)
        if self.saved is not None:
            return None, gradient, None, None
        if per_row is not None:
            if self.unit != 1.0:
                per_row *= self.unit
            return per_row, gradient, None, lse_array
        empty = 0.0 if self.options.empty == "zero" else math.nan
        return self.reduced(context, partials, total, known, empty), gradient, None, lse_array

    def backward(self, grad_loss, out, lse=None):
        """Gradient for an upstream gradient; a plain cross-entropy takes its sums from `lse`, if given."""
        if lse is not None:
            lse = self.library.contiguous(self.library.given(lse, "lse", self.dtype))
            self.saved = self.library.buffer(lse) if self.dtype == "float32" else None
        return self.gradient_only(grad_loss, out)


class DeviceElementCall(_DeviceCall):
    """`ElementCall` on logits for arrays of a CUDA device."""

    def __init__(
        self,
        logits,
        targets,
        sample_weight,
        pos_weight,
        label_smoothing,
        reduction,
        base,
        backend,
        check,
        member=("cross_entropy", 0.0, 0.0, 0.0),
    ):
        self.start(backend, reduction, base, check)
        self.smoothing = _checks.real(label_smoothing, "label_smoothing", 0.0, 1.0)
        self.member = tuple(member)
        self.library, self.source = library, logits = _device.library_of(logits)
        self.storage = _device.real_dtype(library, logits, "logits")
        self.dtype = _device.compute_dtype(self.storage)
        self.weight_shape = self.shape = shape = tuple(logits.shape)
        if not _device.is_device(targets):
            raise TypeError(
                f"targets: expected an array on the device, as logits, got {type(targets).__name__}"
            )
        if tuple(targets.shape) != shape:
            raise ValueError(f"targets: expected the shape of logits, {shape}, got {tuple(targets.shape)}")
        kind = library.dtype(targets)
        direct = kind in (self.storage, self.dtype) or (self.dtype == "float32" and kind in ("bool", "uint8"))
        self.targets = targets if direct else library.given(targets, "targets", self.dtype)
        self.weight = _device.weights(library, sample_weight, "sample_weight", shape, self.dtype)
        self.pos_weight = _device.weights(library, pos_weight, "pos_weight", shape, self.dtype)

    def bad_target(self, element):
        at = []
        for n in reversed(self.shape):
            element, place = divmod(element, n)
            at.insert(0, place)
        return ValueError(f"targets[{', '.join(map(str, at))}]: expected a number in [0, 1]")

    def run(self, *, grad=False, hess=False, out=None, upstream=1.0, divisor=None):
        """(loss, grad, None), None for what was not asked for."""
        self.no_hessian(hess)
        library, n = self.library, math.prod(self.shape)
        context = library.context()
        flag = self.flag()
        gradient = _device.output(library, out, self.source) if grad else None
        arrays = (self.source, self.targets, gradient, self.weight, self.pos_weight)
        z, y, g, weight, pos_weight = _device.elements(library, arrays, self.shape)
        if g is not None and g.owner is not gradient:
            raise ValueError("out: expected strides that can be walked as two axes")
        total, known = None, 1.0
        if self.reduction == "mean" and weight is not None:
            total, known = self.launch.weight_total(context, weight), None
        elif self.reduction not in ("sum", "none"):
            known = float(n)
        divided, factor = self.upstream(total, known, divisor)
        per_element = library.empty(self.shape, self.dtype) if self.reduction == "none" else None
        in_place = g is not None and g.address == z.address
        common = (context, z, y, weight, pos_weight, self.smoothing)
        scale = self.unit * upstream * factor
        if in_place and self.check:
            self.launch.sigmoid(*common, scale, divided, None, None, self.buffer(flag), *self.member)
            self.refuse(flag, n)
        outs = (self.buffer(per_element), g, None if in_place else self.buffer(flag))
        partials = self.launch.sigmoid(*common, scale, divided, *outs, *self.member)
        if not in_place:
            self.refuse(flag, n)
        if per_element is not None:
            if self.unit != 1.0:
                per_element *= self.unit
            return per_element, gradient, None
        return self.reduced(context, partials, total, known, 0.0), gradient, None

    def backward(self, grad_loss, out):
        """Gradient for an upstream gradient."""
        return self.gradient_only(grad_loss, out)
