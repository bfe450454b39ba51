"""When benchmarks are timed, on which data, and what they have in common.

Only options that ask for timing turn it on (``--benchmark-only``, ``--benchmark-enable``,
``--benchmark-json`` and those that save); any other run of pytest does each case once, small, and checks the
answer.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest

from fastxent import _bench

ASKING = ("only", "enable", "json", "save", "autosave", "compare", "histogram", "cprofile")


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
def folder():
    """Where mnist.npz may be: FASTXENT_DATA, else ../shared/data beside the checkout."""
    return _bench.data_folder() or Path(__file__).resolve().parents[2] / "shared" / "data"
