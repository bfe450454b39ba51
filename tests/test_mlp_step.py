"""The compiled training step against the NumPy step, activations against mpmath, threads, instruction sets, Ctrl-C."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import scipy.sparse as sp
from fresh import printed
from sklearn.datasets import load_digits

import fastxent as fx
from fastxent.mlp import MLPClassifier
from fastxent.mlp._network import Dropout

_step = pytest.importorskip("fastxent._step", reason="the extension fastxent._step is not built")

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

ACTIVATIONS = ("identity", "logistic", "tanh", "relu", "gelu", "silu")
SOLVERS = {
    "sgd": dict(solver="sgd", learning_rate_init=0.05),
    "momentum": dict(solver="sgd", learning_rate_init=0.05, nesterovs_momentum=False),
    "adam": dict(solver="adam", learning_rate_init=0.01),
    "adamw": dict(solver="adamw", learning_rate_init=0.01),
    "radam": dict(solver="radam", learning_rate_init=0.01),
}
OPTIONS = {
    "plain": dict(alpha=0.0),
    "penalty": dict(alpha=2.0),
    "dropout": dict(dropout=0.4),
    "clipped": dict(clip_norm=0.05, alpha=1.0),
}


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:300] / 16, y[:300]


def both(X, y, weight=None, **options):
    """The same fit by the two steps: 4 epochs of 7 batches, the last of them short."""
    options = dict(hidden_layer_sizes=(21, 9), batch_size=48, max_iter=4, random_state=0) | options
    return [MLPClassifier(backend=backend, **options).fit(X, y, weight) for backend in ("numpy", "cpu")]


def assert_same(numpy, compiled, tolerance):
    """The same weights, relative to the largest of their array, and the same losses."""
    for a, b in zip(numpy.coefs_ + numpy.intercepts_, compiled.coefs_ + compiled.intercepts_, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(b, a, rtol=0, atol=tolerance * np.abs(a).max())
    np.testing.assert_allclose(compiled.loss_curve_, numpy.loss_curve_, rtol=10 * tolerance)
    assert numpy._optimizer.t == compiled._optimizer.t


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_compiled_step_is_the_numpy_step(activation, solver, option, digits):
    X, y = digits
    settings = dict(activation=activation) | SOLVERS[solver] | OPTIONS[option]
    assert_same(*both(X, y, **settings), 1e-12)
    # Adam divides by the root of a mean of squares: rounding errors of a gradient near zero become steps
    assert_same(*both(X.astype(np.float32), y, **settings), 1e-4)


# Widths around the panels of every instruction set, batches around the tiles and the blocks of rows.
@pytest.mark.parametrize("hidden", [(), (1,), (16,), (64,), (65, 3), (130,), (5, 4, 3, 2)], ids=str)
@pytest.mark.parametrize("batch_size", [1, 7, 129, 300])
def test_shapes(hidden, batch_size, digits):
    X, y = digits
    some = slice(None if batch_size > 1 else 20)
    settings = dict(hidden_layer_sizes=hidden, batch_size=batch_size, max_iter=2, activation="tanh")
    assert_same(*both(X[some], y[some], **settings), 1e-12)


def targets(kind, y):
    if kind == "binary":
        return y > 4
    if kind == "multilabel":
        return y[:, None] >> np.arange(3) & 1
    if kind == "soft":
        return 0.7 * np.eye(10)[y] + 0.03
    if kind == "wide":
        return np.arange(len(y)) % 140
    return y


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["labels", "binary", "multilabel", "soft", "wide"])
def test_targets_and_weights(kind, weighted, digits):
    X, y = digits
    weight = (
        np.random.default_rng(0).uniform(0, 3, len(X)) * (np.arange(len(X)) % 5 > 0) if weighted else None
    )
    settings = dict(label_smoothing=0.1)
    if kind == "multilabel" and weighted:
        settings["class_weight"] = {0: 2.0, 1: 0.5, 2: 1.0}
    assert_same(*both(X, targets(kind, y), weight, **settings), 1e-12)


@pytest.mark.parametrize("loss", ["focal", "gce", "sigmoid"])
def test_loss_objects_are_called_back(loss, digits):
    X, y = digits
    loss = fx.SigmoidCrossEntropy(pos_weight=3.0) if loss == "sigmoid" else loss
    kind = "binary" if isinstance(loss, fx.SigmoidCrossEntropy) else "labels"
    weight = np.linspace(0.1, 2, len(X))
    assert_same(*both(X, targets(kind, y), weight, loss=loss), 1e-12)


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("option", [*OPTIONS, "no hidden layer"])
def test_sparse_rows(option, index, digits):
    X, y = digits
    X = sp.csr_array(np.where(X > 0.4, X, 0))
    X.indices, X.indptr = X.indices.astype(index), X.indptr.astype(index)
    settings = OPTIONS.get(option, dict(hidden_layer_sizes=()))
    numpy, compiled = both(X, y, **settings)
    assert_same(numpy, compiled, 1e-12)
    assert_same(both(X.toarray(), y, **settings)[0], compiled, 1e-11)


@pytest.mark.parametrize("layout", ["fortran", "reversed", "strided", "read-only"])
def test_layouts_change_no_bit(layout, digits):
    X, y = digits
    want = both(X, y)[1]
    given = {
        "fortran": np.asfortranarray(X),
        "reversed": X[::-1, ::-1].copy()[::-1, ::-1],
        "strided": np.repeat(X, 2, axis=1)[:, ::2],
        "read-only": X.copy(),
    }[layout]
    given.flags.writeable = layout != "read-only"
    np.testing.assert_array_equal(both(given, y)[1].coefs_[0], want.coefs_[0])


@pytest.mark.parametrize("options", [{}, dict(dropout=0.3), dict(clip_norm=0.1), dict(loss="focal")], ids=str)
def test_any_number_of_threads_gives_the_same_bits(options, digits):
    X, y = digits
    settings = dict(hidden_layer_sizes=(300, 100), batch_size=150, max_iter=3, random_state=0, backend="cpu")
    fits = [MLPClassifier(num_threads=n, **settings, **options).fit(X, y) for n in (1, 2, 3, 7)]
    for model in fits[1:]:
        for a, b in zip(fits[0].coefs_ + fits[0].intercepts_, model.coefs_ + model.intercepts_, strict=True):
            np.testing.assert_array_equal(a, b)
        assert model.loss_curve_ == fits[0].loss_curve_


# ------------------------------------------------------------------------------------------------- activations

EXACT = {
    "logistic": lambda z: 1 / (1 + mpmath.exp(-z)),
    "tanh": mpmath.tanh,
    "relu": lambda z: max(z, mpmath.mpf(0)),
    "gelu": lambda z: z * mpmath.erfc(-z / mpmath.sqrt(2)) / 2,
    "silu": lambda z: z / (1 + mpmath.exp(-z)),
}


def through_one_unit(activation, z, out):
    """Activations of z, and their derivatives, as two plain SGD steps write them into the weights.

    One row of X = 1, hidden weights z, and a loss whose gradient is 1: the output weights fall by the activations, the
    hidden intercepts by the derivatives times the output weights.
    """
    n, dtype = len(z), z.dtype

    def unit_gradient(logits, y, v, mass, scale):
        logits[...] = 1
        return 0.0

    params = np.concatenate([z, np.full(n, out), np.zeros(n + 1)]).astype(dtype)
    step = _step.Step(
        [1, n, 1], activation, params, [np.zeros_like(params)], np.ones((1, 1), dtype), np.zeros((1, 1), dtype), None,
        1, False, 0.0, None, unit_gradient, "sgd", 0.0, False, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0, 0, 1,
    )  # fmt: skip
    step.run(np.zeros(1, np.intp), 0, 1.0, 1.0)
    return out - params[n : 2 * n], -params[2 * n : 3 * n]


@pytest.mark.parametrize("activation", EXACT)
def test_activations_are_exact_to_a_few_ulp(activation, dtype):
    rng = np.random.default_rng(0)
    z = np.concatenate(
        [rng.uniform(-8, 8, 150), rng.uniform(-0.7, 0.7, 100), 10.0 ** -rng.uniform(0, 6, 30), [-15, 30]]
    )
    z = z.astype(dtype)
    eps = np.finfo(dtype).eps
    exact = EXACT[activation]
    with mpmath.workdps(40):
        value = np.array([float(exact(mpmath.mpf(float(x)))) for x in z])
        slope = np.array([float(mpmath.diff(exact, mpmath.mpf(float(x)))) for x in z])
    got, _ = through_one_unit(activation, z, 0.0)
    _, derivative = through_one_unit(activation, z, 1.0)
    if activation == "relu":
        np.testing.assert_array_equal(got, value)
    # e^(-z^2/2) has the rounding of its exponent in it: |z|^2 / 2 ulp
    np.testing.assert_allclose(got, value, rtol=(10 + 130 * (activation == "gelu")) * eps, atol=1e-40)
    np.testing.assert_allclose(derivative, slope, rtol=40 * eps, atol=8 * eps)


def test_activations_pass_nan_on(dtype):
    z = np.array([np.nan, 1.0], dtype)
    for activation in ("identity", *EXACT):
        got, _ = through_one_unit(activation, z, 0.0)
        assert np.isnan(got[0]), activation
        assert np.isfinite(got[1]), activation


# -------------------------------------------------------------------------------------------------- the rest


def test_dropout_stream_is_splitmix():
    # the first outputs of the generator's published test, seed 1234567
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    for rate in (0.2, 0.35, 0.6):
        kept = Dropout(rate, 1234567).mask((1, 3), "float64")[0]
        np.testing.assert_allclose(kept, [(k / 2**64 >= rate) / (1 - rate) for k in known])
    whole, parts = Dropout(0.5, 3), Dropout(0.5, 3)
    want = whole.mask((4, 6), "float32")
    np.testing.assert_array_equal(want, np.vstack([parts.mask((1, 6), "float32") for _ in range(4)]))


SCRIPT = """
import sys
import numpy as np
import fastxent as fx
from sklearn.datasets import load_digits
assert fx._backend.describe()["cpu"]["instruction_set"] == sys.argv[1]
X, y = load_digits(return_X_y=True)
X = X[:200] / 16
fits = 0
for dtype, tolerance in (("float64", 1e-12), ("float32", 1e-4)):
    for activation in ("relu", "tanh", "gelu"):
        a, b = (fx.MLPClassifier((70, 33), activation=activation, batch_size=37, max_iter=2, random_state=0, backend=k,
                                 tol=0, dropout=0.2).fit(X.astype(dtype), y[:200]) for k in ("numpy", "cpu"))
        for p, q in zip(a.coefs_, b.coefs_):
            assert abs(p - q).max() <= tolerance * abs(p).max(), (dtype, activation)
        fits += 1
print(fits, "fits agree")
"""


@pytest.mark.parametrize("isa", fx._backend.describe()["cpu"].get("instruction_sets", []))
def test_every_instruction_set(isa):
    assert printed(SCRIPT, isa, timeout=300, FASTXENT_ISA=isa, PYTHONWARNINGS="ignore") == "6 fits agree"


INTERRUPTED = """
import signal, types, warnings
import numpy as np
from fastxent.mlp import MLPClassifier, _training
warnings.simplefilter("ignore")
rng = np.random.default_rng(0)
X, y = rng.normal(size=(60_000, 64)).astype(np.float32), rng.integers(0, 10, 60_000)
model = MLPClassifier((256,), batch_size=64, max_iter=1000, tol=0, random_state=0)
sent = []
def send(*_):
    sent.append(1)
    raise KeyboardInterrupt
def started(*args, **options):
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    return make(*args, **options)
make, _training._step = _training._step.Step, types.SimpleNamespace(Step=started)
signal.signal(signal.SIGALRM, send)
model.fit(X, y)
print(len(sent), "signal,", np.isfinite(model.coefs_[0]).sum(), "finite weights")
"""


def test_interrupt_is_answered_between_steps():
    """The signal comes half a second after training has begun, within an epoch; the model keeps whole steps."""
    assert printed(INTERRUPTED) == f"1 signal, {64 * 256} finite weights"


def test_run_stops_when_time_is_up_and_goes_on():
    """However a fit is cut into calls, it makes the same steps."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(500, 30)), rng.integers(0, 4, 500).astype(np.intp)

    def train(seconds):
        params = np.random.default_rng(1).normal(size=30 * 20 + 20 * 4 + 24) * 0.1
        step = _step.Step(
            [30, 20, 4], "tanh", params, [np.zeros_like(params), np.zeros_like(params)], X, y, None,
            32, True, 0.0, None, None, "adam", 0.0, False, 0.9, 0.999, 1e-8, 1e-3, 0.0, 0.3, 7, 0, 0, 2,
        )  # fmt: skip
        start, calls, steps, total = 0, 0, 0, 0.0
        order = rng.permutation(500) if not orders else orders[0]
        orders.append(order)
        while start < 500:
            made, start, loss, _, _ = step.run(order, start, 0.01, seconds)
            calls, steps, total = calls + 1, steps + made, total + loss
        assert steps == step.t == 16
        assert step.drawn == 500 * 20
        return params, calls, total

    orders = []
    whole, one, total = train(60.0)
    parts, many, again = train(0.0)
    assert (one, many) == (1, 16)
    np.testing.assert_array_equal(whole, parts)
    assert total == pytest.approx(again, rel=1e-14)
