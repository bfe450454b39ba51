"""Dice and Tversky losses against mpmath, their identities, regions, weights and derivatives."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from reference import mp

import fastxent as fx
from fastxent import _backend


@pytest.fixture(scope="module", autouse=True)
def kernels(backend):
    """Every test of this module runs on each backend."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_backend, "DEFAULT", _backend.choose(backend))
        yield


LOSSES = {
    "dice": fx.DiceLoss(),
    "dice, unsmoothed": fx.DiceLoss(smooth=0.0),
    "tversky": fx.TverskyLoss(alpha=0.3, beta=0.7, smooth=0.5),
    "jaccard": fx.TverskyLoss(alpha=1.0, beta=1.0),
}


def exact_loss(p, t, v, alpha, beta, s):
    """The textbook loss 1 - (TP + s) / (TP + alpha FP + beta FN + s) of flat lists, in 60 digits."""
    tp = mp.fsum(w * x * y for w, x, y in zip(v, p, t, strict=True))
    fp = mp.fsum(w * x * (1 - y) for w, x, y in zip(v, p, t, strict=True))
    fn = mp.fsum(w * (1 - x) * y for w, x, y in zip(v, p, t, strict=True))
    return 1 - (tp + s) / (tp + alpha * fp + beta * fn + s)


def numbers(a):
    return [mp.mpf(float(x)) for x in np.ravel(a)]


def sigmoids(z):
    return [1 / (1 + mp.exp(-x)) for x in numbers(z)]


def options_of(loss):
    if isinstance(loss, fx.DiceLoss):
        return mp.mpf(1) / 2, mp.mpf(1) / 2, mp.mpf(loss.smooth) / 2
    return mp.mpf(loss.alpha), mp.mpf(loss.beta), mp.mpf(loss.smooth)


def problem(shape=(3, 4), seed=0, soft=False):
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 2, shape)
    t = rng.random(shape)
    return z, t if soft else (t < 0.4).astype(float), rng.uniform(0.2, 2, shape)


def numerical_gradient(f, z, step=1e-5):
    grad = np.empty(z.shape)
    for at in np.ndindex(z.shape):
        up, down = z.copy(), z.copy()
        up[at] += step
        down[at] -= step
        grad[at] = (f(up) - f(down)) / (2 * step)
    return grad


# Values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_value(name, soft, weighted, dtype):
    loss = LOSSES[name]
    z, t, v = problem(soft=soft)
    z, t = z.astype(dtype), t.astype(dtype)
    v = v.astype(dtype) if weighted else None
    truth = exact_loss(sigmoids(z), numbers(t), numbers(v) if weighted else [1] * z.size, *options_of(loss))
    actual = loss.loss(z, t, v)
    assert isinstance(actual, float)
    assert actual == pytest.approx(float(truth), rel=float(8 * np.finfo(dtype).eps))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_probabilities_smaller_than_any_float32(backend, dtype):
    """Without smoothing a region with nothing to be found is lost as a whole, however little was found."""
    z = np.array([-150.0, -180.0], dtype)
    for loss in (fx.DiceLoss(smooth=0.0), fx.TverskyLoss(0.3, 0.7, smooth=0.0)):
        assert loss.loss(z, np.zeros(2, int), backend=backend) == 1
    many = fx.DiceLoss(activation="softmax", axis=0, smooth=0.0)
    logits = np.array([[0.0, -150.0, -20.0], [0.0, -180.0, -30.0]])
    labels = np.array([0, 0])
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    t = np.eye(3)[labels]
    expected = np.mean(
        1 - 2 * (p * t).sum(axis=0) / (p + t).sum(axis=0)
    )  # classes apart, two of them without targets
    assert many.loss(logits.astype(dtype), labels, backend=backend) == pytest.approx(expected, rel=1e-14)


@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(LOSSES)))
def test_dice_formula_of_the_paper(seed, name):
    """L = 1 - N/D with N = 2 sum v p t + s, D = sum v (p + t) + s."""
    z, t, v = problem(seed=seed, soft=True)
    p = 1 / (1 + np.exp(-z))
    s = LOSSES[name].smooth
    expected = 1 - (2 * (v * p * t).sum() + s) / ((v * (p + t)).sum() + s)
    assert fx.DiceLoss(smooth=s).loss(z, t, v) == pytest.approx(expected, rel=1e-12)
    assert fx.TverskyLoss(0.5, 0.5, smooth=s / 2).loss(z, t, v) == fx.DiceLoss(smooth=s).loss(z, t, v)


@pytest.mark.parametrize("margin", [20.0, 40.0, 300.0])
def test_nearly_perfect_overlap_keeps_its_digits(margin):
    z, t = np.array([margin, -margin, margin]), np.array([1, 0, 1])
    for loss in LOSSES.values():
        with mp.workdps(400):
            truth = exact_loss(sigmoids(z), numbers(t), [1] * 3, *options_of(loss))
        actual, grad = loss.loss_grad(z, t)
        assert actual == pytest.approx(float(truth), rel=1e-14)
        assert (np.sign(grad) == [-1, 1, -1]).all()


def test_nothing_found_and_nothing_to_find():
    z = np.full(4, -np.inf)
    for loss in LOSSES.values():
        value, grad = loss.loss_grad(z, np.zeros(4))
        assert value == 0
        assert (grad == 0).all()


@pytest.mark.parametrize("axis", [None, 0, (0,), (1, 2), 2])
@pytest.mark.parametrize("loss", [fx.DiceLoss, fx.TverskyLoss])
def test_softmax_of_no_classes(loss, axis, backend):
    """A sum over one region needs room where its classes need none: this wrote beyond it."""
    z = np.empty((0, 4, 2))
    f = loss(activation="softmax", axis=axis, class_axis=0)
    with pytest.raises(ValueError, match=r"logits: expected at least one class, got shape \(0, 4, 2\)"):
        f.loss_grad(z, z, backend=backend)


def test_infinite_logits():
    z, t = np.array([np.inf, -np.inf, np.inf, 0.0]), np.array([1, 0, 0, 1])
    value, grad = fx.DiceLoss(smooth=0.0).loss_grad(z, t)
    assert value == pytest.approx(1 - 2 * 1.5 / (2.5 + 2), rel=1e-15)
    assert_array_equal(grad[:3], 0)
    assert np.isnan(fx.DiceLoss().loss(np.array([np.nan, 0.0]), [0, 1]))


# Derivatives ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("activation", ["sigmoid", "softmax", "none"])
@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradient_is_the_derivative(name, activation, axis, reduction):
    old = LOSSES[name]
    options = {"activation": activation, "axis": axis, "smooth": old.smooth}
    loss = (
        fx.DiceLoss(**options)
        if isinstance(old, fx.DiceLoss)
        else fx.TverskyLoss(old.alpha, old.beta, **options)
    )
    z, t, v = problem(soft=True)
    if activation == "none":
        z = 1 / (1 + np.exp(-z))
    weight = v[:, 0] if activation == "softmax" else v
    value, grad = loss.loss_grad(z, t, weight, reduction)
    assert value == loss.loss(z, t, weight, reduction)
    numerical = numerical_gradient(lambda x: loss.loss(x, t, weight, reduction), z)
    assert_allclose(grad, numerical, rtol=0, atol=1e-9)
    if activation == "softmax":
        assert_allclose(grad.sum(axis=1), 0, atol=1e-15)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_soft_labels(name):
    """min(p, t) for the intersection: the same for 0 and 1, and best where p = t."""
    old = LOSSES[name]
    options = {"smooth": old.smooth, "soft_labels": True}
    loss = (
        fx.DiceLoss(**options)
        if isinstance(old, fx.DiceLoss)
        else fx.TverskyLoss(old.alpha, old.beta, **options)
    )
    z, t, _ = problem()
    assert loss.loss(z, t) == pytest.approx(old.loss(z, t), rel=1e-14)
    assert_allclose(loss.loss_grad(z, t)[1], old.loss_grad(z, t)[1], rtol=1e-12)
    z, t, _ = problem(soft=True)
    grad = loss.loss_grad(z, t)[1]
    assert_allclose(grad, numerical_gradient(lambda x: loss.loss(x, t), z), rtol=0, atol=1e-9)
    assert loss.loss(np.log(t / (1 - t)), t) == pytest.approx(0, abs=1e-15)


def test_gradient_in_a_buffer():
    z, t, _ = problem()
    expected = fx.DiceLoss().loss_grad(z, t)
    out = np.empty_like(z)
    value, grad = fx.DiceLoss().loss_grad(z, t, out=out)
    assert grad is out
    assert_array_equal(grad, expected[1])
    same = z.copy()
    assert fx.DiceLoss().loss_grad(same, t, out=same)[0] == expected[0]
    assert_array_equal(same, expected[1])
    assert value == expected[0]
    with pytest.raises(ValueError, match="out: expected shape"):
        fx.DiceLoss().loss_grad(z, t, out=np.empty(3))


# Regions, labels, weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axis", "shape"), [((2, 3), (2, 3)), ((0, 2, 3), (3,)), (1, (2, 4, 5)), (None, ()), ([2, 3], (2, 3))]
)
def test_regions(axis, shape):
    z, t, v = problem((2, 3, 4, 5))
    loss = fx.DiceLoss(axis=axis)
    values = loss.loss(z, t, v, reduction="none")
    assert np.shape(values) == shape
    for at in np.ndindex(shape):
        axes = loss.axis if isinstance(loss.axis, tuple) else range(4) if axis is None else (loss.axis,)
        index = [slice(None)] * 4
        for place, number in zip([i for i in range(4) if i not in axes], at, strict=True):
            index[place] = number
        part = tuple(index)
        assert values[at] == pytest.approx(fx.DiceLoss().loss(z[part], t[part], v[part]), rel=1e-14)
    assert loss.loss(z, t, v) == pytest.approx(np.mean(values), rel=1e-14)
    assert loss.loss(z, t, v, "sum") == pytest.approx(np.sum(values), rel=1e-14)
    assert_allclose(loss.loss_grad(z, t, v, "none")[1], loss.loss_grad(z, t, v, "sum")[1], rtol=1e-14)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_labels_are_one_hot(activation):
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(2, 3, 4, 5)), rng.integers(0, 3, (2, 4, 5))
    one_hot = np.moveaxis(np.eye(3)[y], -1, 1)
    loss = fx.DiceLoss(activation, axis=(0, 2, 3), class_axis=1)
    assert loss.loss(z, y) == pytest.approx(loss.loss(z, one_hot), rel=1e-14)
    assert_allclose(loss.loss_grad(z, y.astype("uint8"))[1], loss.loss_grad(z, one_hot)[1], rtol=1e-12)
    with pytest.raises(ValueError, match="targets: expected labels from 0 to 2"):
        loss.loss(z, y + 1)


def test_softmax_of_two_classes_is_sigmoid():
    z, t, _ = problem((7,))
    two = np.stack([np.zeros(7), z], axis=1)
    columns = fx.DiceLoss("softmax", axis=0).loss(two, t.astype(int), reduction="none")
    assert columns[1] == pytest.approx(fx.DiceLoss().loss(z, t), rel=1e-14)


def test_softmax_weights_are_those_of_rows():
    rng = np.random.default_rng(0)
    z, y, weight = rng.normal(size=(5, 3)), rng.integers(0, 3, 5), np.array([1, 0, 2, 0, 3])
    loss = fx.TverskyLoss(0.3, 0.7, "softmax", axis=0)
    assert loss.loss(z, y, weight) == pytest.approx(
        loss.loss(np.repeat(z, weight, axis=0), np.repeat(y, weight)), rel=1e-14
    )
    assert (loss.loss_grad(z, y, weight)[1][weight == 0] == 0).all()


def test_weight_zero_hides_anything():
    z, t, v = problem()
    v[1, 2] = 0
    expected = fx.DiceLoss().loss(z, t, v)
    z[1, 2] = 300.0
    assert fx.DiceLoss().loss(z, t, v) == expected
    assert fx.DiceLoss().loss_grad(z, t, v)[1][1, 2] == 0


@pytest.mark.parametrize("activation", ["sigmoid", "softmax", "none"])
@pytest.mark.parametrize("soft_labels", [False, True])
@pytest.mark.parametrize("axis", [None, 1, 2, (0, 2, 3), (2, 3), (0, 3), (1, 2), 3])
def test_backends_agree(activation, soft_labels, axis, dtype):
    """Any regions of any layout, with weights of 0, and pieces that end in the middle of a vector."""
    rng = np.random.default_rng(3)
    z = rng.normal(0, 2, (3, 5, 7, 11)).astype(dtype)
    if activation == "none":
        z = 1 / (1 + np.exp(-z))
    t = rng.random(z.shape).astype(dtype)
    weight = rng.integers(0, 3, (3, 7, 11) if activation == "softmax" else z.shape).astype(dtype)
    loss = fx.TverskyLoss(0.3, 0.7, activation, axis, class_axis=1, soft_labels=soft_labels)
    for view in (z, np.asfortranarray(z), z[:, :, ::-1], np.moveaxis(np.moveaxis(z, 1, 3).copy(), 3, 1)):
        cpu, spec = (loss.loss_grad(view, t, weight, "none", backend=b) for b in (None, "numpy"))
        assert_allclose(cpu[0], spec[0], rtol=32 * np.finfo(dtype).eps)
        assert_allclose(cpu[1], spec[1], rtol=0, atol=32 * np.finfo(dtype).eps * np.abs(spec[1]).max())
        assert cpu[1].dtype == z.dtype


def test_many_pieces_and_threads():
    """A region of many pieces, and regions smaller than one, are the same bits for any number of threads."""
    rng = np.random.default_rng(4)
    z, t = rng.normal(size=(3, 700_001)), rng.random((3, 700_001)) < 0.5
    p = 1 / (1 + np.exp(-z))
    for axis in (None, 0, 1):
        loss = fx.DiceLoss(axis=axis, smooth=0.0)
        one = loss.loss_grad(z, t, reduction="none", num_threads=1)
        two = loss.loss_grad(z, t, reduction="none", num_threads=2)
        assert_array_equal(one[0], two[0])
        assert_array_equal(one[1], two[1])
        expected = 1 - 2 * (p * t).sum(axis=axis) / (p + t).sum(axis=axis)
        assert_allclose(one[0], expected, rtol=1e-9)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_a_nan_stays_in_its_region_and_weight_zero_hides_it(activation):
    z, t, _ = problem((4, 3))
    weight = np.ones(4 if activation == "softmax" else (4, 3))
    z[2, 1] = np.nan
    loss = fx.DiceLoss(activation, axis=1)
    values, grad = loss.loss_grad(z, t, weight, "none")
    assert_array_equal(np.isnan(values), [False, False, True, False])
    assert_array_equal(np.isnan(grad).any(axis=1), [False, False, True, False])
    weight[2] = 0
    values, grad = loss.loss_grad(z, t, weight, "none")
    assert_array_equal(np.isnan(values), False)
    assert_array_equal(grad[2], 0)


# Objects and refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_curvature_is_refused(name):
    z, t, _ = problem()
    calls = {
        "grad_hess": lambda f: f.grad_hess(z, t),
        "hvp": lambda f: f.hvp(z, t, z),
        "solve": lambda f: f.solve(z, t, z, 1.0),
    }
    for method, call in calls.items():
        for loss in (LOSSES[name], 0.5 * LOSSES[name], LOSSES[name] + fx.SigmoidCrossEntropy()):
            with pytest.raises(TypeError, match=f"{method}: .*loss and gradient only: .*couples its rows"):
                call(loss)


def test_objects():
    loss = fx.DiceLoss("softmax", axis=[0, 1], class_axis=1)
    assert loss.axis == (0, 1)
    assert repr(loss) == "DiceLoss(activation='softmax', axis=(0, 1), smooth=1.0, class_axis=1)"
    assert pickle.loads(pickle.dumps(loss)) == loss
    assert hash(loss) == hash(fx.DiceLoss("softmax", axis=(0, 1), class_axis=1))
    assert fx.losses.resolve("dice") == fx.DiceLoss()
    assert fx.losses.resolve("tversky") == fx.TverskyLoss()
    z, t, _ = problem()
    both = fx.SigmoidCrossEntropy() + 0.5 * fx.DiceLoss()
    assert both.loss(z, t) == pytest.approx(
        fx.SigmoidCrossEntropy().loss(z, t) + 0.5 * fx.DiceLoss().loss(z, t)
    )


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"activation": "relu"}, ValueError),
        ({"smooth": -1.0}, ValueError),
        ({"smooth": None}, TypeError),
        ({"axis": 1.5}, TypeError),
        ({"class_axis": "x"}, TypeError),
        ({"soft_labels": 1}, TypeError),
    ],
)
def test_bad_options(options, error):
    for kind in (fx.DiceLoss, fx.TverskyLoss):
        with pytest.raises(error, match=next(iter(options))):
            kind(**options)
    for name in ("alpha", "beta"):
        with pytest.raises(ValueError, match=name):
            fx.TverskyLoss(**{name: -0.1})


@pytest.mark.parametrize(
    ("loss", "z", "t", "weight", "message"),
    [
        (
            fx.DiceLoss(),
            [0.5, 0.5],
            [0, 2],
            None,
            r"targets: expected numbers in \[0, 1\], got 2.0 at index 1",
        ),
        (
            fx.DiceLoss("none"),
            [0.5, -0.5],
            [0, 1],
            None,
            r"probabilities: expected numbers in \[0, 1\], got -0.5",
        ),
        (fx.DiceLoss(), [0.5, 0.5], [0, 1, 1], None, "targets: expected the shape of logits"),
        (fx.DiceLoss(axis=2), [0.5, 0.5], [0, 1], None, "axis: expected"),
        (fx.DiceLoss(), [0.5, 0.5], [0, 1], [1, -1], "sample_weight: expected non-negative"),
        (fx.DiceLoss(), [0.5, 0.5], [0, 1], [1, 2, 3], "sample_weight: expected a shape that broadcasts"),
    ],
)
def test_bad_arrays(loss, z, t, weight, message):
    with pytest.raises(ValueError, match=message):
        loss.loss(z, t, weight)
    with pytest.raises(ValueError, match="backend"):
        fx.DiceLoss().loss([0.5], [1], backend="abacus")


@pytest.mark.parametrize("loss", [fx.DiceLoss, fx.TverskyLoss])
def test_a_softmax_of_one_number_has_no_classes(loss, backend):
    with pytest.raises(ValueError, match="logits: expected an axis of classes"):
        loss(activation="softmax").loss(1.0, True, backend=backend)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax", "none"])
@pytest.mark.parametrize("shape", [(5, 9, 1, 0), (5, 0, 3), (5, 0)])
def test_empty_axes(backend, dtype, activation, shape):
    """Regions of no elements, and no regions: as any others, on every backend."""
    z, t = np.zeros(shape, dtype), np.zeros(shape, dtype)
    for axis in (None, (-1, 0), -1):
        each = fx.DiceLoss(activation=activation, class_axis=0, axis=axis)
        loss, grad = each.loss_grad(z, t, reduction="sum", backend=backend)
        assert loss == 0
        assert grad.shape == shape
        assert each.loss(z, t, np.ones(shape[1:]) if activation == "softmax" else None, backend=backend) == 0
