"""fastxent.torch against PyTorch: values, gradients, dtypes, errors, second derivatives, operators, compilation."""

from __future__ import annotations

import copy
import itertools
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import fastxent as fx  # noqa: E402
from fastxent import torch as ft  # noqa: E402
from fastxent.torch import _binary, _linear, _losses, _softmax  # noqa: E402

F = torch.nn.functional
REDUCTIONS = ("mean", "sum", "none")
# Rounding of the dtype, and for 16-bit ones PyTorch's own: its log-probabilities are rounded, ours are not.
TOLERANCE = {
    torch.float64: dict(rtol=1e-12, atol=1e-13),
    torch.float32: dict(rtol=2e-5, atol=2e-6),
    torch.bfloat16: dict(rtol=3e-2, atol=3e-2),
    torch.float16: dict(rtol=4e-3, atol=4e-3),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def assert_near(ours, theirs, dtype):
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, **TOLERANCE[dtype], equal_nan=True)


def leaves(*tensors):
    """Fresh leaves that require gradients, with the values of tensors; None for None."""
    return [None if t is None else t.detach().clone().requires_grad_() for t in tensors]


def assert_alike(ours, theirs, tensors, dtype, **options):
    """The same loss and the same gradients of all tensors from both functions, for a random upstream gradient."""
    results = []
    upstream = None
    for function in (ours, theirs):
        inputs = leaves(*tensors)
        loss = function(*inputs, **options)
        if upstream is None:
            upstream = torch.randn(loss.shape).to(loss.dtype)
        wanted = [t for t in inputs if t is not None]
        results.append((loss.detach(), *torch.autograd.grad(loss, wanted, upstream)))
    for a, b in zip(*results, strict=True):
        assert_near(a, b, dtype)
    return results[0]


def labels_like(input, ignored=None):
    shape = (*input.shape[:1], *input.shape[2:]) if input.dim() > 1 else ()
    labels = torch.randint(0, input.shape[1 if input.dim() > 1 else 0], shape)
    if ignored is not None and labels.numel():
        labels.view(-1)[::3] = ignored
    return labels


# Softmax: values ------------------------------------------------------------------------------------------

SHAPES = [(5,), (1, 1), (7, 5), (3, 5, 4), (2, 3, 4, 5), (33, 70), (0, 4)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_labels(shape, dtype):
    """The grid of reductions, weights, smoothing and ignored labels."""
    input = (3 * torch.randn(shape)).to(dtype)
    classes = shape[1 if len(shape) > 1 else 0]
    weights = (None, (torch.rand(classes) + 0.5).to(dtype))
    for reduction, weight, smoothing, ignored in itertools.product(
        REDUCTIONS, weights, (0.0, 0.2), (None, -100, 0)
    ):
        target = labels_like(input, ignored)
        options = {"reduction": reduction, "label_smoothing": smoothing}
        if ignored is not None:
            options["ignore_index"] = ignored
        both = [
            lambda z, f=f, target=target, weight=weight, options=options: f(z, target, weight, **options)
            for f in (ft.cross_entropy, F.cross_entropy)
        ]
        loss, grad = assert_alike(*both, (input,), dtype)
        assert loss.shape == (target.shape if reduction == "none" else ())
        assert grad.shape == shape


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_probabilities(shape, dtype):
    """Gradients by probabilities and class weights too; probabilities need not be any."""
    input = (3 * torch.randn(shape)).to(dtype)
    dim = 1 if len(shape) > 1 else 0
    target = torch.randn(shape).softmax(dim).to(dtype)
    weight = (torch.rand(shape[dim]) + 0.5).to(dtype)
    for reduction, smoothing in itertools.product(REDUCTIONS, (0.0, 0.2)):
        options = {"reduction": reduction, "label_smoothing": smoothing}
        _, *grads = assert_alike(ft.cross_entropy, F.cross_entropy, (input, target), dtype, **options)
        assert [grad.shape for grad in grads] == [shape, shape]
        if dtype in (torch.float32, torch.float64):
            assert_alike(ft.cross_entropy, F.cross_entropy, (input, target, weight), dtype, **options)
            assert_alike(ft.cross_entropy, F.cross_entropy, (input, target - 0.5, weight), dtype, **options)


def test_target_of_another_dtype():
    input = torch.randn(6, 4)
    for kind in (torch.float64, torch.float16, torch.bfloat16):
        target = torch.randn(6, 4).softmax(1).to(kind)
        loss, expected = ft.cross_entropy(input, target), F.cross_entropy(input, target)
        assert_near(loss, expected, torch.float32)
    labels = labels_like(input)
    for kind in (torch.uint8, torch.int8, torch.int16, torch.int32):
        assert ft.cross_entropy(input, labels.to(kind)) == ft.cross_entropy(input, labels)


def test_one_row():
    """(C,) with labels () and (1,), for which PyTorch has a loss and no gradient."""
    input = torch.randn(5)
    for reduction in REDUCTIONS:
        both = [
            lambda z, f=f, reduction=reduction: f(z, torch.tensor(2), reduction=reduction)
            for f in (ft.cross_entropy, F.cross_entropy)
        ]
        loss, grad = assert_alike(*both, (input,), torch.float32)
        (leaf,) = leaves(input)
        other = ft.cross_entropy(leaf, torch.tensor([2]), reduction=reduction)
        assert torch.equal(other, loss)
        other.backward()
        assert leaf.grad.sign().equal((grad / grad[0] * leaf.grad[0]).sign())


def test_layouts():
    """Channels-last, transposed, strided and expanded logits; the gradient has the layout of a leaf."""
    images = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    target = torch.randint(0, 3, (2, 4, 5))
    ft.cross_entropy(images, target).backward()
    assert images.grad.stride() == images.stride()
    own, images.grad = images.grad, None
    F.cross_entropy(images, target).backward()
    assert_near(own, images.grad, torch.float32)
    base = torch.randn(12, 10)
    labels = torch.randint(0, 5, (6,))
    for view in (base.t()[:6, :5], base[::2, ::2], base[:6, :5], base[:1, :5].expand(6, 5), base[6:, 5:]):
        a, b = (
            torch.autograd.functional.jacobian(lambda z, f=f: f(z, labels), view)
            for f in (ft.cross_entropy, F.cross_entropy)
        )
        assert_near(a, b, torch.float32)
    bits = torch.randn(6, 5, dtype=torch.complex64).conj().imag
    assert bits.is_neg()
    assert_near(ft.cross_entropy(bits, labels), F.cross_entropy(bits, labels), torch.float32)


def test_no_copy_of_the_logits(monkeypatch):
    """The kernel reads the caller's memory, of any layout and 16-bit dtype."""
    seen = []
    run = _softmax.Rows.run
    monkeypatch.setattr(
        _softmax.Rows, "run", lambda self, **k: seen.append(self.problem.logits) or run(self, **k)
    )
    images = torch.randn(2, 3, 4, 5)
    for input in (
        images,
        images.contiguous(memory_format=torch.channels_last),
        images.bfloat16(),
        images.half(),
    ):
        for grad in (False, True):
            ft.cross_entropy(input.requires_grad_(grad), torch.zeros(2, 4, 5, dtype=torch.int64))
            assert seen.pop().__array_interface__["data"][0] == input.data_ptr()


def test_all_rows_ignored_and_no_rows():
    """NaN for the mean, as PyTorch; gradients of 0."""
    input = torch.randn(3, 4, requires_grad=True)
    loss = ft.cross_entropy(input, torch.full((3,), -100))
    assert loss.isnan()
    assert not torch.autograd.grad(loss, input)[0].any()
    assert ft.cross_entropy(input, torch.full((3,), -100), reduction="sum") == 0
    for target in (torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)):
        assert ft.cross_entropy(torch.zeros(0, 4), target).isnan()
        assert ft.cross_entropy(torch.zeros(0, 4), target, reduction="none").shape == (0,)


def test_many_rows_of_few_classes_with_ignored_ones():
    """Where the denominator is guessed first, and the guess is wrong."""
    input = torch.randn(70_001, 3, dtype=torch.float64)
    target = torch.randint(0, 3, (70_001,))
    target[7] = -100
    both = [lambda z, f=f: f(z, target) for f in (ft.cross_entropy, F.cross_entropy)]
    assert_alike(*both, (input,), torch.float64)


def test_infinite_logits_have_their_limits():
    input = torch.tensor([[0.0, -torch.inf], [torch.inf, 1.0]], requires_grad=True)
    loss = ft.cross_entropy(input, torch.tensor([0, 0]), reduction="none")
    assert loss.tolist() == [0.0, 0.0]
    assert not torch.autograd.grad(loss.sum(), input)[0].any()


def test_soft_targets_of_half_precision_are_at_least_as_exact():
    """No rounded log-probabilities: closer to float64 than PyTorch's float16."""
    input, target = (
        8 * torch.randn(64, 50, dtype=torch.float64),
        torch.randn(64, 50, dtype=torch.float64).softmax(1),
    )
    truth = F.cross_entropy(input.half().double(), target.half().double(), reduction="none")
    ours, theirs = (
        (f(input.half(), target.half(), reduction="none").double() - truth).abs().max()
        for f in (ft.cross_entropy, F.cross_entropy)
    )
    assert ours <= theirs


def test_half_gradients_take_the_loss_scale_before_rounding():
    """Gradients of 1e-9 vanish in float16; times a loss scale of 2^16 they do not."""
    input = torch.zeros(8, 4096, dtype=torch.float16, requires_grad=True)
    target = torch.arange(8)
    (grad,) = torch.autograd.grad(ft.cross_entropy(input, target) * 2.0**10, input)
    expected = 2.0**10 / 8 / 4096
    assert abs(grad[0, 1].item() - expected) < 1e-3 * expected
    (grad,) = torch.autograd.grad(ft.cross_entropy(input, target, reduction="sum") / 2.0**6 * 2.0**6, input)
    assert grad[0, 1] > 0


# Binary: values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(), (7,), (6, 5), (2, 3, 4), (0, 3)], ids=str)
def test_binary(shape, dtype):
    input, target = (3 * torch.randn(shape)).to(dtype), torch.rand(shape).to(dtype)
    weights = [None, torch.rand(shape).to(dtype)]
    if len(shape) > 1:
        weights = [None, torch.rand(shape[-1]).to(dtype), torch.rand((*shape[:-1], 1)).to(dtype)]
    for reduction, weight, positive in itertools.product(REDUCTIONS, weights, weights):
        options = {"reduction": reduction, "weight": weight, "pos_weight": positive}
        both = (ft.binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits)
        assert_alike(*both, (input, target), dtype, **options)


def test_binary_takes_what_pytorch_takes():
    """Targets outside [0, 1], negative weights, other dtypes; the loss has the target's dtype."""
    input, target = torch.randn(4, 3), 3 * torch.randn(4, 3)
    both = (ft.binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits)
    assert_alike(*both, (input, target), torch.float32, pos_weight=torch.tensor([-1.0, 0.0, 2.0]))
    for a, b in itertools.product((torch.float32, torch.float64, torch.bfloat16), repeat=2):
        ours, theirs = (f(input.to(a), target.to(b)) for f in both)
        assert ours.dtype == theirs.dtype
        assert abs(ours - theirs) < 0.05 * abs(theirs)


# Linear: values -------------------------------------------------------------------------------------------


def whole(input, linear_weight, bias, target, weight=None, **options):
    """The oracle: whole logits in PyTorch."""
    shape = (*input.shape[:-1], *linear_weight.shape[:-1])
    logits = F.linear(input, linear_weight.flatten(0, -2), None if bias is None else bias.flatten()).view(
        shape
    )
    return F.cross_entropy(logits, target, weight, **options)


def in_blocks(input, linear_weight, bias, target, weight=None, **options):
    return ft.linear_cross_entropy(input, linear_weight, target, linear_bias=bias, weight=weight, **options)


LINEAR = [((6,), (5, 6)), ((9, 6), (5, 6)), ((9, 6), (5, 3, 6)), ((4, 6), (5, 2, 3, 6)), ((0, 6), (5, 6))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shapes", LINEAR, ids=str)
@pytest.mark.parametrize("blocks", ["one", "many", pytest.param("large", marks=pytest.mark.compiled)])
def test_linear(shapes, dtype, blocks, monkeypatch):
    if blocks == "large":
        monkeypatch.setattr(_linear, "LARGE_W", 1)
        monkeypatch.setattr("fastxent.linear.LARGE_W", 1)
    if blocks == "many":
        monkeypatch.setattr(_linear, "BLOCK_ELEMENTS", 1)
        monkeypatch.setattr(_linear, "FEWEST_ROWS", 2)
    input, head = (torch.randn(shape, dtype=dtype) for shape in shapes)
    biases = (None, torch.randn(head.shape[:-1], dtype=dtype))
    logits = torch.empty(*input.shape[:-1], *head.shape[:-1])
    soft = torch.randn(logits.shape, dtype=dtype).softmax(min(1, logits.dim() - 1))
    weight = torch.rand(5, dtype=dtype)
    for bias, reduction, smoothing, w in itertools.product(biases, REDUCTIONS, (0.0, 0.1), (None, weight)):
        for target in (labels_like(logits), labels_like(logits, -100), soft):
            options = {"target": target, "weight": w, "reduction": reduction, "label_smoothing": smoothing}
            assert_alike(in_blocks, whole, (input, head, bias), dtype, **options)


def test_linear_of_all_ignored_rows():
    input, head = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    loss = ft.linear_cross_entropy(input, head, torch.full((3,), -100))
    assert loss.isnan()
    assert not any(grad.any() for grad in torch.autograd.grad(loss, (input, head)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("large", [False, pytest.param(True, marks=pytest.mark.compiled)])
def test_linear_in_half_precision(dtype, large, monkeypatch):
    """Computed in float32: nearer to float64 than PyTorch's 16-bit products."""
    if large:
        monkeypatch.setattr(_linear, "LARGE_W", 1)
        monkeypatch.setattr("fastxent.linear.LARGE_W", 1)
    exact = [
        torch.randn(40, 32).to(dtype).double(),
        torch.randn(50, 32).to(dtype).double(),
        torch.randn(50).to(dtype).double(),
    ]
    target = torch.randint(0, 50, (40,))
    truth = assert_alike(in_blocks, whole, exact, torch.float64, target=target, reduction="sum")
    torch.manual_seed(0)
    for reduction in REDUCTIONS:
        assert_alike(
            in_blocks, whole, [t.float() for t in exact], torch.float32, target=target, reduction=reduction
        )
    inputs = leaves(*(t.to(dtype) for t in exact))
    loss = in_blocks(*inputs, target, reduction="sum")
    assert loss.dtype == dtype
    assert abs(loss.double() - truth[0]) <= 4e-3 * truth[0]
    for grad, t in zip(torch.autograd.grad(loss, inputs), exact, strict=True):
        assert grad.dtype == dtype
        assert grad.shape == t.shape
        assert grad.isfinite().all()


@pytest.mark.parametrize("large", [False, pytest.param(True, marks=pytest.mark.compiled)])
def test_linear_gradients_only_where_needed(large, monkeypatch):
    if large:
        monkeypatch.setattr(_linear, "LARGE_W", 1)
        monkeypatch.setattr("fastxent.linear.LARGE_W", 1)
    input, head, target = torch.randn(4, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 3])
    for needs in itertools.product((False, True), repeat=2):
        tensors = [t.clone().requires_grad_(need) for t, need in zip((input, head), needs, strict=True)]
        loss = ft.linear_cross_entropy(*tensors, target)
        assert loss.requires_grad == any(needs)
        if any(needs):
            loss.backward()
            assert [t.grad is not None for t in tensors] == list(needs)


def test_linear_takes_options_of_pytorch():
    """A call with PyTorch's choice of chunks carries over."""
    given = torch.randn(4, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 3])
    assert ft.linear_cross_entropy(*given, options=object()) == ft.linear_cross_entropy(*given)


# Backward -------------------------------------------------------------------------------------------------

FUNCTIONS = {
    "softmax": lambda z: ft.cross_entropy(z, torch.tensor([0, 1, 2, 0])),
    "binary": lambda z: ft.binary_cross_entropy_with_logits(z, torch.full_like(z, 0.3)),
    "linear": lambda z: ft.linear_cross_entropy(
        z, torch.arange(15, dtype=z.dtype).view(5, 3).sin(), torch.tensor([0, 1, 2, 0])
    ),
    "focal": lambda z: ft.as_module(fx.FocalLoss())(z, torch.tensor([0, 1, 2, 0])),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_backward_twice(name):
    """The gradient is handed out once; a second backward gives the same numbers and spoils none that were given."""
    f = FUNCTIONS[name]
    input = torch.randn(4, 3, requires_grad=True)
    loss = f(input)
    (first,) = torch.autograd.grad(loss, input, retain_graph=True)
    copy_of_first = first.clone()
    (second,) = torch.autograd.grad(2 * loss, input)
    torch.testing.assert_close(second, 2 * copy_of_first, rtol=1e-6, atol=1e-7)
    assert torch.equal(first, copy_of_first)
    loss = f(input)
    loss.backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(input.grad, 2 * copy_of_first, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_upstream_one_is_folded_away(name):
    """The kept gradient becomes the leaf's: no copy."""
    input = torch.randn(4, 3, requires_grad=True)
    loss = FUNCTIONS[name](input)
    kept = loss.grad_fn.kept
    kept = kept[0] if isinstance(kept, tuple) else kept
    address = kept.data_ptr()
    del kept
    loss.backward()
    assert input.grad.data_ptr() == address
    assert loss.grad_fn is None or loss.grad_fn.kept is None


def test_logits_may_be_overwritten_after_the_loss():
    """PyTorch's function allows it, since it keeps probabilities; this one keeps the gradient."""
    input = torch.randn(4, 3, requires_grad=True)
    logits = input * 2
    loss = ft.cross_entropy(logits, torch.tensor([0, 1, 2, 0]))
    with torch.no_grad():
        logits.zero_()
    (grad,) = torch.autograd.grad(loss, input)
    (expected,) = torch.autograd.grad(F.cross_entropy(input * 2, torch.tensor([0, 1, 2, 0])), input)
    assert_near(grad, expected, torch.float32)


def test_logits_overwritten_before_a_second_sweep_are_an_error():
    input = torch.randn(4, 3, requires_grad=True)
    logits = input * 2
    loss = ft.cross_entropy(logits, torch.tensor([0, 1, 2, 0]), reduction="none")
    with torch.no_grad():
        logits.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.sum().backward()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_gradient_is_computed_without_need(name):
    input = torch.randn(4, 3, requires_grad=True)
    expected = FUNCTIONS[name](input)
    with torch.no_grad():
        loss = FUNCTIONS[name](input)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected.detach())
    with torch.inference_mode():
        assert FUNCTIONS[name](input) == loss
        assert FUNCTIONS[name](torch.ones(4, 3)).isfinite()
    assert not FUNCTIONS[name](input.detach()).requires_grad


def test_checkpoint():
    input = torch.randn(4, 3, requires_grad=True)
    target = torch.tensor([0, 1, 2, 0])
    loss = torch.utils.checkpoint.checkpoint(
        lambda z: ft.cross_entropy(z * 2, target), input, use_reentrant=False
    )
    (grad,) = torch.autograd.grad(loss, input)
    (expected,) = torch.autograd.grad(F.cross_entropy(input * 2, target), input)
    assert_near(grad, expected, torch.float32)


# Second derivatives ---------------------------------------------------------------------------------------


def both_gradchecks(f, *inputs):
    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradgradcheck_of_labels(reduction):
    input = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[0, 1], [2, -100], [1, 1], [0, 2]])
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    options = {"weight": weight, "reduction": reduction, "label_smoothing": 0.1}
    both_gradchecks(lambda z: ft.cross_entropy(z, target, **options), input)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradgradcheck_of_probabilities(reduction):
    """By logits, probabilities and class weights, and mixed."""
    input = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    target = torch.randn(4, 3, dtype=torch.float64).softmax(1).requires_grad_()
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    options = {"reduction": reduction, "label_smoothing": 0.1}
    both_gradchecks(lambda z, t, w: ft.cross_entropy(z, t, w, **options), input, target, weight)
    both_gradchecks(lambda z: ft.cross_entropy(z, target.detach(), **options), input)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradgradcheck_of_binary(reduction):
    input = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    target = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    options = {
        "reduction": reduction,
        "weight": torch.rand(3).double(),
        "pos_weight": torch.rand(4, 1).double(),
    }
    both_gradchecks(lambda z, t: ft.binary_cross_entropy_with_logits(z, t, **options), input, target)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradgradcheck_of_linear(reduction):
    input = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    head = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 1, 2, 0])
    both_gradchecks(lambda *t: in_blocks(*t, target, reduction=reduction), input, head, bias)


def test_second_derivatives_are_those_of_pytorch():
    """Hessian times vector, and the kernel's product behind it."""
    input, v, target = torch.randn(6, 5), torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, -100])
    products = [
        torch.autograd.functional.vhp(lambda z, f=f: f(z, target, label_smoothing=0.1), input, v)[1]
        for f in (ft.cross_entropy, F.cross_entropy)
    ]
    assert_near(*products, torch.float32)


def test_third_derivatives_are_an_error():
    input = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(ft.cross_entropy(input, torch.tensor([0, 1])), input, create_graph=True)
    (second,) = torch.autograd.grad(grad.pow(2).sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        torch.autograd.grad(second.sum(), input)


# Loss objects ---------------------------------------------------------------------------------------------

LABELS = torch.tensor([0, 1, 2, 0])
MULTILABEL = torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 1, 0], [0, 1, 0]]).double()
OBJECTS = [
    (fx.SoftmaxCrossEntropy(label_smoothing=0.1), LABELS),
    (fx.FocalLoss(), LABELS),
    (fx.GeneralizedCrossEntropy(), LABELS),
    (fx.JensenShannonLoss(), LABELS),
    (fx.SigmoidCrossEntropy(), MULTILABEL),
    (fx.BinaryFocalLoss(), MULTILABEL),
    (0.5 * fx.SoftmaxCrossEntropy() + fx.FocalLoss(gamma=1.0), LABELS),
    (fx.DistillationLoss(), (LABELS, torch.ones(4, 3).double())),
    (fx.GANGeneratorLoss(), None),
]


@pytest.mark.parametrize(("loss", "target"), OBJECTS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_module_of_a_loss(loss, target, reduction):
    """gradcheck and gradgradcheck, sample weights, and the loss object's own numbers."""
    module = ft.as_module(loss, reduction)
    input = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(4, 3 if loss.elementwise else 1).double()
    weight = weight if loss.elementwise else weight[:, 0]
    assert torch.autograd.gradcheck(lambda z: module(z, target, weight), (input,))
    if not loss.no_curvature:
        assert torch.autograd.gradgradcheck(lambda z: module(z, target, weight), (input,))
    y = (
        tuple(t.numpy() for t in target)
        if isinstance(target, tuple)
        else None
        if target is None
        else target.numpy()
    )
    expected = loss.loss(input.detach().numpy(), y, weight.numpy(), reduction)
    np.testing.assert_array_equal(module(input, target, weight).detach().numpy(), expected)


def test_module_of_a_loss_of_regions():
    module = ft.as_module(fx.DiceLoss())
    input = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: module(z, MULTILABEL), (input,))
    with pytest.raises(ValueError, match="regions"):
        ft.as_module(fx.DiceLoss(), "none")
    with pytest.raises(ValueError, match="same rows"):
        ft.as_module(fx.FocalLoss() + fx.FocalLoss(axis=1), "none")


def test_module_of_a_loss_on_another_axis():
    module = ft.as_module(fx.FocalLoss(axis=1), "none")
    input = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 3, (2, 4))
    assert module(input, target).shape == (2, 4)
    both_gradchecks(lambda z: module(z, target), input)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_module_of_a_loss_keeps_the_dtype(dtype):
    input = torch.randn(4, 3).to(dtype).requires_grad_()
    loss = ft.as_module(fx.FocalLoss())(input, LABELS)
    assert loss.dtype == dtype
    (grad,) = torch.autograd.grad(loss, input)
    assert grad.dtype == dtype


def test_module_refuses_what_is_no_loss():
    with pytest.raises(TypeError, match="loss object"):
        ft.as_module("focal")
    with pytest.raises(TypeError, match=r"make an object of the class: FocalLoss\(\)$"):
        ft.as_module(fx.FocalLoss)
    with pytest.raises(ValueError, match="reduction"):
        ft.as_module(fx.FocalLoss(), "average")
    with pytest.raises(RuntimeError, match="not differentiable"):
        ft.as_module(fx.SigmoidCrossEntropy())(torch.zeros(2), torch.zeros(2, requires_grad=True))


# Modules --------------------------------------------------------------------------------------------------


def modules():
    weight = torch.rand(5)
    return [
        (
            ft.CrossEntropyLoss(weight, ignore_index=1, label_smoothing=0.1),
            torch.randn(4, 5),
            torch.arange(4),
        ),
        (ft.BCEWithLogitsLoss(weight, pos_weight=weight), torch.randn(4, 5), torch.rand(4, 5)),
        (ft.LinearCrossEntropyLoss(5, 7, bias=True), torch.randn(4, 5), torch.arange(4)),
        (
            ft.LinearCrossEntropyLoss(5, 7, out_features=(2,), weight=torch.rand(7)),
            torch.randn(4, 5),
            torch.ones(4, 2, dtype=torch.int64),
        ),
        (
            ft.as_module(0.5 * fx.FocalLoss() + fx.SoftmaxCrossEntropy(), "none"),
            torch.randn(4, 5),
            torch.arange(4),
        ),
    ]


@pytest.mark.parametrize("number", range(5))
def test_modules_copy_pickle_and_load(number):
    module, input, target = modules()[number]
    expected = module(input, target)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(input, target), expected)
        assert repr(other) == repr(module)
    other = modules()[number][0]
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(input, target), expected)
    assert (
        module.double()(input.double(), target.double() if target.is_floating_point() else target).dtype
        == torch.float64
    )


def test_modules_are_those_of_pytorch():
    """Constructors, attributes and state."""
    assert isinstance(ft.CrossEntropyLoss(), torch.nn.CrossEntropyLoss)
    assert isinstance(ft.BCEWithLogitsLoss(), torch.nn.BCEWithLogitsLoss)
    theirs = torch.nn.LinearCrossEntropyLoss(5, 7, out_features=(2,), bias=True, weight=torch.rand(7))
    ours = ft.LinearCrossEntropyLoss(5, 7, out_features=(2,), bias=True)
    ours.weight = torch.empty(7)
    ours.load_state_dict(theirs.state_dict())
    input, target = torch.randn(3, 5), torch.randint(0, 7, (3, 2))
    assert_near(ours(input, target), theirs(input, target), torch.float32)
    with pytest.raises(RuntimeError, match="weight"):
        ft.LinearCrossEntropyLoss(5, 7, weight=torch.rand(6))
    with pytest.raises(RuntimeError, match="label_smoothing"):
        ft.LinearCrossEntropyLoss(5, 7, label_smoothing=2.0)


@pytest.mark.parametrize(
    "name", ["cross_entropy", "binary_cross_entropy_with_logits", "linear_cross_entropy"]
)
def test_signatures_are_those_of_pytorch(name):
    import inspect

    ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (ft, F))
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]


@pytest.mark.filterwarnings("ignore:size_average and reduce args")
def test_deprecated_reductions():
    input, target = torch.randn(4, 5), torch.arange(4)
    for average, reduce in itertools.product((None, True, False), repeat=2):
        given = {"size_average": average, "reduce": reduce}
        assert_near(
            ft.cross_entropy(input, target, **given), F.cross_entropy(input, target, **given), torch.float32
        )
        soft = input.sigmoid()
        ours = ft.binary_cross_entropy_with_logits(input, soft, **given)
        assert_near(ours, F.binary_cross_entropy_with_logits(input, soft, **given), torch.float32)


# Autocast -------------------------------------------------------------------------------------------------


def test_autocast():
    """The loss is float32, as under PyTorch's rules; nothing is computed in 16 bits."""
    layer = torch.nn.Linear(8, 5)
    X, target = torch.randn(6, 8), torch.randint(0, 5, (6,))
    results = []
    for f in (ft.cross_entropy, F.cross_entropy):
        layer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = f(layer(X), target, torch.rand(5, generator=torch.Generator().manual_seed(0)))
        loss.backward()
        results.append((loss.detach(), layer.weight.grad.clone()))
    assert_near(results[0][0], results[1][0], torch.float32)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=2e-2, atol=2e-3)
    exact = ft.linear_cross_entropy(X, layer.weight, target, linear_bias=layer.bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ft.linear_cross_entropy(X, layer.weight, target, linear_bias=layer.bias), exact)
        assert ft.linear_cross_entropy(X.bfloat16(), layer.weight, target).dtype == torch.float32
        soft = torch.rand(6, 5).bfloat16()
        ours = ft.binary_cross_entropy_with_logits(X[:, :5].bfloat16(), soft)
        assert ours.dtype == F.binary_cross_entropy_with_logits(X[:, :5].bfloat16(), soft).dtype


# Errors ---------------------------------------------------------------------------------------------------

Z, Y = torch.randn(3, 5), torch.tensor([0, 1, 2])
WRONG = {
    "label too large": (Z, torch.tensor([0, 1, 7])),
    "label negative": (Z, torch.tensor([0, 1, -1])),
    "float labels": (Z, Y.float()),
    "bool labels": (Z, Y.bool()),
    "too few labels": (Z, Y[:2]),
    "labels as a column": (Z, Y[:, None]),
    "integer input": (Z.long(), Y),
    "complex input": (Z.cfloat(), Y),
    "scalar input": (torch.randn(()), torch.rand(())),
    "vector and other probabilities": (torch.randn(5), torch.randn(4)),
    "spatial labels of another length": (torch.randn(2, 5, 4), torch.zeros(2, 3, dtype=torch.int64)),
    "spatial labels of another number": (torch.randn(2, 5, 4, 3), torch.zeros(2, 4, dtype=torch.int64)),
    "spatial labels of another batch": (torch.randn(2, 5, 4, 3), torch.zeros(3, 4, 3, dtype=torch.int64)),
    "integer probabilities": (Z, torch.zeros(3, 5, dtype=torch.int64)),
    "too few probabilities": (Z, torch.rand(3, 4)),
    "no classes": (torch.randn(3, 0), Y),
    "array input": (Z.numpy(), Y),
    "list target": (Z, Y.tolist()),
    "no target": (Z, None),
}
WRONG_OPTIONS = {
    "short weight": {"weight": torch.rand(4)},
    "weight of another dtype": {"weight": torch.rand(5).double()},
    "weight with gradient": {"weight": torch.rand(5, requires_grad=True)},
    "weight as a list": {"weight": [1.0] * 5},
    "smoothing above 1": {"label_smoothing": 1.5},
    "smoothing as None": {"label_smoothing": None},
    "reduction": {"reduction": "average"},
    "ignore_index as a float": {"ignore_index": 1.5},
    "ignore_index as None": {"ignore_index": None},
}


def error_of(call, *args, **kwargs):
    """The type of the error that a call raises."""
    with pytest.raises(Exception) as raised:  # noqa: PT011
        call(*args, **kwargs)
    return raised.type


@pytest.mark.parametrize("name", WRONG)
def test_errors_have_the_types_of_pytorch(name):
    expected = error_of(F.cross_entropy, *WRONG[name])
    assert issubclass(error_of(ft.cross_entropy, *WRONG[name]), expected)


@pytest.mark.parametrize("name", WRONG_OPTIONS)
def test_errors_of_options_have_the_types_of_pytorch(name):
    expected = error_of(F.cross_entropy, Z, Y, **WRONG_OPTIONS[name])
    assert issubclass(error_of(ft.cross_entropy, Z, Y, **WRONG_OPTIONS[name]), expected)
    if "dtype" not in name and "gradient" not in name and "None" not in name and "float" not in name:
        expected = error_of(F.cross_entropy, Z, torch.rand(3, 5), **WRONG_OPTIONS[name])
        assert issubclass(error_of(ft.cross_entropy, Z, torch.rand(3, 5), **WRONG_OPTIONS[name]), expected)


def test_errors_of_probabilities():
    expected = error_of(F.cross_entropy, Z, torch.rand(3, 5), ignore_index=2)
    assert issubclass(error_of(ft.cross_entropy, Z, torch.rand(3, 5), ignore_index=2), expected)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((Z, torch.rand(2, 5)), {}),
        ((Z, torch.rand(3, 5) > 0.5), {}),
        ((Z, torch.zeros(3, 5, dtype=torch.int64)), {}),
        ((Z.long(), torch.rand(3, 5)), {}),
        ((Z, torch.rand(3, 5)), {"weight": torch.rand(4)}),
        ((Z, torch.rand(3, 5)), {"weight": torch.rand(2, 3, 5)}),
        ((Z, torch.rand(3, 5)), {"pos_weight": torch.rand(4)}),
        ((Z, torch.rand(3, 5)), {"pos_weight": torch.rand(2, 3, 5)}),
        ((Z, torch.rand(3, 5)), {"weight": torch.rand(5, requires_grad=True)}),
        ((Z, torch.rand(3, 5)), {"pos_weight": torch.rand(5, requires_grad=True)}),
        ((Z, torch.rand(3, 5)), {"reduction": "average"}),
    ],
)
def test_errors_of_binary(args, kwargs):
    expected = error_of(F.binary_cross_entropy_with_logits, *args, **kwargs)
    assert issubclass(error_of(ft.binary_cross_entropy_with_logits, *args, **kwargs), expected)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((torch.randn(3, 5), torch.randn(4, 6), Y), {}),
        ((torch.randn(3, 5), torch.randn(5), Y), {}),
        ((torch.randn(1, 3, 5), torch.randn(4, 5), Y), {}),
        ((torch.randn(5), torch.randn(4, 2, 5), torch.zeros(2, dtype=torch.int64)), {}),
        ((torch.randn(3, 5), torch.randn(4, 5).double(), Y), {}),
        ((torch.randn(3, 5), torch.randn(2, 5), Y), {}),
        ((torch.randn(3, 5), torch.randn(4, 5), Y), {"linear_bias": torch.rand(3)}),
        ((torch.randn(3, 5), torch.randn(4, 5), Y), {"weight": torch.rand(3)}),
        ((torch.randn(3, 5), torch.randn(4, 5), Y), {"label_smoothing": 1.5}),
        ((torch.randn(3, 5), torch.randn(4, 5), Y), {"reduction": "average"}),
        ((torch.randn(3, 5), torch.randn(4, 5), torch.rand(3, 4)), {"ignore_index": -100}),
    ],
)
def test_errors_of_linear(args, kwargs):
    expected = error_of(F.linear_cross_entropy, *args, **kwargs)
    assert issubclass(error_of(ft.linear_cross_entropy, *args, **kwargs), expected)


def test_error_names_the_first_bad_label():
    with pytest.raises(IndexError, match=r"target\[1, 0\]: 9 is out of bounds: expected 0 <= label < 5"):
        ft.cross_entropy(torch.randn(2, 5, 2), torch.tensor([[0, 1], [9, 8]]))
    with pytest.raises(IndexError, match=r"target\[2\]: 9"):
        ft.linear_cross_entropy(torch.randn(3, 2), torch.randn(5, 2), torch.tensor([0, 1, 9]))


def test_nothing_is_differentiable_in_silence():
    """Where gradients do not flow it is an error, and no None."""
    head = torch.randn(4, 5)
    for extra in (
        {"target": torch.rand(3, 4, requires_grad=True)},
        {"target": torch.rand(3, 4), "weight": torch.rand(4, requires_grad=True)},
    ):
        with pytest.raises(RuntimeError, match="not differentiable"):
            ft.linear_cross_entropy(Z, head, **extra)
        with torch.no_grad():
            assert ft.linear_cross_entropy(Z, head, **extra).isfinite()


# Operators, compilers, transforms -------------------------------------------------------------------------


def operator_samples(reduction):
    input, images = torch.randn(4, 5), torch.randn(2, 5, 3).transpose(0, 2).contiguous().transpose(0, 2)
    labels, soft = torch.tensor([0, 1, -100, 4]), torch.rand(4, 5)
    head, bias = torch.randn(5, 3), torch.randn(5)
    keep = reduction != "none"
    options = (reduction, -100, 0.1)
    for z, y in ((input, labels), (input, soft), (images, torch.zeros(2, 3, dtype=torch.int64))):
        z = z.clone().requires_grad_()
        yield _softmax.forward_op, (z, y, torch.rand(5), *options, torch.float32, keep)
        upstream = torch.randn(y.shape if y is not soft else 4) if reduction == "none" else torch.tensor(0.3)
        yield _softmax.backward_op, (upstream.requires_grad_(), z, y, None, *options)
        yield _softmax.hvp_op, (torch.randn_like(z), upstream.detach(), z.detach(), y, None, *options)
    tensors = (input.clone().requires_grad_(), soft.clone().requires_grad_(), torch.rand(5), None)
    yield _binary.forward_op, (*tensors, reduction, torch.float32, keep)
    tensors = (*leaves(torch.randn(4, 3), head), labels, *leaves(bias), None)
    yield _linear.forward_op, (*tensors, *options, torch.float32, [keep] * 3)
    tensors = [None if t is None else t.detach() for t in tensors]
    upstream = torch.randn(4) if reduction == "none" else torch.tensor(0.3)
    yield _linear.backward_op, (upstream, *tensors, *options, [True, False, True])
    name = repr(ft.as_module(fx.FocalLoss()).loss)
    yield (
        _losses.forward_op,
        (input.clone().requires_grad_(), None, [labels], name, reduction, torch.float32, True),
    )


@pytest.mark.parametrize("reduction", ["mean", "none", pytest.param("sum", marks=pytest.mark.slow)])
def test_opcheck(reduction):
    """All four checks of every operator: schema, autograd registration, fake tensors, ahead-of-time dispatch."""
    for op, args in operator_samples(reduction):
        results = torch.library.opcheck(op, args)
        assert len(results) == 4
        assert set(results.values()) == {"SUCCESS"}


def compiled_cases():
    labels, soft = torch.tensor([0, 1, 2, 0, 1, -100]), torch.rand(6, 5)
    focal = ft.as_module(fx.FocalLoss())
    for reduction in REDUCTIONS:
        yield (
            lambda z, r=reduction: ft.cross_entropy(z * 2, labels, label_smoothing=0.1, reduction=r).sum() * 3
        )
        yield lambda z, r=reduction: ft.binary_cross_entropy_with_logits(z * 2, soft, reduction=r).sum()
        yield lambda z, r=reduction: ft.linear_cross_entropy(z * 2, z.detach(), labels, reduction=r).sum()
    yield lambda z: ft.cross_entropy(z, soft) + focal(z, labels)


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compile(compiler):
    """One graph, the same numbers, and no sweep for a gradient in it where none is wanted."""
    for f in compiled_cases():
        torch.compiler.reset()
        fast = torch.compile(f, fullgraph=True, backend=compiler)
        input = torch.randn(6, 5, requires_grad=True)
        loss, expected = fast(input), f(input)
        torch.testing.assert_close(loss, expected)
        grads = (torch.autograd.grad(value, input)[0] for value in (loss, expected))
        torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-6)
        with torch.no_grad():
            torch.testing.assert_close(fast(input), expected.detach())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compile_of_another_number_of_rows():
    fast = torch.compile(
        lambda z, y: ft.cross_entropy(z, y), fullgraph=True, backend="aot_eager", dynamic=True
    )
    for n in (4, 5, 9):
        input, target = torch.randn(n, 3, requires_grad=True), torch.randint(0, 3, (n,))
        torch.testing.assert_close(fast(input, target), F.cross_entropy(input, target))


def test_tracing_sees_the_operator():
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(lambda z: ft.cross_entropy(z, Y))(torch.randn(3, 5))
    assert "fastxent.softmax_cross_entropy" in graph.code
    other = torch.randn(3, 5)
    assert torch.equal(graph(other), ft.cross_entropy(other, Y))


def test_meta_tensors():
    loss = ft.cross_entropy(
        torch.empty(3, 5, device="meta"), torch.empty(3, dtype=torch.int64, device="meta"), reduction="none"
    )
    assert loss.is_meta
    assert loss.shape == (3,)


def test_tensor_subclasses_and_modes():
    class Named(torch.Tensor):
        pass

    input = torch.randn(3, 5)
    loss = ft.cross_entropy(input.as_subclass(Named), Y)
    assert isinstance(loss, Named)
    assert loss.item() == ft.cross_entropy(input, Y).item()
    for f in (ft.cross_entropy, ft.binary_cross_entropy_with_logits):
        assert isinstance(f(input.as_subclass(Named), input.sigmoid()), Named)
    assert isinstance(ft.linear_cross_entropy(input.as_subclass(Named), input, Y), Named)
    with torch.device("meta"):
        assert ft.cross_entropy(input, Y).item() == loss.item()
    parameter = torch.nn.Parameter(input)
    ft.cross_entropy(parameter, Y).backward()
    assert type(parameter.grad) is torch.Tensor


def test_threads_share_nothing():
    from concurrent.futures import ThreadPoolExecutor

    def step(k):
        input = torch.full((64, 10), float(k)).requires_grad_()
        loss = ft.cross_entropy(input, torch.zeros(64, dtype=torch.int64))
        loss.backward()
        return loss.item(), input.grad

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(step, range(16)))
    for k, (loss, grad) in enumerate(results):
        expected_loss, expected_grad = step(k)
        assert loss == expected_loss
        assert torch.equal(grad, expected_grad)


def test_large_gradients_are_numpys():
    """Large memory in huge pages: the gradient's storage is not PyTorch's."""
    input = torch.zeros(600, 1000, requires_grad=True)
    ft.cross_entropy(input, torch.zeros(600, dtype=torch.int64)).backward()
    assert not input.grad.untyped_storage().resizable()


@pytest.mark.slow
def test_more_than_two_to_the_31_logits_without_their_memory():
    """Zero-stride logits; the loss alone, since a gradient would be 8 GB."""
    row = torch.randn(1, 1 << 16)
    loss = ft.cross_entropy(row.expand(40_000, -1), torch.zeros(40_000, dtype=torch.int64))
    torch.testing.assert_close(loss, F.cross_entropy(row, torch.zeros(1, dtype=torch.int64)))
