"""
Transfer learning: a network that has read other writers
========================================================

A network has learnt MNIST's digits. Other people's digits, on another scanner, are new to it; a few of them are enough
when it goes on from the weights that it has: ``warm_start``. Fifty of them bring it to 91 %, and
a fresh network to 81 %.
"""

import warnings
from copy import deepcopy

import matplotlib.pyplot as plt
import numpy as np
from _gallery import SMALL, mnist
from scipy.ndimage import zoom
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning

import fastxent as fx

plt.style.use("tableau-colorblind10")
warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed number of epochs, on purpose

# %%
# The new digits are scikit-learn's, 8 × 8 pixels; enlarged and framed as MNIST's are.
X, y, _, _ = mnist()
images, y_new = load_digits(return_X_y=True)
enlarged = zoom(images.reshape(-1, 8, 8) / 16, (1, 2.5, 2.5), order=1)
X_new = np.pad(enlarged, ((0, 0), (4, 4), (4, 4))).reshape(-1, 784).astype(np.float32)
X_test, y_test = X_new[1000:], y_new[1000:]

first = fx.MLPClassifier((256,), batch_size=64, max_iter=2 if SMALL else 5, random_state=0).fit(X, y)
print(f"trained on MNIST alone: {first.score(X_test, y_test):.1%} of the new digits right")

# %%
few = [20, 50, 100, 200, 500, 1000][: 3 if SMALL else None]
options = {"batch_size": 20, "max_iter": 20, "warm_start": True}
accuracy = {"from scratch": [], "after MNIST": []}
for n in few:
    fresh = fx.MLPClassifier((256,), random_state=0)
    for name, model in zip(accuracy, (fresh, deepcopy(first)), strict=True):
        model.set_params(**options).fit(X_new[:n], y_new[:n])
        accuracy[name].append(model.score(X_test, y_test))
    print(f"{n:>4} new digits: " + ", ".join(f"{name} {values[-1]:.1%}" for name, values in accuracy.items()))

# %%
fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for (name, values), style in zip(accuracy.items(), ("--", "-"), strict=True):
    ax.plot(few, 100 * np.array(values), style, marker="o", label=name)
ax.set(
    xscale="log", xticks=few, xticklabels=few, xlabel="new digits to learn from", ylabel="test accuracy (%)"
)
ax.minorticks_off()
ax.set(title="Digits of other writers")
ax.legend(frameon=False, loc="lower right")
plt.show()
