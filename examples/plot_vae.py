"""
A variational autoencoder: binary cross-entropy rebuilds images
===============================================================

An encoder puts each image somewhere on a plane, a decoder paints it from there. The loss is the binary cross-entropy
of all pixels, which is the reconstruction's code length, plus the KL divergence of the code from a standard normal:
155 nat an image after twelve epochs. A decoder that knows nothing pays 784 ln 2 = 543.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from _gallery import SMALL, mnist
from scipy.stats import norm
from torch import nn

from fastxent.torch import BCEWithLogitsLoss

plt.style.use("tableau-colorblind10")

# %%
torch.manual_seed(0)
X, _, X_test, y_test = map(torch.from_numpy, mnist())
encoder = nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 4))
decoder = nn.Sequential(nn.Linear(2, 256), nn.ReLU(), nn.Linear(256, 784))
reconstruction = BCEWithLogitsLoss(reduction="sum")


def bound(images):
    """Code length of a batch (nat): pixels given the code, and the code."""
    mean, log_variance = encoder(images).chunk(2, dim=1)
    code = mean + torch.randn_like(mean) * torch.exp(log_variance / 2)
    divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum()
    return reconstruction(decoder(code), images) + divergence


optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=2e-3, fused=True)
curve = []
for epoch in range(1, 3 if SMALL else 13):
    for rows in torch.randperm(len(X)).split(256):
        optimizer.zero_grad()
        loss = bound(X[rows]) / len(rows)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        curve.append(bound(X_test).item() / len(X_test))
    print(f"epoch {epoch:2}: {curve[-1]:.1f} nat an image")

# %%
# On the left, where the test images lie; on the right, what the decoder paints at points of the same plane.
with torch.no_grad():
    place = encoder(X_test)[:, :2].numpy()
    steps = norm.ppf(np.linspace(0.03, 0.97, 15))
    grid = torch.tensor([[x, y] for y in steps[::-1] for x in steps], dtype=torch.float32)
    painted = torch.sigmoid(decoder(grid)).reshape(15, 15, 28, 28).numpy()

fig, (left, right) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
colours = {"cmap": plt.get_cmap("viridis", 10), "vmin": -0.5, "vmax": 9.5}
points = left.scatter(*place[:4000].T, s=5, c=y_test[:4000], **colours)
fig.colorbar(points, ax=left, ticks=range(10), label="digit")
left.set(xlabel="first code", ylabel="second code", title="Test images on the plane")
right.imshow(np.block([list(row) for row in painted]), cmap="gray_r")
right.set(xticks=[], yticks=[], xlabel="first code", ylabel="second code", title="Painted from the plane")
plt.show()
