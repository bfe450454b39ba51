"""`_core_cuda` on NumPy arrays against the specification in float64, on a GPU or in the emulator.

The same call of both modules, but that the specification gets float64 arrays and no storage to round to. Outputs begin
as NaN; on a GPU nothing else changes.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from test_cuda_kernels import DTYPES, SIMULATED, TOLERANCE, Emulator, Gpu, assert_close

from fastxent import _core_numpy

pytestmark = pytest.mark.simulated if SIMULATED else pytest.mark.gpu
slow = pytest.mark.slow

EXACT = 1e-13
# What is computed in float64 and rounded once.
STORED = {**TOLERANCE, "float32": 1e-7, "float64": EXACT}
SLOWER = ("float16", "bfloat16", "float64")
FAMILIES = [
    ("cross_entropy", 0.0, 0.0),
    ("focal", 2.0, 0.0),
    ("linear", 1.0, 1.5),
    ("power", 0.7, 0.0),
]


@pytest.fixture(scope="module")
def core():
    """The CUDA functions."""
    (Emulator if SIMULATED else Gpu)()
    import fastxent._core_cuda

    return fastxent._core_cuda


def wide(x):
    """Arrays of reals in float64; anything else as it is."""
    real = isinstance(x, np.ndarray) and x.dtype.kind not in "iub"
    return x.astype(np.float64) if real else x


def empty(like, dtype=None):
    return np.full(like.shape, np.nan, like.dtype if dtype is None else dtype)


def both(core, name, head, outs, tail, *, real=False):
    """(results, outputs) of the CUDA function and of the specification; `real`: outputs in the arithmetic's dtype."""
    found = []
    for module, change in ((core, lambda x: x), (_core_numpy, wide)):
        filled = [None if out is None else empty(change(out)) for out in outs]
        result = getattr(module, name)(*map(change, head), *filled, 1, *tail)
        found.append((result, filled))
    return found


def assert_agree(found, *tolerances):
    (_, ours), (_, theirs) = found
    for a, b, tolerance in zip(ours, theirs, tolerances, strict=True):
        if a is not None:
            assert_close(a, b.astype(a.dtype).astype(np.float64), tolerance)  # float16 has no small numbers


def whole(found):
    """The whole numbers that the CUDA function and the specification return: first bad row, rows counted."""
    both_results = [result if isinstance(result, tuple) else (result,) for result, _ in found]
    return tuple([value for value in result if isinstance(value, int)] for result in both_results)


def softmax_problem(dtype, shape=(4, 11, 1), soft=False, seed=0, scale=3.0):
    """Logits, targets, weights of rows and classes, bias."""
    rng = np.random.default_rng(seed)
    outer, k, inner = shape
    real = np.float64 if dtype == "float64" else np.float32
    z = (scale * rng.standard_normal(shape)).astype(DTYPES[dtype])
    y = rng.random(shape).astype(real) if soft else rng.integers(0, k, (outer, inner))
    if not soft and y.size > 2:
        y[1] = -100
    v = rng.random((outer, inner)).astype(real)
    v.flat[-1] = 0
    return z, y, v, (0.5 + rng.random(k)).astype(real), rng.standard_normal(k).astype(real)


def tolerance(dtype):
    return max(TOLERANCE[dtype], 4e-6 if dtype != "float64" else EXACT)


# Second derivatives -------------------------------------------------------------------------------------------

SHAPES = {
    "thread": (5, 6, 1),
    "warp": (3, 45, 1),
    "inner": (2, 9, 5),
    "vectors": (2, 301, 1),
    "block": (2, 1030, 1),
}


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float16", marks=slow), "bfloat16", "float64"])
@pytest.mark.parametrize("shape", ["thread", "warp", "inner", "vectors", pytest.param("block", marks=slow)])
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
def test_curvature(core, dtype, shape, soft):
    """Diagonal, product and upper bound with every option; a thread, a warp or a block to a row, 16 bytes at a time."""
    z, y, v, w, bias = softmax_problem(dtype, SHAPES[shape], soft)
    x = np.random.default_rng(1).standard_normal(z.shape).astype(v.dtype)
    family = FAMILIES[len(shape) % 4]
    head = (z, y, v, w, bias, 0.1, soft, -100, 1e-2, 1.7, 0.5)
    exact = tolerance(dtype)
    found = both(core, "softmax_rows", head, (None, None, z, z), family)
    assert_agree(found, 0, 0, exact, exact)
    ours, theirs = whole(found)
    assert ours == theirs
    assert len(ours) == 2
    for name, arguments, limit in (
        ("softmax_hvp", (*head, x), exact),
        ("softmax_upper", head, STORED[dtype]),
    ):
        found = both(core, name, arguments, (z,), family)
        assert_agree(found, limit)
        assert whole(found) == ([-1], [-1])


@pytest.mark.parametrize("member", FAMILIES, ids=[m[0] for m in FAMILIES])
@pytest.mark.parametrize(
    ("name", "k"),
    [
        ("softmax_rows", 13),
        ("softmax_hvp", 13),
        ("softmax_upper", 13),
        pytest.param("softmax_rows", 259, marks=slow),
        ("softmax_hvp", 259),
    ],
)
def test_curvature_of_the_families(core, member, name, k):
    """Labels alone, weights of any sign; the first bad row is named and NaN."""
    z, y, _, _, _ = softmax_problem("float32", (6, k, 1), seed=2)
    v = np.array([1.0, -2.0, 0.0, 0.5, 1.0, 3.0], np.float32)[:, None]
    y[3], y[4] = k, -2
    head = (z, y, v, None, None, 0.0, False, None, 0.0, 1.0, 1.0)
    x = np.random.default_rng(3).standard_normal(z.shape).astype(np.float32)
    extra = {"softmax_rows": (None, None, None), "softmax_hvp": (), "softmax_upper": ()}[name]
    found = both(core, name, (*head, x) if name == "softmax_hvp" else head, (*extra, z), member)
    assert_agree(found, *map(lambda _: 0, extra), 4e-6)
    bad = [r[0][1] if isinstance(r[0], tuple) else r[0] for r in found]
    assert bad[0] == bad[1] >= 1
    if name == "softmax_rows":
        assert found[0][0][1:] == found[1][0][1:]


@pytest.mark.parametrize("wrong", [-1.0, np.inf, np.nan])
def test_bad_soft_targets(core, wrong):
    """The first row with a share that is negative, infinite or NaN is named by every function that reads targets."""
    z, y, v, w, bias = softmax_problem("float32", (6, 13, 1), soft=True, seed=6)
    y[4, 12] = y[5, 0] = wrong
    head = (z, y, v, w, bias, 0.1, False, None, 1e-2, 1.7, 1.0)
    for name, more, outs in (
        ("softmax_rows", (), (None, None, z, None)),
        ("softmax_rows", (), (None, None, None, z)),
        ("softmax_hvp", (z,), (z,)),
        ("softmax_upper", (), (z,)),
    ):
        found = both(core, name, (*head, *more), outs, FAMILIES[1])
        bad = [result[1] if isinstance(result, tuple) else result for result, _ in found]
        assert bad == [4, 4]
    for module in (core, _core_numpy):
        assert module.target_totals(y, v, w, 13, None, 1)[2] == 4


@pytest.mark.parametrize("name", ["softmax_rows", "softmax_hvp", "softmax_upper"])
@pytest.mark.parametrize("member", [FAMILIES[0], FAMILIES[1]], ids=["cross_entropy", "focal"])
def test_curvature_at_the_limits(core, name, member):
    """Infinities, NaN and far apart logits, as in the specification."""
    z, _, _, _, _ = softmax_problem("float32", (8, 9, 1), seed=4)
    y = np.array([0, 1, 2, 3, 4, 5, 6, 7])[:, None]
    z[0, 1], z[1, 1], z[2, [0, 3]], z[3], z[4, 2], z[5, 5], z[6] = (
        np.inf,
        np.inf,
        np.inf,
        -np.inf,
        np.nan,
        -np.inf,
        z[6] + 1e4,
    )
    z[7, 7] += 60
    head = (z, y, None, None, None, 0.0, False, -100, 1e-3, 1.0, 1.0)
    x = np.ones_like(z)
    outs = (None, None, None, z) if name == "softmax_rows" else (z,)
    found = both(core, name, (*head, x) if name == "softmax_hvp" else head, outs, member)
    assert_agree(found, *(0,) * (len(outs) - 1), 4e-6)
    ours, theirs = whole(found)
    assert ours == theirs
    assert np.isnan(found[0][1][-1][4]).all()  # a NaN stays in its row
    assert np.isfinite(found[0][1][-1][7]).all()


ELEMENTS = [("cross_entropy", 0.0, 0.0, 0.0), ("focal", 2.0, 0.25, 0.75), ("asymmetric", 1.0, 4.0, 0.05)]


@pytest.mark.parametrize("dtype", ["float32", *(pytest.param(t, marks=slow) for t in SLOWER)])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("member", ELEMENTS, ids=[m[0] for m in ELEMENTS])
def test_curvature_of_elements(core, dtype, weighted, member):
    rng = np.random.default_rng(5)
    real = np.float64 if dtype == "float64" else np.float32
    z = (4 * rng.standard_normal((3, 43))).astype(DTYPES[dtype])
    z[0, :4] = [60, -60, 0, np.inf]
    y = (rng.random(z.shape) < 0.5).astype(real)
    weight, positive = np.broadcast_to(np.array([[2.0], [0.0], [1.0]], real), z.shape), rng.random((1, 43))
    positive = np.broadcast_to(positive.astype(real), z.shape)
    head = (z, y, *((weight, positive) if weighted else (None, None)), 0.1, 0.5)
    found = both(core, "sigmoid_elements", head, (None, z, z), member)
    assert_agree(found, 0, tolerance(dtype), tolerance(dtype))
    ours, theirs = whole(found)
    assert ours == theirs
    assert not weighted or not found[0][1][2][1].any()  # elements that weigh nothing


@pytest.mark.parametrize("dtype", ["float32", *(pytest.param(t, marks=slow) for t in SLOWER)])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_probabilities(core, dtype, weighted):
    """Loss, gradient and Hessian of probabilities, the ends of [0, 1] included; what lies outside is found."""
    rng = np.random.default_rng(6)
    real = np.float64 if dtype == "float64" else np.float32
    p = (0.02 + 0.96 * rng.random((3, 43))).astype(DTYPES[dtype])
    p[0, :6] = [0, 1, 0, 1, 0.5, 0]
    y = rng.random(p.shape).astype(real)
    y[0, :6] = [0, 1, 1, 0, 0.5, 0.5]
    weight, positive = (
        np.broadcast_to(np.array([[2.0], [0.0], [1.0]], real), p.shape),
        1 + rng.random((1, 43)),
    )
    positive = np.broadcast_to(positive.astype(real), p.shape)
    for smoothing in (0.0, 0.1):
        head = (p, y, *((weight, positive) if weighted else (None, None)), smoothing, 0.5)
        found = both(core, "binary_elements", head, (y, p, p), ())
        assert_agree(
            found, tolerance("float64" if dtype == "float64" else "float32"), *(tolerance(dtype),) * 2
        )
        assert found[0][0][1:] == (-1, -1)
        assert math.isinf(found[0][0][0])
    y[1, 3], p[2, 5], y[2, 7] = 1.5, -0.25, np.nan
    assert core.binary_elements(p, y, None, None, 0.0, 1.0, None, None, None, 1)[1:] == (46, 91)


# Boosting and shards ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("k", [3, 20])
def test_boost(core, dtype, k):
    """Both libraries' curvature, weights of rows and classes; limits are told; columns in one piece, as LightGBM's."""
    rng = np.random.default_rng(7)
    z = (3 * rng.standard_normal((9, k))).astype(dtype)
    z[2, 1] = z[2].max() + 30
    y, v = rng.integers(0, k, 9).astype(np.int32), rng.random(9).astype(dtype)
    for weights, factor, floor in (
        ((v, 1 + rng.random(k).astype(dtype)), 2.0, 1e-16),
        ((None, None), 1.2, 0.0),
    ):
        outs = [np.full((2, 9, k), np.nan, np.float32) for _ in range(2)]
        for module, (grad, hess) in zip((core, _core_numpy), outs, strict=True):
            assert module.softmax_boost(z, y, *weights, factor, floor, grad, hess, 1) is True
        assert np.allclose(*outs, rtol=3e-7, atol=0)
    from fastxent._core_cuda.host import Host

    host = Host()
    arrays = [np.ascontiguousarray(z.T), *np.full((2, k, 9), np.nan, np.float32)]
    margins, grad, hess = (host.device(a)._replace(shape=(9, k), strides=(1, 9)) for a in arrays)
    core.general.boost(host.context, margins, host.take(y), None, None, 1.2, 0.0, grad, hess, host.flag())
    for got, expected in zip((grad, hess), outs[1], strict=True):
        assert np.allclose(got.owner.copy_to_host().T, expected, rtol=3e-7, atol=0)
    for value in (np.inf, -np.inf, np.nan):
        z[4] = value
        assert core.softmax_boost(z, y, None, None, 2.0, 0.0, *outs[0], 1) is False
    z[4] = 0
    assert (
        core.softmax_boost(z, y.astype(np.float32), v.astype(np.float64), None, 2.0, 0.0, *outs[0], 1) is True
    )
    for labels, weight in ((y + 0.5, None), (y - 1000, None), (y + k, None), (y, -v), (y, v * np.inf)):
        assert core.softmax_boost(z, labels, weight, None, 2.0, 0.0, *outs[0], 1) is False


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float16", marks=slow), "bfloat16", "float64"])
@pytest.mark.parametrize("k", [1, 37, pytest.param(1030, marks=slow)])
def test_shards(core, dtype, k):
    """State and gradient of some columns; limits, NaN, labels elsewhere, smoothing, dead rows."""
    rng = np.random.default_rng(8)
    z = (5 * rng.standard_normal((9, k))).astype(DTYPES[dtype])
    z[1], z[2, 0], z[3, -1] = -np.inf, np.inf, np.nan
    z[4, : 2 if k > 1 else 1] = np.inf
    z[5, 0] = 80 if k > 1 else 3
    y = rng.integers(10, 10 + k, 9)
    y[0], y[5], y[7], y[8] = 2, 10, 10 + k, 10 + k - 1
    states = []
    for module, change in ((core, lambda x: x), (_core_numpy, wide)):
        state = np.full((4, 9), np.nan)
        module.partial_rows(change(z), y, 10, *state, 1)
        states.append(state)
    for ours, theirs in zip(*states, strict=True):
        assert_close(ours, theirs, EXACT)
    m, r, t, _ = states[1]
    r = np.where(np.isneginf(m), np.nan, r)
    pull, weight = 0.02 * rng.random(9), rng.random(9)
    weight[6] = 0
    for spread, share in ((0.0, 1.0), (0.01, 0.9)):
        grads = [np.full(z.shape, np.nan, DTYPES[dtype]), np.full(z.shape, np.nan)]
        arguments = (y, 10, m, r, t, pull, weight, spread, share)
        core.partial_grad(z, *arguments, grads[0], 1)
        _core_numpy.partial_grad(wide(z), *arguments, grads[1], 1)
        assert_close(*grads, STORED[dtype])
        assert not grads[0][6].any()  # a row that weighs nothing


# Regions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", *(pytest.param(t, marks=slow) for t in SLOWER)])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize("soft", [False, True], ids=["products", "soft labels"])
def test_regions(core, dtype, activation, soft):
    """Sums and gradient, of all classes and class by class; weights of 0 hide whatever is there."""
    rng = np.random.default_rng(9)
    real = np.float64 if dtype == "float64" else np.float32
    shape = (2, 3, 5, 7) if soft else (2, 1, 19, 1)
    z = (rng.random(shape) if activation == "none" else 3 * rng.standard_normal(shape)).astype(DTYPES[dtype])
    t = rng.random(shape).astype(real) if soft else (rng.random(shape) < 0.3).astype(real)
    if soft and activation == "none":
        t[0, 0] = z[0, 0]  # ties
    weight = np.broadcast_to(rng.random((2, shape[1], 1, shape[3])), shape).astype(real)
    weight[1, 0, :, 0] = 0
    z[1, 0, 2, 0] = np.nan
    for groups, v in ((1, weight), (shape[2], weight), (1, None)):
        if v is None:
            z[1, 0, 2, 0] = 0.5
        head = (z, t, v, activation, soft)
        found = both(core, "region_sums", head, (np.empty((2, groups, 3)),), ())
        assert_agree(found, tolerance("float64" if dtype == "float64" else "float32"))
        slopes = rng.random((2, groups, 2))
        found = both(core, "region_grad", (*head, 0.3, 0.7, slopes), (z,), ())
        assert_agree(found, tolerance(dtype))
        assert v is None or not found[0][1][0][1, 0, :, 0].any()


def test_region_losses(core):
    """The losses and slopes of sums, that of nothing among them; the same bits twice, whatever the blocks."""
    from fastxent._core_cuda.host import Host

    host = Host()
    sums = np.random.default_rng(10).random((2, 3, 3))
    sums[1, 1] = 0
    outs = [host.device(np.full(shape, np.nan)) for shape in ((2, 3), (2, 3, 2))]
    core.general.region_losses(host.context, host.device(sums), 0.3, 0.7, 0.0, 0.5, *outs)
    tp, fp, fn = np.moveaxis(sums, 2, 0)
    wrong = 0.3 * fp + 0.7 * fn
    whole = np.where(tp + wrong == 0, np.inf, tp + wrong)
    losses, slopes = (out.owner.copy_to_host() for out in outs)
    assert_close(losses.reshape(2, 3), wrong / whole, EXACT)
    assert_close(slopes.reshape(2, 3, 2), 0.5 * np.stack([tp, wrong], axis=2) / whole[:, :, None] ** 2, EXACT)


# Divergences ----------------------------------------------------------------------------------------------------


def teacher_problem(kind, dtype, shape):
    """Logits and a teacher that is close to them in some rows, certain in others."""
    rng = np.random.default_rng(11)
    outer, k, inner = shape
    real = np.float64 if dtype == "float64" else np.float32
    z = (3 * rng.standard_normal(shape)).astype(DTYPES[dtype])
    z[0, 1] += 40
    if kind == "labels":
        teacher = rng.integers(0, k, (outer, inner))
        teacher[0], teacher[-1] = 1, -100
    elif kind == "logits":
        teacher = (z.astype(np.float64) + 0.1 * rng.standard_normal(shape)).astype(real)
    else:
        teacher = rng.random(shape).astype(real)
        teacher[0] = 0
        teacher[0, 1] = 1
        teacher[-1, ::2] = 0
    v = (0.5 + rng.random((outer, inner))).astype(real)
    return z, teacher, v


KINDS = [
    ("labels", "entropy"),
    ("weights", "forward_kl"),
    ("logits", "forward_kl"),
    ("labels", "forward_kl"),
    ("weights", "reverse_kl"),
    ("logits", "reverse_kl"),
    ("labels", "jensen_shannon"),
    ("weights", "jensen_shannon"),
]


@pytest.mark.parametrize(("kind", "family"), KINDS, ids=["-".join(each) for each in KINDS])
@pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("float16", marks=slow), pytest.param("float64", marks=slow)]
)
def test_divergences(core, dtype, kind, family):
    """Loss, gradient, diagonal, product and upper bound, with infinite divergences, a warp or a thread to a row."""
    for shape in ((4, 11, 1), (2, 5, 3)):
        z, teacher, v = teacher_problem(kind, dtype, shape)
        v[1, 0] = 0 if shape[2] > 1 else -0.5
        head = (z, teacher, kind == "logits", v, -100, 1.5 if kind == "logits" else 1.0, 0.5)
        stored = STORED[dtype]
        row = np.empty(v.shape, v.dtype)
        found = both(core, "divergence_rows", head, (row, z, z), (family, 0.3))
        assert_agree(found, STORED["float64" if dtype == "float64" else "float32"], stored, stored)
        assert found[0][0][1] == found[1][0][1] == -1
        assert found[0][0][0] == pytest.approx(found[1][0][0], rel=1e-6)
        x = np.random.default_rng(12).standard_normal(shape).astype(v.dtype)
        assert_agree(both(core, "divergence_hvp", (*head, x), (z,), (family, 0.3)), stored)
        assert_agree(both(core, "divergence_upper", head, (z,), (family, 0.3)), stored)


def test_divergences_of_nothing_and_of_bad_teachers(core):
    """The entropy needs no teacher; NaN and infinities of either side; the first bad row."""
    z, _, v = teacher_problem("labels", "float32", (6, 9, 1))
    z[2, 3], z[3, 3], z[4, [1, 2]] = np.nan, np.inf, np.inf
    head = (z, None, False, v, None, 1.0, 1.0)
    assert_agree(both(core, "divergence_rows", head, (v, z, z), ("entropy",)), 1e-7, 1e-7, 1e-7)
    p = np.random.default_rng(13).random(z.shape).astype(np.float32)
    p[1, 4] = -1
    p[5] = 0
    for family in ("forward_kl", "reverse_kl", "jensen_shannon"):
        found = both(core, "divergence_rows", (z, p, False, None, None, 1.0, 1.0), (v, z, z), (family,))
        assert_agree(found, 1e-7, 1e-7, 1e-7)
        assert found[0][0][1] == found[1][0][1] == 1
        found = both(core, "divergence_rows", (z, p, True, None, None, 2.0, 1.0), (v, z, z), (family,))
        assert_agree(found, 1e-7, 1e-7, 1e-7)
    p[1, 4] = np.inf
    for module in (core, _core_numpy):
        loss, bad = module.divergence_rows(z, p, False, None, None, 1.0, 1.0, v, None, None, 1, "forward_kl")
        assert bad == 1
        assert np.isnan(loss)
        assert np.isnan(v[1, 0])
    labels = np.array([0, 1, 9, 3, -1, 2])[:, None]
    assert core.divergence_hvp(z, labels, False, None, -1, 1.0, 1.0, z, z.copy(), 1, "entropy") == 2


# Systems --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "shape"), [("float32", (3, 13, 1)), ("float64", (2, 5, 2)), ("bfloat16", (2, 40, 1))]
)
@pytest.mark.parametrize("many", [pytest.param(1, marks=slow), pytest.param(2, marks=slow), 3])
def test_solve(core, dtype, shape, many):
    """Sums of softmax losses and divergences in one group or two, little damping, rows that count nothing."""
    z, y, v, w, bias = softmax_problem(dtype, shape)
    teacher = np.random.default_rng(14).random(shape).astype(v.dtype)
    options = (0.1, False, -100, 1e-2, 1.0, 0.5)
    terms = (
        ("softmax", 0, z, y, v, w, None, *options, "focal", 2.0, 0.0),
        ("divergence", 0, z, teacher, False, v, None, 1.0, 0.7, "jensen_shannon", 0.5),
        ("softmax", 1, z, y, None, None, bias, 0.0, False, -100, 0.0, 2.0, 1.0, "cross_entropy", 0.0, 0.0),
    )[:many]
    damping, rhs = np.full(shape, 1e-6), np.random.default_rng(15).standard_normal(shape)
    outs = [np.full(shape, np.nan, z.dtype), np.full(shape, np.nan)]
    core.softmax_solve(terms, damping, rhs, outs[0], 1)
    _core_numpy.softmax_solve(tuple(tuple(map(wide, term)) for term in terms), damping, rhs, outs[1], 1)
    assert_close(outs[0], outs[1], {**STORED, "float32": 3e-7, "float64": 1e-9}[dtype])


@pytest.mark.skipif(not SIMULATED, reason="a device function runs by itself in the emulator only")
@pytest.mark.parametrize("inner", [1, 2, 3, 1000003, (1 << 33) + 1])
def test_rows_beyond_32_bits(core, inner):
    """The quotient of rows that no 32-bit division takes, at whole numbers and beside them."""
    from fastxent._core_cuda.strided import split_row

    for outer in (0, 1, 7, (1 << 19) - 1):
        for rest in (0, 1, inner - 1):
            row = outer * inner + rest % inner
            assert tuple(map(int, split_row(np.int64(row), np.int64(inner)))) == divmod(row, inner)
    if inner < 1 << 20:
        for row in ((1 << 53) - 1, ((1 << 53) // inner) * inner - 1, (1 << 32) + 1):
            assert tuple(map(int, split_row(np.int64(row), np.int64(inner)))) == divmod(row, inner)
