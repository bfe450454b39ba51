"""Softmax cross-entropy against the oracle: every option, target kind, reduction, shape and door.

The table of options is checked in ulp against mpmath on five rows. An ulp here is one of the larger term,
as the oracle scales it: 8 of them are four rounded factors in each of the two terms that meet in a gradient
entry; the claims without options (4 and 6) stand in test_accuracy.py.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import reference
from numpy.testing import assert_allclose, assert_array_equal

import fastxent as fx

ULPS = 8
REDUCTIONS = ("mean", "sum", "none", "mean_rows", "mean_all")


def problem(kind, dtype, n_rows=5, n_classes=6, seed=0):
    """Logits with margins of 0.1 to 60; labels, one of them ignored, or soft targets that do not sum to 1."""
    rng = np.random.default_rng(seed)
    z = (rng.normal(size=(n_rows, n_classes)) * np.geomspace(0.1, 30, n_rows)[:, None]).astype(dtype)
    if kind == "soft":
        return z, (rng.dirichlet(np.ones(n_classes), n_rows) * rng.uniform(0.5, 1.5, (n_rows, 1))).astype(
            dtype
        )
    y = rng.integers(0, n_classes, n_rows)
    y[n_rows // 2] = -100
    return z, y


def weights(shape, dtype, seed=7, low=0.25):
    return np.random.default_rng(seed).uniform(low, 2, shape).astype(dtype)


def options_of(name, dtype, n_rows=5, n_classes=6):
    """Options by name; arrays are of the compute dtype, so that nothing is rounded on the way in."""
    bias = np.random.default_rng(8).normal(size=n_classes).astype(dtype)
    table = {
        "plain": {},
        "sample_weight": dict(sample_weight=weights(n_rows, dtype)),
        "zero weight": dict(sample_weight=np.array([1, 0, 2, 0.5, 0], dtype)),
        "signed weight": dict(sample_weight=np.array([1, -1.5, 2, 0.5, -0.25], dtype)),
        "scalar weight": dict(sample_weight=0.75),
        "class_weight": dict(class_weight=weights(n_classes, dtype, 9)),
        "class weight of zero": dict(class_weight=np.array([1, 0, 2, 0.5, 3, 1], dtype)),
        "smoothing": dict(label_smoothing=0.1),
        "smoothing of one": dict(label_smoothing=1.0),
        "exclude_target": dict(label_smoothing=0.1, smoothing="exclude_target"),
        "z_loss": dict(z_loss=1e-2),
        "hot": dict(temperature=4.0),
        "cold": dict(temperature=0.3),
        "logit_bias": dict(logit_bias=bias),
        "base 2": dict(base=2),
        "base 10": dict(base=10.0),
        "no ignore": dict(ignore_index=None),
        "ignore 2": dict(ignore_index=2),
        "everything": dict(
            sample_weight=weights(n_rows, dtype),
            class_weight=weights(n_classes, dtype, 9),
            label_smoothing=0.2,
            z_loss=1e-3,
            temperature=1.7,
            logit_bias=bias,
            base=2,
        ),
        "everything, exclude_target": dict(
            sample_weight=weights(n_rows, dtype),
            class_weight=weights(n_classes, dtype, 9),
            label_smoothing=0.2,
            smoothing="exclude_target",
            z_loss=1e-3,
            temperature=0.5,
            base=2,
        ),
    }
    return table[name]


OPTIONS = (
    "plain",
    "sample_weight",
    "zero weight",
    "signed weight",
    "scalar weight",
    "class_weight",
    "class weight of zero",
    "smoothing",
    "smoothing of one",
    "exclude_target",
    "z_loss",
    "hot",
    "cold",
    "logit_bias",
    "base 2",
    "base 10",
    "no ignore",
    "ignore 2",
    "everything",
    "everything, exclude_target",
)
# Excluding the target needs a target: it is defined for labels.
CASES = [
    (kind, name)
    for kind in ("label", "soft")
    for name in OPTIONS
    if not (kind == "soft" and "exclude_target" in name)
]


def case(kind, name, dtype):
    z, y = problem(kind, dtype)
    options = options_of(name, dtype)
    if kind == "label" and name in ("no ignore", "ignore 2"):
        y = np.array([0, 2, 5, 2, 1])
    return z, y, options


@functools.cache
def truth_of(kind, name, dtype, reduction):
    z, y, options = case(kind, name, dtype)
    x = np.random.default_rng(5).normal(size=z.shape).astype(dtype)
    return reference.softmax(z, y, reduction=reduction, exact=True, direction=x, **options)


def assert_loss(loss, truth, reduction, dtype):
    """Reduced: a Python float. "none": an array of the compute dtype. Both within ULPS of the terms."""
    if reduction == "none":
        assert isinstance(loss, np.ndarray)
        assert loss.dtype == dtype
        assert reference.worst(loss, truth.losses, truth.losses_scale) <= ULPS
    else:
        assert type(loss) is float
        assert reference.worst(loss, truth.loss, truth.loss_scale, dtype) <= ULPS


@pytest.mark.parametrize(("kind", "name"), CASES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_options(backend, dtype, kind, name, reduction):
    """Loss, fused gradient, forward pair and backward of every option under every reduction."""
    z, y, options = case(kind, name, dtype)
    truth = truth_of(kind, name, dtype, reduction)
    kept = z.copy(), np.array(y)
    common = dict(reduction=reduction, backend=backend, **options)

    loss = fx.softmax_cross_entropy(z, y, **common)
    assert_loss(loss, truth, reduction, dtype)

    fused, grad = fx.softmax_cross_entropy_with_grad(z, y, **common)
    assert_array_equal(fused, loss)
    assert grad.shape == z.shape
    assert grad.dtype == z.dtype
    assert reference.worst(grad, truth.grad, truth.grad_scale) <= ULPS

    forward, lse = fx.softmax_cross_entropy_forward(z, y, **common)
    assert_array_equal(forward, loss)
    assert lse.shape == z.shape[:-1]
    assert lse.dtype == z.dtype
    assert reference.worst(lse, truth.lse, truth.lse_scale) <= ULPS

    rows = (z.shape[0],)
    upstream = np.ones(rows, dtype) if reduction == "none" else 1.0
    for hint in (None, lse):
        back = fx.softmax_cross_entropy_backward(upstream, z, y, hint, **common)
        assert back.dtype == z.dtype
        assert reference.worst(back, truth.grad, truth.grad_scale) <= ULPS

    assert_array_equal(z, kept[0])
    assert_array_equal(y, kept[1])


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_curvature(backend, dtype, kind, name):
    """Hessian diagonal and Hessian-vector product of the reduced loss with respect to z."""
    options = dict(options_of(name, dtype))
    z, y, _ = case(kind, name, dtype)
    weight = options.pop("sample_weight", None)
    if options.get("base") is not None:
        options.pop("base")
    truth = reference.softmax(
        z,
        y,
        sample_weight=weight,
        exact=True,
        direction=np.random.default_rng(5).normal(size=z.shape).astype(dtype),
        **options,
    )
    f = fx.SoftmaxCrossEntropy(**options)
    grad, hess = f.grad_hess(z, y, sample_weight=weight, backend=backend)
    assert grad.dtype == hess.dtype == z.dtype
    assert reference.worst(grad, truth.grad, truth.grad_scale) <= ULPS
    assert reference.worst(hess, truth.hess, truth.hess_scale) <= ULPS
    x = np.random.default_rng(5).normal(size=z.shape).astype(dtype)
    hvp = f.hvp(z, y, x, sample_weight=weight, backend=backend)
    assert hvp.dtype == z.dtype
    # |x| is below 4, and c p (x - p.x) has two terms of it.
    assert reference.worst(hvp, truth.hvp, 4 * truth.hess_scale + 4 * truth.grad_scale) <= ULPS


# One class, few classes on both sides of every vector width and of the 32-row blocks of few classes, ragged
# ends, and rows wider than the 2048 that are summed as one block.
WIDTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 26, 31, 32, 33, 63, 64, 65, 100, 127, 129, 257, 1003, 2049)
ROWS = {1: (1, 31, 32, 33, 70), 2: (1, 31, 32, 33, 70), 10: (1, 31, 32, 33, 65)}


@functools.cache
def shaped(n_rows, n_classes, dtype):
    rng = np.random.default_rng(n_classes)
    z = (rng.normal(size=(n_rows, n_classes)) * 3).astype(dtype)
    y = rng.integers(0, n_classes, n_rows)
    return z, y, reference.softmax(z, y), reference.softmax(z, z**2, label_smoothing=0.1, z_loss=1e-3)


@pytest.mark.parametrize(
    ("n_rows", "n_classes"),
    [(max(2, min(37, 3000 // k)), k) for k in WIDTHS] + [(n, k) for k, rows in ROWS.items() for n in rows],
)
def test_shapes(backend, dtype, n_rows, n_classes):
    """Labels, and soft targets with smoothing and z-loss, over all block shapes."""
    z, y, hard, soft = shaped(n_rows, n_classes, dtype)
    unit = np.finfo(dtype).eps
    loss, grad = fx.softmax_cross_entropy_with_grad(z, y, backend=backend)
    assert_allclose(loss, hard.loss, rtol=8 * unit)
    assert_allclose(grad, hard.grad, rtol=8 * unit, atol=np.finfo(dtype).tiny)
    losses, lse = fx.softmax_cross_entropy_forward(z, y, reduction="none", backend=backend)
    assert_allclose(losses, hard.losses, rtol=8 * unit, atol=np.finfo(dtype).tiny)
    assert_allclose(lse, hard.lse, rtol=8 * unit, atol=8 * unit)
    loss, grad = fx.softmax_cross_entropy_with_grad(
        z, z**2, label_smoothing=0.1, z_loss=1e-3, backend=backend
    )
    # The sum of K products: its rounding grows with the number of terms on one summing chain.
    assert_allclose(loss, soft.loss, rtol=(16 + n_classes / 16) * unit)
    assert (np.abs(grad - soft.grad) <= (16 + n_classes / 16) * unit * soft.grad_scale).all()


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -2, -3, -4])
@pytest.mark.parametrize("kind", ["label", "soft"])
def test_class_axis_anywhere(backend, dtype, axis, kind):
    """(2, 3, 4, 5) with each axis as the classes; weights per row, per class and a bias."""
    rng = np.random.default_rng(3)
    z = rng.normal(size=(2, 3, 4, 5)).astype(dtype)
    n_classes = z.shape[axis]
    rows = tuple(np.delete(z.shape, axis))
    y = (
        rng.integers(0, n_classes, rows)
        if kind == "label"
        else np.abs(rng.normal(size=z.shape)).astype(dtype)
    )
    options = dict(
        sample_weight=weights(rows, dtype),
        class_weight=weights(n_classes, dtype, 9),
        logit_bias=weights(n_classes, dtype, 10),
        label_smoothing=0.1,
        axis=axis,
    )
    truth = reference.softmax(z, y, **options)
    rtol = 32 * np.finfo(dtype).eps
    loss, grad = fx.softmax_cross_entropy_with_grad(z, y, backend=backend, **options)
    assert_allclose(loss, truth.loss, rtol=rtol)
    assert_allclose(grad, truth.grad, rtol=rtol, atol=rtol * truth.grad_scale.max())
    losses, lse = fx.softmax_cross_entropy_forward(z, y, reduction="none", backend=backend, **options)
    assert losses.shape == lse.shape == rows
    assert_allclose(losses, truth.losses, rtol=rtol)
    assert_allclose(lse, truth.lse, rtol=rtol, atol=rtol)
    upstream = weights(rows, dtype, 11)
    back = fx.softmax_cross_entropy_backward(
        upstream, z, y, lse, reduction="none", backend=backend, **options
    )
    summed = reference.softmax(z, y, reduction="sum", **options)
    expected = summed.grad * np.expand_dims(upstream, axis)
    assert_allclose(back, expected, rtol=rtol, atol=rtol * summed.grad_scale.max())


def test_sample_weight_broadcasts_to_the_rows(backend):
    z = np.random.default_rng(0).normal(size=(3, 4, 5))
    y = np.random.default_rng(1).integers(0, 5, (3, 4))
    for v in (2.0, weights(4, "float64"), weights((3, 1), "float64"), weights((1, 4), "float64").tolist()):
        loss, grad = fx.softmax_cross_entropy_with_grad(z, y, sample_weight=v, backend=backend)
        truth = reference.softmax(z, y, sample_weight=np.asarray(v))
        assert_allclose(loss, truth.loss, rtol=1e-14)
        assert_allclose(grad, truth.grad, rtol=1e-13)


def test_denominators(backend):
    """mean: sum of v_i w_yi over live rows; mean_rows: live rows; mean_all: all. One of three ignored."""
    z = np.zeros((3, 2))
    y = [0, 1, -100]
    v, w = [1.0, 3.0, 5.0], [0.5, 2.0]
    each = np.log(2.0) * np.array([1 * 0.5, 3 * 2.0, 0])
    for reduction, divisor in (("mean", 0.5 + 6), ("mean_rows", 2), ("mean_all", 3), ("sum", 1)):
        loss = fx.softmax_cross_entropy(
            z, y, sample_weight=v, class_weight=w, reduction=reduction, backend=backend
        )
        assert_allclose(loss, each.sum() / divisor, rtol=1e-15)


def test_mean_divides_by_the_unsmoothed_mass(backend):
    """D = sum v_i sum_k w_k t_ik with t as given: smoothing moves weight inside a row and not D."""
    z = np.array([[0.5, -1, 2]])
    w = [1.0, 2.0, 4.0]
    loss = fx.softmax_cross_entropy(z, [2], class_weight=w, label_smoothing=0.3, backend=backend)
    total = fx.softmax_cross_entropy(
        z, [2], class_weight=w, label_smoothing=0.3, reduction="sum", backend=backend
    )
    assert_allclose(loss, total / 4, rtol=1e-15)


def test_one_dimensional_logits_take_a_scalar_label(backend):
    z = [0.5, -1.0, 2.0]
    truth = reference.softmax(z, 1)
    for label in (1, np.int8(1), np.array(1, np.uint64)):
        loss, grad = fx.softmax_cross_entropy_with_grad(z, label, backend=backend)
        assert type(loss) is float
        assert_allclose(loss, truth.loss, rtol=1e-15)
        assert_allclose(grad, truth.grad, rtol=1e-14)
    losses, lse = fx.softmax_cross_entropy_forward(z, 1, reduction="none", backend=backend)
    assert np.shape(losses) == np.shape(lse) == ()
    assert_allclose(losses, truth.loss, rtol=1e-15)
    soft = fx.softmax_cross_entropy(z, [0.25, 0.25, 0.5], backend=backend)
    assert_allclose(soft, reference.softmax(z, [0.25, 0.25, 0.5]).loss, rtol=1e-15)
    back = fx.softmax_cross_entropy_backward(2.0, z, 1, backend=backend)
    assert_allclose(back, 2 * truth.grad, rtol=1e-14)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_backward_scales_by_the_incoming_gradient(backend, dtype, reduction):
    z, y = problem("label", dtype)
    options = dict(reduction=reduction, class_weight=weights(6, dtype, 9), label_smoothing=0.1)
    _, grad = fx.softmax_cross_entropy_with_grad(z, y, backend=backend, **options)
    if reduction == "none":
        upstream = np.array([1, -2, 0, 0.5, 3], dtype)
        expected = grad * upstream[:, None]
    else:
        upstream = -2.5
        expected = grad * np.asarray(upstream, dtype)
    back = fx.softmax_cross_entropy_backward(upstream, z, y, backend=backend, **options)
    eps = np.finfo(dtype).eps
    assert_allclose(back, expected, rtol=4 * eps, atol=4 * eps * np.abs(expected).max())


def test_backward_does_not_trust_the_hint(backend, dtype):
    """lse is a hint: at offset 1e4 exp(u - lse) is off by 8000 ulp, backward as exact as the fused door."""
    rng = np.random.default_rng(4)
    z = (rng.normal(size=(6, 5)) + 1e4).astype(dtype)
    y = rng.integers(0, 5, 6)
    _, lse = fx.softmax_cross_entropy_forward(z, y, backend=backend)
    truth = reference.softmax(z, y, reduction="sum", exact=True)
    for hint in (None, lse):
        back = fx.softmax_cross_entropy_backward(1.0, z, y, hint, reduction="sum", backend=backend)
        assert reference.worst(back, truth.grad) <= (4 if dtype == "float32" else 6)


def test_out_is_filled_and_returned(backend, dtype):
    z, y = problem("label", dtype)
    _, expected = fx.softmax_cross_entropy_with_grad(z, y, backend=backend)
    out = np.full_like(z, 7)
    _, grad = fx.softmax_cross_entropy_with_grad(z, y, out=out, backend=backend)
    assert grad is out
    assert_array_equal(out, expected)
    out = np.full_like(z, 7)
    assert fx.softmax_cross_entropy_backward(1.0, z, y, out=out, backend=backend) is out
    assert_array_equal(out, expected)


def test_chunks_sum_to_the_whole(backend, dtype):
    z, y = problem("label", dtype, n_rows=40, n_classes=11)
    total = fx.softmax_cross_entropy(z, y, reduction="sum", backend=backend)
    parts = [
        fx.softmax_cross_entropy(z[i : i + 7], y[i : i + 7], reduction="sum", backend=backend)
        for i in range(0, 40, 7)
    ]
    assert_allclose(sum(parts), total, rtol=1e-14)


def test_sums_over_rows_are_float64(backend):
    """100,001 float32 rows of loss log 2: a float32 accumulator is off in the third digit of the mean."""
    n = 100_001
    loss = fx.softmax_cross_entropy(np.zeros((n, 2), np.float32), np.zeros(n, np.int8), backend=backend)
    assert_allclose(loss, np.log(2), rtol=1.5e-7 / 2)


def test_same_answer_twice(backend, dtype):
    z, y = problem("label", dtype, n_rows=50, n_classes=17)
    first = fx.softmax_cross_entropy_with_grad(z, y, backend=backend)
    again = fx.softmax_cross_entropy_with_grad(z, y, backend=backend)
    assert first[0] == again[0]
    assert_array_equal(first[1], again[1])


def test_unchecked_equals_checked(backend, dtype):
    """check=False skips checks, not work: same bits on good data."""
    for kind in ("label", "soft"):
        z, y = problem(kind, dtype)
        checked = fx.softmax_cross_entropy_with_grad(z, y, backend=backend)
        unchecked = fx.softmax_cross_entropy_with_grad(z, y, check=False, backend=backend)
        assert checked[0] == unchecked[0]
        assert_array_equal(checked[1], unchecked[1])


@pytest.mark.parametrize(
    "options", [{}, {"z_loss": 0.1}, {"label_smoothing": 0.1}, {"temperature": 3.0}], ids=str
)
def test_a_loss_has_the_same_bits_with_its_gradient(backend, dtype, options):
    """At every width up to 192 classes; beyond them the options are added in another order."""
    rng = np.random.default_rng(20)
    for k in (*range(1, 70), 100, 128, 192):
        z, y = (3 * rng.normal(size=(19, k))).astype(dtype), rng.integers(0, k, 19)
        losses, _ = fx.softmax_cross_entropy_with_grad(z, y, reduction="none", backend=backend, **options)
        alone = fx.softmax_cross_entropy(z, y, reduction="none", backend=backend, **options)
        assert_array_equal(alone, losses, err_msg=f"{k} classes")
    if not options:
        z, y = (3 * rng.normal(size=(9, 1003))).astype(dtype), rng.integers(0, 1003, 9)
        losses, _ = fx.softmax_cross_entropy_with_grad(z, y, reduction="none", backend=backend)
        assert_array_equal(fx.softmax_cross_entropy(z, y, reduction="none", backend=backend), losses)


@pytest.mark.parametrize("n_classes", [2, 3, 4, 5, 7, 10, 17, 40, 100])
def test_sums_have_the_bits_of_their_rows(backend, dtype, n_classes):
    """Whole blocks without weights have ways of their own, alone and with the gradient, in place too."""
    rng = np.random.default_rng(n_classes)
    z, y = (3 * rng.normal(size=(512, n_classes))).astype(dtype), rng.integers(0, n_classes, 512)
    one = np.ones(512, dtype)
    losses, grad = fx.softmax_cross_entropy_with_grad(z, y, reduction="none", backend=backend)
    total, whole = fx.softmax_cross_entropy_with_grad(z, y, reduction="sum", backend=backend)
    weighted = fx.softmax_cross_entropy_with_grad(z, y, sample_weight=one, reduction="sum", backend=backend)
    assert total == weighted[0] == fx.softmax_cross_entropy(z, y, reduction="sum", backend=backend)
    assert total == pytest.approx(losses.sum(dtype=np.float64), rel=1e-14)
    inside = z.copy()
    fx.softmax_cross_entropy_with_grad(inside, y, reduction="sum", out=inside, backend=backend)
    for found in (whole, weighted[1], inside):
        assert_array_equal(found, grad)


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("n_classes", [2, 3, 4, 10, 26, 70, 300])
@pytest.mark.parametrize("weight", [1e-20, 1e20, 1e36])
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.1}, {"z_loss": 1e-3}], ids=["plain", "smooth", "z"]
)
def test_gradients_of_means_with_weights_of_any_size(backend, n_classes, weight, options, layout):
    """The mean divides by their sum: as without them, but for rounding."""
    z, y = problem("label", "float32", n_rows=64, n_classes=n_classes)
    z = np.asfortranarray(z) if layout == "columns" else z
    _, grad = fx.softmax_cross_entropy_with_grad(z, y, **options, backend=backend)
    numbers = np.finfo(np.float32)
    atol = 4 * numbers.smallest_subnormal
    if options:  # two differences of shares of 1/64 at most, each exact to 4 ulp of a share
        atol += 8 * numbers.eps / 64
    if backend == "numpy":  # where a share times a weight of 1e-20, or a scale of 1e-38, is subnormal
        atol += numbers.smallest_subnormal * max(weight, 1 / weight) / 64
    for name, n in (("sample_weight", 64), ("class_weight", n_classes)):
        if name == "class_weight" and "z_loss" in options:
            continue  # class weights do not weigh the z-loss
        v = {name: np.full(n, weight, np.float32)}
        _, found = fx.softmax_cross_entropy_with_grad(z, y, **options, **v, backend=backend)
        np.testing.assert_allclose(found, grad, rtol=1e-6, atol=atol, err_msg=name)


@pytest.mark.parametrize("n_classes", [2, 3, 5, 70, 700])
def test_unchecked_wrong_labels_leave_lse_as_it_is(backend, dtype, n_classes):
    z, y = problem("label", dtype, n_rows=3, n_classes=n_classes)
    z[1, 1] = np.inf
    _, expected = fx.softmax_cross_entropy_forward(z, y, reduction="none", backend=backend)
    loss, lse = fx.softmax_cross_entropy_forward(z, y - 9999, reduction="none", check=False, backend=backend)
    assert np.isnan(loss).all()
    assert expected[1] == np.inf
    assert_array_equal(lse, expected)


@pytest.mark.parametrize("kind", ["label", "soft"])
@pytest.mark.parametrize("n_classes", [2, 5, 70, 300])
def test_unchecked_nan_stays_in_its_row(backend, dtype, kind, n_classes):
    """Of a mean, the NaN's own row counts as one of weight 1."""
    z, y = problem(kind, dtype, n_rows=6, n_classes=n_classes)
    v = np.arange(1, 7, dtype=dtype)
    v[2] = 1
    _, expected = fx.softmax_cross_entropy_with_grad(z, y, sample_weight=v, backend=backend)
    v[2] = np.nan
    _, grad = fx.softmax_cross_entropy_with_grad(z, y, sample_weight=v, check=False, backend=backend)
    assert np.isnan(grad[2]).all()
    assert_array_equal(np.delete(grad, 2, 0), np.delete(expected, 2, 0))


def test_unchecked_nan_target_of_one_class(backend, dtype):
    y = np.full((1, 1), np.nan, dtype)
    for z in (0, np.inf):
        given = np.full((1, 1), z, dtype), y
        loss, grad = fx.softmax_cross_entropy_with_grad(*given, reduction="sum", check=False, backend=backend)
        assert np.isnan([loss, grad[0, 0]]).all()


@pytest.mark.parametrize("n_classes", [5, 70, 700])
def test_gradient_of_an_infinite_logit_is_the_mass_of_the_others(backend, dtype, n_classes):
    z, y = problem("label", dtype, n_rows=3, n_classes=n_classes)
    z[1, 2], y[1] = np.inf, 4
    _, grad = fx.softmax_cross_entropy_with_grad(z, y, label_smoothing=0.3, reduction="sum", backend=backend)
    share = 0.3 / n_classes
    expected = np.full(n_classes, -share)
    expected[2], expected[4] = 1 - share, -(0.7 + share)
    np.testing.assert_allclose(grad[1], expected, rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("layout", ["rows", "columns", "one row"])
@pytest.mark.parametrize("n_classes", [5, 70, 300])
def test_temperature_and_bias_round_alike(backend, dtype, n_classes, layout):
    """z / T is rounded before b is added, in every kernel: here one rounding less would be another loss."""
    rng, eps = np.random.default_rng(14), np.finfo(dtype).eps
    temperature, y = 1e-3, rng.integers(0, n_classes, 300)
    z = (temperature * 1.6 / eps * (1 + eps * rng.integers(0, 4, (300, n_classes)))).astype(dtype)
    bias = rng.normal(size=n_classes).astype(dtype)
    if layout == "columns":
        z = np.asfortranarray(z)
    elif layout == "one row":
        z = np.broadcast_to(z[0], z.shape)
    u = (z * z.dtype.type(1 / temperature) + bias).astype(np.longdouble)  # NumPy fuses nothing
    options = {"temperature": temperature, "logit_bias": bias}
    losses, grad = fx.softmax_cross_entropy_with_grad(z, y, reduction="none", backend=backend, **options)
    e = np.exp(u - u.max(axis=1, keepdims=True))
    p, at = e / e.sum(axis=1, keepdims=True), np.arange(300)
    assert_allclose(losses, -np.log(p[at, y]), rtol=8 * eps)
    slope = p.copy()
    slope[at, y] -= 1
    assert_allclose(temperature * grad, slope, rtol=8 * eps, atol=4 * eps)
    x = rng.normal(size=z.shape)
    product = fx.SoftmaxCrossEntropy(**options).hvp(z, y, x, reduction="none", backend=backend)
    expected = p * (x - (p * x).sum(axis=1, keepdims=True))
    assert_allclose(temperature**2 * product, expected, rtol=8 * eps, atol=8 * eps)


# ------------------------------------------------------------------------------------------------------- two classes


@pytest.mark.parametrize("kind", ["distances", "sizes", "offsets"])
def test_two_classes_at_every_distance(backend, dtype, kind):
    """Differences of all sizes, exact or not: 4 ulp, to subnormal probabilities; the two gradients cancel."""
    rng = np.random.default_rng(21)
    n, most = 400, -np.log(float(np.finfo(dtype).smallest_subnormal))
    if kind == "distances":
        low = rng.uniform(-1, 1, n) * 2.0 ** rng.uniform(-30, 3, n)
        z = np.stack([low, low + 2.0 ** rng.uniform(-30, np.log2(most), n)], 1)
    elif kind == "sizes":
        z = rng.uniform(-1, 1, (n, 2)) * 2.0 ** rng.uniform(-20, np.log2(most / 2), (n, 1))
    else:
        z = rng.uniform(-1e5, 1e5, (n, 1)) + rng.uniform(0, most, (n, 2))
    z, y = rng.permuted(z.astype(dtype), axis=1), rng.integers(0, 2, n)
    truth = reference.softmax(z, y, reduction="sum", exact=True)
    losses, grad = fx.softmax_cross_entropy_with_grad(z, y, reduction="none", backend=backend)
    assert reference.worst(losses, truth.losses) <= 4
    assert reference.worst(grad, truth.grad) <= 4
    assert_array_equal(fx.softmax_cross_entropy(z, y, reduction="none", backend=backend), losses)
    if backend == "cpu":
        assert_array_equal(grad[:, 0], -grad[:, 1])


@pytest.mark.parametrize("n", [1, 15, 16, 17, 255, 256, 257, 700])
def test_two_classes_of_every_kind_in_one_call(backend, dtype, n):
    """Limits, NaN, ignored and weightless rows leave the rows beside them as they are, wherever they stand."""
    rng = np.random.default_rng(22)
    z, y = rng.normal(size=(n, 2)).astype(dtype), rng.integers(0, 2, n)
    plain, plain_grad = fx.softmax_cross_entropy_with_grad(z, y, reduction="none", backend=backend)
    odd, inf, most = z.copy(), np.inf, np.finfo(dtype).max
    rows = [
        (0, -inf),
        (-inf, 0),
        (0, inf),
        (inf, inf),
        (-inf, -inf),
        (np.nan, 0),
        (0, np.nan),
        (most, -most),
        (-most, most),
    ]
    at = rng.permutation(n)[: len(rows)]
    odd[at], weight, ignored = np.array(rows, dtype)[: len(at)], np.ones(n, dtype), y.copy()
    weight[at[:1]], ignored[at[1:2]] = 0, -100
    losses, grad = fx.softmax_cross_entropy_with_grad(
        odd, ignored, sample_weight=weight, reduction="none", backend=backend
    )
    keep = np.setdiff1d(np.arange(n), at)
    assert_array_equal(losses[keep], plain[keep])
    assert_array_equal(grad[keep], plain_grad[keep])
    for i, row in zip(at, odd[at], strict=True):
        truth = reference.softmax(
            row[None], ignored[i : i + 1], sample_weight=weight[i : i + 1], reduction="sum", exact=True
        )
        assert reference.worst(losses[i : i + 1], truth.losses) <= 4
        assert reference.worst(grad[i], truth.grad[0]) <= 4


# ---------------------------------------------------------------------------------------- small calls without options

SMALL_SHAPES = [
    (1, 1),
    (1, 2),
    (8, 10),
    (3, 7),
    (33, 26),
    (5, 127),
    (2, 1003),
    (1, 65536),
    (4096, 16),
    (4097, 16),
]


@pytest.mark.parametrize("shape", SMALL_SHAPES, ids=str)
@pytest.mark.parametrize("label_dtype", [np.int64, np.int32, np.uint8, np.uint64])
def test_small_calls_have_the_bits_of_all_others(shape, label_dtype, dtype):
    """A call without options takes a short cut (to 65,536 numbers), which a backend by name does not take."""
    rng = np.random.default_rng(11)
    n, k = shape
    z, y = (5 * rng.normal(size=shape)).astype(dtype), rng.integers(0, min(k, 256), n).astype(label_dtype)
    out = np.full_like(z, 7)
    for options in ({}, {"num_threads": 1}, {"reduction": "sum"}, {"reduction": "mean", "num_threads": 2}):
        expected, expected_grad = fx.softmax_cross_entropy_with_grad(z, y, backend="auto", **options)
        for loss, grad in (
            fx.softmax_cross_entropy_with_grad(z, y, **options),
            fx.softmax_cross_entropy_with_grad(z, y, out=out, **options),
        ):
            assert loss == expected
            assert grad.dtype == dtype
            assert_array_equal(grad, expected_grad)
        assert grad is out
        assert fx.softmax_cross_entropy(z, y, **options) == fx.softmax_cross_entropy(
            z, y, backend="auto", **options
        )


@pytest.mark.parametrize(
    "case",
    [
        "ignored",
        "soft",
        "strided",
        "fortran",
        "list",
        "byte order",
        "in place",
        "overlapping",
        "broadcast",
        "NaN",
        "inf",
    ],
)
def test_small_calls_know_when_they_are_not_plain(case, dtype):
    rng = np.random.default_rng(12)
    z, y = rng.normal(size=(6, 5)).astype(dtype) - 1, rng.integers(0, 5, 6)
    options = {}
    if case == "ignored":
        y[2] = -100
    elif case == "soft":
        y = rng.dirichlet(np.ones(5), 6).astype(dtype)
    elif case == "strided":
        z, y = np.repeat(z, 2, 1)[:, ::2], np.repeat(y, 3)[::3]
    elif case == "fortran":
        z = np.asfortranarray(z)
    elif case == "list":
        z, y = z.tolist(), y.tolist()
    elif case == "byte order":
        z, y = z.astype(z.dtype.newbyteorder()), y.astype(y.dtype.newbyteorder())
    elif case == "broadcast":
        z = np.broadcast_to(z[:1], z.shape)
    elif case in ("NaN", "inf"):
        z[3, 1] = np.nan if case == "NaN" else np.inf
    elif case == "in place":
        options["out"] = z
    else:
        memory = np.empty(35, dtype)
        memory[:30] = z.ravel()
        z, options["out"] = memory[:30].reshape(6, 5), memory[5:].reshape(6, 5)
    # Named, the backend is reached the long way. Rows that share their memory are added in another order than copies.
    copied, copied_grad = fx.softmax_cross_entropy_with_grad(np.array(z), np.array(y), backend="auto")
    expected = fx.softmax_cross_entropy(z, y, backend="auto")
    expected_beside, expected_grad = fx.softmax_cross_entropy_with_grad(z, y, backend="auto")
    assert_array_equal(fx.softmax_cross_entropy(z, y), expected)
    loss, grad = fx.softmax_cross_entropy_with_grad(z, y, **options)
    assert_array_equal(loss, expected_beside)
    assert_array_equal(grad, expected_grad)
    assert_array_equal(grad, copied_grad)
    if case == "broadcast":
        assert_allclose([expected, loss], copied, rtol=2 * np.finfo(dtype).eps)
    else:
        assert_array_equal([expected, loss], [copied, copied])


def test_small_calls_refuse_as_all_others_do(dtype):
    z = np.full((3, 4), -1.0, dtype)
    with pytest.raises(ValueError, match=r"targets\[1\] = 4 is not a class"):
        fx.softmax_cross_entropy_with_grad(z, np.array([0, 4, 1]))
    with pytest.raises(TypeError, match="targets: expected integer or bool labels"):
        fx.softmax_cross_entropy_with_grad(z, np.array([0.5, 1, 1]))
    with pytest.raises(ValueError, match="targets: expected labels of shape"):
        fx.softmax_cross_entropy(z, np.array([0, 1]))
    for options, error, words in (
        ({"num_threads": 0}, ValueError, "num_threads: expected at least 1, got 0"),
        ({"num_threads": True}, TypeError, "num_threads: expected a positive integer or None, got True"),
        ({"reduction": "max"}, ValueError, "reduction: expected"),
        ({"reduction": np.array(["sum", "mean"])}, (TypeError, ValueError), "reduction: expected"),
    ):
        with pytest.raises(error, match=words):
            fx.softmax_cross_entropy(z, np.array([0, 1, 2]), **options)
    for out, error in (
        (np.empty((3, 5), dtype), ValueError),
        (np.empty((3, 4), np.float16), TypeError),
        ([], TypeError),
    ):
        with pytest.raises(error, match="out: expected"):
            fx.softmax_cross_entropy_with_grad(z, np.array([0, 1, 2]), out=out)
    locked = np.full_like(z, 7)
    locked.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        fx.softmax_cross_entropy_with_grad(z, np.array([0, 1, 2]), out=locked)
    assert (locked == 7).all()
