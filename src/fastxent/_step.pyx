# distutils: language = c++
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True, binding=True, embedsignature=True
"""Mini-batch training of a multi-layer perceptron: many whole steps in one call, without the GIL.

A step is a row of pieces (gather, a product per layer, logits with their loss, a product per layer back, gradients with
the optimizer), each cut into items that a crew of threads shares; `_kernels/network.hpp` computes an item, this file lays
out the memory and says what follows what.  A band of a layer's weights is updated by the thread that has just computed its
gradient, so that the gradient is never whole; clipping and sparse rows need it whole and cost one piece more.  The next
batch is gathered beside the updates.  A loss that the kernels do not know is called back with the batch's logits.
"""
cimport cython
cimport numpy as cnp
from libc.math cimport isfinite, pow, sqrt
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from fastxent._core cimport (
    ADAM, ADAM_FIRST, BACKWARD, FORWARD, GATHER, GRADIENT, IDENTITY, LOGIT_DELTA, LOGITS, NESTEROV, NET_COLS, NET_GATHER,
    NET_PACK, NET_ROWS, NORM, RELU, SGD, SPARSE_GRADIENT, UPDATE, BlockOut, Elements, ElementsOut, NetLayer, Network, Rule,
    SoftmaxRows, elements_fn, kernels, over_blocks, piece_fn, rows_fn, scratch_of, team_size,
)
from fastxent._crew cimport Crew, seconds_now

import numpy as np

__all__ = ["Step"]

cnp.import_array()

# Operations of a step below which one thread makes it alone: some 20 us, in which a crew would meet half a dozen times.
cdef double ALONE = 1.5e6
# On a busy machine a crew waits for whoever has lost its core: 0.7 ms per step alone and 1.5 to 3 together.  So every so
# many calls both ways are tried, the crew's first, and in between the faster one is taken; the bits are the same.
cdef int TRIAL = 32
# Numbers of a layer's gradient that are computed, then used at once: with moments and weights they stay in a 1 MiB cache.
cdef Py_ssize_t BAND = 16384
# Bands begin at multiples of the widest panel.
cdef Py_ssize_t PANEL = 64

cdef dict ACTIVATIONS = {"identity": 0, "logistic": 1, "tanh": 2, "relu": 3, "gelu": 4, "silu": 5}
cdef dict SOLVERS = {"sgd": 0, "adam": 1, "adamw": 2, "radam": 3}


cdef struct Part:                            # items of one piece and layer
    int piece, layer
    Py_ssize_t items


cdef struct Plan:
    Network net
    piece_fn piece
    bint single, whole                       # float32; gradients are whole before the update
    Part* parts                              # of the piece that the crew is at
    int n_parts
    char* scratch
    Py_ssize_t slot_bytes
    double* sums                             # one per item
    # the loss
    bint softmax, back                       # back: called back in Python
    SoftmaxRows call
    Elements cells
    rows_fn rows_kernel
    elements_fn cells_kernel
    double* losses                           # one per item of the logits
    Py_ssize_t outputs
    Py_ssize_t item
    const char* y
    Py_ssize_t y_bytes                       # of a row
    char* y_rows
    const char* v
    char* v_rows
    # the optimizer
    int solver
    bint nesterov
    double rate, momentum, b1, b2, epsilon, alpha, clip_norm
    int64_t t
    # the run
    const Py_ssize_t* order
    Py_ssize_t n, start, batch, steps
    double total, mass, last, deadline
    uint64_t drawn                           # numbers of the dropout's stream that are used up
    bint failed
    Crew* crew
    void* owner


# -------------------------------------------------------------------------------------------------------------- items

cdef double batch_loss(Plan* p, Py_ssize_t begin, Py_ssize_t end, char* scratch) noexcept nogil:
    """Sum of the losses of some rows of logits, which their gradient replaces."""
    cdef BlockOut out
    cdef ElementsOut cells_out
    if p.softmax:
        memset(&out, 0, sizeof(BlockOut))
        out.bad = -1
        p.rows_kernel(&p.call, begin, end, scratch, &out)
        return out.loss
    memset(&cells_out, 0, sizeof(ElementsOut))
    cells_out.bad_target = cells_out.bad_value = -1
    p.cells_kernel(&p.cells, begin * p.outputs, end * p.outputs, &cells_out)
    return cells_out.loss


cdef void one_item(void* context, Py_ssize_t i, int slot) noexcept nogil:
    cdef Plan* p = <Plan*>context
    cdef char* scratch = p.scratch + slot * p.slot_bytes
    cdef Py_ssize_t place = i, begin
    cdef Part* part = p.parts
    while i >= part.items:
        i -= part.items
        part += 1
    p.piece(&p.net, part.piece, part.layer, i, scratch, &p.sums[place])
    if part.piece == LOGITS and not p.back:
        begin = i * p.net.head
        p.losses[i] = batch_loss(p, begin, min(begin + p.net.head, p.net.count), scratch)
        p.piece(&p.net, LOGIT_DELTA, part.layer, i, scratch, NULL)


cdef Py_ssize_t over(Py_ssize_t n, Py_ssize_t size) noexcept nogil:
    return (n + size - 1) // size


cdef Py_ssize_t items_of(Plan* p, int piece, int layer) noexcept nogil:
    cdef NetLayer* l = &p.net.layer[layer]
    cdef Py_ssize_t rows = over(p.net.count, NET_ROWS)
    if piece == GATHER: return over(p.net.next_count, NET_GATHER)
    if piece == FORWARD: return rows * over(l.out, NET_COLS)
    if piece == BACKWARD: return rows * over(l.fan_in, NET_COLS)
    if piece == LOGITS or piece == LOGIT_DELTA: return over(p.net.count, p.net.head)
    if piece == SPARSE_GRADIENT: return over(l.out, NET_COLS)
    return over(l.fan_in, l.band) + 1


cdef void add_part(Plan* p, int piece, int layer) noexcept nogil:
    p.parts[p.n_parts].piece = piece
    p.parts[p.n_parts].layer = layer
    p.parts[p.n_parts].items = items_of(p, piece, layer)
    p.n_parts += 1


cdef double do_parts(Plan* p) noexcept nogil:
    """Run the parts that were added, as one piece; returns what their items summed, in order."""
    cdef Py_ssize_t items = 0, i
    cdef double total = 0
    cdef int k
    for k in range(p.n_parts):
        items += p.parts[k].items
    memset(p.sums, 0, items * sizeof(double))
    if p.crew != NULL:
        p.crew.all(items)
    else:
        for i in range(items): one_item(p, i, 0)
    for i in range(items):
        total += p.sums[i]
    p.n_parts = 0
    return total


# --------------------------------------------------------------------------------------------------------------- steps

cdef void set_rule(Plan* p, double mass) noexcept nogil:
    """The constants of this step; `Adam._constants` of optimizers.py in other words."""
    cdef Rule* r = &p.net.rule
    cdef double left_1, left_2, root, limit, length
    r.clip = r.keep = 1
    r.shrink = p.net.penalty = p.alpha / mass
    r.b1, r.c = p.momentum, p.rate
    if p.solver == 0:
        r.kind = NESTEROV if p.nesterov else SGD
        return
    left_1, left_2 = 1 - pow(p.b1, p.t), 1 - pow(p.b2, p.t)
    root = sqrt(left_2 / (1 - p.b2))
    r.kind, r.b1, r.b2 = ADAM, p.b1, p.b2
    r.c = p.rate * (1 - p.b1) / left_1
    if p.solver == 1:
        r.c *= root
        r.e = p.epsilon / sqrt(1 - p.b2)
        return
    if p.solver == 2:
        r.shrink = p.net.penalty = 0
        r.keep = 1 - p.rate * p.alpha
    else:
        limit = 2 / (1 - p.b2) - 1
        length = limit - 2 * p.t * pow(p.b2, p.t) / left_2
        if length <= 5:
            r.kind = ADAM_FIRST
            return
        r.c *= sqrt((length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length))
    r.c *= root
    r.e = p.epsilon * root


cdef double take_targets(Plan* p) noexcept nogil:
    """Targets and weights of the batch's rows; returns their mass."""
    cdef Py_ssize_t i, row
    cdef double mass = 0, v
    for i in range(p.net.count):
        row = p.net.rows[i]
        if not p.back: memcpy(p.y_rows + i * p.y_bytes, p.y + row * p.y_bytes, p.y_bytes)
        if p.v == NULL: continue
        memcpy(p.v_rows + i * p.item, p.v + row * p.item, p.item)
        if p.single: v = (<float*>p.v_rows)[i]
        else: v = (<double*>p.v_rows)[i]
        mass += v
    return mass if p.v != NULL else <double>p.net.count


cdef void one_step(Plan* p) noexcept nogil:
    cdef Network* net = &p.net
    cdef int l, last = net.layers - 1
    cdef Py_ssize_t i
    cdef double mass = take_targets(p), loss = 0, squares, norm
    p.t += 1
    set_rule(p, mass)
    p.call.scale = p.cells.scale = 1 / mass
    for l in range(last):
        net.layer[l].drop_at = p.drawn
        if net.drop_below: p.drawn += net.count * net.layer[l].out
        add_part(p, FORWARD, l)
        do_parts(p)
    add_part(p, LOGITS, last)
    do_parts(p)
    if p.back:
        with gil:
            loss = (<Step>p.owner).call_back(mass)
        if p.failed: return
        add_part(p, LOGIT_DELTA, last)
        do_parts(p)
    else:
        for i in range(over(net.count, net.head)): loss += p.losses[i]
    if not isfinite(loss):                   # the weights stay those that gave it
        p.last = loss
        return
    for l in range(last, 0, -1):
        add_part(p, BACKWARD, l)
        do_parts(p)
    if p.whole:
        for l in range(net.layers):
            if net.layer[l].gW == NULL: continue
            if l == 0 and net.indptr != NULL: add_part(p, SPARSE_GRADIENT, 0)
            add_part(p, GRADIENT, l)
        do_parts(p)
    if p.clip_norm > 0:
        for l in range(net.layers): add_part(p, NORM, l)
        norm = sqrt(do_parts(p))
        net.rule.shrink = 0                  # NORM has added the penalty
        net.rule.clip = p.clip_norm / norm if norm > p.clip_norm else 1
    for l in range(net.layers): add_part(p, UPDATE, l)
    i = p.start + net.count                  # of the next batch
    net.next_rows = p.order + i
    net.next_count = min(p.batch, p.n - i) if net.indptr == NULL else 0
    if net.next_count: add_part(p, GATHER, 0)
    squares = do_parts(p)
    if p.solver != 2: loss += 0.5 * p.alpha * squares
    net.x, net.next_x = net.next_x, net.x
    p.last = loss
    p.total += loss
    p.mass += mass


cdef void drive(Plan* p) noexcept nogil:
    """Steps until the rows or the time are used up, or a loss is not finite."""
    cdef Network* net = &p.net
    net.next_rows, net.next_count = p.order + p.start, min(p.batch, p.n - p.start)
    net.count = net.next_count
    if net.indptr == NULL:
        add_part(p, GATHER, 0)
        do_parts(p)
    net.x, net.next_x = net.next_x, net.x
    while p.start < p.n:
        net.rows, net.count = p.order + p.start, min(p.batch, p.n - p.start)
        one_step(p)
        if p.failed: return
        p.start += net.count
        p.steps += 1
        if not isfinite(p.last) or seconds_now() > p.deadline: return


cdef void member(void* context, Py_ssize_t block, int slot) noexcept nogil:
    """One thread of the team: the caller drives, the others help."""
    cdef Plan* p = <Plan*>context
    if slot:
        p.crew.help(slot)
    elif not p.crew.over():
        drive(p)
        p.crew.end()


@cython.final
cdef class Step:
    """Training steps of one network on one data set, in buffers allocated once.

    Parameters
    ----------
    units : sequence of int
        Width of every layer, from the features to the logits.
    activation : {'identity', 'logistic', 'tanh', 'relu', 'gelu', 'silu'}
    params : ndarray (n_params,), float32 or float64, C order
        All coefficients, layer by layer, then all intercepts; updated in place.
    moments : sequence of ndarray (n_params,)
        State of the optimizer: two for the Adam family, one for 'sgd'; updated in place.
    X : ndarray (n_samples, n_features) of any strides, or CSR matrix, dtype of `params`
    y : ndarray (n_samples,) of intp, or (n_samples, n_outputs) of the dtype of `params`, C order
    v : ndarray (n_samples,) of the dtype of `params`, C order, or None
    batch_size : int
    softmax : bool
        Softmax cross-entropy (labels or probabilities) or binary cross-entropy of indicators.
    label_smoothing : float
    pos_weight : ndarray (n_outputs,) of the dtype of `params`, or None
    objective : None or callable
        ``objective(z, y, v, mass, scale)`` instead of the two: returns the sum of v_i L_i, replaces z by its gradient times
        scale; y and v are those of the batch.
    solver : {'sgd', 'adam', 'adamw', 'radam'}
    momentum, nesterov, beta_1, beta_2, epsilon, alpha : as the estimator has them
    clip_norm : float
        Largest norm of the gradient, penalty included; 0 for none.
    dropout : float
    seed, drawn : int
        Of the dropout's stream: which, and how many of its numbers are used up.
    t : int
        Steps that the optimizer has made.
    num_threads : int
        0: the default.
    """

    cdef Plan p
    cdef list kept
    cdef object objective, targets, weights, error
    cdef cnp.ndarray order
    cdef int threads, calls
    cdef double rates[2]                     # rows per second, alone and together, when last tried
    cdef readonly int64_t t                  # steps that the optimizer has made
    cdef readonly uint64_t drawn             # numbers of the dropout's stream that are used up

    def __cinit__(self):
        memset(&self.p, 0, sizeof(Plan))

    def __init__(self, units, str activation, cnp.ndarray params not None, moments, X, cnp.ndarray y not None, v, Py_ssize_t batch_size,
                 bint softmax, double label_smoothing, pos_weight, objective, str solver, double momentum, bint nesterov,
                 double beta_1, double beta_2, double epsilon, double alpha, double clip_norm, double dropout, uint64_t seed,
                 uint64_t drawn, int64_t t, int num_threads):
        cdef Plan* p = &self.p
        cdef Network* net = &p.net
        cdef int layers = len(units) - 1, l
        cdef Py_ssize_t items = 0, most = 0, band_bytes = 0, at = 0, bias_at, n_params = cnp.PyArray_DIM(params, 0)
        cdef double work = 0
        cdef NetLayer* layer
        self.kept = [params, list(moments), X, y, v, pos_weight]
        self.objective, self.targets, self.weights = objective, y, v
        p.owner = <void*>self
        p.single = cnp.PyArray_TYPE(params) == cnp.NPY_FLOAT32
        p.item = 4 if p.single else 8
        p.piece = kernels().network[0 if p.single else 1]
        p.solver, p.nesterov, p.momentum = SOLVERS[solver], nesterov, momentum
        p.b1, p.b2, p.epsilon, p.alpha, p.clip_norm = beta_1, beta_2, epsilon, alpha, clip_norm
        p.batch, self.t, self.drawn = batch_size, t, drawn
        net.layers, net.activation, net.capacity = layers, ACTIVATIONS[activation], batch_size
        net.layer = <NetLayer*>calloc(layers, sizeof(NetLayer))
        p.parts = <Part*>calloc(2 * layers + 2, sizeof(Part))
        if net.layer == NULL or p.parts == NULL:
            raise MemoryError("no memory for the layers")
        net.drop_seed, net.drop_scale = seed, 1 / (1 - dropout)
        net.drop_below = <uint64_t>(dropout * 9007199254740992.0)
        self.set_data(X)
        p.outputs = units[layers]
        # Packing the weights of many outputs wants many rows; a small batch wants an item for every thread.
        net.head = 32 if p.outputs <= NET_COLS and batch_size <= NET_ROWS else NET_ROWS
        net.count = net.next_count = batch_size
        cdef char* w = <char*>cnp.PyArray_DATA(params)
        cdef char* m = <char*>cnp.PyArray_DATA(moments[0])
        cdef char* u = <char*>cnp.PyArray_DATA(moments[1]) if len(moments) > 1 else NULL
        p.whole = clip_norm > 0 or net.indptr != NULL
        cdef char* g = self.memory(n_params * p.item) if p.whole else NULL
        bias_at = sum(units[l] * units[l + 1] for l in range(layers)) * p.item
        for l in range(layers):
            layer = &net.layer[l]
            layer.fan_in, layer.out = units[l], units[l + 1]
            layer.band = max(PANEL, BAND // layer.out // PANEL * PANEL)
            layer.W, layer.mW, layer.b, layer.mb = w + at, m + at, w + bias_at, m + bias_at
            if u != NULL: layer.vW, layer.vb = u + at, u + bias_at
            if clip_norm > 0 or (l == 0 and net.indptr != NULL): layer.gW, layer.gb = g + at, g + bias_at
            else: band_bytes = max(band_bytes, max(min(layer.band, layer.fan_in), 1) * layer.out * p.item)
            at += layer.fan_in * layer.out * p.item
            bias_at += layer.out * p.item
            layer.delta = self.panels(layer.out)
            if l < layers - 1:
                layer.a = self.panels(layer.out)
                if dropout or net.activation not in (IDENTITY, RELU): layer.slope = self.panels(layer.out)
            work += 6.0 * batch_size * layer.fan_in * layer.out
            items += max(items_of(p, UPDATE, l), 1)
            most = max(most, items_of(p, FORWARD, l), items_of(p, BACKWARD, l))
        work = max(work, 40.0 * n_params)
        self.threads = max(1, team_size(num_threads)) if work > ALONE else 1
        if net.indptr == NULL: net.x, net.next_x = self.panels(units[0]), self.panels(units[0])
        net.logits = self.memory(batch_size * p.outputs * p.item)
        p.sums = <double*>self.memory((max(items, most) + over(net.layer[0].out, NET_COLS) + over(batch_size, NET_GATHER) + 1) * 8)
        p.losses = <double*>self.memory(over(batch_size, net.head) * 8)
        self.set_loss(softmax, label_smoothing, pos_weight)
        p.slot_bytes = (max(NET_PACK, band_bytes, scratch_of(&p.call) * 8 if softmax else 0) + 191) // 64 * 64
        p.scratch = self.memory(self.threads * p.slot_bytes)

    def __dealloc__(self):
        free(self.p.net.layer)
        free(self.p.parts)

    cdef char* memory(self, Py_ssize_t size) except NULL:
        """Zeros that begin at a cache line."""
        cdef cnp.ndarray a = np.zeros(size + 64, np.uint8)
        self.kept.append(a)
        cdef char* start = <char*>cnp.PyArray_DATA(a)
        return start + (64 - <size_t>start % 64)

    cdef char* panels(self, Py_ssize_t width) except NULL:
        """Panels of a batch; PANEL is a multiple of every instruction set's."""
        return self.memory(over(width, PANEL) * PANEL * self.p.net.capacity * self.p.item)

    cdef int set_data(self, X) except -1:
        cdef Network* net = &self.p.net
        cdef cnp.ndarray data
        if isinstance(X, np.ndarray):
            data = X
            net.row_stride, net.col_stride = cnp.PyArray_STRIDE(data, 0), cnp.PyArray_STRIDE(data, 1)
        else:
            data = X.data
            indptr, indices = X.indptr, X.indices
            net.wide_indices = indices.dtype.itemsize == 8
            self.kept.extend((data, indptr, indices))
            net.indptr = <const char*>cnp.PyArray_DATA(indptr)
            net.indices = <const char*>cnp.PyArray_DATA(indices)
        net.X = <const char*>cnp.PyArray_DATA(data)
        return 0

    cdef int set_loss(self, bint softmax, double smoothing, pos_weight) except -1:
        cdef Plan* p = &self.p
        cdef SoftmaxRows* call = &p.call
        cdef Elements* cells = &p.cells
        cdef cnp.ndarray y = self.targets
        p.back, p.softmax = self.objective is not None, softmax
        cdef bint labels = cnp.PyArray_NDIM(y) == 1
        p.y = <const char*>cnp.PyArray_DATA(y)
        p.y_bytes = sizeof(Py_ssize_t) if labels else p.outputs * p.item
        p.y_rows = self.memory(p.batch * p.y_bytes)
        if self.weights is not None:
            p.v, p.v_rows = <const char*>cnp.PyArray_DATA(self.weights), self.memory(p.batch * p.item)
        if p.back:
            return 0
        if softmax:
            p.rows_kernel = kernels().softmax[0 if p.single else 1]
            call.storage = 0 if p.single else 1
            call.inner, call.classes, call.temperature, call.smoothing = 1, p.outputs, 1, smoothing
            call.logits.data, call.logits.outer, call.logits.cls = p.net.logits, p.outputs * p.item, p.item
            call.grad = call.logits
            if labels:
                call.labels.data, call.labels.outer = p.y_rows, p.y_bytes
                call.label_kind = 7 if sizeof(Py_ssize_t) == 8 else 6
            else:
                call.soft.data, call.soft.outer, call.soft.cls = p.y_rows, p.y_bytes, p.item
            if p.v != NULL: call.weight.data, call.weight.outer = p.v_rows, p.item
            return 0
        p.cells_kernel = kernels().sigmoid[0 if p.single else 1]
        cells.storage, cells.cols, cells.smoothing = 0 if p.single else 1, p.outputs, smoothing
        cells.values.data, cells.values.outer = p.net.logits, p.outputs * p.item
        cells.grad = cells.values
        cells.targets.data, cells.targets.outer = p.y_rows, p.y_bytes
        if p.v != NULL: cells.weight.data, cells.weight.outer = p.v_rows, p.item
        if pos_weight is not None:
            cells.pos_weight.data, cells.pos_weight.cls = <char*>cnp.PyArray_DATA(pos_weight), p.item
        return 0

    cdef double call_back(self, double mass) noexcept:
        cdef Plan* p = &self.p
        cdef cnp.npy_intp shape[2]
        shape[0], shape[1] = p.net.count, p.outputs
        try:
            z = cnp.PyArray_SimpleNewFromData(2, shape, cnp.NPY_FLOAT32 if p.single else cnp.NPY_FLOAT64, p.net.logits)
            rows = self.order[p.start : p.start + p.net.count]
            v = None if self.weights is None else self.weights[rows]
            return self.objective(z, self.targets[rows], v, mass, 1 / mass)
        except BaseException as error:
            self.error = error
            p.failed = True
            return 0

    def run(self, cnp.ndarray order not None, Py_ssize_t start, double learning_rate, double seconds):
        """Steps over the rows ``order[start:]``, batch by batch.

        Parameters
        ----------
        order : ndarray (n,) of intp, C order
            Numbers of rows.
        start : int
            Place in `order` of the first batch.
        learning_rate : float
        seconds : float
            Return after the step in which they have passed.

        Returns
        -------
        steps : int
            Steps made; the last one's loss may be non-finite, and then it has changed no weight.
        start : int
            Where to go on.
        total, mass : float
            Sums over the steps: of the objective times the batch's mass, and of the masses.
        last : float
            The last step's.
        """
        cdef Plan* p = &self.p
        cdef Crew* crew = NULL
        cdef int turn = self.calls % TRIAL
        cdef bint together = self.threads > 1 and (turn == 0 or (turn > 1 and self.rates[1] >= self.rates[0]))
        cdef double began = seconds_now()
        self.order = order
        p.order, p.n, p.start = <const Py_ssize_t*>cnp.PyArray_DATA(order), cnp.PyArray_DIM(order, 0), start
        p.rate, p.t, p.drawn = learning_rate, self.t, self.drawn
        p.steps = 0
        p.total = p.mass = p.last = 0
        p.failed = False
        p.deadline = began + (seconds / 4 if self.threads > 1 and turn == 1 else seconds)
        try:
            if together:
                p.crew = crew = new Crew(one_item, p)
                over_blocks(member, p, self.threads, self.threads)
            else:
                with nogil: drive(p)
        finally:
            p.crew = NULL
            del crew
            self.t, self.drawn = p.t, p.drawn
            self.rates[together] = (p.start - start) / (seconds_now() - began)
            self.calls += 1
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return p.steps, p.start, p.total, p.mass, p.last
