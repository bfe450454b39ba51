"""benchmarks/gpu/run.py without a GPU: it says what is missing, and its arithmetic and its tables are right."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cuda_twin
import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu" / "run.py"


@pytest.fixture(scope="module")
def bench():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("fastxent_gpu_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ORIGINAL.update({name: getattr(module, name) for name in ("microseconds", "seconds", "extra_memory")})
    return module


ORIGINAL = {}
REPORT = {
    "date": "2026-01-02",
    "device": "NVIDIA H200",
    "versions": {"numba-cuda": "0.30.4"},
    "ceilings": {"copy": 4.0, "read": 4.5},
    "checks": {"tests": "passed: 3 passed"},
    "grid": [
        {
            "problem": "8192 x 32768",
            "dtype": "float32",
            "mode": "fused",
            "bytes": 2147581952,
            "us": 600.0,
            "torch": 1e4,
        },
        {"problem": "8192 x 32768", "dtype": "float32", "mode": "forward", "bytes": 1073872896, "us": 250.0},
        {"problem": "16 x 131072", "dtype": "float16", "mode": "fused", "bytes": 8},
    ],
    "general": [
        {
            "problem": "65536 x 100 hvp",
            "dtype": "float32",
            "mode": "general",
            "us": 50.0,
            "largest error": 2e-7,
        }
    ],
    "linear": [
        {"problem": "8192 x 1024 x 32768", "dtype": "float32", "us": 9e3, "extra memory / logits": 0.0625}
    ],
    "estimators": [{"fit": "an epoch", "cuda": 0.25, "torch": 0.5}],
    "launch": {"a call": 12.5},
    "errors": {"16 x 131072 float16 fused": "it broke"},
}


def test_without_a_gpu():
    """Status 2 and one line that says why, before anything is measured or written."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("benchmarks/gpu/run.py: nothing measured: ")
    assert "backend='cuda' needs" in done.stderr
    assert done.stdout == ""


def test_bytes(bench):
    """What a perfect kernel moves: one read of the logits, or one read and one write, and a row's own numbers."""
    assert bench.bytes_moved(32768, 1024, 4, "forward") == 134_742_016
    assert bench.bytes_moved(32768, 1024, 4, "backward") == 268_959_744
    assert bench.bytes_moved(1_000_000, 10, 2, "fused") == 52_000_000
    assert bench.element_bytes(100, 4, 4) == 1200


def test_share_is_of_the_rate_measured_in_the_same_run(bench):
    assert bench.share(REPORT["grid"][0], REPORT["ceilings"]) == pytest.approx(2147581952 / 600 / 1e6 / 4.0)
    assert bench.share(REPORT["grid"][1], REPORT["ceilings"]) == pytest.approx(1073872896 / 250 / 1e6 / 4.5)
    assert bench.share(REPORT["grid"][2], REPORT["ceilings"]) is None
    assert bench.share(REPORT["grid"][0], {}) is None


def test_report(bench, tmp_path):
    """Both files, with the failures in them."""
    numbers, text = bench.write(REPORT, tmp_path / "new")
    assert json.loads(numbers.read_text()) == REPORT
    assert text.name == "2026-01-02-NVIDIA-H200.md"
    lines = text.read_text().splitlines()
    assert "| 8192 x 32768 | float32 | fused | 600 | 3.58 | 0.89 | 0.88 | 1e+04 |  |  |  |" in lines
    assert "No target of what was measured is missed." in lines
    assert "- 16 x 131072 float16 fused: it broke" in lines
    assert "| a call | 12.5 |" in lines
    assert "| 65536 x 100 hvp | float32 | 50 | 2e-07 |" in lines
    assert "| 8192 x 1024 x 32768 | float32 | 9000 |  |  |  |  | 0.0625 |  |" in lines
    assert "| an epoch | 0.25 |  | 0.5 |" in lines


@pytest.fixture
def in_memory(bench, monkeypatch):
    """The script on a device of memory: PyTorch's tensors there, no clock, no compiler."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    cuda_twin.install(monkeypatch)
    monkeypatch.setattr(bench, "DEVICE", "cpu")
    monkeypatch.setitem(sys.modules, "liger_kernel", None)  # which knows no memory
    monkeypatch.setattr(bench, "microseconds", lambda torch, calls, repeats=30: (calls[0](), 1.0)[1])
    monkeypatch.setattr(bench, "seconds", lambda torch, call: (call(), 1.0)[1])
    monkeypatch.setattr(bench, "extra_memory", lambda torch, call: 0)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    return torch


def test_general_part(bench, in_memory, monkeypatch):
    """Every call agrees with itself in float64."""
    monkeypatch.setattr(bench, "GENERAL", [(6, 5)])
    errors = {}
    rows = list(bench.general_rows(in_memory, False, errors))
    assert set(errors) == set()
    assert len(rows) == 9 * len(bench.DTYPES)
    limits = {"float32": 1e-5, "float16": 3e-3, "bfloat16": 2e-2}
    assert all(row["largest error"] < limits[row["dtype"]] for row in rows), rows


def test_linear_part(bench, in_memory, monkeypatch):
    """Every column is there; nothing fails."""
    monkeypatch.setattr(bench, "LINEAR", [(40, 6, 50)])
    errors = {}
    rows = list(bench.linear_rows(in_memory, False, errors))
    assert errors == {}
    assert [row["dtype"] for row in rows] == list(bench.DTYPES)
    for row in rows:
        assert {"us", "products alone", "torch", "torch.compile", "torch's", "extra memory / logits"} <= set(
            row
        )


def test_estimators_part(bench, in_memory, monkeypatch):
    monkeypatch.setattr(bench, "ROWS", 1000)
    monkeypatch.setattr(bench, "STEPS", 5)
    errors = {}
    rows = list(bench.estimators(in_memory, True, errors))
    assert errors == {}
    assert all(row["cuda"] == row["cpu"] == row["torch"] == 1.0 for row in rows)
    assert len(rows) == 2


class Event:
    """A moment on a device that takes no time."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        pass

    synchronize = record

    def elapsed_time(self, other):
        return 1.0


class Graph:
    """A recorded graph, whose replay does nothing."""

    def replay(self):
        pass


@pytest.fixture
def on_a_device(bench, in_memory, monkeypatch):
    """The whole script on tensors in memory: what only a device has stands still; peers by PyTorch."""
    torch = in_memory
    loss_of = torch.nn.functional.cross_entropy
    cuda = {
        "synchronize": lambda: None,
        "_sleep": lambda cycles: None,
        "Event": Event,
        "empty_cache": lambda: None,
        "get_device_name": lambda: "a device in memory",
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 0,
        "max_memory_allocated": lambda: 0,
        "CUDAGraph": Graph,
        "graph": lambda graph: contextlib.nullcontext(),
    }
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for name in ("microseconds", "seconds", "extra_memory"):  # the script's own again
        monkeypatch.setattr(bench, name, ORIGINAL[name])
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    functions = SimpleNamespace(
        liger_cross_entropy=loss_of,
        liger_fused_linear_cross_entropy=lambda x, w, y: loss_of(torch.nn.functional.linear(x, w), y),
    )
    for name in ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.functional"):
        monkeypatch.setitem(sys.modules, name, functions)
    peer = SimpleNamespace(forward=loss_of, backward=lambda *p: None, fused=lambda *p: None)
    found = SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: True), metadata=importlib.metadata)
    monkeypatch.setattr(bench, "importlib", found)
    monkeypatch.setattr(bench, "triton_peer", lambda: peer)
    monkeypatch.setattr(bench, "own_copy", lambda: lambda *values: None)
    monkeypatch.setattr(bench, "need_gpu", lambda: torch)
    small = {
        "SHAPES": [(5, 40), (64, 10)],
        "SMALL": [(5, 40)],
        "LINEAR": [(40, 6, 50)],
        "GENERAL": [(6, 5)],
        "BATCHES": (64,),
    }
    small |= {
        "ROWS": 200,
        "STEPS": 2,
        "ELEMENTS": 1 << 10,
        "CACHE": 1 << 10,
        "COPIED": 1 << 10,
        "REPEATS": 2,
        "HOST": 2,
    }
    for name, value in small.items():
        assert hasattr(bench, name)
        monkeypatch.setattr(bench, name, value)
    return torch


def test_every_part(bench, on_a_device, monkeypatch, tmp_path):
    """All of the script once, without a GPU: no part fails, peers have their columns, rows are written as they come."""
    commands, written = [], []

    def ran(command, **options):
        commands.append(command)
        if "racecheck" in command:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return SimpleNamespace(returncode=0, stdout="driver\n3 passed", stderr="")

    write = bench.write
    monkeypatch.setattr(bench.subprocess, "run", ran)
    monkeypatch.setattr(bench.shutil, "which", lambda program, path=None: program)
    monkeypatch.setattr(bench, "write", lambda *a: (written.append(1), write(*a))[1])
    assert bench.main(["--out", str(tmp_path), "--only", "smoke"]) == 0
    assert bench.main(["--out", str(tmp_path), "--only", *bench.PARTS[1:]]) == 0
    (numbers,) = tmp_path.glob("*.json")
    report = json.loads(numbers.read_text())
    assert report["errors"] == {}
    assert set(bench.PARTS) <= set(report)  # the first run's part too
    assert [command[0] for command in commands[-3:]] == [sys.executable, *["compute-sanitizer"] * 2]
    assert "-n" in commands[-3]
    assert report["checks"]["tests"] == "passed: 3 passed"
    assert report["checks"]["racecheck"].startswith("not finished in ")
    grid = report["grid"]
    assert len(grid) == 2 * 3 * 4 + 3
    peers = {row["mode"]: set(row) & set(bench.PEERS) for row in grid[:4]}
    assert peers["forward"] == peers["fused"] == {"torch", "compile", "triton"}
    assert peers["backward"] == {"triton"}
    assert peers["in place"] == {"triton", "liger"}
    assert len(written) > len(grid) + len(report["general"]) + len(report["linear"])
    assert float(report["checks"]["largest error 64 x 10 float32"]) < 1e-5


def test_time_that_is_over(bench, on_a_device, monkeypatch, tmp_path):
    """A part is cut off after the row that took too long, and said so; the next ones are not begun."""
    clock = SimpleNamespace(
        monotonic=functools.partial(next, itertools.count(0, 40)), perf_counter=lambda: 0.0
    )
    monkeypatch.setattr(bench, "time", clock)
    assert bench.main(["--out", str(tmp_path), "--only", "general", "linear", "--minutes", "1"]) == 1
    report = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert len(report["general"]) == 1
    assert report["errors"]["general"].startswith("cut off")
    assert report["errors"]["linear"].startswith("not begun")


def test_a_lost_context_is_left_and_the_rest_resumed(bench, on_a_device, monkeypatch, tmp_path):
    """The row after which nothing answers is kept, its process ends; the next one goes on behind it."""
    torch, calls = on_a_device, []

    def gone():
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(bench, "microseconds", lambda torch, calls, repeats=None: 1.0)
    monkeypatch.setattr(torch.cuda, "synchronize", gone)
    arguments = ["--out", str(tmp_path), "--only", "grid", "--quiet"]
    assert bench.main(arguments) == bench.LOST
    report = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert len(report["grid"]) == 1
    assert list(report["errors"].values()) == ["the device's context is lost"]
    assert bench.main([*arguments, "--resume"]) == 1
    report = json.loads(next(tmp_path.glob("*.json")).read_text())
    keys = [bench.key(row) for row in report["grid"]]
    assert len(keys) == len(set(keys)) == 2 * 3 * 4 + 3


def test_every_part_has_its_own_process(bench, monkeypatch, tmp_path):
    """A part that crashes is tried again behind its last row, one that hangs is killed; the others are run."""
    commands = []
    report = {"date": "2026-01-02", "device": "X 1", "versions": {}}
    bench.write(report, tmp_path)

    def ran(command, timeout, check):
        part = command[command.index("--only") + 1]
        commands.append((part, "--resume" in command))
        if part == "linear":
            raise subprocess.TimeoutExpired(command, timeout)
        crashed = part == "grid" and commands.count((part, True)) < 1
        return SimpleNamespace(returncode=-11 if crashed else 0)

    monkeypatch.setattr(bench.subprocess, "run", ran)
    assert bench.main(["--out", str(tmp_path)]) == 1
    assert [part for part, again in commands if not again] == list(bench.PARTS)
    assert [part for part, again in commands if again] == ["grid"]
    errors = json.loads(next(tmp_path.glob("*.json")).read_text())["errors"]
    assert errors["grid, process 1"] == "its process ended with status -11"
    assert errors["linear, process 1"].startswith("killed: not finished after ")


def test_without_pytorch(bench, monkeypatch, tmp_path):
    """The kernels are timed over Numba's arrays and tested; the other parts say what is missing."""
    row = {"problem": "5 x 4", "dtype": "float32", "mode": "fused", "bytes": 100, "us": 2.0}
    monkeypatch.setattr(bench, "need_gpu", lambda: None)
    monkeypatch.setattr(bench, "device_name", lambda torch: "X 1")
    monkeypatch.setattr(bench, "bare_rows", lambda quick, errors: [row])
    monkeypatch.setattr(bench, "outcome", lambda command, limit: "passed: 3 passed")
    assert bench.main(["--out", str(tmp_path), "--only", *bench.PARTS, "--quiet"]) == 1
    report = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert report["bare"] == [row]
    assert report["checks"]["tests"] == "passed: 3 passed"
    without = set(bench.PARTS) - set(bench.WITHOUT_TORCH)
    assert set(report["errors"]) == without
    assert all("PyTorch is not installed" in why for why in report["errors"].values())
    assert "| 5 x 4 | float32 | fused | 2 | 5e-05 |" in next(tmp_path.glob("*.md")).read_text()


def test_targets_and_who_is_behind_them(bench):
    """The issue's numbers; a row below its target, a faster peer and a pass that holds too much are named."""
    row = {"problem": "4096 x 131072", "dtype": "float32", "mode": "fused", "bytes": 4e9, "us": 2000.0}
    assert bench.target(row) == 0.85
    assert bench.target({**row, "mode": "forward"}) == 0.92
    assert bench.target({**row, "problem": "16 x 131072"}) is None
    assert bench.target({**row, "problem": "1048576 x 10"}) == 0.65
    assert bench.target({**row, "problem": "32768 x 1024", "dtype": "bfloat16"}) is None
    linear = {"problem": "8 x 4 x 32768", "dtype": "float32", "extra memory / logits": 0.5}
    report = {"ceilings": {"copy": 4.0}, "grid": [{**row, "liger": 1000.0}], "linear": [linear]}
    found = list(bench.verdicts(report))
    assert [line.partition(":")[2] for line in found] == [
        " 0.50 of the measured rate, to be 0.85",
        " Liger is faster, 1000 us to 2000",
        " 0.500 of the logits' memory, to be 0.125",
    ]


def test_the_triton_kernel():
    """tests/test_cuda_peer.py in Triton's interpreter, which needs a process of its own."""
    pytest.importorskip("triton", reason="triton is not installed")
    test = Path(__file__).with_name("test_cuda_peer.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--benchmark-disable", "-p", "no:cacheprovider", str(test)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "9 passed" in done.stdout


@pytest.mark.parametrize("part", ["ceilings", "checks", "grid", "general", "linear", "estimators", "launch"])
def test_arguments(bench, part, monkeypatch, tmp_path):
    """--only takes every part; what fails in one is in the report, and the status says so."""
    names = {"ceilings": "ceilings", "checks": "largest_error", "grid": "grid", "linear": "linear_rows"}
    names["general"] = "general_rows"
    names |= {"estimators": "estimators", "launch": "launch_cost"}
    ran = []

    def broken(*args):
        ran.append(part)
        raise RuntimeError("it broke")

    monkeypatch.setattr(bench, names[part], broken)
    monkeypatch.setattr(
        bench,
        "need_gpu",
        lambda: SimpleNamespace(
            cuda=SimpleNamespace(get_device_name=lambda: "X 1", synchronize=lambda: None)
        ),
    )
    assert bench.main(["--only", part, "--quick", "--out", str(tmp_path)]) == 1
    assert ran == [part]
    (numbers,) = tmp_path.glob("*-X-1.json")
    assert "it broke" in json.loads(numbers.read_text())["errors"][part]
