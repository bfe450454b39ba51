from collections.abc import Callable, Sequence
from typing import Any, final

from numpy.typing import NDArray

__all__ = ["Step"]

@final
class Step:
    @property
    def t(self) -> int: ...
    @property
    def drawn(self) -> int: ...
    def __init__(
        self,
        units: Sequence[int],
        activation: str,
        params: NDArray[Any],
        moments: Sequence[NDArray[Any]],
        X: Any,
        y: NDArray[Any],
        v: NDArray[Any] | None,
        batch_size: int,
        softmax: bool,
        label_smoothing: float,
        pos_weight: NDArray[Any] | None,
        objective: Callable[..., float] | None,
        solver: str,
        momentum: float,
        nesterov: bool,
        beta_1: float,
        beta_2: float,
        epsilon: float,
        alpha: float,
        clip_norm: float,
        dropout: float,
        seed: int,
        drawn: int,
        t: int,
        num_threads: int,
    ) -> None: ...
    def run(
        self, order: NDArray[Any], start: int, learning_rate: float, seconds: float
    ) -> tuple[int, int, float, float, float]: ...
