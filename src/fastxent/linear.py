"""Cross-entropy of X W + b by row blocks: loss, dX, dW, db in one pass over X, and the logits are never whole.

For a block of rows X_b the pass computes Z = X_b W + b, lets a row kernel replace Z by the gradient of its
losses (in place), and adds X_bᵀ Z to dW.  Blocks are grouped into at most 16 segments, fixed by the shape
alone; a segment is one thread's work, its sums are float64, and segments are added in order: the same bits
for any number of threads. Threads stand outside, BLAS runs single-threaded inside.  Memory beyond X and the
outputs: one logits block per thread and one partial dW per segment, 64 MB of them at most.

A large W leaves no room for that: `LargeLayer` has one block at a time, which all threads share, with products
that are not BLAS's, and dW grows in place.

What the rows' losses are is a `Rows` object; the pass does not know.  Layers above see `LinearObjective` (a
function of W and b, for solvers) and the public functions.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import threading
from typing import NamedTuple

import numpy as np

from . import _backend, _checks, _device, _memory
from ._linear_on_device import linear_call
from ._threads import ordered_map
from .losses import Loss
from .losses._softmax import SoftmaxCall, SoftmaxOptions

try:
    from . import _dense
except ImportError:  # without the extension the pass is NumPy's
    _dense = None

__all__ = ["linear_cross_entropy", "linear_cross_entropy_with_grad"]

_MAX_SEGMENTS = 16
_PARTIAL_BYTES = 1 << 26  # all partial dW together
_BLOCK_ROWS = 512  # 128 to 512 measured equal at 784 features, 10 classes; a block of X stays in the L2 cache
_BLOCK_ELEMENTS = 1 << 20  # of a block's logits
LARGE_W = (
    1 << 16
)  # elements of W from which all threads at one block do as well as threads over rows, with less memory
_LARGE_BLOCK = 1 << 25  # numbers of a block beside a large W
_SERIAL_WORK = 1 << 22  # multiplications below which starting threads costs more than it brings


# ------------------------------------------------------------------------------------------- the rows' losses


class SoftmaxRows:
    """Softmax cross-entropy of rows whose targets and weights are known and whose logits come block by block.

    A `Rows` object answers `loss`, `loss_grad` and `hvp` for rows start to stop; `shift_free` says whether
    adding a number to all logits of a row leaves its loss alone; `n_outputs` is its number of logits.

    Parameters
    ----------
    core : layer-0 module
    targets : ndarray (n, 1) of integers, or (n, n_outputs, 1) in the compute dtype
    sample_weight : None or ndarray (n, 1), compute dtype
    class_weight, logit_bias : None or ndarray (n_outputs,), compute dtype
    scale : float
        Multiplies gradients and Hessian products.
    """

    def __init__(
        self,
        core,
        targets,
        n_outputs,
        sample_weight=None,
        class_weight=None,
        logit_bias=None,
        label_smoothing=0.0,
        exclude_target=False,
        ignore_index=None,
        z_loss=0.0,
        temperature=1.0,
        scale=1.0,
    ):
        self.core, self.targets, self.n_outputs, self.sample_weight = core, targets, n_outputs, sample_weight
        self.shift_free = z_loss == 0
        self.options = (
            class_weight, logit_bias, label_smoothing, exclude_target, ignore_index, z_loss, temperature, scale
        )  # fmt: skip

    def _given(self, Z, start, stop):
        weight = None if self.sample_weight is None else self.sample_weight[start:stop]
        return (Z[:, :, None], self.targets[start:stop], weight, *self.options)

    def loss(self, Z, start, stop, num_threads, loss_out=None):
        """Sum of the losses of rows start to stop with logits Z; `loss_out` (rows, 1) takes them one by one."""
        return self.core.softmax_rows(*self._given(Z, start, stop), loss_out, None, None, None, num_threads)[
            0
        ]

    def loss_grad(self, Z, start, stop, num_threads, loss_out=None):
        """As `loss`; the gradient takes the place of the logits."""
        given = self._given(Z, start, stop)
        return self.core.softmax_rows(*given, loss_out, None, given[0], None, num_threads)[0]

    @property
    def fusable(self):
        """Whether `fused` and `in_panels` can stand for blocks of `loss` and `loss_grad`."""
        return _compiled(self.core)

    def fused(self, X, W, b, *plan):
        """The whole pass over dense X in compiled code; `plan` are `_dense.linear_pass`'s last arguments."""
        given = (X, W, b, False, self.targets, self.sample_weight)
        return _dense.linear_pass(*given, *self.options, *plan)[0]

    def in_panels(self, X, W, b, *plan):
        """The same with all threads at one block of rows; `plan` are `_dense.panel_pass`'s last arguments."""
        return _dense.panel_pass(X, W, b, self.targets, self.sample_weight, *self.options, *plan)[0]

    def hvp(self, Z, start, stop, D, num_threads):
        """D becomes the Hessian at Z times D, row by row."""
        D = D[:, :, None]
        self.core.softmax_hvp(*self._given(Z, start, stop), D, D, num_threads)

    @property
    def factored(self):
        """Whether `factor` can stand for the Hessian: plain cross-entropy, whose targets have no part in it."""
        class_weight, _, _, _, ignore_index, z_loss, temperature, scale = self.options
        return class_weight is None and ignore_index is None and (z_loss, temperature, scale) == (0, 1, 1)

    def factor(self, Z, start, stop, num_threads):
        """Z becomes √v p: a row's Hessian is v (diag(p) - p pᵀ)."""
        # The gradient for class 0 is p - e₀: what p₀ loses by the detour is absolutely small.
        given = (Z[:, :, None], np.zeros((len(Z), 1), np.intp), None, None, self.options[1], 0.0, False, None)
        self.core.softmax_rows(*given, 0.0, 1.0, 1.0, None, None, given[0], None, num_threads)
        Z[:, 0] += 1
        np.maximum(Z, 0, out=Z)
        if self.sample_weight is not None:
            Z *= np.sqrt(self.sample_weight[start:stop])


class SigmoidRows:
    """Binary cross-entropy of one logit per row: `Rows` with n_outputs = 1.

    Parameters
    ----------
    core : layer-0 module
    targets : ndarray (n,), compute dtype, within [0, 1]
    sample_weight : None or ndarray (n,), compute dtype
    """

    n_outputs = 1
    shift_free = False
    factored = True

    def __init__(self, core, targets, sample_weight=None, label_smoothing=0.0):
        self.core, self.targets, self.sample_weight = core, targets, sample_weight
        self.label_smoothing = label_smoothing

    def _call(self, Z, start, stop, num_threads, grad=None, hess=None):
        # The kernel runs along the last axis: a column of logits goes in as one row.
        weight = None if self.sample_weight is None else self.sample_weight[None, start:stop]
        given = (Z.T, self.targets[None, start:stop], weight, None, self.label_smoothing, 1.0)
        return self.core.sigmoid_elements(*given, None, grad, hess, num_threads)[0]

    def loss(self, Z, start, stop, num_threads):
        """Sum of the losses of rows start to stop with logits Z."""
        return self._call(Z, start, stop, num_threads)

    def loss_grad(self, Z, start, stop, num_threads):
        """As `loss`; the gradient takes the place of the logits."""
        return self._call(Z, start, stop, num_threads, grad=Z.T)

    @property
    def fusable(self):
        """As for `SoftmaxRows`."""
        return _compiled(self.core)

    def fused(self, X, W, b, *plan):
        """As for `SoftmaxRows`."""
        options = (None, None, self.label_smoothing, False, None, 0.0, 1.0, 1.0)
        return _dense.linear_pass(X, W, b, True, self.targets, self.sample_weight, *options, *plan)[0]

    def hvp(self, Z, start, stop, D, num_threads):
        """D becomes the Hessian at Z times D."""
        curvature = np.empty_like(Z)
        self._call(Z, start, stop, num_threads, hess=curvature.T)
        D *= curvature

    def factor(self, Z, start, stop, num_threads):
        """Z becomes the root of the rows' second derivatives."""
        self._call(Z, start, stop, num_threads, hess=Z.T)
        np.sqrt(Z, out=Z)


class LossRows:
    """Any loss object of the softmax family as `Rows`; with two classes one logit z stands for the pair (0, z).

    Parameters
    ----------
    loss : loss object
        Its `loss`, `loss_grad` and `hvp` are asked for sums over the block.
    targets : ndarray (n,) of integers or (n, n_classes)
    n_classes : int
    sample_weight : None or ndarray (n,)
    binary : bool
        One logit per row.
    """

    shift_free = False  # not known of a loss in general
    fusable = factored = False

    def __init__(self, loss, targets, n_classes, sample_weight=None, binary=False, backend=None):
        self.loss_object, self.targets, self.sample_weight = loss, targets, sample_weight
        self.binary, self.n_outputs = binary, 1 if binary else n_classes
        self.options = {"reduction": "sum", "backend": backend}
        if isinstance(loss, Loss):
            self.options["check"] = False  # the targets were checked once, in fit

    def _given(self, Z, start, stop, num_threads):
        weight = None if self.sample_weight is None else self.sample_weight[start:stop]
        options = {"sample_weight": weight, "num_threads": num_threads, **self.options}
        return (self._wide(Z), self.targets[start:stop]), options

    def _wide(self, Z):
        return np.concatenate([np.zeros_like(Z), Z], axis=1) if self.binary else Z

    def loss(self, Z, start, stop, num_threads):
        """Sum of the losses of rows start to stop with logits Z."""
        given, options = self._given(Z, start, stop, num_threads)
        return self.loss_object.loss(*given, **options)

    def loss_grad(self, Z, start, stop, num_threads):
        """As `loss`; the gradient takes the place of the logits."""
        given, options = self._given(Z, start, stop, num_threads)
        total, grad = self.loss_object.loss_grad(*given, **options)
        Z[...] = grad[:, -self.n_outputs :]
        return total

    def hvp(self, Z, start, stop, D, num_threads):
        """D becomes the Hessian at Z times D, row by row."""
        given, options = self._given(Z, start, stop, num_threads)
        D[...] = self.loss_object.hvp(*given, self._wide(D), **options)[:, -self.n_outputs :]


def _compiled(core):
    return _dense is not None and core is _backend._core


# ---------------------------------------------------------------------------------------------------- threads


class _SingleThreadedBlas:
    """BLAS on one thread while at least one caller is inside; the last one out restores what the first one found.

    threadpoolctl's limits are global to the process: two overlapping callers who each restored what they had
    found could leave BLAS limited for good.
    """

    def __init__(self):
        self._lock, self._inside, self._limit, self._controller = threading.Lock(), 0, None, None

    def __enter__(self):
        with self._lock:
            if self._inside == 0:
                if self._controller is None:
                    # SciPy has a BLAS of its own, which `_dense` uses: a controller knows what is loaded before it.
                    import scipy.linalg  # noqa: F401
                    from threadpoolctl import ThreadpoolController

                    self._controller = ThreadpoolController()  # 0.7 ms: once
                self._limit = self._controller.limit(limits=1, user_api="blas")
            self._inside += 1

    def __exit__(self, *_):
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._limit.restore_original_limits()
                self._limit = None


_single_threaded_blas = _SingleThreadedBlas()
if hasattr(os, "register_at_fork"):
    # A child forked while another thread held the lock would wait for it for ever.
    os.register_at_fork(after_in_child=lambda: _single_threaded_blas.__init__())


class Team:
    """Threads for the passes of one objective, for as long as the `with` block lasts.

    They stand outside, over segments, while BLAS is single-threaded; an objective of one large segment (its
    dW leaves no room for a second one) leaves them to BLAS and the row kernels instead.
    """

    def __init__(self, objective, num_threads=None):
        self.num_threads = _checks.thread_count(num_threads) or _backend.default_threads()
        serial = self.num_threads == 1 or objective.work < _SERIAL_WORK
        self._parallel = not serial and len(objective.segments) > 1
        self.outer_threads = self.num_threads if self._parallel else 1
        self.inner_threads = 1 if serial or self._parallel else self.num_threads
        self._blas = contextlib.nullcontext() if self.inner_threads > 1 else _single_threaded_blas

    def __enter__(self):
        self._blas.__enter__()
        return self

    def __exit__(self, *error):
        self._blas.__exit__(*error)

    def map(self, function, segments):
        """Results of function(segment) in the order of the segments."""
        if not self._parallel:
            return map(function, segments)
        return ordered_map(function, segments, self.num_threads)


# --------------------------------------------------------------------------------------------------- the pass


class _Block(NamedTuple):
    """Rows start to stop of X, as an array or CSR matrix that shares X's memory."""

    X: object
    start: int
    stop: int


def _is_sparse(X):
    return hasattr(X, "indptr")


def _segments(X, n_outputs):
    """Rows of a block, and the rows where segments begin and the last one ends, from X's shape alone."""
    n, d = X.shape
    room = max(1, _PARTIAL_BYTES // (8 * d * n_outputs)) if d else 1
    if _is_sparse(X):
        # A block's product fills all of (d, n_outputs), so blocks are few: as many as the entries pay for.
        block_rows = max(1, _BLOCK_ELEMENTS // n_outputs)
        wanted = max(X.nnz // (8 * max(d, 1)), 1)
    else:
        # A block adds to all of dW: it must have rows enough to be worth that.
        block_rows = min(max(_BLOCK_ELEMENTS // n_outputs, 32, d // 4), _BLOCK_ROWS)
        wanted = -(-n // block_rows)
    n_segments = max(1, min(_MAX_SEGMENTS, room, wanted, n))
    # Whole blocks where there are enough of them, so that no segment ends in a sliver.
    unit = block_rows if n >= n_segments * block_rows else 1
    n_units = -(-n // unit)
    return block_rows, [min(n, unit * (n_units * i // n_segments)) for i in range(n_segments + 1)]


def _reads_in_place(X, dtype):
    """Whether BLAS can read X where it lies: dense, in the compute dtype, its rows or columns contiguous."""
    if _is_sparse(X) or X.dtype != dtype or X.size == 0:
        return False
    (n, d), (down, across), item = X.shape, X.strides, X.itemsize
    by_rows = across == item and down % item == 0 and d * item <= down < 2**31
    by_columns = down == item and across % item == 0 and n * item <= across < 2**31
    return by_rows or by_columns


def _block(X, start, stop):
    if not _is_sparse(X):
        return _Block(X[start:stop], start, stop)
    if start == 0 and stop == X.shape[0]:
        return _Block(X, start, stop)
    first, last = X.indptr[start], X.indptr[stop]
    parts = (X.data[first:last], X.indices[first:last], X.indptr[start : stop + 1] - first)
    return _Block(type(X)(parts, shape=(stop - start, X.shape[1])), start, stop)


def _logits(X, W, b, out):
    """X W + b into `out`, or into a new array for sparse X."""
    if _is_sparse(X):
        out = X @ W
    else:
        np.matmul(X, W, out=out)
    if b is not None:
        out += b
    return out


class LinearObjective:
    """The sum of rows' losses at X W + b, as a function of W and b.

    Parameters
    ----------
    X : ndarray (n, d) of any strides or CSR (spmatrix or sparray), in the compute dtype
        Or float16, converted block by block.
    rows : `Rows` object
        The losses; decides the number K of columns of W.
    dtype : float32 or float64
        Of the arithmetic within a block; sums over blocks are float64.

    Notes
    -----
    Every method takes an entered `Team`.  W (d, K) and b (K,) or None come in any float dtype; gradients are
    float64.
    """

    def __init__(self, X, rows, dtype):
        self.X, self.rows, self.dtype = X, rows, dtype
        self.shape = (X.shape[1], rows.n_outputs)
        self.block_rows, bounds = _segments(X, rows.n_outputs)
        self.segments = [
            [_block(X, i, min(i + self.block_rows, stop)) for i in range(start, stop, self.block_rows)]
            for start, stop in itertools.pairwise(bounds)
        ]
        self.work = (X.nnz if _is_sparse(X) else X.size) * rows.n_outputs
        self.n_rows, self.is_sparse, self.shift_free = X.shape[0], _is_sparse(X), rows.shift_free
        small = 8 * math.prod(self.shape) <= _PARTIAL_BYTES
        self._sum_dtype = np.dtype(np.float64) if small else dtype
        self._fused = small and rows.fusable and _reads_in_place(X, dtype)
        self._bounds = np.array(bounds, dtype=np.intp)

    def _parameters(self, W, b):
        W = np.ascontiguousarray(W, dtype=self.dtype)
        return W, None if b is None else np.ascontiguousarray(b, dtype=self.dtype)

    def place(self, array):
        """An array where the vectors are: in memory."""
        return array

    def _read(self, block):
        return block.X if block.X.dtype == self.dtype else block.X.astype(self.dtype)

    def _buffer(self, segment, columns):
        rows = max((block.stop - block.start for block in segment), default=0)
        return None if _is_sparse(self.X) else np.empty((rows, columns), self.dtype)

    def loss(self, W, b, team, loss_out=None):
        """Sum of the losses; `loss_out` (n, 1) takes them one by one."""
        W, b = self._parameters(W, b)
        if self._fused:
            plan = (self._bounds, self.block_rows, loss_out, None, None, None, team.outer_threads)
            return self.rows.fused(self.X, W, b, *plan)

        def run(segment):
            total, buffer = 0.0, self._buffer(segment, self.shape[1])
            with np.errstate(over="ignore", invalid="ignore"):
                for block in segment:
                    start, stop = block.start, block.stop
                    Z = _logits(self._read(block), W, b, None if buffer is None else buffer[: stop - start])
                    each = {} if loss_out is None else {"loss_out": loss_out[start:stop]}
                    total += self.rows.loss(Z, start, stop, team.inner_threads, **each)
            return total

        return sum(team.map(run, self.segments))

    def loss_grad(self, W, b, team, loss_out=None, dX_out=None):
        """Sum of the losses, its gradient dW (d, K) and db (K,); `dX_out` (n, d) takes the gradient in X."""
        W, b = self._parameters(W, b)
        if self._fused:
            n_segments = len(self.segments)
            dW, db = (
                np.zeros((n_segments, *self.shape), self._sum_dtype),
                np.zeros((n_segments, self.shape[1])),
            )
            plan = (self._bounds, self.block_rows, loss_out, dX_out, dW, db, team.outer_threads)
            total = self.rows.fused(self.X, W, b, *plan)
            return total, dW[0] if n_segments == 1 else dW.sum(axis=0), db.sum(axis=0)

        def run(segment):
            total, buffer = 0.0, self._buffer(segment, self.shape[1])
            dW, db = np.zeros(self.shape, self._sum_dtype), np.zeros(self.shape[1])
            part = None if _is_sparse(self.X) else np.empty(self.shape, self.dtype)
            with np.errstate(over="ignore", invalid="ignore"):
                for block in segment:
                    start, stop = block.start, block.stop
                    X = self._read(block)
                    Z = _logits(X, W, b, None if buffer is None else buffer[: stop - start])
                    each = {} if loss_out is None else {"loss_out": loss_out[start:stop]}
                    total += self.rows.loss_grad(Z, start, stop, team.inner_threads, **each)
                    dW += _transposed_product(X, Z, part)
                    db += Z.sum(axis=0, dtype=np.float64)
                    if dX_out is not None:
                        dX_out[start:stop] = Z @ W.T
            return total, dW, db

        return _ordered_sum(team.map(run, self.segments))

    def hvp(self, W, b, V, c, team):
        """Hessian of the sum of the losses at (W, b) times (V, c): (d, K) and (K,)."""
        W, b = self._parameters(W, b)
        V, c = self._parameters(V, c)

        def run(segment):
            buffer, tangent = self._buffer(segment, self.shape[1]), self._buffer(segment, self.shape[1])
            HW, Hb = np.zeros(self.shape, self._sum_dtype), np.zeros(self.shape[1])
            part = None if _is_sparse(self.X) else np.empty(self.shape, self.dtype)
            with np.errstate(over="ignore", invalid="ignore"):
                for block in segment:
                    start, stop = block.start, block.stop
                    X = self._read(block)
                    Z = _logits(X, W, b, None if buffer is None else buffer[: stop - start])
                    D = _logits(X, V, c, None if buffer is None else tangent[: stop - start])
                    self.rows.hvp(Z, start, stop, D, team.inner_threads)
                    HW += _transposed_product(X, D, part)
                    Hb += D.sum(axis=0, dtype=np.float64)
            return 0.0, HW, Hb

        return _ordered_sum(team.map(run, self.segments))[1:]

    def hessian(self, W, b, team):
        """Hessian of the sum of the losses in W (row by row), then b where there is one: symmetric, float64."""
        W, b = self._parameters(W, b)
        add = self._add_factored if self.rows.factored and not _is_sparse(self.X) else self._add_columns
        size = math.prod(self.shape) + (0 if b is None else self.shape[1])

        def run(segment):
            H = np.zeros((size, size))
            with np.errstate(over="ignore", invalid="ignore"):
                for block in segment:
                    X, rows = self._read(block), block.stop - block.start
                    out = None if _is_sparse(X) else np.empty((rows, self.shape[1]), self.dtype)
                    add(H, X, _logits(X, W, b, out), b is not None, block, team.inner_threads)
            return (H,)

        return _ordered_sum(team.map(run, self.segments))[0]

    def _add_factored(self, H, X, Z, has_bias, block, threads):
        """H += Σ_k M_k - QᵀQ: M_k the moments of the rows weighted with v p_k, Q the rows of √v p ⊗ x."""
        k = self.shape[1]
        self.rows.factor(Z, block.start, block.stop, threads)
        if has_bias:
            X = np.concatenate([X, np.ones((len(X), 1), X.dtype)], axis=1)
        if k == 1:
            X = X * Z
            H += X.T @ X
            return
        weight = self.rows.sample_weight
        root = np.sqrt(Z if weight is None else Z * np.sqrt(weight[block.start : block.stop]))
        for j in range(k):
            R = X * root[:, j : j + 1]
            H[j::k, j::k] += R.T @ R
        Q = (X[:, :, None] * Z[:, None, :]).reshape(len(X), -1)
        H -= Q.T @ Q

    def _add_columns(self, H, X, Z, has_bias, block, threads):
        """H's columns from products of the rows' Hessians with unit vectors: for any loss, and for sparse X."""
        d, k = self.shape
        inner = H[: d * k, : d * k].reshape(d, k, d, k)
        for j in range(k):
            D = np.zeros((X.shape[0], k), self.dtype)
            D[:, j] = 1
            self.rows.hvp(Z, block.start, block.stop, D, threads)
            for i in range(k):
                inner[:, i, :, j] += _weighted_moment(X, D[:, i])
            if has_bias:
                edge = (X.T @ D).ravel()
                H[: d * k, d * k + j] += edge
                H[d * k + j, : d * k] += edge
                H[d * k :, d * k + j] += D.sum(axis=0, dtype=np.float64)

    def curvature(self, W, b, team):
        """Diagonal of the Hessian, (d + 1, K), its last row the intercept's."""
        W, b = self._parameters(W, b)

        def run(segment):
            total = np.zeros((self.shape[0] + 1, self.shape[1]))
            for block in segment:
                X, start, stop = self._read(block), block.start, block.stop
                out = None if _is_sparse(X) else np.empty((stop - start, self.shape[1]), self.dtype)
                each = self._row_curvature(_logits(X, W, b, out), start, stop, team.inner_threads)
                total[:-1] += (X.multiply(X) if _is_sparse(X) else X * X).T @ each
                total[-1] += each.sum(axis=0, dtype=np.float64)
            return (total,)

        return _ordered_sum(team.map(run, self.segments))[0]

    def _row_curvature(self, Z, start, stop, threads):
        """Diagonals of the Hessians of rows with logits Z, which are overwritten: from factors, or column by column."""
        if self.rows.factored:
            self.rows.factor(Z, start, stop, threads)
            if self.shape[1] == 1:
                return Z * Z
            weight = self.rows.sample_weight
            return (1.0 if weight is None else np.sqrt(weight[start:stop])) * Z - Z * Z
        each = np.empty_like(Z)
        for j in range(self.shape[1]):
            D = np.zeros_like(Z)
            D[:, j] = 1
            self.rows.hvp(Z, start, stop, D, threads)
            each[:, j] = D[:, j]
        return each

    def moment(self, team, most_rows=math.inf):
        """Weighted second moments of X and a column of ones: Σ v [x; 1] [x; 1]ᵀ, (d + 1, d + 1), dense X.

        Of at most about `most_rows` rows, evenly spread over X in runs and scaled to all.
        """
        return scaled_moment(*self.moment_sum(max(math.ceil(self.n_rows / most_rows), 1), team))

    def moment_sum(self, every, team):
        """Second moments of one row in `every`, in runs, and the mass of all rows."""
        d, weight = self.X.shape[1], self.rows.sample_weight
        pieces = [(segment[0].start, segment[-1].stop) for segment in self.segments if segment]

        def run(piece):
            start, stop = piece
            stop = max(start + (stop - start) // every, min(start + 1, stop))
            X = self._read(_block(self.X, start, stop))
            if weight is None:
                v, V, mass = None, X, float(len(X))
            else:
                v = np.reshape(weight[start:stop], (-1, 1))
                V, mass = np.sqrt(v) * X, float(v.sum(dtype=np.float64))
            M = np.empty((d + 1, d + 1))
            M[:d, :d] = V.T @ V
            M[:d, d] = M[d, :d] = X.T @ np.ones(len(X), X.dtype) if v is None else (X.T @ v)[:, 0]
            M[d, d] = mass
            return (M,)

        return *_ordered_sum(team.map(run, pieces)), self.mass()

    def mass(self, team=None):
        """Sum of the rows' weights."""
        weight = self.rows.sample_weight
        return float(self.n_rows) if weight is None else float(weight.sum(dtype=np.float64))

    def squares(self, team=None):
        """The diagonal of `moment`, (d + 1,), for any X."""
        n, weight = self.X.shape[0], self.rows.sample_weight
        v = np.ones(n) if weight is None else np.ravel(weight).astype(np.float64)
        total = np.zeros(self.shape[0] + 1)
        total[-1] = v.sum()
        for block in itertools.chain.from_iterable(self.segments):
            X = self._read(block)
            total[:-1] += (X.multiply(X) if _is_sparse(X) else X * X).T @ v[block.start : block.stop]
        return total


class LargeLayer:
    """One pass over dense X with a W of which there is no room for copies: all threads are at one block of rows.

    A block's logits and what goes with them are at most a sixteenth of the logits of 8192 rows or of all of them, or
    four times `_BLOCK_ELEMENTS` where that is more.

    Parameters
    ----------
    X : ndarray (n, d), C or Fortran order, no axis empty, float32 or float64
    W : ndarray (d, K), C or Fortran order, X's dtype
    b : None or ndarray (K,), X's dtype
    rows : SoftmaxRows
    num_threads : int
        0: the default.
    """

    def __init__(self, X, W, b, rows, num_threads):
        (n, d), K = X.shape, W.shape[1]
        self.given, self.rows = (X, W, b), rows
        self.slices = 4 if 32 * d > K else 8 if 64 * d > K else 16
        room = min(max(max(n, 8192) * K // 17, 4 * _BLOCK_ELEMENTS), _LARGE_BLOCK)
        most = max(min(room // (K + (self.slices + 1) * d), 1024) // 6 * 6, 24)
        self.block_rows = -(-n // -(-n // most))
        self.threads = 1 if n * d * K < _SERIAL_WORK else num_threads

    @staticmethod
    def takes(X, W, rows):
        """Whether W is large, and rows, X and W are what the pass can read."""
        in_order = W.flags.c_contiguous or W.flags.f_contiguous
        return W.size >= LARGE_W and rows.fusable and in_order and _reads_in_place(X, W.dtype)

    def run(self, loss_out=None, dX=None, dW=None, db=None):
        """Sum of the losses.

        Parameters
        ----------
        loss_out : None or ndarray (n, 1)
            Takes the losses one by one.
        dX, dW, db : None or ndarray (n, d), (d, K) in the order of W, (K,) of float64, zeroed
            Take the gradients.
        """
        outputs = (loss_out, dX, dW, db)
        return self.rows.in_panels(*self.given, self.block_rows, self.slices, *outputs, self.threads)


def scaled_moment(M, mass):
    """Moments of some rows, scaled to the mass of all; M is overwritten."""
    M *= mass / M[-1, -1] if M[-1, -1] > 0 else 0.0
    return M


def _weighted_moment(X, v):
    """Xᵀ diag(v) X as an array."""
    if _is_sparse(X):
        return (X.T @ X.multiply(v[:, None])).toarray()
    return X.T @ (v[:, None] * X)


def _transposed_product(X, Z, out):
    if _is_sparse(X):
        return X.T @ Z
    return np.matmul(X.T, Z, out=out)


def _ordered_sum(results):
    """Sum, entry by entry, of the segments' tuples, in the segments' order."""
    results = iter(results)
    total = list(next(results))
    for part in results:
        for at, value in enumerate(part):
            total[at] += value
    return tuple(total)


# ------------------------------------------------------------------------------------------- public functions


class _LinearCall:
    """One checked call of the public functions: the objective, its parameters, its unit and its denominator."""

    def __init__(self, X, W, targets, bias, sample_weight, reduction, options, num_threads, backend, check):
        self.X, self.W, self.bias, dtype = _checked_linear(X, W, bias)
        n, n_classes = self.X.shape[0], self.W.shape[1]
        # Checks and denominators read the logits' shape and dtype only, so one number stands for all of them.
        shape_only = np.broadcast_to(np.zeros((), dtype), (n, n_classes))
        given = (targets, sample_weight, reduction, options, num_threads, backend, check)
        self.call = call = SoftmaxCall(shape_only, *given)
        call.totals(first=check)
        scale = call.unit / call.denominator if call.denominator else 0.0
        weights = (call.weight, call.class_weight, call.bias)
        rows = SoftmaxRows(call.core, call.problem.targets, n_classes, *weights, *call.scalars, scale)
        self.loss_out = np.empty((n, 1), dtype) if reduction == "none" else None
        self.layer = None
        W = np.asarray(self.W, dtype)
        W = W if W.flags.f_contiguous else np.ascontiguousarray(W)
        if not _is_sparse(self.X) and LargeLayer.takes(self.X, W, rows):
            b = None if self.bias is None else np.ascontiguousarray(self.bias, dtype)
            self.layer = LargeLayer(self.X, W, b, rows, call.threads)
        else:
            self.objective = LinearObjective(self.X, rows, dtype)
            self.team = Team(self.objective, num_threads)

    def loss(self):
        if self.layer is not None:
            return self.reduced(self.layer.run(self.loss_out))
        with self.team as team:
            return self.reduced(self.objective.loss(self.W, self.bias, team, self.loss_out))

    def loss_grad(self, dX):
        if self.layer is not None:
            dW, db = _memory.empty_like(self.layer.given[1]), np.zeros(self.W.shape[1])
            total = self.layer.run(self.loss_out, dX, dW, None if self.bias is None else db)
        else:
            with self.team as team:
                total, dW, db = self.objective.loss_grad(self.W, self.bias, team, self.loss_out, dX)
        db = None if self.bias is None else db.astype(self.bias.dtype)
        return self.reduced(total), dX, dW.astype(self.W.dtype, copy=False), db

    def reduced(self, total):
        call = self.call
        if self.loss_out is not None:
            each = self.loss_out[:, 0]
            return each if call.unit == 1.0 else each * each.dtype.type(call.unit)
        if call.denominator == 0:
            return 0.0 if call.options.empty == "zero" else math.nan
        return total * call.unit / call.denominator


def _checked_linear(X, W, bias):
    """X (n, d), W (d, K), bias (K,) or None, and the dtype of the arithmetic."""
    if not _is_sparse(X):
        X = _checks.floats(X, "X")
    elif X.format != "csr":
        raise TypeError(f"X: expected a dense array or a sparse one in CSR format, got format {X.format!r}")
    elif X.dtype.kind != "f" or X.dtype.itemsize < 4:
        raise TypeError(f"X: expected float32 or float64 for a sparse X, got dtype {X.dtype}")
    W = _checks.floats(W, "W")
    if X.ndim != 2:
        hint = "; for one row pass X[None]" if X.ndim == 1 else ""
        raise ValueError(f"X: expected shape (n, d), got {X.shape}{hint}")
    if W.ndim != 2 or X.shape[1] != W.shape[0]:
        turned = W.ndim == 2 and X.shape[1] == W.shape[1]
        hint = "; PyTorch and scikit-learn keep a row per class: pass W.T" if turned else ""
        raise ValueError(
            f"W: expected shape (d, n_classes) for X of shape (n, d), got {W.shape} for X {X.shape}{hint}"
        )
    if W.shape[1] == 0:
        raise ValueError(f"W: expected at least one class, got shape {W.shape}")
    wide = np.dtype(np.float64) in (X.dtype, W.dtype)
    dtype = np.dtype(np.float64) if wide else np.dtype(np.float32)
    if bias is not None:
        bias = _checks.floats(bias, "bias")
        if bias.shape != W.shape[1:]:
            raise ValueError(f"bias: expected shape ({W.shape[1]},), one number per class, got {bias.shape}")
    return X, W, bias, dtype


@_checks.answers_in_kind()
def linear_cross_entropy(
    X,
    W,
    targets,
    bias=None,
    *,
    sample_weight=None,
    class_weight=None,
    label_smoothing=0.0,
    smoothing="uniform",
    ignore_index=-100,
    z_loss=0.0,
    temperature=1.0,
    logit_bias=None,
    reduction="mean",
    base=None,
    empty="zero",
    num_threads=None,
    backend=None,
    check=True,
):
    """Softmax cross-entropy of the logits X W + bias, which are never whole in memory.

    The same as ``softmax_cross_entropy(X @ W + bias, targets, ...)``, block of rows by block of rows.

    Parameters
    ----------
    X : array-like or CSR (n_samples, n_features), float32, float64, or float16 computed in float32
        Or an array of CuPy or PyTorch on a CUDA device, all others then too, W and bias in X's dtype (bfloat16 is a
        fourth): the products are that library's, a block's logits are in X's dtype, and a reduced loss is an array of
        no dimensions, for a number would have to be waited for.
    W : array-like (n_features, n_classes)
    targets : integer labels (n_samples,), or soft targets (n_samples, n_classes)
    bias : None or array-like (n_classes,)
    sample_weight, class_weight, label_smoothing, smoothing, ignore_index, z_loss, temperature, logit_bias
    reduction, base, empty, num_threads, backend, check
        As for ``softmax_cross_entropy``.

    Returns
    -------
    float, or ndarray (n_samples,) for ``reduction="none"``

    Raises
    ------
    ValueError, TypeError
        As ``softmax_cross_entropy``; also for shapes of X, W and bias that do not belong together.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> linear_cross_entropy(X, np.eye(2) * np.log(4), [0, 1])
    0.22314355131420976
    """
    options = SoftmaxOptions(
        class_weight,
        label_smoothing,
        smoothing,
        ignore_index,
        z_loss,
        temperature,
        logit_bias,
        -1,
        base,
        empty,
    )
    if _device.is_device(X):
        given = (X, W, targets, bias, sample_weight, reduction, options, backend, check)
        return linear_call(*given, grad=False, need_dx=False)[0]
    call = _LinearCall(X, W, targets, bias, sample_weight, reduction, options, num_threads, backend, check)
    return call.loss()


@_checks.answers_in_kind()
def linear_cross_entropy_with_grad(
    X,
    W,
    targets,
    bias=None,
    *,
    need_dx=True,
    sample_weight=None,
    class_weight=None,
    label_smoothing=0.0,
    smoothing="uniform",
    ignore_index=-100,
    z_loss=0.0,
    temperature=1.0,
    logit_bias=None,
    reduction="mean",
    base=None,
    empty="zero",
    num_threads=None,
    backend=None,
    check=True,
):
    """As ``linear_cross_entropy``, with the gradients in X, W and bias from the same pass.

    Parameters
    ----------
    X, W, targets, bias
        As for ``linear_cross_entropy``.
    need_dx : bool
        False saves the work and the memory of dX; needed for a sparse X, whose dX would be dense.
    sample_weight, class_weight, label_smoothing, smoothing, ignore_index, z_loss, temperature, logit_bias
    reduction, base, empty, num_threads, backend, check
        As for ``softmax_cross_entropy``.

    Returns
    -------
    loss : float, or ndarray (n_samples,) for ``reduction="none"``, whose gradients are those of the sum
    dX : ndarray (n_samples, n_features), X's dtype; None without `need_dx`
    dW : ndarray (n_features, n_classes), W's dtype
    db : ndarray (n_classes,), bias's dtype; None without `bias`

    Raises
    ------
    ValueError, TypeError
        As ``linear_cross_entropy``; also for a sparse X with ``need_dx=True``.

    Examples
    --------
    >>> import numpy as np
    >>> loss, dX, dW, db = linear_cross_entropy_with_grad(np.ones((1, 2)), np.zeros((2, 2)), [0], np.zeros(2))
    >>> loss, dX.tolist(), dW.tolist(), db.tolist()
    (0.6931471805599453, [[0.0, 0.0]], [[-0.5, 0.5], [-0.5, 0.5]], [-0.5, 0.5])
    """
    options = SoftmaxOptions(
        class_weight,
        label_smoothing,
        smoothing,
        ignore_index,
        z_loss,
        temperature,
        logit_bias,
        -1,
        base,
        empty,
    )
    if _device.is_device(X):
        given = (X, W, targets, bias, sample_weight, reduction, options, backend, check)
        return linear_call(*given, grad=True, need_dx=need_dx)
    call = _LinearCall(X, W, targets, bias, sample_weight, reduction, options, num_threads, backend, check)
    if need_dx and _is_sparse(call.X):
        raise ValueError("need_dx: expected False for a sparse X, whose gradient would be dense, got True")
    dX = _memory.empty(call.X.shape, call.X.dtype) if need_dx else None
    return call.loss_grad(dX)
