"""Checked calls on arrays of a CUDA device: launches on the caller's stream, results in the caller's library.

Nothing waits for the device but the check of the targets, which reads one number (`check=False` leaves it out). A
reduced loss is an array of no dimensions, not a Python number, because a number would have to be waited for.
"""

import math

from .. import _backend, _checks, _device
from ._base import CLIP, XGBOOST_FLOOR, Call, Hessian, Term

__all__ = ["DeviceDivergenceCall", "DeviceElementCall", "DeviceSoftmaxCall", "cuda_core"]


def cuda_core(backend):
    """The CUDA backend, whose launchers take arrays of a device; no other backend reads those."""
    if backend not in (None, "auto", "cuda"):
        _backend.choose(backend)
        raise ValueError(f"backend: expected 'cuda' or None for arrays on a CUDA device, got {backend!r}")
    return _backend.choose("cuda")


class _DeviceCall(Call):
    """What both calls share: the flag of the targets, the reduction, the upstream gradient."""

    def start(self, backend, reduction, base, check):
        core = cuda_core(backend)
        self.launch, self.general = core.launch, core.general
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
        numerator = float(known) if total is None else total.owner
        return self.library.buffer(self.library.divided(numerator, divisor)), 1.0

    def policy(self, hessian, n_classes=None):
        """The launchers' `Policy` for a curvature policy; `n_classes` are those of a softmax."""
        policy = self.launch.Policy
        if hessian == "xgboost":
            return policy(absolute=True, factor=1.0 if n_classes is None else 2.0, floor=XGBOOST_FLOOR)
        if hessian == "lightgbm":
            return policy(absolute=True, factor=n_classes / max(n_classes - 1, 1) if n_classes else 1.0)
        return policy(hessian == "abs", 1.0, CLIP if hessian == "clip" else None, hessian == "upper")

    def vector(self, x):
        """The vector of a product as an array of the shape of the logits, in the arithmetic's dtype."""
        if not _device.is_device(x):
            raise TypeError(f"x: expected an array on the device, as logits, got {type(x).__name__}")
        shape = tuple(self.source.shape)
        if tuple(x.shape) != shape:
            raise ValueError(f"x: expected the shape of logits, {shape}, got {tuple(x.shape)}")
        return self.library.given(x, "x", self.dtype)

    def solve_rows(self, hessian, r, lam):
        """Solution of (lam I + H) x = r, row by row, for a `Hessian`, which may be that of a sum of losses."""
        library, source, axis = self.library, hessian.source, hessian.axis
        if not library.multiplies:
            raise TypeError("logits: expected an array of CuPy or PyTorch to solve with; copy others to one")
        shape = tuple(source.shape)
        if not _device.is_device(r):
            raise TypeError(f"r: expected an array on the device, as logits, got {type(r).__name__}")
        if tuple(r.shape) != shape:
            raise ValueError(f"r: expected the shape of logits, {shape}, got {tuple(r.shape)}")
        r = library.given(r, "r", "float64")
        rows = shape if axis is None else shape[:axis] + shape[axis + 1 :]
        if _device.is_device(lam):
            damping = _device.weights(library, lam, "lam", rows, "float64")
            if bool(library.item((~(damping > 0)).any())):
                raise ValueError("lam: expected positive numbers")
        else:
            damping = library.filled(rows, _checks.real(lam, "lam", 0.0, open_low=True), "float64")
        if axis is not None:
            damping = library.broadcast(damping[(slice(None),) * axis + (None,)], shape)
        if hessian.diagonal is not None:
            damping = damping + hessian.diagonal
        if not hessian.terms:
            return library.cast(r / damping, library.dtype(source))
        solution = library.empty_like(source)
        cuts = axis, axis + 1
        out = _device.layers(library, solution, axis)
        if out is None:
            raise ValueError(f"logits: expected strides that can be walked along axis {axis}")
        keys = list(dict.fromkeys(term.softmax for term in hessian.terms))
        terms = [(term.kind, keys.index(term.softmax), *term.arguments) for term in hessian.terms]
        systems = (_device.laid_out(library, each, *cuts) for each in (damping, r))
        self.general.solve(library.context(), terms, *systems, out)
        return solution


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
        self.source = problem.source
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
            if isinstance(alpha, (int, float)):  # filled there: a copy from memory would be waited for
                alpha = self.library.filled((problem.n_classes,), alpha, self.dtype)
            alpha = _device.constant(self.library, alpha, "alpha", self.dtype)
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
                f"{where}: expected probabilities >= 0 in every class, got a negative number, an infinity or NaN"
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

    def layers(self, array, name):
        """An array of the logits' shape as (outer, classes, inner), in place."""
        layers = self.problem.layers(array)
        if layers is None:
            raise ValueError(f"{name}: expected strides that can be walked along axis {self.problem.axis}")
        return layers

    def run(
        self, *, grad=False, hess=False, lse=False, out=None, upstream=1.0, divisor=None, hessian="exact"
    ):
        """(loss, grad, hess, lse), None for what was not asked for; with a saved lse the gradient alone.

        `hessian` is the curvature policy of `hess`.
        """
        problem, library = self.problem, self.library
        context = library.context()
        flag = self.flag()
        gradient = layers = curvature = None
        in_place = False
        if grad:
            gradient = _device.output(library, out, problem.source)
            layers = self.layers(gradient, "out")
            in_place = layers.address == problem.logits.address
        total, known = self.denominator(context, self.buffer(flag) if in_place else None)
        if in_place:
            self.refuse(flag, problem.n_rows)
        lse_array = library.empty(problem.row_shape, self.dtype) if lse else None
        per_row = library.empty(problem.row_shape, self.dtype) if self.reduction == "none" else None
        divided, factor = self.upstream(total, known, divisor)
        scale = self.unit * upstream * factor
        if hess:
            curvature = library.empty_like(problem.source)
            self.queue_curvature(context, hessian, scale, divided, self.layers(curvature, "logits"))
        bad_out = None if in_place else self.buffer(flag)
        outs = (self.buffer(per_row), self.buffer(lse_array), layers, bad_out)
        partials = self.queue_rows(context, scale, divided, outs)
        if not in_place:
            self.refuse(flag, problem.n_rows)
        if self.saved is not None:
            return None, gradient, None, None
        if per_row is not None:
            if self.unit != 1.0:
                library.scale(per_row, self.unit)
            return per_row, gradient, curvature, lse_array
        empty = 0.0 if self.options.empty == "zero" else math.nan
        loss = self.reduced(context, partials, total, known, empty)
        return loss, gradient, curvature, lse_array

    def arrays(self):
        """The launchers' first arguments."""
        problem = self.problem
        return problem.logits, problem.targets, problem.rows(self.weight), self.factors, self.bias

    def queue_rows(self, context, scale, divided, outs):
        """Queue losses and gradient; the partial sums of the losses."""
        return self.launch.softmax_launch(
            context, *self.arrays(), *self.scalars, scale, divided, *outs, *self.member, self.saved
        )

    def queue_curvature(self, context, hessian, scale, divided, layers):
        """Queue the second derivatives under a policy."""
        scalars, member = self.scalars, self.member
        if hessian in ("xgboost", "lightgbm"):
            member = ("cross_entropy", 0.0, 0.0)
            scalars = (*scalars[:3], 0.0, scalars[4])
        self.general.curvature(
            context, "upper" if hessian == "upper" else "diagonal", *self.arrays(), *scalars, scale, divided,
            None, layers, None, *member, self.policy(hessian, self.problem.n_classes),
        )  # fmt: skip

    def curvature(self, hessian):
        """(grad, hess) under a curvature policy."""
        return self.run(grad=True, hess=True, hessian=hessian)[1:3]

    def hvp(self, x):
        """Hessian times `x`, in the shape and dtype of the logits."""
        problem, library = self.problem, self.library
        x = _device.laid_out(library, self.vector(x), problem.axis, problem.axis + 1)
        context, flag = library.context(), self.flag()
        product = library.empty_like(problem.source)
        divided, factor = self.upstream(*self.denominator(context, None), None)
        layers = self.layers(product, "logits")
        self.queue_product(context, self.unit * factor, divided, x, layers, self.buffer(flag))
        self.refuse(flag, problem.n_rows)
        return product

    def queue_product(self, context, scale, divided, x, layers, flag):
        """Queue the Hessian times x."""
        self.general.curvature(
            context, "product", *self.arrays(), *self.scalars, scale, divided, x, layers, flag, *self.member
        )

    def hessian(self, factor):
        """`Hessian`: factor times that of the reduced loss. Waits for the device where the denominator is there."""
        problem, library = self.problem, self.library
        context, flag = library.context(), self.flag()
        total, known = self.denominator(context, self.buffer(flag))
        self.refuse(flag, problem.n_rows)
        whole = known if total is None else library.item(total.owner)
        terms = (self.term(self.unit * factor / whole),) if factor and whole else ()
        return Hessian(problem.source, problem.axis, None, terms, self, 1)

    def term(self, scale):
        """The Hessian as the kernels take it."""
        softmax = self.scalars[4], self.options.logit_bias
        return Term("softmax", softmax, (*self.arrays(), *self.scalars, scale, *self.member))

    def backward(self, grad_loss, out, lse=None):
        """Gradient for an upstream gradient; a plain cross-entropy takes its sums from `lse`, if given."""
        if lse is not None:
            lse = self.library.contiguous(self.library.given(lse, "lse", self.dtype))
            self.saved = self.library.buffer(lse) if self.dtype == "float32" else None
        return self.gradient_only(grad_loss, out)


class DeviceDivergenceCall(DeviceSoftmaxCall):
    """`DivergenceCall` for arrays of a CUDA device, `factor` times."""

    def __init__(self, family, beta, factor, arguments, teacher, scalars):
        super().__init__(*arguments, scalars=scalars)
        self.unit *= factor
        self.family, self.beta = family, beta
        problem, library, ignore = self.problem, self.library, self.scalars[2]
        self.teacher, self.teacher_logits = problem.targets, teacher is not None
        if teacher is not None:
            if not _device.is_device(teacher):
                raise TypeError(
                    f"teacher_logits: expected an array on the device, as logits, got {type(teacher).__name__}"
                )
            if tuple(teacher.shape) != tuple(problem.source.shape):
                raise ValueError(
                    f"teacher_logits: expected the shape of logits, {tuple(problem.source.shape)}, "
                    f"got {tuple(teacher.shape)}"
                )
            teacher = library.given(teacher, "teacher_logits", self.dtype)
            self.teacher = _device.laid_out(library, teacher, problem.axis, problem.axis + 1)
            if ignore is not None and not problem.soft:
                kept = library.cast(problem.targets.owner != ignore, self.dtype)
                self.weight = kept if self.weight is None else kept * self.weight
        elif family == "entropy" and problem.soft:
            self.teacher = None

    def denominator(self, context, flag):
        """As of the cross-entropy; targets that are not read as teacher are checked here."""
        if self.teacher is not self.problem.targets and flag is None and self.check:
            flag = self.buffer(self.flag())
            found = super().denominator(context, flag)
            self.refuse(flag.owner, self.problem.n_rows)
            return found
        return super().denominator(context, flag)

    def queue(self, mode, context, scale, divided, x, *outs, policy=None):
        """Queue a kernel of the divergence; the partial sums of the losses."""
        problem = self.problem
        return self.general.divergence(
            context, mode, problem.logits, self.teacher, self.teacher_logits, problem.rows(self.weight),
            self.scalars[2], self.scalars[4], scale, divided, x, *outs, self.family, self.beta,
            self.policy("exact") if policy is None else policy,
        )  # fmt: skip

    def queue_rows(self, context, scale, divided, outs):
        loss, _, grad, flag = outs
        return self.queue("rows", context, scale, divided, None, loss, grad, None, flag)

    def queue_curvature(self, context, hessian, scale, divided, layers):
        if hessian in ("xgboost", "lightgbm"):
            super().queue_curvature(context, hessian, scale, divided, layers)
            return
        mode, policy = "rows", self.policy(hessian)
        if hessian == "upper":
            # as for labels, diag Q - Q Q' <= 2 diag Q (1 - Q)
            mode = "rows" if self.family == "forward_kl" else "upper"
            policy = self.launch.Policy(absolute=True, factor=2.0)
        self.queue(mode, context, scale, divided, None, None, None, layers, None, policy=policy)

    def term(self, scale):
        problem, scalars = self.problem, self.scalars
        arrays = problem.logits, self.teacher, self.teacher_logits, problem.rows(self.weight)
        options = scalars[2], scalars[4], scale, self.family, self.beta
        return Term("divergence", (scalars[4], None), (*arrays, *options))

    def queue_product(self, context, scale, divided, x, layers, flag):
        self.queue("product", context, scale, divided, x, None, None, layers, flag)


class DeviceElementCall(_DeviceCall):
    """`ElementCall` for arrays of a CUDA device; `name` says whether they are logits or probabilities."""

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
        name="logits",
    ):
        self.name = name
        self.start(backend, reduction, base, check)
        self.smoothing = _checks.real(label_smoothing, "label_smoothing", 0.0, 1.0)
        self.member = tuple(member)
        self.library, self.source = library, logits = _device.library_of(logits, name)
        self.storage = _device.real_dtype(library, logits, name)
        self.dtype = _device.compute_dtype(self.storage)
        self.weight_shape = self.shape = shape = tuple(logits.shape)
        if not _device.is_device(targets):
            raise TypeError(
                f"targets: expected an array on the device, as {name}, got {type(targets).__name__}"
            )
        if tuple(targets.shape) != shape:
            raise ValueError(f"targets: expected the shape of {name}, {shape}, got {tuple(targets.shape)}")
        targets = library.own(targets, "targets")
        kind = library.dtype(targets)
        direct = kind in (self.storage, self.dtype) or (self.dtype == "float32" and kind in ("bool", "uint8"))
        self.targets = targets if direct else library.given(targets, "targets", self.dtype)
        self.weight = _device.weights(library, sample_weight, "sample_weight", shape, self.dtype)
        self.pos_weight = _device.weights(library, pos_weight, "pos_weight", shape, self.dtype)

    def bad_target(self, element, name="targets"):
        at = []
        for n in reversed(self.shape):
            element, place = divmod(element, n)
            at.insert(0, place)
        return ValueError(f"{name}[{', '.join(map(str, at))}]: expected a number in [0, 1]")

    def refuse_values(self, flag, n):
        """Raise for the first probability that is none."""
        bad = int(self.library.item(flag)) if flag is not None else 0
        if bad:
            raise self.bad_target(n - bad, self.name)

    def run(self, *, grad=False, hess=False, out=None, upstream=1.0, divisor=None, hessian="exact"):
        """(loss, grad, hess), None for what was not asked for; `hessian` is the curvature policy of `hess`."""
        library, n = self.library, math.prod(self.shape)
        context = library.context()
        logits = self.name == "logits"
        flag, values_flag = self.flag(), None if logits else self.flag()
        gradient = _device.output(library, out, self.source) if grad else None
        curvature = library.empty_like(self.source) if hess else None
        arrays = (self.source, self.targets, gradient, curvature, self.weight, self.pos_weight)
        z, y, g, h, weight, pos_weight = _device.elements(library, arrays, self.shape)
        for buffer, array, name in ((g, gradient, "out"), (h, curvature, self.name)):
            if buffer is not None and buffer.owner is not array:
                raise ValueError(f"{name}: expected strides that can be walked as two axes")
        total, known = None, 1.0
        if self.reduction == "mean" and weight is not None:
            total, known = self.launch.weight_total(context, weight), None
        elif self.reduction not in ("sum", "none"):
            known = float(n)
        divided, factor = self.upstream(total, known, divisor)
        per_element = library.empty(self.shape, self.dtype) if self.reduction == "none" else None
        in_place = g is not None and g.address == z.address
        common = (context, z, y, weight, pos_weight, self.smoothing, self.unit * upstream * factor, divided)
        member, policy = self.member, self.policy(hessian)
        if hessian in ("xgboost", "lightgbm"):
            member = ("cross_entropy", 0.0, 0.0, 0.0)

        def queue(loss, g, h, *flags):
            flags = [self.buffer(each) for each in flags]
            if not logits:
                return self.launch.binary(*common, loss, g, h, *flags)
            return self.launch.sigmoid(*common, loss, g, flags[0], *self.member)

        if in_place and self.check:
            queue(None, None, None, flag, values_flag)
            self.refuse(flag, n)
            self.refuse_values(values_flag, n)
        if h is not None and logits:  # of another loss, it may be, than the gradient
            self.launch.sigmoid(*common, None, None, None, *member, h, policy)
        per = self.buffer(per_element)
        if in_place:
            partials = queue(per, g, h, None, None)
        else:
            partials = queue(per, g, h, flag, values_flag)
            self.refuse(flag, n)
            self.refuse_values(values_flag, n)
        if per_element is not None:
            if self.unit != 1.0:
                library.scale(per_element, self.unit)
            return per_element, gradient, curvature
        return self.reduced(context, partials, total, known, 0.0), gradient, curvature

    def curvature(self, hessian):
        """(grad, hess) under a curvature policy."""
        return self.run(grad=True, hess=True, hessian=hessian)[1:]

    def hvp(self, x):
        """Hessian times `x`: the Hessian of an elementwise loss is diagonal."""
        x = self.vector(x)
        hess = self.run(hess=True)[2]
        self.library.scale(hess, x)
        return hess

    def hessian(self, factor):
        """`Hessian`: factor times that of the reduced loss, a diagonal."""
        diagonal = self.library.cast(self.run(hess=True)[2], "float64") * float(factor)
        return Hessian(self.source, None, diagonal, (), self, 1)

    def backward(self, grad_loss, out):
        """Gradient for an upstream gradient."""
        return self.gradient_only(grad_loss, out)
