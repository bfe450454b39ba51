"""Tensors on a CUDA device: the same functions by the CUDA kernels, on PyTorch's current stream.

Nothing waits for the device. So labels are not looked at: one that is no class makes its row NaN. Forward is a sweep
for the loss, and of a softmax the rows' lse; backward is one for the gradient, in which the upstream number, still on
the device, is a factor: a kept gradient would have to be read and written once more for it.
"""

import contextlib
import math

import torch

from fastxent.losses._elementwise import device_call
from fastxent.losses._softmax import SoftmaxOptions, softmax_call
from fastxent.torch._arrays import class_dim, eager

__all__ = ["BinaryCrossEntropy", "CrossEntropy", "elements", "on_device", "rows"]


def on_device(*tensors):
    """Whether they are plain tensors of a CUDA device, whose function no compiler, tracer or transform is to see."""
    return all(one is None or one.is_cuda for one in tensors) and eager(*tensors)


def beside(input):
    """The device of a tensor as the current one."""
    return torch.cuda.device(input.device) if input.is_cuda else contextlib.nullcontext()


def _detached(*tensors):
    return [None if one is None else one.detach() for one in tensors]


def rows(input, target, weight, reduction, ignore_index, label_smoothing):
    """The call of the kernels under PyTorch's conventions: its denominators, NaN for no rows."""
    input, target, weight = _detached(input, target, weight)
    if target.is_floating_point() and target.shape == input.shape:
        reduction = "mean_all" if reduction == "mean" else reduction
    elif input.dim() == 1:
        target = target.reshape(())
    options = SoftmaxOptions(
        weight, label_smoothing, "uniform", ignore_index, 0.0, 1.0, None, class_dim(input), None, "nan"
    )
    return softmax_call(input, target, None, reduction, options, None, None, False)


def elements(input, target, weight, pos_weight, reduction):
    """The call of the kernels of binary cross-entropy; PyTorch's mean divides by the number of elements."""
    reduction = "mean_all" if reduction == "mean" else reduction
    return device_call(*_detached(input, target, weight, pos_weight), 0.0, reduction, None, None, False)


def value(loss, input, reduction, dtype):
    """Loss in its dtype; NaN for the mean of nothing."""
    return loss.fill_(math.nan).to(dtype) if reduction == "mean" and input.numel() == 0 else loss.to(dtype)


def gradient(call, upstream, *lse):
    """Gradient of a call for an upstream tensor: a scalar, or one number per row or element."""
    return call.backward(upstream.detach(), None, *lse)


class CrossEntropy(torch.autograd.Function):
    """Cross-entropy of checked tensors; `derivatives`, a function, finds what the kernels do not."""

    @staticmethod
    def forward(ctx, input, target, weight, options, dtype, derivatives):
        with beside(input):
            loss, _, _, lse = rows(input, target, weight, *options).run(lse=True)
        ctx.save_for_backward(input, target, weight, lse)
        ctx.options, ctx.derivatives = options, derivatives
        return loss.to(dtype)

    @staticmethod
    def backward(ctx, upstream):
        *tensors, lse = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:3])
        grad = None
        if needs[0] and not torch.is_grad_enabled() and eager(upstream):
            with beside(tensors[0]):
                grad = gradient(rows(*tensors, *ctx.options), upstream, lse)
            needs[0] = False
        others = ctx.derivatives(upstream, tensors, ctx.options, None, needs) if any(needs) else (None,) * 3
        return others[0] if grad is None else grad, *others[1:], None, None, None


class BinaryCrossEntropy(torch.autograd.Function):
    """Binary cross-entropy of checked tensors; `derivatives` finds what the kernels do not."""

    @staticmethod
    def forward(ctx, input, target, weight, pos_weight, reduction, dtype, derivatives):
        with beside(input):
            loss = elements(input, target, weight, pos_weight, reduction).run()[0]
        ctx.save_for_backward(input, target, weight, pos_weight)
        ctx.reduction, ctx.derivatives = reduction, derivatives
        return value(loss, input, reduction, dtype)

    @staticmethod
    def backward(ctx, upstream):
        tensors, reduction = ctx.saved_tensors, ctx.reduction
        needs = list(ctx.needs_input_grad[:2])
        grad = None
        if needs[0] and not torch.is_grad_enabled() and eager(upstream):
            with beside(tensors[0]):
                grad = gradient(elements(*tensors, reduction), upstream)
            needs[0] = False
        by_input, by_target = ctx.derivatives(upstream, tensors, reduction, needs)
        return by_input if grad is None else grad, by_target, *(None,) * 5
