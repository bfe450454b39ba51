"""Binary cross-entropy of logits: PyTorch's `binary_cross_entropy_with_logits` on the kernels.

As in `_softmax`, the gradient comes with the forward sweep and is handed out once.  Second derivatives are those of the
gradient written in PyTorch's operations, to any order.
"""

import math

import torch
from torch.nn.functional import logsigmoid
from torch.overrides import handle_torch_function, has_torch_function_variadic

from fastxent.losses._elementwise import ElementCall
from fastxent.torch import _arguments, _on_device
from fastxent.torch._arrays import array, reduced, scaled, tensor, traced
from fastxent.torch._softmax import deferred, in_layout_of


def call(input, target, weight, pos_weight, reduction):
    """The checked call of the kernels; PyTorch's mean divides by the number of elements, weighted or not."""
    reduction = "mean_all" if reduction == "mean" else reduction
    arrays = (array(input), array(target), array(weight), array(pos_weight))
    return ElementCall("sigmoid_elements", *arrays, 0.0, reduction, None, None, None, False)


def value(loss, input, reduction, dtype):
    """Loss as a tensor; NaN for the mean of nothing."""
    return reduced(math.nan if reduction == "mean" and input.numel() == 0 else loss, dtype)


def gradient(upstream, input, target, weight, pos_weight, reduction):
    """Gradient by the input for an upstream scalar, or one number per element for reduction="none"."""
    problem = call(input, target, weight, pos_weight, reduction)
    if reduction != "none":
        return tensor(problem.run(grad=True, upstream=upstream.item())[1])
    rows = array(upstream).astype(problem.problem.dtype, copy=False)
    return tensor(problem.run(grad=True, row_upstream=rows)[1])


@torch.library.custom_op(
    "fastxent::sigmoid_cross_entropy",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor input, Tensor target, Tensor? weight, Tensor? pos_weight, str reduction, ScalarType dtype, "
    "bool keep) -> (Tensor, Tensor)",
)
def forward_op(input, target, weight, pos_weight, reduction, dtype, keep):
    """Loss, and the gradient of the reduced loss; the gradient is empty unless `keep`."""
    loss, grad, _ = call(input, target, weight, pos_weight, reduction).run(grad=keep)
    loss = value(loss, input, reduction, dtype)
    return loss, in_layout_of(input, tensor(grad)) if keep else input.new_empty(0)


@forward_op.register_kernel("cuda")
def _(input, target, weight, pos_weight, reduction, dtype, keep):
    with _on_device.beside(input):
        loss, grad, _ = _on_device.elements(input, target, weight, pos_weight, reduction).run(grad=keep)
    return _on_device.value(loss, input, reduction, dtype), grad if keep else input.new_empty(0)


@forward_op.register_fake
def _(input, target, weight, pos_weight, reduction, dtype, keep):
    loss = input.new_empty(input.shape if reduction == "none" else (), dtype=dtype)
    return loss, torch.empty_like(input) if keep else input.new_empty(0)


def derivatives(upstream, tensors, reduction, needs):
    """Gradients by input and target in PyTorch's operations, those that are needed, themselves differentiable."""
    input, target, weight, pos_weight = tensors
    if reduction == "mean":
        upstream = upstream / input.numel()
    if weight is not None:
        upstream = upstream * weight
    positive = 1 if pos_weight is None else pos_weight
    by_input = by_target = None
    if needs[0]:
        by_input = (1 - target) * torch.sigmoid(input) - positive * target * torch.sigmoid(-input)
        by_input = (upstream * by_input).to(input.dtype)
    if needs[1]:
        by_target = logsigmoid(-input) - positive * logsigmoid(input)
        by_target = (upstream * by_target).to(target.dtype)
    return by_input, by_target


def _setup(ctx, inputs, output):
    *tensors, reduction, _, keep = inputs
    ctx.save_for_backward(*tensors, output[1] if keep else None)
    ctx.reduction = reduction
    ctx.set_materialize_grads(False)


def _backward(ctx, upstream, _):
    *tensors, kept = ctx.saved_tensors
    nothing = (None,) * 5
    if upstream is None:
        return None, None, *nothing
    needs = ctx.needs_input_grad
    if kept is None or torch.is_grad_enabled():
        return *derivatives(upstream, tensors, ctx.reduction, needs), *nothing
    _, by_target = derivatives(upstream, tensors, ctx.reduction, (False, needs[1]))
    return kept * upstream.to(kept.dtype), by_target, *nothing


forward_op.register_autograd(_backward, setup_context=_setup)


class _BinaryCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, target, weight, pos_weight, reduction, dtype):
        keep = ctx.needs_input_grad[0] and not deferred(input, reduction)
        loss, grad, _ = call(input, target, weight, pos_weight, reduction).run(grad=keep)
        ctx.save_for_backward(input, target, weight, pos_weight)
        ctx.kept, ctx.reduction = tensor(grad), reduction
        return value(loss, input, reduction, dtype)

    @staticmethod
    def backward(ctx, upstream):
        kept, ctx.kept = ctx.kept, None
        needs, reduction = ctx.needs_input_grad, ctx.reduction
        nothing = (None,) * 4
        if torch.is_grad_enabled() or traced(upstream):
            return *derivatives(upstream, ctx.saved_tensors, reduction, needs), *nothing
        by_input = by_target = None
        if kept is not None:
            by_input = scaled(kept, upstream)
        elif needs[0]:
            by_input = gradient(upstream, *ctx.saved_tensors, reduction)
        if needs[1]:
            by_target = derivatives(upstream, ctx.saved_tensors, reduction, (False, True))[1]
        return by_input, by_target, *nothing


def binary_cross_entropy_with_logits(
    input, target, weight=None, size_average=None, reduce=None, reduction="mean", pos_weight=None
):
    """Binary cross-entropy of logits: `torch.nn.functional.binary_cross_entropy_with_logits`.

    Parameters
    ----------
    input : Tensor of any shape, float32, float64, bfloat16 or float16
        Logits, on the CPU or a CUDA device.
    target : Tensor of the shape of `input`, floating point, on its device
        Probability of the positive class of each logit.
    weight : Tensor that broadcasts to the shape of `input`, optional
        Factor of each element's loss.
    size_average, reduce : bool, optional
        Deprecated by PyTorch; they override `reduction`.
    reduction : {"mean", "sum", "none"}, default="mean"
        "mean" divides by the number of elements, as PyTorch does.
    pos_weight : Tensor that broadcasts to the shape of `input`, optional
        Factor of the positive term.

    Returns
    -------
    Tensor
        A scalar, or the shape of `input`, in the dtype of `target`. Gradients flow to `input` and `target`.

    Raises
    ------
    TypeError, RuntimeError, ValueError, NotImplementedError
        What PyTorch raises for the same mistake: shapes and dtypes that do not fit, a `weight` or `pos_weight` that
        requires a gradient; a tensor on another kind of device.

    Examples
    --------
    >>> import torch
    >>> from fastxent.torch import binary_cross_entropy_with_logits
    >>> input = torch.tensor([0.0, 0.0], requires_grad=True)
    >>> loss = binary_cross_entropy_with_logits(input, torch.tensor([1.0, 0.0]))
    >>> loss.backward()
    >>> round(loss.item(), 4), input.grad.tolist()
    (0.6931, [-0.25, 0.25])
    """
    if has_torch_function_variadic(input, target, weight, pos_weight):
        given = (input, target, weight, size_average, reduce, reduction, pos_weight)
        return handle_torch_function(
            binary_cross_entropy_with_logits, (input, target, weight, pos_weight), *given
        )
    reduction = _arguments.reduction_of(reduction, size_average, reduce)
    _arguments.tensors(input=input, target=target, weight=weight, pos_weight=pos_weight)
    _arguments.floating(input)
    _arguments.elements(input, target, weight, pos_weight)
    function = "binary_cross_entropy_with_logits"
    _arguments.not_differentiable(function, weight=weight, pos_weight=pos_weight)
    dtype = _arguments.loss_dtype(target)
    grad = (input.requires_grad or target.requires_grad) and torch.is_grad_enabled()
    tensors = (input, target, weight, pos_weight)
    if input.is_cuda and _on_device.on_device(*tensors):
        return _on_device.BinaryCrossEntropy.apply(*tensors, reduction, dtype, derivatives)
    if traced(*tensors):
        keep = grad and input.requires_grad and not deferred(input, reduction)
        return forward_op(*tensors, reduction, dtype, keep)[0]
    if grad:
        return _BinaryCrossEntropy.apply(*tensors, reduction, dtype)
    return value(call(*tensors, reduction).run()[0], input, reduction, dtype)
