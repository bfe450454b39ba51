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
            rng = np.random.Generator(np.random.SFC64([1, number]))
            X = rng.random(
                (rows, FEATURES), dtype=np.float32
            )  # uniform: a normal number costs three times as much
            X *= 12**0.5
            X -= 3**0.5
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
    parser.add_argument("--verbose", action="store_true", help="print every iteration")
    given = parser.parse_args()
    n_blocks = max(round(given.gigabytes * 1e9 / (given.rows * FEATURES * 4)), 1)
    with open("/proc/self/statm") as statm:
        there = int(statm.read().split()[0]) * resource.getpagesize()
    bound = there + int(given.limit * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    counts = []
    blocks, truth = make_blocks(n_blocks, given.rows, counts)
    start, worked = time.perf_counter(), time.process_time()
    model = LogisticRegression(tol=given.tol, max_iter=given.max_iter, verbose=2 * given.verbose).fit(blocks)
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = model.opt_result_
    error = np.abs(
        (model.coef_ - model.coef_.mean(axis=0)).T - (truth - truth.mean(axis=1, keepdims=True))
    ).max()
    print(f"data: {counts[0] / 1e9:.2f} GB in {n_blocks} blocks, {n_blocks * given.rows} rows x {FEATURES}")
    print(
        f"passes: {len(counts)} in {seconds:.0f} s by the clock, {worked:.0f} s of processor time, making the data too"
    )
    print(
        f"one pass: {seconds / len(counts):.1f} s by the clock, {worked / len(counts):.1f} s of processor time"
    )
    print(f"peak resident memory: {peak / 1e9:.2f} GB, limit {given.limit} GB beyond the imports")
    print(f"{result.status}: objective {result.fun:.9g}, max |gradient| {result.grad_max:.2g}")
    print(f"largest error of a coefficient: {error:.4f}")


if __name__ == "__main__":
    main()
