"""The kernels on CUDA devices, in Numba: `_core_numpy`'s functions on NumPy arrays, and launchers for device arrays.

Losses and gradients: a row is read once where it fits the registers of a warp or of a block, twice where it does not;
loads and stores are 16 bytes wide wherever a row begins; the reduction's factor is in the gradient before it is
written. `intrinsics` has the instructions that Numba lacks, `storage` the dtypes, `teams` the reductions, `rows` the
mathematics of a row, `vectors` the sweeps over one; `softmax`, `split`, `careful`, `elements` and `totals` are the
kernels, `launch` chooses among them.

Everything else goes over rows of any strides, a thread, a warp or a block to a row, by a class at a time, or by 16
bytes where arithmetic leaves the memory anything to do: `strided` has what these kernels share, `curvature`,
`divergence`, `solve`, `partial`, `region` and `boost` are the kernels, `general` launches them. Where the specification
computes in float64 whatever the storage, so do they. `hosted` has the functions on NumPy arrays, which `host` copies.

Precision: float16, bfloat16 and float32 compute in float32, with exponentials of 2 ulp: losses and gradients are within
1e-6 of the row's scale. Sums over rows are float64, in an order that follows from the shape alone: the same bits in
every run. float64 is computed in float64, by the plain kernels.
"""

import numpy

# numba-cuda 0.30 asks for a name that NumPy 2.5 has removed.
vars(numpy).setdefault("row_stack", numpy.vstack)

from . import general, launch  # noqa: E402
from .hosted import (  # noqa: E402
    binary_elements,
    divergence_hvp,
    divergence_rows,
    divergence_upper,
    element_totals,
    partial_grad,
    partial_rows,
    region_grad,
    region_sums,
    sigmoid_elements,
    softmax_boost,
    softmax_hvp,
    softmax_rows,
    softmax_solve,
    softmax_upper,
    target_totals,
)

__all__ = [
    "binary_elements",
    "divergence_hvp",
    "divergence_rows",
    "divergence_upper",
    "element_totals",
    "general",
    "launch",
    "partial_grad",
    "partial_rows",
    "region_grad",
    "region_sums",
    "sigmoid_elements",
    "softmax_boost",
    "softmax_hvp",
    "softmax_rows",
    "softmax_solve",
    "softmax_upper",
    "target_totals",
]
