"""
Boosted trees for a rare class: weights, focal, smoothed and robust objectives
==============================================================================

XGBoost looks for rare eights among MNIST's digits, with five objectives, in three situations. No objective wins
everywhere. With right labels class weights help a little and the other three harm. With wrong labels focal loss and
generalized cross-entropy help much, class weights harm, and label smoothing makes no difference that stands out. Where
nothing else keeps trees from the wrong labels (whole steps, no penalty on leaves, no early stop) all four help:
smoothing bounds the margin that a leaf of wrong labels is driven to. The average precision of the eights, mean over
ten draws:

================== ============ ============ ================================
objective          right labels wrong labels wrong labels, nothing holds back
================== ============ ============ ================================
plain              0.783        0.710        0.410
class weights      **0.792**    0.675        **0.493**
smoothed           0.729        0.715        **0.468**
focal              0.762        **0.760**    **0.674**
generalized (GCE)  0.745        **0.759**    **0.626**
================== ============ ============ ================================

Bold: better than plain in eight draws or more. What each gains over plain, draw by draw, is printed and drawn below.
"""

from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import xgboost
from _gallery import SMALL, mnist
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score

import fastxent as fx
from fastxent.boosting import xgboost_objective

plt.style.use("tableau-colorblind10")
SHARE = 8 if SMALL else 1  # of the images

# %%
X, y, X_test, y_test = mnist()
components = PCA(40, random_state=0).fit(X[:5000])
X, X_test = components.transform(X), xgboost.DMatrix(components.transform(X_test))
y, y_test = y == 8, y_test == 8


class Situation(NamedTuple):
    eights: int
    others: int
    eights_lost: float  # of the eights' labels
    false_eights: float  # of the others' labels
    parameters: dict
    rounds: tuple = (5, 10, 20, 40)  # to choose from on validation data


situations = {
    "right labels,\n30 eights in 3030": Situation(30, 3000, 0.0, 0.0, {"eta": 0.3, "max_depth": 4}),
    "wrong labels: 30 % of 200 eights,\n10 % of 2000 others": Situation(
        200, 2000, 0.3, 0.1, {"eta": 0.3, "max_depth": 4}
    ),
    "the same wrong labels, whole steps,\nno penalty, no early stop": Situation(
        200, 2000, 0.3, 0.1, {"eta": 1.0, "max_depth": 2, "lambda": 0, "min_child_weight": 0}, (40,)
    ),
}
objectives = {
    "plain": fx.SoftmaxCrossEntropy(),
    "class weights": fx.SoftmaxCrossEntropy(class_weight=(1, 10)),
    "smoothed": fx.SoftmaxCrossEntropy(label_smoothing=0.4),
    "focal": fx.FocalLoss(gamma=2.0),
    "generalized (GCE)": fx.GeneralizedCrossEntropy(r=0.2),
}


# %%
# In the first two situations every objective may choose its number of rounds on validation data, which are as rare and
# as wrong as the training data: plain cross-entropy stops before it learns the wrong labels by heart. In the third all
# take forty rounds.
def draw(situation, rng):
    """Training and validation data, drawn without a common image."""
    eights, others = (rng.permutation(np.flatnonzero(which)) for which in (y, ~y))
    parts = []
    for part in range(2):
        counts = (situation.eights // SHARE, situation.others // SHARE)
        rows = np.concatenate(
            [pool[part * n : (part + 1) * n] for pool, n in zip((eights, others), counts, strict=True)]
        )
        wrong = rng.random(len(rows)) < np.where(y[rows], situation.eights_lost, situation.false_eights)
        parts.append(xgboost.DMatrix(X[rows], label=y[rows] ^ wrong))
    return parts


def precision(booster, data, labels, rounds):
    margins = booster.predict(data, output_margin=True, iteration_range=(0, rounds))
    return average_precision_score(labels, margins)


results = {}
for title, situation in situations.items():
    print(title.replace("\n", " "))
    checkpoints = situation.rounds[:2] if SMALL else situation.rounds
    draws = [draw(situation, np.random.default_rng(seed)) for seed in range(10, 12 if SMALL else 20)]
    for name, loss in objectives.items():
        scores = []
        for train, validation in draws:
            parameters = {
                "base_score": 0.0,
                "max_bin": 32,
                "nthread": 1,
                "disable_default_eval_metric": 1,
                **situation.parameters,
            }
            booster = xgboost.train(parameters, train, checkpoints[-1], obj=xgboost_objective(loss))
            rounds = max(checkpoints, key=lambda k: precision(booster, validation, validation.get_label(), k))
            scores.append(precision(booster, X_test, y_test, rounds))
        results[title, name] = scores = np.array(scores)
        text = f"  {name:<18} average precision {scores.mean():.3f} ± {scores.std(ddof=1):.3f}"
        if name != "plain":
            gain = scores - results[title, "plain"]
            text += f", gain {gain.mean():+.3f} ± {gain.std(ddof=1):.3f}, better in {np.sum(gain > 0)} of {len(gain)}"
        print(text)

# %%
fig, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained", sharey=True)
for ax, title in zip(axes, situations, strict=True):
    for row, name in enumerate(objectives):
        if name != "plain":
            gain = results[title, name] - results[title, "plain"]
            ax.plot(gain, np.full(len(gain), row), "o", color="C0", alpha=0.5, markersize=5)
            ax.plot(gain.mean(), row, "|", color="black", markersize=18, markeredgewidth=2.5)
    ax.axvline(0, color="0.4", linewidth=1)
    ax.locator_params(axis="x", nbins=5)
    ax.set_ylim(len(objectives) - 0.4, 0.4)
    ax.set(title=title, xlabel="gain in average precision")
    ax.title.set_fontsize(9)
axes[0].set(yticks=range(1, len(objectives)), yticklabels=[*objectives][1:])
plt.show()
