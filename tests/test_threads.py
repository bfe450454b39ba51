"""Threads, processes, signals: the same bits for any thread count, no hang after fork, Ctrl-C answers.

Sizes lie above a million elements, where work may leave the calling thread, in shapes that end inside a
block.
"""

from __future__ import annotations

import functools
import os
import sysconfig
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fresh import printed
from numpy.testing import assert_array_equal

import fastxent as fx

THREADS = (1, 2, 3, 4)
posix = pytest.mark.skipif(os.name != "posix", reason="fork and SIGINT are POSIX")


# Few classes, both sides of the 64 where they end, one block per few rows, and rows of many blocks each.
SHAPES = [(400_003, 3), (110_001, 10), (20_011, 64), (16_001, 65), (1_203, 1003), (17, 70_001)]


@functools.cache
def problem(shape, dtype="float32"):
    rng = np.random.default_rng(shape[1])
    z = rng.standard_normal(shape, np.float32).astype(dtype, copy=False)
    return z, rng.integers(0, shape[1], shape[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_same_bits_for_labels(backend, shape):
    """Loss, gradient, losses and lse for every number of threads, and for one of them twice."""
    z, y = problem(shape)
    results = []
    for n in (*THREADS, 2):
        loss, grad = fx.softmax_cross_entropy_with_grad(z, y, num_threads=n, backend=backend)
        losses, lse = fx.softmax_cross_entropy_forward(z, y, reduction="none", num_threads=n, backend=backend)
        results.append((loss, grad, losses, lse))
    for other in results[1:]:
        assert other[0] == results[0][0]
        for a, b in zip(other[1:], results[0][1:], strict=True):
            assert_array_equal(a, b)


@pytest.mark.parametrize("shape", [(110_001, 10), (1_203, 1003)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_bits_for_every_option(backend, shape, dtype):
    """Soft targets, weights, smoothing, z-loss, and the denominator, which is a threaded sum of its own."""
    z, _ = problem(shape, dtype)
    rng = np.random.default_rng(1)
    t = rng.random(shape, np.float32).astype(dtype, copy=False)
    options = dict(
        sample_weight=rng.random(shape[0]),
        class_weight=rng.random(shape[1]),
        label_smoothing=0.1,
        z_loss=1e-4,
        backend=backend,
    )
    first = fx.softmax_cross_entropy_with_grad(z, t, num_threads=1, **options)
    for n in THREADS[1:]:
        loss, grad = fx.softmax_cross_entropy_with_grad(z, t, num_threads=n, **options)
        assert loss == first[0]
        assert_array_equal(grad, first[1])


def test_same_bits_for_a_strided_class_axis(backend):
    """(N, C, H, W) with the classes on axis 1."""
    z = problem((8, 10 * 130 * 131))[0].reshape(8, 10, 130, 131)
    y = np.random.default_rng(1).integers(0, 10, (8, 130, 131))
    first = fx.softmax_cross_entropy_with_grad(z, y, axis=1, num_threads=1, backend=backend)
    for n in THREADS[1:]:
        loss, grad = fx.softmax_cross_entropy_with_grad(z, y, axis=1, num_threads=n, backend=backend)
        assert loss == first[0]
        assert_array_equal(grad, first[1])


@pytest.mark.parametrize("name", ["sigmoid_cross_entropy_with_grad", "binary_cross_entropy_with_grad"])
def test_same_bits_for_elements(backend, name):
    z = np.random.default_rng(0).uniform(0.01, 0.99, 1_200_007).astype(np.float32)
    y = (np.arange(z.size) % 3 == 0).astype(np.float32)
    call = getattr(fx, name)
    first = call(z, y, sample_weight=y + 1, num_threads=1, backend=backend)
    for n in THREADS[1:]:
        loss, grad = call(z, y, sample_weight=y + 1, num_threads=n, backend=backend)
        assert loss == first[0]
        assert_array_equal(grad, first[1])


@pytest.mark.parametrize("name", ["grad_hess", "hvp"])
def test_same_bits_for_curvature(backend, name):
    z, y = problem((110_001, 10))
    f = fx.SoftmaxCrossEntropy(label_smoothing=0.1)
    call = f.grad_hess if name == "grad_hess" else lambda z, y, **options: (f.hvp(z, y, z, **options),)
    first = call(z, y, num_threads=1, backend=backend)
    for n in THREADS[1:]:
        for a, b in zip(call(z, y, num_threads=n, backend=backend), first, strict=True):
            assert_array_equal(a, b)


@pytest.mark.parametrize("n", THREADS)
def test_first_bad_label_of_several_blocks(backend, n):
    """The row that is named is the first, whichever thread finds one first."""
    z, y = problem((110_001, 10))
    y = y.copy()
    y[[5_003, 70_000, 110_000]] = 10, 11, 12
    with pytest.raises(ValueError, match=r"\b5003\b.*\b10\b"):
        fx.softmax_cross_entropy(z, y, num_threads=n, reduction="sum", backend=backend)


@pytest.mark.parametrize("bad", [0, -1])
def test_no_threads(backend, bad):
    z, y = problem((17, 70_001))
    with pytest.raises(ValueError, match=f"num_threads.*{bad}"):
        fx.softmax_cross_entropy(z, y, num_threads=bad, backend=backend)
    with pytest.raises(ValueError, match=f"num_threads.*{bad}"):
        fx.sigmoid_cross_entropy(0.0, 1, num_threads=bad, backend=backend)
    with pytest.raises(ValueError, match=f"num_threads.*{bad}"):
        fx.binary_cross_entropy(0.5, 1, num_threads=bad, backend=backend)


@pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this interpreter always has its GIL"
)
def test_import_leaves_the_gil_off():
    """A free-threaded interpreter switches its GIL on for an extension that does not declare that it can do without."""
    code = "import sys, fastxent.linear, fastxent.logistic, fastxent.mlp; print(sys._is_gil_enabled())"
    assert printed(code) == "False"


def test_more_threads_than_processors(backend):
    z, y = problem((110_001, 10))
    assert fx.softmax_cross_entropy(z, y, num_threads=500, backend=backend) == fx.softmax_cross_entropy(
        z, y, num_threads=1, backend=backend
    )


def test_concurrent_calls(backend):
    """Eight Python threads, each with its own data and a team inside each call: the serial bits."""
    shapes = [(110_001, 10), (1_203, 1003), (33, 7), (16_001, 65)]
    jobs = [problem(shape) for shape in shapes] * 6
    expected = [fx.softmax_cross_entropy_with_grad(z, y, num_threads=1, backend=backend) for z, y in jobs[:4]]
    start = threading.Barrier(8)

    def work(job):
        if job < 8:
            start.wait()
        z, y = jobs[job]
        return fx.softmax_cross_entropy_with_grad(z, y, num_threads=1 + job % 3, backend=backend)

    with ThreadPoolExecutor(8) as pool:
        for job, (loss, grad) in enumerate(pool.map(work, range(len(jobs)))):
            assert loss == expected[job % 4][0]
            assert_array_equal(grad, expected[job % 4][1])


@pytest.mark.parametrize(
    "model",
    [
        fx.LogisticRegression(),
        fx.MLPClassifier((32,), max_iter=2, random_state=0),
        fx.TemperatureScaling(),
    ],
    ids=lambda model: type(model).__name__,
)
@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_concurrent_predictions(model):
    """One fitted estimator asked by eight threads at once: the bits that one thread has."""
    rng = np.random.default_rng(4)
    X = rng.standard_normal((30_011, 12))
    y = (X[:, :5] + rng.gumbel(size=(30_011, 5))).argmax(axis=1)
    if isinstance(model, fx.TemperatureScaling):
        X = X[:, :5]
    model.fit(X[:500], y[:500])
    blocks = [X[start :: 1 + start] for start in range(8)]
    expected = [(model.predict_proba(block), model.predict(block)) for block in blocks]
    start = threading.Barrier(8)

    def work(job):
        start.wait()
        return [(model.predict_proba(blocks[job]), model.predict(blocks[job])) for _ in range(5)]

    with ThreadPoolExecutor(8) as pool:
        for answers, alone in zip(pool.map(work, range(8)), expected, strict=True):
            for answer in answers:
                assert_array_equal(answer[0], alone[0])
                assert_array_equal(answer[1], alone[1])


def test_errors_in_concurrent_calls(backend):
    """A bad label in one thread is that thread's error only."""
    z, y = problem((110_001, 10))
    wrong = y.copy()
    wrong[77_777] = -5
    expected = fx.softmax_cross_entropy(z, y, backend=backend)

    def work(job):
        try:
            return fx.softmax_cross_entropy(z, wrong if job % 2 else y, num_threads=2, backend=backend)
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        for job, result in enumerate(pool.map(work, range(16))):
            if job % 2:
                assert "77777" in result
            else:
                assert result == expected


FORK = """
import os, signal, sys, threading
import numpy as np
import fastxent as fx
backend = sys.argv[1] if len(sys.argv) > 1 else "{backend}"
z = np.random.default_rng(0).standard_normal((110_001, 10), np.float32)
y = np.arange(len(z)) % 10
before = fx.softmax_cross_entropy_with_grad(z, y, num_threads=2, backend=backend)
for depth in range(2):
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        after = fx.softmax_cross_entropy_with_grad(z, y, num_threads=2, backend=backend)
        alone = fx.sigmoid_cross_entropy(z, (z > 0), num_threads=4, backend=backend)
        good = after[0] == before[0] and (after[1] == before[1]).all() and alone > 0
        if depth:
            grandchild = os.fork()
            if grandchild == 0:
                signal.alarm(30)
                again = fx.softmax_cross_entropy(z, y, num_threads=3, backend=backend)
                os._exit(0 if again == before[0] else 3)
            good = good and os.waitpid(grandchild, 0)[1] == 0
        os._exit(0 if good else 3)
    status = os.waitpid(child, 0)[1]
    assert status == 0, f"the child ended with status {{status}}"
    assert fx.softmax_cross_entropy(z, y, num_threads=2, backend=backend) == before[0]
print("finished")
"""


@posix
def test_fork(backend):
    """A child of a process whose threads have worked finishes with the same bits, and so does its child."""
    code = FORK.format(backend=backend)
    assert printed("import warnings; warnings.simplefilter('ignore')\n" + code) == "finished"


FORK_BESIDE = """
import os, signal, threading
import numpy as np
import fastxent as fx
z = np.random.default_rng(0).standard_normal((110_001, 10), np.float32)
y = np.arange(len(z)) % 10
expected = fx.softmax_cross_entropy(z, y, num_threads=2, backend="{backend}")
stop = threading.Event()
def busy():
    while not stop.is_set():
        fx.softmax_cross_entropy(z, y, num_threads=2, backend="{backend}")
worker = threading.Thread(target=busy)
worker.start()
for _ in range(8):
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if fx.softmax_cross_entropy(z, y, num_threads=2, backend="{backend}") == expected else 3)
    status = os.waitpid(child, 0)[1]
    assert status == 0, f"the child ended with status {{status}}"
stop.set()
worker.join()
print("finished")
"""


@posix
@pytest.mark.compiled
def test_fork_while_another_thread_is_inside_a_kernel():
    code = FORK_BESIDE.format(backend="cpu")
    assert printed("import warnings; warnings.simplefilter('ignore')\n" + code) == "finished"


INTERRUPT = """
import os, signal, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits it ignored
import numpy as np
import fastxent as fx
row = np.zeros(2**17, np.float32)
wide = np.broadcast_to(row, (2**{rows}, 2**17))
y = np.broadcast_to(np.int32(5), 2**{rows})
fx.softmax_cross_entropy(wide[:64], y[:64], backend="cpu", num_threads={threads})
sent = []
def send():
    time.sleep(0.5)
    sent.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=send, daemon=True).start()
try:
    fx.softmax_cross_entropy(wide, y, reduction="sum", backend="cpu", num_threads={threads})
except KeyboardInterrupt:
    print("interrupted", time.monotonic() - sent[0])
    small = fx.softmax_cross_entropy(wide[:64], y[:64], backend="cpu", num_threads={threads})
    print("alive" if small > 0 else "wrong")
else:
    print("finished")
"""


@posix
@pytest.mark.compiled
@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c(threads):
    """A kernel of half a minute ends with KeyboardInterrupt soon after the signal, and the next call works.

    The guarantee is 0.2 s; the limit here is two seconds, because the machine may be busy with other tests.
    """
    answer, life = printed(INTERRUPT.format(rows=20, threads=threads)).splitlines()
    word, seconds = answer.split()
    assert word == "interrupted"
    assert float(seconds) < 2
    assert life == "alive"


def test_thread_count_follows_the_environment():
    """OMP_NUM_THREADS=1 keeps the work on the calling thread: no thread of ours is ever started."""
    code = """
import os, threading
import numpy as np
import fastxent as fx
def count():
    return len(os.listdir("/proc/self/task"))
z = np.zeros((4, 3), np.float32)
fx.softmax_cross_entropy(z, [0, 1, 2, 0])
before = count()
big = np.zeros((400_000, 8), np.float32)
fx.softmax_cross_entropy_with_grad(big, np.zeros(len(big), int))
print(count() - before)
"""
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("counts threads in /proc")
    assert printed(code, OMP_NUM_THREADS="1") == "0"
