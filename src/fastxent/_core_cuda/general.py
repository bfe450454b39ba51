"""Launchers of the general kernels: second derivatives, divergences, systems, shards, regions, boosting.

As in `launch`, everything is queued on the caller's stream and nothing waits for the device.
"""

import functools

from numba import types

from . import boost as boosts
from . import curvature as curvatures
from . import divergence as divergences
from . import launch, partial, region, rows
from . import solve as solving
from .launch import EXACT, F64, I32, I64, LABELS, element_of, pointer_to, real_of
from .teams import BLOCK

__all__ = [
    "boost",
    "curvature",
    "partial_grad",
    "partial_rows",
    "region_grad",
    "region_losses",
    "region_sums",
]


def _teams(n_rows, n_classes, inner, lanes=None):
    """(lanes that share a row, threads of a block, blocks) of a general kernel."""
    sizes = launch.SIZES
    lanes, threads = launch.team_of(n_classes, inner) if lanes is None else (lanes, sizes.neighbours)
    per_block = 1 if lanes == BLOCK else threads // lanes
    return lanes, threads, max(1, min(-(-n_rows // per_block), sizes.most_blocks))


def _strides(buffer, like=None):
    """Strides of a buffer; of another where it is not given, or zeros as the two of weights."""
    if buffer is not None:
        return buffer.strides
    return (0, 0) if like is None else like.strides


def _target_strides(targets):
    if len(targets.shape) == 3:
        return targets.strides
    return targets.strides[0], 0, targets.strides[1]


def _given(targets, dtype):
    """Numba's type of targets: a label's, or the arithmetic's of the logits."""
    return LABELS[targets] if targets in LABELS else real_of(dtype)


# ----------------------------------------------------------------------------------------------------------- curvature


@functools.cache
def _curvature_signature(dtype, target, real):
    x, f, number = pointer_to(element_of(dtype)), pointer_to(real_of(dtype)), real_of(real)
    pointers = (x, x, f, pointer_to(_given(target, dtype)), f, f, f, pointer_to(I64), pointer_to(F64))
    reals = (number, number, I32, *(number,) * 6)
    return (*pointers, *(I64,) * 3, *(I64,) * 14, I64, I32, *reals)


def curvature(
    context, mode, logits, targets, sample_weight, class_weight, logit_bias, label_smoothing, exclude_target,
    ignore_index, z_loss, temperature, scale, denominator, x, out, bad_out,
    family="cross_entropy", a=0.0, b=0.0, policy=EXACT,
):  # fmt: skip
    """Queue a kernel of second derivatives, `scale` times: `mode` "diagonal", "product" with x, or "upper".

    Arrays as for `softmax_launch`; x and out as the logits, x in the arithmetic's dtype. The diagonal is put under a
    `Policy`. The upper bound is computed in float64.
    """
    outer, n_classes, inner = logits.shape
    n_rows = outer * inner
    if n_rows == 0:
        return
    soft = len(targets.shape) == 3
    real = "float64" if mode == "upper" or logits.dtype == "float64" else "float32"
    lanes, threads, grid = _teams(n_rows, n_classes, inner)
    order = (rows.WEIGHT, rows.CLASS_WEIGHT, rows.BIAS, rows.DENOMINATOR, rows.BAD)
    flags = launch._flags(sample_weight, class_weight, logit_bias, denominator, bad_out, order=order)
    more, factor, floor = launch.policy_arguments(policy)
    flags |= more | (rows.EXCLUDE if exclude_target else 0)
    flags |= 0 if ignore_index is None else rows.IGNORE
    given = (logits, out, x, targets, sample_weight, class_weight, logit_bias, bad_out, denominator)
    # a floor is that of a row of weight 1, before the temperature
    values = (
        *map(launch._pointer, given), n_rows, n_classes, inner,
        *logits.strides, *out.strides, *_strides(x, logits), *_target_strides(targets), *_strides(sample_weight),
        0 if ignore_index is None else int(ignore_index), flags, 1.0 / temperature, z_loss, rows.FAMILIES[family], a, b,
        label_smoothing, factor, floor * temperature**2, scale / temperature**2,
    )  # fmt: skip
    others = (out.strides, _strides(x, logits)) + ((targets.strides,) if soft else ())
    # the bound is float64, whose arithmetic takes longer than any load
    wide = mode != "upper" and launch.takes_vectors(lanes, threads, logits, *others)
    arguments = (logits.dtype, real, lanes, soft, mode, family == "cross_entropy", wide)
    kinds = (_curvature_signature, logits.dtype, targets.dtype if not soft else real_name(logits.dtype), real)
    launch.run(curvatures.curvature_kernel, arguments, kinds, grid, threads, context, values)


def real_name(dtype):
    """Name of the arithmetic's dtype."""
    return "float64" if dtype == "float64" else "float32"


# --------------------------------------------------------------------------------------------------------------- boost


@functools.cache
def _boost_signature(dtype):
    x, f = pointer_to(element_of(dtype)), pointer_to(types.float32)
    return (x, f, f, pointer_to(types.int32), x, x, pointer_to(I64), *(I64,) * 8, I32, F64, F64)


def boost(context, margins, labels, sample_weight, class_weight, factor, floor, grad_out, hess_out, odd_out):
    """Queue the kernel of `_core_numpy.softmax_boost`; `odd_out`, an int64, becomes 1 where a row has a limit."""
    n_rows, n_classes = margins.shape
    if n_rows == 0:
        return
    by_columns = n_classes < 8 or margins.strides[0] == 1  # neighbours in memory are neighbours of a warp
    lanes, threads, grid = _teams(n_rows, n_classes, 1, 1 if by_columns else None)
    flags = launch._flags(sample_weight, class_weight, order=(rows.WEIGHT, rows.CLASS_WEIGHT))
    given = (margins, grad_out, hess_out, labels, sample_weight, class_weight, odd_out)
    values = (
        *map(launch._pointer, given), n_rows, n_classes, *margins.strides, *grad_out.strides, *hess_out.strides,
        flags, factor, floor,
    )  # fmt: skip
    kinds = (_boost_signature, margins.dtype)
    launch.run(boosts.boost_kernel, (margins.dtype, lanes), kinds, grid, threads, context, values)


# -------------------------------------------------------------------------------------------------------------- shards


@functools.cache
def _state_signature(dtype):
    return (pointer_to(element_of(dtype)), pointer_to(I64), *(pointer_to(F64),) * 4, *(I64,) * 5)


@functools.cache
def _shard_signature(dtype):
    x = pointer_to(element_of(dtype))
    return (x, x, pointer_to(I64), *(pointer_to(F64),) * 5, *(I64,) * 7, F64, F64)


def partial_rows(context, logits, labels, start, m_out, r_out, t_out, Z_out):
    """Queue the kernel of `_core_numpy.partial_rows`: logits (rows, k) of any strides, k > 0."""
    n_rows, n_columns = logits.shape
    if n_rows == 0:
        return
    lanes, threads, grid = _teams(n_rows, n_columns, 1)
    given = (logits, labels, m_out, r_out, t_out, Z_out)
    values = (*map(launch._pointer, given), n_rows, n_columns, *logits.strides, start)
    kinds = (_state_signature, logits.dtype)
    launch.run(partial.state_kernel, (logits.dtype, lanes), kinds, grid, threads, context, values)


def partial_grad(context, logits, labels, start, m, r, t, pull, weight, spread, share, grad_out):
    """Queue the kernel of `_core_numpy.partial_grad`; `grad_out` may be the logits."""
    n_rows, n_columns = logits.shape
    if n_rows == 0:
        return
    lanes, threads, grid = _teams(n_rows, n_columns, 1)
    given = (logits, grad_out, labels, m, r, t, pull, weight)
    values = (
        *map(launch._pointer, given), n_rows, n_columns, *logits.strides, *grad_out.strides, start, spread, share,
    )  # fmt: skip
    kinds = (_shard_signature, logits.dtype)
    launch.run(partial.grad_kernel, (logits.dtype, lanes), kinds, grid, threads, context, values)


# ------------------------------------------------------------------------------------------------------------- regions


@functools.cache
def _region_rows_signature(dtype):
    return (pointer_to(element_of(dtype)), pointer_to(real_of(dtype)), *(I64,) * 8)


@functools.cache
def _region_sums_signature(dtype):
    f = pointer_to(real_of(dtype))
    return (pointer_to(element_of(dtype)), f, f, f, pointer_to(F64), *(I64,) * 17, I32)


@functools.cache
def _region_grad_signature(dtype):
    x, f, real = pointer_to(element_of(dtype)), pointer_to(real_of(dtype)), real_of(dtype)
    return (x, x, f, f, pointer_to(F64), *(I64,) * 20, I32, real, real)


def _grid_of(n_groups, lanes):
    threads = launch.SIZES.neighbours
    return min(-(-n_groups * lanes // threads), launch.SIZES.most_blocks), threads


def region_sums(context, values, targets, sample_weight, activation, soft_labels, sums_out):
    """Queue the kernels of `_core_numpy.region_sums`, over buffers of four axes with any strides.

    sums_out: contiguous float64 (regions, 1 or classes, 3).
    """
    regions, outer, n_classes, inner = values.shape
    per_class = sums_out.shape[1] == n_classes
    n_groups = regions * sums_out.shape[1]
    if n_groups == 0:
        return
    dtype, threads = values.dtype, launch.SIZES.neighbours
    n_rows = regions * outer * inner
    states = None
    if activation == "softmax" and n_rows:
        states = context.empty((3 * n_rows,), real_name(dtype))
        lanes, each, grid = _teams(n_rows, n_classes, inner)
        numbers = (values.pointer, states.pointer, n_rows, *values.shape[1:], *values.strides)
        launch.run(
            region.rows_kernel, (dtype, lanes), (_region_rows_signature, dtype), grid, each, context, numbers
        )
    count = outer * inner * (1 if per_class else n_classes)
    chunks = max(1, min(-(-count // (16 * threads)), 1024))
    partials = context.empty((3 * n_groups * chunks,), "float64")
    given = (values, targets, sample_weight, states, partials)
    numbers = (
        *map(launch._pointer, given), n_groups, outer, n_classes, inner, -(-count // (chunks * threads)),
        *values.strides, *targets.strides, *((0,) * 4 if sample_weight is None else sample_weight.strides),
        0 if sample_weight is None else rows.WEIGHT,
    )  # fmt: skip
    arguments = (dtype, activation, bool(soft_labels), per_class)
    kinds, grid = (_region_sums_signature, dtype), (chunks, min(n_groups, 65535))
    launch.run(region.sums_kernel, arguments, kinds, grid, threads, context, numbers)
    numbers = (partials.pointer, sums_out.pointer, n_groups, chunks)
    launch.run(region.total_kernel, (), (_region_total_signature,), *_grid_of(n_groups, 32), context, numbers)


@functools.cache
def _region_total_signature():
    return (pointer_to(F64), pointer_to(F64), I64, I64)


@functools.cache
def _region_loss_signature():
    return (*(pointer_to(F64),) * 3, I64, *(F64,) * 4)


def region_losses(context, sums, alpha, beta, smooth, scale, losses_out, slopes_out):
    """Queue the losses of the regions from their sums, and `scale` times the slopes of their gradients, in float64."""
    n_groups = sums.shape[0] * sums.shape[1]
    if n_groups == 0:
        return
    numbers = (sums.pointer, losses_out.pointer, slopes_out.pointer, n_groups, alpha, beta, smooth, scale)
    kinds = (_region_loss_signature,)
    launch.run(region.loss_kernel, (), kinds, *_grid_of(n_groups, 1), context, numbers)


def region_grad(
    context, values, targets, sample_weight, activation, soft_labels, alpha, beta, slopes, grad_out
):
    """Queue the kernel of `_core_numpy.region_grad`; `grad_out` may be the values. slopes: contiguous float64."""
    regions, outer, n_classes, inner = values.shape
    n_rows = regions * outer * inner
    if n_rows == 0:
        return
    # without a softmax the classes stand alone, and a thread takes one element if there is one class
    lanes, threads, grid = _teams(n_rows, n_classes, inner)
    given = (values, grad_out, targets, sample_weight, slopes)
    numbers = (
        *map(launch._pointer, given), n_rows, outer, n_classes, inner, *values.strides, *grad_out.strides,
        *targets.strides, *((0,) * 4 if sample_weight is None else sample_weight.strides),
        0 if sample_weight is None else rows.WEIGHT, alpha, beta,
    )  # fmt: skip
    arguments = (values.dtype, lanes, activation, bool(soft_labels), slopes.shape[1] == n_classes)
    kinds = (_region_grad_signature, values.dtype)
    launch.run(region.grad_kernel, arguments, kinds, grid, threads, context, numbers)


# --------------------------------------------------------------------------------------------------------- divergences


@functools.cache
def _divergence_signature(dtype, target):
    x, f, g = pointer_to(element_of(dtype)), pointer_to(real_of(dtype)), pointer_to(F64)
    pointers = (x, x, x, f, pointer_to(_given(target, dtype)), f, f, g, pointer_to(I64), *(g,) * 6)
    return (*pointers, *(I64,) * 3, *(I64,) * 17, I64, I32, I32, I64, *(F64,) * 5)


def divergence(
    context, mode, logits, teacher, teacher_logits, sample_weight, ignore_index, temperature, scale, denominator,
    x, loss_out, grad_out, out, bad_out, family, beta=0.5, policy=EXACT,
):  # fmt: skip
    """Queue the kernel of `_core_numpy.divergence_rows` ("rows"), `_hvp` ("product" with x) or `_upper` ("upper").

    `out` gets the diagonal under a `Policy`, the product or the bound; partial sums of the losses. x in the
    arithmetic's dtype.
    """
    return _divergence(
        context, mode, logits, teacher, teacher_logits, sample_weight, ignore_index, temperature, scale, denominator,
        x, loss_out, grad_out, out, bad_out, family, beta, policy,
    )  # fmt: skip


def _divergence(
    context, mode, logits, teacher, teacher_logits, sample_weight, ignore_index, temperature, scale, denominator,
    x, loss_out, grad_out, out, bad_out, family, beta, policy=EXACT, system=(None,) * 5, wanted=0, group=0,
):  # fmt: skip
    outer, n_classes, inner = logits.shape
    n_rows = outer * inner
    lanes, threads, grid = _teams(n_rows, n_classes, inner)
    slots = grid * (1 if lanes == BLOCK else threads // lanes)
    partials = context.empty((slots if n_rows and mode == "rows" else 0,), "float64")
    if n_rows == 0:
        return partials
    kind = "none" if teacher is None else "logits" if teacher_logits else "weights"
    if teacher is not None and len(teacher.shape) == 2:
        kind = "labels"
    order = (rows.WEIGHT, rows.LOSS, rows.DENOMINATOR, rows.BAD)
    flags = launch._flags(sample_weight, loss_out, denominator, bad_out, order=order)
    flags |= 0 if ignore_index is None or kind != "labels" else rows.IGNORE
    more, factor, floor = launch.policy_arguments(policy)
    flags |= more
    wanted |= 0 if grad_out is None else divergences.GRAD
    wanted |= 0 if out is None else divergences.DIAGONAL
    given = (
        logits,
        grad_out,
        out,
        x,
        teacher,
        sample_weight,
        loss_out,
        partials,
        bad_out,
        denominator,
        *system,
    )
    values = (
        *map(launch._pointer, given), n_rows, n_classes, inner, *logits.strides, *_strides(grad_out, logits),
        *_strides(out, logits), *_strides(x, logits), *((0, 0, 0) if teacher is None else _target_strides(teacher)),
        *_strides(sample_weight), 0 if ignore_index is None else int(ignore_index), flags, wanted, group,
        1.0 / temperature, beta, factor, floor * temperature**2, scale,
    )  # fmt: skip
    real = real_name(logits.dtype)
    arguments = (logits.dtype, real, lanes, kind, family, mode)
    kinds = (_divergence_signature, logits.dtype, teacher.dtype if kind == "labels" else real)
    launch.run(divergences.divergence_kernel, arguments, kinds, grid, threads, context, values)
    return partials


# ------------------------------------------------------------------------------------------------------------- systems


@functools.cache
def _system_signature(dtype, target):
    x, f, g = pointer_to(element_of(dtype)), pointer_to(real_of(dtype)), pointer_to(F64)
    pointers = (x, pointer_to(_given(target, dtype)), f, f, f, *(g,) * 5)
    return (*pointers, *(I64,) * 3, *(I64,) * 8, I64, I32, I32, I64, F64, F64, I32, *(F64,) * 4)


@functools.cache
def _solve_signature(dtype):
    return (*(pointer_to(F64),) * 9, pointer_to(element_of(dtype)), *(I64,) * 12)


def solve(context, terms, damping, rhs, x_out):
    """Queue the kernels of `_core_numpy.softmax_solve`; terms as there, with buffers for arrays.

    Scratch memory: 2 groups + 3 float64 for every logit. Bad labels make their rows NaN.
    """
    outer, n_classes, inner = x_out.shape
    n_rows = outer * inner
    if n_rows == 0:
        return
    many = n_rows * n_classes
    groups = 1 + max(group for _, group, *_ in terms)
    empty = lambda n: context.empty((n,), "float64")  # noqa: E731
    p, w, zeta = empty(groups * many), empty(groups * many), empty(groups * n_rows)
    size, alive, guess, rest = empty(many), empty(n_rows), empty(many), empty(many)
    system = (p, w, size, zeta, alive)
    seen = set()
    for kind, group, *arguments in terms:
        wanted = (0 if group in seen else divergences.FIRST_OF_GROUP) | (0 if seen else divergences.FIRST)
        seen.add(group)
        if kind == "softmax":
            _system(context, *arguments, system, wanted, group)
        else:
            *given, family, beta = arguments
            outs = (None,) * 6
            _divergence(context, "weights", *given, *outs, family, beta, EXACT, system, wanted, group)
    lanes, threads, grid = _teams(n_rows, n_classes, inner)
    given = (p, w, size, zeta, alive, damping, rhs, guess, rest, x_out)
    values = (
        *map(launch._pointer, given), n_rows, n_classes, inner, *damping.strides, *rhs.strides, *x_out.strides
    )  # fmt: skip
    kinds = (_solve_signature, x_out.dtype)
    launch.run(solving.solve_kernel, (x_out.dtype, lanes, groups), kinds, grid, threads, context, values)


def _system(
    context, logits, targets, sample_weight, class_weight, logit_bias, label_smoothing, exclude_target, ignore_index,
    z_loss, temperature, scale, family, a, b, system, wanted, group,
):  # fmt: skip
    outer, n_classes, inner = logits.shape
    n_rows = outer * inner
    soft = len(targets.shape) == 3
    lanes, threads, grid = _teams(n_rows, n_classes, inner)
    order = (rows.WEIGHT, rows.CLASS_WEIGHT, rows.BIAS)
    flags = launch._flags(sample_weight, class_weight, logit_bias, order=order)
    flags |= (rows.EXCLUDE if exclude_target else 0) | (0 if ignore_index is None else rows.IGNORE)
    given = (logits, targets, sample_weight, class_weight, logit_bias, *system)
    values = (
        *map(launch._pointer, given), n_rows, n_classes, inner, *logits.strides, *_target_strides(targets),
        *_strides(sample_weight), 0 if ignore_index is None else int(ignore_index), flags, wanted, group,
        1.0 / temperature, z_loss, rows.FAMILIES[family], a, b, label_smoothing, scale,
    )  # fmt: skip
    real = real_name(logits.dtype)
    arguments, kinds = (
        (logits.dtype, real, lanes, soft),
        (_system_signature, logits.dtype, real if soft else targets.dtype),
    )
    launch.run(solving.system_kernel, arguments, kinds, grid, threads, context, values)
