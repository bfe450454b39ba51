"""
Policy gradient: cross-entropy with signed weights
==================================================

Nobody tells the player what a digit is; it guesses, and hears whether that was right. REINFORCE (Williams, 1992)
minimizes -log p(guess) · advantage: cross-entropy against the own guess, with a weight that is negative where the
guess went worse than expected. After 600,000 guesses 96 % are right.
"""

import matplotlib.pyplot as plt
import numpy as np
from _gallery import SMALL
from scipy.special import softmax
from sklearn.datasets import load_digits

import fastxent as fx

plt.style.use("tableau-colorblind10")

# %%
X, y = load_digits(return_X_y=True)
X /= 16
rng = np.random.default_rng(0)
W, b = np.zeros((64, 10)), np.zeros(10)
expected, curve = 0.1, []
for _ in range(200 if SMALL else 6000):
    rows = rng.integers(0, len(y), 100)
    p = softmax(X[rows] @ W + b, axis=1)
    guess = (p.cumsum(axis=1) > rng.random((100, 1))).argmax(axis=1)
    reward = (guess == y[rows]).astype(float)
    advantage = reward - expected
    expected += 0.02 * (reward.mean() - expected)
    curve.append(reward.mean())
    _, _, dW, db = fx.linear_cross_entropy_with_grad(
        X[rows], W, guess, b, sample_weight=advantage, reduction="mean_rows", need_dx=False
    )
    W -= 0.5 * dW
    b -= 0.5 * db
accuracy = np.mean((X @ W + b).argmax(axis=1) == y)
print(f"right guesses: {np.mean(curve[:20]):.0%} at first, {np.mean(curve[-20:]):.0%} at last")
print(f"the most probable guess is right in {accuracy:.1%}")

# %%
width = min(50, len(curve) // 4)
mean = np.convolve(curve, np.ones(width) / width, "valid")
fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
ax.plot(np.arange(len(mean)) + width, 100 * mean)
ax.axhline(10, color="0.5", linestyle="--")
ax.annotate(
    "blind guessing", (len(curve), 10), xytext=(0, 4), textcoords="offset points", ha="right", color="0.35"
)
ax.set(xlabel="step of 100 guesses", ylabel=f"right guesses (%, mean of {width} steps)", ylim=(0, 100))
ax.set(title="Learning from praise and blame")
plt.show()
