"""When benchmarks are timed, on which data, and what they have in common.

Only options that ask for timing turn it on (``--benchmark-only``, ``--benchmark-enable``,
``--benchmark-json`` and those that save); any other run of pytest does each case once, small, and checks the
answer.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from fastxent import _bench

ASKING = ("only", "enable", "json", "save", "autosave", "compare", "histogram", "cprofile")
DATA = Path(os.environ.get("FASTXENT_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    if not any(getattr(config.option, f"benchmark_{name}", None) for name in ASKING):
        config.option.benchmark_disable = True


@pytest.fixture(scope="session")
def timed(request):
    """Whether this run keeps time, and so runs at full size."""
    option = request.config.option
    return option.benchmark_enable or not option.benchmark_disable


@pytest.fixture(scope="session")
def threads():
    return _bench.num_threads()


@pytest.fixture(scope="session")
def problem():
    """`_bench.problem`, keeping the latest: neighbouring cases share theirs; two need not fit into memory."""
    return lru_cache(maxsize=1)(_bench.problem)


@pytest.fixture(scope="session")
def mnist():
    path = DATA / "mnist.npz"
    if not path.exists():
        pytest.skip("MNIST is not there: set FASTXENT_DATA to the folder of mnist.npz")
    with np.load(path) as archive:
        X, y = archive["x_train"], archive["y_train"]
    return X.reshape(len(X), -1).astype(np.float32) / 255, y.astype(int)
