"""The objective of logistic regression on a CUDA device: `linear.LinearObjective` with CuPy's arrays and products.

X, targets and weights are copied to the device once; W, its gradient and all vectors of the solver live there. What
crosses per evaluation are the value, and the solver's inner products.
"""

import itertools
import math

import numpy as np

from . import _backend, _device
from ._linear_on_device import LinearPass
from .losses import Loss
from .losses._on_device import DeviceSoftmaxCall
from .losses._softmax import SoftmaxOptions, check_softmax_options

__all__ = ["DeviceObjective"]


class DeviceObjective:
    """The sum of rows' losses at X W + b on the device, for `_penalized.Problem`.

    Parameters
    ----------
    X : ndarray (n, d), float32 or float64
    targets : ndarray (n,) of class numbers, or (n, n_classes) of probabilities
    n_classes : int
        With 2 there is one logit z per row, which stands for the pair (0, z).
    sample_weight : None or ndarray (n,)
    label_smoothing : float
    loss : None or loss object
        None is cross-entropy.
    xp : None or module
        CuPy, or what stands for it.

    Raises
    ------
    ImportError
        Without CuPy, a GPU or numba-cuda; the message says what to install.
    """

    work, segments = 0, ()  # for `linear.Team`: nothing here is a thread's

    def __init__(self, X, targets, n_classes, sample_weight=None, label_smoothing=0.0, loss=None, xp=None):
        self.launch = _backend.choose("cuda").launch
        self.xp = xp = _device.cupy() if xp is None else xp
        if not isinstance(X, np.ndarray):
            raise ValueError("X: expected a dense array with backend='cuda', got a sparse one")
        self.X, self.dtype = xp.asarray(X), X.dtype
        self.weight = None if sample_weight is None else xp.asarray(sample_weight, dtype=X.dtype)
        self.targets = xp.asarray(targets)
        self.shape = X.shape[1], 1 if n_classes == 2 else n_classes
        self.n_rows, self.is_sparse, self.shift_free = X.shape[0], False, loss is None and n_classes > 2
        self.library = library = _device.library_of(self.X)[0]
        self.context = library.context()
        if loss is not None:
            self._loss, queue = loss, self._queue_loss
        elif n_classes == 2:
            positive = self.targets[:, 1] if self.targets.ndim == 2 else self.targets
            self._positive, self._smoothing = library.cast(positive, X.dtype.name), label_smoothing
            queue = self._queue_sigmoid
        else:
            options = SoftmaxOptions(None, label_smoothing, "uniform", None, 0.0, 1.0, None, -1, None, "zero")
            shape_only = library.broadcast(library.zeros((1, 1), X.dtype.name), (len(X), n_classes))
            call = DeviceSoftmaxCall(
                shape_only, self.targets, self.weight, "sum", options, None, "cuda", False,
                scalars=check_softmax_options(options),
            )  # fmt: skip
            queue = call.on_blocks(self.context, 1.0, None)
        self.sweep = LinearPass(library, self.X, self.shape[1], queue)

    def _queue_sigmoid(self, Z, start, stop, sum_out, loss_out, grad):
        weight = None if self.weight is None else self.weight[start:stop]
        arrays = (Z[:, 0], self._positive[start:stop], weight)
        z, y, v = _device.elements(self.library, arrays, (stop - start,))
        partials = self.launch.sigmoid(
            self.context, z, y, v, None, self._smoothing, 1.0, None, None, z if grad else None, None
        )
        self.launch.combine(self.context, partials, self.library.buffer(sum_out), 1.0, None, 0.0)

    def _queue_loss(self, Z, start, stop, sum_out, loss_out, grad):
        weight = None if self.weight is None else self.weight[start:stop]
        wide = self.xp.concatenate([self.xp.zeros_like(Z), Z], axis=1) if self.shape[1] == 1 else Z
        options = {"sample_weight": weight, "reduction": "sum"}
        if isinstance(self._loss, Loss):
            options["check"] = False  # the targets were checked once, in fit
        total, slope = self._loss.loss_grad(wide, self.targets[start:stop], **options)
        sum_out[...] = total
        if grad:
            Z[...] = slope[:, -self.shape[1] :]

    def place(self, array):
        """An array in memory, on the device."""
        return self.xp.asarray(array)

    def loss_grad(self, W, b, team):
        """Sum of the losses, a float; its gradient dW (d, K) and db (K,) on the device."""
        W, b = (None if a is None else self.library.cast(a, self.dtype.name) for a in (W, b))
        sums, dW, db = self.sweep.run(W, b)
        return float(sums.sum()), dW, db

    def moment(self, team, most_rows=math.inf):
        """`LinearObjective.moment`, in memory, from rows that are evenly spread over X."""
        every = max(math.ceil(len(self.X) / most_rows), 1)
        V, (d, _) = self.X[::every], self.shape
        v = None if self.weight is None else self.xp.sqrt(self.weight[::every])[:, None]
        if v is not None:
            V = V * v
        M = np.empty((d + 1, d + 1))
        M[:d, :d] = (V.T @ V).get()
        M[:d, d] = M[d, :d] = (V if v is None else V * v).sum(axis=0).get()
        M[d, d] = len(V) if v is None else float((v * v).sum())
        mass = len(self.X) if v is None else float(self.weight.sum(dtype="float64"))
        M *= mass / M[d, d] if M[d, d] > 0 else 0.0
        return M

    def squares(self):
        """The diagonal of `moment`, in memory, from all rows."""
        n, (d, _) = len(self.X), self.shape
        v = self.xp.ones((n,), dtype=self.dtype) if self.weight is None else self.weight
        total = np.zeros(d + 1)
        total[d] = float(v.sum(dtype="float64"))
        step = max(1, (1 << 24) // max(d, 1))
        for start, stop in itertools.pairwise([*range(0, n, step), n]):
            total[:d] += (self.xp.square(self.X[start:stop]).T @ v[start:stop]).get()
        return total
