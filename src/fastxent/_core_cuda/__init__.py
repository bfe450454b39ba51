"""The kernels on CUDA devices, in Numba: `_core_numpy`'s functions on NumPy arrays, and launchers for device arrays.

A row is read once where it fits the registers of a warp or of a block, twice where it does not; loads and stores are 16
bytes wide wherever a row begins; the reduction's factor is in the gradient before it is written. `intrinsics` has the
instructions that Numba lacks, `storage` the dtypes, `teams` the reductions, `rows` the mathematics of a row; `softmax`,
`careful`, `elements` and `totals` are the kernels, `launch` chooses among them, `host` copies NumPy arrays.

Precision: float16, bfloat16 and float32 compute in float32, with exponentials of 2 ulp: losses and gradients are within
1e-6 of the row's scale. Sums over rows are float64, in an order that follows from the shape alone: the same bits in
every run. float64 is computed in float64, by the plain kernels.

There are no second derivatives, divergences, regions, shards or probabilities (`binary_elements`): those names raise.
"""

import numpy

# numba-cuda 0.30 asks for a name that NumPy 2.5 has removed.
vars(numpy).setdefault("row_stack", numpy.vstack)

from . import launch  # noqa: E402
from .host import Host  # noqa: E402

__all__ = ["element_totals", "launch", "sigmoid_elements", "softmax_rows", "target_totals"]

_MISSING = (
    *(
        "binary_elements",
        "divergence_hvp",
        "divergence_rows",
        "divergence_upper",
        "partial_grad",
        "partial_rows",
    ),
    *("region_grad", "region_sums", "softmax_boost", "softmax_hvp", "softmax_solve", "softmax_upper"),
)


def __getattr__(name):
    if name in _MISSING:
        raise NotImplementedError(f"backend='cuda' has no kernel for {name}: use backend='cpu'")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _no_hessian(hess_out):
    if hess_out is not None:
        raise NotImplementedError("backend='cuda' has no second derivatives: use backend='cpu'")


def _compute(array):
    return "float64" if array.dtype == numpy.float64 else "float32"


def softmax_rows(
    logits,
    targets,
    sample_weight,
    class_weight,
    logit_bias,
    label_smoothing,
    exclude_target,
    ignore_index,
    z_loss,
    temperature,
    scale,
    loss_out,
    lse_out,
    grad_out,
    hess_out,
    num_threads,
    family="cross_entropy",
    a=0.0,
    b=0.0,
):
    """Softmax losses of every row and their gradient: `_core_numpy.softmax_rows` on the device.

    Returns
    -------
    (float, int, int)
        The sum of the weighted losses; the first row with a bad target, or -1; rows not ignored.
    """
    _no_hessian(hess_out)
    host, real = Host(), _compute(logits)
    n_rows = logits.shape[0] * logits.shape[2]
    soft = targets.ndim == 3
    y = host.take(targets, real if soft else None)
    flag = host.flag()
    partials = launch.softmax_launch(
        host.context,
        host.take(logits),
        y,
        host.take(sample_weight, real),
        host.take(class_weight, real),
        host.take(logit_bias, real),
        label_smoothing,
        exclude_target,
        ignore_index,
        z_loss,
        temperature,
        scale,
        None,
        host.give(loss_out),
        host.give(lse_out),
        host.give(grad_out),
        flag,
        family,
        a,
        b,
    )
    counted = n_rows
    if not soft and ignore_index is not None and n_rows:
        counted = int(
            host.number(
                launch.totals_launch(host.context, y, None, None, logits.shape[1], ignore_index, None)
            )
        )
    total, bad = host.total(partials), host.number(flag)
    host.fetch()
    return total, n_rows - bad if bad else -1, counted


def target_totals(targets, sample_weight, class_weight, n_classes, ignore_index, num_threads):
    """The denominators of the reductions, and the target check: `_core_numpy.target_totals` on the device.

    Returns
    -------
    (float, int, int)
        sum_i v_i sum_k w_k t_ik over un-smoothed targets; rows that are not ignored; first bad row or -1.
    """
    host = Host()
    n_rows = targets.shape[0] * targets.shape[-1]
    if n_rows == 0:
        return 0.0, 0, -1
    soft = targets.ndim == 3
    real = _compute(targets) if soft else "float64"
    y, flag = host.take(targets, real if soft else None), host.flag()
    v, w = host.take(sample_weight, real), host.take(class_weight, real)
    total = host.number(launch.totals_launch(host.context, y, v, w, n_classes, ignore_index, flag))
    counted = n_rows
    if not soft and ignore_index is not None:
        counted = int(
            host.number(launch.totals_launch(host.context, y, None, None, n_classes, ignore_index, None))
        )
    bad = host.number(flag)
    return total, counted, n_rows - bad if bad else -1


def sigmoid_elements(
    logits,
    targets,
    sample_weight,
    pos_weight,
    label_smoothing,
    scale,
    loss_out,
    grad_out,
    hess_out,
    num_threads,
    family="cross_entropy",
    a=0.0,
    b=0.0,
    c=0.0,
):
    """Elementwise losses on logits and their gradient: `_core_numpy.sigmoid_elements` on the device.

    Returns
    -------
    (float, int, int)
        The sum of the losses; the first element whose target lies outside [0, 1], or -1; -1.
    """
    _no_hessian(hess_out)
    host, real = Host(), _compute(logits)
    flag = host.flag()
    partials = launch.sigmoid(
        host.context,
        host.take(logits),
        host.take(targets, real),
        host.take(sample_weight, real),
        host.take(pos_weight, real),
        label_smoothing,
        scale,
        None,
        host.give(loss_out),
        host.give(grad_out),
        flag,
        family,
        a,
        b,
        c,
    )
    total, bad = host.total(partials), host.number(flag)
    host.fetch()
    return total, logits.size - bad if bad else -1, -1


def element_totals(targets, sample_weight, num_threads):
    """Sum of the weights (element count without), and first target outside [0, 1] or -1; computed on the host."""
    total = float(targets.size) if sample_weight is None else float(sample_weight.sum(dtype=numpy.float64))
    wrong = ~((targets >= 0) & (targets <= 1))
    return total, int(wrong.argmax()) if wrong.any() else -1
