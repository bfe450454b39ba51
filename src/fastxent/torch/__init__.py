"""The losses where people train with PyTorch: functions and modules with PyTorch's signatures, on CPU or CUDA tensors.

    from fastxent.torch import CrossEntropyLoss          # instead of torch.nn
    from fastxent.torch import cross_entropy             # instead of torch.nn.functional

`cross_entropy`, `binary_cross_entropy_with_logits` and `linear_cross_entropy` give PyTorch's results to rounding: its
denominators, its dtypes, its types of errors. `as_module` makes a module of any loss object of `fastxent.losses`. All
of them are differentiable twice, and compile with ``torch.compile(fullgraph=True)``.

Examples
--------
One step of a network whose head never makes its logits whole:

>>> import torch
>>> from fastxent.torch import LinearCrossEntropyLoss
>>> _ = torch.manual_seed(0)
>>> body, head = torch.nn.Linear(16, 32), LinearCrossEntropyLoss(32, 1000)
>>> optimizer = torch.optim.SGD([*body.parameters(), *head.parameters()], lr=1.0)
>>> X, y = torch.randn(64, 16), torch.randint(0, 1000, (64,))
>>> losses = []
>>> for _ in range(3):
...     optimizer.zero_grad()
...     loss = head(torch.tanh(body(X)), y)
...     loss.backward()
...     optimizer.step()
...     losses.append(loss.item())
>>> losses[2] < losses[1] < losses[0]
True
"""

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError("fastxent.torch needs PyTorch: pip install 'fastxent[torch]'") from error

from fastxent.torch._binary import binary_cross_entropy_with_logits
from fastxent.torch._linear import linear_cross_entropy
from fastxent.torch._losses import LossModule, as_module
from fastxent.torch._modules import BCEWithLogitsLoss, CrossEntropyLoss, LinearCrossEntropyLoss
from fastxent.torch._softmax import cross_entropy
from fastxent.torch._vocab_parallel import vocab_parallel_cross_entropy

__all__ = [
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "LinearCrossEntropyLoss",
    "LossModule",
    "as_module",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "linear_cross_entropy",
    "vocab_parallel_cross_entropy",
]
