"""Losses of generative adversarial networks on the discriminator's logits: binary cross-entropy with its own means.

Goodfellow et al., "Generative Adversarial Nets", 2014. With sp(z) = log(1 + e^z), r logits of real and f of generated
samples. `y` is 1 for real, 0 for generated elements. Of the reductions, "mean" and "mean_rows" average each group by
itself, with and without the sample weights, and add the two; "mean_all" divides by the number of all elements.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .. import _checks, _device
from ._base import Loss
from ._elementwise import ElementCall
from ._on_device import DeviceElementCall

__all__ = ["GANDiscriminatorLoss", "GANGeneratorLoss"]

KINDS = ("non_saturating", "minimax")


class GANCall(ElementCall):
    """Binary cross-entropy against `targets`, with weights that give every group of elements its own denominator."""

    def __init__(self, z, targets, groups, weight, sign, reduction, num_threads, backend, check):
        _checks.choice(reduction, "reduction", _checks.REDUCTIONS)
        sizes = [1.0] * len(groups)
        if reduction in ("mean", "mean_rows"):
            weighted = weight is not None and reduction == "mean"
            sizes = [
                float(weight[g].sum(dtype=np.float64) if weighted else np.count_nonzero(g)) for g in groups
            ]
        # groups of one size need no rounded factor
        self.size = next((size for size in sizes if size), 0.0)
        factor = np.zeros(z.shape, _checks.compute_dtype(z.dtype))
        for group, size in zip(groups, sizes, strict=True):
            factor[group] = sign * self.size / size if size else 0.0
        if weight is not None:
            factor *= weight
        if reduction == "mean_all":
            self.size = float(z.size)
        super().__init__(
            "sigmoid_elements", z, targets, factor, None, 0.0, reduction, None, num_threads, backend, check
        )

    def denominator(self):
        return self.size


def device_call(z, y, sample_weight, reduction, backend, check, real_target, sign):
    """The call for logits on a CUDA device; `real_target` None: the generated elements alone count, against 1 or 0."""
    _checks.choice(reduction, "reduction", _checks.REDUCTIONS)
    library, z = _device.library_of(z)
    if not library.multiplies:
        raise TypeError(
            "logits: expected an array of CuPy or PyTorch for an adversarial loss; copy others to one"
        )
    shape, dtype = tuple(z.shape), _device.compute_dtype(_device.real_dtype(library, z, "logits"))
    if y is None:
        real = library.filled(shape, 0.0, dtype)
    elif not _device.is_device(y):
        raise TypeError(f"targets: expected an array on the device, as logits, got {type(y).__name__}")
    else:
        y = _device.weights(library, y, "targets", shape, dtype)
        if check and not bool(library.item(((y == 0) | (y == 1)).all())):
            raise ValueError("targets: expected 1 for real and 0 for generated elements")
        real = library.cast(y == 1, dtype)
    weight = _device.weights(library, sample_weight, "sample_weight", shape, dtype)
    factor = None
    for group in (1 - real,) if real_target is None else (real, 1 - real):
        if reduction in ("mean", "mean_rows"):
            counted = group if weight is None or reduction == "mean_rows" else group * weight
            size = library.summed(counted.reshape(-1), "float64")
            group = library.cast(group * ((size != 0) / (size + (size == 0))), dtype)
        factor = group if factor is None else factor + group
    factor = factor * (sign / (max(math.prod(shape), 1) if reduction == "mean_all" else 1))
    if weight is not None:
        factor = factor * weight
    if real_target is None:
        targets = library.filled(shape, 1.0 if sign > 0 else 0.0, dtype)
    else:
        targets = real * real_target
    reduction = "none" if reduction == "none" else "sum"
    return DeviceElementCall(z, targets, factor, None, 0.0, reduction, None, backend, False)


def _inputs(z, y, sample_weight, check):
    """Logits, whether each is real, and weights or None."""
    z = _checks.floats(z, "logits")
    real = np.zeros(z.shape, bool) if y is None else _checks.real_or_fake(y, z.shape, check=check)
    dtype = _checks.compute_dtype(z.dtype)
    return z, real, _checks.per_row(sample_weight, "sample_weight", z.shape, dtype, check=check)


@dataclass(frozen=True, repr=False)
class GANDiscriminatorLoss(Loss, names=("gan_discriminator",)):
    """Discriminator's loss: mean of sp(-r) over the real plus mean of sp(f) over the generated samples.

    Gradients -sigma(-r) and sigma(f) over the group's size. 2 log 2 where the discriminator knows nothing. With
    real_target a < 1 (one-sided label smoothing; Salimans et al., 2016) a real sample costs a sp(-r) + (1 - a) sp(r).

    Parameters
    ----------
    real_target : float in [0, 1], default=1.0
        Probability that the discriminator should give to real samples.

    Raises
    ------
    TypeError, ValueError
        An option of the wrong type or outside its range; in the calls, a `y` that is neither 0 nor 1.

    Examples
    --------
    >>> from fastxent.losses import GANDiscriminatorLoss
    >>> loss, grad = GANDiscriminatorLoss().loss_grad([0.0, 0.0, 0.0], [1, 0, 0])
    >>> round(loss, 10), grad.tolist()
    (1.3862943611, [-0.5, 0.25, 0.25])
    """

    elementwise: ClassVar[bool] = True

    real_target: float = 1.0

    def __post_init__(self):
        _checks.real(self.real_target, "real_target", 0.0, 1.0)

    def _call(self, z, y, sample_weight, reduction, backend, num_threads, check):
        y = _checks.given(y, "targets")
        if _device.is_device(z):
            target = float(self.real_target)
            return device_call(z, y, sample_weight, reduction, backend, check, target, 1.0)
        z, real, weight = _inputs(z, y, sample_weight, check)
        targets = np.where(real, float(self.real_target), 0.0)
        return GANCall(z, targets, (real, ~real), weight, 1.0, reduction, num_threads, backend, check)


@dataclass(frozen=True, repr=False)
class GANGeneratorLoss(Loss, names=("gan_generator",)):
    """Generator's loss: mean over the generated samples of sp(-f), or of -sp(f) for kind="minimax".

    Gradients -sigma(-f), and -sigma(f), which vanishes as f -> -inf, just where the generator is worst. Real elements
    (y = 1) count nothing; y = None says that all are generated.

    Parameters
    ----------
    kind : {"non_saturating", "minimax"}, default="non_saturating"
        Both by Goodfellow et al., 2014.

    Raises
    ------
    ValueError
        An unknown kind; in the calls, a `y` that is neither 0 nor 1.

    Examples
    --------
    >>> from fastxent.losses import GANGeneratorLoss
    >>> round(GANGeneratorLoss().loss([0.0, 0.0], None), 10)
    0.6931471806
    >>> GANGeneratorLoss("minimax").loss_grad([0.0, 0.0], [0, 0])[1].tolist()
    [-0.25, -0.25]
    """

    elementwise: ClassVar[bool] = True

    kind: str = "non_saturating"

    def __post_init__(self):
        _checks.choice(self.kind, "kind", KINDS)

    def _call(self, z, y, sample_weight, reduction, backend, num_threads, check):
        target, sign = (1.0, 1.0) if self.kind == "non_saturating" else (0.0, -1.0)
        if _device.is_device(z):
            return device_call(z, y, sample_weight, reduction, backend, check, None, sign)
        z, real, weight = _inputs(z, y, sample_weight, check)
        targets = np.full(z.shape, target)
        return GANCall(z, targets, (~real,), weight, sign, reduction, num_threads, backend, check)
