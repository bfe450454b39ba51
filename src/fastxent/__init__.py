"""fastxent: cross-entropy, done once; exact to a few ulp and as fast as memory.

Kernels on arrays and loss objects load with the package; estimators load when first touched.
"""

import importlib
import sys

from ._backend import show_versions
from .losses import (
    AsymmetricLoss,
    BinaryFocalLoss,
    BootstrappingLoss,
    DiceLoss,
    DistillationLoss,
    FocalLoss,
    GANDiscriminatorLoss,
    GANGeneratorLoss,
    GeneralizedCrossEntropy,
    JensenShannonLoss,
    Poly1Loss,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    SymmetricCrossEntropy,
    TverskyLoss,
    binary_cross_entropy,
    binary_cross_entropy_with_grad,
    sigmoid_cross_entropy,
    sigmoid_cross_entropy_backward,
    sigmoid_cross_entropy_forward,
    sigmoid_cross_entropy_with_grad,
    softmax_cross_entropy,
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
    softmax_cross_entropy_with_grad,
)

# Name to the module that has it; a module to itself.
_LAZY = {
    "LogisticRegression": "logistic",
    "MLPClassifier": "mlp",
    "TemperatureScaling": "calibration",
    "information": "information",
    "linear_cross_entropy": "linear",
    "linear_cross_entropy_with_grad": "linear",
    "load": "files",
    "merge_lse": "shards",
    "partial_lse": "shards",
}

__version__ = "0.1.0.dev0"
__all__ = [
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
    "LogisticRegression",
    "MLPClassifier",
    "Poly1Loss",
    "SigmoidCrossEntropy",
    "SoftmaxCrossEntropy",
    "SymmetricCrossEntropy",
    "TemperatureScaling",
    "TverskyLoss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_grad",
    "information",
    "linear_cross_entropy",
    "linear_cross_entropy_with_grad",
    "load",
    "merge_lse",
    "partial_lse",
    "show_versions",
    "sigmoid_cross_entropy",
    "sigmoid_cross_entropy_backward",
    "sigmoid_cross_entropy_forward",
    "sigmoid_cross_entropy_with_grad",
    "softmax_cross_entropy",
    "softmax_cross_entropy_backward",
    "softmax_cross_entropy_forward",
    "softmax_cross_entropy_with_grad",
]


# What somebody who comes from PyTorch tries first.
_PYTORCH_NAMES = {
    name: f"; for tensors there is fastxent.torch.{name}, for arrays fastxent.{ours}"
    for name, ours in (
        ("cross_entropy", "softmax_cross_entropy"),
        ("CrossEntropyLoss", "SoftmaxCrossEntropy"),
        ("binary_cross_entropy_with_logits", "sigmoid_cross_entropy"),
        ("BCEWithLogitsLoss", "SigmoidCrossEntropy"),
    )
}


def __getattr__(name):
    module = _LAZY.get(name)
    if module is None:
        # The name and the module let the interpreter suggest a similar name.
        text = f"module {__name__!r} has no attribute {name!r}{_PYTORCH_NAMES.get(name, '')}"
        raise AttributeError(text, name=name, obj=sys.modules[__name__])
    value = importlib.import_module(f".{module}", __name__)
    if module != name:
        value = getattr(value, name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
