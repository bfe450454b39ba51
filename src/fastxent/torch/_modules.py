"""The functions as modules with the constructors, attributes and state of PyTorch's."""

import math

import torch

from fastxent.torch import _arguments
from fastxent.torch._binary import binary_cross_entropy_with_logits
from fastxent.torch._linear import linear_cross_entropy
from fastxent.torch._softmax import cross_entropy


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """`torch.nn.CrossEntropyLoss` on `fastxent.torch.cross_entropy`.

    Parameters
    ----------
    weight, size_average, ignore_index, reduce, reduction, label_smoothing
        As for `cross_entropy`. `weight` is a buffer.

    Examples
    --------
    >>> import torch
    >>> from fastxent.torch import CrossEntropyLoss
    >>> round(CrossEntropyLoss(label_smoothing=0.1)(torch.zeros(1, 4), torch.tensor([0])).item(), 4)  # log 4
    1.3863
    """

    def forward(self, input, target):
        """Loss of logits and labels or probabilities."""
        return cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


class BCEWithLogitsLoss(torch.nn.BCEWithLogitsLoss):
    """`torch.nn.BCEWithLogitsLoss` on `fastxent.torch.binary_cross_entropy_with_logits`.

    Parameters
    ----------
    weight, size_average, reduce, reduction, pos_weight
        As for `binary_cross_entropy_with_logits`. `weight` and `pos_weight` are buffers.

    Examples
    --------
    >>> import torch
    >>> from fastxent.torch import BCEWithLogitsLoss
    >>> round(BCEWithLogitsLoss()(torch.zeros(3), torch.tensor([0.0, 1.0, 0.5])).item(), 4)  # log 2
    0.6931
    """

    def forward(self, input, target):
        """Loss of logits and probabilities."""
        return binary_cross_entropy_with_logits(
            input, target, self.weight, reduction=self.reduction, pos_weight=self.pos_weight
        )


class LinearCrossEntropyLoss(torch.nn.Module):
    """A linear layer and the cross-entropy of its logits: `torch.nn.LinearCrossEntropyLoss` of PyTorch 2.13.

    Parameters
    ----------
    in_features, num_classes : int
    out_features : tuple of ints, default=()
        d_1, ...: every position has logits of its own.
    bias : bool, default=False
        Whether the layer has one.
    device, dtype
        Of the layer.
    reduction, weight, ignore_index, label_smoothing, options
        As for `linear_cross_entropy`. `weight` is a buffer.

    Raises
    ------
    RuntimeError
        A `weight` of another shape than (num_classes,); `label_smoothing` outside [0, 1].

    Examples
    --------
    >>> import torch
    >>> from fastxent.torch import LinearCrossEntropyLoss
    >>> head = LinearCrossEntropyLoss(8, 1000)
    >>> head.linear.weight.shape, head(torch.zeros(2, 8), torch.tensor([0, 1])).item() > 6.9  # log 1000
    (torch.Size([1000, 8]), True)
    """

    def __init__(
        self,
        in_features,
        num_classes,
        *,
        out_features=(),
        bias=False,
        device=None,
        dtype=None,
        reduction="mean",
        weight=None,
        ignore_index=None,
        label_smoothing=0.0,
        options=None,
    ):
        if weight is not None and weight.shape != (num_classes,):
            raise RuntimeError(f"weight: expected shape {(num_classes,)}, got {tuple(weight.shape)}")
        if not 0.0 <= label_smoothing <= 1.0:
            raise RuntimeError(f"label_smoothing: expected a number in [0, 1], got {label_smoothing}")
        super().__init__()
        self.register_buffer("weight", weight)
        self.num_classes, self.out_features = num_classes, tuple(out_features)
        self.reduction = _arguments.reduction_of(reduction, None, None)
        self.ignore_index, self.label_smoothing, self.options = ignore_index, label_smoothing, options
        wide = math.prod(self.out_features, start=num_classes)
        self.linear = torch.nn.Linear(in_features, wide, bias=bias, device=device, dtype=dtype)

    def forward(self, input, target):
        """Loss of the layer's logits."""
        layer, shape = self.linear, (self.num_classes, *self.out_features)
        return linear_cross_entropy(
            input,
            layer.weight.view(*shape, layer.in_features),
            target,
            linear_bias=None if layer.bias is None else layer.bias.view(shape),
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            options=self.options,
        )

    def extra_repr(self):
        """Options in the module's repr."""
        return (
            f"in_features={self.linear.in_features}, num_classes={self.num_classes}, "
            f"out_features={self.out_features}, bias={self.linear.bias is not None}, reduction={self.reduction!r}, "
            f"ignore_index={self.ignore_index}, label_smoothing={self.label_smoothing}"
        )
