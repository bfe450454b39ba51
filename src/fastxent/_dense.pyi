from typing import Any

from numpy.typing import NDArray

__all__ = ["linear_pass", "panel_pass"]

def linear_pass(
    X: NDArray[Any],
    W: NDArray[Any],
    b: NDArray[Any] | None,
    binary: bool,
    targets: NDArray[Any],
    sample_weight: NDArray[Any] | None,
    class_weight: NDArray[Any] | None,
    logit_bias: NDArray[Any] | None,
    label_smoothing: float,
    exclude_target: bool,
    ignore_index: int | None,
    z_loss: float,
    temperature: float,
    scale: float,
    bounds: NDArray[Any],
    block_rows: int,
    loss_out: NDArray[Any] | None,
    dX_out: NDArray[Any] | None,
    dW_out: NDArray[Any] | None,
    db_out: NDArray[Any] | None,
    num_threads: int,
) -> tuple[float, int]: ...
def panel_pass(
    X: NDArray[Any],
    W: NDArray[Any],
    b: NDArray[Any] | None,
    targets: NDArray[Any],
    sample_weight: NDArray[Any] | None,
    class_weight: NDArray[Any] | None,
    logit_bias: NDArray[Any] | None,
    label_smoothing: float,
    exclude_target: bool,
    ignore_index: int | None,
    z_loss: float,
    temperature: float,
    scale: float,
    block_rows: int,
    slices: int,
    loss_out: NDArray[Any] | None,
    dX_out: NDArray[Any] | None,
    dW_out: NDArray[Any] | None,
    db_out: NDArray[Any] | None,
    num_threads: int,
) -> tuple[float, int]: ...
