"""
Two tasks, one body
===================

One network in PyTorch reads a digit twice: which of the ten it is, and whether it has a loop (0, 6, 8, 9). Two heads,
a softmax and a sigmoid; their losses add up, and the body learns from both: 97.2 % and 97.8 % of the
test images right.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from _gallery import SMALL, mnist
from torch import nn

from fastxent.torch import BCEWithLogitsLoss, CrossEntropyLoss

plt.style.use("tableau-colorblind10")

# %%
torch.manual_seed(0)
X, y, X_test, y_test = map(torch.from_numpy, mnist())
has_loop = torch.isin(torch.arange(10), torch.tensor([0, 6, 8, 9])).float()
body = nn.Sequential(nn.Linear(784, 128), nn.ReLU())
digit, loop = nn.Linear(128, 10), nn.Linear(128, 1)
optimizer = torch.optim.Adam(
    [*body.parameters(), *digit.parameters(), *loop.parameters()], lr=1e-3, fused=True
)
digit_loss, loop_loss = CrossEntropyLoss(), BCEWithLogitsLoss()

curves = {"which digit": [], "has a loop": []}
for _ in range(2 if SMALL else 5):
    for rows in torch.randperm(len(y)).split(128):
        optimizer.zero_grad()
        hidden = body(X[rows])
        first = digit_loss(digit(hidden), y[rows])
        second = loop_loss(loop(hidden).squeeze(1), has_loop[y[rows]])
        (first + 0.5 * second).backward()
        optimizer.step()
        for curve, loss in zip(curves.values(), (first, second), strict=True):
            curve.append(loss.item())

with torch.no_grad():
    hidden = body(X_test)
    accuracy = {
        "which digit": (digit(hidden).argmax(dim=1) == y_test).double().mean().item(),
        "has a loop": ((loop(hidden).squeeze(1) > 0) == (has_loop[y_test] > 0)).double().mean().item(),
    }
for name, value in accuracy.items():
    print(f"{name}: {value:.2%} of the test images right")

# %%
fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
width = min(30, len(curves["has a loop"]) // 2)
for (name, losses), style in zip(curves.items(), ("-", "--"), strict=True):
    mean = np.convolve(losses, np.ones(width) / width, "valid")
    ax.plot(np.arange(len(mean)) + width, mean, style, label=f"{name}: {accuracy[name]:.1%} right")
ax.set(xlabel="step", ylabel=f"loss (nat, mean of {width} steps)", yscale="log", title="Two tasks, one body")
ax.legend(frameon=False)
plt.show()
