"""Full-batch minimizers of a smooth function given as `value_and_grad(x)`, some also `hvp(x, v)` or `hessian(x)`.

A solver knows vectors only: no data, no labels, no backends.  Iterates and gradients are float64 vectors, NumPy's or,
for `lbfgs` and `owlqn`, those of a library that answers NumPy's functions (CuPy): they stay where they are.
Every solver stops at the first of

    converged    max |gradient| <= tol
    max_iter     that many iterations
    precision    values and gradients no longer change beyond their rounding error, and the gradient is above tol
    not_finite   the function or its gradient is not finite where the search starts
    stopped      the callback returned True
    interrupted  KeyboardInterrupt

and answers with an `Outcome`: a value, never an exception, always holding the best point so far and, as
words, what happened and what to do about it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from scipy import linalg

__all__ = ["Iterate", "Outcome", "host", "lbfgs", "newton", "newton_cg", "owlqn", "proximal_newton"]

_DECREASE = 1e-4  # of the sufficient decrease condition
_CURVATURE = 0.9
_MAX_TRIALS = 30  # of one line search
_PATIENCE = 8  # iterations without measurable progress


@dataclass(frozen=True)
class Iterate:
    """What a callback sees after an iteration: the point, its value, max |gradient| and the iteration's number."""

    x: np.ndarray = field(repr=False)
    fun: float
    grad_max: float
    n_iter: int


@dataclass(frozen=True)
class Outcome:
    """How a minimization ended.

    Attributes
    ----------
    x : ndarray
        The best point found.
    fun : float
        The function there.
    grad_max : float
        max |gradient| there.
    tol : float
        What `grad_max` should have reached.
    n_iter, n_evaluations, n_products : int
        Iterations, calls of `value_and_grad`, and of `hvp` or `hessian`.
    status : str
        "converged", "max_iter", "precision", "not_finite", "stopped" or "interrupted".
    message : str
        What happened, by how much, and what to do.
    """

    x: np.ndarray = field(repr=False)
    fun: float
    grad_max: float
    tol: float
    n_iter: int
    n_evaluations: int
    n_products: int
    status: str
    message: str

    @property
    def converged(self):
        """Whether max |gradient| reached tol."""
        return self.status == "converged"


def lbfgs(
    value_and_grad,
    x0,
    *,
    tol=1e-4,
    tol_decrease=math.inf,
    max_iter=100,
    memory=10,
    precision=2.0**-52,
    precondition=None,
    first_step=1.0,
    pair_dtype=np.float64,
    callback=None,
):
    """Limited-memory BFGS with a line search for the strong Wolfe conditions.

    Nocedal and Wright, Numerical optimization, 2006, section 7.2; the inverse Hessian it starts from is γ P⁻¹
    with γ = sᵀy / yᵀP⁻¹y, P the preconditioner (the identity without one).

    Parameters
    ----------
    value_and_grad : callable
        x (n,) float64 to (float, ndarray (n,)).
    x0 : ndarray (n,)
    tol : float
        Bound on max |gradient|.
    tol_decrease : float
        After the first step the search goes on below `tol`, too, while a full step promises to lower the function
        by more than this share of it (of `tol`, where the function is smaller still): ½ gᵀHg, with H the inverse
        Hessian as far as it is known.  A preconditioner can make all entries of the gradient small before that.
    max_iter : int
    memory : int
        Pairs of steps and gradient changes kept.
    precision : float
        Relative rounding error of the values; smaller differences are noise.
    precondition : None or callable
        g (n,) to P⁻¹g for a positive definite P that resembles the Hessian.
    first_step : float
        Multiple of P⁻¹g to try first; 1 where P has the scale of the Hessian at `x0`.
    pair_dtype : float32 or float64
        Of the pairs, whose reading is half of a step's cost beyond 100,000 entries; they only choose directions.
    callback : None or callable
        Called with an `Iterate` after every iteration; True stops.

    Returns
    -------
    Outcome

    Examples
    --------
    >>> import numpy as np
    >>> out = lbfgs(lambda x: (float((x - 3) @ (x - 3)), 2 * (x - 3)), np.zeros(2))
    >>> out.status, out.x.round(6).tolist()
    ('converged', [3.0, 3.0])
    """
    run = _Run(value_and_grad, x0, tol, max_iter, precision, callback)
    run.tol_decrease = float(tol_decrease)
    pairs = _Pairs(memory, precondition, first_step, pair_dtype)

    def direction():
        p = pairs.inverse(run.grad)
        return np.negative(p, out=p)

    return run.minimize(direction, pairs.first_step, pairs.learn, pairs.forget)


def owlqn(
    value_and_grad,
    l1,
    x0,
    *,
    tol=1e-4,
    max_iter=100,
    memory=10,
    precision=2.0**-52,
    callback=None,
):
    """Orthant-wise limited-memory BFGS for a smooth function plus Σ l1_i |x_i|.

    Andrew and Gao, Scalable training of L1-regularized log-linear models, ICML 2007: the gradient of smallest
    norm takes the gradient's place, a step keeps to the orthant it starts into, and whatever would leave it
    becomes exactly 0.  Where the quasi-Newton direction gets stuck, it is forgotten and the steepest one
    tried.

    Parameters
    ----------
    value_and_grad : callable
        The smooth part: x (n,) float64 to (float, ndarray (n,)).
    l1 : ndarray (n,)
        Weights >= 0 of the absolute values; 0 leaves an entry alone.
    x0, tol, max_iter, memory, precision, callback
        As for `lbfgs`; `tol` bounds the largest entry of the subgradient of smallest norm.

    Returns
    -------
    Outcome
        `fun` includes the absolute values.

    Examples
    --------
    >>> import numpy as np
    >>> a = np.array([3.0, 0.5])
    >>> out = owlqn(lambda x: (float((x - a) @ (x - a)) / 2, x - a), np.ones(2), np.zeros(2))
    >>> out.status, out.x.round(4).tolist()
    ('converged', [2.0, 0.0])
    """
    run = _OrthantRun(value_and_grad, l1, x0, tol, max_iter, precision, callback)
    pairs = _Pairs(memory)

    def direction():
        p = -pairs.inverse(run.steepest)
        p[p * run.steepest >= 0] = 0
        return p

    return run.minimize(direction, pairs.first_step, pairs.learn, pairs.forget)


def proximal_newton(
    value_and_grad, hessian, l1, x0, *, tol=1e-4, max_iter=100, precision=2.0**-52, callback=None
):
    """Newton's method for a smooth convex function plus Σ l1_i |x_i|, whose quadratic models are minimized exactly.

    Lee, Sun and Saunders, Proximal Newton-type methods for minimizing composite functions, SIAM J. Optim. 24, 2014,
    with their line search; the model, a quadratic plus the absolute values, is minimized by an active-set method.

    Parameters
    ----------
    value_and_grad, l1, x0, tol, max_iter, precision, callback
        As for `owlqn`.
    hessian : callable
        x (n,) to the symmetric matrix (n, n), positive semidefinite.

    Returns
    -------
    Outcome
        `fun` includes the absolute values.

    Examples
    --------
    >>> import numpy as np
    >>> a, A = np.array([3.0, 0.5]), np.eye(2)
    >>> out = proximal_newton(lambda x: (float((x - a) @ (x - a)) / 2, x - a), lambda x: A, np.ones(2), np.zeros(2))
    >>> out.status, out.n_iter, out.x.round(9).tolist()
    ('converged', 1, [2.0, 0.0])
    """
    run = _ProximalRun(value_and_grad, l1, x0, tol, max_iter, precision, callback)

    def direction():
        run.n_products += 1
        return _model_minimizer(hessian(run.x), run.grad, run.l1, run.x) - run.x

    return run.minimize(direction, lambda p: 1.0, lambda s, y: None, lambda: False)


def newton_cg(
    value_and_grad,
    hvp,
    x0,
    *,
    tol=1e-4,
    max_iter=100,
    max_cg=200,
    precision=2.0**-52,
    precondition=None,
    callback=None,
):
    """Newton's method whose steps come from conjugate gradients, with a line search for the strong Wolfe conditions.

    Conjugate gradients stop at a relative residual of min(1/2, √|g|) (Nocedal and Wright, Numerical
    optimization, 2006, algorithm 7.1), at a direction of non-positive curvature, or after `max_cg` products.

    Parameters
    ----------
    value_and_grad, x0, tol, max_iter, precision, precondition, callback
        As for `lbfgs`; the preconditioner serves the conjugate gradients.
    hvp : callable
        (x (n,), v (n,)) to the Hessian at x times v.
    max_cg : int
        Products per iteration.

    Returns
    -------
    Outcome

    Examples
    --------
    >>> import numpy as np
    >>> A = np.diag([1.0, 100.0])
    >>> out = newton_cg(lambda x: (float(x @ A @ x) / 2, A @ x), lambda x, v: A @ v, np.ones(2), tol=1e-10)
    >>> out.status, bool(abs(out.x).max() < 1e-9)
    ('converged', True)
    """
    run = _Run(value_and_grad, x0, tol, max_iter, precision, callback)

    def direction():
        g = run.grad
        p = np.zeros_like(g)
        r = g.copy()
        z = r if precondition is None else precondition(r)
        d = -z
        rz = r @ z
        # Asking for less than a tenth of tol would only polish digits that the next test does not read.
        enough = max(min(0.5, math.sqrt(np.linalg.norm(g))) * np.linalg.norm(g), 0.1 * tol)
        for _ in range(max_cg):
            if np.linalg.norm(r) <= enough:
                break
            Hd = hvp(run.x, d)
            run.n_products += 1
            curvature = d @ Hd
            if not curvature > 1e-15 * (d @ d):
                break
            a = rz / curvature
            p += a * d
            r += a * Hd
            z = r if precondition is None else precondition(r)
            previous, rz = rz, r @ z
            d = -z + (rz / previous) * d
        return p if p.any() else d

    return run.minimize(direction, lambda p: 1.0, lambda s, y: None, lambda: False)


def newton(value_and_grad, hessian, x0, *, tol=1e-4, max_iter=100, precision=2.0**-52, callback=None):
    """Newton's method with a Cholesky factor of the whole Hessian and a line search for the strong Wolfe conditions.

    A Hessian that is not positive definite (two logits that may both be shifted, say) gets the smallest
    multiple of its largest diagonal entry added that makes it so.

    Parameters
    ----------
    value_and_grad, x0, tol, max_iter, precision, callback
        As for `lbfgs`.
    hessian : callable
        x (n,) to the symmetric matrix (n, n).

    Returns
    -------
    Outcome

    Examples
    --------
    >>> import numpy as np
    >>> A = np.diag([1.0, 100.0])
    >>> out = newton(lambda x: (float(x @ A @ x) / 2, A @ x), lambda x: A, np.ones(2))
    >>> out.status, out.n_iter
    ('converged', 1)
    """
    run = _Run(value_and_grad, x0, tol, max_iter, precision, callback)

    def direction():
        H = hessian(run.x)
        run.n_products += 1
        largest = max(float(np.diagonal(H).max(initial=0.0)), 1e-300)
        ridge = 0.0
        while ridge <= 1e6:
            damped = H if ridge == 0 else H + ridge * largest * np.eye(len(H))
            _, p, info = linalg.lapack.dposv(damped, run.grad)
            # An indefinite matrix can pass as definite by rounding: then its "solution" is no descent.
            if info == 0 and np.isfinite(p).all() and p @ run.grad > 0:
                return -p
            ridge = 1e-14 if ridge == 0 else 100 * ridge
        return -run.grad

    return run.minimize(direction, lambda p: 1.0, lambda s, y: None, lambda: False)


def host(x):
    """A vector in memory; itself where it is there."""
    return x.get() if hasattr(x, "get") else x


class _Pairs:
    """What L-BFGS knows of the inverse Hessian: pairs of steps s and gradient changes y, and a preconditioner P.

    The compact form of Byrd, Nocedal and Schnabel, Representations of quasi-Newton matrices and their use in
    limited memory methods, Math. Program. 63, 1994: with R the upper triangle of SᵀY and D its diagonal,

        a = R⁻¹ Sᵀg,  r = γ P⁻¹ (g - Y a),  H g = r + S R⁻ᵀ (D a - Yᵀ r),

    which is the two-loop recursion in four matrix-vector products.
    """

    def __init__(self, memory, precondition=None, first_step=1.0, dtype=np.float64):
        self._memory, self._precondition, self._first_step = memory, precondition, first_step
        self._dtype = dtype
        self._order = []  # slots of the pairs, oldest first
        self._S = self._Y = None

    def inverse(self, grad):
        """Inverse Hessian times a gradient, a new vector."""
        order, count = self._order, len(self._order)
        if not count:
            return (grad if self._precondition is None else self._precondition(grad)).copy()
        S, Y = self._S[:count], self._Y[:count]
        R = self._products[np.ix_(order, order)]
        a, c = np.empty(count), np.empty(count)
        grad = grad.astype(self._dtype, copy=False)
        a[order] = ordered = linalg.lapack.dtrtrs(R, host(S @ grad)[order])[0]
        r = np.asarray(a, dtype=self._dtype, like=grad) @ Y
        np.subtract(grad, r, out=r)
        if self._precondition is not None:
            r = self._precondition(r).astype(self._dtype, copy=False)
        r *= self._scale
        c[order] = linalg.lapack.dtrtrs(R, np.diagonal(R) * ordered - host(Y @ r)[order], trans=1)[0]
        r += np.asarray(c, dtype=self._dtype, like=grad) @ S
        return r.astype(np.float64, copy=False)

    def first_step(self, p):
        # Without any knowledge of the curvature a step of length 1 at most; later ones are scaled by the pairs.
        if self._order:
            return 1.0
        if self._precondition is not None:
            return self._first_step
        return min(1.0, 1.0 / max(float(np.linalg.norm(p)), 1e-300))

    def learn(self, s, y):
        curvature = float(s @ y)
        if curvature <= 1e-14 * float(np.linalg.norm(s)) * float(np.linalg.norm(y)):
            return
        if self._S is None:
            shape = (self._memory, len(s))
            self._S, self._Y = (np.empty_like(s, dtype=self._dtype, shape=shape) for _ in range(2))
            self._products = np.zeros((self._memory, self._memory))
        slot = self._order.pop(0) if len(self._order) == self._memory else len(self._order)
        self._order.append(slot)
        self._S[slot], self._Y[slot] = s, y
        count = len(self._order)
        y = self._Y[slot]
        self._products[:count, slot] = host(self._S[:count] @ y)
        self._products[slot, slot] = curvature
        self._scale = curvature / float(y @ (y if self._precondition is None else self._precondition(y)))

    def forget(self):
        known = bool(self._order)
        self._order.clear()
        return known


class _Run:
    """The loop that all solvers share: line search, stopping rules, callback, and the outcome."""

    tol_decrease = math.inf

    def __init__(self, value_and_grad, x0, tol, max_iter, precision, callback):
        self.value_and_grad, self.tol, self.max_iter = value_and_grad, float(tol), max_iter
        self.precision, self.callback = precision, callback
        start = np.array(x0, dtype=np.float64, like=x0)
        self.move(start, math.nan, np.full_like(start, np.nan))
        self.n_iter = self.n_evaluations = self.n_products = 0

    def move(self, x, value, grad):
        """Stand at x."""
        self.x, self.fun, self.grad = x, value, grad
        self.steepest = self.steepest_of(x, grad)
        self.grad_max = max(float(self.steepest.max()), -float(self.steepest.min())) if len(x) else 0.0
        self.converged = self.grad_max <= self.tol

    def steepest_of(self, x, grad):
        """The gradient, or what stands for it: its largest entry is what `tol` bounds."""
        return grad

    def evaluate(self, x):
        self.n_evaluations += 1
        value, grad = self.value_and_grad(x)
        return float(value), np.asarray(grad, dtype=np.float64, like=self.x)

    def minimize(self, direction, first_step, learn, forget):
        """Iterate until a stopping rule holds.

        `direction()` is a search direction at (x, grad), `first_step(p)` the step to try first, `learn(s, y)`
        takes the accepted step, `forget()` drops what was learnt and says whether there was anything.
        """
        try:
            status = self._iterate(direction, first_step, learn, forget)
        except KeyboardInterrupt:
            status = "interrupted"
        return self._outcome(status)

    def _iterate(self, direction, first_step, learn, forget):
        self.move(self.x, *self.evaluate(self.x))
        if not (math.isfinite(self.fun) and np.isfinite(self.grad).all()):
            return "not_finite"
        milestone, idle = (self.fun, self.grad_max), 0
        while True:
            if self.converged and (self.n_iter == 0 or self.tol_decrease == math.inf):
                return "converged"
            if self.n_iter >= self.max_iter:
                return "converged" if self.converged else "max_iter"
            p = direction()
            slope = float(p @ self.steepest)
            if self.converged and not -0.5 * slope > self.tol_decrease * max(abs(self.fun), self.tol):
                return "converged"
            if not (math.isfinite(slope) and slope < 0):
                if forget():
                    continue
                p = -self.steepest
                slope = float(p @ self.steepest)
            found = self._search(p, slope, first_step(p))
            if found is None:
                if forget():
                    continue
                return "converged" if self.converged else "precision"
            x, value, grad = found
            s, y = x - self.x, grad - self.grad
            self.move(x, value, grad)
            self.n_iter += 1
            learn(s, y)
            if self.callback is not None and self.callback(Iterate(x, value, self.grad_max, self.n_iter)):
                return "converged" if self.converged else "stopped"
            # Progress since the last milestone: a value lower by more than rounding, or a clearly smaller
            # gradient.
            if value < milestone[0] - self.precision * abs(value) or self.grad_max < 0.9 * milestone[1]:
                milestone, idle = (value, self.grad_max), 0
            else:
                idle += 1
            if idle >= _PATIENCE:
                return "converged" if self.converged else "precision"

    def _search(self, p, slope, step):
        """A step along p for the strong Wolfe conditions: (x, value, gradient), or None.

        Bracketing and interpolation as in Nocedal and Wright, algorithms 3.5 and 3.6.  Where values differ by
        no more than their rounding error, the slopes decide instead, as in Hager and Zhang, A new conjugate
        gradient method with guaranteed descent and an efficient line search, SIAM J. Optim. 16, 2005.
        """
        noise = self.precision * abs(self.fun)
        low, high = _Trial(0.0, self.fun, slope, None, None), None
        trials = 0
        while trials < _MAX_TRIALS:
            x = self.x + step * p
            if (x == self.x).all():
                break
            value, grad = self.evaluate(x)
            trials += 1
            here = _Trial(step, value, float(p @ grad), x, grad)
            if not (math.isfinite(value) and math.isfinite(here.slope)):
                high, step = _Trial(step, math.inf, math.inf, None, None), low.step + 0.1 * (step - low.step)
                continue
            flat = value <= self.fun + noise and here.slope <= (2 * _DECREASE - 1) * slope
            if not (value <= self.fun + _DECREASE * step * slope or flat) or value > low.value + noise:
                high = here
            elif abs(here.slope) <= -_CURVATURE * slope:
                return x, value, grad
            else:
                if here.slope * ((high.step if high else math.inf) - low.step) >= 0:
                    high = low
                low = here
            if high is None:
                step = low.step * min(10.0, max(2.0, _extrapolated(self.fun, slope, low)))
            else:
                step = _between(low, high)
                if abs(high.step - low.step) <= 1e-12 * max(low.step, high.step):
                    break
        # A point of sufficient decrease is worth taking without the curvature condition.
        return None if low.x is None else (low.x, low.value, low.grad)

    def _outcome(self, status):
        gap = f"max |gradient| is {self.grad_max:.3g}, tol asks for {self.tol:.3g}"
        if self.tol > 0 and math.isfinite(self.grad_max):
            gap += f" ({self.grad_max / self.tol:.3g} times as much)"
        messages = {
            "converged": f"converged after {self.n_iter} iterations: max |gradient| is {self.grad_max:.3g}, "
            f"tol asks for {self.tol:.3g}",
            "max_iter": f"stopped at max_iter={self.max_iter} iterations: {gap}. Increase max_iter or tol, or scale "
            "the features to similar ranges",
            "precision": f"stopped after {self.n_iter} iterations because rounding errors hide any further progress: "
            f"{gap}. Increase tol, scale the features to similar ranges, or pass float64 data if they are float32",
            "not_finite": "stopped at the start because the objective or its gradient is not finite there. Scale the "
            "features, or check the starting point if this is a warm start",
            "stopped": f"stopped by a callback after {self.n_iter} iterations: {gap}",
            "interrupted": f"interrupted after {self.n_iter} iterations; the point reached is kept: {gap}",
        }
        counts = (self.n_iter, self.n_evaluations, self.n_products)
        return Outcome(host(self.x), self.fun, self.grad_max, self.tol, *counts, status, messages[status])


class _AbsoluteRun(_Run):
    """A run whose function is value_and_grad's plus Σ l1 |x|."""

    def __init__(self, value_and_grad, l1, x0, *options):
        self.l1 = np.asarray(l1, dtype=np.float64, like=x0)
        super().__init__(value_and_grad, x0, *options)

    def evaluate(self, x):
        value, grad = super().evaluate(x)
        return value + float(self.l1 @ np.abs(x)), grad

    def steepest_of(self, x, grad):
        """The subgradient of smallest norm."""
        side = np.where(x == 0, -np.sign(grad), np.sign(x))
        held = (x == 0) & (np.abs(grad) <= self.l1)
        return np.where(held, 0.0, grad + side * self.l1)

    def _search(self, p, slope, step):
        """Halve the step until the point is low enough for the decrease that its gradients promise."""
        noise = self.precision * abs(self.fun)
        for _ in range(_MAX_TRIALS):
            x = self.reached(step * p)
            if (x == self.x).all():
                return None
            value, grad = self.evaluate(x)
            if value <= self.fun + _DECREASE * self.promised(x) + noise and np.isfinite(grad).all():
                return x, value, grad
            step *= 0.5
        return None


class _OrthantRun(_AbsoluteRun):
    """Steps within one orthant at a time: what would leave it becomes 0."""

    def reached(self, p):
        x = self.x + p
        orthant = np.where(self.x == 0, -np.sign(self.steepest), np.sign(self.x))
        x[(x * orthant < 0) & (self.l1 > 0)] = 0
        return x

    def promised(self, x):
        return float(self.steepest @ (x - self.x))


class _ProximalRun(_AbsoluteRun):
    """Straight steps: the absolute values are in the model that chose the direction."""

    def reached(self, p):
        x = self.x + p
        x[np.abs(x) <= 4 * np.finfo(np.float64).eps * np.abs(self.x)] = 0  # x + (0 - x) is 0, rounded or not
        return x

    def promised(self, x):
        return float(self.grad @ (x - self.x) + self.l1 @ (np.abs(x) - np.abs(self.x)))


def _model_minimizer(H, grad, l1, x):
    """The u that minimizes gradᵀ(u - x) + ½ (u - x)ᵀ H (u - x) + Σ l1 |u|.

    Entries are free (not zero, or l1 is 0 there) or held at zero. The free ones move to the minimum among themselves,
    where those that would change sides are held; if that is not lower, they move until the first one reaches zero. At
    the minimum those are freed whose gradient exceeds l1, but for those that would then go to the wrong side; at least
    the one that exceeds it most (Lee, Battle, Raina and Ng, Efficient sparse coding algorithms, NIPS 2006). Every
    move lowers the function, so no minimum among free entries comes back.
    """
    u, r = x.copy(), grad  # r: the gradient at u of what is smooth
    largest = float(H.diagonal().max(initial=0.0))
    enough = 1e-10 * max(float(np.abs(grad).max(initial=0.0)), float(l1.max(initial=0.0)))
    penalized = l1 > 0
    side = np.sign(u) * penalized
    free = (u != 0) | ~penalized

    def way(free, side):
        """From u to the minimum among the free entries, were they to keep their sides."""
        p = np.zeros_like(u)
        block, slope = H[free][:, free], (r + l1 * side)[free]
        for ridge in (1e-13, 1e-7):  # H may be singular: a shift of all logits changes nothing
            damped = block.copy()
            damped.ravel()[:: len(block) + 1] += ridge * largest
            _, p[free], info = linalg.lapack.dposv(damped, -slope)
            if info == 0:
                return p
        return np.zeros_like(u)

    for _ in range(20 * len(x) + 20):
        if np.abs((r + l1 * side)[free]).max(initial=0.0) > enough:
            p = way(free, side)
        else:
            excess = np.where(free, 0.0, np.abs(r) - l1)
            if excess.max(initial=0.0) <= enough:
                break
            freed = excess > enough
            while True:
                sides = np.where(freed, -np.sign(r), side)
                p = way(free | freed, sides)
                right = freed & (p * sides > 0)
                if freed.sum() in (1, right.sum()):
                    break
                freed = right if right.any() else np.arange(len(x)) == excess.argmax()
            free, side = free | freed, sides
        end = u + p
        if crossed := bool((end * side < 0).any()):
            end[end * side < 0] = 0.0
        move = end - u
        if not move.any():
            break
        bent = H @ move
        if crossed and not r @ move + 0.5 * (move @ bent) + l1 @ (np.abs(end) - np.abs(u)) < 0:
            at = np.flatnonzero(p * side < 0)
            ends = -u[at] / p[at]
            end = u + ends.min() * p
            end[at[ends == ends.min()]] = 0.0
            bent = H @ (end - u)
        u, r = end, r + bent
        free &= (u != 0) | ~penalized
        side = side * free
    return u


@dataclass(frozen=True)
class _Trial:
    """A point of a line search: its step, value and slope along the direction."""

    step: float
    value: float
    slope: float
    x: np.ndarray | None
    grad: np.ndarray | None


def _extrapolated(value, slope, low):
    """Factor by which to lengthen the step: where the line through both slopes reaches zero."""
    bend = low.slope - slope
    return -slope / bend if bend > 0 else math.inf


def _between(low, high):
    """The minimizer of the cubic through both ends, kept a tenth of the interval away from them."""
    a, b = low.step, high.step
    width = b - a
    step = a + 0.5 * width
    if math.isfinite(high.value):
        d1 = low.slope + high.slope - 3 * (low.value - high.value) / (a - b)
        square = d1 * d1 - low.slope * high.slope
        if square >= 0:
            d2 = math.copysign(math.sqrt(square), width)
            denominator = high.slope - low.slope + 2 * d2
            if denominator != 0:
                step = b - width * (high.slope + d2 - d1) / denominator
    edge = 0.1 * abs(width)
    return float(min(max(step, min(a, b) + edge), max(a, b) - edge))
