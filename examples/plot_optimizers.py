"""
Seven ways down: the solvers of the network
===========================================

The same network on the same digits, from the same start: stochastic gradient descent with and without momentum, four
adaptive methods, and L-BFGS, which looks at all rows at every step.
"""

import warnings
from itertools import product

import matplotlib.pyplot as plt
from _gallery import SMALL
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

import fastxent as fx
from fastxent.plots import LossCurveDisplay

plt.style.use("tableau-colorblind10")
warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed number of epochs, on purpose

# %%
X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X / 16, y, random_state=0)

ways = {
    "sgd": {"solver": "sgd", "learning_rate_init": 0.05, "momentum": 0.0},
    "sgd, momentum": {"solver": "sgd", "learning_rate_init": 0.05, "nesterovs_momentum": False},
    "sgd, Nesterov": {"solver": "sgd", "learning_rate_init": 0.05},
    "adam": {"solver": "adam", "learning_rate_init": 0.005},
    "adamw": {"solver": "adamw", "learning_rate_init": 0.005, "alpha": 0.01},
    "radam": {"solver": "radam", "learning_rate_init": 0.005},
    "lbfgs": {"solver": "lbfgs"},
}
models = {}
for name, options in ways.items():
    model = fx.MLPClassifier((32,), batch_size=32, max_iter=5 if SMALL else 40, tol=0, random_state=0)
    models[name] = model.set_params(**options).fit(X_train, y_train)
    print(f"{name:<14} loss {model.loss_:.5f}, test accuracy {model.score(X_test, y_test):.1%}")

# %%
# Epochs of L-BFGS are iterations: one pass over the rows, one step.
fig, ax = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
looks = [*product(("C0", "C1"), ("-", "--", ":")), ("black", "-.")]  # a colour for each family
for (name, model), (color, linestyle) in zip(models.items(), looks, strict=True):
    LossCurveDisplay.from_estimator(model, name=name, ax=ax, color=color, linestyle=linestyle)
ax.set(xlabel="epoch, or iteration of lbfgs", title="Training loss of a 64-32-10 network")
plt.show()
