"""Training epochs of the network on a memory-mapped ``.npy`` file beside the same rows in memory, taking turns.

    python benchmarks/mapped.py --rows 240000 --features 784

The file is written to a temporary folder first, so that most of it waits in the system's cache, as a file does that was
read before. Batches of 64, 256 and 1024 rows, 256 hidden units, Adam.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
from sklearn.exceptions import ConvergenceWarning

import fastxent as fx

BATCHES = (64, 256, 1024)


def epoch_seconds(X, y, batch_size):
    """Seconds of a fit of one epoch."""
    model = fx.MLPClassifier((256,), batch_size=batch_size, max_iter=1, random_state=0)
    start = perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # one epoch on purpose
        model.fit(X, y)
    return perf_counter() - start


def compare(rows, features, rounds=3):
    """Median seconds (in memory, mapped) by batch size."""
    rng = np.random.default_rng(0)
    X, y = rng.random((rows, features), dtype=np.float32), rng.integers(0, 10, rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "X.npy"
        np.save(path, X)
        mapped = np.load(path, mmap_mode="r")
        taken = {}
        for batch_size in BATCHES:
            turns = [[epoch_seconds(data, y, batch_size) for data in (X, mapped)] for _ in range(rounds)]
            taken[batch_size] = tuple(map(median, zip(*turns, strict=True)))
        del mapped  # Windows removes no file that is mapped
    return taken


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=240_000)
    parser.add_argument("--features", type=int, default=784)
    arguments = parser.parse_args()
    print("| batch | in memory, s an epoch | mapped, s | times as long |\n| --- | --- | --- | --- |")
    for batch_size, (memory, mapped) in compare(arguments.rows, arguments.features).items():
        print(f"| {batch_size} | {memory:.2f} | {mapped:.2f} | {mapped / memory:.2f} |")


if __name__ == "__main__":
    main()
