"""The CUDA backend on a machine without a GPU: which kernel is chosen, what is refused, and the emulator's run."""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import fastxent as fx
from fastxent import _backend, _device

TESTS = Path(__file__).parent
NUMBA = importlib.util.find_spec("numba") is not None


def no_device():
    try:
        _backend.choose("cuda")
    except ImportError as error:
        return str(error)
    return None


@pytest.mark.simulated
@pytest.mark.skipif(not NUMBA, reason="numba is not installed")
@pytest.mark.parametrize(
    ("file", "selection"),
    [
        ("test_cuda_kernels.py", "not slow"),
        ("test_cuda_core.py", "not slow"),
        ("test_cuda_doors.py", "not slow"),
        pytest.param("test_cuda_kernels.py", "slow", marks=pytest.mark.slow),
        pytest.param("test_cuda_core.py", "slow", marks=pytest.mark.slow),
    ],
)
def test_in_the_emulator(file, selection):
    """Every assertion of the GPU's tests holds in the emulator, which needs a process of its own."""
    pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "--benchmark-disable", "-m", selection, str(TESTS / file)],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=TESTS.parent,
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "passed" in done.stdout


def test_without_a_device_says_what_to_install():
    """No GPU or no numba-cuda: the name raises, "auto" goes on with the CPU."""
    message = no_device()
    if message is None:
        pytest.skip("there is a device")
    assert "pip install 'fastxent[cuda]'" in message or "NVIDIA GPU" in message
    with pytest.raises(ImportError, match="backend='cuda' needs"):
        fx.softmax_cross_entropy([[1.0, 2.0]], [0], backend="cuda")
    assert fx.softmax_cross_entropy([[1.0, 2.0]], [0], backend="auto") > 0


class Fake:
    """An array of a library that nobody knows."""

    def __init__(self, kind):
        self.kind = kind
        self.shape = (2, 2)

    def __dlpack_device__(self):
        return self.kind, 0

    def __dlpack__(self, **kwargs):
        raise AssertionError("nobody may read it")


def test_what_is_a_device_array():
    """DLPack's word, or CUDA's own interface; arrays in memory are none."""
    assert _device.is_device(Fake(2))
    assert _device.is_device(Fake(13))
    assert not _device.is_device(Fake(1))
    assert not _device.is_device(np.zeros(3))
    assert not _device.is_device([1.0])
    assert not _device.is_device(1.0)


def test_device_arrays_never_reach_the_cpu():
    """Without a device their call raises; with another backend's name too, by that name."""
    if no_device() is None:
        pytest.skip("there is a device")
    with pytest.raises(ImportError, match="backend='cuda'"):
        fx.softmax_cross_entropy(Fake(2), Fake(2))
    with pytest.raises(ValueError, match="backend: expected 'cuda' or None"):
        fx.sigmoid_cross_entropy(Fake(2), Fake(2), backend="numpy")


def test_a_tensor_in_memory_is_no_device_array():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    assert not _device.is_device(torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("shape", "strides", "expected"),
    [
        ((), (), (1, 1)),
        ((4,), (3,), (4, 3)),
        ((2, 3), (3, 1), (6, 1)),
        ((2, 3), (4, 1), None),
        ((2, 1, 3), (6, 100, 2), (6, 2)),
        ((5, 7), (0, 0), (35, 0)),
        ((0, 3), (7, 5), (0, 1)),
    ],
)
def test_collapsed(shape, strides, expected):
    """Dimensions that can be walked as one."""
    assert _device.collapsed(shape, strides) == expected


# Host logic -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def launch():
    """The launchers, which need numba-cuda but no device."""
    pytest.importorskip("numba", reason="numba is not installed")
    cuda = pytest.importorskip("numba.cuda", reason="numba-cuda is not installed")
    if getattr(cuda, "implementation", None) != "NVIDIA":
        pytest.skip("numba-cuda is not installed")
    from fastxent._core_cuda import launch

    return launch


@pytest.mark.parametrize(
    ("dtype", "n", "k", "packed", "regime", "vectors", "lanes", "threads"),
    [
        ("float32", 1 << 20, 10, True, "tile", 1, 1, 256),
        ("float32", 1 << 20, 10, False, "resident", 1, 8, 256),
        ("bfloat16", 1 << 20, 100, True, "resident", 2, 8, 256),
        ("float32", 32768, 100, True, "resident", 2, 16, 256),
        ("float32", 32768, 1024, True, "resident", 8, 32, 256),
        ("bfloat16", 32768, 1024, True, "resident", 4, 32, 256),
        ("bfloat16", 32768, 2048, True, "resident", 4, 0, 64),
        ("float32", 8192, 8192, True, "resident", 4, 0, 512),
        ("float32", 8192, 16384, True, "resident", 8, 0, 512),
        ("float16", 8192, 32768, True, "resident", 8, 0, 512),
        ("float32", 8192, 32768, True, "stream", 4, 0, 512),
        ("bfloat16", 4096, 131072, True, "stream", 4, 0, 512),
        ("float32", 16, 131072, True, "split", 1, 0, 256),
    ],
)
def test_plan(launch, dtype, n, k, packed, regime, vectors, lanes, threads):
    """A row goes into the registers of as few threads as hold it; the row always fits."""
    it = launch.plan(dtype, n, k, packed)
    assert (it.regime, it.vectors, it.lanes, it.threads) == (regime, vectors, lanes, threads)
    per_vector = 4 if dtype == "float32" else 8
    if regime == "resident":
        assert it.vectors * (it.lanes or it.threads) * per_vector >= k - per_vector + 1


@pytest.mark.parametrize(
    ("dtype", "k", "steps", "expected"),
    [
        ("float32", 256, (1, 1), True),
        ("float32", 255, (1, 1), False),
        ("bfloat16", 512, (1, 1), True),
        ("bfloat16", 511, (1, 1), False),
        ("float32", 2047, (1, 1), False),
        ("float32", 2048, (1, 1), True),
        ("float32", 4096, (2, 1), False),
        ("float32", 4096, (1, 0), False),
        ("float64", 4096, (1, 1), False),
    ],
)
def test_rows_of_vectors(launch, dtype, k, steps, expected):
    """A general kernel takes 16 bytes at a time of rows in one piece, if every thread has two vectors."""
    lanes, threads = launch.team_of(k, 1)
    x, t = ((k * step, step, 1) for step in steps)
    logits = launch.Buffer(0, 0, (10, k, 1), x, dtype, None)
    assert launch.takes_vectors(lanes, threads, logits, t) is expected


def test_arguments_of_a_launch(launch, monkeypatch):
    """Addresses, strides and scalars in the order of the signature, whatever is given; nothing else is launched."""
    calls = []
    monkeypatch.setattr(launch, "run", lambda *a: calls.append(a))

    def buffer(shape, dtype, address=1 << 20):
        strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
        return launch.Buffer(address, address, shape, strides, dtype, None)

    context = launch.Context("stream", lambda shape, dtype: buffer(shape, dtype, 1 << 30))
    z, y = buffer((1000, 500, 1), "float32"), buffer((1000, 1), "int32")
    options = (None, None, None, 0.0, False, -100, 0.0, 2.0, 0.5, None)
    launch.softmax_launch(context, z, y, *options, None, None, z, None)
    (make, _, kinds, grid, threads, where, values), = calls  # fmt: skip
    signature = kinds[0](*kinds[1:])
    assert make.__name__ == "resident_kernel"
    assert len(values) == len(signature)
    assert values[:3] == (z.pointer, z.pointer, y.pointer)
    assert values[3:7] == (launch.NULL,) * 4
    assert (grid * 8 * 8 >= 1000, threads, where) == (True, 256, context)
    assert values[-1] == 0.25  # the gradient's factor over the temperature
    # rows whose 16-byte boundaries differ from the gradient's have no vectors in common
    calls.clear()
    out = launch.Buffer((1 << 20) + 4, (1 << 20) + 4, z.shape, z.strides, "float32", None)
    launch.softmax_launch(context, z, y, *options, None, None, out, None)
    assert [call[0].__name__ for call in calls] == ["careful_kernel"]
    signature, *names = calls[0][2]
    assert len(calls[0][6]) == len(signature(*names))


class FakeNumba:
    """What numba configures: its first launch loads the kernel, whose handle is 7, on the stream 9."""

    def __init__(self):
        cufunc = SimpleNamespace(handle=7)
        overload = SimpleNamespace(_codelibrary=SimpleNamespace(get_cufunc=lambda: cufunc))
        self.dispatcher = SimpleNamespace(overloads={(): overload})
        self.stream = SimpleNamespace(handle=9)
        self.calls = []

    def __call__(self, *values):
        self.calls.append(values)


@pytest.fixture
def driver(launch, monkeypatch):
    """A driver that reads the arguments where the kernel would, and answers with `status`."""
    from fastxent._core_cuda import queue

    class Driver:
        kinds, status = (), 0

        def launch(self, kernel, *rest):
            *shape, stream, addresses, extra = rest
            addresses = (ctypes.c_void_p * len(self.kinds)).from_address(addresses)
            values = [kind.from_address(at).value for kind, at in zip(self.kinds, addresses, strict=True)]
            self.calls.append((kernel, tuple(shape), stream, values, extra))
            return (self.status,)

    it = Driver()
    it.calls = []
    monkeypatch.setattr(queue, "_driver", lambda: (it.launch, int, int))
    return it


def test_launches_after_the_first_go_to_the_driver(launch, driver):
    """Every argument lies where its address says, in its type; what the driver refuses goes through Numba again."""
    from fastxent._core_cuda import queue

    kinds = (
        launch.pointer_to(launch.F32),
        launch.I32,
        launch.I64,
        launch.types.boolean,
        launch.F32,
        launch.F64,
        launch.I32,
    )
    driver.kinds = (
        ctypes.c_uint64,
        ctypes.c_int32,
        ctypes.c_int64,
        ctypes.c_bool,
        ctypes.c_float,
        ctypes.c_double,
        ctypes.c_int32,
    )
    numba = FakeNumba()
    direct = queue._Direct(numba, kinds, (5, 3), 64)
    values = (1 << 47, -3, 1 << 40, True, 0.25, 1e300, 8)
    direct(*values)
    assert (numba.calls, driver.calls) == ([values], [])
    direct(*values)
    assert driver.calls == [(7, (5, 3, 1, 64, 1, 1, 0), 9, list(values), 0)]
    assert len(numba.calls) == 1
    direct(*(*values[:4], math.inf, math.nan, np.int64(9)))
    assert driver.calls[1][3][4] == math.inf
    assert driver.calls[1][3][6] == 9
    direct(*(*values[:4], 1e39, 0.0, 0))
    assert driver.calls[2][3][4] == math.inf
    beyond = (1, 1 << 31, *values[2:])  # no int32
    direct(*beyond)
    assert numba.calls[1:] == [beyond]
    driver.status = 201
    direct(*values)
    assert numba.calls[2:] == [values]


def test_launches_of_many_threads_do_not_mix(launch, driver):
    """The block of arguments is one thread's until the driver has copied it."""
    from fastxent._core_cuda import queue

    driver.kinds = (ctypes.c_int64,) * 20
    direct = queue._Direct(FakeNumba(), (launch.I64,) * 20, 1, 32)
    direct(*range(20))

    def many(number):
        for _ in range(200):
            direct(*[number] * 20)

    threads = [threading.Thread(target=many, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(driver.calls) == 1600
    assert all(len(set(call[3])) == 1 for call in driver.calls)


def test_a_decision_is_made_once(launch, monkeypatch):
    """Equal shapes and options are looked up; another address or scale changes the arguments only."""
    calls = []
    monkeypatch.setattr(launch, "run", lambda *a: calls.append(a))
    context = launch.Context(0, lambda shape, dtype: launch.Buffer(0, 0, shape, (1,), dtype, None))
    y = launch.Buffer(64, 64, (1000, 1), (1, 1), "int64", None)
    launch._way.cache_clear()
    for address, scale in ((1 << 20, 0.5), (1 << 21, 0.25)):
        z = launch.Buffer(address, address, (1000, 500, 1), (500, 1, 1), "float32", None)
        options = (None, None, None, 0.0, False, None, 0.0, 1.0, scale, None)
        launch.softmax_launch(context, z, y, *options, None, None, z, None)
    assert launch._way.cache_info()[:2] == (1, 1)
    assert [call[6][0] for call in calls] == [1 << 20, 1 << 21]
    assert [call[6][-1] for call in calls] == [0.5, 0.25]


def test_offsets_are_64_bit(launch, monkeypatch):
    """Rows times classes beyond 2^31 elements: strides and numbers of rows travel as int64."""
    calls = []
    monkeypatch.setattr(launch, "run", lambda *a: calls.append(a))
    shape = (1 << 22, 4096, 1)
    z = launch.Buffer(0, 0, shape, (4096, 1, 1), "bfloat16", None)
    y = launch.Buffer(0, 0, (1 << 22, 1), (1, 1), "int64", None)
    context = launch.Context(0, lambda shape, dtype: launch.Buffer(0, 0, shape, (1,), dtype, None))
    launch.softmax_launch(
        context, z, y, None, None, None, 0.0, False, None, 0.0, 1.0, 1.0, None, None, None, z, None
    )
    signature, *names = calls[0][2]
    signature = signature(*names)
    assert signature[10] == signature[12] == signature[13] == launch.I64


def test_a_name_that_numpy_2_5_has_removed(launch):
    """numba-cuda 0.30 asks for numpy.row_stack when it first compiles."""
    code = "import numpy as np; vars(np).pop('row_stack', None); import fastxent._core_cuda; np.row_stack(([1], [2]))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_twins(launch):
    """The functions on NumPy arrays are those of the specification, argument by argument."""
    import inspect

    from fastxent import _core_cuda, _core_numpy

    assert set(_core_cuda.__all__) - {"general", "launch"} == set(_core_numpy.__all__)
    for name in _core_numpy.__all__:
        ours, theirs = (inspect.signature(getattr(core, name)) for core in (_core_cuda, _core_numpy))
        assert list(ours.parameters.values()) == list(theirs.parameters.values()), name
