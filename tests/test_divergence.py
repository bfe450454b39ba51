"""Entropy, KL and Jensen-Shannon rows, and the losses made of them, against mpmath and its numerical derivatives.

The oracle is the textbook sum in 100 decimal digits; its derivatives are central differences, exact to some 40 digits
at steps of 1e-25, so that nothing is shared with the formulas under test.
"""

from __future__ import annotations

import functools
import itertools
import pickle

import mpmath
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import fastxent as fx
from fastxent import _backend
from fastxent.losses import SoftmaxCrossEntropy
from fastxent.losses._divergence import BootstrappingLoss, DistillationLoss, Divergence, JensenShannonLoss

mp = mpmath.mp.clone()
mp.dps = 100
STEP = mp.mpf(10) ** -25
KINDS = ("entropy", "forward_kl", "reverse_kl", "jensen_shannon")
TEACHERS = ("logits", "probabilities", "labels")
K = 4

# Ordinary rows, a tie, a student that has nearly learned its teacher, confident rows (on the same class and on
# different ones) whose losses are 1e-18 and 40, offsets that round, and a uniform row.
STUDENT = np.array(
    [
        [0.3, -1.2, 2.0, 0.1],
        [1.5, 1.5, -0.5, 1.5],
        [0.30000001, -1.20000002, 2.0, 0.1],
        [41.0, 0.5, 1.0, -0.25],
        [-3.0, 38.0, 0.0, 1.0],
        [1e3, 1e3 - 1.5, 1e3 + 0.25, 1e3 - 30],
        [0.0, 0.0, 0.0, 0.0],
    ]
)
TEACHER = np.array(
    [
        [1.0, 0.5, -0.7, 2.5],
        [0.2, -0.1, 0.4, 0.0],
        [0.3, -1.2, 2.0, 0.1],
        [40.0, 1.5, 0.0, 0.25],
        [39.0, -1.0, 0.0, 2.0],
        [-5.0, 0.0, 2.0, 1.0],
        [0.1, -0.1, 0.05, 0.0],
    ]
)
LABELS = np.array([0, 2, 2, 0, 3, 2, 1])
X = np.random.default_rng(4).normal(size=STUDENT.shape)
INFINITE = np.where(np.arange(7)[:, None] == 3, [np.inf, 0.0, 0.0, 1.0], 0.25)


def exact(values):
    return [mp.mpf(float(value)) for value in values]


def softmax(u):
    top = max(u)
    e = [mp.exp(x - top) for x in u]
    total = mp.fsum(e)
    return [x / total for x in e]


def xlog(x, ratio):
    return x * mp.log(ratio) if x else mp.mpf(0)


def textbook(kind, Q, P, beta=0.5):
    """The divergence of two distributions, as the papers write it."""
    if kind == "entropy":
        return -mp.fsum(xlog(q, q) for q in Q)
    if kind == "forward_kl":
        return mp.fsum(xlog(p, p / q) for p, q in zip(P, Q, strict=True))
    if kind == "reverse_kl":
        return mp.fsum(xlog(q, q / p) for p, q in zip(P, Q, strict=True))
    beta = mp.mpf(beta)
    M = [beta * p + (1 - beta) * q for p, q in zip(P, Q, strict=True)]
    forward = mp.fsum(xlog(p, p / m) for p, m in zip(P, M, strict=True))
    return beta * forward + (1 - beta) * mp.fsum(xlog(q, q / m) for q, m in zip(Q, M, strict=True))


def derivatives(f, z, x=None):
    """Value, gradient, Hessian diagonal and Hessian times x of f at z by central differences."""

    def moved(*steps):
        at = list(z)
        for k, step in steps:
            at[k] += step
        return f(at)

    value, n = f(z), len(z)
    up, down = ([moved((k, sign * STEP)) for k in range(n)] for sign in (1, -1))
    grad = [(a - b) / (2 * STEP) for a, b in zip(up, down, strict=True)]
    hess = mp.matrix(n, n)
    for i, j in itertools.combinations_with_replacement(range(n), 2):
        if i == j:
            hess[i, i] = (up[i] - 2 * value + down[i]) / STEP**2
        else:
            corners = (s * t * moved((i, s * STEP), (j, t * STEP)) for s in (1, -1) for t in (1, -1))
            hess[i, j] = hess[j, i] = mp.fsum(corners) / (4 * STEP**2)
    product = None if x is None else [mp.fsum(hess[i, j] * x[j] for j in range(n)) for i in range(n)]
    return value, grad, [hess[i, i] for i in range(n)], product


def distribution(form, row, temperature, dtype):
    """The teacher's P of one row in exact numbers, from the inputs as the kernel gets them."""
    if form == "logits":
        return softmax([t / mp.mpf(temperature) for t in exact(TEACHER[row].astype(dtype))])
    if form == "probabilities":
        return exact(probabilities(dtype)[row])
    return [mp.mpf(int(k == LABELS[row])) for k in range(K)]


def probabilities(dtype):
    """Soft targets with a zero in them, one row of another mass than 1, one of labels."""
    e = np.exp(TEACHER - TEACHER.max(axis=1, keepdims=True))
    p = (e / e.sum(axis=1, keepdims=True)).astype(dtype)
    p[1] = [0.0, 0.5, 0.25, 0.75]
    p[3] = [1.0, 0.0, 0.0, 0.0]
    return p


@functools.cache
def truth(kind, form, temperature, beta, dtype):
    """For every row: loss, gradient, Hessian diagonal, product and P, or None where the loss is infinite."""
    rows = []
    for row in range(len(STUDENT)):
        P = None if kind == "entropy" else distribution(form, row, temperature, dtype)
        if kind == "reverse_kl" and 0 in P:
            rows.append(None)
            continue

        def f(z, P=P):
            return textbook(kind, softmax([u / mp.mpf(temperature) for u in z]), P, beta)

        rows.append((*derivatives(f, exact(STUDENT[row].astype(dtype)), exact(X[row].astype(dtype))), P))
    return rows


def run(backend, kind, logits, teacher, *, softened=False, weight=None, ignore=-100, temperature=1.0, scale=1.0,
        beta=0.5, threads=1, x=None):  # fmt: skip
    """(sum, losses, grad, hess, bad) of the layer-0 kernels; hess is the product if x is given."""
    core = _backend.choose(backend)
    compute = np.float64 if logits.dtype == np.float64 else np.float32
    outer, _, inner = logits.shape
    loss, grad, hess = np.full((outer, inner), 7, compute), np.full_like(logits, 7), np.full_like(logits, 7)
    head = (logits, teacher, softened, weight, ignore, temperature, scale)
    total, bad = core.divergence_rows(*head, loss, grad, hess, threads, kind, beta)
    if x is not None:
        assert core.divergence_hvp(*head, x, hess, threads, kind, beta) == bad
    return total, loss, grad, hess, bad


def teacher_of(form, dtype):
    if form == "labels":
        return LABELS[:, None]
    return (TEACHER.astype(dtype) if form == "logits" else probabilities(dtype))[:, :, None]


def off(actual, expected, allowed, dtype):
    """Largest error in units of `allowed` (one per number), beyond the rounding of the result to its dtype."""
    half = mp.mpf(float(np.finfo(dtype).eps)) / 2
    error = 0.0
    for a, e, unit in zip(np.ravel(actual), expected, allowed, strict=True):
        beyond = abs(mp.mpf(float(a)) - e) - half * abs(e)
        error = max(error, float(beyond / (unit + mp.mpf(2) ** -1060)))
    return error


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", TEACHERS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_rows(backend, dtype, kind, form, temperature):
    """1e-12 relative in either dtype, confident rows' 1e-18 included.

    Where P is close to Q, a derivative is a difference: 16 units of float64 at the size of its terms. The loss of row
    2, of size d^2 for logits that differ by d = 1e-8, is as exact as d is. z / T is rounded.
    """
    z = STUDENT.astype(dtype)[:, :, None]
    options = dict(softened=form == "logits", temperature=temperature, beta=0.3)
    arguments = backend, kind, z, teacher_of(form, dtype)
    total, losses, grad, hess, bad = run(*arguments, **options)
    product = run(*arguments, **options, x=X.astype(dtype)[:, :, None])[3]
    assert bad == -1
    assert losses.dtype == grad.dtype == hess.dtype == dtype
    for row, expected in enumerate(truth(kind, form, temperature, 0.3, dtype)):
        if expected is None:
            assert losses[row] == np.inf
            continue
        loss, *parts, P = expected
        Q = softmax([u / mp.mpf(temperature) for u in exact(STUDENT[row].astype(dtype))])
        near = mp.mpf(2) ** -52 * (16 + (np.abs(STUDENT[row]).max() if temperature != 1 else 0))
        size = [min(max(p, q), max(1 - p, 1 - q)) * near for p, q in zip(P or Q, Q, strict=True)]
        slack = mp.sqrt(abs(loss)) * near if form != "probabilities" else near
        allowed = [abs(loss) * mp.mpf(10) ** -12 + (slack if row == 2 else 0)]
        assert off(losses[row], [loss], allowed, dtype) <= 1
        for actual, exactly in zip((grad[row], hess[row], product[row]), parts, strict=True):
            allowed = [abs(e) * mp.mpf(10) ** -12 + s for e, s in zip(exactly, size, strict=True)]
            assert off(actual, exactly, allowed, dtype) <= 1, (row, actual)
    assert_allclose(total, losses.sum(dtype=np.float64), rtol=np.finfo(dtype).eps)


def random(rows, classes, inner=1, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    shape = (rows, classes, inner)
    return (rng.normal(size=shape) * 3).astype(dtype), (rng.normal(size=shape) * 2).astype(dtype)


def as_softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("kind", KINDS)
# One class; below, at and beyond the vectors of each instruction set; beyond the groups of few classes.
@pytest.mark.parametrize("classes", [1, 2, 7, 8, 9, 31, 200, 1003])
def test_class_counts(backend, dtype, kind, classes):
    """Against the textbook formulas in float64, for a teacher as logits and as probabilities."""
    z, t = random(5, classes, dtype=dtype)
    for softened in (True, False):
        P = as_softmax(t.astype(np.float64))
        teacher = t if softened else P.astype(dtype)
        P = P if softened else teacher.astype(np.float64)
        Q = as_softmax(z.astype(np.float64))
        M = 0.5 * P + 0.5 * Q
        mixed = 0.5 * (P * np.log(P / M)).sum(1) + 0.5 * (Q * np.log(Q / M)).sum(1)
        loss, r, factor = {
            "entropy": (-(Q * np.log(Q)).sum(1), np.log(Q), -1),
            "forward_kl": ((P * np.log(P / Q)).sum(1), -P / Q, 1),
            "reverse_kl": ((Q * np.log(Q / P)).sum(1), np.log(Q / P), 1),
            "jensen_shannon": (mixed, np.log(Q / M), 0.5),
        }[kind]
        got = run(backend, kind, z, teacher, softened=softened)
        assert_allclose(got[1], loss, rtol=4 * np.finfo(dtype).eps, atol=1e-13)
        slope = factor * Q * (r - (Q * r).sum(axis=1, keepdims=True))
        assert_allclose(got[2], slope, rtol=4 * np.finfo(dtype).eps, atol=1e-13)


def test_twins_agree(dtype):
    """The compiled kernel and its specification, to the rounding of float64."""
    core = pytest.importorskip("fastxent._core")
    assert core is _backend.choose("cpu")
    z, t = random(6, 37, 3, dtype)
    labels = np.arange(18).reshape(6, 3)
    weight = np.linspace(0, 2, 18, dtype=dtype).reshape(6, 3)
    x = random(6, 37, 3, dtype, seed=5)[0]
    for kind in KINDS:
        for teacher, softened in ((t, True), (as_softmax(t), False), (labels, False)):
            options = dict(softened=softened, weight=weight, temperature=1.5, scale=0.25, ignore=3, beta=0.7)
            for extra in ({}, dict(x=x)):
                fast = run("cpu", kind, z, teacher, **options, **extra)
                slow = run("numpy", kind, z, teacher, **options, **extra)
                for a, b in zip(fast, slow, strict=True):
                    assert_allclose(a, b, rtol=16 * np.finfo(dtype).eps, atol=1e-15)


def test_identities(backend):
    """Cross-entropy is entropy plus KL, KL(Q || P) is KL(P || Q) with sides changed, JS is symmetric and <= ln 2."""
    z, t = random(9, 6)
    labels = np.arange(9)[:, None] % 6
    ce, _ = fx.softmax_cross_entropy_with_grad(z[:, :, 0], labels[:, 0], reduction="none", backend=backend)
    _, grad = fx.softmax_cross_entropy_with_grad(z[:, :, 0], labels[:, 0], reduction="sum", backend=backend)
    got = run(backend, "forward_kl", z, labels)
    assert_allclose(got[1][:, 0], ce, rtol=1e-15)
    assert_allclose(got[2][:, :, 0], grad, rtol=1e-14)
    P = as_softmax(t)
    soft = fx.softmax_cross_entropy(z[:, :, 0], P[:, :, 0], reduction="none", backend=backend)
    entropy = run(backend, "entropy", t, None)[1]
    forward = run(backend, "forward_kl", z, t, softened=True)[1]
    assert_allclose(entropy + forward, soft[:, None], rtol=1e-14)
    assert_allclose(run(backend, "reverse_kl", t, z, softened=True)[1], forward, rtol=1e-14)
    one = run(backend, "jensen_shannon", z, t, softened=True)[1]
    assert_allclose(run(backend, "jensen_shannon", t, z, softened=True)[1], one, rtol=1e-14)
    far = run(backend, "jensen_shannon", 400 * np.eye(3)[:, :, None], np.array([[1], [2], [0]]))[1]
    assert_allclose(far, np.log(2), rtol=1e-15)
    assert (one > 0).all()
    assert (one < np.log(2)).all()


def test_golden(backend):
    """ln 4 for a uniform row of four, and JS of [.9, .1] and [.5, .5] in bits."""
    total, _, grad, *_ = run(backend, "entropy", np.zeros((1, 4, 1)), None)
    assert_allclose(total, 2 * np.log(2), rtol=1e-15)
    assert_array_equal(grad, 0)
    z = np.log([[[0.9], [0.1]]])
    total = run(backend, "jensen_shannon", z, np.zeros_like(z), softened=True)[0]
    assert_allclose(total / np.log(2), 0.14679310243605215, rtol=4e-15)
    half = np.full((1, 2, 1), 0.5)
    total = run(backend, "reverse_kl", np.log([[[0.8], [0.2]]]), half)[0]
    assert_allclose(total / np.log(2), 0.27807190511263774, rtol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_limits(backend, dtype, kind):
    """Impossible classes contribute nothing; what cannot be is NaN in its own row only."""
    inf, nan = np.inf, np.nan
    z = np.array([[0, -inf, 1], [inf, 0, 1], [0, nan, 1], [inf, inf, 0], [-inf] * 3, [0, 1, 2]], dtype)[
        :, :, None
    ]
    t = np.array([[1, -inf, 0], [2, 1, 0], [2, 1, 0], [2, 1, 0], [2, 1, 0], [2, nan, 0]], dtype)[:, :, None]
    x = np.arange(18, dtype=dtype).reshape(6, 3, 1)
    total, loss, grad, hess, bad = run(backend, kind, z, t, softened=True)
    product = run(backend, kind, z, t, softened=True, x=x)[3]
    assert bad == -1
    assert np.isnan(total)
    reference = run(backend, kind, z[:1, ::2].copy(), t[:1, ::2].copy(), softened=True)
    assert_allclose(loss[0], reference[1][0], rtol=1e-7)
    for whole, part in ((grad, reference[2]), (hess, reference[3])):
        assert_allclose(whole[0, ::2], part[0], rtol=1e-6)
        assert whole[0, 1] == 0
    assert product[0, 1] == 0
    P = as_softmax(t[1:2].astype(np.float64))[0, :, 0]
    expected = {
        "entropy": (0, [0, 0, 0]),
        "forward_kl": (inf, np.array([1, 0, 0]) - P),
        "reverse_kl": (-np.log(P[0]), [0, 0, 0]),
        "jensen_shannon": (0.5 * (P[0] * np.log(P[0] / (P[0] / 2 + 0.5)) + np.log(2) * (1 - P[0]))
                           - 0.5 * np.log(P[0] / 2 + 0.5), [0, 0, 0]),
    }[kind]  # fmt: skip
    assert_allclose(loss[1, 0], expected[0], rtol=1e-6)
    assert_allclose(grad[1, :, 0], expected[1], rtol=1e-6, atol=1e-7)
    assert_array_equal(hess[1], 0)
    for row in (2, 3, 4) if kind == "entropy" else (2, 3, 4, 5):
        for values in (loss, grad, hess, product):
            assert np.isnan(values[row]).all(), row


def test_impossible_teacher(backend, dtype):
    """Reverse KL where P_k = 0 < Q_k: +inf, uphill there and downhill elsewhere; JS and forward KL stay finite."""
    z = np.array([[0.5, 1.0, -np.inf, 0.0]], dtype)[:, :, None]
    P = np.array([[0.25, 0.0, 0.0, 0.75]], dtype)[:, :, None]
    inf = np.inf
    total, loss, grad, hess, _ = run(backend, "reverse_kl", z, P)
    assert total == loss[0, 0] == inf
    assert_array_equal(grad[0, :, 0], [-inf, inf, 0, -inf])
    assert_array_equal(hess[0, :, 0], [np.nan, np.nan, 0, np.nan])
    assert_array_equal(
        run(backend, "reverse_kl", z, P, x=np.ones_like(z))[3][0, :, 0], [np.nan, np.nan, 0, np.nan]
    )
    for kind in ("forward_kl", "jensen_shannon"):
        assert all(np.isfinite(part).all() for part in run(backend, kind, z, P)[:4])


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_ignored_rows(backend, dtype, kind):
    """A weight of 0 and an ignored label delete a row, whatever stands in it; weights and scale multiply."""
    z, _ = random(5, 3, dtype=dtype)
    y = np.array([[0], [-100], [2], [1], [1]])
    if kind == "reverse_kl":
        y = as_softmax(random(5, 3, dtype=dtype, seed=3)[0])
    weight = np.array([[2], [0], [0], [0.5], [-1]], dtype)
    plain = run(backend, kind, z, y)
    z[1:3] = np.nan
    got = run(backend, kind, z, y, weight=weight, scale=3.0)
    kept = [0, 3, 4]
    factor = weight[kept].astype(np.float64)
    rtol = 2 * np.finfo(dtype).eps
    assert_allclose(got[1][kept], factor * plain[1][kept], rtol=rtol)
    assert_allclose(got[2][kept], 3 * factor[:, :, None] * plain[2][kept], rtol=rtol)
    assert_allclose(got[3][kept], 3 * factor[:, :, None] * plain[3][kept], rtol=rtol)
    assert all((part[1:3] == 0).all() for part in got[1:4])


def test_bad_teachers(backend, dtype):
    """The first bad row is reported and is NaN; the others are as if it were not there."""
    z, t = random(4, 3, dtype=dtype)
    labels = np.array([[0], [1], [3], [-1]])
    good = run(backend, "forward_kl", z[:2], labels[:2])
    loss, bad = run(backend, "forward_kl", z, labels)[1::3][0], run(backend, "forward_kl", z, labels)[4]
    assert bad == 2
    assert_array_equal(loss[:2], good[1])
    assert np.isnan(loss[2:]).all()
    P = as_softmax(t)
    P[1, 2] = -0.25
    P[3, 0] = np.nan
    got = run(backend, "jensen_shannon", z, P)
    assert got[4] == 1
    assert_array_equal(np.isnan(got[1][:, 0]), [False, True, False, True])


@pytest.mark.parametrize("layout", ["inner", "reversed", "fortran", "strided", "broadcast teacher"])
def test_layouts(backend, dtype, layout):
    """The same bits for any strides."""
    z, t = random(4, 10, 6, dtype)
    if layout == "reversed":
        z, t = z[::-1, ::-1, ::-1], t[:, ::-1]
    elif layout == "fortran":
        z, t = np.asfortranarray(z), np.asfortranarray(t)
    elif layout == "strided":
        z, t = z[:, ::2, ::3], t[:, 1::2, 1::3]
    elif layout == "broadcast teacher":
        t = np.broadcast_to(t[:1, :, :1], z.shape)
    x = z * z
    for kind in KINDS:
        one = run(backend, kind, z, t, softened=True, x=x)
        two = run(backend, kind, z.copy("C"), t.copy("C"), softened=True, x=x.copy("C"))
        rows = [np.moveaxis(a, 1, 2).reshape(-1, a.shape[1], 1) for a in (z, t, x)]
        three = run(backend, kind, rows[0], rows[1], softened=True, x=rows[2])
        for a, b, c in zip(one[1:4], two[1:4], three[1:4], strict=True):
            assert_array_equal(a, b)
            assert_array_equal(np.moveaxis(a, 1, -1).ravel() if a.ndim == 3 else a.ravel(), c.ravel())


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision(backend, half):
    """Logits of 16 bits: what float32 logits of the same values give, rounded once."""
    dtype = np.dtype(half if half == "float16" else pytest.importorskip("ml_dtypes").bfloat16)
    z, t = random(3, 21, dtype="float32")
    z = z.astype(dtype)
    for kind in KINDS:
        got = run(backend, kind, z, t, softened=True)
        expected = run(backend, kind, z.astype(np.float32), t, softened=True)
        assert got[2].dtype == got[3].dtype == dtype
        assert_array_equal(got[1], expected[1])
        for a, b in zip(got[2:4], expected[2:4], strict=True):
            assert_array_equal(a, b.astype(dtype))


@pytest.mark.compiled
def test_threads():
    """The same bits for any number of threads, above the size at which they are used."""
    z, t = random(1, 2100, 520, "float32")
    for kind in ("entropy", "jensen_shannon"):
        one = run("cpu", kind, z, t, softened=True, threads=1)
        for threads in (2, 5):
            many = run("cpu", kind, z, t, softened=True, threads=threads)
            assert many[0] == one[0]
            for a, b in zip(many[1:4], one[1:4], strict=True):
                assert_array_equal(a, b)


def test_in_place(backend, dtype):
    """The gradient may be written over the logits."""
    z, t = random(3, 70, dtype=dtype)
    core = _backend.choose(backend)
    for kind in KINDS:
        expected = run(backend, kind, z, t, softened=True)[2]
        out = z.copy()
        core.divergence_rows(out, t, True, None, None, 1.0, 1.0, None, out, None, 1, kind)
        assert_array_equal(out, expected)


# ------------------------------------------------------------------------------------------------------------ objects

LOSSES = (
    JensenShannonLoss(),
    JensenShannonLoss(beta=0.2),
    BootstrappingLoss(),
    BootstrappingLoss(beta=0.6, hard=True),
    DistillationLoss(),
    DistillationLoss(temperature=3.0, weight=0.9, reverse=True),
    DistillationLoss(weight=1.0),
    DistillationLoss(weight=0.0),
)


def targets_of(loss, y, t):
    return (y, t) if isinstance(loss, DistillationLoss) else y


def written_out(loss, z, y, t):
    """The loss of one row in exact numbers, as its paper writes it; y a label or probabilities."""
    p = softmax(z)
    target = exact(y) if np.ndim(y) else [mp.mpf(int(k == y)) for k in range(len(z))]
    ce = -mp.fsum(a * mp.log(b) for a, b in zip(target, p, strict=True))
    if isinstance(loss, JensenShannonLoss):
        return textbook("jensen_shannon", p, target, loss.beta)
    if isinstance(loss, BootstrappingLoss):
        beta = mp.mpf(loss.beta)
        own = -mp.log(max(p)) if loss.hard else textbook("entropy", p, None)
        return beta * ce + (1 - beta) * own
    T, weight = mp.mpf(loss.temperature), mp.mpf(loss.weight)
    P, Q = softmax([a / T for a in exact(t)]), softmax([a / T for a in z])
    kl = textbook("reverse_kl" if loss.reverse else "forward_kl", Q, P)
    return (1 - weight) * ce + weight * T**2 * kl


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("kind", ["labels", "soft"])
def test_losses(backend, loss, kind):
    """Loss, gradient, curvature and Hessian product of every class, with weights, by numerical differentiation."""
    z, t, v = STUDENT[[0, 2, 5]], TEACHER[[0, 2, 5]], np.array([1.0, 0.5, 2.0])
    x = X[:3]
    y = LABELS[[0, 2, 5]] if kind == "labels" else as_softmax(TEACHER[:3] / 2)
    rows = [
        derivatives(lambda u, i=i: written_out(loss, u, y[i], t[i]), exact(z[i]), exact(x[i]))
        for i in range(3)
    ]
    targets = targets_of(loss, y, t)
    losses = loss.loss(z, targets, reduction="none", backend=backend)
    assert_allclose(losses, [float(row[0]) for row in rows], rtol=1e-12, atol=1e-22)
    mean, grad = loss.loss_grad(z, targets, v, backend=backend)
    share = v / v.sum()
    assert_allclose(mean, sum(s * float(row[0]) for s, row in zip(share, rows, strict=True)), rtol=1e-12)
    assert loss.loss(z, targets, v, backend=backend) == mean
    again, hess = loss.grad_hess(z, targets, v, backend=backend)
    assert_array_equal(again, grad)
    product = loss.hvp(z, targets, x, v, backend=backend)
    for part, at in ((grad, 1), (hess, 2), (product, 3)):
        for i, row in enumerate(rows):
            assert_allclose(part[i], share[i] * np.array(row[at], float), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_reductions_and_layouts(backend, loss):
    """Sum, mean and none agree; ignored rows are deleted rows; axis and base do what they do for cross-entropy."""
    z, t = (a[:, :, 0] for a in random(6, 5))
    y = np.array([0, 4, -100, 2, 1, 3])
    kept = np.delete(np.arange(6), 2)
    options = dict(backend=backend)
    losses = loss.loss(z, targets_of(loss, y, t), reduction="none", **options)
    assert losses[2] == 0
    mean, grad = loss.loss_grad(z, targets_of(loss, y, t), **options)
    assert_allclose(mean, losses[kept].mean(), rtol=1e-14)
    deleted, part = loss.loss_grad(z[kept], targets_of(loss, y[kept], t[kept]), **options)
    assert_allclose(deleted, mean, rtol=1e-14)
    assert_allclose(grad[kept], part, rtol=1e-13)
    assert_array_equal(grad[2], 0)
    total, summed = loss.loss_grad(z, targets_of(loss, y, t), reduction="sum", **options)
    assert_allclose([total, *summed[0]], [5 * mean, *(5 * grad[0])], rtol=1e-13)
    assert_allclose(
        loss.loss(z, targets_of(loss, y, t), reduction="mean_all", **options), total / 6, rtol=1e-14
    )
    moved = type(loss)(**{f: getattr(loss, f) for f in loss.__dataclass_fields__} | {"axis": 0, "base": 2})
    bits, across = moved.loss_grad(z.T, targets_of(loss, y, t.T), **options)
    assert_allclose(bits * np.log(2), mean, rtol=1e-14)
    assert_allclose(across.T * np.log(2), grad, rtol=1e-13)
    out = z.copy()
    again, result = loss.loss_grad(out, targets_of(loss, y, t), out=out, **options)
    assert result is out
    assert again == mean
    assert_array_equal(out, grad)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_curvature_policies(loss):
    """ "upper" dominates the whole Hessian of every row; "clip" and "abs" are floors and sizes of the diagonal."""
    z, t = (a[:, :, 0] for a in random(8, 4))
    y = np.arange(8) % 4
    y[5] = -100
    targets = targets_of(loss, y, t)
    _, exactly = loss.grad_hess(z, targets, reduction="sum")
    _, upper = loss.grad_hess(z, targets, reduction="sum", hessian="upper")
    columns = [loss.hvp(z, targets, np.broadcast_to(e, z.shape), reduction="sum") for e in np.eye(4)]
    for i, H in enumerate(np.stack(columns, axis=2)):
        assert_allclose(H, H.T, atol=1e-14)
        assert_allclose(np.diag(H), exactly[i], rtol=1e-9, atol=1e-15)
        assert np.linalg.eigvalsh(np.diag(upper[i]) - H).min() > -1e-14
    assert (upper[5] == 0).all()
    assert (upper[np.arange(8) != 5] > 0).all()
    _, clipped = loss.grad_hess(z, targets, reduction="sum", hessian="clip")
    assert (clipped[np.arange(8) != 5] > 0).all()
    for policy in ("abs", "xgboost", "lightgbm"):
        assert (loss.grad_hess(z, targets, hessian=policy)[1] >= 0).all()


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_solve_undoes_the_product(loss, backend):
    """Damping above the negative curvature, which is less than 1 per row."""
    targets = targets_of(loss, LABELS, TEACHER)
    rest = dict(reduction="sum", backend=backend)
    r = 20 * X + loss.hvp(STUDENT, targets, X, **rest)
    assert_allclose(loss.solve(STUDENT, targets, r, 20.0, **rest), X, rtol=1e-11, atol=1e-13)


def test_bootstrapping_ends():
    """beta = 1 is cross-entropy; the entropy term rewards confidence; a prediction that is right changes nothing."""
    z, y = STUDENT, LABELS
    plain = SoftmaxCrossEntropy().loss(z, y)
    assert_allclose(BootstrappingLoss(beta=1.0).loss(z, y), plain, rtol=1e-15)
    assert_allclose(BootstrappingLoss(beta=1.0, hard=True).loss(z, y), plain, rtol=1e-15)
    assert_allclose(
        BootstrappingLoss(beta=0.3, hard=True).loss(z, z.argmax(1)),
        SoftmaxCrossEntropy().loss(z, z.argmax(1)),
    )
    # a tuple of labels is one array of labels, not one entry per term
    assert BootstrappingLoss().loss(z[:2], (0, 1)) == BootstrappingLoss().loss(z[:2], [0, 1])


def test_distillation_reaches_its_teacher():
    """The loss at the teacher itself is 0, and so is its gradient."""
    for reverse in (False, True):
        loss, grad = DistillationLoss(weight=1.0, reverse=reverse).loss_grad(TEACHER, (LABELS, TEACHER))
        assert loss == 0
        assert_array_equal(grad, 0)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_objects(loss):
    """Values: they print their options, compare, hash and pickle."""
    assert pickle.loads(pickle.dumps(loss)) == loss
    assert len({loss, type(loss)(**{f: getattr(loss, f) for f in loss.__dataclass_fields__})}) == 1
    assert repr(loss).startswith(type(loss).__name__)
    assert eval(repr(loss)) == loss
    assert (0.5 * loss + loss).loss(STUDENT, 2 * (targets_of(loss, LABELS, TEACHER),)) == pytest.approx(
        1.5 * loss.loss(STUDENT, targets_of(loss, LABELS, TEACHER)), rel=1e-14
    )


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: JensenShannonLoss(beta=0.0), ValueError, ["beta", "0"]),
        (lambda: JensenShannonLoss(beta=1.0), ValueError, ["beta", "1"]),
        (lambda: BootstrappingLoss(beta=1.5), ValueError, ["beta", "1.5"]),
        (lambda: BootstrappingLoss(hard="yes"), TypeError, ["hard", "yes"]),
        (lambda: DistillationLoss(temperature=0.0), ValueError, ["temperature", "0"]),
        (lambda: DistillationLoss(weight=-0.5), ValueError, ["weight", "-0.5"]),
        (lambda: DistillationLoss(reverse=2), TypeError, ["reverse", "2"]),
        (lambda: DistillationLoss(axis="last"), TypeError, ["axis", "last"]),
        (lambda: JensenShannonLoss(base=1), ValueError, ["base"]),
        (lambda: DistillationLoss().loss(STUDENT, LABELS), ValueError, ["(labels, teacher_logits)", "ndarray"]),
        (lambda: DistillationLoss().loss(STUDENT, (LABELS,)), ValueError, ["targets", "tuple of 1"]),
        (lambda: DistillationLoss().loss(STUDENT, (LABELS, TEACHER[:2])), ValueError,
         ["teacher_logits", "(7, 4)", "(2, 4)"]),
        (lambda: DistillationLoss(weight=1.0).loss(STUDENT, (LABELS + 2, TEACHER), reduction="sum"), ValueError,
         ["targets", "4"]),
        (lambda: JensenShannonLoss().loss(STUDENT, LABELS + 2), ValueError, ["targets", "label < 4"]),
        (lambda: JensenShannonLoss().loss(STUDENT, -as_softmax(STUDENT)), ValueError, ["targets", "negative"]),
        (lambda: JensenShannonLoss().loss(STUDENT, INFINITE), ValueError, ["targets[3]", "an infinity"]),
        (lambda: JensenShannonLoss().hvp(STUDENT, INFINITE, X), ValueError, ["targets[3]", "an infinity"]),
        (lambda: JensenShannonLoss().grad_hess(STUDENT, INFINITE, hessian="upper"), ValueError, ["targets[3]"]),
        (lambda: JensenShannonLoss().solve(STUDENT, LABELS, X, 0.0), ValueError, ["lam", "positive"]),
        (lambda: JensenShannonLoss().hvp(STUDENT, LABELS, X[:2]), ValueError, ["x", "(7, 4)"]),
    ],
)  # fmt: skip
def test_mistakes(make, error, words):
    with pytest.raises(error) as caught:
        make()
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize("margin", [60.0, 700.0, 720.0, 740.0, 760.0, 1e4])
def test_jensen_shannon_of_opposite_certainties(backend, margin):
    """ln 2 from below, also where exp(-margin) is denormal."""
    z = np.array([[margin, 0.0, -1.0]])
    loss = JensenShannonLoss().loss(z, np.array([[0.0, 0.5, 0.5]]), backend=backend)
    assert loss == pytest.approx(np.log(2), rel=1e-12)


@pytest.mark.parametrize("n_classes", [1, 2, 7, 8, 9, 128, 129, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_backends_agree_for_any_number_of_classes(kind, n_classes, dtype):
    """Rows in lanes and classes in lanes, with ragged ends, along any axis."""
    rng = np.random.default_rng(n_classes)
    z, teacher, x = rng.normal(size=(3, 13, n_classes, 2)).astype(dtype)
    y = rng.integers(0, n_classes, (13, 2))
    f = Divergence(kind, softened=True, axis=1)
    answers = []
    for name in ("cpu", "numpy"):
        rest = dict(reduction="sum", backend=name)
        grads = (f.grad_hess(z, (y, teacher), hessian=h, **rest) for h in ("exact", "upper"))
        answers.append([f.loss(z, (y, teacher), **rest), *sum(grads, ()), f.hvp(z, (y, teacher), x, **rest)])
    for a, b in zip(*answers, strict=True):
        assert_allclose(
            a, b, rtol=1e-5 if dtype == "float32" else 1e-11, atol=1e-6 if dtype == "float32" else 1e-13
        )
