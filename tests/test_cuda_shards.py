"""Shards of logits on a device: states, gradients and `vocab_parallel_cross_entropy`, over tensors in memory."""

from __future__ import annotations

import cuda_twin
import numpy as np
import pytest
import reference

import fastxent as fx

torch = pytest.importorskip("torch", reason="torch is not installed")
dist = pytest.importorskip("torch.distributed")


@pytest.fixture(params=["cupy", "torch"])
def library(request, monkeypatch):
    """(to the device, back): CuPy's arrays and PyTorch's tensors."""
    cuda_twin.install(monkeypatch)
    return (cuda_twin.put if request.param == "cupy" else torch.as_tensor), cuda_twin.get


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 0.01}, {"reduction": "sum"}])
def test_states_and_gradients(library, options):
    """Columns in two places, one of them on the device: states merge, and each gets its own gradient in its library."""
    to, back = library
    rng = np.random.default_rng(0)
    z = 5 * rng.standard_normal((2, 4, 11))
    z[0, 0] = -40
    z[0, 0, 1] = 0
    y = rng.integers(0, 11, (2, 4))
    y[0, 0], y[1, 2] = 1, -100
    truth = reference.softmax(z, y, **options)
    parts = [(0, to(np.ascontiguousarray(z[..., :7])), to(y)), (7, z[..., 7:], y)]
    states = [fx.partial_lse(part, labels, start) for start, part, labels in parts]
    whole = fx.merge_lse(states)
    assert np.isclose(whole.loss(**options), truth.loss, rtol=1e-13)
    (start, there, labels), (stop, here, _) = parts
    grad = whole.grad(there, labels, start, **options)
    assert type(grad) is type(there)
    assert np.allclose(back(grad), truth.grad[..., :7], rtol=1e-12, atol=1e-14)
    assert np.allclose(whole.grad(here, y, stop, **options), truth.grad[..., 7:], rtol=1e-12, atol=1e-14)
    assert back(whole.grad(there, labels, start, sample_weight=np.zeros((2, 4)))).any() == False  # noqa: E712


def test_strides_and_no_columns(library):
    """Columns of a wider array, as they lie; a shard without columns; float16."""
    to, back = library
    rng = np.random.default_rng(1)
    z, y = rng.standard_normal((5, 9)), rng.integers(0, 9, 5)
    wide = to(z.astype(np.float16))
    state = fx.merge_lse([fx.partial_lse(wide[:, a:b], to(y), a) for a, b in ((0, 4), (4, 4), (4, 9))])
    truth = reference.softmax(z.astype(np.float16).astype(np.float64), y)
    assert np.isclose(state.loss(), truth.loss)
    grad = back(state.grad(wide[:, 4:], to(y), 4))
    assert grad.dtype == np.float16
    assert np.allclose(grad, truth.grad[:, 4:], atol=1e-4)
    assert back(state.grad(wide[:, 4:4], to(y), 4)).shape == (5, 0)


def test_errors(library):
    to, _ = library
    z, y = to(np.zeros((3, 4), np.float32)), to(np.array([0, 1, 2]))
    with pytest.raises(
        TypeError, match="targets: expected an array on the device, as logits_shard, got list"
    ):
        fx.partial_lse(z, [0, 1, 2], 0)
    with pytest.raises(
        ValueError, match=r"targets: expected labels of shape \(3,\) for logits_shard \(3, 4\)"
    ):
        fx.partial_lse(z, to(np.zeros(4, int)), 0)
    with pytest.raises(TypeError, match="targets: expected integer or bool labels, got dtype float32"):
        fx.partial_lse(z, to(np.zeros(3, np.float32)), 0)
    with pytest.raises(ValueError, match="class_offset: expected at least 0, got -1"):
        fx.partial_lse(z, y, -1)
    with pytest.raises(ValueError, match="backend: expected 'cuda' or None"):
        fx.partial_lse(z, y, 0, backend="numpy")
    state = fx.partial_lse(z, y, 0)
    with pytest.raises(ValueError, match="targets: expected the labels that this state was made with"):
        state.grad(z, to(np.array([0, 1, 3])), 0)
    with pytest.raises(ValueError, match="class_offset: expected a shard of this state"):
        state.grad(z, y, 1)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_vocab_parallel(monkeypatch, reduction):
    """Loss and gradient of CUDA tensors, by a group of one process: tensors in memory that say they are on a device."""
    cuda_twin.install(monkeypatch)
    _vocab_parallel = pytest.importorskip("fastxent.torch._vocab_parallel")
    monkeypatch.setattr(_vocab_parallel, "_given", torch.Tensor.detach)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, 5, (6,), generator=generator)
    y[3] = -100
    upstream = torch.rand(6 if reduction == "none" else (), generator=generator, dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(z, y, reduction=reduction, label_smoothing=0.1)
    (truth,) = torch.autograd.grad(expected, z, upstream)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        loss = _vocab_parallel.vocab_parallel_cross_entropy(z, y, reduction=reduction, label_smoothing=0.1)
        loss.backward(upstream)
    finally:
        dist.destroy_process_group()
    assert torch.allclose(loss, expected)
    assert torch.allclose(z.grad, truth)
