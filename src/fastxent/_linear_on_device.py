"""`linear` for arrays of a CUDA device: the same pass by row blocks, the products by the caller's library.

A block's logits take a sixteenth of all logits at most; the row kernel replaces them by their gradient, and the block's
part of dW is added where dW lies, by columns where the library has no product that adds. So the memory beyond the
results is an eighth of the logits at most, from 32768 classes and 256 rows on. 16-bit numbers are multiplied as such
(sums in float32, by the GPU's own products) and their dW is summed in float32 where that fits into a 64th of the
logits. float16 holds no gradient of a mean of many rows: there the factor comes after the products.
"""

import math

from . import _device
from .losses._on_device import DeviceSoftmaxCall
from .losses._softmax import check_softmax_options

__all__ = ["LinearCall", "LinearPass", "block_rows", "linear_call"]

_SHARE = 16
_FEWEST = 1 << 19  # numbers of a block, even where that is more than its share
_MOST = 1 << 28


def block_rows(n_rows, n_outputs):
    """Rows of a block, from the shape alone.

    >>> block_rows(8192, 131072), block_rows(100, 10)
    (512, 100)
    """
    wanted = max(-(-n_rows // _SHARE), _FEWEST // n_outputs)
    return max(1, min(wanted, _MOST // n_outputs, n_rows))


class LinearPass:
    """Losses of rows whose logits are X W + b, and gradients, block by block; nothing waits for the device.

    Parameters
    ----------
    library : `_device.Library`
    X : device array (n, d)
    n_outputs : int
    queue : callable
        (logits of the block, start, stop, sum_out, loss_out, grad) queues the kernel that leaves the sum of the losses
        in the float64 `sum_out[0]`, those of the rows in `loss_out` if that is given, and the gradient in the logits.
    """

    def __init__(self, library, X, n_outputs, queue):
        self.library, self.X, self.n_outputs, self.queue = library, X, n_outputs, queue
        self.dtype = library.dtype(X)
        self.rows = block_rows(X.shape[0], n_outputs)
        self.starts = range(0, X.shape[0], self.rows)

    def run(self, W, b, loss_out=None, grad=True, dX_out=None, factor=None):
        """(sums of the blocks' losses, dW, db); None for the last two without `grad`.

        `factor`: a number on the device that the gradients are multiplied by after the products.
        """
        library, X, dtype = self.library, self.X, self.dtype
        (n, d), k, rows = X.shape, self.n_outputs, self.rows
        compute = _device.compute_dtype(dtype)
        buffer = library.empty((min(rows, n), k), dtype)
        sums = library.zeros((len(self.starts),), "float64")
        dW = db = None
        if grad:
            make = library.empty if n else library.zeros  # the first block fills it
            dW = make((d, k), compute if 128 * d <= n else dtype)
            db = library.zeros((k,), compute)
        for i, start in enumerate(self.starts):
            stop = min(start + rows, n)
            part, Z = X[start:stop], buffer[: stop - start]
            library.matmul(part, W, Z)
            if b is not None:
                Z += b
            each = None if loss_out is None else loss_out[start:stop]
            self.queue(Z, start, stop, sums[i : i + 1], each, grad)
            if not grad:
                continue
            self._add_product(dW, part.T, Z, factor, first=start == 0)
            db += library.summed(Z, compute)
            if dX_out is not None and factor is None:
                library.matmul(Z, W.T, dX_out[start:stop])
            elif dX_out is not None:
                dX_out[start:stop] = library.cast(Z @ W.T, compute) * factor
        if factor is not None and grad:
            db *= factor
        return sums, dW, db

    def _add_product(self, out, a, b, factor, first):
        """out += a b, or = for the first, times a factor; in columns that take two thirds of the block's memory."""
        library = self.library
        if factor is None and library.dtype(out) == self.dtype and (first or library.adds_products):
            (library.matmul if first else library.add_product)(a, b, out)
            return
        share = 2 if factor is None else 8  # then they are also in float32, twice
        columns = max(1, self.rows * self.n_outputs // share // max(a.shape[0], 1))
        for start in range(0, self.n_outputs, columns):
            part, to = a @ b[:, start : start + columns], out[:, start : start + columns]
            if factor is not None:
                part = library.cast(part, "float32") * factor
            if first:
                to[...] = part
            else:
                to += part


class LinearCall:
    """One checked call of the public functions on device arrays."""

    def __init__(self, X, W, targets, bias, sample_weight, reduction, options, backend, check):
        self.library, X = _device.library_of(X, "X")
        library = self.library
        if not library.multiplies:
            raise TypeError(
                f"X: expected an array of CuPy or PyTorch, whose products are used, got {type(X).__name__}"
            )
        dtype = _device.real_dtype(library, X, "X")
        self.X = library.given(X, "X", dtype)
        self.W, self.bias = self._like(W, "W"), None if bias is None else self._like(bias, "bias")
        if X.ndim != 2 or self.W.ndim != 2 or X.shape[1] != self.W.shape[0]:
            raise ValueError(
                f"W: expected shape (d, n_classes) for X of shape (n, d), got {tuple(W.shape)} for X {tuple(X.shape)}"
            )
        n, n_classes = X.shape[0], self.W.shape[1]
        if bias is not None and tuple(self.bias.shape) != (n_classes,):
            raise ValueError(
                f"bias: expected shape ({n_classes},), one number per class, got {tuple(bias.shape)}"
            )
        # Checks and denominators read the logits' shape and dtype only, so one number stands for all of them.
        shape_only = library.broadcast(library.zeros((1, 1), dtype), (n, n_classes))
        self.call = DeviceSoftmaxCall(
            shape_only, targets, sample_weight, reduction, options, None, backend, check,
            scalars=check_softmax_options(options),
        )  # fmt: skip
        self.n_classes = n_classes

    def _like(self, x, name):
        library, dtype = self.library, self.library.dtype(self.X)
        if not _device.is_device(x):
            raise TypeError(f"{name}: expected an array on the device, as X, got {type(x).__name__}")
        if library.dtype(x) != dtype:
            raise TypeError(f"{name}: expected X's dtype, {dtype}, got {library.dtype(x)}")
        return library.given(x, name, dtype)

    def run(self, grad, need_dx, upstream=None):
        """Loss, dX, dW, db; None for the last three without `grad`.

        `upstream`, an array of no dimensions on the device, multiplies the gradients.
        """
        call, library, X = self.call, self.library, self.X
        context, flag = library.context(), call.flag()
        total, known = call.denominator(context, call.buffer(flag))
        divided, factor = call.upstream(total, known, upstream)
        after = None
        if grad and library.dtype(X) == "float16":
            # A denominator of 0 belongs to gradients of 0.
            below = 1.0 if divided is None else divided.owner + (divided.owner == 0)
            after = library.cast(library.divided(factor * call.unit, below), "float32")
            divided, factor = None, 1.0 / call.unit
        per_row = library.empty((X.shape[0],), call.dtype) if call.reduction == "none" else None
        queue = call.on_blocks(context, call.unit * factor, divided)
        dX = library.empty_like(X) if grad and need_dx else None
        sums, dW, db = LinearPass(library, X, self.n_classes, queue).run(
            self.W, self.bias, per_row, grad, dX, after
        )
        if call.check:
            call.refuse(flag, X.shape[0])
        if per_row is None:
            empty = 0.0 if call.options.empty == "zero" else math.nan
            loss = call.reduced(context, library.buffer(sums), total, known, empty)
        else:
            loss = per_row if call.unit == 1.0 else per_row * call.unit
        if grad:
            dtype = library.dtype(X)
            dW = library.cast(dW, dtype)
            db = None if self.bias is None else library.cast(db, dtype)
        return loss, dX, dW, db


def linear_call(X, W, targets, bias, sample_weight, reduction, options, backend, check, *, grad, need_dx):
    """`linear_cross_entropy` (`grad=False`) and `linear_cross_entropy_with_grad` on device arrays."""
    given = (X, W, targets, bias, sample_weight, reduction, options, backend, check)
    return LinearCall(*given).run(grad, need_dx)
