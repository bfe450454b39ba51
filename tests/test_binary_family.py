"""Binary focal and asymmetric losses against mpmath and its numerical derivatives, and the same as objects.

The oracle is the paper's formula in 400 decimal digits (the tails are 1e-260), f_1(z) for a positive and f_0(z)
for a negative; derivatives are central differences at steps of 1e-40.
"""

from __future__ import annotations

import functools
import pickle

import mpmath
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fastxent as fx
from fastxent import _backend
from fastxent.losses import SigmoidCrossEntropy
from fastxent.losses._binary import AsymmetricLoss, BinaryFocalLoss

mp = mpmath.mp.clone()
mp.dps = 400
STEP = mp.mpf(10) ** -40
# Both tails, both signs of the curvature, the steep middle, a ragged end of every vector, float32's underflow.
LOGITS = np.array([0.0, -0.0, 0.5, -0.5, 1.25, -1.25, -3.0, 3.0, -7.5, 9.0, -20.0, 20.0, 40.0, -40.0, 80.0, -80.0,
                   120.0, -120.0, 0.01, -2.9])  # fmt: skip
GAMMAS = (0.0, 0.5, 1.0, 2.0, 2.5, 3.0, 4.0, 5.0)


def sigmoid(z):
    return 1 / (1 + mp.exp(-z))


def focal(z, gamma, weights=(1, 1)):
    """f_1 and f_0 of the focal loss."""
    p, q = sigmoid(z), sigmoid(-z)
    return weights[0] * q**gamma * mp.log1p(mp.exp(-z)), weights[1] * p**gamma * mp.log1p(mp.exp(z))


def asymmetric(z, gamma_pos, gamma_neg, margin):
    p = sigmoid(z)
    s = max(p - mp.mpf(margin), mp.mpf(0))
    return sigmoid(-z) ** gamma_pos * mp.log1p(mp.exp(-z)), -(s**gamma_neg) * mp.log(1 - s) if s else mp.mpf(
        0
    )


@functools.cache
def sides(family, parameters, z):
    """For y = 1 and y = 0: value, derivative and second derivative at z, by differences."""
    f = {"focal": focal, "asymmetric": asymmetric}[family]
    z = mp.mpf(z)
    up, at, down = f(z + STEP, *parameters), f(z, *parameters), f(z - STEP, *parameters)
    return [
        (b, (a - c) / (2 * STEP), (a - 2 * b + c) / STEP**2) for a, b, c in zip(up, at, down, strict=True)
    ]


def curvature_size(gamma, z):
    """Sum of the sizes of the terms of the focal loss's second derivative; they cancel where it changes sign."""
    p, q = sigmoid(mp.mpf(z)), sigmoid(-mp.mpf(z))
    one = q**gamma * p * (gamma * (gamma * p + q) * -mp.log(p) + (2 * gamma + 1) * q)
    return one, p**gamma * q * (gamma * (gamma * q + p) * -mp.log(q) + (2 * gamma + 1) * p)


def kernel(
    backend, z, y, family, parameters, *, weight=None, smoothing=0.0, pos_weight=None, threads=1, hess=True
):
    """(sum, losses, grad, hess, bad) of the layer-0 kernel, for arrays of one row."""
    core = _backend.choose(backend)
    compute = np.float64 if z.dtype == np.float64 else np.float32
    z, y = z.reshape(1, -1), np.asarray(y, compute).reshape(1, -1)
    outs = np.full(z.shape, 7, compute), np.full_like(z, 7), np.full_like(z, 7) if hess else None
    a, b, c = (*parameters, 0.0, 0.0)[:3]
    if family == "focal" and len(parameters) == 1:
        b = c = 1.0
    total, bad, value = core.sigmoid_elements(
        z, y, weight, pos_weight, smoothing, 1.0, *outs, threads, family, a, b, c
    )
    assert value == -1
    return total, *(None if out is None else out[0] for out in outs), bad


def check(actual, expected, size, units, dtype):
    """Errors of at most `units` of the dtype at `size`, or of its smallest normal number."""
    eps, tiny = mp.mpf(float(np.finfo(dtype).eps)), mp.mpf(float(np.finfo(dtype).tiny))
    for i, (a, e, s) in enumerate(zip(actual, expected, size, strict=True)):
        error = abs(mp.mpf(float(a)) - e)
        assert error <= units * eps * abs(s) + 64 * tiny, (
            i,
            LOGITS[i % len(LOGITS)],
            float(a),
            mp.nstr(e, 20),
        )


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("target", [1.0, 0.0, 0.3, "mixed"])
def test_focal(backend, dtype, gamma, target):
    """8 units in the last place and 2 more for each power: of the terms, where they cancel."""
    z = LOGITS.astype(dtype)
    y = np.resize([1.0, 0.0, 0.25], len(z)) if target == "mixed" else np.full(len(z), target)
    y = y.astype(dtype)
    total, loss, grad, hess, bad = kernel(backend, z, y, "focal", (gamma,))
    assert bad == -1
    expected, sizes = ([], [], []), ([], [], [])
    for x, t in zip(z, y, strict=True):
        t = mp.mpf(float(t))
        one, zero = sides("focal", (gamma,), float(x))
        bends = curvature_size(gamma, float(x))
        for k in range(3):
            expected[k].append(t * one[k] + (1 - t) * zero[k])
            size = abs(t * one[k]) + abs((1 - t) * zero[k]) if k < 2 else t * bends[0] + (1 - t) * bends[1]
            sizes[k].append(size)
    for actual, exactly, size in zip((loss, grad, hess), expected, sizes, strict=True):
        check(actual, exactly, size, 8 + 2 * gamma, dtype)
    assert_allclose(total, loss.sum(dtype=np.float64), rtol=1e-6)


def test_focal_in_float64_to_twelve_digits(backend):
    """1e-12 relative for hard targets in loss and gradient, to the ends of the range, and for any power."""
    z = np.concatenate([LOGITS, [300.0, -300.0, 600.0, -600.0]])
    for gamma in (*GAMMAS, 0.1, 7.3):
        for target in (0, 1):
            _, loss, grad, _, _ = kernel(backend, z, np.full(len(z), target), "focal", (gamma,))
            for i, x in enumerate(z):
                value, slope, _ = sides("focal", (gamma,), float(x))[1 - target]
                for actual, exactly in ((loss[i], value), (grad[i], slope)):
                    if abs(exactly) > mp.mpf(10) ** -290:
                        assert abs(float(actual / exactly) - 1) <= 1e-12, (gamma, x)


@pytest.mark.parametrize(
    "parameters", [(0.0, 4.0, 0.05), (1.0, 2.0, 0.2), (0.0, 0.0, 0.0), (2.0, 1.0, 0.0), (0.5, 2.5, 0.4)]
)
def test_asymmetric(backend, dtype, parameters):
    """Loss and gradient, on both sides of the margin; s = p - margin is as exact as p, hence the size for small s."""
    z = LOGITS.astype(dtype)
    for target in (1.0, 0.0, 0.3):
        total, loss, grad, hess, bad = kernel(backend, z, np.full(len(z), target), "asymmetric", parameters)
        assert bad == -1
        assert np.isnan(hess).all()
        t = mp.mpf(float(np.asarray(target, dtype)))
        for k, actual in enumerate((loss, grad)):
            expected, sizes = [], []
            for x in z:
                one, zero = (side[k] for side in sides("asymmetric", parameters, float(x)))
                p = sigmoid(mp.mpf(float(x)))
                amplified = p / (p - parameters[2]) if p > parameters[2] else 1
                expected.append(t * one + (1 - t) * zero)
                sizes.append(abs(t * one) + abs((1 - t) * zero) * amplified)
            check(actual, expected, sizes, 24, dtype)
        assert_allclose(total, loss.sum(dtype=np.float64), rtol=1e-6)


def test_golden(backend):
    """gamma = 2, alpha = 1, y = 1 at 0 and -3: the curvature is positive at one and negative at the other."""
    _, _, grad, hess, _ = kernel(backend, np.array([0.0, -3.0]), [1, 1], "focal", (2.0,))
    assert_allclose(grad, [-0.29828679513998635, -1.1267498806348883], rtol=1e-15)
    assert_allclose(hess, [0.3991433975699932, -0.020088866690838602], rtol=1e-14)


def test_members_reduce_to_cross_entropy(backend, dtype):
    """gamma = 0 is cross-entropy, with weights, smoothing and pos_weight; asymmetric with no margin is focal."""
    z = LOGITS.astype(dtype)
    y = np.resize([1.0, 0.0, 0.25], len(z)).astype(dtype)
    options = dict(weight=np.linspace(0, 2, len(z), dtype=dtype)[None], smoothing=0.1,
                   pos_weight=np.full((1, 1), 3, dtype) * np.ones((1, len(z)), dtype))  # fmt: skip
    plain = kernel(backend, z, y, "cross_entropy", (0.0,), **options)
    reduced = kernel(backend, z, y, "focal", (0.0,), **options)
    for a, b in zip(reduced, plain, strict=True):
        assert_allclose(a, b, rtol=16 * np.finfo(dtype).eps, atol=1e-37)
    for gamma in (0.5, 2.0):
        same = kernel(backend, z, y, "asymmetric", (gamma, gamma, 0.0), hess=False)
        for a, b in zip(same[:3], kernel(backend, z, y, "focal", (gamma,))[:3], strict=True):
            assert_allclose(a, b, rtol=16 * np.finfo(dtype).eps, atol=1e-37)


@pytest.mark.parametrize("family", ["focal", "asymmetric"])
def test_limits(backend, dtype, family):
    """At +-inf: losses of 0 or inf, gradients of 0 or 1 (an easy negative under a margin: 0); NaN stays where it is."""
    inf, nan = np.inf, np.nan
    z = np.array([inf, inf, -inf, -inf, nan, 1.0], dtype)
    y = [1, 0, 0, 1, 1, 0]
    for gamma in (0.0, 0.5, 2.0, 2.5):
        parameters = (gamma,) if family == "focal" else (gamma, gamma, 0.0)
        _, loss, grad, hess, bad = kernel(backend, z, y, family, parameters)
        assert bad == -1
        assert_array_equal(loss[:5], [0, inf, 0, inf, nan])
        assert_array_equal(grad[:5], [0, 1, 0, -1, nan])
        if family == "focal":
            assert_array_equal(hess[:5], [0, 0, 0, 0, nan])
        assert np.isfinite([loss[5], grad[5]]).all()
    if family == "asymmetric":
        _, loss, grad, *_ = kernel(backend, z, y, family, (0.0, 4.0, 0.05))
        assert_array_equal(grad[:4], [0, 0, 0, -1])
        assert_allclose(loss[1], -(0.95**4) * np.log(0.05), rtol=1e-6)
    weight = np.array([[1, 1, 1, 0, 0, 1]], dtype)
    _, loss, grad, hess, _ = kernel(backend, z, y, "focal", (2.0,), weight=weight)
    assert_array_equal(loss[3:5], 0)
    assert_array_equal(grad[3:5], 0)
    assert_array_equal(hess[3:5], 0)


def test_bad_targets(backend, dtype):
    z = np.zeros(40, dtype)
    y = np.zeros(40)
    y[[33, 38]] = [1.5, np.nan]
    assert kernel(backend, z, y, "focal", (2.0,))[4] == 33


@pytest.mark.parametrize("size", [1, 7, 8, 9, 16, 17, 33, 515, 1100])
def test_sizes(backend, dtype, size):
    """Ragged ends, and the same numbers wherever an element stands."""
    z, y = np.resize(LOGITS, size).astype(dtype), np.resize([1.0, 0.0, 0.25, 0.0], size)
    for family, parameters in (("focal", (2.5,)), ("focal", (2.0,)), ("asymmetric", (1.0, 4.0, 0.05))):
        whole = kernel(backend, z, y, family, parameters)
        at = size // 2
        part = kernel(backend, z[at : at + 1], y[at : at + 1], family, parameters)
        for a, b in zip(whole[1:4], part[1:4], strict=True):
            assert_array_equal(a[at], b[0])


@pytest.mark.compiled
def test_threads():
    rng = np.random.default_rng(0)
    z = rng.normal(size=1_100_000).astype(np.float32) * 3
    y = rng.integers(0, 2, z.shape)
    one = kernel("cpu", z, y, "focal", (2.0,), threads=1)
    many = kernel("cpu", z, y, "focal", (2.0,), threads=3)
    for a, b in zip(one, many, strict=True):
        assert_array_equal(a, b)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision(backend, half):
    """16-bit logits: computed in float32, rounded once."""
    dtype = np.dtype(half if half == "float16" else pytest.importorskip("ml_dtypes").bfloat16)
    z = LOGITS.astype(np.float32).astype(dtype)
    y = np.resize([1.0, 0.0, 0.25], len(z))
    got = kernel(backend, z, y, "focal", (2.0,))
    expected = kernel(backend, z.astype(np.float32), y, "focal", (2.0,))
    assert_array_equal(got[1], expected[1])
    for a, b in zip(got[2:4], expected[2:4], strict=True):
        assert a.dtype == dtype
        assert_array_equal(a, b.astype(dtype))


# ------------------------------------------------------------------------------------------------------------ objects

LOSSES = (
    BinaryFocalLoss(),
    BinaryFocalLoss(gamma=1.5, alpha=0.25),
    BinaryFocalLoss(gamma=0.0),
    AsymmetricLoss(),
    AsymmetricLoss(gamma_pos=1.0, gamma_neg=2.5, margin=0.0),
)
SHAPE = (3, 4)
Z = np.linspace(-4, 3, 12).reshape(SHAPE)
Y = np.resize([1, 0, 0, 1, 0], SHAPE)


def written_out(loss, z, y):
    """(value, derivative, second derivative) of one element in exact numbers."""
    if isinstance(loss, BinaryFocalLoss):
        alpha = 0.5 if loss.alpha is None else loss.alpha
        factor = 2 if loss.alpha is None else 1
        one, zero = sides("focal", (loss.gamma, (factor * alpha, factor * (1 - alpha))), z)
    else:
        one, zero = sides("asymmetric", (loss.gamma_pos, loss.gamma_neg, loss.margin), z)
    return [float(y * a + (1 - y) * b) for a, b in zip(one, zero, strict=True)]


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("soft", [False, True])
def test_losses(backend, loss, soft):
    """Loss, gradient, curvature and Hessian product, with weights; "mean" divides by the weights' sum."""
    y = Y * 0.5 + 0.25 if soft else Y
    v = np.array([1.0, 0.5, 0.0, 2.0])
    parts = np.array(
        [[written_out(loss, z, t) for z, t in zip(*row, strict=True)] for row in zip(Z, y, strict=True)]
    )
    assert_allclose(loss.loss(Z, y, reduction="none", backend=backend), parts[..., 0], rtol=1e-12)
    mean, grad = loss.loss_grad(Z, y, v, backend=backend)
    share = np.broadcast_to(v / (3 * v.sum()), SHAPE)
    assert_allclose(mean, (share * parts[..., 0]).sum(), rtol=1e-12)
    assert_allclose(grad, share * parts[..., 1], rtol=1e-12)
    assert loss.loss(Z, y, v, backend=backend) == mean
    if loss.no_curvature:
        return
    again, hess = loss.grad_hess(Z, y, v, backend=backend)
    assert_array_equal(again, grad)
    assert_allclose(hess, share * parts[..., 2], rtol=1e-11, atol=1e-16)
    assert_allclose(loss.hvp(Z, y, Z, v, backend=backend), Z * hess, rtol=1e-15)
    _, upper = loss.grad_hess(Z, y, v, hessian="upper", backend=backend)
    assert (upper >= hess - 1e-17).all()
    assert (upper[:, [0, 1, 3]] > 0).all()
    for policy in ("clip", "abs", "xgboost", "lightgbm"):
        assert (loss.grad_hess(Z, y, v, hessian=policy, backend=backend)[1] >= 0).all()
    plain = SigmoidCrossEntropy().grad_hess(Z, y, v, hessian="xgboost", backend=backend)[1]
    assert_array_equal(loss.grad_hess(Z, y, v, hessian="xgboost", backend=backend)[1], plain)
    solution = loss.solve(Z, y, Z, 10.0, v, backend=backend)
    assert_allclose(10 * solution + loss.hvp(Z, y, solution, v, backend=backend), Z, rtol=1e-14)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_layouts(backend, loss):
    """Any shape and strides, and out on top of the logits."""
    expected = loss.loss_grad(Z, Y, backend=backend)
    for z, y in ((Z.T, Y.T), (Z[::-1, ::-1], Y[::-1, ::-1]), (np.asfortranarray(Z), np.asfortranarray(Y))):
        mean, grad = loss.loss_grad(z, y, backend=backend)
        assert_allclose(mean, expected[0], rtol=1e-15)
        assert_allclose(np.sort(grad, axis=None), np.sort(expected[1], axis=None), rtol=1e-15)
    out = Z.copy()
    assert loss.loss_grad(out, Y, out=out, backend=backend)[1] is out
    assert_array_equal(out, expected[1])


def test_alpha_weighs_the_classes(backend):
    """alpha for positives, 1 - alpha for negatives; unlike pos_weight it touches both."""
    plain = BinaryFocalLoss(gamma=2.0).loss_grad(Z, Y, reduction="sum", backend=backend)[1]
    weighed = BinaryFocalLoss(gamma=2.0, alpha=0.25).loss_grad(Z, Y, reduction="sum", backend=backend)[1]
    assert_allclose(weighed, plain * np.where(Y, 0.25, 0.75), rtol=1e-15)


def test_asymmetric_curvature_is_refused():
    """An error that says what there is instead, before any array is looked at."""
    for call in (
        lambda f: f.grad_hess(Z, Y),
        lambda f: f.hvp(Z, Y, Z),
        lambda f: f.solve(Z, Y, Z, 1.0),
        lambda f: (f + SigmoidCrossEntropy()).grad_hess(Z, Y),
    ):
        with pytest.raises(TypeError, match=r"(?s)loss and gradient only.*kink.*loss_grad"):
            call(AsymmetricLoss())


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_objects(loss):
    assert pickle.loads(pickle.dumps(loss)) == loss
    assert len({loss, eval(repr(loss))}) == 1
    both = loss + 0.5 * SigmoidCrossEntropy()
    expected = loss.loss(Z, Y) + 0.5 * fx.sigmoid_cross_entropy(Z, Y)
    assert both.loss(Z, Y) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BinaryFocalLoss(gamma=-1.0), ["gamma", "-1"]),
        (lambda: BinaryFocalLoss(alpha=1.5), ["alpha", "1.5"]),
        (lambda: BinaryFocalLoss(gamma="two"), ["gamma", "two"]),
        (lambda: AsymmetricLoss(gamma_pos=-1.0), ["gamma_pos", "-1"]),
        (lambda: AsymmetricLoss(gamma_neg=np.nan), ["gamma_neg", "nan"]),
        (lambda: AsymmetricLoss(margin=1.0), ["margin", "1.0"]),
        (lambda: AsymmetricLoss(margin=-0.1), ["margin", "-0.1"]),
        (lambda: BinaryFocalLoss().loss(Z, Y[:2]), ["targets", "(3, 4)", "(2, 4)"]),
        (lambda: BinaryFocalLoss().loss(Z, Y + 1), ["targets[0, 0]", "2"]),
    ],
)
def test_mistakes(make, words):
    with pytest.raises((ValueError, TypeError)) as caught:
        make()
    for word in words:
        assert word in str(caught.value), str(caught.value)
