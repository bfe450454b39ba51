"""The estimators with backend="cuda" in a device of memory: the answers of the CPU, and nothing crosses unasked."""

from __future__ import annotations

import sys

import cuda_twin
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.preprocessing import scale

import fastxent as fx
from fastxent import _backend
from fastxent._logistic_on_device import DeviceObjective
from fastxent.logistic import LogisticRegression

get = cuda_twin.get


@pytest.fixture
def cupy(monkeypatch):
    """The module that stands for CuPy."""
    return cuda_twin.install(monkeypatch)


def digits(dtype="float64"):
    X, y = load_digits(return_X_y=True)
    return (X[:300] / 16).astype(dtype), y[:300]


def breast():
    X, y = load_breast_cancer(return_X_y=True)
    return scale(X), y


LOGISTIC = {
    "plain": ({}, None),
    "float32": ({}, "float32"),
    "weights": ({"class_weight": "balanced", "C": 0.1}, None),
    "smoothing": ({"label_smoothing": 0.1, "fit_intercept": False}, None),
    "l1": ({"l1_ratio": 1.0, "C": 0.1, "tol": 1e-4}, None),
    "loss": ({"loss": fx.FocalLoss(gamma=1.0), "C": 0.1}, None),
}


@pytest.mark.parametrize("case", LOGISTIC)
@pytest.mark.parametrize("data", [digits, breast])
def test_logistic_regression(case, data, cupy):
    """The minimum that the CPU finds, in attributes of NumPy."""
    options, dtype = LOGISTIC[case]
    X, y = data()
    X = X.astype(dtype) if dtype else X
    tol = 1e-4 if dtype else 1e-5
    options = {"tol": tol, "max_iter": 1000, **options}
    v = np.linspace(0.5, 1.5, len(y)) if case == "weights" else None
    ours = LogisticRegression(backend="cuda", **options).fit(X, y, sample_weight=v)
    peer = LogisticRegression(backend="cpu", solver="auto", **options).fit(X, y, sample_weight=v)
    assert ours.opt_result_.status == "converged"
    assert type(ours.coef_) is type(ours.opt_result_.x) is np.ndarray
    assert ours.coef_.dtype == X.dtype
    assert ours.opt_result_.fun == pytest.approx(peer.opt_result_.fun, rel=1e-3 if dtype else 1e-5)
    assert np.abs(ours.predict_proba(X) - peer.predict_proba(X)).max() < (0.05 if dtype else 5e-3)


def test_logistic_regression_of_soft_labels_and_wide_x(cupy):
    """Probabilities as targets; the preconditioner's diagonal, which wide X gets; a warm start; a callback's view."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 2100))
    for k in (2, 3):
        y = rng.dirichlet(np.ones(k), 60)
        ours, peer = (
            LogisticRegression(backend=name, solver="lbfgs", tol=1e-7, max_iter=500).fit(X, y)
            for name in ("cuda", "cpu")
        )
        assert np.abs(ours.coef_ - peer.coef_).max() < 1e-5
        ours.set_params(warm_start=True).fit(X, y)
        assert ours.n_iter_[0] <= 1


def test_only_numbers_cross(cupy, monkeypatch):
    """After the data and the preconditioner: a value per evaluation, and inner products, no more than the memory's."""
    X, y = digits()
    crossed = []
    take = cuda_twin.Array.get
    monkeypatch.setattr(cuda_twin.Array, "get", lambda self: (crossed.append(self.size), take(self))[1])
    placed = []
    asarray = cupy.asarray
    monkeypatch.setattr(
        cupy,
        "asarray",
        lambda x, dtype=None: (
            placed.append(np.size(x) if isinstance(x, np.ndarray) else 0),
            asarray(x, dtype),
        )[1],
    )
    model = LogisticRegression(backend="cuda", tol=1e-3, max_iter=200).fit(X, y)
    d, k = X.shape[1], 10
    large = [n for n in crossed if n > 20]
    assert sorted(large) == sorted([d * d, d, d * k + k]), "the moments, and the answer"
    assert model.n_iter_[0] > 5
    assert sum(n >= X.size for n in placed) == 1


def test_mistakes(cupy):
    from scipy import sparse

    X, y = digits()
    with pytest.raises(ValueError, match="X: expected a dense array with backend='cuda'"):
        LogisticRegression(backend="cuda").fit(sparse.csr_array(X), y)
    with pytest.raises(ValueError, match="solver: expected 'auto' or 'lbfgs' with backend='cuda'"):
        LogisticRegression(backend="cuda", solver="newton-cg").fit(X, y)
    with pytest.raises(ValueError, match="partial_fit expects a backend in memory"):
        LogisticRegression(backend="cuda").partial_fit(X, y, classes=np.arange(10))


def test_without_cupy(cupy, monkeypatch):
    """The message names the package."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    X, y = digits()
    with pytest.raises(ImportError, match=r"needs CuPy .* pip install 'fastxent\[cupy\]'"):
        LogisticRegression(backend="cuda").fit(X, y)


def test_without_a_gpu():
    """What the losses say."""
    try:
        _backend.choose("cuda")
    except ImportError:
        X, y = digits()
        with pytest.raises(ImportError, match="backend='cuda' needs"):
            LogisticRegression(backend="cuda").fit(X, y)
    else:
        pytest.skip("there is a device")


def test_the_module_of_arrays_is_a_parameter(cupy):
    """`xp` may be given."""
    X, y = digits()
    objective = DeviceObjective(X, y, 10, xp=cupy)
    W = cuda_twin.put(np.zeros((64, 10)))
    total, dW, db = objective.loss_grad(W, None, None)
    assert total == pytest.approx(300 * np.log(10))
    assert (dW.shape, db.shape) == ((64, 10), (10,))


# The network ------------------------------------------------------------------------------------------------


@pytest.fixture
def special(cupy, monkeypatch):
    """`cupyx.scipy.special`, as far as it is used."""
    import types

    from scipy.special import ndtr

    module = types.ModuleType("cupyx.scipy.special")
    module.ndtr = lambda x: cuda_twin.Array(ndtr(x.memory))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "cupyx", types.ModuleType("cupyx"))
    monkeypatch.setitem(sys.modules, "cupyx.scipy", types.ModuleType("cupyx.scipy"))


NETWORK = {
    "relu": {},
    "gelu": {"activation": "gelu"},
    "silu": {"activation": "silu", "hidden_layer_sizes": (8, 7)},
    "tanh": {"activation": "tanh", "solver": "sgd"},
    "logistic": {"activation": "logistic", "solver": "adamw"},
    "identity": {"activation": "identity", "solver": "radam"},
    "dropout": {"dropout": 0.3, "hidden_layer_sizes": (16, 8)},
    "clipped": {"clip_norm": 0.1},
    "weights": {"class_weight": "balanced", "label_smoothing": 0.1},
    "loss": {"loss": fx.FocalLoss(gamma=1.0)},
    "stopping": {"early_stopping": True},
}


@pytest.mark.parametrize("case", NETWORK)
def test_network(case, special):
    """Step by step what the NumPy backend does, in float64 to rounding."""
    X, y = digits()
    options = {
        "hidden_layer_sizes": (16,),
        "max_iter": 3,
        "random_state": 0,
        "batch_size": 32,
        **NETWORK[case],
    }
    v = np.linspace(0, 2, len(y)) if case == "weights" else None
    fits = []
    for backend in ("cuda", "numpy"):
        with pytest.warns(Warning, match="Maximum iterations"):
            fits.append(fx.MLPClassifier(backend=backend, **options).fit(X, y, sample_weight=v))
    ours, peer = fits
    np.testing.assert_allclose(ours.loss_curve_, peer.loss_curve_, rtol=1e-10)
    for a, b in zip(ours.coefs_ + ours.intercepts_, peer.coefs_ + peer.intercepts_, strict=True):
        assert type(a) is np.ndarray
        np.testing.assert_allclose(a, b, atol=1e-9)
    for a, b in zip(ours._optimizer.state, peer._optimizer.state, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


@pytest.mark.parametrize("kind", ["binary", "indicators", "soft"])
def test_network_of_other_targets(kind, special):
    X, y = breast()
    X = X[:200].astype(np.float32)
    y = y[:200]
    rng = np.random.default_rng(0)
    options = {"hidden_layer_sizes": (8,), "max_iter": 2, "random_state": 0}
    if kind == "indicators":
        y = rng.integers(0, 2, (200, 3))
        options["class_weight"] = "balanced"
    elif kind == "soft":
        y = rng.dirichlet(np.ones(3), 200)
    fits = []
    for backend in ("cuda", "numpy"):
        with pytest.warns(Warning, match="Maximum iterations"):
            fits.append(fx.MLPClassifier(backend=backend, **options).fit(X, y))
    np.testing.assert_allclose(fits[0].loss_curve_, fits[1].loss_curve_, rtol=1e-5)
    np.testing.assert_allclose(fits[0].predict_proba(X), fits[1].predict_proba(X), atol=1e-5)


def test_network_goes_on(special):
    """partial_fit and warm starts continue with weights and state that were brought back."""
    X, y = digits()
    models = [fx.MLPClassifier((8,), random_state=0, backend=name) for name in ("cuda", "numpy")]
    for model in models:
        for half in (slice(0, 150), slice(150, 300)):
            model.partial_fit(X[half], y[half], classes=np.arange(10))
    np.testing.assert_allclose(models[0].coefs_[0], models[1].coefs_[0], atol=1e-10)


def test_network_says_where_the_loss_is_lost(special):
    X, y = digits()
    with pytest.raises(ValueError, match=r"The loss is (nan|inf) at step \d+ of 10 in epoch 1"):
        fx.MLPClassifier(
            (8,), random_state=0, backend="cuda", solver="sgd", learning_rate_init=1e200, batch_size=32
        ).fit(X, y)


def test_steps_are_queued_without_a_look(special, monkeypatch):
    """One vector of losses for many steps; weights and state once an epoch."""
    X, y = digits()
    taken = []
    take = cuda_twin.Array.get
    monkeypatch.setattr(cuda_twin.Array, "get", lambda self: (taken.append(self.size), take(self))[1])
    for name in ("__float__", "__int__", "__bool__", "item"):
        monkeypatch.setattr(cuda_twin.Array, name, lambda *_: pytest.fail("waits for the device"))
    with pytest.warns(Warning, match="Maximum iterations"):
        model = fx.MLPClassifier(
            (8,), random_state=0, backend="cuda", batch_size=10, max_iter=2, alpha=1.0
        ).fit(X, y)
    size = sum(a.size for a in model.coefs_ + model.intercepts_)
    assert [n for n in taken if n == size] == [size] * 6
    assert sum(n == 64 for n in taken) >= 2
    assert set(taken) == {size, 64}


def test_mistakes_of_the_network(special, monkeypatch):
    from scipy import sparse

    X, y = digits()
    with pytest.raises(ValueError, match="X: expected a dense array with backend='cuda'"):
        fx.MLPClassifier(backend="cuda").fit(sparse.csr_array(X), y)
    with pytest.raises(ValueError, match="solver: expected a stochastic one with backend='cuda'"):
        fx.MLPClassifier(backend="cuda", solver="lbfgs").fit(X, y)
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError, match="needs CuPy"):
        fx.MLPClassifier(backend="cuda").fit(X, y)


@pytest.mark.parametrize("hessian", ["exact", "upper", "abs", "clip"])
def test_curvature_of_a_focal_loss(cupy, hessian):
    """The stand-in has every policy of the elementwise launchers."""
    rng = np.random.default_rng(0)
    z, y = 4 * rng.standard_normal((5, 3)), rng.integers(0, 2, (5, 3)).astype(float)
    loss = fx.BinaryFocalLoss(gamma=2.0, alpha=0.25)
    expected = loss.grad_hess(z, y, hessian=hessian)
    found = loss.grad_hess(cuda_twin.put(z), cuda_twin.put(y), hessian=hessian)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(get(ours), theirs, rtol=1e-12, atol=1e-16)
