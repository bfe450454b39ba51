"""Time per evaluation of `fastxent.dask.LogisticRegression`: measured on loopback beside the model of docs/scaling.md.

python benchmarks/scaling.py --rows 100000 --features 100 --classes 10 --workers 1 2
"""

from __future__ import annotations

import argparse
import os
import time

import dask.array as da
import numpy as np
from dask.distributed import Client, LocalCluster

from fastxent import linear
from fastxent._blocks import BlockObjective, Recipe
from fastxent.dask._sources import open_source


def model(rows, features, classes, workers, seconds_per_entry, latency, per_worker, bandwidth):
    """Seconds per evaluation; see docs/scaling.md."""
    outputs = 1 if classes == 2 else classes
    compute = seconds_per_entry * rows * features * outputs / workers
    message = 8 * outputs * (features + 1)  # float64 coefficients there, float64 sums back
    return compute + latency + per_worker * workers + 2 * workers * message / bandwidth


def timed(function, repeats):
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def collections(rows, features, classes, parts):
    """Random rows, made on the workers."""
    rng = da.random.default_rng(0)
    X = rng.normal(size=(rows, features), chunks=(-(-rows // parts), features))
    y = rng.integers(0, classes, rows, chunks=X.chunks[0])
    return X, y


def evaluation(client, rows, features, classes, parts, repeats):
    """Median seconds of an evaluation over a cluster."""
    X, y = collections(rows, features, classes, parts)
    with open_source(X, y, None, client, 1) as source:
        survey = source.survey()
        recipe = Recipe(survey.classes, None, None, 0.0, None)
        objective = BlockObjective(source, survey, recipe)
        source.prepare(recipe)
        W, b = np.zeros(objective.shape), np.zeros(objective.shape[1])
        return timed(lambda: objective.loss_grad(W, b), repeats)


def local(rows, features, classes, repeats):
    """Median seconds of an evaluation on one thread of this machine, without Dask."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(rows, features)), rng.integers(0, classes, rows)
    recipe = Recipe(np.arange(classes), None, None, 0.0, None)
    objective = recipe.objective(0, (X, y, None))
    W, b = np.zeros(objective.shape), np.zeros(objective.shape[1])
    with linear.Team(objective, 1) as team:
        return timed(lambda: objective.loss_grad(W, b, team), repeats)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000, help="per worker (weak scaling)")
    parser.add_argument("--features", type=int, default=100)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=20)
    given = parser.parse_args()
    rows, features, classes = given.rows, given.features, given.classes
    outputs = 1 if classes == 2 else classes
    alone = local(rows, features, classes, given.repeats)
    per_entry = alone / (rows * features * outputs)
    print(f"{os.cpu_count()} cores; one thread without Dask: {1e3 * alone:.2f} ms for {rows} rows")
    floors, wide, times = {}, {}, {}
    for workers in given.workers:
        cluster = LocalCluster(
            n_workers=workers, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
        )
        with cluster, Client(cluster) as client:
            floors[workers] = evaluation(client, 64 * workers, 4, classes, workers, given.repeats)
            wide[workers] = evaluation(client, 64 * workers, 20_000, classes, workers, given.repeats)
            times[workers] = evaluation(client, rows * workers, features, classes, 4 * workers, given.repeats)
    # The rounds without data give latency and what a worker adds; wide ones without rows the bandwidth.
    few, many = min(floors), max(floors)
    per_worker = (floors[many] - floors[few]) / (many - few) if many > few else 0.0
    latency = floors[few] - per_worker * few
    sent = 2 * 8 * outputs * 20_000 * many
    bandwidth = sent / max(wide[many] - floors[many] - 64 * 20_000 * outputs * per_entry, 1e-9)
    print(
        f"latency {1e3 * latency:.2f} ms + {1e3 * per_worker:.2f} ms per worker, {bandwidth / 1e6:.0f} MB/s"
    )
    print("| workers | rows | measured ms | model ms | overhead ms |")
    print("|---:|---:|---:|---:|---:|")
    for workers, seconds in times.items():
        expected = model(
            rows * workers, features, classes, workers, per_entry, latency, per_worker, bandwidth
        )
        over = 1e3 * (seconds - alone)
        print(f"| {workers} | {rows * workers} | {1e3 * seconds:.2f} | {1e3 * expected:.2f} | {over:.2f} |")


if __name__ == "__main__":
    main()
