"""
Entropy, cross-entropy and KL divergence as code lengths
========================================================

Words come from one of six states. A code gives every state a string of bits; a state that a code believes to have
probability q gets -log2 q bits. How long is a message, if the belief is wrong?
"""

import matplotlib.pyplot as plt
import numpy as np

from fastxent import information

plt.style.use("tableau-colorblind10")

# %%
# Two beliefs about the six states: K1 prefers the first ones, K2 knows no difference. (We chose them; K1's code words
# have whole lengths.)
K1 = np.array([1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 32])
K2 = np.full(6, 1 / 6)

# %%
# *Cross-entropy* is the mean length when words follow p and the code was made for q. It is shortest for q = p: that is
# the *entropy* of p. What a wrong code wastes is the *Kullback-Leibler divergence*.
for words, p in (("K1", K1), ("K2", K2)):
    for code, q in (("K1", K1), ("K2", K2)):
        mean = information.cross_entropy(p, q, base=2)
        waste = information.kl_divergence(p, q, base=2)
        print(
            f"words from {words}, code for {code}: {mean:.4f} bit a word, {waste:.4f} of them wasted; ",
            end="",
        )
        print(f"280 bits hold {280 / mean:.0f} words")

# %%
# The waste depends on the direction: being sure without reason costs more than being vague without need. The
# Jensen-Shannon divergence is symmetric, and at most one bit.
forward = information.kl_divergence(K1, K2, base=2)
backward = information.kl_divergence(K2, K1, base=2)
print(f"KL(K1 || K2) = {forward:.4f} bit, KL(K2 || K1) = {backward:.4f} bit")
print(f"JS(K1, K2) = JS(K2, K1) = {information.js_divergence(K1, K2, base=2):.4f} bit")

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
state = np.arange(1, 7)
left.bar(state - 0.2, -np.log2(K1), 0.38, label="code for K1")
left.bar(state + 0.2, -np.log2(K2), 0.38, label="code for K2")
left.set(xlabel="state", ylabel="length of the code word (bit)", title="Two codes")
left.legend(frameon=False)

pairs = [("K1", K1, "K1", K1), ("K1", K1, "K2", K2), ("K2", K2, "K2", K2), ("K2", K2, "K1", K1)]
names = [f"words from {words}\ncode for {code}" for words, _, code, _ in pairs]
needed = [information.entropy(p, base=2) for _, p, _, _ in pairs]
wasted = [information.kl_divergence(p, q, base=2) for _, p, _, q in pairs]
right.bar(names, needed, 0.6, label="entropy of the words")
right.bar(names, wasted, 0.6, bottom=needed, label="KL divergence: wasted")
right.set(ylabel="mean length (bit per word)", ylim=(0, 4.4), title="Cross-entropy = entropy + KL divergence")
right.tick_params(axis="x", labelsize=8.5)
right.legend(frameon=False, loc="upper left")
plt.show()
