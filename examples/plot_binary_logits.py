"""
Binary cross-entropy: from logits, and from probabilities
=========================================================

Two doors to the same loss. Where you have the choice, take the one that starts from logits: a probability near 1 has
already lost what the loss needs.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.special import expit
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler

import fastxent as fx

plt.style.use("tableau-colorblind10")

# %%
# Real scores: is a tumour benign? Both doors give the same number.
X, y = load_breast_cancer(return_X_y=True)
X = StandardScaler().fit_transform(X)
z = fx.LogisticRegression().fit(X, y).decision_function(X)
p = expit(z)
loss, grad = fx.sigmoid_cross_entropy_with_grad(z, y)
print(f"from logits        {loss:.12f}")
print(f"from probabilities {fx.binary_cross_entropy(p, y):.12f}")

# %%
# The gradient of the batch's *mean* with respect to the logits is (p - y) / N. Leave N out, and the learning rate
# depends on the size of the batch.
print(f"largest difference to (p - y) / N: {np.abs(grad - (p - y) / len(y)).max():.1e}")

# %%
# Now a wrong answer that is ever more certain, in float32. The loss grows like z. Beyond z = 16.6 the probability is
# rounded to 1 and its complement to 0: the loss is infinite. Clipping, the usual remedy, makes it flat: no gradient.
z = np.linspace(0, 40, 401, dtype=np.float32)
p = expit(z)
wrong = np.zeros_like(z)
exact = fx.sigmoid_cross_entropy(z, wrong, reduction="none")
rounded = fx.binary_cross_entropy(p, wrong, reduction="none")
clipped = fx.binary_cross_entropy(np.clip(p, 1e-7, 1 - 1e-7), wrong, reduction="none")
print(
    f"at z = 40: {exact[-1]:.1f} from logits, {rounded[-1]} from probabilities, {clipped[-1]:.1f} from clipped ones"
)

# %%
fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
ax.plot(z, exact, linewidth=2, label="from logits")
ax.plot(z, clipped, "--", label="from probabilities clipped at 1e-7")
ax.plot(
    z,
    np.where(np.isfinite(rounded), rounded, np.nan),
    ":",
    linewidth=4,
    label="from probabilities (then infinite)",
)
ax.set(xlabel="logit z of a wrong answer", ylabel="loss (nat)", title="Float32: what each door can see")
ax.legend(frameon=False)
plt.show()
