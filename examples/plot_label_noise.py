"""
When four labels of ten are wrong: robust losses
================================================

40 % of the labels are replaced by another digit. Cross-entropy learns the digits first and the wrong labels after;
bounded losses care less about a hopeless label, and learn it by heart later or never. After 30 epochs
cross-entropy reads 77 % of the test images right, generalized cross-entropy 91 %.
"""

import matplotlib.pyplot as plt
import numpy as np
from _gallery import SMALL, mnist

import fastxent as fx

plt.style.use("tableau-colorblind10")

# %%
# 10,000 images, labels flipped at random; the test labels stay as they are.
X, y, X_test, y_test = mnist()
X, y = X[:10_000], y[:10_000]
rng = np.random.default_rng(0)
flipped = np.where(rng.random(len(y)) < 0.4, (y + rng.integers(1, 10, len(y))) % 10, y)

losses = {
    "cross-entropy": fx.SoftmaxCrossEntropy(),
    "bootstrapping": fx.BootstrappingLoss(beta=0.6, hard=True),
    "symmetric (SCE)": fx.SymmetricCrossEntropy(alpha=0.1, beta=1.0),
    "generalized (GCE)": fx.GeneralizedCrossEntropy(r=0.7),
}
curves = {}
for name, loss in losses.items():
    model = fx.MLPClassifier((256,), loss=loss, batch_size=128, random_state=0)
    curves[name] = [
        model.partial_fit(X, flipped, classes=np.arange(10)).score(X_test, y_test)
        for _ in range(3 if SMALL else 30)
    ]
    print(f"{name:<18} best {max(curves[name]):.1%}, after the last epoch {curves[name][-1]:.1%}")

# %%
fig, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
for (name, scores), style in zip(curves.items(), ("-", ":", "--", "-."), strict=True):
    ax.plot(range(1, len(scores) + 1), [100 * score for score in scores], style, linewidth=2, label=name)
ax.set(xlabel="epoch", ylabel="test accuracy, right labels (%)", title="Training on 40 % wrong labels")
ax.locator_params(axis="x", integer=True)
ax.legend(frameon=False, loc="lower left")
plt.show()
