"""
Why cross-entropy, and not squared error?
=========================================

A unit with a sigmoid is sure, and wrong. Cross-entropy pulls it back with all its force; squared error hardly at all,
because its gradient carries the sigmoid's slope, which is flat there.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.special import expit

import fastxent as fx

plt.style.use("tableau-colorblind10")

# %%
# The right answer is y = 1; z is the logit, p = sigmoid(z). Cross-entropy has the gradient p - 1, half the squared
# error (p - 1)²/2 has (p - 1) p (1 - p).
z = np.linspace(-12, 6, 361)
p = expit(z)
cross_entropy, pull = fx.sigmoid_cross_entropy_with_grad(z, np.ones_like(z), reduction="none")
squared_error, weak_pull = (p - 1) ** 2 / 2, (p - 1) * p * (1 - p)

at = np.searchsorted(z, -10)
print(f"at z = {z[at]:.0f}: cross-entropy pulls with {pull[at]:.5f}, squared error with {weak_pull[at]:.1e}")

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.plot(z, cross_entropy, label="cross-entropy (nat)")
left.plot(z, squared_error, "--", label="squared error / 2")
left.set(xlabel="logit z; right answer: y = 1", ylabel="loss", title="Loss")
left.legend(frameon=False)
right.plot(z, pull, label="cross-entropy: p - 1")
right.plot(z, weak_pull, "--", label="squared error: (p - 1) p (1 - p)")
right.plot([z[at]] * 2, [pull[at], weak_pull[at]], "o", color="C3")
right.annotate(f"{pull[at]:.5f}", (z[at], pull[at]), xytext=(0, 8), textcoords="offset points", ha="center")
right.annotate(f"{weak_pull[at]:.1e}", (z[at], 0), xytext=(0, -16), textcoords="offset points", ha="center")
right.set(xlabel="logit z; right answer: y = 1", ylabel="gradient", ylim=(-1.08, 0.2), title="Gradient")
right.legend(frameon=False, loc="upper left", bbox_to_anchor=(0.02, 0.72))
plt.show()
