"""Everything that has to be known of the CUDA kernels on a GPU, in one run of at most 25 minutes.

    python benchmarks/gpu/run.py                    all of it
    python benchmarks/gpu/run.py --only grid --quick
    python benchmarks/gpu/run.py --minutes 9 --only ceilings launch grid    the rest on another day, or later that day

In this order: small problems of every kernel against float64; the rates at which this GPU copies, reads and fills; loss
and gradient over shapes, dtypes and modes, as a share of these rates, beside their targets; what a launch costs the
host; the same shapes by PyTorch eager, torch.compile, a kernel in Triton and Liger; large problems over poisoned
outputs, the GPU's tests, compute-sanitizer; second derivatives and divergences; linear_cross_entropy, time and memory,
beside its products alone, PyTorch and Liger; fits of both classifiers beside the CPU and PyTorch.

Without --only every part has a process and a limit of time of its own: one that hangs, crashes or loses the device's
context leaves the others as they are, and goes on after the row that it lost. Inputs rotate through more memory than
the cache holds; times are medians of events on the device, of calls that the host has queued behind a pause. Writes
<date>-<GPU>.json and .md to `benchmarks/gpu/results/` after every row, so that a run that is cut off leaves what it
measured; a second run on the same day adds its parts. Nothing is downloaded. Arrays and baselines are PyTorch's:
without it the kernels are timed over Numba's arrays and tested, and the rest says so. CuPy, Triton, Liger, pytest and
compute-sanitizer are used where they are. Without a GPU it says so and ends with status 2.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import importlib.metadata
import importlib.util
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parent / "results"

SHAPES = [
    (8192, 32768),
    (4096, 131072),
    (8192, 8192),
    (32768, 1024),
    (262144, 100),
    (1 << 20, 10),
    (16, 131072),
]
SHAPES += [(4096, 50257), (32768, 1003)]  # off every boundary
LINEAR = [(8192, 1024, 32768), (8192, 4096, 131072), (32768, 512, 50257)]  # rows, features, classes
BATCHES = (64, 256, 1024)
GENERAL = [(65536, 100), (4096, 32768)]  # of the general kernels
ROWS = 60000  # of the fits
STEPS = 100  # of the logistic regressions
DEVICE = "cuda"
DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2}
MODES = ("forward", "backward", "fused", "in place")
ELEMENTS = 1 << 26
PACKAGES = (
    "fastxent",
    "numpy",
    "numba",
    "numba-cuda",
    "cuda-core",
    "cuda-bindings",
    "torch",
    "triton",
    "liger-kernel",
    "cupy-cuda13x",
    "cupy-cuda12x",
    "nvidia-nvjitlink",
    "xgboost",
    "pytest",
)
CACHE = 1 << 28  # bytes that inputs rotate through at least
COPIED = 1 << 29  # float32 of each of the two buffers that the ceilings are measured with
REPEATS = 30  # timings that a median is of
AHEAD = 4_000_000  # cycles, 2 ms, that the device pauses before each, while the host queues what is timed
SMALL = [
    (300, 10),
    (300, 33),
    (300, 100),
    (64, 1000),
    (40, 1003),
    (9, 9001),
    (9, 20000),
    (200, 40000),
    (3, 140001),
]
LIMITS = {"float32": 3e-6, "float16": 2e-3, "bfloat16": 2e-2}  # of errors, in units of the gradient's scale
HOST = 2000  # calls that the host's cost is a mean of


def bytes_moved(n_rows, n_classes, itemsize, mode):
    """Bytes that a perfect kernel moves: logits read, gradient written, int64 labels, float32 losses and lse.

    >>> bytes_moved(8192, 32768, 4, "forward"), bytes_moved(8192, 32768, 4, "fused")
    (1073872896, 2147581952)
    """
    logits = n_rows * n_classes * itemsize
    per_row = {"forward": 16, "backward": 16, "fused": 12, "in place": 12}[mode]
    return (1 if mode == "forward" else 2) * logits + per_row * n_rows


def element_bytes(n, itemsize, target_itemsize):
    """Bytes of a fused sigmoid cross-entropy: logits and targets read, gradient written.

    >>> element_bytes(10, 2, 1)
    50
    """
    return n * (2 * itemsize + target_itemsize)


def share(row, ceilings):
    """A row's rate over the rate that this GPU was measured to reach: reading for a forward pass, else copying."""
    ceiling = ceilings.get("read" if row["mode"] == "forward" else "copy")
    return None if not ceiling or row.get("us") is None else row["bytes"] / row["us"] / 1e6 / ceiling


def target(row):
    """The share that a row of the grid is to reach on an H200, or None: GPU.md's expectations, as the issue has them.

    >>> target({"problem": "8192 x 32768", "dtype": "float32", "mode": "fused"})
    0.88
    """
    if row["problem"].endswith("elements"):
        return 0.88
    n, k = map(int, row["problem"].split(" x "))
    if row["mode"] in ("fused", "in place"):
        if (n, k) == (1 << 20, 10):
            return 0.65 if row["dtype"] == "float32" else None
        if (n, k) == (32768, 1024):
            return 0.80 if row["dtype"] == "float32" else None
        return None if k < 8192 or n < 1024 else 0.85 if k >= 131072 else 0.88
    if k < 8192 or n < 1024:
        return None
    return 0.92 if row["mode"] == "forward" else 0.88


def verdicts(report):
    """Targets that were missed, and peers that were faster, in words."""
    ceilings = report.get("ceilings", {})
    for row in report.get("grid", []):
        name = f"{row['problem']} {row['dtype']} {row['mode']}"
        reached, wanted = share(row, ceilings), target(row)
        if reached is not None and wanted is not None and reached < wanted:
            yield f"{name}: {reached:.2f} of the measured rate, to be {wanted:.2f}"
        for peer in ("compile", "liger"):
            if row.get("us") is not None and row.get(peer) is not None and row[peer] < row["us"]:
                yield f"{name}: {PEERS[peer]} is faster, {row[peer]:.4g} us to {row['us']:.4g}"
    for row in report.get("linear", []):
        extra, wide = row.get("extra memory / logits"), int(row["problem"].split(" x ")[2]) >= 32768
        if extra is not None and wide and extra > 1 / 8:
            yield f"linear {row['problem']} {row['dtype']}: {extra:.3f} of the logits' memory, to be 0.125"


PEERS = {"torch": "torch", "compile": "torch.compile", "triton": "Triton", "liger": "Liger"}
LINEAR_COLUMNS = ("products alone", "torch", "torch.compile", "Liger", "extra memory / logits", "torch's")


def number(value, digits=3):
    """A number as a table's cell."""
    return "" if value is None else f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def table(report):
    """The report as markdown."""
    ceilings = report.get("ceilings", {})
    lines = [f"# {report['device']}, {report['date']}", ""]
    lines += [", ".join(f"{name} {version}" for name, version in report["versions"].items()), ""]
    rates = ", ".join(f"{name} {number(rate)}" for name, rate in ceilings.items())
    lines += [f"Measured rates, TB/s: {rates or 'none'}.", ""]
    for name, outcome in {**report.get("smoke", {}), **report.get("checks", {})}.items():
        lines.append(f"- {name}: {outcome}")
    missed = list(verdicts(report))
    if report.get("grid"):
        lines += ["", "Behind the targets:" if missed else "No target of what was measured is missed."]
    lines += [f"- {what}" for what in missed]
    lines += [
        "",
        f"| problem | dtype | mode | us | TB/s | share | target | {' | '.join(PEERS.values())} |",
        "|---|" + "---|" * (6 + len(PEERS)),
    ]
    for row in report.get("grid", []):
        cells = [row["problem"], row["dtype"], row["mode"], number(row.get("us"), 4)]
        rate = None if row.get("us") is None else row["bytes"] / row["us"] / 1e6
        cells += [number(rate), number(share(row, ceilings), 2), number(target(row), 2)]
        cells += [number(row.get(peer), 4) for peer in PEERS]
        lines.append("| " + " | ".join(cells) + " |")
    if report.get("bare"):
        lines += ["", "| over Numba's arrays | dtype | mode | us | TB/s |", "|---|---|---|---|---|"]
        for row in report["bare"]:
            cells = [row["problem"], row["dtype"], row["mode"], number(row["us"], 4)]
            lines.append("| " + " | ".join([*cells, number(row["bytes"] / row["us"] / 1e6)]) + " |")
    if report.get("general"):
        lines += ["", "| general kernels | dtype | us | largest error against float64 |", "|---|---|---|---|"]
        for row in report["general"]:
            cells = [
                row["problem"],
                row["dtype"],
                number(row.get("us"), 4),
                number(row.get("largest error"), 2),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    if report.get("linear"):
        lines += ["", "| linear_cross_entropy | dtype | us | " + " | ".join(LINEAR_COLUMNS) + " |"]
        lines += ["|---|---|---|" + "---|" * len(LINEAR_COLUMNS)]
        for row in report["linear"]:
            cells = [row["problem"], row["dtype"], number(row.get("us"), 4)]
            cells += [number(row.get(column)) for column in LINEAR_COLUMNS]
            lines.append("| " + " | ".join(cells) + " |")
    if report.get("estimators"):
        lines += ["", "| fit, seconds | on the GPU | on the CPU | torch on the GPU |", "|---|---|---|---|"]
        for row in report["estimators"]:
            cells = [row["fit"], *(number(row.get(name)) for name in ("cuda", "cpu", "torch"))]
            lines.append("| " + " | ".join(cells) + " |")
    if report.get("launch"):
        lines += ["", "| host cost of a call | us |", "|---|---|"]
        lines += [f"| {name} | {number(us)} |" for name, us in report["launch"].items()]
    if report.get("errors"):
        lines += ["", "Failed:", *(f"- {where}: {what}" for where, what in report["errors"].items())]
    lines += ["", "Not built, so not measured: thread-block clusters."]
    return "\n".join(lines) + "\n"


def stem(report):
    """Name of a report's files, without their suffix."""
    return f"{report['date']}-{report['device'].replace(' ', '-')}"


def write(report, folder):
    """Both files of a report; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{stem(report)}.json", folder / f"{stem(report)}.md"
    paths[0].write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    paths[1].write_text(table(report), encoding="utf-8")
    return paths


def versions():
    """Versions of what takes part, and the driver's."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    tool = shutil.which("nvidia-smi")
    if tool:
        asked = "driver_version,clocks.max.sm,clocks.max.mem,memory.total"
        query = [tool, f"--query-gpu={asked}", "--format=csv,noheader"]
        said = ""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            said = subprocess.run(
                query, capture_output=True, text=True, timeout=30, check=False
            ).stdout.strip()
        found["driver, SM and memory clock, memory"] = said.splitlines()[0] if said else "unknown"
    return found


def need_gpu():
    """PyTorch, or None where it is not there or sees no device; without a GPU the end of the program, and why."""
    from fastxent import _backend

    try:
        _backend.choose("cuda")
    except ImportError as error:
        sys.exit(_missing(str(error)))
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def device_name(torch):
    """Name of the GPU."""
    if torch is not None:
        return torch.cuda.get_device_name()
    from numba import cuda

    name = cuda.get_current_device().name
    return name.decode() if isinstance(name, bytes) else name


def _missing(why):
    print(f"benchmarks/gpu/run.py: nothing measured: {why}", file=sys.stderr)
    return 2


# ------------------------------------------------------------------------------------------------------- timing


def microseconds(torch, calls, repeats=None):
    """Median time on the device of one call; the calls of a list rotate, so that each finds its input out of cache.

    Before each timing the device pauses, so that the host's time for queuing is not in it. Of more than two calls a
    round is timed at once.
    """
    for call in calls:
        call()
    torch.cuda.synchronize()
    rounds = [calls] if len(calls) > 2 else [[call] for call in calls]
    times = []
    for i in range(repeats or REPEATS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        timed = rounds[i % len(rounds)]
        torch.cuda._sleep(AHEAD)
        start.record()
        for call in timed:
            call()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) * 1000 / len(timed))
    return statistics.median(times)


def ceilings(torch, quick):
    """TB/s of copying, reading and filling, and of our own 16-byte copy, over buffers beyond the cache."""
    n = COPIED >> (2 if quick else 0)
    a, b = (torch.zeros(n, device=DEVICE) for _ in range(2))
    half = n // 2
    copies = [lambda: b[:half].copy_(a[:half]), lambda: b[half:].copy_(a[half:])]
    reads = [lambda: a[:half].sum(), lambda: b[half:].sum()]
    fills = [lambda: a[:half].fill_(1.0), lambda: b[half:].fill_(1.0)]
    of = functools.partial(microseconds, torch)
    found = {
        "copy": 8 * half / of(copies) / 1e6,
        "read": 4 * half / of(reads) / 1e6,
        "fill": 4 * half / of(fills) / 1e6,
    }
    kernel = own_copy()
    blocks = 132 * 16
    mine = [lambda: kernel(blocks, b.data_ptr(), a.data_ptr(), half // 4)]
    mine.append(lambda: kernel(blocks, b.data_ptr() + 4 * half, a.data_ptr() + 4 * half, half // 4))
    found["copy in Numba"] = 8 * half / of(mine) / 1e6
    return found


def own_copy():
    """A copy with the kernels' own loads and stores: what they are to be judged by."""
    from numba import cuda, float32, int64, types

    from fastxent._core_cuda import intrinsics as on

    pointer = types.CPointer(float32)

    @cuda.jit((pointer, pointer, int64))
    def copy(to, source, vectors):
        i = int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
        step = int64(cuda.gridDim.x) * cuda.blockDim.x
        while i < vectors:
            on.store16(to, i * 4, on.load16(source, i * 4))
            i += step

    return lambda blocks, *values: copy[blocks, 512](*values)


# -------------------------------------------------------------------------------------------------- correctness


def tests(limit):
    """The tests that need a GPU, by pytest, in as many processes as share the compilations, for so many seconds."""
    if lacking():
        return lacking()
    command = [*pytest(), "-m", "gpu and not slow"]
    if importlib.util.find_spec("xdist"):
        command += ["-n", "8"]
    files = [str(ROOT / "tests" / f"test_cuda_{name}.py") for name in ("kernels", "core", "doors", "torch")]
    return outcome([*command, *files], limit)


def lacking():
    """What the tests need and this machine lacks, in words, or nothing."""
    names = [
        name for name in ("pytest", "numpy", "mpmath", "ml_dtypes") if not importlib.util.find_spec(name)
    ]
    return f"not run: {', '.join(names)} not installed" if names else ""


def pytest():
    """The beginning of a command of pytest that needs no plugin, and that a warning of another package does not end."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore"]
    command += [] if importlib.util.find_spec("hypothesis") else ["--noconftest"]
    return command + (["--benchmark-disable"] if importlib.util.find_spec("pytest_benchmark") else [])


def sanitizer(tool, limit):
    """compute-sanitizer over the smallest tests of every kernel."""
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda", "/opt/cuda"]
    places = os.pathsep.join([os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes if home)])
    program = shutil.which("compute-sanitizer", path=places)
    if program is None:
        return "compute-sanitizer is not installed"
    if lacking():
        return lacking()
    chosen = "(test_labels and float32) or (test_cuda_core and not float64 and not float16)"
    test = [*pytest(), "-m", "not slow", "-k", chosen]
    files = [str(ROOT / "tests" / f"test_cuda_{name}.py") for name in ("kernels", "core")]
    return outcome([program, "--tool", tool, "--error-exitcode", "9", *test, *files], limit)


def outcome(command, limit):
    """What a command's status and its last lines say of it, or that it took too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, cwd=ROOT, check=False)
    except subprocess.TimeoutExpired:
        return f"not finished in {limit:.0f} s"
    if done.returncode == 0:
        return f"passed: {done.stdout.strip().splitlines()[-1]}"
    return f"FAILED: {(done.stdout.strip() or done.stderr.strip())[-300:]}"


def largest_error(torch, n, k, dtype):
    """Largest error of the gradient over a poisoned output, in units of its scale 1 / n, against float64."""
    import fastxent as fx

    generator = torch.Generator(DEVICE).manual_seed(0)
    worst = 0.0
    for offset in (0.0, 1000.0):
        z = (3 * torch.randn(n, k, device=DEVICE, generator=generator) + offset).to(getattr(torch, dtype))
        y = torch.randint(0, k, (n,), device=DEVICE, generator=generator)
        out = torch.full_like(z, math.nan)
        loss, _ = fx.softmax_cross_entropy_with_grad(z, y, out=out)
        parts = z.split(max(1, (1 << 26) // k)), y.split(max(1, (1 << 26) // k))
        entropy = functools.partial(torch.nn.functional.cross_entropy, reduction="sum")
        truth = sum(entropy(x.double(), labels) for x, labels in zip(*parts, strict=True)) / n
        worst = max(worst, abs(loss.double() - truth).item() / truth.item())
        for rows in torch.arange(n, device=DEVICE).split(max(1, (1 << 26) // k)):
            p = torch.softmax(z[rows].double(), 1)
            p[torch.arange(len(rows), device=DEVICE), y[rows]] -= 1
            worst = max(worst, (out[rows].double() * n - p).abs().max().item())
    return worst


def smoke(torch, quick, errors):
    """{what: largest error}: small problems, one or more of every kernel of losses and gradients."""
    for n, k in SMALL[:3] if quick else SMALL:
        for dtype in DTYPES:
            name = f"error {n} x {k} {dtype}"
            try:
                error = largest_error(torch, n, k, dtype)
                said = f"{error:.1e}" if error <= LIMITS[dtype] else f"FAILED: {error:.1e}"
            except Exception as problem:
                said = f"FAILED: {problem!r}"[:300]
            if said.startswith("FAILED"):
                errors[name] = said
            yield {name: said}


# --------------------------------------------------------------------------------------------------------- grid


def problems(torch, n, k, dtype):
    """As many (logits, labels, lse, gradient) as rotate through more than the cache."""
    itemsize = DTYPES[dtype]
    many = max(2, min(16, math.ceil(CACHE / (n * k * itemsize))))
    made = []
    for seed in range(many):
        generator = torch.Generator(DEVICE).manual_seed(seed)
        z = torch.randn(n, k, device=DEVICE, generator=generator).to(getattr(torch, dtype))
        y = torch.randint(0, k, (n,), device=DEVICE, generator=generator)
        made.append((z, y, torch.logsumexp(z.float(), 1), torch.empty_like(z)))
    return made


def ours(mode, z, y, lse, out):
    """One call of a mode, without checks and without a look at the labels for a denominator."""
    import fastxent as fx

    options = {"check": False, "ignore_index": None}
    if mode == "forward":
        return lambda: fx.softmax_cross_entropy_forward(z, y, reduction="none", **options)
    if mode == "backward":
        return lambda: fx.softmax_cross_entropy_backward(1.0, z, y, lse, out=out, **options)
    target = z if mode == "in place" else out
    return lambda: fx.softmax_cross_entropy_with_grad(z, y, out=target, **options)


def peers(torch, mode, z, y, lse, out):
    """Calls of PyTorch eager, compiled, Triton and Liger for a mode; autograd's backward pass alone is not timed."""
    loss_of = torch.nn.functional.cross_entropy

    def fused(function):
        leaf = z.detach().requires_grad_(True)

        def call():
            leaf.grad = None
            function(leaf, y).backward()

        return call

    found = {}
    if mode == "forward":
        compiled = torch.compile(loss_of, dynamic=False)
        found = {"torch": lambda: loss_of(z, y), "compile": lambda: compiled(z, y)}
    elif mode == "fused":
        found = {"torch": fused(loss_of), "compile": fused(torch.compile(loss_of, dynamic=False))}
    if importlib.util.find_spec("triton"):
        peer = triton_peer()
        found["triton"] = {
            "forward": lambda: peer.forward(z, y),
            "backward": lambda: peer.backward(z, y, lse, out),
            "fused": lambda: peer.fused(z, y, out),
            "in place": lambda: peer.fused(z, y, z),
        }[mode]
    try:
        from liger_kernel.transformers.functional import liger_cross_entropy
    except ImportError:
        return found
    # Liger writes the gradient over the logits whenever there is one to be asked for.
    return found | ({"liger": fused(liger_cross_entropy)} if mode == "in place" else {})


@functools.cache
def triton_peer():
    """`peer.py` beside this file."""
    spec = importlib.util.spec_from_file_location("fastxent_gpu_peer", Path(__file__).with_name("peer.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def key(row):
    """What tells a row of a part from the others."""
    return row["problem"], row["dtype"], row.get("mode")


def grid(torch, quick, errors, known=()):
    """Rows of every shape, dtype and mode, but for those known."""
    for n, k in SHAPES[-3:] if quick else SHAPES:
        for dtype, itemsize in DTYPES.items():
            rows = [{"problem": f"{n} x {k}", "dtype": dtype, "mode": mode} for mode in MODES]
            rows = [row for row in rows if key(row) not in known]
            made = problems(torch, n, k, dtype) if rows else []
            for row in rows:
                row["bytes"] = bytes_moved(n, k, itemsize, row["mode"])
                try:
                    row["us"] = microseconds(torch, [ours(row["mode"], *p) for p in made])
                except Exception as error:  # one kernel that fails leaves the rest measured
                    errors[" ".join(key(row))] = repr(error)[:300]
                yield row
            del made
            torch.cuda.empty_cache()
    yield from (row for row in sigmoid_rows(torch, quick, errors, known))


def peer_rows(torch, rows, errors):
    """Add the peers' times to rows of the grid that have none; yields nothing of its own."""
    groups = {}
    for row in rows:
        if not row["problem"].endswith("elements") and not row.get("peers"):
            groups.setdefault(key(row)[:2], []).append(row)
    for (problem, dtype), group in groups.items():
        n, k = map(int, problem.split(" x "))
        # A compiler that has seen a function in eight shapes leaves it to eager from then on.
        torch.compiler.reset()
        made = problems(torch, n, k, dtype)
        for row in group:
            row["peers"] = True
            calls = [peers(torch, row["mode"], *p) for p in made]
            for name in calls[0]:
                try:
                    row[name] = microseconds(torch, [call[name] for call in calls], 10)
                except Exception as error:
                    errors[f"{name} {' '.join(key(row))}"] = repr(error)[:300]
            yield None
        del made, calls
        torch.cuda.empty_cache()


def bare_rows(quick, errors):
    """Loss and gradient over Numba's arrays, for a machine without PyTorch."""
    from numba import cuda

    import fastxent as fx

    for n, k in SHAPES[-3:] if quick else SHAPES:
        row = {
            "problem": f"{n} x {k}",
            "dtype": "float32",
            "mode": "fused",
            "bytes": bytes_moved(n, k, 4, "fused"),
        }
        try:
            z, out = (cuda.device_array((n, k), "float32") for _ in range(2))
            y = cuda.device_array(n, "int64")
            for array in (z, y):
                cuda.cudadrv.driver.device_memset(array, 0, array.nbytes)
            call = functools.partial(
                fx.softmax_cross_entropy_with_grad, z, y, out=out, check=False, ignore_index=None
            )
            times = []
            for _ in range(5):
                call()
            for _ in range(REPEATS):
                start, stop = cuda.event(), cuda.event()
                start.record()
                call()
                stop.record()
                stop.synchronize()
                times.append(start.elapsed_time(stop) * 1000)
            row["us"] = statistics.median(times)
        except Exception as error:
            errors[" ".join(key(row))] = repr(error)[:300]
            continue
        yield row


def sigmoid_rows(torch, quick, errors, known=()):
    """Binary cross-entropy, fused."""
    import fastxent as fx

    n = ELEMENTS >> (3 if quick else 0)
    for dtype, itemsize in DTYPES.items():
        made = []
        if (f"{n} elements", dtype, "fused") in known:
            continue
        for _ in range(3):
            z = torch.randn(n, device=DEVICE).to(getattr(torch, dtype))
            made.append((z, (torch.rand_like(z) < 0.5).to(z.dtype), torch.empty_like(z)))
        row = {"problem": f"{n} elements", "dtype": dtype, "mode": "fused"}
        row["bytes"] = element_bytes(n, itemsize, itemsize)
        door = functools.partial(fx.sigmoid_cross_entropy_with_grad, check=False)
        try:
            row["us"] = microseconds(torch, [functools.partial(door, z, y, out=g) for z, y, g in made])
        except Exception as error:
            errors[f"sigmoid {dtype}"] = repr(error)[:300]
        yield row


def general_calls(torch, n, k, dtype):
    """Logits, and what the general kernels do with them in any dtype, by name."""
    import fastxent as fx

    generator = torch.Generator(DEVICE).manual_seed(0)
    make = functools.partial(torch.randn, n, k, device=DEVICE, generator=generator)
    z, x = (make().to(getattr(torch, dtype)) for _ in range(2))  # every operand is rounded to the dtype once
    y = torch.randint(0, k, (n,), device=DEVICE, generator=generator)
    soft, p = (torch.rand(n, k, device=DEVICE, generator=generator).to(z.dtype) for _ in range(2))
    focal, options = fx.FocalLoss(), {"check": False}
    calls = {
        "grad_hess": lambda z: fx.SoftmaxCrossEntropy().grad_hess(z, y, **options),
        "focal upper": lambda z: focal.grad_hess(z, y, hessian="upper", **options)[1],
        "hvp": lambda z: focal.hvp(z, y, x.to(z.dtype), **options),
        "cross-entropy hvp": lambda z: fx.SoftmaxCrossEntropy().hvp(z, y, x.to(z.dtype), **options),
        "soft targets": lambda z: fx.softmax_cross_entropy_with_grad(z, soft.to(z.dtype), **options),
        "jensen_shannon": lambda z: fx.JensenShannonLoss().loss_grad(z, soft.to(z.dtype), **options),
        "distillation": lambda z: fx.DistillationLoss().loss_grad(z, (y, x.to(z.dtype)), **options),
        "binary hess": lambda z: fx.BinaryFocalLoss().grad_hess(z, soft.to(z.dtype), **options),
        "probabilities": lambda z: fx.binary_cross_entropy_with_grad(
            p.to(z.dtype), soft.to(z.dtype), **options
        ),
    }
    return z, calls


def general_rows(torch, quick, errors, known=()):
    """Second derivatives, divergences and probabilities: time, and the largest error against float64, of its scale."""
    for n, k in GENERAL[:1] if quick else GENERAL:
        for dtype in DTYPES:
            z, calls = general_calls(torch, n, k, dtype)
            for name, call in calls.items():
                row = {"problem": f"{n} x {k} {name}", "dtype": dtype, "mode": "general", "bytes": 0}
                if key(row) in known:
                    continue
                try:
                    results, truth = call(z), call(z.double())
                    pairs = (
                        zip(results, truth, strict=True) if isinstance(results, tuple) else [(results, truth)]
                    )
                    row["largest error"] = max(
                        ((a.double() - b).abs().max() / b.abs().max()).item() for a, b in pairs
                    )
                    row["us"] = microseconds(torch, [functools.partial(call, z)], 10)
                except Exception as error:
                    errors[f"{row['problem']} {dtype}"] = repr(error)[:300]
                yield row


# ------------------------------------------------------------------------------------------------ linear, estimators


def linear_calls(torch, X, W, y):
    """Loss and all gradients of X W by us, by PyTorch, compiled and by Liger; and the three products alone."""
    import fastxent as fx

    leaves = X.detach().requires_grad_(True), W.t().contiguous().requires_grad_(True)

    def backward(loss_of):
        def call():
            for leaf in leaves:
                leaf.grad = None
            loss_of(*leaves).backward()

        return call

    def whole(x, w):
        return torch.nn.functional.cross_entropy(torch.nn.functional.linear(x, w), y)

    def products():
        Z = X @ W
        return Z @ W.t(), X.t() @ Z

    found = {
        "us": lambda: fx.linear_cross_entropy_with_grad(X, W, y, check=False, ignore_index=None),
        "products alone": products,
        "torch": backward(whole),
        "torch.compile": backward(torch.compile(whole, dynamic=False)),
    }
    try:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy
    except ImportError:
        return found
    return found | {"Liger": backward(lambda x, w: liger_fused_linear_cross_entropy(x, w, y))}


def extra_memory(torch, call):
    """Bytes that a call holds at its peak beyond what there was, its results among them."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = call()
    torch.cuda.synchronize()
    del results
    return torch.cuda.max_memory_allocated() - before


def linear_rows(torch, quick, errors, known=()):
    """linear_cross_entropy: times, and the peak of its memory beyond the gradients as a share of the logits."""
    for n, d, k in LINEAR[:1] if quick else LINEAR:
        for dtype, itemsize in DTYPES.items():
            torch.compiler.reset()
            kind = getattr(torch, dtype)
            X = torch.randn(n, d, device=DEVICE).to(kind)
            W = (torch.randn(d, k, device=DEVICE) / math.sqrt(d)).to(kind)
            y = torch.randint(0, k, (n,), device=DEVICE)
            row = {"problem": f"{n} x {d} x {k}", "dtype": dtype}
            if key(row) in known:
                continue
            results, logits = (n * d + d * k) * itemsize, n * k * itemsize
            calls = linear_calls(torch, X, W, y)
            for name, call in calls.items():
                try:
                    row[name] = microseconds(torch, [call], 10)
                    where = {"us": "extra memory / logits", "torch": "torch's"}.get(name)
                    if where:
                        row[where] = (extra_memory(torch, call) - results) / logits
                except Exception as error:  # out of memory, say: the rest is worth having
                    errors[f"{name} {row['problem']} {dtype}"] = repr(error)[:300]
            yield row
            del X, W, calls
            torch.cuda.empty_cache()


def seconds(torch, call):
    """Wall time of a second run; the first compiles."""
    call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def torch_epoch(torch, X, y, hidden, batch):
    """A function that trains PyTorch's network of one hidden layer for an epoch, with its fused Adam."""
    X, y = torch.as_tensor(X, device=DEVICE), torch.as_tensor(y, device=DEVICE)
    layers = torch.nn.Linear(X.shape[1], hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 10)
    network = torch.nn.Sequential(*layers).to(DEVICE)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)

    def epoch():
        for rows in torch.randperm(len(X), device=DEVICE).split(batch):
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(network(X[rows]), y[rows]).backward()
            optimizer.step()

    return epoch


def torch_logistic(torch, X, y, C, steps):
    """A function that fits PyTorch's multinomial regression by its L-BFGS."""
    X, y = torch.as_tensor(X, device=DEVICE), torch.as_tensor(y, device=DEVICE)

    def fit():
        W = torch.zeros(X.shape[1], 10, device=DEVICE, requires_grad=True)
        b = torch.zeros(10, device=DEVICE, requires_grad=True)
        optimizer = torch.optim.LBFGS([W, b], max_iter=steps, history_size=20, line_search_fn="strong_wolfe")

        def closure():
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(X @ W + b, y) + 0.5 / (C * len(X)) * (W * W).sum()
            loss.backward()
            return loss

        optimizer.step(closure)

    return fit


def estimators(torch, quick, errors):
    """Fits on the GPU, from and to memory, beside our CPU and PyTorch: MNIST's shape, ten classes that overlap."""
    import warnings

    import numpy as np

    import fastxent as fx

    n = ROWS // 10 if quick else ROWS
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((10, 784)).astype(np.float32)
    y = rng.integers(0, 10, n)
    X = centers[y] + 8 * rng.standard_normal((n, 784)).astype(np.float32)

    def attempt(name, functions):
        row = {"fit": name}
        for where, function in functions.items():
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that a fit of so many steps has not converged
                    row[where] = seconds(torch, function)
            except Exception as error:
                errors[f"{name} {where}"] = repr(error)[:300]
        return row

    def ours(make):
        return {name: functools.partial(lambda name: make(name).fit(X, y), name) for name in ("cuda", "cpu")}

    logistic = ours(lambda name: fx.LogisticRegression(tol=0.0, max_iter=STEPS, backend=name, solver="lbfgs"))
    peer = {"torch": torch_logistic(torch, X, y, 1.0, STEPS)}
    yield attempt(f"LogisticRegression {n} x 784, {STEPS} iterations", logistic | peer)
    for batch in BATCHES[-1:] if quick else BATCHES:
        network = ours(
            functools.partial(
                lambda batch, name: fx.MLPClassifier((256,), batch_size=batch, max_iter=1, backend=name),
                batch,
            )
        )
        peer = {"torch": torch_epoch(torch, X, y, 256, batch)}
        yield attempt(f"MLPClassifier 784-256-10, {n} rows, an epoch of batches of {batch}", network | peer)


def launch_cost(torch):
    """Host time of a call that the device finishes at once, in us; and of the replay of a recorded graph."""
    import fastxent as fx

    z, y = torch.zeros(8, 16, device=DEVICE), torch.zeros(8, dtype=torch.int64, device=DEVICE)
    out = torch.empty_like(z)
    call = functools.partial(
        fx.softmax_cross_entropy_with_grad, z, y, out=out, check=False, ignore_index=None
    )

    def host(function):
        for _ in range(20):
            function()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(HOST):
            function()
        spent = time.perf_counter() - start
        torch.cuda.synchronize()
        return spent / HOST * 1e6

    found = {"softmax_cross_entropy_with_grad": host(call)}
    found["torch cross_entropy, forward"] = host(lambda: torch.nn.functional.cross_entropy(z, y))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    found["replay of a graph"] = host(graph.replay)
    return found


# In order, with the minutes that each has of 25.
MINUTES = {
    "smoke": 2.0,
    "ceilings": 0.6,
    "grid": 6.0,
    "launch": 0.6,
    "peers": 4.5,
    "checks": 4.0,
    "general": 2.0,
    "linear": 2.0,
    "estimators": 2.0,
    "bare": 0.8,
}
PARTS = tuple(MINUTES)
NAMED = (
    "smoke",
    "ceilings",
    "launch",
    "peers",
    "checks",
)  # numbers by name; the other parts are rows of tables
WITHOUT_TORCH = ("checks", "bare")
LOST = (
    3  # status where the device's context is lost, and with it all that the process could still have measured
)
TRIES = 4  # processes of a part


def checks(torch, quick, left):
    """{what: outcome}: errors of large problems, then the GPU's tests and compute-sanitizer in what time is left."""
    if torch is not None:
        for n, k in SHAPES[-3:] if quick else SHAPES:
            for dtype in DTYPES:
                yield {f"largest error {n} x {k} {dtype}": f"{largest_error(torch, n, k, dtype):.1e}"}
    yield {"tests": tests(max(30.0, 0.6 * left()))}
    for tool in ("memcheck", "racecheck"):
        yield {tool: sanitizer(tool, max(30.0, 0.45 * left()))}


def lost(torch):
    """Whether the device answers nothing any more: after an illegal address, say, no call of the process does."""
    if torch is None:
        return False
    try:
        torch.cuda.synchronize()
    except Exception:
        return True
    return False


def conduct(options):
    """Every part in a process of its own, each within its time; the status, as of `main`."""
    begun = time.monotonic()
    failed = 0
    for part, minutes in MINUTES.items():
        left = options.minutes - (time.monotonic() - begun) / 60
        minutes = max(min(left, minutes * options.minutes / 25), 0.0)
        command = [sys.executable, str(Path(__file__)), "--only", part, "--quiet"]
        command += ["--minutes", f"{minutes:.2f}", "--out", str(options.out)]
        command += ["--quick"] if options.quick else []
        for attempt in range(TRIES):
            why = None
            try:
                # what a row takes at most, and the way out, are beyond the limit
                done = subprocess.run(
                    [*command, *["--resume"] * bool(attempt)], timeout=60 * minutes + 90, check=False
                )
                status = done.returncode
            except subprocess.TimeoutExpired:
                status, why = 1, f"killed: not finished after {minutes:.1f} minutes and 90 seconds more"
            if status == 2:
                return 2
            if status not in (0, 1, LOST):
                why = f"its process ended with status {status}"
            if why:
                note(options.out, f"{part}, process {attempt + 1}", why)
            failed |= status != 0
            if status in (0, 1):
                break
    for path in newest(options.out):
        print(path.read_text(encoding="utf-8"))
    return failed


def newest(folder):
    """The table that was written last, as a list of one; none where there is none."""
    return sorted(folder.glob("*.md"), key=lambda path: path.stat().st_mtime)[-1:]


def note(folder, where, what):
    """Put a failure of a part's process into the report."""
    print(f"{where}: {what}", file=sys.stderr)
    for path in newest(folder):
        report = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        report.setdefault("errors", {})[where] = what
        write(report, folder)


def main(arguments=None):
    """Run the parts that are asked for; 0, 1 where something failed or did not fit, or 2 where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", choices=PARTS, help="parts to run, in this process")
    parser.add_argument("--quick", action="store_true", help="small buffers and three shapes")
    parser.add_argument("--minutes", type=float, default=25.0, help="after which nothing new is begun")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--resume", action="store_true", help="go on after the rows that the report has")
    parser.add_argument("--quiet", action="store_true", help="print no table")
    options = parser.parse_args(arguments)
    if options.only is None:
        return conduct(options)
    stop = time.monotonic() + 60 * options.minutes
    torch, quick = need_gpu(), options.quick
    report = {"date": datetime.date.today().isoformat(), "device": device_name(torch)}
    numbers = options.out / f"{stem(report)}.json"
    if numbers.exists():
        report = json.loads(numbers.read_text(encoding="utf-8"))
    report["versions"] = versions()
    errors = report.setdefault("errors", {})
    status = 0
    for part in (part for part in PARTS if part in options.only):
        errors.pop(part, None)
        if time.monotonic() > stop:
            errors[part] = f"not begun: {options.minutes:g} minutes were over"
            continue
        if torch is None and part not in WITHOUT_TORCH:
            errors[part] = "not begun: PyTorch is not installed, or sees no CUDA device"
            continue
        fresh = {} if part in NAMED else []
        found = report[part] = report.get(part, fresh) if options.resume else fresh
        known = set() if part in NAMED else {key(row) for row in found if "problem" in row}
        rows = {
            "smoke": lambda: smoke(torch, quick, errors),
            "ceilings": lambda: [ceilings(torch, quick)],
            "launch": lambda: [launch_cost(torch)],
            "grid": lambda known=known: grid(torch, quick, errors, known),
            "peers": lambda: peer_rows(torch, report.get("grid", []), errors),
            "general": lambda known=known: general_rows(torch, quick, errors, known),
            "linear": lambda known=known: linear_rows(torch, quick, errors, known),
            "estimators": lambda: estimators(torch, quick, errors),
            "checks": lambda: checks(torch, quick, lambda: stop - time.monotonic()),
            "bare": lambda: bare_rows(quick, errors) if torch is None else [],
        }
        add = found.update if part in NAMED else found.append
        try:
            for row in rows[part]():
                if row is not None:
                    add(row)
                if lost(torch):
                    errors[f"{part}, after {row}"[:200]] = "the device's context is lost"
                    status = LOST
                write(report, options.out)
                if status:
                    break
                if time.monotonic() > stop:
                    errors[part] = f"cut off after {options.minutes:g} minutes"
                    break
        except Exception as error:  # what else was measured is worth keeping
            errors[part] = repr(error)[:500]
            status = LOST if lost(torch) else 0
        if status:
            break
    for path in write(report, options.out):
        if not options.quiet:
            print(path)
    if not options.quiet:
        print(table(report))
    return status or (1 if errors else 0)


if __name__ == "__main__":
    sys.exit(main())
