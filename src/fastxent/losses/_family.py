"""Softmax losses that are a function f of the label's probability p: three scalars in every backend, a dataclass here.

With G = -p f'(p), the gradient of a row of label y is G (p_k - [k = y]) and its Hessian
G (diag p - p p') - PG d d' with PG = p dG/dp and d = p - e_y. Soft targets give the linear mixture of the classes'
losses. The kernels know three shapes of f: "focal" (1 - p)^a l, "linear" a l + b (1 - p) and "power" (1 - p^a) / a,
with l = -log p; which of them a loss is, and its numbers, is all that a class below adds to `SoftmaxLoss`.
"""

from dataclasses import dataclass

import numpy as np

from .. import _checks
from ._base import as_tuple
from ._softmax import CROSS_ENTROPY, Member, SoftmaxLoss

__all__ = ["FocalLoss", "GeneralizedCrossEntropy", "Poly1Loss", "SymmetricCrossEntropy"]


@dataclass(frozen=True, repr=False)
class FocalLoss(SoftmaxLoss, names=("focal",)):
    """Focal loss alpha_y (1 - p)^gamma (-log p), p the label's probability: easy rows count little.

    Lin et al., "Focal Loss for Dense Object Detection", 2017. G = alpha_y (1 - p)^(gamma - 1) (gamma p l + 1 - p) with
    l = -log p. Not convex: the curvature is negative for small p (p < 0.058 for gamma = 2), so boosting wants
    hessian="upper".

    Parameters
    ----------
    gamma : float >= 0, default=2.0
        0 is cross-entropy.
    alpha : float >= 0, or sequence of such of shape (n_classes,), optional
        Factor of the loss of every class; unlike `class_weight`, not part of the mean's denominator.
    class_weight, label_smoothing, smoothing, ignore_index, z_loss, temperature, logit_bias, axis, base, empty
        As for `softmax_cross_entropy`; keywords only.

    Raises
    ------
    TypeError, ValueError
        An option of the wrong type or outside its range.

    Examples
    --------
    >>> import fastxent as fx
    >>> loss, grad = fx.FocalLoss(gamma=2.0).loss_grad([[0.0, 0.0]], [0])
    >>> round(loss, 10), grad.round(10).tolist()
    (0.1732867951, [[-0.2982867951, 0.2982867951]])
    """

    gamma: float = 2.0
    alpha: float | tuple | None = None

    def __post_init__(self):
        super().__post_init__()
        _checks.real(self.gamma, "gamma", 0.0)
        alpha = self.alpha
        if alpha is not None:
            alpha = as_tuple(alpha, "alpha") if np.ndim(alpha) else _checks.real(alpha, "alpha", 0.0)
            if isinstance(alpha, tuple):
                alpha = tuple(_checks.real(each, "alpha", 0.0) for each in alpha)
        object.__setattr__(self, "alpha", alpha)

    def _member(self):
        return Member("focal", float(self.gamma)) if self.gamma else CROSS_ENTROPY

    def _alpha(self):
        return self.alpha


@dataclass(frozen=True, repr=False)
class Poly1Loss(SoftmaxLoss, names=("poly1",)):
    """Poly-1 loss -log p + epsilon (1 - p), p the label's probability.

    Leng et al., "PolyLoss", 2022: the first coefficient of cross-entropy's expansion in 1 - p moved by epsilon.
    G = 1 + epsilon p.

    Parameters
    ----------
    epsilon : float >= -1, default=1.0
        0 is cross-entropy.
    class_weight, label_smoothing, smoothing, ignore_index, z_loss, temperature, logit_bias, axis, base, empty
        As for `softmax_cross_entropy`; keywords only.

    Raises
    ------
    TypeError, ValueError
        An option of the wrong type or outside its range.

    Examples
    --------
    >>> import fastxent as fx
    >>> loss, grad = fx.Poly1Loss().loss_grad([[0.0, 0.0]], [0])
    >>> round(loss, 10), grad.round(10).tolist()
    (1.1931471806, [[-0.75, 0.75]])
    """

    epsilon: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        _checks.real(self.epsilon, "epsilon", -1.0)

    def _member(self):
        return Member("linear", 1.0, float(self.epsilon)) if self.epsilon else CROSS_ENTROPY


@dataclass(frozen=True, repr=False)
class GeneralizedCrossEntropy(SoftmaxLoss, names=("gce", "generalized_cross_entropy")):
    """Generalized cross-entropy (1 - p^r) / r, p the label's probability: bounded, for noisy labels.

    Zhang and Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels", 2018.
    G = p^r. r = 1 is the mean absolute error 1 - p; r -> 0 is cross-entropy.

    Parameters
    ----------
    r : float in (0, 1], default=0.7
        The smaller, the closer to cross-entropy.
    class_weight, label_smoothing, smoothing, ignore_index, z_loss, temperature, logit_bias, axis, base, empty
        As for `softmax_cross_entropy`; keywords only.

    Raises
    ------
    TypeError, ValueError
        An option of the wrong type or outside its range.

    Examples
    --------
    >>> import fastxent as fx
    >>> loss, grad = fx.GeneralizedCrossEntropy(r=1.0).loss_grad([[0.0, 0.0]], [0])
    >>> round(loss, 10), grad.round(10).tolist()
    (0.5, [[-0.25, 0.25]])
    """

    r: float = 0.7

    def __post_init__(self):
        super().__post_init__()
        _checks.real(self.r, "r", 0.0, 1.0, open_low=True)

    def _member(self):
        return Member("power", float(self.r))


@dataclass(frozen=True, repr=False)
class SymmetricCrossEntropy(SoftmaxLoss, names=("sce", "symmetric_cross_entropy")):
    """Symmetric cross-entropy -alpha log p - beta A (1 - p), p the label's probability: for noisy labels.

    Wang et al., "Symmetric Cross Entropy for Robust Learning with Noisy Labels", 2019: beta times the reverse
    cross-entropy, in which log 0 of the labels is A. G = alpha - beta A p; poly-1 with epsilon = -beta A / alpha, times
    alpha.

    Parameters
    ----------
    alpha : float >= 0, default=0.1
        Factor of cross-entropy.
    beta : float >= 0, default=1.0
        Factor of the reverse cross-entropy.
    A : float <= 0, default=-4.0
        What stands for log 0.
    class_weight, label_smoothing, smoothing, ignore_index, z_loss, temperature, logit_bias, axis, base, empty
        As for `softmax_cross_entropy`; keywords only.

    Raises
    ------
    TypeError, ValueError
        An option of the wrong type or outside its range.

    Examples
    --------
    >>> import fastxent as fx
    >>> loss, grad = fx.SymmetricCrossEntropy().loss_grad([[0.0, 0.0]], [0])
    >>> round(loss, 10), grad.round(10).tolist()
    (2.0693147181, [[-1.05, 1.05]])
    """

    alpha: float = 0.1
    beta: float = 1.0
    A: float = -4.0

    def __post_init__(self):
        super().__post_init__()
        _checks.real(self.alpha, "alpha", 0.0)
        _checks.real(self.beta, "beta", 0.0)
        _checks.real(self.A, "A", high=0.0)

    def _member(self):
        return Member("linear", float(self.alpha), -float(self.beta) * float(self.A))
