"""Binary losses on logits other than cross-entropy: focal and asymmetric.

Elementwise over logits of any shape; with p = sigmoid(z), q = sigmoid(-z) and sp(z) = log(1 + e^z), a target y in
[0, 1] mixes the loss of a positive and that of a negative, y f_1(z) + (1 - y) f_0(z).
"""

import copy
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .. import _checks, _device
from ._base import Loss
from ._elementwise import ElementCall, device_call

__all__ = ["AsymmetricLoss", "BinaryFocalLoss"]


class MemberCall(ElementCall):
    """One checked call of a member of the sigmoid family: its name in the kernels, and three numbers."""

    def __init__(self, member, values, targets, sample_weight, reduction, backend, num_threads, check):
        options = (None, 0.0, reduction, None, num_threads, backend, check)
        super().__init__("sigmoid_elements", values, targets, sample_weight, *options, extra=member)

    def of_cross_entropy(self):
        """The same call for the plain cross-entropy."""
        call = copy.copy(self)
        call.extra = ()
        return call

    def upper(self, hess):
        """What dominates the Hessian of a focal element and is positive wherever there is a gradient."""
        problem, (_, gamma, one, zero) = self.problem, self.extra
        denominator = self.denominator()
        weight = 1.0 if problem.sample_weight is None else problem.sample_weight.astype(np.float64)
        z, y = problem.values.astype(np.float64), problem.targets.astype(np.float64)
        bound = focal_upper(z, y, weight, gamma, one, zero)
        bound *= self.unit / denominator if denominator else 0.0
        hess[...] = bound.reshape(problem.shape)
        return hess


def focal_upper(z, y, weight, gamma, one, zero):
    """Bound of weight times the second derivative of focal elements; `one` and `zero` weigh the two targets.

    h = G p q - PG q^2 with G = q^(gamma - 1) (gamma p S + q) > 0, S = -log p; the second term stays where it adds.
    """
    bound = np.zeros(z.shape)
    for x, share in ((z, one * y), (-z, zero * (1 - y))):
        e = np.exp(-np.abs(x))
        p = np.where(x > 0, 1, e) / (1 + e)
        q = np.where(x > 0, e, 1) / (1 + e)
        pS = np.where(p == 0, 0, p * np.where(p == 0, 0, np.maximum(-x, 0) + np.log1p(e)))
        slope = q**gamma * (gamma * p * pS + p * q)
        bend = gamma * q**gamma * (2 * p * q - pS * (1 - gamma * p))
        bound += share * (np.maximum(weight, 0) * slope + np.maximum(weight * bend, 0))
    return bound


def member_call(member, z, y, sample_weight, reduction, backend, num_threads, check):
    """The checked call where the logits are: on a CUDA device, or in memory."""
    if _device.is_device(z):
        options = (sample_weight, None, 0.0, reduction, None)
        return device_call(z, y, *options, backend, check, member=tuple(member))
    return MemberCall(member, z, y, sample_weight, reduction, backend, num_threads, check)


@dataclass(frozen=True, repr=False)
class BinaryFocalLoss(Loss, names=("binary_focal", "sigmoid_focal")):
    """Binary focal loss: f_1 = alpha q^gamma sp(-z), f_0 = (1 - alpha) p^gamma sp(z).

    Lin et al., "Focal Loss for Dense Object Detection", 2017. For y = 1 the gradient is
    -alpha q^gamma (gamma p sp(-z) + q), with q^gamma = exp(-gamma sp(z)). Not convex: the curvature is negative where
    the loss is large (p < 0.058 for gamma = 2), so boosting wants hessian="upper".

    Parameters
    ----------
    gamma : float >= 0, default=2.0
        0 is cross-entropy.
    alpha : float in [0, 1], optional
        Weight of the positives, 1 - alpha that of the negatives; None: 1 for both.

    Raises
    ------
    TypeError, ValueError
        An option of the wrong type or outside its range.

    Examples
    --------
    >>> import fastxent as fx
    >>> grad, hess = fx.BinaryFocalLoss(gamma=2.0).grad_hess([0.0, -3.0], [1, 1], reduction="sum")
    >>> grad.round(10).tolist(), hess.round(10).tolist()
    ([-0.2982867951, -1.1267498806], [0.3991433976, -0.0200888667])
    """

    elementwise: ClassVar[bool] = True

    gamma: float = 2.0
    alpha: float | None = None

    def __post_init__(self):
        _checks.real(self.gamma, "gamma", 0.0)
        if self.alpha is not None:
            _checks.real(self.alpha, "alpha", 0.0, 1.0)

    def _call(self, z, y, *rest):
        one, zero = (1.0, 1.0) if self.alpha is None else (float(self.alpha), 1 - float(self.alpha))
        return member_call(("focal", float(self.gamma), one, zero), z, y, *rest)


@dataclass(frozen=True, repr=False)
class AsymmetricLoss(Loss, names=("asymmetric", "asl")):
    """Asymmetric loss for many labels, few of them positive: f_1 = q^gamma_pos sp(-z), f_0 = -s^gamma_neg log(1 - s).

    s = max(p - margin, 0): negatives below the margin count nothing. Ridnik et al., "Asymmetric Loss for Multi-Label
    Classification", 2021. Loss and gradient; it has a kink at the margin.

    Parameters
    ----------
    gamma_pos : float >= 0, default=0.0
        Focusing of the positives.
    gamma_neg : float >= 0, default=4.0
        Focusing of the negatives.
    margin : float in [0, 1), default=0.05
        Probability below which a negative is easy.

    Raises
    ------
    TypeError, ValueError
        An option of the wrong type or outside its range.

    Examples
    --------
    >>> import fastxent as fx
    >>> loss, grad = fx.AsymmetricLoss().loss_grad([0.0, 0.0, -4.0], [1, 0, 0], reduction="sum")
    >>> round(loss, 10), grad.round(10).tolist()
    (0.7176622341, [-0.5, 0.0731171012, 0.0])
    """

    elementwise: ClassVar[bool] = True
    no_curvature: ClassVar[str] = "it has a kink at the margin and no positive stand-in for a Hessian"

    gamma_pos: float = 0.0
    gamma_neg: float = 4.0
    margin: float = 0.05

    def __post_init__(self):
        _checks.real(self.gamma_pos, "gamma_pos", 0.0)
        _checks.real(self.gamma_neg, "gamma_neg", 0.0)
        if _checks.real(self.margin, "margin", 0.0, 1.0) == 1:
            raise ValueError("margin: expected a number in [0, 1), got 1.0")

    def _call(self, z, y, *rest):
        return member_call(
            ("asymmetric", float(self.gamma_pos), float(self.gamma_neg), float(self.margin)), z, y, *rest
        )
