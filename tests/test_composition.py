"""a + b, 0.3 * a, and options on top of options: random compositions under Hypothesis."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import fastxent as fx
from fastxent import losses
from fastxent.losses import ScaledLoss, SumLoss

numbers = st.floats(0, 1, allow_subnormal=False)
K = 4


@st.composite
def softmax_options(draw):
    """Any of the options that the softmax losses share."""
    some = {
        "class_weight": st.tuples(*[st.floats(0.125, 4)] * K),
        "label_smoothing": numbers,
        "smoothing": st.sampled_from(["uniform", "exclude_target"]),
        "ignore_index": st.sampled_from([-100, 0, 2, None]),
        "z_loss": st.floats(0, 0.5),
        "temperature": st.floats(0.25, 4),
        "logit_bias": st.tuples(*[st.floats(-2, 2)] * K),
        "base": st.sampled_from([2.0, 10.0]),
        "empty": st.just("zero"),
    }
    return {name: draw(some[name]) for name in draw(st.sets(st.sampled_from(sorted(some))))}


@st.composite
def members(draw, options=None):
    """Any loss of the softmax family under any options."""
    options = draw(softmax_options()) if options is None else options
    return draw(
        st.one_of(
            st.builds(fx.SoftmaxCrossEntropy, **{k: st.just(v) for k, v in options.items()}),
            st.floats(0, 5).map(lambda g: fx.FocalLoss(gamma=g, **options)),
            st.floats(0, 2).map(lambda a: fx.FocalLoss(alpha=a, **options)),
            st.floats(-1, 5).map(lambda e: fx.Poly1Loss(epsilon=e, **options)),
            st.floats(0.01, 1).map(lambda r: fx.GeneralizedCrossEntropy(r=r, **options)),
            st.tuples(numbers, numbers).map(lambda t: fx.SymmetricCrossEntropy(t[0], t[1], **options)),
        )
    )


@st.composite
def sums(draw):
    """Two to four terms, some of them multiples or sums themselves."""
    terms = draw(st.lists(members(), min_size=2, max_size=4))
    factors = draw(st.lists(st.sampled_from([None, 0, 0.5, 1, 3]), min_size=len(terms), max_size=len(terms)))
    terms = [t if c is None else c * t for t, c in zip(terms, factors, strict=True)]
    total = terms[0]
    for term in terms[1:]:
        total = total + term if draw(st.booleans()) else term + total
    return total


@st.composite
def problems(draw, soft=None):
    n = draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    z = rng.normal(size=(n, K)) * draw(st.sampled_from([0.5, 3.0, 20.0]))
    soft = draw(st.booleans()) if soft is None else soft
    y = rng.dirichlet(np.ones(K), n) if soft else rng.integers(0, K, n)
    return z, y, rng.uniform(0.25, 2, n), rng.normal(size=z.shape)


def assert_close(a, b, rtol=1e-10, floor=1e-30):
    a, b = np.asarray(a), np.asarray(b)
    assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max(initial=floor / rtol))


# ------------------------------------------------------------------------------------------------------ options


@given(members(), problems(soft=False))
def test_labels_equal_one_hot(backend, f, problem):
    z, y, v, x = problem
    v = np.where(y == f.ignore_index, 0, v)
    one = np.eye(K)[y]
    for reduction in ("mean", "sum"):
        hard, soft = (f.loss_grad(z, t, v, reduction, backend=backend) for t in (y, one))
        assert_close(hard[0], soft[0])
        assert_close(hard[1], soft[1])
    assert_close(f.hvp(z, y, x, v, backend=backend), f.hvp(z, one, x, v, backend=backend))
    for policy in losses.HESSIANS:
        hard, soft = (f.grad_hess(z, t, v, hessian=policy, backend=backend)[1] for t in (y, one))
        assert_close(hard, soft)


@given(members(), problems(soft=False), st.sets(st.integers(0, 5)))
def test_ignored_equals_deleted(backend, f, problem, gone):
    z, y, v, x = problem
    gone = [i for i in gone if i < len(y)]
    if f.ignore_index is None:
        v[gone] = 0
        keep = v != 0
    else:
        y[gone] = f.ignore_index
        keep = y != f.ignore_index
    whole = f.loss_grad(z, y, v, backend=backend)
    part = f.loss_grad(z[keep], y[keep], v[keep], backend=backend)
    assert_close(whole[0], part[0])
    assert_close(whole[1][keep], part[1])
    assert not whole[1][~keep].any()
    assert_close(
        f.hvp(z, y, x, v, backend=backend)[keep], f.hvp(z[keep], y[keep], x[keep], v[keep], backend=backend)
    )


@given(members(), problems(), st.lists(st.integers(1, 4), min_size=6, max_size=6))
def test_weight_equals_repetition(backend, f, problem, times):
    z, y, _, _ = problem
    times = np.array(times[: len(z)])
    loss, grad = f.loss_grad(z, y, times.astype(float), backend=backend)
    again, repeated = f.loss_grad(np.repeat(z, times, 0), np.repeat(y, times, 0), backend=backend)
    assert_close(loss, again)
    at = np.concatenate([[0], times.cumsum()[:-1]])
    assert_close(np.add.reduceat(repeated, at), grad)


@given(problems(), numbers, st.floats(0.25, 4), st.floats(0.25, 4), st.floats(0, 5))
def test_two_classes_are_binary(backend, problem, smoothing, weight, temperature, gamma):
    """Softmax over [0, z] is the sigmoid loss of z, focal or not."""
    z, v = problem[0][:, :1], problem[2]
    y = (problem[3][:, 0] > 0).astype(int)
    pair = np.hstack([np.zeros_like(z), z])
    f = fx.SoftmaxCrossEntropy(label_smoothing=smoothing, class_weight=(1.0, weight), temperature=temperature)
    g = fx.SigmoidCrossEntropy(label_smoothing=smoothing, pos_weight=weight)
    rest = dict(sample_weight=v, reduction="sum", backend=backend)
    two, one = f.loss_grad(pair, y, **rest), g.loss_grad(z[:, 0] / temperature, y, **rest)
    floor = 256 * np.finfo(float).eps * max(1.0, weight) / temperature  # smoothed gradients are differences
    assert_close(two[0], one[0], floor=floor)
    assert_close(two[1][:, 1], one[1] / temperature, floor=floor)
    f, g = fx.FocalLoss(gamma=gamma), fx.BinaryFocalLoss(gamma=gamma)
    assert_close(f.loss(pair, y, **rest), g.loss(z[:, 0], y, **rest))
    two, one = f.grad_hess(pair, y, **rest), g.grad_hess(z[:, 0], y, **rest)
    assert_close(two[0][:, 1], one[0], 1e-9)
    assert_close(two[1][:, 1], one[1], 1e-9)


@given(members(), problems(), st.floats(0.5, 4))
def test_solve_undoes_the_product(backend, f, problem, lam):
    """With damping above the negative curvature, where the matrix is safely regular."""
    z, y, v, x = problem
    H = np.stack([f.hvp(z, y, np.broadcast_to(u, z.shape), v, backend=backend) for u in np.eye(K)], axis=1)
    lam = lam - np.minimum(np.linalg.eigvalsh(H)[:, 0], 0)
    r = lam[:, None] * x + f.hvp(z, y, x, v, backend=backend)
    assert_close(f.solve(z, y, r, lam, v, backend=backend), x, 1e-9)


@given(members(), problems())
def test_upper_dominates(backend, f, problem):
    z, y, v, _ = problem
    H = np.stack([f.hvp(z, y, np.broadcast_to(u, z.shape), v, backend=backend) for u in np.eye(K)], axis=1)
    upper = f.grad_hess(z, y, v, hessian="upper", backend=backend)[1]
    for D, each in zip(upper, H, strict=True):
        assert np.linalg.eigvalsh(np.diag(D) - each)[0] >= -1e-12 * max(1.0, D.max())


# --------------------------------------------------------------------------------------------------------- sums


@given(sums(), problems(soft=False), st.sampled_from(["mean", "sum", "none", "mean_rows", "mean_all"]))
def test_a_sum_is_the_sum_of_its_terms(backend, total, problem, reduction):
    """Each term is reduced, then they are added; likewise gradient, product, and every curvature policy."""
    z, y, v, x = problem
    rest = dict(sample_weight=v, reduction=reduction, backend=backend)
    parts = []
    for term in total.terms:
        c, f = (term.factor, term.term) if isinstance(term, ScaledLoss) else (1.0, term)
        loss, grad = f.loss_grad(z, y, **rest)
        hess = [f.grad_hess(z, y, hessian=h, **rest)[1] for h in losses.HESSIANS]
        parts.append([c * a for a in (loss, grad, *hess, f.hvp(z, y, x, **rest))])
    expected = [sum(each) for each in zip(*parts, strict=True)]
    for targets in (y, (y,) * len(total.terms)):
        loss, grad = total.loss_grad(z, targets, **rest)
        hess = [total.grad_hess(z, targets, hessian=h, **rest)[1] for h in losses.HESSIANS]
        for a, b in zip((loss, grad, *hess, total.hvp(z, targets, x, **rest)), expected, strict=True):
            assert_close(a, b, 1e-12)
        assert_array_equal(total.loss(z, targets, **rest), loss)


@given(sums())
def test_sums_are_values(total):
    """Printed sums make equal sums; they hash, pickle and flatten."""
    again = eval(repr(total), vars(fx))
    assert again == total
    assert hash(again) == hash(total)
    assert pickle.loads(pickle.dumps(total)) == copy.deepcopy(total) == total
    assert not any(isinstance(term, SumLoss) for term in total.terms)
    assert 1 * (2 * total) == 2 * total
    assert len((total + 0.5 * total).terms) == 2 * len(total.terms)


@given(members(), problems(), st.floats(0, 10), st.floats(0.5, 4))
def test_a_multiple(backend, f, problem, c, lam):
    z, y, v, x = problem
    rest = dict(sample_weight=v, backend=backend)
    for g in (c * f, f * c):
        assert_close(g.loss(z, y, **rest), c * f.loss(z, y, **rest), 1e-14)
        assert_close(g.loss_grad(z, y, **rest)[1], c * f.loss_grad(z, y, **rest)[1], 1e-14)
        assert_close(g.hvp(z, y, x, **rest), c * f.hvp(z, y, x, **rest), 1e-14)
    H = np.stack([f.hvp(z, y, np.broadcast_to(u, z.shape), **rest) for u in np.eye(K)], axis=1)
    lam = lam - c * np.minimum(np.linalg.eigvalsh(H)[:, 0], 0)
    r = lam[:, None] * x + c * f.hvp(z, y, x, **rest)
    assert_close((c * f).solve(z, y, r, lam, **rest), x, 1e-9)


@st.composite
def curved(draw):
    """Sums with divergences, temperatures and elementwise terms among their terms."""
    some = [
        members(),
        st.just(fx.JensenShannonLoss()),
        st.just(fx.BootstrappingLoss(beta=0.5)),
        st.just(fx.SigmoidCrossEntropy()),
        st.floats(0.25, 4).map(lambda t: fx.SoftmaxCrossEntropy(temperature=t)),
    ]
    terms = draw(st.lists(st.tuples(st.sampled_from([0.25, 1, 2]), st.one_of(some)), min_size=1, max_size=4))
    return SumLoss(tuple(factor * term for factor, term in terms))


@given(curved(), problems(soft=True), st.sampled_from([1e-3, 0.5, 100.0]))
def test_solve_of_a_sum(backend, f, problem, lam):
    """Diagonals and low ranks add up, whatever the temperatures: the product of the solution is the right-hand side."""
    z, y, _, r = problem
    rest = dict(reduction="sum", backend=backend)
    H = np.stack([f.hvp(z, y, np.broadcast_to(u, z.shape), **rest) for u in np.eye(K)], axis=1)
    lam = lam - np.minimum(np.linalg.eigvalsh(H)[:, 0], 0)
    x = f.solve(z, y, r, lam.reshape(-1, 1) if f.elementwise else lam, **rest)
    rest = lam[:, None] * x + f.hvp(z, y, x, **rest) - r
    # 64: factors and squared temperatures of the terms, by which the product rounds
    assert (
        np.abs(rest) <= 1e-14 * (np.abs(r) + (lam[:, None] + 64) * np.abs(x).max(axis=1, keepdims=True))
    ).all()


@pytest.mark.parametrize("n_classes", [1, 3, 64, 200])
def test_solve_of_wide_sums(backend, dtype, n_classes):
    """Rows in lanes and classes in lanes, ragged ends, layouts and storage: what the product undoes."""
    rng = np.random.default_rng(n_classes)
    z, x = rng.normal(size=(2, 19, n_classes, 3))
    z, x = z.astype(dtype), x.astype(dtype)
    y = rng.integers(0, n_classes, (19, 3))
    y[4] = -100
    teacher = rng.normal(size=z.shape).astype(dtype)
    f = fx.FocalLoss(axis=1) + fx.DistillationLoss(temperature=3.0, axis=1) + fx.SoftmaxCrossEntropy(axis=1)
    targets = (y, (y, teacher), y)
    r = 2 * x + f.hvp(z, targets, x, reduction="sum", backend=backend)
    solution = f.solve(z, targets, r, 2.0, reduction="sum", backend=backend)
    assert_allclose(solution, x, rtol=0, atol=1e3 * np.finfo(dtype).eps)
    assert_allclose(f.solve(z, targets, r, 2.0, reduction="sum", backend=backend)[4], r[4] / 2, rtol=1e-6)


def test_targets_of_every_term(backend):
    """Distillation by hand: labels for one term, the teacher's probabilities for the other."""
    rng = np.random.default_rng(0)
    z, teacher, y = rng.normal(size=(5, 3)), rng.dirichlet(np.ones(3), 5), rng.integers(0, 3, 5)
    hard, soft = fx.FocalLoss(), fx.SoftmaxCrossEntropy(temperature=2.0)
    total = 0.25 * hard + 0.75 * soft
    loss, grad = total.loss_grad(z, (y, teacher), backend=backend)
    a, b = hard.loss_grad(z, y, backend=backend), soft.loss_grad(z, teacher, backend=backend)
    assert_allclose(loss, 0.25 * a[0] + 0.75 * b[0], rtol=1e-14)
    assert_allclose(grad, 0.25 * a[1] + 0.75 * b[1], rtol=1e-14, atol=1e-16)
    three = total + fx.Poly1Loss()
    assert three.loss(z, (y, teacher, y), backend=backend) > loss
    with pytest.raises(ValueError, match="one entry for each of the 3 terms, got a tuple of 2"):
        three.loss(z, (y, teacher), backend=backend)


def test_in_place(backend, dtype):
    """out may be the logits: they are read by every term before the first write."""
    rng = np.random.default_rng(1)
    z, y = rng.normal(size=(6, 3)).astype(dtype), rng.integers(0, 3, 6)
    total = fx.SoftmaxCrossEntropy() + 0.5 * fx.FocalLoss()
    loss, grad = total.loss_grad(z, y, backend=backend)
    for out in (np.empty_like(z), z):
        again, filled = total.loss_grad(z, y, out=out, backend=backend)
        assert filled is out
        assert again == loss
        assert_array_equal(out, grad)
    with pytest.raises(ValueError, match="out"):
        total.loss_grad(z, y, out=np.empty((2, 2), dtype), backend=backend)


def test_a_factor_of_zero(backend):
    """0 times infinite is nothing, and the term is still checked."""
    z = np.array([[0.0, -np.inf]])
    f = 0 * fx.SoftmaxCrossEntropy()
    assert f.loss(z, [1], backend=backend) == 0
    assert not f.loss(z, [1], reduction="none", backend=backend).any()
    assert not f.loss_grad(z, [1], backend=backend)[1].any()
    assert_array_equal(f.solve(np.zeros((1, 2)), [1], [[1.0, 3.0]], 2.0, backend=backend), [[0.5, 1.5]])
    assert (f + fx.GeneralizedCrossEntropy(r=1.0)).loss(z, [1], backend=backend) == 1
    with pytest.raises(ValueError, match="targets"):
        f.loss(z, [2], backend=backend)


def test_half_precision(backend):
    """A factor beyond float16's range, and a gradient within it."""
    z, y = np.array([[12.0, 0.0]], np.float16), [0]
    grad = (1e5 * fx.SoftmaxCrossEntropy()).loss_grad(z, y, backend=backend)[1]
    assert grad.dtype == np.float16
    assert_allclose(grad.astype(float), [[-0.6144, 0.6144]], rtol=0.02)


def test_scalars_and_sums_of_losses(backend):
    a, b = fx.SoftmaxCrossEntropy(), fx.FocalLoss()
    assert sum([a, b]) == a + b
    assert 0.5 * (2 * a) == 1.0 * a
    assert 3 * (a + b) == 3 * a + 3 * b
    assert repr(0.3 * (a + b)) == "0.3 * SoftmaxCrossEntropy() + 0.3 * FocalLoss(gamma=2.0)"
    z, y = np.zeros(3), 1
    assert (a + b).loss(z, y, reduction="none", backend=backend).shape == ()
    assert (a + b).loss_grad(z, y, backend=backend)[1].shape == (3,)
    assert not (a + b).elementwise
    assert (2 * fx.SigmoidCrossEntropy()).elementwise
    assert not (a + fx.SigmoidCrossEntropy()).elementwise


@pytest.mark.parametrize("factor", [-0.5, float("nan"), float("inf"), np.float64(-1)])
def test_factors_out_of_range(factor):
    with pytest.raises(ValueError, match="factor: expected a finite number in"):
        factor * fx.FocalLoss()
    with pytest.raises(ValueError, match="factor"):
        (fx.FocalLoss() + fx.Poly1Loss()) * factor


def test_what_does_not_compose(backend):
    a, b = fx.SoftmaxCrossEntropy(), fx.SigmoidCrossEntropy()
    for wrong in ("2", None, [1.0], True):
        with pytest.raises(TypeError, match=r"unsupported operand|can't multiply"):
            wrong * a
        with pytest.raises(TypeError, match="unsupported operand"):
            a + wrong
    with pytest.raises(TypeError, match="term: expected a loss object"):
        ScaledLoss(2.0, a + a)
    with pytest.raises(TypeError, match="terms: expected loss objects"):
        SumLoss((a, 3))
    with pytest.raises(ValueError, match="at least one loss"):
        SumLoss(())
    z = np.zeros((2, 2))
    with pytest.raises(ValueError, match=r"reduction='none'.*\(2,\) and \(2, 2\); reduce them"):
        (a + b).loss(z, ([0, 1], z), reduction="none", backend=backend)
    assert (a + b).loss(z, ([0, 1], z), backend=backend) == pytest.approx(2 * np.log(2))
    cube = np.zeros((2, 2, 2))
    with pytest.raises(
        ValueError, match=r"solve: the terms have their classes along different axes, 2 and 1"
    ):
        (a + fx.SoftmaxCrossEntropy(axis=1)).solve(cube, [[0, 1], [1, 0]], cube, 1.0, backend=backend)
