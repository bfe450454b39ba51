"""The Triton kernel that the GPU benchmark compares with: on a GPU, or in Triton's interpreter on tensors in memory.

The interpreter needs TRITON_INTERPRET=1 before Triton is imported; `test_cuda_bench.py` starts a process for it.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("triton", reason="triton is not installed")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("torch sees no CUDA device", allow_module_level=True)
DEVICE = "cpu" if INTERPRETED else "cuda"
PEER = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu" / "peer.py"


@pytest.fixture(scope="module")
def peer():
    """The peer, with tiles small enough for an interpreter."""
    spec = importlib.util.spec_from_file_location("fastxent_gpu_peer", PEER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.WIDEST, module.TILE = 64, 128
    return module


@pytest.mark.parametrize(("n", "k"), [(9, 10), (5, 37), (3, 200)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_loss_and_gradients_are_those_of_pytorch(peer, n, k, dtype):
    """Tiles of several rows, of one, and rows wider than a tile; in place too."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    z = (3 * torch.randn(n, k, generator=generator, device=DEVICE)).to(getattr(torch, dtype))
    y = torch.randint(0, k, (n,), generator=generator, device=DEVICE)
    leaf = z.double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(leaf, y)
    (truth,) = torch.autograd.grad(expected, leaf)
    limit = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 4e-3}[dtype]
    loss, lse = peer.forward(z, y)
    assert abs(loss.double() - expected) < 1e-5
    assert torch.allclose(lse.double(), leaf.detach().logsumexp(1), rtol=1e-6)
    grads = [peer.backward(z, y, lse, torch.full_like(z, torch.nan))]
    loss, grad = peer.fused(z, y, torch.full_like(z, torch.nan))
    assert abs(loss.double() - expected) < 1e-5
    grads += [grad, peer.fused(z, y, z)[1]]
    assert grads[-1] is z
    for grad in grads:
        assert (grad.double() - truth).abs().max() < limit
