"""Multi-layer perceptron classifier on the package's own loss kernels.

The pieces, from the inside out.  `_Network` holds all weights in one flat buffer, coefficients first and
intercepts after, with a view per layer.  `_Pass` runs forward and backward over a block of rows in buffers
allocated once.  An objective (`_Softmax`, `_Sigmoid`, `_LossObject`) turns the logits into their gradient in
place.  An optimizer (`_Sgd`, `_Adam`) updates the flat buffer block by block, so that a block's weights,
gradient and moments are read once while they lie in cache.  `_Step` is those four over one mini-batch: the
piece that compiled code can replace. `MLPClassifier` owns labels, schedules and stopping.

The objective of a batch with row weights v and D = sum v is  (sum_i v_i L_i + alpha/2 ||W||^2) / D,
scikit-learn's.
"""

from __future__ import annotations

import math
import warnings
from contextlib import nullcontext
from itertools import pairwise
from numbers import Integral, Real

import numpy as np
import scipy.sparse
from scipy.special import expit, log_expit, ndtr
from sklearn.base import BaseEstimator, ClassifierMixin, _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils._param_validation import HasMethods, Interval, Options, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import (
    _check_partial_fit_first_call,
    check_classification_targets,
    type_of_target,
)
from sklearn.utils.validation import check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from . import _backend
from ._checks import thread_count
from ._estimator import (
    CallbackSupportMixin,
    FitTasks,
    check_sample_weight,
    class_weight_vector,
    encode_labels,
    row_weights,
)
from ._files import SaveMixin
from .losses import Loss, names, resolve
from .solvers import lbfgs

__all__ = ["MLPClassifier"]

_STOCHASTIC_SOLVERS = ("sgd", "adam", "adamw", "radam")
# Elements per block of the optimizer: a block's five float32 arrays, 640 KiB, stay in a 1 MiB cache (200,000
# weights: 227 us per step; 442 with 4096).
_BLOCK = 32768
# Elements of all layers' activations in one block of rows of a full pass (16 MiB in float32).
_PASS_ELEMENTS = 1 << 22
# Fall of the loss, relative to itself or to 1, below which 'lbfgs' has converged: the default of SciPy's L-BFGS-B and
# so of scikit-learn.
_FLAT = 1e7 * 2.0**-52
# Pairs of steps that 'lbfgs' keeps: after 200 iterations on three overlapping blobs (20 seeds) 8 reach a mean loss of
# 0.025, 10 reach 0.026 and 5 reach 0.047.
_MEMORY = 8


# ------------------------------------------------------------------------------------------------ activations
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


_ACTIVATIONS = {
    "identity": (_identity, _identity_backward),
    "logistic": (_logistic, _logistic_backward),
    "tanh": (_tanh, _tanh_backward),
    "relu": (_relu, _relu_backward),
    "gelu": (_gelu, _slope_backward),
    "silu": (_silu, _slope_backward),
}


# ----------------------------------------------------------------------------------------- weights and passes


class _Network:
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


class _Pass:
    """Forward and backward over at most `rows` rows, in buffers allocated once.

    Parameters
    ----------
    network : _Network
    rows : int
    gradients : bool
        Whether `backward` will be called.
    dropout : float
        Share of the hidden activations set to zero, the others scaled by 1 / (1 - dropout) (Srivastava et
        al., 2014).
    rng : None or numpy.random.Generator
        Of the dropout.
    """

    def __init__(self, network, rows, *, gradients=False, dropout=0.0, rng=None):
        dtype, hidden = network.params.dtype, network.units[1:-1]
        self._network = network
        self._activate, self._derive = _ACTIVATIONS[network.activation]
        self._values = [np.empty((rows, width), dtype) for width in network.units[1:]]
        self._slopes = [np.empty((rows, width), dtype) for width in hidden] if gradients else None
        self._deltas = [np.empty((rows, width), dtype) for width in hidden] if gradients else None
        self._dropout, self._rng = dropout, rng
        self._keep = self._dropped = None
        if dropout:
            self._keep = [np.empty((rows, width), dtype) for width in hidden]
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
        keep, dropped = self._keep[layer][: len(a)], self._dropped[layer][: len(a)]
        self._rng.random(out=keep, dtype=keep.dtype)
        np.multiply(keep >= self._dropout, 1 / (1 - self._dropout), out=keep, casting="same_kind")
        return np.multiply(a, keep, out=dropped)

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
                    below *= self._keep[layer - 1][:rows]
                self._derive(below, self._values[layer - 1][:rows], self._slopes[layer - 1][:rows])
                delta = below
        return delta


# ------------------------------------------------------------------------------------------------- objectives
# objective(z, y, v, mass, scale): the sum of v_i L_i over the rows; z becomes its gradient times scale.  v is
# None or (rows,), mass its sum.  rows_are_separate: whether a sum over blocks of rows is the sum over all
# rows.


class _Softmax:
    """Softmax cross-entropy of labels (rows,) or probabilities (rows, n_outputs)."""

    rows_are_separate = True

    def __init__(self, kernels, label_smoothing, num_threads):
        self._kernel, self._threads = kernels.softmax_rows, num_threads
        # class_weight, logit_bias, label_smoothing, exclude_target, ignore_index, z_loss, temperature
        self._options = (None, None, label_smoothing, False, None, 0.0, 1.0)

    def __call__(self, z, y, v, mass, scale):
        z, y = z[:, :, None], y[..., None]
        v = None if v is None else v[:, None]
        return self._kernel(z, y, v, *self._options, scale, None, None, z, None, self._threads)[0]


class _Sigmoid:
    """Binary cross-entropy of indicators (rows, n_outputs), summed over the outputs."""

    rows_are_separate = True

    def __init__(self, kernels, label_smoothing, pos_weight, num_threads):
        self._kernel, self._smoothing, self._threads = kernels.sigmoid_elements, label_smoothing, num_threads
        self._pos_weight = pos_weight

    def __call__(self, z, y, v, mass, scale):
        v = None if v is None else np.broadcast_to(v[:, None], z.shape)
        pos = None if self._pos_weight is None else np.broadcast_to(self._pos_weight, z.shape)
        return self._kernel(z, y, v, pos, self._smoothing, scale, None, z, None, self._threads)[0]


class _LossObject:
    """The mean of a loss object, times the mass of the rows."""

    rows_are_separate = False

    def __init__(self, loss, elementwise, options):
        self._loss_grad, self._elementwise, self._options = loss.loss_grad, elementwise, options

    def __call__(self, z, y, v, mass, scale):
        if v is not None and self._elementwise:
            v = v[:, None]
        loss, grad = self._loss_grad(z, y, sample_weight=v, reduction="mean", **self._options)
        np.multiply(grad, mass * scale, out=z)
        return loss * mass


# ------------------------------------------------------------------------------------------------- optimizers


class _Optimizer:
    """State of a first-order method over a flat buffer.

    ``decoupled``: whether alpha shrinks the weights directly instead of through the gradient.
    """

    decoupled = False

    def __init__(self, learning_rate):
        self.learning_rate = float(learning_rate)
        self.epochs = 0

    def blocks(self, params, grad, n_coefs):
        """The buffers cut into cache-sized blocks: (is_coefficient, scratch, params, grad, *state)."""
        scratch = np.empty(min(_BLOCK, len(params)), params.dtype)
        cuts = [*range(0, n_coefs, _BLOCK), *range(n_coefs, len(params), _BLOCK), len(params)]
        return [
            (low < n_coefs, scratch[: high - low], *(a[low:high] for a in (params, grad, *self.state)))
            for low, high in pairwise(cuts)
        ]


class _Sgd(_Optimizer):
    """Gradient descent with momentum: u <- mu u - eta g; w <- w + u, or w + mu u - eta g (Nesterov)."""

    kind = "sgd"

    def __init__(self, params, learning_rate, momentum, nesterov):
        super().__init__(learning_rate)
        self.momentum, self.nesterov = float(momentum), nesterov
        self.state = [np.zeros_like(params)]

    def update(self, blocks, shrink):
        """One step, with `shrink` times the coefficients added to their gradient."""
        for is_coef, scratch, w, g, u in blocks:
            if is_coef and shrink:
                np.multiply(w, shrink, out=scratch)
                g += scratch
            g *= self.learning_rate
            u *= self.momentum
            u -= g
            if self.nesterov:
                np.multiply(u, self.momentum, out=scratch)
                scratch -= g
                w += scratch
            else:
                w += u


class _Adam(_Optimizer):
    """Adam (Kingma and Ba, 2014), AdamW (Loshchilov and Hutter, 2017) and RAdam (Liu et al., 2019).

    With m = sum b1^(t-i) g_i and v = sum b2^(t-i) g_i^2, which take two and three sweeps where the moments of
    the papers, (1 - b1) m and (1 - b2) v, take three and four: w <- w - c m / (sqrt(v) + e), the constants
    absorbing 1 - b and the bias corrections.  Adam's epsilon is added to the uncorrected root, as in
    scikit-learn; the other two add it to the corrected one, as in their papers.
    """

    def __init__(self, params, kind, learning_rate, beta_1, beta_2, epsilon):
        super().__init__(learning_rate)
        self.kind, self.decoupled = kind, kind == "adamw"
        self.beta_1, self.beta_2, self.epsilon = float(beta_1), float(beta_2), float(epsilon)
        self.t = 0
        self.state = [np.zeros_like(params), np.zeros_like(params)]

    def _constants(self):
        """c and e above; e is None for RAdam's first steps, which do not divide."""
        b1, b2 = self.beta_1, self.beta_2
        left_1, left_2 = 1 - b1**self.t, 1 - b2**self.t
        c = self.learning_rate * (1 - b1) / left_1
        root = math.sqrt(left_2 / (1 - b2))
        if self.kind == "adam":
            return c * root, self.epsilon / math.sqrt(1 - b2)
        if self.kind == "radam":
            limit = 2 / (1 - b2) - 1
            length = limit - 2 * self.t * b2**self.t / left_2
            if length <= 5:  # the variance of the adaptive step is not tractable yet
                return c, None
            c *= math.sqrt((length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length))
        return c * root, self.epsilon * root

    def update(self, blocks, shrink):
        """One step, with `shrink` times the coefficients added to their gradient; AdamW decays them."""
        self.t += 1
        c, e = self._constants()
        b1, b2 = self.beta_1, self.beta_2
        for is_coef, scratch, w, g, m, v in blocks:
            if is_coef and shrink:
                if self.decoupled:
                    w *= 1 - self.learning_rate * shrink
                else:
                    np.multiply(w, shrink, out=scratch)
                    g += scratch
            m *= b1
            m += g
            np.multiply(g, g, out=g)
            v *= b2
            v += g
            if e is None:
                np.multiply(m, c, out=scratch)
            else:
                np.sqrt(v, out=scratch)
                scratch += e
                np.divide(m, scratch, out=scratch)
                scratch *= c
            w -= scratch


# ------------------------------------------------------------------------------------------------------- step


class _Step:
    """One mini-batch step: gather rows, forward, loss and its gradient, backward, update.

    Everything a step needs is bound here once; a call gets row numbers only.

    Parameters
    ----------
    network : _Network
    objective : callable
    optimizer : _Optimizer
    X : ndarray or CSR of shape (n_samples, n_features)
    y : ndarray of shape (n_samples,) labels, or (n_samples, n_outputs) indicators
    v : None or ndarray of shape (n_samples,)
        Row weights.
    batch_size : int
    alpha : float
    dropout : float
    rng : None or numpy.random.Generator
    """

    def __init__(self, network, objective, optimizer, X, y, v, batch_size, alpha, dropout=0.0, rng=None):
        self._objective, self._optimizer, self._alpha = objective, optimizer, float(alpha)
        self._X, self._y, self._v = X, y, v
        self._dense = isinstance(X, np.ndarray)
        self._x_rows = np.empty((batch_size, X.shape[1]), X.dtype) if self._dense else None
        self._y_rows = np.empty((batch_size, *y.shape[1:]), y.dtype)
        self._v_rows = None if v is None else np.empty(batch_size, v.dtype)
        self._pass = _Pass(network, batch_size, gradients=True, dropout=dropout, rng=rng)
        grad = np.empty_like(network.params)
        self._coef_grads, self._intercept_grads = network.split(grad)
        self._penalized = network.params[: network.n_coefs]
        self._blocks = optimizer.blocks(network.params, grad, network.n_coefs)

    def __call__(self, rows):
        """Step over the rows of a slice or an index array.

        Returns
        -------
        (float, float)
            The batch's objective times its mass, before the update; its mass, the sum of its row weights.
        """
        if isinstance(rows, slice):
            count = rows.stop - rows.start
            x, y, v = self._X[rows], self._y[rows], None if self._v is None else self._v[rows]
        else:
            count = len(rows)
            # mode="clip" lets take write into `out` directly; the default goes through a second buffer
            y = np.take(self._y, rows, axis=0, out=self._y_rows[:count], mode="clip")
            v = None if self._v is None else np.take(self._v, rows, out=self._v_rows[:count], mode="clip")
            if self._dense:
                x = np.take(self._X, rows, axis=0, out=self._x_rows[:count], mode="clip")
            else:
                x = self._X[rows]
        mass = float(count) if v is None else float(v.sum(dtype=np.float64))
        z = self._pass.forward(x)
        loss = self._objective(z, y, v, mass, 1 / mass)
        if self._optimizer.decoupled:
            shrink = self._alpha
        else:
            shrink = self._alpha / mass
            if shrink:
                loss += 0.5 * self._alpha * float(np.dot(self._penalized, self._penalized))
        self._pass.backward(x, z, self._coef_grads, self._intercept_grads)
        self._optimizer.update(self._blocks, shrink)
        return loss, mass


class _FullObjective:
    """Objective and gradient over all rows, block of rows by block of rows, summed in float64."""

    def __init__(self, network, objective, X, y, v, alpha):
        n_samples = X.shape[0]
        self._network, self._objective, self._alpha = network, objective, float(alpha)
        self._X, self._y, self._v = X, y, v
        self._rows = network.rows_per_block(n_samples) if objective.rows_are_separate else n_samples
        self._pass = _Pass(network, self._rows, gradients=True)
        self._part = np.empty_like(network.params)
        self._mass = float(n_samples) if v is None else float(v.sum(dtype=np.float64))
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


def _kind_of_targets(y):
    """'soft' for a matrix of floats whose rows sum to 1, 'indicators' for other matrices of 0 and 1, or 'labels'."""
    if not scipy.sparse.issparse(y) and y.ndim == 2 and y.shape[1] > 1 and y.dtype.kind == "f":
        if (y >= 0).all() and (np.abs(y.sum(axis=1) - 1) < 1e-5).all():
            return "soft"
        check_classification_targets(y)
    return "indicators" if type_of_target(y, input_name="y") == "multilabel-indicator" else "labels"


def _inside(p):
    """Probabilities of sigmoids, in place, kept off 0 and 1 by the smallest steps of the dtype."""
    zero, one = p.dtype.type(0), p.dtype.type(1)
    return np.clip(p, np.nextafter(zero, one), np.nextafter(one, zero), out=p)


def _log_softmax(z):
    """Log-probabilities of logits (rows, classes), exact where a probability is close to 1.

    With the maximum at class j, rest = sum over the others of exp(z - z_j): log p_k = (z_k - z_j) -
    log1p(rest).

    Examples
    --------
    >>> _log_softmax(np.array([[40.0, 0.0]]))[0]
    array([-4.24835426e-18, -4.00000000e+01])
    """
    if not len(z):
        return z
    top = z.argmax(axis=1)[:, None]
    z = z - np.take_along_axis(z, top, 1)
    others = np.exp(z)
    np.put_along_axis(others, top, 0, 1)
    z -= np.log1p(others.sum(axis=1, keepdims=True))
    return z


# -------------------------------------------------------------------------------------------------- estimator


class MLPClassifier(CallbackSupportMixin, SaveMixin, ClassifierMixin, BaseEstimator):
    """Multi-layer perceptron classifier, a drop-in for scikit-learn's.

    Minimizes  (sum_i v_i L_i + alpha/2 ||W||^2) / sum_i v_i  with the cross-entropy L of the network's
    logits: softmax for three classes and more, one sigmoid for two, a sigmoid per label for an indicator
    matrix; v is the sample weight times the class weight.  float32 data are trained in float32, sparse data
    stay sparse.

    Parameters
    ----------
    hidden_layer_sizes : array-like of int or int, default=(100,)
        Width of every hidden layer.
    activation : {'identity', 'logistic', 'tanh', 'relu', 'gelu', 'silu'}, default='relu'
        Of the hidden layers; 'gelu' is the exact form, z Phi(z).
    solver : {'auto', 'adam', 'adamw', 'radam', 'sgd', 'lbfgs'}, default='auto'
        'auto' is 'adam', whatever the data. 'adamw' decays the weights by learning rate times alpha instead
        of penalizing them. 'lbfgs' takes all rows at every step: for small data.
    alpha : float, default=0.0001
        Strength of the L2 penalty; intercepts are not penalized.
    batch_size : int or 'auto', default='auto'
        'auto' is min(200, n_samples). Not used by 'lbfgs'.
    learning_rate : {'constant', 'invscaling', 'adaptive', 'cosine'}, default='constant'
        'invscaling' divides by (samples seen + 1)**power_t; 'adaptive' divides by 5 whenever training stops
        improving; both leave 'adam' alone, as in scikit-learn. 'cosine' falls from epoch to epoch over
        `max_iter` epochs, learning_rate_init · (1 + cos(pi · epoch / max_iter)) / 2.
    learning_rate_init : float, default=0.001
    power_t : float, default=0.5
    max_iter : int, default=200
        At most so many epochs, or iterations of 'lbfgs'.
    shuffle : bool, default=True
        Whether every epoch takes the rows in a new order.
    random_state : int, RandomState instance or None, default=None
        Of initial weights, validation split, order of the rows and dropout.
    tol : float, default=1e-4
        Training stops when the loss (or the validation score) has not improved by more than `tol` for more
        than `n_iter_no_change` epochs; for 'lbfgs', when the largest entry of the gradient is at most `tol`,
        or an iteration lowers the loss by less than 2.2e-9 of itself or of 1.
    verbose : bool or int, default=False
        Whether to print a line per epoch.
    warm_start : bool, default=False
        Whether `fit` goes on from the weights it finds.
    momentum : float, default=0.9
        Of 'sgd'.
    nesterovs_momentum : bool, default=True
        Whether 'sgd' uses Nesterov's momentum.
    early_stopping : bool, default=False
        Whether to stop by the score on held-out rows, and to return the weights that scored best.
    validation_fraction : float, default=0.1
        Share of the rows held out for early stopping, where `fit` is given no validation data.
    beta_1, beta_2 : float, default=0.9, 0.999
        Decay of the moments of 'adam', 'adamw' and 'radam'.
    epsilon : float, default=1e-8
        Added to their denominator.
    n_iter_no_change : int or inf, default=10
    max_fun : int, default=15000
        At most so many evaluations by 'lbfgs'.
    class_weight : None, 'balanced' or dict, default=None
        Weight of each class, times the sample weight. 'balanced' is n / (n_classes · n_k) with counts in
        sample weights. With indicator matrices: the weight of a label's positive rows, 'balanced' their
        negatives per positive.
    loss : None, str or loss object, default=None
        A name ("focal", "gce", ...: `fastxent.losses.names()`), or an object
        with ``loss_grad(z, y, sample_weight=None, reduction="mean")`` whose mean replaces the mean
        cross-entropy. It gets one logit per class; a `SigmoidCrossEntropy`, or an object whose attribute
        ``elementwise`` is true, gets one logit for two classes and one per label for indicator matrices,
        whose mean is over rows and labels.
    label_smoothing : float, default=0.0
        Share of every label spread evenly over all classes; the loss object's own option where `loss` is
        given.
    dropout : float, default=0.0
        Share of the hidden activations left out at every training step. Not used by 'lbfgs'.
    num_threads : int or None, default=None
        Threads of the loss kernels and of the matrix products; None leaves both at their defaults.
    backend : {None, 'auto', 'numpy', 'cpu', 'cuda'}, default=None
        Of the loss kernels.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted; the numbers of the columns for indicator matrices.
    loss_ : float
        Mean objective over the last epoch, weighted.
    best_loss_ : float or None
        Lowest entry of `loss_curve_`; None with early stopping.
    loss_curve_ : list of float
        `loss_` after every epoch or iteration.
    validation_scores_ : list of float or None
        Accuracy on the validation rows after every epoch; None where there are none.
    validation_loss_curve_ : list of float or None
        Mean loss on the validation rows, without the penalty.
    best_validation_score_ : float or None
    t_ : int
        Training samples seen.
    n_iter_ : int
        Epochs or iterations of the last fit.
    n_layers_ : int
        Layers with the input and the output.
    n_outputs_ : int
        Logits per row.
    out_activation_ : str
        'softmax' or 'logistic'.
    coefs_ : list of ndarray of shape (fan_in, fan_out)
    intercepts_ : list of ndarray of shape (fan_out,)
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Only where X has names that are all strings.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from fastxent.mlp import MLPClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = MLPClassifier((8,), solver="lbfgs", max_iter=1000, random_state=0).fit(X / 8, y)
    >>> model.score(X / 8, y) > 0.97
    True
    """

    _parameter_constraints: dict = {  # noqa: RUF012 (scikit-learn's convention)
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(set(_ACTIVATIONS))],
        "solver": [StrOptions({"auto", "lbfgs", *_STOCHASTIC_SOLVERS})],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "learning_rate": [StrOptions({"constant", "invscaling", "adaptive", "cosine"})],
        "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
        "power_t": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "shuffle": ["boolean"],
        "random_state": ["random_state"],
        "tol": [Interval(Real, 0, None, closed="left")],
        "verbose": ["verbose"],
        "warm_start": ["boolean"],
        "momentum": [Interval(Real, 0, 1, closed="both")],
        "nesterovs_momentum": ["boolean"],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="left")],
        "beta_1": [Interval(Real, 0, 1, closed="left")],
        "beta_2": [Interval(Real, 0, 1, closed="left")],
        "epsilon": [Interval(Real, 0, None, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left"), Options(Real, {np.inf})],
        "max_fun": [Interval(Integral, 1, None, closed="left")],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "loss": [HasMethods("loss_grad"), StrOptions(set(names())), None],
        "label_smoothing": [Interval(Real, 0, 1, closed="both")],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "num_threads": [Interval(Integral, 1, None, closed="left"), None],
        "backend": [StrOptions(set(_backend.NAMES)), None],
    }

    _saved = ("_multilabel",)
    _optimizer = _dropout_rng = None  # where `load` has brought the weights

    def __init__(
        self,
        hidden_layer_sizes=(100,),
        activation="relu",
        *,
        solver="auto",
        alpha=0.0001,
        batch_size="auto",
        learning_rate="constant",
        learning_rate_init=0.001,
        power_t=0.5,
        max_iter=200,
        shuffle=True,
        random_state=None,
        tol=1e-4,
        verbose=False,
        warm_start=False,
        momentum=0.9,
        nesterovs_momentum=True,
        early_stopping=False,
        validation_fraction=0.1,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        n_iter_no_change=10,
        max_fun=15000,
        class_weight=None,
        loss=None,
        label_smoothing=0.0,
        dropout=0.0,
        num_threads=None,
        backend=None,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun
        self.class_weight = class_weight
        self.loss = loss
        self.label_smoothing = label_smoothing
        self.dropout = dropout
        self.num_threads = num_threads
        self.backend = backend

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.classifier_tags.multi_label = True
        return tags

    # ----------------------------------------------------------------------------------------------- training

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None, *, validation_data=None):
        """Train on X and y.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Labels; or indicators of 0 and 1, one column per label; or a matrix of floats whose rows sum to 1, the
            probabilities of the classes 0 to n_outputs - 1.
        sample_weight : array-like of shape (n_samples,), default=None
            Weight k counts as k repeats; rows of weight 0 count as removed, with their class if it has no
            other row.
        validation_data : None, (X, y) or (X, y, sample_weight), default=None
            Scored after every epoch, and used by early stopping instead of held-out training rows.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            For data or parameters out of their range, and where the loss or the weights become non-finite.
        """
        return self._fit(X, y, sample_weight, validation_data, incremental=False)

    def _is_stochastic(self):
        if self.solver == "lbfgs":
            raise AttributeError(
                f"partial_fit is only available for stochastic optimizers. {self.solver} is not stochastic."
            )
        return True

    @available_if(_is_stochastic)
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, sample_weight=None, classes=None):
        """Train for one epoch over X and y, from the weights and the optimizer's state there are.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or (n_samples, n_labels)
        sample_weight : array-like of shape (n_samples,), default=None
        classes : array-like of shape (n_classes,), default=None
            All labels that will ever come; needed at the first call.

        Returns
        -------
        self
        """
        _check_partial_fit_first_call(self, classes)
        return self._fit(X, y, sample_weight, None, incremental=True)

    def _fit(self, X, y, sample_weight, validation_data, incremental):
        first = not hasattr(self, "coefs_") or not (self.warm_start or incremental)
        hidden = self._hidden_units()
        self._check_combinations(incremental, validation_data)
        # A model goes on in the dtype it began with.
        dtype = (np.float64, np.float32) if first else self.coefs_[0].dtype
        X, y = validate_data(self, X, y, accept_sparse="csr", multi_output=True, dtype=dtype, reset=first)
        sample_weight = check_sample_weight(sample_weight, X.shape[0], X.dtype)
        y, v, pos_weight = self._targets(y, sample_weight, X.dtype, first, incremental)
        self._random_state = check_random_state(self.random_state)
        network = _Network([X.shape[1], *hidden, self.n_outputs_], self.activation, X.dtype)
        if first:
            network.initialize(self._random_state)
            self._reset(network)
        else:
            self._check_shapes(network)
            network.copy_from(self.coefs_, self.intercepts_)
        # Views of the flat buffer: what a step writes is what the estimator predicts with.
        self.coefs_, self.intercepts_ = network.coefs, network.intercepts
        objective = self._objective(pos_weight)
        # Overflow on the way to a non-finite loss is reported once, by an error that names the step.
        with self._blas_threads(), np.errstate(over="ignore", invalid="ignore"):
            if self.solver == "lbfgs":
                self._fit_lbfgs(network, objective, X, y, v)
            else:
                self._fit_stochastic(network, objective, X, y, v, sample_weight, validation_data, incremental)
        if not np.isfinite(network.params).all():
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large values and "
                f"need to be preprocessed. Scale X, or lower learning_rate_init={self.learning_rate_init:g}."
            )
        return self

    def _blas_threads(self):
        if self.num_threads is None:
            return nullcontext()
        return threadpool_limits(self.num_threads, user_api="blas")

    def _hidden_units(self):
        hidden = self.hidden_layer_sizes
        hidden = [hidden] if isinstance(hidden, Integral) else list(hidden)
        if any(not isinstance(width, Integral) or width <= 0 for width in hidden):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {hidden}.")
        return [int(width) for width in hidden]

    def _check_combinations(self, incremental, validation_data):
        if incremental and self.early_stopping:
            raise ValueError("partial_fit does not support early_stopping=True")
        if incremental and self.class_weight == "balanced":
            raise ValueError(
                "class_weight='balanced' needs all labels at once; partial_fit expects None or a dict."
            )
        if self.loss is not None and self.label_smoothing:
            raise ValueError(
                f"label_smoothing={self.label_smoothing} expects loss=None, got loss={self.loss!r}: "
                "give the option to the loss object."
            )
        if self.solver == "lbfgs" and self.dropout:
            raise ValueError(f"dropout={self.dropout} expects a stochastic solver, got solver='lbfgs'.")
        if self.solver == "lbfgs" and validation_data is not None:
            raise ValueError("validation_data expects a stochastic solver, got solver='lbfgs'.")

    def _check_shapes(self, network):
        have = [coef.shape for coef in self.coefs_]
        want = [coef.shape for coef in network.coefs]
        if have != want:
            raise ValueError(
                f"The weights to start from have shapes {have}, expected {want} for the given layers."
            )

    def _targets(self, y, sample_weight, dtype, first, incremental):
        """Targets as the kernels take them, row weights, weights of positive labels; sets `classes_`."""
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        kind = _kind_of_targets(y)
        multilabel = kind == "indicators"
        known = incremental or not first  # classes_ is there, from partial_fit's first call or an earlier fit
        if not first and multilabel != self._multilabel:
            kinds = ("one label per row", "an indicator matrix")
            raise ValueError(f"y: expected {kinds[self._multilabel]} as before, got {kinds[multilabel]}.")
        if multilabel:
            y = y.toarray() if scipy.sparse.issparse(y) else np.asarray(y)
            classes = np.arange(y.shape[1])
        elif kind == "soft":
            classes, codes = np.arange(y.shape[1]), y
        else:
            classes, codes = encode_labels(y, sample_weight, self.classes_ if incremental else None)
        if known and not np.array_equal(classes, self.classes_):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous call to fit, and "
                f"partial_fit with the classes it began with. Previously got {self.classes_}, `y` has {classes}"
            )
        self.classes_, self._multilabel = classes, multilabel
        if multilabel or (len(classes) == 2 and self._loss_is_elementwise()):
            self.n_outputs_, self.out_activation_ = y.shape[1] if multilabel else 1, "logistic"
        else:
            self.n_outputs_, self.out_activation_ = len(classes), "softmax"
        if multilabel:
            if self.loss is not None and not self._loss_is_elementwise():
                raise ValueError(
                    f"y: a matrix of indicators expects an elementwise loss, got loss={self.loss!r}."
                )
            targets = (y != 0).astype(dtype)
            return targets, sample_weight, self._positive_weights(targets, sample_weight)
        if kind == "soft":
            if self.class_weight is not None:
                raise ValueError(
                    f"class_weight expects labels, got {self.class_weight!r} with rows of probabilities for y."
                )
            return self._as_targets(codes, dtype), sample_weight, None
        weight_of = class_weight_vector(self.class_weight, classes, codes, sample_weight)
        v = row_weights(sample_weight, weight_of, codes, dtype)
        return self._as_targets(codes, dtype), v, None

    def _as_targets(self, codes, dtype):
        """Class numbers, or probabilities of the classes, as the output layer's loss takes them."""
        if self.out_activation_ == "softmax":
            return codes if codes.ndim == 1 else np.ascontiguousarray(codes, dtype)
        return np.ascontiguousarray(codes[:, None] if codes.ndim == 1 else codes[:, 1:], dtype)

    def _loss_is_elementwise(self):
        return self.loss is None or bool(getattr(resolve(self.loss), "elementwise", False))

    def _positive_weights(self, targets, sample_weight):
        """Weight of the positive rows of every label, or None."""
        if self.class_weight is None:
            return None
        if self.loss is not None:
            raise ValueError(
                "class_weight with a matrix of indicators expects loss=None: give the loss pos_weight."
            )
        if isinstance(self.class_weight, str):
            v = np.ones(len(targets)) if sample_weight is None else sample_weight.astype(np.float64)
            positive = v @ targets
            weights = np.divide(v.sum() - positive, positive, out=np.ones_like(positive), where=positive > 0)
        else:
            weights = class_weight_vector(self.class_weight, self.classes_, np.arange(len(self.classes_)))
        return None if weights is None else weights.astype(targets.dtype)

    def _objective(self, pos_weight=None):
        threads = thread_count(self.num_threads)
        if self.loss is not None:
            loss = resolve(self.loss)
            given = {"backend": self.backend, "num_threads": self.num_threads}
            options = {name: value for name, value in given.items() if value is not None}
            if isinstance(loss, Loss):
                options["check"] = False  # targets were checked once, in fit
            return _LossObject(loss, self.out_activation_ == "logistic", options)
        kernels = _backend.choose(self.backend)
        smoothing = float(self.label_smoothing)
        if self.out_activation_ == "softmax":
            return _Softmax(kernels, smoothing, threads)
        return _Sigmoid(kernels, smoothing, pos_weight, threads)

    def _reset(self, network):
        self.n_iter_ = self.t_ = 0
        self.n_layers_ = len(network.units)
        self._no_improvement_count = 0
        self.loss_curve_ = []
        self.best_loss_ = None if self.early_stopping else np.inf
        self.validation_scores_ = self.validation_loss_curve_ = self.best_validation_score_ = None
        self._optimizer = self._dropout_rng = None

    def _new_optimizer(self, solver, params):
        if solver == "sgd":
            return _Sgd(params, self.learning_rate_init, self.momentum, self.nesterovs_momentum)
        return _Adam(params, solver, self.learning_rate_init, self.beta_1, self.beta_2, self.epsilon)

    def _fit_stochastic(self, network, objective, X, y, v, sample_weight, validation_data, incremental):
        rows, validation = self._split(X, y, v, sample_weight, validation_data)
        n_samples = X.shape[0] if rows is None else len(rows)
        batch_size = min(200, n_samples) if self.batch_size == "auto" else self.batch_size
        removed = 0 if v is None else np.count_nonzero(v == 0)
        if batch_size > n_samples + removed:
            warnings.warn(
                "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped",
                stacklevel=5,
            )
        batch_size = min(int(batch_size), n_samples)
        solver = "adam" if self.solver == "auto" else self.solver
        if not incremental or self._optimizer is None or self._optimizer.kind != solver:
            self._optimizer = self._new_optimizer(solver, network.params)
        if not self.early_stopping and self.best_loss_ is None:
            self.best_loss_ = np.inf
        if self.dropout and (not incremental or self._dropout_rng is None):
            self._dropout_rng = np.random.default_rng(self._random_state.randint(2**31))
        run = (network, objective, self._optimizer)
        step = _Step(*run, X, y, v, batch_size, self.alpha, float(self.dropout), self._dropout_rng)
        best = network.params.copy() if self.early_stopping else None
        if validation is not None and self.validation_scores_ is None:
            self.validation_scores_, self.validation_loss_curve_ = [], []
            self.best_validation_score_ = -np.inf
        max_iter = 1 if incremental else self.max_iter
        tasks = FitTasks(self, max_iter, "epoch", X, y, sample_weight)
        self.n_iter_ = 0
        try:
            for _ in range(max_iter):
                if self.learning_rate == "cosine":
                    self._optimizer.learning_rate = self._cosine_rate(self._optimizer.epochs)
                if self.shuffle:
                    order = np.arange(n_samples)
                    self._random_state.shuffle(order)
                    rows = order if rows is None else rows[order]
                self._run_epoch(step, rows, n_samples, batch_size)
                self._optimizer.epochs += 1
                self.n_iter_ += 1
                self.t_ += n_samples
                self.loss_curve_.append(self.loss_)
                if self.verbose:
                    print(f"Iteration {self.n_iter_}, loss = {self.loss_:.8f}")
                gain = self._judge(network, objective, validation, best)
                if self.learning_rate == "invscaling" and self._is_scheduled():
                    self._optimizer.learning_rate = self.learning_rate_init / (self.t_ + 1) ** self.power_t
                if tasks.end_iteration(lambda: self._snapshot(network, network.params)):
                    break
                if self._no_improvement_count > self.n_iter_no_change:
                    if self._stops():
                        break
                    self._no_improvement_count = 0
                if not incremental and self.n_iter_ == self.max_iter:
                    self._warn_not_converged(gain)
        except KeyboardInterrupt:
            warnings.warn(
                f"Training interrupted by user. The model is the one after {self.n_iter_} whole epochs and a "
                "part of the next.",
                stacklevel=5,
            )
        finally:
            if best is not None:
                network.params[...] = best
        tasks.close()

    def _split(self, X, y, v, sample_weight, validation_data):
        """Numbers of the training rows (None: all), and the validation set (X, targets, weights) or None."""
        rows = None if v is None or v.all() else np.flatnonzero(v)
        if validation_data is not None:
            return rows, self._validation_set(validation_data)
        if not self.early_stopping:
            return rows, None
        rows = np.arange(X.shape[0]) if rows is None else rows
        # Stratified where scikit-learn stratifies, so that the same random_state holds out the same rows.
        stratify = None
        if self.n_outputs_ == 1 and np.isin(y, (0, 1)).all():
            stratify = y[rows]
        rows, held = train_test_split(
            rows, random_state=self._random_state, test_size=self.validation_fraction, stratify=stratify
        )
        if len(held) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your "
                f"dataset. Expected at least 2 rows, got {len(held)}."
            )
        return rows, (X[held], y[held], None if sample_weight is None else sample_weight[held])

    def _validation_set(self, given):
        if not isinstance(given, (tuple, list)) or len(given) not in (2, 3):
            raise ValueError(
                f"validation_data: expected (X, y) or (X, y, sample_weight), got {type(given).__name__}."
            )
        X = self._check_X(given[0])
        sample_weight = check_sample_weight(given[2], X.shape[0], X.dtype) if len(given) == 3 else None
        y = self._known_targets(given[1], X, "validation_data")
        return X, y, sample_weight

    def _known_targets(self, y, X, name):
        """Targets for rows of classes that are known."""
        dtype = X.dtype
        if self._multilabel:
            y = y.toarray() if scipy.sparse.issparse(y) else np.asarray(y)
            if y.shape != (X.shape[0], self.n_outputs_):
                raise ValueError(
                    f"{name}: expected indicators of shape {(X.shape[0], self.n_outputs_)}, got {y.shape}."
                )
            check_classification_targets(y)
            return (y != 0).astype(dtype)
        codes = np.asarray(y)
        if codes.ndim != 2 or codes.shape[1:] != self.classes_.shape or _kind_of_targets(codes) != "soft":
            codes = encode_labels(y, None, self.classes_)[1]
        if len(codes) != X.shape[0]:
            raise ValueError(f"{name}: expected one label for each of {X.shape[0]} rows, got {len(codes)}.")
        return self._as_targets(codes, dtype)

    def _run_epoch(self, step, rows, n_samples, batch_size):
        total = mass = 0.0
        starts = range(0, n_samples, batch_size)
        for number, start in enumerate(starts, start=1):
            stop = min(start + batch_size, n_samples)
            loss, weight = step(slice(start, stop) if rows is None else rows[start:stop])
            if not math.isfinite(loss):
                raise ValueError(
                    f"The loss is {loss} at step {number} of {len(starts)} in epoch {self.n_iter_ + 1}. The "
                    "input data may contain large values and need to be preprocessed: scale X, for example "
                    f"with StandardScaler, or lower learning_rate_init={self.learning_rate_init:g}."
                )
            total += loss
            mass += weight
        self.loss_ = total / mass

    def _judge(self, network, objective, validation, best):
        """Score the epoch; returns by how much it beat the best before."""
        if validation is not None:
            score, loss = self._evaluate(network, objective, validation)
            self.validation_scores_.append(score)
            self.validation_loss_curve_.append(loss)
            if self.verbose:
                print(f"Validation score: {score:f}")
            score_gain = score - self.best_validation_score_
            self.best_validation_score_ = max(score, self.best_validation_score_)
        if self.early_stopping:
            stalled = score_gain < self.tol
            if score_gain > 0:
                best[...] = network.params
            gain = score_gain
        else:
            gain = self.best_loss_ - self.loss_
            stalled = gain < self.tol
            self.best_loss_ = min(self.loss_, self.best_loss_)
        self._no_improvement_count = self._no_improvement_count + 1 if stalled else 0
        return gain

    def _evaluate(self, network, objective, validation):
        """Accuracy and mean loss on the validation rows, both in sample weights."""
        X, y, sample_weight = validation
        z = self._logits(X, network)
        if self.out_activation_ == "softmax":
            right = z.argmax(axis=1) == (y if y.ndim == 1 else y.argmax(axis=1))
        else:
            right = ((z > 0) == (y > 0.5)).all(axis=1)
        mass = float(len(z)) if sample_weight is None else float(sample_weight.sum(dtype=np.float64))
        loss = objective(z, y, sample_weight, mass, 1.0) / mass
        return float(np.average(right, weights=sample_weight)), loss

    def _cosine_rate(self, epoch):
        """Rate of an epoch; calls of partial_fit beyond `max_iter` go on at the last one."""
        share = min(epoch, self.max_iter - 1) / self.max_iter
        return self.learning_rate_init * (1 + math.cos(math.pi * share)) / 2

    def _is_scheduled(self):
        return self.solver not in ("auto", "adam")

    def _stops(self):
        """Whether training ends here; a learning rate that adapts is lowered first."""
        what = "Validation score" if self.early_stopping else "Training loss"
        message = (
            f"{what} did not improve more than tol={self.tol:f} for {self.n_iter_no_change} consecutive "
        )
        message += "epochs."
        stop = True
        if self.learning_rate == "adaptive" and self._is_scheduled():
            if self._optimizer.learning_rate <= 1e-6:
                message += " Learning rate too small."
            else:
                self._optimizer.learning_rate /= 5.0
                message += f" Setting learning rate to {self._optimizer.learning_rate:f}"
                stop = False
        if self.verbose:
            print(message + (" Stopping." if stop else ""))
        return stop

    def _warn_not_converged(self, gain):
        what = "validation score" if self.early_stopping else "training loss"
        warnings.warn(
            f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the optimization hasn't "
            f"converged yet. The last epoch improved the best {what} by {gain:.3g}; training has converged "
            f"after more than {self.n_iter_no_change} epochs in a row below tol={self.tol:g}, and the last "
            f"{self._no_improvement_count} were. Increase max_iter, learning_rate_init or tol.",
            ConvergenceWarning,
            stacklevel=6,
        )

    @staticmethod
    def _snapshot(network, params):
        """The weights of a flat vector as the attributes of an estimator stopped there."""
        coefs, intercepts = network.split(params.astype(network.params.dtype))
        return {"coefs_": coefs, "intercepts_": intercepts}

    def _fit_lbfgs(self, network, objective, X, y, v):
        full = _FullObjective(network, objective, X, y, v, self.alpha)
        tasks = FitTasks(self, self.max_iter, "iteration", X, y, v)
        before, out_of_calls, flat = math.inf, False, False

        def after_iteration(iterate):
            nonlocal before, out_of_calls, flat
            self.n_iter_ = iterate.n_iter
            self.loss_curve_.append(iterate.fun)
            if self.verbose:
                print(f"Iteration {iterate.n_iter}, loss = {iterate.fun:.8f}")
            out_of_calls = full.calls >= self.max_fun
            flat = before - iterate.fun <= _FLAT * max(iterate.fun, 1.0)
            before = iterate.fun
            return tasks.end_iteration(lambda: self._snapshot(network, iterate.x)) or flat or out_of_calls

        self.n_iter_ = 0
        outcome = lbfgs(
            full.value_and_grad,
            network.params,
            tol=self.tol,
            max_iter=self.max_iter,
            memory=_MEMORY,
            precision=float(np.finfo(X.dtype).eps),
            callback=after_iteration,
        )
        network.params[...] = outcome.x
        self.loss_, self.n_iter_ = outcome.fun, outcome.n_iter
        self.t_ += X.shape[0] * outcome.n_evaluations
        if self.best_loss_ is not None:
            self.best_loss_ = min(self.loss_, self.best_loss_)
        tasks.close()
        if outcome.status == "not_finite":
            raise ValueError(
                f"The loss is {outcome.fun} at the first step. The input data may contain large values and "
                "need to be preprocessed: scale X, for example with StandardScaler."
            )
        if outcome.status == "interrupted":
            warnings.warn(f"Training interrupted by user. lbfgs {outcome.message}.", stacklevel=5)
        elif out_of_calls and not flat and not outcome.converged:
            warnings.warn(
                f"lbfgs failed to converge after {full.calls} evaluations, max_fun={self.max_fun}: "
                f"max |gradient| is {outcome.grad_max:.3g}, tol asks for {self.tol:.3g}. "
                "Increase max_fun or tol, or scale the features.",
                ConvergenceWarning,
                stacklevel=5,
            )
        elif outcome.status in ("max_iter", "precision"):
            warnings.warn(
                f"lbfgs failed to converge after {outcome.n_iter} iteration(s): it {outcome.message}.",
                ConvergenceWarning,
                stacklevel=5,
            )

    # --------------------------------------------------------------------------------------------- prediction

    def _check_X(self, X):
        return validate_data(self, X, accept_sparse="csr", dtype=(np.float64, np.float32), reset=False)

    def _fitted_network(self):
        units = [self.coefs_[0].shape[0], *(coef.shape[1] for coef in self.coefs_)]
        network = _Network(units, self.activation, self.coefs_[0].dtype)
        network.copy_from(self.coefs_, self.intercepts_)
        return network

    @staticmethod
    def _logits(X, network):
        """Logits of checked rows, in the dtype of the weights, block of rows by block of rows."""
        n_samples, dtype = X.shape[0], network.params.dtype
        z = np.empty((n_samples, network.units[-1]), dtype)
        rows = network.rows_per_block(n_samples)
        forward = _Pass(network, rows).forward
        for start in range(0, n_samples, rows):
            block = slice(start, start + rows)
            z[block] = forward(X[block].astype(dtype, copy=False))
        return z

    def _predict_logits(self, X):
        check_is_fitted(self)
        X = self._check_X(X)
        with self._blas_threads():
            return self._logits(X, self._fitted_network())

    def predict(self, X):
        """Most probable class of every row, or the labels more probable than not for indicator matrices.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,), or (n_samples, n_labels) of 0 and 1
        """
        z = self._predict_logits(X)
        if self._multilabel:
            return (z > 0).astype(np.int64)
        if self.out_activation_ == "softmax":
            return self.classes_[z.argmax(axis=1)]
        return self.classes_[(z[:, 0] > 0).astype(np.intp)]

    def predict_proba(self, X):
        """Probability of every class, or of every label for indicator matrices.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_classes), in the order of `classes_`
            Never 0, and in the order of the logits even where probabilities underflow.
        """
        z = self._predict_logits(X)
        if self._multilabel:
            return _inside(expit(z))
        if self.out_activation_ == "logistic":
            return _inside(expit(np.hstack([-z, z])))
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        smallest = np.nextafter(p.dtype.type(0), p.dtype.type(1))
        low = (p < smallest * p.shape[1]).any(axis=1)
        if low.any():
            # Classes whose probabilities underflow stay apart by one smallest number each, in the order of
            # the logits.
            rank = 1 + z[low].argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
            p[low] = np.maximum(p[low], rank * smallest)
        return p

    def predict_log_proba(self, X):
        """Logarithm of the probabilities, from the logits: exact where they are close to 0 or to 1.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        z = self._predict_logits(X)
        if self._multilabel:
            return log_expit(z)
        if self.out_activation_ == "logistic":
            return log_expit(np.hstack([-z, z]))
        return _log_softmax(z)

    def input_gradient(self, X, y):
        """Gradient of the mean loss over the rows with respect to X: the direction that fools the model.

        The loss is the one trained with, without penalty, weights and dropout.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or (n_samples, n_labels)
            Labels that `fit` has seen.

        Returns
        -------
        ndarray of shape (n_samples, n_features), in the dtype of the weights

        Raises
        ------
        ValueError
            For a label that `fit` has not seen.
        """
        check_is_fitted(self)
        network = self._fitted_network()
        dtype = network.params.dtype
        X = self._check_X(X).astype(dtype, copy=False)
        y = self._known_targets(y, X, "y")
        objective = self._objective()
        n_samples = X.shape[0]
        rows = network.rows_per_block(n_samples) if objective.rows_are_separate else n_samples
        work = _Pass(network, rows, gradients=True)
        gradient = np.empty(X.shape, dtype)
        for start in range(0, n_samples, rows):
            block = slice(start, start + rows)
            z = work.forward(X[block])
            objective(z, y[block], None, float(len(z)), 1 / n_samples)
            delta = work.backward(X[block], z, None, None)
            np.matmul(delta, network.coefs[0].T, out=gradient[block])
        return gradient
