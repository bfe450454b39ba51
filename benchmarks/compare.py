"""The kernels of two revisions against each other: ``make bench-compare BASE=main``.

The base is checked out and built in build/compare; the other side is the working tree. Two processes, one of each
revision, hold the same data and take turns, in an order that changes; a few such pairs follow each other, since where
a process lies in memory is worth some percent by itself. Each round gives one ratio, of the best times of a few turns,
so that what slows the machine down slows both. The median ratio has an interval from its order statistics, which
assumes nothing about the distribution; a case is flagged where the whole interval lies beyond the threshold. The
process ends with status 1 if a case has become slower.

For numbers that mean something nothing else may run: close the browser.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "compare"
KERNELS = ("setup.py", "src/**/*.pyx", "src/**/*.pxd", "src/**/*.cpp", "src/**/*.hpp", "src/**/*.inc")
THRESHOLD, CONFIDENCE = 0.05, 0.99
SECONDS, TURNS = 0.004, 8  # of one measurement, at least, and how many of each side a round takes the best of


# ------------------------------------------------------------------------------------------------------- statistics


def interval(ratios, confidence=CONFIDENCE):
    """Order statistics of which the median of the distribution lies between, with at least that confidence.

    The number of values below the median is binomial with p = 1/2: the k-th smallest and largest enclose it with
    probability 1 - 2 P(B < k).
    """
    values, n = sorted(ratios), len(ratios)
    below, k = 0.0, 0
    while k < n // 2:
        below += math.comb(n, k) / 2**n
        if 2 * below > 1 - confidence:
            break
        k += 1
    if not k:
        raise ValueError(f"{n} rounds cannot give {confidence:.0%} confidence: more rounds")
    return values[k - 1], values[n - k]


def verdict(ratios, threshold=THRESHOLD):
    """Median of the ratios new / base, its interval, and "slower", "faster" or ""."""
    low, high = interval(ratios)
    word = "slower" if low > 1 + threshold else "faster" if high < 1 / (1 + threshold) else ""
    return median(ratios), low, high, word


# ------------------------------------------------------------------------------------------ the side that is measured


def calls():
    """Name → call: each a few milliseconds, through public names that older revisions have too."""
    import numpy as np

    import fastxent as fx

    rng = np.random.default_rng(0)

    def problem(n, k, dtype="float32"):
        return rng.standard_normal((n, k), np.float32).astype(dtype, copy=False), rng.integers(0, k, n)

    few, ten, wide = problem(400_000, 3), problem(200_000, 10), problem(64, 32_768)
    middle, small, double = problem(4000, 1000), problem(4, 3), problem(3000, 1000, "float64")
    hot = (ten[0] > 0).astype(np.float32)
    soft = rng.random(ten[0].shape, np.float32)
    weight = rng.random(len(ten[0]), np.float32)
    X = rng.standard_normal((5000, 50))
    y = np.argmax(X[:, :4] + rng.standard_normal((5000, 4)), axis=1)
    head = rng.standard_normal((50, 100))
    focal, plain = fx.FocalLoss(), fx.SoftmaxCrossEntropy()
    into = [np.empty_like(z) for z, _ in (few, ten, middle, double, wide)]
    fused = fx.softmax_cross_entropy_with_grad
    return {
        "softmax 400,000 × 3": lambda: fused(*few, out=into[0]),
        "softmax 200,000 × 10": lambda: fused(*ten, out=into[1]),
        "softmax 4000 × 1000": lambda: fused(*middle, out=into[2]),
        "softmax 3000 × 1000, float64": lambda: fused(*double, out=into[3]),
        "softmax 64 × 32,768": lambda: fused(*wide, out=into[4]),
        "softmax 64 × 32,768, loss": lambda: fx.softmax_cross_entropy(*wide),
        "softmax 200,000 × 10, soft": lambda: fused(ten[0], soft, out=into[1]),
        "softmax 200,000 × 10, weights": lambda: fused(
            *ten, sample_weight=weight, label_smoothing=0.1, out=into[1]
        ),
        "softmax 4 × 3": lambda: fused(*small),
        "sigmoid 2,000,000": lambda: fx.sigmoid_cross_entropy_with_grad(ten[0], hot, out=into[1]),
        "focal 4000 × 1000": lambda: focal.loss_grad(*middle),
        "solve 200,000 × 10": lambda: plain.solve(*ten, soft, 0.5),
        "linear 5000 × 50 × 100": lambda: fx.linear_cross_entropy_with_grad(X, head, y),
        "LogisticRegression": lambda: fx.LogisticRegression(tol=1e-3).fit(X, y),
    }


def serve():
    """Answer lines "[case, repeats]" with the seconds of so many calls; first the names of the cases."""
    import fastxent

    assert Path(fastxent.__file__).is_relative_to(os.environ["PYTHONPATH"]), fastxent.__file__
    made = calls()
    print(json.dumps(list(made)), flush=True)
    for line in sys.stdin:
        name, repeats = json.loads(line)
        call = made[name]
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        print(time.perf_counter() - start, flush=True)


class Side:
    """A process that measures one revision."""

    def __init__(self, tree):
        environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=tree,
        )  # fmt: skip
        self.names = self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a process ended while it measured: its message is above")
        return json.loads(line)

    def seconds(self, name, repeats):
        self.process.stdin.write(json.dumps([name, repeats]) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self):
        self.process.communicate()


# ------------------------------------------------------------------------------------------------------- the two sides


def git(*arguments, check=True):
    return subprocess.run(["git", "-C", ROOT, *arguments], check=check, capture_output=True, text=True)


def checked_out(revision):
    """Folder of a revision with its extensions; built once, or copied where the sources of the kernels are these."""
    sha = git("rev-parse", "--verify", f"{revision}^{{commit}}").stdout.strip()
    tree = FOLDER / sha[:12]
    if not tree.exists():
        git("worktree", "prune")
        git("worktree", "add", "--detach", str(tree), sha)
    if not list(tree.glob("src/fastxent/*.so")):
        same = (
            git(
                "diff", "--quiet", sha, "--", *(f":(glob){pattern}" for pattern in KERNELS), check=False
            ).returncode
            == 0
        )
        built = list((ROOT / "src" / "fastxent").glob("*.so"))
        if same and built:
            print(f"the kernels of {sha[:12]} are those of the working tree: its extensions are copied")
            for path in built:
                shutil.copy(path, tree / "src" / "fastxent")
        else:
            print(f"building {sha[:12]} in {tree.relative_to(ROOT)}", flush=True)
            subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=tree, check=True)
    return tree


def measured(base, new, pairs, rounds, wanted):
    """Name → ratios new / base, one a round, and the base's median seconds per call."""
    ratios, seconds = {}, {}
    for _ in range(pairs):
        with contextlib.ExitStack() as stack:
            sides = []
            for tree in (base, new):
                sides.append(Side(tree))
                stack.callback(sides[-1].close)
            names = [name for name in sides[0].names if name in sides[1].names and wanted in name]
            for name in names:
                once = min(side.seconds(name, 1) for side in sides for _ in range(2))
                repeats = max(1, math.ceil(SECONDS / once))
                for _ in range(rounds):
                    took = [math.inf, math.inf]
                    for turn in range(TURNS):
                        for at in (0, 1) if turn % 2 else (1, 0):
                            took[at] = min(took[at], sides[at].seconds(name, repeats))
                    ratios.setdefault(name, []).append(took[1] / took[0])
                    seconds.setdefault(name, []).append(took[0] / repeats)
    return ratios, {name: median(values) for name, values in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("base", nargs="?", help="a revision, such as main or HEAD~3")
    parser.add_argument("-k", dest="wanted", default="", help="only cases whose name has this in it")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of processes")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of a pair")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        return serve()
    if given.base is None:
        parser.error("a revision to compare with: make bench-compare BASE=main")
    interval([1.0] * given.pairs * given.rounds)  # enough of them, before anything is built
    base = checked_out(given.base)
    ratios, seconds = measured(base, ROOT, given.pairs, given.rounds, given.wanted)
    print(f"\n{'case':32} {'base, ms':>9} {'new/base':>9}  {CONFIDENCE:.0%} interval")
    slower = []
    for name, values in ratios.items():
        middle, low, high, word = verdict(values)
        print(f"{name:32} {1e3 * seconds[name]:9.3f} {middle:9.3f}  {low:.3f} to {high:.3f}  {word}")
        slower += [name] if word == "slower" else []
    if slower:
        return f"slower by more than {THRESHOLD:.0%}: {', '.join(slower)}"
    print(f"nothing is slower by more than {THRESHOLD:.0%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
