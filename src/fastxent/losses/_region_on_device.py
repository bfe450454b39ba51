"""Region losses of arrays of a CUDA device: one checked call, by the kernels of `_core_cuda.region`."""

import math

from .. import _checks, _device
from ._base import Call
from ._on_device import cuda_core

__all__ = ["DeviceRegionCall"]


class DeviceRegionCall(Call):
    """`RegionCall` for arrays of CuPy or PyTorch on a CUDA device, laid out as (regions, outer, classes, inner).

    A reduced loss is an array of no dimensions. Nothing waits for the device but the checks.
    """

    def __init__(
        self, loss, alpha, beta, smooth, z, y, sample_weight, reduction, backend, num_threads, check
    ):
        core = cuda_core(backend)
        self.launch, self.general = core.launch, core.general
        self.numbers = alpha, beta, smooth
        self.how = loss.activation, loss.soft_labels
        self.reduction = _checks.choice(reduction, "reduction", _checks.REDUCTIONS)
        name = "probabilities" if loss.activation == "none" else "logits"
        self.library, self.source = library, z = _device.library_of(z, name)
        if not library.multiplies:
            raise TypeError(
                f"{name}: expected an array of CuPy or PyTorch for a loss of regions; copy others to one"
            )
        self.storage = _device.real_dtype(library, z, name)
        self.dtype = _device.compute_dtype(self.storage)
        self.shape = shape = tuple(z.shape)
        axes = _checks.axes_of(loss.axis, len(shape))
        self.class_axis = at = _checks.axis_of(loss.class_axis, len(shape)) if shape else 0
        softmax = loss.activation == "softmax"
        if softmax and not shape:
            raise ValueError(f"{name}: expected an axis of classes for a softmax, got a single number")
        if softmax and shape[at] == 0:
            raise ValueError(f"{name}: expected at least one class, got shape {shape} with class_axis {at}")
        self.targets = self._targets(y, check)
        self.weight = self._weight(sample_weight, softmax)
        if check:
            self._refuse(self.targets, "targets", 1.0)
            if loss.activation == "none":
                self._refuse(z, name, 1.0)
            if self.weight is not None:
                self._refuse(self.weight, "sample_weight", math.inf)
        apart = [i for i in range(len(shape)) if i not in axes]
        inside = [i for i in range(len(shape)) if i in axes]
        # the classes keep an axis of their own if they share a softmax, or are regions
        self.per_class = at in apart
        if softmax or self.per_class:
            apart, inside = [i for i in apart if i != at], [i for i in inside if i != at]
            orders = [(apart, [i for i in inside if i < at], [at], [i for i in inside if i > at])]
        else:
            orders = [(apart, inside[:cut], [], inside[cut:]) for cut in range(max(len(inside), 1))]
        self.apart = apart
        self.order = next((order for order in orders if self._lies(z, order)), orders[0])

    def _targets(self, y, check):
        """Targets of the shape of the logits, in the arithmetic's dtype; labels become one-hot."""
        library, shape, at = self.library, self.shape, self.class_axis
        if not _device.is_device(y):
            raise TypeError(f"targets: expected an array on the device, as logits, got {type(y).__name__}")
        y = library.own(y, "targets")
        given = tuple(y.shape)
        labels = shape and given == shape[:at] + shape[at + 1 :] and library.dtype(y) in _device.INTEGERS
        if given != shape and labels:
            if check and bool(library.item(((y < 0) | (y >= shape[at])).any())):
                raise ValueError(f"targets: expected labels from 0 to {shape[at] - 1} or the shape of logits")
            return library.one_hot(y, shape[at], at, self.dtype)
        if given != shape:
            raise ValueError(
                f"targets: expected the shape of logits, {shape}, or labels without the class axis, got {given}"
            )
        return library.given(y, "targets", self.dtype)

    def _weight(self, weight, softmax):
        """Weights in the shape of the logits, or None."""
        if weight is None:
            return None
        shape, at = self.shape, self.class_axis
        rows = shape[:at] + shape[at + 1 :] if softmax else shape
        weight = _device.weights(self.library, weight, "sample_weight", rows, self.dtype)
        if softmax:
            weight = self.library.broadcast(weight[(slice(None),) * at + (None,)], shape)
        return weight

    def _refuse(self, x, name, most):
        """Raise for a number outside [0, most]; waits for the device."""
        wrong = ~((x >= 0) & (x <= most))
        if bool(self.library.item(wrong.any())):
            expected = "non-negative numbers" if most == math.inf else "numbers in [0, 1]"
            raise ValueError(f"{name}: expected {expected}, got {self.library.item(x[wrong][0]):g}")

    def _lies(self, x, order):
        """An array's buffer cut into the parts of an order, in place, or None where its strides forbid it."""
        buffer = self.library.buffer(x)
        parts = [
            _device.collapsed([buffer.shape[i] for i in part], [buffer.strides[i] for i in part])
            for part in order
        ]
        if None in parts:
            return None
        shape, strides = zip(*parts, strict=True)
        return buffer._replace(shape=shape, strides=strides)

    def laid_out(self, x):
        """An array's buffer as (regions, outer, classes, inner), of a copy where its strides forbid it in place."""
        if x is None:
            return None
        lies = self._lies(x, self.order)
        if lies is not None:
            return lies
        copy = self.library.contiguous(self.library.transposed(x, self._axes()))
        return self._lies(self.library.transposed(copy, self._back()), self.order)

    def _axes(self):
        return [i for part in self.order for i in part]

    def _back(self):
        axes = self._axes()
        return sorted(range(len(axes)), key=axes.__getitem__)

    def run(self, *, grad=False, hess=False, out=None):
        """(loss, grad, None), None for what was not asked for."""
        library, launch, general = self.library, self.launch, self.general
        context = library.context()
        result = _device.output(library, out, self.source) if grad else None
        arrays = [self.laid_out(x) for x in (self.source, self.targets, self.weight)]
        regions, _, n_classes, _ = arrays[0].shape
        classes = n_classes if self.per_class else 1
        n_groups = regions * classes
        sums = library.buffer(library.empty((regions, classes, 3), "float64"))
        losses = library.empty((regions, classes), "float64")
        slopes = library.buffer(library.empty((regions, classes, 2), "float64"))
        scale = 1.0 / n_groups if self.reduction.startswith("mean") and n_groups else 1.0
        general.region_sums(context, *arrays, *self.how, sums)
        general.region_losses(context, sums, *self.numbers, scale, library.buffer(losses), slopes)
        if grad:
            rows = self._lies(result, self.order)
            apart = None
            if rows is None:
                apart = library.empty(tuple(self.shape[i] for i in self._axes()), self.storage)
                rows = self._lies(library.transposed(apart, self._back()), self.order)
            general.region_grad(context, *arrays, *self.how, *self.numbers[:2], slopes, rows)
            if apart is not None:
                library.transposed(result, self._axes())[...] = apart
        if self.reduction == "none":
            return self._per_region(losses, classes), result, None
        loss = library.empty((), self.dtype)
        flat = library.buffer(losses)._replace(shape=(n_groups,), strides=(1,))
        scalar = library.buffer(loss)._replace(shape=(1,), strides=(1,))
        launch.combine(context, flat, scalar, scale, None, 0.0)
        return loss, result, None

    def _per_region(self, losses, classes):
        """The losses in the shape of the axes that number the regions."""
        kept = tuple(self.shape[i] for i in self.apart)
        values = self.library.cast(losses, self.dtype)
        if not self.per_class:
            return values.reshape(kept)
        place = sum(i < self.class_axis for i in self.apart)
        last = len(kept)
        return self.library.transposed(
            values.reshape(*kept, classes), [*range(place), last, *range(place, last)]
        )
