"""A layer of a million classes split over Dask's workers: time, memory, and the error against float64.

    python benchmarks/split_classes.py --classes 1000000 --features 64 --rows 2000 --workers 2 --chunks 40

The weights, float32, are made on the workers and stay there.  The oracle is NumPy in float64 in this process, from the
same weights chunk by chunk: the losses of all rows, dX of some rows and dW of some classes.
"""

from __future__ import annotations

import argparse
import os
import resource
import time

import dask
import dask.array as da
import numpy as np
from dask.distributed import Client, LocalCluster, wait

from fastxent.dask import linear_cross_entropy_with_grad

_SOME = 50  # rows and classes whose gradients are compared


def peak():
    """Largest resident memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def oracle(X, W, y):
    """Mean loss, dX of the first rows and dW of the labels of the first rows, in float64."""
    X, n = X.astype(np.float64), len(X)
    parts = [W.blocks[0, i] for i in range(W.numblocks[1])]
    starts = np.cumsum([0, *W.chunks[1]])
    top, total, true = np.full(n, -np.inf), np.zeros(n), np.empty(n)
    for part, start in zip(parts, starts, strict=False):
        w = part.compute().astype(np.float64)
        Z = X @ w
        here = (y >= start) & (y < start + w.shape[1])
        true[here] = Z[here, y[here] - start]
        high = np.maximum(top, Z.max(axis=1))
        total = total * np.exp(top - high) + np.exp(Z - high[:, None]).sum(axis=1)
        top = high
    lse = top + np.log(total)
    dX, dW = np.zeros((_SOME, X.shape[1])), np.empty((X.shape[1], _SOME))
    for part, start in zip(parts, starts, strict=False):
        w = part.compute().astype(np.float64)
        P = np.exp(X[:_SOME] @ w - lse[:_SOME, None])
        here = np.flatnonzero((y[:_SOME] >= start) & (y[:_SOME] < start + w.shape[1]))
        P[here, y[here] - start] -= 1
        dX += P @ w.T / n
        p = np.exp(X @ w[:, y[here] - start] - lse[:, None]) - (y[:, None] == y[here])
        dW[:, here] = X.T @ p / n
    return float((lse - true).mean()), dX, dW


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--chunks", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    n, d, K = given.rows, given.features, given.classes
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(n, d)).astype(np.float32), rng.integers(0, K, n)
    cluster = LocalCluster(
        n_workers=given.workers, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    )
    with cluster, Client(cluster) as client:
        made = da.random.default_rng(0).normal(0, 0.3, (d, K), chunks=(d, -(-K // given.chunks)))
        W = made.astype(np.float32).persist()
        wait(W)
        before = max(client.run(peak).values())
        times = []
        for _ in range(given.repeats):
            start = time.perf_counter()
            results = dask.persist(*linear_cross_entropy_with_grad(X, W, y)[:3])
            wait(results)
            times.append(time.perf_counter() - start)
        loss, dX, dW = results
        after = max(client.run(peak).values())
        print(
            f"{n} rows, {d} features, {K} classes in {W.numblocks[1]} chunks, float32, {os.cpu_count()} cores"
        )
        print(
            f"loss, dX and dW: {np.median(times):.1f} s (median of {given.repeats}) on {given.workers} workers of one "
            f"thread; all logits at once would be {4e-9 * n * K:.1f} GB"
        )
        print(f"largest worker: {after:.2f} GB at its peak, {before:.2f} GB with its weights before")
        labels = y[:_SOME]
        found = (float(loss.compute()), dX[:_SOME].compute(), dW[:, labels].compute())
        for name, got, want in zip(("loss", "dX", "dW"), found, oracle(X, W, y), strict=True):
            error = np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max()
            print(f"{name}: largest error {error:.1e} of the largest entry")


if __name__ == "__main__":
    main()
