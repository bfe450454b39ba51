"""Arrays of other libraries: read without a copy where that is possible, and answered in kind."""

from __future__ import annotations

import numpy as np
import pytest
from fresh import printed

import fastxent as fx
from fastxent import _checks, information

Z = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
Y = np.array([0, 1, 2, 0])


class Capsule:
    """What knows DLPack and nothing else."""

    def __init__(self, values):
        self.values = values

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


class Arrayed:
    """What knows ``__array__`` and nothing else, as a data frame."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return self.values


class Standard(Capsule):
    """An array of a library of the array API standard."""

    def __array_namespace__(self):
        return StandardLibrary


class StandardLibrary:
    """The namespace of `Standard`, whose DLPack knows no float16."""

    @staticmethod
    def from_dlpack(values):
        if values.dtype == np.float16:
            raise BufferError("no float16 here")
        return Standard(np.from_dlpack(values))

    @staticmethod
    def asarray(values):
        return Standard(values.copy())


@pytest.mark.parametrize("kind", [Capsule, Arrayed, Standard])
def test_read_without_a_copy(kind):
    seen = _checks.array(kind(Z), "logits")
    assert np.shares_memory(seen, Z)
    assert seen.dtype == Z.dtype


@pytest.mark.parametrize("kind", [Capsule, Arrayed])
def test_answered_by_numpy(kind):
    loss, grad = fx.softmax_cross_entropy_with_grad(kind(Z), kind(Y))
    expected = fx.softmax_cross_entropy_with_grad(Z, Y)
    assert loss == expected[0]
    assert type(grad) is np.ndarray
    np.testing.assert_array_equal(grad, expected[1])


FOCAL, SIGMOID = fx.FocalLoss(), fx.SigmoidCrossEntropy()
BITS = (Z > 0).astype(np.float32)
P = np.exp(Z) / np.exp(Z).sum(axis=1, keepdims=True)
# What every door returns, from arrays made by a function.
DOORS = {
    "softmax": lambda a: fx.softmax_cross_entropy(a(Z), a(Y), reduction="none"),
    "softmax_with_grad": lambda a: fx.softmax_cross_entropy_with_grad(a(Z), a(Y), sample_weight=a(Y + 1)),
    "softmax_forward": lambda a: fx.softmax_cross_entropy_forward(logits=a(Z), targets=a(Y)),
    "softmax_backward": lambda a: fx.softmax_cross_entropy_backward(2.0, a(Z), a(Y)),
    "sigmoid": lambda a: fx.sigmoid_cross_entropy(a(Z), a(BITS), reduction="none"),
    "sigmoid_with_grad": lambda a: fx.sigmoid_cross_entropy_with_grad(a(Z), a(BITS)),
    "sigmoid_forward": lambda a: fx.sigmoid_cross_entropy_forward(a(Z), a(BITS), reduction="none"),
    "sigmoid_backward": lambda a: fx.sigmoid_cross_entropy_backward(2.0, a(Z), a(BITS)),
    "binary": lambda a: fx.binary_cross_entropy(a(P), a(BITS), reduction="none"),
    "binary_with_grad": lambda a: fx.binary_cross_entropy_with_grad(a(P), a(BITS)),
    "linear": lambda a: fx.linear_cross_entropy(a(Z), a(np.ones((3, 5), np.float32)), a(Y), reduction="none"),
    "linear_with_grad": lambda a: fx.linear_cross_entropy_with_grad(
        a(Z), a(np.ones((3, 5), np.float32)), a(Y), a(np.ones(5, np.float32))
    ),
    "loss": lambda a: FOCAL.loss(a(Z), a(Y), a(Y + 1.0), "none"),
    "loss_grad": lambda a: FOCAL.loss_grad(a(Z), a(Y)),
    "grad_hess": lambda a: FOCAL.grad_hess(a(Z), a(Y), hessian="upper"),
    "hvp": lambda a: FOCAL.hvp(a(Z), a(Y), a(Z)),
    "solve": lambda a: SIGMOID.solve(z=a(Z), y=a(BITS), r=a(Z), lam=0.5),
    "entropy": lambda a: information.entropy(a(P)),
    "kl_divergence": lambda a: information.kl_divergence(a(P), a(P[::-1].copy())),
    "js_divergence": lambda a: information.js_divergence(a(P), a(P[::-1].copy())),
    "cross_entropy": lambda a: information.cross_entropy(a(P), a(P)),
    "perplexity": lambda a: information.perplexity(a(P)),
}


def described(name, to, kind, back):
    """What a door returns for arrays of a library: kind, dtype, shape and values, comparable with ``==``.

    An answer that should be an array of the library and is none appears under its own type.
    """
    answers = DOORS[name](to)
    return [
        ("array", (found := back(answer)).dtype, found.shape, found.tolist())
        if isinstance(answer, kind)
        else (type(answer), answer)
        for answer in (answers if isinstance(answers, tuple) else (answers,))
    ]


@pytest.fixture(scope="module")
def numpys():
    """What every door returns for NumPy's arrays; each returns at least one array."""
    answers = {name: described(name, np.asarray, np.ndarray, np.asarray) for name in DOORS}
    assert all("array" in [kind for kind, *_ in answer] for answer in answers.values())
    return answers


@pytest.mark.parametrize("name", DOORS)
def test_standard_arrays_are_answered_in_kind(name, numpys):
    assert described(name, Standard, Standard, lambda answer: answer.values) == numpys[name]


def test_standard_arrays_that_dlpack_does_not_carry():
    _, grad = fx.softmax_cross_entropy_with_grad(Standard(Z.astype(np.float16)), Y)
    assert isinstance(grad, Standard)
    assert grad.values.dtype == np.float16


def test_numpys_own_arrays_and_lists_get_numpys():
    class Own(np.ndarray):
        pass

    for logits in (Z, Z.view(Own), Z.tolist(), tuple(map(tuple, Z.tolist()))):
        assert type(fx.softmax_cross_entropy_with_grad(logits, Y)[1]) is np.ndarray
    assert type(fx.sigmoid_cross_entropy_with_grad(np.float32(1.0), 1)[1]) is np.ndarray


def test_what_is_no_array_is_named():
    class Broken(Capsule):
        def __dlpack__(self, **options):
            raise BufferError("on a device far away")

    with pytest.raises(TypeError, match="logits: expected an array-like of numbers: on a device far away"):
        fx.softmax_cross_entropy(Broken(Z), Y)
    with pytest.raises(TypeError, match="logits: expected"):
        fx.softmax_cross_entropy(object(), Y)


def test_data_frames():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(Z)
    expected = fx.softmax_cross_entropy_with_grad(np.asarray(frame), Y)  # of the frame's strides
    loss, grad = fx.softmax_cross_entropy_with_grad(frame, pandas.Series(Y))
    assert loss == expected[0]
    np.testing.assert_array_equal(grad, expected[1])


def test_columns_of_polars_and_arrow():
    polars, arrow = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    z, y = Z[:, 0].copy(), BITS[:, 0].copy()
    expected = fx.sigmoid_cross_entropy_with_grad(z, y)
    for column in (polars.Series, arrow.array):
        loss, grad = fx.sigmoid_cross_entropy_with_grad(column(z), column(y))
        assert loss == expected[0]
        np.testing.assert_array_equal(grad, expected[1])
    frame = polars.DataFrame({str(k): Z[:, k] for k in range(3)})
    np.testing.assert_array_equal(
        fx.softmax_cross_entropy_with_grad(frame, Y)[1],
        fx.softmax_cross_entropy_with_grad(np.asfortranarray(Z), Y)[1],
    )


@pytest.mark.parametrize("name", DOORS)
def test_jax(name, numpys):
    jax = pytest.importorskip("jax")
    if "perplexity" in name or name in information.__all__:
        pytest.skip("float64 results, which JAX has only where it is told to")
    assert described(name, jax.numpy.asarray, jax.Array, np.asarray) == numpys[name]


def test_jax_bfloat16():
    jax = pytest.importorskip("jax")
    _, grad = fx.softmax_cross_entropy_with_grad(jax.numpy.asarray(Z, "bfloat16"), jax.numpy.asarray(Y))
    assert isinstance(grad, jax.Array)
    assert grad.dtype == "bfloat16"


# PyTorch --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed")


@pytest.mark.parametrize("name", DOORS)
def test_tensors_are_answered_in_kind(name, torch, numpys):
    assert described(name, torch.from_numpy, torch.Tensor, torch.Tensor.numpy) == numpys[name]


def test_tensors_are_read_in_place(torch):
    tensor = torch.from_numpy(Z)
    for view in (
        tensor,
        tensor.t(),
        tensor[::2],
        tensor.bfloat16(),
        tensor.half(),
        torch.nn.Parameter(tensor, False),
    ):
        seen = _checks.array(view, "logits")
        assert seen.__array_interface__["data"][0] == view.data_ptr()
        assert seen.shape == tuple(view.shape)


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_tensors_of_16_bits(kind, torch):
    logits = torch.from_numpy(Z).to(getattr(torch, kind))
    loss, grad = fx.softmax_cross_entropy_with_grad(logits, torch.from_numpy(Y))
    expected_loss, expected = fx.softmax_cross_entropy_with_grad(logits.float().numpy(), Y)
    assert loss == expected_loss
    assert grad.dtype == logits.dtype
    np.testing.assert_allclose(grad.float().numpy(), expected, rtol=2**-8)


def test_out_may_be_a_tensor(torch):
    logits = torch.from_numpy(Z.copy())
    out = torch.empty(4, 3)
    expected = fx.softmax_cross_entropy_with_grad(Z, Y)[1]
    assert fx.softmax_cross_entropy_with_grad(logits, Y, out=out)[1] is out
    np.testing.assert_array_equal(out.numpy(), expected)
    assert fx.softmax_cross_entropy_with_grad(logits, Y, out=logits)[1] is logits
    np.testing.assert_array_equal(logits.numpy(), expected)


def test_bits_of_conjugates_are_resolved(torch):
    values = torch.randn(4, 3, dtype=torch.complex64)
    logits = values.conj().imag
    assert logits.is_neg()
    assert fx.softmax_cross_entropy(logits, Y) == fx.softmax_cross_entropy(-values.imag.numpy(), Y)


def test_tensors_whose_gradient_would_be_lost(torch):
    with pytest.raises(TypeError, match=r"logits: .*fastxent\.torch"):
        fx.softmax_cross_entropy(torch.zeros(2, 3, requires_grad=True), [0, 1])


@pytest.mark.parametrize("far", ["meta", "sparse"])
def test_tensors_that_are_not_in_memory(far, torch):
    logits = torch.zeros(2, 3, device="meta") if far == "meta" else torch.zeros(2, 3).to_sparse()
    with pytest.raises(TypeError, match="logits: expected an array-like of numbers"):
        fx.softmax_cross_entropy(logits, [0, 1])


def test_no_library_is_imported_to_find_out():
    code = (
        "import sys, numpy, fastxent as fx\n"
        "fx.softmax_cross_entropy_with_grad(numpy.zeros((2, 2)), [0, 1])\n"
        "fx.softmax_cross_entropy_with_grad(memoryview(numpy.zeros((2, 2))), [0, 1])\n"
        "print([name for name in ('torch', 'jax', 'cupy', 'ml_dtypes') if name in sys.modules])"
    )
    assert printed(code) == "[]"
