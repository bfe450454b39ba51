"""Softmax cross-entropy of logits: PyTorch's `cross_entropy` on the kernels.

The forward sweep leaves with loss and gradient; backward hands that gradient out, scaled in place by the upstream
number unless it is 1.  It is handed out once: a second backward over the same graph sweeps again.  Two cases sweep in
backward only: reduction="none", where every row has its upstream number, and float16, whose small gradients need the
loss scale before they are rounded.

In eager mode an autograd.Function costs less than a custom operator; compilers, tracers and transforms see the
operators, and so does double backward, by the kernels' Hessian product.
"""

import math

import numpy as np
import torch
from torch.overrides import handle_torch_function, has_torch_function_variadic

from fastxent import _backend
from fastxent.losses._softmax import SoftmaxCall, SoftmaxOptions
from fastxent.torch import _arguments, _on_device
from fastxent.torch._arrays import array, class_dim, one_like, per_class, reduced, scaled, tensor, traced


class Rows(SoftmaxCall):
    """One call under PyTorch's conventions: its denominators, NaN for no rows, IndexError for a label out of range.

    `shape` stands for an input that is not there (the logits of a linear layer).
    """

    def __init__(self, input, target, weight, reduction, ignore_index, label_smoothing, shape=None):
        logits = array(input)
        if shape is not None:
            logits = np.broadcast_to(
                np.zeros((), np.float64 if input.dtype is torch.float64 else np.float32), shape
            )
        shape = logits.shape
        targets, ignore = array(target), ignore_index
        if target.is_floating_point() and targets.shape == shape:
            reduction = "mean_all" if reduction == "mean" else reduction
        elif len(shape) == 1:
            targets = targets.reshape(())
        axis = 1 if len(shape) > 1 else 0
        options = SoftmaxOptions(
            array(weight), label_smoothing, "uniform", ignore, 0.0, 1.0, None, axis, None, "nan"
        )
        super().__init__(logits, targets, None, reduction, options, None, None, False)

    def refuse(self, bad):
        """Labels out of range; PyTorch takes any numbers as probabilities."""
        problem = self.problem
        if bad < 0 or problem.soft:
            return
        at = tuple(map(int, np.unravel_index(bad, problem.row_shape)))
        where = f"target[{', '.join(map(str, at))}]" if at else "target"
        label = problem.targets.reshape(problem.row_shape)[at]
        raise IndexError(
            f"{where}: {label} is out of bounds: expected 0 <= label < {problem.n_classes}, or ignore_index"
        )

    def gradient(self, upstream):
        """Gradient for an upstream tensor: a scalar, or one number per row for reduction="none"."""
        if self.reduction == "none":
            rows = array(upstream).astype(self.problem.dtype, copy=False)
            self.weight = self.problem.rows(rows)
            return tensor(self.run(grad=True)[1])
        return tensor(self.run(grad=True, upstream=upstream.item())[1])

    def product(self, upstream, x):
        """Hessian for an upstream tensor, times x."""
        factor = 1.0
        if self.reduction == "none":
            self.weight = self.problem.rows(array(upstream).astype(self.problem.dtype, copy=False))
        else:
            factor = upstream.item()
        product = tensor(self.hvp(array(x)))
        return product if factor == 1 else product.mul_(factor)


def small(input, target, options, need_grad, upstream=None):
    """Loss and gradient of few labels by the bare kernel: the checks of a call object would take longer than the sweep.

    For (N, C) logits of 32 or 64 bits, without weights and smoothing; `upstream` has one number per row.
    """
    reduction, ignore_index, _ = options
    logits, labels = array(input)[:, :, None], array(target)[:, None]
    weight = None if upstream is None else array(upstream)[:, None]
    grad = np.empty_like(logits) if need_grad else None
    loss = np.empty(len(labels), logits.dtype) if reduction == "none" else None

    def sweep(denominator):
        scale = 1.0 / denominator if denominator else 0.0
        outputs = (None if loss is None else loss[:, None], None, grad, None)
        return _kernel(
            logits, labels, weight, None, None, 0.0, False, ignore_index, 0.0, 1.0, scale, *outputs, 1
        )

    denominator = float(len(labels)) if reduction == "mean" else 1.0
    total, bad, counted = sweep(denominator)
    if bad >= 0:
        Rows(input, target, None, *options).refuse(bad)
    if reduction == "mean" and counted != denominator:
        denominator = float(counted)
        sweep(denominator)
    if loss is None:
        loss = total / denominator if denominator else math.nan
    return loss, grad[:, :, 0] if need_grad else None


_kernel = _backend.choose(None).softmax_rows
FEW = 1 << 12  # logits


def deferred(input, reduction):
    """Whether the gradient waits for the upstream numbers."""
    return reduction == "none" or input.dtype is torch.float16


# --------------------------------------------------------------------------------------------------------- operators


@torch.library.custom_op(
    "fastxent::softmax_cross_entropy",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor input, Tensor target, Tensor? weight, str reduction, int ignore_index, float label_smoothing, "
    "ScalarType dtype, bool keep) -> (Tensor, Tensor)",
)
def forward_op(input, target, weight, reduction, ignore_index, label_smoothing, dtype, keep):
    """Loss, and the gradient of the reduced loss; the gradient is empty unless `keep`."""
    loss, grad, *_ = Rows(input, target, weight, reduction, ignore_index, label_smoothing).run(grad=keep)
    return reduced(loss, dtype), in_layout_of(input, tensor(grad)) if keep else input.new_empty(0)


@forward_op.register_kernel("cuda")
def _(input, target, weight, reduction, ignore_index, label_smoothing, dtype, keep):
    with _on_device.beside(input):
        rows = _on_device.rows(input, target, weight, reduction, ignore_index, label_smoothing)
        loss, grad, *_ = rows.run(grad=keep)
    return loss.to(dtype), grad if keep else input.new_empty(0)


@forward_op.register_fake
def _(input, target, weight, reduction, ignore_index, label_smoothing, dtype, keep):
    dim = class_dim(input)
    shape = (*input.shape[:dim], *input.shape[dim + 1 :]) if reduction == "none" else ()
    return input.new_empty(shape, dtype=dtype), torch.empty_like(input) if keep else input.new_empty(0)


@torch.library.custom_op(
    "fastxent::softmax_cross_entropy_backward",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor upstream, Tensor input, Tensor target, Tensor? weight, str reduction, int ignore_index, "
    "float label_smoothing) -> Tensor",
)
def backward_op(upstream, input, target, weight, reduction, ignore_index, label_smoothing):
    """Gradient with respect to the input."""
    rows = Rows(input, target, weight, reduction, ignore_index, label_smoothing)
    return in_layout_of(input, rows.gradient(upstream))


@backward_op.register_kernel("cuda")
def _(upstream, input, target, weight, reduction, ignore_index, label_smoothing):
    with _on_device.beside(input):
        rows = _on_device.rows(input, target, weight, reduction, ignore_index, label_smoothing)
        return _on_device.gradient(rows, upstream)


@torch.library.custom_op(
    "fastxent::softmax_cross_entropy_hvp",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor upstream, Tensor input, Tensor target, Tensor? weight, str reduction, int ignore_index, "
    "float label_smoothing) -> Tensor",
)
def hvp_op(x, upstream, input, target, weight, reduction, ignore_index, label_smoothing):
    """Hessian with respect to the input, times x. Third derivatives are an error."""
    rows = Rows(input, target, weight, reduction, ignore_index, label_smoothing)
    return in_layout_of(input, rows.product(upstream, x))


@hvp_op.register_kernel("cuda")
def _(x, upstream, input, target, weight, reduction, ignore_index, label_smoothing):
    with _on_device.beside(input):
        rows = _on_device.rows(input, target, weight, reduction, ignore_index, label_smoothing)
        product = rows.hvp(x.contiguous())
    upstream = upstream.unsqueeze(class_dim(input)) if reduction == "none" else upstream
    return product.mul_(upstream)


@backward_op.register_fake
def _(upstream, input, *_):
    return torch.empty_like(input)


@hvp_op.register_fake
def _(x, upstream, input, *_):
    return torch.empty_like(input)


def in_layout_of(input, grad):
    """Gradient with the strides that the fake operators promise."""
    like = torch.empty_like(input, device="meta")
    return grad if grad.stride() == like.stride() else torch.empty_like(input).copy_(grad)


# ---------------------------------------------------------------------------------------------------------- autograd


def derivatives(upstream, tensors, options, kept, needs):
    """Gradients of input, target and weight, those that are needed; `kept` may be overwritten.

    Where a graph of them is asked for, every one is differentiable again.
    """
    input = tensors[0]
    by_input = by_target = by_weight = None
    if needs[0]:
        if torch.is_grad_enabled() or traced(upstream, input):
            by_input = backward_op(upstream, *tensors, *options)
        elif kept is not None:
            by_input = scaled(kept, upstream)
        else:
            by_input = Rows(*tensors, *options).gradient(upstream)
    if needs[1] or needs[2]:
        dim = class_dim(input)
        cost = -torch.log_softmax(input, dim)
        by_target, by_weight = of_probabilities(upstream, tensors, options, cost, needs[1:])
    return by_input, by_target, by_weight


def of_probabilities(upstream, tensors, options, cost, needs):
    """Derivatives by probabilities and class weights of the rows' sums of cost_k w_k t'_k, times upstream."""
    input, target, weight = tensors
    reduction, _, smoothing = options
    dim = class_dim(input)
    if reduction == "none":
        upstream = upstream.unsqueeze(dim)
    elif reduction == "mean":
        upstream = upstream / (input.numel() / input.shape[dim])
    cost = cost * upstream
    by_target = by_weight = None
    if needs[0]:
        by_target = (1 - smoothing) * (cost if weight is None else cost * per_class(weight, input))
        by_target = by_target.to(target.dtype)
    if needs[1]:
        smoothed = target * (1 - smoothing) + smoothing / input.shape[dim]
        others = [d for d in range(input.dim()) if d != dim]
        by_weight = cost * smoothed
        by_weight = (by_weight.sum(others) if others else by_weight).to(weight.dtype)
    return by_target, by_weight


def _setup_forward(ctx, inputs, output):
    *tensors, reduction, ignore_index, smoothing, _, keep = inputs
    ctx.save_for_backward(*tensors, output[1] if keep else None)
    ctx.options = (reduction, ignore_index, smoothing)
    ctx.set_materialize_grads(False)


def _backward_of_forward(ctx, upstream, _):
    *tensors, kept = ctx.saved_tensors
    nothing = (None,) * 5
    if upstream is None:
        return None, None, None, *nothing
    needs = ctx.needs_input_grad
    if kept is None or torch.is_grad_enabled():
        return *derivatives(upstream, tensors, ctx.options, None, needs), *nothing
    _, by_target, by_weight = derivatives(upstream, tensors, ctx.options, None, (False, *needs[1:3]))
    return kept * upstream.to(kept.dtype), by_target, by_weight, *nothing


forward_op.register_autograd(_backward_of_forward, setup_context=_setup_forward)


def _setup_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]


def _backward_of_backward(ctx, x):
    upstream, *tensors = ctx.saved_tensors
    input = tensors[0]
    needs, dim = ctx.needs_input_grad, class_dim(input)
    by_upstream = by_input = by_target = by_weight = None
    none = ctx.options[0] == "none"
    if needs[0]:
        unit = torch.ones_like(upstream) if none else one_like(upstream)
        product = x * backward_op(unit, *tensors, *ctx.options)
        by_upstream = (product.sum(dim) if none else product.sum()).to(upstream.dtype)
    if needs[1]:
        by_input = hvp_op(x, upstream, *tensors, *ctx.options)
    if needs[2] or needs[3]:
        p = torch.softmax(input, dim)
        cost = (p * x).sum(dim, keepdim=True) - x
        by_target, by_weight = of_probabilities(upstream, tensors, ctx.options, cost, needs[2:4])
    return by_upstream, by_input, by_target, by_weight, None, None, None


backward_op.register_autograd(_backward_of_backward, setup_context=_setup_backward)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, target, weight, options, dtype, plain):
        keep = ctx.needs_input_grad[0] and not deferred(input, options[0])
        if plain:
            loss, grad = small(input, target, options, keep)
        else:
            loss, grad, *_ = Rows(input, target, weight, *options).run(grad=keep)
        ctx.save_for_backward(input, target, weight)
        ctx.kept, ctx.options, ctx.plain = tensor(grad), options, plain
        return reduced(loss, dtype)

    @staticmethod
    def backward(ctx, upstream):
        kept, ctx.kept = ctx.kept, None
        needs = ctx.needs_input_grad
        nothing = (None,) * 3
        if kept is not None and not (needs[1] or needs[2] or torch.is_grad_enabled()):
            # without a look at the saved logits, which may have been overwritten meanwhile
            return scaled(kept, upstream), None, None, *nothing
        if ctx.plain and ctx.options[0] == "none" and not torch.is_grad_enabled():
            input, target, _ = ctx.saved_tensors
            return tensor(small(input, target, ctx.options, True, upstream)[1]), None, None, *nothing
        return *derivatives(upstream, ctx.saved_tensors, ctx.options, kept, needs), *nothing


# ---------------------------------------------------------------------------------------------------------- function


def cross_entropy(
    input,
    target,
    weight=None,
    size_average=None,
    ignore_index=-100,
    reduce=None,
    reduction="mean",
    label_smoothing=0.0,
):
    """Softmax cross-entropy between logits and labels or probabilities: `torch.nn.functional.cross_entropy`.

    Parameters
    ----------
    input : Tensor (C,), (N, C) or (N, C, d_1, ...), float32, float64, bfloat16 or float16
        Logits, on the CPU or a CUDA device; any strides (channels-last too) are read in place. 16-bit ones are computed
        in float32.
    target : Tensor of integers () , (N,) or (N, d_1, ...), or of probabilities in the shape of `input`
        Any integer dtype; on the device of `input`.
    weight : Tensor (C,), optional
        Weight of each class.
    size_average, reduce : bool, optional
        Deprecated by PyTorch; they override `reduction`.
    ignore_index : int, default=-100
        Label that costs nothing.
    reduction : {"mean", "sum", "none"}, default="mean"
        "mean" divides by the sum of the labels' weights, or by the number of rows for probabilities, as PyTorch does:
        NaN where that is 0.
    label_smoothing : float in [0, 1], default=0.0
        Share of the uniform distribution in the targets.

    Returns
    -------
    Tensor
        A scalar, or the shape of `input` without its class axis. Gradients flow to `input`, and to `target` and
        `weight` where the targets are probabilities.

    Raises
    ------
    IndexError
        A label outside [0, C), on the CPU; the message names the first one. On a CUDA device, where nobody waits for a
        look at them, such a row is NaN.
    TypeError, RuntimeError, ValueError, NotImplementedError
        What PyTorch raises for the same mistake: shapes and dtypes that do not fit, a `weight` that requires a
        gradient beside labels; a tensor on another kind of device.

    Notes
    -----
    Differentiable twice; third derivatives are an error.

    Examples
    --------
    >>> import torch
    >>> from fastxent.torch import cross_entropy
    >>> input = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0]], requires_grad=True)
    >>> loss = cross_entropy(input, torch.tensor([0, 2]))
    >>> loss.backward()
    >>> round(loss.item(), 4), [round(g, 3) for g in input.grad[0].tolist()]
    (1.7513, [-0.167, 0.122, 0.045])
    """
    if has_torch_function_variadic(input, target, weight):
        given = (input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        return handle_torch_function(cross_entropy, (input, target, weight), *given)
    reduction = _arguments.reduction_of(reduction, size_average, reduce)
    _arguments.tensors(input=input, target=target, weight=weight)
    _arguments.floating(input)
    soft = _arguments.softmax_target(input.shape, target, weight, ignore_index, label_smoothing)
    return checked(input, target, weight, (reduction, ignore_index, float(label_smoothing)), soft)


def checked(input, target, weight, options, soft):
    """Cross-entropy of checked arguments."""
    if soft:
        dtype = _arguments.loss_dtype(input, target, weight)
        grad = input.requires_grad or target.requires_grad or (weight is not None and weight.requires_grad)
    else:
        if weight is not None:
            _arguments.weight_dtype(weight, input)
            _arguments.not_differentiable("cross_entropy of labels", weight=weight)
        dtype = _arguments.loss_dtype(input)
        grad = input.requires_grad
    grad = grad and torch.is_grad_enabled()
    if input.is_cuda and _on_device.on_device(input, target, weight):
        return _on_device.CrossEntropy.apply(input, target, weight, options, dtype, derivatives)
    if traced(input, target, weight):
        keep = grad and input.requires_grad and input.is_cpu and not deferred(input, options[0])
        return forward_op(input, target, weight, *options, dtype, keep)[0]
    plain = (
        not soft
        and weight is None
        and not options[2]
        and input.dim() == 2
        and input.numel() <= FEW
        and dtype is input.dtype
        and dtype in (torch.float32, torch.float64)
    )
    if grad:
        return _CrossEntropy.apply(input, target, weight, options, dtype, plain)
    if plain:
        return reduced(small(input, target, options, False)[0], dtype)
    return reduced(Rows(input, target, weight, *options).run()[0], dtype)
