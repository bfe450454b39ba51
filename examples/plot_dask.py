"""
The same answer from many machines: Dask
========================================

When the data outgrow a machine, they stay where they are: each worker sums the loss and the gradient of its rows, and
the sums are added. Here the workers are threads of this machine; after ``client = dask.distributed.Client(address)``
the same lines run on a cluster.
"""

import dask.array as da
import matplotlib.pyplot as plt
import numpy as np
from _gallery import SMALL, mnist

import fastxent as fx
from fastxent.dask import LogisticRegression

plt.style.use("tableau-colorblind10")

# %%
# MNIST in six parts, or whole.
X, y, X_test, y_test = mnist()
rows = 250 if SMALL else 10_000
options = {"C": 0.001, "tol": 1e-7, "max_iter": 1000}
spread = LogisticRegression(**options).fit(da.from_array(X, chunks=(rows, -1)), da.from_array(y, chunks=rows))
whole = fx.LogisticRegression(**options).fit(X, y)

# %%
# What comes out is a model like any other; ``to_local`` leaves Dask behind.
difference = np.abs(spread.coef_ - whole.coef_).max()
accuracy = spread.to_local().score(X_test, y_test)
print(f"objective in parts {spread.opt_result_.fun:.9f}, whole {whole.opt_result_.fun:.9f}")
print(f"largest difference of a coefficient {difference:.0e}; test accuracy {accuracy:.2%}")

# %%
# What it learnt: where ink speaks for a digit (purple), and against it (orange).
fig, axes = plt.subplots(2, 5, figsize=(9, 3.8), layout="constrained")
most = np.quantile(np.abs(spread.coef_), 0.99)
for digit, ax in enumerate(axes.flat):
    image = ax.imshow(spread.coef_[digit].reshape(28, 28), cmap="PuOr", vmin=-most, vmax=most)
    ax.set(xticks=[], yticks=[], title=str(digit))
fig.colorbar(image, ax=axes, label="coefficient", shrink=0.8)
plt.show()
