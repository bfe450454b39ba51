"""The README's picture, kernels.png beside this file, from the README's own table: ``python docs/images/kernels.py``.

After a new run of benchmarks/copies.py, paste its table into the README and run this.
"""

import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, NullLocator

HERE = Path(__file__).resolve().parent
README = HERE.parents[1] / "README.md"
OURS, THEIRS, INK = "#0072B2", "#D55E00", "#444444"  # Okabe and Ito: told apart with any colour blindness


def rows_of(text):
    """(logits, copies, times PyTorch) of every float32 row with two axes."""
    table = re.findall(
        r"^\| ([\d]+ × [\d]+) float32 \| [\d.]+ \| ([\d.]+) \|.*\| ([\d.]+) \|$", text, re.MULTILINE
    )
    return [(logits, float(copies), float(ratio)) for logits, copies, ratio in table]


def spaced(logits):
    """Rows and classes with a separator between the thousands."""
    return " × ".join(f"{int(number):,}" for number in logits.split(" × "))


def draw(rows, path):
    """One line per shape, from this package's time to PyTorch's, in copies of the logits."""
    fig, ax = plt.subplots(figsize=(8.2, 0.34 * len(rows) + 1.3), layout="constrained")
    for place, (_, copies, ratio) in enumerate(rows):
        ax.plot([copies, copies * ratio], [place, place], color="#C8C8C8", linewidth=3, zorder=1)
        ax.plot(copies, place, "o", color=OURS, markersize=9, label=None if place else "fastxent")
        ax.plot(
            copies * ratio,
            place,
            "D",
            color=THEIRS,
            markersize=7.5,
            label=None if place else "PyTorch, eager",
        )
        ax.annotate(
            f"{ratio:.0f} ×",
            (copies * ratio, place),
            xytext=(11, 0),
            textcoords="offset points",
            va="center",
            color=INK,
        )
    ax.axvline(1, color=INK, linewidth=1, linestyle=":", zorder=0)
    ax.text(1.03, len(rows) - 0.35, "one copy", color=INK, fontsize=9, va="center")
    ax.set(xscale="log", xlim=(0.7, 110), ylim=(len(rows) - 0.1, -0.7))
    ax.set_yticks(range(len(rows)), [spaced(logits) for logits, _, _ in rows])
    ax.xaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_xlabel("time of loss and gradient, in copies of the logits (log scale; left is faster)")
    ax.set_title("Softmax cross-entropy, float32 (rows × classes)", fontsize=11, loc="left")
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0)
    fig.savefig(path, dpi=140, metadata={"Software": None})


if __name__ == "__main__":
    rows = rows_of(README.read_text(encoding="utf-8"))
    draw(rows, HERE / "kernels.png")
    print(HERE / "kernels.png")
