"""From the logits of a batch to their gradient."""

from __future__ import annotations

import numpy as np

# objective(z, y, v, mass, scale): the sum of v_i L_i over the rows; z becomes its gradient times scale.  v is
# None or (rows,), mass its sum.  rows_are_separate: whether a sum over blocks of rows is the sum over all
# rows.


class Softmax:
    """Softmax cross-entropy of labels (rows,) or probabilities (rows, n_outputs)."""

    rows_are_separate = True

    def __init__(self, kernels, label_smoothing, num_threads):
        self._kernel, self._threads = kernels.softmax_rows, num_threads
        self.label_smoothing = label_smoothing
        # class_weight, logit_bias, label_smoothing, exclude_target, ignore_index, z_loss, temperature
        self._options = (None, None, label_smoothing, False, None, 0.0, 1.0)

    def __call__(self, z, y, v, mass, scale):
        z, y = z[:, :, None], y[..., None]
        v = None if v is None else v[:, None]
        return self._kernel(z, y, v, *self._options, scale, None, None, z, None, self._threads)[0]


class Sigmoid:
    """Binary cross-entropy of indicators (rows, n_outputs), summed over the outputs."""

    rows_are_separate = True

    def __init__(self, kernels, label_smoothing, pos_weight, num_threads):
        self._kernel, self._threads = kernels.sigmoid_elements, num_threads
        self.label_smoothing, self.pos_weight = label_smoothing, pos_weight

    def __call__(self, z, y, v, mass, scale):
        v = None if v is None else np.broadcast_to(v[:, None], z.shape)
        pos = None if self.pos_weight is None else np.broadcast_to(self.pos_weight, z.shape)
        return self._kernel(z, y, v, pos, self.label_smoothing, scale, None, z, None, self._threads)[0]


class LossObject:
    """The mean of a loss object, times the mass of the rows."""

    rows_are_separate = False

    def __init__(self, loss, elementwise, options):
        self._loss_grad, self._elementwise, self._options = loss.loss_grad, elementwise, options

    def __call__(self, z, y, v, mass, scale):
        if v is not None and self._elementwise:
            v = v[:, None]
        loss, grad = self._loss_grad(z, y, sample_weight=v, reduction="mean", **self._options)
        np.multiply(grad, mass * scale, out=z)
        return loss * mass
