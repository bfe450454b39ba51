"""Objectives and metrics of boosters for margins on a device, over memory that stands for one."""

from __future__ import annotations

import cuda_twin
import numpy as np
import pytest

import fastxent as fx
from fastxent import _device
from fastxent.boosting import lightgbm_metric, lightgbm_objective, xgboost_metric, xgboost_objective


class Data:
    """What the objectives ask of a DMatrix."""

    def __init__(self, labels, weight):
        self.labels, self.weight = labels, weight

    def get_label(self):
        return self.labels

    def get_weight(self):
        return np.empty(0) if self.weight is None else self.weight


LOSSES = {
    "softmax": fx.SoftmaxCrossEntropy(),
    "class weights": fx.SoftmaxCrossEntropy(class_weight=(1.0, 2.0, 0.5, 1.5)),
    "smoothed": fx.SoftmaxCrossEntropy(label_smoothing=0.1),
    "focal": fx.FocalLoss(gamma=2.0),
    "sigmoid": fx.SigmoidCrossEntropy(),
    "binary focal": fx.BinaryFocalLoss(gamma=2.0),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("library", [xgboost_objective, lightgbm_objective])
def test_derivatives_are_those_in_memory(put, name, weighted, library):
    """Labels and weights in memory, as a DMatrix has them, or on the device."""
    loss = LOSSES[name]
    rng = np.random.default_rng(0)
    z = rng.standard_normal((20, 4)).astype(np.float32)
    y = rng.integers(0, 2, (20, 4)) if loss.elementwise else rng.integers(0, 4, 20)
    y = y.astype(np.float32)
    w = rng.random(20).astype(np.float32) if weighted else None
    objective = library(loss)
    expected = objective(y, z, w)
    found = objective(put(z), Data(y, w)), objective(put(y), put(z), None if w is None else put(w))
    for pair in found:
        for ours, theirs in zip(pair, expected, strict=True):
            assert type(ours) is type(put(z))
            strides = _device.library_of(ours)[0].buffer(ours).strides
            assert strides == tuple(s // 4 for s in theirs.strides)
            ours = cuda_twin.get(ours)
            assert ours.dtype == np.float32
            np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-7)
    metric = {xgboost_objective: xgboost_metric, lightgbm_objective: lightgbm_metric}[library](loss)
    theirs, ours = metric(z, Data(y, w)), metric(put(z), Data(y, w))
    assert ours[0] == theirs[0]
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-6)


@pytest.mark.parametrize("name", ["softmax", "focal", "sigmoid"])
def test_one_margin_for_two_classes(put, name):
    loss = LOSSES[name]
    rng = np.random.default_rng(0)
    z, y, w = rng.standard_normal(20).astype(np.float32), rng.integers(0, 2, 20), rng.random(20)
    objective = xgboost_objective(loss)
    for ours, theirs in zip(objective(put(y), put(z), put(w)), objective(y, z, w), strict=True):
        np.testing.assert_allclose(cuda_twin.get(ours), theirs, rtol=2e-6, atol=1e-7)
    assert np.isclose(xgboost_metric(loss)(put(y), put(z)), xgboost_metric(loss)(y, z), rtol=1e-6)


def test_limits_and_negative_weights_go_to_the_losses(put):
    z = np.array([[0.0, np.inf], [1.0, 2.0]], np.float32)
    y, objective = np.array([0, 1]), xgboost_objective(fx.SoftmaxCrossEntropy())
    for z_, w in ((z, None), (z[1:], np.array([-1.0], np.float32))):
        y_ = y[-len(z_) :]
        given = put(y_), put(z_), None if w is None else put(w)
        for ours, theirs in zip(objective(*given), objective(y_, z_, w), strict=True):
            np.testing.assert_allclose(cuda_twin.get(ours), theirs)


@pytest.mark.parametrize("device", [False, True], ids=["in memory", "on the device"])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 4], "labels: expected whole numbers from 0 to 3, got"),
        ([0.5, 1], "labels: expected whole numbers from 0 to 3, got"),
        ([0, 1, 2], "labels: expected one per row"),
    ],
)
def test_labels_are_checked(put, labels, message, device):
    """With the words of the check in memory."""
    objective = xgboost_objective(fx.SoftmaxCrossEntropy())
    z, y = put(np.zeros((2, 4), np.float32)), np.array(labels)
    with pytest.raises(ValueError, match=message):
        objective(put(y) if device else y, z)


def test_xgboost_takes_what_comes_back(monkeypatch):
    """Margins of `inplace_predict` on the device, derivatives there, `Booster.boost`: the built-in loss's trees."""
    xgboost = pytest.importorskip("xgboost", reason="xgboost is not installed")
    cuda_twin.install(monkeypatch)
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((200, 3)).astype(np.float32), rng.integers(0, 3, 200)
    options = {"num_class": 3, "objective": "multi:softprob", "base_score": 0.0, "max_depth": 2, "nthread": 1}
    data = xgboost.DMatrix(X, y)
    objective = xgboost_objective(fx.SoftmaxCrossEntropy())
    booster = xgboost.Booster(options, [data])
    for i in range(3):
        margins = cuda_twin.put(booster.inplace_predict(X, predict_type="margin").reshape(200, 3))
        grad, hess = (each.get() for each in objective(margins, data))
        booster.boost(data, iteration=i, grad=grad, hess=hess)
    builtin = xgboost.train(options, data, 3)
    np.testing.assert_allclose(booster.predict(data), builtin.predict(data), rtol=1e-5)
