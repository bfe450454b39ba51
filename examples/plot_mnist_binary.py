"""
Zeros and ones: a small binary classifier
=========================================

A network of 784-256-1 units tells MNIST's zeros from its ones: ReLU, binary cross-entropy, Adam with a rate of 0.001,
batches of 64, ten epochs. It has 201,217 parameters and reads 99.95 % of the test images right.
"""

import matplotlib.pyplot as plt
import numpy as np
from _gallery import SMALL, mnist

import fastxent as fx
from fastxent.plots import LossCurveDisplay

plt.style.use("tableau-colorblind10")

# %%
# Each call of ``partial_fit`` is one epoch.
X, y, X_test, y_test = mnist(digits=(0, 1))
model = fx.MLPClassifier((256,), batch_size=64, learning_rate_init=1e-3, random_state=0)
for epoch in range(1, 3 if SMALL else 11):
    model.partial_fit(X, y, classes=[0, 1])
    print(f"epoch {epoch:2}: loss {model.loss_:.6f}, test accuracy {model.score(X_test, y_test):.4%}")

n_parameters = sum(a.size for a in (*model.coefs_, *model.intercepts_))
accuracy = model.score(X_test, y_test)
print(
    f"{n_parameters:,} parameters; {np.sum(model.predict(X_test) != y_test)} of {len(y_test)} test images wrong"
)

# %%
# Who knows nothing loses ln 2 = 0.6931 nat an image. On the right: the sum of all paths from a pixel to the output,
# which shows where ink speaks for a one (purple) and where for a zero (orange).
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", width_ratios=(3, 2))
display = LossCurveDisplay.from_estimator(model, name="784-256-1", ax=left, marker="o")
left.axhline(np.log(2), color="0.5", linestyle="--")
left.annotate(
    "ln 2: knowing nothing", (1, np.log(2)), xytext=(0, -14), textcoords="offset points", color="0.35"
)
left.set(xlabel="epoch", xticks=display.iteration, title="Loss while training")
paths = (model.coefs_[0] @ model.coefs_[1]).reshape(28, 28)
image = right.imshow(paths, cmap="PuOr", vmin=-np.abs(paths).max(), vmax=np.abs(paths).max())
right.set(xticks=[], yticks=[], title="What a pixel says")
fig.colorbar(image, ax=right, label="for 0   ←   weight   →   for 1", shrink=0.9)
plt.show()
