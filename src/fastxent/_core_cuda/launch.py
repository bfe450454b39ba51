"""From buffers to launches: which kernel, what grid, which arguments.

Everything is queued on the caller's stream and nothing here waits for the device. Kernels take addresses, not arrays:
an array argument costs the host several microseconds, an address one.
"""

import functools
import math
from typing import NamedTuple

from numba import types

from . import careful, elements, rows, softmax, split, totals
from .queue import run
from .storage import STORAGES
from .teams import BLOCK
from .vectors import UNROLL

__all__ = [
    "EXACT",
    "SIZES",
    "Buffer",
    "Context",
    "Plan",
    "Policy",
    "Sizes",
    "binary",
    "combine",
    "element_plan",
    "plan",
    "run",
    "sigmoid",
    "softmax_launch",
    "totals_launch",
    "weight_total",
]


class Buffer(NamedTuple):
    """Memory of the device: what a kernel is given, its address, shape, strides in elements and dtype's name."""

    pointer: object
    address: int
    shape: tuple
    strides: tuple
    dtype: str
    owner: object  # keeps the memory alive

    @property
    def size(self):
        """Number of elements."""
        return math.prod(self.shape)


class Context(NamedTuple):
    """Where work is queued, where scratch memory comes from, and who else is told of a launch.

    `empty(shape, dtype name)` -> Buffer; `record(queued kernel, its arguments)`, or None.
    """

    stream: object
    empty: object
    record: object = None


class Sizes(NamedTuple):
    """Threads and elements of the launches."""

    tile: int = 256  # rows, and threads, of a tile
    lanes: tuple = (8, 16, 32)
    neighbours: int = 256  # threads of a block of rows that lanes share
    blocks: tuple = (64, 128, 256, 512)  # 1024 would leave a thread 64 registers, and spill
    stream: int = 512
    chunk: int = (
        split.CHUNK
    )  # a multiple of chunk_threads vectors, so that a lane keeps its place in every chunk
    chunk_threads: int = 256
    few_rows: int = 132  # fewer rows than this leave multiprocessors idle
    totals: int = 512
    most_blocks: int = 4096


SIZES = Sizes()
TILE_CLASSES = 32
# Not given: no kernel reads it, a bit of its flags says so.
NULL = 0

LABELS = {
    "bool": types.uint8,
    "uint8": types.uint8,
    "int8": types.int8,
    "uint16": types.uint16,
    "int16": types.int16,
    "uint32": types.uint32,
    "int32": types.int32,
    "uint64": types.int64,  # beyond 2^63 negative, and so no class either
    "int64": types.int64,
}


class Policy(NamedTuple):
    """What is made of a second derivative: its absolute value, times a factor, not below a floor; or its bound.

    The floor is that of a row of weight 1 of the summed loss; `upper` asks the elementwise kernels for the bound.
    """

    absolute: bool = False
    factor: float = 1.0
    floor: float | None = None
    upper: bool = False


EXACT = Policy()


def policy_arguments(policy):
    """(bits of `flags`, factor, floor) of a policy, as the kernels take them."""
    flags = (rows.ABSOLUTE if policy.absolute else 0) | (0 if policy.floor is None else rows.FLOORED)
    return flags, policy.factor, policy.floor or 0.0


class Plan(NamedTuple):
    """A kernel of `softmax`: its name, 16-byte vectors of a thread, lanes of a row, threads of a block, grid."""

    regime: str
    vectors: int
    lanes: int
    threads: int
    grid: object
    partials: int


def plan(dtype, n_rows, n_classes, packed):
    """The kernel for rows in one piece; `packed` if they follow one another without a gap from a 16-byte boundary.

    Raises
    ------
    KeyError
        A dtype that has no 16-byte vectors.
    """
    per_vector = STORAGES[dtype].per_vector
    if packed and n_classes <= TILE_CLASSES:
        tiles = -(-n_rows // SIZES.tile)
        return Plan("tile", 1, 1, SIZES.tile, tiles, tiles)
    vectors = n_classes // per_vector
    if n_rows < SIZES.few_rows and n_classes >= 4 * SIZES.chunk:
        chunks = -(-n_classes // SIZES.chunk)
        return Plan("split", 1, BLOCK, SIZES.chunk_threads, n_rows * chunks, n_rows)
    for lanes in SIZES.lanes:
        most = (1, 2) if lanes < SIZES.lanes[-1] else (1, 2, 4, 8) if dtype == "float32" else (1, 2, 4)
        for each in most:
            if vectors <= lanes * each:
                teams = SIZES.neighbours // lanes
                grid = min(-(-n_rows // teams), SIZES.most_blocks)
                return Plan("resident", each, lanes, SIZES.neighbours, grid, grid * teams)
    for threads in SIZES.blocks:
        for each in (4, 8) if threads == SIZES.blocks[-1] else (4,):
            if vectors <= each * threads:
                return Plan("resident", each, BLOCK, threads, n_rows, n_rows)
    return Plan("stream", UNROLL, BLOCK, SIZES.stream, n_rows, n_rows)


# ------------------------------------------------------------------------------------------------------- launches


def pointer_to(kind):
    """Type of an address."""
    return types.CPointer(kind)


F32, F64, I32, I64 = types.float32, types.float64, types.int32, types.int64


@functools.cache
def real_of(dtype):
    """Numba's type of the arithmetic of a dtype."""
    return F64 if dtype == "float64" else F32


def element_of(dtype):
    """Numba's type of what an address of a dtype points to."""
    return types.float64 if dtype == "float64" else types.float32 if dtype == "float32" else types.uint16


@functools.cache
def _row_signature(dtype, label):
    x, f = pointer_to(element_of(dtype)), pointer_to(F32)
    pointers = (
        x,
        x,
        pointer_to(LABELS[label]),
        f,
        f,
        f,
        f,
        pointer_to(F64),
        pointer_to(I64),
        pointer_to(F64),
    )
    scalars = (I64, I32, I64, I64, I32, I64, I64, I32, F32, F32, F32, I32, F32, F32, F32, F32, F32)
    return pointers + scalars


@functools.cache
def _split_signature(dtype, label):
    base = _row_signature(dtype, label)
    return (*base[:10], pointer_to(F32), *base[10:], F32, I32)


@functools.cache
def _partial_signature(dtype, label):
    x = pointer_to(element_of(dtype))
    return (x, pointer_to(LABELS[label]), pointer_to(F32), I32, I64, I32, F32, I32)


@functools.cache
def _careful_signature(dtype, target):
    x, f, real = pointer_to(element_of(dtype)), pointer_to(real_of(dtype)), real_of(dtype)
    given = pointer_to(LABELS.get(target, real))
    pointers = (x, x, given, f, f, f, f, f, pointer_to(F64), pointer_to(I64), pointer_to(F64))
    return (
        *pointers,
        *(I64, I64, I64),
        *(I64,) * 11,
        *(I64, I32),
        *(real, real, I32, real, real, real, real),
    )


@functools.cache
def _totals_signature(target, weight):
    kind = pointer_to(LABELS[target] if target in LABELS else real_of(target))
    real = pointer_to(real_of(weight))
    return (kind, real, real, pointer_to(F64), pointer_to(I64), *(I64,) * 8, I32)


@functools.cache
def _combine_signature(dtype):
    return (pointer_to(F64), pointer_to(real_of(dtype)), pointer_to(F64), I64, F64, types.boolean, F64)


@functools.cache
def _flat_signature(dtype, target):
    x, y, real = element_of(dtype), STORAGES[target].element, real_of(dtype)
    pointers = tuple(map(pointer_to, (x, x, y, real, F64, I64)))
    return (*pointers, I64, I64, I32, *(real,) * 5)


@functools.cache
def _strided_signature(dtype, target):
    x, y, real = element_of(dtype), STORAGES[target].element, real_of(dtype)
    pointers = tuple(map(pointer_to, (x, x, x, y, real, real, real, F64, I64, I64, F64)))
    return (*pointers, *(I64,) * 14, I32, real, I32, *(real,) * 6)


@functools.cache
def _weights_signature(dtype):
    return (pointer_to(real_of(dtype)), pointer_to(F64), *(I64,) * 4)


def _pointer(buffer):
    return NULL if buffer is None else buffer.pointer


def _flags(
    *given, order=(rows.WEIGHT, rows.CLASS_WEIGHT, rows.LOSS, rows.LSE, rows.DENOMINATOR, rows.BAD, rows.BIAS)
):
    """Bits of the pointers that are given, in an order of bits."""
    flags = 0
    for bit, pointer in zip(order, given, strict=True):
        if pointer is not None:
            flags |= bit
    return flags


# -------------------------------------------------------------------------------------------------------------- softmax


def softmax_launch(
    context,
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
    denominator,
    loss_out,
    lse_out,
    grad_out,
    bad_out,
    family="cross_entropy",
    a=0.0,
    b=0.0,
    lse=None,
):
    """Queue the kernels of `_core_numpy.softmax_rows`; partial sums of the losses, None where a given `lse` served.

    logits, grad_out: (outer, classes, inner) with any strides; targets: labels (outer, inner) or, in the arithmetic's
    dtype, (outer, classes, inner); loss_out and lse_out contiguous. `denominator`: a float64 that an earlier launch
    left, by which `scale` is divided. `bad_out`: an int64, raised to n_rows - i for a bad row i. A given `lse` saves
    a plain cross-entropy of rows beyond the registers the first of two reads; its rounding goes into the gradient.
    """
    soft = len(targets.shape) == 3
    number = rows.FAMILIES[family]
    ignore = 0 if ignore_index is None else int(ignore_index)
    flags = _flags(sample_weight, class_weight, loss_out, lse_out, denominator, bad_out, logit_bias)
    if ignore_index is not None:
        flags |= rows.IGNORE
    if exclude_target:
        flags |= rows.EXCLUDE
    way = None
    if not soft and logit_bias is None:
        g_strides, g_at = (None, 0) if grad_out is None else (grad_out.strides, grad_out.address % 16)
        way = _way(
            SIZES, logits.dtype, targets.dtype, logits.shape, logits.strides, logits.address % 16, g_strides, g_at,
            flags, label_smoothing, z_loss, temperature, number, a, b, lse is not None,
        )  # fmt: skip
    if way is None:
        return _careful(
            context, logits, targets, sample_weight, class_weight, logit_bias, label_smoothing, ignore, flags,
            z_loss, temperature, scale, denominator, loss_out, lse_out, grad_out, bad_out, number, a, b,
        )  # fmt: skip
    n_rows = logits.shape[0]
    if n_rows == 0:
        return context.empty((0,), "float64")
    y = targets.strides[0]
    if y != 1 and n_rows > 1:
        raise ValueError(f"labels must follow one another, got a stride of {y}")
    regime, threads, grid, n_partials, make, arguments, kinds, chunks, before, after = way
    partials = context.empty((n_partials,), "float64")
    given = (
        logits,
        grad_out,
        targets,
        sample_weight,
        class_weight,
        loss_out,
        lse_out,
        partials,
        bad_out,
        denominator,
    )
    head = tuple([NULL if x is None else x.pointer for x in given])
    w_step = 0 if sample_weight is None else sample_weight.strides[0]
    tail = (*before, w_step, ignore, *after, scale / temperature)
    if chunks is None:
        run(make, arguments, kinds, grid, threads, context, head + tail)
        return partials
    grad, saved = grad_out is not None, regime == "saved"
    states = lse
    if not saved:
        dtype, smooth, base2 = logits.dtype, label_smoothing != 0, after[2]
        states = context.empty((chunks * n_rows * 4,), "float32")
        values = (head[0], head[2], states.pointer, *before[1:3], before[4], base2, chunks)
        kind = (_partial_signature, dtype, targets.dtype)
        options = (dtype, smooth, threads, SIZES.chunk)
        run(split.partial_kernel, options, kind, grid, threads, context, values)
    if grad or not saved:
        values = (*head, states.pointer, *tail, temperature, chunks)
        run(make, arguments, kinds, grid if grad else n_rows, threads, context, values)
    return None if saved else partials


@functools.lru_cache(maxsize=4096)
def _way(
    sizes, dtype, label, shape, x_strides, x_at, g_strides, g_at,
    flags, label_smoothing, z_loss, temperature, number, a, b, saved,
):  # fmt: skip
    """How a call is launched, from all but its addresses and its scale; None where only the careful kernel serves.

    (regime, threads, grid, number of partial sums, kernel, its constants, its signature, blocks of a row where they
    share one, arguments before the step of the weights, arguments after ignore_index); `x_at`, `g_at`: addresses
    modulo 16.
    """
    n_rows, n_classes, inner = shape
    grad, smooth = g_strides is not None, label_smoothing != 0
    if inner != 1 or dtype == "float64" or (smooth and (flags & rows.CLASS_WEIGHT or number != 0)):
        return None
    if label_smoothing > 0.5:  # the sum over all classes would cancel with the label's own distance
        return None
    storage = STORAGES[dtype]
    per_vector = storage.per_vector
    # A row's elements are apart, or the 16-byte boundaries of logits and gradient differ.
    if n_classes >= 1 << 30 or (n_classes > 1 and (x_strides[1] != 1 or (grad and g_strides[1] != 1))):
        return None
    if grad and (x_at != g_at or (n_rows > 1 and (x_strides[0] - g_strides[0]) % per_vector)):
        return None
    x_step = x_strides[0]
    g_step = g_strides[0] if grad else x_step
    packed = x_step == n_classes == g_step and x_at == 0 and not (grad and g_at)
    it = plan(dtype, n_rows, n_classes, packed)
    regime, threads = it.regime, it.threads
    chunks = -(-n_classes // sizes.chunk)
    if saved and number == 0 and regime in ("stream", "split"):
        it = Plan("saved", 1, BLOCK, sizes.chunk_threads, n_rows * chunks, 1)
        regime, threads = it.regime, it.threads
    kinds = (_row_signature, dtype, label)
    if regime == "tile":
        make, arguments = softmax.tile_kernel, (dtype, n_classes, grad, sizes.tile)
    elif regime == "resident":
        make, arguments = softmax.resident_kernel, (dtype, it.vectors, it.lanes, grad)
    elif regime == "stream":
        make, arguments = softmax.stream_kernel, (dtype, smooth, grad, threads)
    else:
        make, arguments = split.split_kernel, (dtype, regime == "saved", grad, threads, sizes.chunk)
        kinds = (_split_signature, dtype, label)
    off = 0.0
    exclude = bool(flags & rows.EXCLUDE)
    if smooth:
        off = label_smoothing / (max(n_classes - 1, 1) if exclude else n_classes)
        off *= not (exclude and n_classes == 1)
    on = 1.0 - label_smoothing + (0.0 if exclude else off)
    before = (n_rows, n_classes, x_step, g_step, x_at // storage.itemsize)
    after = (flags, 1.0 / temperature, math.log2(math.e) / temperature, z_loss, number, a, b, on, off)
    shared = chunks if regime in ("split", "saved") else None
    return regime, threads, it.grid, it.partials, make, arguments, kinds, shared, before, after


def _careful(
    context, logits, targets, sample_weight, class_weight, logit_bias, label_smoothing, ignore, flags,
    z_loss, temperature, scale, denominator, loss_out, lse_out, grad_out, bad_out, number, a, b,
):  # fmt: skip
    outer, n_classes, inner = logits.shape
    n_rows = outer * inner
    soft = len(targets.shape) == 3
    lanes, threads = team_of(n_classes, inner)
    teams = 1 if lanes == BLOCK else threads // lanes
    grid = min(-(-n_rows // teams), SIZES.most_blocks)
    partials = context.empty((grid * teams,), "float64")
    if n_rows == 0:
        return partials
    t_strides = targets.strides if soft else (targets.strides[0], 0, targets.strides[1])
    values = (
        *map(_pointer, (logits, grad_out, targets, sample_weight, class_weight, logit_bias, loss_out, lse_out)),
        *map(_pointer, (partials, bad_out, denominator)),
        n_rows, n_classes, inner,
        *logits.strides, *(logits.strides if grad_out is None else grad_out.strides), *t_strides,
        *((0, 0) if sample_weight is None else sample_weight.strides),
        ignore, flags, 1.0 / temperature, z_loss, number, a, b, label_smoothing, scale / temperature,
    )  # fmt: skip
    others = ([] if grad_out is None else [grad_out.strides]) + ([t_strides] if soft else [])
    wide = takes_vectors(lanes, threads, logits, *others)
    arguments = (logits.dtype, lanes, soft, grad_out is not None, number == 0, wide)
    kinds = (_careful_signature, logits.dtype, targets.dtype)
    run(careful.careful_kernel, arguments, kinds, grid, threads, context, values)
    return partials


def team_of(n_classes, inner):
    """Lanes that share a row of the careful kernel, and threads of a block."""
    if inner > 1 or n_classes < 8:
        return 1, SIZES.neighbours
    if n_classes <= 1024:
        return SIZES.lanes[-1], SIZES.neighbours
    return BLOCK, SIZES.neighbours


def takes_vectors(lanes, threads, logits, *strides):
    """Whether a general kernel takes 16 bytes of a row at a time: no less than two for each of its threads.

    `strides` of the other arrays: (outer, classes, inner). In fewer, too many threads would have none.
    """
    per_vector = STORAGES[logits.dtype].per_vector
    if lanes == 1 or per_vector == 0 or any(step != 1 for _, step, _ in (logits.strides, *strides)):
        return False
    return logits.shape[1] >= 2 * per_vector * (threads if lanes == BLOCK else lanes)


def totals_launch(context, targets, sample_weight, class_weight, n_classes, ignore_index, bad_out):
    """Queue the sum of v_i sum_k w_k t_ik (of 1 without weights) over rows that are not ignored; a float64."""
    outer, inner = targets.shape[0], targets.shape[-1]
    n_rows = outer * inner
    soft = len(targets.shape) == 3
    total = context.empty((1,), "float64")
    per_block = SIZES.totals // 32 if soft else SIZES.totals * 8
    grid = max(1, min(-(-n_rows // per_block), 256))
    partials = total if grid == 1 else context.empty((grid,), "float64")
    flags = _flags(sample_weight, class_weight, bad_out, order=(rows.WEIGHT, rows.CLASS_WEIGHT, rows.BAD))
    if ignore_index is not None:
        flags |= rows.IGNORE
    w_strides = (0, 0) if sample_weight is None else sample_weight.strides
    pointers = tuple(map(_pointer, (targets, sample_weight, class_weight, partials, bad_out)))
    numbers = (n_rows, n_classes, inner, *targets.strides, *w_strides)
    given = sample_weight if sample_weight is not None else class_weight
    kinds = (_totals_signature, targets.dtype, "float32" if given is None else given.dtype)
    queue = (grid, SIZES.totals, context)
    if soft:
        values = (*pointers, *numbers, flags)
        run(totals.soft_totals_kernel, (), kinds, *queue, values)
    else:
        values = (*pointers, *numbers, 0 if ignore_index is None else int(ignore_index), flags)
        run(totals.label_totals_kernel, (), kinds, *queue, values)
    if grid > 1:
        combine(context, partials, total, 1.0, None, 0.0)
    return total


def combine(context, partials, out, factor, denominator, empty):
    """Queue out[0] = factor times the sum of the partial sums, over the denominator if there is one (`empty` if 0)."""
    values = (
        partials.pointer, out.pointer, _pointer(denominator),
        partials.shape[0], float(factor), denominator is not None, float(empty),
    )  # fmt: skip
    run(
        totals.combine_kernel,
        (out.dtype,),
        (_combine_signature, out.dtype),
        1,
        SIZES.totals,
        context,
        values,
    )


# -------------------------------------------------------------------------------------------------------------- sigmoid


def element_plan(logits, targets, grad):
    """Whether all elements lie in one piece on common 16-byte boundaries, and how many come before the first."""
    storage = STORAGES[logits.dtype]
    if storage.per_vector == 0:
        return False, 0
    for buffer in (logits, targets) if grad is None else (logits, targets, grad):
        n_rows, n_columns = buffer.shape
        if (n_columns > 1 and buffer.strides[1] != 1) or (n_rows > 1 and buffer.strides[0] != n_columns):
            return False, 0
    head = -(logits.address // storage.itemsize) % storage.per_vector
    if grad is not None and (logits.address - grad.address) % 16:
        return False, 0
    target = STORAGES[targets.dtype]
    if target.per_vector and (targets.address + head * target.itemsize) % 16:
        return False, 0
    return True, min(head, logits.size)


def sigmoid(
    context, logits, targets, sample_weight, pos_weight, label_smoothing, scale, denominator,
    loss_out, grad_out, bad_out, family="cross_entropy", a=0.0, b=0.0, c=0.0,
    hess_out=None, policy=EXACT,
):  # fmt: skip
    """Queue the kernel of `_core_numpy.sigmoid_elements` over two axes; partial sums of the losses.

    `hess_out` gets the second derivatives under a `Policy`.
    """
    n = logits.size
    number = elements.ELEMENT_FAMILIES[family]
    plain = sample_weight is None and pos_weight is None and denominator is None and hess_out is None
    flat, head = element_plan(logits, targets, grad_out) if plain else (False, 0)
    given = (logits, targets, sample_weight, pos_weight, label_smoothing, scale, denominator)
    if not flat or n == 0:
        return _two_axes(
            context, *given, loss_out, grad_out, hess_out, bad_out, None, False, number, a, b, c, policy
        )
    flags = _flags(loss_out, bad_out, order=(rows.LOSS, rows.BAD))
    threads, grad = SIZES.neighbours, grad_out is not None
    per_block = threads * STORAGES[logits.dtype].per_vector * 4
    grid = min(-(-n // per_block), SIZES.most_blocks)
    partials = context.empty((grid,), "float64")
    buffers = (logits, grad_out, targets, loss_out, partials, bad_out)
    values = (*map(_pointer, buffers), n, head, flags, label_smoothing, a, b, c, scale)
    arguments = (logits.dtype, targets.dtype, grad, number)
    kinds = (_flat_signature, logits.dtype, targets.dtype)
    run(elements.flat_kernel, arguments, kinds, grid, threads, context, values)
    return partials


def binary(
    context, probabilities, targets, sample_weight, pos_weight, label_smoothing, scale, denominator,
    loss_out, grad_out, hess_out, bad_out, bad_value_out,
):  # fmt: skip
    """Queue the kernel of `_core_numpy.binary_elements` over two axes; partial sums of the losses.

    `bad_out` and `bad_value_out` are given together: the flags of the targets and of the probabilities.
    """
    given = (probabilities, targets, sample_weight, pos_weight, label_smoothing, scale, denominator)
    outs = (loss_out, grad_out, hess_out, bad_out, bad_value_out)
    return _two_axes(context, *given, *outs, True, 0, 0.0, 0.0, 0.0, EXACT)


def _two_axes(
    context, values_in, targets, sample_weight, pos_weight, label_smoothing, scale, denominator,
    loss_out, grad_out, hess_out, bad_out, bad_value_out, probabilities, number, a, b, c, policy,
):  # fmt: skip
    n_rows, n_columns = values_in.shape
    if n_rows * n_columns == 0:
        return context.empty((0,), "float64")
    order = (rows.WEIGHT, rows.POSITIVE, rows.LOSS, rows.DENOMINATOR, rows.BAD)
    flags = _flags(sample_weight, pos_weight, loss_out, denominator, bad_out, order=order)
    more, factor, floor = policy_arguments(policy)
    threads = SIZES.neighbours
    grid = min(-(-n_rows * n_columns // threads), SIZES.most_blocks)
    partials = context.empty((grid,), "float64")
    given = (values_in, grad_out, hess_out, targets, sample_weight, pos_weight, loss_out, partials)
    outs = [values_in if out is None else out for out in (grad_out, hess_out)]
    weights = [(0, 0) if each is None else each.strides for each in (sample_weight, pos_weight)]
    values = (
        *map(_pointer, (*given, bad_out, bad_value_out, denominator)), n_rows, n_columns,
        *values_in.strides, *outs[0].strides, *outs[1].strides, *targets.strides, *weights[0], *weights[1],
        flags | more, label_smoothing, number, a, b, c, factor, floor, scale,
    )  # fmt: skip
    hess = "" if hess_out is None else "upper" if policy.upper else "exact"
    arguments = (values_in.dtype, targets.dtype, grad_out is not None, hess, probabilities)
    kinds = (_strided_signature, values_in.dtype, targets.dtype)
    run(elements.strided_kernel, arguments, kinds, grid, threads, context, values)
    return partials


def weight_total(context, weight):
    """Queue the sum of weights over two axes; a float64."""
    n_rows, n_columns = weight.shape
    threads = SIZES.neighbours
    grid = max(1, min(-(-n_rows * n_columns // (8 * threads)), 512))
    partials = context.empty((grid,), "float64")
    values = (weight.pointer, partials.pointer, n_rows, n_columns, *weight.strides)
    run(
        totals.weight_totals_kernel,
        (),
        (_weights_signature, weight.dtype),
        grid,
        threads,
        context,
        values,
    )
    total = context.empty((1,), "float64")
    combine(context, partials, total, 1.0, None, 0.0)
    return total
