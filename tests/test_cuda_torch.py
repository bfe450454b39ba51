"""`fastxent.torch.linear_cross_entropy` of CUDA tensors, over tensors in memory that stand for those on a device."""

from __future__ import annotations

import cuda_twin
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
_linear = pytest.importorskip("fastxent.torch._linear", reason="torch is not installed")


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("target", ["labels", "weighted labels", "probabilities"])
def test_losses_and_gradients_are_those_of_pytorch(monkeypatch, reduction, target):
    cuda_twin.install(monkeypatch)
    torch.manual_seed(0)
    shapes = ((9, 4), (6, 4), (6,))
    X, W, b = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    weight, smoothing = (torch.rand(6, dtype=torch.float64), 0.1) if "weighted" in target else (None, 0.0)
    y = torch.rand(9, 6, dtype=torch.float64)
    if target != "probabilities":
        y = torch.randint(0, 6, (9,))
        y[2] = -100
    upstream = torch.rand(9 if reduction == "none" else (), dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(
        torch.nn.functional.linear(X, W, b), y, weight, reduction=reduction, label_smoothing=smoothing
    )
    grads = torch.autograd.grad(expected, (X, W, b), upstream)
    tensors, options = (X, W, y, b, weight), (reduction, -100, smoothing)
    loss, nothing = _linear.DeviceSweep(tensors, options).run()
    assert torch.allclose(loss, expected)
    assert nothing == (None, None, None)
    found = _linear.DeviceSweep(tensors, options, upstream).run((True, True, True))[1]
    for ours, theirs in zip(found, grads, strict=True):
        assert torch.allclose(ours, theirs)
        assert ours.is_contiguous()


def test_one_row_float16_and_what_is_refused(monkeypatch):
    """A vector of features; float16 with an upstream number; weights of more dimensions; a label that is no class."""
    cuda_twin.install(monkeypatch)
    torch.manual_seed(0)
    X, W = torch.randn(9, 4), torch.randn(6, 4)
    y = torch.randint(0, 6, (9,))
    loss, grads = _linear.DeviceSweep((X[0], W, y[0], None, None), ("none", -100, 0.0)).run(
        (True, True, False)
    )
    assert loss.shape == ()
    assert [None if g is None else tuple(g.shape) for g in grads] == [(4,), (6, 4), None]
    half = X.half().requires_grad_(), W.half().requires_grad_()
    wide = [t.detach().double().requires_grad_() for t in half]
    expected = torch.nn.functional.cross_entropy(torch.nn.functional.linear(*wide), y)
    expected = torch.autograd.grad(expected, wide, torch.tensor(1024.0).double())
    sweep = _linear.DeviceSweep((*half, y, None, None), ("mean", -100, 0.0), torch.tensor(1024.0))
    for ours, theirs in zip(sweep.run((True, True, False))[1][:2], expected, strict=True):
        assert ours.dtype is torch.float16
        assert torch.allclose(ours.double(), theirs, rtol=0.01, atol=0.01 * theirs.abs().max().item())
    with pytest.raises(RuntimeError, match="linear_weight: expected 2 dimensions on a CUDA device, got 3"):
        _linear.DeviceSweep((X, W[:, None], y, None, None), ("mean", -100, 0.0))
    y[3] = 6
    assert _linear.DeviceSweep((X, W, y, None, None), ("mean", -100, 0.0)).run()[0].isnan()


def test_the_operators_have_a_kernel_for_cuda():
    for name in ("linear_cross_entropy", "linear_cross_entropy_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastxent::{name}", "CUDA")
