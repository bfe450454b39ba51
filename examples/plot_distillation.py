"""
Learning from a teacher: distillation and mixed losses
======================================================

A network has read all of MNIST. A linear model is to learn from 100 images; their labels say little, the teacher's
logits say how much a nine looks like a four. With labels alone the student reads 67.7 % of the test images right, with
the teacher 71.6 %.
"""

import matplotlib.pyplot as plt
import numpy as np
from _gallery import SMALL, mnist
from scipy.optimize import minimize

import fastxent as fx

plt.style.use("tableau-colorblind10")

# %%
X, y, X_test, y_test = mnist()
teacher = fx.MLPClassifier((256,), batch_size=64, random_state=0)
for _ in range(2 if SMALL else 6):
    teacher.partial_fit(X, y, classes=np.arange(10))
print(f"teacher: {teacher.score(X_test, y_test):.2%}")

X, y = X[:100].astype(float), y[:100]
teacher_logits = teacher.predict_log_proba(X)

# %%
# Loss objects add and scale. Targets of a sum are a tuple, one entry per term; those of distillation are labels and
# the teacher's logits. A student is a matrix, and ``loss_grad`` all that an optimizer needs.
labels_only = fx.SoftmaxCrossEntropy()
smoothed = fx.SoftmaxCrossEntropy(label_smoothing=0.1)
distilled = fx.DistillationLoss(temperature=4.0, weight=0.9)
mixed = 0.1 * fx.SoftmaxCrossEntropy() + 0.9 * fx.DistillationLoss(temperature=4.0, weight=1.0)
with_teacher = (y, teacher_logits)


def student(loss, targets):
    """Test accuracy of the linear model that minimizes the loss and a small penalty."""

    def value_and_grad(w):
        W = w.reshape(784, 10)
        value, grad = loss.loss_grad(X @ W, targets)
        return value + 5e-4 * w @ w, (X.T @ grad).ravel() + 1e-3 * w

    options = {"maxiter": 20 if SMALL else 300}
    w = minimize(value_and_grad, np.zeros(7840), jac=True, method="L-BFGS-B", options=options).x
    return np.mean((X_test @ w.reshape(784, 10)).argmax(axis=1) == y_test)


accuracy = {
    "labels": student(labels_only, y),
    "labels, smoothed": student(smoothed, y),
    "labels and teacher": student(distilled, with_teacher),
    "the same, as a sum": student(mixed, (y, with_teacher)),
}
for name, value in accuracy.items():
    print(f"{name:<19} {value:.2%}")

# %%
fig, ax = plt.subplots(figsize=(7, 2.8), layout="constrained")
bars = ax.barh(list(accuracy), [100 * value for value in accuracy.values()], 0.6)
ax.bar_label(bars, fmt="%.1f %%", padding=3)
ax.set(xlim=(0, 100), xlabel="test accuracy of the student (%)", title="What 100 images teach a linear model")
ax.invert_yaxis()
plt.show()
