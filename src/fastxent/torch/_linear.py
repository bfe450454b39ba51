"""Cross-entropy of a linear layer, whose logits are never whole: PyTorch's `linear_cross_entropy`.

A large layer of one logit per class goes through `fastxent.linear.LargeLayer`.  For others, block by block of rows,
Z = X W' + b by PyTorch's BLAS; the row kernel replaces Z by the gradient of its losses; dX = Z W, dW += Z' X, db += the
sum of Z's rows.  All of it in PyTorch's layout, W (C, in_features), so that neither W nor dW is copied.  As in
`_softmax`, the gradients come with the forward sweep and are handed out once.  Tensors on a CUDA device take the same
pass of `fastxent._linear_on_device`, through the operators.
"""

import math

import numpy as np
import torch
from torch.overrides import handle_torch_function, has_torch_function_variadic

from fastxent._linear_on_device import LinearCall
from fastxent.linear import LARGE_W, LargeLayer, SoftmaxRows
from fastxent.losses._softmax import SoftmaxOptions
from fastxent.torch import _arguments
from fastxent.torch._arrays import empty, reduced, scaled, traced
from fastxent.torch._on_device import beside
from fastxent.torch._softmax import Rows, cross_entropy, deferred

BLOCK_ELEMENTS = 1 << 24  # of a block's logits: 64 MB in float32
MOST_ROWS, FEWEST_ROWS = 512, 32  # each block reads W twice, and reads and writes all of dW


class Sweep:
    """The pass over the rows of checked tensors.

    `upstream` multiplies the gradients: a scalar, or one number per row for reduction="none"; None is 1.
    """

    def __init__(self, tensors, options, upstream=None):
        self.X, self.W, target, self.bias, weight = (None if t is None else t.detach() for t in tensors)
        self.dtype = torch.float64 if self.X.dtype is torch.float64 else torch.float32
        shape = (*self.X.shape[:-1], *self.W.shape[:-1])
        self.rows = rows = Rows(self.X, target, weight, *options, shape)
        self.factor = 1.0
        if upstream is not None and rows.reduction == "none":
            rows.weight = rows.problem.rows(upstream.to(self.dtype).numpy(force=True))
        elif upstream is not None:
            self.factor = upstream.item()
        rows.totals(first=True)

    def run(self, needs=(False, False, False)):
        """Loss, a float or an array of rows, and the gradients of input, linear_weight and linear_bias as needed."""
        # Autocast would make 16-bit products of these.
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return self._run(needs)

    def _run(self, needs):
        rows, dtype = self.rows, self.dtype
        problem, denominator = rows.problem, rows.denominator
        X = self.X.reshape(-1, self.X.shape[-1])
        W = self.W.reshape(-1, self.W.shape[-1]).to(dtype)
        bias = None if self.bias is None else self.bias.reshape(-1).to(dtype)
        each = np.empty(problem.row_shape, problem.dtype) if rows.reduction == "none" else None
        scale = self.factor / denominator if denominator else 0.0
        layer = self._large_layer(X, W, bias, scale)
        if layer is None:
            total, dX, dW, db = self._blocks(X, W, bias, needs, each, scale)
        else:
            dX = empty(X.shape, dtype) if needs[0] else None
            dW = empty(W.shape, dtype) if needs[1] else None
            db = torch.zeros(len(W), dtype=torch.float64) if needs[2] else None
            loss_out = None if each is None else problem.rows(each)
            places = (None if dX is None else dX.numpy(), None if dW is None else dW.numpy().T)
            total = layer.run(loss_out, *places, None if db is None else db.numpy())
        if each is None:
            each = total / denominator if denominator else math.nan
        return each, (
            None if dX is None else dX.view(self.X.shape).to(self.X.dtype),
            None if dW is None else dW.view(self.W.shape).to(self.W.dtype),
            None if db is None else db.view(self.bias.shape).to(self.bias.dtype),
        )

    def _large_layer(self, X, W, bias, scale):
        """The pass for a large layer, which reads W as it lies; None for others."""
        rows = self.rows
        if rows.problem.n_classes != len(W) or W.numel() < LARGE_W or not len(X):
            return None
        X, W = X.to(self.dtype).numpy(), W.contiguous().numpy().T
        weights = (rows.weight, rows.class_weight, rows.bias)
        losses = SoftmaxRows(rows.core, rows.problem.targets, W.shape[1], *weights, *rows.scalars, scale)
        if not LargeLayer.takes(X, W, losses):
            return None
        return LargeLayer(X, W, None if bias is None else bias.contiguous().numpy(), losses, rows.threads)

    def _blocks(self, X, W, bias, needs, each, scale):
        """The sum of the losses and the gradients, block by block."""
        dtype, (n, _), wide = self.dtype, X.shape, W.shape[0]
        step = max(min(BLOCK_ELEMENTS // wide, MOST_ROWS), FEWEST_ROWS)
        step = math.ceil(n / math.ceil(n / step)) if n else step
        buffer = empty((step, wide), dtype)
        dX = (empty if X.dtype is dtype else torch.empty)(X.shape, dtype=X.dtype) if needs[0] else None
        dW = (empty if n else torch.zeros)(W.shape, dtype=dtype) if needs[1] else None
        db = torch.zeros(wide, dtype=dtype) if needs[2] else None
        total = 0.0
        for start in range(0, n, step):
            block = slice(start, min(start + step, n))
            part = X[block].to(dtype)
            Z = buffer[: len(part)]
            if bias is None:
                torch.mm(part, W.t(), out=Z)
            else:
                torch.addmm(bias, part, W.t(), out=Z)
            total += self._rows(Z, block, scale, each, any(needs))
            if dX is not None and X.dtype is dtype:
                torch.mm(Z, W, out=dX[block])
            elif dX is not None:
                dX[block] = torch.mm(Z, W)
            if dW is not None:
                dW.addmm_(Z.t(), part, beta=1 if start else 0)
            if db is not None:
                db += Z.sum(0)
        return total, dX, dW, db

    def _rows(self, Z, block, scale, each, grad):
        """Sum of the losses of a block of logits, whose gradient takes their place."""
        rows, problem = self.rows, self.rows.problem
        Z = Z.numpy().reshape(len(Z), problem.n_classes, -1)
        return rows.core.softmax_rows(
            Z,
            problem.targets[block],
            None if rows.weight is None else rows.weight[block],
            rows.class_weight,
            rows.bias,
            *rows.scalars,
            scale,
            None if each is None else problem.rows(each)[block],
            None,
            Z if grad else None,
            None,
            rows.threads,
        )[0]


class DeviceSweep:
    """`Sweep` for tensors on a CUDA device, whose labels nobody looks at: one that is no class makes its row NaN."""

    def __init__(self, tensors, options, upstream=None):
        X, W, target, bias, weight = (None if t is None else t.detach() for t in tensors)
        if W.dim() != 2:
            raise RuntimeError(f"linear_weight: expected 2 dimensions on a CUDA device, got {W.dim()}")
        reduction, ignore_index, smoothing = options
        shape = (*X.shape[:-1], W.shape[0])
        soft = target.is_floating_point() and target.shape == shape
        if soft and reduction == "mean":
            reduction = "mean_all"
        self.input, self.row_shape, self.dtype = X, shape[:-1], W.dtype
        X = X.reshape(-1, X.shape[-1])
        target = target.reshape(-1, W.shape[0]) if soft else target.reshape(-1)
        bias = None if bias is None else bias.to(X.dtype)
        settings = SoftmaxOptions(weight, smoothing, "uniform", ignore_index, 0.0, 1.0, None, -1, None, "nan")
        self.call = LinearCall(X, W.t().to(X.dtype), target, bias, None, reduction, settings, None, False)
        self.upstream = upstream
        if upstream is not None and reduction == "none":
            inner = self.call.call
            inner.weight = inner.library.given(upstream.reshape(-1), "upstream", inner.dtype)
            self.upstream = None

    def run(self, needs=(False, False, False)):
        """Loss, a tensor, and the gradients of input, linear_weight and linear_bias as needed."""
        off = torch.autocast(self.input.device.type, enabled=False)
        with torch.no_grad(), off, beside(self.input):
            loss, dX, dW, db = self.call.run(any(needs), needs[0], self.upstream)
        loss = loss.reshape(self.row_shape) if self.call.call.reduction == "none" else loss
        return loss, (
            dX.reshape(self.input.shape) if needs[0] else None,
            dW.t().to(self.dtype).contiguous() if needs[1] else None,
            db.to(self.dtype) if needs[2] else None,
        )


def differentiable(upstream, tensors, options, needs):
    """The gradients with a graph, for double backward: here the logits are whole.

    On a CUDA device the losses of these are PyTorch's.
    """
    input, linear_weight, target, linear_bias, weight = tensors
    wanted = [t for t, need in zip((input, linear_weight, linear_bias), needs, strict=True) if need]
    with torch.enable_grad():
        shape = (*input.shape[:-1], *linear_weight.shape[:-1])
        bias = None if linear_bias is None else linear_bias.flatten()
        logits = torch.nn.functional.linear(input, linear_weight.flatten(0, -2), bias).view(shape)
        reduction, ignore_index, smoothing = options
        function = cross_entropy if input.is_cpu else torch.nn.functional.cross_entropy
        loss = function(
            logits, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=smoothing
        )
        found = iter(torch.autograd.grad(loss, wanted, upstream.to(loss.dtype), create_graph=True))
    return tuple(next(found) if need else None for need in needs)


# --------------------------------------------------------------------------------------------------------- operators

_ARGUMENTS = (
    "Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias, Tensor? weight, str reduction, "
    "int ignore_index, float label_smoothing"
)


def _or_empty(grads, input):
    return tuple(input.new_empty(0) if grad is None else grad for grad in grads)


def _like(tensors, needs):
    """Gradients of input, linear_weight and linear_bias without values."""
    input, linear_weight, _, linear_bias, _ = tensors
    given = zip((input, linear_weight, linear_bias), needs, strict=True)
    return tuple(t.new_empty(t.shape) if need else input.new_empty(0) for t, need in given)


@torch.library.custom_op(
    "fastxent::linear_cross_entropy",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_ARGUMENTS}, ScalarType dtype, bool[] keep) -> (Tensor, Tensor, Tensor, Tensor)",
)
def forward_op(
    input, linear_weight, target, linear_bias, weight, reduction, ignore_index, smoothing, dtype, keep
):
    """Loss, and the gradients to keep; empty tensors for the others."""
    tensors, options = (
        (input, linear_weight, target, linear_bias, weight),
        (reduction, ignore_index, smoothing),
    )
    loss, grads = Sweep(tensors, options).run(keep)
    return reduced(loss, dtype), *_or_empty(grads, input)


@forward_op.register_kernel("cuda")
def _(input, linear_weight, target, linear_bias, weight, reduction, ignore_index, smoothing, dtype, keep):
    tensors = (input, linear_weight, target, linear_bias, weight)
    loss, grads = DeviceSweep(tensors, (reduction, ignore_index, smoothing)).run(keep)
    return loss.to(dtype), *_or_empty(grads, input)


@forward_op.register_fake
def _(input, linear_weight, target, linear_bias, weight, reduction, ignore_index, smoothing, dtype, keep):
    shape = (*input.shape[:-1], *linear_weight.shape[1:-1]) if reduction == "none" else ()
    tensors = (input, linear_weight, target, linear_bias, weight)
    return input.new_empty(shape, dtype=dtype), *_like(tensors, keep)


@torch.library.custom_op(
    "fastxent::linear_cross_entropy_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor upstream, {_ARGUMENTS}, bool[] needs) -> (Tensor, Tensor, Tensor)",
)
def backward_op(
    upstream, input, linear_weight, target, linear_bias, weight, reduction, ignore_index, smoothing, needs
):
    """The gradients that are needed, for an upstream gradient; empty tensors for the others."""
    tensors, options = (
        (input, linear_weight, target, linear_bias, weight),
        (reduction, ignore_index, smoothing),
    )
    return _or_empty(Sweep(tensors, options, upstream).run(needs)[1], input)


@backward_op.register_kernel("cuda")
def _(upstream, input, linear_weight, target, linear_bias, weight, reduction, ignore_index, smoothing, needs):
    tensors = (input, linear_weight, target, linear_bias, weight)
    options = (reduction, ignore_index, smoothing)
    return _or_empty(DeviceSweep(tensors, options, upstream).run(needs)[1], input)


@backward_op.register_fake
def _(upstream, input, linear_weight, target, linear_bias, weight, reduction, ignore_index, smoothing, needs):
    return _like((input, linear_weight, target, linear_bias, weight), needs)


# ---------------------------------------------------------------------------------------------------------- autograd


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:5], *output[1:])
    ctx.options, ctx.keep = inputs[5:8], inputs[9]
    ctx.set_materialize_grads(False)


def _backward(ctx, upstream, *_):
    *tensors, dX, dW, db = ctx.saved_tensors
    needs = ctx.needs_input_grad
    needs = (needs[0], needs[1], needs[3])
    if upstream is None:
        grads = (None, None, None)
    elif torch.is_grad_enabled():
        grads = differentiable(upstream, tensors, ctx.options, needs)
    elif any(ctx.keep):
        grads = (
            g * upstream.to(g.dtype) if need else None for g, need in zip((dX, dW, db), needs, strict=True)
        )
    else:
        grads = backward_op(upstream, *tensors, *ctx.options, needs)
        grads = (grad if need else None for grad, need in zip(grads, needs, strict=True))
    return _for_inputs(*grads, 5)


def _for_inputs(dX, dW, db, others):
    """Gradients in the order of the arguments, and None for those that have none."""
    return dX, dW, None, db, None, *(None,) * others


forward_op.register_autograd(_backward, setup_context=_setup)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, linear_weight, target, linear_bias, weight, options, dtype):
        tensors = (input, linear_weight, target, linear_bias, weight)
        needs = ctx.needs_input_grad
        ctx.needs = (needs[0], needs[1], needs[3])
        ctx.save_for_backward(*tensors)
        ctx.options, ctx.kept = options, None
        if deferred(input, options[0]):
            loss, _ = Sweep(tensors, options).run()
        else:
            loss, ctx.kept = Sweep(tensors, options).run(ctx.needs)
        return reduced(loss, dtype)

    @staticmethod
    def backward(ctx, upstream):
        kept, ctx.kept = ctx.kept, None
        if torch.is_grad_enabled():
            grads = differentiable(upstream, ctx.saved_tensors, ctx.options, ctx.needs)
        elif kept is None:
            grads = Sweep(ctx.saved_tensors, ctx.options, upstream).run(ctx.needs)[1]
        else:
            grads = (None if grad is None else scaled(grad, upstream) for grad in kept)
        return _for_inputs(*grads, 2)


# ---------------------------------------------------------------------------------------------------------- function


def linear_cross_entropy(
    input,
    linear_weight,
    target,
    *,
    linear_bias=None,
    weight=None,
    reduction="mean",
    ignore_index=None,
    label_smoothing=0.0,
    options=None,
):
    """Cross-entropy of ``linear(input, linear_weight, linear_bias)``, the logits of which are never whole in memory.

    `torch.nn.functional.linear_cross_entropy` of PyTorch 2.13, with any PyTorch that this package works with.

    Parameters
    ----------
    input : Tensor (in_features,) or (N, in_features), float32, float64, bfloat16 or float16
        On the CPU 16-bit tensors are computed in float32, under autocast too; on a CUDA device their products are
        of 16 bits.
    linear_weight : Tensor (C, in_features) or, on the CPU, (C, d_1, ..., in_features), dtype of `input`
    target : Tensor of labels (), (N,) or (N, d_1, ...), or of probabilities (C,), (N, C) or (N, C, d_1, ...)
    linear_bias : Tensor (C,) or (C, d_1, ...), optional
    weight, reduction, label_smoothing
        As for `cross_entropy`.
    ignore_index : int, optional
        None stands for -100; not for probabilities.
    options : object, optional
        PyTorch's choice of chunks, taken so that calls carry over. Nothing depends on it: there are always chunks.

    Returns
    -------
    Tensor
        A scalar, or one loss per label. Gradients flow to `input`, `linear_weight` and `linear_bias`.

    Raises
    ------
    IndexError
        A label outside [0, C).
    TypeError, RuntimeError, ValueError, NotImplementedError
        What PyTorch raises for the same mistake; a `target` or `weight` that requires a gradient, for which
        `cross_entropy` of the whole logits is there.

    Notes
    -----
    Memory beyond the gradients is one block of logits, up to 64 MB in float32. Double backward works, and makes the
    logits whole.

    On a CUDA device nothing waits for the labels: one outside [0, C) makes its loss NaN, it is no error. Not yet run on
    hardware.

    Examples
    --------
    >>> import torch
    >>> from fastxent.torch import linear_cross_entropy
    >>> head = torch.zeros(5, 3, requires_grad=True)
    >>> loss = linear_cross_entropy(torch.ones(2, 3), head, torch.tensor([0, 1]))
    >>> loss.backward()
    >>> round(loss.item(), 4), head.grad.shape  # log 5
    (1.6094, torch.Size([5, 3]))
    """
    tensors = (input, linear_weight, target, linear_bias, weight)
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(
            linear_cross_entropy,
            tensors,
            *tensors[:3],
            linear_bias=linear_bias,
            weight=weight,
            reduction=reduction,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            options=options,
        )
    reduction = _arguments.reduction_of(reduction, None, None)
    _arguments.tensors(
        input=input, linear_weight=linear_weight, target=target, linear_bias=linear_bias, weight=weight
    )
    _arguments.floating(input)
    shape = _arguments.linear(input, linear_weight, linear_bias)
    if ignore_index is not None and _arguments.probabilities(shape, target):
        raise RuntimeError("ignore_index cannot be specified when target contains probabilities")
    ignore_index = -100 if ignore_index is None else ignore_index
    soft = _arguments.softmax_target(shape, target, weight, ignore_index, label_smoothing)
    if not soft:
        _arguments.weight_dtype(weight, input)
    _arguments.not_differentiable("linear_cross_entropy", target=target, weight=weight)
    dtype = _arguments.loss_dtype(input, *((target, weight) if soft else ()))
    settings = (reduction, ignore_index, float(label_smoothing))
    needs = [
        torch.is_grad_enabled() and t is not None and t.requires_grad
        for t in (input, linear_weight, linear_bias)
    ]
    if traced(*tensors):
        keep = [False] * 3 if deferred(input, reduction) else needs
        return forward_op(*tensors, *settings, dtype, keep)[0]
    if any(needs):
        return _LinearCrossEntropy.apply(*tensors, settings, dtype)
    return reduced(Sweep(tensors, settings).run()[0], dtype)
