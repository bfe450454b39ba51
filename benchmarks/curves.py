"""Objective against time: our logistic regression and scikit-learn's, several stopping points each.

python benchmarks/curves.py [--out DIR] [--only PART-OF-A-NAME ...] [--rounds N]

The field's benchmark, benchopt's logistic regression, is binary and has no intercept; these problems have many
classes, an intercept and both precisions. For every problem and solver the fit is timed at falling tolerances,
rounds interleaved so that a slow minute of the machine meets everybody, medians kept; the objective

    mean loss + (l1_ratio ‖W‖₁ + (1 - l1_ratio) ‖W‖² / 2) / (C n)

is computed once more in float64 from the coefficients. The best one known, f*, is that of all runs and of a fit
in float64 to tol=1e-8. Writes curves.json (the points), curves.md (the tables, first one
of all problems) and curves.png (the picture) into DIR; problems that are not run this time keep the points that
curves.json has of them.  docs/images has the last ones: --out docs/images goes on from there.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import time
import warnings
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from scipy.special import logsumexp
from sklearn import datasets
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression as Peer
from threadpoolctl import threadpool_limits

from fastxent._bench import planted
from fastxent.logistic import LogisticRegression
from fastxent.plots import format_seconds

DATA = Path(os.environ.get("FASTXENT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
OURS, DEFAULT = "fastxent auto", 1e-4  # our curve's name, and scikit-learn's tol unless told otherwise
SLOW = 20.0  # seconds: a fit that takes longer is run once


@dataclass(frozen=True)
class Problem:
    """Data, C, l1_ratio, and the tolerances at which scikit-learn's solvers stop."""

    X: object
    y: np.ndarray
    C: float = 1.0
    l1_ratio: float = 0.0
    max_iter: int = 2000  # of scikit-learn's
    exact: int = 5000  # iterations of the fit that looks for f*
    peers: dict = field(default_factory=lambda: {"lbfgs": (1e-2, 1e-3, 1e-4)})
    ours: tuple = (1e-2, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)

    def objective(self, model):
        """The objective at a model's coefficients, in float64."""
        W = model.coef_.astype(np.float64)
        z = self.X @ W.T + model.intercept_.astype(np.float64)
        z = np.hstack([0 * z, z]) if z.shape[1] == 1 else z
        own = z[np.arange(len(z)), np.searchsorted(model.classes_, self.y)]
        penalty = self.l1_ratio * np.abs(W).sum() + (1 - self.l1_ratio) / 2 * (W**2).sum()
        return float((logsumexp(z, axis=1) - own).mean() + penalty / (self.C * len(z)))


@dataclass
class Point:
    """A stopping point of a solver: its times, its objective, its passes over the data."""

    tol: float
    value: float = np.inf
    passes: int = 0
    times: list = field(default_factory=list)

    @property
    def seconds(self):
        return statistics.median(self.times)


def mnist(dtype):
    with np.load(DATA / "mnist.npz") as archive:
        X, y = archive["x_train"], archive["y_train"]
    peers, ours = {"lbfgs": (1e-2, 1e-4, 1e-5)}, (1e-2, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6)
    return Problem((X.reshape(len(X), -1) / 255).astype(dtype), y.astype(int), 1.0, peers, ours)


def banking(dtype):
    with (DATA / "banking77_train.csv").open(encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file)
    text = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, dtype=dtype)
    peers, ours = {"lbfgs": (1e-3, 1e-4), "saga": (1e-2, 1e-3, 1e-4)}, (1e-3, 3e-4, 1e-4, 5e-5, 3e-5, 1e-5)
    X, y = text.fit_transform(row[0] for row in rows), np.array([row[1] for row in rows])
    return Problem(X, y, 10.0, peers, ours)


def bundled(load):
    X, y = load(return_X_y=True)
    return Problem((X - X.mean(axis=0)) / (X.std(axis=0) + 1e-9), y, ours=(1e-2, 1e-3, 1e-4, 1e-5, 1e-6))


def with_l1(problem, tols=(1e-2, 1e-3, 1e-4), ours=(1e-2, 1e-3, 3e-4, 1e-4, 1e-5, 1e-6), **limits):
    """The same data with ‖W‖₁ alone in the penalty, which of scikit-learn's solvers saga minimizes."""
    return replace(problem, l1_ratio=1.0, peers={"saga": tols}, ours=ours, **limits)


PROBLEMS = {
    "iris": lambda: bundled(datasets.load_iris),
    "breast_cancer": lambda: bundled(datasets.load_breast_cancer),
    "digits": lambda: bundled(datasets.load_digits),
    "26 classes, 20000 × 16, float64": lambda: Problem(*planted(20_000, 16, 26, np.float64)),
    "2 classes, 500000 × 50, float32": lambda: Problem(*planted(500_000, 50, 2, np.float32)),
    "10 classes, 200000 × 100, float32": lambda: Problem(*planted(200_000, 100, 10, np.float32)),
    "BANKING77, sparse, float32": lambda: banking(np.float32),
    "MNIST, float32": lambda: mnist(np.float32),
    "MNIST, float64": lambda: mnist(np.float64),
    "iris, L1": lambda: with_l1(bundled(datasets.load_iris)),
    "breast_cancer, L1": lambda: with_l1(bundled(datasets.load_breast_cancer)),
    "digits, L1": lambda: with_l1(bundled(datasets.load_digits)),
    "BANKING77, sparse, float32, L1": lambda: with_l1(
        banking(np.float32), (1e-2,), (3e-3, 1e-3, 3e-4, 1e-4), max_iter=50, exact=300
    ),
    "MNIST, float32, L1": lambda: with_l1(
        mnist(np.float32), (1e-2,), (3e-3, 1e-3, 7e-4, 5e-4, 3e-4), max_iter=20, exact=300
    ),
}


def measure(problem, rounds):
    """Points of every solver, as {name: [Point, ...]}, and f*."""
    penalty = {"C": problem.C, "l1_ratio": problem.l1_ratio}
    runs = [(OURS, tol, LogisticRegression(**penalty, tol=tol, max_iter=5000), None) for tol in problem.ours]
    for solver, tols in problem.peers.items():
        for threads in (None, 1):
            name = f"scikit-learn {solver}" + (", 1 thread" if threads else "")
            options = {**penalty, "solver": solver, "max_iter": problem.max_iter}
            runs += [(name, tol, Peer(**options, tol=tol), threads) for tol in tols]
    curves = {name: [] for name, *_ in runs}
    for name, tol, *_ in runs:
        curves[name].append(Point(tol))
    for turn in range(rounds):
        for name, tol, model, threads in runs:
            point = next(point for point in curves[name] if point.tol == tol)
            if turn and point.times[0] > SLOW:
                continue
            with threadpool_limits(threads):
                start = time.perf_counter()
                model.fit(problem.X, problem.y)
                point.times.append(time.perf_counter() - start)
            point.value = problem.objective(model)
            ours = getattr(model, "opt_result_", None)
            point.passes = ours.n_evaluations + ours.n_products if ours else int(np.max(model.n_iter_))
    exact = LogisticRegression(**penalty, tol=1e-8, max_iter=problem.exact)
    exact.fit(problem.X.astype(np.float64), problem.y)
    best = problem.objective(exact)
    return curves, min([best, *(point.value for points in curves.values() for point in points)])


def table(name, curves, best):
    """The problem's markdown table: one row per stopping point, and how much sooner we are where each peer ends."""
    lines = [
        f"**{name}** (f* = {best:.9g})\n",
        "| solver | tol | passes or iterations | each | time | (f - f*) / f* | ours is as good after | faster by |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    ours = curves[OURS]
    for solver, points in curves.items():
        for point in points:
            reached = [mine.seconds for mine in ours if mine.value <= point.value * (1 + 1e-5)]
            row = [
                solver,
                f"{point.tol:g}",
                str(point.passes),
                format_seconds(point.seconds / max(point.passes, 1)),
            ]
            row.append(format_seconds(point.seconds))
            row.append(f"{max(point.value / best - 1, 0):.1e}")
            if points is ours or not reached:
                row += ["", ""]
            else:
                row += [format_seconds(min(reached)), f"{point.seconds / min(reached):.1f}×"]
            lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def summary(results):
    """The markdown table of all problems: peers at their default tol or their last, our first point that is as good."""
    lines = [
        "| problem | passes | each | fastxent | (f - f*) / f* | peer | its time | (f - f*) / f* | faster by |",
        "|---|---:|---:|---:|---:|---|---:|---:|---:|",
    ]
    for name, (curves, best) in results.items():
        for solver, points in curves.items():
            theirs = next((point for point in points if point.tol == DEFAULT), points[-1])
            good = [mine for mine in curves[OURS] if mine.value <= theirs.value * (1 + 1e-5)]
            if solver == OURS or not good:
                continue
            mine = min(good, key=lambda point: point.seconds)
            row = [
                name,
                str(mine.passes),
                format_seconds(mine.seconds / mine.passes),
                format_seconds(mine.seconds),
            ]
            row += [f"{max(mine.value / best - 1, 0):.1e}", solver, format_seconds(theirs.seconds)]
            row += [f"{max(theirs.value / best - 1, 0):.1e}", f"{theirs.seconds / mine.seconds:.1f}×"]
            lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def picture(results, path):
    """Relative distance from f* against seconds, one panel per problem."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    columns = min(3, len(results))
    rows = -(-len(results) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(5 * columns, 3.6 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(results) :]:
        axis.remove()
    for axis, (name, (curves, best)) in zip(axes.flat, results.items(), strict=False):
        for solver, points in curves.items():
            away = [max(point.value / best - 1, 1e-12) for point in points]
            style = {"marker": "o", "lw": 2} if solver == OURS else {"marker": "s", "lw": 1, "ls": "--"}
            axis.loglog([point.seconds for point in points], away, label=solver, **style)
        axis.set(title=name, xlabel="time", ylabel="(f - f*) / f*")
        low, high = axis.get_xlim()
        subs = (1, 2, 3, 4, 6) if high < 5 * low else (1, 2, 5) if high < 50 * low else (1,)
        axis.xaxis.set_major_locator(LogLocator(subs=subs))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: duration(seconds)))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
        axis.legend(fontsize="x-small")
    figure.savefig(path, dpi=120)


def duration(seconds):
    """A round time, at a tick of an axis."""
    return f"{seconds:g} s" if seconds > 0.9 else f"{seconds * 1e3:g} ms"


def load(path):
    """Results of earlier runs, as `measure` gives them, by problem."""
    if not path.exists():
        return {}
    saved = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: ({solver: [Point(**point) for point in points] for solver, points in curves.items()}, best)
        for name, (curves, best) in saved.items()
    }


def save(results, path):
    """Write results for `load`."""
    plain = {
        name: ({solver: [asdict(point) for point in points] for solver, points in curves.items()}, best)
        for name, (curves, best) in results.items()
    }
    path.write_text(json.dumps(plain, indent=1), encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="folder of the results")
    parser.add_argument(
        "--only", nargs="*", default=[""], metavar="PART", help="problems whose name has one of these"
    )
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    chosen = [name for name in PROBLEMS if any(part.lower() in name.lower() for part in arguments.only)]
    if not chosen:
        parser.error(f"no problem has one of {arguments.only} in its name; there are: {', '.join(PROBLEMS)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    points = arguments.out / "curves.json"
    results = load(points)
    for name in chosen:
        results[name] = measure(PROBLEMS[name](), arguments.rounds)
        print(table(name, *results[name]), flush=True)
        save(results, points)
    results = {name: results[name] for name in PROBLEMS if name in results}
    tables = [summary(results), *(table(name, *result) for name, result in results.items())]
    (arguments.out / "curves.md").write_text("\n".join(tables), encoding="utf-8")
    picture(results, arguments.out / "curves.png")


if __name__ == "__main__":
    main()
