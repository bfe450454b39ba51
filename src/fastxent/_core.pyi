from typing import Any

from numpy.typing import NDArray

__all__ = [
    "binary_elements",
    "divergence_hvp",
    "divergence_rows",
    "element_totals",
    "sigmoid_elements",
    "softmax_hvp",
    "softmax_rows",
    "target_totals",
]

def info() -> dict[str, Any]: ...
def softmax_rows(
    logits: NDArray[Any],
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
    loss_out: NDArray[Any] | None,
    lse_out: NDArray[Any] | None,
    grad_out: NDArray[Any] | None,
    hess_out: NDArray[Any] | None,
    num_threads: int,
    family: str = "cross_entropy",
    a: float = 0.0,
    b: float = 0.0,
) -> tuple[float, int, int]: ...
def softmax_hvp(
    logits: NDArray[Any],
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
    x: NDArray[Any],
    hvp_out: NDArray[Any],
    num_threads: int,
    family: str = "cross_entropy",
    a: float = 0.0,
    b: float = 0.0,
) -> int: ...
def divergence_rows(
    logits: NDArray[Any],
    teacher: NDArray[Any] | None,
    teacher_logits: bool,
    sample_weight: NDArray[Any] | None,
    ignore_index: int | None,
    temperature: float,
    scale: float,
    loss_out: NDArray[Any] | None,
    grad_out: NDArray[Any] | None,
    hess_out: NDArray[Any] | None,
    num_threads: int,
    family: str,
    beta: float = 0.5,
) -> tuple[float, int]: ...
def divergence_hvp(
    logits: NDArray[Any],
    teacher: NDArray[Any] | None,
    teacher_logits: bool,
    sample_weight: NDArray[Any] | None,
    ignore_index: int | None,
    temperature: float,
    scale: float,
    x: NDArray[Any],
    hvp_out: NDArray[Any],
    num_threads: int,
    family: str,
    beta: float = 0.5,
) -> int: ...
def target_totals(
    targets: NDArray[Any],
    sample_weight: NDArray[Any] | None,
    class_weight: NDArray[Any] | None,
    n_classes: int,
    ignore_index: int | None,
    num_threads: int,
) -> tuple[float, int, int]: ...
def sigmoid_elements(
    logits: NDArray[Any],
    targets: NDArray[Any],
    sample_weight: NDArray[Any] | None,
    pos_weight: NDArray[Any] | None,
    label_smoothing: float,
    scale: float,
    loss_out: NDArray[Any] | None,
    grad_out: NDArray[Any] | None,
    hess_out: NDArray[Any] | None,
    num_threads: int,
    family: str = "cross_entropy",
    a: float = 0.0,
    b: float = 0.0,
    c: float = 0.0,
) -> tuple[float, int, int]: ...
def binary_elements(
    probabilities: NDArray[Any],
    targets: NDArray[Any],
    sample_weight: NDArray[Any] | None,
    pos_weight: NDArray[Any] | None,
    label_smoothing: float,
    scale: float,
    loss_out: NDArray[Any] | None,
    grad_out: NDArray[Any] | None,
    hess_out: NDArray[Any] | None,
    num_threads: int,
) -> tuple[float, int, int]: ...
def element_totals(
    targets: NDArray[Any], sample_weight: NDArray[Any] | None, num_threads: int
) -> tuple[float, int]: ...
