"""GAN losses against the formulas in mpmath, their groups and weights, and their derivatives."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose
from reference import mp

import fastxent as fx

Z = np.array([-40.0, -3.0, -0.5, 0.0, 0.25, 2.0, 40.0])
Y = np.array([1, 0, 1, 1, 0, 0, 1])


def softplus(x):
    return mp.log1p(mp.exp(x))


def sigma(x):
    return 1 / (1 + mp.exp(-x))


def truth(z, y, kind, real_target=1.0):
    """(loss, gradient, second derivative) of each element."""
    z, a = mp.mpf(float(z)), mp.mpf(real_target)
    bend = sigma(z) * sigma(-z)
    if kind == "discriminator":
        if y:
            return a * softplus(-z) + (1 - a) * softplus(z), (1 - a) * sigma(z) - a * sigma(-z), bend
        return softplus(z), sigma(z), bend
    if y:
        return 0, 0, 0
    if kind == "non_saturating":
        return softplus(-z), -sigma(-z), bend
    return -softplus(z), -sigma(z), -bend


def loss_of(kind, real_target=1.0):
    return fx.GANDiscriminatorLoss(real_target) if kind == "discriminator" else fx.GANGeneratorLoss(kind)


KINDS = ("discriminator", "non_saturating", "minimax")


@pytest.mark.parametrize("kind", KINDS)
def test_elements(kind, backend, dtype):
    loss = loss_of(kind)
    z = Z.astype(dtype)
    rtol = 4 * np.finfo(dtype).eps
    f, g, h = (
        np.array([float(v) for v in column])
        for column in zip(*map(truth, z, Y, [kind] * len(z)), strict=True)
    )
    assert_allclose(loss.loss(z, Y, reduction="none", backend=backend), f, rtol=rtol)
    value, grad = loss.loss_grad(z, Y, reduction="none", backend=backend)
    assert value.dtype == grad.dtype == dtype
    assert_allclose(value, f, rtol=rtol)
    assert_allclose(grad, g, rtol=rtol)
    grad, hess = loss.grad_hess(z, Y, reduction="sum", backend=backend)
    assert_allclose(grad, g, rtol=rtol)
    assert_allclose(hess, h, rtol=2 * rtol)
    assert_allclose(
        loss.hvp(z, Y, 2 * np.ones_like(z), reduction="sum", backend=backend), 2 * hess, rtol=rtol
    )


@pytest.mark.parametrize("real_target", [0.9, 0.5, 0.0])
def test_smoothed_real_target(real_target, backend):
    loss = fx.GANDiscriminatorLoss(real_target)
    f, g, _ = (
        np.array([float(v) for v in c])
        for c in zip(
            *(truth(z, y, "discriminator", real_target) for z, y in zip(Z, Y, strict=True)), strict=True
        )
    )
    value, grad = loss.loss_grad(Z, Y, reduction="none", backend=backend)
    assert_allclose(value, f, rtol=1e-14)
    assert_allclose(grad, g, rtol=1e-14, atol=1e-16)


def test_equilibrium(backend):
    """Where the discriminator knows nothing its loss is 2 log 2 (to 4 ulp), however many samples either group has."""
    for n_real, n_fake in ((1, 1), (3, 5), (7, 2)):
        y = np.repeat([1, 0], [n_real, n_fake])
        loss = fx.GANDiscriminatorLoss().loss(np.zeros(n_real + n_fake), y, backend=backend)
        assert loss == pytest.approx(1.3862943611198906, rel=1e-15)
    assert fx.GANGeneratorLoss().loss(np.zeros(3), None, backend=backend) == pytest.approx(
        0.6931471805599453, rel=1e-15
    )


def by_hand(values, weight, reduction, kind):
    real, fake = Y == 1, Y == 0
    weight = np.ones(len(Y)) if weight is None else weight
    if reduction == "sum":
        return (weight * values).sum()
    if reduction == "mean_all":
        return (weight * values).sum() / len(Y)
    total = 0.0
    for group in (real, fake) if kind == "discriminator" else (fake,):
        mass = weight[group].sum() if reduction == "mean" else group.sum()
        total += (weight * values)[group].sum() / mass
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "mean_rows", "mean_all"])
@pytest.mark.parametrize("weighted", [False, True])
def test_reductions(kind, reduction, weighted, backend):
    loss = loss_of(kind)
    weight = np.array([1.0, 2.0, 0.0, 3.0, 0.5, 1.0, 2.0]) if weighted else None
    values, slopes = (
        np.array([float(v) for v in c]) for c in list(zip(*map(truth, Z, Y, [kind] * 7), strict=True))[:2]
    )
    actual, grad = loss.loss_grad(Z, Y, weight, reduction, backend=backend)
    assert actual == pytest.approx(by_hand(values, weight, reduction, kind), rel=1e-14)
    for at in range(7):
        one = np.zeros(7)
        one[at] = slopes[at]
        assert grad[at] == pytest.approx(by_hand(one, weight, reduction, kind), rel=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_by_differences(kind, backend):
    loss, z = loss_of(kind), np.array([[-1.0, 0.3], [2.0, -0.7]])
    y = np.array([[1, 0], [0, 0]])
    grad, hess = loss.grad_hess(z, y, backend=backend)
    step = 1e-5
    for at in np.ndindex(z.shape):
        up, down = z.copy(), z.copy()
        up[at] += step
        down[at] -= step
        slope = (loss.loss(up, y, backend=backend) - loss.loss(down, y, backend=backend)) / (2 * step)
        assert slope == pytest.approx(grad[at], abs=1e-9)
        bend = (loss.loss_grad(up, y, backend=backend)[1] - loss.loss_grad(down, y, backend=backend)[1])[
            at
        ] / (2 * step)
        assert bend == pytest.approx(hess[at], abs=1e-9)


def test_minimax_saturates_where_the_other_does_not(backend):
    z = [-40.0]
    assert fx.GANGeneratorLoss("minimax").loss_grad(z, [0], backend=backend)[1][0] == pytest.approx(
        -4.248354255291589e-18
    )
    assert fx.GANGeneratorLoss().loss_grad(z, [0], backend=backend)[1][0] == -1.0


def test_a_group_that_is_empty(backend):
    loss = fx.GANDiscriminatorLoss()
    assert loss.loss([0.0, 0.0], [1, 1], backend=backend) == pytest.approx(0.6931471805599453)
    assert loss.loss([0.0, 0.0], [0, 0], backend=backend) == pytest.approx(0.6931471805599453)
    assert loss.loss(np.empty(0), np.empty(0), backend=backend) == 0
    value, grad = fx.GANGeneratorLoss().loss_grad([1.0, 2.0], [1, 1], backend=backend)
    assert value == 0
    assert grad.tolist() == [0, 0]


def test_labels_and_shapes(backend):
    loss = fx.GANDiscriminatorLoss()
    z = np.array([[0.5], [-1.0]])
    expected = loss.loss(z, [[1], [0]], backend=backend)
    for y in ([[True], [False]], [[1.0], [0.0]], np.array([[1], [0]], "uint8")):
        assert loss.loss(z, y, backend=backend) == expected
    with pytest.raises(ValueError, match="1 for real and 0 for generated elements, got 2 at"):
        loss.loss(z, [[2], [0]], backend=backend)
    with pytest.raises(ValueError, match="broadcasts to that of logits"):
        loss.loss(z, [1, 0, 1], backend=backend)
    with pytest.raises(TypeError, match="targets: expected an array-like, got None"):
        loss.loss(z, None, backend=backend)
    with pytest.raises(TypeError, match="1 for real"):
        loss.loss(z, [["a"], ["b"]], backend=backend)


def test_objects():
    loss = fx.GANDiscriminatorLoss(0.9)
    assert repr(loss) == "GANDiscriminatorLoss(real_target=0.9)"
    assert pickle.loads(pickle.dumps(loss)) == loss
    assert hash(loss) == hash(fx.GANDiscriminatorLoss(0.9))
    both = loss + 0.5 * fx.GANGeneratorLoss()
    expected = loss.loss(Z, Y) + 0.5 * fx.GANGeneratorLoss().loss(Z, Y)
    assert both.loss(Z, Y) == pytest.approx(expected, rel=1e-15)
    with pytest.raises(ValueError, match="real_target"):
        fx.GANDiscriminatorLoss(1.5)
    with pytest.raises(ValueError, match="kind"):
        fx.GANGeneratorLoss("wasserstein")
