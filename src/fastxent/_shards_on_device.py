"""Shards of logits on a CUDA device: the columns stay there, the five numbers of a row come to the host.

A state is small beside the columns that it is made from, travels, and merges in NumPy, so that it is the same object
wherever the logits lie. Making one waits for the device; a gradient does not.
"""

import math

import numpy as np

from . import _checks, _device
from .losses._on_device import cuda_core

__all__ = ["gradient", "rows_of"]


class Shard:
    """Columns of logits (..., k) and labels on a device, checked."""

    def __init__(self, logits, targets, class_offset, backend):
        self.general = cuda_core(backend).general
        self.library, self.logits = library, z = _device.library_of(logits, "logits_shard")
        self.storage = _device.real_dtype(library, z, "logits_shard")
        self.dtype = _device.compute_dtype(self.storage)
        shape = tuple(z.shape)
        if not shape:
            raise ValueError("logits_shard: expected at least one dimension, the classes, got a scalar")
        if not _device.is_device(targets):
            raise TypeError(
                f"targets: expected an array on the device, as logits_shard, got {type(targets).__name__}"
            )
        if tuple(targets.shape) != shape[:-1]:
            raise ValueError(
                f"targets: expected labels of shape {shape[:-1]} for logits_shard {shape}, got {tuple(targets.shape)}"
            )
        if library.dtype(targets) not in _device.INTEGERS:
            raise TypeError(f"targets: expected integer or bool labels, got dtype {library.dtype(targets)}")
        self.start = _checks.whole(class_offset, "class_offset")
        if self.start < 0:
            raise ValueError(f"class_offset: expected at least 0, got {self.start}")
        self.shape, self.width = shape[:-1], shape[-1]
        self.labels = library.contiguous(library.given(targets, "targets", "int64"))
        self.n_rows = math.prod(self.shape)

    def rows(self, x):
        """An array of the shape of the logits as (rows, columns)."""
        return _device.laid_out(self.library, x, len(self.shape))

    def flat(self, x):
        """A contiguous array of the rows' shape as (rows,)."""
        return self.library.buffer(x)._replace(shape=(self.n_rows,), strides=(1,))


def rows_of(logits, targets, class_offset, backend):
    """(labels, m, r, t, Z, first column, columns, arithmetic's dtype) of a shard; arrays in memory."""
    shard = Shard(logits, targets, class_offset, backend)
    library, labels = shard.library, shard.library.host(shard.labels)
    if not shard.n_rows or not shard.width:
        state = np.full(shard.shape, -np.inf), *np.zeros((3, *shard.shape))
    else:
        fields = [library.empty(shard.shape, "float64") for _ in range(4)]
        given = shard.rows(shard.logits), shard.flat(shard.labels)
        shard.general.partial_rows(library.context(), *given, shard.start, *map(shard.flat, fields))
        state = map(library.host, fields)
    return labels, *state, shard.start, shard.width, shard.dtype


def gradient(logits, targets, class_offset, backend, known, rows):
    """Gradient of a shard's columns on its device.

    `known(labels, first column, columns)` refuses what is no part of the state; `rows()` gives m, r, t, pull and weight
    of every row in memory and the two shares of the target, None where the gradient is 0.
    """
    shard = Shard(logits, targets, class_offset, backend)
    library = shard.library
    known(library.host(shard.labels), shard.start, shard.width)
    of_rows = rows()
    shape = (*shard.shape, shard.width)
    if of_rows is None or not shard.n_rows or not shard.width:
        return library.zeros(shape, shard.storage)
    grad = library.empty(shape, shard.storage)
    *state, spread, share = of_rows
    state = [shard.flat(library.given(np.ascontiguousarray(x), "state", "float64")) for x in state]
    given = shard.rows(shard.logits), shard.flat(shard.labels)
    shard.general.partial_grad(
        library.context(), *given, shard.start, *state, spread, share, shard.rows(grad)
    )
    return grad
