"""The CPU kernels in multiples of a copy of the logits, and beside PyTorch where it is installed: a markdown table.

    python benchmarks/copies.py [--only WORD]

The unit is the better of numpy.copyto and torch's copy_ of the logits. What stands in one row of the table was timed in
the same rounds, each in an order of its own (medians of 7), since machines are noisy: read the ratios, not the times.
A pause goes before each call, in which the caller stays awake: after a sleep a processor, a virtual one above all, is
slower for some milliseconds, and arithmetic more so than a copy.  Tensors are larger than the last-level cache; outputs
are touched before.  The first table's ratios are medians of three such measurements, each with new arrays: times depend
on the pages an array got.
"""
# ruff: noqa: B023 (every closure is called within its own turn of the loop)

import argparse
import statistics
import sys
import time

import numpy as np

import fastxent as fx

try:
    import torch
except ImportError:
    torch = None

ROUNDS = 7
ARRAYS = 3
# Seconds in which threads of the library before stop spinning beside the one that is timed; OpenBLAS's spin for 0.1.
PAUSE = 0.15
rng = np.random.default_rng(0)


def pause():
    """Wait, awake."""
    end = time.perf_counter() + PAUSE
    while time.perf_counter() < end:
        pass


def medians(calls):
    """Median seconds of each call, all called in turns."""
    times = {name: [] for name in calls}
    for call in calls.values():
        call()
    order = list(calls)
    for _ in range(ROUNDS):
        rng.shuffle(order)  # what one call leaves in the caches is no longer the same next one's
        for name in order:
            call = calls[name]
            pause()
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def logits_of(n, k, dtype):
    z = rng.standard_normal((n, k), dtype=np.float32)
    z *= 3
    return z.astype(dtype, copy=False)


def touched(like):
    """An output whose pages exist. Not zeros_like: that memory comes in small pages, which cost both sides a third."""
    out = np.empty_like(like)
    out.fill(0)
    return out


def copies_of(z):
    """Calls that copy `z`, the unit of everything here."""
    target = touched(z)
    calls = {"numpy copy": lambda: np.copyto(target, z)}
    if torch is not None and z.dtype.name in ("float32", "float64", "float16"):
        to, source = torch.from_numpy(target), torch.from_numpy(z)
        calls["torch copy"] = lambda: to.copy_(source)
    return calls


def unit(times):
    return min(seconds for name, seconds in times.items() if name.endswith("copy"))


def row(*cells):
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def header(title, *cells):
    print(f"\n{title}\n")
    row(*cells)
    row(*("---" for _ in cells))


def fused_calls(n, k, dtype):
    """The calls of a row of `fused`, on new arrays."""
    z, y = logits_of(n, k, dtype), rng.integers(0, k, n)
    out, own = touched(z), z.copy()
    calls = copies_of(z) | {
        "fused": lambda: fx.softmax_cross_entropy_with_grad(z, y, out=out),
        "in place": lambda: fx.softmax_cross_entropy_with_grad(own, y, out=own),
        "forward": lambda: fx.softmax_cross_entropy(z, y),
        "read": lambda: z.max(),
    }
    if torch is not None:
        zt, yt = torch.from_numpy(z).requires_grad_(), torch.from_numpy(y)
        calls["torch"] = lambda: torch.autograd.grad(torch.nn.functional.cross_entropy(zt, yt), zt)
    return calls


def fused():
    """Loss and gradient with labels, beside a copy and PyTorch eager."""
    header(
        "Loss and gradient, integer labels, mean",
        "logits",
        "copy, ms",
        "copies",
        "in place, copies",
        "forward, reads",
        "× PyTorch",
    )
    shapes = [(512, 131072), (1024, 50257), (1024, 32768), (40000, 1003), (32768, 1000), (262144, 127)]
    shapes += [(327680, 100), (1500000, 26), (3000000, 10), (5000000, 7), (10000000, 3), (16000000, 2)]
    for n, k in shapes:
        for dtype in ("float32", "float64"):
            if dtype == "float64" and (n, k) not in ((1024, 32768), (40000, 1003), (1500000, 26)):
                continue
            measured = [medians(fused_calls(n, k, dtype)) for _ in range(ARRAYS)]

            def across(number, measured=measured):
                return statistics.median(map(number, measured))

            cells = (
                f"{across(lambda t: t['fused'] / unit(t)):.2f}",
                f"{across(lambda t: t['in place'] / unit(t)):.2f}",
                f"{across(lambda t: t['forward'] / t['read']):.2f}",
                f"{across(lambda t: t['torch'] / t['fused']):.1f}" if torch is not None else "",
            )
            row(f"{n} × {k} {dtype}", f"{across(unit) * 1e3:.1f}", *cells)


def binary():
    """Binary cross-entropy: two reads and one write, so 1.5 copies are the floor."""
    header("Binary cross-entropy, loss and gradient", "elements", "copy, ms", "copies", "× PyTorch")
    n = 1 << 26
    z, y = logits_of(n, 1, "float32")[:, 0], (rng.random(n) < 0.5).astype(np.float32)
    functional = torch.nn.functional if torch is not None else None
    for name, values, ours, theirs in (
        ("logits", z, fx.sigmoid_cross_entropy_with_grad, "binary_cross_entropy_with_logits"),
        (
            "probabilities",
            rng.random(n, dtype=np.float32),
            fx.binary_cross_entropy_with_grad,
            "binary_cross_entropy",
        ),
    ):
        out = touched(values)
        calls = copies_of(values) | {"fused": lambda: ours(values, y, out=out)}
        if torch is not None:
            zt, yt = torch.from_numpy(values).requires_grad_(), torch.from_numpy(y)
            calls["torch"] = lambda: torch.autograd.grad(getattr(functional, theirs)(zt, yt), zt)
        t = medians(calls)
        peer = f"{t['torch'] / t['fused']:.1f}" if torch is not None else ""
        row(f"{n} {name}, float32", f"{unit(t) * 1e3:.1f}", f"{t['fused'] / unit(t):.2f}", peer)


def options():
    """Options beside the plain kernel; `bytes` is what the option reads, in copies of the logits."""
    header("Options, relative to the plain kernel", "logits", "option", "× plain", "extra reads, × plain")
    for n, k in ((40000, 1003), (1500000, 26)):
        z, y = logits_of(n, k, "float32"), rng.integers(0, k, n)
        out, soft = touched(z), rng.random((n, k), dtype=np.float32)
        soft /= soft.sum(axis=1, keepdims=True)
        weight, classes = rng.random(n, dtype=np.float32), rng.random(k)

        def call(targets=y, z=z, out=out, **options):
            return lambda: fx.softmax_cross_entropy_with_grad(z, targets, out=out, **options)

        t = medians(
            {
                "plain": call(),
                "read": lambda soft=soft: soft.max(),
                "label_smoothing": call(label_smoothing=0.1),
                "class_weight": call(class_weight=classes),
                "sample_weight": call(sample_weight=weight),
                "z_loss": call(z_loss=1e-4),
                "soft targets, mean": call(soft),
                "soft targets, sum": call(soft, reduction="sum"),
            }
        )
        for name, seconds in t.items():
            if name not in ("plain", "read"):
                extra = f"{t['read'] / t['plain']:.2f}" if name.startswith("soft") else ""
                row(f"{n} × {k}", name, f"{seconds / t['plain']:.2f}", extra)


def halves():
    """float16 and bfloat16 logits beside float32 ones."""
    import ml_dtypes

    header("16-bit logits, relative to the float32 kernel", "logits", "float16", "bfloat16")
    for n, k in ((40000, 1003), (262144, 100), (1500000, 26)):
        z, y = logits_of(n, k, "float32"), rng.integers(0, k, n)
        kinds = {"float32": z, "float16": z.astype(np.float16), "bfloat16": z.astype(ml_dtypes.bfloat16)}
        calls = {}
        for name, a in kinds.items():
            out = touched(a)
            calls[name] = lambda a=a, out=out: fx.softmax_cross_entropy_with_grad(a, y, out=out)
        t = medians(calls)
        row(f"{n} × {k}", *(f"{t[name] / t['float32']:.2f}" for name in ("float16", "bfloat16")))


def axes():
    """The class axis in the second place, as images have it."""
    header("axis=1 of (N, C, H, W), relative to the last axis", "logits", "× last axis")
    for n, c, h, w in ((8, 21, 512, 512), (64, 100, 64, 64), (16, 1000, 56, 56)):
        z = logits_of(n * h * w, c, "float32")
        y = rng.integers(0, c, n * h * w)
        images, labels = z.reshape(n, c, h, w), y.reshape(n, h, w)
        out, image_out = touched(z), touched(images)
        t = medians(
            {
                "last": lambda: fx.softmax_cross_entropy_with_grad(z, y, out=out),
                "first": lambda: fx.softmax_cross_entropy_with_grad(images, labels, axis=1, out=image_out),
            }
        )
        row(f"{n} × {c} × {h} × {w}", f"{t['first'] / t['last']:.2f}")


def interleaved():
    """Between NumPy's matrix products, whose threads spin for a while after each of them."""
    header(
        "X @ W, kernel, X.T @ G in turns, relative to the three alone", "rows × features × classes", "ratio"
    )
    for n, d, k in ((256, 256, 1000), (20000, 100, 10)):
        X, W = logits_of(n, d, "float32"), logits_of(d, k, "float32") * np.float32(0.05)
        y, Z = rng.integers(0, k, n), np.zeros((n, k), np.float32)
        G, D = touched(Z), touched(W)
        parts = (
            lambda: np.matmul(X, W, out=Z),
            lambda: fx.softmax_cross_entropy_with_grad(Z, y, out=G),
            lambda: np.matmul(X.T, G, out=D),
        )

        def seconds(run, repeats=300):
            run()
            start = time.perf_counter()
            for _ in range(repeats):
                run()
            return (time.perf_counter() - start) / repeats

        def together():
            for part in parts:
                part()

        ratios = []
        for _ in range(ROUNDS):
            alone = sum(seconds(part) for part in parts)
            ratios.append(seconds(together) / alone)
        row(f"{n} × {d} × {k}", f"{statistics.median(ratios):.2f}")


def linear():
    """The linear layer with its loss, beside its three matrix products alone."""
    header(
        "linear_cross_entropy_with_grad, relative to its three products", "rows × features × classes", "ratio"
    )
    for n, d, k in ((8192, 256, 10000), (8192, 256, 1000), (4096, 512, 32768)):
        X, W = logits_of(n, d, "float32"), logits_of(d, k, "float32") * np.float32(0.05)
        y, G = rng.integers(0, k, n), logits_of(n, k, "float32")
        Z, dW, dX = np.zeros((n, k), np.float32), touched(W), touched(X)

        def products(X=X, W=W, G=G, Z=Z, dW=dW, dX=dX):
            np.matmul(X, W, out=Z)
            np.matmul(X.T, G, out=dW)
            np.matmul(G, W.T, out=dX)

        t = medians({"products": products, "ours": lambda: fx.linear_cross_entropy_with_grad(X, W, y)})
        row(f"{n} × {d} × {k}", f"{t['ours'] / t['products']:.2f}")


PARTS = {"fused": fused, "binary": binary, "options": options, "halves": halves, "axes": axes}
PARTS |= {"interleaved": interleaved, "linear": linear}


def main():
    """Print the tables asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, help="one table instead of all")
    chosen = parser.parse_args().only
    if torch is not None:
        torch.set_num_threads(fx._backend.default_threads())
    for name, part in PARTS.items():
        if chosen in (None, name):
            part()
    return 0


if __name__ == "__main__":
    sys.exit(main())
