"""
One in a hundred: class weights and focal loss
==============================================

Nines hidden among fours, one for every hundred. Plain cross-entropy finds half of the nines and calls itself
99 % right. Class weights find 70 % of them, and so does focal loss that weighs the classes too (alpha). Both pay with
false alarms, which are printed beside.
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
X, y, X_test, y_test = mnist(digits=(4, 9))
four, nine = np.flatnonzero(y == 4), np.flatnonzero(y == 9)
keep = np.concatenate([four, nine[: len(four) // 100]])
X, y = X[keep], y[keep]
print(f"{np.sum(y == 4)} fours, {np.sum(y == 9)} nines")

# %%
# Focal loss takes little interest in images that are already read well, (1 - p)² of it; alpha weighs the two classes.
ways = {
    "plain": {},
    "class_weight='balanced'": {"class_weight": "balanced"},
    "FocalLoss(gamma=2, alpha=(0.1, 0.9))": {"loss": fx.FocalLoss(gamma=2.0, alpha=(0.1, 0.9))},
}
recall, false_alarms = {}, {}
for name, options in ways.items():
    model = fx.MLPClassifier(
        (64,), batch_size=64, max_iter=3 if SMALL else 10, random_state=0, **options
    ).fit(X, y)
    said = model.predict(X_test)
    recall[name] = np.mean(said[y_test == 9] == 9)
    false_alarms[name] = np.mean(said[y_test == 4] == 9)
    print(
        f"{name:<37} finds {recall[name]:5.1%} of the nines, false alarm at {false_alarms[name]:.1%} of the fours"
    )

# %%
fig, ax = plt.subplots(figsize=(8, 3), layout="constrained")
rows = np.arange(len(ways))
bars = ax.barh(rows - 0.2, [100 * value for value in recall.values()], 0.38, label="nines found")
ax.bar_label(bars, fmt="%.1f %%", padding=3)
bars = ax.barh(rows + 0.2, [100 * value for value in false_alarms.values()], 0.38, label="fours called nines")
ax.bar_label(bars, fmt="%.1f %%", padding=3)
ax.set(yticks=rows, yticklabels=ways, xlim=(0, 100), xlabel="% of the test images of the class")
ax.invert_yaxis()
ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
plt.show()
