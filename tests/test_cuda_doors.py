"""The doors of the losses on device arrays: results, reductions, options, errors; on a GPU or in the emulator."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import reference

import fastxent as fx
from fastxent import _linear_on_device

pytest.importorskip("numba", reason="numba is not installed")
pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
pytestmark = pytest.mark.simulated if SIMULATED else pytest.mark.gpu


def emulated():
    """NumPy arrays of a class that says it is on a device, and the library that knows it."""
    import types

    import cuda_emulator

    from fastxent import _backend, _device

    launch = cuda_emulator.install()

    class Array(np.ndarray):
        pass

    Array.__module__ = "emulated"

    def wrapped(function):
        return lambda *a, **k: np.asarray(function(*a, **k)).view(Array)

    names = ("arange", "broadcast_to", "ascontiguousarray", "empty", "empty_like", "matmul", "where", "zeros")
    functions = types.SimpleNamespace(**{name: wrapped(getattr(np, name)) for name in names})
    functions.asarray = wrapped(np.asarray)

    class Emulated(_device.Library):
        @staticmethod
        def module():
            return functions

        def maker(self, shape, dtype):
            dtype = np.dtype(dtype)
            return lambda: wrapped(np.full)(shape, math.nan if dtype.kind == "f" else 0, dtype)

        def address(self, x):
            return self.buffer(x).pointer

        def host(self, x):
            return np.array(x)

        def buffer(self, x):
            return cuda_emulator.buffer(launch, x)._replace(owner=x)

        def stream(self):
            return None

    _device.LIBRARIES["emulated"] = Emulated
    from fastxent._core_cuda import general

    core = types.SimpleNamespace(launch=launch, general=general)
    _backend._cuda = lambda: core
    return wrapped(np.array), np.asarray


def torch_on_a_gpu():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    return (lambda a: torch.as_tensor(np.asarray(a), device="cuda")), lambda t: t.detach().cpu().numpy()


@pytest.fixture(scope="module")
def library():
    """(to the device, back to NumPy)."""
    return emulated() if SIMULATED else torch_on_a_gpu()


def problem(n=6, k=37):
    rng = np.random.default_rng(0)
    z = (3 * rng.standard_normal((n, k))).astype(np.float32)
    y = rng.integers(0, k, n)
    y[2] = -100
    return z, y


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "mean_rows", "mean_all"])
@pytest.mark.parametrize("weighted", [False, True])
def test_reductions(library, reduction, weighted):
    """Loss and gradient of every reduction, denominators included, in the caller's library."""
    to, back = library
    z, y = problem()
    options = {"reduction": reduction, "base": 2}
    if weighted:
        options["sample_weight"] = np.linspace(0, 1, len(z))
        options["class_weight"] = np.linspace(1, 2, z.shape[1])
    truth = reference.softmax(z.astype(np.float64), y, **options)
    options = {n: to(v) if isinstance(v, np.ndarray) else v for n, v in options.items()}
    given = to(z)
    loss, grad = fx.softmax_cross_entropy_with_grad(given, to(y), **options)
    assert type(loss) is type(grad) is type(given)
    expected = truth.losses if reduction == "none" else truth.loss
    assert np.allclose(back(loss), expected, rtol=3e-6)
    assert np.allclose(back(grad), truth.grad, atol=3e-6 * np.abs(truth.grad).max(), rtol=1e-5)
    assert np.allclose(back(fx.softmax_cross_entropy(given, to(y), **options)), expected, rtol=3e-6)


def test_forward_and_backward(library):
    """lse for the backward pass; upstream gradients as numbers, arrays without dimensions, and one per row."""
    to, back = library
    z, y = problem()
    truth = reference.softmax(z.astype(np.float64), y)
    loss, lse = fx.softmax_cross_entropy_forward(to(z), to(y))
    assert np.allclose(back(lse), truth.lse, rtol=1e-6)
    assert tuple(loss.shape) == ()
    for saved in (None, lse):
        for upstream in (2.0, to(np.float32(2.0))):
            grad = fx.softmax_cross_entropy_backward(upstream, to(z), to(y), saved)
            assert np.allclose(back(grad), 2 * truth.grad, atol=1e-6)
    rows = np.linspace(-1, 1, len(z)).astype(np.float32)
    grad = fx.softmax_cross_entropy_backward(to(rows), to(z), to(y), lse, reduction="none")
    truth = reference.softmax(z.astype(np.float64), y, reduction="none")
    assert np.allclose(back(grad), truth.grad * rows[:, None], atol=2e-6)


def test_in_place_checks_before_it_writes(library):
    """`out` may be the logits; a bad label is found before the first write."""
    to, back = library
    z, y = problem()
    given = to(z)
    _, grad = fx.softmax_cross_entropy_with_grad(given, to(y), out=given)
    assert grad is given
    truth = reference.softmax(z.astype(np.float64), y)
    assert np.allclose(back(given), truth.grad, atol=1e-6)
    given = to(z)
    y[4] = z.shape[1]
    with pytest.raises(ValueError, match=r"targets\[4\] is not a class: expected 0 <= label < 37"):
        fx.softmax_cross_entropy_with_grad(given, to(y), out=given)
    assert np.array_equal(back(given), z)
    with pytest.raises(ValueError, match=r"targets\[4\]"):
        fx.softmax_cross_entropy(given, to(y))
    loss = fx.softmax_cross_entropy(given, to(y), check=False, reduction="none")
    assert np.isnan(back(loss)).sum() == 1


def test_axes_and_soft_targets(library):
    """Classes on axis 1 of three; soft targets; both without a transposed copy."""
    to, back = library
    rng = np.random.default_rng(1)
    z = rng.standard_normal((2, 5, 4)).astype(np.float32)
    for y in (rng.integers(0, 5, (2, 4)), rng.random((2, 5, 4)).astype(np.float32)):
        truth = reference.softmax(z.astype(np.float64), y, axis=1, label_smoothing=0.1)
        loss, grad = fx.softmax_cross_entropy_with_grad(to(z), to(y), axis=1, label_smoothing=0.1)
        assert np.allclose(back(loss), truth.loss, rtol=2e-6)
        assert np.allclose(back(grad), truth.grad, atol=1e-6)
    bad = np.full((2, 5, 4), 0.2, np.float32)
    for value in (-1.0, np.inf, np.nan):
        bad[1, 4, 2] = value
        with pytest.raises(ValueError, match=r"targets\[1, 2\]: expected probabilities >= 0"):
            fx.softmax_cross_entropy(to(z), to(bad), axis=1)


def test_objects(library):
    """Loss objects take device arrays; a system has to be in memory."""
    to, back = library
    z, y = problem()
    for loss in (fx.FocalLoss(gamma=2.0, alpha=0.5), fx.Poly1Loss(), fx.GeneralizedCrossEntropy()):
        expected, slope = loss.loss_grad(z.astype(np.float64), y)
        value, grad = loss.loss_grad(to(z), to(y))
        assert np.allclose(back(value), expected, rtol=3e-6)
        assert np.allclose(back(grad), slope, atol=1e-6)


LOSSES = {
    "softmax": fx.SoftmaxCrossEntropy(label_smoothing=0.1, z_loss=1e-3, temperature=1.5),
    "focal": fx.FocalLoss(gamma=2.0, alpha=0.5),
    "js": fx.JensenShannonLoss(),
    "bootstrapping": fx.BootstrappingLoss(beta=0.8),
    "hard": 0.5 * fx.BootstrappingLoss(beta=0.8, hard=True),
    "sum": fx.SoftmaxCrossEntropy() + 0.3 * fx.Poly1Loss(),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_derivatives(library, name, reduction):
    """Every policy, products, sums and divergences, with weights and an ignored row."""
    to, back = library
    loss = LOSSES[name]
    z, y = problem(4, 7)
    v = np.linspace(0, 1, len(z)).astype(np.float32)
    x = np.random.default_rng(3).standard_normal(z.shape).astype(np.float32)
    wide = z.astype(np.float64), y
    value, grad = loss.loss_grad(to(z), to(y), to(v), reduction)
    expected = loss.loss_grad(*wide, v, reduction)
    assert np.allclose(back(value), expected[0], rtol=1e-5, atol=1e-7)
    assert np.allclose(back(grad), expected[1], atol=3e-6 * np.abs(expected[1]).max())
    policies = ("exact", "upper")
    if name in ("focal", "js"):
        policies += ("clip", "abs", "xgboost", "lightgbm")
    for hessian in policies if reduction == "mean" else ("upper",):
        expected = loss.grad_hess(*wide, v, reduction, hessian=hessian)
        for ours, theirs in zip(
            loss.grad_hess(to(z), to(y), to(v), reduction, hessian=hessian), expected, strict=True
        ):
            assert np.allclose(back(ours), theirs, atol=3e-6 * np.abs(theirs).max(), rtol=1e-5), hessian
    expected = loss.hvp(*wide, x, v, reduction)
    assert np.allclose(back(loss.hvp(to(z), to(y), to(x), to(v), reduction)), expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"x: expected the shape of logits, \(4, 7\), got \(3, 7\)"):
        loss.hvp(to(z), to(y), to(x[:3]))


@pytest.mark.parametrize("reverse", [False, True])
def test_distillation(library, reverse):
    """Labels and teacher logits, an ignored row, float32; a bad label is found."""
    to, back = library
    loss = fx.DistillationLoss(temperature=2.0, weight=0.7, reverse=reverse)
    z, y = problem(5, 9)
    y %= 9
    y[2] = -100
    teacher = (z + np.random.default_rng(4).standard_normal(z.shape)).astype(np.float32)
    wide = z.astype(np.float64), (y, teacher.astype(np.float64))
    given = to(z), (to(y), to(teacher))
    for ours, theirs in zip(loss.loss_grad(*given), loss.loss_grad(*wide), strict=True):
        assert np.allclose(back(ours), theirs, atol=1e-6, rtol=3e-6)
    for hessian in ("exact", "upper"):
        pairs = zip(
            loss.grad_hess(*given, hessian=hessian), loss.grad_hess(*wide, hessian=hessian), strict=True
        )
        assert all(np.allclose(back(ours), theirs, atol=1e-6, rtol=1e-5) for ours, theirs in pairs)
    y[3] = 9
    with pytest.raises(ValueError, match=r"targets\[3\] is not a class"):
        loss.loss(to(z), (to(y), to(teacher)))


@pytest.mark.parametrize(
    "loss", [fx.SigmoidCrossEntropy(pos_weight=2.0), fx.BinaryFocalLoss(alpha=0.3)], ids=repr
)
def test_second_derivatives_of_elements(library, loss):
    to, back = library
    rng = np.random.default_rng(5)
    z = (3 * rng.standard_normal((4, 9))).astype(np.float32)
    y = (rng.random(z.shape) < 0.5).astype(np.float32)
    v = rng.random(z.shape).astype(np.float32)
    wide = z.astype(np.float64), y
    for hessian in ("exact", "clip", "abs", "upper", "xgboost", "lightgbm"):
        expected = loss.grad_hess(*wide, v, hessian=hessian)
        for ours, theirs in zip(loss.grad_hess(to(z), to(y), to(v), hessian=hessian), expected, strict=True):
            assert np.allclose(back(ours), theirs, atol=3e-6 * np.abs(theirs).max(), rtol=1e-5), hessian
    x = rng.standard_normal(z.shape).astype(np.float32)
    assert np.allclose(back(loss.hvp(to(z), to(y), to(x))), loss.hvp(*wide, x), atol=1e-6)


def test_probabilities(library):
    """binary_cross_entropy: weights that broadcast, in place, and what is no probability."""
    to, back = library
    rng = np.random.default_rng(6)
    p = (0.02 + 0.96 * rng.random((4, 9))).astype(np.float32)
    y = rng.random(p.shape).astype(np.float32)
    options = {"sample_weight": rng.random((4, 1)).astype(np.float32), "label_smoothing": 0.1, "base": 2}
    expected, slope = fx.binary_cross_entropy_with_grad(p.astype(np.float64), y, **options)
    options["sample_weight"] = to(options["sample_weight"])
    given = to(p)
    loss, grad = fx.binary_cross_entropy_with_grad(given, to(y), out=given, **options)
    assert grad is given
    assert np.allclose(back(loss), expected, rtol=3e-6)
    assert np.allclose(back(grad), slope, rtol=1e-5, atol=1e-6)
    losses = fx.binary_cross_entropy(to(p), to(y), reduction="none")
    assert np.allclose(back(losses), fx.binary_cross_entropy(p, y, reduction="none"), rtol=1e-5)
    p[2, 3] = 1.5
    given = to(p)
    with pytest.raises(ValueError, match=r"probabilities\[2, 3\]: expected a number in \[0, 1\]"):
        fx.binary_cross_entropy_with_grad(given, to(y), out=given)
    assert np.array_equal(back(given), p)
    y[1, 2] = -1
    with pytest.raises(ValueError, match=r"targets\[1, 2\]: expected a number in \[0, 1\]"):
        fx.binary_cross_entropy(to(p), to(y))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_sigmoid(library, reduction, weighted):
    """Elementwise losses: flat, or with weights that broadcast."""
    to, back = library
    rng = np.random.default_rng(2)
    z = rng.standard_normal((4, 9)).astype(np.float32)
    y = (rng.random((4, 9)) < 0.5).astype(np.float32)
    options = {"reduction": reduction, "label_smoothing": 0.1}
    if weighted:
        options["sample_weight"] = rng.random((4, 1)).astype(np.float32)
        options["pos_weight"] = 1 + rng.random(9).astype(np.float32)
    expected, slope = fx.sigmoid_cross_entropy_with_grad(z.astype(np.float64), y, **options)
    options = {n: to(v) if isinstance(v, np.ndarray) else v for n, v in options.items()}
    loss, grad = fx.sigmoid_cross_entropy_with_grad(to(z), to(y), **options)
    assert np.allclose(back(loss), expected, rtol=3e-6)
    assert np.allclose(back(grad), slope, atol=1e-6)
    upstream = 3.0 if reduction != "none" else to(np.full((4, 9), 3.0, np.float32))
    grad = fx.sigmoid_cross_entropy_backward(upstream, to(z), to(y), **options)
    assert np.allclose(back(grad), 3 * slope, atol=3e-6)
    for member in (fx.BinaryFocalLoss(), fx.AsymmetricLoss()):
        expected, slope = member.loss_grad(z.astype(np.float64), y)
        value, grad = member.loss_grad(to(z), to(y))
        assert np.allclose(back(value), expected, rtol=3e-6)
        assert np.allclose(back(grad), slope, atol=1e-6)
    y[1, 2] = 2
    with pytest.raises(ValueError, match=r"targets\[1, 2\]: expected a number in \[0, 1\]"):
        fx.sigmoid_cross_entropy(to(z), to(y))


@pytest.mark.parametrize("weighted", [False, True])
def test_linear(library, weighted, monkeypatch):
    """Blocks of rows of X W + b: loss and all gradients, in place of the logits."""
    monkeypatch.setattr(_linear_on_device, "_FEWEST", 1)
    to, back = library
    rng = np.random.default_rng(3)
    X, W, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((20, 4), (4, 37), 37))
    y = rng.integers(0, 37, 20)
    y[3] = -100
    weight = np.linspace(0, 1, 20).astype(np.float32)
    options = {"sample_weight": weight} if weighted else {}
    expected = fx.linear_cross_entropy_with_grad(*(a.astype(np.float64) for a in (X, W)), y, b, **options)
    options = {name: to(value) for name, value in options.items()}
    arrays = to(X), to(W), to(y), to(b)
    got = fx.linear_cross_entropy_with_grad(*arrays, **options)
    for a, e in zip(got, expected, strict=True):
        assert np.allclose(back(a), e, rtol=1e-5, atol=2e-6)
    y[5] = 37
    with pytest.raises(ValueError, match=r"targets\[5\] is not a class"):
        fx.linear_cross_entropy(to(X), to(W), to(y))


def test_nothing_to_do(library):
    """No rows: 0, or NaN where that is asked for."""
    to, back = library
    z, y = to(np.empty((0, 3), np.float32)), to(np.empty(0, np.int64))
    loss, grad = fx.softmax_cross_entropy_with_grad(z, y)
    assert back(loss) == 0
    assert tuple(grad.shape) == (0, 3)
    assert np.isnan(back(fx.softmax_cross_entropy(z, y, empty="nan")))
    ignored = to(np.full(2, -100)), to(np.ones((2, 3), np.float32))
    loss, grad = fx.softmax_cross_entropy_with_grad(ignored[1], ignored[0])
    assert back(loss) == 0
    assert not back(grad).any()


def test_mistakes(library):
    """Errors name the argument, what was expected and what came."""
    to, _ = library
    z, y = problem()
    with pytest.raises(TypeError, match="targets: expected an array on the device"):
        fx.softmax_cross_entropy(to(z), y)
    with pytest.raises(TypeError, match="targets: expected integer or bool labels, got dtype float32"):
        fx.softmax_cross_entropy(to(z), to(y.astype(np.float32)))
    with pytest.raises(ValueError, match=r"targets: expected integer labels of shape \(6,\)"):
        fx.softmax_cross_entropy(to(z), to(y[:-1]))
    with pytest.raises(TypeError, match="logits: expected float32"):
        fx.softmax_cross_entropy(to(z.astype(np.int32)), to(y))
    with pytest.raises(TypeError, match="out: expected an array on the device"):
        fx.softmax_cross_entropy_with_grad(to(z), to(y), out=z)
    with pytest.raises(ValueError, match="out: expected shape"):
        fx.softmax_cross_entropy_with_grad(to(z), to(y), out=to(z[:-1]))
    with pytest.raises(ValueError, match=r"class_weight: expected shape \(37,\)"):
        fx.softmax_cross_entropy(to(z), to(y), class_weight=to(np.ones(3, np.float32)))
    with pytest.raises(ValueError, match="backend: expected 'cuda' or None"):
        fx.softmax_cross_entropy(to(z), to(y), backend="numpy")


def test_calls_that_were_made_before(library):
    """Without checks, a call on other arrays of a layout repeats what the first one launched, and nothing else."""
    from fastxent.losses import _repeated

    to, back = library
    rng = np.random.default_rng(3)
    loss = fx.FocalLoss()
    js = fx.JensenShannonLoss()
    before = set(_repeated._programs)
    for _ in range(2):
        z, x = (rng.standard_normal((3, 12)).astype(np.float32) for _ in range(2))
        y = rng.integers(0, 12, 3)
        soft = rng.random((3, 12)).astype(np.float32)
        weight = rng.random(3).astype(np.float32)
        y[rng.integers(3)] = -100
        double = z.astype(np.float64)
        out, given = to(np.full_like(z, math.nan)), to(z)
        value, grad = fx.softmax_cross_entropy_with_grad(
            given, to(y), out=out, sample_weight=to(weight), check=False
        )
        assert grad is out
        truth = reference.softmax(double, y, sample_weight=weight)
        assert np.allclose(back(value), truth.loss, rtol=3e-6)
        assert np.allclose(back(grad), truth.grad, atol=1e-6)
        value, grad = fx.softmax_cross_entropy_with_grad(given, to(y), out=given, check=False)
        assert grad is given
        assert np.allclose(back(given), reference.softmax(double, y).grad, atol=1e-6)
        grad = fx.softmax_cross_entropy_backward(2.0, to(z), to(y), check=False)
        assert np.allclose(back(grad), 2 * reference.softmax(double, y).grad, atol=2e-6)
        product = loss.hvp(to(z), to(y), to(x), check=False)
        assert np.allclose(back(product), loss.hvp(double, y, x.astype(np.float64)), atol=1e-5)
        value, _ = js.loss_grad(to(z), to(soft), check=False)
        assert np.allclose(back(value), js.loss(double, soft.astype(np.float64)), rtol=1e-5)
        value, grad = fx.sigmoid_cross_entropy_with_grad(to(z), to(soft), check=False)
        expected = fx.sigmoid_cross_entropy_with_grad(double, soft.astype(np.float64))
        assert np.allclose(back(value), expected[0], rtol=1e-5)
        assert np.allclose(back(grad), expected[1], atol=1e-6)
    programs = [_repeated._programs[key] for key in set(_repeated._programs) - before]
    assert len(programs) == 6
    assert None not in programs


def test_what_is_not_repeated(library):
    """Work outside the kernels, memory that cannot be told apart; what is refused is refused each time."""
    from fastxent.losses import _repeated

    to, back = library
    z, y = problem()
    double, given = z.astype(np.float64), to(z)
    _repeated._programs.clear()
    for _ in range(2):
        losses = fx.softmax_cross_entropy(to(z), to(y), base=2, reduction="none", check=False)
        expected = reference.softmax(double, y, base=2, reduction="none").losses
        assert np.allclose(back(losses), expected, rtol=1e-5)
        soft = to(np.abs(z))
        loss = fx.sigmoid_cross_entropy(soft, soft, check=False)
        assert np.allclose(back(loss), fx.sigmoid_cross_entropy(np.abs(double), np.abs(double), check=False))
        with pytest.raises(ValueError, match="reduction: expected one of"):
            fx.softmax_cross_entropy(given, to(y), reduction=["mean"], check=False)
        with pytest.raises(TypeError, match="targets"):
            fx.softmax_cross_entropy(given, y, check=False)
        with pytest.raises(ValueError, match="sample_weight: expected"):
            fx.softmax_cross_entropy(given, to(y), sample_weight=to(np.ones(5, np.float32)), check=False)
    assert None in _repeated._programs.values()


def test_shards(library):
    """States and gradients of columns on the device: merged, those of the whole rows."""
    to, back = library
    z, y = problem()
    truth = reference.softmax(z.astype(np.float64), y)
    parts = [(to(np.ascontiguousarray(z[:, a:b])), to(y), a) for a, b in ((0, 20), (20, 37))]
    state = fx.merge_lse([fx.partial_lse(*part) for part in parts])
    assert np.isclose(state.loss(), truth.loss, rtol=1e-12)
    grads = [back(state.grad(*part)) for part in parts]
    assert np.allclose(np.concatenate(grads, 1), truth.grad, atol=1e-7)


def test_boosters_margins(library):
    """Gradient and curvature of an objective at margins on the device, labels there or in memory."""
    from fastxent.boosting import xgboost_objective

    to, back = library
    rng = np.random.default_rng(0)
    z, y = rng.standard_normal((9, 5)).astype(np.float32), rng.integers(0, 5, 9)
    w = rng.random(9).astype(np.float32)
    for loss in (fx.SoftmaxCrossEntropy(), fx.FocalLoss()):
        objective = xgboost_objective(loss)
        expected = objective(y, z, w)
        for labels in (y, to(y)):
            for ours, theirs in zip(objective(labels, to(z), to(w)), expected, strict=True):
                assert np.allclose(back(ours), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_regions(library, activation):
    """Dice of images, a region per image, and the labels one-hot for it."""
    to, back = library
    rng = np.random.default_rng(0)
    z, y = rng.standard_normal((2, 3, 2, 5)).astype(np.float32), rng.integers(0, 3, (2, 2, 5))
    loss = fx.DiceLoss(activation, axis=(1, 2, 3), class_axis=1)
    expected = loss.loss_grad(z, y)
    for ours, theirs in zip(loss.loss_grad(to(z), to(y)), expected, strict=True):
        assert np.allclose(back(ours), theirs, rtol=1e-5, atol=1e-6)


def test_systems(library):
    """(lam I + H) x = r, for a loss and for a sum."""
    to, back = library
    rng = np.random.default_rng(0)
    z, r = (rng.standard_normal((4, 5)).astype(np.float32) for _ in range(2))
    y = rng.random((4, 5)).astype(np.float32)
    for loss in (fx.SoftmaxCrossEntropy(), fx.SoftmaxCrossEntropy() + fx.SigmoidCrossEntropy()):
        expected = loss.solve(z, y, r, 0.1)
        assert np.allclose(back(loss.solve(to(z), to(y), to(r), 0.1)), expected, rtol=1e-4, atol=1e-5)


def test_adversaries(library):
    to, back = library
    z, y = np.linspace(-2, 2, 7, dtype=np.float32), np.array([1, 0, 0, 1, 1, 0, 1])
    for loss in (fx.GANDiscriminatorLoss(), fx.GANGeneratorLoss()):
        for ours, theirs in zip(loss.loss_grad(to(z), to(y)), loss.loss_grad(z, y), strict=True):
            assert np.allclose(back(ours), theirs, rtol=1e-5, atol=1e-6)


def test_narrow_arrays_with_weights_of_rows(library):
    """More rows than columns, in the kernel of two axes; a view of every other row."""
    to, back = library
    rng = np.random.default_rng(0)
    z = rng.standard_normal((40, 3)).astype(np.float32)
    y, w = (z > 0).astype(np.float32), rng.random((20, 1)).astype(np.float32)
    expected = fx.sigmoid_cross_entropy_with_grad(z[::2], y[::2], sample_weight=w)
    found = fx.sigmoid_cross_entropy_with_grad(to(z)[::2], to(y)[::2], sample_weight=to(w))
    for ours, theirs in zip(found, expected, strict=True):
        assert np.allclose(back(ours), theirs, rtol=1e-5, atol=1e-7)
