"""
Two worked examples: loss and gradient by hand
==============================================

A model gives the right class the probability 0.8, or 0.9. What does it lose, and where does the gradient point?
"""

import matplotlib.pyplot as plt
import numpy as np

import fastxent as fx

plt.style.use("tableau-colorblind10")

# %%
# The loss is -ln p of the right class. Its gradient with respect to the logits is p - y: what was predicted less what
# was true. It is not -y / p, which is the derivative with respect to the probability.
for p in (0.8, 0.9):
    logits = np.log([p, 1 - p])
    loss, grad = fx.softmax_cross_entropy_with_grad(logits, 0)
    print(f"p = [{p:.1f}, {1 - p:.1f}], y = [1, 0]: loss {loss:.10f} nat, gradient {grad.round(12)}")

# %%
# Central differences agree; the package needs one sweep instead of four.
step = 1e-5
shifts = step * np.eye(2)
by_hand = [
    (fx.softmax_cross_entropy(logits + shift, 0) - fx.softmax_cross_entropy(logits - shift, 0)) / (2 * step)
    for shift in shifts
]
print(f"by differences: {np.round(by_hand, 8)}")

# %%
p = np.linspace(0.01, 0.99, 99)
logits = np.log(np.column_stack([p, 1 - p]))
losses, grads = fx.softmax_cross_entropy_with_grad(logits, np.zeros(99, int), reduction="none")

fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
ax.plot(p, losses, label="loss, -ln p (nat)")
ax.plot(p, grads[:, 0], "--", label="gradient by the right class's logit, p - 1")
for at in (0.8, 0.9):
    ax.plot([at, at], [-np.log(at), at - 1], "o", color="C3")
    ax.annotate(
        f"{-np.log(at):.4f}", (at, -np.log(at)), xytext=(-4, 8), textcoords="offset points", ha="center"
    )
    ax.annotate(f"{at - 1:.1f}", (at, at - 1), xytext=(2, -16), textcoords="offset points", ha="center")
ax.axhline(0, color="0.7", linewidth=0.8, zorder=0)
ax.set(xlabel="probability p of the right class", xlim=(0, 1), ylim=(-1.3, 4.7), title="The worked examples")
ax.legend(frameon=False)
plt.show()
