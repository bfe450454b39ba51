"""linear_cross_entropy on device arrays, in a device of memory: CuPy's arrays, and PyTorch's tensors."""

from __future__ import annotations

import inspect
import sys
import tracemalloc

import cuda_twin
import numpy as np
import pytest

from fastxent import _linear_on_device
from fastxent.linear import linear_cross_entropy, linear_cross_entropy_with_grad


@pytest.fixture(params=["cupy", "torch"])
def put(request, monkeypatch):
    """To the device."""
    if request.param == "cupy":
        cuda_twin.install(monkeypatch)
        return cuda_twin.put
    torch = pytest.importorskip("torch", reason="torch is not installed")
    cuda_twin.install(monkeypatch)
    return lambda x: torch.from_numpy(np.array(x))


get = cuda_twin.get


def problem(n=41, d=5, k=4, dtype="float32"):
    rng = np.random.default_rng(0)
    X, W, b = (rng.standard_normal(shape).astype(dtype) for shape in ((n, d), (d, k), k))
    return X, W, b, rng.integers(0, k, n)


@pytest.fixture
def blocks(monkeypatch):
    """Blocks of a sixteenth of the rows, however few numbers that is."""
    monkeypatch.setattr(_linear_on_device, "_FEWEST", 1)


OPTIONS = [
    {},
    {"reduction": "sum", "base": 2},
    {"reduction": "none"},
    {"reduction": "none", "base": 2, "sample_weight": np.linspace(0, 3, 41)},
    {"reduction": "mean_rows", "sample_weight": np.linspace(0, 3, 41)},
    {"reduction": "mean_all", "ignore_index": 2},
    {"class_weight": np.array([0.5, 2.0, 0.0, 1.0]), "sample_weight": np.linspace(0, 3, 41)},
    {"label_smoothing": 0.2, "smoothing": "exclude_target", "temperature": 1.7},
    {"label_smoothing": 0.1, "z_loss": 0.01, "logit_bias": np.array([0.1, -0.2, 0.0, 1.0])},
    {"ignore_index": 1},
    {"ignore_index": None},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_options_are_those_of_the_cpu(options, soft, dtype, put, blocks):
    X, W, b, y = problem(dtype=dtype)
    if soft:
        y = np.random.default_rng(1).dirichlet(np.ones(4), 41).astype(dtype)
        options = {name: value for name, value in options.items() if name != "ignore_index"}
    wide = (a.astype(np.float64) for a in (X, W))
    expected = linear_cross_entropy_with_grad(*wide, y, b.astype(np.float64), **options)
    given = {name: put(v) if isinstance(v, np.ndarray) else v for name, v in options.items()}
    arrays = put(X), put(W), put(y), put(b)
    got = linear_cross_entropy_with_grad(*arrays, **given)
    tight = {"rtol": 2e-5, "atol": 2e-6} if dtype == "float32" else {"rtol": 1e-11, "atol": 1e-13}
    for name, a, e, like in zip(("loss", "dX", "dW", "db"), got, expected, (X, X, W, b), strict=True):
        assert type(a) is type(arrays[0]), name
        assert get(a).dtype == like.dtype, name
        np.testing.assert_allclose(get(a), e, **tight, err_msg=name)
    loss = linear_cross_entropy(*arrays, **given)
    np.testing.assert_array_equal(get(loss), get(got[0]))


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 100])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_any_number_of_rows(n, dtype, put, blocks):
    X, W, _, y = problem(n=n, dtype=dtype)
    expected = linear_cross_entropy_with_grad(X.astype(np.float64), W.astype(np.float64), y)
    loss, dX, dW, db = linear_cross_entropy_with_grad(put(X), put(W), put(y))
    assert db is None
    tolerance = 1e-5 if dtype == "float32" else 4e-3
    for a, e in zip((loss, dX, dW), expected, strict=False):
        np.testing.assert_allclose(get(a), e, atol=tolerance * max(1.0, np.abs(e).max(initial=0)))
    assert linear_cross_entropy_with_grad(put(X), put(W), put(y), need_dx=False)[1] is None


def test_float16_keeps_small_gradients(put):
    """p / n is far below float16's smallest number: the factor comes after the products."""
    n, k = 2048, 256
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, 3)).astype(np.float16)
    W = (0.1 * rng.standard_normal((3, k))).astype(np.float16)
    y = np.zeros(n, np.int64)
    expected = linear_cross_entropy_with_grad(X.astype(float), W.astype(float), y, np.zeros(k))
    weights = put(np.ones(n, np.float32))
    for options in ({}, {"sample_weight": weights}):
        got = linear_cross_entropy_with_grad(put(X), put(W), put(y), put(np.zeros(k, np.float16)), **options)
        for a, e in zip(got[1:], expected[1:], strict=True):
            np.testing.assert_allclose(get(a), e, rtol=0.02, atol=2e-7 if e.ndim > 1 else 1e-6)
    ignored = linear_cross_entropy_with_grad(put(X), put(W), put(y), ignore_index=0)
    assert not any(get(a).any() for a in ignored[:3])


@pytest.mark.parametrize(
    ("n", "d", "k", "itemsize"),
    [
        (8192, 4096, 131072, 2),
        (4096, 1024, 50257, 4),
        (256, 16, 32768, 2),
        (65536, 512, 32768, 2),
        (1 << 20, 64, 65536, 8),
    ],
)
def test_blocks_leave_room(n, d, k, itemsize):
    """A block, two thirds of one for a product that is added, and dW in float32 beside a 16-bit one."""
    rows = _linear_on_device.block_rows(n, k)
    extra = 5 / 3 * rows * k * itemsize + (d * k * 4 if itemsize == 2 and 128 * d <= n else 0)
    assert extra <= n * k * itemsize / 8


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_logits_are_never_whole(dtype, monkeypatch):
    """Beyond the results an eighth of the logits at most is allocated, the twin's kernels left out."""
    cuda_twin.install(monkeypatch)
    n, d, k = 1024, 2, 32768
    X, W, _, y = problem(n, d, k, dtype)
    W *= 0  # without a kernel the logits serve as gradient
    given = cuda_twin.put(X), cuda_twin.put(W), cuda_twin.put(y)
    for name in ("softmax_launch", "totals_launch"):
        quiet = lambda *args, **kwargs: cuda_twin._sum(args[0], 1.0)  # noqa: E731
        monkeypatch.setattr(sys.modules["fastxent._core_cuda.launch"], name, quiet)
    tracemalloc.start()
    results = linear_cross_entropy_with_grad(*given, check=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - sum(a.memory.nbytes for a in results[1:3]) < n * k * X.itemsize / 8


def test_mistakes(put):
    X, W, b, y = problem()
    X, W, b = put(X), put(W), put(b)
    bad = np.array(y)
    bad[7] = 4
    with pytest.raises(ValueError, match=r"targets\[7\] is not a class: expected 0 <= label < 4"):
        linear_cross_entropy(X, W, put(bad))
    with pytest.raises(ValueError, match=r"targets\[7\]"):
        linear_cross_entropy_with_grad(X, W, put(bad))
    y = put(y)
    with pytest.raises(ValueError, match=r"W: expected shape \(d, n_classes\)"):
        linear_cross_entropy(X, W.T, y)
    with pytest.raises(ValueError, match=r"bias: expected shape \(4,\)"):
        linear_cross_entropy(X, W, y, b[:3])
    with pytest.raises(TypeError, match="W: expected an array on the device"):
        linear_cross_entropy(X, np.zeros((5, 4), np.float32), y)
    with pytest.raises(TypeError, match="W: expected X's dtype, float32, got float64"):
        linear_cross_entropy(X, put(np.zeros((5, 4))), y)
    with pytest.raises(TypeError, match="targets: expected an array on the device"):
        linear_cross_entropy(X, W, np.zeros(41, int))
    with pytest.raises(ValueError, match="backend: expected 'cuda' or None"):
        linear_cross_entropy(X, W, y, backend="numpy")


def test_arrays_without_products(monkeypatch):
    """Numba has none."""
    cuda_twin.install(monkeypatch)

    class Foreign:
        __cuda_array_interface__ = {"shape": (2, 2)}  # noqa: RUF012
        shape = (2, 2)

    with pytest.raises(TypeError, match="X: expected an array of CuPy or PyTorch"):
        linear_cross_entropy(Foreign(), Foreign(), Foreign())


def test_bfloat16(monkeypatch):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    cuda_twin.install(monkeypatch)
    X, W, b, y = problem(n=700)
    given = [torch.from_numpy(a).bfloat16() for a in (X, W, b)]
    wide = [a.double().numpy() for a in given]
    got = linear_cross_entropy_with_grad(*given[:2], torch.from_numpy(y), given[2])
    expected = linear_cross_entropy_with_grad(*wide[:2], y, wide[2])
    for a, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(a.float().numpy(), e, atol=0.02 * np.abs(e).max())
    assert got[2].dtype is torch.bfloat16


def test_the_twin_has_the_launchers_arguments():
    pytest.importorskip("numba", reason="numba is not installed")
    try:
        from fastxent._core_cuda import general, launch
    except ImportError as error:
        pytest.skip(str(error))
    for twin in (
        *cuda_twin.LAUNCHERS,
        *cuda_twin.GENERAL,
        cuda_twin.Buffer,
        cuda_twin.Context,
        cuda_twin.Policy,
    ):
        real = getattr(general if twin in cuda_twin.GENERAL else launch, twin.__name__)
        ours, theirs = (inspect.signature(f).parameters.values() for f in (twin, real))
        assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in theirs]
