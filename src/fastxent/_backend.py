"""Name to layer-0 module. No mathematics here.

A backend that is asked for by name and cannot load raises; only "auto" chooses.
"""

import functools
import importlib
import importlib.metadata
import platform
import sys

from . import _core_numpy

try:
    from . import _core
except ImportError as error:
    if getattr(error, "name", None) != f"{__package__}._core" and "_core" not in str(error):
        raise  # an extension that is there and fails (an unknown FASTXENT_ISA, say) must say so
    _core = None
    _why = str(error)

NAMES = ("auto", "numpy", "cpu", "cuda")
DEFAULT = _core_numpy if _core is None else _core


def choose(name):
    """Layer-0 module for a backend name; None and "auto" give the fastest that reads CPU arrays.

    Raises
    ------
    ValueError
        Unknown name.
    ImportError
        Known name whose module cannot load, or that has no device; the message says what to install.
    """
    if name is None or name == "auto":
        return DEFAULT
    if name == "numpy":
        return _core_numpy
    if name == "cpu":
        if _core is None:
            raise ImportError(f"backend='cpu': the compiled extension cannot load: {_why}")
        return _core
    if name == "cuda":
        return _cuda()
    raise ValueError(f"backend: expected one of {', '.join(map(repr, NAMES))} or None, got {name!r}")


@functools.cache
def _cuda():
    """The CUDA kernels, if they and a device are there; imported when they are first asked for."""
    try:
        core = importlib.import_module("._core_cuda", __package__)
        cuda = importlib.import_module("numba.cuda")
        if getattr(cuda, "implementation", None) != "NVIDIA":
            raise ImportError("numba is installed without it")
    except ImportError as error:
        raise ImportError(
            f"backend='cuda' needs numba-cuda: pip install 'fastxent[cuda]' ({error})"
        ) from error
    if not cuda.is_available():
        why = str(cuda.cuda_error() or "the driver reports none").strip().splitlines()[0]
        raise ImportError(f"backend='cuda' needs an NVIDIA GPU and its driver, and there is none: {why}")
    return core


def default_threads():
    """Threads where the caller names no number: OMP_NUM_THREADS, CPU affinity or cgroup quota, whichever is least."""
    return 1 if _core is None else _core.info()["num_threads"]


@functools.cache
def _version(distribution):
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe():
    """Versions, instruction set, threads and backends, as a dictionary of plain values."""
    names = (
        "numpy",
        "scipy",
        "scikit-learn",
        "threadpoolctl",
        "cython",
        "numba",
        "numba-cuda",
        "torch",
        "xgboost",
    )
    names += ("lightgbm", "dask", "matplotlib")
    return {
        "fastxent": _version("fastxent"),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "backends": ["numpy"] if _core is None else ["cpu", "numpy"],
        "cpu": {"available": False, "reason": _why} if _core is None else {"available": True, **_core.info()},
        "versions": {name: version for name in names if (version := _version(name)) is not None},
    }


def show_versions():
    """Print what a bug report needs: versions, instruction set, threads, backends.

    Examples
    --------
    >>> import fastxent as fx
    >>> fx.show_versions()  # doctest: +ELLIPSIS
    fastxent...
    """
    d = describe()
    width = 22
    print(f"{'fastxent':<{width}}{d['fastxent']}")
    print(f"{'python':<{width}}{d['python']}")
    print(f"{'platform':<{width}}{d['platform']}")
    print(f"{'backends':<{width}}{', '.join(d['backends'])}")
    for key, value in d["cpu"].items():
        print(f"{'cpu ' + key:<{width}}{', '.join(value) if isinstance(value, (list, tuple)) else value}")
    for key, value in d["versions"].items():
        print(f"{key:<{width}}{value}")
