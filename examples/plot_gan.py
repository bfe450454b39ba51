"""
A GAN that writes zeros
=======================

A generator and a discriminator, small networks in PyTorch, with this package's losses, on MNIST's zeros. The
discriminator's loss starts near 2 ln 2 = 1.386 (1.358 here): it knows nothing yet.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from _gallery import SMALL, mnist
from torch import nn

import fastxent as fx
from fastxent.torch import as_module

plt.style.use("tableau-colorblind10")

# %%
# The discriminator says whether an image is real; the generator wants it to be wrong. In the game of the theory the
# generator minimizes the mean of log(1 - D(G)), that is -BCE(D(G), 0). What is trained is -log D(G): the same optimum,
# but a gradient that does not vanish where the generator is worst.
discriminator_loss = as_module(fx.GANDiscriminatorLoss(real_target=0.9))
generator_loss = as_module(fx.GANGeneratorLoss())
for kind in ("minimax", "non_saturating"):
    grad = fx.GANGeneratorLoss(kind).loss_grad([-6.0], [0])[1].item()
    print(f"a fake that is found out (logit -6): the {kind} loss pulls with {grad:.4f}")

# %%
torch.manual_seed(0)
real = torch.from_numpy(mnist(digits=(0,))[0]) * 2 - 1
g_layers = [nn.Linear(32, 256), nn.LeakyReLU(0.2), nn.Linear(256, 256), nn.LeakyReLU(0.2)]
generator = nn.Sequential(*g_layers, nn.Linear(256, 784), nn.Tanh())
d_layers = [nn.Linear(784, 256), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(256, 256), nn.LeakyReLU(0.2)]
discriminator = nn.Sequential(*d_layers, nn.Dropout(0.3), nn.Linear(256, 1), nn.Flatten(0))
g_step = torch.optim.Adam(generator.parameters(), lr=4e-4, betas=(0.5, 0.999), fused=True)
d_step = torch.optim.Adam(discriminator.parameters(), lr=4e-4, betas=(0.5, 0.999), fused=True)

n = 128
is_real = torch.cat([torch.ones(n, dtype=torch.long), torch.zeros(n, dtype=torch.long)])
d_losses, g_losses = [], []
for _ in range(1 if SMALL else 50):
    for rows in torch.randperm(len(real)).split(n)[:-1]:
        fake = generator(torch.randn(n, 32))

        d_step.zero_grad()
        loss = discriminator_loss(discriminator(torch.cat([real[rows], fake.detach()])), is_real)
        loss.backward()
        d_step.step()
        d_losses.append(loss.item())

        g_step.zero_grad()
        loss = generator_loss(discriminator(fake), is_real[n:])
        loss.backward()
        g_step.step()
        g_losses.append(loss.item())
for name, losses, blind in (("discriminator", d_losses, 2 * np.log(2)), ("generator", g_losses, np.log(2))):
    print(
        f"{name}: {losses[0]:.3f} at first (knowing nothing: {blind:.3f}), {np.mean(losses[-50:]):.3f} at last"
    )

# %%
generator.eval()
with torch.no_grad():
    written = generator(torch.randn(40, 32)).reshape(4, 10, 28, 28)
fig, (top, bottom) = plt.subplots(2, 1, figsize=(8, 7), layout="constrained", height_ratios=(3, 2.4))
top.imshow(np.block([[image.numpy() for image in row] for row in written]), cmap="gray_r")
top.set(xticks=[], yticks=[], title="Zeros that nobody wrote")
for losses, style, name in ((d_losses, "-", "discriminator"), (g_losses, "--", "generator")):
    width = min(50, len(losses))
    mean = np.convolve(losses, np.ones(width) / width, "valid")
    bottom.plot(np.arange(len(mean)) + width, mean, style, label=name)
bottom.axhline(2 * np.log(2), color="0.5", linestyle=":", label="2 ln 2")
bottom.set(xlabel="step", ylabel=f"loss (nat, mean of {width} steps)")
bottom.legend(frameon=False, ncols=3)
plt.show()
