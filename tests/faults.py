"""Calls that meet a fault: out of memory, Ctrl-C, pools of workers.  Run by test_faults.py in a process of its own.

``python tests/faults.py starve kernels`` (or ``estimators``) makes each call with too little memory, ``interrupt``
sends each a SIGINT (``interrupt dask``: those over Dask), and ``pool fork`` (or another kind) lets a pool's workers
make some.  A line for each call says how it went, for a pool one line the number of threads; the first that goes wrong
ends the process with a traceback.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zlib

import joblib
import numpy as np
from scipy import sparse

import fastxent as fx
from fastxent import _memory, information

MEGABYTE = 1 << 20


# -------------------------------------------------------------------------------------------------------- out of memory


def digest(value):
    """A short text that stands for the bits of a result of any shape."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return str([digest(each) for each in value])
    if sparse.issparse(value):
        return digest((value.data, value.indices, value.indptr))
    value = np.asarray(value)
    return f"{value.dtype} {value.shape} {zlib.crc32(np.ascontiguousarray(value).data):x}"


def fitted(model):
    """What a fit has learnt."""
    if isinstance(model, fx.MLPClassifier):
        return (*model.coefs_, *model.intercepts_, model.n_iter_)
    if isinstance(model, fx.TemperatureScaling):
        return model.temperature_
    return model.coef_, model.intercept_, model.n_iter_


def kernels():
    """Every family of kernels, with results between 1 and 12 MB."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((150_000, 10), np.float32)
    wide = rng.standard_normal((20, 70_001), np.float32)
    y, t = rng.integers(0, 10, len(z)), rng.random(z.shape, np.float32)
    p = rng.uniform(0.01, 0.99, z.shape)
    hot, v = (t > 0.7).astype(np.float32), rng.random(len(z))
    teacher = rng.standard_normal(z.shape, np.float32)
    softmax, sigmoid = fx.SoftmaxCrossEntropy(label_smoothing=0.1), fx.SigmoidCrossEntropy()
    weights, inputs = rng.standard_normal((64, 500)), rng.standard_normal((10_000, 64))
    large = rng.standard_normal((9, 8000))
    classes = rng.integers(0, 500, len(inputs))
    scattered = sparse.random_array((10_000, 64), density=0.1, rng=rng, format="csr")
    distribution = t / t.sum(1, keepdims=True)
    return {
        "softmax_cross_entropy": lambda: fx.softmax_cross_entropy(z, y, reduction="none"),
        "softmax_cross_entropy_with_grad": lambda: fx.softmax_cross_entropy_with_grad(z, y),
        "… of soft targets and weights": lambda: fx.softmax_cross_entropy_with_grad(z, t, sample_weight=v),
        "… of wide rows": lambda: fx.softmax_cross_entropy_with_grad(wide, y[:20]),
        "… of lists": lambda: fx.softmax_cross_entropy_with_grad(z[:10_000].tolist(), y[:10_000].tolist()),
        "softmax_cross_entropy_forward": lambda: fx.softmax_cross_entropy_forward(z, y, reduction="none"),
        "softmax_cross_entropy_backward": lambda: fx.softmax_cross_entropy_backward(1.0, z, y),
        "sigmoid_cross_entropy": lambda: fx.sigmoid_cross_entropy(z, hot, reduction="none"),
        "sigmoid_cross_entropy_with_grad": lambda: fx.sigmoid_cross_entropy_with_grad(z, hot),
        "sigmoid_cross_entropy_forward": lambda: fx.sigmoid_cross_entropy_forward(z, hot, reduction="none"),
        "sigmoid_cross_entropy_backward": lambda: fx.sigmoid_cross_entropy_backward(1.0, z, hot),
        "binary_cross_entropy": lambda: fx.binary_cross_entropy(p, hot, reduction="none"),
        "binary_cross_entropy_with_grad": lambda: fx.binary_cross_entropy_with_grad(p, hot),
        "linear_cross_entropy": lambda: fx.linear_cross_entropy(inputs, weights, classes),
        "linear_cross_entropy_with_grad": lambda: fx.linear_cross_entropy_with_grad(inputs, weights, classes),
        "… of a large layer": lambda: fx.linear_cross_entropy_with_grad(inputs[:, :9], large, classes),
        "… of a sparse matrix": lambda: fx.linear_cross_entropy_with_grad(
            scattered, weights, classes, need_dx=False
        ),
        "partial_lse, merge_lse": lambda: fx.merge_lse(
            [fx.partial_lse(z[:, :4], y, 0), fx.partial_lse(z[:, 4:], y, 4)]
        ).grad(z[:, 4:], y, 4),
        "SoftmaxCrossEntropy.grad_hess": lambda: softmax.grad_hess(z, y),
        "SoftmaxCrossEntropy.hvp": lambda: softmax.hvp(z, y, t),
        "SoftmaxCrossEntropy.solve": lambda: softmax.solve(z, y, t, 0.5),
        "SigmoidCrossEntropy.grad_hess": lambda: sigmoid.grad_hess(z, hot),
        "a sum": lambda: (softmax + 0.5 * fx.FocalLoss()).loss_grad(z, y),
        "FocalLoss": lambda: fx.FocalLoss().loss_grad(z, y),
        "BinaryFocalLoss": lambda: fx.BinaryFocalLoss().grad_hess(z, hot),
        "Poly1Loss": lambda: fx.Poly1Loss().loss_grad(z, y),
        "GeneralizedCrossEntropy": lambda: fx.GeneralizedCrossEntropy().loss_grad(z, y),
        "SymmetricCrossEntropy": lambda: fx.SymmetricCrossEntropy().loss_grad(z, y),
        "BootstrappingLoss": lambda: fx.BootstrappingLoss().loss_grad(z, y),
        "JensenShannonLoss": lambda: fx.JensenShannonLoss().loss_grad(z, y),
        "DistillationLoss": lambda: fx.DistillationLoss().loss_grad(z, (y, teacher)),
        "AsymmetricLoss": lambda: fx.AsymmetricLoss().loss_grad(z, hot),
        "DiceLoss": lambda: fx.DiceLoss().loss_grad(z, hot),
        "TverskyLoss": lambda: fx.TverskyLoss(activation="softmax").loss_grad(z, hot),
        "GANDiscriminatorLoss": lambda: fx.GANDiscriminatorLoss().loss_grad(z, hot),
        "GANGeneratorLoss": lambda: fx.GANGeneratorLoss().loss_grad(z, hot),
        "information.entropy": lambda: information.entropy(distribution),
        "information.kl_divergence": lambda: information.kl_divergence(distribution, p),
        "information.js_divergence": lambda: information.js_divergence(distribution, p),
    }


def estimators():
    """Fits with every solver, predictions, files."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((20_000, 40))
    y = np.argmax(X[:, :5] + rng.standard_normal((len(X), 5)), axis=1)
    scattered = sparse.random_array((20_000, 200), density=0.05, rng=rng, format="csr")
    few = {"max_iter": 2, "num_threads": 2}
    network = {**few, "random_state": 0, "batch_size": 5000}
    logistic = fx.LogisticRegression(**few).fit(X, y)
    mlp = fx.MLPClassifier((50,), **network).fit(X, y)
    large = fx.MLPClassifier((2000,), max_iter=1, random_state=0, batch_size=200).fit(X[:200], y[:200])
    logits = logistic.decision_function(X)
    folder = tempfile.mkdtemp()
    path = os.path.join(folder, "large.npz")
    large.save(path)

    def saved():
        large.save(os.path.join(folder, "other.npz"))
        names = sorted(os.listdir(folder))
        with open(os.path.join(folder, "other.npz"), "rb") as file:
            return zlib.crc32(file.read()), names

    calls = {
        f"LogisticRegression(solver={solver!r}).fit": lambda solver=solver: fitted(
            fx.LogisticRegression(solver=solver, **few).fit(X, y)
        )
        for solver in ("auto", "lbfgs", "newton-cg", "newton-cholesky")
    }
    calls |= {
        f"MLPClassifier(solver={solver!r}).fit": lambda solver=solver: fitted(
            fx.MLPClassifier((50,), solver=solver, **network).fit(X, y)
        )
        for solver in ("adam", "lbfgs")
    }
    return calls | {
        "LogisticRegression(l1_ratio=0.5).fit": lambda: fitted(
            fx.LogisticRegression(l1_ratio=0.5, **few).fit(X, y)
        ),
        "LogisticRegression.fit of a sparse matrix": lambda: fitted(
            fx.LogisticRegression(**few).fit(scattered, y)
        ),
        "LogisticRegression(backend='numpy').fit": lambda: fitted(
            fx.LogisticRegression(backend="numpy", **few).fit(X, y)
        ),
        "TemperatureScaling.fit": lambda: fitted(fx.TemperatureScaling().fit(logits, y)),
        "LogisticRegression.predict": lambda: logistic.predict(X),
        "LogisticRegression.predict_log_proba": lambda: logistic.predict_log_proba(X),
        "MLPClassifier.predict": lambda: mlp.predict(X),
        "MLPClassifier.predict_proba": lambda: mlp.predict_proba(X),
        "MLPClassifier.input_gradient": lambda: mlp.input_gradient(X, y),
        "save": saved,
        "load": lambda: fitted(fx.load(path)),
    }


def used():
    """Bytes of address space of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def starve(group):
    """Each call with nothing to spare, then with four times as much each time until it succeeds.

    It ends in MemoryError or with its bits; afterwards, with memory again, it gives them.
    """
    calls = {"kernels": kernels, "estimators": estimators}[group]()
    unlimited = resource.getrlimit(resource.RLIMIT_AS)
    for name, call in calls.items():
        expected = digest(call())
        digest(call())  # threads and buffers of libraries are there
        failed, room = 0, 0
        while True:
            gc.collect()
            _memory.release()
            resource.setrlimit(resource.RLIMIT_AS, (used() + room, unlimited[1]))
            try:
                found = call()
            except MemoryError:
                failed, found = failed + 1, None
            finally:
                resource.setrlimit(resource.RLIMIT_AS, unlimited)
            if found is not None:
                assert digest(found) == expected, f"{name}: other bits with {room} bytes to spare"
                break
            assert room < 2048 * MEGABYTE, f"{name}: needs more than 2 GB"
            room = 4 * room or MEGABYTE // 4
        assert digest(call()) == expected, f"{name}: other bits after having been out of memory"
        print(
            f"{name}: {failed} times out of memory, done with {room / MEGABYTE:.2f} MB to spare", flush=True
        )


# --------------------------------------------------------------------------------------------------------------- Ctrl-C

WAIT = 0.3  # seconds after which the signal comes
CLUSTER_WAIT = 1.5  # where workers first read their blocks


def endless():
    """Calls to repeat until a signal ends one: True where a fit ended with what it had."""
    rng = np.random.default_rng(2)
    z, y = rng.standard_normal((200_000, 40), np.float32), rng.integers(0, 40, 200_000)
    hot, p = (z > 0).astype(np.float32), rng.uniform(0.01, 0.99, z.shape)
    X, classes = z.astype(np.float64), np.argmax(z[:, :5], axis=1)
    scattered = sparse.random_array((20_000, 500), density=0.02, rng=rng, format="csr")
    head = rng.standard_normal((40, 300))
    model = fx.LogisticRegression(max_iter=1).fit(X, classes)
    network = fx.MLPClassifier((100,), max_iter=1, random_state=0).fit(z[:1000], classes[:1000])

    def logistic(data=X, **options):
        options = {"tol": 1e-12, "max_iter": 10_000, "C": 1e6, **options}
        fit = fx.LogisticRegression(**options).fit(data, classes[: data.shape[0]])
        assert np.isfinite(fit.coef_).all()
        return fit.opt_result_.status == "interrupted"

    def mlp(solver):
        options = {"max_iter": 100_000, "tol": 0.0, "n_iter_no_change": 100_000, "random_state": 0}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit = fx.MLPClassifier((100,), solver=solver, **options).fit(z, classes)
        assert np.isfinite(fit.coefs_[0]).all()
        return any("interrupted" in str(each.message) for each in caught)

    calls = {
        "softmax_cross_entropy_with_grad": lambda: fx.softmax_cross_entropy_with_grad(z, y),
        "softmax_cross_entropy of soft targets": lambda: fx.softmax_cross_entropy(z, hot),
        "sigmoid_cross_entropy_with_grad": lambda: fx.sigmoid_cross_entropy_with_grad(z, hot),
        "binary_cross_entropy": lambda: fx.binary_cross_entropy(p, hot),
        "backend='numpy'": lambda: fx.softmax_cross_entropy_with_grad(z, y, backend="numpy"),
        "linear_cross_entropy_with_grad": lambda: fx.linear_cross_entropy_with_grad(X, head, y),
        "… of a large layer": lambda: fx.linear_cross_entropy_with_grad(X, np.repeat(head, 9, axis=1), y),
        "FocalLoss.loss_grad": lambda: fx.FocalLoss().loss_grad(z, y),
        "SoftmaxCrossEntropy.solve": lambda: fx.SoftmaxCrossEntropy().solve(z, y, z, 0.5),
        "DiceLoss.loss_grad": lambda: fx.DiceLoss().loss_grad(z, hot),
        "information.kl_divergence": lambda: information.kl_divergence(p, p),
        "partial_lse": lambda: fx.partial_lse(z, y, 0),
        "LogisticRegression.predict_proba": lambda: model.predict_proba(X),
        "MLPClassifier.predict": lambda: network.predict(z),
        "TemperatureScaling.fit": lambda: fx.TemperatureScaling().fit(z, y),
        "LogisticRegression(l1_ratio=0.5).fit": lambda: logistic(l1_ratio=0.5, C=1.0),
        "LogisticRegression.fit of a sparse matrix": lambda: logistic(scattered),
        "MLPClassifier(solver='adam').fit": lambda: mlp("adam"),
        "MLPClassifier(solver='lbfgs').fit": lambda: mlp("lbfgs"),
    }
    for solver in ("auto", "lbfgs", "newton-cg", "newton-cholesky"):
        calls[f"LogisticRegression(solver={solver!r}).fit"] = lambda solver=solver: logistic(solver=solver)
    return calls


def endless_over_dask():
    """Calls as those of `endless`, and when to interrupt them: over Dask's threads, then over two worker processes.

    At the end the workers must hold nothing of them.
    """
    import dask.array as da
    from distributed import Client, LocalCluster

    from fastxent import dask as fxd

    rng = np.random.default_rng(3)
    X = rng.standard_normal((20_000, 40))
    arrays = da.from_array(X, chunks=(5_000, 40)), da.from_array(X[:, :5].argmax(axis=1), chunks=5_000)

    def logistic(**options):
        fit = fxd.LogisticRegression(tol=1e-12, max_iter=10_000, C=1e6, **options).fit(*arrays)
        assert np.isfinite(fit.coef_).all()
        return fit.opt_result_.status == "interrupted"

    def mlp(solver):
        options = {"max_iter": 100_000, "tol": 0.0, "n_iter_no_change": 100_000, "random_state": 0}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit = fxd.MLPClassifier((20,), solver=solver, **options).fit(*arrays)
        assert np.isfinite(fit.coefs_[0]).all()
        return any("interrupted" in str(each.message) for each in caught)

    model = fxd.LogisticRegression(max_iter=1).fit(*arrays)
    calls = {
        "LogisticRegression(solver='lbfgs').fit": lambda: logistic(solver="lbfgs"),
        "LogisticRegression(solver='newton-cg').fit": lambda: logistic(solver="newton-cg"),
        "MLPClassifier(solver='adam').fit": lambda: mlp("adam"),
        "MLPClassifier(solver='lbfgs').fit": lambda: mlp("lbfgs"),
        "LogisticRegression.predict": lambda: model.predict(arrays[0]).compute(),
    }
    yield {f"dask, threads: {name}": call for name, call in calls.items()}, WAIT
    with (
        LocalCluster(2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        for fit in (fxd.LogisticRegression(max_iter=1), fxd.MLPClassifier((20,), max_iter=1)):
            fit.fit(*arrays)  # the workers import what they need
        yield {f"dask, a cluster: {name}": call for name, call in calls.items()}, CLUSTER_WAIT
        until = time.monotonic() + 20
        while client.cluster.scheduler.tasks and time.monotonic() < until:
            time.sleep(0.1)
        assert not client.cluster.scheduler.tasks, sorted(client.cluster.scheduler.tasks)


def interrupt(calls, wait=WAIT):
    """A SIGINT to each call: it ends soon, and the next one works."""
    small = np.arange(12.0).reshape(4, 3), [0, 1, 2, 0]
    for name, call in calls.items():
        expected = fx.softmax_cross_entropy(*small)
        call_ended, partial = None, False
        sender = subprocess.Popen(
            ["sh", "-c", f"sleep {wait}; date +%s.%N; kill -INT {os.getpid()}"], stdout=subprocess.PIPE
        )
        try:
            while not partial:
                partial = call() is True
            call_ended = time.time()
        except KeyboardInterrupt:
            call_ended = time.time()
        late = call_ended - float(sender.communicate()[0])
        assert late < 5, f"{name}: answered after {late:.1f} s"
        assert fx.softmax_cross_entropy(*small) == expected
        how = "a partial model" if partial else "KeyboardInterrupt"
        print(f"{name}: {how} after {late:.3f} s", flush=True)


# ---------------------------------------------------------------------------------------------------- pools of workers


def work(seed):
    """A kernel on two threads and a fit, in whichever process; and how many threads that process has then."""
    rng = np.random.default_rng(seed)
    z, y = rng.normal(size=(3000, 1000)), rng.integers(0, 10, 3000)
    loss = fx.softmax_cross_entropy(z, y, num_threads=2)
    model = fx.LogisticRegression(max_iter=3, tol=10.0).fit(z[:200, :5], y[:200])
    return loss, model.coef_.tolist(), len(os.listdir("/proc/self/task"))


def pooled(pool):
    """Three pieces of work here and then by two workers of a pool: the same bits; the most threads of a process."""
    expected = [work(seed)[:2] for seed in range(3)]
    if pool in ("fork", "spawn"):
        with multiprocessing.get_context(pool).Pool(2) as processes:
            found = processes.map_async(work, range(3)).get(timeout=240)
    else:
        found = joblib.Parallel(2, backend=pool, timeout=240)(joblib.delayed(work)(seed) for seed in range(3))
    assert [answer[:2] for answer in found] == expected
    print(max(threads for *_, threads in found), threading.active_count() if pool == "threading" else 1)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits it ignored
    if sys.argv[1:] == ["interrupt"]:
        interrupt(endless())
    elif sys.argv[1:] == ["interrupt", "dask"]:
        for calls, wait in endless_over_dask():
            interrupt(calls, wait)
    elif sys.argv[1] == "pool":
        pooled(sys.argv[2])
    else:
        # The main thread's stack grows as it is used, and where no memory is left for that the system ends the
        # process; a thread's stack is there from the beginning.
        failed = []
        threading.excepthook = lambda args: failed.append(args.exc_value)
        threading.stack_size(64 * MEGABYTE)
        worker = threading.Thread(target=starve, args=sys.argv[2:])
        worker.start()
        worker.join()
        if failed:
            raise failed[0]
