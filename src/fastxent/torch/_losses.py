"""Any loss object of `fastxent.losses` as a PyTorch module."""

import functools

import torch

from fastxent import _device, losses
from fastxent.torch import _arguments
from fastxent.torch._arrays import array, reduced, scaled, tensor, traced
from fastxent.torch._on_device import beside, on_device
from fastxent.torch._softmax import in_layout_of

# Operators take no Python objects: the compiled graph names a loss by its repr, which shows every option that is set.
_BY_NAME = {}


def row_axis(loss):
    """The class axis, over which a loss has one number per row; None for one number per logit.

    Raises
    ------
    ValueError
        Losses of regions, whose numbers belong to no row; sums over different axes.
    """
    if isinstance(loss, losses.SumLoss):
        axes = {row_axis(term) for term in loss.terms}
        if len(axes) > 1:
            raise ValueError(f"reduction: 'none' needs terms that have the same rows, got {loss!r}")
        return axes.pop()
    if isinstance(loss, losses.ScaledLoss):
        return row_axis(loss.term)
    if isinstance(loss, (losses.DiceLoss, losses.TverskyLoss)):
        raise ValueError(
            f"reduction: expected 'mean' or 'sum' for a loss of regions, got 'none' for {loss!r}"
        )
    return None if loss.elementwise else loss.axis


class Call:
    """A loss at tensors: value, gradient and Hessian product. float16 logits are computed as float32 ones."""

    def __init__(self, loss, reduction, input, sample_weight, *targets):
        self.loss, self.reduction, self.dtype = loss, reduction, input.dtype
        on_device = _device.is_device(input)
        self.take, self.give = (_detached, _itself) if on_device else (array, tensor)
        self.check = not on_device  # which would wait for the device
        self.beside = functools.partial(beside, input)
        self.input = self.take(input.float() if input.dtype is torch.float16 else input)
        arrays = tuple(map(self.take, targets))
        self.target = arrays if len(arrays) > 1 else arrays[0] if arrays else None
        self.weight = self.take(sample_weight)

    def value(self):
        """Loss: a float, an array of rows or a tensor."""
        with self.beside():
            return self.loss.loss(self.input, self.target, self.weight, self.reduction, check=self.check)

    def value_and_grad(self):
        """Loss, and its gradient (float32 for float16 logits): that of the sum for reduction="none"."""
        given = (self.input, self.target, self.weight, self.reduction)
        with self.beside():
            value, grad = self.loss.loss_grad(*given, check=self.check)
        return value, self.give(grad)

    def product(self, x):
        """Hessian times a tensor of the logits' shape."""
        x = self.take(x.to(torch.float64 if self.dtype is torch.float64 else torch.float32))
        given = (self.input, self.target, x, self.weight, self.reduction)
        with self.beside():
            return self.give(self.loss.hvp(*given, check=self.check))


def _detached(tensor):
    return None if tensor is None else tensor.detach()


def _itself(tensor):
    return tensor


def times(grad, upstream, loss, reduction):
    """A gradient or a Hessian product that is ours alone, times the upstream numbers."""
    if reduction != "none":
        return scaled(grad, upstream)
    axis = row_axis(loss)
    return grad.mul_(upstream if axis is None else upstream.unsqueeze(axis))


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, loss, reduction, dtype, *others):
        value, ctx.kept = Call(loss, reduction, input, *others).value_and_grad()
        ctx.save_for_backward(input, *others)
        ctx.options, ctx.dtype = (loss, reduction), input.dtype
        return reduced(value, dtype)

    @staticmethod
    def backward(ctx, upstream):
        kept, ctx.kept = ctx.kept, None
        nothing = (None,) * (len(ctx.needs_input_grad) - 1)
        if torch.is_grad_enabled():
            return _Gradient.apply(upstream, *ctx.options, *ctx.saved_tensors), *nothing
        if kept is None:
            kept = Call(*ctx.options, *ctx.saved_tensors).value_and_grad()[1]
        return times(kept, upstream, *ctx.options).to(ctx.dtype), *nothing


class _Gradient(torch.autograd.Function):
    """The gradient as a function, for double backward by the Hessian product."""

    @staticmethod
    def forward(ctx, upstream, loss, reduction, input, *others):
        ctx.save_for_backward(upstream, input, *others)
        ctx.options = loss, reduction
        grad = Call(loss, reduction, input, *others).value_and_grad()[1]
        return times(grad, upstream, loss, reduction).to(input.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, x):
        upstream, *given = ctx.saved_tensors
        loss, reduction = ctx.options
        call = Call(loss, reduction, *given)
        by_upstream = by_input = None
        if ctx.needs_input_grad[0]:
            by_upstream = x * call.value_and_grad()[1]
            axis = row_axis(loss) if reduction == "none" else None
            if reduction != "none":
                by_upstream = by_upstream.sum()
            elif axis is not None:
                by_upstream = by_upstream.sum(axis)
            by_upstream = by_upstream.to(upstream.dtype)
        if ctx.needs_input_grad[3]:
            by_input = times(call.product(x), upstream, loss, reduction).to(given[0].dtype)
        return by_upstream, None, None, by_input, *(None,) * (len(given) - 1)


@torch.library.custom_op(
    "fastxent::loss",
    mutates_args=(),
    device_types=("cpu", "cuda"),
    schema="(Tensor input, Tensor? sample_weight, Tensor[] targets, str name, str reduction, ScalarType dtype, "
    "bool keep) -> (Tensor, Tensor)",
)
def forward_op(input, sample_weight, targets, name, reduction, dtype, keep):
    """Loss by the name of the loss object, and its gradient; the gradient is empty unless `keep`."""
    call = Call(_BY_NAME[name], reduction, input, sample_weight, *targets)
    if not keep:
        return reduced(call.value(), dtype), input.new_empty(0)
    value, grad = call.value_and_grad()
    return reduced(value, dtype), in_layout_of(input, grad.to(input.dtype))


@forward_op.register_fake
def _(input, sample_weight, targets, name, reduction, dtype, keep):
    shape = ()
    if reduction == "none":
        axis = row_axis(_BY_NAME[name])
        shape = list(input.shape)
        if axis is not None:
            del shape[axis]
    return input.new_empty(shape, dtype=dtype), torch.empty_like(input) if keep else input.new_empty(0)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(output[1])
    ctx.options, ctx.targets = inputs[3:5], len(inputs[2])
    ctx.set_materialize_grads(False)


def _backward(ctx, upstream, _):
    others = (None, [None] * ctx.targets, None, None, None, None)
    if upstream is None:
        return None, *others
    if torch.is_grad_enabled():
        raise RuntimeError("fastxent::loss: second derivatives are there in eager mode only")
    name, reduction = ctx.options
    axis = row_axis(_BY_NAME[name]) if reduction == "none" else None
    (grad,) = ctx.saved_tensors
    upstream = upstream if axis is None else upstream.unsqueeze(axis)
    return grad * upstream.to(grad.dtype), *others


forward_op.register_autograd(_backward, setup_context=_setup)


class LossModule(torch.nn.Module):
    """A loss object of `fastxent.losses` as a module; `as_module` makes it.

    Parameters
    ----------
    loss : loss object
    reduction : {"mean", "sum", "none"}
    """

    def __init__(self, loss, reduction="mean"):
        super().__init__()
        if not isinstance(loss, losses.Loss):
            known = isinstance(loss, type) and issubclass(loss, losses.Loss)
            hint = f"; make an object of the class: {loss.__name__}()" if known else ""
            raise TypeError(f"loss: expected a loss object such as FocalLoss(gamma=2), got {loss!r}{hint}")
        self.loss, self.reduction = loss, _arguments.reduction_of(reduction, None, None)
        if reduction == "none":
            row_axis(loss)
        _BY_NAME[repr(loss)] = loss

    def __setstate__(self, state):
        super().__setstate__(state)
        _BY_NAME[repr(self.loss)] = self.loss

    def extra_repr(self):
        """Options in the module's repr."""
        return f"{self.loss!r}, reduction={self.reduction!r}"

    def forward(self, input, target=None, sample_weight=None):
        """Loss of logits.

        Parameters
        ----------
        input : Tensor, float32, float64, bfloat16 or float16, on the CPU or a CUDA device
            The classes stand on the loss object's `axis`, the last one by default: PyTorch's (N, C, d) is axis=1.
        target : Tensor or tuple of Tensors, optional
            What the loss object takes; gradients do not flow to it.
        sample_weight : Tensor, optional
            Weight of each row.

        Returns
        -------
        Tensor
            A scalar, or one loss per row.

        Raises
        ------
        TypeError, ValueError
            What the loss object raises.
        RuntimeError
            A target or weight that requires a gradient.
        """
        targets = target if isinstance(target, tuple) else () if target is None else (target,)
        _arguments.tensors(input=input, sample_weight=sample_weight)
        for each in targets:
            _arguments.tensors(target=each)
            _arguments.not_differentiable("this loss", target=each)
        _arguments.not_differentiable("this loss", sample_weight=sample_weight)
        _arguments.floating(input)
        dtype = _arguments.loss_dtype(input)
        grad = input.requires_grad and torch.is_grad_enabled()
        seen = traced(input, sample_weight, *targets)
        if seen and not (input.is_cuda and on_device(input, sample_weight, *targets)):
            return forward_op(
                input, sample_weight, list(targets), repr(self.loss), self.reduction, dtype, grad
            )[0]
        if grad:
            return _Loss.apply(input, self.loss, self.reduction, dtype, sample_weight, *targets)
        return reduced(Call(self.loss, self.reduction, input, sample_weight, *targets).value(), dtype)


def as_module(loss, reduction="mean"):
    """A loss object as a `torch.nn.Module` that trains.

    The gradient comes with the forward pass. Second derivatives are the loss object's Hessian product, in eager mode.

    Parameters
    ----------
    loss : loss object of fastxent
        Its options are those of the module, its reductions "mean" among them: sums of weights over rows.
    reduction : {"mean", "sum", "none"}, default="mean"
        "none" is not for losses of regions (Dice, Tversky).

    Returns
    -------
    LossModule
        ``module(input, target=None, sample_weight=None)``; compares, copies and pickles with its loss.

    Raises
    ------
    TypeError
        Something that is no loss object.
    ValueError
        An unknown reduction; "none" where a loss has no rows.

    Examples
    --------
    >>> import torch
    >>> import fastxent as fx
    >>> from fastxent.torch import as_module
    >>> focal = as_module(fx.FocalLoss(gamma=2.0))
    >>> focal
    LossModule(FocalLoss(gamma=2.0), reduction='mean')
    >>> input = torch.zeros(1, 2, requires_grad=True)
    >>> loss = focal(input, torch.tensor([0]))
    >>> loss.backward()
    >>> round(loss.item(), 4), [round(g, 4) for g in input.grad[0].tolist()]
    (0.1733, [-0.2983, 0.2983])
    """
    return LossModule(loss, reduction)
