# distutils: language = c++
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True, binding=True, embedsignature=True
"""The fused pass of a linear layer and its loss over dense X.

For a block of rows, Z = X_b W + b; the row kernel replaces Z by the gradient of its losses; dW += X_b' Z, dX_b = Z W'.

`linear_pass` has the threads outside, over segments of blocks, whose sums of dW are float64 and added in order.  Its products are
BLAS's, which the caller runs on one thread; BLAS is scipy's, fetched when first wanted (importing it costs 0.1 s, so `_core`
must not).  Few outputs (at most four vectors) have products of their own, `_kernels/tall.hpp`: on MNIST's 60000 x 784, K = 10,
a pass takes a third (float32) or half (float64) of the time that it takes with OpenBLAS.

`panel_pass` is for a W so large that no thread has one to itself: all threads are at one block, and share its classes in the
products, its rows between them (`_kernels/panel.hpp`).  With BLAS's threads there a block packs all of W for each product, and the
whole took 1.3 to 1.5 times the products of all rows at once.
"""
cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cpython.pycapsule cimport PyCapsule_GetName, PyCapsule_GetPointer
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from fastxent._core cimport (
    BlockOut, Elements, ElementsOut, Matrix, Panel, SoftmaxRows, Table, Tall, elements_fn, kernels, over_blocks, panel_scratch,
    rows_fn, rows_per_block, scratch_of, set_labels, tall_fn, tall_most, tall_width, team_size,
)
from fastxent._crew cimport Crew, seconds_now

__all__ = ["linear_pass", "panel_pass"]

cnp.import_array()

ctypedef void (*gemm_fn)(char*, char*, int*, int*, int*, void*, void*, int*, void*, int*, void*, void*, int*) noexcept nogil

cdef enum:
    FEW_BYTES = 1 << 18                      # of X in a block of few outputs: both products read it from the second-level cache
    FEW_SUMS = 1 << 20                       # numbers of one thread's sums, rows padded to whole vectors
    ROWS_NUMBERS = 1 << 16                   # logits that a thread takes at once where the threads share a block

cdef gemm_fn sgemm = NULL
cdef gemm_fn dgemm = NULL


cdef int load_blas() except -1:
    global sgemm, dgemm
    if sgemm == NULL or dgemm == NULL:       # both: another thread may have written one of them, in any order
        from scipy.linalg import cython_blas

        single, double = cython_blas.__pyx_capi__["sgemm"], cython_blas.__pyx_capi__["dgemm"]
        dgemm = <gemm_fn>PyCapsule_GetPointer(double, PyCapsule_GetName(double))
        sgemm = <gemm_fn>PyCapsule_GetPointer(single, PyCapsule_GetName(single))
    return 0


cdef struct Pass:
    gemm_fn gemm
    bint single, binary, by_columns          # float32; one logit per row; X in Fortran order
    Py_ssize_t n, block_rows, segments
    int d, K, ldx
    char* X
    void* W
    void* b
    const Py_ssize_t* bounds                 # (segments + 1,) rows
    rows_fn rows
    elements_fn elements
    SoftmaxRows call
    Elements cells
    char* memory                             # per slot: Z, part, a block of X, scratch
    Py_ssize_t slot_bytes, z_bytes, part_bytes, x_bytes
    double* dW                               # (segments, d, K), zeroed
    double* db                               # (segments, K), zeroed
    BlockOut* out
    bint few                                 # outputs: the products of tall.hpp, in blocks of few_rows
    Py_ssize_t few_rows, width
    tall_fn logits, sums
    Tall tall
    bint want_grad
    char* dX
    int lddx


cdef Matrix rows_from(Matrix m, Py_ssize_t start) noexcept nogil:
    if m.data != NULL:
        m.data += start * m.outer
    return m


cdef void set_block(SoftmaxRows* call, const SoftmaxRows* all_rows, char* Z, bint want_grad, Py_ssize_t start) noexcept nogil:
    """The losses of the rows from `start` on, whose logits are Z."""
    call.logits.data = Z
    call.grad.data = Z if want_grad else NULL
    call.labels = rows_from(all_rows.labels, start)
    call.soft = rows_from(all_rows.soft, start)
    call.weight = rows_from(all_rows.weight, start)
    call.loss = rows_from(all_rows.loss, start)


cdef void segment(void* context, Py_ssize_t s, int slot) noexcept nogil:
    cdef Pass* p = <Pass*>context
    cdef char* memory = p.memory + slot * p.slot_bytes
    cdef char* Z = memory
    cdef char* part = memory + p.z_bytes
    cdef char* near = part + p.part_bytes
    cdef char* scratch = near + p.x_bytes
    cdef Py_ssize_t item = 4 if p.single else 8, start = p.bounds[s], stop = p.bounds[s + 1], i, j
    cdef double* dW = p.dW + s * p.d * p.K
    cdef double* db = p.db + s * p.K
    cdef SoftmaxRows call = p.call
    cdef Elements cells = p.cells
    cdef ElementsOut one
    cdef BlockOut* out = &p.out[s]
    cdef char N = b"N", T = b"T"
    cdef char* forward = &T if p.by_columns else &N
    cdef char* backward = &N if p.by_columns else &T
    cdef float one_f = 1, zero_f = 0
    cdef double one_d = 1, zero_d = 0
    cdef void* unit = <void*>&one_f if p.single else <void*>&one_d
    cdef void* zero = <void*>&zero_f if p.single else <void*>&zero_d
    cdef int m
    cdef char* x
    cdef Tall tall = p.tall
    tall.Z = Z
    tall.sums = <double*>part
    if p.few and p.want_grad: memset(part, 0, p.part_bytes)
    while start < stop:
        m = <int>min(p.few_rows if p.few else p.block_rows, stop - start)
        x = p.X + start * (item if p.by_columns else p.ldx * item)
        if p.few:
            if p.x_bytes > 0:
                for j in range(p.d):
                    memcpy(near + j * p.few_rows * item, x + j * p.ldx * item, m * item)
                x = near
            tall.X, tall.rows = x, m
            p.logits(&tall)
        else:
            p.gemm(&N, forward, &p.K, &m, &p.d, unit, p.W, &p.K, x, &p.ldx, zero, Z, &p.K)
            if p.b != NULL:
                if p.single: add_row(<float*>Z, <float*>p.b, m, p.K)
                else: add_row(<double*>Z, <double*>p.b, m, p.K)
        if p.binary:
            cells.cols = m
            cells.values.data = Z
            cells.grad.data = Z if p.want_grad else NULL
            cells.targets = p.cells.targets
            cells.targets.data += start * item
            cells.weight = p.cells.weight
            if cells.weight.data != NULL: cells.weight.data += start * cells.weight.cls
            one.loss = one.total = 0
            one.bad_target = one.bad_value = -1
            p.elements(&cells, 0, m, &one)
            out.loss += one.loss
            if out.bad < 0 and one.bad_target >= 0: out.bad = start + one.bad_target
        else:
            set_block(&call, &p.call, Z, p.want_grad, start)
            i = out.bad
            out.bad = -1
            p.rows(&call, 0, m, scratch, out)
            out.bad = i if i >= 0 else (out.bad + start if out.bad >= 0 else -1)
        if p.want_grad:
            if p.few:
                p.sums(&tall)
            else:
                p.gemm(&N, backward, &p.K, &p.d, &m, unit, Z, &p.K, x, &p.ldx, zero, part, &p.K)
                if p.single: add_to(<float*>part, dW, <Py_ssize_t>p.d * p.K)
                else: add_to(<double*>part, dW, <Py_ssize_t>p.d * p.K)
            if p.single: add_rows(<float*>Z, db, m, p.K)
            else: add_rows(<double*>Z, db, m, p.K)
            if p.dX != NULL:
                p.gemm(&T, &N, &p.d, &m, &p.K, unit, p.W, &p.K, Z, &p.K, zero, p.dX + start * p.lddx * item, &p.lddx)
        start += m
    if p.few and p.want_grad:
        for i in range(p.d):
            for j in range(p.K):
                dW[i * p.K + j] += tall.sums[i * p.width + j]


ctypedef fused real:
    float
    double


cdef void add_row(real* Z, const real* b, Py_ssize_t m, Py_ssize_t K) noexcept nogil:
    cdef Py_ssize_t i, k
    for i in range(m):
        for k in range(K):
            Z[i * K + k] += b[k]


cdef void add_rows(const real* Z, double* total, Py_ssize_t m, Py_ssize_t K) noexcept nogil:
    cdef Py_ssize_t i, k
    for i in range(m):
        for k in range(K):
            total[k] += Z[i * K + k]


cdef void add_to(const real* part, double* total, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        total[i] += part[i]


cdef void pack(const char* W, const char* b, char* to, Py_ssize_t d, Py_ssize_t row, Py_ssize_t width) noexcept nogil:
    """Rows of W, then b or zeros, from `row` to `width` bytes apart, zeros between."""
    cdef Py_ssize_t i
    memset(to, 0, (d + 1) * width)
    for i in range(d):
        memcpy(to + i * width, W + i * row, row)
    if b != NULL: memcpy(to + d * width, b, row)


cdef int set_rows(
    SoftmaxRows* call, bint single, Py_ssize_t K, cnp.ndarray targets, cnp.ndarray sample_weight, cnp.ndarray class_weight,
    cnp.ndarray logit_bias, double label_smoothing, bint exclude_target, ignore_index, double z_loss, double temperature,
    double scale, cnp.ndarray loss_out,
) except -1:
    """The losses of all rows; the addresses of a block's logits and gradient are missing."""
    cdef Py_ssize_t item = 4 if single else 8
    call.storage = 0 if single else 1
    call.inner, call.classes = 1, K
    call.logits.outer, call.logits.cls = K * item, item
    call.grad = call.logits
    if cnp.PyArray_NDIM(targets) == 2:
        set_labels(call, targets, ignore_index)
    else:
        call.soft.data = <char*>cnp.PyArray_DATA(targets)
        call.soft.outer, call.soft.cls = cnp.PyArray_STRIDE(targets, 0), cnp.PyArray_STRIDE(targets, 1)
    if sample_weight is not None:
        call.weight.data = <char*>cnp.PyArray_DATA(sample_weight)
        call.weight.outer = cnp.PyArray_STRIDE(sample_weight, 0)
    call.class_weight = NULL if class_weight is None else cnp.PyArray_DATA(class_weight)
    call.bias = NULL if logit_bias is None else cnp.PyArray_DATA(logit_bias)
    if loss_out is not None:
        call.loss.data, call.loss.outer = <char*>cnp.PyArray_DATA(loss_out), cnp.PyArray_STRIDE(loss_out, 0)
    call.smoothing, call.exclude, call.z_loss = label_smoothing, exclude_target, z_loss
    call.temperature, call.scale = temperature, scale
    return 0


def linear_pass(
    cnp.ndarray X not None,
    cnp.ndarray W not None,
    cnp.ndarray b,
    bint binary,
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
    cnp.ndarray bounds not None,
    Py_ssize_t block_rows,
    cnp.ndarray loss_out,
    cnp.ndarray dX_out,
    cnp.ndarray dW_out,
    cnp.ndarray db_out,
    int num_threads,
):
    """Sum of the losses of X W + b over all rows, and its gradients, one pass over X.

    Parameters
    ----------
    X : ndarray (n, d), float32 or float64, rows or columns contiguous
    W : ndarray (d, K), C order, dtype of X
    b : ndarray (K,), dtype of X, or None
    binary : bool
        K = 1 and binary cross-entropy with `targets` (n,) in [0, 1] and `sample_weight` (n,); otherwise softmax
        cross-entropy with the arguments of `softmax_rows`: labels (n, 1) or soft targets (n, K, 1), weights (n, 1).
    bounds : ndarray (segments + 1,) of intp
        Rows where segments begin; each segment's float64 sums are added in order.
    loss_out : ndarray (n, 1), dtype of X, or None
        The losses one by one (softmax only).
    dX_out : ndarray (n, d), dtype of X, C order, or None
    dW_out, db_out : ndarray (segments, d, K) and (segments, K), C order, zeroed; or both None
        One partial sum per segment, in float64.
    num_threads : int
        0: the default.

    Returns
    -------
    (float, int)
        Sum of the losses; first row with a bad target, or -1.
    """
    load_blas()
    cdef Pass p
    memset(&p, 0, sizeof(Pass))
    cdef bint single = cnp.PyArray_TYPE(X) == cnp.NPY_FLOAT32
    cdef Py_ssize_t item = 4 if single else 8, longest = 0, s
    p.single, p.binary = single, binary
    p.gemm = sgemm if single else dgemm
    p.n, p.d, p.K = cnp.PyArray_DIM(X, 0), <int>cnp.PyArray_DIM(X, 1), <int>cnp.PyArray_DIM(W, 1)
    # One row or one column may carry any stride: BLAS wants a leading dimension that is large enough.
    p.by_columns = cnp.PyArray_STRIDE(X, 1) != item and p.d > 1
    p.ldx = <int>(cnp.PyArray_STRIDE(X, 1 if p.by_columns else 0) // item)
    p.ldx = max(p.ldx, <int>p.n if p.by_columns else p.d, 1)
    p.X, p.W = <char*>cnp.PyArray_DATA(X), cnp.PyArray_DATA(W)
    p.b = NULL if b is None else cnp.PyArray_DATA(b)
    p.bounds = <const Py_ssize_t*>cnp.PyArray_DATA(bounds)
    p.segments = cnp.PyArray_DIM(bounds, 0) - 1
    p.block_rows = block_rows
    p.want_grad = dW_out is not None
    p.dW = <double*>cnp.PyArray_DATA(dW_out) if p.want_grad else NULL
    p.dX = <char*>cnp.PyArray_DATA(dX_out) if dX_out is not None else NULL
    p.lddx = p.d
    p.db = <double*>cnp.PyArray_DATA(db_out) if p.want_grad else NULL
    cdef Elements* cells = &p.cells
    if binary:
        p.elements = kernels().sigmoid[0 if single else 1]
        cells.storage = 0 if single else 1
        cells.smoothing, cells.scale = label_smoothing, scale
        cells.targets.data = <char*>cnp.PyArray_DATA(targets)
        if sample_weight is not None:
            cells.weight.data = <char*>cnp.PyArray_DATA(sample_weight)
            cells.weight.cls = cnp.PyArray_STRIDE(sample_weight, 0)
    else:
        p.rows = kernels().softmax[0 if single else 1]
        set_rows(
            &p.call, single, p.K, targets, sample_weight, class_weight, logit_bias, label_smoothing, exclude_target, ignore_index,
            z_loss, temperature, scale, loss_out,
        )
    cdef int which = 0 if single else 1, lanes = kernels().lanes[which]
    p.width = tall_width(p.K, lanes)
    p.few = p.K <= tall_most(lanes) and 0 < p.d * p.width <= FEW_SUMS
    p.few_rows = min(max((2 if p.by_columns else 1) * FEW_BYTES // (p.d * item) // 32 * 32, 32), block_rows)
    cdef int threads = <int>min(max(team_size(num_threads), 1), max(p.segments, 1))
    for s in range(p.segments):
        longest = max(longest, p.bounds[s + 1] - p.bounds[s])
    p.z_bytes = ((min(block_rows, longest) * p.K + lanes) * item + 63) // 64 * 64
    p.part_bytes = 0
    if p.want_grad and p.few: p.part_bytes = p.d * p.width * sizeof(double)
    elif p.want_grad: p.part_bytes = p.d * p.K * item
    p.part_bytes = (p.part_bytes + 63) // 64 * 64
    # Columns far apart, each on a page of its own: both products want the block in one place, a copy fetches it fastest.
    p.x_bytes = (p.d * p.few_rows * item + 63) // 64 * 64 if p.few and p.by_columns else 0
    p.slot_bytes = p.z_bytes + p.part_bytes + p.x_bytes + (0 if binary else (scratch_of(&p.call) * 8 + 127) // 64 * 64)
    cdef Py_ssize_t packed = ((p.d + 1) * p.width * item + 63) // 64 * 64 if p.few else 0
    cdef char* memory = <char*>malloc(packed + threads * p.slot_bytes + 64)
    p.out = <BlockOut*>malloc((p.segments + 1) * sizeof(BlockOut))
    if memory == NULL or p.out == NULL:
        free(memory)
        free(p.out)
        raise MemoryError("no memory for a block of logits")
    p.memory = memory + (64 - <size_t>memory % 64)
    if p.few:
        pack(<char*>p.W, <char*>p.b, p.memory, p.d, p.K * item, p.width * item)
        p.logits, p.sums = kernels().tall_logits[which], kernels().tall_sums[which]
        p.tall.d, p.tall.K = p.d, p.K
        p.tall.row, p.tall.col = 1 if p.by_columns else p.ldx, p.few_rows if p.by_columns else 1
        p.tall.W, p.tall.bias = p.memory, p.memory + p.d * p.width * item
        p.memory += packed
    memset(p.out, 0, (p.segments + 1) * sizeof(BlockOut))
    cdef double total = 0
    cdef Py_ssize_t bad = -1
    for s in range(p.segments):
        p.out[s].bad = -1
    try:
        over_blocks(segment, &p, p.segments, threads)
        for s in range(p.segments):
            total += p.out[s].loss
            if bad < 0: bad = p.out[s].bad
    finally:
        free(memory)
        free(p.out)
    return total, bad


# --------------------------------------------------------------------------------------------------------- large W

cdef enum Phase: GATHER, LOGITS, ROWS, GRADS, SUM

cdef struct Panels:
    Panel block
    const Table* table
    int which                                # of the table's two kernels
    SoftmaxRows all_rows, call
    const char* X
    char* dX                                 # or null
    Py_ssize_t n, start, block_rows, item
    Phase phase
    Py_ssize_t panels, unit, units, slices, step
    BlockOut* out                            # of `step` rows each
    char* scratch                            # of a slot
    char* parts                              # of the block's dX, one of every slice
    Py_ssize_t slot_bytes
    double total, deadline
    Py_ssize_t bad
    Crew* crew


cdef void panel_item(void* context, Py_ssize_t i, int slot) noexcept nogil:
    """A part of what all threads are at."""
    cdef Panels* p = <Panels*>context
    cdef Panel* a = &p.block
    cdef char* scratch = p.scratch + slot * p.slot_bytes
    cdef char* part = NULL
    cdef Py_ssize_t begin, stop, u
    if p.phase == GATHER:
        p.table.panel_gather[p.which](a, i, i + 1)
    elif p.phase == LOGITS:
        p.table.panel_logits[p.which](a, i * p.unit, min((i + 1) * p.unit, a.K), scratch)
    elif p.phase == ROWS:
        memset(&p.out[i], 0, sizeof(BlockOut))
        p.out[i].bad = -1
        p.table.softmax[p.which](&p.call, i * p.step, min((i + 1) * p.step, a.rows), scratch, &p.out[i])
    elif p.phase == GRADS:
        begin, stop = p.units * i // p.slices, p.units * (i + 1) // p.slices
        if p.dX != NULL: part = p.parts + i * a.rows * a.d * p.item
        for u in range(begin, stop):
            p.table.panel_grads[p.which](a, u * p.unit, min((u + 1) * p.unit, a.K), part, u == begin, scratch)
    else:
        begin, stop = i * p.step, min((i + 1) * p.step, a.rows)
        p.table.panel_sum[p.which](a, p.parts, p.slices, begin, stop, p.dX + p.start * a.d * p.item)


cdef void all_items(Panels* p, Phase phase, Py_ssize_t items) noexcept nogil:
    cdef Py_ssize_t i
    p.phase = phase
    if p.crew != NULL:
        p.crew.all(items)
    else:
        for i in range(items): panel_item(p, i, 0)


cdef void row_blocks(Panels* p) noexcept nogil:
    """Blocks of rows until there are no more, or the time is up."""
    cdef Panel* a = &p.block
    cdef bint want_grad = a.dW != NULL or a.db != NULL or p.dX != NULL
    cdef Py_ssize_t steps, i
    while p.start < p.n:
        a.rows = min(p.block_rows, p.n - p.start)
        a.X = p.X + p.start * a.row * p.item
        a.first = p.start == 0
        set_block(&p.call, &p.all_rows, <char*>a.Z, want_grad, p.start)
        steps = (a.rows + p.step - 1) // p.step
        all_items(p, GATHER, p.panels)
        all_items(p, LOGITS, p.units)
        all_items(p, ROWS, steps)
        for i in range(steps):
            p.total += p.out[i].loss
            if p.bad < 0 and p.out[i].bad >= 0: p.bad = p.start + p.out[i].bad
        if want_grad: all_items(p, GRADS, p.slices)
        if p.dX != NULL: all_items(p, SUM, steps)
        p.start += a.rows
        if seconds_now() > p.deadline: return


cdef void panel_member(void* context, Py_ssize_t block, int slot) noexcept nogil:
    """One thread of the team: the caller leads, the others help."""
    cdef Panels* p = <Panels*>context
    if slot:
        p.crew.help(slot)
    elif not p.crew.over():
        row_blocks(p)
        p.crew.end()


def panel_pass(
    cnp.ndarray X not None,
    cnp.ndarray W not None,
    cnp.ndarray b,
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
    Py_ssize_t block_rows,
    Py_ssize_t slices,
    cnp.ndarray loss_out,
    cnp.ndarray dX_out,
    cnp.ndarray dW_out,
    cnp.ndarray db_out,
    int num_threads,
):
    """Sum of the losses of X W + b over all rows, and its gradients: all threads are at one block of rows.

    Parameters
    ----------
    X : ndarray (n, d), float32 or float64, rows or columns contiguous, n and d at least 1
    W : ndarray (d, K), dtype of X, rows or columns contiguous
    b : ndarray (K,), dtype of X, contiguous, or None
    targets, sample_weight, class_weight, logit_bias, label_smoothing, exclude_target, ignore_index, z_loss, temperature, scale
        As for `softmax_rows`: labels (n, 1) or soft targets (n, K, 1), weights (n, 1).
    block_rows : int
        Rows of a block.
    slices : int
        Parts of dX that are computed apart and then added: as many threads are busy with the gradients at most.
    loss_out : ndarray (n, 1), dtype of X, or None
        The losses one by one.
    dX_out : ndarray (n, d), dtype of X, C order, or None
    dW_out : ndarray (d, K), dtype of X, in the order of W, or None
    db_out : ndarray (K,) of float64, zeroed, or None
    num_threads : int
        0: the default.

    Returns
    -------
    (float, int)
        Sum of the losses; first row with a bad target, or -1.
    """
    cdef Panels p
    memset(&p, 0, sizeof(Panels))
    cdef Panel* a = &p.block
    cdef bint single = cnp.PyArray_TYPE(X) == cnp.NPY_FLOAT32
    cdef int item = 4 if single else 8, width, threads = team_size(num_threads)
    p.table, p.which, p.item = kernels(), 0 if single else 1, item
    width = p.table.panel_width[p.which]
    p.n, a.d, a.K = cnp.PyArray_DIM(X, 0), cnp.PyArray_DIM(X, 1), cnp.PyArray_DIM(W, 1)
    p.X = <const char*>cnp.PyArray_DATA(X)
    a.row, a.col = strides_of(X, item)
    a.W = cnp.PyArray_DATA(W)
    a.row_W, a.col_W = strides_of(W, item)
    if b is not None: a.bias = cnp.PyArray_DATA(b)
    if dX_out is not None: p.dX = <char*>cnp.PyArray_DATA(dX_out)
    if dW_out is not None: a.dW = cnp.PyArray_DATA(dW_out)
    if db_out is not None: a.db = <double*>cnp.PyArray_DATA(db_out)
    set_rows(
        &p.all_rows, single, a.K, targets, sample_weight, class_weight, logit_bias, label_smoothing, exclude_target, ignore_index,
        z_loss, temperature, scale, loss_out,
    )
    p.call = p.all_rows
    p.block_rows = min(block_rows, p.n)
    p.panels = (a.d + width - 1) // width
    p.unit = width * min(max(a.K // (16 * width), 2), 4)
    p.units = (a.K + p.unit - 1) // p.unit
    p.slices = min(slices, p.units) if p.dX != NULL else p.units
    p.step = rows_per_block(&p.call, ROWS_NUMBERS)
    p.slot_bytes = max(panel_scratch(p.block_rows, p.unit, width, item), scratch_of(&p.call) * 8)
    p.slot_bytes = (p.slot_bytes + 127) // 64 * 64
    cdef Py_ssize_t z_bytes = ((p.block_rows * a.K + p.table.lanes[p.which]) * item + 63) // 64 * 64
    cdef Py_ssize_t panel_bytes = p.panels * width * p.block_rows * item
    # NumPy asks for huge pages: Z is read and written across its rows, each of which would have a page of its own.
    cdef cnp.npy_intp size = threads * p.slot_bytes + panel_bytes + z_bytes + 64
    if p.dX != NULL: size += p.slices * p.block_rows * a.d * item
    cdef cnp.ndarray memory = cnp.PyArray_SimpleNew(1, &size, cnp.NPY_UINT8)
    p.scratch = <char*>cnp.PyArray_DATA(memory)
    p.scratch += 64 - <size_t>p.scratch % 64
    a.panels = p.scratch + threads * p.slot_bytes
    a.Z = <char*>a.panels + panel_bytes
    p.parts = <char*>a.Z + z_bytes
    p.bad = -1
    p.out = <BlockOut*>malloc((p.block_rows // p.step + 1) * sizeof(BlockOut))
    if p.out == NULL: raise MemoryError("no memory for the results of a block of rows")
    try:
        while p.start < p.n:
            PyErr_CheckSignals()
            p.deadline = seconds_now() + 0.1
            if threads == 1:
                with nogil: row_blocks(&p)
            else:
                p.crew = new Crew(panel_item, &p)
                try:
                    over_blocks(panel_member, &p, threads, threads)
                finally:
                    del p.crew
    finally:
        free(p.out)
    return p.total, p.bad


cdef (Py_ssize_t, Py_ssize_t) strides_of(cnp.ndarray m, int item):
    """Strides of a matrix in numbers; those of an axis of length one, which may be anything, are as if it were contiguous."""
    cdef Py_ssize_t rows = cnp.PyArray_DIM(m, 0), cols = cnp.PyArray_DIM(m, 1)
    cdef Py_ssize_t row = cnp.PyArray_STRIDE(m, 0) // item, col = cnp.PyArray_STRIDE(m, 1) // item
    if cols == 1: col = 1
    elif rows == 1 and col != 1: row = 1
    return row, col
