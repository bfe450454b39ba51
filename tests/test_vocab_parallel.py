"""Classes split over processes: the loss and gradient of the whole rows, from PyTorch and from the whole state."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
dist = pytest.importorskip("torch.distributed")
if not dist.is_available():
    pytest.skip("PyTorch without torch.distributed", allow_module_level=True)

from torch.nn import functional as F  # noqa: E402

from fastxent.torch import vocab_parallel_cross_entropy  # noqa: E402


@pytest.fixture
def alone():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def whole(logits, target, z_loss=0.0, ignore_index=-100, reduction="mean", **options):
    """PyTorch's cross-entropy, with the z-loss it has not."""
    rows = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none", **options)
    counted = target != ignore_index
    rows = rows + torch.where(counted, z_loss * torch.logsumexp(logits, -1) ** 2, 0)
    return {"none": rows, "sum": rows.sum(), "mean": rows.sum() / counted.sum()}[reduction]


CASES = [
    {},
    {"label_smoothing": 0.1},
    {"z_loss": 0.01},
    {"ignore_index": 3},
    {"reduction": "sum", "label_smoothing": 1.0},
    {"reduction": "none", "label_smoothing": 0.2, "z_loss": 0.1, "ignore_index": 2},
]


def check_shards(rank, widths, group, dtype=torch.float64):
    """Every case on this process's columns of logits that all processes know."""
    draw = torch.Generator().manual_seed(0)
    n_classes = sum(widths)
    start = sum(widths[:rank])
    logits = 5 * torch.randn(17, n_classes, generator=draw, dtype=dtype)
    logits[0] = -40
    logits[0, 1] = 0.0
    target = torch.randint(0, n_classes, (17,), generator=draw)
    target[0] = 1
    upstream = torch.rand(17, generator=draw, dtype=dtype)
    for options in CASES:
        all_columns = logits.clone().requires_grad_()
        expected = whole(all_columns, target, **options)
        factor = upstream if options.get("reduction") == "none" else upstream[0]
        expected.backward(factor)
        for given in (None, start):
            shard = logits[:, start : start + widths[rank]].clone().requires_grad_()
            loss = vocab_parallel_cross_entropy(shard, target, group, class_offset=given, **options)
            loss.backward(factor)
            tolerance = (
                {"rtol": 1e-12, "atol": 1e-13} if dtype is torch.float64 else {"rtol": 2e-5, "atol": 1e-5}
            )
            torch.testing.assert_close(loss, expected.detach(), **tolerance)
            torch.testing.assert_close(
                shard.grad, all_columns.grad[:, start : start + widths[rank]], **tolerance
            )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_process(alone, dtype):
    check_shards(0, [11], None, dtype)


def test_digits_of_a_confident_row(alone):
    """log1p(exp(-40)), which a difference of logits would round to 0."""
    logits = torch.tensor([[40.0, 0.0]], dtype=torch.float64, requires_grad=True)
    loss = vocab_parallel_cross_entropy(logits, torch.tensor([0]))
    loss.backward()
    assert loss.item() == pytest.approx(4.248354255291589e-18, rel=1e-14)
    assert logits.grad[0, 1].item() == pytest.approx(4.248354255291589e-18, rel=1e-14)


def test_shapes_dtypes_and_no_rows(alone):
    logits = torch.randn(2, 3, 5, dtype=torch.bfloat16, requires_grad=True)
    loss = vocab_parallel_cross_entropy(logits, torch.zeros(2, 3, dtype=torch.int64), reduction="none")
    assert (loss.shape, loss.dtype) == ((2, 3), torch.bfloat16)
    loss.sum().backward()
    assert (logits.grad.shape, logits.grad.dtype) == ((2, 3, 5), torch.bfloat16)
    ignored = torch.full((2, 3), -100)
    assert vocab_parallel_cross_entropy(logits, ignored).isnan()
    assert vocab_parallel_cross_entropy(logits, ignored, reduction="sum") == 0


def test_errors(alone):
    logits, target = torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(IndexError, match=r"target\[1\]: 4 is out of bounds: expected 0 <= label < 4"):
        vocab_parallel_cross_entropy(logits, torch.tensor([0, 4, 1]))
    with pytest.raises(RuntimeError, match=r"target: expected the shape .* \(3,\), got \(2,\)"):
        vocab_parallel_cross_entropy(logits, target[:2])
    with pytest.raises(RuntimeError, match=r"target: expected integer labels, got torch\.float32"):
        vocab_parallel_cross_entropy(logits, target.float())
    with pytest.raises(TypeError, match="argument 'logits_shard' must be Tensor, not list"):
        vocab_parallel_cross_entropy([[0.0]], target)
    with pytest.raises(
        RuntimeError, match="logits_shard: expected a tensor on the CPU or a CUDA device, got one on meta"
    ):
        vocab_parallel_cross_entropy(logits.to("meta"), target)
    with pytest.raises(NotImplementedError, match=r"got torch\.int64"):
        vocab_parallel_cross_entropy(logits.long(), target)
    with pytest.raises(RuntimeError, match="label_smoothing must be between"):
        vocab_parallel_cross_entropy(logits, target, label_smoothing=1.5)
    with pytest.raises(ValueError, match="z_loss"):
        vocab_parallel_cross_entropy(logits, target, z_loss=-1.0)
    with pytest.raises(ValueError, match="not a valid value for reduction"):
        vocab_parallel_cross_entropy(logits, target, reduction="median")
    with pytest.raises(TypeError, match="'ignore_index' must be int"):
        vocab_parallel_cross_entropy(logits, target, ignore_index=1.0)
    with pytest.raises(ValueError, match="expected the state of all columns from 0 on"):
        vocab_parallel_cross_entropy(logits, target, class_offset=2, ignore_index=0)


PROCESS = """
import sys
import torch.distributed as dist
from test_vocab_parallel import check_shards
import pytest, torch
from fastxent.torch import vocab_parallel_cross_entropy

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", store=dist.FileStore(store, 3), rank=rank, world_size=3)
two = dist.new_group([0, 1])
for widths in ([4, 4, 4], [7, 1, 3], [0, 5, 6]):
    check_shards(rank, widths, None)
if rank < 2:
    for widths in ([6, 6], [2, 9]):
        check_shards(rank, widths, two)
        check_shards(rank, widths, two, torch.float32)
with pytest.raises(IndexError, match="6 is out of bounds: expected 0 <= label < 6"):
    vocab_parallel_cross_entropy(torch.zeros(1, 2), torch.tensor([6]))
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_and_three_processes(tmp_path):
    """Even, uneven and empty shards, in the default group of three and in a group of two of them."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), str(tmp_path / "store")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(3)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0, 0], "\n".join(outputs)
