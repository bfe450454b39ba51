"""Softmax cross-entropy as people write it in Triton: a program to some rows, two passes, the gradient where they like.

What `run.py` compares with, beside PyTorch, torch.compile and Liger. Labels, mean, no options; every logit and label is
taken as it comes. With TRITON_INTERPRET=1 it runs on tensors in memory, so that its numbers are tested without a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["backward", "forward", "fused"]

WIDEST = 32768  # classes of a program's tile
TILE = 4096  # numbers of a tile of several rows


@triton.jit
def rows_kernel(
    X, G, Y, LOSS, LSE, n_rows, n_classes, scale,
    GRAD: tl.constexpr, SAVED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Loss and lse of rows, unless lse is SAVED, and GRAD, scale times the gradient."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < n_rows
    start = (row * n_classes)[:, None]
    y = tl.load(Y + row, mask=inside, other=0)
    k = tl.arange(0, BLOCK)[None, :]
    if SAVED:
        lse = tl.load(LSE + row, mask=inside, other=0.0)
    else:
        top = tl.full((ROWS,), -3.0e38, tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        for first in range(0, n_classes, BLOCK):
            here = inside[:, None] & (first + k < n_classes)
            x = tl.load(X + start + first + k, mask=here, other=float("-inf")).to(tl.float32)
            highest = tl.maximum(top, tl.max(x, 1))
            total = total * tl.exp(top - highest) + tl.sum(tl.exp(x - highest[:, None]), 1)
            top = highest
        lse = top + tl.log(tl.where(inside, total, 1.0))
        own = tl.load(X + row * n_classes + y, mask=inside, other=0.0).to(tl.float32)
        tl.store(LOSS + row, lse - own, mask=inside)
        tl.store(LSE + row, lse, mask=inside)
    if GRAD:
        for first in range(0, n_classes, BLOCK):
            here = inside[:, None] & (first + k < n_classes)
            x = tl.load(X + start + first + k, mask=here, other=float("-inf")).to(tl.float32)
            g = tl.exp(x - lse[:, None]) - tl.where(first + k == y[:, None], 1.0, 0.0)
            tl.store(G + start + first + k, (g * scale).to(G.dtype.element_ty), mask=here)


def _launch(z, y, out, losses, lse, grad, saved):
    n, k = z.shape
    block = min(triton.next_power_of_2(k), WIDEST)
    rows = max(1, TILE // block) if block <= 1024 else 1
    warps = 4 if block <= 4096 else 8 if block <= 8192 else 16
    rows_kernel[(triton.cdiv(n, rows),)](
        z, out, y, losses, lse, n, k, 1.0 / n, GRAD=grad, SAVED=saved, ROWS=rows, BLOCK=block, num_warps=warps
    )


def _per_row(z):
    return torch.empty(2, len(z), dtype=torch.float32, device=z.device)


def forward(z, y):
    """Mean loss and lse of contiguous logits (n, classes)."""
    losses, lse = _per_row(z)
    _launch(z, y, z, losses, lse, False, False)
    return losses.mean(), lse


def backward(z, y, lse, out):
    """Gradient of the mean, into `out`."""
    _launch(z, y, out, lse, lse, True, True)
    return out


def fused(z, y, out):
    """Mean loss and its gradient, in one launch; `out` may be `z`."""
    losses, lse = _per_row(z)
    _launch(z, y, out, losses, lse, True, False)
    return losses.mean(), out
