"""First-order methods over one flat buffer of weights."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

# Elements per block: a block's five float32 arrays, 640 KiB, stay in a 1 MiB cache (200,000 weights: 227 us per
# step; 442 with 4096).
_BLOCK = 32768


class Optimizer:
    """State of a first-order method over a flat buffer.

    ``decoupled``: whether alpha shrinks the weights directly instead of through the gradient; ``t``: steps made;
    ``epochs``: of the learning rate's schedule.  The fields below are what the compiled step takes.
    """

    decoupled = False
    momentum, nesterov, beta_1, beta_2, epsilon = 0.0, False, 0.0, 0.0, 0.0

    def __init__(self, learning_rate):
        self.learning_rate = float(learning_rate)
        self.t = self.epochs = 0

    def blocks(self, params, grad, n_coefs):
        """The buffers cut into cache-sized blocks: (is_coefficient, scratch, params, grad, *state)."""
        scratch = np.empty(min(_BLOCK, len(params)), params.dtype)
        cuts = [*range(0, n_coefs, _BLOCK), *range(n_coefs, len(params), _BLOCK), len(params)]
        return [
            (low < n_coefs, scratch[: high - low], *(a[low:high] for a in (params, grad, *self.state)))
            for low, high in pairwise(cuts)
        ]


class Sgd(Optimizer):
    """Gradient descent with momentum: u <- mu u - eta g; w <- w + u, or w + mu u - eta g (Nesterov)."""

    kind = "sgd"

    def __init__(self, params, learning_rate, momentum, nesterov):
        super().__init__(learning_rate)
        self.momentum, self.nesterov = float(momentum), nesterov
        self.state = [np.zeros_like(params)]

    def update(self, blocks, shrink):
        """One step, with `shrink` times the coefficients added to their gradient."""
        self.t += 1
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


class Adam(Optimizer):
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
