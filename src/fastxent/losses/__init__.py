"""Cross-entropy on plain arrays: functions, and losses as objects that add up.

Shapes: `logits` (n_samples, n_classes) or any shape with the classes on `axis`; integer labels of the shape without
that axis, or soft targets of the same shape.  Rows are the positions off the class axis.  Arithmetic is in float32
for float32, float16 and bfloat16 logits and in float64 otherwise; sums over rows are float64.  A reduced loss is a
Python float; reduction="none" gives one loss per row, and gradients as for "sum".

With u = logits / temperature + logit_bias, p = softmax(u), t' the smoothed target, q_k = w_k t'_k and Q = sum q_k,

    loss of a row = v (Q logsumexp(u) - sum_k q_k u_k + z_loss logsumexp(u)^2)

for sample weight v and class weights w.  Reductions: "sum"; "mean" divides by sum_i v_i sum_k w_k t_ik (PyTorch's mean
for labels); "mean_rows" by the number of rows that are not ignored; "mean_all" by the number of rows; "none" keeps
the rows.  Where the denominator is 0, the loss is 0 (`empty="zero"`) or NaN (`empty="nan"`) and the gradient 0.
"""

from ._base import HESSIANS, Loss, ScaledLoss, SumLoss, names, resolve
from ._binary import AsymmetricLoss, BinaryFocalLoss
from ._divergence import BootstrappingLoss, DistillationLoss, JensenShannonLoss
from ._elementwise import (
    SigmoidCrossEntropy,
    binary_cross_entropy,
    binary_cross_entropy_with_grad,
    sigmoid_cross_entropy,
    sigmoid_cross_entropy_backward,
    sigmoid_cross_entropy_forward,
    sigmoid_cross_entropy_with_grad,
)
from ._family import FocalLoss, GeneralizedCrossEntropy, Poly1Loss, SymmetricCrossEntropy
from ._gan import GANDiscriminatorLoss, GANGeneratorLoss
from ._region import DiceLoss, TverskyLoss
from ._softmax import (
    SoftmaxCrossEntropy,
    softmax_cross_entropy,
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
    softmax_cross_entropy_with_grad,
)

__all__ = [
    "HESSIANS",
    "AsymmetricLoss",
    "BinaryFocalLoss",
    "BootstrappingLoss",
    "DiceLoss",
    "DistillationLoss",
    "FocalLoss",
    "GANDiscriminatorLoss",
    "GANGeneratorLoss",
    "GeneralizedCrossEntropy",
    "JensenShannonLoss",
    "Loss",
    "Poly1Loss",
    "ScaledLoss",
    "SigmoidCrossEntropy",
    "SoftmaxCrossEntropy",
    "SumLoss",
    "SymmetricCrossEntropy",
    "TverskyLoss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_grad",
    "names",
    "resolve",
    "sigmoid_cross_entropy",
    "sigmoid_cross_entropy_backward",
    "sigmoid_cross_entropy_forward",
    "sigmoid_cross_entropy_with_grad",
    "softmax_cross_entropy",
    "softmax_cross_entropy_backward",
    "softmax_cross_entropy_forward",
    "softmax_cross_entropy_with_grad",
]
