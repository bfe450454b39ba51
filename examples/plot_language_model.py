"""
A language model: token cross-entropy and perplexity
====================================================

A network reads eight letters and says which comes next. Its cross-entropy on new text, in bits, is what a letter
costs; two to that power is the *perplexity*: among how many letters it hesitates. Here 2.8.
"""

import csv

import matplotlib.pyplot as plt
import numpy as np
from _gallery import SMALL, folder
from scipy import sparse

import fastxent as fx
from fastxent import information

plt.style.use("tableau-colorblind10")

# %%
# Customers' questions to a bank (BANKING77). A new line ends a question.
texts = []
for part in ("train", "test"):
    with open(folder() / f"banking77_{part}.csv", newline="", encoding="utf-8") as file:
        texts.append("\n".join(row["text"].strip().lower() for row in csv.DictReader(file)))
alphabet = sorted(set("abcdefghijklmnopqrstuvwxyz ,.?!'\n"))
train, test = (np.array([alphabet.index(c) for c in text if c in alphabet]) for text in texts)
train, test = train[: 20_000 if SMALL else 300_000], test[:50_000]
K, context = len(alphabet), 8
print(f"{len(train)} letters to learn from, {K} different ones")


def windows(letters):
    """One-hot letters before each letter, as a sparse matrix, and the letter."""
    places = np.lib.stride_tricks.sliding_window_view(letters, context)[:-1] + K * np.arange(context)
    n = len(places)
    ones = np.ones(n * context, np.float32)
    X = sparse.csr_array((ones, places.ravel(), np.arange(n + 1) * context), shape=(n, K * context))
    return X, letters[context:]


# %%
# What counting can do: single letters, and letters given the one before. A distribution per letter is a row; the
# cross-entropy of what was counted in the test text against what was counted in the training text is the cost.
single = np.bincount(train, minlength=K) + 1.0
single /= single.sum()
pairs = np.ones((K, K))
np.add.at(pairs, (train[:-1], train[1:]), 1)
pairs /= pairs.sum(axis=1, keepdims=True)
observed = np.bincount(test, minlength=K) / len(test)
perplexity = {
    "any letter": float(K),
    "single letters": information.perplexity(observed, single),
    "given one before": 2 ** fx.softmax_cross_entropy(np.log(pairs)[test[:-1]], test[1:], base=2),
}

# %%
# The network: sparse input stays sparse.
X, y = windows(train)
X_test, y_test = windows(test)
model = fx.MLPClassifier((192,), batch_size=128, solver="adamw", alpha=1e-3, random_state=0)
for _ in range(2 if SMALL else 6):
    model.partial_fit(X, y, classes=np.arange(K))
log_proba = model.predict_log_proba(X_test)
perplexity["given eight before"] = 2 ** fx.softmax_cross_entropy(log_proba, y_test, base=2)
for name, value in perplexity.items():
    print(f"{name:<19} {np.log2(value):.3f} bit a letter, perplexity {value:5.2f}")

# %%
# And it writes.
rng = np.random.default_rng(1)
written = list(test[:context])
while len(written) < 240:
    p = model.predict_proba(windows(np.array([*written[-context:], 0]))[0])[0].astype(float) ** 1.5
    written.append(rng.choice(K, p=p / p.sum()))
print("".join(alphabet[i] for i in written[context:]))

# %%
fig, ax = plt.subplots(figsize=(7, 2.8), layout="constrained")
bars = ax.barh(list(perplexity), list(perplexity.values()), 0.6)
ax.bar_label(bars, fmt="%.1f", padding=3)
ax.set(
    xlim=(0, K + 3), xlabel="perplexity on new text (letters)", title="Among how many letters it hesitates"
)
ax.invert_yaxis()
plt.show()
