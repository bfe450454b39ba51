"""Users' tensors, checked: the errors of PyTorch's own functions, of the same types, naming the argument.

Where PyTorch accepts what a kernel of ours would refuse (negative probabilities, binary targets outside [0, 1]), so
does this door.
"""

import torch
from torch.nn import _reduction

INTEGERS = (torch.int64, torch.uint8, torch.int32, torch.int16, torch.int8)
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HALVES = (torch.bfloat16, torch.float16)


def reduction_of(reduction, size_average, reduce):
    """Reduction under PyTorch's present and past arguments."""
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{reduction} is not a valid value for reduction: expected 'mean', 'sum' or 'none'")
    return reduction


def tensors(**arguments):
    """Tensors, and None where the name ends in "weight" or "bias"."""
    for name, value in arguments.items():
        if not isinstance(value, torch.Tensor) and not (
            value is None and name not in ("input", "target", "linear_weight")
        ):
            raise TypeError(
                f"argument '{name}' must be Tensor, not {type(value).__name__}; the functions for other arrays are "
                "those of fastxent itself, such as fastxent.softmax_cross_entropy"
            )


def floating(input):
    """Input of a dtype that the kernels read; the error is of the type that PyTorch raises for such a dtype."""
    if input.dtype not in FLOATS:
        raise NotImplementedError(
            f"input: expected float32, float64, bfloat16 or float16, got {input.dtype}; not implemented for it"
        )


def probabilities(input_shape, target):
    """Whether targets are probabilities: PyTorch's rule is that they have the shape of the input."""
    if target.shape != input_shape:
        return False
    if not target.is_floating_point():
        raise RuntimeError(
            f"target: expected floating point probabilities where its shape is that of input, {tuple(input_shape)}, "
            f"got {target.dtype}"
        )
    return True


def softmax_target(shape, target, weight, ignore_index, label_smoothing):
    """Check labels or probabilities for logits of a shape; whether they are probabilities.

    Raises
    ------
    TypeError, RuntimeError, ValueError, IndexError
        As PyTorch: a target or a weight of another shape or dtype; an option of the wrong type or out of range.
    """
    if not shape:
        raise IndexError("input: expected at least one dimension, the classes, got a scalar")
    if type(ignore_index) is not int:
        raise TypeError(f"argument 'ignore_index' must be int, not {type(ignore_index).__name__}")
    if type(label_smoothing) is not float and type(label_smoothing) is not int:
        raise TypeError(f"argument 'label_smoothing' must be float, not {type(label_smoothing).__name__}")
    if label_smoothing and not 0.0 <= label_smoothing <= 1.0:
        raise RuntimeError(f"label_smoothing must be between 0.0 and 1.0. Got: {label_smoothing}")
    classes = shape[0 if len(shape) == 1 else 1]
    if classes == 0:
        raise IndexError(f"input: expected at least one class, got shape {tuple(shape)}")
    soft = probabilities(shape, target)
    if soft:
        if ignore_index >= 0:
            raise RuntimeError(
                f"ignore_index: expected a negative number for probability targets, got {ignore_index}"
            )
    else:
        if target.dtype not in INTEGERS:
            raise RuntimeError(f"target: expected integer labels (PyTorch's are int64), got {target.dtype}")
        labels(shape, target.shape)
    if weight is not None and weight.shape != (classes,):
        raise RuntimeError(
            f"weight: expected shape ({classes},), one number per class, got {tuple(weight.shape)}"
        )
    return soft


def labels(shape, given):
    """Shape of labels for logits of a shape."""
    expected = (*shape[:1], *shape[2:]) if len(shape) > 1 else ()
    if given == expected or (len(shape) == 1 and given == (1,)):
        return
    if len(given) == len(expected) and given[:1] != expected[:1]:
        raise ValueError(
            f"target: expected batch size {expected[0]}, that of input {tuple(shape)}, to match, got {given[0]}"
        )
    raise RuntimeError(
        f"target: expected labels of shape {tuple(expected)} or probabilities of shape {tuple(shape)}, "
        f"got {tuple(given)}"
    )


def weight_dtype(weight, input, name="weight"):
    """Class weights beside labels have the dtype of the input, unless autocast takes care of that."""
    if weight is not None and weight.dtype != input.dtype and not autocast(input):
        raise RuntimeError(f"{name}: expected the dtype of input, {input.dtype}, got {weight.dtype}")


def not_differentiable(function, **arguments):
    """Refuse gradients that PyTorch refuses, or that this function does not have."""
    if torch.is_grad_enabled():
        for name, value in arguments.items():
            if value is not None and value.requires_grad:
                raise RuntimeError(
                    f"{function} is not differentiable with respect to argument '{name}'. "
                    "This input cannot have requires_grad True."
                )


def autocast(tensor):
    """Whether autocast is on for the device of a tensor."""
    return torch.is_autocast_enabled(tensor.device.type)


def loss_dtype(*tensors):
    """Dtype of the loss: that of the tensors together; float32 for 16-bit ones under autocast, as in PyTorch."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        if tensor is not None:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return torch.float32 if dtype in HALVES and autocast(tensors[0]) else dtype


def elements(input, target, weight, pos_weight):
    """Check a binary problem.

    Raises
    ------
    TypeError, RuntimeError, ValueError
        As PyTorch: targets of another shape or not floating point; weights that do not broadcast to the input.
    """
    if target.shape != input.shape:
        raise ValueError(
            f"Target size ({target.shape}) must be the same as input size ({input.shape}): "
            "binary targets have one number per logit"
        )
    if not target.is_floating_point():
        raise RuntimeError(f"target: expected floating point numbers, got {target.dtype}")
    for name, value in (("weight", weight), ("pos_weight", pos_weight)):
        if value is not None:
            try:
                shape = torch.broadcast_shapes(value.shape, input.shape)
            except RuntimeError:
                shape = None
            if shape != input.shape:
                raise RuntimeError(
                    f"{name}: expected a shape that broadcasts to that of input, {tuple(input.shape)}, "
                    f"got {tuple(value.shape)}"
                )


def linear(input, linear_weight, linear_bias):
    """Check a linear layer; the shape of its logits.

    Raises
    ------
    RuntimeError
        As PyTorch: shapes that do not belong together; dtypes that differ, unless autocast is on.
    """
    if input.dim() not in (1, 2):
        raise RuntimeError(f"input: expected 1 or 2 dimensions, got {input.dim()}")
    if linear_weight.dim() < 2:
        raise RuntimeError(f"linear_weight: expected at least 2 dimensions, got {linear_weight.dim()}")
    if input.shape[-1] != linear_weight.shape[-1]:
        raise RuntimeError(
            "linear_weight: expected equal input and linear_weight last dimensions (in_features), "
            f"got {input.shape[-1]} and {linear_weight.shape[-1]}, respectively"
        )
    if linear_weight.dim() > 2 and input.dim() == 1:
        raise RuntimeError(
            f"input: expected a batch (N, {input.shape[0]}) beside linear_weight {tuple(linear_weight.shape)}"
        )
    if linear_bias is not None and linear_bias.shape != linear_weight.shape[:-1]:
        raise RuntimeError(
            f"linear_bias: expected shape {tuple(linear_weight.shape[:-1])}, got {tuple(linear_bias.shape)}"
        )
    for name, value in (("linear_weight", linear_weight), ("linear_bias", linear_bias)):
        weight_dtype(value, input, name)
    return (*input.shape[:-1], *linear_weight.shape[:-1])
