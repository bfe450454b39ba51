"""The CUDA kernels: every variant, dtype, in place or not, ragged or not, against the oracle.

One set of assertions for two machines: a GPU where there is one, and the emulator in a process that
NUMBA_ENABLE_CUDASIM=1 makes its own (`test_cuda.py` starts it). Outputs begin as NaN; what lies between rows and
around them has to stay as it was.
"""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import reference

pytest.importorskip("numba", reason="numba is not installed")
ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
pytestmark = pytest.mark.simulated if SIMULATED else pytest.mark.gpu

slow = pytest.mark.slow

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float64": np.dtype(np.float64),
}
# Relative to the largest number of the result: what rounding to the storage costs, and float32 arithmetic before it.
TOLERANCE = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3, "float64": 4e-15}


class Emulator:
    """The kernels as plain Python."""

    def __init__(self):
        import cuda_emulator

        self.tools = cuda_emulator
        self.launch = cuda_emulator.install()
        self.context = cuda_emulator.context(self.launch)

    def put(self, array):
        return self.tools.buffer(self.launch, array)

    def get(self, buffer):
        return buffer.owner

    def view(self, buffer, offset, shape, strides):
        pointer = self.tools.Pointer(buffer.pointer.memory, offset)
        return buffer._replace(pointer=pointer, address=int(pointer), shape=shape, strides=strides)


class Gpu:
    """The kernels on the device of this machine."""

    def __init__(self):
        from fastxent import _backend

        try:
            self.launch = _backend.choose("cuda").launch
        except ImportError as error:
            pytest.skip(str(error))
        from fastxent._core_cuda.host import Host

        self.host = Host()
        self.context = self.host.context

    def put(self, array):
        return self.host.device(array)

    def get(self, buffer):
        return buffer.owner.copy_to_host().view(DTYPES.get(buffer.dtype, buffer.dtype))

    def view(self, buffer, offset, shape, strides):
        address = buffer.address + offset * DTYPES[buffer.dtype].itemsize
        return buffer._replace(pointer=address, address=address, shape=shape, strides=strides)


@pytest.fixture(scope="module")
def machine():
    """Where the kernels run."""
    return Emulator() if SIMULATED else Gpu()


@pytest.fixture
def sizes(machine, monkeypatch):
    """Change what the launchers choose by."""
    return lambda **changes: monkeypatch.setattr(
        machine.launch, "SIZES", machine.launch.SIZES._replace(**changes)
    )


@pytest.fixture
def regimes(machine, monkeypatch):
    """Names of the kernels that ran."""
    seen = []
    run = machine.launch.run

    def spy(make, arguments, *rest):
        seen.append(make.__name__.removesuffix("_kernel"))
        run(make, arguments, *rest)

    monkeypatch.setattr(machine.launch, "run", spy)
    return seen


def assert_close(actual, expected, tolerance):
    actual = np.asarray(actual, np.float64)
    assert actual.shape == expected.shape
    assert np.array_equal(np.isnan(actual), np.isnan(expected)), (actual, expected)
    finite = np.isfinite(expected)
    assert np.array_equal(actual[~finite & ~np.isnan(expected)], expected[~finite & ~np.isnan(expected)])
    if finite.any():
        scale = max(np.abs(expected[finite]).max(), 1e-30)
        assert np.abs(actual[finite] - expected[finite]).max() <= tolerance * scale


def run(
    machine, z, y, *, dtype, gap=0, offset=0, in_place=False, grad=True, saved=False, bad=False, **options
):
    """(loss of the rows, lse, gradient, sum of the losses, flag) of logits (rows, classes), `offset` into memory."""
    o = {"sample_weight": None, "class_weight": None, "logit_bias": None, "label_smoothing": 0.0}
    o |= {"exclude_target": False, "ignore_index": -100, "z_loss": 0.0, "temperature": 1.0, "scale": 1.0}
    family = options.pop("family", ("cross_entropy", 0.0, 0.0))
    o |= options
    n, k = z.shape
    real = np.float64 if dtype == "float64" else np.float32
    step = k + gap
    shape, strides = (n, k, 1), (step, 1, 1)
    memory = np.full(offset + n * step + 32, 7, DTYPES[dtype])
    inside = np.lib.stride_tricks.as_strided(
        memory[offset:], (n, k), (step * memory.itemsize, memory.itemsize)
    )
    inside[...] = z
    before = memory.copy()
    source = machine.put(memory)
    logits = machine.view(source, offset, shape, strides)
    target = source if in_place else machine.put(np.full_like(memory, 7))
    out = machine.view(target, offset, shape, strides) if grad else None
    loss, lse = (machine.put(np.full((n, 1), np.nan, real)) for _ in range(2))
    arrays = {name: o[name] for name in ("sample_weight", "class_weight", "logit_bias")}
    arrays = {
        name: None if a is None else machine.put(np.ascontiguousarray(a, real)) for name, a in arrays.items()
    }
    if arrays["sample_weight"] is not None:
        arrays["sample_weight"] = arrays["sample_weight"]._replace(shape=(n, 1), strides=(1, 1))
    flag = machine.put(np.zeros(1, np.int64)) if bad else None
    y = machine.put(y[:, None] if y.ndim == 1 else np.ascontiguousarray(y[:, :, None], real))
    call = (*arrays.values(), *list(o.values())[3:], None)
    launch = machine.launch.softmax_launch
    partials = launch(machine.context, logits, y, *call, loss, lse, out, flag, *family)
    if saved:
        target = machine.put(np.full_like(memory, 7)) if not in_place else machine.put(before.copy())
        source = target if in_place else source
        logits = machine.view(source, offset, shape, strides)
        out = machine.view(target, offset, shape, strides)
        launch(machine.context, logits, y, *call, None, None, out, flag, *family, lse)
    total = float(np.sum(machine.get(partials)))
    result = machine.get(target)
    inner = np.lib.stride_tricks.as_strided(
        result[offset:], (n, k), (step * memory.itemsize, memory.itemsize)
    )
    inner = inner.astype(np.float64)
    around = np.ones(len(memory), bool)
    around[(offset + np.arange(n)[:, None] * step + np.arange(k)).ravel()] = False
    assert (result[around] == 7).all(), "written outside the rows"
    flag = 0 if flag is None else int(machine.get(flag)[0])
    return machine.get(loss)[:, 0], machine.get(lse)[:, 0], inner, total, flag


def problem(n, k, dtype, seed=0, offset=0.0, scale=3.0):
    rng = np.random.default_rng(seed)
    z = (offset + scale * rng.standard_normal((n, k))).astype(DTYPES[dtype])
    y = rng.integers(0, k, n)
    if n > 2:
        y[1] = -100
    y[-1] = int(np.argmax(z[-1].astype(np.float64)))
    return z, y


def check(machine, z, y, dtype, **options):
    names = ("sample_weight", "class_weight", "logit_bias", "label_smoothing", "z_loss", "temperature")
    given = {name: options[name] for name in names if name in options}
    smoothing = "exclude_target" if options.get("exclude_target") else "uniform"
    truth = reference.softmax(z.astype(np.float64), y, smoothing=smoothing, reduction="sum", **given)
    loss, lse, grad, total, _ = run(machine, z, y, dtype=dtype, **options)
    narrow = 2e-6 if dtype != "float64" else 4e-15
    assert_close(loss, truth.losses, narrow)
    assert_close(lse, truth.lse, narrow)
    assert math.isclose(total, truth.losses.sum(), rel_tol=narrow * 4)
    if options.get("grad", True):
        assert_close(grad, truth.grad, TOLERANCE[dtype])


# Every kernel -----------------------------------------------------------------------------------------------

# name of the kernel, rows, classes, changes of the sizes; widths are ragged but for the second of a kind
SHAPES = {
    "tile-odd": ("tile", 37, 5, {}),
    "tile-padded": ("tile", 33, 12, {}),
    "8 lanes": ("resident", 5, 61, {}),
    "16 lanes": ("resident", 3, 131, {}),
    "32 lanes": ("resident", 3, 256, {}),
    "block": ("resident", 2, 700, {"lanes": (8,)}),
    "stream": ("stream", 2, 1150, {"lanes": (8,), "blocks": ()}),
    "split": ("split", 2, 1101, {"few_rows": 9}),
}


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float16", marks=slow), "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("in_place", [False, True], ids=["apart", "in place"])
def test_labels(machine, sizes, regimes, shape, dtype, in_place):
    """Loss, lse and gradient; rows one after another, so that a ragged width moves each row's boundary."""
    kernel, n, k, changes = SHAPES[shape]
    sizes(**changes)
    z, y = problem(n, k, dtype)
    check(machine, z, y, dtype, in_place=in_place, scale=1.0)
    assert kernel in regimes


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=slow)])
@pytest.mark.parametrize("shape", ["8 lanes", "block", "stream", "split"], ids=str)
def test_options_and_places(machine, sizes, regimes, shape, dtype):
    """Smoothing, z-loss, temperature and weights; rows with gaps, off every boundary."""
    kernel, n, k, changes = SHAPES[shape]
    sizes(**changes)
    z, y = problem(n, k, dtype, seed=1)
    weight = np.linspace(0.5, 2, n).astype(np.float32)
    options = {"label_smoothing": 0.1, "z_loss": 1e-3, "temperature": 1.7, "sample_weight": weight}
    check(machine, z, y, dtype, gap=3, offset=1, **options)
    assert kernel in regimes
    check(machine, z, y, dtype, offset=5, exclude_target=True, label_smoothing=0.2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_alone(machine, sizes, shape):
    """Without a gradient nothing but loss and lse is written."""
    _, n, k, changes = SHAPES[shape]
    sizes(**changes)
    z, y = problem(n, k, "float32", seed=2)
    check(machine, z, y, "float32", grad=False, class_weight=np.linspace(0.5, 2, k).astype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("in_place", [False, True], ids=["apart", "in place"])
def test_backward_from_lse(machine, sizes, regimes, dtype, in_place):
    """With the lse of a forward pass each block writes its part of a wide row without reading the rest."""
    sizes(lanes=(8,), blocks=())
    z, y = problem(3, 523, dtype, seed=3)
    truth = reference.softmax(z.astype(np.float64), y, label_smoothing=0.1, reduction="sum")
    grad = run(machine, z, y, dtype=dtype, offset=3, saved=True, in_place=in_place, label_smoothing=0.1)[2]
    assert_close(grad, truth.grad, max(TOLERANCE[dtype], 3e-6))
    assert regimes.count("split") == 1


FAMILIES = [("focal", 2.0, 0.0), ("linear", 1.0, 1.5), ("power", 0.7, 0.0)]


@pytest.mark.parametrize("member", FAMILIES, ids=[m[0] for m in FAMILIES])
@pytest.mark.parametrize(
    "shape", ["tile-odd", "8 lanes", *(pytest.param(s, marks=slow) for s in ("stream", "split"))]
)
def test_family(machine, sizes, shape, member):
    """L = f(p_y): the sweeps are those of cross-entropy, f and its slope are a row's."""
    from fastxent import _core_numpy

    _, n, k, changes = SHAPES[shape]
    sizes(**changes)
    z, y = problem(n, k, "float32", seed=4)
    loss, lse, grad = np.empty((n, 1)), np.empty((n, 1)), np.empty((n, k, 1))
    arguments = (None, None, None, 0.0, False, -100, 0.0, 1.0, 1.0)
    z64 = z.astype(np.float64)[:, :, None]
    _core_numpy.softmax_rows(z64, y[:, None], *arguments, loss, lse, grad, None, 1, *member)
    actual = run(machine, z, y, dtype="float32", family=member)
    assert_close(actual[0], loss[:, 0], 3e-6)
    assert_close(actual[2], grad[:, :, 0], 5e-6)


# The careful kernel -----------------------------------------------------------------------------------------


def test_much_smoothing_is_careful(machine, regimes):
    """Above 1/2 a label far below the others would cancel in the quick kernels' sum over all classes."""
    z, y = problem(3, 45, "float32", seed=7)
    z[0, y[0]] = -1e6
    check(machine, z, y, "float32", label_smoothing=0.9999)
    check(machine, z, y, "float32", label_smoothing=0.5)
    assert regimes[0] == "careful" != regimes[-1]


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize(("k", "offset"), [(5, 0), (45, 0), (301, 1), (1030, 0)])
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
def test_careful(machine, regimes, dtype, k, offset, soft):
    """float64, soft targets, logit bias and weights with smoothing: a thread, a warp or a block to a row.

    The wider rows lie on 16-byte boundaries of their own, and their targets on others.
    """
    z, y = problem(3, k, dtype, seed=5)
    rng = np.random.default_rng(6)
    options = {"class_weight": rng.random(k).astype(np.float32), "label_smoothing": 0.1}
    options |= {"logit_bias": rng.standard_normal(k).astype(np.float32), "z_loss": 1e-3, "temperature": 0.5}
    if soft:
        y = rng.random((3, k)).astype(np.float32)
    check(machine, z, y, dtype, offset=offset, in_place=not soft, **options)
    assert regimes == ["careful"]


@pytest.mark.parametrize("member", FAMILIES, ids=[m[0] for m in FAMILIES])
@pytest.mark.parametrize(("dtype", "k", "limit"), [("float64", 11, 1e-14), ("float32", 301, 5e-6)])
def test_careful_family(machine, member, dtype, k, limit):
    """Soft targets mix the losses of the classes."""
    from fastxent import _core_numpy

    z, _ = problem(3, k, dtype, seed=7)
    z = z.astype(np.float64)
    q = np.random.default_rng(8).random((3, k)).astype(dtype).astype(np.float64)
    q[0, :5] = 0
    loss, grad = np.empty((3, 1)), np.empty((3, k, 1))
    arguments = (None, None, None, 0.0, False, -100, 0.0, 1.0, 1.0)
    _core_numpy.softmax_rows(z[:, :, None], q[:, :, None], *arguments, loss, None, grad, None, 1, *member)
    actual = run(machine, z, q, dtype=dtype, family=member)
    assert_close(actual[0], loss[:, 0], limit)
    assert_close(actual[2], grad[:, :, 0], limit)


def test_classes_apart(machine, regimes):
    """Classes on an inner axis: threads walk along it, nothing is transposed."""
    rng = np.random.default_rng(9)
    z = rng.standard_normal((2, 5, 7)).astype(np.float32)
    y = rng.integers(0, 5, (2, 7))
    truth = reference.softmax(z.astype(np.float64), y, axis=1, reduction="sum")
    loss = machine.put(np.full((2, 7), np.nan, np.float32))
    grad = machine.put(np.full((2, 5, 7), np.nan, np.float32))
    options = (None, None, None, 0.0, False, -100, 0.0, 1.0, 1.0, None)
    machine.launch.softmax_launch(
        machine.context, machine.put(z), machine.put(y), *options, loss, None, grad, None
    )
    assert_close(machine.get(loss), truth.losses, 1e-6)
    assert_close(machine.get(grad).reshape(z.shape), truth.grad, 1e-6)
    assert regimes == ["careful"]


# Edges --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["tile-odd", "8 lanes", "block", "stream", "split"], ids=str)
def test_infinities_nan_and_dead_rows(machine, sizes, shape):
    """One +inf takes all, two or none but -inf give NaN, and so does NaN; an ignored row is 0 whatever is in it."""
    _, _, k, changes = SHAPES[shape]
    sizes(**changes)
    z = np.random.default_rng(10).standard_normal((9, k)).astype(np.float32)
    y = np.array([0, 1, 2, 3, 4, -100, 2, 3, 1])
    z[0, 1] = np.inf  # the label is another
    z[1, 1] = np.inf  # the label
    z[2, [0, 3]] = np.inf
    z[3] = -np.inf
    z[4, 2] = np.nan
    z[5] = np.nan  # ignored
    z[6, 2] = -np.inf  # the label
    z[7, :2] = -np.inf
    z[8] = np.float32(-3.4e38)  # what stands for -inf in masks
    truth = reference.softmax(z.astype(np.float64), y, reduction="sum")
    loss, _, grad, _, _ = run(machine, z, y, dtype="float32")
    assert_close(loss, truth.losses, 2e-6)
    assert_close(grad, truth.grad, 2e-6)


@pytest.mark.parametrize(
    ("shape", "smoothing", "z_loss"),
    [
        *((shape, *each) for shape in ("tile-odd", "8 lanes", "stream") for each in ((0, 1e-2), (0.1, 0))),
        pytest.param("split", 0.1, 1e-2, marks=slow),
        ("soft", 0.0, 1e-2),
    ],
)
def test_an_infinite_logit_has_an_infinite_loss(machine, sizes, shape, smoothing, z_loss):
    """lse^2, or a share of the other classes, outgrows all else; a class without probability keeps its gradient."""
    from fastxent import _core_numpy

    _, _, k, changes = SHAPES.get(shape, (None, 0, 9, {}))
    sizes(**changes)
    z = np.random.default_rng(15).standard_normal((5, k)).astype(np.float32)
    y = np.array([0, 1, 2, 3, 4])
    z[0, 3] = z[1, 1] = np.inf  # another than the label, and the label
    z[2, 2] = -np.inf  # the label
    z[3, 1], z[3, 2] = np.inf, -np.inf
    z[4, 0] = np.nan
    if shape == "soft":  # unchecked: shares that take from the loss what others add
        y = (2 * np.eye(k)[y] - 0.1).astype(np.float32)
    arguments = (None, None, None, smoothing, False, -100, z_loss, 1.0, 1.0)
    loss, lse, grad = np.empty((5, 1)), np.empty((5, 1)), np.empty((5, k, 1))
    targets = y[:, :, None].astype(np.float64) if shape == "soft" else y[:, None]
    z64 = z.astype(np.float64)[:, :, None]
    _core_numpy.softmax_rows(z64, targets, *arguments, loss, lse, grad, None, 1)
    how = {"label_smoothing": smoothing, "z_loss": z_loss, "saved": shape == "split"}
    actual = run(machine, z, y, dtype="float32", **how)
    assert np.isposinf(actual[0][[0, 1, 3]]).all()
    for ours, theirs in zip(actual, (loss[:, 0], lse[:, 0], grad[:, :, 0]), strict=False):
        assert_close(ours, theirs, 2e-6)


@pytest.mark.parametrize("shape", ["tile-odd", "8 lanes", "stream", "split"], ids=str)
def test_confident_rows_keep_their_digits(machine, sizes, shape):
    """Far from 0 and sure of the label: log1p of what is left, not a difference of large numbers."""
    _, _, k, changes = SHAPES[shape]
    sizes(**changes)
    z = np.random.default_rng(11).standard_normal((4, k)).astype(np.float32)
    z += np.array([[0.0], [1000.0], [-10000.0], [0.0]], np.float32)
    y = np.array([0, 1, 2, k - 1])
    z[np.arange(4), y] += np.array([18, 30, 25, 50], np.float32)
    truth = reference.softmax(z.astype(np.float64), y, reduction="sum")
    loss, _, grad, _, _ = run(machine, z, y, dtype="float32")
    assert np.abs(loss / truth.losses - 1).max() < 3e-5
    assert np.abs(grad / truth.grad - 1).max() < 3e-5


@pytest.mark.parametrize("shape", ["tile-odd", "8 lanes", "stream", "split"], ids=str)
def test_bad_labels_are_reported(machine, sizes, shape):
    """The first row whose label is no class, NaN in that row and nowhere else, no access outside."""
    _, _, k, changes = SHAPES[shape]
    sizes(**changes)
    z, _ = problem(5, k, "float32", seed=12)
    y = np.array([0, 1, k, -1, 2])
    loss, _, grad, _, flag = run(machine, z, y, dtype="float32", bad=True)
    assert 5 - flag == 2
    assert np.array_equal(np.isnan(loss), [False, False, True, True, False])
    assert np.array_equal(np.isnan(grad).all(axis=1), np.isnan(loss))


def test_one_class(machine):
    """A row of one class has no loss."""
    z, y = problem(3, 1, "float32")
    y[:] = 0
    loss, _, grad, _, _ = run(machine, z, y, dtype="float32")
    assert not loss.any()
    assert not grad.any()


# Sigmoid --------------------------------------------------------------------------------------------------

ELEMENTS = [("cross_entropy", 0.0, 0.0, 0.0), ("focal", 2.0, 0.25, 0.75), ("asymmetric", 1.0, 4.0, 0.05)]


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float16", marks=slow), "bfloat16", "float64"])
@pytest.mark.parametrize("targets", ["same", "compute", "bool"])
@pytest.mark.parametrize("weighted", [False, True], ids=["flat", "weighted"])
@pytest.mark.parametrize("member", ELEMENTS, ids=[m[0] for m in ELEMENTS])
def test_sigmoid(machine, dtype, targets, weighted, member):
    """Flat vectors with a ragged head and tail, or two axes with weights of stride 0."""
    from fastxent import _core_numpy

    real = np.float64 if dtype == "float64" else np.float32
    if dtype == "float64" and targets == "bool":
        pytest.skip("bytes are targets of float32 arithmetic")
    rng = np.random.default_rng(13)
    shape = (3, 43) if weighted else (1, 211)
    z = (4 * rng.standard_normal(shape)).astype(DTYPES[dtype])
    z[0, :4] = [60, -60, 0, np.inf]
    y = rng.random(shape) < 0.5
    y[0, 3] = True
    kind = {"same": DTYPES[dtype], "compute": np.dtype(real), "bool": np.dtype(bool)}[targets]
    y = y.astype(kind)
    weight = np.array([[2.0], [0.0], [1.0]]) if weighted else None
    positive = 1 + rng.random(shape[1]) if weighted else None
    loss64, grad64 = np.empty(shape), np.empty(shape)
    total, _, _ = _core_numpy.sigmoid_elements(
        z.astype(np.float64), y.astype(np.float64), weight, positive, 0.1, 0.5, loss64, grad64, None, 1, *member
    )  # fmt: skip
    offset = 0 if weighted else 3
    memory = np.zeros(offset + z.size + 16, DTYPES[dtype])
    memory[offset : offset + z.size] = z.ravel()
    strides = (shape[1], 1)
    logits = machine.view(machine.put(memory), offset, shape, strides)
    out = machine.put(np.full_like(memory, 7))
    there = np.zeros(offset + y.size + 16, kind)
    there[offset : offset + y.size] = y.ravel()
    there = machine.put(there)
    if kind.name == "bool" and not SIMULATED:
        there = there._replace(pointer=there.address + offset, address=there.address + offset)
        there = there._replace(shape=shape, strides=strides)
    else:
        there = machine.view(there, offset, shape, strides)
    loss = machine.put(np.full(shape, np.nan, real))
    weights = [None, None]
    if weighted:
        weights[0] = machine.put(weight.astype(real))._replace(shape=shape, strides=(1, 0))
        weights[1] = machine.put(positive.astype(real))._replace(shape=shape, strides=(0, 1))
    partials = machine.launch.sigmoid(
        machine.context, logits, there, *weights, 0.1, 0.5, None, loss, machine.view(out, offset, shape, strides),
        None, *member,
    )  # fmt: skip
    assert_close(machine.get(loss).reshape(shape), loss64, 3e-6 if dtype != "float64" else 1e-14)
    result = machine.get(out)
    assert_close(result[offset : offset + z.size].reshape(shape), grad64, max(TOLERANCE[dtype], 1e-14))
    assert (result[:offset] == 7).all()
    assert (result[offset + z.size :] == 7).all()
    if np.isfinite(total):
        assert math.isclose(float(np.sum(machine.get(partials))), total, rel_tol=1e-5)


# Totals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
@pytest.mark.parametrize("n", [3, 300])
def test_totals(machine, n, soft):
    """Denominators: weights of labels or of distributions without ignored rows, 1 for a NaN; the same bits twice."""
    from fastxent import _core_numpy

    rng = np.random.default_rng(14)
    n, k = (n // 10 + 2 if soft else n), 5  # soft targets take a warp to a row
    y = rng.random((n, k, 1)).astype(np.float32) if soft else rng.integers(0, k, (n, 1))
    v, w = rng.random((n, 1)).astype(np.float32), rng.random(k).astype(np.float32)
    v[0] = np.nan
    if not soft:
        y[1:3, 0] = -100, k
    expected, _, bad = _core_numpy.target_totals(y, v, w, k, -100, 1)
    assert bad == (-1 if soft else 2)
    totals = [
        machine.get(
            machine.launch.totals_launch(
                machine.context, machine.put(y), machine.put(v), machine.put(w), k, -100, None
            )
        )[0]
        for _ in range(2)
    ]
    assert math.isclose(totals[0], expected, rel_tol=1e-6)
    assert totals[0] == totals[1]


@pytest.mark.skipif(not SIMULATED, reason="what the emulator finds, a GPU does not")
def test_a_barrier_that_not_everybody_reaches(monkeypatch):
    """Threads that wait for one that has ended, or for each other at two barriers, are an error; time is none."""
    import threading

    import cuda_emulator
    from numba import cuda

    monkeypatch.setattr(cuda_emulator, "PATIENCE", 0.05)

    def left():
        if cuda.threadIdx.x:
            cuda.syncthreads()

    def crossed():
        if cuda.threadIdx.x:
            cuda.shfl_xor_sync(3, 1, 1)
        else:
            cuda.syncthreads()

    def late():
        if cuda.threadIdx.x == 1:
            threading.Event().wait(0.3)
        cuda.syncthreads()

    for kernel in (left, crossed):
        with pytest.raises(threading.BrokenBarrierError):
            cuda_emulator.Kernel(kernel, ())[1, 2, None]()
    cuda_emulator.Kernel(late, ())[1, 2, None]()
