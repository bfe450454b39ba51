"""Solvers on functions whose minimum is known, and every way a minimization may end."""

import numpy as np
import pytest
from scipy.optimize import rosen, rosen_der, rosen_hess

from fastxent.solvers import _Pairs, lbfgs, newton, newton_cg, owlqn, proximal_newton


class Quadratic:
    """½ (x - 1)ᵀ A (x - 1) with condition number 1e4."""

    def __init__(self, n=30, seed=0):
        q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
        self.A = q @ np.diag(np.logspace(0, 4, n)) @ q.T
        self.start = np.zeros(n)

    def value_and_grad(self, x):
        r = x - 1
        return float(r @ self.A @ r) / 2, self.A @ r

    def hvp(self, x, v):
        return self.A @ v

    def hessian(self, x):
        return self.A


class Rosenbrock:
    """Curved, non-convex valley with its minimum at 1."""

    start = np.array([-1.2, 1.0, -1.2, 1.0])

    def value_and_grad(self, x):
        return rosen(x), rosen_der(x)

    def hvp(self, x, v):
        return rosen_hess(x) @ v

    def hessian(self, x):
        return rosen_hess(x)


class Logistic:
    """Mean of log(1 + exp(-y x·a)) with a little ridge, in plain NumPy."""

    def __init__(self, dtype=np.float64):
        rng = np.random.default_rng(0)
        self.X = rng.standard_normal((200, 6)) * np.logspace(-1, 1, 6)
        self.y = np.where(self.X @ np.ones(6) + rng.standard_normal(200) > 0, 1.0, -1.0)
        self.dtype = dtype
        self.start = np.zeros(6)

    def value_and_grad(self, x):
        m = (self.y * (self.X @ x)).astype(self.dtype)
        s = 1 / (1 + np.exp(m))
        value = np.logaddexp(0, -m).mean() + 5e-4 * (x @ x)
        return float(value), -(self.X.T @ (s * self.y)) / 200 + 1e-3 * x

    def hvp(self, x, v):
        return self.hessian(x) @ v

    def hessian(self, x):
        m = self.y * (self.X @ x)
        s = 1 / (1 + np.exp(m))
        return self.X.T @ ((s * (1 - s))[:, None] * self.X) / 200 + 1e-3 * np.eye(6)


def solve(name, f, **options):
    if name == "lbfgs":
        return lbfgs(f.value_and_grad, f.start, **options)
    if name == "newton-cg":
        return newton_cg(f.value_and_grad, f.hvp, f.start, **options)
    return newton(f.value_and_grad, f.hessian, f.start, **options)


NAMES = ["lbfgs", "newton-cg", "newton"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [Quadratic, Rosenbrock], ids=["quadratic", "rosenbrock"])
def test_known_minimum(name, kind):
    f = kind()
    out = solve(name, f, tol=1e-9, max_iter=1000)
    assert out.status == "converged"
    assert out.grad_max <= 1e-9
    np.testing.assert_allclose(out.x, 1, atol=1e-8)
    value, grad = f.value_and_grad(out.x)
    assert out.fun == value
    assert out.grad_max == abs(grad).max()


@pytest.mark.parametrize("name", NAMES)
def test_the_three_agree_on_logistic_regression(name):
    f = Logistic()
    out = solve(name, f, tol=1e-11, max_iter=500)
    reference = newton(f.value_and_grad, f.hessian, f.start, tol=1e-13)
    assert out.converged
    np.testing.assert_allclose(out.x, reference.x, atol=1e-8)


@pytest.mark.parametrize("preconditioned", [False, True])
def test_pairs_are_the_bfgs_updates_of_the_inverse(preconditioned):
    rng = np.random.default_rng(0)
    A = np.diag(rng.uniform(1, 5, 6)) + 0.1
    inverse = np.diag(1 / np.diagonal(A)) if preconditioned else np.eye(6)
    pairs = _Pairs(3, inverse.dot if preconditioned else None)
    kept = []
    for _ in range(5):
        s = rng.standard_normal(6)
        y = A @ s
        pairs.learn(s, y)
        kept = [*kept, (s, y)][-3:]
        H = inverse * (s @ y) / (y @ inverse @ y)
        for s, y in kept:  # Nocedal and Wright, (7.16)
            V = np.eye(6) - np.outer(y, s) / (s @ y)
            H = V.T @ H @ V + np.outer(s, s) / (s @ y)
        g = rng.standard_normal(6)
        np.testing.assert_allclose(pairs.inverse(g), H @ g, rtol=1e-10)
    assert pairs.forget()
    np.testing.assert_allclose(pairs.inverse(g), inverse @ g)


def test_preconditioner_saves_iterations_and_keeps_the_solution():
    f = Quadratic()
    inverse = np.linalg.inv(f.A + 0.1 * np.eye(30))
    plain = lbfgs(f.value_and_grad, f.start, tol=1e-8, max_iter=1000)
    for out in (
        lbfgs(f.value_and_grad, f.start, tol=1e-8, precondition=inverse.dot),
        newton_cg(f.value_and_grad, f.hvp, f.start, tol=1e-8, precondition=inverse.dot),
    ):
        assert out.converged
        assert out.n_evaluations < plain.n_evaluations / 3
        np.testing.assert_allclose(out.x, plain.x, atol=1e-7)


class Scaled(Quadratic):
    """The quadratic divided by a large number, above its minimum: small gradients far from the minimum."""

    def value_and_grad(self, x):
        value, grad = super().value_and_grad(x)
        return 1 + 1e-6 * value, 1e-6 * grad


def test_tol_decrease_goes_on_where_the_gradient_is_small_and_the_minimum_far():
    f = Scaled()
    plain = lbfgs(f.value_and_grad, f.start, tol=1e-3, max_iter=1000)
    assert plain.status == "converged"
    assert plain.fun > 1 + 1e-6
    further = lbfgs(f.value_and_grad, f.start, tol=1e-3, tol_decrease=1e-10, max_iter=1000)
    assert further.status == "converged"
    assert further.n_iter > plain.n_iter
    assert further.fun < 1 + 1e-8


def test_a_start_below_tol_is_left_alone_whatever_tol_decrease():
    f = Scaled()
    out = lbfgs(f.value_and_grad, np.full(30, 0.99), tol=1.0, tol_decrease=0.0)
    assert (out.status, out.n_iter) == ("converged", 0)


def test_tol_decrease_that_max_iter_forestalls_is_no_failure():
    f = Scaled()
    out = lbfgs(f.value_and_grad, f.start, tol=3e-3, max_iter=5, tol_decrease=1e-12)
    assert (out.status, out.n_iter) == ("converged", 5)
    assert out.fun > 1 + 1e-9


def test_pairs_in_float32_find_the_same_minimum():
    f = Quadratic()
    out = lbfgs(f.value_and_grad, f.start, tol=1e-9, max_iter=1000, pair_dtype=np.float32)
    assert out.status == "converged"
    assert out.x.dtype == np.float64
    np.testing.assert_allclose(out.x, 1, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_max_iter(name):
    out = solve(name, Rosenbrock(), tol=1e-12, max_iter=3)
    assert out.status == "max_iter"
    assert out.n_iter == 3
    assert "max_iter=3" in out.message
    assert "tol asks for 1e-12" in out.message
    assert out.fun < rosen(Rosenbrock.start)


@pytest.mark.parametrize("name", NAMES)
def test_no_iterations_at_all(name):
    f = Quadratic()
    out = solve(name, f, max_iter=0)
    assert (out.status, out.n_iter, out.n_evaluations) == ("max_iter", 0, 1)
    np.testing.assert_array_equal(out.x, f.start)


@pytest.mark.parametrize("name", NAMES)
def test_start_at_the_minimum(name):
    f = Quadratic()
    f.start = np.ones(30)
    out = solve(name, f)
    assert (out.status, out.n_iter) == ("converged", 0)


@pytest.mark.parametrize("name", NAMES)
def test_unreachable_tolerance_ends_by_precision(name):
    f = Logistic()
    out = solve(name, f, tol=0.0, max_iter=10_000)
    assert out.status in ("precision", "converged")
    assert out.grad_max < 1e-12
    assert out.n_iter < 1000


@pytest.mark.parametrize("name", NAMES)
def test_float32_noise_ends_by_precision_near_the_minimum(name):
    f, exact = Logistic(np.float32), Logistic()
    out = solve(name, f, tol=1e-13, max_iter=10_000, precision=float(np.finfo(np.float32).eps))
    best = newton(exact.value_and_grad, exact.hessian, exact.start, tol=1e-12)
    assert out.status == "precision"
    assert out.n_iter < 500
    assert exact.value_and_grad(out.x)[0] - best.fun < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_callback_sees_every_iteration_and_may_stop(name):
    seen = []

    def callback(iterate):
        seen.append((iterate.n_iter, iterate.fun))
        return len(seen) == 2

    out = solve(name, Rosenbrock(), tol=1e-10, callback=callback)
    assert out.status == "stopped"
    assert [n for n, _ in seen] == [1, 2]
    assert out.fun == seen[-1][1] < seen[0][1]


@pytest.mark.parametrize("name", NAMES)
def test_keyboard_interrupt_keeps_the_best_point(name):
    f = Rosenbrock()
    f.calls = 0
    original = f.value_and_grad

    def interrupted(x):
        f.calls += 1
        if f.calls == 6:
            raise KeyboardInterrupt
        return original(x)

    f.value_and_grad = interrupted
    out = solve(name, f, tol=1e-12)
    assert out.status == "interrupted"
    assert out.fun == rosen(out.x) < rosen(Rosenbrock.start)


@pytest.mark.parametrize("name", NAMES)
def test_start_that_is_not_finite(name):
    f = Quadratic()
    f.start = np.full(30, np.nan)
    out = solve(name, f)
    assert out.status == "not_finite"
    assert "not finite" in out.message


@pytest.mark.parametrize("name", NAMES)
def test_values_that_overflow_along_the_search_are_stepped_back_from(name):
    class Wall(Quadratic):
        """Σ -4x - log(1 - x): infinite from 1 on, minimal at 3/4."""

        start = np.full(3, -30.0)

        def value_and_grad(self, x):
            if (x >= 1).any():
                return np.inf, np.full(3, np.nan)
            return float((-4 * x - np.log(1 - x)).sum()), -4 + 1 / (1 - x)

        def hvp(self, x, v):
            return v / (1 - x) ** 2

        def hessian(self, x):
            return np.diag(1 / (1 - x) ** 2)

    f = Wall(3)
    f.start = Wall.start
    out = solve(name, f, tol=1e-8, max_iter=200)
    assert out.status == "converged"
    np.testing.assert_allclose(out.x, 0.75, atol=1e-8)


def test_newton_on_a_singular_and_an_indefinite_hessian():
    flat = newton(
        lambda x: (float(x[0] ** 2), np.array([2 * x[0], 0.0])), lambda x: np.diag([2.0, 0.0]), np.ones(2)
    )
    assert flat.converged
    np.testing.assert_allclose(flat.x, [0, 1], atol=1e-6)
    # cos has its maximum at 0: negative curvature near the start
    bump = newton(
        lambda x: (float(np.cos(x).sum()), -np.sin(x)), lambda x: -np.diag(np.cos(x)), np.array([0.1, -0.2])
    )
    assert bump.converged
    np.testing.assert_allclose(np.cos(bump.x), -1, atol=1e-8)


def solve_absolute(name, f, l1, start, **options):
    """`owlqn` or `proximal_newton` on f plus Σ l1 |x|."""
    if name == "owlqn":
        return owlqn(f.value_and_grad, l1, start, max_iter=2000, **options)
    return proximal_newton(f.value_and_grad, f.hessian, l1, start, **options)


def assert_optimal(f, l1, out, tol):
    """The subgradient of smallest norm is within tol, and what is held at zero is exactly 0."""
    value, grad = f.value_and_grad(out.x)
    zero = out.x == 0
    assert out.converged
    assert (abs(grad[zero]) <= l1[zero] + tol).all()
    np.testing.assert_allclose(grad[~zero], -np.sign(out.x[~zero]) * l1[~zero], atol=tol)
    assert out.fun == pytest.approx(value + l1 @ abs(out.x), rel=1e-15)


ABSOLUTE = pytest.mark.parametrize("name", ["owlqn", "proximal_newton"])


@ABSOLUTE
@pytest.mark.parametrize("strength", [1e-3, 3e-2, 0.3])
def test_absolute_values_hold_the_optimality_conditions(name, strength):
    f = Logistic()
    l1 = np.array([strength] * 5 + [0.0])
    out = solve_absolute(name, f, l1, f.start, tol=1e-8)
    assert_optimal(f, l1, out, 1e-8)
    assert out.x[-1] != 0
    assert strength < 0.3 or (out.x == 0).any()


@ABSOLUTE
def test_without_absolute_values_it_is_the_smooth_minimum(name):
    f = Logistic()
    plain = lbfgs(f.value_and_grad, f.start, tol=1e-9, max_iter=500)
    out = solve_absolute(name, f, np.zeros(6), f.start, tol=1e-9)
    np.testing.assert_allclose(out.x, plain.x, atol=1e-6)


@ABSOLUTE
def test_a_penalty_above_the_gradient_leaves_zero(name):
    f = Logistic()
    l1 = 2 * abs(f.value_and_grad(f.start)[1])
    out = solve_absolute(name, f, l1, f.start, tol=1e-8)
    assert (out.n_iter, out.x.tolist()) == (0, [0.0] * 6)
    assert (solve_absolute(name, f, l1, np.ones(6), tol=1e-8).x == 0).all()


class Diagonal:
    """½ |x - a|²: soft thresholds are the minimum."""

    a = np.array([3.0, -0.5, -4.0])

    def value_and_grad(self, x):
        return float((x - self.a) @ (x - self.a)) / 2, x - self.a

    def hessian(self, x):
        return np.eye(3)


@ABSOLUTE
def test_starts_away_from_zero_and_crosses_it(name):
    out = solve_absolute(name, Diagonal(), np.ones(3), np.array([-5.0, 5.0, 5.0]), tol=1e-10)
    np.testing.assert_allclose(out.x, [2, 0, -3], atol=1e-9)
    assert out.x[1] == 0


@pytest.mark.parametrize("seed", range(30))
def test_proximal_newton_solves_quadratics_in_one_step(seed):
    """Any condition, singular ones too, any start: the model is the function, and is minimized exactly."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 25))
    root = rng.standard_normal((int(rng.integers(1, 2 * n + 1)), n)) * np.logspace(0, -rng.integers(0, 4), n)

    class Least:
        H = root.T @ root
        b = root.T @ rng.standard_normal(len(root))

        def value_and_grad(self, x):
            return float(x @ self.H @ x) / 2 - float(self.b @ x), self.H @ x - self.b

        def hessian(self, x):
            return self.H

    f = Least()
    l1 = rng.uniform(0.01, 1, n) * abs(f.b).max() * 10.0 ** -rng.integers(0, 4)
    start = rng.standard_normal(n) * rng.integers(0, 2)
    out = solve_absolute("proximal_newton", f, l1, start, tol=1e-7 * max(abs(f.b).max(), 1.0))
    assert_optimal(f, l1, out, 1e-6 * max(abs(f.b).max(), 1.0))
    assert out.n_iter <= 2


def test_proximal_newton_on_a_hessian_that_is_zero():
    """A linear function: nothing bounds the model, so the steepest direction is taken until the iterations end."""
    out = proximal_newton(
        lambda x: (-float(x.sum()), -np.ones(2)),
        lambda x: np.zeros((2, 2)),
        np.full(2, 0.5),
        np.zeros(2),
        max_iter=3,
    )
    assert out.status == "max_iter"
    assert np.isfinite(out.x).all()
    assert out.fun < 0
