"""`fastxent.torch` of CUDA tensors, over tensors in memory that stand for those on a device."""

from __future__ import annotations

import cuda_twin
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
_binary, _linear, _on_device, _softmax = (
    pytest.importorskip(f"fastxent.torch.{name}", reason="torch is not installed")
    for name in ("_binary", "_linear", "_on_device", "_softmax")
)


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
    softmax = [f"softmax_cross_entropy{of}" for of in ("", "_backward", "_hvp")]
    linear = ["linear_cross_entropy", "linear_cross_entropy_backward"]
    for name in (*softmax, *linear, "sigmoid_cross_entropy", "loss"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastxent::{name}", "CUDA")


def leaves(*tensors):
    return [t.detach().requires_grad_() for t in tensors]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("target", ["labels", "weighted labels", "probabilities", "images", "one row"])
def test_cross_entropy_is_that_of_pytorch(monkeypatch, reduction, target):
    """Loss, gradients and second derivatives, for an upstream gradient on the device."""
    cuda_twin.install(monkeypatch)
    torch.manual_seed(0)
    shape = {"images": (4, 6, 3, 2), "one row": (6,)}.get(target, (9, 6))
    z, x = (torch.randn(*shape, dtype=torch.float64) for _ in range(2))
    y = torch.rand(*shape, dtype=torch.float64)
    if target != "probabilities":
        y = torch.randint(0, 6, (*shape[:1], *shape[2:]) if len(shape) > 1 else ())
        if len(shape) == 2:
            y[2] = -100
    weight, smoothing = (torch.rand(6, dtype=torch.float64), 0.1) if "weighted" in target else (None, 0.0)
    options = (reduction, -100, smoothing)
    (ours,), (theirs,) = leaves(z), leaves(z)
    expected = torch.nn.functional.cross_entropy(
        theirs, y, weight, reduction=reduction, label_smoothing=smoothing
    )
    loss = _on_device.CrossEntropy.apply(ours, y, weight, options, torch.float64, _softmax.derivatives)
    assert torch.allclose(loss, expected)
    upstream = torch.rand(expected.shape, dtype=torch.float64)
    (grad,) = torch.autograd.grad(loss, ours, upstream)
    (truth,) = torch.autograd.grad(expected, theirs, upstream, create_graph=True)
    assert torch.allclose(grad, truth)
    # what the operators do on such a device, without autograd
    rows = _on_device.rows(z, y, weight, *options)
    assert torch.allclose(_on_device.gradient(rows, upstream), truth)
    (product,) = torch.autograd.grad(truth, theirs, x)
    found = _on_device.rows(z, y, weight, *options).hvp(x)
    dim = 1 if z.dim() > 1 else 0
    found *= upstream.unsqueeze(dim) if reduction == "none" else upstream
    assert torch.allclose(found, product)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_binary_cross_entropy_is_that_of_pytorch(monkeypatch, reduction, weighted):
    cuda_twin.install(monkeypatch)
    torch.manual_seed(0)
    z, y = torch.randn(5, 7, dtype=torch.float64), torch.rand(5, 7, dtype=torch.float64)
    weight, positive = (torch.rand(5, 1).double(), torch.rand(7).double()) if weighted else (None, None)
    ours, theirs = leaves(z, y), leaves(z, y)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        *theirs, weight, reduction=reduction, pos_weight=positive
    )
    loss = _on_device.BinaryCrossEntropy.apply(
        *ours, weight, positive, reduction, torch.float64, _binary.derivatives
    )
    assert torch.allclose(loss, expected)
    upstream = torch.rand(expected.shape, dtype=torch.float64)
    found, truth = (torch.autograd.grad(*pair, upstream) for pair in ((loss, ours), (expected, theirs)))
    for a, b in zip(found, truth, strict=True):
        assert torch.allclose(a, b)
    if reduction == "mean":
        nothing = torch.zeros(0, dtype=torch.float32)
        call = _on_device.elements(nothing, nothing, None, None, reduction)
        assert _on_device.value(call.run()[0], nothing, reduction, torch.float32).isnan()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_modules_of_losses_take_tensors_of_a_device(monkeypatch, dtype, reduction):
    """Value, gradient and Hessian product as on the CPU, and float16 after the upstream number."""
    import fastxent as fx
    from fastxent.torch import as_module

    torch.manual_seed(0)
    z, y = torch.randn(6, 5).to(dtype), torch.randint(0, 5, (6,))
    module = as_module(fx.FocalLoss(gamma=2.0), reduction)
    results = []
    for device in (False, True):
        if device:
            cuda_twin.install(monkeypatch)
        (leaf,) = leaves(z)
        loss = module(leaf, y)
        upstream = torch.full_like(loss, 8.0)
        double = dtype is not torch.float16
        (grad,) = torch.autograd.grad(loss, leaf, upstream, create_graph=double)
        results.append([loss.detach(), grad.detach()])
        if double:
            results[-1] += torch.autograd.grad(grad.sum(), leaf)
    for mine, theirs in zip(*results, strict=True):
        assert mine.dtype is theirs.dtype
        assert torch.allclose(mine, theirs, rtol=1e-3 if dtype is torch.float16 else 1e-5, atol=1e-6)


def test_upstream_numbers_are_not_copied_from_memory(monkeypatch):
    """A copy from memory waits for the device, and cannot be recorded in a graph."""
    cuda_twin.install(monkeypatch)
    cuda_twin.refuse_copies(monkeypatch)
    z, y = torch.randn(6, 5), torch.randint(0, 5, (6,))
    for reduction in ("mean", "sum"):
        rows = _on_device.rows(z, y, None, reduction, -100, 0.0)
        assert _on_device.gradient(rows, torch.tensor(2.0)).shape == z.shape
        call = _on_device.elements(z, z.sigmoid(), None, None, reduction)
        assert _on_device.gradient(call, torch.tensor(2.0)).shape == z.shape


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
def test_on_a_gpu(compiled):
    """The functions of tensors of a GPU, eager and compiled, nothing of which waits for the device."""
    import fastxent as fx
    from fastxent.torch import as_module, binary_cross_entropy_with_logits, cross_entropy

    torch.manual_seed(0)
    z = torch.randn(64, 1000, device="cuda")
    y = torch.randint(0, 1000, (64,), device="cuda")
    t = torch.rand(64, 1000, device="cuda")
    module = as_module(fx.SoftmaxCrossEntropy())
    reference = torch.nn.functional
    pairs = [
        (lambda z: cross_entropy(z, y), lambda z: reference.cross_entropy(z, y)),
        (
            lambda z: cross_entropy(z, y, reduction="none").sum(),
            lambda z: reference.cross_entropy(z, y, reduction="sum"),
        ),
        (
            lambda z: binary_cross_entropy_with_logits(z, t),
            lambda z: reference.binary_cross_entropy_with_logits(z, t),
        ),
        (lambda z: module(z, y), lambda z: reference.cross_entropy(z, y)),
    ]
    for ours, theirs in pairs:
        ours = torch.compile(ours, fullgraph=True) if compiled else ours
        results = []
        for function in (ours, theirs):
            (leaf,) = leaves(z)
            torch.cuda.synchronize()
            if function is ours and not compiled:
                function(leaf).backward()  # compiles the kernels
                leaf.grad = None
                torch.cuda.set_sync_debug_mode("error")
            try:
                loss = 3 * function(leaf)
                loss.backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")
            results.append((loss.detach(), leaf.grad))
        for mine, other in zip(*results, strict=True):
            assert torch.allclose(mine, other, rtol=1e-5, atol=1e-7)
