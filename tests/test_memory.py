"""Memory of large results that is used again: never while anything still reads it."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastxent as fx
from fastxent import _memory

pytestmark = pytest.mark.skipif(not _memory._KEEPS, reason="this system has no MADV_FREE")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of a page count as large; nothing waits from before."""
    monkeypatch.setattr(_memory, "LARGE", 4096)
    _memory.release()
    yield
    _memory.release()


def address(array):
    return array.__array_interface__["data"][0]


def test_a_block_is_used_again_when_its_array_is_gone():
    a = _memory.empty((64, 64), np.float32)
    first = address(a)
    assert address(_memory.empty((64, 64), np.float32)) != first
    _memory.release()
    del a
    b = _memory.empty((32, 64), np.float64)  # another shape and dtype of the same size
    assert address(b) == first
    b[...] = 1
    assert (b == 1).all()


@pytest.mark.parametrize("keep", [lambda a: a[1:, ::2], lambda a: a.T[3:], lambda a: memoryview(a)])
def test_a_view_keeps_its_block(keep):
    a = _memory.empty((64, 64), np.float32)
    a[...] = 7
    view = keep(a)
    del a
    gc.collect()
    assert not _memory._waiting
    others = [_memory.empty((64, 64), np.float32) for _ in range(3)]
    for other in others:
        other[...] = 0
    assert (np.asarray(view) == 7).all()
    del view
    assert len(_memory._waiting) == 1


def test_no_more_than_a_few_wait():
    many = [_memory.empty(4096 + 64 * i, np.uint8) for i in range(8)]
    del many
    assert len(_memory._waiting) == _memory.MOST_BLOCKS


def test_the_smallest_block_that_fits_is_taken_and_none_far_too_large():
    blocks = [_memory.empty(size, np.uint8) for size in (8192, 7168, 65536)]
    addresses = [address(block) for block in blocks]
    blocks.clear()
    kept = [_memory.empty(size, np.uint8) for size in (7000, 7000, 7000)]
    assert [address(block) for block in kept[:2]] == [addresses[1], addresses[0]]
    assert address(kept[2]) != addresses[2]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_layouts_are_those_of_numpy(order, dtype):
    a = _memory.empty((40, 50, 3), dtype, order)
    expected = np.empty((40, 50, 3), dtype, order)
    assert (a.shape, a.strides, a.dtype) == (expected.shape, expected.strides, expected.dtype)
    assert a.flags.writeable
    assert a.flags.aligned
    base = np.zeros((40, 50, 6), dtype, order)
    for like in (expected, base[:, ::-1], base[..., ::2], base.transpose(1, 0, 2), base.transpose(2, 0, 1)):
        ours, numpys = _memory.empty_like(like), np.empty_like(like)
        assert ours.shape == numpys.shape
        assert ours.strides == numpys.strides


def test_small_results_are_numpys():
    assert _memory.empty((3, 4), np.float32).base is None
    assert _memory.empty((0, 4), np.float32).shape == (0, 4)
    assert _memory.empty_like(np.zeros((3, 0))).shape == (3, 0)


def test_impossible_sizes_are_memory_errors():
    with pytest.raises(MemoryError):
        _memory.empty((1 << 50, 16), np.float64)
    with pytest.raises(MemoryError):
        _memory.empty_like(np.broadcast_to(np.zeros(()), (1 << 45, 16)))


def test_gradients_of_a_loop_share_a_block_and_none_that_is_kept():
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(500, 10)), rng.integers(0, 10, 500)
    expected = fx.softmax_cross_entropy_with_grad(z, y, backend="numpy")[1]
    addresses, kept = set(), []
    for step in range(12):
        grad = fx.softmax_cross_entropy_with_grad(z, y)[1]
        np.testing.assert_allclose(grad, expected, rtol=1e-12, atol=1e-18)
        addresses.add(address(grad))
        if step % 4 == 0:
            kept.append(grad)
        del grad
    assert len(addresses) == len(kept) + 1
    for grad in kept:
        np.testing.assert_allclose(grad, expected, rtol=1e-12, atol=1e-18)


def test_threads_never_get_the_same_block():
    def work(k):
        for i in range(200):
            a = _memory.empty(2048, np.int64)
            a[...] = 1000 * k + i
            b = a[::2]
            del a
            if not (b == 1000 * k + i).all():
                return False
        return True

    with ThreadPoolExecutor(8) as team:
        assert all(team.map(work, range(8)))
