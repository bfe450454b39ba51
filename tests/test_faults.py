"""Faults from outside: no memory, no more threads, a full disk, a killed process, Ctrl-C."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import fastxent as fx
from fastxent._threads import ordered_map

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and /proc are Linux's")
SCRIPT = Path(__file__).with_name("faults.py")


def run(*arguments, timeout=300, **environment):
    """What a script in a process of its own prints."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True, text=True, timeout=timeout, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---------------------------------------------------------------------------------------------------------- memory


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.parametrize(("group", "least"), [("kernels", 35), ("estimators", 10)])
def test_out_of_memory(group, least):
    """MemoryError or the same bits, whichever allocation fails, and the process works on.

    Of 17 calls of estimators five find what little they want in memory that is theirs already.
    """
    # glibc would serve an allocation from freed memory or from a thread's reserve; OpenBLAS ends the process where its
    # own threads find no memory.
    glibc = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    lines = run(SCRIPT, "starve", group, OPENBLAS_NUM_THREADS="1", **glibc).splitlines()
    starved = [line for line in lines if ": 0 times" not in line]
    assert len(starved) >= least, "\n".join(lines)


def test_threads_that_cannot_be_had(monkeypatch):
    """The caller does their share; an error, of whichever thread, is the first item's."""
    import _thread

    def refused(*_):
        raise RuntimeError("can't start new thread")

    def lost(*_):  # the thread starts and has no memory for its first call
        return 0

    for start in (refused, lost, _thread.start_new_thread):
        monkeypatch.setattr("fastxent._threads._thread.start_new_thread", start)
        assert ordered_map(lambda x: x * x, range(300), 3) == [x * x for x in range(300)]
        assert ordered_map(abs, [], 3) == []
        for bad in ({7}, {0, 1, 2}, {299}):

            def function(x, bad=bad):
                if x in bad:
                    raise ValueError(x)
                return x

            with pytest.raises(ValueError, match=f"^{min(bad)}$"):
                ordered_map(function, range(300), 3)


def test_an_error_waits_for_the_others():
    """No thread is at work any more when the call has ended."""
    inside, active = threading.Event(), []

    def function(x):
        if x == 1:
            inside.wait(10)
            raise ValueError(x)
        active.append(x)
        inside.set()
        time.sleep(0.05)
        active.remove(x)

    with pytest.raises(ValueError, match="1"):
        ordered_map(function, range(100), 2)
    assert active == []


# ----------------------------------------------------------------------------------------------------------- files

FULL = """
import os, resource, signal, sys
import fastxent as fx
path, other = sys.argv[1:]
model = fx.load(other)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
whole = os.path.getsize(other)
before = open(path, "rb").read()
sizes = [*range(0, whole, max(whole // 20, 1)), whole - 1]
for size in sizes:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        model.save(path)
    except OSError as error:
        assert error.filename == path, error
    else:
        raise AssertionError(f"{size} of {whole} bytes were enough")
    assert open(path, "rb").read() == before
    assert sorted(os.listdir(os.path.dirname(path))) == ["model.npz", "other.npz"]
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
model.save(path)
assert open(path, "rb").read() == open(other, "rb").read()
print(len(sizes))
"""

KILLED = """
import os, signal, sys, time
import fastxent as fx
path = sys.argv[1]
models = [fx.load(name) for name in (path, sys.argv[2])]
folder = os.path.dirname(path)
whole = 0
for trial in range(25):
    child = os.fork()
    if not child:
        while True:
            for model in models:
                model.save(path)
    time.sleep(0.004 + 0.0013 * trial)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    whole += fx.load(path).C in (1.0, 2.0)
litter = [name for name in os.listdir(folder) if name not in ("model.npz", "other.npz")]
assert all(name.startswith("model.npz.") and name.endswith(".tmp") for name in litter), litter
for name in litter:  # a part of a file is never taken for one
    try:
        assert fx.load(os.path.join(folder, name)).C in (1.0, 2.0)
    except ValueError:
        pass
print(whole)
"""


@pytest.fixture
def two_files(tmp_path):
    rng = np.random.default_rng(0)
    paths = tmp_path / "model.npz", tmp_path / "other.npz"
    for C, path in zip((1.0, 2.0), paths, strict=True):
        model = fx.LogisticRegression(C=C).fit(rng.standard_normal((40, 3000)), np.arange(40) % 10)
        model.save(path)
    return paths


def test_disk_full_while_saving(two_files):
    """Wherever the space ends: an OSError that names the file, which is as it was, and nothing lies beside it."""
    assert (
        int(run("-c", FULL, *two_files)) > 20
    )  # places where the space ended; the script asserts what follows each


@pytest.mark.slow
def test_killed_while_saving(two_files):
    """At any moment: one whole file or the other, and names that no pattern of models matches."""
    assert int(run("-c", KILLED, *two_files)) == 25  # whole files, one after each kill


# ---------------------------------------------------------------------------------------------------------- Ctrl-C


@pytest.mark.slow
@pytest.mark.compiled
def test_ctrl_c_everywhere():
    """Every public call ends soon after a SIGINT, with KeyboardInterrupt or the model so far."""
    lines = run(SCRIPT, "interrupt").splitlines()
    assert len(lines) >= 20
    fits = [line for line in lines if line.startswith(("LogisticRegression(", "MLPClassifier("))]
    assert sum("a partial model" in line for line in fits) >= len(fits) - 2, "\n".join(lines)


@pytest.mark.slow
@pytest.mark.compiled
def test_ctrl_c_over_dask():
    """On threads and on a cluster: fits end with the model so far or KeyboardInterrupt; nothing stays on workers."""
    pytest.importorskip("distributed")
    lines = run(SCRIPT, "interrupt", "dask").splitlines()
    assert len(lines) == 10
    assert sum("a partial model" in line for line in lines) >= 4, "\n".join(lines)


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.parametrize("pool", ["fork", "spawn", "loky", "multiprocessing", "threading"])
def test_in_pools(pool):
    """No hang after the parent has had its threads; the parent's results; no thread beyond one process's teams.

    In a process of its own: other tests' pools and threads are not counted.
    """
    most, own = map(int, run(SCRIPT, "pool", pool).split())
    # Teams of the kernels, of BLAS and of OpenMP in scikit-learn, each of a thread a core and one; joblib's own three.
    assert own < most <= own + 3 * (len(os.sched_getaffinity(0)) + 1) + 3
