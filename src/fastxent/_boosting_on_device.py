"""Margins on a CUDA device: a booster's gradient and curvature there, as arrays of CuPy or PyTorch.

XGBoost takes gradients of CuPy, but hands the margins over in memory, with ``device="cuda"`` too (3.2): whoever wants
them to stay on the device asks ``inplace_predict`` for them and calls ``Booster.boost``. Waits for the device, for one
number each: whether the labels are classes, the weights positive, and all rows without a limit.
"""

import math

import numpy as np

from . import _checks, _device
from .losses._on_device import cuda_core

__all__ = ["derivatives", "value"]


class Problem:
    """Margins on a device, with targets and weights there, checked as `_checks.boosting_input` checks others."""

    def __init__(self, loss, margins, labels, sample_weight):
        self.library, self.margins = library, margins = _device.library_of(margins, "margins")
        if not library.multiplies:
            raise TypeError(
                "margins: expected an array of CuPy or PyTorch on a CUDA device; copy others to one of these"
            )
        self.dtype = _device.compute_dtype(_device.real_dtype(library, margins, "margins"))
        self.shape = shape = tuple(margins.shape)
        self.loss = loss
        if _device.is_device(labels):
            self.targets = self._on_device(labels)
        else:
            targets, _ = self._in_memory(labels)
            self.targets = library.given(targets, "labels", targets.dtype.name)
        weight = None
        if sample_weight is not None:
            if not _device.is_device(sample_weight):
                sample_weight = _checks.per_row(
                    sample_weight, "sample_weight", shape[:1], np.dtype(self.dtype)
                )
            weight = library.given(sample_weight, "sample_weight", self.dtype)
            if tuple(weight.shape) != shape[:1]:
                raise ValueError(f"sample_weight: expected shape {shape[:1]}, got {tuple(weight.shape)}")
        self.weight = weight

    def _in_memory(self, labels):
        """Targets in memory, checked by the shape of the margins."""
        like = np.broadcast_to(np.zeros((), self.dtype), self.shape)
        return _checks.boosting_input(like, labels, None, self.loss.elementwise)

    def _on_device(self, labels):
        library, shape, elementwise = self.library, self.shape, self.loss.elementwise
        labels = library.own(labels, "labels")
        size = math.prod(labels.shape)
        if size == math.prod(shape) and (elementwise or len(shape) == 2):
            targets = library.given(labels.reshape(shape), "labels", self.dtype)
            wrong = (targets < 0) | (targets != targets)
            if elementwise:
                wrong = wrong | (targets > 1)
        elif size == shape[0] and not elementwise:
            n_classes = shape[1] if len(shape) == 2 else 2
            targets = library.given(labels.reshape(shape[:1]), "labels", "int32")
            wrong = (targets != labels.reshape(shape[:1])) | (targets < 0) | (targets >= n_classes)
        else:
            targets = wrong = None
        if wrong is None or bool(library.item(wrong.any())):
            self._in_memory(library.host(labels))  # raises, and says which
        return targets

    @property
    def one_score(self):
        """Whether the margins are those of the second of two classes."""
        return len(self.shape) == 1 and not self.loss.elementwise

    def logits(self):
        """Margins as the loss takes them."""
        if not self.one_score:
            return self.margins
        both = self.library.zeros((self.shape[0], 2), self.library.dtype(self.margins))
        both[:, 1] = self.margins
        return both

    def weights(self):
        """Weights as the loss takes them."""
        of_elements = self.weight is not None and self.loss.elementwise and len(self.shape) == 2
        return self.weight[:, None] if of_elements else self.weight


def derivatives(objective, margins, labels, sample_weight):
    """`Objective.__call__` for margins on a device."""
    problem = Problem(objective.loss, margins, labels, sample_weight)
    library, shape = problem.library, problem.shape
    if objective.library == "xgboost":
        grad, hess = (library.empty(shape, "float32") for _ in range(2))
    else:
        grad, hess = (library.empty(shape[::-1], "float32").T for _ in range(2))
    if _in_one_sweep(objective, problem, grad, hess):
        return grad, hess
    policy = objective.policy()
    g, h = objective.loss.grad_hess(
        problem.logits(), problem.targets, problem.weights(), "sum", hessian=policy, check=False
    )
    if problem.one_score:
        g, h = g[:, 1], h[:, 1]
        if policy in ("xgboost", "lightgbm"):
            h = h * 0.5  # for one margin both take p (1 - p), and for one per class, of two, 2 p (1 - p)
    grad[...], hess[...] = g, h
    return grad, hess


def _in_one_sweep(objective, problem, grad, hess):
    """Derivatives by the kernel for the usual case; False where it is not, or does not serve."""
    library, weight = problem.library, problem.weight
    dtype, targets = library.dtype(problem.margins), problem.targets
    if not objective.is_usual(problem.shape, dtype, len(targets.shape)):
        return False
    if weight is not None:
        if bool(library.item((weight < 0).any())):
            return False
        weight = library.buffer(library.contiguous(weight))
    n_classes = problem.shape[1]
    class_weight = objective.loss.class_weight
    class_weight = _device.per_class(library, class_weight, "class_weight", n_classes, dtype)
    odd = library.zeros((1,), "int64")
    arrays = (
        library.buffer(problem.margins),
        library.buffer(library.contiguous(targets)),
        weight,
        class_weight,
    )
    outs = map(library.buffer, (grad, hess, odd))
    cuda_core(None).general.boost(library.context(), *arrays, *objective.convention(n_classes), *outs)
    return not library.item(odd)


def value(loss, margins, labels, sample_weight):
    """The weighted mean of a loss at margins on a device."""
    problem = Problem(loss, margins, labels, sample_weight)
    mean = loss.loss(problem.logits(), problem.targets, problem.weights(), check=False)
    return float(problem.library.item(mean))
