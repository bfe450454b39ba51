"""Weights of a network in one flat buffer, and its forward and backward passes in NumPy."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from scipy.special import expit, ndtr

# Elements of all layers' activations in one block of rows of a full pass (16 MiB in float32).
_PASS_ELEMENTS = 1 << 22


# forward(z, slope) replaces z by its activation; gelu and silu, whose derivative needs z, also fill slope
# where it is not None.  backward(delta, a, slope) multiplies delta by the derivative; slope is scratch for
# the others.


def _identity(z, slope):
    pass


def _identity_backward(delta, a, slope):
    pass


def _logistic(z, slope):
    expit(z, out=z)


def _logistic_backward(delta, a, slope):
    np.subtract(1, a, out=slope)
    slope *= a
    delta *= slope


def _tanh(z, slope):
    np.tanh(z, out=z)


def _tanh_backward(delta, a, slope):
    np.multiply(a, a, out=slope)
    np.subtract(1, slope, out=slope)
    delta *= slope


def _relu(z, slope):
    np.maximum(z, 0, out=z)


def _relu_backward(delta, a, slope):
    np.sign(a, out=slope)  # a >= 0: 0 or 1, and NaN stays NaN
    delta *= slope


def _gelu(z, slope):
    """z Phi(z), with slope Phi(z) + z phi(z) (Hendrycks and Gimpel, Gaussian error linear units, 2016)."""
    cdf = ndtr(z)
    if slope is not None:
        np.multiply(z, z, out=slope)
        slope *= -0.5
        np.exp(slope, out=slope)
        slope *= 1 / math.sqrt(2 * math.pi)
        slope *= z
        slope += cdf
    z *= cdf


def _silu(z, slope):
    """z sigma(z), with slope sigma(z) (1 + z sigma(-z))."""
    s = expit(z)
    if slope is not None:
        np.negative(z, out=slope)
        expit(slope, out=slope)
        slope *= z
        slope += 1
        slope *= s
    z *= s


def _slope_backward(delta, a, slope):
    delta *= slope


ACTIVATIONS = {
    "identity": (_identity, _identity_backward),
    "logistic": (_logistic, _logistic_backward),
    "tanh": (_tanh, _tanh_backward),
    "relu": (_relu, _relu_backward),
    "gelu": (_gelu, _slope_backward),
    "silu": (_silu, _slope_backward),
}


class Dropout:
    """Which hidden activations a training step leaves out; the others are scaled by 1 / (1 - rate).

    Srivastava et al., Dropout, 2014. Number i of a stream of SplitMix64 (Steele, Lea and Flood, 2014) belongs to entry
    i of all masks, batch by batch, layer by layer, row by row: whoever computes an entry can draw it.

    Parameters
    ----------
    rate : float
        Share that is left out.
    seed : int
        Of the stream, less than 2^64.
    """

    def __init__(self, rate, seed):
        self.rate, self.seed, self.drawn = rate, seed, 0

    def mask(self, shape, dtype, xp=np):
        """Factors of the next shape[0] x shape[1] activations: 0 or 1 / (1 - rate), as an array of the module xp.

        Examples
        --------
        >>> Dropout(0.5, seed=0).mask((2, 3), np.float64)
        array([[2., 0., 0.],
               [2., 0., 0.]])
        """
        count = shape[0] * shape[1]
        first, self.drawn = self.drawn + 1, self.drawn + count
        z = xp.arange(first, first + count, dtype=np.uint64)
        z *= np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64(self.seed)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        kept = z >> np.uint64(11) >= np.uint64(self.rate * 2**53)
        return xp.multiply(kept, 1 / (1 - self.rate), dtype=dtype).reshape(shape)


class Network:
    """Weights of every layer in one flat buffer.

    Parameters
    ----------
    units : sequence of int
        Width of every layer, from the features to the logits.
    activation : str
        Of the hidden layers.
    dtype : float32 or float64
    """

    def __init__(self, units, activation, dtype):
        self.units = tuple(units)
        self.activation = activation
        self.n_coefs = sum(above * below for below, above in pairwise(self.units))
        self.params = np.empty(self.n_coefs + sum(self.units[1:]), dtype)
        self.coefs, self.intercepts = self.split(self.params)

    def split(self, flat):
        """Views of a flat buffer: lists of (fan_in, fan_out) coefficients and of (fan_out,) intercepts."""
        coefs, intercepts, at = [], [], 0
        for fan_in, fan_out in pairwise(self.units):
            coefs.append(flat[at : at + fan_in * fan_out].reshape(fan_in, fan_out))
            at += fan_in * fan_out
        for fan_out in self.units[1:]:
            intercepts.append(flat[at : at + fan_out])
            at += fan_out
        return coefs, intercepts

    def initialize(self, random_state):
        """Draw all weights uniformly (Glorot and Bengio, 2010), in scikit-learn's order of draws."""
        factor = 2.0 if self.activation == "logistic" else 6.0
        for coef, intercept in zip(self.coefs, self.intercepts, strict=True):
            bound = math.sqrt(factor / sum(coef.shape))
            coef[...] = random_state.uniform(-bound, bound, coef.shape)
            intercept[...] = random_state.uniform(-bound, bound, intercept.shape)

    def copy_from(self, coefs, intercepts):
        """Fill the buffer with weights that lie elsewhere."""
        for view, values in zip(self.coefs + self.intercepts, coefs + intercepts, strict=True):
            view[...] = values

    def rows_per_block(self, n_samples):
        """Rows of one block of a pass over all samples."""
        return max(1, min(n_samples, max(256, _PASS_ELEMENTS // sum(self.units))))


class Pass:
    """Forward and backward over at most `rows` rows, in buffers allocated once.

    Parameters
    ----------
    network : Network
    rows : int
    gradients : bool
        Whether `backward` will be called.
    dropout : None or Dropout
    """

    def __init__(self, network, rows, *, gradients=False, dropout=None):
        dtype, hidden = network.params.dtype, network.units[1:-1]
        self._network = network
        self._activate, self._derive = ACTIVATIONS[network.activation]
        self._values = [np.empty((rows, width), dtype) for width in network.units[1:]]
        self._slopes = [np.empty((rows, width), dtype) for width in hidden] if gradients else None
        self._deltas = [np.empty((rows, width), dtype) for width in hidden] if gradients else None
        self._dropout = dropout
        self._keep = self._dropped = None
        if dropout is not None:
            self._keep = [None for _ in hidden]
            self._dropped = [np.empty((rows, width), dtype) for width in hidden]

    def forward(self, X):
        """Logits of the rows of X, in a buffer that the next call overwrites."""
        rows, last = X.shape[0], len(self._values) - 1
        inputs = X
        for layer, z in enumerate(self._values):
            z = z[:rows]
            coef = self._network.coefs[layer]
            if isinstance(inputs, np.ndarray):
                np.matmul(inputs, coef, out=z)
            else:
                z[...] = inputs @ coef
            z += self._network.intercepts[layer]
            if layer < last:
                self._activate(z, None if self._slopes is None else self._slopes[layer][:rows])
                inputs = z if self._keep is None else self._drop(z, layer)
        return z

    def _drop(self, a, layer):
        self._keep[layer] = self._dropout.mask(a.shape, a.dtype)
        return np.multiply(a, self._keep[layer], out=self._dropped[layer][: len(a)])

    def backward(self, X, delta, coef_grads, intercept_grads):
        """Gradients of the weights, from `delta`, the gradient of the logits that `forward` gave for X.

        Returns
        -------
        ndarray
            Gradient with respect to the first layer's output; the gradient with respect to X is this times
            W^T.
        """
        rows, inputs = len(delta), self._values if self._dropped is None else self._dropped
        for layer in range(len(self._values) - 1, -1, -1):
            if intercept_grads is not None:
                if layer:
                    np.matmul(inputs[layer - 1][:rows].T, delta, out=coef_grads[layer])
                elif isinstance(X, np.ndarray):
                    np.matmul(X.T, delta, out=coef_grads[layer])
                else:
                    coef_grads[layer][...] = X.T @ delta
                np.add.reduce(delta, axis=0, out=intercept_grads[layer])
            if layer:
                below = self._deltas[layer - 1][:rows]
                np.matmul(delta, self._network.coefs[layer].T, out=below)
                if self._keep is not None:
                    below *= self._keep[layer - 1]
                self._derive(below, self._values[layer - 1][:rows], self._slopes[layer - 1][:rows])
                delta = below
        return delta
