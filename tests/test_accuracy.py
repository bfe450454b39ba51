"""How many ulp: the promises of the numerical contract, held against mpmath over random rows.

For integer labels without smoothing and z-loss: at most 4 ulp for the loss, 4 (float32) or 6 (float64) for
every gradient entry, over margins of 0 to 700, offsets to 1e4 and 1 to 40 classes; 8 ulp to 131,072
classes. Where the gradient is a difference (smoothing, soft targets, z-loss): 4 ulp of max(|c p_k|, |q_k|).
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import reference
from reference import mp

import fastxent as fx

GRADIENT = {"float32": 4, "float64": 6}


def rows(dtype, n_rows, n_classes, seed):
    """Rows of kinds that have been wrong somewhere: wide margins, huge offsets, ties, label second."""
    rng = np.random.default_rng(seed)
    z = np.empty((n_rows, n_classes))
    for i in range(n_rows):
        offset = rng.choice([0, 0, 500, -1e4, 1e4, -3, 30])
        if i % 5 == 0:  # one confident class, the others together at a margin of 0 to 700
            z[i] = offset
            z[i, 0] += rng.uniform(0, 700)
            z[i, 1:] += rng.normal(size=n_classes - 1) * rng.choice([0, 0.01, 1])
        elif i % 7 == 0:  # ties of the maximum
            z[i] = rng.choice([offset, offset + 1.25], n_classes)
        else:
            z[i] = rng.normal(size=n_classes) * 10 ** rng.uniform(-1, 2) + offset
    z = z.astype(dtype)
    order = np.argsort(z, axis=1, kind="stable")
    y = np.where(np.arange(n_rows) % 2 == 0, order[:, -1], rng.integers(0, n_classes, n_rows))
    y = np.where(np.arange(n_rows) % 3 == 0, order[:, max(-2, -n_classes)], y)
    return z, y


@functools.cache
def plain_truth(dtype, n_rows, n_classes):
    z, y = rows(dtype, n_rows, n_classes, seed=n_classes)
    return z, y, reference.softmax(z, y, reduction="sum", exact=True)


# (rows, classes): few classes, both sides of 16 and 32 lanes, the 64 where few classes end, one row block
# and more.
PLAIN = [(60, 1), (160, 2), (120, 3), (90, 5), (60, 10), (40, 17), (40, 26), (40, 40)]
WIDER = [(24, 64), (16, 65), (16, 100), (4, 1003)]


@pytest.mark.parametrize(("n_rows", "n_classes"), PLAIN + WIDER)
def test_softmax(backend, dtype, n_rows, n_classes):
    z, y, truth = plain_truth(dtype, n_rows, n_classes)
    limit = GRADIENT[dtype] if n_classes <= 40 else 8
    losses, grad = fx.softmax_cross_entropy_with_grad(z, y, reduction="none", backend=backend)
    assert reference.worst(losses, truth.losses) <= (4 if n_classes <= 40 else 8)
    assert reference.worst(grad, truth.grad) <= limit
    back = fx.softmax_cross_entropy_backward(1.0, z, y, reduction="sum", backend=backend)
    assert reference.worst(back, truth.grad) <= limit


@pytest.mark.parametrize(("n_rows", "n_classes"), [(60, 2), (40, 10), (20, 40)])
def test_softmax_without_confident_shortcut(backend, dtype, n_rows, n_classes):
    """The classes on the first axis (a strided row), and every row's label its maximum: the tail itself."""
    z, _ = rows(dtype, n_rows, n_classes, seed=100 + n_classes)
    y = z.argmax(1)
    truth = reference.softmax(z, y, reduction="sum", exact=True)
    strided = np.ascontiguousarray(z.T)
    losses, grad = fx.softmax_cross_entropy_with_grad(strided, y, axis=0, reduction="none", backend=backend)
    assert reference.worst(losses, truth.losses) <= 4
    assert reference.worst(grad.T, truth.grad) <= GRADIENT[dtype]


@pytest.mark.parametrize("n_classes", [2, 3, 7, 10, 26, 34, 40, 56, 70, 100, 200])
def test_equal_logits(backend, dtype, n_classes):
    """Equal exponentials, whose sum one after another would lose digits all in one direction."""
    values = np.random.default_rng(0).uniform(-250, 250, 60).astype(dtype)
    z = np.tile(values[:, None], n_classes)
    y = np.arange(60) % n_classes
    truth = np.full(z.shape, 1 / mp.mpf(n_classes), object)
    truth[np.arange(60), y] -= 1
    few = n_classes <= 40
    for axis, given in ((1, z), (0, np.ascontiguousarray(z.T))):
        losses, grad = fx.softmax_cross_entropy_with_grad(
            given, y, axis=axis, reduction="none", backend=backend
        )
        assert reference.worst(losses, np.full(60, mp.log(n_classes), object)) <= (4 if few else 8)
        assert reference.worst(grad if axis == 1 else grad.T, truth) <= (GRADIENT[dtype] if few else 8)


@pytest.mark.parametrize("n_classes", [1000, 4000, 32768])
def test_many_soft_targets(backend, n_classes):
    """float32 logits that nearly agree, where roundings of long sums add up; the truth is the same in float64."""
    rng = np.random.default_rng(n_classes)
    n = 80_000 // n_classes
    z = (30 + rng.normal(0, 0.2, (n, n_classes))).astype(np.float32)
    t = rng.dirichlet(np.ones(n_classes), n).astype(np.float32)
    losses, grad = fx.softmax_cross_entropy_with_grad(z, t, reduction="none", backend=backend)
    u, q = z.astype(np.float64), t.astype(np.float64)
    e = np.exp(u - 30)
    p = e / e.sum(axis=1, keepdims=True) * q.sum(axis=1, keepdims=True)
    truth = np.sum(q * (30 + np.log(e.sum(axis=1, keepdims=True)) - u), axis=1)
    assert (np.abs(losses - truth) / np.spacing(truth.astype(np.float32))).max() <= 4
    limit = 5 if backend == "numpy" else 4  # NumPy adds up float32
    assert (np.abs(grad - (p - q)) / np.spacing(np.maximum(p, q).astype(np.float32))).max() <= limit


@functools.cache
def wide_truth(dtype, n_classes):
    """One row of few distinct values (so that few exponentials need mpmath), in random order."""
    rng = np.random.default_rng(0)
    values = (rng.normal(size=1500) * 2 + 100).astype(dtype)
    z = rng.choice(values, n_classes)
    y = 77
    levels, at, counts = np.unique(z, return_inverse=True, return_counts=True)
    u = [mp.mpf(float(x)) for x in levels]
    e = [mp.exp(x - u[-1]) for x in u]
    total = mp.fsum([int(n) * x for n, x in zip(counts, e, strict=True)])
    p = np.array([x / total for x in e], object)
    loss = mp.log1p(total - 1) + (u[-1] - u[at[y]])
    return z, y, loss, p, at, (e[at[y]] - total) / total


@pytest.mark.parametrize("n_classes", [32768, 131072])
def test_wide_softmax(backend, dtype, n_classes):
    z, y, loss, p, at, slope = wide_truth(dtype, n_classes)
    got, grad = fx.softmax_cross_entropy_with_grad(z[None], [y], reduction="none", backend=backend)
    assert reference.worst(got, np.array([loss], object)) <= 8
    assert reference.worst(grad[0, y], slope) <= 8
    for k in range(len(p)):
        entries = grad[0, (at == k) & (np.arange(n_classes) != y)]
        if entries.size:
            assert (entries == entries[0]).all(), "equal logits of one row have equal gradients"
            assert reference.worst(entries[0], p[k]) <= 8


def smoothing_cases(dtype):
    rng = np.random.default_rng(12)
    z, y = rows(dtype, 40, 9, seed=3)
    soft = rng.dirichlet(np.ones(9) * 0.5, 40).astype(dtype)
    near = (rng.normal(size=(40, 9)) * 3).astype(dtype)
    return {
        "uniform": (z, y, dict(label_smoothing=0.1)),
        "exclude_target": (z, y, dict(label_smoothing=0.1, smoothing="exclude_target")),
        "soft": (z, soft, {}),
        "soft, smoothed": (z, soft, dict(label_smoothing=0.25)),
        # lse > 0, so that c = 1 + 2 zeta lse is no difference itself
        "z-loss": (near + np.asarray(10, dtype), y, dict(z_loss=1e-2)),
        "weighted": (
            z,
            y,
            dict(
                class_weight=rng.uniform(0.5, 2, 9).astype(dtype),
                sample_weight=rng.uniform(0, 2, 40).astype(dtype),
            ),
        ),
    }


@functools.cache
def smoothing_truth(dtype, name):
    z, y, options = smoothing_cases(dtype)[name]
    return reference.softmax(z, y, reduction="sum", exact=True, **options)


@pytest.mark.parametrize(
    "name", ["uniform", "exclude_target", "soft", "soft, smoothed", "z-loss", "weighted"]
)
def test_gradient_that_is_a_difference(backend, dtype, name):
    """4 ulp of max(|c p_k|, |q_k|); the loss, a sum of non-negative terms, stays within 8 ulp of itself."""
    z, y, options = smoothing_cases(dtype)[name]
    truth = smoothing_truth(dtype, name)
    losses, grad = fx.softmax_cross_entropy_with_grad(z, y, reduction="none", backend=backend, **options)
    assert reference.worst(losses, truth.losses) <= 8
    limit = 4 if name != "weighted" else GRADIENT[dtype] + 2  # two weights are two more roundings
    assert reference.worst(grad, truth.grad, truth.scale) <= limit


@functools.cache
def sigmoid_truth(dtype):
    rng = np.random.default_rng(0)
    top = 85.0 if dtype == "float32" else 700.0
    z = np.concatenate([np.geomspace(1e-8, top, 120), rng.normal(size=40), [0.0, -0.0]])
    z = np.concatenate([z, -z]).astype(dtype)
    z = np.stack([z, z])
    y = np.stack([np.zeros(z.shape[1], int), np.ones(z.shape[1], int)])
    return z, y, reference.sigmoid(z, y, reduction="sum", exact=True)


def test_sigmoid(backend, dtype):
    """Targets of 0 and 1: loss and gradient within 4 ulp from 1e-8 to the end of the normal range."""
    z, y, truth = sigmoid_truth(dtype)
    losses, grad = fx.sigmoid_cross_entropy_with_grad(z, y, reduction="none", backend=backend)
    assert reference.worst(losses, truth.losses) <= 4
    assert reference.worst(grad, truth.grad) <= 4


@pytest.mark.parametrize("family", ["softmax", "sigmoid"])
def test_denormal_results(backend, dtype, family):
    """Losses and gradients below the smallest normal number are right to 4 of the smallest denormals."""
    margins = np.linspace(87, 103, 33) if dtype == "float32" else np.linspace(708, 745, 38)
    margins = margins.astype(dtype)
    if family == "softmax":
        z = np.stack([margins, np.zeros_like(margins)], axis=1)
        y = np.zeros(len(z), int)
        truth = reference.softmax(z, y, reduction="sum", exact=True)
        losses, grad = fx.softmax_cross_entropy_with_grad(z, y, reduction="none", backend=backend)
    else:
        y = np.ones(len(margins))
        truth = reference.sigmoid(margins, y, reduction="sum", exact=True)
        losses, grad = fx.sigmoid_cross_entropy_with_grad(margins, y, reduction="none", backend=backend)
    assert 0 < abs(losses).min() < np.finfo(dtype).tiny
    assert reference.worst(losses, truth.losses) <= 4
    assert reference.worst(grad, truth.grad) <= 4


def test_mean_adds_no_more_than_its_scale(backend, dtype):
    """The factor 1 / D is one rounding and its product another: one ulp on top of the sum's."""
    z, y, _ = plain_truth(dtype, 60, 10)
    truth = reference.softmax(z, y, exact=True)
    loss, grad = fx.softmax_cross_entropy_with_grad(z, y, backend=backend)
    assert reference.worst(loss, truth.loss, dtype=dtype) <= 4
    assert reference.worst(grad, truth.grad) <= GRADIENT[dtype] + 1


def test_lse(backend, dtype):
    """lse = m + log1p(rest): one rounding of a sum whose terms are exact to a few ulp."""
    z, y, truth = plain_truth(dtype, 60, 10)
    _, lse = fx.softmax_cross_entropy_forward(z, y, backend=backend)
    assert reference.worst(lse, truth.lse, truth.lse_scale) <= 4
