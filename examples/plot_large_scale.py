"""
Fifty thousand classes: logits that are never whole
===================================================

The last layer of a language model has a class for every word. Its logits are by far the largest thing in a training
step; the fused kernels read them once, ``linear_cross_entropy`` never makes them, and ``partial_lse`` splits them
over machines.
"""

import tracemalloc
from itertools import pairwise
from time import perf_counter

import matplotlib.pyplot as plt
import numpy as np
from _gallery import SMALL
from scipy.special import log_softmax

import fastxent as fx
from fastxent.plots import BenchmarkDisplay

plt.style.use("tableau-colorblind10")

# %%
# Hidden states of n words, a matrix W with a column for each of K words, and the words that came.
n, d, K = (256, 32, 2000) if SMALL else (1024, 256, 50257)
rng = np.random.default_rng(0)
X = rng.standard_normal((n, d), dtype=np.float32)
W = rng.standard_normal((d, K), dtype=np.float32) / np.float32(np.sqrt(d))
y = rng.integers(0, K, n)


# %%
# Loss and gradients by the book, with the fused kernel between the two products, and without logits.
def by_the_book():
    log_p = log_softmax(X @ W, axis=1)
    loss = -log_p[np.arange(n), y].mean()
    grad = np.exp(log_p)
    grad[np.arange(n), y] -= 1
    grad /= n
    return loss, grad @ W.T, X.T @ grad


def fused():
    logits = X @ W
    loss, grad = fx.softmax_cross_entropy_with_grad(logits, y, out=logits)
    return loss, grad @ W.T, X.T @ grad


def without_logits():
    return fx.linear_cross_entropy_with_grad(X, W, y)[:3]


seconds, megabytes, losses = {}, {}, {}
for name, way in {
    "by the book": by_the_book,
    "fused kernel": fused,
    "linear_cross_entropy": without_logits,
}.items():
    tracemalloc.start()
    losses[name] = way()[0]
    megabytes[name] = (tracemalloc.get_traced_memory()[1] - X.nbytes - W.nbytes) / 2**20  # less the gradients
    tracemalloc.stop()
    seconds[name] = []
    for _ in range(3):
        start = perf_counter()
        way()
        seconds[name].append(perf_counter() - start)
    median = np.median(seconds[name])
    print(
        f"{name:<21} loss {losses[name]:.6f} nat, {median:.2f} s, {megabytes[name]:.0f} MB beside the gradients"
    )

# %%
# The same words split over three machines. Each sends back four numbers a row; together they are exact.
logits = X @ W
cuts = [0, K // 5, K // 2, K]
shards = [(logits[:, a:b], a) for a, b in pairwise(cuts)]
states = [fx.partial_lse(shard, y, start) for shard, start in shards]
merged = fx.merge_lse(states)
grads = [merged.grad(shard, y, start) for shard, start in shards]
whole, grad = fx.softmax_cross_entropy_with_grad(logits, y)
difference = np.abs(np.hstack(grads) - grad).max()
print(f"from three shards: loss {merged.loss():.6f}, largest difference of a gradient {difference:.0e}")

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 3), layout="constrained", sharey=True)
BenchmarkDisplay(
    seconds, baseline=dict.fromkeys(("fused kernel", "linear_cross_entropy"), "by the book")
).plot(left)
left.set(title=f"Loss and gradients, {n} × {K} logits")
bars = right.barh(list(megabytes), list(megabytes.values()), 0.65)
right.bar_label(bars, fmt="%.0f MB", padding=5)
right.set(xlim=(0, 1.3 * max(megabytes.values())), xlabel="MB beside the gradients", title="Memory")
plt.show()
