"""Time per evaluation of `fastxent.dask.LogisticRegression`: measured on loopback beside the model of docs/scaling.md.

python benchmarks/scaling.py --rows 25000 100000 200000 --features 100 --classes 10 --workers 1 2
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from typing import NamedTuple

import dask.array as da
import numpy as np
from dask.distributed import Client, LocalCluster

from fastxent._blocks import BlockObjective, Recipe
from fastxent.dask._sources import open_source

_WIDE = 20_000  # features of the messages that give the bandwidth


class Costs(NamedTuple):
    """What the model knows of a cluster; see docs/scaling.md.

    Attributes
    ----------
    work : dict
        Number of workers to the seconds per multiplication of one of them while all work: c.
    fixed : float
        Seconds per evaluation whatever the data: a.
    worker : float
        Seconds that asking one worker adds: b.
    bandwidth : float
        Bytes per second at the client: B.
    """

    work: dict
    fixed: float
    worker: float
    bandwidth: float


def model(costs, rows, features, classes, workers):
    """Seconds per evaluation; see docs/scaling.md."""
    outputs = 1 if classes == 2 else classes
    message = 8 * outputs * (features + 1)  # float64 coefficients there, float64 sums back
    computing = costs.work[workers] * rows * features * outputs / workers
    return computing + costs.fixed + costs.worker * workers + 2 * workers * message / costs.bandwidth


class Timed(Recipe):
    """A recipe whose sums have one more entry: the seconds that the workers computed, added up."""

    @staticmethod
    def run(number, objective, method, args, num_threads):
        start = time.perf_counter()
        sums = Recipe.run(number, objective, method, args, num_threads)
        return (*sums, time.perf_counter() - start)


def evaluation(stack, client, rows, features, classes, parts):
    """A function that evaluates once over the cluster and returns its seconds, and those a worker computed."""
    rng = da.random.default_rng(0)
    X = rng.normal(size=(rows, features), chunks=(-(-rows // parts), features))
    y = rng.integers(0, classes, rows, chunks=X.chunks[0])
    source = stack.enter_context(open_source(X, y, None, client, 1))
    survey = source.survey()
    recipe = Timed(np.arange(classes), None, None, 0.0, None)
    source.prepare(recipe)
    shape = BlockObjective(source, survey, recipe).shape
    W, b, workers = np.zeros(shape), np.zeros(shape[1]), len(client.nthreads())

    def evaluate():
        start = time.perf_counter()
        *_, computed = source.total("loss_grad", W, b)
        return time.perf_counter() - start, computed / workers

    return evaluate


def measured(given, workers):
    """Median seconds (whole, computed) of an evaluation: without data, with a wide message, and by rows per worker."""
    cluster = LocalCluster(
        n_workers=workers, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    )
    with cluster, Client(cluster) as client, contextlib.ExitStack() as stack:
        cases = {
            "idle": (64 * workers, given.features, workers),
            "wide": (64 * workers, _WIDE, workers),
            **{rows: (rows * workers, given.features, 4 * workers) for rows in given.rows},
        }
        calls = {
            name: evaluation(stack, client, rows, features, given.classes, parts)
            for name, (rows, features, parts) in cases.items()
        }
        # In turns, so that a busy spell of the machine meets all cases.
        times = [{name: call() for name, call in calls.items()} for _ in range(given.repeats + 2)][2:]
        return {name: np.median([turn[name] for turn in times], axis=0) for name in cases}


def costs_of(found, given):
    """`Costs` from the evaluations without data, the wide ones, and those of the middle number of rows."""
    few, many = min(found), max(found)
    outputs = 1 if given.classes == 2 else given.classes
    free = {w: times["idle"][0] - times["idle"][1] for w, times in found.items()}
    sent = 2 * 8 * outputs * many
    wide = found[many]["wide"][0] - found[many]["wide"][1] - free[many]
    bandwidth = sent * (_WIDE - given.features) / max(wide, 1e-9)
    # The messages of the evaluations without data are not part of the fixed cost.
    free = {w: seconds - sent * w / many * (given.features + 1) / bandwidth for w, seconds in free.items()}
    worker = (free[many] - free[few]) / (many - few) if many > few else 0.0
    rows = sorted(given.rows)[len(given.rows) // 2]
    work = {w: times[rows][1] / (rows * given.features * outputs) for w, times in found.items()}
    return Costs(work, free[few] - worker * few, worker, bandwidth)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[25_000, 100_000, 200_000], help="per worker")
    parser.add_argument("--features", type=int, default=100)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=40)
    given = parser.parse_args()
    found = {workers: measured(given, workers) for workers in given.workers}
    costs = costs_of(found, given)
    print(f"{os.cpu_count()} cores, {given.features} features, {given.classes} classes, float64")
    for workers, work in costs.work.items():
        print(f"c = {1e9 * work:.4f} ns with {workers} working")
    print(
        f"a = {1e3 * costs.fixed:.2f} ms, b = {1e3 * costs.worker:.2f} ms, B = {costs.bandwidth / 1e6:.0f} MB/s"
    )
    print("| workers | rows | measured ms | model ms | computed by a worker ms | the rest ms |")
    print("|---:|---:|---:|---:|---:|---:|")
    for workers, times in found.items():
        for per_worker in ("idle", *given.rows):
            rows = 64 * workers if per_worker == "idle" else per_worker * workers
            whole, computed = 1e3 * times[per_worker]
            expected = 1e3 * model(costs, rows, given.features, given.classes, workers)
            row = f"{whole:.1f} | {expected:.1f} | {computed:.1f} | {whole - computed:.1f}"
            print(f"| {workers} | {rows} | {row} |")


if __name__ == "__main__":
    main()
