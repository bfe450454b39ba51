"""Region losses: overlap of predicted and true sets, for segmentation.

Sums run over a region of elements with weights v, probabilities p and targets t in [0, 1]:

    TP = sum v p t    FP = sum v p (1 - t)    FN = sum v (1 - p) t
    L = 1 - (TP + s) / (TP + alpha FP + beta FN + s) = (alpha FP + beta FN) / (TP + alpha FP + beta FN + s)

The second form loses no digits where the overlap is nearly perfect: nothing in it is subtracted, and 1 - p = sigma(-z).
A region couples its elements, so there is a gradient and no Hessian by rows.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from .. import _backend, _checks, _device
from ._base import Call, Loss
from ._region_on_device import DeviceRegionCall

__all__ = ["DiceLoss", "TverskyLoss"]

ACTIVATIONS = ("sigmoid", "softmax", "none")


class RegionCall(Call):
    """One checked call: arrays as (regions, outer, classes, inner) for the kernels, without copies where possible."""

    def __init__(
        self, loss, alpha, beta, smooth, z, y, sample_weight, reduction, backend, num_threads, check
    ):
        self.core = _backend.choose(backend)
        self.threads = _checks.thread_count(num_threads)
        self.alpha, self.beta, self.smooth = alpha, beta, smooth
        self.reduction = _checks.choice(reduction, "reduction", _checks.REDUCTIONS)
        self.region = region = _checks.region_input(
            z, y, sample_weight, loss.axis, loss.class_axis, loss.activation, check=check
        )
        ndim, at = region.logits.ndim, region.class_axis
        apart = [i for i in range(ndim) if i not in region.axes]
        inside = [i for i in range(ndim) if i in region.axes]
        # the classes keep an axis of their own if they share a softmax, or are regions
        self.per_class = at in apart
        if loss.activation == "softmax" or self.per_class:
            apart, inside = [i for i in apart if i != at], [i for i in inside if i != at]
            self.order = (apart, [i for i in inside if i < at], [at], [i for i in inside if i > at])
        else:
            self.order = (apart, [], [], inside)
        self.kept = tuple(region.logits.shape[i] for i in apart)
        self.values = self.laid_out(region.source)
        self.targets = self.laid_out(region.targets)
        self.weight = None if region.weight is None else self.laid_out(region.weight)
        self.how = (loss.activation, loss.soft_labels)

    def laid_out(self, a):
        """Array of the logits' shape as (regions, outer, classes, inner)."""
        shape = [math.prod(a.shape[i] for i in part) for part in self.order]
        return a.transpose([i for part in self.order for i in part]).reshape(shape)

    def run(self, *, grad=False, hess=False, out=None):
        """(loss, grad, None), None for what was not asked for."""
        classes = self.values.shape[2] if self.per_class else 1
        sums = np.empty((self.values.shape[0], classes, 3))
        result = _checks.output(out, self.region.source) if grad else None
        arrays = (self.values, self.targets, self.weight)
        self.core.region_sums(*arrays, *self.how, sums, self.threads)
        tp, fp, fn = np.moveaxis(sums, 2, 0)
        with np.errstate(all="ignore"):
            wrong = self.alpha * fp + self.beta * fn
            whole = tp + wrong + self.smooth
            nothing = whole == 0  # neither found nor to be found
            losses = np.where(nothing, 0.0, wrong / whole)
        scale = 1.0 / losses.size if self.reduction.startswith("mean") and losses.size else 1.0
        if grad:
            with np.errstate(all="ignore"):
                whole = np.where(nothing, np.inf, whole)
                # d(wrong / whole) with whole = tp + wrong + smooth
                slopes = (
                    scale * np.stack([(tp + self.smooth) / whole, wrong / whole], axis=2) / whole[:, :, None]
                )
            self.gradient(slopes, result, out is not None)
        if self.reduction == "none":
            values = losses.reshape(*self.kept, classes)
            if self.per_class:
                place = sum(i < self.region.class_axis for i in self.order[0])
                values = np.moveaxis(values, -1, place)
            else:
                values = values[..., 0]
            return values.astype(_checks.compute_dtype(self.region.source.dtype)), result, None
        return float(losses.sum()) * scale, result, None

    def gradient(self, slopes, result, given):
        arrays = [self.values, self.targets, self.weight]
        if (
            given
        ):  # read row by row as the gradient is written: only the logits themselves may be written over
            same = _checks.same_memory(result, self.region.source)
            arrays = [a if same and not at else _checks.apart(result, a) for at, a in enumerate(arrays)]
        rows = self.laid_out(result)
        if result.size and not np.may_share_memory(rows, result):
            rows = np.empty(rows.shape, rows.dtype)
        self.core.region_grad(*arrays, *self.how, self.alpha, self.beta, slopes, rows, self.threads)
        if not np.may_share_memory(rows, result):
            order = [i for part in self.order for i in part]
            result.transpose(order)[...] = rows.reshape([result.shape[i] for i in order])


def region_call(loss, alpha, beta, smooth, z, *rest):
    """The checked call where the logits are: on a CUDA device, or in memory."""
    kind = DeviceRegionCall if _device.is_device(z) else RegionCall
    return kind(loss, alpha, beta, smooth, z, *rest)


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
        return region_call(self, float(self.alpha), float(self.beta), float(self.smooth), *arguments)


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
        return region_call(self, 0.5, 0.5, 0.5 * float(self.smooth), *arguments)


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
