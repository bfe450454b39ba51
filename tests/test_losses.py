"""Losses as objects: the functions' numbers; frozen, hashable, picklable, checked when they are made.

A new loss is one row in LOSSES: how to make it, the oracle that answers for it, and a problem for it.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle

import numpy as np
import pytest
import reference
from numpy.testing import assert_allclose, assert_array_equal

import fastxent as fx


def softmax_problem(dtype, rng):
    z = (rng.normal(size=(7, 4)) * 3).astype(dtype)
    y = rng.integers(0, 4, 7)
    y[2] = -100
    return z, y, rng.uniform(0.5, 2, 7).astype(dtype), rng.normal(size=z.shape).astype(dtype)


def sigmoid_problem(dtype, rng):
    z = (rng.normal(size=(7, 4)) * 3).astype(dtype)
    return (
        z,
        rng.uniform(size=z.shape).astype(dtype),
        rng.uniform(0.5, 2, z.shape).astype(dtype),
        z[::-1].copy(),
    )


W = (0.5, 1.0, 2.0, 1.25)
SOFTMAX_OPTIONS = [
    {},
    dict(label_smoothing=0.125),
    dict(class_weight=W, logit_bias=(0.5, -0.5, 0.0, 1.0)),
    dict(
        z_loss=0.0625,
        temperature=2.0,
        base=2,
        ignore_index=None,
        smoothing="exclude_target",
        label_smoothing=0.25,
    ),
    dict(ignore_index=1, empty="nan"),
]
SIGMOID_OPTIONS = [{}, dict(pos_weight=3.0), dict(pos_weight=W, label_smoothing=0.125)]
# class, options, oracle, problem, plain function's name
LOSSES = [
    *((fx.SoftmaxCrossEntropy, o, reference.softmax, softmax_problem, "softmax") for o in SOFTMAX_OPTIONS),
    *((fx.SigmoidCrossEntropy, o, reference.sigmoid, sigmoid_problem, "sigmoid") for o in SIGMOID_OPTIONS),
]


@pytest.fixture(scope="module", params=LOSSES, ids=lambda row: f"{row[0].__name__}{row[1]}")
def row(request):
    return request.param


def make_problem(row, dtype):
    cls, options, _, problem, _ = row
    z, y, v, x = problem(dtype, np.random.default_rng(0))
    ignore = options.get("ignore_index", -100)
    if ignore != -100:
        y[y == -100] = 3 if ignore is None else ignore
    return cls(**options), z, y, v, x


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_methods_against_the_oracle(backend, dtype, row, weighted, reduction):
    """Derivatives are of the reduced loss; "none" is the loss per row with the gradient of the sum."""
    f, z, y, v, x = make_problem(row, dtype)
    _, options, oracle, _, family = row
    v = v if weighted else None
    truth = oracle(z, y, sample_weight=v, reduction=reduction, **options)
    rtol = 32 * np.finfo(dtype).eps
    common = dict(sample_weight=v, reduction=reduction, backend=backend)

    loss = f.loss(z, y, **common)
    assert_allclose(loss, truth.loss, rtol=rtol)
    assert loss.dtype == dtype if reduction == "none" else type(loss) is float
    again, grad = f.loss_grad(z, y, **common)
    assert_array_equal(again, loss)
    only, hess = f.grad_hess(z, y, **common)  # another kernel than without a Hessian, for some shapes
    for slope in (grad, only):
        assert_allclose(slope, truth.grad, rtol=rtol, atol=rtol * np.abs(truth.scale).max())
        assert slope.dtype == z.dtype
    assert_allclose(hess, truth.hess, rtol=rtol, atol=rtol * np.abs(truth.hess).max())
    assert hess.dtype == z.dtype
    if family == "softmax":
        hvp = oracle(z, y, sample_weight=v, reduction=reduction, direction=x, **options).hvp
    else:
        hvp = truth.hess * x
    got = f.hvp(z, y, x, **common)
    assert got.dtype == z.dtype
    assert_allclose(got, hvp, rtol=rtol, atol=rtol * np.abs(hvp).max())


def test_positional_arguments_and_threads(backend, row):
    """sample_weight and reduction by position, num_threads by name."""
    f, z, y, v, x = make_problem(row, "float64")
    assert f.loss(z, y, v, "sum", backend=backend, num_threads=1) == f.loss(
        z, y, sample_weight=v, reduction="sum", backend=backend, num_threads=2
    )
    first = f.loss_grad(z, y, v, "sum", backend=backend, num_threads=1)
    assert_array_equal(first[1], f.loss_grad(z, y, v, "sum", backend=backend)[1])
    curved = f.grad_hess(z, y, v, "sum", hessian="exact", backend=backend, num_threads=1)
    for part, other in zip(curved, f.grad_hess(z, y, v, "sum", backend=backend), strict=True):
        assert_array_equal(part, other)
    one = f.hvp(z, y, x, v, "sum", backend=backend, num_threads=1)
    assert_array_equal(one, f.hvp(z, y, x, v, "sum", backend=backend))


def test_object_equals_function(backend, dtype, row):
    """Bit for bit: both are doors to one kernel."""
    f, z, y, v, _ = make_problem(row, dtype)
    _, options, _, _, family = row
    call = getattr(fx, f"{family}_cross_entropy_with_grad")
    loss, grad = call(z, y, sample_weight=v, backend=backend, **options)
    assert f.loss(z, y, v, backend=backend) == loss
    assert_array_equal(f.loss_grad(z, y, v, backend=backend)[1], grad)


def test_derivatives_are_those_of_the_loss(backend, row):
    """Central differences of loss give the gradient, of the gradient the Hessian; the HVP is its product."""
    f, z, y, v, x = make_problem(row, "float64")
    h = 1e-5
    _, grad = f.loss_grad(z, y, v, backend=backend)
    _, hess = f.grad_hess(z, y, v, backend=backend)
    hvp = f.hvp(z, y, x, v, backend=backend)
    for at in [(0, 0), (0, 3), (3, 1), (6, 2)]:
        step = np.zeros_like(z)
        step[at] = h
        up, down = f.loss_grad(z + step, y, v, backend=backend), f.loss_grad(z - step, y, v, backend=backend)
        assert_allclose((up[0] - down[0]) / (2 * h), grad[at], rtol=1e-6, atol=1e-9)
        assert_allclose((up[1] - down[1])[at] / (2 * h), hess[at], rtol=1e-6, atol=1e-9)
    ahead = f.loss_grad(z + h * x, y, v, backend=backend)[1]
    behind = f.loss_grad(z - h * x, y, v, backend=backend)[1]
    assert_allclose((ahead - behind) / (2 * h), hvp, rtol=1e-6, atol=1e-8)


def test_inputs_are_not_written(backend, row):
    f, z, y, v, x = make_problem(row, "float64")
    arrays = [z, y, v, x]
    kept = [a.copy() for a in arrays]
    for a in arrays:
        a.flags.writeable = False
    f.loss_grad(z, y, v, backend=backend)
    f.grad_hess(z, y, v, backend=backend)
    f.hvp(z, y, x, v, backend=backend)
    for a, b in zip(arrays, kept, strict=True):
        assert_array_equal(a, b)


def test_frozen_hashable_comparable(row):
    cls, options, *_ = row
    f, g = cls(**options), cls(**options)
    assert f == g
    assert hash(f) == hash(g)
    assert {f: 1}[g] == 1
    name = dataclasses.fields(f)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(f, name, None)
    assert dataclasses.replace(f) == f
    assert f != object()


def test_pickle_copy_repr(row):
    cls, options, *_ = row
    f = cls(**options)
    assert pickle.loads(pickle.dumps(f)) == f
    assert copy.deepcopy(f) == f
    assert eval(repr(f), {cls.__name__: cls}) == f
    assert repr(f).startswith(cls.__name__ + "(")


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (fx.SoftmaxCrossEntropy, "class_weight"),
        (fx.SoftmaxCrossEntropy, "logit_bias"),
        (fx.SigmoidCrossEntropy, "pos_weight"),
    ],
)
def test_array_options_become_tuples(cls, name):
    """Arrays, lists and tuples make equal objects, and later changes to the array do not reach the loss."""
    array = np.array(W)
    f = cls(**{name: array})
    array[0] = 99
    assert getattr(f, name) == W
    assert type(getattr(f, name)) is tuple
    assert f == cls(**{name: list(W)}) == cls(**{name: np.array(W, np.float32)})
    assert hash(f) == hash(cls(**{name: W}))


def test_defaults_are_those_of_the_functions():
    """One vocabulary: every field of the dataclass is an option of the function with the same default."""
    for cls, function in (
        (fx.SoftmaxCrossEntropy, fx.softmax_cross_entropy),
        (fx.SigmoidCrossEntropy, fx.sigmoid_cross_entropy),
    ):
        parameters = inspect.signature(function).parameters
        for field in dataclasses.fields(cls):
            assert parameters[field.name].default == field.default, field.name
    names = [field.name for field in dataclasses.fields(fx.SoftmaxCrossEntropy)]
    call_only = {"logits", "targets", "sample_weight", "reduction", "num_threads", "backend", "check"}
    assert set(inspect.signature(fx.softmax_cross_entropy).parameters) == {*names, *call_only}
    assert [field.name for field in dataclasses.fields(fx.SigmoidCrossEntropy)] == [
        "pos_weight",
        "label_smoothing",
    ]


@pytest.mark.parametrize(
    ("cls", "options", "error"),
    [
        (fx.SoftmaxCrossEntropy, dict(label_smoothing=1.5), ValueError),
        (fx.SoftmaxCrossEntropy, dict(label_smoothing=-0.1), ValueError),
        (fx.SoftmaxCrossEntropy, dict(label_smoothing="much"), TypeError),
        (fx.SoftmaxCrossEntropy, dict(smoothing="other"), ValueError),
        (fx.SoftmaxCrossEntropy, dict(ignore_index=1.5), TypeError),
        (fx.SoftmaxCrossEntropy, dict(z_loss=float("nan")), ValueError),
        (fx.SoftmaxCrossEntropy, dict(temperature=0.0), ValueError),
        (fx.SoftmaxCrossEntropy, dict(temperature=-1.0), ValueError),
        (fx.SoftmaxCrossEntropy, dict(temperature=float("inf")), ValueError),
        (fx.SoftmaxCrossEntropy, dict(base=1), ValueError),
        (fx.SoftmaxCrossEntropy, dict(base=0), ValueError),
        (fx.SoftmaxCrossEntropy, dict(empty="none"), ValueError),
        (fx.SoftmaxCrossEntropy, dict(axis=0.5), TypeError),
        (fx.SoftmaxCrossEntropy, dict(class_weight=[[1, 2]]), ValueError),
        (fx.SoftmaxCrossEntropy, dict(class_weight=[1, -2]), ValueError),
        (fx.SoftmaxCrossEntropy, dict(class_weight=[1, float("nan")]), ValueError),
        (fx.SoftmaxCrossEntropy, dict(logit_bias=["a", "b"]), (TypeError, ValueError)),
        (fx.SigmoidCrossEntropy, dict(pos_weight=-1), ValueError),
        (fx.SigmoidCrossEntropy, dict(pos_weight=[1, -1]), ValueError),
        (fx.SigmoidCrossEntropy, dict(label_smoothing=2), ValueError),
    ],
)
def test_options_are_checked_when_the_object_is_made(cls, options, error):
    (name, value), *_ = options.items()
    with pytest.raises(error, match=name) as caught:
        cls(**options)
    if np.ndim(value) == 0:
        assert str(value) in str(caught.value)


@pytest.mark.parametrize(
    ("family", "cls"), [("softmax", fx.SoftmaxCrossEntropy), ("sigmoid", fx.SigmoidCrossEntropy)]
)
def test_method_errors(backend, family, cls):
    f = cls()
    z = np.zeros((3, 2))
    y = np.zeros(3, int) if family == "softmax" else np.zeros((3, 2))
    with pytest.raises(ValueError, match=r"hessian.*exact.*approximate"):
        f.grad_hess(z, y, hessian="approximate", backend=backend)
    with pytest.raises(ValueError, match=r"x.*\(3, 2\).*\(3,\)"):
        f.hvp(z, y, np.zeros(3), backend=backend)
    with pytest.raises(ValueError, match="backend"):
        f.loss(z, y, backend="abacus")
    with pytest.raises(ValueError, match="num_threads"):
        f.loss(z, y, num_threads=0, backend=backend)
    with pytest.raises(ValueError, match="reduction"):
        f.loss_grad(z, y, reduction="average", backend=backend)
    with pytest.raises(ValueError, match="targets"):
        f.hvp(z, y + 7, z, backend=backend)


def test_class_weight_of_another_length(backend):
    f = fx.SoftmaxCrossEntropy(class_weight=[1, 2, 3])
    with pytest.raises(ValueError, match=r"class_weight.*\(2,\).*\(3,\)"):
        f.loss(np.zeros((3, 2)), [0, 1, 0], backend=backend)


@pytest.mark.parametrize("options", SIGMOID_OPTIONS, ids=repr)
def test_sigmoid_curvature_policies(backend, dtype, options):
    """The exact Hessian is non-negative, so the stand-ins differ from it by their floors alone."""
    z, y, v, _ = sigmoid_problem(dtype, np.random.default_rng(0))
    z[0, 0], v[1, 1] = 200, 0
    f = fx.SigmoidCrossEntropy(**options)
    exact = f.grad_hess(z, y, v, "sum", backend=backend)[1]
    for policy, expected in (
        ("abs", exact),
        ("upper", exact),
        ("lightgbm", exact),
        ("clip", np.maximum(exact, 1e-6 * v)),
        ("xgboost", np.maximum(exact, 1e-16 * v)),
    ):
        grad, hess = f.grad_hess(z, y, v, "sum", hessian=policy, backend=backend)
        assert_allclose(hess, expected, rtol=4 * np.finfo(dtype).eps, err_msg=policy)
        assert_array_equal(grad, f.loss_grad(z, y, v, "sum", backend=backend)[1])
        assert hess.dtype == z.dtype
        assert hess[1, 1] == 0


@pytest.mark.parametrize("options", SIGMOID_OPTIONS, ids=repr)
def test_sigmoid_solve(backend, dtype, options):
    z, y, v, r = sigmoid_problem(dtype, np.random.default_rng(0))
    f = fx.SigmoidCrossEntropy(**options)
    lam = np.linspace(0.25, 2, z.shape[1])
    h = f.grad_hess(z, y, v, backend=backend)[1]
    x = f.solve(z, y, r, lam, v, backend=backend)
    assert x.dtype == z.dtype
    assert_allclose(x, r / (lam + h.astype(float)), rtol=4 * np.finfo(dtype).eps)
    with pytest.raises(ValueError, match="lam: expected positive"):
        f.solve(z, y, r, 0.0, backend=backend)
    with pytest.raises(ValueError, match="r: expected the shape of logits"):
        f.solve(z, y, r[0], 1.0, backend=backend)


# Edges ----------------------------------------------------------------------------------------------------

EDGES = [
    fx.SoftmaxCrossEntropy(label_smoothing=0.1, z_loss=0.1),
    fx.FocalLoss(),
    fx.FocalLoss(gamma=0.5),
    fx.FocalLoss(gamma=2.3, temperature=2.0),
    fx.Poly1Loss(),
    fx.GeneralizedCrossEntropy(),
    fx.SymmetricCrossEntropy(),
    fx.JensenShannonLoss(),
    fx.BootstrappingLoss(),
    fx.BootstrappingLoss(hard=True),
    fx.DistillationLoss(),
    fx.DistillationLoss(reverse=True),
    fx.DistillationLoss(weight=0.0, reverse=True),
    fx.DistillationLoss(weight=1.0, reverse=True),
]
ELEMENTS = [
    fx.SigmoidCrossEntropy(pos_weight=2.0),
    fx.BinaryFocalLoss(),
    fx.BinaryFocalLoss(gamma=0.5),
    fx.AsymmetricLoss(),
    fx.AsymmetricLoss(2.0, 0.0, 0.0),
    fx.GANDiscriminatorLoss(0.9),
    fx.GANGeneratorLoss(),
    fx.GANGeneratorLoss("minimax"),
]


def hostile(rng, shape, dtype):
    """Numbers of which some are infinite, NaN or far from the others."""
    some = np.array([0.0, 1.5, -2.0, np.inf, -np.inf, np.nan, 800.0, -800.0])
    return rng.choice(some, shape, p=[0.5, 0.15, 0.15, 0.06, 0.06, 0.03, 0.03, 0.02]).astype(dtype)


@pytest.mark.parametrize("f", EDGES, ids=repr)
def test_backends_agree_on_hostile_rows(f, dtype):
    """Random infinities, NaN and weights of 0: both backends, and a row alone is what it is among others."""
    rng = np.random.default_rng(5)
    n, k = 120, 4
    z, teacher = hostile(rng, (n, k), dtype), hostile(rng, (n, k), dtype)
    y, v = rng.integers(0, k, n), rng.choice([0.0, 1.0, 2.0], n).astype(dtype)
    y[::7] = -100
    soft = np.eye(k)[rng.integers(0, k, n)]
    soft[::2] = rng.dirichlet(np.ones(k), len(soft[::2]))
    x = rng.normal(size=z.shape)
    close = dict(rtol=1e-9, atol=1e-12) if dtype == "float64" else dict(rtol=2e-5, atol=1e-6)
    for t in ((y, teacher),) if isinstance(f, fx.DistillationLoss) else (y, soft):
        answers = {}
        for name in ("cpu", "numpy"):
            rest = dict(sample_weight=v, reduction="sum", backend=name)
            loss = f.loss(z, t, v, "none", backend=name)
            grad, hess = f.grad_hess(z, t, **rest)
            upper = f.grad_hess(z, t, hessian="upper", **rest)[1]
            answers[name] = loss, grad, hess, upper, f.hvp(z, t, x, **rest), f.solve(z, t, x, 0.5, **rest)
        for a, b in zip(answers["cpu"], answers["numpy"], strict=True):
            assert_allclose(a, b, **close)
        for a in answers["cpu"][:-1]:
            assert not a[v == 0].any()
        for i in range(0, n, 11):
            one = tuple(part[i : i + 1] for part in t) if isinstance(t, tuple) else t[i : i + 1]
            alone = f.loss_grad(z[i : i + 1], one, v[i : i + 1], "sum", backend="cpu")[1]
            assert_allclose(alone, answers["cpu"][1][i : i + 1], **close)


@pytest.mark.parametrize("f", ELEMENTS, ids=repr)
def test_backends_agree_on_hostile_elements(f, dtype):
    rng = np.random.default_rng(6)
    z = hostile(rng, (60, 5), dtype)
    y, v = (rng.random(z.shape) < 0.5).astype(dtype), rng.choice([0.0, 1.0, 2.0], z.shape).astype(dtype)
    close = dict(rtol=1e-9, atol=1e-12) if dtype == "float64" else dict(rtol=2e-5, atol=1e-6)
    cpu, spec = (f.loss_grad(z, y, v, "none", backend=name) for name in ("cpu", "numpy"))
    for a, b in zip(cpu, spec, strict=True):
        assert_allclose(a, b, **close)
        assert not a[v == 0].any()
        assert_array_equal(np.isnan(a) & ~np.isnan(z), False)


def test_a_share_of_zero_is_nothing_beside_an_infinite_divergence(backend):
    """Reverse KL is +inf where the teacher has no probability: times 0 it counts nothing."""
    z, teacher = np.array([[0.0, 1.0]]), np.array([[0.0, -np.inf]])
    plain = fx.SoftmaxCrossEntropy().loss_grad(z, [0], backend=backend)
    loss, grad = fx.DistillationLoss(weight=0.0, reverse=True).loss_grad(z, ([0], teacher), backend=backend)
    assert loss == plain[0]
    assert_array_equal(grad, plain[1])
    loss, grad = fx.DistillationLoss(weight=0.5, reverse=True).loss_grad(z, ([0], teacher), backend=backend)
    assert loss == np.inf
    assert_array_equal(grad, [[-np.inf, np.inf]])
    loss, grad = fx.DistillationLoss(reverse=True).loss_grad(z, ([0], teacher), [0.0], "sum", backend=backend)
    assert loss == 0
    assert not grad.any()


def test_class_indices_in_the_logits_shape(backend):
    """Integers above 1 are no targets of their own shape; 0 and 1 are, and so is any float."""
    z, y = np.zeros((2, 3)), np.array([[0, 2, 1], [1, 0, 2]])
    with pytest.raises(
        ValueError,
        match=r"targets: integers of the logits' own shape .*got 2; class indices have shape \(2,\)",
    ):
        fx.softmax_cross_entropy(z, y, backend=backend)
    many = (y > 0).astype(np.int32)
    assert fx.softmax_cross_entropy(z, many, backend=backend) == pytest.approx(np.log(3))
    assert fx.softmax_cross_entropy(z, y.astype(float), backend=backend) == pytest.approx(np.log(3))
