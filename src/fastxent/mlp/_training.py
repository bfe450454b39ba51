"""One mini-batch step, in NumPy and in compiled code, and the objective over all rows."""

from __future__ import annotations

import math
import time

import numpy as np

from .. import _backend
from ._network import Pass
from ._objectives import Sigmoid, Softmax

try:
    from .. import _step
except ImportError:  # without the extensions there is the NumPy step
    _step = None


class NumpyStep:
    """A mini-batch step as one reads it: gather rows, forward, loss and its gradient, backward, update.

    Everything a step needs is bound here once; a call gets row numbers only.

    Parameters
    ----------
    network : Network
    objective : callable
        See `_objectives`.
    optimizer : Optimizer
    X : ndarray or CSR of shape (n_samples, n_features)
    y : ndarray of shape (n_samples,) labels, or (n_samples, n_outputs) indicators
    v : None or ndarray of shape (n_samples,)
        Row weights.
    batch_size : int
    alpha : float
    clip_norm : None or float
        Longest gradient of the batch's objective, all weights together; a longer one is scaled down (Pascanu et al.,
        On the difficulty of training recurrent neural networks, 2013).
    dropout : None or Dropout
    """

    def __init__(
        self, network, objective, optimizer, X, y, v, batch_size, alpha, clip_norm=None, dropout=None
    ):
        self._objective, self._optimizer, self._alpha = objective, optimizer, float(alpha)
        self._X, self._y, self._v = X, y, v
        self._batch_size, self._clip_norm = batch_size, clip_norm
        self._pass = Pass(network, batch_size, gradients=True, dropout=dropout)
        self._grad = np.empty_like(network.params)
        self._coef_grads, self._intercept_grads = network.split(self._grad)
        self._penalized = network.params[: network.n_coefs]
        self._blocks = optimizer.blocks(network.params, self._grad, network.n_coefs)

    def _gradient(self, rows):
        """Fill the gradient of the batch's mean loss; the loss times the batch's mass, and that mass."""
        x, y, v = self._X[rows], self._y[rows], None if self._v is None else self._v[rows]
        mass = float(len(rows)) if v is None else float(v.sum(dtype=np.float64))
        z = self._pass.forward(x)
        loss = self._objective(z, y, v, mass, 1 / mass)
        if math.isfinite(loss):
            self._pass.backward(x, z, self._coef_grads, self._intercept_grads)
        return loss, mass

    def _step(self, rows):
        """The batch's objective times its mass, before the update; its mass, the sum of its row weights."""
        loss, mass = self._gradient(rows)
        if not math.isfinite(loss):
            return loss, mass
        if self._optimizer.decoupled:
            shrink = self._alpha
        else:
            shrink = self._alpha / mass
            loss += 0.5 * self._alpha * float(np.dot(self._penalized, self._penalized))
        if self._clip_norm is not None:
            shrink = self._clip(shrink)
        self._optimizer.update(self._blocks, shrink)
        return loss, mass

    def _clip(self, shrink):
        """Scale the gradient down; returns the share of the penalty that is not in it yet."""
        if not self._optimizer.decoupled:
            self._grad[: len(self._penalized)] += shrink * self._penalized
            shrink = 0.0
        norm = float(np.linalg.norm(self._grad.astype(np.float64)))
        if norm > self._clip_norm:
            self._grad *= self._clip_norm / norm
        return shrink

    def run(self, order, start, seconds):
        """Steps over the rows ``order[start:]`` until they, or so many seconds, are used up.

        Parameters
        ----------
        order : ndarray of shape (n,), intp
            Numbers of rows.
        start : int
            Place in `order` of the first batch.
        seconds : float

        Returns
        -------
        steps : int
            Steps made; where the last one's loss is not finite, it has changed no weight.
        start : int
            Where to go on.
        total, mass : float
            Sums over the finite steps: of the objective times the batch's mass, and of the masses.
        last : float
            Loss of the last step.
        """
        steps, total, mass, last, until = 0, 0.0, 0.0, 0.0, time.perf_counter() + seconds
        while start < len(order):
            rows = order[start : start + self._batch_size]
            last, weight = self._step(rows)
            steps, start = steps + 1, start + len(rows)
            if not math.isfinite(last):
                break
            total, mass = total + last, mass + weight
            if time.perf_counter() > until:
                break
        return steps, start, total, mass, last


class CompiledStep:
    """`NumpyStep` in compiled code, many steps per call: the same arguments, the same numbers but for rounding.

    Parameters
    ----------
    num_threads : int
        0: the default.
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
        num_threads=0,
    ):
        self._optimizer, self._dropout = optimizer, dropout
        softmax, known = isinstance(objective, Softmax), isinstance(objective, (Softmax, Sigmoid))
        pos_weight = getattr(objective, "pos_weight", None)
        self._step = _step.Step(
            network.units, network.activation, network.params, optimizer.state,
            X, np.ascontiguousarray(y, np.intp if y.ndim == 1 else None), v, batch_size,
            softmax, objective.label_smoothing if known else 0.0, pos_weight, None if known else objective,
            optimizer.kind, optimizer.momentum, optimizer.nesterov,
            optimizer.beta_1, optimizer.beta_2, optimizer.epsilon, float(alpha), clip_norm or 0.0,
            0.0 if dropout is None else dropout.rate, 0 if dropout is None else dropout.seed,
            0 if dropout is None else dropout.drawn, optimizer.t, num_threads,
        )  # fmt: skip

    def run(self, order, start, seconds):
        """`NumpyStep.run`."""
        try:
            return self._step.run(order, start, self._optimizer.learning_rate, seconds)
        finally:  # an interrupt from within a loss leaves whole steps behind
            self._optimizer.t = self._step.t
            if self._dropout is not None:
                self._dropout.drawn = self._step.drawn


def training_step(kernels, *args, num_threads):
    """The step of a layer-0 module: compiled beside compiled kernels, on the device beside CUDA's, or in NumPy."""
    if hasattr(kernels, "launch"):
        from ._on_device import DeviceStep

        return DeviceStep(*args)
    if _step is not None and kernels is _backend._core:
        return CompiledStep(*args, num_threads=num_threads)
    return NumpyStep(*args)


class FullObjective:
    """Objective and gradient over all rows, block of rows by block of rows, summed in float64.

    Parameters
    ----------
    network, objective, X, y, v, alpha
        As for `NumpyStep`.
    mass : None or float
        What the sums are divided by; None is the mass of the rows.
    """

    def __init__(self, network, objective, X, y, v, alpha, mass=None):
        n_samples = X.shape[0]
        self._network, self._objective, self._alpha = network, objective, float(alpha)
        self._X, self._y, self._v = X, y, v
        self._rows = network.rows_per_block(n_samples) if objective.rows_are_separate else n_samples
        self._pass = Pass(network, self._rows, gradients=True)
        self._part = np.empty_like(network.params)
        if mass is None:
            mass = float(n_samples) if v is None else float(v.sum(dtype=np.float64))
        self._mass = mass
        self.calls = 0

    def value_and_grad(self, w):
        """Objective and gradient at the float64 vector w (n_params,)."""
        self.calls += 1
        network, part = self._network, self._part
        network.params[...] = w
        coef_grads, intercept_grads = network.split(part)
        shrink = self._alpha / self._mass
        coefs = network.params[: network.n_coefs]
        loss = 0.5 * self._alpha * float(np.dot(coefs, coefs))
        grad = np.zeros(len(part))
        np.multiply(coefs, shrink, out=grad[: network.n_coefs])
        for start in range(0, self._X.shape[0], self._rows):
            block = slice(start, start + self._rows)
            x, v = self._X[block], None if self._v is None else self._v[block]
            z = self._pass.forward(x)
            mass = float(len(z)) if v is None else float(v.sum(dtype=np.float64))
            loss += self._objective(z, self._y[block], v, mass, 1 / self._mass)
            self._pass.backward(x, z, coef_grads, intercept_grads)
            grad += part
        return loss / self._mass, grad
