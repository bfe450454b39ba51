# distutils: language = c++
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True, binding=True, embedsignature=True
"""Doors to the C++ kernels: the functions of `_core_numpy`, with the same arguments and the same meaning.

A call fills one struct with addresses and strides, cuts the rows into blocks that depend on the shape alone, and runs them
on the team.  Sums of blocks are added in block order: the same bits for any number of threads.  The caller has checked
every shape; a label is checked where it is loaded.
"""
cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

import os
import threading

cdef extern from "dispatch.hpp" namespace "fx" nogil:
    const Table* choose(const char*)
    int usable_tables(const Table**)
    enum: MOST_TABLES

cdef extern from "team.hpp" namespace "fx" nogil:
    int run_blocks(block_fn, void*, Py_ssize_t, int, poll_fn)
    int default_threads()
    bint has_threads()

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

cnp.import_array()

# Below so many numbers a call stays on its thread: waking a worker costs some 50 us.
cdef Py_ssize_t ALONE = 1 << 20
# Numbers per block: small enough to balance, large enough to pay for the counter.
cdef Py_ssize_t BLOCK = 1 << 16
# Bytes of a gradient from which it is written past the cache.
cdef Py_ssize_t STREAM = 1 << 25
# Blocks whose sums are kept at a time: memory stays bounded for any number of rows.
cdef Py_ssize_t MOST_BLOCKS = 1 << 13


def _usable():
    cdef const Table* tables[MOST_TABLES]
    cdef int n = usable_tables(tables), i
    return [tables[i].name.decode() for i in range(n)]


cdef bytes wanted = os.environ.get("FASTXENT_ISA", "").encode()
cdef const Table* table = choose(wanted)
if table == NULL:
    raise ImportError(
        f"FASTXENT_ISA={wanted.decode()!r}: expected one of {', '.join(_usable())}, which this build has and this CPU runs"
    )

# Members of the families, by the names of the NumPy twin.
cdef dict FAMILIES = {"cross_entropy": 0, "focal": 1, "linear": 2, "power": 3}
cdef dict DIVERGENCES = {"entropy": 0, "forward_kl": 1, "reverse_kl": 2, "jensen_shannon": 3}
cdef dict ACTIVATIONS = {"sigmoid": 0, "softmax": 1, "none": 2}
cdef dict BINARIES = {"cross_entropy": 0, "focal": 1, "asymmetric": 2}


cdef const Table* kernels() noexcept:
    return table


def info():
    """What this build has and uses, as a dictionary of plain values."""
    return {
        "instruction_set": table.name.decode(),
        "instruction_sets": _usable(),
        "threads": bool(has_threads()),
        "num_threads": default_threads(),
    }


# ------------------------------------------------------------------------------------------------------------ threads

cdef int poll() noexcept nogil:
    with gil:
        try:
            PyErr_CheckSignals()
        except BaseException as error:
            global interruption
            interruption = error
            return 1
    return 0

cdef object interruption = None


cdef int team_size(int asked) noexcept:
    return asked if asked > 0 else default_threads()


cdef int over_blocks(block_fn run, void* context, Py_ssize_t blocks, int threads) except -1:
    """Run the blocks; Ctrl-C is heard on the main thread."""
    global interruption
    cdef poll_fn listen = NULL
    cdef int stopped
    if blocks > 1 and threading.current_thread() is threading.main_thread():
        listen = poll
    with nogil:
        stopped = run_blocks(run, context, blocks, threads, listen)
    if stopped:
        error, interruption = interruption, None
        raise error
    return 0


# --------------------------------------------------------------------------------------------------------- arrays

cdef int matrix(Matrix* m, cnp.ndarray a) except -1:
    """Address and strides of an (outer, classes, inner), (outer, inner) or None array."""
    if a is None:
        memset(m, 0, sizeof(Matrix))
        return 0
    cdef int ndim = cnp.PyArray_NDIM(a)
    m.data = <char*>cnp.PyArray_DATA(a)
    m.outer = cnp.PyArray_STRIDE(a, 0)
    m.cls = cnp.PyArray_STRIDE(a, 1) if ndim == 3 else 0
    m.inner = cnp.PyArray_STRIDE(a, ndim - 1)
    return 0


cdef int storage_of(cnp.ndarray a) except -1:
    cdef int t = cnp.PyArray_TYPE(a)
    if t == cnp.NPY_FLOAT32: return 0
    if t == cnp.NPY_FLOAT64: return 1
    if t == cnp.NPY_FLOAT16: return 2
    if a.dtype.name == "bfloat16": return 3
    raise TypeError(f"expected float32, float64, float16 or bfloat16, got {a.dtype}")


cdef int integer_kind(cnp.ndarray y) except -1:
    """log2 of the item size, and 4 for signed types."""
    cdef int t = cnp.PyArray_TYPE(y), size = <int>cnp.PyArray_ITEMSIZE(y), kind = 0
    if not (cnp.PyTypeNum_ISINTEGER(t) or t == cnp.NPY_BOOL):
        raise TypeError(f"targets: expected integers, got {y.dtype}")
    while size > 1:
        size >>= 1
        kind += 1
    return kind + (4 if cnp.PyTypeNum_ISSIGNED(t) and t != cnp.NPY_BOOL else 0)


cdef int set_labels(SoftmaxRows* call, object labels, object ignore_index) except -1:
    """Address, kind and ignored value of labels (outer, inner)."""
    matrix(&call.labels, labels)
    call.label_kind = integer_kind(labels)
    # An index beyond the labels' type equals no label; as int64, a large uint64 would look negative.
    if ignore_index is not None and (0 if call.label_kind == 3 else -(1 << 63)) <= ignore_index < 1 << 63:
        call.has_ignore = 1
        call.ignore = ignore_index
    return 0


# -------------------------------------------------------------------------------------------------------- softmax

cdef struct Rows:
    SoftmaxRows call
    rows_fn run
    Py_ssize_t rows, step, first, scratch_size
    char* scratch
    BlockOut* out


cdef void rows_block(void* context, Py_ssize_t block, int slot) noexcept nogil:
    cdef Rows* r = <Rows*>context
    cdef Py_ssize_t begin = (r.first + block) * r.step, end = min(begin + r.step, r.rows)
    r.run(&r.call, begin, end, r.scratch + slot * r.scratch_size, &r.out[block])


cdef int fill(
    Rows* r, cnp.ndarray logits, cnp.ndarray targets, cnp.ndarray sample_weight, cnp.ndarray class_weight,
    Py_ssize_t n_classes, object ignore_index
) except -1:
    memset(&r.call, 0, sizeof(SoftmaxRows))
    cdef SoftmaxRows* a = &r.call
    a.classes = n_classes
    a.temperature = 1
    if logits is not None:
        a.storage = storage_of(logits)
        matrix(&a.logits, logits)
    if cnp.PyArray_NDIM(targets) == 2:
        set_labels(a, targets, ignore_index)
        a.inner = cnp.PyArray_DIM(targets, 1)
    else:
        matrix(&a.soft, targets)
        a.inner = cnp.PyArray_DIM(targets, 2)
    r.rows = cnp.PyArray_DIM(targets, 0) * a.inner
    matrix(&a.weight, sample_weight)
    a.class_weight = NULL if class_weight is None else cnp.PyArray_DATA(class_weight)
    return 0


cdef int fill_loss(
    Rows* r, cnp.ndarray logits, cnp.ndarray targets, cnp.ndarray sample_weight, cnp.ndarray class_weight,
    cnp.ndarray logit_bias, double label_smoothing, bint exclude_target, object ignore_index, double z_loss,
    double temperature, double scale, str family, double a, double b
) except -1:
    """What the functions over softmax losses share."""
    fill(r, logits, targets, sample_weight, class_weight, cnp.PyArray_DIM(logits, 1), ignore_index)
    cdef SoftmaxRows* call = &r.call
    call.family, call.a, call.b = FAMILIES[family], a, b
    call.bias = NULL if logit_bias is None else cnp.PyArray_DATA(logit_bias)
    call.smoothing, call.exclude, call.z_loss = label_smoothing, exclude_target, z_loss
    call.temperature, call.scale = temperature, scale
    return 0


cdef int fill_divergence(
    Rows* r, cnp.ndarray logits, cnp.ndarray teacher, bint teacher_logits, cnp.ndarray sample_weight, object ignore_index,
    double temperature, double scale, str family, double beta
) except -1:
    """What the functions over divergences share."""
    memset(&r.call, 0, sizeof(SoftmaxRows))
    cdef SoftmaxRows* a = &r.call
    a.divergence, a.family, a.a = 1, DIVERGENCES[family], beta
    a.storage = storage_of(logits)
    matrix(&a.logits, logits)
    a.classes, a.inner = cnp.PyArray_DIM(logits, 1), cnp.PyArray_DIM(logits, 2)
    r.rows = cnp.PyArray_DIM(logits, 0) * a.inner
    if teacher is not None and cnp.PyArray_NDIM(teacher) == 2:
        set_labels(a, teacher, ignore_index)
    else:
        matrix(&a.soft, teacher)
    a.teacher_logits = teacher_logits
    matrix(&a.weight, sample_weight)
    a.temperature, a.scale = temperature, scale
    return 0


cdef int run_rows(Rows* r, int num_threads, BlockOut* total) except -1:
    """Run the kernel over all blocks and add their results in order."""
    cdef Py_ssize_t K = r.call.classes, blocks, kept, b
    cdef int threads = 1
    # A row asks for the next one of its block: long rows come several at a time, where there are blocks enough.
    r.step = rows_per_block(&r.call, max(BLOCK, min(8, r.rows // 128) * K))
    blocks = (r.rows + r.step - 1) // r.step
    if r.rows > ALONE // K:
        threads = <int>min(team_size(num_threads), blocks)
    r.scratch_size = (scratch_of(&r.call) * 8 + 127) // 64 * 64
    cdef BlockOut one
    kept = min(blocks, MOST_BLOCKS)
    r.out = &one if blocks <= 1 else <BlockOut*>malloc(kept * sizeof(BlockOut))
    cdef char* memory = <char*>malloc(threads * r.scratch_size + 64)
    if r.out == NULL or memory == NULL:
        if r.out != &one: free(r.out)
        free(memory)
        raise MemoryError("no memory for the kernel's scratch")
    r.scratch = memory + (64 - <size_t>memory % 64)
    memset(total, 0, sizeof(BlockOut))
    total.bad = -1
    r.first = 0
    try:
        while r.first < blocks:
            kept = min(blocks - r.first, MOST_BLOCKS)
            memset(r.out, 0, kept * sizeof(BlockOut))
            for b in range(kept): r.out[b].bad = -1
            over_blocks(rows_block, r, kept, threads)
            for b in range(kept):
                total.loss += r.out[b].loss
                total.total += r.out[b].total
                total.counted += r.out[b].counted
                if total.bad < 0: total.bad = r.out[b].bad
            r.first += kept
    finally:
        free(memory)
        if r.out != &one: free(r.out)
    return 0


def softmax_rows(
    cnp.ndarray logits not None,
    cnp.ndarray targets not None,
    cnp.ndarray sample_weight,
    cnp.ndarray class_weight,
    cnp.ndarray logit_bias,
    double label_smoothing,
    bint exclude_target,
    ignore_index,
    double z_loss,
    double temperature,
    double scale,
    cnp.ndarray loss_out,
    cnp.ndarray lse_out,
    cnp.ndarray grad_out,
    cnp.ndarray hess_out,
    int num_threads,
    str family="cross_entropy",
    double a=0.0,
    double b=0.0,
):
    """Softmax cross-entropy of every row, with whichever of gradient and Hessian diagonal has a buffer."""
    cdef Rows r
    cdef BlockOut total
    fill_loss(&r, logits, targets, sample_weight, class_weight, logit_bias, label_smoothing, exclude_target, ignore_index,
              z_loss, temperature, scale, family, a, b)
    cdef SoftmaxRows* call = &r.call
    matrix(&call.loss, loss_out)
    matrix(&call.lse, lse_out)
    matrix(&call.grad, grad_out)
    matrix(&call.hess, hess_out)
    r.run = table.softmax[call.storage == 1]
    call.stream = call.grad.data != NULL and call.grad.data != call.logits.data and cnp.PyArray_NBYTES(grad_out) >= STREAM
    run_rows(&r, num_threads, &total)
    return total.loss, total.bad, total.counted


cdef bint apart(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Whether two contiguous arrays share no byte."""
    cdef char* x = <char*>cnp.PyArray_DATA(a)
    cdef char* y = <char*>cnp.PyArray_DATA(b)
    return x + cnp.PyArray_NBYTES(a) <= y or y + cnp.PyArray_NBYTES(b) <= x


cdef bint all_in_unit(const char* row, int storage, Py_ssize_t n) noexcept:
    """Whether the first numbers of a row lie in [0, 1], as probabilities do."""
    cdef Py_ssize_t k
    cdef double value
    for k in range(n):
        value = (<const double*>row)[k] if storage == 1 else (<const float*>row)[k]
        if not 0 <= value <= 1: return False
    return True


def softmax_small(logits, targets, out, bint gradient, bint mean):
    """(mean or sum of the losses, its gradient or None) of a small matrix against labels, without options, on the caller's thread.

    None where anything asks for a closer look: other types and layouts, memory that overlaps, numbers that look like
    probabilities, a label that is no class.  Nothing is then lost: `out` lies apart from the logits.
    """
    if not cnp.PyArray_CheckExact(logits) or not cnp.PyArray_CheckExact(targets): return None
    cdef cnp.ndarray z = logits, y = targets, g
    cdef int storage = 0 if cnp.PyArray_TYPE(z) == cnp.NPY_FLOAT32 else 1 if cnp.PyArray_TYPE(z) == cnp.NPY_FLOAT64 else -1
    if storage < 0 or cnp.PyArray_NDIM(z) != 2 or cnp.PyArray_NDIM(y) != 1: return None
    cdef Py_ssize_t n = cnp.PyArray_DIM(z, 0), K = cnp.PyArray_DIM(z, 1)
    if n == 0 or K == 0 or K > BLOCK or n > BLOCK // K or cnp.PyArray_DIM(y, 0) != n: return None
    if not cnp.PyTypeNum_ISINTEGER(cnp.PyArray_TYPE(y)) or not cnp.PyArray_ISCARRAY_RO(z) or not cnp.PyArray_ISCARRAY_RO(y): return None
    if all_in_unit(<const char*>cnp.PyArray_DATA(z), storage, min(K, 16)): return None
    cdef Rows r
    memset(&r.call, 0, sizeof(SoftmaxRows))
    cdef SoftmaxRows* call = &r.call
    cdef Py_ssize_t item = cnp.PyArray_ITEMSIZE(z)
    call.storage, call.classes, call.inner, call.temperature, call.scale = storage, K, 1, 1, 1. / n if mean else 1.
    call.logits.data, call.logits.outer, call.logits.cls = <char*>cnp.PyArray_DATA(z), K * item, item
    set_labels(call, y, None)
    if gradient:
        if out is None:
            g = cnp.PyArray_EMPTY(2, cnp.PyArray_DIMS(z), cnp.PyArray_TYPE(z), 0)
        elif not cnp.PyArray_CheckExact(out):
            return None
        else:
            g = out
            if cnp.PyArray_TYPE(g) != cnp.PyArray_TYPE(z) or cnp.PyArray_NDIM(g) != 2 or cnp.PyArray_DIM(g, 0) != n or cnp.PyArray_DIM(g, 1) != K: return None
            if not cnp.PyArray_ISCARRAY(g) or not apart(g, z) or not apart(g, y): return None
        call.grad = call.logits
        call.grad.data = <char*>cnp.PyArray_DATA(g)
    cdef char* memory = <char*>malloc(scratch_of(call) * 8 + 128)
    if memory == NULL: raise MemoryError("no memory for the kernel's scratch")
    cdef BlockOut total
    memset(&total, 0, sizeof(BlockOut))
    total.bad = -1
    with nogil:
        table.softmax[storage](call, 0, n, memory + (64 - <size_t>memory % 64), &total)
    free(memory)
    if total.bad >= 0: return None
    return total.loss / n if mean else total.loss, (g if gradient else None)


def softmax_hvp(
    cnp.ndarray logits not None,
    cnp.ndarray targets not None,
    cnp.ndarray sample_weight,
    cnp.ndarray class_weight,
    cnp.ndarray logit_bias,
    double label_smoothing,
    bint exclude_target,
    ignore_index,
    double z_loss,
    double temperature,
    double scale,
    cnp.ndarray x not None,
    cnp.ndarray hvp_out not None,
    int num_threads,
    str family="cross_entropy",
    double a=0.0,
    double b=0.0,
):
    """Hessian-vector product of every row: v (c (p x - p (p.x)) + 2 z_loss p (p.x)), times `scale`."""
    cdef Rows r
    cdef BlockOut total
    fill_loss(&r, logits, targets, sample_weight, class_weight, logit_bias, label_smoothing, exclude_target, ignore_index,
              z_loss, temperature, scale, family, a, b)
    cdef SoftmaxRows* call = &r.call
    matrix(&call.x, x)
    matrix(&call.grad, hvp_out)
    r.run = table.hvp[call.storage == 1]
    run_rows(&r, num_threads, &total)
    return total.bad


def divergence_rows(
    cnp.ndarray logits not None,
    cnp.ndarray teacher,
    bint teacher_logits,
    cnp.ndarray sample_weight,
    ignore_index,
    double temperature,
    double scale,
    cnp.ndarray loss_out,
    cnp.ndarray grad_out,
    cnp.ndarray hess_out,
    int num_threads,
    str family,
    double beta=0.5,
):
    """A divergence between Q = softmax(logits / temperature) and a teacher P, row by row, with its derivatives."""
    cdef Rows r
    cdef BlockOut total
    fill_divergence(&r, logits, teacher, teacher_logits, sample_weight, ignore_index, temperature, scale, family, beta)
    matrix(&r.call.loss, loss_out)
    matrix(&r.call.grad, grad_out)
    matrix(&r.call.hess, hess_out)
    r.run = table.divergence[r.call.storage == 1]
    run_rows(&r, num_threads, &total)
    return total.loss, total.bad


def divergence_hvp(
    cnp.ndarray logits not None,
    cnp.ndarray teacher,
    bint teacher_logits,
    cnp.ndarray sample_weight,
    ignore_index,
    double temperature,
    double scale,
    cnp.ndarray x not None,
    cnp.ndarray hvp_out not None,
    int num_threads,
    str family,
    double beta=0.5,
):
    """The Hessian of `divergence_rows` times x, row by row, times `scale`."""
    cdef Rows r
    cdef BlockOut total
    fill_divergence(&r, logits, teacher, teacher_logits, sample_weight, ignore_index, temperature, scale, family, beta)
    matrix(&r.call.x, x)
    matrix(&r.call.grad, hvp_out)
    r.run = table.divergence[r.call.storage == 1]
    run_rows(&r, num_threads, &total)
    return total.bad


def softmax_upper(
    cnp.ndarray logits not None,
    cnp.ndarray targets not None,
    cnp.ndarray sample_weight,
    cnp.ndarray class_weight,
    cnp.ndarray logit_bias,
    double label_smoothing,
    bint exclude_target,
    ignore_index,
    double z_loss,
    double temperature,
    double scale,
    cnp.ndarray upper_out not None,
    int num_threads,
    str family="cross_entropy",
    double a=0.0,
    double b=0.0,
):
    """A diagonal D, not negative, with D - H positive semidefinite for the Hessian H of every row, times `scale`."""
    cdef Rows r
    cdef BlockOut total
    fill_loss(&r, logits, targets, sample_weight, class_weight, logit_bias, label_smoothing, exclude_target, ignore_index,
              z_loss, temperature, scale, family, a, b)
    matrix(&r.call.hess, upper_out)
    r.run = table.upper[r.call.storage == 1]
    run_rows(&r, num_threads, &total)
    return total.bad


def divergence_upper(
    cnp.ndarray logits not None,
    cnp.ndarray teacher,
    bint teacher_logits,
    cnp.ndarray sample_weight,
    ignore_index,
    double temperature,
    double scale,
    cnp.ndarray upper_out not None,
    int num_threads,
    str family,
    double beta=0.5,
):
    """A diagonal that dominates the Hessian of every row of `divergence_rows`, times `scale`."""
    cdef Rows r
    cdef BlockOut total
    fill_divergence(&r, logits, teacher, teacher_logits, sample_weight, ignore_index, temperature, scale, family, beta)
    matrix(&r.call.hess, upper_out)
    r.run = table.upper[r.call.storage == 1]
    run_rows(&r, num_threads, &total)
    return total.bad


cdef struct Systems:
    Solve call
    solve_fn run
    Py_ssize_t rows, step, scratch_size
    char* scratch


cdef void systems_block(void* context, Py_ssize_t block, int slot) noexcept nogil:
    cdef Systems* s = <Systems*>context
    cdef Py_ssize_t begin = block * s.step
    s.run(&s.call, begin, min(begin + s.step, s.rows), s.scratch + slot * s.scratch_size)


def softmax_solve(tuple terms, cnp.ndarray damping not None, cnp.ndarray rhs not None, cnp.ndarray x_out not None, int num_threads):
    """(damping + H) x = rhs, row by row, in O(n_classes): H the sum of the Hessians of softmax losses and divergences."""
    cdef Systems s
    cdef Rows r
    cdef SoftmaxRows* calls = <SoftmaxRows*>malloc(max(len(terms), 1) * sizeof(SoftmaxRows))
    cdef int* groups = <int*>malloc(max(len(terms), 1) * sizeof(int))
    cdef char* memory = NULL
    cdef Py_ssize_t blocks
    cdef int threads = 1, n = 0
    try:
        if calls == NULL or groups == NULL:
            raise MemoryError("no memory for the terms of a system")
        memset(&s, 0, sizeof(Systems))
        for name, group, *arguments in terms:
            if name == "softmax":
                logits, targets, weight, classes, bias, smoothing, exclude, ignore, z_loss, temperature, scale, family, a, b = arguments
                fill_loss(&r, logits, targets, weight, classes, bias, smoothing, exclude, ignore, z_loss, temperature, scale, family, a, b)
            else:
                logits, teacher, softened, weight, ignore, temperature, scale, family, beta = arguments
                fill_divergence(&r, logits, teacher, softened, weight, ignore, temperature, scale, family, beta)
            calls[n], groups[n] = r.call, group
            s.call.n_groups = max(s.call.n_groups, groups[n] + 1)
            n += 1
        s.call.terms, s.call.groups, s.call.n_terms, s.call.storage = calls, groups, n, storage_of(x_out)
        s.call.classes, s.call.inner, s.rows = r.call.classes, r.call.inner, r.rows
        matrix(&s.call.damping, damping)
        matrix(&s.call.rhs, rhs)
        matrix(&s.call.out, x_out)
        s.run = table.solve[r.call.storage == 1]
        s.step = rows_per_block(&r.call, BLOCK)
        blocks = (s.rows + s.step - 1) // s.step
        if s.rows > ALONE // r.call.classes:
            threads = <int>min(team_size(num_threads), blocks)
        s.scratch_size = (solve_scratch(&s.call) * 8 + 127) // 64 * 64
        memory = <char*>malloc(threads * s.scratch_size + 64)
        if memory == NULL:
            raise MemoryError("no memory for the kernel's scratch")
        s.scratch = memory + (64 - <size_t>memory % 64)
        over_blocks(systems_block, &s, blocks, threads)
    finally:
        free(calls)
        free(groups)
        free(memory)


cdef struct Boosted:
    Boost call
    boost_fn run
    Py_ssize_t rows, step, scratch_size
    char* scratch


cdef void boost_block(void* context, Py_ssize_t block, int slot) noexcept nogil:
    cdef Boosted* b = <Boosted*>context
    cdef Py_ssize_t begin = block * b.step
    b.run(&b.call, begin, min(begin + b.step, b.rows), b.scratch + slot * b.scratch_size)


def softmax_boost(
    cnp.ndarray margins not None,
    cnp.ndarray labels not None,
    cnp.ndarray sample_weight,
    cnp.ndarray class_weight,
    double factor,
    double floor,
    cnp.ndarray grad_out not None,
    cnp.ndarray hess_out not None,
    int num_threads,
):
    """A booster's derivatives of softmax cross-entropy, as float32; whether every row is plain (see `_core_numpy`)."""
    cdef Boosted b
    cdef Boost* a = &b.call
    cdef int odd = 0, threads = 1
    memset(a, 0, sizeof(Boost))
    cdef bint double_precision = storage_of(margins) == 1
    strides(&a.margins, margins)
    strides(&a.grad, grad_out)
    strides(&a.hess, hess_out)
    a.classes = cnp.PyArray_DIM(margins, 1)
    a.labels = <const char*>cnp.PyArray_DATA(labels)
    a.label_stride = cnp.PyArray_STRIDE(labels, 0)
    a.label_kind = 8 + storage_of(labels) if labels.dtype.kind == "f" else integer_kind(labels)
    if sample_weight is not None:
        a.weight = <const char*>cnp.PyArray_DATA(sample_weight)
        a.weight_stride, a.weight_double = cnp.PyArray_STRIDE(sample_weight, 0), storage_of(sample_weight)
    a.class_weight = NULL if class_weight is None else cnp.PyArray_DATA(class_weight)
    a.factor, a.floor, a.odd = factor, floor, &odd
    a.stream = cnp.PyArray_NBYTES(grad_out) >= STREAM
    b.run = table.boost[double_precision]
    b.rows = cnp.PyArray_DIM(margins, 0)
    b.step = (max(1, BLOCK // a.classes) + 127) // 128 * 128
    cdef Py_ssize_t blocks = (b.rows + b.step - 1) // b.step
    if b.rows > ALONE // a.classes:
        threads = <int>min(team_size(num_threads), blocks)
    b.scratch_size = (boost_scratch(a) + 63) // 64 * 64
    cdef char* memory = <char*>malloc(threads * b.scratch_size + 64)
    if memory == NULL:
        raise MemoryError("no memory for the kernel's scratch")
    b.scratch = memory + (64 - <size_t>memory % 64)
    try:
        over_blocks(boost_block, &b, blocks, threads)
    finally:
        free(memory)
    return not odd


def target_totals(
    cnp.ndarray targets not None,
    cnp.ndarray sample_weight,
    cnp.ndarray class_weight,
    Py_ssize_t n_classes,
    ignore_index,
    int num_threads,
):
    """The denominators of the reductions, and the target check, without touching the logits."""
    cdef Rows r
    cdef BlockOut total
    cdef bint double_precision = False
    for a in (targets if targets.dtype.kind == "f" else None, sample_weight, class_weight):
        double_precision |= a is not None and a.dtype.itemsize == 8
    fill(&r, None, targets, sample_weight, class_weight, n_classes, ignore_index)
    r.run = table.totals[double_precision]
    run_rows(&r, num_threads, &total)
    return total.total, total.counted, total.bad


# ------------------------------------------------------------------------------------------------------- elementwise

cdef struct Cells:
    Elements call
    elements_fn run
    Py_ssize_t size, step, first
    ElementsOut* out


cdef void cells_block(void* context, Py_ssize_t block, int slot) noexcept nogil:
    cdef Cells* c = <Cells*>context
    cdef Py_ssize_t begin = (c.first + block) * c.step
    c.run(&c.call, begin, min(begin + c.step, c.size), &c.out[block])


cdef int strides(Matrix* m, cnp.ndarray a) except -1:
    """Address and strides of a (rows, cols) or None array."""
    memset(m, 0, sizeof(Matrix))
    if a is not None:
        m.data = <char*>cnp.PyArray_DATA(a)
        m.outer = cnp.PyArray_STRIDE(a, 0)
        m.cls = cnp.PyArray_STRIDE(a, 1)
    return 0


cdef int run_cells(Cells* c, int num_threads, ElementsOut* total) except -1:
    cdef Py_ssize_t blocks, kept, b
    cdef int threads = 1
    c.step = BLOCK
    blocks = (c.size + c.step - 1) // c.step
    if c.size > ALONE:
        threads = <int>min(team_size(num_threads), blocks)
    cdef ElementsOut one
    kept = min(blocks, MOST_BLOCKS)
    c.out = &one if blocks <= 1 else <ElementsOut*>malloc(kept * sizeof(ElementsOut))
    if c.out == NULL:
        raise MemoryError("no memory for the sums of blocks")
    memset(total, 0, sizeof(ElementsOut))
    total.bad_target = total.bad_value = -1
    c.first = 0
    try:
        while c.first < blocks:
            kept = min(blocks - c.first, MOST_BLOCKS)
            memset(c.out, 0, kept * sizeof(ElementsOut))
            for b in range(kept): c.out[b].bad_target = c.out[b].bad_value = -1
            over_blocks(cells_block, c, kept, threads)
            for b in range(kept):
                total.loss += c.out[b].loss
                total.total += c.out[b].total
                if total.bad_target < 0: total.bad_target = c.out[b].bad_target
                if total.bad_value < 0: total.bad_value = c.out[b].bad_value
            c.first += kept
    finally:
        if c.out != &one: free(c.out)
    return 0


cdef tuple elements(
    const elements_fn* family, cnp.ndarray values, cnp.ndarray targets, cnp.ndarray sample_weight, cnp.ndarray pos_weight,
    double label_smoothing, double scale, cnp.ndarray loss_out, cnp.ndarray grad_out, cnp.ndarray hess_out, int num_threads,
    int member, double first, double second, double third
):
    cdef Cells c
    cdef ElementsOut total
    cdef Elements* a = &c.call
    memset(a, 0, sizeof(Elements))
    a.storage = storage_of(values)
    a.family, a.a, a.b, a.c = member, first, second, third
    a.cols = cnp.PyArray_DIM(values, 1)
    c.size = cnp.PyArray_SIZE(values)
    strides(&a.values, values)
    strides(&a.targets, targets)
    strides(&a.weight, sample_weight)
    strides(&a.pos_weight, pos_weight)
    a.smoothing = label_smoothing
    a.scale = scale
    strides(&a.loss, loss_out)
    strides(&a.grad, grad_out)
    strides(&a.hess, hess_out)
    a.stream = a.grad.data != NULL and a.grad.data != a.values.data and cnp.PyArray_NBYTES(grad_out) >= STREAM
    c.run = family[a.storage == 1]
    run_cells(&c, num_threads, &total)
    return total.loss, total.bad_target, total.bad_value


def sigmoid_elements(
    cnp.ndarray logits not None,
    cnp.ndarray targets not None,
    cnp.ndarray sample_weight,
    cnp.ndarray pos_weight,
    double label_smoothing,
    double scale,
    cnp.ndarray loss_out,
    cnp.ndarray grad_out,
    cnp.ndarray hess_out,
    int num_threads,
    str family="cross_entropy",
    double a=0.0,
    double b=0.0,
    double c=0.0,
):
    """Losses v (pi y f_1(z) + (1 - y) f_0(z)) on logits, element by element over 2-D arrays (weights may have strides of 0)."""
    return elements(table.sigmoid, logits, targets, sample_weight, pos_weight, label_smoothing, scale, loss_out, grad_out,
                    hess_out, num_threads, BINARIES[family], a, b, c)


def binary_elements(
    cnp.ndarray probabilities not None,
    cnp.ndarray targets not None,
    cnp.ndarray sample_weight,
    cnp.ndarray pos_weight,
    double label_smoothing,
    double scale,
    cnp.ndarray loss_out,
    cnp.ndarray grad_out,
    cnp.ndarray hess_out,
    int num_threads,
):
    """Binary cross-entropy on probabilities, without a clamp: -(pi y log p + (1 - y) log(1 - p))."""
    return elements(table.binary, probabilities, targets, sample_weight, pos_weight, label_smoothing, scale, loss_out,
                    grad_out, hess_out, num_threads, 0, 0, 0, 0)


def element_totals(cnp.ndarray targets not None, cnp.ndarray sample_weight, int num_threads):
    """Sum of the weights (element count without weights), and first target outside [0, 1] or -1; 2-D arrays."""
    cdef Cells c
    cdef ElementsOut total
    cdef Elements* a = &c.call
    memset(a, 0, sizeof(Elements))
    a.storage = storage_of(targets)
    a.cols = cnp.PyArray_DIM(targets, 1)
    c.size = cnp.PyArray_SIZE(targets)
    strides(&a.targets, targets)
    strides(&a.weight, sample_weight)
    c.run = table.weights[a.storage == 1]
    run_cells(&c, num_threads, &total)
    return total.total, total.bad_target


# ---------------------------------------------------------------------------------------------------- rows in parts

cdef struct Parts:
    Shard call
    shard_fn run
    Py_ssize_t rows, step


cdef void parts_block(void* context, Py_ssize_t block, int slot) noexcept nogil:
    cdef Parts* p = <Parts*>context
    cdef Py_ssize_t begin = block * p.step
    p.run(&p.call, begin, min(begin + p.step, p.rows))


cdef int run_parts(Parts* p, cnp.ndarray logits, cnp.ndarray labels, int64_t start, object states, int num_threads) except -1:
    cdef Py_ssize_t K = cnp.PyArray_DIM(logits, 1), blocks
    cdef int threads = 1
    cdef cnp.ndarray m, r, t
    m, r, t = states
    p.call.storage, p.call.classes, p.call.start = storage_of(logits), K, start
    strides(&p.call.logits, logits)
    p.call.labels = <int64_t*>cnp.PyArray_DATA(labels)
    p.call.m, p.call.r, p.call.t = <double*>cnp.PyArray_DATA(m), <double*>cnp.PyArray_DATA(r), <double*>cnp.PyArray_DATA(t)
    p.rows = cnp.PyArray_DIM(logits, 0)
    p.step = max(1, BLOCK // max(K, 1))
    blocks = (p.rows + p.step - 1) // p.step
    if p.rows > ALONE // max(K, 1):
        threads = <int>min(team_size(num_threads), blocks)
    return over_blocks(parts_block, p, blocks, threads)


def partial_rows(
    cnp.ndarray logits not None,
    cnp.ndarray labels not None,
    int64_t start,
    cnp.ndarray m_out not None,
    cnp.ndarray r_out not None,
    cnp.ndarray t_out not None,
    cnp.ndarray Z_out not None,
    int num_threads,
):
    """State of every row from its columns `start` and up: maximum, the other exponentials, the label's gap, all gaps."""
    cdef Parts p
    memset(&p, 0, sizeof(Parts))
    p.call.Z = <double*>cnp.PyArray_DATA(Z_out)
    p.run = table.partial[cnp.PyArray_TYPE(logits) == cnp.NPY_FLOAT64]
    run_parts(&p, logits, labels, start, (m_out, r_out, t_out), num_threads)


def partial_grad(
    cnp.ndarray logits not None,
    cnp.ndarray labels not None,
    int64_t start,
    cnp.ndarray m not None,
    cnp.ndarray r not None,
    cnp.ndarray t not None,
    cnp.ndarray pull not None,
    cnp.ndarray weight not None,
    double spread,
    double share,
    cnp.ndarray grad_out not None,
    int num_threads,
):
    """Gradient with respect to some columns of every row, from the states of whole rows."""
    cdef Parts p
    memset(&p, 0, sizeof(Parts))
    p.call.pull, p.call.weight = <double*>cnp.PyArray_DATA(pull), <double*>cnp.PyArray_DATA(weight)
    p.call.spread, p.call.share = spread, share
    strides(&p.call.grad, grad_out)
    p.run = table.partial_grad[cnp.PyArray_TYPE(logits) == cnp.NPY_FLOAT64]
    run_parts(&p, logits, labels, start, (m, r, t), num_threads)


# ---------------------------------------------------------------------------------------------------------- regions

cdef struct Pieces:
    Region call
    region_fn run
    Py_ssize_t regions, positions, step, per_region, together, width, scratch_size
    double* sums
    char* scratch


cdef void pieces_block(void* context, Py_ssize_t block, int slot) noexcept nogil:
    """One piece of a region; or several regions, where each is a piece."""
    cdef Pieces* p = <Pieces*>context
    cdef Py_ssize_t first = block * p.together, piece, begin
    for piece in range(first, min(first + p.together, p.regions * p.per_region)):
        begin = piece % p.per_region * p.step
        p.run(&p.call, piece // p.per_region, begin, min(begin + p.step, p.positions), p.sums + piece * p.width,
              p.scratch + slot * p.scratch_size)


cdef int box(Box* b, cnp.ndarray a) except -1:
    """Address and strides of a (regions, outer, classes, inner) or None array."""
    memset(b, 0, sizeof(Box))
    if a is not None:
        b.at.data, b.region = <char*>cnp.PyArray_DATA(a), cnp.PyArray_STRIDE(a, 0)
        b.at.outer, b.at.cls, b.at.inner = cnp.PyArray_STRIDE(a, 1), cnp.PyArray_STRIDE(a, 2), cnp.PyArray_STRIDE(a, 3)
    return 0


cdef bint line_up(Py_ssize_t stride, Py_ssize_t inner, const Box* b) noexcept:
    """Whether what is `stride` bytes apart goes on where the positions inside of the one before end."""
    return b.at.data == NULL or inner == 1 or stride == inner * b.at.inner


cdef int cut_pieces(
    Pieces* p, cnp.ndarray values, cnp.ndarray targets, cnp.ndarray sample_weight, cnp.ndarray grad, str activation,
    bint soft_labels, bint per_class
) except -1:
    """What is summed or differentiated, and in which pieces; classes that do not matter become positions, one axis if they can."""
    cdef Py_ssize_t outer = cnp.PyArray_DIM(values, 1), K = cnp.PyArray_DIM(values, 2), inner = cnp.PyArray_DIM(values, 3)
    cdef Box* boxes[4]
    cdef int i
    p.call.storage, p.call.activation = storage_of(values), ACTIVATIONS[activation]
    p.call.soft_labels, p.call.per_class = soft_labels, per_class
    boxes[0], boxes[1], boxes[2], boxes[3] = &p.call.values, &p.call.targets, &p.call.weight, &p.call.grad
    for i, a in enumerate((values, targets, sample_weight, grad)):
        box(boxes[i], a)
    p.width = 3 * (K if per_class else 1)
    if activation != "softmax" and not per_class and all([line_up(boxes[i].at.cls, inner, boxes[i]) for i in range(4)]):
        for i in range(4):
            if inner == 1:
                boxes[i].at.inner = boxes[i].at.cls
        K, inner = 1, K * inner
    p.regions, p.positions = cnp.PyArray_DIM(values, 0), outer * inner
    if inner != 1 and (outer == 1 or all([line_up(boxes[i].at.outer, inner, boxes[i]) for i in range(4)])):
        for i in range(4):
            boxes[i].at.outer = boxes[i].at.inner
        inner = 1
    p.call.classes, p.call.inner = K, inner
    p.step = max(BLOCK // max(K, 1), 64)  # many enough that the sums of pieces are few beside the numbers
    p.per_region = max((p.positions + p.step - 1) // p.step, 1)
    p.together = max(1, BLOCK // max(p.positions * K, 1)) if p.per_region == 1 else 1
    return 0


cdef int run_pieces(Pieces* p, int num_threads) except -1:
    cdef Py_ssize_t blocks = (p.regions * p.per_region + p.together - 1) // p.together
    cdef int threads = 1
    cdef char* memory
    if p.regions * p.positions > ALONE // max(p.call.classes, 1):
        threads = <int>min(team_size(num_threads), blocks)
    p.scratch_size = (region_scratch(&p.call) * 8 + 127) // 64 * 64
    memory = <char*>malloc(threads * p.scratch_size + 64)
    if memory == NULL:
        raise MemoryError("no memory for the kernel's scratch")
    p.scratch = memory + (64 - <size_t>memory % 64)
    try:
        over_blocks(pieces_block, p, blocks, threads)
    finally:
        free(memory)
    return 0


def region_sums(
    cnp.ndarray values not None,
    cnp.ndarray targets not None,
    cnp.ndarray sample_weight,
    str activation,
    bint soft_labels,
    cnp.ndarray sums_out not None,
    int num_threads,
):
    """Weighted sums of true positives, false positives and false negatives over regions."""
    cdef Pieces p
    cdef Py_ssize_t i, j, k
    cdef double* out = <double*>cnp.PyArray_DATA(sums_out)
    memset(&p, 0, sizeof(Pieces))
    cut_pieces(&p, values, targets, sample_weight, None, activation, soft_labels, cnp.PyArray_DIM(sums_out, 1) == cnp.PyArray_DIM(values, 2))
    p.sums = <double*>malloc(max(p.regions * p.per_region * p.width, 1) * sizeof(double))
    if p.sums == NULL:
        raise MemoryError("no memory for the sums of pieces")
    p.run = table.region[cnp.PyArray_TYPE(values) == cnp.NPY_FLOAT64]
    try:
        run_pieces(&p, num_threads)
        memset(out, 0, cnp.PyArray_NBYTES(sums_out))
        for i in range(p.regions):
            for j in range(p.per_region):
                for k in range(p.width):
                    out[i * p.width + k] += p.sums[(i * p.per_region + j) * p.width + k]
    finally:
        free(p.sums)


def region_grad(
    cnp.ndarray values not None,
    cnp.ndarray targets not None,
    cnp.ndarray sample_weight,
    str activation,
    bint soft_labels,
    double alpha,
    double beta,
    cnp.ndarray slopes not None,
    cnp.ndarray grad_out not None,
    int num_threads,
):
    """Gradient of region losses, whose regions have the two slopes of `_core_numpy.region_grad`."""
    cdef Pieces p
    memset(&p, 0, sizeof(Pieces))
    cut_pieces(&p, values, targets, sample_weight, grad_out, activation, soft_labels, cnp.PyArray_DIM(slopes, 1) == cnp.PyArray_DIM(values, 2))
    p.call.alpha, p.call.beta = alpha, beta
    p.call.slopes = <double*>cnp.PyArray_DATA(slopes)
    p.run = table.region_grad[cnp.PyArray_TYPE(values) == cnp.NPY_FLOAT64]
    run_pieces(&p, num_threads)
