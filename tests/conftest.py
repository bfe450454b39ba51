"""Fixtures shared by all tests: the layer-0 backends, the data folder, Hypothesis profiles.

Markers (declared in pyproject.toml): ``compiled`` needs the extension, ``gpu`` a CUDA device, ``simulated``
runs a CUDA kernel in Numba's simulator, ``data`` reads files of the data folder, ``slow`` takes more than
ten seconds.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# Derandomized and without a database: a red run is the same run everywhere, and the working tree stays clean.
# A busy machine is no reason to fail, so neither is a slow example.
COMMON = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("default", max_examples=40, derandomize=True, **COMMON)
settings.register_profile("thorough", max_examples=1000, **COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# What these read is not in a wheel: without the sources, beside an installed package, there is nothing for them.
SOURCES = "architecture bench compare cuda_bench cuda_peer docs examples fuzz_corpus package pages"
collect_ignore = []
if not Path(__file__).resolve().parents[1].joinpath("src").is_dir():
    collect_ignore += [f"test_{name}.py" for name in SOURCES.split()]

PASSED = "fastxent/passed"  # in pytest's cache
COMPILED = importlib.util.find_spec("fastxent._core") is not None
needs_extension = pytest.mark.skipif(not COMPILED, reason="the extension fastxent._core is not built")


def pytest_addoption(parser):
    parser.addoption(
        "--rest", action="store_true", help="leave out what passed in the last run without this option"
    )


def pytest_configure(config):
    if config.pluginmanager.has_plugin("cacheprovider") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Passed(config))


class Passed:
    """Keep the names of the tests that pass, for ``--rest``: `.ci/run` has just run them in the same tree."""

    def __init__(self, config):
        self.cache, self.rest, self.names = config.cache, config.getoption("--rest"), []

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and report.passed:
            self.names.append(report.nodeid)

    def pytest_sessionfinish(self):
        if not self.rest:
            self.cache.set(PASSED, self.names)


def pytest_collection_modifyitems(config, items):
    """Skip ``compiled`` tests where the extension is missing; test_architecture.py then fails and says so."""
    for item in items:
        if "compiled" in item.keywords:
            item.add_marker(needs_extension)
    if config.getoption("--rest"):
        passed = set(config.cache.get(PASSED, []))
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in passed])
        items[:] = [item for item in items if item.nodeid not in passed]


@pytest.fixture(scope="module", params=["numpy", pytest.param("cpu", marks=pytest.mark.compiled)])
def backend(request):
    """Name of a layer-0 backend; every test that takes it runs on each.

    Per module: for a session, pytest would put the tests of one backend before those of the other, which means into
    another process, where everything is asked of the oracle again.
    """
    return request.param


@pytest.fixture(params=["cupy", "torch"])
def put(request, monkeypatch):
    """Moves an array to a device that stands for CUDA's, in memory, as CuPy's or PyTorch's."""
    import cuda_twin

    if request.param == "torch":
        torch = pytest.importorskip("torch", reason="torch is not installed")
    cuda_twin.install(monkeypatch)
    return cuda_twin.put if request.param == "cupy" else lambda x: torch.from_numpy(np.array(x))


@pytest.fixture(scope="module", params=["float32", "float64"])
def dtype(request):
    """Compute dtype of the kernels."""
    return request.param


@pytest.fixture(scope="session")
def data_folder():
    """Folder of the data sets: the variable FASTXENT_DATA, else ../shared/data beside the checkout."""
    named = os.environ.get("FASTXENT_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no data folder {folder}: set FASTXENT_DATA to the folder that holds mnist.npz")
    return folder
