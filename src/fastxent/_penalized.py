"""The penalized mean loss of a linear classifier as functions of one vector: what `solvers` minimize."""

from __future__ import annotations

import math

import numpy as np
from scipy import linalg

__all__ = ["ContinuedProblem", "Problem"]

_MOMENT_ROWS = 16  # per feature: so many give a preconditioner as good as all
_FACTOR_FEATURES = 2000  # features up to which the preconditioner's factor, O(features³), pays
# Evaluations to tol=1e-4 on 6000 rows of MNIST: 120 without, 103 at 1/2, 55 at 0.1, 44 at 0.03, 40 at 0.01.
_CURVATURE = 0.02
# Of the diagonal.  Passes over BANKING77 (sparse, 77 classes) to within 1e-4 of the optimum: 75 without, 51 at 0.02,
# 39 at 0.005, 25 at 0.0005.
_DIAGONAL_CURVATURE = 0.0005


class Problem:
    """The penalized mean loss and its derivatives as functions of w: W (d, K) row by row, then b (K,).

    f(w) = (sum of weighted losses) / mass + strength · ((1 - l1_ratio) / 2 · Σ W² + l1_ratio · Σ |W|)

    The derivatives and `value_and_grad` leave the absolute values to the solver, which takes their weights,
    `l1`.

    Parameters
    ----------
    objective : `linear.LinearObjective`, or another with its interface
    team : entered `linear.Team`, or what that objective takes
    mass : float
        Sum of the weights.
    strength : float
        1 / (C · mass).
    l1_ratio : float
    fit_intercept : bool
    intercept_share : float
        What is penalized of the intercept: 0, or with LIBLINEAR's synthetic feature 1 / intercept_scaling.

    Attributes
    ----------
    shift_free : bool
        Whether adding one number to all of b changes nothing, as softmax allows: then b is kept with mean 0.
    """

    def __init__(self, objective, team, mass, strength, l1_ratio, fit_intercept, intercept_share):
        self.objective, self.team, self.mass, self.fit_intercept = objective, team, mass, fit_intercept
        self.shift_free = objective.shape[1] > 1 and objective.shift_free
        self.penalty = strength * (1 - l1_ratio)
        self.intercept_penalty = self.penalty * intercept_share**2
        self.shape = objective.shape
        self.size = math.prod(self.shape) + (self.shape[1] if fit_intercept else 0)
        self.l1 = None
        if strength * l1_ratio > 0:
            self.l1 = np.full(self.size, strength * l1_ratio)
            self.l1[math.prod(self.shape) :] *= intercept_share

    def split(self, w):
        """Views of W and b (None without intercept)."""
        d, k = self.shape
        return w[: d * k].reshape(d, k), w[d * k :] if self.fit_intercept else None

    def join(self, W, b):
        """The vector of W and b."""
        return np.concatenate([np.ravel(W), b]) if self.fit_intercept else np.ravel(W).astype(np.float64)

    def value_and_grad(self, w):
        W, b = self.split(w)
        total, dW, db = self.objective.loss_grad(W, b, self.team)
        value = total / self.mass
        grad = np.empty_like(w, shape=(self.size,))
        gW, gb = self.split(grad)
        np.multiply(dW, 1 / self.mass, out=gW)
        if self.penalty:
            value += 0.5 * self.penalty * float(np.vdot(W, W))
            gW += self.penalty * W
        if b is not None:
            np.multiply(db, 1 / self.mass, out=gb)
            if self.intercept_penalty:
                value += 0.5 * self.intercept_penalty * float(b @ b)
                gb += self.intercept_penalty * b
        return value, grad

    def hvp(self, w, v):
        W, b = self.split(w)
        V, c = self.split(v)
        HW, Hb = self.objective.hvp(W, b, V, c, self.team)
        HW = HW / self.mass + self.penalty * V
        Hb /= self.mass
        if self.intercept_penalty and c is not None:
            Hb += self.intercept_penalty * c
        return self.join(HW, Hb)

    def hessian(self, w, convex=False):
        """The Hessian (size, size); with `convex`, of the losses' part only the eigenvalues above zero."""
        W, b = self.split(w)
        d, k = self.shape
        H = self.objective.hessian(W, b, self.team) / self.mass
        if convex:
            H = _positive_part(H)
        diagonal = np.einsum("ii->i", H)
        diagonal[: d * k] += self.penalty
        diagonal[d * k :] += self.intercept_penalty
        if self.shift_free:
            # Softmax ignores a shift of all outputs, so H is singular along it where nothing is penalized.
            # The gradient has no part along that shift: whatever curvature it gets here, no step takes it.  (Absolute
            # values have one; there the solver copes.)
            shift = np.full((k, k), 1 / k)
            for at in range(0 if self.penalty == 0 and self.l1 is None else d * k, self.size, k):
                H[at : at + k, at : at + k] += shift * diagonal[at : at + k].max()
        return H

    def preconditioner(self):
        """P⁻¹ as a function of a gradient, P the same matrix for every output, or its diagonal for sparse or wide X.

        P = curvature · (moment matrix of X and the intercept) + penalty, which Böhning (Multinomial logistic
        regression algorithm, Ann. Inst. Statist. Math. 44, 1992) shows to bound the Hessian at curvature 1/2
        (1/4 for one output).  A bound is not what conditions best, so `_CURVATURE` is smaller.
        """
        d, k = self.shape
        if not self._factored:
            squares = self.objective.squares()[: d + self.fit_intercept]
            diagonal = squares * (_DIAGONAL_CURVATURE / self.mass) + self.penalty
            if self.fit_intercept:
                diagonal[d] += self.intercept_penalty - self.penalty
            diagonal += 1e-10 * diagonal.max()
            inverse = np.repeat(1 / diagonal, k)
            inverse = self.objective.place(inverse.astype(self.objective.dtype, copy=False))
            return lambda g: inverse * g
        moment = self.objective.moment(self.team, _MOMENT_ROWS * (d + 1))
        if not self.fit_intercept:
            moment = moment[:d, :d]
        P = moment * (_CURVATURE / self.mass)
        diagonal = np.einsum("ii->i", P)
        diagonal[:d] += self.penalty
        diagonal[d:] += self.intercept_penalty
        diagonal += 1e-10 * diagonal.max()
        try:
            factor = linalg.cholesky(P, lower=True, check_finite=False)
        except linalg.LinAlgError:
            return None
        inverse = linalg.solve_triangular(factor, np.eye(len(P)), lower=True, check_finite=False)
        inverse = self.objective.place(inverse.astype(self.objective.dtype, copy=False))

        def apply(g):
            G = g.reshape(len(inverse), k).astype(inverse.dtype, copy=False)
            return (inverse.T @ (inverse @ G)).ravel().astype(np.float64, copy=False)

        return apply

    @property
    def first_step(self):
        """Multiple of P⁻¹ times the gradient that suits w = 0, where the Hessian is the moment matrix / 4 or / K."""
        k = self.shape[1]
        return (_CURVATURE if self._factored else _DIAGONAL_CURVATURE) * (4 if k == 1 else k)

    @property
    def _factored(self):
        return not self.objective.is_sparse and self.shape[0] <= _FACTOR_FEATURES

    def curvature(self, w):
        """The Hessian's diagonal, as a vector like w; of the losses' part what is above zero."""
        W, b = self.split(w)
        diagonal = np.maximum(self.objective.curvature(W, b, self.team), 0.0) / self.mass
        diagonal[:-1] += self.penalty
        diagonal[-1] += self.intercept_penalty
        return diagonal.ravel()[: self.size]


class ContinuedProblem(Problem):
    """A problem whose earlier rows are gone: a quadratic around the solution so far stands for them.

    f(w) = (sum of weighted losses + g·(w - c) + ½ (w - c)ᵀ A (w - c)) / mass + l1 terms

    c is the solution so far and g the gradient there, without the absolute values'; A is the sum of the earlier
    Hessians at the solutions of their time, the penalty's included (Laplace's approximation of what those rows
    say): the whole matrix for few parameters, its diagonal otherwise.  Losses that are not convex give the positive
    part of their Hessians: without a lower bound the quadratic would stand for nothing.

    Parameters
    ----------
    objective, team, mass, strength, l1_ratio, fit_intercept, intercept_share
        As for `Problem`; `mass` is that of all rows, earlier ones too.
    past : None or (c, g, A), ndarrays (size,), (size,) and (size, size) or (size,)
        None at the first call, when nothing came earlier: then this is `Problem`.
    """

    MOST_PARAMETERS = 1000  # for the whole matrix

    def __init__(self, *problem, past=None):
        super().__init__(*problem)
        self.past = past
        if past is not None:
            self.penalty = self.intercept_penalty = 0.0  # already in A

    @property
    def whole(self):
        """Whether A is a whole matrix, as the first call decided."""
        if self.past is not None:
            return self.past[2].ndim == 2
        return self.size <= self.MOST_PARAMETERS and not self.objective.is_sparse

    def value_and_grad(self, w):
        value, grad = super().value_and_grad(w)
        if self.past is not None:
            center, slope, A = self.past
            away = w - center
            pull = A @ away if self.whole else A * away
            value += float(away @ (slope + 0.5 * pull)) / self.mass
            grad += (slope + pull) / self.mass
        return value, grad

    def hessian(self, w, convex=False):
        H = super().hessian(w, convex)
        return H if self.past is None else H + self.past[2] / self.mass

    def preconditioner(self):
        if self.past is None:
            return super().preconditioner()
        d, k = self.shape
        squares = np.repeat(self.objective.squares()[: d + self.fit_intercept], k)
        diagonal = self.past[2] + _DIAGONAL_CURVATURE * squares
        inverse = self.mass / (diagonal + 1e-10 * diagonal.max())
        return lambda g: inverse * g

    def past_at(self, w):
        """`past` for the calls after this one, whose solution is w."""
        slope = self.mass * self.value_and_grad(w)[1]
        if self.whole:
            return w, slope, self.mass * self.hessian(w, convex=not self.objective.rows.factored)
        earlier = 0.0 if self.past is None else self.past[2]
        return w, slope, earlier + self.mass * self.curvature(w)


def _positive_part(H):
    """A symmetric matrix with its eigenvalues below zero replaced by zero."""
    values, vectors = linalg.eigh(H)
    if values[0] >= 0:
        return H
    return (vectors * np.maximum(values, 0.0)) @ vectors.T
