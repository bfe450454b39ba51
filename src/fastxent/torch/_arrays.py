"""Tensors as NumPy arrays and back, without a copy; the layout of rows; scalars.

Gradients stand on memory of `_memory`, which is used again from step to step: PyTorch's own allocation of 1 GB spends
a quarter of a second on page faults.
"""

import functools

import numpy as np
import torch

from fastxent import _memory


@functools.cache
def bfloat16():
    """ml_dtypes' bfloat16: NumPy has none of its own."""
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError("bfloat16 tensors need ml_dtypes: pip install 'fastxent[torch]'") from error
    return np.dtype(ml_dtypes.bfloat16)


def array(tensor):
    """The memory of a CPU tensor as an array; None for None."""
    if tensor is None:
        return None
    tensor = tensor.detach()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy(force=True).view(bfloat16())
    return tensor.numpy(force=True)


def tensor(values):
    """The memory of an array as a tensor; None for None."""
    if values is None:
        return None
    if values.dtype.kind == "V":  # ml_dtypes' bfloat16
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def reduced(loss, dtype):
    """A loss, a float, an array of rows or a tensor, as a tensor."""
    if isinstance(loss, torch.Tensor):
        return loss.to(dtype)
    if isinstance(loss, np.ndarray):
        return torch.from_numpy(loss).to(dtype)
    return torch.scalar_tensor(loss, dtype=dtype, device="cpu")


def empty(shape, dtype):
    """A float32 or float64 tensor without values."""
    return torch.from_numpy(_memory.empty(shape, np.float64 if dtype is torch.float64 else np.float32))


def class_dim(input):
    """PyTorch's class axis: the second, or the only one."""
    return 1 if input.dim() > 1 else 0


def per_class(weight, input):
    """Class weights in the shape that broadcasts against the input."""
    return weight if input.dim() < 2 else weight.view(-1, *(1,) * (input.dim() - 2))


def scaled(grad, upstream):
    """A gradient that is ours alone, times a scalar tensor: nothing to do for 1."""
    if not upstream.is_cpu:
        return grad.mul_(upstream)  # without a look at it, which would wait for the device
    factor = upstream.item()
    return grad if factor == 1 else grad.mul_(factor)


def one_like(input):
    """The upstream gradient of a reduced loss taken alone."""
    return torch.ones((), dtype=input.dtype, device=input.device)


def traced(*tensors):
    """Whether something other than plain CPU memory is at hand: a compiler, a tracer, a transform, another device."""
    return not eager(*tensors) or any(one is not None and not one.is_cpu for one in tensors)


def eager(*tensors):
    """Whether tensors are plain and no compiler, tracer or transform is at hand."""
    if torch.compiler.is_compiling() or _modes() or _transforms() is not None:
        return False
    return all(one is None or type(one) in _PLAIN for one in tensors)


_PLAIN = (torch.Tensor, torch.nn.Parameter)
_modes, _transforms = torch._C._len_torch_dispatch_stack, torch._C._functorch.maybe_current_level
