"""Run the suite on the user's machine: every case checked, then timed; what fails is kept with its reason.

`tasks` lists what there is to do, `run_suite` does it and gives a document of plain values, ready for JSON.
"""

from __future__ import annotations

import datetime
import functools
import importlib.util
import os
import platform
import subprocess
import sys
import time
import timeit
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from .._backend import describe
from ._cases import (
    LONG,
    PEERS,
    SHAPES,
    TIMED,
    Answer,
    Case,
    Copies,
    Problem,
    available_memory,
    cases,
    check,
    installed,
    prepare,
    problem,
)
from ._cases import num_threads as all_threads
from ._fits import Fit, data_folder, fits, limited, load_fit_data, prepare_fit, quality
from ._tables import Row

# What `--quick` times: fused and float32, one shape of few, of many and of very many classes, and the binary loss.
QUICK = {"softmax": ((1_600_000, 10), (16_384, 1_000), (512, 32_768)), "bce": ((16_777_216, 1),)}
STATEMENTS = ("pass", "import numpy", "import fastxent", "import sklearn.linear_model")

# What takes long is noise-free enough for few rounds: so many up to so many seconds, one beyond.
ROUNDS = {0.3: 7, 2.0: 3}


class Skipped(Exception):
    """A case that cannot run here; the message says why."""


@dataclass(frozen=True)
class Task:
    """A name, what kind of row it gives, who computes, and the function that makes the row."""

    what: str
    name: str
    library: str
    run: Callable[[], Row]


# ---- rows, for both faces


def rounds_of(run: Callable[[], Answer]) -> int:
    """How often to time a function, from one run of it."""
    start = time.perf_counter()
    run()
    return _rounds(time.perf_counter() - start)


def _rounds(seconds: float) -> int:
    return next((rounds for most, rounds in ROUNDS.items() if seconds < most), 1)


def kernel_row(case: Case, errors: dict[str, float], copies: Copies, seconds: float, threads: int) -> Row:
    """What a timed kernel tells the report."""
    copied_by, copy_seconds = copies.best()
    return {
        "what": "kernel",
        **asdict(case),
        **errors,
        "threads": threads,
        "bytes": case.traffic,
        "gb_per_s": case.traffic / seconds / 1e9,
        "copy_seconds": copy_seconds,
        "copied_by": copied_by,
        "copies": seconds / copy_seconds,
    }


def import_command(statement: str) -> list[str]:
    """A fresh interpreter that runs one statement."""
    return [sys.executable, "-c", statement]


def reason_to_skip(case: Case) -> str | None:
    """Why a case cannot run on this machine, None where it can."""
    if case.memory > available_memory():
        return f"needs {case.memory / 2**30:.1f} GiB of memory"
    if case.peer == "torch-compile":
        spec = importlib.util.find_spec("torch")
        if spec is not None and " " in (spec.origin or ""):
            return "torch.compile gives its compiler unquoted paths, and PyTorch's folder has a blank in it"
    return None


# ---- what there is to do


def call_cases() -> list[Case]:
    """What a call costs when there is next to nothing to compute."""
    return [
        Case("softmax", "fused", 8, 10, "float32", peer) for peer in installed() if peer != "torch-compile"
    ]


def kernel_cases(*, quick: bool = False, shapes: Iterable[tuple[int, ...]] | None = None) -> list[Case]:
    """The kernel cases of the suite, or of the caller's own shapes; with ``quick`` the main part of either.

    The loss in float32, and with its gradient in float64 and float32; the peers of `LONG` in the last alone.

    Parameters
    ----------
    quick : bool
        Loss and gradient in float32 only, without those of `LONG`: torch.compile and fastxent's own NumPy twin.
        The suite then has the shapes of `QUICK`.
    shapes : iterable of tuple of int, default=None
        ``(rows, classes)`` for softmax, ``(rows,)`` for binary cross-entropy.

    Examples
    --------
    >>> sorted({case.shape for case in kernel_cases(shapes=[(64, 10), (1000,)], quick=True)})
    ['1000', '64x10']
    """
    if shapes is not None:
        own: dict[str, list[tuple[int, int]]] = {"softmax": [], "bce": []}
        for shape in dict.fromkeys(shapes):
            own["softmax" if len(shape) == 2 else "bce"].append(
                (shape[0], shape[-1] if len(shape) == 2 else 1)
            )
        chosen = cases(own)
    else:
        chosen = cases(QUICK if quick else SHAPES)
    if quick:
        chosen = [case for case in chosen if (case.mode, case.dtype) == TIMED[-1] and case.peer not in LONG]
    return chosen


def tasks(*, quick: bool = False, shapes: Iterable[tuple[int, ...]] | None = None) -> list[Task]:
    """Everything that a run of the suite does, in order; with ``shapes`` the kernels alone."""
    threads = all_threads()
    # Neighbouring cases share their data; two need not fit into memory.
    problem_of = functools.lru_cache(maxsize=1)(problem)
    todo = [
        Task(
            "kernel",
            case.name,
            PEERS[case.peer].label,
            functools.partial(_time_kernel, case, problem_of, threads),
        )
        for case in kernel_cases(quick=quick, shapes=shapes)
    ]
    if shapes is not None:
        return todo
    todo += [
        Task("call", case.name, PEERS[case.peer].label, functools.partial(_time_call, case, threads))
        for case in call_cases()
    ]
    todo += [
        Task(
            "import",
            statement,
            "fastxent" if "fastxent" in statement else "Python",
            functools.partial(_time_import, statement),
        )
        for statement in STATEMENTS
    ]
    folder = data_folder()
    have_mnist = folder is not None and (folder / "mnist.npz").is_file()
    data = ("digits",) if quick else ("digits", "planted", *(["mnist"] if have_mnist else []))
    load = functools.lru_cache(maxsize=1)(load_fit_data)
    return todo + [
        Task("fit", fit.name, fit.library, functools.partial(_time_fit, fit, load)) for fit in fits(data)
    ]


def _time_kernel(case: Case, problem_of: Callable[..., Problem], threads: int) -> Row:
    reason = reason_to_skip(case)
    if reason is not None:
        raise Skipped(reason)
    made = problem_of(case.kind, case.rows, case.classes, case.dtype)
    run = prepare(case, made, threads)
    errors = check(made, run())  # also a warm-up, in which some compile
    rounds = rounds_of(run)
    copies = Copies(made.logits, threads)
    try:
        times = []
        for _ in range(rounds):
            copies.run()
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        seconds = median(times)
        return {**kernel_row(case, errors, copies, seconds, threads), "median": seconds, "seconds": times}
    finally:
        copies.close()


def _time_call(case: Case, threads: int) -> Row:
    made = problem(case.kind, case.rows, case.classes, case.dtype)
    run = prepare(case, made, threads)
    errors = check(made, run())
    timer = timeit.Timer(run)
    number, _ = timer.autorange()
    times = [total / number for total in timer.repeat(_rounds(0), number)]
    return {
        "what": "call",
        **asdict(case),
        **errors,
        "threads": threads,
        "median": median(times),
        "seconds": times,
    }


def _time_import(statement: str) -> Row:
    times = []
    for _ in range(_rounds(0)):
        start = time.perf_counter()
        subprocess.run(import_command(statement), capture_output=True, check=True)
        times.append(time.perf_counter() - start)
    return {"what": "import", "statement": statement, "median": median(times), "seconds": times}


def _time_fit(fit: Fit, load: Callable[[str], tuple[np.ndarray, np.ndarray]]) -> Row:
    X, y = load(fit.data)
    estimator = prepare_fit(fit)
    times: list[float] = []
    with limited(estimator, fit.threads):
        if len(y) <= 10_000:
            estimator.fit(X, y)  # the first fit loads code
        while not times or len(times) < _rounds(times[0]):
            start = time.perf_counter()
            fitted = estimator.fit(X, y)
            times.append(time.perf_counter() - start)
    return {**quality(fit, fitted, X, y), "median": median(times), "seconds": times}


# ---- the run


def machine() -> dict[str, Any]:
    """What the times depend on: processor, caches, memory, system, versions, settings of the environment.

    Examples
    --------
    >>> sorted(machine())  # doctest: +NORMALIZE_WHITESPACE
    ['caches', 'cpu', 'cpus', 'environment', 'fastxent', 'instruction_set', 'memory_gib', 'platform', 'python',
     'threads', 'versions']
    """
    told = describe()
    return {
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "threads": all_threads(),
        "instruction_set": told["cpu"].get("instruction_set", "none: compiled kernels are missing"),
        "caches": _caches(),
        "memory_gib": _memory_gib(),
        "platform": told["platform"],
        "python": told["python"],
        "fastxent": told["fastxent"],
        "versions": told["versions"],
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(("OMP_", "MKL_", "OPENBLAS_", "NUMBA_")) or name in ("FASTXENT_ISA",)
        },
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _caches() -> dict[str, str]:
    """Sizes of the first processor's data caches, such as ``{"L1": "32K", "L2": "1024K"}``, as Linux tells them."""
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction":
            found[f"L{level}"] = size
    return found


def _memory_gib() -> float | None:
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
    return round(pages * size / 2**30, 1)


def run_suite(todo: list[Task], command: str, step: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Do the tasks, one after the other.

    Parameters
    ----------
    todo : list of Task
    command : str
        What the user typed, for the page.
    step : callable, default=None
        Called with a name before each task and once, with ``""``, at the end.

    Returns
    -------
    dict
        ``command``, ``date``, ``seconds``, ``machine``, ``rows``; ``failed`` and ``skipped``, lists of
        ``{"name", "library", "reason"}``; and ``interrupted``: Ctrl-C ends the run and keeps what there is.
    """
    start = time.perf_counter()
    document: dict[str, Any] = {
        "command": command,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": 0.0,
        "machine": machine(),
        "rows": [],
        "failed": [],
        "skipped": [],
        "interrupted": False,
    }
    try:
        for task in todo:
            if step is not None:
                step(task.name)
            _do(task, document)
        if step is not None:
            step("")
    except KeyboardInterrupt:
        document["interrupted"] = True
    document["seconds"] = round(time.perf_counter() - start, 1)
    return document


def _do(task: Task, document: dict[str, Any]) -> None:
    about = {"name": task.name, "library": task.library}
    try:
        with warnings.catch_warnings():
            # A peer's deprecations, and trainings that are stopped after a few epochs on purpose.
            warnings.simplefilter("ignore")
            document["rows"].append({"name": task.name, **task.run()})
    except Skipped as skipped:
        document["skipped"].append({**about, "reason": str(skipped)})
    except Exception as error:  # a peer may raise anything; the others go on
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0] if lines else 'without a message'}"
        document["failed"].append({**about, "reason": reason})
