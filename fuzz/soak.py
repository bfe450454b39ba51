"""Random calls for a long time: the same bits for the same bytes, and no growth of memory.

`python fuzz/soak.py SECONDS [SEED]`. Cases of the fuzzer, chosen by a seeded generator, in rounds; every round is the
same calls, and a digest of all answers must be the same in each. Besides them a round fits, saves and loads small
models and makes one large result, whose memory waits to be used again (`fastxent._memory`). Resident memory is read
after each round; its slope over the second half of the rounds, per call, may be no more than MOST_BYTES_PER_CALL.
"""

import gc
import hashlib
import os
import sys
import tempfile
import time
import warnings

import cases
import numpy as np

import fastxent as fx

CALLS = 600  # of a round
WARM_UP = 3  # rounds: imports, caches of NumPy and of the C library, memory that waits
MOST_BYTES_PER_CALL = 8.0


def resident():
    """Bytes of this process in memory, from Linux's own account of its pages."""
    gc.collect()
    with open("/proc/self/smaps_rollup", encoding="ascii") as file:
        sizes = dict(line.split()[:2] for line in file if line.startswith(("Rss:", "LazyFree:")))
    return (int(sizes["Rss:"]) - int(sizes["LazyFree:"])) * 1024


def large(digest):
    """A result of 64 MB, more than one thread's work, in memory used again."""
    z = np.broadcast_to(np.linspace(-3, 3, 1024, dtype=np.float32), (16384, 1024))
    loss, grad = fx.softmax_cross_entropy_with_grad(z, np.arange(16384) % 1024)
    digest.update(repr(loss).encode() + grad[::1000].tobytes())


def models(digest):
    """Fits, files, predictions."""
    X = np.random.default_rng(1).standard_normal((200, 8))
    y = X[:, :3].argmax(axis=1)
    made = (
        fx.LogisticRegression(),
        fx.LogisticRegression(solver="saga", max_iter=5, random_state=0),
        fx.MLPClassifier((16,), max_iter=3, random_state=0),
        fx.TemperatureScaling(),
    )
    for model in made:
        model.fit(X[:, :3] if isinstance(model, fx.TemperatureScaling) else X, y)
        with tempfile.TemporaryDirectory() as folder:
            model.save(os.path.join(folder, "model"))
            again = fx.load(os.path.join(folder, "model"))
        shown = X[:, : model.n_features_in_]
        digest.update(again.predict_proba(shown).tobytes() + again.predict(shown).tobytes())


def one_round(seed):
    """Digest of all answers of a round."""
    rng, digest = np.random.default_rng(seed), hashlib.sha256()
    names = list(cases.TARGETS)
    for _ in range(CALLS):
        name = names[rng.integers(len(names))]
        data = rng.integers(0, 256, 96, dtype=np.uint8).tobytes()
        digest.update(cases.run(name, data)[0])
    models(digest)
    large(digest)
    return digest.hexdigest()


def main(seconds, seed=0):
    warnings.simplefilter("ignore")
    end, first, sizes = time.monotonic() + seconds, None, []
    while time.monotonic() < end or len(sizes) < WARM_UP + 4:
        digest = one_round(seed)
        first = first or digest
        sizes.append(resident())
        print(f"round {len(sizes)}: {digest[:16]}, {sizes[-1] / 2**20:.2f} MiB", flush=True)
        if digest != first:
            return f"round {len(sizes)} gave other bits than the first, with seed {seed}"
    later = np.array(sizes[max(WARM_UP, len(sizes) // 2) :])
    slope = np.polyfit(np.arange(len(later)), later, 1)[0] / CALLS
    rounds = len(sizes)
    print(
        f"{rounds} rounds of {CALLS} calls, the same bits; memory grew by {slope:.2f} bytes a call in the second half"
    )
    if slope > MOST_BYTES_PER_CALL:
        return f"memory grows by {slope:.2f} bytes a call, at most {MOST_BYTES_PER_CALL} are allowed"
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
