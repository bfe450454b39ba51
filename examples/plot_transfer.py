"""
Transfer learning: a network that has seen other digits
=======================================================

A network that knows 0 to 4 is to learn 5 to 9 from a few images. With ``warm_start`` it goes on from the weights it
has: strokes and loops are the same.
"""

import warnings

import matplotlib.pyplot as plt
import numpy as np
from _gallery import SMALL, mnist
from sklearn.exceptions import ConvergenceWarning

import fastxent as fx

plt.style.use("tableau-colorblind10")
warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed number of epochs, on purpose

# %%
# The first task, with all its images. The labels of the second are 0 to 4 too: digit less 5.
X, y, _, _ = mnist(digits=range(5))
X_new, y_new, X_test, y_test = mnist(digits=range(5, 10))
y_new, y_test = y_new - 5, y_test - 5
options = {"hidden_layer_sizes": (128,), "batch_size": 32, "random_state": 0}
few = [50, 100] if SMALL else [25, 50, 100, 250, 500, 1000]

accuracy = {"from scratch": [], "warm start": []}
for n in few:
    fresh = fx.MLPClassifier(max_iter=20, **options)
    warm = fx.MLPClassifier(max_iter=1 if SMALL else 3, warm_start=True, **options).fit(X, y)
    warm.set_params(max_iter=20)
    for name, model in zip(accuracy, (fresh, warm), strict=True):
        accuracy[name].append(model.fit(X_new[:n], y_new[:n]).score(X_test, y_test))
    print(f"{n:>4} images: " + ", ".join(f"{name} {values[-1]:.1%}" for name, values in accuracy.items()))

# %%
fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for (name, values), style in zip(accuracy.items(), ("--", "-"), strict=True):
    ax.plot(few, 100 * np.array(values), style, marker="o", label=name)
ax.set(
    xscale="log", xticks=few, xticklabels=few, xlabel="images of the new digits", ylabel="test accuracy (%)"
)
ax.minorticks_off()
ax.set(title="5 to 9, after 0 to 4")
ax.legend(frameon=False, loc="lower right")
plt.show()
