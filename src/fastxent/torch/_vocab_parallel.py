"""Softmax cross-entropy of logits whose classes are split over the processes of a group.

Every process makes a `fastxent.partial_lse` state of its own columns; one all-gather brings the five numbers per row of
every process to all of them, where `fastxent.merge_lse` makes the same state of the whole rows.  No built-in reduction
merges such states, and a sum of exponentials under one all-reduced maximum would lose what the loss of a confident row
consists of.  Backward needs no message: the merged state and the own columns give the own gradient.  Columns on a CUDA
device stay there; the states merge in memory, so the forward pass waits for the device.
"""

import math

import numpy as np
import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from fastxent import _checks
from fastxent.shards import LSEState, merge_lse, partial_lse
from fastxent.torch import _arguments
from fastxent.torch._arrays import array, reduced, tensor

_FIELDS = ("m", "r", "t", "Z", "owned")


def vocab_parallel_cross_entropy(
    logits_shard,
    target,
    group=None,
    *,
    class_offset=None,
    ignore_index=-100,
    label_smoothing=0.0,
    z_loss=0.0,
    reduction="mean",
):
    """Softmax cross-entropy of rows whose classes are split over the processes of a group.

    The shards lie in the order of the ranks; their widths may differ, and be 0.  Every process gets the loss of the
    whole rows, in the same bits, and by backward the gradient of its own columns.

    Parameters
    ----------
    logits_shard : Tensor (..., k), float32, float64, float16 or bfloat16
        The columns of this process, on the CPU or on a CUDA device.
    target : Tensor (...), integers, on the device of logits_shard
        Labels over all classes; the same on every process.
    group : torch.distributed.ProcessGroup, optional
        The default group if None.
    class_offset : int, optional
        Number of the first class here.  None finds it from the widths, by an all-gather of one number more.
    ignore_index : int, default=-100
        Label whose rows count nothing.
    label_smoothing : float in [0, 1], default=0.0
        Share of the target that is spread over the classes of all processes.
    z_loss : float >= 0, default=0.0
        Coefficient of logsumexp², over all classes.
    reduction : {"mean", "sum", "none"}, default="mean"

    Returns
    -------
    Tensor
        A scalar, or of the target's shape for "none"; in the dtype of the logits. NaN for the mean of no rows, as
        PyTorch's. Differentiable once; the upstream gradient is taken to be the same on every process.

    Raises
    ------
    TypeError, RuntimeError, NotImplementedError, ValueError
        As `cross_entropy`.  What only one process raises leaves the others waiting, as in any collective.
    IndexError
        For a label that is no class, on every process.

    Examples
    --------
    >>> import torch
    >>> import torch.distributed as dist
    >>> from fastxent.torch import vocab_parallel_cross_entropy
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> logits = torch.zeros(2, 4, requires_grad=True)
    >>> loss = vocab_parallel_cross_entropy(logits, torch.tensor([0, 3]))
    >>> round(loss.item(), 6)
    1.386294
    >>> loss.backward()
    >>> logits.grad[0].tolist()
    [-0.375, 0.125, 0.125, 0.125]
    >>> dist.destroy_process_group()
    """
    _check(logits_shard, target, ignore_index, label_smoothing)
    options = {
        "label_smoothing": float(label_smoothing),
        "z_loss": _checks.real(z_loss, "z_loss", 0.0),
        "ignore_index": ignore_index,
    }
    reduction = _arguments.reduction_of(reduction, None, None)
    return _VocabParallel.apply(logits_shard, target, group, class_offset, options, reduction)


def _check(logits_shard, target, ignore_index, label_smoothing):
    for name, value in (("logits_shard", logits_shard), ("target", target)):
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"argument '{name}' must be Tensor, not {type(value).__name__}")
        if not (value.is_cpu or value.is_cuda):
            raise RuntimeError(
                f"{name}: expected a tensor on the CPU or a CUDA device, got one on {value.device}"
            )
    if target.device != logits_shard.device:
        raise RuntimeError(
            f"target: expected a tensor on {logits_shard.device}, as logits_shard, got one on {target.device}"
        )
    _arguments.floating(logits_shard)
    if logits_shard.dim() < 1 or target.shape != logits_shard.shape[:-1]:
        raise RuntimeError(
            f"target: expected the shape of logits_shard without its last axis, {tuple(logits_shard.shape[:-1])}, "
            f"got {tuple(target.shape)}"
        )
    if target.dtype not in _arguments.INTEGERS:
        raise RuntimeError(f"target: expected integer labels, got {target.dtype}")
    if type(ignore_index) is not int:
        raise TypeError(f"argument 'ignore_index' must be int, not {type(ignore_index).__name__}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise RuntimeError(f"label_smoothing must be between 0.0 and 1.0. Got: {label_smoothing}")


def _given(x):
    """A tensor as `partial_lse` takes it."""
    return x.detach() if x.is_cuda else array(x)


def _gathered(message, device, group):
    """Every process's tensor, in memory; on the way they are where the group can read them: NCCL on a device only."""
    where = "cpu" if dist.get_backend(group) == "gloo" else device
    message = message.to(where)
    received = [torch.empty_like(message) for _ in range(dist.get_world_size(group))]
    dist.all_gather(received, message, group=group)
    return [one.cpu() for one in received]


def _offset(width, device, group):
    """First class of this process: the widths of those before it."""
    widths = _gathered(torch.tensor([width]), device, group)
    return sum(int(one) for one in widths[: dist.get_rank(group)])


def _merged(state, offset, width, device, group):
    """State of the whole rows, from those of all processes: one all-gather."""
    shape, rows = state.labels.shape, state.labels.size
    message = np.empty((len(_FIELDS), rows + 1))
    for field, values in zip(_FIELDS, message, strict=True):
        values[:rows] = getattr(state, field).reshape(-1)
    message[:2, rows] = offset, width
    states = []
    for one in map(torch.Tensor.numpy, _gathered(torch.from_numpy(message), device, group)):
        start, k = map(int, one[:2, rows])
        m, r, t, Z, owned = (values[:rows].reshape(shape) for values in one)
        columns = ((start, start + k),) if k else ()
        states.append(LSEState(state.labels, m, r, t, Z, owned != 0, columns, state.dtype))
    return merge_lse(states)


class _VocabParallel(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target, group, offset, options, reduction):
        width, device = logits.shape[-1], logits.device
        offset = _offset(width, device, group) if offset is None else _checks.whole(offset, "class_offset")
        shard = _given(logits), _given(target)
        state = _merged(partial_lse(*shard, offset), offset, width, device, group)
        ignored = state.labels == options["ignore_index"]
        unknown = np.flatnonzero(~(state.owned | ignored))
        if len(unknown):
            at = tuple(map(int, np.unravel_index(unknown[0], ignored.shape)))
            where = f"target[{', '.join(map(str, at))}]" if at else "target"
            raise IndexError(
                f"{where}: {state.labels[at]} is out of bounds: expected 0 <= label < {state.n_classes}, "
                "or ignore_index"
            )
        ctx.save_for_backward(logits, target)
        ctx.state, ctx.offset, ctx.options = state, offset, options
        ctx.count = float(ignored.size - np.count_nonzero(ignored)) if reduction == "mean" else 1.0
        loss = state.loss(**options, reduction=reduction)
        if ctx.count == 0:
            loss = math.nan
        return reduced(np.asarray(loss) if reduction == "none" else loss, logits.dtype).to(device)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        logits, target = ctx.saved_tensors
        state, rows = ctx.state, np.asarray(array(upstream), dtype=np.float64)
        # Upstream numbers are weights before anything is rounded to the dtype of the logits.
        weight = np.broadcast_to(rows / ctx.count if ctx.count else 0.0, state.labels.shape)
        options = {**ctx.options, "sample_weight": weight, "reduction": "sum", "check": False}
        grad = state.grad(_given(logits), _given(target), ctx.offset, **options)
        return grad if isinstance(grad, torch.Tensor) else tensor(grad), None, None, None, None, None
