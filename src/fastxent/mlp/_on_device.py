"""A mini-batch step on a CUDA device: `_training.NumpyStep` with CuPy's arrays and products and the CUDA kernels.

Rows, targets, weights and the optimizer's state stay on the device.  Steps are queued without a look at their losses,
which come back as numbers some dozens at a time; weights and state come back when an epoch ends, or is broken off.
"""

from __future__ import annotations

import copy
import importlib
import math
import time

import numpy as np

from .. import _backend, _device
from ._objectives import Sigmoid, Softmax

_AHEAD = 64  # steps that may be queued before their losses are looked at


def _sigmoid(xp, z):
    return 1 / (1 + xp.exp(-z))


def _gelu(xp, z):
    cdf = importlib.import_module("cupyx.scipy.special").ndtr(z)
    return z * cdf, cdf + z * xp.exp(-0.5 * (z * z)) * (1 / math.sqrt(2 * math.pi))


def _silu(xp, z):
    s = _sigmoid(xp, z)
    return z * s, s * (1 + z * (1 - s))


def _logistic(xp, z):
    a = _sigmoid(xp, z)
    return a, a * (1 - a)


def _tanh(xp, z):
    a = xp.tanh(z)
    return a, 1 - a * a


# (xp, z) -> the activation and its derivative
ACTIVATIONS = {
    "identity": lambda xp, z: (z, None),
    "logistic": _logistic,
    "tanh": _tanh,
    "relu": lambda xp, z: (xp.maximum(z, 0), z > 0),
    "gelu": _gelu,
    "silu": _silu,
}


class DeviceStep:
    """`NumpyStep` on a CUDA device: the same arguments, the same numbers but for rounding.

    Parameters
    ----------
    xp : None or module
        CuPy, or what stands for it.

    Raises
    ------
    ImportError
        Without CuPy, a GPU or numba-cuda; the message says what to install.
    """

    def __init__(
        self,
        network,
        objective,
        optimizer,
        X,
        y,
        v,
        batch_size,
        alpha,
        clip_norm=None,
        dropout=None,
        *,
        xp=None,
    ):
        self._launch = _backend.choose("cuda").launch
        self._xp = xp = _device.cupy() if xp is None else xp
        if not isinstance(X, np.ndarray):
            raise ValueError("X: expected a dense array with backend='cuda', got a sparse one.")
        self._host, self._optimizer, self._objective = network, optimizer, objective
        self._alpha, self._batch_size = float(alpha), batch_size
        self._clip_norm, self._dropout = clip_norm, dropout
        self._network = copy.copy(network)
        self._network.params = params = xp.asarray(network.params)
        self._coefs, self._intercepts = network.split(params)
        self._grad = xp.empty_like(params)
        self._grads = network.split(self._grad)
        self._state = [xp.asarray(each) for each in optimizer.state]
        scratch, n = xp.empty_like(params), network.n_coefs
        arrays = (scratch, params, self._grad, *self._state)
        self._blocks = [
            (True, *(each[:n] for each in arrays)),
            (False, *(each[n:] for each in arrays)),
        ]
        self._X, self._y, self._v = xp.asarray(X), xp.asarray(y), v
        self._device_v = None if v is None else xp.asarray(v)
        self._library = _device.library_of(self._X)[0]
        self._rows = self._order = None

    def _forward(self, x):
        """Logits; inputs, derivatives and kept shares of the layers stay for `_backward`."""
        xp, dropout = self._xp, self._dropout
        self._inputs, self._slopes, self._kept = [x], [], []
        for layer, (coef, intercept) in enumerate(zip(self._coefs, self._intercepts, strict=True)):
            z = self._inputs[-1] @ coef
            z += intercept
            if layer == len(self._coefs) - 1:
                return z
            a, slope = ACTIVATIONS[self._network.activation](xp, z)
            kept = None if dropout is None else dropout.mask(a.shape, a.dtype, xp)
            self._inputs.append(a if kept is None else a * kept)
            self._slopes.append(slope)
            self._kept.append(kept)

    def _backward(self, delta):
        """Gradients of all weights, from the logits'."""
        coef_grads, intercept_grads = self._grads
        for layer in range(len(self._coefs) - 1, -1, -1):
            self._xp.matmul(self._inputs[layer].T, delta, out=coef_grads[layer])
            intercept_grads[layer][...] = delta.sum(axis=0)
            if layer:
                delta = delta @ self._coefs[layer].T
                for factor in (self._kept[layer - 1], self._slopes[layer - 1]):
                    if factor is not None:
                        delta *= factor

    def _queue_loss(self, context, z, y, v, mass, out):
        """Queue the loss's gradient over the mass into z, and the sum of the losses into `out`."""
        library, launch, objective = self._library, self._launch, self._objective
        if isinstance(objective, Softmax):
            logits = _device.laid_out(library, z, 1, 2)
            cut = (1,) if y.ndim == 1 else (1, 2)
            weight = None if v is None else _device.laid_out(library, v, 1)
            partials = launch.softmax_launch(
                context, logits, _device.laid_out(library, y, *cut), weight, None, None,
                objective.label_smoothing, False, None, 0.0, 1.0, 1 / mass, None, None, None, logits, None,
            )  # fmt: skip
        elif isinstance(objective, Sigmoid):
            given = (None if v is None else v[:, None], objective.pos_weight)
            wide = (
                None if a is None else library.broadcast(library.given(a, "", z.dtype.name), z.shape)
                for a in given
            )
            logits, y, weight, positive = _device.elements(library, (z, y, *wide), z.shape)
            partials = launch.sigmoid(
                context,
                logits,
                y,
                weight,
                positive,
                objective.label_smoothing,
                1 / mass,
                None,
                None,
                logits,
                None,
            )
        else:
            # A loss object: the mean's gradient is what it answers with.
            total = objective(z, y, v, mass, 1 / mass)
            out[...] = total
            return
        launch.combine(context, partials, library.buffer(out), 1.0, None, 0.0)

    def _queue(self, context, rows, mass, out):
        """Queue a step; its objective times its mass goes into `out`."""
        xp, optimizer = self._xp, self._optimizer
        y, v = self._y[rows], None if self._v is None else self._device_v[rows]
        z = self._forward(self._X[rows])
        self._queue_loss(context, z, y, v, mass, out)
        shrink, coefs = self._alpha, self._network.params[: self._network.n_coefs]
        if not optimizer.decoupled:
            shrink = self._alpha / mass
            out += 0.5 * self._alpha * xp.dot(coefs, coefs)
        self._backward(z)
        if self._clip_norm is not None:
            if not optimizer.decoupled:
                self._grad[: len(coefs)] += shrink * coefs
                shrink = 0.0
            wide = self._grad.astype("float64")
            norm = xp.sqrt(xp.dot(wide, wide))
            self._grad *= xp.minimum(1.0, self._clip_norm / xp.maximum(norm, 1e-300)).astype(self._grad.dtype)
        optimizer.update(self._blocks, shrink)

    def run(self, order, start, seconds):
        """`NumpyStep.run`; where a loss is not finite, the weights in memory are those of the last whole epoch."""
        if order is not self._order:
            self._order, self._rows = order, self._xp.asarray(order)
        until = time.perf_counter() + seconds
        context, losses = self._library.context(), self._xp.zeros((_AHEAD,), dtype="float64")
        masses, begin = [], start
        try:
            while (
                start < len(order) and len(masses) < _AHEAD and (not masses or time.perf_counter() <= until)
            ):
                rows = slice(start, start + self._batch_size)
                chosen = order[rows]
                mass = float(len(chosen)) if self._v is None else float(self._v[chosen].sum(dtype=np.float64))
                step = len(masses)
                self._queue(context, self._rows[rows], mass, losses[step : step + 1])
                masses.append(mass)
                start += len(chosen)
            found = losses.get()[: len(masses)]
        except BaseException:  # an interrupt leaves the steps so far behind
            self._bring_back()
            raise
        wrong = np.flatnonzero(~np.isfinite(found))
        if len(wrong):
            at = int(wrong[0])
            done = begin + at * self._batch_size
            return at + 1, done, float(found[:at].sum()), sum(masses[:at]), float(found[at])
        if start >= len(order):
            self._bring_back()
        return len(masses), start, float(found.sum()), sum(masses), float(found[-1])

    def _bring_back(self):
        self._host.params[...] = self._network.params.get()
        for state, here in zip(self._optimizer.state, self._state, strict=True):
            state[...] = here.get()
