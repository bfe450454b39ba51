"""Region losses: overlap of predicted and true sets, for segmentation.

Sums run over a region of elements with weights v, probabilities p and targets t in [0, 1]:

    TP = sum v p t    FP = sum v p (1 - t)    FN = sum v (1 - p) t
    L = 1 - (TP + s) / (TP + alpha FP + beta FN + s) = (alpha FP + beta FN) / (TP + alpha FP + beta FN + s)

The second form loses no digits where the overlap is nearly perfect: nothing in it is subtracted, and 1 - p = sigma(-z).
A region couples its elements, so there is a gradient and no Hessian by rows.
"""

from dataclasses import dataclass, field

import numpy as np

from .. import _backend, _checks, _core_numpy
from ._base import Call, Loss

__all__ = ["DiceLoss", "TverskyLoss"]

ACTIVATIONS = ("sigmoid", "softmax", "none")


class RegionCall(Call):
    """One checked call: probabilities, targets and weights of the logits' shape, and the axes of a region."""

    def __init__(
        self, loss, alpha, beta, smooth, z, y, sample_weight, reduction, backend, num_threads, check
    ):
        _backend.choose(backend)  # only to refuse what is none: sums over whole arrays are NumPy's work
        _checks.thread_count(num_threads)
        self.alpha, self.beta, self.smooth = alpha, beta, smooth
        self.activation, self.soft_labels = loss.activation, loss.soft_labels
        self.reduction = _checks.choice(reduction, "reduction", _checks.REDUCTIONS)
        self.region = region = _checks.region_input(
            z, y, sample_weight, loss.axis, loss.class_axis, loss.activation, check=check
        )
        with np.errstate(all="ignore"):
            self.p, self.q = self.probabilities(region)

    def probabilities(self, region):
        """Return p and 1 - p, each without cancellation."""
        z = region.logits
        if self.activation == "none":
            return z, 1 - z
        if self.activation == "sigmoid":
            e = np.exp(-np.abs(z))
            big = 1 / (1 + e)
            small = e * big
            return np.where(z > 0, big, small), np.where(z > 0, small, big)
        rows = _core_numpy._softmax(_checks.layered(z, region.class_axis), None, 1.0)
        return region.unlayered(rows.p), region.unlayered(rows.one_minus_p)

    def run(self, *, grad=False, hess=False, out=None):
        """(loss, grad, None), None for what was not asked for."""
        region, p, q = self.region, self.p, self.q
        t, v, axes = region.targets, region.weight, region.axes
        with np.errstate(all="ignore"):
            if self.soft_labels:
                hit, false, missed = np.minimum(p, t), np.maximum(p - t, 0), np.maximum(t - p, 0)
            else:
                hit, false, missed = p * t, p * (1 - t), q * t
            tp, fp, fn = (
                (part if v is None else v * part).sum(axis=axes, dtype=np.float64, keepdims=True)
                for part in (hit, false, missed)
            )
            wrong = self.alpha * fp + self.beta * fn
            whole = tp + wrong + self.smooth
            nothing = whole == 0  # neither found nor to be found
            losses = np.where(nothing, 0.0, wrong / whole)
        scale = 1.0 / losses.size if self.reduction.startswith("mean") and losses.size else 1.0
        gradient = self.gradient(tp, wrong, np.where(nothing, np.inf, whole), scale, out) if grad else None
        if self.reduction == "none":
            return np.squeeze(losses, axis=axes).astype(p.dtype), gradient, None
        return float(losses.sum()) * scale, gradient, None

    def gradient(self, tp, wrong, whole, scale, out):
        region, p, q, t = self.region, self.p, self.q, self.region.targets
        result = _checks.output(out, region.source)
        if self.soft_labels:
            below, above = p < t, p > t
            hit = np.where(below, 1.0, np.where(above, 0.0, 0.5))
            bend = self.alpha * np.where(above, 1.0, np.where(below, 0.0, 0.5)) - self.beta * hit
        else:
            hit, bend = t, self.alpha * (1 - t) - self.beta * t
        with np.errstate(all="ignore"):
            # d(wrong / whole) with whole = tp + wrong + smooth
            slope = scale * (bend * ((tp + self.smooth) / whole) - hit * (wrong / whole)) / whole
            if region.weight is not None:
                slope = np.where(region.weight == 0, 0.0, slope * region.weight)
            if self.activation == "sigmoid":
                slope = slope * p * q
            elif self.activation == "softmax":
                mean = (slope * p).sum(axis=region.class_axis, keepdims=True)
                slope = p * (slope - mean)
        result[...] = slope
        return result


@dataclass(frozen=True, repr=False)
class TverskyLoss(Loss, names=("tversky",)):
    """Tversky loss 1 - (TP + s) / (TP + alpha FP + beta FN + s): Dice with a price for each kind of mistake.

    Salehi, Erdogmus and Gholipour, "Tversky loss function for image segmentation", 2017. beta > alpha prefers finding
    everything. alpha = beta = 1/2 is Dice with s halved, alpha = beta = 1 the Jaccard index.

    Parameters
    ----------
    alpha : float >= 0, default=0.5
        Price of false positives.
    beta : float >= 0, default=0.5
        Price of false negatives.
    activation : {"sigmoid", "softmax", "none"}, default="sigmoid"
        From logits to probabilities; "none" takes probabilities.
    axis : int, tuple of ints or None, default=None
        What a region is made of, None for all elements. The other axes number the regions, whose losses are reduced:
        "mean" is their mean and "none" keeps one loss per region. For images (N, C, H, W), (2, 3) is a region per image
        and class, (0, 2, 3) one per class.
    smooth : float >= 0, default=1.0
        s. Where nothing is found and nothing is to be found, the loss is 0 for any s.
    class_axis : int, default=-1
        Axis of the classes, for "softmax" and for integer labels. Keyword only.
    soft_labels : bool, default=False
        Intersection min(p, t) in place of p t, so that p = t is best for targets between 0 and 1 too (Wang et al.,
        "Jaccard metric losses", 2023). Keyword only.

    Raises
    ------
    TypeError, ValueError
        An option of the wrong type or outside its range; in the calls, targets outside [0, 1], and curvature.

    Examples
    --------
    >>> from fastxent.losses import TverskyLoss
    >>> loss, grad = TverskyLoss(alpha=0.3, beta=0.7, smooth=0.0).loss_grad([0.0, 0.0], [1, 0])
    >>> round(loss, 10), grad.round(10).tolist()
    (0.5, [-0.2125, 0.0375])
    """

    no_curvature = "a region couples its rows, so the Hessian is no sum over rows"

    alpha: float = 0.5
    beta: float = 0.5
    activation: str = "sigmoid"
    axis: int | tuple | None = None
    smooth: float = 1.0
    class_axis: int = field(default=-1, kw_only=True)
    soft_labels: bool = field(default=False, kw_only=True)

    def __post_init__(self):
        _checks.real(self.alpha, "alpha", 0.0)
        _checks.real(self.beta, "beta", 0.0)
        _check_options(self)

    @property
    def elementwise(self):
        """Whether every logit makes its own probability."""
        return self.activation != "softmax"

    def _call(self, *arguments):
        return RegionCall(self, float(self.alpha), float(self.beta), float(self.smooth), *arguments)


@dataclass(frozen=True, repr=False)
class DiceLoss(Loss, names=("dice",)):
    """Dice loss 1 - (2 TP + s) / (2 TP + FP + FN + s): one less the F1 score of probabilities.

    Milletari, Navab and Ahmadi, "V-Net", 2016. With N = 2 sum v p t + s and D = sum v (p + t) + s, L = 1 - N / D and
    dL/dp = -v (2 t D - N) / D^2.

    Parameters
    ----------
    activation : {"sigmoid", "softmax", "none"}, default="sigmoid"
        From logits to probabilities; "none" takes probabilities.
    axis : int, tuple of ints or None, default=None
        What a region is made of, as for `TverskyLoss`.
    smooth : float >= 0, default=1.0
        s.
    class_axis, soft_labels
        As for `TverskyLoss`; keywords only.

    Raises
    ------
    TypeError, ValueError
        An option of the wrong type or outside its range; in the calls, targets outside [0, 1], and curvature.

    Examples
    --------
    >>> from fastxent.losses import DiceLoss
    >>> loss, grad = DiceLoss(smooth=0.0).loss_grad([0.0, 0.0], [1, 0])
    >>> round(loss, 10), grad.round(10).tolist()
    (0.5, [-0.1875, 0.0625])
    """

    no_curvature = TverskyLoss.no_curvature

    activation: str = "sigmoid"
    axis: int | tuple | None = None
    smooth: float = 1.0
    class_axis: int = field(default=-1, kw_only=True)
    soft_labels: bool = field(default=False, kw_only=True)

    def __post_init__(self):
        _check_options(self)

    @property
    def elementwise(self):
        """Whether every logit makes its own probability."""
        return self.activation != "softmax"

    def _call(self, *arguments):
        return RegionCall(self, 0.5, 0.5, 0.5 * float(self.smooth), *arguments)


def _check_options(loss):
    _checks.choice(loss.activation, "activation", ACTIVATIONS)
    _checks.real(loss.smooth, "smooth", 0.0)
    _checks.whole(loss.class_axis, "class_axis")
    axis = loss.axis
    if isinstance(axis, list):
        axis = tuple(axis)
        object.__setattr__(loss, "axis", axis)
    if axis is not None:
        for one in axis if isinstance(axis, tuple) else (axis,):
            _checks.whole(one, "axis")
    if not isinstance(loss.soft_labels, (bool, np.bool_)):
        raise TypeError(f"soft_labels: expected True or False, got {loss.soft_labels!r}")
