"""Benchmark cases: what is computed, by whom, on how much data, and whether the answer is right.

A `Case` is a kind of loss ("softmax" on rows of logits with integer labels, "bce" on single logits), a mode
("forward": the mean loss; "fused": the mean loss and its gradient), a shape, a dtype and a peer. `problem`
makes its data, `prepare` a function without arguments that computes it (buffers are allocated and threads set
before), `check` compares the answer with float64.

The unit of time is a copy of the logits (`Copies`), the unit of traffic the least a kernel can do: read its
inputs once, write its outputs once.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from .._backend import choose
from ..losses import (
    sigmoid_cross_entropy,
    sigmoid_cross_entropy_with_grad,
    softmax_cross_entropy,
    softmax_cross_entropy_with_grad,
)

KINDS = ("softmax", "bce")
MODES = ("forward", "fused")
DTYPES = ("float32", "float64")
# What is timed of each shape; the peers of LONG, minutes of compilation or of array operations, in the last only.
TIMED = (("forward", "float32"), ("fused", "float64"), ("fused", "float32"))
LONG = ("numpy", "torch-compile")

# Full size, some 16 million numbers, more than a cache of a few cores holds; and its stand-in for untimed runs with
# the same few classes or a ragged number of many.
SHAPES: Mapping[str, Mapping[tuple[int, int], tuple[int, int]]] = {
    "softmax": {
        (8_000_000, 2): (67, 2),
        (2_400_000, 7): (67, 7),
        (1_600_000, 10): (65, 10),
        (640_000, 26): (33, 26),
        (160_000, 100): (31, 100),
        (16_384, 1_003): (9, 1_003),
        (16_384, 1_000): (8, 1_000),
        (512, 32_768): (4, 2_048),
        (320, 50_257): (3, 2_057),
        (128, 131_072): (2, 4_096),
    },
    "bce": {(16_777_216, 1): (1_031, 1)},
}

# Largest errors that count as a right answer: of the mean loss relative to it, and of an entry of
# rows · gradient, which lies in [-1, 1]. Room for sums of 131072 rounded terms, none for a wrong formula.
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}

Answer = tuple[float, Any]


@dataclass(frozen=True)
class Case:
    """One cell of the benchmark table; ``rows`` logits and ``classes`` 1 for "bce"."""

    kind: str
    mode: str
    rows: int
    classes: int
    dtype: str
    peer: str

    @property
    def shape(self) -> str:
        return f"{self.rows}x{self.classes}" if self.kind == "softmax" else str(self.rows)

    @property
    def name(self) -> str:
        """Such as ``softmax-fused-1048576x10-float32-cpu``."""
        return "-".join((self.kind, self.mode, self.shape, self.dtype, self.peer))

    @property
    def traffic(self) -> int:
        """Bytes that must move: inputs and gradient once; labels are int64, bce's targets like the logits."""
        size = np.dtype(self.dtype).itemsize
        logits = self.rows * self.classes * size
        targets = self.rows * (8 if self.kind == "softmax" else size)
        return logits + targets + (logits if self.mode == "fused" else 0)

    @property
    def memory(self) -> int:
        """Bytes that a run needs at most: data, reference gradient, copy and the peer's own arrays."""
        elements = self.rows * self.classes
        own = 2 + (1 if self.mode == "fused" else 0) + PEERS[self.peer].temporaries
        return elements * (8 + own * np.dtype(self.dtype).itemsize) + self.rows * 16

    def small(self) -> Case:
        """The same case at the size of a test."""
        rows, classes = SHAPES[self.kind][self.rows, self.classes]
        return replace(self, rows=rows, classes=classes)


@dataclass(frozen=True)
class Problem:
    """Data of a case and, in float64, what is right for it."""

    kind: str
    logits: np.ndarray
    targets: np.ndarray
    loss: float
    grad: np.ndarray = field(repr=False)  # of the sum over rows, not of the mean


@dataclass(frozen=True)
class Peer:
    """Who computes; ``module`` must be importable, ``temporaries`` are arrays of the logits' size.

    ``label`` heads a column of the report, ``note`` says what exactly was called.
    """

    prepare: Callable[[Problem, str, int], Callable[[], Answer]]
    module: str
    temporaries: int
    label: str
    note: str


def problem(kind: str, rows: int, classes: int, dtype: str) -> Problem:
    """Logits of standard deviation 3, uniform labels, and the float64 answer.

    Parameters
    ----------
    kind : {"softmax", "bce"}
    rows, classes : int
    dtype : {"float32", "float64"}

    Examples
    --------
    >>> p = problem("softmax", 4, 3, "float32")
    >>> p.logits.shape, p.targets.shape, p.grad.dtype.name
    ((4, 3), (4,), 'float64')
    """
    rng = np.random.default_rng(20_240_229)
    if kind == "bce":
        logits = rng.standard_normal(rows, dtype=dtype)
        logits *= 3
        targets = rng.integers(0, 2, rows).astype(dtype)
    else:
        logits = rng.standard_normal((rows, classes), dtype=dtype)
        logits *= 3
        targets = rng.integers(0, classes, rows)
    grad = np.empty(logits.shape)
    total = 0.0
    for block in _blocks(rows, classes):
        z, y = logits[block].astype(np.float64), targets[block]
        if kind == "bce":
            e = np.exp(-np.abs(z))
            total += float((np.maximum(z, 0) - z * y + np.log1p(e)).sum())
            grad[block] = np.where(z >= 0, 1, e) / (1 + e) - y
        else:
            at = np.arange(len(z)), y
            z -= z.max(axis=1, keepdims=True)
            e = np.exp(z)
            own = e[at]
            e[at] = 0
            rest = e.sum(axis=1)
            total += float((np.log(rest + own) - z[at]).sum())
            e /= (rest + own)[:, None]
            e[at] = -rest / (rest + own)  # p_y - 1 without cancellation
            grad[block] = e
    return Problem(kind, logits, targets, total / rows, grad)


def _blocks(rows: int, classes: int) -> list[slice]:
    step = max(1, (1 << 21) // classes)  # 16 MiB of float64 at a time
    return [slice(start, start + step) for start in range(0, rows, step)]


def check(made: Problem, answer: Answer) -> dict[str, float]:
    """Errors of an answer against float64.

    Returns
    -------
    dict
        ``loss_error``, relative; ``max_error``, the largest of ``rows · gradient`` (0 without a gradient).

    Raises
    ------
    ArithmeticError
        If the answer is not right to within `TOLERANCE`.
    """
    loss, grad = answer
    loss_error = abs(loss - made.loss) / made.loss
    max_error = 0.0
    if grad is not None:
        grad = np.asarray(grad)
        rows = len(made.logits)
        blocks = _blocks(rows, made.logits.size // rows)
        # np.max and not max(): NaN must come through.
        max_error = float(np.max([np.abs(grad[b] * float(rows) - made.grad[b]).max() for b in blocks]))
    limit = TOLERANCE[made.logits.dtype.name]
    if not (loss_error <= limit and max_error <= limit):  # so that NaN fails too
        raise ArithmeticError(
            f"wrong answer: relative error of the loss {loss_error:.2e}, largest error of the gradient "
            f"{max_error:.2e}, allowed {limit:.0e}"
        )
    return {"loss_error": loss_error, "max_error": max_error}


# ---- who computes


def _fastxent(backend: str) -> Callable[[Problem, str, int], Callable[[], Answer]]:
    def prepare(p: Problem, mode: str, threads: int) -> Callable[[], Answer]:
        plain, with_grad = (
            (softmax_cross_entropy, softmax_cross_entropy_with_grad)
            if p.kind == "softmax"
            else (sigmoid_cross_entropy, sigmoid_cross_entropy_with_grad)
        )
        # Named, compiled kernels are reached by the general way alone: nobody calls them so.
        how = {"num_threads": threads, **({} if backend == "cpu" else {"backend": backend})}
        if mode == "forward":
            return lambda: (plain(p.logits, p.targets, **how), None)
        grad = np.empty_like(p.logits)
        return lambda: with_grad(p.logits, p.targets, out=grad, **how)

    return prepare


def _numpy(p: Problem, mode: str, threads: int) -> Callable[[], Answer]:
    """The textbook in array operations, with every buffer reused."""
    n, buffer = len(p.logits), np.empty_like(p.logits)

    def softmax() -> Answer:
        at = np.arange(n), p.targets
        top = p.logits.max(axis=1, keepdims=True)
        np.subtract(p.logits, top, out=buffer)
        own = buffer[at]
        np.exp(buffer, out=buffer)
        total = buffer.sum(axis=1, keepdims=True)
        loss = float((np.log(total[:, 0]) - own).mean(dtype=np.float64))
        if mode == "forward":
            return loss, None
        np.divide(buffer, total, out=buffer)
        buffer[at] -= 1
        np.divide(buffer, n, out=buffer)
        return loss, buffer

    def bce() -> Answer:
        z, y = p.logits, p.targets
        e = np.exp(-np.abs(z))
        loss = float((np.maximum(z, 0) - z * y + np.log1p(e)).mean(dtype=np.float64))
        if mode == "forward":
            return loss, None
        np.divide(np.where(z >= 0, np.ones((), z.dtype), e), 1 + e, out=buffer)
        np.subtract(buffer, y, out=buffer)
        np.divide(buffer, n, out=buffer)
        return loss, buffer

    return softmax if p.kind == "softmax" else bce


def _scipy(p: Problem, mode: str, threads: int) -> Callable[[], Answer]:
    from scipy.special import expit, log_expit, log_softmax

    n = len(p.logits)

    def softmax() -> Answer:
        at = np.arange(n), p.targets
        log_p = log_softmax(p.logits, axis=1)
        loss = -float(log_p[at].mean(dtype=np.float64))
        if mode == "forward":
            return loss, None
        grad = np.exp(log_p, out=log_p)
        grad[at] -= 1
        grad /= n
        return loss, grad

    def bce() -> Answer:
        z, y = p.logits, p.targets
        loss = -float((y * log_expit(z) + (1 - y) * log_expit(-z)).mean(dtype=np.float64))
        if mode == "forward":
            return loss, None
        grad = expit(z)
        grad -= y
        grad /= n
        return loss, grad

    return softmax if p.kind == "softmax" else bce


def _sklearn(p: Problem, mode: str, threads: int) -> Callable[[], Answer]:
    """The private losses behind scikit-learn's own estimators; weights 1/n make its sum the mean."""
    from sklearn._loss import HalfBinomialLoss, HalfMultinomialLoss

    n, dtype = len(p.logits), p.logits.dtype
    loss = HalfMultinomialLoss(n_classes=p.logits.shape[1]) if p.kind == "softmax" else HalfBinomialLoss()
    inputs: dict[str, Any] = {
        "y_true": p.targets.astype(dtype),
        "raw_prediction": p.logits,
        "sample_weight": np.full(n, 1 / n, dtype),
        "loss_out": np.empty(n, dtype),
        "n_threads": threads,
    }
    if mode == "forward":
        return lambda: (float(loss.loss(**inputs).sum(dtype=np.float64)), None)
    inputs["gradient_out"] = np.empty_like(p.logits)

    def fused() -> Answer:
        losses, grad = loss.loss_gradient(**inputs)
        return float(losses.sum(dtype=np.float64)), grad

    return fused


@functools.cache
def _numba_kernels() -> dict[str, Any]:
    """What a good user of Numba writes: one parallel loop over rows, fast-math, no temporaries."""
    import numba

    @numba.njit(parallel=True, fastmath=True)
    def softmax_fused(z, y, grad):
        n, k = z.shape
        total = 0.0
        for i in numba.prange(n):
            top = z[i, 0]
            for j in range(1, k):
                top = max(top, z[i, j])
            s = z.dtype.type(0)
            for j in range(k):
                e = math.exp(z[i, j] - top)
                grad[i, j] = e
                s += e
            scale = z.dtype.type(1) / (s * n)
            for j in range(k):
                grad[i, j] *= scale
            grad[i, y[i]] -= z.dtype.type(1) / n
            total += math.log(s) + top - z[i, y[i]]
        return total / n

    @numba.njit(parallel=True, fastmath=True)
    def softmax_forward(z, y):
        n, k = z.shape
        total = 0.0
        for i in numba.prange(n):
            top = z[i, 0]
            for j in range(1, k):
                top = max(top, z[i, j])
            s = z.dtype.type(0)
            for j in range(k):
                s += math.exp(z[i, j] - top)
            total += math.log(s) + top - z[i, y[i]]
        return total / n

    @numba.njit(parallel=True, fastmath=True)
    def bce_fused(z, y, grad):
        n = z.shape[0]
        total = 0.0
        one = z.dtype.type(1)
        for i in numba.prange(n):
            e = math.exp(-abs(z[i]))
            total += max(z[i], z.dtype.type(0)) - z[i] * y[i] + math.log1p(e)
            grad[i] = ((one if z[i] >= 0 else e) / (one + e) - y[i]) / n
        return total / n

    @numba.njit(parallel=True, fastmath=True)
    def bce_forward(z, y):
        n = z.shape[0]
        total = 0.0
        for i in numba.prange(n):
            total += max(z[i], z.dtype.type(0)) - z[i] * y[i] + math.log1p(math.exp(-abs(z[i])))
        return total / n

    return {f.__name__: f for f in (softmax_fused, softmax_forward, bce_fused, bce_forward)}


def _numba(p: Problem, mode: str, threads: int) -> Callable[[], Answer]:
    import numba

    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    kernel = _numba_kernels()[f"{p.kind}_{mode}"]
    if mode == "forward":
        return lambda: (kernel(p.logits, p.targets), None)
    grad = np.empty_like(p.logits)
    return lambda: (kernel(p.logits, p.targets, grad), grad)


def _torch(p: Problem, mode: str, threads: int, compiled: bool = False) -> Callable[[], Answer]:
    import torch

    torch.set_num_threads(threads)
    functional = torch.nn.functional
    loss_of = functional.cross_entropy if p.kind == "softmax" else functional.binary_cross_entropy_with_logits
    if compiled:
        loss_of = torch.compile(loss_of, dynamic=False)
    z, y = torch.from_numpy(p.logits), torch.from_numpy(p.targets)
    if mode == "forward":

        def forward() -> Answer:
            with torch.no_grad():
                return loss_of(z, y).item(), None

        return forward
    z.requires_grad_()

    def fused() -> Answer:
        z.grad = None
        loss = loss_of(z, y)
        loss.backward()
        return loss.item(), z.grad.numpy()

    return fused


PEERS: Mapping[str, Peer] = {
    "cpu": Peer(_fastxent("cpu"), "fastxent", 0, "fastxent", "fastxent's compiled kernels"),
    "numpy": Peer(_fastxent("numpy"), "fastxent", 1, "fastxent in NumPy", "fastxent with backend='numpy'"),
    "plain-numpy": Peer(_numpy, "numpy", 4, "NumPy", "the textbook in NumPy, every buffer reused"),
    "scipy": Peer(_scipy, "scipy", 4, "SciPy", "scipy.special.log_softmax, log_expit and expit"),
    "sklearn": Peer(_sklearn, "sklearn", 0, "scikit-learn", "the private _loss of scikit-learn's estimators"),
    "numba": Peer(_numba, "numba", 0, "Numba", "one loop over rows with prange and fastmath"),
    "torch": Peer(_torch, "torch", 3, "PyTorch", "torch.nn.functional and autograd, eager"),
    "torch-compile": Peer(
        functools.partial(_torch, compiled=True), "torch", 3, "torch.compile", "the same, compiled"
    ),
}


def installed() -> list[str]:
    """The peers that this environment has."""
    here = [name for name, peer in PEERS.items() if importlib.util.find_spec(peer.module) is not None]
    try:
        choose("cpu")
    except ImportError:
        here.remove("cpu")
    return here


def cases(shapes: Mapping[str, Iterable[tuple[int, int]]] = SHAPES) -> list[Case]:
    """Every case of these shapes for the installed peers, ordered so that neighbours share their data."""
    return [
        Case(kind, mode, rows, classes, dtype, peer)
        for kind in KINDS
        for rows, classes in shapes[kind]
        for dtype in DTYPES
        for mode in MODES
        if (mode, dtype) in TIMED
        for peer in installed()
        if peer not in LONG or (mode, dtype) == TIMED[-1]
    ]


def prepare(case: Case, made: Problem, threads: int) -> Callable[[], Answer]:
    """A function that computes the case and returns ``(mean loss, gradient or None)``."""
    return PEERS[case.peer].prepare(made, case.mode, threads)


def num_threads() -> int:
    """Threads that every peer gets: OMP_NUM_THREADS where it is set, else the CPUs this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> float:
    """Bytes that can be had without swapping; infinite where the system does not say."""
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return math.inf


class Copies:
    """The unit of time: the fastest way at hand to copy an array, timed between the runs of a peer.

    `run` makes one copy in each way: ``numpy.copyto``, the same over blocks in threads, and
    ``torch.Tensor.copy_`` where PyTorch is installed. Call it before every run of a peer, so that a noisy
    moment of the machine hits both.
    """

    def __init__(self, source: np.ndarray, threads: int) -> None:
        self.target = target = np.empty_like(source)
        self._pool = ThreadPoolExecutor(threads)
        parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
        self._ways: dict[str, Callable[[], Any]] = {
            "numpy.copyto": lambda: np.copyto(target, source),
            "numpy.copyto in threads": lambda: list(self._pool.map(lambda part: np.copyto(*part), parts)),
        }
        if importlib.util.find_spec("torch") is not None:
            import torch

            torch.set_num_threads(threads)
            to, of = torch.from_numpy(target), torch.from_numpy(source)
            self._ways["torch.Tensor.copy_"] = lambda: to.copy_(of)
        self._seconds: dict[str, list[float]] = {name: [] for name in self._ways}
        for copy in self._ways.values():
            copy()  # the target's pages and the pool's threads come into being here

    def run(self) -> None:
        """Time one copy in each way."""
        for name, copy in self._ways.items():
            start = perf_counter()
            copy()
            self._seconds[name].append(perf_counter() - start)

    def best(self) -> tuple[str, float]:
        """The way with the least median, and that median in seconds."""
        name = min(self._seconds, key=lambda way: median(self._seconds[way]))
        return name, median(self._seconds[name])

    def close(self) -> None:
        """Let the copying threads go."""
        self._pool.shutdown()
