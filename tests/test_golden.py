"""Golden values of the softmax, sigmoid and binary families, and the oracle held against them.

Each value comes with the mpmath expression that gives it; ``test_recipes_give_the_values`` evaluates every
one.
"""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import reference
from numpy.testing import assert_allclose
from reference import mp

import fastxent as fx

# (name, logits, label, loss in nat, recipe); recipes run with 60 digits, so the values are correctly rounded.
SOFTMAX = [
    ("probabilities .8 .2", "[log(mpf(0.8)), log(mpf(0.2))]", 0, 0.2231435513142097, "-log(mpf(0.8))"),
    ("probabilities .9 .1", "[log(mpf(0.9)), log(mpf(0.1))]", 0, 0.10536051565782628, "-log(mpf(0.9))"),
    ("margin 20", "[20, 0]", 0, 2.061153620314381e-09, "log1p(exp(-20))"),
    ("margin 40", "[40, 0]", 0, 4.248354255291589e-18, "log1p(exp(-40))"),
    ("margin 100", "[100, 0]", 0, 3.720075976020836e-44, "log1p(exp(-100))"),
    ("margin 100, the other class", "[100, 0]", 1, 100.0, "100 + log1p(exp(-100))"),
    ("equal", "[0, 0]", 0, 0.6931471805599453, "log(2)"),
]
SIGMOID = [
    ("zero", 0.0, 1, 0.6931471805599453, -0.5, "log(2)"),
    ("zero", 0.0, 0, 0.6931471805599453, 0.5, "log(2)"),
    ("confident", 40.0, 1, 4.248354255291589e-18, -4.248354255291589e-18, "log1p(exp(-40))"),
    ("confident", -100.0, 0, 3.720075976020836e-44, 3.720075976020836e-44, "log1p(exp(-100))"),
    ("wrong", -40.0, 1, 40.0, -1.0, "40 + log1p(exp(-40))"),
]
NAMES = {name: getattr(mp, name) for name in ("log", "log1p", "exp", "mpf")}


def evaluate(recipe):
    """Value of a recipe in mpmath."""
    return eval(recipe, {"__builtins__": {}}, NAMES)


@pytest.mark.parametrize(
    ("value", "recipe"), [(c[-2], c[-1]) for c in SOFTMAX] + [(c[3], c[5]) for c in SIGMOID]
)
def test_recipes_give_the_values(value, recipe):
    assert float(evaluate(recipe)) == value


@pytest.mark.parametrize(("name", "logits", "label", "value", "recipe"), SOFTMAX)
def test_softmax_value(backend, name, logits, label, value, recipe):
    z = np.array([float(x) for x in evaluate(logits)])
    truth = evaluate(recipe)
    # Logarithms rounded to float64 move the loss of the first two rows by their own rounding.
    allowed = 4 if "margin" in name or name == "equal" else 8
    loss = fx.softmax_cross_entropy(z, label, backend=backend)
    assert isinstance(loss, float)
    assert reference.worst(np.float64(loss), np.asarray(truth)) <= allowed, (loss, value)
    fused, grad = fx.softmax_cross_entropy_with_grad(z, label, backend=backend)
    assert fused == loss
    assert grad.shape == (2,)
    assert grad.dtype == np.float64
    e = [mp.exp(mp.mpf(x)) for x in z]
    other = e[1 - label] / (e[0] + e[1])
    expected = np.array([other, other], object)
    expected[label] = -other
    assert reference.worst(grad, expected) <= 6


@pytest.mark.parametrize(
    ("p", "nat", "bit"),
    [
        (0.8, 0.2231435513142097, 0.3219280948873623),  # -log(mpf(0.8)) / log(2)
        (0.9, 0.10536051565782628, 0.15200309344504995),  # -log(mpf(0.9)) / log(2)
    ],
)
def test_two_class_value_in_bits_and_its_gradient(backend, p, nat, bit):
    z = np.log([p, 1 - p])
    assert_allclose(fx.softmax_cross_entropy(z, 0, backend=backend), nat, rtol=1e-15)
    assert_allclose(fx.softmax_cross_entropy(z, 0, base=2, backend=backend), bit, rtol=1e-15)
    _, grad = fx.softmax_cross_entropy_with_grad(z, 0, backend=backend)
    assert_allclose(grad, [-(1 - p), 1 - p], rtol=1e-15)


def test_gradient_at_margin_40(backend):
    """Both entries are exp(-40) / (1 + exp(-40)): p_y - 1 computed by subtraction would be 0."""
    _, grad = fx.softmax_cross_entropy_with_grad([40.0, 0.0], 0, backend=backend)
    truth = mp.exp(-40) / (1 + mp.exp(-40))
    assert float(truth) == 4.248354255291589e-18
    assert reference.worst(grad, np.array([-truth, truth], object)) <= 6


def test_equal_huge_float32_logits(backend):
    """log(2) at [1e8, 1e8]; lse - z_y in float32 answers 0."""
    loss = fx.softmax_cross_entropy(np.full(2, 1e8, np.float32), 0, reduction="none", backend=backend)
    assert loss.dtype == np.float32
    assert loss == np.float32(0.6931472)


@pytest.mark.parametrize(("name", "logit", "target", "value", "slope", "recipe"), SIGMOID)
def test_sigmoid_value(backend, name, logit, target, value, slope, recipe):
    loss, grad = fx.sigmoid_cross_entropy_with_grad(logit, target, backend=backend)
    assert reference.worst(np.float64(loss), np.asarray(evaluate(recipe))) <= 4, (loss, value)
    e = mp.exp(-abs(mp.mpf(logit)))
    up = 1 / (1 + e) if logit >= 0 else e / (1 + e)
    down = e / (1 + e) if logit >= 0 else 1 / (1 + e)
    truth = -down if target else up
    assert float(truth) == slope
    assert reference.worst(np.asarray(grad), np.asarray(truth)) <= 4


def test_discriminator_at_equilibrium(backend):
    """sp(-0) + sp(0) = 2 log 2: a real and a fake logit of 0."""
    loss = fx.sigmoid_cross_entropy([0.0, 0.0], [1, 0], reduction="sum", backend=backend)
    assert_allclose(loss, 1.3862943611198906, rtol=1e-15)


@pytest.mark.parametrize(
    ("p", "y", "value", "slope"),
    [
        (0.5, 1.0, 0.6931471805599453, -2.0),  # -log(1/2), -1/p
        (0.5, 0.0, 0.6931471805599453, 2.0),  # -log(1/2), 1/(1-p)
        (0.2, 1.0, 1.6094379124341003, -5.0),  # -log(mpf(0.2))
        (1e-300, 1.0, 690.7755278982137, -1e300),  # 300 log(10): a clamp at 1e-7 answers 16.1
        (1e-300, 0.0, 1e-300, 1.0),  # -log1p(-1e-300): log(1 - p) answers 0
    ],
)
def test_binary_value(backend, p, y, value, slope):
    loss, grad = fx.binary_cross_entropy_with_grad(p, y, backend=backend)
    assert_allclose(loss, value, rtol=1e-15)
    assert_allclose(grad, slope, rtol=1e-15)


# The oracle itself ----------------------------------------------------------------------------------------


def textbook_softmax(z, t, *, v, w, a, smoothing, zeta, temperature, bias):
    """v [Q lse - sum q u + zeta lse^2] as LOSSES writes it, with 60 digits and nothing rearranged."""
    n = len(z)
    u = [x / temperature + b for x, b in zip(z, bias, strict=True)]
    lse = mp.log(mp.fsum([mp.exp(x) for x in u]))
    if smoothing == "uniform":
        t = [(1 - a) * x + a / n for x in t]
    else:
        t = [(1 - a) * x + (a / (n - 1)) * (1 - x) for x in t]
    q = [x * y for x, y in zip(w, t, strict=True)]
    return v * (mp.fsum(q) * lse - mp.fsum([x * y for x, y in zip(q, u, strict=True)]) + zeta * lse**2)


@pytest.mark.parametrize(
    ("kind", "smoothing"), [("label", "uniform"), ("label", "exclude_target"), ("soft", "uniform")]
)
def test_oracle_softmax_is_the_textbook_loss_and_its_derivatives(kind, smoothing):
    """Value, gradient, Hessian diagonal and HVP against numerical differentiation of the plain formula."""
    rng = np.random.default_rng(1)
    z = rng.normal(size=4) * 2
    label = 2
    target = label if kind == "label" else rng.dirichlet(np.ones(4)) * 1.3
    t = (
        [mp.mpf(float(k == label)) for k in range(4)]
        if kind == "label"
        else [mp.mpf(float(x)) for x in target]
    )
    w, bias, x = rng.uniform(0.5, 2, 4), rng.normal(size=4), rng.normal(size=4)
    options = dict(label_smoothing=0.125, z_loss=0.25, temperature=1.5, class_weight=w, logit_bias=bias)
    truth = reference.softmax(
        z,
        target,
        sample_weight=1.75,
        smoothing=smoothing,
        reduction="sum",
        direction=x,
        exact=True,
        **options,
    )
    numbers = dict(
        v=mp.mpf("1.75"),
        w=[mp.mpf(float(a)) for a in w],
        a=mp.mpf("0.125"),
        smoothing=smoothing,
        zeta=mp.mpf("0.25"),
        temperature=mp.mpf("1.5"),
        bias=[mp.mpf(float(a)) for a in bias],
    )
    z_exact = [mp.mpf(float(a)) for a in z]

    def value(*point):
        return textbook_softmax(point, t, **numbers)

    def unit(k, times=1):
        return tuple(times * (j == k) for j in range(4))

    assert abs(truth.loss - value(*z_exact)) < mp.mpf(10) ** -50
    second = [[mp.diff(value, z_exact, tuple(np.add(unit(j), unit(k)))) for k in range(4)] for j in range(4)]
    for k in range(4):
        assert abs(truth.grad[k] - mp.diff(value, z_exact, unit(k))) < mp.mpf(10) ** -25
        assert abs(truth.hess[k] - second[k][k]) < mp.mpf(10) ** -15
        row = mp.fsum([second[k][j] * mp.mpf(float(x[j])) for j in range(4)])
        assert abs(truth.hvp[k] - row) < mp.mpf(10) ** -15


@pytest.mark.parametrize("target", [0.0, 0.25, 1.0])
def test_oracle_sigmoid_and_binary_are_the_textbook_losses_and_their_derivatives(target):
    y = mp.mpf(target)
    smooth = mp.mpf("0.9") * y + mp.mpf("0.05")

    def sp(x):
        return mp.log(1 + mp.exp(x))

    def on_logits(z):
        return mp.mpf("1.5") * (mp.mpf(3) * smooth * sp(-z) + (1 - smooth) * sp(z))

    def on_probabilities(p):
        return -mp.mpf("1.5") * (y * mp.log(p) + (1 - y) * mp.log(1 - p))

    for z in (-3.5, 0.0, 2.25):
        # 0.1 is not a float64: the oracle sees its rounding, 1e-17 away from the textbook's.
        got = reference.sigmoid(
            z, target, sample_weight=1.5, pos_weight=3, label_smoothing=0.1, reduction="sum", exact=True
        )
        point = mp.mpf(z)
        assert abs(got.loss - on_logits(point)) < 1e-15
        assert abs(got.grad[()] - mp.diff(on_logits, point)) < 1e-15
        assert abs(got.hess[()] - mp.diff(on_logits, point, 2)) < 1e-15
    for p in (0.125, 0.875):
        got = reference.binary(p, target, sample_weight=1.5, reduction="sum", exact=True)
        assert abs(got.loss - on_probabilities(mp.mpf(p))) < mp.mpf(10) ** -50
        assert abs(got.grad[()] - mp.diff(on_probabilities, mp.mpf(p))) < mp.mpf(10) ** -25


def test_oracle_arithmetics_agree():
    """Python floats follow mpmath to 1e-12 relative to the gradient's terms, over every option at once."""
    rng = np.random.default_rng(2)
    z = rng.normal(size=(6, 5)) * np.logspace(-1, 2, 6)[:, None]
    y = rng.integers(0, 5, 6)
    y[1] = -100
    options = dict(
        sample_weight=rng.uniform(0, 2, 6),
        class_weight=rng.uniform(0.5, 2, 5),
        label_smoothing=0.1,
        z_loss=1e-3,
        temperature=1.7,
        logit_bias=rng.normal(size=5),
        base=2,
        direction=rng.normal(size=(6, 5)),
    )
    for reduction in ("none", "sum", "mean", "mean_rows", "mean_all"):
        plain = reference.softmax(z, y, reduction=reduction, **options)
        exact = reference.softmax(z, y, reduction=reduction, exact=True, **options)
        for name in ("loss", "losses", "lse", "grad", "hess", "hvp", "scale"):
            assert_allclose(
                np.asarray(getattr(plain, name), float),
                np.asarray(getattr(exact, name)).astype(float),
                rtol=1e-12,
                atol=1e-13,
            )


def test_oracle_at_the_limits():
    """Rows with infinities and NaN, as LOSSES section 1 states them."""
    inf = np.inf
    z = [[1, -inf], [1, -inf], [inf, 1], [inf, 1], [inf, inf], [-inf, -inf], [np.nan, 0]]
    truth = reference.softmax(z, [0, 1, 0, 1, 0, 0, 0], reduction="sum")
    assert_allclose(truth.losses, [0, inf, 0, inf, np.nan, np.nan, np.nan])
    assert_allclose(truth.grad[:4], [[0, 0], [1, -1], [0, 0], [1, -1]])
    assert np.isnan(truth.grad[4:]).all()


def test_ulps_measures_what_it_says():
    one = np.asarray(mp.mpf(1))
    assert reference.worst(np.float64(1 + 3 * 2.0**-52), one) == 3
    assert reference.worst(np.float32(1 - 2.0**-23), one) == 1
    assert reference.worst(np.float64(0), np.asarray(mp.mpf(2) ** -1074)) == 1
    assert reference.worst(np.float64(np.inf), one) == np.inf
    assert reference.worst(np.float64(np.nan), np.asarray(mp.nan)) == 0
    assert reference.worst(np.float64(2.0**-52), np.asarray(mp.mpf(0)), scale=one) == 1
    assert mpmath.mp.dps == 15, "the oracle keeps its precision to itself"
