"""Logistic regression on rows that are made anew for every pass: more data than memory, and what memory it took.

    python benchmarks/out_of_core.py --gigabytes 20 --limit 2

`--limit` bounds the address space of the process beyond what it has after its imports: a fit that held the data would
end in a MemoryError.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from fastxent import LogisticRegression

FEATURES, CLASSES = 250, 5


def make_blocks(n_blocks, rows, counts):
    """A callable that yields the same float32 blocks at each call."""
    truth = np.random.default_rng(0).normal(size=(FEATURES, CLASSES)).astype(np.float32) / 8

    def blocks():
        counts.append(0)
        for number in range(n_blocks):
            rng = np.random.default_rng([1, number])
            X = rng.standard_normal((rows, FEATURES), dtype=np.float32)
            y = (X @ truth + rng.gumbel(size=(rows, CLASSES)).astype(np.float32)).argmax(axis=1)
            counts[-1] += X.nbytes
            yield X, y

    return blocks, truth


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rows", type=int, default=100_000, help="per block; 100000 are 0.1 GB")
    parser.add_argument("--limit", type=float, default=2.0, help="gigabytes of memory")
    parser.add_argument("--max-iter", type=int, default=20)
    parser.add_argument("--tol", type=float, default=1e-4)
    given = parser.parse_args()
    n_blocks = max(round(given.gigabytes * 1e9 / (given.rows * FEATURES * 4)), 1)
    with open("/proc/self/statm") as statm:
        there = int(statm.read().split()[0]) * resource.getpagesize()
    bound = there + int(given.limit * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    counts = []
    blocks, truth = make_blocks(n_blocks, given.rows, counts)
    start = time.perf_counter()
    model = LogisticRegression(tol=given.tol, max_iter=given.max_iter).fit(blocks)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = model.opt_result_
    error = np.abs(
        (model.coef_ - model.coef_.mean(axis=0)).T - (truth - truth.mean(axis=1, keepdims=True))
    ).max()
    print(f"data: {counts[0] / 1e9:.2f} GB in {n_blocks} blocks, {n_blocks * given.rows} rows x {FEATURES}")
    print(
        f"passes: {len(counts)}, {sum(counts) / seconds / 1e9:.2f} GB/s with the making of the data, {seconds:.0f} s"
    )
    print(f"peak resident memory: {peak / 1e9:.2f} GB, limit {given.limit} GB beyond the imports")
    print(f"{result.status}: objective {result.fun:.9g}, max |gradient| {result.grad_max:.2g}")
    print(f"largest error of a coefficient: {error:.4f}")


if __name__ == "__main__":
    main()
