from . import information as information
from ._backend import show_versions as show_versions
from .calibration import TemperatureScaling as TemperatureScaling
from .files import load as load
from .linear import linear_cross_entropy as linear_cross_entropy
from .linear import linear_cross_entropy_with_grad as linear_cross_entropy_with_grad
from .logistic import LogisticRegression as LogisticRegression
from .losses import AsymmetricLoss as AsymmetricLoss
from .losses import BinaryFocalLoss as BinaryFocalLoss
from .losses import BootstrappingLoss as BootstrappingLoss
from .losses import DiceLoss as DiceLoss
from .losses import DistillationLoss as DistillationLoss
from .losses import FocalLoss as FocalLoss
from .losses import GANDiscriminatorLoss as GANDiscriminatorLoss
from .losses import GANGeneratorLoss as GANGeneratorLoss
from .losses import GeneralizedCrossEntropy as GeneralizedCrossEntropy
from .losses import JensenShannonLoss as JensenShannonLoss
from .losses import Poly1Loss as Poly1Loss
from .losses import SigmoidCrossEntropy as SigmoidCrossEntropy
from .losses import SoftmaxCrossEntropy as SoftmaxCrossEntropy
from .losses import SymmetricCrossEntropy as SymmetricCrossEntropy
from .losses import TverskyLoss as TverskyLoss
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
from .shards import merge_lse as merge_lse
from .shards import partial_lse as partial_lse

__version__: str
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

def __dir__() -> list[str]: ...
