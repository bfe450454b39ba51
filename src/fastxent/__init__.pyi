from ._backend import show_versions as show_versions
from .linear import linear_cross_entropy as linear_cross_entropy
from .linear import linear_cross_entropy_with_grad as linear_cross_entropy_with_grad
from .logistic import LogisticRegression as LogisticRegression
from .losses import SigmoidCrossEntropy as SigmoidCrossEntropy
from .losses import SoftmaxCrossEntropy as SoftmaxCrossEntropy
from .losses import binary_cross_entropy as binary_cross_entropy
from .losses import binary_cross_entropy_with_grad as binary_cross_entropy_with_grad
from .losses import sigmoid_cross_entropy as sigmoid_cross_entropy
from .losses import sigmoid_cross_entropy_backward as sigmoid_cross_entropy_backward
from .losses import sigmoid_cross_entropy_forward as sigmoid_cross_entropy_forward
from .losses import sigmoid_cross_entropy_with_grad as sigmoid_cross_entropy_with_grad
from .losses import softmax_cross_entropy as softmax_cross_entropy
from .losses import softmax_cross_entropy_backward as softmax_cross_entropy_backward
from .losses import softmax_cross_entropy_forward as softmax_cross_entropy_forward
from .losses import softmax_cross_entropy_with_grad as softmax_cross_entropy_with_grad
from .mlp import MLPClassifier as MLPClassifier

__version__: str
__all__ = [
    "LogisticRegression",
    "MLPClassifier",
    "SigmoidCrossEntropy",
    "SoftmaxCrossEntropy",
    "binary_cross_entropy",
    "binary_cross_entropy_with_grad",
    "linear_cross_entropy",
    "linear_cross_entropy_with_grad",
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

def __dir__() -> list[str]: ...
