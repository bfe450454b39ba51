"""`_core_numpy`'s functions on NumPy arrays, which are copied to the device and back in every call, as `host` says."""

import numpy as np

from . import general, launch
from .host import Host

__all__ = [
    "binary_elements",
    "divergence_hvp",
    "divergence_rows",
    "divergence_upper",
    "element_totals",
    "partial_grad",
    "partial_rows",
    "region_grad",
    "region_sums",
    "sigmoid_elements",
    "softmax_boost",
    "softmax_hvp",
    "softmax_rows",
    "softmax_solve",
    "softmax_upper",
    "target_totals",
]


def _compute(array):
    return "float64" if array.dtype == np.float64 else "float32"


def _first(bad, n):
    """First bad row, from what a kernel left in its flag."""
    return n - bad if bad else -1


def softmax_rows(
    logits,
    targets,
    sample_weight,
    class_weight,
    logit_bias,
    label_smoothing,
    exclude_target,
    ignore_index,
    z_loss,
    temperature,
    scale,
    loss_out,
    lse_out,
    grad_out,
    hess_out,
    num_threads,
    family="cross_entropy",
    a=0.0,
    b=0.0,
):
    """Softmax losses of every row and their gradient: `_core_numpy.softmax_rows` on the device.

    Returns
    -------
    (float, int, int)
        The sum of the weighted losses; the first row with a bad target, or -1; rows not ignored.
    """
    host, real = Host(), _compute(logits)
    n_rows = logits.shape[0] * logits.shape[2]
    soft = targets.ndim == 3
    y = host.take(targets, real if soft else None)
    flag = host.flag()
    arrays = (host.take(logits), y, *(host.take(x, real) for x in (sample_weight, class_weight, logit_bias)))
    options = (label_smoothing, exclude_target, ignore_index, z_loss, temperature, scale)
    member = (family, a, b)
    outs = map(host.give, (loss_out, lse_out, grad_out))
    partials = launch.softmax_launch(host.context, *arrays, *options, None, *outs, flag, *member)
    if hess_out is not None:
        hess = host.give(hess_out)
        general.curvature(host.context, "diagonal", *arrays, *options, None, None, hess, None, *member)
    counted = n_rows
    if not soft and ignore_index is not None and n_rows:
        counted = int(
            host.number(
                launch.totals_launch(host.context, y, None, None, logits.shape[1], ignore_index, None)
            )
        )
    total, bad = host.total(partials), host.number(flag)
    host.fetch()
    return total, n_rows - bad if bad else -1, counted


def target_totals(targets, sample_weight, class_weight, n_classes, ignore_index, num_threads):
    """The denominators of the reductions, and the target check: `_core_numpy.target_totals` on the device.

    Returns
    -------
    (float, int, int)
        sum_i v_i sum_k w_k t_ik over un-smoothed targets; rows that are not ignored; first bad row or -1.
    """
    host = Host()
    n_rows = targets.shape[0] * targets.shape[-1]
    if n_rows == 0:
        return 0.0, 0, -1
    soft = targets.ndim == 3
    real = _compute(targets) if soft else "float64"
    y, flag = host.take(targets, real if soft else None), host.flag()
    v, w = host.take(sample_weight, real), host.take(class_weight, real)
    total = host.number(launch.totals_launch(host.context, y, v, w, n_classes, ignore_index, flag))
    counted = n_rows
    if not soft and ignore_index is not None:
        counted = int(
            host.number(launch.totals_launch(host.context, y, None, None, n_classes, ignore_index, None))
        )
    bad = host.number(flag)
    return total, counted, n_rows - bad if bad else -1


def sigmoid_elements(
    logits,
    targets,
    sample_weight,
    pos_weight,
    label_smoothing,
    scale,
    loss_out,
    grad_out,
    hess_out,
    num_threads,
    family="cross_entropy",
    a=0.0,
    b=0.0,
    c=0.0,
):
    """Elementwise losses on logits and their gradient: `_core_numpy.sigmoid_elements` on the device.

    Returns
    -------
    (float, int, int)
        The sum of the losses; the first element whose target lies outside [0, 1], or -1; -1.
    """
    host, real = Host(), _compute(logits)
    flag = host.flag()
    partials = launch.sigmoid(
        host.context,
        host.take(logits),
        host.take(targets, real),
        host.take(sample_weight, real),
        host.take(pos_weight, real),
        label_smoothing,
        scale,
        None,
        host.give(loss_out),
        host.give(grad_out),
        flag,
        family,
        a,
        b,
        c,
        host.give(hess_out),
    )
    total, bad = host.total(partials), host.number(flag)
    host.fetch()
    return total, logits.size - bad if bad else -1, -1


def element_totals(targets, sample_weight, num_threads):
    """Sum of the weights (element count without), and first target outside [0, 1] or -1; computed on the host."""
    total = float(targets.size) if sample_weight is None else float(sample_weight.sum(dtype=np.float64))
    wrong = ~((targets >= 0) & (targets <= 1))
    return total, int(wrong.argmax()) if wrong.any() else -1


def _curvature(mode, x, out, logits, targets, sample_weight, class_weight, logit_bias, *options):
    """A kernel of second derivatives on copies; the first bad row."""
    *scalars, scale, family, a, b = options
    host, real = Host(), _compute(logits)
    flag = host.flag()
    general.curvature(
        host.context,
        mode,
        host.take(logits),
        host.take(targets, real if targets.ndim == 3 else None),
        *(host.take(array, real) for array in (sample_weight, class_weight, logit_bias)),
        *scalars,
        scale,
        None,
        host.take(x, real),
        host.give(out),
        flag,
        family,
        a,
        b,
    )
    bad = host.number(flag)
    host.fetch()
    return _first(bad, logits.shape[0] * logits.shape[2])


def softmax_hvp(
    logits,
    targets,
    sample_weight,
    class_weight,
    logit_bias,
    label_smoothing,
    exclude_target,
    ignore_index,
    z_loss,
    temperature,
    scale,
    x,
    hvp_out,
    num_threads,
    family="cross_entropy",
    a=0.0,
    b=0.0,
):
    """The Hessian of `softmax_rows` times x: `_core_numpy.softmax_hvp` on the device.

    Returns the first row with a bad target, or -1.
    """
    arrays = (logits, targets, sample_weight, class_weight, logit_bias)
    options = (label_smoothing, exclude_target, ignore_index, z_loss, temperature, scale, family, a, b)
    return _curvature("product", x, hvp_out, *arrays, *options)


def softmax_upper(
    logits,
    targets,
    sample_weight,
    class_weight,
    logit_bias,
    label_smoothing,
    exclude_target,
    ignore_index,
    z_loss,
    temperature,
    scale,
    upper_out,
    num_threads,
    family="cross_entropy",
    a=0.0,
    b=0.0,
):
    """A diagonal that dominates the Hessian of every row: `_core_numpy.softmax_upper` on the device.

    Returns the first row with a bad target, or -1.
    """
    arrays = (logits, targets, sample_weight, class_weight, logit_bias)
    options = (label_smoothing, exclude_target, ignore_index, z_loss, temperature, scale, family, a, b)
    return _curvature("upper", None, upper_out, *arrays, *options)


def binary_elements(
    probabilities,
    targets,
    sample_weight,
    pos_weight,
    label_smoothing,
    scale,
    loss_out,
    grad_out,
    hess_out,
    num_threads,
):
    """Binary cross-entropy on probabilities: `_core_numpy.binary_elements` on the device.

    Returns
    -------
    (float, int, int)
        The sum of the losses; the first element whose target, and whose probability, lies outside [0, 1], or -1.
    """
    host, real = Host(), _compute(probabilities)
    flags = host.flag(), host.flag()
    partials = launch.binary(
        host.context,
        host.take(probabilities),
        *(host.take(array, real) for array in (targets, sample_weight, pos_weight)),
        label_smoothing,
        scale,
        None,
        *map(host.give, (loss_out, grad_out, hess_out)),
        *flags,
    )
    total, *bad = host.total(partials), *map(host.number, flags)
    host.fetch()
    return total, *(_first(each, probabilities.size) for each in bad)


def softmax_boost(
    margins, labels, sample_weight, class_weight, factor, floor, grad_out, hess_out, num_threads
):
    """A booster's derivatives of softmax cross-entropy: `_core_numpy.softmax_boost` on the device.

    Returns
    -------
    bool
        Whether every row is plain; otherwise the outputs mean nothing.
    """
    host, real = Host(), margins.dtype
    plain = (labels >= 0) & (labels < margins.shape[1]) & (labels == np.floor(labels))
    if sample_weight is not None:
        with np.errstate(over="ignore"):
            sample_weight = sample_weight.astype(real, copy=False)
        plain &= (sample_weight >= 0) & np.isfinite(sample_weight)
    if not plain.all():
        return False
    odd = host.flag()
    general.boost(
        host.context,
        host.take(margins),
        host.take(labels, np.int32),
        host.take(sample_weight, real),
        host.take(class_weight, real),
        factor,
        floor,
        host.give(grad_out),
        host.give(hess_out),
        odd,
    )
    usual = not host.number(odd)
    host.fetch()
    return usual


def partial_rows(logits, labels, start, m_out, r_out, t_out, Z_out, num_threads):
    """State of every row from its columns `start` and up: `_core_numpy.partial_rows` on the device."""
    host = Host()
    arrays = host.take(logits), host.take(labels, np.int64)
    general.partial_rows(host.context, *arrays, start, *map(host.give, (m_out, r_out, t_out, Z_out)))
    host.fetch()


def partial_grad(logits, labels, start, m, r, t, pull, weight, spread, share, grad_out, num_threads):
    """Gradient with respect to some columns of every row: `_core_numpy.partial_grad` on the device."""
    host = Host()
    arrays = host.take(logits), host.take(labels, np.int64)
    states = (host.take(array, np.float64) for array in (m, r, t, pull, weight))
    general.partial_grad(host.context, *arrays, start, *states, spread, share, host.give(grad_out))
    host.fetch()


def region_sums(values, targets, sample_weight, activation, soft_labels, sums_out, num_threads):
    """Weighted sums of true positives, false positives and false negatives: `_core_numpy.region_sums` on the device."""
    host, real = Host(), _compute(values)
    arrays = host.take(values), host.take(targets, real), host.take(sample_weight, real)
    general.region_sums(host.context, *arrays, activation, soft_labels, host.give(sums_out))
    host.fetch()


def region_grad(
    values,
    targets,
    sample_weight,
    activation,
    soft_labels,
    alpha,
    beta,
    slopes,
    grad_out,
    num_threads,
):
    """Gradient of region losses with respect to `values`: `_core_numpy.region_grad` on the device."""
    host, real = Host(), _compute(values)
    arrays = host.take(values), host.take(targets, real), host.take(sample_weight, real)
    slopes = host.take(slopes, np.float64)
    how = (activation, soft_labels, alpha, beta)
    general.region_grad(host.context, *arrays, *how, slopes, host.give(grad_out))
    host.fetch()


def _divergence(mode, x, outs, logits, teacher, teacher_logits, sample_weight, *options):
    """A kernel of divergences on copies: its partial sums and first bad row, and the host, whose results wait."""
    ignore_index, temperature, scale, family, beta = options
    host, real = Host(), _compute(logits)
    flag = host.flag()
    partials = general.divergence(
        host.context,
        mode,
        host.take(logits),
        host.take(teacher, None if teacher is None or teacher.ndim == 2 else real),
        teacher_logits,
        host.take(sample_weight, real),
        ignore_index,
        temperature,
        scale,
        None,
        host.take(x, real),
        *map(host.give, outs),
        flag,
        family,
        beta,
    )
    total, bad = host.total(partials), host.number(flag)
    host.fetch()
    return total, _first(bad, logits.shape[0] * logits.shape[2])


def divergence_rows(
    logits,
    teacher,
    teacher_logits,
    sample_weight,
    ignore_index,
    temperature,
    scale,
    loss_out,
    grad_out,
    hess_out,
    num_threads,
    family,
    beta=0.5,
):
    """A divergence of every row with its derivatives: `_core_numpy.divergence_rows` on the device.

    Returns
    -------
    (float, int)
        The sum of the weighted losses, and the first row with a bad label or a negative P, or -1.
    """
    options = (ignore_index, temperature, scale, family, beta)
    outs = (loss_out, grad_out, hess_out)
    return _divergence("rows", None, outs, logits, teacher, teacher_logits, sample_weight, *options)


def divergence_hvp(
    logits,
    teacher,
    teacher_logits,
    sample_weight,
    ignore_index,
    temperature,
    scale,
    x,
    hvp_out,
    num_threads,
    family,
    beta=0.5,
):
    """The Hessian of `divergence_rows` times x: `_core_numpy.divergence_hvp` on the device.

    Returns the first row with a bad label or a negative P, or -1.
    """
    options = (ignore_index, temperature, scale, family, beta)
    outs = (None, None, hvp_out)
    return _divergence("product", x, outs, logits, teacher, teacher_logits, sample_weight, *options)[1]


def divergence_upper(
    logits,
    teacher,
    teacher_logits,
    sample_weight,
    ignore_index,
    temperature,
    scale,
    upper_out,
    num_threads,
    family,
    beta=0.5,
):
    """A diagonal that dominates the Hessian of `divergence_rows`: `_core_numpy.divergence_upper` on the device.

    Returns the first row with a bad label or a negative P, or -1.
    """
    options = (ignore_index, temperature, scale, family, beta)
    outs = (None, None, upper_out)
    return _divergence("upper", None, outs, logits, teacher, teacher_logits, sample_weight, *options)[1]


def softmax_solve(terms, damping, rhs, x_out, num_threads):
    """(damping + H) x = rhs, row by row: `_core_numpy.softmax_solve` on the device.

    Takes 2 groups + 3 float64 numbers of the device's memory for every logit.
    """
    host = Host()
    copies = {}

    def take(array, dtype=None):
        place = id(array), dtype  # of arrays that the terms keep alive
        if place not in copies:
            copies[place] = host.take(array, dtype)
        return copies[place]

    given = []
    for kind, group, logits, target, *rest in terms:
        real = _compute(logits)
        soft = target is not None and target.ndim == 3
        arrays = take(logits), take(target, real if soft else None)
        if kind == "softmax":
            rest[:3] = (take(array, real) for array in rest[:3])
        else:
            rest[1] = take(rest[1], real)
        given.append((kind, group, *arrays, *rest))
    systems = (host.take(array, np.float64) for array in (damping, rhs))
    general.solve(host.context, given, *systems, host.give(x_out))
    host.fetch()
