"""The softmax losses L = sum_k q_k f(p_k): one table of losses drives every check.

A new member is one row of LOSSES: the object, and its f as a textbook writes it. The oracle differentiates that f
numerically in 110 digits (reference.softmax_family), so no derivative is written down twice.
"""

from __future__ import annotations

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import reference
from numpy.testing import assert_allclose, assert_array_equal, assert_array_less

import fastxent as fx
from fastxent import losses

ALPHA = (0.5, 1.0, 2.0, 0.25)
# loss, f(p, mpmath's context)
LOSSES = [
    (fx.SoftmaxCrossEntropy(), lambda p, c: -c.log(p)),
    (fx.FocalLoss(), lambda p, c: -((1 - p) ** 2) * c.log(p)),
    (fx.FocalLoss(gamma=0.5), lambda p, c: -c.sqrt(1 - p) * c.log(p)),
    (fx.FocalLoss(gamma=1.0, alpha=0.25), lambda p, c: -(1 - p) * c.log(p)),
    (fx.FocalLoss(gamma=3.5, alpha=ALPHA), lambda p, c: -((1 - p) ** 3.5) * c.log(p)),
    (fx.FocalLoss(gamma=2.3), lambda p, c: -((1 - p) ** c.mpf(2.3)) * c.log(p)),
    (fx.Poly1Loss(), lambda p, c: -c.log(p) + 1 - p),
    (fx.Poly1Loss(epsilon=-1.0), lambda p, c: -c.log(p) - (1 - p)),
    (fx.Poly1Loss(epsilon=3.5), lambda p, c: -c.log(p) + 3.5 * (1 - p)),
    (fx.GeneralizedCrossEntropy(), lambda p, c: (1 - p ** c.mpf(0.7)) / c.mpf(0.7)),
    (fx.GeneralizedCrossEntropy(r=0.125), lambda p, c: (1 - p ** c.mpf(0.125)) * 8),
    (fx.GeneralizedCrossEntropy(r=1.0), lambda p, c: 1 - p),
    (fx.SymmetricCrossEntropy(), lambda p, c: -c.mpf(0.1) * c.log(p) + 4 * (1 - p)),
    (fx.SymmetricCrossEntropy(alpha=0.0, beta=0.5, A=-2.0), lambda p, c: 1 - p),
]
OPTIONS = [
    {},
    dict(class_weight=(0.5, 1.0, 2.0, 1.25), logit_bias=(0.5, -0.5, 0.0, 1.0)),
    dict(label_smoothing=0.125, ignore_index=1),
    dict(z_loss=0.0625, temperature=2.0, base=2.0, smoothing="exclude_target", label_smoothing=0.25),
    dict(temperature=0.5, z_loss=0.5),
]


@pytest.fixture(scope="module", params=LOSSES, ids=lambda row: repr(row[0]))
def row(request):
    return request.param


@pytest.fixture(scope="module")
def each(row):
    return row[0]


@pytest.fixture(params=OPTIONS, ids=lambda options: "+".join(options) or "plain")
def options(request):
    return request.param


def problem(dtype="float64", n=5, n_classes=4, *, soft=False, ignore=-100):
    rng = np.random.default_rng(7)
    z = (rng.normal(size=(n, n_classes)) * 3).astype(dtype)
    y = rng.integers(0, n_classes, n)
    if soft:
        y = rng.dirichlet(np.ones(n_classes), n).astype(dtype)
    elif n > 1:
        y[1] = ignore
    return z, y, rng.uniform(0.5, 2, n).astype(dtype), rng.normal(size=z.shape).astype(dtype)


ORACLE = {}


def truth_of(row, options, z, y, **more):
    """The oracle's answer, kept for the tests that ask again with another backend or damping."""
    loss, f = row
    asked = (repr(loss), repr(options), z.tobytes(), y.tobytes(), repr(more))
    if asked not in ORACLE:
        alpha = loss.alpha if isinstance(loss, fx.FocalLoss) else None
        ORACLE[asked] = reference.softmax_family(f, z, y, alpha=alpha, **options, **more)
    return ORACLE[asked]


def dense(hessians):
    return np.einsum("ijj->ij", hessians)


# ---------------------------------------------------------------------------------------------------- formulas


@pytest.mark.parametrize("soft", [False, True])
def test_formulas(backend, dtype, row, options, soft):
    """Loss, gradient, Hessian diagonal and product against the loss differentiated in 110 digits."""
    z, y, v, x = problem(dtype, soft=soft, ignore=options.get("ignore_index", -100))
    truth = truth_of(row, options, z, y, sample_weight=v)
    f = dataclasses.replace(row[0], **options)
    rtol = 1e-12 if dtype == "float64" else 64 * np.finfo(dtype).eps
    loss, grad = f.loss_grad(z, y, v, backend=backend)
    assert_allclose(loss, truth.loss, rtol=rtol)
    same, hess = f.grad_hess(z, y, v, backend=backend)
    eps = np.finfo(dtype).eps  # with curvature another kernel may do the rows
    assert_allclose(same, grad, rtol=16 * eps, atol=eps / 2)
    product = np.einsum("ijk,ik->ij", truth.hess, x.astype(np.float64))
    # Entries are held to their own size where they are no differences: labels without smoothing and z-loss.
    simple = not (soft or options.get("label_smoothing") or options.get("z_loss"))
    assert_allclose(grad, truth.grad, rtol=rtol, atol=0 if simple else rtol * np.abs(truth.grad).max())
    assert_allclose(hess, dense(truth.hess), rtol=rtol, atol=rtol * np.abs(truth.hess).max())
    assert_allclose(f.hvp(z, y, x, v, backend=backend), product, rtol=rtol, atol=rtol * np.abs(product).max())


@pytest.mark.parametrize("reduction", ["sum", "none", "mean_rows", "mean_all"])
def test_reductions(backend, row, reduction):
    z, y, v, _ = problem()
    truth = truth_of(row, {}, z, y, sample_weight=v, reduction=reduction)
    loss, grad = row[0].loss_grad(z, y, v, reduction, backend=backend)
    assert_allclose(loss, truth.loss, rtol=1e-12)
    assert_allclose(grad, truth.grad, rtol=1e-12)


def test_numerical_derivatives(backend, each, options):
    """Central differences of the loss give the gradient, those of the gradient the Hessian's product."""
    z, y, v, x = problem(ignore=options.get("ignore_index", -100))
    f, h = dataclasses.replace(each, **options), 1e-5
    up, down = f.loss_grad(z + h * x, y, v, backend=backend), f.loss_grad(z - h * x, y, v, backend=backend)
    _, grad = f.loss_grad(z, y, v, backend=backend)
    assert_allclose((up[0] - down[0]) / (2 * h), (grad * x).sum(), rtol=1e-6, atol=1e-9)
    hvp = f.hvp(z, y, x, v, backend=backend)
    assert_allclose((up[1] - down[1]) / (2 * h), hvp, rtol=1e-6, atol=1e-8)
    hess = f.grad_hess(z, y, v, backend=backend)[1]
    for k in range(z.shape[1]):
        unit = np.zeros_like(z)
        unit[:, k] = 1
        assert_allclose(f.hvp(z, y, unit, v, backend=backend)[:, k], hess[:, k], rtol=1e-9, atol=1e-15)


def test_golden_focal(backend):
    """gamma = 2 over [0, -3] with label 1: what binary focal loss gives at -3."""
    z = np.array([[0.0, -3.0]])
    grad, hess = fx.FocalLoss().grad_hess(z, [1], backend=backend)
    assert_allclose(grad, [[1.1267498806348883, -1.1267498806348883]], rtol=1e-14)
    assert_allclose(hess, -0.020088866690838602, rtol=1e-12)


# -------------------------------------------------------------------------------------------------- identities


def answers(f, z, y, v, x, backend, **more):
    loss, grad = f.loss_grad(z, y, v, backend=backend, **more)
    hess = [f.grad_hess(z, y, v, hessian=h, backend=backend, **more)[1] for h in losses.HESSIANS]
    hvp = f.hvp(z, y, x, v, backend=backend, **more)
    return loss, [grad, *hess, hvp, f.solve(z, y, x, 0.25, v, backend=backend, **more)]


def assert_same(first, second, rtol=1e-12):
    assert_allclose(first[0], second[0], rtol=rtol)
    for a, b in zip(first[1], second[1], strict=True):
        assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max(initial=1e-300))


def test_labels_equal_their_one_hot_rows(backend, each, options):
    options = {**options, "ignore_index": None}
    f = dataclasses.replace(each, **options)
    z, y, v, x = problem(ignore=2)
    assert_same(answers(f, z, y, v, x, backend), answers(f, z, np.eye(4)[y], v, x, backend))


def test_ignored_rows_are_as_if_deleted(backend, each, options):
    z, y, v, x = problem(ignore=options.get("ignore_index", -100))
    f = dataclasses.replace(each, **options)
    keep = np.arange(len(y)) != 1
    loss, arrays = answers(f, z, y, v, x, backend)
    for a in arrays[:-1]:
        assert not a[1].any()
    assert_allclose(arrays[-1][1], x[1] / 0.25)
    assert_same((loss, [a[keep] for a in arrays]), answers(f, z[keep], y[keep], v[keep], x[keep], backend))


def test_weight_is_repetition(backend, each, options):
    """Weight k is k equal rows, under every curvature policy: floors are those of one row."""
    f = dataclasses.replace(each, **options)
    z, y, _, _ = problem(ignore=options.get("ignore_index", -100))
    times = np.array([3, 1, 2, 1, 4])
    loss, grad = f.loss_grad(z, y, times.astype(float), backend=backend)
    again, repeated = f.loss_grad(*(np.repeat(a, times, axis=0) for a in (z, y)), backend=backend)
    at = np.concatenate([[0], times.cumsum()[:-1]])
    assert_allclose(again, loss, rtol=1e-13)
    assert_allclose(np.add.reduceat(repeated, at), grad, rtol=1e-12, atol=1e-15)
    for policy in losses.HESSIANS:
        hess = f.grad_hess(z, y, times.astype(float), hessian=policy, backend=backend)[1]
        one = f.grad_hess(*(np.repeat(a, times, axis=0) for a in (z, y)), hessian=policy, backend=backend)[1]
        assert_allclose(np.add.reduceat(one, at), hess, rtol=1e-12, atol=1e-15)


def test_soft_targets_are_the_mixture_of_labels(backend, each):
    z, t, v, x = problem(soft=True)
    parts = [answers(each, z, np.full(len(z), k), v * t[:, k], x, backend, reduction="sum") for k in range(4)]
    loss, arrays = answers(each, z, t, v, x, backend, reduction="sum")
    assert_allclose(loss, sum(part[0] for part in parts), rtol=1e-12)
    for at in (0, 1, 4, -2):  # gradient, exact, upper and the product add up
        total = sum(part[1][at] for part in parts)
        assert_allclose(arrays[at], total, rtol=1e-12, atol=1e-14)


def test_gradient_rows_sum_to_zero(backend, dtype, each):
    z, y, v, _ = problem(dtype, soft=True)
    grad = each.loss_grad(z, y, v, "sum", backend=backend)[1]
    assert_allclose(grad.sum(axis=1), 0, atol=16 * np.finfo(dtype).eps * max(1, np.abs(grad).max()))


@pytest.mark.parametrize("form", [fx.FocalLoss(gamma=0), fx.Poly1Loss(epsilon=0)], ids=repr)
def test_members_that_are_cross_entropy(backend, dtype, form):
    """The same bits."""
    z, y, v, _ = problem(dtype)
    expected = fx.SoftmaxCrossEntropy().loss_grad(z, y, v, backend=backend)
    loss, grad = form.loss_grad(z, y, v, backend=backend)
    assert loss == expected[0]
    assert_array_equal(grad, expected[1])


def test_limits(backend):
    z, y, v, x = problem()
    ce = answers(fx.SoftmaxCrossEntropy(), z, y, v, x, backend)
    assert_same(answers(fx.GeneralizedCrossEntropy(r=1e-12), z, y, v, x, backend), ce, 1e-10)
    assert_same(answers(fx.GeneralizedCrossEntropy(r=1e-300), z, y, v, x, backend), ce, 1e-13)
    assert_same(answers(fx.FocalLoss(gamma=1e-12), z, y, v, x, backend), ce, 1e-10)
    sce = fx.SymmetricCrossEntropy(alpha=0.25, beta=2.0, A=-3.0)
    poly = 0.25 * fx.Poly1Loss(epsilon=24.0)
    assert_allclose(sce.loss(z, y, v, backend=backend), poly.loss(z, y, v, backend=backend), rtol=1e-14)
    for h in ("exact", "upper"):
        pairs = zip(*(f.grad_hess(z, y, v, hessian=h, backend=backend) for f in (sce, poly)), strict=True)
        for a, b in pairs:
            assert_allclose(a, b, rtol=1e-12, atol=1e-15)
    mae = fx.SymmetricCrossEntropy(alpha=0.0, beta=1.0, A=-1.0)
    assert_same(
        answers(fx.GeneralizedCrossEntropy(r=1.0), z, y, v, x, backend), answers(mae, z, y, v, x, backend)
    )


def test_alpha_stays_out_of_the_mean(backend):
    """class_weight is in the denominator of the mean, alpha is not."""
    z, y, v, _ = problem()
    plain = fx.FocalLoss().loss_grad(z, y, v, backend=backend)
    half = fx.FocalLoss(alpha=0.5).loss_grad(z, y, v, backend=backend)
    assert_allclose(half[0], plain[0] / 2, rtol=1e-14)
    assert_allclose(half[1], plain[1] / 2, rtol=1e-14)
    both = fx.FocalLoss(alpha=ALPHA, class_weight=(2.0, 3.0, 0.5, 1.0)).loss(z, y, v, "sum", backend=backend)
    product = tuple(np.multiply(ALPHA, (2.0, 3.0, 0.5, 1.0)))
    assert_allclose(
        both, fx.FocalLoss(class_weight=product).loss(z, y, v, "sum", backend=backend), rtol=1e-14
    )


def test_axis(backend, each):
    z, y, v, x = problem()
    f = dataclasses.replace(each, axis=0)
    expected = answers(each, z, y, v, x, backend)
    loss, arrays = answers(f, z.T.copy(), y, v, x.T.copy(), backend)
    assert_same((loss, [a.T for a in arrays]), expected, 1e-14)
    f = dataclasses.replace(each, axis=1)
    blocks = [np.stack([a, a[::-1]], axis=-1) for a in (z, y, v, x)]
    loss, arrays = answers(f, *blocks, backend, reduction="sum")
    first, second = (answers(each, *(b[..., i] for b in blocks), backend, reduction="sum") for i in (0, 1))
    assert_same(
        (loss, arrays),
        (first[0] + second[0], [np.stack(p, -1) for p in zip(first[1], second[1], strict=True)]),
    )


# ---------------------------------------------------------------------------------------------------- extremes


@pytest.mark.parametrize("margin", [-60.0, -20.0, 20.0, 60.0])
def test_tails(backend, dtype, row, margin):
    """Confident and hopeless rows keep the digits of their gradient."""
    z = np.array([[margin, 0.0, -1.0, 1.5]], dtype)
    truth = truth_of(row, {}, z, np.array([0]))
    rtol = 64 * np.finfo(dtype).eps
    loss, grad = row[0].loss_grad(z, [0], backend=backend)
    tiny = np.finfo(dtype).tiny
    # -log p - (1 - p) is a difference of two terms of the size of the cross-entropy, and so is its gradient.
    terms = (0.0, 0.0, 0.0)
    if getattr(row[0], "epsilon", 0) < 0:
        plain = fx.SoftmaxCrossEntropy()
        terms = plain.loss(z, [0], backend=backend), *map(np.abs, plain.grad_hess(z, [0], backend=backend))
    assert_allclose(loss, truth.loss, rtol=rtol, atol=tiny + rtol * terms[0])
    assert_array_less(np.abs(grad - truth.grad), rtol * (np.abs(truth.grad) + terms[1]) + tiny)
    hess = row[0].grad_hess(z, [0], backend=backend)[1]
    allowed = rtol * (np.abs(truth.hess).max() + np.max(terms[2])) + tiny
    assert_allclose(hess, dense(truth.hess), rtol=rtol, atol=allowed)


@pytest.mark.parametrize("policy", losses.HESSIANS)
def test_infinite_logits(backend, dtype, each, policy):
    """All the probability on one class: certain and right costs nothing, and curvature is 0 or its floor."""
    inf = np.inf
    z = np.array([[inf, 0, 0, 0], [0, -inf, 1, 0], [800, 0, -800, 0]], dtype)
    y = np.array([0, 0, 0])
    loss = each.loss(z, y, reduction="none", backend=backend)
    assert loss[0] == 0
    assert loss[2] == 0
    assert np.isfinite(loss[1])
    grad, hess = each.grad_hess(z, y, reduction="sum", hessian=policy, backend=backend)
    assert np.isfinite(grad).all()
    assert not grad[[0, 2]].any()
    assert np.isfinite(hess).all()
    floor = {"clip": 1e-6, "xgboost": 1e-16}.get(policy, 0)
    assert_allclose(hess[[0, 2]], np.full((2, 4), floor, dtype), rtol=1e-6)
    x = each.solve(z, y, np.ones_like(z), 0.5, reduction="sum", backend=backend)
    assert_allclose(x[[0, 2]], 2, rtol=1e-6)


def test_soft_targets_lose_no_digits_in_float32(backend, each):
    """Members are powers and differences of probabilities, which amplify rounding: they are computed in float64."""
    each = dataclasses.replace(each, alpha=None) if getattr(each, "alpha", None) == ALPHA else each
    rng = np.random.default_rng(6)
    z, t = 6 * rng.normal(size=(50, 7)).astype("float32"), rng.uniform(size=(50, 7)).astype("float32")
    differences_of_shares = type(each) is fx.SoftmaxCrossEntropy
    atol = 2.0**-21 * t.sum(1).max() if differences_of_shares else 1e-30
    found = each.grad_hess(z, t, reduction="none", hessian="exact", backend=backend)
    truth = each.grad_hess(z.astype(float), t, reduction="none", hessian="exact", backend=backend)
    for a, b in zip(found, truth, strict=True):
        assert_allclose(a, b, rtol=2.0**-22, atol=atol)


def test_z_loss_beside_a_huge_share(backend, dtype):
    """The share's own terms cancel, and leave the z-loss."""
    z = np.array([[200.0, 0.0, 1.0]], dtype)
    loss = fx.GeneralizedCrossEntropy(r=1.0, z_loss=1e-4)
    _, grad = loss.loss_grad(z, [[1e30, 0.0, 0.0]], None, "sum", backend=backend)
    assert_allclose(grad[0, 0], 2e-4 * 200, rtol=1e-6)


def test_label_without_probability(backend, dtype, each):
    """f(0) is infinite where -log p is part of it, and the gradient stays finite."""
    z = np.array([[0.0, -np.inf, 1.0, 0.0]], dtype)
    loss, grad = each.loss_grad(z, [1], backend=backend)
    bounded = isinstance(each, fx.GeneralizedCrossEntropy) or getattr(each, "alpha", None) == 0
    assert np.isfinite(loss) == bounded
    assert np.isfinite(grad).all()


def test_one_row_that_is_nan(backend, each):
    z, y, v, x = problem()
    clean = [
        each.loss_grad(z, y, v, "none", backend=backend)[1],
        each.solve(z, y, x, 0.5, v, backend=backend),
    ]
    z[3, 1] = np.nan
    bad = [each.loss_grad(z, y, v, "none", backend=backend)[1], each.solve(z, y, x, 0.5, v, backend=backend)]
    others = np.arange(len(z)) != 3
    for a, b in zip(clean, bad, strict=True):
        assert np.isnan(b[3]).all()
        assert_array_equal(a[others], b[others])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("classes", [2, 3, 5, 17, 60, 300])
def test_nan_reaches_the_loss_of_its_row(backend, each, classes, dtype):
    """Wherever it stands: beside the label or at it, first, where maxima begin, or last."""
    each = dataclasses.replace(each, alpha=None) if getattr(each, "alpha", None) == ALPHA else each
    rng = np.random.default_rng(5)
    for at in (0, classes - 1):
        for label in (0, classes - 1):
            z, y = rng.normal(size=(20, classes)).astype(dtype), np.full(20, label)
            z[7, at] = np.nan
            losses, grad = each.loss_grad(z, y, None, "none", backend=backend)
            for result in (each.loss(z, y, None, "none", backend=backend), losses, grad.sum(axis=1)):
                assert_array_equal(np.isnan(result), np.arange(20) == 7)
            assert np.isnan(grad[7]).all()
            assert np.isnan(each.loss(z, y, backend=backend))


def test_one_class_and_no_rows(backend, each):
    z = np.zeros((3, 1))
    y = np.zeros(3, int)
    one = dataclasses.replace(each, alpha=None) if getattr(each, "alpha", None) == ALPHA else each
    assert one.loss(z, y, backend=backend) == 0
    for policy in losses.HESSIANS:
        assert np.isfinite(one.grad_hess(z, y, hessian=policy, backend=backend)[1]).all()
    assert_allclose(one.solve(z, y, z + 1, 0.5, backend=backend), 2)
    empty = np.zeros((0, 4))
    assert each.loss(empty, np.zeros(0, int), backend=backend) == 0
    assert each.grad_hess(empty, np.zeros(0, int), hessian="upper", backend=backend)[1].shape == (0, 4)
    assert each.solve(empty, np.zeros(0, int), empty, 1.0, backend=backend).shape == (0, 4)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision_logits(backend, each, half):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = np.dtype(getattr(ml_dtypes, half) if half == "bfloat16" else half)
    z, y, _, x = problem()
    z, x = z.astype(dtype), x.astype(dtype)
    wide = each.grad_hess(z.astype(np.float32), y, hessian="upper", backend=backend)
    for a, b in zip(each.grad_hess(z, y, hessian="upper", backend=backend), wide, strict=True):
        assert a.dtype == dtype
        assert_allclose(a.astype(np.float32), b, rtol=1e-2, atol=1e-3)
    assert each.solve(z, y, x, 0.5, backend=backend).dtype == dtype


# --------------------------------------------------------------------------------------------------- curvature


@pytest.mark.parametrize("soft", [False, True])
def test_upper_dominates_the_hessian(backend, row, options, soft):
    """D - H has no negative eigenvalue, and D is the formula for labels."""
    z, y, v, _ = problem(soft=soft, ignore=options.get("ignore_index", -100))
    f = dataclasses.replace(row[0], **options)
    H = truth_of(row, options, z, y, sample_weight=v).hess
    grad, upper = f.grad_hess(z, y, v, hessian="upper", backend=backend)
    # not the same bits: without curvature another kernel may do the rows
    assert_allclose(grad, f.loss_grad(z, y, v, backend=backend)[1], rtol=1e-14, atol=1e-16)
    assert (upper >= 0).all()
    for D, each_H in zip(upper, H, strict=True):
        assert np.linalg.eigvalsh(np.diag(D) - each_H)[0] >= -1e-13


def test_upper_is_the_formula(backend, dtype, row):
    """2 G p (1 - p) + 2 max(-PG, 0) |p - e_y| (1 - p_y), with G and PG from f differentiated in mpmath."""
    loss, f = row
    z, y, v, _ = problem(dtype)
    keep = y >= 0
    z, y, v = z[keep], y[keep], v[keep]
    ctx = reference.mp.clone()  # diff works at another precision: a context of its own for each thread
    p = np.exp(z.astype(float) - z.max(axis=1, keepdims=True).astype(float))
    p /= p.sum(axis=1, keepdims=True)
    alpha = np.broadcast_to(
        1.0 if getattr(loss, "gamma", None) is None or loss.alpha is None else loss.alpha, 4
    )
    expected = np.empty_like(p)
    for i, label in enumerate(y):
        at = ctx.mpf(p[i, label])
        G = lambda t: -t * ctx.diff(lambda s: f(s, ctx), t)  # noqa: E731
        g, bend = float(G(at)), float(-at * ctx.diff(G, at))
        d = np.abs(p[i] - np.eye(4)[label])
        expected[i] = 2 * g * p[i] * (1 - p[i]) + 2 * max(bend, 0) * d * (1 - p[i, label])
        expected[i] *= v[i] * alpha[label]
    upper = loss.grad_hess(z, y, v, "sum", hessian="upper", backend=backend)[1]
    assert_allclose(upper, expected, rtol=1e-11 if dtype == "float64" else 1e-4, atol=1e-12)


def test_policies_from_the_exact_diagonal(backend, dtype, row, options):
    z, y, v, _ = problem(dtype, ignore=options.get("ignore_index", -100))
    f = dataclasses.replace(row[0], **options)
    hess = {
        h: f.grad_hess(z, y, v, "none", hessian=h, backend=backend)[1].astype(float) for h in losses.HESSIANS
    }
    unit = 1 / np.log(options.get("base", np.e))
    factor = unit * np.where(y == f.ignore_index, 0, v)[:, None]
    rtol = 8 * np.finfo(dtype).eps
    assert_array_equal(hess["abs"], np.abs(hess["exact"]))
    assert_allclose(hess["clip"], np.maximum(hess["exact"], 1e-6 * factor), rtol=rtol)
    alpha = getattr(f, "alpha", None) if isinstance(f, fx.FocalLoss) else None
    plain = fx.SoftmaxCrossEntropy(**{**options, "z_loss": 0.0})
    if alpha is not None:
        weight = np.multiply(options.get("class_weight", 1.0), np.broadcast_to(alpha, 4))
        plain = dataclasses.replace(plain, class_weight=weight)
    ce = plain.grad_hess(z, y, v, "none", backend=backend)[1].astype(float)
    assert_allclose(hess["xgboost"], np.maximum(2 * ce, 1e-16 * factor), rtol=rtol)
    assert_allclose(hess["lightgbm"], 4 / 3 * ce, rtol=rtol)


def test_negative_weights(backend, each):
    """Signed weights turn the loss round: stand-ins stay non-negative, and the bound is that of -L."""
    z, y, v, _ = problem()
    v = np.array([1.0, 1.0, -2.0, 0.0, -0.5])
    for policy in losses.HESSIANS[1:]:
        assert (each.grad_hess(z, y, v, "sum", hessian=policy, backend=backend)[1] >= 0).all(), policy
    upper = each.grad_hess(z, y, v, "sum", hessian="upper", backend=backend)[1]
    for k in range(4):
        unit = np.zeros_like(z)
        unit[:, k] = 1
        product = each.hvp(z, y, unit, v, "sum", backend=backend)
        assert (upper[:, k] >= product[:, k] - 1e-14).all()


# -------------------------------------------------------------------------------------------------------- solve


@pytest.mark.parametrize("soft", [False, True])
def test_solve(backend, row, options, soft):
    """Against a dense solve with the oracle's Hessian. Errors are those of the matrix's condition."""
    z, y, v, r = problem(soft=soft, ignore=options.get("ignore_index", -100))
    f = dataclasses.replace(row[0], **options)
    H = truth_of(row, options, z, y, sample_weight=v).hess
    for lam in (1e-9, 0.01, 1.0, 1e6):
        x = f.solve(z, y, r, lam, v, backend=backend)
        for i, h in enumerate(H):
            M = lam * np.eye(4) + h
            tolerance = 64 * np.finfo(float).eps * np.linalg.cond(M)
            expected = np.linalg.solve(M, r[i])
            assert np.abs(x[i] - expected).max() <= tolerance * np.abs(expected).max()


def test_solve_undoes_the_product(backend, dtype, each, options):
    z, y, v, x = problem(dtype, n=40, n_classes=7, ignore=options.get("ignore_index", -100))
    options = {k: value for k, value in options.items() if k not in ("class_weight", "logit_bias")}
    f = dataclasses.replace(each, **options)
    if getattr(f, "alpha", None) == ALPHA:
        f = dataclasses.replace(f, alpha=None)
    lam = np.linspace(1, 2, 40)
    r = lam[:, None] * x + f.hvp(z, y, x, v, "sum", backend=backend)
    got = f.solve(z, y, r, lam, v, "sum", backend=backend)
    assert got.dtype == z.dtype
    assert_allclose(
        got, x, rtol=1e-3 if dtype == "float32" else 1e-11, atol=1e-4 if dtype == "float32" else 1e-12
    )


def test_solve_where_a_pivot_vanishes(backend):
    """Poly-1 with a large epsilon: D = lam + S p - b has a zero although the matrix is regular."""
    f = fx.Poly1Loss(epsilon=4.0)
    z = np.array([[-2.0, 1.0, 0.0, 0.5]])
    r = np.array([[1.0, -2.0, 0.5, 0.25]])
    p = np.exp(z) / np.exp(z).sum()
    py = p[0, 0]
    lam = -((1 + 4 * py) * py - 4 * py)
    assert lam > 0
    H = np.array([f.hvp(z, [0], unit[None], backend=backend)[0] for unit in np.eye(4)])
    for near in (lam, lam * (1 + 1e-13), lam * (1 - 1e-9), lam * (1 + 1e-6)):
        expected = np.linalg.solve(near * np.eye(4) + H, r[0])
        assert_allclose(f.solve(z, [0], r, near, backend=backend)[0], expected, rtol=1e-11)


def test_solve_errors(backend, each):
    z, y, v, r = problem()
    for lam in (0.0, -1.0, [1.0, 1, 1, 1, 0]):
        with pytest.raises(ValueError, match="lam: expected positive"):
            each.solve(z, y, r, lam, v, backend=backend)
    with pytest.raises(ValueError, match=r"r: expected the shape of logits, \(5, 4\), got \(5,\)"):
        each.solve(z, y, r[:, 0], 1.0, v, backend=backend)
    with pytest.raises(ValueError, match="targets"):
        each.solve(z, y + 100, r, 1.0, v, backend=backend)


# ------------------------------------------------------------------------------------------------------ objects


def test_objects(each):
    assert each == copy.deepcopy(each) == pickle.loads(pickle.dumps(each)) == eval(repr(each), vars(fx))
    assert hash(each) == hash(copy.copy(each))
    assert each != dataclasses.replace(each, z_loss=0.5)
    assert "z_loss=0.5" in repr(dataclasses.replace(each, z_loss=0.5))
    with pytest.raises(dataclasses.FrozenInstanceError):
        each.z_loss = 1.0


@pytest.mark.parametrize(
    ("cls", "name", "value", "error"),
    [
        (fx.FocalLoss, "gamma", -0.5, ValueError),
        (fx.FocalLoss, "gamma", float("inf"), ValueError),
        (fx.FocalLoss, "gamma", "2", TypeError),
        (fx.FocalLoss, "alpha", -1.0, ValueError),
        (fx.FocalLoss, "alpha", (1.0, -1.0), ValueError),
        (fx.FocalLoss, "alpha", ((1.0,),), ValueError),
        (fx.FocalLoss, "label_smoothing", 2.0, ValueError),
        (fx.Poly1Loss, "epsilon", -1.5, ValueError),
        (fx.Poly1Loss, "epsilon", float("nan"), ValueError),
        (fx.GeneralizedCrossEntropy, "r", 0.0, ValueError),
        (fx.GeneralizedCrossEntropy, "r", 1.5, ValueError),
        (fx.SymmetricCrossEntropy, "alpha", -1.0, ValueError),
        (fx.SymmetricCrossEntropy, "beta", -1.0, ValueError),
        (fx.SymmetricCrossEntropy, "A", 1.0, ValueError),
    ],
)
def test_options_are_checked_when_the_object_is_made(cls, name, value, error):
    with pytest.raises(error, match=f"^{name}: expected"):
        cls(**{name: value})


def test_alpha_of_another_length(backend):
    with pytest.raises(ValueError, match=r"alpha: expected shape \(2,\).*\(3,\)"):
        fx.FocalLoss(alpha=(1, 2, 3)).loss(np.zeros((3, 2)), [0, 1, 0], backend=backend)


def test_names():
    """Every name makes a loss with its defaults; objects pass through; anything else says what is known."""
    for name in losses.names():
        assert isinstance(losses.resolve(name), losses.Loss)
        assert losses.resolve(name) == type(losses.resolve(name))()
    assert losses.resolve("focal") == fx.FocalLoss()
    assert losses.resolve("gce") == fx.GeneralizedCrossEntropy()
    assert losses.resolve("softmax") == losses.resolve("cross_entropy") == fx.SoftmaxCrossEntropy()
    assert losses.resolve("sigmoid") == losses.resolve("binary") == fx.SigmoidCrossEntropy()
    given = fx.FocalLoss(gamma=3)
    assert losses.resolve(given) is given
    with pytest.raises(ValueError, match=r"'cross_entropy'.*'focal'.*got 'focus'"):
        losses.resolve("focus")
    for wrong in (3, None, fx.FocalLoss):
        with pytest.raises(TypeError, match="loss: expected a name or a loss object"):
            losses.resolve(wrong)


def test_losses_without_curvature_say_so():
    @dataclasses.dataclass(frozen=True)
    class Flat(losses.Loss):
        no_curvature = "it couples rows"

        def _call(self, *arguments):
            raise AssertionError("asked for before the check")

    z = np.zeros((2, 2))
    for ask in (lambda f: f.grad_hess(z, z), lambda f: f.hvp(z, z, z), lambda f: f.solve(z, z, z, 1.0)):
        for f in (Flat(), 0.5 * Flat(), fx.SoftmaxCrossEntropy() + Flat()):
            with pytest.raises(TypeError, match=r"has loss and gradient only: .*it couples rows\. Use loss"):
                ask(f)
